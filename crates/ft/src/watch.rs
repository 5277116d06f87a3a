//! Decides that the other side has failed.
//!
//! Three signals are watched: heartbeats, the stream, and progress of a machine that should run. Time
//! is counted in small steps, each capped: a side that did not run for a while (stopped, suspended,
//! starved of CPU) has not listened, so that time is not held against the other one. An overloaded
//! side that still gets an occasional turn sends an occasional beat and makes an occasional step,
//! and one of each per detection timeout is enough.

use base::Nanos;

use crate::message::{Progress, Refuse, RunState, Window};

/// Why a side goes on alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Heartbeats stopped.
    #[error("no heartbeat for {0}")]
    NoHeartbeat(Nanos),
    /// The logging channel fell silent, and could not be opened again.
    #[error("nothing on the logging channel for {0}")]
    NoStream(Nanos),
    /// The other machine should run and does not.
    #[error("no progress for {0}")]
    NoProgress(Nanos),
    /// The backup found that its machine differs.
    #[error("the backup diverged {0}")]
    Diverged(Window),
    /// The backup said that it leaves.
    #[error("the backup left the pair")]
    Left,
    /// Whoever answers at the backup's address is not this generation's backup.
    #[error("the backup does not go on with this generation")]
    Refused(#[source] Refuse),
}

#[derive(Clone, Copy, Debug, Default)]
struct Count(u64);

impl Count {
    fn over(self, limit: Nanos) -> Option<Nanos> {
        (self.0 >= limit.0).then_some(Nanos(self.0))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Watch {
    heartbeat: Count,
    stream: Count,
    stuck: Count,
    progress: Progress,
    /// The other machine is supposed to make progress.
    busy: bool,
    heartbeat_heard: bool,
}

impl Watch {
    /// Time passed while this side was awake.
    pub(crate) fn handle_time(&mut self, step: Nanos) {
        self.heartbeat.0 += step.0;
        self.stream.0 += step.0;
        self.stuck.0 = if self.busy { self.stuck.0 + step.0 } else { 0 };
    }

    pub(crate) fn handle_heartbeat(&mut self) {
        self.heartbeat.0 = 0;
        self.heartbeat_heard = true;
    }

    pub(crate) fn handle_stream(&mut self) {
        self.stream.0 = 0;
    }

    /// Reports may be late or repeated: only progress beyond what was known counts.
    pub(crate) fn handle_progress(&mut self, run: RunState, progress: Progress, has_work: bool) {
        let before = self.progress;
        self.progress.icount = before.icount.max(progress.icount);
        self.progress.pos = before.pos.max(progress.pos);
        self.busy = run == RunState::Running && has_work;
        if self.progress != before || !self.busy {
            self.stuck.0 = 0;
        }
    }

    /// Whether heartbeats pass at all.
    pub(crate) fn heartbeat_heard(&self) -> bool {
        self.heartbeat_heard
    }

    /// The other side has failed, if nothing was heard of it for `limit`.
    pub(crate) fn failure(&self, limit: Nanos) -> Option<Failure> {
        let heartbeat = self.heartbeat.over(limit).map(Failure::NoHeartbeat);
        let stream = || self.stream.over(limit).map(Failure::NoStream);
        let stuck = || self.stuck.over(limit).map(Failure::NoProgress);
        heartbeat.or_else(stream).or_else(stuck)
    }

    /// Nothing at all was heard for `limit`.
    pub(crate) fn silent(&self, limit: Nanos) -> bool {
        self.heartbeat.0.min(self.stream.0) >= limit.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Icount, LogPos};

    const LIMIT: Nanos = Nanos(1000);
    const STEP: Nanos = Nanos(100);

    fn at(icount: u64) -> Progress {
        Progress { icount: Icount(icount), pos: LogPos(0) }
    }

    /// Runs `steps` steps, each with what `alive` does, and returns the failure.
    fn run(steps: u64, alive: impl Fn(u64, &mut Watch)) -> Option<Failure> {
        let mut watch = Watch::default();
        for step in 0..steps {
            watch.handle_time(STEP);
            alive(step, &mut watch);
        }
        watch.failure(LIMIT)
    }

    /// behaviour 46
    #[test]
    fn either_signal_alone_falling_silent_is_a_failure() {
        assert_eq!(run(10, |_, watch| watch.handle_stream()), Some(Failure::NoHeartbeat(LIMIT)));
        assert_eq!(run(10, |_, watch| watch.handle_heartbeat()), Some(Failure::NoStream(LIMIT)));
    }

    /// behaviours 47, 155
    #[test]
    fn an_occasional_beat_is_enough() {
        let failure = run(1000, |step, watch| {
            if step % 9 == 0 {
                watch.handle_heartbeat();
                watch.handle_stream();
            }
        });
        assert_eq!(failure, None);
    }

    #[test]
    fn missing_progress_counts_only_while_the_machine_should_run() {
        let with = |run_state, has_work| {
            run(10, move |_, watch| {
                watch.handle_heartbeat();
                watch.handle_stream();
                watch.handle_progress(run_state, at(5), has_work);
            })
        };
        assert_eq!(with(RunState::Paused, true), None);
        assert_eq!(with(RunState::Running, false), None);
        let failure = run(11, |_, watch| {
            watch.handle_heartbeat();
            watch.handle_stream();
            watch.handle_progress(RunState::Running, at(5), true);
        });
        assert_eq!(failure, Some(Failure::NoProgress(LIMIT)));
    }

    /// behaviour 155
    #[test]
    fn slow_progress_is_progress_and_an_old_report_is_none() {
        let slow = |old: bool| {
            run(100, move |step, watch| {
                watch.handle_heartbeat();
                watch.handle_stream();
                let icount = if old { step % 2 } else { step / 9 };
                watch.handle_progress(RunState::Running, at(icount), true);
            })
        };
        assert_eq!(slow(false), None);
        assert!(matches!(slow(true), Some(Failure::NoProgress(_))));
    }
}
