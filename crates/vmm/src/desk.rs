//! Where control clients and other hosts come in: listeners, and what answers them.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ft::Message;
use host::{Waited, Wake, wait_any};
use machine::event::Console;
use std::os::fd::AsFd;

use crate::conn::Conn;
use crate::console::ConsoleHub;
use crate::control::{self, FIRST_BYTE, Handler, Reply, Request};
use crate::engine::console_index;
use crate::key::Security;
use crate::mailbox::Mailbox;
use crate::rundir::RunDir;
use crate::shell::{Event, Post};
use crate::wire;

/// Clients at the same time; one more is turned away.
const CLIENTS_MAX: usize = 64;
/// The protocol's thread answers within this time, or the process is in trouble.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A peer says what it wants within this time.
const FIRST_WORDS_MAX: Duration = Duration::from_secs(5);

/// A process's counter: one for as long as the process lives, whatever VM it has at the moment.
#[derive(Debug)]
pub(crate) struct Desk {
    post: Arc<Post>,
    run_dir: RunDir,
    tenant: Mutex<Option<Tenant>>,
    clients: AtomicUsize,
}

/// The VM that the process has at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) vm: String,
    pub(crate) claimant: String,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) hubs: [Arc<ConsoleHub>; 2],
    pub(crate) owner: Arc<AtomicBool>,
}

impl Desk {
    pub(crate) fn new(post: Arc<Post>, run_dir: RunDir) -> Arc<Desk> {
        let (tenant, clients) = (Mutex::new(None), AtomicUsize::new(0));
        Arc::new(Desk { post, run_dir, tenant, clients })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Tenant>> {
        self.tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_tenant(&self, tenant: Option<Tenant>) {
        *self.lock() = tenant;
    }

    /// Serves control clients that come over the Unix socket.
    pub(crate) fn serve_unix(self: &Arc<Desk>, listener: UnixListener) -> io::Result<()> {
        let desk = self.clone();
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => desk.clone().with_client(move |desk| {
                        if let Ok(conn) = Conn::local(stream) {
                            control::serve(conn, Vec::new(), desk);
                        }
                    }),
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(())
    }

    /// Serves control clients that come over TCP, and hands primaries to the protocol's thread if
    /// they are welcome here.
    pub(crate) fn serve_tcp(
        self: &Arc<Desk>,
        listener: TcpListener,
        security: Security,
        takes_primaries: bool,
    ) -> io::Result<()> {
        let desk = self.clone();
        thread::Builder::new().name("listen".to_owned()).spawn(move || {
            loop {
                let security = security.clone();
                match listener.accept() {
                    Ok((stream, _)) => desk.clone().with_client(move |desk| {
                        desk.receive(stream, &security, takes_primaries);
                    }),
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(())
    }

    /// Has `serve` run on a thread of its own, unless there are too many.
    fn with_client(self: Arc<Desk>, serve: impl FnOnce(&Desk) + Send + 'static) {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let desk = self.clone();
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(move || {
            serve(&desk);
            desk.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn receive(&self, stream: TcpStream, security: &Security, takes_primaries: bool) {
        let peer = stream.peer_addr().map_or("a peer".to_owned(), |addr| addr.to_string());
        let mut conn = match Conn::accept(stream, security) {
            Ok(conn) => conn,
            Err(error) => return log::warn!("{}", crate::engine::describe(&error)),
        };
        match first_words(&mut conn) {
            Ok(FirstWords::Control(read)) => control::serve(conn, read, self),
            Ok(FirstWords::Channel(decoder, first)) if takes_primaries => {
                self.post.put(Event::Incoming { conn, decoder, first });
            }
            Ok(FirstWords::Channel(..)) => log::warn!("{peer} took this process for a backup"),
            Err(why) => log::warn!("{peer} was turned away: {why}"),
        }
    }
}

/// What a peer wants.
enum FirstWords {
    /// It speaks the control protocol; this was read.
    Control(Vec<u8>),
    /// It speaks the logging channel's; this is its first message.
    Channel(wire::Decoder, Message),
}

fn first_words(conn: &mut Conn) -> Result<FirstWords, String> {
    let wake = Wake::new().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + FIRST_WORDS_MAX;
    let mut decoder = wire::Decoder::default();
    loop {
        let open = conn.read(decoder.buffer()).map_err(|error| error.to_string())?;
        if decoder.buffer().first() == Some(&FIRST_BYTE) {
            return Ok(FirstWords::Control(std::mem::take(decoder.buffer())));
        }
        if let Some(first) = decoder.poll_message().map_err(|error| error.to_string())? {
            if !matches!(first, Message::Hello(_) | Message::Resume { .. }) {
                return Err("its first message is no greeting".to_owned());
            }
            return Ok(FirstWords::Channel(decoder, first));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !open || left.is_zero() {
            return Err("it left, or said nothing, before it was known what it wants".to_owned());
        }
        let mut waited = [Waited { fd: conn.as_fd(), writable: false, ready: None }];
        wait_any(&mut waited, &wake, Some(left)).map_err(|error| error.to_string())?;
    }
}

impl Handler for Desk {
    fn answer(&self, request: Request) -> Reply {
        if let Request::Gone { vm, claimant } = &request {
            let tenant = self.lock().clone();
            let own = tenant.filter(|tenant| tenant.vm == *vm).map(|tenant| tenant.claimant);
            return Reply::Gone { gone: self.run_dir.is_gone(vm, claimant, own.as_deref()) };
        }
        let (reply, answer) = mpsc::channel();
        self.post.put(Event::Ask(request, reply));
        answer.recv_timeout(ANSWER_MAX).unwrap_or_else(|_| Reply::Error {
            message: "the process does not answer; it may be about to end".to_owned(),
        })
    }

    fn console(&self, console: Console) -> Arc<ConsoleHub> {
        let tenant = self.lock();
        let hub = tenant.as_ref().map(|tenant| tenant.hubs[console_index(console)].clone());
        hub.unwrap_or_default()
    }

    fn typed(&self, console: Console, bytes: &[u8]) -> bool {
        let tenant = self.lock().clone();
        match tenant {
            Some(tenant) if tenant.owner.load(Ordering::Relaxed) => {
                tenant.mailbox.console(console, bytes)
            }
            // Input goes to the owner only.
            _ => true,
        }
    }
}
