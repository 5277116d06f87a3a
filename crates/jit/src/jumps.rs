//! The jump table: where the code of a linear address is, for jumps whose target is not known when they are translated.
//! Translated code looks into it itself.

use std::io;

use crate::cache::Zeroed;
use crate::emit::{Alu, Emitter, Hole, cc, reg};
use crate::frame::{S, T, slot};

/// Entries for one address space.
const JUMPS: usize = 1 << 16;

/// A link from a linear address to a translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub(crate) linear: u64,
    /// Not 0 in 64-bit mode.
    pub(crate) context: u64,
    pub(crate) code: u64,
    /// What [`slot::KEY`] becomes.
    pub(crate) key: u64,
}

mod field {
    pub(super) const LINEAR: i32 = 0;
    pub(super) const CONTEXT: i32 = 8;
    pub(super) const CODE: i32 = 16;
    pub(super) const KEY: i32 = 24;
    pub(super) const BYTES: i32 = 32;
}

impl Jump {
    /// As memory is at first.
    const NONE: Jump = Jump { linear: 0, context: 0, code: 0, key: 0 };

    fn is_none(&self) -> bool {
        self.context == Jump::NONE.context
    }
}

/// Two entries, each of which also serves addresses of which the other one has too many. They share a line of the host's
/// cache, and their addresses differ in one bit.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pair([Jump; 2]);

/// A table for each address space that the TLB keeps, so that the kernel's jumps are there for all of them. Memory is
/// taken for those that are used.
pub(crate) struct JumpTable {
    pairs: Zeroed<Pair>,
    /// The pairs that are not empty, as long as they are few.
    used: Vec<u32>,
}

/// So many are emptied one by one.
const FEW: usize = 1 << 14;

impl JumpTable {
    pub(crate) fn new(spaces: usize) -> io::Result<JumpTable> {
        // SAFETY: pairs are plain numbers, which may be 0.
        let pairs = unsafe { Zeroed::new(spaces * JUMPS / 2)? };
        Ok(JumpTable { pairs, used: Vec::new() })
    }

    /// The table of an address space, as translated code reads it.
    pub(crate) fn of_space(&self, space: usize) -> u64 {
        self.pairs.get()[space * JUMPS / 2..].as_ptr() as u64
    }

    fn place(space: usize, linear: u64) -> (usize, usize) {
        let index = (linear ^ linear >> 12) as usize & (JUMPS - 1);
        ((space * JUMPS + index) / 2, index & 1)
    }

    /// Where the code is, if the table knows it.
    pub(crate) fn get(&self, space: usize, linear: u64, context: u64) -> Option<u64> {
        let (pair, _) = JumpTable::place(space, linear);
        let known = |jump: &&Jump| jump.linear == linear && jump.context == context;
        self.pairs.get()[pair].0.iter().find(known).map(|jump| jump.code)
    }

    pub(crate) fn insert(&mut self, space: usize, jump: Jump) {
        let (index, first) = JumpTable::place(space, jump.linear);
        let pair = &mut self.pairs.get_mut()[index].0;
        if self.used.len() < FEW && pair.iter().all(Jump::is_none) {
            self.used.push(index as u32);
        }
        if pair[first].linear != jump.linear && !pair[first].is_none() {
            pair[first ^ 1] = pair[first];
        }
        pair[first] = jump;
    }

    pub(crate) fn clear(&mut self) {
        if self.used.len() < FEW {
            let pairs = self.pairs.get_mut();
            let empty = Pair([Jump::NONE; 2]);
            self.used.drain(..).for_each(|index| pairs[index as usize] = empty);
        } else {
            self.pairs.clear();
            self.used.clear();
        }
    }
}

/// The ways out where an entry does not serve.
pub(crate) struct Elsewhere {
    other_address: Hole,
    other_context: Hole,
}

impl Elsewhere {
    /// What is emitted next is done then, with the linear address in T and the entry in S.
    pub(crate) fn fill_with_address(self, e: &mut Emitter) {
        e.fill(self.other_context);
        e.load(T, S, field::LINEAR);
        e.fill(self.other_address);
    }
}

impl Emitter {
    /// Goes on at the linear address in T if its entry serves it.
    pub(crate) fn jump_by_table(&mut self) -> Elsewhere {
        self.mov(S, T);
        self.shift(5, S, 12);
        self.alu(Alu::Xor, S, T);
        self.alu_imm(Alu::And, S, JUMPS as i32 - 1);
        self.shift(4, S, field::BYTES.trailing_zeros() as u8);
        self.alu_mem(Alu::Add, S, reg::RSP, slot::JUMPS);
        self.jump_by_entry()
    }

    /// The same with the other entry of the pair that the one in S belongs to.
    pub(crate) fn jump_by_other_entry(&mut self) -> Elsewhere {
        self.alu_imm(Alu::Xor, S, field::BYTES);
        self.jump_by_entry()
    }

    fn jump_by_entry(&mut self) -> Elsewhere {
        self.alu_mem(Alu::Cmp, T, S, field::LINEAR);
        let other_address = self.jcc(cc::NE);
        self.load(T, reg::RSP, slot::CONTEXT);
        self.alu_mem(Alu::Cmp, T, S, field::CONTEXT);
        let other_context = self.jcc(cc::NE);
        self.take_page(field::LINEAR, field::KEY);
        self.jmp_mem(S, field::CODE);
        Elsewhere { other_address, other_context }
    }

    /// Has the frame know the page that is gone to, by its key and by an address there, which are so far from S. T is lost.
    pub(crate) fn take_page(&mut self, linear: i32, key: i32) {
        self.load(T, S, key);
        self.store(reg::RSP, slot::KEY, T);
        self.load(T, S, linear);
        self.alu_imm(Alu::And, T, -4096);
        self.store(reg::RSP, slot::PAGE, T);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_that_meet_are_both_known() {
        let mut table = JumpTable::new(2).unwrap();
        let jump = |linear, code| Jump { linear, context: 7, code, key: 0 };
        // Both have the same place.
        let (one, other) = (0x1_0000_0000, 0x2_0000_0000);
        table.insert(1, jump(one, 100));
        table.insert(1, jump(other, 200));
        assert_eq!((table.get(1, one, 7), table.get(1, other, 7)), (Some(100), Some(200)));
        assert_eq!((table.get(0, one, 7), table.get(1, one, 8)), (None, None));
        table.insert(1, jump(one, 300));
        assert_eq!((table.get(1, one, 7), table.get(1, other, 7)), (Some(300), Some(200)));
        table.clear();
        assert_eq!(table.get(1, one, 7), None);
    }

    #[test]
    fn nothing_is_known_after_clearing_however_many_there_were() {
        for count in [1, FEW as u64 + 10] {
            let mut table = JumpTable::new(1).unwrap();
            for round in 0..2 {
                let linear = |number: u64| number * 16;
                for number in 0..count {
                    let (linear, code) = (linear(number), round);
                    table.insert(0, Jump { linear, context: 7, code, key: 0 });
                }
                assert_eq!(table.get(0, linear(count - 1), 7), Some(round));
                table.clear();
                assert!((0..count).all(|number| table.get(0, linear(number), 7).is_none()));
            }
        }
    }

    #[test]
    fn the_two_of_a_pair_differ_in_one_bit_of_their_addresses() {
        let table = JumpTable::new(1).unwrap();
        assert_eq!(table.of_space(0) % (2 * field::BYTES as u64), 0);
        assert_eq!(size_of::<Jump>(), field::BYTES as usize);
    }
}
