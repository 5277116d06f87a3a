//! The server's state directory: small files that survive a crash at any moment.
//!
//! A file is written whole beside its old version, made durable, and renamed over it; the rename is
//! made durable too before anybody hears of the new state. A file that cannot be read stops the
//! server: to forget a fence or a claim would let two copies of a VM run.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base::{RestoreError, Saved, restore_bytes, save_bytes};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made, opened or locked.
    #[error("cannot use state directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Another server runs on it.
    #[error("state directory {path} is in use by another disk server")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A file's checksum or content is wrong.
    #[error(
        "{path} is damaged; it says who may run a VM or write to a disk, so the server does not \
         start without it (restore it, or delete it once no host runs that VM)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said, unless the checksum was wrong.
        source: Option<RestoreError>,
    },
}

/// An open state directory, locked against other servers.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    dir: File,
    _lock: File,
}

impl StateDir {
    /// Opens `path`, and makes it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<StateDir, StateError> {
        let failed = |source| StateError::Directory { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let dir = File::open(path).map_err(failed)?;
        let mut options = private();
        let lock = options.create(true).open(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The directory's own entry has to be durable before anything in it can be.
        if let Some(parent) = fs::canonicalize(path).map_err(failed)?.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        Ok(StateDir { path: path.to_owned(), dir, _lock: lock })
    }

    /// What the file `name` holds, if there is one.
    pub(crate) fn read<S: Saved>(&self, name: &str) -> Result<Option<S>, StateError> {
        let path = self.path.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        let damaged = |source| StateError::Damaged { path: path.clone(), source };
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged(None))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(damaged(None));
        }
        let (state, rest) = restore_bytes(body).map_err(|error| damaged(Some(error)))?;
        if rest.is_empty() { Ok(Some(state)) } else { Err(damaged(None)) }
    }

    /// Replaces the file `name`. Durable when this returns without an error; after an error either
    /// version may be found after a restart.
    pub(crate) fn write<S: Saved>(&self, name: &str, state: &S) -> io::Result<()> {
        let mut bytes = save_bytes(state);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let next = self.path.join(format!("{name}.next"));
        let mut options = private();
        let mut file = options.create(true).truncate(true).open(&next)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&next, self.path.join(name))?;
        self.dir.sync_all()
    }

    /// The names of all files that end in `suffix`.
    pub(crate) fn names(&self, suffix: &str) -> Result<Vec<String>, StateError> {
        let failed = |source| StateError::Directory { path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().filter(|name| name.ends_with(suffix)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

/// Options for a file that only its owner may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// `name` as a part of a file's name: everything unusual as `%` and two digits.
pub(crate) fn file_part(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let encode = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") }
    };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note(String);
    impl Saved for Note {
        const KIND: &'static str = "note";
        const VERSION: u16 = 1;
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read::<Note>("a.note").unwrap(), None);
        state.write("a.note", &Note("one".into())).unwrap();
        state.write("a.note", &Note("two".into())).unwrap();
        drop(state);
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read("a.note").unwrap(), Some(Note("two".into())));
        assert_eq!(state.names(".note").unwrap(), ["a.note"]);
        let mode = fs::metadata(path.join("a.note")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_server_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _state = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::InUse { .. })));
    }

    #[test]
    fn every_damage_is_found_rather_than_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write("a.note", &Note("one".into())).unwrap();
        let path = dir.path().join("a.note");
        let whole = fs::read(&path).unwrap();
        let damaged = || matches!(state.read::<Note>("a.note"), Err(StateError::Damaged { .. }));
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(damaged(), "cut to {len} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            assert!(damaged(), "bit {bit} flipped");
        }
    }

    #[test]
    fn names_never_leave_the_directory_nor_collide() {
        assert_eq!(file_part("web-1_a"), "web-1_a");
        assert_eq!(file_part("../x"), "%2e%2e%2fx");
        assert_ne!(file_part("a.b"), file_part("a%2eb"));
    }
}
