//! A decoded instruction and what runs it.

use std::num::NonZeroU8;

use mem::GuestMem;
use x86::iced::Code;

use crate::{Bus, Cpu};

/// What a handler may touch beside the CPU.
pub struct Env<'a> {
    /// Guest RAM.
    pub mem: &'a mut GuestMem,
    /// Everything else outside the CPU.
    pub bus: &'a mut dyn Bus,
}

/// Why an instruction did not complete. One byte, so that passing it on is cheap; the details of an
/// exception are in the CPU (`Cpu::exception`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(NonZeroU8);

impl Fault {
    /// An exception is to be delivered; the instruction changed nothing.
    pub const EXCEPTION: Fault = Fault(NonZeroU8::MIN);
    /// A REP instruction has more iterations to do and stays the next instruction. Its iterations
    /// are counted.
    pub const UNFINISHED: Fault = Fault(NonZeroU8::MIN.saturating_add(1));
}

/// Runs one decoded instruction.
///
/// When it is called, [`Cpu::rip`] holds the address that follows the block, [`Cpu::next_rip`] the
/// one that follows the instruction. Flow control overwrites the former. A handler that returns
/// `Err` has left registers and memory as they were, but for what the manual allows.
pub type Handler = fn(&mut Cpu, &mut Env<'_>, &Op) -> Result<(), Fault>;

/// A decoded instruction: its handler and its operands, resolved as far as they can be.
///
/// Operand `n` of the manual's (and iced's) operand list is register `r[n]` if it is a register.
#[derive(Clone, Copy)]
pub struct Op {
    /// What runs it.
    pub run: Handler,
    /// Displacement of the memory operand, sign-extended.
    pub disp: u64,
    /// The immediate, extended to 64 bits as the instruction demands; for a near branch the
    /// distance from the next instruction.
    pub imm: u64,
    /// Register number of each operand. For a high byte register (AH to BH) the number of the full
    /// register plus [`Op::HIGH_BYTE`].
    pub r: [u8; 4],
    /// Base register of the memory operand: 0 to 15, [`Cpu::GPR_ZERO`] or [`Cpu::GPR_BLOCK_RIP`].
    pub base: u8,
    /// Index register, or [`Cpu::GPR_ZERO`].
    pub index: u8,
    /// Shift of the index: 0 to 3.
    pub scale: u8,
    /// Segment whose base is added: an index into `Cpu::seg_base`.
    pub seg: u8,
    /// 64 minus the address size in bits.
    pub addr_shift: u8,
    /// [`Op::STACK`] and its like.
    pub flags: u8,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Second immediate (ENTER, EXTRQ and the like), or what a form likes to keep.
    pub imm2: u8,
    /// Distance from the block's start to the end of this instruction.
    pub end: u16,
    /// The form: iced's `Code` as a number.
    pub code: u16,
}

impl Op {
    /// Marks a register number as bits 8 to 15 of the register.
    pub const HIGH_BYTE: u8 = 0x20;
    /// Flag: the memory operand is relative to SS, so its faults are #SS.
    pub const STACK: u8 = 1 << 0;
    /// Flag: the memory operand's segment is not flat, so limit and type are to be checked.
    pub const CHECKED: u8 = 1 << 1;
    /// Flag: REP or REPE prefix.
    pub const REP: u8 = 1 << 2;
    /// Flag: REPNE prefix.
    pub const REPNE: u8 = 1 << 3;
    /// Flag: 64-bit code.
    pub const LONG: u8 = 1 << 4;
    /// Flag: LOCK prefix.
    pub const LOCK: u8 = 1 << 5;

    /// True if `flag` is set.
    #[inline(always)]
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The form.
    #[must_use]
    pub fn form(&self) -> Code {
        Code::try_from(usize::from(self.code)).unwrap_or(Code::INVALID)
    }
}

const _: () = assert!(size_of::<Op>() == 40, "five words: many of them fill the cache");
