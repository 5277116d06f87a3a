//! What a second engine, one that translates, needs of the CPU: its registers, the TLB's address, the
//! marks on code, and a run loop that asks the engine first and interprets the rest.
//!
//! The engine executes instructions exactly as the interpreter would, or not at all: whatever it does not
//! know, a fault, device memory, the end of the budget, it leaves to the interpreter with the state
//! as it is before that instruction. So all semantics of exceptions, interrupts and system
//! instructions exist once.

use base::{Gpa, Icount};
use mem::{GuestMem, RamOffset, WatchedWrite};
use x86::{Exception, Rflags};

use crate::access::is_canonical;
use crate::code::CodeCache;
use crate::decode::ModeKey;
use crate::op::Env;
use crate::run::Boundary;
use crate::walk::Kind;
use crate::{Bus, Cpu, CpuStop, Flags};

/// What the interpreter does after [`Engine::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: look at what is pending and ask the engine again.
    Again,
    /// One instruction.
    Instruction,
    /// One block, or what the budget leaves of it.
    Block,
}

/// An engine beside the interpreter.
pub trait Engine {
    /// Runs from the CPU's present state, at most `budget` steps. Nothing is pending. On return the
    /// CPU's state is exact and between two instructions.
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, budget: u64) -> Next;

    /// Bytes of code were written: drops what was made of them.
    fn drop_code(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, write: WatchedWrite);
}

/// Where code lies, and how long that stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace {
    /// RAM address of the instruction at RIP.
    pub ram: RamOffset,
    /// What of the mode decides what bytes mean.
    pub meaning: u32,
}

impl Cpu {
    /// Like [`Cpu::run`], with an engine that is asked first.
    pub fn run_with(
        &mut self,
        mem: &mut GuestMem,
        bus: &mut dyn Bus,
        until: Icount,
        engine: &mut dyn Engine,
    ) -> CpuStop {
        let mut code = std::mem::take(&mut self.code);
        let mut env = Env { mem, bus };
        self.tlb.set_host_base(env.mem.host_base() as u64);
        self.until = until.0;
        self.attention = true;
        self.index = 0;
        let stop = self.run_engine(&mut code, &mut env, engine);
        self.code = code;
        stop
    }

    fn run_engine(
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
                let writes = self.code_writes(env.mem);
                let boundary = self.attend(code, env);
                for write in writes {
                    engine.drop_code(self, env.mem, write);
                }
                match boundary {
                    Boundary::Go(limit) => budget = budget.min(limit),
                    Boundary::Again => continue,
                    Boundary::Stop(stop) => return stop,
                }
            }
            let next = if budget > 1 && !self.attention && self.is_64_bit() {
                engine.run(self, env, budget)
            } else {
                Next::Block
            };
            if next == Next::Again {
                continue;
            }
            budget = budget.min(self.until - self.block_icount);
            self.interpret(code, env, budget, next == Next::Instruction);
        }
    }

    /// The writes to code that `attend` is about to look at.
    fn code_writes(&mut self, mem: &mut GuestMem) -> Vec<WatchedWrite> {
        if mem.has_watched_writes() {
            self.absorb_writes(mem);
        }
        self.tlb.code_writes.clone()
    }

    /// The general registers.
    pub fn gprs_mut(&mut self) -> &mut [u64; 16] {
        self.gpr.first_chunk_mut().expect("there are more than 16")
    }

    /// Goes on at `rip` with `steps` more steps done and these arithmetic flags.
    pub fn resume_at(&mut self, rip: u64, steps: u64, status: u64) {
        self.rip = rip;
        self.block_icount += steps;
        self.flags = Flags::from_rflags(status & Rflags::STATUS);
    }

    /// True if something is to be looked at before the next instruction.
    #[must_use]
    pub fn has_attention(&self) -> bool {
        self.attention
    }

    /// Base of a segment as data accesses add it, by [`crate::Seg`].
    #[must_use]
    pub fn data_base(&self, seg: usize) -> u64 {
        self.seg_base[seg & 7]
    }

    /// The 256 TLB entries for the running code's data accesses, each of four words: the page's linear
    /// address if it may be read, if it may be written, its RAM offset and its host address. The entry of a linear
    /// address is number `(linear >> 12 ^ linear >> 20) & 255`.
    #[must_use]
    pub fn tlb_entries(&self) -> *const u64 {
        self.tlb.entries_from(self.tlb_base)
    }

    /// Translates for an access of `len` bytes in one page and fills the TLB, if the page tables allow it
    /// and it is RAM. Sets Accessed and Dirty, so the access must follow, by whichever engine.
    pub fn fill_for(&mut self, env: &mut Env<'_>, linear: u64, len: u64, write: bool) -> bool {
        if !is_canonical(linear) || (linear & 0xfff) + len > 4096 {
            return false;
        }
        let kind = if write { Kind::Write } else { Kind::Read };
        let exception: Exception = self.exception;
        let found = self.translate(env, linear, kind, self.view).is_ok();
        self.exception = exception;
        found && !self.attention
    }

    /// Where the instruction at a linear address lies; `None` if fetching it faults or is not from RAM,
    /// which the interpreter sorts out.
    pub fn code_place(&mut self, mem: &mut GuestMem, linear: u64) -> Option<CodePlace> {
        if !is_canonical(linear) {
            return None;
        }
        let gpa: Gpa = self.translate_fetch(mem, linear).ok()?;
        let ram = mem.offset_of(gpa)?;
        Some(CodePlace { ram, meaning: self.mode_key & ModeKey::MEANING })
    }

    /// A link from a linear address to its code holds while this number is the same for it.
    #[must_use]
    pub fn code_context(&self, linear: u64) -> u64 {
        let half = linear >> 63;
        u64::from(self.mode_key) << 33 | half << 32 | u64::from(self.tlb.code_epoch(linear))
    }

    /// The XMM registers.
    pub fn xmm_mut(&mut self) -> &mut [u128; 16] {
        &mut self.sse.xmm
    }

    /// MXCSR.
    pub fn mxcsr_mut(&mut self) -> &mut u32 {
        &mut self.sse.mxcsr
    }

    /// Has writes to bytes `start..end` of a RAM page reported to [`Engine::drop_code`].
    pub fn note_code(&mut self, mem: &mut GuestMem, page: u64, start: usize, end: usize) {
        self.tlb.note_code(mem, page, start, end);
    }

    /// Changes whenever all marks on code are forgotten; an engine then drops everything.
    #[must_use]
    pub fn code_generation(&self) -> u64 {
        self.tlb.code_generation
    }
}
