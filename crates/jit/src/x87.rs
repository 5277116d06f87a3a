//! The x87: the host's own, which holds the guest's while translated code uses it.
//!
//! It is loaded by the first x87 instruction that translated code comes to ([`emit_hold`]) and stored again when
//! translated code is left ([`emit_release`]); what is called from there finds it empty. All of that is done only where
//! every exception is masked, so that no instruction here can fault for its values. The control word and the two pointers
//! are kept apart: the first because it is often read and written alone, the others because the host's are its own.

use cpu::{F80, X87State};
use x86::iced::Code;

use crate::emit::{Alu, Emitter, RegMem, cc, reg};
use crate::frame::{Home, S, T, at, call_out, home, slot};
use crate::probe::HOST_X87;
use crate::scan::{Insn, Kind};
use crate::translate::{Cold, Gen};

/// What an instruction does with the x87.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Computes, loads or stores; sets the pointers.
    Compute,
    /// FCOMI and its like, which also do that.
    CompareFlags,
    /// FNSTSW.
    StoreStatus,
    /// FLDCW.
    LoadControl,
    /// FNSTCW.
    StoreControl,
    Wait,
}

impl Role {
    fn sets_pointers(self) -> bool {
        matches!(self, Role::Compute | Role::CompareFlags)
    }

    /// Needs the guest's x87 in the host's.
    fn holds(self) -> bool {
        self.sets_pointers() || self == Role::StoreStatus
    }
}

/// The forms that every host does as the manual and `docs/undefined.md` define them. Not here: aliases without a
/// mnemonic of their own, BCD, remainders, scaling, functions, and what loads or stores the whole state.
pub(crate) fn role_of(code: Code) -> Option<Role> {
    let host = *HOST_X87;
    if !host.most {
        return None;
    }
    Some(match code {
        Code::Fnstsw_m2byte | Code::Fnstsw_AX => Role::StoreStatus,
        Code::Fldcw_m2byte => Role::LoadControl,
        Code::Fnstcw_m2byte => Role::StoreControl,
        Code::Wait => Role::Wait,
        Code::Fcomi_st0_sti
        | Code::Fucomi_st0_sti
        | Code::Fcomip_st0_sti
        | Code::Fucomip_st0_sti => Role::CompareFlags,
        Code::Fld_sti if host.copies => Role::Compute,
        Code::Fcmovb_st0_sti
        | Code::Fcmovnb_st0_sti
        | Code::Fcmove_st0_sti
        | Code::Fcmovne_st0_sti
        | Code::Fcmovu_st0_sti
        | Code::Fcmovnu_st0_sti
        | Code::Fcmovbe_st0_sti
        | Code::Fcmovnbe_st0_sti
            if host.moves =>
        {
            Role::Compute
        }
        Code::Fadd_m32fp
        | Code::Fadd_m64fp
        | Code::Fiadd_m16int
        | Code::Fiadd_m32int
        | Code::Fadd_st0_sti
        | Code::Fadd_sti_st0
        | Code::Faddp_sti_st0
        | Code::Fmul_m32fp
        | Code::Fmul_m64fp
        | Code::Fimul_m16int
        | Code::Fimul_m32int
        | Code::Fmul_st0_sti
        | Code::Fmul_sti_st0
        | Code::Fmulp_sti_st0
        | Code::Fsub_m32fp
        | Code::Fsub_m64fp
        | Code::Fisub_m16int
        | Code::Fisub_m32int
        | Code::Fsub_st0_sti
        | Code::Fsub_sti_st0
        | Code::Fsubp_sti_st0
        | Code::Fsubr_m32fp
        | Code::Fsubr_m64fp
        | Code::Fisubr_m16int
        | Code::Fisubr_m32int
        | Code::Fsubr_st0_sti
        | Code::Fsubr_sti_st0
        | Code::Fsubrp_sti_st0
        | Code::Fdiv_m32fp
        | Code::Fdiv_m64fp
        | Code::Fidiv_m16int
        | Code::Fidiv_m32int
        | Code::Fdiv_st0_sti
        | Code::Fdiv_sti_st0
        | Code::Fdivp_sti_st0
        | Code::Fdivr_m32fp
        | Code::Fdivr_m64fp
        | Code::Fidivr_m16int
        | Code::Fidivr_m32int
        | Code::Fdivr_st0_sti
        | Code::Fdivr_sti_st0
        | Code::Fdivrp_sti_st0
        | Code::Fcom_m32fp
        | Code::Fcom_m64fp
        | Code::Ficom_m16int
        | Code::Ficom_m32int
        | Code::Fcomp_m32fp
        | Code::Fcomp_m64fp
        | Code::Ficomp_m16int
        | Code::Ficomp_m32int
        | Code::Fcom_st0_sti
        | Code::Fcomp_st0_sti
        | Code::Fucom_st0_sti
        | Code::Fucomp_st0_sti
        | Code::Fcompp
        | Code::Fucompp
        | Code::Ftst
        | Code::Fxam
        | Code::Fld_m32fp
        | Code::Fld_m64fp
        | Code::Fld_m80fp
        | Code::Fild_m16int
        | Code::Fild_m32int
        | Code::Fild_m64int
        | Code::Fst_m32fp
        | Code::Fst_m64fp
        | Code::Fstp_m32fp
        | Code::Fstp_m64fp
        | Code::Fstp_m80fp
        | Code::Fist_m16int
        | Code::Fist_m32int
        | Code::Fistp_m16int
        | Code::Fistp_m32int
        | Code::Fistp_m64int
        | Code::Fisttp_m16int
        | Code::Fisttp_m32int
        | Code::Fisttp_m64int
        | Code::Fst_sti
        | Code::Fstp_sti
        | Code::Fxch_st0_sti
        | Code::Fldl2t
        | Code::Fldl2e
        | Code::Fldpi
        | Code::Fldlg2
        | Code::Fldln2
        | Code::Fld1
        | Code::Fldz
        | Code::Fchs
        | Code::Fabs
        | Code::Fsqrt
        | Code::Frndint
        | Code::Ffree_sti
        | Code::Fincstp
        | Code::Fdecstp
        | Code::Fnop => Role::Compute,
        _ => return None,
    })
}

/// Behind the first instruction of a trace that needs the x87, others leave only for their memory operands.
pub(crate) fn mark_exits(insns: &mut [Insn]) {
    let mut is_held = false;
    for insn in insns {
        if let Kind::X87(role) = insn.kind
            && role.holds()
        {
            insn.exits = !is_held || insn.access.is_some();
            is_held = true;
        }
    }
}

/// What the translation knows at the instruction that it is at.
#[derive(Clone, Copy, Default)]
pub(crate) struct Known {
    /// The host's x87 is the guest's.
    is_held: bool,
    /// The last x87 instruction was on this page.
    is_page_noted: bool,
}

impl Gen<'_> {
    /// An x87 instruction, number `index`.
    pub(crate) fn x87(&mut self, index: usize, role: Role) {
        match role {
            Role::Compute | Role::CompareFlags => self.x87_compute(index, role),
            Role::StoreStatus => self.store_x87_status(index),
            Role::LoadControl => self.load_x87_control(index),
            Role::StoreControl => self.store_x87_control(index),
            Role::Wait => {
                if !self.x87.is_held {
                    self.leave_unless_x87_is_allowed(index);
                }
            }
        }
    }

    fn x87_compute(&mut self, index: usize, role: Role) {
        self.hold_x87(index);
        let place = self.operand(index);
        let (ins, reads) = (self.trace.insns[index].ins, self.trace.insns[index].reads);
        self.want_flags(reads);
        if role == Role::CompareFlags {
            self.clear_c1();
        }
        self.encode(index, place);
        if ins.code() == Code::Ffree_sti {
            self.clear_c1();
        }
        if role == Role::CompareFlags {
            self.note_flags(index, false);
        }
        if place.is_some() {
            let (held, base) = (self.held, ins.memory_base());
            self.effective_address(&ins, T, 0, 8);
            self.e.store(reg::RSP, slot::X87_OPERAND, T);
            let uses_scratch = base.is_gpr() && matches!(home(base.number() as u8), Home::Slot(_));
            self.held = held.filter(|_| !uses_scratch);
        }
        // Nobody can look before the next instruction has noted its own place.
        let is_overwritten = self.trace.insns.get(index + 1).is_some_and(
            |next| matches!(next.kind, Kind::X87(role) if role.sets_pointers() && !next.exits),
        );
        if is_overwritten {
            return;
        }
        if !self.x87.is_page_noted {
            self.e.load(T, reg::RSP, slot::PAGE);
            self.e.store(reg::RSP, slot::X87_PAGE, T);
            self.x87.is_page_noted = true;
        }
        let at = self.trace.insns[index].at;
        self.e.mov_imm_sized(2, RegMem::Mem(reg::RSP, slot::X87_AT), i32::from(at));
    }

    /// For what leaves C1 alone on some hosts: FINCSTP, FDECSTP.
    fn clear_c1(&mut self) {
        self.e.raw(&[0xd9, 0xf7, 0xd9, 0xf6]);
    }

    fn store_x87_status(&mut self, index: usize) {
        self.hold_x87(index);
        let place = self.operand(index);
        if place.is_some() {
            self.encode(index, place);
        } else {
            // FNSTSW AX would write the host's AX.
            self.e.x87_mem(0xdd, 7, reg::RSP, slot::TARGET);
            self.e.load_sized(2, reg::R8, RegMem::Mem(reg::RSP, slot::TARGET));
        }
    }

    /// Leaves what unmasks an exception to the interpreter.
    fn load_x87_control(&mut self, index: usize) {
        if !self.x87.is_held {
            self.leave_unless_x87_is_allowed(index);
        }
        let place = self.operand(index).expect("a memory operand");
        self.native = false;
        self.e.load_sized(2, T, place);
        self.held = None;
        self.e.alu_imm(Alu::And, T, CONTROL_MASK);
        self.e.alu_imm(Alu::Or, T, CONTROL_FIXED);
        self.e.mov(S, T);
        self.e.alu_imm(Alu::And, S, MASKS);
        self.e.alu_imm(Alu::Cmp, S, MASKS);
        let unmasks = self.e.jcc(cc::NE);
        self.leave_before(index, vec![unmasks]);
        self.e.load(S, reg::RSP, slot::SHARED);
        self.e.store(S, at!(x87.control), T);
        self.e.test_byte(reg::RSP, slot::X87_HELD, 1);
        let elsewhere = self.e.jcc(cc::E);
        self.e.x87_mem(0xd9, 5, S, at!(x87.control));
        self.e.fill(elsewhere);
    }

    fn store_x87_control(&mut self, index: usize) {
        let place = self.operand(index).expect("a memory operand");
        self.e.load(T, reg::RSP, slot::SHARED);
        self.e.load(T, T, at!(x87.control));
        self.e.mov_sized(2, place, T);
    }

    fn leave_unless_x87_is_allowed(&mut self, index: usize) {
        self.native = false;
        self.e.load(T, reg::RSP, slot::SHARED);
        self.e.test_byte(T, at!(x87.is_allowed), 1);
        let refused = self.e.jcc(cc::E);
        self.leave_before(index, vec![refused]);
    }

    /// Has the guest's x87 in the host's.
    fn hold_x87(&mut self, index: usize) {
        if self.x87.is_held {
            return;
        }
        self.x87.is_held = true;
        self.native = false;
        self.held = None;
        self.e.test_byte(reg::RSP, slot::X87_HELD, 1);
        let hole = self.e.jcc(cc::E);
        let back = self.e.here();
        let site = self.site_before(index);
        self.cold.push(Cold::HoldX87 { hole, back, flags: self.flags, site });
    }
}

/// The stub [`crate::frame::Stubs::hold_x87`].
pub(crate) fn emit_hold(e: &mut Emitter, fill: u64) -> u64 {
    // The return address lies below the frame.
    const BELOW: i32 = 8;
    let fill = call_out(e, fill, BELOW + 8);
    let start = e.here();
    e.load(T, reg::RSP, BELOW + slot::SHARED);
    e.test_byte(T, at!(x87.is_newer), 1);
    let is_filled = e.jcc(cc::NE);
    e.test_byte(T, at!(x87.is_allowed), 1);
    let refused = e.jcc(cc::E);
    e.push(T);
    e.call_to(fill);
    e.pop(T);
    e.fill(is_filled);
    e.x87_mem(0xdd, 4, T, at!(x87.image));
    e.x87_mem(0xd9, 5, T, at!(x87.control));
    for (to, from) in POINTERS {
        e.load(S, T, from);
        e.store(reg::RSP, BELOW + to, S);
    }
    e.mov_imm32(S, 1);
    e.store(reg::RSP, BELOW + slot::X87_HELD, S);
    e.ret();
    e.fill(refused);
    e.mov_imm32(S, 0);
    e.ret();
    start
}

/// Takes the guest's x87 out of the host's, for good; T is the context. Clobbers S.
pub(crate) fn emit_release(e: &mut Emitter) {
    e.test_byte(reg::RSP, slot::X87_HELD, 1);
    let elsewhere = e.jcc(cc::E);
    e.x87_mem(0xdd, 6, T, at!(x87.image));
    for (from, to) in POINTERS {
        e.load(S, reg::RSP, from);
        e.store(T, to, S);
    }
    e.store_imm64(T, at!(x87.is_newer), 1);
    e.fill(elsewhere);
}

/// The same for the time of a call, with the frame so far above and the context in a register.
pub(crate) fn emit_set_aside(e: &mut Emitter, below: i32, context: u8) {
    move_while_held(e, below, context, 6);
}

/// The end of [`emit_set_aside`].
pub(crate) fn emit_take_back(e: &mut Emitter, below: i32, context: u8) {
    e.load(context, reg::RSP, below + slot::SHARED);
    move_while_held(e, below, context, 4);
}

/// FNSAVE (number 6) or FRSTOR (4).
fn move_while_held(e: &mut Emitter, below: i32, context: u8, number: u8) {
    e.test_byte(reg::RSP, below + slot::X87_HELD, 1);
    let elsewhere = e.jcc(cc::E);
    e.x87_mem(0xdd, number, context, at!(x87.image));
    e.fill(elsewhere);
}

/// Places in the frame and in the context.
const POINTERS: [(i32, i32); 3] = [
    (slot::X87_PAGE, at!(x87.page)),
    (slot::X87_AT, at!(x87.at)),
    (slot::X87_OPERAND, at!(x87.operand)),
];

/// The exceptions' masks in the control word.
const MASKS: i32 = 0x3f;
/// Bits of the control word that can be 0, and the one that is 1.
const CONTROL_MASK: i32 = 0x1f3f;
const CONTROL_FIXED: i32 = 0x40;
/// ES and B in the status word: an unmasked exception is pending.
const PENDING: u16 = 0x8080;

/// The part of [`crate::frame::Context`] that is about the x87.
#[repr(C)]
pub(crate) struct X87Context {
    image: Image,
    /// The image is newer than the CPU's registers.
    is_newer: u64,
    /// No exception can be raised.
    is_allowed: u64,
    /// The control word, always.
    control: u64,
    /// With the image: what the frame has.
    page: u64,
    at: u64,
    operand: u64,
}

impl X87Context {
    pub(crate) fn new() -> X87Context {
        X87Context {
            image: Image([0; 112]),
            is_newer: 0,
            is_allowed: 0,
            control: 0,
            page: 0,
            at: 0,
            operand: 0,
        }
    }

    /// Before translated code runs.
    pub(crate) fn begin(&mut self, x87: &X87State) {
        let is_masked = i32::from(x87.control) & MASKS == MASKS;
        self.is_allowed = u64::from(is_masked && x87.status & PENDING == 0);
        self.control = x87.control.into();
        self.is_newer = 0;
    }

    /// Makes the image.
    pub(crate) fn fill(&mut self, x87: &X87State) {
        self.image = Image::of(x87);
        (self.page, self.at, self.operand) = (x87.ip, 0, x87.dp);
    }

    /// When the CPU's registers are looked at again.
    pub(crate) fn end(&mut self, x87: &mut X87State) {
        x87.control = self.control as u16;
        if self.is_newer != 0 {
            self.image.put(x87);
            x87.ip = self.page.wrapping_add(self.at);
            x87.dp = self.operand;
        }
    }
}

/// What FNSAVE stores and FRSTOR loads, with 4 bytes that fill it up.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Image([u8; 112]);

/// Where in the image are the status word, the tag word, and ST(0) to ST(7), of 10 bytes each.
const STATUS_AT: usize = 4;
const TAGS_AT: usize = 8;
const REGISTERS_AT: usize = 28;

impl Image {
    pub(crate) fn of(x87: &X87State) -> Image {
        let mut bytes = [0; 112];
        // Of two bits for each register, both are set if it is empty; the host finds the others out by itself.
        let tags = (0..8)
            .filter(|register| x87.full >> register & 1 == 0)
            .fold(0u16, |tags, register| tags | 3 << (2 * register));
        bytes[..2].copy_from_slice(&x87.control.to_le_bytes());
        bytes[STATUS_AT..][..2].copy_from_slice(&x87.status.to_le_bytes());
        bytes[TAGS_AT..][..2].copy_from_slice(&tags.to_le_bytes());
        for i in 0..8 {
            let value = x87.regs[physical(x87.status, i)];
            let place = &mut bytes[REGISTERS_AT + 10 * i..][..10];
            place[..8].copy_from_slice(&value.significand.to_le_bytes());
            place[8..].copy_from_slice(&value.sign_exponent.to_le_bytes());
        }
        Image(bytes)
    }

    /// Sets registers, tags and the status word.
    pub(crate) fn put(&self, x87: &mut X87State) {
        let word = |at: usize| u16::from_le_bytes([self.0[at], self.0[at + 1]]);
        x87.status = word(STATUS_AT);
        let tags = word(TAGS_AT);
        x87.full = (0..8)
            .filter(|register| tags >> (2 * register) & 3 != 3)
            .fold(0, |full, register| full | 1 << register);
        for i in 0..8 {
            let at = REGISTERS_AT + 10 * i;
            let significand = u64::from_le_bytes(std::array::from_fn(|byte| self.0[at + byte]));
            let value = F80 { significand, sign_exponent: word(at + 8) };
            x87.regs[physical(x87.status, i)] = value;
        }
    }

    /// Where it is, for the instructions that store and load it.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

/// Which register ST(i) is.
fn physical(status: u16, i: usize) -> usize {
    (usize::from(status >> 11) + i) & 7
}
