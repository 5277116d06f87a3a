//! From a trace to host code.
//!
//! Arithmetic flags: at every border between translations, and in every exit, they are in their home, AH
//! and AL. In between they are wherever that costs least: in the host's RFLAGS as long as nothing else
//! writes those, and otherwise as a [`Recipe`] that computes them again from registers, which costs nothing
//! unless somebody looks. Only where neither serves are they saved at once.

use x86::iced::{
    Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpKind, Register, RflagsBits,
};

use crate::emit::{Alu, Emitter, Hole, RegMem, cc, reg};
use crate::fold;
use crate::frame::{BUDGET, Home, S, Stubs, T, home, slot, slow_word};
use crate::hints::Given;
use crate::jumps::Elsewhere;
use crate::memory::{HintMiss, Miss, Stored, tlb_tag};
use crate::plan::{Check, Checks, Group};
use crate::returns::Astray;
use crate::rounds::Rounds;
use crate::scan::{Access, End, Insn, Kind, Trace, is_high_byte, operand_bytes, page_place};
use crate::sides::may;
use crate::x87;

/// What a translation does when it leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Place on the page of the instruction that comes next, or of the branch that was done.
    pub(crate) at: u16,
    /// Steps that were charged and not done.
    pub(crate) undo: u16,
    pub(crate) exit: Exit,
}

impl Site {
    /// In the number of a site: it says all by itself, as those do of which there are most.
    const IS_SITE: u32 = 1 << 31;
    const OF_BUDGET: u32 = 1 << 30;
    const UNDO_SHIFT: u32 = 16;

    /// The number of a site, which is noted if that takes it.
    fn number(self, sites: &mut Vec<Site>) -> u32 {
        let kind = match self.exit {
            Exit::Interpret => 0,
            Exit::Budget { is_loop: false } => Site::OF_BUDGET,
            _ => {
                sites.push(self);
                return sites.len() as u32 - 1;
            }
        };
        let undo = u32::from(self.undo) << Site::UNDO_SHIFT;
        assert!(undo < Site::OF_BUDGET, "traces are shorter than that");
        Site::IS_SITE | kind | undo | u32::from(self.at)
    }

    /// The site with a number.
    pub(crate) fn of(number: u32, sites: &[Site]) -> Site {
        if number & Site::IS_SITE == 0 {
            return sites[number as usize];
        }
        let exit = match number & Site::OF_BUDGET {
            0 => Exit::Interpret,
            _ => Exit::Budget { is_loop: false },
        };
        let undo = (number & !Site::IS_SITE & !Site::OF_BUDGET) >> Site::UNDO_SHIFT;
        Site { at: number as u16, undo: undo as u16, exit }
    }
}

/// Why a translation left.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Exit {
    /// The interpreter has to do the next instruction.
    Interpret,
    /// The budget does not cover the translation, which may be a loop's next round.
    Budget { is_loop: bool },
    /// Goes on at a place on the same page; the jump whose distance is at this offset in the cache can be
    /// made to lead there, to a plain translation if it says so.
    Link { target: u16, patch: u32, plain: bool },
    /// A return leads here that is not linked: as [`Exit::Link`], but the address at `patch` is noted by calls, and some
    /// may have noted that of the way out, which is at `out` in the cache.
    Return { target: u16, patch: u32, out: u32 },
    /// Goes on at this distance from the page.
    Goto { target: i64 },
    /// Goes on at this distance from the page, which is on another one.
    Cross(Crossing),
    /// A branch to the address in the frame was done; to undo it, add this to RSP.
    Indirect { rsp: i64 },
    /// Most accesses of a loop are on other pages than the ones before: its cells are of no use.
    Misses { steps_a_round: u16 },
    /// The translation has been dropped, and nothing has taken its place.
    Dropped,
}

/// Why translated code was left, for counts.
#[derive(Clone, Copy)]
pub(crate) enum ExitKind {
    Interpret,
    Budget,
    Link,
    Goto,
    Cross,
    Indirect,
    Misses,
    Dropped,
}

impl ExitKind {
    pub(crate) const NAMES: [&str; 8] = [
        "exits_to_interpret_one",
        "exits_without_budget",
        "exits_to_link",
        "exits_to_another_place",
        "exits_to_another_page",
        "exits_by_indirect_branches",
        "exits_of_loops_that_miss",
        "exits_of_dropped_code",
    ];
}

impl Exit {
    pub(crate) fn kind(&self) -> ExitKind {
        match self {
            Exit::Interpret => ExitKind::Interpret,
            Exit::Budget { .. } => ExitKind::Budget,
            Exit::Link { .. } | Exit::Return { .. } => ExitKind::Link,
            Exit::Goto { .. } => ExitKind::Goto,
            Exit::Cross(_) => ExitKind::Cross,
            Exit::Indirect { .. } => ExitKind::Indirect,
            Exit::Misses { .. } => ExitKind::Misses,
            Exit::Dropped => ExitKind::Dropped,
        }
    }
}

/// A jump to another page, which the translator can make lead there for one [`slot::KEY`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossing {
    /// Distance from the page.
    pub(crate) target: i32,
    /// It is a branch that was done.
    pub(crate) is_branch: bool,
    /// Where in the cache are: the key that is compared, the distance of the jump, and the distance of the jump that
    /// is taken under other keys.
    pub(crate) key_at: u32,
    pub(crate) jump_at: u32,
    pub(crate) other_at: u32,
}

impl Crossing {
    /// Pages that it goes up.
    pub(crate) fn pages(self) -> i32 {
        self.target >> 12
    }
}

/// How to compute the flags again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    op: RecipeOp,
    bytes: u8,
    a: u8,
    b: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecipeOp {
    Cmp,
    Test,
    /// `a` is the sum with `b`.
    Add,
    /// `a` is the difference to `b`.
    Sub,
    Neg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Gpr(u8),
    Imm(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlagState {
    Home,
    Recipe(Recipe),
    /// In the host's RFLAGS alone, where nothing overwrites them as long as somebody may look. AF is to be cleared if so.
    Native {
        with_af: bool,
    },
    /// Nobody will look.
    Dead,
}

/// The registers that hold what has no other place, in the order in which they are taken.
const SCRATCHES: [u8; 2] = [T, S];

/// A scratch register whose low byte is the high byte of a guest register.
pub(crate) struct HighByte {
    home: u8,
    scratch: u8,
}

/// Code that is rarely run, emitted behind the rest.
pub(crate) enum Cold {
    /// An access that the TLB did not serve. It goes on with the host address, or the distance there from a register and an
    /// offset.
    Slow {
        hole: Hole,
        back: u64,
        access: Access,
        from: Option<(u8, i32)>,
        flags: FlagState,
        site: u32,
        stored: Option<Stored>,
    },
    /// The same, but without a walk: only what the TLB's second level has is brought back.
    Known { hole: Hole, back: u64, access: Access, flags: FlagState, site: u32 },
    /// An access that its cell did not serve.
    Miss(Miss),
    /// A hint does not serve.
    Hint(HintMiss),
    /// Leaves.
    Leave { holes: Vec<Hole>, flags: FlagState, site: u32 },
    /// The range of a group is not what it was hoped to be: goes on with this instruction in the plain
    /// translation.
    Plain { hole: Hole, flags: FlagState, index: usize },
    /// The same for the pin, which may have to be moved first.
    Repin { hole: Hole, back: u64, span: i32, flags: FlagState, index: usize },
    /// The guest's x87 is not in the host's yet.
    HoldX87 { hole: Hole, back: u64, flags: FlagState, site: u32 },
    /// The upper halves of the guest's YMM registers are not in the host's yet.
    HoldYmm { hole: Hole, back: u64 },
    /// The jump table does not know where to go on.
    Elsewhere { elsewhere: Elsewhere, site: u32 },
    /// A jump that has not been made to lead anywhere yet.
    Unlinked { hole: Hole, site: u32 },
    /// The same for where a call returns to, at this place on the page.
    UnlinkedReturn { hole: Hole, at: u16, target: u16 },
    /// A jump to another page, to this distance from the running code's, under a key for which it was not made to lead there.
    OtherKey { hole: Hole, site: u32, crossing: Crossing },
    /// A return that does not lead to where the last call came from.
    Astray(Astray),
}

/// What a conditional branch does that was taken, which is not that rare.
pub(crate) struct Taken {
    hole: Hole,
    flags: FlagState,
    /// Steps that were charged and not done.
    undo: u16,
    target: u64,
    /// The branch's place on the page.
    at: u16,
}

/// What kind of translation one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Usual,
    /// Every access is checked by itself.
    Plain,
    /// A loop whose accesses remember the pages of the round before.
    Loop,
}

/// Where a translation starts.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// On its page.
    pub(crate) start: u16,
    /// In the host's memory.
    pub(crate) base: u64,
    /// Likewise what is rarely run.
    pub(crate) cold: u64,
    /// Likewise the start of the cache.
    pub(crate) cache: u64,
}

/// The code of one translation, which goes to two places.
pub(crate) struct Translation {
    bytes: Vec<u8>,
    split: usize,
}

impl Translation {
    /// What goes to [`Place::base`], and what goes to [`Place::cold`].
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.split)
    }
}

/// Says where the usual translation of a place on the page is, if there is one.
pub(crate) type Known<'a> = &'a dyn Fn(u16) -> Option<u64>;

/// What translations share.
pub(crate) struct Shared<'a> {
    pub(crate) stubs: Stubs,
    pub(crate) sites: &'a mut Vec<Site>,
    pub(crate) given: &'a mut Given,
    pub(crate) known: Known<'a>,
}

/// Emits one translation.
pub(crate) struct Gen<'a> {
    pub(crate) e: Emitter,
    encoder: Encoder,
    pub(crate) stubs: Stubs,
    sites: &'a mut Vec<Site>,
    pub(crate) given: &'a mut Given,
    pub(crate) known: Known<'a>,
    pub(crate) trace: &'a Trace,
    pub(crate) place: Place,
    /// Steps of the whole trace.
    pub(crate) steps: u16,
    pub(crate) cold: Vec<Cold>,
    pub(crate) taken: Vec<Taken>,
    pub(crate) flags: FlagState,
    /// The host's RFLAGS hold the guest's flags.
    pub(crate) native: bool,
    pub(crate) flavour: Flavour,
    /// Where the next round of a loop begins, which is the start unless something is to be done before the first one.
    pub(crate) again: u64,
    /// Cells of a loop that are in use, and those that are set up.
    pub(crate) cells: usize,
    pub(crate) cells_ready: usize,
    /// How each instruction's accesses are checked.
    pub(crate) checks: &'a [Checks],
    /// S holds what this group remembers.
    pub(crate) held: Option<Group>,
    pub(crate) x87: x87::Known,
    /// By guest register: the upper half is known to be 0.
    pub(crate) upper_zero: u16,
}

impl<'a> Gen<'a> {
    pub(crate) fn new(
        trace: &'a Trace,
        checks: &'a [Checks],
        flavour: Flavour,
        place: Place,
        shared: Shared<'a>,
    ) -> Gen<'a> {
        let Shared { stubs, sites, given, known } = shared;
        Gen {
            e: Emitter::new(place.base),
            encoder: Encoder::new(64),
            stubs,
            sites,
            given,
            known,
            trace,
            place,
            steps: trace.insns.len() as u16,
            cold: Vec::with_capacity(trace.insns.len()),
            taken: Vec::new(),
            flags: FlagState::Home,
            native: false,
            flavour,
            again: place.base,
            cells: 0,
            cells_ready: 0,
            checks,
            held: None,
            x87: x87::Known::default(),
            upper_zero: 0,
        }
    }

    /// Emits the whole translation.
    pub(crate) fn run(mut self) -> Translation {
        if self.trace.insns.iter().any(|insn| insn.kind == Kind::Vector) {
            self.hold_ymm();
            self.again = self.e.here();
        }
        if self.trace.is_loop && self.flavour != Flavour::Plain {
            let is_long = self.flavour == Flavour::Loop;
            let rounds = is_long.then(|| Rounds::of(self.trace, self.place.start)).flatten();
            self.enter_loop(rounds.is_none());
            self.again = self.e.here();
            if let Some(rounds) = rounds {
                self.rounds(&rounds);
            }
        }
        if self.steps > 0 {
            self.e.alu_imm(Alu::Sub, BUDGET, i32::from(self.steps));
            let hole = self.e.jcc(cc::S);
            let is_loop = self.trace.is_loop && self.flavour == Flavour::Usual;
            let site = self.site(self.place.start, self.steps, Exit::Budget { is_loop });
            self.cold.push(Cold::Leave { holes: vec![hole], flags: FlagState::Home, site });
        }
        for (index, insn) in self.trace.insns.iter().enumerate() {
            self.insn(index);
            self.upper_zero = fold::upper_zero_after(insn, self.upper_zero);
        }
        match self.trace.end {
            End::Branch => {}
            End::At(at) => {
                self.settle_flags();
                self.go_on_at(u64::from(at), at, false);
            }
            End::Straddles(at) => {
                // What the next page holds depends on where this one is mapped, and only such jumps know that.
                self.settle_flags();
                self.page_address(T, u64::from(at));
                self.far(at, Exit::Goto { target: i64::from(at) });
            }
            End::Unknown(at) => {
                self.settle_flags();
                let site = self.site(at, 0, Exit::Interpret);
                self.leave(site);
            }
        }
        for taken in std::mem::take(&mut self.taken) {
            self.taken(taken);
        }
        let split = self.e.go_elsewhere(self.place.cold);
        // What is rarely run may have ways out of its own.
        while !self.cold.is_empty() {
            for cold in std::mem::take(&mut self.cold) {
                self.cold(cold);
            }
        }
        Translation { bytes: self.e.bytes, split }
    }

    pub(crate) fn site(&mut self, at: u16, undo: u16, exit: Exit) -> u32 {
        Site { at, undo, exit }.number(self.sites)
    }

    /// The site by which the interpreter gets instruction `index`.
    pub(crate) fn site_before(&mut self, index: usize) -> u32 {
        self.site(self.trace.insns[index].at, self.undo(index), Exit::Interpret)
    }

    /// Steps that were charged and are not done before instruction `index`.
    pub(crate) fn undo(&self, index: usize) -> u16 {
        self.steps - index as u16
    }

    fn leave(&mut self, site: u32) {
        self.e.leave(site, self.stubs.exit);
    }

    /// Leaves before instruction `index`, unless the branch that `hole` belongs to is not taken.
    pub(crate) fn leave_before(&mut self, index: usize, holes: Vec<Hole>) {
        let site = self.site_before(index);
        self.cold.push(Cold::Leave { holes, flags: self.flags, site });
    }

    /// Leaves before instruction `index` unless an address is canonical. Clobbers `scratch`.
    pub(crate) fn leave_unless_canonical(&mut self, index: usize, address: u8, scratch: u8) {
        self.e.mov(scratch, address);
        self.e.shift(7, scratch, 47);
        self.e.alu_imm(Alu::Add, scratch, 1);
        self.e.alu_imm(Alu::Cmp, scratch, 1);
        let hole = self.e.jcc(cc::A);
        self.leave_before(index, vec![hole]);
    }

    fn cold(&mut self, cold: Cold) {
        match cold {
            Cold::Slow { hole, back, access, from, flags, site, stored } => {
                self.e.fill(hole);
                match self.stubs.slow_after(access) {
                    Some(stub) if stored.is_none() => self.e.call_to(stub),
                    _ => {
                        self.e.alu_mem(Alu::Add, S, T, tlb_tag(access));
                        self.call_slow(access, stored);
                    }
                }
                self.go_back(from, back, flags, site);
            }
            Cold::Known { hole, back, access, flags, site } => {
                self.e.fill(hole);
                self.e.alu_mem(Alu::Add, S, T, tlb_tag(access));
                self.e.mov_imm32(T, slow_word(access));
                self.e.call_to(self.stubs.known);
                self.go_back(None, back, flags, site);
            }
            Cold::Hint(miss) => self.hint_miss(miss),
            Cold::Miss(miss) => self.miss(miss),
            Cold::Plain { hole, flags, index } => {
                self.e.fill(hole);
                self.go_plain(flags, index);
            }
            Cold::Repin { hole, back, span, flags, index } => {
                self.e.fill(hole);
                self.repin(back, span);
                self.go_plain(flags, index);
            }
            Cold::HoldX87 { hole, back, flags, site } => {
                self.e.fill(hole);
                self.e.call_to(self.stubs.hold_x87);
                self.e.test(S, S);
                self.go_back(None, back, flags, site);
            }
            Cold::HoldYmm { hole, back } => {
                self.e.fill(hole);
                self.e.call_to(self.stubs.hold_ymm);
                self.e.jmp_to(back);
            }
            Cold::Leave { holes, flags, site } => {
                holes.into_iter().for_each(|hole| self.e.fill(hole));
                self.leave_with(flags, site);
            }
            Cold::Elsewhere { elsewhere, site } => {
                elsewhere.fill(&mut self.e);
                self.e.go_on_in(self.stubs.far_by_other, site);
            }
            Cold::Unlinked { hole, site } => {
                self.e.fill(hole);
                self.leave(site);
            }
            Cold::UnlinkedReturn { hole, at, target } => {
                self.e.fill(hole);
                let patch = self.in_cache(self.e.address_of(hole));
                let out = self.in_cache(self.e.here());
                let site = self.site(at, 0, Exit::Return { target, patch, out });
                self.leave(site);
            }
            Cold::OtherKey { hole, site, crossing } => {
                self.e.fill(hole);
                self.page_address(T, crossing.target as u64);
                self.cross_by_table(site, crossing);
            }
            Cold::Astray(astray) => self.find_way(astray),
        }
    }

    fn taken(&mut self, taken: Taken) {
        let Taken { hole, flags, undo, target, at } = taken;
        self.e.fill(hole);
        self.save_at_branch(flags);
        if undo > 0 {
            self.e.alu_imm(Alu::Add, BUDGET, i32::from(undo));
        }
        self.branch_to(target, at);
    }

    /// After a call that gave 0 in S, leaves; otherwise goes back with what it gave, or with the distance there from a
    /// register and an offset.
    pub(crate) fn go_back(
        &mut self,
        from: Option<(u8, i32)>,
        back: u64,
        flags: FlagState,
        site: u32,
    ) {
        if from.is_some() {
            let refused = self.e.jcc(cc::E);
            self.see_from(from);
            self.e.jmp_to(back);
            self.e.fill(refused);
        } else {
            let done = self.e.jcc(cc::NE);
            self.e.fill_to(done, back);
        }
        self.leave_with(flags, site);
    }

    /// Has the flags at home where a conditional branch was taken.
    pub(crate) fn save_at_branch(&mut self, flags: FlagState) {
        // Between the instruction that made them and here nothing wrote the host's flags.
        match flags {
            FlagState::Recipe(_) => self.e.save_flags(),
            FlagState::Native { with_af } => self.save_native(with_af),
            FlagState::Home | FlagState::Dead => {}
        }
    }

    pub(crate) fn leave_with(&mut self, flags: FlagState, site: u32) {
        self.bring_home(flags);
        self.leave(site);
    }

    /// Goes on at a distance from the page, after the branch at `at`. The flags are at home.
    fn branch_to(&mut self, target: u64, at: u16) {
        self.go_on_at(target, at, true);
    }

    /// Goes on at a distance from the page, after the instruction at `at` if that is a branch.
    pub(crate) fn go_on_at(&mut self, target: u64, at: u16, is_branch: bool) {
        match page_place(target) {
            Some(place) if place == self.place.start && self.flavour != Flavour::Plain => {
                self.e.jmp_to(self.again);
            }
            Some(place) => self.link(at, place, false),
            None => self.cross(target, at, is_branch),
        }
    }

    /// Goes on at a distance from the page, on another one. Until the translator links it, it leaves; then it leads there
    /// as long as page and mapping are the same, and under others looks into the jump table.
    fn cross(&mut self, target: u64, at: u16, is_branch: bool) {
        self.e.mov_imm64(T, 0);
        let key_at = self.in_cache(self.e.here()) - 8;
        self.e.alu_mem(Alu::Cmp, T, reg::RSP, slot::KEY);
        self.native = false;
        let hole = self.e.jcc(cc::NE);
        let distance = i32::try_from(target as i64).expect("checked when the trace was read");
        self.e.add_imm_mem(reg::RSP, slot::KEY, distance >> 12);
        self.e.add_imm_mem(reg::RSP, slot::PAGE, distance & !0xfff);
        let jump = self.e.jmp();
        self.e.fill(jump);
        let jump_at = self.in_cache(self.e.address_of(jump));
        // The last jump is not known before it is emitted.
        let crossing = Crossing { target: distance, is_branch, key_at, jump_at, other_at: 0 };
        let site = self.site(at, 0, Exit::Cross(crossing));
        self.cold.push(Cold::OtherKey { hole, site, crossing });
    }

    /// Goes on at the linear address in T, on another page, under another key: leaves until it is linked, and looks into the
    /// jump table from then on.
    fn cross_by_table(&mut self, site: u32, crossing: Crossing) {
        self.e.store_imm64(reg::RSP, slot::SITE, site as i32);
        let other = self.e.jmp();
        self.e.fill_to(other, self.stubs.leave_far);
        let other_at = self.in_cache(self.e.address_of(other));
        self.sites[site as usize].exit = Exit::Cross(Crossing { other_at, ..crossing });
        self.far_by(site);
    }

    /// An address in the cache as an offset there.
    fn in_cache(&self, address: u64) -> u32 {
        (address - self.place.cache) as u32
    }

    /// Goes on at another place on the page, by a jump that is made to lead there the first time if it cannot now.
    pub(crate) fn link(&mut self, at: u16, target: u16, plain: bool) {
        let hole = self.e.jmp();
        if !plain && let Some(known) = (self.known)(target) {
            return self.e.fill_to(hole, known);
        }
        let patch = self.in_cache(self.e.address_of(hole));
        let site = self.site(at, 0, Exit::Link { target, patch, plain });
        self.cold.push(Cold::Unlinked { hole, site });
    }

    /// Goes on at the linear address in T, after the branch at `at`. Each has a jump of its own: the host predicts by
    /// where that is.
    fn far(&mut self, at: u16, exit: Exit) {
        let site = self.site(at, 0, exit);
        self.far_by(site);
    }

    /// The same with the site to leave by.
    pub(crate) fn far_by(&mut self, site: u32) {
        let elsewhere = self.e.jump_by_table();
        self.cold.push(Cold::Elsewhere { elsewhere, site });
    }

    /// `dst` = the address at a distance from the running code's page.
    pub(crate) fn page_address(&mut self, dst: u8, distance: u64) {
        self.e.load(dst, reg::RSP, slot::PAGE);
        let distance = i32::try_from(distance as i64).expect("checked when the trace was read");
        self.e.lea(dst, dst, distance);
    }

    // ---- flags

    /// Has the flags of `wanted` in the host's RFLAGS. Uses T.
    pub(crate) fn want_flags(&mut self, wanted: u32) {
        if self.native || wanted == 0 {
            return;
        }
        match self.flags {
            FlagState::Home if wanted == RflagsBits::CF => self.e.carry_from_home(),
            FlagState::Home => {
                self.e.restore_flags();
                self.native = true;
            }
            FlagState::Recipe(recipe) => {
                self.recompute(recipe);
                self.native = true;
            }
            FlagState::Native { .. } => unreachable!("they are there"),
            FlagState::Dead => {}
        }
    }

    fn save_native(&mut self, with_af: bool) {
        self.e.save_flags();
        if with_af {
            self.e.clear_saved_af();
        }
    }

    /// Has the flags in their home. Uses T.
    pub(crate) fn settle_flags(&mut self) {
        match self.flags {
            FlagState::Recipe(recipe) => {
                if !self.native {
                    self.recompute(recipe);
                }
                self.e.save_flags();
            }
            FlagState::Native { with_af } => {
                assert!(self.native, "they are nowhere else");
                self.save_native(with_af);
                self.native = !with_af;
            }
            FlagState::Home | FlagState::Dead => return,
        }
        self.flags = FlagState::Home;
    }

    /// Whether the flags of instruction `index` stay in the host's RFLAGS until others take their place
    /// or are put at home by a branch.
    fn lasts(&self, index: usize, with_af: bool) -> bool {
        let mut pending = self.trace.insns[index].live;
        let is_high = |insn: &Insn| {
            let operands = 0..insn.ins.op_count();
            let mut registers = operands.filter(|at| insn.ins.op_kind(*at) == OpKind::Register);
            registers.any(|at| is_high_byte(insn.ins.op_register(at)))
        };
        if is_high(&self.trace.insns[index]) {
            return false;
        }
        for (later, checks) in self.trace.insns.iter().zip(self.checks).skip(index + 1) {
            match later.kind {
                Kind::Nop | Kind::Lea | Kind::Jmp => {}
                Kind::Jcc => pending |= later.live,
                Kind::Copy | Kind::Vector => {
                    let is_quiet = later.access.is_none()
                        || matches!(checks.operand, Check::Follower { group: Group::Slot(_), .. })
                            && !later.exits;
                    if !is_quiet || is_high(later) {
                        return false;
                    }
                    if later.writes != 0 {
                        // What it leaves alone is saved together with its own.
                        let kept = pending & !later.writes;
                        let is_kept = later.live & later.writes != 0
                            && !(with_af && kept & RflagsBits::AF != 0);
                        return kept == 0 || is_kept;
                    }
                }
                Kind::Ret | Kind::JmpIndirect | Kind::Call => return true,
                _ => return false,
            }
        }
        false
    }

    /// After instruction `index` has written flags, which the host's RFLAGS hold; `with_af` if it
    /// leaves AF set that is 0 by our definition.
    pub(crate) fn note_flags(&mut self, index: usize, with_af: bool) {
        let insn = &self.trace.insns[index];
        let kept = insn.live & !insn.writes;
        if insn.live == 0 {
            self.flags = FlagState::Dead;
            self.native = false;
        } else if insn.live & insn.writes == 0 {
            self.native = false;
        } else if let Some(recipe) = (kept == 0).then(|| self.recipe(index)).flatten() {
            self.flags = FlagState::Recipe(recipe);
            self.native = true;
        } else if matches!(insn.kind, Kind::Copy | Kind::Vector) && self.lasts(index, with_af) {
            self.flags = FlagState::Native { with_af };
            self.native = true;
        } else {
            self.save_native(with_af);
            self.native = !with_af;
            self.flags = FlagState::Home;
        }
    }

    pub(crate) fn recompute(&mut self, recipe: Recipe) {
        let Recipe { op, bytes, a, b } = recipe;
        let bytes = u32::from(bytes);
        let in_place = matches!(op, RecipeOp::Cmp | RecipeOp::Test);
        let a = match home(a) {
            Home::Reg(r) if in_place => r,
            Home::Reg(r) => {
                self.e.mov(T, r);
                T
            }
            Home::Slot(from) => {
                self.e.load(T, reg::RSP, from);
                T
            }
        };
        match op {
            RecipeOp::Cmp => self.arith(Alu::Cmp, bytes, a, b),
            RecipeOp::Test => match b {
                Source::Gpr(b) => self.e.test_sized(bytes, a, at_home(b)),
                Source::Imm(value) => self.e.test_imm_sized(bytes, a, value),
            },
            RecipeOp::Add => {
                self.arith(Alu::Sub, bytes, a, b);
                self.arith(Alu::Add, bytes, a, b);
            }
            RecipeOp::Sub => {
                self.arith(Alu::Add, bytes, a, b);
                self.arith(Alu::Sub, bytes, a, b);
            }
            RecipeOp::Neg => {
                self.e.neg_sized(bytes, a);
                self.e.neg_sized(bytes, a);
            }
        }
    }

    fn arith(&mut self, op: Alu, bytes: u32, a: u8, b: Source) {
        match b {
            Source::Gpr(b) => self.e.alu_sized(op, bytes, a, at_home(b)),
            Source::Imm(value) => self.e.alu_imm_sized(op, bytes, a, value),
        }
    }

    /// The recipe for the flags of instruction `index`, if there is one that holds as long as it may be
    /// needed.
    pub(crate) fn recipe(&self, index: usize) -> Option<Recipe> {
        let insn = &self.trace.insns[index];
        let recipe = recipe_of(&insn.ins)?;
        let mut sources = 1u16 << recipe.a;
        if let Source::Gpr(b) = recipe.b {
            sources |= 1 << b;
        }
        let mut pending = insn.live;
        let mut is_spoiled = false;
        for later in &self.trace.insns[index + 1..] {
            let is_wanted = later.exits || later.reads & pending != 0;
            let settles = if later.kind == Kind::ShiftByCl {
                later.live != 0
            } else {
                pending & !later.writes != 0 && later.live & later.writes != 0
            };
            if is_spoiled && (is_wanted || settles) {
                return None;
            }
            pending &= !later.writes;
            // From an instruction on that writes only some flags, all are at home.
            if pending == 0 || settles {
                return Some(recipe);
            }
            is_spoiled |= later.sets & sources != 0;
        }
        (!is_spoiled).then_some(recipe)
    }

    /// The host register that holds a guest register; if it has none, its value in `scratch`.
    pub(crate) fn in_register(&mut self, number: u8, scratch: u8) -> u8 {
        match home(number) {
            Home::Reg(r) => r,
            Home::Slot(from) => {
                self.e.load(scratch, reg::RSP, from);
                scratch
            }
        }
    }

    // ---- instructions

    pub(crate) fn insn(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        let ins = insn.ins;
        match insn.kind {
            Kind::Nop => {}
            Kind::Jmp => {
                // A jump within the page was followed by the trace.
                if self.trace.end == End::Branch && index + 1 == self.trace.insns.len() {
                    self.settle_flags();
                    self.branch_to(ins.near_branch64(), insn.at);
                }
            }
            Kind::Copy | Kind::Vector => self.copy(index),
            Kind::ShiftByCl => self.shift_by_cl(index),
            Kind::ImulTo => self.imul_to(index),
            Kind::MulWide { signed } => self.mul_wide(index, signed),
            Kind::DivWide { signed } => self.div_wide(index, signed),
            Kind::BitScan => self.bit_scan(index),
            Kind::Extend => self.extend(ins.mnemonic()),
            Kind::CmpXchg => self.cmpxchg(index),
            Kind::CompareStrings => self.compare_strings(index),
            Kind::Exchange => self.exchange(index),
            Kind::Push => self.push(index),
            Kind::PushFlags => self.push_flags(index),
            Kind::Cli => self.cli(index),
            Kind::Sti => self.sti(index),
            Kind::SwapGs => self.swapgs(index),
            Kind::SetAc(sets) => self.set_ac(index, sets),
            Kind::Syscall => self.syscall(index),
            Kind::Sysret => self.sysret(index),
            Kind::ReadBase(base) => self.read_base(index, base),
            Kind::WriteBase(base) => self.write_base(index, base),
            Kind::ReadControl(place) => self.read_control(index, place),
            Kind::Invlpg => self.leave_unless(index, slot::MAY + may::CPL0),
            Kind::Cld => self.cld(),
            Kind::LoadMxcsr => self.load_mxcsr(index),
            Kind::TimeStamp => self.time_stamp(index, ins.mnemonic() == Mnemonic::Rdtscp),
            Kind::Repeat => self.repeat(index),
            Kind::Selector => self.selector(&ins),
            Kind::BitString => self.bit_string(index),
            Kind::CmpXchgWide => self.cmpxchg_wide(index),
            Kind::Pop => {
                let top = self.stack(index, 4, 0, false);
                self.e.load_sized(8, T, top);
                self.e.lea(reg::R9, reg::R9, 8);
                self.set_gpr(ins.op0_register().number() as u8, T);
            }
            Kind::Leave => {
                let top = self.stack(index, 5, 0, false);
                self.e.load_sized(8, T, top);
                self.e.lea(reg::R9, reg::RBP, 8);
                self.e.mov(reg::RBP, T);
            }
            Kind::Lea => self.lea(&ins),
            Kind::X87(role) => self.x87(index, role),
            Kind::Bmi(role) => self.bmi(index, role),
            Kind::Carry => {
                if insn.live != 0 {
                    self.settle_flags();
                    match ins.mnemonic() {
                        Mnemonic::Clc => self.e.raw(&[0x80, 0xe4, 0xfe]),
                        Mnemonic::Stc => self.e.raw(&[0x80, 0xcc, 0x01]),
                        _ => self.e.raw(&[0x80, 0xf4, 0x01]),
                    }
                    self.flags = FlagState::Home;
                }
                self.native = false;
            }
            Kind::Jcc => {
                self.want_flags(insn.reads);
                let hole = self.e.jcc(condition(&ins));
                let undo = self.undo(index) - 1;
                if !self.native {
                    debug_assert_eq!(self.flags, FlagState::Home);
                }
                let (flags, target) = (self.flags, ins.near_branch64());
                self.taken.push(Taken { hole, flags, undo, target, at: insn.at });
            }
            Kind::JmpIndirect => {
                self.settle_flags();
                self.branch_target(index);
                self.far(insn.at, Exit::Indirect { rsp: 0 });
            }
            Kind::Call => {
                self.settle_flags();
                self.push_return(index);
                self.branch_to(ins.near_branch64(), insn.at);
            }
            Kind::CallIndirect => {
                self.settle_flags();
                self.call_indirect(index);
            }
            Kind::Ret => {
                self.settle_flags();
                let top = self.stack(index, 4, 0, false);
                self.e.load_sized(8, T, top);
                let extra = if ins.op_count() > 0 { i32::from(ins.immediate16()) } else { 0 };
                self.e.lea(reg::R9, reg::R9, 8 + extra);
                self.return_to(insn.at, Exit::Indirect { rsp: -i64::from(8 + extra) });
            }
        }
    }

    /// The host's instruction on the host's registers, its memory operand at `place`. A high byte that it has
    /// written is left as the low byte of a scratch register, for [`Gen::put_back`].
    pub(crate) fn encode(&mut self, index: usize, place: Option<RegMem>) -> Option<HighByte> {
        let insn = &self.trace.insns[index];
        let mut ins = ordinary(&insn.ins);
        ins.set_has_lock_prefix(false);
        ins.set_has_rep_prefix(false);
        ins.set_has_repne_prefix(false);
        ins.set_segment_prefix(Register::None);
        if let Some(place) = place {
            set_memory(&mut ins, place);
        }
        if place.is_none() && insn.kind == Kind::Copy {
            fold::fold(&mut ins, insn.sets, self.upper_zero);
        }
        let overwrites = insn.kind == Kind::Copy && fold::overwrites(&insn.ins);
        // What is in T and in S: registers without a home, and high bytes, turned to be low ones.
        let mut scratches: [Option<Register>; 2] = [None, None];
        for number in 0..ins.op_count() {
            if ins.op_kind(number) != OpKind::Register || !ins.op_register(number).is_gpr() {
                continue;
            }
            let register = ins.op_register(number);
            let (is_high, full) = (is_high_byte(register), register.full_register());
            let key = if is_high { register } else { full };
            let host = match home(full.number() as u8) {
                Home::Reg(r) if !is_high => r,
                at => {
                    let known = scratches.iter().position(|used| *used == Some(key));
                    let place = known.unwrap_or_else(|| {
                        let free = usize::from(scratches[0].is_some());
                        scratches[free] = Some(key);
                        if SCRATCHES[free] == S {
                            self.held = None;
                        }
                        match at {
                            Home::Reg(r) => self.e.mov(SCRATCHES[free], r),
                            Home::Slot(_) if number == 0 && overwrites => {}
                            Home::Slot(from) => self.e.load(SCRATCHES[free], reg::RSP, from),
                        }
                        if is_high {
                            self.e.shift(1, SCRATCHES[free], 8);
                            self.native = false;
                        }
                        free
                    });
                    SCRATCHES[place]
                }
            };
            ins.set_op_register(number, sized_register(host, register.size()));
        }
        self.encode_as(&ins);
        let mut high = None;
        for (used, scratch) in scratches.into_iter().zip(SCRATCHES) {
            let Some(register) = used else { continue };
            let number = register.full_register().number() as u8;
            if insn.sets >> number & 1 == 0 {
                continue;
            }
            match home(number) {
                Home::Slot(at) => self.e.store(reg::RSP, at, scratch),
                Home::Reg(home)
                    if insn.ins.op0_kind() == OpKind::Register
                        && insn.ins.op0_register() == register =>
                {
                    high = Some(HighByte { home, scratch });
                }
                Home::Reg(_) => {}
            }
        }
        high
    }

    /// Puts a high byte that was written where it belongs. Writes the host's flags.
    fn put_back(&mut self, high: Option<HighByte>) {
        if let Some(HighByte { home, scratch }) = high {
            self.e.shift(0, scratch, 8);
            self.e.mov(home, scratch);
            self.native = false;
        }
    }

    pub(crate) fn encode_as(&mut self, ins: &Instruction) {
        let here = self.e.here();
        self.encoder.encode(ins, here).expect("a form of the list, on registers of the same class");
        let bytes = self.encoder.take_buffer();
        self.e.raw(&bytes);
        self.encoder.set_buffer(bytes_cleared(bytes));
    }

    fn copy(&mut self, index: usize) {
        let colds = self.cold.len();
        let place = self.operand(index);
        let insn = &self.trace.insns[index];
        // Those that it leaves alone are saved together with those that it writes.
        let kept = if insn.live & insn.writes == 0 { 0 } else { insn.live & !insn.writes };
        self.want_flags(insn.reads | kept);
        let high = self.encode(index, place);
        self.note_stored(&insn.ins, colds);
        if insn.writes != 0 {
            let with_af = matches!(
                insn.ins.mnemonic(),
                Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Shld | Mnemonic::Shrd
            );
            self.note_flags(index, with_af);
        }
        self.put_back(high);
    }

    fn shift_by_cl(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        let place = self.operand(index);
        self.native = false;
        if insn.live == 0 {
            self.encode(index, place);
            self.flags = FlagState::Dead;
            return;
        }
        self.settle_flags();
        self.flags = FlagState::Home;
        let bytes = operand_bytes(&insn.ins);
        self.e.test_imm_sized(1, reg::RCX, if bytes == 8 { 63 } else { 31 });
        let zero = self.e.jcc(cc::E);
        self.encode(index, place);
        self.e.save_flags();
        self.e.clear_saved_af();
        let done = self.e.jmp();
        self.e.fill(zero);
        self.encode(index, place);
        self.e.fill(done);
        self.native = false;
    }

    /// The flags of a multiplication, from OF and the low half of its result.
    fn multiplication_flags(&mut self, index: usize, bytes: u32, low: u8) {
        self.native = false;
        if self.trace.insns[index].live == 0 {
            self.flags = FlagState::Dead;
            return;
        }
        self.e.overflow_to_al();
        self.e.test_sized(bytes, low, RegMem::Reg(low));
        self.e.carry_from_al();
        self.flags = FlagState::Home;
    }

    fn imul_to(&mut self, index: usize) {
        let place = self.operand(index);
        self.encode(index, place);
        let insn = &self.trace.insns[index];
        let register = insn.ins.op0_register();
        let low = match home(register.full_register().number() as u8) {
            Home::Reg(r) => r,
            Home::Slot(_) => T,
        };
        self.multiplication_flags(index, register.size() as u32, low);
    }

    /// Where the only operand of instruction `index` is, its memory checked.
    fn single_operand(&mut self, index: usize) -> RegMem {
        let place = self.operand(index);
        let ins = &self.trace.insns[index].ins;
        place.unwrap_or_else(|| at_home(ins.op0_register().full_register().number() as u8))
    }

    fn mul_wide(&mut self, index: usize, signed: bool) {
        let operand = self.single_operand(index);
        let bytes = operand_bytes(&self.trace.insns[index].ins);
        self.e.mov(reg::RAX, reg::R8);
        self.e.group3(bytes, if signed { 5 } else { 4 }, operand);
        self.e.mov(reg::R8, reg::RAX);
        self.multiplication_flags(index, bytes, reg::R8);
    }

    /// Leaves where the division would fault, and for dividends that fill both halves and signed
    /// divisors of 0 and -1, of which some do.
    fn div_wide(&mut self, index: usize, signed: bool) {
        let operand = self.single_operand(index);
        let bytes = operand_bytes(&self.trace.insns[index].ins);
        self.native = false;
        let mut holes = Vec::new();
        if signed {
            self.e.mov(T, reg::R8);
            self.e.shift_sized(bytes, 7, T, bytes as u8 * 8 - 1);
            self.e.alu_sized(Alu::Cmp, bytes, reg::RDX, RegMem::Reg(T));
            holes.push(self.e.jcc(cc::NE));
            self.e.load_sized(bytes, T, operand);
            self.e.alu_imm_sized(Alu::Add, bytes, T, 1);
            self.e.alu_imm_sized(Alu::Cmp, bytes, T, 1);
            holes.push(self.e.jcc(cc::BE));
        } else {
            self.e.alu_sized(Alu::Cmp, bytes, reg::RDX, operand);
            holes.push(self.e.jcc(cc::AE));
        }
        self.leave_before(index, holes);
        self.e.mov(T, reg::RAX);
        self.e.mov(reg::RAX, reg::R8);
        self.e.group3(bytes, if signed { 7 } else { 6 }, operand);
        self.e.mov(reg::R8, reg::RAX);
        self.e.mov(reg::RAX, T);
    }

    fn bit_scan(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        let is_live = insn.live != 0;
        let place = self.operand(index);
        if is_live {
            self.settle_flags();
            self.flags = FlagState::Home;
        } else {
            self.flags = FlagState::Dead;
        }
        let ins = &insn.ins;
        let operand =
            place.unwrap_or_else(|| at_home(ins.op1_register().full_register().number() as u8));
        let register = ins.op0_register();
        let bytes = register.size() as u32;
        let opcode = if ins.mnemonic() == Mnemonic::Bsf { 0xbc } else { 0xbd };
        self.e.two_byte(bytes, opcode, T, operand);
        let zero = self.e.jcc(cc::E);
        let number = register.full_register().number() as u8;
        if bytes == 2 {
            match home(number) {
                Home::Reg(r) => self.e.mov_sized(2, RegMem::Reg(r), T),
                Home::Slot(at) => self.e.mov_sized(2, RegMem::Mem(reg::RSP, at), T),
            }
        } else {
            self.set_gpr(number, T);
        }
        if is_live {
            self.e.raw(&[0x80, 0xe4, 0xbf]);
            let done = self.e.jmp();
            self.e.fill(zero);
            self.e.raw(&[0x80, 0xcc, 0x40]);
            self.e.fill(done);
        } else {
            self.e.fill(zero);
        }
        self.native = false;
    }

    fn extend(&mut self, mnemonic: Mnemonic) {
        let rax = Register::R8;
        let pair = |code, to: usize, from: usize| {
            Instruction::with2(
                code,
                sized_register(rax.number() as u8, to),
                sized_register(rax.number() as u8, from),
            )
            .expect("two registers")
        };
        match mnemonic {
            Mnemonic::Cbw => self.encode_as(&pair(Code::Movsx_r16_rm8, 2, 1)),
            Mnemonic::Cwde => self.encode_as(&pair(Code::Movsx_r32_rm16, 4, 2)),
            Mnemonic::Cdqe => self.encode_as(&pair(Code::Movsxd_r64_rm32, 8, 4)),
            Mnemonic::Cwd => {
                let ins = Instruction::with2(Code::Movsx_r32_rm16, Register::R11D, Register::R8W)
                    .expect("two registers");
                self.encode_as(&ins);
                self.e.shift_sized(4, 7, T, 16);
                self.e.mov_sized(2, RegMem::Reg(reg::RDX), T);
                self.native = false;
            }
            Mnemonic::Cdq => {
                self.e.mov32(reg::RDX, reg::R8);
                self.e.shift_sized(4, 7, reg::RDX, 31);
                self.native = false;
            }
            _ => {
                self.e.mov(reg::RDX, reg::R8);
                self.e.shift_sized(8, 7, reg::RDX, 63);
                self.native = false;
            }
        }
    }

    fn cmpxchg(&mut self, index: usize) {
        let place = self.operand(index);
        self.e.mov(reg::RAX, reg::R8);
        self.encode(index, place);
        self.e.mov(reg::R8, reg::RAX);
        self.note_flags(index, false);
    }

    /// PCMPESTRI and PCMPESTRM: one of the lengths is in RAX.
    fn compare_strings(&mut self, index: usize) {
        let place = self.operand(index);
        self.e.mov(reg::RAX, reg::R8);
        self.encode(index, place);
        self.note_flags(index, false);
    }

    /// XCHG with memory. The host's own would lock the bus, which nobody else is on.
    fn exchange(&mut self, index: usize) {
        let place = self.operand(index).expect("one of two operands is memory");
        let ins = &self.trace.insns[index].ins;
        let bytes = operand_bytes(ins);
        let at =
            if ins.op0_kind() == OpKind::Memory { ins.op1_register() } else { ins.op0_register() };
        let number = at.full_register().number() as u8;
        self.e.load_sized(bytes, T, place);
        match home(number) {
            Home::Reg(r) => {
                self.e.mov_sized(bytes, place, r);
                self.e.mov_sized(bytes, RegMem::Reg(r), T);
            }
            Home::Slot(at) => {
                self.e.store(reg::RSP, slot::TARGET, T);
                self.e.load(T, reg::RSP, at);
                self.e.mov_sized(bytes, place, T);
                self.held = None;
                self.e.load(S, reg::RSP, slot::TARGET);
                self.e.mov_sized(bytes, RegMem::Reg(T), S);
                self.e.store(reg::RSP, at, T);
            }
        }
    }

    fn push(&mut self, index: usize) {
        let ins = self.trace.insns[index].ins;
        if let Some(place) = self.operand(index) {
            self.e.load_sized(8, T, place);
            self.e.store(reg::RSP, slot::TARGET, T);
        }
        let top = self.stack(index, 4, -8, true);
        match ins.op0_kind() {
            OpKind::Memory => {
                self.e.load(T, reg::RSP, slot::TARGET);
                self.e.mov_sized(8, top, T);
            }
            OpKind::Register => {
                let value = self.in_register(ins.op0_register().number() as u8, T);
                self.e.mov_sized(8, top, value);
            }
            _ => self.e.mov_imm_sized(8, top, ins.immediate(0) as i32),
        }
        self.e.lea(reg::R9, reg::R9, -8);
    }

    fn push_flags(&mut self, index: usize) {
        self.settle_flags();
        self.native = false;
        let top = self.stack(index, 4, -8, true);
        self.e.load(T, reg::RSP, slot::RFLAGS);
        self.e.mov_sized(8, top, T);
        self.e.overflow_from_home(T);
        self.e.or_sized(8, top, T);
        self.e.others_from_home(T);
        self.e.or_sized(8, top, T);
        self.e.lea(reg::R9, reg::R9, -8);
    }

    pub(crate) fn set_gpr(&mut self, number: u8, from: u8) {
        match home(number) {
            Home::Reg(r) => self.e.mov(r, from),
            Home::Slot(at) => self.e.store(reg::RSP, at, from),
        }
    }

    fn lea(&mut self, ins: &Instruction) {
        let register = ins.op0_register();
        let number = register.number() as u8;
        if let (Home::Reg(r), 4 | 8) = (home(number), register.size()) {
            return self.effective_address(ins, r, 0, register.size() as u32);
        }
        self.effective_address(ins, S, 0, register.size() as u32);
        match (register.size(), home(number)) {
            (4 | 8, Home::Slot(at)) => self.e.store(reg::RSP, at, S),
            (_, Home::Reg(r)) => self.e.mov_sized(2, RegMem::Reg(r), S),
            (_, Home::Slot(at)) => self.e.mov_sized(2, RegMem::Mem(reg::RSP, at), S),
        }
    }

    /// T = the target of an indirect branch.
    fn branch_target(&mut self, index: usize) {
        let place = self.operand(index);
        let ins = self.trace.insns[index].ins;
        if let Some(place) = place {
            return self.e.load_sized(8, T, place);
        }
        match home(ins.op0_register().number() as u8) {
            Home::Reg(r) => self.e.mov(T, r),
            Home::Slot(at) => self.e.load(T, reg::RSP, at),
        }
    }

    fn call_indirect(&mut self, index: usize) {
        self.branch_target(index);
        // The push must not happen if the branch faults, as it does for an address that is not
        // canonical.
        self.held = None;
        self.leave_unless_canonical(index, T, S);
        self.e.store(reg::RSP, slot::TARGET, T);
        self.push_return(index);
        self.e.load(T, reg::RSP, slot::TARGET);
        self.far(self.trace.insns[index].at, Exit::Indirect { rsp: 0 });
    }

    /// Pushes the return address of the call that is instruction `index`.
    fn push_return(&mut self, index: usize) {
        let next = self.trace.insns[index].next;
        let top = self.stack(index, 4, -8, true);
        self.page_address(T, u64::from(next));
        self.e.mov_sized(8, top, T);
        self.e.lea(reg::R9, reg::R9, -8);
        self.remember_call(index);
    }
}

fn bytes_cleared(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.clear();
    bytes
}

/// Where a guest register is, as an operand.
fn at_home(number: u8) -> RegMem {
    match home(number) {
        Home::Reg(r) => RegMem::Reg(r),
        Home::Slot(at) => RegMem::Mem(reg::RSP, at),
    }
}

/// The condition of a conditional branch, as the opcode map numbers it. iced has the same order, after `None`.
pub(crate) fn condition(ins: &Instruction) -> u8 {
    ins.condition_code() as u8 - 1
}

/// Has the memory operand at a place of the host's.
pub(crate) fn set_memory(ins: &mut Instruction, place: RegMem) {
    let (base, index, shift, distance) = match place {
        RegMem::Mem(base, distance) => (base, None, 0, distance),
        RegMem::Sum(base, index, distance) => (base, Some(index), 0, distance),
        RegMem::Scaled(base, index, shift, distance) => (base, Some(index), shift, distance),
        RegMem::Reg(_) => return,
    };
    ins.set_memory_base(sized_register(base, 8));
    ins.set_memory_index(index.map_or(Register::None, |it| sized_register(it, 8)));
    ins.set_memory_index_scale(1 << shift);
    ins.set_memory_displacement64(distance as u64);
    ins.set_memory_displ_size(u32::from(distance != 0));
}

pub(crate) fn sized_register(number: u8, bytes: usize) -> Register {
    let first = match bytes {
        1 => {
            return match number {
                0..=3 => Register::AL + u32::from(number),
                _ => Register::SPL + u32::from(number - 4),
            };
        }
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + u32::from(number)
}

fn recipe_of(ins: &Instruction) -> Option<Recipe> {
    let is_high = |n| ins.op_kind(n) == OpKind::Register && is_high_byte(ins.op_register(n));
    if ins.op0_kind() != OpKind::Register || (0..ins.op_count()).any(is_high) {
        return None;
    }
    let register = ins.op0_register();
    let a = register.full_register().number() as u8;
    let bytes = register.size() as u8;
    let b = if ins.op_count() < 2 {
        None
    } else {
        match ins.op1_kind() {
            OpKind::Register => {
                Some(Source::Gpr(ins.op1_register().full_register().number() as u8))
            }
            OpKind::Memory => None,
            _ => Some(Source::Imm(ins.immediate(1) as i32)),
        }
    };
    let of = |op, b| Some(Recipe { op, bytes, a, b });
    match ins.mnemonic() {
        Mnemonic::Cmp => of(RecipeOp::Cmp, b?),
        Mnemonic::Test => of(RecipeOp::Test, b?),
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Andn => {
            of(RecipeOp::Test, Source::Gpr(a))
        }
        Mnemonic::Add if b? != Source::Gpr(a) => of(RecipeOp::Add, b?),
        Mnemonic::Sub if b? != Source::Gpr(a) => of(RecipeOp::Sub, b?),
        Mnemonic::Neg => of(RecipeOp::Neg, Source::Imm(0)),
        _ => None,
    }
}

/// The same instruction in a form that takes any register.
fn ordinary(ins: &Instruction) -> Instruction {
    let code = match ins.code() {
        Code::Add_AL_imm8 => Code::Add_rm8_imm8,
        Code::Add_AX_imm16 => Code::Add_rm16_imm16,
        Code::Add_EAX_imm32 => Code::Add_rm32_imm32,
        Code::Add_RAX_imm32 => Code::Add_rm64_imm32,
        Code::Or_AL_imm8 => Code::Or_rm8_imm8,
        Code::Or_AX_imm16 => Code::Or_rm16_imm16,
        Code::Or_EAX_imm32 => Code::Or_rm32_imm32,
        Code::Or_RAX_imm32 => Code::Or_rm64_imm32,
        Code::Adc_AL_imm8 => Code::Adc_rm8_imm8,
        Code::Adc_AX_imm16 => Code::Adc_rm16_imm16,
        Code::Adc_EAX_imm32 => Code::Adc_rm32_imm32,
        Code::Adc_RAX_imm32 => Code::Adc_rm64_imm32,
        Code::Sbb_AL_imm8 => Code::Sbb_rm8_imm8,
        Code::Sbb_AX_imm16 => Code::Sbb_rm16_imm16,
        Code::Sbb_EAX_imm32 => Code::Sbb_rm32_imm32,
        Code::Sbb_RAX_imm32 => Code::Sbb_rm64_imm32,
        Code::And_AL_imm8 => Code::And_rm8_imm8,
        Code::And_AX_imm16 => Code::And_rm16_imm16,
        Code::And_EAX_imm32 => Code::And_rm32_imm32,
        Code::And_RAX_imm32 => Code::And_rm64_imm32,
        Code::Sub_AL_imm8 => Code::Sub_rm8_imm8,
        Code::Sub_AX_imm16 => Code::Sub_rm16_imm16,
        Code::Sub_EAX_imm32 => Code::Sub_rm32_imm32,
        Code::Sub_RAX_imm32 => Code::Sub_rm64_imm32,
        Code::Xor_AL_imm8 => Code::Xor_rm8_imm8,
        Code::Xor_AX_imm16 => Code::Xor_rm16_imm16,
        Code::Xor_EAX_imm32 => Code::Xor_rm32_imm32,
        Code::Xor_RAX_imm32 => Code::Xor_rm64_imm32,
        Code::Cmp_AL_imm8 => Code::Cmp_rm8_imm8,
        Code::Cmp_AX_imm16 => Code::Cmp_rm16_imm16,
        Code::Cmp_EAX_imm32 => Code::Cmp_rm32_imm32,
        Code::Cmp_RAX_imm32 => Code::Cmp_rm64_imm32,
        Code::Test_AL_imm8 => Code::Test_rm8_imm8,
        Code::Test_AX_imm16 => Code::Test_rm16_imm16,
        Code::Test_EAX_imm32 => Code::Test_rm32_imm32,
        Code::Test_RAX_imm32 => Code::Test_rm64_imm32,
        Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
        Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
        Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
        Code::Mov_AL_moffs8 => return moved(ins, Code::Mov_r8_rm8, true),
        Code::Mov_AX_moffs16 => return moved(ins, Code::Mov_r16_rm16, true),
        Code::Mov_EAX_moffs32 => return moved(ins, Code::Mov_r32_rm32, true),
        Code::Mov_RAX_moffs64 => return moved(ins, Code::Mov_r64_rm64, true),
        Code::Mov_moffs8_AL => return moved(ins, Code::Mov_rm8_r8, false),
        Code::Mov_moffs16_AX => return moved(ins, Code::Mov_rm16_r16, false),
        Code::Mov_moffs32_EAX => return moved(ins, Code::Mov_rm32_r32, false),
        Code::Mov_moffs64_RAX => return moved(ins, Code::Mov_rm64_r64, false),
        _ => return *ins,
    };
    let mut ins = *ins;
    ins.set_code(code);
    ins
}

fn moved(ins: &Instruction, code: Code, is_load: bool) -> Instruction {
    let memory = MemoryOperand::with_base(Register::R10);
    let made = if is_load {
        Instruction::with2(code, ins.op0_register(), memory)
    } else {
        Instruction::with2(code, memory, ins.op1_register())
    };
    made.expect("a register and memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Callees, emit_stubs};
    use crate::host::meaning_on;
    use crate::plan::{plan, spare_exits};
    use crate::scan::{TRACE_MAX, scan};
    use crate::translator::TRANSLATION_BYTES_MAX;
    use x86::CpuModel;

    /// The mode bits of a system that uses SSE and AVX, in a CPU and on a host with everything.
    const MEANING: u32 =
        meaning_on(CpuModel::ALL.bits() << 8 | 1 << 6 | 1 << 12 | 2, CpuModel::ALL);

    /// Translates from every offset of a page; gives the length of the longest translation.
    fn longest(page: &[u8; 4096]) -> usize {
        let mut emitter = Emitter::new(0x10_0000);
        let callees = Callees { slow: 0, time_stamp: 0, fill_x87: 0 };
        let stubs = emit_stubs(&mut emitter, &callees, 0);
        let mut given = Given::default();
        let one = |start: u16| {
            let mut trace = scan(page, start, MEANING, TRACE_MAX, |_| false);
            let place = Place { start, base: 0x20_0000, cold: 0x30_0000, cache: 0x10_0000 };
            let checks = plan(&trace.insns);
            spare_exits(&mut trace, &checks);
            let mut sites = Vec::new();
            let shared = Shared { stubs, sites: &mut sites, given: &mut given, known: &|_| None };
            let translation = Gen::new(&trace, &checks, Flavour::Loop, place, shared);
            translation.run().bytes.len()
        };
        (0..4096).map(one).max().expect("there are offsets")
    }

    #[test]
    fn a_site_is_what_its_number_says() {
        let mut sites = Vec::new();
        for (at, undo) in [(0, 0), (0xfff, 1), (5, TRACE_MAX as u16)] {
            let usual = [Exit::Interpret, Exit::Budget { is_loop: false }];
            let others = [Exit::Budget { is_loop: true }, Exit::Goto { target: 7 }];
            for (is_usual, exit) in
                usual.map(|it| (true, it)).into_iter().chain(others.map(|it| (false, it)))
            {
                let noted = sites.len();
                let site = Site { at, undo, exit };
                let found = Site::of(site.number(&mut sites), &sites);
                assert_eq!(format!("{found:?}"), format!("{site:?}"));
                assert_eq!(sites.len() == noted, is_usual);
            }
        }
    }

    #[test]
    fn any_bytes_can_be_translated() {
        let mut rng = base::SeededRng::new(1);
        for round in 0..8 {
            let mut page = [0; 4096];
            // Long runs of known instructions are rare in random bytes, so most of these are small numbers,
            // the prefixes and the opcodes that are followed by another one.
            const COMMON: [u8; 10] = [0x48, 0x66, 0xf3, 0x0f, 0x41, 0x89, 0x67, 0x64, 0xc4, 0xc5];
            for byte in &mut page {
                *byte = match rng.below(4) {
                    0 if round % 2 == 0 => COMMON[rng.below(10) as usize],
                    _ => rng.u64() as u8,
                };
            }
            assert!(longest(&page) <= TRANSLATION_BYTES_MAX);
        }
    }

    #[test]
    fn the_longest_instructions_fill_a_fraction_of_what_a_translation_may_have() {
        // push qword fs:[r8+r9*8+0x12345678]; cmp bytes; add r10, [gs:r11d+r8d*2+...]
        let longest_forms: [&[u8]; 4] = [
            &[0x64, 0x43, 0xff, 0xb4, 0xc8, 0x78, 0x56, 0x34, 0x12],
            &[0x65, 0x67, 0x4f, 0x03, 0x94, 0x43, 0x78, 0x56, 0x34, 0x12],
            &[0x64, 0x67, 0x4f, 0x0f, 0xb1, 0x94, 0x43, 0x78, 0x56, 0x34, 0x12],
            // vpinsrw xmm8, xmm9, word gs:[r11d+r8d*2+...], 1
            &[0x65, 0x67, 0xc4, 0x01, 0x31, 0xc4, 0x44, 0x43, 0x78, 0x01],
        ];
        for form in longest_forms {
            let mut page = [0x90; 4096];
            page.chunks_exact_mut(form.len()).for_each(|place| place.copy_from_slice(form));
            let len = longest(&page);
            assert!(len > 48 * 60 && len < TRANSLATION_BYTES_MAX / 2, "{form:x?}: {len}");
        }
    }
}
