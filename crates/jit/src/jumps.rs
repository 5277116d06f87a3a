//! Where indirect branches lead: a table of jumps, from linear addresses to code, and a ring of calls for returns. Translated code
//! looks into both itself. Each privilege in each address space has its own, so that an entry says only what holds where
//! it is found.

use std::io;

use cpu::Cpu;

use crate::cache::Zeroed;
use crate::emit::{Alu, Emitter, Hole, cc, reg};
use crate::frame::{S, T, slot};
use crate::returns::Returns;

/// Entries of a table.
const JUMPS: usize = 1 << 16;
const JUMPS_BITS: u32 = JUMPS.trailing_zeros();
/// The place of a linear address is in the product of the two, from this bit on: the address plus its page's number.
const HASH: i32 = (1 << HASH_SHIFT) + 1;
const HASH_SHIFT: u32 = 12;

/// A link from a linear address to a translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub(crate) linear: u64,
    /// Not 0.
    pub(crate) code: u64,
    /// What [`slot::KEY`] becomes.
    pub(crate) key: u64,
    /// What [`slot::PAGE`] becomes.
    page: u64,
}

mod field {
    pub(super) const LINEAR: i32 = 0;
    pub(super) const CODE: i32 = 8;
    pub(super) const KEY: i32 = 16;
    pub(super) const PAGE: i32 = 24;
    pub(super) const BITS: u32 = 5;
    pub(super) const BYTES: i32 = 1 << BITS;
}

impl Jump {
    /// As memory is at first. Only at the place of address 0 could somebody take it for a link.
    const NONE: Jump = Jump { linear: 0, code: 0, key: 0, page: 0 };
    /// What is there instead: an address that nobody looks for there.
    const NONE_OF_ZERO: Jump = Jump { linear: JUMPS as u64 / 2, ..Jump::NONE };

    pub(crate) fn new(linear: u64, code: u64, key: u64) -> Jump {
        Jump { linear, code, key, page: linear & !0xfff }
    }

    fn is_none(&self) -> bool {
        self.code == Jump::NONE.code
    }
}

/// Two entries, each of which also serves addresses of which the other one has too many. They share a line of the host's
/// cache, and their addresses differ in one bit.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pair([Jump; 2]);

/// What indirect branches of one privilege in one address space know.
struct Known {
    /// The mappings in which both hold, by their numbers: of the lower and of the upper half; and whether there has been code
    /// in these halves.
    mappings: [u64; 2],
    halves: [bool; 2],
    /// The pairs of its table that are not empty, as long as they are few.
    used: Vec<u32>,
    returns: Option<Box<Returns>>,
    /// The place of the last call there.
    last_call: u64,
}

/// What the frame has of it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Ways {
    pub(crate) jumps: u64,
    pub(crate) last_call: u64,
}

impl Ways {
    pub(crate) const NONE: Ways = Ways { jumps: 0, last_call: 0 };
}

/// What is known of indirect branches. Memory is taken for those tables that are used.
pub(crate) struct Branches {
    pairs: Zeroed<Pair>,
    known: Vec<Known>,
    /// Code that goes on at address 0 by the translator.
    to_zero: u64,
}

/// So many are emptied one by one.
const FEW: usize = 1 << 14;
const TABLES: usize = 2 * Cpu::ADDRESS_SPACES;

impl Branches {
    /// `to_zero` is code that goes on at linear address 0 by the translator.
    pub(crate) fn new(to_zero: u64) -> io::Result<Branches> {
        // SAFETY: pairs are plain numbers, which may be 0.
        let pairs = unsafe { Zeroed::new(TABLES * JUMPS / 2)? };
        // No mapping has number 0.
        let known = |_| Known {
            mappings: [0; 2],
            halves: [true; 2],
            used: Vec::new(),
            returns: None,
            last_call: 0,
        };
        Ok(Branches { pairs, known: (0..TABLES).map(known).collect(), to_zero })
    }

    /// The number of what is known in an address space, by programs or by the supervisor.
    pub(crate) fn number(space: usize, is_user: bool) -> usize {
        2 * space + usize::from(is_user)
    }

    /// What translated code has to know in these mappings, without what does not hold any more.
    pub(crate) fn bring(&mut self, number: usize, mappings: [u64; 2]) -> Ways {
        if self.known[number].mappings != mappings {
            self.renew(number, mappings);
        }
        let jumps = (&raw const self.pairs.get()[number * JUMPS / 2]) as u64;
        Ways { jumps, last_call: self.known[number].last_call }
    }

    #[cold]
    fn renew(&mut self, number: usize, mappings: [u64; 2]) {
        let known = &mut self.known[number];
        let before = std::mem::replace(&mut known.mappings, mappings);
        if !(0..2).any(|half| known.halves[half] && before[half] != mappings[half]) {
            return;
        }
        known.halves = [false; 2];
        let returns = known.returns.get_or_insert_with(|| {
            let returns = Returns::new();
            known.last_call = returns.start();
            returns
        });
        returns.clear(self.to_zero);
        let first = number * JUMPS / 2;
        let pairs = &mut self.pairs.get_mut()[first..first + JUMPS / 2];
        let empty = Pair([Jump::NONE; 2]);
        if known.used.len() < FEW {
            known.used.drain(..).for_each(|index| pairs[index as usize] = empty);
        } else {
            pairs.fill(empty);
            known.used.clear();
        }
        pairs[0] = Pair([Jump::NONE_OF_ZERO; 2]);
    }

    /// Takes back where translated code has its last call.
    pub(crate) fn note_last_call(&mut self, number: usize, last_call: u64) {
        self.known[number].last_call = last_call;
    }

    /// There is code in the half of an address.
    pub(crate) fn note_half(&mut self, number: usize, linear: u64) {
        self.known[number].halves[(linear >> 63) as usize] = true;
    }

    fn place(number: usize, linear: u64) -> (usize, usize) {
        let index = (linear.wrapping_mul(HASH as u64) >> HASH_SHIFT) as usize & (JUMPS - 1);
        ((number * JUMPS + index) / 2, index & 1)
    }

    /// The link from an address, if the table has it. It has to be brought before.
    pub(crate) fn get(&self, number: usize, linear: u64) -> Option<Jump> {
        let (pair, _) = Branches::place(number, linear);
        let known = |jump: &&Jump| jump.linear == linear && !jump.is_none();
        self.pairs.get()[pair].0.iter().find(known).copied()
    }

    /// Adds a link. The table has to be brought before, and its half noted.
    pub(crate) fn insert(&mut self, number: usize, jump: Jump) {
        let (index, first) = Branches::place(number, jump.linear);
        let pair = &mut self.pairs.get_mut()[index].0;
        let used = &mut self.known[number].used;
        if used.len() < FEW && pair.iter().all(Jump::is_none) {
            used.push((index % (JUMPS / 2)) as u32);
        }
        if pair[first].linear != jump.linear && !pair[first].is_none() {
            pair[first ^ 1] = pair[first];
        }
        pair[first] = jump;
    }

    /// Has everything forgotten by the time that it is brought next.
    pub(crate) fn clear(&mut self) {
        for known in &mut self.known {
            (known.mappings, known.halves) = ([0; 2], [true; 2]);
        }
    }
}

/// The way out where an entry does not serve.
pub(crate) struct Elsewhere(Hole);

impl Elsewhere {
    /// What is emitted next is done then, with the linear address in T and the entry in S.
    pub(crate) fn fill(self, e: &mut Emitter) {
        e.fill(self.0);
    }
}

impl Emitter {
    /// Goes on at the linear address in T if its entry serves it.
    pub(crate) fn jump_by_table(&mut self) -> Elsewhere {
        const SHIFT: u32 = HASH_SHIFT - field::BITS;
        self.multiply(S, T, HASH);
        self.shift(5, S, SHIFT as u8);
        self.alu_imm(Alu::And, S, ((1 << JUMPS_BITS) - 1) << field::BITS);
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
        let other = self.jcc(cc::NE);
        for (field, slot) in [(field::KEY, slot::KEY), (field::PAGE, slot::PAGE)] {
            self.load(T, S, field);
            self.store(reg::RSP, slot, T);
        }
        self.jmp_mem(S, field::CODE);
        Elsewhere(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPINGS: [u64; 2] = [1 << 33, 3 << 32];

    fn code(branches: &Branches, number: usize, linear: u64) -> Option<u64> {
        branches.get(number, linear).map(|jump| jump.code)
    }

    fn branches() -> Branches {
        let mut branches = Branches::new(1).unwrap();
        (0..TABLES).for_each(|number| {
            branches.bring(number, MAPPINGS);
        });
        branches
    }

    #[test]
    fn two_addresses_that_meet_are_both_known() {
        let mut branches = branches();
        let jump = |linear, code| Jump::new(linear, code, 0);
        // Both have the same place.
        let (one, other) = (0x1_0000_0000, 0x2_0000_0000);
        assert_eq!(Branches::place(1, one), Branches::place(1, other));
        branches.insert(1, jump(one, 100));
        branches.insert(1, jump(other, 200));
        assert_eq!((code(&branches, 1, one), code(&branches, 1, other)), (Some(100), Some(200)));
        assert_eq!(code(&branches, 0, one), None);
        branches.insert(1, jump(one, 300));
        assert_eq!((code(&branches, 1, one), code(&branches, 1, other)), (Some(300), Some(200)));
        branches.clear();
        branches.bring(1, MAPPINGS);
        assert_eq!(code(&branches, 1, one), None);
    }

    #[test]
    fn nothing_is_known_in_other_mappings_however_many_there_were() {
        for count in [1, FEW as u64 + 10] {
            let mut branches = branches();
            for round in 1..=2 {
                let linear = |number: u64| number * 16;
                branches.bring(0, MAPPINGS);
                branches.note_half(0, 0);
                for number in 0..count {
                    branches.insert(0, Jump::new(linear(number), round, 0));
                }
                assert_eq!(code(&branches, 0, linear(count - 1)), Some(round));
                branches.bring(0, MAPPINGS);
                assert_eq!(code(&branches, 0, linear(count - 1)), Some(round));
                branches.bring(0, [round, MAPPINGS[1]]);
                assert!((0..count).all(|number| branches.get(0, linear(number)).is_none()));
            }
        }
    }

    #[test]
    fn a_half_without_code_may_change() {
        let mut branches = branches();
        let (program, kernel) = (0x40_0000, u64::MAX << 20);
        branches.note_half(0, kernel);
        branches.insert(0, Jump::new(kernel, 1, 0));
        branches.bring(0, [1, MAPPINGS[1]]);
        assert_eq!(code(&branches, 0, kernel), Some(1));
        branches.note_half(0, program);
        branches.insert(0, Jump::new(program, 2, 0));
        branches.bring(0, [1, MAPPINGS[1]]);
        assert_eq!(code(&branches, 0, program), Some(2));
        branches.bring(0, [2, MAPPINGS[1]]);
        assert_eq!((code(&branches, 0, program), code(&branches, 0, kernel)), (None, None));
    }

    #[test]
    fn no_address_finds_an_empty_entry() {
        let branches = branches();
        for number in [0, TABLES - 1] {
            // All zeros but for one pair, so an address that some entry holds is one of two.
            for linear in [Jump::NONE.linear, Jump::NONE_OF_ZERO.linear] {
                let (pair, _) = Branches::place(number, linear);
                assert!(branches.pairs.get()[pair].0.iter().all(|jump| jump.linear != linear));
            }
        }
    }

    #[test]
    fn what_is_kept_of_one_is_not_the_others() {
        let mut branches = branches();
        let ways: Vec<Ways> = (0..TABLES).map(|n| branches.bring(n, MAPPINGS)).collect();
        for (number, one) in ways.iter().enumerate() {
            assert_eq!(one.jumps % (2 * field::BYTES as u64), 0);
            assert!(ways[..number].iter().all(|other| one.jumps.abs_diff(other.jumps)
                >= (JUMPS * size_of::<Jump>()) as u64
                && one.last_call != other.last_call));
        }
        assert_eq!(size_of::<Jump>(), field::BYTES as usize);
        branches.note_last_call(1, 5);
        assert_eq!(branches.bring(1, MAPPINGS).last_call, 5);
        assert!(branches.bring(0, MAPPINGS) == ways[0]);
    }
}
