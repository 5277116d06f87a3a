//! Exceptions and interrupts (Intel SDM vol. 3, chapter 6).

/// Numbers of the vectors that the architecture defines.
#[derive(Clone, Copy, Debug)]
pub struct Vector;

macro_rules! vectors {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        impl Vector {
            $($(#[$doc])* pub const $name: u8 = $number;)*
        }
    };
}

vectors! {
    /// Divide error.
    DE = 0,
    /// Debug.
    DB = 1,
    /// Non-maskable interrupt.
    NMI = 2,
    /// Breakpoint (INT3).
    BP = 3,
    /// Overflow (INTO).
    OF = 4,
    /// BOUND range exceeded.
    BR = 5,
    /// Invalid opcode.
    UD = 6,
    /// Device not available.
    NM = 7,
    /// Double fault.
    DF = 8,
    /// Invalid TSS.
    TS = 10,
    /// Segment not present.
    NP = 11,
    /// Stack fault.
    SS = 12,
    /// General protection.
    GP = 13,
    /// Page fault.
    PF = 14,
    /// x87 error.
    MF = 16,
    /// Alignment check.
    AC = 17,
    /// Machine check.
    MC = 18,
    /// SIMD floating-point error.
    XM = 19,
}

impl Vector {
    /// True if the exception pushes an error code.
    #[must_use]
    pub const fn has_error_code(vector: u8) -> bool {
        matches!(vector, 8 | 10..=14 | 17)
    }

    /// True if the exception counts as contributory for double faults (table 6-4).
    #[must_use]
    pub const fn is_contributory(vector: u8) -> bool {
        matches!(vector, 0 | 10..=13)
    }
}

/// An exception with what it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code; 0 if it has none.
    pub error_code: u32,
    /// The faulting address of a page fault; 0 otherwise.
    pub address: u64,
}

/// Bits of a page fault's error code.
#[derive(Clone, Copy, Debug)]
pub struct PageFaultBits;

impl PageFaultBits {
    /// The page was present.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a store.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}
