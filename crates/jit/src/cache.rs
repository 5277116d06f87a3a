//! Executable memory: one memfd mapped twice, once to write and once to run, so that no page is ever
//! both writable and executable. And large tables, which take memory only as they are used.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

const PAGE_BYTES: usize = 4096;
/// A huge page of the host.
pub(crate) const HUGE_BYTES: usize = 2 << 20;

/// A code cache of fixed size.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    write: Area,
    run: Area,
    len: usize,
    /// So much from the start consists of huge pages, as long as the host gives any.
    ready: usize,
    gives_huge_pages: bool,
}

/// A mapping that begins where a huge page can.
#[derive(Debug)]
struct Area {
    base: NonNull<u8>,
    /// What was mapped around it.
    reserved: (NonNull<u8>, usize),
}

// SAFETY: both mappings are owned by this value alone, and moving it moves every access with it.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    pub(crate) fn new(len: usize) -> io::Result<CodeMemory> {
        // SAFETY: the name is a C string; the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"lockstep-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let result = CodeMemory::map_both(fd, len);
        // SAFETY: the descriptor is ours and is not used again; the mappings keep the file.
        unsafe { libc::close(fd) };
        result
    }

    fn map_both(fd: i32, len: usize) -> io::Result<CodeMemory> {
        // SAFETY: a descriptor of ours and a length.
        if unsafe { libc::ftruncate(fd, len as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let write = Area::new(Some(fd), len, libc::PROT_READ | libc::PROT_WRITE)?;
        let run = Area::new(Some(fd), len, libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(CodeMemory { write, run, len, ready: 0, gives_huge_pages: true })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address at which the code runs.
    pub(crate) fn base(&self) -> u64 {
        self.run.base.as_ptr() as u64
    }

    /// Asks for huge pages for what is about to be written for the first time: translations are many and short, and
    /// jump to each other. A kernel that has none (before Linux 6.1, or where memory is short) refuses, and is not asked
    /// again; nothing depends on it.
    fn prepare(&mut self, end: usize) {
        while self.gives_huge_pages && self.ready < end {
            let len = HUGE_BYTES.min(self.len - self.ready);
            for area in [&self.write, &self.run] {
                // SAFETY: inside both mappings. A page has to be there already for the kernel to begin with; reading
                // gives it one. The advice does not change what the file holds.
                let result = unsafe {
                    let at = area.base.add(self.ready);
                    at.as_ptr().read_volatile();
                    libc::madvise(at.as_ptr().cast(), len, libc::MADV_COLLAPSE)
                };
                self.gives_huge_pages &= result == 0;
            }
            self.ready += len;
        }
    }

    /// Writes code at an offset. It may have run before at its other address: x86 CPUs compare stores with
    /// what they fetch by physical address, so the next jump there sees it.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "code beyond its cache");
        self.prepare(offset + bytes.len());
        // SAFETY: the assertion showed that the target lies inside the mapping, and `&mut self` excludes
        // every other writer; the source is a Rust slice elsewhere.
        unsafe {
            self.write
                .base
                .add(offset)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
    }
}

/// A page that nobody can access, and a linear address for it that no guest will use: one of 2^50 that are not canonical,
/// chosen at random. A guest that guessed it would end this process, and nothing worse.
#[derive(Debug)]
pub(crate) struct Nowhere {
    host: NonNull<u8>,
    linear: u64,
}

// SAFETY: nothing is ever read or written through the pointer.
unsafe impl Send for Nowhere {}

impl Nowhere {
    pub(crate) fn new() -> io::Result<Nowhere> {
        let mut random = [0; 8];
        // SAFETY: the buffer is ours, and its length is given.
        let got = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
        if got != random.len() as isize {
            return Err(io::Error::last_os_error());
        }
        let linear = 1 << 62 | u64::from_le_bytes(random) & 0x3fff_ffff_ffff_f000;
        Ok(Nowhere { host: reserve(PAGE_BYTES)?, linear })
    }

    /// Its linear and its host address.
    pub(crate) fn page(&self) -> (u64, u64) {
        (self.linear, self.host.as_ptr() as u64)
    }
}

impl Drop for Nowhere {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; translated code, which knows the address, is not run any more.
        unsafe { libc::munmap(self.host.as_ptr().cast(), PAGE_BYTES) };
    }
}

/// Reserves addresses at which nobody can access anything.
fn reserve(len: usize) -> io::Result<NonNull<u8>> {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, kind, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// A table that is all zeros at first.
pub(crate) struct Zeroed<T> {
    area: Area,
    count: usize,
    _holds: PhantomData<T>,
}

// SAFETY: the mapping is owned by this value alone.
unsafe impl<T: Send> Send for Zeroed<T> {}

impl<T: Copy> Zeroed<T> {
    /// # Safety
    /// Zeros have to be a value of the type.
    pub(crate) unsafe fn new(count: usize) -> io::Result<Zeroed<T>> {
        const { assert!(align_of::<T>() <= HUGE_BYTES) };
        let len = count * size_of::<T>();
        let area = Area::new(None, len, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: advice on a mapping of ours. A kernel without huge pages refuses, and nothing depends on it.
        unsafe { libc::madvise(area.base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(Zeroed { area, count, _holds: PhantomData })
    }

    pub(crate) fn get(&self) -> &[T] {
        // SAFETY: so many lie in the mapping, which is aligned for them, and every bit pattern there is zero or was
        // written as one of them. Translated code reads them, and only writes elsewhere.
        unsafe { std::slice::from_raw_parts(self.area.base.as_ptr().cast(), self.count) }
    }

    pub(crate) fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.area.base.as_ptr().cast(), self.count) }
    }
}

impl Area {
    /// Maps a file from its start, or memory of its own if there is none.
    fn new(fd: Option<i32>, len: usize, protection: i32) -> io::Result<Area> {
        let around = len + HUGE_BYTES;
        let reserved = reserve(around)?;
        let skip = reserved.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: less than a huge page from the start, which was added to the length.
        let base = unsafe { reserved.add(skip) };
        let area = Area { base, reserved: (reserved, around) };
        // SAFETY: a part of the area that was reserved above and that nobody else knows.
        let mapped = unsafe {
            let kind = match fd {
                Some(_) => libc::MAP_SHARED,
                None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            };
            let kind = kind | libc::MAP_FIXED;
            libc::mmap(base.as_ptr().cast(), len, protection, kind, fd.unwrap_or(-1), 0)
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(area) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: mapped in `new` with this length, and nothing can reach it after the drop.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}
