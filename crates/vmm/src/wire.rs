//! Messages as bytes: the frames of the logging channel, and the heartbeats' datagrams.
//!
//! A frame is the payload's length (u32), its CRC-32 (u32), both little endian, and the payload in
//! `postcard`. The checksum finds what TCP's misses when encryption is off. A heartbeat is `postcard`
//! and a tag, HMAC-SHA-256 under the connection's heartbeat key.

use ft::{Heartbeat, Message};
use ring::hmac;

/// Longest frame: a log message with the longest entry there is, and small ones around it.
pub const FRAME_LEN_MAX: usize = 64 << 20;
const HEAD_LEN: usize = 8;
const TAG_LEN: usize = 32;
/// Longest heartbeat, with its tag.
pub const HEARTBEAT_LEN_MAX: usize = 256;

/// Why a stream cannot be read any further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length that no frame has.
    #[error("the peer announced a message of {0} bytes; it speaks another protocol")]
    TooLong(u32),
    /// The bytes were changed on the way.
    #[error("a message failed its checksum")]
    Checksum,
    /// The bytes are whole but mean nothing.
    #[error("a message cannot be decoded")]
    Meaningless,
}

/// Appends `message` as a frame to `bytes`.
pub fn encode(message: &Message, bytes: &mut Vec<u8>) {
    let head = bytes.len();
    bytes.extend_from_slice(&[0; HEAD_LEN]);
    let written = postcard::to_io(message, &mut *bytes);
    written.expect("plain data always serializes");
    let payload = &bytes[head + HEAD_LEN..];
    let len = u32::try_from(payload.len()).expect("a message is far below 4 GiB");
    let crc = crc32fast::hash(payload);
    bytes[head..head + 4].copy_from_slice(&len.to_le_bytes());
    bytes[head + 4..head + HEAD_LEN].copy_from_slice(&crc.to_le_bytes());
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are done with.
    taken: usize,
}

impl Decoder {
    /// The buffer that the next bytes are appended to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        &mut self.bytes
    }

    /// The next message that is whole.
    ///
    /// # Errors
    /// A [`WireError`]; the stream is worthless from here on.
    pub fn poll_message(&mut self) -> Result<Option<Message>, WireError> {
        let rest = &self.bytes[self.taken..];
        let Some((head, rest)) = rest.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let (len, crc) =
            (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([c0, c1, c2, c3]));
        if len as usize > FRAME_LEN_MAX {
            return Err(WireError::TooLong(len));
        }
        let Some(payload) = rest.get(..len as usize) else { return Ok(None) };
        if crc32fast::hash(payload) != crc {
            return Err(WireError::Checksum);
        }
        let (message, left) =
            postcard::take_from_bytes(payload).map_err(|_| WireError::Meaningless)?;
        if !left.is_empty() {
            return Err(WireError::Meaningless);
        }
        self.taken += HEAD_LEN + len as usize;
        Ok(Some(message))
    }
}

/// A heartbeat as a datagram under `key`.
#[must_use]
pub fn seal(heartbeat: &Heartbeat, key: &[u8; 32]) -> Vec<u8> {
    let mut datagram = postcard::to_stdvec(heartbeat).expect("plain data always serializes");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &datagram);
    datagram.extend_from_slice(tag.as_ref());
    datagram
}

/// The heartbeat in a datagram, if somebody made it who knows `key`.
#[must_use]
pub fn open(datagram: &[u8], key: &[u8; 32]) -> Option<Heartbeat> {
    let (heartbeat, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_LEN)?)?;
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), heartbeat, tag).ok()?;
    postcard::from_bytes(heartbeat).ok()
}

#[cfg(test)]
mod tests {
    use base::{Claimant, Generation, Nanos, SeededRng};
    use ft::{Progress, RunState};

    use super::*;

    const MESSAGE: Message = Message::Leave { generation: Generation(7) };

    #[test]
    fn messages_come_out_whole_however_the_stream_is_cut() {
        let mut bytes = Vec::new();
        encode(&MESSAGE, &mut bytes);
        encode(&Message::Chunk { offset: 3, bytes: vec![9; 5000] }, &mut bytes);
        for cut in [1, 7, 9, 4000, bytes.len()] {
            let (mut decoder, mut count) = (Decoder::default(), 0);
            for part in bytes.chunks(cut) {
                decoder.buffer().extend_from_slice(part);
                while decoder.poll_message().unwrap().is_some() {
                    count += 1;
                }
            }
            assert_eq!(count, 2, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let mut bytes = Vec::new();
        encode(&MESSAGE, &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut decoder = Decoder::default();
            decoder.buffer().extend_from_slice(&bytes);
            decoder.buffer()[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decoder.poll_message(), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn nonsense_never_panics() {
        let mut rng = SeededRng::new(3);
        for _ in 0..2000 {
            let mut payload = vec![0; rng.below(80) as usize];
            rng.fill(&mut payload);
            let mut decoder = Decoder::default();
            decoder.buffer().extend((payload.len() as u32).to_le_bytes());
            decoder.buffer().extend(crc32fast::hash(&payload).to_le_bytes());
            decoder.buffer().extend(&payload);
            let _ = decoder.poll_message(); // any answer is fine
            assert_eq!(open(&payload, &[1; 32]), None);
        }
    }

    #[test]
    fn a_heartbeat_counts_only_under_its_key() {
        let heartbeat = Heartbeat {
            generation: Generation(1),
            from: Claimant(2),
            sent: Nanos(3),
            echo: None,
            run: RunState::Running,
            progress: Progress::default(),
        };
        let datagram = seal(&heartbeat, &[1; 32]);
        assert!(datagram.len() <= HEARTBEAT_LEN_MAX);
        assert_eq!(open(&datagram, &[1; 32]), Some(heartbeat));
        assert_eq!(open(&datagram, &[2; 32]), None);
        assert_eq!(open(&datagram[..10], &[1; 32]), None);
    }
}
