//! INC, DEC, NEG, NOT, multiplication, division and decimal adjustment.
//!
//! Undefined flags: `docs/undefined.md`.

use x86::Vector;
use x86::iced::Code;

use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::{Cpu, Flags, Word};

/// A function of one operand.
trait Unary {
    fn apply<T: Word>(cpu: &mut Cpu, a: T) -> T;
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T) -> T {
        let result = T::from_u64(a.to_u64().wrapping_add(1));
        let cf = cpu.flags.cf();
        cpu.flags = Flags::add(T::BITS, a.to_u64(), 1, result.sext()).with_cf(cf);
        result
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T) -> T {
        let result = T::from_u64(a.to_u64().wrapping_sub(1));
        let cf = cpu.flags.cf();
        cpu.flags = Flags::sub(T::BITS, a.to_u64(), 1, result.sext()).with_cf(cf);
        result
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T) -> T {
        let result = T::from_u64(a.to_u64().wrapping_neg());
        cpu.flags = Flags::sub(T::BITS, 0, a.to_u64(), result.sext());
        result
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<T: Word>(_: &mut Cpu, a: T) -> T {
        T::from_u64(!a.to_u64())
    }
}

fn unary_r<U: Unary, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let a = T::get(cpu, op.r[0]);
    let result = U::apply(cpu, a);
    T::set(cpu, op.r[0], result);
    Ok(())
}

fn unary_m<U: Unary, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.modify::<T>(env, op, U::apply)
}

/// Writes a double-width result to AX, or to DX and AX of the operand's size.
#[inline(always)]
fn set_wide<T: Word>(cpu: &mut Cpu, value: u128) {
    if T::BITS == 8 {
        u16::set(cpu, 0, value as u16);
    } else {
        T::set(cpu, 0, T::from_u64(value as u64));
        T::set(cpu, 2, T::from_u64((value >> T::BITS) as u64));
    }
}

/// Reads a double-width operand from AX, or from DX and AX.
#[inline(always)]
fn wide<T: Word>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        u128::from(u16::get(cpu, 0))
    } else {
        u128::from(T::get(cpu, 2).to_u64()) << T::BITS | u128::from(T::get(cpu, 0).to_u64())
    }
}

/// Sign-extends the low `bits` bits.
fn sext_wide(value: u128, bits: u32) -> i128 {
    let shift = 128 - bits;
    (value << shift) as i128 >> shift
}

#[inline(always)]
fn mul<T: Word>(cpu: &mut Cpu, b: T) {
    let product = u128::from(T::get(cpu, 0).to_u64()) * u128::from(b.to_u64());
    set_wide::<T>(cpu, product);
    let overflow = product >> T::BITS != 0;
    let low = T::from_u64(product as u64);
    cpu.flags = Flags::logic(low.sext()).with_cf_of(overflow, overflow);
}

/// The signed product, truncated, with the flags.
#[inline(always)]
fn signed_product<T: Word>(cpu: &mut Cpu, a: T, b: T) -> i128 {
    let product = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    let low = T::from_u64(product as u64).sext();
    let overflow = i128::from(low as i64) != product;
    cpu.flags = Flags::logic(low).with_cf_of(overflow, overflow);
    product
}

fn mul_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let b = T::get(cpu, op.r[0]);
    mul::<T>(cpu, b);
    Ok(())
}

fn mul_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let b = cpu.load::<T>(env, op)?;
    mul::<T>(cpu, b);
    Ok(())
}

fn imul_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (a, b) = (T::get(cpu, 0), T::get(cpu, op.r[0]));
    let product = signed_product(cpu, a, b);
    set_wide::<T>(cpu, product as u128);
    Ok(())
}

fn imul_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let b = cpu.load::<T>(env, op)?;
    let a = T::get(cpu, 0);
    let product = signed_product(cpu, a, b);
    set_wide::<T>(cpu, product as u128);
    Ok(())
}

fn imul_rr<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (a, b) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    let product = signed_product(cpu, a, b);
    T::set(cpu, op.r[0], T::from_u64(product as u64));
    Ok(())
}

fn imul_rm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, b: T| {
        let a = T::get(cpu, op.r[0]);
        let product = signed_product(cpu, a, b);
        T::set(cpu, op.r[0], T::from_u64(product as u64));
        Ok(())
    })
}

fn imul_rri<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let a = T::get(cpu, op.r[1]);
    let product = signed_product(cpu, a, T::from_u64(op.imm));
    T::set(cpu, op.r[0], T::from_u64(product as u64));
    Ok(())
}

fn imul_rmi<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let a = cpu.load::<T>(env, op)?;
    let product = signed_product(cpu, a, T::from_u64(op.imm));
    T::set(cpu, op.r[0], T::from_u64(product as u64));
    Ok(())
}

#[inline(always)]
fn set_quotient<T: Word>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    if T::BITS == 8 {
        u16::set(cpu, 0, (remainder << 8 | quotient & 0xff) as u16);
    } else {
        T::set(cpu, 0, T::from_u64(quotient));
        T::set(cpu, 2, T::from_u64(remainder));
    }
}

#[inline(always)]
fn div<T: Word>(cpu: &mut Cpu, divisor: T) -> Result<(), Fault> {
    let dividend = wide::<T>(cpu);
    let divisor = divisor.to_u64();
    // The quotient fits if the upper half is below the divisor; this includes division by zero.
    if (dividend >> T::BITS) as u64 >= divisor {
        return Err(cpu.fault(Vector::DE));
    }
    match u64::try_from(dividend) {
        Ok(small) => set_quotient::<T>(cpu, small / divisor, small % divisor),
        Err(_) => {
            let wide_divisor = u128::from(divisor);
            let quotient = (dividend / wide_divisor) as u64;
            set_quotient::<T>(cpu, quotient, (dividend % wide_divisor) as u64);
        }
    }
    Ok(())
}

#[inline(always)]
fn idiv<T: Word>(cpu: &mut Cpu, divisor: T) -> Result<(), Fault> {
    let dividend = sext_wide(wide::<T>(cpu), 2 * T::BITS);
    let divisor = i128::from(divisor.sext() as i64);
    let Some(quotient) = dividend.checked_div(divisor) else {
        return Err(cpu.fault(Vector::DE));
    };
    if sext_wide(quotient as u128, T::BITS) != quotient {
        return Err(cpu.fault(Vector::DE));
    }
    set_quotient::<T>(
        cpu,
        quotient as u64,
        (dividend % divisor) as u64 & u64::MAX >> (64 - T::BITS),
    );
    Ok(())
}

fn div_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let divisor = T::get(cpu, op.r[0]);
    div(cpu, divisor)
}

fn div_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let divisor = cpu.load::<T>(env, op)?;
    div(cpu, divisor)
}

fn idiv_r<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let divisor = T::get(cpu, op.r[0]);
    idiv(cpu, divisor)
}

fn idiv_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let divisor = cpu.load::<T>(env, op)?;
    idiv(cpu, divisor)
}

/// Sets SF, ZF and PF by AL, and AF and CF as given. OF is 0.
fn set_decimal_flags(cpu: &mut Cpu, af: bool, cf: bool) {
    let al = u8::get(cpu, 0);
    let status = Flags::logic(al.sext()).to_rflags();
    cpu.flags = Flags::from_rflags(status | u64::from(af) << 4 | u64::from(cf));
}

fn daa(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let old = u8::get(cpu, 0);
    let (old_cf, af) = (cpu.flags.cf(), old & 15 > 9 || cpu.flags.af());
    let cf = old > 0x99 || old_cf;
    let value = old.wrapping_add(if af { 6 } else { 0 }).wrapping_add(if cf { 0x60 } else { 0 });
    u8::set(cpu, 0, value);
    set_decimal_flags(cpu, af, cf);
    Ok(())
}

fn das(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let old = u8::get(cpu, 0);
    let (old_cf, af) = (cpu.flags.cf(), old & 15 > 9 || cpu.flags.af());
    let high = old > 0x99 || old_cf;
    let cf = high || af && (old < 6 || old_cf);
    let value = old.wrapping_sub(if af { 6 } else { 0 }).wrapping_sub(if high { 0x60 } else { 0 });
    u8::set(cpu, 0, value);
    set_decimal_flags(cpu, af, cf);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let adjust = u8::get(cpu, 0) & 15 > 9 || cpu.flags.af();
    let ax = u16::get(cpu, 0).wrapping_add(if adjust { 0x106 } else { 0 });
    u16::set(cpu, 0, ax & 0xff0f);
    set_decimal_flags(cpu, adjust, adjust);
    Ok(())
}

fn aas(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let adjust = u8::get(cpu, 0) & 15 > 9 || cpu.flags.af();
    let ax = u16::get(cpu, 0).wrapping_sub(if adjust { 0x106 } else { 0 });
    u16::set(cpu, 0, ax & 0xff0f);
    set_decimal_flags(cpu, adjust, adjust);
    Ok(())
}

fn aam(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (al, base) = (u8::get(cpu, 0), op.imm as u8);
    if base == 0 {
        return Err(cpu.fault(Vector::DE));
    }
    u16::set(cpu, 0, u16::from(al / base) << 8 | u16::from(al % base));
    set_decimal_flags(cpu, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let ax = u16::get(cpu, 0);
    let value = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.imm as u8));
    u16::set(cpu, 0, u16::from(value));
    set_decimal_flags(cpu, false, false);
    Ok(())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::reg(Code::Inc_r16, unary_r::<Inc, u16>),
    Form::reg(Code::Inc_r32, unary_r::<Inc, u32>),
    Form::reg(Code::Dec_r16, unary_r::<Dec, u16>),
    Form::reg(Code::Dec_r32, unary_r::<Dec, u32>),
    Form::both(Code::Inc_rm8, unary_r::<Inc, u8>, unary_m::<Inc, u8>),
    Form::both(Code::Inc_rm16, unary_r::<Inc, u16>, unary_m::<Inc, u16>),
    Form::both(Code::Inc_rm32, unary_r::<Inc, u32>, unary_m::<Inc, u32>),
    Form::both(Code::Inc_rm64, unary_r::<Inc, u64>, unary_m::<Inc, u64>),
    Form::both(Code::Dec_rm8, unary_r::<Dec, u8>, unary_m::<Dec, u8>),
    Form::both(Code::Dec_rm16, unary_r::<Dec, u16>, unary_m::<Dec, u16>),
    Form::both(Code::Dec_rm32, unary_r::<Dec, u32>, unary_m::<Dec, u32>),
    Form::both(Code::Dec_rm64, unary_r::<Dec, u64>, unary_m::<Dec, u64>),
    Form::both(Code::Neg_rm8, unary_r::<Neg, u8>, unary_m::<Neg, u8>),
    Form::both(Code::Neg_rm16, unary_r::<Neg, u16>, unary_m::<Neg, u16>),
    Form::both(Code::Neg_rm32, unary_r::<Neg, u32>, unary_m::<Neg, u32>),
    Form::both(Code::Neg_rm64, unary_r::<Neg, u64>, unary_m::<Neg, u64>),
    Form::both(Code::Not_rm8, unary_r::<Not, u8>, unary_m::<Not, u8>),
    Form::both(Code::Not_rm16, unary_r::<Not, u16>, unary_m::<Not, u16>),
    Form::both(Code::Not_rm32, unary_r::<Not, u32>, unary_m::<Not, u32>),
    Form::both(Code::Not_rm64, unary_r::<Not, u64>, unary_m::<Not, u64>),
    Form::both(Code::Mul_rm8, mul_r::<u8>, mul_m::<u8>),
    Form::both(Code::Mul_rm16, mul_r::<u16>, mul_m::<u16>),
    Form::both(Code::Mul_rm32, mul_r::<u32>, mul_m::<u32>),
    Form::both(Code::Mul_rm64, mul_r::<u64>, mul_m::<u64>),
    Form::both(Code::Imul_rm8, imul_r::<u8>, imul_m::<u8>),
    Form::both(Code::Imul_rm16, imul_r::<u16>, imul_m::<u16>),
    Form::both(Code::Imul_rm32, imul_r::<u32>, imul_m::<u32>),
    Form::both(Code::Imul_rm64, imul_r::<u64>, imul_m::<u64>),
    Form::both(Code::Div_rm8, div_r::<u8>, div_m::<u8>),
    Form::both(Code::Div_rm16, div_r::<u16>, div_m::<u16>),
    Form::both(Code::Div_rm32, div_r::<u32>, div_m::<u32>),
    Form::both(Code::Div_rm64, div_r::<u64>, div_m::<u64>),
    Form::both(Code::Idiv_rm8, idiv_r::<u8>, idiv_m::<u8>),
    Form::both(Code::Idiv_rm16, idiv_r::<u16>, idiv_m::<u16>),
    Form::both(Code::Idiv_rm32, idiv_r::<u32>, idiv_m::<u32>),
    Form::both(Code::Idiv_rm64, idiv_r::<u64>, idiv_m::<u64>),
    Form::both(Code::Imul_r16_rm16, imul_rr::<u16>, imul_rm::<u16>),
    Form::both(Code::Imul_r32_rm32, imul_rr::<u32>, imul_rm::<u32>),
    Form::both(Code::Imul_r64_rm64, imul_rr::<u64>, imul_rm::<u64>),
    Form::both(Code::Imul_r16_rm16_imm8, imul_rri::<u16>, imul_rmi::<u16>),
    Form::both(Code::Imul_r16_rm16_imm16, imul_rri::<u16>, imul_rmi::<u16>),
    Form::both(Code::Imul_r32_rm32_imm8, imul_rri::<u32>, imul_rmi::<u32>),
    Form::both(Code::Imul_r32_rm32_imm32, imul_rri::<u32>, imul_rmi::<u32>),
    Form::both(Code::Imul_r64_rm64_imm8, imul_rri::<u64>, imul_rmi::<u64>),
    Form::both(Code::Imul_r64_rm64_imm32, imul_rri::<u64>, imul_rmi::<u64>),
    Form::reg(Code::Daa, daa),
    Form::reg(Code::Das, das),
    Form::reg(Code::Aaa, aaa),
    Form::reg(Code::Aas, aas),
    Form::reg(Code::Aam_imm8, aam),
    Form::reg(Code::Aad_imm8, aad),
];
