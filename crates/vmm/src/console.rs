//! What the guest wrote to a console, numbered from its first byte since power-on.
//!
//! Both sides of a pair number the same bytes alike, because both produce them. So a client that was
//! cut off by a failover asks the new owner for the bytes after the last one it has, and sees every byte
//! once. A bounded history is kept for that; a client that comes later than it reaches starts where the
//! history does, and is told so.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::Wake;

/// Bytes kept for clients that come late.
const HISTORY_LEN_MAX: usize = 1 << 20;
/// With so many bytes unread by a reader that must not miss any, the guest waits.
const UNREAD_LEN_MAX: u64 = 256 << 10;
/// Bytes handed over at once.
const PART_LEN_MAX: usize = 64 << 10;

/// The history of one console.
#[derive(Debug, Default)]
pub struct ConsoleHub {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// The last bytes, oldest first. At most [`HISTORY_LEN_MAX`], or what the patient reader has
    /// not read.
    history: VecDeque<u8>,
    /// Number of the byte that comes next.
    end: u64,
    /// Why nothing will come any more, once that is so.
    end_reason: Option<ConsoleEnd>,
    /// Up to where the reader that must not miss a byte has read, if there is one.
    patient: Option<u64>,
    watchers: Vec<Arc<Wake>>,
}

/// Why a console's output has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// The VM is off.
    Off,
    /// The VM goes on elsewhere, or may: whoever wants more looks for it there.
    Moved,
}

/// Bytes of a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Number of the first byte.
    pub first: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl ConsoleHub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in bytes that begin with number `first`. Those that are known already are skipped.
    pub fn append(&self, first: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        if first > inner.end {
            // A backup joined a running machine: what was before is not here.
            inner.history.clear();
            inner.end = first;
        }
        let known = usize::try_from(inner.end - first).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        inner.history.extend(new);
        inner.end += new.len() as u64;
        let keep = match inner.patient {
            Some(read) => HISTORY_LEN_MAX.max((inner.end - read) as usize),
            None => HISTORY_LEN_MAX,
        };
        let excess = inner.history.len().saturating_sub(keep);
        inner.history.drain(..excess);
        inner.watchers.iter().for_each(|wake| wake.ring());
        drop(inner);
        self.changed.notify_all();
    }

    /// What there is from byte `from` on, or from the oldest byte kept if `from` is older; empty at the
    /// end.
    #[must_use]
    pub fn read(&self, from: u64) -> Part {
        let inner = self.lock();
        let oldest = inner.end - inner.history.len() as u64;
        let first = from.clamp(oldest, inner.end);
        let skip = (first - oldest) as usize;
        Part { first, bytes: inner.history.iter().skip(skip).take(PART_LEN_MAX).copied().collect() }
    }

    /// Number of the byte that comes next.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.lock().end
    }

    /// Rings `wake` whenever there are new bytes, and when there will be no more.
    pub fn watch(&self, wake: Arc<Wake>) {
        self.lock().watchers.push(wake);
    }

    /// Ends what [`ConsoleHub::watch`] began.
    pub fn unwatch(&self, wake: &Arc<Wake>) {
        self.lock().watchers.retain(|watcher| !Arc::ptr_eq(watcher, wake));
        self.changed.notify_all();
    }

    /// Waits until everybody who watches a closed console has been told so, but no longer than `patience`:
    /// what follows may be the end of the process.
    pub fn wait_for_watchers(&self, patience: Duration) {
        let wait = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| !inner.watchers.is_empty());
        drop(wait);
    }

    /// Says that nothing will come any more.
    pub fn close(&self, why: ConsoleEnd) {
        let mut inner = self.lock();
        inner.end_reason = Some(why);
        inner.watchers.iter().for_each(|wake| wake.ring());
        drop(inner);
        self.changed.notify_all();
    }

    /// Why nothing will come any more, if that is so.
    #[must_use]
    pub fn end_reason(&self) -> Option<ConsoleEnd> {
        self.lock().end_reason
    }

    /// Whether the guest has to wait, because a reader that must not miss a byte is far behind.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let inner = self.lock();
        inner.end_reason.is_none()
            && inner.patient.is_some_and(|read| inner.end - read > UNREAD_LEN_MAX)
    }

    /// Announces a reader that must not miss a byte from here on; [`ConsoleHub::copy_to`] is it.
    pub fn reserve(&self) {
        let mut inner = self.lock();
        inner.patient = Some(inner.end);
    }

    /// Copies everything from where [`ConsoleHub::reserve`] was called to `out`, until the console is
    /// closed, however slow `out` is.
    ///
    /// # Errors
    /// If `out` fails. The guest then runs on without this reader.
    pub fn copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let copied = self.try_copy_to(out);
        self.lock().patient = None;
        copied
    }

    fn try_copy_to(&self, out: &mut dyn Write) -> io::Result<()> {
        loop {
            let mut inner = self.lock();
            let Some(mut read) = inner.patient else { return Ok(()) };
            while inner.end == read {
                if inner.end_reason.is_some() {
                    return Ok(());
                }
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            drop(inner);
            let part = self.read(read);
            out.write_all(&part.bytes)?;
            out.flush()?;
            read = part.first + part.bytes.len() as u64;
            self.lock().patient = Some(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour 157
    #[test]
    fn bytes_that_come_twice_are_kept_once() {
        let hub = ConsoleHub::default();
        hub.append(0, b"login: ");
        hub.append(5, b": root\n");
        hub.append(2, b"gin");
        assert_eq!(hub.read(0), Part { first: 0, bytes: b"login: root\n".to_vec() });
        assert_eq!(hub.read(7), Part { first: 7, bytes: b"root\n".to_vec() });
    }

    #[test]
    fn a_late_client_starts_at_the_oldest_byte_kept() {
        let hub = ConsoleHub::default();
        hub.append(0, &vec![b'a'; HISTORY_LEN_MAX]);
        hub.append(HISTORY_LEN_MAX as u64, b"bcd");
        let part = hub.read(0);
        assert_eq!((part.first, part.bytes[0]), (3, b'a'));
        assert!(hub.read(u64::MAX).bytes.is_empty());
    }

    #[test]
    fn a_patient_reader_misses_nothing_and_holds_the_guest_up() {
        let hub = ConsoleHub::default();
        hub.append(0, b"before");
        hub.reserve();
        let all: Vec<u8> = (0..2 * HISTORY_LEN_MAX).map(|n| (n >> 4) as u8).collect();
        hub.append(6, &all);
        assert!(hub.is_full());
        hub.close(ConsoleEnd::Off);
        let mut copied = Vec::new();
        hub.copy_to(&mut copied).unwrap();
        assert!(copied == all);
        assert!(!hub.is_full());
    }

    #[test]
    fn who_watches_a_console_is_waited_for_but_not_for_ever() {
        let hub = Arc::new(ConsoleHub::default());
        let [slow, stuck] = [(), ()].map(|()| Arc::new(Wake::new().unwrap()));
        hub.watch(slow.clone());
        hub.close(ConsoleEnd::Off);
        let (told, is_told) = std::sync::mpsc::channel();
        let watched = hub.clone();
        let watcher = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            told.send(()).unwrap();
            watched.unwatch(&slow);
        });
        hub.wait_for_watchers(Duration::from_secs(60));
        is_told.try_recv().expect("it was told before the wait was over");
        watcher.join().unwrap();
        hub.watch(stuck);
        hub.wait_for_watchers(Duration::from_millis(1));
    }
}
