//! Looks whether a qcow2 image may be written to: whether what its tables say fits together.
//!
//! The library that writes the format believes the reference counts. Were they wrong, it would put new
//! data over a table or over other data, so an image is not opened for writing unless every cluster
//! that is used has a count, and none has two uses (QEMU, `docs/interop/qcow2.txt`). The clusters of
//! internal snapshots are not looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const HEADER_LEN: usize = 104;
const HEADER_LEN_V2: usize = 72;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The largest tables that QEMU takes.
const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;
const L1_LEN_MAX: u64 = 32 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;

/// Refuses an image of `len` bytes whose tables contradict each other. What is no qcow2 image at all is
/// left to the library to name.
pub(crate) fn check(file: &File, len: u64) -> io::Result<()> {
    let mut header = [0; HEADER_LEN];
    let known = len.min(HEADER_LEN as u64) as usize;
    file.read_exact_at(&mut header[..known], 0)?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let version = word(4);
    if known < HEADER_LEN_V2 || word(0) != MAGIC || !(2..=3).contains(&version) {
        return Ok(());
    }
    let (features, refcount_order) = if version == 3 { (long(72), word(96)) } else { (0, 4) };
    let cluster_bits = word(20);
    if !CLUSTER_BITS.contains(&cluster_bits) || refcount_order > 6 {
        return Err(damaged(
            "its header asks for a cluster or reference count size that there is not",
        ));
    }
    if features & DIRTY != 0 {
        return Err(damaged("it was not closed properly"));
    }
    if features & CORRUPT != 0 {
        return Err(damaged("it is marked as corrupt"));
    }
    let clusters = len.div_ceil(1 << cluster_bits) as usize;
    let mut check = Check {
        file,
        len,
        cluster_bits,
        refcount_order,
        refcount_table: Vec::new(),
        refcounts: BTreeMap::new(),
        used: vec![false; clusters],
    };
    let l1 = Table { offset: long(40), len: u64::from(word(36)) * 8 };
    let refcounts = Table { offset: long(48), len: u64::from(word(56)) << cluster_bits };
    let entry_len = if features & EXTENDED_L2 != 0 { 16 } else { 8 };
    let guest = Guest { bytes: long(24), entry_len, has_data_file: features & DATA_FILE != 0 };
    check.run(refcounts, l1, guest)
}

fn damaged(what: &str) -> io::Error {
    let why = format!("the image is damaged: {what}; `qemu-img check -r all` may repair it");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    len: u64,
}

struct Guest {
    bytes: u64,
    /// Bytes of an entry in an L2 table.
    entry_len: u64,
    /// The data lie in another file.
    has_data_file: bool,
}

struct Check<'a> {
    file: &'a File,
    len: u64,
    cluster_bits: u32,
    refcount_order: u32,
    /// Where the blocks of reference counts lie; 0: there is none.
    refcount_table: Vec<u64>,
    /// Those blocks that were read.
    refcounts: BTreeMap<usize, Vec<u8>>,
    /// The clusters that something was found to lie in.
    used: Vec<bool>,
}

impl Check<'_> {
    fn run(&mut self, refcounts: Table, l1: Table, guest: Guest) -> io::Result<()> {
        let cluster = 1u64 << self.cluster_bits;
        if refcounts.len == 0 || refcounts.len > REFCOUNT_TABLE_LEN_MAX || l1.len > L1_LEN_MAX {
            return Err(damaged("a table has a size that it cannot have"));
        }
        // An L2 table fills a cluster.
        let l2_reach = u128::from(cluster) * u128::from(cluster / guest.entry_len);
        if u128::from(l1.len / 8) * l2_reach < u128::from(guest.bytes) {
            return Err(damaged("its L1 table is too small for the disk"));
        }
        let refcount_table = self.read_table("the refcount table", refcounts)?;
        let l1_table = self.read_table("the L1 table", l1)?;
        let header = Table { offset: 0, len: cluster };
        self.refcount_table = refcount_table;
        let mut blocks = self.refcount_table.clone();
        blocks.retain(|offset| *offset != 0);
        for offset in &blocks {
            self.inside("a refcount block", Table { offset: *offset, len: cluster })?;
        }
        let l2_tables: Vec<u64> =
            l1_table.into_iter().map(|entry| entry & OFFSET_MASK).filter(|at| *at != 0).collect();

        for table in [header, refcounts, l1] {
            self.claim_all(table)?;
        }
        for offset in blocks {
            self.claim_all(Table { offset, len: cluster })?;
        }
        for offset in &l2_tables {
            self.claim_all(Table { offset: *offset, len: cluster })?;
        }
        if guest.has_data_file {
            return Ok(());
        }
        // Several compressed clusters may share one.
        let mut compressed = Vec::new();
        for offset in l2_tables {
            let table = self.read_table("an L2 table", Table { offset, len: cluster })?;
            for entry in table.into_iter().step_by((guest.entry_len / 8) as usize) {
                match entry & OFFSET_MASK {
                    _ if entry & COMPRESSED != 0 => compressed.push(entry),
                    0 => {}
                    at => self.claim("data", at)?,
                }
            }
        }
        let mut shared: Vec<u64> = Vec::new();
        for entry in compressed {
            let offset_bits = 62 - (self.cluster_bits - 8);
            let at = entry & ((1 << offset_bits) - 1);
            let sectors = entry >> offset_bits & ((1 << (self.cluster_bits - 8)) - 1);
            let end = (at & !511) + (sectors + 1) * 512;
            shared.extend((at >> self.cluster_bits)..=((end - 1) >> self.cluster_bits));
        }
        shared.sort_unstable();
        shared.dedup();
        shared.into_iter().try_for_each(|index| {
            // The end is rounded up to sectors, so it may lie behind the file's.
            let at = index << self.cluster_bits;
            if at < self.len { self.claim("compressed data", at) } else { Ok(()) }
        })
    }

    fn inside(&self, what: &str, table: Table) -> io::Result<()> {
        let aligned = table.offset.is_multiple_of(1 << self.cluster_bits);
        let end = table.offset.checked_add(table.len);
        if !aligned || end.is_none_or(|end| end > self.len) {
            return Err(damaged(&format!("{what} is not inside the file")));
        }
        Ok(())
    }

    fn read_table(&self, what: &str, table: Table) -> io::Result<Vec<u64>> {
        self.inside(what, table)?;
        let mut bytes = vec![0; table.len as usize];
        self.file.read_exact_at(&mut bytes, table.offset)?;
        let entries = bytes.as_chunks::<8>().0;
        Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    fn claim_all(&mut self, table: Table) -> io::Result<()> {
        let last = (table.offset + table.len.max(1) - 1) >> self.cluster_bits;
        ((table.offset >> self.cluster_bits)..=last)
            .try_for_each(|index| self.claim("a table", index << self.cluster_bits))
    }

    /// Something lies in the cluster at `offset`.
    fn claim(&mut self, what: &str, offset: u64) -> io::Result<()> {
        let index = offset >> self.cluster_bits;
        let Some(used) = self.used.get_mut(index as usize) else {
            return Err(damaged(&format!("{what} lies behind the file's end")));
        };
        if !offset.is_multiple_of(1 << self.cluster_bits) {
            return Err(damaged(&format!("{what} does not begin where a cluster does")));
        }
        if std::mem::replace(used, true) {
            return Err(damaged(&format!("{what} lies where something else is")));
        }
        if !self.has_refcount(index)? {
            return Err(damaged(&format!("{what} lies where its reference counts say is room")));
        }
        Ok(())
    }

    fn has_refcount(&mut self, cluster: u64) -> io::Result<bool> {
        let per_block_bits = self.cluster_bits + 3 - self.refcount_order;
        let block = (cluster >> per_block_bits) as usize;
        let at = match self.refcount_table.get(block) {
            None | Some(0) => return Ok(false),
            Some(at) => *at,
        };
        if !self.refcounts.contains_key(&block) {
            let mut bytes = vec![0; 1 << self.cluster_bits];
            self.file.read_exact_at(&mut bytes, at)?;
            self.refcounts.insert(block, bytes);
        }
        let bit = (cluster & ((1 << per_block_bits) - 1)) << self.refcount_order;
        let (byte, width) = ((bit / 8) as usize, 1u32 << self.refcount_order);
        let block = &self.refcounts[&block];
        Ok(if width >= 8 {
            block[byte..byte + width as usize / 8].iter().any(|byte| *byte != 0)
        } else {
            block[byte] >> (bit % 8) & ((1 << width) - 1) != 0
        })
    }
}
