//! Executable memory: one memfd mapped twice, once to write and once to run, so that no page is ever
//! both writable and executable.

use std::io;
use std::ptr::NonNull;

const PAGE_BYTES: usize = 4096;

/// A code cache of fixed size.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    write: NonNull<u8>,
    run: NonNull<u8>,
    len: usize,
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
        let write = map(fd, len, libc::PROT_READ | libc::PROT_WRITE)?;
        match map(fd, len, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(run) => Ok(CodeMemory { write, run, len }),
            Err(error) => {
                // SAFETY: the mapping was made above and nobody else knows it.
                unsafe { libc::munmap(write.as_ptr().cast(), len) };
                Err(error)
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address at which the code runs.
    pub(crate) fn base(&self) -> u64 {
        self.run.as_ptr() as u64
    }

    /// Writes code at an offset. It may have run before at its other address: x86 CPUs compare stores with
    /// what they fetch by physical address, so the next jump there sees it.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "code beyond its cache");
        // SAFETY: the assertion showed that the target lies inside the mapping, and `&mut self` excludes
        // every other writer; the source is a Rust slice elsewhere.
        unsafe {
            self.write
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
        Ok(Nowhere { host: map(-1, PAGE_BYTES, libc::PROT_NONE)?, linear })
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

/// Maps a file from its start, or memory of its own if there is none.
fn map(fd: i32, len: usize, protection: i32) -> io::Result<NonNull<u8>> {
    let kind = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, kind, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for mapping in [self.write, self.run] {
            // SAFETY: mapped in `new` with this length, and nothing can reach it after the drop.
            unsafe { libc::munmap(mapping.as_ptr().cast(), self.len) };
        }
    }
}
