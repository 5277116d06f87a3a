//! Multiboot 0.6.96: 32-bit ELF images and images that give their load addresses in the header.

use base::Gpa;
use mem::GuestMem;

use super::{
    BootError, BootPayload, EntryPoint, layout, load_segments, memory_map, place_high, put,
    put_cmdline, u32_at, zero,
};

pub(super) const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header lies in the first 8 KiB, on a multiple of 4.
const SEARCH_BYTES: usize = 8192;
const HAS_ADDRESSES: u32 = 1 << 16;
/// Flag bits 0-15 that a loader has to understand: page-aligned modules, memory information, and
/// video mode (which only asks).
const KNOWN_REQUIREMENTS: u32 = 0b111;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// Offsets from [`layout::MULTIBOOT_INFO`].
const MODULE_LIST: u64 = 0x80;
const LOADER_NAME: u64 = 0xa0;
const MEMORY_MAP: u64 = 0xc0;

/// What the header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where the header lies in the file.
    at: usize,
    flags: u32,
}

pub(super) fn find_header(kernel: &[u8]) -> Option<Header> {
    let end = kernel.len().min(SEARCH_BYTES);
    (0..end).step_by(4).find_map(|at| {
        let (magic, flags) = (u32_at(kernel, at)?, u32_at(kernel, at + 4)?);
        let sum = magic.wrapping_add(flags).wrapping_add(u32_at(kernel, at + 8)?);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { at, flags })
    })
}

pub(super) fn load(
    mem: &mut GuestMem,
    payload: &BootPayload,
    header: &Header,
) -> Result<EntryPoint, BootError> {
    let unknown = header.flags & 0xffff & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        let why = format!("it requires unknown features {unknown:#x}");
        return Err(BootError::Bad { what: "Multiboot header", why });
    }
    let (entry, end) = if header.flags & HAS_ADDRESSES != 0 {
        load_by_addresses(mem, &payload.kernel, header.at)?
    } else {
        load_segments(mem, &payload.kernel)?
    };
    let eip = u32::try_from(entry).map_err(|_| BootError::Bad {
        what: "Multiboot entry",
        why: format!("{entry:#x} lies above 4 GiB"),
    })?;
    put_info(mem, payload, end)?;
    Ok(EntryPoint::Protected { eip, eax: LOADER_MAGIC, ebx: layout::MULTIBOOT_INFO as u32 })
}

/// Loads by the header's own fields (specification section 3.1.3); returns entry and end.
fn load_by_addresses(
    mem: &mut GuestMem,
    kernel: &[u8],
    at: usize,
) -> Result<(u64, u64), BootError> {
    let field = |index: usize| {
        u32_at(kernel, at + 12 + index * 4).map(u64::from).ok_or(BootError::Short {
            what: "the Multiboot header",
            needed: at as u64 + 32,
            len: kernel.len(),
        })
    };
    let (header_addr, load_addr) = (field(0)?, field(1)?);
    let (load_end, bss_end, entry) = (field(2)?, field(3)?, field(4)?);
    let bad = |why: &str| BootError::Bad { what: "Multiboot header", why: why.to_owned() };
    let before_header = header_addr
        .checked_sub(load_addr)
        .ok_or_else(|| bad("its load address lies behind the header"))?;
    let start = (at as u64)
        .checked_sub(before_header)
        .ok_or_else(|| bad("its load address lies before the file"))?;
    let available = kernel.len() as u64 - start;
    let len = match load_end {
        0 => available,
        end => end.checked_sub(load_addr).ok_or_else(|| bad("its end lies before its start"))?,
    };
    if len > available {
        return Err(BootError::Short {
            what: "the Multiboot image",
            needed: start + len,
            len: kernel.len(),
        });
    }
    put(mem, "kernel", load_addr, &kernel[start as usize..(start + len) as usize])?;
    let data_end = load_addr + len;
    let end = bss_end.max(data_end);
    if end > mem.regions()[0].1 {
        let bytes = end - load_addr;
        return Err(BootError::DoesNotFit { what: "kernel", gpa: Gpa(load_addr), bytes });
    }
    zero(mem, data_end, end - data_end);
    Ok((entry, end))
}

/// The Multiboot information structure (section 3.3) and what it points to.
fn put_info(mem: &mut GuestMem, payload: &BootPayload, kernel_end: u64) -> Result<(), BootError> {
    // The first word names the kernel, as loaders that read it from a file pass it.
    let cmdline = format!("kernel {}", payload.cmdline);
    put_cmdline(mem, cmdline.trim_end(), layout::CMDLINE_BYTES_MAX)?;

    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MAP | INFO_LOADER_NAME;
    let mut info = [0u32; 22];
    let low = mem.regions()[0].1;
    info[1] = (layout::EBDA / 1024) as u32;
    info[2] = (low.saturating_sub(layout::FIRMWARE_END) / 1024) as u32;
    info[4] = layout::CMDLINE as u32;
    if let Some(initrd) = &payload.initrd {
        let floor = kernel_end.max(layout::FIRMWARE_END);
        let at = place_high(mem, "boot module", initrd.len() as u64, floor, low)?;
        put(mem, "boot module", at, initrd)?;
        let module = [at as u32, (at + initrd.len() as u64) as u32, layout::CMDLINE as u32, 0];
        put_words(mem, layout::MULTIBOOT_INFO + MODULE_LIST, &module)?;
        flags |= INFO_MODULES;
        info[5] = 1;
        info[6] = (layout::MULTIBOOT_INFO + MODULE_LIST) as u32;
    }
    let map = memory_map(mem);
    for (index, entry) in map.iter().enumerate() {
        let words = [
            20,
            entry.start as u32,
            (entry.start >> 32) as u32,
            entry.bytes as u32,
            (entry.bytes >> 32) as u32,
            entry.kind,
        ];
        put_words(mem, layout::MULTIBOOT_INFO + MEMORY_MAP + index as u64 * 24, &words)?;
    }
    info[11] = map.len() as u32 * 24;
    info[12] = (layout::MULTIBOOT_INFO + MEMORY_MAP) as u32;
    put(mem, "Multiboot information", layout::MULTIBOOT_INFO + LOADER_NAME, b"lockstep\0")?;
    info[16] = (layout::MULTIBOOT_INFO + LOADER_NAME) as u32;
    info[0] = flags;
    put_words(mem, layout::MULTIBOOT_INFO, &info)
}

fn put_words(mem: &mut GuestMem, at: u64, words: &[u32]) -> Result<(), BootError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    put(mem, "Multiboot information", at, &bytes)
}
