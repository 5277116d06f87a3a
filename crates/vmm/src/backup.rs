//! `lockstep backup`: waits for a primary, follows it, and takes its VM over if it fails.
//!
//! The process serves one pairing after the other, each under a new claimant, until it has taken over
//! a VM: from then on it is that VM's process and ends with it.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use base::Claimant;
use ft::Message;
use ft::arbiter::Record;
use ft::{Hello, Node, Timing};
use host::Wake;

use crate::config::BackupConfig;
use crate::conn::Conn;
use crate::console::ConsoleHub;
use crate::control::{Reply, Request, StatusReport};
use crate::desk::{Desk, Tenant};
use crate::engine::{Engine, Links, describe};
use crate::mailbox::{Mailbox, Outbox};
use crate::nets::Nets;
use crate::opening::Overrides;
use crate::run::{RunError, RunReport, listen, machine_kind, open_timeline, spawn_machine};
use crate::rundir::RunDirError;
use crate::shell::{Arbiter, Body, Ended, Event, Outcome, Parts, Post, Shell};
use crate::wire;

/// Serves primaries until a VM that was taken over has ended, or until a signal. `None` if none was.
///
/// # Errors
/// A [`RunError`] if the process could not begin.
pub fn run(config: &BackupConfig) -> Result<Option<RunReport>, RunError> {
    let began = std::time::Instant::now();
    // A host that cannot have the engine says so now, not when a primary comes.
    config.engine.make()?;
    let wake = Arc::new(Wake::new()?);
    let post = Post::new(wake.clone());
    let listener = listen(config.listen)?;
    let addr = listener.local_addr()?;
    let udp = UdpSocket::bind(addr).map_err(|source| RunError::Listen { addr, source })?;
    udp.set_nonblocking(true)?;
    let desk = Desk::new(post.clone(), config.site.run_dir.clone());
    let signal_post = post.clone();
    host::signals::on_end_signal(move |_| signal_post.put(Event::EndSignal))?;
    desk.serve_tcp(listener, config.site.security.clone(), true)?;
    log::info!("waiting for a primary on {addr}");

    let waiting = Waiting { config, wake, post, desk, udp };
    while let Some((conn, decoder, hello)) = waiting.for_primary() {
        let vm = hello.vm.clone();
        match waiting.serve(conn, decoder, hello) {
            Ok(Outcome { ended, totals, lived: true }) => {
                return Ok(Some(RunReport { vm, ended, totals, elapsed: began.elapsed() }));
            }
            Ok(Outcome { ended: Ended::Stopped, .. }) => return Ok(None),
            Ok(Outcome { ended, .. }) => log::warn!("VM {vm}: {ended}; waiting for a primary"),
            Err(error) => log::error!("cannot become the backup of VM {vm}: {}", describe(&error)),
        }
    }
    Ok(None)
}

struct Waiting<'config> {
    config: &'config BackupConfig,
    wake: Arc<Wake>,
    post: Arc<Post>,
    desk: Arc<Desk>,
    udp: UdpSocket,
}

impl Waiting<'_> {
    /// The next primary that calls; `None` if a signal comes first.
    fn for_primary(&self) -> Option<(Conn, wire::Decoder, Hello)> {
        loop {
            match self.post.take() {
                Some(Event::Incoming { conn, decoder, first: Message::Hello(hello) }) => {
                    return Some((conn, decoder, hello));
                }
                Some(Event::Ask(request, reply)) => {
                    let _ = reply.send(answer(&request)); // the client may have left
                }
                Some(Event::EndSignal) => return None,
                // A primary of a pairing that is over, or late news of the last VM's.
                Some(_) => {}
                None => {
                    let waited = host::wait_readable(None, &self.wake, None);
                    if waited.is_err() {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }

    /// Is the backup of one primary, to the end.
    fn serve(&self, conn: Conn, decoder: wire::Decoder, hello: Hello) -> Result<Outcome, RunError> {
        let site = &self.config.site;
        let vm = hello.vm.clone();
        let name = crate::config::check_name(&vm.0).map_err(|why| {
            RunError::RunDir(RunDirError::Directory {
                path: why.into(),
                source: std::io::ErrorKind::InvalidFilename.into(),
            })
        })?;
        let claimant = Claimant(host::random_u128());
        let socket = site.run_dir.listen(&name.0)?;
        site.run_dir.add_claimant(&name.0, &claimant.to_string())?;
        let (mailbox, hubs) = (Arc::<Mailbox>::default(), <[Arc<ConsoleHub>; 2]>::default());
        let owner = Arc::new(AtomicBool::new(false));
        self.desk.set_tenant(Some(Tenant {
            vm: vm.0.clone(),
            claimant: claimant.to_string(),
            mailbox: mailbox.clone(),
            hubs: hubs.clone(),
            owner: owner.clone(),
        }));
        self.desk.serve_unix(socket.listener.try_clone()?)?;
        let outbox = Arc::new(Outbox::new(self.wake.clone()));
        let links = Links {
            mailbox: mailbox.clone(),
            outbox: outbox.clone(),
            serial: hubs[0].clone(),
            marker: machine::Marker::default(),
        };
        let kind = self.config.engine;
        let thread = spawn_machine(
            move || Engine::new(links, None, None).run_backup(kind),
            self.post.clone(),
        )?;
        let node_config = ft::Config {
            vm: vm.clone(),
            claimant,
            host: site.host,
            machine: machine_kind(),
            timing: Timing::default(),
        };
        let parts = Parts {
            site: site.clone(),
            vm,
            claimant,
            node: Node::backup(host::clock::boottime(), node_config),
            post: self.post.clone(),
            wake: self.wake.clone(),
            body: Body {
                mailbox,
                outbox,
                thread: Some(thread),
                nets: Nets::default(),
                disk_specs: Vec::new(),
                disks: None,
                in_flight: Vec::new(),
            },
            hubs,
            arbiter: Arbiter::Own(Record::default()),
            timeline: open_timeline(site)?,
            backups: self.config.backups.clone(),
            opening: None,
            udp: Some(self.udp.try_clone()?),
            overrides: Overrides {
                nets: self.config.nets.clone(),
                disks: self.config.disks.clone(),
                arbiter: self.config.arbiter.clone(),
            },
            warnings: Vec::new(),
            owner,
        };
        let mut shell = Shell::new(parts, true);
        if !shell.handle_incoming(conn, decoder, Message::Hello(hello)) {
            shell.refuse();
        }
        let outcome = shell.run();
        self.desk.set_tenant(None);
        Ok(outcome)
    }
}

/// What a process without a VM answers.
fn answer(request: &Request) -> Reply {
    match request {
        Request::Status => Reply::Status(Box::new(StatusReport {
            role: "waiting".to_owned(),
            state: "notConfigured".to_owned(),
            ..StatusReport::default()
        })),
        _ => Reply::Error { message: "this process waits for a primary and has no VM".to_owned() },
    }
}
