//! Where bytes are kept: blocking reads and writes, several threads at a time.

use std::io;

/// A disk image, or something that behaves like one.
///
/// Several threads call at the same time. Callers keep ranges inside the disk.
pub trait Storage: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The alignment that requests need.
    fn align(&self) -> u32 {
        1
    }

    /// Whether writes that were not flushed survive the end of this process, because the host's
    /// kernel has them. Nothing unflushed survives the end of the host.
    fn outlives_process(&self) -> bool {
        false
    }

    /// Fills `buf` from `offset`; data that is missing is an error, never zeroes.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`. It need not be durable yet.
    ///
    /// # Errors
    /// Whatever the medium says; [`io::ErrorKind::StorageFull`] where the host has no space left.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes; with `may_free` the space may be given back.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn write_zeroes(&self, offset: u64, len: u64, may_free: bool) -> io::Result<()>;

    /// Gives back the space of `len` bytes at `offset` where that is possible.
    ///
    /// # Errors
    /// Whatever the medium says.
    fn trim(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// Whatever the medium says. A flush that failed once fails for ever: which writes were lost is
    /// not known, and a later success would hide that.
    fn flush(&self) -> io::Result<()>;
}

/// Writes zeroes the plain way, for media that know no better one.
pub(crate) fn write_zeroes_slowly(storage: &dyn Storage, offset: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let zeroes = vec![0; CHUNK.min(len) as usize];
    let mut done = 0;
    while done < len {
        let step = CHUNK.min(len - done);
        storage.write_at(&zeroes[..step as usize], offset + done)?;
        done += step;
    }
    Ok(())
}
