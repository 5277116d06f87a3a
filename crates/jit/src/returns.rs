//! Where returns lead: a ring of the last calls, each with its return address and the code there, so that a return that
//! goes where it came from finds its place in one line of the host's cache. One that does not looks into the jump table, as
//! other indirect branches do.

use std::mem::offset_of;

use crate::emit::{Alu, Hole, cc, reg};
use crate::frame::{S, T, slot};
use crate::scan::page_place;
use crate::translate::{Cold, Exit, Gen};

/// Calls that are remembered.
const CALLS: usize = 2048;

/// A call.
#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    /// Where it returns to, on the page of the call.
    linear: u64,
    code: u64,
    /// [`slot::KEY`] of the call.
    key: u64,
    _unused: u64,
}

mod field {
    use super::{Call, offset_of};

    pub(super) const LINEAR: i32 = offset_of!(Call, linear) as i32;
    pub(super) const CODE: i32 = offset_of!(Call, code) as i32;
    pub(super) const KEY: i32 = offset_of!(Call, key) as i32;
    pub(super) const BYTES: i8 = size_of::<Call>() as i8;
}

/// As large as its alignment, which is 2^16: a pointer into it goes round when its lower 16 bits do.
#[repr(C, align(65536))]
pub(crate) struct Returns([Call; CALLS]);

impl Returns {
    pub(crate) fn new() -> Box<Returns> {
        const { assert!(size_of::<Returns>() == 1 << 16) };
        Box::new(Returns([Call { linear: 0, code: 0, key: 0, _unused: 0 }; CALLS]))
    }

    /// The place of the last call, as translated code has it.
    pub(crate) fn start(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Forgets all calls. `to_zero` is code that goes on at linear address 0 by the translator: with that, an entry that nobody
    /// has written is right, too.
    pub(crate) fn clear(&mut self, to_zero: u64) {
        self.0.fill(Call { linear: 0, code: to_zero, key: 0, _unused: 0 });
    }
}

/// A return that does not lead to where the last call came from.
pub(crate) struct Astray {
    hole: Hole,
    /// Where the last call is looked at, with its place in S.
    again: u64,
    site: u32,
}

impl Gen<'_> {
    /// Remembers the call that is instruction `index`, with the return address in T.
    pub(crate) fn remember_call(&mut self, index: usize) {
        let insn = &self.trace.insns[index];
        let (at, next) = (insn.at, insn.next);
        // What the next page holds is not known under this key.
        let Some(place) = page_place(u64::from(next)) else { return };
        self.held = None;
        self.native = false;
        self.e.load(S, reg::RSP, slot::RETURNS);
        self.e.add_low16(S, field::BYTES);
        self.e.store(reg::RSP, slot::RETURNS, S);
        self.e.store(S, field::LINEAR, T);
        self.e.load(T, reg::RSP, slot::KEY);
        self.e.store(S, field::KEY, T);
        // Leads to a way out as long as the translator has not found the code.
        let hole = self.e.lea_rip(T);
        self.e.store(S, field::CODE, T);
        if let Some(known) = (self.known)(place) {
            return self.e.fill_to(hole, known);
        }
        self.cold.push(Cold::UnlinkedReturn { hole, at, target: place });
    }

    /// Goes on at the linear address in T, to which the return at `at` leads.
    pub(crate) fn return_to(&mut self, at: u16, exit: Exit) {
        let site = self.site(at, 0, exit);
        self.e.load(S, reg::RSP, slot::RETURNS);
        let again = self.e.here();
        self.e.alu_mem(Alu::Cmp, T, S, field::LINEAR);
        let hole = self.e.jcc(cc::NE);
        self.e.alu_imm(Alu::And, T, -4096);
        self.e.store(reg::RSP, slot::PAGE, T);
        self.e.load(T, S, field::KEY);
        self.e.store(reg::RSP, slot::KEY, T);
        self.e.load(T, S, field::CODE);
        self.e.add_low16(S, -field::BYTES);
        self.e.store(reg::RSP, slot::RETURNS, S);
        self.e.jmp_reg(T);
        self.cold.push(Cold::Astray(Astray { hole, again, site }));
    }

    /// Looks whether the return leads to where the call before came from, because the interpreter has done the
    /// one between, and into the jump table otherwise.
    pub(crate) fn find_way(&mut self, astray: Astray) {
        let Astray { hole, again, site } = astray;
        self.e.fill(hole);
        self.e.add_low16(S, -field::BYTES);
        self.e.alu_mem(Alu::Cmp, T, S, field::LINEAR);
        let same = self.e.jcc(cc::E);
        self.e.fill_to(same, again);
        self.far_by(site);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_into_the_ring_goes_round_with_its_lower_16_bits() {
        let returns = Returns::new();
        assert_eq!(returns.start() & 0xffff, 0);
        assert_eq!(CALLS * field::BYTES as usize, 1 << 16);
    }
}
