//! The control protocol: how `lockstep status`, `console` and `power` talk to the process of a VM.
//!
//! A client sends one request as a line of JSON and gets one line back. After the answer to a console
//! request the connection carries the console: bytes typed one way, and the other way records of a
//! number (u64), a length (u32), both big endian, and so many bytes. The number is that of the first
//! byte, so that a client that moves to another host goes on where it was. A record of length 0 ends it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::{Waited, Wake, wait_any};
use machine::event::Console;
use serde::{Deserialize, Serialize};

use crate::conn::Conn;
use crate::console::{ConsoleEnd, ConsoleHub};
use crate::timeline::TimelineEvent;

/// The first byte of every request; no message of the logging channel begins so.
pub(crate) const FIRST_BYTE: u8 = b'{';
/// Longest request or answer.
const LINE_LEN_MAX: usize = 1 << 20;
/// For a request, or the answer to one.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Console output that a slow client has not taken; the rest waits in the history.
const UNSENT_LEN_MAX: usize = 256 << 10;
/// Between two attempts to hand typed bytes to a guest that does not take them.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
const RECORD_HEAD_LEN: usize = 12;
const RECORD_LEN_MAX: usize = 1 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How is the VM?
    Status,
    /// Connect me to its console, from byte `from` on (or from the oldest byte known, or, with the highest
    /// number there is, from its present end).
    Console {
        /// Number of the first byte wanted.
        #[serde(default)]
        from: u64,
        /// The virtio console instead of the serial port.
        #[serde(default)]
        virtio: bool,
    },
    /// Switch it.
    Power {
        /// How.
        action: PowerAction,
    },
    /// Has the process with this claimant, which ran on your host, ended?
    Gone {
        /// The VM.
        vm: String,
        /// The claimant, 32 hex digits.
        claimant: String,
    },
}

/// What a power switch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Presses the power button: the guest shuts itself down.
    Off,
    /// Presses the reset button.
    Reset,
    /// Cuts the power.
    Force,
}

/// What a process answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// The console follows.
    Console,
    /// It is done, or on its way.
    Done,
    /// To [`Request::Gone`].
    Gone {
        /// It has ended for certain.
        gone: bool,
    },
    /// It cannot be done.
    Error {
        /// Why not.
        message: String,
    },
}

/// A VM as one of its processes sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The VM, if the process has one.
    pub vm: Option<String>,
    /// `solo`, `primary`, `backup`, `going_live`, `halted` or `waiting`.
    pub role: String,
    /// As vSphere names it: `notConfigured`, `enabled`, `needSecondary`, `starting`, `running`.
    pub state: String,
    /// The process runs the VM and answers for it.
    pub owner: bool,
    /// The backup holds all that was let out, and takes over if need be.
    pub protected: bool,
    /// The newest generation known.
    pub generation: u64,
    /// This process in the arbiter's records.
    pub claimant: String,
    /// The other side's.
    pub peer: Option<String>,
    /// Where other processes of the VM may be reached.
    pub peers: Vec<String>,
    /// The guest runs.
    pub running: bool,
    /// Steps since power-on.
    pub icount: u64,
    /// Entries of the log written (on a backup: received).
    pub log_end: u64,
    /// Entries that the backup has acknowledged.
    pub acked: u64,
    /// Entries that the backup has executed.
    pub executed: u64,
    /// How far the backup's execution trails.
    pub lag_ns: u64,
    /// Outputs that wait for an acknowledgement.
    pub held_outputs: u64,
    /// Bytes of log payload made so far.
    pub log_bytes: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// What happened lately.
    pub timeline: Vec<TimelineEvent>,
}

/// Why a control connection is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection broke.
    #[error("the control connection broke")]
    Broken(#[source] io::Error),
    /// The process closed it.
    #[error("the process closed the control connection")]
    Closed,
    /// No answer.
    #[error("no answer within {} s", ANSWER_MAX.as_secs())]
    Silent,
    /// Something else answers there.
    #[error("it does not speak Lockstep's control protocol")]
    Nonsense,
    /// The request was refused.
    #[error("{0}")]
    Refused(String),
}

/// What a connection serves its client from.
pub(crate) trait Handler: Send + Sync {
    /// Answers everything but the console itself.
    fn answer(&self, request: Request) -> Reply;
    /// The history of a console.
    fn console(&self, console: Console) -> Arc<ConsoleHub>;
    /// Bytes typed at a console; false if they found no room.
    fn typed(&self, console: Console, bytes: &[u8]) -> bool;
}

/// Serves one client until it leaves.
pub(crate) fn serve(mut conn: Conn, mut read: Vec<u8>, handler: &dyn Handler) {
    let Ok(wake) = Wake::new().map(Arc::new) else { return };
    let Ok(line) = read_line(&mut conn, &mut read, &wake) else { return };
    let (reply, console) = match serde_json::from_slice(&line) {
        Ok(Request::Console { from, virtio }) => {
            let console = if virtio { Console::Virtio } else { Console::Serial };
            (Reply::Console, Some((console, from)))
        }
        Ok(request) => (handler.answer(request), None),
        Err(error) => (Reply::Error { message: format!("bad request: {error}") }, None),
    };
    write_line(&mut conn, &reply);
    if let Some((console, from)) = console {
        let hub = handler.console(console);
        hub.watch(wake.clone());
        let _ = serve_console(&mut conn, read, from, &hub, &wake, &mut |bytes| {
            handler.typed(console, bytes)
        }); // a client that is gone needs no answer
        let _ = drain(&mut conn, &wake); // likewise
        hub.unwatch(&wake);
    } else {
        let _ = drain(&mut conn, &wake); // likewise
    }
}

fn serve_console(
    conn: &mut Conn,
    mut typed: Vec<u8>,
    mut from: u64,
    hub: &ConsoleHub,
    wake: &Wake,
    handle_typed: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    if from == u64::MAX {
        from = hub.end(); // the client wants what is new
    }
    loop {
        // In this order, so that nothing is appended between the last look and the end.
        let end_reason = hub.end_reason();
        while conn.unsent_len() < UNSENT_LEN_MAX {
            let part = hub.read(from);
            if part.bytes.is_empty() {
                break;
            }
            from = part.first + part.bytes.len() as u64;
            write_record(conn, part.first, &part.bytes);
        }
        if let Some(why) = end_reason.filter(|_| hub.read(from).bytes.is_empty()) {
            if why == ConsoleEnd::Off {
                write_record(conn, from, &[]);
            }
            return Ok(());
        }
        conn.flush()?;
        if !typed.is_empty() && handle_typed(&typed) {
            typed.clear();
        }
        let mut waited = [Waited { fd: conn.as_fd(), writable: conn.wants_write(), ready: None }];
        let retry = (!typed.is_empty()).then_some(RETRY_INTERVAL);
        wait_any(&mut waited, wake, retry)?;
        if waited[0].ready.is_some_and(|ready| ready.readable)
            && typed.len() < UNSENT_LEN_MAX
            && !conn.read(&mut typed)?
        {
            return Ok(());
        }
    }
}

fn write_record(conn: &mut Conn, first: u64, bytes: &[u8]) {
    conn.write(&first.to_be_bytes());
    conn.write(&(bytes.len() as u32).to_be_bytes());
    conn.write(bytes);
}

fn write_line(conn: &mut Conn, value: &impl Serialize) {
    let mut line = serde_json::to_vec(value).expect("plain data always serializes");
    line.push(b'\n');
    conn.write(&line);
}

/// Sends what is left, for a while.
fn drain(conn: &mut Conn, wake: &Wake) -> io::Result<()> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        conn.flush()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if !conn.wants_write() || left.is_zero() {
            return Ok(());
        }
        let mut waited = [Waited { fd: conn.as_fd(), writable: true, ready: None }];
        wait_any(&mut waited, wake, Some(left))?;
    }
}

fn read_line(conn: &mut Conn, read: &mut Vec<u8>, wake: &Wake) -> Result<Vec<u8>, ControlError> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let rest = read.split_off(end + 1);
            return Ok(std::mem::replace(read, rest));
        }
        if read.len() > LINE_LEN_MAX {
            return Err(ControlError::Nonsense);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ControlError::Silent);
        }
        let mut waited = [Waited { fd: conn.as_fd(), writable: conn.wants_write(), ready: None }];
        wait_any(&mut waited, wake, Some(left)).map_err(ControlError::Broken)?;
        conn.flush().map_err(ControlError::Broken)?;
        if waited_readable(conn, read)? {
            continue;
        }
        if !read.contains(&b'\n') {
            return Err(ControlError::Closed);
        }
    }
}

fn waited_readable(conn: &mut Conn, read: &mut Vec<u8>) -> Result<bool, ControlError> {
    conn.read(read).map_err(ControlError::Broken)
}

/// A client's end.
#[derive(Debug)]
pub struct Client {
    conn: Conn,
    wake: Arc<Wake>,
    read: Vec<u8>,
}

/// What a console client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Bytes, with the number of the first.
    Bytes(u64, Vec<u8>),
    /// The VM is off.
    End,
}

impl Client {
    /// Speaks the control protocol on `conn`. `wake` interrupts [`Client::hear`].
    #[must_use]
    pub fn new(conn: Conn, wake: Arc<Wake>) -> Client {
        let _ = conn.notice_dead_host(); // without it, that takes as long as TCP takes
        Client { conn, wake, read: Vec::new() }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// A [`ControlError`]; [`ControlError::Refused`] carries the process's own words.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        write_line(&mut self.conn, request);
        self.conn.flush().map_err(ControlError::Broken)?;
        let line = read_line(&mut self.conn, &mut self.read, &self.wake)?;
        match serde_json::from_slice(&line) {
            Ok(Reply::Error { message }) => Err(ControlError::Refused(message)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(ControlError::Nonsense),
        }
    }

    /// Sends typed bytes.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn type_bytes(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        self.conn.write(bytes);
        self.conn.flush().map_err(ControlError::Broken)
    }

    /// Waits for console output, or until `wake` rings. Takes everything that is there.
    ///
    /// # Errors
    /// If the connection broke or was closed.
    pub fn hear(&mut self) -> Result<VecDeque<Heard>, ControlError> {
        let mut heard = VecDeque::new();
        self.take_records(&mut heard)?;
        if !heard.is_empty() {
            return Ok(heard);
        }
        let mut waited =
            [Waited { fd: self.conn.as_fd(), writable: self.conn.wants_write(), ready: None }];
        wait_any(&mut waited, &self.wake, None).map_err(ControlError::Broken)?;
        self.conn.flush().map_err(ControlError::Broken)?;
        let open = self.conn.read(&mut self.read).map_err(ControlError::Broken)?;
        self.take_records(&mut heard)?;
        if !open && heard.is_empty() {
            return Err(ControlError::Closed);
        }
        Ok(heard)
    }

    fn take_records(&mut self, heard: &mut VecDeque<Heard>) -> Result<(), ControlError> {
        while let Some((head, rest)) = self.read.split_first_chunk::<RECORD_HEAD_LEN>() {
            let (first, len) = head.split_at(8);
            let first = u64::from_be_bytes(first.try_into().expect("split at 8"));
            let len = u32::from_be_bytes(len.try_into().expect("4 bytes are left")) as usize;
            if len > RECORD_LEN_MAX {
                return Err(ControlError::Nonsense);
            }
            let Some(bytes) = rest.get(..len) else { break };
            heard.push_back(match bytes {
                [] => Heard::End,
                bytes => Heard::Bytes(first, bytes.to_vec()),
            });
            self.read.drain(..RECORD_HEAD_LEN + len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Fake {
        hub: Arc<ConsoleHub>,
        typed: Mutex<Vec<u8>>,
    }

    impl Handler for Fake {
        fn answer(&self, request: Request) -> Reply {
            match request {
                Request::Power { .. } => Reply::Error { message: "no power here".to_owned() },
                _ => Reply::Done,
            }
        }

        fn console(&self, _: Console) -> Arc<ConsoleHub> {
            self.hub.clone()
        }

        fn typed(&self, _: Console, bytes: &[u8]) -> bool {
            self.typed.lock().unwrap().extend(bytes);
            self.hub.append(self.hub.end(), bytes);
            true
        }
    }

    /// A client of `fake`, which is served on a thread.
    fn client(fake: &Arc<Fake>) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fake = fake.clone();
        thread::spawn(move || serve(Conn::local(theirs).unwrap(), Vec::new(), &*fake));
        Client::new(Conn::local(ours).unwrap(), Arc::new(Wake::new().unwrap()))
    }

    #[test]
    fn a_refusal_comes_in_the_processs_own_words() {
        let fake = Arc::new(Fake::default());
        assert_eq!(client(&fake).ask(&Request::Status).unwrap(), Reply::Done);
        let refused = client(&fake).ask(&Request::Power { action: PowerAction::Off });
        assert_eq!(refused.unwrap_err().to_string(), "no power here");
    }

    /// behaviour 157
    #[test]
    fn a_console_client_goes_on_where_it_was() {
        let fake = Arc::new(Fake::default());
        fake.hub.append(0, b"Debian GNU/Linux\n");
        let mut first = client(&fake);
        first.ask(&Request::Console { from: 0, virtio: false }).unwrap();
        assert_eq!(first.hear().unwrap(), [Heard::Bytes(0, b"Debian GNU/Linux\n".to_vec())]);
        drop(first);
        let mut second = client(&fake);
        second.ask(&Request::Console { from: 17, virtio: false }).unwrap();
        second.type_bytes(b"root\n").unwrap();
        assert_eq!(second.hear().unwrap(), [Heard::Bytes(17, b"root\n".to_vec())]);
        fake.hub.close(ConsoleEnd::Off);
        assert_eq!(second.hear().unwrap(), [Heard::End]);
    }

    #[test]
    fn nonsense_gets_an_error_and_no_more() {
        let fake = Arc::new(Fake::default());
        let mut client = client(&fake);
        client.type_bytes(b"{\"op\":\"explode\"}\n").unwrap();
        let line = read_line(&mut client.conn, &mut client.read, &client.wake).unwrap();
        assert!(matches!(serde_json::from_slice(&line), Ok(Reply::Error { .. })));
    }
}
