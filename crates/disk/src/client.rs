//! A disk behind an NBD server: [`NbdClient`], a [`Backend`].
//!
//! Requests are pipelined. When the connection breaks, the client connects again with the same
//! stamp and issues what was not answered once more, in the order of submission; the server has
//! finished or dropped the old connection's requests by then. Writes that were answered but not
//! flushed are remembered, and written again first if the server (or its host) may have lost them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ft::Stamp;

use crate::backend::{
    Backend, Completion, DiskError, DiskEvent, DiskInfo, EventSink, Op, RequestId, check,
};
use crate::nbd::dial::{Attached, dial};
pub use crate::nbd::dial::{DialError, NBD_PORT, NbdAddress};
use crate::nbd::proto::{ReplyHeader, RequestHeader, command, errno, read_vec};
use crate::stamp::Badge;

/// Unflushed writes that are remembered. At the bound the client flushes by itself.
const UNFLUSHED_BYTES_MAX: usize = 64 << 20;
/// Pause before an attempt to connect again, unless the last connection was of some use.
const RECONNECT_EVERY: Duration = Duration::from_millis(200);
/// The cookie of the flush that the client sends by itself.
const OWN_FLUSH: u64 = u64::MAX;

/// How to reach an export.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Where it is.
    pub address: NbdAddress,
    /// Who we are; `None` for servers without fencing.
    pub badge: Option<Badge>,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// Refuse writes, also where the server takes them.
    pub read_only: bool,
}

/// A disk behind an NBD server.
pub struct NbdClient {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

struct Shared {
    info: DiskInfo,
    sink: EventSink,
    options: NbdOptions,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    badge: Option<Badge>,
    /// Requests without an answer, in order of submission. Those in `to_send` are not sent yet.
    pending: BTreeMap<u64, (RequestId, Arc<Op>)>,
    to_send: VecDeque<u64>,
    next_cookie: u64,
    /// Requests that never reach the wire, with what to say.
    refused: VecDeque<(RequestId, DiskError)>,
    unflushed: Unflushed,
    /// The start of the server's host (or of the server) that all of `unflushed` was written after.
    boot: Option<u128>,
    /// Replies so far, on all connections.
    answers: u64,
    /// The connection in use, to end it from outside.
    link: Option<TcpStream>,
    /// This connection ends so that the next one shows another stamp.
    restamped: bool,
    deposed: Option<String>,
    closed: bool,
}

/// Changes that the server has answered but not made durable.
#[derive(Default)]
struct Unflushed {
    /// In the order of their answers, numbered.
    changes: VecDeque<(u64, Arc<Op>)>,
    bytes: usize,
    next: u64,
    /// For each flush in flight: it covers every change with a lower number.
    flushes: BTreeMap<u64, u64>,
}

impl Unflushed {
    fn add(&mut self, op: Arc<Op>) {
        self.bytes += weight(&op);
        self.changes.push_back((self.next, op));
        self.next += 1;
    }

    fn flush_sent(&mut self, cookie: u64) {
        self.flushes.insert(cookie, self.next);
    }

    fn flush_done(&mut self, cookie: u64, success: bool) {
        let Some(covered) = self.flushes.remove(&cookie) else { return };
        while let Some((_, op)) =
            self.changes.pop_front_if(|(number, _)| success && *number < covered)
        {
            self.bytes -= weight(&op);
        }
    }

    fn is_full(&self) -> bool {
        self.bytes > UNFLUSHED_BYTES_MAX && !self.flushes.contains_key(&OWN_FLUSH)
    }
}

fn weight(op: &Op) -> usize {
    match op {
        Op::Write { data, .. } => data.len() + 64,
        _ => 64,
    }
}

impl NbdClient {
    /// Connects; events go to `sink`. With a badge, nobody below it can write once this returns.
    ///
    /// # Errors
    /// Any [`DialError`]. The caller decides whether to try again.
    pub fn connect(options: NbdOptions, sink: EventSink) -> Result<NbdClient, DialError> {
        let NbdAddress { server, export } = &options.address;
        let attached =
            dial(server, options.connect_timeout)?.attach(export, options.badge.as_ref())?;
        let mut info = attached.info;
        info.read_only |= options.read_only;
        let state = State {
            badge: options.badge.clone(),
            pending: BTreeMap::new(),
            to_send: VecDeque::new(),
            next_cookie: 0,
            refused: VecDeque::new(),
            unflushed: Unflushed::default(),
            boot: attached.boot,
            answers: 0,
            link: None,
            restamped: false,
            deposed: None,
            closed: false,
        };
        let shared = Arc::new(Shared {
            info,
            sink,
            state: Mutex::new(state),
            wake: Condvar::new(),
            options,
        });
        let supervised = Arc::clone(&shared);
        let supervisor = thread::Builder::new()
            .name("nbd-client".to_owned())
            .spawn(move || supervised.supervise(attached))
            .map_err(|source| DialError::Io {
                server: shared.options.address.server.clone(),
                source,
            })?;
        Ok(NbdClient { shared, supervisor: Some(supervisor) })
    }
}

impl Backend for NbdClient {
    fn info(&self) -> DiskInfo {
        self.shared.info
    }

    fn submit(&self, id: RequestId, op: Op) {
        let mut state = self.shared.lock();
        if let Some(why) = &state.deposed {
            let why = DiskError::Deposed(why.clone());
            state.refused.push_back((id, why));
        } else if let Err(why) = check(&op, &self.shared.info) {
            state.refused.push_back((id, why));
        } else {
            let cookie = state.next_cookie;
            state.next_cookie += 1;
            state.pending.insert(cookie, (id, Arc::new(op)));
            state.to_send.push_back(cookie);
        }
        drop(state);
        self.shared.wake.notify_all();
    }

    fn restamp(&self, stamp: Stamp) {
        let mut state = self.shared.lock();
        if let Some(badge) = &mut state.badge {
            badge.stamp = stamp;
        }
        state.restamped = true;
        state.hang_up();
        drop(state);
        self.shared.wake.notify_all();
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.hang_up();
        drop(state);
        self.shared.wake.notify_all();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join(); // a panic has already been reported on its thread
        }
    }
}

impl State {
    fn hang_up(&mut self) {
        if let Some(link) = self.link.take() {
            let _ = link.shutdown(Shutdown::Both); // it may be broken already
        }
    }

    /// Whether the connection ended because we wanted it to.
    fn ended(&self) -> Option<Ended> {
        match self {
            State { closed: true, .. } => Some(Ended::Closed),
            State { restamped: true, .. } => Some(Ended::Restamped),
            _ => None,
        }
    }
}

/// Why a connection ended.
enum Ended {
    Broken(String),
    Restamped,
    Closed,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds a client's state")
    }

    /// Keeps a connection up until the disk is closed, or for ever deposed.
    fn supervise(&self, first: Attached) {
        let mut next = Some(first);
        while let Some(attached) = next.take().or_else(|| self.attach_again()) {
            let answers = self.lock().answers;
            match self.run(attached) {
                Ended::Broken(why) => {
                    (self.sink)(DiskEvent::Lost { why });
                    // A server that accepts and then fails is not asked as fast as it can fail.
                    if self.lock().answers == answers {
                        self.pause();
                    }
                }
                Ended::Restamped => {}
                Ended::Closed => break,
            }
        }
        self.refuse_until_closed();
    }

    /// Connects until it works; `None` if the disk was closed or this side deposed meanwhile.
    fn attach_again(&self) -> Option<Attached> {
        let mut last_why = None;
        loop {
            let (badge, closed) = {
                let mut state = self.lock();
                state.restamped = false;
                (state.badge.clone(), state.closed)
            };
            if closed {
                return None;
            }
            let why = match self.attach(badge.as_ref()) {
                Ok(attached) if self.is_same_disk(&attached.info) => return Some(attached),
                Ok(_) => "the server now exports another disk under this name".to_owned(),
                Err(DialError::Deposed { why, .. }) => {
                    self.depose(&why);
                    return None;
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error);
                    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
                }
            };
            if last_why.as_ref() != Some(&why) {
                (self.sink)(DiskEvent::Lost { why: why.clone() });
                last_why = Some(why);
            }
            self.pause();
        }
    }

    /// Waits a little before the next attempt, unless there is something new to do.
    fn pause(&self) {
        let deadline = Instant::now() + RECONNECT_EVERY;
        loop {
            self.finish_refused();
            let state = self.lock();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || state.restamped || left.is_zero() {
                return;
            }
            drop(self.wake.wait_timeout(state, left));
        }
    }

    fn attach(&self, badge: Option<&Badge>) -> Result<Attached, DialError> {
        let NbdAddress { server, export } = &self.options.address;
        let dialled = dial(server, self.options.connect_timeout)?;
        // The server may take its time over a stamp; closing the disk must not wait for it.
        let mut state = self.lock();
        state.link = dialled.stream.try_clone().ok();
        if state.closed {
            state.hang_up();
        }
        drop(state);
        dialled.attach(export, badge)
    }

    fn is_same_disk(&self, info: &DiskInfo) -> bool {
        let now = DiskInfo { read_only: info.read_only || self.options.read_only, ..*info };
        now == self.info
    }

    fn depose(&self, why: &str) {
        let mut state = self.lock();
        state.deposed = Some(why.to_owned());
        drop(state);
        (self.sink)(DiskEvent::Deposed { why: why.to_owned() });
        self.finish_all(|| DiskError::Deposed(why.to_owned()));
    }

    /// What is left to do when there will be no connection any more.
    fn refuse_until_closed(&self) {
        loop {
            self.finish_refused();
            let state = self.lock();
            if state.closed {
                break;
            }
            if state.refused.is_empty() {
                drop(self.wake.wait(state));
            }
        }
        self.finish_refused();
        self.finish_all(|| DiskError::Closed);
    }

    fn finish_refused(&self) {
        let refused = std::mem::take(&mut self.lock().refused);
        for (id, why) in refused {
            self.finish(id, Err(why));
        }
    }

    fn finish_all(&self, why: impl Fn() -> DiskError) {
        let mut state = self.lock();
        let pending = std::mem::take(&mut state.pending);
        state.to_send.clear();
        drop(state);
        for (id, _) in pending.into_values() {
            self.finish(id, Err(why()));
        }
    }

    fn finish(&self, id: RequestId, result: Result<Vec<u8>, DiskError>) {
        (self.sink)(DiskEvent::Done(Completion { id, result }));
    }

    /// Uses one connection to its end.
    fn run(&self, attached: Attached) -> Ended {
        let mut stream = attached.stream;
        let link = match stream.try_clone() {
            Ok(link) => link,
            Err(error) => return Ended::Broken(error.to_string()),
        };
        let (boot, stamp) = {
            let mut state = self.lock();
            if let Some(ended) = state.ended() {
                return ended;
            }
            state.link = Some(link);
            (state.boot, state.badge.as_ref().map(|badge| badge.stamp))
        };
        if attached.boot != boot
            && let Err(why) = self.write_again(&mut stream)
        {
            return self.lock().ended().unwrap_or(Ended::Broken(why));
        }
        {
            let mut state = self.lock();
            state.boot = attached.boot;
            state.to_send = state.pending.keys().copied().collect();
            state.unflushed.flushes.clear();
        }
        (self.sink)(DiskEvent::Attached { stamp });
        let why = thread::scope(|scope| {
            let sender = thread::Builder::new().name("nbd-client-send".to_owned());
            if let Err(error) = sender.spawn_scoped(scope, || self.send_requests(&stream)) {
                return error.to_string();
            }
            let why = self.receive_replies(&stream);
            self.lock().hang_up();
            let _ = stream.shutdown(Shutdown::Both); // it may be broken already
            self.wake.notify_all();
            why
        });
        self.lock().ended().unwrap_or(Ended::Broken(why))
    }

    /// Writes again what the server may have lost: one request after the other, because these may
    /// overlap, and before anything else.
    fn write_again(&self, stream: &mut TcpStream) -> Result<(), String> {
        let changes: Vec<_> =
            self.lock().unflushed.changes.iter().map(|(_, op)| Arc::clone(op)).collect();
        for op in changes {
            let written = send(stream, 0, &op).and_then(|()| {
                let mut header = [0; ReplyHeader::LEN];
                stream.read_exact(&mut header)?;
                Ok(header)
            });
            let header = written.map_err(|error| error.to_string())?;
            match ReplyHeader::decode(header) {
                Some(ReplyHeader { error: 0, cookie: 0 }) => {}
                Some(reply) => {
                    return Err(format!("cannot write again: NBD error {}", reply.error));
                }
                None => return Err("the server's reply has a wrong magic".to_owned()),
            }
        }
        Ok(())
    }

    fn send_requests(&self, mut stream: &TcpStream) {
        loop {
            let mut state = self.lock();
            let (cookie, op) = loop {
                if state.link.is_none() {
                    return;
                }
                if !state.refused.is_empty() {
                    drop(state);
                    self.finish_refused();
                    state = self.lock();
                    continue;
                }
                if state.unflushed.is_full() && self.info.flush {
                    break (OWN_FLUSH, Arc::new(Op::Flush));
                }
                if let Some(cookie) = state.to_send.pop_front() {
                    let (_, op) = &state.pending[&cookie];
                    break (cookie, Arc::clone(op));
                }
                state = self.wake.wait(state).expect("as in lock");
            };
            if *op == Op::Flush {
                state.unflushed.flush_sent(cookie);
            }
            drop(state);
            // A flush that the server does not know has nothing to make durable there.
            if *op == Op::Flush && !self.info.flush {
                self.answered(cookie, Ok(Vec::new()));
                continue;
            }
            if send(&mut stream, cookie, &op).is_err() {
                // The receiver finds out too, and says why.
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Takes replies until the connection ends; says why it did.
    fn receive_replies(&self, stream: &TcpStream) -> String {
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        loop {
            if let Err(why) = self.receive_reply(&mut reader) {
                return why;
            }
        }
    }

    fn receive_reply(&self, reader: &mut impl Read) -> Result<(), String> {
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
            _ => error.to_string(),
        };
        let mut header = [0; ReplyHeader::LEN];
        reader.read_exact(&mut header).map_err(broken)?;
        let reply = ReplyHeader::decode(header).ok_or("the server's reply has a wrong magic")?;
        if reply.cookie == OWN_FLUSH {
            self.lock().unflushed.flush_done(OWN_FLUSH, reply.error == 0);
            return Ok(());
        }
        let op = {
            let state = self.lock();
            let sent = !state.to_send.contains(&reply.cookie);
            let pending = state.pending.get(&reply.cookie).filter(|_| sent);
            Arc::clone(&pending.ok_or("the server answers a request that was not made")?.1)
        };
        if reply.error == errno::SHUTDOWN {
            return Err("the server shuts the connection down".to_owned());
        }
        let result = match &*op {
            _ if reply.error != 0 => Err(error_of(reply.error)),
            Op::Read(extent) => Ok(read_vec(reader, extent.len as usize).map_err(broken)?),
            _ => Ok(Vec::new()),
        };
        self.answered(reply.cookie, result);
        Ok(())
    }

    fn answered(&self, cookie: u64, result: Result<Vec<u8>, DiskError>) {
        let mut state = self.lock();
        let Some((id, op)) = state.pending.remove(&cookie) else { return };
        state.answers += 1;
        match &*op {
            Op::Flush => state.unflushed.flush_done(cookie, result.is_ok()),
            _ if op.changes() && result.is_ok() && state.badge.is_some() => {
                state.unflushed.add(op);
            }
            _ => {}
        }
        let full = state.unflushed.is_full();
        drop(state);
        if full {
            self.wake.notify_all();
        }
        self.finish(id, result);
    }
}

fn send(stream: &mut impl Write, cookie: u64, op: &Op) -> io::Result<()> {
    let (command, flags) = match op {
        Op::Read(_) => (command::READ, 0),
        Op::Write { durable, .. } => (command::WRITE, if *durable { command::FUA } else { 0 }),
        Op::Flush => (command::FLUSH, 0),
        Op::WriteZeroes { may_free: true, .. } => (command::WRITE_ZEROES, 0),
        Op::WriteZeroes { may_free: false, .. } => (command::WRITE_ZEROES, command::NO_HOLE),
        Op::Trim(_) => (command::TRIM, 0),
    };
    let (offset, len) = op.extent().map_or((0, 0), |extent| (extent.offset, extent.len));
    let len = u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = RequestHeader { flags, command, cookie, offset, len }.encode();
    match op {
        Op::Write { data, .. } if data.len() <= COPIED_LEN_MAX => {
            stream.write_all(&[&header[..], data].concat())
        }
        Op::Write { data, .. } => {
            stream.write_all(&header)?;
            stream.write_all(data)
        }
        _ => stream.write_all(&header),
    }
}

/// Up to this length, copying the data behind its header is cheaper than a second system call.
const COPIED_LEN_MAX: usize = 64 << 10;

fn error_of(number: u32) -> DiskError {
    use io::ErrorKind as Kind;
    let kind = match number {
        errno::PERMISSION => return DiskError::ReadOnly,
        errno::MEMORY => Kind::OutOfMemory,
        errno::INVALID | errno::OVERFLOW => Kind::InvalidInput,
        errno::NO_SPACE => Kind::StorageFull,
        errno::UNSUPPORTED => Kind::Unsupported,
        errno::IO => {
            return DiskError::Io(io::Error::other("the disk server reports an I/O error"));
        }
        _ => return DiskError::Io(io::Error::other(format!("the disk server says {number}"))),
    };
    DiskError::Io(kind.into())
}
