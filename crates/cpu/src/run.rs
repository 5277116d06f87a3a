//! The run loop: what a step is, and what happens between two steps.
//!
//! **A step** is a retired instruction, one iteration of a REP string instruction (the last one
//! retires it; with a count of 0 the instruction is one step), or a delivered interrupt or exception.
//! An instruction that faults is no step; delivering its exception is. INT n, INT3, INTO and INT1
//! are one step together with their delivery. Entering HLT is a step, waiting in it is none. A triple
//! fault is one.
//!
//! **Between two steps** the order is: the end of `run`; a stop that the board asks for; debug traps of
//! the step before; NMI; maskable interrupts; instruction breakpoints; the instruction. STI holds off
//! maskable interrupts for one instruction, MOV SS and POP SS hold off everything but the
//! instruction. The shadow is part of the state, so `run` may end inside it.

use base::Icount;
use mem::GuestMem;
use x86::{Dr6, Rflags, Vector};

use crate::code::{CodeCache, Run};
use crate::engine::{Engine, Left, NoEngine};
use crate::event::Event;
use crate::op::{Env, Fault};
use crate::profile::Doing;
use crate::state::Shadow;
use crate::{Bus, Cpu, Op};

/// Why [`Cpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuStop {
    /// The step count asked for is reached.
    Reached,
    /// The CPU waits in HLT for an interrupt.
    Halted,
    /// [`Bus::stop_requested`].
    StopRequested,
    /// A triple fault: the board resets the machine.
    Shutdown,
}

/// What to do at a step boundary.
enum Boundary {
    /// Run instructions, at most so many.
    Go(u64),
    Stop(CpuStop),
    /// Something was delivered; look again.
    Again,
}

impl Cpu {
    /// Runs until `until` steps are done, or until something else ends it.
    pub fn run(&mut self, mem: &mut GuestMem, bus: &mut dyn Bus, until: Icount) -> CpuStop {
        self.run_loop::<false>(mem, bus, until, &mut NoEngine)
    }

    /// Like [`Cpu::run`], with an engine that is asked first. It has to be the same one in every call
    /// unless [`Cpu::drop_caches`] was called in between.
    pub fn run_with(
        &mut self,
        mem: &mut GuestMem,
        bus: &mut dyn Bus,
        until: Icount,
        engine: &mut dyn Engine,
    ) -> CpuStop {
        self.run_loop::<true>(mem, bus, until, engine)
    }

    fn run_loop<const ASKS: bool>(
        &mut self,
        mem: &mut GuestMem,
        bus: &mut dyn Bus,
        until: Icount,
        engine: &mut dyn Engine,
    ) -> CpuStop {
        let mut code = std::mem::take(&mut self.code);
        let mut env = Env { mem, bus };
        if ASKS {
            self.tlb.set_host_base(env.mem.host_base() as u64);
        }
        self.until = until.0;
        self.attention = true;
        self.index = 0;
        self.mark(Doing::Blocks);
        let stop = self.run_blocks::<ASKS>(&mut code, &mut env, engine);
        self.mark(Doing::Board);
        self.code = code;
        stop
    }

    fn run_blocks<const ASKS: bool>(
        &mut self,
        code: &mut CodeCache,
        env: &mut Env<'_>,
        engine: &mut dyn Engine,
    ) -> CpuStop {
        loop {
            let mut budget = self.until.saturating_sub(self.block_icount);
            if budget == 0 {
                return CpuStop::Reached;
            }
            if self.attention {
                match self.attend(code, env, engine) {
                    Boundary::Go(limit) => budget = budget.min(limit),
                    Boundary::Again => continue,
                    Boundary::Stop(stop) => return stop,
                }
            }
            if !ASKS {
                self.interpret(code, env, budget, false);
                continue;
            }
            self.mark(Doing::Engine);
            let left = self.ask(engine, env, budget);
            let start = self.block_icount;
            match left {
                Left::Nothing => continue,
                Left::Instruction(budget) => {
                    self.mark(Doing::OneInstruction);
                    self.interpret(code, env, budget, true);
                }
                Left::Block(budget) | Left::Unasked(budget) => {
                    self.mark(Doing::Blocks);
                    self.interpret(code, env, budget, false);
                }
            }
            self.stats.note_left(left, self.block_icount - start);
        }
    }

    /// Interprets the block at RIP, or what the budget leaves of it, or only its first instruction.
    #[inline(always)]
    fn interpret(&mut self, code: &mut CodeCache, env: &mut Env<'_>, budget: u64, only_one: bool) {
        let linear = self.fetch_linear();
        let run = match code.jump(linear, self.mode_key, self.tlb.code_epoch(linear)) {
            Some(run) => run,
            None => match self.find_block(code, env.mem, linear) {
                Ok(run) => run,
                Err(_) => return self.deliver_fault(env),
            },
        };
        if !self.is_inside_code_segment(run.bytes) {
            return self.run_at_segment_end(code, run, env);
        }
        self.rep_until = self.block_icount + budget;
        let first = run.first as usize;
        let ops = &code.ops[first..first + usize::from(run.len)];
        match ops.first() {
            Some(op) if only_one => {
                if let Some(profile) = &mut self.profile {
                    profile.note_left(op);
                }
                self.run_ops(std::slice::from_ref(op), u16::from(op.len), 1, env);
            }
            _ => self.run_ops(ops, run.bytes, budget, env),
        }
    }

    #[inline(always)]
    fn run_ops(&mut self, ops: &[Op], bytes: u16, budget: u64, env: &mut Env<'_>) {
        let block_rip = self.rip;
        self.gpr[usize::from(Cpu::GPR_BLOCK_RIP)] = block_rip;
        self.rip = block_rip.wrapping_add(u64::from(bytes)) & self.rip_mask;
        let now_ops = ops.get(..budget as usize).unwrap_or(ops);
        for (index, op) in now_ops.iter().enumerate() {
            self.index = index as u64;
            let result = (op.run)(self, env, op);
            if result.is_err() || self.attention {
                self.leave_block(op, bytes, result, env);
                return;
            }
        }
        self.block_icount += now_ops.len() as u64;
        self.index = 0;
        if now_ops.len() < ops.len()
            && let Some(last) = now_ops.last()
        {
            self.rip = self.next_rip(last);
        }
    }

    /// After an instruction that ended its block early, or that has somebody look before the next.
    #[cold]
    #[inline(never)]
    fn leave_block(&mut self, op: &Op, bytes: u16, result: Result<(), Fault>, env: &mut Env<'_>) {
        self.block_icount += self.index;
        self.index = 0;
        let was_stepping = std::mem::take(&mut self.is_stepping);
        match result {
            Ok(()) => {
                self.block_icount += 1;
                if op.end != bytes {
                    self.rip = self.next_rip(op);
                }
            }
            Err(Fault::UNFINISHED) => {
                self.rip = self.op_rip(op);
                self.attention |= self.rflags & Rflags::RF != 0;
            }
            Err(_) => {
                self.rip = self.op_rip(op);
                self.deliver_fault(env);
                return;
            }
        }
        // After MOV SS there is no single-step trap (Intel SDM vol. 3, 6.8.3).
        if was_stepping && self.sys.shadow != Shadow::MovSs {
            self.sys.pending_debug |= Dr6::BS;
            self.attention = true;
        }
    }

    /// Runs a block that reaches beyond the code segment's limit: one instruction at a time, up to
    /// the one that does.
    #[cold]
    fn run_at_segment_end(&mut self, code: &CodeCache, run: Run, env: &mut Env<'_>) {
        let op = &code.ops[run.first as usize];
        if self.is_inside_code_segment(u16::from(op.len)) {
            self.rep_until = self.block_icount + 1;
            self.run_ops(std::slice::from_ref(op), u16::from(op.len), 1, env);
        } else {
            let _ = self.gp();
            self.deliver_fault(env);
        }
    }

    /// Looks at everything that may have to happen before the next instruction.
    #[cold]
    #[inline(never)]
    fn attend(
        &mut self,
        code: &mut CodeCache,
        env: &mut Env<'_>,
        engine: &mut dyn Engine,
    ) -> Boundary {
        if env.mem.has_watched_writes() {
            self.absorb_writes(env.mem);
        }
        if !self.tlb.code_writes.is_empty() {
            self.drop_written_code(code, env.mem, engine);
        }
        if self.sys.is_shut_down {
            return Boundary::Stop(CpuStop::Shutdown);
        }
        if env.bus.stop_requested() {
            return Boundary::Stop(CpuStop::StopRequested);
        }
        self.attention = false;
        if env.bus.take_nmi() {
            self.sys.nmi_pending = true;
        }
        if self.deliver_pending(env) {
            self.attention = true;
            return Boundary::Again;
        }
        if self.sys.halted {
            return Boundary::Stop(CpuStop::Halted);
        }
        let shadow = std::mem::take(&mut self.sys.shadow);
        let watches_code = self.has_code_breakpoints();
        let slow = Rflags::TF | Rflags::RF;
        if shadow == Shadow::None && !watches_code && self.rflags & slow == 0 {
            return Boundary::Go(u64::MAX);
        }
        self.attention = true;
        if watches_code && self.rflags & Rflags::RF == 0 && shadow != Shadow::MovSs {
            let hit = self.code_breakpoints_at(self.fetch_linear());
            if hit != 0 {
                self.sys.dr6 |= hit;
                let _ = self.fault(Vector::DB);
                self.deliver_fault(env);
                return Boundary::Again;
            }
        }
        self.rflags &= !Rflags::RF;
        self.is_stepping = self.rflags & Rflags::TF != 0;
        Boundary::Go(1)
    }

    /// Delivers the most urgent of what waits; true if there was something.
    fn deliver_pending(&mut self, env: &mut Env<'_>) -> bool {
        let shadow = self.sys.shadow;
        if shadow == Shadow::MovSs {
            return false;
        }
        if self.sys.pending_debug != 0 {
            self.sys.dr6 |= std::mem::take(&mut self.sys.pending_debug);
            self.wake();
            self.deliver_event(env, Event::trap(Vector::DB));
            return true;
        }
        if self.sys.nmi_pending && !self.sys.nmi_blocked {
            self.sys.nmi_pending = false;
            self.sys.nmi_blocked = true;
            self.wake();
            self.deliver_event(env, Event::external(Vector::NMI));
            return true;
        }
        let may_interrupt = shadow == Shadow::None && self.rflags & Rflags::IF != 0;
        if may_interrupt && env.bus.interrupt_pending() {
            let vector = env.bus.acknowledge_interrupt(self.now());
            self.wake();
            self.deliver_event(env, Event::external(vector));
            return true;
        }
        false
    }

    fn wake(&mut self) {
        self.sys.halted = false;
        self.sys.shadow = Shadow::None;
    }

    /// DR6 bits of the enabled instruction breakpoints at a linear address.
    fn code_breakpoints_at(&self, linear: u64) -> u64 {
        let dr7 = self.sys.dr7;
        (0..4)
            .filter(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0)
            .filter(|n| self.sys.dr[*n as usize] == linear)
            .fold(0, |bits, n| bits | 1 << n)
    }
}
