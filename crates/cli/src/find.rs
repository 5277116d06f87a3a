//! Finding the process that owns a VM: here, where its last process here left word of, at the hosts
//! that were named, and where the arbiter says.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use base::VmId;
use clap::Args;
use disk::arbiter::client::ArbiterClient;
use host::Wake;
use vmm::conn::Conn;
use vmm::control::{Client, ControlError, Reply, Request, StatusReport};
use vmm::key::{Security, load};

use crate::exit::{Coded, Exit};
use crate::options::{SiteArgs, check_address};

const ARBITER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
pub(crate) struct FindArgs {
    /// Also look at this address of a process. May be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) host: Vec<String>,
    /// Also ask this arbiter where the VM is.
    #[arg(long, value_name = "HOST:PORT", env = "LOCKSTEP_ARBITER")]
    pub(crate) arbiter: Option<String>,
    #[command(flatten)]
    pub(crate) site: SiteArgs,
}

/// A process that may have a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A process of this host, by its control socket.
    Here(PathBuf),
    /// A process anywhere.
    There(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Here(_) => f.write_str("this host"),
            Place::There(addr) => f.write_str(addr),
        }
    }
}

/// A process that answered.
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) status: StatusReport,
}

/// Looks for processes.
pub(crate) struct Finder {
    args: FindArgs,
    security: Option<Security>,
    /// The hosts that the user named and that were not complained about yet.
    named: RefCell<Vec<String>>,
}

impl Finder {
    pub(crate) fn new(args: &FindArgs) -> Result<Finder> {
        args.host.iter().try_for_each(|host| check_address("--host", host))?;
        if let Some(arbiter) = &args.arbiter {
            check_address("--arbiter", arbiter)?;
        }
        let named = RefCell::new(args.host.clone());
        Ok(Finder { security: args.site.security()?, args: args.clone(), named })
    }

    /// Looks at these addresses too from now on.
    pub(crate) fn add_peers(&mut self, peers: &[String]) {
        for peer in peers {
            if !self.args.host.contains(peer) {
                self.args.host.push(peer.clone());
            }
        }
    }

    /// Connects to a process. `wake` ends a wait of the client's.
    pub(crate) fn connect(
        &self,
        place: &Place,
        vm: Option<&str>,
        wake: Arc<Wake>,
    ) -> Result<Client> {
        let conn = match place {
            Place::Here(socket) => Conn::local(UnixStream::connect(socket)?)?,
            Place::There(addr) => Conn::connect(addr, &self.security(vm)?)?,
        };
        Ok(Client::new(conn, wake))
    }

    /// How to talk to other hosts: as was said, or as the VM's last process here did.
    fn security(&self, vm: Option<&str>) -> Result<Security> {
        if let Some(security) = &self.security {
            return Ok(security.clone());
        }
        let note = vm.and_then(|vm| self.args.site.run_dir().read_note(vm));
        match note.and_then(|note| note.key) {
            Some(key) => Ok(Security::Key(Arc::new(load(&key)?))),
            None => self.args.site.security_for("looking at other hosts"),
        }
    }

    /// Asks a process how it is.
    pub(crate) fn status(&self, place: &Place, vm: Option<&str>) -> Result<StatusReport> {
        let mut client = self.connect(place, vm, Arc::new(Wake::new()?))?;
        match client.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ControlError::Nonsense.into()),
        }
    }

    /// Where processes of `vm` (of any VM) may be.
    fn places(&self, vm: Option<&str>) -> Vec<Place> {
        let run_dir = self.args.site.run_dir();
        let names = vm.map_or_else(|| run_dir.names(), |vm| vec![vm.to_owned()]);
        let mut places: Vec<Place> =
            names.iter().map(|name| Place::Here(run_dir.socket(name))).collect();
        let mut add = |addr: String| {
            let place = Place::There(addr);
            if !places.contains(&place) {
                places.push(place);
            }
        };
        self.args.host.iter().cloned().for_each(&mut add);
        let notes = names.iter().filter_map(|name| run_dir.read_note(name));
        notes.flat_map(|note| note.peers).for_each(&mut add);
        if let Some(arbiter) = &self.args.arbiter {
            for addr in addresses(arbiter, vm) {
                add(addr);
            }
        }
        places
    }

    /// All processes that answer, and say that they have `vm` (any VM).
    pub(crate) fn find(&self, vm: Option<&str>) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let mut places = self.places(vm);
        let mut next = 0;
        while next < places.len() {
            let place = places[next].clone();
            next += 1;
            let status = match self.status(&place, vm) {
                Ok(status) => status,
                Err(error) => {
                    self.complain(&place, &error);
                    continue;
                }
            };
            // Its peers may know more than this host does.
            for peer in status.peers.iter().cloned().map(Place::There) {
                if !places.contains(&peer) {
                    places.push(peer);
                }
            }
            let fits = vm.is_none_or(|vm| status.vm.as_deref() == Some(vm));
            let known = found.iter().any(|other| {
                !status.claimant.is_empty() && other.status.claimant == status.claimant
            });
            if fits && !known {
                found.push(Found { place, status });
            }
        }
        found
    }

    /// A host that the user named should have answered; once is enough.
    fn complain(&self, place: &Place, error: &anyhow::Error) {
        let mut named = self.named.borrow_mut();
        let known = named.len();
        named.retain(|host| !matches!(place, Place::There(addr) if addr == host));
        if named.len() < known {
            log::warn!("{place} gives no answer: {error:#}");
        } else {
            log::debug!("{place}: {error:#}");
        }
    }

    /// The process that runs `vm`.
    pub(crate) fn owner(&self, vm: &str) -> Result<Found> {
        let mut found = self.find(Some(vm));
        // After a failover both may think so for a moment; the newer generation is right.
        found.sort_by_key(|found| found.status.generation);
        let count = found.len();
        found.into_iter().rfind(|found| found.status.owner).ok_or_else(|| {
            let message = match count {
                0 => format!("no process of VM {vm} answers; name its hosts with --host"),
                _ => format!("{count} process(es) of VM {vm} answer, and none runs it now"),
            };
            Coded { exit: Exit::NotFound, message }.into()
        })
    }
}

fn addresses(arbiter: &str, vm: Option<&str>) -> Vec<String> {
    let mut client = ArbiterClient::new(arbiter, ARBITER_TIMEOUT);
    let known = match vm {
        Some(vm) => client.look(&VmId(vm.to_owned())).map(Vec::from_iter),
        None => client.list(),
    };
    match known {
        // The latest first: they are the likeliest to live.
        Ok(known) => known
            .into_iter()
            .flat_map(|status| status.addresses.into_iter().rev().map(|(_, addr)| addr))
            .collect(),
        Err(error) => {
            log::warn!("{}", vmm::describe(&error));
            Vec::new()
        }
    }
}
