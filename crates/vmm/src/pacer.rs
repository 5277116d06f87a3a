//! Keeps guest time at real time (`--clock real`), by anchors.
//!
//! Between two anchors guest time is a function of the step count, at a rate set a little below the
//! measured speed: so guest time trails real time by a little and each anchor moves it forwards. A guest
//! that gets ahead all the same has to wait. All of this is pure: the host's time comes in as a number.

use base::Nanos;
use ft::ANCHOR_STEP_MAX;

/// A guest further ahead of real time than this waits.
const AHEAD_MAX_NS: u64 = 1_000_000;
/// A slice of run time, and so the distance between two anchors.
const SLICE_NS: u64 = 1_000_000;
const SLICE_STEPS_MIN: u64 = 1_000;
const SLICE_STEPS_MAX: u64 = 100_000;
/// While halted, anchors come at least this often, so that an idle guest's log is never silent.
pub(crate) const IDLE_ANCHOR_NS: u64 = 100_000_000;
/// One nanosecond a step, as a 32.32 fixed-point number.
const ONE_Q32: u64 = 1 << 32;
/// A first guess: 10 ns a step. It is corrected with the first slices.
const FIRST_RATE_Q32: u64 = 10 * ONE_Q32;
/// The rate that is set lies this share below the measured one: 1/16.
const MARGIN_SHIFT: u32 = 4;
/// A new measurement counts 1/8.
const SMOOTHING_SHIFT: u32 = 3;

/// Where guest time should be, and how fast the guest runs.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// At `base_host` on the host's clock guest time should be `base_guest`.
    base_host: Nanos,
    base_guest: Nanos,
    /// Nanoseconds a step, measured.
    rate_q32: u64,
    /// When the last anchor was set.
    anchored: Option<Nanos>,
}

/// An anchor to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) guest_ns: u64,
    pub(crate) ns_per_step_q32: u64,
}

impl Pacer {
    /// Guest time is `guest_ns` now and should move as real time does.
    pub(crate) fn new(now: Nanos, guest_ns: u64) -> Pacer {
        Pacer {
            base_host: now,
            base_guest: Nanos(guest_ns),
            rate_q32: FIRST_RATE_Q32,
            anchored: None,
        }
    }

    /// Guest time should be `ahead` more than it would be.
    pub(crate) fn advance(&mut self, ahead: Nanos) {
        self.base_guest.0 = self.base_guest.0.saturating_add(ahead.0);
    }

    /// Where guest time should be.
    pub(crate) fn wanted_ns(&self, now: Nanos) -> u64 {
        self.base_guest.0.saturating_add(now.0.saturating_sub(self.base_host.0))
    }

    /// How many steps make a slice at present.
    pub(crate) fn slice_steps(&self) -> u64 {
        let steps = (u128::from(SLICE_NS) << 32) / u128::from(self.rate_q32);
        u64::try_from(steps).unwrap_or(u64::MAX).clamp(SLICE_STEPS_MIN, SLICE_STEPS_MAX)
    }

    /// The guest ran `steps` steps in `took`.
    pub(crate) fn handle_ran(&mut self, steps: u64, took: Nanos) {
        if steps < SLICE_STEPS_MIN {
            return; // too short to tell
        }
        let measured = (u128::from(took.0) << 32) / u128::from(steps);
        // One long wait for a core, or a clock that stood still, is no measurement.
        let (low, high) = (ONE_Q32 / 64, 1000 * ONE_Q32);
        let measured = u64::try_from(measured).unwrap_or(high).clamp(low, high);
        let old = self.rate_q32 >> SMOOTHING_SHIFT;
        self.rate_q32 = self.rate_q32 - old + (measured >> SMOOTHING_SHIFT);
    }

    /// How long a guest at `guest_ns` has to wait for real time.
    pub(crate) fn wait(&self, now: Nanos, guest_ns: u64) -> Option<Nanos> {
        let ahead = guest_ns.saturating_sub(self.wanted_ns(now));
        (ahead > AHEAD_MAX_NS).then(|| Nanos(ahead - AHEAD_MAX_NS / 2))
    }

    /// The anchor for a running guest at `guest_ns`, once the last one is old enough.
    pub(crate) fn poll_anchor(&mut self, now: Nanos, guest_ns: u64) -> Option<Anchor> {
        // Half a slice: slices are cut short by inputs and vary with what the guest does.
        let due = self.anchored.is_none_or(|last| now.0.saturating_sub(last.0) >= SLICE_NS / 2);
        due.then(|| self.anchor(now, guest_ns))
    }

    /// The anchor for a guest at `guest_ns`. It never sets time back, and moves it by at most
    /// [`ANCHOR_STEP_MAX`]; the rest comes with the next ones.
    pub(crate) fn anchor(&mut self, now: Nanos, guest_ns: u64) -> Anchor {
        self.anchored = Some(now);
        let guest_ns =
            self.wanted_ns(now).clamp(guest_ns, guest_ns.saturating_add(ANCHOR_STEP_MAX.0));
        let ns_per_step_q32 = self.rate_q32 - (self.rate_q32 >> MARGIN_SHIFT);
        Anchor { guest_ns, ns_per_step_q32 }
    }

    /// For how long a halted guest may wait whose next timer is due at `deadline_ns`.
    pub(crate) fn halt_max(&self, now: Nanos, deadline_ns: Option<u64>) -> Nanos {
        let until_deadline =
            deadline_ns.map_or(u64::MAX, |due| due.saturating_sub(self.wanted_ns(now)));
        Nanos(until_deadline.min(IDLE_ANCHOR_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    #[test]
    fn guest_time_follows_real_time_at_any_speed() {
        for ns_per_step in [1u64, 7, 50] {
            let (mut now, mut guest_ns) = (Nanos(123 * MILLI), 0u64);
            let mut pacer = Pacer::new(now, guest_ns);
            for _ in 0..500 {
                let anchor = pacer.poll_anchor(now, guest_ns);
                let rate = anchor.map_or(ONE_Q32, |anchor| anchor.ns_per_step_q32);
                guest_ns = anchor.map_or(guest_ns, |anchor| anchor.guest_ns);
                let steps = pacer.slice_steps();
                let took = Nanos(steps * ns_per_step);
                now.0 += took.0;
                guest_ns += ((u128::from(steps) * u128::from(rate)) >> 32) as u64;
                pacer.handle_ran(steps, took);
                if let Some(wait) = pacer.wait(now, guest_ns) {
                    now.0 += wait.0;
                }
            }
            let real_ns = now.0 - 123 * MILLI;
            assert!(real_ns.abs_diff(guest_ns) <= 2 * MILLI, "{real_ns} and {guest_ns}");
        }
    }

    #[test]
    fn time_never_goes_back_and_jumps_are_bounded() {
        let mut pacer = Pacer::new(Nanos(0), 0);
        assert_eq!(pacer.anchor(Nanos(5), 100).guest_ns, 100);
        let asleep = Nanos(60_000 * MILLI);
        let first = pacer.anchor(asleep, 100).guest_ns;
        assert_eq!(first, 100 + ANCHOR_STEP_MAX.0);
        assert_eq!(pacer.anchor(asleep, first).guest_ns, first + ANCHOR_STEP_MAX.0);
    }

    /// behaviour 45
    #[test]
    fn an_idle_guest_is_anchored_ten_times_a_second() {
        let pacer = Pacer::new(Nanos(0), 0);
        assert_eq!(pacer.halt_max(Nanos(0), None), Nanos(IDLE_ANCHOR_NS));
        assert_eq!(pacer.halt_max(Nanos(3), Some(10)), Nanos(7));
    }
}
