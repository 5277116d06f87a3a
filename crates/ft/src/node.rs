//! One side of a pair: what goes in, what comes out, and the parts that all roles share.
//!
//! The roles' own parts are in `primary.rs`, `backup.rs` and `live.rs`.

use std::collections::VecDeque;

use base::{Claimant, Digest, Generation, Icount, LogPos, Nanos, VmId};

use crate::arbiter::{Answer, Op, Request};
use crate::backup::Follower;
use crate::gate::{HELD_OUTPUTS_MAX, OutputGate, OutputKind, Wait};
use crate::lag::Speed;
use crate::live::GoingLive;
use crate::message::{
    Control, EndReason, Entry, EntryKind, Heartbeat, Message, Progress, RunState, StartPoint,
    Window,
};
use crate::primary::{Pair, Solo};
use crate::stream::{LOG_BUFFER_LEN_MAX, LOG_BUFFER_RESUME};
use crate::timing::ASK_AGAIN;
use crate::watch::Failure;
use crate::{PairingFailure, Refuse, Stamp, Timing};

/// What a side knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The VM.
    pub vm: VmId,
    /// This process: 128 random bits, drawn when it starts and never used by another one.
    pub claimant: Claimant,
    /// This host. A pairing on one host is refused.
    pub host: Digest,
    /// CPU model and machine configuration. A pair has equal ones.
    pub machine: Digest,
    /// Used when this side is the primary.
    pub timing: Timing,
}

/// What a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Owns the VM and runs it alone. A pairing may be under way.
    Solo,
    /// Runs the VM; a backup follows, and the output rule holds.
    Primary,
    /// Follows, or waits for a primary to ask it to.
    Backup,
    /// Has claimed the generation, and lets nothing out until it has won and caught up.
    GoingLive,
    /// Does nothing, for good.
    Halted,
}

/// What the shell has to do. By polling the next action it says that it has done the last one:
/// has handed the frame to the kernel, put the message into the stream's buffer, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Send this on the channel. Without a channel, drop it.
    Send(Message),
    /// Send this datagram to the other side.
    SendHeartbeat(Heartbeat),
    /// Connect to the backup (again), then call [`Node::handle_channel_opened`], or
    /// [`Node::handle_channel_closed`] if it fails.
    OpenChannel,
    /// Close the channel, if there is one. Nothing from it may be handed in any more.
    CloseChannel,
    /// Save the machine at a position of your choice, then call [`Node::handle_snapshot`] there,
    /// before any later entry or output.
    TakeSnapshot {
        /// The pairing.
        generation: Generation,
    },
    /// Send the saved state as [`Message::Chunk`]s, in order, between other messages.
    SendSnapshot {
        /// The pairing.
        generation: Generation,
    },
    /// Keep this piece of the start state; pieces come in order.
    StoreChunk(Vec<u8>),
    /// All pieces are there: restore the machine, then call [`Node::handle_loaded`].
    LoadSnapshot(StartPoint),
    /// Write this entry to the event log at the machine's position, and hand it in by
    /// [`Node::handle_append`] like any other.
    Append(Control),
    /// Hand these entries to the machine that follows.
    Replay {
        /// Position of the first.
        first: LogPos,
        /// In order.
        entries: Vec<Entry>,
    },
    /// Ask the arbiter; hand its answer to [`Node::handle_answer`]. No answer needs no call: the
    /// question is asked again.
    Ask(Request),
    /// Connect to all disks with this stamp, closing older connections; nothing else may touch them before.
    /// Then call [`Node::handle_disks_ready`]. Try for as long as it takes.
    ReconnectDisks(Stamp),
    /// Submit again, in the guest's order, every disk request handed in so far without a completion
    /// in the log, whether or not it was emitted before.
    ReissueDisk,
    /// Let this output out.
    Emit {
        /// Its number since power-on, the same on both sides: a console client that has seen it
        /// skips it.
        number: u64,
        /// As it was handed in.
        output: T,
    },
    /// The backup becomes the machine: move guest time forwards by `advance` in one anchor. If `behind`
    /// is not 0, it trails by so much more, to be made good in later steps of at most
    /// [`crate::ANCHOR_STEP_MAX`].
    AnchorClock {
        /// Own time since the last entry was received, bounded.
        advance: Nanos,
        /// The rest of it.
        behind: Nanos,
    },
    /// Tell the switches where the VM's MAC address is now.
    Announce,
    /// Run the guest at this pace from now on.
    SetPace(Pace),
    /// The VM has no backup and wants one: call [`Node::handle_pair`] when there is a candidate.
    NeedBackup,
    /// For status, timelines and diagnostics; nothing to do.
    Report(Report),
    /// Stop the machine, drop what it holds, and end. Always the last action.
    Halt(Halted),
}

/// How the guest may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Not at all, for now. The machine keeps its state, and nothing is lost.
    Stopped,
    /// At this share of full speed.
    Run(Speed),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A pairing did not come about; the VM runs on alone.
    PairingFailed(PairingFailure),
    /// The pairing holds and the backup knows it.
    Protected {
        /// The generation.
        generation: Generation,
        /// The backup.
        backup: Claimant,
    },
    /// The other side has failed.
    PeerFailed(Failure),
    /// This side claims the generation.
    Claiming(Generation),
    /// The arbiter has not answered for `arbitration_run_max`.
    ArbiterSilent,
    /// The arbiter answers, but says that the generation was never armed. Its record was lost: an
    /// operator has to restore it, or stop both sides and power on again.
    ArbiterForgot(Generation),
    /// The claim is won.
    Won(Generation),
    /// The backup's machine has executed the last entry.
    Replayed(Progress),
    /// This side runs the VM alone from here on.
    Live(Generation),
    /// The channel said something that makes no sense, and was closed.
    Nonsense(&'static str),
    /// Somebody connected and was refused.
    RefusedPrimary(Refuse),
    /// Too many backups diverged within the last hour, so no new one is asked for until it is over.
    TooManyDivergences,
    /// A planned end is done.
    Ended(EndReason),
}

/// Why a side halted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halted {
    /// The other side won the generation.
    #[error("the other side has taken over generation {0}")]
    Lost(Generation),
    /// The VM was started elsewhere by force.
    #[error("the VM was started elsewhere, in generation {0}")]
    Deposed(Generation),
    /// This side's machine differs from the primary's.
    #[error("this machine differs from the primary's {0}")]
    Diverged(Window),
    /// The pairing ended on purpose.
    #[error("the pairing was ended on purpose")]
    Ended(EndReason),
    /// The primary gave the pairing up, or fell silent, before it held.
    #[error("the pairing was given up before it held")]
    Dropped,
    /// The VM is off.
    #[error("the VM is off")]
    PoweredOff,
    /// This side left on its own account.
    #[error("this backup left its pair")]
    Left,
}

/// Why a request of the operator is refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It belongs on the primary.
    #[error("this side is not the primary; ask there")]
    NotPrimary,
    /// There is a pairing already, or one is being made or ended.
    #[error("a pairing exists or is under way")]
    Paired,
    /// The last pairing's end is not yet recorded at the arbiter.
    #[error("the end of the last pairing is not recorded yet; try again when the arbiter answers")]
    ArbiterBusy,
    /// This side has halted.
    #[error("this side has halted")]
    Halted,
}

/// A snapshot for status displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What this side is.
    pub role: Role,
    /// The newest generation it takes part in, or owns.
    pub generation: Generation,
    /// The other side.
    pub peer: Option<Claimant>,
    /// The pairing holds, and the backup knows it.
    pub protected: bool,
    /// Age of the oldest entry that the backup has not executed.
    pub lag: Nanos,
    /// End of the log (on a backup: of what it has received).
    pub log_end: LogPos,
    /// What the backup has acknowledged.
    pub acked: LogPos,
    /// What the backup has executed.
    pub executed: LogPos,
    /// Bytes of the log that the backup has not acknowledged.
    pub unacked_len: u64,
    /// Outputs that wait.
    pub held_outputs: usize,
    /// Why they wait.
    pub waits_for: Wait,
    /// The guest's pace.
    pub pace: Option<Pace>,
}

/// One side of a pair. `T` is an output of the machine, which the protocol never looks into.
///
/// Every `handle_*` takes the time of a monotonic clock that counts suspend (`CLOCK_BOOTTIME`), read
/// just before the call. After each call, [`Node::poll_action`] until it is empty, with the time
/// read again before each poll: the gate compares it with the time of the backup's last answer.
#[derive(Debug)]
pub struct Node<T> {
    pub(crate) config: Config,
    pub(crate) now: Nanos,
    pub(crate) phase: Phase,
    pub(crate) gate: OutputGate<T>,
    pub(crate) log_end: LogPos,
    pub(crate) own: Progress,
    pub(crate) own_run: RunState,
    pub(crate) actions: VecDeque<Action<T>>,
    pub(crate) ask: Option<Ask>,
    /// The generation in which this side owns the VM.
    pub(crate) owned: Generation,
    /// The newest generation it has used or seen.
    pub(crate) newest: Generation,
    /// The operator wants an end that is not there yet.
    pub(crate) ending: Option<Ending>,
    /// When backups diverged within the last hour.
    pub(crate) divergences: VecDeque<Nanos>,
    /// Too many did: a backup is asked for then.
    pub(crate) backup_wanted: Option<Nanos>,
    pace: Option<Pace>,
    /// The log buffer or the gate is full, and not yet half empty again.
    full: bool,
    next_beat: Nanos,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) since: Nanos,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Solo(Solo),
    Primary(Box<Pair>),
    Backup(Box<Follower>),
    GoingLive(GoingLive),
    Halted,
}

/// A question to the arbiter that has no answer yet.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) op: Op,
    next: Nanos,
    /// The silence was reported.
    pub(crate) reported: bool,
}

/// State of the logging channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Closed,
    /// The shell is connecting.
    Opening,
    /// There is a stream; nobody has said on it what it is for.
    Opened,
    /// It carries this generation.
    InUse,
}

impl<T> Node<T> {
    /// The side that powered the VM on, with `owned` from [`crate::arbiter::Outcome::PoweredOn`]. Its log begins at
    /// `log_start`.
    #[must_use]
    pub fn solo(now: Nanos, config: Config, owned: Generation, log_start: LogPos) -> Node<T> {
        let mut node =
            Node::new(now, config, Phase::Solo(Solo::default()), OutputGate::open(), owned);
        node.log_end = log_start;
        node
    }

    /// A side that waits to become somebody's backup. It serves one pairing: once halted, make a new
    /// one with a new claimant.
    #[must_use]
    pub fn backup(now: Nanos, config: Config) -> Node<T> {
        let phase = Phase::Backup(Box::default());
        Node::new(now, config, phase, OutputGate::shut(0), Generation(0))
    }

    fn new(
        now: Nanos,
        config: Config,
        phase: Phase,
        gate: OutputGate<T>,
        owned: Generation,
    ) -> Node<T> {
        Node {
            config,
            now,
            phase,
            gate,
            log_end: LogPos(0),
            own: Progress::default(),
            own_run: RunState::Paused,
            actions: VecDeque::new(),
            ask: None,
            owned,
            newest: owned,
            ending: None,
            divergences: VecDeque::new(),
            backup_wanted: None,
            pace: None,
            full: false,
            next_beat: now,
        }
    }

    /// What this side is.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.phase {
            Phase::Solo(_) => Role::Solo,
            Phase::Primary(_) => Role::Primary,
            Phase::Backup(_) => Role::Backup,
            Phase::GoingLive(_) => Role::GoingLive,
            Phase::Halted => Role::Halted,
        }
    }

    /// A snapshot for displays.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = Status {
            role: self.role(),
            generation: self.newest,
            peer: None,
            protected: false,
            lag: Nanos(0),
            log_end: self.log_end,
            acked: self.log_end,
            executed: self.own.pos,
            unacked_len: 0,
            held_outputs: self.gate.held_len(),
            waits_for: self.gate.wait(self.now),
            pace: self.pace,
        };
        match &self.phase {
            Phase::Solo(Solo { pair: Some(pair), .. }) => status.peer = pair.backup,
            Phase::Primary(pair) => pair.fill_status(self.now, &mut status),
            Phase::Backup(follower) => follower.fill_status(self.own, &mut status),
            _ => {}
        }
        status
    }

    /// Time passed. Call it when [`Node::poll_timeout`] says so; more often does no harm.
    pub fn handle_tick(&mut self, now: Nanos) {
        self.advance(now);
        self.ask_again();
        match self.phase {
            Phase::Solo(_) => self.tick_solo(),
            Phase::Primary(_) => self.tick_primary(),
            Phase::Backup(_) => self.tick_backup(),
            Phase::GoingLive(_) => self.tick_going_live(),
            Phase::Halted => {}
        }
        if self.now >= self.next_beat {
            self.next_beat = Nanos(self.now.0 + self.config.timing.beat().0);
            self.beat();
        }
    }

    /// The machine is here. Call it at least every beat ([`Timing::beat`]) while the machine is there, whether or
    /// not it moved, from a thread that the machine cannot block.
    pub fn handle_progress(&mut self, now: Nanos, run: RunState, progress: Progress) {
        self.advance(now);
        self.own_run = run;
        self.own = progress;
        self.handle_executed_by_backup();
        self.tick_going_live();
    }

    /// The machine produced an output at `pos`: the position after its output mark. Calls of this, of
    /// [`Node::handle_append`] and of [`Node::handle_snapshot`] come in the machine's order. A backup's machine
    /// hands its outputs in too.
    pub fn handle_output(&mut self, now: Nanos, pos: LogPos, kind: OutputKind, output: T) {
        self.advance(now);
        if matches!(self.phase, Phase::Halted) {
            return;
        }
        self.gate.handle_output(pos, kind, output);
        if let Some(stream) = self.stream_mut() {
            stream.flush_at_once(now);
        }
    }

    /// The machine wrote `entry` to its log. Returns the position after it.
    ///
    /// # Panics
    /// On a backup, whose log is its primary's.
    pub fn handle_append(&mut self, now: Nanos, entry: Entry) -> LogPos {
        self.advance(now);
        assert!(!matches!(self.phase, Phase::Backup(_)), "a backup wrote to the log");
        self.log_end = LogPos(self.log_end.0 + 1);
        self.append_to_stream(entry);
        self.log_end
    }

    /// The arbiter answered.
    pub fn handle_answer(&mut self, now: Nanos, answer: &Answer) {
        self.advance(now);
        let Some(ask) = &self.ask else { return };
        if ask.op != answer.op || self.config.vm != answer.vm {
            return;
        }
        match self.phase {
            Phase::Solo(_) => self.handle_answer_solo(answer),
            Phase::GoingLive(_) => self.handle_answer_going_live(answer),
            Phase::Primary(_) | Phase::Backup(_) | Phase::Halted => {}
        }
    }

    /// The stream that [`Action::OpenChannel`] asked for stands. Hand in nothing of an older one after
    /// this. A stream that the other side opened goes to [`Node::handle_incoming`].
    pub fn handle_channel_opened(&mut self, now: Nanos) {
        self.advance(now);
        match self.phase {
            Phase::Solo(_) | Phase::Primary(_) => self.open_primary_channel(),
            Phase::Backup(_) | Phase::GoingLive(_) | Phase::Halted => {
                self.push(Action::CloseChannel);
            }
        }
    }

    /// The stream broke, or could not be made.
    pub fn handle_channel_closed(&mut self, now: Nanos) {
        self.advance(now);
        match self.phase {
            Phase::Solo(_) | Phase::Primary(_) => self.close_primary_channel(),
            Phase::Backup(_) => self.close_backup_channel(),
            Phase::GoingLive(_) | Phase::Halted => {}
        }
    }

    /// A message came on the channel.
    pub fn handle_message(&mut self, now: Nanos, message: Message) {
        self.advance(now);
        match self.phase {
            Phase::Solo(_) | Phase::Primary(_) => self.handle_message_from_backup(message),
            Phase::Backup(_) => self.handle_message_from_primary(message),
            // What comes after the claim does not exist: its sender must not be answered.
            Phase::GoingLive(_) | Phase::Halted => {}
        }
    }

    /// A datagram came, and its authentication was right.
    pub fn handle_heartbeat(&mut self, now: Nanos, heartbeat: &Heartbeat) {
        self.advance(now);
        match self.phase {
            Phase::Solo(_) | Phase::Primary(_) => self.handle_heartbeat_from_backup(heartbeat),
            Phase::Backup(_) => self.handle_heartbeat_from_primary(heartbeat),
            Phase::GoingLive(_) | Phase::Halted => {}
        }
    }

    /// The next thing to do, if there is any. Read the clock before each call.
    pub fn poll_action(&mut self, now: Nanos) -> Option<Action<T>> {
        self.advance(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(message) = self.poll_log().or_else(|| self.poll_ack()) {
            return Some(Action::Send(message));
        }
        if let Some((number, output)) = self.gate.poll_output(self.now) {
            return Some(Action::Emit { number, output });
        }
        self.poll_pace()
    }

    /// When [`Node::handle_tick`] and [`Node::poll_action`] want to be called next, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        if matches!(self.phase, Phase::Halted) {
            return None;
        }
        let mut due = self.next_beat;
        for other in [
            self.ask.as_ref().map(|ask| ask.next),
            self.stream().and_then(crate::stream::LogStream::flush_due),
            self.quiet_until(),
        ] {
            due = other.map_or(due, |other| due.min(other));
        }
        Some(due)
    }

    pub(crate) fn push(&mut self, action: Action<T>) {
        self.actions.push_back(action);
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.push(Action::Report(report));
    }

    /// Asks the arbiter, and again until there is an answer or another question.
    pub(crate) fn ask(&mut self, op: Op) {
        self.ask = Some(Ask { op, next: self.now, reported: false });
        self.ask_again();
    }

    fn ask_again(&mut self) {
        let Some(ask) = &mut self.ask else { return };
        if self.now < ask.next {
            return;
        }
        ask.next = Nanos(self.now.0 + ASK_AGAIN.0);
        let request = Request { vm: self.config.vm.clone(), op: ask.op.clone() };
        self.push(Action::Ask(request));
    }

    /// Stops for good. What was queued and not yet polled is dropped, except words of parting on a
    /// stream, which carry no acknowledgement of anything new.
    pub(crate) fn halt(&mut self, why: Halted) {
        self.actions.retain(|action| match action {
            Action::Send(message) => {
                !matches!(self.phase, Phase::GoingLive(_)) && !matches!(message, Message::Log(_))
            }
            Action::Report(_) => true,
            _ => false,
        });
        self.phase = Phase::Halted;
        self.ask = None;
        self.gate.close();
        self.gate.discard();
        self.push(Action::CloseChannel);
        self.push(Action::Halt(why));
    }

    /// Time as this side lives it: never backwards, and in steps of at most a fifth of the timeout where
    /// silence is counted.
    fn advance(&mut self, now: Nanos) {
        let step = now.0.saturating_sub(self.now.0).min(self.config.timing.silence_step_max().0);
        self.now = self.now.max(now);
        match &mut self.phase {
            Phase::Solo(Solo { pair: Some(pair), .. }) => pair.watch.handle_time(Nanos(step)),
            Phase::Primary(pair) => pair.watch.handle_time(Nanos(step)),
            Phase::Backup(follower) => follower.watch.handle_time(Nanos(step)),
            _ => {}
        }
    }

    fn beat(&mut self) {
        let (generation, echo, busy) = match &mut self.phase {
            Phase::Solo(Solo { pair: Some(pair), .. }) => {
                pair.ping_wanted = true;
                if pair.backup.is_none() {
                    return;
                }
                (pair.generation, None, self.own_run)
            }
            Phase::Primary(pair) => {
                pair.ping_wanted = true;
                (pair.generation, None, self.own_run)
            }
            Phase::Backup(follower) => {
                follower.ack_wanted = true;
                let Some(generation) = follower.generation() else { return };
                (generation, follower.echo, follower.run_state())
            }
            Phase::Solo(_) | Phase::GoingLive(_) | Phase::Halted => return,
        };
        // A guest that its own side holds still is not expected to move.
        let run = if self.pace == Some(Pace::Stopped) { RunState::Paused } else { busy };
        let heartbeat = Heartbeat {
            generation,
            from: self.config.claimant,
            sent: self.now,
            echo,
            run,
            progress: self.own,
        };
        self.push(Action::SendHeartbeat(heartbeat));
    }

    fn poll_pace(&mut self) -> Option<Action<T>> {
        let pace = self.wanted_pace()?;
        if self.pace == Some(pace) {
            return None;
        }
        self.pace = Some(pace);
        Some(Action::SetPace(pace))
    }

    fn wanted_pace(&mut self) -> Option<Pace> {
        let unacked_len = self.stream().map_or(0, crate::stream::LogStream::unacked_len);
        let held_len = self.gate.held_len();
        self.full = if self.full {
            unacked_len >= LOG_BUFFER_RESUME || held_len >= HELD_OUTPUTS_MAX / 2
        } else {
            unacked_len >= LOG_BUFFER_LEN_MAX || held_len >= HELD_OUTPUTS_MAX
        };
        match &self.phase {
            Phase::Backup(_) | Phase::Halted => None,
            Phase::GoingLive(live) => {
                live.wanted_pace(self.now, self.config.timing.arbitration_run_max, self.full)
            }
            Phase::Solo(_) | Phase::Primary(_) if self.full => Some(Pace::Stopped),
            Phase::Solo(Solo { pair: Some(pair), .. }) => Some(pair.wanted_pace()),
            Phase::Solo(_) => Some(Pace::Run(Speed::FULL)),
            Phase::Primary(pair) => Some(Pace::Run(pair.lag.speed())),
        }
    }
}

/// The position where a machine was saved for its backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The pairing, from [`Action::TakeSnapshot`].
    pub generation: Generation,
    /// Where the machine stands.
    pub icount: Icount,
    /// Of the machine.
    pub digest: Digest,
    /// Bytes of the saved state.
    pub state_len: u64,
}

impl Entry {
    /// An entry that means nothing to the protocol.
    #[must_use]
    pub fn event(bytes: Vec<u8>) -> Entry {
        Entry { kind: EntryKind::Event, bytes }
    }

    /// The entry for an [`Action::Append`].
    #[must_use]
    pub fn control(control: Control, bytes: Vec<u8>) -> Entry {
        Entry { kind: EntryKind::Control(control), bytes }
    }
}
