//! Control registers, debug registers and model-specific registers.

use base::Icount;
use x86::{Access, Cr0, Cr4, Dr6, Dr7, Efer, Vector, cpuid, msr};

use crate::access::is_canonical;
use crate::op::{Env, Fault};
use crate::state::{Seg, SystemState};
use crate::{Cpu, Mtrrs};

/// Bits of `IA32_MISC_ENABLE` that CPUs of the family we show have. Only 22 (limit CPUID to leaf 2) does
/// anything; the others are kept for the guest.
const MISC_ENABLE: u64 = 1 | 1 << 3 | 1 << 7 | 3 << 11 | 1 << 16 | 1 << 18 | 3 << 22 | 1 << 34;

/// Bits that CR4 can hold: those of the features that CPUID shows.
const CR4_ALL: u64 = Cr4::TSD
    | Cr4::DE
    | Cr4::PSE
    | Cr4::PAE
    | Cr4::MCE
    | Cr4::PGE
    | Cr4::PCE
    | Cr4::OSFXSR
    | Cr4::OSXMMEXCPT
    | Cr4::UMIP
    | Cr4::FSGSBASE
    | Cr4::OSXSAVE
    | Cr4::SMEP
    | Cr4::SMAP;
const CR0_ALL: u64 = Cr0::PE
    | Cr0::MP
    | Cr0::EM
    | Cr0::TS
    | Cr0::ET
    | Cr0::NE
    | Cr0::WP
    | Cr0::AM
    | Cr0::NW
    | Cr0::CD
    | Cr0::PG;
const EFER_ALL: u64 = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
/// Bits of CR0, CR4 and EFER on which translations depend.
const CR0_PAGING: u64 = Cr0::PG | Cr0::WP | Cr0::PE;
const CR4_PAGING: u64 = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::SMEP | Cr4::SMAP;
/// Bits of CR3 that can be set in long mode: the address, PWT and PCD.
const CR3_LONG: u64 = (1 << cpuid::PHYSICAL_ADDRESS_BITS) - 1;

impl Cpu {
    /// MOV to CR0, and LMSW.
    pub(crate) fn write_cr0(&mut self, env: &mut Env<'_>, value: u64) -> Result<(), Fault> {
        let old = self.sys.cr0;
        let is_bad = value >> 32 != 0
            || value & Cr0::PG != 0 && value & Cr0::PE == 0
            || value & Cr0::NW != 0 && value & Cr0::CD == 0
            || value & Cr0::PG == 0 && self.is_64_bit();
        if is_bad {
            return Err(self.gp());
        }
        let value = value & CR0_ALL | Cr0::ET;
        let starts_paging = value & !old & Cr0::PG != 0;
        if starts_paging && self.sys.efer & Efer::LME != 0 {
            let code_is_long = self.seg[Seg::CS].access & Access::L != 0;
            let tss16 = self.sys.tr.access & 0xf == x86::SystemType::TSS16_BUSY;
            if self.sys.cr4 & Cr4::PAE == 0 || code_is_long || tss16 {
                return Err(self.gp());
            }
        }
        let long = self.sys.efer & Efer::LME != 0;
        let touches_pdptes = (old ^ value) & (Cr0::PG | Cr0::CD | Cr0::NW) != 0;
        if value & Cr0::PG != 0 && !long && touches_pdptes {
            self.load_pdptes(env, self.sys.cr3)?;
        }
        self.sys.cr0 = value;
        if long {
            let active = if value & Cr0::PG != 0 { Efer::LMA } else { 0 };
            self.sys.efer = self.sys.efer & !Efer::LMA | active;
        }
        if (old ^ value) & CR0_PAGING != 0 {
            self.flush_tlb();
        }
        if old & Cr0::PE != 0 && value & Cr0::PE == 0 {
            self.cpl = 0;
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to CR3. It drops no translation: see `tlb`.
    pub(crate) fn write_cr3(&mut self, env: &mut Env<'_>, value: u64) -> Result<(), Fault> {
        if self.is_long_mode() {
            if value & !CR3_LONG != 0 {
                return Err(self.gp());
            }
        } else if self.sys.cr0 & Cr0::PG != 0 {
            self.load_pdptes(env, value)?;
        }
        self.sys.cr3 = value;
        if self.is_long_mode() {
            self.select_address_space();
        } else {
            // With PAE the same CR3 may now mean other tables.
            self.flush_tlb();
            self.tlb.take_over_bank(value);
        }
        Ok(())
    }

    /// Loads the four entries that PAE paging keeps, if it is PAE paging.
    fn load_pdptes(&mut self, env: &mut Env<'_>, cr3: u64) -> Result<(), Fault> {
        if self.sys.cr4 & Cr4::PAE == 0 {
            return Ok(());
        }
        let mut pdptes = [0u64; 4];
        for (n, pdpte) in pdptes.iter_mut().enumerate() {
            let at = base::Gpa((cr3 & 0xffff_ffe0) + 8 * n as u64);
            *pdpte = env.mem.read_obj(at).unwrap_or(0);
            // Bits 1, 2, 5 to 8 and those above the address are reserved.
            let reserved = 0x1e6 | !((1 << cpuid::PHYSICAL_ADDRESS_BITS) - 1);
            if *pdpte & 1 != 0 && *pdpte & reserved != 0 {
                return Err(self.gp());
            }
        }
        self.sys.pdpte = pdptes;
        Ok(())
    }

    pub(crate) fn write_cr4(&mut self, env: &mut Env<'_>, value: u64) -> Result<(), Fault> {
        let old = self.sys.cr4;
        if value & !CR4_ALL != 0 || self.is_long_mode() && value & Cr4::PAE == 0 {
            return Err(self.gp());
        }
        self.sys.cr4 = value;
        let paging = self.sys.cr0 & Cr0::PG != 0;
        let touches_pdptes = (old ^ value) & (Cr4::PAE | Cr4::PSE | Cr4::PGE | Cr4::SMEP) != 0;
        if paging && !self.is_long_mode() && touches_pdptes {
            let loaded = self.load_pdptes(env, self.sys.cr3);
            if loaded.is_err() {
                self.sys.cr4 = old;
                return loaded;
            }
        }
        if (old ^ value) & CR4_PAGING != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// Raises #DB if DR7.GD is set, #UD for DR4 and DR5 with CR4.DE, #GP above CPL 0.
    pub(crate) fn check_debug_register(&mut self, number: u8) -> Result<u8, Fault> {
        let number = match number {
            4 | 5 if self.sys.cr4 & Cr4::DE != 0 => return Err(self.ud()),
            4 => 6,
            5 => 7,
            _ => number,
        };
        if self.cpl != 0 {
            return Err(self.gp());
        }
        if self.sys.dr7 & Dr7::GD != 0 {
            self.sys.dr6 |= Dr6::BD;
            self.sys.dr7 &= !Dr7::GD;
            return Err(self.fault(Vector::DB));
        }
        Ok(number)
    }

    pub(crate) fn write_debug_register(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        if self.is_64_bit() && number >= 6 && value >> 32 != 0 {
            return Err(self.gp());
        }
        match number {
            0..=3 => self.sys.dr[usize::from(number)] = value,
            6 => self.sys.dr6 = value & 0xe00f | Dr6::FIXED,
            _ => self.sys.dr7 = value & 0xffff_2bff | Dr7::FIXED,
        }
        self.attention = true;
        self.update_view();
        Ok(())
    }

    /// The time stamp counter.
    pub(crate) fn tsc(&mut self, env: &mut Env<'_>) -> u64 {
        self.tsc_at(env, self.now())
    }

    pub(crate) fn tsc_at(&self, env: &mut Env<'_>, now: Icount) -> u64 {
        env.bus.guest_ns(now).wrapping_add(self.sys.tsc_offset)
    }

    fn set_tsc_offset(&mut self, env: &mut Env<'_>, offset: u64) {
        self.sys.tsc_offset = offset;
        env.bus.set_tsc_offset(self.now(), offset);
        self.after_bus(env);
    }

    /// RDMSR. #GP(0) for a register that does not exist.
    pub(crate) fn read_msr(&mut self, env: &mut Env<'_>, number: u32) -> Result<u64, Fault> {
        let value = match number {
            msr::IA32_TSC => self.tsc(env),
            msr::IA32_TSC_ADJUST => self.sys.tsc_adjust,
            msr::IA32_EFER => self.sys.efer,
            msr::IA32_FS_BASE => self.seg[Seg::FS].base,
            msr::IA32_GS_BASE => self.seg[Seg::GS].base,
            msr::IA32_ARCH_CAPABILITIES => cpuid::ARCH_CAPABILITIES,
            msr::IA32_PLATFORM_ID
            | msr::IA32_BIOS_SIGN_ID
            | msr::IA32_MCG_CAP
            | msr::IA32_FEATURE_CONTROL => fixed_msr(number),
            msr::IA32_MTRRCAP => MTRRCAP,
            _ if is_board_msr(number) => {
                let value = env.bus.msr_read(self.now(), number);
                self.after_bus(env);
                return value.ok_or_else(|| self.gp());
            }
            _ => match stored_msr(&mut self.sys, number) {
                Some((value, _)) => *value,
                None => return Err(self.gp()),
            },
        };
        Ok(value)
    }

    /// WRMSR. #GP(0) for a register or a value that cannot be.
    pub(crate) fn write_msr(
        &mut self,
        env: &mut Env<'_>,
        number: u32,
        value: u64,
    ) -> Result<(), Fault> {
        match number {
            msr::IA32_TSC => {
                let delta = value.wrapping_sub(self.tsc(env));
                self.sys.tsc_adjust = self.sys.tsc_adjust.wrapping_add(delta);
                self.set_tsc_offset(env, self.sys.tsc_offset.wrapping_add(delta));
            }
            msr::IA32_TSC_ADJUST => {
                let delta = value.wrapping_sub(self.sys.tsc_adjust);
                self.sys.tsc_adjust = value;
                self.set_tsc_offset(env, self.sys.tsc_offset.wrapping_add(delta));
            }
            msr::IA32_EFER => self.write_efer(value)?,
            msr::IA32_FS_BASE | msr::IA32_GS_BASE => {
                if !is_canonical(value) {
                    return Err(self.gp());
                }
                let index = if number == msr::IA32_FS_BASE { Seg::FS } else { Seg::GS };
                self.set_segment_base(index, value);
            }
            // Microcode updates are ignored, as a guest's mostly are.
            msr::IA32_BIOS_UPDT_TRIG | msr::IA32_BIOS_SIGN_ID => {}
            _ if is_board_msr(number) => {
                let done = env.bus.msr_write(self.now(), number, value);
                self.after_bus(env);
                return done.ok_or_else(|| self.gp());
            }
            _ => {
                let allowed = match stored_msr(&mut self.sys, number) {
                    Some((place, rule)) if rule.allows(value) => {
                        *place = value;
                        true
                    }
                    _ => false,
                };
                if !allowed {
                    return Err(self.gp());
                }
            }
        }
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Result<(), Fault> {
        let old = self.sys.efer;
        let toggles_long = (old ^ value) & Efer::LME != 0 && self.sys.cr0 & Cr0::PG != 0;
        if value & !EFER_ALL != 0 || toggles_long {
            return Err(self.gp());
        }
        self.sys.efer = value & !Efer::LMA | old & Efer::LMA;
        if (old ^ value) & Efer::NXE != 0 {
            self.flush_tlb();
        }
        Ok(())
    }

    /// Sets the base of FS or GS.
    pub(crate) fn set_segment_base(&mut self, index: usize, base: u64) {
        self.seg[index].base = base;
        self.seg_base[index] = base;
    }
}

/// Eight variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;

fn is_board_msr(number: u32) -> bool {
    matches!(
        number,
        msr::IA32_APIC_BASE | msr::IA32_TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST
    )
}

/// Registers that only read, and always the same.
fn fixed_msr(number: u32) -> u64 {
    match number {
        // Locked, nothing enabled.
        msr::IA32_FEATURE_CONTROL => 1,
        // The revision is in the upper half.
        msr::IA32_BIOS_SIGN_ID => 1 << 32,
        _ => 0,
    }
}

/// What a stored register may hold.
#[derive(Clone, Copy)]
enum Rule {
    Anything,
    Canonical,
    Mask(u64),
    /// Eight fields of a memory type each.
    Types,
}

impl Rule {
    fn allows(self, value: u64) -> bool {
        match self {
            Rule::Anything => true,
            Rule::Canonical => is_canonical(value),
            Rule::Mask(mask) => value & !mask == 0,
            Rule::Types => value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)),
        }
    }
}

/// The registers that are storage: place and rule.
fn stored_msr(sys: &mut SystemState, number: u32) -> Option<(&mut u64, Rule)> {
    const PHYSICAL: u64 = (1 << cpuid::PHYSICAL_ADDRESS_BITS) - 1;
    Some(match number {
        msr::IA32_SYSENTER_CS => (&mut sys.sysenter_cs, Rule::Mask(0xffff_ffff)),
        msr::IA32_SYSENTER_ESP => (&mut sys.sysenter_esp, Rule::Canonical),
        msr::IA32_SYSENTER_EIP => (&mut sys.sysenter_eip, Rule::Canonical),
        msr::IA32_STAR => (&mut sys.star, Rule::Anything),
        msr::IA32_LSTAR => (&mut sys.lstar, Rule::Canonical),
        msr::IA32_CSTAR => (&mut sys.cstar, Rule::Canonical),
        msr::IA32_FMASK => (&mut sys.fmask, Rule::Mask(0xffff_ffff)),
        msr::IA32_KERNEL_GS_BASE => (&mut sys.kernel_gs_base, Rule::Canonical),
        msr::IA32_TSC_AUX => (&mut sys.tsc_aux, Rule::Mask(0xffff_ffff)),
        msr::IA32_PAT => (&mut sys.pat, Rule::Types),
        msr::IA32_MISC_ENABLE => (&mut sys.misc_enable, Rule::Mask(MISC_ENABLE)),
        msr::IA32_MCG_STATUS => (&mut sys.mcg_status, Rule::Mask(0)),
        msr::IA32_MTRR_DEF_TYPE => (&mut sys.mtrrs.def_type, Rule::Mask(0xcff)),
        msr::IA32_MTRR_PHYSBASE0..=msr::IA32_MTRR_PHYSMASK7 => {
            let n = number - msr::IA32_MTRR_PHYSBASE0;
            let low = if n & 1 == 0 { 0xff } else { 0x800 };
            (&mut sys.mtrrs.variable[n as usize], Rule::Mask(PHYSICAL & !0xfff | low))
        }
        _ => (fixed_mtrr(&mut sys.mtrrs, number)?, Rule::Types),
    })
}

fn fixed_mtrr(mtrrs: &mut Mtrrs, number: u32) -> Option<&mut u64> {
    let n = match number {
        msr::IA32_MTRR_FIX64K_00000 => 0,
        msr::IA32_MTRR_FIX16K_80000 => 1,
        msr::IA32_MTRR_FIX16K_A0000 => 2,
        msr::IA32_MTRR_FIX4K_C0000..=msr::IA32_MTRR_FIX4K_F8000 => {
            number - msr::IA32_MTRR_FIX4K_C0000 + 3
        }
        _ => return None,
    };
    Some(&mut mtrrs.fixed[n as usize])
}
