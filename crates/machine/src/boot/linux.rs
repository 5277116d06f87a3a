//! Linux bzImage by the 64-bit boot protocol (`Documentation/arch/x86/boot.rst`, version 2.12 and
//! up). Offsets are those of the setup header and of `struct boot_params` (the zero page).

use base::Gpa;
use mem::GuestMem;

use super::{
    BoardTables, BootError, BootPayload, EntryPoint, layout, memory_map, place_high, put,
    put_cmdline, u16_at, u32_at, u64_at,
};

const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_LEN: usize = 0x201;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const HEADER_START: usize = 0x1f1;

const ZERO_PAGE_RSDP: usize = 0x070;
const ZERO_PAGE_E820_COUNT: usize = 0x1e8;
const ZERO_PAGE_E820: usize = 0x2d0;

const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
const SETUP_RNG_SEED: u32 = 9;
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn is_bzimage(kernel: &[u8]) -> bool {
    u16_at(kernel, BOOT_FLAG) == Some(0xaa55) && u32_at(kernel, HEADER) == Some(MAGIC)
}

pub(super) fn load(
    mem: &mut GuestMem,
    payload: &BootPayload,
    tables: &BoardTables,
    seed: &[u8; 32],
) -> Result<EntryPoint, BootError> {
    let kernel = &payload.kernel;
    let short =
        |what, needed: usize| BootError::Short { what, needed: needed as u64, len: kernel.len() };
    if kernel.len() < INIT_SIZE + 4 {
        return Err(short("the setup header", INIT_SIZE + 4));
    }
    let version = u16_at(kernel, VERSION).unwrap_or(0);
    let is_64_bit = u16_at(kernel, XLOADFLAGS).unwrap_or(0) & XLF_KERNEL_64 != 0;
    if version < 0x20c || !is_64_bit {
        let why = format!("boot protocol {:#x} without a 64-bit entry", version);
        return Err(BootError::Bad { what: "setup header", why });
    }
    let setup_sects = match kernel[SETUP_SECTS] {
        0 => 4,
        sects => usize::from(sects),
    };
    let setup_len = (setup_sects + 1) * 512;
    // `syssize` counts what follows the setup in paragraphs of 16 bytes.
    let system_len = u32_at(kernel, 0x1f4).unwrap_or(0) as usize * 16;
    if kernel.len() < setup_len + system_len || system_len == 0 {
        return Err(short("the protected-mode kernel", setup_len + system_len.max(1)));
    }

    let load_at = u64_at(kernel, PREF_ADDRESS).unwrap_or(0);
    let init_size = u64::from(u32_at(kernel, INIT_SIZE).unwrap_or(0));
    let low_end = mem.regions()[0].1;
    let runs_to = load_at.checked_add(init_size.max(system_len as u64));
    if load_at < layout::FIRMWARE_END || runs_to.is_none_or(|end| end > low_end) {
        return Err(BootError::DoesNotFit { what: "kernel", gpa: Gpa(load_at), bytes: init_size });
    }
    put(mem, "kernel", load_at, &kernel[setup_len..])?;

    let cmdline_max = u32_at(kernel, CMDLINE_SIZE).unwrap_or(255) as usize;
    put_cmdline(mem, &payload.cmdline, cmdline_max)?;

    let mut zero_page = [0u8; 4096];
    let header_end = (HEADER + usize::from(kernel[HEADER_LEN])).clamp(INIT_SIZE + 4, 0x290);
    let header = kernel.get(HEADER_START..header_end);
    let header = header.ok_or_else(|| short("the setup header", header_end))?;
    zero_page[HEADER_START..header_end].copy_from_slice(header);
    zero_page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    set_u32(&mut zero_page, CMD_LINE_PTR, layout::CMDLINE as u32);
    set_u64(&mut zero_page, ZERO_PAGE_RSDP, tables.rsdp.0);
    set_u64(&mut zero_page, SETUP_DATA, layout::SETUP_DATA);

    if let Some(initrd) = &payload.initrd {
        let limit = u64::from(u32_at(kernel, INITRD_ADDR_MAX).unwrap_or(0)) + 1;
        let floor = load_at + init_size;
        let at = place_high(mem, "initrd", initrd.len() as u64, floor, limit)?;
        put(mem, "initrd", at, initrd)?;
        set_u32(&mut zero_page, RAMDISK_IMAGE, at as u32);
        set_u32(&mut zero_page, RAMDISK_SIZE, initrd.len() as u32);
    }

    let map = memory_map(mem);
    zero_page[ZERO_PAGE_E820_COUNT] = map.len() as u8;
    for (index, entry) in map.iter().enumerate() {
        let at = ZERO_PAGE_E820 + index * 20;
        set_u64(&mut zero_page, at, entry.start);
        set_u64(&mut zero_page, at + 8, entry.bytes);
        set_u32(&mut zero_page, at + 16, entry.kind);
    }
    put(mem, "zero page", layout::ZERO_PAGE, &zero_page)?;
    put(mem, "random seed", layout::SETUP_DATA, &rng_seed_node(seed))?;
    put_identity_map(mem)?;
    Ok(EntryPoint::Long { rip: load_at + ENTRY_64_OFFSET, rsi: layout::ZERO_PAGE })
}

/// `struct setup_data` with the seed: next, type, length, data.
fn rng_seed_node(seed: &[u8; 32]) -> Vec<u8> {
    let mut node = 0u64.to_le_bytes().to_vec();
    node.extend(SETUP_RNG_SEED.to_le_bytes());
    node.extend((seed.len() as u32).to_le_bytes());
    node.extend(seed);
    node
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn put_identity_map(mem: &mut GuestMem) -> Result<(), BootError> {
    const PRESENT_WRITE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let table = |index: u64| layout::PAGE_TABLES + index * base::PAGE_SIZE;
    let mut bytes = vec![0u8; 6 * base::PAGE_SIZE as usize];
    let mut set = |page: u64, index: u64, value: u64| {
        set_u64(&mut bytes, (page * base::PAGE_SIZE + index * 8) as usize, value);
    };
    set(0, 0, table(1) | PRESENT_WRITE);
    for gib in 0..4 {
        set(1, gib, table(2 + gib) | PRESENT_WRITE);
        for index in 0..512 {
            set(2 + gib, index, (gib << 30) | (index << 21) | PRESENT_WRITE | LARGE);
        }
    }
    put(mem, "page tables", layout::PAGE_TABLES, &bytes)
}

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn set_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
