//! The host's clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use base::Nanos;
use nix::time::{ClockId, clock_gettime};

/// Time since some fixed point, never set back. It stands still while the host sleeps.
#[must_use]
pub fn monotonic() -> Nanos {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Like [`monotonic`], but it counts the time that the host slept. Whoever wants to know for how long
/// a peer was silent asks this clock.
#[must_use]
pub fn boottime() -> Nanos {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds since 1970 by the wall clock, for the start of a guest's RTC and for people.
#[must_use]
pub fn wall() -> Nanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn read(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock).expect("Linux has had both clocks since 2.6.39");
    let (seconds, nanos) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Nanos(seconds * 1_000_000_000 + nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_never_run_backwards() {
        let (first, then) = (monotonic(), boottime());
        assert!(monotonic() >= first && boottime() >= then);
    }
}
