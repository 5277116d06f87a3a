//! Keeps the backup's execution close behind the primary's, by slowing the primary a little.
//!
//! Left alone, a backup that gets less CPU falls behind until the log buffer is full and the primary
//! stands still; and all of the lag is added to a takeover. So the primary gives up a few percent
//! at a time long before that, and takes them back as soon as the backup has caught up.

use base::Nanos;

/// A share of full speed, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speed(pub u16);

impl Speed {
    /// As fast as the host allows.
    pub const FULL: Speed = Speed(1000);
}

/// Above this lag the primary becomes slower.
pub const LAG_HIGH: Nanos = Nanos(1_000_000_000);
/// Below this lag it becomes faster again.
pub const LAG_LOW: Nanos = Nanos(500_000_000);
/// Time from one step to the next, so that a step can show its effect first.
pub const LAG_STEP: Nanos = Nanos(200_000_000);
/// One step: 3 % of full speed, up or down.
const STEP: u16 = 30;
/// While the lag grows beyond this many times [`LAG_HIGH`], a step takes an eighth of the speed.
const STEEP: u64 = 2;
/// The primary never gets slower than this: a guest at 5 % still answers.
pub const SPEED_MIN: Speed = Speed(50);
/// While a clone of a running machine catches up, its primary never gets slower than this.
pub const CLONING_SPEED_MIN: Speed = Speed(800);

/// Turns the lag into a speed for the primary.
#[derive(Debug)]
pub struct LagController {
    speed: Speed,
    min: Speed,
    last_lag: Nanos,
    next_step: Nanos,
}

impl LagController {
    /// A controller that never asks for less than `min`.
    #[must_use]
    pub fn new(min: Speed) -> LagController {
        LagController { speed: Speed::FULL, min, last_lag: Nanos(0), next_step: Nanos(0) }
    }

    /// The lag at `now`. Steps are taken at most every [`LAG_STEP`], however often this is called.
    pub fn handle_lag(&mut self, now: Nanos, lag: Nanos) -> Speed {
        if now < self.next_step {
            return self.speed;
        }
        self.next_step = Nanos(now.0 + LAG_STEP.0);
        let speed = self.speed.0;
        let speed = if lag > LAG_HIGH {
            // Slowing further while the lag already shrinks would only overshoot.
            let growing = lag >= self.last_lag;
            let step = if lag.0 < STEEP * LAG_HIGH.0 { STEP } else { STEP.max(speed / 8) };
            if growing { speed.saturating_sub(step) } else { speed }
        } else if lag < LAG_LOW {
            speed + STEP
        } else {
            speed
        };
        self.speed = Speed(speed.clamp(self.min.0, Speed::FULL.0));
        self.last_lag = lag;
        self.speed
    }

    /// The speed decided last.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// Changes the floor.
    pub(crate) fn set_min(&mut self, min: Speed) {
        self.min = min;
        self.speed = self.speed.max(min);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a primary against a backup that executes `backup(t)` thousandths of full speed. Returns the
    /// lag and the speed at every 100 ms.
    fn run(seconds: u64, backup: impl Fn(u64) -> u64) -> Vec<(u64, Speed)> {
        const SLICE_MS: u64 = 100;
        let mut controller = LagController::new(SPEED_MIN);
        let (mut speed, mut trace) = (Speed::FULL, vec![]);
        // Work in thousandths of a millisecond at full speed, and when the primary had done it.
        let mut done_at = std::collections::VecDeque::from([(0u64, 0u64)]);
        let (mut primary, mut follower) = (0u64, 0u64);
        for ms in (0..seconds * 1000).step_by(SLICE_MS as usize) {
            primary += u64::from(speed.0) * SLICE_MS;
            done_at.push_back((primary, ms));
            follower = primary.min(follower + backup(ms / 1000) * SLICE_MS);
            while done_at.front().is_some_and(|(work, _)| *work <= follower) {
                done_at.pop_front();
            }
            let lag_ms = done_at.front().map_or(0, |(_, at)| ms - at);
            speed = controller.handle_lag(Nanos(ms * 1_000_000), Nanos(lag_ms * 1_000_000));
            trace.push((lag_ms, speed));
        }
        trace
    }

    /// behaviour 94
    #[test]
    fn backup_that_keeps_up_costs_nothing() {
        assert!(run(60, |_| 1000).iter().all(|(_, speed)| *speed == Speed::FULL));
    }

    /// behaviour 92
    #[test]
    fn first_step_above_a_second_is_a_few_percent() {
        let trace = run(60, |_| 900);
        let (lag, first) = trace.iter().find(|(_, speed)| *speed < Speed::FULL).unwrap();
        assert!(*lag > 1000 && *first >= Speed(950), "{lag} ms, {first:?}");
    }

    /// behaviours 93, 95
    #[test]
    fn lag_stays_bounded_with_a_backup_of_any_speed() {
        // What the primary did in the first second takes a backup at a tenth of its speed ten.
        for (backup, worst_ms) in
            [(950, 2_000), (900, 2_500), (700, 4_000), (500, 6_000), (300, 10_000), (100, 30_000)]
        {
            let trace = run(300, |_| backup);
            let worst = trace.iter().map(|(lag, _)| *lag).max().unwrap();
            assert!(worst < worst_ms, "backup at {backup}: lag of {worst} ms");
            let later = trace[2000..].iter().map(|(lag, _)| *lag).max().unwrap();
            assert!(later < worst_ms / 2 + 1_000, "backup at {backup}: {later} ms in the long run");
        }
    }

    /// behaviour 93
    #[test]
    fn full_speed_returns_step_by_step_once_the_backup_has_caught_up() {
        let trace = run(120, |second| if (10..30).contains(&second) { 500 } else { 1100 });
        assert!(trace.iter().any(|(_, speed)| *speed < Speed(700)));
        let ups = trace.windows(2).map(|pair| pair[1].1.0.saturating_sub(pair[0].1.0));
        assert!(ups.max().unwrap() <= STEP, "it takes steps, not leaps");
        assert_eq!(trace.last().unwrap().1, Speed::FULL);
    }
}
