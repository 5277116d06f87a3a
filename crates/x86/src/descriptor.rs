//! Segment selectors and descriptors (Intel SDM vol. 3, chapter 3).

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level.
    #[must_use]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// True if the selector names the local descriptor table.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Byte offset of the descriptor in its table.
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 & !7) as u32
    }

    /// True for the null selector, whatever its RPL.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The selector as an exception's error code: without its RPL.
    #[must_use]
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }
}

/// Access rights of a segment as LAR reports them, moved down by 8 bits: type, S, DPL, P in bits 0
/// to 7; AVL, L, D/B, G in bits 12 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(pub u16);

impl Access {
    /// Accessed.
    pub const ACCESSED: u16 = 1 << 0;
    /// Data: writable. Code: readable.
    pub const WRITABLE: u16 = 1 << 1;
    /// Data: expand down. Code: conforming.
    pub const CONFORMING: u16 = 1 << 2;
    /// Code, not data.
    pub const CODE: u16 = 1 << 3;
    /// Code or data, not a system segment.
    pub const S: u16 = 1 << 4;
    /// Present.
    pub const P: u16 = 1 << 7;
    /// 64-bit code.
    pub const L: u16 = 1 << 13;
    /// 32-bit code or stack.
    pub const D: u16 = 1 << 14;
    /// Limit in pages.
    pub const G: u16 = 1 << 15;

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }

    /// True if all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }

    /// The type field with S: bits 0 to 4.
    #[must_use]
    pub const fn system_type(self) -> u16 {
        self.0 & 0x1f
    }

    /// Code or data segment that is code.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.has(Access::S | Access::CODE)
    }

    /// Code or data segment that is data.
    #[must_use]
    pub const fn is_data(self) -> bool {
        self.0 & (Access::S | Access::CODE) == Access::S
    }

    /// Conforming code.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.has(Access::S | Access::CODE | Access::CONFORMING)
    }

    /// Data, or code that may be read.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.is_data() || self.has(Access::S | Access::CODE | Access::WRITABLE)
    }

    /// Data that may be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.is_data() && self.has(Access::WRITABLE)
    }

    /// Data that grows down.
    #[must_use]
    pub const fn is_expand_down(self) -> bool {
        self.is_data() && self.has(Access::CONFORMING)
    }
}

/// Types of system descriptors, as [`Access::system_type`] gives them (S = 0).
#[derive(Clone, Copy, Debug)]
pub struct SystemType;

impl SystemType {
    /// 16-bit TSS, available.
    pub const TSS16: u16 = 1;
    /// Local descriptor table.
    pub const LDT: u16 = 2;
    /// 16-bit TSS, busy.
    pub const TSS16_BUSY: u16 = 3;
    /// 16-bit call gate.
    pub const CALL_GATE16: u16 = 4;
    /// Task gate.
    pub const TASK_GATE: u16 = 5;
    /// 16-bit interrupt gate.
    pub const INT_GATE16: u16 = 6;
    /// 16-bit trap gate.
    pub const TRAP_GATE16: u16 = 7;
    /// 32-bit or 64-bit TSS, available.
    pub const TSS32: u16 = 9;
    /// 32-bit or 64-bit TSS, busy.
    pub const TSS32_BUSY: u16 = 11;
    /// 32-bit or 64-bit call gate.
    pub const CALL_GATE32: u16 = 12;
    /// 32-bit or 64-bit interrupt gate.
    pub const INT_GATE32: u16 = 14;
    /// 32-bit or 64-bit trap gate.
    pub const TRAP_GATE32: u16 = 15;
}

/// The low eight bytes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Access rights.
    #[must_use]
    pub const fn access(self) -> Access {
        Access((self.0 >> 40) as u16 & 0xf0ff)
    }

    /// Base address; a 64-bit system descriptor adds its upper half.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// Limit in bytes, the granularity applied.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.access().has(Access::G) { raw << 12 | 0xfff } else { raw }
    }

    /// Target selector of a gate.
    #[must_use]
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// Target offset of a gate: its low 32 bits.
    #[must_use]
    pub const fn gate_offset(self) -> u32 {
        (self.0 & 0xffff | self.0 >> 32 & 0xffff_0000) as u32
    }

    /// Parameter count of a call gate.
    #[must_use]
    pub const fn gate_param_count(self) -> u32 {
        (self.0 >> 32 & 0x1f) as u32
    }

    /// Interrupt stack table index of a 64-bit gate.
    #[must_use]
    pub const fn gate_ist(self) -> u8 {
        (self.0 >> 32 & 7) as u8
    }
}
