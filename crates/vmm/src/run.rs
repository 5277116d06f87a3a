//! `lockstep run`: powers a VM on and runs it, alone or as the primary of a pair.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base::{Claimant, Digest, Generation, Icount, LogPos, SeededRng, VmId};
use disk::arbiter::client::{ArbiterClient, ArbiterError};
use engines::{BoxedEngine, Unavailable};
use ft::arbiter::{Op, Outcome as Decision, Record, Refusal, Request as Question};
use ft::{Node, Stamp};
use host::Wake;
use host::link::LinkError;
use machine::{
    BootPayload, ClockMode, CpuModel, DiskConfig, Machine, MachineConfig, MachineError, Marker,
    NicConfig, Profile,
};
use replay::Shadow;

use crate::config::{Compare, Protection, RunConfig, Site, default_mac};
use crate::conn::Conn;
use crate::console::ConsoleHub;
use crate::control::{Client, Reply, Request};
use crate::desk::{Desk, Tenant};
use crate::disks::{DiskOpenError, OpenDisks};
use crate::engine::{Engine, Links, describe};
use crate::mailbox::{Mailbox, Outbox, Totals};
use crate::nets::Nets;
use crate::opening::{Opening, OpeningNet, Overrides};
use crate::recording::{Recording, RecordingError};
use crate::rundir::RunDirError;
use crate::sampler::Sampler;
use crate::shell::{Arbiter, Body, Ended, Event, Parts, Post, Shell, destination};
use crate::terminal::Terminal;
use crate::timeline::Timeline;

/// Largest kernel or initrd.
const FILE_LEN_MAX: u64 = 2 << 30;
/// An arbiter that is just being started is asked for this long.
const ARBITER_PATIENCE: Duration = Duration::from_secs(10);
const ARBITER_TIMEOUT: Duration = Duration::from_secs(2);
/// What the RTC of a guest on the virtual clock starts at: 2026-01-01 00:00:00 UTC.
const VIRTUAL_RTC_START_S: u64 = 1_767_225_600;

/// Why a VM was not powered on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file to boot from.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskOpenError),
    /// A network link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engines::Unavailable),
    /// The recording.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The run directory, or the VM's name is taken.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The control address.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The timeline's file.
    #[error("cannot open timeline {}", path.display())]
    Timeline {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The arbiter does not answer.
    #[error("the arbiter does not answer, so nobody knows whether another copy of the VM runs")]
    Arbiter(#[from] ArbiterError),
    /// The arbiter refuses.
    #[error("VM {vm} is not powered on")]
    Refused {
        /// The VM.
        vm: VmId,
        /// Why.
        source: Refusal,
    },
    /// The arbiter gave an answer that fits no question.
    #[error("the arbiter answered a power-on with {0:?}")]
    OddAnswer(Decision),
    /// No thread, no eventfd, no signal handler.
    #[error("the host is short of resources")]
    Host(#[from] io::Error),
}

/// A VM's life, for people and scripts.
#[derive(Debug)]
pub struct RunReport {
    /// The VM.
    pub vm: VmId,
    /// Why it ended.
    pub ended: Ended,
    /// In numbers, if the machine got that far.
    pub totals: Option<Totals>,
    /// Wall time.
    pub elapsed: Duration,
}

/// Runs a VM to its end, with its console on standard input and output.
///
/// # Errors
/// A [`RunError`] if it was not powered on.
pub fn run(config: &RunConfig) -> Result<RunReport, RunError> {
    let began = Instant::now();
    let payload = BootPayload {
        kernel: read_file("kernel", &config.kernel)?,
        initrd: config.initrd.as_deref().map(|path| read_file("initrd", path)).transpose()?,
        cmdline: config.append.clone(),
    };
    let engine = match config.compare {
        Some(compare) => Some(engine_to_compare(compare)?),
        None => config.engine.make()?,
    };
    engines::warn_of_lacks(config.engine, config.cpu);
    let wake = Arc::new(Wake::new()?);
    let (mailbox, post) = (Arc::<Mailbox>::default(), Post::new(wake.clone()));
    let outbox = Arc::new(Outbox::new(wake.clone()));
    let hubs: [Arc<ConsoleHub>; 2] = Default::default();
    let claimant = Claimant(host::random_u128());
    let owner = Arc::new(AtomicBool::new(false));
    let timeline = open_timeline(&config.site)?;

    let socket = match config.site.run_dir.listen(&config.vm.0) {
        // The pair's safety rests on the name; a VM alone can do without being found.
        Err(error) if config.protection.is_none() => {
            log::warn!("status, console and power will not find this VM: {}", describe(&error));
            None
        }
        socket => Some(socket?),
    };
    let desk = Desk::new(post.clone(), config.site.run_dir.clone());
    desk.set_tenant(Some(Tenant {
        vm: config.vm.0.clone(),
        claimant: claimant.to_string(),
        mailbox: mailbox.clone(),
        hubs: hubs.clone(),
        owner: owner.clone(),
    }));
    let tcp = config.site.listen.map(listen).transpose()?;

    let (generation, arbiter) = own_the_vm(config, claimant, &post)?;
    let stamp = config.protection.as_ref().map(|_| Stamp::won(generation));
    let to = destination(&mailbox, &post);
    let disks = OpenDisks::open(&config.disks, &config.vm, stamp, &to)?;
    let mut machine = Machine::new(machine_config(config, &disks), payload)?;
    machine.set_engine(engine);
    let marker = Marker::default();
    if config.profile {
        machine.set_profile(Some(Profile::new(marker.clone())));
    }
    let shadow = config.compare.map(|compare| shadow(config, compare, &machine)).transpose()?;
    let recording = config.record.as_deref().map(|path| record(path, &machine)).transpose()?;
    let macs = (0..).map(|index| default_mac(&config.mac_base, index));
    let nets: Vec<OpeningNet> = (config.nets.iter().zip(macs))
        .map(|(net, mac)| OpeningNet { link: net.link.clone(), mac: net.mac.unwrap_or(mac) })
        .collect();
    let links: Vec<_> = nets.iter().map(|net| (net.link.clone(), net.mac)).collect();
    let open_nets = Nets::open(&links, &mailbox)?;
    open_nets.go_live();

    if let Some(socket) = &socket {
        desk.serve_unix(socket.listener.try_clone()?)?;
    }
    if let Some(listener) = tcp {
        desk.serve_tcp(listener, config.site.security.clone(), false)?;
    }
    // From here on the terminal's modes have to be put back.
    let signal_post = post.clone();
    host::signals::on_end_signal(move |_| signal_post.put(Event::EndSignal))?;
    let terminal = Terminal::attach(&hubs[0], &mailbox, &post)?;
    let rng = (config.clock == ClockMode::Virtual).then(|| SeededRng::new(config.seed));
    let serial = hubs[0].clone();
    let engine_links =
        Links { mailbox: mailbox.clone(), outbox: outbox.clone(), serial, marker: marker.clone() };
    let sampler = config.profile.then(|| Sampler::start(marker)).transpose()?;
    let thread_body = Engine::new(engine_links, rng, recording);
    let thread = spawn_machine(move || thread_body.run_powered_on(machine, shadow), post.clone())?;

    let opening = Opening {
        nets,
        disks: config.disks.clone(),
        arbiter: config.protection.as_ref().map(|protection| protection.arbiter.clone()),
        peers: config.site.address().into_iter().collect(),
    };
    let timing = config.protection.as_ref().map(|protection| protection.timing);
    let node_config = ft::Config {
        vm: config.vm.clone(),
        claimant,
        host: config.site.host,
        machine: machine_kind(),
        timing: timing.unwrap_or_default(),
    };
    let node = Node::solo(host::clock::boottime(), node_config, generation, LogPos(0));
    let parts = Parts {
        site: config.site.clone(),
        vm: config.vm.clone(),
        claimant,
        node,
        post: post.clone(),
        wake,
        body: Body {
            mailbox,
            outbox,
            thread: Some(thread),
            nets: open_nets,
            disk_specs: config.disks.clone(),
            disks: Some(disks),
            in_flight: Vec::new(),
        },
        hubs,
        arbiter,
        timeline,
        backups: config.protection.as_ref().map_or(Vec::new(), |p| p.backups.clone()),
        opening: Some(opening),
        udp: None,
        overrides: Overrides::default(),
        warnings: warnings(config),
        owner,
    };
    let mut shell = Shell::new(parts, false);
    shell.note_power_on(generation);
    if config.protection.is_some() {
        shell.note_peers();
    }
    if config.protection.as_ref().is_some_and(|protection| !protection.backups.is_empty()) {
        shell.pair_at_power_on();
    }
    let mut outcome = shell.run();
    if let (Some(sampler), Some(totals)) = (sampler, &mut outcome.totals) {
        totals.time = sampler.finish();
    }
    terminal.detach(outcome.ended != Ended::Stopped);
    drop(socket);
    Ok(RunReport {
        vm: config.vm.clone(),
        ended: outcome.ended,
        totals: outcome.totals,
        elapsed: began.elapsed(),
    })
}

/// What has to be equal on both sides: the build, and which CPU models it knows. The configuration, the CPU's
/// model with it, travels with the machine.
#[must_use]
pub fn machine_kind() -> Digest {
    let version = env!("CARGO_PKG_VERSION");
    let models = [CpuModel::V2, CpuModel::ALL].map(|model| model.to_string());
    let preamble = replay::format::PREAMBLE;
    Digest::of(format!("lockstep {version} {models:?} {preamble:?}").as_bytes())
}

/// Runs the machine on a thread of its own. Should it panic, which is a bug of ours, the process ends
/// at once: the other side then takes over, and nothing is computed on broken ground.
pub(crate) fn spawn_machine(
    run: impl FnOnce() + Send + 'static,
    post: Arc<Post>,
) -> io::Result<JoinHandle<()>> {
    struct Alarm(Arc<Post>);
    impl Drop for Alarm {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.put(Event::MachineBroke);
            }
        }
    }
    thread::Builder::new().name("vcpu0".to_owned()).spawn(move || {
        let _alarm = Alarm(post);
        run();
    })
}

pub(crate) fn open_timeline(site: &Site) -> Result<Timeline, RunError> {
    Timeline::open(site.events.as_deref()).map_err(|source| RunError::Timeline {
        path: site.events.clone().unwrap_or_default(),
        source,
    })
}

pub(crate) fn listen(addr: std::net::SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(addr).map_err(|source| RunError::Listen { addr, source })
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, RunError> {
    let failed = |source| RunError::Read { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.file_type().is_char_device() {
        return Err(failed(io::Error::other("it is a device, which has no end")));
    }
    // A pipe does not say how much will come.
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// The engine that runs the guest when it is compared with the interpreter.
fn engine_to_compare(compare: Compare) -> Result<BoxedEngine, Unavailable> {
    engines::translator(usize::try_from(compare.every).unwrap_or(usize::MAX))
}

fn shadow(config: &RunConfig, compare: Compare, machine: &Machine) -> Result<Shadow, MachineError> {
    let equip = Arc::new(move |machine: &mut Machine| {
        // It was had before; if the host is short of memory now, there is nothing to compare.
        let engine = engine_to_compare(compare).expect("memory for another translator");
        machine.set_engine(Some(engine));
    });
    Shadow::new(machine, LogPos(0), (compare.every, config.seed), equip)
}

fn record(path: &Path, machine: &Machine) -> Result<Recording, RecordingError> {
    log::warn!(
        "{} will hold everything the guest is given, passwords and keys too; keep it as safe as its disk",
        path.display()
    );
    Recording::create(path, &machine.save(), LogPos(0), Icount(0))
}

fn machine_config(config: &RunConfig, disks: &OpenDisks) -> MachineConfig {
    let virtual_clock = config.clock == ClockMode::Virtual;
    let mut seed_key = [0; 32];
    if virtual_clock {
        seed_key[..8].copy_from_slice(&config.seed.to_le_bytes());
    } else {
        host::entropy(&mut seed_key);
    }
    let now_s = host::clock::wall().0 / 1_000_000_000;
    let disk = |(index, info): (usize, disk::DiskInfo)| DiskConfig {
        bytes: info.size,
        read_only: info.read_only,
        serial: format!("lockstep-disk{index}"),
    };
    let nic = |(index, net): (usize, &crate::config::NetSpec)| NicConfig {
        mac: net.mac.unwrap_or_else(|| default_mac(&config.mac_base, index)),
    };
    MachineConfig {
        cpu: config.cpu,
        ram_bytes: config.ram_bytes,
        disks: disks.infos().into_iter().enumerate().map(disk).collect(),
        nics: config.nets.iter().enumerate().map(nic).collect(),
        debug_exit: config.debug_exit,
        reboots: !config.no_reboot,
        clock: config.clock,
        rtc_start_s: if virtual_clock { VIRTUAL_RTC_START_S } else { now_s },
        seed_key,
    }
}

fn warnings(config: &RunConfig) -> Vec<String> {
    let unfenced = config
        .disks
        .iter()
        .filter(|disk| config.protection.is_some() && !disk.fenced && !disk.is_local());
    let warn = |disk: &crate::config::DiskSpec| {
        format!("disk {disk} has no fencing: a side that was replaced may still write to it")
    };
    let warnings: Vec<String> = unfenced.map(warn).collect();
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    warnings
}

/// Makes this process the VM's owner: the arbiter says so, or there is nobody else to ask.
fn own_the_vm(
    config: &RunConfig,
    claimant: Claimant,
    post: &Arc<Post>,
) -> Result<(Generation, Arbiter), RunError> {
    let Some(protection) = &config.protection else {
        let mut record = Record::default();
        let op = power_on(&record, claimant, Vec::new(), false);
        let answer = record.handle(&Question { vm: config.vm.clone(), op });
        return Ok((answer.record.generation(), Arbiter::Own(record)));
    };
    config.site.run_dir.add_claimant(&config.vm.0, &claimant.to_string())?;
    let generation = ask_to_power_on(config, protection, claimant)?;
    let own = (config.vm.clone(), claimant);
    let arbiter = Arbiter::server(&protection.arbiter, own, &config.site, post)?;
    Ok((generation, arbiter))
}

fn power_on(record: &Record, claimant: Claimant, dead: Vec<Claimant>, force: bool) -> Op {
    Op::PowerOn { claimant, seen: record.generation(), dead, copy: None, force }
}

fn ask_to_power_on(
    config: &RunConfig,
    protection: &Protection,
    claimant: Claimant,
) -> Result<Generation, RunError> {
    let vm = &config.vm;
    let mut client = ArbiterClient::new(protection.arbiter.as_str(), ARBITER_TIMEOUT);
    let query = Question { vm: vm.clone(), op: Op::Query };
    let record = client.ask_for(&query, ARBITER_PATIENCE)?.record;
    let known = client.look(vm)?.map_or(Vec::new(), |status| status.addresses);
    let own = claimant.to_string();
    let dead: Vec<Claimant> = record
        .may_run()
        .into_iter()
        .filter(|other| {
            let address = known.iter().rfind(|(of, _)| of == other).map(|(_, address)| address);
            config.site.run_dir.is_gone(&vm.0, &other.to_string(), Some(&own))
                || address.is_some_and(|address| says_gone(address, *other, config))
        })
        .collect();
    let op = power_on(&record, claimant, dead, protection.force);
    let answer = client.ask_for(&Question { vm: vm.clone(), op }, ARBITER_PATIENCE)?;
    match answer.outcome {
        Decision::PoweredOn { generation } => Ok(generation),
        Decision::Refused(source) => Err(RunError::Refused { vm: vm.clone(), source }),
        odd => Err(RunError::OddAnswer(odd)),
    }
}

/// Whether the host at `address` says that the process `claimant` has ended there.
fn says_gone(address: &str, claimant: Claimant, config: &RunConfig) -> bool {
    let asked = || {
        let conn = Conn::connect(address, &config.site.security).ok()?;
        let mut client = Client::new(conn, Arc::new(Wake::new().ok()?));
        let (vm, claimant) = (config.vm.0.clone(), claimant.to_string());
        client.ask(&Request::Gone { vm, claimant }).ok()
    };
    matches!(asked(), Some(Reply::Gone { gone: true }))
}
