//! Floating point: arithmetic, comparisons and conversions.

use x86::iced::Code;

use super::{Vector, Ymm, avx};
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::softfloat::{FpEnv, IntWidth};
use crate::sse::{BY_MXCSR, Source, TRUNCATE, compute, float, forms, set_order, xmm};
use crate::{Cpu, Word};

/// `vector = f(environment, operation, vector, vector/m)`, for one length. Operand `1 + $first` may be in memory; where
/// that is operand 1, both vectors are it.
macro_rules! lanes {
    ($code:ident, $length:ty, $first:literal, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let (a, b) = (<$length>::get(cpu, op, 1), <$length>::get(cpu, op, 1 + $first));
                let result = compute(cpu, |fp| a.zip_halves(b, |_, a, b| $f(fp, op, a, b)))?;
                result.set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = cpu.load::<$length>(env, op)?;
                let a = <$length>::get(cpu, op, 1);
                let result = compute(cpu, |fp| a.zip_halves(b, |_, a, b| $f(fp, op, a, b)))?;
                result.set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// Both lengths of `vector = f(environment, vector, vector/m)`.
macro_rules! fp {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            lanes!($xmm, u128, 1, |fp: &mut FpEnv, _: &Op, a, b| $f(fp, a, b)),
            lanes!($ymm, Ymm, 1, |fp: &mut FpEnv, _: &Op, a, b| $f(fp, a, b)),
        ]
    };
}

/// Both lengths of `vector = f(environment, vector/m)`.
macro_rules! fp_unary {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            lanes!($xmm, u128, 0, |fp: &mut FpEnv, _: &Op, _, b| $f(fp, b)),
            lanes!($ymm, Ymm, 0, |fp: &mut FpEnv, _: &Op, _, b| $f(fp, b)),
        ]
    };
}

/// Both lengths of `vector = f(environment, vector, vector/m, imm8)`.
macro_rules! fp_imm {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            lanes!($xmm, u128, 1, |fp: &mut FpEnv, op: &Op, a, b| $f(fp, a, b, op.imm as u8)),
            lanes!($ymm, Ymm, 1, |fp: &mut FpEnv, op: &Op, a, b| $f(fp, a, b, op.imm as u8)),
        ]
    };
}

/// Both lengths of `vector = f(environment, vector/m, imm8)`.
macro_rules! fp_unary_imm {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            lanes!($xmm, u128, 0, |fp: &mut FpEnv, op: &Op, _, b| $f(fp, 0, b, op.imm as u8)),
            lanes!($ymm, Ymm, 0, |fp: &mut FpEnv, op: &Op, _, b| $f(fp, 0, b, op.imm as u8)),
        ]
    };
}

/// `xmm = f(environment, xmm, xmm/m)` with a memory operand of one lane.
macro_rules! scalar {
    ($code:ident, $width:ty, $f:expr) => {
        scalar!(@ $code, $width, |fp: &mut FpEnv, _: &Op, a, b| $f(fp, a, b))
    };
    (@ $code:ident, $width:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let (a, b) = (xmm(cpu, op, 1), xmm(cpu, op, 2));
                let result: u128 = compute(cpu, |fp| $f(fp, op, a, b))?;
                result.set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$width>::fetch(cpu, env, op)?;
                let a = xmm(cpu, op, 1);
                let result: u128 = compute(cpu, |fp| $f(fp, op, a, b))?;
                result.set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// `xmm = f(environment, xmm, xmm/m, imm8)` with a memory operand of one lane.
macro_rules! scalar_imm {
    ($code:ident, $width:ty, $f:expr) => {
        scalar!(@ $code, $width, |fp: &mut FpEnv, op: &Op, a, b| $f(fp, a, b, op.imm as u8))
    };
}

/// Conversions between widths: `f(environment, source)` gives the whole destination.
macro_rules! convert {
    ($code:ident, $register:ty, $memory:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let b = <$register>::get(cpu, op, 1);
                let result = compute(cpu, |fp| $f(fp, b))?;
                result.set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$register>::from_memory(cpu.load::<$memory>(env, op)?);
                let result = compute(cpu, |fp| $f(fp, b))?;
                result.set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// A source register as memory gives it, which may be less.
trait FromMemory<M> {
    fn from_memory(memory: M) -> Self;
}

impl<M: Into<u128>> FromMemory<M> for u128 {
    #[inline(always)]
    fn from_memory(memory: M) -> u128 {
        memory.into()
    }
}

impl FromMemory<Ymm> for Ymm {
    #[inline(always)]
    fn from_memory(memory: Ymm) -> Ymm {
        memory
    }
}

/// Two lanes become four by a function that makes two of two.
fn widened(fp: &mut FpEnv, b: u128, f: impl Fn(&mut FpEnv, u128) -> u128) -> Ymm {
    [f(fp, b), f(fp, b >> 64)]
}

/// Four lanes become four half as wide.
fn narrowed(fp: &mut FpEnv, b: Ymm, f: impl Fn(&mut FpEnv, u128) -> u128) -> u128 {
    let (low, high) = (f(fp, b[0]), f(fp, b[1]));
    u128::from(low as u64) | high << 64
}

/// An integer from a general register or memory into the low lane.
macro_rules! from_int {
    ($code:ident, $float:ty, $int:ty, $signed:ty) => {
        avx!(
            $code,
            |cpu, _, op| {
                let value = <$int>::get(cpu, op.r[2]) as $signed;
                let a = xmm(cpu, op, 1);
                compute(cpu, |fp| float::from_int::<$float>(fp, a, value.into()))?.set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let value = cpu.load::<$int>(env, op)? as $signed;
                let a = xmm(cpu, op, 1);
                compute(cpu, |fp| float::from_int::<$float>(fp, a, value.into()))?.set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// VCVTPS2PH: the result is stored or written to a register; an exception leaves both alone.
fn half_of(cpu: &mut Cpu, op: &Op, source: u128) -> Result<u64, Fault> {
    compute(cpu, |fp| float::cvtps2ph(fp, source, op.imm as u8))
}

fn store_halves_64(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    check_store(cpu, env, op, 8)?;
    let result = half_of(cpu, op, xmm(cpu, op, 1))?;
    cpu.store(env, op, result)
}

fn halves_of(cpu: &mut Cpu, op: &Op) -> Result<u128, Fault> {
    let source = Ymm::get(cpu, op, 1);
    compute(cpu, |fp| {
        let [low, high] = source.map(|half| float::cvtps2ph(fp, half, op.imm as u8));
        u128::from(low) | u128::from(high) << 64
    })
}

fn store_halves_128(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    check_store(cpu, env, op, 16)?;
    let result = halves_of(cpu, op)?;
    cpu.store(env, op, result)
}

/// Page faults come before exceptions of the arithmetic, which MXCSR remembers.
fn check_store(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, bytes: u32) -> Result<(), Fault> {
    let linear = cpu.linear(op, bytes, true)?;
    cpu.check_store(env, linear, bytes, op.has(Op::STACK))
}

/// The forms that come in two lengths.
pub(super) const PAIRS: &[[Form; 2]] = &[
    fp!(VEX_Vaddps_xmm_xmm_xmmm128, VEX_Vaddps_ymm_ymm_ymmm256, float::add_packed::<u32>),
    fp!(VEX_Vaddpd_xmm_xmm_xmmm128, VEX_Vaddpd_ymm_ymm_ymmm256, float::add_packed::<u64>),
    fp!(VEX_Vsubps_xmm_xmm_xmmm128, VEX_Vsubps_ymm_ymm_ymmm256, float::sub_packed::<u32>),
    fp!(VEX_Vsubpd_xmm_xmm_xmmm128, VEX_Vsubpd_ymm_ymm_ymmm256, float::sub_packed::<u64>),
    fp!(VEX_Vmulps_xmm_xmm_xmmm128, VEX_Vmulps_ymm_ymm_ymmm256, float::mul_packed::<u32>),
    fp!(VEX_Vmulpd_xmm_xmm_xmmm128, VEX_Vmulpd_ymm_ymm_ymmm256, float::mul_packed::<u64>),
    fp!(VEX_Vdivps_xmm_xmm_xmmm128, VEX_Vdivps_ymm_ymm_ymmm256, float::div_packed::<u32>),
    fp!(VEX_Vdivpd_xmm_xmm_xmmm128, VEX_Vdivpd_ymm_ymm_ymmm256, float::div_packed::<u64>),
    fp!(VEX_Vminps_xmm_xmm_xmmm128, VEX_Vminps_ymm_ymm_ymmm256, float::min_packed::<u32>),
    fp!(VEX_Vminpd_xmm_xmm_xmmm128, VEX_Vminpd_ymm_ymm_ymmm256, float::min_packed::<u64>),
    fp!(VEX_Vmaxps_xmm_xmm_xmmm128, VEX_Vmaxps_ymm_ymm_ymmm256, float::max_packed::<u32>),
    fp!(VEX_Vmaxpd_xmm_xmm_xmmm128, VEX_Vmaxpd_ymm_ymm_ymmm256, float::max_packed::<u64>),
    fp_unary!(VEX_Vsqrtps_xmm_xmmm128, VEX_Vsqrtps_ymm_ymmm256, |fp, b| float::sqrt_packed::<u32>(
        fp, 0, b
    )),
    fp_unary!(VEX_Vsqrtpd_xmm_xmmm128, VEX_Vsqrtpd_ymm_ymmm256, |fp, b| float::sqrt_packed::<u64>(
        fp, 0, b
    )),
    fp_unary!(VEX_Vrcpps_xmm_xmmm128, VEX_Vrcpps_ymm_ymmm256, |fp, b| float::rcp_packed::<u32>(
        fp, 0, b
    )),
    fp_unary!(
        VEX_Vrsqrtps_xmm_xmmm128,
        VEX_Vrsqrtps_ymm_ymmm256,
        |fp, b| float::rsqrt_packed::<u32>(fp, 0, b)
    ),
    fp!(VEX_Vaddsubps_xmm_xmm_xmmm128, VEX_Vaddsubps_ymm_ymm_ymmm256, float::addsub::<u32>),
    fp!(VEX_Vaddsubpd_xmm_xmm_xmmm128, VEX_Vaddsubpd_ymm_ymm_ymmm256, float::addsub::<u64>),
    fp!(VEX_Vhaddps_xmm_xmm_xmmm128, VEX_Vhaddps_ymm_ymm_ymmm256, float::hadd::<u32>),
    fp!(VEX_Vhaddpd_xmm_xmm_xmmm128, VEX_Vhaddpd_ymm_ymm_ymmm256, float::hadd::<u64>),
    fp!(VEX_Vhsubps_xmm_xmm_xmmm128, VEX_Vhsubps_ymm_ymm_ymmm256, float::hsub::<u32>),
    fp!(VEX_Vhsubpd_xmm_xmm_xmmm128, VEX_Vhsubpd_ymm_ymm_ymmm256, float::hsub::<u64>),
    fp_unary!(VEX_Vcvtdq2ps_xmm_xmmm128, VEX_Vcvtdq2ps_ymm_ymmm256, float::cvtdq2ps),
    fp_unary!(VEX_Vcvtps2dq_xmm_xmmm128, VEX_Vcvtps2dq_ymm_ymmm256, float::cvtps2dq),
    fp_unary!(VEX_Vcvttps2dq_xmm_xmmm128, VEX_Vcvttps2dq_ymm_ymmm256, float::cvttps2dq),
    fp_imm!(
        VEX_Vcmpps_xmm_xmm_xmmm128_imm8,
        VEX_Vcmpps_ymm_ymm_ymmm256_imm8,
        float::compare_packed::<u32>
    ),
    fp_unary_imm!(
        VEX_Vroundps_xmm_xmmm128_imm8,
        VEX_Vroundps_ymm_ymmm256_imm8,
        float::round_packed::<u32>
    ),
    fp_imm!(
        VEX_Vcmppd_xmm_xmm_xmmm128_imm8,
        VEX_Vcmppd_ymm_ymm_ymmm256_imm8,
        float::compare_packed::<u64>
    ),
    fp_unary_imm!(
        VEX_Vroundpd_xmm_xmmm128_imm8,
        VEX_Vroundpd_ymm_ymmm256_imm8,
        float::round_packed::<u64>
    ),
    fp_imm!(VEX_Vdpps_xmm_xmm_xmmm128_imm8, VEX_Vdpps_ymm_ymm_ymmm256_imm8, float::dpps),
];

/// The forms that come in one, or whose operands have other lengths.
pub(super) const FORMS: &[Form] = &[
    scalar!(VEX_Vaddss_xmm_xmm_xmmm32, u32, float::add_scalar::<u32>),
    scalar!(VEX_Vaddsd_xmm_xmm_xmmm64, u64, float::add_scalar::<u64>),
    scalar!(VEX_Vsubss_xmm_xmm_xmmm32, u32, float::sub_scalar::<u32>),
    scalar!(VEX_Vsubsd_xmm_xmm_xmmm64, u64, float::sub_scalar::<u64>),
    scalar!(VEX_Vmulss_xmm_xmm_xmmm32, u32, float::mul_scalar::<u32>),
    scalar!(VEX_Vmulsd_xmm_xmm_xmmm64, u64, float::mul_scalar::<u64>),
    scalar!(VEX_Vdivss_xmm_xmm_xmmm32, u32, float::div_scalar::<u32>),
    scalar!(VEX_Vdivsd_xmm_xmm_xmmm64, u64, float::div_scalar::<u64>),
    scalar!(VEX_Vminss_xmm_xmm_xmmm32, u32, float::min_scalar::<u32>),
    scalar!(VEX_Vminsd_xmm_xmm_xmmm64, u64, float::min_scalar::<u64>),
    scalar!(VEX_Vmaxss_xmm_xmm_xmmm32, u32, float::max_scalar::<u32>),
    scalar!(VEX_Vmaxsd_xmm_xmm_xmmm64, u64, float::max_scalar::<u64>),
    scalar!(VEX_Vsqrtss_xmm_xmm_xmmm32, u32, float::sqrt_scalar::<u32>),
    scalar!(VEX_Vsqrtsd_xmm_xmm_xmmm64, u64, float::sqrt_scalar::<u64>),
    scalar!(VEX_Vrcpss_xmm_xmm_xmmm32, u32, float::rcp_scalar::<u32>),
    scalar!(VEX_Vrsqrtss_xmm_xmm_xmmm32, u32, float::rsqrt_scalar::<u32>),
    scalar!(VEX_Vcvtss2sd_xmm_xmm_xmmm32, u32, float::cvtss2sd),
    scalar!(VEX_Vcvtsd2ss_xmm_xmm_xmmm64, u64, float::cvtsd2ss),
    scalar_imm!(VEX_Vcmpss_xmm_xmm_xmmm32_imm8, u32, float::compare_scalar::<u32>),
    scalar_imm!(VEX_Vroundss_xmm_xmm_xmmm32_imm8, u32, float::round_scalar::<u32>),
    scalar_imm!(VEX_Vcmpsd_xmm_xmm_xmmm64_imm8, u64, float::compare_scalar::<u64>),
    scalar_imm!(VEX_Vroundsd_xmm_xmm_xmmm64_imm8, u64, float::round_scalar::<u64>),
    lanes!(VEX_Vdppd_xmm_xmm_xmmm128_imm8, u128, 1, |fp: &mut FpEnv, op: &Op, a, b| {
        float::dppd(fp, a, b, op.imm as u8)
    }),
    forms::compares!(VEX_Vcomiss_xmm_xmmm32, u32, true).gated(Gate::Avx),
    forms::compares!(VEX_Vcomisd_xmm_xmmm64, u64, true).gated(Gate::Avx),
    forms::compares!(VEX_Vucomiss_xmm_xmmm32, u32, false).gated(Gate::Avx),
    forms::compares!(VEX_Vucomisd_xmm_xmmm64, u64, false).gated(Gate::Avx),
    from_int!(VEX_Vcvtsi2ss_xmm_xmm_rm32, u32, u32, i32),
    from_int!(VEX_Vcvtsi2ss_xmm_xmm_rm64, u32, u64, i64),
    from_int!(VEX_Vcvtsi2sd_xmm_xmm_rm32, u64, u32, i32),
    from_int!(VEX_Vcvtsi2sd_xmm_xmm_rm64, u64, u64, i64),
    forms::to_int!(VEX_Vcvtss2si_r32_xmmm32, u32, u32, IntWidth::I32, BY_MXCSR).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvtss2si_r64_xmmm32, u32, u64, IntWidth::I64, BY_MXCSR).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvtsd2si_r32_xmmm64, u64, u32, IntWidth::I32, BY_MXCSR).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvtsd2si_r64_xmmm64, u64, u64, IntWidth::I64, BY_MXCSR).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvttss2si_r32_xmmm32, u32, u32, IntWidth::I32, TRUNCATE).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvttss2si_r64_xmmm32, u32, u64, IntWidth::I64, TRUNCATE).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvttsd2si_r32_xmmm64, u64, u32, IntWidth::I32, TRUNCATE).gated(Gate::Avx),
    forms::to_int!(VEX_Vcvttsd2si_r64_xmmm64, u64, u64, IntWidth::I64, TRUNCATE).gated(Gate::Avx),
    convert!(VEX_Vcvtdq2pd_xmm_xmmm64, u128, u64, float::cvtdq2pd),
    convert!(VEX_Vcvtdq2pd_ymm_xmmm128, u128, u128, |fp, b| widened(fp, b, float::cvtdq2pd)),
    convert!(VEX_Vcvtps2pd_xmm_xmmm64, u128, u64, float::cvtps2pd),
    convert!(VEX_Vcvtps2pd_ymm_xmmm128, u128, u128, |fp, b| widened(fp, b, float::cvtps2pd)),
    convert!(VEX_Vcvtpd2ps_xmm_xmmm128, u128, u128, float::cvtpd2ps),
    convert!(VEX_Vcvtpd2ps_xmm_ymmm256, Ymm, Ymm, |fp, b| narrowed(fp, b, float::cvtpd2ps)),
    convert!(VEX_Vcvtpd2dq_xmm_xmmm128, u128, u128, float::cvtpd2dq),
    convert!(VEX_Vcvtpd2dq_xmm_ymmm256, Ymm, Ymm, |fp, b| narrowed(fp, b, float::cvtpd2dq)),
    convert!(VEX_Vcvttpd2dq_xmm_xmmm128, u128, u128, float::cvttpd2dq),
    convert!(VEX_Vcvttpd2dq_xmm_ymmm256, Ymm, Ymm, |fp, b| narrowed(fp, b, float::cvttpd2dq)),
    convert!(VEX_Vcvtph2ps_xmm_xmmm64, u128, u64, float::cvtph2ps),
    convert!(VEX_Vcvtph2ps_ymm_xmmm128, u128, u128, |fp, b| widened(fp, b, float::cvtph2ps)),
    avx!(
        VEX_Vcvtps2ph_xmmm64_xmm_imm8,
        |cpu, _, op| {
            let result = half_of(cpu, op, xmm(cpu, op, 1))?;
            u128::from(result).set(cpu, op, 0);
            Ok(())
        },
        store_halves_64
    ),
    avx!(
        VEX_Vcvtps2ph_xmmm128_ymm_imm8,
        |cpu, _, op| {
            halves_of(cpu, op)?.set(cpu, op, 0);
            Ok(())
        },
        store_halves_128
    ),
];
