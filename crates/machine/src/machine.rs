//! CPU, RAM and board together: the run loop, events, outputs, reset and digests.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use base::{Digest, Digester, Icount};
use cpu::{Bus, Cpu, CpuState, CpuStop, Engine, Profile, Seg, Segment, TableRegister};
use mem::{GuestMem, MemError};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use x86::{Access, Cr0, Cr4, Efer, Rflags, SystemType};

use crate::board::{Board, Power};
use crate::boot::{self, BootError, BootPayload, EntryPoint, layout, selector};
use crate::config::{ConfigError, MachineConfig};
use crate::event::{Control, Event, Output};
use crate::snapshot::SnapshotError;

/// Why [`Machine::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The icount was reached.
    Reached,
    /// The CPU is halted and nothing inside the machine will wake it before the next event: an input,
    /// or an anchor that reaches [`Machine::next_deadline_ns`].
    Halted,
    /// Outputs wait for [`Machine::poll_output`].
    OutputsReady,
    /// The machine was reset and stands at its kernel's entry. A reset costs what many steps do, so
    /// that a guest which resets for ever gives the caller a turn each time.
    Rebooted,
    /// The machine is off for good.
    Off(Off),
}

/// How a machine went off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Off {
    /// The guest or the operator turned it off.
    PoweredOff,
    /// The guest reset itself, or the operator did, and the machine does not reboot.
    Reset,
    /// The guest wrote to the debug-exit port; a process exits with this status.
    DebugExit(u8),
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration.
    #[error("the machine cannot be configured so")]
    Config(#[from] ConfigError),
    /// The RAM.
    #[error("the machine gets no memory")]
    Memory(#[from] MemError),
    /// The kernel.
    #[error("the machine cannot boot")]
    Boot(#[from] BootError),
    /// The snapshot.
    #[error("the machine cannot be restored")]
    Snapshot(#[from] SnapshotError),
}

/// A whole machine.
pub struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) mem: GuestMem,
    pub(crate) board: Board,
    pub(crate) config: MachineConfig,
    /// Shared: a snapshot for a recording and the machine hold the same bytes.
    pub(crate) payload: Arc<BootPayload>,
    /// How often the machine was booted, 1 after power-on.
    pub(crate) boot_count: u64,
    /// True at power-on, before anything happened: then the payload tells all of RAM.
    pub(crate) pristine: bool,
    /// What runs guest code beside the interpreter. Not part of the state.
    pub(crate) engine: Option<Box<dyn Engine + Send>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine at icount {}", self.icount())
    }
}

impl Machine {
    /// A machine at power-on: the kernel is loaded and the CPU stands at its entry.
    ///
    /// # Errors
    /// [`MachineError`] if the configuration, the memory or the kernel is at fault.
    pub fn new(config: MachineConfig, payload: BootPayload) -> Result<Machine, MachineError> {
        config.check()?;
        let mut machine = Machine {
            cpu: Cpu::of_model(config.cpu),
            mem: GuestMem::new(config.ram_bytes)?,
            board: Board::new(&config),
            config,
            payload: Arc::new(payload),
            boot_count: 0,
            pristine: true,
            engine: None,
        };
        machine.boot()?;
        Ok(machine)
    }

    /// What the machine is made of.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Steps since power-on.
    #[must_use]
    pub fn icount(&self) -> Icount {
        self.cpu.icount()
    }

    /// Guest time now, in nanoseconds since power-on.
    #[must_use]
    pub fn guest_ns(&self) -> u64 {
        self.board.ns_at(self.cpu.icount())
    }

    /// Guest time at `icount` if no anchor comes before it; `icount` is not in the past.
    #[must_use]
    pub fn guest_ns_at(&self, icount: Icount) -> u64 {
        self.board.ns_at(icount)
    }

    /// Guest time of the next timer, in nanoseconds since power-on.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.board.next_deadline_ns()
    }

    /// True if the CPU waits in HLT.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.cpu.sys().halted
    }

    /// How the machine went off, if it did.
    #[must_use]
    pub fn off(&self) -> Option<Off> {
        self.board.off()
    }

    /// How often the guest was booted, 1 before its first reset.
    #[must_use]
    pub fn boot_count(&self) -> u64 {
        self.boot_count
    }

    /// How many more bytes a console takes now.
    #[must_use]
    pub fn console_room(&self, console: crate::event::Console) -> usize {
        self.board.console_room(console)
    }

    /// Runs guest code with an engine from now on, or with the interpreter alone. The guest cannot tell: an
    /// engine is in no snapshot and no digest, and each side of a pair has its own.
    pub fn set_engine(&mut self, engine: Option<Box<dyn Engine + Send>>) {
        // The caches hold marks for the engine of before.
        self.cpu.drop_caches();
        self.engine = engine;
    }

    /// True if there is an engine beside the interpreter.
    #[must_use]
    pub fn has_engine(&self) -> bool {
        self.engine.is_some()
    }

    /// Counts of what CPU and engine did in this process, each with its name.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let of_engine = self.engine.iter().flat_map(|engine| engine.stats());
        self.cpu.stats().list().chain(of_engine).collect()
    }

    /// Keeps a profile from now on, or none: what the thread is at, and what the engine leaves. The guest cannot
    /// tell.
    pub fn set_profile(&mut self, profile: Option<Profile>) {
        self.cpu.set_profile(profile);
    }

    /// The profile, if one is kept.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        self.cpu.profile()
    }

    /// The CPU's state, to look at.
    #[must_use]
    pub fn cpu_state(&self) -> CpuState {
        self.cpu.save()
    }

    /// RAM, to look at.
    #[must_use]
    pub fn memory(&self) -> &GuestMem {
        &self.mem
    }

    /// What differs between this machine and one that went the same way since its last rolling digest, for
    /// people; empty if nothing does.
    #[must_use]
    pub fn differences(&self, other: &Machine) -> Vec<String> {
        const PAGES_TOLD_MAX: usize = 8;
        let mut found = self.cpu.save().differences(&other.cpu.save());
        if self.board.state() != other.board.state() {
            found.push("devices or clock".to_owned());
        }
        let written = [self.mem.marks().written(), other.mem.marks().written()];
        let written: BTreeSet<u64> = written.into_iter().flatten().copied().collect();
        let in_page = |page: u64| {
            let (ours, theirs) = (self.mem.page(page), other.mem.page(page));
            if ours == theirs {
                return None; // far faster than the search
            }
            let place = ours.iter().zip(theirs).position(|(a, b)| a != b);
            place.map(|at| (page << base::PAGE_SHIFT | at as u64, ours[at], theirs[at]))
        };
        let bytes = written.iter().filter_map(|page| in_page(*page)).take(PAGES_TOLD_MAX);
        found.extend(bytes.map(|(at, a, b)| format!("RAM at {at:#x}: {a:#04x}, other {b:#04x}")));
        let is_marked = |machine: &Machine, page| machine.mem.marks().is_written(page);
        let marks =
            written.iter().filter(|page| is_marked(self, **page) != is_marked(other, **page));
        found.extend(
            marks
                .take(PAGES_TOLD_MAX)
                .map(|page| format!("one side has written RAM page {page:#x}")),
        );
        found
    }

    /// The address, bytes and form of the next instruction, for people.
    #[must_use]
    pub fn next_instruction(&self) -> String {
        self.cpu.next_instruction(&self.mem)
    }

    /// Applies an input at the current position. Nothing is refused: an input that makes no sense
    /// to the guest's present state is dropped the same way on every side.
    pub fn inject(&mut self, event: Event) {
        if self.board.off().is_some() {
            return;
        }
        self.pristine = false;
        let now = self.cpu.icount();
        match event {
            Event::Anchor { guest_ns, ns_per_step_q32 } => {
                self.board.set_anchor(&mut self.mem, now, guest_ns, ns_per_step_q32);
            }
            Event::Control(Control::Reset) => self.reset(),
            other => self.board.handle_event(&mut self.mem, other),
        }
    }

    /// Runs until the icount is reached or something needs the caller, whichever comes first.
    /// However the way to an icount is cut into calls, the machine passes through the same states.
    pub fn run(&mut self, until: Icount) -> Stop {
        let boot_count = self.boot_count;
        loop {
            let now = self.cpu.icount();
            self.pristine = false;
            self.board.handle_time(&mut self.mem, now);
            match self.board.take_power() {
                Some(Power::Reset) => self.reset(),
                Some(Power::Off(off)) => self.board.set_off(&mut self.mem, off),
                None if self.cpu.sys().is_shut_down => self.reset(),
                None => {}
            }
            let waits = self.waits_in_halt();
            if waits && self.board.handle_halt(&mut self.mem, now) {
                continue; // guest time has moved, or a device was at work
            }
            if self.board.has_output() {
                return Stop::OutputsReady;
            }
            if let Some(off) = self.board.off() {
                return Stop::Off(off);
            }
            if now >= until {
                return Stop::Reached;
            }
            if self.boot_count != boot_count {
                return Stop::Rebooted;
            }
            if waits {
                return Stop::Halted;
            }
            let slice_end = self.board.begin_slice(until);
            // Why it stopped shows in the state, which is looked at from the top, so that it makes
            // no difference whether a slice ends at the same place.
            let _: CpuStop = match &mut self.engine {
                Some(engine) => {
                    self.cpu.run_with(&mut self.mem, &mut self.board, slice_end, &mut **engine)
                }
                None => self.cpu.run(&mut self.mem, &mut self.board, slice_end),
            };
        }
    }

    /// True if the CPU is halted and no interrupt wakes it.
    fn waits_in_halt(&self) -> bool {
        let sys = self.cpu.sys();
        let takes_nmi = !sys.nmi_blocked && (sys.nmi_pending || self.board.has_nmi());
        let takes_interrupt = self.cpu.rflags() & Rflags::IF != 0 && self.board.interrupt_pending();
        sys.halted && sys.pending_debug == 0 && !takes_nmi && !takes_interrupt
    }

    /// The next output, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.board.poll_output()
    }

    /// The requests that were handed out and have no completion yet, in order: what a side that goes
    /// live asks its own disks again.
    #[must_use]
    pub fn unfinished_requests(&self) -> Vec<Output> {
        self.board.unfinished_requests()
    }

    /// The digest of configuration, CPU, devices, clock and all of RAM.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut digester = self.digest_but_ram();
        for page in self.mem.marks().touched() {
            self.digest_page(&mut digester, page);
        }
        digester.finish()
    }

    /// The digest of CPU, devices, clock and the RAM pages written since the last call (or since
    /// power-on or restore).
    pub fn rolling_digest(&mut self) -> Digest {
        let mut digester = self.digest_but_ram();
        for page in self.mem.marks_mut().take_written() {
            digester.update_u64(page);
            digester.update(self.mem.page(page));
        }
        self.cpu.drop_store_rights();
        digester.finish()
    }

    /// Forgets which pages were written. Both sides of a log do it at the start state.
    pub fn begin_rolling_digest(&mut self) {
        self.mem.marks_mut().take_written();
        self.cpu.drop_store_rights();
    }

    fn digest_but_ram(&self) -> Digester {
        let mut digester = Digester::default();
        let (config, state) = (&self.config, self.state_but_ram());
        for piece in [postcard::to_stdvec(config), postcard::to_stdvec(&state)] {
            digester.update(&piece.expect("plain state always serializes"));
        }
        digester
    }

    /// A page of zeros counts as one that was never touched.
    fn digest_page(&self, digester: &mut Digester, page: u64) {
        if !self.mem.is_zero_page(page) {
            digester.update_u64(page);
            digester.update(self.mem.page(page));
        }
    }

    /// Power-cycles CPU, RAM and devices, or turns the machine off if it does not reboot. Steps and
    /// guest time go on; the disks' requests in flight stay in flight.
    fn reset(&mut self) {
        if !self.config.reboots {
            return self.board.set_off(&mut self.mem, Off::Reset);
        }
        self.board.reset(&mut self.mem, &self.config);
        let touched: Vec<u64> = self.mem.marks().touched().collect();
        for page in touched {
            if !self.mem.is_zero_page(page) {
                self.mem.set_page(page, &[0; base::PAGE_SIZE as usize]);
            }
        }
        self.boot().expect("what booted once boots again: payload and RAM size are the same");
    }

    fn boot(&mut self) -> Result<(), BootError> {
        let seed = boot_seed(self.config.seed_key, self.boot_count);
        let tables = self.board.tables();
        let entry = boot::load(&mut self.mem, &self.payload, &tables, &seed)?;
        self.boot_count += 1;
        let state = entry_state(entry, self.cpu.icount());
        self.cpu.restore(&state).expect("the loader's entry state is one a CPU can be in");
        Ok(())
    }
}

/// The seed of boot number `index`: the next 32 bytes of the key's ChaCha stream.
fn boot_seed(key: [u8; 32], index: u64) -> [u8; 32] {
    let mut stream = ChaCha8Rng::from_seed(key);
    // A word is 4 bytes.
    stream.set_word_pos(u128::from(index) * 8);
    let mut seed = [0; 32];
    stream.fill_bytes(&mut seed);
    seed
}

/// The CPU as a boot loader leaves it.
fn entry_state(entry: EntryPoint, icount: Icount) -> CpuState {
    let mut state = CpuState::reset();
    state.icount = icount;
    state.rflags = Rflags::FIXED;
    let data = Segment {
        selector: selector::DATA,
        access: Access::P | Access::S | Access::WRITABLE | Access::ACCESSED | Access::D | Access::G,
        limit: u32::MAX,
        base: 0,
    };
    state.seg = [data; 6];
    state.sys.gdtr = TableRegister { base: layout::GDT, limit: (boot::GDT.len() * 8 - 1) as u16 };
    state.sys.idtr = TableRegister { base: 0, limit: 0 };
    state.sys.tr = Segment {
        selector: selector::TSS,
        access: Access::P | SystemType::TSS32_BUSY,
        limit: 0x67,
        base: 0,
    };
    let code = |selector, mode| Segment {
        selector,
        access: Access::P
            | Access::S
            | Access::CODE
            | Access::WRITABLE
            | Access::ACCESSED
            | Access::G
            | mode,
        ..data
    };
    match entry {
        EntryPoint::Long { rip, rsi } => {
            state.seg[Seg::CS] = code(selector::CODE64, Access::L);
            state.sys.cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
            state.sys.cr3 = layout::PAGE_TABLES;
            state.sys.cr4 = Cr4::PAE;
            state.sys.efer = Efer::LME | Efer::LMA;
            state.rip = rip;
            state.gpr[4] = layout::STACK_TOP;
            state.gpr[6] = rsi;
        }
        EntryPoint::Protected { eip, eax, ebx } => {
            state.seg[Seg::CS] = code(selector::CODE32, Access::D);
            state.sys.cr0 = Cr0::PE | Cr0::ET;
            state.rip = u64::from(eip);
            state.gpr[0] = u64::from(eax);
            state.gpr[3] = u64::from(ebx);
            state.gpr[4] = layout::STACK_TOP;
        }
    }
    state
}
