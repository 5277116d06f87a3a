//! FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1.
//!
//! Each computes with 128 significant bits ([`Wide`]) and rounds once, so results are the nearest
//! numbers but for about one in 2^45, where the error is a hair over half a unit in the last place.
//! Arguments of trigonometric functions are reduced by the pi of 66 bits that the manual documents
//! and CPUs use, not by the true one.
//!
//! What the SDM leaves undefined: F2XM1 beyond -1 to 1 leaves its operand as it is (an infinity
//! gives -1 or itself); FYL2XP1 takes every argument above -1 and is invalid from -1 down.

use super::wide::Wide;
use crate::softfloat::{Class, EXTENDED, FpEnv, Parts, Unpacked, flag};

const LN_2: Wide = Wide::new(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
const LOG2_E: Wide = Wide::new(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88);
const PI: Wide = Wide::new(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);

/// Half of the pi that arguments are reduced by: 66 significant bits, in units of 2^-67 (SDM volume
/// 1, 8.3.8).
const HALF_PI: u128 = 0xc_90fd_aa22_168c_234c;

/// The arctangents of k/8, k = 1 to 8.
const ATAN_EIGHTHS: [Wide; 8] = [
    Wide::new(-4, 0xfead_d4d5_617b_6e32_c897_989f_3e88_8ef7),
    Wide::new(-3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e5),
    Wide::new(-2, 0xb7b0_ca0f_26f7_8473_8aa3_2122_dcfe_4483),
    Wide::new(-2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
    Wide::new(-1, 0x8f00_5d5e_f7f5_9f9b_5c83_5e16_65c4_3747),
    Wide::new(-1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9e),
    Wide::new(-1, 0xb805_3e2b_c231_9e73_cb2d_a552_10a4_443d),
    Wide::new(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
];

/// What a trigonometric instruction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trig {
    Sin,
    Cos,
    Tan,
}

/// A trigonometric function, or `None` if the argument is too large to be reduced (C2 is set then).
pub(super) fn trig(env: &mut FpEnv, function: Trig, x: &Unpacked) -> Option<Parts> {
    match x.class {
        Class::Quiet | Class::Signaling | Class::Unsupported => {
            return Some(nan(env, x));
        }
        Class::Infinity => return Some(env.invalid()),
        Class::Zero if function == Trig::Cos => return Some(ONE),
        Class::Zero => return Some(Parts::zero(x.sign)),
        Class::Finite => {}
    }
    if x.exp >= 63 {
        return None;
    }
    note_denormal(env, x);
    let (quadrant, reduced) = reduce(x);
    let value = match function {
        Trig::Sin => quarter_turns(quadrant, reduced),
        Trig::Cos => quarter_turns(quadrant + 1, reduced),
        // The tangent of a tiny number is a little more than it.
        Trig::Tan if x.exp < -64 => reduced,
        Trig::Tan => quarter_turns(quadrant, reduced).div(quarter_turns(quadrant + 1, reduced)),
    };
    let sign = value.sign != (x.sign && function != Trig::Cos);
    Some(Wide { sign, ..value }.round(env, EXTENDED, false))
}

/// `|x| = quadrant * pi/2 + reduced`, `reduced` within pi/4 of zero and exact; of the quadrant only
/// the two lowest bits count.
fn reduce(x: &Unpacked) -> (u64, Wide) {
    if x.exp < -1 {
        return (0, Wide::from_unpacked(x).magnitude());
    }
    // |x| in units of 2^-67 is the significand shifted by 3 to 66 places: long division.
    let (mut quadrant, mut rest) = (0u64, u128::from(x.sig));
    for _ in 0..x.exp + 4 {
        rest <<= 1;
        quadrant <<= 1;
        if rest >= HALF_PI {
            rest -= HALF_PI;
            quadrant |= 1;
        }
    }
    let above_half = rest << 1 > HALF_PI;
    if above_half {
        quadrant = quadrant.wrapping_add(1);
        rest = HALF_PI - rest;
    }
    (quadrant, Wide::normalized(above_half, 127 - 67, rest))
}

/// The sine of `quarters * pi/2 + r`.
fn quarter_turns(quarters: u64, r: Wide) -> Wide {
    let value = if quarters & 1 == 0 { sine(r) } else { cosine(r) };
    if quarters & 2 != 0 { value.negated() } else { value }
}

/// The series is cut where terms fall below 2^-128 for |r| = pi/4.
const TRIG_TERMS: u32 = 17;

fn sine(r: Wide) -> Wide {
    let square = r.mul(r);
    let series = (1..=TRIG_TERMS)
        .rev()
        .fold(Wide::ONE, |sum, k| Wide::ONE.sub(square.mul(sum).div_small(2 * k * (2 * k + 1))));
    r.mul(series)
}

fn cosine(r: Wide) -> Wide {
    let square = r.mul(r);
    (1..=TRIG_TERMS)
        .rev()
        .fold(Wide::ONE, |sum, k| Wide::ONE.sub(square.mul(sum).div_small((2 * k - 1) * 2 * k)))
}

/// FPATAN: the angle of the point (`x`, `y`).
pub(super) fn arctangent(env: &mut FpEnv, y: &Unpacked, x: &Unpacked) -> Parts {
    if let Some(nan) = either_nan(env, y, x) {
        return nan;
    }
    note_denormal(env, y);
    note_denormal(env, x);
    let angle = match (y.class, x.class) {
        (Class::Zero, _) if !x.sign => return Parts::zero(y.sign),
        (Class::Zero, _) => PI,
        (Class::Infinity, Class::Infinity) if x.sign => PI.sub(PI.scaled(-2)),
        (Class::Infinity, Class::Infinity) => PI.scaled(-2),
        (Class::Infinity, _) | (_, Class::Zero) => PI.scaled(-1),
        (_, Class::Infinity) if !x.sign => return Parts::zero(y.sign),
        (_, Class::Infinity) => PI,
        _ => finite_angle(Wide::from_unpacked(y).magnitude(), Wide::from_unpacked(x)),
    };
    Wide { sign: y.sign, ..angle }.round(env, EXTENDED, false)
}

/// The angle of a point in the upper half plane.
fn finite_angle(y: Wide, x: Wide) -> Wide {
    let width = x.magnitude();
    let steep = width.less_than(&y);
    let flat_angle =
        if steep { arctangent_to_one(width.div(y)) } else { arctangent_to_one(y.div(width)) };
    let angle = if steep { PI.scaled(-1).sub(flat_angle) } else { flat_angle };
    if x.sign { PI.sub(angle) } else { angle }
}

/// The arctangent of `t`, 0 to 1: that of the nearest eighth plus that of a small rest.
fn arctangent_to_one(t: Wide) -> Wide {
    let eighths = if t.exp < -4 { 0 } else { ((t.sig >> (123 - t.exp)) + 1) >> 1 } as i32;
    if eighths == 0 {
        return arctangent_series(t);
    }
    let near = Wide::from_int(eighths).scaled(-3);
    let rest = t.sub(near).div(Wide::ONE.add(t.mul(near)));
    ATAN_EIGHTHS[eighths as usize - 1].add(arctangent_series(rest))
}

/// For |u| up to 1/16.
fn arctangent_series(u: Wide) -> Wide {
    odd_series(u, u.mul(u).negated(), 16)
}

/// `u * (1 + q/3 + q^2/5 + ...)`.
fn odd_series(u: Wide, q: Wide, terms: u32) -> Wide {
    let sum = (0..terms).rev().fold(Wide::ONE.div_small(2 * terms + 1), |sum, k| {
        Wide::ONE.div_small(2 * k + 1).add(q.mul(sum))
    });
    u.mul(sum)
}

/// F2XM1: `2^x - 1`.
pub(super) fn exp2_minus_one(env: &mut FpEnv, x: &Unpacked) -> Parts {
    match x.class {
        Class::Quiet | Class::Signaling | Class::Unsupported => return nan(env, x),
        Class::Zero => return Parts::zero(x.sign),
        Class::Infinity if x.sign => return Parts { sign: true, ..ONE },
        Class::Infinity => return Parts::infinity(false),
        Class::Finite => {}
    }
    note_denormal(env, x);
    if x.exp >= 0 {
        return match (x.exp, x.sig << 1, x.sign) {
            (0, 0, true) => Parts { sign: true, exp: -1, sig: 1 << 63 },
            _ => x.to_parts(),
        };
    }
    let t = Wide::from_unpacked(x).mul(LN_2);
    let sum = (2..=34).rev().fold(Wide::ONE, |sum, n| Wide::ONE.add(t.mul(sum).div_small(n)));
    t.mul(sum).round(env, EXTENDED, false)
}

/// FYL2X: `y * log2(x)`.
pub(super) fn log2_times(env: &mut FpEnv, y: &Unpacked, x: &Unpacked) -> Parts {
    if let Some(nan) = either_nan(env, y, x) {
        return nan;
    }
    match x.class {
        Class::Zero => {
            return match y.class {
                Class::Zero => env.invalid(),
                Class::Infinity => Parts::infinity(!y.sign),
                _ => {
                    env.raise(flag::ZE);
                    Parts::infinity(!y.sign)
                }
            };
        }
        _ if x.sign => return env.invalid(),
        Class::Infinity if y.class == Class::Zero => return env.invalid(),
        Class::Infinity => {
            note_denormal(env, y);
            return Parts::infinity(y.sign);
        }
        _ => {}
    }
    // Below 1 the logarithm is negative.
    let log_sign = x.exp < 0;
    let is_one = x.exp == 0 && x.sig << 1 == 0;
    match y.class {
        Class::Infinity if is_one => return env.invalid(),
        Class::Infinity => {
            note_denormal(env, x);
            return Parts::infinity(y.sign != log_sign);
        }
        Class::Zero => {
            note_denormal(env, x);
            return Parts::zero(y.sign != log_sign);
        }
        _ if is_one => {
            note_denormal(env, y);
            return Parts::zero(y.sign);
        }
        _ => {}
    }
    note_denormal(env, y);
    note_denormal(env, x);
    let is_power_of_two = x.sig << 1 == 0;
    let log = if is_power_of_two { Wide::from_int(x.exp) } else { log2(Wide::from_unpacked(x)) };
    Wide::from_unpacked(y).mul(log).round(env, EXTENDED, is_power_of_two)
}

/// FYL2XP1: `y * log2(x + 1)`.
pub(super) fn log2_plus_one_times(env: &mut FpEnv, y: &Unpacked, x: &Unpacked) -> Parts {
    if let Some(nan) = either_nan(env, y, x) {
        return nan;
    }
    match (x.class, y.class) {
        (Class::Zero, Class::Infinity) | (Class::Infinity, Class::Zero) => return env.invalid(),
        (Class::Infinity | Class::Finite, _) if x.sign && x.exp >= 0 => return env.invalid(),
        _ => {}
    }
    note_denormal(env, y);
    note_denormal(env, x);
    let sign = x.sign != y.sign;
    match (x.class, y.class) {
        (Class::Infinity, _) | (_, Class::Infinity) => return Parts::infinity(sign),
        (Class::Zero, _) | (_, Class::Zero) => return Parts::zero(sign),
        _ => {}
    }
    let x = Wide::from_unpacked(x);
    let sum = Wide::ONE.add(x);
    let is_power_of_two = x.exp >= -64 && x.exp < 64 && sum.sig << 1 == 0;
    let log = if is_power_of_two {
        Wide::from_int(sum.exp)
    } else if x.exp <= -3 {
        log2_of_ratio(x.div(x.add(Wide::from_int(2))))
    } else {
        log2(sum)
    };
    Wide::from_unpacked(y).mul(log).round(env, EXTENDED, is_power_of_two)
}

fn log2(x: Wide) -> Wide {
    // sqrt(2), to the 32 bits that the choice of the exponent needs.
    let above_root = x.sig >> 96 >= 0xb504_f334;
    let exp = x.exp + i32::from(above_root);
    let m = Wide { exp: x.exp - exp, ..x };
    let ratio = m.sub(Wide::ONE).div(m.add(Wide::ONE));
    Wide::from_int(exp).add(log2_of_ratio(ratio))
}

/// `log2((1 + z) / (1 - z))` for |z| below 0.18.
fn log2_of_ratio(z: Wide) -> Wide {
    odd_series(z, z.mul(z), 27).scaled(1).mul(LOG2_E)
}

const ONE: Parts = Parts { sign: false, exp: 0, sig: 1 << 63 };

fn nan(env: &mut FpEnv, x: &Unpacked) -> Parts {
    match x.class {
        Class::Unsupported => return env.invalid(),
        Class::Signaling => env.raise(flag::IE),
        _ => {}
    }
    x.quieted()
}

fn either_nan(env: &mut FpEnv, a: &Unpacked, b: &Unpacked) -> Option<Parts> {
    (a.class.max(b.class) >= Class::Quiet).then(|| env.pick_nan(a, b))
}

fn note_denormal(env: &mut FpEnv, x: &Unpacked) {
    if x.denormal {
        env.raise(flag::DE);
    }
}

#[cfg(test)]
mod tests;
