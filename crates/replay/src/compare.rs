//! Two engines on one machine's life, compared at random steps: both replay a log ([`Comparison`]), or one
//! makes the log, live, and the interpreter follows it step by step ([`Shadow`]).
//!
//! Whoever follows is a replayer of its own, so it is also checked against the log. What differs is narrowed
//! down: from a snapshot behind the last comparison that agreed, both sides run to one step after the
//! other until the first is found at which they differ.

use std::fmt;
use std::sync::Arc;

use base::{Icount, LogPos, SeededRng};
use machine::{Machine, MachineError};

use crate::format::{Body, Entry};
use crate::replayer::{Progress, Replayer};

/// Steps between two snapshots to go back to.
const SNAPSHOT_STEPS: u64 = 1 << 29;
/// The same beside a live machine, which stands still meanwhile.
const LIVE_SNAPSHOT_STEPS: u64 = 1 << 31;
/// With as much of the log since the last snapshot, the next one is due.
const TRAIL_BYTES_MAX: usize = 128 << 20;
/// The longest run between two comparisons.
const SLICE_STEPS_MAX: u64 = 2_000_000;
/// A short one.
const SHORT_STEPS_MAX: u64 = 2000;
/// Instructions before the difference that are listed.
const LISTED: u64 = 24;

/// Gives a machine the engine under test.
pub type Equip = Arc<dyn Fn(&mut Machine) + Send + Sync>;

/// The interpreter and another engine on one log.
pub struct Comparison {
    interpreter: Replayer,
    other: Replayer,
    rng: SeededRng,
    trail: Trail,
    comparisons: u64,
}

/// The interpreter beside a machine that another engine runs live: it is given the log as it is made, and
/// compared whenever the other stops.
pub struct Shadow {
    interpreter: Replayer,
    rng: SeededRng,
    /// The most steps between two comparisons.
    every: u64,
    trail: Trail,
    comparisons: u64,
}

/// What it takes to find out where two sides went apart.
struct Trail {
    equip: Equip,
    snapshot: Snapshot,
    snapshot_steps: u64,
    /// Entries that were fed since the snapshot.
    entries: Vec<Entry>,
    /// What they take.
    bytes: usize,
    /// Where both were last equal.
    equal: Icount,
    /// The log is known to have nothing more before this.
    nothing_before: Option<Icount>,
}

/// Where one can go back to.
struct Snapshot {
    state: Vec<u8>,
    icount: Icount,
    pos: LogPos,
}

/// What a slice came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Compared {
    /// Both sides are equal, and this is how the interpreter's went.
    Equal(Progress),
    /// They are not.
    Different(Box<EngineDifference>),
}

/// Two engines made different things of the same log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineDifference {
    /// The last step count at which they were seen to be equal.
    pub equal: Icount,
    /// The first one at which they were seen to differ.
    pub differs: Icount,
    /// Whether that is the first at which they do. It is not known if the difference does not come again
    /// from a snapshot, because it depends on what the engine had kept.
    pub is_first: bool,
    /// The instructions before, as the interpreter ran them: an engine runs whole blocks, so any of them
    /// may be the cause.
    pub listing: Vec<String>,
    /// What differs.
    pub what: Vec<String>,
}

impl fmt::Display for EngineDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EngineDifference { equal, differs, .. } = self;
        write!(f, "the engines are equal at step {equal} and differ at {differs}")?;
        if !self.is_first {
            f.write_str(" (not from a snapshot before it, so the step is not known better)")?;
        }
        self.listing.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        self.what.iter().try_for_each(|line| write!(f, "\n  ** {line}"))
    }
}

impl Comparison {
    /// Follows a log that continues at `pos` from a saved state.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot be restored.
    pub fn new(state: Vec<u8>, pos: LogPos, equip: Equip) -> Result<Comparison, MachineError> {
        let interpreter = Replayer::new(Machine::restore(&state)?, pos);
        let mut machine = Machine::restore(&state)?;
        equip(&mut machine);
        let snapshot = Snapshot { state, icount: machine.icount(), pos };
        Ok(Comparison {
            interpreter,
            other: Replayer::new(machine, pos),
            rng: SeededRng::new(1),
            trail: Trail::new(snapshot, SNAPSHOT_STEPS, equip),
            comparisons: 0,
        })
    }

    /// Takes the next entry of the log.
    pub fn feed(&mut self, entry: Entry) {
        self.trail.feed(&entry);
        self.interpreter.feed(entry.clone());
        self.other.feed(entry);
    }

    /// The interpreter's side.
    #[must_use]
    pub fn interpreter(&mut self) -> &mut Replayer {
        &mut self.interpreter
    }

    /// How often the sides were compared.
    #[must_use]
    pub fn comparisons(&self) -> u64 {
        self.comparisons
    }

    /// Runs both sides over a random number of steps and compares them.
    pub fn advance(&mut self) -> Compared {
        let steps = slice_steps(&mut self.rng, SLICE_STEPS_MAX);
        let progress = self.interpreter.advance(steps);
        let others = self.other.advance(steps);
        self.comparisons += 1;
        let (interpreter, other) = (self.interpreter.machine(), self.other.machine());
        let mut what = interpreter.differences(other);
        if progress != others {
            what.push(format!("the log: {progress:?}, the engine {others:?}"));
        }
        if !what.is_empty() {
            let seen = interpreter.icount().max(other.icount());
            return Compared::Different(Box::new(self.trail.explain(what, seen)));
        }
        // Where more of the log is there, no output waits for its mark, so that a replay may begin here.
        self.trail.note_equal(&self.interpreter, progress == Progress::Running);
        Compared::Equal(progress)
    }
}

impl Shadow {
    /// Stands beside `leader`, which runs with the engine under test and whose log continues at `pos`. They are
    /// compared after at most `every` steps.
    ///
    /// # Errors
    /// [`MachineError`] if there is no memory for a second machine.
    pub fn new(
        leader: &Machine,
        pos: LogPos,
        (every, seed): (u64, u64),
        equip: Equip,
    ) -> Result<Shadow, MachineError> {
        let state = leader.save();
        let interpreter = Replayer::new(Machine::restore(&state)?, pos);
        let snapshot = Snapshot { state, icount: leader.icount(), pos };
        Ok(Shadow {
            interpreter,
            rng: SeededRng::new(seed),
            every: every.max(1),
            trail: Trail::new(snapshot, LIVE_SNAPSHOT_STEPS, equip),
            comparisons: 0,
        })
    }

    /// How many steps the leader should run before the next comparison, of the `most` that it would.
    pub fn slice_steps(&mut self, most: u64) -> u64 {
        slice_steps(&mut self.rng, most.min(self.every))
    }

    /// Takes the next entry of the log.
    pub fn feed(&mut self, entry: &Entry) {
        self.trail.feed(entry);
        self.interpreter.feed(entry.clone());
    }

    /// How often the sides were compared.
    #[must_use]
    pub fn comparisons(&self) -> u64 {
        self.comparisons
    }

    /// Follows the leader to where it is and compares. Every output of the leader has its mark in the log.
    ///
    /// # Errors
    /// What differs. Nothing can be compared after that.
    pub fn compare(&mut self, leader: &Machine) -> Result<(), Box<EngineDifference>> {
        let here = leader.icount();
        self.trail.nothing_before = Some(here);
        let progress = follow(&mut self.interpreter, here);
        // The leader's are the ones that leave.
        drop(self.interpreter.take_outputs());
        self.comparisons += 1;
        let mut what = self.interpreter.machine().differences(leader);
        if let Progress::Diverged(divergence) = progress {
            what.push(divergence.to_string());
        }
        if !what.is_empty() {
            return Err(Box::new(self.trail.explain(what, here)));
        }
        self.trail.note_equal(&self.interpreter, true);
        Ok(())
    }
}

fn slice_steps(rng: &mut SeededRng, most: u64) -> u64 {
    match rng.below(4) {
        0 => 1 + rng.below(most.min(SHORT_STEPS_MAX)),
        _ => 1 + rng.below(most),
    }
}

/// Runs a replayer to `end`, before which its log has nothing more.
fn follow(side: &mut Replayer, end: Icount) -> Progress {
    side.run_on(end);
    loop {
        match side.advance(u64::MAX) {
            Progress::Running | Progress::Passed(_) => {}
            progress @ (Progress::Waiting | Progress::Diverged(_)) => return progress,
        }
    }
}

impl Trail {
    fn new(snapshot: Snapshot, snapshot_steps: u64, equip: Equip) -> Trail {
        let equal = snapshot.icount;
        let (entries, bytes, nothing_before) = (Vec::new(), 0, None);
        Trail { equip, snapshot, snapshot_steps, entries, bytes, equal, nothing_before }
    }

    fn feed(&mut self, entry: &Entry) {
        self.bytes += entry.held_bytes();
        self.entries.push(entry.clone());
    }

    /// Both sides are as this one is. A replay may begin here if no output waits for its mark.
    fn note_equal(&mut self, side: &Replayer, may_begin: bool) {
        self.equal = side.machine().icount();
        let is_due = self.equal.since(self.snapshot.icount) >= self.snapshot_steps
            || self.bytes >= TRAIL_BYTES_MAX;
        if is_due && may_begin {
            let pos = side.executed();
            self.entries.drain(..(pos.0 - self.snapshot.pos.0) as usize);
            self.bytes = self.entries.iter().map(Entry::held_bytes).sum();
            let state = side.machine().save();
            self.snapshot = Snapshot { state, icount: self.equal, pos };
        }
    }

    fn explain(&self, what: Vec<String>, seen: Icount) -> EngineDifference {
        let (equal, differs, listing) = (self.equal, seen, Vec::new());
        let mut found = EngineDifference { equal, differs, is_first: false, listing, what };
        if let Some(base) = self.last_equal_state() {
            self.narrow(&base, &mut found);
        }
        found
    }

    /// A snapshot where both were last equal, if a replay may begin there; else the one before.
    fn last_equal_state(&self) -> Option<Snapshot> {
        let mut side = self.side_from(&self.snapshot, false)?;
        let snapshot = &self.snapshot;
        let progress = loop {
            match side.advance(self.equal.since(side.machine().icount())) {
                Progress::Passed(_) => {}
                progress => break progress,
            }
        };
        let pos = side.executed();
        let is_there = progress == Progress::Running && side.machine().icount() == self.equal;
        Some(if is_there {
            Snapshot { state: side.machine().save(), icount: self.equal, pos }
        } else {
            Snapshot { state: snapshot.state.clone(), ..*snapshot }
        })
    }

    /// A replay from a snapshot. The digests in the log are left out: they cover what was written since
    /// the last one, which a snapshot does not know.
    fn side_from(&self, snapshot: &Snapshot, equipped: bool) -> Option<Replayer> {
        let mut machine = Machine::restore(&snapshot.state).ok()?;
        if equipped {
            (self.equip)(&mut machine);
        }
        let mut side = Replayer::new(machine, snapshot.pos);
        let first = (snapshot.pos.0 - self.snapshot.pos.0) as usize;
        for entry in &self.entries[first..] {
            let body = match &entry.body {
                Body::StateDigest(_) => Body::Released(LogPos(0)),
                body => body.clone(),
            };
            side.feed(Entry { icount: entry.icount, body });
        }
        if let Some(end) = self.nothing_before {
            side.run_on(end);
        }
        Some(side)
    }

    /// Both sides at a step count.
    fn sides_at(&self, base: &Snapshot, at: Icount) -> Option<[Replayer; 2]> {
        let mut sides = [self.side_from(base, false)?, self.side_from(base, true)?];
        for side in &mut sides {
            run_to(side, at);
        }
        Some(sides)
    }

    fn narrow(&self, base: &Snapshot, found: &mut EngineDifference) {
        let differences_at = |at: u64| -> Vec<String> {
            let sides = self.sides_at(base, Icount(at));
            sides.map_or(Vec::new(), |[ours, theirs]| ours.machine().differences(theirs.machine()))
        };
        let (mut low, mut high) = (base.icount.0.max(self.equal.0), found.differs.0);
        let what = differences_at(high);
        if what.is_empty() {
            return;
        }
        found.what = what;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let what = differences_at(middle);
            if what.is_empty() {
                low = middle;
            } else {
                high = middle;
                found.what = what;
            }
        }
        (found.equal, found.differs, found.is_first) = (Icount(low), Icount(high), true);
        found.listing = self.list(base, high);
    }

    /// The instructions before a step count.
    fn list(&self, base: &Snapshot, end: u64) -> Vec<String> {
        let Some(mut side) = self.side_from(base, false) else { return Vec::new() };
        let start = end.saturating_sub(LISTED).max(base.icount.0);
        (start..end)
            .map(|at| {
                run_to(&mut side, Icount(at));
                format!("{at} {}", side.machine().next_instruction())
            })
            .collect()
    }
}

/// Runs a side to a step count, or to the end of what it was fed.
fn run_to(side: &mut Replayer, at: Icount) {
    while side.machine().icount() < at {
        match side.advance(at.since(side.machine().icount())) {
            Progress::Running | Progress::Passed(_) => {}
            Progress::Waiting | Progress::Diverged(_) => return,
        }
    }
}
