//! ELF kernels with a PVH entry (Xen `docs/misc/pvh.pandoc`, `public/arch-x86/hvm/start_info.h`).

use mem::GuestMem;

use super::{
    BoardTables, BootError, BootPayload, EntryPoint, layout, load_segments, memory_map, place_high,
    put, put_cmdline, u32_at, u64_at,
};

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u64 = 18;
const START_MAGIC: u32 = 0x336e_c578;

/// Offsets from [`layout::PVH_START_INFO`].
const MODULE_LIST: u64 = 0x40;
const MEMORY_MAP: u64 = 0x80;

/// The PVH entry point of an ELF file; `None` if it is no ELF file or has none.
pub(super) fn find_entry(kernel: &[u8]) -> Result<Option<u32>, BootError> {
    if !kernel.starts_with(&elf::abi::ELFMAGIC) {
        return Ok(None);
    }
    let bad =
        |error: elf::ParseError| BootError::Bad { what: "ELF header", why: error.to_string() };
    let file = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(kernel).map_err(bad)?;
    let Some(segments) = file.segments() else { return Ok(None) };
    for segment in segments.iter().filter(|segment| segment.p_type == elf::abi::PT_NOTE) {
        for note in file.segment_data_as_notes(&segment).map_err(bad)? {
            let elf::note::Note::Unknown(note) = note else { continue };
            if note.n_type != PHYS32_ENTRY || !matches!(note.name_str(), Ok("Xen")) {
                continue;
            }
            // A 64-bit kernel writes the address with 8 bytes, a 32-bit one with 4.
            let address = u64_at(note.desc, 0).or(u32_at(note.desc, 0).map(u64::from));
            let entry = address.and_then(|address| u32::try_from(address).ok());
            let why = "its address is missing or above 4 GiB".to_owned();
            return entry.map(Some).ok_or(BootError::Bad { what: "PVH entry note", why });
        }
    }
    Ok(None)
}

pub(super) fn load(
    mem: &mut GuestMem,
    payload: &BootPayload,
    tables: &BoardTables,
    entry: u32,
) -> Result<EntryPoint, BootError> {
    let (_, end) = load_segments(mem, &payload.kernel)?;
    put_cmdline(mem, &payload.cmdline, layout::CMDLINE_BYTES_MAX)?;

    let mut module_count = 0u32;
    if let Some(initrd) = &payload.initrd {
        let low = mem.regions()[0].1;
        let at = place_high(mem, "initrd", initrd.len() as u64, end, low)?;
        put(mem, "initrd", at, initrd)?;
        let module = [at, initrd.len() as u64, 0, 0];
        let bytes: Vec<u8> = module.iter().flat_map(|field| field.to_le_bytes()).collect();
        put(mem, "PVH module list", layout::PVH_START_INFO + MODULE_LIST, &bytes)?;
        module_count = 1;
    }

    let map = memory_map(mem);
    let mut map_bytes = Vec::new();
    for range in &map {
        map_bytes.extend(range.start.to_le_bytes());
        map_bytes.extend(range.bytes.to_le_bytes());
        map_bytes.extend(range.kind.to_le_bytes());
        map_bytes.extend(0u32.to_le_bytes());
    }
    put(mem, "PVH memory map", layout::PVH_START_INFO + MEMORY_MAP, &map_bytes)?;

    let mut info = Vec::new();
    info.extend(START_MAGIC.to_le_bytes());
    info.extend(1u32.to_le_bytes());
    info.extend(0u32.to_le_bytes());
    info.extend(module_count.to_le_bytes());
    info.extend((layout::PVH_START_INFO + MODULE_LIST).to_le_bytes());
    info.extend(layout::CMDLINE.to_le_bytes());
    info.extend(tables.rsdp.0.to_le_bytes());
    info.extend((layout::PVH_START_INFO + MEMORY_MAP).to_le_bytes());
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    put(mem, "PVH start information", layout::PVH_START_INFO, &info)?;
    Ok(EntryPoint::Protected { eip: entry, eax: 0, ebx: layout::PVH_START_INFO as u32 })
}
