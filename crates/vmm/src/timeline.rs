//! What happened to a VM and when, for machines to read: JSON lines in a file, and the latest in the
//! status. Rare events only; nothing that a guest can repeat.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use base::Nanos;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Events kept for the status.
const RECENT_MAX: usize = 64;

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
    file: Option<File>,
    recent: VecDeque<TimelineEvent>,
}

impl Timeline {
    /// A timeline that is appended to `path` as well, if there is one.
    ///
    /// # Errors
    /// What the system says about `path`.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Timeline> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Timeline { file: path.map(open).transpose()?, recent: VecDeque::new() })
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
            if let Err(error) = file.write_all(&line) {
                log::warn!("cannot write the timeline any further: {error}");
                self.file = None;
            }
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
