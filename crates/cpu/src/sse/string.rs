//! PCMPESTRI, PCMPESTRM, PCMPISTRI and PCMPISTRM (SDM volume 2, 4.1).

/// What the comparison leaves, before it becomes an index or a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringCompare {
    /// IntRes2: one bit for every element of the second operand.
    pub(crate) bits: u16,
    /// The first operand ended before the register did (SF).
    pub(crate) first_ended: bool,
    /// The second operand ended before the register did (ZF).
    pub(crate) second_ended: bool,
    /// Bytes (false) or words (true).
    words: bool,
}

/// One operand: its elements, sign- or zero-extended, and how many of them count.
struct Elements {
    value: [i32; 16],
    len: usize,
}

impl Elements {
    fn new(register: u128, control: u8) -> Elements {
        let bytes = register.to_le_bytes();
        let value = std::array::from_fn(|i| match control & 3 {
            0 => i32::from(bytes[i]),
            2 => i32::from(bytes[i] as i8),
            _ if i >= 8 => 0,
            1 => i32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
            _ => i32::from(i16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])),
        });
        Elements { value, len: count(control) }
    }

    fn valid(&self) -> &[i32] {
        &self.value[..self.len]
    }
}

fn count(control: u8) -> usize {
    if control & 1 != 0 { 8 } else { 16 }
}

/// With explicit lengths: the absolute values of EAX/RAX and EDX/RDX, cut to the register.
pub(crate) fn explicit(a: u128, a_len: i64, b: u128, b_len: i64, control: u8) -> StringCompare {
    let (mut a, mut b) = (Elements::new(a, control), Elements::new(b, control));
    let cut = |len: i64| len.unsigned_abs().min(count(control) as u64) as usize;
    (a.len, b.len) = (cut(a_len), cut(b_len));
    compare(&a, &b, control)
}

/// With lengths up to the first zero element.
pub(crate) fn implicit(a: u128, b: u128, control: u8) -> StringCompare {
    let (mut a, mut b) = (Elements::new(a, control), Elements::new(b, control));
    let to_zero = |e: &Elements| e.valid().iter().position(|v| *v == 0).unwrap_or(e.len);
    (a.len, b.len) = (to_zero(&a), to_zero(&b));
    compare(&a, &b, control)
}

fn compare(a: &Elements, b: &Elements, control: u8) -> StringCompare {
    let count = count(control);
    let mut bits = 0;
    for j in 0..count {
        let hit = match control >> 2 & 3 {
            0 => equal_any(a, b, j),
            1 => ranges(a, b, j),
            2 => equal_each(a, b, j),
            _ => equal_ordered(a, b, j, count),
        };
        bits |= u16::from(hit) << j;
    }
    let all = ((1u32 << count) - 1) as u16;
    let valid = ((1u32 << b.len) - 1) as u16;
    bits ^= match control >> 4 & 3 {
        1 => all,
        3 => valid,
        _ => 0,
    };
    StringCompare {
        bits,
        first_ended: a.len < count,
        second_ended: b.len < count,
        words: control & 1 != 0,
    }
}

/// Element `j` of `b` is one of the set `a`.
fn equal_any(a: &Elements, b: &Elements, j: usize) -> bool {
    j < b.len && a.valid().contains(&b.value[j])
}

/// Element `j` of `b` lies in one of the ranges whose bounds are the pairs of `a`. An odd last bound
/// has no partner and makes no range.
fn ranges(a: &Elements, b: &Elements, j: usize) -> bool {
    let in_range = |pair: &[i32]| (pair[0]..=pair[1]).contains(&b.value[j]);
    j < b.len && a.valid().chunks_exact(2).any(in_range)
}

/// Both have ended at `j`, or neither has and the elements are equal.
fn equal_each(a: &Elements, b: &Elements, j: usize) -> bool {
    match (j < a.len, j < b.len) {
        (true, true) => a.value[j] == b.value[j],
        (a_valid, b_valid) => a_valid == b_valid,
    }
}

/// `a` is found in `b` at `j`, or begins there and runs out of the register.
fn equal_ordered(a: &Elements, b: &Elements, j: usize, count: usize) -> bool {
    let room = count - j;
    a.valid().iter().take(room).enumerate().all(|(i, v)| j + i < b.len && b.value[j + i] == *v)
}

impl StringCompare {
    /// ECX of PCMPxSTRI: the lowest or (bit 6 of the control) highest set bit, or the element count.
    pub(crate) fn index(&self, control: u8) -> u32 {
        if self.bits == 0 {
            return count(control) as u32;
        }
        if control & 0x40 != 0 {
            15 - self.bits.leading_zeros()
        } else {
            self.bits.trailing_zeros()
        }
    }

    /// XMM0 of PCMPxSTRM: the bits, or (bit 6 of the control) one element of ones for each.
    pub(crate) fn mask(&self, control: u8) -> u128 {
        if control & 0x40 == 0 {
            return u128::from(self.bits);
        }
        let (width, ones) = if self.words { (16, 0xffff) } else { (8, 0xff) };
        (0..128 / width)
            .filter(|i| self.bits >> i & 1 != 0)
            .fold(0, |mask, i| mask | ones << (i * width))
    }
}

#[cfg(test)]
mod tests {
    use base::SeededRng;

    use super::*;

    /// The manual's own formulation: the full matrix of comparisons, the override of invalid
    /// elements by table, then the aggregation.
    fn reference(a: &[i32], a_len: usize, b: &[i32], b_len: usize, control: u8) -> u16 {
        let n = a.len();
        let mode = control >> 2 & 3;
        let mut matrix = vec![vec![false; n]; n];
        for j in 0..n {
            for i in 0..n {
                let raw = match mode {
                    1 if i % 2 == 0 => b[j] >= a[i],
                    1 => b[j] <= a[i],
                    _ => a[i] == b[j],
                };
                // Rows: validity of (a, b): (invalid, invalid), (invalid, valid), (valid, invalid).
                matrix[j][i] = match (i < a_len, j < b_len, mode) {
                    (true, true, _) => raw,
                    (false, false, 0 | 1) => false,
                    (false, false, _) => true,
                    (false, true, 3) => true,
                    (false, true, _) => false,
                    (true, false, _) => false,
                };
            }
        }
        let mut bits = 0;
        for j in 0..n {
            let hit = match mode {
                0 => (0..n).any(|i| matrix[j][i]),
                1 => (0..n).step_by(2).any(|i| matrix[j][i] && matrix[j][i + 1]),
                2 => matrix[j][j],
                _ => (0..n - j).all(|i| matrix[j + i][i]),
            };
            bits |= u16::from(hit) << j;
        }
        for j in 0..n {
            let flip = match control >> 4 & 3 {
                1 => true,
                3 => j < b_len,
                _ => false,
            };
            bits ^= u16::from(flip) << j;
        }
        bits
    }

    #[test]
    fn every_control_byte_agrees_with_the_manuals_matrix() {
        let mut rng = SeededRng::new(1);
        for control in 0..=255u8 {
            for case in 0..400 {
                // A small alphabet, so that hits, ranges and repeats are common.
                let mut bytes = || -> [u8; 16] {
                    std::array::from_fn(|_| {
                        [0, 1, 2, 3, 0x7f, 0x80, 0xfe, 0xff][rng.below(8) as usize]
                    })
                };
                let (a, b) = (u128::from_le_bytes(bytes()), u128::from_le_bytes(bytes()));
                let n = count(control);
                let (x, y) = (Elements::new(a, control), Elements::new(b, control));
                let (a_len, b_len) = (rng.below(40) as i64 - 20, rng.below(40) as i64 - 20);
                let cut = |len: i64| (len.unsigned_abs() as usize).min(n);
                let ours = explicit(a, a_len, b, b_len, control);
                let (x, y) = (&x.value[..n], &y.value[..n]);
                let expected = reference(x, cut(a_len), y, cut(b_len), control);
                assert_eq!(ours.bits, expected, "explicit {control:#x}, case {case}");
                let zero = |e: &[i32]| e.iter().position(|v| *v == 0).unwrap_or(n);
                let ours = implicit(a, b, control);
                let expected = reference(x, zero(x), y, zero(y), control);
                assert_eq!(ours.bits, expected, "implicit {control:#x}, case {case}");
                assert_eq!((ours.first_ended, ours.second_ended), (zero(x) < n, zero(y) < n));
            }
        }
    }

    #[test]
    fn strlen_by_equal_each_finds_the_terminator() {
        let text = u128::from_le_bytes(*b"hello\0garbage...");
        let compared = implicit(text, text, 0b0001_1000);
        assert_eq!(compared.index(0b0001_1000), 16, "negated: no difference up to the end");
        let zeros = implicit(0, text, 0b0000_1000);
        assert_eq!(zeros.index(0b0000_1000), 5);
        assert!(zeros.second_ended);
    }
}
