//! Against values computed with 600 bits, and the special cases of the SDM.

use super::*;
use crate::softfloat::Float;
use crate::state::F80;

#[derive(Clone, Copy, Debug)]
enum Function {
    Sin,
    Cos,
    Tan,
    Exp2m1,
    Log2,
    Log2p1,
    Atan,
}
use Function::{Atan, Cos, Exp2m1, Log2, Log2p1, Sin, Tan};

type Bits = (u16, u64);
const ONE: Bits = (0x3fff, 1 << 63);

fn number((sign_exponent, significand): Bits) -> F80 {
    F80 { significand, sign_exponent }
}

fn run(env: &mut FpEnv, function: Function, y: Bits, x: Bits) -> F80 {
    let (y, x) = (number(y).unpack(), number(x).unpack());
    F80::pack(match function {
        Sin => trig(env, Trig::Sin, &x).unwrap(),
        Cos => trig(env, Trig::Cos, &x).unwrap(),
        Tan => trig(env, Trig::Tan, &x).unwrap(),
        Exp2m1 => exp2_minus_one(env, &x),
        Log2 => log2_times(env, &y, &x),
        Log2p1 => log2_plus_one_times(env, &y, &x),
        Atan => arctangent(env, &y, &x),
    })
}

#[test]
fn results_are_the_nearest_numbers() {
    for (function, y, x, expected) in NEAREST {
        let mut env = FpEnv::x87(0x37f);
        let result = run(&mut env, *function, *y, *x);
        assert_eq!(result, number(*expected), "{function:?} of {y:x?}, {x:x?}");
        assert_eq!(env.flags, flag::PE, "{function:?} of {y:x?}, {x:x?}");
    }
}

#[test]
fn directed_rounding_brackets_the_result() {
    for (function, y, x, nearest) in NEAREST {
        let down = run(&mut FpEnv::x87(0x77f), *function, *y, *x);
        let up = run(&mut FpEnv::x87(0xb7f), *function, *y, *x);
        let (low, high) = if nearest.0 >> 15 == 0 { (down, up) } else { (up, down) };
        let step = high.to_bits() - low.to_bits();
        assert!(step == 1 || step == (1 << 64) - u128::from(u64::MAX >> 1), "{function:?}, {x:x?}");
        assert!([low, high].contains(&number(*nearest)), "{function:?} of {y:x?}, {x:x?}");
    }
}

#[test]
fn tiny_arguments_round_to_the_right_side() {
    let tiny = (0x3f00, 1 << 63);
    let below = F80 { significand: u64::MAX, sign_exponent: 0x3eff };
    let above = F80 { significand: (1 << 63) + 1, sign_exponent: 0x3f00 };
    let mut down = FpEnv::x87(0x77f);
    let mut up = FpEnv::x87(0xb7f);
    assert_eq!(run(&mut down, Sin, ONE, tiny), below, "the sine is a little less");
    assert_eq!(run(&mut down, Atan, tiny, ONE), below, "so is the arctangent");
    assert_eq!(run(&mut up, Tan, ONE, tiny), above, "the tangent is a little more");
    assert_eq!(run(&mut up, Sin, ONE, tiny), number(tiny));
    assert_eq!(run(&mut up, Cos, ONE, tiny), number(ONE));
    assert_eq!(
        run(&mut down, Cos, ONE, tiny),
        F80 { significand: u64::MAX, sign_exponent: 0x3ffe }
    );
}

#[test]
fn exact_results_are_not_inexact() {
    let two_to_minus_3 = (0x3ffc, 1 << 63);
    let seven = (0x4001, 7 << 61);
    for (function, y, x, expected) in [
        (Log2, seven, two_to_minus_3, F80 { significand: 21 << 59, sign_exponent: 0xc003 }),
        (Log2, seven, ONE, F80::ZERO),
        (Exp2m1, ONE, ONE, F80::ONE),
        (Exp2m1, ONE, (0xbfff, 1 << 63), F80 { significand: 1 << 63, sign_exponent: 0xbffe }),
        (Log2p1, seven, seven, F80 { significand: 21 << 59, sign_exponent: 0x4003 }),
        (Sin, ONE, (0x8000, 0), F80 { significand: 0, sign_exponent: 0x8000 }),
    ] {
        let mut env = FpEnv::x87(0x37f);
        assert_eq!((run(&mut env, function, y, x), env.flags), (expected, 0), "{function:?}");
    }
}

#[test]
fn special_operands_follow_the_manuals_tables() {
    const ZERO: Bits = (0, 0);
    const MINUS_ZERO: Bits = (0x8000, 0);
    const INFINITY: Bits = (0x7fff, 1 << 63);
    const MINUS_INFINITY: Bits = (0xffff, 1 << 63);
    const MINUS_ONE: Bits = (0xbfff, 1 << 63);
    const HALF: Bits = (0x3ffe, 1 << 63);
    const TWO: Bits = (0x4000, 1 << 63);
    const NAN: Bits = (0xffff, 3 << 62);
    const PI: Bits = (0x4000, 0xc90f_daa2_2168_c235);
    const MINUS_HALF_PI: Bits = (0xbfff, 0xc90f_daa2_2168_c235);
    for (function, y, x, expected, flags) in [
        (Log2, ONE, MINUS_ONE, NAN, flag::IE),
        (Log2, ONE, ZERO, MINUS_INFINITY, flag::ZE),
        (Log2, MINUS_ONE, MINUS_ZERO, INFINITY, flag::ZE),
        (Log2, ZERO, ZERO, NAN, flag::IE),
        (Log2, INFINITY, ONE, NAN, flag::IE),
        (Log2, ZERO, INFINITY, NAN, flag::IE),
        (Log2, INFINITY, HALF, MINUS_INFINITY, 0),
        (Log2, MINUS_INFINITY, TWO, MINUS_INFINITY, 0),
        (Log2, INFINITY, ZERO, MINUS_INFINITY, 0),
        (Log2, ONE, INFINITY, INFINITY, 0),
        (Log2, ZERO, HALF, MINUS_ZERO, 0),
        (Log2p1, INFINITY, ZERO, NAN, flag::IE),
        (Log2p1, MINUS_ONE, ZERO, MINUS_ZERO, 0),
        (Log2p1, ONE, MINUS_ONE, NAN, flag::IE),
        (Atan, ZERO, ONE, ZERO, 0),
        (Atan, ZERO, MINUS_ZERO, PI, flag::PE),
        (Atan, MINUS_ONE, ZERO, MINUS_HALF_PI, flag::PE),
        (Atan, MINUS_ZERO, INFINITY, MINUS_ZERO, 0),
        (Atan, MINUS_INFINITY, ONE, MINUS_HALF_PI, flag::PE),
        (Atan, ONE, INFINITY, ZERO, 0),
        (Exp2m1, ONE, MINUS_INFINITY, MINUS_ONE, 0),
        (Sin, ONE, INFINITY, NAN, flag::IE),
        (Cos, ONE, MINUS_ZERO, ONE, 0),
    ] {
        let mut env = FpEnv::x87(0x37f);
        let result = run(&mut env, function, y, x);
        assert_eq!((result, env.flags), (number(expected), flags), "{function:?} {y:x?} {x:x?}");
    }
    let huge = number((0x403e, 1 << 63)).unpack();
    assert_eq!(trig(&mut FpEnv::x87(0x37f), Trig::Cos, &huge), None, "2^63 is not reduced");
}

/// Function, y, x, and the nearest number to the result (for the trigonometric functions with the
/// argument reduced by the 66-bit pi).
const NEAREST: &[(Function, Bits, Bits, Bits)] = &[
    (Sin, ONE, (0xc035, 0xcb91_ce37_5bc8_fbbc), (0x3ffe, 0xffa8_02a5_3e01_0ff3)),
    (Cos, ONE, (0x4026, 0xf17f_d374_c6a5_3877), (0xbffe, 0xec2d_4a5f_af32_4900)),
    (Tan, ONE, (0x402a, 0xe6a1_6a3b_0d46_4138), (0xc002, 0xd8d0_867a_cf01_d02d)),
    (Sin, ONE, (0x3fe5, 0xf814_e8a2_5f2d_d97f), (0x3fe5, 0xf814_e8a2_5f2d_cfca)),
    (Cos, ONE, (0x401b, 0x9a1a_fe87_8b33_e968), (0xbffe, 0xf41c_bb2b_86df_d7ed)),
    (Tan, ONE, (0x3fd8, 0xb77b_9aa2_bb2e_db20), (0x3fd8, 0xb77b_9aa2_bb2e_db20)),
    (Sin, ONE, (0xbffa, 0xea95_9c21_2e9c_82b1), (0xbffa, 0xea74_c91d_f076_78ba)),
    (Cos, ONE, (0xbfff, 0xcc11_d357_c30d_8b76), (0xbff9, 0xc079_a48b_9655_9fc8)),
    (Tan, ONE, (0x3fe8, 0x9e11_5e4b_9e30_691c), (0x3fe8, 0x9e11_5e4b_9e31_aa83)),
    (Sin, ONE, (0xbfe7, 0x8074_5130_21da_8978), (0xbfe7, 0x8074_5130_21da_73e8)),
    (Cos, ONE, (0x4005, 0xb729_c619_c60a_3cab), (0xbffe, 0xe39c_9e16_3d83_3474)),
    (Tan, ONE, (0x3fec, 0xd04b_74ba_4a0f_e75d), (0x3fec, 0xd04b_74ba_4cef_5ad5)),
    (Sin, ONE, (0x4000, 0xad86_4c44_e049_548e), (0x3ffd, 0xd590_5892_f603_d8c1)),
    (Cos, ONE, (0x3ffd, 0xf7f3_5634_f0e3_cd97), (0x3ffe, 0xe290_1712_1308_e71c)),
    (Tan, ONE, (0x3fff, 0x8585_a01c_4c7d_6df0), (0x3fff, 0xdba3_c5e8_1e6e_f668)),
    (Sin, ONE, (0xbfff, 0xef90_1b93_2a7c_1880), (0xbffe, 0xf481_a1d1_1ec3_0a5f)),
    (Cos, ONE, (0x3ffe, 0xd4f4_6a69_10ac_ff00), (0x3ffe, 0xac6a_e596_98b9_bbbc)),
    (Tan, ONE, (0xc002, 0x960d_5a8f_9a65_6aaf), (0x3ffa, 0xbeac_a0b1_d8dc_7eff)),
    (Sin, ONE, (0x4000, 0xc90f_daa2_2168_c235), (0xbfbf, 0x8000_0000_0000_0000)),
    (Tan, ONE, (0x4000, 0xc90f_daa2_2168_c235), (0x3fbf, 0x8000_0000_0000_0000)),
    (Cos, ONE, (0x403d, 0xf000_0000_0000_0000), (0x3ffe, 0xe1c7_bbd6_e501_c777)),
    (Exp2m1, ONE, (0x3ff3, 0xb52a_43ab_ad8d_194a), (0x3ff2, 0xfb2d_a067_7299_7913)),
    (Exp2m1, ONE, (0xbfd1, 0xdaf8_4e6b_4f59_6727), (0xbfd1, 0x97c7_454b_65ba_3ab9)),
    (Exp2m1, ONE, (0xbfeb, 0xd0d7_d13f_b248_9191), (0xbfeb, 0x90c2_4638_156e_1153)),
    (Exp2m1, ONE, (0x3ffe, 0xb465_3252_78f8_45f5), (0x3ffe, 0xa138_a9ad_545e_29e8)),
    (Exp2m1, ONE, (0x3ffb, 0xf9a0_1fe8_4195_21fe), (0x3ffb, 0xb48b_f127_4903_b121)),
    (Exp2m1, ONE, (0x3ffd, 0xe77f_d139_d84a_1d3a), (0x3ffd, 0xbc74_4aa8_fe05_a1f1)),
    (
        Log2,
        (0xbfff, 0x9419_cf4d_6059_7bdc),
        (0x3f9f, 0xc9a9_37a6_8c8f_95ef),
        (0x4005, 0xdca2_3937_9cc4_2e7c),
    ),
    (
        Log2,
        (0x4003, 0xf453_324e_f486_ab73),
        (0x3f9d, 0x8bf6_4ef7_73ec_28d0),
        (0xc00a, 0xbad0_b6be_d14e_62d6),
    ),
    (
        Log2,
        (0x4001, 0x8332_f05a_5829_6818),
        (0x3fcd, 0xc177_f113_1e78_2196),
        (0xc006, 0xca8e_151b_1a6f_eb47),
    ),
    (
        Log2,
        (0xc001, 0x96fa_bb7b_1ba9_5a54),
        (0x3ff5, 0x8652_dbd0_e488_b6c8),
        (0x4004, 0xbb69_4ce8_43e6_8bcf),
    ),
    (
        Log2,
        (0x4000, 0xfa74_9692_f21f_f5eb),
        (0x3fff, 0xcbbd_bb01_dc14_ed57),
        (0x4000, 0xa7f4_2a6b_a1e1_05c5),
    ),
    (
        Log2,
        (0xbffc, 0xc692_ba03_5707_9670),
        (0x3ffe, 0xd73a_c59a_355f_2af4),
        (0x3ffa, 0xc6c9_1c79_fcec_5abd),
    ),
    (
        Log2,
        (0xbffe, 0xcc7c_6d81_2d6f_2efc),
        (0x3ffe, 0xaf9b_74f8_4ffc_bf42),
        (0x3ffd, 0xde65_3f2c_5193_ba70),
    ),
    (
        Log2,
        (0xc001, 0xb85a_5cd2_2959_fea3),
        (0x3ffe, 0xa61c_374b_a076_57d6),
        (0x4000, 0xe612_d895_e398_22b0),
    ),
    (
        Log2,
        (0x3ffd, 0x99c4_258b_fc98_5000),
        (0x3fff, 0x8000_0000_0000_0001),
        (0x3fbe, 0xddd6_758d_31ca_b7fb),
    ),
    (
        Log2p1,
        (0xbffe, 0xa6a5_bc99_74a6_77c6),
        (0xbfc5, 0xbd95_3dc2_3cc2_1779),
        (0x3fc5, 0xb20b_cd59_de5e_769b),
    ),
    (
        Log2p1,
        (0x4001, 0xd6a3_4d3e_558d_2adb),
        (0xbfcc, 0xfaa3_0fac_0e42_d43c),
        (0xbfd0, 0x9795_bf7d_ca2b_10d4),
    ),
    (
        Log2p1,
        (0x4004, 0xc9ba_fe62_e580_c35e),
        (0x3fcb, 0xbb4e_5c11_fb36_8220),
        (0x3fd1, 0xd4f0_b970_7de2_57de),
    ),
    (
        Log2p1,
        (0xbffc, 0xd840_7b1a_0f0b_9752),
        (0xbffc, 0xef3f_0240_2b37_d817),
        (0x3ffb, 0xa60a_2c1b_479f_1f84),
    ),
    (
        Log2p1,
        (0x4002, 0xf5cb_2afc_741b_324d),
        (0xbffd, 0xf401_f5ce_2425_d75a),
        (0xc002, 0xe58f_3868_1ca7_9d0b),
    ),
    (
        Log2p1,
        (0xc001, 0xe6e0_53f7_675e_be3b),
        (0xbffd, 0xc627_3141_7aa2_86ac),
        (0x4001, 0xa304_8d19_6bc1_4ecb),
    ),
    (
        Log2p1,
        (0x4004, 0xffd3_9898_efe8_b3b5),
        (0x3ffc, 0xd272_3248_6083_1ef2),
        (0x4003, 0x89f7_5ea3_e1a9_bfe2),
    ),
    (
        Atan,
        (0xbffd, 0xfdea_ab64_16d1_b5ac),
        (0xc000, 0x8c50_50ea_c832_652e),
        (0xc000, 0xbad3_0f9a_c62f_c544),
    ),
    (
        Atan,
        (0xbffc, 0xcb8f_1137_c938_c68d),
        (0xc001, 0xa9fd_1ce9_9665_5f23),
        (0xc000, 0xc6ab_0726_d46f_ef85),
    ),
    (
        Atan,
        (0x4002, 0xdd09_dd29_4e42_4b92),
        (0xc002, 0xc3cd_c356_7c55_dde1),
        (0x4000, 0x92ed_3f00_d2ec_5bd9),
    ),
    (
        Atan,
        (0xbffe, 0xadbb_f762_a652_3995),
        (0x3fff, 0xc612_5190_8c07_985b),
        (0xbffd, 0xd39c_822f_0322_6b63),
    ),
    (
        Atan,
        (0xbffe, 0xc610_3a2b_abf0_ca69),
        (0xbffe, 0x8016_e14d_d111_eb37),
        (0xc000, 0x8945_4bf4_66bd_b4dd),
    ),
    (
        Atan,
        (0xbffe, 0xa4e1_5158_461c_b6e0),
        (0xc001, 0xd404_2c36_f000_feb0),
        (0xc000, 0xc2dc_291c_124e_1d40),
    ),
    (
        Atan,
        (0xbffe, 0xd7c6_f4e2_ec1e_07d7),
        (0x4010, 0xdd41_1b0d_f9e3_24de),
        (0xbfec, 0xf9a9_a874_8b32_b10a),
    ),
    (
        Atan,
        (0xc000, 0x8782_d4d5_2450_d1c3),
        (0x3ff0, 0xdcad_ed41_d62c_bf25),
        (0xbfff, 0xc90f_0a2f_878e_c503),
    ),
    (
        Atan,
        (0xbffe, 0x942e_a4cd_b101_446a),
        (0xbfec, 0xc7c6_6f53_9de5_52dd),
        (0xbfff, 0xc910_05c6_5b95_f1e2),
    ),
];
