//! Moves: MOV, extensions, LEA, exchanges, conditional moves and sets, flag bits.

use x86::iced::Code;
use x86::{Rflags, Vector};

use crate::forms::Form;
use crate::forms::cond::{self, Cond};
use crate::op::{Env, Fault, Op};
use crate::{Cpu, Flags, Word};

fn mov_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, op.r[1]);
    T::set(cpu, op.r[0], value);
    Ok(())
}

fn mov_rm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, value: T| {
        T::set(cpu, op.r[0], value);
        Ok(())
    })
}

fn mov_mr<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, op.r[1]);
    cpu.store(env, op, value)
}

fn mov_ri<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    T::set(cpu, op.r[0], T::from_u64(op.imm));
    Ok(())
}

fn mov_mi<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.store(env, op, T::from_u64(op.imm))
}

fn movzx_rr<S: Word, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = S::get(cpu, op.r[1]).to_u64();
    T::set(cpu, op.r[0], T::from_u64(value));
    Ok(())
}

fn movzx_rm<S: Word, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, value: S| {
        T::set(cpu, op.r[0], T::from_u64(value.to_u64()));
        Ok(())
    })
}

fn movsx_rr<S: Word, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = S::get(cpu, op.r[1]).sext();
    T::set(cpu, op.r[0], T::from_u64(value));
    Ok(())
}

fn movsx_rm<S: Word, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, value: S| {
        T::set(cpu, op.r[0], T::from_u64(value.sext()));
        Ok(())
    })
}

fn lea<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let address = cpu.effective_address(op);
    T::set(cpu, op.r[0], T::from_u64(address));
    Ok(())
}

fn xchg_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (a, b) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    T::set(cpu, op.r[0], b);
    T::set(cpu, op.r[1], a);
    Ok(())
}

fn xchg_mr<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let r = op.r[1];
    cpu.modify::<T>(env, op, |cpu, old| {
        let new = T::get(cpu, r);
        T::set(cpu, r, old);
        new
    })
}

fn xadd_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (a, b) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    let sum = add(cpu, a, b);
    T::set(cpu, op.r[1], a);
    T::set(cpu, op.r[0], sum);
    Ok(())
}

fn xadd_mr<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let r = op.r[1];
    cpu.modify::<T>(env, op, |cpu, old| {
        let addend = T::get(cpu, r);
        let sum = add(cpu, old, addend);
        T::set(cpu, r, old);
        sum
    })
}

fn add<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
    let sum = T::from_u64(a.to_u64().wrapping_add(b.to_u64()));
    cpu.flags = Flags::add(T::BITS, a.to_u64(), b.to_u64(), sum.sext());
    sum
}

/// The new value of CMPXCHG's destination. The accumulator changes only if they differ.
#[inline(always)]
fn compare_exchange<T: Word>(cpu: &mut Cpu, old: T, new: T) -> T {
    let expected = T::get(cpu, 0);
    let difference = T::from_u64(expected.to_u64().wrapping_sub(old.to_u64()));
    cpu.flags = Flags::sub(T::BITS, expected.to_u64(), old.to_u64(), difference.sext());
    if expected == old {
        new
    } else {
        T::set(cpu, 0, old);
        old
    }
}

fn cmpxchg_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (old, new) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    let value = compare_exchange(cpu, old, new);
    T::set(cpu, op.r[0], value);
    Ok(())
}

fn cmpxchg_mr<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let new = T::get(cpu, op.r[1]);
    cpu.modify::<T>(env, op, |cpu, old| compare_exchange(cpu, old, new))
}

fn cmpxchg8b(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.modify::<u64>(env, op, |cpu, old| {
        let expected = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
        cpu.flags = cpu.flags.with_zf(expected == old);
        if expected == old {
            return cpu.gpr(3) & 0xffff_ffff | cpu.gpr(1) << 32;
        }
        cpu.set_gpr(0, old & 0xffff_ffff);
        cpu.set_gpr(2, old >> 32);
        old
    })
}

fn cmpxchg16b(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let linear = cpu.linear(op, 16, true)?;
    if linear & 15 != 0 {
        return Err(cpu.gp());
    }
    let stack = op.has(Op::STACK);
    cpu.check_store(env, linear, 16, stack)?;
    let old: u128 = cpu.load_linear(env, linear, stack)?;
    let expected = u128::from(cpu.gpr(0)) | u128::from(cpu.gpr(2)) << 64;
    let new =
        if expected == old { u128::from(cpu.gpr(3)) | u128::from(cpu.gpr(1)) << 64 } else { old };
    cpu.store_linear(env, linear, new, stack)?;
    cpu.flags = cpu.flags.with_zf(expected == old);
    if expected != old {
        cpu.set_gpr(0, old as u64);
        cpu.set_gpr(2, (old >> 64) as u64);
    }
    Ok(())
}

fn bswap16(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    // Undefined by the manual; CPUs clear the word.
    u16::set(cpu, op.r[0], 0);
    Ok(())
}

fn bswap32(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = u32::get(cpu, op.r[0]);
    u32::set(cpu, op.r[0], value.swap_bytes());
    Ok(())
}

fn bswap64(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = u64::get(cpu, op.r[0]);
    u64::set(cpu, op.r[0], value.swap_bytes());
    Ok(())
}

fn cmov_rr<C: Cond, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    // A 32-bit destination is written, and its upper half cleared, in either case.
    let value = if C::holds(cpu.flags) { T::get(cpu, op.r[1]) } else { T::get(cpu, op.r[0]) };
    T::set(cpu, op.r[0], value);
    Ok(())
}

fn cmov_rm<C: Cond, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, source: T| {
        let value = if C::holds(cpu.flags) { source } else { T::get(cpu, op.r[0]) };
        T::set(cpu, op.r[0], value);
        Ok(())
    })
}

fn set_r<C: Cond>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = u8::from(C::holds(cpu.flags));
    u8::set(cpu, op.r[0], value);
    Ok(())
}

fn set_m<C: Cond>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.store(env, op, u8::from(C::holds(cpu.flags)))
}

/// CBW, CWDE, CDQE: extends the accumulator.
fn extend<S: Word, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let value = S::get(cpu, 0).sext();
    T::set(cpu, 0, T::from_u64(value));
    Ok(())
}

/// CWD, CDQ, CQO: fills DX with the accumulator's sign.
fn sign_to_dx<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let sign = (T::get(cpu, 0).sext() as i64 >> 63) as u64;
    T::set(cpu, 2, T::from_u64(sign));
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let flags = cpu.flags.to_rflags() as u8 | 2;
    u8::set(cpu, Op::HIGH_BYTE, flags);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let low = u64::from(u8::get(cpu, Op::HIGH_BYTE)) & Rflags::STATUS;
    cpu.flags = Flags::from_rflags(low | cpu.flags.to_rflags() & Rflags::OF);
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.flags = cpu.flags.with_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.flags = cpu.flags.with_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.flags = cpu.flags.with_cf(!cpu.flags.cf());
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.rflags &= !Rflags::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    cpu.rflags |= Rflags::DF;
    Ok(())
}

/// XLAT: the table is at the base register, the index is AL without extension.
fn xlat(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let linear = cpu.linear_plus(op, u64::from(u8::get(cpu, 0)), 1, false)?;
    let value: u8 = cpu.load_linear(env, linear, op.has(Op::STACK))?;
    u8::set(cpu, 0, value);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let value = if cpu.flags.cf() { 0xff } else { 0 };
    u8::set(cpu, 0, value);
    Ok(())
}

fn nop(_: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Ok(())
}

/// CLFLUSH faults as a byte load does.
fn clflush(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load::<u8>(env, op).map(|_| ())
}

/// BOUND: #BR if the index lies outside the pair of bounds in memory.
fn bound<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let size = size_of::<T>() as u64;
    let linear = cpu.linear(op, 2 * size as u32, false)?;
    let lower = cpu.load_linear::<T>(env, linear, op.has(Op::STACK))?.sext() as i64;
    let upper =
        cpu.load_linear::<T>(env, cpu.wrap(linear + size), op.has(Op::STACK))?.sext() as i64;
    let index = T::get(cpu, op.r[0]).sext() as i64;
    if index < lower || index > upper {
        return Err(cpu.fault(Vector::BR));
    }
    Ok(())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::both(Code::Mov_rm8_r8, mov_rr::<u8>, mov_mr::<u8>),
    Form::both(Code::Mov_rm16_r16, mov_rr::<u16>, mov_mr::<u16>),
    Form::both(Code::Mov_rm32_r32, mov_rr::<u32>, mov_mr::<u32>),
    Form::both(Code::Mov_rm64_r64, mov_rr::<u64>, mov_mr::<u64>),
    Form::both(Code::Mov_r8_rm8, mov_rr::<u8>, mov_rm::<u8>),
    Form::both(Code::Mov_r16_rm16, mov_rr::<u16>, mov_rm::<u16>),
    Form::both(Code::Mov_r32_rm32, mov_rr::<u32>, mov_rm::<u32>),
    Form::both(Code::Mov_r64_rm64, mov_rr::<u64>, mov_rm::<u64>),
    Form::mem(Code::Mov_AL_moffs8, mov_rm::<u8>),
    Form::mem(Code::Mov_AX_moffs16, mov_rm::<u16>),
    Form::mem(Code::Mov_EAX_moffs32, mov_rm::<u32>),
    Form::mem(Code::Mov_RAX_moffs64, mov_rm::<u64>),
    Form::mem(Code::Mov_moffs8_AL, mov_mr::<u8>),
    Form::mem(Code::Mov_moffs16_AX, mov_mr::<u16>),
    Form::mem(Code::Mov_moffs32_EAX, mov_mr::<u32>),
    Form::mem(Code::Mov_moffs64_RAX, mov_mr::<u64>),
    Form::reg(Code::Mov_r8_imm8, mov_ri::<u8>),
    Form::reg(Code::Mov_r16_imm16, mov_ri::<u16>),
    Form::reg(Code::Mov_r32_imm32, mov_ri::<u32>),
    Form::reg(Code::Mov_r64_imm64, mov_ri::<u64>),
    Form::both(Code::Mov_rm8_imm8, mov_ri::<u8>, mov_mi::<u8>),
    Form::both(Code::Mov_rm16_imm16, mov_ri::<u16>, mov_mi::<u16>),
    Form::both(Code::Mov_rm32_imm32, mov_ri::<u32>, mov_mi::<u32>),
    Form::both(Code::Mov_rm64_imm32, mov_ri::<u64>, mov_mi::<u64>),
    Form::both(Code::Movzx_r16_rm8, movzx_rr::<u8, u16>, movzx_rm::<u8, u16>),
    Form::both(Code::Movsx_r16_rm8, movsx_rr::<u8, u16>, movsx_rm::<u8, u16>),
    Form::both(Code::Movzx_r32_rm8, movzx_rr::<u8, u32>, movzx_rm::<u8, u32>),
    Form::both(Code::Movsx_r32_rm8, movsx_rr::<u8, u32>, movsx_rm::<u8, u32>),
    Form::both(Code::Movzx_r64_rm8, movzx_rr::<u8, u64>, movzx_rm::<u8, u64>),
    Form::both(Code::Movsx_r64_rm8, movsx_rr::<u8, u64>, movsx_rm::<u8, u64>),
    Form::both(Code::Movzx_r16_rm16, movzx_rr::<u16, u16>, movzx_rm::<u16, u16>),
    Form::both(Code::Movsx_r16_rm16, movsx_rr::<u16, u16>, movsx_rm::<u16, u16>),
    Form::both(Code::Movzx_r32_rm16, movzx_rr::<u16, u32>, movzx_rm::<u16, u32>),
    Form::both(Code::Movsx_r32_rm16, movsx_rr::<u16, u32>, movsx_rm::<u16, u32>),
    Form::both(Code::Movzx_r64_rm16, movzx_rr::<u16, u64>, movzx_rm::<u16, u64>),
    Form::both(Code::Movsx_r64_rm16, movsx_rr::<u16, u64>, movsx_rm::<u16, u64>),
    Form::both(Code::Movsxd_r16_rm16, movsx_rr::<u16, u16>, movsx_rm::<u16, u16>),
    Form::both(Code::Movsxd_r32_rm32, movsx_rr::<u32, u32>, movsx_rm::<u32, u32>),
    Form::both(Code::Movsxd_r64_rm32, movsx_rr::<u32, u64>, movsx_rm::<u32, u64>),
    Form::mem(Code::Lea_r16_m, lea::<u16>),
    Form::mem(Code::Lea_r32_m, lea::<u32>),
    Form::mem(Code::Lea_r64_m, lea::<u64>),
    Form::both(Code::Xchg_rm8_r8, xchg_rr::<u8>, xchg_mr::<u8>),
    Form::both(Code::Xchg_rm16_r16, xchg_rr::<u16>, xchg_mr::<u16>),
    Form::both(Code::Xchg_rm32_r32, xchg_rr::<u32>, xchg_mr::<u32>),
    Form::both(Code::Xchg_rm64_r64, xchg_rr::<u64>, xchg_mr::<u64>),
    Form::reg(Code::Xchg_r16_AX, xchg_rr::<u16>),
    Form::reg(Code::Xchg_r32_EAX, xchg_rr::<u32>),
    Form::reg(Code::Xchg_r64_RAX, xchg_rr::<u64>),
    Form::both(Code::Xadd_rm8_r8, xadd_rr::<u8>, xadd_mr::<u8>),
    Form::both(Code::Xadd_rm16_r16, xadd_rr::<u16>, xadd_mr::<u16>),
    Form::both(Code::Xadd_rm32_r32, xadd_rr::<u32>, xadd_mr::<u32>),
    Form::both(Code::Xadd_rm64_r64, xadd_rr::<u64>, xadd_mr::<u64>),
    Form::both(Code::Cmpxchg_rm8_r8, cmpxchg_rr::<u8>, cmpxchg_mr::<u8>),
    Form::both(Code::Cmpxchg_rm16_r16, cmpxchg_rr::<u16>, cmpxchg_mr::<u16>),
    Form::both(Code::Cmpxchg_rm32_r32, cmpxchg_rr::<u32>, cmpxchg_mr::<u32>),
    Form::both(Code::Cmpxchg_rm64_r64, cmpxchg_rr::<u64>, cmpxchg_mr::<u64>),
    Form::mem(Code::Cmpxchg8b_m64, cmpxchg8b),
    Form::mem(Code::Cmpxchg16b_m128, cmpxchg16b),
    Form::reg(Code::Bswap_r16, bswap16),
    Form::reg(Code::Bswap_r32, bswap32),
    Form::reg(Code::Bswap_r64, bswap64),
    Form::both(Code::Cmovo_r16_rm16, cmov_rr::<cond::O, u16>, cmov_rm::<cond::O, u16>),
    Form::both(Code::Cmovo_r32_rm32, cmov_rr::<cond::O, u32>, cmov_rm::<cond::O, u32>),
    Form::both(Code::Cmovo_r64_rm64, cmov_rr::<cond::O, u64>, cmov_rm::<cond::O, u64>),
    Form::both(Code::Cmovno_r16_rm16, cmov_rr::<cond::No, u16>, cmov_rm::<cond::No, u16>),
    Form::both(Code::Cmovno_r32_rm32, cmov_rr::<cond::No, u32>, cmov_rm::<cond::No, u32>),
    Form::both(Code::Cmovno_r64_rm64, cmov_rr::<cond::No, u64>, cmov_rm::<cond::No, u64>),
    Form::both(Code::Cmovb_r16_rm16, cmov_rr::<cond::B, u16>, cmov_rm::<cond::B, u16>),
    Form::both(Code::Cmovb_r32_rm32, cmov_rr::<cond::B, u32>, cmov_rm::<cond::B, u32>),
    Form::both(Code::Cmovb_r64_rm64, cmov_rr::<cond::B, u64>, cmov_rm::<cond::B, u64>),
    Form::both(Code::Cmovae_r16_rm16, cmov_rr::<cond::Ae, u16>, cmov_rm::<cond::Ae, u16>),
    Form::both(Code::Cmovae_r32_rm32, cmov_rr::<cond::Ae, u32>, cmov_rm::<cond::Ae, u32>),
    Form::both(Code::Cmovae_r64_rm64, cmov_rr::<cond::Ae, u64>, cmov_rm::<cond::Ae, u64>),
    Form::both(Code::Cmove_r16_rm16, cmov_rr::<cond::E, u16>, cmov_rm::<cond::E, u16>),
    Form::both(Code::Cmove_r32_rm32, cmov_rr::<cond::E, u32>, cmov_rm::<cond::E, u32>),
    Form::both(Code::Cmove_r64_rm64, cmov_rr::<cond::E, u64>, cmov_rm::<cond::E, u64>),
    Form::both(Code::Cmovne_r16_rm16, cmov_rr::<cond::Ne, u16>, cmov_rm::<cond::Ne, u16>),
    Form::both(Code::Cmovne_r32_rm32, cmov_rr::<cond::Ne, u32>, cmov_rm::<cond::Ne, u32>),
    Form::both(Code::Cmovne_r64_rm64, cmov_rr::<cond::Ne, u64>, cmov_rm::<cond::Ne, u64>),
    Form::both(Code::Cmovbe_r16_rm16, cmov_rr::<cond::Be, u16>, cmov_rm::<cond::Be, u16>),
    Form::both(Code::Cmovbe_r32_rm32, cmov_rr::<cond::Be, u32>, cmov_rm::<cond::Be, u32>),
    Form::both(Code::Cmovbe_r64_rm64, cmov_rr::<cond::Be, u64>, cmov_rm::<cond::Be, u64>),
    Form::both(Code::Cmova_r16_rm16, cmov_rr::<cond::A, u16>, cmov_rm::<cond::A, u16>),
    Form::both(Code::Cmova_r32_rm32, cmov_rr::<cond::A, u32>, cmov_rm::<cond::A, u32>),
    Form::both(Code::Cmova_r64_rm64, cmov_rr::<cond::A, u64>, cmov_rm::<cond::A, u64>),
    Form::both(Code::Cmovs_r16_rm16, cmov_rr::<cond::S, u16>, cmov_rm::<cond::S, u16>),
    Form::both(Code::Cmovs_r32_rm32, cmov_rr::<cond::S, u32>, cmov_rm::<cond::S, u32>),
    Form::both(Code::Cmovs_r64_rm64, cmov_rr::<cond::S, u64>, cmov_rm::<cond::S, u64>),
    Form::both(Code::Cmovns_r16_rm16, cmov_rr::<cond::Ns, u16>, cmov_rm::<cond::Ns, u16>),
    Form::both(Code::Cmovns_r32_rm32, cmov_rr::<cond::Ns, u32>, cmov_rm::<cond::Ns, u32>),
    Form::both(Code::Cmovns_r64_rm64, cmov_rr::<cond::Ns, u64>, cmov_rm::<cond::Ns, u64>),
    Form::both(Code::Cmovp_r16_rm16, cmov_rr::<cond::P, u16>, cmov_rm::<cond::P, u16>),
    Form::both(Code::Cmovp_r32_rm32, cmov_rr::<cond::P, u32>, cmov_rm::<cond::P, u32>),
    Form::both(Code::Cmovp_r64_rm64, cmov_rr::<cond::P, u64>, cmov_rm::<cond::P, u64>),
    Form::both(Code::Cmovnp_r16_rm16, cmov_rr::<cond::Np, u16>, cmov_rm::<cond::Np, u16>),
    Form::both(Code::Cmovnp_r32_rm32, cmov_rr::<cond::Np, u32>, cmov_rm::<cond::Np, u32>),
    Form::both(Code::Cmovnp_r64_rm64, cmov_rr::<cond::Np, u64>, cmov_rm::<cond::Np, u64>),
    Form::both(Code::Cmovl_r16_rm16, cmov_rr::<cond::L, u16>, cmov_rm::<cond::L, u16>),
    Form::both(Code::Cmovl_r32_rm32, cmov_rr::<cond::L, u32>, cmov_rm::<cond::L, u32>),
    Form::both(Code::Cmovl_r64_rm64, cmov_rr::<cond::L, u64>, cmov_rm::<cond::L, u64>),
    Form::both(Code::Cmovge_r16_rm16, cmov_rr::<cond::Ge, u16>, cmov_rm::<cond::Ge, u16>),
    Form::both(Code::Cmovge_r32_rm32, cmov_rr::<cond::Ge, u32>, cmov_rm::<cond::Ge, u32>),
    Form::both(Code::Cmovge_r64_rm64, cmov_rr::<cond::Ge, u64>, cmov_rm::<cond::Ge, u64>),
    Form::both(Code::Cmovle_r16_rm16, cmov_rr::<cond::Le, u16>, cmov_rm::<cond::Le, u16>),
    Form::both(Code::Cmovle_r32_rm32, cmov_rr::<cond::Le, u32>, cmov_rm::<cond::Le, u32>),
    Form::both(Code::Cmovle_r64_rm64, cmov_rr::<cond::Le, u64>, cmov_rm::<cond::Le, u64>),
    Form::both(Code::Cmovg_r16_rm16, cmov_rr::<cond::G, u16>, cmov_rm::<cond::G, u16>),
    Form::both(Code::Cmovg_r32_rm32, cmov_rr::<cond::G, u32>, cmov_rm::<cond::G, u32>),
    Form::both(Code::Cmovg_r64_rm64, cmov_rr::<cond::G, u64>, cmov_rm::<cond::G, u64>),
    Form::both(Code::Seto_rm8, set_r::<cond::O>, set_m::<cond::O>),
    Form::both(Code::Setno_rm8, set_r::<cond::No>, set_m::<cond::No>),
    Form::both(Code::Setb_rm8, set_r::<cond::B>, set_m::<cond::B>),
    Form::both(Code::Setae_rm8, set_r::<cond::Ae>, set_m::<cond::Ae>),
    Form::both(Code::Sete_rm8, set_r::<cond::E>, set_m::<cond::E>),
    Form::both(Code::Setne_rm8, set_r::<cond::Ne>, set_m::<cond::Ne>),
    Form::both(Code::Setbe_rm8, set_r::<cond::Be>, set_m::<cond::Be>),
    Form::both(Code::Seta_rm8, set_r::<cond::A>, set_m::<cond::A>),
    Form::both(Code::Sets_rm8, set_r::<cond::S>, set_m::<cond::S>),
    Form::both(Code::Setns_rm8, set_r::<cond::Ns>, set_m::<cond::Ns>),
    Form::both(Code::Setp_rm8, set_r::<cond::P>, set_m::<cond::P>),
    Form::both(Code::Setnp_rm8, set_r::<cond::Np>, set_m::<cond::Np>),
    Form::both(Code::Setl_rm8, set_r::<cond::L>, set_m::<cond::L>),
    Form::both(Code::Setge_rm8, set_r::<cond::Ge>, set_m::<cond::Ge>),
    Form::both(Code::Setle_rm8, set_r::<cond::Le>, set_m::<cond::Le>),
    Form::both(Code::Setg_rm8, set_r::<cond::G>, set_m::<cond::G>),
    Form::reg(Code::Cbw, extend::<u8, u16>),
    Form::reg(Code::Cwde, extend::<u16, u32>),
    Form::reg(Code::Cdqe, extend::<u32, u64>),
    Form::reg(Code::Cwd, sign_to_dx::<u16>),
    Form::reg(Code::Cdq, sign_to_dx::<u32>),
    Form::reg(Code::Cqo, sign_to_dx::<u64>),
    Form::reg(Code::Lahf, lahf),
    Form::reg(Code::Sahf, sahf),
    Form::reg(Code::Clc, clc),
    Form::reg(Code::Stc, stc),
    Form::reg(Code::Cmc, cmc),
    Form::reg(Code::Cld, cld),
    Form::reg(Code::Std, std),
    Form::reg(Code::Salc, salc),
    Form::mem(Code::Xlat_m8, xlat),
    Form::mem(Code::Bound_r16_m1616, bound::<u16>),
    Form::mem(Code::Bound_r32_m3232, bound::<u32>),
    Form::reg(Code::Nopw, nop),
    Form::reg(Code::Nopd, nop),
    Form::reg(Code::Nopq, nop),
    Form::reg(Code::Pause, nop),
    Form::any(Code::Nop_rm16, nop),
    Form::any(Code::Nop_rm32, nop),
    Form::any(Code::Nop_rm64, nop),
    Form::any(Code::Reservednop_rm16_r16_0F0D, nop),
    Form::any(Code::Reservednop_rm32_r32_0F0D, nop),
    Form::any(Code::Reservednop_rm64_r64_0F0D, nop),
    Form::any(Code::Reservednop_rm16_r16_0F18, nop),
    Form::any(Code::Reservednop_rm32_r32_0F18, nop),
    Form::any(Code::Reservednop_rm64_r64_0F18, nop),
    Form::any(Code::Reservednop_rm16_r16_0F19, nop),
    Form::any(Code::Reservednop_rm32_r32_0F19, nop),
    Form::any(Code::Reservednop_rm64_r64_0F19, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1A, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1A, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1A, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1B, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1B, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1B, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1C, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1C, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1C, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1D, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1D, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1D, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1E, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1E, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1E, nop),
    Form::any(Code::Reservednop_rm16_r16_0F1F, nop),
    Form::any(Code::Reservednop_rm32_r32_0F1F, nop),
    Form::any(Code::Reservednop_rm64_r64_0F1F, nop),
    Form::mem(Code::Prefetch_m8, nop),
    Form::mem(Code::Prefetchw_m8, nop),
    Form::mem(Code::Prefetchwt1_m8, nop),
    Form::mem(Code::Prefetchnta_m8, nop),
    Form::mem(Code::Prefetcht0_m8, nop),
    Form::mem(Code::Prefetcht1_m8, nop),
    Form::mem(Code::Prefetcht2_m8, nop),
    Form::mem(Code::Prefetchreserved3_m8, nop),
    Form::mem(Code::Prefetchreserved4_m8, nop),
    Form::mem(Code::Prefetchreserved5_m8, nop),
    Form::mem(Code::Prefetchreserved6_m8, nop),
    Form::mem(Code::Prefetchreserved7_m8, nop),
    Form::mem(Code::Clflush_m8, clflush),
    Form::reg(Code::Lfence, nop),
    Form::reg(Code::Lfence_E9, nop),
    Form::reg(Code::Lfence_EA, nop),
    Form::reg(Code::Lfence_EB, nop),
    Form::reg(Code::Lfence_EC, nop),
    Form::reg(Code::Lfence_ED, nop),
    Form::reg(Code::Lfence_EE, nop),
    Form::reg(Code::Lfence_EF, nop),
    Form::reg(Code::Mfence, nop),
    Form::reg(Code::Mfence_F1, nop),
    Form::reg(Code::Mfence_F2, nop),
    Form::reg(Code::Mfence_F3, nop),
    Form::reg(Code::Mfence_F4, nop),
    Form::reg(Code::Mfence_F5, nop),
    Form::reg(Code::Mfence_F6, nop),
    Form::reg(Code::Mfence_F7, nop),
    Form::reg(Code::Sfence, nop),
    Form::reg(Code::Sfence_F9, nop),
    Form::reg(Code::Sfence_FA, nop),
    Form::reg(Code::Sfence_FB, nop),
    Form::reg(Code::Sfence_FC, nop),
    Form::reg(Code::Sfence_FD, nop),
    Form::reg(Code::Sfence_FE, nop),
    Form::reg(Code::Sfence_FF, nop),
    Form::mem(Code::Movnti_m32_r32, mov_mr::<u32>),
    Form::mem(Code::Movnti_m64_r64, mov_mr::<u64>),
];
