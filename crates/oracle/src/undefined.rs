//! The flags that the manual leaves undefined: the host has its values, we have ours
//! (`docs/undefined.md`), and ours are checked against that list.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::compare::operand_address;
use crate::encode::decode;
use crate::forms;
use crate::state::{Case, Outcome, REGION_BYTES, REGIONS, State, Subject};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

/// Compares the undefined flags that a completed single instruction left with the list. One line
/// per difference.
#[must_use]
pub fn differences(case: &Case, ours: &Outcome, memory: &dyn Subject) -> Vec<String> {
    let (instr, _) = decode(case.mode, &case.code, case.state.rip);
    let completed = matches!(ours.event.vector, 1 | 3) && instr.len() == case.code.len();
    if !completed || instr.is_invalid() {
        return vec![];
    }
    let cl = case.state.gpr[1] as u8;
    let undefined = forms::rflags_bits(forms::undefined_after_single(&instr, cl));
    let Some(result) = result_of(case, &instr, &ours.state, memory) else { return vec![] };
    let Some(listed) = listed_flags(&instr, cl, &case.state, &ours.state, result) else {
        return vec![];
    };
    let wrong = (ours.state.rflags ^ listed) & undefined;
    if wrong == 0 {
        return vec![];
    }
    let found = ours.state.rflags & undefined;
    vec![format!(
        "undefined flags {undefined:#x}: ours {found:#x}, docs/undefined.md says {:#x}",
        listed & undefined
    )]
}

/// A result and its width in bits.
#[derive(Clone, Copy)]
struct Sized {
    value: u64,
    bits: u32,
}

impl Sized {
    fn bit(self, number: u32) -> bool {
        self.value >> number & 1 != 0
    }

    fn top(self) -> bool {
        self.bit(self.bits - 1)
    }

    /// The second highest bit.
    fn next(self) -> bool {
        self.bit(self.bits - 2)
    }

    /// SF, ZF and PF as a logic operation sets them.
    fn status(self) -> u64 {
        flag(SF, self.top())
            | flag(ZF, self.value == 0)
            | flag(PF, (self.value as u8).count_ones().is_multiple_of(2))
    }
}

fn flag(bit: u64, is_set: bool) -> u64 {
    if is_set { bit } else { 0 }
}

/// The value of the first operand after the instruction.
fn result_of(
    case: &Case,
    instr: &Instruction,
    after: &State,
    memory: &dyn Subject,
) -> Option<Sized> {
    match instr.op0_kind() {
        OpKind::Register => register(after, instr.op0_register()),
        OpKind::Memory => {
            let bits = instr.memory_size().size() as u32 * 8;
            let at = operand_address(case.mode, &case.state, instr, |_| true)?;
            let region = REGIONS.iter().position(|start| {
                at.wrapping_sub(*start) <= REGION_BYTES as u64 - u64::from(bits / 8)
            })?;
            let from = (at - REGIONS[region]) as usize;
            let bytes = memory.memory(region).get(from..from + bits as usize / 8)?;
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            Some(Sized { value, bits })
        }
        _ => register(after, Register::AL),
    }
}

fn register(state: &State, reg: Register) -> Option<Sized> {
    if !reg.is_gpr() {
        return None;
    }
    let bits = reg.size() as u32 * 8;
    let full = state.gpr[reg.full_register().number()];
    let is_high = matches!(reg, Register::AH | Register::CH | Register::DH | Register::BH);
    let value = if is_high { full >> 8 } else { full };
    Some(Sized { value: value & u64::MAX >> (64 - bits), bits })
}

/// RFLAGS as the list has them, as far as they are undefined. `None` if the list has no row.
fn listed_flags(
    instr: &Instruction,
    cl: u8,
    before: &State,
    after: &State,
    result: Sized,
) -> Option<u64> {
    use Mnemonic as M;
    let carry = after.rflags & CF != 0;
    let count = |instr| forms::shift_count(instr, cl);
    Some(match instr.mnemonic() {
        M::And | M::Or | M::Xor | M::Test => 0,
        M::Shl | M::Sal => {
            let beyond = count(instr) > result.bits;
            let carry = !beyond && carry;
            flag(CF, carry) | flag(OF, carry != result.top())
        }
        M::Shr => flag(CF, count(instr) <= result.bits && carry),
        M::Sar => 0,
        M::Shld if count(instr) <= result.bits => flag(OF, carry != result.top()),
        M::Shrd if count(instr) <= result.bits => flag(OF, result.top() != result.next()),
        M::Rcl | M::Rcr if count(instr) % (result.bits + 1) == 0 => before.rflags,
        M::Rol | M::Rcl => flag(OF, carry != result.top()),
        M::Ror | M::Rcr => flag(OF, result.top() != result.next()),
        M::Mul | M::Imul => {
            let low = if instr.op_count() == 1 {
                let accumulator = match result.bits {
                    8 => Register::AL,
                    16 => Register::AX,
                    32 => Register::EAX,
                    _ => Register::RAX,
                };
                register(after, accumulator)?
            } else {
                result
            };
            low.status()
        }
        M::Div | M::Idiv | M::Bsf | M::Bsr | M::Bt | M::Bts | M::Btr | M::Btc => before.rflags,
        M::Andn | M::Blsi | M::Blsr | M::Blsmsk | M::Bzhi => result.status(),
        M::Bextr | M::Lzcnt | M::Tzcnt => 0,
        M::Aaa | M::Aas => register(after, Register::AL)?.status(),
        M::Daa | M::Das | M::Aam | M::Aad => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotate_by_two_is_judged_by_its_result_and_carry() {
        let (instr, _) = decode(crate::state::Mode::Long64, &[0xc0, 0xc0, 2], 0);
        let before = State::default();
        let result = Sized { value: 0x81, bits: 8 };
        let after = |rflags| State { rflags, ..State::default() };
        assert_eq!(listed_flags(&instr, 0, &before, &after(CF), result), Some(0));
        assert_eq!(listed_flags(&instr, 0, &before, &after(0), result), Some(OF));
    }

    #[test]
    fn flags_without_a_row_are_not_judged() {
        let (instr, _) = decode(crate::state::Mode::Long64, &[0x01, 0xc0], 0);
        let state = State::default();
        assert_eq!(listed_flags(&instr, 0, &state, &state, Sized { value: 0, bits: 32 }), None);
    }
}
