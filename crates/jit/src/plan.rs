//! Which accesses of a trace need a check of their own.
//!
//! Accesses at known distances from each other form a *group*: the first one, the leader, has the whole range
//! checked that the group may touch, and remembers where it is in the host's memory; the others go straight there. Registers are followed symbolically, as an unknown value plus a distance, so
//! pushes and pops, and frame pointers that were copied from RSP, belong to one group. Groups near RSP use the
//! *pin*: a writable page that the TLB knows, remembered from trace to trace.
//!
//! A group is only a guess: a range that reaches over the end of a page has all its accesses checked one by one
//! in a second translation of the same code, the plain one.

use x86::iced::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::rounds::Stream;
use crate::scan::{Access, Insn, Kind, Trace, find_live_flags};

/// Bytes that a group may reach over: more would often end on another page.
pub(crate) const SPAN_MAX: i64 = 512;
const DISPLACEMENT_MAX: u64 = 1 << 30;
/// Groups of one trace that are remembered at the same time, beside those of the stack.
pub(crate) const GROUPS: usize = 8;

/// How an access is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// By itself.
    Alone,
    /// For its whole group: `span` bytes from `from`, which is relative to its own address. `write` if some of these are stored to.
    Leader { group: Group, from: i32, span: i32, write: bool },
    /// By its leader. It begins `at` bytes into the range, and if it has to be aligned, another access may have shown that
    /// it is.
    Follower { group: Group, at: i32, is_aligned: bool },
    /// For many rounds of a loop ([`crate::rounds`]).
    Round(Stream),
}

/// What a group remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// The pin: the distance from guest to host.
    Stack,
    /// In a place in the frame, the host address of its range.
    Slot(u8),
}

/// The checks of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checks {
    /// Of its memory operand.
    pub(crate) operand: Check,
    /// Of what it pushes or pops.
    pub(crate) stack: Check,
}

const ALONE: Checks = Checks { operand: Check::Alone, stack: Check::Alone };

/// A register's value: an unknown one, by number, and a distance from it. Distances are sums of as many
/// 32-bit constants as a trace has instructions, so they are far from overflowing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    unknown: u32,
    distance: i64,
}

/// The unknown part of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Below 16 what the register of this number had at the start.
    pub(crate) base: u32,
    /// With the scale. Beside [`PAGE`] the number of pages from there.
    pub(crate) index: Option<(u32, u32)>,
}

/// An access of a loop's body that moves by the same distance with each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) origin: Origin,
    /// Distance from there in the first round.
    pub(crate) at: i64,
    pub(crate) stride: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Operand,
    Stack,
}

/// A group under construction.
struct Open {
    origin: Origin,
    group: Group,
    may_store: bool,
    /// No branch lies between the leader and what comes next, so that joins the group whenever the leader was there.
    is_straight: bool,
    leader: (usize, Part),
    /// Distances from the origin.
    leader_at: i64,
    low: i64,
    high: i64,
    /// With the distance from the origin, and whether it is known to be aligned.
    followers: Vec<((usize, Part), i64, bool)>,
    /// The last access that was shown to be aligned to its size: its distance from the origin, and its size.
    aligned: Option<(i64, u32)>,
}

/// The page of the running code among the unknown values, of which the registers' at the start are the first.
pub(crate) const PAGE: u32 = 16;

struct Planner {
    values: [Value; 16],
    unknowns: u32,
    open: Vec<Open>,
    checks: Vec<Checks>,
}

/// Decides on the accesses of a trace.
pub(crate) fn plan(insns: &[Insn]) -> Vec<Checks> {
    let mut planner = Planner::new(insns.len());
    for (index, insn) in insns.iter().enumerate() {
        planner.accesses(index, insn);
        planner.step(insn);
        if insn.kind == Kind::Jcc {
            planner.open.iter_mut().for_each(|open| open.is_straight = false);
        }
        if let Kind::SetAc(_) = insn.kind {
            // Pages may be accessed before that may not after, and the pin is another one.
            planner.close_all();
        }
    }
    planner.close_all();
    planner.checks
}

/// Has the trace know which of its instructions cannot leave it, now that it is decided who checks their accesses, and so which
/// flags nobody wants.
pub(crate) fn spare_exits(trace: &mut Trace, checks: &[Checks]) {
    for (insn, checks) in trace.insns.iter_mut().zip(checks) {
        let is_spared = |access: Option<Access>, check| match (access, check) {
            (None, _) => true,
            (Some(access), Check::Follower { is_aligned, .. }) => !access.aligned || is_aligned,
            _ => false,
        };
        let pushes_or_pops = matches!(insn.kind, Kind::Push | Kind::Pop | Kind::Leave);
        if (pushes_or_pops || matches!(insn.kind, Kind::Copy | Kind::Vector))
            && is_spared(insn.access, checks.operand)
            && (!pushes_or_pops || matches!(checks.stack, Check::Follower { .. }))
        {
            insn.exits = false;
        }
    }
    find_live_flags(trace);
}

/// How the accesses of a loop's body move, if all of them do so by constants. It has none but those of memory operands.
pub(crate) fn moving(body: &[Insn]) -> Option<Vec<Option<Moving>>> {
    let mut planner = Planner::new(0);
    let mut accesses = Vec::new();
    for insn in body {
        accesses.push(match insn.access {
            None => None,
            Some(_) => Some(planner.origin(&insn.ins)?),
        });
        planner.step(insn);
    }
    let stride_of = |unknown: u32| match unknown {
        PAGE => Some(0),
        _ => {
            let after = planner.values.get(unknown as usize)?;
            (after.unknown == unknown).then_some(after.distance)
        }
    };
    let moving = |(origin, at): (Origin, i64)| {
        let of_index = match origin.index {
            Some((index, scale)) if origin.base != PAGE => stride_of(index)? * i64::from(scale),
            _ => 0,
        };
        Some(Moving { origin, at, stride: stride_of(origin.base)? + of_index })
    };
    accesses
        .into_iter()
        .map(|access| access.map_or(Some(None), |it| moving(it).map(Some)))
        .collect()
}

/// Every access of a trace checked by itself.
pub(crate) fn plain(insns: &[Insn]) -> Vec<Checks> {
    vec![ALONE; insns.len()]
}

impl Planner {
    fn new(insns: usize) -> Planner {
        Planner {
            values: std::array::from_fn(|n| Value { unknown: n as u32, distance: 0 }),
            unknowns: PAGE + 1,
            open: Vec::new(),
            checks: vec![ALONE; insns],
        }
    }

    fn accesses(&mut self, index: usize, insn: &Insn) {
        if let Some(access) = insn.access
            && insn.kind != Kind::BitString
            && let Some((origin, distance)) = self.origin(&insn.ins)
        {
            self.access((index, Part::Operand), origin, distance, access);
        }
        let (register, distance, write) = match insn.kind {
            Kind::Push | Kind::PushFlags | Kind::Call | Kind::CallIndirect => (4, -8, true),
            Kind::Pop | Kind::Ret => (4, 0, false),
            Kind::Leave => (5, 0, false),
            _ => return,
        };
        let Value { unknown, distance: known } = self.values[register];
        let origin = Origin { base: unknown, index: None };
        let access = Access { bytes: 8, write, aligned: false };
        self.access((index, Part::Stack), origin, known + distance, access);
    }

    /// The address of a memory operand, if it is the sum of registers in 64 bits.
    fn origin(&self, ins: &Instruction) -> Option<(Origin, i64)> {
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let displacement = ins.memory_displacement64() as i64;
        if matches!(ins.memory_segment(), Register::FS | Register::GS) {
            return None;
        }
        // What is added to it must not overflow.
        if displacement.unsigned_abs() > DISPLACEMENT_MAX {
            return None;
        }
        if base == Register::RIP {
            let index = Some(((displacement >> 12) as u32, 0));
            return Some((Origin { base: PAGE, index }, displacement));
        }
        if base.size() != 8 || index != Register::None && index.size() != 8 {
            return None;
        }
        let base = self.values[base.number()];
        let mut distance = base.distance + displacement;
        let index = (index != Register::None).then(|| {
            let value = self.values[index.number()];
            let scale = ins.memory_index_scale();
            distance += value.distance * i64::from(scale);
            (value.unknown, scale)
        });
        Some((Origin { base: base.unknown, index }, distance))
    }

    fn access(&mut self, place: (usize, Part), origin: Origin, at: i64, access: Access) {
        let is_stack = origin.index.is_none() && origin.base == self.values[4].unknown;
        let end = at + i64::from(access.bytes);
        // Where on its page it is, is known then.
        let is_placed = origin.base == PAGE;
        if is_placed && at >> 12 != (end - 1) >> 12 {
            return;
        }
        if let Some(known) = self.open.iter().position(|open| open.origin == origin) {
            let open = &mut self.open[known];
            let (low, high) = (open.low.min(at), open.high.max(end));
            let may_join = is_placed || high - low <= SPAN_MAX;
            if may_join && (open.may_store || !access.write || open.is_straight) {
                open.may_store |= access.write;
                (open.low, open.high) = (low, high);
                let is_aligned = open.aligned.is_some_and(|(known, bytes)| {
                    bytes >= access.bytes && (at - known) % i64::from(access.bytes) == 0
                });
                open.followers.push((place, at, is_aligned));
                if access.aligned && !is_aligned {
                    open.aligned = Some((at, access.bytes));
                }
                return;
            }
            let open = self.open.remove(known);
            self.close(&open);
        }
        let group = if is_stack {
            // There is one pin, and the new leader may move it.
            if let Some(other) = self.open.iter().position(|open| open.group == Group::Stack) {
                let open = self.open.remove(other);
                self.close(&open);
            }
            Group::Stack
        } else {
            let slots_in_use =
                |slot: &u8| self.open.iter().any(|open| open.group == Group::Slot(*slot));
            match (0..GROUPS as u8).find(|slot| !slots_in_use(slot)) {
                Some(slot) => Group::Slot(slot),
                None => {
                    let oldest = self.open.iter().position(|open| open.group != Group::Stack);
                    let open = self.open.remove(oldest.expect("all slots are in use"));
                    self.close(&open);
                    open.group
                }
            }
        };
        self.open.push(Open {
            origin,
            group,
            may_store: is_stack || access.write,
            is_straight: true,
            leader: place,
            leader_at: at,
            low: at,
            high: end,
            followers: Vec::new(),
            aligned: access.aligned.then_some((at, access.bytes)),
        });
    }

    fn close_all(&mut self) {
        while let Some(open) = self.open.pop() {
            self.close(&open);
        }
    }

    /// Nothing more joins this group.
    fn close(&mut self, open: &Open) {
        if open.followers.is_empty() && open.group != Group::Stack {
            return;
        }
        for (place, at, is_aligned) in &open.followers {
            let at = (at - open.low) as i32;
            let check = Check::Follower { group: open.group, at, is_aligned: *is_aligned };
            self.set(*place, check);
        }
        let from = (open.low - open.leader_at) as i32;
        let span = (open.high - open.low) as i32;
        let (group, write) = (open.group, open.may_store);
        self.set(open.leader, Check::Leader { group, from, span, write });
    }

    fn set(&mut self, (index, part): (usize, Part), check: Check) {
        match part {
            Part::Operand => self.checks[index].operand = check,
            Part::Stack => self.checks[index].stack = check,
        }
    }

    /// What the instruction does to the registers.
    fn step(&mut self, insn: &Insn) {
        let result = self.known_result(insn);
        for number in 0..16 {
            if insn.sets >> number & 1 != 0 {
                self.values[number] = Value { unknown: self.unknowns, distance: 0 };
                self.unknowns += 1;
            }
        }
        for (number, value) in result.into_iter().flatten() {
            self.values[number] = value;
        }
    }

    /// The registers of which more is known after the instruction than that they were written.
    fn known_result(&self, insn: &Insn) -> [Option<(usize, Value)>; 2] {
        let ins = &insn.ins;
        let moved = |from: usize, by: i64| {
            let Value { unknown, distance } = self.values[from];
            Value { unknown, distance: distance + by }
        };
        let target = || ins.op0_register().number();
        let one = |number, value| [Some((number, value)), None];
        match insn.kind {
            Kind::Push | Kind::PushFlags => one(4, moved(4, -8)),
            Kind::Pop if ins.op0_register() == Register::RSP => [None; 2],
            Kind::Pop => one(4, moved(4, 8)),
            Kind::Leave => one(4, moved(5, 8)),
            Kind::Lea
                if ins.op0_register().is_gpr64()
                    && ins.memory_base().is_gpr64()
                    && ins.memory_index() == Register::None =>
            {
                let by = i64::from(ins.memory_displacement64() as i32);
                one(target(), moved(ins.memory_base().number(), by))
            }
            Kind::Copy if ins.op0_kind() == OpKind::Register && ins.op0_register().is_gpr64() => {
                let by = || ins.immediate(1) as i64;
                let is_constant = ins.op_count() == 2
                    && !matches!(ins.op1_kind(), OpKind::Register | OpKind::Memory);
                match ins.mnemonic() {
                    Mnemonic::Add if is_constant => one(target(), moved(target(), by())),
                    Mnemonic::Sub if is_constant => one(target(), moved(target(), -by())),
                    Mnemonic::Inc => one(target(), moved(target(), 1)),
                    Mnemonic::Dec => one(target(), moved(target(), -1)),
                    Mnemonic::Mov
                        if matches!(ins.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64)
                            && ins.op1_kind() == OpKind::Register =>
                    {
                        one(target(), moved(ins.op1_register().number(), 0))
                    }
                    _ => [None; 2],
                }
            }
            _ => [None; 2],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{TRACE_MAX, scan};

    /// The checks of a piece of code: of operands, and of what is pushed and popped.
    fn checks(code: &[u8]) -> (Vec<Check>, Vec<Check>) {
        let mut page = [0xf4; 4096];
        page[..code.len()].copy_from_slice(code);
        // In the mode of a system that uses SSE.
        let checks = plan(&scan(&page, 0, 1 << 6 | 2, TRACE_MAX, |_| false).insns);
        checks.into_iter().map(|checks| (checks.operand, checks.stack)).unzip()
    }

    const FIRST: Group = Group::Slot(0);

    fn loads(group: Group, from: i32, span: i32) -> Check {
        Check::Leader { group, from, span, write: group == Group::Stack }
    }

    fn follower(group: Group, at: i32) -> Check {
        Check::Follower { group, at, is_aligned: false }
    }

    #[test]
    fn what_is_a_multiple_of_16_from_an_aligned_access_is_aligned() {
        // movaps xmm0,[rdi]; movaps xmm1,[rdi+16]; movaps xmm2,[rdi+24]; movaps xmm3,[rdi+40]
        let (operands, _) = checks(&[
            0x0f, 0x28, 0x07, 0x0f, 0x28, 0x4f, 16, 0x0f, 0x28, 0x57, 24, 0x0f, 0x28, 0x5f, 40,
        ]);
        let is_aligned = |check: &Check| matches!(check, Check::Follower { is_aligned: true, .. });
        let aligned: Vec<_> = operands.iter().map(is_aligned).collect();
        assert_eq!(aligned, [false, true, false, true]);
    }

    #[test]
    fn pushes_and_pops_are_checked_together() {
        // push rbx; push rbp; mov rbp,rsp; mov rax,[rbp+8]; pop rbp; pop rbx
        let (operands, stack) =
            checks(&[0x53, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b, 0x45, 8, 0x5d, 0x5b]);
        let follower = |at| follower(Group::Stack, at);
        let leader = loads(Group::Stack, -8, 16);
        assert_eq!(stack[..2], [leader, follower(0)]);
        assert_eq!(operands[3], follower(8), "RBP is RSP at a distance");
        assert_eq!(stack[4..], [follower(0), follower(8)]);
    }

    #[test]
    fn fields_of_a_structure_are_checked_together() {
        // mov rax,[rdi+16]; mov rcx,[rdi]; mov edx,[rdi+24]
        let (operands, _) = checks(&[0x48, 0x8b, 0x47, 16, 0x48, 0x8b, 0x0f, 0x8b, 0x57, 24]);
        let leader = loads(FIRST, -16, 28);
        assert_eq!(operands, [leader, follower(FIRST, 0), follower(FIRST, 24)]);
    }

    #[test]
    fn what_is_near_the_code_is_checked_once_for_a_page() {
        // mov rax,[rip+0x1800]; mov rax,[rip+0x17f0]; mov rax,[rip+0x1000]; mov rax,[rip+0x2fe0]; mov rax,[rip+0x17d8]
        let load = |at: u32| [&[0x48, 0x8b, 0x05][..], &at.to_le_bytes()].concat();
        let code = [0x1800, 0x17f0, 0x1000, 0x2fe0, 0x17d8].map(load).concat();
        let (operands, _) = checks(&code);
        let leader = loads(FIRST, -0x7f2, 0x7fa);
        assert_eq!(operands[..3], [leader, follower(FIRST, 0x7e9), follower(FIRST, 0)]);
        // The fourth reaches into the next page.
        assert_eq!(operands[3..], [Check::Alone, follower(FIRST, 0x7e6)]);
    }

    #[test]
    fn a_store_follows_a_load_unless_a_branch_decides_whether_it_comes() {
        // mov rax,[rdi]; mov [rdi+8],rax; mov rcx,[rdi+16]
        let (operands, _) = checks(&[0x48, 0x8b, 0x07, 0x48, 0x89, 0x47, 8, 0x48, 0x8b, 0x4f, 16]);
        let leader = Check::Leader { group: FIRST, from: 0, span: 24, write: true };
        assert_eq!(operands, [leader, follower(FIRST, 8), follower(FIRST, 16)]);
        // mov rax,[rdi]; je (far away); mov [rdi+8],rax; mov rcx,[rdi+16]
        let (operands, _) = checks(&[
            0x48, 0x8b, 0x07, 0x0f, 0x84, 0, 0, 2, 0, 0x48, 0x89, 0x47, 8, 0x48, 0x8b, 0x4f, 16,
        ]);
        let leader = Check::Leader { group: FIRST, from: 0, span: 16, write: true };
        assert_eq!(
            [operands[0], operands[2], operands[3]],
            [Check::Alone, leader, follower(FIRST, 8)]
        );
    }

    #[test]
    fn a_register_that_was_written_or_is_too_far_away_begins_anew() {
        // mov rax,[rdi]; mov rdi,rax; mov rcx,[rdi]
        let (operands, _) = checks(&[0x48, 0x8b, 0x07, 0x48, 0x89, 0xc7, 0x48, 0x8b, 0x0f]);
        assert_eq!([operands[0], operands[2]], [Check::Alone; 2]);
        // mov rax,[rdi]; mov rcx,[rdi+0x1000]
        let (operands, _) = checks(&[0x48, 0x8b, 0x07, 0x48, 0x8b, 0x8f, 0, 0x10, 0, 0]);
        assert_eq!(operands, [Check::Alone; 2]);
    }

    #[test]
    fn a_register_that_moves_by_a_constant_stays_in_its_group() {
        // mov rax,[rdi+rsi*8]; add rdi,8; inc rsi; mov rcx,[rdi+rsi*8-4]
        let (operands, _) = checks(&[
            0x48, 0x8b, 0x04, 0xf7, 0x48, 0x83, 0xc7, 8, 0x48, 0xff, 0xc6, 0x48, 0x8b, 0x4c, 0xf7,
            0xfc,
        ]);
        let leader = loads(FIRST, 0, 20);
        assert_eq!([operands[0], operands[3]], [leader, follower(FIRST, 12)]);
    }

    #[test]
    fn what_was_near_the_old_stack_pointer_is_no_longer_served_by_the_pin() {
        // push rbx; mov rbp,rsp; mov rsp,rax; push rbx; mov rcx,[rbp]
        let (operands, stack) =
            checks(&[0x53, 0x48, 0x89, 0xe5, 0x48, 0x89, 0xc4, 0x53, 0x48, 0x8b, 0x4d, 0]);
        let leader = loads(Group::Stack, 0, 8);
        assert_eq!([stack[0], stack[3]], [leader, leader]);
        assert_eq!(operands[4], Check::Alone);
    }
}
