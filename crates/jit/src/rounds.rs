//! Loops whose accesses move by constants: for as many rounds as all of them stay on their pages, they are done without
//! a check, by a copy of the loop's body.
//!
//! Before the first of these rounds, each *stream* of accesses is looked up in the TLB, and the number of rounds is computed
//! that it stays on its page; the least of them, and the budget, decide. The copy's budget is only that many
//! rounds', so it ends by itself at the right place, and the rest of the budget waits in the frame. If there is no such
//! round, because an access lies on two pages or the TLB does not know one, the trace itself does the next one.
//!
//! Host registers whose guest registers the body does not use are *lent*: to the addresses of streams, and to guest
//! registers that have none. What was in them waits in the frame until the copy is left.

use x86::iced::{Instruction, InstructionInfoFactory, OpKind, Register};

use crate::emit::{Alu, Emitter, Hole, RegMem, cc, reg};
use crate::fold;
use crate::frame::{BUDGET, Home, S, T, home, slot};
use crate::memory::TLB_DISTANCE;
use crate::plan::{Check, Checks, Moving, Origin, PAGE, SPAN_MAX, moving};
use crate::scan::{Access, End, Insn, Kind, Trace, find_live_flags, is_high_byte};
use crate::translate::{Cold, Exit, FlagState, Gen, Shared, condition, sized_register};

/// Streams of a loop.
const STREAMS_MAX: usize = 8;
/// A stream that moves faster leaves its page too soon.
const STRIDE_MAX: u64 = 512;
/// Rounds are bytes times a factor, with so many bits behind the point: enough for a stride of [`STRIDE_MAX`] and the bytes of a page.
const FACTOR_BITS: u8 = 24;
const _: () = assert!(4096 * STRIDE_MAX < 1 << FACTOR_BITS, "the number of rounds is exact");
/// The weight of a wish for a register that has to be granted.
const NEEDS_REGISTER: usize = 1000;
/// More rounds than these are not done at once.
const ROUNDS_MAX: u32 = 1 << 30;

/// Places in the frame, where the cells of other loops are: addresses of streams, what was in lent registers, the budget that
/// waits, and the flags.
const ADDRESSES: i32 = slot::CELLS;
const WAITING: i32 = ADDRESSES + 8 * STREAMS_MAX as i32;
const REST: i32 = WAITING + 8 * 16;
const FLAGS: i32 = REST + 8;
const _: () = assert!(FLAGS < slot::MISSES);

/// What an access of the copy finds its place by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Where the address is.
    at: Home,
    /// It is the host's in the place of the operand's base, which does not move, and not the distance from guest to host.
    is_base: bool,
}

/// Accesses that lie near each other and move together.
struct Group {
    origin: Origin,
    stride: i64,
    /// Their range in the first round.
    low: i64,
    high: i64,
    write: bool,
    /// One that has to be aligned, and its size.
    aligned: Option<(i64, u32)>,
    accesses: usize,
    stream: Stream,
}

/// What a host register is lent to.
#[derive(Clone, Copy)]
enum Lent {
    /// The guest register of this number, whose place in the frame this is.
    Guest {
        number: u8,
        at: i32,
        is_written: bool,
    },
    Group(usize),
}

/// A loop that can be done so.
pub(crate) struct Rounds {
    /// The body; a jump back ends it. Guest registers to which others' are lent have those names.
    body: Trace,
    checks: Vec<Checks>,
    groups: Vec<Group>,
    /// Which guest register's host register is lent, and to whom.
    lent: Vec<(u8, u8, Lent)>,
    /// Flags may be wanted at the start of a round.
    keeps_flags: bool,
    /// A conditional jump back is its last instruction.
    ends_with_jump: bool,
}

impl Rounds {
    /// What can be made of a trace that is a loop.
    pub(crate) fn of(trace: &Trace, start: u16) -> Option<Rounds> {
        let goes_back = |(_, insn): &(usize, &Insn)| {
            insn.kind == Kind::Jcc && insn.ins.near_branch64() == u64::from(start)
        };
        let mut back = trace.insns.iter().enumerate().filter(goes_back).map(|(place, _)| place);
        let back = (back.next(), back.next());
        let (len, ends_with_jump) = match (back, trace.end == End::At(start)) {
            ((None, _), true) => (trace.insns.len(), false),
            ((Some(place), None), false) => (place + 1, true),
            _ => return None,
        };
        let mut insns = trace.insns[..len].to_vec();
        if !insns.iter().all(may_be_in_round) {
            return None;
        }
        let accesses = moving(&insns)?;
        let used = used_registers(&insns);
        let written = insns.iter().fold(0, |sets, insn| sets | insn.sets);
        let (mut groups, members) = groups(&insns, &accesses, written)?;
        let lent = lend(&insns, &mut groups, used, written)?;
        for (number, _, lent) in &lent {
            if let Lent::Guest { number: from, .. } = lent {
                insns.iter_mut().for_each(|insn| rename(insn, *from, *number));
            }
        }
        let check = |group: Option<usize>| Checks {
            operand: group.map_or(Check::Alone, |number| Check::Round(groups[number].stream)),
            stack: Check::Alone,
        };
        let checks = members.into_iter().map(check).collect();
        for insn in &mut insns {
            insn.exits = insn.kind == Kind::Jcc;
        }
        let mut body = Trace { insns, end: trace.end, is_loop: true };
        let keeps_flags = find_live_flags(&mut body) != 0;
        Some(Rounds { body, checks, groups, lent, keeps_flags, ends_with_jump })
    }

    /// True for the conditional jump back.
    fn is_back(&self, index: usize) -> bool {
        self.ends_with_jump && index + 1 == self.body.insns.len()
    }
}

/// True for instructions that leave the copy nowhere but by a branch, and need nothing that it does not have.
fn may_be_in_round(insn: &Insn) -> bool {
    matches!(
        insn.kind,
        Kind::Copy
            | Kind::Vector
            | Kind::Nop
            | Kind::Jcc
            | Kind::Jmp
            | Kind::Lea
            | Kind::ShiftByCl
            | Kind::ImulTo
            | Kind::BitScan
            | Kind::Extend
            | Kind::Carry
            | Kind::Bmi(_)
    )
}

/// General registers, one bit each.
fn used_registers(insns: &[Insn]) -> u16 {
    let mut info = InstructionInfoFactory::new();
    let mut used = 0;
    for insn in insns {
        for register in info.info(&insn.ins).used_registers() {
            let full = register.register().full_register();
            if full.is_gpr64() {
                used |= 1 << full.number();
            }
        }
    }
    used
}

/// The groups of a body's accesses, and which each instruction's belongs to.
fn groups(
    insns: &[Insn],
    accesses: &[Option<Moving>],
    written: u16,
) -> Option<(Vec<Group>, Vec<Option<usize>>)> {
    let mut groups: Vec<Group> = Vec::new();
    let mut members = Vec::new();
    for (insn, moving) in insns.iter().zip(accesses) {
        let (Some(access), Some(moving)) = (insn.access, moving) else {
            members.push(None);
            continue;
        };
        let Moving { origin, at, stride } = *moving;
        let is_small = |distance: i64, most: u64| distance.unsigned_abs() <= most;
        if !is_small(stride, STRIDE_MAX) || !is_small(at, 1 << 30) {
            return None;
        }
        let end = at + i64::from(access.bytes);
        let near = |group: &Group| {
            let span = group.high.max(end) - group.low.min(at);
            group.origin == origin && (span <= SPAN_MAX || origin.base == PAGE)
        };
        let number = groups.iter().position(near).unwrap_or(groups.len());
        if number == groups.len() {
            let at_first = Home::Slot(ADDRESSES + 8 * number as i32);
            let stream = Stream { at: at_first, is_base: true };
            let (write, aligned, accesses) = (false, None, 0);
            let (low, high) = (at, end);
            groups.push(Group { origin, stride, low, high, write, aligned, accesses, stream });
        }
        groups[number].join(insn, access, at, written)?;
        members.push(Some(number));
    }
    let fits = |group: &Group| group.checked_range().1 <= 4096;
    (groups.len() <= STREAMS_MAX && groups.iter().all(fits)).then_some((groups, members))
}

impl Group {
    fn join(&mut self, insn: &Insn, access: Access, at: i64, written: u16) -> Option<()> {
        self.low = self.low.min(at);
        self.high = self.high.max(at + i64::from(access.bytes));
        self.write |= access.write;
        self.accesses += 1;
        let base = insn.ins.memory_base();
        let is_fixed = base == Register::RIP
            || base.number() as u32 == self.origin.base && written >> base.number() & 1 == 0;
        self.stream.is_base &= is_fixed;
        if access.aligned {
            let bytes = i64::from(access.bytes);
            let (known, size) = *self.aligned.get_or_insert((at, access.bytes));
            if size != access.bytes || (at - known) % bytes != 0 || self.stride % bytes != 0 {
                return None;
            }
        }
        Some(())
    }

    /// The range, of which all is on one page, from where its alignment is looked at.
    fn checked_range(&self) -> (i64, i64) {
        let low = match self.aligned {
            Some((at, bytes)) => self.low - (self.low - at).rem_euclid(i64::from(bytes)),
            None => self.low,
        };
        (low, self.high - low)
    }
}

/// Decides whom unused registers are lent to.
fn lend(
    insns: &[Insn],
    groups: &mut [Group],
    used: u16,
    written: u16,
) -> Option<Vec<(u8, u8, Lent)>> {
    let mut wishes: Vec<(usize, Lent)> = Vec::new();
    for number in 0..16 {
        let Home::Slot(at) = home(number) else { continue };
        if used >> number & 1 == 0 {
            continue;
        }
        let register = Register::RAX + u32::from(number);
        let is_index = |insn: &&Insn| insn.access.is_some() && insn.ins.memory_index() == register;
        let is_used = |insn: &&Insn| used_registers(std::slice::from_ref(*insn)) >> number & 1 != 0;
        let is_written = written >> number & 1 != 0;
        let uses = insns.iter().filter(is_used).count() + usize::from(is_written);
        // An index has to be in a register.
        let needs = insns.iter().any(|insn| is_index(&insn));
        let weight = if needs { NEEDS_REGISTER } else { 2 * uses };
        wishes.push((weight, Lent::Guest { number, at, is_written }));
    }
    for (number, group) in groups.iter().enumerate() {
        wishes.push((2 * group.accesses, Lent::Group(number)));
    }
    wishes.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    let mut free = (0..16).filter_map(|number| match home(number) {
        Home::Reg(host) if used >> number & 1 == 0 => Some((number, host)),
        _ => None,
    });
    let mut lent = Vec::new();
    for (weight, wish) in wishes {
        match free.next() {
            Some((number, host)) => {
                if let Lent::Group(group) = wish {
                    groups[group].stream.at = Home::Reg(host);
                }
                lent.push((number, host, wish));
            }
            None if weight >= NEEDS_REGISTER => return None,
            None => break,
        }
    }
    Some(lent)
}

/// Gives a guest register another name.
fn rename(insn: &mut Insn, from: u8, to: u8) {
    let is_it = |register: Register| {
        register.is_gpr()
            && !is_high_byte(register)
            && register.full_register().number() as u8 == from
    };
    let renamed = |register: Register| sized_register(to, register.size());
    let ins: &mut Instruction = &mut insn.ins;
    for operand in 0..ins.op_count() {
        if ins.op_kind(operand) == OpKind::Register && is_it(ins.op_register(operand)) {
            ins.set_op_register(operand, renamed(ins.op_register(operand)));
        }
    }
    if is_it(ins.memory_base()) {
        ins.set_memory_base(renamed(ins.memory_base()));
    }
    if is_it(ins.memory_index()) {
        ins.set_memory_index(renamed(ins.memory_index()));
    }
    if insn.sets >> from & 1 != 0 {
        insn.sets = insn.sets & !(1 << from) | 1 << to;
    }
}

impl Gen<'_> {
    /// Emits the rounds without checks, before the trace itself. The flags are at home.
    pub(crate) fn rounds(&mut self, rounds: &Rounds) {
        let steps = i32::from(rounds.body.insns.len() as u16);
        self.e.store(reg::RSP, FLAGS, reg::RAX);
        self.e.mov_imm32(reg::RAX, ROUNDS_MAX);
        let mut holes = Vec::new();
        for (number, group) in rounds.groups.iter().enumerate() {
            holes.extend(self.look_up_group(group, ADDRESSES + 8 * number as i32));
        }
        // RAX = steps of these rounds, as far as there is a budget for them.
        self.e.multiply(reg::RAX, reg::RAX, steps);
        self.e.alu_imm(Alu::Add, reg::RAX, steps);
        self.e.alu(Alu::Cmp, reg::RAX, BUDGET);
        self.e.cmov(cc::A, reg::RAX, BUDGET);
        self.e.mov(T, BUDGET);
        self.e.alu(Alu::Sub, T, reg::RAX);
        self.e.store(reg::RSP, REST, T);
        self.e.alu_imm(Alu::Sub, reg::RAX, steps);
        holes.push(self.e.jcc(cc::B));
        self.e.mov(BUDGET, reg::RAX);
        self.e.load(reg::RAX, reg::RSP, FLAGS);
        for (number, host, lent) in &rounds.lent {
            self.e.store(reg::RSP, WAITING + 8 * i32::from(*number), *host);
            let from = match lent {
                Lent::Guest { at, .. } => *at,
                Lent::Group(group) => ADDRESSES + 8 * *group as i32,
            };
            self.e.load(*host, reg::RSP, from);
        }
        self.copy_of_body(rounds);
        holes.into_iter().for_each(|hole| self.e.fill(hole));
        self.e.load(reg::RAX, reg::RSP, FLAGS);
        self.e.add_imm_mem(reg::RSP, slot::MISSES, 1);
        let hole = self.e.jcc(cc::E);
        let exit = Exit::Misses { steps_a_round: steps as u16 };
        let site = self.site(self.place.start, 0, exit);
        self.cold.push(Cold::Leave { holes: vec![hole], flags: FlagState::Home, site });
    }

    /// Has the address of a group's stream in the frame, and RAX at most the rounds after the first that it stays
    /// on its page. The branches are taken if it has not even one.
    fn look_up_group(&mut self, group: &Group, at: i32) -> Vec<Hole> {
        let access = Access { bytes: 0, write: group.write, aligned: false };
        let (low, span) = group.checked_range();
        if group.origin.base == PAGE {
            self.page_address(S, low as u64);
        } else {
            let base = self.in_register(group.origin.base as u8, S);
            match group.origin.index {
                None => self.e.lea(S, base, low as i32),
                Some((index, scale)) => {
                    let index = self.in_register(index as u8, T);
                    let shift = scale.trailing_zeros() as u8;
                    self.e.lea_index(S, Some(base), index, shift, low as i32);
                }
            }
        }
        let mut holes = vec![self.look_up(access, span as i32)];
        if let Some((_, bytes)) = group.aligned {
            self.e.test_imm_sized(1, S, bytes as i32 - 1);
            holes.push(self.e.jcc(cc::NE));
        }
        self.e.load(T, T, TLB_DISTANCE);
        if group.stream.is_base {
            let base = match group.origin.base {
                PAGE => RegMem::Mem(reg::RSP, slot::PAGE),
                base => match home(base as u8) {
                    Home::Reg(r) => RegMem::Reg(r),
                    Home::Slot(from) => RegMem::Mem(reg::RSP, from),
                },
            };
            self.e.alu_sized(Alu::Add, 8, T, base);
        }
        self.e.store(reg::RSP, at, T);
        if group.stride != 0 {
            if group.stride > 0 {
                self.e.neg_sized(8, S);
                self.e.alu_imm(Alu::Add, S, 4096 - span as i32);
            }
            let factor = (1u64 << FACTOR_BITS).div_ceil(group.stride.unsigned_abs());
            self.e.multiply(S, S, factor as i32);
            self.e.shift(5, S, FACTOR_BITS);
            self.e.alu(Alu::Cmp, S, reg::RAX);
            self.e.cmov(cc::B, reg::RAX, S);
        }
        holes
    }

    /// The rounds themselves, of which there is one at least.
    fn copy_of_body(&mut self, rounds: &Rounds) {
        let body = &rounds.body;
        let mut sites = Vec::new();
        let shared =
            Shared { stubs: self.stubs, sites: &mut sites, given: self.given, known: self.known };
        let mut copy = Gen::new(body, &rounds.checks, self.flavour, self.place, shared);
        std::mem::swap(&mut copy.e, &mut self.e);
        let start = copy.e.here();
        let exits = copy.all_of_body(rounds);
        copy.e.alu_imm(Alu::Sub, BUDGET, i32::from(copy.steps));
        let again = copy.e.jcc(cc::NS);
        copy.e.fill_to(again, start);
        copy.bring_home(copy.flags);
        copy.e.alu_imm(Alu::Add, BUDGET, i32::from(copy.steps));
        std::mem::swap(&mut copy.e, &mut self.e);
        let is_alone = copy.cold.is_empty() && copy.taken.is_empty();
        assert!(is_alone && sites.is_empty(), "a round has no other ways out");
        self.end_rounds(rounds);
        self.e.jmp_to(self.again);
        for WayOut { hole, flags, undo, target, at, is_branch } in exits {
            self.e.fill(hole);
            self.save_at_branch(flags);
            self.e.alu_imm(Alu::Add, BUDGET, i32::from(undo));
            self.end_rounds(rounds);
            self.go_on_at(target, at, is_branch);
        }
    }

    /// One round, up to where the next one follows.
    fn all_of_body(&mut self, rounds: &Rounds) -> Vec<WayOut> {
        let mut exits = Vec::new();
        for (index, insn) in rounds.body.insns.iter().enumerate() {
            let is_last = rounds.is_back(index);
            if is_last && rounds.keeps_flags {
                self.settle_flags();
            }
            if insn.kind == Kind::Jcc {
                self.want_flags(insn.reads);
                let condition = condition(&insn.ins);
                // The jump back leads on behind the loop where it is not taken.
                let (condition, target) = if is_last {
                    (condition ^ 1, u64::from(insn.next))
                } else {
                    (condition, insn.ins.near_branch64())
                };
                let hole = self.e.jcc(condition);
                let undo = self.undo(index) - 1;
                let (flags, at, is_branch) = (self.flags, insn.at, !is_last);
                exits.push(WayOut { hole, flags, undo, target, at, is_branch });
            } else {
                self.insn(index);
            }
            self.upper_zero = fold::upper_zero_after(insn, self.upper_zero);
        }
        if rounds.keeps_flags {
            self.settle_flags();
        }
        exits
    }

    /// Takes back what was lent, and the rest of the budget. The flags are at home.
    fn end_rounds(&mut self, rounds: &Rounds) {
        self.e.alu_mem(Alu::Add, BUDGET, reg::RSP, REST);
        for (number, host, lent) in &rounds.lent {
            if let Lent::Guest { at, is_written: true, .. } = lent {
                self.e.store(reg::RSP, *at, *host);
            }
            self.e.load(*host, reg::RSP, WAITING + 8 * i32::from(*number));
        }
    }

    /// Where the memory operand of an instruction of the copy is.
    pub(crate) fn place_in_round(&mut self, ins: &Instruction, stream: Stream) -> RegMem {
        self.held = None;
        let distance = ins.memory_displacement64() as i32;
        let stream_in_register = |e: &mut Emitter| match stream.at {
            Home::Reg(r) => r,
            Home::Slot(at) => {
                e.load(S, reg::RSP, at);
                S
            }
        };
        let base = if stream.is_base {
            stream_in_register(&mut self.e)
        } else {
            match (stream.at, home(ins.memory_base().number() as u8)) {
                (_, Home::Reg(base)) => {
                    let stream = stream_in_register(&mut self.e);
                    if ins.memory_index() == Register::None {
                        return RegMem::Sum(base, stream, distance);
                    }
                    self.e.lea_index(S, Some(base), stream, 0, 0);
                }
                (Home::Reg(stream), Home::Slot(base)) => {
                    self.e.load(S, reg::RSP, base);
                    self.e.lea_index(S, Some(S), stream, 0, 0);
                }
                (Home::Slot(stream), Home::Slot(base)) => {
                    self.e.load(S, reg::RSP, stream);
                    self.e.alu_mem(Alu::Add, S, reg::RSP, base);
                    self.native = false;
                }
            }
            S
        };
        if ins.memory_index() == Register::None {
            return RegMem::Mem(base, distance);
        }
        let Home::Reg(index) = home(ins.memory_index().number() as u8) else {
            unreachable!("an index has been given a register")
        };
        let shift = ins.memory_index_scale().trailing_zeros() as u8;
        RegMem::Scaled(base, index, shift, distance)
    }
}

/// A branch out of the copy.
struct WayOut {
    hole: Hole,
    flags: FlagState,
    undo: u16,
    target: u64,
    at: u16,
    is_branch: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{TRACE_MAX, scan};

    /// What is made of a loop at the start of a page.
    fn rounds(code: &[u8]) -> Option<Rounds> {
        let mut page = [0xf4; 4096];
        page[..code.len()].copy_from_slice(code);
        // In the mode of a system that uses SSE.
        Rounds::of(&scan(&page, 0, 1 << 6 | 2, TRACE_MAX, |_| false), 0)
    }

    /// The ranges of its groups and how far they move.
    fn ranges(rounds: &Rounds) -> Vec<(i64, i64, i64)> {
        rounds.groups.iter().map(|group| (group.low, group.high, group.stride)).collect()
    }

    #[test]
    fn accesses_that_move_together_are_one_stream() {
        // movaps xmm0,[rdi+rax*8]; addps xmm0,[rdi+rax*8+16]; add rdx,32; movaps [rdx-32],xmm0; add rax,4; cmp rax,r8; jne
        let code = [
            0x0f, 0x28, 0x04, 0xc7, 0x0f, 0x58, 0x44, 0xc7, 0x10, 0x48, 0x83, 0xc2, 0x20, 0x0f,
            0x29, 0x42, 0xe0, 0x48, 0x83, 0xc0, 4, 0x4c, 0x39, 0xc0, 0x75, 0xe6,
        ];
        let rounds = rounds(&code).unwrap();
        assert_eq!(ranges(&rounds), [(0, 32, 32), (0, 16, 32)]);
        let streams: Vec<bool> = rounds.groups.iter().map(|it| it.stream.is_base).collect();
        assert_eq!(streams, [true, false], "RDI stays and RDX moves");
        // Both streams and R8 have registers: RCX is the first that is not used.
        assert_eq!(rounds.lent.len(), 3);
        assert_eq!(rounds.lent[0].0, 1);
        assert!(rounds.groups.iter().all(|it| matches!(it.stream.at, Home::Reg(_))));
        assert!(!rounds.keeps_flags);
    }

    #[test]
    fn what_does_not_move_by_a_constant_is_no_stream() {
        // mov rax,[rax]; dec rcx; jne
        assert!(rounds(&[0x48, 0x8b, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf8]).is_none());
        // mov rdx,[rax]; add rax,0x1000; dec rcx; jne
        let too_fast = [0x48, 0x8b, 0x10, 0x48, 0x05, 0, 0x10, 0, 0, 0x48, 0xff, 0xc9, 0x75, 0xf2];
        assert!(rounds(&too_fast).is_none());
        // mov rdx,[rax+rcx]; add ecx,8; dec rsi; jne: ECX may wrap
        let wraps = [0x48, 0x8b, 0x14, 0x08, 0x83, 0xc1, 8, 0x48, 0xff, 0xce, 0x75, 0xf4];
        assert!(rounds(&wraps).is_none());
    }

    #[test]
    fn a_loop_that_goes_back_from_two_places_or_pushes_is_left_alone() {
        // dec rcx; jne; dec rdx; jne
        assert!(rounds(&[0x48, 0xff, 0xc9, 0x75, 0xfb, 0x48, 0xff, 0xca, 0x75, 0xf6]).is_none());
        // push rax; dec rcx; jne
        assert!(rounds(&[0x50, 0x48, 0xff, 0xc9, 0x75, 0xfa]).is_none());
    }

    #[test]
    fn flags_that_go_from_round_to_round_are_kept() {
        // adc rax,[rdi]; lea rdi,[rdi+8]; dec rcx, which leaves CF alone; jne
        let code = [0x48, 0x13, 0x07, 0x48, 0x8d, 0x7f, 8, 0x48, 0xff, 0xc9, 0x75, 0xf4];
        assert!(rounds(&code).unwrap().keeps_flags);
    }

    #[test]
    fn an_aligned_stream_is_looked_at_where_its_alignment_is() {
        // movups xmm1,[rdi+8]; movaps xmm0,[rdi+16]; add rdi,16; dec rcx; jne
        let code = [
            0x0f, 0x10, 0x4f, 8, 0x0f, 0x28, 0x47, 16, 0x48, 0x83, 0xc7, 16, 0x48, 0xff, 0xc9,
            0x75, 0xef,
        ];
        assert_eq!(rounds(&code).unwrap().groups[0].checked_range(), (0, 32));
        // The same by 8 bytes a round: every other access faults.
        let mut code = code;
        code[11] = 8;
        assert!(rounds(&code).is_none());
    }
}
