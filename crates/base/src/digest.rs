//! State digests: XXH3-128 (`xxhash-rust`). They find divergence between honest machines; they are
//! no defence against somebody who searches for collisions.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// A 128-bit digest of some state or output.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(xxh3_128(bytes).to_le_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A digest taken piece by piece. Pieces are framed by their length, so moving a byte from one
/// piece to the next changes the result.
#[derive(Default)]
pub struct Digester(Xxh3);

impl Digester {
    /// Adds a piece whose length is part of the digest.
    pub fn update(&mut self, bytes: &[u8]) {
        self.update_u64(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// Adds a number.
    pub fn update_u64(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    /// The digest of all pieces so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(self.0.digest128().to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_byte_between_pieces_changes_the_digest() {
        let of = |pieces: [&[u8]; 2]| {
            let mut digester = Digester::default();
            pieces.iter().for_each(|piece| digester.update(piece));
            digester.finish()
        };
        assert_ne!(of([b"ab", b"c"]), of([b"a", b"bc"]));
    }
}
