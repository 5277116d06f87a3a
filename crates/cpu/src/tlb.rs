//! The software TLB, and what is remembered about the page tables and the code it depends on.
//!
//! Contract: the guest sees what it would see without a TLB. Every page-table page that a walk read
//! is watched; a write to an entry that was walked drops what was filled from it. So neither
//! INVLPG nor a CR3 load has to drop anything, and several address spaces stay in the TLB side by
//! side, one bank each.

use base::PAGE_SHIFT;
use mem::{GuestMem, RamOffset, WatchedWrite};

use crate::Cpu;

/// Whose rights an access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Supervisor; user pages are out of bounds if SMAP is on.
    Supervisor,
    /// Supervisor with RFLAGS.AC set.
    SupervisorAc,
    /// User.
    User,
}

const PAGES: usize = 1024;
pub(crate) const VIEWS: usize = 4;
pub(crate) const BANKS: usize = 8;
const ENTRIES: usize = PAGES * VIEWS * BANKS;
const BANK_SHIFT: u32 = 12;

/// The number of the view whose entries start at `base`.
#[inline]
pub(crate) fn view_of(base: usize) -> usize {
    (base & (ENTRIES - 1)) / PAGES
}

/// The view whose entries are never filled, so that every access takes the slow path.
const VIEW_UNCACHED: usize = 3;

/// Entries of the second level, which holds what the first level lost to another page.
const BACKUP_ENTRIES: usize = 1 << BACKUP_BITS;
const BACKUP_BITS: u32 = 14;
/// A key has a stamp of so many bits above bank and view.
const KEY_STAMP_SHIFT: u32 = (BANKS * VIEWS).trailing_zeros();
/// Different stamps.
const STAMPS: u64 = 1 << 7;

/// A bank's lower half (programs) and upper half (the kernel) are dropped apart: a *space*.
const SPACES: usize = 2 * BANKS;

const EXEC_PAGES: usize = 512;
const EXEC_ENTRIES: usize = EXEC_PAGES * 2 * BANKS;

/// A translation of one page for data.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// Linear address of the page if it may be read through this entry.
    pub(crate) read: u64,
    /// Linear address of the page if plain stores may be made through this entry.
    pub(crate) write: u64,
    /// Host address of the page, for an engine that reads this table itself: its RAM offset beside [`Tlb::host_base`].
    host: u64,
    /// How far that is from the linear one.
    distance: u64,
}

/// The second level of the TLB, for an engine that looks into it itself. It is served by `2^`[`SecondLevel::BITS`]
/// entries of two words: a key, which is a page's linear address plus `low_keys` or, in the upper half of the address
/// space, `high_keys`; and the page's RAM offset, plus 1 if it may be stored to. An entry's number is in the upper bits of
/// its key times [`SecondLevel::HASH`]. What is found there may be put into [`Cpu::tlb_entries`].
#[derive(Clone, Copy, Debug)]
pub struct SecondLevel {
    /// The first entry.
    pub entries: *const u64,
    /// What the keys of pages in the lower half have beside their address.
    pub low_keys: u64,
    /// The same for the upper half.
    pub high_keys: u64,
    /// Host address of RAM.
    pub host_base: u64,
}

impl SecondLevel {
    /// Of an entry's number.
    pub const BITS: u32 = BACKUP_BITS;
    /// Makes numbers of keys.
    pub const HASH: u64 = BACKUP_HASH;
}

/// An entry of the second level.
#[derive(Clone, Copy)]
#[repr(C)]
struct BackupEntry {
    /// The linear page; below it the space's stamp, and bank and view.
    key: u64,
    /// RAM offset of the page, plus 1 if plain stores may be made.
    ram: u64,
}

const NO_BACKUP: BackupEntry = BackupEntry { key: u64::MAX, ram: 0 };

impl BackupEntry {
    fn may_store(self) -> bool {
        self.ram & 1 != 0
    }
}

/// Which linear pages have a write tag for a RAM page: none, one, two, or more than that.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Writers([u64; 2]);

impl Writers {
    const NONE: Writers = Writers([0; 2]);
    const MANY: Writers = Writers([2; 2]);

    fn with(self, linear: u64) -> Writers {
        let this = linear & !0xfff | 1;
        match self.0 {
            _ if self == Writers::MANY => self,
            [0, _] => Writers([this, 0]),
            [first, second] if first == this || second == this => self,
            [first, 0] => Writers([first, this]),
            _ => Writers::MANY,
        }
    }

    fn pages(self) -> impl Iterator<Item = u64> {
        self.0.into_iter().filter(|page| *page != 0).map(|page| page & !0xfff)
    }
}

#[derive(Clone, Copy)]
struct ExecEntry {
    tag: u64,
    ram: u64,
}

pub(crate) struct Tlb {
    entries: Box<[TlbEntry; ENTRIES]>,
    /// Host address of RAM, as far as an engine has asked for it.
    host_base: u64,
    backup: Box<[BackupEntry; BACKUP_ENTRIES]>,
    /// By RAM page.
    writers: Vec<Writers>,
    exec: Box<[ExecEntry; EXEC_ENTRIES]>,
    /// CR3 of each bank; `None` if it is empty.
    banks: [Option<u64>; BANKS],
    bank: usize,
    next_bank: usize,
    /// By space: goes up whenever a linear address may have come to lead to other memory than code was found in.
    code_epochs: [u64; SPACES],
    /// By space: the drop number at which it was last dropped as a whole.
    dropped_at: [u64; SPACES],
    /// By space: what the keys of its second level's entries hold. A drop changes it.
    stamps: [u64; SPACES],
    /// Drops of whole spaces so far.
    drops: u64,
    /// Moves on whenever a translation or its permission to store may have gone.
    losses: u64,
    uses: PageUses,
    /// Writes to code that the code cache has not seen yet.
    pub(crate) code_writes: Vec<WatchedWrite>,
    /// How often the marks on code were all forgotten.
    pub(crate) code_generation: u64,
}

/// A tag that no address looked up at this index can match: it is that of a page with another index.
const fn no_tag(index: usize) -> u64 {
    ((index as u64 ^ 1) & (PAGES as u64 - 1)) << PAGE_SHIFT
}

const fn empty_entry(index: usize) -> TlbEntry {
    TlbEntry { read: no_tag(index), write: no_tag(index), host: 0, distance: 0 }
}

const NO_EXEC: ExecEntry = ExecEntry { tag: u64::MAX, ram: 0 };

impl Tlb {
    pub(crate) fn new() -> Tlb {
        let entries: Box<[TlbEntry]> = (0..ENTRIES).map(empty_entry).collect();
        let backup = vec![NO_BACKUP; BACKUP_ENTRIES].into_boxed_slice();
        let exec = vec![NO_EXEC; EXEC_ENTRIES].into_boxed_slice();
        Tlb {
            entries: entries.try_into().ok().expect("the length is the array's"),
            host_base: 0,
            backup: backup.try_into().ok().expect("the length is the array's"),
            writers: Vec::new(),
            exec: exec.try_into().ok().expect("the length is the array's"),
            banks: [None; BANKS],
            bank: 0,
            next_bank: 0,
            code_epochs: [0; SPACES],
            dropped_at: [0; SPACES],
            stamps: [0; SPACES],
            drops: 0,
            losses: 0,
            uses: PageUses::default(),
            code_writes: Vec::new(),
            code_generation: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn entry(&self, base: usize, linear: u64) -> TlbEntry {
        self.entries[index_of(base, linear)]
    }

    /// Where a place on an entry's page is.
    #[inline(always)]
    pub(crate) fn place(&self, entry: TlbEntry, inside: u64) -> RamOffset {
        RamOffset(entry.host.wrapping_sub(self.host_base).wrapping_add(inside))
    }

    /// The host address of a linear one, if an entry may serve it.
    pub(crate) fn host_address(&self, base: usize, linear: u64, write: bool) -> Option<u64> {
        let entry = self.entry(base, linear);
        let tag = if write { entry.write } else { entry.read };
        (tag == linear & !0xfff).then(|| linear.wrapping_add(entry.distance))
    }

    fn backup_key(&self, base: usize, linear: u64) -> u64 {
        linear & !0xfff | self.key_bits(base, linear)
    }

    /// What a key has below the page's address.
    #[inline]
    fn key_bits(&self, base: usize, linear: u64) -> u64 {
        let place = base / PAGES;
        self.stamps[space_of(place / VIEWS, linear)] << KEY_STAMP_SHIFT | place as u64
    }

    /// The second level, as an engine reads it.
    #[inline]
    pub(crate) fn second_level(&self, base: usize) -> SecondLevel {
        SecondLevel {
            entries: self.backup.as_ptr().cast(),
            low_keys: self.key_bits(base, 0),
            high_keys: self.key_bits(base, u64::MAX),
            host_base: self.host_base,
        }
    }

    /// The page of `linear`, if it may be stored to without looking any further: its linear and its host address.
    #[inline]
    pub(crate) fn writable_page(&self, base: usize, linear: u64) -> Option<(u64, u64)> {
        let entry = self.entry(base, linear);
        let page = linear & !0xfff;
        (entry.read == page && entry.write == page)
            .then_some((page, page.wrapping_add(entry.distance)))
    }

    /// The same number as before means that what could be read or written then still can.
    #[inline]
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }

    /// The entries of one view, for code that looks them up itself.
    #[inline]
    pub(crate) fn entries_from(&self, base: usize) -> *const u64 {
        let view: *const TlbEntry = &self.entries[base & (ENTRIES - 1)];
        view.cast()
    }

    /// From now on entries hold addresses of RAM that starts at `base`.
    pub(crate) fn set_host_base(&mut self, base: u64) {
        if self.host_base != base {
            self.losses += 1;
            let farther = base.wrapping_sub(self.host_base);
            self.host_base = base;
            for entry in self.entries.iter_mut() {
                entry.host = entry.host.wrapping_add(farther);
                entry.distance = entry.distance.wrapping_add(farther);
            }
        }
    }

    #[inline]
    pub(crate) fn base_of(&self, view: View, uncached: bool) -> usize {
        let view = if uncached { VIEW_UNCACHED } else { view as usize };
        (self.bank << BANK_SHIFT) | (view * PAGES)
    }

    #[inline]
    pub(crate) fn bank(&self) -> usize {
        self.bank
    }

    /// Fills an entry of both levels.
    pub(crate) fn fill(&mut self, view: View, linear: u64, ram_page: u64, may_store: bool) {
        let base = self.base_of(view, false);
        let key = self.backup_key(base, linear);
        self.backup[backup_index(key)] = BackupEntry { key, ram: ram_page | u64::from(may_store) };
        if may_store {
            self.note_writer(linear, ram_page >> PAGE_SHIFT);
        }
        self.fill_first_level(base, linear, ram_page, may_store);
    }

    fn fill_first_level(&mut self, base: usize, linear: u64, ram_page: u64, may_store: bool) {
        let index = index_of(base, linear);
        let tag = linear & !0xfff;
        let write = if may_store { tag } else { tag ^ 1 << PAGE_SHIFT };
        let host = self.host_base.wrapping_add(ram_page);
        let distance = host.wrapping_sub(tag);
        self.entries[index] = TlbEntry { read: tag, write, host, distance };
    }

    /// Brings an entry back from the second level; its RAM page if it is there and good enough.
    pub(crate) fn refill(&mut self, view: View, linear: u64, for_store: bool) -> Option<u64> {
        let base = self.base_of(view, false);
        let key = self.backup_key(base, linear);
        let entry = self.backup[backup_index(key)];
        if entry.key != key || for_store && !entry.may_store() {
            return None;
        }
        let ram = entry.ram & !1;
        self.fill_first_level(base, linear, ram, entry.may_store());
        Some(ram)
    }

    fn note_writer(&mut self, linear: u64, page: u64) {
        let page = page as usize;
        if page >= self.writers.len() {
            self.writers.resize(page + 1, Writers::NONE);
        }
        self.writers[page] = self.writers[page].with(linear);
    }

    /// Takes the right to plain stores to a RAM page away from every entry.
    fn drop_writers(&mut self, page: u64) {
        let Some(writers) = self.writers.get_mut(page as usize) else { return };
        let known = std::mem::replace(writers, Writers::NONE);
        self.losses += 1;
        if known == Writers::MANY {
            let ram = page << PAGE_SHIFT;
            let host = self.host_base.wrapping_add(ram);
            for (index, entry) in self.entries.iter_mut().enumerate() {
                if entry.host == host {
                    entry.write = no_tag(index);
                }
            }
            self.backup.iter_mut().filter(|entry| entry.ram == ram | 1).for_each(|it| it.ram = ram);
            return;
        }
        for linear in known.pages() {
            for base in self.bases() {
                let index = index_of(base, linear);
                if self.entries[index].read == linear {
                    self.entries[index].write = no_tag(index);
                }
                let key = self.backup_key(base, linear);
                let entry = &mut self.backup[backup_index(key)];
                if entry.key == key {
                    entry.ram &= !1;
                }
            }
        }
    }

    /// The bases of every view that is filled, of the banks that are in use.
    fn bases(&self) -> impl Iterator<Item = usize> + use<> {
        let banks = self.banks;
        (0..BANKS).filter(move |bank| banks[*bank].is_some()).flat_map(|bank| {
            (0..VIEW_UNCACHED).map(move |view| (bank << BANK_SHIFT) | (view * PAGES))
        })
    }

    pub(crate) fn exec(&self, user: bool, linear: u64) -> Option<u64> {
        let entry = self.exec[self.exec_index(self.bank, user, linear)];
        (entry.tag == linear >> PAGE_SHIFT).then_some(entry.ram)
    }

    pub(crate) fn fill_exec(&mut self, user: bool, linear: u64, ram_page: u64) {
        let index = self.exec_index(self.bank, user, linear);
        self.exec[index] = ExecEntry { tag: linear >> PAGE_SHIFT, ram: ram_page };
    }

    fn exec_index(&self, bank: usize, user: bool, linear: u64) -> usize {
        let page = (linear >> PAGE_SHIFT) as usize;
        let page = (page ^ page >> 9) & (EXEC_PAGES - 1);
        (bank * 2 + usize::from(user)) * EXEC_PAGES + page
    }

    /// Makes the bank of `cr3` the current one. Returns false if it had none.
    fn select_bank(&mut self, cr3: u64) -> bool {
        if let Some(bank) = self.banks.iter().position(|owner| *owner == Some(cr3)) {
            self.bank = bank;
            return true;
        }
        self.bank = self.next_bank;
        self.next_bank = (self.next_bank + 1) % BANKS;
        if self.banks[self.bank].replace(cr3).is_some() {
            self.clear_bank(self.bank);
        }
        false
    }

    /// The current bank, which is empty, is from now on that of `cr3`.
    pub(crate) fn take_over_bank(&mut self, cr3: u64) {
        self.banks[self.bank] = Some(cr3);
    }

    /// Forgets which address space each bank belongs to.
    pub(crate) fn forget_banks(&mut self) {
        self.clear();
        self.banks = [None; BANKS];
    }

    fn clear_bank(&mut self, bank: usize) {
        self.drop_spaces(3 << (2 * bank));
    }

    /// Drops everything of the spaces whose bits are set.
    fn drop_spaces(&mut self, spaces: u16) {
        self.drops += 1;
        self.losses += 1;
        for bank in (0..BANKS).filter(|bank| spaces >> (2 * bank) & 3 != 0) {
            let halves = spaces >> (2 * bank) & 3;
            let first = bank << BANK_SHIFT;
            for index in first..first + PAGES * VIEW_UNCACHED {
                if halves >> (self.entries[index].read >> 63) & 1 != 0 {
                    self.entries[index] = empty_entry(index);
                }
            }
            self.exec[bank * 2 * EXEC_PAGES..(bank + 1) * 2 * EXEC_PAGES].fill(NO_EXEC);
        }
        for space in (0..SPACES).filter(|space| spaces >> space & 1 != 0) {
            self.code_epochs[space] += 1;
            self.dropped_at[space] = self.drops;
            self.stamps[space] = (self.stamps[space] + 1) % STAMPS;
            if self.stamps[space] == 0 {
                // The stamps begin again, so nothing may be left from the first time.
                for entry in self.backup.iter_mut() {
                    if space_of(bank_of_key(entry.key), entry.key) == space {
                        *entry = NO_BACKUP;
                    }
                }
            }
        }
    }

    fn clear(&mut self) {
        for bank in 0..BANKS {
            if bank != self.bank {
                self.banks[bank] = None;
            }
        }
        self.drop_spaces(u16::MAX);
    }

    /// While it is the same, linear addresses near this one lead where they did, as far as code was found there.
    #[inline(always)]
    pub(crate) fn code_epoch(&self, linear: u64) -> u64 {
        self.code_epochs[space_of(self.bank, linear) & (SPACES - 1)]
    }

    /// Has every address of code looked up again.
    pub(crate) fn drop_links(&mut self) {
        self.code_epochs.iter_mut().for_each(|epoch| *epoch += 1);
    }

    /// Drops the translations of one page in the spaces whose bits are set, in every view. Returns how many there were in the
    /// first level.
    fn drop_page(&mut self, linear: u64, spaces: u16) -> u64 {
        let mut dropped = 0;
        self.losses += 1;
        let is_meant = |base: &usize| spaces >> space_of(base >> BANK_SHIFT, linear) & 1 != 0;
        for base in self.bases().filter(is_meant) {
            let index = index_of(base, linear);
            if self.entries[index].read == linear {
                self.entries[index] = empty_entry(index);
                dropped += 1;
            }
            let key = self.backup_key(base, linear);
            if self.backup[backup_index(key)].key == key {
                self.backup[backup_index(key)] = NO_BACKUP;
            }
        }
        dropped
    }

    /// Drops the translation for fetches of one page, and the links in the spaces that used it.
    fn drop_exec_page(&mut self, linear: u64, spaces: u16) {
        for bank in 0..BANKS {
            for user in [false, true] {
                let index = self.exec_index(bank, user, linear);
                if self.exec[index].tag == linear >> PAGE_SHIFT {
                    self.exec[index] = NO_EXEC;
                }
            }
        }
        for space in (0..SPACES).filter(|space| spaces >> space & 1 != 0) {
            self.code_epochs[space] += 1;
        }
    }

    pub(crate) fn drop_write_tags(&mut self) {
        self.losses += 1;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            entry.write = no_tag(index);
        }
        self.backup.iter_mut().for_each(|entry| entry.ram &= !1);
        self.writers.clear();
    }

    /// Has writes to a RAM page reported from now on.
    fn watch(&mut self, mem: &mut GuestMem, page: u64) {
        if mem.marks().is_watched(page) {
            return;
        }
        self.drop_writers(page);
        mem.marks_mut().watch(page);
    }

    /// Notes that bytes `start..end` of a RAM page are translated as code.
    pub(crate) fn note_code(&mut self, mem: &mut GuestMem, page: u64, start: usize, end: usize) {
        self.watch(mem, page);
        let chunks = chunk_mask(start, end);
        self.uses.of(page).code_chunks |= chunks;
    }

    /// Notes that no code of a RAM page is translated any more.
    pub(crate) fn forget_code(&mut self, page: u64) {
        if let Some(page_use) = self.uses.get(page) {
            page_use.code_chunks = 0;
        }
    }

    pub(crate) fn forget_all_code(&mut self) {
        self.uses.slab.iter_mut().for_each(|page_use| page_use.code_chunks = 0);
        self.code_writes.clear();
        self.code_generation += 1;
        self.drop_links();
    }

    /// True if a write to these bytes would change code that is translated.
    pub(crate) fn is_code(&mut self, offset: RamOffset, len: u32) -> bool {
        let start = (offset.0 & 0xfff) as usize;
        self.uses.get(offset.page()).is_some_and(|page_use| {
            page_use.code_chunks & chunk_mask(start, start + len as usize) != 0
        })
    }

    /// Notes that a walk for `linear` went through the table entry at `entry`.
    pub(crate) fn note_walk(&mut self, mem: &mut GuestMem, step: WalkStep) {
        let page = step.entry.page();
        self.watch(mem, page);
        let space = space_of(self.bank, step.linear);
        let (dropped_at, drops) = (self.dropped_at, self.drops);
        let page_use = self.uses.of(page);
        if page_use.is_void(&dropped_at) {
            page_use.forget_walks();
        }
        page_use.spaces |= 1 << space;
        page_use.last_walk = drops;
        let slot = (step.entry.0 >> 3 & 511) as usize;
        page_use.walked[slot / 64] |= 1 << (slot % 64);
        match step.table_linear {
            // A last-level table: its entries' pages follow from its place.
            Some(linear) => {
                if step.fetch {
                    page_use.fetched[slot / 64] |= 1 << (slot % 64);
                }
                match page_use.linear {
                    TableLinear::Unknown => page_use.linear = TableLinear::Last(linear),
                    TableLinear::Last(known) if known == linear => {}
                    _ => page_use.linear = TableLinear::Many,
                }
            }
            None => page_use.linear = TableLinear::Many,
        }
    }
}

/// One table entry that a walk read.
#[derive(Clone, Copy)]
pub(crate) struct WalkStep {
    /// Where the entry is.
    pub(crate) entry: RamOffset,
    /// The linear address of the page that the table's first entry maps, if this is a table of
    /// 8-byte entries for single 4 KiB pages.
    pub(crate) table_linear: Option<u64>,
    /// The address that was translated.
    pub(crate) linear: u64,
    /// The walk was for an instruction fetch.
    pub(crate) fetch: bool,
}

#[inline(always)]
fn index_of(base: usize, linear: u64) -> usize {
    let page = (linear >> PAGE_SHIFT) as usize;
    (base | page & (PAGES - 1)) & (ENTRIES - 1)
}

fn bank_of_key(key: u64) -> usize {
    (key as usize & (BANKS * VIEWS - 1)) / VIEWS
}

fn space_of(bank: usize, linear: u64) -> usize {
    bank * 2 + (linear >> 63) as usize
}

const BACKUP_HASH: u64 = 0x9e37_79b9_7f4a_7c15;

fn backup_index(key: u64) -> usize {
    (key.wrapping_mul(BACKUP_HASH) >> (64 - BACKUP_BITS)) as usize & (BACKUP_ENTRIES - 1)
}

/// One bit per 64 bytes of the page.
fn chunk_mask(start: usize, end: usize) -> u64 {
    let (first, last) = (start >> 6, (end.min(4096) - 1) >> 6);
    u64::MAX << first & u64::MAX >> (63 - last)
}

/// Which linear addresses a page table maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TableLinear {
    Unknown,
    /// A last-level table, used at one place only.
    Last(u64),
    /// An upper-level table, or one that is used in several places.
    Many,
}

/// What depends on the content of one RAM page.
struct PageUse {
    /// The spaces whose walks went through here.
    spaces: u16,
    /// Drops of spaces before the last walk.
    last_walk: u64,
    /// One bit per 8 bytes: the entry was walked.
    walked: [u64; 8],
    /// The entry was walked for a fetch.
    fetched: [u64; 8],
    linear: TableLinear,
    /// One bit per 64 bytes: code was translated.
    code_chunks: u64,
}

impl PageUse {
    /// True if nothing in the TLB was filled from here.
    fn is_void(&self, dropped_at: &[u64; SPACES]) -> bool {
        let lives =
            |space: &usize| self.spaces >> space & 1 != 0 && dropped_at[*space] <= self.last_walk;
        self.walked == [0; 8] || !(0..SPACES).any(|space| lives(&space))
    }

    fn forget_walks(&mut self) {
        self.spaces = 0;
        self.walked = [0; 8];
        self.fetched = [0; 8];
        self.linear = TableLinear::Unknown;
    }
}

#[derive(Default)]
struct PageUses {
    /// Place in `slab` plus one of each RAM page; 0 for none.
    places: Vec<u32>,
    slab: Vec<PageUse>,
}

impl PageUses {
    fn of(&mut self, page: u64) -> &mut PageUse {
        let page = page as usize;
        if page >= self.places.len() {
            self.places.resize(page + 1, 0);
        }
        if self.places[page] == 0 {
            self.slab.push(PageUse {
                spaces: 0,
                last_walk: 0,
                walked: [0; 8],
                fetched: [0; 8],
                linear: TableLinear::Unknown,
                code_chunks: 0,
            });
            self.places[page] = self.slab.len() as u32;
        }
        &mut self.slab[self.places[page] as usize - 1]
    }

    fn get(&mut self, page: u64) -> Option<&mut PageUse> {
        let place = *self.places.get(page as usize)?;
        if place == 0 { None } else { Some(&mut self.slab[place as usize - 1]) }
    }
}

/// What a write to a watched page means.
enum WriteEffect {
    /// Nothing depends on the page any more.
    Unwatch,
    Nothing,
    /// Walked entries in these slots were written.
    Slots {
        first: usize,
        last: usize,
        linear: TableLinear,
        spaces: u16,
    },
}

impl Cpu {
    /// Drops every translation.
    pub(crate) fn flush_tlb(&mut self) {
        self.tlb.clear();
        self.stats.tlb_flushes += 1;
        self.attention = true;
    }

    /// Makes the address space of CR3 the current one.
    pub(crate) fn select_address_space(&mut self) {
        self.stats.cr3_loads += 1;
        if !self.tlb.select_bank(self.sys.cr3) {
            self.stats.cr3_misses += 1;
        }
        self.mode_key = self.compute_mode_key();
        self.update_view();
    }

    /// Looks at the writes to watched pages: drops the translations that depended on what was
    /// written, and keeps writes to code for the code cache.
    #[cold]
    pub(crate) fn absorb_writes(&mut self, mem: &mut GuestMem) {
        for write in mem.take_watched_writes() {
            self.absorb_write(mem, write);
        }
    }

    fn absorb_write(&mut self, mem: &mut GuestMem, write: WatchedWrite) {
        if self.tlb.is_code(write.offset, write.len) {
            self.tlb.code_writes.push(write);
            self.attention = true;
        }
        match self.tlb.effect_of(write) {
            WriteEffect::Unwatch => mem.marks_mut().unwatch(write.offset.page()),
            WriteEffect::Nothing => self.stats.table_writes += 1,
            WriteEffect::Slots { first, last, linear, spaces } => {
                self.stats.table_writes += 1;
                self.stats.walked_entry_writes += 1;
                match linear {
                    TableLinear::Last(table) => {
                        self.drop_slots(write.offset.page(), table, first, last)
                    }
                    _ => {
                        self.tlb.drop_spaces(spaces);
                        self.stats.tlb_flushes += 1;
                        self.attention = true;
                    }
                }
            }
        }
    }

    fn drop_slots(&mut self, page: u64, table: u64, first: usize, last: usize) {
        for slot in first..=last {
            let linear = table.wrapping_add((slot as u64) << PAGE_SHIFT);
            let page_use = self.tlb.uses.of(page);
            let (word, bit) = (slot / 64, 1u64 << (slot % 64));
            if page_use.walked[word] & bit == 0 {
                continue;
            }
            let fetched = page_use.fetched[word] & bit != 0;
            page_use.walked[word] &= !bit;
            page_use.fetched[word] &= !bit;
            let spaces = page_use.spaces;
            self.stats.tlb_drops += self.tlb.drop_page(linear, spaces);
            if fetched {
                self.tlb.drop_exec_page(linear, spaces);
                self.attention = true;
            }
        }
    }
}

impl Tlb {
    fn effect_of(&mut self, write: WatchedWrite) -> WriteEffect {
        let dropped_at = self.dropped_at;
        let Some(page_use) = self.uses.get(write.offset.page()) else {
            return WriteEffect::Unwatch;
        };
        if page_use.is_void(&dropped_at) {
            return if page_use.code_chunks == 0 {
                WriteEffect::Unwatch
            } else {
                WriteEffect::Nothing
            };
        }
        let start = (write.offset.0 & 0xfff) as usize;
        let (first, last) = (start / 8, (start + write.len as usize - 1) / 8);
        let hit = (first..=last).any(|slot| page_use.walked[slot / 64] >> (slot % 64) & 1 != 0);
        if hit {
            WriteEffect::Slots { first, last, linear: page_use.linear, spaces: page_use.spaces }
        } else {
            WriteEffect::Nothing
        }
    }
}
