//! Packed integers, logic, shuffles, blends and permutations.

use x86::Rflags;
use x86::iced::Code;

use super::{Vector, Ymm, avx, binary, three_operands, two_operands, unary, unary_imm, with_imm};
use crate::forms::Form;
use crate::op::Op;
use crate::sse::lanes::Lane;
use crate::sse::{crypto, integer};
use crate::{Cpu, Flags};

/// Both lengths of `vector = f(vector, xmm/m128)`: shifts whose count is a register.
macro_rules! shift_by_register {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [shift_by_register!(@ $xmm, u128, $f), shift_by_register!(@ $ymm, Ymm, $f)]
    };
    (@ $code:ident, $length:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let (a, count) = (<$length>::get(cpu, op, 1), u128::get(cpu, op, 2));
                a.map_halves(|_, a| $f(a, count)).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let count = cpu.load::<u128>(env, op)?;
                <$length>::get(cpu, op, 1).map_halves(|_, a| $f(a, count)).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// Both lengths of `vector = f(vector, imm8)`.
macro_rules! shift_by_imm {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        unary_imm!($xmm, $ymm, 0, |a, count: u8| $f(a, u128::from(count)))
    };
}

/// Both lengths of `vector = f(vector, vector/m, vector)`.
macro_rules! blend_by_register {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [blend_by_register!(@ $xmm, u128, $f), blend_by_register!(@ $ymm, Ymm, $f)]
    };
    (@ $code:ident, $length:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let (a, b) = (<$length>::get(cpu, op, 1), <$length>::get(cpu, op, 2));
                blend(a, b, <$length>::get(cpu, op, 3), $f).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = cpu.load::<$length>(env, op)?;
                let (a, mask) = (<$length>::get(cpu, op, 1), <$length>::get(cpu, op, 3));
                blend(a, b, mask, $f).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

#[inline(always)]
fn blend<V: Vector>(a: V, b: V, mask: V, f: impl Fn(u128, u128, u128) -> u128) -> V {
    let mut halves = [0; 2];
    mask.map_halves(|half, mask| {
        halves[half as usize] = mask;
        mask
    });
    a.zip_halves(b, |half, a, b| f(a, b, halves[half as usize]))
}

/// Both lengths of a widening move: `$bits` bits of the source make 128.
macro_rules! extend {
    ($xmm:ident, $ymm:ident, $narrow:ty, $wide:ty, $f:expr) => {
        [
            extend!(@ $xmm, $narrow, |a: u128| $f(a)),
            extend!(@ $ymm, $wide, |a: u128| [$f(a), $f(a >> <$narrow>::BITS)]),
        ]
    };
    (@ $code:ident, $source:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                $f(u128::get(cpu, op, 1)).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let source = cpu.load::<$source>(env, op)?;
                $f(u128::from(source)).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// `ymm = f(ymm/m256, imm8)`, `ymm = f(ymm, ymm/m256)` or with both, across the halves.
macro_rules! across {
    ($code:ident, |$a:ident, $b:ident, $imm:ident| $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let last = across_operand(op);
                let ($a, $b, $imm) = (Ymm::get(cpu, op, 1), Ymm::get(cpu, op, last), op.imm as u8);
                $f.set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let $b = cpu.load::<Ymm>(env, op)?;
                let ($a, $imm) = (Ymm::get(cpu, op, 1), op.imm as u8);
                $f.set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// The number of the operand that may be in memory.
fn across_operand(op: &Op) -> usize {
    let is_unary =
        matches!(op.form(), Code::VEX_Vpermq_ymm_ymmm256_imm8 | Code::VEX_Vpermpd_ymm_ymmm256_imm8);
    if is_unary { 1 } else { 2 }
}

fn lanes_32(a: Ymm) -> [u32; 8] {
    let (low, high) = (u32::split(a[0]), u32::split(a[1]));
    std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
}

fn lanes_64(a: Ymm) -> [u64; 4] {
    [a[0] as u64, (a[0] >> 64) as u64, a[1] as u64, (a[1] >> 64) as u64]
}

/// VPERMD and VPERMPS: lanes of `b` chosen by lanes of `a`.
fn permute_32(a: Ymm, b: Ymm) -> Ymm {
    let source = lanes_32(b);
    a.map_halves(|_, order| u32::map(order, |lane| source[(lane & 7) as usize]))
}

/// VPERMQ and VPERMPD.
fn permute_64(b: Ymm, order: u8) -> Ymm {
    let source = lanes_64(b);
    let lane = |n: u32| source[usize::from(order >> (2 * n) & 3)];
    [u64::join([lane(0), lane(1)]), u64::join([lane(2), lane(3)])]
}

/// VPERM2F128 and VPERM2I128.
fn permute_128(a: Ymm, b: Ymm, order: u8) -> Ymm {
    let half = |control: u8| {
        let source = if control & 2 == 0 { a } else { b };
        if control & 8 != 0 { 0 } else { source[usize::from(control & 1)] }
    };
    [half(order), half(order >> 4)]
}

/// VPERMILPS with a register.
fn permil_32(a: u128, order: u128) -> u128 {
    let source = u32::split(a);
    u32::map(order, |lane| source[(lane & 3) as usize])
}

/// VPERMILPD with a register.
fn permil_64(a: u128, order: u128) -> u128 {
    let source = u64::split(a);
    u64::map(order, |lane| source[(lane >> 1 & 1) as usize])
}

fn permil_64_imm(a: u128, order: u8) -> u128 {
    integer::shufpd(a, a, order)
}

/// Both lengths of PTEST and its like: ZF and CF by those bits of each half that are in `$kept`.
macro_rules! tests {
    ($xmm:ident, $ymm:ident, $kept:expr) => {
        [tests!(@ $xmm, u128, $kept), tests!(@ $ymm, Ymm, $kept)]
    };
    (@ $code:ident, $length:ty, $kept:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let (a, b) = (<$length>::get(cpu, op, 0), <$length>::get(cpu, op, 1));
                test(cpu, a, b, $kept);
                Ok(())
            },
            |cpu, env, op| {
                let b = cpu.load::<$length>(env, op)?;
                let a = <$length>::get(cpu, op, 0);
                test(cpu, a, b, $kept);
                Ok(())
            }
        )
    };
}

fn test<V: Vector>(cpu: &mut Cpu, a: V, b: V, kept: u128) {
    let (mut common, mut missing) = (0, 0);
    a.zip_halves(b, |_, a, b| {
        common |= a & b & kept;
        missing |= !a & b & kept;
        a
    });
    let zf = if common == 0 { Rflags::ZF } else { 0 };
    let cf = if missing == 0 { Rflags::CF } else { 0 };
    cpu.flags = Flags::from_rflags(zf | cf);
}

const SIGNS_32: u128 = 0x8000_0000_8000_0000_8000_0000_8000_0000;
const SIGNS_64: u128 = 0x8000_0000_0000_0000_8000_0000_0000_0000;

/// Counts of one lane each: `name: lane, |a, count| within, beyond the lane's width`.
macro_rules! variable_shifts {
    ($($name:ident: $lane:ty, |$a:ident, $n:ident| $within:expr, $beyond:expr;)*) => {$(
        fn $name(a: u128, count: u128) -> u128 {
            <$lane>::zip(a, count, |$a, $n| {
                if ($n as u64) < u64::from(<$lane>::BITS) { $within } else { $beyond }
            })
        }
    )*};
}

variable_shifts! {
    psllvd: u32, |a, n| a << n, 0;
    psllvq: u64, |a, n| a << n, 0;
    psrlvd: u32, |a, n| a >> n, 0;
    psrlvq: u64, |a, n| a >> n, 0;
    psravd: u32, |a, n| (a as i32 >> n) as u32, (a as i32 >> 31) as u32;
}

/// The forms that come in two lengths.
pub(super) const PAIRS: &[[Form; 2]] = &[
    binary!(VEX_Vpaddb_xmm_xmm_xmmm128, VEX_Vpaddb_ymm_ymm_ymmm256, integer::paddb),
    binary!(VEX_Vpaddw_xmm_xmm_xmmm128, VEX_Vpaddw_ymm_ymm_ymmm256, integer::paddw),
    binary!(VEX_Vpaddd_xmm_xmm_xmmm128, VEX_Vpaddd_ymm_ymm_ymmm256, integer::paddd),
    binary!(VEX_Vpaddq_xmm_xmm_xmmm128, VEX_Vpaddq_ymm_ymm_ymmm256, integer::paddq),
    binary!(VEX_Vpaddsb_xmm_xmm_xmmm128, VEX_Vpaddsb_ymm_ymm_ymmm256, integer::paddsb),
    binary!(VEX_Vpaddsw_xmm_xmm_xmmm128, VEX_Vpaddsw_ymm_ymm_ymmm256, integer::paddsw),
    binary!(VEX_Vpaddusb_xmm_xmm_xmmm128, VEX_Vpaddusb_ymm_ymm_ymmm256, integer::paddusb),
    binary!(VEX_Vpaddusw_xmm_xmm_xmmm128, VEX_Vpaddusw_ymm_ymm_ymmm256, integer::paddusw),
    binary!(VEX_Vpsubb_xmm_xmm_xmmm128, VEX_Vpsubb_ymm_ymm_ymmm256, integer::psubb),
    binary!(VEX_Vpsubw_xmm_xmm_xmmm128, VEX_Vpsubw_ymm_ymm_ymmm256, integer::psubw),
    binary!(VEX_Vpsubd_xmm_xmm_xmmm128, VEX_Vpsubd_ymm_ymm_ymmm256, integer::psubd),
    binary!(VEX_Vpsubq_xmm_xmm_xmmm128, VEX_Vpsubq_ymm_ymm_ymmm256, integer::psubq),
    binary!(VEX_Vpsubsb_xmm_xmm_xmmm128, VEX_Vpsubsb_ymm_ymm_ymmm256, integer::psubsb),
    binary!(VEX_Vpsubsw_xmm_xmm_xmmm128, VEX_Vpsubsw_ymm_ymm_ymmm256, integer::psubsw),
    binary!(VEX_Vpsubusb_xmm_xmm_xmmm128, VEX_Vpsubusb_ymm_ymm_ymmm256, integer::psubusb),
    binary!(VEX_Vpsubusw_xmm_xmm_xmmm128, VEX_Vpsubusw_ymm_ymm_ymmm256, integer::psubusw),
    binary!(VEX_Vpmullw_xmm_xmm_xmmm128, VEX_Vpmullw_ymm_ymm_ymmm256, integer::pmullw),
    binary!(VEX_Vpmulhw_xmm_xmm_xmmm128, VEX_Vpmulhw_ymm_ymm_ymmm256, integer::pmulhw),
    binary!(VEX_Vpmulhuw_xmm_xmm_xmmm128, VEX_Vpmulhuw_ymm_ymm_ymmm256, integer::pmulhuw),
    binary!(VEX_Vpmulhrsw_xmm_xmm_xmmm128, VEX_Vpmulhrsw_ymm_ymm_ymmm256, integer::pmulhrsw),
    binary!(VEX_Vpmulld_xmm_xmm_xmmm128, VEX_Vpmulld_ymm_ymm_ymmm256, integer::pmulld),
    binary!(VEX_Vpmuludq_xmm_xmm_xmmm128, VEX_Vpmuludq_ymm_ymm_ymmm256, integer::pmuludq),
    binary!(VEX_Vpmuldq_xmm_xmm_xmmm128, VEX_Vpmuldq_ymm_ymm_ymmm256, integer::pmuldq),
    binary!(VEX_Vpmaddwd_xmm_xmm_xmmm128, VEX_Vpmaddwd_ymm_ymm_ymmm256, integer::pmaddwd),
    binary!(VEX_Vpmaddubsw_xmm_xmm_xmmm128, VEX_Vpmaddubsw_ymm_ymm_ymmm256, integer::pmaddubsw),
    binary!(VEX_Vpcmpeqb_xmm_xmm_xmmm128, VEX_Vpcmpeqb_ymm_ymm_ymmm256, integer::pcmpeqb),
    binary!(VEX_Vpcmpeqw_xmm_xmm_xmmm128, VEX_Vpcmpeqw_ymm_ymm_ymmm256, integer::pcmpeqw),
    binary!(VEX_Vpcmpeqd_xmm_xmm_xmmm128, VEX_Vpcmpeqd_ymm_ymm_ymmm256, integer::pcmpeqd),
    binary!(VEX_Vpcmpeqq_xmm_xmm_xmmm128, VEX_Vpcmpeqq_ymm_ymm_ymmm256, integer::pcmpeqq),
    binary!(VEX_Vpcmpgtb_xmm_xmm_xmmm128, VEX_Vpcmpgtb_ymm_ymm_ymmm256, integer::pcmpgtb),
    binary!(VEX_Vpcmpgtw_xmm_xmm_xmmm128, VEX_Vpcmpgtw_ymm_ymm_ymmm256, integer::pcmpgtw),
    binary!(VEX_Vpcmpgtd_xmm_xmm_xmmm128, VEX_Vpcmpgtd_ymm_ymm_ymmm256, integer::pcmpgtd),
    binary!(VEX_Vpcmpgtq_xmm_xmm_xmmm128, VEX_Vpcmpgtq_ymm_ymm_ymmm256, integer::pcmpgtq),
    binary!(VEX_Vpavgb_xmm_xmm_xmmm128, VEX_Vpavgb_ymm_ymm_ymmm256, integer::pavgb),
    binary!(VEX_Vpavgw_xmm_xmm_xmmm128, VEX_Vpavgw_ymm_ymm_ymmm256, integer::pavgw),
    binary!(VEX_Vpminub_xmm_xmm_xmmm128, VEX_Vpminub_ymm_ymm_ymmm256, integer::pminub),
    binary!(VEX_Vpminsb_xmm_xmm_xmmm128, VEX_Vpminsb_ymm_ymm_ymmm256, integer::pminsb),
    binary!(VEX_Vpminuw_xmm_xmm_xmmm128, VEX_Vpminuw_ymm_ymm_ymmm256, integer::pminuw),
    binary!(VEX_Vpminsw_xmm_xmm_xmmm128, VEX_Vpminsw_ymm_ymm_ymmm256, integer::pminsw),
    binary!(VEX_Vpminud_xmm_xmm_xmmm128, VEX_Vpminud_ymm_ymm_ymmm256, integer::pminud),
    binary!(VEX_Vpminsd_xmm_xmm_xmmm128, VEX_Vpminsd_ymm_ymm_ymmm256, integer::pminsd),
    binary!(VEX_Vpmaxub_xmm_xmm_xmmm128, VEX_Vpmaxub_ymm_ymm_ymmm256, integer::pmaxub),
    binary!(VEX_Vpmaxsb_xmm_xmm_xmmm128, VEX_Vpmaxsb_ymm_ymm_ymmm256, integer::pmaxsb),
    binary!(VEX_Vpmaxuw_xmm_xmm_xmmm128, VEX_Vpmaxuw_ymm_ymm_ymmm256, integer::pmaxuw),
    binary!(VEX_Vpmaxsw_xmm_xmm_xmmm128, VEX_Vpmaxsw_ymm_ymm_ymmm256, integer::pmaxsw),
    binary!(VEX_Vpmaxud_xmm_xmm_xmmm128, VEX_Vpmaxud_ymm_ymm_ymmm256, integer::pmaxud),
    binary!(VEX_Vpmaxsd_xmm_xmm_xmmm128, VEX_Vpmaxsd_ymm_ymm_ymmm256, integer::pmaxsd),
    binary!(VEX_Vpsignb_xmm_xmm_xmmm128, VEX_Vpsignb_ymm_ymm_ymmm256, integer::psignb),
    binary!(VEX_Vpsignw_xmm_xmm_xmmm128, VEX_Vpsignw_ymm_ymm_ymmm256, integer::psignw),
    binary!(VEX_Vpsignd_xmm_xmm_xmmm128, VEX_Vpsignd_ymm_ymm_ymmm256, integer::psignd),
    binary!(VEX_Vpand_xmm_xmm_xmmm128, VEX_Vpand_ymm_ymm_ymmm256, integer::pand),
    binary!(VEX_Vpandn_xmm_xmm_xmmm128, VEX_Vpandn_ymm_ymm_ymmm256, integer::pandn),
    binary!(VEX_Vpor_xmm_xmm_xmmm128, VEX_Vpor_ymm_ymm_ymmm256, integer::por),
    binary!(VEX_Vpxor_xmm_xmm_xmmm128, VEX_Vpxor_ymm_ymm_ymmm256, integer::pxor),
    binary!(VEX_Vpunpcklbw_xmm_xmm_xmmm128, VEX_Vpunpcklbw_ymm_ymm_ymmm256, integer::punpcklbw),
    binary!(VEX_Vpunpckhbw_xmm_xmm_xmmm128, VEX_Vpunpckhbw_ymm_ymm_ymmm256, integer::punpckhbw),
    binary!(VEX_Vpunpcklwd_xmm_xmm_xmmm128, VEX_Vpunpcklwd_ymm_ymm_ymmm256, integer::punpcklwd),
    binary!(VEX_Vpunpckhwd_xmm_xmm_xmmm128, VEX_Vpunpckhwd_ymm_ymm_ymmm256, integer::punpckhwd),
    binary!(VEX_Vpunpckldq_xmm_xmm_xmmm128, VEX_Vpunpckldq_ymm_ymm_ymmm256, integer::punpckldq),
    binary!(VEX_Vpunpckhdq_xmm_xmm_xmmm128, VEX_Vpunpckhdq_ymm_ymm_ymmm256, integer::punpckhdq),
    binary!(VEX_Vpunpcklqdq_xmm_xmm_xmmm128, VEX_Vpunpcklqdq_ymm_ymm_ymmm256, integer::punpcklqdq),
    binary!(VEX_Vpunpckhqdq_xmm_xmm_xmmm128, VEX_Vpunpckhqdq_ymm_ymm_ymmm256, integer::punpckhqdq),
    binary!(VEX_Vpacksswb_xmm_xmm_xmmm128, VEX_Vpacksswb_ymm_ymm_ymmm256, integer::packsswb),
    binary!(VEX_Vpackssdw_xmm_xmm_xmmm128, VEX_Vpackssdw_ymm_ymm_ymmm256, integer::packssdw),
    binary!(VEX_Vpackuswb_xmm_xmm_xmmm128, VEX_Vpackuswb_ymm_ymm_ymmm256, integer::packuswb),
    binary!(VEX_Vpackusdw_xmm_xmm_xmmm128, VEX_Vpackusdw_ymm_ymm_ymmm256, integer::packusdw),
    binary!(VEX_Vphaddw_xmm_xmm_xmmm128, VEX_Vphaddw_ymm_ymm_ymmm256, integer::phaddw),
    binary!(VEX_Vphaddd_xmm_xmm_xmmm128, VEX_Vphaddd_ymm_ymm_ymmm256, integer::phaddd),
    binary!(VEX_Vphaddsw_xmm_xmm_xmmm128, VEX_Vphaddsw_ymm_ymm_ymmm256, integer::phaddsw),
    binary!(VEX_Vphsubw_xmm_xmm_xmmm128, VEX_Vphsubw_ymm_ymm_ymmm256, integer::phsubw),
    binary!(VEX_Vphsubd_xmm_xmm_xmmm128, VEX_Vphsubd_ymm_ymm_ymmm256, integer::phsubd),
    binary!(VEX_Vphsubsw_xmm_xmm_xmmm128, VEX_Vphsubsw_ymm_ymm_ymmm256, integer::phsubsw),
    binary!(VEX_Vpsadbw_xmm_xmm_xmmm128, VEX_Vpsadbw_ymm_ymm_ymmm256, integer::psadbw),
    binary!(VEX_Vpshufb_xmm_xmm_xmmm128, VEX_Vpshufb_ymm_ymm_ymmm256, integer::pshufb),
    binary!(VEX_Vandps_xmm_xmm_xmmm128, VEX_Vandps_ymm_ymm_ymmm256, integer::pand),
    binary!(VEX_Vandpd_xmm_xmm_xmmm128, VEX_Vandpd_ymm_ymm_ymmm256, integer::pand),
    binary!(VEX_Vandnps_xmm_xmm_xmmm128, VEX_Vandnps_ymm_ymm_ymmm256, integer::pandn),
    binary!(VEX_Vandnpd_xmm_xmm_xmmm128, VEX_Vandnpd_ymm_ymm_ymmm256, integer::pandn),
    binary!(VEX_Vorps_xmm_xmm_xmmm128, VEX_Vorps_ymm_ymm_ymmm256, integer::por),
    binary!(VEX_Vorpd_xmm_xmm_xmmm128, VEX_Vorpd_ymm_ymm_ymmm256, integer::por),
    binary!(VEX_Vxorps_xmm_xmm_xmmm128, VEX_Vxorps_ymm_ymm_ymmm256, integer::pxor),
    binary!(VEX_Vxorpd_xmm_xmm_xmmm128, VEX_Vxorpd_ymm_ymm_ymmm256, integer::pxor),
    binary!(VEX_Vunpcklps_xmm_xmm_xmmm128, VEX_Vunpcklps_ymm_ymm_ymmm256, integer::punpckldq),
    binary!(VEX_Vunpckhps_xmm_xmm_xmmm128, VEX_Vunpckhps_ymm_ymm_ymmm256, integer::punpckhdq),
    binary!(VEX_Vunpcklpd_xmm_xmm_xmmm128, VEX_Vunpcklpd_ymm_ymm_ymmm256, integer::punpcklqdq),
    binary!(VEX_Vunpckhpd_xmm_xmm_xmmm128, VEX_Vunpckhpd_ymm_ymm_ymmm256, integer::punpckhqdq),
    unary!(VEX_Vpabsb_xmm_xmmm128, VEX_Vpabsb_ymm_ymmm256, |b| integer::pabsb(0, b)),
    unary!(VEX_Vpabsw_xmm_xmmm128, VEX_Vpabsw_ymm_ymmm256, |b| integer::pabsw(0, b)),
    unary!(VEX_Vpabsd_xmm_xmmm128, VEX_Vpabsd_ymm_ymmm256, |b| integer::pabsd(0, b)),
    unary!(VEX_Vmovsldup_xmm_xmmm128, VEX_Vmovsldup_ymm_ymmm256, integer::movsldup),
    unary!(VEX_Vmovshdup_xmm_xmmm128, VEX_Vmovshdup_ymm_ymmm256, integer::movshdup),
    shift_by_register!(VEX_Vpsllw_xmm_xmm_xmmm128, VEX_Vpsllw_ymm_ymm_xmmm128, integer::psllw),
    shift_by_register!(VEX_Vpslld_xmm_xmm_xmmm128, VEX_Vpslld_ymm_ymm_xmmm128, integer::pslld),
    shift_by_register!(VEX_Vpsllq_xmm_xmm_xmmm128, VEX_Vpsllq_ymm_ymm_xmmm128, integer::psllq),
    shift_by_register!(VEX_Vpsrlw_xmm_xmm_xmmm128, VEX_Vpsrlw_ymm_ymm_xmmm128, integer::psrlw),
    shift_by_register!(VEX_Vpsrld_xmm_xmm_xmmm128, VEX_Vpsrld_ymm_ymm_xmmm128, integer::psrld),
    shift_by_register!(VEX_Vpsrlq_xmm_xmm_xmmm128, VEX_Vpsrlq_ymm_ymm_xmmm128, integer::psrlq),
    shift_by_register!(VEX_Vpsraw_xmm_xmm_xmmm128, VEX_Vpsraw_ymm_ymm_xmmm128, integer::psraw),
    shift_by_register!(VEX_Vpsrad_xmm_xmm_xmmm128, VEX_Vpsrad_ymm_ymm_xmmm128, integer::psrad),
    shift_by_imm!(VEX_Vpsllw_xmm_xmm_imm8, VEX_Vpsllw_ymm_ymm_imm8, integer::psllw),
    shift_by_imm!(VEX_Vpslld_xmm_xmm_imm8, VEX_Vpslld_ymm_ymm_imm8, integer::pslld),
    shift_by_imm!(VEX_Vpsllq_xmm_xmm_imm8, VEX_Vpsllq_ymm_ymm_imm8, integer::psllq),
    shift_by_imm!(VEX_Vpsrlw_xmm_xmm_imm8, VEX_Vpsrlw_ymm_ymm_imm8, integer::psrlw),
    shift_by_imm!(VEX_Vpsrld_xmm_xmm_imm8, VEX_Vpsrld_ymm_ymm_imm8, integer::psrld),
    shift_by_imm!(VEX_Vpsrlq_xmm_xmm_imm8, VEX_Vpsrlq_ymm_ymm_imm8, integer::psrlq),
    shift_by_imm!(VEX_Vpsraw_xmm_xmm_imm8, VEX_Vpsraw_ymm_ymm_imm8, integer::psraw),
    shift_by_imm!(VEX_Vpsrad_xmm_xmm_imm8, VEX_Vpsrad_ymm_ymm_imm8, integer::psrad),
    shift_by_imm!(VEX_Vpslldq_xmm_xmm_imm8, VEX_Vpslldq_ymm_ymm_imm8, integer::pslldq),
    shift_by_imm!(VEX_Vpsrldq_xmm_xmm_imm8, VEX_Vpsrldq_ymm_ymm_imm8, integer::psrldq),
    binary!(VEX_Vpsllvd_xmm_xmm_xmmm128, VEX_Vpsllvd_ymm_ymm_ymmm256, psllvd),
    binary!(VEX_Vpsllvq_xmm_xmm_xmmm128, VEX_Vpsllvq_ymm_ymm_ymmm256, psllvq),
    binary!(VEX_Vpsrlvd_xmm_xmm_xmmm128, VEX_Vpsrlvd_ymm_ymm_ymmm256, psrlvd),
    binary!(VEX_Vpsrlvq_xmm_xmm_xmmm128, VEX_Vpsrlvq_ymm_ymm_ymmm256, psrlvq),
    binary!(VEX_Vpsravd_xmm_xmm_xmmm128, VEX_Vpsravd_ymm_ymm_ymmm256, psravd),
    with_imm!(
        VEX_Vpalignr_xmm_xmm_xmmm128_imm8,
        VEX_Vpalignr_ymm_ymm_ymmm256_imm8,
        0,
        integer::palignr
    ),
    with_imm!(
        VEX_Vpblendw_xmm_xmm_xmmm128_imm8,
        VEX_Vpblendw_ymm_ymm_ymmm256_imm8,
        0,
        integer::pblendw
    ),
    with_imm!(
        VEX_Vmpsadbw_xmm_xmm_xmmm128_imm8,
        VEX_Vmpsadbw_ymm_ymm_ymmm256_imm8,
        3,
        integer::mpsadbw
    ),
    with_imm!(
        VEX_Vshufps_xmm_xmm_xmmm128_imm8,
        VEX_Vshufps_ymm_ymm_ymmm256_imm8,
        0,
        integer::shufps
    ),
    with_imm!(
        VEX_Vshufpd_xmm_xmm_xmmm128_imm8,
        VEX_Vshufpd_ymm_ymm_ymmm256_imm8,
        2,
        integer::shufpd
    ),
    with_imm!(
        VEX_Vblendps_xmm_xmm_xmmm128_imm8,
        VEX_Vblendps_ymm_ymm_ymmm256_imm8,
        4,
        integer::blendps
    ),
    with_imm!(
        VEX_Vblendpd_xmm_xmm_xmmm128_imm8,
        VEX_Vblendpd_ymm_ymm_ymmm256_imm8,
        2,
        integer::blendpd
    ),
    with_imm!(
        VEX_Vpblendd_xmm_xmm_xmmm128_imm8,
        VEX_Vpblendd_ymm_ymm_ymmm256_imm8,
        4,
        integer::blendps
    ),
    unary_imm!(VEX_Vpshufd_xmm_xmmm128_imm8, VEX_Vpshufd_ymm_ymmm256_imm8, 0, integer::pshufd),
    unary_imm!(VEX_Vpshuflw_xmm_xmmm128_imm8, VEX_Vpshuflw_ymm_ymmm256_imm8, 0, integer::pshuflw),
    unary_imm!(VEX_Vpshufhw_xmm_xmmm128_imm8, VEX_Vpshufhw_ymm_ymmm256_imm8, 0, integer::pshufhw),
    unary_imm!(VEX_Vpermilps_xmm_xmmm128_imm8, VEX_Vpermilps_ymm_ymmm256_imm8, 0, integer::pshufd),
    unary_imm!(VEX_Vpermilpd_xmm_xmmm128_imm8, VEX_Vpermilpd_ymm_ymmm256_imm8, 2, permil_64_imm),
    binary!(VEX_Vpermilps_xmm_xmm_xmmm128, VEX_Vpermilps_ymm_ymm_ymmm256, permil_32),
    binary!(VEX_Vpermilpd_xmm_xmm_xmmm128, VEX_Vpermilpd_ymm_ymm_ymmm256, permil_64),
    blend_by_register!(
        VEX_Vpblendvb_xmm_xmm_xmmm128_xmm,
        VEX_Vpblendvb_ymm_ymm_ymmm256_ymm,
        integer::pblendvb
    ),
    blend_by_register!(
        VEX_Vblendvps_xmm_xmm_xmmm128_xmm,
        VEX_Vblendvps_ymm_ymm_ymmm256_ymm,
        integer::blendvps
    ),
    blend_by_register!(
        VEX_Vblendvpd_xmm_xmm_xmmm128_xmm,
        VEX_Vblendvpd_ymm_ymm_ymmm256_ymm,
        integer::blendvpd
    ),
    extend!(VEX_Vpmovsxbw_xmm_xmmm64, VEX_Vpmovsxbw_ymm_xmmm128, u64, u128, integer::pmovsxbw),
    extend!(VEX_Vpmovzxbw_xmm_xmmm64, VEX_Vpmovzxbw_ymm_xmmm128, u64, u128, integer::pmovzxbw),
    extend!(VEX_Vpmovsxbd_xmm_xmmm32, VEX_Vpmovsxbd_ymm_xmmm64, u32, u64, integer::pmovsxbd),
    extend!(VEX_Vpmovzxbd_xmm_xmmm32, VEX_Vpmovzxbd_ymm_xmmm64, u32, u64, integer::pmovzxbd),
    extend!(VEX_Vpmovsxbq_xmm_xmmm16, VEX_Vpmovsxbq_ymm_xmmm32, u16, u32, integer::pmovsxbq),
    extend!(VEX_Vpmovzxbq_xmm_xmmm16, VEX_Vpmovzxbq_ymm_xmmm32, u16, u32, integer::pmovzxbq),
    extend!(VEX_Vpmovsxwd_xmm_xmmm64, VEX_Vpmovsxwd_ymm_xmmm128, u64, u128, integer::pmovsxwd),
    extend!(VEX_Vpmovzxwd_xmm_xmmm64, VEX_Vpmovzxwd_ymm_xmmm128, u64, u128, integer::pmovzxwd),
    extend!(VEX_Vpmovsxwq_xmm_xmmm32, VEX_Vpmovsxwq_ymm_xmmm64, u32, u64, integer::pmovsxwq),
    extend!(VEX_Vpmovzxwq_xmm_xmmm32, VEX_Vpmovzxwq_ymm_xmmm64, u32, u64, integer::pmovzxwq),
    extend!(VEX_Vpmovsxdq_xmm_xmmm64, VEX_Vpmovsxdq_ymm_xmmm128, u64, u128, integer::pmovsxdq),
    extend!(VEX_Vpmovzxdq_xmm_xmmm64, VEX_Vpmovzxdq_ymm_xmmm128, u64, u128, integer::pmovzxdq),
    tests!(VEX_Vptest_xmm_xmmm128, VEX_Vptest_ymm_ymmm256, u128::MAX),
    tests!(VEX_Vtestps_xmm_xmmm128, VEX_Vtestps_ymm_ymmm256, SIGNS_32),
    tests!(VEX_Vtestpd_xmm_xmmm128, VEX_Vtestpd_ymm_ymmm256, SIGNS_64),
];

/// The forms that come in one.
pub(super) const FORMS: &[Form] = &[
    two_operands!(VEX_Vphminposuw_xmm_xmmm128, u128, |_, _, b| integer::phminposuw(b)),
    three_operands!(VEX_Vaesenc_xmm_xmm_xmmm128, u128, |_, _, a, b| crypto::aesenc(a, b)),
    three_operands!(VEX_Vaesenclast_xmm_xmm_xmmm128, u128, |_, _, a, b| crypto::aesenclast(a, b)),
    three_operands!(VEX_Vaesdec_xmm_xmm_xmmm128, u128, |_, _, a, b| crypto::aesdec(a, b)),
    three_operands!(VEX_Vaesdeclast_xmm_xmm_xmmm128, u128, |_, _, a, b| crypto::aesdeclast(a, b)),
    two_operands!(VEX_Vaesimc_xmm_xmmm128, u128, |_, _, b| crypto::aesimc(b)),
    two_operands!(VEX_Vaeskeygenassist_xmm_xmmm128_imm8, u128, |_, op: &Op, b| {
        crypto::aeskeygenassist(b, op.imm as u8)
    }),
    three_operands!(VEX_Vpclmulqdq_xmm_xmm_xmmm128_imm8, u128, |_, op: &Op, a, b| {
        crypto::pclmulqdq(a, b, op.imm as u8)
    }),
    across!(VEX_Vpermd_ymm_ymm_ymmm256, |a, b, _imm| permute_32(a, b)),
    across!(VEX_Vpermps_ymm_ymm_ymmm256, |a, b, _imm| permute_32(a, b)),
    across!(VEX_Vpermq_ymm_ymmm256_imm8, |_a, b, imm| permute_64(b, imm)),
    across!(VEX_Vpermpd_ymm_ymmm256_imm8, |_a, b, imm| permute_64(b, imm)),
    across!(VEX_Vperm2f128_ymm_ymm_ymmm256_imm8, |a, b, imm| permute_128(a, b, imm)),
    across!(VEX_Vperm2i128_ymm_ymm_ymmm256_imm8, |a, b, imm| permute_128(a, b, imm)),
];
