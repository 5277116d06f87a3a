//! BMI1, BMI2, LZCNT and MOVBE.
//!
//! Undefined flags: `docs/undefined.md`.

use x86::Rflags;
use x86::iced::Code;

use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::{Cpu, Flags, Word};

/// Operand `N` from a register.
fn reg<const N: usize, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<T, Fault> {
    Ok(T::get(cpu, op.r[N]))
}

/// The memory operand.
fn mem<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<T, Fault> {
    cpu.load(env, op)
}

/// SF, ZF and PF by the result, CF as given, OF and AF 0.
#[inline(always)]
fn flags_of<T: Word>(result: T, cf: bool) -> Flags {
    Flags::logic(result.sext()).with_cf_of(cf, false)
}

#[inline(always)]
fn bits_of<T: Word>() -> u64 {
    u64::from(T::BITS)
}

/// The lowest `count` bits, if that is not all.
#[inline(always)]
fn low_bits(count: u64) -> u64 {
    if count < 64 { (1 << count) - 1 } else { u64::MAX }
}

/// TZCNT and LZCNT: CF for a source of 0, ZF for a count of 0, the other flags 0.
fn counted<T: Word>(cpu: &mut Cpu, op: &Op, source: T, count: u32) -> Result<(), Fault> {
    let cf = if source.to_u64() == 0 { Rflags::CF } else { 0 };
    let zf = if count == 0 { Rflags::ZF } else { 0 };
    cpu.flags = Flags::from_rflags(cf | zf);
    T::set(cpu, op.r[0], T::from_u64(count.into()));
    Ok(())
}

fn tzcnt<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let count = source.to_u64().trailing_zeros().min(T::BITS);
    counted(cpu, op, source, count)
}

fn lzcnt<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let count = source.to_u64().leading_zeros() - (64 - T::BITS);
    counted(cpu, op, source, count)
}

fn andn<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let result = T::from_u64(!T::get(cpu, op.r[1]).to_u64() & source.to_u64());
    cpu.flags = flags_of(result, false);
    T::set(cpu, op.r[0], result);
    Ok(())
}

fn blsi<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let source = source.to_u64();
    let result = T::from_u64(source & source.wrapping_neg());
    cpu.flags = flags_of(result, source != 0);
    T::set(cpu, op.r[0], result);
    Ok(())
}

fn blsmsk<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let source = source.to_u64();
    let result = T::from_u64(source ^ source.wrapping_sub(1));
    cpu.flags = flags_of(result, source == 0);
    T::set(cpu, op.r[0], result);
    Ok(())
}

fn blsr<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let source = source.to_u64();
    let result = T::from_u64(source & source.wrapping_sub(1));
    cpu.flags = flags_of(result, source == 0);
    T::set(cpu, op.r[0], result);
    Ok(())
}

/// BEXTR: ZF by the result, the other flags 0.
fn bextr<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let control = T::get(cpu, op.r[2]).to_u64();
    let (start, count) = (control & 0xff, control >> 8 & 0xff);
    let shifted = source.to_u64().checked_shr(start as u32).unwrap_or(0);
    let result = shifted & low_bits(count);
    cpu.flags = Flags::from_rflags(if result == 0 { Rflags::ZF } else { 0 });
    T::set(cpu, op.r[0], T::from_u64(result));
    Ok(())
}

fn bzhi<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let count = T::get(cpu, op.r[2]).to_u64() & 0xff;
    let result = T::from_u64(source.to_u64() & low_bits(count));
    cpu.flags = flags_of(result, count >= bits_of::<T>());
    T::set(cpu, op.r[0], result);
    Ok(())
}

/// MULX: the low half first, because the high half wins if both are the same register.
fn mulx<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    const RDX: u8 = 2;
    let product = u128::from(T::get(cpu, RDX).to_u64()) * u128::from(source.to_u64());
    T::set(cpu, op.r[1], T::from_u64(product as u64));
    T::set(cpu, op.r[0], T::from_u64((product >> T::BITS) as u64));
    Ok(())
}

fn pdep<T: Word>(cpu: &mut Cpu, op: &Op, mask: T) -> Result<(), Fault> {
    let mut source = T::get(cpu, op.r[1]).to_u64();
    let (mut mask, mut result) = (mask.to_u64(), 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if source & 1 != 0 { lowest } else { 0 };
        source >>= 1;
        mask ^= lowest;
    }
    T::set(cpu, op.r[0], T::from_u64(result));
    Ok(())
}

fn pext<T: Word>(cpu: &mut Cpu, op: &Op, mask: T) -> Result<(), Fault> {
    let source = T::get(cpu, op.r[1]).to_u64();
    let (mut mask, mut result, mut at) = (mask.to_u64(), 0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(source & lowest != 0) << at;
        at += 1;
        mask ^= lowest;
    }
    T::set(cpu, op.r[0], T::from_u64(result));
    Ok(())
}

fn rorx<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let (value, count) = (source.to_u64(), op.imm & (bits_of::<T>() - 1));
    let left = (bits_of::<T>() - count) & (bits_of::<T>() - 1);
    T::set(cpu, op.r[0], T::from_u64(value >> count | value << left));
    Ok(())
}

/// The count of SARX, SHLX and SHRX.
#[inline(always)]
fn count_of<T: Word>(cpu: &Cpu, op: &Op) -> u64 {
    T::get(cpu, op.r[2]).to_u64() & (bits_of::<T>() - 1)
}

fn sarx<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let result = source.sext() as i64 >> count_of::<T>(cpu, op);
    T::set(cpu, op.r[0], T::from_u64(result as u64));
    Ok(())
}

fn shlx<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let result = source.to_u64() << count_of::<T>(cpu, op);
    T::set(cpu, op.r[0], T::from_u64(result));
    Ok(())
}

fn shrx<T: Word>(cpu: &mut Cpu, op: &Op, source: T) -> Result<(), Fault> {
    let result = source.to_u64() >> count_of::<T>(cpu, op);
    T::set(cpu, op.r[0], T::from_u64(result));
    Ok(())
}

fn swapped<T: Word>(value: T) -> T {
    T::from_u64(value.to_u64().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.load::<T>(env, op)?;
    T::set(cpu, op.r[0], swapped(value));
    Ok(())
}

fn movbe_store<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = swapped(T::get(cpu, op.r[1]));
    cpu.store(env, op, value)
}

/// A form whose operand `n` is a register or in memory.
macro_rules! source {
    ($code:ident, $n:literal, $width:ty, $f:ident) => {
        Form::both(
            Code::$code,
            |cpu, env, op| {
                let source = reg::<$n, $width>(cpu, env, op)?;
                $f(cpu, op, source)
            },
            |cpu, env, op| {
                let source = mem::<$width>(cpu, env, op)?;
                $f(cpu, op, source)
            },
        )
    };
}

/// The same with a VEX prefix, which real mode does not have.
macro_rules! vex {
    ($code:ident, $n:literal, $width:ty, $f:ident) => {
        source!($code, $n, $width, $f).protected()
    };
}

/// The forms of this module.
pub(super) const FORMS: &[Form] = &[
    source!(Tzcnt_r16_rm16, 1, u16, tzcnt),
    source!(Tzcnt_r32_rm32, 1, u32, tzcnt),
    source!(Tzcnt_r64_rm64, 1, u64, tzcnt),
    source!(Lzcnt_r16_rm16, 1, u16, lzcnt),
    source!(Lzcnt_r32_rm32, 1, u32, lzcnt),
    source!(Lzcnt_r64_rm64, 1, u64, lzcnt),
    Form::mem(Code::Movbe_r16_m16, movbe_load::<u16>),
    Form::mem(Code::Movbe_r32_m32, movbe_load::<u32>),
    Form::mem(Code::Movbe_r64_m64, movbe_load::<u64>),
    Form::mem(Code::Movbe_m16_r16, movbe_store::<u16>),
    Form::mem(Code::Movbe_m32_r32, movbe_store::<u32>),
    Form::mem(Code::Movbe_m64_r64, movbe_store::<u64>),
    vex!(VEX_Andn_r32_r32_rm32, 2, u32, andn),
    vex!(VEX_Andn_r64_r64_rm64, 2, u64, andn),
    vex!(VEX_Blsi_r32_rm32, 1, u32, blsi),
    vex!(VEX_Blsi_r64_rm64, 1, u64, blsi),
    vex!(VEX_Blsmsk_r32_rm32, 1, u32, blsmsk),
    vex!(VEX_Blsmsk_r64_rm64, 1, u64, blsmsk),
    vex!(VEX_Blsr_r32_rm32, 1, u32, blsr),
    vex!(VEX_Blsr_r64_rm64, 1, u64, blsr),
    vex!(VEX_Bextr_r32_rm32_r32, 1, u32, bextr),
    vex!(VEX_Bextr_r64_rm64_r64, 1, u64, bextr),
    vex!(VEX_Bzhi_r32_rm32_r32, 1, u32, bzhi),
    vex!(VEX_Bzhi_r64_rm64_r64, 1, u64, bzhi),
    vex!(VEX_Mulx_r32_r32_rm32, 2, u32, mulx),
    vex!(VEX_Mulx_r64_r64_rm64, 2, u64, mulx),
    vex!(VEX_Pdep_r32_r32_rm32, 2, u32, pdep),
    vex!(VEX_Pdep_r64_r64_rm64, 2, u64, pdep),
    vex!(VEX_Pext_r32_r32_rm32, 2, u32, pext),
    vex!(VEX_Pext_r64_r64_rm64, 2, u64, pext),
    vex!(VEX_Rorx_r32_rm32_imm8, 1, u32, rorx),
    vex!(VEX_Rorx_r64_rm64_imm8, 1, u64, rorx),
    vex!(VEX_Sarx_r32_rm32_r32, 1, u32, sarx),
    vex!(VEX_Sarx_r64_rm64_r64, 1, u64, sarx),
    vex!(VEX_Shlx_r32_rm32_r32, 1, u32, shlx),
    vex!(VEX_Shlx_r64_rm64_r64, 1, u64, shlx),
    vex!(VEX_Shrx_r32_rm32_r32, 1, u32, shrx),
    vex!(VEX_Shrx_r64_rm64_r64, 1, u64, shrx),
];
