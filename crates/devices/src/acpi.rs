//! The ACPI tables of the board (ACPI 6.4): RSDP, RSDT, XSDT, FADT, FACS, MADT and DSDT.
//!
//! The hardware is not "reduced": there is a PM timer, an SCI and a fixed power button. There is no
//! 8042, VGA, HPET or PCI for the operating system to find. Processors appear in the MADT only.

use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml::Scope};
use base::Gpa;

use crate::layout::{IRQ_COM1, IRQ_RTC, IRQ_SCI, PORT_COM1, VIRTIO_WINDOW_BYTES, virtio_slot};
use crate::pm::{PORT_PM_TIMER, PORT_PM1A_CONTROL, PORT_PM1A_EVENT, SLEEP_TYPE_S5};
use crate::reset::{PORT_RESET, RESET_VALUE};
use crate::{apic, ioapic};

/// What the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Where the tables go: 16-byte aligned, and between 0xe0000 and 0xfffff if the guest is to
    /// find the RSDP by searching.
    pub base: Gpa,
    /// How many virtio devices there are, in slots 0 and up.
    pub virtio_count: usize,
}

/// The tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where the RSDP is.
    pub rsdp: Gpa,
    /// What to write where.
    pub pieces: Vec<(Gpa, Vec<u8>)>,
}

/// Makes the tables.
///
/// # Panics
/// If there are more virtio devices than slots, or the tables lie above 4 GiB: the board decides both.
#[must_use]
pub fn build(config: AcpiConfig) -> AcpiTables {
    let mut placed = Placed { next: config.base.0, pieces: Vec::new() };
    // The RSDP comes first, to be found where the tables are; its content comes last.
    let rsdp = placed.put(vec![0; RSDP_LEN]);
    let facs = placed.put(facs());
    let dsdt = placed.put(dsdt(config.virtio_count));
    let fadt = placed.put(fadt(dsdt, facs));
    let madt = placed.put(madt());
    let rsdt = placed.put(root_table(*b"RSDT", &[fadt, madt], 4));
    let xsdt = placed.put(root_table(*b"XSDT", &[fadt, madt], 8));
    placed.pieces[0].1 = rsdp_bytes(rsdt, xsdt);
    AcpiTables { rsdp: Gpa(u64::from(rsdp)), pieces: placed.pieces }
}

/// Tables one behind the other.
struct Placed {
    next: u64,
    pieces: Vec<(Gpa, Vec<u8>)>,
}

impl Placed {
    /// Places a table on a boundary of 64 bytes, as the FACS wants it.
    fn put(&mut self, bytes: Vec<u8>) -> u32 {
        let at = self.next.next_multiple_of(64);
        self.next = at + bytes.len() as u64;
        self.pieces.push((Gpa(at), bytes));
        u32::try_from(at).expect("the tables lie below 4 GiB")
    }
}

fn rsdp_bytes(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RSDP_LEN);
    bytes.extend(b"RSD PTR ");
    bytes.push(0);
    bytes.extend(OEM_ID);
    bytes.push(2);
    bytes.extend(rsdt.to_le_bytes());
    bytes.extend((RSDP_LEN as u32).to_le_bytes());
    bytes.extend(u64::from(xsdt).to_le_bytes());
    bytes.resize(RSDP_LEN, 0);
    // The first checksum covers what version 1 had.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn root_table(signature: [u8; 4], entries: &[u32], entry_len: usize) -> Vec<u8> {
    let mut sdt = table(signature, 1);
    for entry in entries {
        sdt.append_slice(&u64::from(*entry).to_le_bytes()[..entry_len]);
    }
    sdt.as_slice().to_vec()
}

fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4..8].copy_from_slice(&64u32.to_le_bytes());
    bytes[32] = 2;
    bytes
}

fn fadt(dsdt: u32, facs: u32) -> Vec<u8> {
    let io = |port: u16, bits: u8, access: AccessSize| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed sleep button, no fixed wake by the clock.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(IRQ_SCI).into();
    fadt.pm1a_evt_blk = u32::from(PORT_PM1A_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(PORT_PM1A_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(PORT_PM_TIMER).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    // Latencies beyond what the specification allows mean that C2 and C3 are not there.
    fadt.p_lvl2_lat = 0xffff.into();
    fadt.p_lvl3_lat = 0xffff.into();
    fadt.century = 0x32;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_MSI).into();
    fadt.reset_reg = io(PORT_RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.x_pm1a_evt_blk = io(PORT_PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(PORT_PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(PORT_PM_TIMER, 32, AccessSize::DwordAccess);
    bytes_of(&fadt.finalize())
}

fn madt() -> Vec<u8> {
    let mut madt = table(*b"APIC", 5);
    madt.append_slice(&(apic::DEFAULT_BASE as u32).to_le_bytes());
    // The 8259 pair is there too.
    madt.append_slice(&1u32.to_le_bytes());
    // Local APIC: processor 0, APIC 0, enabled.
    madt.append_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    // I/O APIC: number 0, interrupts from 0.
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&(ioapic::BASE as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // ISA line 0 is interrupt 2, as the bus has it; the SCI is level triggered, active high.
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    madt.append_slice(&[2, 10, 0, IRQ_SCI, IRQ_SCI, 0, 0, 0, 0x0d, 0]);
    // LINT1 of every local APIC is NMI.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.as_slice().to_vec()
}

fn dsdt(virtio_count: usize) -> Vec<u8> {
    let mut dsdt = table(*b"DSDT", 2);
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes_of(&Name::new("\\_S5_".into(), &s5)));
    let isa_irq = |irq: u8| Interrupt::new(true, true, false, false, u32::from(irq));
    let ports = |first: u16, len: u8| IO::new(first, first, 1, len);
    let mut devices = isa_device("COM1", "PNP0501", &ports(PORT_COM1, 8), &isa_irq(IRQ_COM1));
    devices.extend(isa_device("RTC_", "PNP0B00", &ports(0x70, 2), &isa_irq(IRQ_RTC)));
    for index in 0..virtio_count {
        devices.extend(virtio_device(index));
    }
    dsdt.append_slice(&Scope::raw("\\_SB_".into(), devices));
    dsdt.as_slice().to_vec()
}

fn isa_device(name: &str, id: &str, ports: &dyn Aml, irq: &dyn Aml) -> Vec<u8> {
    let resources = ResourceTemplate::new(vec![ports, irq]);
    bytes_of(&Device::new(
        Path::new(name),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_STA".into(), &STA_PRESENT),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

fn virtio_device(index: usize) -> Vec<u8> {
    let slot = virtio_slot(index);
    let window = Memory32Fixed::new(true, slot.base as u32, VIRTIO_WINDOW_BYTES as u32);
    let irq = Interrupt::new(true, false, false, true, u32::from(slot.gsi));
    let resources = ResourceTemplate::new(vec![&window, &irq]);
    bytes_of(&Device::new(
        Path::new(&format!("VR{index:02X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            &Name::new("_STA".into(), &STA_PRESENT),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

const OEM_ID: [u8; 6] = *b"LOCKST";
const OEM_TABLE_ID: [u8; 8] = *b"LOCKSTEP";
const OEM_REVISION: u32 = 1;
const RSDP_LEN: usize = 36;
/// Present, enabled, shown, working.
const STA_PRESENT: u8 = 0x0f;
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_MSI: u16 = 1 << 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> AcpiTables {
        build(AcpiConfig { base: Gpa(0xe_0000), virtio_count: 12 })
    }

    fn at(tables: &AcpiTables, address: u64) -> &[u8] {
        &tables.pieces.iter().find(|(gpa, _)| gpa.0 == address).expect("a table is there").1
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn signature(tables: &AcpiTables, address: u64) -> String {
        String::from_utf8_lossy(&at(tables, address)[..4]).into_owned()
    }

    #[test]
    fn the_rsdp_leads_to_every_table_and_all_checksums_hold() {
        let tables = tables();
        let rsdp = at(&tables, 0xe_0000);
        assert_eq!((tables.rsdp, &rsdp[..8]), (Gpa(0xe_0000), &b"RSD PTR "[..]));
        assert_eq!(checksum(&rsdp[..20]), 0);
        assert_eq!(checksum(rsdp), 0);
        let rsdt = at(&tables, u64::from(u32_at(rsdp, 16)));
        let xsdt = at(&tables, u64::from(u32_at(rsdp, 24)));
        for (table, step) in [(rsdt, 4), (xsdt, 8)] {
            let entries: Vec<String> = table[36..]
                .chunks(step)
                .map(|entry| signature(&tables, u64::from(u32_at(entry, 0))))
                .collect();
            assert_eq!(entries, ["FACP", "APIC"]);
        }
        let fadt = at(&tables, u64::from(u32_at(xsdt, 36)));
        assert_eq!(signature(&tables, u64::from(u32_at(fadt, 36))), "FACS");
        assert_eq!(signature(&tables, u64::from(u32_at(fadt, 40))), "DSDT");
        for (_, bytes) in &tables.pieces[2..] {
            assert_eq!((u32_at(bytes, 4) as usize, checksum(bytes)), (bytes.len(), 0));
        }
    }

    #[test]
    fn tables_do_not_overlap_and_fit_below_1_mib() {
        let tables = build(AcpiConfig {
            base: Gpa(0xe_0000),
            virtio_count: crate::layout::VIRTIO_SLOT_COUNT,
        });
        let mut end = 0;
        for (gpa, bytes) in &tables.pieces {
            assert!(gpa.0 >= end && gpa.0.is_multiple_of(64));
            end = gpa.0 + bytes.len() as u64;
        }
        assert!(end < 0xf_0000);
    }

    #[test]
    fn the_fadt_names_the_ports_of_the_fixed_hardware() {
        let tables = tables();
        let fadt = &tables.pieces[3].1;
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        assert_eq!(fadt[46], IRQ_SCI);
        assert_eq!(u32_at(fadt, 48), 0, "no SMI command: ACPI mode from the start");
        assert_eq!([u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)], [0x600, 0x604, 0x608]);
        assert_eq!(fadt[108], 0x32);
        assert_eq!(fadt[109] & 2, 0, "no 8042");
        assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, RESET_VALUE]);
        let flags = u32_at(fadt, 112);
        assert_eq!((flags & 1 << 20, flags & 1 << 10), (0, 1 << 10), "not hardware-reduced");
    }

    #[test]
    fn every_virtio_device_is_declared() {
        let tables = tables();
        let dsdt = &tables.pieces[2].1;
        let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|at| *at == needle).count();
        assert_eq!(count(b"LNRO0005"), 12);
        assert_eq!(count(b"VR0B"), 1);
        assert_eq!(count(&(0xd000_b000u32).to_le_bytes()), 1);
        assert_eq!(count(b"_S5_"), 1);
    }
}
