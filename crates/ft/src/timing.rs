//! How long the protocol waits, and for what. Everything follows from one number, the detection
//! timeout, so that the safety margins between the two sides keep their proportions.
//!
//! All times are of each host's own monotonic clock **that counts suspend** (`CLOCK_BOOTTIME`); no
//! time of one host is ever compared with a time of another.

use base::Nanos;
use serde::{Deserialize, Serialize};

/// The pair's timing. The primary's is used by both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Silence, or missing progress, for this long is a failure.
    pub detection: Nanos,
    /// How long a primary's guest runs on, outputs held, while the arbiter does not answer.
    pub arbitration_run_max: Nanos,
}

/// Why a timing is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// Outside `DETECTION_MIN..=DETECTION_MAX`.
    #[error("the detection timeout is {0}; it has to lie between 100 ms and 60 s")]
    Detection(Nanos),
    /// Longer than [`ARBITRATION_RUN_MAX`].
    #[error("the guest may run for {0} without an arbiter; the longest is 60 s")]
    ArbitrationRun(Nanos),
}

const MILLI: u64 = 1_000_000;
/// Below this, scheduling on a loaded host looks like a failure.
pub const DETECTION_MIN: Nanos = Nanos(100 * MILLI);
/// Above this, TCP connections of clients give up first.
pub const DETECTION_MAX: Nanos = Nanos(60_000 * MILLI);
/// Above this, the held outputs would come as a burst that no client waited for.
pub const ARBITRATION_RUN_MAX: Nanos = Nanos(60_000 * MILLI);
/// Log entries that no output waits for travel in batches of this age.
pub const LOG_FLUSH: Nanos = Nanos(10 * MILLI);
/// An unanswered question to the arbiter is asked again after this long.
pub const ASK_AGAIN: Nanos = Nanos(200 * MILLI);
/// A pairing in which a step takes longer than this, with nothing heard, is given up.
pub const PAIRING_SILENCE_MAX: Nanos = Nanos(10_000 * MILLI);
/// Guest time moves forwards by at most this much at once when a backup goes live.
pub const ANCHOR_STEP_MAX: Nanos = Nanos(5_000 * MILLI);

impl Default for Timing {
    fn default() -> Timing {
        Timing::with_detection(Nanos(1_000 * MILLI))
    }
}

impl Timing {
    /// Fast takeover on hosts with cores to spare and a quiet network.
    #[must_use]
    pub const fn aggressive() -> Timing {
        Timing::with_detection(Nanos(300 * MILLI))
    }

    /// For busy hosts and networks that lose packets.
    #[must_use]
    pub const fn relaxed() -> Timing {
        Timing::with_detection(Nanos(3_000 * MILLI))
    }

    const fn with_detection(detection: Nanos) -> Timing {
        Timing { detection, arbitration_run_max: Nanos(2_000 * MILLI) }
    }

    /// Checks a timing from outside.
    ///
    /// # Errors
    /// A [`TimingError`] if a value is out of its range.
    pub fn check(self) -> Result<Timing, TimingError> {
        if self.detection < DETECTION_MIN || self.detection > DETECTION_MAX {
            return Err(TimingError::Detection(self.detection));
        }
        if self.arbitration_run_max > ARBITRATION_RUN_MAX {
            return Err(TimingError::ArbitrationRun(self.arbitration_run_max));
        }
        Ok(self)
    }

    /// Heartbeats, acknowledgements and pings leave this often, whether or not anything moved.
    #[must_use]
    pub fn beat(self) -> Nanos {
        Nanos((self.detection.0 / 10).min(100 * MILLI))
    }

    /// The primary declares its backup failed a little sooner than the other way round: of two
    /// healthy sides that lost each other, the one that needs no takeover should win.
    #[must_use]
    pub(crate) fn primary_detection(self) -> Nanos {
        Nanos(self.detection.0 / 10 * 9)
    }

    /// An output leaves only if the backup is known to have followed the primary this recently.
    #[must_use]
    pub fn fresh_max(self) -> Nanos {
        Nanos(self.detection.0 / 3)
    }

    /// A new primary lets nothing out until this long after the last thing it heard from the old
    /// one. [`Timing::fresh_max`] of it is the old one's; the rest is the time that the old one's
    /// shell has between its check and the wire.
    #[must_use]
    pub fn quiet(self) -> Nanos {
        Nanos(self.detection.0 / 3 * 2)
    }

    /// Silence is counted in steps of at most this much: a side that was not running has not
    /// listened, so the time it slept says nothing about the other side.
    #[must_use]
    pub(crate) fn silence_step_max(self) -> Nanos {
        Nanos(self.detection.0 / 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_hold_in_every_profile() {
        for timing in [Timing::aggressive(), Timing::default(), Timing::relaxed()] {
            let timing = timing.check().unwrap();
            // One lost beat, and the one after it, change nothing.
            assert!(timing.beat().0 * 3 <= timing.fresh_max().0);
            assert!(timing.beat().0 * 8 <= timing.primary_detection().0);
            assert!(timing.fresh_max() < timing.quiet());
            assert!(timing.quiet() < timing.primary_detection());
            assert!(timing.primary_detection() < timing.detection);
        }
    }

    #[test]
    fn timing_out_of_range_is_named() {
        let timing = Timing { detection: Nanos(MILLI), ..Timing::default() };
        assert!(timing.check().unwrap_err().to_string().contains("between 100 ms and 60 s"));
        let timing = Timing { arbitration_run_max: Nanos(u64::MAX), ..Timing::default() };
        assert!(timing.check().is_err());
    }
}
