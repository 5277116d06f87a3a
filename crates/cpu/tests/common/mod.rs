//! A CPU with some RAM and a board that records what it is asked. Beside it runs a twin with an engine,
//! which has to come to the same.
#![allow(dead_code)]

mod copycat;

use std::collections::BTreeMap;

use base::{Gpa, Icount};
use cpu::{Bus, Cpu, CpuState, CpuStop, Seg, Segment, TableRegister};
use mem::GuestMem;
use x86::{Access, CpuModel, Cr0, Cr4, Efer, Rflags, SystemType};

pub(crate) use copycat::Copycat;

/// Where code of tests starts.
pub(crate) const CODE: u64 = 0x10_0000;
/// Where data of tests starts: a page of its own.
pub(crate) const DATA: u64 = 0x20_0000;
/// The top of the stack at CPL 0 (and of the stack for interrupts from CPL 3).
pub(crate) const STACK: u64 = 0x8_0000;
/// The top of the stack at CPL 3.
pub(crate) const USER_STACK: u64 = 0x9_0000;
/// The handler of vector `v` is at `HANDLERS + 32 * v`.
pub(crate) const HANDLERS: u64 = 0x5_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
/// Page tables for the first 4 MiB: entry `n` maps page `n`.
pub(crate) const PT: u64 = 0x1_3000;
pub(crate) const RAM_BYTES: u64 = 4 << 20;

/// Selectors of the GDT.
pub(crate) const KERNEL_CODE: u16 = 0x08;
pub(crate) const KERNEL_DATA: u16 = 0x10;
pub(crate) const USER_CODE: u16 = 0x1b;
pub(crate) const USER_DATA: u16 = 0x23;
pub(crate) const KERNEL_CODE32: u16 = 0x28;
pub(crate) const TSS_SELECTOR: u16 = 0x30;
pub(crate) const USER_CODE32: u16 = 0x43;

/// A board with nothing on it but what a test sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TestBus {
    pub(crate) port_writes: Vec<(u64, u16, u32)>,
    pub(crate) mmio_writes: Vec<(u64, u64, u8, u64)>,
    pub(crate) mmio: BTreeMap<u64, u64>,
    /// A vector that waits, if the line is high.
    pub(crate) interrupt: Option<u8>,
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) nmi: bool,
    pub(crate) stop: bool,
    /// An OUT to this port writes bytes to RAM, as a device would.
    pub(crate) dma: Option<(u16, u64, Vec<u8>)>,
}

impl Bus for TestBus {
    fn mmio_read(&mut self, _: &mut GuestMem, _: Icount, gpa: Gpa, _: u8) -> u64 {
        self.mmio.get(&gpa.0).copied().unwrap_or(u64::MAX)
    }

    fn mmio_write(&mut self, _: &mut GuestMem, now: Icount, gpa: Gpa, len: u8, value: u64) {
        self.mmio_writes.push((now.0, gpa.0, len, value));
    }

    fn port_read(&mut self, _: &mut GuestMem, now: Icount, port: u16, _: u8) -> u32 {
        now.0 as u32 ^ u32::from(port)
    }

    fn port_write(&mut self, mem: &mut GuestMem, now: Icount, port: u16, _: u8, value: u32) {
        self.port_writes.push((now.0, port, value));
        if let Some((_, at, bytes)) = self.dma.take_if(|(dma_port, ..)| *dma_port == port) {
            mem.write(Gpa(at), &bytes).unwrap();
        }
    }

    fn msr_read(&mut self, _: Icount, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: Icount, _: u32, _: u64) -> Option<()> {
        None
    }

    fn guest_ns(&mut self, now: Icount) -> u64 {
        now.0
    }

    fn set_tsc_offset(&mut self, _: Icount, _: u64) {}

    fn task_priority(&mut self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, _: Icount, _: u8) {}

    fn interrupt_pending(&self) -> bool {
        self.interrupt.is_some()
    }

    fn acknowledge_interrupt(&mut self, now: Icount) -> u8 {
        self.acknowledged.push(now.0);
        self.interrupt.take().unwrap()
    }

    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    fn stop_requested(&self) -> bool {
        self.stop
    }
}

/// A CPU, its RAM and its board.
pub(crate) struct Vm {
    pub(crate) cpu: Cpu,
    pub(crate) mem: GuestMem,
    pub(crate) bus: TestBus,
    /// Made by the first run.
    twin: Option<Twin>,
}

/// The same machine with an engine.
struct Twin {
    cpu: Cpu,
    mem: GuestMem,
    engine: Copycat,
}

impl Twin {
    fn new(model: CpuModel) -> Twin {
        let mem = GuestMem::new(RAM_BYTES).unwrap();
        Twin { cpu: Cpu::of_model(model), mem, engine: Copycat::new(1) }
    }

    /// Takes over what a test has changed since the last run, as the test did it.
    fn follow(&mut self, cpu: &Cpu, mem: &GuestMem) {
        let state = cpu.save();
        if self.cpu.save() != state {
            self.cpu.restore(&state).unwrap();
        }
        for page in 0..mem.page_count() {
            if self.mem.page(page) != mem.page(page) {
                self.mem.set_page(page, mem.page(page));
            }
        }
    }

    fn check(&self, cpu: &Cpu, mem: &GuestMem) {
        assert_eq!(self.cpu.save(), cpu.save(), "the engine's state against the interpreter's");
        let differs = |page: &u64| self.mem.page(*page) != mem.page(*page);
        assert_eq!((0..mem.page_count()).find(differs), None, "the engine left another page so");
    }
}

pub(crate) fn segment(selector: u16, kind: u16, dpl: u16) -> Segment {
    let access =
        Access::P | Access::S | Access::ACCESSED | Access::WRITABLE | Access::G | kind | dpl << 5;
    Segment { selector, access, limit: u32::MAX, base: 0 }
}

fn descriptor(kind: u16, dpl: u16) -> u64 {
    let access = u64::from(segment(0, kind, dpl).access);
    0xffff
        | 0xf << 48
        | access << 40 & 0x00f0_ff00_0000_0000
        | (access & 0xff) << 40
        | (access >> 12) << 52
}

impl Vm {
    /// 64-bit mode at CPL 0 with 4 KiB identity pages that every level may use. Every vector's
    /// handler halts. Execution starts at [`CODE`].
    pub(crate) fn long(code: &[u8]) -> Vm {
        let mut mem = GuestMem::new(RAM_BYTES).unwrap();
        let all = 7u64;
        mem.write_obj(Gpa(PML4), PDPT | all).unwrap();
        mem.write_obj(Gpa(PDPT), PD | all).unwrap();
        for table in 0..2 {
            mem.write_obj(Gpa(PD + 8 * table), (PT + 0x1000 * table) | all).unwrap();
        }
        for page in 0..RAM_BYTES >> 12 {
            mem.write_obj(Gpa(PT + 8 * page), page << 12 | all).unwrap();
        }
        let gdt = [
            0,
            descriptor(Access::CODE | Access::L, 0),
            descriptor(Access::D, 0),
            descriptor(Access::CODE | Access::L, 3),
            descriptor(Access::D, 3),
            descriptor(Access::CODE | Access::D, 0),
            // A 64-bit TSS, busy.
            0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40,
            0,
            descriptor(Access::CODE | Access::D, 3),
        ];
        for (n, entry) in gdt.into_iter().enumerate() {
            mem.write_obj(Gpa(GDT + 8 * n as u64), entry).unwrap();
        }
        mem.write_obj(Gpa(TSS + 4), STACK).unwrap();
        // The I/O permission map starts beyond the limit: no port is allowed.
        mem.write_obj(Gpa(TSS + 0x66), 0x68u16).unwrap();
        for vector in 0..256u64 {
            let handler = HANDLERS + 32 * vector;
            let low =
                handler & 0xffff | u64::from(KERNEL_CODE) << 16 | 0xee << 40 | handler >> 16 << 48;
            mem.write_obj(Gpa(IDT + 16 * vector), low).unwrap();
            mem.write_obj(Gpa(IDT + 16 * vector + 8), 0u64).unwrap();
            mem.write(Gpa(handler), &[0xf4]).unwrap();
        }
        mem.write(Gpa(CODE), code).unwrap();
        let mut state = CpuState::reset();
        state.rip = CODE;
        state.gpr = [0; 16];
        state.gpr[4] = STACK;
        state.rflags = Rflags::FIXED;
        state.seg = [segment(KERNEL_DATA, Access::D, 0); 6];
        state.seg[Seg::CS] = segment(KERNEL_CODE, Access::CODE | Access::L, 0);
        state.sys.cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
        state.sys.cr3 = PML4;
        state.sys.cr4 = Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        state.sys.efer = Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE;
        state.sys.gdtr = TableRegister { base: GDT, limit: 8 * 9 - 1 };
        state.sys.idtr = TableRegister { base: IDT, limit: 0xfff };
        state.sys.tr = Segment {
            selector: TSS_SELECTOR,
            access: Access::P | SystemType::TSS32_BUSY,
            limit: 0x67,
            base: TSS,
        };
        let mut vm = Vm { cpu: Cpu::new(), mem, bus: TestBus::default(), twin: None };
        vm.cpu.restore(&state).unwrap();
        vm
    }

    /// The same at CPL 3.
    pub(crate) fn user(code: &[u8]) -> Vm {
        let mut vm = Vm::long(code);
        vm.change(|state| {
            state.seg = [segment(USER_DATA, Access::D, 3); 6];
            state.seg[Seg::CS] = segment(USER_CODE, Access::CODE | Access::L, 3);
            state.gpr[4] = USER_STACK;
            state.rflags |= Rflags::IF;
        });
        vm
    }

    /// Real mode, all segments at 0, execution at 0x7c00.
    pub(crate) fn real(code: &[u8]) -> Vm {
        let mut mem = GuestMem::new(RAM_BYTES).unwrap();
        mem.write(Gpa(0x7c00), code).unwrap();
        let mut state = CpuState::reset();
        state.gpr = [0; 16];
        state.gpr[4] = 0x7000;
        state.rip = 0x7c00;
        state.seg[Seg::CS] = Segment { selector: 0, base: 0, ..state.seg[Seg::CS] };
        let mut vm = Vm { cpu: Cpu::new(), mem, bus: TestBus::default(), twin: None };
        vm.cpu.restore(&state).unwrap();
        vm
    }

    /// Flat 32-bit protected mode without paging, CPL 0.
    pub(crate) fn protected(code: &[u8]) -> Vm {
        let mut vm = Vm::long(code);
        vm.change(|state| {
            state.sys.cr0 = Cr0::PE | Cr0::ET | Cr0::NE;
            state.sys.efer = 0;
            state.sys.cr4 = Cr4::OSFXSR;
            state.seg[Seg::CS] = segment(KERNEL_CODE32, Access::CODE | Access::D, 0);
        });
        vm
    }

    /// The same with a CPU of another model.
    pub(crate) fn with_model(mut self, model: CpuModel) -> Vm {
        let state = self.cpu.save();
        self.cpu = Cpu::of_model(model);
        self.cpu.restore(&state).unwrap();
        self
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut CpuState)) {
        let mut state = self.cpu.save();
        change(&mut state);
        self.cpu.restore(&state).unwrap();
    }

    /// Runs on the interpreter and on the twin, and compares.
    pub(crate) fn run(&mut self, steps: u64) -> CpuStop {
        let until = self.cpu.icount().plus(steps);
        let twin = self.twin.get_or_insert_with(|| Twin::new(self.cpu.model()));
        twin.follow(&self.cpu, &self.mem);
        let mut bus = self.bus.clone();
        let twins_stop = twin.cpu.run_with(&mut twin.mem, &mut bus, until, &mut twin.engine);
        let stop = self.cpu.run(&mut self.mem, &mut self.bus, until);
        twin.check(&self.cpu, &self.mem);
        assert_eq!((twins_stop, &bus), (stop, &self.bus), "the engine against the interpreter");
        stop
    }

    /// Runs until HLT; panics if that takes more than `steps_max` steps.
    pub(crate) fn run_to_halt(&mut self, steps_max: u64) {
        let stop = self.run(steps_max);
        assert_eq!(stop, CpuStop::Halted, "at rip {:#x}", self.cpu.rip());
    }

    /// The vector whose handler the CPU has halted in.
    pub(crate) fn halted_in(&self) -> u8 {
        let at = self.cpu.rip() - 1 - HANDLERS;
        assert!(
            at.is_multiple_of(32) && at < 32 * 256,
            "rip {:#x} is in no handler",
            self.cpu.rip()
        );
        (at / 32) as u8
    }

    /// Word `n` above the stack pointer.
    pub(crate) fn stack_word(&self, n: u64) -> u64 {
        self.mem.read_obj(Gpa(self.cpu.gpr(4) + 8 * n)).unwrap()
    }

    pub(crate) fn read(&self, gpa: u64) -> u64 {
        self.mem.read_obj(Gpa(gpa)).unwrap()
    }

    pub(crate) fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.mem.write(Gpa(gpa), bytes).unwrap();
    }

    /// The page-table entry of a page below 4 MiB.
    pub(crate) fn pte(&self, linear: u64) -> u64 {
        self.read(pte_at(linear))
    }

    pub(crate) fn set_pte(&mut self, linear: u64, value: u64) {
        self.mem.write_obj(Gpa(pte_at(linear)), value).unwrap();
    }
}

/// Where the page-table entry of a page below 4 MiB is.
pub(crate) fn pte_at(linear: u64) -> u64 {
    PT + (linear >> 12) * 8
}
