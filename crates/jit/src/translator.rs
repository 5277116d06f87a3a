//! The engine: finds or makes translations, enters them, and understands how they were left.

use std::io;

use cpu::{
    CodeContext, CodePlace, Cpu, Doing, Engine, Env, INSTRUCTION_BYTES_MAX, Next, Seg, SettledPage,
    Side, is_canonical,
};
use mem::{GuestMem, RamOffset, WatchedWrite};
use rustc_hash::FxHashMap;
use x86::{CpuModel, Rflags};

use crate::cache::{CodeMemory, HUGE_BYTES, Nowhere};
use crate::emit::Emitter;
use crate::frame::{Callees, Context, Stubs, emit_stubs};
use crate::hints::Hints;
use crate::host::{HOST, meaning_on};
use crate::jumps::{Branches, Jump};
use crate::plan::{plain as plain_checks, plan, spare_exits};
use crate::probe::host_agrees;
use crate::scan::{End, TRACE_MAX, Trace, scan, scan_straddler};
use crate::sides::{SIDES, index_of};
use crate::translate::{Crossing, Exit, ExitKind, Flavour, Gen, Place, Shared, Site};

/// Host code that is held before everything is dropped.
const CACHE_BYTES: usize = 256 << 20;
/// The longest translation: some instructions of a trace take 200 bytes and more with their exits.
pub(crate) const TRANSLATION_BYTES_MAX: usize = 64 << 10;
/// What of the cache is taken at a time.
const CHUNK_BYTES: usize = HUGE_BYTES;
/// Of translations.
const ALIGNMENT: usize = 16;
const PAGE_BYTES: usize = 4096;
/// Rounds of a loop that make it a long one.
const LONG_ROUNDS: u64 = 16;
/// A long loop has fewer misses in so many rounds than end its run.
const ROUNDS_FOR_MISSES: u64 = 256;
const LOOPS_MAX: usize = 1 << 16;
/// A mapping with code on more pages is not looked through.
const SETTLED_MAX: usize = 4096;
/// Large pages that are kept in mind meanwhile.
const LARGE_PAGES_MAX: usize = 16;
/// Of mappings' numbers, when all begins anew: less than a key can have by many more than one call of the engine makes.
const MAPPINGS_MAX: u64 = (1 << (64 - KEY_PAGE_BITS)) - (1 << 20);
/// Sealed translations of one place that are kept in mind.
const SEALED_MAX: usize = 64;
/// Bits of a page's number in a key: linear addresses have 48 bits.
pub(crate) const KEY_PAGE_BITS: u32 = 36;
/// A budget that is as good as none.
const BUDGET_MAX: u64 = 1 << 48;
/// Marks a plain translation beside the bits of [`CodePlace::meaning`].
const PLAIN: u32 = 1 << 31;
/// The first site, by which [`Stubs::to_zero`] leaves.
const TO_ZERO: Site = Site { at: 0, undo: 0, exit: Exit::Indirect { rsp: 0 } };
pub(crate) const SITE_TO_ZERO: u32 = 0;
/// All exceptions are masked.
pub(crate) const MXCSR_MASKS: u32 = 0x1f80;

/// Why there is no translator on this host.
#[derive(Debug, thiserror::Error)]
pub enum NotPossible {
    /// The host gives no memory for code.
    #[error("no memory that can hold code: {0}")]
    Memory(#[from] io::Error),
    /// The host's CPU lacks what a guest is shown.
    #[error("this host's CPU is below x86-64-v2")]
    Cpu,
    /// The host's CPU sets flags that the manual leaves open otherwise than the project defines them.
    #[error("this host's CPU has other undefined flags")]
    Flags,
}

/// Translates and runs guest code.
pub struct Translator {
    memory: CodeMemory,
    stubs: Stubs,
    space: Space,
    sites: Vec<Site>,
    blocks: FxHashMap<Key, Block>,
    pages: FxHashMap<u64, CodePage>,
    branches: Branches,
    /// The address space and the kernel's contexts for which the frame's context has what they know.
    brought: Option<(usize, [CodeContext; 2])>,
    context: Box<Context>,
    hints: Hints,
    /// What is pinned where the TLB knows no page that may be stored to.
    nowhere: Nowhere,
    /// By what of a context does not change with time.
    mappings: FxHashMap<u32, Mapping>,
    mappings_so_far: u64,
    /// The numbers of those that hold: by side and half.
    numbers: [[u64; 2]; 2],
    /// What is known of loops.
    loops: FxHashMap<Key, Rounds>,
    /// Where translations are that were sealed and that their successors take the place of.
    sealed: FxHashMap<Key, Vec<u32>>,
    /// The first site of each loop, in order.
    first_sites: Vec<(u32, Key)>,
    /// By the mapping's number: the jumps between pages that were linked in it, by the places of their keys.
    crossings: FxHashMap<u64, FxHashMap<u32, Crossing>>,
    /// What the context has of the TLB, and the pin, hold as long as this stays the same.
    tlb_state: Option<(usize, u64)>,
    /// How often all were dropped.
    clears: u64,
    translations: u64,
    translated_bytes: u64,
    entries: u64,
    links: u64,
    /// `Cpu::code_generation` that the translations belong to.
    generation: u64,
    /// Longest trace, in instructions.
    trace_max: usize,
    /// Every loop is taken for a long one, until it shows that it is none.
    loops_are_long: bool,
    /// What the host's CPU has, as far as it is used.
    host: CpuModel,
    /// How often translated code was left, by [`ExitKind`].
    exits: [u64; ExitKind::NAMES.len()],
}

/// What of the cache is not used yet. What is often run and what is rarely run do not lie among each other, but in chunks of
/// the cache that they take in turns, as needed.
struct Space {
    hot: Stretch,
    cold: Stretch,
    /// Where the first translation begins.
    start: usize,
    /// Chunks from here on are free.
    free: usize,
    len: usize,
}

/// A part of the cache that is being filled.
struct Stretch {
    at: usize,
    end: usize,
}

impl Space {
    /// All of a cache but the stubs at its start.
    fn new(len: usize, stubs: usize) -> Space {
        let start = stubs.next_multiple_of(ALIGNMENT);
        let hot = Stretch { at: start, end: CHUNK_BYTES };
        let cold = Stretch { at: CHUNK_BYTES, end: 2 * CHUNK_BYTES };
        Space { hot, cold, start, free: 2 * CHUNK_BYTES, len }
    }

    fn clear(&mut self) {
        *self = Space::new(self.len, self.start);
    }

    /// Whether there is room for any translation, in both stretches.
    fn has_room(&mut self) -> bool {
        for stretch in [&mut self.hot, &mut self.cold] {
            if stretch.end - stretch.at >= TRANSLATION_BYTES_MAX {
                continue;
            }
            let end = self.free + CHUNK_BYTES;
            if end > self.len {
                return false;
            }
            *stretch = Stretch { at: self.free, end };
            self.free = end;
        }
        true
    }
}

impl Stretch {
    /// Takes so many bytes from the front.
    fn take(&mut self, len: usize) -> usize {
        let at = self.at;
        self.at = (at + len).next_multiple_of(ALIGNMENT);
        assert!(self.at <= self.end, "a translation of more than {TRANSLATION_BYTES_MAX} bytes");
        at
    }
}

/// What a translation is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// RAM address of its first byte.
    ram: u64,
    /// What of the mode decides what bytes mean, and [`PLAIN`].
    meaning: u32,
    /// The RAM page on which its only instruction ends, plus 1, if that is another one; 0 if not.
    next: u32,
}

/// What [`Key::next`] is where no instruction ends on another page.
const NO_NEXT: u32 = 0;

impl Key {
    fn start(&self) -> u16 {
        (self.ram & 0xfff) as u16
    }
}

/// What depends on a page, and what did.
struct CodePage {
    keys: Vec<Key>,
    /// Where translations start on it, or once did: a bit for each place.
    starts: [u64; PAGE_BYTES / 64],
}

impl Default for CodePage {
    fn default() -> CodePage {
        CodePage { keys: Vec::new(), starts: [0; PAGE_BYTES / 64] }
    }
}

impl CodePage {
    fn add(&mut self, key: Key) {
        self.keys.push(key);
        let at = key.start();
        self.starts[usize::from(at / 64)] |= 1 << (at % 64);
    }

    /// False where no translation starts.
    fn may_start_at(&self, at: u16) -> bool {
        self.starts[usize::from(at / 64)] >> (at % 64) & 1 != 0
    }
}

/// The translation that starts at a place on a page of RAM.
fn at_place(
    blocks: &FxHashMap<Key, Block>,
    page: Option<&CodePage>,
    key: Key,
    at: u16,
) -> Option<Block> {
    if !page?.may_start_at(at) {
        return None;
    }
    let ram = key.ram & !0xfff | u64::from(at);
    blocks.get(&Key { ram, meaning: key.meaning & !PLAIN, next: NO_NEXT }).copied()
}

/// Where the linear addresses of one half lead, in one mode and address space.
#[derive(Default)]
struct Mapping {
    /// When that was last looked at.
    context: CodeContext,
    /// Never used again once the mapping is another one. 0 stands for none.
    number: u64,
    /// The linear pages on which code was found, and where they lead: pages of RAM.
    pages: FxHashMap<u64, u64>,
    /// There are more pages than are kept in mind.
    is_full: bool,
}

impl Mapping {
    /// Code was found on a page.
    fn note(&mut self, linear: u64, ram: u64) {
        if self.pages.len() < SETTLED_MAX {
            self.pages.insert(linear & !0xfff, ram);
        } else if !self.pages.contains_key(&(linear & !0xfff)) {
            self.is_full = true;
        }
    }

    /// True if all pages lead where they did, and nobody can see that this was looked at. Links to them hold then.
    fn holds(&self, cpu: &mut Cpu, mem: &mut GuestMem, side: Side) -> bool {
        // The kernel's code lies on few large pages, as a rule.
        let mut settled: Vec<SettledPage> = Vec::new();
        !self.is_full
            && self.pages.iter().all(|(linear, ram)| {
                let known = settled.iter().find_map(|page| page.place(*linear));
                let gpa = known.or_else(|| {
                    let page = cpu.settled_code_page(mem, *linear, side)?;
                    if page.bytes > PAGE_BYTES as u64 && settled.len() < LARGE_PAGES_MAX {
                        settled.push(page);
                    }
                    page.place(*linear)
                });
                gpa.and_then(|gpa| mem.offset_of(gpa)).map(RamOffset::page) == Some(*ram)
            })
    }
}

/// What a loop does.
enum Rounds {
    /// Many rounds, as a rule.
    Long,
    /// Many rounds, but on other pages in most of them.
    Scattered,
}

/// A translation.
#[derive(Clone, Copy)]
struct Block {
    /// In the cache.
    offset: u32,
    /// It only jumps to itself, as jumps between pages do: they find the instruction that reaches into the next
    /// page, too.
    straddles: bool,
}

// SAFETY: the pointers in the context are set and used only inside `run`, which holds the references that
// they were made from.
unsafe impl Send for Translator {}

impl Translator {
    /// A translator without translations.
    ///
    /// # Errors
    /// [`NotPossible`] if the host forbids memory for code or its CPU lacks something.
    pub fn new() -> Result<Translator, NotPossible> {
        if !(is_x86_feature_detected!("sse4.2")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("ssse3"))
        {
            return Err(NotPossible::Cpu);
        }
        if !host_agrees() {
            return Err(NotPossible::Flags);
        }
        let mut memory = CodeMemory::new(CACHE_BYTES)?;
        let mut emitter = Emitter::new(memory.base());
        let callees = Callees {
            slow: slow_access as *const () as u64,
            time_stamp: time_stamp as *const () as u64,
            fill_x87: fill_x87 as *const () as u64,
        };
        let nowhere = Nowhere::new()?;
        let stubs = emit_stubs(&mut emitter, &callees, nowhere.page().0);
        memory.write(0, &emitter.bytes);
        let space = Space::new(memory.len(), emitter.bytes.len());
        Ok(Translator {
            memory,
            stubs,
            space,
            sites: vec![TO_ZERO],
            blocks: FxHashMap::default(),
            pages: FxHashMap::default(),
            branches: Branches::new(stubs.to_zero)?,
            brought: None,
            context: Box::new(Context::new()),
            hints: Hints::new(nowhere.page())?,
            nowhere,
            mappings: FxHashMap::default(),
            mappings_so_far: 0,
            numbers: [[0; 2]; 2],
            loops: FxHashMap::default(),
            sealed: FxHashMap::default(),
            first_sites: Vec::new(),
            crossings: FxHashMap::default(),
            tlb_state: None,
            clears: 0,
            translations: 0,
            translated_bytes: 0,
            entries: 0,
            links: 0,
            generation: 0,
            trace_max: TRACE_MAX,
            loops_are_long: false,
            host: *HOST,
            exits: [0; ExitKind::NAMES.len()],
        })
    }

    /// What the host's CPU has of the models' instructions; all others are left to the interpreter.
    #[must_use]
    pub fn host_model() -> CpuModel {
        *HOST
    }

    /// Has translations of at most `most` instructions made from now on, so that the engine works where it is
    /// given few steps at a time.
    pub fn limit_traces(&mut self, most: usize) {
        self.trace_max = most.clamp(1, TRACE_MAX);
    }

    /// Takes every loop for one of many rounds from now on, so that short runs show what is done with those.
    pub fn expect_long_loops(&mut self) {
        self.loops_are_long = true;
    }

    /// Leaves to the interpreter from now on what this model does not have, as on a host that is like it.
    pub fn limit_host(&mut self, model: CpuModel) {
        let CpuModel { level, aes, pclmulqdq, sha } = *HOST;
        self.host = CpuModel {
            level: model.level.min(level),
            aes: model.aes && aes,
            pclmulqdq: model.pclmulqdq && pclmulqdq,
            sha: model.sha && sha,
        };
    }

    /// Drops every translation.
    fn clear(&mut self) {
        self.space.clear();
        self.sites.truncate(1);
        self.first_sites.clear();
        self.blocks.clear();
        self.pages.clear();
        self.crossings.clear();
        self.sealed.clear();
        self.mappings.values_mut().for_each(|mapping| mapping.pages = FxHashMap::default());
        self.branches.clear();
        self.brought = None;
        self.clears += 1;
    }

    /// The host address of the code at a linear address, translated if need be, and where a jump on the same page
    /// may lead for it.
    fn find(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, linear: u64) -> Option<(u64, u64)> {
        let place = cpu.code_place(mem, linear)?;
        let before = (self.clears, self.sites.len());
        let block = self.block(cpu, mem, place, false);
        let near = self.address(block);
        let straddler =
            if block.straddles { Some(self.straddler(cpu, mem, place, linear)?) } else { None };
        let code = straddler.map_or(near, |(code, _)| code);
        // Walking the tables for a fetch may have changed what holds.
        self.bring_branches(cpu, mem);
        let key = self.key_of(cpu, linear);
        self.note_page(cpu, linear, place.ram.page());
        if let Some((_, next)) = straddler {
            self.note_page(cpu, (linear | 0xfff).wrapping_add(1), next);
        }
        self.branches.insert(number_here(cpu), Jump::new(linear, code, key));
        if before.0 == self.clears {
            self.link_known(cpu, before.1, linear, key);
        }
        Some((code, near))
    }

    /// A number for a page and the mapping in which it holds code, in which jumps from that page to others may be
    /// linked: the page's number, and above it the mapping's. That has to be brought before.
    fn key_of(&self, cpu: &Cpu, linear: u64) -> u64 {
        let number = self.numbers[index_of(side_of(cpu))][(linear >> 63) as usize];
        number << KEY_PAGE_BITS | linear >> 12 & ((1 << KEY_PAGE_BITS) - 1)
    }

    /// Code was found on a page, in the mapping that holds there.
    fn note_page(&mut self, cpu: &Cpu, linear: u64, ram: u64) {
        let place = cpu.side_context(side_of(cpu), linear).place;
        self.mappings.entry(place).or_default().note(linear, ram);
        self.branches.note_half(number_here(cpu), linear);
    }

    /// The number of the mapping of a half, as it is now. It is the same as before as long as all pages on which code was
    /// found lead where they did, and nobody can see that this was looked at: most of the kernel's do in each new address
    /// space.
    fn number_of_mapping(
        &mut self,
        cpu: &mut Cpu,
        mem: &mut GuestMem,
        side: Side,
        half: u64,
    ) -> u64 {
        let context = cpu.side_context(side, half << 63);
        let mapping = self.mappings.entry(context.place).or_default();
        if mapping.number != 0 && (mapping.context == context || mapping.holds(cpu, mem, side)) {
            mapping.context = context;
            return mapping.number;
        }
        self.mappings_so_far += 1;
        let number = self.mappings_so_far;
        let new = Mapping { context, number, ..Mapping::default() };
        let old = std::mem::replace(mapping, new);
        self.unlink(old.number);
        number
    }

    /// Makes all jumps between pages leave that were linked in a mapping that is over.
    fn unlink(&mut self, number: u64) {
        for crossing in self.crossings.remove(&number).unwrap_or_default().into_values() {
            self.memory.write(crossing.key_at as usize, &0u64.to_le_bytes());
            self.link(crossing.other_at, self.stubs.leave_far);
        }
    }

    /// Makes a jump between pages lead to `code` under the key `from`, if the key `to` is then what follows.
    fn link_crossing(&mut self, crossing: Crossing, from: u64, to: u64, code: u64) {
        let follows = from.wrapping_add_signed(i64::from(crossing.pages())) == to;
        if !follows || from >> KEY_PAGE_BITS != to >> KEY_PAGE_BITS {
            return;
        }
        self.memory.write(crossing.key_at as usize, &from.to_le_bytes());
        self.link(crossing.jump_at, code);
        // Under others, by the jump table: that comes next.
        self.link(crossing.other_at, self.memory.base() + u64::from(crossing.other_at) + 4);
        let linked = self.crossings.entry(from >> KEY_PAGE_BITS).or_default();
        linked.insert(crossing.key_at, crossing);
    }

    /// Links the jumps from the page of a linear address to others, which have the sites from a number on, as far as it is
    /// known where they lead. `key` is the page's.
    fn link_known(&mut self, cpu: &Cpu, first: usize, linear: u64, key: u64) {
        for site in first..self.sites.len() {
            let Exit::Cross(crossing) = self.sites[site].exit else { continue };
            let target = (linear & !0xfff).wrapping_add_signed(i64::from(crossing.target));
            if let Some(jump) = self.branches.get(number_here(cpu), target) {
                self.link_crossing(crossing, key, jump.key, jump.code);
            }
        }
    }

    /// What a jump between pages found at a linear address before.
    fn known(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, linear: u64) -> Option<u64> {
        self.bring_branches(cpu, mem);
        self.branches.get(number_here(cpu), linear).map(|jump| jump.code)
    }

    /// Has both sides of a system call know where branches lead, as far as that holds now.
    #[inline]
    fn bring_branches(&mut self, cpu: &mut Cpu, mem: &mut GuestMem) {
        let now = kernels_contexts(cpu);
        if self.brought != Some(now) {
            self.bring_other_branches(cpu, mem);
            assert_eq!(now, kernels_contexts(cpu), "what is settled changes nothing");
        }
    }

    #[cold]
    fn bring_other_branches(&mut self, cpu: &mut Cpu, mem: &mut GuestMem) {
        let before = self.brought.replace(kernels_contexts(cpu));
        for side in SIDES {
            let numbers = [0, 1].map(|half| self.number_of_mapping(cpu, mem, side, half));
            self.numbers[index_of(side)] = numbers;
            let known = self.context.side_mut(side);
            if let Some((space, _)) = before {
                self.branches.note_last_call(number_of(space, side), known.ways.last_call);
            }
            known.ways = self.branches.bring(number_of(cpu.address_space(), side), numbers);
        }
    }

    fn block(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, place: CodePlace, plain: bool) -> Block {
        let meaning = place.meaning | if plain { PLAIN } else { 0 };
        let key = Key { ram: place.ram.0, meaning, next: NO_NEXT };
        if let Some(block) = self.blocks.get(&key) {
            return *block;
        }
        let page = place.ram.page();
        let start = (place.ram.0 & 0xfff) as u16;
        cpu.mark(Doing::Translating);
        let meaning_here = meaning_on(place.meaning, self.host);
        let code_page = self.pages.get(&page);
        let is_known = |at: u16| at_place(&self.blocks, code_page, key, at).is_some();
        let trace = scan(mem.page(page), start, meaning_here, self.trace_max, is_known);
        for insn in &trace.insns {
            cpu.note_code(mem, page, usize::from(insn.at), usize::from(insn.next));
        }
        if let End::Unknown(at) | End::Straddles(at) = trace.end {
            // What these bytes mean may depend on all that an instruction can have.
            cpu.note_code(mem, page, usize::from(at), usize::from(at) + INSTRUCTION_BYTES_MAX);
        }
        let straddles = trace.end == End::Straddles(start);
        let block = self.translate(trace, key, straddles, plain);
        cpu.mark(Doing::Engine);
        block
    }

    /// The host address of the instruction at a linear address, which reaches into the next page, and that page in RAM.
    fn straddler(
        &mut self,
        cpu: &mut Cpu,
        mem: &mut GuestMem,
        place: CodePlace,
        linear: u64,
    ) -> Option<(u64, u64)> {
        let next_linear = (linear | 0xfff).wrapping_add(1);
        if (next_linear ^ linear) >> 63 != 0 {
            return None; // the links of one half know nothing of the other
        }
        let next = cpu.code_place(mem, next_linear)?.ram.page();
        let number = u32::try_from(next + 1).ok()?; // beyond 16 TiB of RAM
        let key = Key { ram: place.ram.0, meaning: place.meaning, next: number };
        if let Some(block) = self.blocks.get(&key) {
            return Some((self.address(*block), next));
        }
        let start = (place.ram.0 & 0xfff) as usize;
        let here = &mem.page(place.ram.page())[start..];
        let bytes = [here, &mem.page(next)[..INSTRUCTION_BYTES_MAX]].concat();
        let trace = scan_straddler(&bytes, start as u16, meaning_on(place.meaning, self.host));
        cpu.note_code(mem, place.ram.page(), start, PAGE_BYTES);
        cpu.note_code(mem, next, 0, INSTRUCTION_BYTES_MAX);
        // Its accesses are checked one by one: there is no other translation of it to go on with.
        let block = self.translate(trace, key, false, true);
        self.pages.entry(next).or_default().add(key);
        Some((self.address(block), next))
    }

    fn translate(&mut self, mut trace: Trace, key: Key, straddles: bool, plain: bool) -> Block {
        let flavour = match self.loops.get(&key) {
            _ if plain => Flavour::Plain,
            Some(Rounds::Long) => Flavour::Loop,
            None if self.loops_are_long => Flavour::Loop,
            _ => Flavour::Usual,
        };
        if !self.space.has_room() {
            self.clear();
        }
        let cache = self.memory.base();
        let (offset, cold) = (self.space.hot.at, self.space.cold.at);
        let (base, cold) = (cache + offset as u64, cache + cold as u64);
        let place = Place { start: key.start(), base, cold, cache };
        if trace.is_loop {
            self.first_sites.push((self.sites.len() as u32, key));
        }
        let (sites, given) = (&mut self.sites, &mut self.hints.given);
        let checks = if plain { plain_checks(&trace.insns) } else { plan(&trace.insns) };
        spare_exits(&mut trace, &checks);
        let code_page = self.pages.get(&(key.ram >> 12));
        let known = |at: u16| {
            let block = at_place(&self.blocks, code_page, key, at)?;
            Some(cache + u64::from(block.offset))
        };
        let shared = Shared { stubs: self.stubs, sites, given, known: &known };
        let code = Gen::new(&trace, &checks, flavour, place, shared).run();
        let (hot, cold) = code.parts();
        self.memory.write(self.space.hot.take(hot.len()), hot);
        self.memory.write(self.space.cold.take(cold.len()), cold);
        self.translations += 1;
        self.translated_bytes += (hot.len() + cold.len()) as u64;
        let block = Block { offset: offset as u32, straddles };
        self.blocks.insert(key, block);
        // One that only leads to the jump table may find what it takes the place of there.
        if !straddles {
            let sealed = self.sealed.get(&key).cloned().unwrap_or_default();
            sealed.iter().for_each(|old| self.link(old + 1, base));
        }
        self.pages.entry(key.ram >> 12).or_default().add(key);
        block
    }

    /// Where a translation runs.
    fn address(&self, block: Block) -> u64 {
        self.memory.base() + u64::from(block.offset)
    }

    /// Makes the jump whose distance is at `at` in the cache lead to `to`.
    fn link(&mut self, at: u32, to: u64) {
        let from = self.memory.base() + u64::from(at) + 4;
        let distance = to.wrapping_sub(from) as i64 as i32;
        self.memory.write(at as usize, &distance.to_le_bytes());
        self.links += 1;
    }

    /// Makes the translation at an offset of the cache leave as soon as it is entered, or go on in what takes its place.
    /// Its first instruction is all that changes: jumps further on may still be linked and unlinked.
    fn seal(&mut self, offset: usize, key: Key) {
        let sealed = self.sealed.entry(key).or_default();
        if sealed.len() == SEALED_MAX {
            // Those go on by way of one that is still known.
            sealed.drain(..SEALED_MAX / 2);
        }
        sealed.push(offset as u32);
        if !self.space.has_room() {
            return self.clear();
        }
        self.sites.push(Site { at: key.start(), undo: 0, exit: Exit::Dropped });
        let exit = self.memory.base() + self.space.cold.at as u64;
        let mut emitter = Emitter::new(exit);
        emitter.leave(self.sites.len() as u32 - 1, self.stubs.exit);
        self.memory.write(self.space.cold.take(emitter.bytes.len()), &emitter.bytes);
        self.overwrite(offset, exit);
    }

    /// Puts a jump to `to` at an offset of the cache.
    fn overwrite(&mut self, offset: usize, to: u64) {
        let mut jump = Emitter::new(self.memory.base() + offset as u64);
        jump.jmp_to(to);
        self.memory.write(offset, &jump.bytes);
    }

    /// After a translation was left by a site of its own, with so many steps since its loop was entered: decides whether
    /// the loop's accesses had better remember their pages, and has it translated anew if that has changed.
    fn judge_loop(&mut self, site: u32, steps: u64, steps_a_round: u16) {
        let place = self.first_sites.partition_point(|(first, _)| *first <= site);
        let Some((_, key)) = place.checked_sub(1).map(|place| self.first_sites[place]) else {
            return;
        };
        let rounds = steps / u64::from(steps_a_round.max(1));
        let verdict = match self.loops.get(&key) {
            None if rounds >= LONG_ROUNDS => Rounds::Long,
            Some(Rounds::Long) if rounds < ROUNDS_FOR_MISSES => Rounds::Scattered,
            _ => return,
        };
        if self.loops.len() >= LOOPS_MAX {
            self.loops.clear();
        }
        self.loops.insert(key, verdict);
        if let Some(block) = self.blocks.remove(&key) {
            self.seal(block.offset as usize, key);
        }
    }

    fn enter(&mut self, code: u64) {
        let context: *mut Context = &raw mut *self.context;
        // SAFETY: the stub has this signature, and `code` is a translation or a stub in the same cache.
        // What it touches: the context, the CPU's TLB and XMM registers and guest RAM, all of which the
        // caller of `run` has lent for as long as it runs.
        unsafe {
            let enter: extern "sysv64" fn(*mut Context, u64) =
                std::mem::transmute(self.stubs.enter);
            enter(context, code);
        }
    }
}

impl Engine for Translator {
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, budget: u64) -> Next {
        if *cpu.mxcsr_mut() & MXCSR_MASKS != MXCSR_MASKS {
            return Next::Block;
        }
        if self.mappings_so_far > MAPPINGS_MAX {
            self.clear();
            self.mappings.clear();
            self.mappings_so_far = 0;
        }
        if cpu.code_generation() != self.generation {
            self.clear();
            self.tlb_state = None;
            self.generation = cpu.code_generation();
        }
        let budget = budget.min(BUDGET_MAX);
        self.context.gpr = *cpu.gprs_mut();
        let rflags = cpu.rflags();
        self.context.flags = to_home(rflags);
        self.context.budget = budget;
        self.context.fs = cpu.data_base(Seg::FS);
        self.context.gs = cpu.data_base(Seg::GS);
        self.context.rflags = rflags & !Rflags::STATUS;
        self.context.tsc_aux = cpu.tsc_aux();
        self.context.note_rights(cpu);
        self.context.none_waits = u64::from(!env.bus.interrupt_pending());
        self.context.kernel_gs = cpu.kernel_gs_base();
        self.context.control = cpu.control_registers();
        for (number, selector) in self.context.selectors.iter_mut().enumerate() {
            *selector = cpu.selector(number).into();
        }
        self.context.whole_budget = budget;
        self.context.mxcsr = u64::from(*cpu.mxcsr_mut());
        self.context.x87.begin(cpu.x87_mut());
        let mut rip = cpu.rip();
        // The jump that led here and can be made to lead on without leaving, with the way out that a return has found.
        let mut patch: Option<(u32, Option<u32>)> = None;
        // The same for a jump between pages, with the key under which it was made.
        let mut crossing = None;
        let mut plain = false;
        // What the jump table has may be what was dropped.
        let mut is_dropped = false;
        let next = loop {
            // Looking for the next code may set Accessed, so its instruction has to be within the budget.
            if self.context.budget == 0 {
                break Next::Again;
            }
            let clears = self.clears;
            let found = if std::mem::take(&mut plain) {
                cpu.code_place(env.mem, rip).map(|place| {
                    let block = self.block(cpu, env.mem, place, true);
                    self.bring_branches(cpu, env.mem);
                    self.note_page(cpu, rip, place.ram.page());
                    (self.address(block), self.address(block))
                })
            } else if patch.is_none()
                && !std::mem::take(&mut is_dropped)
                && let Some(code) = self.known(cpu, env.mem, rip)
            {
                Some((code, code))
            } else {
                self.find(cpu, env.mem, rip)
            };
            let Some((code, near)) = found else { break Next::Block };
            if cpu.has_attention() {
                break Next::Again;
            }
            if let Some((at, out)) = patch.take()
                && clears == self.clears
            {
                self.link(at, near);
                if let Some(out) = out {
                    self.overwrite(out as usize, near);
                }
            }
            self.bring_branches(cpu, env.mem);
            let key = self.key_of(cpu, rip);
            if let Some((crossing, from)) = crossing.take()
                && clears == self.clears
            {
                self.link_crossing(crossing, from, key, code);
            }
            self.context.key = key;
            if self.tlb_state != Some(cpu.tlb_state()) {
                let rsp = self.context.gpr[4];
                let (page, host) = cpu.writable_page(rsp).unwrap_or(self.nowhere.page());
                self.context.pin_page = page;
                self.context.pin_delta = host.wrapping_sub(page);
                self.context.tlb = cpu.tlb_entries() as u64;
                let second = cpu.second_level();
                self.context.second = second.entries as u64;
                self.context.high_keys = second.high_keys;
                self.context.low_keys = second.low_keys;
                self.context.host_base = second.host_base;
                self.hints.bring(cpu);
                self.context.hints = self.hints.of_view(cpu.tlb_view());
                self.context.note_sides(cpu, &self.hints, self.nowhere.page());
                self.tlb_state = Some(cpu.tlb_state());
            }
            self.context.ways = self.context.side_mut(side_of(cpu)).ways;
            self.context.page = rip & !0xfff;
            self.context.xmm = cpu.xmm_mut().as_mut_ptr() as u64;
            self.context.ymm = cpu.ymm_upper_mut().as_mut_ptr() as u64;
            self.context.cpu = (&raw mut *cpu).cast();
            self.context.env = (&raw mut *env).cast();
            self.entries += 1;
            self.enter(code);
            self.context.bring(cpu);
            self.context.side_mut(side_of(cpu)).ways.last_call = self.context.ways.last_call;
            if self.tlb_state != Some(cpu.tlb_state()) {
                // The pin is another side's or view's.
                self.tlb_state = None;
            }
            let site = Site::of(self.context.site as u32, &self.sites);
            self.exits[site.exit.kind() as usize] += 1;
            self.context.budget += u64::from(site.undo);
            let page = self.context.page;
            rip = page.wrapping_add(u64::from(site.at));
            match site.exit {
                Exit::Interpret => break Next::Instruction,
                Exit::Budget { is_loop } => {
                    if is_loop {
                        let steps = self.context.entered.wrapping_sub(self.context.budget);
                        self.judge_loop(self.context.site as u32, steps, site.undo);
                    }
                    break Next::Block;
                }
                Exit::Misses { steps_a_round } => {
                    let steps = self.context.entered.wrapping_sub(self.context.budget);
                    self.judge_loop(self.context.site as u32, steps, steps_a_round);
                }
                Exit::Dropped => is_dropped = true,
                Exit::Link { target, patch: at, plain: to_plain } => {
                    rip = page + u64::from(target);
                    patch = Some((at, None));
                    plain = to_plain;
                }
                Exit::Return { target, patch: at, out } => {
                    rip = page + u64::from(target);
                    patch = Some((at, Some(out)));
                }
                Exit::Goto { target } => rip = page.wrapping_add_signed(target),
                Exit::Cross(jump) => {
                    let target = page.wrapping_add_signed(i64::from(jump.target));
                    if jump.is_branch && !is_canonical(target) {
                        self.context.budget += 1;
                        break Next::Instruction;
                    }
                    rip = target;
                    crossing = Some((jump, self.context.key));
                }
                Exit::Indirect { rsp } => {
                    if !is_canonical(self.context.target) {
                        self.context.budget += 1;
                        self.context.gpr[4] = self.context.gpr[4].wrapping_add_signed(rsp);
                        break Next::Instruction;
                    }
                    rip = self.context.target;
                }
            }
        };
        *cpu.gprs_mut() = self.context.gpr;
        *cpu.mxcsr_mut() = self.context.mxcsr as u32;
        self.context.x87.end(cpu.x87_mut());
        cpu.set_bases(self.context.fs, self.context.gs, self.context.kernel_gs);
        let steps = budget - self.context.budget;
        cpu.resume_at(rip, steps, from_home(self.context.flags));
        next
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        let mut stats = vec![
            ("translations", self.translations),
            ("translated_bytes", self.translated_bytes),
            ("cache_flushes", self.clears),
            ("slow_accesses", self.context.slow_calls),
            ("entries", self.entries),
            ("links", self.links),
        ];
        stats.extend(ExitKind::NAMES.into_iter().zip(self.exits));
        stats
    }

    fn drop_code(&mut self, _: &mut Cpu, _: &mut GuestMem, write: WatchedWrite) {
        for key in self.pages.remove(&write.offset.page()).unwrap_or_default().keys {
            if let Some(block) = self.blocks.remove(&key) {
                self.seal(block.offset as usize, key);
            }
        }
    }
}

/// The address space, and what the kernel's contexts are there, which says what the program's are.
fn kernels_contexts(cpu: &Cpu) -> (usize, [CodeContext; 2]) {
    (cpu.address_space(), [0, 1 << 63].map(|half| cpu.side_context(Side::Kernel, half)))
}

/// On which side of a system call the CPU is.
fn side_of(cpu: &Cpu) -> Side {
    if cpu.cpl() == 3 { Side::Program } else { Side::Kernel }
}

/// The number of what [`Branches`] knows of a side in an address space.
fn number_of(space: usize, side: Side) -> usize {
    Branches::number(space, side == Side::Program)
}

/// The same of the side on which the CPU is.
fn number_here(cpu: &Cpu) -> usize {
    number_of(cpu.address_space(), side_of(cpu))
}

/// A flags register as AH and AL hold it.
fn to_home(rflags: u64) -> u64 {
    (rflags & 0xff) << 8 | rflags >> 11 & 1
}

fn from_home(home: u64) -> u64 {
    home >> 8 & 0xff | (home & 1) << 11
}

/// The slow path has stored a vector register.
pub(crate) const SLOW_STORED: u64 = 1;

/// The slow path of an access: a linear address in, a host address out, or 0 if the interpreter has to
/// do the instruction. `access` is the size, with bit 16 set for a store; and from bit 24 on, one more than the number of
/// the vector register that is all that is stored, or 0.
extern "sysv64" fn slow_access(context: *mut Context, linear: u64, access: u64) -> u64 {
    // SAFETY: called by translated code only, which `Translator::run` entered with pointers to the CPU and
    // its environment that it has borrowed for as long as that code runs and does not use meanwhile. The
    // guest's MXCSR is still loaded; nothing below computes in floating point.
    let (context, cpu, env) = unsafe {
        let context = &mut *context;
        let cpu = &mut *context.cpu.cast::<Cpu>();
        let env = &mut *context.env.cast::<Env<'_>>();
        (context, cpu, env)
    };
    context.slow_calls += 1;
    context.bring(cpu);
    let (len, write) = (access & 0xffff, access >> 16 & 1 != 0);
    let register = (access >> 24).checked_sub(1).map(|number| number as usize);
    let here = PAGE_BYTES as u64 - (linear & 0xfff);
    let found = if len <= here {
        cpu.host_address(env, linear, len, write)
    } else if write {
        register.and_then(|number| store_across(cpu, env, linear, len, number))
    } else {
        load_across(&mut context.across, cpu, env, linear, len)
    };
    found.unwrap_or(0)
}

/// The host addresses of an access that lies on two pages, with how much of it is on the first.
fn two_places(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    linear: u64,
    len: u64,
    write: bool,
) -> Option<(usize, [u64; 2])> {
    let here = PAGE_BYTES as u64 - (linear & 0xfff);
    let next = linear.checked_add(here)?;
    let first = cpu.host_address(env, linear, here, write)?;
    // The first one still holds: nothing was taken from the TLB if there is a second one.
    let second = cpu.host_address(env, next, len - here, write)?;
    Some((here as usize, [first, second]))
}

fn load_across(
    loaded: &mut [u8; 64],
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    linear: u64,
    len: u64,
) -> Option<u64> {
    let (here, places) = two_places(cpu, env, linear, len, false)?;
    let (first, second) = loaded[..len as usize].split_at_mut(here);
    for (part, place) in [first, second].into_iter().zip(places) {
        // SAFETY: `host_address` says that so many bytes of guest RAM are there.
        unsafe { (place as *const u8).copy_to_nonoverlapping(part.as_mut_ptr(), part.len()) };
    }
    Some(loaded.as_ptr() as u64)
}

/// Stores a vector register, whose value the way here has put into the CPU.
fn store_across(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    linear: u64,
    len: u64,
    register: usize,
) -> Option<u64> {
    let (here, places) = two_places(cpu, env, linear, len, true)?;
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&cpu.xmm_mut()[register].to_le_bytes());
    bytes[16..].copy_from_slice(&cpu.ymm_upper_mut()[register].to_le_bytes());
    let (first, second) = bytes[..len as usize].split_at(here);
    for (part, place) in [first, second].into_iter().zip(places) {
        // SAFETY: as in `load_across`, and it may be stored to.
        unsafe { (place as *mut u8).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
    }
    Some(SLOW_STORED)
}

/// The time stamp counter, with so many steps left of the budget.
extern "sysv64" fn time_stamp(context: *mut Context, left: u64, _: u64) -> u64 {
    // SAFETY: as in `slow_access`.
    let (context, cpu, env) = unsafe {
        let context = &*context;
        let cpu = &mut *context.cpu.cast::<Cpu>();
        let env = &mut *context.env.cast::<Env<'_>>();
        (context, cpu, env)
    };
    cpu.time_after(env, context.whole_budget - left)
}

/// Makes an image of the guest's x87 that the host can load.
extern "sysv64" fn fill_x87(context: *mut Context, _: u64, _: u64) -> u64 {
    // SAFETY: as in `slow_access`.
    let (context, cpu) = unsafe {
        let context = &mut *context;
        let cpu = &mut *context.cpu.cast::<Cpu>();
        (context, cpu)
    };
    context.x87.fill(cpu.x87_mut());
    0
}
