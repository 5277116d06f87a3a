//! The SSE forms: operands fetched, results written, exceptions raised.
//!
//! A 128-bit memory operand has to be aligned unless the instruction says otherwise; narrower ones
//! never have to. A handler reads memory before it changes anything.

use x86::iced::Code;
use x86::{Cr4, Rflags, Vector};

use super::{crypto, float, integer, string};
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::softfloat::{FpEnv, IntWidth, Ordering, Rounding, flag};
use crate::{Cpu, Flags, Word};

/// MXCSR bits that exist, as MXCSR_MASK of FXSAVE says.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// A source operand in memory, zero-extended.
pub(crate) trait Source {
    /// Reads it.
    fn fetch(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<u128, Fault>;
}

impl Source for u128 {
    #[inline(always)]
    fn fetch(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<u128, Fault> {
        cpu.load_aligned(env, op)
    }
}

macro_rules! narrow_sources {
    ($($width:ty),*) => {$(
        impl Source for $width {
            #[inline(always)]
            fn fetch(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<u128, Fault> {
                Ok(u128::from(cpu.load::<$width>(env, op)?))
            }
        }
    )*};
}

narrow_sources!(u8, u16, u32, u64);

/// Operand `n`, an XMM register.
#[inline(always)]
pub(crate) fn xmm(cpu: &Cpu, op: &Op, n: usize) -> u128 {
    cpu.sse.xmm[usize::from(op.r[n] & 15)]
}

#[inline(always)]
pub(crate) fn set_xmm(cpu: &mut Cpu, op: &Op, n: usize, value: u128) {
    cpu.sse.xmm[usize::from(op.r[n] & 15)] = value;
}

/// Computes under MXCSR; raises #XM (or #UD without CR4.OSXMMEXCPT) for an unmasked exception.
#[inline(always)]
pub(crate) fn compute<R>(cpu: &mut Cpu, f: impl FnOnce(&mut FpEnv) -> R) -> Result<R, Fault> {
    let mut fp = FpEnv::sse(cpu.sse.mxcsr);
    let result = f(&mut fp);
    if u32::from(fp.flags | fp.settled) & !cpu.sse.mxcsr != 0 || fp.flags & !fp.masked != 0 {
        note_exceptions(cpu, &fp)?;
    }
    Ok(result)
}

/// An unmasked exception of the operands keeps those of the result from being noticed.
#[cold]
#[inline(never)]
fn note_exceptions(cpu: &mut Cpu, fp: &FpEnv) -> Result<(), Fault> {
    const OF_OPERANDS: u8 = flag::IE | flag::DE | flag::ZE;
    let unmasked = fp.flags & !fp.masked;
    let flags = if unmasked & OF_OPERANDS != 0 { fp.flags & OF_OPERANDS } else { fp.flags };
    cpu.sse.mxcsr |= u32::from(flags | fp.settled);
    if unmasked == 0 {
        return Ok(());
    }
    let vector = if cpu.sys().cr4 & Cr4::OSXMMEXCPT != 0 { Vector::XM } else { Vector::UD };
    Err(cpu.fault(vector))
}

/// `xmm = f(xmm, xmm/m)` with a memory operand of the given width.
macro_rules! binary {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let result = $f(xmm(cpu, op, 0), xmm(cpu, op, 1));
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let source = <$width>::fetch(cpu, env, op)?;
                let result = $f(xmm(cpu, op, 0), source);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
    ($code:ident, $f:expr) => {
        binary!($code, u128, $f)
    };
}

/// `xmm = f(xmm/m)`.
macro_rules! unary {
    ($code:ident, $width:ty, $f:expr) => {
        binary!($code, $width, |_: u128, source: u128| $f(source))
    };
}

/// `xmm = f(xmm, xmm/m, imm8)`.
macro_rules! with_imm {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let result = $f(xmm(cpu, op, 0), xmm(cpu, op, 1), op.imm as u8);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let source = <$width>::fetch(cpu, env, op)?;
                let result = $f(xmm(cpu, op, 0), source, op.imm as u8);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
    ($code:ident, $f:expr) => {
        with_imm!($code, u128, $f)
    };
}

/// `xmm = f(xmm, xmm/m, XMM0)`.
macro_rules! with_xmm0 {
    ($code:ident, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let result = $f(xmm(cpu, op, 0), xmm(cpu, op, 1), cpu.sse.xmm[0]);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let source = u128::fetch(cpu, env, op)?;
                let result = $f(xmm(cpu, op, 0), source, cpu.sse.xmm[0]);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// `xmm = f(xmm, imm8)`.
macro_rules! shift {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            let result = $f(xmm(cpu, op, 0), u128::from(op.imm as u8));
            set_xmm(cpu, op, 0, result);
            Ok(())
        })
        .gated(Gate::Sse)
    };
}

/// Floating point: `xmm = f(environment, xmm, xmm/m)`.
macro_rules! fp {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let (a, b) = (xmm(cpu, op, 0), xmm(cpu, op, 1));
                let result = compute(cpu, |fp| $f(fp, a, b))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$width>::fetch(cpu, env, op)?;
                let a = xmm(cpu, op, 0);
                let result = compute(cpu, |fp| $f(fp, a, b))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// Floating point: `xmm = f(environment, xmm/m)`.
macro_rules! fp_unary {
    ($code:ident, $width:ty, $f:expr) => {
        fp!($code, $width, |fp: &mut FpEnv, _: u128, b: u128| $f(fp, b))
    };
}

/// Floating point: `xmm = f(environment, xmm, xmm/m, imm8)`.
macro_rules! fp_imm {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let (a, b) = (xmm(cpu, op, 0), xmm(cpu, op, 1));
                let result = compute(cpu, |fp| $f(fp, a, b, op.imm as u8))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$width>::fetch(cpu, env, op)?;
                let a = xmm(cpu, op, 0);
                let result = compute(cpu, |fp| $f(fp, a, b, op.imm as u8))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// COMISS and its like.
macro_rules! compares {
    ($code:ident, $float:ty, $quiet_invalid:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let (a, b) = (xmm(cpu, op, 0), xmm(cpu, op, 1));
                let order = compute(cpu, |fp| float::order::<$float>(fp, a, b, $quiet_invalid))?;
                set_order(cpu, order);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$float>::fetch(cpu, env, op)?;
                let a = xmm(cpu, op, 0);
                let order = compute(cpu, |fp| float::order::<$float>(fp, a, b, $quiet_invalid))?;
                set_order(cpu, order);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// ZF, PF and CF of COMISS; OF, SF and AF become 0.
#[inline(always)]
pub(crate) fn set_order(cpu: &mut Cpu, order: Ordering) {
    cpu.flags = Flags::from_rflags(match order {
        Ordering::Unordered => Rflags::ZF | Rflags::PF | Rflags::CF,
        Ordering::Less => Rflags::CF,
        Ordering::Equal => Rflags::ZF,
        Ordering::Greater => 0,
    });
}

/// Conversion of a general register or memory to the low lane.
macro_rules! from_int {
    ($code:ident, $float:ty, $int:ty, $signed:ty) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let value = <$int>::get(cpu, op.r[1]) as $signed;
                let a = xmm(cpu, op, 0);
                let result = compute(cpu, |fp| float::from_int::<$float>(fp, a, value.into()))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let value = cpu.load::<$int>(env, op)? as $signed;
                let a = xmm(cpu, op, 0);
                let result = compute(cpu, |fp| float::from_int::<$float>(fp, a, value.into()))?;
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// Conversion of the low lane to a general register.
macro_rules! to_int {
    ($code:ident, $float:ty, $int:ty, $width:expr, $rounding:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let b = xmm(cpu, op, 1);
                let value = compute(cpu, |fp| float::to_int::<$float>(fp, b, $rounding, $width))?;
                <$int>::set(cpu, op.r[0], value as $int);
                Ok(())
            },
            |cpu, env, op| {
                let b = <$float>::fetch(cpu, env, op)?;
                let value = compute(cpu, |fp| float::to_int::<$float>(fp, b, $rounding, $width))?;
                <$int>::set(cpu, op.r[0], value as $int);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// A general register gets a function of an XMM register.
macro_rules! to_gpr {
    ($code:ident, $f:expr) => {
        Form::reg(Code::$code, |cpu, _, op| {
            let value: u64 = $f(xmm(cpu, op, 1), op.imm as u8);
            cpu.set_gpr(op.r[0], value);
            Ok(())
        })
        .gated(Gate::Sse)
    };
}

/// A general register, zero-extended, or memory gets one lane.
macro_rules! extract {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let value: $width = $f(xmm(cpu, op, 1), op.imm as u8);
                cpu.set_gpr(op.r[0], value.into());
                Ok(())
            },
            |cpu, env, op| {
                let value: $width = $f(xmm(cpu, op, 1), op.imm as u8);
                cpu.store(env, op, value)
            },
        )
        .gated(Gate::Sse)
    };
}

/// One lane from a general register or memory.
macro_rules! insert {
    ($code:ident, $width:ty, $f:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let value = cpu.gpr(op.r[1]) as $width;
                let result = $f(xmm(cpu, op, 0), value, op.imm as u8);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let value = cpu.load::<$width>(env, op)?;
                let result = $f(xmm(cpu, op, 0), value, op.imm as u8);
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// A load from memory, with what becomes of the register: `f(xmm, memory)`.
macro_rules! load {
    ($code:ident, $width:ty, $f:expr) => {
        Form::mem(Code::$code, |cpu, env, op| {
            let source = <$width>::fetch(cpu, env, op)?;
            let result = $f(xmm(cpu, op, 0), source);
            set_xmm(cpu, op, 0, result);
            Ok(())
        })
        .gated(Gate::Sse)
    };
}

/// A store of `f(xmm)`.
macro_rules! store {
    ($code:ident, $method:ident, $f:expr) => {
        Form::mem(Code::$code, |cpu, env, op| cpu.$method(env, op, $f(xmm(cpu, op, 1))))
            .gated(Gate::Sse)
    };
}

/// A whole register from a register or memory, aligned or not as the method says.
macro_rules! move_in {
    ($code:ident, $method:ident) => {
        Form::both(Code::$code, move_reg, |cpu, env, op| {
            let source = cpu.$method(env, op)?;
            set_xmm(cpu, op, 0, source);
            Ok(())
        })
        .gated(Gate::Sse)
    };
}

/// A whole register to a register or memory.
macro_rules! move_out {
    ($code:ident, $method:ident) => {
        Form::both(Code::$code, move_reg, |cpu, env, op| cpu.$method(env, op, xmm(cpu, op, 1)))
            .gated(Gate::Sse)
    };
}

/// MOVSS and its like into a register: from a register it merges, from memory it clears the rest.
macro_rules! moves_low {
    ($code:ident, $width:ty, $merge:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let result = $merge(xmm(cpu, op, 0), xmm(cpu, op, 1));
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| {
                let source = <$width>::fetch(cpu, env, op)?;
                set_xmm(cpu, op, 0, source);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

/// The same into memory.
macro_rules! stores_low {
    ($code:ident, $merge:expr, $low:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let result = $merge(xmm(cpu, op, 0), xmm(cpu, op, 1));
                set_xmm(cpu, op, 0, result);
                Ok(())
            },
            |cpu, env, op| cpu.store(env, op, $low(xmm(cpu, op, 1))),
        )
        .gated(Gate::Sse)
    };
}

/// MOVD and MOVQ from a general register or memory: the rest becomes 0.
macro_rules! insert_low {
    ($code:ident, $width:ty) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let value = cpu.gpr(op.r[1]) as $width;
                set_xmm(cpu, op, 0, value.into());
                Ok(())
            },
            |cpu, env, op| {
                let source = <$width>::fetch(cpu, env, op)?;
                set_xmm(cpu, op, 0, source);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

fn move_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = xmm(cpu, op, 1);
    set_xmm(cpu, op, 0, source);
    Ok(())
}

pub(crate) fn merge_low_32(a: u128, b: u128) -> u128 {
    a >> 32 << 32 | u128::from(b as u32)
}

pub(crate) fn merge_low_64(a: u128, b: u128) -> u128 {
    a >> 64 << 64 | u128::from(b as u64)
}

fn second(_: u128, b: u128) -> u128 {
    b
}

pub(crate) fn movhps(a: u128, b: u128) -> u128 {
    integer::punpcklqdq(a, b)
}

pub(crate) fn movhlps(a: u128, b: u128) -> u128 {
    merge_low_64(a, b >> 64)
}

pub(crate) fn low_32(a: u128) -> u32 {
    a as u32
}

pub(crate) fn low_64(a: u128) -> u64 {
    a as u64
}

pub(crate) fn high_64(a: u128) -> u64 {
    (a >> 64) as u64
}

pub(crate) fn whole(a: u128) -> u128 {
    a
}

/// INSERTPS from a register picks the source lane by its operand's top bits.
fn insertps_reg(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let control = op.imm as u8;
    let value = integer::extract_dword(xmm(cpu, op, 1), control >> 6);
    let result = integer::insertps(xmm(cpu, op, 0), value, control);
    set_xmm(cpu, op, 0, result);
    Ok(())
}

fn insertps_mem(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.load::<u32>(env, op)?;
    let result = integer::insertps(xmm(cpu, op, 0), value, op.imm as u8);
    set_xmm(cpu, op, 0, result);
    Ok(())
}

/// PTEST: ZF if no bit is common, CF if the first operand has every bit of the second.
fn ptest(cpu: &mut Cpu, a: u128, b: u128) {
    let zf = if a & b == 0 { Rflags::ZF } else { 0 };
    let cf = if !a & b == 0 { Rflags::CF } else { 0 };
    cpu.flags = Flags::from_rflags(zf | cf);
}

pub(crate) fn set_string_flags(cpu: &mut Cpu, compared: &string::StringCompare) {
    let mut flags = 0;
    for (set, flag) in [
        (compared.bits != 0, Rflags::CF),
        (compared.second_ended, Rflags::ZF),
        (compared.first_ended, Rflags::SF),
        (compared.bits & 1 != 0, Rflags::OF),
    ] {
        if set {
            flags |= flag;
        }
    }
    cpu.flags = Flags::from_rflags(flags);
}

/// The comparison of PCMPESTRx; lengths are 64 bits wide with REX.W.
pub(crate) fn compare_explicit(
    cpu: &Cpu,
    op: &Op,
    source: u128,
    wide: bool,
) -> string::StringCompare {
    let len = |register| {
        let value = cpu.gpr(register);
        if wide { value as i64 } else { i64::from(value as i32) }
    };
    string::explicit(xmm(cpu, op, 0), len(0), source, len(2), op.imm as u8)
}

pub(crate) fn compare_implicit(cpu: &Cpu, op: &Op, source: u128) -> string::StringCompare {
    string::implicit(xmm(cpu, op, 0), source, op.imm as u8)
}

pub(crate) fn leave_index(cpu: &mut Cpu, op: &Op, compared: &string::StringCompare) {
    set_string_flags(cpu, compared);
    cpu.set_gpr(1, compared.index(op.imm as u8).into());
}

fn leave_mask(cpu: &mut Cpu, op: &Op, compared: &string::StringCompare) {
    set_string_flags(cpu, compared);
    cpu.sse.xmm[0] = compared.mask(op.imm as u8);
}

/// A string comparison. Its memory operand need not be aligned.
macro_rules! strings {
    ($code:ident, $leave:ident, $compare:expr) => {
        Form::both(
            Code::$code,
            |cpu, _, op| {
                let compared = $compare(cpu, op, xmm(cpu, op, 1));
                $leave(cpu, op, &compared);
                Ok(())
            },
            |cpu, env, op| {
                let source = cpu.load::<u128>(env, op)?;
                let compared = $compare(cpu, op, source);
                $leave(cpu, op, &compared);
                Ok(())
            },
        )
        .gated(Gate::Sse)
    };
}

pub(crate) use {compares, extract, store, strings, to_gpr, to_int};

pub(crate) fn ldmxcsr(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.load::<u32>(env, op)?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.gp());
    }
    cpu.sse.mxcsr = value;
    Ok(())
}

pub(crate) fn stmxcsr(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.store(env, op, cpu.sse.mxcsr)
}

/// MASKMOVDQU and MASKMOVQ: the bytes whose mask byte has its top bit set. Only those are accessed,
/// so an empty mask never faults.
pub(crate) fn masked_store(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    value: u128,
    mask: u128,
) -> Result<(), Fault> {
    let chosen = integer::pmovmskb(mask) as u16;
    if chosen == 0 {
        return Ok(());
    }
    // The operand is at rDI, which the decoder leaves to the instruction.
    let op = &Op { base: 7, ..*op };
    let (first, last) = (chosen.trailing_zeros(), 15 - chosen.leading_zeros());
    let linear = cpu.linear(op, last + 1, true)?;
    let at = |cpu: &Cpu, byte: u32| cpu.wrap(linear.wrapping_add(u64::from(byte)));
    let stack = op.has(Op::STACK);
    // A fault's address is that of the operand, unless no byte of its first page is stored.
    let from = if (linear ^ at(cpu, first)) >> 12 == 0 { 0 } else { first };
    let start = at(cpu, from);
    cpu.check_store(env, start, last + 1 - from, stack)?;
    for byte in (0..16).filter(|byte| chosen >> byte & 1 != 0) {
        let to = at(cpu, byte);
        cpu.store_linear(env, to, (value >> (8 * byte)) as u8, stack)?;
    }
    Ok(())
}

pub(crate) fn maskmovdqu(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (value, mask) = (xmm(cpu, op, 1), xmm(cpu, op, 2));
    masked_store(cpu, env, op, value, mask)
}

pub(crate) const BY_MXCSR: Option<Rounding> = None;
pub(crate) const TRUNCATE: Option<Rounding> = Some(Rounding::Zero);

/// Every SSE form.
pub(crate) const FORMS: &[Form] = &[
    // Moves.
    move_in!(Movups_xmm_xmmm128, load),
    move_out!(Movups_xmmm128_xmm, store),
    move_in!(Movupd_xmm_xmmm128, load),
    move_out!(Movupd_xmmm128_xmm, store),
    move_in!(Movaps_xmm_xmmm128, load_aligned),
    move_out!(Movaps_xmmm128_xmm, store_aligned),
    move_in!(Movapd_xmm_xmmm128, load_aligned),
    move_out!(Movapd_xmmm128_xmm, store_aligned),
    move_in!(Movdqa_xmm_xmmm128, load_aligned),
    move_out!(Movdqa_xmmm128_xmm, store_aligned),
    move_in!(Movdqu_xmm_xmmm128, load),
    move_out!(Movdqu_xmmm128_xmm, store),
    moves_low!(Movss_xmm_xmmm32, u32, merge_low_32),
    moves_low!(Movsd_xmm_xmmm64, u64, merge_low_64),
    stores_low!(Movss_xmmm32_xmm, merge_low_32, low_32),
    stores_low!(Movsd_xmmm64_xmm, merge_low_64, low_64),
    binary!(Movq_xmm_xmmm64, u64, |_: u128, b: u128| u128::from(b as u64)),
    stores_low!(Movq_xmmm64_xmm, |_: u128, b: u128| u128::from(b as u64), low_64),
    load!(Movlps_xmm_m64, u64, merge_low_64),
    load!(Movhps_xmm_m64, u64, movhps),
    store!(Movlps_m64_xmm, store, low_64),
    store!(Movhps_m64_xmm, store, high_64),
    store!(Movntps_m128_xmm, store_aligned, whole),
    load!(Movlpd_xmm_m64, u64, merge_low_64),
    load!(Movhpd_xmm_m64, u64, movhps),
    store!(Movlpd_m64_xmm, store, low_64),
    store!(Movhpd_m64_xmm, store, high_64),
    store!(Movntpd_m128_xmm, store_aligned, whole),
    store!(Movntdq_m128_xmm, store_aligned, whole),
    load!(Movntdqa_xmm_m128, u128, second),
    move_in!(Lddqu_xmm_m128, load),
    Form::reg(Code::Movhlps_xmm_xmm, |cpu, _, op| {
        let result = movhlps(xmm(cpu, op, 0), xmm(cpu, op, 1));
        set_xmm(cpu, op, 0, result);
        Ok(())
    })
    .gated(Gate::Sse),
    Form::reg(Code::Movlhps_xmm_xmm, |cpu, _, op| {
        let result = movhps(xmm(cpu, op, 0), xmm(cpu, op, 1));
        set_xmm(cpu, op, 0, result);
        Ok(())
    })
    .gated(Gate::Sse),
    insert_low!(Movd_xmm_rm32, u32),
    insert_low!(Movq_xmm_rm64, u64),
    extract!(Movd_rm32_xmm, u32, |a, _| low_32(a)),
    extract!(Movq_rm64_xmm, u64, |a, _| low_64(a)),
    Form::any(Code::Maskmovdqu_rDI_xmm_xmm, maskmovdqu).gated(Gate::Sse),
    Form::mem(Code::Ldmxcsr_m32, ldmxcsr).gated(Gate::Sse),
    Form::mem(Code::Stmxcsr_m32, stmxcsr).gated(Gate::Sse),
    // Integer lanes.
    binary!(Paddb_xmm_xmmm128, integer::paddb),
    binary!(Paddw_xmm_xmmm128, integer::paddw),
    binary!(Paddd_xmm_xmmm128, integer::paddd),
    binary!(Paddq_xmm_xmmm128, integer::paddq),
    binary!(Paddsb_xmm_xmmm128, integer::paddsb),
    binary!(Paddsw_xmm_xmmm128, integer::paddsw),
    binary!(Paddusb_xmm_xmmm128, integer::paddusb),
    binary!(Paddusw_xmm_xmmm128, integer::paddusw),
    binary!(Psubb_xmm_xmmm128, integer::psubb),
    binary!(Psubw_xmm_xmmm128, integer::psubw),
    binary!(Psubd_xmm_xmmm128, integer::psubd),
    binary!(Psubq_xmm_xmmm128, integer::psubq),
    binary!(Psubsb_xmm_xmmm128, integer::psubsb),
    binary!(Psubsw_xmm_xmmm128, integer::psubsw),
    binary!(Psubusb_xmm_xmmm128, integer::psubusb),
    binary!(Psubusw_xmm_xmmm128, integer::psubusw),
    binary!(Pmullw_xmm_xmmm128, integer::pmullw),
    binary!(Pmulhw_xmm_xmmm128, integer::pmulhw),
    binary!(Pmulhuw_xmm_xmmm128, integer::pmulhuw),
    binary!(Pmulhrsw_xmm_xmmm128, integer::pmulhrsw),
    binary!(Pmulld_xmm_xmmm128, integer::pmulld),
    binary!(Pmuludq_xmm_xmmm128, integer::pmuludq),
    binary!(Pmuldq_xmm_xmmm128, integer::pmuldq),
    binary!(Pmaddwd_xmm_xmmm128, integer::pmaddwd),
    binary!(Pmaddubsw_xmm_xmmm128, integer::pmaddubsw),
    binary!(Pcmpeqb_xmm_xmmm128, integer::pcmpeqb),
    binary!(Pcmpeqw_xmm_xmmm128, integer::pcmpeqw),
    binary!(Pcmpeqd_xmm_xmmm128, integer::pcmpeqd),
    binary!(Pcmpeqq_xmm_xmmm128, integer::pcmpeqq),
    binary!(Pcmpgtb_xmm_xmmm128, integer::pcmpgtb),
    binary!(Pcmpgtw_xmm_xmmm128, integer::pcmpgtw),
    binary!(Pcmpgtd_xmm_xmmm128, integer::pcmpgtd),
    binary!(Pcmpgtq_xmm_xmmm128, integer::pcmpgtq),
    binary!(Pavgb_xmm_xmmm128, integer::pavgb),
    binary!(Pavgw_xmm_xmmm128, integer::pavgw),
    binary!(Pminub_xmm_xmmm128, integer::pminub),
    binary!(Pminsb_xmm_xmmm128, integer::pminsb),
    binary!(Pminuw_xmm_xmmm128, integer::pminuw),
    binary!(Pminsw_xmm_xmmm128, integer::pminsw),
    binary!(Pminud_xmm_xmmm128, integer::pminud),
    binary!(Pminsd_xmm_xmmm128, integer::pminsd),
    binary!(Pmaxub_xmm_xmmm128, integer::pmaxub),
    binary!(Pmaxsb_xmm_xmmm128, integer::pmaxsb),
    binary!(Pmaxuw_xmm_xmmm128, integer::pmaxuw),
    binary!(Pmaxsw_xmm_xmmm128, integer::pmaxsw),
    binary!(Pmaxud_xmm_xmmm128, integer::pmaxud),
    binary!(Pmaxsd_xmm_xmmm128, integer::pmaxsd),
    binary!(Psignb_xmm_xmmm128, integer::psignb),
    binary!(Psignw_xmm_xmmm128, integer::psignw),
    binary!(Psignd_xmm_xmmm128, integer::psignd),
    binary!(Pabsb_xmm_xmmm128, integer::pabsb),
    binary!(Pabsw_xmm_xmmm128, integer::pabsw),
    binary!(Pabsd_xmm_xmmm128, integer::pabsd),
    binary!(Pand_xmm_xmmm128, integer::pand),
    binary!(Pandn_xmm_xmmm128, integer::pandn),
    binary!(Por_xmm_xmmm128, integer::por),
    binary!(Pxor_xmm_xmmm128, integer::pxor),
    binary!(Psllw_xmm_xmmm128, integer::psllw),
    binary!(Pslld_xmm_xmmm128, integer::pslld),
    binary!(Psllq_xmm_xmmm128, integer::psllq),
    binary!(Psrlw_xmm_xmmm128, integer::psrlw),
    binary!(Psrld_xmm_xmmm128, integer::psrld),
    binary!(Psrlq_xmm_xmmm128, integer::psrlq),
    binary!(Psraw_xmm_xmmm128, integer::psraw),
    binary!(Psrad_xmm_xmmm128, integer::psrad),
    binary!(Punpcklbw_xmm_xmmm128, integer::punpcklbw),
    binary!(Punpckhbw_xmm_xmmm128, integer::punpckhbw),
    binary!(Punpcklwd_xmm_xmmm128, integer::punpcklwd),
    binary!(Punpckhwd_xmm_xmmm128, integer::punpckhwd),
    binary!(Punpckldq_xmm_xmmm128, integer::punpckldq),
    binary!(Punpckhdq_xmm_xmmm128, integer::punpckhdq),
    binary!(Punpcklqdq_xmm_xmmm128, integer::punpcklqdq),
    binary!(Punpckhqdq_xmm_xmmm128, integer::punpckhqdq),
    binary!(Packsswb_xmm_xmmm128, integer::packsswb),
    binary!(Packssdw_xmm_xmmm128, integer::packssdw),
    binary!(Packuswb_xmm_xmmm128, integer::packuswb),
    binary!(Packusdw_xmm_xmmm128, integer::packusdw),
    binary!(Phaddw_xmm_xmmm128, integer::phaddw),
    binary!(Phaddd_xmm_xmmm128, integer::phaddd),
    binary!(Phaddsw_xmm_xmmm128, integer::phaddsw),
    binary!(Phsubw_xmm_xmmm128, integer::phsubw),
    binary!(Phsubd_xmm_xmmm128, integer::phsubd),
    binary!(Phsubsw_xmm_xmmm128, integer::phsubsw),
    binary!(Psadbw_xmm_xmmm128, integer::psadbw),
    binary!(Pshufb_xmm_xmmm128, integer::pshufb),
    shift!(Psllw_xmm_imm8, integer::psllw),
    shift!(Pslld_xmm_imm8, integer::pslld),
    shift!(Psllq_xmm_imm8, integer::psllq),
    shift!(Psrlw_xmm_imm8, integer::psrlw),
    shift!(Psrld_xmm_imm8, integer::psrld),
    shift!(Psrlq_xmm_imm8, integer::psrlq),
    shift!(Psraw_xmm_imm8, integer::psraw),
    shift!(Psrad_xmm_imm8, integer::psrad),
    shift!(Pslldq_xmm_imm8, integer::pslldq),
    shift!(Psrldq_xmm_imm8, integer::psrldq),
    with_imm!(Palignr_xmm_xmmm128_imm8, integer::palignr),
    with_imm!(Pblendw_xmm_xmmm128_imm8, integer::pblendw),
    with_imm!(Mpsadbw_xmm_xmmm128_imm8, integer::mpsadbw),
    with_imm!(Shufps_xmm_xmmm128_imm8, integer::shufps),
    with_imm!(Shufpd_xmm_xmmm128_imm8, integer::shufpd),
    with_imm!(Blendps_xmm_xmmm128_imm8, integer::blendps),
    with_imm!(Blendpd_xmm_xmmm128_imm8, integer::blendpd),
    with_imm!(Pshufd_xmm_xmmm128_imm8, |_, b, imm| integer::pshufd(b, imm)),
    with_imm!(Pshuflw_xmm_xmmm128_imm8, |_, b, imm| integer::pshuflw(b, imm)),
    with_imm!(Pshufhw_xmm_xmmm128_imm8, |_, b, imm| integer::pshufhw(b, imm)),
    with_xmm0!(Pblendvb_xmm_xmmm128, integer::pblendvb),
    with_xmm0!(Blendvps_xmm_xmmm128, integer::blendvps),
    with_xmm0!(Blendvpd_xmm_xmmm128, integer::blendvpd),
    unary!(Pmovsxbw_xmm_xmmm64, u64, integer::pmovsxbw),
    unary!(Pmovzxbw_xmm_xmmm64, u64, integer::pmovzxbw),
    unary!(Pmovsxbd_xmm_xmmm32, u32, integer::pmovsxbd),
    unary!(Pmovzxbd_xmm_xmmm32, u32, integer::pmovzxbd),
    unary!(Pmovsxbq_xmm_xmmm16, u16, integer::pmovsxbq),
    unary!(Pmovzxbq_xmm_xmmm16, u16, integer::pmovzxbq),
    unary!(Pmovsxwd_xmm_xmmm64, u64, integer::pmovsxwd),
    unary!(Pmovzxwd_xmm_xmmm64, u64, integer::pmovzxwd),
    unary!(Pmovsxwq_xmm_xmmm32, u32, integer::pmovsxwq),
    unary!(Pmovzxwq_xmm_xmmm32, u32, integer::pmovzxwq),
    unary!(Pmovsxdq_xmm_xmmm64, u64, integer::pmovsxdq),
    unary!(Pmovzxdq_xmm_xmmm64, u64, integer::pmovzxdq),
    unary!(Phminposuw_xmm_xmmm128, u128, integer::phminposuw),
    to_gpr!(Pmovmskb_r32_xmm, |a, _| integer::pmovmskb(a)),
    to_gpr!(Movmskps_r32_xmm, |a, _| integer::movmskps(a)),
    to_gpr!(Movmskpd_r32_xmm, |a, _| integer::movmskpd(a)),
    to_gpr!(Pextrw_r32_xmm_imm8, |a, i| integer::extract_word(a, i).into()),
    extract!(Pextrb_r32m8_xmm_imm8, u8, integer::extract_byte),
    extract!(Pextrw_r32m16_xmm_imm8, u16, integer::extract_word),
    insert!(Pinsrb_xmm_r32m8_imm8, u8, integer::insert_byte),
    insert!(Pinsrw_xmm_r32m16_imm8, u16, integer::insert_word),
    to_gpr!(Pmovmskb_r64_xmm, |a, _| integer::pmovmskb(a)),
    to_gpr!(Movmskps_r64_xmm, |a, _| integer::movmskps(a)),
    to_gpr!(Movmskpd_r64_xmm, |a, _| integer::movmskpd(a)),
    to_gpr!(Pextrw_r64_xmm_imm8, |a, i| integer::extract_word(a, i).into()),
    extract!(Pextrb_r64m8_xmm_imm8, u8, integer::extract_byte),
    extract!(Pextrw_r64m16_xmm_imm8, u16, integer::extract_word),
    insert!(Pinsrb_xmm_r64m8_imm8, u8, integer::insert_byte),
    insert!(Pinsrw_xmm_r64m16_imm8, u16, integer::insert_word),
    extract!(Pextrd_rm32_xmm_imm8, u32, integer::extract_dword),
    extract!(Pextrq_rm64_xmm_imm8, u64, integer::extract_qword),
    extract!(Extractps_rm32_xmm_imm8, u32, integer::extract_dword),
    extract!(Extractps_r64m32_xmm_imm8, u32, integer::extract_dword),
    insert!(Pinsrd_xmm_rm32_imm8, u32, integer::insert_dword),
    insert!(Pinsrq_xmm_rm64_imm8, u64, integer::insert_qword),
    Form::both(Code::Insertps_xmm_xmmm32_imm8, insertps_reg, insertps_mem).gated(Gate::Sse),
    Form::both(
        Code::Ptest_xmm_xmmm128,
        |cpu, _, op| {
            ptest(cpu, xmm(cpu, op, 0), xmm(cpu, op, 1));
            Ok(())
        },
        |cpu, env, op| {
            let source = u128::fetch(cpu, env, op)?;
            ptest(cpu, xmm(cpu, op, 0), source);
            Ok(())
        },
    )
    .gated(Gate::Sse),
    strings!(Pcmpestrm_xmm_xmmm128_imm8, leave_mask, |c, o, b| compare_explicit(c, o, b, false)),
    strings!(Pcmpestrm64_xmm_xmmm128_imm8, leave_mask, |c, o, b| compare_explicit(c, o, b, true)),
    strings!(Pcmpestri_xmm_xmmm128_imm8, leave_index, |c, o, b| compare_explicit(c, o, b, false)),
    strings!(Pcmpestri64_xmm_xmmm128_imm8, leave_index, |c, o, b| compare_explicit(c, o, b, true)),
    strings!(Pcmpistrm_xmm_xmmm128_imm8, leave_mask, compare_implicit),
    strings!(Pcmpistri_xmm_xmmm128_imm8, leave_index, compare_implicit),
    // AES, carry-less multiplication, SHA.
    binary!(Aesenc_xmm_xmmm128, crypto::aesenc),
    binary!(Aesenclast_xmm_xmmm128, crypto::aesenclast),
    binary!(Aesdec_xmm_xmmm128, crypto::aesdec),
    binary!(Aesdeclast_xmm_xmmm128, crypto::aesdeclast),
    unary!(Aesimc_xmm_xmmm128, u128, crypto::aesimc),
    with_imm!(Aeskeygenassist_xmm_xmmm128_imm8, |_, b, imm| crypto::aeskeygenassist(b, imm)),
    with_imm!(Pclmulqdq_xmm_xmmm128_imm8, crypto::pclmulqdq),
    with_imm!(Sha1rnds4_xmm_xmmm128_imm8, crypto::sha1rnds4),
    binary!(Sha1nexte_xmm_xmmm128, crypto::sha1nexte),
    binary!(Sha1msg1_xmm_xmmm128, crypto::sha1msg1),
    binary!(Sha1msg2_xmm_xmmm128, crypto::sha1msg2),
    with_xmm0!(Sha256rnds2_xmm_xmmm128, crypto::sha256rnds2),
    binary!(Sha256msg1_xmm_xmmm128, crypto::sha256msg1),
    binary!(Sha256msg2_xmm_xmmm128, crypto::sha256msg2),
    // Floating-point lanes.
    fp!(Addps_xmm_xmmm128, u128, float::add_packed::<u32>),
    fp!(Addpd_xmm_xmmm128, u128, float::add_packed::<u64>),
    fp!(Addss_xmm_xmmm32, u32, float::add_scalar::<u32>),
    fp!(Addsd_xmm_xmmm64, u64, float::add_scalar::<u64>),
    fp!(Subps_xmm_xmmm128, u128, float::sub_packed::<u32>),
    fp!(Subpd_xmm_xmmm128, u128, float::sub_packed::<u64>),
    fp!(Subss_xmm_xmmm32, u32, float::sub_scalar::<u32>),
    fp!(Subsd_xmm_xmmm64, u64, float::sub_scalar::<u64>),
    fp!(Mulps_xmm_xmmm128, u128, float::mul_packed::<u32>),
    fp!(Mulpd_xmm_xmmm128, u128, float::mul_packed::<u64>),
    fp!(Mulss_xmm_xmmm32, u32, float::mul_scalar::<u32>),
    fp!(Mulsd_xmm_xmmm64, u64, float::mul_scalar::<u64>),
    fp!(Divps_xmm_xmmm128, u128, float::div_packed::<u32>),
    fp!(Divpd_xmm_xmmm128, u128, float::div_packed::<u64>),
    fp!(Divss_xmm_xmmm32, u32, float::div_scalar::<u32>),
    fp!(Divsd_xmm_xmmm64, u64, float::div_scalar::<u64>),
    fp!(Minps_xmm_xmmm128, u128, float::min_packed::<u32>),
    fp!(Minpd_xmm_xmmm128, u128, float::min_packed::<u64>),
    fp!(Minss_xmm_xmmm32, u32, float::min_scalar::<u32>),
    fp!(Minsd_xmm_xmmm64, u64, float::min_scalar::<u64>),
    fp!(Maxps_xmm_xmmm128, u128, float::max_packed::<u32>),
    fp!(Maxpd_xmm_xmmm128, u128, float::max_packed::<u64>),
    fp!(Maxss_xmm_xmmm32, u32, float::max_scalar::<u32>),
    fp!(Maxsd_xmm_xmmm64, u64, float::max_scalar::<u64>),
    fp!(Sqrtps_xmm_xmmm128, u128, float::sqrt_packed::<u32>),
    fp!(Sqrtpd_xmm_xmmm128, u128, float::sqrt_packed::<u64>),
    fp!(Sqrtss_xmm_xmmm32, u32, float::sqrt_scalar::<u32>),
    fp!(Sqrtsd_xmm_xmmm64, u64, float::sqrt_scalar::<u64>),
    fp!(Rcpps_xmm_xmmm128, u128, float::rcp_packed::<u32>),
    fp!(Rcpss_xmm_xmmm32, u32, float::rcp_scalar::<u32>),
    fp!(Rsqrtps_xmm_xmmm128, u128, float::rsqrt_packed::<u32>),
    fp!(Rsqrtss_xmm_xmmm32, u32, float::rsqrt_scalar::<u32>),
    fp!(Addsubps_xmm_xmmm128, u128, float::addsub::<u32>),
    fp!(Addsubpd_xmm_xmmm128, u128, float::addsub::<u64>),
    fp!(Haddps_xmm_xmmm128, u128, float::hadd::<u32>),
    fp!(Haddpd_xmm_xmmm128, u128, float::hadd::<u64>),
    fp!(Hsubps_xmm_xmmm128, u128, float::hsub::<u32>),
    fp!(Hsubpd_xmm_xmmm128, u128, float::hsub::<u64>),
    fp_imm!(Cmpps_xmm_xmmm128_imm8, u128, float::compare_packed_sse::<u32>),
    fp_imm!(Cmppd_xmm_xmmm128_imm8, u128, float::compare_packed_sse::<u64>),
    fp_imm!(Cmpss_xmm_xmmm32_imm8, u32, float::compare_scalar_sse::<u32>),
    fp_imm!(Cmpsd_xmm_xmmm64_imm8, u64, float::compare_scalar_sse::<u64>),
    fp_imm!(Roundps_xmm_xmmm128_imm8, u128, float::round_packed::<u32>),
    fp_imm!(Roundpd_xmm_xmmm128_imm8, u128, float::round_packed::<u64>),
    fp_imm!(Roundss_xmm_xmmm32_imm8, u32, float::round_scalar::<u32>),
    fp_imm!(Roundsd_xmm_xmmm64_imm8, u64, float::round_scalar::<u64>),
    fp_imm!(Dpps_xmm_xmmm128_imm8, u128, float::dpps),
    fp_imm!(Dppd_xmm_xmmm128_imm8, u128, float::dppd),
    compares!(Ucomiss_xmm_xmmm32, u32, false),
    compares!(Comiss_xmm_xmmm32, u32, true),
    compares!(Ucomisd_xmm_xmmm64, u64, false),
    compares!(Comisd_xmm_xmmm64, u64, true),
    binary!(Andps_xmm_xmmm128, integer::pand),
    binary!(Andpd_xmm_xmmm128, integer::pand),
    binary!(Andnps_xmm_xmmm128, integer::pandn),
    binary!(Andnpd_xmm_xmmm128, integer::pandn),
    binary!(Orps_xmm_xmmm128, integer::por),
    binary!(Orpd_xmm_xmmm128, integer::por),
    binary!(Xorps_xmm_xmmm128, integer::pxor),
    binary!(Xorpd_xmm_xmmm128, integer::pxor),
    binary!(Unpcklps_xmm_xmmm128, integer::punpckldq),
    binary!(Unpckhps_xmm_xmmm128, integer::punpckhdq),
    binary!(Unpcklpd_xmm_xmmm128, integer::punpcklqdq),
    binary!(Unpckhpd_xmm_xmmm128, integer::punpckhqdq),
    unary!(Movsldup_xmm_xmmm128, u128, integer::movsldup),
    unary!(Movshdup_xmm_xmmm128, u128, integer::movshdup),
    unary!(Movddup_xmm_xmmm64, u64, integer::movddup),
    // Conversions.
    fp_unary!(Cvtdq2ps_xmm_xmmm128, u128, float::cvtdq2ps),
    fp_unary!(Cvtps2dq_xmm_xmmm128, u128, float::cvtps2dq),
    fp_unary!(Cvttps2dq_xmm_xmmm128, u128, float::cvttps2dq),
    fp_unary!(Cvtpd2dq_xmm_xmmm128, u128, float::cvtpd2dq),
    fp_unary!(Cvttpd2dq_xmm_xmmm128, u128, float::cvttpd2dq),
    fp_unary!(Cvtdq2pd_xmm_xmmm64, u64, float::cvtdq2pd),
    fp_unary!(Cvtps2pd_xmm_xmmm64, u64, float::cvtps2pd),
    fp_unary!(Cvtpd2ps_xmm_xmmm128, u128, float::cvtpd2ps),
    fp!(Cvtss2sd_xmm_xmmm32, u32, float::cvtss2sd),
    fp!(Cvtsd2ss_xmm_xmmm64, u64, float::cvtsd2ss),
    from_int!(Cvtsi2ss_xmm_rm32, u32, u32, i32),
    from_int!(Cvtsi2ss_xmm_rm64, u32, u64, i64),
    to_int!(Cvtss2si_r32_xmmm32, u32, u32, IntWidth::I32, BY_MXCSR),
    to_int!(Cvtss2si_r64_xmmm32, u32, u64, IntWidth::I64, BY_MXCSR),
    to_int!(Cvttss2si_r32_xmmm32, u32, u32, IntWidth::I32, TRUNCATE),
    to_int!(Cvttss2si_r64_xmmm32, u32, u64, IntWidth::I64, TRUNCATE),
    from_int!(Cvtsi2sd_xmm_rm32, u64, u32, i32),
    from_int!(Cvtsi2sd_xmm_rm64, u64, u64, i64),
    to_int!(Cvtsd2si_r32_xmmm64, u64, u32, IntWidth::I32, BY_MXCSR),
    to_int!(Cvtsd2si_r64_xmmm64, u64, u64, IntWidth::I64, BY_MXCSR),
    to_int!(Cvttsd2si_r32_xmmm64, u64, u32, IntWidth::I32, TRUNCATE),
    to_int!(Cvttsd2si_r64_xmmm64, u64, u64, IntWidth::I64, TRUNCATE),
];
