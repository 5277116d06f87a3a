//! Add, subtract, multiply, divide, square root, remainder, compare, minimum and maximum.

use super::{
    Class, EXTENDED, Float, Format, FpEnv, Parts, Rounding, Unpacked, flag, shift_right_sticky,
};

macro_rules! binary {
    ($(#[$doc:meta])* $name:ident, $fast:ident, $core:expr) => {
        $(#[$doc])*
        #[inline]
        pub fn $name<F: Float>(env: &mut FpEnv, a: F, b: F) -> F {
            if env.may_use_host()
                && let Some(fast) = a.$fast(b)
            {
                return env.accept(fast);
            }
            let (a, b) = (env.unpack(a), env.unpack(b));
            F::pack($core(env, F::FORMAT, a, b))
        }
    };
}

binary! {
    /// `a + b`.
    add, host_add, add_unpacked
}
binary! {
    /// `a - b`.
    sub, host_sub, sub_unpacked
}
binary! {
    /// `a * b`.
    mul, host_mul, mul_unpacked
}
binary! {
    /// `a / b`.
    div, host_div, div_unpacked
}

/// The square root of `a`.
#[inline]
pub fn sqrt<F: Float>(env: &mut FpEnv, a: F) -> F {
    if env.may_use_host()
        && let Some(fast) = a.host_sqrt()
    {
        return env.accept(fast);
    }
    let a = env.unpack(a);
    F::pack(sqrt_unpacked(env, F::FORMAT, a))
}

/// `a - b`, rounded to `format`. A NaN keeps its sign.
pub fn sub_unpacked(env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
    let b = if b.is_nan() { b } else { b.negated() };
    add_unpacked(env, format, a, b)
}

/// `a + b`, rounded to `format`.
#[inline(never)]
pub fn add_unpacked(env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
    if let Some(nan) = env.nan_result(&a, &b) {
        return nan;
    }
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) if a.sign != b.sign => return env.invalid(),
        (Class::Infinity, _) => {
            env.note_denormals(&[&b]);
            return Parts::infinity(a.sign);
        }
        (_, Class::Infinity) => {
            env.note_denormals(&[&a]);
            return Parts::infinity(b.sign);
        }
        _ => env.note_denormals(&[&a, &b]),
    }
    match (a.class, b.class) {
        (Class::Zero, Class::Zero) => {
            let sign = if a.sign == b.sign { a.sign } else { env.rounding == Rounding::Down };
            Parts::zero(sign)
        }
        (Class::Zero, _) => env.round(format, b.sign, b.exp, u128::from(b.sig) << 64),
        (_, Class::Zero) => env.round(format, a.sign, a.exp, u128::from(a.sig) << 64),
        _ => add_finite(env, format, a, b),
    }
}

fn add_finite(env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
    let (big, small) = if (a.exp, a.sig) >= (b.exp, b.sig) { (a, b) } else { (b, a) };
    // One bit of headroom above for the carry; 63 bits below, so one sticky bit is enough.
    let big_sig = u128::from(big.sig) << 63;
    let small_sig = shift_right_sticky(u128::from(small.sig) << 63, (big.exp - small.exp) as u32);
    let sum = if a.sign == b.sign { big_sig + small_sig } else { big_sig - small_sig };
    if sum == 0 {
        return Parts::zero(env.rounding == Rounding::Down);
    }
    let shift = sum.leading_zeros();
    env.round(format, big.sign, big.exp + 1 - shift as i32, sum << shift)
}

/// `a * b`, rounded to `format`.
#[inline(never)]
pub fn mul_unpacked(env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
    if let Some(nan) = env.nan_result(&a, &b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return env.invalid(),
        _ => env.note_denormals(&[&a, &b]),
    }
    match (a.class, b.class) {
        (Class::Infinity, _) | (_, Class::Infinity) => Parts::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => Parts::zero(sign),
        _ => {
            let product = u128::from(a.sig) * u128::from(b.sig);
            let shift = product.leading_zeros();
            env.round(format, sign, a.exp + b.exp + 1 - shift as i32, product << shift)
        }
    }
}

/// What a fused multiply-add negates before it adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FusedSigns {
    /// The product.
    pub product: bool,
    /// The addend.
    pub addend: bool,
}

/// `x * y + z` with one rounding, product and addend negated as `signs` says. A NaN keeps its sign.
/// (SDM volume 1, 14.5.1.1: of several NaNs the first of x, y, z counts.)
#[inline(never)]
pub fn mul_add<F: Float>(env: &mut FpEnv, x: F, y: F, z: F, signs: FusedSigns) -> F {
    let (x, y, mut z) = (env.unpack(x), env.unpack(y), env.unpack(z));
    if [x, y, z].iter().any(Unpacked::is_nan) {
        return F::pack(fused_nan(env, [x, y, z]));
    }
    z.sign ^= signs.addend;
    F::pack(mul_add_unpacked(env, F::FORMAT, x, y, z, signs.product))
}

#[cold]
fn fused_nan(env: &mut FpEnv, operands: [Unpacked; 3]) -> Parts {
    if operands.iter().any(|operand| operand.class == Class::Signaling) {
        env.raise(flag::IE);
    }
    let first = operands.iter().find(|operand| operand.is_nan());
    first.map_or(Parts::DEFAULT_NAN, Unpacked::quieted)
}

/// None of the operands is a NaN.
fn mul_add_unpacked(
    env: &mut FpEnv,
    format: Format,
    x: Unpacked,
    y: Unpacked,
    z: Unpacked,
    negates: bool,
) -> Parts {
    let sign = x.sign != y.sign && !negates || x.sign == y.sign && negates;
    let product = match (x.class, y.class) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return env.invalid(),
        (Class::Infinity, _) | (_, Class::Infinity) => Class::Infinity,
        (Class::Zero, _) | (_, Class::Zero) => Class::Zero,
        _ => Class::Finite,
    };
    if product == Class::Infinity && z.class == Class::Infinity && sign != z.sign {
        return env.invalid();
    }
    env.note_denormals(&[&x, &y, &z]);
    match (product, z.class) {
        (Class::Infinity, _) => Parts::infinity(sign),
        (_, Class::Infinity) => Parts::infinity(z.sign),
        (Class::Zero, Class::Zero) => {
            Parts::zero(if sign == z.sign { sign } else { env.rounding == Rounding::Down })
        }
        (Class::Zero, _) => env.round(format, z.sign, z.exp, u128::from(z.sig) << 64),
        _ => {
            let product = u128::from(x.sig) * u128::from(y.sig);
            let shift = product.leading_zeros();
            let exp = x.exp + y.exp + 1 - shift as i32;
            add_to_product(env, format, Wide { sign, exp, sig: product << shift }, z)
        }
    }
}

/// A product: `sig * 2^(exp - 127)`, bit 127 set.
#[derive(Clone, Copy)]
struct Wide {
    sign: bool,
    exp: i32,
    sig: u128,
}

/// The exact product plus `z`. A product has at most 106 significant bits here and `z` has 53, so where bits of the
/// smaller one are lost below bit 0, the sum loses no more than one bit at its top, and a sticky bit is enough.
fn add_to_product(env: &mut FpEnv, format: Format, product: Wide, z: Unpacked) -> Parts {
    if z.class == Class::Zero {
        return env.round(format, product.sign, product.exp, product.sig);
    }
    let addend = Wide { sign: z.sign, exp: z.exp, sig: u128::from(z.sig) << 64 };
    let (big, small) = if (product.exp, product.sig) >= (addend.exp, addend.sig) {
        (product, addend)
    } else {
        (addend, product)
    };
    // One bit of headroom for the carry: bit 0 of a product that is so long is 0.
    let big_sig = big.sig >> 1;
    let small_sig = shift_right_sticky(small.sig >> 1, (big.exp - small.exp) as u32);
    let sum = if big.sign == small.sign { big_sig + small_sig } else { big_sig - small_sig };
    if sum == 0 {
        return Parts::zero(env.rounding == Rounding::Down);
    }
    let shift = sum.leading_zeros();
    env.round(format, big.sign, big.exp + 1 - shift as i32, sum << shift)
}

/// `a / b`, rounded to `format`.
#[inline(never)]
pub fn div_unpacked(env: &mut FpEnv, format: Format, a: Unpacked, b: Unpacked) -> Parts {
    if let Some(nan) = env.nan_result(&a, &b) {
        return nan;
    }
    let sign = a.sign != b.sign;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return env.invalid(),
        (Class::Finite, Class::Zero) => {
            env.raise(flag::ZE);
            return Parts::infinity(sign);
        }
        _ => env.note_denormals(&[&a, &b]),
    }
    match (a.class, b.class) {
        (Class::Infinity, _) => Parts::infinity(sign),
        (Class::Zero, _) | (_, Class::Infinity) => Parts::zero(sign),
        _ => {
            let (exp, sig) = divide_significands(a.sig, b.sig);
            env.round(format, sign, a.exp - b.exp + exp, sig)
        }
    }
}

/// `a / b` with 128 bits, the lowest sticky, and the exponent (0 or -1) of the quotient.
fn divide_significands(a: u64, b: u64) -> (i32, u128) {
    let (exp, numerator) =
        if a >= b { (0, u128::from(a) << 63) } else { (-1, u128::from(a) << 64) };
    let b = u128::from(b);
    let (high, rest) = (numerator / b, numerator % b);
    let (low, rest) = ((rest << 64) / b, (rest << 64) % b);
    (exp, high << 64 | low | u128::from(rest != 0))
}

/// The square root of `a`, rounded to `format`.
#[inline(never)]
pub fn sqrt_unpacked(env: &mut FpEnv, format: Format, a: Unpacked) -> Parts {
    if let Some(nan) = env.nan_result(&a, &a) {
        return nan;
    }
    if a.class == Class::Zero {
        return Parts::zero(a.sign);
    }
    if a.sign {
        return env.invalid();
    }
    if a.class == Class::Infinity {
        return Parts::infinity(false);
    }
    env.note_denormals(&[&a]);
    // root * 2^63 = isqrt(square), with `square` a number of 127 or 128 bits.
    let square = u128::from(a.sig) << (63 + (a.exp & 1));
    let root = square.isqrt();
    let rest = square - root * root;
    // sqrt(square) >= root + 1/2 exactly if rest > root; equality cannot be.
    let sig = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    env.round(format, false, a.exp >> 1, sig)
}

/// How FPREM and FPREM1 round the quotient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemainderMode {
    /// FPREM: towards zero.
    Truncate,
    /// FPREM1: to nearest, ties to even.
    Nearest,
}

/// What FPREM leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remainder {
    /// The new ST(0).
    pub value: Parts,
    /// The reduction is complete (C2 = 0); `None` if it has to be repeated.
    pub quotient: Option<u64>,
}

/// The (partial) remainder of `a / b` in extended precision.
///
/// The exponent difference of an incomplete step shrinks by `32 + (difference mod 32)`, which is
/// within the 32 to 63 that the SDM allows.
pub fn remainder(env: &mut FpEnv, mode: RemainderMode, a: Unpacked, b: Unpacked) -> Remainder {
    let done = |value| Remainder { value, quotient: Some(0) };
    if let Some(nan) = env.nan_result(&a, &b) {
        return done(nan);
    }
    if a.class == Class::Infinity || b.class == Class::Zero {
        return done(env.invalid());
    }
    env.note_denormals(&[&a, &b]);
    if a.class == Class::Zero {
        return done(Parts::zero(a.sign));
    }
    if b.class == Class::Infinity {
        return done(env.round(EXTENDED, a.sign, a.exp, u128::from(a.sig) << 64));
    }
    let difference = a.exp - b.exp;
    if difference >= 64 {
        return partial_remainder(env, a, b, difference);
    }
    if difference < -1 || (difference == -1 && mode == RemainderMode::Truncate) {
        return done(env.round(EXTENDED, a.sign, a.exp, u128::from(a.sig) << 64));
    }
    complete_remainder(env, mode, a, b, difference)
}

fn partial_remainder(env: &mut FpEnv, a: Unpacked, b: Unpacked, difference: i32) -> Remainder {
    let step = (difference & 31) | 32;
    let rest = (u128::from(a.sig) << step) % u128::from(b.sig);
    let value = exact(env, a.sign, a.exp - step, rest);
    Remainder { value, quotient: None }
}

fn complete_remainder(
    env: &mut FpEnv,
    mode: RemainderMode,
    a: Unpacked,
    b: Unpacked,
    difference: i32,
) -> Remainder {
    // Both in units of 2^(b.exp - 64), so that a difference of -1 is whole as well.
    let numerator = u128::from(a.sig) << (difference + 1);
    let denominator = u128::from(b.sig) << 1;
    let (mut quotient, mut rest) = (numerator / denominator, numerator % denominator);
    let mut sign = a.sign;
    let twice = rest << 1;
    if mode == RemainderMode::Nearest
        && (twice > denominator || (twice == denominator && quotient & 1 == 1))
    {
        quotient += 1;
        rest = denominator - rest;
        sign = !sign;
    }
    let value = if rest == 0 {
        // A zero remainder has the sign of the dividend.
        Parts::zero(a.sign)
    } else {
        exact(env, sign, b.exp - 1, rest)
    };
    Remainder { value, quotient: Some(quotient as u64) }
}

/// `sig * 2^(exp - 63)` with `sig` below 2^65 and no more than 64 significant bits; may be denormal.
fn exact(env: &mut FpEnv, sign: bool, exp: i32, sig: u128) -> Parts {
    if sig == 0 {
        return Parts::zero(sign);
    }
    let shift = sig.leading_zeros();
    env.round(EXTENDED, sign, exp + 64 - shift as i32, sig << shift)
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// `a < b`.
    Less,
    /// `a == b`; zeros of either sign are equal.
    Equal,
    /// `a > b`.
    Greater,
    /// One of them is a NaN.
    Unordered,
}

/// Compares. A signalling NaN is invalid; a quiet one only if `quiet_is_invalid`.
#[inline]
pub fn compare<F: Float>(env: &mut FpEnv, a: F, b: F, quiet_is_invalid: bool) -> Ordering {
    if let Some(ordering) = a.host_compare(b) {
        return ordering;
    }
    let (a, b) = (env.unpack(a), env.unpack(b));
    compare_unpacked(env, &a, &b, quiet_is_invalid)
}

/// See [`compare`].
pub fn compare_unpacked(
    env: &mut FpEnv,
    a: &Unpacked,
    b: &Unpacked,
    quiet_is_invalid: bool,
) -> Ordering {
    let worst = a.class.max(b.class);
    if worst >= Class::Quiet {
        if worst > Class::Quiet || quiet_is_invalid {
            env.raise(flag::IE);
        }
        return Ordering::Unordered;
    }
    env.note_denormals(&[a, b]);
    let key = |u: &Unpacked| -> (i64, i64) {
        let magnitude = match u.class {
            Class::Zero => return (0, 0),
            Class::Infinity => i64::MAX,
            _ => i64::from(u.exp) + (1 << 32),
        };
        // The significand's order fits i64 without its leading one.
        let sig = (u.sig << 1 >> 1) as i64;
        if u.sign { (-magnitude, -sig) } else { (magnitude, sig) }
    };
    match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Less => Ordering::Less,
        std::cmp::Ordering::Equal => Ordering::Equal,
        std::cmp::Ordering::Greater => Ordering::Greater,
    }
}

/// MINSS and its like: the second operand if either is a NaN or both are zero.
#[inline]
pub fn min<F: Float>(env: &mut FpEnv, a: F, b: F) -> F {
    select(env, a, b, Ordering::Less)
}

/// MAXSS and its like; see [`min`].
#[inline]
pub fn max<F: Float>(env: &mut FpEnv, a: F, b: F) -> F {
    select(env, a, b, Ordering::Greater)
}

#[inline]
fn select<F: Float>(env: &mut FpEnv, a: F, b: F, first_if: Ordering) -> F {
    let chosen = if compare(env, a, b, true) == first_if { a } else { b };
    let unpacked = chosen.unpack();
    if env.daz && unpacked.denormal { F::pack(Parts::zero(unpacked.sign)) } else { chosen }
}
