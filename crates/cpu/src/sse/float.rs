//! Packed and scalar floating point of SSE to SSE4.1 as functions of whole registers.
//!
//! A scalar operation works on lane 0 and keeps the other lanes of its first operand. Exceptions of
//! all lanes gather in the [`FpEnv`]; the caller decides whether the result is written.
//!
//! RCPPS, RCPSS, RSQRTPS and RSQRTSS give the nearest single-precision number to the reciprocal
//! (for the square root: computed in double precision, then rounded), whatever MXCSR's rounding
//! mode is. That is within the 1.5 * 2^-12 that the SDM allows, and the same on every host.

use super::lanes::Lane;
use crate::softfloat::{
    self as sf, Class, Float, FpEnv, IntWidth, Ordering, Parts, Rounding, flag,
};

/// A number format that is a lane.
pub(crate) trait FloatLane: Float + Lane {
    /// A lane of zeros or of ones.
    fn mask(set: bool) -> Self;
}

impl FloatLane for u32 {
    #[inline(always)]
    fn mask(set: bool) -> u32 {
        if set { !0 } else { 0 }
    }
}

impl FloatLane for u64 {
    #[inline(always)]
    fn mask(set: bool) -> u64 {
        if set { !0 } else { 0 }
    }
}

/// `f` on every pair of lanes.
#[inline(always)]
fn packed2<F: FloatLane>(
    env: &mut FpEnv,
    a: u128,
    b: u128,
    mut f: impl FnMut(&mut FpEnv, F, F) -> F,
) -> u128 {
    let (mut lanes, b) = (F::split(a), F::split(b));
    for (lane, b) in lanes.as_mut().iter_mut().zip(b.as_ref()) {
        *lane = f(env, *lane, *b);
    }
    F::join(lanes)
}

/// `a` with its lane 0 replaced.
#[inline(always)]
fn with_low<F: FloatLane>(a: u128, low: F) -> u128 {
    let mut lanes = F::split(a);
    lanes.as_mut()[0] = low;
    F::join(lanes)
}

#[inline(always)]
fn low<F: FloatLane>(a: u128) -> F {
    F::split(a).as_ref()[0]
}

/// `name of the packed form, name of the scalar form: function`.
macro_rules! binary {
    ($($packed:ident, $scalar:ident: $f:path;)*) => {$(
        #[inline]
        pub(crate) fn $packed<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128) -> u128 {
            packed2::<F>(env, a, b, $f)
        }

        #[inline]
        pub(crate) fn $scalar<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128) -> u128 {
            let result = $f(env, low::<F>(a), low::<F>(b));
            with_low(a, result)
        }
    )*};
}

binary! {
    add_packed, add_scalar: sf::add;
    sub_packed, sub_scalar: sf::sub;
    mul_packed, mul_scalar: sf::mul;
    div_packed, div_scalar: sf::div;
    min_packed, min_scalar: sf::min;
    max_packed, max_scalar: sf::max;
    sqrt_packed, sqrt_scalar: sqrt_of_second;
    rcp_packed, rcp_scalar: reciprocal;
    rsqrt_packed, rsqrt_scalar: reciprocal_root;
}

#[inline]
fn sqrt_of_second<F: Float>(env: &mut FpEnv, _a: F, b: F) -> F {
    sf::sqrt(env, b)
}

/// An estimate's operand as a host double, or the result that needs no arithmetic. Denormals count
/// as zero and no exception is raised.
fn estimate_operand<F: Float>(b: F) -> Result<f64, Parts> {
    let unpacked = b.unpack();
    match unpacked.class {
        Class::Quiet | Class::Signaling => Err(unpacked.quieted()),
        Class::Finite if !unpacked.denormal => {
            let double =
                u64::pack(Parts { sign: unpacked.sign, exp: unpacked.exp, sig: unpacked.sig });
            Ok(f64::from_bits(double))
        }
        Class::Infinity => Err(Parts::zero(unpacked.sign)),
        _ => Err(Parts::infinity(unpacked.sign)),
    }
}

/// The nearest single to `value`, a normal double; one too small for a normal single becomes zero.
fn estimate<F: Float>(value: f64) -> F {
    let mut env = FpEnv::sse(0x9f80);
    F::pack(match value.to_bits().unpack() {
        u if u.class == Class::Finite => {
            env.round(F::FORMAT, u.sign, u.exp, u128::from(u.sig) << 64)
        }
        u => u.to_parts(),
    })
}

fn reciprocal<F: Float>(_env: &mut FpEnv, _a: F, b: F) -> F {
    match estimate_operand(b) {
        Ok(value) => estimate(1.0 / value),
        Err(special) => F::pack(special),
    }
}

fn reciprocal_root<F: Float>(_env: &mut FpEnv, _a: F, b: F) -> F {
    match estimate_operand(b) {
        Ok(value) if value < 0.0 => F::pack(Parts::DEFAULT_NAN),
        Ok(value) => estimate(1.0 / value.sqrt()),
        Err(zero) if zero == Parts::zero(true) => F::pack(Parts::DEFAULT_NAN),
        Err(special) => F::pack(special),
    }
}

/// For each of VCMPPS's predicates 0 to 15 the orders for which it holds: bit 0 less, 1 equal, 2 greater,
/// 3 unordered. Predicates 16 to 31 are the same with the other answer to a quiet NaN.
const PREDICATES: [u8; 16] = [
    0b0010, 0b0001, 0b0011, 0b1000, 0b1101, 0b1110, 0b1100,
    0b0111, // EQ LT LE UNORD NEQ NLT NLE ORD
    0b1010, 0b1001, 0b1011, 0b0000, 0b0101, 0b0110, 0b0100,
    0b1111, // EQ NGE NGT FALSE NEQ GE GT TRUE
];

/// CMPPS and VCMPPS: predicates 0 to 31.
#[inline]
fn predicate<F: FloatLane>(env: &mut FpEnv, a: F, b: F, predicate: u8) -> F {
    let quiet_invalid = matches!(predicate & 3, 1 | 2) != (predicate & 16 != 0);
    let order = match sf::compare(env, a, b, quiet_invalid) {
        Ordering::Less => 1,
        Ordering::Equal => 2,
        Ordering::Greater => 4,
        Ordering::Unordered => 8,
    };
    F::mask(PREDICATES[usize::from(predicate & 15)] & order != 0)
}

/// As SSE has it: only three bits of the immediate count.
#[inline]
pub(crate) fn compare_packed_sse<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    compare_packed::<F>(env, a, b, imm & 7)
}

/// See [`compare_packed_sse`].
#[inline]
pub(crate) fn compare_scalar_sse<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    compare_scalar::<F>(env, a, b, imm & 7)
}

#[inline]
pub(crate) fn compare_packed<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    packed2::<F>(env, a, b, |env, a, b| predicate(env, a, b, imm))
}

#[inline]
pub(crate) fn compare_scalar<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    let result = predicate(env, low::<F>(a), low::<F>(b), imm);
    with_low(a, result)
}

/// COMISS and UCOMISS: the order of the low lanes.
#[inline]
pub(crate) fn order<F: FloatLane>(
    env: &mut FpEnv,
    a: u128,
    b: u128,
    quiet_invalid: bool,
) -> Ordering {
    sf::compare(env, low::<F>(a), low::<F>(b), quiet_invalid)
}

#[inline]
pub(crate) fn addsub<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    let mut odd = false;
    packed2::<F>(env, a, b, |env, a, b| {
        odd = !odd;
        if odd { sf::sub(env, a, b) } else { sf::add(env, a, b) }
    })
}

/// HADDPS and its like: neighbours of `a`, then of `b`.
#[inline(always)]
fn horizontal<F: FloatLane>(
    env: &mut FpEnv,
    a: u128,
    b: u128,
    f: impl Fn(&mut FpEnv, F, F) -> F,
) -> u128 {
    let (mut lanes, a, b) = (F::split(a), F::split(a), F::split(b));
    let pairs = a.as_ref().chunks_exact(2).chain(b.as_ref().chunks_exact(2));
    for (lane, pair) in lanes.as_mut().iter_mut().zip(pairs) {
        *lane = f(env, pair[0], pair[1]);
    }
    F::join(lanes)
}

#[inline]
pub(crate) fn hadd<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    horizontal::<F>(env, a, b, sf::add)
}

#[inline]
pub(crate) fn hsub<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    horizontal::<F>(env, a, b, sf::sub)
}

/// ROUNDPS and its like: bit 2 of `imm` asks for MXCSR's mode, bit 3 keeps PE quiet.
#[inline]
fn round_lane<F: Float>(env: &mut FpEnv, value: F, imm: u8) -> F {
    let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(u32::from(imm)) };
    let note = if imm & 8 != 0 { 0 } else { flag::PE };
    sf::round_to_integral(env, value, rounding, note)
}

#[inline]
pub(crate) fn round_packed<F: FloatLane>(env: &mut FpEnv, _a: u128, b: u128, imm: u8) -> u128 {
    packed2::<F>(env, b, b, |env, value, _| round_lane(env, value, imm))
}

#[inline]
pub(crate) fn round_scalar<F: FloatLane>(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    let result = round_lane(env, low::<F>(b), imm);
    with_low(a, result)
}

/// DPPS: products where bits 4 to 7 say, summed in pairs, into the lanes that bits 0 to 3 say.
#[inline]
pub(crate) fn dpps(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (u32::split(a), u32::split(b));
    let products: [u32; 4] =
        std::array::from_fn(|i| if imm >> (4 + i) & 1 != 0 { sf::mul(env, a[i], b[i]) } else { 0 });
    if env.end_step() {
        return 0;
    }
    let low = sf::add(env, products[0], products[1]);
    let high = sf::add(env, products[2], products[3]);
    if env.end_step() {
        return 0;
    }
    let sum = sf::add(env, low, high);
    u32::join(std::array::from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
}

/// DPPD; see [`dpps`].
#[inline]
pub(crate) fn dppd(env: &mut FpEnv, a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (u64::split(a), u64::split(b));
    let products: [u64; 2] =
        std::array::from_fn(|i| if imm >> (4 + i) & 1 != 0 { sf::mul(env, a[i], b[i]) } else { 0 });
    if env.end_step() {
        return 0;
    }
    let sum = sf::add(env, products[0], products[1]);
    u64::join(std::array::from_fn(|i| if imm >> i & 1 != 0 { sum } else { 0 }))
}

/// An integer from the low lane; `rounding` is `None` for MXCSR's mode.
#[inline]
pub(crate) fn to_int<F: FloatLane>(
    env: &mut FpEnv,
    b: u128,
    rounding: Option<Rounding>,
    width: IntWidth,
) -> i64 {
    if rounding == Some(Rounding::Zero) {
        return sf::truncate(env, low::<F>(b), width);
    }
    let operand = env.unpack(low::<F>(b));
    sf::to_int(env, operand, rounding.unwrap_or(env.rounding), width)
}

/// An integer into the low lane.
#[inline]
pub(crate) fn from_int<F: FloatLane>(env: &mut FpEnv, a: u128, value: i64) -> u128 {
    let result: F = sf::from_i64(env, value);
    with_low(a, result)
}

fn to_dword<F: Float>(env: &mut FpEnv, value: F, rounding: Rounding) -> u32 {
    let operand = env.unpack(value);
    sf::to_int(env, operand, rounding, IntWidth::I32) as u32
}

pub(crate) fn cvtdq2ps(env: &mut FpEnv, b: u128) -> u128 {
    u32::join(i32::split(b).map(|value| sf::from_i64(env, i64::from(value))))
}

pub(crate) fn cvtdq2pd(env: &mut FpEnv, b: u128) -> u128 {
    let lanes = i32::split(b);
    u64::join([0, 1].map(|i: usize| sf::from_i64(env, i64::from(lanes[i]))))
}

pub(crate) fn cvtps2dq(env: &mut FpEnv, b: u128) -> u128 {
    let rounding = env.rounding;
    u32::join(u32::split(b).map(|value| to_dword(env, value, rounding)))
}

pub(crate) fn cvttps2dq(env: &mut FpEnv, b: u128) -> u128 {
    u32::join(u32::split(b).map(|value| to_dword(env, value, Rounding::Zero)))
}

pub(crate) fn cvtpd2dq(env: &mut FpEnv, b: u128) -> u128 {
    let rounding = env.rounding;
    let [low, high] = u64::split(b).map(|value| to_dword(env, value, rounding));
    u32::join([low, high, 0, 0])
}

pub(crate) fn cvttpd2dq(env: &mut FpEnv, b: u128) -> u128 {
    let [low, high] = u64::split(b).map(|value| to_dword(env, value, Rounding::Zero));
    u32::join([low, high, 0, 0])
}

/// The two low lanes only (CVTPS2PI).
pub(crate) fn cvtps2pi(env: &mut FpEnv, b: u128) -> u128 {
    cvtps2dq(env, u128::from(b as u64))
}

/// The two low lanes only (CVTTPS2PI).
pub(crate) fn cvttps2pi(env: &mut FpEnv, b: u128) -> u128 {
    cvttps2dq(env, u128::from(b as u64))
}

/// Two integers into the low lanes, the high lanes kept (CVTPI2PS).
pub(crate) fn cvtpi2ps(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    let low = cvtdq2ps(env, u128::from(b as u64));
    a >> 64 << 64 | u128::from(low as u64)
}

pub(crate) fn cvtps2pd(env: &mut FpEnv, b: u128) -> u128 {
    let lanes = u32::split(b);
    u64::join([0, 1].map(|i: usize| sf::widen(env, lanes[i])))
}

pub(crate) fn cvtpd2ps(env: &mut FpEnv, b: u128) -> u128 {
    let [low, high] = u64::split(b).map(|value| sf::narrow(env, value));
    u32::join([low, high, 0, 0])
}

/// Four halves in the low quadword to singles.
pub(crate) fn cvtph2ps(env: &mut FpEnv, b: u128) -> u128 {
    let lanes = u16::split(b);
    u32::join([0, 1, 2, 3].map(|i: usize| sf::widen_half(env, lanes[i])))
}

/// Four singles to halves; bit 2 of `imm` asks for MXCSR's rounding mode.
pub(crate) fn cvtps2ph(env: &mut FpEnv, b: u128, imm: u8) -> u64 {
    let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(u32::from(imm)) };
    let halves = u32::split(b).map(|value| sf::narrow_half(env, value, rounding));
    halves.iter().rev().fold(0, |word, half| word << 16 | u64::from(*half))
}

/// What an instruction of FMA does with the product and the addend.
#[derive(Clone, Copy)]
pub(crate) struct Fused {
    pub(crate) negates_product: bool,
    /// In the even lanes and in the odd ones.
    pub(crate) subtracts: [bool; 2],
}

#[inline]
fn fused<F: FloatLane>(env: &mut FpEnv, what: Fused, odd: bool, x: F, y: F, z: F) -> F {
    let signs =
        sf::FusedSigns { product: what.negates_product, addend: what.subtracts[usize::from(odd)] };
    sf::mul_add(env, x, y, z, signs)
}

/// `x * y + z` in every lane.
#[inline]
pub(crate) fn fused_packed<F: FloatLane>(
    env: &mut FpEnv,
    what: Fused,
    x: u128,
    y: u128,
    z: u128,
) -> u128 {
    let (mut lanes, y, z) = (F::split(x), F::split(y), F::split(z));
    let sources = y.as_ref().iter().zip(z.as_ref());
    for (index, (lane, (y, z))) in lanes.as_mut().iter_mut().zip(sources).enumerate() {
        *lane = fused(env, what, index % 2 != 0, *lane, *y, *z);
    }
    F::join(lanes)
}

/// `x * y + z` in the low lane; the others are those of `rest`.
#[inline]
pub(crate) fn fused_scalar<F: FloatLane>(
    env: &mut FpEnv,
    what: Fused,
    [x, y, z]: [u128; 3],
    rest: u128,
) -> u128 {
    let result = fused(env, what, false, low::<F>(x), low::<F>(y), low::<F>(z));
    with_low(rest, result)
}

pub(crate) fn cvtss2sd(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    let result = sf::widen(env, low::<u32>(b));
    with_low(a, result)
}

pub(crate) fn cvtsd2ss(env: &mut FpEnv, a: u128, b: u128) -> u128 {
    let result = sf::narrow(env, low::<u64>(b));
    with_low(a, result)
}
