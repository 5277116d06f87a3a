//! The side that makes the log: it injects inputs as they come and writes down what it did.

use std::collections::VecDeque;

use base::{Generation, Icount, LogPos};
use machine::event::{Event, Output};
use machine::{Machine, Stop};

use crate::format::{Body, Encoder, End, Entry};

/// A machine whose inputs are logged.
///
/// Everything that could change the machine goes through here, so that the log is complete by
/// construction. The caller decides when to run, what to inject and where the bytes go.
#[derive(Debug)]
pub struct Recorder {
    machine: Machine,
    /// `None` while nobody wants a log: a machine that runs alone and unrecorded.
    encoder: Option<Encoder>,
    end: LogPos,
    outputs: VecDeque<(LogPos, Output)>,
}

impl Recorder {
    /// Records `machine` from its present state: returns the bytes that start the log.
    #[must_use]
    pub fn start(mut machine: Machine) -> (Recorder, Vec<u8>) {
        machine.begin_rolling_digest();
        let bytes = Encoder::encode_start(&machine.save());
        let mut recorder = Recorder::unlogged(machine, LogPos(0));
        recorder.start_log();
        (recorder, bytes)
    }

    /// Drives `machine` without a log. Positions still count, from `pos`.
    #[must_use]
    pub fn unlogged(machine: Machine, pos: LogPos) -> Recorder {
        Recorder { machine, encoder: None, end: pos, outputs: VecDeque::new() }
    }

    /// Logs from here on. The reader needs the machine's state and position of this moment.
    pub fn start_log(&mut self) {
        self.encoder = Some(Encoder::new(self.end, self.machine.icount()));
    }

    /// Logs no longer; what was not taken is lost.
    pub fn stop_log(&mut self) {
        self.encoder = None;
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Gives the machine up.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.machine
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

    /// True if entries wait for [`Recorder::take_log`].
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.encoder.as_ref().is_some_and(|encoder| !encoder.is_empty())
    }

    /// One frame with the entries since the last call, for the channel or the file.
    #[must_use]
    pub fn take_log(&mut self) -> Vec<u8> {
        self.encoder.as_mut().map(Encoder::take_bytes).unwrap_or_default()
    }

    fn collect_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            let pos = self.push(Body::OutputMark(output.digest()));
            self.outputs.push_back((pos, output));
        }
    }

    fn push(&mut self, body: Body) -> LogPos {
        if let Some(encoder) = &mut self.encoder {
            encoder.push(Entry { icount: self.machine.icount(), body });
        }
        self.end.0 += 1;
        self.end
    }
}
