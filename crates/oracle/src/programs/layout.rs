//! Where everything lies in the programs' machine, and its memory before the first step.

use base::{Gpa, SeededRng};
use cpu::{CpuState, Seg, Segment, TableRegister};
use mem::GuestMem;
use x86::{Access, Cr0, Cr4, Efer, Rflags, SystemType};

pub(crate) const RAM_BYTES: u64 = 2 << 20;
pub(crate) const PAGE: u64 = 4096;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const KERNEL_STACK: u64 = 0x5000;
const FAULT_STACK: u64 = 0x6000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
/// Maps the first 2 MiB, where linear and physical addresses are the same.
const PT_LOW: u64 = 0x1_3000;
/// Maps the second 2 MiB, where programs have their data.
const PT_DATA: u64 = 0x1_4000;
/// A second address space, with its data pages in another order.
const PML4_OTHER: u64 = 0x1_5000;
const PDPT_OTHER: u64 = 0x1_6000;
const PD_OTHER: u64 = 0x1_7000;
const PT_DATA_OTHER: u64 = 0x1_8000;
pub(crate) const HANDLERS: u64 = 0x5_0000;
const HANDLER_BYTES: u64 = 64;
/// Where SYSCALL may lead.
const SYSCALL_HANDLERS: u64 = HANDLERS + 256 * HANDLER_BYTES;

/// The values of CR3 that programs use.
pub(crate) const ADDRESS_SPACES: [u64; 2] = [PML4, PML4_OTHER];
/// The program: linear and physical.
pub(crate) const CODE: u64 = 0x10_0000;
pub(crate) const CODE_BYTES: u64 = 4 * PAGE;
/// Physical addresses of the data pages.
pub(crate) const DATA_FRAMES: u64 = 0x11_0000;
/// Linear addresses of the data pages, each with rights of its own.
pub(crate) const DATA: u64 = 0x20_0000;
pub(crate) const DATA_PAGES: u64 = 8;
/// The program's pages once more.
pub(crate) const CODE_ALIAS: u64 = 0x28_0000;
/// The data pages once more, all of them writable.
pub(crate) const DATA_ALIAS: u64 = 0x2c_0000;
/// The page table of the data pages.
pub(crate) const TABLE_WINDOW: u64 = 0x30_0000;
/// Everything again, in the upper half.
pub(crate) const UPPER_HALF: u64 = 0xffff_8000_0000_0000;
/// The program's stack, in the middle of three pages.
pub(crate) const STACK: u64 = 0x8_f000;
/// Device memory.
pub(crate) const DEVICE: u64 = 0xfee0_0000;
/// An interrupt that sends the program on from wherever it loops.
pub(crate) const KICK: u8 = 0x41;
/// The vector of plain interrupts.
pub(crate) const INTERRUPT: u8 = 0x40;

/// Rights of page-table entries.
pub(crate) mod pte {
    pub(crate) const P: u64 = 1;
    pub(crate) const RW: u64 = 2;
    pub(crate) const US: u64 = 4;
    pub(crate) const NX: u64 = 1 << 63;
    pub(crate) const ALL: u64 = P | RW | US;
}

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;

fn segment(selector: u16, kind: u16, dpl: u16) -> Segment {
    let access =
        Access::P | Access::S | Access::ACCESSED | Access::WRITABLE | Access::G | kind | dpl << 5;
    Segment { selector, access, limit: u32::MAX, base: 0 }
}

fn descriptor(kind: u16, dpl: u16) -> u64 {
    let access = u64::from(segment(0, kind, dpl).access);
    0xffff | 0xf << 48 | (access & 0xff) << 40 | (access >> 12) << 52
}

fn put(mem: &mut GuestMem, at: u64, value: u64) {
    mem.write_obj(Gpa(at), value).expect("everything lies in RAM");
}

/// Tables, handlers and data; `code` is the program.
pub(crate) fn build(code: &[u8], data: &[u8]) -> GuestMem {
    let mut mem = GuestMem::new(RAM_BYTES).expect("2 MiB of guest RAM");
    build_descriptors(&mut mem);
    for vector in 0..=255 {
        let handler = handler(vector);
        mem.write(Gpa(handler_at(vector)), &handler).expect("handlers lie in RAM");
    }
    for (number, handler) in SYSCALLS.into_iter().enumerate() {
        let at = SYSCALL_HANDLERS + HANDLER_BYTES * number as u64;
        mem.write(Gpa(at), handler).expect("handlers lie in RAM");
    }
    repair(&mut mem, code);
    mem.write(Gpa(DATA_FRAMES), data).expect("the data lie in RAM");
    mem
}

/// Puts back what programs break: themselves, and the page tables.
pub(crate) fn repair(mem: &mut GuestMem, code: &[u8]) {
    build_page_tables(mem);
    mem.write(Gpa(CODE), code).expect("the code lies in RAM");
}

fn handler_at(vector: u8) -> u64 {
    HANDLERS + HANDLER_BYTES * u64::from(vector)
}

fn build_descriptors(mem: &mut GuestMem) {
    let gdt = [
        0,
        descriptor(Access::CODE | Access::L, 0),
        descriptor(Access::D, 0),
        descriptor(Access::D, 3),
        descriptor(Access::CODE | Access::L, 3),
        0x67 | TSS << 16 | 0x8b << 40,
        0,
    ];
    for (index, entry) in gdt.into_iter().enumerate() {
        put(mem, GDT + 8 * index as u64, entry);
    }
    put(mem, TSS + 4, KERNEL_STACK);
    put(mem, TSS + 0x24, FAULT_STACK);
    mem.write_obj(Gpa(TSS + 0x66), 0x68u16).expect("the TSS lies in RAM");
    for vector in 0..=255u8 {
        let handler = handler_at(vector);
        // Exceptions and kicks have a stack of their own, because programs lose theirs.
        let stack = u64::from(vector < 32 || vector == KICK);
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | stack << 32
            | 0xee << 40
            | handler >> 16 << 48;
        put(mem, IDT + 16 * u64::from(vector), low);
        put(mem, IDT + 16 * u64::from(vector) + 8, 0);
    }
}

/// The entry of data page `page`, as it is at first.
fn data_entry(page: u64, frame: u64) -> u64 {
    let frame = DATA_FRAMES + frame * PAGE;
    match page {
        2 => frame | pte::P | pte::US,
        4 => frame | pte::RW | pte::US,
        5 => frame | pte::P | pte::RW,
        6 => DEVICE | pte::ALL,
        7 => frame | pte::ALL | pte::NX,
        _ => frame | pte::ALL,
    }
}

fn build_page_tables(mem: &mut GuestMem) {
    let spaces = [(PML4, PDPT, PD, PT_DATA), (PML4_OTHER, PDPT_OTHER, PD_OTHER, PT_DATA_OTHER)];
    for (space, (pml4, pdpt, pd, pt)) in spaces.into_iter().enumerate() {
        put(mem, pml4, pdpt | pte::ALL);
        put(mem, pml4 + 8 * 256, pdpt | pte::ALL);
        put(mem, pdpt, pd | pte::ALL);
        put(mem, pd, PT_LOW | pte::ALL);
        put(mem, pd + 8, pt | pte::ALL);
        let entry = |linear: u64| pt + (linear >> 12 & 511) * 8;
        for page in 0..DATA_PAGES {
            let frame = if space == 0 { page } else { page ^ 1 };
            put(mem, entry(DATA + page * PAGE), data_entry(page, frame));
            let alias = DATA_FRAMES + frame * PAGE | pte::ALL;
            put(mem, entry(DATA_ALIAS + page * PAGE), alias);
        }
        for page in 0..CODE_BYTES / PAGE {
            put(mem, entry(CODE_ALIAS + page * PAGE), CODE + page * PAGE | pte::ALL);
        }
        put(mem, entry(TABLE_WINDOW), pt | pte::ALL);
    }
    for page in 0..RAM_BYTES / PAGE {
        let at = page * PAGE;
        let is_programs = (CODE..CODE + CODE_BYTES).contains(&at)
            || (STACK - 2 * PAGE..STACK + PAGE).contains(&at);
        let rights = if is_programs { pte::ALL } else { pte::P | pte::RW };
        put(mem, PT_LOW + 8 * page, at | rights);
    }
}

/// Machine code of a vector's handler.
fn handler(vector: u8) -> Vec<u8> {
    const IRETQ: [u8; 2] = [0x48, 0xcf];
    let mut code = Vec::new();
    match vector {
        // btr dword [rsp+16], 8 (TF); bts dword [rsp+16], 16 (RF)
        1 => code.extend([0x0f, 0xba, 0x74, 0x24, 0x10, 8, 0x0f, 0xba, 0x6c, 0x24, 0x10, 16]),
        3 | 0x80 => {}
        0..32 | KICK => {
            if matches!(vector, 8 | 10..=14 | 17) {
                code.extend([0x48, 0x83, 0xc4, 8]); // add rsp, 8
            }
            // On to the next address that is a multiple of 64, with a good stack:
            // and dword [rsp], -64; add dword [rsp], 64
            code.extend([0x83, 0x24, 0x24, 0xc0, 0x83, 0x04, 0x24, 64]);
            // and dword [rsp], CODE_BYTES - 1
            code.extend([0x81, 0x24, 0x24]);
            code.extend((CODE_BYTES as u32 - 1).to_le_bytes());
            // or dword [rsp], CODE
            code.extend([0x81, 0x0c, 0x24]);
            code.extend((CODE as u32).to_le_bytes());
            // mov dword [rsp+4], 0
            code.extend([0xc7, 0x44, 0x24, 4, 0, 0, 0, 0]);
            // mov qword [rsp+24], STACK
            code.extend([0x48, 0xc7, 0x44, 0x24, 24]);
            code.extend((STACK as u32).to_le_bytes());
        }
        INTERRUPT => {
            // push rax; push rcx; mov ecx, 5; l: inc qword [rsp-64]; lea eax, [rcx+3]; loop l;
            // pop rcx; pop rax
            code.extend([
                0x50, 0x51, 0xb9, 5, 0, 0, 0, 0x48, 0xff, 0x44, 0x24, 0xc0, 0x8d, 0x41, 3,
            ]);
            code.extend([0xe2, 0xf6, 0x59, 0x58]);
        }
        _ => {}
    }
    code.extend(IRETQ);
    assert!(code.len() as u64 <= HANDLER_BYTES, "a handler has {HANDLER_BYTES} bytes");
    code
}

/// What SYSCALL may lead to. All but the last return to the program, if nothing faults: its stack is out of bounds where
/// SMAP is on and AC clear.
const SYSCALLS: [&[u8]; 7] = [
    // swapgs; xchg rax, rcx (twice); swapgs; sysretq
    &[0x0f, 0x01, 0xf8, 0x48, 0x91, 0x48, 0x91, 0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07],
    // swapgs; stac; push rax; inc qword [rsp-8]; pop rax; clac; swapgs; sysretq
    &[
        0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xcb, 0x50, 0x48, 0xff, 0x44, 0x24, 0xf8, 0x58, 0x0f, 0x01,
        0xca, 0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07,
    ],
    // stac; push rax; clac; pop rax; sysretq
    &[0x0f, 0x01, 0xcb, 0x50, 0x0f, 0x01, 0xca, 0x58, 0x48, 0x0f, 0x07],
    // stac; stac; push r11; and qword [rsp], ~0x40; pushfq; pop r11; pop r11; clac; clac; btc r11, 21; sysretq
    &[
        0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xcb, 0x41, 0x53, 0x48, 0x83, 0x24, 0x24, 0xbf, 0x9c, 0x41,
        0x5b, 0x41, 0x5b, 0x0f, 0x01, 0xca, 0x0f, 0x01, 0xca, 0x49, 0x0f, 0xba, 0xfb, 21, 0x48,
        0x0f, 0x07,
    ],
    // rdgsbase r11; wrgsbase r11; rdfsbase r11; wrfsbase r11; mov r11d, cs; xor r11d, 0xe02 (OF, IF, DF); sysretq
    &[
        0xf3, 0x49, 0x0f, 0xae, 0xcb, 0xf3, 0x49, 0x0f, 0xae, 0xdb, 0xf3, 0x49, 0x0f, 0xae, 0xc3,
        0xf3, 0x49, 0x0f, 0xae, 0xd3, 0x41, 0x8c, 0xcb, 0x41, 0x81, 0xf3, 0x02, 0x0e, 0x00, 0x00,
        0x48, 0x0f, 0x07,
    ],
    // cli; mov r11d, ss; btc r11, 9 (IF); bt ecx, 0; jnc l; stac; l: push rax; pop rax; sysretq
    &[
        0xfa, 0x41, 0x8c, 0xd3, 0x49, 0x0f, 0xba, 0xfb, 9, 0x0f, 0xba, 0xe1, 0, 0x73, 3, 0x0f,
        0x01, 0xcb, 0x50, 0x58, 0x48, 0x0f, 0x07,
    ],
    // stac; sti; jmp rcx
    &[0x0f, 0x01, 0xcb, 0xfb, 0xff, 0xe1],
];

/// Where SYSCALL leads in a program, in either half of the address space, and what it clears of RFLAGS.
pub(crate) fn system_calls(rng: &mut SeededRng) -> (u64, u64) {
    let half = if rng.one_in(3) { 0 } else { UPPER_HALF };
    let handler = SYSCALL_HANDLERS + HANDLER_BYTES * rng.below(SYSCALLS.len() as u64);
    // As Linux has it, or less.
    let usual = Rflags::ALL & !(Rflags::VM | Rflags::VIF | Rflags::VIP);
    let mask = match rng.below(6) {
        0 => Rflags::TF,
        1 => rng.u64() & 0xffff_ffff,
        2 => Rflags::AC | Rflags::TF | Rflags::DF,
        _ => usual,
    };
    (half + handler, mask)
}

/// The state that programs start from, but for what the program itself sets.
pub(crate) fn start_state(user: bool) -> CpuState {
    let mut state = CpuState::reset();
    state.rip = CODE;
    state.rflags = Rflags::FIXED | Rflags::IF;
    let (code, data, dpl) =
        if user { (USER_CODE, USER_DATA, 3) } else { (KERNEL_CODE, KERNEL_DATA, 0) };
    state.seg = [segment(data, Access::D, dpl); 6];
    state.seg[Seg::CS] = segment(code, Access::CODE | Access::L, dpl);
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    let sys = &mut state.sys;
    sys.cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
    sys.cr3 = PML4;
    sys.cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::FSGSBASE | Cr4::OSXSAVE;
    sys.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
    sys.xcr0 = 3;
    sys.gdtr = TableRegister { base: GDT, limit: 7 * 8 - 1 };
    sys.idtr = TableRegister { base: IDT, limit: 0xfff };
    sys.tr = Segment {
        selector: TSS_SELECTOR,
        access: Access::P | SystemType::TSS32_BUSY,
        limit: 0x67,
        base: TSS,
    };
    sys.lstar = SYSCALL_HANDLERS;
    sys.star = u64::from(KERNEL_CODE) << 32 | u64::from(KERNEL_DATA | 3) << 48;
    sys.fmask = Rflags::TF;
    state
}
