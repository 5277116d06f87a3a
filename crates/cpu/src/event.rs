//! Delivery of interrupts and exceptions (Intel SDM vol. 3, chapter 6).

use x86::{Access, Cr0, Descriptor, Exception, Rflags, Selector, SystemType, Vector};

use crate::Cpu;
use crate::op::{Env, Fault};
use crate::state::{Seg, Segment};
use crate::tlb::View;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An interrupt line, NMI.
    External,
    /// An instruction that could not complete.
    Fault,
    /// A debug trap after an instruction.
    Trap,
    /// INT n, INT3, INTO: subject to the gate's DPL.
    Software,
    /// INT1: not subject to it.
    Icebp,
}

/// Something to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    pub(crate) source: Source,
    /// The address to return to; `None` for RIP.
    pub(crate) return_rip: Option<u64>,
}

impl Event {
    pub(crate) fn external(vector: u8) -> Event {
        Event { vector, error_code: None, source: Source::External, return_rip: None }
    }

    pub(crate) fn trap(vector: u8) -> Event {
        Event { vector, error_code: None, source: Source::Trap, return_rip: None }
    }

    /// INT n and its like, which return to the next instruction.
    pub(crate) fn software(vector: u8, source: Source, return_rip: u64) -> Event {
        Event { vector, error_code: None, source, return_rip: Some(return_rip) }
    }

    /// The EXT bit of error codes: the event is not the program's own.
    pub(crate) fn ext(&self) -> u32 {
        u32::from(self.source != Source::Software)
    }

    /// The error code that names the event's gate.
    pub(crate) fn idt_error(&self) -> u32 {
        u32::from(self.vector) << 3 | 2 | self.ext()
    }

    fn fault(exception: Exception) -> Event {
        let error_code = Vector::has_error_code(exception.vector).then_some(exception.error_code);
        Event { vector: exception.vector, error_code, source: Source::Fault, return_rip: None }
    }
}

impl Cpu {
    /// Delivers the exception that an instruction raised.
    #[cold]
    pub(crate) fn deliver_fault(&mut self, env: &mut Env<'_>) {
        self.attention = true;
        if self.exception.vector == Vector::PF {
            self.sys.cr2 = self.exception.address;
        }
        let event = Event::fault(self.exception);
        self.deliver_event(env, event);
    }

    /// Delivers an event, and whatever delivering it raises. One step, also if the CPU shuts down.
    pub(crate) fn deliver_event(&mut self, env: &mut Env<'_>, first: Event) {
        let mut event = first;
        loop {
            if self.deliver(env, &event).is_ok() {
                self.block_icount += 1;
                return;
            }
            let second = self.exception;
            if second.vector == Vector::PF {
                self.sys.cr2 = second.address;
            }
            let is_exception = event.source == Source::Fault;
            if is_exception && event.vector == Vector::DF {
                self.sys.is_shut_down = true;
                self.attention = true;
                self.block_icount += 1;
                return;
            }
            let page_fault = event.vector == Vector::PF
                && (second.vector == Vector::PF || Vector::is_contributory(second.vector));
            let contributory =
                Vector::is_contributory(event.vector) && Vector::is_contributory(second.vector);
            event = if is_exception && (page_fault || contributory) {
                Event::fault(Exception { vector: Vector::DF, error_code: 0, address: 0 })
            } else {
                Event::fault(second)
            };
        }
    }

    /// Delivers one event; nothing has changed if that raises another.
    pub(crate) fn deliver(&mut self, env: &mut Env<'_>, event: &Event) -> Result<(), Fault> {
        if self.is_long_mode() {
            self.deliver_long(env, event)
        } else if self.sys.cr0 & Cr0::PE != 0 {
            self.deliver_protected(env, event)
        } else {
            self.deliver_real(env, event)
        }
    }

    /// RFLAGS as the frame gets it.
    fn frame_rflags(&self, event: &Event) -> u64 {
        let resume = event.source == Source::Fault;
        self.rflags() | if resume { Rflags::RF } else { 0 }
    }

    /// RFLAGS in the handler.
    fn enter_handler(&mut self, is_trap_gate: bool) {
        let mut clear = Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM;
        if !is_trap_gate {
            clear |= Rflags::IF;
        }
        self.rflags &= !clear;
        self.is_stepping = false;
        self.update_view();
    }

    fn deliver_real(&mut self, env: &mut Env<'_>, event: &Event) -> Result<(), Fault> {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.sys.idtr.limit) {
            return Err(self.gp());
        }
        let entry: u32 = self.load_system(env, self.wrap(self.sys.idtr.base.wrapping_add(at)))?;
        let values = [
            self.rflags(),
            u64::from(self.seg[Seg::CS].selector),
            event.return_rip.unwrap_or(self.rip),
        ];
        let stack = self.seg[Seg::SS];
        let frame = Frame { stack, sp: self.sp(), word: 2, view: self.view, ext: 0 };
        let sp = self.push_frame(env, &frame, &values)?;
        self.set_sp(sp);
        self.enter_handler(false);
        self.rflags &= !Rflags::AC;
        let code = self.seg[Seg::CS].real((entry >> 16) as u16);
        self.enter_code(code, 0, u64::from(entry & 0xffff));
        Ok(())
    }

    fn deliver_protected(&mut self, env: &mut Env<'_>, event: &Event) -> Result<(), Fault> {
        let ext = event.ext();
        let error = event.idt_error();
        let at = u64::from(event.vector) * 8;
        if at + 7 > u64::from(self.sys.idtr.limit) {
            return Err(self.fault_with(Vector::GP, error));
        }
        let linear = self.wrap(self.sys.idtr.base.wrapping_add(at));
        let gate = Descriptor(self.load_system(env, linear)?);
        let kind = gate.access().system_type();
        self.check_gate(event, gate, |kind| {
            matches!(
                kind,
                SystemType::TASK_GATE
                    | SystemType::INT_GATE16
                    | SystemType::TRAP_GATE16
                    | SystemType::INT_GATE32
                    | SystemType::TRAP_GATE32
            )
        })?;
        if kind == SystemType::TASK_GATE {
            return self.switch_by_event(env, event, gate.gate_selector());
        }
        let is_32 = kind >= SystemType::INT_GATE32;
        let (code, cpl) = self.handler_code(env, gate.gate_selector(), ext, false)?;
        let offset = u64::from(gate.gate_offset()) & if is_32 { 0xffff_ffff } else { 0xffff };
        let mut values = Values::default();
        let stack;
        let sp;
        if cpl < self.cpl {
            let (selector, pointer) = self.stack_of_tss(env, cpl, ext)?;
            stack = self.stack_segment_for(env, selector, cpl, Vector::TS, ext)?;
            sp = pointer;
            values.add(u64::from(self.seg[Seg::SS].selector));
            values.add(self.gpr[4]);
        } else {
            stack = self.seg[Seg::SS];
            sp = self.sp();
        }
        self.check_entry(&code, offset, ext)?;
        values.add(self.frame_rflags(event));
        values.add(u64::from(self.seg[Seg::CS].selector));
        values.add(event.return_rip.unwrap_or(self.rip));
        if let Some(code) = event.error_code {
            values.add(u64::from(code));
        }
        let view = if cpl == 3 { View::User } else { View::Supervisor };
        let frame = Frame { stack, sp, word: if is_32 { 4 } else { 2 }, view, ext };
        let sp = self.push_frame(env, &frame, values.all())?;
        self.seg[Seg::SS] = stack;
        self.enter_handler(kind & 1 != 0);
        self.enter_code(code, cpl, offset);
        self.set_sp(sp);
        Ok(())
    }

    fn deliver_long(&mut self, env: &mut Env<'_>, event: &Event) -> Result<(), Fault> {
        let ext = event.ext();
        let at = u64::from(event.vector) * 16;
        if at + 15 > u64::from(self.sys.idtr.limit) {
            return Err(self.fault_with(Vector::GP, event.idt_error()));
        }
        let linear = self.sys.idtr.base.wrapping_add(at);
        let gate = Descriptor(self.load_system(env, linear)?);
        let high: u64 = self.load_system(env, linear.wrapping_add(8))?;
        self.check_gate(event, gate, |kind| {
            matches!(kind, SystemType::INT_GATE32 | SystemType::TRAP_GATE32)
        })?;
        let (code, cpl) = self.handler_code(env, gate.gate_selector(), ext, true)?;
        let offset = u64::from(gate.gate_offset()) | high << 32;
        let sp = match u32::from(gate.gate_ist()) {
            0 if cpl < self.cpl => self.pointer_of_tss(env, 4 + 8 * u32::from(cpl), ext)?,
            0 => self.gpr[4],
            ist => self.pointer_of_tss(env, 36 + 8 * (ist - 1), ext)?,
        };
        self.check_entry(&code, offset, ext)?;
        let mut values = Values::default();
        values.add(u64::from(self.seg[Seg::SS].selector));
        values.add(self.gpr[4]);
        values.add(self.frame_rflags(event));
        values.add(u64::from(self.seg[Seg::CS].selector));
        values.add(event.return_rip.unwrap_or(self.rip));
        if let Some(code) = event.error_code {
            values.add(u64::from(code));
        }
        let view = if cpl == 3 { View::User } else { View::Supervisor };
        let frame = Frame { stack: Segment::default(), sp: sp & !15, word: 8, view, ext };
        let sp = self.push_frame(env, &frame, values.all())?;
        if cpl != self.cpl {
            self.seg[Seg::SS] = Segment::null_stack(cpl);
        }
        self.enter_handler(gate.access().0 & 1 != 0);
        self.enter_code(code, cpl, offset);
        self.gpr[4] = sp;
        Ok(())
    }

    /// Type, privilege and presence of an IDT gate.
    fn check_gate(
        &mut self,
        event: &Event,
        gate: Descriptor,
        is_gate: fn(u16) -> bool,
    ) -> Result<(), Fault> {
        let access = gate.access();
        let too_private = event.source == Source::Software && access.dpl() < self.cpl;
        if !is_gate(access.system_type()) || too_private {
            return Err(self.fault_with(Vector::GP, event.idt_error()));
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, event.idt_error()));
        }
        Ok(())
    }

    /// The code segment of a gate, and the privilege level of the handler.
    fn handler_code(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        ext: u32,
        long: bool,
    ) -> Result<(Segment, u8), Fault> {
        if selector.is_null() {
            return Err(self.fault_with(Vector::GP, ext));
        }
        let found = self.find_descriptor(env, selector, Vector::GP, ext)?;
        let access = found.descriptor.access();
        let is_64_bit = access.0 & (Access::L | Access::D) == Access::L;
        if !access.is_code() || access.dpl() > self.cpl || long && !is_64_bit {
            return Err(self.fault_with(Vector::GP, selector.error_code() | ext));
        }
        let cpl = if access.is_conforming() { self.cpl } else { access.dpl() };
        let code = self.code_segment(env, selector, cpl, &found, ext)?;
        Ok((code, cpl))
    }

    /// Writes a frame below `frame.sp`, the first value on top. Returns the new stack pointer.
    pub(crate) fn push_frame(
        &mut self,
        env: &mut Env<'_>,
        frame: &Frame,
        values: &[u64],
    ) -> Result<u64, Fault> {
        let len = values.len() as u64 * frame.word;
        let is_long = frame.word == 8 && self.is_long_mode();
        let mask = match frame.stack.access & Access::D {
            _ if is_long => u64::MAX,
            0 => 0xffff,
            _ => 0xffff_ffff,
        };
        let sp = frame.sp.wrapping_sub(len) & mask;
        if !is_long && !frame.holds(sp, len) {
            return Err(self.fault_with(Vector::SS, frame.ext));
        }
        let base = if is_long { 0 } else { frame.stack.base };
        let bottom = self.wrap(base.wrapping_add(sp));
        self.check_store_in_view(env, bottom, len as u32, frame.view)?;
        for (place, value) in values.iter().rev().enumerate() {
            let linear = self.wrap(bottom.wrapping_add(place as u64 * frame.word));
            match frame.word {
                8 => self.store_in_view(env, linear, *value, frame.view)?,
                4 => self.store_in_view(env, linear, *value as u32, frame.view)?,
                _ => self.store_in_view(env, linear, *value as u16, frame.view)?,
            }
        }
        Ok(sp)
    }
}

/// Where a frame goes.
pub(crate) struct Frame {
    /// The stack segment; not looked at in long mode.
    pub(crate) stack: Segment,
    pub(crate) sp: u64,
    /// Bytes of a value: 2, 4 or 8.
    pub(crate) word: u64,
    pub(crate) view: View,
    pub(crate) ext: u32,
}

impl Frame {
    /// True if the stack segment holds `len` bytes from `sp`.
    fn holds(&self, sp: u64, len: u64) -> bool {
        let last = sp + len - 1;
        let limit = u64::from(self.stack.limit);
        if self.stack.access().is_expand_down() {
            let top = if self.stack.access & Access::D != 0 { 0xffff_ffff } else { 0xffff };
            sp > limit && last <= top
        } else {
            last <= limit
        }
    }
}

/// The values of a frame, top first.
pub(crate) struct Values {
    values: [u64; 40],
    len: usize,
}

impl Default for Values {
    fn default() -> Values {
        Values { values: [0; 40], len: 0 }
    }
}

impl Values {
    pub(crate) fn add(&mut self, value: u64) {
        self.values[self.len] = value;
        self.len += 1;
    }

    pub(crate) fn all(&self) -> &[u64] {
        &self.values[..self.len]
    }
}
