//! Far transfers, interrupts by software and their returns, and fast system calls.

use x86::iced::Code;
use x86::{Access, Descriptor, Rflags, Selector, SystemType, Vector};

use crate::access::is_canonical;
use crate::event::{Event, Frame, Source, Values};
use crate::forms::Form;
use crate::op::{Env, Fault, Op};
use crate::segment::{FlatAccess, Found};
use crate::state::{Seg, Segment};
use crate::tlb::View;
use crate::{Cpu, Side, Word};

/// A far pointer.
#[derive(Clone, Copy)]
struct FarPointer {
    selector: Selector,
    offset: u64,
}

/// Reads a far pointer from memory: the offset, then the selector.
fn load_pointer<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<FarPointer, Fault> {
    let size = size_of::<T>() as u64;
    let stack = op.has(Op::STACK);
    let linear = cpu.linear(op, size as u32 + 2, false)?;
    let offset: T = cpu.load_linear(env, linear, stack)?;
    let selector: u16 = cpu.load_linear(env, cpu.wrap(linear.wrapping_add(size)), stack)?;
    Ok(FarPointer { selector: Selector(selector), offset: offset.to_u64() })
}

fn pointer_of(op: &Op) -> FarPointer {
    FarPointer { selector: Selector(op.disp as u16), offset: op.imm }
}

impl Cpu {
    fn go_far_real(&mut self, target: FarPointer) -> Result<(), Fault> {
        let code = self.seg[Seg::CS].real(target.selector.0);
        self.check_entry(&code, target.offset, 0)?;
        let cpl = self.cpl;
        self.enter_code(code, cpl, target.offset);
        Ok(())
    }

    /// The code segment of a direct far jump or call.
    fn far_code(
        &mut self,
        env: &mut Env<'_>,
        target: FarPointer,
        found: &Found,
    ) -> Result<Segment, Fault> {
        let access = found.descriptor.access();
        let allowed = if access.is_conforming() {
            access.dpl() <= self.cpl
        } else {
            target.selector.rpl() <= self.cpl && access.dpl() == self.cpl
        };
        if !allowed {
            return Err(self.fault_with(Vector::GP, target.selector.error_code()));
        }
        let code = self.code_segment(env, target.selector, self.cpl, found, 0)?;
        self.check_entry(&code, target.offset, 0)?;
        Ok(code)
    }

    fn find_far(&mut self, env: &mut Env<'_>, target: FarPointer) -> Result<Found, Fault> {
        if target.selector.is_null() {
            return Err(self.gp());
        }
        self.find_descriptor(env, target.selector, Vector::GP, 0)
    }

    /// True for a task gate or an available TSS, in a mode where tasks exist.
    fn is_task(&self, access: Access) -> bool {
        !self.is_long_mode()
            && matches!(
                access.system_type(),
                SystemType::TASK_GATE | SystemType::TSS16 | SystemType::TSS32
            )
    }

    fn jump_far(
        &mut self,
        env: &mut Env<'_>,
        target: FarPointer,
        next_rip: u64,
    ) -> Result<(), Fault> {
        if !self.is_protected() {
            return self.go_far_real(target);
        }
        let found = self.find_far(env, target)?;
        let access = found.descriptor.access();
        if access.is_code() {
            let code = self.far_code(env, target, &found)?;
            let cpl = self.cpl;
            self.enter_code(code, cpl, target.offset);
            return Ok(());
        }
        if self.is_task(access) {
            return self.switch_by_jump(env, target.selector, &found, next_rip);
        }
        let gate = self.call_gate(env, target.selector, &found)?;
        let inner = self.find_far(env, gate.pointer)?;
        let inner_access = inner.descriptor.access();
        let level_ok = if inner_access.is_conforming() {
            inner_access.dpl() <= self.cpl
        } else {
            inner_access.dpl() == self.cpl
        };
        self.check_gate_code(inner_access, level_ok, gate.pointer.selector)?;
        let code = self.code_segment(env, gate.pointer.selector, self.cpl, &inner, 0)?;
        self.check_entry(&code, gate.pointer.offset, 0)?;
        let cpl = self.cpl;
        self.enter_code(code, cpl, gate.pointer.offset);
        Ok(())
    }

    /// `word` is the operand size in bytes.
    fn call_far(
        &mut self,
        env: &mut Env<'_>,
        target: FarPointer,
        word: u64,
        next_rip: u64,
    ) -> Result<(), Fault> {
        let return_to = [u64::from(self.seg[Seg::CS].selector), next_rip];
        if !self.is_protected() {
            let code = self.seg[Seg::CS].real(target.selector.0);
            self.check_entry(&code, target.offset, 0)?;
            let sp = self.push_here(env, word, &return_to)?;
            self.set_sp(sp);
            return self.go_far_real(target);
        }
        let found = self.find_far(env, target)?;
        let access = found.descriptor.access();
        if access.is_code() {
            let code = self.far_code(env, target, &found)?;
            let sp = self.push_here(env, word, &return_to)?;
            self.set_sp(sp);
            let cpl = self.cpl;
            self.enter_code(code, cpl, target.offset);
            return Ok(());
        }
        if self.is_task(access) {
            return self.switch_by_call(env, target.selector, &found, next_rip);
        }
        self.call_through_gate(env, target.selector, &found, next_rip)
    }

    fn call_through_gate(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        found: &Found,
        next_rip: u64,
    ) -> Result<(), Fault> {
        let gate = self.call_gate(env, selector, found)?;
        let inner = self.find_far(env, gate.pointer)?;
        let access = inner.descriptor.access();
        let target = gate.pointer;
        self.check_gate_code(access, access.dpl() <= self.cpl, target.selector)?;
        let cpl = if access.is_conforming() { self.cpl } else { access.dpl() };
        let code = self.code_segment(env, target.selector, cpl, &inner, 0)?;
        let return_to = [u64::from(self.seg[Seg::CS].selector), next_rip];
        if cpl == self.cpl {
            self.check_entry(&code, target.offset, 0)?;
            let sp = self.push_here(env, gate.word, &return_to)?;
            self.set_sp(sp);
            self.enter_code(code, cpl, target.offset);
            return Ok(());
        }
        let mut values = Values::default();
        values.add(u64::from(self.seg[Seg::SS].selector));
        values.add(self.gpr[4]);
        let (stack, sp);
        if gate.word == 8 {
            stack = Segment::null_stack(cpl);
            sp = self.pointer_of_tss(env, 4 + 8 * u32::from(cpl), 0)?;
        } else {
            let (stack_selector, pointer) = self.stack_of_tss(env, cpl, 0)?;
            stack = self.stack_segment_for(env, stack_selector, cpl, Vector::TS, 0)?;
            sp = pointer;
            for n in (0..u64::from(gate.params)).rev() {
                let at = self.sp().wrapping_add(n * gate.word);
                values.add(match gate.word {
                    4 => u64::from(self.load_stack::<u32>(env, at)?),
                    _ => u64::from(self.load_stack::<u16>(env, at)?),
                });
            }
        }
        self.check_entry(&code, target.offset, 0)?;
        return_to.into_iter().for_each(|value| values.add(value));
        let frame = Frame { stack, sp, word: gate.word, view: View::Supervisor, ext: 0 };
        let sp = self.push_frame(env, &frame, values.all())?;
        self.seg[Seg::SS] = stack;
        self.enter_code(code, cpl, target.offset);
        self.set_sp(sp);
        Ok(())
    }

    fn check_gate_code(
        &mut self,
        access: Access,
        level_ok: bool,
        selector: Selector,
    ) -> Result<(), Fault> {
        let is_64_bit = access.0 & (Access::L | Access::D) == Access::L;
        if !access.is_code() || !level_ok || self.is_long_mode() && !is_64_bit {
            return Err(self.fault_with(Vector::GP, selector.error_code()));
        }
        Ok(())
    }

    /// A call gate, its privilege and presence checked.
    fn call_gate(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        found: &Found,
    ) -> Result<Gate, Fault> {
        let gate = found.descriptor;
        let access = gate.access();
        let long = self.is_long_mode();
        let word = match access.system_type() {
            SystemType::CALL_GATE32 if long => 8,
            SystemType::CALL_GATE32 => 4,
            SystemType::CALL_GATE16 if !long => 2,
            _ => return Err(self.fault_with(Vector::GP, selector.error_code())),
        };
        if access.dpl() < self.cpl.max(selector.rpl()) {
            return Err(self.fault_with(Vector::GP, selector.error_code()));
        }
        let mut offset = u64::from(gate.gate_offset());
        if long {
            let high = self.upper_half(env, selector, found.linear, Vector::GP, 0)?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.fault_with(Vector::GP, selector.error_code()));
            }
            offset |= high << 32;
        } else if word == 2 {
            offset &= 0xffff;
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, selector.error_code()));
        }
        let pointer = FarPointer { selector: gate.gate_selector(), offset };
        Ok(Gate { pointer, word, params: gate.gate_param_count() })
    }

    /// Pushes on the current stack without moving the stack pointer, which it returns.
    fn push_here(&mut self, env: &mut Env<'_>, word: u64, values: &[u64]) -> Result<u64, Fault> {
        let mut sp = self.sp();
        let len = values.len() as u64 * word;
        self.check_stack_store(env, sp.wrapping_sub(len), len as u32)?;
        for value in values {
            sp = sp.wrapping_sub(word) & self.stack_mask;
            match word {
                8 => self.store_stack(env, sp, *value)?,
                4 => self.store_stack(env, sp, *value as u32)?,
                _ => self.store_stack(env, sp, *value as u16)?,
            }
        }
        Ok(sp)
    }

    /// Reads word number `n` above the stack pointer.
    fn peek<T: Word>(&mut self, env: &mut Env<'_>, n: u64) -> Result<u64, Fault> {
        let at = self.sp().wrapping_add(n * size_of::<T>() as u64);
        Ok(self.load_stack::<T>(env, at)?.to_u64())
    }

    /// The code segment that RETF or IRET returns to.
    fn return_code(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<Segment, Fault> {
        if selector.is_null() {
            return Err(self.gp());
        }
        let found = self.find_descriptor(env, selector, Vector::GP, 0)?;
        let access = found.descriptor.access();
        let level_ok = if access.is_conforming() {
            access.dpl() <= selector.rpl()
        } else {
            access.dpl() == selector.rpl()
        };
        if !access.is_code() || selector.rpl() < self.cpl || !level_ok {
            return Err(self.fault_with(Vector::GP, selector.error_code()));
        }
        self.code_segment(env, selector, selector.rpl(), &found, 0)
    }

    /// The stack segment that RETF or IRET returns to.
    fn return_stack(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        code: &Segment,
    ) -> Result<Segment, Fault> {
        let cpl = Selector(code.selector).rpl();
        if selector.is_null() {
            let to_64_bit = self.is_long_mode() && code.access & Access::L != 0;
            if to_64_bit && cpl != 3 && selector.rpl() == cpl {
                return Ok(Segment::null_stack(cpl));
            }
            return Err(self.gp());
        }
        self.stack_segment_for(env, selector, cpl, Vector::GP, 0)
    }
}

/// What a call gate says.
struct Gate {
    pointer: FarPointer,
    word: u64,
    params: u32,
}

fn jmp_far_p(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.jump_far(env, pointer_of(op), cpu.next_rip(op))
}

fn jmp_far_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = load_pointer::<T>(cpu, env, op)?;
    cpu.jump_far(env, target, cpu.next_rip(op))
}

fn call_far_p<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    cpu.call_far(env, pointer_of(op), size_of::<T>() as u64, cpu.next_rip(op))
}

fn call_far_m<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let target = load_pointer::<T>(cpu, env, op)?;
    cpu.call_far(env, target, size_of::<T>() as u64, cpu.next_rip(op))
}

/// RETF, with the bytes to release in `imm`.
fn ret_far<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let size = size_of::<T>() as u64;
    let release = op.imm & 0xffff;
    let rip = cpu.peek::<T>(env, 0)?;
    let selector = Selector(cpu.peek::<T>(env, 1)? as u16);
    let after = cpu.sp().wrapping_add(2 * size).wrapping_add(release);
    if !cpu.is_protected() {
        cpu.go_far_real(FarPointer { selector, offset: rip })?;
        cpu.set_sp(after);
        return Ok(());
    }
    let code = cpu.return_code(env, selector)?;
    cpu.check_entry(&code, rip, 0)?;
    if selector.rpl() == cpu.cpl {
        cpu.set_sp(after);
        let cpl = cpu.cpl;
        cpu.enter_code(code, cpl, rip);
        return Ok(());
    }
    let sp = cpu.load_stack::<T>(env, after)?.to_u64();
    let stack_selector = cpu.load_stack::<T>(env, after.wrapping_add(size))?.to_u64();
    let stack = cpu.return_stack(env, Selector(stack_selector as u16), &code)?;
    cpu.return_outwards(code, stack, rip, sp.wrapping_add(release), size);
    Ok(())
}

impl Cpu {
    /// Completes a return that loads SS and the stack pointer.
    fn return_outwards(&mut self, code: Segment, stack: Segment, rip: u64, sp: u64, word: u64) {
        let cpl = Selector(code.selector).rpl();
        let is_outer = cpl > self.cpl;
        self.seg[Seg::SS] = stack;
        self.enter_code(code, cpl, rip);
        if word == 8 || self.stack_mask != u64::MAX {
            self.set_sp(sp);
        } else {
            self.gpr[4] = sp;
        }
        if is_outer {
            self.drop_inner_segments();
            self.update_mode();
        }
    }

    /// RFLAGS after IRET or POPF at the current privilege. `word` is the operand size in bytes.
    fn flags_after_pop(&self, value: u64, word: u64, is_iret: bool) -> u64 {
        let mut mask =
            Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT | Rflags::AC | Rflags::ID;
        if is_iret {
            mask |= Rflags::RF;
        }
        let iopl = (self.rflags & Rflags::IOPL) >> Rflags::IOPL_SHIFT;
        if self.cpl == 0 {
            mask |= Rflags::IOPL;
        }
        if u64::from(self.cpl) <= iopl {
            mask |= Rflags::IF;
        }
        if word == 2 {
            mask &= 0xffff;
        }
        let kept = self.rflags() & !mask & if is_iret { u64::MAX } else { !Rflags::RF };
        kept | value & mask
    }
}

fn iret<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let word = size_of::<T>() as u64;
    if !cpu.is_protected() {
        return iret_real::<T>(cpu, env);
    }
    if cpu.rflags & Rflags::NT != 0 {
        if cpu.is_long_mode() {
            return Err(cpu.gp());
        }
        return cpu.switch_by_iret(env, cpu.next_rip(op));
    }
    let rip = cpu.peek::<T>(env, 0)?;
    let selector = Selector(cpu.peek::<T>(env, 1)? as u16);
    let flags = cpu.peek::<T>(env, 2)?;
    let code = cpu.return_code(env, selector)?;
    let rflags = cpu.flags_after_pop(flags, word, true);
    if cpu.is_64_bit() || selector.rpl() != cpu.cpl {
        let sp = cpu.peek::<T>(env, 3)?;
        let stack_selector = Selector(cpu.peek::<T>(env, 4)? as u16);
        let stack = cpu.return_stack(env, stack_selector, &code)?;
        cpu.check_entry(&code, rip, 0)?;
        cpu.return_outwards(code, stack, rip, sp, word);
    } else {
        cpu.check_entry(&code, rip, 0)?;
        cpu.set_sp(cpu.sp().wrapping_add(3 * word));
        let cpl = cpu.cpl;
        cpu.enter_code(code, cpl, rip);
    }
    cpu.set_rflags(rflags);
    cpu.end_nmi();
    Ok(())
}

fn iret_real<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>) -> Result<(), Fault> {
    let word = size_of::<T>() as u64;
    let offset = cpu.peek::<T>(env, 0)?;
    let selector = Selector(cpu.peek::<T>(env, 1)? as u16);
    let flags = cpu.peek::<T>(env, 2)?;
    cpu.go_far_real(FarPointer { selector, offset })?;
    cpu.set_sp(cpu.sp().wrapping_add(3 * word));
    let rflags = cpu.flags_after_pop(flags, word, true);
    cpu.set_rflags(rflags);
    cpu.end_nmi();
    Ok(())
}

impl Cpu {
    /// IRET lets the next NMI in.
    fn end_nmi(&mut self) {
        if std::mem::take(&mut self.sys.nmi_blocked) {
            self.attention = true;
        }
    }
}

fn pushf<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let flags = cpu.rflags() & !(Rflags::RF | Rflags::VM);
    cpu.push(env, T::from_u64(flags))
}

fn popf<T: Word>(cpu: &mut Cpu, env: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let value = cpu.pop::<T>(env)?.to_u64();
    let rflags = cpu.flags_after_pop(value, size_of::<T>() as u64, false);
    cpu.set_rflags(rflags);
    Ok(())
}

fn int(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let event = Event::software(op.imm as u8, Source::Software, cpu.next_rip(op));
    cpu.deliver(env, &event)
}

fn int3(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let event = Event::software(Vector::BP, Source::Software, cpu.next_rip(op));
    cpu.deliver(env, &event)
}

fn int1(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    let event = Event::software(Vector::DB, Source::Icebp, cpu.next_rip(op));
    cpu.deliver(env, &event)
}

fn into(cpu: &mut Cpu, env: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if !cpu.flags.of() {
        return Ok(());
    }
    let event = Event::software(Vector::OF, Source::Software, cpu.next_rip(op));
    cpu.deliver(env, &event)
}

impl Cpu {
    /// The code and the stack segment that SYSCALL loads, or SYSRET on its way to 64-bit mode.
    pub(crate) fn side_segments(&self, side: Side) -> [Segment; 2] {
        let (code, stack, dpl) = match side {
            Side::Kernel => {
                let selector = (self.sys.star >> 32) as u16 & !3;
                (selector, selector.wrapping_add(8), 0)
            }
            Side::Program => {
                let base = (self.sys.star >> 48) as u16;
                (base.wrapping_add(16) | 3, base.wrapping_add(8) | 3, FlatAccess::DPL3)
            }
        };
        let code = Segment::flat(code, FlatAccess::CODE64 | dpl);
        [code, Segment::flat(stack, FlatAccess::STACK | dpl)]
    }

    /// Segments and privilege of SYSCALL and SYSRET. The mode has to be updated.
    pub(crate) fn enter_side(&mut self, side: Side) {
        [self.seg[Seg::CS], self.seg[Seg::SS]] = self.side_segments(side);
        self.cpl = if side == Side::Kernel { 0 } else { 3 };
    }
}

fn syscall(cpu: &mut Cpu, _: &mut Env<'_>, op: &Op) -> Result<(), Fault> {
    if !cpu.is_64_bit() || cpu.sys.efer & x86::Efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.gpr[1] = cpu.next_rip(op);
    cpu.gpr[11] = cpu.rflags() & !Rflags::RF;
    cpu.enter_side(Side::Kernel);
    cpu.rip = cpu.sys.lstar;
    let rflags = cpu.rflags() & !cpu.sys.fmask & !Rflags::RF;
    cpu.set_rflags(rflags);
    if rflags & Rflags::TF == 0 {
        cpu.is_stepping = false;
    }
    cpu.update_mode();
    Ok(())
}

/// SYSRET. `T` is the operand size: 64 bits return to 64-bit mode, 32 to compatibility mode.
fn sysret<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    if !cpu.is_64_bit() || cpu.sys.efer & x86::Efer::SCE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cpl != 0 || T::BITS == 64 && !is_canonical(cpu.gpr[1]) {
        return Err(cpu.gp());
    }
    cpu.rip = T::get(cpu, 1).to_u64();
    cpu.enter_side(Side::Program);
    if T::BITS != 64 {
        let selector = (cpu.sys.star >> 48) as u16 | 3;
        cpu.seg[Seg::CS] = Segment::flat(selector, FlatAccess::CODE32 | FlatAccess::DPL3);
    }
    let rflags = cpu.gpr[11] & Rflags::ALL & !(Rflags::RF | Rflags::VM);
    cpu.set_rflags(rflags);
    cpu.update_mode();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let selector = cpu.sys.sysenter_cs as u16 & !3;
    if selector == 0 || !cpu.is_protected() {
        return Err(cpu.gp());
    }
    let long = cpu.is_long_mode();
    let access = if long { FlatAccess::CODE64 } else { FlatAccess::CODE32 };
    let width = if long { u64::MAX } else { 0xffff_ffff };
    cpu.seg[Seg::CS] = Segment::flat(selector, access);
    cpu.seg[Seg::SS] = Segment::flat(selector.wrapping_add(8), FlatAccess::STACK);
    cpu.cpl = 0;
    cpu.gpr[4] = cpu.sys.sysenter_esp & width;
    cpu.rip = cpu.sys.sysenter_eip & width;
    let rflags = cpu.rflags() & !(Rflags::IF | Rflags::RF | Rflags::VM);
    cpu.set_rflags(rflags);
    cpu.update_mode();
    Ok(())
}

fn sysexit<T: Word>(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    let base = cpu.sys.sysenter_cs as u16 & !3;
    let is_64 = T::BITS == 64;
    let canonical = is_canonical(cpu.gpr[1]) && is_canonical(cpu.gpr[2]);
    if base == 0 || !cpu.is_protected() || cpu.cpl != 0 || is_64 && !canonical {
        return Err(cpu.gp());
    }
    let (code, stack, access) = if is_64 {
        (base.wrapping_add(32), base.wrapping_add(40), FlatAccess::CODE64)
    } else {
        (base.wrapping_add(16), base.wrapping_add(24), FlatAccess::CODE32)
    };
    cpu.rip = T::get(cpu, 2).to_u64();
    let sp = T::get(cpu, 1);
    T::set(cpu, 4, sp);
    cpu.seg[Seg::CS] = Segment::flat(code | 3, access | FlatAccess::DPL3);
    cpu.seg[Seg::SS] = Segment::flat(stack | 3, FlatAccess::STACK | FlatAccess::DPL3);
    cpu.cpl = 3;
    cpu.update_mode();
    Ok(())
}

/// LDS and its like: a far pointer into a register and segment register `N`.
fn load_far<const N: usize, T: Word>(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    op: &Op,
) -> Result<(), Fault> {
    let pointer = load_pointer::<T>(cpu, env, op)?;
    cpu.load_segment(env, N, pointer.selector)?;
    T::set(cpu, op.r[0], T::from_u64(pointer.offset));
    Ok(())
}

/// The descriptor's own view of a far pointer's gate, for tests of visibility (LAR and its like).
pub(super) fn is_visible(cpu: &Cpu, selector: Selector, descriptor: Descriptor) -> bool {
    let access = descriptor.access();
    access.is_conforming() || access.dpl() >= cpu.cpl.max(selector.rpl())
}

/// The forms of this module.
#[rustfmt::skip]
pub(super) const FORMS: &[Form] = &[
    Form::reg(Code::Jmp_ptr1616, jmp_far_p).ends(),
    Form::reg(Code::Call_ptr1616, call_far_p::<u16>).ends(),
    Form::reg(Code::Jmp_ptr1632, jmp_far_p).ends(),
    Form::reg(Code::Call_ptr1632, call_far_p::<u32>).ends(),
    Form::mem(Code::Jmp_m1616, jmp_far_m::<u16>).ends(),
    Form::mem(Code::Call_m1616, call_far_m::<u16>).ends(),
    Form::mem(Code::Jmp_m1632, jmp_far_m::<u32>).ends(),
    Form::mem(Code::Call_m1632, call_far_m::<u32>).ends(),
    Form::mem(Code::Jmp_m1664, jmp_far_m::<u64>).ends(),
    Form::mem(Code::Call_m1664, call_far_m::<u64>).ends(),
    Form::reg(Code::Retfw, ret_far::<u16>).ends(),
    Form::reg(Code::Retfw_imm16, ret_far::<u16>).ends(),
    Form::reg(Code::Iretw, iret::<u16>).ends(),
    Form::reg(Code::Pushfw, pushf::<u16>),
    Form::reg(Code::Popfw, popf::<u16>),
    Form::reg(Code::Retfd, ret_far::<u32>).ends(),
    Form::reg(Code::Retfd_imm16, ret_far::<u32>).ends(),
    Form::reg(Code::Iretd, iret::<u32>).ends(),
    Form::reg(Code::Pushfd, pushf::<u32>),
    Form::reg(Code::Popfd, popf::<u32>),
    Form::reg(Code::Retfq, ret_far::<u64>).ends(),
    Form::reg(Code::Retfq_imm16, ret_far::<u64>).ends(),
    Form::reg(Code::Iretq, iret::<u64>).ends(),
    Form::reg(Code::Pushfq, pushf::<u64>),
    Form::reg(Code::Popfq, popf::<u64>),
    Form::reg(Code::Int_imm8, int).ends(),
    Form::reg(Code::Int3, int3).ends(),
    Form::reg(Code::Int1, int1).ends(),
    Form::reg(Code::Into, into).ends(),
    Form::reg(Code::Syscall, syscall).ends(),
    Form::reg(Code::Sysretd, sysret::<u32>).ends(),
    Form::reg(Code::Sysretq, sysret::<u64>).ends(),
    Form::reg(Code::Sysenter, sysenter).ends(),
    Form::reg(Code::Sysexitd, sysexit::<u32>).ends(),
    Form::reg(Code::Sysexitq, sysexit::<u64>).ends(),
    Form::mem(Code::Les_r16_m1616, load_far::<{ Seg::ES }, u16>).ends(),
    Form::mem(Code::Les_r32_m1632, load_far::<{ Seg::ES }, u32>).ends(),
    Form::mem(Code::Lds_r16_m1616, load_far::<{ Seg::DS }, u16>).ends(),
    Form::mem(Code::Lds_r32_m1632, load_far::<{ Seg::DS }, u32>).ends(),
    Form::mem(Code::Lss_r16_m1616, load_far::<{ Seg::SS }, u16>).ends(),
    Form::mem(Code::Lss_r32_m1632, load_far::<{ Seg::SS }, u32>).ends(),
    Form::mem(Code::Lss_r64_m1664, load_far::<{ Seg::SS }, u64>).ends(),
    Form::mem(Code::Lfs_r16_m1616, load_far::<{ Seg::FS }, u16>).ends(),
    Form::mem(Code::Lfs_r32_m1632, load_far::<{ Seg::FS }, u32>).ends(),
    Form::mem(Code::Lfs_r64_m1664, load_far::<{ Seg::FS }, u64>).ends(),
    Form::mem(Code::Lgs_r16_m1616, load_far::<{ Seg::GS }, u16>).ends(),
    Form::mem(Code::Lgs_r32_m1632, load_far::<{ Seg::GS }, u32>).ends(),
    Form::mem(Code::Lgs_r64_m1664, load_far::<{ Seg::GS }, u64>).ends(),
];
