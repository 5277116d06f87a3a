//! FXSAVE, FXRSTOR, XSAVE and XRSTOR (SDM volume 1, 10.5 and 13).
//!
//! The components are x87 (bit 0) and SSE (bit 1), always in the standard format; XSAVEOPT, XSAVEC
//! and XSAVES are hidden. What the manual leaves open:
//!
//! - XINUSE is computed from the registers: a component is in its initial configuration exactly
//!   while its registers hold the initial values (MXCSR does not count).
//! - FXSAVE stores and FXRSTOR loads SSE state whether or not CR4.OSFXSR is set.
//! - Reserved bytes between the fields are stored as zero; from byte 416 on (outside 64-bit mode from
//!   byte 288) FXSAVE stores nothing. The whole operand has to be accessible all the same.

use x86::iced::Code;
use x86::{Cr4, cpuid};

use crate::Cpu;
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::sse::MXCSR_MASK;
use crate::state::{F80, SseState, X87State};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
/// Where the parts of the area are.
const OPERAND_POINTER_AT: u64 = 16;
const MXCSR_AT: u64 = 24;
const REGISTERS_AT: u64 = 32;
const XMM_AT: u64 = 160;
const HEADER_AT: u64 = 512;
/// Legacy area and header.
const AREA_BYTES: u32 = 576;

/// The memory operand as an area to save to or restore from.
#[derive(Clone, Copy)]
struct Area {
    linear: u64,
    stack: bool,
    /// 64-bit pointers, without selectors.
    wide: bool,
    /// How many XMM registers the mode has.
    xmm_count: usize,
}

impl Area {
    fn of(
        cpu: &mut Cpu,
        op: &Op,
        bytes: u32,
        align: u64,
        write: bool,
        wide: bool,
    ) -> Result<Area, Fault> {
        let linear = cpu.linear(op, bytes, write)?;
        if linear & (align - 1) != 0 {
            return Err(cpu.gp());
        }
        let xmm_count = if cpu.is_64_bit() { 16 } else { 8 };
        Ok(Area { linear, stack: op.has(Op::STACK), wide, xmm_count })
    }

    fn at(&self, cpu: &Cpu, offset: u64) -> u64 {
        cpu.wrap(self.linear.wrapping_add(offset))
    }

    fn store<T: mem::Pod>(
        &self,
        cpu: &mut Cpu,
        env: &mut Env<'_>,
        offset: u64,
        value: T,
    ) -> Result<(), Fault> {
        let at = self.at(cpu, offset);
        cpu.store_linear(env, at, value, self.stack)
    }

    fn load<T: mem::Pod>(&self, cpu: &mut Cpu, env: &mut Env<'_>, offset: u64) -> Result<T, Fault> {
        let at = self.at(cpu, offset);
        cpu.load_linear(env, at, self.stack)
    }

    fn store_x87(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
        let x87 = &cpu.x87;
        let words = u128::from(x87.control)
            | u128::from(x87.status) << 16
            | u128::from(x87.full) << 32
            | u128::from(x87.opcode) << 48;
        let pointer = |pointer: u64, selector: u16| {
            if self.wide { pointer } else { pointer & 0xffff_ffff | u64::from(selector) << 32 }
        };
        let (ip, dp) = (pointer(x87.ip, x87.cs), pointer(x87.dp, x87.ds));
        self.store(cpu, env, 0, words | u128::from(ip) << 64)?;
        self.store(cpu, env, OPERAND_POINTER_AT, dp)?;
        for i in 0..8 {
            let value = cpu.x87.st(i).to_bits();
            self.store(cpu, env, REGISTERS_AT + 16 * u64::from(i), value)?;
        }
        Ok(())
    }

    fn load_x87(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<X87State, Fault> {
        let words: u128 = self.load(cpu, env, 0)?;
        let dp: u64 = self.load(cpu, env, OPERAND_POINTER_AT)?;
        let mut x87 = X87State::reset();
        x87.set_control(words as u16);
        x87.set_status((words >> 16) as u16);
        x87.full = (words >> 32) as u8;
        let mask = if self.wide { u64::MAX } else { 0xffff_ffff };
        x87.ip = (words >> 64) as u64 & mask;
        x87.dp = dp & mask;
        for i in 0..8u8 {
            let bits: u128 = self.load(cpu, env, REGISTERS_AT + 16 * u64::from(i))?;
            x87.regs[usize::from((x87.top() + i) & 7)] = F80::from_bits(bits);
        }
        Ok(x87)
    }

    fn store_sse(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
        let mxcsr = u64::from(cpu.sse.mxcsr) | u64::from(MXCSR_MASK) << 32;
        self.store(cpu, env, MXCSR_AT, mxcsr)?;
        for i in 0..self.xmm_count {
            let value = cpu.sse.xmm[i];
            self.store(cpu, env, XMM_AT + 16 * i as u64, value)?;
        }
        Ok(())
    }

    /// MXCSR, with #GP for bits that do not exist.
    fn load_mxcsr(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<u32, Fault> {
        let mxcsr: u32 = self.load(cpu, env, MXCSR_AT)?;
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(cpu.gp());
        }
        Ok(mxcsr)
    }

    /// The XMM registers; those that the mode does not have stay.
    fn load_xmm(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<[u128; 16], Fault> {
        let mut xmm = cpu.sse.xmm;
        for (i, register) in xmm.iter_mut().enumerate().take(self.xmm_count) {
            *register = self.load(cpu, env, XMM_AT + 16 * i as u64)?;
        }
        Ok(xmm)
    }
}

fn fxsave(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let area = Area::of(cpu, op, HEADER_AT as u32, 16, true, wide)?;
    cpu.check_store(env, area.linear, HEADER_AT as u32, area.stack)?;
    area.store_x87(cpu, env)?;
    area.store_sse(cpu, env)
}

fn fxrstor(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let area = Area::of(cpu, op, HEADER_AT as u32, 16, false, wide)?;
    let _: u8 = area.load(cpu, env, HEADER_AT - 1)?; // the whole operand has to be accessible
    let x87 = area.load_x87(cpu, env)?;
    let xmm = area.load_xmm(cpu, env)?;
    let mxcsr = area.load_mxcsr(cpu, env)?;
    cpu.x87 = x87;
    cpu.sse = SseState { xmm, mxcsr };
    Ok(())
}

/// The components that the instruction is asked for: EDX:EAX, as far as XCR0 allows.
fn requested(cpu: &mut Cpu) -> Result<u64, Fault> {
    if cpu.sys().cr4 & Cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let asked = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    Ok(asked & cpu.sys().xcr0 & cpuid::XCR0_ALL)
}

/// The components that are not in their initial configuration.
fn in_use(cpu: &Cpu) -> u64 {
    let mut initial = cpu.x87.clone();
    initial.init();
    initial.regs = [F80::ZERO; 8];
    let x87 = if cpu.x87 == initial { 0 } else { X87 };
    let sse = if cpu.sse.xmm.iter().all(|xmm| *xmm == 0) { 0 } else { SSE };
    x87 | sse
}

fn xsave(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let components = requested(cpu)?;
    let area = Area::of(cpu, op, AREA_BYTES, 64, true, wide)?;
    cpu.check_store(env, area.linear, AREA_BYTES, area.stack)?;
    let stored: u64 = area.load(cpu, env, HEADER_AT)?;
    if components & X87 != 0 {
        area.store_x87(cpu, env)?;
    }
    if components & SSE != 0 {
        area.store_sse(cpu, env)?;
    }
    let state = stored & !components | in_use(cpu) & components;
    area.store(cpu, env, HEADER_AT, state)
}

fn xrstor(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let components = requested(cpu)?;
    let area = Area::of(cpu, op, AREA_BYTES, 64, false, wide)?;
    let _: u8 = area.load(cpu, env, 0)?; // the whole operand has to be accessible
    let state: u64 = area.load(cpu, env, HEADER_AT)?;
    let compaction: u64 = area.load(cpu, env, HEADER_AT + 8)?;
    let reserved: u64 = area.load(cpu, env, HEADER_AT + 16)?;
    if state & !cpu.sys().xcr0 != 0 || compaction | reserved != 0 {
        return Err(cpu.gp());
    }
    let mut x87 = cpu.x87.clone();
    if components & X87 != 0 {
        if state & X87 != 0 {
            x87 = area.load_x87(cpu, env)?;
        } else {
            x87.init();
            x87.regs = [F80::ZERO; 8];
        }
    }
    let mut sse = cpu.sse.clone();
    if components & SSE != 0 {
        // In the standard format MXCSR comes from memory even if XMM is initial.
        sse.mxcsr = area.load_mxcsr(cpu, env)?;
        if state & SSE != 0 {
            sse.xmm = area.load_xmm(cpu, env)?;
        } else {
            sse.xmm[..area.xmm_count].fill(0);
        }
    }
    cpu.x87 = x87;
    cpu.sse = sse;
    Ok(())
}

/// FXSAVE to XRSTOR.
pub(crate) const FORMS: &[Form] = &[
    Form::mem(Code::Fxsave_m512byte, |cpu, env, op| fxsave(cpu, env, op, false))
        .gated(Gate::Fxsave),
    Form::mem(Code::Fxsave64_m512byte, |cpu, env, op| fxsave(cpu, env, op, true))
        .gated(Gate::Fxsave),
    Form::mem(Code::Fxrstor_m512byte, |cpu, env, op| fxrstor(cpu, env, op, false))
        .gated(Gate::Fxsave),
    Form::mem(Code::Fxrstor64_m512byte, |cpu, env, op| fxrstor(cpu, env, op, true))
        .gated(Gate::Fxsave),
    Form::mem(Code::Xsave_mem, |cpu, env, op| xsave(cpu, env, op, false)).gated(Gate::Xsave),
    Form::mem(Code::Xsave64_mem, |cpu, env, op| xsave(cpu, env, op, true)).gated(Gate::Xsave),
    Form::mem(Code::Xrstor_mem, |cpu, env, op| xrstor(cpu, env, op, false)).gated(Gate::Xsave),
    Form::mem(Code::Xrstor64_mem, |cpu, env, op| xrstor(cpu, env, op, true)).gated(Gate::Xsave),
];
