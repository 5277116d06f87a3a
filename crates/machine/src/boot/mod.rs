//! Puts a kernel into RAM and says how the CPU enters it. There is no firmware: the loader leaves
//! memory as the kernel's own boot protocol wants it.
//!
//! Kinds, tried in this order: Linux bzImage by the 64-bit boot protocol (kernel.org,
//! `Documentation/arch/x86/boot.rst`), Multiboot 0.6.96, and ELF with a PVH entry note (Xen,
//! `docs/misc/pvh.pandoc`).

mod linux;
mod multiboot;
mod pvh;

use base::Gpa;
use mem::{GuestMem, HIGH_RAM_START};
use serde::{Deserialize, Serialize};

/// What is booted. Part of the start state, so that a reset finds it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPayload {
    /// The kernel file's bytes.
    #[serde(with = "serde_bytes")]
    pub kernel: Vec<u8>,
    /// The initial RAM disk or boot module, if there is one.
    #[serde(with = "serde_bytes")]
    pub initrd: Option<Vec<u8>>,
    /// The kernel command line, without NUL.
    pub cmdline: String,
}

impl BootPayload {
    /// A Multiboot kernel at 1 MiB that is nothing but `code`, entered in 32-bit protected mode; for tests.
    #[must_use]
    pub fn for_test(code: &[u8]) -> BootPayload {
        const LOAD_AT: u32 = 0x10_0000;
        const HAS_ADDRESSES: u32 = 1 << 16;
        let start = LOAD_AT + 32;
        let end = start + code.len() as u32;
        let magic = multiboot::HEADER_MAGIC;
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(HAS_ADDRESSES);
        let header = [magic, HAS_ADDRESSES, checksum, LOAD_AT, LOAD_AT, end, end, start];
        let mut kernel: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        kernel.extend(code);
        BootPayload { kernel, initrd: None, cmdline: String::new() }
    }
}

/// Tables that the board hands to the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct BoardTables {
    /// Where the ACPI root pointer (RSDP) lies.
    pub(crate) rsdp: Gpa,
    /// Bytes for RAM, the RSDP among them.
    pub(crate) pieces: Vec<(Gpa, Vec<u8>)>,
}

/// How the CPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryPoint {
    /// 64-bit mode, paging on with the first 4 GiB identity-mapped.
    Long { rip: u64, rsi: u64 },
    /// 32-bit protected mode, paging off, flat segments.
    Protected { eip: u32, eax: u32, ebx: u32 },
}

/// Why a payload cannot be booted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootError {
    /// No boot protocol recognises the file.
    #[error("the kernel is no bzImage, Multiboot or PVH image ({len} bytes)")]
    UnknownKernel {
        /// Its length.
        len: usize,
    },
    /// The file ends before what its header announces.
    #[error("the kernel is cut short: {what} needs {needed} bytes, the file has {len}")]
    Short {
        /// What is missing.
        what: &'static str,
        /// Where it would end.
        needed: u64,
        /// The file's length.
        len: usize,
    },
    /// The header contradicts itself or asks for something that we do not have.
    #[error("the kernel's {what} is not usable: {why}")]
    Bad {
        /// Which part.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// RAM is too small or the place is taken.
    #[error("the {what} does not fit into guest RAM: {bytes} bytes at {gpa}")]
    DoesNotFit {
        /// Which part.
        what: &'static str,
        /// Where it would go.
        gpa: Gpa,
        /// Its size.
        bytes: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len} bytes, the kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The longest allowed.
        max: usize,
    },
}

/// Guest-physical addresses below 1 MiB that the loader uses.
pub(crate) mod layout {
    pub(crate) const GDT: u64 = 0x1000;
    pub(crate) const MULTIBOOT_INFO: u64 = 0x2000;
    pub(crate) const PVH_START_INFO: u64 = 0x6000;
    pub(crate) const ZERO_PAGE: u64 = 0x7000;
    pub(crate) const SETUP_DATA: u64 = 0x8000;
    /// PML4, one PDPT, four page directories.
    pub(crate) const PAGE_TABLES: u64 = 0x9000;
    pub(crate) const STACK_TOP: u64 = 0x1_8000;
    pub(crate) const CMDLINE: u64 = 0x2_0000;
    pub(crate) const CMDLINE_BYTES_MAX: usize = 0x1_0000;
    /// End of conventional memory; the rest of the first 640 KiB is the EBDA.
    pub(crate) const EBDA: u64 = 0x9_fc00;
    /// ACPI tables and what a PC's firmware would hold.
    pub(crate) const FIRMWARE: u64 = 0xe_0000;
    pub(crate) const FIRMWARE_END: u64 = 0x10_0000;
}

/// Selectors of the GDT that the loader leaves at [`layout::GDT`].
pub(crate) mod selector {
    pub(crate) const CODE32: u16 = 0x08;
    pub(crate) const CODE64: u16 = 0x10;
    pub(crate) const DATA: u16 = 0x18;
    pub(crate) const TSS: u16 = 0x20;
}

/// The descriptors, in the order of [`selector`].
pub(crate) const GDT: [u64; 6] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    // A busy 32-bit TSS of 104 bytes at 0, as PVH asks for; its upper half for 64-bit mode.
    0x0000_8b00_0000_0067,
    0,
];

/// A range of the memory map, with the types of ACPI 6.5 section 15 (E820).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: u32,
}

pub(crate) const MAP_RAM: u32 = 1;
pub(crate) const MAP_RESERVED: u32 = 2;

/// The guest's memory map.
pub(crate) fn memory_map(mem: &GuestMem) -> Vec<MapEntry> {
    use layout::{EBDA, FIRMWARE, FIRMWARE_END};
    let [(_, low), (_, high)] = mem.regions();
    let mut map = vec![
        MapEntry { start: 0, bytes: EBDA, kind: MAP_RAM },
        MapEntry { start: EBDA, bytes: 0xa_0000 - EBDA, kind: MAP_RESERVED },
        MapEntry { start: FIRMWARE, bytes: FIRMWARE_END - FIRMWARE, kind: MAP_RESERVED },
    ];
    if low > FIRMWARE_END {
        map.push(MapEntry { start: FIRMWARE_END, bytes: low - FIRMWARE_END, kind: MAP_RAM });
    }
    if high > 0 {
        map.push(MapEntry { start: HIGH_RAM_START, bytes: high, kind: MAP_RAM });
    }
    map
}

/// Loads `payload` and the board's tables into RAM. `seed` is fresh for every boot.
pub(crate) fn load(
    mem: &mut GuestMem,
    payload: &BootPayload,
    tables: &BoardTables,
    seed: &[u8; 32],
) -> Result<EntryPoint, BootError> {
    for (gpa, bytes) in &tables.pieces {
        put(mem, "ACPI table", gpa.0, bytes)?;
    }
    let gdt: Vec<u8> = GDT.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect();
    put(mem, "GDT", layout::GDT, &gdt)?;

    let kernel = &payload.kernel;
    if linux::is_bzimage(kernel) {
        linux::load(mem, payload, tables, seed)
    } else if let Some(header) = multiboot::find_header(kernel) {
        multiboot::load(mem, payload, &header)
    } else if let Some(entry) = pvh::find_entry(kernel)? {
        pvh::load(mem, payload, tables, entry)
    } else {
        Err(BootError::UnknownKernel { len: kernel.len() })
    }
}

/// Writes `bytes` to RAM.
fn put(mem: &mut GuestMem, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), BootError> {
    let does_not_fit = |_| BootError::DoesNotFit { what, gpa: Gpa(at), bytes: bytes.len() as u64 };
    mem.write(Gpa(at), bytes).map_err(does_not_fit)
}

/// Writes the command line and a NUL; `max` is the kernel's own bound.
fn put_cmdline(mem: &mut GuestMem, cmdline: &str, max: usize) -> Result<(), BootError> {
    let max = max.min(layout::CMDLINE_BYTES_MAX - 1);
    if cmdline.len() > max {
        return Err(BootError::CommandLine { len: cmdline.len(), max });
    }
    if cmdline.contains('\0') {
        let why = "it contains a NUL".to_owned();
        return Err(BootError::Bad { what: "command line", why });
    }
    put(mem, "command line", layout::CMDLINE, cmdline.as_bytes())?;
    put(mem, "command line", layout::CMDLINE + cmdline.len() as u64, &[0])
}

/// The highest page-aligned place for `bytes` bytes below `limit`, above `floor`, in low RAM.
fn place_high(
    mem: &GuestMem,
    what: &'static str,
    bytes: u64,
    floor: u64,
    limit: u64,
) -> Result<u64, BootError> {
    let end = mem.regions()[0].1.min(limit);
    let at = end.checked_sub(bytes).map(|at| at & !(base::PAGE_SIZE - 1));
    match at {
        Some(at) if at >= floor => Ok(at),
        _ => Err(BootError::DoesNotFit { what, gpa: Gpa(floor), bytes }),
    }
}

/// Copies the loadable segments of an ELF file to their physical addresses and returns where the
/// highest one ends.
fn load_segments(mem: &mut GuestMem, kernel: &[u8]) -> Result<(u64, u64), BootError> {
    let bad =
        |error: elf::ParseError| BootError::Bad { what: "ELF header", why: error.to_string() };
    let file = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(kernel).map_err(bad)?;
    let segments = file.segments().ok_or(BootError::Bad {
        what: "ELF header",
        why: "it has no program headers".to_owned(),
    })?;
    let mut end = 0;
    for segment in segments.iter().filter(|segment| segment.p_type == elf::abi::PT_LOAD) {
        let data = file.segment_data(&segment).map_err(|_| BootError::Short {
            what: "an ELF segment",
            needed: segment.p_offset.saturating_add(segment.p_filesz),
            len: kernel.len(),
        })?;
        let does_not_fit = BootError::DoesNotFit {
            what: "kernel",
            gpa: Gpa(segment.p_paddr),
            bytes: segment.p_memsz,
        };
        let segment_end = segment.p_paddr.checked_add(segment.p_memsz);
        let fits = segment_end.is_some_and(|end| end <= mem.regions()[0].1);
        if !fits || segment.p_filesz > segment.p_memsz {
            return Err(does_not_fit);
        }
        put(mem, "kernel", segment.p_paddr, data)?;
        zero(mem, segment.p_paddr + segment.p_filesz, segment.p_memsz - segment.p_filesz);
        end = end.max(segment.p_paddr + segment.p_memsz);
    }
    Ok((file.ehdr.e_entry, end))
}

/// Zeroes a range that is known to be RAM, touching only pages that are not zero already.
fn zero(mem: &mut GuestMem, start: u64, bytes: u64) {
    let mut at = start;
    let end = start + bytes;
    while at < end {
        let next = (at / base::PAGE_SIZE + 1) * base::PAGE_SIZE;
        let len = (next.min(end) - at) as usize;
        let offset = mem.offset_of(Gpa(at)).expect("the caller checked that this is RAM");
        if mem.marks().is_touched(offset.page()) {
            let zeros = [0u8; base::PAGE_SIZE as usize];
            mem.write(Gpa(at), &zeros[..len]).expect("the caller checked that this is RAM");
        }
        at = next;
    }
}

/// Reads a little-endian number of the file; `None` past its end.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
