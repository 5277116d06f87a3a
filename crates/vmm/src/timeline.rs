//! What happened to a VM and when, for machines to read: JSON lines in a file, and the latest in the
//! status. Rare events only; nothing that a guest can repeat.
//!
//! The file has a thread of its own, because a busy file system may hold a writer up for longer than
//! the other side waits for a heartbeat.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base::Nanos;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Events kept for the status.
const RECENT_MAX: usize = 64;
/// An event is in the file before anything follows from it, unless that takes longer than this.
const WRITE_PATIENCE: Duration = Duration::from_millis(20);

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineEvent {
    /// What, such as `peer_failed`, `claiming`, `won`, `replayed`, `live`, `first_output`.
    pub event: String,
    /// When, by the host's clock since boot, which all processes of a host share.
    pub boottime_ns: u64,
    /// When, by the wall clock, in nanoseconds since 1970.
    pub wall_ns: u64,
    /// More about it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// The events of one process.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    file: Option<Writer>,
    recent: VecDeque<TimelineEvent>,
}

impl Timeline {
    /// A timeline that is appended to `path` as well, if there is one.
    ///
    /// # Errors
    /// What the system says about `path`.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Timeline> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        let file = path.map(open).transpose()?.map(Writer::start).transpose()?;
        Ok(Timeline { file, recent: VecDeque::new() })
    }

    /// Notes that `event` happened now.
    pub(crate) fn push(&mut self, event: &str, detail: Value) {
        self.push_at(event, host::clock::boottime(), detail);
    }

    /// Notes that `event` happened at `at` (`CLOCK_BOOTTIME`).
    pub(crate) fn push_at(&mut self, event: &str, at: Nanos, detail: Value) {
        let ago = host::clock::boottime().0.saturating_sub(at.0);
        let event = TimelineEvent {
            event: event.to_owned(),
            boottime_ns: at.0,
            wall_ns: host::clock::wall().0.saturating_sub(ago),
            detail,
        };
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&event).expect("plain data always serializes");
            line.push(b'\n');
            file.write(line);
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    /// The latest events, oldest first.
    #[must_use]
    pub(crate) fn recent(&self) -> Vec<TimelineEvent> {
        self.recent.iter().cloned().collect()
    }
}

/// The thread that writes the file, and what it has not written yet.
#[derive(Debug)]
struct Writer {
    /// Always there until the end.
    lines: Option<Sender<Vec<u8>>>,
    written: Receiver<()>,
    unwritten: usize,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(mut file: File) -> io::Result<Writer> {
        let (lines, to_write) = mpsc::channel::<Vec<u8>>();
        let (done, written) = mpsc::channel();
        let thread = thread::Builder::new().name("timeline".to_owned()).spawn(move || {
            for line in to_write {
                if let Err(error) = file.write_all(&line) {
                    log::warn!("cannot write the timeline any further: {error}");
                    return;
                }
                let _ = done.send(()); // at the end nobody waits for it
            }
        })?;
        Ok(Writer { lines: Some(lines), written, unwritten: 0, thread: Some(thread) })
    }

    /// Writes a line. Waits a little until it is there, but not behind a line that is late already.
    fn write(&mut self, line: Vec<u8>) {
        self.unwritten -= self.written.try_iter().count();
        let waits = self.unwritten == 0;
        let Some(Ok(())) = self.lines.as_ref().map(|lines| lines.send(line)) else { return };
        self.unwritten += 1;
        if waits && self.written.recv_timeout(WRITE_PATIENCE).is_ok() {
            self.unwritten -= 1;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has told what went wrong
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    /// behaviour 47: heartbeats leave the thread that notes what happens.
    #[test]
    fn a_file_that_takes_nothing_holds_nobody_up_and_loses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = Writer::start(File::from(OwnedFd::from(writer))).unwrap();
        let mut timeline = Timeline { file: Some(file), recent: VecDeque::new() };
        // More than a pipe has room for.
        let words = "x".repeat(10_000);
        for number in 0..20 {
            timeline.push("told", serde_json::json!({ "number": number, "words": words }));
        }
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        drop(timeline);
        let text = reading.join().unwrap().unwrap();
        let numbers = text.lines().map(|line| {
            let event: TimelineEvent = serde_json::from_str(line).unwrap();
            event.detail["number"].as_u64().unwrap()
        });
        assert!(numbers.eq(0..20), "{text}");
    }
}
