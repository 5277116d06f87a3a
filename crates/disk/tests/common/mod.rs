//! A server to test against, and small helpers. Not every test file uses all of them.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Generation, VmId};
use disk::client::{DialError, NbdClient, NbdOptions};
use disk::server::{Config, Handle, Server};
use disk::{Access, Backend, Badge, DiskError, DiskEvent, Extent, Op, RequestId, Stamp};

/// Nothing in these tests takes this long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A server in this process, stopped when it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(state: &Path, exports: &[String]) -> Running {
        Running::start_at("127.0.0.1:0", state, exports)
    }

    pub(crate) fn start_at(listen: &str, state: &Path, exports: &[String]) -> Running {
        let exports = exports.iter().map(|spec| spec.parse().unwrap()).collect();
        let config = Config { listen: listen.to_owned(), exports, state: state.to_owned() };
        let server = Server::bind(&config).unwrap();
        let address = server.local_addr().unwrap();
        let handle = server.handle().unwrap();
        let thread = Some(std::thread::spawn(move || server.run()));
        Running { address, handle, thread }
    }

    pub(crate) fn url(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.shutdown();
        let stopped = self.thread.take().unwrap().join();
        assert!(stopped.is_ok() || std::thread::panicking());
    }
}

/// A directory with one raw image, and a server that exports it as `disk`.
pub(crate) struct OneDisk {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) image: PathBuf,
    pub(crate) server: Running,
}

pub(crate) const DISK_SIZE: u64 = 4 << 20;

impl OneDisk {
    pub(crate) fn start() -> OneDisk {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        std::fs::File::create(&image).unwrap().set_len(DISK_SIZE).unwrap();
        let exports = [format!("disk={}", image.display())];
        let server = Running::start(&dir.path().join("state"), &exports);
        OneDisk { dir, image, server }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url("disk")
    }
}

pub(crate) fn stamp(generation: u64) -> Stamp {
    Stamp::won(Generation(generation))
}

pub(crate) fn badge(generation: u64) -> Badge {
    Badge { vm: VmId("vm".to_owned()), stamp: stamp(generation), access: Access::Write }
}

/// A client whose events can be waited for.
pub(crate) struct Client {
    pub(crate) disk: NbdClient,
    events: Receiver<DiskEvent>,
}

impl Client {
    pub(crate) fn connect(url: &str, badge: Option<Badge>) -> Result<Client, DialError> {
        let (send, events) = channel();
        let sink = Box::new(move |event| {
            let _ = send.send(event); // the test may have ended
        });
        let options = NbdOptions {
            address: url.parse().unwrap(),
            badge,
            connect_timeout: LONG,
            read_only: false,
        };
        Ok(Client { disk: NbdClient::connect(options, sink)?, events })
    }

    pub(crate) fn event(&self) -> DiskEvent {
        self.events.recv_timeout(LONG).expect("an event")
    }

    /// Skips everything else until `id` is done.
    pub(crate) fn wait(&self, id: u64) -> Result<Vec<u8>, DiskError> {
        loop {
            if let DiskEvent::Done(done) = self.event()
                && done.id == RequestId(id)
            {
                return done.result;
            }
        }
    }

    /// The next request that is done, whichever it is.
    pub(crate) fn next_done(&self) -> Result<Vec<u8>, DiskError> {
        loop {
            if let DiskEvent::Done(done) = self.event() {
                return done.result;
            }
        }
    }

    pub(crate) fn wait_attached(&self) -> Option<Stamp> {
        loop {
            if let DiskEvent::Attached { stamp } = self.event() {
                return stamp;
            }
        }
    }

    pub(crate) fn wait_deposed(&self) {
        while !matches!(self.event(), DiskEvent::Deposed { .. }) {}
    }

    pub(crate) fn perform(&self, op: Op) -> Result<Vec<u8>, DiskError> {
        self.disk.submit(RequestId(u64::MAX), op);
        self.wait(u64::MAX)
    }

    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        self.perform(Op::Read(Extent { offset, len })).unwrap()
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.perform(Op::Write { offset, data: data.to_vec(), durable: false }).map(drop)
    }
}

/// Runs a program of Debian's `qemu-utils`.
pub(crate) fn qemu(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| panic!("{program} (Debian package qemu-utils): {error}"))
}

/// Runs it and wants success; returns what it said.
pub(crate) fn qemu_ok(program: &str, args: &[&str]) -> String {
    let output = qemu(program, args);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let good = output.status.success() && !said.contains("verification failed");
    assert!(good, "{program} {args:?}: {said}");
    said
}
