//! Frames of an arbiter session: length and CRC-32, little endian, then `postcard`.

use std::io::{self, Read, Write};

use base::{Claimant, VmId};
use ft::arbiter::{Answer, Record, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::nbd::proto::read_vec;

/// The longest frame.
pub(crate) const FRAME_LEN_MAX: u32 = 1 << 20;
/// The longest address that can be announced.
pub const ADDRESS_LEN_MAX: usize = 256;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// A request to the record of one VM.
    Ask(Request),
    /// "`claimant` can be reached at `address`", for people and tools that look for the VM.
    Announce {
        /// The VM.
        vm: VmId,
        /// The process.
        claimant: Claimant,
        /// Opaque to the arbiter, at most [`ADDRESS_LEN_MAX`] bytes.
        address: String,
    },
    /// What is known about one VM?
    Look(VmId),
    /// What is known about all of them?
    List,
}

/// What the arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Call::Ask`].
    Answer(Answer),
    /// To [`Call::Announce`].
    Announced,
    /// To [`Call::Look`] and [`Call::List`], in the order of their names.
    Vms(Vec<VmStatus>),
    /// Nothing was decided, and the same call may be sent again.
    Failed(String),
}

/// What an arbiter knows about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub vm: VmId,
    /// Who may run it.
    pub record: Record,
    /// Where its processes can be reached, as they announced it, latest last.
    pub addresses: Vec<(Claimant, String)>,
}

/// A call or reply with the number that pairs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbered<T> {
    pub(crate) number: u64,
    pub(crate) body: T,
}

pub(crate) fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= FRAME_LEN_MAX);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "frame too long"))?;
    let mut frame = len.to_le_bytes().to_vec();
    frame.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    frame.extend_from_slice(&body);
    stream.write_all(&frame)?;
    stream.flush()
}

/// The next message; `None` if the peer closed the connection between two frames.
pub(crate) fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 8];
    loop {
        match stream.read(&mut head[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.read_exact(&mut head[1..])?;
    let (len, crc) = (head[..4].try_into(), head[4..].try_into());
    let len = u32::from_le_bytes(len.expect("half of eight bytes"));
    let crc = u32::from_le_bytes(crc.expect("half of eight bytes"));
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if len > FRAME_LEN_MAX {
        return Err(bad("frame is longer than any frame"));
    }
    let body = read_vec(stream, len as usize)?;
    if crc32fast::hash(&body) != crc {
        return Err(bad("frame has a wrong checksum"));
    }
    match postcard::take_from_bytes(&body) {
        Ok((message, [])) => Ok(Some(message)),
        _ => Err(bad("frame holds no known message")),
    }
}

#[cfg(test)]
mod tests {
    use base::SeededRng;

    use super::*;

    #[test]
    fn every_cut_and_every_flipped_bit_of_a_frame_is_found() {
        let call = Call::Announce {
            vm: VmId("vm".to_owned()),
            claimant: Claimant(7),
            address: "host:1".to_owned(),
        };
        let mut frame = Vec::new();
        write_frame(&mut frame, &call).unwrap();
        assert_eq!(read_frame(&mut &frame[..]).unwrap(), Some(call));
        assert_eq!(read_frame::<Call>(&mut &[][..]).unwrap(), None);
        for len in 1..frame.len() {
            assert!(read_frame::<Call>(&mut &frame[..len]).is_err(), "cut to {len} bytes");
        }
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read_frame::<Call>(&mut &flipped[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn noise_is_an_error_and_nothing_else() {
        for seed in 0..1000 {
            let mut rng = SeededRng::new(seed);
            let mut noise = vec![0; rng.below(64) as usize];
            rng.fill(&mut noise);
            // With a right checksum, so that the decoder behind it is reached too.
            let mut frame = (noise.len() as u32).to_le_bytes().to_vec();
            frame.extend_from_slice(&crc32fast::hash(&noise).to_le_bytes());
            frame.extend_from_slice(&noise);
            let _ = read_frame::<Numbered<Call>>(&mut &frame[..]); // must not panic
            let _ = read_frame::<Numbered<Call>>(&mut &noise[..]); // must not panic
        }
    }
}
