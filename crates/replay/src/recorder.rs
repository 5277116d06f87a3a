//! The side that makes the log: it injects inputs as they come and writes down what it did.

use std::collections::VecDeque;

use base::{Generation, Icount, LogPos};
use machine::event::{Event, Output};
use machine::{Machine, Stop};

use crate::format::{Body, End, Entry};

/// A machine whose inputs are logged.
///
/// Everything that could change the machine goes through here, so that the log is complete by
/// construction. The caller decides when to run, what to inject and where the bytes go.
#[derive(Debug)]
pub struct Recorder {
    machine: Machine,
    /// Entries since the last [`Recorder::take_entries`].
    entries: Vec<Entry>,
    end: LogPos,
    outputs: VecDeque<(LogPos, Output)>,
}

impl Recorder {
    /// Records `machine` from its present state, which is also what a reader of the log has to start
    /// from; the log goes on at `pos`.
    #[must_use]
    pub fn new(mut machine: Machine, pos: LogPos) -> Recorder {
        machine.begin_rolling_digest();
        Recorder { machine, entries: Vec::new(), end: pos, outputs: VecDeque::new() }
    }

    /// Goes on with `machine`, which has just handed out `unmarked`.
    pub(crate) fn resume(machine: Machine, pos: LogPos, unmarked: VecDeque<Output>) -> Recorder {
        let (entries, outputs) = (Vec::new(), VecDeque::new());
        let mut recorder = Recorder { machine, entries, end: pos, outputs };
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
        self.entries.push(Entry { icount: self.machine.icount(), body });
        self.end.0 += 1;
        self.end
    }
}
