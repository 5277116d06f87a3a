//! What a disk looks like to the machine's shell: requests go in, completions come out by id.
//!
//! A device never waits, so [`Backend::submit`] only queues. Requests may finish in any order; to
//! keep two overlapping ones apart is up to the caller. What a caller may rely on: a finished
//! [`Op::Flush`] covers every write that had finished when the flush was submitted.

use std::fmt;
use std::io;

use crate::stamp::Stamp;

/// Bytes in a sector. Every disk is a whole number of them.
pub const SECTOR_SIZE: u64 = 512;
/// The longest data one request may carry.
pub const REQUEST_LEN_MAX: u32 = 32 << 20;

/// Names a request; chosen by the caller, unique among the requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A stretch of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Extent {
    /// Whether the stretch lies inside a disk of `size` bytes.
    #[must_use]
    pub fn fits(self, size: u64) -> bool {
        self.offset.checked_add(self.len).is_some_and(|end| end <= size)
    }
}

/// What a disk can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads; the completion carries the data.
    Read(Extent),
    /// Writes `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
        /// Whether the data must be durable before the completion.
        durable: bool,
    },
    /// Makes everything written before durable.
    Flush,
    /// Makes the stretch read as zeroes.
    WriteZeroes {
        /// What to zero.
        extent: Extent,
        /// Whether the space behind it may be given back.
        may_free: bool,
    },
    /// Says that the content is no longer needed. What it reads as afterwards is not defined.
    Trim(Extent),
}

impl Op {
    /// The bytes of the disk that the request touches; none for a flush.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Op::Read(extent) | Op::Trim(extent) | Op::WriteZeroes { extent, .. } => Some(*extent),
            Op::Write { offset, data, .. } => {
                Some(Extent { offset: *offset, len: data.len() as u64 })
            }
            Op::Flush => None,
        }
    }

    /// Whether the request changes the disk.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(self, Op::Write { .. } | Op::WriteZeroes { .. } | Op::Trim(_))
    }
}

/// What is known about a disk once it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes, a multiple of [`SECTOR_SIZE`].
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Requests must be aligned to this many bytes, a power of two and at most 64 KiB.
    pub align: u32,
    /// The longest read or write.
    pub request_len_max: u32,
    /// Whether [`Op::Trim`] and [`Op::WriteZeroes`] are understood.
    pub zeroes_and_trim: bool,
    /// Whether [`Op::Flush`] makes anything durable; some servers promise nothing.
    pub flush: bool,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The medium or the path to it failed.
    #[error("disk request failed")]
    Io(#[from] io::Error),
    /// The request lies outside the disk, is too long, or is not aligned.
    #[error("request outside what the disk takes: {0}")]
    Invalid(&'static str),
    /// The disk is read-only.
    #[error("disk is read-only")]
    ReadOnly,
    /// A higher stamp was seen: this side has been deposed, and halts for good.
    #[error("deposed: {0}")]
    Deposed(String),
    /// The disk was closed before the request was done. Whether it was done is not known.
    #[error("disk was closed")]
    Closed,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub id: RequestId,
    /// The data for a read, nothing for everything else.
    pub result: Result<Vec<u8>, DiskError>,
}

/// What a disk tells its user.
#[derive(Debug)]
pub enum DiskEvent {
    /// A request ended.
    Done(Completion),
    /// The disk server took this stamp; lower ones are refused from now on, and nothing of theirs
    /// can still land. Local disks say so at once.
    Attached {
        /// The stamp that counts now.
        stamp: Option<Stamp>,
    },
    /// The path to the disk broke. Requests in flight are kept, and issued again in their order
    /// when it is back.
    Lost {
        /// What broke.
        why: String,
    },
    /// A higher stamp was seen. Every request in flight and every later one ends with
    /// [`DiskError::Deposed`].
    Deposed {
        /// What the server said.
        why: String,
    },
}

/// Takes a disk's events, on a thread of the disk. It must not block for long and must not call
/// back into the disk.
pub type EventSink = Box<dyn Fn(DiskEvent) + Send + Sync>;

/// An open disk. Dropping it closes it: what was not done yet ends with [`DiskError::Closed`].
pub trait Backend: Send + Sync {
    /// Size and limits.
    fn info(&self) -> DiskInfo;

    /// Queues a request; its [`DiskEvent::Done`] follows.
    fn submit(&self, id: RequestId, op: Op);

    /// Changes the stamp, for a side that has won a claim or starts a pairing.
    /// [`DiskEvent::Attached`] follows when it counts; requests in flight are issued again after that.
    fn restamp(&self, stamp: Stamp);
}

/// Checks a request against a disk, so that every backend refuses the same ones.
pub(crate) fn check(op: &Op, info: &DiskInfo) -> Result<(), DiskError> {
    if op.changes() && info.read_only {
        return Err(DiskError::ReadOnly);
    }
    if matches!(op, Op::Trim(_) | Op::WriteZeroes { .. }) && !info.zeroes_and_trim {
        return Err(DiskError::Io(io::ErrorKind::Unsupported.into()));
    }
    let Some(extent) = op.extent() else { return Ok(()) };
    if !extent.fits(info.size) {
        return Err(DiskError::Invalid("beyond the end of the disk"));
    }
    let align = u64::from(info.align);
    if !extent.offset.is_multiple_of(align) || !extent.len.is_multiple_of(align) {
        return Err(DiskError::Invalid("not aligned"));
    }
    let carries_data = matches!(op, Op::Read(_) | Op::Write { .. });
    if carries_data && extent.len > u64::from(info.request_len_max) {
        return Err(DiskError::Invalid("too long"));
    }
    if extent.len > u64::from(u32::MAX) {
        return Err(DiskError::Invalid("too long"));
    }
    Ok(())
}
