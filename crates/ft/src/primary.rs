//! The side that runs the VM: alone, while it makes a pairing, and with a backup.

use base::{Claimant, Digest, Generation, LogPos, Nanos};

use crate::arbiter::{Answer, Op, Outcome, Record, Refusal};
use crate::gate::Wait;
use crate::lag::{CLONING_SPEED_MIN, LAG_HIGH, LagController, SPEED_MIN, Speed};
use crate::live::GoingLive;
use crate::message::{
    Ack, Control, EndReason, Entry, EntryKind, Heartbeat, Hello, Log, Message, PROTOCOL_VERSION,
    Progress, Refuse, RunState, StartPoint,
};
use crate::node::{
    Action, Channel, CommandError, Ending, Halted, Node, Pace, Phase, Report, Snapshot, Status,
};
use crate::stream::{LOG_BUFFER_LEN_MAX, LogStream};
use crate::timing::PAIRING_SILENCE_MAX;
use crate::watch::{Failure, Watch};

/// Within [`DIVERGENCE_WINDOW`] no new backup is asked for after this many diverged.
pub const DIVERGENCES_MAX: usize = 3;
/// An hour.
pub const DIVERGENCE_WINDOW: Nanos = Nanos(3_600_000_000_000);

/// Why a pairing did not come about. The VM runs on alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairingFailure {
    /// The channel could not be opened, or broke.
    #[error("the channel to the backup closed")]
    ChannelClosed,
    /// The backup said no.
    #[error("the backup refused")]
    Refused(#[source] Refuse),
    /// The backup fell silent.
    #[error("the backup fell silent")]
    Silent,
    /// No heartbeat came through.
    #[error("heartbeats do not arrive; is UDP blocked between the hosts?")]
    NoHeartbeat,
    /// Both loaded the same start state and got different machines.
    #[error("the backup's machine differs at the start ({theirs}, here {ours})")]
    StartDiffers {
        /// The primary's digest.
        ours: Digest,
        /// The backup's.
        theirs: Digest,
    },
    /// The log since the snapshot did not fit any more.
    #[error("the backup did not catch up before the log buffer was full")]
    SpoolFull,
    /// The arbiter does not arm the generation.
    #[error("the arbiter refused")]
    Arbiter(#[source] Refusal),
    /// The arbiter does not answer.
    #[error("the arbiter does not answer")]
    ArbiterSilent,
    /// The backup found that its machine differs.
    #[error("the backup diverged while it caught up")]
    Diverged,
    /// The backup said that it leaves.
    #[error("the backup left")]
    Left,
    /// The backup said what cannot be.
    #[error("the backup speaks nonsense: {0}")]
    Nonsense(&'static str),
    /// The operator, or the guest's power-off, ended it.
    #[error("the pairing was ended on purpose")]
    Ended,
}

/// A side that owns the VM alone.
#[derive(Debug, Default)]
pub(crate) struct Solo {
    /// A pairing under way. Until it is committed it may be dropped at no cost.
    pub(crate) pair: Option<Box<Pair>>,
    /// A generation that was armed, or may have been, and that nobody else can claim any more: its own
    /// claim closes it.
    pub(crate) tidy: Option<Generation>,
}

/// The primary's view of a pairing.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) generation: Generation,
    pub(crate) backup: Option<Claimant>,
    pub(crate) watch: Watch,
    pub(crate) ping_wanted: bool,
    pub(crate) lag: LagController,
    stage: Stage,
    /// The backup has heard a heartbeat.
    heartbeats: bool,
    channel: Channel,
    hold_guest: bool,
    start: Option<StartPoint>,
    stream: Option<LogStream>,
    /// Position after the entry `Armed`, once it is written.
    armed: Option<LogPos>,
    /// Position after the entry `End`, once it is written.
    end: Option<LogPos>,
    protected: bool,
    /// When this side last asked the backup for an answer.
    pinged: Option<Nanos>,
    /// A broken channel is tried again then.
    reopen: Nanos,
    since: Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Greeted,
    Snapshot,
    Transfer,
    Loaded,
    Arming,
    /// `Action::Append(Armed)` was handed out, so the entry may be in the log.
    Committed,
}

/// How a pairing is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairOptions {
    /// The guest stands still until the pairing holds or has failed: at power-on, and from a saved snapshot.
    pub hold_guest: bool,
}

impl Pair {
    fn new(now: Nanos, generation: Generation, options: PairOptions) -> Pair {
        Pair {
            generation,
            backup: None,
            watch: Watch::default(),
            ping_wanted: false,
            lag: LagController::new(CLONING_SPEED_MIN),
            stage: Stage::Connecting,
            heartbeats: false,
            channel: Channel::Opening,
            hold_guest: options.hold_guest,
            start: None,
            stream: None,
            armed: None,
            end: None,
            protected: false,
            pinged: None,
            reopen: now,
            since: now,
        }
    }

    pub(crate) fn wanted_pace(&self) -> Pace {
        if self.hold_guest { Pace::Stopped } else { Pace::Run(self.lag.speed()) }
    }

    pub(crate) fn fill_status(&self, now: Nanos, status: &mut Status) {
        status.peer = self.backup;
        status.protected = self.protected;
        if let Some(stream) = &self.stream {
            status.lag = stream.lag(now);
            status.acked = stream.acked();
            status.executed = stream.executed();
            status.unacked_len = stream.unacked_len();
        }
    }

    /// In both directions.
    fn heartbeats_pass(&self) -> bool {
        self.heartbeats && self.watch.heartbeat_heard()
    }

    fn enter(&mut self, now: Nanos, stage: Stage) {
        self.stage = stage;
        self.since = now;
    }
}

impl<T> Node<T> {
    /// Makes a pairing with the backup that the shell connects to. Ends in [`Report::Protected`] or
    /// [`Report::PairingFailed`].
    ///
    /// # Errors
    /// A [`CommandError`] if there is a pairing already, or this side does not own the VM.
    pub fn handle_pair(&mut self, now: Nanos, options: PairOptions) -> Result<(), CommandError> {
        self.handle_tick(now);
        if self.ending.is_some() {
            return Err(CommandError::Paired);
        }
        match &mut self.phase {
            Phase::Solo(Solo { tidy: Some(_), .. }) => return Err(CommandError::ArbiterBusy),
            Phase::Solo(Solo { pair: pair @ None, .. }) => {
                self.newest = self.newest.next();
                *pair = Some(Box::new(Pair::new(self.now, self.newest, options)));
            }
            Phase::Solo(_) | Phase::Primary(_) | Phase::GoingLive(_) => {
                return Err(CommandError::Paired);
            }
            Phase::Backup(_) => return Err(CommandError::NotPrimary),
            Phase::Halted => return Err(CommandError::Halted),
        }
        self.push(Action::OpenChannel);
        Ok(())
    }

    /// Ends protection, or the VM, on purpose. Not done before [`Report::Ended`]; after a power-off
    /// [`Halted::PoweredOff`] follows it.
    ///
    /// # Errors
    /// A [`CommandError`] on a side that does not run the VM.
    pub fn handle_end(&mut self, now: Nanos, reason: EndReason) -> Result<(), CommandError> {
        self.handle_tick(now);
        match self.phase {
            Phase::Backup(_) => return Err(CommandError::NotPrimary),
            Phase::Halted => return Err(CommandError::Halted),
            Phase::Solo(_) | Phase::Primary(_) | Phase::GoingLive(_) => {}
        }
        match &mut self.ending {
            // A guest that powers off while its protection is being switched off.
            Some(ending) if reason == EndReason::PowerOff => ending.reason = reason,
            Some(_) => {}
            None => self.ending = Some(Ending { reason, since: self.now }),
        }
        if let Phase::Primary(pair) = &self.phase {
            let generation = pair.generation;
            self.push(Action::Append(Control::End { generation, reason }));
        } else {
            self.drop_pair(PairingFailure::Ended);
            self.finish_ending();
        }
        Ok(())
    }

    /// The machine was saved here for the backup.
    pub fn handle_snapshot(&mut self, now: Nanos, snapshot: Snapshot) {
        self.handle_tick(now);
        let (pos, outputs) = (self.log_end, self.gate.produced());
        let at = self.now;
        let Some(pair) = self.pairing_mut() else { return };
        if pair.stage != Stage::Snapshot || pair.generation != snapshot.generation {
            return;
        }
        let start = StartPoint {
            generation: snapshot.generation,
            pos,
            icount: snapshot.icount,
            outputs,
            digest: snapshot.digest,
            state_len: snapshot.state_len,
        };
        pair.start = Some(start);
        pair.stream = Some(LogStream::new(pos));
        pair.enter(at, Stage::Transfer);
        self.push(Action::Send(Message::Start(start)));
        self.push(Action::SendSnapshot { generation: snapshot.generation });
    }

    pub(crate) fn tick_solo(&mut self) {
        self.finish_ending();
        if self.backup_wanted.is_some_and(|at| self.now >= at) {
            self.want_backup();
        }
        let limit = self.config.timing.detection;
        let now = self.now;
        let released = self.gate.released();
        let Some(pair) = self.pairing_mut() else { return };
        let patience = PAIRING_SILENCE_MAX.max(limit);
        let waited = now.0.saturating_sub(pair.since.0) >= patience.0;
        let failure = match pair.stage {
            Stage::Arming if waited => Some(PairingFailure::ArbiterSilent),
            Stage::Loaded if waited && !pair.heartbeats_pass() => Some(PairingFailure::NoHeartbeat),
            // Between these stages nobody but this side's own shell has anything to do.
            Stage::Snapshot | Stage::Arming => None,
            _ => pair.watch.silent(patience).then_some(PairingFailure::Silent),
        };
        if let Some(failure) = failure {
            return self.drop_pair(failure);
        }
        let lag = pair.stream.as_ref().map_or(Nanos(0), |stream| stream.lag(now));
        if pair.stage == Stage::Loaded {
            pair.lag.handle_lag(now, lag);
            let outputs = pair.start.map_or(0, |start| start.outputs);
            // Outputs from before the start point are not the backup's to repeat.
            let ready = pair.heartbeats_pass() && released >= outputs && lag <= LAG_HIGH;
            if let Some(backup) = pair.backup.filter(|_| ready) {
                pair.enter(now, Stage::Arming);
                let generation = pair.generation;
                let primary = self.config.claimant;
                self.ask(Op::Arm { generation, primary, backup });
            }
        }
    }

    pub(crate) fn tick_primary(&mut self) {
        let limit = self.config.timing.primary_detection();
        let now = self.now;
        let Phase::Primary(pair) = &mut self.phase else { return };
        if let Some(stream) = &pair.stream {
            let lag = stream.lag(now);
            pair.lag.handle_lag(now, lag);
        }
        if let Some(failure) = pair.watch.failure(limit) {
            return self.primary_goes_alone(failure);
        }
        if pair.channel == Channel::Closed && now >= pair.reopen {
            pair.channel = Channel::Opening;
            self.push(Action::OpenChannel);
        }
    }

    pub(crate) fn open_primary_channel(&mut self) {
        let hello = |config: &crate::Config, generation| {
            Message::Hello(Hello {
                version: PROTOCOL_VERSION,
                vm: config.vm.clone(),
                generation,
                claimant: config.claimant,
                host: config.host,
                machine: config.machine,
                timing: config.timing,
            })
        };
        let now = self.now;
        let Some(pair) = self.pair_mut() else { return self.push(Action::CloseChannel) };
        pair.channel = Channel::Opened;
        let generation = pair.generation;
        let message = match (pair.stage, pair.backup) {
            (Stage::Connecting, _) => {
                pair.enter(now, Stage::Greeted);
                hello(&self.config, generation)
            }
            (Stage::Committed, Some(to)) => {
                Message::Resume { generation, from: self.config.claimant, to }
            }
            _ => return self.push(Action::CloseChannel),
        };
        self.push(Action::Send(message));
    }

    pub(crate) fn close_primary_channel(&mut self) {
        let reopen = Nanos(self.now.0 + self.config.timing.beat().0);
        if let Phase::Primary(pair) = &mut self.phase {
            pair.channel = Channel::Closed;
            pair.reopen = reopen;
        } else {
            self.drop_pair(PairingFailure::ChannelClosed);
        }
    }

    pub(crate) fn handle_message_from_backup(&mut self, message: Message) {
        let Some(pair) = self.pair_mut() else { return };
        pair.watch.handle_stream();
        let generation = pair.generation;
        match message {
            Message::Welcome(welcome) if welcome.generation == generation => {
                self.handle_welcome(welcome.claimant);
            }
            Message::Refuse(why) => self.handle_refuse(why),
            Message::Loaded { generation: of, digest } if of == generation => {
                self.handle_loaded_by_backup(digest);
            }
            Message::Ack(ack) if ack.generation == generation => self.handle_ack(ack, false),
            Message::Resumed(ack) if ack.generation == generation => self.handle_ack(ack, true),
            Message::Diverged { generation: of, window } if of == generation => {
                self.handle_peer_left(Failure::Diverged(window), PairingFailure::Diverged);
            }
            Message::Leave { generation: of } if of == generation => {
                self.handle_peer_left(Failure::Left, PairingFailure::Left);
            }
            _ => self.primary_hears_nonsense("a message out of place"),
        }
    }

    pub(crate) fn handle_heartbeat_from_backup(&mut self, heartbeat: &Heartbeat) {
        let now = self.now;
        let Some(pair) = self.pair_mut() else { return };
        let known = pair.generation == heartbeat.generation && pair.backup == Some(heartbeat.from);
        if !known || heartbeat.echo.is_some_and(|echo| echo > now) {
            return;
        }
        pair.watch.handle_heartbeat();
        pair.handle_progress(heartbeat.run, heartbeat.progress);
        if let Some(echo) = heartbeat.echo {
            self.gate.handle_answered(echo);
        }
    }

    pub(crate) fn handle_answer_solo(&mut self, answer: &Answer) {
        match (&answer.op, &answer.outcome) {
            (Op::Arm { .. }, outcome) => self.handle_arm_answer(outcome, answer.record),
            (Op::Claim { generation, .. }, Outcome::Won) => self.handle_tidied(Some(*generation)),
            (Op::Claim { .. }, Outcome::NotArmed) => self.handle_tidied(None),
            (Op::Claim { .. }, _) => self.halt(Halted::Deposed(answer.record.generation())),
            (Op::PowerOff { .. }, Outcome::Refused(Refusal::StillArmed { generation })) => {
                self.tidy_up(*generation);
            }
            (Op::PowerOff { .. }, _) => self.finish_power_off(),
            _ => {}
        }
    }

    /// The log entry of a batch, or a ping, that is due.
    pub(crate) fn poll_log(&mut self) -> Option<Message> {
        let now = self.now;
        let released = self.gate.released();
        let stale = self.gate.wait(now) == Wait::RoundTrip;
        let ask_again = Nanos(self.config.timing.fresh_max().0 / 4);
        let pair = self.pair_mut()?;
        if pair.channel != Channel::InUse {
            return None;
        }
        let stream = pair.stream.as_mut()?;
        let unanswered = pair.pinged.is_some_and(|at| now.0.saturating_sub(at.0) < ask_again.0);
        let ping = pair.ping_wanted || (stale && !unanswered);
        let (first, entries) = match stream.poll_batch(now) {
            Some(batch) => batch,
            None if ping => (stream.sent(), vec![]),
            None => return None,
        };
        pair.ping_wanted = false;
        pair.pinged = Some(now);
        let lag = stream.lag(now);
        Some(Message::Log(Log {
            generation: pair.generation,
            first,
            sent: now,
            released,
            lag,
            entries,
        }))
    }

    pub(crate) fn append_to_stream(&mut self, entry: Entry) {
        let now = self.now;
        let end = self.log_end;
        let kind = entry.kind;
        let Some(pair) = self.pair_mut() else { return };
        let Some(stream) = &mut pair.stream else { return };
        stream.append(now, entry);
        match kind {
            EntryKind::Event => {}
            EntryKind::Control(Control::Armed(generation)) if generation == pair.generation => {
                pair.armed = Some(end);
                stream.flush_at_once(now);
            }
            EntryKind::Control(Control::End { generation, .. })
                if generation == pair.generation =>
            {
                pair.end = Some(end);
                stream.flush_at_once(now);
            }
            EntryKind::Control(_) => {}
        }
        if stream.unacked_len() > LOG_BUFFER_LEN_MAX && pair.stage != Stage::Committed {
            self.drop_pair(PairingFailure::SpoolFull);
        }
    }

    pub(crate) fn stream(&self) -> Option<&LogStream> {
        match &self.phase {
            Phase::Solo(Solo { pair: Some(pair), .. }) | Phase::Primary(pair) => {
                pair.stream.as_ref()
            }
            _ => None,
        }
    }

    pub(crate) fn stream_mut(&mut self) -> Option<&mut LogStream> {
        self.pair_mut()?.stream.as_mut()
    }

    /// Goes back to running alone, with `tidy` to be claimed so that the record says so too.
    pub(crate) fn become_solo(&mut self, tidy: Option<Generation>) {
        self.ask = None;
        self.phase = Phase::Solo(Solo::default());
        self.gate.release_all();
        if let Some(generation) = tidy {
            self.tidy_up(generation);
        }
        self.finish_ending();
    }

    /// A backup is wanted, unless too many of them diverged.
    pub(crate) fn want_backup(&mut self) {
        let now = self.now.0;
        self.divergences.retain(|at| now - at.0 < DIVERGENCE_WINDOW.0);
        self.backup_wanted = None;
        if self.divergences.len() >= DIVERGENCES_MAX {
            self.backup_wanted =
                self.divergences.front().map(|at| Nanos(at.0 + DIVERGENCE_WINDOW.0));
            self.report(Report::TooManyDivergences);
        } else {
            self.push(Action::NeedBackup);
        }
    }

    fn handle_welcome(&mut self, backup: Claimant) {
        let own = self.config.claimant;
        let now = self.now;
        let Some(pair) = self.pairing_mut().filter(|pair| pair.stage == Stage::Greeted) else {
            return self.primary_hears_nonsense("a welcome out of place");
        };
        if backup == own {
            return self.drop_pair(PairingFailure::Refused(Refuse::SameHost));
        }
        pair.backup = Some(backup);
        pair.channel = Channel::InUse;
        pair.enter(now, Stage::Snapshot);
        let generation = pair.generation;
        self.push(Action::TakeSnapshot { generation });
    }

    fn handle_refuse(&mut self, why: Refuse) {
        if matches!(self.phase, Phase::Primary(_)) {
            self.primary_goes_alone(Failure::Refused(why));
        } else {
            self.drop_pair(PairingFailure::Refused(why));
        }
    }

    fn handle_loaded_by_backup(&mut self, theirs: Digest) {
        let now = self.now;
        let Some(pair) = self.pairing_mut().filter(|pair| pair.stage == Stage::Transfer) else {
            return self.primary_hears_nonsense("a start state was loaded that was not sent");
        };
        let ours = pair.start.map_or(theirs, |start| start.digest);
        if ours != theirs {
            return self.drop_pair(PairingFailure::StartDiffers { ours, theirs });
        }
        pair.enter(now, Stage::Loaded);
        self.tick_solo();
    }

    fn handle_ack(&mut self, ack: Ack, resumed: bool) {
        let now = self.now;
        let Some(pair) = self.pair_mut() else { return };
        let in_place = if resumed { Channel::Opened } else { Channel::InUse };
        let Some(stream) = pair.stream.as_mut().filter(|_| pair.channel == in_place) else {
            return self.primary_hears_nonsense("an acknowledgement out of place");
        };
        let possible = ack.echo.is_none_or(|echo| echo <= now)
            && stream.handle_ack(ack.received, ack.progress.pos, ack.credit);
        if !possible {
            return self.primary_hears_nonsense("an acknowledgement of what was never sent");
        }
        if resumed {
            stream.rewind(now);
            pair.channel = Channel::InUse;
            pair.pinged = None;
        }
        pair.heartbeats |= ack.heartbeats;
        pair.handle_progress(RunState::Running, ack.progress);
        let reached = |pos: Option<LogPos>| pos.is_some_and(|pos| ack.received >= pos);
        let protected = reached(pair.armed) && !std::mem::replace(&mut pair.protected, true);
        pair.protected = reached(pair.armed);
        let ended = reached(pair.end);
        let (generation, backup) = (pair.generation, pair.backup);
        self.gate.handle_ack(ack.received);
        if let Some(echo) = ack.echo {
            self.gate.handle_answered(echo);
        }
        if let Some(backup) = backup.filter(|_| protected) {
            self.report(Report::Protected { generation, backup });
        }
        if ended {
            // The backup never claims from here on, so this side is alone before the arbiter knows.
            self.push(Action::CloseChannel);
            self.become_solo(Some(generation));
        }
    }

    fn handle_peer_left(&mut self, failure: Failure, pairing: PairingFailure) {
        if matches!(failure, Failure::Diverged(_)) {
            self.divergences.push_back(self.now);
        }
        if matches!(self.phase, Phase::Primary(_)) {
            self.primary_goes_alone(failure);
        } else {
            self.drop_pair(pairing);
        }
    }

    fn handle_arm_answer(&mut self, outcome: &Outcome, record: Record) {
        if self.pairing_mut().is_none_or(|pair| pair.stage != Stage::Arming) {
            return;
        }
        match outcome {
            Outcome::Armed => self.commit(),
            Outcome::Refused(refusal) => {
                let ours = record.may_run().contains(&self.config.claimant);
                let started_elsewhere =
                    !ours && !record.may_run().is_empty() && record.generation() > self.owned;
                if started_elsewhere {
                    return self.halt(Halted::Deposed(record.generation()));
                }
                let refusal = refusal.clone();
                self.drop_pair(PairingFailure::Arbiter(refusal));
            }
            _ => {}
        }
    }

    /// From here on the entry `Armed` may be in the log, and the backup may claim once it reads it.
    fn commit(&mut self) {
        self.ask = None;
        let fresh_max = self.config.timing.fresh_max();
        let Phase::Solo(solo) = &mut self.phase else { return };
        let Some(mut pair) = solo.pair.take() else { return };
        pair.enter(self.now, Stage::Committed);
        // What it missed while it was loading is not held against it.
        pair.watch = Watch::default();
        pair.hold_guest = false;
        pair.lag.set_min(SPEED_MIN);
        let acked = pair.stream.as_ref().map_or(LogPos(0), LogStream::acked);
        let generation = pair.generation;
        self.gate.require_acks(acked, fresh_max);
        self.phase = Phase::Primary(pair);
        self.push(Action::Append(Control::Armed(generation)));
    }

    /// Gives up a pairing that was not committed.
    fn drop_pair(&mut self, why: PairingFailure) {
        let Phase::Solo(solo) = &mut self.phase else { return };
        let Some(pair) = solo.pair.take() else { return };
        self.push(Action::CloseChannel);
        self.report(Report::PairingFailed(why));
        if pair.stage == Stage::Arming {
            // The arm may be recorded, or be recorded later.
            self.tidy_up(pair.generation);
        }
        if self.ending.is_none() {
            self.want_backup();
        }
    }

    fn tidy_up(&mut self, generation: Generation) {
        let Phase::Solo(solo) = &mut self.phase else { return };
        solo.tidy = Some(generation);
        let claimant = self.config.claimant;
        self.ask(Op::Claim { generation, claimant });
    }

    fn handle_tidied(&mut self, won: Option<Generation>) {
        let Phase::Solo(solo) = &mut self.phase else { return };
        solo.tidy = None;
        self.ask = None;
        self.owned = won.unwrap_or(self.owned);
        self.finish_ending();
    }

    fn finish_ending(&mut self) {
        let (Some(ending), Phase::Solo(solo)) = (self.ending, &self.phase) else { return };
        let waited = self.now.0.saturating_sub(ending.since.0);
        match ending.reason {
            EndReason::ProtectionOff => {
                self.ending = None;
                self.report(Report::Ended(EndReason::ProtectionOff));
            }
            // Nobody else can claim, so the VM is off even if the record does not say so.
            EndReason::PowerOff if waited >= self.config.timing.arbitration_run_max.0 => {
                self.finish_power_off();
            }
            EndReason::PowerOff if solo.tidy.is_none() && self.ask.is_none() => {
                let (generation, claimant) = (self.owned, self.config.claimant);
                self.ask(Op::PowerOff { generation, claimant });
            }
            EndReason::PowerOff => {}
        }
    }

    fn finish_power_off(&mut self) {
        self.ending = None;
        self.report(Report::Ended(EndReason::PowerOff));
        self.halt(Halted::PoweredOff);
    }

    fn primary_goes_alone(&mut self, failure: Failure) {
        let Phase::Primary(pair) = &self.phase else { return };
        let generation = pair.generation;
        self.report(Report::PeerFailed(failure));
        self.go_alone(GoingLive::primary(self.now, generation));
    }

    fn primary_hears_nonsense(&mut self, what: &'static str) {
        if matches!(self.phase, Phase::Primary(_)) {
            self.report(Report::Nonsense(what));
            self.push(Action::CloseChannel);
            self.close_primary_channel();
        } else {
            self.drop_pair(PairingFailure::Nonsense(what));
        }
    }

    fn pair_mut(&mut self) -> Option<&mut Pair> {
        match &mut self.phase {
            Phase::Solo(Solo { pair: Some(pair), .. }) | Phase::Primary(pair) => Some(pair),
            _ => None,
        }
    }

    fn pairing_mut(&mut self) -> Option<&mut Pair> {
        match &mut self.phase {
            Phase::Solo(Solo { pair, .. }) => pair.as_deref_mut(),
            _ => None,
        }
    }
}

impl Pair {
    fn handle_progress(&mut self, run: RunState, progress: Progress) {
        let Some(stream) = &mut self.stream else { return };
        if progress.pos > stream.acked() {
            // A datagram overtook the acknowledgement on the stream.
            return self.watch.handle_progress(run, progress, true);
        }
        stream.handle_executed(progress.pos);
        let has_work = stream.executed() < stream.acked();
        self.watch.handle_progress(run, progress, has_work);
    }
}

const _: () = assert!(CLONING_SPEED_MIN.0 < Speed::FULL.0);
