//! Guest RAM: one lazily filled mapping, and what has to be known about each of its pages.
//!
//! RAM lies at guest-physical 0 up to 3 GiB; what is left of it follows from 4 GiB on, as on a PC.
//! A [`RamOffset`] is an address inside the mapping; the CPU's TLB holds those, so that a guest
//! access needs one bounds check and no hole arithmetic.
//!
//! Two kinds of store exist. [`GuestMem::write`] and friends take a guest-physical address and keep
//! the page marks true: devices, page walks and boot loaders use them. [`GuestMem::store`] takes an
//! offset and marks nothing: it is the CPU's fast path, legal only on a page that
//! [`GuestMem::is_plain_store_page`] allows.

mod map;
mod pages;

use base::{Gpa, PAGE_SHIFT, PAGE_SIZE};
pub use bytemuck::{Pod, bytes_of, pod_read_unaligned as from_bytes};

use crate::map::Mapping;
pub use crate::pages::{PageMarks, WatchedWrite};

/// Where the RAM below the PCI hole ends: 3 GiB.
pub const LOW_RAM_MAX: u64 = 3 << 30;
/// Where the RAM above the hole starts: 4 GiB.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// The largest guest: 16 GiB.
pub const RAM_BYTES_MAX: u64 = 16 << 30;

/// An address inside RAM, counted from the start of RAM without the hole. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RamOffset(pub u64);

impl RamOffset {
    /// Index of the RAM page that holds this offset.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The size is not one a guest can have.
    #[error("guest RAM of {bytes} bytes: it must be a multiple of 4096 from 1 MiB to 16 GiB")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map {bytes} bytes of guest RAM")]
    Map {
        /// What was asked for.
        bytes: u64,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// An access that touches something other than RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{gpa} is not in RAM for {len} bytes")]
pub struct NotRam {
    /// Where the access starts.
    pub gpa: Gpa,
    /// How long it is.
    pub len: usize,
}

/// The guest's RAM and its page marks.
#[derive(Debug)]
pub struct GuestMem {
    map: Mapping,
    marks: PageMarks,
    /// Writes to watched pages that the CPU has not looked at yet, oldest first.
    watched_writes: Vec<WatchedWrite>,
}

impl GuestMem {
    /// RAM of `bytes` bytes, all zero. The host gives a page when it is first touched.
    ///
    /// # Errors
    /// [`MemError`] if the size is impossible or the host refuses.
    pub fn new(bytes: u64) -> Result<GuestMem, MemError> {
        if !bytes.is_multiple_of(PAGE_SIZE) || !(1 << 20..=RAM_BYTES_MAX).contains(&bytes) {
            return Err(MemError::Size { bytes });
        }
        let map = Mapping::new(bytes).map_err(|source| MemError::Map { bytes, source })?;
        Ok(GuestMem { map, marks: PageMarks::new(bytes >> PAGE_SHIFT), watched_writes: Vec::new() })
    }

    /// Size of RAM in bytes.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.map.len()
    }

    /// The host address of RAM offset 0. Whoever uses it answers for what [`GuestMem::load`] and
    /// [`GuestMem::store`] check.
    #[must_use]
    pub fn host_base(&mut self) -> *mut u8 {
        self.map.base()
    }

    /// Number of RAM pages.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.map.len() >> PAGE_SHIFT
    }

    /// The RAM below and above the hole, as `(start, bytes)`; the second may be empty.
    #[must_use]
    pub fn regions(&self) -> [(Gpa, u64); 2] {
        let low = self.ram_bytes().min(LOW_RAM_MAX);
        [(Gpa(0), low), (Gpa(HIGH_RAM_START), self.ram_bytes() - low)]
    }

    /// The RAM offset of `gpa`, if RAM is there.
    #[inline]
    #[must_use]
    pub fn offset_of(&self, gpa: Gpa) -> Option<RamOffset> {
        let offset = match gpa.0 {
            low if low < LOW_RAM_MAX => low,
            high if high >= HIGH_RAM_START => high - (HIGH_RAM_START - LOW_RAM_MAX),
            _ => return None,
        };
        (offset < self.map.len()).then_some(RamOffset(offset))
    }

    /// The guest-physical address of a RAM offset.
    #[must_use]
    pub fn gpa_of(&self, offset: RamOffset) -> Gpa {
        if offset.0 < LOW_RAM_MAX {
            Gpa(offset.0)
        } else {
            Gpa(offset.0 + (HIGH_RAM_START - LOW_RAM_MAX))
        }
    }

    /// Reads at an offset: the CPU's fast path.
    ///
    /// # Panics
    /// If the value does not lie inside RAM.
    #[inline(always)]
    #[must_use]
    pub fn load<T: Pod>(&self, offset: RamOffset) -> T {
        self.map.load(offset.0)
    }

    /// Writes at an offset and marks nothing: the CPU's fast path.
    ///
    /// # Panics
    /// If the value does not lie inside RAM.
    #[inline(always)]
    pub fn store<T: Pod>(&mut self, offset: RamOffset, value: T) {
        self.map.store(offset.0, value);
    }

    /// Copies `len` bytes from `from` to `to`; the ranges may overlap. Marks nothing, like
    /// [`GuestMem::store`].
    ///
    /// # Panics
    /// If a range does not lie inside RAM.
    pub fn copy_within(&mut self, from: RamOffset, to: RamOffset, len: u64) {
        self.map.copy_within(from.0, to.0, len);
    }

    /// Writes `count` times `value`, one after the other. Marks nothing, like [`GuestMem::store`].
    ///
    /// # Panics
    /// If the values do not lie inside RAM.
    pub fn fill<T: Pod>(&mut self, offset: RamOffset, value: T, count: u64) {
        self.map.fill(offset.0, value, count);
    }

    /// True if [`GuestMem::store`] may be used on this RAM page: it is already marked as written
    /// and nobody watches it.
    #[inline]
    #[must_use]
    pub fn is_plain_store_page(&self, page: u64) -> bool {
        self.marks.is_plain(page)
    }

    /// The page marks.
    #[must_use]
    pub fn marks(&self) -> &PageMarks {
        &self.marks
    }

    /// The page marks, to set and clear.
    pub fn marks_mut(&mut self) -> &mut PageMarks {
        &mut self.marks
    }

    /// Does for a write of `len` bytes at `offset`, all in one page, what [`GuestMem::store`] leaves
    /// out: marks the page as written and notes the write if the page is watched.
    #[inline]
    pub fn note_write(&mut self, offset: RamOffset, len: u32) {
        let page = offset.page();
        self.marks.set_written(page);
        if self.marks.is_watched(page) {
            self.watched_writes.push(WatchedWrite { offset, len });
        }
    }

    /// Marks a page as written without reporting the write: for stores that change nothing of what
    /// the watcher relies on.
    #[inline]
    pub fn mark_written(&mut self, page: u64) {
        self.marks.set_written(page);
    }

    /// True if a watched page was written since [`GuestMem::take_watched_writes`].
    #[inline(always)]
    #[must_use]
    pub fn has_watched_writes(&self) -> bool {
        !self.watched_writes.is_empty()
    }

    /// The writes to watched pages since the last call, oldest first. Each lies in one page.
    pub fn take_watched_writes(&mut self) -> Vec<WatchedWrite> {
        std::mem::take(&mut self.watched_writes)
    }

    /// Copies RAM out.
    ///
    /// # Errors
    /// [`NotRam`] if part of the range is not RAM; then `bytes` is unchanged.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotRam> {
        let offset = self.range(gpa, bytes.len())?;
        self.map.read(offset.0, bytes);
        Ok(())
    }

    /// Copies into RAM and keeps the marks true.
    ///
    /// # Errors
    /// [`NotRam`] if part of the range is not RAM; then RAM is unchanged.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotRam> {
        let offset = self.range(gpa, bytes.len())?;
        self.map.write(offset.0, bytes);
        let end = offset.0 + bytes.len() as u64;
        let mut at = offset.0;
        while at < end {
            let next = ((at >> PAGE_SHIFT) + 1) << PAGE_SHIFT;
            self.note_write(RamOffset(at), (next.min(end) - at) as u32);
            at = next;
        }
        Ok(())
    }

    /// Reads one plain object.
    ///
    /// # Errors
    /// [`NotRam`] if part of it is not RAM.
    pub fn read_obj<T: Pod>(&self, gpa: Gpa) -> Result<T, NotRam> {
        let offset = self.range(gpa, size_of::<T>())?;
        Ok(self.map.load(offset.0))
    }

    /// Writes one plain object and keeps the marks true.
    ///
    /// # Errors
    /// [`NotRam`] if part of it is not RAM.
    pub fn write_obj<T: Pod>(&mut self, gpa: Gpa, value: T) -> Result<(), NotRam> {
        self.write(gpa, bytemuck::bytes_of(&value))
    }

    /// The bytes of one RAM page.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn page(&self, page: u64) -> &[u8; PAGE_SIZE as usize] {
        self.map.page(page)
    }

    /// True if one RAM page is all zeros, as one that was never touched.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn is_zero_page(&self, page: u64) -> bool {
        self.page(page).iter().all(|byte| *byte == 0)
    }

    /// Replaces one RAM page and keeps the marks true.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn set_page(&mut self, page: u64, bytes: &[u8; PAGE_SIZE as usize]) {
        self.map.write(page << PAGE_SHIFT, bytes);
        self.note_write(RamOffset(page << PAGE_SHIFT), PAGE_SIZE as u32);
    }

    /// The offset of a range that lies in RAM as a whole. RAM on the two sides of the hole is not
    /// adjacent.
    fn range(&self, gpa: Gpa, len: usize) -> Result<RamOffset, NotRam> {
        let not_ram = NotRam { gpa, len };
        let offset = self.offset_of(gpa).ok_or(not_ram)?;
        let region_end =
            if gpa.0 < LOW_RAM_MAX { self.map.len().min(LOW_RAM_MAX) } else { self.map.len() };
        let end = offset.0.checked_add(len as u64).ok_or(not_ram)?;
        if end > region_end { Err(not_ram) } else { Ok(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_across_pages_marks_both_and_reports_the_watched_one() {
        let mut mem = GuestMem::new(1 << 20).unwrap();
        mem.marks_mut().watch(1);
        mem.write(Gpa(0xfff), &[1, 2]).unwrap();
        assert!(mem.marks().is_written(0) && mem.marks().is_written(1));
        let expected = WatchedWrite { offset: RamOffset(0x1000), len: 1 };
        assert_eq!(mem.take_watched_writes(), [expected]);
        assert!(!mem.has_watched_writes());
    }

    #[test]
    fn ram_above_the_hole_starts_at_4_gib_and_is_not_adjacent_to_the_low_part() {
        let mut mem = GuestMem::new(LOW_RAM_MAX + (1 << 20)).unwrap();
        mem.write_obj(Gpa(HIGH_RAM_START), 7u64).unwrap();
        assert_eq!(mem.load::<u64>(RamOffset(LOW_RAM_MAX)), 7);
        assert_eq!(mem.offset_of(Gpa(LOW_RAM_MAX)), None);
        let across = mem.write(Gpa(LOW_RAM_MAX - 4), &[0; 8]);
        assert_eq!(across, Err(NotRam { gpa: Gpa(LOW_RAM_MAX - 4), len: 8 }));
        assert!(mem.write(Gpa(HIGH_RAM_START + (1 << 20) - 4), &[0; 8]).is_err());
        assert!(mem.read_obj::<u64>(Gpa(u64::MAX - 3)).is_err());
    }

    #[test]
    fn only_a_written_page_that_nobody_watches_takes_plain_stores() {
        let mut mem = GuestMem::new(1 << 20).unwrap();
        assert!(!mem.is_plain_store_page(3));
        mem.write_obj(Gpa(0x3000), 1u8).unwrap();
        assert!(mem.is_plain_store_page(3));
        mem.marks_mut().watch(3);
        assert!(!mem.is_plain_store_page(3));
        mem.marks_mut().unwatch(3);
        assert!(mem.is_plain_store_page(3));
        assert_eq!(mem.marks_mut().take_written(), [3]);
        assert!(!mem.is_plain_store_page(3));
        assert!(mem.marks().is_touched(3));
    }

    #[test]
    fn a_fill_writes_its_values_and_nothing_else() {
        let mut mem = GuestMem::new(1 << 20).unwrap();
        mem.fill(RamOffset(0x1001), 0x1122_u16, 3);
        let mut bytes = [0; 8];
        mem.read(Gpa(0x1000), &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0x22, 0x11, 0x22, 0x11, 0x22, 0x11, 0]);
        mem.fill(RamOffset((1 << 20) - 8), 1u64, 1);
    }

    #[test]
    #[should_panic(expected = "RAM access")]
    fn a_fill_beyond_ram_is_our_mistake() {
        GuestMem::new(1 << 20).unwrap().fill(RamOffset((1 << 20) - 8), 1u64, 2);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 4096, (1 << 20) + 1, RAM_BYTES_MAX + PAGE_SIZE] {
            assert!(matches!(GuestMem::new(bytes), Err(MemError::Size { .. })), "{bytes}");
        }
    }
}
