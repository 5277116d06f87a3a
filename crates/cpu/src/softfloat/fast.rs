//! The host's arithmetic where it cannot differ from ours.
//!
//! Rust's `+ - * /` and `sqrt` on `f32` and `f64` are IEEE 754 operations rounded to nearest even on
//! every host, so for operands and results that are normal numbers (or exact zeros) the bits are
//! ours. What the host does not tell is the inexact flag; it is worked out here, exactly:
//!
//! - add, subtract: Knuth's two-sum gives the rounding error itself, without error, as long as
//!   nothing overflows or underflows (sums never underflow inexactly);
//! - multiply: the product of the significands' odd parts fits the precision or it does not;
//! - divide, square root: multiplying back odd parts gives the operand or it does not.
//!
//! A result of exponent field 1 is left to the slow path, because it may have been tiny before its
//! last rounding; so are denormals, infinities, NaNs and every rounding mode but nearest. Neither
//! DAZ nor FTZ matters then, and inexact is the only flag possible; it must be masked.

use super::{FpEnv, Ordering, Rounding, flag};
use crate::state::F80;

/// A result of the host.
#[derive(Clone, Copy, Debug)]
pub struct Fast<F> {
    pub(super) value: F,
    pub(super) inexact: bool,
}

impl FpEnv {
    /// Rounding to nearest, inexact masked.
    #[inline]
    pub(super) fn may_use_host(&self) -> bool {
        self.rounding == Rounding::Nearest && self.masked & flag::PE != 0
    }

    #[inline]
    pub(super) fn accept<F>(&mut self, fast: Fast<F>) -> F {
        self.flags |= u8::from(fast.inexact) << 5;
        fast.value
    }
}

/// The host's operations, `None` where they might differ from ours.
pub trait HostFast: Copy {
    /// `self + other`.
    #[inline]
    fn host_add(self, _other: Self) -> Option<Fast<Self>> {
        None
    }
    /// `self - other`.
    #[inline]
    fn host_sub(self, _other: Self) -> Option<Fast<Self>> {
        None
    }
    /// `self * other`.
    #[inline]
    fn host_mul(self, _other: Self) -> Option<Fast<Self>> {
        None
    }
    /// `self / other`.
    #[inline]
    fn host_div(self, _other: Self) -> Option<Fast<Self>> {
        None
    }
    /// The square root.
    #[inline]
    fn host_sqrt(self) -> Option<Fast<Self>> {
        None
    }
    /// The integer part of a number below 2^62; `inexact` if there is more.
    #[inline]
    fn host_truncate(self) -> Option<Fast<i64>> {
        None
    }
    /// An integer that has no more bits than the significand: exact.
    #[inline]
    fn host_from_int(_value: i64) -> Option<Self> {
        None
    }
    /// The order of two numbers.
    #[inline]
    fn host_compare(self, _other: Self) -> Option<Ordering> {
        None
    }
}

/// Single to double. Exact for every number, so the host may convert all that are not denormal.
#[inline]
pub fn widen(env: &mut FpEnv, a: u32) -> u64 {
    if a.plain() { f64::from(f32::from_bits(a)).to_bits() } else { super::convert(env, a) }
}

/// Double to single. The host rounds to nearest as well, and converting back tells if it had to.
#[inline]
pub fn narrow(env: &mut FpEnv, a: u64) -> u32 {
    let host = f64::from_bits(a) as f32;
    let value = host.to_bits();
    if env.may_use_host() && a.in_range(1) && value.in_range(2) {
        let inexact = f64::from(host).to_bits() != a;
        return env.accept(Fast { value, inexact });
    }
    super::convert(env, a)
}

/// The x87 format has no host counterpart.
impl HostFast for F80 {}

/// Operations for one format. `$wide` holds the product of two significands.
macro_rules! host_fast {
    ($bits:ident, $host:ident, $wide:ident, $frac_bits:literal) => {
        impl HostFast for $bits {
            #[inline]
            fn host_add(self, other: $bits) -> Option<Fast<$bits>> {
                let (a, b) = ($host::from_bits(self), $host::from_bits(other));
                let sum = a + b;
                let value = sum.to_bits();
                // Next to the largest number two-sum could overflow.
                let fits = (value << 1 == 0) | $bits::in_range(value, 2);
                let operands = $bits::plain_below_huge(self) & $bits::plain_below_huge(other);
                if !(fits & operands) {
                    return None;
                }
                let b_used = sum - a;
                let error = (a - (sum - b_used)) + (b - b_used);
                Some(Fast { value, inexact: error != 0.0 })
            }

            #[inline]
            fn host_sub(self, other: $bits) -> Option<Fast<$bits>> {
                // A NaN, whose sign must not change, never gets through.
                self.host_add(other ^ (1 << ($bits::BITS - 1)))
            }

            #[inline]
            fn host_mul(self, other: $bits) -> Option<Fast<$bits>> {
                let value = ($host::from_bits(self) * $host::from_bits(other)).to_bits();
                let ordinary = $bits::in_range(self, 1) & $bits::in_range(other, 1);
                if !(ordinary & $bits::in_range(value, 2)) {
                    return None;
                }
                let product = $bits::odd_part(self) * $bits::odd_part(other);
                Some(Fast { value, inexact: product >> ($frac_bits + 1) != 0 })
            }

            #[inline]
            fn host_div(self, other: $bits) -> Option<Fast<$bits>> {
                let value = ($host::from_bits(self) / $host::from_bits(other)).to_bits();
                let ordinary = $bits::in_range(self, 1) & $bits::in_range(other, 1);
                if !(ordinary & $bits::in_range(value, 2)) {
                    return None;
                }
                let back = $bits::odd_part(value) * $bits::odd_part(other);
                Some(Fast { value, inexact: back != $bits::odd_part(self) })
            }

            #[inline]
            fn host_sqrt(self) -> Option<Fast<$bits>> {
                if self >> ($bits::BITS - 1) != 0 || !$bits::in_range(self, 1) {
                    return None;
                }
                let value = $host::from_bits(self).sqrt().to_bits();
                let root = $bits::odd_part(value);
                // Doubling the exponent by an odd number of places leaves the odd part alone.
                Some(Fast { value, inexact: root * root != $bits::odd_part(self) })
            }

            #[inline]
            fn host_truncate(self) -> Option<Fast<i64>> {
                let number = $host::from_bits(self);
                if !self.plain() || number.abs() >= (1i64 << 62) as $host {
                    return None;
                }
                // Rust's conversion cuts towards zero; below 2^62 it never saturates.
                let value = number as i64;
                Some(Fast { value, inexact: value as $host != number })
            }

            #[inline]
            fn host_from_int(value: i64) -> Option<$bits> {
                let fits = value.unsigned_abs() >> ($frac_bits + 1) == 0;
                fits.then(|| (value as $host).to_bits())
            }

            #[inline]
            fn host_compare(self, other: $bits) -> Option<Ordering> {
                if !($bits::plain(self) & $bits::plain(other)) {
                    return None;
                }
                let (a, b) = ($host::from_bits(self), $host::from_bits(other));
                Some(if a < b {
                    Ordering::Less
                } else if a == b {
                    Ordering::Equal
                } else {
                    Ordering::Greater
                })
            }
        }

        impl Plain for $bits {
            type Wide = $wide;

            #[inline]
            fn in_range(self, lowest: $bits) -> bool {
                const SPECIAL: $bits = (1 << ($bits::BITS - 1 - $frac_bits)) - 1;
                let field = self >> $frac_bits & SPECIAL;
                field.wrapping_sub(lowest) < SPECIAL - lowest
            }

            #[inline]
            fn plain(self) -> bool {
                (self << 1 == 0) | self.in_range(1)
            }

            #[inline]
            fn plain_below_huge(self) -> bool {
                const SPECIAL: $bits = (1 << ($bits::BITS - 1 - $frac_bits)) - 1;
                let field = self >> $frac_bits & SPECIAL;
                (self << 1 == 0) | (field.wrapping_sub(1) < SPECIAL - 3)
            }

            #[inline]
            fn odd_part(self) -> $wide {
                let sig = self & ((1 << $frac_bits) - 1) | 1 << $frac_bits;
                (sig >> sig.trailing_zeros()).into()
            }
        }
    };
}

/// Questions about the bits of a host format.
trait Plain: Sized {
    /// Holds the product of two significands.
    type Wide;
    /// A number whose exponent field is at least `lowest` (so normal, if that is 1).
    fn in_range(self, lowest: Self) -> bool;
    /// Zero or a normal number.
    fn plain(self) -> bool;
    /// Zero or a normal number, and not one with the two largest exponents.
    fn plain_below_huge(self) -> bool;
    /// The significand of a normal number without its trailing zeros.
    fn odd_part(self) -> Self::Wide;
}

host_fast!(u32, f32, u64, 23);
host_fast!(u64, f64, u128, 52);
