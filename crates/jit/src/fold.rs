//! Guest registers that have no host register, as operands: where the instruction allows it, their slot in the frame
//! is the operand itself, and nothing is loaded that is overwritten anyway.

use x86::iced::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

use crate::emit::{RegMem, reg};
use crate::frame::{Home, home};
use crate::scan::{Insn, Kind, is_high_byte, is_set_or_move_on_condition};
use crate::translate::set_memory;

/// The slot and the number of a guest register that has no host register.
fn slot_of(register: Register) -> Option<(i32, u8)> {
    if !register.is_gpr() || is_high_byte(register) {
        return None;
    }
    let number = register.full_register().number() as u8;
    match home(number) {
        Home::Slot(at) => Some((at, number)),
        Home::Reg(_) => None,
    }
}

fn register(ins: &Instruction, operand: u32) -> Option<Register> {
    (operand < ins.op_count() && ins.op_kind(operand) == OpKind::Register)
        .then(|| ins.op_register(operand))
}

/// Makes a slot the operand that may be memory, if the instruction, which has none in memory, has one and that may be a
/// slot. `upper_zero` has a bit set for each register whose upper half is known to be 0.
///
/// A slot is only ever written as a whole: the host waits where more is loaded than was stored last.
pub(crate) fn fold(ins: &mut Instruction, sets: u16, upper_zero: u16) {
    if !is_simple(ins) || overwrites_itself(ins) {
        return;
    }
    let (target, source) = (register(ins, 0), register(ins, 1));
    // A copy of it as a source would be taken for the result.
    let is_source = target.is_some_and(|target| {
        source.is_some_and(|source| source.full_register() == target.full_register())
    });
    if let Some((at, number)) = target.and_then(slot_of)
        && may_be_memory(ins.code(), 0)
        && !is_source
    {
        let is_whole = target.is_some_and(|it| it.size() == 8) || sets >> number & 1 == 0;
        if is_whole {
            return put(ins, 0, at);
        }
        if ins.code() == Code::Mov_rm32_r32
            && let Some(source) = source
            && slot_of(source).is_none()
            && upper_zero >> source.full_register().number() & 1 != 0
        {
            ins.set_code(Code::Mov_rm64_r64);
            ins.set_op1_register(source.full_register());
            return put(ins, 0, at);
        }
    }
    let Some((at, _)) = source.and_then(slot_of) else { return };
    if may_be_memory(ins.code(), 1) {
        put(ins, 1, at);
    } else if let Some(code) = reversed(ins.code()) {
        ins.set_code(code);
        put(ins, 1, at);
    }
}

/// Makes a slot the operand, which may be memory.
pub(crate) fn put(ins: &mut Instruction, operand: u32, at: i32) {
    ins.set_op_kind(operand, OpKind::Memory);
    set_memory(ins, RegMem::Mem(reg::RSP, at));
}

/// Instructions that mean the same with memory in the place of a register.
fn is_simple(ins: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        ins.mnemonic(),
        Mov | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Shl
            | Shr
            | Sar
            | Rol
            | Ror
            | Inc
            | Dec
            | Neg
            | Not
            | Imul
            | Movzx
            | Movsx
            | Movsxd
            | Popcnt
            | Cvtsi2sd
            | Cvtsi2ss
    ) || is_set_or_move_on_condition(ins)
}

/// True if operand 0 is written and its value before does not matter.
pub(crate) fn overwrites(ins: &Instruction) -> bool {
    use Mnemonic::*;
    let Some(target) = register(ins, 0) else { return false };
    if target.size() < 4 {
        return false;
    }
    matches!(
        ins.mnemonic(),
        Mov | Movzx | Movsx | Movsxd | Movd | Movq | Popcnt | Cvttsd2si | Cvttss2si | Cvtsd2si
    ) || ins.mnemonic() == Imul && ins.op_count() == 3
        || overwrites_itself(ins)
}

/// What is usually written to have a register become 0.
fn overwrites_itself(ins: &Instruction) -> bool {
    matches!(ins.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
        && ins.op0_kind() == OpKind::Register
        && ins.op1_kind() == OpKind::Register
        && ins.op0_register() == ins.op1_register()
}

fn may_be_memory(code: Code, operand: u32) -> bool {
    use OpCodeOperandKind::{r8_or_mem, r16_or_mem, r32_or_mem, r64_or_mem};
    matches!(code.op_code().op_kind(operand), r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem)
}

/// The form whose second operand may be memory, for one of the many whose first one may.
fn reversed(code: Code) -> Option<Code> {
    // There are four sizes of each, one after the other.
    let other = Code::try_from(code as usize + 4).ok()?;
    let (this, that) = (code.op_code(), other.op_code());
    (code.mnemonic() == other.mnemonic()
        && that.op_count() == 2
        && this.op0_kind() == that.op1_kind()
        && this.op1_kind() == that.op0_kind())
    .then_some(other)
}

/// The registers whose upper half is 0 after an instruction, if these are the ones before.
pub(crate) fn upper_zero_after(insn: &Insn, before: u16) -> u16 {
    let kept = before & !insn.sets;
    if !matches!(insn.kind, Kind::Copy | Kind::Lea) {
        return kept;
    }
    let Some(target) = register(&insn.ins, 0).filter(|it| it.is_gpr()) else { return kept };
    let bit = 1 << target.full_register().number() & insn.sets;
    match target.size() {
        4 => kept | bit,
        8 => kept,
        _ => kept | bit & before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::iced::{Decoder, DecoderOptions};

    fn folded(code: &[u8], sets: u16, upper_zero: u16) -> Instruction {
        let mut ins = Decoder::new(64, code, DecoderOptions::NONE).decode();
        fold(&mut ins, sets, upper_zero);
        ins
    }

    #[test]
    fn a_source_becomes_memory_in_the_form_that_has_it_there() {
        // add ecx,r9d as ADD r/m32,r32
        let ins = folded(&[0x44, 0x01, 0xc9], 1 << 1, 0);
        assert_eq!((ins.code(), ins.op1_kind()), (Code::Add_r32_rm32, OpKind::Memory));
        assert_eq!((ins.memory_base(), ins.memory_displacement64()), (Register::RSP, 8));
        // movzx eax,r8b
        let ins = folded(&[0x41, 0x0f, 0xb6, 0xc0], 1, 0);
        assert_eq!((ins.code(), ins.op1_kind()), (Code::Movzx_r32_rm8, OpKind::Memory));
    }

    #[test]
    fn only_whole_slots_are_written() {
        // ror r9d,2; setne r9b; mov r9w,cx
        for code in
            [[0x41, 0xc1, 0xc9, 2].as_slice(), &[0x41, 0x0f, 0x95, 0xc1], &[0x66, 0x41, 0x89, 0xc9]]
        {
            assert_eq!(folded(code, 1 << 9, 1 << 9 | 1 << 1).op0_kind(), OpKind::Register);
        }
        // add r9,rcx; cmp r9d,ecx
        assert_eq!(folded(&[0x49, 0x01, 0xc9], 1 << 9, 0).op0_kind(), OpKind::Memory);
        assert_eq!(folded(&[0x41, 0x39, 0xc9], 0, 0).op0_kind(), OpKind::Memory);
    }

    #[test]
    fn a_copy_of_four_bytes_is_one_of_eight_where_the_rest_of_the_source_is_zero() {
        // mov r9d,ecx
        let code = [0x41, 0x89, 0xc9];
        assert_eq!(folded(&code, 1 << 9, 1 << 9).op0_kind(), OpKind::Register);
        let ins = folded(&code, 1 << 9, 1 << 1);
        assert_eq!((ins.code(), ins.op0_kind()), (Code::Mov_rm64_r64, OpKind::Memory));
        assert_eq!(ins.op1_register(), Register::RCX);
    }

    #[test]
    fn a_target_that_is_the_source_too_is_folded_as_the_source() {
        // add r9d,r9d
        let ins = folded(&[0x45, 0x01, 0xc9], 1 << 9, 1 << 9);
        assert_eq!((ins.op0_kind(), ins.op1_kind()), (OpKind::Register, OpKind::Memory));
    }

    #[test]
    fn what_locks_the_bus_or_means_something_else_in_memory_stays_in_registers() {
        // xchg r9,rcx; bt r9,rcx
        for code in [[0x49, 0x87, 0xc9].as_slice(), &[0x49, 0x0f, 0xa3, 0xc9]] {
            let ins = folded(code, 0, 0);
            assert!((0..ins.op_count()).all(|n| ins.op_kind(n) == OpKind::Register));
        }
    }

    #[test]
    fn every_form_of_two_registers_is_reversed_to_its_own_mnemonic() {
        let pairs = [
            (Code::Mov_rm8_r8, Code::Mov_r8_rm8),
            (Code::Mov_rm64_r64, Code::Mov_r64_rm64),
            (Code::Cmp_rm16_r16, Code::Cmp_r16_rm16),
            (Code::Xor_rm32_r32, Code::Xor_r32_rm32),
        ];
        for (code, other) in pairs {
            assert_eq!(reversed(code), Some(other));
        }
        assert_eq!(reversed(Code::Test_rm32_r32), None);
    }
}
