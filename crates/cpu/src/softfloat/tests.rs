//! Against the host's operators (default mode), `rustc_apfloat` (all modes and flags), and by hand.

use base::SeededRng;
use rustc_apfloat::ieee::{Double, Single, X87DoubleExtended};
use rustc_apfloat::{Float as _, Round, Status, StatusAnd};

use super::*;
use crate::state::F80;

const DEFAULT: u32 = 0x1f80;
const CASES: u64 = 60_000;

/// Bits that meet every class often: random exponents near the edges, few or many fraction bits.
fn operand(rng: &mut SeededRng, exp_bits: u32, frac_bits: u32) -> u64 {
    let special = (1u64 << exp_bits) - 1;
    let field = match rng.below(8) {
        0 => 0,
        1 => special,
        2 => 1 + rng.below(3),
        3 => special - 1 - rng.below(3),
        4 | 5 => special / 2 + rng.below(8) - 4,
        6 => special / 2 + rng.below(u64::from(frac_bits) * 2) - u64::from(frac_bits),
        _ => rng.below(special),
    };
    rng.below(2) << (exp_bits + frac_bits) | field << frac_bits | fraction(rng, frac_bits)
}

/// Few, many, leading or trailing ones.
fn fraction(rng: &mut SeededRng, bits: u32) -> u64 {
    let mask = (1u64 << bits) - 1;
    match rng.below(6) {
        0 => 0,
        1 => mask,
        2 => 1 << rng.below(u64::from(bits)),
        3 => (rng.u64() & mask) >> rng.below(u64::from(bits)),
        4 => rng.u64() & mask & (mask << rng.below(u64::from(bits))),
        _ => rng.u64() & mask,
    }
}

fn single(rng: &mut SeededRng) -> u32 {
    operand(rng, 8, 23) as u32
}

fn double(rng: &mut SeededRng) -> u64 {
    operand(rng, 11, 52)
}

fn extended(rng: &mut SeededRng) -> F80 {
    let sign_exp = operand(rng, 15, 48) >> 48;
    let frac = fraction(rng, 63);
    // Only encodings that the reference knows: the leading bit matches the exponent.
    let sig = if sign_exp & 0x7fff == 0 { frac } else { frac | 1 << 63 };
    F80 { significand: sig, sign_exponent: sign_exp as u16 }
}

fn reference_round(rounding: Rounding) -> Round {
    match rounding {
        Rounding::Nearest => Round::NearestTiesToEven,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::Zero => Round::TowardZero,
    }
}

fn reference_flags(status: Status) -> u8 {
    [
        (Status::INVALID_OP, flag::IE),
        (Status::DIV_BY_ZERO, flag::ZE),
        (Status::OVERFLOW, flag::OE),
        (Status::UNDERFLOW, flag::UE),
        (Status::INEXACT, flag::PE),
    ]
    .iter()
    .fold(
        0,
        |flags, (theirs, ours)| {
            if status.contains(*theirs) { flags | ours } else { flags }
        },
    )
}

/// The reference knows no denormal operands, calls only denormal results underflow and only infinite
/// ones overflow, and picks NaNs in its own way; the rest has to agree.
fn check<F: Float + std::fmt::Debug>(what: &str, ours: F, env: &FpEnv, theirs: F, status: Status) {
    let (a, b) = (ours.unpack(), theirs.unpack());
    if a.is_nan() && b.is_nan() {
        assert_eq!(env.flags & flag::IE, reference_flags(status) & flag::IE, "{what}: flags");
        return;
    }
    assert_eq!(ours, theirs, "{what}");
    let mut mask = !flag::DE;
    if a.exp == F::FORMAT.exp_min && a.sig == 1 << 63 {
        mask &= !flag::UE;
    }
    if ours == F::pack(F::FORMAT.largest(a.sign)) {
        mask &= !flag::OE;
    }
    assert_eq!(env.flags & mask, reference_flags(status) & mask, "{what}: flags");
}

macro_rules! against_reference {
    ($test:ident, $seed:literal, $sample:ident, $from:expr, $to:expr) => {
        #[test]
        fn $test() {
            let mut rng = SeededRng::new($seed);
            for case in 0..CASES {
                let (a, b) = ($sample(&mut rng), $sample(&mut rng));
                let rounding = Rounding::from_bits(rng.below(4) as u32);
                let round = reference_round(rounding);
                let env = || FpEnv { rounding, ..FpEnv::sse(DEFAULT) };
                let theirs = |StatusAnd { value, status }| ($to(value), status);
                let what = |op: &str| format!("case {case}: {a:x?} {op} {b:x?}, {rounding:?}");
                let mut ours = env();
                let result = add(&mut ours, a, b);
                let (value, status) = theirs($from(a).add_r($from(b), round));
                check(&what("+"), result, &ours, value, status);
                let mut ours = env();
                let result = sub(&mut ours, a, b);
                let (value, status) = theirs($from(a).sub_r($from(b), round));
                check(&what("-"), result, &ours, value, status);
                let mut ours = env();
                let result = mul(&mut ours, a, b);
                let (value, status) = theirs($from(a).mul_r($from(b), round));
                check(&what("*"), result, &ours, value, status);
                let mut ours = env();
                let result = div(&mut ours, a, b);
                let (value, status) = theirs($from(a).div_r($from(b), round));
                check(&what("/"), result, &ours, value, status);
                let mut ours = env();
                let result = round_to_integral(&mut ours, a, rounding, 0);
                let (value, status) = theirs($from(a).round_to_integral(round));
                if !a.unpack().is_nan() {
                    check(&what("rint"), result, &ours, value, status & !Status::INEXACT);
                }
            }
        }
    };
}

against_reference!(
    single_precision_agrees_with_the_reference,
    1,
    single,
    |x: u32| Single::from_bits(u128::from(x)),
    |x: Single| x.to_bits() as u32
);
against_reference!(
    double_precision_agrees_with_the_reference,
    2,
    double,
    |x: u64| Double::from_bits(u128::from(x)),
    |x: Double| x.to_bits() as u64
);
against_reference!(
    extended_precision_agrees_with_the_reference,
    3,
    extended,
    |x: F80| X87DoubleExtended::from_bits(x.to_bits()),
    |x: X87DoubleExtended| F80::from_bits(x.to_bits())
);

/// An environment that keeps the host's arithmetic out: nothing else differs while inexact is the
/// only unmasked exception.
fn integers_only() -> FpEnv {
    FpEnv { masked: flag::ALL & !flag::PE, ..FpEnv::sse(DEFAULT) }
}

#[test]
fn the_host_path_gives_the_bits_and_flags_of_the_integer_path() {
    let mut rng = SeededRng::new(4);
    for case in 0..CASES * 2 {
        let (a, b) = (double(&mut rng), double(&mut rng));
        let (c, d) = (single(&mut rng), single(&mut rng));
        type Op<F> = fn(&mut FpEnv, F, F) -> F;
        let doubles: [Op<u64>; 5] = [add, sub, mul, div, |env, a, _| sqrt(env, a)];
        for (op, f) in doubles.iter().enumerate() {
            let (mut fast, mut slow) = (FpEnv::sse(DEFAULT), integers_only());
            let (x, y) = (f(&mut fast, a, b), f(&mut slow, a, b));
            assert_eq!((x, fast.flags), (y, slow.flags), "case {case}: op {op} on {a:x} {b:x}");
        }
        for width in [IntWidth::I32, IntWidth::I64] {
            let (mut fast, mut slow) = (FpEnv::sse(DEFAULT), integers_only());
            let (x, y) = (
                truncate(&mut fast, a, width),
                to_int(&mut slow, a.unpack(), Rounding::Zero, width),
            );
            assert_eq!((x, fast.flags), (y, slow.flags), "case {case}: {a:x} to {width:?}");
        }
        let (mut fast, mut slow) = (FpEnv::sse(DEFAULT), integers_only());
        let (x, y) = (narrow(&mut fast, a), convert::<u64, u32>(&mut slow, a));
        assert_eq!((x, fast.flags), (y, slow.flags), "case {case}: single of {a:x}");
        let (mut fast, mut slow) = (FpEnv::sse(DEFAULT), integers_only());
        let (x, y) = (widen(&mut fast, c), convert::<u32, u64>(&mut slow, c));
        assert_eq!((x, fast.flags), (y, slow.flags), "case {case}: double of {c:x}");
        let singles: [Op<u32>; 5] = [add, sub, mul, div, |env, a, _| sqrt(env, a)];
        for (op, f) in singles.iter().enumerate() {
            let (mut fast, mut slow) = (FpEnv::sse(DEFAULT), integers_only());
            let (x, y) = (f(&mut fast, c, d), f(&mut slow, c, d));
            assert_eq!((x, fast.flags), (y, slow.flags), "case {case}: op {op} on {c:x} {d:x}");
        }
    }
}

#[test]
fn square_roots_agree_with_the_host() {
    let mut rng = SeededRng::new(5);
    for _ in 0..CASES {
        let (a, c) = (double(&mut rng), single(&mut rng));
        let ours = sqrt(&mut integers_only(), a);
        let host = f64::from_bits(a).sqrt();
        assert!(ours == host.to_bits() || host.is_nan(), "sqrt of {a:x}");
        let ours = sqrt(&mut integers_only(), c);
        let host = f32::from_bits(c).sqrt();
        assert!(ours == host.to_bits() || host.is_nan(), "sqrt of {c:x}");
    }
}

#[test]
fn extended_square_root_is_the_nearest_number() {
    let mut rng = SeededRng::new(6);
    for _ in 0..20_000 {
        let a = Unpacked::finite(false, rng.below(200) as i32 - 100, rng.u64() | 1 << 63);
        let root = sqrt_unpacked(&mut FpEnv::x87(0x37f), EXTENDED, a);
        // root - ulp/2 < sqrt(a) < root + ulp/2, squared and scaled to integers.
        let square = u128::from(a.sig) << (63 + (a.exp & 1));
        let root = u128::from(root.sig);
        assert!(root * root - root < square && square <= root * root + root, "sqrt of {a:x?}");
    }
}

#[test]
fn conversions_agree_with_the_host_around_every_boundary() {
    let mut rng = SeededRng::new(7);
    let around = |rng: &mut SeededRng| {
        let power = 1u64 << rng.below(64);
        power.wrapping_add(rng.below(5)).wrapping_sub(2) as i64
    };
    for _ in 0..CASES {
        let (i, d, s) = (around(&mut rng), double(&mut rng), single(&mut rng));
        let mut env = FpEnv::sse(DEFAULT);
        assert_eq!(from_i64::<u64>(&mut env, i), (i as f64).to_bits());
        assert_eq!(env.flags != 0, (i as f64) as i128 != i128::from(i), "inexact of {i}");
        assert_eq!(from_i64::<u32>(&mut env, i), (i as f32).to_bits());

        let near = (i as f64).to_bits().wrapping_add(rng.below(5)).wrapping_sub(2);
        for d in [d, near] {
            let host = f64::from_bits(d);
            let fits = |low: f64, high: f64| host.trunc() >= low && host.trunc() < high;
            let mut env = FpEnv::sse(DEFAULT);
            let ours = to_int(&mut env, d.unpack(), Rounding::Zero, IntWidth::I64);
            let limit = 9_223_372_036_854_775_808.0;
            assert_eq!(ours, if fits(-limit, limit) { host as i64 } else { i64::MIN }, "{host}");
            let expected = match (fits(-limit, limit), host.trunc() == host) {
                (false, _) => flag::IE,
                (true, true) => 0,
                (true, false) => flag::PE,
            };
            assert_eq!(env.flags, expected, "flags of {host}");
            let ours = to_int(&mut env, d.unpack(), Rounding::Nearest, IntWidth::I32);
            let nearest = host.round_ties_even();
            let fits = (-2_147_483_648.0..2_147_483_648.0).contains(&nearest);
            assert_eq!(ours, i64::from(if fits { nearest as i32 } else { i32::MIN }), "{host}");
        }

        if !f64::from_bits(d).is_nan() {
            let ours: u32 = convert(&mut FpEnv::sse(DEFAULT), d);
            assert_eq!(ours, (f64::from_bits(d) as f32).to_bits(), "single of {d:x}");
        }
        if !f32::from_bits(s).is_nan() {
            let ours: u64 = convert(&mut FpEnv::sse(DEFAULT), s);
            assert_eq!(ours, f64::from(f32::from_bits(s)).to_bits(), "double of {s:x}");
            let wide: F80 = convert(&mut FpEnv::x87(0x37f), s);
            let back: u32 = convert(&mut FpEnv::x87(0x37f), wide);
            assert_eq!(back, s, "extended and back of {s:x}");
        }
    }
}

#[test]
fn comparisons_agree_with_the_host() {
    let mut rng = SeededRng::new(8);
    for _ in 0..CASES {
        let a = double(&mut rng);
        let b = if rng.one_in(4) { a ^ rng.below(2) << 63 } else { double(&mut rng) };
        let expected = match f64::from_bits(a).partial_cmp(&f64::from_bits(b)) {
            Some(std::cmp::Ordering::Less) => Ordering::Less,
            Some(std::cmp::Ordering::Equal) => Ordering::Equal,
            Some(std::cmp::Ordering::Greater) => Ordering::Greater,
            None => Ordering::Unordered,
        };
        let mut env = FpEnv::sse(DEFAULT);
        assert_eq!(compare(&mut env, a, b, false), expected, "{a:x} and {b:x}");
        assert_eq!(compare_unpacked(&mut env, &a.unpack(), &b.unpack(), false), expected);
    }
}

#[test]
fn remainder_is_complete_within_64_binades_and_partial_beyond() {
    let one = F80::ONE.unpack();
    let three = Unpacked::finite(false, 1, 3 << 62);
    let big = Unpacked::finite(false, 63, u64::MAX);
    let mut env = FpEnv::x87(0x37f);
    let result = remainder(&mut env, RemainderMode::Truncate, big, three);
    assert_eq!(result.quotient, Some(u64::MAX / 3));
    assert_eq!(result.value.sig, 0);
    let huge = Unpacked::finite(false, 200, 0xdead_beef_dead_beef);
    let result = remainder(&mut env, RemainderMode::Truncate, huge, three);
    assert_eq!(result.quotient, None);
    // The difference is 199, so 199 mod 32 + 32 = 39 places are done and 160 are left.
    let rest = (0xdead_beef_dead_beef_u128 << 39) % (3 << 62);
    let shift = rest.leading_zeros();
    let sig = (rest << shift >> 64) as u64;
    assert_eq!(result.value, Parts { sign: false, exp: 200 - 39 + 64 - shift as i32, sig });
    let five_halves = Unpacked::finite(true, 1, 5 << 61);
    let result = remainder(&mut env, RemainderMode::Nearest, five_halves, one);
    assert_eq!(result.quotient, Some(2), "ties to even");
    assert_eq!(F80::pack(result.value), F80 { significand: 1 << 63, sign_exponent: 0xbffe });
    assert_eq!(env.flags, 0, "a remainder is exact");
}

#[test]
fn remainders_agree_with_the_reference() {
    let mut rng = SeededRng::new(9);
    for case in 0..CASES {
        let (a, b) = (extended(&mut rng), extended(&mut rng));
        let reference = |x: F80| X87DoubleExtended::from_bits(x.to_bits());
        let (x, y) = (a.unpack(), b.unpack());
        if x.class != Class::Finite || y.class != Class::Finite || x.exp - y.exp >= 64 {
            continue;
        }
        let mut env = FpEnv::x87(0x37f);
        let result = remainder(&mut env, RemainderMode::Truncate, x, y);
        let StatusAnd { value, .. } = reference(a).c_fmod(reference(b));
        let expected = F80::from_bits(value.to_bits());
        assert_eq!(F80::pack(result.value), expected, "case {case}: {a:x?} fprem {b:x?}");
        let result = remainder(&mut env, RemainderMode::Nearest, x, y);
        let StatusAnd { value, .. } = reference(a).ieee_rem(reference(b));
        let expected = F80::from_bits(value.to_bits());
        assert_eq!(F80::pack(result.value), expected, "case {case}: {a:x?} fprem1 {b:x?}");
    }
}

#[test]
fn nan_selection_follows_the_unit() {
    const QUIET: u64 = 0x7ff8_0000_0000_0001;
    const SIGNALING: u64 = 0xfff0_0000_0000_0002;
    let mut sse = FpEnv::sse(DEFAULT);
    assert_eq!(add(&mut sse, SIGNALING, QUIET), SIGNALING | 1 << 51, "the first operand, quieted");
    assert_eq!(sse.flags, flag::IE);
    assert_eq!(add(&mut FpEnv::sse(DEFAULT), QUIET, SIGNALING), QUIET);
    let mut x87 = FpEnv::x87(0x37f);
    assert_eq!(add(&mut x87, SIGNALING, QUIET), QUIET, "quiet before signalling");
    let larger = QUIET + 1;
    assert_eq!(add(&mut x87, QUIET, larger), larger);
    assert_eq!(sub(&mut sse, 0u64, QUIET), QUIET, "subtraction keeps a NaN's sign");
}

#[test]
fn tininess_is_detected_after_rounding() {
    // (1 - 2^-24) * 2^-126 rounds up to the smallest normal number at single precision.
    let just_below = Unpacked::finite(false, -127, u64::MAX);
    let mut env = FpEnv::sse(DEFAULT);
    let rounded = env.round(SINGLE, false, just_below.exp, u128::from(just_below.sig) << 64);
    assert_eq!((u32::pack(rounded), env.flags), (0x0080_0000, flag::PE));
    // One bit fewer is tiny even after rounding to 24 bits, though it denormalizes to the same.
    let mut env = FpEnv::sse(DEFAULT);
    let rounded = env.round(SINGLE, false, -127, u128::from(0xffff_ff00_0000_0000u64) << 64);
    assert_eq!((u32::pack(rounded), env.flags), (0x0080_0000, flag::PE | flag::UE));
}

#[test]
fn daz_and_ftz_replace_denormals() {
    let mut env = FpEnv::sse(DEFAULT | 1 << 6);
    assert_eq!(add(&mut env, 1u32, 0x8000_0001), 0);
    assert_eq!(env.flags, 0);
    let mut env = FpEnv::sse(DEFAULT | 1 << 15);
    assert_eq!(mul(&mut env, 0x8080_0000u32, 0x3f00_0000), 0x8000_0000, "even an exact one");
    assert_eq!(env.flags, flag::UE | flag::PE);
}

#[test]
fn the_x87_wraps_the_exponent_of_unmasked_overflow() {
    let mut env = FpEnv::x87(0x37f & !u16::from(flag::OE));
    let large = Unpacked::finite(false, 16000, 1 << 63);
    let result = mul_unpacked(&mut env, EXTENDED, large, large);
    assert_eq!((result.exp, env.flags), (32000 - 24576, flag::OE));
}
