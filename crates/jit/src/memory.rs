//! How translated code reaches guest memory: through the interpreter's TLB, or by a check that was made for
//! several accesses at once ([`crate::plan`]).

use x86::iced::{Instruction, Register};

use crate::emit::{Alu, Hole, RegMem, cc, reg};
use crate::frame::{Home, S, T, home, slot};
use crate::plan::{Check, Group};
use crate::scan::Access;
use crate::translate::{Cold, Exit, FlagState, Gen};

/// Offset of the host address in an entry of `Cpu::tlb_entries`.
pub(crate) const TLB_HOST: i32 = 24;
/// Offset of the tag that allows stores.
pub(crate) const TLB_WRITE: i32 = 8;
/// Offset of the RAM address.
pub(crate) const TLB_RAM: i32 = 16;

/// Offset of the tag that allows an access.
pub(crate) fn tlb_tag(access: Access) -> i32 {
    if access.write { TLB_WRITE } else { 0 }
}

/// The linear address of an access.
#[derive(Clone, Copy)]
enum Address<'a> {
    Operand(&'a Instruction),
    /// A register's value, and a distance.
    Near(u8, i32),
}

impl Address<'_> {
    /// The host register that the address is a distance from.
    fn base(self) -> Option<(u8, i32)> {
        let (number, distance) = match self {
            Address::Near(number, distance) => (number, distance),
            Address::Operand(ins) if ins.memory_index() == Register::None => {
                let base = ins.memory_base();
                let number = base.is_gpr64().then(|| base.number() as u8)?;
                (number, ins.memory_displacement64() as i32)
            }
            Address::Operand(_) => return None,
        };
        match home(number) {
            Home::Reg(r) => Some((r, distance)),
            Home::Slot(_) => None,
        }
    }
}

fn slot_of(group: Group) -> i32 {
    match group {
        Group::Stack => slot::PIN_DELTA,
        Group::Slot(number) => slot::GROUPS + 8 * i32::from(number),
    }
}

impl Gen<'_> {
    /// Where the memory operand of instruction `index` is, if it has one. The place holds until S is written.
    pub(crate) fn operand(&mut self, index: usize) -> Option<RegMem> {
        let insn = &self.trace.insns[index];
        let (ins, access) = (insn.ins, insn.access?);
        Some(self.place(index, Address::Operand(&ins), access, self.checks[index].operand))
    }

    /// Where the 8 bytes at a distance from a guest register are, likewise.
    pub(crate) fn stack(&mut self, index: usize, number: u8, distance: i32, write: bool) -> RegMem {
        let access = Access { bytes: 8, write, aligned: false };
        self.place(index, Address::Near(number, distance), access, self.checks[index].stack)
    }

    fn place(
        &mut self,
        index: usize,
        address: Address<'_>,
        access: Access,
        check: Check,
    ) -> RegMem {
        match check {
            Check::Alone => {
                self.linear(address, S, 0);
                self.check(index, access);
                return RegMem::Mem(S, 0);
            }
            Check::Leader { group: Group::Stack, from, span } => {
                self.native = false;
                self.linear(address, T, from);
                self.e.alu_mem(Alu::Sub, T, reg::RSP, slot::PIN_PAGE);
                self.e.alu_imm(Alu::Cmp, T, 4096 - span);
                let hole = self.e.jcc(cc::A);
                let back = self.e.here();
                self.cold.push(Cold::Repin { hole, back, span, flags: self.flags, index });
            }
            Check::Leader { group, from, span } => {
                self.linear(address, S, from);
                let hole = self.look_up(access, span);
                self.cold.push(Cold::Plain { hole, flags: self.flags, index });
                self.e.load(S, T, TLB_HOST);
                self.e.alu_mem(Alu::Sub, S, T, tlb_tag(access));
                self.e.store(reg::RSP, slot_of(group), S);
                self.held = Some(group);
            }
            Check::Follower(_) => {}
        }
        match check {
            Check::Leader { group, .. } | Check::Follower(group) => {
                self.follow(index, address, access, group)
            }
            Check::Alone => unreachable!("returned above"),
        }
    }

    /// Where an access is whose page has been checked.
    fn follow(
        &mut self,
        index: usize,
        address: Address<'_>,
        access: Access,
        group: Group,
    ) -> RegMem {
        let place = if let Some((base, distance)) = address.base() {
            if self.held != Some(group) {
                self.e.load(S, reg::RSP, slot_of(group));
                self.held = Some(group);
            }
            RegMem::Sum(base, S, distance)
        } else {
            self.linear(address, S, 0);
            self.e.alu_mem(Alu::Add, S, reg::RSP, slot_of(group));
            self.native = false;
            RegMem::Mem(S, 0)
        };
        if access.aligned {
            // The page offset is the same on both sides.
            match place {
                RegMem::Sum(base, index, distance) => {
                    self.e.lea_index(T, Some(base), index, 0, distance)
                }
                _ => self.e.mov(T, S),
            }
            self.leave_unless_aligned(index, T);
        }
        place
    }

    /// S = host address of the part of the memory operand that holds the bit whose number is in a guest register, T =
    /// the bit's number in there.
    pub(crate) fn bit_address(&mut self, index: usize, number: u8) {
        let insn = &self.trace.insns[index];
        let (ins, access) = (insn.ins, insn.access.expect("a memory operand"));
        let bits = 8 * access.bytes as u8;
        self.linear(Address::Operand(&ins), S, 0);
        self.bit_number(number);
        // The number is signed.
        if bits < 64 {
            self.e.shift(4, T, 64 - bits);
        }
        self.e.shift(7, T, 64 - bits + bits.trailing_zeros() as u8);
        self.e.lea_index(S, Some(S), T, access.bytes.trailing_zeros() as u8, 0);
        self.check(index, access);
        self.bit_number(number);
        self.e.alu_imm(Alu::And, T, i32::from(bits) - 1);
    }

    fn bit_number(&mut self, number: u8) {
        match home(number) {
            Home::Reg(r) => self.e.mov(T, r),
            Home::Slot(from) => self.e.load(T, reg::RSP, from),
        }
    }

    fn leave_unless_aligned(&mut self, index: usize, address: u8) {
        self.native = false;
        self.e.test_imm_sized(1, address, 15);
        let hole = self.e.jcc(cc::NE);
        self.leave_before(index, vec![hole]);
    }

    /// S = host address for an access at the linear address in S by instruction `index`. Uses T and RFLAGS.
    fn check(&mut self, index: usize, access: Access) {
        if access.aligned {
            self.leave_unless_aligned(index, S);
        }
        let hole = self.look_up(access, access.bytes as i32);
        self.e.alu_mem(Alu::Add, S, T, TLB_HOST);
        let back = self.e.here();
        let site = self.site(self.trace.insns[index].at, self.undo(index), Exit::Interpret);
        self.cold.push(Cold::Slow { hole, back, access, flags: self.flags, site });
    }

    /// S = place on its page of the linear address in S, T = the TLB entry, if the branch is not taken: then
    /// `span` bytes may be accessed there.
    fn look_up(&mut self, access: Access, span: i32) -> Hole {
        self.native = false;
        self.held = None;
        self.e.tlb_entry(T, S, slot::TLB);
        self.e.alu_mem(Alu::Sub, S, T, tlb_tag(access));
        self.e.alu_imm(Alu::Cmp, S, 4096 - span);
        self.e.jcc(cc::A)
    }

    /// `dst` (S or T) = an address, plus a small distance. S is used as well. Leaves RFLAGS alone but for a segment base.
    fn linear(&mut self, address: Address<'_>, dst: u8, plus: i32) {
        match address {
            Address::Operand(ins) => {
                self.effective_address(ins, dst, plus);
                let base = match ins.memory_segment() {
                    Register::FS => slot::FS,
                    Register::GS => slot::GS,
                    _ => return,
                };
                self.e.alu_mem(Alu::Add, dst, reg::RSP, base);
                self.native = false;
            }
            Address::Near(number, distance) => {
                self.held = None;
                let base = self.in_register(number, S);
                self.e.lea(dst, base, distance + plus);
            }
        }
    }

    /// `dst` = the offset of the memory operand, plus a distance that is 0 if the operand's own is near the
    /// limits. Uses S and T; `dst` may be a register of the operand's.
    pub(crate) fn effective_address(&mut self, ins: &Instruction, dst: u8, plus: i32) {
        self.held = None;
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let displacement = ins.memory_displacement64();
        if base == Register::RIP {
            return self.page_address(dst, displacement.wrapping_add_signed(i64::from(plus)));
        }
        let narrow = base.size() == 4
            || index.size() == 4
            || base == Register::None && index == Register::None && ins.memory_displ_size() == 4;
        let scale = ins.memory_index_scale().trailing_zeros() as u8;
        let base = (base != Register::None).then(|| self.in_register(base.number() as u8, S));
        let index = (index != Register::None).then(|| self.in_register(index.number() as u8, T));
        let distance = (displacement as i32).wrapping_add(plus);
        match (base, index) {
            (None, None) => return self.e.mov_imm64(dst, displacement),
            (Some(base), None) if distance == 0 && !narrow => {
                if base != dst {
                    self.e.mov(dst, base);
                }
            }
            (Some(base), None) => self.e.lea(dst, base, distance),
            (base, Some(index)) => self.e.lea_index(dst, base, index, scale, distance),
        }
        if narrow {
            self.e.mov32(dst, dst);
        }
    }

    /// Goes on with instruction `index` in the plain translation.
    pub(crate) fn go_plain(&mut self, flags: FlagState, index: usize) {
        self.bring_home(flags);
        let undo = self.undo(index);
        self.e.alu_imm(Alu::Add, reg::R15, i32::from(undo));
        let at = self.trace.insns[index].at;
        self.link(at, at, true);
    }

    /// The page at T plus the pin's was not the pinned one: pins it, if the TLB knows it.
    pub(crate) fn repin(&mut self, back: u64, span: i32) {
        self.e.mov(S, T);
        self.e.alu_mem(Alu::Add, S, reg::RSP, slot::PIN_PAGE);
        self.e.call_to(self.stubs.repin);
        self.e.alu_imm(Alu::Cmp, T, 4096 - span);
        let done = self.e.jcc(cc::BE);
        self.e.fill_to(done, back);
    }

    /// Has the flags at home, however they were kept. Uses T.
    pub(crate) fn bring_home(&mut self, flags: FlagState) {
        if let FlagState::Recipe(recipe) = flags {
            self.recompute(recipe);
            self.e.save_flags();
        }
    }
}
