//! The mapping that holds guest RAM: the only unsafe code of this crate.

use std::io;
use std::ptr::NonNull;

use base::{PAGE_SHIFT, PAGE_SIZE};
use bytemuck::Pod;

/// An anonymous, private, lazily filled mapping of whole pages.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: the mapping is owned by this value alone and reached only through `&self` and `&mut self`,
// so moving it to another thread moves every access with it.
unsafe impl Send for Mapping {}

impl Mapping {
    /// `len` must be at least a page, so that the fast path needs one comparison.
    pub(crate) fn new(len: u64) -> io::Result<Mapping> {
        assert!(len >= PAGE_SIZE, "a mapping is at least a page");
        let host_len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory in use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                host_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Guests touch most of their RAM, so whole huge pages save page faults and the host's TLB. A kernel without
        // them refuses, and nothing depends on it.
        // SAFETY: advice on the mapping made above, which does not change what it holds.
        unsafe { libc::madvise(base, host_len, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }

    pub(crate) fn base(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    #[inline(always)]
    pub(crate) fn load<T: Pod>(&self, offset: u64) -> T {
        self.check_short(offset, size_of::<T>());
        // SAFETY: `check_short` showed that the value lies inside the mapping; `T: Pod` takes any bytes.
        unsafe { self.base.add(offset as usize).cast::<T>().read_unaligned() }
    }

    #[inline(always)]
    pub(crate) fn store<T: Pod>(&mut self, offset: u64, value: T) {
        self.check_short(offset, size_of::<T>());
        // SAFETY: `check_short` showed that the value lies inside the mapping, and `&mut self` excludes
        // every other access.
        unsafe { self.base.add(offset as usize).cast::<T>().write_unaligned(value) }
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        let len = bytes.len();
        // SAFETY: `check` showed that the source lies inside the mapping; `bytes` is a Rust slice
        // that cannot overlap it, because the mapping hands out no `&mut`.
        unsafe {
            self.base.add(offset as usize).copy_to_nonoverlapping(NonNull::from(bytes).cast(), len);
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: `check` showed that the target lies inside the mapping; `&mut self` excludes a
        // `bytes` that borrows from it.
        unsafe {
            self.base
                .add(offset as usize)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
    }

    pub(crate) fn copy_within(&mut self, from: u64, to: u64, len: u64) {
        self.check(from, len as usize);
        self.check(to, len as usize);
        // SAFETY: `check` showed that both ranges lie inside the mapping; `copy_to` allows overlap.
        unsafe {
            self.base.add(from as usize).copy_to(self.base.add(to as usize), len as usize);
        }
    }

    pub(crate) fn fill<T: Pod>(&mut self, offset: u64, value: T, count: u64) {
        let count = count as usize;
        let len = count.checked_mul(size_of::<T>()).unwrap_or_else(|| outside(offset, count));
        self.check(offset, len);
        for index in 0..count {
            // SAFETY: `check` showed that `count` values from `offset` on lie inside the mapping, and
            // `&mut self` excludes every other access.
            unsafe {
                let place = self.base.add(offset as usize).cast::<T>().add(index);
                place.write_unaligned(value);
            }
        }
    }

    pub(crate) fn page(&self, page: u64) -> &[u8; PAGE_SIZE as usize] {
        let offset = page << PAGE_SHIFT;
        self.check(offset, PAGE_SIZE as usize);
        // SAFETY: `check` showed that the page lies inside the mapping, and the borrow of `self`
        // keeps stores out while the reference lives.
        unsafe { self.base.add(offset as usize).cast().as_ref() }
    }

    /// [`Mapping::check`] for what is shorter than a page. No mapping is, so that nothing wraps.
    #[inline(always)]
    fn check_short(&self, offset: u64, len: usize) {
        assert!(len as u64 <= PAGE_SIZE, "a plain object is shorter than a page");
        if offset > self.len.wrapping_sub(len as u64) {
            outside(offset, len);
        }
    }

    #[inline(always)]
    fn check(&self, offset: u64, len: usize) {
        let is_inside = len as u64 <= self.len && offset <= self.len - len as u64;
        if !is_inside {
            outside(offset, len);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and nothing borrows it any more.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len as usize) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

/// Out of line, so that accesses need no stack frame for the message.
#[cold]
#[inline(never)]
fn outside(offset: u64, len: usize) -> ! {
    panic!("RAM access at {offset:#x} for {len} bytes");
}
