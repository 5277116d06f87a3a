//! The simulated network: links with delay, loss, repetition and cuts, and streams on top of them.
//!
//! Datagrams may be lost, repeated and reordered. A stream keeps its order; what a datagram would
//! have lost costs it a retransmission; behind a cut it waits; and when it breaks, what was
//! under way is gone.

use std::collections::BTreeMap;

use base::SeededRng;

/// Milliseconds in nanoseconds, the simulation's time.
pub const MS: u64 = 1_000_000;

/// Where something is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A host that runs VMs.
    Host(usize),
    /// The disk server and the arbiter.
    Storage,
}

/// Quality of all links.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Shortest way, in ns.
    pub delay_min: u64,
    /// Spread on top of it, in ns.
    pub jitter: u64,
    /// Of 1000 datagrams, so many are lost.
    pub lost: u64,
    /// Of 1000 pieces of a stream, so many have to be sent again.
    pub resent: u64,
    /// Of 1000 datagrams, so many come twice.
    pub repeated: u64,
    /// How late a repeated one may be, in ns.
    pub repeated_late: u64,
}

impl Default for Quality {
    fn default() -> Quality {
        Quality {
            delay_min: MS / 10,
            jitter: MS / 5,
            lost: 5,
            resent: 1,
            repeated: 5,
            repeated_late: 3_000 * MS,
        }
    }
}

/// A retransmission of a stream.
const RETRANSMIT: u64 = 200 * MS;

/// All links.
#[derive(Debug, Default)]
pub struct Net {
    /// Cut links, and until when.
    cuts: BTreeMap<(Place, Place), u64>,
    /// Directions in which streams make no progress, while datagrams do, and until when.
    stalls: BTreeMap<(Place, Place), u64>,
    /// How good the others are.
    pub quality: Quality,
    /// How good they are once they are mended.
    pub usual: Quality,
}

impl Net {
    /// Cuts the link between two places until `until`.
    pub fn cut(&mut self, a: Place, b: Place, until: u64) {
        let end = self.cuts.entry(key(a, b)).or_default();
        *end = until.max(*end);
    }

    /// Holds up streams from one place to another until `until`; datagrams pass.
    pub fn stall(&mut self, from: Place, to: Place, until: u64) {
        let end = self.stalls.entry((from, to)).or_default();
        *end = until.max(*end);
    }

    /// Mends everything.
    pub fn mend(&mut self) {
        self.stalls.clear();
        self.cuts.clear();
        self.quality = self.usual;
    }

    /// When the link between two places carries again: now, unless it is cut.
    #[must_use]
    pub fn up_at(&self, a: Place, b: Place, now: u64) -> u64 {
        self.cuts.get(&key(a, b)).copied().unwrap_or(0).max(now)
    }

    /// When a datagram arrives: never, once, or twice.
    pub fn datagram(&self, rng: &mut SeededRng, a: Place, b: Place, now: u64) -> Vec<u64> {
        if self.up_at(a, b, now) > now || rng.below(1000) < self.quality.lost {
            return vec![];
        }
        let mut arrivals = vec![now + self.delay(rng)];
        if rng.below(1000) < self.quality.repeated {
            arrivals.push(now + self.delay(rng) + rng.below(self.quality.repeated_late));
        }
        arrivals
    }

    /// When a piece of a stream from `a` to `b` arrives, which is not before `last`.
    pub fn segment(&self, rng: &mut SeededRng, a: Place, b: Place, now: u64, last: u64) -> u64 {
        let mut at = self.up_at(a, b, now);
        if at > now {
            at += rng.below(RETRANSMIT);
        }
        at = at.max(self.stalls.get(&(a, b)).copied().unwrap_or(0));
        while rng.below(1000) < self.quality.resent {
            at += RETRANSMIT;
        }
        (at + self.delay(rng)).max(last + 1)
    }

    fn delay(&self, rng: &mut SeededRng) -> u64 {
        self.quality.delay_min + rng.below(self.quality.jitter + 1)
    }
}

fn key(a: Place, b: Place) -> (Place, Place) {
    (a.min(b), a.max(b))
}
