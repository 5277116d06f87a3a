//! BMI1, BMI2, LZCNT and TZCNT: the host's own, and of the flags what the manual leaves open as `docs/undefined.md`
//! defines it.

use x86::iced::{Instruction, Mnemonic, OpKind, Register};

use crate::emit::{RegMem, reg};
use crate::fold::put;
use crate::frame::{Home, S, T, home};
use crate::scan::{Kind, is_memory_reachable};
use crate::translate::{FlagState, Gen, set_memory, sized_register};

/// What an instruction writes to the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// Those of a logic operation with this result.
    Logic,
    /// The same, but CF is the instruction's own.
    LogicWithCarry,
    /// All are 0 but ZF, and CF if it says so.
    Zero { and_carry: bool },
}

/// An instruction of these extensions, if it is one that can be translated.
pub(crate) fn kind_of(ins: &Instruction) -> Option<Kind> {
    let flags = match ins.mnemonic() {
        Mnemonic::Mulx
        | Mnemonic::Pdep
        | Mnemonic::Pext
        | Mnemonic::Rorx
        | Mnemonic::Sarx
        | Mnemonic::Shlx
        | Mnemonic::Shrx => None,
        Mnemonic::Andn => Some(Flags::Logic),
        Mnemonic::Blsi | Mnemonic::Blsmsk | Mnemonic::Blsr | Mnemonic::Bzhi => {
            Some(Flags::LogicWithCarry)
        }
        Mnemonic::Bextr => Some(Flags::Zero { and_carry: false }),
        Mnemonic::Tzcnt | Mnemonic::Lzcnt => Some(Flags::Zero { and_carry: true }),
        _ => return None,
    };
    is_memory_reachable(ins).then_some(Kind::Bmi(flags))
}

impl Gen<'_> {
    /// An instruction of one or two results and up to three operands, of which only the one that may be in
    /// memory is read from a place without a register.
    pub(crate) fn bmi(&mut self, index: usize, flags: Option<Flags>) {
        let place = self.operand(index);
        let insn = &self.trace.insns[index];
        let mut ins = insn.ins;
        ins.set_has_rep_prefix(false);
        ins.set_has_repne_prefix(false);
        ins.set_segment_prefix(Register::None);
        let results = if ins.mnemonic() == Mnemonic::Mulx { 2 } else { 1 };
        if let Some(place) = place {
            set_memory(&mut ins, place);
        }
        let memory_form = rm_operand(&ins);
        let mut put_back: [Option<(i32, u8)>; 2] = [None, None];
        for number in 0..ins.op_count() {
            if ins.op_kind(number) != OpKind::Register {
                continue;
            }
            let register = ins.op_register(number);
            let host = match home(register.full_register().number() as u8) {
                Home::Reg(r) => r,
                Home::Slot(at) if number == memory_form => {
                    put(&mut ins, number, at);
                    continue;
                }
                Home::Slot(at) if number < results => {
                    // The operands are read before a result is written, so a result may take their place.
                    let known = put_back.into_iter().flatten().find(|(known, _)| *known == at);
                    let scratch = match (known, put_back[0]) {
                        (Some((_, scratch)), _) => scratch,
                        (None, None) => T,
                        (None, Some(_)) => {
                            self.held = None;
                            S
                        }
                    };
                    put_back[number as usize] = Some((at, scratch));
                    scratch
                }
                Home::Slot(at) => {
                    self.e.load(T, reg::RSP, at);
                    T
                }
            };
            ins.set_op_register(number, sized_register(host, register.size()));
        }
        self.encode_as(&ins);
        let bytes = ins.op0_register().size() as u32;
        for (at, scratch) in put_back.into_iter().flatten() {
            if bytes == 2 {
                self.e.mov_sized(2, RegMem::Mem(reg::RSP, at), scratch);
            } else {
                self.e.store(reg::RSP, at, scratch);
            }
        }
        if let Some(flags) = flags {
            let result = ins.op0_register().full_register().number() as u8;
            self.bmi_flags(index, flags, bytes, result);
        }
    }

    /// Has the flags that an instruction has written, whose result is in a host register.
    fn bmi_flags(&mut self, index: usize, flags: Flags, bytes: u32, result: u8) {
        self.native = false;
        if self.trace.insns[index].live == 0 {
            self.flags = FlagState::Dead;
            return;
        }
        match flags {
            Flags::Logic => {
                // The host's are not ours, but a recipe costs nothing unless somebody looks.
                if let Some(recipe) = self.recipe(index) {
                    self.flags = FlagState::Recipe(recipe);
                    return;
                }
                self.e.test_sized(bytes, result, RegMem::Reg(result));
                self.e.save_flags();
                self.native = true;
            }
            Flags::LogicWithCarry => {
                self.e.carry_to_al();
                self.e.test_sized(bytes, result, RegMem::Reg(result));
                self.e.carry_from_al();
                self.e.clear_saved_of();
            }
            Flags::Zero { and_carry } => {
                self.e.save_some_flags(if and_carry { ZF | CF } else { ZF })
            }
        }
        self.flags = FlagState::Home;
    }
}

/// In AH.
const CF: u8 = 1;
const ZF: u8 = 1 << 6;

/// The operand that may be in memory.
fn rm_operand(ins: &Instruction) -> u32 {
    match ins.mnemonic() {
        Mnemonic::Andn | Mnemonic::Mulx | Mnemonic::Pdep | Mnemonic::Pext => 2,
        _ => 1,
    }
}
