//! The side that makes the log: it injects inputs as they come and writes down what it did.

use std::collections::VecDeque;
use std::fmt;

use base::{Generation, Icount, LogPos};
use machine::event::{Event, Output};
use machine::{Machine, Stop};

use crate::compare::{EngineDifference, Shadow};
use crate::format::{Body, End, Entry};

/// A machine whose inputs are logged.
///
/// Everything that could change the machine goes through here, so that the log is complete by
/// construction. The caller decides when to run, what to inject and where the bytes go.
pub struct Recorder {
    machine: Machine,
    /// Entries since the last [`Recorder::take_entries`].
    entries: Vec<Entry>,
    end: LogPos,
    outputs: VecDeque<(LogPos, Output)>,
    /// Another engine that does the same.
    shadow: Option<Box<Shadow>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder of {:?} at {}", self.machine, self.end)
    }
}

impl Recorder {
    /// Records `machine` from its present state, which is also what a reader of the log has to start
    /// from; the log goes on at `pos`.
    #[must_use]
    pub fn new(mut machine: Machine, pos: LogPos) -> Recorder {
        machine.begin_rolling_digest();
        Recorder::with(machine, pos)
    }

    fn with(machine: Machine, pos: LogPos) -> Recorder {
        let (entries, outputs) = (Vec::new(), VecDeque::new());
        Recorder { machine, entries, end: pos, outputs, shadow: None }
    }

    /// Has another engine do the same from here on, for [`Recorder::compare`].
    pub fn set_shadow(&mut self, shadow: Shadow) {
        self.shadow = Some(Box::new(shadow));
    }

    /// The other engine, if there is one.
    #[must_use]
    pub fn shadow(&self) -> Option<&Shadow> {
        self.shadow.as_deref()
    }

    /// The other engine, if there is one.
    pub fn shadow_mut(&mut self) -> Option<&mut Shadow> {
        self.shadow.as_deref_mut()
    }

    /// Brings the other engine here, if there is one, and compares.
    ///
    /// # Errors
    /// What differs. The other engine is dropped then.
    pub fn compare(&mut self) -> Result<(), Box<EngineDifference>> {
        if self.shadow.is_some() {
            // As for a digest: what is due at this very step is done before, here and in the replayer.
            self.run(self.machine.icount());
        }
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        shadow.compare(&self.machine).inspect_err(|_| self.shadow = None)
    }

    /// Goes on with `machine`, which has just handed out `unmarked`.
    pub(crate) fn resume(machine: Machine, pos: LogPos, unmarked: VecDeque<Output>) -> Recorder {
        let mut recorder = Recorder::with(machine, pos);
        unmarked.into_iter().for_each(|output| recorder.mark(output));
        recorder
    }

    /// Saves the machine for somebody who follows the log from here on.
    #[must_use]
    pub fn save(&mut self) -> Vec<u8> {
        self.machine.begin_rolling_digest();
        self.machine.save()
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The position behind the last entry.
    #[must_use]
    pub fn end(&self) -> LogPos {
        self.end
    }

    /// Applies an input now.
    pub fn inject(&mut self, event: Event) {
        self.push(Body::Event(event.clone()));
        self.machine.inject(event);
        self.collect_outputs();
    }

    /// Runs the guest as [`Machine::run`] does and logs a mark for every output.
    pub fn run(&mut self, until: Icount) -> Stop {
        let stop = self.machine.run(until);
        self.collect_outputs();
        stop
    }

    /// Logs the rolling digest of the machine as it is now.
    pub fn record_digest(&mut self) {
        // What is due at this very step is done before the digest, here and in the replayer.
        self.run(self.machine.icount());
        let digest = self.machine.rolling_digest();
        self.push(Body::StateDigest(digest));
    }

    /// Logs that every output up to `pos` has left.
    pub fn record_released(&mut self, pos: LogPos) {
        self.push(Body::Released(pos));
    }

    /// Logs the commit point of a pairing and returns the position that covers it.
    pub fn record_armed(&mut self, generation: Generation) -> LogPos {
        self.push(Body::Armed(generation))
    }

    /// Logs the planned end of a pairing and returns the position that covers it.
    pub fn record_disarmed(&mut self, generation: Generation) -> LogPos {
        self.push(Body::Disarmed(generation))
    }

    /// Logs the end of the log, with a last digest before it.
    pub fn record_end(&mut self, end: End) -> LogPos {
        self.record_digest();
        self.push(Body::End(end))
    }

    /// The next output, with the position that has to be acknowledged before it may leave.
    pub fn poll_output(&mut self) -> Option<(LogPos, Output)> {
        self.outputs.pop_front()
    }

    /// Forgets the outputs that were not asked for.
    pub fn drop_outputs(&mut self) {
        self.outputs.clear();
    }

    /// The entries since the last call. A recording and the logging channel get the same ones.
    #[must_use]
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    fn collect_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.mark(output);
        }
    }

    fn mark(&mut self, output: Output) {
        let pos = self.push(Body::OutputMark(output.digest()));
        self.outputs.push_back((pos, output));
    }

    fn push(&mut self, body: Body) -> LogPos {
        let entry = Entry { icount: self.machine.icount(), body };
        if let Some(shadow) = &mut self.shadow {
            shadow.feed(&entry);
        }
        self.entries.push(entry);
        self.end.0 += 1;
        self.end
    }
}
