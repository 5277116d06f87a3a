//! Guest time as an integer function of the step count.
//!
//! Between two anchors, `ns(icount) = anchor_ns + (icount - anchor_icount) * rate`, rounded down. An
//! anchor never sets time back. Everything in the guest that tells time derives from this function.

use base::Icount;
use serde::{Deserialize, Serialize};

/// A rate of one nanosecond a step, as `Clock::set_anchor` takes it.
pub const NS_PER_STEP_ONE_Q32: u64 = 1 << 32;
/// The slowest rate an anchor may set: 1 ms a step.
pub const NS_PER_STEP_Q32_MAX: u64 = 1_000_000 << 32;

/// Where guest time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClockMode {
    /// Anchors are inputs: guest time follows real time.
    Real,
    /// No anchors: one step is one nanosecond, and a halted CPU that awaits no answer from outside
    /// jumps to its next deadline.
    Virtual,
}

/// The machine's only clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    anchor: Icount,
    anchor_ns: u64,
    ns_per_step_q32: u64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { anchor: Icount(0), anchor_ns: 0, ns_per_step_q32: NS_PER_STEP_ONE_Q32 }
    }
}

impl Clock {
    /// Guest time at `icount`, which must not lie before the last anchor.
    #[inline]
    #[must_use]
    pub(crate) fn ns_at(&self, icount: Icount) -> u64 {
        debug_assert!(icount >= self.anchor, "guest time before the last anchor was asked for");
        let steps = u128::from(icount.since(self.anchor));
        let ns = (steps * u128::from(self.ns_per_step_q32)) >> 32;
        self.anchor_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// The first icount at which guest time is at least `ns`: now or earlier if it already is.
    #[must_use]
    pub(crate) fn icount_at(&self, ns: u64) -> Icount {
        let left = u128::from(ns.saturating_sub(self.anchor_ns)) << 32;
        let steps = left.div_ceil(u128::from(self.ns_per_step_q32.max(1)));
        self.anchor.plus(u64::try_from(steps).unwrap_or(u64::MAX))
    }

    /// Sets guest time at `icount` and the rate from there on. Time is never set back: an earlier
    /// `ns` counts as the time computed so far.
    pub(crate) fn set_anchor(&mut self, icount: Icount, ns: u64, ns_per_step_q32: u64) {
        let ns = ns.max(self.ns_at(icount));
        let ns_per_step_q32 = ns_per_step_q32.clamp(1, NS_PER_STEP_Q32_MAX);
        *self = Clock { anchor: icount, anchor_ns: ns, ns_per_step_q32 };
    }

    /// Jumps to `ns` at `icount` and keeps the rate.
    pub(crate) fn jump_to(&mut self, icount: Icount, ns: u64) {
        self.set_anchor(icount, ns, self.ns_per_step_q32);
    }

    /// The last anchor's position; no state before it can be asked about.
    #[must_use]
    pub(crate) fn anchor(&self) -> Icount {
        self.anchor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_at_the_first_icount_that_is_late_enough() {
        let mut clock = Clock::default();
        clock.set_anchor(Icount(1000), 5_000, (NS_PER_STEP_ONE_Q32 * 10) / 3);
        for ns in [5_000, 5_001, 5_003, 5_004, 6_000, 123_456_789] {
            let icount = clock.icount_at(ns);
            assert!(clock.ns_at(icount) >= ns, "{ns} ns");
            assert!(icount == Icount(1000) || clock.ns_at(Icount(icount.0 - 1)) < ns, "{ns} ns");
        }
    }

    #[test]
    fn an_anchor_below_the_computed_time_sets_only_the_rate() {
        let mut clock = Clock::default();
        clock.set_anchor(Icount(100), 40, 2 * NS_PER_STEP_ONE_Q32);
        assert_eq!(clock.ns_at(Icount(100)), 100);
        assert_eq!(clock.ns_at(Icount(101)), 102);
    }

    #[test]
    fn times_out_of_range_saturate() {
        let clock = Clock::default();
        assert_eq!(clock.icount_at(u64::MAX), Icount::MAX);
        assert_eq!(clock.ns_at(Icount::MAX), u64::MAX);
    }
}
