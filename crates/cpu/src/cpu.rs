//! The CPU's parts, and access to its registers.

use base::{Icount, RestoreError};
use mem::GuestMem;
use x86::{Access, CpuModel, Cr0, Cr4, Dr7, Efer, Exception, Rflags, Vector, cpuid};

use crate::code::CodeCache;
use crate::decode::{INSTRUCTION_BYTES_MAX, name_of};
use crate::op::Fault;
use crate::profile::Profile;
use crate::state::{CpuState, Seg, Segment, Shadow, SseState, SystemState, X87State};
use crate::tlb::{Tlb, View};
use crate::{Flags, Op};

/// Declares counts and their list, name by name.
macro_rules! counts {
    ($(#[$doc:meta])* $type:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $type {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $type {
            /// All counts with their names.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

counts! {
    /// Counts of what the caches and the engine do. Not part of the state: they tell about this process
    /// only.
    CpuStats {
        /// Blocks decoded.
        blocks_decoded,
        /// Instructions in them.
        ops_decoded,
        /// Block lookups that the jump cache did not answer.
        jump_misses,
        /// Blocks dropped because their bytes were written.
        blocks_dropped,
        /// Page walks that gave a translation.
        walks,
        /// Writes to pages that hold page tables which were walked.
        table_writes,
        /// Those of them that hit a walked entry.
        walked_entry_writes,
        /// Single entries dropped.
        tlb_drops,
        /// Times that a half of an address space, or all, was dropped.
        tlb_flushes,
        /// Loads of CR3.
        cr3_loads,
        /// Loads of CR3 that found none of the kept address spaces to be theirs.
        cr3_misses,
        /// Times that the engine was asked to run.
        engine_runs,
        /// Steps that it made.
        engine_steps,
        /// Steps of instructions that it left to the interpreter one by one.
        steps_left_singly,
        /// Steps of blocks that it left to the interpreter as a whole.
        steps_left_in_blocks,
        /// Steps made with an engine there that was not asked: in other modes than 64-bit mode, and where
        /// something is pending.
        steps_unasked,
    }
}

/// An x86-64 CPU.
pub struct Cpu {
    /// The general registers, then [`Cpu::GPR_ZERO`] and [`Cpu::GPR_BLOCK_RIP`].
    pub(crate) gpr: [u64; 32],
    pub(crate) rip: u64,
    /// The arithmetic flags.
    pub flags: Flags,
    /// RFLAGS but for the arithmetic flags.
    pub(crate) rflags: u64,
    /// Index bits into the TLB for the current address space and privilege.
    pub(crate) tlb_base: usize,
    pub(crate) tlb: Tlb,
    /// What is added for an operand's segment: indexed by [`Op::seg`].
    pub(crate) seg_base: [u64; 8],
    /// Mask of the stack pointer's width.
    pub(crate) stack_mask: u64,
    pub(crate) stack_base: u64,
    /// Stack accesses need checks of SS's limit.
    pub(crate) stack_checked: bool,
    /// Something is to be looked at before the next instruction: leave the block.
    pub(crate) attention: bool,
    pub(crate) cpl: u8,
    /// Steps retired when the running block (or REP iteration) began.
    pub(crate) block_icount: u64,
    /// Index in its block of the running instruction.
    pub(crate) index: u64,
    /// Where `run` has to stop.
    pub(crate) until: u64,
    /// Where a REP instruction has to stop.
    pub(crate) rep_until: u64,
    /// RFLAGS.TF was set when the running instruction began.
    pub(crate) is_stepping: bool,
    /// What of the state decides how bytes decode: see `decode::ModeKey`.
    pub(crate) mode_key: u32,
    /// Base that makes RIP a linear address.
    pub(crate) fetch_base: u64,
    /// Mask of RIP's width.
    pub(crate) rip_mask: u64,
    /// Whose rights a data access has.
    pub(crate) view: View,
    pub(crate) seg: [Segment; 6],
    pub(crate) sys: SystemState,
    /// x87 and MMX state.
    pub x87: X87State,
    /// SSE state.
    pub sse: SseState,
    /// Details of the exception behind [`Fault::EXCEPTION`].
    pub(crate) exception: Exception,
    /// What CPU this is. Never changes.
    pub(crate) model: CpuModel,
    pub(crate) code: CodeCache,
    pub(crate) stats: CpuStats,
    /// Kept when somebody asks.
    pub(crate) profile: Option<Box<Profile>>,
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

impl Cpu {
    /// Pseudo register that is always 0.
    pub const GPR_ZERO: u8 = 16;
    /// Pseudo register that holds the address of the running block.
    pub const GPR_BLOCK_RIP: u8 = 17;

    /// A CPU of the base model after power-on.
    #[must_use]
    pub fn new() -> Cpu {
        Cpu::of_model(CpuModel::V2)
    }

    /// A CPU after power-on.
    #[must_use]
    pub fn of_model(model: CpuModel) -> Cpu {
        let state = CpuState::reset();
        let mut cpu = Cpu {
            gpr: [0; 32],
            rip: 0,
            flags: Flags::from_rflags(0),
            rflags: 0,
            tlb_base: 0,
            tlb: Tlb::new(),
            seg_base: [0; 8],
            stack_mask: 0,
            stack_base: 0,
            stack_checked: true,
            attention: false,
            cpl: 0,
            block_icount: 0,
            index: 0,
            until: 0,
            rep_until: 0,
            is_stepping: false,
            mode_key: 0,
            fetch_base: 0,
            rip_mask: 0,
            view: View::Supervisor,
            seg: [Segment::default(); 6],
            sys: state.sys.clone(),
            x87: X87State::reset(),
            sse: SseState::reset(),
            exception: Exception { vector: 0, error_code: 0, address: 0 },
            model,
            code: CodeCache::new(),
            stats: CpuStats::default(),
            profile: None,
        };
        cpu.set_state(&state);
        cpu
    }

    /// The architectural state.
    #[must_use]
    pub fn save(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        CpuState {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            seg: self.seg,
            sys: self.sys.clone(),
            x87: self.x87.clone(),
            sse: self.sse.clone(),
            icount: self.icount(),
        }
    }

    /// Replaces the architectural state and forgets every cache.
    ///
    /// # Errors
    /// [`RestoreError::Impossible`] if no CPU can be in that state; then nothing has changed.
    pub fn restore(&mut self, state: &CpuState) -> Result<(), RestoreError> {
        state.check(self.model)?;
        self.set_state(state);
        Ok(())
    }

    fn set_state(&mut self, state: &CpuState) {
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.seg = state.seg;
        self.sys = state.sys.clone();
        self.x87 = state.x87.clone();
        self.sse = state.sse.clone();
        self.block_icount = state.icount.0;
        self.set_rflags(state.rflags);
        self.cpl = self.cpl_of_segments();
        self.tlb.forget_banks();
        self.drop_caches();
        self.select_address_space();
        self.update_mode();
    }

    /// Forgets every decoded block and every translation. The guest cannot tell.
    pub fn drop_caches(&mut self) {
        self.code.clear();
        self.tlb.code_generation += 1;
        self.flush_tlb();
    }

    /// Gives up every right to store into RAM unmarked. To be called together with
    /// `PageMarks::take_written`.
    pub fn drop_store_rights(&mut self) {
        self.tlb.drop_write_tags();
    }

    /// Counts of what the caches did.
    #[must_use]
    pub fn stats(&self) -> CpuStats {
        self.stats
    }

    /// Steps since power-on. Between two calls of `run` this is exact.
    #[must_use]
    pub fn icount(&self) -> Icount {
        Icount(self.block_icount)
    }

    /// Steps retired before the running instruction: what every call to the bus is stamped with.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Icount {
        Icount(self.block_icount + self.index)
    }

    /// A general register: 0 is RAX, 4 is RSP, 15 is R15.
    #[inline(always)]
    #[must_use]
    pub fn gpr(&self, number: u8) -> u64 {
        self.gpr[usize::from(number & 15)]
    }

    /// Sets a general register.
    #[inline(always)]
    pub fn set_gpr(&mut self, number: u8, value: u64) {
        self.gpr[usize::from(number & 15)] = value;
    }

    /// Between two instructions: the address of the next one.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// Inside a handler: the address of the instruction that follows `op`.
    #[inline(always)]
    #[must_use]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.gpr[usize::from(Cpu::GPR_BLOCK_RIP)].wrapping_add(u64::from(op.end)) & self.rip_mask
    }

    /// Inside a handler: the address of `op` itself.
    #[must_use]
    pub fn op_rip(&self, op: &Op) -> u64 {
        let start = u64::from(op.end).wrapping_sub(u64::from(op.len));
        self.gpr[usize::from(Cpu::GPR_BLOCK_RIP)].wrapping_add(start) & self.rip_mask
    }

    /// RFLAGS.
    #[inline]
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.rflags | self.flags.to_rflags()
    }

    /// Sets RFLAGS as a whole, whatever the privilege.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        let value = value & Rflags::ALL | Rflags::FIXED;
        let newly_set = value & !self.rflags;
        let changed = self.rflags ^ value;
        self.rflags = value & !Rflags::STATUS;
        self.flags = Flags::from_rflags(value);
        if newly_set & (Rflags::IF | Rflags::TF | Rflags::RF) != 0 {
            self.attention = true;
        }
        if changed & (Rflags::AC | Rflags::VM) != 0 {
            self.update_view();
        }
    }

    /// A segment register.
    #[must_use]
    pub fn segment(&self, index: usize) -> &Segment {
        &self.seg[index]
    }

    /// System registers.
    #[must_use]
    pub fn sys(&self) -> &SystemState {
        &self.sys
    }

    /// The address, bytes and form of the next instruction, for people. It has no effect.
    #[must_use]
    pub fn next_instruction(&self, mem: &GuestMem) -> String {
        let linear = self.fetch_linear();
        let mut bytes = Vec::new();
        while bytes.len() < INSTRUCTION_BYTES_MAX {
            let at = self.wrap(linear.wrapping_add(bytes.len() as u64));
            let mut byte = [0];
            match self.look_up(mem, at).map(|gpa| mem.read(gpa, &mut byte)) {
                Some(Ok(())) => bytes.push(byte[0]),
                _ => break,
            }
        }
        format!("{linear:#018x} CPL {} {}", self.cpl, name_of(&bytes, self.mode_key))
    }

    /// The current privilege level.
    #[inline]
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.cpl
    }

    /// What CPU this is.
    #[must_use]
    pub fn model(&self) -> CpuModel {
        self.model
    }

    /// True if CR4 and XCR0 allow AVX.
    pub(crate) fn has_avx_enabled(&self) -> bool {
        const STATE: u64 = 2 | cpuid::XCR0_YMM;
        self.sys.cr4 & Cr4::OSXSAVE != 0 && self.sys.xcr0 & STATE == STATE
    }

    /// True in 64-bit mode or compatibility mode.
    #[inline]
    #[must_use]
    pub fn is_long_mode(&self) -> bool {
        self.sys.efer & Efer::LMA != 0
    }

    /// True in 64-bit mode.
    #[inline]
    #[must_use]
    pub fn is_64_bit(&self) -> bool {
        self.is_long_mode() && self.seg[Seg::CS].access & Access::L != 0
    }

    /// True in protected mode (and long mode), but not in virtual 8086 mode.
    #[inline]
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.sys.cr0 & Cr0::PE != 0 && self.rflags & Rflags::VM == 0
    }

    /// True in virtual 8086 mode.
    #[inline]
    #[must_use]
    pub fn is_v86(&self) -> bool {
        self.rflags & Rflags::VM != 0
    }

    /// An exception without an error code, or with error code 0.
    #[cold]
    pub fn fault(&mut self, vector: u8) -> Fault {
        self.fault_with(vector, 0)
    }

    /// An exception with an error code.
    #[cold]
    pub fn fault_with(&mut self, vector: u8, error_code: u32) -> Fault {
        self.exception = Exception { vector, error_code, address: 0 };
        Fault::EXCEPTION
    }

    /// #GP(0).
    #[cold]
    pub fn gp(&mut self) -> Fault {
        self.fault(Vector::GP)
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Fault {
        self.fault(Vector::UD)
    }

    /// The privilege level that the segment registers and CR0 mean, for a state that was set.
    fn cpl_of_segments(&self) -> u8 {
        if self.sys.cr0 & Cr0::PE == 0 {
            0
        } else if self.rflags & Rflags::VM != 0 {
            3
        } else {
            self.seg[Seg::SS].access().dpl()
        }
    }

    /// Recomputes whose rights data accesses have and whether the TLB may serve them.
    pub(crate) fn update_view(&mut self) {
        self.view = if self.cpl == 3 {
            View::User
        } else if self.sys.cr4 & Cr4::SMAP != 0 && self.rflags & Rflags::AC != 0 {
            View::SupervisorAc
        } else {
            View::Supervisor
        };
        let checks_alignment =
            self.cpl == 3 && self.sys.cr0 & Cr0::AM != 0 && self.rflags & Rflags::AC != 0;
        let must_look = checks_alignment || self.has_data_breakpoints();
        self.tlb_base = self.tlb.base_of(self.view, must_look);
    }

    fn has_data_breakpoints(&self) -> bool {
        let dr7 = self.sys.dr7;
        (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 1 != 0)
    }

    /// True while DR7 enables a breakpoint on instructions.
    pub(crate) fn has_code_breakpoints(&self) -> bool {
        let dr7 = self.sys.dr7;
        dr7 & !Dr7::FIXED != 0
            && (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && dr7 >> (16 + 4 * n) & 3 == 0)
    }

    /// Recomputes everything that follows from segments, control registers and privilege. Forms
    /// that call this end their block.
    pub(crate) fn update_mode(&mut self) {
        let long = self.is_64_bit();
        let code = self.seg[Seg::CS];
        let stack = self.seg[Seg::SS];
        for (index, seg) in self.seg.iter().enumerate() {
            self.seg_base[index] = seg.base;
        }
        self.seg_base[Seg::NONE] = 0;
        if long {
            self.fetch_base = 0;
            self.rip_mask = u64::MAX;
            self.stack_mask = u64::MAX;
            self.stack_base = 0;
            self.stack_checked = false;
        } else {
            self.fetch_base = code.base;
            self.rip_mask = if code.access & Access::D != 0 { 0xffff_ffff } else { 0xffff };
            self.stack_mask = if stack.access & Access::D != 0 { 0xffff_ffff } else { 0xffff };
            self.stack_base = stack.base;
            self.stack_checked = !is_flat_data(&stack);
        }
        self.mode_key = self.compute_mode_key();
        self.update_view();
    }

    /// True if DS, ES, SS and CS cover all 4 GiB and allow what operands want of them.
    pub(crate) fn is_flat(&self) -> bool {
        let code = &self.seg[Seg::CS];
        code.base == 0
            && code.limit == u32::MAX
            && [Seg::DS, Seg::ES, Seg::SS].iter().all(|index| is_flat_data(&self.seg[*index]))
    }

    /// Marks interrupts as held off for one instruction.
    pub(crate) fn cast_shadow(&mut self, shadow: Shadow) {
        self.sys.shadow = shadow;
        self.attention = true;
    }
}

fn is_flat_data(segment: &Segment) -> bool {
    let access = segment.access();
    segment.base == 0
        && segment.limit == u32::MAX
        && access.has(Access::P)
        && access.is_writable()
        && !access.is_expand_down()
}
