//! The protocol's thread: feeds [`ft::Node`] with what happens and does what it says.
//!
//! It owns the logging channel and the heartbeats' socket, so that an acknowledgement releases its
//! outputs with no other thread in between, and so that a backup acknowledges what it receives however
//! busy its machine is. It never waits for anything but news: what blocks (connecting, opening disks,
//! asking the arbiter, the machine itself) has threads of its own, and they post an [`Event`].

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base::{Claimant, Generation, Nanos, VmId};
use disk::arbiter::client::{ArbiterClient, ArbiterEvent, ArbiterThread};
use ft::arbiter::{Answer, Record, Request as Question};
use ft::{
    Action, EndReason, Failure, Halted, Message, Node, OutputKind, Pace, PairOptions, Report, Role,
    Snapshot, Stamp, StartPoint,
};
use host::{Waited, Wake, wait_any};
use machine::Off;
use machine::event::{Control as Switch, Output};
use replay::EngineDifference;
use serde_json::json;

use crate::config::{DiskSpec, Site};
use crate::conn::{Conn, ConnError};
use crate::console::{ConsoleEnd, ConsoleHub};
use crate::control::{PowerAction, Reply, Request, StatusReport};
use crate::disks::{Destination, DiskNews, OpenDisks, open_in_background};
use crate::engine::{console_index, decode_entry, describe};
use crate::mailbox::{Command, Item, Mailbox, Outbox, Produced, Totals};
use crate::nets::Nets;
use crate::opening::{Opening, Overrides};
use crate::timeline::Timeline;
use crate::wire;

/// After a pairing failed the next is tried after this long.
const PAIR_AGAIN: Nanos = Nanos(2_000_000_000);
/// A backup that is just being started is called again for this long.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two such calls.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);
/// Start state is read from memory this much ahead of the socket.
const SNAPSHOT_AHEAD_LEN: usize = 4 << 20;
/// Announcements are repeated, since nobody acknowledges them.
const ANNOUNCE_AFTER: [Nanos; 4] =
    [Nanos(0), Nanos(100_000_000), Nanos(400_000_000), Nanos(1_500_000_000)];
/// One look at the arbiter takes no longer.
const ARBITER_TIMEOUT: Duration = Duration::from_secs(1);
/// Memory that is kept for the next message.
const FRAME_ROOM_LEN: usize = 1 << 20;
/// Clients of a console that ends are told so within this time, or are not waited for.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// News from another thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// The backup was called.
    Called(Result<Conn, ConnError>),
    /// A primary calls, and this is the first thing it said.
    Incoming { conn: Conn, decoder: wire::Decoder, first: Message },
    /// The arbiter answered.
    Answer(Answer),
    /// The disks have news.
    Disks(DiskNews),
    /// A control client asks.
    Ask(Request, mpsc::Sender<Reply>),
    /// The process is to end.
    EndSignal,
    /// The machine's thread panicked.
    MachineBroke,
}

/// The queue of news.
#[derive(Debug)]
pub(crate) struct Post {
    events: Mutex<VecDeque<Event>>,
    wake: Arc<Wake>,
}

impl Post {
    pub(crate) fn new(wake: Arc<Wake>) -> Arc<Post> {
        Arc::new(Post { events: Mutex::default(), wake })
    }

    pub(crate) fn put(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.wake.ring();
    }

    pub(crate) fn take(&self) -> Option<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The machine of this process and what it is connected to.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) nets: Nets,
    pub(crate) disk_specs: Vec<DiskSpec>,
    pub(crate) disks: Option<OpenDisks>,
    pub(crate) in_flight: Vec<InFlight>,
}

/// A disk request without a completion in the log.
#[derive(Debug)]
pub(crate) struct InFlight {
    output: Arc<Output>,
    /// This process has handed it to its disk.
    submitted: bool,
}

impl InFlight {
    pub(crate) fn new(output: Output) -> InFlight {
        InFlight { output: Arc::new(output), submitted: false }
    }

    fn is(&self, disk: u8, request: u64) -> bool {
        matches!(&*self.output, Output::DiskRequest { disk: d, request: r, .. } if *d == disk && *r == request)
    }
}

/// Who decides about the VM's ownership.
pub(crate) enum Arbiter {
    /// Nobody else: the VM is not protected, so the record is ours.
    Own(Record),
    /// A server.
    Server(ArbiterThread),
}

impl Arbiter {
    /// The server at `address`, which is also told where this process (VM and claimant) can be found.
    pub(crate) fn server(
        address: &str,
        own: (VmId, Claimant),
        site: &Site,
        post: &Arc<Post>,
    ) -> io::Result<Arbiter> {
        if let Some(advertise) = site.address() {
            let mut client = ArbiterClient::new(address, ARBITER_TIMEOUT);
            let (vm, claimant) = own;
            thread::Builder::new().name("announce".to_owned()).spawn(move || {
                // Only people look for it; a process that cannot be found there works all the same.
                let _ = client.announce(&vm, claimant, &advertise);
            })?;
        }
        let post = post.clone();
        let sink = Box::new(move |event| match event {
            ArbiterEvent::Answer(answer) => post.put(Event::Answer(answer)),
            ArbiterEvent::Unreachable(error) => log::debug!("{}", describe(&error)),
        });
        let client = ArbiterClient::new(address, ARBITER_TIMEOUT);
        Ok(Arbiter::Server(ArbiterThread::start(client, sink)?))
    }
}

/// How a VM's life in this process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest ended it.
    Guest(Off),
    /// The operator ended it, by a signal or a command.
    Stopped,
    /// The protocol did.
    Halted(Halted),
    /// Two engines, compared while they ran the guest, made different things of it.
    Different(Box<EngineDifference>),
    /// The recording could not go on.
    RecordingFailed(String),
    /// The disk server knows a newer owner.
    Deposed(String),
    /// The machine's thread broke.
    Broken,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Guest(Off::PoweredOff) => f.write_str("the guest powered off"),
            Ended::Guest(Off::Reset) => f.write_str("the guest reset itself"),
            Ended::Guest(Off::DebugExit(value)) => {
                write!(f, "the guest left through the debug-exit port with {value}")
            }
            Ended::Stopped => f.write_str("the operator stopped the VM"),
            Ended::Halted(why) => write!(f, "{why}"),
            Ended::Different(found) => write!(f, "{found}"),
            Ended::RecordingFailed(why) => write!(f, "the recording failed: {why}"),
            Ended::Deposed(why) => write!(f, "this side was replaced: {why}"),
            Ended::Broken => f.write_str("the machine's thread broke"),
        }
    }
}

struct Channel {
    conn: Conn,
    decoder: wire::Decoder,
    /// Bytes may have come: the socket says so, or they came with the end of the handshake.
    readable: bool,
}

impl Channel {
    fn new(conn: Conn, decoder: wire::Decoder) -> Channel {
        Channel { conn, decoder, readable: true }
    }
}

/// A start state on its way to the backup.
struct Sending {
    state: Vec<u8>,
    offset: usize,
}

/// What a shell is made of.
pub(crate) struct Parts {
    pub(crate) site: Site,
    pub(crate) vm: VmId,
    pub(crate) claimant: Claimant,
    pub(crate) node: Node<Produced>,
    pub(crate) post: Arc<Post>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) body: Body,
    pub(crate) hubs: [Arc<ConsoleHub>; 2],
    pub(crate) arbiter: Arbiter,
    pub(crate) timeline: Timeline,
    /// Candidates for the backup.
    pub(crate) backups: Vec<String>,
    /// On a side that may get a backup: what the start state says beside the machine.
    pub(crate) opening: Option<Opening>,
    /// For the heartbeats: bound on a backup, made when needed on a primary.
    pub(crate) udp: Option<UdpSocket>,
    /// Replacements for what a primary's opening names.
    pub(crate) overrides: Overrides,
    pub(crate) warnings: Vec<String>,
    /// Set while this process runs the VM.
    pub(crate) owner: Arc<AtomicBool>,
}

/// The protocol's thread.
pub(crate) struct Shell {
    parts: Parts,
    channel: Option<Channel>,
    heartbeat_to: Option<SocketAddr>,
    /// The heartbeats' socket has something to read.
    heartbeats_came: bool,
    /// Keys of the last two connections, newest last.
    heartbeat_keys: VecDeque<[u8; 32]>,
    next_backup: usize,
    pair_at: Option<Nanos>,
    calling: bool,
    /// The machine's saved state, between its snapshot and its sending.
    saved: Option<Vec<u8>>,
    sending: Option<Sending>,
    loading: Option<Generation>,
    incoming_state: Vec<u8>,
    /// The stamp that the disks are being given, and which of them have it.
    restamping: Option<(Stamp, Vec<bool>)>,
    announce_at: VecDeque<Nanos>,
    pace: Option<Pace>,
    /// The machine follows a log.
    follows: bool,
    /// When this side went live, until its first output.
    awaits_first_output: bool,
    log_bytes: u64,
    /// Room for the next message.
    frame: Vec<u8>,
    icount: u64,
    ended: Option<Ended>,
    guest_end: Option<Off>,
    stopping: bool,
}

/// How the life of a VM in this process came to its end.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: Ended,
    pub(crate) totals: Option<Totals>,
    /// The process ran the VM, and did not only follow.
    pub(crate) lived: bool,
}

impl Shell {
    /// A side that runs the VM (its machine waits for its first pace), or one that follows.
    pub(crate) fn new(parts: Parts, follows: bool) -> Shell {
        Shell {
            parts,
            channel: None,
            heartbeat_to: None,
            heartbeats_came: false,
            heartbeat_keys: VecDeque::new(),
            next_backup: 0,
            pair_at: None,
            calling: false,
            saved: None,
            sending: None,
            loading: None,
            incoming_state: Vec::new(),
            restamping: None,
            announce_at: VecDeque::new(),
            pace: None,
            follows,
            awaits_first_output: false,
            log_bytes: 0,
            frame: Vec::new(),
            icount: 0,
            ended: None,
            guest_end: None,
            stopping: false,
        }
    }

    /// For the timeline.
    pub(crate) fn note_power_on(&mut self, generation: Generation) {
        self.parts.timeline.push("powered_on", json!({ "generation": generation }));
    }

    /// Asks for a backup before the guest runs.
    pub(crate) fn pair_at_power_on(&mut self) {
        let options = PairOptions { hold_guest: true };
        if let Err(error) = self.parts.node.handle_pair(now(), options) {
            log::error!("cannot protect the VM: {error}");
        }
    }

    /// Runs until the VM's life in this process is over.
    pub(crate) fn run(mut self) -> Outcome {
        loop {
            self.poll_actions();
            if let Some(ended) = self.ended.take() {
                return self.finish(ended);
            }
            self.wait();
            while let Some(event) = self.parts.post.take() {
                self.handle_event(event);
            }
            self.handle_machine();
            self.read_channel();
            self.read_heartbeats();
            self.parts.node.handle_tick(now());
            self.do_what_is_due();
            self.parts.owner.store(self.is_owner(), Ordering::Relaxed);
        }
    }

    fn wait(&mut self) {
        let time = now();
        let due = [self.parts.node.poll_timeout(), self.pair_at, self.announce_at.front().copied()];
        let due = due.into_iter().flatten().min();
        let timeout = due.map(|due| Duration::from_nanos(due.0.saturating_sub(time.0)));
        let mut waited = Vec::new();
        if let Some(channel) = &self.channel {
            let more = self.sending.is_some();
            let writable = channel.conn.wants_write() || more;
            waited.push(Waited { fd: channel.conn.as_fd(), writable, ready: None });
        }
        if let Some(udp) = &self.parts.udp {
            waited.push(Waited { fd: udp.as_fd(), writable: false, ready: None });
        }
        // Bytes that came with the handshake are there already.
        let here = self.channel.as_ref().is_some_and(|channel| channel.readable);
        let timeout = if here { Some(Duration::ZERO) } else { timeout };
        if let Err(error) = wait_any(&mut waited, &self.parts.wake, timeout) {
            log::error!("cannot wait for news: {error}");
            thread::sleep(Duration::from_millis(10));
        }
        let is_readable = |waited: Waited<'_>| waited.ready.is_some_and(|ready| ready.readable);
        let mut readable: VecDeque<bool> = waited.into_iter().map(is_readable).collect();
        if let Some(channel) = &mut self.channel {
            channel.readable |= readable.pop_front().unwrap_or(false);
        }
        self.heartbeats_came = readable.pop_front().unwrap_or(false);
    }

    fn do_what_is_due(&mut self) {
        let time = now();
        if self.announce_at.pop_front_if(|due| *due <= time).is_some() {
            self.parts.body.nets.announce();
        }
        if self.pair_at.take_if(|due| *due <= time).is_some() {
            let paired = self.parts.node.handle_pair(time, PairOptions::default());
            if paired.is_err() {
                self.pair_at = Some(Nanos(time.0 + PAIR_AGAIN.0));
            }
        }
    }

    // ---- News from other threads.

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Called(Ok(conn)) => {
                self.calling = false;
                self.heartbeat_to = conn.peer();
                self.open_udp(conn.peer());
                self.use_channel(Channel::new(conn, wire::Decoder::default()));
                self.parts.node.handle_channel_opened(now());
            }
            Event::Called(Err(error)) => {
                self.calling = false;
                log::warn!("{}", describe(&error));
                self.parts.node.handle_channel_closed(now());
            }
            Event::Incoming { conn, decoder, first } => {
                self.handle_incoming(conn, decoder, first);
            }
            Event::Answer(answer) => self.parts.node.handle_answer(now(), &answer),
            Event::Disks(news) => self.handle_disk_news(news),
            Event::Ask(request, reply) => {
                let answer = self.answer(&request);
                let _ = reply.send(answer); // the client may have left
            }
            Event::EndSignal => self.stop(),
            Event::MachineBroke => self.end(Ended::Broken),
        }
    }

    /// A primary calls. False if it was refused.
    pub(crate) fn handle_incoming(
        &mut self,
        mut conn: Conn,
        decoder: wire::Decoder,
        first: Message,
    ) -> bool {
        if let Err(why) = self.parts.node.handle_incoming(now(), first) {
            let mut frame = Vec::new();
            wire::encode(&Message::Refuse(why), &mut frame);
            conn.write(&frame);
            let _ = conn.flush(); // a primary that does not hear it finds a closed channel
            return false;
        }
        self.use_channel(Channel::new(conn, decoder));
        true
    }

    fn use_channel(&mut self, channel: Channel) {
        if self.heartbeat_keys.len() == 2 {
            self.heartbeat_keys.pop_front();
        }
        self.heartbeat_keys.push_back(channel.conn.heartbeat_key());
        self.channel = Some(channel);
    }

    /// A primary's socket for heartbeats: any port, of the backup's address family.
    fn open_udp(&mut self, peer: Option<SocketAddr>) {
        if self.parts.udp.is_some() {
            return;
        }
        let any: SocketAddr = match peer {
            Some(SocketAddr::V6(_)) => ([0u16; 8], 0).into(),
            _ => ([0u8; 4], 0).into(),
        };
        let opened = UdpSocket::bind(any).and_then(|udp| udp.set_nonblocking(true).map(|()| udp));
        match opened {
            Ok(udp) => self.parts.udp = Some(udp),
            Err(error) => log::error!("cannot open a socket for heartbeats: {error}"),
        }
    }

    fn handle_disk_news(&mut self, news: DiskNews) {
        match news {
            DiskNews::Ready(stamp, disks) => {
                self.parts.body.disks = Some(disks);
                self.parts.node.handle_disks_ready(now(), stamp);
            }
            DiskNews::Attached { disk, stamp } => {
                let Some((wanted, done)) = &mut self.restamping else { return };
                if stamp.is_none_or(|stamp| stamp == *wanted) {
                    done[usize::from(disk)] = true;
                }
                self.check_restamped();
            }
            DiskNews::Deposed { disk, why } => {
                log::error!("disk {disk}: {why}");
                self.end(Ended::Deposed(why));
            }
        }
    }

    fn check_restamped(&mut self) {
        let all = self.restamping.take_if(|(_, done)| done.iter().all(|done| *done));
        if let Some((stamp, _)) = all {
            self.parts.node.handle_disks_ready(now(), stamp);
        }
    }

    // ---- The machine.

    fn handle_machine(&mut self) {
        let (items, progress, run) = self.parts.body.outbox.take();
        for item in items {
            self.handle_item(item);
        }
        self.icount = progress.icount.0;
        self.parts.node.handle_progress(now(), run, progress);
    }

    fn handle_item(&mut self, item: Item) {
        match item {
            Item::Entry { entry, len } => {
                self.log_bytes += len;
                self.parts.node.handle_append(now(), entry);
            }
            Item::Output(produced) => self.handle_output(produced),
            Item::DiskDone { disk, request } => {
                self.parts.body.in_flight.retain(|flight| !flight.is(disk, request));
            }
            Item::Snapshot { generation, icount, digest, state, stun } => {
                let Some(opening) = &self.parts.opening else { return };
                let state = opening.wrap(&state);
                let state_len = state.len() as u64;
                let detail = json!({ "stun_ns": stun, "state_len": state_len });
                self.parts.timeline.push("snapshot", detail);
                self.saved = Some(state);
                let snapshot = Snapshot { generation, icount, digest, state_len };
                self.parts.node.handle_snapshot(now(), snapshot);
            }
            Item::Loaded { digest, unfinished } => {
                self.parts.body.in_flight = unfinished.into_iter().map(InFlight::new).collect();
                if let Some(generation) = self.loading.take() {
                    self.parts.node.handle_loaded(now(), generation, digest);
                }
            }
            Item::LoadFailed(why) => self.leave(why),
            Item::Diverged { window, why } => {
                log::error!("{why}");
                self.parts.timeline.push("diverged", json!({ "why": why }));
                self.parts.node.handle_diverged(now(), window);
            }
            Item::Off(end) => {
                self.parts.timeline.push("guest_off", json!({ "how": format!("{end:?}") }));
                self.guest_end = Some(end);
                self.end_on_purpose();
            }
            Item::Different(found) => self.end(Ended::Different(found)),
            Item::RecordingFailed(why) => {
                log::error!("{why}; the guest is stopped, because its recording would have a gap");
                self.end(Ended::RecordingFailed(why));
            }
            Item::Finished(_) => self.end(Ended::Broken),
        }
    }

    fn handle_output(&mut self, produced: Produced) {
        let kind = match &*produced.output {
            Output::DiskRequest { .. } => {
                let flight = InFlight { output: produced.output.clone(), submitted: false };
                self.parts.body.in_flight.push(flight);
                OutputKind::DiskRequest
            }
            Output::ConsoleOutput { .. } => {
                if self.follows {
                    // What is in the log is acknowledged: clients may see it wherever they look.
                    show(&self.parts.hubs, &produced);
                }
                OutputKind::Message
            }
            _ => OutputKind::Message,
        };
        self.parts.node.handle_output(now(), produced.pos, kind, produced);
    }

    // ---- The other side.

    fn read_channel(&mut self) {
        let Some(channel) = self.channel.as_mut().filter(|channel| channel.readable) else {
            return;
        };
        channel.readable = false;
        let open = channel.conn.read(channel.decoder.buffer());
        loop {
            let Some(channel) = &mut self.channel else { return };
            match channel.decoder.poll_message() {
                Ok(Some(message)) => self.parts.node.handle_message(now(), message),
                Ok(None) => break,
                Err(error) => {
                    log::error!("the logging channel is closed: {error}");
                    return self.lose_channel();
                }
            }
        }
        match open {
            Ok(true) => {}
            Ok(false) => self.lose_channel(),
            Err(error) => {
                log::warn!("the logging channel broke: {error}");
                self.lose_channel();
            }
        }
    }

    fn lose_channel(&mut self) {
        self.channel = None;
        self.sending = None;
        self.parts.node.handle_channel_closed(now());
    }

    fn read_heartbeats(&mut self) {
        let Some(udp) = self.parts.udp.as_ref().filter(|_| self.heartbeats_came) else { return };
        let mut datagram = [0; wire::HEARTBEAT_LEN_MAX];
        // Nobody keeps this thread busy with datagrams.
        for _ in 0..64 {
            let Ok((len, from)) = udp.recv_from(&mut datagram) else { return };
            let mut opened =
                self.heartbeat_keys.iter().filter_map(|key| wire::open(&datagram[..len], key));
            if let Some(heartbeat) = opened.next() {
                if self.follows {
                    self.heartbeat_to = Some(from);
                }
                self.parts.node.handle_heartbeat(now(), &heartbeat);
            }
        }
    }

    /// Moves the start state on as far as the socket has room.
    fn send_snapshot(&mut self) {
        let (Some(sending), Some(channel)) = (&mut self.sending, &mut self.channel) else { return };
        while channel.conn.unsent_len() < SNAPSHOT_AHEAD_LEN {
            let rest = &sending.state[sending.offset..];
            if rest.is_empty() {
                self.sending = None;
                return;
            }
            let bytes = rest[..rest.len().min(ft::CHUNK_LEN_MAX)].to_vec();
            let offset = sending.offset as u64;
            sending.offset += bytes.len();
            let mut frame = Vec::new();
            wire::encode(&Message::Chunk { offset, bytes }, &mut frame);
            channel.conn.write(&frame);
        }
    }

    // ---- What the protocol wants done.

    fn poll_actions(&mut self) {
        while self.ended.is_none() {
            let Some(action) = self.parts.node.poll_action(now()) else { break };
            self.perform(action);
        }
        self.send_snapshot();
        if let Some(channel) = &mut self.channel
            && let Err(error) = channel.conn.flush()
        {
            log::warn!("the logging channel broke: {error}");
            self.lose_channel();
        }
    }

    fn perform(&mut self, action: Action<Produced>) {
        match action {
            Action::Send(message) => self.send(&message),
            Action::SendHeartbeat(heartbeat) => self.send_heartbeat(&heartbeat),
            Action::OpenChannel => self.call_backup(),
            Action::CloseChannel => {
                if let Some(mut channel) = self.channel.take() {
                    let _ = channel.conn.flush(); // words of parting; nobody relies on them
                }
                self.sending = None;
            }
            Action::TakeSnapshot { generation } => {
                self.parts.body.mailbox.command(Command::TakeSnapshot(generation));
            }
            Action::SendSnapshot { .. } => {
                self.sending = self.saved.take().map(|state| Sending { state, offset: 0 });
            }
            Action::StoreChunk(bytes) => self.incoming_state.extend(bytes),
            Action::LoadSnapshot(start) => self.load(start),
            Action::Append(control) => self.parts.body.mailbox.command(Command::Append(control)),
            Action::Replay { entries, .. } => self.replay(&entries),
            Action::Ask(question) => self.ask(question),
            Action::ReconnectDisks(stamp) => self.reconnect_disks(stamp),
            Action::ReissueDisk => self.reissue_disk(),
            Action::Emit { output, .. } => self.emit(&output),
            Action::AnchorClock { advance, behind } => {
                self.follows = false;
                let advance = Nanos(advance.0.saturating_add(behind.0));
                self.parts.body.mailbox.command(Command::GoLive { advance });
            }
            Action::Announce => {
                self.parts.body.nets.go_live();
                self.parts.body.mailbox.switch(Switch::Announce);
                self.announce_at = ANNOUNCE_AFTER.map(|after| Nanos(now().0 + after.0)).into();
            }
            Action::SetPace(pace) => {
                self.pace = Some(pace);
                self.parts.body.mailbox.command(Command::SetPace(pace));
            }
            Action::NeedBackup => {
                if !self.parts.backups.is_empty() {
                    self.pair_at = Some(Nanos(now().0 + PAIR_AGAIN.0));
                }
            }
            Action::Report(report) => self.note(&report),
            Action::Halt(why) => self.halt(why),
        }
    }

    fn send(&mut self, message: &Message) {
        if let Some(channel) = &mut self.channel {
            wire::encode(message, &mut self.frame);
            channel.conn.write(&self.frame);
            self.frame.clear();
            self.frame.shrink_to(FRAME_ROOM_LEN);
            // At once: what leads to an output's release must not wait for this loop's end.
            if channel.conn.flush().is_err() {
                self.lose_channel();
            }
        }
    }

    fn send_heartbeat(&mut self, heartbeat: &ft::Heartbeat) {
        let sockets = (&self.parts.udp, self.heartbeat_to, self.heartbeat_keys.back());
        if let (Some(udp), Some(to), Some(key)) = sockets {
            let _ = udp.send_to(&wire::seal(heartbeat, key), to); // a lost one is followed by the next
        }
    }

    fn call_backup(&mut self) {
        if self.calling || self.parts.backups.is_empty() {
            return;
        }
        self.calling = true;
        // A broken channel leads back to the same backup, a new pairing to the next candidate.
        if self.parts.node.role() != Role::Primary {
            self.next_backup += 1;
        }
        let index = self.next_backup.saturating_sub(1) % self.parts.backups.len();
        let addr = self.parts.backups[index].clone();
        let (security, post) = (self.parts.site.security.clone(), self.parts.post.clone());
        let calling = move || {
            let give_up = Instant::now() + CONNECT_PATIENCE;
            let conn = loop {
                match Conn::connect(&addr, &security) {
                    Err(ConnError::Connect { .. }) if Instant::now() < give_up => {
                        thread::sleep(CONNECT_AGAIN);
                    }
                    result => break result,
                }
            };
            post.put(Event::Called(conn));
        };
        let spawned = thread::Builder::new().name("call-backup".to_owned()).spawn(calling);
        spawned.expect("the host has room for one more thread");
    }

    fn replay(&mut self, entries: &[ft::Entry]) {
        let decoded: Option<Vec<_>> =
            entries.iter().map(|entry| decode_entry(&entry.bytes)).collect();
        self.log_bytes += entries.iter().map(|entry| entry.bytes.len() as u64).sum::<u64>();
        match decoded {
            Some(entries) => self.parts.body.mailbox.command(Command::Replay(entries)),
            None => self.leave("the primary sent an entry that cannot be decoded".to_owned()),
        }
    }

    fn ask(&mut self, question: Question) {
        match &mut self.parts.arbiter {
            Arbiter::Own(record) => {
                let answer = record.handle(&question);
                self.parts.post.put(Event::Answer(answer));
            }
            Arbiter::Server(thread) => thread.ask(question),
        }
    }

    fn reconnect_disks(&mut self, stamp: Stamp) {
        let body = &self.parts.body;
        match &body.disks {
            Some(disks) => {
                disks.restamp(stamp);
                self.restamping = Some((stamp, vec![false; disks.len()]));
                self.check_restamped();
            }
            None => {
                let to = destination(&body.mailbox, &self.parts.post);
                open_in_background(body.disk_specs.clone(), self.parts.vm.clone(), stamp, to);
            }
        }
    }

    fn reissue_disk(&mut self) {
        let body = &mut self.parts.body;
        let Some(disks) = &body.disks else { return };
        // What this process submitted before, its disks issue again by themselves.
        for flight in body.in_flight.iter_mut().filter(|flight| !flight.submitted) {
            flight.submitted = true;
            submit(disks, &flight.output);
        }
    }

    fn emit(&mut self, produced: &Produced) {
        if std::mem::take(&mut self.awaits_first_output) {
            let kind = produced.output.kind();
            self.parts.timeline.push("first_output", json!({ "kind": kind }));
        }
        let body = &mut self.parts.body;
        match &*produced.output {
            Output::FramesSent { nic, frames } => body.nets.send(*nic, frames),
            Output::ConsoleOutput { .. } => show(&self.parts.hubs, produced),
            Output::DiskRequest { disk, request, .. } => {
                let found = body.in_flight.iter_mut().find(|flight| flight.is(*disk, *request));
                let (Some(flight), Some(disks)) = (found, &body.disks) else { return };
                flight.submitted = true;
                submit(disks, &flight.output);
            }
            Output::EntropyWanted { .. } => {}
        }
    }

    // ---- A backup's start.

    fn load(&mut self, start: StartPoint) {
        let bytes = std::mem::take(&mut self.incoming_state);
        if let Err(why) = self.open(&bytes, start) {
            self.leave(why);
        }
    }

    fn open(&mut self, bytes: &[u8], start: StartPoint) -> Result<(), String> {
        let (opening, machine) = Opening::unwrap(bytes).map_err(|error| describe(&error))?;
        let opening = opening.with(&self.parts.overrides)?;
        let body = &mut self.parts.body;
        crate::disks::probe(&opening.disks, &self.parts.vm).map_err(|error| describe(&error))?;
        let links: Vec<_> = opening.nets.iter().map(|net| (net.link.clone(), net.mac)).collect();
        body.nets = Nets::open(&links, &body.mailbox).map_err(|error| describe(&error))?;
        body.disk_specs.clone_from(&opening.disks);
        if let Some(address) = &opening.arbiter {
            let own = (self.parts.vm.clone(), self.parts.claimant);
            self.parts.arbiter = Arbiter::server(address, own, &self.parts.site, &self.parts.post)
                .map_err(|error| format!("cannot start a thread for the arbiter: {error}"))?;
        }
        let command = Command::Load { state: machine.to_vec(), pos: start.pos };
        body.mailbox.command(command);
        self.loading = Some(start.generation);
        self.parts.opening = Some(opening);
        self.note_peers();
        Ok(())
    }

    /// This backup cannot be one.
    fn leave(&mut self, why: String) {
        log::error!("this backup leaves the pair: {why}");
        self.parts.timeline.push("left", json!({ "why": why }));
        self.parts.node.handle_leave(now());
    }

    // ---- The end.

    /// The primary that this side was made for is not served.
    pub(crate) fn refuse(&mut self) {
        self.end(Ended::Halted(Halted::Dropped));
    }

    /// A signal. The first one ends the VM in good order, the second one at once.
    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopping, true) {
            return self.end(Ended::Stopped);
        }
        match self.parts.node.role() {
            Role::Backup => self.parts.node.handle_leave(now()),
            _ => self.end_on_purpose(),
        }
    }

    /// The VM is over: no other side may go on with it.
    fn end_on_purpose(&mut self) {
        let ending = self.parts.node.handle_end(now(), EndReason::PowerOff);
        if let Err(error) = ending {
            log::warn!("cannot end the VM: {error}");
        }
    }

    fn halt(&mut self, why: Halted) {
        self.parts.timeline.push("halted", json!({ "why": why.to_string() }));
        let ended = match (why, self.guest_end) {
            (Halted::PoweredOff, Some(end)) => Ended::Guest(end),
            (Halted::PoweredOff | Halted::Left, None) if self.stopping => Ended::Stopped,
            (why, _) => Ended::Halted(why),
        };
        self.end(ended);
    }

    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
    }

    /// Has the machine's thread write its last and end.
    fn finish(self, ended: Ended) -> Outcome {
        let lived = !self.follows;
        let Parts { body, hubs, post, arbiter, .. } = self.parts;
        let is_protected = matches!(arbiter, Arbiter::Server(_));
        let Body { mailbox, outbox, thread, nets, disks, .. } = body;
        mailbox.command(Command::Finish);
        let mut totals = None;
        let mut ended = ended;
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            ended = Ended::Broken;
        }
        for item in outbox.take().0 {
            match item {
                Item::Finished(found) => totals = Some(*found),
                Item::RecordingFailed(why) => ended = Ended::RecordingFailed(why),
                // Nobody else has to know of it first.
                Item::Output(produced) if !is_protected => show(&hubs, &produced),
                _ => {}
            }
        }
        drop((nets, disks));
        // Nobody waits for an answer that does not come.
        while let Some(event) = post.take() {
            if let Event::Ask(_, reply) = event {
                let message = "the VM has just ended".to_owned();
                let _ = reply.send(Reply::Error { message }); // the client may have left
            }
        }
        let is_off = matches!(
            ended,
            Ended::Guest(_) | Ended::Stopped | Ended::Halted(Halted::PoweredOff | Halted::Ended(_))
        );
        let why = if is_off { ConsoleEnd::Off } else { ConsoleEnd::Moved };
        hubs.iter().for_each(|hub| hub.close(why));
        hubs.iter().for_each(|hub| hub.wait_for_watchers(FAREWELL_MAX));
        Outcome { ended, totals, lived }
    }

    // ---- For people.

    fn note(&mut self, report: &Report) {
        let time = now();
        let (event, at, detail) = match report {
            Report::PairingFailed(why) => {
                let why = describe(why);
                log::warn!("no backup: {why}");
                ("pairing_failed", time, json!({ "why": why }))
            }
            Report::Protected { generation, backup } => {
                log::info!("protected, generation {generation}");
                let backup = backup.to_string();
                ("protected", time, json!({ "generation": generation, "backup": backup }))
            }
            Report::PeerFailed(failure) => {
                log::warn!("the other side failed: {failure}");
                let silent = match failure {
                    Failure::NoHeartbeat(silent)
                    | Failure::NoStream(silent)
                    | Failure::NoProgress(silent) => *silent,
                    _ => Nanos(0),
                };
                let heard = Nanos(time.0.saturating_sub(silent.0));
                self.parts.timeline.push_at("last_heard", heard, json!(null));
                ("peer_failed", time, json!({ "why": failure.to_string() }))
            }
            Report::Claiming(generation) => ("claiming", time, json!({ "generation": generation })),
            Report::ArbiterSilent => {
                log::warn!("the arbiter does not answer");
                ("arbiter_silent", time, json!(null))
            }
            Report::ArbiterForgot(generation) => {
                log::error!("the arbiter has lost its record of generation {generation}");
                ("arbiter_forgot", time, json!({ "generation": generation }))
            }
            Report::Won(generation) => ("won", time, json!({ "generation": generation })),
            Report::Replayed(progress) => {
                let detail = json!({ "icount": progress.icount, "entries": progress.pos });
                ("replayed", time, detail)
            }
            Report::Live(generation) => {
                log::warn!("live, generation {generation}");
                self.awaits_first_output = true;
                ("live", time, json!({ "generation": generation }))
            }
            Report::Nonsense(what) => {
                log::error!("the other side speaks nonsense: {what}");
                ("nonsense", time, json!({ "what": what }))
            }
            Report::RefusedPrimary(why) => {
                log::warn!("a primary was refused: {why}");
                ("refused_primary", time, json!({ "why": why.to_string() }))
            }
            Report::TooManyDivergences => {
                log::error!("too many backups diverged within an hour; no new one is made");
                ("too_many_divergences", time, json!(null))
            }
            Report::Ended(reason) => ("ended", time, json!({ "reason": format!("{reason:?}") })),
        };
        self.parts.timeline.push_at(event, at, detail);
    }

    fn answer(&mut self, request: &Request) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Power { action } => self.switch(*action),
            Request::Gone { .. } | Request::Console { .. } => {
                Reply::Error { message: "not for this thread".to_owned() }
            }
        }
    }

    fn switch(&mut self, action: PowerAction) -> Reply {
        if !self.is_owner() {
            let message = "this process does not run the VM; ask where it runs".to_owned();
            return Reply::Error { message };
        }
        self.parts.body.mailbox.switch(match action {
            PowerAction::Off => Switch::PowerButton,
            PowerAction::Reset => Switch::Reset,
            PowerAction::Force => Switch::PowerOff,
        });
        Reply::Done
    }

    /// Where other processes of the VM may be.
    fn peers(&self) -> Vec<String> {
        let mut peers = self.parts.backups.clone();
        peers.extend(self.parts.opening.iter().flat_map(|opening| opening.peers.clone()));
        let own = self.parts.site.address();
        peers.retain(|peer| Some(peer) != own.as_ref());
        peers.dedup();
        peers
    }

    /// Leaves word on this host for those who look for the VM when this process is gone.
    pub(crate) fn note_peers(&self) {
        let site = &self.parts.site;
        let noted =
            site.run_dir.note_peers(&self.parts.vm.0, &self.peers(), site.key_file.as_deref());
        if let Err(error) = noted {
            log::warn!("{}", describe(&error));
        }
    }

    fn is_owner(&self) -> bool {
        matches!(self.parts.node.role(), Role::Solo | Role::Primary)
    }

    fn status(&self) -> StatusReport {
        let status = self.parts.node.status();
        let role = match status.role {
            Role::Solo => "solo",
            Role::Primary => "primary",
            Role::Backup => "backup",
            Role::GoingLive => "going_live",
            Role::Halted => "halted",
        };
        let wants_backup = !self.parts.backups.is_empty();
        let state = match status.role {
            _ if status.protected => "running",
            Role::Solo if status.peer.is_some() => "starting",
            Role::Solo if wants_backup => "needSecondary",
            Role::Solo => "notConfigured",
            Role::Primary | Role::Backup => "starting",
            Role::GoingLive => "needSecondary",
            Role::Halted => "disabled",
        };
        let peers = self.peers();
        StatusReport {
            vm: Some(self.parts.vm.to_string()),
            role: role.to_owned(),
            state: state.to_owned(),
            owner: self.is_owner(),
            protected: status.protected,
            generation: status.generation.0,
            claimant: self.parts.claimant.to_string(),
            peer: status.peer.map(|peer| peer.to_string()),
            peers,
            running: !self.follows && matches!(self.pace, Some(Pace::Run(_))),
            icount: self.icount,
            log_end: status.log_end.0,
            acked: status.acked.0,
            executed: status.executed.0,
            lag_ns: status.lag.0,
            held_outputs: status.held_outputs as u64,
            log_bytes: self.log_bytes,
            warnings: self.parts.warnings.clone(),
            timeline: self.parts.timeline.recent(),
        }
    }
}

/// Where the disks of a process tell their news.
pub(crate) fn destination(mailbox: &Arc<Mailbox>, post: &Arc<Post>) -> Destination {
    let post = post.clone();
    let news = Arc::new(move |news| post.put(Event::Disks(news)));
    Destination { mailbox: mailbox.clone(), news }
}

/// Has people see an output, if it is a console's.
fn show(hubs: &[Arc<ConsoleHub>; 2], produced: &Produced) {
    if let Output::ConsoleOutput { console, bytes } = &*produced.output {
        hubs[console_index(*console)].append(produced.console_first, bytes);
    }
}

fn submit(disks: &OpenDisks, output: &Output) {
    if let Output::DiskRequest { disk, request, op } = output {
        disks.submit(*disk, *request, op);
    }
}

/// The clock that the protocol counts in.
fn now() -> Nanos {
    host::clock::boottime()
}
