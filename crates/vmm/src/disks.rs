//! A VM's disks, from where they are to the machine's mailbox.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base::VmId;
use disk::client::DialError;
use disk::open::{OpenError, OpenOptions};
use disk::{
    Access, Backend, Badge, Completion, DiskError, DiskEvent, DiskInfo, Extent, Op, RequestId,
    Stamp,
};
use machine::event::{DiskOp, DiskResult};

use crate::config::DiskSpec;
use crate::mailbox::Mailbox;

/// For one attempt to reach a disk server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open disk {disk}")]
pub struct DiskOpenError {
    /// Which.
    pub disk: String,
    /// What is wrong.
    pub source: OpenError,
}

/// What the disks tell the protocol's thread.
#[derive(Debug)]
pub(crate) enum DiskNews {
    /// All disks are there with this stamp, and refuse lower ones.
    Ready(Stamp, OpenDisks),
    /// The disks that are there took this stamp.
    Attached { disk: u8, stamp: Option<Stamp> },
    /// Somebody with a higher stamp was seen.
    Deposed { disk: u8, why: String },
}

/// Takes [`DiskNews`], on any thread.
pub(crate) type NewsSink = Arc<dyn Fn(DiskNews) + Send + Sync>;

/// Open disks, in the guest's order.
#[derive(Clone, Default)]
pub(crate) struct OpenDisks(Vec<Arc<dyn Backend>>);

impl std::fmt::Debug for OpenDisks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} disks", self.0.len())
    }
}

/// Where a disk's events go.
#[derive(Clone)]
pub(crate) struct Destination {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) news: NewsSink,
}

impl OpenDisks {
    pub(crate) fn open(
        specs: &[DiskSpec],
        vm: &VmId,
        stamp: Option<Stamp>,
        to: &Destination,
    ) -> Result<OpenDisks, DiskOpenError> {
        let open = |(index, spec)| open_one(index as u8, spec, vm, stamp, Access::Write, to);
        specs.iter().enumerate().map(open).collect::<Result<_, _>>().map(OpenDisks)
    }

    pub(crate) fn infos(&self) -> Vec<DiskInfo> {
        self.0.iter().map(|disk| disk.info()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn submit(&self, disk: u8, request: u64, op: &DiskOp) {
        let disk = &self.0[usize::from(disk)];
        disk.submit(RequestId(request), as_op(op));
    }

    pub(crate) fn restamp(&self, stamp: Stamp) {
        self.0.iter().for_each(|disk| disk.restamp(stamp));
    }
}

/// Checks that all disks can be reached, without touching them or deposing anybody.
pub(crate) fn probe(specs: &[DiskSpec], vm: &VmId) -> Result<(), DiskOpenError> {
    let nowhere = Destination { mailbox: Arc::default(), news: Arc::new(|_| ()) };
    for (index, spec) in specs.iter().enumerate() {
        open_one(index as u8, spec, vm, None, Access::Read, &nowhere)?;
    }
    Ok(())
}

/// Opens all disks with `stamp` on a thread of its own, however long that takes; then tells `to`.
pub(crate) fn open_in_background(specs: Vec<DiskSpec>, vm: VmId, stamp: Stamp, to: Destination) {
    let opening = move || {
        loop {
            match OpenDisks::open(&specs, &vm, Some(stamp), &to) {
                Ok(disks) => return (to.news)(DiskNews::Ready(stamp, disks)),
                Err(DiskOpenError {
                    source: OpenError::Server(DialError::Deposed { why, .. }),
                    ..
                }) => {
                    return (to.news)(DiskNews::Deposed { disk: 0, why });
                }
                Err(error) => {
                    log::warn!("{}", crate::engine::describe(&error));
                    thread::sleep(RETRY_INTERVAL);
                }
            }
        }
    };
    let spawned = thread::Builder::new().name("open-disks".to_owned()).spawn(opening);
    spawned.expect("the host has room for one more thread");
}

fn open_one(
    index: u8,
    spec: &DiskSpec,
    vm: &VmId,
    stamp: Option<Stamp>,
    access: Access,
    to: &Destination,
) -> Result<Arc<dyn Backend>, DiskOpenError> {
    let sink_to = to.clone();
    let sink = Box::new(move |event| handle_event(index, event, &sink_to));
    let badge = stamp.filter(|_| spec.fenced).map(|stamp| Badge { vm: vm.clone(), stamp, access });
    let options = OpenOptions { badge, snapshot: spec.snapshot, connect_timeout: CONNECT_TIMEOUT };
    let mut parsed = spec.parsed();
    parsed.read_only |= access == Access::Read;
    let disk = disk::open::open(&parsed, options, sink);
    let disk = disk.map_err(|source| DiskOpenError { disk: spec.to_string(), source })?;
    Ok(disk.into())
}

fn handle_event(disk: u8, event: DiskEvent, to: &Destination) {
    match event {
        DiskEvent::Done(Completion { id, result }) => {
            let result = match result {
                Ok(data) if data.is_empty() => DiskResult::Done,
                Ok(data) => DiskResult::Data(data),
                // Not done as far as this side may know: the guest hears nothing of it.
                Err(DiskError::Deposed(_) | DiskError::Closed) => return,
                Err(error) => {
                    log::warn!("disk {disk}: {}", crate::engine::describe(&error));
                    DiskResult::Failed
                }
            };
            to.mailbox.disk_done(disk, id.0, result);
        }
        DiskEvent::Attached { stamp } => (to.news)(DiskNews::Attached { disk, stamp }),
        DiskEvent::Lost { why } => log::warn!("disk {disk}: the path to it broke: {why}"),
        DiskEvent::Deposed { why } => (to.news)(DiskNews::Deposed { disk, why }),
    }
}

fn as_op(op: &DiskOp) -> Op {
    match op {
        DiskOp::Read { offset, len } => Op::Read(Extent { offset: *offset, len: u64::from(*len) }),
        DiskOp::Write { offset, data } => {
            Op::Write { offset: *offset, data: data.clone(), durable: false }
        }
        DiskOp::Flush => Op::Flush,
        DiskOp::Discard { offset, len } => Op::Trim(Extent { offset: *offset, len: *len }),
        DiskOp::WriteZeroes { offset, len } => {
            let extent = Extent { offset: *offset, len: *len };
            Op::WriteZeroes { extent, may_free: true }
        }
    }
}
