//! The simulated world: hosts with processes that run the shipped `ft` code, the network between them,
//! the arbiter, the disk server and the clients; and one queue of what happens next.
//!
//! A process is a driver as in `crates/ft/tests/driver.rs`, with delays at every step. A stopped process
//! handles what came meanwhile in one go when it is continued, with buffers full of old news.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{Claimant, Digest, Generation, LogPos, Nanos, SeededRng, VmId};
use ft::arbiter::{Answer, Op, Outcome, Record, Request};
use ft::{
    Action, Config, Control, EndReason, Entry, EntryKind, Halted, Heartbeat, Message, Node,
    OutputKind, Pace, PairOptions, Progress, Report, Role, RunState, Snapshot, Stamp, Timing,
    Window,
};

use crate::checks::Checks;
use crate::faults::Fault;
use crate::machine::{BLOCKS, DiskRequest, Effect, Event, Machine, Output, Reply};
use crate::net::{MS, Net, Place};

/// An output with the position that the output rule speaks of.
pub type PlacedOutput = (LogPos, Output);

/// Hosts that run VMs.
pub const HOSTS: usize = 3;
/// Clients of the VM.
pub const CLIENTS: usize = 3;
/// A vCPU logs an anchor this often.
const VCPU_SLICE: u64 = 20 * MS;
/// Steps in a slice at full speed.
const SLICE_STEPS: u64 = 20_000;
/// One anchor in so many is followed by a digest.
const DIGEST_EVERY: u64 = 16;
/// Inputs that wait for a vCPU that does not run; a network card has no more either.
const INPUTS_MAX: usize = 256;
/// A piece of a start state.
const CHUNK: usize = 512;

/// Everything there is.
pub struct Sim {
    /// Time of an observer outside, in ns.
    pub now: u64,
    pub(crate) rng: SeededRng,
    queue: BTreeMap<(u64, u64), What>,
    next_event: u64,
    /// The network.
    pub net: Net,
    pub(crate) timing: Timing,
    pub(crate) procs: Vec<Proc>,
    /// Until when each host is down.
    pub(crate) host_down: [u64; HOSTS],
    conns: Vec<Conn>,
    /// The arbiter's record.
    pub record: Record,
    pub(crate) arbiter_down: u64,
    pub(crate) answers_lost: u64,
    storage: Storage,
    clients: Vec<Client>,
    /// Where the bridge last saw the VM's MAC address.
    port: Option<usize>,
    /// The most time between a process's check and the wire, in ns.
    pub(crate) emit_delay_max: u64,
    /// The owner asks for new backups.
    pub(crate) repair: bool,
    pub(crate) clients_stop: bool,
    pub(crate) checks: Checks,
    /// What happened, if somebody wants to read it.
    pub trace: Option<Vec<String>>,
}

/// A process of one host.
pub(crate) struct Proc {
    pub(crate) host: usize,
    pub(crate) node: Node<PlacedOutput>,
    pub(crate) claimant: Claimant,
    pub(crate) alive: bool,
    pub(crate) stopped: u64,
    pub(crate) stalled: u64,
    /// Execution time, in thousandths of normal.
    pub(crate) slow: u64,
    pub(crate) slow_until: u64,
    pub(crate) machine: Option<Machine>,
    pub(crate) halted: Option<Halted>,
    inbox: VecDeque<Input>,
    clock_offset: u64,
    clock_ppm: u64,
    state: Vec<u8>,
    replay: VecDeque<Event>,
    executing: bool,
    vcpu: bool,
    slices: u64,
    pace: Pace,
    inputs: VecDeque<Event>,
    conn: Option<usize>,
    /// Streams that somebody else opened, and that have said their first word.
    seen: BTreeSet<usize>,
    pub(crate) peer: Option<usize>,
    tick: u64,
    disk_epoch: u64,
    disk_stamp: Stamp,
    disk_last: u64,
    submitted: BTreeSet<u64>,
}

struct Conn {
    ends: [usize; 2],
    /// Arrival of the last piece sent to each end.
    last: [u64; 2],
    open: bool,
}

struct Client {
    seq: u32,
    replies: BTreeMap<u32, Reply>,
}

#[derive(Default)]
struct Storage {
    fence: Stamp,
    blocks: [u64; BLOCKS],
}

/// What a process is told.
#[derive(Clone, Debug)]
enum Input {
    Tick(u64),
    Vcpu,
    Exec,
    Opened(usize),
    Closed(usize),
    OpenFailed,
    Message(usize, Message),
    Heartbeat(Heartbeat),
    Answer(Answer),
    TakeSnapshot(Generation),
    Load(Generation),
    Append(Control),
    DiskReady(u64, Stamp),
    DiskDone(u64, Event),
    Request(Event),
}

#[derive(Clone, Debug)]
enum What {
    To(usize, Input),
    Continue(usize),
    ArbiterHears(usize, Request),
    DiskConnects(usize, u64, Stamp),
    DiskHears(usize, u64, Stamp, DiskRequest),
    DiskDoes(usize, u64, Stamp, DiskRequest),
    Connect(usize, usize),
    Wire(usize, Reply),
    ClientHears(Reply),
    ClientTimer(usize, u32),
    Pair(usize),
    Exit(usize),
    Fault(Fault),
}

impl Sim {
    /// A VM that was powered on on the first host at time 0 and looks for a backup.
    #[must_use]
    pub fn new(seed: u64, timing: Timing) -> Sim {
        let mut sim = Sim {
            now: 0,
            rng: SeededRng::new(seed),
            queue: BTreeMap::new(),
            next_event: 0,
            net: Net::default(),
            timing,
            procs: vec![],
            host_down: [0; HOSTS],
            conns: vec![],
            record: Record::default(),
            arbiter_down: 0,
            answers_lost: 0,
            storage: Storage::default(),
            clients: vec![],
            port: None,
            emit_delay_max: MS,
            repair: true,
            clients_stop: false,
            checks: Checks::default(),
            trace: None,
        };
        sim.power_on(0);
        for client in 0..CLIENTS {
            sim.clients.push(Client { seq: 1, replies: BTreeMap::new() });
            sim.at(MS * (1 + client as u64), What::ClientTimer(client, 1));
        }
        sim
    }

    /// Lets `fault` happen `delay` ns from now.
    pub fn inject(&mut self, delay: u64, fault: Fault) {
        self.after(delay, What::Fault(fault));
    }

    /// Runs for `ns`.
    pub fn run(&mut self, ns: u64) {
        let end = self.now + ns;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.happen(what);
        }
        self.now = end;
    }

    /// Runs until `done`, for at most `ns`. Returns whether it was done.
    pub fn run_until(&mut self, ns: u64, done: impl Fn(&Sim) -> bool) -> bool {
        let end = self.now + ns;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run(MS);
        }
        done(self)
    }

    /// The process that runs the VM by right, if there is one.
    #[must_use]
    pub fn owner(&self) -> Option<usize> {
        let ours = |proc: &&Proc| matches!(proc.node.role(), Role::Solo | Role::Primary);
        let alive = self.procs.iter().filter(ours).filter(|proc| proc.alive);
        let owner = alive.rev().find(|proc| self.record.may_run().contains(&proc.claimant))?;
        self.procs.iter().position(|proc| proc.claimant == owner.claimant)
    }

    /// The backup that follows the owner.
    #[must_use]
    pub fn follower(&self) -> Option<usize> {
        let status = self.procs[self.owner()?].node.status();
        let peer = status.peer.filter(|_| status.protected)?;
        self.procs.iter().position(|proc| proc.claimant == peer && proc.alive)
    }

    /// The VM runs, and a backup that knows it follows.
    #[must_use]
    pub fn protected(&self) -> bool {
        self.follower().is_some()
    }

    /// Operations that clients have seen acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.clients.iter().map(|client| client.replies.len()).sum()
    }

    /// How far the backup's execution trails, as the owner computes it, in ns.
    #[must_use]
    pub fn lag_ns(&self) -> u64 {
        self.owner().map_or(0, |owner| self.procs[owner].node.status().lag.0)
    }

    /// Runs to the next moment at which a protected owner holds an output back.
    pub fn run_to_held_output(&mut self) {
        let end = self.now + 1_000 * MS;
        let holds = |sim: &Sim| {
            let owner = sim.owner().map(|owner| sim.procs[owner].node.status());
            owner.is_some_and(|status| status.role == Role::Primary && status.held_outputs > 0)
        };
        while self.now < end && !holds(self) {
            self.run(MS / 50);
        }
    }

    /// The most time that a process takes from its check to the wire.
    pub fn set_emit_delay_max(&mut self, ns: u64) {
        self.emit_delay_max = ns;
    }

    /// The roles of all processes that have not crashed.
    pub fn roles(&self) -> impl Iterator<Item = ft::Role> {
        let there = |proc: &&Proc| proc.alive || proc.halted.is_some();
        self.procs.iter().filter(there).map(|proc| proc.node.role())
    }

    /// Clients ask nothing any more.
    pub fn stop_clients(&mut self) {
        self.clients_stop = true;
    }

    /// How often a side went on alone.
    #[must_use]
    pub fn takeovers(&self) -> usize {
        self.checks.lives
    }

    /// What went wrong so far.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        self.checks.violations()
    }

    pub(crate) fn find(&self, claimant: Claimant) -> Option<&Proc> {
        self.procs.iter().find(|proc| proc.claimant == claimant)
    }

    pub(crate) fn disk_blocks(&self) -> [u64; BLOCKS] {
        self.storage.blocks
    }

    pub(crate) fn replies(&self) -> impl Iterator<Item = &Reply> {
        self.clients.iter().flat_map(|client| client.replies.values())
    }

    fn at(&mut self, at: u64, what: What) {
        self.queue.insert((at.max(self.now), self.next_event), what);
        self.next_event += 1;
    }

    fn after(&mut self, delay: u64, what: What) {
        self.at(self.now + delay, what);
    }

    fn tell(&mut self, delay: u64, proc: usize, input: Input) {
        self.after(delay, What::To(proc, input));
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} ms  {}", now as f64 / MS as f64, text()));
        }
    }

    fn power_on(&mut self, host: usize) {
        let claimant = self.fresh_claimant();
        let op = Op::PowerOn {
            claimant,
            seen: self.record.generation(),
            dead: vec![],
            copy: None,
            force: false,
        };
        let answer = self.record.handle(&Request { vm: vm(), op });
        let Outcome::PoweredOn { generation } = answer.outcome else {
            unreachable!("a new VM is off: {answer:?}")
        };
        let proc = self
            .spawn(host, claimant, |now, config| Node::solo(now, config, generation, LogPos(0)));
        self.procs[proc].machine = Some(Machine::default());
        self.port = Some(proc);
        self.connect_disks(proc, Stamp::won(generation));
        self.make_pair(proc, true);
        self.drive(proc);
    }

    fn fresh_claimant(&mut self) -> Claimant {
        Claimant(u128::from(self.rng.u64()) << 64 | self.procs.len() as u128)
    }

    fn spawn(
        &mut self,
        host: usize,
        claimant: Claimant,
        node: impl FnOnce(Nanos, Config) -> Node<PlacedOutput>,
    ) -> usize {
        let clock_offset = self.rng.below(1 << 50);
        let clock_ppm = 1_000_000 - 200 + self.rng.below(400);
        let config = Config {
            vm: vm(),
            claimant,
            host: Digest::of(&[host as u8]),
            machine: Digest::of(b"model machine"),
            timing: self.timing,
        };
        let local = local_time(self.now, clock_offset, clock_ppm);
        self.procs.push(Proc {
            host,
            node: node(local, config),
            claimant,
            alive: true,
            stopped: 0,
            stalled: 0,
            slow: 1000,
            slow_until: 0,
            machine: None,
            halted: None,
            inbox: VecDeque::new(),
            clock_offset,
            clock_ppm,
            state: vec![],
            replay: VecDeque::new(),
            executing: false,
            vcpu: false,
            slices: 0,
            pace: Pace::Stopped,
            inputs: VecDeque::new(),
            conn: None,
            seen: BTreeSet::new(),
            peer: None,
            tick: 0,
            disk_epoch: 0,
            disk_stamp: Stamp::default(),
            disk_last: 0,
            submitted: BTreeSet::new(),
        });
        let proc = self.procs.len() - 1;
        self.note(|| format!("process {proc} starts on host {host}"));
        self.drive(proc);
        proc
    }

    /// Looks for a host for a new backup, as a placement service would.
    fn make_pair(&mut self, proc: usize, hold_guest: bool) {
        let host = self.procs[proc].host;
        let now = self.now;
        let free: Vec<usize> = (0..HOSTS)
            .filter(|other| *other != host && self.host_down[*other] <= now)
            .filter(|other| {
                let here = |proc: &&Proc| proc.host == *other && proc.alive;
                self.procs.iter().filter(here).all(|proc| proc.is_idle(now))
            })
            .collect();
        if free.is_empty() {
            return self.after(500 * MS, What::Pair(proc));
        }
        let host = free[self.rng.below(free.len() as u64) as usize];
        for idle in 0..self.procs.len() {
            if self.procs[idle].host == host {
                self.kill(idle, true);
            }
        }
        let claimant = self.fresh_claimant();
        let backup = self.spawn(host, claimant, Node::backup);
        self.procs[proc].peer = Some(backup);
        let local = self.local(proc);
        if self.procs[proc].node.handle_pair(local, PairOptions { hold_guest }).is_err() {
            self.kill(backup, true);
            self.after(500 * MS, What::Pair(proc));
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::To(proc, input) => self.deliver(proc, input),
            What::Continue(proc) => self.continue_proc(proc),
            What::ArbiterHears(proc, request) => self.arbiter_hears(proc, &request),
            What::DiskConnects(proc, epoch, stamp) => self.disk_connects(proc, epoch, stamp),
            What::DiskHears(proc, epoch, stamp, request) => {
                if stamp >= self.storage.fence {
                    let work = self.rng.below(20 * MS);
                    self.after(work, What::DiskDoes(proc, epoch, stamp, request));
                }
            }
            What::DiskDoes(proc, epoch, stamp, request) => {
                self.disk_does(proc, epoch, stamp, request);
            }
            What::Connect(from, to) => self.connect(from, to),
            What::Wire(proc, reply) => self.wire(proc, reply),
            What::ClientHears(reply) => self.client_hears(reply),
            What::ClientTimer(client, seq) => self.client_timer(client, seq),
            What::Pair(proc) => self.pair_again(proc),
            What::Exit(proc) => self.kill(proc, true),
            What::Fault(fault) => self.fault(fault),
        }
    }

    fn pair_again(&mut self, proc: usize) {
        let wants = self.procs[proc].alive
            && self.procs[proc].node.role() == Role::Solo
            && self.procs[proc].node.status().peer.is_none();
        if !wants || !self.repair {
            return;
        }
        if self.procs[proc].stopped > self.now {
            return self.after(500 * MS, What::Pair(proc));
        }
        self.make_pair(proc, false);
        self.drive(proc);
    }

    // Processes.

    fn deliver(&mut self, proc: usize, input: Input) {
        let stale = matches!(input, Input::Tick(number) if number != self.procs[proc].tick);
        if !self.procs[proc].alive || stale {
            return;
        }
        if self.procs[proc].stopped > self.now {
            return self.procs[proc].inbox.push_back(input);
        }
        self.handle(proc, input);
        self.drive(proc);
    }

    fn continue_proc(&mut self, proc: usize) {
        if self.procs[proc].stopped > self.now || !self.procs[proc].alive {
            return;
        }
        self.note(|| format!("process {proc} is continued"));
        // The kernel's buffers are read before or after the timers fire: both orders happen.
        let mut inbox: Vec<Input> = std::mem::take(&mut self.procs[proc].inbox).into();
        if self.rng.one_in(2) {
            inbox.sort_by_key(|input| !matches!(input, Input::Tick(_) | Input::Vcpu | Input::Exec));
        }
        for input in inbox {
            if self.procs[proc].alive {
                self.handle(proc, input);
                self.drive(proc);
            }
        }
    }

    fn handle(&mut self, proc: usize, input: Input) {
        let now = self.local(proc);
        let this = &mut self.procs[proc];
        match input {
            Input::Tick(number) if number != this.tick => {}
            Input::Tick(_) => {
                this.tick += 1;
                self.report_progress(proc);
                self.procs[proc].node.handle_tick(now);
            }
            Input::Vcpu => self.vcpu(proc),
            Input::Exec => self.exec(proc),
            Input::Opened(conn) => {
                this.conn = Some(conn);
                this.node.handle_channel_opened(now);
            }
            Input::Closed(conn) if this.conn == Some(conn) => {
                this.conn = None;
                this.node.handle_channel_closed(now);
            }
            Input::Closed(_) => {}
            Input::OpenFailed => {
                if this.conn.is_none() {
                    this.node.handle_channel_closed(now);
                }
            }
            Input::Message(conn, message) if this.conn == Some(conn) => {
                this.node.handle_message(now, message);
            }
            Input::Message(conn, first) => self.incoming(proc, conn, first),
            Input::Heartbeat(heartbeat) => this.node.handle_heartbeat(now, &heartbeat),
            Input::Answer(answer) => this.node.handle_answer(now, &answer),
            Input::TakeSnapshot(generation) => self.take_snapshot(proc, generation),
            Input::Load(generation) => self.load(proc, generation),
            Input::Append(control) => {
                if self.runs(proc) {
                    self.append(proc, Event::Control, EntryKind::Control(control));
                }
            }
            Input::DiskReady(epoch, stamp) => {
                if this.disk_epoch == epoch {
                    this.node.handle_disks_ready(now, stamp);
                }
            }
            Input::DiskDone(epoch, event) => {
                if this.disk_epoch == epoch {
                    self.input(proc, event);
                }
            }
            Input::Request(event) => self.input(proc, event),
        }
    }

    /// Does everything that the node of `proc` wants done.
    fn drive(&mut self, proc: usize) {
        loop {
            let now = self.local(proc);
            let Some(action) = self.procs[proc].node.poll_action(now) else { break };
            self.perform(proc, action);
        }
        if let Some(due) = self.procs[proc].node.poll_timeout() {
            let this = &mut self.procs[proc];
            this.tick += 1;
            let number = this.tick;
            let at = global_time(due.0, this.clock_offset, this.clock_ppm);
            // Nobody is woken at the very instant.
            let at = at.max(self.now) + 1 + self.rng.below(MS);
            self.at(at, What::To(proc, Input::Tick(number)));
        }
        self.checks.owners(self.now, &self.procs);
    }

    fn perform(&mut self, proc: usize, action: Action<PlacedOutput>) {
        match action {
            Action::Send(message) => self.send(proc, message),
            Action::SendHeartbeat(heartbeat) => self.send_heartbeat(proc, heartbeat),
            Action::OpenChannel => {
                let delay = self.rng.below(5 * MS);
                if let Some(peer) = self.procs[proc].peer {
                    self.after(delay, What::Connect(proc, peer));
                }
            }
            Action::CloseChannel => {
                if let Some(conn) = self.procs[proc].conn.take() {
                    self.hang_up(proc, conn);
                }
            }
            Action::TakeSnapshot { generation } => {
                let delay = self.rng.below(50 * MS);
                self.tell(delay, proc, Input::TakeSnapshot(generation));
            }
            Action::SendSnapshot { .. } => {
                let state = std::mem::take(&mut self.procs[proc].state);
                for (index, bytes) in state.chunks(CHUNK).enumerate() {
                    let offset = (index * CHUNK) as u64;
                    self.send(proc, Message::Chunk { offset, bytes: bytes.to_vec() });
                }
            }
            Action::StoreChunk(bytes) => self.procs[proc].state.extend(bytes),
            Action::LoadSnapshot(start) => {
                let delay = self.rng.below(100 * MS);
                self.tell(delay, proc, Input::Load(start.generation));
            }
            Action::Append(control) => {
                let delay = self.rng.below(5 * MS);
                self.tell(delay, proc, Input::Append(control));
            }
            Action::Replay { entries, .. } => self.replay(proc, &entries),
            Action::Ask(request) => self.ask(proc, request),
            Action::ReconnectDisks(stamp) => self.connect_disks(proc, stamp),
            Action::ReissueDisk => self.reissue(proc),
            Action::Emit { number, output: (pos, output) } => {
                self.checks.emitted(number);
                self.emit(proc, pos, output);
            }
            Action::AnchorClock { advance, .. } => {
                self.append(proc, Event::Anchor(advance.0 / 1000), EntryKind::Event);
            }
            Action::Announce => self.port = Some(proc),
            Action::SetPace(pace) => self.set_pace(proc, pace),
            Action::NeedBackup => {
                let delay = 200 * MS + self.rng.below(500 * MS);
                self.after(delay, What::Pair(proc));
            }
            Action::Report(report) => self.report(proc, report),
            Action::Halt(why) => self.halt(proc, why),
        }
    }

    fn report(&mut self, proc: usize, report: Report) {
        self.note(|| format!("process {proc}: {report:?}"));
        self.checks.too_many_divergences |= report == Report::TooManyDivergences;
        if let Report::Live(generation) = report {
            self.checks.live(self.now, proc, generation, &self.procs[proc]);
            let replies: Vec<Reply> = self.replies().copied().collect();
            self.checks.nothing_lost(self.now, &self.procs[proc], replies.iter());
        }
    }

    fn halt(&mut self, proc: usize, why: Halted) {
        self.note(|| format!("process {proc} halts: {why}"));
        self.procs[proc].halted = Some(why);
        let delay = self.rng.below(2_000 * MS);
        self.after(delay, What::Exit(proc));
    }

    /// Ends a process; its kernel closes its streams, if there is still a kernel.
    pub(crate) fn kill(&mut self, proc: usize, kernel_lives: bool) {
        if !std::mem::replace(&mut self.procs[proc].alive, false) {
            return;
        }
        self.note(|| format!("process {proc} is gone"));
        if let Some(conn) = self.procs[proc].conn.take().filter(|_| kernel_lives) {
            self.hang_up(proc, conn);
        }
    }

    pub(crate) fn stop(&mut self, proc: usize, ns: u64) {
        let until = self.now + ns;
        self.procs[proc].stopped = until.max(self.procs[proc].stopped);
        self.at(until, What::Continue(proc));
    }

    // Streams and datagrams.

    fn place(&self, proc: usize) -> Place {
        Place::Host(self.procs[proc].host)
    }

    fn connect(&mut self, from: usize, to: usize) {
        let (a, b) = (self.place(from), self.place(to));
        let up = self.net.up_at(a, b, self.now) == self.now;
        if !up || !self.procs[to].alive {
            let delay = 50 * MS + self.rng.below(200 * MS);
            return self.tell(delay, from, Input::OpenFailed);
        }
        let there = self.net.segment(&mut self.rng, a, b, self.now, self.now);
        let back = self.net.segment(&mut self.rng, b, a, there, there);
        self.conns.push(Conn { ends: [from, to], last: [back, there], open: true });
        let conn = self.conns.len() - 1;
        self.at(back, What::To(from, Input::Opened(conn)));
    }

    /// Something came on a stream that is not the channel: the first message on a new one, or the last of an
    /// old one.
    fn incoming(&mut self, proc: usize, conn: usize, first: Message) {
        let now = self.local(proc);
        let new = self.conns[conn].ends[1] == proc && !self.procs[proc].seen.contains(&conn);
        if !new || !self.conns[conn].open {
            return;
        }
        self.procs[proc].seen.insert(conn);
        match self.procs[proc].node.handle_incoming(now, first) {
            Ok(()) => {
                self.procs[proc].peer = Some(self.conns[conn].ends[0]);
                if let Some(old) = self.procs[proc].conn.replace(conn) {
                    self.hang_up(proc, old);
                }
            }
            Err(refuse) => {
                self.put(proc, conn, |conn| Input::Message(conn, Message::Refuse(refuse)));
                self.hang_up(proc, conn);
            }
        }
    }

    fn send(&mut self, proc: usize, message: Message) {
        if let Some(conn) = self.procs[proc].conn {
            self.put(proc, conn, |conn| Input::Message(conn, message));
        }
    }

    fn put(&mut self, proc: usize, number: usize, input: impl FnOnce(usize) -> Input) {
        let conn = &self.conns[number];
        let end = usize::from(conn.ends[0] == proc);
        let to = conn.ends[end];
        if !conn.open {
            return;
        }
        let (a, b) = (self.place(proc), self.place(to));
        let at = self.net.segment(&mut self.rng, a, b, self.now, self.conns[number].last[end]);
        self.conns[number].last[end] = at;
        self.at(at, What::To(to, input(number)));
    }

    /// Closes one end; what was sent before still arrives.
    fn hang_up(&mut self, proc: usize, conn: usize) {
        self.put(proc, conn, Input::Closed);
        self.conns[conn].open = false;
    }

    /// Breaks all streams: what is under way is gone.
    pub(crate) fn break_streams(&mut self) {
        let under_way = |what: &What| matches!(what, What::To(_, Input::Message(..)));
        self.queue.retain(|_, what| !under_way(what));
        for number in 0..self.conns.len() {
            if std::mem::replace(&mut self.conns[number].open, false) {
                for end in self.conns[number].ends {
                    let delay = self.rng.below(50 * MS);
                    self.tell(delay, end, Input::Closed(number));
                }
            }
        }
    }

    fn send_heartbeat(&mut self, proc: usize, heartbeat: Heartbeat) {
        let Some(peer) = self.procs[proc].peer else { return };
        let (a, b) = (self.place(proc), self.place(peer));
        for at in self.net.datagram(&mut self.rng, a, b, self.now) {
            self.at(at, What::To(peer, Input::Heartbeat(heartbeat.clone())));
        }
    }

    // The arbiter and the disk.

    fn ask(&mut self, proc: usize, request: Request) {
        let (a, b) = (self.place(proc), Place::Storage);
        for at in self.net.datagram(&mut self.rng, a, b, self.now) {
            self.at(at, What::ArbiterHears(proc, request.clone()));
        }
    }

    fn arbiter_hears(&mut self, proc: usize, request: &Request) {
        if self.arbiter_down > self.now {
            return;
        }
        let answer = self.record.handle(request);
        self.note(|| format!("arbiter to {proc}: {:?} -> {:?}", answer.op, answer.outcome));
        self.checks.answer(self.now, &answer);
        if self.answers_lost > self.now {
            return;
        }
        let (a, b) = (Place::Storage, self.place(proc));
        for at in self.net.datagram(&mut self.rng, a, b, self.now) {
            self.at(at, What::To(proc, Input::Answer(answer.clone())));
        }
    }

    fn disk_arrival(&mut self, proc: usize) -> u64 {
        let (place, last) = (self.place(proc), self.procs[proc].disk_last);
        let at = self.net.segment(&mut self.rng, place, Place::Storage, self.now, last);
        self.procs[proc].disk_last = at;
        at
    }

    fn connect_disks(&mut self, proc: usize, stamp: Stamp) {
        let this = &mut self.procs[proc];
        this.disk_epoch += 1;
        this.disk_stamp = stamp;
        this.submitted.clear();
        let epoch = this.disk_epoch;
        let at = self.disk_arrival(proc);
        self.at(at, What::DiskConnects(proc, epoch, stamp));
    }

    fn disk_connects(&mut self, proc: usize, epoch: u64, stamp: Stamp) {
        if stamp < self.storage.fence {
            return self.note(|| format!("disk refuses process {proc}"));
        }
        self.storage.fence = stamp;
        let (a, b) = (Place::Storage, self.place(proc));
        let at = self.net.segment(&mut self.rng, a, b, self.now, self.now);
        self.at(at, What::To(proc, Input::DiskReady(epoch, stamp)));
    }

    fn submit(&mut self, proc: usize, request: DiskRequest) {
        let this = &mut self.procs[proc];
        if this.submitted.insert(request.id) {
            let (epoch, stamp) = (this.disk_epoch, this.disk_stamp);
            let at = self.disk_arrival(proc);
            self.at(at, What::DiskHears(proc, epoch, stamp, request));
        }
    }

    fn reissue(&mut self, proc: usize) {
        let Some(machine) = &self.procs[proc].machine else { return };
        let requests: Vec<DiskRequest> = machine.in_flight().copied().collect();
        for request in requests {
            self.submit(proc, request);
        }
    }

    fn disk_does(&mut self, proc: usize, epoch: u64, stamp: Stamp, request: DiskRequest) {
        if stamp < self.storage.fence {
            return self.note(|| format!("disk drops a request of process {proc}"));
        }
        let block = &mut self.storage.blocks[request.block];
        *block = request.write.unwrap_or(*block);
        let done = Event::DiskDone { id: request.id, data: *block };
        let (a, b) = (Place::Storage, self.place(proc));
        let at = self.net.segment(&mut self.rng, a, b, self.now, self.now);
        self.at(at, What::To(proc, Input::DiskDone(epoch, done)));
    }

    // The machine.

    /// Whether this process runs the VM: it is not a follower, nor done with it.
    fn runs(&self, proc: usize) -> bool {
        let this = &self.procs[proc];
        let role = this.node.role();
        this.vcpu && matches!(role, Role::Solo | Role::Primary | Role::GoingLive)
    }

    fn vcpu_runs(&self, proc: usize) -> bool {
        let this = &self.procs[proc];
        self.runs(proc) && this.pace != Pace::Stopped && this.stalled <= self.now
    }

    fn set_pace(&mut self, proc: usize, pace: Pace) {
        let this = &mut self.procs[proc];
        this.pace = pace;
        if !std::mem::replace(&mut this.vcpu, true) {
            self.tell(VCPU_SLICE, proc, Input::Vcpu);
        }
        self.drain_inputs(proc);
    }

    fn vcpu(&mut self, proc: usize) {
        if !self.runs(proc) {
            return;
        }
        self.tell(VCPU_SLICE, proc, Input::Vcpu);
        if !self.vcpu_runs(proc) {
            return;
        }
        self.drain_inputs(proc);
        let Pace::Run(speed) = self.procs[proc].pace else { return };
        let steps = SLICE_STEPS * u64::from(speed.0) / 1000;
        self.append(proc, Event::Anchor(steps), EntryKind::Event);
        self.procs[proc].slices += 1;
        if self.procs[proc].slices.is_multiple_of(DIGEST_EVERY) {
            let Some(machine) = &self.procs[proc].machine else { return };
            let digest = Event::State(machine.digest());
            self.append(proc, digest, EntryKind::Event);
        }
        self.report_progress(proc);
    }

    fn input(&mut self, proc: usize, event: Event) {
        let running = self.vcpu_runs(proc);
        if self.runs(proc) && (running || self.procs[proc].inputs.len() < INPUTS_MAX) {
            self.procs[proc].inputs.push_back(event);
            self.drain_inputs(proc);
        }
    }

    fn drain_inputs(&mut self, proc: usize) {
        while self.vcpu_runs(proc) {
            let Some(event) = self.procs[proc].inputs.pop_front() else { return };
            self.append(proc, event, EntryKind::Event);
        }
    }

    /// The machine takes an event here and now: it is logged, executed, and its outputs are marked.
    fn append(&mut self, proc: usize, event: Event, kind: EntryKind) {
        let mut next = Some((event, kind));
        while let Some((event, kind)) = next {
            let now = self.local(proc);
            let this = &mut self.procs[proc];
            let Some(machine) = &mut this.machine else { return };
            let pos = this.node.handle_append(now, Entry { kind, bytes: base::save_bytes(&event) });
            let effect = machine.execute(event);
            if let Effect::Output(output) = effect {
                this.node.handle_output(now, pos, output_kind(&output), (pos, output));
            }
            let agree = machine.pos == pos && effect != Effect::Diverged;
            next = machine.next_mark().map(|mark| (mark, EntryKind::Event));
            self.checks
                .that(agree, self.now, || format!("process {proc} differs from its own log"));
        }
    }

    fn report_progress(&mut self, proc: usize) {
        let now = self.local(proc);
        let runs = self.runs(proc);
        let this = &mut self.procs[proc];
        let Some(machine) = &this.machine else { return };
        let progress = Progress { icount: machine.icount, pos: machine.pos };
        let paused = runs && this.pace == Pace::Stopped;
        let run = if paused { RunState::Paused } else { RunState::Running };
        this.node.handle_progress(now, run, progress);
    }

    fn take_snapshot(&mut self, proc: usize, generation: Generation) {
        let now = self.local(proc);
        let this = &mut self.procs[proc];
        let Some(machine) = &this.machine else { return };
        this.state = base::save_bytes(machine);
        let (icount, digest) = (machine.icount, machine.digest());
        let state_len = this.state.len() as u64;
        this.node.handle_snapshot(now, Snapshot { generation, icount, digest, state_len });
    }

    fn load(&mut self, proc: usize, generation: Generation) {
        let now = self.local(proc);
        let this = &mut self.procs[proc];
        match base::restore_bytes::<Machine>(&this.state) {
            Ok((machine, _)) => {
                let digest = machine.digest();
                this.machine = Some(machine);
                this.node.handle_loaded(now, generation, digest);
            }
            Err(error) => self.checks.violation(self.now, format!("the start state: {error}")),
        }
    }

    fn replay(&mut self, proc: usize, entries: &[Entry]) {
        for entry in entries {
            match base::restore_bytes::<Event>(&entry.bytes) {
                Ok((event, _)) => self.procs[proc].replay.push_back(event),
                Err(error) => self.checks.violation(self.now, format!("an entry: {error}")),
            }
        }
        self.exec_later(proc);
    }

    fn exec_later(&mut self, proc: usize) {
        let now = self.now;
        let this = &mut self.procs[proc];
        let Some(event) = this.replay.front().filter(|_| !this.executing) else { return };
        let slow = if now < this.slow_until { this.slow } else { 1000 };
        // A replay is at most about twice as fast as the run that it repeats.
        let cost = match event {
            Event::Anchor(steps) => (steps * VCPU_SLICE / SLICE_STEPS / 2).min(VCPU_SLICE),
            _ => MS / 50,
        };
        this.executing = true;
        let delay = (cost * slow / 1000).max(this.stalled.saturating_sub(now));
        self.tell(delay, proc, Input::Exec);
    }

    fn exec(&mut self, proc: usize) {
        let now = self.local(proc);
        let this = &mut self.procs[proc];
        this.executing = false;
        let (Some(machine), true) = (&mut this.machine, this.halted.is_none()) else { return };
        let Some(event) = this.replay.pop_front() else { return };
        let before = Progress { icount: machine.icount, pos: machine.pos };
        let effect = machine.execute(event);
        let after = Progress { icount: machine.icount, pos: machine.pos };
        match effect {
            Effect::Nothing => {}
            Effect::Output(output) => {
                let kind = output_kind(&output);
                this.node.handle_output(now, after.pos, kind, (after.pos, output));
            }
            Effect::Diverged => {
                this.node.handle_diverged(now, Window { equal: before, differs: after });
            }
        }
        this.node.handle_progress(now, RunState::Running, after);
        self.exec_later(proc);
    }

    // The clients and their network.

    fn emit(&mut self, proc: usize, pos: LogPos, output: Output) {
        self.checks_output_rule(proc, pos);
        match output {
            Output::Disk(request) => self.submit(proc, request),
            Output::Reply(reply) => {
                let delay = self.rng.below(self.emit_delay_max + 1);
                self.after(delay, What::Wire(proc, reply));
            }
        }
    }

    fn checks_output_rule(&mut self, proc: usize, pos: LogPos) {
        let this = &self.procs[proc];
        if this.node.role() != Role::Primary {
            return;
        }
        let backup = this.node.status().peer.and_then(|peer| self.find(peer));
        let held = backup.is_some_and(|backup| backup.node.status().log_end >= pos);
        self.checks.that(held, self.now, || {
            format!("process {proc} let an output at {pos} out that its backup does not have")
        });
    }

    fn wire(&mut self, proc: usize, reply: Reply) {
        self.port = Some(proc);
        self.checks.frame(self.now, proc);
        let delay = self.rng.below(MS);
        self.after(delay, What::ClientHears(reply));
    }

    fn client_hears(&mut self, reply: Reply) {
        let client = &mut self.clients[usize::from(reply.client)];
        if let Some(known) = client.replies.get(&reply.seq) {
            let same = *known == reply;
            let text = || format!("a client heard {reply:?} after it had heard another");
            return self.checks.that(same, self.now, text);
        }
        let expected = reply.seq == client.seq;
        client.replies.insert(reply.seq, reply);
        client.seq = client.seq.max(reply.seq) + 1;
        let next = client.seq;
        self.checks
            .that(expected, self.now, || format!("{reply:?} answers nothing that was asked"));
        let think = 5 * MS + self.rng.below(40 * MS);
        self.after(think, What::ClientTimer(usize::from(reply.client), next));
    }

    /// A client sends its request, and will again until it is answered.
    fn client_timer(&mut self, client: usize, seq: u32) {
        if self.clients[client].seq != seq || self.clients_stop {
            return;
        }
        let again = 200 * MS + self.rng.below(200 * MS);
        self.after(again, What::ClientTimer(client, seq));
        if let Some(proc) = self.port {
            let event = Event::Request { client: client as u8, seq };
            let delay = self.rng.below(MS);
            self.tell(delay, proc, Input::Request(event));
        }
    }

    pub(crate) fn local(&self, proc: usize) -> Nanos {
        let this = &self.procs[proc];
        local_time(self.now, this.clock_offset, this.clock_ppm)
    }

    pub(crate) fn end(&mut self, proc: usize, reason: EndReason) {
        let now = self.local(proc);
        // Refused on a side that does not run the VM; then nothing happens.
        let _ = self.procs[proc].node.handle_end(now, reason);
        self.drive(proc);
    }
}

impl Proc {
    /// A backup that nobody has asked yet.
    fn is_idle(&self, now: u64) -> bool {
        let status = self.node.status();
        self.stopped <= now && status.role == Role::Backup && status.peer.is_none()
    }
}

fn vm() -> VmId {
    VmId("vm".into())
}

fn output_kind(output: &Output) -> OutputKind {
    match output {
        Output::Reply(_) => OutputKind::Message,
        Output::Disk(_) => OutputKind::DiskRequest,
    }
}

fn local_time(now: u64, offset: u64, ppm: u64) -> Nanos {
    Nanos(offset + (u128::from(now) * u128::from(ppm) / 1_000_000) as u64)
}

fn global_time(local: u64, offset: u64, ppm: u64) -> u64 {
    (u128::from(local.saturating_sub(offset)) * 1_000_000 / u128::from(ppm)) as u64
}
