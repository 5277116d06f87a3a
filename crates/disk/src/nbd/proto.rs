//! Numbers and messages of the protocol. Everything on the wire is big endian.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::stamp::Badge;

pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(crate) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags, both ways.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 2;

pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    /// Ours ("LK" 1): turns the connection into an arbiter session.
    pub(crate) const ARBITER: u32 = 0x4c4b_0001;
    /// Ours ("LK" 2): shows a stamp for an export.
    pub(crate) const STAMP: u32 = 0x4c4b_0002;
}

pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const UNSUPPORTED: u32 = ERROR | 1;
    pub(crate) const POLICY: u32 = ERROR | 2;
    pub(crate) const INVALID: u32 = ERROR | 3;
    pub(crate) const PLATFORM: u32 = ERROR | 4;
    pub(crate) const UNKNOWN: u32 = ERROR | 6;
    pub(crate) const TOO_BIG: u32 = ERROR | 9;
}

pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

pub(crate) mod export_flag {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    /// Flag: durable before the reply.
    pub(crate) const FUA: u16 = 1;
    /// Flag: zeroes must keep their space.
    pub(crate) const NO_HOLE: u16 = 2;
}

/// Errors of the transmission phase.
pub(crate) mod errno {
    pub(crate) const PERMISSION: u32 = 1;
    pub(crate) const IO: u32 = 5;
    pub(crate) const MEMORY: u32 = 12;
    pub(crate) const INVALID: u32 = 22;
    pub(crate) const NO_SPACE: u32 = 28;
    pub(crate) const OVERFLOW: u32 = 75;
    pub(crate) const UNSUPPORTED: u32 = 95;
    pub(crate) const SHUTDOWN: u32 = 108;
}

/// The longest string that the protocol allows, such as an export's name.
pub(crate) const STRING_LEN_MAX: usize = 4096;

/// What the private option STAMP carries, in `postcard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StampRequest {
    /// [`StampRequest::VERSION`].
    pub(crate) version: u16,
    /// For which export.
    pub(crate) export: String,
    /// Who connects.
    pub(crate) badge: Badge,
}

impl StampRequest {
    pub(crate) const VERSION: u16 = 1;
}

/// What the acknowledgement of the private option STAMP carries, in `postcard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StampReply {
    /// Changes when the server's host starts anew, which is when writes that were done but not
    /// flushed may be gone.
    pub(crate) boot: u128,
}

/// A request of the transmission phase, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl RequestHeader {
    pub(crate) const LEN: usize = 28;

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// `None` if the magic is wrong, after which nothing on the connection can be trusted.
    pub(crate) fn decode(bytes: [u8; Self::LEN]) -> Option<RequestHeader> {
        let mut rest = &bytes[..];
        let mut reader = |len| take(&mut rest, len);
        if reader(4) != u64::from(REQUEST_MAGIC) {
            return None;
        }
        Some(RequestHeader {
            flags: reader(2) as u16,
            command: reader(2) as u16,
            cookie: reader(8),
            offset: reader(8),
            len: reader(4) as u32,
        })
    }
}

/// A simple reply, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHeader {
    pub(crate) error: u32,
    pub(crate) cookie: u64,
}

impl ReplyHeader {
    pub(crate) const LEN: usize = 16;

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: [u8; Self::LEN]) -> Option<ReplyHeader> {
        let mut rest = &bytes[..];
        let mut reader = |len| take(&mut rest, len);
        if reader(4) != u64::from(REPLY_MAGIC) {
            return None;
        }
        Some(ReplyHeader { error: reader(4) as u32, cookie: reader(8) })
    }
}

/// The next `len` bytes (at most 8) as a number; the caller has checked that they are there.
fn take(rest: &mut &[u8], len: usize) -> u64 {
    let (head, tail) = rest.split_at(len);
    *rest = tail;
    head.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(crate) fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

pub(crate) fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub(crate) fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// Reads exactly `len` bytes. Memory grows with what arrives, not with what was announced.
pub(crate) fn read_vec(stream: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    const GROW_FROM: usize = 128 << 10;
    let mut bytes = Vec::with_capacity(len.min(GROW_FROM));
    stream.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Writes one option of the client.
pub(crate) fn write_option(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

/// Writes one reply of the server to `option`.
pub(crate) fn write_option_reply(
    stream: &mut impl Write,
    option: u32,
    kind: u32,
    data: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

/// The data of NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoRequest {
    pub(crate) name: String,
    pub(crate) infos: Vec<u16>,
}

impl GoRequest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.name.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&(self.infos.len() as u16).to_be_bytes());
        self.infos.iter().for_each(|info| bytes.extend_from_slice(&info.to_be_bytes()));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<GoRequest> {
        let (name_len, rest) = bytes.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*name_len) as usize)?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        if rest.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
            return None;
        }
        let infos = rest.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(GoRequest { name: export_name(name)?, infos: infos.collect() })
    }
}

/// A name as the protocol allows it.
pub(crate) fn export_name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > STRING_LEN_MAX || bytes.contains(&0) {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use base::SeededRng;

    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let request = RequestHeader { flags: 1, command: 6, cookie: 3 << 40, offset: 4, len: 5 };
        assert_eq!(RequestHeader::decode(request.encode()), Some(request));
        let reply = ReplyHeader { error: 28, cookie: u64::MAX };
        assert_eq!(ReplyHeader::decode(reply.encode()), Some(reply));
        assert_eq!(RequestHeader::decode([0; 28]), None);
        assert_eq!(ReplyHeader::decode([0; 16]), None);
    }

    #[test]
    fn go_requests_survive_the_wire_and_every_cut_is_found() {
        let go = GoRequest { name: "disk ä".to_owned(), infos: vec![3, 1] };
        let bytes = go.encode();
        assert_eq!(GoRequest::decode(&bytes), Some(go));
        for len in 0..bytes.len() {
            assert_eq!(GoRequest::decode(&bytes[..len]), None, "cut to {len} bytes");
        }
        assert_eq!(GoRequest::decode(&[0xff; 8]), None);
        let mut rng = SeededRng::new(1);
        for _ in 0..2000 {
            let mut noise = vec![0; rng.below(24) as usize];
            rng.fill(&mut noise);
            let _ = GoRequest::decode(&noise); // must not panic
        }
    }
}
