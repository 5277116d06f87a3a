//! Instructions of kernels that translated code does itself: they come too often to be left to the interpreter.

use x86::Rflags;
use x86::iced::{Instruction, Mnemonic};

use crate::emit::{Alu, RegMem, cc, reg};
use crate::frame::{Home, S, T, at, home, slot};
use crate::scan::operand_bytes;
use crate::sides::may;
use crate::translate::{FlagState, Gen};
use crate::translator::MXCSR_MASKS;

/// Bits of MXCSR that translated code may set as it likes: flags, DAZ, rounding, FTZ.
const MXCSR_FREE: i32 = 0xe07f;

impl Gen<'_> {
    /// Leaves before instruction `index` if a byte in the frame is 0.
    pub(crate) fn leave_unless(&mut self, index: usize, allowed: i32) {
        self.native = false;
        self.e.test_byte(reg::RSP, allowed, 1);
        let refused = self.e.jcc(cc::E);
        self.leave_before(index, vec![refused]);
    }

    pub(crate) fn cli(&mut self, index: usize) {
        self.leave_unless(index, slot::MAY + may::CLI);
        self.e.and_imm_mem(reg::RSP, slot::RFLAGS, !(Rflags::IF as i32));
    }

    /// STI, with an instruction behind it that is sure to be done: so its shadow is over before anybody could see it.
    pub(crate) fn sti(&mut self, index: usize) {
        self.leave_unless(index, slot::MAY + may::CLI);
        self.leave_unless(index, slot::NONE_WAITS);
        self.e.or_imm_mem(reg::RSP, slot::RFLAGS, Rflags::IF as i32);
    }

    pub(crate) fn swapgs(&mut self, index: usize) {
        self.leave_unless(index, slot::MAY + may::CPL0);
        self.held = None;
        self.e.load(S, reg::RSP, slot::GS);
        self.e.load(T, reg::RSP, slot::KERNEL_GS);
        self.e.store(reg::RSP, slot::KERNEL_GS, S);
        self.e.store(reg::RSP, slot::GS, T);
    }

    pub(crate) fn cld(&mut self) {
        self.native = false;
        self.e.and_imm_mem(reg::RSP, slot::RFLAGS, !(Rflags::DF as i32));
    }

    /// LDMXCSR. Leaves if an exception would be unmasked or a reserved bit set.
    pub(crate) fn load_mxcsr(&mut self, index: usize) {
        let place = self.operand(index).expect("its operand is in memory");
        self.native = false;
        self.held = None;
        self.e.load_sized(4, T, place);
        self.e.mov(S, T);
        self.e.alu_imm_sized(Alu::And, 4, S, !MXCSR_FREE);
        self.e.alu_imm_sized(Alu::Cmp, 4, S, MXCSR_MASKS as i32);
        let other = self.e.jcc(cc::NE);
        self.leave_before(index, vec![other]);
        self.e.store(reg::RSP, slot::TARGET, T);
        self.e.ldmxcsr(reg::RSP, slot::TARGET);
    }

    /// RDTSC and RDTSCP.
    pub(crate) fn time_stamp(&mut self, index: usize, with_aux: bool) {
        self.leave_unless(index, slot::MAY + may::TSC);
        self.held = None;
        let undo = self.undo(index);
        self.e.lea(S, reg::R15, i32::from(undo));
        self.e.call_to(self.stubs.time_stamp);
        self.e.mov32(reg::R8, S);
        self.e.shift(5, S, 32);
        self.e.mov(reg::RDX, S);
        if with_aux {
            self.e.load(T, reg::RSP, slot::SHARED);
            self.e.load(T, T, at!(tsc_aux));
            self.e.mov32(reg::RCX, T);
        }
    }

    /// MOV from a segment register.
    pub(crate) fn selector(&mut self, ins: &Instruction) {
        let (to, from) = (ins.op0_register(), ins.op1_register());
        self.e.load(T, reg::RSP, slot::SHARED);
        let place = at!(selectors) + 8 * from.number() as i32;
        self.e.load(T, T, place);
        match (to.size(), home(to.full_register().number() as u8)) {
            (2, Home::Reg(r)) => self.e.mov_sized(2, RegMem::Reg(r), T),
            (2, Home::Slot(at)) => self.e.mov_sized(2, RegMem::Mem(reg::RSP, at), T),
            (_, Home::Reg(r)) => self.e.mov(r, T),
            (_, Home::Slot(at)) => self.e.store(reg::RSP, at, T),
        }
    }

    /// BT, BTS, BTR and BTC of a bit at any distance from the operand, whose number is in a register.
    pub(crate) fn bit_string(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        let ins = insn.ins;
        let bytes = operand_bytes(&ins);
        self.settle_flags();
        // The access is checked by itself, so its address may be anything.
        self.bit_address(index, ins.op1_register().full_register().number() as u8);
        let opcode = match ins.mnemonic() {
            Mnemonic::Bt => 0xa3,
            Mnemonic::Bts => 0xab,
            Mnemonic::Btr => 0xb3,
            _ => 0xbb,
        };
        self.among_flags(index, |this| this.e.two_byte(bytes, opcode, T, RegMem::Mem(S, 0)));
    }

    /// CMPXCHG16B: writes ZF alone.
    pub(crate) fn cmpxchg_wide(&mut self, index: usize) {
        self.settle_flags();
        let place = self.operand(index);
        self.among_flags(index, |this| {
            this.e.mov(reg::RAX, reg::R8);
            this.encode(index, place);
            this.e.mov(reg::R8, reg::RAX);
        });
    }

    /// Emits what writes some flags and leaves the others alone. They are settled, or nobody wants them.
    fn among_flags(&mut self, index: usize, emit: impl FnOnce(&mut Self)) {
        let live = self.trace.insns[index].live != 0;
        if live {
            self.e.restore_flags();
        }
        emit(self);
        if live {
            self.e.save_flags();
        }
        self.flags = if live { FlagState::Home } else { FlagState::Dead };
        self.native = live;
    }
}
