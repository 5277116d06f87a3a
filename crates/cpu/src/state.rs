//! The architectural state: all that is saved, and nothing else.

use base::{Icount, RestoreError, Saved};
use serde::{Deserialize, Serialize};
use x86::{Access, CpuLevel, CpuModel, Cr0, Dr6, Dr7, Rflags, cpuid};

/// Index of a segment register, in the manual's order.
#[derive(Clone, Copy, Debug)]
pub struct Seg;

impl Seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
    /// None: base 0, no checks.
    pub(crate) const NONE: usize = 6;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Access rights as [`Access`] has them. 0 for a register loaded with a null selector.
    pub access: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    /// Access rights.
    #[must_use]
    pub fn access(&self) -> Access {
        Access(self.access)
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// What holds off events until the next instruction is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// STI: maskable interrupts.
    Sti,
    /// MOV SS or POP SS: interrupts, NMI and debug traps.
    MovSs,
}

/// An x87 register: the 64-bit significand, and sign with exponent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct F80 {
    /// Significand with its explicit integer bit.
    pub significand: u64,
    /// Sign in bit 15, biased exponent below.
    pub sign_exponent: u16,
}

/// The x87 FPU, whose registers are also the MMX registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87State {
    /// The physical registers R0 to R7, not ST(0) to ST(7).
    pub regs: [F80; 8],
    /// Control word.
    pub control: u16,
    /// Status word, with TOP.
    pub status: u16,
    /// One bit per physical register: set if it is not empty (the abridged tag word).
    pub full: u8,
    /// Last opcode.
    pub opcode: u16,
    /// Last instruction pointer.
    pub ip: u64,
    /// Last operand pointer.
    pub dp: u64,
    /// Selector of the last instruction.
    pub cs: u16,
    /// Selector of the last operand.
    pub ds: u16,
}

impl X87State {
    /// After reset (not FNINIT): control word 40H, all registers full of zero.
    #[must_use]
    pub fn reset() -> X87State {
        X87State {
            regs: [F80::default(); 8],
            control: 0x40,
            status: 0,
            full: 0xff,
            opcode: 0,
            ip: 0,
            dp: 0,
            cs: 0,
            ds: 0,
        }
    }
}

/// The SSE and AVX registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SseState {
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The upper halves of YMM0 to YMM15; 0 in a CPU without AVX.
    pub ymm_high: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

impl SseState {
    /// After reset.
    #[must_use]
    pub fn reset() -> SseState {
        SseState { xmm: [0; 16], ymm_high: [0; 16], mxcsr: 0x1f80 }
    }
}

/// Memory type range registers: stored for the guest, without effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtrrs {
    /// `IA32_MTRR_DEF_TYPE`.
    pub def_type: u64,
    /// The eleven fixed ranges, ascending.
    pub fixed: [u64; 11],
    /// The eight variable ranges, base and mask alternating.
    pub variable: [u64; 16],
}

/// System registers and what else instructions seldom touch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemState {
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// LDTR.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// The four page-directory-pointer entries that PAE paging keeps in the CPU.
    pub pdpte: [u64; 4],
    /// `IA32_STAR`.
    pub star: u64,
    /// `IA32_LSTAR`.
    pub lstar: u64,
    /// `IA32_CSTAR`.
    pub cstar: u64,
    /// `IA32_FMASK`.
    pub fmask: u64,
    /// `IA32_KERNEL_GS_BASE`.
    pub kernel_gs_base: u64,
    /// `IA32_SYSENTER_CS`.
    pub sysenter_cs: u64,
    /// `IA32_SYSENTER_ESP`.
    pub sysenter_esp: u64,
    /// `IA32_SYSENTER_EIP`.
    pub sysenter_eip: u64,
    /// `IA32_TSC_AUX`.
    pub tsc_aux: u64,
    /// TSC minus guest time, in ticks of 1 ns.
    pub tsc_offset: u64,
    /// `IA32_TSC_ADJUST`.
    pub tsc_adjust: u64,
    /// `IA32_PAT`.
    pub pat: u64,
    /// MTRRs.
    pub mtrrs: Mtrrs,
    /// `IA32_MISC_ENABLE`.
    pub misc_enable: u64,
    /// `IA32_MCG_STATUS`.
    pub mcg_status: u64,
    /// Events held off by the instruction before.
    pub shadow: Shadow,
    /// Waiting in HLT.
    pub halted: bool,
    /// A triple fault has stopped the CPU until reset.
    pub is_shut_down: bool,
    /// Inside an NMI handler: further NMIs wait for IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// DR6 bits of debug traps that the last instruction raised and that are yet to be delivered.
    pub pending_debug: u64,
}

/// All architectural state of a CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: see [`Seg`].
    pub seg: [Segment; 6],
    /// System registers.
    pub sys: SystemState,
    /// x87 and MMX.
    pub x87: X87State,
    /// SSE.
    pub sse: SseState,
    /// Steps since power-on.
    pub icount: Icount,
}

impl Saved for CpuState {
    const KIND: &'static str = "cpu";
    const VERSION: u16 = 2;
}

impl CpuState {
    /// The registers in which `other` differs, for people.
    #[must_use]
    pub fn differences(&self, other: &CpuState) -> Vec<String> {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let mut words = vec![
            ("steps", self.icount.0, other.icount.0),
            ("rip", self.rip, other.rip),
            ("rflags", self.rflags, other.rflags),
            ("cr2", self.sys.cr2, other.sys.cr2),
            ("mxcsr", self.sse.mxcsr.into(), other.sse.mxcsr.into()),
        ];
        let gprs = self.gpr.iter().zip(&other.gpr);
        words.extend(NAMES.into_iter().zip(gprs).map(|(name, (a, b))| (name, *a, *b)));
        let mut found: Vec<String> = words
            .into_iter()
            .filter(|(_, a, b)| a != b)
            .map(|(name, a, b)| format!("{name}: {a:#x}, other {b:#x}"))
            .collect();
        for (number, (a, b)) in self.sse.xmm.iter().zip(&other.sse.xmm).enumerate() {
            if a != b {
                found.push(format!("xmm{number}: {a:#x}, other {b:#x}"));
            }
        }
        for (number, (a, b)) in self.sse.ymm_high.iter().zip(&other.sse.ymm_high).enumerate() {
            if a != b {
                found.push(format!("upper half of ymm{number}: {a:#x}, other {b:#x}"));
            }
        }
        if self.seg != other.seg {
            found.push(format!("segments: {:x?}, other {:x?}", self.seg, other.seg));
        }
        if self.x87 != other.x87 {
            found.push(format!("x87: {:x?}, other {:x?}", self.x87, other.x87));
        }
        if found.is_empty() && self != other {
            found.push(format!("system registers: {:x?}, other {:x?}", self.sys, other.sys));
        }
        found
    }

    /// The state after power-on (Intel SDM vol. 3, table 10-1): real mode at FFFF0H.
    #[must_use]
    pub fn reset() -> CpuState {
        let data = Segment {
            selector: 0,
            access: Access::P | Access::S | Access::WRITABLE | Access::ACCESSED,
            limit: 0xffff,
            base: 0,
        };
        let code = Segment {
            selector: 0xf000,
            access: data.access | Access::CODE,
            base: 0xffff_0000,
            ..data
        };
        let mut seg = [data; 6];
        seg[Seg::CS] = code;
        let mut gpr = [0; 16];
        gpr[2] = u64::from(cpuid::SIGNATURE);
        CpuState {
            gpr,
            rip: 0xfff0,
            rflags: Rflags::FIXED,
            seg,
            sys: SystemState::reset(),
            x87: X87State::reset(),
            sse: SseState::reset(),
            icount: Icount(0),
        }
    }

    /// Checks what a CPU of a model cannot hold, for state that came from outside.
    ///
    /// # Errors
    /// [`RestoreError::Impossible`] with the reason.
    pub fn check(&self, model: CpuModel) -> Result<(), RestoreError> {
        let impossible =
            |why: &str| Err(RestoreError::Impossible { kind: Self::KIND, why: why.to_owned() });
        let sys = &self.sys;
        if sys.cr0 & Cr0::PG != 0 && sys.cr0 & Cr0::PE == 0 {
            return impossible("paging without protected mode");
        }
        if self.rflags & !Rflags::ALL != 0 || self.rflags & Rflags::FIXED == 0 {
            return impossible("RFLAGS with reserved bits");
        }
        if self.rflags & Rflags::VM != 0 {
            return impossible("virtual 8086 mode");
        }
        if !is_xcr0(model, sys.xcr0) {
            return impossible("XCR0 with components that the CPU does not have");
        }
        if model.level < CpuLevel::V3 && self.sse.ymm_high != [0; 16] {
            return impossible("YMM registers in a CPU without AVX");
        }
        Ok(())
    }
}

/// True if XCR0 of a CPU of this model can be `value`.
pub(crate) fn is_xcr0(model: CpuModel, value: u64) -> bool {
    let has_ymm_without_sse = value & cpuid::XCR0_YMM != 0 && value & 2 == 0;
    value & !cpuid::xcr0_all(model) == 0 && value & 1 != 0 && !has_ymm_without_sse
}

impl SystemState {
    fn reset() -> SystemState {
        let table = TableRegister { base: 0, limit: 0xffff };
        let system = |system_type| Segment {
            selector: 0,
            access: Access::P | system_type,
            limit: 0xffff,
            base: 0,
        };
        SystemState {
            cr0: Cr0::CD | Cr0::NW | Cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: Dr6::FIXED,
            dr7: Dr7::FIXED,
            gdtr: table,
            idtr: table,
            ldtr: system(x86::SystemType::LDT),
            tr: system(x86::SystemType::TSS32_BUSY),
            pdpte: [0; 4],
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            tsc_offset: 0,
            tsc_adjust: 0,
            pat: 0x0007_0406_0007_0406,
            mtrrs: Mtrrs::default(),
            misc_enable: 1,
            mcg_status: 0,
            shadow: Shadow::None,
            halted: false,
            is_shut_down: false,
            nmi_blocked: false,
            nmi_pending: false,
            pending_debug: 0,
        }
    }
}
