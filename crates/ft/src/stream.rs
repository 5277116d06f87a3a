//! The primary's end of the log: entries on their way to the backup.
//!
//! Entries are kept until the backup has acknowledged them, so that a stream that broke can be
//! taken up again where it was. The backup grants credit for what its own buffer can take; without
//! credit entries wait here, and pings still pass.

use std::collections::VecDeque;

use base::{LogPos, Nanos};

use crate::message::{ENTRY_LEN_MAX, Entry};
use crate::timing::LOG_FLUSH;

/// With this many bytes of entries unacknowledged, the primary stops.
pub const LOG_BUFFER_LEN_MAX: u64 = 64 << 20;
/// A stopped primary resumes below this.
pub(crate) const LOG_BUFFER_RESUME: u64 = LOG_BUFFER_LEN_MAX / 2;
/// The backup takes this many bytes of entries that its machine has not executed.
pub const BACKUP_BUFFER_LEN_MAX: u64 = 64 << 20;
/// Entries of one message, in bytes; a single entry may be longer.
const BATCH_LEN_MAX: u64 = 256 << 10;
/// Appends this close to each other share one mark of the lag.
const MARK_AGE: Nanos = Nanos(1_000_000);

const _: () =
    assert!(BACKUP_BUFFER_LEN_MAX > 2 * ENTRY_LEN_MAX as u64, "an empty buffer takes any");

/// What an entry takes up: its bytes, and something for its place in the buffers, so that a flood of
/// tiny entries is bounded too.
pub(crate) fn entry_cost(entry: &Entry) -> u64 {
    entry.bytes.len() as u64 + 32
}

#[derive(Debug)]
pub(crate) struct LogStream {
    /// From `acked` to `end`.
    entries: VecDeque<Entry>,
    acked: Point,
    sent: Point,
    end: Point,
    /// The backup takes entries up to this many bytes since the start.
    credit: u64,
    executed: LogPos,
    /// Unexecuted stretches of the log: where each ends, and when its first entry was written.
    marks: VecDeque<(LogPos, Nanos)>,
    /// When the entries that were not sent have to go.
    flush: Option<Nanos>,
}

/// A position, and the bytes from the start to it.
#[derive(Clone, Copy, Debug)]
struct Point {
    pos: LogPos,
    len: u64,
}

impl Point {
    fn after(self, entry: &Entry) -> Point {
        Point { pos: LogPos(self.pos.0 + 1), len: self.len + entry_cost(entry) }
    }
}

impl LogStream {
    pub(crate) fn new(start: LogPos) -> LogStream {
        let start = Point { pos: start, len: 0 };
        LogStream {
            entries: VecDeque::new(),
            acked: start,
            sent: start,
            end: start,
            credit: BACKUP_BUFFER_LEN_MAX,
            executed: start.pos,
            marks: VecDeque::new(),
            flush: None,
        }
    }

    pub(crate) fn append(&mut self, now: Nanos, entry: Entry) {
        self.end = self.end.after(&entry);
        self.entries.push_back(entry);
        match self.marks.back_mut() {
            Some((pos, since)) if now.0 - since.0 < MARK_AGE.0 => *pos = self.end.pos,
            _ => self.marks.push_back((self.end.pos, now)),
        }
        let due = Nanos(now.0 + LOG_FLUSH.0);
        self.flush = Some(self.flush.unwrap_or(due).min(due));
    }

    /// An output waits for what was appended: do not wait for a batch.
    pub(crate) fn flush_at_once(&mut self, now: Nanos) {
        if self.sent.pos < self.end.pos {
            self.flush = Some(now);
        }
    }

    /// Returns false if the backup says what cannot be.
    #[must_use]
    pub(crate) fn handle_ack(&mut self, received: LogPos, executed: LogPos, credit: u64) -> bool {
        if received > self.end.pos || executed > received {
            return false;
        }
        while self.acked.pos < received {
            let entry = self.entries.pop_front().expect("entries reach from `acked` to `end`");
            self.acked = self.acked.after(&entry);
        }
        if self.sent.pos < self.acked.pos {
            self.sent = self.acked;
        }
        self.credit = self.credit.max(credit);
        self.handle_executed(executed);
        true
    }

    pub(crate) fn handle_executed(&mut self, executed: LogPos) {
        self.executed = self.executed.max(executed);
        while self.marks.front().is_some_and(|(pos, _)| *pos <= self.executed) {
            self.marks.pop_front();
        }
    }

    /// What was sent on a broken stream and not acknowledged goes again.
    pub(crate) fn rewind(&mut self, now: Nanos) {
        self.sent = self.acked;
        self.flush_at_once(now);
    }

    /// The next batch that is due and that the backup has room for.
    pub(crate) fn poll_batch(&mut self, now: Nanos) -> Option<(LogPos, Vec<Entry>)> {
        if self.flush.is_none_or(|due| now < due) {
            return None;
        }
        let first = self.sent;
        let skip = (first.pos.0 - self.acked.pos.0) as usize;
        let mut batch = vec![];
        for entry in self.entries.range(skip..) {
            let next = self.sent.after(entry);
            if next.len > self.credit || (!batch.is_empty() && next.len - first.len > BATCH_LEN_MAX)
            {
                break;
            }
            self.sent = next;
            batch.push(entry.clone());
        }
        if self.sent.pos == self.end.pos {
            self.flush = None;
        }
        (!batch.is_empty()).then_some((first.pos, batch))
    }

    /// When the next batch is due, if the backup has room for it.
    pub(crate) fn flush_due(&self) -> Option<Nanos> {
        let skip = (self.sent.pos.0 - self.acked.pos.0) as usize;
        let next = self.sent.after(self.entries.get(skip)?);
        self.flush.filter(|_| next.len <= self.credit)
    }

    /// Age of the oldest entry that the backup has not executed.
    pub(crate) fn lag(&self, now: Nanos) -> Nanos {
        Nanos(self.marks.front().map_or(0, |(_, since)| now.0.saturating_sub(since.0)))
    }

    pub(crate) fn acked(&self) -> LogPos {
        self.acked.pos
    }

    pub(crate) fn sent(&self) -> LogPos {
        self.sent.pos
    }

    pub(crate) fn executed(&self) -> LogPos {
        self.executed
    }

    pub(crate) fn unacked_len(&self) -> u64 {
        self.end.len - self.acked.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::EntryKind;

    fn entry(len: usize) -> Entry {
        Entry { kind: EntryKind::Event, bytes: vec![7; len] }
    }

    fn stream(entries: usize) -> LogStream {
        let mut stream = LogStream::new(LogPos(100));
        (0..entries).for_each(|_| stream.append(Nanos(0), entry(10)));
        stream
    }

    #[test]
    fn batch_waits_for_its_age_unless_an_output_waits() {
        let mut stream = stream(2);
        assert!(stream.poll_batch(Nanos(0)).is_none());
        stream.flush_at_once(Nanos(0));
        let (first, batch) = stream.poll_batch(Nanos(0)).unwrap();
        assert_eq!((first, batch.len()), (LogPos(100), 2));
        assert!(stream.poll_batch(LOG_FLUSH).is_none(), "sent once");
    }

    #[test]
    fn what_a_broken_stream_swallowed_goes_again_from_the_acknowledged_position() {
        let mut stream = stream(5);
        stream.flush_at_once(Nanos(0));
        stream.poll_batch(Nanos(0)).unwrap();
        assert!(stream.handle_ack(LogPos(102), LogPos(100), 1 << 20));
        stream.rewind(Nanos(0));
        let (first, batch) = stream.poll_batch(Nanos(0)).unwrap();
        assert_eq!((first, batch.len()), (LogPos(102), 3));
    }

    #[test]
    fn entries_without_credit_wait_and_follow_when_it_comes() {
        let mut stream = LogStream::new(LogPos(0));
        for _ in 0..9 {
            stream.append(Nanos(0), entry(8 << 20));
        }
        let mut sent = 0;
        while let Some((_, batch)) = stream.poll_batch(LOG_FLUSH) {
            sent += batch.len();
        }
        assert_eq!(sent, 7, "64 MiB take seven entries of a little over 8 MiB");
        assert!(stream.flush_due().is_none());
        assert!(stream.handle_ack(LogPos(7), LogPos(3), 100 << 20));
        assert_eq!(stream.poll_batch(LOG_FLUSH).unwrap().0, LogPos(7));
    }

    #[test]
    fn impossible_acks_are_refused() {
        let mut stream = stream(2);
        assert!(!stream.handle_ack(LogPos(103), LogPos(100), 0));
        assert!(!stream.handle_ack(LogPos(101), LogPos(102), 0));
    }

    /// behaviour 90
    #[test]
    fn lag_is_the_age_of_the_oldest_unexecuted_entry() {
        let mut stream = LogStream::new(LogPos(0));
        for at in [0u64, 5, 10] {
            stream.append(Nanos(at * MARK_AGE.0), entry(1));
        }
        let now = Nanos(20 * MARK_AGE.0);
        assert_eq!(stream.lag(now), Nanos(20 * MARK_AGE.0));
        assert!(stream.handle_ack(LogPos(3), LogPos(1), 0));
        assert_eq!(stream.lag(now), Nanos(15 * MARK_AGE.0));
        assert!(stream.handle_ack(LogPos(3), LogPos(3), 0));
        assert_eq!(stream.lag(now), Nanos(0));
    }
}
