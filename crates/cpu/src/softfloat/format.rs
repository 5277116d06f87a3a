//! Number formats: single and double as their bits, the x87 extended format as a struct.

use super::fast::HostFast;
use crate::state::F80;

/// What a format can hold. `exp` here is that of a significand in `[1, 2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Significant bits, the leading one included.
    pub precision: u32,
    /// Exponent of the smallest normal number.
    pub exp_min: i32,
    /// Exponent of the largest number.
    pub exp_max: i32,
    /// How far an unmasked overflow or underflow moves the exponent back into range.
    pub wrap: i32,
}

/// Single precision.
pub const SINGLE: Format = Format { precision: 24, exp_min: -126, exp_max: 127, wrap: 192 };
/// Double precision.
pub const DOUBLE: Format = Format { precision: 53, exp_min: -1022, exp_max: 1023, wrap: 1536 };
/// Half precision, which is only converted to and from. An unmasked exception leaves no result, so nothing wraps.
pub const HALF: Format = Format { precision: 11, exp_min: -14, exp_max: 15, wrap: 0 };
/// x87 double extended precision.
pub const EXTENDED: Format = Format { precision: 64, exp_min: -16382, exp_max: 16383, wrap: 24576 };

impl Format {
    /// The largest finite number.
    pub(super) fn largest(self, sign: bool) -> Parts {
        Parts { sign, exp: self.exp_max, sig: u64::MAX << (64 - self.precision) }
    }
}

/// What an operand is. The order matters: NaNs and unsupported encodings come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Plus or minus zero.
    Zero,
    /// A finite number other than zero, denormal or not.
    Finite,
    /// An infinity.
    Infinity,
    /// A quiet NaN.
    Quiet,
    /// A signalling NaN.
    Signaling,
    /// An extended encoding that the x87 rejects: pseudo-NaN, pseudo-infinity, unnormal.
    Unsupported,
}

/// An operand taken apart: `sig * 2^(exp - 63)`, bit 63 of `sig` set for finite numbers.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked {
    /// Negative.
    pub sign: bool,
    /// What it is.
    pub class: Class,
    /// Exponent of finite numbers.
    pub exp: i32,
    /// Significand; for a NaN its payload, left-aligned below bit 63 which is set.
    pub sig: u64,
    /// Was encoded as a denormal (or pseudo-denormal) number.
    pub denormal: bool,
}

impl Unpacked {
    /// Plus zero.
    #[must_use]
    pub fn zero() -> Unpacked {
        Unpacked { sign: false, class: Class::Zero, exp: 0, sig: 0, denormal: false }
    }

    /// A finite number, bit 63 of `sig` set.
    #[must_use]
    pub fn finite(sign: bool, exp: i32, sig: u64) -> Unpacked {
        debug_assert!(sig >> 63 == 1);
        Unpacked { sign, class: Class::Finite, exp, sig, denormal: false }
    }

    /// Quiet or signalling.
    #[inline]
    #[must_use]
    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }

    /// This NaN, made quiet.
    #[must_use]
    pub fn quieted(&self) -> Parts {
        Parts { sign: self.sign, exp: Parts::SPECIAL, sig: self.sig | Parts::QUIET }
    }

    /// With the other sign.
    #[must_use]
    pub fn negated(mut self) -> Unpacked {
        self.sign = !self.sign;
        self
    }

    /// The value as a result; only for numbers that need no rounding.
    #[must_use]
    pub fn to_parts(&self) -> Parts {
        match self.class {
            Class::Zero => Parts::zero(self.sign),
            Class::Finite => Parts { sign: self.sign, exp: self.exp, sig: self.sig },
            Class::Infinity => Parts::infinity(self.sign),
            Class::Quiet | Class::Signaling => self.quieted(),
            Class::Unsupported => Parts::DEFAULT_NAN,
        }
    }
}

/// A result that fits its format: zero if `sig` is 0, denormal if bit 63 of `sig` is clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Negative.
    pub sign: bool,
    /// Exponent, or [`Parts::SPECIAL`] for infinities (fraction 0) and NaNs.
    pub exp: i32,
    /// Left-aligned significand with its leading one.
    pub sig: u64,
}

impl Parts {
    /// The exponent of infinities and NaNs.
    pub const SPECIAL: i32 = i32::MAX;
    /// The bit of a NaN that makes it quiet.
    pub const QUIET: u64 = 1 << 62;
    /// What an invalid operation gives: negative, quiet, no payload ("real indefinite").
    pub const DEFAULT_NAN: Parts =
        Parts { sign: true, exp: Parts::SPECIAL, sig: (1 << 63) | Parts::QUIET };

    /// A zero.
    #[must_use]
    pub fn zero(sign: bool) -> Parts {
        Parts { sign, exp: 0, sig: 0 }
    }

    /// An infinity.
    #[must_use]
    pub fn infinity(sign: bool) -> Parts {
        Parts { sign, exp: Parts::SPECIAL, sig: 1 << 63 }
    }

    /// A NaN.
    #[must_use]
    pub fn is_nan(&self) -> bool {
        self.exp == Parts::SPECIAL && self.sig << 1 != 0
    }

    /// The biased exponent field for a format with this bias and largest field.
    #[inline]
    fn field(&self, bias: i32, special: u32) -> u32 {
        if self.exp == Parts::SPECIAL {
            special
        } else if self.sig >> 63 == 0 {
            0
        } else {
            (self.exp + bias) as u32
        }
    }
}

/// A number format by its bits: `u16` is half, `u32` single, `u64` double, [`F80`] extended precision.
pub trait Float: HostFast + PartialEq {
    /// Precision and range.
    const FORMAT: Format;
    /// Takes the bits apart.
    fn unpack(self) -> Unpacked;
    /// Puts a result that fits this format together. A NaN keeps the payload's upper bits.
    fn pack(parts: Parts) -> Self;
    /// This value, if it is a NaN, as a quiet one.
    fn or_quiet(self) -> Self {
        let unpacked = self.unpack();
        if unpacked.is_nan() { Self::pack(unpacked.quieted()) } else { self }
    }
}

/// Unpacks a format with an implied leading one, `frac` left-aligned below bit 63.
#[inline]
fn unpack_implied(sign: bool, field: u32, special: u32, bias: i32, frac: u64) -> Unpacked {
    if field != 0 && field != special {
        return Unpacked {
            sign,
            class: Class::Finite,
            exp: field as i32 - bias,
            sig: frac | (1 << 63),
            denormal: false,
        };
    }
    if field == 0 {
        if frac == 0 {
            return Unpacked { sign, class: Class::Zero, exp: 0, sig: 0, denormal: false };
        }
        let shift = frac.leading_zeros();
        return Unpacked {
            sign,
            class: Class::Finite,
            exp: 1 - bias - shift as i32,
            sig: frac << shift,
            denormal: true,
        };
    }
    let class = if frac == 0 {
        Class::Infinity
    } else if frac & Parts::QUIET != 0 {
        Class::Quiet
    } else {
        Class::Signaling
    };
    Unpacked { sign, class, exp: 0, sig: frac | (1 << 63), denormal: false }
}

impl HostFast for u16 {}

impl Float for u16 {
    const FORMAT: Format = HALF;

    #[inline]
    fn unpack(self) -> Unpacked {
        let frac = u64::from(self & 0x03ff) << 53;
        unpack_implied(self >> 15 != 0, u32::from(self >> 10) & 0x1f, 0x1f, 15, frac)
    }

    #[inline]
    fn pack(parts: Parts) -> u16 {
        let frac = (parts.sig >> 53) as u16 & 0x03ff;
        (u16::from(parts.sign) << 15) | (parts.field(15, 0x1f) as u16 & 0x1f) << 10 | frac
    }
}

impl Float for u32 {
    const FORMAT: Format = SINGLE;

    #[inline]
    fn unpack(self) -> Unpacked {
        let frac = u64::from(self & 0x007f_ffff) << 40;
        unpack_implied(self >> 31 != 0, (self >> 23) & 0xff, 0xff, 127, frac)
    }

    #[inline]
    fn pack(parts: Parts) -> u32 {
        let frac = (parts.sig >> 40) as u32 & 0x007f_ffff;
        (u32::from(parts.sign) << 31) | (parts.field(127, 0xff) & 0xff) << 23 | frac
    }
}

impl Float for u64 {
    const FORMAT: Format = DOUBLE;

    #[inline]
    fn unpack(self) -> Unpacked {
        let frac = (self & 0x000f_ffff_ffff_ffff) << 11;
        unpack_implied(self >> 63 != 0, (self >> 52) as u32 & 0x7ff, 0x7ff, 1023, frac)
    }

    #[inline]
    fn pack(parts: Parts) -> u64 {
        let frac = (parts.sig >> 11) & 0x000f_ffff_ffff_ffff;
        (u64::from(parts.sign) << 63) | u64::from(parts.field(1023, 0x7ff) & 0x7ff) << 52 | frac
    }
}

impl F80 {
    /// Plus zero.
    pub const ZERO: F80 = F80 { significand: 0, sign_exponent: 0 };
    /// One.
    pub const ONE: F80 = F80 { significand: 1 << 63, sign_exponent: 0x3fff };
    /// The x87's "real indefinite".
    pub const DEFAULT_NAN: F80 = F80 { significand: 3 << 62, sign_exponent: 0xffff };

    /// From the ten bytes of memory format (the upper 48 bits of `bits` are ignored).
    #[must_use]
    pub fn from_bits(bits: u128) -> F80 {
        F80 { significand: bits as u64, sign_exponent: (bits >> 64) as u16 }
    }

    /// The ten bytes of memory format.
    #[must_use]
    pub fn to_bits(self) -> u128 {
        u128::from(self.significand) | u128::from(self.sign_exponent) << 64
    }

    /// Negative, whatever else it is.
    #[must_use]
    pub fn sign(self) -> bool {
        self.sign_exponent & 0x8000 != 0
    }
}

impl Float for F80 {
    const FORMAT: Format = EXTENDED;

    #[inline]
    fn unpack(self) -> Unpacked {
        let sign = self.sign();
        let field = i32::from(self.sign_exponent & 0x7fff);
        let explicit = self.significand >> 63 != 0;
        if field == 0x7fff {
            let class = if !explicit {
                Class::Unsupported
            } else if self.significand << 1 == 0 {
                Class::Infinity
            } else if self.significand & Parts::QUIET != 0 {
                Class::Quiet
            } else {
                Class::Signaling
            };
            return Unpacked { sign, class, exp: 0, sig: self.significand, denormal: false };
        }
        if field == 0 {
            if self.significand == 0 {
                return Unpacked { sign, class: Class::Zero, exp: 0, sig: 0, denormal: false };
            }
            let shift = self.significand.leading_zeros();
            return Unpacked {
                sign,
                class: Class::Finite,
                exp: -16382 - shift as i32,
                sig: self.significand << shift,
                denormal: true,
            };
        }
        let class = if explicit { Class::Finite } else { Class::Unsupported };
        Unpacked { sign, class, exp: field - 16383, sig: self.significand, denormal: false }
    }

    #[inline]
    fn pack(parts: Parts) -> F80 {
        let field = parts.field(16383, 0x7fff) as u16 & 0x7fff;
        F80 { significand: parts.sig, sign_exponent: u16::from(parts.sign) << 15 | field }
    }
}
