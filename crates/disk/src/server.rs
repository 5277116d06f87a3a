//! The disk server: exports, fencing and the arbiter on one port.
//!
//! NBD's server speaks first, and so do we to everybody; a client that wants the arbiter says so by
//! an option in the negotiation. Each connection has its threads, and nothing that one client does
//! or fails to do holds up another, except where fencing makes a new owner wait for an old write.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::arbiter::store::Store;
use crate::arbiter::wire::{Call, Numbered, Reply, read_frame, write_frame};
use crate::backend::REQUEST_LEN_MAX;
use crate::client::{DialError, NbdOptions};
use crate::export::{Export, Refusal};
use crate::image::{ImageError, ImageOptions, open_image};
use crate::nbd::negotiate::{Exports, NegotiationError, Offer, Outcome, negotiate};
use crate::nbd::proto::{STRING_LEN_MAX, StampReply};
use crate::nbd::transmit::{TransmitError, is_timeout, transmit};
use crate::net;
use crate::open::{DiskSpec, Source};
use crate::stamp::Badge;
use crate::state::{StateDir, StateError};
use crate::storage::Storage;
use crate::upstream::Upstream;

/// Connections at the same time; one more is closed at once.
const CONNECTIONS_MAX: usize = 256;
/// A client chooses its export within this time.
const NEGOTIATION_MAX: Duration = Duration::from_secs(10);
/// A peer that stops in the middle of a message, or does not take its replies, is dropped after this.
const STALL_MAX: Duration = Duration::from_secs(30);
/// One attempt to reach the server behind an export.
const UPSTREAM_CONNECT_MAX: Duration = Duration::from_secs(5);

/// What a disk server is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// `HOST:PORT` to listen at.
    pub listen: String,
    /// What to export.
    pub exports: Vec<ExportSpec>,
    /// Where fences and the arbiter's records are kept; made if it is not there.
    pub state: PathBuf,
}

/// One export: a name, `=`, and where the disk is ([`DiskSpec`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    /// The name that clients ask for.
    pub name: String,
    /// What lies behind it. If that is another NBD server, it does the storing and we the fencing.
    pub disk: DiskSpec,
}

impl FromStr for ExportSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<ExportSpec, String> {
        let bad = |why: &str| format!("export {text:?} is not NAME=FILE[,format=F][,ro]: {why}");
        let (name, disk) = text.split_once('=').ok_or_else(|| bad("there is no ="))?;
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(char::is_control) {
            return Err(bad("the name is empty, too long, or holds control characters"));
        }
        Ok(ExportSpec {
            name: name.to_owned(),
            disk: disk.parse().map_err(|why: String| bad(&why))?,
        })
    }
}

/// The longest name of an export: with every byte escaped it still is a file's name.
const NAME_LEN_MAX: usize = 64;

/// Why a disk server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: String,
        /// What the host said.
        source: io::Error,
    },
    /// Two exports have one name.
    #[error("there are two exports named {0:?}")]
    TwoOfAName(String),
    /// An image cannot be opened.
    #[error("cannot export {name}")]
    Image {
        /// The export.
        name: String,
        /// Why.
        source: ImageError,
    },
    /// The server behind an export cannot be reached.
    #[error("cannot export {name}")]
    Upstream {
        /// The export.
        name: String,
        /// Why.
        source: DialError,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A disk server that listens but does not serve yet.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// Stops a running server from another thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
}

struct Shared {
    exports: BTreeMap<String, Arc<Export>>,
    store: Store,
    boot: Boot,
    connections: Mutex<Connections>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    streams: BTreeMap<u64, TcpStream>,
    next_id: u64,
    stopping: bool,
}

/// What changes when unflushed writes may be gone.
struct Boot {
    host: u128,
    process: u128,
}

impl Server {
    /// Opens everything that the configuration names, and listens.
    ///
    /// # Errors
    /// Any [`ServerError`].
    pub fn bind(config: &Config) -> Result<Server, ServerError> {
        let open = |spec: &ExportSpec| Ok((spec.name.clone(), open_source(spec)?));
        let storages: Result<Vec<_>, ServerError> = config.exports.iter().map(open).collect();
        Server::over(&config.listen, &config.state, storages?)
    }

    /// A server for storages that are open already, by the names of their exports.
    fn over(
        listen: &str,
        state: &Path,
        storages: Vec<(String, Box<dyn Storage>)>,
    ) -> Result<Server, ServerError> {
        let state = Arc::new(StateDir::open(state)?);
        let store = Store::open(Arc::clone(&state))?;
        let mut exports = BTreeMap::new();
        for (name, storage) in storages {
            let export = Export::open(name.clone(), storage, Arc::clone(&state))?;
            if exports.insert(name.clone(), Arc::new(export)).is_some() {
                return Err(ServerError::TwoOfAName(name));
            }
        }
        let listener = TcpListener::bind(listen)
            .map_err(|source| ServerError::Listen { address: listen.to_owned(), source })?;
        let shared = Shared {
            exports,
            store,
            boot: Boot::find(),
            connections: Mutex::default(),
            ended: Condvar::new(),
        };
        Ok(Server { listener, shared: Arc::new(shared) })
    }

    /// The address that the server listens at, with the port that the host chose for port 0.
    ///
    /// # Errors
    /// What the host says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that stops the server.
    ///
    /// # Errors
    /// If the host has no file descriptor left.
    pub fn handle(&self) -> io::Result<Handle> {
        let listener = Arc::new(self.listener.try_clone()?);
        Ok(Handle { shared: Arc::clone(&self.shared), listener })
    }

    /// Serves until the handle stops it. When this returns, every request that was taken has been
    /// carried out or dropped, and what was written is durable where the disk allows it.
    pub fn run(self) {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => self.accept(stream, peer),
                Err(_) if self.shared.stopping() => break,
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    // Most likely out of file descriptors: others have to end first.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        self.shared.wait_for_connections();
        for export in self.shared.exports.values().filter(|export| !export.storage.read_only()) {
            if let Err(error) = export.storage.flush() {
                log::error!("export {}: cannot flush: {error}", export.name);
            }
        }
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        let Some(id) = self.shared.register(&stream) else {
            log::warn!("{peer}: refused, there are {CONNECTIONS_MAX} connections already");
            return;
        };
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("nbd".to_owned());
        let spawned = thread.spawn(move || {
            let _registered = Registered { shared: &shared, id };
            shared.serve(stream, peer);
        });
        if let Err(error) = spawned {
            log::warn!("{peer}: cannot start a thread: {error}");
            self.shared.forget(id);
        }
    }
}

impl Handle {
    /// Ends every connection and makes [`Server::run`] return.
    pub fn shutdown(&self) {
        let mut connections = self.shared.lock();
        connections.stopping = true;
        for stream in connections.streams.values() {
            let _ = stream.shutdown(Shutdown::Both); // it may have ended by itself
        }
        drop(connections);
        // Wakes `accept`, which then fails.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
    }
}

fn open_source(spec: &ExportSpec) -> Result<Box<dyn Storage>, ServerError> {
    let name = spec.name.clone();
    let read_only = spec.disk.read_only;
    match &spec.disk.source {
        Source::Image { path, format } => {
            let options = ImageOptions { format: *format, read_only };
            open_image(path, options).map_err(|source| ServerError::Image { name, source })
        }
        Source::Nbd(address) => {
            let address = address.clone();
            let connect_timeout = UPSTREAM_CONNECT_MAX;
            let options = NbdOptions { address, badge: None, connect_timeout, read_only };
            let upstream = Upstream::connect(options)
                .map_err(|source| ServerError::Upstream { name, source })?;
            Ok(Box::new(upstream))
        }
    }
}

impl Boot {
    fn find() -> Boot {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let process = started ^ u128::from(std::process::id()) << 96;
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let host = host.and_then(|id| u128::from_str_radix(&id.trim().replace('-', ""), 16).ok());
        // Without the host's word, every start of ours counts as one of the host.
        Boot { host: host.unwrap_or(process), process }
    }
}

/// Takes a connection off the list when its thread ends, also by a panic.
struct Registered<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().expect("no thread panics while it holds the connections")
    }

    fn stopping(&self) -> bool {
        self.lock().stopping
    }

    fn register(&self, stream: &TcpStream) -> Option<u64> {
        let mut connections = self.lock();
        if connections.stopping || connections.streams.len() >= CONNECTIONS_MAX {
            return None;
        }
        let id = connections.next_id;
        connections.next_id += 1;
        connections.streams.insert(id, stream.try_clone().ok()?);
        Some(id)
    }

    fn forget(&self, id: u64) {
        self.lock().streams.remove(&id);
        self.ended.notify_all();
    }

    fn wait_for_connections(&self) {
        let mut connections = self.lock();
        while !connections.streams.is_empty() {
            connections = self.ended.wait(connections).expect("as in lock");
        }
    }

    /// Serves one connection to its end; whatever goes wrong is reported once.
    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.serve_or_fail(&stream) {
            let cause = std::error::Error::source(&error);
            let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
            log::info!("{peer}: {error}{cause}");
        }
        let _ = stream.shutdown(Shutdown::Both); // the peer may have closed it already
    }

    fn serve_or_fail(&self, stream: &TcpStream) -> Result<(), ConnectionError> {
        net::prepare(stream, STALL_MAX)?;
        let mut timed = Timed { stream, deadline: Instant::now() + NEGOTIATION_MAX };
        let outcome = negotiate(&mut timed, self)?;
        stream.set_read_timeout(Some(STALL_MAX))?;
        match outcome {
            Outcome::Left => Ok(()),
            Outcome::Arbiter => self.arbitrate(stream),
            Outcome::Transmission { export, badge } => {
                let end = stream.try_clone()?;
                let cut = move || {
                    let _ = end.shutdown(Shutdown::Both); // it may have ended by itself
                };
                let export = self.exports.get(&export).ok_or(Refusal::Unknown(export))?;
                let session = export.join(badge, Box::new(cut))?;
                let reader = BufReader::with_capacity(64 << 10, stream);
                let hang_up = || {
                    let _ = stream.shutdown(Shutdown::Both); // it may have ended by itself
                };
                Ok(transmit(reader, stream, &session, &hang_up)?)
            }
        }
    }

    fn arbitrate(&self, mut stream: &TcpStream) -> Result<(), ConnectionError> {
        loop {
            let call = match read_frame::<Numbered<Call>>(&mut stream) {
                Ok(Some(call)) => call,
                Ok(None) => return Ok(()),
                // A client that has nothing to ask connects again when it has.
                Err(error) if is_timeout(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let reply = Numbered { number: call.number, body: self.store.handle(&call.body) };
            if let Reply::Answer(answer) = &reply.body
                && answer.outcome != ft::arbiter::Outcome::Record
            {
                log::info!("VM {}: {:?} -> {:?}", answer.vm, answer.op, answer.outcome);
            }
            write_frame(&mut stream, &reply)?;
        }
    }

    fn export(&self, name: &str) -> Result<&Arc<Export>, Refusal> {
        let mut all = self.exports.values();
        match (name, all.next(), all.next()) {
            // The only export is the default one.
            ("", Some(only), None) => Ok(only),
            _ => self
                .exports
                .get(name)
                .ok_or_else(|| Refusal::Unknown(name.chars().take(STRING_LEN_MAX).collect())),
        }
    }
}

impl Exports for Shared {
    fn names(&self) -> Vec<String> {
        self.exports.keys().cloned().collect()
    }

    fn offer(&self, name: &str, badge: Option<&Badge>) -> Result<Offer, Refusal> {
        let export = self.export(name)?;
        Ok(Offer {
            name: export.name.clone(),
            size: export.storage.size(),
            read_only: !export.writable_by(badge),
            align: export.storage.align(),
            request_len_max: REQUEST_LEN_MAX,
        })
    }

    fn show(&self, name: &str, badge: &Badge) -> Result<StampReply, Refusal> {
        let export = self.export(name)?;
        export.show(badge)?;
        log::info!("export {}: VM {} shows {}", export.name, badge.vm, badge.stamp);
        let kept = export.storage.outlives_process();
        Ok(StampReply { boot: if kept { self.boot.host } else { self.boot.process } })
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    #[error(transparent)]
    Transmit(#[from] TransmitError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A stream on which everything has to be done by one moment.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut stream = self.stream;
        stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use base::{Generation, VmId};
    use ft::Stamp;

    use super::*;
    use crate::backend::{Backend, DiskEvent, Op, RequestId};
    use crate::client::NbdClient;
    use crate::stamp::Access;

    #[test]
    fn exports_are_understood_or_refused() {
        let spec = "disk=/a=b,ro".parse::<ExportSpec>().unwrap();
        assert_eq!((&*spec.name, spec.disk), ("disk", "/a=b,ro".parse().unwrap()));
        let long = format!("{}=x", "n".repeat(65));
        for bad in ["disk", "=x", "d=", "d=x,format=vmdk", "a\nb=x", &long] {
            assert!(bad.parse::<ExportSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_server_cannot_start_with_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, [0; 512]).unwrap();
        let try_it = |listen: &str, state: &str, exports: &[String]| {
            let exports = exports.iter().map(|spec| spec.parse().unwrap()).collect();
            let config =
                Config { listen: listen.to_owned(), exports, state: dir.path().join(state) };
            Server::bind(&config).err().map(|error| error.to_string()).unwrap_or_default()
        };
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        assert_eq!(try_it(&taken, "state", &[]), format!("cannot listen at {taken}"));
        let free = "127.0.0.1:0";
        let here = format!("a={}", image.display());
        assert!(try_it(free, "disk.img", &[]).starts_with("cannot use state directory"));
        assert_eq!(try_it(free, "state", &["a=/nowhere".to_owned()]), "cannot export a");
        assert_eq!(try_it(free, "state", &[here.clone(), here.clone()]), "cannot export a");
        assert_eq!(try_it(free, "state", &["a=nbd://127.0.0.1:1/x".to_owned()]), "cannot export a");
        std::fs::create_dir_all(dir.path().join("bad")).unwrap();
        std::fs::write(dir.path().join("bad/export-a.fence"), "nonsense").unwrap();
        assert!(try_it(free, "bad", &[here]).contains("export-a.fence is damaged"));
    }

    /// A disk whose writes by the old side stay on their way until the test lets them land.
    struct Slow {
        entered: Mutex<Sender<()>>,
        release: Mutex<Receiver<()>>,
        landed: Arc<Mutex<Vec<u8>>>,
    }

    const OLD: u8 = 1;
    const NEW: u8 = 2;

    impl Storage for Slow {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, data: &[u8], _: u64) -> io::Result<()> {
            if data[0] == OLD {
                self.entered.lock().unwrap().send(()).unwrap();
                self.release.lock().unwrap().recv().unwrap();
            }
            self.landed.lock().unwrap().push(data[0]);
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn trim(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn connect(
        address: SocketAddr,
        generation: u64,
        access: Access,
    ) -> Result<(NbdClient, Receiver<DiskEvent>), DialError> {
        let (send, events) = channel();
        let stamp = Stamp::won(Generation(generation));
        let badge = Badge { vm: VmId("vm".to_owned()), stamp, access };
        let options = NbdOptions {
            address: format!("nbd://{address}/disk").parse().unwrap(),
            badge: Some(badge),
            connect_timeout: Duration::from_secs(60),
            read_only: false,
        };
        let sink = Box::new(move |event| {
            let _ = send.send(event); // the test may have seen enough
        });
        Ok((NbdClient::connect(options, sink)?, events))
    }

    /// behaviours 118, 150, 158
    #[test]
    fn a_deposed_sides_writes_in_flight_land_before_the_winners_first_or_never() {
        let (entered, has_entered) = channel();
        let (release, released) = channel();
        let landed = Arc::new(Mutex::new(Vec::new()));
        let slow = Slow {
            entered: Mutex::new(entered),
            release: Mutex::new(released),
            landed: Arc::clone(&landed),
        };
        let dir = tempfile::tempdir().unwrap();
        let storages: Vec<(String, Box<dyn Storage>)> = vec![("disk".to_owned(), Box::new(slow))];
        let server = Server::over("127.0.0.1:0", dir.path(), storages).unwrap();
        let address = server.local_addr().unwrap();
        let handle = server.handle().unwrap();
        let server = thread::spawn(move || server.run());

        // More than the server carries out at once: some are in the storage, some wait their turn.
        let (old, old_events) = connect(address, 1, Access::Write).unwrap();
        for id in 0..20 {
            let data = vec![OLD; 512];
            old.submit(RequestId(id), Op::Write { offset: id * 512, data, durable: false });
        }
        has_entered.recv().unwrap();

        let (told, answer) = channel();
        let winner = thread::spawn(move || {
            let (new, events) = connect(address, 2, Access::Write).unwrap();
            told.send(()).unwrap();
            new.submit(RequestId(0), Op::Write { offset: 0, data: vec![NEW], durable: false });
            while !matches!(events.recv().unwrap(), DiskEvent::Done(_)) {}
        });
        // The old stamp is refused as soon as the new one was seen, also while its writes are still
        // on their way; the winner's answer waits for those.
        while connect(address, 1, Access::Read).is_ok() {}
        assert!(answer.try_recv().is_err(), "the winner was answered before the old write landed");
        assert!(landed.lock().unwrap().is_empty());
        for _ in 0..20 {
            let _ = release.send(()); // only some of them are waiting
        }
        answer.recv().unwrap();
        winner.join().unwrap();
        while !matches!(old_events.recv().unwrap(), DiskEvent::Deposed { .. }) {}

        handle.shutdown();
        drop(old);
        server.join().unwrap();
        let landed = landed.lock().unwrap();
        assert_eq!(landed.last(), Some(&NEW));
        assert_eq!(landed.iter().filter(|side| **side == NEW).count(), 1);
        assert!(landed.len() < 20, "what had only been queued is dropped");
    }
}
