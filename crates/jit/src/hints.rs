//! Where accesses found their operands the last time, for those whose address is the same each time: constants, variables at fixed
//! places, those of a thread. Comparing costs less than the TLB.

use std::io;
use std::mem::offset_of;

use cpu::Cpu;

use crate::cache::Zeroed;
use crate::emit::{Alu, Emitter, RegMem, cc, reg};
use crate::frame::{S, T, slot};
use crate::memory::{TLB_DISTANCE, TLB_WRITE};

/// Hints of a view. Accesses share them, but loads and stores do not: what may be read may perhaps not be written.
const LOADS: u32 = 1536;
const STORES: u32 = 512;
const COUNT: usize = (LOADS + STORES) as usize;
/// Hints that are emptied one by one.
const FEW: usize = 254;

/// What an access knows: that as many bytes as lie on the page there, and [`BYTES_MIN`] at least, may be accessed.
#[derive(Clone, Copy)]
#[repr(C)]
struct Hint {
    linear: u64,
    host: u64,
}

/// Bytes that lie on one page wherever there is a hint.
pub(crate) const BYTES_MIN: i32 = 8;

/// The hints of one view of the TLB.
#[derive(Clone, Copy)]
#[repr(C)]
struct View {
    hints: [Hint; COUNT],
    /// How many are in use, and as long as they are few, their offsets.
    used: u64,
    offsets: [u32; FEW],
}

/// From a view's hints to those of the next view of the TLB.
pub(crate) const VIEW_BYTES: i32 = size_of::<View>() as i32;

/// Where the host address is in a hint.
pub(crate) const HOST: i32 = offset_of!(Hint, host) as i32;

/// All hints.
pub(crate) struct Hints {
    /// One for each view of each address space that the TLB keeps.
    views: Zeroed<View>,
    /// The losses of the TLB up to which each holds.
    losses: [Option<u64>; Cpu::TLB_VIEWS],
    /// What hints that are not in use say: an address that no guest uses, and a page that nobody can access.
    nowhere: Hint,
    pub(crate) given: Given,
}

/// How many accesses have got a hint: loads and stores.
#[derive(Clone, Copy, Default)]
pub(crate) struct Given([u32; 2]);

impl Given {
    /// The offset of a hint for another access.
    pub(crate) fn next(&mut self, write: bool) -> i32 {
        let given = &mut self.0[usize::from(write)];
        let number = if write { LOADS + *given % STORES } else { *given % LOADS };
        *given = given.wrapping_add(1);
        number as i32 * size_of::<Hint>() as i32
    }
}

impl Hints {
    /// `nowhere` is a linear address that no guest uses, and the host address of a page that nobody can access.
    pub(crate) fn new(nowhere: (u64, u64)) -> io::Result<Hints> {
        // SAFETY: views are plain numbers, which may be 0.
        let views = unsafe { Zeroed::new(Cpu::TLB_VIEWS)? };
        let nowhere = Hint { linear: nowhere.0, host: nowhere.1 };
        Ok(Hints { views, losses: [None; Cpu::TLB_VIEWS], nowhere, given: Given::default() })
    }

    /// The hints of a view, as translated code finds them.
    pub(crate) fn of_view(&self, view: usize) -> u64 {
        (&raw const self.views.get()[view]) as u64
    }

    /// Empties what does not hold any more of the views in the CPU's present address space.
    pub(crate) fn bring(&mut self, cpu: &Cpu) {
        let losses = cpu.tlb_state().1;
        for view in cpu.tlb_views() {
            let known = self.losses[view].replace(losses);
            if known != Some(losses) {
                self.views.get_mut()[view].clear(self.nowhere, known.is_none());
            }
        }
    }
}

impl View {
    fn clear(&mut self, nowhere: Hint, all: bool) {
        let used = self.used as usize;
        match self.offsets.get(..used) {
            Some(offsets) if !all => {
                for offset in offsets {
                    self.hints[*offset as usize / size_of::<Hint>()] = nowhere;
                }
            }
            _ => self.hints.fill(nowhere),
        }
        self.used = 0;
    }
}

/// What [`Stubs::hint`] wants to know in T: where the hint is, and how many bytes are accessed.
///
/// [`Stubs::hint`]: crate::frame::Stubs::hint
pub(crate) fn word(hint: i32, bytes: u32) -> u32 {
    hint as u32 | bytes << 16
}

/// Emits the stub for loads or stores. What the TLB does not know on its first level, or what lies at the end of its page, it
/// leaves to `slow`, if given.
pub(crate) fn emit_stub(e: &mut Emitter, write: bool, nowhere: u64, slow: Option<u64>) -> u64 {
    const USED: [u8; 3] = [reg::RAX, reg::RCX, reg::RDX];
    const BELOW: i32 = 32;
    const { assert!(COUNT * size_of::<Hint>() <= 1 << 16) };
    let start = e.here();
    for r in USED {
        e.push(r);
    }
    e.two_byte(4, 0xb7, reg::RCX, RegMem::Reg(T)); // by MOVZX
    e.alu_mem(Alu::Add, reg::RCX, reg::RSP, BELOW + slot::HINTS);
    e.shift(5, T, 16);
    e.tlb_entry(reg::RDX, S, BELOW + slot::TLB);
    e.mov(reg::RAX, S);
    e.alu_mem(Alu::Sub, reg::RAX, reg::RDX, if write { TLB_WRITE } else { 0 });
    e.alu_imm(Alu::Cmp, reg::RAX, 4096 - BYTES_MIN);
    let unknown = e.jcc(cc::A);
    e.mov_imm64(T, nowhere);
    e.alu_mem(Alu::Cmp, T, reg::RCX, 0);
    // None of these writes RFLAGS.
    e.store(reg::RCX, 0, S);
    e.load(reg::RDX, reg::RDX, TLB_DISTANCE);
    e.lea_index(S, Some(S), reg::RDX, 0, 0);
    e.store(reg::RCX, HOST, S);
    let is_noted = e.jcc(cc::NE);
    e.load(T, reg::RSP, BELOW + slot::HINTS);
    e.alu(Alu::Sub, reg::RCX, T);
    e.load(reg::RDX, T, offset_of!(View, used) as i32);
    e.add_imm_mem(T, offset_of!(View, used) as i32, 1);
    e.alu_imm(Alu::Cmp, reg::RDX, FEW as i32);
    let many = e.jcc(cc::AE);
    let offsets = offset_of!(View, offsets) as i32;
    e.mov_sized(4, RegMem::Scaled(T, reg::RDX, 2, offsets), reg::RCX);
    [many, is_noted].into_iter().for_each(|hole| e.fill(hole));
    for r in USED.into_iter().rev() {
        e.pop(r);
    }
    e.raw(&[0xf9]); // STC
    e.ret();
    e.fill(unknown);
    for r in USED.into_iter().rev() {
        e.pop(r);
    }
    if let Some(slow) = slow {
        if write {
            e.alu_imm(Alu::Or, T, 1 << 16);
        }
        e.jmp_to(slow);
    } else {
        e.raw(&[0xf8]); // CLC
        e.ret();
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_and_stores_never_share_a_hint() {
        let mut given = Given::default();
        let [loads, stores] = [false, true].map(|write| {
            let offsets: Vec<i32> = (0..2 * COUNT).map(|_| given.next(write)).collect();
            (*offsets.iter().min().unwrap(), *offsets.iter().max().unwrap())
        });
        assert!(loads.0 == 0 && loads.1 < stores.0);
        assert!(stores.1 as usize + size_of::<Hint>() <= offset_of!(View, used));
    }

    #[test]
    fn clearing_empties_every_hint_in_use_however_many() {
        const NOWHERE: Hint = Hint { linear: 1 << 62, host: 1 };
        let mut view = View { hints: [NOWHERE; COUNT], used: 0, offsets: [0; FEW] };
        for count in [1, FEW, FEW + 1, COUNT] {
            for number in 0..count {
                // As translated code does it.
                view.hints[number] = Hint { linear: 5, host: 6 };
                if let Some(place) = view.offsets.get_mut(view.used as usize) {
                    *place = (number * size_of::<Hint>()) as u32;
                }
                view.used += 1;
            }
            view.clear(NOWHERE, false);
            assert!(view.hints.iter().all(|hint| hint.linear == NOWHERE.linear), "{count}");
            assert_eq!(view.used, 0);
        }
    }
}
