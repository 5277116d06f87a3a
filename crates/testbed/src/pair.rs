//! A protected VM on the lab's three hosts, made of the real `lockstep` processes.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use engines::EngineKind;
use serde::Deserialize;

use crate::lab::{CHANNEL_ADDRS, CLIENT_ADDR, GUEST_ADDR, Host, Lab, SERVICE_ADDRS};
use crate::process::Process;

/// The disk server and arbiter.
pub const DISK_SERVER: SocketAddrV4 = SocketAddrV4::new(SERVICE_ADDRS[Host::Disk as usize], 7000);
/// Port of a side, for the channel, heartbeats, status and console.
const SIDE_PORT: u16 = 7100;
/// How long anything may take that is not the guest's boot.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// What is protected, and with what.
#[derive(Clone, Debug)]
pub struct PairConfig {
    /// The `lockstep` binary.
    pub lockstep: PathBuf,
    /// Folder of a guest image with `vmlinuz`, `initrd.img`, `disk.img` and `vm.toml`.
    pub image: PathBuf,
    /// Folder for the disk's copy, state and events. It has to exist.
    pub work: PathBuf,
    /// Detection timeout, in milliseconds.
    pub detection_ms: u64,
    /// The kernel's command line, in place of the image's.
    pub append: Option<String>,
    /// More flags for `lockstep run`.
    pub run_flags: Vec<String>,
    /// How each side reaches the disk server, by [`Host`].
    pub detours: [Detour; 2],
    /// What runs the guest's code on each side, by [`Host`]; `None` leaves it to the environment.
    pub engines: Option<[EngineKind; 2]>,
}

/// Where a side finds the disk and the arbiter, if not at the disk server's own address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detour {
    /// The disk.
    pub disk: Option<SocketAddrV4>,
    /// The arbiter.
    pub arbiter: Option<SocketAddrV4>,
}

/// Something that happened to a side, from its event file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SideEvent {
    /// What.
    pub event: String,
    /// When, by the machine's clock since boot; all hosts of a lab share it.
    pub boottime_ns: u64,
    /// More about it.
    #[serde(default)]
    pub detail: serde_json::Value,
}

/// The fields of an image's `vm.toml` that a test needs.
#[derive(Clone, Debug, Deserialize)]
pub struct ImageSettings {
    /// The kernel command line.
    pub append: String,
    /// RAM in MiB.
    pub mem: u64,
}

impl ImageSettings {
    /// Those of the image in this folder.
    ///
    /// # Errors
    /// If its `vm.toml` cannot be read.
    pub fn read(image: &Path) -> Result<ImageSettings, String> {
        let path = image.join("vm.toml");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The kernel command line that gives the guest [`GUEST_ADDR`].
    #[must_use]
    pub fn append_with_network(&self) -> String {
        format!("{} ip={GUEST_ADDR}::{CLIENT_ADDR}:255.255.255.0::eth0:off", self.append)
    }
}

/// Disk server, primary and backup.
#[derive(Debug)]
pub struct Pair<'lab> {
    lab: &'lab Lab,
    config: PairConfig,
    /// The disk server and arbiter.
    pub disk: Process,
    sides: [Option<Process>; 2],
    /// How often each side was started: every start writes a new event file.
    starts: [u32; 2],
}

/// The other of the two hosts that run VMs.
#[must_use]
pub fn other(host: Host) -> Host {
    if host == Host::A { Host::B } else { Host::A }
}

impl<'lab> Pair<'lab> {
    /// Starts the disk server, a backup on B and the primary on A, and waits until the pair is armed.
    ///
    /// # Errors
    /// With what went wrong and what the processes wrote.
    pub fn start(lab: &'lab Lab, config: PairConfig) -> Result<Pair<'lab>, String> {
        let mut pair = Pair::prepare(lab, config)?;
        pair.start_backup(Host::B)?;
        pair.start_primary(Host::A)?;
        pair.wait_for_event(Host::A, "protected", STEP_TIMEOUT)?;
        Ok(pair)
    }

    /// Starts the disk server, with a fresh copy of the image's disk.
    ///
    /// # Errors
    /// With what went wrong and what the process wrote.
    pub fn prepare(lab: &'lab Lab, config: PairConfig) -> Result<Pair<'lab>, String> {
        let text = |error: io::Error| error.to_string();
        let export = disk_image(&config);
        // The copy is sparse where the image is.
        let status = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args([&config.image.join("disk.img"), &export])
            .status()
            .map_err(text)?;
        if !status.success() {
            return Err(format!("cannot copy the disk image: {status}"));
        }
        let mut keys = Command::new(&config.lockstep);
        let status = keys.arg("keys").arg(config.work.join("key")).status().map_err(text)?;
        if !status.success() {
            return Err(format!("cannot make a key: {status}"));
        }
        let disk = start_disk(lab, &config)?;
        Ok(Pair { lab, config, disk, sides: [None, None], starts: [0, 0] })
    }

    /// The process on `host`.
    ///
    /// # Panics
    /// If none was started there.
    pub fn side(&mut self, host: Host) -> &mut Process {
        self.sides[host as usize].as_mut().expect("a process was started there")
    }

    /// Starts `lockstep backup` on `host`, which makes backups at the other host once it owns the VM.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_backup(&mut self, host: Host) -> Result<(), String> {
        let mut command = self.command(host);
        command.arg("backup").args(["--backup", &side_addr(other(host))]);
        command.args(["--net", &format!("packet:{}", self.lab.guest_interface())]);
        if self.config.detours != <[Detour; 2]>::default() {
            // What the primary says is its own way.
            command.args(["--disk", &self.disk_url(host), "--arbiter", &self.arbiter_addr(host)]);
        }
        self.start_side(host, "backup", command)?;
        let side = self.side(host);
        side.wait_for("waiting for a primary", STEP_TIMEOUT)
    }

    /// Starts `lockstep run` on `host`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_primary(&mut self, host: Host) -> Result<(), String> {
        let image = &self.config.image;
        let mut settings = ImageSettings::read(image)?;
        if let Some(append) = &self.config.append {
            settings.append.clone_from(append);
        }
        let mut command = self.command(host);
        command.arg("run").args(["--name", "vm"]);
        command.arg("--kernel").arg(image.join("vmlinuz"));
        command.arg("--initrd").arg(image.join("initrd.img"));
        command.args(["--append", &settings.append_with_network()]);
        command.args(["--mem", &settings.mem.to_string()]);
        command.args(["--disk", &self.disk_url(host)]);
        command.args(["--net", &format!("packet:{}", self.lab.guest_interface())]);
        command.args(["--backup", &side_addr(other(host)), "--arbiter", &self.arbiter_addr(host)]);
        command.args(["--detection-ms", &self.config.detection_ms.to_string()]);
        command.args(&self.config.run_flags);
        self.start_side(host, "primary", command)
    }

    /// The VM's console, from `host`: [`Process::type_line`] types, wherever the VM is.
    ///
    /// # Errors
    /// If it does not connect.
    pub fn console(&self, host: Host) -> Result<Process, String> {
        let mut command = self.command(host);
        command.args(["console", "vm"]).stdin(Stdio::piped());
        let mut console = Process::start("console", command).map_err(|error| error.to_string())?;
        console.wait_for("connected to VM", STEP_TIMEOUT)?;
        Ok(console)
    }

    /// The file that the disk server exports as the VM's disk.
    #[must_use]
    pub fn disk_image(&self) -> PathBuf {
        disk_image(&self.config)
    }

    fn disk_url(&self, host: Host) -> String {
        let detour = self.config.detours[host as usize].disk;
        format!("nbd://{}/vm", detour.unwrap_or(DISK_SERVER))
    }

    fn arbiter_addr(&self, host: Host) -> String {
        self.config.detours[host as usize].arbiter.unwrap_or(DISK_SERVER).to_string()
    }

    /// Starts the disk server again after it was ended.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart_disk(&mut self) -> Result<(), String> {
        self.disk.kill();
        self.disk = start_disk(self.lab, &self.config)?;
        Ok(())
    }

    /// What happened to the process on `host` so far, oldest first.
    #[must_use]
    pub fn events(&self, host: Host) -> Vec<SideEvent> {
        let text = fs::read_to_string(self.events_path(host)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until `event` has happened to the process on `host` and returns it.
    ///
    /// # Errors
    /// With what the process wrote, if it ends or takes too long.
    pub fn wait_for_event(
        &mut self,
        host: Host,
        event: &str,
        timeout: Duration,
    ) -> Result<SideEvent, String> {
        self.wait_for(host, event, timeout, |_| true)
    }

    /// Waits until `event` has happened to the process on `host`, not before `since_ns`.
    ///
    /// # Errors
    /// As [`Pair::wait_for_event`].
    pub fn wait_for_event_since(
        &mut self,
        host: Host,
        event: &str,
        since_ns: u64,
        timeout: Duration,
    ) -> Result<SideEvent, String> {
        self.wait_for(host, event, timeout, |found| found.boottime_ns >= since_ns)
    }

    fn wait_for(
        &mut self,
        host: Host,
        event: &str,
        timeout: Duration,
        is_wanted: impl Fn(&SideEvent) -> bool,
    ) -> Result<SideEvent, String> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut events = self.events(host).into_iter();
            if let Some(found) = events.find(|found| found.event == event && is_wanted(found)) {
                return Ok(found);
            }
            let ended = self.side(host).poll_end();
            if ended.is_some() || Instant::now() > deadline {
                let output = self.side(host).output();
                return Err(format!("no {event:?} on {host:?} ({ended:?}); it wrote:\n{output}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A `lockstep` command on `host` with the flags that every process of the site has.
    #[must_use]
    pub fn command(&self, host: Host) -> Command {
        let lockstep = self.config.lockstep.to_str().expect("paths of tests are text");
        let mut command = self.lab.command(host, lockstep);
        command.env("LOCKSTEP_KEY", self.config.work.join("key"));
        command.env("LOCKSTEP_HOST_ID", format!("{host:?}"));
        command.env("LOCKSTEP_RUN_DIR", self.config.work.join(format!("run-{host:?}")));
        if let Some(engines) = self.config.engines {
            command.env(engines::VARIABLE, engines[host as usize].name());
        }
        command
    }

    fn start_side(&mut self, host: Host, role: &str, mut command: Command) -> Result<(), String> {
        self.starts[host as usize] += 1;
        command.args(["--listen", &side_addr(host)]);
        command.arg("--events").arg(self.events_path(host));
        let name = format!("{role} on {host:?}");
        let process = Process::start(&name, command).map_err(|error| format!("{name}: {error}"))?;
        self.sides[host as usize] = Some(process);
        Ok(())
    }

    fn events_path(&self, host: Host) -> PathBuf {
        self.config.work.join(format!("events-{host:?}-{}", self.starts[host as usize]))
    }
}

fn start_disk(lab: &Lab, config: &PairConfig) -> Result<Process, String> {
    let mut command = lab.command(Host::Disk, config.lockstep.to_str().expect("a text path"));
    command.args(["disk", "--listen", &DISK_SERVER.to_string()]);
    command.arg("--export").arg(format!("vm={}", disk_image(config).display()));
    command.arg("--state").arg(config.work.join("state"));
    let mut disk = Process::start("disk server", command).map_err(|error| error.to_string())?;
    disk.wait_for("serving at", STEP_TIMEOUT)?;
    Ok(disk)
}

fn disk_image(config: &PairConfig) -> PathBuf {
    config.work.join("disk.img")
}

fn side_addr(host: Host) -> String {
    SocketAddrV4::new(CHANNEL_ADDRS[host as usize], SIDE_PORT).to_string()
}

/// Waits until the guest's redis answers, with all its data loaded.
///
/// # Errors
/// If it does not in `timeout`.
pub fn wait_for_redis(timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    while !redis_is_ready().unwrap_or(false) {
        if Instant::now() > deadline {
            return Err(format!("the guest's redis does not answer within {timeout:?}"));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn redis_is_ready() -> io::Result<bool> {
    const READY: &[u8; 7] = b"+PONG\r\n";
    let addr = (GUEST_ADDR, 6379).into();
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_millis(300))?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; READY.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer == *READY)
}

/// A fresh folder for a run's files, by process id.
///
/// # Errors
/// If it cannot be made.
pub fn work_folder(parent: &Path, name: &str) -> io::Result<PathBuf> {
    let folder = parent.join(format!("{name}-{}", std::process::id()));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
