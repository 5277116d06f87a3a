//! A recording: the event log in a file.
//!
//! The file holds the guest's secrets: its memory at the start and everything it was sent. So only its
//! owner may read it. Whole frames reach the kernel as they are made, so a recording whose process was
//! killed is whole up to the last few milliseconds.
//!
//! A little is written at once. Much (what a guest downloads, or reads from its disk) goes to the kernel by
//! a thread of its own, so that the guest runs on meanwhile; and the kernel is told to keep none of it, since
//! a recording of many GiB would push everything else out of the host's memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use base::{Icount, LogPos};
use replay::format::{Encoder, Entry};

/// Less than this is written by whoever flushes, if nothing else waits.
const ASIDE_LEN_MIN: usize = 32 << 10;
/// With this many bytes that the kernel has not taken, whoever flushes has to wait.
const QUEUED_LEN_MAX: usize = 16 << 20;
/// The kernel is told about so many bytes at a time.
const PART_LEN: u64 = 8 << 20;
/// What was written so long ago should be on the disk.
const WRITTEN_AFTER: u64 = 4 * PART_LEN;

/// Why a recording cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be made.
    #[error("cannot create recording {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file takes no more.
    #[error("cannot write recording {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A recording under way.
#[derive(Debug)]
pub(crate) struct Recording {
    path: PathBuf,
    encoder: Encoder,
    queue: Arc<Queue>,
    /// Empties the queue until it is closed.
    thread: Option<JoinHandle<()>>,
}

/// What is on its way to the file.
#[derive(Debug)]
struct Queue {
    file: File,
    waiting: Mutex<Waiting>,
    /// The thread has something to do.
    came: Condvar,
    /// The thread has done something.
    went: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Pieces of the log, in order.
    pieces: VecDeque<Vec<u8>>,
    /// Their bytes, and those of the piece that the thread is writing. At 0, the file is the flusher's.
    len: usize,
    /// Why nothing can be written any more.
    failed: Option<io::Error>,
    closed: bool,
    /// How much was written, and up to where the kernel was told of it.
    written: u64,
    told: u64,
}

impl Recording {
    /// Begins a recording with the machine's saved state, where it stands at `icount`.
    pub(crate) fn create(
        path: &Path,
        start: &[u8],
        pos: LogPos,
        icount: Icount,
    ) -> Result<Recording, RecordingError> {
        let file = host::files::create_private(path)
            .map_err(|source| RecordingError::Create { path: path.to_owned(), source })?;
        let recording = Recording::new(file, path, pos, icount)?;
        let start = Encoder::encode_start(start);
        (&recording.queue.file).write_all(&start).map_err(|source| recording.failed(source))?;
        Ok(recording)
    }

    /// Goes on at the end of `file`.
    fn new(
        file: File,
        path: &Path,
        pos: LogPos,
        icount: Icount,
    ) -> Result<Recording, RecordingError> {
        let queue = Arc::new(Queue {
            file,
            waiting: Mutex::default(),
            came: Condvar::new(),
            went: Condvar::new(),
        });
        let writer = queue.clone();
        let thread = thread::Builder::new().name("recording".to_owned());
        let thread = thread
            .spawn(move || writer.empty())
            .map_err(|source| RecordingError::Create { path: path.to_owned(), source })?;
        let encoder = Encoder::new(pos, icount);
        Ok(Recording { path: path.to_owned(), encoder, queue, thread: Some(thread) })
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.encoder.push(entry);
    }

    /// Hands everything pushed on, to the kernel or to the thread that writes.
    pub(crate) fn flush(&mut self) -> Result<(), RecordingError> {
        if self.encoder.is_empty() {
            return Ok(());
        }
        let bytes = self.encoder.take_bytes();
        self.queue.put(bytes).map_err(|source| self.failed(source))
    }

    /// Makes everything durable.
    pub(crate) fn finish(mut self) -> Result<(), RecordingError> {
        self.flush()?;
        self.close();
        let mut waiting = self.queue.lock();
        let synced = waiting.failed.take().map_or_else(|| self.queue.file.sync_all(), Err);
        match synced {
            // Not a file that keeps anything, such as a pipe.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(source) => Err(self.failed(source)),
            Ok(()) => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> RecordingError {
        RecordingError::Write { path: self.path.clone(), source }
    }

    /// Waits until the thread has written what it was given.
    fn close(&mut self) {
        self.queue.lock().closed = true;
        self.queue.came.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it does nothing that panics
        }
    }
}

impl Drop for Recording {
    /// A machine's thread that broke has a recording up to where it broke.
    fn drop(&mut self) {
        self.close();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, bytes: Vec<u8>) -> io::Result<()> {
        let mut waiting = self.lock();
        while waiting.len >= QUEUED_LEN_MAX && waiting.failed.is_none() {
            waiting = self.went.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = waiting.failed.take() {
            return Err(error);
        }
        if waiting.len == 0 && bytes.len() < ASIDE_LEN_MIN {
            (&self.file).write_all(&bytes)?;
            waiting.written += bytes.len() as u64;
            if !waiting.has_part() {
                return Ok(());
            }
        } else {
            waiting.len += bytes.len();
            waiting.pieces.push_back(bytes);
        }
        drop(waiting);
        self.came.notify_one();
        Ok(())
    }

    /// Writes what comes, until the queue is closed and empty.
    fn empty(&self) {
        let mut waiting = self.lock();
        loop {
            if waiting.has_part() {
                let part = waiting.told..waiting.written;
                waiting.told = part.end;
                drop(waiting);
                let before = |at: u64| at.saturating_sub(WRITTEN_AFTER);
                host::files::pass_through(&self.file, before(part.start)..before(part.end));
                host::files::pass_through(&self.file, part);
            } else if let Some(piece) = waiting.pieces.pop_front() {
                drop(waiting);
                let result = (&self.file).write_all(&piece);
                self.lock().note_written(piece.len(), result);
                self.went.notify_one();
            } else if waiting.closed {
                return;
            } else {
                drop(self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner));
            }
            waiting = self.lock();
        }
    }
}

impl Waiting {
    fn has_part(&self) -> bool {
        self.written - self.told >= PART_LEN
    }

    fn note_written(&mut self, len: usize, result: io::Result<()>) {
        self.len -= len;
        self.written += len as u64;
        if let Err(error) = result {
            self.failed = Some(error);
            self.pieces.clear();
            self.len = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Generation;
    use machine::event::{DiskResult, Event};
    use replay::format::{Body, Decoder, Item};

    use super::*;

    fn entry(index: u64, len: usize) -> Entry {
        let result = DiskResult::Data(vec![index as u8; len]);
        let body = Body::Event(Event::DiskDone { disk: 0, request: index, result });
        Entry { icount: Icount(index), body }
    }

    fn read(path: &Path) -> Vec<Entry> {
        let mut decoder = Decoder::new();
        decoder.feed(&std::fs::read(path).unwrap());
        let items = std::iter::from_fn(|| decoder.poll().unwrap());
        items
            .filter_map(|item| if let Item::Entry(entry) = item { Some(entry) } else { None })
            .collect()
    }

    /// Little and much take turns, which is two threads' turns at the file.
    #[test]
    fn pieces_of_any_size_are_in_the_file_in_their_order() {
        let path = std::env::temp_dir().join(format!("lockstep-recording-{}", std::process::id()));
        let mut recording = Recording::create(&path, b"start", LogPos(0), Icount(0)).unwrap();
        let lens = [10, 40 << 10, 10, 300 << 10, 10, 10, 12 << 20, 10, 12 << 20, 9 << 20, 10];
        let entries: Vec<Entry> =
            lens.iter().enumerate().map(|(index, len)| entry(index as u64, *len)).collect();
        for entry in &entries {
            recording.push(entry.clone());
            recording.flush().unwrap();
        }
        let last = Entry { icount: Icount(99), body: Body::Armed(Generation(1)) };
        recording.push(last.clone());
        recording.finish().unwrap();
        let found = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(found[..entries.len()] == entries[..]);
        assert_eq!(found[entries.len()..], [last]);
    }

    #[test]
    fn a_recording_that_is_dropped_has_what_was_flushed() {
        let path = std::env::temp_dir().join(format!("lockstep-dropped-{}", std::process::id()));
        let mut recording = Recording::create(&path, b"start", LogPos(0), Icount(0)).unwrap();
        recording.push(entry(0, 15 << 20));
        recording.flush().unwrap();
        drop(recording);
        let found = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(found == [entry(0, 15 << 20)]);
    }

    #[test]
    fn a_full_disk_is_told_whoever_writes() {
        for len in [10, 1 << 20] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut recording =
                Recording::new(full, Path::new("full"), LogPos(0), Icount(0)).unwrap();
            recording.push(entry(0, len));
            let written = recording.finish();
            assert!(matches!(written, Err(RecordingError::Write { .. })), "{len} bytes");
        }
    }
}
