//! REP MOVS and REP STOS by the host's own, for what lies in one page on each side. Everything longer, downwards or
//! beyond the budget is the interpreter's. A step is an iteration, as `cpu::run` defines it.

use x86::iced::{Instruction, Mnemonic};

use crate::emit::{Alu, Hole, cc, reg};
use crate::frame::{BUDGET, S, T, slot};
use crate::memory::TLB_DISTANCE;
use crate::scan::Access;
use crate::translate::{Cold, Gen};

impl Gen<'_> {
    /// REP MOVS or REP STOS, instruction `index`.
    pub(crate) fn repeat(&mut self, index: usize) {
        let ins = self.trace.insns[index].ins;
        let (size, opcode) = element(&ins);
        let scale = size.trailing_zeros() as u8;
        let moves = opcode & 0xfe == 0xa4;
        self.native = false;
        self.held = None;
        // DF is bit 10.
        self.e.test_byte(reg::RSP, slot::RFLAGS + 1, 1 << 2);
        let mut holes = vec![self.e.jcc(cc::NE)];
        self.e.test(reg::RCX, reg::RCX);
        let done = self.e.jcc(cc::E);
        self.e.alu_imm(Alu::Cmp, reg::RCX, 4096 >> scale);
        holes.push(self.e.jcc(cc::A));
        // The first iteration's step is the one that every instruction was charged.
        self.e.lea(T, reg::RCX, -1);
        self.e.alu(Alu::Cmp, BUDGET, T);
        holes.push(self.e.jcc(cc::L));
        if moves {
            self.element_page(index, reg::RSI, false, &mut holes);
            self.e.store(reg::RSP, slot::TARGET, T);
        }
        // A walk sets Accessed and Dirty, and an element that is moved may be the very table entry: it is read before.
        self.element_page(index, reg::RDI, true, &mut holes);
        self.leave_before(index, holes);

        self.e.alu(Alu::Sub, BUDGET, reg::RCX);
        self.e.alu_imm(Alu::Add, BUDGET, 1);
        self.e.store(reg::RSP, slot::REPEATED, reg::RDI);
        self.e.store(reg::RSP, slot::REPEATED + 8, reg::RCX);
        self.e.mov(reg::RDI, T);
        if moves {
            self.e.mov(S, reg::RSI);
            self.e.load(reg::RSI, reg::RSP, slot::TARGET);
            self.e.repeat(size, opcode);
            self.e.mov(reg::RSI, S);
        } else {
            self.e.mov(S, reg::RAX);
            self.e.mov(reg::RAX, reg::R8);
            self.e.repeat(size, opcode);
            self.e.mov(reg::RAX, S);
        }
        self.e.load(T, reg::RSP, slot::REPEATED + 8);
        if moves {
            self.e.lea_index(reg::RSI, Some(reg::RSI), T, scale, 0);
        }
        self.e.load(reg::RDI, reg::RSP, slot::REPEATED);
        self.e.lea_index(reg::RDI, Some(reg::RDI), T, scale, 0);
        self.e.fill(done);
    }

    /// T = host address of RCX elements at the linear address in `from`, at most a page of them, if no branch
    /// is taken: if they are on one page and may be accessed. Uses S. Where something was read before that is stored there,
    /// the interpreter walks.
    fn element_page(&mut self, index: usize, from: u8, write: bool, holes: &mut Vec<Hole>) {
        let (size, opcode) = element(&self.trace.insns[index].ins);
        let scale = size.trailing_zeros() as u8;
        let moves = opcode & 0xfe == 0xa4;
        self.e.mov(S, from);
        self.e.alu_imm(Alu::And, S, 0xfff);
        self.e.lea_index(S, Some(S), reg::RCX, scale, 0);
        self.e.alu_imm(Alu::Cmp, S, 4096);
        holes.push(self.e.jcc(cc::A));
        let again = self.e.here();
        self.e.mov(S, from);
        // The first element is accessed next, whoever does it.
        let access = Access { bytes: 1, write, aligned: false };
        let hole = self.look_up(access, 1);
        if moves && write {
            let site = self.site_before(index);
            self.cold.push(Cold::Known { hole, back: again, access, flags: self.flags, site });
        } else {
            self.slow_path(index, hole, again, access, None);
        }
        self.e.load(T, T, TLB_DISTANCE);
        self.e.alu(Alu::Add, T, from);
    }
}

/// Size of an element and the opcode for elements of 4 bytes, or of one.
fn element(ins: &Instruction) -> (u32, u8) {
    match ins.mnemonic() {
        Mnemonic::Movsb => (1, 0xa4),
        Mnemonic::Movsw => (2, 0xa5),
        Mnemonic::Movsd => (4, 0xa5),
        Mnemonic::Movsq => (8, 0xa5),
        Mnemonic::Stosb => (1, 0xaa),
        Mnemonic::Stosw => (2, 0xab),
        Mnemonic::Stosd => (4, 0xab),
        _ => (8, 0xab),
    }
}
