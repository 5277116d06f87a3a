//! Addition, subtraction, logic and comparison.

use x86::iced::Code;

use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::{Cpu, Flags, Word};

/// A function of two operands that sets the arithmetic flags.
trait Alu {
    /// False for CMP and TEST, which only set flags.
    const WRITES: bool = true;

    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T;
}

struct Add;
struct Or;
struct Adc;
struct Sbb;
struct And;
struct Sub;
struct Xor;
struct Cmp;
struct Test;

impl Alu for Add {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        let (a, b) = (a.to_u64(), b.to_u64());
        let result = T::from_u64(a.wrapping_add(b));
        cpu.flags = Flags::add(T::BITS, a, b, result.sext());
        result
    }
}

impl Alu for Adc {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        let (a, b) = (a.to_u64(), b.to_u64());
        let result = T::from_u64(a.wrapping_add(b).wrapping_add(u64::from(cpu.flags.cf())));
        cpu.flags = Flags::add(T::BITS, a, b, result.sext());
        result
    }
}

impl Alu for Sub {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        let (a, b) = (a.to_u64(), b.to_u64());
        let result = T::from_u64(a.wrapping_sub(b));
        cpu.flags = Flags::sub(T::BITS, a, b, result.sext());
        result
    }
}

impl Alu for Sbb {
    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        let (a, b) = (a.to_u64(), b.to_u64());
        let result = T::from_u64(a.wrapping_sub(b).wrapping_sub(u64::from(cpu.flags.cf())));
        cpu.flags = Flags::sub(T::BITS, a, b, result.sext());
        result
    }
}

impl Alu for Cmp {
    const WRITES: bool = false;

    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        Sub::apply(cpu, a, b)
    }
}

/// Declares a logic operation.
macro_rules! logic {
    ($($name:ident: $operator:tt,)*) => {
        $(impl Alu for $name {
            #[inline(always)]
            fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
                let result = T::from_u64(a.to_u64() $operator b.to_u64());
                cpu.flags = Flags::logic(result.sext());
                result
            }
        })*
    };
}

logic! {
    Or: |,
    And: &,
    Xor: ^,
}

impl Alu for Test {
    const WRITES: bool = false;

    #[inline(always)]
    fn apply<T: Word>(cpu: &mut Cpu, a: T, b: T) -> T {
        And::apply(cpu, a, b)
    }
}

fn rr<A: Alu, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let (a, b) = (T::get(cpu, op.r[0]), T::get(cpu, op.r[1]));
    let result = A::apply(cpu, a, b);
    if A::WRITES {
        T::set(cpu, op.r[0], result);
    }
    Ok(())
}

fn ri<A: Alu, T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let a = T::get(cpu, op.r[0]);
    let result = A::apply(cpu, a, T::from_u64(op.imm));
    if A::WRITES {
        T::set(cpu, op.r[0], result);
    }
    Ok(())
}

fn rm<A: Alu, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.load_then(env, op, |cpu, b: T| {
        let a = T::get(cpu, op.r[0]);
        let result = A::apply(cpu, a, b);
        if A::WRITES {
            T::set(cpu, op.r[0], result);
        }
        Ok(())
    })
}

fn mr<A: Alu, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let b = T::get(cpu, op.r[1]);
    to_memory::<A, T>(cpu, env, op, b)
}

fn mi<A: Alu, T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    to_memory::<A, T>(cpu, env, op, T::from_u64(op.imm))
}

#[inline(always)]
fn to_memory<A: Alu, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    b: T,
) -> Result<(), Fault> {
    if A::WRITES {
        return cpu.modify(env, op, |cpu, a| A::apply(cpu, a, b));
    }
    cpu.load_then(env, op, |cpu, a: T| {
        A::apply(cpu, a, b);
        Ok(())
    })
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::both(Code::Add_rm8_r8, rr::<Add, u8>, mr::<Add, u8>),
    Form::both(Code::Add_rm16_r16, rr::<Add, u16>, mr::<Add, u16>),
    Form::both(Code::Add_rm32_r32, rr::<Add, u32>, mr::<Add, u32>),
    Form::both(Code::Add_rm64_r64, rr::<Add, u64>, mr::<Add, u64>),
    Form::both(Code::Add_r8_rm8, rr::<Add, u8>, rm::<Add, u8>),
    Form::both(Code::Add_r16_rm16, rr::<Add, u16>, rm::<Add, u16>),
    Form::both(Code::Add_r32_rm32, rr::<Add, u32>, rm::<Add, u32>),
    Form::both(Code::Add_r64_rm64, rr::<Add, u64>, rm::<Add, u64>),
    Form::reg(Code::Add_AL_imm8, ri::<Add, u8>),
    Form::reg(Code::Add_AX_imm16, ri::<Add, u16>),
    Form::reg(Code::Add_EAX_imm32, ri::<Add, u32>),
    Form::reg(Code::Add_RAX_imm32, ri::<Add, u64>),
    Form::both(Code::Add_rm8_imm8, ri::<Add, u8>, mi::<Add, u8>),
    Form::both(Code::Add_rm16_imm16, ri::<Add, u16>, mi::<Add, u16>),
    Form::both(Code::Add_rm32_imm32, ri::<Add, u32>, mi::<Add, u32>),
    Form::both(Code::Add_rm64_imm32, ri::<Add, u64>, mi::<Add, u64>),
    Form::both(Code::Add_rm8_imm8_82, ri::<Add, u8>, mi::<Add, u8>),
    Form::both(Code::Add_rm16_imm8, ri::<Add, u16>, mi::<Add, u16>),
    Form::both(Code::Add_rm32_imm8, ri::<Add, u32>, mi::<Add, u32>),
    Form::both(Code::Add_rm64_imm8, ri::<Add, u64>, mi::<Add, u64>),
    Form::both(Code::Or_rm8_r8, rr::<Or, u8>, mr::<Or, u8>),
    Form::both(Code::Or_rm16_r16, rr::<Or, u16>, mr::<Or, u16>),
    Form::both(Code::Or_rm32_r32, rr::<Or, u32>, mr::<Or, u32>),
    Form::both(Code::Or_rm64_r64, rr::<Or, u64>, mr::<Or, u64>),
    Form::both(Code::Or_r8_rm8, rr::<Or, u8>, rm::<Or, u8>),
    Form::both(Code::Or_r16_rm16, rr::<Or, u16>, rm::<Or, u16>),
    Form::both(Code::Or_r32_rm32, rr::<Or, u32>, rm::<Or, u32>),
    Form::both(Code::Or_r64_rm64, rr::<Or, u64>, rm::<Or, u64>),
    Form::reg(Code::Or_AL_imm8, ri::<Or, u8>),
    Form::reg(Code::Or_AX_imm16, ri::<Or, u16>),
    Form::reg(Code::Or_EAX_imm32, ri::<Or, u32>),
    Form::reg(Code::Or_RAX_imm32, ri::<Or, u64>),
    Form::both(Code::Or_rm8_imm8, ri::<Or, u8>, mi::<Or, u8>),
    Form::both(Code::Or_rm16_imm16, ri::<Or, u16>, mi::<Or, u16>),
    Form::both(Code::Or_rm32_imm32, ri::<Or, u32>, mi::<Or, u32>),
    Form::both(Code::Or_rm64_imm32, ri::<Or, u64>, mi::<Or, u64>),
    Form::both(Code::Or_rm8_imm8_82, ri::<Or, u8>, mi::<Or, u8>),
    Form::both(Code::Or_rm16_imm8, ri::<Or, u16>, mi::<Or, u16>),
    Form::both(Code::Or_rm32_imm8, ri::<Or, u32>, mi::<Or, u32>),
    Form::both(Code::Or_rm64_imm8, ri::<Or, u64>, mi::<Or, u64>),
    Form::both(Code::Adc_rm8_r8, rr::<Adc, u8>, mr::<Adc, u8>),
    Form::both(Code::Adc_rm16_r16, rr::<Adc, u16>, mr::<Adc, u16>),
    Form::both(Code::Adc_rm32_r32, rr::<Adc, u32>, mr::<Adc, u32>),
    Form::both(Code::Adc_rm64_r64, rr::<Adc, u64>, mr::<Adc, u64>),
    Form::both(Code::Adc_r8_rm8, rr::<Adc, u8>, rm::<Adc, u8>),
    Form::both(Code::Adc_r16_rm16, rr::<Adc, u16>, rm::<Adc, u16>),
    Form::both(Code::Adc_r32_rm32, rr::<Adc, u32>, rm::<Adc, u32>),
    Form::both(Code::Adc_r64_rm64, rr::<Adc, u64>, rm::<Adc, u64>),
    Form::reg(Code::Adc_AL_imm8, ri::<Adc, u8>),
    Form::reg(Code::Adc_AX_imm16, ri::<Adc, u16>),
    Form::reg(Code::Adc_EAX_imm32, ri::<Adc, u32>),
    Form::reg(Code::Adc_RAX_imm32, ri::<Adc, u64>),
    Form::both(Code::Adc_rm8_imm8, ri::<Adc, u8>, mi::<Adc, u8>),
    Form::both(Code::Adc_rm16_imm16, ri::<Adc, u16>, mi::<Adc, u16>),
    Form::both(Code::Adc_rm32_imm32, ri::<Adc, u32>, mi::<Adc, u32>),
    Form::both(Code::Adc_rm64_imm32, ri::<Adc, u64>, mi::<Adc, u64>),
    Form::both(Code::Adc_rm8_imm8_82, ri::<Adc, u8>, mi::<Adc, u8>),
    Form::both(Code::Adc_rm16_imm8, ri::<Adc, u16>, mi::<Adc, u16>),
    Form::both(Code::Adc_rm32_imm8, ri::<Adc, u32>, mi::<Adc, u32>),
    Form::both(Code::Adc_rm64_imm8, ri::<Adc, u64>, mi::<Adc, u64>),
    Form::both(Code::Sbb_rm8_r8, rr::<Sbb, u8>, mr::<Sbb, u8>),
    Form::both(Code::Sbb_rm16_r16, rr::<Sbb, u16>, mr::<Sbb, u16>),
    Form::both(Code::Sbb_rm32_r32, rr::<Sbb, u32>, mr::<Sbb, u32>),
    Form::both(Code::Sbb_rm64_r64, rr::<Sbb, u64>, mr::<Sbb, u64>),
    Form::both(Code::Sbb_r8_rm8, rr::<Sbb, u8>, rm::<Sbb, u8>),
    Form::both(Code::Sbb_r16_rm16, rr::<Sbb, u16>, rm::<Sbb, u16>),
    Form::both(Code::Sbb_r32_rm32, rr::<Sbb, u32>, rm::<Sbb, u32>),
    Form::both(Code::Sbb_r64_rm64, rr::<Sbb, u64>, rm::<Sbb, u64>),
    Form::reg(Code::Sbb_AL_imm8, ri::<Sbb, u8>),
    Form::reg(Code::Sbb_AX_imm16, ri::<Sbb, u16>),
    Form::reg(Code::Sbb_EAX_imm32, ri::<Sbb, u32>),
    Form::reg(Code::Sbb_RAX_imm32, ri::<Sbb, u64>),
    Form::both(Code::Sbb_rm8_imm8, ri::<Sbb, u8>, mi::<Sbb, u8>),
    Form::both(Code::Sbb_rm16_imm16, ri::<Sbb, u16>, mi::<Sbb, u16>),
    Form::both(Code::Sbb_rm32_imm32, ri::<Sbb, u32>, mi::<Sbb, u32>),
    Form::both(Code::Sbb_rm64_imm32, ri::<Sbb, u64>, mi::<Sbb, u64>),
    Form::both(Code::Sbb_rm8_imm8_82, ri::<Sbb, u8>, mi::<Sbb, u8>),
    Form::both(Code::Sbb_rm16_imm8, ri::<Sbb, u16>, mi::<Sbb, u16>),
    Form::both(Code::Sbb_rm32_imm8, ri::<Sbb, u32>, mi::<Sbb, u32>),
    Form::both(Code::Sbb_rm64_imm8, ri::<Sbb, u64>, mi::<Sbb, u64>),
    Form::both(Code::And_rm8_r8, rr::<And, u8>, mr::<And, u8>),
    Form::both(Code::And_rm16_r16, rr::<And, u16>, mr::<And, u16>),
    Form::both(Code::And_rm32_r32, rr::<And, u32>, mr::<And, u32>),
    Form::both(Code::And_rm64_r64, rr::<And, u64>, mr::<And, u64>),
    Form::both(Code::And_r8_rm8, rr::<And, u8>, rm::<And, u8>),
    Form::both(Code::And_r16_rm16, rr::<And, u16>, rm::<And, u16>),
    Form::both(Code::And_r32_rm32, rr::<And, u32>, rm::<And, u32>),
    Form::both(Code::And_r64_rm64, rr::<And, u64>, rm::<And, u64>),
    Form::reg(Code::And_AL_imm8, ri::<And, u8>),
    Form::reg(Code::And_AX_imm16, ri::<And, u16>),
    Form::reg(Code::And_EAX_imm32, ri::<And, u32>),
    Form::reg(Code::And_RAX_imm32, ri::<And, u64>),
    Form::both(Code::And_rm8_imm8, ri::<And, u8>, mi::<And, u8>),
    Form::both(Code::And_rm16_imm16, ri::<And, u16>, mi::<And, u16>),
    Form::both(Code::And_rm32_imm32, ri::<And, u32>, mi::<And, u32>),
    Form::both(Code::And_rm64_imm32, ri::<And, u64>, mi::<And, u64>),
    Form::both(Code::And_rm8_imm8_82, ri::<And, u8>, mi::<And, u8>),
    Form::both(Code::And_rm16_imm8, ri::<And, u16>, mi::<And, u16>),
    Form::both(Code::And_rm32_imm8, ri::<And, u32>, mi::<And, u32>),
    Form::both(Code::And_rm64_imm8, ri::<And, u64>, mi::<And, u64>),
    Form::both(Code::Sub_rm8_r8, rr::<Sub, u8>, mr::<Sub, u8>),
    Form::both(Code::Sub_rm16_r16, rr::<Sub, u16>, mr::<Sub, u16>),
    Form::both(Code::Sub_rm32_r32, rr::<Sub, u32>, mr::<Sub, u32>),
    Form::both(Code::Sub_rm64_r64, rr::<Sub, u64>, mr::<Sub, u64>),
    Form::both(Code::Sub_r8_rm8, rr::<Sub, u8>, rm::<Sub, u8>),
    Form::both(Code::Sub_r16_rm16, rr::<Sub, u16>, rm::<Sub, u16>),
    Form::both(Code::Sub_r32_rm32, rr::<Sub, u32>, rm::<Sub, u32>),
    Form::both(Code::Sub_r64_rm64, rr::<Sub, u64>, rm::<Sub, u64>),
    Form::reg(Code::Sub_AL_imm8, ri::<Sub, u8>),
    Form::reg(Code::Sub_AX_imm16, ri::<Sub, u16>),
    Form::reg(Code::Sub_EAX_imm32, ri::<Sub, u32>),
    Form::reg(Code::Sub_RAX_imm32, ri::<Sub, u64>),
    Form::both(Code::Sub_rm8_imm8, ri::<Sub, u8>, mi::<Sub, u8>),
    Form::both(Code::Sub_rm16_imm16, ri::<Sub, u16>, mi::<Sub, u16>),
    Form::both(Code::Sub_rm32_imm32, ri::<Sub, u32>, mi::<Sub, u32>),
    Form::both(Code::Sub_rm64_imm32, ri::<Sub, u64>, mi::<Sub, u64>),
    Form::both(Code::Sub_rm8_imm8_82, ri::<Sub, u8>, mi::<Sub, u8>),
    Form::both(Code::Sub_rm16_imm8, ri::<Sub, u16>, mi::<Sub, u16>),
    Form::both(Code::Sub_rm32_imm8, ri::<Sub, u32>, mi::<Sub, u32>),
    Form::both(Code::Sub_rm64_imm8, ri::<Sub, u64>, mi::<Sub, u64>),
    Form::both(Code::Xor_rm8_r8, rr::<Xor, u8>, mr::<Xor, u8>),
    Form::both(Code::Xor_rm16_r16, rr::<Xor, u16>, mr::<Xor, u16>),
    Form::both(Code::Xor_rm32_r32, rr::<Xor, u32>, mr::<Xor, u32>),
    Form::both(Code::Xor_rm64_r64, rr::<Xor, u64>, mr::<Xor, u64>),
    Form::both(Code::Xor_r8_rm8, rr::<Xor, u8>, rm::<Xor, u8>),
    Form::both(Code::Xor_r16_rm16, rr::<Xor, u16>, rm::<Xor, u16>),
    Form::both(Code::Xor_r32_rm32, rr::<Xor, u32>, rm::<Xor, u32>),
    Form::both(Code::Xor_r64_rm64, rr::<Xor, u64>, rm::<Xor, u64>),
    Form::reg(Code::Xor_AL_imm8, ri::<Xor, u8>),
    Form::reg(Code::Xor_AX_imm16, ri::<Xor, u16>),
    Form::reg(Code::Xor_EAX_imm32, ri::<Xor, u32>),
    Form::reg(Code::Xor_RAX_imm32, ri::<Xor, u64>),
    Form::both(Code::Xor_rm8_imm8, ri::<Xor, u8>, mi::<Xor, u8>),
    Form::both(Code::Xor_rm16_imm16, ri::<Xor, u16>, mi::<Xor, u16>),
    Form::both(Code::Xor_rm32_imm32, ri::<Xor, u32>, mi::<Xor, u32>),
    Form::both(Code::Xor_rm64_imm32, ri::<Xor, u64>, mi::<Xor, u64>),
    Form::both(Code::Xor_rm8_imm8_82, ri::<Xor, u8>, mi::<Xor, u8>),
    Form::both(Code::Xor_rm16_imm8, ri::<Xor, u16>, mi::<Xor, u16>),
    Form::both(Code::Xor_rm32_imm8, ri::<Xor, u32>, mi::<Xor, u32>),
    Form::both(Code::Xor_rm64_imm8, ri::<Xor, u64>, mi::<Xor, u64>),
    Form::both(Code::Cmp_rm8_r8, rr::<Cmp, u8>, mr::<Cmp, u8>),
    Form::both(Code::Cmp_rm16_r16, rr::<Cmp, u16>, mr::<Cmp, u16>),
    Form::both(Code::Cmp_rm32_r32, rr::<Cmp, u32>, mr::<Cmp, u32>),
    Form::both(Code::Cmp_rm64_r64, rr::<Cmp, u64>, mr::<Cmp, u64>),
    Form::both(Code::Cmp_r8_rm8, rr::<Cmp, u8>, rm::<Cmp, u8>),
    Form::both(Code::Cmp_r16_rm16, rr::<Cmp, u16>, rm::<Cmp, u16>),
    Form::both(Code::Cmp_r32_rm32, rr::<Cmp, u32>, rm::<Cmp, u32>),
    Form::both(Code::Cmp_r64_rm64, rr::<Cmp, u64>, rm::<Cmp, u64>),
    Form::reg(Code::Cmp_AL_imm8, ri::<Cmp, u8>),
    Form::reg(Code::Cmp_AX_imm16, ri::<Cmp, u16>),
    Form::reg(Code::Cmp_EAX_imm32, ri::<Cmp, u32>),
    Form::reg(Code::Cmp_RAX_imm32, ri::<Cmp, u64>),
    Form::both(Code::Cmp_rm8_imm8, ri::<Cmp, u8>, mi::<Cmp, u8>),
    Form::both(Code::Cmp_rm16_imm16, ri::<Cmp, u16>, mi::<Cmp, u16>),
    Form::both(Code::Cmp_rm32_imm32, ri::<Cmp, u32>, mi::<Cmp, u32>),
    Form::both(Code::Cmp_rm64_imm32, ri::<Cmp, u64>, mi::<Cmp, u64>),
    Form::both(Code::Cmp_rm8_imm8_82, ri::<Cmp, u8>, mi::<Cmp, u8>),
    Form::both(Code::Cmp_rm16_imm8, ri::<Cmp, u16>, mi::<Cmp, u16>),
    Form::both(Code::Cmp_rm32_imm8, ri::<Cmp, u32>, mi::<Cmp, u32>),
    Form::both(Code::Cmp_rm64_imm8, ri::<Cmp, u64>, mi::<Cmp, u64>),
    Form::both(Code::Test_rm8_r8, rr::<Test, u8>, mr::<Test, u8>),
    Form::both(Code::Test_rm16_r16, rr::<Test, u16>, mr::<Test, u16>),
    Form::both(Code::Test_rm32_r32, rr::<Test, u32>, mr::<Test, u32>),
    Form::both(Code::Test_rm64_r64, rr::<Test, u64>, mr::<Test, u64>),
    Form::reg(Code::Test_AL_imm8, ri::<Test, u8>),
    Form::both(Code::Test_rm8_imm8, ri::<Test, u8>, mi::<Test, u8>),
    Form::both(Code::Test_rm8_imm8_F6r1, ri::<Test, u8>, mi::<Test, u8>),
    Form::reg(Code::Test_AX_imm16, ri::<Test, u16>),
    Form::both(Code::Test_rm16_imm16, ri::<Test, u16>, mi::<Test, u16>),
    Form::both(Code::Test_rm16_imm16_F7r1, ri::<Test, u16>, mi::<Test, u16>),
    Form::reg(Code::Test_EAX_imm32, ri::<Test, u32>),
    Form::both(Code::Test_rm32_imm32, ri::<Test, u32>, mi::<Test, u32>),
    Form::both(Code::Test_rm32_imm32_F7r1, ri::<Test, u32>, mi::<Test, u32>),
    Form::reg(Code::Test_RAX_imm32, ri::<Test, u64>),
    Form::both(Code::Test_rm64_imm32, ri::<Test, u64>, mi::<Test, u64>),
    Form::both(Code::Test_rm64_imm32_F7r1, ri::<Test, u64>, mi::<Test, u64>),
];
