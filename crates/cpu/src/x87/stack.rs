//! The register stack, tags, condition codes and exceptions of the x87.

use crate::softfloat::{EXTENDED, Float, Format, FpEnv, Unpacked, flag};
use crate::state::{F80, X87State};

/// Bits of the status word beside the six exceptions.
pub(super) mod status {
    /// Stack fault.
    pub(in crate::x87) const SF: u16 = 1 << 6;
    /// An unmasked exception is pending.
    pub(in crate::x87) const ES: u16 = 1 << 7;
    /// Condition codes.
    pub(in crate::x87) const C0: u16 = 1 << 8;
    pub(in crate::x87) const C1: u16 = 1 << 9;
    pub(in crate::x87) const C2: u16 = 1 << 10;
    pub(in crate::x87) const C3: u16 = 1 << 14;
    /// Busy: the same as ES since the 387.
    pub(in crate::x87) const B: u16 = 1 << 15;
}
use status::{B, C0, C1, C2, C3, ES, SF};

const TOP_SHIFT: u32 = 11;
/// Bits of the control word that can be 0. Bit 6 reads as 1.
const CONTROL_MASK: u16 = 0x1f3f;
const CONTROL_FIXED: u16 = 0x0040;

impl X87State {
    /// After FNINIT. Registers keep their contents but are empty.
    pub(crate) fn init(&mut self) {
        self.control = 0x037f;
        self.status = 0;
        self.full = 0;
        self.opcode = 0;
        self.ip = 0;
        self.dp = 0;
        self.cs = 0;
        self.ds = 0;
    }

    pub(crate) fn top(&self) -> u8 {
        (self.status >> TOP_SHIFT) as u8 & 7
    }

    pub(crate) fn set_top(&mut self, top: u8) {
        self.status = self.status & !(7 << TOP_SHIFT) | u16::from(top & 7) << TOP_SHIFT;
    }

    /// The physical register of ST(i).
    fn physical(&self, i: u8) -> u8 {
        (self.top().wrapping_add(i)) & 7
    }

    pub(super) fn is_empty(&self, i: u8) -> bool {
        self.full >> self.physical(i) & 1 == 0
    }

    /// ST(i), whatever its tag.
    pub(crate) fn st(&self, i: u8) -> F80 {
        self.regs[usize::from(self.physical(i))]
    }

    /// ST(i) as an operand, `None` if it is empty.
    pub(super) fn operand(&self, i: u8) -> Option<Unpacked> {
        (!self.is_empty(i)).then(|| self.st(i).unpack())
    }

    /// Writes ST(i) and marks it full.
    pub(super) fn put(&mut self, i: u8, value: F80) {
        let register = self.physical(i);
        self.regs[usize::from(register)] = value;
        self.full |= 1 << register;
    }

    pub(super) fn free(&mut self, i: u8) {
        self.full &= !(1 << self.physical(i));
    }

    /// FFREE.
    pub(super) fn release(&mut self, i: u8) {
        self.set_c1(false);
        self.free(i);
    }

    pub(super) fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top().wrapping_add(1));
    }

    pub(super) fn pop_times(&mut self, times: u8) {
        for _ in 0..times {
            self.pop();
        }
    }

    /// Pushes a value whose place is known to be free.
    pub(super) fn push(&mut self, value: F80) {
        self.set_top(self.top().wrapping_sub(1));
        self.put(0, value);
    }

    /// What an instruction computes under.
    pub(super) fn env(&self) -> FpEnv {
        FpEnv::x87(self.control)
    }

    /// The format that precision control asks of arithmetic. The reserved setting means full.
    pub(super) fn precision(&self) -> Format {
        let precision = match self.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Format { precision, ..EXTENDED }
    }

    pub(super) fn set_c1(&mut self, set: bool) {
        self.status = self.status & !C1 | if set { C1 } else { 0 };
    }

    pub(super) fn set_c2(&mut self, set: bool) {
        self.status = self.status & !C2 | if set { C2 } else { 0 };
    }

    /// Sets C3, C2 and C0; C1 stays.
    pub(super) fn set_codes(&mut self, codes: u16) {
        self.status = self.status & !(C3 | C2 | C0) | codes;
    }

    /// Sets the control word. An exception that becomes unmasked becomes pending.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.control = control & CONTROL_MASK | CONTROL_FIXED;
        self.summarize();
    }

    /// Sets the status word; ES and B follow from the rest.
    pub(crate) fn set_status(&mut self, status: u16) {
        self.status = status;
        self.summarize();
    }

    /// Recomputes ES and B.
    pub(super) fn summarize(&mut self) {
        let pending = self.status & !self.control & u16::from(flag::ALL) != 0;
        self.status = self.status & !(ES | B) | if pending { ES | B } else { 0 };
    }

    /// Notes the exceptions of an operation and C1. True if its result is to be delivered: no
    /// exception of the operands is unmasked.
    pub(super) fn finish(&mut self, env: &FpEnv) -> bool {
        const OF_OPERANDS: u8 = flag::IE | flag::DE | flag::ZE;
        let stops = env.flags & !env.masked & OF_OPERANDS != 0;
        let flags = if stops { env.flags & OF_OPERANDS } else { env.flags };
        self.set_c1(env.rounded_up && !stops);
        if flags != 0 {
            self.status |= u16::from(flags);
            self.summarize();
        }
        !stops
    }

    /// An empty register was read. True if the masked response (the default NaN) is to be given.
    #[cold]
    pub(super) fn stack_underflow(&mut self) -> bool {
        self.stack_fault(false)
    }

    /// A push onto a register that is full; see [`X87State::stack_underflow`].
    #[cold]
    pub(super) fn stack_overflow(&mut self) -> bool {
        self.stack_fault(true)
    }

    fn stack_fault(&mut self, overflow: bool) -> bool {
        self.set_c1(overflow);
        self.status |= SF | u16::from(flag::IE);
        self.summarize();
        self.control & u16::from(flag::IE) != 0
    }

    /// The full tag word: two bits for each register, from its contents.
    pub(crate) fn tag_word(&self) -> u16 {
        (0..8).fold(0, |word, register| word | self.tag(register) << (2 * register))
    }

    fn tag(&self, register: u16) -> u16 {
        const VALID: u16 = 0;
        const ZERO: u16 = 1;
        const SPECIAL: u16 = 2;
        const EMPTY: u16 = 3;
        if self.full >> register & 1 == 0 {
            return EMPTY;
        }
        let value = self.regs[usize::from(register)];
        match (value.sign_exponent & 0x7fff, value.significand) {
            (0, 0) => ZERO,
            (0 | 0x7fff, _) => SPECIAL,
            (_, significand) if significand >> 63 == 0 => SPECIAL,
            _ => VALID,
        }
    }

    /// Takes from a full tag word which registers are empty; the rest follows from the contents.
    pub(super) fn set_tag_word(&mut self, word: u16) {
        self.full = (0..8)
            .fold(0, |full, register| full | u8::from(word >> (2 * register) & 3 != 3) << register);
    }
}
