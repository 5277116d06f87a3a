//! Asking an arbiter: [`ArbiterClient`] blocks, [`ArbiterThread`] does not.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base::{Claimant, VmId};
use ft::arbiter::{Answer, Request};

use super::wire::{Call, Numbered, Reply, VmStatus, read_frame, write_frame};
use crate::nbd::dial::{DialError, dial};
use crate::net;

/// Why an arbiter did not answer. Whether it heard the question is not known, so the same one is
/// asked again; every question may be asked twice.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// No connection to an arbiter.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke before the answer.
    #[error("connection to arbiter {server} broke")]
    Io {
        /// Whom.
        server: String,
        /// What the host said.
        source: io::Error,
    },
    /// It answered something else.
    #[error("arbiter {server} gave an answer to another question")]
    Confused {
        /// Whom.
        server: String,
    },
    /// It could not decide.
    #[error("arbiter {server}: {why}")]
    Failed {
        /// Whom.
        server: String,
        /// What it said.
        why: String,
    },
}

/// Asks one arbiter, one question at a time. Connects when it has to.
pub struct ArbiterClient {
    server: String,
    timeout: Duration,
    connection: Option<TcpStream>,
    next_number: u64,
}

impl ArbiterClient {
    /// A client of the arbiter at `server` (`HOST:PORT`). No single step takes longer than `timeout`.
    #[must_use]
    pub fn new(server: impl Into<String>, timeout: Duration) -> ArbiterClient {
        ArbiterClient { server: server.into(), timeout, connection: None, next_number: 0 }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Any [`ArbiterError`]; asking again is always safe.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, ArbiterError> {
        match self.call(&Call::Ask(request.clone()))? {
            Reply::Answer(answer) if answer.vm == request.vm && answer.op == request.op => {
                Ok(answer)
            }
            _ => Err(self.confused()),
        }
    }

    /// Asks until there is an answer or `give_up` has passed.
    ///
    /// # Errors
    /// The last [`ArbiterError`].
    pub fn ask_for(
        &mut self,
        request: &Request,
        give_up: Duration,
    ) -> Result<Answer, ArbiterError> {
        let deadline = Instant::now() + give_up;
        loop {
            match self.ask(request) {
                Err(_) if Instant::now() + RETRY_EVERY < deadline => thread::sleep(RETRY_EVERY),
                done => return done,
            }
        }
    }

    /// Says where a process of a VM can be reached.
    ///
    /// # Errors
    /// Any [`ArbiterError`].
    pub fn announce(
        &mut self,
        vm: &VmId,
        claimant: Claimant,
        address: &str,
    ) -> Result<(), ArbiterError> {
        let call = Call::Announce { vm: vm.clone(), claimant, address: address.to_owned() };
        match self.call(&call)? {
            Reply::Announced => Ok(()),
            _ => Err(self.confused()),
        }
    }

    /// What the arbiter knows about a VM, if anything.
    ///
    /// # Errors
    /// Any [`ArbiterError`].
    pub fn look(&mut self, vm: &VmId) -> Result<Option<VmStatus>, ArbiterError> {
        match self.call(&Call::Look(vm.clone()))? {
            Reply::Vms(vms) => Ok(vms.into_iter().find(|status| status.vm == *vm)),
            _ => Err(self.confused()),
        }
    }

    /// What the arbiter knows about all VMs.
    ///
    /// # Errors
    /// Any [`ArbiterError`].
    pub fn list(&mut self) -> Result<Vec<VmStatus>, ArbiterError> {
        match self.call(&Call::List)? {
            Reply::Vms(vms) => Ok(vms),
            _ => Err(self.confused()),
        }
    }

    fn confused(&mut self) -> ArbiterError {
        self.connection = None;
        ArbiterError::Confused { server: self.server.clone() }
    }

    /// One exchange. A connection that was idle may have been closed by the server, so a failure on
    /// one is tried once more on a new one.
    fn call(&mut self, call: &Call) -> Result<Reply, ArbiterError> {
        if let Some(stream) = self.connection.take()
            && let Ok(reply) = self.exchange(stream, call)
        {
            return self.judge(reply);
        }
        let stream = dial(&self.server, self.timeout)?.into_arbiter()?;
        let reply = self
            .exchange(stream, call)
            .map_err(net::in_words)
            .map_err(|source| ArbiterError::Io { server: self.server.clone(), source })?;
        self.judge(reply)
    }

    fn exchange(&mut self, mut stream: TcpStream, call: &Call) -> io::Result<Reply> {
        let number = self.next_number;
        self.next_number += 1;
        write_frame(&mut stream, &Numbered { number, body: call })?;
        let reply = read_frame::<Numbered<Reply>>(&mut stream)?;
        let reply = reply.ok_or(io::ErrorKind::UnexpectedEof)?;
        if reply.number != number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer to another question"));
        }
        self.connection = Some(stream);
        Ok(reply.body)
    }

    fn judge(&self, reply: Reply) -> Result<Reply, ArbiterError> {
        match reply {
            Reply::Failed(why) => Err(ArbiterError::Failed { server: self.server.clone(), why }),
            reply => Ok(reply),
        }
    }
}

/// Pause between two attempts.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// Questions that wait for an answer; there are never more than a few different ones.
const QUESTIONS_MAX: usize = 16;

/// What a thread that asks an arbiter says.
#[derive(Debug)]
pub enum ArbiterEvent {
    /// An answer.
    Answer(Answer),
    /// The arbiter does not answer. The thread goes on asking.
    Unreachable(ArbiterError),
}

/// Asks an arbiter from a thread of its own, each question until it is answered.
pub struct ArbiterThread {
    shared: Arc<Questions>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Questions {
    state: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

impl Questions {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().expect("no thread panics while it holds the questions")
    }
}

impl ArbiterThread {
    /// Starts the thread; `sink` is called on it.
    ///
    /// # Errors
    /// If the host has no thread.
    pub fn start(
        client: ArbiterClient,
        sink: Box<dyn Fn(ArbiterEvent) + Send>,
    ) -> io::Result<ArbiterThread> {
        let shared = Arc::new(Questions::default());
        let questions = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("arbiter-client".to_owned())
            .spawn(move || questions.answer_all(client, &*sink))?;
        Ok(ArbiterThread { shared, thread: Some(thread) })
    }

    /// Asks. A question that is waiting already is not asked twice.
    pub fn ask(&self, request: Request) {
        let mut waiting = self.shared.lock();
        if waiting.requests.contains(&request) {
            return;
        }
        if waiting.requests.len() >= QUESTIONS_MAX {
            waiting.requests.pop_front();
        }
        waiting.requests.push_back(request);
        drop(waiting);
        self.shared.wake.notify_all();
    }
}

impl Drop for ArbiterThread {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has already been reported on its thread
        }
    }
}

impl Questions {
    fn answer_all(&self, mut client: ArbiterClient, sink: &(dyn Fn(ArbiterEvent) + Send)) {
        while let Some(request) = self.next() {
            match client.ask(&request) {
                Ok(answer) => {
                    self.lock().requests.retain(|other| *other != request);
                    sink(ArbiterEvent::Answer(answer));
                }
                Err(error) => {
                    sink(ArbiterEvent::Unreachable(error));
                    let waiting = self.lock();
                    if !waiting.closed {
                        drop(self.wake.wait_timeout(waiting, RETRY_EVERY));
                    }
                }
            }
        }
    }

    fn next(&self) -> Option<Request> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(request) = waiting.requests.front() {
                return Some(request.clone());
            }
            waiting = self.wake.wait(waiting).expect("as in lock");
        }
    }
}
