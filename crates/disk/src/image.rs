//! Disk images in files: raw (also block devices) and qcow2.
//!
//! Raw is ours, because it has to tell a file that is too short from one that holds zeroes. qcow2 is
//! the crate `imago`. The format is never guessed from content: a guest that owns a raw disk could
//! write a qcow2 header into it and have the next start read any file of the host as its backing
//! file. It comes from the caller or from the file's name, and content that contradicts it is refused.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use rustix::fs::{FallocateFlags, fallocate};

use crate::backend::SECTOR_SIZE;
use crate::qcow2;
use crate::storage::{Storage, write_zeroes_slowly};

/// How a disk's bytes lie in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The file is the disk.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        match name {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(format!("unknown image format {name:?}, known are raw and qcow2")),
        }
    }
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageOptions {
    /// The format; without one, `qcow2` where the name ends so, otherwise raw.
    pub format: Option<Format>,
    /// Refuse writes.
    pub read_only: bool,
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened or read.
    #[error("cannot open disk image {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Somebody else has it open.
    #[error("disk image {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is neither a regular file nor a block device.
    #[error("disk image {path} is neither a file nor a block device")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file holds a qcow2 image but is to be used as a raw disk.
    #[error(
        "disk image {path} is named like a raw disk but begins like a qcow2 image; \
         say which one it is (format=qcow2 or format=raw)"
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in it.
    #[error("disk image {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The size cannot be a disk's.
    #[error("disk image {path} has {size} bytes, which is not a whole number of 512-byte sectors")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

/// Opens the image at `path`, and keeps every other process from writing to it meanwhile.
///
/// # Errors
/// Any [`ImageError`].
pub fn open_image(path: &Path, options: ImageOptions) -> Result<Box<dyn Storage>, ImageError> {
    let failed = |source| ImageError::Open { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).write(!options.read_only).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(ImageError::NotAFile { path: path.to_owned() });
    }
    lock(&file, path, options.read_only)?;

    let named_qcow2 = path.extension().is_some_and(|ext| ext == "qcow2");
    let format = match options.format {
        Some(format) => format,
        None if named_qcow2 => Format::Qcow2,
        None if begins_like_qcow2(&file).map_err(failed)? => {
            return Err(ImageError::Ambiguous { path: path.to_owned() });
        }
        None => Format::Raw,
    };
    let storage: Box<dyn Storage> = match format {
        Format::Raw => Box::new(RawImage::open(file, options.read_only).map_err(failed)?),
        Format::Qcow2 => Box::new(Qcow2Image::open(path, file, options.read_only).map_err(failed)?),
    };
    let size = storage.size();
    if size == 0 {
        return Err(ImageError::Empty { path: path.to_owned() });
    }
    if !size.is_multiple_of(SECTOR_SIZE) {
        return Err(ImageError::Size { path: path.to_owned(), size });
    }
    Ok(storage)
}

fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), ImageError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ImageError::InUse { path: path.to_owned() }),
        // Some network file systems have no locks. The disk is still usable there.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            log::warn!("cannot lock {}: {error}", path.display());
            Ok(())
        }
        Err(TryLockError::Error(source)) => Err(ImageError::Open { path: path.to_owned(), source }),
    }
}

fn begins_like_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = Vec::new();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    file.take(4).read_to_end(&mut magic)?;
    Ok(magic == *b"QFI\xfb")
}

/// Remembers that a flush failed.
#[derive(Debug, Default)]
pub(crate) struct FlushState {
    failed: AtomicBool,
}

impl FlushState {
    /// Runs a flush, unless an earlier one has failed.
    pub(crate) fn run(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush of this disk failed"));
        }
        flush().inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }
}

struct RawImage {
    file: File,
    size: u64,
    read_only: bool,
    flushes: FlushState,
}

impl RawImage {
    fn open(mut file: File, read_only: bool) -> io::Result<RawImage> {
        // A block device's metadata says length 0, but its end can be found.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(RawImage { file, size, read_only, flushes: FlushState::default() })
    }

    /// Whether the file system could do it; "cannot" is no error.
    fn punch(&self, offset: u64, len: u64, flags: FallocateFlags) -> io::Result<bool> {
        match fallocate(&self.file, flags, offset, len) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Storage for RawImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_free: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = if may_free {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        if self.punch(offset, len, flags)? {
            return Ok(());
        }
        write_zeroes_slowly(self, offset, len)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        if len > 0 {
            self.punch(offset, len, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.run(|| self.file.sync_data())
    }
}

struct Qcow2Image {
    /// Reads and writes share; discarding frees clusters that a mapping in use could name.
    image: RwLock<FormatAccess<imago::file::File>>,
    size: u64,
    read_only: bool,
    flushes: FlushState,
    /// Holds the lock on the file.
    _lock: File,
}

impl Qcow2Image {
    fn open(path: &Path, lock: File, read_only: bool) -> io::Result<Qcow2Image> {
        // A relative name would make relative backing files relative to nothing.
        let path = fs::canonicalize(path)?;
        if !read_only {
            let len = (&lock).seek(SeekFrom::End(0))?;
            qcow2::check(&lock, len)?;
        }
        let image = Qcow2::<imago::file::File>::builder_path(&path)
            .write(!read_only)
            .open(PermissiveImplicitOpenGate::default())?;
        let image = FormatAccess::new(image);
        let size = image.size();
        let flushes = FlushState::default();
        Ok(Qcow2Image { image: RwLock::new(image), size, read_only, flushes, _lock: lock })
    }
}

const POISONED: &str = "no thread panics while it holds an image";

impl Storage for Qcow2Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read().expect(POISONED).read(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.image.read().expect(POISONED).write(data, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_free: bool) -> io::Result<()> {
        let done = if may_free {
            self.image.write().expect(POISONED).discard_to_zero(offset, len)
        } else {
            self.image.read().expect(POISONED).write_zeroes(offset, len)
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                write_zeroes_slowly(self, offset, len)
            }
            done => done,
        }
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.image.write().expect(POISONED).discard_to_any(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.run(|| {
            let image = self.image.read().expect(POISONED);
            image.flush()?;
            image.sync()
        })
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        // Whatever the guest flushed is durable already; this keeps what it did not flush.
        if !self.read_only
            && let Err(error) = self.flush()
        {
            log::error!("cannot write back a qcow2 image: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(len: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(len).unwrap();
        (dir, path)
    }

    #[test]
    fn raw_reads_back_what_was_written_and_zeroed() {
        let (_dir, path) = raw(64 << 10);
        let disk = open_image(&path, ImageOptions::default()).unwrap();
        disk.write_at(&[7; 8192], 4096).unwrap();
        disk.write_zeroes(4096, 512, true).unwrap();
        disk.write_zeroes(4608, 512, false).unwrap();
        disk.flush().unwrap();
        let mut buf = [1; 8192];
        disk.read_at(&mut buf, 4096).unwrap();
        assert_eq!(buf[..1024], [0; 1024]);
        assert_eq!(buf[1024..], [7; 7168]);
    }

    #[test]
    fn a_raw_file_that_was_cut_short_under_us_is_an_error_not_zeroes() {
        let (_dir, path) = raw(8192);
        let disk = open_image(&path, ImageOptions::default()).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let error = disk.read_at(&mut [0; 4096], 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_second_writer_is_refused_while_readers_share() {
        let (_dir, path) = raw(8192);
        let read = ImageOptions { read_only: true, ..ImageOptions::default() };
        {
            let _writer = open_image(&path, ImageOptions::default()).unwrap();
            let again = open_image(&path, ImageOptions::default());
            assert!(matches!(again.err(), Some(ImageError::InUse { .. })));
            assert!(matches!(open_image(&path, read).err(), Some(ImageError::InUse { .. })));
        }
        let _reader = open_image(&path, read).unwrap();
        open_image(&path, read).unwrap();
    }

    #[test]
    fn a_raw_disk_with_a_qcow2_header_is_not_taken_for_either() {
        let (_dir, path) = raw(8192);
        fs::write(&path, [b"QFI\xfb".as_slice(), &[0; 508]].concat()).unwrap();
        let guessed = open_image(&path, ImageOptions::default());
        assert!(matches!(guessed.err(), Some(ImageError::Ambiguous { .. })));
        let raw = ImageOptions { format: Some(Format::Raw), ..ImageOptions::default() };
        assert_eq!(open_image(&path, raw).unwrap().size(), 512);
    }

    #[test]
    fn sizes_that_no_disk_has_are_named() {
        for size in [100, 513] {
            let (_dir, path) = raw(size);
            let error = open_image(&path, ImageOptions::default()).err().unwrap();
            assert!(matches!(error, ImageError::Size { size: found, .. } if found == size));
        }
        assert!(matches!(
            open_image(Path::new("/"), ImageOptions { read_only: true, format: None }).err(),
            Some(ImageError::NotAFile { .. })
        ));
    }

    #[test]
    fn a_failed_flush_is_never_forgotten() {
        let flushes = FlushState::default();
        flushes.run(|| Ok(())).unwrap();
        flushes.run(|| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        flushes.run(|| Ok(())).unwrap_err();
    }

    #[test]
    fn a_damaged_qcow2_header_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        for content in [&b"QFI\xfb"[..], &[0; 512], &[0xff; 4096]] {
            fs::write(&path, content).unwrap();
            let error = open_image(&path, ImageOptions::default()).err().unwrap();
            assert!(matches!(error, ImageError::Open { .. }), "{error}");
        }
    }
}
