//! What one test case is: the state before, the code, and the state and event after.

use std::fmt;

/// First address of the code pages. They are readable, writable and executable for the program.
pub const CODE: u64 = 0x0060_0000;
/// First address of the low data pages: below 4 GiB, so that every mode reaches them.
pub const DATA: u64 = 0x0080_0000;
/// First address of the high data pages: above 4 GiB, for 64-bit addresses.
pub const HIGH: u64 = 0x2345_6789_0000;
/// Bytes in each of the three regions above. What lies before and behind them is unmapped, except
/// that one read-only page follows each of the two data regions.
pub const REGION_BYTES: usize = 2 * 4096;
/// First address of the read-only page behind the low data pages.
pub const DATA_READ_ONLY: u64 = DATA + REGION_BYTES as u64;
/// First address of the read-only page behind the high data pages.
pub const HIGH_READ_ONLY: u64 = HIGH + REGION_BYTES as u64;
/// Bytes in each read-only page.
pub const READ_ONLY_BYTES: usize = 4096;

/// The regions whose contents are set before a case and compared after it, in the order in which
/// [`Memory`] holds them.
pub const REGIONS: [u64; 3] = [CODE, DATA, HIGH];

/// Selector of 64-bit code: Linux's `__USER_CS`.
pub const CS_64: u16 = 0x33;
/// Selector of 32-bit code: Linux's `__USER32_CS`.
pub const CS_32: u16 = 0x23;
/// Selector of flat data: Linux's `__USER_DS`.
pub const DS_FLAT: u16 = 0x2b;

/// Selector of 16-bit code: [`LDT`].
pub const CS_16: u16 = 0x07;
/// Selector of the 16-bit data segment that starts at [`DATA`] and ends behind the read-only page.
pub const DS_16: u16 = 0x0f;

/// The global descriptor table of Linux (`arch/x86/kernel/cpu/common.c`, `gdt_page`) without what a
/// program cannot use.
pub const GDT: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff, // 32-bit kernel code
    0x00af_9b00_0000_ffff, // 64-bit kernel code
    0x00cf_9300_0000_ffff, // kernel data
    0x00cf_fb00_0000_ffff, // 32-bit user code
    0x00cf_f300_0000_ffff, // user data
    0x00af_fb00_0000_ffff, // 64-bit user code
    0,
    0, // the TSS and the LDT from here on: of privilege 0
    0,
    0,
    0,
    0, // three entries for thread-local storage, unused
    0,
    0,
    0x0040_f500_0000_0000, // the number of the CPU, as its limit
];

/// The local descriptor table: what 16-bit code needs, and segments with bases, limits and types.
pub const LDT: [u64; 10] = [
    descriptor(CODE, 0xffff, 0x0fb),
    descriptor(DATA, 0x2fff, 0x0f3),
    descriptor(0, 0xf_ffff, 0xcf3),
    descriptor(DATA, 0x1fff, 0x4f1),         // read-only
    descriptor(DATA, 0x0fff, 0x4f7),         // expand down, 32-bit
    descriptor(DATA, 0x07ff, 0x0f7),         // expand down, 16-bit
    descriptor(DATA, 0x1fff, 0x473),         // not present
    descriptor(0, 0xf_ffff, 0xcfb),          // 32-bit code, readable
    descriptor(0, 0xf_ffff, 0xcf9),          // 32-bit code, execute-only
    descriptor(DATA + 0x123, 0x0fff, 0x4f3), // small, at an odd address
];

/// A segment descriptor. `rights` are flags (G, D/B, L, AVL) in bits 8 to 11, then P, DPL, S, type.
const fn descriptor(base: u64, limit: u64, rights: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (rights & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (rights >> 8 & 0xf) << 52
        | (base >> 24 & 0xff) << 56
}

/// The descriptor that a selector names, if it is one of [`GDT`] or [`LDT`].
#[must_use]
pub fn descriptor_of(selector: u16) -> Option<u64> {
    let index = usize::from(selector >> 3);
    let table: &[u64] = if selector & 4 == 0 { &GDT } else { &LDT };
    table.get(index).copied().filter(|descriptor| *descriptor != 0)
}

/// The base of the segment that a selector names; 0 if it names none.
#[must_use]
pub fn base_of(selector: u16) -> u64 {
    let descriptor = descriptor_of(selector).unwrap_or(0);
    descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000
}

/// True if a selector names a segment with 32-bit stack or code (D/B set).
#[must_use]
pub fn is_32_bit(selector: u16) -> bool {
    descriptor_of(selector).is_some_and(|descriptor| descriptor >> 54 & 1 != 0)
}

/// The mode that the program runs in. All have CPL 3 under a 64-bit kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Compatibility mode with a 16-bit code segment.
    Compat16,
    /// Compatibility mode with a 32-bit code segment.
    Compat32,
    /// 64-bit mode.
    Long64,
}

impl Mode {
    /// All modes, in the order of a run.
    pub const ALL: [Mode; 3] = [Mode::Long64, Mode::Compat32, Mode::Compat16];

    /// 16, 32 or 64.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Mode::Compat16 => 16,
            Mode::Compat32 => 32,
            Mode::Long64 => 64,
        }
    }

    /// The code segment selector of the mode.
    #[must_use]
    pub const fn cs(self) -> u16 {
        match self {
            Mode::Compat16 => CS_16,
            Mode::Compat32 => CS_32,
            Mode::Long64 => CS_64,
        }
    }

    /// The bits of a general register that the mode can see.
    #[must_use]
    pub const fn gpr_mask(self) -> u64 {
        match self {
            Mode::Compat16 | Mode::Compat32 => 0xffff_ffff,
            Mode::Long64 => u64::MAX,
        }
    }
}

/// The FXSAVE64 image up to XMM15: x87, MMX, SSE and MXCSR.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fx {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// x87 abridged tag word: a set bit is a register that is not empty.
    pub ftw: u8,
    /// Reserved, zero.
    pub reserved: u8,
    /// Last x87 opcode.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Bits of MXCSR that the CPU has. Not part of a case.
    pub mxcsr_mask: u32,
    /// ST(0) to ST(7), 10 bytes each.
    pub st: [[u8; 16]; 8],
    /// XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
}

const _: () = assert!(size_of::<Fx>() == 416, "the FXSAVE image up to XMM15");

impl Default for Fx {
    fn default() -> Fx {
        Fx {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            mxcsr_mask: 0,
            st: [[0; 16]; 8],
            xmm: [[0; 16]; 16],
        }
    }
}

/// Segment selectors that a program can load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// Code.
    pub cs: u16,
    /// Stack.
    pub ss: u16,
    /// Data.
    pub ds: u16,
    /// Extra.
    pub es: u16,
    /// FS.
    pub fs: u16,
    /// GS.
    pub gs: u16,
}

/// Every register that a program can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of the encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Selectors.
    pub sel: Selectors,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// x87, MMX and SSE.
    pub fx: Fx,
    /// The upper halves of YMM0 to YMM15; 0 if the guest's CPU has no AVX.
    pub ymm_high: [[u8; 16]; 16],
}

/// The exception that ended a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 where the vector has none.
    pub error: u32,
    /// The faulting address, for a page fault; otherwise 0.
    pub cr2: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP",
            "#SS", "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM",
        ];
        match NAMES.get(usize::from(self.vector)) {
            Some(name) => write!(f, "{name}({:#x})", self.error)?,
            None => write!(f, "vector {:#x}({:#x})", self.vector, self.error)?,
        }
        if self.vector == 14 { write!(f, " cr2={:#x}", self.cr2) } else { Ok(()) }
    }
}

/// The contents of the three writable regions.
pub type Memory = [[u8; REGION_BYTES]; 3];

/// What a case left behind. The memory stays with whoever ran it ([`Subject::memory`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The registers, as the exception handler finds them on its stack.
    pub state: State,
    /// The exception.
    pub event: Event,
}

/// One test case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Where it runs.
    pub mode: Mode,
    /// The code; it starts at `state.rip`. The rest of the code pages is filled with INT3.
    pub code: Vec<u8>,
    /// Registers before. With TF set the case ends after one instruction or one iteration of a
    /// repeated string instruction; otherwise it runs into an INT3.
    pub state: State,
    /// Data bytes that differ from the template, as address and bytes. They lie in [`DATA`] or
    /// [`HIGH`].
    pub patches: Vec<(u64, Vec<u8>)>,
}

impl Case {
    /// Linear address of the first byte of code.
    #[must_use]
    pub fn code_address(&self) -> u64 {
        code_base(self.mode) + self.state.rip
    }
}

/// What is added to RIP for a linear address.
#[must_use]
pub const fn code_base(mode: Mode) -> u64 {
    match mode {
        Mode::Compat16 => CODE,
        Mode::Compat32 | Mode::Long64 => 0,
    }
}

/// Somebody who can run a case: the host CPU or the interpreter.
pub trait Subject {
    /// Runs one case on memory that holds the template, the code and the patches.
    fn run(&mut self, case: &Case) -> Outcome;

    /// How many instructions the last case took, if this is known.
    fn steps(&self) -> u64 {
        0
    }

    /// What the last case left in one of [`REGIONS`].
    fn memory(&self, region: usize) -> &[u8; REGION_BYTES];
}
