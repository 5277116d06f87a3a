//! Split virtqueues, the device's side (virtio 1.2, section 2.7).
//!
//! Every descriptor and every ring index is read from RAM once and then used from the copy. What a
//! driver must not do ends in [`Broken`]: the device then asks for a reset. The work for one call is
//! bounded by [`CHAIN_LEN_MAX`] descriptors.

use base::Gpa;
use mem::{GuestMem, NotRam, Pod};
use serde::{Deserialize, Serialize};

/// The largest queue.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Descriptors in one chain, indirect ones included.
pub const CHAIN_LEN_MAX: usize = 1024;

/// The driver did what it must not do; the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An address is outside RAM.
    #[error(transparent)]
    NotRam(#[from] NotRam),
    /// The driver offers more chains than the queue has entries.
    #[error("the available index runs ahead of the queue")]
    AvailIndex,
    /// A descriptor number is not below the queue's (or table's) size.
    #[error("a descriptor number is out of range")]
    DescIndex,
    /// A chain does not end.
    #[error("a descriptor chain is too long or loops")]
    ChainLen,
    /// A device-readable descriptor follows a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table is malformed or not allowed.
    #[error("an indirect descriptor table is malformed")]
    Indirect,
    /// A request does not have the parts that the device needs.
    #[error("a request lacks its header or its status")]
    Request,
}

/// Saved state of one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries: a power of two up to [`QUEUE_SIZE_MAX`] once the queue is ready.
    pub size: u16,
    /// The driver has set the queue up.
    pub is_ready: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring (driver area).
    pub avail: u64,
    /// Used ring (device area).
    pub used: u64,
    /// Index of the next chain to take.
    pub next_avail: u16,
    /// Index of the next used element.
    pub next_used: u16,
    /// `next_used` when the driver was last notified; `None` if it never was.
    pub notified_used: Option<u16>,
}

/// A run of guest memory that lies in RAM as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First byte.
    pub gpa: Gpa,
    /// How many bytes.
    pub len: u32,
}

/// A descriptor chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Number of its first descriptor, to give it back.
    pub head: u16,
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
}

/// Ring features of the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_idx: bool,
}

impl QueueState {
    /// Takes the next chain that the driver offers.
    pub fn pop(&mut self, mem: &GuestMem, features: RingFeatures) -> Result<Option<Chain>, Broken> {
        if !self.is_ready {
            return Ok(None);
        }
        let avail_idx: u16 = read(mem, self.avail, 2)?;
        let pending = avail_idx.wrapping_sub(self.next_avail);
        if pending > self.size {
            return Err(Broken::AvailIndex);
        }
        if pending == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_avail % self.size);
        let head: u16 = read(mem, self.avail, 4 + slot * 2)?;
        let chain = self.walk(mem, head, features)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the `count` chains taken last back, to be taken again.
    pub fn unpop(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Asks the driver to notify when it offers the next chain. Call it when [`QueueState::pop`]
    /// finds nothing.
    pub fn want_kick(&mut self, mem: &mut GuestMem, features: RingFeatures) -> Result<(), Broken> {
        if features.event_idx && self.is_ready {
            let at = self.used_offset(4 + u64::from(self.size) * 8)?;
            mem.write_obj(at, self.next_avail)?;
        }
        Ok(())
    }

    /// Gives a chain back, with the number of bytes written to it.
    pub fn push_used(&mut self, mem: &mut GuestMem, head: u16, len: u32) -> Result<(), Broken> {
        if !self.is_ready {
            // The driver has taken the queue away in the meantime.
            return Ok(());
        }
        let slot = u64::from(self.next_used % self.size);
        let element = u64::from(head) | u64::from(len) << 32;
        mem.write_obj(self.used_offset(4 + slot * 8)?, element)?;
        self.next_used = self.next_used.wrapping_add(1);
        mem.write_obj(self.used_offset(2)?, self.next_used)?;
        Ok(())
    }

    /// True if what was given back since the last notification is to be notified.
    pub fn take_notification(
        &mut self,
        mem: &GuestMem,
        features: RingFeatures,
    ) -> Result<bool, Broken> {
        let old = self.notified_used;
        if !self.is_ready || old.unwrap_or(0) == self.next_used {
            return Ok(false);
        }
        self.notified_used = Some(self.next_used);
        if !features.event_idx {
            let flags: u16 = read(mem, self.avail, 0)?;
            return Ok(flags & AVAIL_NO_INTERRUPT == 0);
        }
        let event: u16 = read(mem, self.avail, 4 + u64::from(self.size) * 2)?;
        let Some(old) = old else { return Ok(true) };
        let since_event = self.next_used.wrapping_sub(event).wrapping_sub(1);
        Ok(since_event < self.next_used.wrapping_sub(old))
    }

    /// True if the addresses and the size are ones that a queue can have.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= QUEUE_SIZE_MAX
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.used.is_multiple_of(4)
    }

    fn used_offset(&self, offset: u64) -> Result<Gpa, Broken> {
        address(self.used, offset)
    }

    fn walk(&self, mem: &GuestMem, head: u16, features: RingFeatures) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut table = Table { address: self.desc, len: u32::from(self.size), is_indirect: false };
        let mut next = u32::from(head);
        for _ in 0..CHAIN_LEN_MAX {
            if next >= table.len {
                return Err(Broken::DescIndex);
            }
            let desc = Desc::of(read(mem, table.address, u64::from(next) * 16)?);
            if desc.flags & DESC_INDIRECT != 0 {
                table = self.indirect_table(&desc, table, features)?;
                next = 0;
                continue;
            }
            chain.add(mem, &desc)?;
            if desc.flags & DESC_NEXT == 0 {
                return Ok(chain);
            }
            next = u32::from(desc.next);
        }
        Err(Broken::ChainLen)
    }

    fn indirect_table(
        &self,
        desc: &Desc,
        table: Table,
        features: RingFeatures,
    ) -> Result<Table, Broken> {
        let is_bad = !features.indirect
            || table.is_indirect
            || desc.flags & DESC_NEXT != 0
            || desc.len == 0
            || !desc.len.is_multiple_of(16);
        if is_bad {
            return Err(Broken::Indirect);
        }
        Ok(Table { address: desc.address, len: desc.len / 16, is_indirect: true })
    }
}

impl Chain {
    fn add(&mut self, mem: &GuestMem, desc: &Desc) -> Result<(), Broken> {
        let segment = Segment { gpa: Gpa(desc.address), len: desc.len };
        if desc.len == 0 {
            return Ok(());
        }
        check_in_ram(mem, segment)?;
        if desc.flags & DESC_WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(Broken::Order);
        }
        Ok(())
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        len_of(&self.readable)
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        len_of(&self.writable)
    }

    /// Copies `len` readable bytes out, from `skip` on. Fewer, if the chain has fewer.
    pub fn read(&self, mem: &GuestMem, skip: u64, len: u64) -> Result<Vec<u8>, Broken> {
        let len = len.min(self.readable_len().saturating_sub(skip)) as usize;
        let mut bytes = vec![0; len];
        let mut done = 0;
        for part in parts(&self.readable, skip, len as u64) {
            let end = done + part.len as usize;
            mem.read(part.gpa, &mut bytes[done..end])?;
            done = end;
        }
        Ok(bytes)
    }

    /// Copies bytes to the writable part, from `skip` on. What does not fit is left out.
    pub fn write(&self, mem: &mut GuestMem, skip: u64, bytes: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        for part in parts(&self.writable, skip, bytes.len() as u64) {
            let end = done + part.len as usize;
            mem.write(part.gpa, &bytes[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Checks a chain from saved state: everything in RAM and not too much of it.
    #[must_use]
    pub fn is_plausible(&self, mem: &GuestMem) -> bool {
        let segments = || self.readable.iter().chain(&self.writable);
        segments().count() <= CHAIN_LEN_MAX
            && segments().all(|segment| check_in_ram(mem, *segment).is_ok())
    }
}

fn len_of(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The pieces of `segments` that hold bytes `skip..skip + len`.
fn parts(segments: &[Segment], skip: u64, len: u64) -> impl Iterator<Item = Segment> + '_ {
    let mut skip = skip;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(u64::from(segment.len));
        skip -= skipped;
        let len = (u64::from(segment.len) - skipped).min(left);
        left -= len;
        (len != 0).then(|| Segment { gpa: Gpa(segment.gpa.0 + skipped), len: len as u32 })
    })
}

fn check_in_ram(mem: &GuestMem, segment: Segment) -> Result<(), NotRam> {
    let not_ram = NotRam { gpa: segment.gpa, len: segment.len as usize };
    let span = u64::from(segment.len).saturating_sub(1);
    let first = mem.offset_of(segment.gpa).ok_or(not_ram)?;
    let last = segment.gpa.0.checked_add(span).ok_or(not_ram)?;
    let last = mem.offset_of(Gpa(last)).ok_or(not_ram)?;
    // RAM below and above the hole is not adjacent.
    if last.0 - first.0 == span { Ok(()) } else { Err(not_ram) }
}

fn address(base: u64, offset: u64) -> Result<Gpa, Broken> {
    let gpa = base.checked_add(offset);
    gpa.map(Gpa).ok_or(Broken::NotRam(NotRam { gpa: Gpa(base), len: 1 }))
}

fn read<T: Pod>(mem: &GuestMem, base: u64, offset: u64) -> Result<T, Broken> {
    Ok(mem.read_obj(address(base, offset)?)?)
}

struct Table {
    address: u64,
    len: u32,
    is_indirect: bool,
}

struct Desc {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    /// The descriptor that lies in RAM as these 16 bytes.
    fn of(bytes: u128) -> Desc {
        Desc {
            address: bytes as u64,
            len: (bytes >> 64) as u32,
            flags: (bytes >> 96) as u16,
            next: (bytes >> 112) as u16,
        }
    }
}

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;

#[cfg(test)]
mod tests;
