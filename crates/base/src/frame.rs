//! Ethernet frames as they cross a machine's border.

use serde::{Deserialize, Serialize};

/// An Ethernet frame, without FCS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// What its sender left to whoever takes it; nothing is left of a complete frame.
    pub offload: Option<Offload>,
    /// The frame, from the destination's address on.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl From<Vec<u8>> for Frame {
    /// A complete frame.
    fn from(bytes: Vec<u8>) -> Frame {
        Frame { offload: None, bytes }
    }
}

/// What is left to do with a frame: the fields of `virtio_net_hdr` (virtio 1.2, section 5.1.6), which
/// Linux's TAP devices and packet sockets put before each frame too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// The checksum is to be filled in.
    pub needs_csum: bool,
    /// The frame stands for segments of this kind: one of `GSO_NONE` and so on.
    pub gso_type: u8,
    /// Length of all headers, or 0: a hint.
    pub header_len: u16,
    /// Payload bytes of a segment.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// Where it goes, counted from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// Bytes of the header in front of a frame.
    pub const HEADER_LEN: usize = 10;
    /// The frame is one frame.
    pub const GSO_NONE: u8 = 0;
    /// Segments of TCP over IPv4.
    pub const GSO_TCP4: u8 = 1;
    /// Segments of TCP over IPv6.
    pub const GSO_TCP6: u8 = 4;
    /// UDP datagrams of equal size.
    pub const GSO_UDP_L4: u8 = 5;
    /// A flag beside the others: only the first segment keeps TCP's CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// The header as it stands before a frame, with its numbers read by `word`. `None` if nothing is left
    /// to do.
    #[must_use]
    pub fn of(header: &[u8; Offload::HEADER_LEN], word: fn([u8; 2]) -> u16) -> Option<Offload> {
        let word = |at: usize| word([header[at], header[at + 1]]);
        let needs_csum = header[0] & FLAG_NEEDS_CSUM != 0;
        if !needs_csum && header[1] & !Offload::GSO_ECN == Offload::GSO_NONE {
            return None;
        }
        Some(Offload {
            needs_csum,
            gso_type: header[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// The header, with its numbers written by `bytes`.
    #[must_use]
    pub fn header(&self, bytes: fn(u16) -> [u8; 2]) -> [u8; Offload::HEADER_LEN] {
        let mut header = [0; Offload::HEADER_LEN];
        header[0] = if self.needs_csum { FLAG_NEEDS_CSUM } else { 0 };
        header[1] = self.gso_type;
        let words = [self.header_len, self.gso_size, self.csum_start, self.csum_offset];
        for (place, word) in header[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&bytes(word));
        }
        header
    }

    /// The kind of segments, without the flag for ECN.
    #[must_use]
    pub fn segments(&self) -> u8 {
        self.gso_type & !Offload::GSO_ECN
    }
}

const FLAG_NEEDS_CSUM: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let offload = Offload {
            needs_csum: true,
            gso_type: Offload::GSO_TCP4 | Offload::GSO_ECN,
            header_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let header = offload.header(u16::to_le_bytes);
        assert_eq!(header, [1, 0x81, 54, 0, 0xa8, 0x05, 34, 0, 16, 0]);
        assert_eq!(Offload::of(&header, u16::from_le_bytes), Some(offload));
        assert_eq!(
            Offload::of(&offload.header(u16::to_be_bytes), u16::from_be_bytes),
            Some(offload)
        );
    }

    #[test]
    fn a_header_that_asks_for_nothing_is_none() {
        assert_eq!(Offload::of(&[2, 0, 54, 0, 0, 0, 34, 0, 16, 0], u16::from_le_bytes), None);
    }
}
