//! A recording: the event log in a file.
//!
//! The file holds the guest's secrets: its memory at the start and everything it was sent. So only its
//! owner may read it. Whole frames reach the kernel as they are made, so a recording whose process was
//! killed is whole up to the last few milliseconds.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base::{Icount, LogPos};
use replay::format::{Encoder, Entry};

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
    file: File,
    path: PathBuf,
    encoder: Encoder,
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
        let encoder = Encoder::new(pos, icount);
        let mut recording = Recording { file, path: path.to_owned(), encoder };
        recording.write(&Encoder::encode_start(start))?;
        Ok(recording)
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.encoder.push(entry);
    }

    /// Hands everything pushed to the kernel.
    pub(crate) fn flush(&mut self) -> Result<(), RecordingError> {
        let bytes = self.encoder.take_bytes();
        self.write(&bytes)
    }

    /// Makes everything durable.
    pub(crate) fn finish(mut self) -> Result<(), RecordingError> {
        self.flush()?;
        match self.file.sync_all() {
            // Not a file that keeps anything, such as a pipe.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            Err(source) => Err(RecordingError::Write { path: self.path, source }),
            Ok(()) => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecordingError> {
        self.file
            .write_all(bytes)
            .map_err(|source| RecordingError::Write { path: self.path.clone(), source })
    }
}
