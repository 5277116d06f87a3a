//! What CPUID says (Intel SDM vol. 2, CPUID): what the VM's model has, the same on every host. A feature bit
//! is here only if the interpreter implements the feature.
//!
//! The base is `x86-64-v2`: a Nehalem with the timer and protection features of later CPUs; [`CpuModel`]
//! has what comes on top. ERMS is left out although REP MOVSB works: a byte is a step of guest time, so that
//! guests had better move eight at once.

use crate::model::{CpuLevel, CpuModel, Word};

/// One leaf's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

const fn leaf_of(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

/// Family 6, model 26, stepping 3.
pub const SIGNATURE: u32 = 0x0001_06a3;
/// Width of a guest-physical address in bits.
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;
/// Width of a linear address in bits.
pub const LINEAR_ADDRESS_BITS: u32 = 48;
/// The crystal, the TSC and the local APIC's timer all run at this rate.
pub const TSC_HZ: u32 = 1_000_000_000;
/// Bytes of an XSAVE area with x87 and SSE; the upper halves of the YMM registers begin there.
pub const XSAVE_BYTES: u32 = 576;
/// Bytes of the upper halves of the YMM registers.
pub const YMM_BYTES: u32 = 256;
/// The bit of XCR0 for the upper halves of the YMM registers.
pub const XCR0_YMM: u64 = 4;
/// Leaf DH subleaf 1 EAX: XGETBV with ECX = 1.
const XGETBV_IN_USE: u32 = 1 << 2;

const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0008;
const VENDOR: &[u8; 12] = b"GenuineIntel";
const BRANDS: [&[u8; 48]; 2] = [
    b"Lockstep virtual CPU, x86-64-v2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    b"Lockstep virtual CPU, x86-64-v3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
];
const HYPERVISOR: &[u8; 12] = b"LockstepVM\0\0";

/// Sets the bits that are listed.
const fn bits(list: &[u32]) -> u32 {
    let mut word = 0;
    let mut at = 0;
    while at < list.len() {
        word |= 1 << list[at];
        at += 1;
    }
    word
}

/// Leaf 1 ECX: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, XSAVE, hypervisor.
const FEATURES_1_ECX: u32 = bits(&[0, 9, 13, 19, 20, 21, 23, 24, 26, 31]);
/// Leaf 1 EDX, bit 9: the local APIC is enabled.
const APIC: u32 = 1 << 9;
/// Leaf 1 ECX, bit 27: CR4.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36,
/// CLFLUSH, MMX, FXSR, SSE, SSE2.
const FEATURES_1_EDX: u32 =
    bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7 EBX: FSGSBASE, TSC_ADJUST, SMEP, FCS/FDS deprecated, SMAP.
const FEATURES_7_EBX: u32 = bits(&[0, 1, 7, 13, 20]);
/// Leaf 7 ECX: UMIP, RDPID.
const FEATURES_7_ECX: u32 = bits(&[2, 22]);
/// Leaf 7 EDX: IA32_ARCH_CAPABILITIES.
const FEATURES_7_EDX: u32 = bits(&[29]);
/// Leaf 80000001H ECX: LAHF in 64-bit mode.
const FEATURES_EXT_ECX: u32 = bits(&[0]);
/// Leaf 80000001H EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const FEATURES_EXT_EDX: u32 = bits(&[11, 20, 26, 27, 29]);

/// `IA32_ARCH_CAPABILITIES`: this CPU does not speculate, so none of the attacks works. RDCL_NO,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
/// BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
pub const ARCH_CAPABILITIES: u64 = 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// What in CPUID depends on the state of the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// `IA32_MISC_ENABLE` limits the basic leaves to 2 (bit 22).
    pub limit_leaves: bool,
    /// `IA32_APIC_BASE` disables the local APIC: leaf 1 does not show one.
    pub apic_disabled: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// The bits that XCR0 can hold: x87, SSE and, with AVX, the upper halves of the YMM registers.
#[must_use]
pub const fn xcr0_all(model: CpuModel) -> u64 {
    match model.level {
        CpuLevel::V2 => 3,
        CpuLevel::V3 => 3 | XCR0_YMM,
    }
}

/// The answer of CPUID for `function` (EAX) and `index` (ECX).
#[must_use]
pub fn leaf(model: CpuModel, function: u32, index: u32, dynamic: Dynamic) -> Leaf {
    let max_basic = if dynamic.limit_leaves { 2 } else { MAX_BASIC };
    match function {
        0x4000_0000..=0x4fff_ffff => hypervisor_leaf(function),
        0x8000_0000..=MAX_EXTENDED => extended_leaf(model, function),
        _ if function > max_basic => basic_leaf(model, max_basic, index, dynamic),
        _ => basic_leaf(model, function, index, dynamic),
    }
}

fn word(text: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
}

fn basic_leaf(model: CpuModel, function: u32, index: u32, dynamic: Dynamic) -> Leaf {
    let max_basic = if dynamic.limit_leaves { 2 } else { MAX_BASIC };
    match function {
        0 => leaf_of(max_basic, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)),
        // EBX: CLFLUSH line of 64 bytes, one logical CPU, APIC ID 0.
        1 => leaf_of(
            SIGNATURE,
            8 << 8 | 1 << 16,
            FEATURES_1_ECX
                | model.cpuid_bits(Word::Leaf1Ecx)
                | if dynamic.osxsave { OSXSAVE } else { 0 },
            FEATURES_1_EDX & if dynamic.apic_disabled { !APIC } else { u32::MAX },
        ),
        // Descriptor 0xff: "use leaf 4".
        2 => leaf_of(0x00ff_ff01, 0, 0, 0),
        4 => cache_leaf(index),
        7 if index == 0 => {
            let ebx = FEATURES_7_EBX | model.cpuid_bits(Word::Leaf7Ebx);
            leaf_of(0, ebx, FEATURES_7_ECX, FEATURES_7_EDX)
        }
        // Topology: one thread, one core.
        0xb => match index {
            0 => leaf_of(0, 1, 1 << 8, 0),
            1 => leaf_of(0, 1, 2 << 8 | 1, 0),
            _ => leaf_of(0, 0, index & 0xff, 0),
        },
        0xd => xsave_leaf(model, index, dynamic),
        // TSC = crystal * 1 / 1.
        0x15 => leaf_of(1, 1, TSC_HZ, 0),
        0x16 => leaf_of(TSC_HZ / 1_000_000, TSC_HZ / 1_000_000, 100, 0),
        _ => Leaf::default(),
    }
}

/// The components that XSAVE knows, and their places.
fn xsave_leaf(model: CpuModel, index: u32, dynamic: Dynamic) -> Leaf {
    let all = xcr0_all(model);
    let area = |xcr0: u64| XSAVE_BYTES + if xcr0 & XCR0_YMM != 0 { YMM_BYTES } else { 0 };
    match index {
        0 => leaf_of(all as u32, area(dynamic.xcr0), area(all), 0),
        1 if model.level >= CpuLevel::V3 => {
            leaf_of(model.cpuid_bits(Word::LeafD1Eax) | XGETBV_IN_USE, area(dynamic.xcr0), 0, 0)
        }
        2 if all & XCR0_YMM != 0 => leaf_of(YMM_BYTES, XSAVE_BYTES, 0, 0),
        _ => Leaf::default(),
    }
}

/// 32 KiB L1 data, 32 KiB L1 code, 1 MiB L2, 8 MiB L3; lines of 64 bytes.
fn cache_leaf(index: u32) -> Leaf {
    let cache = |kind: u32, level: u32, ways: u32, sets: u32| {
        leaf_of(kind | level << 5 | 1 << 8, 63 | (ways - 1) << 22, sets - 1, 0)
    };
    match index {
        0 => cache(1, 1, 8, 64),
        1 => cache(2, 1, 8, 64),
        2 => cache(3, 2, 16, 1024),
        3 => cache(3, 3, 16, 8192),
        _ => Leaf::default(),
    }
}

fn hypervisor_leaf(function: u32) -> Leaf {
    match function {
        0x4000_0000 => {
            leaf_of(0x4000_0000, word(HYPERVISOR, 0), word(HYPERVISOR, 4), word(HYPERVISOR, 8))
        }
        _ => Leaf::default(),
    }
}

fn extended_leaf(model: CpuModel, function: u32) -> Leaf {
    match function {
        0x8000_0000 => leaf_of(MAX_EXTENDED, 0, 0, 0),
        0x8000_0001 => {
            let ecx = FEATURES_EXT_ECX | model.cpuid_bits(Word::ExtendedEcx);
            leaf_of(0, 0, ecx, FEATURES_EXT_EDX)
        }
        0x8000_0002..=0x8000_0004 => {
            let at = (function - 0x8000_0002) as usize * 16;
            let brand = BRANDS[model.level as usize];
            leaf_of(word(brand, at), word(brand, at + 4), word(brand, at + 8), word(brand, at + 12))
        }
        // L2: 1 MiB, 16 ways, lines of 64 bytes.
        0x8000_0006 => leaf_of(0, 0, 1024 << 16 | 8 << 12 | 64, 0),
        // Invariant TSC.
        0x8000_0007 => leaf_of(0, 0, 0, 1 << 8),
        0x8000_0008 => leaf_of(PHYSICAL_ADDRESS_BITS | LINEAR_ADDRESS_BITS << 8, 0, 0, 0),
        _ => Leaf::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(model: CpuModel, function: u32, index: u32) -> Leaf {
        leaf(model, function, index, Dynamic { xcr0: 1, ..Dynamic::default() })
    }

    /// The bits that `model` shows beyond the base, by word.
    fn beyond_v2(model: CpuModel) -> [u32; 4] {
        let words = |model| {
            [
                ask(model, 1, 0).ecx,
                ask(model, 7, 0).ebx,
                ask(model, 0xd, 1).eax,
                ask(model, 0x8000_0001, 0).ecx,
            ]
        };
        let (base, with) = (words(CpuModel::V2), words(model));
        std::array::from_fn(|at| {
            assert_eq!(with[at] & base[at], base[at], "a model only adds to the base");
            with[at] & !base[at]
        })
    }

    #[test]
    fn the_base_is_x86_64_v2_and_no_more() {
        let one = ask(CpuModel::V2, 1, 0);
        // CX16, POPCNT, SSE3, SSSE3, SSE4.1, SSE4.2; not AVX, MOVBE, FMA, RDRAND, MONITOR, PCID.
        let v2 = 1 << 13 | 1 << 23 | 1 | 1 << 9 | 1 << 19 | 1 << 20;
        let hidden = 1 << 28 | 1 << 22 | 1 << 12 | 1 << 30 | 1 << 3 | 1 << 17 | 1 << 27;
        assert_eq!((one.ecx & v2, one.ecx & hidden), (v2, 0));
        assert_eq!(ask(CpuModel::V2, 0x8000_0001, 0).ecx & 1, 1, "LAHF in 64-bit mode");
        assert_eq!(ask(CpuModel::V2, 0xd, 0), leaf_of(3, 576, 576, 0));
        assert_eq!(ask(CpuModel::V2, 0xd, 2), Leaf::default());
    }

    #[test]
    fn the_other_model_is_x86_64_v3_and_no_more() {
        // FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; XSAVEC, XGETBV with ECX = 1; LZCNT.
        let v3 = [bits(&[12, 22, 28, 29]), bits(&[3, 5, 8]), bits(&[1, 2]), bits(&[5])];
        assert_eq!(beyond_v2(CpuModel::V3), v3);
        assert_eq!(beyond_v2(CpuModel { aes: true, ..CpuModel::V2 }), [bits(&[25]), 0, 0, 0]);
        assert_eq!(beyond_v2(CpuModel { sha: true, ..CpuModel::V2 }), [0, bits(&[29]), 0, 0]);
        let all = beyond_v2(CpuModel::ALL);
        assert_eq!(all, [v3[0] | bits(&[1, 25]), v3[1] | bits(&[29]), v3[2], v3[3]]);
    }

    #[test]
    fn the_save_area_grows_with_what_is_enabled() {
        let sizes = |xcr0| {
            let dynamic = Dynamic { xcr0, ..Dynamic::default() };
            (leaf(CpuModel::V3, 0xd, 0, dynamic), leaf(CpuModel::V3, 0xd, 1, dynamic).ebx)
        };
        assert_eq!(sizes(3), (leaf_of(7, 576, 832, 0), 576));
        assert_eq!(sizes(7), (leaf_of(7, 832, 832, 0), 832));
        assert_eq!(ask(CpuModel::V3, 0xd, 2), leaf_of(256, 576, 0, 0));
    }

    #[test]
    fn a_disabled_apic_is_not_shown() {
        let edx = |apic_disabled| {
            leaf(CpuModel::V2, 1, 0, Dynamic { apic_disabled, ..Dynamic::default() }).edx
        };
        assert_eq!(edx(false) ^ edx(true), 1 << 9);
    }

    #[test]
    fn a_leaf_above_the_last_repeats_the_last_basic_one() {
        let last = ask(CpuModel::V2, MAX_BASIC, 0);
        assert_eq!(ask(CpuModel::V2, 0x7fff_ffff, 0), last);
        assert_eq!(ask(CpuModel::V2, 0x8000_0009, 0), last);
    }
}
