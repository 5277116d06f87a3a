//! Opening whatever `--disk` names: an image in a file, or an export of an NBD server.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::backend::{Backend, EventSink};
use crate::client::{DialError, NbdClient, NbdOptions};
use crate::file::{FileDisk, FileDiskError, FileOptions};
use crate::image::{Format, ImageOptions};
use crate::nbd::dial::NbdAddress;
use crate::overlay::Overlay;
use crate::stamp::{Access, Badge};
use crate::upstream::Upstream;

/// Where a disk is: `FILE` or `nbd://HOST[:PORT]/EXPORT`, and behind it `,format=raw`,
/// `,format=qcow2` and `,ro` in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// What holds the bytes.
    pub source: Source,
    /// Refuse all writes.
    pub read_only: bool,
}

/// What holds a disk's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image in a file or on a block device.
    Image {
        /// Where.
        path: PathBuf,
        /// Its format, if the name does not tell.
        format: Option<Format>,
    },
    /// An NBD server.
    Nbd(NbdAddress),
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskSpec, String> {
        let bad = |why: &str| format!("disk {text:?} is not FILE[,format=F][,ro]: {why}");
        let mut target = text;
        let (mut format, mut read_only) = (None, false);
        // A file's name may hold commas, so only what is known is taken off its end.
        while let Some((head, tail)) = target.rsplit_once(',') {
            if tail == "ro" {
                read_only = true;
            } else if let Some(name) = tail.strip_prefix("format=") {
                format = Some(name.parse().map_err(|why: String| bad(&why))?);
            } else {
                break;
            }
            target = head;
        }
        if target.is_empty() {
            return Err(bad("the file is missing"));
        }
        if !target.starts_with("nbd://") {
            let source = Source::Image { path: PathBuf::from(target), format };
            return Ok(DiskSpec { source, read_only });
        }
        if format.is_some() {
            return Err(bad("an NBD server's export has no format"));
        }
        Ok(DiskSpec { source: Source::Nbd(target.parse()?), read_only })
    }
}

/// How a VM opens a disk.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Who we are, for servers that fence; `None` for `fencing = "none"` and unprotected VMs.
    pub badge: Option<Badge>,
    /// Writes go to a temporary overlay that vanishes when the disk is closed.
    pub snapshot: bool,
    /// How long one attempt to reach a server may take.
    pub connect_timeout: Duration,
}

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A local image.
    #[error(transparent)]
    File(#[from] FileDiskError),
    /// A disk server.
    #[error(transparent)]
    Server(#[from] DialError),
    /// The overlay for `--snapshot`.
    #[error("cannot make a temporary file for the disk's changes")]
    Overlay(#[source] io::Error),
}

/// Opens a disk; its events go to `sink`.
///
/// # Errors
/// Any [`OpenError`].
pub fn open(
    spec: &DiskSpec,
    options: OpenOptions,
    sink: EventSink,
) -> Result<Box<dyn Backend>, OpenError> {
    let OpenOptions { badge, snapshot, connect_timeout } = options;
    let address = match &spec.source {
        Source::Image { path, format } => {
            let image = ImageOptions { format: *format, read_only: spec.read_only };
            let options = FileOptions { image, snapshot };
            return Ok(Box::new(FileDisk::open(path, options, sink)?));
        }
        Source::Nbd(address) => address.clone(),
    };
    // Whoever only reads deposes nobody.
    let only_reads = spec.read_only || snapshot;
    let access = if only_reads { Access::Read } else { Access::Write };
    let badge = badge.map(|badge| Badge { access, ..badge });
    let options = NbdOptions { address, badge, connect_timeout, read_only: only_reads };
    if snapshot {
        let below = Upstream::connect(options)?;
        let overlay = Overlay::new(Box::new(below)).map_err(OpenError::Overlay)?;
        return Ok(Box::new(FileDisk::over(Box::new(overlay), sink)?));
    }
    Ok(Box::new(NbdClient::connect(options, sink)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_understood_or_refused() {
        let parse = |text: &str| text.parse::<DiskSpec>();
        let image = |path: &str, format| Source::Image { path: path.into(), format };
        let spec = parse("/a,b.img").unwrap();
        assert_eq!(spec, DiskSpec { source: image("/a,b.img", None), read_only: false });
        let spec = parse("x=y,ro,format=qcow2").unwrap();
        assert_eq!(spec, DiskSpec { source: image("x=y", Some(Format::Qcow2)), read_only: true });
        let spec = parse("nbd://h:1/x,ro").unwrap();
        assert!(spec.read_only && matches!(spec.source, Source::Nbd(_)));
        for bad in ["", ",ro", "x,format=vmdk", "nbd://", "nbd://h/x,format=raw"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
