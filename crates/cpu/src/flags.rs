//! The arithmetic flags, computed when somebody looks.
//!
//! An instruction leaves behind its result and the carries out of each bit, and the flags follow
//! from these without a branch:
//!
//! - ZF: `zero` is 0;
//! - SF: bit 63 of `sign`; PF: parity of the low byte of `sign`;
//! - CF: bit 63 of `carry`; OF: bit 63 differs from bit 62; AF: bit 3.
//!
//! So results are sign-extended to 64 bits, and carries are moved up until the carry out of the
//! operand's top bit is bit 63; the carry out of bit 3 stays where it is.

use x86::Rflags;

/// The six arithmetic flags.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    zero: u64,
    sign: u64,
    carry: u64,
}

const AF_BIT: u64 = 1 << 3;

impl Flags {
    /// The flags of an RFLAGS value.
    #[must_use]
    pub fn from_rflags(rflags: u64) -> Flags {
        let cf = rflags & Rflags::CF;
        let of = rflags >> 11 & 1;
        Flags {
            zero: u64::from(rflags & Rflags::ZF == 0),
            sign: (rflags >> 7 & 1) << 63 | u64::from(rflags & Rflags::PF == 0),
            carry: cf << 63 | (cf ^ of) << 62 | (rflags >> 4 & 1) << 3,
        }
    }

    /// The flags in their places in RFLAGS, all other bits 0.
    #[must_use]
    pub fn to_rflags(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Carry.
    #[inline(always)]
    #[must_use]
    pub fn cf(self) -> bool {
        (self.carry as i64) < 0
    }

    /// Parity.
    #[inline(always)]
    #[must_use]
    pub fn pf(self) -> bool {
        (self.sign as u8).count_ones().is_multiple_of(2)
    }

    /// Carry out of bit 3.
    #[inline(always)]
    #[must_use]
    pub fn af(self) -> bool {
        self.carry & AF_BIT != 0
    }

    /// Zero.
    #[inline(always)]
    #[must_use]
    pub fn zf(self) -> bool {
        self.zero == 0
    }

    /// Sign.
    #[inline(always)]
    #[must_use]
    pub fn sf(self) -> bool {
        (self.sign as i64) < 0
    }

    /// Overflow.
    #[inline(always)]
    #[must_use]
    pub fn of(self) -> bool {
        ((self.carry ^ self.carry << 1) as i64) < 0
    }

    /// SF differs from OF: less, after a signed comparison.
    #[inline(always)]
    #[must_use]
    pub fn less(self) -> bool {
        ((self.sign ^ self.carry ^ self.carry << 1) as i64) < 0
    }

    /// The flags of a logic operation: CF, OF and AF are 0. `result` is sign-extended.
    #[inline(always)]
    #[must_use]
    pub fn logic(result: u64) -> Flags {
        Flags { zero: result, sign: result, carry: 0 }
    }

    /// The flags of `a + b (+ carry) = result` on operands of `bits` bits. `result` is sign-extended.
    #[inline(always)]
    #[must_use]
    pub fn add(bits: u32, a: u64, b: u64, result: u64) -> Flags {
        Flags { zero: result, sign: result, carry: place(bits, a & b | (a | b) & !result) }
    }

    /// The flags of `a - b (- borrow) = result`.
    #[inline(always)]
    #[must_use]
    pub fn sub(bits: u32, a: u64, b: u64, result: u64) -> Flags {
        Flags { zero: result, sign: result, carry: place(bits, !a & b | (!a | b) & result) }
    }

    /// These flags with another CF; OF stays.
    #[inline(always)]
    #[must_use]
    pub fn with_cf(self, cf: bool) -> Flags {
        let overflow = (self.carry ^ self.carry << 1) >> 63;
        let cf = u64::from(cf);
        Flags { carry: self.carry & AF_BIT | cf << 63 | (cf ^ overflow) << 62, ..self }
    }

    /// These flags with other CF and OF, and AF 0.
    #[inline(always)]
    #[must_use]
    pub fn with_cf_of(self, cf: bool, of: bool) -> Flags {
        let (cf, of) = (u64::from(cf), u64::from(of));
        Flags { carry: cf << 63 | (cf ^ of) << 62, ..self }
    }

    /// These flags with other CF and OF, and the same AF.
    #[inline(always)]
    #[must_use]
    pub fn with_rotated(self, cf: bool, of: bool) -> Flags {
        Flags { carry: self.carry & AF_BIT | self.with_cf_of(cf, of).carry, ..self }
    }

    /// These flags with another ZF.
    #[inline(always)]
    #[must_use]
    pub fn with_zf(self, zf: bool) -> Flags {
        Flags { zero: u64::from(!zf), ..self }
    }
}

/// Moves a carry vector of `bits` bits into place.
#[inline(always)]
fn place(bits: u32, carries: u64) -> u64 {
    carries << (64 - bits) | carries & AF_BIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_the_round_trip() {
        for combination in 0..64u64 {
            let rflags = combination & 1
                | (combination >> 1 & 1) << 2
                | (combination >> 2 & 1) << 4
                | (combination >> 3 & 1) << 6
                | (combination >> 4 & 1) << 7
                | (combination >> 5 & 1) << 11;
            assert_eq!(Flags::from_rflags(rflags).to_rflags(), rflags);
            let flags = Flags::from_rflags(rflags);
            assert_eq!(flags.less(), flags.sf() != flags.of());
            assert_eq!(flags.with_cf(true).to_rflags(), rflags | Rflags::CF);
            assert_eq!(flags.with_cf(false).to_rflags(), rflags & !Rflags::CF);
        }
    }

    #[test]
    fn flags_of_8_bit_addition_and_subtraction_agree_with_arithmetic() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let (sum, cf) = a.overflowing_add(b);
                let of = (a as i8).checked_add(b as i8).is_none();
                let flags = Flags::add(8, u64::from(a), u64::from(b), sum as i8 as u64);
                assert_eq!((flags.cf(), flags.of()), (cf, of), "{a} + {b}");
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15, "{a} + {b}");
                let (difference, cf) = a.overflowing_sub(b);
                let of = (a as i8).checked_sub(b as i8).is_none();
                let flags = Flags::sub(8, u64::from(a), u64::from(b), difference as i8 as u64);
                assert_eq!((flags.cf(), flags.of()), (cf, of), "{a} - {b}");
                assert_eq!(flags.af(), a & 15 < b & 15, "{a} - {b}");
                assert_eq!(flags.less(), (a as i8) < b as i8, "{a} - {b}");
            }
        }
    }
}
