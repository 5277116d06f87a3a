//! Operand sizes of integer instructions.

use mem::Pod;

use crate::{Cpu, Op};

/// An operand of 8, 16, 32 or 64 bits.
pub trait Word: Pod + Copy + Eq {
    /// Its width.
    const BITS: u32;

    /// The low bits of `value`.
    fn from_u64(value: u64) -> Self;

    /// Zero-extended.
    fn to_u64(self) -> u64;

    /// Sign-extended.
    fn sext(self) -> u64;

    /// Reads register number `r` as an [`Op`] has it.
    fn get(cpu: &Cpu, r: u8) -> Self;

    /// Writes register number `r`. 32 bits clear the upper half, 8 and 16 leave the rest.
    fn set(cpu: &mut Cpu, r: u8, value: Self);
}

impl Word for u8 {
    const BITS: u32 = 8;

    #[inline(always)]
    fn from_u64(value: u64) -> u8 {
        value as u8
    }

    #[inline(always)]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sext(self) -> u64 {
        self as i8 as u64
    }

    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u8 {
        (cpu.gpr[usize::from(r & 15)] >> high_shift(r)) as u8
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, value: u8) {
        let shift = high_shift(r);
        let reg = &mut cpu.gpr[usize::from(r & 15)];
        *reg = *reg & !(0xff << shift) | u64::from(value) << shift;
    }
}

/// 8 for AH to BH, else 0.
#[inline(always)]
fn high_shift(r: u8) -> u32 {
    u32::from((r & Op::HIGH_BYTE) >> 2)
}

impl Word for u16 {
    const BITS: u32 = 16;

    #[inline(always)]
    fn from_u64(value: u64) -> u16 {
        value as u16
    }

    #[inline(always)]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sext(self) -> u64 {
        self as i16 as u64
    }

    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u16 {
        cpu.gpr[usize::from(r & 15)] as u16
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, value: u16) {
        let reg = &mut cpu.gpr[usize::from(r & 15)];
        *reg = *reg & !0xffff | u64::from(value);
    }
}

impl Word for u32 {
    const BITS: u32 = 32;

    #[inline(always)]
    fn from_u64(value: u64) -> u32 {
        value as u32
    }

    #[inline(always)]
    fn to_u64(self) -> u64 {
        u64::from(self)
    }

    #[inline(always)]
    fn sext(self) -> u64 {
        self as i32 as u64
    }

    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u32 {
        cpu.gpr[usize::from(r & 15)] as u32
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, value: u32) {
        cpu.gpr[usize::from(r & 15)] = u64::from(value);
    }
}

impl Word for u64 {
    const BITS: u32 = 64;

    #[inline(always)]
    fn from_u64(value: u64) -> u64 {
        value
    }

    #[inline(always)]
    fn to_u64(self) -> u64 {
        self
    }

    #[inline(always)]
    fn sext(self) -> u64 {
        self
    }

    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u64 {
        cpu.gpr[usize::from(r & 15)]
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, value: u64) {
        cpu.gpr[usize::from(r & 15)] = value;
    }
}
