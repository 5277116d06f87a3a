//! The guest of the simulation: a counter service with a disk, small and deterministic.
//!
//! Every reply carries the number of operations so far and a hash over all of them, so a reply that
//! contradicts any earlier one shows. Every operation writes or reads the disk; half of the replies
//! wait for their write, like a server that calls `fsync`.

use std::collections::{BTreeMap, VecDeque};

use base::{Digest, Icount, LogPos, Saved};
use serde::{Deserialize, Serialize};

/// Blocks of the disk.
pub const BLOCKS: usize = 4;

/// An event of the log, as the model machine has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A client asks for its operation `seq`.
    Request {
        /// The client.
        client: u8,
        /// Counts up from 1 per client.
        seq: u32,
    },
    /// A disk request is done.
    DiskDone {
        /// The request.
        id: u64,
        /// What was read, if it was a read.
        data: u64,
    },
    /// The guest may run so many steps.
    Anchor(u64),
    /// The machine produced an output with this digest here.
    Mark(Digest),
    /// The machine's digest here.
    State(Digest),
    /// An entry of the protocol.
    Control,
}

impl Saved for Event {
    const KIND: &'static str = "sim-event";
    const VERSION: u16 = 1;
}

/// What leaves the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// A reply to a client.
    Reply(Reply),
    /// A request to the disk.
    Disk(DiskRequest),
}

/// A reply: the client's operation was the `number`th of all, and `chain` sums up all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// To whom.
    pub client: u8,
    /// To what.
    pub seq: u32,
    /// Position among all operations.
    pub number: u64,
    /// Hash over all operations up to this one.
    pub chain: u64,
}

/// A request to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// Its number.
    pub id: u64,
    /// The block.
    pub block: usize,
    /// What to write; nothing for a read.
    pub write: Option<u64>,
    /// What a read has to find; never sent to the disk.
    expect: u64,
    /// The reply that waits for it.
    reply: Option<Reply>,
}

/// The whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Steps executed.
    pub icount: Icount,
    /// Entries executed.
    pub pos: LogPos,
    /// All operations: client, number of its request, and the hash up to it.
    pub history: Vec<Reply>,
    /// The last reply per client, unless it still waits for the disk.
    last: BTreeMap<u8, (u32, Option<Reply>)>,
    /// What each block holds once all requests are done.
    pub disk: [u64; BLOCKS],
    /// Submitted and not done, one per block at most.
    in_flight: BTreeMap<u64, DiskRequest>,
    /// Behind another request for the same block.
    queued: VecDeque<DiskRequest>,
    next_disk_id: u64,
    /// Outputs whose mark has not come yet.
    unmarked: VecDeque<Output>,
    /// Of each output so far, whether it was a reply.
    pub outputs: Vec<bool>,
    /// A read found what the machine never wrote, or wrote before something else.
    pub disk_is_wrong: Option<DiskRequest>,
}

impl Saved for Machine {
    const KIND: &'static str = "sim-machine";
    const VERSION: u16 = 1;
}

/// What an entry brought about.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that matters outside.
    Nothing,
    /// An output at the machine's present position.
    Output(Output),
    /// The machine differs from the one that wrote the log.
    Diverged,
}

impl Machine {
    /// A digest of everything.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&base::save_bytes(self))
    }

    /// Executes one entry of the log.
    pub fn execute(&mut self, event: Event) -> Effect {
        let before = self.digest_before(event);
        self.pos = LogPos(self.pos.0 + 1);
        match event {
            Event::Request { client, seq } => self.request(client, seq),
            Event::DiskDone { id, data } => self.disk_done(id, data),
            Event::Anchor(steps) => self.icount = self.icount.plus(steps),
            Event::Mark(digest) => {
                return match self.unmarked.pop_front() {
                    Some(output) if output_digest(&output) == digest => {
                        self.outputs.push(matches!(output, Output::Reply(_)));
                        Effect::Output(output)
                    }
                    _ => Effect::Diverged,
                };
            }
            Event::State(digest) if before != Some(digest) => return Effect::Diverged,
            Event::State(_) | Event::Control => {}
        }
        self.icount = self.icount.plus(1);
        Effect::Nothing
    }

    fn digest_before(&self, event: Event) -> Option<Digest> {
        matches!(event, Event::State(_)).then(|| self.digest())
    }

    /// The mark that has to be logged next, if an output waits for it.
    #[must_use]
    pub fn next_mark(&self) -> Option<Event> {
        self.unmarked.front().map(|output| Event::Mark(output_digest(output)))
    }

    /// Requests without a completion, in order of submission.
    pub fn in_flight(&self) -> impl Iterator<Item = &DiskRequest> {
        self.in_flight.values()
    }

    /// No request is in flight or waits.
    #[must_use]
    pub fn disk_is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.queued.is_empty()
    }

    /// Changes the state in a way that no log says.
    pub fn corrupt(&mut self) {
        self.next_disk_id += 1;
    }

    fn request(&mut self, client: u8, seq: u32) {
        let (last, reply) = self.last.get(&client).copied().unwrap_or((0, None));
        if seq <= last {
            // A retransmission: the reply may have been lost.
            self.unmarked.extend(reply.filter(|reply| reply.seq == seq).map(Output::Reply));
            return;
        }
        let before = self.history.last().map_or(0, |reply| reply.chain);
        let chain = hash([before, u64::from(client), u64::from(seq)]);
        let reply = Reply { client, seq, number: self.history.len() as u64, chain };
        self.history.push(reply);
        let number = reply.number as usize;
        let synchronous = number.is_multiple_of(2);
        self.last.insert(client, (seq, (!synchronous).then_some(reply)));
        let block = number / 2 % BLOCKS;
        let write = (!number.is_multiple_of(3)).then_some(chain);
        let request = DiskRequest {
            id: self.next_disk_id,
            block,
            write,
            expect: self.disk[block],
            reply: synchronous.then_some(reply),
        };
        self.next_disk_id += 1;
        self.disk[block] = write.unwrap_or(self.disk[block]);
        self.submit(request);
        if !synchronous {
            self.unmarked.push_back(Output::Reply(reply));
        }
    }

    fn submit(&mut self, request: DiskRequest) {
        if self.in_flight.values().any(|other| other.block == request.block) {
            self.queued.push_back(request);
        } else {
            self.in_flight.insert(request.id, request);
            self.unmarked.push_back(Output::Disk(request));
        }
    }

    fn disk_done(&mut self, id: u64, data: u64) {
        let Some(done) = self.in_flight.remove(&id) else { return };
        if done.write.is_none() && data != done.expect {
            self.disk_is_wrong = Some(done);
        }
        if let Some(reply) = done.reply {
            self.last.insert(reply.client, (reply.seq, Some(reply)));
            self.unmarked.push_back(Output::Reply(reply));
        }
        for request in std::mem::take(&mut self.queued) {
            self.submit(request);
        }
    }
}

fn output_digest(output: &Output) -> Digest {
    let (a, b) = match output {
        Output::Reply(reply) => (reply.number, reply.chain),
        Output::Disk(request) => (request.id, request.write.unwrap_or(0)),
    };
    Digest::of(&hash([a, b]).to_le_bytes())
}

fn hash<const N: usize>(words: [u64; N]) -> u64 {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    u64::from_le_bytes(Digest::of(&bytes).0[..8].try_into().expect("8 of 16 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_that_was_tampered_with_is_found_at_the_next_digest() {
        let mut machine = Machine::default();
        machine.execute(Event::Request { client: 0, seq: 1 });
        let digest = Event::State(machine.digest());
        let mut other = machine.clone();
        other.corrupt();
        assert_eq!(machine.execute(digest), Effect::Nothing);
        assert_eq!(other.execute(digest), Effect::Diverged);
    }

    #[test]
    fn reply_of_a_synchronous_operation_waits_for_its_disk_request() {
        let mut machine = Machine::default();
        machine.execute(Event::Request { client: 0, seq: 1 });
        let Effect::Output(Output::Disk(request)) = machine.execute(machine.next_mark().unwrap())
        else {
            panic!("no disk request")
        };
        assert_eq!(machine.next_mark(), None);
        machine.execute(Event::DiskDone { id: request.id, data: 0 });
        let effect = machine.execute(machine.next_mark().unwrap());
        assert!(matches!(effect, Effect::Output(Output::Reply(Reply { seq: 1, .. }))));
    }
}
