//! AES-NI, PCLMULQDQ and SHA as functions of whole registers (SDM volume 2; FIPS 197, FIPS 180-4).

use super::lanes::Lane;

/// Multiplication by x in the field of AES.
const fn times_x(a: u8) -> u8 {
    a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = times_x(a);
        b >>= 1;
    }
    product
}

/// SubBytes for one byte: the inverse in the field (a^254), then the affine map.
const fn substituted(a: u8) -> u8 {
    let (mut inverse, mut power, mut exponent) = (1, a, 254);
    while exponent != 0 {
        if exponent & 1 != 0 {
            inverse = multiply(inverse, power);
        }
        power = multiply(power, power);
        exponent >>= 1;
    }
    inverse
        ^ inverse.rotate_left(1)
        ^ inverse.rotate_left(2)
        ^ inverse.rotate_left(3)
        ^ inverse.rotate_left(4)
        ^ 0x63
}

const S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = substituted(at as u8);
        at += 1;
    }
    table
};

const INVERSE_S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[S_BOX[at] as usize] = at as u8;
        at += 1;
    }
    table
};

/// A column of MixColumns: for each byte of a column what it adds to all four.
const fn mix_table(factors: [u8; 4]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        table[at] = u32::from_le_bytes([
            multiply(byte, factors[0]),
            multiply(byte, factors[1]),
            multiply(byte, factors[2]),
            multiply(byte, factors[3]),
        ]);
        at += 1;
    }
    table
}

const MIX: [u32; 256] = mix_table([2, 1, 1, 3]);
const INVERSE_MIX: [u32; 256] = mix_table([14, 9, 13, 11]);

fn mix(a: u128, table: &[u32; 256]) -> u128 {
    u32::map(a, |column| {
        let bytes = column.to_le_bytes();
        (0..4).fold(0, |sum, i| sum ^ table[usize::from(bytes[i])].rotate_left(8 * i as u32))
    })
}

/// ShiftRows, `step` columns forward for each row, and SubBytes.
fn substitute_shifted(a: u128, table: &[u8; 256], step: usize) -> u128 {
    let bytes = a.to_le_bytes();
    u128::from_le_bytes(std::array::from_fn(|i| {
        let row = i % 4;
        table[usize::from(bytes[(i + 4 * step * row) % 16])]
    }))
}

pub(crate) fn aesenclast(a: u128, key: u128) -> u128 {
    substitute_shifted(a, &S_BOX, 1) ^ key
}

pub(crate) fn aesenc(a: u128, key: u128) -> u128 {
    mix(substitute_shifted(a, &S_BOX, 1), &MIX) ^ key
}

pub(crate) fn aesdeclast(a: u128, key: u128) -> u128 {
    substitute_shifted(a, &INVERSE_S_BOX, 3) ^ key
}

pub(crate) fn aesdec(a: u128, key: u128) -> u128 {
    mix(substitute_shifted(a, &INVERSE_S_BOX, 3), &INVERSE_MIX) ^ key
}

pub(crate) fn aesimc(a: u128) -> u128 {
    mix(a, &INVERSE_MIX)
}

pub(crate) fn aeskeygenassist(a: u128, constant: u8) -> u128 {
    let words = u32::split(a);
    let substitute =
        |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|byte| S_BOX[usize::from(byte)]));
    let (first, third) = (substitute(words[1]), substitute(words[3]));
    let rotated = |word: u32| word.rotate_right(8) ^ u32::from(constant);
    u32::join([first, rotated(first), third, rotated(third)])
}

/// The product without carries of the quadwords that bits 0 and 4 of `select` name.
pub(crate) fn pclmulqdq(a: u128, b: u128, select: u8) -> u128 {
    let a = u128::from(u64::split(a)[usize::from(select & 1)]);
    let b = u64::split(b)[usize::from(select >> 4 & 1)];
    (0..64).filter(|bit| b >> bit & 1 != 0).fold(0, |product, bit| product ^ a << bit)
}

/// SHA-1's functions and constants, by the round's quarter.
fn sha1_function(quarter: u8, b: u32, c: u32, d: u32) -> u32 {
    match quarter & 3 {
        0 => (b & c ^ !b & d).wrapping_add(0x5a82_7999),
        1 => (b ^ c ^ d).wrapping_add(0x6ed9_eba1),
        2 => (b & c ^ b & d ^ c & d).wrapping_add(0x8f1b_bcdc),
        _ => (b ^ c ^ d).wrapping_add(0xca62_c1d6),
    }
}

/// Four rounds. `state` holds A (top lane) to D, `words` W0 + E (top lane) and the next three.
pub(crate) fn sha1rnds4(state: u128, words: u128, quarter: u8) -> u128 {
    let [mut d, mut c, mut b, mut a] = u32::split(state);
    let mut e = 0u32;
    for word in u32::split(words).into_iter().rev() {
        let sum = sha1_function(quarter, b, c, d)
            .wrapping_add(a.rotate_left(5))
            .wrapping_add(word)
            .wrapping_add(e);
        (a, b, c, d, e) = (sum, a, b.rotate_left(30), c, d);
    }
    u32::join([d, c, b, a])
}

pub(crate) fn sha1nexte(state: u128, words: u128) -> u128 {
    let mut lanes = u32::split(words);
    lanes[3] = lanes[3].wrapping_add(u32::split(state)[3].rotate_left(30));
    u32::join(lanes)
}

pub(crate) fn sha1msg1(a: u128, b: u128) -> u128 {
    let ([w3, w2, w1, w0], [_, _, w5, w4]) = (u32::split(a), u32::split(b));
    u32::join([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
}

pub(crate) fn sha1msg2(a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [w15, w14, w13, _]) = (u32::split(a), u32::split(b));
    let w16 = (a3 ^ w13).rotate_left(1);
    let w17 = (a2 ^ w14).rotate_left(1);
    let w18 = (a1 ^ w15).rotate_left(1);
    let w19 = (a0 ^ w16).rotate_left(1);
    u32::join([w19, w18, w17, w16])
}

/// Two rounds of SHA-256: `cdgh` and `abef` hold the state, `words` two sums of message and constant.
pub(crate) fn sha256rnds2(cdgh: u128, abef: u128, words: u128) -> u128 {
    let [mut h, mut g, mut d, mut c] = u32::split(cdgh);
    let [mut f, mut e, mut b, mut a] = u32::split(abef);
    let [first, second, ..] = u32::split(words);
    for word in [first, second] {
        let choice = e & f ^ !e & g;
        let majority = a & b ^ a & c ^ b & c;
        let sum_e = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sum_a = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let one = choice.wrapping_add(sum_e).wrapping_add(word).wrapping_add(h);
        let next_a = one.wrapping_add(majority).wrapping_add(sum_a);
        (a, b, c, d, e, f, g, h) = (next_a, a, b, c, one.wrapping_add(d), e, f, g);
    }
    u32::join([f, e, b, a])
}

pub(crate) fn sha256msg1(a: u128, b: u128) -> u128 {
    let sigma = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3;
    let ([w0, w1, w2, w3], [w4, ..]) = (u32::split(a), u32::split(b));
    u32::join([
        w0.wrapping_add(sigma(w1)),
        w1.wrapping_add(sigma(w2)),
        w2.wrapping_add(sigma(w3)),
        w3.wrapping_add(sigma(w4)),
    ])
}

pub(crate) fn sha256msg2(a: u128, b: u128) -> u128 {
    let sigma = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let ([a0, a1, a2, a3], [_, _, w14, w15]) = (u32::split(a), u32::split(b));
    let w16 = a0.wrapping_add(sigma(w14));
    let w17 = a1.wrapping_add(sigma(w15));
    let w18 = a2.wrapping_add(sigma(w16));
    let w19 = a3.wrapping_add(sigma(w17));
    u32::join([w16, w17, w18, w19])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_of_fips_197_comes_out() {
        // FIPS 197, appendix B: the first round's input and key give the second round's input.
        let state = 0x193de3be_a0f4e22b_9ac68d2a_e9f84808u128;
        let key = 0xa0fafe17_88542cb1_23a33939_2a6c7605u128;
        let (state, key) = (state.swap_bytes(), key.swap_bytes());
        let expected = 0xa49c7ff2_689f352b_6b5bea43_026a5049u128.swap_bytes();
        assert_eq!(aesenc(state, key), expected);
        // Deciphering the same way back, with InvMixColumns on the key.
        let before_mix = aesenclast(state, 0);
        assert_eq!(aesdeclast(before_mix, 0), state);
        assert_eq!(aesimc(mix(before_mix, &MIX)), before_mix);
    }
}
