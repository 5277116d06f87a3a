//! The cache of decoded blocks.
//!
//! A block is a straight run of instructions on one guest-physical page, up to a branch, the page's
//! end or [`BLOCK_OPS_MAX`]. An instruction that straddles two pages is a block of its own, checked
//! against both pages. Blocks do not depend on the linear address they run at.
//!
//! The jump cache maps a linear address in a mode and address space straight to a block's
//! instructions; an epoch number makes it forget everything at once.

use base::{PAGE_SHIFT, PAGE_SIZE};
use mem::{GuestMem, RamOffset, WatchedWrite};

use crate::decode::{Decoded, Ends, INSTRUCTION_BYTES_MAX, ModeKey, decode};
use crate::op::Fault;
use crate::state::Seg;
use crate::{Cpu, Engine, Op};

/// Longest block, in instructions.
const BLOCK_OPS_MAX: usize = 32;
/// When this many decoded instructions are held, all are dropped: about 40 MB.
const OPS_MAX: usize = 1 << 20;
const JUMPS: usize = 1 << 14;

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
    epoch: u64,
    run: Run,
}

struct Block {
    run: Run,
    /// How many bytes of code decide what it is.
    reach: u16,
    /// RAM address of the second page of a straddling instruction.
    next_page: Option<u64>,
}

/// The blocks that start on one RAM page.
#[derive(Default)]
struct CodePage {
    /// What identifies each block: see [`key_of`]. Few enough to look through.
    keys: Vec<u32>,
    /// In the order of `keys`.
    blocks: Vec<Block>,
    /// Blocks of the page before whose only instruction ends on this one: page and key.
    straddlers: Vec<(u64, u32)>,
}

impl CodePage {
    fn find(&self, key: u32) -> Option<&Block> {
        let place = self.keys.iter().position(|known| *known == key)?;
        self.blocks.get(place)
    }

    /// Drops the block with a key, if there is one.
    fn drop_key(&mut self, key: u32) {
        if let Some(place) = self.keys.iter().position(|known| *known == key) {
            self.keys.swap_remove(place);
            self.blocks.swap_remove(place);
        }
    }

    /// Drops the blocks that depend on bytes `start..end` of the page. Returns how many.
    fn drop_range(&mut self, start: u64, end: u64) -> u64 {
        let before = self.keys.len();
        for place in (0..before).rev() {
            let first = u64::from(self.keys[place] & 0xfff);
            if first < end && start < first + u64::from(self.blocks[place].reach) {
                self.keys.swap_remove(place);
                self.blocks.swap_remove(place);
            }
        }
        (before - self.keys.len()) as u64
    }
}

/// The offset in the page and the bits of the mode that decide what bytes mean.
fn key_of(ram: u64, mode_key: u32) -> u32 {
    (ram & 0xfff) as u32 | (mode_key & ModeKey::MEANING) << 12
}

#[derive(Default)]
pub(crate) struct CodeCache {
    pub(crate) ops: Vec<Op>,
    jumps: Vec<Jump>,
    /// Place in `pages` plus one of each RAM page; 0 for none.
    places: Vec<u32>,
    pages: Vec<CodePage>,
    /// How often blocks were dropped because their bytes were written.
    rewrites: u64,
}

impl CodeCache {
    pub(crate) fn new() -> CodeCache {
        let run = Run { first: 0, len: 0, bytes: 0 };
        let jump = Jump { linear: 0, mode_key: u32::MAX, epoch: 0, run };
        CodeCache { jumps: vec![jump; JUMPS], ..CodeCache::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.places.clear();
        self.pages.clear();
        self.jumps.iter_mut().for_each(|jump| jump.mode_key = u32::MAX);
    }

    /// The block at a linear address, if the jump cache knows it.
    #[inline(always)]
    pub(crate) fn jump(&self, linear: u64, mode_key: u32, epoch: u64) -> Option<Run> {
        let jump = self.jumps.get(jump_index(linear, mode_key))?;
        let epoch = self.epoch(epoch);
        let hit = jump.linear == linear && jump.mode_key == mode_key && jump.epoch == epoch;
        hit.then_some(jump.run)
    }

    /// What jumps hold in, of the TLB's epoch: neither part ever becomes less.
    #[inline(always)]
    fn epoch(&self, of_tlb: u64) -> u64 {
        of_tlb + self.rewrites
    }

    fn page(&self, page: u64) -> Option<&CodePage> {
        let place = *self.places.get(page as usize)?;
        self.pages.get((place as usize).wrapping_sub(1))
    }

    fn page_mut(&mut self, page: u64) -> &mut CodePage {
        let page = page as usize;
        if page >= self.places.len() {
            self.places.resize(page + 1, 0);
        }
        if self.places[page] == 0 {
            self.pages.push(CodePage::default());
            self.places[page] = self.pages.len() as u32;
        }
        &mut self.pages[self.places[page] as usize - 1]
    }
}

/// The mode's upper bits, which name the address space, go on top: programs run at the same addresses,
/// and the kernel runs in every address space.
#[inline(always)]
fn jump_index(linear: u64, mode_key: u32) -> usize {
    // Privilege and address space come to lie in the upper bits of the index.
    (linear ^ linear >> 12 ^ u64::from(mode_key) >> 3) as usize & (JUMPS - 1)
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
        let key = key_of(at.0, self.mode_key);
        let block = code.page(at.page()).and_then(|page| page.find(key));
        let run = match block.map(|block| (block.run, block.next_page)) {
            Some((run, None)) => run,
            Some((run, Some(page))) => {
                let next = self.next_fetch_page(mem, linear)?;
                if next == Some(page) {
                    run
                } else {
                    code.page_mut(at.page()).drop_key(key);
                    self.decode_block(code, mem, linear, at)?
                }
            }
            None => self.decode_block(code, mem, linear, at)?,
        };
        let reach = (linear & 0xfff) + u64::from(run.bytes) + INSTRUCTION_BYTES_MAX as u64;
        if linear | 0xfff == u64::MAX && reach > PAGE_SIZE {
            return Ok(run); // it may depend on the other half, which has an epoch of its own
        }
        let epoch = code.epoch(self.tlb.code_epoch(linear));
        code.jumps[jump_index(linear, self.mode_key)] =
            Jump { linear, mode_key: self.mode_key, epoch, run };
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
        let key = key_of(at.0, self.mode_key);
        let start = (at.0 & 0xfff) as usize;
        // What is no instruction, at the end of a block, is so because of all bytes that one can have.
        let has_unreadable = code.ops.last().is_some_and(|op| op.len == 0);
        let reach = run.bytes + if has_unreadable { INSTRUCTION_BYTES_MAX as u16 } else { 0 };
        let end = start + usize::from(reach);
        self.tlb.note_code(mem, at.page(), start, end.min(4096));
        if let Some(next) = next_page {
            let next = next >> PAGE_SHIFT;
            self.tlb.note_code(mem, next, 0, INSTRUCTION_BYTES_MAX);
            let straddlers = &mut code.page_mut(next).straddlers;
            if !straddlers.contains(&(at.page(), key)) {
                straddlers.push((at.page(), key));
            }
        }
        let page = code.page_mut(at.page());
        page.keys.push(key);
        page.blocks.push(Block { run, reach, next_page });
    }

    /// Drops the blocks whose bytes were written, here and in the engine.
    #[cold]
    pub(crate) fn drop_written_code(
        &mut self,
        code: &mut CodeCache,
        mem: &mut GuestMem,
        engine: &mut dyn Engine,
    ) {
        for write in std::mem::take(&mut self.tlb.code_writes) {
            self.drop_code(code, write);
            engine.drop_code(self, mem, write);
        }
        code.rewrites += 1;
    }

    fn drop_code(&mut self, code: &mut CodeCache, write: WatchedWrite) {
        let page = write.offset.page();
        let start = write.offset.0 & 0xfff;
        let here = code.page_mut(page);
        self.stats.blocks_dropped += here.drop_range(start, start + u64::from(write.len));
        if start < INSTRUCTION_BYTES_MAX as u64 {
            for (other, key) in std::mem::take(&mut here.straddlers) {
                code.page_mut(other).drop_key(key);
            }
        }
        let here = code.page_mut(page);
        if here.keys.is_empty() && here.straddlers.is_empty() {
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
}
