//! The side that follows the log: a backup, or the replay of a file.

use std::collections::VecDeque;
use std::fmt;

use base::{Digest, Generation, Icount, LogPos};
use machine::event::Output;
use machine::{Machine, Stop};

use crate::format::{Body, End, Entry};
use crate::recorder::Recorder;

/// A machine that is driven by log entries alone.
///
/// It never runs past the last entry it was given, unless it is told that no other comes for a while
/// ([`Replayer::run_on`]): the CPU stops at that entry's icount and waits.
#[derive(Debug)]
pub struct Replayer {
    machine: Machine,
    entries: VecDeque<Entry>,
    /// Position behind the last entry that was applied.
    executed: LogPos,
    /// Position behind the last entry in `entries`.
    received: LogPos,
    /// Behind `entries`, the log is known to have nothing more before this.
    nothing_before: Option<Icount>,
    /// Outputs that the machine handed out and whose mark has not come yet.
    unmarked: VecDeque<Output>,
    /// Outputs whose mark was seen, in order.
    outputs: Vec<(LogPos, Output)>,
    /// Where the last state digest agreed: a divergence lies behind it.
    agreed: Icount,
    agreed_pos: LogPos,
    digest_count: u64,
    diverged: Option<Box<Divergence>>,
}

/// What [`Replayer::advance`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It used its steps up; more of the log is there.
    Running,
    /// It has executed every entry that it was given.
    Waiting,
    /// An entry of the protocol's was passed.
    Passed(Passed),
    /// The machine differs from the recorded one. It stays so.
    Diverged(Box<Divergence>),
}

/// Entries that say something about the log rather than about the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The pairing is committed.
    Armed(Generation),
    /// The pairing ended on purpose.
    Disarmed(Generation),
    /// The log ended on purpose.
    End(End),
}

/// How and where a machine stopped following its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The last position in the machine's life where a digest agreed.
    pub agreed: Icount,
    /// The same as a position in the log.
    pub agreed_pos: LogPos,
    /// Where the difference was seen.
    pub seen: Icount,
    /// Index of the entry at which it was seen.
    pub entry: u64,
    /// What differs.
    pub what: Difference,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The machine stopped before the entry's icount.
    StoppedEarly(Stop),
    /// The machine handed out an output where the log has no mark.
    OutputWithoutMark(&'static str),
    /// The log has a mark where the machine handed out nothing.
    MarkWithoutOutput,
    /// The output's digest.
    Output {
        /// What kind of output the machine handed out.
        kind: &'static str,
        /// The mark's digest.
        recorded: Digest,
        /// The machine's.
        replayed: Digest,
    },
    /// The state digest.
    State {
        /// The entry's digest.
        recorded: Digest,
        /// The machine's.
        replayed: Digest,
    },
    /// The machine is already past the entry's icount.
    EntryInThePast(Icount),
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Divergence { agreed, agreed_pos: _, seen, entry, what } = self;
        write!(
            f,
            "replay differs from the log between icount {agreed} and {seen} (entry {entry}): "
        )?;
        match what {
            Difference::StoppedEarly(stop) => write!(f, "the machine stopped early: {stop:?}"),
            Difference::OutputWithoutMark(kind) => write!(f, "{kind} without a mark"),
            Difference::MarkWithoutOutput => write!(f, "a mark without an output"),
            Difference::Output { kind, recorded, replayed } => {
                write!(f, "{kind}: recorded {recorded}, replayed {replayed}")
            }
            Difference::State { recorded, replayed } => {
                write!(f, "state: recorded {recorded}, replayed {replayed}")
            }
            Difference::EntryInThePast(icount) => {
                write!(f, "the entry belongs at icount {icount}, which has passed")
            }
        }
    }
}

impl Replayer {
    /// Follows a log that continues at `pos` from the state that `machine` is in.
    #[must_use]
    pub fn new(machine: Machine, pos: LogPos) -> Replayer {
        let agreed = machine.icount();
        Replayer {
            machine,
            entries: VecDeque::new(),
            executed: pos,
            received: pos,
            nothing_before: None,
            unmarked: VecDeque::new(),
            outputs: Vec::new(),
            agreed,
            agreed_pos: pos,
            digest_count: 0,
            diverged: None,
        }
    }

    /// Takes the next entry of the log.
    pub fn feed(&mut self, entry: Entry) {
        self.entries.push_back(entry);
        self.received.0 += 1;
    }

    /// Says that the machine which makes the log has run to `end`, and that the log has nothing more before
    /// there than what was fed.
    pub fn run_on(&mut self, end: Icount) {
        self.nothing_before = Some(end);
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The position behind the last entry that was applied.
    #[must_use]
    pub fn executed(&self) -> LogPos {
        self.executed
    }

    /// The position behind the last entry that was fed.
    #[must_use]
    pub fn received(&self) -> LogPos {
        self.received
    }

    /// The outputs since the last call whose marks were seen, each with the position behind its mark.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<(LogPos, Output)> {
        std::mem::take(&mut self.outputs)
    }

    /// How many state digests agreed so far.
    #[must_use]
    pub fn digest_count(&self) -> u64 {
        self.digest_count
    }

    /// Executes up to about `steps` steps of what was fed, or up to a reset, which costs what many
    /// steps do.
    pub fn advance(&mut self, steps: u64) -> Progress {
        let budget_end = self.machine.icount().plus(steps);
        let boot_count = self.machine.boot_count();
        loop {
            if let Some(divergence) = &self.diverged {
                return Progress::Diverged(divergence.clone());
            }
            let next = self.entries.front().map(|entry| entry.icount);
            let Some(target) = next.or(self.nothing_before) else { return Progress::Waiting };
            if self.machine.boot_count() != boot_count {
                return Progress::Running;
            }
            if self.machine.icount() < target {
                if self.machine.icount() >= budget_end {
                    return Progress::Running;
                }
                if let Err(what) = self.run_towards(target.min(budget_end)) {
                    self.diverge(what);
                }
                continue;
            }
            let Some(entry) = self.entries.pop_front() else {
                self.nothing_before = None;
                if let Err(what) = self.arrive(target) {
                    self.diverge(what);
                }
                continue;
            };
            match self.apply(entry) {
                Ok(None) => self.executed.0 += 1,
                Ok(Some(passed)) => {
                    self.executed.0 += 1;
                    return Progress::Passed(passed);
                }
                Err(what) => self.diverge(what),
            }
        }
    }

    /// Goes on as the side that makes the log, from the last entry executed. Outputs at the very end
    /// whose marks have not come are the first that the recorder hands out: nobody has seen them.
    ///
    /// # Panics
    /// If entries are left to execute, or the machine diverged: such a machine never goes live.
    #[must_use]
    pub fn go_live(self) -> Recorder {
        assert!(self.entries.is_empty(), "going live before the log was executed");
        assert!(self.diverged.is_none(), "a diverged machine goes live");
        Recorder::resume(self.machine, self.received, self.unmarked)
    }

    /// Does what is due at the step where the log is known to have nothing more before, and checks that
    /// nothing came out that has no mark.
    fn arrive(&mut self, end: Icount) -> Result<(), Difference> {
        self.run_towards(end)?;
        match self.unmarked.front() {
            Some(output) => Err(Difference::OutputWithoutMark(output.kind())),
            None => Ok(()),
        }
    }

    /// Runs to the next stop on the way to `until`, which no entry precedes.
    fn run_towards(&mut self, until: Icount) -> Result<(), Difference> {
        let before = self.machine.icount();
        let stop = self.machine.run(until);
        self.collect_outputs();
        if self.machine.icount() >= until {
            return Ok(());
        }
        if let Stop::Halted | Stop::Off(_) = stop {
            return Err(Difference::StoppedEarly(stop));
        }
        // An output stands at one icount only: its mark has to come before the next step.
        if let Some(output) = self.unmarked.front() {
            return Err(Difference::OutputWithoutMark(output.kind()));
        }
        debug_assert!(self.machine.icount() > before, "run made no progress");
        Ok(())
    }

    fn apply(&mut self, entry: Entry) -> Result<Option<Passed>, Difference> {
        if self.machine.icount() > entry.icount {
            return Err(Difference::EntryInThePast(entry.icount));
        }
        if !matches!(entry.body, Body::OutputMark(_))
            && let Some(output) = self.unmarked.front()
        {
            return Err(Difference::OutputWithoutMark(output.kind()));
        }
        match entry.body {
            Body::Event(event) => {
                self.machine.inject(event);
                self.collect_outputs();
            }
            Body::OutputMark(recorded) => self.check_output(recorded)?,
            // Only who goes live asks what was let out.
            Body::Released(_) => {}
            Body::StateDigest(recorded) => {
                // What is due at this very step is done before the digest, as in the recorder.
                self.machine.run(entry.icount);
                self.collect_outputs();
                let replayed = self.machine.rolling_digest();
                if replayed != recorded {
                    return Err(Difference::State { recorded, replayed });
                }
                self.agreed = self.machine.icount();
                self.agreed_pos = LogPos(self.executed.0 + 1);
                self.digest_count += 1;
            }
            Body::Armed(generation) => return Ok(Some(Passed::Armed(generation))),
            Body::Disarmed(generation) => return Ok(Some(Passed::Disarmed(generation))),
            Body::End(end) => return Ok(Some(Passed::End(end))),
        }
        Ok(None)
    }

    fn check_output(&mut self, recorded: Digest) -> Result<(), Difference> {
        let output = self.unmarked.pop_front().ok_or(Difference::MarkWithoutOutput)?;
        let replayed = output.digest();
        if replayed != recorded {
            return Err(Difference::Output { kind: output.kind(), recorded, replayed });
        }
        self.outputs.push((LogPos(self.executed.0 + 1), output));
        Ok(())
    }

    fn collect_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.unmarked.push_back(output);
        }
    }

    fn diverge(&mut self, what: Difference) {
        let divergence = Divergence {
            agreed: self.agreed,
            agreed_pos: self.agreed_pos,
            seen: self.machine.icount(),
            entry: self.executed.0,
            what,
        };
        self.diverged = Some(Box::new(divergence));
    }
}
