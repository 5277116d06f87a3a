//! Bits of RFLAGS, of the control and debug registers and of EFER (Intel SDM vol. 3, chapter 2).

/// Declares a type that only names bits.
macro_rules! bits {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $shift:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl $name {
            $($(#[$bit_doc])* pub const $bit: u64 = 1 << $shift;)*
        }
    };
}

bits!(
    /// Bits of RFLAGS.
    Rflags {
        /// Carry.
        CF = 0,
        /// Always 1.
        FIXED = 1,
        /// Parity of the low byte.
        PF = 2,
        /// Carry out of bit 3.
        AF = 4,
        /// Zero.
        ZF = 6,
        /// Sign.
        SF = 7,
        /// Trap: single step.
        TF = 8,
        /// Interrupts enabled.
        IF = 9,
        /// Direction of string instructions.
        DF = 10,
        /// Signed overflow.
        OF = 11,
        /// Nested task.
        NT = 14,
        /// Resume: no instruction breakpoint for one instruction.
        RF = 16,
        /// Virtual 8086 mode.
        VM = 17,
        /// Alignment check, or SMAP override in supervisor mode.
        AC = 18,
        /// Virtual IF.
        VIF = 19,
        /// Virtual interrupt pending.
        VIP = 20,
        /// CPUID exists if this can be toggled.
        ID = 21,
    }
);

impl Rflags {
    /// The I/O privilege level's two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Shift of [`Rflags::IOPL`].
    pub const IOPL_SHIFT: u32 = 12;
    /// The six arithmetic flags.
    pub const STATUS: u64 =
        Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::OF;
    /// Every bit that can be set.
    pub const ALL: u64 = 0x3f_7fd7;
}

bits!(
    /// Bits of CR0.
    Cr0 {
        /// Protected mode.
        PE = 0,
        /// WAIT obeys TS.
        MP = 1,
        /// No x87: its instructions fault.
        EM = 2,
        /// Task switched: FPU instructions fault.
        TS = 3,
        /// Always 1.
        ET = 4,
        /// x87 errors by #MF.
        NE = 5,
        /// Supervisor stores obey read-only pages.
        WP = 16,
        /// Alignment checks allowed.
        AM = 18,
        /// Not write-through.
        NW = 29,
        /// Cache disable.
        CD = 30,
        /// Paging.
        PG = 31,
    }
);

bits!(
    /// Bits of CR4.
    Cr4 {
        /// Virtual 8086 extensions.
        VME = 0,
        /// Protected-mode virtual interrupts.
        PVI = 1,
        /// RDTSC only at CPL 0.
        TSD = 2,
        /// Debug extensions: DR4 and DR5 are #UD.
        DE = 3,
        /// 4 MiB pages.
        PSE = 4,
        /// Physical address extension.
        PAE = 5,
        /// Machine check.
        MCE = 6,
        /// Global pages.
        PGE = 7,
        /// RDPMC at every CPL.
        PCE = 8,
        /// FXSAVE and SSE.
        OSFXSR = 9,
        /// #XM for SIMD exceptions.
        OSXMMEXCPT = 10,
        /// No SGDT and its like above CPL 0.
        UMIP = 11,
        /// 5-level paging.
        LA57 = 12,
        /// RDFSBASE and its like.
        FSGSBASE = 16,
        /// Process context identifiers.
        PCIDE = 17,
        /// XSAVE and XCR0.
        OSXSAVE = 18,
        /// No supervisor fetch from user pages.
        SMEP = 20,
        /// No supervisor access to user pages while AC is clear.
        SMAP = 21,
    }
);

bits!(
    /// Bits of IA32_EFER.
    Efer {
        /// SYSCALL enabled.
        SCE = 0,
        /// Long mode enabled.
        LME = 8,
        /// Long mode active.
        LMA = 10,
        /// Execute-disable enabled.
        NXE = 11,
    }
);

bits!(
    /// Bits of DR6.
    Dr6 {
        /// Access to a debug register while DR7.GD was set.
        BD = 13,
        /// Single step.
        BS = 14,
        /// Task switch with the T bit.
        BT = 15,
    }
);

impl Dr6 {
    /// Bits that always read 1.
    pub const FIXED: u64 = 0xffff_0ff0;
}

bits!(
    /// Bits of DR7.
    Dr7 {
        /// Always 1.
        FIXED = 10,
        /// General detect: the next access to a debug register is #DB.
        GD = 13,
    }
);
