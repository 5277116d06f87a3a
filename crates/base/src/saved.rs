//! Saved state as bytes: a header that can be read on its own, then a `postcard` body.
//!
//! Header: length-prefixed kind, version (u16), body length (u64); all little endian or varint as
//! `postcard` writes them. `docs/formats/` lists every kind and version.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// State that can be written to bytes and read back, by this build or a later one.
pub trait Saved: Serialize + DeserializeOwned {
    /// Names the state in files and errors.
    const KIND: &'static str;
    /// Goes up with every change of the format.
    const VERSION: u16;
}

#[derive(Serialize, Deserialize)]
struct Header {
    kind: String,
    version: u16,
    body_len: u64,
}

/// Why saved bytes were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes end early or are not saved state at all.
    #[error("{kind} state is cut short or damaged")]
    Damaged {
        /// What was being restored.
        kind: &'static str,
        /// What the decoder said.
        source: postcard::Error,
    },
    /// The bytes hold another kind of state.
    #[error("expected {expected} state, found {found}")]
    OtherKind {
        /// What was being restored.
        expected: &'static str,
        /// What the header says.
        found: String,
    },
    /// The bytes are from a newer build, or from one too old to be read.
    #[error("{kind} state is version {found}, this build reads version {known}")]
    OtherVersion {
        /// What was being restored.
        kind: &'static str,
        /// What the header says.
        found: u16,
        /// What this build reads.
        known: u16,
    },
    /// The bytes decode but describe a state that cannot be.
    #[error("{kind} state is impossible: {why}")]
    Impossible {
        /// What was being restored.
        kind: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Writes `state` with its header.
#[must_use]
pub fn save_bytes<S: Saved>(state: &S) -> Vec<u8> {
    let body = postcard::to_stdvec(state).expect("plain state always serializes");
    let header =
        Header { kind: S::KIND.to_owned(), version: S::VERSION, body_len: body.len() as u64 };
    let mut bytes = postcard::to_stdvec(&header).expect("a header always serializes");
    bytes.extend_from_slice(&body);
    bytes
}

/// The kind and version that `bytes` claim to hold.
///
/// # Errors
/// [`RestoreError::Damaged`] if there is no readable header.
pub fn saved_header(bytes: &[u8]) -> Result<(String, u16), RestoreError> {
    let (header, _) = take_header(bytes, "unknown")?;
    Ok((header.kind, header.version))
}

/// Reads what [`save_bytes`] wrote; returns the state and the bytes that follow it.
///
/// # Errors
/// Any [`RestoreError`]; the bytes are not trusted.
pub fn restore_bytes<S: Saved>(bytes: &[u8]) -> Result<(S, &[u8]), RestoreError> {
    let (header, rest) = take_header(bytes, S::KIND)?;
    if header.kind != S::KIND {
        return Err(RestoreError::OtherKind { expected: S::KIND, found: header.kind });
    }
    if header.version != S::VERSION {
        return Err(RestoreError::OtherVersion {
            kind: S::KIND,
            found: header.version,
            known: S::VERSION,
        });
    }
    let damaged = |source| RestoreError::Damaged { kind: S::KIND, source };
    let body_len = usize::try_from(header.body_len)
        .ok()
        .filter(|len| *len <= rest.len())
        .ok_or_else(|| damaged(postcard::Error::DeserializeUnexpectedEnd))?;
    let (body, rest) = rest.split_at(body_len);
    let (state, left) = postcard::take_from_bytes(body).map_err(damaged)?;
    if !left.is_empty() {
        return Err(damaged(postcard::Error::DeserializeBadEncoding));
    }
    Ok((state, rest))
}

fn take_header<'a>(
    bytes: &'a [u8],
    kind: &'static str,
) -> Result<(Header, &'a [u8]), RestoreError> {
    postcard::take_from_bytes(bytes).map_err(|source| RestoreError::Damaged { kind, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Door {
        open: bool,
    }
    impl Saved for Door {
        const KIND: &'static str = "door";
        const VERSION: u16 = 2;
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct OldDoor;
    impl Saved for OldDoor {
        const KIND: &'static str = "door";
        const VERSION: u16 = 1;
    }

    #[test]
    fn restore_gives_back_the_state_and_what_follows() {
        let mut bytes = save_bytes(&Door { open: true });
        bytes.push(7);
        let (door, rest): (Door, _) = restore_bytes(&bytes).unwrap();
        assert_eq!((door, rest), (Door { open: true }, &[7u8][..]));
    }

    #[test]
    fn another_version_is_named_not_misread() {
        let error = restore_bytes::<Door>(&save_bytes(&OldDoor)).unwrap_err();
        assert_eq!(error.to_string(), "door state is version 1, this build reads version 2");
    }

    #[test]
    fn every_cut_is_found() {
        let bytes = save_bytes(&Door { open: true });
        for len in 0..bytes.len() {
            assert!(restore_bytes::<Door>(&bytes[..len]).is_err(), "cut to {len} bytes");
        }
    }
}
