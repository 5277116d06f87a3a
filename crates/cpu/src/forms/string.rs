//! String instructions and port input and output.
//!
//! Each iteration of a REP string instruction is a step, and the CPU may stop between two of them
//! for everything for which it may stop between instructions. REP MOVS and REP STOS that go upwards
//! through plain RAM run in chunks; the result and the count are the same.

use x86::Rflags;
use x86::iced::Code;

use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::state::Seg;
use crate::{Cpu, Flags, Word};

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// What one iteration does.
type Iteration = fn(&mut Cpu, &mut Env<'_>, &Op) -> Result<(), Fault>;

/// How a REP prefix ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// When the count is 0.
    Count,
    /// Also when ZF does not fit the prefix: CMPS and SCAS.
    Zero,
}

impl Cpu {
    /// A count or index register in the address size of `op`.
    #[inline(always)]
    fn index(&self, op: &Op, r: u8) -> u64 {
        self.gpr(r) & u64::MAX >> (op.addr_shift & 63)
    }

    #[inline(always)]
    fn set_index(&mut self, op: &Op, r: u8, value: u64) {
        match op.addr_shift {
            0 => self.set_gpr(r, value),
            32 => u32::set(self, r, value as u32),
            _ => u16::set(self, r, value as u16),
        }
    }

    /// Moves an index register past `count` elements of type `T`, by the direction flag.
    #[inline(always)]
    fn advance<T: Word>(&mut self, op: &Op, r: u8, count: u64) {
        let bytes = count * size_of::<T>() as u64;
        let delta = if self.rflags & Rflags::DF != 0 { bytes.wrapping_neg() } else { bytes };
        let index = self.index(op, r).wrapping_add(delta);
        self.set_index(op, r, index);
    }

    /// The linear address of the source element.
    #[inline(always)]
    fn source<T: Word>(&mut self, op: &Op) -> Result<u64, Fault> {
        let offset = self.index(op, RSI);
        if op.has(Op::CHECKED) {
            return self.linear_checked(usize::from(op.seg), offset, size_of::<T>() as u32, false);
        }
        Ok(offset.wrapping_add(self.seg_base[usize::from(op.seg & 7)]))
    }

    /// The linear address of the element at ES:DI. No prefix changes its segment.
    #[inline(always)]
    fn target<T: Word>(&mut self, op: &Op, write: bool) -> Result<u64, Fault> {
        let offset = self.index(op, RDI);
        if op.has(Op::LONG) {
            return Ok(offset);
        }
        self.linear_checked(Seg::ES, offset, size_of::<T>() as u32, write)
    }
}

/// Runs an iteration once, or as often as the prefix says.
#[inline(always)]
fn repeat(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    until: Until,
    iteration: Iteration,
) -> Result<(), Fault> {
    if op.flags & (Op::REP | Op::REPNE) == 0 {
        return iteration(cpu, env, op);
    }
    repeat_by_count(cpu, env, op, until, iteration)
}

#[inline(never)]
fn repeat_by_count(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    until: Until,
    iteration: Iteration,
) -> Result<(), Fault> {
    let mut count = cpu.index(op, RCX);
    if count == 0 {
        return Ok(());
    }
    loop {
        iteration(cpu, env, op)?;
        count -= 1;
        cpu.set_index(op, RCX, count);
        let ends = until == Until::Zero && cpu.flags.zf() == op.has(Op::REPNE);
        if count == 0 || ends {
            return Ok(());
        }
        cpu.block_icount += 1;
        if cpu.now().0 >= cpu.rep_until || cpu.attention {
            return Err(Fault::UNFINISHED);
        }
    }
}

/// Repeats an upward MOVS or STOS by its count, in chunks where `chunks` finds both sides in the TLB. Where it
/// does not, an iteration brings them there.
#[inline(never)]
fn repeat_in_chunks(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
    chunks: Iteration,
    iteration: Iteration,
) -> Result<(), Fault> {
    if cpu.index(op, RCX) == 0 {
        return Ok(());
    }
    loop {
        chunks(cpu, env, op)?;
        iteration(cpu, env, op)?;
        let count = cpu.index(op, RCX) - 1;
        cpu.set_index(op, RCX, count);
        if count == 0 {
            return Ok(());
        }
        cpu.block_icount += 1;
        if cpu.now().0 >= cpu.rep_until || cpu.attention {
            return Err(Fault::UNFINISHED);
        }
    }
}

/// How many iterations a chunk may have: by the count, the budget and what is left of a page.
fn chunk_len<T: Word>(cpu: &Cpu, op: &Op, linear: u64) -> u64 {
    let left_in_page = (4096 - (linear & 0xfff)) / size_of::<T>() as u64;
    let budget = cpu.rep_until.saturating_sub(cpu.now().0);
    let left_in_segment = (u64::MAX >> (op.addr_shift & 63)) / size_of::<T>() as u64;
    cpu.index(op, RCX).min(budget).min(left_in_page).min(left_in_segment)
}

/// True if chunks may be tried: a plain REP, upwards, where no limit has to be checked.
fn may_chunk(cpu: &Cpu, op: &Op) -> bool {
    op.has(Op::REP) && op.has(Op::LONG) && op.addr_shift == 0 && cpu.rflags & Rflags::DF == 0
}

/// Counts the iterations of a chunk. The iteration that is left is done the ordinary way.
fn finish_chunk(cpu: &mut Cpu, op: &Op, done: u64) -> Result<(), Fault> {
    let count = cpu.index(op, RCX) - done;
    cpu.set_index(op, RCX, count);
    cpu.block_icount += done;
    if cpu.now().0 >= cpu.rep_until {
        return Err(Fault::UNFINISHED);
    }
    Ok(())
}

fn movs_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.source::<T>(op)?;
    let value: T = cpu.load_linear(env, source, op.has(Op::STACK))?;
    let target = cpu.target::<T>(op, true)?;
    cpu.store_linear(env, target, value, false)?;
    cpu.advance::<T>(op, RSI, 1);
    cpu.advance::<T>(op, RDI, 1);
    Ok(())
}

fn movs<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if may_chunk(cpu, op) {
        return repeat_in_chunks(cpu, env, op, move_chunks::<T>, movs_once::<T>);
    }
    repeat(cpu, env, op, Until::Count, movs_once::<T>)
}

/// Moves while both sides are in the TLB and at least two iterations are left.
fn move_chunks<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    loop {
        let (source, target) = (cpu.source::<T>(op)?, cpu.target::<T>(op, true)?);
        let len = chunk_len::<T>(cpu, op, source).min(chunk_len::<T>(cpu, op, target));
        let from = cpu.tlb.entry(cpu.tlb_base, source);
        let to = cpu.tlb.entry(cpu.tlb_base, target);
        let (from_at, to_at) = (source.wrapping_sub(from.read), target.wrapping_sub(to.write));
        // The last iteration of all is left over, so that it retires the instruction.
        let len = len.min(cpu.index(op, RCX) - u64::from(cpu.index(op, RCX) != 0));
        if len == 0 || from_at > 4095 || to_at > 4095 {
            return Ok(());
        }
        let (from, to) = (cpu.tlb.place(from, from_at), cpu.tlb.place(to, to_at));
        let bytes = len * size_of::<T>() as u64;
        if to > from && to.0 - from.0 < bytes {
            // Later elements read what earlier ones wrote.
            return Ok(());
        }
        env.mem.copy_within(from, to, bytes);
        cpu.advance::<T>(op, RSI, len);
        cpu.advance::<T>(op, RDI, len);
        finish_chunk(cpu, op, len)?;
    }
}

fn stos_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.target::<T>(op, true)?;
    let value = T::get(cpu, 0);
    cpu.store_linear(env, target, value, false)?;
    cpu.advance::<T>(op, RDI, 1);
    Ok(())
}

fn stos<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if may_chunk(cpu, op) {
        return repeat_in_chunks(cpu, env, op, store_chunks::<T>, stos_once::<T>);
    }
    repeat(cpu, env, op, Until::Count, stos_once::<T>)
}

fn store_chunks<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, 0);
    loop {
        let target = cpu.target::<T>(op, true)?;
        let entry = cpu.tlb.entry(cpu.tlb_base, target);
        let at = target.wrapping_sub(entry.write);
        let len = chunk_len::<T>(cpu, op, target);
        let len = len.min(cpu.index(op, RCX) - u64::from(cpu.index(op, RCX) != 0));
        if len == 0 || at > 4095 {
            return Ok(());
        }
        env.mem.fill(cpu.tlb.place(entry, at), value, len);
        cpu.advance::<T>(op, RDI, len);
        finish_chunk(cpu, op, len)?;
    }
}

fn lods_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.source::<T>(op)?;
    let value: T = cpu.load_linear(env, source, op.has(Op::STACK))?;
    T::set(cpu, 0, value);
    cpu.advance::<T>(op, RSI, 1);
    Ok(())
}

fn lods<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    repeat(cpu, env, op, Until::Count, lods_once::<T>)
}

fn compare<T: Word>(cpu: &mut Cpu, a: T, b: T) {
    let result = T::from_u64(a.to_u64().wrapping_sub(b.to_u64()));
    cpu.flags = Flags::sub(T::BITS, a.to_u64(), b.to_u64(), result.sext());
}

fn scas_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.target::<T>(op, false)?;
    let value: T = cpu.load_linear(env, target, false)?;
    let accumulator = T::get(cpu, 0);
    compare(cpu, accumulator, value);
    cpu.advance::<T>(op, RDI, 1);
    Ok(())
}

fn scas<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    repeat(cpu, env, op, Until::Zero, scas_once::<T>)
}

fn cmps_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let source = cpu.source::<T>(op)?;
    let a: T = cpu.load_linear(env, source, op.has(Op::STACK))?;
    let target = cpu.target::<T>(op, false)?;
    let b: T = cpu.load_linear(env, target, false)?;
    compare(cpu, a, b);
    cpu.advance::<T>(op, RSI, 1);
    cpu.advance::<T>(op, RDI, 1);
    Ok(())
}

fn cmps<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    repeat(cpu, env, op, Until::Zero, cmps_once::<T>)
}

impl Cpu {
    /// Raises #GP(0) if the running code may not touch these ports.
    fn check_port(&mut self, env: &mut Env<'_>, port: u16, len: u16) -> Result<(), Fault> {
        let iopl = (self.rflags & Rflags::IOPL) >> Rflags::IOPL_SHIFT;
        let allowed = !self.is_v86() && u64::from(self.cpl) <= iopl;
        if self.sys.cr0 & x86::Cr0::PE == 0 || allowed {
            return Ok(());
        }
        let tr = self.sys.tr;
        let is_32 = tr.access & 0xf == x86::SystemType::TSS32_BUSY;
        if !is_32 || tr.limit < 0x67 {
            return Err(self.gp());
        }
        let map: u16 = self.load_system(env, self.wrap(tr.base.wrapping_add(0x66)))?;
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > u64::from(tr.limit) {
            return Err(self.gp());
        }
        let bits: u16 = self.load_system(env, self.wrap(tr.base.wrapping_add(at)))?;
        if bits >> (port % 8) & ((1 << len) - 1) != 0 {
            return Err(self.gp());
        }
        Ok(())
    }

    fn port_in<T: Word>(&mut self, env: &mut Env<'_>, port: u16) -> Result<T, Fault> {
        self.check_port(env, port, size_of::<T>() as u16)?;
        self.note_port_breakpoints(port, size_of::<T>() as u64);
        let now = self.now();
        let value = env.bus.port_read(env.mem, now, port, size_of::<T>() as u8);
        self.after_bus(env);
        Ok(T::from_u64(u64::from(value)))
    }

    fn port_out<T: Word>(&mut self, env: &mut Env<'_>, port: u16, value: T) -> Result<(), Fault> {
        self.check_port(env, port, size_of::<T>() as u16)?;
        self.note_port_breakpoints(port, size_of::<T>() as u64);
        let now = self.now();
        env.bus.port_write(env.mem, now, port, size_of::<T>() as u8, value.to_u64() as u32);
        self.after_bus(env);
        Ok(())
    }
}

fn in_imm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = cpu.port_in::<T>(env, op.imm as u8 as u16)?;
    T::set(cpu, 0, value);
    Ok(())
}

fn in_dx<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let value = cpu.port_in::<T>(env, cpu.gpr(2) as u16)?;
    T::set(cpu, 0, value);
    Ok(())
}

fn out_imm<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, 0);
    cpu.port_out(env, op.imm as u8 as u16, value)
}

fn out_dx<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let value = T::get(cpu, 0);
    cpu.port_out(env, cpu.gpr(2) as u16, value)
}

fn ins_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = cpu.target::<T>(op, true)?;
    let port = cpu.gpr(2) as u16;
    cpu.check_port(env, port, size_of::<T>() as u16)?;
    // The port is read only when the store is sure to succeed.
    cpu.check_store(env, target, size_of::<T>() as u32, false)?;
    let value: T = cpu.port_in(env, port)?;
    cpu.store_linear(env, target, value, false)?;
    cpu.advance::<T>(op, RDI, 1);
    Ok(())
}

fn ins<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    repeat(cpu, env, op, Until::Count, ins_once::<T>)
}

fn outs_once<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let port = cpu.gpr(2) as u16;
    cpu.check_port(env, port, size_of::<T>() as u16)?;
    let source = cpu.source::<T>(op)?;
    let value: T = cpu.load_linear(env, source, op.has(Op::STACK))?;
    cpu.port_out(env, port, value)?;
    cpu.advance::<T>(op, RSI, 1);
    Ok(())
}

fn outs<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    repeat(cpu, env, op, Until::Count, outs_once::<T>)
}

impl Cpu {
    fn note_port_breakpoints(&mut self, port: u16, len: u64) {
        if self.sys.cr4 & x86::Cr4::DE == 0 {
            return;
        }
        let dr7 = self.sys.dr7;
        for n in 0..4u32 {
            let bytes = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
            let enabled = dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 2;
            let start = self.sys.dr[n as usize] & !(bytes - 1);
            let port = u64::from(port);
            if enabled && port < start.wrapping_add(bytes) && start < port + len {
                self.sys.pending_debug |= 1 << n;
                self.attention = true;
            }
        }
    }
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::mem(Code::Movsb_m8_m8, movs::<u8>).ends(),
    Form::mem(Code::Movsw_m16_m16, movs::<u16>).ends(),
    Form::mem(Code::Movsd_m32_m32, movs::<u32>).ends(),
    Form::mem(Code::Movsq_m64_m64, movs::<u64>).ends(),
    Form::mem(Code::Cmpsb_m8_m8, cmps::<u8>).ends(),
    Form::mem(Code::Cmpsw_m16_m16, cmps::<u16>).ends(),
    Form::mem(Code::Cmpsd_m32_m32, cmps::<u32>).ends(),
    Form::mem(Code::Cmpsq_m64_m64, cmps::<u64>).ends(),
    Form::mem(Code::Stosb_m8_AL, stos::<u8>).ends(),
    Form::mem(Code::Stosw_m16_AX, stos::<u16>).ends(),
    Form::mem(Code::Stosd_m32_EAX, stos::<u32>).ends(),
    Form::mem(Code::Stosq_m64_RAX, stos::<u64>).ends(),
    Form::mem(Code::Lodsb_AL_m8, lods::<u8>).ends(),
    Form::mem(Code::Lodsw_AX_m16, lods::<u16>).ends(),
    Form::mem(Code::Lodsd_EAX_m32, lods::<u32>).ends(),
    Form::mem(Code::Lodsq_RAX_m64, lods::<u64>).ends(),
    Form::mem(Code::Scasb_AL_m8, scas::<u8>).ends(),
    Form::mem(Code::Scasw_AX_m16, scas::<u16>).ends(),
    Form::mem(Code::Scasd_EAX_m32, scas::<u32>).ends(),
    Form::mem(Code::Scasq_RAX_m64, scas::<u64>).ends(),
    Form::mem(Code::Insb_m8_DX, ins::<u8>).ends(),
    Form::mem(Code::Insw_m16_DX, ins::<u16>).ends(),
    Form::mem(Code::Insd_m32_DX, ins::<u32>).ends(),
    Form::mem(Code::Outsb_DX_m8, outs::<u8>).ends(),
    Form::mem(Code::Outsw_DX_m16, outs::<u16>).ends(),
    Form::mem(Code::Outsd_DX_m32, outs::<u32>).ends(),
    Form::reg(Code::In_AL_imm8, in_imm::<u8>),
    Form::reg(Code::In_AL_DX, in_dx::<u8>),
    Form::reg(Code::Out_imm8_AL, out_imm::<u8>),
    Form::reg(Code::Out_DX_AL, out_dx::<u8>),
    Form::reg(Code::In_AX_imm8, in_imm::<u16>),
    Form::reg(Code::In_AX_DX, in_dx::<u16>),
    Form::reg(Code::Out_imm8_AX, out_imm::<u16>),
    Form::reg(Code::Out_DX_AX, out_dx::<u16>),
    Form::reg(Code::In_EAX_imm8, in_imm::<u32>),
    Form::reg(Code::In_EAX_DX, in_dx::<u32>),
    Form::reg(Code::Out_imm8_EAX, out_imm::<u32>),
    Form::reg(Code::Out_DX_EAX, out_dx::<u32>),
];
