//! `--snapshot`: writes go to a temporary file without a name, which vanishes with the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::RwLock;

use crate::storage::Storage;

/// The unit in which the overlay knows where the newer bytes are.
const BLOCK_LEN: u64 = 4096;

/// A storage whose writes never reach the one below it.
pub struct Overlay {
    below: Box<dyn Storage>,
    file: File,
    /// One bit for each block: whether the overlay's file holds it.
    written: RwLock<Vec<u64>>,
}

impl Overlay {
    /// An overlay over `below`, without any change yet.
    ///
    /// # Errors
    /// If no temporary file can be made.
    pub fn new(below: Box<dyn Storage>) -> io::Result<Overlay> {
        let file = tempfile::tempfile()?;
        file.set_len(below.size())?;
        let blocks = below.size().div_ceil(BLOCK_LEN);
        let written = RwLock::new(vec![0; blocks.div_ceil(64) as usize]);
        Ok(Overlay { below, file, written })
    }

    fn end_of(&self, block: u64) -> u64 {
        self.below.size().min((block + 1) * BLOCK_LEN)
    }

    /// Copies a block up, so that a part of it can be overwritten.
    fn copy_up(&self, written: &mut [u64], block: u64) -> io::Result<()> {
        if is_set(written, block) {
            return Ok(());
        }
        let start = block * BLOCK_LEN;
        let mut buf = vec![0; (self.end_of(block) - start) as usize];
        self.below.read_at(&mut buf, start)?;
        self.file.write_all_at(&buf, start)?;
        set(written, block);
        Ok(())
    }
}

fn is_set(written: &[u64], block: u64) -> bool {
    written[(block / 64) as usize] >> (block % 64) & 1 == 1
}

fn set(written: &mut [u64], block: u64) {
    written[(block / 64) as usize] |= 1 << (block % 64);
}

const POISONED: &str = "no thread panics while it holds the overlay's map";

impl Storage for Overlay {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let written = self.written.read().expect(POISONED);
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            // One call for a whole run of blocks that lie in the same place.
            let above = is_set(&written, at / BLOCK_LEN);
            let mut stop = self.end_of(at / BLOCK_LEN);
            while stop < end && is_set(&written, stop / BLOCK_LEN) == above {
                stop = self.end_of(stop / BLOCK_LEN);
            }
            let stop = stop.min(end);
            let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            if above {
                self.file.read_exact_at(part, at)?;
            } else {
                self.below.read_at(part, at)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut written = self.written.write().expect(POISONED);
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK_LEN, (end - 1) / BLOCK_LEN);
        if !offset.is_multiple_of(BLOCK_LEN) {
            self.copy_up(&mut written, first)?;
        }
        if end < self.end_of(last) {
            self.copy_up(&mut written, last)?;
        }
        self.file.write_all_at(data, offset)?;
        (first..=last).for_each(|block| set(&mut written, block));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_free: bool) -> io::Result<()> {
        crate::storage::write_zeroes_slowly(self, offset, len)
    }

    fn trim(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // Nothing of an overlay outlives the process, so nothing has to be durable.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base::SeededRng;

    use super::*;
    use crate::image::{ImageOptions, open_image};

    #[test]
    fn an_overlay_behaves_like_the_disk_and_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let mut rng = SeededRng::new(5);
        // The last block is not whole.
        let mut model = vec![0; 40 * 4096 + 512];
        rng.fill(&mut model);
        let original = model.clone();
        std::fs::write(&path, &model).unwrap();
        let read_only = ImageOptions { read_only: true, format: None };
        let overlay = Overlay::new(open_image(&path, read_only).unwrap()).unwrap();

        for _ in 0..300 {
            let offset = rng.below(model.len() as u64);
            let len = 1 + rng.below((model.len() as u64 - offset).min(20_000));
            let range = offset as usize..(offset + len) as usize;
            match rng.below(3) {
                0 => {
                    rng.fill(&mut model[range.clone()]);
                    overlay.write_at(&model[range], offset).unwrap();
                }
                1 if rng.one_in(4) => {
                    model[range].fill(0);
                    overlay.write_zeroes(offset, len, true).unwrap();
                }
                _ => {
                    let mut buf = vec![0; len as usize];
                    overlay.read_at(&mut buf, offset).unwrap();
                    assert!(buf == model[range], "{len} bytes at {offset}");
                }
            }
        }
        assert!(std::fs::read(&path).unwrap() == original);
    }
}
