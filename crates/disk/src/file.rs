//! A disk in a local file behind [`Backend`]: a few threads carry out what is queued.

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use crate::backend::{
    Backend, Completion, DiskError, DiskEvent, DiskInfo, EventSink, Op, REQUEST_LEN_MAX, RequestId,
    check,
};
use crate::image::{ImageError, ImageOptions, open_image};
use crate::overlay::Overlay;
use crate::stamp::Stamp;
use crate::storage::Storage;

/// Requests of one disk that are carried out at the same time.
const WORKERS: usize = 4;

/// How to open a local disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// Format and access.
    pub image: ImageOptions,
    /// Writes go to a temporary overlay that vanishes when the disk is closed.
    pub snapshot: bool,
}

/// Why a local disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileDiskError {
    /// The image itself.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The overlay for `--snapshot`.
    #[error("cannot make a temporary file for the disk's changes")]
    Overlay(#[source] io::Error),
    /// No thread.
    #[error("cannot start a thread for the disk")]
    Thread(#[source] io::Error),
}

/// A disk in a local file.
pub struct FileDisk {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    info: DiskInfo,
    storage: Box<dyn Storage>,
    sink: EventSink,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<(RequestId, Op)>,
    closed: bool,
}

impl FileDisk {
    /// Opens the image at `path`; events go to `sink`.
    ///
    /// # Errors
    /// Any [`FileDiskError`].
    pub fn open(
        path: &Path,
        options: FileOptions,
        sink: EventSink,
    ) -> Result<FileDisk, FileDiskError> {
        let mut image = options.image;
        image.read_only |= options.snapshot;
        let mut storage = open_image(path, image)?;
        if options.snapshot {
            storage = Box::new(Overlay::new(storage).map_err(FileDiskError::Overlay)?);
        }
        FileDisk::over(storage, sink)
    }

    /// A disk over any storage.
    ///
    /// # Errors
    /// [`FileDiskError::Thread`].
    pub fn over(storage: Box<dyn Storage>, sink: EventSink) -> Result<FileDisk, FileDiskError> {
        let info = DiskInfo {
            size: storage.size(),
            read_only: storage.read_only(),
            align: storage.align(),
            request_len_max: REQUEST_LEN_MAX,
            zeroes_and_trim: true,
            flush: true,
        };
        let shared =
            Arc::new(Shared { info, storage, sink, queue: Mutex::default(), wake: Condvar::new() });
        let mut disk = FileDisk { shared, workers: Vec::new() };
        for _ in 0..WORKERS {
            let shared = Arc::clone(&disk.shared);
            let worker = thread::Builder::new()
                .name("disk".to_owned())
                .spawn(move || shared.work())
                .map_err(FileDiskError::Thread)?;
            disk.workers.push(worker);
        }
        Ok(disk)
    }
}

impl Backend for FileDisk {
    fn info(&self) -> DiskInfo {
        self.shared.info
    }

    fn submit(&self, id: RequestId, op: Op) {
        let mut queue = self.shared.queue.lock().expect(POISONED);
        queue.requests.push_back((id, op));
        drop(queue);
        self.shared.wake.notify_one();
    }

    fn restamp(&self, stamp: Stamp) {
        // A local file has one user, which the lock on it sees to.
        (self.shared.sink)(DiskEvent::Attached { stamp: Some(stamp) });
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        let left = {
            let mut queue = self.shared.queue.lock().expect(POISONED);
            queue.closed = true;
            std::mem::take(&mut queue.requests)
        };
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a panic has already been reported on its thread
        }
        for (id, _) in left {
            self.shared.finish(id, Err(DiskError::Closed));
        }
    }
}

const POISONED: &str = "no thread panics while it holds a disk's queue";

impl Shared {
    fn work(&self) {
        while let Some((id, op)) = self.next() {
            let result = check(&op, &self.info).and_then(|()| perform(&*self.storage, &op));
            self.finish(id, result);
        }
    }

    fn next(&self) -> Option<(RequestId, Op)> {
        let mut queue = self.queue.lock().expect(POISONED);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            queue = self.wake.wait(queue).expect(POISONED);
        }
    }

    fn finish(&self, id: RequestId, result: Result<Vec<u8>, DiskError>) {
        (self.sink)(DiskEvent::Done(Completion { id, result }));
    }
}

/// Carries out a checked request. A damaged image must not take its server down with it, so a panic
/// of the image library is an I/O error of the request.
pub(crate) fn perform(storage: &dyn Storage, op: &Op) -> Result<Vec<u8>, DiskError> {
    panic::catch_unwind(AssertUnwindSafe(|| carry_out(storage, op))).unwrap_or_else(|_| {
        Err(DiskError::Io(io::Error::other("the image is damaged, its library gave up")))
    })
}

fn carry_out(storage: &dyn Storage, op: &Op) -> Result<Vec<u8>, DiskError> {
    match op {
        Op::Read(extent) => {
            let mut data = vec![0; extent.len as usize];
            storage.read_at(&mut data, extent.offset)?;
            return Ok(data);
        }
        Op::Write { offset, data, durable } => {
            storage.write_at(data, *offset)?;
            if *durable {
                storage.flush()?;
            }
        }
        Op::Flush => storage.flush()?,
        Op::WriteZeroes { extent, may_free } => {
            storage.write_zeroes(extent.offset, extent.len, *may_free)?;
        }
        Op::Trim(extent) => storage.trim(extent.offset, extent.len)?,
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc;

    use super::*;
    use crate::backend::Extent;

    fn open(
        options: FileOptions,
    ) -> (tempfile::NamedTempFile, FileDisk, mpsc::Receiver<Completion>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (done, completions) = mpsc::channel();
        let sink = Box::new(move |event| {
            if let DiskEvent::Done(completion) = event {
                done.send(completion).unwrap();
            }
        });
        let disk = FileDisk::open(file.path(), options, sink).unwrap();
        (file, disk, completions)
    }

    #[test]
    fn every_request_completes_once_under_its_own_id() {
        let (_file, disk, completions) = open(FileOptions::default());
        for id in 0..200 {
            let data = vec![id as u8; 512];
            disk.submit(RequestId(id), Op::Write { offset: id * 512, data, durable: false });
        }
        let mut ids: Vec<_> = (0..200).map(|_| completions.recv().unwrap().id.0).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..200));
        for id in 0..200 {
            disk.submit(RequestId(id), Op::Read(Extent { offset: id * 512, len: 512 }));
        }
        for _ in 0..200 {
            let completion = completions.recv().unwrap();
            assert_eq!(completion.result.unwrap(), [completion.id.0 as u8; 512]);
        }
    }

    #[test]
    fn requests_outside_the_disk_fail_and_touch_nothing() {
        let (_file, disk, completions) = open(FileOptions::default());
        let beyond = [
            Extent { offset: 1 << 20, len: 1 },
            Extent { offset: u64::MAX, len: 2 },
            Extent { offset: 0, len: u64::MAX },
        ];
        for extent in beyond {
            for op in [Op::Read(extent), Op::Trim(extent)] {
                disk.submit(RequestId(1), op);
                let result = completions.recv().unwrap().result;
                assert!(matches!(result, Err(DiskError::Invalid(_))));
            }
        }
    }

    #[test]
    fn a_snapshot_leaves_the_image_alone() {
        let (file, disk, completions) =
            open(FileOptions { snapshot: true, ..FileOptions::default() });
        disk.submit(RequestId(1), Op::Write { offset: 0, data: vec![1; 4096], durable: true });
        completions.recv().unwrap().result.unwrap();
        disk.submit(RequestId(2), Op::Read(Extent { offset: 0, len: 4096 }));
        assert_eq!(completions.recv().unwrap().result.unwrap(), [1; 4096]);
        drop(disk);
        assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_was_not_done_when_a_disk_is_closed_says_so() {
        let (_file, disk, completions) = open(FileOptions::default());
        for id in 0..100 {
            disk.submit(RequestId(id), Op::Flush);
        }
        drop(disk);
        let results: Vec<_> = completions.iter().collect();
        assert_eq!(results.len(), 100);
        assert!(results.iter().all(|done| matches!(done.result, Ok(_) | Err(DiskError::Closed))));
    }

    /// A full host disk: `/dev/full` takes the place of the file system.
    #[test]
    fn a_full_host_disk_is_an_error_of_the_request() {
        struct Full(File);
        impl Storage for Full {
            fn size(&self) -> u64 {
                4096
            }
            fn read_only(&self) -> bool {
                false
            }
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                panic!("damaged")
            }
            fn write_at(&self, data: &[u8], _: u64) -> io::Result<()> {
                std::io::Write::write_all(&mut &self.0, data)
            }
            fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
                Ok(())
            }
            fn trim(&self, _: u64, _: u64) -> io::Result<()> {
                Ok(())
            }
            fn flush(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let full = Full(File::options().write(true).open("/dev/full").unwrap());
        let write = Op::Write { offset: 0, data: vec![0; 512], durable: false };
        let error = perform(&full, &write).unwrap_err();
        assert!(
            matches!(error, DiskError::Io(error) if error.kind() == io::ErrorKind::StorageFull)
        );
        let error = perform(&full, &Op::Read(Extent { offset: 0, len: 512 })).unwrap_err();
        assert!(matches!(error, DiskError::Io(_)), "a panic below is an error too");
    }
}
