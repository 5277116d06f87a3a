//! The stamp that a disk connection carries, so that a deposed side's writes are refused.

use std::fmt;

use base::Generation;
use serde::{Deserialize, Serialize};

/// `(generation, won)`: on first sight of a higher stamp a disk server refuses lower ones for good.
///
/// A VM's first connection carries the generation of its power-on with `won`; nobody connects with a
/// higher one before it has won that generation's claim.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp {
    /// The generation. Compared first.
    pub generation: Generation,
    /// Whether the connection's owner has won this generation.
    pub won: bool,
}

impl Stamp {
    /// The stamp of whoever won `generation`.
    #[must_use]
    pub const fn won(generation: Generation) -> Stamp {
        Stamp { generation, won: true }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let won = if self.won { "won" } else { "not won" };
        write!(f, "generation {} ({won})", self.generation)
    }
}
