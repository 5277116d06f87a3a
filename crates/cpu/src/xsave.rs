//! FXSAVE, FXRSTOR, XSAVE, XSAVEC and XRSTOR (SDM volume 1, 10.5 and 13).
//!
//! The components are x87 (bit 0), SSE (bit 1) and, in a CPU with AVX, the upper halves of the YMM registers
//! (bit 2), which lie at the same place in the standard and in the compacted format. XSAVEOPT and XSAVES are
//! hidden. What the manual leaves open:
//!
//! - XINUSE is computed from the registers: a component is in its initial configuration exactly
//!   while its registers hold the initial values (MXCSR does not count).
//! - FXSAVE stores and FXRSTOR loads SSE state whether or not CR4.OSFXSR is set.
//! - Reserved bytes between the fields are stored as zero; from byte 416 on (outside 64-bit mode from
//!   byte 288) FXSAVE stores nothing. The whole operand has to be accessible all the same.

use x86::iced::Code;
use x86::{CpuLevel, Cr4, cpuid};

use crate::Cpu;
use crate::forms::{Form, Gate};
use crate::op::{Env, Fault, Op};
use crate::sse::MXCSR_MASK;
use crate::state::{F80, X87State};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const YMM: u64 = cpuid::XCR0_YMM;
/// The bit of XCOMP_BV that says that the area is compacted.
const COMPACTED: u64 = 1 << 63;
/// Where the parts of the area are.
const OPERAND_POINTER_AT: u64 = 16;
const MXCSR_AT: u64 = 24;
const REGISTERS_AT: u64 = 32;
const XMM_AT: u64 = 160;
const HEADER_AT: u64 = 512;
/// Where the upper halves of the YMM registers are, behind the header.
const YMM_AT: u64 = cpuid::XSAVE_BYTES as u64;
/// What MXCSR is initially.
const MXCSR_INITIAL: u32 = 0x1f80;

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

    fn store_mxcsr(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
        let mxcsr = u64::from(cpu.sse.mxcsr) | u64::from(MXCSR_MASK) << 32;
        self.store(cpu, env, MXCSR_AT, mxcsr)
    }

    fn store_xmm(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
        for i in 0..self.xmm_count {
            let value = cpu.sse.xmm[i];
            self.store(cpu, env, XMM_AT + 16 * i as u64, value)?;
        }
        Ok(())
    }

    fn store_ymm(&self, cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
        for i in 0..self.xmm_count {
            let value = cpu.sse.ymm_high[i];
            self.store(cpu, env, YMM_AT + 16 * i as u64, value)?;
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

    /// Loads `registers` from `offset` on, but for those that the mode does not have.
    fn load_registers(
        &self,
        cpu: &mut Cpu,
        env: &mut Env<'_>,
        offset: u64,
        registers: &mut [u128; 16],
    ) -> Result<(), Fault> {
        for (i, register) in registers.iter_mut().enumerate().take(self.xmm_count) {
            *register = self.load(cpu, env, offset + 16 * i as u64)?;
        }
        Ok(())
    }
}

fn fxsave(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let area = Area::of(cpu, op, HEADER_AT as u32, 16, true, wide)?;
    cpu.check_store(env, area.linear, HEADER_AT as u32, area.stack)?;
    area.store_x87(cpu, env)?;
    area.store_mxcsr(cpu, env)?;
    area.store_xmm(cpu, env)
}

fn fxrstor(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let area = Area::of(cpu, op, HEADER_AT as u32, 16, false, wide)?;
    let _: u8 = area.load(cpu, env, HEADER_AT - 1)?; // the whole operand has to be accessible
    let x87 = area.load_x87(cpu, env)?;
    let mut sse = cpu.sse.clone();
    area.load_registers(cpu, env, XMM_AT, &mut sse.xmm)?;
    sse.mxcsr = area.load_mxcsr(cpu, env)?;
    cpu.x87 = x87;
    cpu.sse = sse;
    Ok(())
}

/// The components that the instruction is asked for: EDX:EAX, as far as XCR0 allows.
fn requested(cpu: &mut Cpu) -> Result<u64, Fault> {
    if cpu.sys().cr4 & Cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let asked = cpu.gpr(0) & 0xffff_ffff | cpu.gpr(2) << 32;
    Ok(asked & cpu.sys().xcr0)
}

/// The bytes of an area with these components.
fn area_bytes(components: u64) -> u32 {
    cpuid::XSAVE_BYTES + if components & YMM != 0 { cpuid::YMM_BYTES } else { 0 }
}

/// The components that are not in their initial configuration.
pub(crate) fn in_use(cpu: &Cpu) -> u64 {
    let mut initial = cpu.x87.clone();
    initial.init();
    initial.regs = [F80::ZERO; 8];
    let x87 = if cpu.x87 == initial { 0 } else { X87 };
    let is_used = |registers: &[u128; 16]| registers.iter().any(|register| *register != 0);
    let sse = if is_used(&cpu.sse.xmm) { SSE } else { 0 };
    let ymm = if is_used(&cpu.sse.ymm_high) { YMM } else { 0 };
    x87 | sse | ymm
}

fn xsave(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let components = requested(cpu)?;
    let bytes = area_bytes(components);
    let area = Area::of(cpu, op, bytes, 64, true, wide)?;
    cpu.check_store(env, area.linear, bytes, area.stack)?;
    let stored: u64 = area.load(cpu, env, HEADER_AT)?;
    if components & X87 != 0 {
        area.store_x87(cpu, env)?;
    }
    if components & (SSE | YMM) != 0 {
        area.store_mxcsr(cpu, env)?;
    }
    if components & SSE != 0 {
        area.store_xmm(cpu, env)?;
    }
    if components & YMM != 0 {
        area.store_ymm(cpu, env)?;
    }
    let state = stored & !components | in_use(cpu) & components;
    area.store(cpu, env, HEADER_AT, state)
}

/// XSAVEC: what is initial is not stored.
fn xsavec(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let components = requested(cpu)?;
    let mxcsr_in_use = if cpu.sse.mxcsr == MXCSR_INITIAL { 0 } else { SSE };
    let state = (in_use(cpu) | mxcsr_in_use) & components;
    let area = Area::of(cpu, op, area_bytes(components), 64, true, wide)?;
    cpu.check_store(env, area.linear, area_bytes(state), area.stack)?;
    if state & X87 != 0 {
        area.store_x87(cpu, env)?;
    }
    if state & SSE != 0 {
        area.store_mxcsr(cpu, env)?;
        area.store_xmm(cpu, env)?;
    }
    if state & YMM != 0 {
        area.store_ymm(cpu, env)?;
    }
    area.store(cpu, env, HEADER_AT, state)?;
    area.store(cpu, env, HEADER_AT + 8, components | COMPACTED)
}

/// What the header of an area says about it.
struct Header {
    /// The components that are not initial.
    state: u64,
    is_compacted: bool,
}

/// Reads an area's header; #GP if it is none.
fn load_header(cpu: &mut Cpu, env: &mut Env<'_>, area: &Area) -> Result<Header, Fault> {
    let state: u64 = area.load(cpu, env, HEADER_AT)?;
    let compaction: u64 = area.load(cpu, env, HEADER_AT + 8)?;
    let is_compacted = compaction & COMPACTED != 0 && cpu.model.level >= CpuLevel::V3;
    // In the standard format SDM volume 1, 13.8.1 wants two words to be zero, in the compacted format all six.
    let reserved_words = if is_compacted { 6 } else { 1 };
    let mut reserved = 0;
    for word in 0..reserved_words {
        reserved |= area.load::<u64>(cpu, env, HEADER_AT + 16 + 8 * word)?;
    }
    let xcr0 = cpu.sys().xcr0;
    let is_bad = if is_compacted {
        let present = compaction & !COMPACTED;
        present & !xcr0 != 0 || state & !present != 0
    } else {
        state & !xcr0 != 0 || compaction != 0
    };
    if is_bad || reserved != 0 {
        return Err(cpu.gp());
    }
    Ok(Header { state, is_compacted })
}

fn xrstor(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op, wide: bool) -> Result<(), Fault> {
    let components = requested(cpu)?;
    let area = Area::of(cpu, op, area_bytes(components), 64, false, wide)?;
    let _: u8 = area.load(cpu, env, 0)?; // the whole operand has to be accessible
    let header = load_header(cpu, env, &area)?;
    let (mut x87, mut sse) = (cpu.x87.clone(), cpu.sse.clone());
    if components & X87 != 0 {
        if header.state & X87 != 0 {
            x87 = area.load_x87(cpu, env)?;
        } else {
            x87.init();
            x87.regs = [F80::ZERO; 8];
        }
    }
    // In the standard format MXCSR comes from memory even if XMM is initial.
    if !header.is_compacted && components & (SSE | YMM) != 0 || components & header.state & SSE != 0
    {
        sse.mxcsr = area.load_mxcsr(cpu, env)?;
    } else if components & SSE != 0 {
        sse.mxcsr = MXCSR_INITIAL;
    }
    for (component, at, registers) in
        [(SSE, XMM_AT, &mut sse.xmm), (YMM, YMM_AT, &mut sse.ymm_high)]
    {
        if components & header.state & component != 0 {
            area.load_registers(cpu, env, at, registers)?;
        } else if components & component != 0 {
            registers[..area.xmm_count].fill(0);
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
    Form::mem(Code::Xsavec_mem, |cpu, env, op| xsavec(cpu, env, op, false)).gated(Gate::Xsave),
    Form::mem(Code::Xsavec64_mem, |cpu, env, op| xsavec(cpu, env, op, true)).gated(Gate::Xsave),
    Form::mem(Code::Xrstor_mem, |cpu, env, op| xrstor(cpu, env, op, false)).gated(Gate::Xsave),
    Form::mem(Code::Xrstor64_mem, |cpu, env, op| xrstor(cpu, env, op, true)).gated(Gate::Xsave),
];
