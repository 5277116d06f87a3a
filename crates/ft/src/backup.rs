//! The side that follows.

use std::collections::VecDeque;

use base::{Claimant, Digest, Generation, LogPos, Nanos};

use crate::gate::OutputGate;
use crate::live::GoingLive;
use crate::message::{
    Ack, CHUNK_LEN_MAX, Control, ENTRY_LEN_MAX, Entry, EntryKind, Heartbeat, Hello, Log, Message,
    PROTOCOL_VERSION, Progress, Refuse, RunState, StartPoint, Welcome, Window,
};
use crate::node::{Action, Halted, Node, Phase, Report, Status};
use crate::stream::{BACKUP_BUFFER_LEN_MAX, entry_cost};
use crate::timing::PAIRING_SILENCE_MAX;
use crate::watch::Watch;

/// The backup's view of a pairing.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) watch: Watch,
    pub(crate) ack_wanted: bool,
    /// The highest of the primary's times that it has read, and when it read it.
    pub(crate) echo: Option<Nanos>,
    heard: Nanos,
    /// The channel carries this pairing.
    connected: bool,
    /// Generation and claimant of the primary, once it is accepted.
    primary: Option<(Generation, Claimant)>,
    start: Option<StartPoint>,
    state_len: u64,
    /// The machine is restored.
    loaded: bool,
    received: LogPos,
    received_len: u64,
    executed_len: u64,
    /// Batches that the machine has not executed: where each ends, and its bytes.
    batches: VecDeque<(LogPos, u64)>,
    /// Batches that came before the machine was there.
    spool: Vec<(LogPos, Vec<Entry>)>,
    /// It has read the entry `Armed`, and may claim.
    armed: bool,
    /// When the last entry came.
    last_entry: Nanos,
    lag: Nanos,
}

impl Default for Follower {
    fn default() -> Follower {
        Follower {
            watch: Watch::default(),
            ack_wanted: false,
            echo: None,
            heard: Nanos(0),
            connected: false,
            primary: None,
            start: None,
            state_len: 0,
            loaded: false,
            received: LogPos(0),
            received_len: 0,
            executed_len: 0,
            batches: VecDeque::new(),
            spool: vec![],
            armed: false,
            last_entry: Nanos(0),
            lag: Nanos(0),
        }
    }
}

impl Follower {
    pub(crate) fn generation(&self) -> Option<Generation> {
        self.primary.map(|(generation, _)| generation)
    }

    pub(crate) fn run_state(&self) -> RunState {
        if self.loaded { RunState::Running } else { RunState::Paused }
    }

    pub(crate) fn fill_status(&self, own: Progress, status: &mut Status) {
        status.peer = self.primary.map(|(_, primary)| primary);
        status.protected = self.armed;
        status.lag = self.lag;
        status.executed = own.pos;
        status.unacked_len = 0;
    }

    fn ack(&self, own: Progress) -> Option<Ack> {
        let start = self.start?;
        // Before the machine is there it stands where it will be loaded.
        let there = self.loaded && own.pos >= start.pos;
        let progress = if there { own } else { Progress { icount: start.icount, pos: start.pos } };
        Some(Ack {
            generation: start.generation,
            received: self.received,
            progress,
            credit: self.executed_len + BACKUP_BUFFER_LEN_MAX,
            echo: self.echo,
            heartbeats: self.watch.heartbeat_heard(),
        })
    }

    fn hear(&mut self, now: Nanos, sent: Nanos) {
        if self.echo.is_none_or(|echo| sent > echo) {
            (self.echo, self.heard) = (Some(sent), now);
        }
    }
}

impl<T> Node<T> {
    /// Somebody connected to this side, and `first` is the first thing it said. If it is accepted, its
    /// stream is the channel from now on, in place of an older one, which the shell closes. If not, the
    /// shell sends it the refusal and closes it; the channel that there is, is untouched.
    ///
    /// # Errors
    /// The refusal.
    pub fn handle_incoming(&mut self, now: Nanos, first: Message) -> Result<(), Refuse> {
        self.handle_tick(now);
        if let Err(refuse) = self.accepts(&first) {
            self.report(Report::RefusedPrimary(refuse.clone()));
            return Err(refuse);
        }
        match first {
            Message::Hello(hello) => self.handle_hello(&hello),
            _ => self.handle_resume(),
        }
        Ok(())
    }

    /// The machine is restored from the start state.
    pub fn handle_loaded(&mut self, now: Nanos, generation: Generation, digest: Digest) {
        self.handle_tick(now);
        let Phase::Backup(follower) = &mut self.phase else { return };
        if follower.generation() != Some(generation) || follower.loaded {
            return;
        }
        follower.loaded = true;
        self.push(Action::Send(Message::Loaded { generation, digest }));
        let Phase::Backup(follower) = &mut self.phase else { return };
        for (first, entries) in std::mem::take(&mut follower.spool) {
            self.push(Action::Replay { first, entries });
        }
    }

    /// The machine differs from the primary's: this side never goes live.
    pub fn handle_diverged(&mut self, now: Nanos, window: Window) {
        self.handle_tick(now);
        match &self.phase {
            Phase::Backup(follower) => {
                if let Some(generation) = follower.generation() {
                    self.push(Action::Send(Message::Diverged { generation, window }));
                }
            }
            Phase::GoingLive(live) if live.follows() => {}
            _ => return,
        }
        self.halt(Halted::Diverged(window));
    }

    /// This backup is to end in good order; its primary need not wait for a timeout. On another side
    /// nothing happens.
    pub fn handle_leave(&mut self, now: Nanos) {
        self.handle_tick(now);
        let Phase::Backup(follower) = &self.phase else { return };
        if let Some(generation) = follower.generation() {
            self.push(Action::Send(Message::Leave { generation }));
        }
        self.halt(Halted::Left);
    }

    pub(crate) fn tick_backup(&mut self) {
        let limit = self.config.timing.detection;
        let Phase::Backup(follower) = &self.phase else { return };
        let Some((generation, _)) = follower.primary else { return };
        if follower.armed {
            let Some(failure) = follower.watch.failure(limit) else { return };
            self.report(Report::PeerFailed(failure));
            let quiet = Nanos(follower_quiet(self));
            let Phase::Backup(follower) = &self.phase else { return };
            let (received, last_entry) = (follower.received, follower.last_entry);
            self.go_alone(GoingLive::backup(self.now, generation, received, last_entry, quiet));
        } else if follower.watch.silent(PAIRING_SILENCE_MAX.max(limit)) {
            self.halt(Halted::Dropped);
        }
    }

    pub(crate) fn close_backup_channel(&mut self) {
        let Phase::Backup(follower) = &mut self.phase else { return };
        follower.connected = false;
        if follower.primary.is_some() && !follower.armed {
            self.halt(Halted::Dropped);
        }
    }

    pub(crate) fn handle_message_from_primary(&mut self, message: Message) {
        let Phase::Backup(follower) = &mut self.phase else { return };
        if !follower.connected {
            return;
        }
        follower.watch.handle_stream();
        match message {
            Message::Start(start) => self.handle_start(start),
            Message::Chunk { offset, bytes } => self.handle_chunk(offset, bytes),
            Message::Log(log) => self.handle_log(log),
            _ => self.backup_hears_nonsense("a message out of place"),
        }
    }

    pub(crate) fn handle_heartbeat_from_primary(&mut self, heartbeat: &Heartbeat) {
        let now = self.now;
        let Phase::Backup(follower) = &mut self.phase else { return };
        if follower.primary != Some((heartbeat.generation, heartbeat.from)) {
            return;
        }
        follower.hear(now, heartbeat.sent);
        follower.watch.handle_heartbeat();
        follower.watch.handle_progress(heartbeat.run, heartbeat.progress, true);
    }

    pub(crate) fn handle_executed_by_backup(&mut self) {
        let own = self.own;
        let Phase::Backup(follower) = &mut self.phase else { return };
        while let Some((_, len)) = follower.batches.pop_front_if(|(end, _)| *end <= own.pos) {
            follower.executed_len += len;
            follower.ack_wanted = true;
        }
    }

    pub(crate) fn poll_ack(&mut self) -> Option<Message> {
        let own = self.own;
        let Phase::Backup(follower) = &mut self.phase else { return None };
        if !follower.connected || !follower.ack_wanted {
            return None;
        }
        follower.ack_wanted = false;
        follower.ack(own).map(Message::Ack)
    }

    fn accepts(&self, first: &Message) -> Result<(), Refuse> {
        match (&self.phase, first) {
            (Phase::Backup(follower), Message::Hello(hello)) => {
                check_hello(&self.config, hello, follower.primary.is_some())
            }
            (Phase::Backup(follower), Message::Resume { generation, from, to })
                if follower.primary == Some((*generation, *from))
                    && *to == self.config.claimant
                    && follower.start.is_some() =>
            {
                Ok(())
            }
            (_, Message::Resume { generation: asked, .. }) => Err(Refuse::Busy { asked: *asked }),
            (_, Message::Hello(hello)) => Err(Refuse::Busy { asked: hello.generation }),
            _ => Err(Refuse::NoHello),
        }
    }

    fn handle_hello(&mut self, hello: &Hello) {
        let Phase::Backup(follower) = &mut self.phase else { return };
        let (generation, claimant) = (hello.generation, self.config.claimant);
        follower.primary = Some((generation, hello.claimant));
        follower.connected = true;
        follower.watch = Watch::default();
        self.config.timing = hello.timing;
        self.newest = generation;
        self.push(Action::Send(Message::Welcome(Welcome { generation, claimant })));
    }

    fn handle_resume(&mut self) {
        let own = self.own;
        let Phase::Backup(follower) = &mut self.phase else { return };
        follower.connected = true;
        follower.watch.handle_stream();
        if let Some(ack) = follower.ack(own) {
            self.push(Action::Send(Message::Resumed(ack)));
        }
    }

    fn handle_start(&mut self, start: StartPoint) {
        let Phase::Backup(follower) = &mut self.phase else { return };
        if follower.start.is_some() || follower.generation() != Some(start.generation) {
            return self.backup_hears_nonsense("a start point out of place");
        }
        follower.start = Some(start);
        follower.received = start.pos;
        self.log_end = start.pos;
        self.gate = OutputGate::shut(start.outputs);
        if start.state_len == 0 {
            self.push(Action::LoadSnapshot(start));
        }
    }

    fn handle_chunk(&mut self, offset: u64, bytes: Vec<u8>) {
        let Phase::Backup(follower) = &mut self.phase else { return };
        let end = offset.checked_add(bytes.len() as u64);
        let fits =
            follower.start.is_some_and(|start| end.is_some_and(|end| end <= start.state_len));
        let (Some(start), Some(end)) = (follower.start.filter(|_| fits), end) else {
            return self.backup_hears_nonsense("a piece of state that does not belong");
        };
        if offset != follower.state_len || bytes.is_empty() || bytes.len() > CHUNK_LEN_MAX {
            return self.backup_hears_nonsense("a piece of state out of order");
        }
        follower.state_len = end;
        self.push(Action::StoreChunk(bytes));
        if end == start.state_len {
            self.push(Action::LoadSnapshot(start));
        }
    }

    fn handle_log(&mut self, log: Log) {
        let now = self.now;
        let Phase::Backup(follower) = &mut self.phase else { return };
        let end = log.first.0.checked_add(log.entries.len() as u64);
        let fits = follower.start.is_some()
            && follower.generation() == Some(log.generation)
            && log.first <= follower.received
            && end.is_some()
            && log.entries.iter().all(|entry| entry.bytes.len() <= ENTRY_LEN_MAX);
        if !fits {
            return self.backup_hears_nonsense("entries that do not follow");
        }
        follower.hear(now, log.sent);
        follower.lag = log.lag;
        follower.ack_wanted = true;
        self.gate.handle_released(log.released);
        let known = (follower.received.0 - log.first.0) as usize;
        let entries: Vec<Entry> = log.entries.into_iter().skip(known).collect();
        if !entries.is_empty() {
            self.take_entries(entries);
        }
    }

    fn take_entries(&mut self, entries: Vec<Entry>) {
        let now = self.now;
        let own = self.own;
        let Phase::Backup(follower) = &mut self.phase else { return };
        let len: u64 = entries.iter().map(entry_cost).sum();
        if follower.received_len + len > follower.executed_len + BACKUP_BUFFER_LEN_MAX {
            return self.backup_hears_nonsense("more entries than there is room for");
        }
        let first = follower.received;
        let generation = follower.generation();
        let mut end = None;
        for control in entries.iter().filter_map(Entry::as_control) {
            match control {
                Control::Armed(of) if Some(of) == generation && follower.loaded => {
                    follower.armed = true;
                }
                Control::End { generation: of, reason } if Some(of) == generation => {
                    end = Some(reason);
                }
                // What an earlier pairing left behind in the machine's queue means nothing any more.
                Control::Armed(of) | Control::End { generation: of, .. }
                    if Some(of) < generation => {}
                _ => return self.backup_hears_nonsense("a control entry out of place"),
            }
        }
        follower.received = LogPos(first.0 + entries.len() as u64);
        self.log_end = follower.received;
        follower.received_len += len;
        follower.last_entry = now;
        follower.batches.push_back((follower.received, len));
        let told = Progress { icount: own.icount, pos: follower.received };
        follower.watch.handle_progress(RunState::Running, told, true);
        if let Some(reason) = end {
            if let Some(ack) = follower.ack(own) {
                self.push(Action::Send(Message::Ack(ack)));
            }
            return self.halt(Halted::Ended(reason));
        }
        if follower.loaded {
            self.push(Action::Replay { first, entries });
        } else {
            follower.spool.push((first, entries));
        }
    }

    fn backup_hears_nonsense(&mut self, what: &'static str) {
        self.report(Report::Nonsense(what));
        self.push(Action::CloseChannel);
        self.close_backup_channel();
    }
}

/// Until when a new primary lets nothing out.
fn follower_quiet<T>(node: &Node<T>) -> u64 {
    let Phase::Backup(follower) = &node.phase else { return node.now.0 };
    follower.heard.0 + node.config.timing.quiet().0
}

fn check_hello(config: &crate::Config, hello: &Hello, busy: bool) -> Result<(), Refuse> {
    if hello.version != PROTOCOL_VERSION {
        return Err(Refuse::Version { speaks: PROTOCOL_VERSION, asked: hello.version });
    }
    if hello.vm != config.vm {
        return Err(Refuse::OtherVm { serves: config.vm.clone(), asked: hello.vm.clone() });
    }
    if busy {
        return Err(Refuse::Busy { asked: hello.generation });
    }
    if hello.host == config.host || hello.claimant == config.claimant {
        return Err(Refuse::SameHost);
    }
    if hello.machine != config.machine {
        return Err(Refuse::Machine { has: config.machine, asked: hello.machine });
    }
    hello.timing.check().map(|_| ()).map_err(|_| Refuse::Timing)
}

impl Entry {
    fn as_control(&self) -> Option<Control> {
        match self.kind {
            EntryKind::Event => None,
            EntryKind::Control(control) => Some(control),
        }
    }
}
