//! Numbers with a meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a guest page: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $fmt:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    };
}

number!(
    /// Steps since power-on: retired instructions, iterations of REP string instructions, and
    /// delivered interrupts and exceptions (`docs/determinism.md`).
    Icount,
    "{}"
);
number!(
    /// A position in the event log: the first `n` entries. An entry with index `i` (from 0) lies
    /// inside every position above `i`, so "the log up to and including entry `i`" is `LogPos(i + 1)`.
    LogPos,
    "{}"
);
number!(
    /// Names one pairing of one VM. Never decreases over the life of a VM.
    Generation,
    "{}"
);
number!(
    /// Nanoseconds: of guest time, or of the host's monotonic clock; the field says which.
    Nanos,
    "{} ns"
);
number!(
    /// Guest physical address.
    Gpa,
    "{:#x}"
);
number!(
    /// Guest virtual (linear) address.
    Gva,
    "{:#x}"
);

impl Icount {
    /// The later of no time at all: an icount that is never reached.
    pub const MAX: Icount = Icount(u64::MAX);

    /// This count after `steps` more steps, or [`Icount::MAX`].
    #[must_use]
    pub const fn plus(self, steps: u64) -> Icount {
        Icount(self.0.saturating_add(steps))
    }

    /// Steps from `earlier` to this count; 0 if `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Icount) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Gpa {
    /// Index of the page that holds this address.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

impl Gva {
    /// Index of the page that holds this address.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}

impl Generation {
    /// The generation that follows.
    #[must_use]
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

/// Identity of one process's part in a pairing: 128 random bits, drawn when the process joins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claimant(pub u128);

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claimant({self})")
    }
}

/// The name under which an arbiter, a disk server and the hosts know one VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub String);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
