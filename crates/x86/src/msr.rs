//! Numbers of model-specific registers (Intel SDM vol. 4).

macro_rules! msrs {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        $($(#[$doc])* pub const $name: u32 = $number;)*
    };
}

msrs! {
    /// Time stamp counter.
    IA32_TSC = 0x10,
    /// Platform ID.
    IA32_PLATFORM_ID = 0x17,
    /// Local APIC base. Belongs to the board.
    IA32_APIC_BASE = 0x1b,
    /// Feature control.
    IA32_FEATURE_CONTROL = 0x3a,
    /// TSC adjustment.
    IA32_TSC_ADJUST = 0x3b,
    /// Speculation control.
    IA32_SPEC_CTRL = 0x48,
    /// Prediction commands.
    IA32_PRED_CMD = 0x49,
    /// Microcode update trigger.
    IA32_BIOS_UPDT_TRIG = 0x79,
    /// Microcode revision.
    IA32_BIOS_SIGN_ID = 0x8b,
    /// MTRR capabilities.
    IA32_MTRRCAP = 0xfe,
    /// What attacks this CPU does not have.
    IA32_ARCH_CAPABILITIES = 0x10a,
    /// SYSENTER code segment.
    IA32_SYSENTER_CS = 0x174,
    /// SYSENTER stack pointer.
    IA32_SYSENTER_ESP = 0x175,
    /// SYSENTER instruction pointer.
    IA32_SYSENTER_EIP = 0x176,
    /// Machine check capabilities.
    IA32_MCG_CAP = 0x179,
    /// Machine check status.
    IA32_MCG_STATUS = 0x17a,
    /// Miscellaneous features.
    IA32_MISC_ENABLE = 0x1a0,
    /// First variable MTRR base.
    IA32_MTRR_PHYSBASE0 = 0x200,
    /// Mask of the last variable MTRR.
    IA32_MTRR_PHYSMASK7 = 0x20f,
    /// Fixed MTRR, 64 KiB.
    IA32_MTRR_FIX64K_00000 = 0x250,
    /// Fixed MTRR, 16 KiB, first.
    IA32_MTRR_FIX16K_80000 = 0x258,
    /// Fixed MTRR, 16 KiB, second.
    IA32_MTRR_FIX16K_A0000 = 0x259,
    /// Fixed MTRR, 4 KiB, first of eight.
    IA32_MTRR_FIX4K_C0000 = 0x268,
    /// Fixed MTRR, 4 KiB, last of eight.
    IA32_MTRR_FIX4K_F8000 = 0x26f,
    /// Page attribute table.
    IA32_PAT = 0x277,
    /// Default memory type.
    IA32_MTRR_DEF_TYPE = 0x2ff,
    /// TSC deadline. Belongs to the board.
    IA32_TSC_DEADLINE = 0x6e0,
    /// First x2APIC register. Belongs to the board.
    X2APIC_FIRST = 0x800,
    /// Last x2APIC register.
    X2APIC_LAST = 0x8ff,
    /// Extended features.
    IA32_EFER = 0xc000_0080,
    /// SYSCALL segments.
    IA32_STAR = 0xc000_0081,
    /// SYSCALL target in 64-bit mode.
    IA32_LSTAR = 0xc000_0082,
    /// SYSCALL target in compatibility mode; stored only.
    IA32_CSTAR = 0xc000_0083,
    /// SYSCALL flag mask.
    IA32_FMASK = 0xc000_0084,
    /// FS base.
    IA32_FS_BASE = 0xc000_0100,
    /// GS base.
    IA32_GS_BASE = 0xc000_0101,
    /// The GS base that SWAPGS brings in.
    IA32_KERNEL_GS_BASE = 0xc000_0102,
    /// What RDTSCP and RDPID report.
    IA32_TSC_AUX = 0xc000_0103,
}
