//! How translated code reaches guest memory: through the interpreter's TLB, or by a check that was made for
//! several accesses at once ([`crate::plan`]).

use x86::iced::{Instruction, Mnemonic, OpKind, Register};

use crate::emit::{Alu, Hole, RegMem, cc, reg};
use crate::frame::{Home, S, T, home, slot, slow_word};
use crate::hints;
use crate::plan::{Check, Group};
use crate::scan::{Access, Kind};
use crate::translate::{Cold, Exit, FlagState, Flavour, Gen};
use crate::translator::SLOW_STORED;

/// Offset of the distance to the host in an entry of `Cpu::tlb_entries`.
pub(crate) const TLB_DISTANCE: i32 = 24;
/// Offset of the tag that allows stores.
pub(crate) const TLB_WRITE: i32 = 8;
/// Offset of the page's host address.
pub(crate) const TLB_HOST: i32 = 16;

/// From a view of the TLB to the next: from the supervisor's without AC to the one with it.
pub(crate) const TLB_VIEW_BYTES: i32 = 1024 * 32;

/// Offset of the tag that allows an access.
pub(crate) fn tlb_tag(access: Access) -> i32 {
    if access.write { TLB_WRITE } else { 0 }
}

/// Accesses of a loop that have a cell.
pub(crate) const CELLS_MAX: usize = 12;
/// Misses of one run of a loop after which the translator has a look.
const MISSES_MAX: i32 = 64;

/// An access that its cell did not serve.
pub(crate) struct Miss {
    hole: Hole,
    /// Where to go on with the place on the page in S, and with what the main path has there afterwards.
    back: u64,
    done: u64,
    cell: i32,
    access: Access,
    span: i32,
    flags: FlagState,
    index: usize,
    after: AfterMiss,
    stored: Option<Stored>,
}

/// An access that its hint did not serve.
pub(crate) struct HintMiss {
    hole: Hole,
    /// Where to go on with the host address in S.
    back: u64,
    hint: i32,
    access: Access,
    flags: FlagState,
    index: usize,
    /// It speaks for others.
    is_leader: bool,
    stored: Option<Stored>,
}

/// A vector register that an instruction does nothing but store, and where the main path goes on behind it.
#[derive(Clone, Copy)]
pub(crate) struct Stored {
    register: u8,
    next: u64,
}

/// How an access goes on that the TLB does not serve, either.
enum AfterMiss {
    /// In the plain translation: it speaks for others.
    Plain,
    /// By the slow path, with the host address in S, or the distance there from a register and an offset.
    Slow(Option<(u8, i32)>),
}

/// The linear address of an access.
#[derive(Clone, Copy)]
enum Address<'a> {
    Operand(&'a Instruction),
    /// A register's value, and a distance.
    Near(u8, i32),
}

impl Address<'_> {
    /// The host register that the address is a distance from.
    fn base(self) -> Option<(u8, i32)> {
        let (number, distance) = match self {
            Address::Near(number, distance) => (number, distance),
            Address::Operand(ins) if ins.memory_index() == Register::None => {
                let base = ins.memory_base();
                let number = base.is_gpr64().then(|| base.number() as u8)?;
                (number, ins.memory_displacement64() as i32)
            }
            Address::Operand(_) => return None,
        };
        match home(number) {
            Home::Reg(r) => Some((r, distance)),
            Home::Slot(_) => None,
        }
    }

    fn has_segment_base(self) -> bool {
        match self {
            Address::Operand(ins) => {
                matches!(ins.memory_segment(), Register::FS | Register::GS)
            }
            Address::Near(..) => false,
        }
    }
}

/// Words of a cell behind the first, which is the page's linear address.
mod slot_in_cell {
    pub(super) const HOST: i32 = 8;
    pub(super) const DISTANCE: i32 = 16;
}

fn group_slot(number: u8) -> i32 {
    slot::GROUPS + 8 * i32::from(number)
}

impl Gen<'_> {
    /// Where the memory operand of instruction `index` is, if it has one. The place holds until S is written.
    pub(crate) fn operand(&mut self, index: usize) -> Option<RegMem> {
        let insn = &self.trace.insns[index];
        let (ins, access) = (insn.ins, insn.access?);
        Some(self.place(index, Address::Operand(&ins), access, self.checks[index].operand))
    }

    /// Where the 8 bytes at a distance from a guest register are, likewise.
    pub(crate) fn stack(&mut self, index: usize, number: u8, distance: i32, write: bool) -> RegMem {
        let access = Access { bytes: 8, write, aligned: false };
        self.place(index, Address::Near(number, distance), access, self.checks[index].stack)
    }

    fn place(
        &mut self,
        index: usize,
        address: Address<'_>,
        access: Access,
        check: Check,
    ) -> RegMem {
        let (place, is_aligned) = match check {
            Check::Round(stream) => {
                let Address::Operand(ins) = address else { unreachable!("no stack in such loops") };
                return self.place_in_round(ins, stream);
            }
            Check::Alone => return self.alone(index, address, access),
            Check::Leader { group: Group::Stack, from, span, .. } => {
                self.native = false;
                self.linear(address, T, from);
                self.e.alu_mem(Alu::Sub, T, reg::RSP, slot::PIN_PAGE);
                self.e.alu_imm(Alu::Cmp, T, 4096 - span);
                let hole = self.e.jcc(cc::A);
                let back = self.e.here();
                self.cold.push(Cold::Repin { hole, back, span, flags: self.flags, index });
                (self.near_stack(address), false)
            }
            Check::Leader { group: Group::Slot(number), from, span, write } => {
                let access = Access { write, ..access };
                self.linear(address, S, from);
                if let Some(cell) = self.new_cell() {
                    self.look_into_cell(index, cell, access, span, AfterMiss::Plain);
                } else if self.has_hint(address, from, span) {
                    self.look_into_hint(index, access, true);
                } else {
                    let hole = self.look_up(access, span);
                    self.cold.push(Cold::Plain { hole, flags: self.flags, index });
                    self.e.alu_mem(Alu::Add, S, T, TLB_HOST);
                }
                self.e.store(reg::RSP, group_slot(number), S);
                self.held = Some(Group::Slot(number));
                (RegMem::Mem(S, -from), false)
            }
            Check::Follower { group: Group::Stack, is_aligned, .. } => {
                (self.near_stack(address), is_aligned)
            }
            Check::Follower { group: Group::Slot(number), at, is_aligned } => {
                if self.held != Some(Group::Slot(number)) {
                    self.e.load(S, reg::RSP, group_slot(number));
                    self.held = Some(Group::Slot(number));
                }
                (RegMem::Mem(S, at), is_aligned)
            }
        };
        if access.aligned && !is_aligned {
            // The page offset is the same on both sides.
            let at = match place {
                RegMem::Sum(base, index, distance) => {
                    self.e.lea_index(T, Some(base), index, 0, distance);
                    T
                }
                RegMem::Mem(base, distance) if distance % access.bytes as i32 != 0 => {
                    self.e.lea(T, base, distance);
                    T
                }
                RegMem::Mem(r, _) | RegMem::Reg(r) => r,
                RegMem::Scaled(..) => unreachable!("only in rounds"),
            };
            self.leave_unless_aligned(index, at);
        }
        place
    }

    /// An access that is checked by itself.
    fn alone(&mut self, index: usize, address: Address<'_>, access: Access) -> RegMem {
        let near = address.base().filter(|_| !access.aligned && !address.has_segment_base());
        let place =
            near.map_or(RegMem::Mem(S, 0), |(base, distance)| RegMem::Sum(base, S, distance));
        let has_hint = self.has_hint(address, 0, access.bytes as i32);
        self.linear(address, S, 0);
        if access.aligned {
            self.leave_unless_aligned(index, S);
        }
        if let Some(cell) = self.new_cell() {
            let after = AfterMiss::Slow(near);
            self.look_into_cell(index, cell, access, access.bytes as i32, after);
        } else if has_hint {
            self.look_into_hint(index, access, false);
        } else {
            self.check(index, access, near);
        }
        place
    }

    /// A cell of its own for an access of a loop, as long as there are any: its place in the frame.
    fn new_cell(&mut self) -> Option<i32> {
        (self.cells < self.cells_ready).then(|| {
            self.cells += 1;
            slot::CELLS + 24 * (self.cells as i32 - 1)
        })
    }

    /// S = host address for `span` bytes at the linear address in S, or the distance there, as it would be after a miss.
    /// Uses T and RFLAGS.
    fn look_into_cell(
        &mut self,
        index: usize,
        cell: i32,
        access: Access,
        span: i32,
        after: AfterMiss,
    ) {
        self.native = false;
        self.held = None;
        self.e.alu_mem(Alu::Sub, S, reg::RSP, cell);
        self.e.alu_imm(Alu::Cmp, S, 4096 - span);
        let hole = self.e.jcc(cc::A);
        let back = self.e.here();
        if let AfterMiss::Slow(Some(_)) = after {
            self.e.load(S, reg::RSP, cell + slot_in_cell::DISTANCE);
        } else {
            self.e.alu_mem(Alu::Add, S, reg::RSP, cell + slot_in_cell::HOST);
        }
        let done = self.e.here();
        let flags = self.flags;
        let stored = None;
        let miss = Miss { hole, back, done, cell, access, span, flags, index, after, stored };
        self.cold.push(Cold::Miss(miss));
    }

    /// Whether so many bytes at a distance from an address have a hint: where they lie at a fixed place, and what is at that address
    /// and near the end of a page does not decide whether they lie on two.
    fn has_hint(&self, address: Address<'_>, distance: i32, span: i32) -> bool {
        let Address::Operand(ins) = address else { return false };
        if ins.memory_index() != Register::None {
            return false;
        }
        match ins.memory_base() {
            Register::RIP if !address.has_segment_base() => {
                let start = ins.memory_displacement64().wrapping_add_signed(i64::from(distance));
                (start & 0xfff) as i32 + span <= 4096
            }
            Register::RIP | Register::None => span <= hints::BYTES_MIN,
            _ => false,
        }
    }

    /// S = host address for the linear address in S, if that has a hint. Uses T and RFLAGS.
    fn look_into_hint(&mut self, index: usize, access: Access, is_leader: bool) {
        self.native = false;
        self.held = None;
        let hint = self.given.next(access.write);
        self.e.load(T, reg::RSP, slot::HINTS);
        self.e.alu_mem(Alu::Cmp, S, T, hint);
        let hole = self.e.jcc(cc::NE);
        self.e.load(S, T, hint + hints::HOST);
        let (back, flags, stored) = (self.e.here(), self.flags, None);
        let miss = HintMiss { hole, back, hint, access, flags, index, is_leader, stored };
        self.cold.push(Cold::Hint(miss));
    }

    /// Has the hint serve and goes on, or goes on as without one.
    pub(crate) fn hint_miss(&mut self, miss: HintMiss) {
        let HintMiss { hole, back, hint, access, flags, index, is_leader, stored } = miss;
        self.e.fill(hole);
        self.e.mov_imm32(T, hints::word(hint, access.bytes));
        let goes_on = is_leader || stored.is_some();
        let stubs = if goes_on { self.stubs.hint_only } else { self.stubs.hint };
        self.e.call_to(stubs[usize::from(access.write)]);
        let serves = self.e.jcc(cc::B);
        self.e.fill_to(serves, back);
        if is_leader {
            return self.go_plain(flags, index);
        }
        if stored.is_some() {
            self.call_slow(access, stored);
        }
        let site = self.site_before(index);
        self.go_back(None, back, flags, site);
    }

    /// Has the cell filled and tries again; then goes on as without a cell.
    pub(crate) fn miss(&mut self, miss: Miss) {
        let Miss { hole, back, done, cell, access, span, flags, index, after, stored } = miss;
        self.e.fill(hole);
        self.e.alu_mem(Alu::Add, S, reg::RSP, cell);
        self.e.add_imm_mem(reg::RSP, slot::MISSES, 1);
        let too_many = self.e.jcc(cc::E);
        self.e.mov_imm32(T, cell as u32);
        self.e.call_to(self.stubs.fill_cell[usize::from(access.write)]);
        self.e.test(T, T);
        let unknown = self.e.jcc(cc::E);
        self.e.alu_imm(Alu::Cmp, S, 4096 - span);
        let filled = self.e.jcc(cc::BE);
        self.e.fill_to(filled, back);
        self.e.alu_mem(Alu::Add, S, reg::RSP, cell);
        self.e.fill(unknown);
        match after {
            AfterMiss::Plain => self.go_plain(flags, index),
            AfterMiss::Slow(from) => {
                self.call_slow(access, stored);
                let site = self.site_before(index);
                self.go_back(from, done, flags, site);
            }
        }
        self.e.fill(too_many);
        let (at, undo) = (self.trace.insns[index].at, self.undo(index));
        let site = self.site(at, undo, Exit::Misses { steps_a_round: self.steps });
        self.leave_with(flags, site);
    }

    /// What is done before the first round of a loop, whose accesses may have cells.
    pub(crate) fn enter_loop(&mut self, with_cells: bool) {
        self.e.store(reg::RSP, slot::ENTERED, reg::R15);
        if self.flavour != Flavour::Loop {
            return;
        }
        self.e.store_imm64(reg::RSP, slot::MISSES, -MISSES_MAX);
        if !with_cells {
            return;
        }
        self.cells_ready = self.wanted_cells();
        // The pin is a page that may be accessed in any way, so it does for the start.
        self.e.load(S, reg::RSP, slot::PIN_PAGE);
        self.e.load(T, reg::RSP, slot::PIN_DELTA);
        let cells = (0..self.cells_ready as i32).map(|number| slot::CELLS + 24 * number);
        for cell in cells.clone() {
            self.e.store(reg::RSP, cell, S);
            self.e.store(reg::RSP, cell + slot_in_cell::DISTANCE, T);
        }
        self.e.lea_index(T, Some(T), S, 0, 0);
        for cell in cells {
            self.e.store(reg::RSP, cell + slot_in_cell::HOST, T);
        }
    }

    /// How many accesses of the trace have somebody's page to check, as far as there are cells.
    fn wanted_cells(&self) -> usize {
        let is_checked = |check: &Check| {
            !matches!(check, Check::Follower { .. } | Check::Leader { group: Group::Stack, .. })
        };
        // What a cell remembers is true in one view of the TLB.
        if self.trace.insns.iter().any(|insn| matches!(insn.kind, Kind::SetAc(_))) {
            return 0;
        }
        let accesses = self.trace.insns.iter().zip(self.checks);
        let wanted = accesses
            .filter(|(insn, checks)| insn.access.is_some() && is_checked(&checks.operand))
            .count();
        wanted.min(CELLS_MAX)
    }

    /// Where an access to the pinned page is.
    fn near_stack(&mut self, address: Address<'_>) -> RegMem {
        if let Some((base, distance)) = address.base() {
            if self.held != Some(Group::Stack) {
                self.e.load(S, reg::RSP, slot::PIN_DELTA);
                self.held = Some(Group::Stack);
            }
            return RegMem::Sum(base, S, distance);
        }
        self.linear(address, S, 0);
        self.e.alu_mem(Alu::Add, S, reg::RSP, slot::PIN_DELTA);
        self.native = false;
        RegMem::Mem(S, 0)
    }

    /// S = host address of the part of the memory operand that holds the bit whose number is in a guest register, T =
    /// the bit's number in there.
    pub(crate) fn bit_address(&mut self, index: usize, number: u8) {
        let insn = &self.trace.insns[index];
        let (ins, access) = (insn.ins, insn.access.expect("a memory operand"));
        let bits = 8 * access.bytes as u8;
        self.linear(Address::Operand(&ins), S, 0);
        self.bit_number(number);
        // The number is signed.
        if bits < 64 {
            self.e.shift(4, T, 64 - bits);
        }
        self.e.shift(7, T, 64 - bits + bits.trailing_zeros() as u8);
        self.e.lea_index(S, Some(S), T, access.bytes.trailing_zeros() as u8, 0);
        self.check(index, access, None);
        self.bit_number(number);
        self.e.alu_imm(Alu::And, T, i32::from(bits) - 1);
    }

    fn bit_number(&mut self, number: u8) {
        match home(number) {
            Home::Reg(r) => self.e.mov(T, r),
            Home::Slot(from) => self.e.load(T, reg::RSP, from),
        }
    }

    fn leave_unless_aligned(&mut self, index: usize, address: u8) {
        self.native = false;
        let bytes = self.trace.insns[index].access.map_or(16, |access| access.bytes);
        self.e.test_imm_sized(1, address, bytes as i32 - 1);
        let hole = self.e.jcc(cc::NE);
        self.leave_before(index, vec![hole]);
    }

    /// S = host address for an access at the linear address in S by instruction `index`, whose alignment matters to nobody or was
    /// checked before. Uses T and RFLAGS.
    /// With `near`, the distance there from a register and an offset.
    fn check(&mut self, index: usize, access: Access, near: Option<(u8, i32)>) {
        let hole = self.look_up(access, access.bytes as i32);
        if near.is_some() {
            self.e.load(S, T, TLB_DISTANCE);
        } else {
            self.e.alu_mem(Alu::Add, S, T, TLB_HOST);
        }
        let back = self.e.here();
        self.slow_path(index, hole, back, access, near);
    }

    /// Of a host address in S, makes the distance from a register and an offset, if that is wanted. T is lost.
    pub(crate) fn see_from(&mut self, from: Option<(u8, i32)>) {
        if let Some((base, distance)) = from {
            self.e.lea(T, base, distance);
            self.e.alu(Alu::Sub, S, T);
        }
    }

    /// What happens where a look-up ends at `hole`: goes on at `back` with the host address in S, or the distance there from a
    /// register and an offset.
    pub(crate) fn slow_path(
        &mut self,
        index: usize,
        hole: Hole,
        back: u64,
        access: Access,
        from: Option<(u8, i32)>,
    ) {
        let site = self.site_before(index);
        let flags = self.flags;
        self.cold.push(Cold::Slow { hole, back, access, from, flags, site, stored: None });
    }

    /// What the instruction that has just been emitted stores, so that the slow path can do that for it where the operand
    /// lies on two pages. The colds from number `from` on are its own.
    pub(crate) fn note_stored(&mut self, ins: &Instruction, from: usize) {
        let is_store = matches!(
            ins.mnemonic(),
            Mnemonic::Movups
                | Mnemonic::Movupd
                | Mnemonic::Movdqu
                | Mnemonic::Vmovups
                | Mnemonic::Vmovupd
                | Mnemonic::Vmovdqu
        );
        if !is_store || ins.op0_kind() != OpKind::Memory {
            return;
        }
        let it = Stored { register: ins.op1_register().number() as u8, next: self.e.here() };
        for cold in &mut self.cold[from..] {
            if let Cold::Slow { stored, .. }
            | Cold::Miss(Miss { stored, .. })
            | Cold::Hint(HintMiss { stored, .. }) = cold
            {
                *stored = Some(it);
            }
        }
    }

    /// S = what the slow path has for the linear address in S, compared with 0. If it has stored the register, this
    /// goes on behind the instruction.
    pub(crate) fn call_slow(&mut self, access: Access, stored: Option<Stored>) {
        let register = stored.map_or(0, |it| u32::from(it.register) + 1);
        self.e.mov_imm32(T, slow_word(access) | register << 24);
        self.e.call_to(self.stubs.slow);
        if let Some(it) = stored {
            self.e.alu_imm(Alu::Cmp, S, SLOW_STORED as i32);
            let done = self.e.jcc(cc::E);
            self.e.fill_to(done, it.next);
            self.e.test(S, S);
        }
    }

    /// S = place on its page of the linear address in S, T = the TLB entry, if the branch is not taken: then
    /// `span` bytes may be accessed there.
    pub(crate) fn look_up(&mut self, access: Access, span: i32) -> Hole {
        self.native = false;
        self.held = None;
        self.e.tlb_entry(T, S, slot::TLB);
        self.e.alu_mem(Alu::Sub, S, T, tlb_tag(access));
        self.e.alu_imm(Alu::Cmp, S, 4096 - span);
        self.e.jcc(cc::A)
    }

    /// `dst` (S or T) = an address, plus a small distance. S is used as well. Leaves RFLAGS alone but for a segment base.
    fn linear(&mut self, address: Address<'_>, dst: u8, plus: i32) {
        match address {
            Address::Operand(ins) => {
                self.effective_address(ins, dst, plus, 8);
                let base = match ins.memory_segment() {
                    Register::FS => slot::FS,
                    Register::GS => slot::GS,
                    _ => return,
                };
                self.e.alu_mem(Alu::Add, dst, reg::RSP, base);
                self.native = false;
            }
            Address::Near(number, distance) => {
                self.held = None;
                let base = self.in_register(number, S);
                self.e.lea(dst, base, distance + plus);
            }
        }
    }

    /// `dst` = the offset of the memory operand, plus a distance that is 0 if the operand's own is near the
    /// limits; of 4 bytes or less only the lower half. Uses S and T; `dst` may be a register of the operand's.
    pub(crate) fn effective_address(&mut self, ins: &Instruction, dst: u8, plus: i32, bytes: u32) {
        self.held = None;
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let displacement = ins.memory_displacement64();
        if base == Register::RIP {
            self.page_address(dst, displacement.wrapping_add_signed(i64::from(plus)));
            if bytes <= 4 {
                self.e.mov32(dst, dst);
            }
            return;
        }
        let narrow = bytes <= 4
            || base.size() == 4
            || index.size() == 4
            || base == Register::None && index == Register::None && ins.memory_displ_size() == 4;
        let scale = ins.memory_index_scale().trailing_zeros() as u8;
        let base = (base != Register::None).then(|| self.in_register(base.number() as u8, S));
        let index = (index != Register::None).then(|| self.in_register(index.number() as u8, T));
        let distance = (displacement as i32).wrapping_add(plus);
        match (base, index) {
            (None, None) if narrow || displacement >> 32 == 0 => {
                self.e.mov_imm32(dst, displacement as u32);
            }
            (None, None) => self.e.mov_imm64(dst, displacement),
            (Some(base), None) if distance == 0 && narrow => self.e.mov32(dst, base),
            (Some(base), None) if distance == 0 => {
                if base != dst {
                    self.e.mov(dst, base);
                }
            }
            (Some(base), None) => self.e.lea_sized(!narrow, dst, base, distance),
            (base, Some(index)) => {
                self.e.lea_index_sized(!narrow, dst, base, index, scale, distance);
            }
        }
    }

    /// Goes on with instruction `index` in the plain translation.
    pub(crate) fn go_plain(&mut self, flags: FlagState, index: usize) {
        self.bring_home(flags);
        let undo = self.undo(index);
        self.e.alu_imm(Alu::Add, reg::R15, i32::from(undo));
        let at = self.trace.insns[index].at;
        self.link(at, at, true);
    }

    /// The page at T plus the pin's was not the pinned one: pins it, if the TLB knows it.
    pub(crate) fn repin(&mut self, back: u64, span: i32) {
        self.e.mov(S, T);
        self.e.alu_mem(Alu::Add, S, reg::RSP, slot::PIN_PAGE);
        self.e.call_to(self.stubs.repin);
        self.e.alu_imm(Alu::Cmp, T, 4096 - span);
        let done = self.e.jcc(cc::BE);
        self.e.fill_to(done, back);
    }

    /// Has the flags at home, however they were kept. Uses T.
    pub(crate) fn bring_home(&mut self, flags: FlagState) {
        if let FlagState::Recipe(recipe) = flags {
            self.recompute(recipe);
            self.e.save_flags();
        }
    }
}
