//! From bytes to [`Op`]s: `iced-x86` decodes, this resolves the operands.

use x86::iced::{Code, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use x86::{Access, CpuModel, Cr0, Cr4};

use crate::forms::{self, Gate};
use crate::op::{Fault, Handler};
use crate::state::Seg;
use crate::{Cpu, Env, Op, Side};

/// The longest instruction.
pub const INSTRUCTION_BYTES_MAX: usize = 15;

/// The decoder's options where bits of the mode say what bytes mean ([`crate::CodePlace`]). A CPU without
/// CET and MPX, or without BMI1 and LZCNT, runs their encodings as what they were before.
#[must_use]
pub const fn decoder_options(meaning: u32) -> u32 {
    let options = DecoderOptions::NO_WBNOINVD | DecoderOptions::FORCE_RESERVED_NOP;
    if meaning & ModeKey::V3 != 0 {
        options
    } else {
        options | DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD
    }
}

/// The model ([`CpuModel::bits`]) where bits of the mode say what bytes mean ([`crate::CodePlace`]).
#[must_use]
pub const fn model_bits(meaning: u32) -> u32 {
    (meaning & ModeKey::MODEL) >> ModeKey::MODEL_SHIFT
}

/// What of the CPU and its state decides how bytes decode, packed into a number.
///
/// Bits 0 and 1: code size (0: 16 bits, 1: 32, 2: 64). Bit 2: segments are flat. Bits 3 to 6: CR0.EM,
/// CR0.TS, CR0.MP, CR4.OSFXSR. Bit 7: real or virtual 8086 mode. Bits 8 to 11: the model ([`CpuModel::bits`]).
/// Bit 12: CR4.OSXSAVE and XCR0 allow AVX. The rest does not change what bytes mean but where they are found:
/// bit 13: user mode; bits 14 and up: the address space's TLB bank.
pub(crate) struct ModeKey;

impl ModeKey {
    const FLAT: u32 = 1 << 2;
    const EM: u32 = 1 << 3;
    const TS: u32 = 1 << 4;
    const MP: u32 = 1 << 5;
    const OSFXSR: u32 = 1 << 6;
    const REAL: u32 = 1 << 7;
    const MODEL_SHIFT: u32 = 8;
    const MODEL: u32 = 15 << ModeKey::MODEL_SHIFT;
    const V3: u32 = CpuModel::V3.bits() << ModeKey::MODEL_SHIFT;
    const AVX: u32 = 1 << 12;
    const USER: u32 = 1 << 13;
    const BANK_SHIFT: u32 = 14;
    /// The bits that decide what bytes mean.
    pub(crate) const MEANING: u32 = 0x1fff;

    /// The key on the other side of a system call, or on this one.
    pub(crate) fn on(key: u32, side: Side) -> u32 {
        key & !ModeKey::USER | if side == Side::Program { ModeKey::USER } else { 0 }
    }
}

impl Cpu {
    pub(crate) fn compute_mode_key(&self) -> u32 {
        let when = |condition: bool, bit: u32| if condition { bit } else { 0 };
        let size =
            if self.is_64_bit() { 2 } else { u32::from(self.seg[Seg::CS].access & Access::D != 0) };
        let real = !self.is_protected();
        size | when(size != 2 && self.is_flat(), ModeKey::FLAT)
            | when(self.sys.cr0 & Cr0::EM != 0, ModeKey::EM)
            | when(self.sys.cr0 & Cr0::TS != 0, ModeKey::TS)
            | when(self.sys.cr0 & Cr0::MP != 0, ModeKey::MP)
            | when(self.sys.cr4 & Cr4::OSFXSR != 0, ModeKey::OSFXSR)
            | when(real, ModeKey::REAL)
            | self.model.bits() << ModeKey::MODEL_SHIFT
            | when(self.has_avx_enabled(), ModeKey::AVX)
            | when(self.cpl == 3, ModeKey::USER)
            | (self.tlb.bank() as u32) << ModeKey::BANK_SHIFT
    }
}

/// What decoding one instruction gave.
pub(crate) enum Decoded {
    /// An instruction.
    Op(Op, Ends),
    /// The bytes end inside an instruction.
    NeedMore,
}

/// Whether a block may go on after an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    No,
    Yes,
}

/// Decodes the instruction at the start of `bytes`, which holds up to 15 of them. `offset` is its
/// distance from the block's start.
pub(crate) fn decode(bytes: &[u8], mode_key: u32, offset: u64) -> Decoded {
    let size = mode_key & 3;
    let bits = 16 << size;
    let mut decoder = Decoder::with_ip(bits, bytes, 0, decoder_options(mode_key));
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        let is_cut = decoder.last_error() == DecoderError::NoMoreBytes;
        if is_cut && bytes.len() < INSTRUCTION_BYTES_MAX {
            return Decoded::NeedMore;
        }
        let run: Handler = if is_too_long(bytes, mode_key) { too_long } else { undefined };
        return Decoded::Op(unreadable(run, offset), Ends::Yes);
    }
    lower(&instruction, mode_key, offset)
}

/// The form at the start of `bytes`, and its bytes, for people.
pub(crate) fn name_of(bytes: &[u8], mode_key: u32) -> String {
    let bits = 16 << (mode_key & 3);
    let instruction = Decoder::new(bits, bytes, decoder_options(mode_key)).decode();
    let hex = bytes[..instruction.len().min(bytes.len())].iter().map(|byte| format!("{byte:02x}"));
    format!("{:<30} {:?}", hex.collect::<String>(), instruction.code())
}

/// True if 15 bytes do not hold the instruction because of its prefixes: without them what is left
/// of the bytes is the beginning of an instruction.
fn is_too_long(bytes: &[u8], mode_key: u32) -> bool {
    let bits = 16 << (mode_key & 3);
    let is_prefix = |byte: &u8| {
        let legacy = matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        legacy || bits == 64 && byte & 0xf0 == 0x40
    };
    let prefixes = bytes.iter().take_while(|byte| is_prefix(byte)).count();
    if bytes.len() < INSTRUCTION_BYTES_MAX || prefixes == 0 {
        return false;
    }
    let mut decoder = Decoder::with_ip(bits, &bytes[prefixes..], 0, decoder_options(mode_key));
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// Something that is no instruction: it faults where it starts.
fn unreadable(run: Handler, offset: u64) -> Op {
    Op { end: offset as u16, ..bare(run, Code::INVALID as u16) }
}

fn bare(run: Handler, code: u16) -> Op {
    Op {
        run,
        disp: 0,
        imm: 0,
        r: [0; 4],
        base: Cpu::GPR_ZERO,
        index: Cpu::GPR_ZERO,
        scale: 0,
        seg: Seg::NONE as u8,
        addr_shift: 0,
        flags: 0,
        len: 0,
        imm2: 0,
        end: 0,
        code,
    }
}

pub(crate) fn undefined(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Err(cpu.ud())
}

fn too_long(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Err(cpu.gp())
}

fn not_available(cpu: &mut Cpu, _: &mut Env<'_>, _: &Op) -> Result<(), Fault> {
    Err(cpu.fault(x86::Vector::NM))
}

/// Resolves the operands of an instruction.
fn lower(instruction: &Instruction, mode_key: u32, offset: u64) -> Decoded {
    let code = instruction.code();
    let mut op = bare(undefined, code as u16);
    op.len = instruction.len() as u8;
    op.end = (offset + u64::from(op.len)) as u16;
    let Some(form) = forms::lookup_in(code, model_bits(mode_key)) else {
        return Decoded::Op(op, Ends::Yes);
    };
    if form.protected_only() && mode_key & ModeKey::REAL != 0 {
        return Decoded::Op(op, Ends::Yes);
    }
    let has_memory = lower_operands(instruction, &mut op, mode_key);
    let handler = if has_memory { form.mem } else { form.reg };
    if instruction.has_lock_prefix() {
        op.flags |= Op::LOCK;
        if !has_memory {
            return Decoded::Op(op, Ends::Yes);
        }
    }
    if instruction.has_rep_prefix() {
        op.flags |= Op::REP;
    }
    if instruction.has_repne_prefix() {
        op.flags |= Op::REPNE;
    }
    if mode_key & 3 == 2 {
        op.flags |= Op::LONG;
    }
    op.run = gate(form.gate(), mode_key).unwrap_or(handler);
    let ends =
        if form.ends_block() || op.run as usize != handler as usize { Ends::Yes } else { Ends::No };
    Decoded::Op(op, ends)
}

/// What runs instead of an FPU instruction whose unit is switched off.
fn gate(gate: Gate, mode_key: u32) -> Option<Handler> {
    let has = |bit| mode_key & bit != 0;
    let (ud, nm): (Handler, Handler) = (undefined, not_available);
    match gate {
        Gate::None => None,
        Gate::X87 | Gate::Fxsave => (has(ModeKey::EM) || has(ModeKey::TS)).then_some(nm),
        Gate::Wait => (has(ModeKey::MP) && has(ModeKey::TS)).then_some(nm),
        Gate::Mmx if has(ModeKey::EM) => Some(ud),
        Gate::Sse if has(ModeKey::EM) || !has(ModeKey::OSFXSR) => Some(ud),
        Gate::Avx if !has(ModeKey::AVX) || has(ModeKey::REAL) => Some(ud),
        Gate::Mmx | Gate::Sse | Gate::Avx | Gate::Xsave => has(ModeKey::TS).then_some(nm),
    }
}

/// Fills in the operands; true if one is in memory.
fn lower_operands(instruction: &Instruction, op: &mut Op, mode_key: u32) -> bool {
    let mut has_memory = false;
    let mut immediates = 0;
    for number in 0..instruction.op_count() {
        match instruction.op_kind(number) {
            OpKind::Register => {
                if let Some(slot) = op.r.get_mut(number as usize) {
                    *slot = register_number(instruction.op_register(number));
                }
            }
            OpKind::Memory => {
                has_memory = true;
                lower_memory(instruction, op, mode_key);
            }
            // Decoded at address 0, so the target is the distance plus the length.
            OpKind::NearBranch16 => {
                op.imm =
                    (instruction.near_branch16() as i16 as u64).wrapping_sub(u64::from(op.len));
            }
            OpKind::NearBranch32 => {
                op.imm =
                    (instruction.near_branch32() as i32 as u64).wrapping_sub(u64::from(op.len));
            }
            OpKind::NearBranch64 => {
                op.imm = instruction.near_branch64().wrapping_sub(u64::from(op.len));
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(instruction.far_branch16());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(instruction.far_branch32());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI => {
                has_memory = true;
                lower_string(instruction, op, 16, mode_key);
            }
            OpKind::MemorySegESI | OpKind::MemorySegEDI => {
                has_memory = true;
                lower_string(instruction, op, 32, mode_key);
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI => {
                has_memory = true;
                lower_string(instruction, op, 64, mode_key);
            }
            OpKind::MemoryESDI => {
                has_memory = true;
                lower_es(op, 16);
            }
            OpKind::MemoryESEDI => {
                has_memory = true;
                lower_es(op, 32);
            }
            OpKind::MemoryESRDI => {
                has_memory = true;
                lower_es(op, 64);
            }
            _ if immediates == 0 => {
                op.imm = instruction.immediate(number);
                immediates = 1;
            }
            _ => op.imm2 = instruction.immediate(number) as u8,
        }
    }
    has_memory
}

fn lower_string(instruction: &Instruction, op: &mut Op, bits: u8, mode_key: u32) {
    op.addr_shift = 64 - bits;
    set_segment(op, instruction.memory_segment(), Register::None, mode_key);
}

fn lower_es(op: &mut Op, bits: u8) {
    op.addr_shift = 64 - bits;
}

fn lower_memory(instruction: &Instruction, op: &mut Op, mode_key: u32) {
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let displ = instruction.memory_displacement64();
    op.disp = displ;
    let bits = address_bits(instruction, base, index, mode_key);
    op.addr_shift = 64 - bits;
    match base {
        Register::None => {}
        Register::RIP | Register::EIP => {
            // iced has added the next instruction's address, as seen from address 0.
            op.base = Cpu::GPR_BLOCK_RIP;
            let start = u64::from(op.end) - u64::from(op.len);
            op.disp =
                if base == Register::EIP { displ as i32 as u64 } else { displ }.wrapping_add(start);
        }
        _ => op.base = register_number(base),
    }
    // XLAT's index is AL, which its handler adds.
    if !matches!(index, Register::None | Register::AL) {
        op.index = register_number(index);
        op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    }
    if base != Register::None || index != Register::None {
        op.disp = match base {
            Register::RIP | Register::EIP => op.disp,
            _ if bits == 32 => displ as i32 as u64,
            _ if bits == 16 => displ as i16 as u64,
            _ => displ,
        };
    }
    set_segment(op, instruction.memory_segment(), base, mode_key);
}

fn address_bits(instruction: &Instruction, base: Register, index: Register, mode_key: u32) -> u8 {
    // The index of a gather is a vector.
    let reg = if base == Register::None && index.is_gpr() { index } else { base };
    if reg == Register::None {
        return match instruction.memory_displ_size() {
            2 => 16,
            4 => 32,
            8 => 64,
            _ => 16 << (mode_key & 3),
        };
    }
    match reg {
        Register::EIP => 32,
        Register::RIP => 64,
        _ if reg.is_gpr16() => 16,
        _ if reg.is_gpr32() => 32,
        _ => 64,
    }
}

fn set_segment(op: &mut Op, segment: Register, base: Register, mode_key: u32) {
    let is_long = mode_key & 3 == 2;
    let mut index = segment_index(segment);
    if is_long && !matches!(index, Seg::FS | Seg::GS) {
        // Other prefixes are ignored: the base register alone says which fault there is.
        index = if is_stack_base(base) { Seg::SS } else { Seg::DS };
    }
    if index == Seg::SS {
        op.flags |= Op::STACK;
    }
    let is_flat = mode_key & ModeKey::FLAT != 0;
    op.seg = match index {
        Seg::FS | Seg::GS => index,
        _ if is_long => Seg::NONE,
        _ => index,
    } as u8;
    let is_plain = matches!(index, Seg::DS | Seg::ES | Seg::SS) && is_flat;
    if !is_long && !is_plain {
        op.flags |= Op::CHECKED;
    }
}

fn is_stack_base(base: Register) -> bool {
    matches!(base, Register::RSP | Register::RBP | Register::ESP | Register::EBP)
}

fn segment_index(segment: Register) -> usize {
    match segment {
        Register::ES => Seg::ES,
        Register::CS => Seg::CS,
        Register::SS => Seg::SS,
        Register::FS => Seg::FS,
        Register::GS => Seg::GS,
        _ => Seg::DS,
    }
}

/// A register's number as [`Op::r`] holds it.
fn register_number(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            register as u8 - Register::AH as u8 + Op::HIGH_BYTE
        }
        _ if register.is_segment_register() => segment_index(register) as u8,
        // iced numbers SPL to R15L from 8 on.
        _ if register.is_gpr8() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}
