//! MMX, and the SSE forms that touch MMX registers.
//!
//! MM0 to MM7 are the significands of the x87's physical registers. Every instruction here sets
//! TOP to 0 and (but for EMMS) marks all registers full; a write also sets sign and exponent to ones.
//! A pending x87 exception is raised first; the x87 has left by the time that #XM or a fault in
//! MASKMOVQ is raised. The lanes' arithmetic is that of `sse::integer`.

use x86::iced::Code;

use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::softfloat::FpEnv;
use crate::sse::{Source, compute, float, integer, masked_store, set_xmm, xmm};
use crate::{Cpu, F80};

/// Operand `n`, an MMX register, zero-extended.
#[inline(always)]
fn mm(cpu: &Cpu, op: &Op, n: usize) -> u128 {
    u128::from(cpu.x87.regs[usize::from(op.r[n] & 7)].significand)
}

#[inline(always)]
fn set_mm(cpu: &mut Cpu, op: &Op, n: usize, value: u128) {
    cpu.x87.regs[usize::from(op.r[n] & 7)] =
        F80 { significand: value as u64, sign_exponent: 0xffff };
}

/// The transition from x87 to MMX.
#[inline(always)]
fn enter(cpu: &mut Cpu) {
    cpu.x87.set_top(0);
    cpu.x87.full = 0xff;
}

/// `mm = f(mm, mm/m)`.
macro_rules! binary {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                enter(cpu);
                let result = $f(mm(cpu, op, 0), mm(cpu, op, 1));
                set_mm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                cpu.raise_pending_x87()?;
                let source = <$width>::fetch(cpu, env, op)?;
                enter(cpu);
                let result = $f(mm(cpu, op, 0), source);
                set_mm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Mmx)
    };
    ($code:ident, $f:expr) => {
        binary!($code, u64, $f)
    };
}

/// `mm = f(mm, mm/m64, imm8)`.
macro_rules! with_imm {
    ($code:ident, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                enter(cpu);
                let result = $f(mm(cpu, op, 0), mm(cpu, op, 1), op.imm as u8);
                set_mm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                cpu.raise_pending_x87()?;
                let source = u64::fetch(cpu, env, op)?;
                enter(cpu);
                let result = $f(mm(cpu, op, 0), source, op.imm as u8);
                set_mm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Mmx)
    };
}

/// `mm = f(mm, imm8)`.
macro_rules! shift {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            cpu.raise_pending_x87()?;
            enter(cpu);
            let result = $f(mm(cpu, op, 0), u128::from(op.imm as u8));
            set_mm(cpu, op, 0, result);
            Ok(())
        })
        .gated(Gate::Mmx)
    };
}

macro_rules! move_in {
    ($code:ident) => {
        binary!($code, |_: u128, b: u128| b)
    };
}

macro_rules! move_out {
    ($code:ident) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                enter(cpu);
                let source = mm(cpu, op, 1);
                set_mm(cpu, op, 0, source);
                Ok(())
            },
            store_mm,
        )
        .gated(Gate::Mmx)
    };
}

/// From a general register or memory, zero-extended.
macro_rules! insert_low {
    ($code:ident, $width:ty) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                enter(cpu);
                let value = cpu.gpr(op.r[1]) as $width;
                set_mm(cpu, op, 0, value.into());
                Ok(())
            },
            |cpu, env, op| {
                cpu.raise_pending_x87()?;
                let source = <$width>::fetch(cpu, env, op)?;
                enter(cpu);
                set_mm(cpu, op, 0, source);
                Ok(())
            },
        )
        .gated(Gate::Mmx)
    };
}

/// To a general register or memory.
macro_rules! extract_low {
    ($code:ident, $width:ty) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                enter(cpu);
                let value = mm(cpu, op, 1) as $width;
                cpu.set_gpr(op.r[0], value.into());
                Ok(())
            },
            |cpu, env, op| {
                cpu.raise_pending_x87()?;
                cpu.store(env, op, mm(cpu, op, 1) as $width)?;
                enter(cpu);
                Ok(())
            },
        )
        .gated(Gate::Mmx)
    };
}

macro_rules! to_gpr {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            cpu.raise_pending_x87()?;
            enter(cpu);
            let value: u64 = $f(mm(cpu, op, 1), op.imm as u8);
            cpu.set_gpr(op.r[0], value);
            Ok(())
        })
        .gated(Gate::Mmx)
    };
}

/// A conversion of floating-point lanes to an MMX register.
macro_rules! to_mm {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                cpu.raise_pending_x87()?;
                let b = xmm(cpu, op, 1);
                enter(cpu);
                let result = compute(cpu, |fp| $f(fp, b))?;
                set_mm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                cpu.raise_pending_x87()?;
                let b = <$width>::fetch(cpu, env, op)?;
                enter(cpu);
                let result = compute(cpu, |fp| $f(fp, b))?;
                set_mm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

fn store_mm(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    cpu.store(env, op, mm(cpu, op, 1) as u64)?;
    enter(cpu);
    Ok(())
}

fn maskmovq(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let (value, mask) = (mm(cpu, op, 1), mm(cpu, op, 2));
    enter(cpu);
    masked_store(cpu, env, op, value, mask)
}

/// EMMS: all registers empty, TOP 0.
fn emms(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    cpu.x87.set_top(0);
    cpu.x87.full = 0;
    Ok(())
}

fn pinsrw_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    enter(cpu);
    let value = cpu.gpr(op.r[1]) as u16;
    let result = integer::insert_word(mm(cpu, op, 0), value, op.imm as u8 & 3);
    set_mm(cpu, op, 0, result);
    Ok(())
}

fn pinsrw_mem(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let value = cpu.load::<u16>(env, op)?;
    enter(cpu);
    let result = integer::insert_word(mm(cpu, op, 0), value, op.imm as u8 & 3);
    set_mm(cpu, op, 0, result);
    Ok(())
}

fn movq2dq(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    enter(cpu);
    let source = mm(cpu, op, 1);
    set_xmm(cpu, op, 0, source);
    Ok(())
}

fn movdq2q(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    enter(cpu);
    let source = xmm(cpu, op, 1);
    set_mm(cpu, op, 0, source);
    Ok(())
}

/// Two integers into the low lanes, the high lanes kept.
fn cvtpi2ps(cpu: &mut Cpu, op: &Op, b: u128) -> Result<(), Fault> {
    let a = xmm(cpu, op, 0);
    enter(cpu);
    let result = compute(cpu, |fp: &mut FpEnv| float::cvtpi2ps(fp, a, b))?;
    set_xmm(cpu, op, 0, result);
    Ok(())
}

fn cvtpi2ps_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let b = mm(cpu, op, 1);
    cvtpi2ps(cpu, op, b)
}

fn cvtpi2ps_mem(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let b = u64::fetch(cpu, env, op)?;
    cvtpi2ps(cpu, op, b)
}

fn cvtpi2pd_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.raise_pending_x87()?;
    let b = mm(cpu, op, 1);
    enter(cpu);
    let result = compute(cpu, |fp| float::cvtdq2pd(fp, b))?;
    set_xmm(cpu, op, 0, result);
    Ok(())
}

/// From memory this one instruction leaves the x87 alone.
fn cvtpi2pd_mem(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let b = u64::fetch(cpu, env, op)?;
    let result = compute(cpu, |fp| float::cvtdq2pd(fp, b))?;
    set_xmm(cpu, op, 0, result);
    Ok(())
}

/// Every form with an MMX register.
pub(crate) const FORMS: &[Form] = &[
    move_in!(Movq_mm_mmm64),
    insert_low!(Movd_mm_rm32, u32),
    insert_low!(Movq_mm_rm64, u64),
    move_out!(Movq_mmm64_mm),
    extract_low!(Movd_rm32_mm, u32),
    extract_low!(Movq_rm64_mm, u64),
    Form::mem(Code::Movntq_m64_mm, store_mm).gated(Gate::Mmx),
    Form::any(Code::Maskmovq_rDI_mm_mm, maskmovq).gated(Gate::Mmx),
    Form::reg(Code::Emms, emms).gated(Gate::Mmx),
    binary!(Paddb_mm_mmm64, integer::paddb),
    binary!(Paddw_mm_mmm64, integer::paddw),
    binary!(Paddd_mm_mmm64, integer::paddd),
    binary!(Paddq_mm_mmm64, integer::paddq),
    binary!(Paddsb_mm_mmm64, integer::paddsb),
    binary!(Paddsw_mm_mmm64, integer::paddsw),
    binary!(Paddusb_mm_mmm64, integer::paddusb),
    binary!(Paddusw_mm_mmm64, integer::paddusw),
    binary!(Psubb_mm_mmm64, integer::psubb),
    binary!(Psubw_mm_mmm64, integer::psubw),
    binary!(Psubd_mm_mmm64, integer::psubd),
    binary!(Psubq_mm_mmm64, integer::psubq),
    binary!(Psubsb_mm_mmm64, integer::psubsb),
    binary!(Psubsw_mm_mmm64, integer::psubsw),
    binary!(Psubusb_mm_mmm64, integer::psubusb),
    binary!(Psubusw_mm_mmm64, integer::psubusw),
    binary!(Pmullw_mm_mmm64, integer::pmullw),
    binary!(Pmulhw_mm_mmm64, integer::pmulhw),
    binary!(Pmulhuw_mm_mmm64, integer::pmulhuw),
    binary!(Pmulhrsw_mm_mmm64, integer::pmulhrsw),
    binary!(Pmuludq_mm_mmm64, integer::pmuludq),
    binary!(Pmaddwd_mm_mmm64, integer::pmaddwd),
    binary!(Pmaddubsw_mm_mmm64, integer::pmaddubsw),
    binary!(Pcmpeqb_mm_mmm64, integer::pcmpeqb),
    binary!(Pcmpeqw_mm_mmm64, integer::pcmpeqw),
    binary!(Pcmpeqd_mm_mmm64, integer::pcmpeqd),
    binary!(Pcmpgtb_mm_mmm64, integer::pcmpgtb),
    binary!(Pcmpgtw_mm_mmm64, integer::pcmpgtw),
    binary!(Pcmpgtd_mm_mmm64, integer::pcmpgtd),
    binary!(Pavgb_mm_mmm64, integer::pavgb),
    binary!(Pavgw_mm_mmm64, integer::pavgw),
    binary!(Pminub_mm_mmm64, integer::pminub),
    binary!(Pminsw_mm_mmm64, integer::pminsw),
    binary!(Pmaxub_mm_mmm64, integer::pmaxub),
    binary!(Pmaxsw_mm_mmm64, integer::pmaxsw),
    binary!(Psignb_mm_mmm64, integer::psignb),
    binary!(Psignw_mm_mmm64, integer::psignw),
    binary!(Psignd_mm_mmm64, integer::psignd),
    binary!(Pabsb_mm_mmm64, integer::pabsb),
    binary!(Pabsw_mm_mmm64, integer::pabsw),
    binary!(Pabsd_mm_mmm64, integer::pabsd),
    binary!(Pand_mm_mmm64, integer::pand),
    binary!(Pandn_mm_mmm64, integer::pandn),
    binary!(Por_mm_mmm64, integer::por),
    binary!(Pxor_mm_mmm64, integer::pxor),
    binary!(Psllw_mm_mmm64, integer::psllw),
    binary!(Pslld_mm_mmm64, integer::pslld),
    binary!(Psllq_mm_mmm64, integer::psllq),
    binary!(Psrlw_mm_mmm64, integer::psrlw),
    binary!(Psrld_mm_mmm64, integer::psrld),
    binary!(Psrlq_mm_mmm64, integer::psrlq),
    binary!(Psraw_mm_mmm64, integer::psraw),
    binary!(Psrad_mm_mmm64, integer::psrad),
    binary!(Psadbw_mm_mmm64, integer::psadbw),
    binary!(Packsswb_mm_mmm64, integer::packsswb_mmx),
    binary!(Packssdw_mm_mmm64, integer::packssdw_mmx),
    binary!(Packuswb_mm_mmm64, integer::packuswb_mmx),
    binary!(Phaddw_mm_mmm64, integer::phaddw_mmx),
    binary!(Phaddd_mm_mmm64, integer::phaddd_mmx),
    binary!(Phaddsw_mm_mmm64, integer::phaddsw_mmx),
    binary!(Phsubw_mm_mmm64, integer::phsubw_mmx),
    binary!(Phsubd_mm_mmm64, integer::phsubd_mmx),
    binary!(Phsubsw_mm_mmm64, integer::phsubsw_mmx),
    binary!(Pshufb_mm_mmm64, integer::pshufb_mmx),
    binary!(Punpckhbw_mm_mmm64, integer::punpckhbw_mmx),
    binary!(Punpckhwd_mm_mmm64, integer::punpckhwd_mmx),
    binary!(Punpckhdq_mm_mmm64, integer::punpckhdq_mmx),
    binary!(Punpcklbw_mm_mmm32, u32, integer::punpcklbw),
    binary!(Punpcklwd_mm_mmm32, u32, integer::punpcklwd),
    binary!(Punpckldq_mm_mmm32, u32, integer::punpckldq),
    shift!(Psllw_mm_imm8, integer::psllw),
    shift!(Pslld_mm_imm8, integer::pslld),
    shift!(Psllq_mm_imm8, integer::psllq),
    shift!(Psrlw_mm_imm8, integer::psrlw),
    shift!(Psrld_mm_imm8, integer::psrld),
    shift!(Psrlq_mm_imm8, integer::psrlq),
    shift!(Psraw_mm_imm8, integer::psraw),
    shift!(Psrad_mm_imm8, integer::psrad),
    with_imm!(Pshufw_mm_mmm64_imm8, |_, b, imm| integer::pshuflw(b, imm)),
    with_imm!(Palignr_mm_mmm64_imm8, integer::palignr_mmx),
    to_gpr!(Pmovmskb_r32_mm, |a, _| integer::pmovmskb(a)),
    to_gpr!(Pextrw_r32_mm_imm8, |a, i| integer::extract_word(a, i & 3).into()),
    Form::both(Code::Pinsrw_mm_r32m16_imm8, pinsrw_reg, pinsrw_mem).gated(Gate::Mmx),
    to_gpr!(Pmovmskb_r64_mm, |a, _| integer::pmovmskb(a)),
    to_gpr!(Pextrw_r64_mm_imm8, |a, i| integer::extract_word(a, i & 3).into()),
    Form::both(Code::Pinsrw_mm_r64m16_imm8, pinsrw_reg, pinsrw_mem).gated(Gate::Mmx),
    Form::reg(Code::Movq2dq_xmm_mm, movq2dq).gated(Gate::Sse),
    Form::reg(Code::Movdq2q_mm_xmm, movdq2q).gated(Gate::Sse),
    Form::both(Code::Cvtpi2ps_xmm_mmm64, cvtpi2ps_reg, cvtpi2ps_mem).gated(Gate::Sse),
    Form::both(Code::Cvtpi2pd_xmm_mmm64, cvtpi2pd_reg, cvtpi2pd_mem).gated(Gate::Sse),
    to_mm!(Cvtps2pi_mm_xmmm64, u64, float::cvtps2pi),
    to_mm!(Cvttps2pi_mm_xmmm64, u64, float::cvttps2pi),
    to_mm!(Cvtpd2pi_mm_xmmm128, u128, float::cvtpd2dq),
    to_mm!(Cvttpd2pi_mm_xmmm128, u128, float::cvttpd2dq),
];
