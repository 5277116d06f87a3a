//! IEEE 754 arithmetic in integers, as x86 does it: the same result and the same flags on every host.
//!
//! Every operand is unpacked into sign, exponent and a 64-bit significand ([`Unpacked`]), which holds
//! single, double and x87 extended numbers alike. An operation computes up to 128 significant bits
//! with a sticky lowest bit, and [`FpEnv::round`] brings them to the target [`Format`]: four rounding
//! modes, tininess detected after rounding, flush-to-zero, and the wrapped results that the x87
//! delivers when overflow or underflow is unmasked.
//!
//! Order of checks (SDM volume 1, 4.9.2 and 11.5.3): signalling NaN, quiet NaN, other invalid
//! operations and division by zero, denormal operand, then overflow, underflow and inexact.

mod arith;
mod convert;
mod fast;
mod format;

pub use arith::{
    FusedSigns, Ordering, Remainder, RemainderMode, add, add_unpacked, compare, compare_unpacked,
    div, div_unpacked, max, min, mul, mul_add, mul_unpacked, remainder, sqrt, sqrt_unpacked, sub,
    sub_unpacked,
};
pub use convert::{
    IntWidth, convert, from_i64, narrow_half, round_to_integral, to_int, truncate, widen_half,
};
pub use fast::{narrow, widen};
pub use format::{Class, DOUBLE, EXTENDED, Float, Format, HALF, Parts, SINGLE, Unpacked};

/// Exception flags, at the places that MXCSR and the x87 status word give them.
pub mod flag {
    /// Invalid operation.
    pub const IE: u8 = 1;
    /// Denormal operand.
    pub const DE: u8 = 2;
    /// Division by zero.
    pub const ZE: u8 = 4;
    /// Overflow.
    pub const OE: u8 = 8;
    /// Underflow.
    pub const UE: u8 = 16;
    /// Inexact ("precision").
    pub const PE: u8 = 32;
    /// All six.
    pub const ALL: u8 = 63;
}

/// The four rounding modes, numbered as the RC fields number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

impl Rounding {
    /// The mode that the two bits of an RC field name; higher bits are ignored.
    #[must_use]
    pub fn from_bits(bits: u32) -> Rounding {
        match bits & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        }
    }
}

/// Which unit computes. The x87 and SSE differ in NaN selection and in unmasked results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// First NaN operand wins; an unmasked exception leaves no result.
    Sse,
    /// The NaN with the larger significand wins; unmasked overflow and underflow wrap the exponent.
    X87,
}

/// Control bits in, flags out: what MXCSR or the x87 control and status words say for one instruction.
#[derive(Clone, Copy, Debug)]
pub struct FpEnv {
    /// Rounding mode.
    pub rounding: Rounding,
    /// Denormal operands count as zero.
    pub daz: bool,
    /// Tiny results become zero.
    pub ftz: bool,
    /// Masked exceptions, as [`flag`] bits.
    pub masked: u8,
    /// The unit that computes.
    pub unit: Unit,
    /// Exceptions met so far, in this step of the instruction.
    pub flags: u8,
    /// Exceptions of earlier steps (of a dot product), which nothing can hide any more.
    pub settled: u8,
    /// The last rounding enlarged the magnitude (C1 of the x87).
    pub rounded_up: bool,
}

impl FpEnv {
    /// The environment of an SSE instruction.
    #[inline]
    #[must_use]
    pub fn sse(mxcsr: u32) -> FpEnv {
        FpEnv {
            rounding: Rounding::from_bits(mxcsr >> 13),
            daz: mxcsr & (1 << 6) != 0,
            ftz: mxcsr & (1 << 15) != 0,
            masked: (mxcsr >> 7) as u8 & flag::ALL,
            unit: Unit::Sse,
            flags: 0,
            settled: 0,
            rounded_up: false,
        }
    }

    /// The environment of an x87 instruction.
    #[inline]
    #[must_use]
    pub fn x87(control: u16) -> FpEnv {
        FpEnv {
            rounding: Rounding::from_bits(u32::from(control) >> 10),
            daz: false,
            ftz: false,
            masked: control as u8 & flag::ALL,
            unit: Unit::X87,
            flags: 0,
            settled: 0,
            rounded_up: false,
        }
    }

    /// Ends a step. True if an unmasked exception keeps the next one from being taken.
    pub fn end_step(&mut self) -> bool {
        if self.flags & !self.masked != 0 {
            return true;
        }
        self.settled |= self.flags;
        self.flags = 0;
        false
    }

    /// Notes an exception.
    #[inline]
    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Invalid operation: the default NaN.
    #[cold]
    pub fn invalid(&mut self) -> Parts {
        self.raise(flag::IE);
        Parts::DEFAULT_NAN
    }

    /// Notes the denormal operand exception if one of `operands` is denormal.
    #[inline]
    fn note_denormals(&mut self, operands: &[&Unpacked]) {
        if operands.iter().any(|u| u.denormal) {
            self.raise(flag::DE);
        }
    }

    /// Unpacks an operand, with denormals-are-zeros applied.
    #[inline]
    pub fn unpack<F: Float>(&self, value: F) -> Unpacked {
        let mut unpacked = value.unpack();
        if self.daz && unpacked.denormal {
            unpacked.class = Class::Zero;
            unpacked.sig = 0;
            unpacked.denormal = false;
        }
        unpacked
    }

    /// The result if an operand is a NaN (or an encoding that the x87 does not support).
    #[inline]
    fn nan_result(&mut self, a: &Unpacked, b: &Unpacked) -> Option<Parts> {
        if a.class < Class::Quiet && b.class < Class::Quiet {
            return None;
        }
        Some(self.pick_nan(a, b))
    }

    /// Which NaN an operation on `a` and `b` gives, one of which is a NaN or unsupported.
    #[cold]
    pub(crate) fn pick_nan(&mut self, a: &Unpacked, b: &Unpacked) -> Parts {
        if a.class == Class::Unsupported || b.class == Class::Unsupported {
            return self.invalid();
        }
        if a.class == Class::Signaling || b.class == Class::Signaling {
            self.raise(flag::IE);
        }
        let a_wins = match (a.is_nan(), b.is_nan(), self.unit) {
            (true, false, _) => true,
            (false, _, _) => false,
            (true, true, Unit::Sse) => true,
            (true, true, Unit::X87) => x87_prefers_first_nan(a, b),
        };
        if a_wins { a.quieted() } else { b.quieted() }
    }

    /// Rounds `sig * 2^(exp - 127)` to `format`. Bit 127 of `sig` is set, and bit 0 is sticky:
    /// it is set if anything below it was lost.
    #[inline]
    pub fn round(&mut self, format: Format, sign: bool, exp: i32, sig: u128) -> Parts {
        debug_assert!(sig >> 127 == 1);
        let rounded = round_significand(self.rounding, format.precision, sign, sig);
        let result_exp = exp + i32::from(rounded.carried);
        if result_exp > format.exp_max {
            return self.overflow(format, sign, result_exp, &rounded);
        }
        if result_exp < format.exp_min {
            return self.tiny(format, sign, exp, sig, result_exp, &rounded);
        }
        if rounded.inexact {
            self.raise(flag::PE);
        }
        self.rounded_up = rounded.up;
        Parts { sign, exp: result_exp, sig: rounded.sig }
    }

    #[cold]
    fn overflow(&mut self, format: Format, sign: bool, exp: i32, rounded: &Rounded) -> Parts {
        self.raise(flag::OE);
        if self.masked & flag::OE == 0 {
            let exp = exp - format.wrap;
            // FSCALE alone can be so large that even the wrapped exponent overflows.
            if self.unit == Unit::X87 && exp > format.exp_max {
                self.raise(flag::PE);
                self.rounded_up = true;
                return Parts::infinity(sign);
            }
            if rounded.inexact {
                self.raise(flag::PE);
            }
            self.rounded_up = rounded.up;
            // SSE instructions write nothing then; the x87 delivers the wrapped exponent.
            return Parts { sign, exp, sig: rounded.sig };
        }
        self.raise(flag::PE);
        let to_infinity = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Up => !sign,
            Rounding::Down => sign,
            Rounding::Zero => false,
        };
        self.rounded_up = to_infinity;
        if to_infinity { Parts::infinity(sign) } else { format.largest(sign) }
    }

    #[cold]
    fn tiny(
        &mut self,
        format: Format,
        sign: bool,
        exp: i32,
        sig: u128,
        result_exp: i32,
        rounded: &Rounded,
    ) -> Parts {
        if self.masked & flag::UE == 0 {
            self.raise(flag::UE);
            let exp = result_exp + format.wrap;
            if self.unit == Unit::X87 && exp < format.exp_min {
                self.raise(flag::PE);
                self.rounded_up = false;
                return Parts::zero(sign);
            }
            if rounded.inexact {
                self.raise(flag::PE);
            }
            self.rounded_up = rounded.up;
            return Parts { sign, exp, sig: rounded.sig };
        }
        if self.ftz {
            self.raise(flag::UE | flag::PE);
            self.rounded_up = false;
            return Parts::zero(sign);
        }
        let denormal = shift_right_sticky(sig, (format.exp_min - exp) as u32);
        let rounded = round_significand(self.rounding, format.precision, sign, denormal);
        if rounded.inexact {
            self.raise(flag::UE | flag::PE);
        }
        self.rounded_up = rounded.up;
        // The significand may have grown to the smallest normal number, whose bit 63 says so.
        Parts { sign, exp: format.exp_min, sig: rounded.sig }
    }
}

/// A significand brought to some precision.
struct Rounded {
    /// Left-aligned.
    sig: u64,
    /// The significand grew to the next power of two: the exponent is one more.
    carried: bool,
    inexact: bool,
    /// The magnitude was enlarged.
    up: bool,
}

#[inline]
fn round_significand(rounding: Rounding, precision: u32, sign: bool, sig: u128) -> Rounded {
    let drop = 128 - precision;
    let kept = sig >> drop;
    let rest = sig << precision;
    const HALF: u128 = 1 << 127;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || (rest == HALF && kept & 1 == 1),
        Rounding::Up => !sign && rest != 0,
        Rounding::Down => sign && rest != 0,
        Rounding::Zero => false,
    };
    let kept = kept + u128::from(up);
    let carried = kept >> precision != 0;
    let sig = if carried { 1 << 63 } else { (kept << (64 - precision)) as u64 };
    Rounded { sig, carried, inexact: rest != 0, up }
}

/// `value >> by`, with bit 0 set if a one was shifted out.
#[inline]
fn shift_right_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..128 => (value >> by) | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// SDM volume 1, table 4-7: a quiet NaN before a signalling one, then the larger significand; of
/// equal ones the positive (the manual leaves the last case open).
fn x87_prefers_first_nan(a: &Unpacked, b: &Unpacked) -> bool {
    match (a.class, b.class) {
        (Class::Quiet, Class::Signaling) => true,
        (Class::Signaling, Class::Quiet) => false,
        _ if a.sig != b.sig => a.sig > b.sig,
        _ => !a.sign,
    }
}

#[cfg(test)]
mod tests;
