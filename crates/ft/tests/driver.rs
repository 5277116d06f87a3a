//! The smallest whole driver: two sides, an arbiter, and a machine that counts its inputs.
//! A real driver does the same with sockets: `drive` is its heart.

use std::collections::VecDeque;

use base::{Claimant, Digest, Generation, Icount, LogPos, Nanos, VmId};
use ft::arbiter::{Op, Outcome, Record, Request};
use ft::{
    Action, Config, Entry, Message, Node, OutputKind, Pace, PairOptions, Progress, Role, RunState,
    Snapshot, Timing,
};

/// A machine whose every reply depends on all its inputs.
#[derive(Default)]
struct Counter(u64);

impl Counter {
    fn execute(&mut self, entry: &Entry) -> u64 {
        let sum = entry.bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        self.0 = self.0.wrapping_mul(31).wrapping_add(sum);
        self.0
    }
}

/// One process: a node, its machine, and what it has put on the wire.
struct Side {
    node: Node<u64>,
    machine: Counter,
    progress: Progress,
    channel: VecDeque<Message>,
    beats: VecDeque<ft::Heartbeat>,
    frames: Vec<u64>,
    /// What its machine said, whether or not it was let out.
    replies: Vec<u64>,
    paces: Vec<Pace>,
}

impl Side {
    fn new(node: Node<u64>) -> Side {
        let (machine, progress) = (Counter::default(), Progress::default());
        let (channel, beats) = (VecDeque::new(), VecDeque::new());
        let (frames, replies, paces) = (vec![], vec![], vec![]);
        Side { node, machine, progress, channel, beats, frames, replies, paces }
    }

    /// Does everything the node wants done.
    fn drive(&mut self, now: Nanos, arbiter: &mut Record) {
        self.node.handle_tick(now);
        while let Some(action) = self.node.poll_action(now) {
            match action {
                Action::Send(message) => self.channel.push_back(message),
                Action::SendHeartbeat(heartbeat) => self.beats.push_back(heartbeat),
                Action::OpenChannel => self.node.handle_channel_opened(now),
                Action::CloseChannel => self.channel.clear(),
                Action::TakeSnapshot { generation } => {
                    let digest = Digest::of(&self.machine.0.to_le_bytes());
                    let icount = self.progress.icount;
                    let snapshot = Snapshot { generation, icount, digest, state_len: 8 };
                    self.node.handle_snapshot(now, snapshot);
                }
                Action::SendSnapshot { .. } => {
                    let bytes = self.machine.0.to_le_bytes().to_vec();
                    self.channel.push_back(Message::Chunk { offset: 0, bytes });
                }
                Action::StoreChunk(bytes) => {
                    self.machine.0 = u64::from_le_bytes(bytes.try_into().unwrap());
                }
                Action::LoadSnapshot(start) => {
                    let digest = Digest::of(&self.machine.0.to_le_bytes());
                    self.node.handle_loaded(now, start.generation, digest);
                }
                Action::Append(control) => {
                    self.execute(now, &Entry::control(control, vec![]));
                }
                Action::Replay { entries, .. } => {
                    entries.iter().for_each(|entry| self.execute(now, entry));
                }
                Action::Ask(request) => self.node.handle_answer(now, &arbiter.handle(&request)),
                Action::ReconnectDisks(stamp) => self.node.handle_disks_ready(now, stamp),
                Action::Emit { output, .. } => self.frames.push(output),
                Action::SetPace(pace) => self.paces.push(pace),
                Action::ReissueDisk | Action::AnchorClock { .. } | Action::Announce => {}
                Action::NeedBackup | Action::Report(_) | Action::Halt(_) => {}
            }
        }
    }

    /// Runs one entry of the log: on the primary it is new, on the backup it came from there.
    fn execute(&mut self, now: Nanos, entry: &Entry) {
        if self.node.role() != Role::Backup {
            self.node.handle_append(now, entry.clone());
        }
        let reply = self.machine.execute(entry);
        self.replies.push(reply);
        self.progress.pos = LogPos(self.progress.pos.0 + 1);
        self.progress.icount = Icount(self.progress.icount.0 + 1000);
        self.node.handle_output(now, self.progress.pos, OutputKind::Message, reply);
        self.node.handle_progress(now, RunState::Running, self.progress);
    }
}

fn config(id: u128) -> Config {
    Config {
        vm: VmId("vm".into()),
        claimant: Claimant(id),
        host: Digest::of(&id.to_le_bytes()),
        machine: Digest::default(),
        timing: Timing::default(),
    }
}

/// behaviours 34, 48, 49, 50, 52, 65
#[test]
fn backup_goes_on_where_the_primary_stopped() {
    let millis = |ms: u64| Nanos(ms * 1_000_000);
    let mut arbiter = Record::default();
    let on = Op::PowerOn {
        claimant: Claimant(1),
        seen: Generation(0),
        dead: vec![],
        copy: None,
        force: false,
    };
    let answer = arbiter.handle(&Request { vm: VmId("vm".into()), op: on });
    let Outcome::PoweredOn { generation } = answer.outcome else { panic!("{answer:?}") };
    let mut a = Side::new(Node::solo(Nanos(0), config(1), generation, LogPos(0)));
    let mut b = Side::new(Node::backup(Nanos(0), config(2)));
    a.node.handle_pair(Nanos(0), PairOptions { hold_guest: true }).unwrap();
    for ms in 0..3000 {
        let now = millis(ms);
        let alive = ms < 1000;
        if alive {
            if ms % 50 == 0 && a.node.role() == Role::Primary {
                a.execute(now, &Entry::event(vec![ms as u8]));
            }
            a.drive(now, &mut arbiter);
            for message in a.channel.drain(..) {
                match message {
                    Message::Hello(_) => b.node.handle_incoming(now, message).unwrap(),
                    _ => b.node.handle_message(now, message),
                }
            }
            a.beats.drain(..).for_each(|beat| b.node.handle_heartbeat(now, &beat));
        }
        b.drive(now, &mut arbiter);
        let (messages, beats) = (b.channel.drain(..), b.beats.drain(..));
        messages.for_each(|message| {
            if alive {
                a.node.handle_message(now, message)
            }
        });
        beats.for_each(|beat| {
            if alive {
                a.node.handle_heartbeat(now, &beat)
            }
        });
    }
    assert_eq!(b.node.role(), Role::Solo);
    assert_eq!(arbiter, Record::Owned { generation: generation.next(), owner: Claimant(2) });
    assert!(a.paces.contains(&Pace::Stopped), "the guest waits for its pairing at power-on");
    // The client sees one machine: the backup repeats at most the last frames, then goes on.
    assert!(a.frames.len() > 10);
    let repeated = a.frames.iter().rev().take_while(|frame| b.frames.contains(frame)).count();
    assert!(repeated <= 3, "{repeated} frames were sent again");
    let seen = [&a.frames[..a.frames.len() - repeated], &b.frames[..]].concat();
    assert_eq!(seen, b.replies);
    assert_eq!(seen[..], a.replies[..seen.len()]);
}
