//! Files that hold secrets.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Creates a file that only its owner may read (mode 0600). An existing file loses its content and its
/// wider permissions.
///
/// # Errors
/// What the system says about `path`.
pub fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // The mode above is for new files only. Devices such as /dev/full keep theirs.
    if file.metadata()?.is_file() {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Has the kernel write a part of `file` to the disk soon, and forget what of it is written already. For
/// long files that nobody reads soon: they would push everything else out of the host's memory.
pub fn pass_through(file: &File, part: std::ops::Range<u64>) {
    let to_offset = |at: u64| i64::try_from(at).unwrap_or(i64::MAX);
    let (offset, end) = (to_offset(part.start), to_offset(part.end));
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    let _ = posix_fadvise(file, offset, end - offset, advice); // advice; a pipe takes none
}

/// Writes a new file that only its owner may read, and refuses to replace one.
///
/// # Errors
/// What the system says about `path`; `AlreadyExists` if there is one.
pub fn write_new_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Whether somebody other than its owner may read the file.
///
/// # Errors
/// What the system says about `path`.
pub fn readable_by_others(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

/// Whether `path` is a directory of this user that nobody else can write to.
///
/// # Errors
/// What the system says about `path`.
pub fn is_ours_alone(path: &Path) -> io::Result<bool> {
    let found = std::fs::symlink_metadata(path)?;
    let ours = found.uid() == crate::user_id();
    Ok(found.is_dir() && ours && found.permissions().mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_private_even_if_it_was_there_before() {
        let path = std::env::temp_dir().join(format!("lockstep-private-{}", std::process::id()));
        std::fs::write(&path, "open to all").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        create_private(&path).unwrap().write_all(b"secret").unwrap();
        let (mode, others) = (std::fs::metadata(&path), readable_by_others(&path));
        let content = std::fs::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(mode.unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!others.unwrap());
        assert_eq!(content.unwrap(), b"secret");
    }
}
