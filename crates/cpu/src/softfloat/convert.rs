//! Conversions: between formats, to and from integers, and to integral values.

use super::{Class, Float, FpEnv, Parts, Rounding, Unpacked, flag, shift_right_sticky};

/// Converts a value to another format, as CVTSS2SD, CVTSD2SS, FLD and FST do: a signalling NaN is
/// invalid and becomes quiet, a denormal is noted, the rest is rounded.
#[inline]
pub fn convert<A: Float, B: Float>(env: &mut FpEnv, a: A) -> B {
    let a = env.unpack(a);
    match a.class {
        Class::Finite => {
            env.note_denormals(&[&a]);
            B::pack(env.round(B::FORMAT, a.sign, a.exp, u128::from(a.sig) << 64))
        }
        Class::Unsupported => B::pack(env.invalid()),
        Class::Signaling => {
            env.raise(flag::IE);
            B::pack(a.quieted())
        }
        _ => B::pack(a.to_parts()),
    }
}

/// Half to single, always exact. Denormals are neither flushed nor noted, whatever MXCSR says (SDM VCVTPH2PS).
pub fn widen_half(env: &mut FpEnv, a: u16) -> u32 {
    let a = a.unpack();
    if a.class == Class::Signaling {
        env.raise(flag::IE);
    }
    u32::pack(a.to_parts())
}

/// Single to half. Tiny results are never flushed (SDM VCVTPS2PH).
pub fn narrow_half(env: &mut FpEnv, a: u32, rounding: Rounding) -> u16 {
    let mut halves = FpEnv { rounding, ftz: false, ..*env };
    let result = convert(&mut halves, a);
    env.raise(halves.flags);
    result
}

/// An integer as a number, rounded to `F`'s format.
#[inline]
pub fn from_i64<F: Float>(env: &mut FpEnv, value: i64) -> F {
    if let Some(exact) = F::host_from_int(value) {
        return exact;
    }
    if value == 0 {
        return F::pack(Parts::zero(false));
    }
    let magnitude = value.unsigned_abs();
    let shift = magnitude.leading_zeros();
    let sig = u128::from(magnitude << shift) << 64;
    F::pack(env.round(F::FORMAT, value < 0, 63 - shift as i32, sig))
}

/// The integers that instructions convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntWidth {
    /// 16 bits (x87 only).
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
}

impl IntWidth {
    /// The most negative value, which also stands for "invalid" ("integer indefinite").
    #[must_use]
    pub fn indefinite(self) -> i64 {
        match self {
            IntWidth::I16 => i64::from(i16::MIN),
            IntWidth::I32 => i64::from(i32::MIN),
            IntWidth::I64 => i64::MIN,
        }
    }
}

/// A number as a signed integer, rounded by `rounding`; the indefinite integer with IE if it is a NaN
/// or does not fit. Denormal operands are not noted (SDM: only IE and PE).
pub fn to_int(env: &mut FpEnv, a: Unpacked, rounding: Rounding, width: IntWidth) -> i64 {
    if let Some(rounded) = rounded_magnitude(&a, rounding) {
        let limit = width.indefinite().unsigned_abs();
        let fits = rounded.magnitude < limit || (a.sign && rounded.magnitude == limit);
        if fits && !rounded.too_large {
            if rounded.inexact {
                env.raise(flag::PE);
            }
            env.rounded_up = rounded.up;
            let value = rounded.magnitude as i64;
            return if a.sign { value.wrapping_neg() } else { value };
        }
    }
    env.raise(flag::IE);
    width.indefinite()
}

/// A number cut to an integer, as [`to_int`] does with [`Rounding::Zero`].
#[inline]
pub fn truncate<F: Float>(env: &mut FpEnv, a: F, width: IntWidth) -> i64 {
    if let Some(fast) = a.host_truncate() {
        let limit = width.indefinite();
        if fast.value >= limit && fast.value < limit.wrapping_neg().wrapping_sub(1) {
            return env.accept(fast);
        }
    }
    let operand = env.unpack(a);
    to_int(env, operand, Rounding::Zero, width)
}

/// An integral magnitude.
pub(crate) struct Integral {
    pub(crate) magnitude: u64,
    /// It is 2^64 or more; `magnitude` says nothing.
    pub(crate) too_large: bool,
    pub(crate) inexact: bool,
    pub(crate) up: bool,
}

/// The magnitude of a finite number, rounded to an integer; `None` for anything else.
pub(crate) fn rounded_magnitude(a: &Unpacked, rounding: Rounding) -> Option<Integral> {
    match a.class {
        Class::Zero => {
            return Some(Integral { magnitude: 0, too_large: false, inexact: false, up: false });
        }
        Class::Finite => {}
        _ => return None,
    }
    if a.exp > 63 {
        return Some(Integral { magnitude: 0, too_large: true, inexact: false, up: false });
    }
    // 64 integer bits above 64 fraction bits.
    let fixed = shift_right_sticky(u128::from(a.sig) << 64, (63 - a.exp) as u32);
    let (whole, rest) = ((fixed >> 64) as u64, fixed as u64);
    const HALF: u64 = 1 << 63;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || (rest == HALF && whole & 1 == 1),
        Rounding::Up => !a.sign && rest != 0,
        Rounding::Down => a.sign && rest != 0,
        Rounding::Zero => false,
    };
    let (magnitude, too_large) = whole.overflowing_add(u64::from(up));
    Some(Integral { magnitude, too_large, inexact: rest != 0, up })
}

/// A number rounded to an integral value of its own format. `note` says which of PE and DE the
/// instruction reports: ROUNDPS only PE (and not with bit 3 of its operand), FRNDINT both.
pub fn round_to_integral<F: Float>(env: &mut FpEnv, a: F, rounding: Rounding, note: u8) -> F {
    let unpacked = env.unpack(a);
    match unpacked.class {
        Class::Finite => {}
        Class::Unsupported => return F::pack(env.invalid()),
        Class::Signaling => {
            env.raise(flag::IE);
            return a.or_quiet();
        }
        Class::Zero => return F::pack(Parts::zero(unpacked.sign)),
        Class::Infinity | Class::Quiet => return a,
    }
    if unpacked.denormal {
        env.raise(note & flag::DE);
    }
    if unpacked.exp >= 63 {
        return a;
    }
    let rounded = rounded_magnitude(&unpacked, rounding).expect("the number is finite");
    if rounded.inexact {
        env.raise(note & flag::PE);
        env.rounded_up = rounded.up;
    }
    if rounded.magnitude == 0 {
        return F::pack(Parts::zero(unpacked.sign));
    }
    // Rounding kept at most the precision's bits or made a power of two: it fits.
    let shift = rounded.magnitude.leading_zeros();
    F::pack(Parts { sign: unpacked.sign, exp: 63 - shift as i32, sig: rounded.magnitude << shift })
}
