//! The cache of decoded blocks.
//!
//! A block is a straight run of instructions on one guest-physical page, up to a branch, the page's
//! end or [`BLOCK_OPS_MAX`]. An instruction that straddles two pages is a block of its own, checked
//! against both pages. Blocks do not depend on the linear address they run at.
//!
//! The jump cache maps a linear address in a mode and address space straight to a block's
//! instructions; an epoch number makes it forget everything at once.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use base::{PAGE_SHIFT, PAGE_SIZE};
use mem::{GuestMem, RamOffset, WatchedWrite};
use x86::Access;

use crate::decode::{Decoded, Ends, INSTRUCTION_BYTES_MAX, ModeKey, decode};
use crate::op::Fault;
use crate::state::Seg;
use crate::{Cpu, Op};

/// Longest block, in instructions.
const BLOCK_OPS_MAX: usize = 32;
/// When this many decoded instructions are held, all are dropped: about 40 MB.
const OPS_MAX: usize = 1 << 20;
const JUMPS: usize = 1 << 12;

/// A run of instructions in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Index of the first op.
    pub(crate) first: u32,
    /// How many.
    pub(crate) len: u16,
    /// How many bytes of code.
    pub(crate) bytes: u16,
}

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    mode_key: u32,
    epoch: u32,
    run: Run,
}

struct Block {
    run: Run,
    ram: u64,
    /// RAM address of the second page of a straddling instruction.
    next_page: Option<u64>,
}

/// A multiplicative hash: the keys are addresses and never hostile beyond slowness.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
}

type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

#[derive(Default)]
pub(crate) struct CodeCache {
    pub(crate) ops: Vec<Op>,
    jumps: Vec<Jump>,
    blocks: AddressMap<(u64, u32), Block>,
    /// The blocks with bytes on a page.
    by_page: AddressMap<u64, Vec<(u64, u32)>>,
}

impl CodeCache {
    pub(crate) fn new() -> CodeCache {
        let run = Run { first: 0, len: 0, bytes: 0 };
        let jump = Jump { linear: 0, mode_key: u32::MAX, epoch: 0, run };
        CodeCache { jumps: vec![jump; JUMPS], ..CodeCache::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.blocks.clear();
        self.by_page.clear();
        self.jumps.iter_mut().for_each(|jump| jump.mode_key = u32::MAX);
    }

    /// The block at a linear address, if the jump cache knows it.
    #[inline(always)]
    pub(crate) fn jump(&self, linear: u64, mode_key: u32, epoch: u32) -> Option<Run> {
        let jump = self.jumps.get(jump_index(linear))?;
        let hit = jump.linear == linear && jump.mode_key == mode_key && jump.epoch == epoch;
        hit.then_some(jump.run)
    }

    fn drop_block(&mut self, key: (u64, u32)) {
        let Some(block) = self.blocks.remove(&key) else { return };
        let pages = [Some(block.ram >> PAGE_SHIFT), block.next_page.map(|ram| ram >> PAGE_SHIFT)];
        for page in pages.into_iter().flatten() {
            if let Some(keys) = self.by_page.get_mut(&page) {
                keys.retain(|other| *other != key);
            }
        }
    }
}

#[inline(always)]
fn jump_index(linear: u64) -> usize {
    (linear ^ linear >> 12) as usize & (JUMPS - 1)
}

/// The bytes at a fetch address, and where they lie.
struct Fetched {
    bytes: [u8; PAGE_SIZE as usize + INSTRUCTION_BYTES_MAX],
    len: usize,
}

impl Cpu {
    /// The block at RIP, by way of the tables: decodes it if need be.
    #[cold]
    #[inline(never)]
    pub(crate) fn find_block(
        &mut self,
        code: &mut CodeCache,
        mem: &mut GuestMem,
        linear: u64,
    ) -> Result<Run, Fault> {
        self.stats.jump_misses += 1;
        let gpa = self.translate_fetch(mem, linear)?;
        let Some(at) = mem.offset_of(gpa) else {
            // There is no memory but RAM to execute from.
            return Err(self.ud());
        };
        let key = (at.0, self.mode_key & ModeKey::MEANING);
        let known = code.blocks.get(&key).map(|block| (block.run, block.next_page));
        let run = match known {
            Some((run, None)) => run,
            Some((run, Some(page))) => {
                let next = self.next_fetch_page(mem, linear)?;
                if next == Some(page) {
                    run
                } else {
                    code.drop_block(key);
                    self.decode_block(code, mem, linear, at)?
                }
            }
            None => self.decode_block(code, mem, linear, at)?,
        };
        code.jumps[jump_index(linear)] =
            Jump { linear, mode_key: self.mode_key, epoch: self.tlb.code_epoch, run };
        Ok(run)
    }

    /// RAM address of the page after that of `linear`, walked for a fetch; `None` if it is not RAM.
    fn next_fetch_page(&mut self, mem: &mut GuestMem, linear: u64) -> Result<Option<u64>, Fault> {
        let next = self.wrap((linear | 0xfff).wrapping_add(1));
        let gpa = self.translate_fetch(mem, next)?;
        Ok(mem.offset_of(gpa).map(|offset| offset.0))
    }

    fn decode_block(
        &mut self,
        code: &mut CodeCache,
        mem: &mut GuestMem,
        linear: u64,
        at: RamOffset,
    ) -> Result<Run, Fault> {
        if code.ops.len() > OPS_MAX {
            code.clear();
            self.tlb.forget_all_code();
        }
        let in_page = (at.0 & 0xfff) as usize;
        let mut fetched =
            Fetched { bytes: [0; PAGE_SIZE as usize + INSTRUCTION_BYTES_MAX], len: 4096 - in_page };
        fetched.bytes[..fetched.len].copy_from_slice(&mem.page(at.page())[in_page..]);
        let first = code.ops.len();
        let mut next_page = None;
        let mut bytes = 0;
        while code.ops.len() - first < BLOCK_OPS_MAX && bytes < fetched.len {
            let end = fetched.len.min(bytes + INSTRUCTION_BYTES_MAX);
            match decode(&fetched.bytes[bytes..end], self.mode_key, bytes as u64) {
                Decoded::Op(op, ends) => {
                    bytes += usize::from(op.len);
                    code.ops.push(op);
                    if ends == Ends::Yes {
                        break;
                    }
                }
                // The next page is looked at only when this instruction is the one to run.
                Decoded::NeedMore if bytes > 0 => break,
                Decoded::NeedMore => {
                    let Some(page) = self.next_fetch_page(mem, linear)? else {
                        return Err(self.ud());
                    };
                    next_page = Some(page);
                    let more = &mem.page(page >> PAGE_SHIFT)[..INSTRUCTION_BYTES_MAX];
                    fetched.bytes[fetched.len..fetched.len + more.len()].copy_from_slice(more);
                    let whole = &fetched.bytes[..INSTRUCTION_BYTES_MAX];
                    if let Decoded::Op(op, _) = decode(whole, self.mode_key, 0) {
                        bytes = usize::from(op.len);
                        code.ops.push(op);
                    }
                    break;
                }
            }
        }
        let len = code.ops.len() - first;
        let run = Run { first: first as u32, len: len as u16, bytes: bytes as u16 };
        self.stats.blocks_decoded += 1;
        self.stats.ops_decoded += len as u64;
        self.keep_block(code, mem, at, run, next_page);
        Ok(run)
    }

    fn keep_block(
        &mut self,
        code: &mut CodeCache,
        mem: &mut GuestMem,
        at: RamOffset,
        run: Run,
        next_page: Option<u64>,
    ) {
        let mode_key = self.mode_key & ModeKey::MEANING;
        let key = (at.0, mode_key);
        let start = (at.0 & 0xfff) as usize;
        // An instruction that is undefined or too long depends on up to 15 bytes.
        let end = start + usize::from(run.bytes).max(INSTRUCTION_BYTES_MAX);
        self.tlb.note_code(mem, at.page(), start, end.min(4096));
        code.by_page.entry(at.page()).or_default().push(key);
        if let Some(page) = next_page {
            self.tlb.note_code(mem, page >> PAGE_SHIFT, 0, INSTRUCTION_BYTES_MAX);
            code.by_page.entry(page >> PAGE_SHIFT).or_default().push(key);
        }
        code.blocks.insert(key, Block { run, ram: at.0, next_page });
    }

    /// Drops the blocks whose bytes were written.
    #[cold]
    pub(crate) fn drop_written_code(&mut self, code: &mut CodeCache) {
        for write in std::mem::take(&mut self.tlb.code_writes) {
            self.drop_code(code, write);
        }
        self.tlb.code_epoch += 1;
    }

    fn drop_code(&mut self, code: &mut CodeCache, write: WatchedWrite) {
        let page = write.offset.page();
        let Some(keys) = code.by_page.get(&page) else { return };
        let (start, end) = (write.offset.0, write.offset.0 + u64::from(write.len));
        let touches = |block: &Block| {
            let bytes = u64::from(block.run.bytes).max(INSTRUCTION_BYTES_MAX as u64);
            let block_end = block.ram + bytes;
            let on_first = block.ram < end && start < block_end;
            let on_next = block
                .next_page
                .is_some_and(|next| start < next + INSTRUCTION_BYTES_MAX as u64 && next < end);
            on_first || on_next
        };
        let hit: Vec<_> =
            keys.iter().copied().filter(|key| code.blocks.get(key).is_some_and(touches)).collect();
        self.stats.blocks_dropped += hit.len() as u64;
        for key in hit {
            code.drop_block(key);
        }
        if code.by_page.get(&page).is_some_and(Vec::is_empty) {
            code.by_page.remove(&page);
            self.tlb.forget_code(page);
        }
    }

    /// True if the block at RIP lies inside the code segment. Always so in 64-bit mode.
    #[inline(always)]
    pub(crate) fn is_inside_code_segment(&self, bytes: u16) -> bool {
        self.is_64_bit() || self.rip + u64::from(bytes) <= u64::from(self.seg[Seg::CS].limit) + 1
    }

    /// The linear address of RIP.
    #[inline(always)]
    pub(crate) fn fetch_linear(&self) -> u64 {
        let linear = self.rip.wrapping_add(self.fetch_base);
        if self.rip_mask == u64::MAX { linear } else { linear & 0xffff_ffff }
    }

    /// True if the code segment is a 16-bit one.
    #[must_use]
    pub fn is_16_bit_code(&self) -> bool {
        !self.is_64_bit() && self.seg[Seg::CS].access & Access::D == 0
    }
}
