//! Another NBD server as storage, for `lockstep disk` as a proxy.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::backend::{Backend, DiskError, DiskEvent, DiskInfo, Extent, Op, RequestId};
use crate::client::{NbdClient, NbdOptions};
use crate::nbd::dial::DialError;
use crate::storage::Storage;

type Waiters = BTreeMap<RequestId, SyncSender<Result<Vec<u8>, DiskError>>>;

/// An export of another server. While that server is away, requests wait for it.
pub(crate) struct Upstream {
    client: NbdClient,
    info: DiskInfo,
    waiting: Arc<Mutex<Waiters>>,
    next_id: AtomicU64,
}

impl Upstream {
    pub(crate) fn connect(options: NbdOptions) -> Result<Upstream, DialError> {
        let waiting = Arc::new(Mutex::new(Waiters::new()));
        let answered = Arc::clone(&waiting);
        let name = options.address.to_string();
        let sink = move |event| match event {
            DiskEvent::Done(done) => {
                let waiter = lock(&answered).remove(&done.id);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(done.result); // nobody waits any more
                }
            }
            DiskEvent::Lost { why } => log::warn!("{name}: {why}; trying again"),
            DiskEvent::Attached { .. } => log::info!("{name}: connected"),
            DiskEvent::Deposed { why } => log::error!("{name}: {why}"),
        };
        let client = NbdClient::connect(options, Box::new(sink))?;
        let info = client.info();
        Ok(Upstream { client, info, waiting, next_id: AtomicU64::new(0) })
    }

    fn perform(&self, op: Op) -> io::Result<Vec<u8>> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (done, wait) = sync_channel(1);
        lock(&self.waiting).insert(id, done);
        self.client.submit(id, op);
        let result = wait.recv().map_err(|_| io::Error::other("the connection was closed"))?;
        result.map_err(|error| match error {
            DiskError::Io(error) => error,
            DiskError::ReadOnly => io::ErrorKind::PermissionDenied.into(),
            DiskError::Invalid(why) => io::Error::new(io::ErrorKind::InvalidInput, why),
            error => io::Error::other(error),
        })
    }

    /// Splits a long range into requests that the server takes.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Extent> + use<> {
        let step = u64::from(self.info.request_len_max);
        (0..len.div_ceil(step))
            .map(move |index| index * step)
            .map(move |at| Extent { offset: offset + at, len: step.min(len - at) })
    }
}

fn lock(waiting: &Mutex<Waiters>) -> MutexGuard<'_, Waiters> {
    waiting.lock().expect("no thread panics while it holds the list of waiters")
}

impl Storage for Upstream {
    fn size(&self) -> u64 {
        self.info.size
    }

    fn read_only(&self) -> bool {
        self.info.read_only
    }

    fn align(&self) -> u32 {
        self.info.align
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        for extent in self.pieces(offset, buf.len() as u64) {
            let at = (extent.offset - offset) as usize;
            let data = self.perform(Op::Read(extent))?;
            buf[at..at + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        for extent in self.pieces(offset, data.len() as u64) {
            let at = (extent.offset - offset) as usize;
            let data = data[at..at + extent.len as usize].to_vec();
            self.perform(Op::Write { offset: extent.offset, data, durable: false })?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_free: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let extent = Extent { offset, len };
        match self.perform(Op::WriteZeroes { extent, may_free }) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                crate::storage::write_zeroes_slowly(self, offset, len)
            }
            Err(error) => Err(error),
        }
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.perform(Op::Trim(Extent { offset, len })) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done.map(drop),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.perform(Op::Flush).map(drop)
    }
}
