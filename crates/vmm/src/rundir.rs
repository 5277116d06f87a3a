//! The run directory: where the VMs of this user and host can be found.
//!
//! Each process has a control socket there, `NAME.sock`, and a note, `NAME.json`, that names the other
//! hosts where the VM may be once this process is gone. The note outlives the process on purpose.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest path of a Unix socket, without the NUL (`sun_path`).
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Why the run directory is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It cannot be made or read.
    #[error("cannot use run directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error("cannot listen on control socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process of that name runs already.
    #[error("a VM named {name} already runs here (control socket {})", path.display())]
    Taken {
        /// The VM.
        name: String,
        /// Its socket.
        path: PathBuf,
    },
}

/// What a process leaves behind for those who look for its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Addresses (`HOST:PORT`) of processes that may own the VM.
    pub peers: Vec<String>,
    /// The key file for talking to them, unless encryption is off.
    pub key: Option<PathBuf>,
    /// Processes of this host that ran the VM or were to, as the arbiter knows them, latest last. At
    /// most 64.
    pub claimants: Vec<String>,
}

/// Claimants remembered for each VM.
const CLAIMANTS_MAX: usize = 64;

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory `path`, or the user's own (`$XDG_RUNTIME_DIR/lockstep`, or
    /// `/run/lockstep` for root, or `/tmp/lockstep-UID`).
    #[must_use]
    pub fn new(path: Option<PathBuf>) -> RunDir {
        let own = || match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir).join("lockstep"),
            None if host::is_root() => PathBuf::from("/run/lockstep"),
            None => std::env::temp_dir().join(format!("lockstep-{}", host::user_id())),
        };
        RunDir(path.unwrap_or_else(own))
    }

    /// The control socket of `name`.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }

    fn note(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.lock"))
    }

    /// Whether the process `claimant` of VM `name`, which ran on this host, has ended for certain.
    /// `own` is the claimant of the process that asks, if it has that VM.
    #[must_use]
    pub fn is_gone(&self, name: &str, claimant: &str, own: Option<&str>) -> bool {
        let known =
            self.read_note(name).is_some_and(|note| note.claimants.iter().any(|c| c == claimant));
        if !known || own == Some(claimant) {
            return false;
        }
        // Whoever holds the lock is the only process of that VM here.
        own.is_some() || File::open(self.lock(name)).is_ok_and(|lock| lock.try_lock().is_ok())
    }

    /// Notes where processes of `name` may be, and by which key they are known.
    ///
    /// # Errors
    /// [`RunDirError::Directory`].
    pub fn note_peers(
        &self,
        name: &str,
        peers: &[String],
        key: Option<&Path>,
    ) -> Result<(), RunDirError> {
        let mut note = self.read_note(name).unwrap_or_default();
        note.peers = peers.to_vec();
        note.key = key.map(|key| std::path::absolute(key).unwrap_or_else(|_| key.to_owned()));
        self.write_note(name, &note)
    }

    /// Adds `claimant` to the note about `name`, before anybody else may hear of it.
    ///
    /// # Errors
    /// [`RunDirError::Directory`].
    pub fn add_claimant(&self, name: &str, claimant: &str) -> Result<(), RunDirError> {
        let mut note = self.read_note(name).unwrap_or_default();
        note.claimants.push(claimant.to_owned());
        let excess = note.claimants.len().saturating_sub(CLAIMANTS_MAX);
        note.claimants.drain(..excess);
        self.write_note(name, &note)
    }

    /// Listens for control connections under `name`.
    ///
    /// # Errors
    /// A [`RunDirError`]: [`RunDirError::Taken`] if another process does.
    pub fn listen(&self, name: &str) -> Result<ControlSocket, RunDirError> {
        self.create()?;
        let path = self.socket(name);
        let failed = |source| RunDirError::Socket { path: path.clone(), source };
        if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return Err(failed(io::ErrorKind::InvalidFilename.into()));
        }
        let lock = File::create(self.lock(name)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunDirError::Taken { name: name.to_owned(), path });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The lock is free, so the socket's process is gone.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(ControlSocket { listener, path, lock_path: self.lock(name), _lock: lock })
    }

    fn create(&self) -> Result<(), RunDirError> {
        let failed = |source| RunDirError::Directory { path: self.0.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        // In a directory that others can write to, they could put a socket of theirs in our place.
        if !host::files::is_ours_alone(&self.0).map_err(failed)? {
            return Err(failed(io::Error::other(
                "it is not a directory that only we can write to",
            )));
        }
        Ok(())
    }

    /// Leaves a note for those who look for `name`.
    ///
    /// # Errors
    /// [`RunDirError::Directory`].
    pub fn write_note(&self, name: &str, note: &Note) -> Result<(), RunDirError> {
        self.create()?;
        let text = serde_json::to_vec(note).expect("plain data always serializes");
        // In one step, so that a reader finds the old note or the new one.
        let new = self.0.join(format!("{name}.json.new"));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, self.note(name)))
            .map_err(|source| RunDirError::Directory { path: self.0.clone(), source })
    }

    /// The note about `name`, if there is one that can be read.
    #[must_use]
    pub fn read_note(&self, name: &str) -> Option<Note> {
        serde_json::from_slice(&std::fs::read(self.note(name)).ok()?).ok()
    }

    /// The names of all VMs that run or ran here, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return Vec::new() };
        let names = entries.filter_map(|entry| name_of(&entry.ok()?.path()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        names
    }
}

fn name_of(path: &Path) -> Option<String> {
    let is_ours = matches!(path.extension()?.to_str()?, "sock" | "json");
    is_ours.then(|| path.file_stem()?.to_str().map(str::to_owned)).flatten()
}

/// A control socket; its file vanishes with it.
#[derive(Debug)]
pub struct ControlSocket {
    /// Accepts control connections.
    pub listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    /// Held as long as the process lives, stopped or not.
    _lock: File,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // whoever finds it dead removes it as well
        if !self.path.with_extension("json").exists() {
            // Nobody asks for the lock of a VM without a note.
            let _ = std::fs::remove_file(&self.lock_path); // an empty file that is left is no harm
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_while_its_process_lives_and_free_afterwards() {
        let dir = std::env::temp_dir().join(format!("lockstep-rundir-{}", std::process::id()));
        let run_dir = RunDir::new(Some(dir.clone()));
        let socket = run_dir.listen("vm").unwrap();
        assert!(matches!(run_dir.listen("vm"), Err(RunDirError::Taken { .. })));
        // A process that was killed leaves its socket behind.
        std::fs::rename(run_dir.socket("vm"), dir.join("kept")).unwrap();
        drop(socket);
        std::fs::rename(dir.join("kept"), run_dir.socket("vm")).unwrap();
        assert!(run_dir.listen("vm").is_ok());

        let note = Note { peers: vec!["b:7".to_owned()], ..Note::default() };
        run_dir.write_note("vm", &note).unwrap();
        assert_eq!(run_dir.read_note("vm"), Some(note));
        assert_eq!(run_dir.names(), ["vm"]);

        run_dir.add_claimant("vm", "c1").unwrap();
        drop(run_dir.listen("vm").unwrap());
        assert!(run_dir.is_gone("vm", "c1", None));
        assert!(!run_dir.is_gone("vm", "c2", None), "nobody here knows it");
        let alive = run_dir.listen("vm").unwrap();
        assert!(!run_dir.is_gone("vm", "c1", None), "it may be the one that holds the name");
        assert!(run_dir.is_gone("vm", "c1", Some("c3")));
        drop(alive);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
