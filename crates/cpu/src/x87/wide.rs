//! Numbers with 128 significant bits, for the inside of transcendental functions.
//!
//! Every operation truncates, so a chain of some forty loses less than ten bits: results have more
//! than 110 good bits where 64 are wanted.

use crate::softfloat::{Format, FpEnv, Parts, Unpacked};

/// `sig * 2^(exp - 127)`; bit 127 of `sig` is set, or the number is zero and `sig` is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    pub(super) sign: bool,
    pub(super) exp: i32,
    pub(super) sig: u128,
}

impl Wide {
    pub(super) const ZERO: Wide = Wide { sign: false, exp: 0, sig: 0 };
    pub(super) const ONE: Wide = Wide { sign: false, exp: 0, sig: 1 << 127 };

    /// A positive number.
    pub(super) const fn new(exp: i32, sig: u128) -> Wide {
        Wide { sign: false, exp, sig }
    }

    pub(super) fn from_unpacked(u: &Unpacked) -> Wide {
        Wide { sign: u.sign, exp: u.exp, sig: u128::from(u.sig) << 64 }
    }

    pub(super) fn from_int(value: i32) -> Wide {
        Wide::normalized(value < 0, 127, u128::from(value.unsigned_abs()))
    }

    /// `sig * 2^(exp - 127)` for any `sig`.
    pub(super) fn normalized(sign: bool, exp: i32, sig: u128) -> Wide {
        if sig == 0 {
            return Wide::ZERO;
        }
        let shift = sig.leading_zeros();
        Wide { sign, exp: exp - shift as i32, sig: sig << shift }
    }

    pub(super) fn negated(self) -> Wide {
        Wide { sign: !self.sign, ..self }
    }

    pub(super) fn magnitude(self) -> Wide {
        Wide { sign: false, ..self }
    }

    /// The same number times a power of two.
    pub(super) fn scaled(self, by: i32) -> Wide {
        Wide { exp: self.exp + by, ..self }
    }

    pub(super) fn less_than(&self, other: &Wide) -> bool {
        debug_assert!(!self.sign && !other.sign);
        match (self.sig, other.sig) {
            (_, 0) => false,
            (0, _) => true,
            _ => (self.exp, self.sig) < (other.exp, other.sig),
        }
    }

    pub(super) fn mul(self, other: Wide) -> Wide {
        if self.sig == 0 || other.sig == 0 {
            return Wide::ZERO;
        }
        let (high, low) = multiply(self.sig, other.sig);
        let (sign, exp) = (self.sign != other.sign, self.exp + other.exp);
        if high >> 127 != 0 {
            Wide { sign, exp: exp + 1, sig: high }
        } else {
            Wide { sign, exp, sig: high << 1 | low >> 127 }
        }
    }

    pub(super) fn add(self, other: Wide) -> Wide {
        if self.sig == 0 {
            return other;
        }
        if other.sig == 0 {
            return self;
        }
        let self_is_big = (self.exp, self.sig) >= (other.exp, other.sig);
        let (big, small) = if self_is_big { (self, other) } else { (other, self) };
        let shift = (big.exp - small.exp) as u32;
        let shifted = small.sig.checked_shr(shift).unwrap_or(0);
        let lost = shift > 0 && (shift >= 128 || small.sig << (128 - shift) != 0);
        if big.sign == small.sign {
            let (sum, carry) = big.sig.overflowing_add(shifted);
            if carry {
                return Wide { sign: big.sign, exp: big.exp + 1, sig: sum >> 1 | 1 << 127 };
            }
            return Wide { sig: sum, ..big };
        }
        // What was shifted out makes the difference smaller: truncate towards zero here as well.
        Wide::normalized(big.sign, big.exp, big.sig - shifted - u128::from(lost))
    }

    pub(super) fn sub(self, other: Wide) -> Wide {
        self.add(other.negated())
    }

    /// Divides by a number other than zero.
    pub(super) fn div(self, other: Wide) -> Wide {
        if self.sig == 0 {
            return Wide::ZERO;
        }
        let sign = self.sign != other.sign;
        let (mut rest, mut exp) = (self.sig, self.exp - other.exp);
        // Long division, bit by bit. `top` is bit 128 of the remainder.
        let mut top = false;
        if rest < other.sig {
            exp -= 1;
            top = rest >> 127 != 0;
            rest <<= 1;
        }
        let mut sig = 0u128;
        for _ in 0..128 {
            sig <<= 1;
            if top || rest >= other.sig {
                rest = rest.wrapping_sub(other.sig);
                sig |= 1;
            }
            top = rest >> 127 != 0;
            rest <<= 1;
        }
        Wide { sign, exp, sig }
    }

    /// Divides by a small number.
    pub(super) fn div_small(self, by: u32) -> Wide {
        if self.sig == 0 {
            return Wide::ZERO;
        }
        let by = u128::from(by);
        let (quotient, rest) = (self.sig / by, self.sig % by);
        let shift = quotient.leading_zeros();
        let tail = if shift == 0 { 0 } else { (rest << shift) / by };
        Wide { sign: self.sign, exp: self.exp - shift as i32, sig: quotient << shift | tail }
    }

    /// Rounds. `is_exact` says that no bit is missing below the last one.
    pub(super) fn round(self, env: &mut FpEnv, format: Format, is_exact: bool) -> Parts {
        if self.sig == 0 {
            return Parts::zero(self.sign);
        }
        env.round(format, self.sign, self.exp, self.sig | u128::from(!is_exact))
    }
}

/// The 256-bit product.
fn multiply(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (high, cross_a, cross_b, low) = (a1 * b1, a1 * b0, a0 * b1, a0 * b0);
    let middle = (low >> 64) + (cross_a & LOW) + (cross_b & LOW);
    (high + (cross_a >> 64) + (cross_b >> 64) + (middle >> 64), middle << 64 | low & LOW)
}
