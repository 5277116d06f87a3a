//! What a process was asked to do, checked: every name parsed, every contradiction refused, nothing
//! opened yet.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use base::{Digest, VmId};
use engines::EngineKind;
use ft::Timing;
use host::link::{INTERFACE_NAME_LEN_MAX, LinkAddr};
use machine::{ClockMode, CpuModel};
use serde::{Deserialize, Serialize};

use crate::announce::Mac;
use crate::key::Security;
use crate::rundir::RunDir;

/// Longest name of a VM.
const NAME_LEN_MAX: usize = 64;

/// A VM to power on.
#[derive(Debug)]
pub struct RunConfig {
    /// The VM's name.
    pub vm: VmId,
    /// What default MAC addresses follow from.
    pub mac_base: String,
    /// What to boot.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: String,
    /// What CPU it has.
    pub cpu: CpuModel,
    /// RAM in bytes.
    pub ram_bytes: u64,
    /// The disks, in the guest's order.
    pub disks: Vec<DiskSpec>,
    /// The network devices, in the guest's order.
    pub nets: Vec<NetSpec>,
    /// Where guest time comes from.
    pub clock: ClockMode,
    /// What randomness starts from on the virtual clock, where runs have to repeat.
    pub seed: u64,
    /// Write the event log to this file.
    pub record: Option<PathBuf>,
    /// Give the guest the debug-exit port.
    pub debug_exit: bool,
    /// A guest that resets ends the run.
    pub no_reboot: bool,
    /// What runs the guest's code on this host.
    pub engine: EngineKind,
    /// Look what the time is spent on.
    pub profile: bool,
    /// Have both engines run the guest, and compare them.
    pub compare: Option<Compare>,
    /// How the VM is protected, if it is.
    pub protection: Option<Protection>,
    /// What all processes share.
    pub site: Site,
}

/// A process that waits to become a VM's backup.
#[derive(Debug)]
pub struct BackupConfig {
    /// Where primaries and control clients connect.
    pub listen: SocketAddr,
    /// Replaces the links that the primary names, in their order.
    pub nets: Vec<LinkAddr>,
    /// Replaces the arbiter's address that the primary names.
    pub arbiter: Option<String>,
    /// Replaces the disks' addresses that the primary names, in their order.
    pub disks: Vec<DiskSpec>,
    /// Who to make the next backup when this process has taken over.
    pub backups: Vec<String>,
    /// What runs the guest's code on this host.
    pub engine: EngineKind,
    /// What all processes share.
    pub site: Site,
}

/// How two engines are compared while they run one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The most steps between two comparisons; lengths are random.
    pub every: u64,
}

/// How a VM is protected.
#[derive(Clone, Debug)]
pub struct Protection {
    /// Candidates for the backup (`HOST:PORT`), tried in turn.
    pub backups: Vec<String>,
    /// The arbiter (`HOST:PORT`).
    pub arbiter: String,
    /// How long failures may go unnoticed.
    pub timing: Timing,
    /// The operator says that no other copy of the VM runs.
    pub force: bool,
}

/// What all processes share.
#[derive(Clone, Debug)]
pub struct Site {
    /// How processes know each other.
    pub security: Security,
    /// The key file behind it.
    pub key_file: Option<PathBuf>,
    /// Where local processes find each other.
    pub run_dir: RunDir,
    /// Tells this host from others.
    pub host: Digest,
    /// Where other hosts reach this process's control interface, if they do.
    pub listen: Option<SocketAddr>,
    /// What to tell them, if it is not the address listened at.
    pub advertise: Option<String>,
    /// Where to write the timeline.
    pub events: Option<PathBuf>,
}

impl Site {
    /// Where other hosts reach this process, if they do.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        self.advertise.clone().or_else(|| {
            let listen = self.listen.filter(|listen| !listen.ip().is_unspecified())?;
            Some(listen.to_string())
        })
    }
}

/// A disk: `FILE` or `nbd://HOST[:PORT]/EXPORT`, and behind it `,format=F`, `,ro`, `,snapshot` and
/// `,fencing=none` in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Where it is, in the words of [`disk::open::DiskSpec`], which parses it without fail.
    pub place: String,
    /// The guest's writes vanish at the end.
    pub snapshot: bool,
    /// The server keeps deposed sides from writing.
    pub fenced: bool,
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskSpec, String> {
        let (mut snapshot, mut fenced, mut place) = (false, true, String::new());
        for (index, part) in text.split(',').enumerate() {
            match part {
                "snapshot" | "snapshot=on" if index > 0 => snapshot = true,
                "fencing=none" if index > 0 => fenced = false,
                part => {
                    place.push_str(if index > 0 { "," } else { "" });
                    place.push_str(part);
                }
            }
        }
        place.parse::<disk::open::DiskSpec>()?;
        Ok(DiskSpec { place, snapshot, fenced })
    }
}

impl DiskSpec {
    /// Where it is.
    ///
    /// # Panics
    /// If it was not made by parsing.
    #[must_use]
    pub fn parsed(&self) -> disk::open::DiskSpec {
        self.place.parse().expect("it was parsed before")
    }

    /// Whether it is a file of this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        !self.place.starts_with("nbd://")
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// A network device: where its frames go, and its MAC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Where its frames go.
    pub link: LinkAddr,
    /// Its address; [`default_mac`] if there is none.
    pub mac: Option<Mac>,
}

impl FromStr for NetSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<NetSpec, String> {
        let bad = |why: &str| {
            format!(
                "network {text:?}: {why} (tap:NAME, packet:INTERFACE, \
                 socket,connect=HOST:PORT, socket,listen=IP:PORT or socket,unix=PATH, and ,mac=M)"
            )
        };
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let (mut link, mut mac) = (None, None);
        let mut set = |found: LinkAddr| match link.replace(found) {
            None => Ok(()),
            Some(_) => Err(bad("it leads to two places")),
        };
        if let Some(name) = kind.strip_prefix("tap:") {
            set(LinkAddr::Tap(interface_name(name).ok_or_else(|| bad("bad interface name"))?))?;
        } else if let Some(name) = kind.strip_prefix("packet:") {
            set(LinkAddr::Packet(interface_name(name).ok_or_else(|| bad("bad interface name"))?))?;
        } else if kind != "socket" {
            return Err(bad("unknown kind"));
        }
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| bad("an option without ="))?;
            match key {
                "mac" => mac = Some(parse_mac(value).ok_or_else(|| bad("bad MAC address"))?),
                "connect" if kind == "socket" && has_port(value) => {
                    set(LinkAddr::Connect(value.to_owned()))?;
                }
                "listen" if kind == "socket" => {
                    let addr = value.parse().map_err(|_| bad("bad address to listen on"))?;
                    set(LinkAddr::Listen(addr))?;
                }
                "unix" if kind == "socket" && !value.is_empty() => {
                    set(LinkAddr::Unix(PathBuf::from(value)))?;
                }
                _ => return Err(bad("unknown option, or one without a sensible value")),
            }
        }
        let link = link.ok_or_else(|| bad("it leads nowhere"))?;
        Ok(NetSpec { link, mac })
    }
}

fn interface_name(name: &str) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_LEN_MAX;
    (fits && !name.contains(['/', ' ', '\0'])).then(|| name.to_owned())
}

/// Whether `addr` looks like `HOST:PORT`.
#[must_use]
pub fn has_port(addr: &str) -> bool {
    addr.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect();
    let mac: Mac = bytes?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The MAC address of network device number `index` of the VM `base`, the same on every host: from the range
/// that QEMU uses too.
#[must_use]
pub fn default_mac(base: &str, index: usize) -> Mac {
    let digest = Digest::of(format!("{base}/{index}").as_bytes());
    [0x52, 0x54, 0x00, digest.0[0], digest.0[1], digest.0[2]]
}

/// Checks a VM's name: it becomes part of file names.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<VmId, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = !name.is_empty() && name.len() <= NAME_LEN_MAX && !name.starts_with(['.', '-']);
    if fits && name.chars().all(allowed) {
        return Ok(VmId(name.to_owned()));
    }
    Err(format!(
        "{name:?} is no name for a VM: 1 to {NAME_LEN_MAX} of a-z, A-Z, 0-9, '-', '_' and '.', \
         starting with a letter, a digit or '_'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<NetSpec>().unwrap();
        assert_eq!(read("tap:tap0").link, LinkAddr::Tap("tap0".to_owned()));
        let net = read("packet:veth1,mac=52:54:00:00:00:0a");
        assert_eq!(net.link, LinkAddr::Packet("veth1".to_owned()));
        assert_eq!(net.mac, Some([0x52, 0x54, 0, 0, 0, 10]));
        assert_eq!(read("socket,connect=h:1").link, LinkAddr::Connect("h:1".to_owned()));
        assert_eq!(read("socket,unix=/s").link, LinkAddr::Unix(PathBuf::from("/s")));
    }

    #[test]
    fn nonsense_for_a_network_is_refused() {
        for text in [
            "",
            "tap:",
            "tap:a-name-that-is-too-long",
            "user",
            "socket",
            "socket,connect=host",
            "socket,connect=h:1,listen=127.0.0.1:1",
            "socket,listen=here",
            "tap:t,mac=1:2:3",
            "tap:t,mac=01:00:00:00:00:00",
            "tap:t,speed=1",
        ] {
            assert!(text.parse::<NetSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn disks_are_read_as_people_write_them() {
        let disk: DiskSpec = "nbd://[::1]:7000/a,fencing=none".parse().unwrap();
        assert_eq!((disk.place.as_str(), disk.fenced), ("nbd://[::1]:7000/a", false));
        assert!(!disk.is_local());
        let disk: DiskSpec = "a,b.raw,snapshot,ro".parse().unwrap();
        assert_eq!((disk.place.as_str(), disk.snapshot), ("a,b.raw,ro", true));
        assert!(disk.is_local() && disk.parsed().read_only);
        assert!("nbd://:1/".parse::<DiskSpec>().is_err());
        assert!(",ro".parse::<DiskSpec>().is_err());
    }

    #[test]
    fn names_that_would_leave_the_run_directory_are_refused() {
        assert!(check_name("web-1.example_com").is_ok());
        for name in ["", "..", "a/b", "-v", "a b", &"n".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn default_macs_are_stations_and_differ() {
        assert_ne!(default_mac("vm", 0), default_mac("vm", 1));
        assert_eq!(default_mac("vm", 0)[0] & 3, 2);
    }
}
