//! What is known about each RAM page.

use crate::RamOffset;

const WRITTEN: u8 = 1 << 0;
const TOUCHED: u8 = 1 << 1;
const WATCHED: u8 = 1 << 2;

/// A write to a page that somebody watches. It lies in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedWrite {
    /// First byte written.
    pub offset: RamOffset,
    /// How many bytes.
    pub len: u32,
}

/// One byte of marks per RAM page.
#[derive(Debug)]
pub struct PageMarks {
    marks: Vec<u8>,
    /// Pages whose `WRITTEN` mark is set, in the order in which it was set.
    written: Vec<u64>,
}

impl PageMarks {
    pub(crate) fn new(page_count: u64) -> PageMarks {
        PageMarks { marks: vec![0; page_count as usize], written: Vec::new() }
    }

    /// True if the page was written since [`PageMarks::take_written`].
    #[must_use]
    pub fn is_written(&self, page: u64) -> bool {
        self.marks[page as usize] & WRITTEN != 0
    }

    /// True if the page was ever written. A page that was not is all zero.
    #[must_use]
    pub fn is_touched(&self, page: u64) -> bool {
        self.marks[page as usize] & TOUCHED != 0
    }

    /// True if writes to the page are to be reported, because code or page tables in it were read.
    #[inline]
    #[must_use]
    pub fn is_watched(&self, page: u64) -> bool {
        self.marks[page as usize] & WATCHED != 0
    }

    /// Has writes to the page reported from now on.
    pub fn watch(&mut self, page: u64) {
        self.marks[page as usize] |= WATCHED;
    }

    /// Has writes to the page reported no longer.
    pub fn unwatch(&mut self, page: u64) {
        self.marks[page as usize] &= !WATCHED;
    }

    /// The pages written since [`PageMarks::take_written`], in no order.
    #[must_use]
    pub fn written(&self) -> &[u64] {
        &self.written
    }

    /// The pages written since the last call, in ascending order, and forgets them. Whoever holds
    /// a right to plain stores (a TLB) has to give it up in the same breath.
    pub fn take_written(&mut self) -> Vec<u64> {
        let mut written = std::mem::take(&mut self.written);
        for page in &written {
            self.marks[*page as usize] &= !WRITTEN;
        }
        written.sort_unstable();
        written
    }

    /// The pages ever written, in ascending order.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.marks.len() as u64).filter(|page| self.is_touched(*page))
    }

    #[inline]
    pub(crate) fn set_written(&mut self, page: u64) {
        let mark = &mut self.marks[page as usize];
        if *mark & WRITTEN == 0 {
            *mark |= WRITTEN | TOUCHED;
            self.written.push(page);
        }
    }

    #[inline]
    pub(crate) fn is_plain(&self, page: u64) -> bool {
        self.marks[page as usize] & (WRITTEN | WATCHED) == WRITTEN
    }
}
