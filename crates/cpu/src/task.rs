//! Hardware task switches (Intel SDM vol. 3, chapter 7), in protected mode only.
//!
//! A fault before the switch is the old task's. A fault while the new task's segments are loaded is
//! the new task's first, and is delivered within the same step. Tasks in virtual 8086 mode do not
//! exist: their VM flag is ignored.

use x86::{Access, Cr0, Dr6, Rflags, Selector, SystemType, Vector};

use crate::Cpu;
use crate::event::Event;
use crate::op::{Env, Fault};
use crate::segment::Found;
use crate::state::{Seg, Segment};
use crate::tlb::View;

/// What makes the CPU switch tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Jump,
    Call,
    Event,
    Iret,
}

/// A task as its TSS holds it.
#[derive(Default)]
struct Task {
    cr3: Option<u32>,
    eip: u32,
    eflags: u32,
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    gpr: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    traps: bool,
}

/// Where the fields of a TSS are.
struct Layout {
    /// Bytes of a register field.
    word: u64,
    cr3: Option<u64>,
    eip: u64,
    gpr: u64,
    selectors: u64,
    /// Distance of two selectors.
    selector_step: u64,
    selector_count: usize,
    ldt: u64,
    limit_min: u32,
}

const LAYOUT32: Layout = Layout {
    word: 4,
    cr3: Some(28),
    eip: 32,
    gpr: 40,
    selectors: 72,
    selector_step: 4,
    selector_count: 6,
    ldt: 96,
    limit_min: 0x67,
};

const LAYOUT16: Layout = Layout {
    word: 2,
    cr3: None,
    eip: 14,
    gpr: 18,
    selectors: 34,
    selector_step: 2,
    selector_count: 4,
    ldt: 42,
    limit_min: 0x2b,
};

/// Offset of the T bit's word in a 32-bit TSS.
const TRAP: u64 = 100;
/// The busy bit of a TSS descriptor's type.
const BUSY: u16 = 2;

fn layout_of(access: Access) -> &'static Layout {
    if access.0 & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
}

impl Cpu {
    pub(crate) fn switch_by_jump(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        found: &Found,
        next_rip: u64,
    ) -> Result<(), Fault> {
        let tss = self.task_target(selector, found)?;
        self.switch_task(env, tss, Cause::Jump, next_rip, None)
    }

    pub(crate) fn switch_by_call(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        found: &Found,
        next_rip: u64,
    ) -> Result<(), Fault> {
        let tss = self.task_target(selector, found)?;
        self.switch_task(env, tss, Cause::Call, next_rip, None)
    }

    pub(crate) fn switch_by_event(
        &mut self,
        env: &mut Env<'_>,
        event: &Event,
        tss: Selector,
    ) -> Result<(), Fault> {
        let return_rip = event.return_rip.unwrap_or(self.rip);
        self.is_stepping = false;
        self.switch_task(env, tss, Cause::Event, return_rip, event.error_code)
    }

    pub(crate) fn switch_by_iret(&mut self, env: &mut Env<'_>, next_rip: u64) -> Result<(), Fault> {
        let link: u16 = self.load_system(env, self.sys.tr.base)?;
        self.switch_task(env, Selector(link), Cause::Iret, next_rip, None)
    }

    /// The TSS that a far jump or call names, directly or by a task gate, its privilege checked.
    fn task_target(&mut self, selector: Selector, found: &Found) -> Result<Selector, Fault> {
        let access = found.descriptor.access();
        if access.dpl() < self.cpl.max(selector.rpl()) {
            return Err(self.fault_with(Vector::GP, selector.error_code()));
        }
        if access.system_type() != SystemType::TASK_GATE {
            return Ok(selector);
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, selector.error_code()));
        }
        Ok(found.descriptor.gate_selector())
    }

    /// The new TSS, its type, presence and size checked.
    fn find_tss(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        cause: Cause,
    ) -> Result<(Segment, u64), Fault> {
        let vector = if cause == Cause::Iret { Vector::TS } else { Vector::GP };
        if selector.is_local() {
            return Err(self.fault_with(vector, selector.error_code()));
        }
        let found = self.find_descriptor(env, selector, vector, 0)?;
        let access = found.descriptor.access();
        let wanted = if cause == Cause::Iret { BUSY } else { 0 };
        let kind = access.system_type();
        if kind & !(BUSY | 8) != SystemType::TSS16 || kind & BUSY != wanted {
            return Err(self.fault_with(vector, selector.error_code()));
        }
        if !access.has(Access::P) {
            return Err(self.fault_with(Vector::NP, selector.error_code()));
        }
        if found.descriptor.limit() < layout_of(access).limit_min {
            return Err(self.fault_with(Vector::TS, selector.error_code()));
        }
        let tss = Segment {
            selector: selector.0,
            access: access.0 | BUSY,
            limit: found.descriptor.limit(),
            base: found.descriptor.base(),
        };
        Ok((tss, found.linear))
    }

    fn switch_task(
        &mut self,
        env: &mut Env<'_>,
        selector: Selector,
        cause: Cause,
        return_rip: u64,
        error_code: Option<u32>,
    ) -> Result<(), Fault> {
        let (tss, descriptor_at) = self.find_tss(env, selector, cause)?;
        let layout = layout_of(tss.access());
        let old = self.sys.tr;
        // Whatever may fault in either TSS faults now, in the old task.
        self.check_store_in_view(
            env,
            old.base,
            layout_of(old.access()).limit_min + 1,
            View::Supervisor,
        )?;
        self.check_store_in_view(env, tss.base, layout.limit_min + 1, View::Supervisor)?;
        let mut task = self.load_task(env, tss.base, layout)?;
        if matches!(cause, Cause::Jump | Cause::Iret) {
            self.clear_busy(env, Selector(old.selector))?;
        }
        let mut eflags = self.rflags() as u32;
        if cause == Cause::Iret {
            eflags &= !(Rflags::NT as u32);
        }
        self.save_task(env, eflags, return_rip as u32)?;
        if matches!(cause, Cause::Call | Cause::Event) {
            self.store_system(env, tss.base, old.selector)?;
            task.eflags |= Rflags::NT as u32;
        }
        if cause != Cause::Iret {
            let rights: u8 = self.load_system(env, self.wrap(descriptor_at.wrapping_add(5)))?;
            let busy = rights | BUSY as u8;
            self.store_system(env, self.wrap(descriptor_at.wrapping_add(5)), busy)?;
        }
        self.sys.tr = tss;
        self.sys.cr0 |= Cr0::TS;
        if self.enter_task(env, &task, error_code, layout.word).is_err() {
            self.deliver_first_fault(env);
        }
        if task.traps {
            self.sys.pending_debug |= Dr6::BT;
            self.attention = true;
        }
        Ok(())
    }

    /// Delivers what loading the new task raised. The step is the switch's.
    fn deliver_first_fault(&mut self, env: &mut Env<'_>) {
        self.update_mode();
        self.deliver_fault(env);
        self.block_icount -= 1;
    }

    fn clear_busy(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<(), Fault> {
        let found = self.find_descriptor(env, selector, Vector::TS, 0)?;
        let at = self.wrap(found.linear.wrapping_add(5));
        let rights = (found.descriptor.0 >> 40) as u8 & !(BUSY as u8);
        self.store_system(env, at, rights)
    }

    fn load_task(&mut self, env: &mut Env<'_>, base: u64, layout: &Layout) -> Result<Task, Fault> {
        let mut task = Task::default();
        if let Some(cr3) = layout.cr3 {
            task.cr3 = Some(self.load_system(env, self.wrap(base + cr3))?);
            let flags: u16 = self.load_system(env, self.wrap(base + TRAP))?;
            task.traps = flags & 1 != 0;
        }
        task.eip = self.task_word(env, base + layout.eip, layout)?;
        task.eflags = self.task_word(env, base + layout.eip + layout.word, layout)?;
        for r in 0..8 {
            task.gpr[r] =
                self.task_word(env, base + layout.gpr + layout.word * r as u64, layout)?;
        }
        for n in 0..layout.selector_count {
            let at = base + layout.selectors + layout.selector_step * n as u64;
            task.selectors[n] = self.load_system(env, self.wrap(at))?;
        }
        task.ldt = self.load_system(env, self.wrap(base + layout.ldt))?;
        Ok(task)
    }

    fn task_word(&mut self, env: &mut Env<'_>, at: u64, layout: &Layout) -> Result<u32, Fault> {
        let at = self.wrap(at);
        if layout.word == 4 {
            self.load_system(env, at)
        } else {
            Ok(u32::from(self.load_system::<u16>(env, at)?))
        }
    }

    /// Saves the running task in its TSS. CR3 and LDT are not saved.
    fn save_task(&mut self, env: &mut Env<'_>, eflags: u32, eip: u32) -> Result<(), Fault> {
        let base = self.sys.tr.base;
        let layout = layout_of(self.sys.tr.access());
        let mut words = vec![(layout.eip, eip), (layout.eip + layout.word, eflags)];
        words
            .extend((0..8u64).map(|r| (layout.gpr + layout.word * r, self.gpr[r as usize] as u32)));
        for (at, value) in words {
            let at = self.wrap(base + at);
            if layout.word == 4 {
                self.store_system(env, at, value)?;
            } else {
                self.store_system(env, at, value as u16)?;
            }
        }
        for n in 0..layout.selector_count {
            let at = base + layout.selectors + layout.selector_step * n as u64;
            self.store_system(env, self.wrap(at), self.seg[n].selector)?;
        }
        Ok(())
    }

    /// Loads the new task's registers. From here on a fault is the new task's.
    fn enter_task(
        &mut self,
        env: &mut Env<'_>,
        task: &Task,
        error_code: Option<u32>,
        word: u64,
    ) -> Result<(), Fault> {
        for (r, value) in task.gpr.iter().enumerate() {
            self.gpr[r] = u64::from(*value);
        }
        self.rip = u64::from(task.eip);
        self.set_rflags(u64::from(task.eflags) & !Rflags::VM);
        for index in 0..6 {
            self.seg[index] = Segment::null(Selector(task.selectors[index]));
        }
        let cpl = Selector(task.selectors[Seg::CS]).rpl();
        self.sys.ldtr = Segment::null(Selector(task.ldt));
        if self.sys.cr0 & Cr0::PG != 0
            && let Some(cr3) = task.cr3
        {
            self.write_cr3(env, u64::from(cr3))?;
        }
        self.load_task_ldt(env, Selector(task.ldt))?;
        self.load_task_code(env, Selector(task.selectors[Seg::CS]))?;
        self.cpl = cpl;
        let stack = Selector(task.selectors[Seg::SS]);
        self.seg[Seg::SS] = self.stack_segment_for(env, stack, cpl, Vector::TS, 0)?;
        self.update_mode();
        for index in [Seg::ES, Seg::DS, Seg::FS, Seg::GS] {
            let selector = Selector(task.selectors[index]);
            let loaded = self.load_segment(env, index, selector);
            if loaded.is_err() && self.exception.vector == Vector::GP {
                self.exception.vector = Vector::TS;
            }
            loaded?;
        }
        if task.eip > self.seg[Seg::CS].limit {
            return Err(self.gp());
        }
        match error_code {
            Some(code) if word == 4 => self.push(env, code),
            Some(code) => self.push(env, code as u16),
            None => Ok(()),
        }
    }

    fn load_task_ldt(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<(), Fault> {
        if selector.is_null() {
            return Ok(());
        }
        if selector.is_local() {
            return Err(self.fault_with(Vector::TS, selector.error_code()));
        }
        let descriptor = self.find_descriptor(env, selector, Vector::TS, 0)?.descriptor;
        let access = descriptor.access();
        if access.system_type() != SystemType::LDT || !access.has(Access::P) {
            return Err(self.fault_with(Vector::TS, selector.error_code()));
        }
        self.sys.ldtr = Segment {
            selector: selector.0,
            access: access.0,
            limit: descriptor.limit(),
            base: descriptor.base(),
        };
        Ok(())
    }

    fn load_task_code(&mut self, env: &mut Env<'_>, selector: Selector) -> Result<(), Fault> {
        if selector.is_null() {
            return Err(self.fault_with(Vector::TS, 0));
        }
        let found = self.find_descriptor(env, selector, Vector::TS, 0)?;
        let access = found.descriptor.access();
        let level_ok = if access.is_conforming() {
            access.dpl() <= selector.rpl()
        } else {
            access.dpl() == selector.rpl()
        };
        if !access.is_code() || !level_ok {
            return Err(self.fault_with(Vector::TS, selector.error_code()));
        }
        self.seg[Seg::CS] = self.code_segment(env, selector, selector.rpl(), &found, 0)?;
        Ok(())
    }
}
