//! The server's transmission phase: requests are read one after the other, carried out by a few
//! threads, and answered in whatever order they are done.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use super::proto::{ReplyHeader, RequestHeader, command, errno, read_vec};
use crate::backend::{DiskError, Extent, Op, REQUEST_LEN_MAX};
use crate::export::{Refusal, Session};
use crate::file::perform;

/// Requests of one connection that are carried out at the same time.
const WORKERS: usize = 4;
/// Requests of one connection that are taken before the next one is read.
const QUEUE_LEN_MAX: usize = 128;
/// Bytes that one connection's requests may hold, read data included. One request of full length
/// always fits.
const QUEUE_BYTES_MAX: u64 = REQUEST_LEN_MAX as u64;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransmitError {
    #[error("connection broke")]
    Io(#[from] io::Error),
    #[error("peer does not speak NBD: {0}")]
    Nonsense(&'static str),
}

/// Serves requests until the client disconnects. When this returns, everything that was taken has
/// been carried out or dropped. `hang_up` ends the connection when replies cannot be sent.
pub(crate) fn transmit(
    mut reader: impl Read,
    writer: impl Write + Send,
    session: &Session,
    hang_up: &(dyn Fn() + Sync),
) -> Result<(), TransmitError> {
    let lane = Lane {
        session,
        hang_up,
        writer: Mutex::new(writer),
        queue: Mutex::default(),
        filled: Condvar::new(),
        drained: Condvar::new(),
        complained: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            let worker = thread::Builder::new().name("nbd-worker".to_owned());
            if let Err(error) = worker.spawn_scoped(scope, || lane.work()) {
                lane.close(Close::Now);
                return Err(error.into());
            }
        }
        let ended = lane.read_requests(&mut reader);
        // A client that says goodbye may have sent requests before it did.
        lane.close(Close::WhenDone);
        ended
    })
}

struct Lane<'a, W> {
    session: &'a Session,
    hang_up: &'a (dyn Fn() + Sync),
    writer: Mutex<W>,
    queue: Mutex<Queue>,
    filled: Condvar,
    drained: Condvar,
    /// Whether an error of this connection has been reported.
    complained: AtomicBool,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Taken>,
    /// Requests that were taken and not answered yet, queued or not.
    open: usize,
    /// What they hold.
    bytes: u64,
    /// Whether and how the workers are to end.
    close: Option<Close>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    WhenDone,
    Now,
}

/// A request that was read.
struct Taken {
    cookie: u64,
    /// Bytes that it holds against [`QUEUE_BYTES_MAX`].
    held: u64,
    /// What to do, or the error number if the request itself is wrong.
    op: Result<Op, u32>,
    /// The client wants the change durable before the reply.
    durable: bool,
}

const POISONED: &str = "no thread panics while it holds a connection's queue";

impl<W: Write + Send> Lane<'_, W> {
    fn read_requests(&self, reader: &mut impl Read) -> Result<(), TransmitError> {
        loop {
            let mut header = [0; RequestHeader::LEN];
            if !read_header(reader, &mut header)? {
                return Ok(());
            }
            let header = RequestHeader::decode(header)
                .ok_or(TransmitError::Nonsense("wrong request magic"))?;
            if header.command == command::DISCONNECT {
                return Ok(());
            }
            if header.command == command::WRITE && header.len > REQUEST_LEN_MAX {
                // The payload that follows cannot be skipped at a bounded cost.
                return Err(TransmitError::Nonsense("write is too long"));
            }
            let held = held_by(&header);
            if !self.wait_for_room(held) {
                return Ok(());
            }
            let data = match header.command {
                command::WRITE => read_vec(reader, header.len as usize)?,
                _ => Vec::new(),
            };
            let op = self.understand(&header, data);
            let durable = header.flags & command::FUA != 0;
            let taken = Taken { cookie: header.cookie, held, op, durable };
            self.queue.lock().expect(POISONED).requests.push_back(taken);
            self.filled.notify_one();
        }
    }

    fn understand(&self, header: &RequestHeader, data: Vec<u8>) -> Result<Op, u32> {
        let RequestHeader { flags, offset, len, .. } = *header;
        let known_flags = match header.command {
            command::WRITE_ZEROES => command::FUA | command::NO_HOLE,
            _ => command::FUA,
        };
        if flags & !known_flags != 0 {
            return Err(errno::INVALID);
        }
        let extent = Extent { offset, len: u64::from(len) };
        let op = match header.command {
            command::READ if len > REQUEST_LEN_MAX => return Err(errno::OVERFLOW),
            command::READ => Op::Read(extent),
            // Durability is seen to after the write, as for all changes.
            command::WRITE => Op::Write { offset, data, durable: false },
            command::FLUSH => return Ok(Op::Flush),
            command::TRIM => Op::Trim(extent),
            command::WRITE_ZEROES => {
                Op::WriteZeroes { extent, may_free: flags & command::NO_HOLE == 0 }
            }
            _ => return Err(errno::INVALID),
        };
        let storage = &*self.session.export.storage;
        if !extent.fits(storage.size()) {
            let grows = matches!(op, Op::Write { .. } | Op::WriteZeroes { .. });
            return Err(if grows { errno::NO_SPACE } else { errno::INVALID });
        }
        let align = u64::from(storage.align());
        if !offset.is_multiple_of(align) || !extent.len.is_multiple_of(align) {
            return Err(errno::INVALID);
        }
        Ok(op)
    }

    /// `false` if replies cannot be sent any more, so that there is no point in reading on.
    fn wait_for_room(&self, bytes: u64) -> bool {
        let mut queue = self.queue.lock().expect(POISONED);
        while queue.close.is_none()
            && (queue.open >= QUEUE_LEN_MAX || queue.bytes + bytes > QUEUE_BYTES_MAX)
        {
            queue = self.drained.wait(queue).expect(POISONED);
        }
        queue.open += 1;
        queue.bytes += bytes;
        queue.close.is_none()
    }

    fn close(&self, how: Close) {
        let mut queue = self.queue.lock().expect(POISONED);
        if queue.close != Some(Close::Now) {
            queue.close = Some(how);
        }
        drop(queue);
        self.filled.notify_all();
        self.drained.notify_all();
    }

    fn work(&self) {
        while let Some((taken, drop_it)) = self.next() {
            let held = taken.held;
            if !drop_it {
                let cookie = taken.cookie;
                let result = self.carry_out(taken);
                if self.answer(cookie, &result).is_err() {
                    self.close(Close::Now);
                    (self.hang_up)();
                }
            }
            let mut queue = self.queue.lock().expect(POISONED);
            queue.open -= 1;
            queue.bytes -= held;
            drop(queue);
            self.drained.notify_one();
        }
    }

    /// The next request, and whether it is only to be dropped.
    fn next(&self) -> Option<(Taken, bool)> {
        let mut queue = self.queue.lock().expect(POISONED);
        loop {
            if let Some(taken) = queue.requests.pop_front() {
                return Some((taken, queue.close == Some(Close::Now)));
            }
            if queue.close.is_some() {
                return None;
            }
            queue = self.filled.wait(queue).expect(POISONED);
        }
    }

    fn carry_out(&self, taken: Taken) -> Result<Vec<u8>, u32> {
        let op = taken.op?;
        let storage = &*self.session.export.storage;
        let passed = self.session.pass(op.changes()).map_err(|refusal| match refusal {
            Refusal::ReadOnly => errno::PERMISSION,
            _ => errno::SHUTDOWN,
        })?;
        let mut result = perform(storage, &op);
        if taken.durable && op.changes() && result.is_ok() {
            result = perform(storage, &Op::Flush);
        }
        // The change is in the storage: whoever waits to depose us need not wait for the reply.
        drop(passed);
        result.map_err(|error| {
            // A client can repeat a request that fails as often as it likes.
            let first = !self.complained.swap(true, Ordering::Relaxed);
            let level = if first { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "export {}: {}", self.session.export.name, describe(&op, &error));
            number(&error)
        })
    }

    fn answer(&self, cookie: u64, result: &Result<Vec<u8>, u32>) -> io::Result<()> {
        let (error, data) = match result {
            Ok(data) => (0, &data[..]),
            Err(error) => (*error, &[][..]),
        };
        let header = ReplyHeader { error, cookie }.encode();
        let mut writer = self.writer.lock().expect("no thread panics while it writes a reply");
        if data.len() <= COPIED_LEN_MAX {
            return writer.write_all(&[&header, data].concat());
        }
        writer.write_all(&header)?;
        writer.write_all(data)
    }
}

/// Up to this length, copying the data behind its header is cheaper than a second system call.
const COPIED_LEN_MAX: usize = 64 << 10;

fn describe(op: &Op, error: &DiskError) -> String {
    let cause = std::error::Error::source(error);
    let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    let what = match op {
        Op::Read(_) => "read",
        Op::Write { .. } => "write",
        Op::Flush => "flush",
        Op::WriteZeroes { .. } => "write of zeroes",
        Op::Trim(_) => "trim",
    };
    match op.extent() {
        Some(Extent { offset, len }) => {
            format!("{what} of {len} bytes at {offset}: {error}{cause}")
        }
        None => format!("{what}: {error}{cause}"),
    }
}

/// An error as NBD has it.
fn number(error: &DiskError) -> u32 {
    use io::ErrorKind as Kind;
    match error {
        DiskError::Io(error) => match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => errno::NO_SPACE,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => errno::PERMISSION,
            Kind::InvalidInput => errno::INVALID,
            Kind::OutOfMemory => errno::MEMORY,
            Kind::Unsupported => errno::UNSUPPORTED,
            _ => errno::IO,
        },
        DiskError::Invalid(_) => errno::INVALID,
        DiskError::ReadOnly => errno::PERMISSION,
        DiskError::Deposed(_) | DiskError::Closed => errno::SHUTDOWN,
    }
}

fn held_by(header: &RequestHeader) -> u64 {
    match header.command {
        command::READ | command::WRITE if header.len <= REQUEST_LEN_MAX => u64::from(header.len),
        _ => 0,
    }
}

/// Fills `header`; `false` if the client closed the connection between requests. A stream with a
/// read timeout may be idle between requests for as long as it likes, but not inside one.
fn read_header(reader: &mut impl Read, header: &mut [u8]) -> io::Result<bool> {
    loop {
        match reader.read(&mut header[..1]) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    reader.read_exact(&mut header[1..])?;
    Ok(true)
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
