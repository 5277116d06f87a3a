//! Shifts, rotates, bit tests, bit scans, POPCNT and CRC32.
//!
//! Undefined flags: `docs/undefined.md`.

use x86::Rflags;
use x86::iced::Code;

use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::{Cpu, Flags, Word};

/// A shift or rotate by a count that is masked and not 0.
trait Shift {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T;
}

struct Rol;
struct Ror;
struct Rcl;
struct Rcr;
struct Shl;
struct Shr;
struct Sar;

#[inline(always)]
fn top_bit<T: Word>(value: T) -> bool {
    (value.sext() as i64) < 0
}

/// Flags of a shift: by its result, by the last bit out, and OF as given. AF is 0.
#[inline(always)]
fn shift_flags<T: Word>(result: T, cf: bool, of: bool) -> Flags {
    Flags::logic(result.sext()).with_cf_of(cf, of)
}

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let before_last = a.to_u64() << (count - 1);
        let result = T::from_u64(before_last << 1);
        let cf = top_bit(T::from_u64(before_last));
        cpu.flags = shift_flags(result, cf, cf != top_bit(result));
        result
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let before_last = a.to_u64() >> (count - 1);
        let result = T::from_u64(before_last >> 1);
        cpu.flags = shift_flags(result, before_last & 1 != 0, top_bit(T::from_u64(before_last)));
        result
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let before_last = a.sext() as i64 >> (count - 1);
        let result = T::from_u64((before_last >> 1) as u64);
        cpu.flags = shift_flags(result, before_last & 1 != 0, false);
        result
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let count = count % T::BITS;
        let value = a.to_u64();
        let result = T::from_u64(value << count | value >> ((T::BITS - count) % T::BITS));
        let cf = result.to_u64() & 1 != 0;
        cpu.flags = cpu.flags.with_rotated(cf, cf != top_bit(result));
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let count = count % T::BITS;
        let value = a.to_u64();
        let result = T::from_u64(value >> count | value << ((T::BITS - count) % T::BITS));
        let cf = top_bit(result);
        let next = top_bit(T::from_u64(result.to_u64() << 1));
        cpu.flags = cpu.flags.with_rotated(cf, cf != next);
        result
    }
}

impl Shift for Rcl {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let count = count % (T::BITS + 1);
        if count == 0 {
            return a;
        }
        let wide = u128::from(cpu.flags.cf()) << T::BITS | u128::from(a.to_u64());
        let rotated = wide << count | wide >> (T::BITS + 1 - count);
        let result = T::from_u64(rotated as u64);
        let cf = rotated >> T::BITS & 1 != 0;
        cpu.flags = cpu.flags.with_rotated(cf, cf != top_bit(result));
        result
    }
}

impl Shift for Rcr {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, count: u32) -> T {
        let count = count % (T::BITS + 1);
        if count == 0 {
            return a;
        }
        let wide = u128::from(cpu.flags.cf()) << T::BITS | u128::from(a.to_u64());
        let rotated = wide >> count | wide << (T::BITS + 1 - count);
        let result = T::from_u64(rotated as u64);
        let cf = rotated >> T::BITS & 1 != 0;
        let next = top_bit(T::from_u64(result.to_u64() << 1));
        cpu.flags = cpu.flags.with_rotated(cf, top_bit(result) != next);
        result
    }
}

#[inline(always)]
fn mask_of<T: Word>() -> u32 {
    if T::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn shift_r<S: Shift, T: Word>(cpu: &mut Cpu, op: &Op, count: u32) {
    let a = T::get(cpu, op.r[0]);
    let count = count & mask_of::<T>();
    // A 32-bit destination is written, and its upper half cleared, even if the count is 0.
    let result = if count == 0 { a } else { S::apply(cpu, a, count) };
    T::set(cpu, op.r[0], result);
}

#[inline(always)]
fn shift_m<S: Shift, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    count: u32,
) -> Result<(), Fault> {
    let count = count & mask_of::<T>();
    cpu.modify::<T>(env, op, |cpu, a| if count == 0 { a } else { S::apply(cpu, a, count) })
}

fn shift_ri<S: Shift, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    shift_r::<S, T>(cpu, op, op.imm as u32);
    Ok(())
}

fn shift_mi<S: Shift, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    shift_m::<S, T>(cpu, env, op, op.imm as u32)
}

fn shift_rc<S: Shift, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let count = cpu.gpr(1) as u32;
    shift_r::<S, T>(cpu, op, count);
    Ok(())
}

fn shift_mc<S: Shift, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let count = cpu.gpr(1) as u32;
    shift_m::<S, T>(cpu, env, op, count)
}

/// SHLD of `a`, filled from `b`. A count above 16 of a 16-bit operand goes on with `a` again.
fn shld<T: Word>(cpu: &mut Cpu, a: T, b: T, count: u32) -> T {
    let (a, b) = (u128::from(a.to_u64()), u128::from(b.to_u64()));
    let bits = T::BITS;
    // a, b and, for 16 bits, a again: the top word is `a`.
    let chain = if bits == 16 { a << 32 | b << 16 | a } else { a << bits | b };
    let total = if bits == 16 { 48 } else { 2 * bits };
    let result = T::from_u64((chain << count >> (total - bits)) as u64);
    let before_last = T::from_u64((chain << (count - 1) >> (total - bits)) as u64);
    let cf = top_bit(before_last);
    cpu.flags = shift_flags(result, cf, cf != top_bit(result));
    result
}

/// SHRD of `a`, filled from `b`.
fn shrd<T: Word>(cpu: &mut Cpu, a: T, b: T, count: u32) -> T {
    let (wide_a, wide_b) = (u128::from(a.to_u64()), u128::from(b.to_u64()));
    let bits = T::BITS;
    let chain =
        if bits == 16 { wide_a << 32 | wide_b << 16 | wide_a } else { wide_b << bits | wide_a };
    let result = T::from_u64((chain >> count) as u64);
    let before_last = T::from_u64((chain >> (count - 1)) as u64);
    let cf = before_last.to_u64() & 1 != 0;
    cpu.flags = shift_flags(result, cf, top_bit(before_last) != top_bit(result));
    result
}

/// SHLD and SHRD. The count is CL if the form has no immediate.
trait DoubleShift {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T, count: u32) -> T;
}

struct Shld;
struct Shrd;

impl DoubleShift for Shld {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T, count: u32) -> T {
        shld(cpu, a, b, count)
    }
}

impl DoubleShift for Shrd {
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T, count: u32) -> T {
        shrd(cpu, a, b, count)
    }
}

fn double_r<D: DoubleShift, T: Word>(cpu: &mut Cpu, op: &Op, count: u32) {
    let (a, b) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    let count = count & mask_of::<T>();
    let result = if count == 0 { a } else { D::apply(cpu, a, b, count) };
    T::set(cpu, op.r[0], result);
}

fn double_m<D: DoubleShift, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    count: u32,
) -> Result<(), Fault> {
    let b = T::get(cpu, op.r[1]);
    let count = count & mask_of::<T>();
    cpu.modify::<T>(env, op, |cpu, a| if count == 0 { a } else { D::apply(cpu, a, b, count) })
}

fn double_ri<D: DoubleShift, T: Word>(
    cpu: &mut Cpu,
    _: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    double_r::<D, T>(cpu, op, op.imm as u32);
    Ok(())
}

fn double_mi<D: DoubleShift, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    double_m::<D, T>(cpu, env, op, op.imm as u32)
}

fn double_rc<D: DoubleShift, T: Word>(
    cpu: &mut Cpu,
    _: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    let count = cpu.gpr(1) as u32;
    double_r::<D, T>(cpu, op, count);
    Ok(())
}

fn double_mc<D: DoubleShift, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    let count = cpu.gpr(1) as u32;
    double_m::<D, T>(cpu, env, op, count)
}

/// What BT, BTS, BTR and BTC do to the bit.
trait BitChange {
    /// False for BT.
    const WRITES: bool = true;

    fn apply(value: u64, bit: u64) -> u64;
}

struct Bt;
struct Bts;
struct Btr;
struct Btc;

impl BitChange for Bt {
    const WRITES: bool = false;

    #[inline(always)]
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}

impl BitChange for Bts {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

impl BitChange for Btr {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

impl BitChange for Btc {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

#[inline(always)]
fn change_bit<B: BitChange, T: Word>(cpu: &mut Cpu, value: T, number: u64) -> T {
    let bit = 1 << (number & u64::from(T::BITS - 1));
    cpu.flags = cpu.flags.with_cf(value.to_u64() & bit != 0);
    T::from_u64(B::apply(value.to_u64(), bit))
}

fn bit_r<B: BitChange, T: Word>(cpu: &mut Cpu, op: &Op, number: u64) {
    let value = T::get(cpu, op.r[0]);
    let result = change_bit::<B, T>(cpu, value, number);
    if B::WRITES {
        T::set(cpu, op.r[0], result);
    }
}

fn bit_at<B: BitChange, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    number: u64,
    delta: u64,
) -> Result<(), Fault> {
    let stack = op.has(Op::STACK);
    let linear = cpu.linear_plus(op, delta, size_of::<T>() as u32, B::WRITES)?;
    if B::WRITES {
        return cpu.modify_linear::<T>(env, linear, stack, |cpu, value| {
            change_bit::<B, T>(cpu, value, number)
        });
    }
    let value = cpu.load_linear::<T>(env, linear, stack)?;
    change_bit::<B, T>(cpu, value, number);
    Ok(())
}

fn bit_rr<B: BitChange, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let number = T::get(cpu, op.r[1]).to_u64();
    bit_r::<B, T>(cpu, op, number);
    Ok(())
}

fn bit_ri<B: BitChange, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    bit_r::<B, T>(cpu, op, op.imm);
    Ok(())
}

/// A bit number in a register reaches beyond the operand, forwards and backwards.
fn bit_mr<B: BitChange, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let number = T::get(cpu, op.r[1]).sext() as i64;
    let words = number >> T::BITS.trailing_zeros();
    let delta = words.wrapping_mul(size_of::<T>() as i64);
    bit_at::<B, T>(cpu, env, op, number as u64, delta as u64)
}

fn bit_mi<B: BitChange, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    bit_at::<B, T>(cpu, env, op, op.imm, 0)
}

/// BSF and BSR. A source of 0 leaves the destination.
trait Scan {
    fn apply<T: Word>(value: u64) -> u64;
}

struct Bsf;
struct Bsr;

impl Scan for Bsf {
    #[inline(always)]
    fn apply<T: Word>(value: u64) -> u64 {
        u64::from(value.trailing_zeros())
    }
}

impl Scan for Bsr {
    #[inline(always)]
    fn apply<T: Word>(value: u64) -> u64 {
        u64::from(63 - value.leading_zeros())
    }
}

fn scan<S: Scan, T: Word>(cpu: &mut Cpu, op: &Op, source: T) {
    let source = source.to_u64();
    cpu.flags = cpu.flags.with_zf(source == 0);
    if source != 0 {
        T::set(cpu, op.r[0], T::from_u64(S::apply::<T>(source)));
    }
}

fn scan_rr<S: Scan, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = T::get(cpu, op.r[1]);
    scan::<S, T>(cpu, op, source);
    Ok(())
}

fn scan_rm<S: Scan, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.load::<T>(env, op)?;
    scan::<S, T>(cpu, op, source);
    Ok(())
}

fn popcnt<T: Word>(cpu: &mut Cpu, op: &Op, source: T) {
    let count = u64::from(source.to_u64().count_ones());
    cpu.flags = Flags::from_rflags(if count == 0 { Rflags::ZF } else { 0 });
    T::set(cpu, op.r[0], T::from_u64(count));
}

fn popcnt_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = T::get(cpu, op.r[1]);
    popcnt(cpu, op, source);
    Ok(())
}

fn popcnt_rm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.load::<T>(env, op)?;
    popcnt(cpu, op, source);
    Ok(())
}

/// The CRC-32C of each byte value, for the reflected polynomial.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

fn crc32<T: Word>(cpu: &mut Cpu, op: &Op, source: T) {
    let mut crc = u32::get(cpu, op.r[0]);
    for byte in mem::bytes_of(&source) {
        crc = crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    }
    u32::set(cpu, op.r[0], crc);
}

fn crc32_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = T::get(cpu, op.r[1]);
    crc32(cpu, op, source);
    Ok(())
}

fn crc32_rm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.load::<T>(env, op)?;
    crc32(cpu, op, source);
    Ok(())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::both(Code::Rol_rm8_imm8, shift_ri::<Rol, u8>, shift_mi::<Rol, u8>),
    Form::both(Code::Rol_rm8_1, shift_ri::<Rol, u8>, shift_mi::<Rol, u8>),
    Form::both(Code::Rol_rm8_CL, shift_rc::<Rol, u8>, shift_mc::<Rol, u8>),
    Form::both(Code::Rol_rm16_imm8, shift_ri::<Rol, u16>, shift_mi::<Rol, u16>),
    Form::both(Code::Rol_rm16_1, shift_ri::<Rol, u16>, shift_mi::<Rol, u16>),
    Form::both(Code::Rol_rm16_CL, shift_rc::<Rol, u16>, shift_mc::<Rol, u16>),
    Form::both(Code::Rol_rm32_imm8, shift_ri::<Rol, u32>, shift_mi::<Rol, u32>),
    Form::both(Code::Rol_rm32_1, shift_ri::<Rol, u32>, shift_mi::<Rol, u32>),
    Form::both(Code::Rol_rm32_CL, shift_rc::<Rol, u32>, shift_mc::<Rol, u32>),
    Form::both(Code::Rol_rm64_imm8, shift_ri::<Rol, u64>, shift_mi::<Rol, u64>),
    Form::both(Code::Rol_rm64_1, shift_ri::<Rol, u64>, shift_mi::<Rol, u64>),
    Form::both(Code::Rol_rm64_CL, shift_rc::<Rol, u64>, shift_mc::<Rol, u64>),
    Form::both(Code::Ror_rm8_imm8, shift_ri::<Ror, u8>, shift_mi::<Ror, u8>),
    Form::both(Code::Ror_rm8_1, shift_ri::<Ror, u8>, shift_mi::<Ror, u8>),
    Form::both(Code::Ror_rm8_CL, shift_rc::<Ror, u8>, shift_mc::<Ror, u8>),
    Form::both(Code::Ror_rm16_imm8, shift_ri::<Ror, u16>, shift_mi::<Ror, u16>),
    Form::both(Code::Ror_rm16_1, shift_ri::<Ror, u16>, shift_mi::<Ror, u16>),
    Form::both(Code::Ror_rm16_CL, shift_rc::<Ror, u16>, shift_mc::<Ror, u16>),
    Form::both(Code::Ror_rm32_imm8, shift_ri::<Ror, u32>, shift_mi::<Ror, u32>),
    Form::both(Code::Ror_rm32_1, shift_ri::<Ror, u32>, shift_mi::<Ror, u32>),
    Form::both(Code::Ror_rm32_CL, shift_rc::<Ror, u32>, shift_mc::<Ror, u32>),
    Form::both(Code::Ror_rm64_imm8, shift_ri::<Ror, u64>, shift_mi::<Ror, u64>),
    Form::both(Code::Ror_rm64_1, shift_ri::<Ror, u64>, shift_mi::<Ror, u64>),
    Form::both(Code::Ror_rm64_CL, shift_rc::<Ror, u64>, shift_mc::<Ror, u64>),
    Form::both(Code::Rcl_rm8_imm8, shift_ri::<Rcl, u8>, shift_mi::<Rcl, u8>),
    Form::both(Code::Rcl_rm8_1, shift_ri::<Rcl, u8>, shift_mi::<Rcl, u8>),
    Form::both(Code::Rcl_rm8_CL, shift_rc::<Rcl, u8>, shift_mc::<Rcl, u8>),
    Form::both(Code::Rcl_rm16_imm8, shift_ri::<Rcl, u16>, shift_mi::<Rcl, u16>),
    Form::both(Code::Rcl_rm16_1, shift_ri::<Rcl, u16>, shift_mi::<Rcl, u16>),
    Form::both(Code::Rcl_rm16_CL, shift_rc::<Rcl, u16>, shift_mc::<Rcl, u16>),
    Form::both(Code::Rcl_rm32_imm8, shift_ri::<Rcl, u32>, shift_mi::<Rcl, u32>),
    Form::both(Code::Rcl_rm32_1, shift_ri::<Rcl, u32>, shift_mi::<Rcl, u32>),
    Form::both(Code::Rcl_rm32_CL, shift_rc::<Rcl, u32>, shift_mc::<Rcl, u32>),
    Form::both(Code::Rcl_rm64_imm8, shift_ri::<Rcl, u64>, shift_mi::<Rcl, u64>),
    Form::both(Code::Rcl_rm64_1, shift_ri::<Rcl, u64>, shift_mi::<Rcl, u64>),
    Form::both(Code::Rcl_rm64_CL, shift_rc::<Rcl, u64>, shift_mc::<Rcl, u64>),
    Form::both(Code::Rcr_rm8_imm8, shift_ri::<Rcr, u8>, shift_mi::<Rcr, u8>),
    Form::both(Code::Rcr_rm8_1, shift_ri::<Rcr, u8>, shift_mi::<Rcr, u8>),
    Form::both(Code::Rcr_rm8_CL, shift_rc::<Rcr, u8>, shift_mc::<Rcr, u8>),
    Form::both(Code::Rcr_rm16_imm8, shift_ri::<Rcr, u16>, shift_mi::<Rcr, u16>),
    Form::both(Code::Rcr_rm16_1, shift_ri::<Rcr, u16>, shift_mi::<Rcr, u16>),
    Form::both(Code::Rcr_rm16_CL, shift_rc::<Rcr, u16>, shift_mc::<Rcr, u16>),
    Form::both(Code::Rcr_rm32_imm8, shift_ri::<Rcr, u32>, shift_mi::<Rcr, u32>),
    Form::both(Code::Rcr_rm32_1, shift_ri::<Rcr, u32>, shift_mi::<Rcr, u32>),
    Form::both(Code::Rcr_rm32_CL, shift_rc::<Rcr, u32>, shift_mc::<Rcr, u32>),
    Form::both(Code::Rcr_rm64_imm8, shift_ri::<Rcr, u64>, shift_mi::<Rcr, u64>),
    Form::both(Code::Rcr_rm64_1, shift_ri::<Rcr, u64>, shift_mi::<Rcr, u64>),
    Form::both(Code::Rcr_rm64_CL, shift_rc::<Rcr, u64>, shift_mc::<Rcr, u64>),
    Form::both(Code::Shl_rm8_imm8, shift_ri::<Shl, u8>, shift_mi::<Shl, u8>),
    Form::both(Code::Shl_rm8_1, shift_ri::<Shl, u8>, shift_mi::<Shl, u8>),
    Form::both(Code::Shl_rm8_CL, shift_rc::<Shl, u8>, shift_mc::<Shl, u8>),
    Form::both(Code::Shl_rm16_imm8, shift_ri::<Shl, u16>, shift_mi::<Shl, u16>),
    Form::both(Code::Shl_rm16_1, shift_ri::<Shl, u16>, shift_mi::<Shl, u16>),
    Form::both(Code::Shl_rm16_CL, shift_rc::<Shl, u16>, shift_mc::<Shl, u16>),
    Form::both(Code::Shl_rm32_imm8, shift_ri::<Shl, u32>, shift_mi::<Shl, u32>),
    Form::both(Code::Shl_rm32_1, shift_ri::<Shl, u32>, shift_mi::<Shl, u32>),
    Form::both(Code::Shl_rm32_CL, shift_rc::<Shl, u32>, shift_mc::<Shl, u32>),
    Form::both(Code::Shl_rm64_imm8, shift_ri::<Shl, u64>, shift_mi::<Shl, u64>),
    Form::both(Code::Shl_rm64_1, shift_ri::<Shl, u64>, shift_mi::<Shl, u64>),
    Form::both(Code::Shl_rm64_CL, shift_rc::<Shl, u64>, shift_mc::<Shl, u64>),
    Form::both(Code::Shr_rm8_imm8, shift_ri::<Shr, u8>, shift_mi::<Shr, u8>),
    Form::both(Code::Shr_rm8_1, shift_ri::<Shr, u8>, shift_mi::<Shr, u8>),
    Form::both(Code::Shr_rm8_CL, shift_rc::<Shr, u8>, shift_mc::<Shr, u8>),
    Form::both(Code::Shr_rm16_imm8, shift_ri::<Shr, u16>, shift_mi::<Shr, u16>),
    Form::both(Code::Shr_rm16_1, shift_ri::<Shr, u16>, shift_mi::<Shr, u16>),
    Form::both(Code::Shr_rm16_CL, shift_rc::<Shr, u16>, shift_mc::<Shr, u16>),
    Form::both(Code::Shr_rm32_imm8, shift_ri::<Shr, u32>, shift_mi::<Shr, u32>),
    Form::both(Code::Shr_rm32_1, shift_ri::<Shr, u32>, shift_mi::<Shr, u32>),
    Form::both(Code::Shr_rm32_CL, shift_rc::<Shr, u32>, shift_mc::<Shr, u32>),
    Form::both(Code::Shr_rm64_imm8, shift_ri::<Shr, u64>, shift_mi::<Shr, u64>),
    Form::both(Code::Shr_rm64_1, shift_ri::<Shr, u64>, shift_mi::<Shr, u64>),
    Form::both(Code::Shr_rm64_CL, shift_rc::<Shr, u64>, shift_mc::<Shr, u64>),
    Form::both(Code::Sal_rm8_imm8, shift_ri::<Shl, u8>, shift_mi::<Shl, u8>),
    Form::both(Code::Sal_rm8_1, shift_ri::<Shl, u8>, shift_mi::<Shl, u8>),
    Form::both(Code::Sal_rm8_CL, shift_rc::<Shl, u8>, shift_mc::<Shl, u8>),
    Form::both(Code::Sal_rm16_imm8, shift_ri::<Shl, u16>, shift_mi::<Shl, u16>),
    Form::both(Code::Sal_rm16_1, shift_ri::<Shl, u16>, shift_mi::<Shl, u16>),
    Form::both(Code::Sal_rm16_CL, shift_rc::<Shl, u16>, shift_mc::<Shl, u16>),
    Form::both(Code::Sal_rm32_imm8, shift_ri::<Shl, u32>, shift_mi::<Shl, u32>),
    Form::both(Code::Sal_rm32_1, shift_ri::<Shl, u32>, shift_mi::<Shl, u32>),
    Form::both(Code::Sal_rm32_CL, shift_rc::<Shl, u32>, shift_mc::<Shl, u32>),
    Form::both(Code::Sal_rm64_imm8, shift_ri::<Shl, u64>, shift_mi::<Shl, u64>),
    Form::both(Code::Sal_rm64_1, shift_ri::<Shl, u64>, shift_mi::<Shl, u64>),
    Form::both(Code::Sal_rm64_CL, shift_rc::<Shl, u64>, shift_mc::<Shl, u64>),
    Form::both(Code::Sar_rm8_imm8, shift_ri::<Sar, u8>, shift_mi::<Sar, u8>),
    Form::both(Code::Sar_rm8_1, shift_ri::<Sar, u8>, shift_mi::<Sar, u8>),
    Form::both(Code::Sar_rm8_CL, shift_rc::<Sar, u8>, shift_mc::<Sar, u8>),
    Form::both(Code::Sar_rm16_imm8, shift_ri::<Sar, u16>, shift_mi::<Sar, u16>),
    Form::both(Code::Sar_rm16_1, shift_ri::<Sar, u16>, shift_mi::<Sar, u16>),
    Form::both(Code::Sar_rm16_CL, shift_rc::<Sar, u16>, shift_mc::<Sar, u16>),
    Form::both(Code::Sar_rm32_imm8, shift_ri::<Sar, u32>, shift_mi::<Sar, u32>),
    Form::both(Code::Sar_rm32_1, shift_ri::<Sar, u32>, shift_mi::<Sar, u32>),
    Form::both(Code::Sar_rm32_CL, shift_rc::<Sar, u32>, shift_mc::<Sar, u32>),
    Form::both(Code::Sar_rm64_imm8, shift_ri::<Sar, u64>, shift_mi::<Sar, u64>),
    Form::both(Code::Sar_rm64_1, shift_ri::<Sar, u64>, shift_mi::<Sar, u64>),
    Form::both(Code::Sar_rm64_CL, shift_rc::<Sar, u64>, shift_mc::<Sar, u64>),
    Form::both(Code::Shld_rm16_r16_imm8, double_ri::<Shld, u16>, double_mi::<Shld, u16>),
    Form::both(Code::Shld_rm16_r16_CL, double_rc::<Shld, u16>, double_mc::<Shld, u16>),
    Form::both(Code::Shld_rm32_r32_imm8, double_ri::<Shld, u32>, double_mi::<Shld, u32>),
    Form::both(Code::Shld_rm32_r32_CL, double_rc::<Shld, u32>, double_mc::<Shld, u32>),
    Form::both(Code::Shld_rm64_r64_imm8, double_ri::<Shld, u64>, double_mi::<Shld, u64>),
    Form::both(Code::Shld_rm64_r64_CL, double_rc::<Shld, u64>, double_mc::<Shld, u64>),
    Form::both(Code::Shrd_rm16_r16_imm8, double_ri::<Shrd, u16>, double_mi::<Shrd, u16>),
    Form::both(Code::Shrd_rm16_r16_CL, double_rc::<Shrd, u16>, double_mc::<Shrd, u16>),
    Form::both(Code::Shrd_rm32_r32_imm8, double_ri::<Shrd, u32>, double_mi::<Shrd, u32>),
    Form::both(Code::Shrd_rm32_r32_CL, double_rc::<Shrd, u32>, double_mc::<Shrd, u32>),
    Form::both(Code::Shrd_rm64_r64_imm8, double_ri::<Shrd, u64>, double_mi::<Shrd, u64>),
    Form::both(Code::Shrd_rm64_r64_CL, double_rc::<Shrd, u64>, double_mc::<Shrd, u64>),
    Form::both(Code::Bt_rm16_r16, bit_rr::<Bt, u16>, bit_mr::<Bt, u16>),
    Form::both(Code::Bt_rm16_imm8, bit_ri::<Bt, u16>, bit_mi::<Bt, u16>),
    Form::both(Code::Bt_rm32_r32, bit_rr::<Bt, u32>, bit_mr::<Bt, u32>),
    Form::both(Code::Bt_rm32_imm8, bit_ri::<Bt, u32>, bit_mi::<Bt, u32>),
    Form::both(Code::Bt_rm64_r64, bit_rr::<Bt, u64>, bit_mr::<Bt, u64>),
    Form::both(Code::Bt_rm64_imm8, bit_ri::<Bt, u64>, bit_mi::<Bt, u64>),
    Form::both(Code::Bts_rm16_r16, bit_rr::<Bts, u16>, bit_mr::<Bts, u16>),
    Form::both(Code::Bts_rm16_imm8, bit_ri::<Bts, u16>, bit_mi::<Bts, u16>),
    Form::both(Code::Bts_rm32_r32, bit_rr::<Bts, u32>, bit_mr::<Bts, u32>),
    Form::both(Code::Bts_rm32_imm8, bit_ri::<Bts, u32>, bit_mi::<Bts, u32>),
    Form::both(Code::Bts_rm64_r64, bit_rr::<Bts, u64>, bit_mr::<Bts, u64>),
    Form::both(Code::Bts_rm64_imm8, bit_ri::<Bts, u64>, bit_mi::<Bts, u64>),
    Form::both(Code::Btr_rm16_r16, bit_rr::<Btr, u16>, bit_mr::<Btr, u16>),
    Form::both(Code::Btr_rm16_imm8, bit_ri::<Btr, u16>, bit_mi::<Btr, u16>),
    Form::both(Code::Btr_rm32_r32, bit_rr::<Btr, u32>, bit_mr::<Btr, u32>),
    Form::both(Code::Btr_rm32_imm8, bit_ri::<Btr, u32>, bit_mi::<Btr, u32>),
    Form::both(Code::Btr_rm64_r64, bit_rr::<Btr, u64>, bit_mr::<Btr, u64>),
    Form::both(Code::Btr_rm64_imm8, bit_ri::<Btr, u64>, bit_mi::<Btr, u64>),
    Form::both(Code::Btc_rm16_r16, bit_rr::<Btc, u16>, bit_mr::<Btc, u16>),
    Form::both(Code::Btc_rm16_imm8, bit_ri::<Btc, u16>, bit_mi::<Btc, u16>),
    Form::both(Code::Btc_rm32_r32, bit_rr::<Btc, u32>, bit_mr::<Btc, u32>),
    Form::both(Code::Btc_rm32_imm8, bit_ri::<Btc, u32>, bit_mi::<Btc, u32>),
    Form::both(Code::Btc_rm64_r64, bit_rr::<Btc, u64>, bit_mr::<Btc, u64>),
    Form::both(Code::Btc_rm64_imm8, bit_ri::<Btc, u64>, bit_mi::<Btc, u64>),
    Form::both(Code::Bsf_r16_rm16, scan_rr::<Bsf, u16>, scan_rm::<Bsf, u16>),
    Form::both(Code::Bsf_r32_rm32, scan_rr::<Bsf, u32>, scan_rm::<Bsf, u32>),
    Form::both(Code::Bsf_r64_rm64, scan_rr::<Bsf, u64>, scan_rm::<Bsf, u64>),
    Form::both(Code::Bsr_r16_rm16, scan_rr::<Bsr, u16>, scan_rm::<Bsr, u16>),
    Form::both(Code::Bsr_r32_rm32, scan_rr::<Bsr, u32>, scan_rm::<Bsr, u32>),
    Form::both(Code::Bsr_r64_rm64, scan_rr::<Bsr, u64>, scan_rm::<Bsr, u64>),
    Form::both(Code::Popcnt_r16_rm16, popcnt_rr::<u16>, popcnt_rm::<u16>),
    Form::both(Code::Popcnt_r32_rm32, popcnt_rr::<u32>, popcnt_rm::<u32>),
    Form::both(Code::Popcnt_r64_rm64, popcnt_rr::<u64>, popcnt_rm::<u64>),
    Form::both(Code::Crc32_r32_rm8, crc32_rr::<u8>, crc32_rm::<u8>),
    Form::both(Code::Crc32_r64_rm8, crc32_rr::<u8>, crc32_rm::<u8>),
    Form::both(Code::Crc32_r32_rm16, crc32_rr::<u16>, crc32_rm::<u16>),
    Form::both(Code::Crc32_r32_rm32, crc32_rr::<u32>, crc32_rm::<u32>),
    Form::both(Code::Crc32_r64_rm64, crc32_rr::<u64>, crc32_rm::<u64>),
];
