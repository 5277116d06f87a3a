//! Moves, broadcasts, inserts and extracts, string comparisons, and what clears registers.

use x86::iced::Code;

use super::{Vector, Ymm, avx, two_operands};
use crate::Cpu;
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::sse::forms::{self, merge_low_32, merge_low_64, movhlps, movhps, set_string_flags};
use crate::sse::lanes::Lane;
use crate::sse::{integer, xmm};

fn move_reg<V: Vector>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    V::get(cpu, op, 1).set(cpu, op, 0);
    Ok(())
}

/// A whole register from a register or memory, aligned or not as the method says.
macro_rules! move_in {
    ($code:ident, $length:ty, $method:ident) => {
        avx!($code, move_reg::<$length>, |cpu, env, op| {
            let source = cpu.$method::<$length>(env, op)?;
            source.set(cpu, op, 0);
            Ok(())
        })
    };
}

/// A whole register to a register or memory.
macro_rules! move_out {
    ($code:ident, $length:ty, $method:ident) => {
        avx!($code, move_reg::<$length>, |cpu, env, op| {
            let value = <$length>::get(cpu, op, 1);
            cpu.$method(env, op, value)
        })
    };
}

/// `xmm = f(xmm, xmm)`.
macro_rules! merge {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            $f(xmm(cpu, op, 1), xmm(cpu, op, 2)).set(cpu, op, 0);
            Ok(())
        })
        .gated(Gate::Avx)
    };
}

/// `xmm = f(xmm, m64)`.
macro_rules! merge_from_memory {
    ($code:ident, $f:expr) => {
        Form::mem(Code::$code, |cpu, env, op| {
            let source = cpu.load::<u64>(env, op)?;
            $f(xmm(cpu, op, 1), u128::from(source)).set(cpu, op, 0);
            Ok(())
        })
        .gated(Gate::Avx)
    };
}

/// The low lane from a general register, an XMM register or memory; the rest becomes 0.
macro_rules! low_lane {
    ($code:ident, $width:ty, $register:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let value: u128 = $register(cpu, op);
                u128::from(value as $width).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let value = cpu.load::<$width>(env, op)?;
                u128::from(value).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

fn from_gpr(cpu: &Cpu, op: &Op) -> u128 {
    u128::from(cpu.gpr(op.r[1]))
}

fn from_xmm(cpu: &Cpu, op: &Op) -> u128 {
    xmm(cpu, op, 1)
}

/// The low lane to an XMM register, with the rest 0, or to memory.
macro_rules! low_lane_out {
    ($code:ident, $width:ty) => {
        avx!(
            $code,
            |cpu, _, op| {
                let value = xmm(cpu, op, 1) as $width;
                u128::from(value).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let value = xmm(cpu, op, 1) as $width;
                cpu.store(env, op, value)
            }
        )
    };
}

/// `xmm = f(xmm, r/m, imm8)`: one lane replaced.
macro_rules! insert {
    ($code:ident, $width:ty, $f:expr) => {
        avx!(
            $code,
            |cpu, _, op| {
                let value = cpu.gpr(op.r[2]) as $width;
                $f(xmm(cpu, op, 1), value, op.imm as u8).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let value = cpu.load::<$width>(env, op)?;
                $f(xmm(cpu, op, 1), value, op.imm as u8).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

fn insertps_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let control = op.imm as u8;
    let value = integer::extract_dword(xmm(cpu, op, 2), control >> 6);
    integer::insertps(xmm(cpu, op, 1), value, control).set(cpu, op, 0);
    Ok(())
}

fn insertps_mem(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.load::<u32>(env, op)?;
    integer::insertps(xmm(cpu, op, 1), value, op.imm as u8).set(cpu, op, 0);
    Ok(())
}

/// One lane of an XMM register or of memory in every lane.
macro_rules! broadcast {
    ($code:ident, $length:ty, $lane:ty) => {
        avx!(
            $code,
            |cpu, _, op| {
                let lane = xmm(cpu, op, 1) as $lane;
                <$length>::filled(repeated(lane)).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let lane = cpu.load::<$lane>(env, op)?;
                <$length>::filled(repeated(lane)).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

fn repeated<L: Lane>(lane: L) -> u128 {
    L::map(0, |_| lane)
}

/// A vector whose halves are equal.
trait Filled {
    fn filled(half: u128) -> Self;
}

impl Filled for u128 {
    #[inline(always)]
    fn filled(half: u128) -> u128 {
        half
    }
}

impl Filled for Ymm {
    #[inline(always)]
    fn filled(half: u128) -> Ymm {
        [half; 2]
    }
}

fn broadcast_128(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let half = cpu.load::<u128>(env, op)?;
    Ymm::filled(half).set(cpu, op, 0);
    Ok(())
}

fn insert_half(cpu: &mut Cpu, op: &Op, half: u128) {
    let mut value = Ymm::get(cpu, op, 1);
    value[(op.imm & 1) as usize] = half;
    value.set(cpu, op, 0);
}

/// VINSERTF128 and VINSERTI128.
macro_rules! insert_128 {
    ($code:ident) => {
        avx!(
            $code,
            |cpu, _, op| {
                insert_half(cpu, op, xmm(cpu, op, 2));
                Ok(())
            },
            |cpu, env, op| {
                let half = cpu.load::<u128>(env, op)?;
                insert_half(cpu, op, half);
                Ok(())
            }
        )
    };
}

/// VEXTRACTF128 and VEXTRACTI128.
macro_rules! extract_128 {
    ($code:ident) => {
        avx!(
            $code,
            |cpu, _, op| {
                Ymm::get(cpu, op, 1)[(op.imm & 1) as usize].set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let half = Ymm::get(cpu, op, 1)[(op.imm & 1) as usize];
                cpu.store(env, op, half)
            }
        )
    };
}

/// A general register gets the top bits of a register's lanes; each half has `$lanes` of them.
macro_rules! mask_of_ymm {
    ($code:ident, $lanes:literal, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            let [low, high] = Ymm::get(cpu, op, 1);
            cpu.set_gpr(op.r[0], $f(low) | $f(high) << $lanes);
            Ok(())
        })
        .gated(Gate::Avx)
    };
}

/// The registers that the mode has.
fn register_count(cpu: &Cpu) -> usize {
    if cpu.is_64_bit() { 16 } else { 8 }
}

fn vzeroupper(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let count = register_count(cpu);
    cpu.sse.ymm_high[..count].fill(0);
    Ok(())
}

fn vzeroall(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let count = register_count(cpu);
    cpu.sse.xmm[..count].fill(0);
    vzeroupper(cpu, env, op)
}

fn leave_mask(cpu: &mut Cpu, op: &Op, compared: &crate::sse::StringCompare) {
    set_string_flags(cpu, compared);
    cpu.sse.xmm[0] = compared.mask(op.imm as u8);
    cpu.sse.ymm_high[0] = 0;
}

use forms::{compare_explicit, compare_implicit, leave_index};

/// The forms of this module.
pub(super) const FORMS: &[Form] = &[
    move_in!(VEX_Vmovups_xmm_xmmm128, u128, load),
    move_out!(VEX_Vmovups_xmmm128_xmm, u128, store),
    move_in!(VEX_Vmovups_ymm_ymmm256, Ymm, load),
    move_out!(VEX_Vmovups_ymmm256_ymm, Ymm, store),
    move_in!(VEX_Vmovupd_xmm_xmmm128, u128, load),
    move_out!(VEX_Vmovupd_xmmm128_xmm, u128, store),
    move_in!(VEX_Vmovupd_ymm_ymmm256, Ymm, load),
    move_out!(VEX_Vmovupd_ymmm256_ymm, Ymm, store),
    move_in!(VEX_Vmovdqu_xmm_xmmm128, u128, load),
    move_out!(VEX_Vmovdqu_xmmm128_xmm, u128, store),
    move_in!(VEX_Vmovdqu_ymm_ymmm256, Ymm, load),
    move_out!(VEX_Vmovdqu_ymmm256_ymm, Ymm, store),
    move_in!(VEX_Vmovaps_xmm_xmmm128, u128, load_aligned),
    move_out!(VEX_Vmovaps_xmmm128_xmm, u128, store_aligned),
    move_in!(VEX_Vmovaps_ymm_ymmm256, Ymm, load_aligned),
    move_out!(VEX_Vmovaps_ymmm256_ymm, Ymm, store_aligned),
    move_in!(VEX_Vmovapd_xmm_xmmm128, u128, load_aligned),
    move_out!(VEX_Vmovapd_xmmm128_xmm, u128, store_aligned),
    move_in!(VEX_Vmovapd_ymm_ymmm256, Ymm, load_aligned),
    move_out!(VEX_Vmovapd_ymmm256_ymm, Ymm, store_aligned),
    move_in!(VEX_Vmovdqa_xmm_xmmm128, u128, load_aligned),
    move_out!(VEX_Vmovdqa_xmmm128_xmm, u128, store_aligned),
    move_in!(VEX_Vmovdqa_ymm_ymmm256, Ymm, load_aligned),
    move_out!(VEX_Vmovdqa_ymmm256_ymm, Ymm, store_aligned),
    move_in!(VEX_Vlddqu_xmm_m128, u128, load),
    move_in!(VEX_Vmovntdqa_xmm_m128, u128, load_aligned),
    move_out!(VEX_Vmovntps_m128_xmm, u128, store_aligned),
    move_out!(VEX_Vmovntpd_m128_xmm, u128, store_aligned),
    move_out!(VEX_Vmovntdq_m128_xmm, u128, store_aligned),
    move_in!(VEX_Vlddqu_ymm_m256, Ymm, load),
    move_in!(VEX_Vmovntdqa_ymm_m256, Ymm, load_aligned),
    move_out!(VEX_Vmovntps_m256_ymm, Ymm, store_aligned),
    move_out!(VEX_Vmovntpd_m256_ymm, Ymm, store_aligned),
    move_out!(VEX_Vmovntdq_m256_ymm, Ymm, store_aligned),
    merge!(VEX_Vmovss_xmm_xmm_xmm, merge_low_32),
    merge!(VEX_Vmovss_xmm_xmm_xmm_0F11, merge_low_32),
    low_lane!(VEX_Vmovss_xmm_m32, u32, from_xmm),
    low_lane_out!(VEX_Vmovss_m32_xmm, u32),
    merge!(VEX_Vmovsd_xmm_xmm_xmm, merge_low_64),
    merge!(VEX_Vmovsd_xmm_xmm_xmm_0F11, merge_low_64),
    low_lane!(VEX_Vmovsd_xmm_m64, u64, from_xmm),
    low_lane_out!(VEX_Vmovsd_m64_xmm, u64),
    merge!(VEX_Vmovhlps_xmm_xmm_xmm, movhlps),
    merge!(VEX_Vmovlhps_xmm_xmm_xmm, movhps),
    merge_from_memory!(VEX_Vmovlps_xmm_xmm_m64, merge_low_64),
    merge_from_memory!(VEX_Vmovhps_xmm_xmm_m64, movhps),
    low_lane_out!(VEX_Vmovlps_m64_xmm, u64),
    forms::store!(VEX_Vmovhps_m64_xmm, store, forms::high_64).gated(Gate::Avx),
    merge_from_memory!(VEX_Vmovlpd_xmm_xmm_m64, merge_low_64),
    merge_from_memory!(VEX_Vmovhpd_xmm_xmm_m64, movhps),
    low_lane_out!(VEX_Vmovlpd_m64_xmm, u64),
    forms::store!(VEX_Vmovhpd_m64_xmm, store, forms::high_64).gated(Gate::Avx),
    low_lane!(VEX_Vmovd_xmm_rm32, u32, from_gpr),
    low_lane!(VEX_Vmovq_xmm_rm64, u64, from_gpr),
    low_lane!(VEX_Vmovq_xmm_xmmm64, u64, from_xmm),
    low_lane_out!(VEX_Vmovq_xmmm64_xmm, u64),
    forms::extract!(VEX_Vmovd_rm32_xmm, u32, |a, _| forms::low_32(a)).gated(Gate::Avx),
    forms::extract!(VEX_Vmovq_rm64_xmm, u64, |a, _| forms::low_64(a)).gated(Gate::Avx),
    avx!(
        VEX_Vmovddup_xmm_xmmm64,
        |cpu, _, op| {
            integer::movddup(xmm(cpu, op, 1)).set(cpu, op, 0);
            Ok(())
        },
        |cpu, env, op| {
            let source = cpu.load::<u64>(env, op)?;
            integer::movddup(u128::from(source)).set(cpu, op, 0);
            Ok(())
        }
    ),
    two_operands!(VEX_Vmovddup_ymm_ymmm256, Ymm, |_, _, b| integer::movddup(b)),
    broadcast!(VEX_Vpbroadcastb_xmm_xmmm8, u128, u8),
    broadcast!(VEX_Vpbroadcastb_ymm_xmmm8, Ymm, u8),
    broadcast!(VEX_Vpbroadcastw_xmm_xmmm16, u128, u16),
    broadcast!(VEX_Vpbroadcastw_ymm_xmmm16, Ymm, u16),
    broadcast!(VEX_Vpbroadcastd_xmm_xmmm32, u128, u32),
    broadcast!(VEX_Vpbroadcastd_ymm_xmmm32, Ymm, u32),
    broadcast!(VEX_Vpbroadcastq_xmm_xmmm64, u128, u64),
    broadcast!(VEX_Vpbroadcastq_ymm_xmmm64, Ymm, u64),
    broadcast!(VEX_Vbroadcastss_xmm_m32, u128, u32),
    broadcast!(VEX_Vbroadcastss_ymm_m32, Ymm, u32),
    broadcast!(VEX_Vbroadcastsd_ymm_m64, Ymm, u64),
    broadcast!(VEX_Vbroadcastss_xmm_xmm, u128, u32),
    broadcast!(VEX_Vbroadcastss_ymm_xmm, Ymm, u32),
    broadcast!(VEX_Vbroadcastsd_ymm_xmm, Ymm, u64),
    Form::mem(Code::VEX_Vbroadcastf128_ymm_m128, broadcast_128).gated(Gate::Avx),
    insert_128!(VEX_Vinsertf128_ymm_ymm_xmmm128_imm8),
    extract_128!(VEX_Vextractf128_xmmm128_ymm_imm8),
    Form::mem(Code::VEX_Vbroadcasti128_ymm_m128, broadcast_128).gated(Gate::Avx),
    insert_128!(VEX_Vinserti128_ymm_ymm_xmmm128_imm8),
    extract_128!(VEX_Vextracti128_xmmm128_ymm_imm8),
    insert!(VEX_Vpinsrb_xmm_xmm_r32m8_imm8, u8, integer::insert_byte),
    insert!(VEX_Vpinsrw_xmm_xmm_r32m16_imm8, u16, integer::insert_word),
    forms::extract!(VEX_Vpextrb_r32m8_xmm_imm8, u8, integer::extract_byte).gated(Gate::Avx),
    forms::extract!(VEX_Vpextrw_r32m16_xmm_imm8, u16, integer::extract_word).gated(Gate::Avx),
    forms::to_gpr!(VEX_Vpextrw_r32_xmm_imm8, |a, i| integer::extract_word(a, i).into())
        .gated(Gate::Avx),
    forms::to_gpr!(VEX_Vpmovmskb_r32_xmm, |a, _| integer::pmovmskb(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vpmovmskb_r32_ymm, 16, integer::pmovmskb),
    forms::to_gpr!(VEX_Vmovmskps_r32_xmm, |a, _| integer::movmskps(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vmovmskps_r32_ymm, 4, integer::movmskps),
    forms::to_gpr!(VEX_Vmovmskpd_r32_xmm, |a, _| integer::movmskpd(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vmovmskpd_r32_ymm, 2, integer::movmskpd),
    insert!(VEX_Vpinsrb_xmm_xmm_r64m8_imm8, u8, integer::insert_byte),
    insert!(VEX_Vpinsrw_xmm_xmm_r64m16_imm8, u16, integer::insert_word),
    forms::extract!(VEX_Vpextrb_r64m8_xmm_imm8, u8, integer::extract_byte).gated(Gate::Avx),
    forms::extract!(VEX_Vpextrw_r64m16_xmm_imm8, u16, integer::extract_word).gated(Gate::Avx),
    forms::to_gpr!(VEX_Vpextrw_r64_xmm_imm8, |a, i| integer::extract_word(a, i).into())
        .gated(Gate::Avx),
    forms::to_gpr!(VEX_Vpmovmskb_r64_xmm, |a, _| integer::pmovmskb(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vpmovmskb_r64_ymm, 16, integer::pmovmskb),
    forms::to_gpr!(VEX_Vmovmskps_r64_xmm, |a, _| integer::movmskps(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vmovmskps_r64_ymm, 4, integer::movmskps),
    forms::to_gpr!(VEX_Vmovmskpd_r64_xmm, |a, _| integer::movmskpd(a)).gated(Gate::Avx),
    mask_of_ymm!(VEX_Vmovmskpd_r64_ymm, 2, integer::movmskpd),
    insert!(VEX_Vpinsrd_xmm_xmm_rm32_imm8, u32, integer::insert_dword),
    insert!(VEX_Vpinsrq_xmm_xmm_rm64_imm8, u64, integer::insert_qword),
    forms::extract!(VEX_Vpextrd_rm32_xmm_imm8, u32, integer::extract_dword).gated(Gate::Avx),
    forms::extract!(VEX_Vpextrq_rm64_xmm_imm8, u64, integer::extract_qword).gated(Gate::Avx),
    forms::extract!(VEX_Vextractps_rm32_xmm_imm8, u32, integer::extract_dword).gated(Gate::Avx),
    forms::extract!(VEX_Vextractps_r64m32_xmm_imm8, u32, integer::extract_dword).gated(Gate::Avx),
    avx!(VEX_Vinsertps_xmm_xmm_xmmm32_imm8, insertps_reg, insertps_mem),
    Form::reg(Code::VEX_Vzeroupper, vzeroupper).gated(Gate::Avx),
    Form::reg(Code::VEX_Vzeroall, vzeroall).gated(Gate::Avx),
    Form::mem(Code::VEX_Vldmxcsr_m32, forms::ldmxcsr).gated(Gate::Avx),
    Form::mem(Code::VEX_Vstmxcsr_m32, forms::stmxcsr).gated(Gate::Avx),
    Form::any(Code::VEX_Vmaskmovdqu_rDI_xmm_xmm, forms::maskmovdqu).gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpestrm_xmm_xmmm128_imm8, leave_mask, |c, o, b| {
        compare_explicit(c, o, b, false)
    })
    .gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpestrm64_xmm_xmmm128_imm8, leave_mask, |c, o, b| {
        compare_explicit(c, o, b, true)
    })
    .gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpistrm_xmm_xmmm128_imm8, leave_mask, compare_implicit).gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpestri_xmm_xmmm128_imm8, leave_index, |c, o, b| {
        compare_explicit(c, o, b, false)
    })
    .gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpestri64_xmm_xmmm128_imm8, leave_index, |c, o, b| {
        compare_explicit(c, o, b, true)
    })
    .gated(Gate::Avx),
    forms::strings!(VEX_Vpcmpistri_xmm_xmmm128_imm8, leave_index, compare_implicit)
        .gated(Gate::Avx),
];
