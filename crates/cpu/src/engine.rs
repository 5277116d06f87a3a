//! A second engine beside the interpreter, and what one that translates needs of the CPU: its
//! registers, the TLB's address, the marks on code.
//!
//! The engine executes instructions exactly as the interpreter would, or not at all: whatever it does not
//! know, a fault, device memory, the end of the budget, it leaves to the interpreter with the state
//! as it is before that instruction. So all semantics of exceptions, interrupts and system
//! instructions exist once.
//!
//! [`Cpu::run_with`] asks the engine at a boundary where nothing is pending: no interrupt, no trap flag, no
//! shadow, no breakpoint on instructions, and 64-bit mode. None of that can change without an
//! instruction that the engine leaves to the interpreter, so it need not look. What can change under it
//! is code: a store of its own that hits a page with marks on code is left to the interpreter too.

use base::{Gpa, Icount, PAGE_SIZE};
use mem::{GuestMem, RamOffset, WatchedWrite};
use x86::{Cr4, Efer, Rflags};

use crate::access::is_canonical;
use crate::decode::ModeKey;
use crate::op::Env;
use crate::profile::Doing;
use crate::state::Seg;
use crate::tlb::{BANKS, SecondLevel, VIEWS, View, view_of};
use crate::walk::Kind;
use crate::{Cpu, CpuStats, Flags, X87State};

/// What the interpreter does after [`Engine::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: look at what is pending and ask the engine again.
    Again,
    /// One instruction, all iterations of it that the budget allows.
    Instruction,
    /// One block, or what the budget leaves of it.
    Block,
}

/// An engine beside the interpreter.
///
/// It is configuration of this process and not part of the guest's state: nothing that it keeps may be
/// seen by the guest. Between two calls it relies on nothing but what [`Engine::drop_code`], [`Cpu::code_generation`],
/// [`Cpu::side_context`] and [`Cpu::tlb_state`] tell it.
pub trait Engine {
    /// Runs from the CPU's present state, at most `budget` steps, which is at least 1. On return the
    /// CPU's state is exact and between two instructions.
    ///
    /// [`Next::Again`] is for an engine that made a step, or that found the CPU's attention raised
    /// ([`Cpu::has_attention`]); in the second case any other answer means the same.
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, budget: u64) -> Next;

    /// Bytes that were marked with [`Cpu::note_code`] were written: drops what was made of them. The
    /// page's marks may be gone, so what is kept of the page has to be marked again.
    fn drop_code(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, write: WatchedWrite);

    /// Counts of what it did since it was made, each with its name.
    fn stats(&self) -> Vec<(&'static str, u64)>;
}

/// Stands where there is no engine.
pub(crate) struct NoEngine;

impl Engine for NoEngine {
    fn run(&mut self, _: &mut Cpu, _: &mut Env<'_>, _: u64) -> Next {
        Next::Block
    }

    fn drop_code(&mut self, _: &mut Cpu, _: &mut GuestMem, _: WatchedWrite) {}

    fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What is left to the interpreter, with its budget.
#[derive(Clone, Copy)]
pub(crate) enum Left {
    Nothing,
    Instruction(u64),
    Block(u64),
    /// As a block; the engine was not asked.
    Unasked(u64),
}

/// Where code lies, and how long that stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace {
    /// RAM address of the instruction at RIP.
    pub ram: RamOffset,
    /// What of the mode decides what bytes mean; [`CodePlace::AT_EDGE`] beside it.
    pub meaning: u32,
}

impl CodePlace {
    /// A bit of the meaning: a branch from there by a distance may lead to an address that is not canonical.
    pub const AT_EDGE: u32 = 1 << 30;

    /// [`CodePlace::AT_EDGE`] or 0, for a linear address.
    fn edge(linear: u64) -> u32 {
        // Distances have 32 bits, and half of that is how far they reach.
        const REACH: u64 = 1 << 32;
        let from_edge = (linear ^ (linear as i64 >> 63) as u64) + REACH;
        if from_edge >> 47 != 0 { CodePlace::AT_EDGE } else { 0 }
    }
}

/// What decides where the addresses of one half lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeContext {
    /// Mode, privilege, address space and half.
    pub place: u32,
    /// Moves on when that may have changed.
    pub epoch: u64,
}

/// A page of any size that the tables map.
#[derive(Clone, Copy, Debug)]
pub struct SettledPage {
    /// Its first linear address.
    pub linear: u64,
    /// Its size.
    pub bytes: u64,
    /// Where it lies.
    pub gpa: Gpa,
}

impl SettledPage {
    /// Where a linear address leads, if it is on the page.
    #[must_use]
    pub fn place(&self, linear: u64) -> Option<Gpa> {
        let inside = linear.wrapping_sub(self.linear);
        (inside < self.bytes).then(|| Gpa(self.gpa.0 + inside))
    }
}

/// The two sides of a system call, in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// CPL 3.
    Program,
    /// CPL 0, with RFLAGS.AC clear.
    Kernel,
}

/// As long as this is the same, the running code may do the same: [`Cpu::may_read_time`], [`Cpu::system_calls`] and what
/// else there is of the kind give the same answers, and so does [`Cpu::side_selectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    privilege: u64,
    serves_views: bool,
    cr4: u64,
    efer: u64,
    system_calls: [u64; 3],
}

/// What SYSCALL does.
#[derive(Clone, Copy, Debug)]
pub struct SystemCalls {
    /// Where it leads.
    pub target: u64,
    /// The bits of RFLAGS that it keeps, and the one that is always 1.
    pub kept: u64,
}

impl CpuStats {
    pub(crate) fn note_left(&mut self, left: Left, steps: u64) {
        let count = match left {
            Left::Nothing => return,
            Left::Instruction(_) => &mut self.steps_left_singly,
            Left::Block(_) => &mut self.steps_left_in_blocks,
            Left::Unasked(_) => &mut self.steps_unasked,
        };
        *count += steps;
    }
}

impl Cpu {
    /// Has the engine run, if it may.
    pub(crate) fn ask(&mut self, engine: &mut dyn Engine, env: &mut Env<'_>, budget: u64) -> Left {
        if self.attention || !self.is_64_bit() {
            return Left::Unasked(budget);
        }
        let start = self.block_icount;
        let next = engine.run(self, env, budget);
        let steps = self.block_icount - start;
        debug_assert!(steps <= budget, "the engine ran {steps} steps of {budget}");
        self.stats.engine_runs += 1;
        self.stats.engine_steps += steps;
        let left = budget.saturating_sub(steps);
        match next {
            // What is pending comes first, and then what was to be interpreted is asked for again.
            _ if self.attention || left == 0 => Left::Nothing,
            Next::Again => {
                debug_assert!(steps > 0, "the engine asks to be asked again for ever");
                Left::Nothing
            }
            Next::Instruction => Left::Instruction(left),
            Next::Block => Left::Block(left),
        }
    }

    /// The general registers.
    #[inline]
    pub fn gprs_mut(&mut self) -> &mut [u64; 16] {
        self.gpr.first_chunk_mut().expect("there are more than 16")
    }

    /// Goes on at `rip` with `steps` more steps done and these arithmetic flags.
    #[inline]
    pub fn resume_at(&mut self, rip: u64, steps: u64, status: u64) {
        self.rip = rip;
        self.block_icount += steps;
        self.flags = Flags::from_rflags(status & Rflags::STATUS);
    }

    /// `IA32_KERNEL_GS_BASE`, which SWAPGS exchanges with the base of GS.
    #[inline]
    #[must_use]
    pub fn kernel_gs_base(&self) -> u64 {
        self.sys.kernel_gs_base
    }

    /// What SWAPGS does at CPL 0.
    pub(crate) fn swap_gs(&mut self) {
        let base = std::mem::replace(&mut self.sys.kernel_gs_base, self.seg[Seg::GS].base);
        self.set_segment_base(Seg::GS, base);
    }

    /// Sets the bases of FS and GS and the one that SWAPGS exchanges with the latter. They are canonical.
    #[inline]
    pub fn set_bases(&mut self, fs: u64, gs: u64, kernel_gs: u64) {
        self.set_segment_base(Seg::FS, fs);
        self.set_segment_base(Seg::GS, gs);
        self.sys.kernel_gs_base = kernel_gs;
    }

    /// True if RDFSBASE and its like do not fault.
    #[must_use]
    pub fn has_base_instructions(&self) -> bool {
        self.sys.cr4 & Cr4::FSGSBASE != 0
    }

    /// True if RDTSC and RDTSCP do not fault.
    #[must_use]
    pub fn may_read_time(&self) -> bool {
        self.cpl == 0 || self.sys.cr4 & Cr4::TSD == 0
    }

    /// The time stamp counter after `steps` more steps.
    pub fn time_after(&mut self, env: &mut Env<'_>, steps: u64) -> u64 {
        self.tsc_at(env, Icount(self.block_icount + steps))
    }

    /// What RDTSCP has in ECX.
    #[inline]
    #[must_use]
    pub fn tsc_aux(&self) -> u64 {
        self.sys.tsc_aux
    }

    /// A segment register's selector, by [`crate::Seg`].
    #[inline]
    #[must_use]
    pub fn selector(&self, number: usize) -> u16 {
        self.seg[number].selector
    }

    /// CR0, CR2, CR3 and CR4.
    #[inline]
    #[must_use]
    pub fn control_registers(&self) -> [u64; 4] {
        [self.sys.cr0, self.sys.cr2, self.sys.cr3, self.sys.cr4]
    }

    /// What decides which of its instructions the running code may do.
    #[inline]
    #[must_use]
    pub fn rights(&self) -> Rights {
        let sys = &self.sys;
        Rights {
            privilege: u64::from(self.cpl) | self.rflags & Rflags::IOPL,
            serves_views: self.serves_views(),
            cr4: sys.cr4,
            efer: sys.efer,
            system_calls: [sys.star, sys.lstar, sys.fmask],
        }
    }

    /// True if something is to be looked at before the next instruction.
    #[inline]
    #[must_use]
    pub fn has_attention(&self) -> bool {
        self.attention
    }

    /// Base of a segment as data accesses add it, by [`crate::Seg`].
    #[inline]
    #[must_use]
    pub fn data_base(&self, seg: usize) -> u64 {
        self.seg_base[seg & 7]
    }

    /// The 1024 TLB entries for the running code's data accesses, each of four words: the page's linear
    /// address if it may be read, if it may be written, its host address, and how far that is from the linear
    /// one. The entry of a linear address is number `linear >> 12 & 1023`.
    #[inline]
    #[must_use]
    pub fn tlb_entries(&self) -> *const u64 {
        self.tlb.entries_from(self.tlb_base)
    }

    /// How many views the TLB has, of all address spaces that it keeps.
    pub const TLB_VIEWS: usize = BANKS * VIEWS;

    /// The number of the view that the running code accesses data in. That of the supervisor with RFLAGS.AC comes next to that
    /// without it.
    #[inline]
    #[must_use]
    pub fn tlb_view(&self) -> usize {
        view_of(self.tlb_base)
    }

    /// The numbers of all views of the present address space.
    #[inline]
    pub fn tlb_views(&self) -> std::ops::Range<usize> {
        let first = self.tlb.bank() * VIEWS;
        first..first + VIEWS
    }

    /// What the TLB holds beside these, for the running code.
    #[inline]
    #[must_use]
    pub fn second_level(&self) -> SecondLevel {
        self.tlb.second_level(self.tlb_base)
    }

    /// What the TLB serves: as long as this is the same, an entry that once was in [`Cpu::tlb_entries`] still
    /// says the truth, even if another one has taken its place.
    #[inline]
    #[must_use]
    pub fn tlb_state(&self) -> (usize, u64) {
        (self.tlb_entries() as usize, self.tlb.losses())
    }

    /// The linear and the host address of the page of `linear`, if the TLB knows that the running code may store to it.
    #[inline]
    #[must_use]
    pub fn writable_page(&self, linear: u64) -> Option<(u64, u64)> {
        self.tlb.writable_page(self.tlb_base, linear)
    }

    /// The host address for an access of `len` bytes, if it lies in one page of RAM that the TLB may serve.
    /// Fills the TLB. `None` if the access would fault, is not to RAM, is a store to a watched page, has to be
    /// looked at each time (alignment checks, data breakpoints), or if something is to be looked at before.
    /// May set Accessed and Dirty, so the access must be the next thing that happens, by whichever engine.
    /// Also `None` if this took anything from the TLB ([`Cpu::tlb_state`]).
    pub fn host_address(
        &mut self,
        env: &mut Env<'_>,
        linear: u64,
        len: u64,
        write: bool,
    ) -> Option<u64> {
        let crosses = (linear & 0xfff) + len > PAGE_SIZE;
        // Where every access is looked at, one may fault before anything is translated.
        if !is_canonical(linear) || crosses || self.tlb_base != self.tlb.base_of(self.view, false) {
            return None;
        }
        let kind = if write { Kind::Write } else { Kind::Read };
        let losses = self.tlb.losses();
        self.mark(Doing::Walking);
        let walked = self.translate(env, linear, kind, self.view);
        self.mark(Doing::Engine);
        walked.ok()?;
        if self.attention || self.tlb.losses() != losses {
            return None;
        }
        self.tlb.host_address(self.tlb_base, linear, write)
    }

    /// Where the instruction at a linear address lies; `None` if fetching it faults or is not from RAM,
    /// which the interpreter sorts out, or if something is to be looked at first. Sets Accessed, so that
    /// instruction must be the next one, and within the budget.
    pub fn code_place(&mut self, mem: &mut GuestMem, linear: u64) -> Option<CodePlace> {
        let gpa: Gpa = self.translate_fetch(mem, linear).ok()?;
        let ram = mem.offset_of(gpa)?;
        if self.attention {
            return None; // the walk has written to code
        }
        let meaning = self.mode_key & ModeKey::MEANING | CodePlace::edge(linear);
        Some(CodePlace { ram, meaning })
    }

    /// The page with a linear address, for fetches on a side of a system call, if the tables say so and the guest cannot see
    /// that they were asked: where Accessed is set already. Links to code there hold then, as if it had been found by
    /// [`Cpu::code_place`].
    pub fn settled_code_page(
        &mut self,
        mem: &mut GuestMem,
        linear: u64,
        side: Side,
    ) -> Option<SettledPage> {
        let view = if side == Side::Kernel { View::Supervisor } else { View::User };
        self.settled_page(mem, linear, view)
    }

    /// Address spaces that the TLB keeps side by side.
    pub const ADDRESS_SPACES: usize = BANKS;

    /// Which of them is the present one. Part of [`Cpu::side_context`].
    #[inline]
    #[must_use]
    pub fn address_space(&self) -> usize {
        self.tlb.bank()
    }

    /// What SYSCALL does; `None` if the interpreter has to do both it and SYSRET.
    #[must_use]
    pub fn system_calls(&self) -> Option<SystemCalls> {
        let sys = &self.sys;
        let is_on = sys.efer & Efer::SCE != 0 && is_canonical(sys.lstar) && self.serves_views();
        // So only RIP, the segments and the flags differ from side to side, and the kernel begins without AC.
        let is_plain = self.rflags & Rflags::IOPL == 0 && sys.fmask & Rflags::AC != 0;
        (is_on && is_plain)
            .then_some(SystemCalls { target: sys.lstar, kept: !sys.fmask | Rflags::FIXED })
    }

    /// True if STAC and CLAC do no more than to choose between two views.
    #[must_use]
    pub fn has_two_views(&self) -> bool {
        self.sys.cr4 & Cr4::SMAP != 0 && self.serves_views()
    }

    /// True if the TLB may serve the running code's accesses, so that it may those of the other side.
    #[inline]
    fn serves_views(&self) -> bool {
        self.tlb_base == self.tlb.base_of(self.view, false)
    }

    /// [`Cpu::tlb_entries`], [`Cpu::tlb_view`] and [`Cpu::second_level`] on a side of a system call.
    #[inline]
    #[must_use]
    pub fn side_tlb(&self, side: Side) -> (*const u64, usize, SecondLevel) {
        let view = if side == Side::Kernel { View::Supervisor } else { View::User };
        let base = self.tlb.base_of(view, false);
        (self.tlb.entries_from(base), view_of(base), self.tlb.second_level(base))
    }

    /// In which context the half with a linear address is there: while it is the same, addresses lead to the same memory, as
    /// far as code was found there. An engine hears by itself of code that was written ([`Engine::drop_code`]).
    #[inline]
    #[must_use]
    pub fn side_context(&self, side: Side, linear: u64) -> CodeContext {
        let place = ModeKey::on(self.mode_key, side) << 1 | (linear >> 63) as u32;
        CodeContext { place, epoch: self.tlb.code_epoch(linear) }
    }

    /// The selectors of CS and SS there.
    #[must_use]
    pub fn side_selectors(&self, side: Side) -> [u16; 2] {
        self.side_segments(side).map(|segment| segment.selector)
    }

    /// Follows an engine to the other side of a system call, if `side` says so, and takes over RFLAGS but for the
    /// arithmetic flags.
    #[inline]
    pub fn follow(&mut self, side: Option<Side>, rflags: u64) {
        let changed = self.rflags ^ rflags;
        self.rflags = rflags & !Rflags::STATUS;
        if let Some(side) = side {
            self.enter_side(side);
            self.update_mode();
        } else if changed & Rflags::AC != 0 {
            self.update_view();
        }
    }

    /// The XMM registers.
    #[inline]
    pub fn xmm_mut(&mut self) -> &mut [u128; 16] {
        &mut self.sse.xmm
    }

    /// The upper halves of the YMM registers.
    #[inline]
    pub fn ymm_upper_mut(&mut self) -> &mut [u128; 16] {
        &mut self.sse.ymm_high
    }

    /// The x87.
    #[inline]
    pub fn x87_mut(&mut self) -> &mut X87State {
        &mut self.x87
    }

    /// MXCSR.
    #[inline]
    pub fn mxcsr_mut(&mut self) -> &mut u32 {
        &mut self.sse.mxcsr
    }

    /// Has writes to bytes `start..end` of a RAM page reported to [`Engine::drop_code`].
    pub fn note_code(&mut self, mem: &mut GuestMem, page: u64, start: usize, end: usize) {
        self.tlb.note_code(mem, page, start, end);
    }

    /// Changes whenever all marks on code are forgotten; an engine then drops everything.
    #[inline]
    #[must_use]
    pub fn code_generation(&self) -> u64 {
        self.tlb.code_generation
    }
}
