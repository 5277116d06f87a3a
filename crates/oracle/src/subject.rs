//! The CPU as a subject, with any engine: a small machine without devices, whose "kernel" is an IDT that
//! halts, and in which the regions lie at the same linear addresses as on the host.

use base::Gpa;
use cpu::{Cpu, CpuState, F80, NoBus, Seg, Segment, TableRegister};
use engines::BoxedEngine;
use mem::GuestMem;
use x86::{Access, Cr0, Cr4, Descriptor, Dr6, Dr7, Efer, SystemType};

use crate::MODEL;
use crate::state::{
    CODE, Case, DATA, DATA_READ_ONLY, Event, Fx, GDT, HIGH, HIGH_READ_ONLY, LDT, Memory, Mode,
    Outcome, REGION_BYTES, REGIONS, Selectors, State, Subject, descriptor_of,
};
use crate::template::Template;

const RAM_BYTES: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// Where everything lies in guest-physical memory. The low regions are identity-mapped.
const TABLES: u64 = 0x10_0000;
const GDT_AT: u64 = 0x20_0000;
/// The LDT shares the GDT's page.
const LDT_AT: u64 = GDT_AT + 0x800;
const IDT_AT: u64 = 0x20_1000;
const TSS_AT: u64 = 0x20_2000;
const HANDLERS: u64 = 0x20_3000;
const STACK: u64 = 0x20_4000;
const HIGH_PHYSICAL: u64 = 0xa0_0000;

/// Linear address of guest-physical 0 for the "kernel": a program cannot reach it.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const STACK_TOP: u64 = KERNEL + STACK + PAGE;
const KERNEL_CS: u16 = 0x10;
const GDT_LIMIT: u16 = 127;
const TSS_LIMIT: u32 = 103;

/// Steps after which a case counts as endless. Programs take some ten thousand, the longest half a million.
const STEPS_MAX: u64 = 4_000_000;
/// Not a vector: the case did not end.
pub const VECTOR_ENDLESS: u8 = 0xfe;

/// The interpreter, alone or behind an engine.
pub struct Interpreter {
    cpu: Cpu,
    engine: Option<BoxedEngine>,
    mem: GuestMem,
    bus: NoBus,
    template: Template,
    /// State that every case starts from, apart from what the program sees.
    start: CpuState,
    /// What the last case left.
    memory: Box<Memory>,
    /// How many steps it took.
    steps: u64,
}

impl Interpreter {
    /// A machine whose memory holds the template.
    ///
    /// # Panics
    /// If the host has no memory for it.
    #[must_use]
    pub fn new(template: &Template) -> Interpreter {
        Interpreter::with_engine(template, None)
    }

    /// The same with an engine that is asked first.
    ///
    /// # Panics
    /// If the host has no memory for it.
    #[must_use]
    pub fn with_engine(template: &Template, engine: Option<BoxedEngine>) -> Interpreter {
        let mut mem = GuestMem::new(RAM_BYTES).expect("16 MiB of guest RAM");
        build_tables(&mut mem);
        for (region, at) in REGIONS.into_iter().enumerate() {
            put(&mut mem, physical(at), &template.memory[region]);
        }
        put(&mut mem, physical(DATA_READ_ONLY), &template.read_only[0]);
        put(&mut mem, physical(HIGH_READ_ONLY), &template.read_only[1]);
        Interpreter {
            cpu: Cpu::of_model(*MODEL),
            engine,
            mem,
            bus: NoBus,
            template: template.clone(),
            start: start_state(),
            memory: template.memory.clone(),
            steps: 0,
        }
    }

    /// Sets back what the last case wrote.
    fn reset(&mut self) {
        for (region, at) in REGIONS.into_iter().enumerate() {
            let (left, wanted) = (&self.memory[region], &self.template.memory[region]);
            for page in (0..REGION_BYTES).step_by(PAGE as usize) {
                let bytes = page..page + PAGE as usize;
                if left[bytes.clone()] != wanted[bytes.clone()] {
                    put(&mut self.mem, physical(at) + page as u64, &wanted[bytes]);
                }
            }
        }
    }

    /// Steps of all cases that the engine made itself.
    #[must_use]
    pub fn engine_steps(&self) -> u64 {
        self.cpu.stats().engine_steps
    }

    fn read_memory(&mut self) {
        for (region, at) in REGIONS.into_iter().enumerate() {
            self.mem
                .read(Gpa(physical(at)), &mut self.memory[region])
                .expect("the regions lie in RAM");
        }
    }

    /// The program's state and the event, from the frame on the "kernel's" stack.
    fn outcome(&self, case: &Case) -> Outcome {
        let cpu = self.cpu.save();
        let vector = cpu.rip.wrapping_sub(KERNEL + HANDLERS + 1);
        if !cpu.sys.halted || vector > 255 {
            let state = state_of(&cpu, case.mode);
            return Outcome { state, event: Event { vector: VECTOR_ENDLESS, error: 0, cr2: 0 } };
        }
        let vector = vector as u8;
        let words = (STACK_TOP - cpu.gpr[4]) / 8;
        let word = |n: u64| -> u64 {
            let at = Gpa(cpu.gpr[4].wrapping_sub(KERNEL) + 8 * n);
            self.mem.read_obj(at).expect("the stack lies in RAM")
        };
        let (error, frame) = if words == 6 { (word(0) as u32, 1) } else { (0, 0) };
        let mut state = state_of(&cpu, case.mode);
        state.rip = word(frame);
        state.sel.cs = word(frame + 1) as u16;
        state.rflags = word(frame + 2);
        state.gpr[4] = word(frame + 3) & case.mode.gpr_mask();
        state.sel.ss = word(frame + 4) as u16;
        let cr2 = if vector == 14 { cpu.sys.cr2 } else { 0 };
        Outcome { state, event: Event { vector, error, cr2 } }
    }
}

impl Subject for Interpreter {
    fn run(&mut self, case: &Case) -> Outcome {
        self.reset();
        put(&mut self.mem, physical(case.code_address()), &case.code);
        for (at, bytes) in &case.patches {
            put(&mut self.mem, physical(*at), bytes);
        }
        let mut start = self.start.clone();
        set_program(&mut start, case);
        start.icount = self.cpu.icount();
        let until = start.icount.plus(STEPS_MAX);
        self.cpu.restore(&start).expect("every case is a state that a CPU can have");
        match &mut self.engine {
            Some(engine) => {
                self.cpu.run_with(&mut self.mem, &mut self.bus, until, &mut **engine);
            }
            None => {
                self.cpu.run(&mut self.mem, &mut self.bus, until);
            }
        }
        self.steps = self.cpu.icount().since(start.icount);
        self.read_memory();
        self.outcome(case)
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn memory(&self, region: usize) -> &[u8; REGION_BYTES] {
        &self.memory[region]
    }
}

/// Guest-physical address of a byte in one of the regions.
fn physical(linear: u64) -> u64 {
    if linear >= HIGH { linear - HIGH + HIGH_PHYSICAL } else { linear }
}

fn put(mem: &mut GuestMem, at: u64, bytes: &[u8]) {
    mem.write(Gpa(at), bytes).expect("everything lies in RAM");
}

fn put_u64(mem: &mut GuestMem, at: u64, value: u64) {
    put(mem, at, &value.to_le_bytes());
}

fn build_tables(mem: &mut GuestMem) {
    for (table, descriptors) in [(GDT_AT, &GDT[..]), (LDT_AT, &LDT[..])] {
        for (index, descriptor) in descriptors.iter().enumerate() {
            put_u64(mem, table + 8 * index as u64, *descriptor);
        }
    }
    for vector in 0..256 {
        // As in Linux, a program may use vectors 3, 4 and 80H.
        let dpl: u64 = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        let handler = KERNEL + HANDLERS + vector;
        let low = handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | (0x8e00 | dpl << 13) << 32
            | (handler >> 16 & 0xffff) << 48;
        put_u64(mem, IDT_AT + 16 * vector, low);
        put_u64(mem, IDT_AT + 16 * vector + 8, handler >> 32);
    }
    put_u64(mem, TSS_AT + 4, STACK_TOP);
    // The I/O bitmap lies beyond the limit: no port is open to a program.
    put(mem, TSS_AT + 102, &(TSS_LIMIT as u16 + 1).to_le_bytes());
    const HLT: u8 = 0xf4;
    put(mem, HANDLERS, &[HLT; PAGE as usize]);

    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const USER: u64 = 1 << 2;
    const NO_EXECUTE: u64 = 1 << 63;
    let mut next_table = TABLES + PAGE;
    let mut map = |linear: u64, at: u64, pages: u64, rights: u64| {
        for page in 0..pages {
            map_page(mem, &mut next_table, linear + page * PAGE, at + page * PAGE | rights);
        }
    };
    let region_pages = REGION_BYTES as u64 / PAGE;
    let data = PRESENT | USER | NO_EXECUTE;
    map(CODE, CODE, region_pages, PRESENT | WRITABLE | USER);
    map(DATA, DATA, region_pages, data | WRITABLE);
    map(DATA_READ_ONLY, physical(DATA_READ_ONLY), 1, data);
    map(HIGH, HIGH_PHYSICAL, region_pages, data | WRITABLE);
    map(HIGH_READ_ONLY, physical(HIGH_READ_ONLY), 1, data);
    map(KERNEL + GDT_AT, GDT_AT, 5, PRESENT | WRITABLE);
}

/// Enters one page into the 4-level tables, making tables as needed.
fn map_page(mem: &mut GuestMem, next_table: &mut u64, linear: u64, entry: u64) {
    let mut table = TABLES;
    for shift in [39, 30, 21] {
        let at = table + (linear >> shift & 511) * 8;
        let found: u64 = mem.read_obj(Gpa(at)).expect("the tables lie in RAM");
        table = if found & 1 != 0 {
            found & !0xfff
        } else {
            let new = *next_table;
            *next_table += PAGE;
            // Present, writable and user: the last level decides.
            put_u64(mem, at, new | 7);
            new
        };
    }
    put_u64(mem, table + (linear >> 12 & 511) * 8, entry);
}

fn start_state() -> CpuState {
    let mut state = CpuState::reset();
    let sys = &mut state.sys;
    sys.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG;
    sys.cr3 = TABLES;
    // Linux leaves CR4.DE clear.
    sys.cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::FSGSBASE | Cr4::OSXSAVE;
    sys.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    sys.xcr0 = x86::cpuid::xcr0_all(*MODEL);
    sys.dr6 = Dr6::FIXED;
    sys.dr7 = Dr7::FIXED;
    sys.gdtr = TableRegister { base: KERNEL + GDT_AT, limit: GDT_LIMIT };
    sys.idtr = TableRegister { base: KERNEL + IDT_AT, limit: 0xfff };
    sys.ldtr = Segment {
        selector: 0x50,
        access: Access::P | SystemType::LDT,
        limit: size_of_val(&LDT) as u32 - 1,
        base: KERNEL + LDT_AT,
    };
    sys.tr = Segment {
        selector: 0x40,
        access: Access::P | SystemType::TSS32_BUSY,
        limit: TSS_LIMIT,
        base: KERNEL + TSS_AT,
    };
    state
}

/// The register as loading the selector from the table makes it.
fn segment(selector: u16) -> Segment {
    let Some(descriptor) = descriptor_of(selector).map(Descriptor) else {
        return Segment { selector, ..Segment::default() };
    };
    Segment {
        selector,
        access: descriptor.access().0,
        limit: descriptor.limit(),
        base: descriptor.base(),
    }
}

/// Puts the registers that a program sees.
fn set_program(cpu: &mut CpuState, case: &Case) {
    let state = &case.state;
    cpu.gpr = state.gpr;
    cpu.rip = state.rip;
    cpu.rflags = state.rflags;
    cpu.seg[Seg::CS] = segment(state.sel.cs);
    cpu.seg[Seg::SS] = segment(state.sel.ss);
    cpu.seg[Seg::DS] = segment(state.sel.ds);
    cpu.seg[Seg::ES] = segment(state.sel.es);
    cpu.seg[Seg::FS] = Segment { base: state.fs_base, ..segment(state.sel.fs) };
    cpu.seg[Seg::GS] = Segment { base: state.gs_base, ..segment(state.sel.gs) };
    let fx = &state.fx;
    cpu.x87.control = fx.fcw;
    cpu.x87.status = fx.fsw;
    cpu.x87.full = fx.ftw;
    (cpu.x87.opcode, cpu.x87.ip, cpu.x87.dp) = (0, 0, 0);
    let top = usize::from(fx.fsw >> 11 & 7);
    for (i, st) in fx.st.iter().enumerate() {
        cpu.x87.regs[(top + i) % 8] = F80 {
            significand: u64::from_le_bytes(std::array::from_fn(|byte| st[byte])),
            sign_exponent: u16::from_le_bytes([st[8], st[9]]),
        };
    }
    cpu.sse.mxcsr = fx.mxcsr;
    cpu.sse.xmm = fx.xmm.map(u128::from_le_bytes);
    cpu.sse.ymm_high = state.ymm_high.map(u128::from_le_bytes);
}

/// The registers that a program sees.
fn state_of(cpu: &CpuState, mode: Mode) -> State {
    let mut fx = Fx {
        fcw: cpu.x87.control,
        fsw: cpu.x87.status,
        ftw: cpu.x87.full,
        mxcsr: cpu.sse.mxcsr,
        xmm: cpu.sse.xmm.map(u128::to_le_bytes),
        ..Fx::default()
    };
    let top = usize::from(fx.fsw >> 11 & 7);
    for (i, st) in fx.st.iter_mut().enumerate() {
        let reg = cpu.x87.regs[(top + i) % 8];
        st[..8].copy_from_slice(&reg.significand.to_le_bytes());
        st[8..10].copy_from_slice(&reg.sign_exponent.to_le_bytes());
    }
    let selector = |index: usize| cpu.seg[index].selector;
    State {
        gpr: cpu.gpr.map(|value| value & mode.gpr_mask()),
        rip: cpu.rip,
        rflags: cpu.rflags,
        sel: Selectors {
            cs: selector(Seg::CS),
            ss: selector(Seg::SS),
            ds: selector(Seg::DS),
            es: selector(Seg::ES),
            fs: selector(Seg::FS),
            gs: selector(Seg::GS),
        },
        fs_base: cpu.seg[Seg::FS].base,
        gs_base: cpu.seg[Seg::GS].base,
        fx,
        ymm_high: cpu.sse.ymm_high.map(u128::to_le_bytes),
    }
}
