//! What a primary tells its backup about the VM beside the machine itself: where its frames and disks
//! are, and who decides about it.

use std::net::SocketAddr;
use std::path::PathBuf;

use base::{RestoreError, Saved, restore_bytes, save_bytes};
use host::link::LinkAddr;
use serde::{Deserialize, Serialize};

use crate::announce::Mac;
use crate::config::DiskSpec;

/// The part of a start state that is not the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Opening {
    pub(crate) nets: Vec<OpeningNet>,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) arbiter: Option<String>,
    /// Where the primary's process can be found.
    pub(crate) peers: Vec<String>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpeningNet {
    pub(crate) mac: Mac,
    #[serde(with = "LinkAddrForm")]
    pub(crate) link: LinkAddr,
}

/// [`LinkAddr`] as it travels.
#[derive(Serialize, Deserialize)]
#[serde(remote = "LinkAddr")]
enum LinkAddrForm {
    Tap(String),
    Packet(String),
    Connect(String),
    Listen(SocketAddr),
    Unix(PathBuf),
}

impl Saved for Opening {
    const KIND: &'static str = "opening";
    const VERSION: u16 = 1;
}

/// What a backup's operator puts in the place of what the primary says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) nets: Vec<LinkAddr>,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) arbiter: Option<String>,
}

impl Opening {
    /// A start state, from the machine's part of it.
    pub(crate) fn wrap(&self, machine: &[u8]) -> Vec<u8> {
        let mut bytes = save_bytes(self);
        bytes.extend_from_slice(machine);
        bytes
    }

    /// What [`Opening::wrap`] was made of.
    pub(crate) fn unwrap(bytes: &[u8]) -> Result<(Opening, &[u8]), RestoreError> {
        let (opening, machine) = restore_bytes::<Opening>(bytes)?;
        for disk in &opening.disks {
            disk.place
                .parse::<disk::open::DiskSpec>()
                .map_err(|why| RestoreError::Impossible { kind: Opening::KIND, why })?;
        }
        Ok((opening, machine))
    }

    /// With the operator's replacements.
    pub(crate) fn with(mut self, overrides: &Overrides) -> Result<Opening, String> {
        let count = |what, given: usize, there: usize| {
            if given <= there {
                return Ok(());
            }
            Err(format!("{given} {what} were given, and the VM has {there}"))
        };
        count("networks", overrides.nets.len(), self.nets.len())?;
        count("disks", overrides.disks.len(), self.disks.len())?;
        for (net, link) in self.nets.iter_mut().zip(&overrides.nets) {
            net.link.clone_from(link);
        }
        for (disk, replacement) in self.disks.iter_mut().zip(&overrides.disks) {
            disk.clone_from(replacement);
        }
        if let Some(arbiter) = &overrides.arbiter {
            self.arbiter = Some(arbiter.clone());
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_travels_with_the_machine_and_takes_replacements() {
        let opening = Opening {
            nets: vec![OpeningNet { mac: [2; 6], link: LinkAddr::Tap("tap0".to_owned()) }],
            disks: vec![],
            arbiter: Some("a:1".to_owned()),
            peers: vec![],
        };
        let bytes = opening.wrap(b"machine");
        let (read, machine) = Opening::unwrap(&bytes).unwrap();
        assert_eq!((&read, machine), (&opening, &b"machine"[..]));
        let nets = vec![LinkAddr::Packet("veth1".to_owned())];
        let replaced = read.with(&Overrides { nets, ..Overrides::default() }).unwrap();
        assert_eq!(replaced.nets[0].link, LinkAddr::Packet("veth1".to_owned()));
        let too_many =
            Overrides { nets: vec![LinkAddr::Tap(String::new()); 2], ..Overrides::default() };
        assert!(opening.with(&too_many).is_err());
    }
}
