//! System calls, and the supervisor's access to programs' memory: SYSCALL, SYSRET, STAC, CLAC.
//!
//! What of the frame depends on privilege is kept ready for both sides of a system call, so that SYSCALL and SYSRET
//! exchange it and go on by the jump table. STAC and CLAC go from one view of the TLB to the other. The CPU itself
//! follows ([`Cpu::follow`]) when translated code is left, and before the slow path asks it for anything.
//!
//! The interpreter does what is rare: a SYSRET that sets other flags than IF, DF and ID, one while an interrupt waits,
//! to a kernel's address or with AC set; and all of it with breakpoints or alignment checks.

use std::mem::offset_of;

use cpu::{Cpu, Seg, Side};
use x86::Rflags;

use crate::emit::{Alu, Emitter, cc, reg};
use crate::frame::{Context, Home, S, T, at, home, slot};
use crate::hints::{Hints, VIEW_BYTES};
use crate::jumps::Ways;
use crate::memory::TLB_VIEW_BYTES;
use crate::translate::{Exit, Gen};

/// What running code may do: bytes of [`slot::MAY`], 1 for yes.
pub(crate) mod may {
    /// CLI and STI, by CPL and IOPL.
    pub(crate) const CLI: i32 = 0;
    /// RDTSC, by CPL and CR4.TSD.
    pub(crate) const TSC: i32 = 1;
    /// SWAPGS, INVLPG and reading control registers: at CPL 0.
    pub(crate) const CPL0: i32 = 2;
    /// STAC and CLAC, by CPL, and where they choose between two views.
    pub(crate) const AC: i32 = 3;
    pub(crate) const SYSCALL: i32 = 4;
    pub(crate) const SYSRET: i32 = 5;
    /// RDFSBASE and its like.
    pub(crate) const BASES: i32 = 6;
}

/// What there is of one side of a system call.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SideState {
    tlb: u64,
    hints: u64,
    high_keys: u64,
    low_keys: u64,
    pub(crate) ways: Ways,
    may: u64,
    pin_page: u64,
    pin_delta: u64,
    /// Of CS and SS.
    selectors: [u64; 2],
}

impl SideState {
    pub(crate) const NONE: SideState = SideState {
        tlb: 0,
        hints: 0,
        high_keys: 0,
        low_keys: 0,
        ways: Ways::NONE,
        may: 0,
        pin_page: 0,
        pin_delta: 0,
        selectors: [0; 2],
    };
}

/// What of it the frame has.
const EXCHANGED: [(i32, usize); 9] = [
    (slot::TLB, offset_of!(SideState, tlb)),
    (slot::HINTS, offset_of!(SideState, hints)),
    (slot::KEYS, offset_of!(SideState, high_keys)),
    (slot::KEYS + 8, offset_of!(SideState, low_keys)),
    (slot::JUMPS, offset_of!(SideState, ways.jumps)),
    (slot::MAY, offset_of!(SideState, may)),
    KEPT[0],
    KEPT[1],
    KEPT[2],
];
/// What of that changes while it is there.
const KEPT: [(i32, usize); 3] =
    [PIN[0], PIN[1], (slot::RETURNS, offset_of!(SideState, ways.last_call))];
const PIN: [(i32, usize); 2] = [
    (slot::PIN_PAGE, offset_of!(SideState, pin_page)),
    (slot::PIN_DELTA, offset_of!(SideState, pin_delta)),
];

/// The byte of RFLAGS that AC is in, and its bit there.
const AC_BYTE: i32 = slot::RFLAGS + 2;
const AC_BIT: u8 = (Rflags::AC >> 16) as u8;
/// The flags that SYSRET may set here.
const SYSRET_FLAGS: u64 = Rflags::STATUS | Rflags::IF | Rflags::DF | Rflags::ID;

/// Where in [`Context::sides`] a side is, and what [`Context::side`] says of it.
pub(crate) const SIDES: [Side; 2] = [Side::Program, Side::Kernel];

pub(crate) fn index_of(side: Side) -> usize {
    usize::from(side == Side::Kernel)
}

impl Context {
    /// What running code may do, found out anew where that may have changed.
    pub(crate) fn note_rights(&mut self, cpu: &Cpu) {
        let rights = cpu.rights();
        if self.rights != Some(rights) {
            self.find_rights(cpu);
            self.rights = Some(rights);
        }
        self.may = self.may_by_rights;
    }

    #[cold]
    fn find_rights(&mut self, cpu: &Cpu) {
        let calls = cpu.system_calls();
        let word = |cpl: u8, iopl: u64| {
            let rights = [
                (may::CLI, u64::from(cpl) <= iopl),
                (may::TSC, cpl == 0 || cpu.may_read_time()),
                (may::CPL0, cpl == 0),
                (may::AC, cpl == 0 && cpu.has_two_views()),
                (may::SYSCALL, cpl == 3 && calls.is_some()),
                (may::SYSRET, cpl == 0 && calls.is_some()),
                (may::BASES, cpu.has_base_instructions()),
            ];
            rights.iter().map(|(byte, may)| u64::from(*may) << (8 * byte)).sum()
        };
        self.may_by_rights = word(cpu.cpl(), cpu.rflags() >> Rflags::IOPL_SHIFT & 3);
        for (state, side) in self.sides.iter_mut().zip(SIDES) {
            // Only a guest with IOPL 0 has its system calls made here.
            state.may = word(if side == Side::Program { 3 } else { 0 }, 0);
            state.selectors = cpu.side_selectors(side).map(u64::from);
        }
        if let Some(calls) = calls {
            self.call_target = calls.target;
            self.kept_flags = calls.kept;
        }
    }

    /// What both sides of a system call have of the TLB. No page is pinned yet; `nowhere` stands in.
    pub(crate) fn note_sides(&mut self, cpu: &Cpu, hints: &Hints, nowhere: (u64, u64)) {
        for (state, side) in self.sides.iter_mut().zip(SIDES) {
            let (tlb, view, second) = cpu.side_tlb(side);
            state.tlb = tlb as u64;
            state.hints = hints.of_view(view);
            state.high_keys = second.high_keys;
            state.low_keys = second.low_keys;
            (state.pin_page, state.pin_delta) = (nowhere.0, nowhere.1.wrapping_sub(nowhere.0));
        }
        self.pin_before_ac = [self.sides[0].pin_page, self.sides[0].pin_delta];
    }

    pub(crate) fn side_mut(&mut self, side: Side) -> &mut SideState {
        &mut self.sides[index_of(side)]
    }

    /// Has the CPU follow to where SYSCALL, SYSRET, STAC and CLAC have led. It then has RFLAGS, too.
    pub(crate) fn bring(&mut self, cpu: &mut Cpu) {
        let side = std::mem::take(&mut self.side).checked_sub(1).map(|n| SIDES[n as usize]);
        cpu.follow(side, self.rflags);
    }
}

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SideStubs {
    /// Jumped to with the site stored: they do the instruction and go on where it leads.
    pub(crate) syscall: u64,
    pub(crate) sysret: u64,
    /// Called. They clobber S, T and RFLAGS.
    stac: u64,
    clac: u64,
}

pub(crate) fn emit_stubs(e: &mut Emitter, far_by_other: u64) -> SideStubs {
    let syscall = e.here();
    let Home::Slot(r11) = home(11) else { unreachable!("R11 is in the frame") };
    e.load(T, reg::RSP, slot::RFLAGS);
    e.overflow_from_home(S);
    e.alu(Alu::Or, T, S);
    e.others_from_home(S);
    e.alu(Alu::Or, T, S);
    e.store(reg::RSP, r11, T);
    e.load(S, reg::RSP, slot::SHARED);
    e.alu_mem(Alu::And, T, S, at!(kept_flags));
    set_flags(e);
    exchange(e, Side::Program, Side::Kernel);
    e.load(T, T, at!(call_target));
    // Each has a jump of its own, as in translations.
    e.jump_by_table().fill(e);
    e.jmp_to(far_by_other);

    let sysret = e.here();
    e.load(T, reg::RSP, r11);
    e.alu_imm(Alu::And, T, SYSRET_FLAGS as i32);
    e.alu_imm(Alu::Or, T, Rflags::FIXED as i32);
    set_flags(e);
    exchange(e, Side::Kernel, Side::Program);
    e.mov(T, reg::RCX);
    e.jump_by_table().fill(e);
    e.jmp_to(far_by_other);

    let [stac, clac] = [true, false].map(|sets| emit_ac(e, sets));
    SideStubs { syscall, sysret, stac, clac }
}

/// RFLAGS = T, whose arithmetic flags go home; S and T are lost.
fn set_flags(e: &mut Emitter) {
    e.mov(reg::RAX, T);
    e.shift(4, reg::RAX, 8);
    e.alu_imm(Alu::And, reg::RAX, 0xd500);
    e.mov(S, T);
    e.shift(5, S, 11);
    e.alu_imm(Alu::And, S, 1);
    e.alu(Alu::Or, reg::RAX, S);
    e.alu_imm(Alu::And, T, !(Rflags::STATUS as i32));
    e.store(reg::RSP, slot::RFLAGS, T);
    e.load(S, reg::RSP, slot::SHARED);
    e.store(S, at!(rflags), T);
}

/// Has the frame show the other side of a system call. T is the context then, S is lost.
fn exchange(e: &mut Emitter, from: Side, to: Side) {
    let of = |side: Side, field: usize| {
        at!(sides) + (size_of::<SideState>() * index_of(side) + field) as i32
    };
    e.load(T, reg::RSP, slot::SHARED);
    for (place, field) in KEPT {
        e.load(S, reg::RSP, place);
        e.store(T, of(from, field), S);
    }
    for (place, field) in EXCHANGED {
        e.load(S, T, of(to, field));
        e.store(reg::RSP, place, S);
    }
    for (number, seg) in [Seg::CS, Seg::SS].into_iter().enumerate() {
        e.load(S, T, of(to, offset_of!(SideState, selectors) + 8 * number));
        e.store(T, at!(selectors) + 8 * seg as i32, S);
    }
    e.store_imm64(T, at!(side), index_of(to) as i32 + 1);
}

/// STAC or CLAC. What may be accessed without AC may be with it, so STAC leaves the pin alone, and CLAC takes back the
/// one of before.
fn emit_ac(e: &mut Emitter, sets: bool) -> u64 {
    const BELOW: i32 = 8;
    let start = e.here();
    e.test_byte(reg::RSP, BELOW + AC_BYTE, AC_BIT);
    let is_so = e.jcc(if sets { cc::NE } else { cc::E });
    let step = if sets { 1 } else { -1 };
    e.add_imm_mem(reg::RSP, BELOW + slot::RFLAGS, step * Rflags::AC as i32);
    e.add_imm_mem(reg::RSP, BELOW + slot::TLB, step * TLB_VIEW_BYTES);
    e.add_imm_mem(reg::RSP, BELOW + slot::HINTS, step * VIEW_BYTES);
    e.add_imm_mem(reg::RSP, BELOW + slot::KEYS, step);
    e.add_imm_mem(reg::RSP, BELOW + slot::KEYS + 8, step);
    e.load(T, reg::RSP, BELOW + slot::SHARED);
    e.load(S, reg::RSP, BELOW + slot::RFLAGS);
    e.store(T, at!(rflags), S);
    for (number, (place, _)) in PIN.into_iter().enumerate() {
        let kept = at!(pin_before_ac) + 8 * number as i32;
        if sets {
            e.load(S, reg::RSP, BELOW + place);
            e.store(T, kept, S);
        } else {
            e.load(S, T, kept);
            e.store(reg::RSP, BELOW + place, S);
        }
    }
    e.fill(is_so);
    e.ret();
    start
}

impl Gen<'_> {
    pub(crate) fn set_ac(&mut self, index: usize, sets: bool) {
        self.leave_unless(index, slot::MAY + may::AC);
        self.held = None;
        let sides = self.stubs.sides;
        self.e.call_to(if sets { sides.stac } else { sides.clac });
    }

    pub(crate) fn syscall(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        self.settle_flags();
        self.leave_unless(index, slot::MAY + may::SYSCALL);
        self.page_address(reg::RCX, u64::from(insn.next));
        self.go_to_side(insn.at, self.stubs.sides.syscall);
    }

    pub(crate) fn sysret(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        self.settle_flags();
        self.leave_unless(index, slot::MAY + may::SYSRET);
        self.leave_unless(index, slot::NONE_WAITS);
        let r11 = self.in_register(11, T);
        const OTHERS: u64 = Rflags::ALL & !SYSRET_FLAGS & !Rflags::FIXED;
        self.e.test_imm_sized(4, r11, OTHERS as i32);
        let mut holes = vec![self.e.jcc(cc::NE)];
        self.e.test_byte(reg::RSP, AC_BYTE, AC_BIT);
        holes.push(self.e.jcc(cc::NE));
        self.e.mov(S, reg::RCX);
        self.e.shift(5, S, 47);
        holes.push(self.e.jcc(cc::NE));
        self.leave_before(index, holes);
        self.go_to_side(insn.at, self.stubs.sides.sysret);
    }

    fn go_to_side(&mut self, at: u16, stub: u64) {
        let site = self.site(at, 0, Exit::Indirect { rsp: 0 });
        self.e.go_on_in(stub, site);
    }

    /// MOV from a control register, by its place in [`Context::control`].
    pub(crate) fn read_control(&mut self, index: usize, place: usize) {
        let number = self.trace.insns[index].ins.op0_register().number() as u8;
        self.leave_unless(index, slot::MAY + may::CPL0);
        self.e.load(T, reg::RSP, slot::SHARED);
        self.e.load(T, T, at!(control) + 8 * place as i32);
        self.set_gpr(number, T);
    }

    /// RDFSBASE and RDGSBASE.
    pub(crate) fn read_base(&mut self, index: usize, base: i32) {
        let number = self.trace.insns[index].ins.op0_register().number() as u8;
        self.leave_unless(index, slot::MAY + may::BASES);
        self.e.load(T, reg::RSP, base);
        self.set_gpr(number, T);
    }

    /// WRFSBASE and WRGSBASE. Leaves if the base is not canonical.
    pub(crate) fn write_base(&mut self, index: usize, base: i32) {
        let number = self.trace.insns[index].ins.op0_register().number() as u8;
        self.leave_unless(index, slot::MAY + may::BASES);
        self.held = None;
        let value = self.in_register(number, S);
        self.leave_unless_canonical(index, value, T);
        self.e.store(reg::RSP, base, value);
    }
}
