//! Random encodings of one instruction form, redundant ones included.
//!
//! The bytes are put together from iced's opcode table and random ModRM, SIB, displacement,
//! immediate and prefixes, then decoded; what decodes to another form is thrown away. So the choice
//! of bytes does not depend on an encoder's taste.

use base::SeededRng;
use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix,
    OpCodeInfo, OpCodeOperandKind, OpCodeTableKind, OpKind,
};

use crate::state::Mode;
use crate::values;

/// How often an encoding is tried before the form counts as not encodable in the mode.
const TRIES: u32 = 400;

/// How memory operands are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Any way that the encoding has.
    Any,
    /// By one of the mode's two fixed base registers ([`fixed_bases`]) and a displacement of
    /// full size, with no prefix that changes the address.
    Fixed,
}

/// An instruction and its bytes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The bytes, without anything behind the instruction.
    pub bytes: Vec<u8>,
    /// The instruction, decoded at the address that was asked for.
    pub instr: Instruction,
    /// Where in the bytes displacement and immediates lie.
    pub offsets: ConstantOffsets,
}

/// Numbers of the registers that [`Addressing::Fixed`] uses: the first holds an address in the low
/// data region, the second one in the high region (or in the low one again, in 32-bit mode).
#[must_use]
pub const fn fixed_bases(mode: Mode) -> [usize; 2] {
    match mode {
        Mode::Long64 => [14, 15],
        Mode::Compat16 | Mode::Compat32 => [5, 3],
    }
}

/// Decodes bytes at an address as the interpreter's guest has it.
#[must_use]
pub fn decode(mode: Mode, bytes: &[u8], ip: u64) -> (Instruction, ConstantOffsets) {
    let mut decoder = Decoder::with_ip(mode.bits(), bytes, ip, DecoderOptions::NONE);
    let instr = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instr);
    (instr, offsets)
}

/// True if the form is an instruction of its own that has a legacy or VEX encoding in `mode`.
#[must_use]
pub fn is_encodable(code: Code, mode: Mode) -> bool {
    let op = code.op_code();
    matches!(op.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && op.is_instruction()
        && !op.fwait()
        && op.is_available_in_mode(mode.bits())
}

/// A random encoding of `code` at address `ip`.
#[must_use]
pub fn random(
    code: Code,
    mode: Mode,
    addressing: Addressing,
    ip: u64,
    rng: &mut SeededRng,
) -> Option<Encoded> {
    let op = code.op_code();
    (0..TRIES).find_map(|_| {
        let bytes = match op.encoding() {
            EncodingKind::VEX => attempt_vex(op, mode, addressing, rng),
            _ => attempt(op, mode, addressing, rng),
        };
        let (instr, offsets) = decode(mode, &bytes, ip);
        if instr.code() != code || addressing == Addressing::Fixed && !is_fixed(&instr, mode) {
            return None;
        }
        let mut bytes = bytes[..instr.len()].to_vec();
        randomize_immediates(&instr, &offsets, &mut bytes, rng);
        let (instr, offsets) = decode(mode, &bytes, ip);
        (instr.code() == code).then_some(Encoded { bytes, instr, offsets })
    })
}

fn is_fixed(instr: &Instruction, mode: Mode) -> bool {
    let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    !has_memory
        || instr.memory_displ_size() != 0
            && !instr.is_ip_rel_memory_operand()
            && instr.memory_index() == iced_x86::Register::None
            && fixed_bases(mode).contains(&(instr.memory_base().number()))
}

fn attempt(op: &OpCodeInfo, mode: Mode, addressing: Addressing, rng: &mut SeededRng) -> Vec<u8> {
    let long = mode == Mode::Long64;
    let mut prefixes = Vec::new();
    let mut rex = 0u8;
    match op.operand_size() {
        16 if mode != Mode::Compat16 => prefixes.push(0x66),
        32 if mode == Mode::Compat16 => prefixes.push(0x66),
        64 if long && !op.default_op_size64() && !op.force_op_size64() => rex |= 8,
        _ => {}
    }
    match op.mandatory_prefix() {
        MandatoryPrefix::P66 => prefixes.push(0x66),
        MandatoryPrefix::PF3 => prefixes.push(0xf3),
        MandatoryPrefix::PF2 => prefixes.push(0xf2),
        MandatoryPrefix::None | MandatoryPrefix::PNP => {}
    }
    if op.address_size() != 0 && op.address_size() != mode.bits() {
        prefixes.push(0x67);
    }
    if op.can_use_lock_prefix() && rng.one_in(3) {
        prefixes.push(0xf0);
    }
    if (op.can_use_rep_prefix() || op.can_use_repne_prefix()) && rng.one_in(2) {
        prefixes.push(if op.can_use_rep_prefix() && rng.one_in(2) { 0xf3 } else { 0xf2 });
    }
    if addressing == Addressing::Any {
        let more =
            [(0x67, 14), (0x64, 12), (0x65, 12), (0x26, 40), (0x2e, 40), (0x36, 40), (0x3e, 40)];
        prefixes.extend(more.iter().filter(|(_, n)| rng.one_in(*n)).map(|(prefix, _)| *prefix));
        let redundant = [(0x66, 40), (0xf2, 60), (0xf3, 60)];
        prefixes
            .extend(redundant.iter().filter(|(_, n)| rng.one_in(*n)).map(|(prefix, _)| *prefix));
    }
    shuffle(&mut prefixes, rng);
    if long && rng.one_in(2) {
        rex |= 0x40 | (rng.u64() as u8 & 7);
    }
    if long && op.operand_size() == 0 && rng.one_in(8) {
        rex |= 8;
    }
    let modrm = modrm(op, mode, addressing, rng);
    if addressing == Addressing::Fixed && modrm >> 6 != 3 {
        rex = if long { rex & !3 | 0x41 } else { 0 };
    }
    let mut bytes = prefixes;
    if rex != 0 {
        bytes.push(0x40 | rex);
    }
    match op.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
    let mut opcode = op.op_code();
    if op.op_kinds().iter().any(|kind| is_in_opcode(*kind)) {
        opcode |= (rng.u64() & 7) as u32;
    }
    if op.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    bytes.push(opcode as u8);
    bytes.push(modrm);
    let mut tail = [0; 14];
    rng.fill(&mut tail);
    bytes.extend(tail);
    bytes
}

/// A form with a VEX prefix, of two bytes where that is possible.
fn attempt_vex(
    op: &OpCodeInfo,
    mode: Mode,
    addressing: Addressing,
    rng: &mut SeededRng,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    if addressing == Addressing::Any {
        let prefixes =
            [(0x67, 14), (0x64, 12), (0x65, 12), (0x26, 40), (0x2e, 40), (0x36, 40), (0x3e, 40)];
        bytes.extend(prefixes.iter().filter(|(_, n)| rng.one_in(*n)).map(|(prefix, _)| *prefix));
    }
    let modrm = modrm(op, mode, addressing, rng);
    let is_long = mode == Mode::Long64;
    // Extensions of the register numbers, stored inverted.
    let [mut r, mut x, mut b] = [(); 3].map(|()| is_long && rng.one_in(2));
    if addressing == Addressing::Fixed && modrm >> 6 != 3 {
        (x, b) = (false, is_long);
        r = r && is_long;
    }
    let vvvv = if rng.one_in(3) { 15 } else { rng.below(16) as u8 };
    let l = if op.is_lig() { rng.one_in(2) } else { op.l() == 1 };
    let w = if op.is_wig() || op.is_wig32() && !is_long { rng.one_in(2) } else { op.w() == 1 };
    let pp = match op.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        MandatoryPrefix::None | MandatoryPrefix::PNP => 0,
    };
    let map = match op.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let last = vvvv << 3 | u8::from(l) << 2 | pp;
    if map == 1 && !x && !b && !w && rng.one_in(2) {
        bytes.extend([0xc5, u8::from(!r) << 7 | last]);
    } else {
        let first = u8::from(!r) << 7 | u8::from(!x) << 6 | u8::from(!b) << 5 | map;
        bytes.extend([0xc4, first, u8::from(w) << 7 | last]);
    }
    bytes.extend([op.op_code() as u8, modrm]);
    let mut tail = [0; 14];
    rng.fill(&mut tail);
    bytes.extend(tail);
    bytes
}

fn modrm(op: &OpCodeInfo, mode: Mode, addressing: Addressing, rng: &mut SeededRng) -> u8 {
    let mut modrm = random_modrm(rng);
    if addressing == Addressing::Fixed && modrm >> 6 != 3 {
        let base = fixed_bases(mode)[rng.below(2) as usize] as u8;
        // In 16-bit addressing [BP] and [BX] have other numbers.
        let rm = match (mode, base) {
            (Mode::Compat16, 5) => 6,
            (Mode::Compat16, _) => 7,
            _ => base & 7,
        };
        modrm = 0x80 | modrm & 0x38 | rm;
    }
    if op.is_group() {
        modrm = modrm & 0xc7 | (op.group_index() as u8) << 3;
    }
    if op.is_rm_group() {
        modrm = 0xc0 | modrm & 0x38 | op.rm_group_index() as u8;
    }
    modrm
}

fn is_in_opcode(kind: OpCodeOperandKind) -> bool {
    matches!(
        kind,
        OpCodeOperandKind::r8_opcode
            | OpCodeOperandKind::r16_opcode
            | OpCodeOperandKind::r32_opcode
            | OpCodeOperandKind::r64_opcode
            | OpCodeOperandKind::sti_opcode
    )
}

/// Registers half of the time; SIB bytes and short displacements more often than uniform bytes give.
fn random_modrm(rng: &mut SeededRng) -> u8 {
    let random = rng.u64() as u8;
    match rng.below(8) {
        0..=3 => random | 0xc0,
        4 => random & 0x38 | 4 | (rng.below(3) as u8) << 6,
        _ => random,
    }
}

fn shuffle(bytes: &mut [u8], rng: &mut SeededRng) {
    for i in (1..bytes.len()).rev() {
        bytes.swap(i, rng.below(i as u64 + 1) as usize);
    }
}

fn randomize_immediates(
    instr: &Instruction,
    offsets: &ConstantOffsets,
    bytes: &mut [u8],
    rng: &mut SeededRng,
) {
    let is_branch = (0..instr.op_count()).any(|op| {
        matches!(
            instr.op_kind(op),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
    });
    // Small constants are part of some forms' opcode (a shift by 1, AAM's base); a form that
    // changes by its immediate is refused by the caller.
    if is_branch {
        return;
    }
    for (at, size) in [
        (offsets.immediate_offset(), offsets.immediate_size()),
        (offsets.immediate_offset2(), offsets.immediate_size2()),
    ] {
        if size > 0 {
            let value = values::int(rng, size);
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}
