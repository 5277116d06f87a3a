//! One behaviour at a time, with two sides that hear each other at once.

use std::collections::VecDeque;

use base::{Claimant, Digest, Generation, Icount, LogPos, Nanos, VmId};
use ft::arbiter::{Answer, Op, Outcome, Record, Request};
use ft::{
    Action, CommandError, Config, Control, EndReason, Entry, Failure, Halted, Heartbeat, Hello,
    Message, Node, OutputKind, PROTOCOL_VERSION, Pace, PairOptions, PairingFailure, Progress,
    Refuse, Report, Role, RunState, Snapshot, Speed, Stamp, Timing, Window,
};

const MS: u64 = 1_000_000;
const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

fn config(id: u128) -> Config {
    Config {
        vm: VmId("vm".into()),
        claimant: Claimant(id),
        host: Digest::of(&id.to_le_bytes()),
        machine: Digest::of(b"machine"),
        timing: Timing::default(),
    }
}

fn hello() -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        vm: VmId("vm".into()),
        generation: G2,
        claimant: Claimant(1),
        host: Digest::of(&1u128.to_le_bytes()),
        machine: Digest::of(b"machine"),
        timing: Timing::default(),
    }
}

struct Side {
    node: Node<u32>,
    /// What it was told to do and did, but for messages, heartbeats and replay.
    done: Vec<Action<u32>>,
    /// Its machine is this far.
    pos: LogPos,
    /// Its machine executes what it is given.
    executes: bool,
    digest: Digest,
}

/// Two sides and an arbiter. Time passes only in `run`.
struct Pair {
    now: Nanos,
    a: Side,
    b: Side,
    record: Record,
    arbiter_answers: bool,
    connected: bool,
    to_a: VecDeque<Message>,
    to_b: VecDeque<Message>,
    heartbeats: bool,
}

impl Pair {
    fn new() -> Pair {
        let now = Nanos(MS);
        let side = |node| Side {
            node,
            done: vec![],
            pos: LogPos(0),
            executes: true,
            digest: Digest::default(),
        };
        let mut pair = Pair {
            now,
            a: side(Node::solo(now, config(1), G1, LogPos(0))),
            b: side(Node::backup(now, config(2))),
            record: Record::Owned { generation: G1, owner: Claimant(1) },
            arbiter_answers: true,
            connected: true,
            to_a: VecDeque::new(),
            to_b: VecDeque::new(),
            heartbeats: true,
        };
        pair.a.node.handle_pair(now, PairOptions::default()).unwrap();
        pair
    }

    fn protected() -> Pair {
        let mut pair = Pair::new();
        pair.run(500);
        assert_eq!((pair.a.node.role(), pair.b.node.role()), (Role::Primary, Role::Backup));
        assert!(pair.a.node.status().protected);
        pair
    }

    /// Lets `ms` pass; the machines run.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = Nanos(self.now.0 + MS);
            if self.now.0.is_multiple_of(50 * MS) {
                self.report_progress();
            }
            self.a.node.handle_tick(self.now);
            self.b.node.handle_tick(self.now);
            self.settle();
        }
    }

    fn report_progress(&mut self) {
        for side in [&mut self.a, &mut self.b] {
            if side.node.role() != Role::Halted {
                let icount = if side.node.role() == Role::Backup { side.pos.0 } else { self.now.0 };
                let progress = Progress { icount: Icount(icount), pos: side.pos };
                side.node.handle_progress(self.now, RunState::Running, progress);
            }
        }
    }

    /// Does all that is to be done now.
    fn settle(&mut self) {
        for _ in 0..20 {
            while let Some(action) = self.a.node.poll_action(self.now) {
                self.act(true, action);
            }
            while let Some(action) = self.b.node.poll_action(self.now) {
                self.act(false, action);
            }
            while let Some(message) = self.to_b.pop_front().filter(|_| self.connected) {
                match message {
                    Message::Hello(_) | Message::Resume { .. } => {
                        if let Err(refuse) = self.b.node.handle_incoming(self.now, message) {
                            self.to_a.push_back(Message::Refuse(refuse));
                        }
                    }
                    _ => self.b.node.handle_message(self.now, message),
                }
            }
            while let Some(message) = self.to_a.pop_front().filter(|_| self.connected) {
                self.a.node.handle_message(self.now, message);
            }
        }
    }

    /// The backup does what it has to; the primary does nothing more.
    fn settle_backup(&mut self) {
        while let Some(action) = self.b.node.poll_action(self.now) {
            self.act(false, action);
        }
    }

    fn act(&mut self, is_a: bool, action: Action<u32>) {
        let (now, connected) = (self.now, self.connected);
        let (this, other) =
            if is_a { (&mut self.a, &mut self.b) } else { (&mut self.b, &mut self.a) };
        match action {
            Action::Send(message) if connected => {
                let queue = if is_a { &mut self.to_b } else { &mut self.to_a };
                queue.push_back(message);
                return;
            }
            Action::Send(_) => return,
            Action::SendHeartbeat(heartbeat) => {
                if self.heartbeats && connected {
                    other.node.handle_heartbeat(now, &heartbeat);
                }
                return;
            }
            Action::OpenChannel if connected => this.node.handle_channel_opened(now),
            Action::OpenChannel => this.node.handle_channel_closed(now),
            Action::TakeSnapshot { generation } => {
                let snapshot =
                    Snapshot { generation, icount: Icount(0), digest: this.digest, state_len: 3 };
                this.node.handle_snapshot(now, snapshot);
            }
            Action::SendSnapshot { .. } => {
                self.to_b.push_back(Message::Chunk { offset: 0, bytes: vec![1, 2, 3] });
            }
            Action::LoadSnapshot(start) => {
                this.pos = start.pos;
                this.node.handle_loaded(now, start.generation, this.digest);
            }
            Action::Append(control) => {
                this.pos = this.node.handle_append(now, Entry::control(control, vec![]));
            }
            Action::Replay { ref entries, .. } => {
                if this.executes {
                    this.pos = LogPos(this.pos.0 + entries.len() as u64);
                    let progress = Progress { icount: Icount(this.pos.0), pos: this.pos };
                    this.node.handle_progress(now, RunState::Running, progress);
                }
                return;
            }
            Action::Ask(ref request) if self.arbiter_answers => {
                let answer = self.record.handle(request);
                this.node.handle_answer(now, &answer);
            }
            Action::ReconnectDisks(stamp) => this.node.handle_disks_ready(now, stamp),
            _ => {}
        }
        let this = if is_a { &mut self.a } else { &mut self.b };
        this.done.push(action);
    }

    fn cut(&mut self) {
        self.connected = false;
        self.to_a.clear();
        self.to_b.clear();
        self.a.node.handle_channel_closed(self.now);
        self.b.node.handle_channel_closed(self.now);
    }

    /// The primary's machine writes an entry and says something.
    fn speak(&mut self, word: u32) {
        self.a.pos = self.a.node.handle_append(self.now, Entry::event(vec![0]));
        self.a.node.handle_output(self.now, self.a.pos, OutputKind::Message, word);
    }
}

impl Side {
    fn spoken(&self) -> Vec<u32> {
        let words = self.done.iter().filter_map(|action| match action {
            Action::Emit { output, .. } => Some(*output),
            _ => None,
        });
        words.collect()
    }

    fn halted(&self) -> Option<&Halted> {
        self.done.iter().find_map(|action| match action {
            Action::Halt(why) => Some(why),
            _ => None,
        })
    }

    fn did(&self, what: &Action<u32>) -> bool {
        self.done.contains(what)
    }

    fn last_pace(&self) -> Option<Pace> {
        self.done.iter().rev().find_map(|action| match action {
            Action::SetPace(pace) => Some(*pace),
            _ => None,
        })
    }

    fn failures(&self) -> Vec<&PairingFailure> {
        let failures = self.done.iter().filter_map(|action| match action {
            Action::Report(Report::PairingFailed(why)) => Some(why),
            _ => None,
        });
        failures.collect()
    }
}

/// behaviours 30, 32, 126
#[test]
fn output_leaves_one_round_trip_after_it_was_made() {
    let mut pair = Pair::protected();
    pair.speak(7);
    assert!(pair.a.spoken().is_empty());
    pair.settle();
    assert_eq!(pair.a.spoken(), [7], "no time passed, only messages");
}

/// behaviours 34, 157
#[test]
fn output_that_was_not_known_to_have_left_is_let_out_by_the_backup_under_its_number() {
    let mut pair = Pair::protected();
    pair.speak(7);
    pair.settle();
    // The mark that 7 has left travels with the next entries, and 8 is not polled any more.
    pair.run(200);
    pair.speak(8);
    pair.a.node.poll_action(pair.now).into_iter().for_each(|action| match action {
        Action::Send(message) => pair.b.node.handle_message(pair.now, message),
        other => panic!("{other:?}"),
    });
    let replayed = pair.b.pos.0 + 1;
    pair.settle_backup();
    for (pos, word) in [(replayed - 1, 7), (replayed, 8)] {
        pair.b.node.handle_output(pair.now, LogPos(pos), OutputKind::Message, word);
    }
    pair.cut();
    pair.a.node = Node::backup(pair.now, config(3));
    pair.run(2_000);
    assert_eq!(pair.b.node.role(), Role::Solo);
    assert!(pair.b.did(&Action::Emit { number: 1, output: 8 }));
    assert_eq!(pair.b.spoken(), [8]);
}

/// behaviour 41
#[test]
fn primary_that_gets_no_acknowledgements_sends_no_output() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.cut();
    pair.speak(7);
    pair.run(5_000);
    assert!(pair.a.spoken().is_empty());
}

/// behaviour 35
#[test]
fn acknowledgement_means_received_not_executed() {
    let mut pair = Pair::protected();
    pair.b.executes = false;
    pair.speak(7);
    pair.settle();
    assert_eq!(pair.a.spoken(), [7]);
    assert!(pair.a.node.status().executed < pair.a.node.status().acked);
}

/// behaviours 56, 59
#[test]
fn without_an_answer_the_guest_runs_on_for_two_seconds_and_resumes_when_it_won() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.cut();
    pair.run(900 + 1_900);
    pair.speak(7);
    assert_eq!(pair.a.node.role(), Role::GoingLive);
    assert_eq!(pair.a.last_pace(), Some(Pace::Run(Speed::FULL)));
    pair.run(300);
    assert_eq!(pair.a.last_pace(), Some(Pace::Stopped));
    assert!(pair.a.did(&Action::Report(Report::ArbiterSilent)));
    pair.run(10_000);
    let asked = pair.a.done.iter().filter(|action| matches!(action, Action::Ask(_))).count();
    assert!(asked > 40, "asked {asked} times");
    // The backup is gone, or it might win.
    pair.b.node = Node::backup(pair.now, config(3));
    pair.arbiter_answers = true;
    pair.run(300);
    assert_eq!((pair.a.node.role(), pair.a.spoken()), (Role::Solo, vec![7]));
    assert_eq!(pair.a.last_pace(), Some(Pace::Run(Speed::FULL)));
}

/// behaviours 52, 114
#[test]
fn winner_connects_its_disks_before_anything_else() {
    let mut pair = Pair::protected();
    pair.cut();
    pair.run(2_000);
    let place = |wanted: &Action<u32>| pair.a.done.iter().position(|action| action == wanted);
    let won = place(&Action::Report(Report::Won(G2))).unwrap();
    let disks = place(&Action::ReconnectDisks(Stamp::won(G2))).unwrap();
    let reissue = place(&Action::ReissueDisk).unwrap();
    let live = place(&Action::Report(Report::Live(G2))).unwrap();
    assert!(won < disks && disks < reissue && reissue < live);
    assert_eq!(disks, won + 1);
    assert!(pair.a.did(&Action::NeedBackup));
}

/// behaviours 61, 149
#[test]
fn nothing_is_said_in_a_generation_after_its_claim() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.cut();
    pair.run(1_500);
    assert_eq!(pair.b.node.role(), Role::GoingLive);
    let log = ft::Log {
        generation: G2,
        first: pair.b.pos,
        sent: Nanos(u64::MAX),
        released: 0,
        lag: Nanos(0),
        entries: vec![Entry::event(vec![])],
    };
    pair.b.node.handle_message(pair.now, Message::Log(log));
    let resume = Message::Resume { generation: G2, from: Claimant(1), to: Claimant(2) };
    let refused = pair.b.node.handle_incoming(pair.now, resume).unwrap_err();
    assert_eq!(refused, Refuse::Busy { asked: G2 });
    while let Some(action) = pair.b.node.poll_action(pair.now) {
        assert!(!matches!(action, Action::Send(_) | Action::SendHeartbeat(_)), "{action:?}");
    }
}

/// behaviour 151
#[test]
fn clone_that_is_not_armed_never_claims() {
    let mut pair = Pair::new();
    pair.arbiter_answers = false;
    pair.run(500);
    assert_eq!((pair.a.node.role(), pair.b.node.role()), (Role::Solo, Role::Backup));
    pair.speak(7);
    pair.settle();
    assert_eq!(pair.a.spoken(), [7], "an unarmed clone holds nothing up");
    pair.connected = false;
    pair.run(15_000);
    assert_eq!(pair.b.halted(), Some(&Halted::Dropped));
    let asks = |action: &Action<u32>| matches!(action, Action::Ask(_));
    assert!(!pair.b.done.iter().any(asks));
}

/// behaviour 62
#[test]
fn generation_of_a_dropped_clone_is_claimed_before_the_next_pairing() {
    let mut pair = Pair::new();
    // The arm is recorded, and its answer is lost.
    pair.arbiter_answers = false;
    pair.run(300);
    let arm = Op::Arm { generation: G2, primary: Claimant(1), backup: Claimant(2) };
    pair.record.handle(&Request { vm: VmId("vm".into()), op: arm });
    pair.cut();
    pair.run(100);
    assert_eq!(pair.a.failures(), [&PairingFailure::ChannelClosed]);
    let again = pair.a.node.handle_pair(pair.now, PairOptions::default());
    assert_eq!(again, Err(CommandError::ArbiterBusy));
    pair.arbiter_answers = true;
    pair.run(300);
    assert_eq!(pair.record, Record::Owned { generation: G2, owner: Claimant(1) });
    pair.a.node.handle_pair(pair.now, PairOptions::default()).unwrap();
}

/// behaviour 152
#[test]
fn primary_that_was_started_elsewhere_by_force_halts_when_it_notices() {
    let mut pair = Pair::new();
    pair.record = Record::Owned { generation: Generation(5), owner: Claimant(9) };
    pair.run(500);
    assert_eq!(pair.a.halted(), Some(&Halted::Deposed(Generation(5))));
}

/// behaviours 99, 148
#[test]
fn end_is_done_only_when_the_backup_has_acknowledged_it_or_the_claim_is_won() {
    for cut in [false, true] {
        for reason in [EndReason::ProtectionOff, EndReason::PowerOff] {
            let mut pair = Pair::protected();
            if cut {
                pair.cut();
            }
            pair.a.node.handle_end(pair.now, reason).unwrap();
            assert!(!pair.a.did(&Action::Report(Report::Ended(reason))));
            pair.run(100);
            assert_eq!(pair.a.did(&Action::Report(Report::Ended(reason))), !cut);
            pair.run(2_000);
            assert!(pair.a.did(&Action::Report(Report::Ended(reason))));
            let halted = if cut { Halted::Lost(G2) } else { Halted::Ended(reason) };
            assert_eq!(pair.b.halted(), Some(&halted));
            let record = match reason {
                EndReason::ProtectionOff => Record::Owned { generation: G2, owner: Claimant(1) },
                EndReason::PowerOff => Record::Off { generation: G2 },
            };
            assert_eq!(pair.record, record);
        }
    }
}

/// behaviour 101
#[test]
fn operations_are_refused_on_a_backup() {
    let mut pair = Pair::protected();
    let refused = Err(CommandError::NotPrimary);
    assert_eq!(pair.b.node.handle_end(pair.now, EndReason::PowerOff), refused);
    assert_eq!(pair.b.node.handle_pair(pair.now, PairOptions::default()), refused);
}

/// behaviour 156
#[test]
fn diverged_backup_stops_acknowledging_and_is_replaced_a_bounded_number_of_times() {
    let mut pair = Pair::protected();
    let at = |pos: u64| Progress { icount: Icount(pos), pos: LogPos(pos) };
    let window = Window { equal: at(1), differs: at(2) };
    pair.b.node.handle_diverged(pair.now, window);
    pair.settle();
    assert_eq!(pair.b.halted(), Some(&Halted::Diverged(window)));
    assert!(pair.a.did(&Action::Report(Report::PeerFailed(Failure::Diverged(window)))));
    assert_eq!(pair.a.node.role(), Role::Solo);
    for _ in 0..2 {
        assert!(pair.a.did(&Action::NeedBackup));
        pair.a.done.clear();
        let generation = pair.a.node.status().generation;
        pair.b.node = Node::backup(pair.now, config(2 + u128::from(generation.0)));
        pair.a.node.handle_pair(pair.now, PairOptions::default()).unwrap();
        pair.run(300);
        assert!(pair.a.node.status().protected);
        pair.b.node.handle_diverged(pair.now, window);
        pair.settle();
    }
    assert!(!pair.a.did(&Action::NeedBackup));
    assert!(pair.a.did(&Action::Report(Report::TooManyDivergences)));
    let later = Nanos(pair.now.0 + ft::DIVERGENCE_WINDOW.0);
    pair.a.node.handle_tick(later);
    assert_eq!(pair.a.node.poll_action(later), Some(Action::NeedBackup));
}

/// behaviour 89
#[test]
fn full_log_buffer_stops_the_primary_and_an_emptied_one_resumes_it() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.b.executes = false;
    let big = || Entry::event(vec![0; 8 << 20]);
    for _ in 0..16 {
        pair.a.pos = pair.a.node.handle_append(pair.now, big());
    }
    pair.run(50);
    // The backup's buffer takes 64 MiB, the primary's another 64.
    assert_eq!(pair.a.last_pace(), Some(Pace::Stopped));
    pair.b.executes = true;
    pair.b.pos = pair.a.node.status().acked;
    pair.report_progress();
    pair.run(100);
    assert_eq!(pair.a.last_pace(), Some(Pace::Run(Speed::FULL)));
    assert_eq!(pair.a.node.status().acked, pair.a.pos, "nothing was lost");
}

#[test]
fn full_gate_stops_the_primary() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.cut();
    (0..ft::HELD_OUTPUTS_MAX as u32).for_each(|word| pair.speak(word));
    pair.settle();
    assert_eq!(pair.a.last_pace(), Some(Pace::Stopped));
}

#[test]
fn clone_whose_log_outgrows_the_buffer_is_dropped_and_not_the_primary() {
    let mut pair = Pair::new();
    pair.heartbeats = false;
    pair.run(50);
    (0..17).for_each(|_| {
        pair.a.node.handle_append(pair.now, Entry::event(vec![0; 8 << 20]));
    });
    pair.settle();
    assert_eq!(pair.a.failures(), [&PairingFailure::SpoolFull]);
    assert_eq!(pair.a.node.role(), Role::Solo);
}

#[test]
fn pairing_without_heartbeats_says_that_udp_may_be_blocked() {
    let mut pair = Pair::new();
    pair.heartbeats = false;
    pair.run(30_000);
    let text = pair.a.failures()[0].to_string();
    assert!(text.contains("UDP"), "{text}");
}

#[test]
fn start_states_that_differ_are_not_armed() {
    let mut pair = Pair::new();
    pair.b.digest = Digest::of(b"another machine");
    pair.run(500);
    assert!(matches!(pair.a.failures()[..], [PairingFailure::StartDiffers { .. }]));
    assert_eq!(pair.record, Record::Owned { generation: G1, owner: Claimant(1) });
}

/// behaviour 1
#[test]
fn unfit_partners_are_refused_by_name() {
    let check = |change: fn(&mut Hello), part: &str| {
        let mut backup: Node<u32> = Node::backup(Nanos(0), config(2));
        let mut hello = hello();
        change(&mut hello);
        let refused = backup.handle_incoming(Nanos(0), Message::Hello(hello)).unwrap_err();
        assert!(refused.to_string().contains(part), "{refused}");
    };
    check(|hello| hello.version += 1, "protocol version");
    check(|hello| hello.vm = VmId("other".into()), "not for other");
    check(|hello| hello.host = Digest::of(&2u128.to_le_bytes()), "same host");
    check(|hello| hello.machine = Digest::default(), "CPU model");
    check(|hello| hello.timing.detection = Nanos(0), "timing");
    let mut backup: Node<u32> = Node::backup(Nanos(0), config(2));
    let leave = Message::Leave { generation: G2 };
    assert_eq!(backup.handle_incoming(Nanos(0), leave), Err(Refuse::NoHello));
    assert_eq!(backup.handle_incoming(Nanos(0), Message::Hello(hello())), Ok(()));
    let busy = Refuse::Busy { asked: G2 };
    assert_eq!(backup.handle_incoming(Nanos(0), Message::Hello(hello())), Err(busy));
}

#[test]
fn stranger_on_a_new_stream_does_not_disturb_the_pair() {
    let mut pair = Pair::protected();
    let strangers = [
        Message::Hello(Hello { claimant: Claimant(9), ..hello() }),
        Message::Resume { generation: G1, from: Claimant(9), to: Claimant(2) },
        Message::Resume { generation: G2, from: Claimant(9), to: Claimant(2) },
        Message::Leave { generation: G2 },
    ];
    for first in strangers {
        assert!(pair.a.node.handle_incoming(pair.now, first.clone()).is_err());
        assert!(pair.b.node.handle_incoming(pair.now, first).is_err());
        pair.speak(7);
        pair.settle();
    }
    assert_eq!(pair.a.spoken(), [7, 7, 7, 7]);
}

#[test]
fn nonsense_closes_the_channel_and_a_new_one_goes_on_where_it_was() {
    let mut pair = Pair::protected();
    let ack = ft::Ack {
        generation: G2,
        received: LogPos(1_000),
        progress: Progress::default(),
        credit: 0,
        echo: None,
        heartbeats: true,
    };
    let to_primary = [
        Message::Ack(ack),
        Message::Hello(hello()),
        Message::Ack(ft::Ack { received: LogPos(0), echo: Some(Nanos(u64::MAX)), ..ack }),
    ];
    for message in to_primary {
        pair.a.node.handle_message(pair.now, message);
        pair.speak(7);
        pair.run(300);
    }
    let log = ft::Log {
        generation: G2,
        first: LogPos(1_000),
        sent: Nanos(0),
        released: 0,
        lag: Nanos(0),
        entries: vec![Entry::event(vec![])],
    };
    let wrong = Entry::control(Control::Armed(Generation(77)), vec![]);
    let to_backup = [
        Message::Log(log.clone()),
        Message::Log(ft::Log { first: pair.a.pos, entries: vec![wrong], ..log }),
        Message::Chunk { offset: u64::MAX, bytes: vec![0; 2] },
        Message::Leave { generation: G2 },
    ];
    for message in to_backup {
        pair.b.node.handle_message(pair.now, message);
        // Its shell closes the stream, and the primary's hears that.
        pair.a.node.handle_channel_closed(pair.now);
        pair.speak(7);
        pair.run(300);
    }
    assert_eq!(pair.a.spoken(), [7; 7]);
    assert_eq!((pair.a.node.role(), pair.b.node.role()), (Role::Primary, Role::Backup));
}

/// behaviour 47
#[test]
fn heartbeats_of_others_and_repeated_ones_mean_nothing() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.heartbeats = false;
    let old = Heartbeat {
        generation: G1,
        from: Claimant(2),
        sent: Nanos(0),
        echo: None,
        run: RunState::Running,
        progress: Progress::default(),
    };
    let stranger = Heartbeat { generation: G2, from: Claimant(9), ..old.clone() };
    let from_the_future = Heartbeat { generation: G2, echo: Some(Nanos(u64::MAX)), ..old.clone() };
    for _ in 0..11 {
        pair.run(100);
        for heartbeat in [&old, &stranger, &from_the_future] {
            pair.a.node.handle_heartbeat(pair.now, heartbeat);
        }
    }
    assert_eq!(pair.a.node.role(), Role::GoingLive);
}

/// behaviours 155, 158
#[test]
fn side_that_slept_does_not_blame_the_other() {
    let mut pair = Pair::protected();
    // Both hosts were suspended together for an hour.
    pair.now = Nanos(pair.now.0 + 3_600_000 * MS);
    pair.run(500);
    assert_eq!((pair.a.node.role(), pair.b.node.role()), (Role::Primary, Role::Backup));
}

#[test]
fn guest_time_moves_by_five_seconds_at_most_in_one_step() {
    let mut pair = Pair::protected();
    pair.speak(1);
    pair.settle();
    pair.arbiter_answers = false;
    pair.cut();
    pair.run(8_000);
    // The primary is gone for good; only the backup gets an answer.
    pair.a.node = Node::backup(pair.now, config(3));
    pair.arbiter_answers = true;
    pair.run(300);
    let anchor = pair.b.done.iter().find_map(|action| match action {
        Action::AnchorClock { advance, behind } => Some((*advance, *behind)),
        _ => None,
    });
    let (advance, behind) = anchor.unwrap();
    assert_eq!(advance, ft::ANCHOR_STEP_MAX);
    assert!((3_000 * MS..3_300 * MS).contains(&behind.0), "{behind}");
    assert!(pair.b.did(&Action::Announce));
}

#[test]
fn arbiter_that_lost_its_record_decides_nothing() {
    let mut pair = Pair::protected();
    pair.record = Record::default();
    pair.cut();
    pair.run(5_000);
    assert_eq!((pair.a.node.role(), pair.b.node.role()), (Role::GoingLive, Role::GoingLive));
    assert!(pair.a.did(&Action::Report(Report::ArbiterForgot(G2))));
    assert_eq!(pair.a.last_pace(), Some(Pace::Stopped));
}

#[test]
fn late_answer_to_another_question_is_not_taken_for_this_one() {
    let mut pair = Pair::protected();
    pair.arbiter_answers = false;
    pair.cut();
    pair.run(1_500);
    let vm = VmId("vm".into());
    let record = pair.record;
    let answer = |op: Op, vm: &VmId| Answer { vm: vm.clone(), op, outcome: Outcome::Won, record };
    let claim = |generation, id| Op::Claim { generation, claimant: Claimant(id) };
    let other = VmId("other".into());
    for answer in
        [answer(claim(G1, 1), &vm), answer(claim(G2, 2), &vm), answer(claim(G2, 1), &other)]
    {
        pair.a.node.handle_answer(pair.now, &answer);
        assert_eq!(pair.a.node.status().role, Role::GoingLive);
        assert!(!pair.a.did(&Action::Report(Report::Won(G2))));
        pair.settle();
    }
    let won = answer(claim(G2, 1), &vm);
    pair.a.node.handle_answer(pair.now, &won);
    pair.settle();
    assert_eq!(pair.a.node.role(), Role::Solo);
}

#[test]
fn leaving_backup_is_not_waited_for() {
    let mut pair = Pair::protected();
    pair.b.node.handle_leave(pair.now);
    pair.settle();
    assert_eq!((pair.a.node.role(), pair.b.halted()), (Role::Solo, Some(&Halted::Left)));
}
