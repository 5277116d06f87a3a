//! Hosts as network namespaces.
//!
//! ```text
//!            lan (bridge, CLIENT_ADDR)                the guest's network: clients, witness
//!            /          \
//!   [primary] guest0   [backup] guest0                where each host's VM sends and receives
//!        \   chan (bridge)   /                        logging channel: CHANNEL_ADDRS
//!         \                 /
//!          service (bridge, RELAY_ADDR)               disk server and arbiter: SERVICE_ADDRS
//!                 |
//!              [disk]
//! ```
//!
//! A cable can be cut and mended; the hosts keep their addresses and never notice but for silence.

use std::env;
use std::io;
use std::net::Ipv4Addr;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The client's address on the guest's network, /24.
pub const CLIENT_ADDR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The client's MAC address on the guest's network.
const CLIENT_MAC: &str = "02:4c:53:00:00:01";
/// The guest's address on its network, /24.
pub const GUEST_ADDR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Addresses on the logging channel, by [`Host`]: primary and backup, /24.
pub const CHANNEL_ADDRS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 0, 1), Ipv4Addr::new(10, 79, 0, 2)];
/// Addresses on the service network, by [`Host`]: primary, backup, disk, /24.
pub const SERVICE_ADDRS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)];
/// The lab's own address on the service network, where relays listen, /24.
pub(crate) const RELAY_ADDR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// The lab's own MAC address on the service network.
const RELAY_MAC: &str = "02:4c:53:00:00:fe";

/// Set in the process that runs inside the lab's namespaces.
const INSIDE: &str = "LOCKSTEP_LAB_INSIDE";

/// A host of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Where the primary starts.
    A,
    /// Where the backup starts.
    B,
    /// The disk server and arbiter.
    Disk,
}

impl Host {
    /// All of them.
    pub const ALL: [Host; 3] = [Host::A, Host::B, Host::Disk];

    fn namespace(self) -> &'static str {
        match self {
            Host::A => "a",
            Host::B => "b",
            Host::Disk => "disk",
        }
    }
}

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The namespaces cannot be made.
    #[error("cannot run `{command}`")]
    Start {
        /// What was to be run.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A step of the set-up failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// [`Lab::new`] outside of [`enter`].
    #[error("a lab is built inside its own namespaces only")]
    Outside,
}

/// Makes sure that this process runs in namespaces of its own: user (if not root), mount, network
/// and process ids. Outside, it starts this program again with `args` inside and returns its exit
/// status once it has ended; inside, it returns `None` and the caller goes on.
///
/// When the inner process ends, by whatever means, the kernel ends everything that it started.
///
/// # Errors
/// [`LabError::Start`] if `unshare` (util-linux) cannot be run.
pub fn enter<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(
    args: I,
) -> Result<Option<ExitStatus>, LabError> {
    if env::var_os(INSIDE).is_some() {
        end_on_signals()
            .map_err(|source| LabError::Start { command: "signal handlers".to_owned(), source })?;
        return Ok(None);
    }
    let start = |source| LabError::Start { command: "unshare".to_owned(), source };
    let program = env::current_exe().map_err(start)?;
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(args)
        .env(INSIDE, "1");
    command.status().map(Some).map_err(start)
}

/// The first process of a namespace ignores signals that it has no handler for; this one has to end
/// by Ctrl-C, and with it everything that it started.
fn end_on_signals() -> io::Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&always))?;
    }
    Ok(())
}

/// The network. It goes with the process.
#[derive(Debug)]
pub struct Lab(());

impl Lab {
    /// Builds the network.
    ///
    /// # Errors
    /// [`LabError`] with the step that failed.
    pub fn new() -> Result<Lab, LabError> {
        if env::var_os(INSIDE).is_none() {
            return Err(LabError::Outside);
        }
        // `ip netns` keeps its names in /run/netns, which is the lab's own from here on.
        run("mount", &["-t", "tmpfs", "lab", "/run"])?;
        ip("link set lo up")?;
        for bridge in ["lan", "chan", "service"] {
            ip(&format!("link add name {bridge} type bridge"))?;
            ip(&format!("link set {bridge} up"))?;
        }
        // A bridge without an address of its own takes one of its ports', and changes it with them; the
        // guest would lose the client whenever a cable is unplugged.
        for (bridge, mac, addr) in
            [("lan", CLIENT_MAC, CLIENT_ADDR), ("service", RELAY_MAC, RELAY_ADDR)]
        {
            ip(&format!("link set {bridge} address {mac}"))?;
            ip(&format!("addr add {addr}/24 dev {bridge}"))?;
        }
        for host in Host::ALL {
            let name = host.namespace();
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            cable(host, "service", Some(SERVICE_ADDRS[host as usize]))?;
            if host != Host::Disk {
                cable(host, "chan", Some(CHANNEL_ADDRS[host as usize]))?;
                cable(host, "lan", None)?;
            }
        }
        Ok(Lab(()))
    }

    /// A command that will run on `host`. It ends when this process does.
    #[must_use]
    pub fn command(&self, host: Host, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host.namespace(), program]).stdin(Stdio::null());
        command
    }

    /// The interface on `host` that leads to the guest's network.
    #[must_use]
    pub fn guest_interface(&self) -> &'static str {
        "lan0"
    }

    /// Makes a tap on `host` and bridges it to the guest's network, once. Its name.
    ///
    /// # Errors
    /// [`LabError`] if `ip` fails, or there is no `/dev/net/tun`.
    pub fn tap(&self, host: Host) -> Result<&'static str, LabError> {
        let name = host.namespace();
        ip(&format!("-n {name} link add name br0 type bridge"))?;
        ip(&format!("netns exec {name} sysctl -q {}", no_ipv6("br0")))?;
        ip(&format!("netns exec {name} ip tuntap add dev tap0 mode tap"))?;
        for port in ["tap0", self.guest_interface()] {
            ip(&format!("-n {name} link set {port} master br0 up"))?;
        }
        ip(&format!("-n {name} link set br0 up"))?;
        Ok("tap0")
    }

    /// The lab's end of the cable between `host` and the guest's network: where a witness listens.
    #[must_use]
    pub fn lan_port(&self, host: Host) -> String {
        port(host, "lan")
    }

    /// Cuts or mends the logging channel between the two hosts.
    ///
    /// # Errors
    /// [`LabError`] if `ip` fails.
    pub fn set_channel(&self, up: bool) -> Result<(), LabError> {
        set_port(&port(Host::B, "chan"), up)
    }

    /// Cuts or mends the cable between `host` and the disk server and arbiter.
    ///
    /// # Errors
    /// [`LabError`] if `ip` fails.
    pub fn set_service(&self, host: Host, up: bool) -> Result<(), LabError> {
        set_port(&port(host, "service"), up)
    }

    /// Unplugs the cable between `host` and the guest's network from the bridge, or plugs it in. A
    /// witness sees what the host sends into an unplugged cable, and nobody else does.
    ///
    /// # Errors
    /// [`LabError`] if `ip` fails.
    pub fn set_lan(&self, host: Host, up: bool) -> Result<(), LabError> {
        let plug = if up { "master lan" } else { "nomaster" };
        ip(&format!("link set {} {plug}", port(host, "lan")))
    }

    /// Takes `host` off all networks, or brings it back.
    ///
    /// # Errors
    /// [`LabError`] if `ip` fails.
    pub fn set_all(&self, host: Host, up: bool) -> Result<(), LabError> {
        self.set_lan(host, up)?;
        self.set_service(host, up)?;
        set_port(&port(host, "chan"), up)
    }

    /// Delays, drops or slows what goes towards `host` on the logging channel, as `tc` (iproute2)
    /// has it: `netem delay 10ms`, for one. An empty string takes it away.
    ///
    /// # Errors
    /// [`LabError`] if `tc` fails.
    pub fn shape_channel(&self, host: Host, netem: &str) -> Result<(), LabError> {
        let port = port(host, "chan");
        if netem.is_empty() {
            return run("tc", &["qdisc", "del", "dev", &port, "root"]);
        }
        let mut args = vec!["qdisc", "replace", "dev", &port, "root"];
        args.extend(netem.split_whitespace());
        run("tc", &args)
    }
}

/// Names the lab's end of a cable.
fn port(host: Host, bridge: &str) -> String {
    format!("{}-{bridge}", host.namespace())
}

/// Lays a cable from `bridge` to `host`, where it is called `<bridge>0`.
fn cable(host: Host, bridge: &str, addr: Option<Ipv4Addr>) -> Result<(), LabError> {
    let (name, port) = (host.namespace(), port(host, bridge));
    ip(&format!("link add name {port} type veth peer name {bridge}0 netns {name}"))?;
    ip(&format!("link set {port} master {bridge} up"))?;
    if let Some(addr) = addr {
        ip(&format!("-n {name} addr add {addr}/24 dev {bridge}0"))?;
    } else {
        // The host itself stays silent where the guest speaks.
        run("ip", &["netns", "exec", name, "sysctl", "-q", &no_ipv6(&format!("{bridge}0"))])?;
    }
    ip(&format!("-n {name} link set {bridge}0 up"))
}

fn no_ipv6(interface: &str) -> String {
    format!("net.ipv6.conf.{interface}.disable_ipv6=1")
}

fn set_port(port: &str, up: bool) -> Result<(), LabError> {
    ip(&format!("link set {port} {}", if up { "up" } else { "down" }))
}

fn ip(args: &str) -> Result<(), LabError> {
    run("ip", &args.split_whitespace().collect::<Vec<_>>())
}

fn run(program: &str, args: &[&str]) -> Result<(), LabError> {
    let command = || format!("{program} {}", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::Start { command: command(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Failed { command: command(), status: output.status, stderr })
}

/// Runs the test `name` of this test binary inside a lab of its own.
///
/// # Panics
/// If the lab cannot be built or the test fails.
pub fn test_in_lab(name: &str, test: impl FnOnce(&Lab)) {
    let inner = enter([name, "--exact", "--nocapture", "--test-threads=1"]).expect("a lab");
    match inner {
        Some(status) => assert!(status.success(), "{name} failed inside its lab: {status}"),
        None => test(&Lab::new().expect("a lab")),
    }
}
