//! What devices exchange with the world outside the machine.

use serde::{Deserialize, Serialize};

/// A console of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Console {
    /// The first 16550, COM1.
    Serial,
    /// The virtio console.
    Virtio,
}

/// How a disk request went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskResult {
    /// Done, nothing to hand over (write, flush, discard).
    Done,
    /// Read: the bytes.
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The disk failed.
    Failed,
}

/// A disk request. Offsets and lengths are multiples of 512 bytes and lie inside the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Reads.
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Writes; the data was copied out of RAM when the guest submitted it.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Everything that was done before is on stable storage when this is done.
    Flush,
    /// The bytes are no longer needed and may read as anything the disk chooses, once.
    Discard {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The bytes read as zero from now on.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

impl DiskOp {
    /// The bytes of the disk that the request touches, as first byte and length. A flush touches none.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            DiskOp::Read { offset, len } => (*offset, u64::from(*len)),
            DiskOp::Write { offset, data } => (*offset, data.len() as u64),
            DiskOp::Flush => (0, 0),
            DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len } => {
                (*offset, *len)
            }
        }
    }

    /// True if the two must not be in flight together: they overlap and one of them changes the disk.
    #[must_use]
    pub fn conflicts_with(&self, other: &DiskOp) -> bool {
        let both_read = matches!(self, DiskOp::Read { .. }) && matches!(other, DiskOp::Read { .. });
        let ((start, len), (other_start, other_len)) = (self.range(), other.range());
        !both_read
            && start < other_start.saturating_add(other_len)
            && other_start < start.saturating_add(len)
            && len != 0
            && other_len != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_matters_only_if_one_of_the_two_writes() {
        let read = |offset, len| DiskOp::Read { offset, len };
        let write = |offset, len: usize| DiskOp::Write { offset, data: vec![0; len] };
        assert!(!read(0, 1024).conflicts_with(&read(512, 512)));
        assert!(read(0, 1024).conflicts_with(&write(512, 512)));
        assert!(write(512, 512).conflicts_with(&read(0, 1024)));
        assert!(!write(0, 512).conflicts_with(&write(512, 512)));
        assert!(!DiskOp::Flush.conflicts_with(&write(0, 512)));
        let zeroes = DiskOp::WriteZeroes { offset: 0, len: u64::MAX };
        assert!(zeroes.conflicts_with(&read(u64::MAX - 512, 512)));
    }
}
