//! An engine for tests: it knows a few instructions, keeps what it has decoded, and leaves the rest to
//! the interpreter. When it stops is random.

use std::collections::BTreeMap;

use base::SeededRng;
use cpu::{Cpu, Engine, Env, Next};
use mem::{GuestMem, RamOffset, WatchedWrite};
use x86::Rflags;
use x86::iced::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

/// The longest block, in instructions.
const BLOCK_LEN_MAX: usize = 6;

/// The engine. What it decoded is keyed by RAM address and mode.
pub(crate) struct Copycat {
    rng: SeededRng,
    blocks: BTreeMap<(u64, u32), Vec<Instruction>>,
    generation: u64,
    /// Steps that it made.
    pub(crate) steps: u64,
}

/// What one instruction came to.
enum Done {
    /// The next instruction is there, with these arithmetic flags.
    At(u64, u64),
    /// It is the interpreter's.
    Left,
}

impl Copycat {
    pub(crate) fn new(seed: u64) -> Copycat {
        let rng = SeededRng::new(seed);
        Copycat { rng, blocks: BTreeMap::new(), generation: 0, steps: 0 }
    }

    /// The block at RIP; it may be empty.
    fn find(&mut self, cpu: &mut Cpu, mem: &mut GuestMem) -> Option<(u64, u32)> {
        if self.generation != cpu.code_generation() {
            self.generation = cpu.code_generation();
            self.blocks.clear();
        }
        let place = cpu.code_place(mem, cpu.rip())?;
        let key = (place.ram.0, place.meaning);
        self.blocks.entry(key).or_insert_with(|| {
            let (page, start) = (place.ram.page(), (place.ram.0 & 0xfff) as usize);
            let block = decode(&mem.page(page)[start..]);
            let end = start + block.last().map_or(0, |last| last.next_ip() as usize);
            if end > start {
                cpu.note_code(mem, page, start, end);
            }
            block
        });
        Some(key)
    }
}

/// Decodes the instructions of one page that [`execute`] knows. Their addresses count from the block.
fn decode(bytes: &[u8]) -> Vec<Instruction> {
    let mut block = Vec::new();
    for instruction in &mut Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE) {
        if !is_known(&instruction) || block.len() == BLOCK_LEN_MAX {
            break;
        }
        block.push(instruction);
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    block
}

fn is_known(instruction: &Instruction) -> bool {
    use Code::{
        Add_rm8_r8, Cmp_AL_imm8, Inc_rm8, Jmp_rel8_64, Jne_rel8_64, Lea_r64_m, Loop_rel8_64_RCX,
        Mov_r8_imm8, Mov_r32_imm32, Mov_rm8_imm8, Mov_rm64_r64, Nopd,
    };
    let known = [
        Add_rm8_r8,
        Cmp_AL_imm8,
        Inc_rm8,
        Jmp_rel8_64,
        Jne_rel8_64,
        Lea_r64_m,
        Loop_rel8_64_RCX,
        Mov_r8_imm8,
        Mov_r32_imm32,
        Mov_rm8_imm8,
        Mov_rm64_r64,
        Nopd,
    ];
    let is_low =
        |reg: Register| !matches!(reg, Register::AH | Register::BH | Register::CH | Register::DH);
    known.contains(&instruction.code())
        && !instruction.has_lock_prefix()
        && (0..instruction.op_count()).all(|op| {
            instruction.op_kind(op) != OpKind::Register || is_low(instruction.op_register(op))
        })
}

impl Engine for Copycat {
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, budget: u64) -> Next {
        assert!(budget > 0 && !cpu.has_attention() && cpu.is_64_bit());
        // Both are legal at any time.
        if self.rng.one_in(8) {
            return Next::Instruction;
        } else if self.rng.one_in(8) {
            return Next::Block;
        }
        let Some(key) = self.find(cpu, env.mem) else { return Next::Block };
        let start = cpu.rip();
        let wanted = budget.min(1 + self.rng.below(BLOCK_LEN_MAX as u64)) as usize;
        let mut steps = 0;
        for instruction in &self.blocks[&key][..] {
            if steps == wanted {
                break;
            }
            match execute(cpu, env, start, instruction) {
                Done::At(rip, flags) => cpu.resume_at(rip, 1, flags),
                Done::Left => break,
            }
            steps += 1;
        }
        self.steps += steps as u64;
        match self.rng.below(3) {
            0 if steps > 0 => Next::Again,
            1 => Next::Block,
            _ => Next::Instruction,
        }
    }

    fn drop_code(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, write: WatchedWrite) {
        let page = write.offset.page();
        let written = write.offset.0..write.offset.0 + u64::from(write.len);
        let end_of = |at: u64, block: &Vec<Instruction>| {
            // What could not be decoded may depend on 15 bytes more.
            at + block.last().map_or(0, Instruction::next_ip) + 15
        };
        self.blocks
            .retain(|(at, _), block| end_of(*at, block) <= written.start || *at >= written.end);
        for ((at, _), block) in self.blocks.range((page << 12, 0)..((page + 1) << 12, 0)) {
            let (start, end) =
                ((at & 0xfff) as usize, (end_of(*at, block) - (page << 12)) as usize);
            cpu.note_code(mem, page, start, end.min(4096));
        }
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![("steps", self.steps)]
    }
}

/// Executes one instruction of the block at `start`, or leaves everything as it is.
fn execute(cpu: &mut Cpu, env: &mut Env<'_>, start: u64, instruction: &Instruction) -> Done {
    let flags = cpu.rflags();
    let next = start.wrapping_add(instruction.next_ip());
    let target = start.wrapping_add(instruction.near_branch64());
    let register = |op: u32| instruction.op_register(op);
    let goes_to = match instruction.code() {
        Code::Jmp_rel8_64 => target,
        Code::Jne_rel8_64 => {
            if flags & Rflags::ZF == 0 {
                target
            } else {
                next
            }
        }
        Code::Loop_rel8_64_RCX => {
            let count = cpu.gpr(1).wrapping_sub(1);
            cpu.set_gpr(1, count);
            if count != 0 { target } else { next }
        }
        _ => next,
    };
    let flags = match instruction.code() {
        Code::Mov_r8_imm8 => {
            set_byte(cpu, register(0), instruction.immediate8());
            flags
        }
        Code::Mov_r32_imm32 => {
            cpu.set_gpr(register(0).number() as u8, u64::from(instruction.immediate32()));
            flags
        }
        Code::Lea_r64_m => {
            cpu.set_gpr(register(0).number() as u8, offset_of(cpu, instruction, start));
            flags
        }
        Code::Mov_rm64_r64 | Code::Mov_rm8_imm8 => {
            let (value, len) = match instruction.code() {
                Code::Mov_rm8_imm8 => (u64::from(instruction.immediate8()), 1),
                _ => (cpu.gpr(register(1).number() as u8), 8),
            };
            if instruction.op0_kind() == OpKind::Memory {
                let Some(at) = place(cpu, env, instruction, start, len) else { return Done::Left };
                match len {
                    1 => env.mem.store(at, value as u8),
                    _ => env.mem.store(at, value),
                }
            } else if len == 1 {
                set_byte(cpu, register(0), value as u8);
            } else {
                cpu.set_gpr(register(0).number() as u8, value);
            }
            flags
        }
        Code::Cmp_AL_imm8 => {
            let (al, other) = (cpu.gpr(0) as u8, instruction.immediate8());
            flags_of(
                al,
                other,
                al.wrapping_sub(other),
                al < other,
                (al ^ other) & (al ^ al.wrapping_sub(other)),
            )
        }
        Code::Add_rm8_r8 | Code::Inc_rm8 => {
            let is_inc = instruction.code() == Code::Inc_rm8;
            let other = if is_inc { 1 } else { byte(cpu, register(1)) };
            let at = match instruction.op0_kind() {
                OpKind::Memory => match place(cpu, env, instruction, start, 1) {
                    Some(at) => Some(at),
                    None => return Done::Left,
                },
                _ => None,
            };
            let old: u8 = at.map_or_else(|| byte(cpu, register(0)), |at| env.mem.load(at));
            let new = old.wrapping_add(other);
            match at {
                Some(at) => env.mem.store(at, new),
                None => set_byte(cpu, register(0), new),
            }
            let carry = if is_inc { flags & Rflags::CF != 0 } else { new < old };
            flags_of(old, other, new, carry, !(old ^ other) & (old ^ new))
        }
        _ => flags,
    };
    Done::At(goes_to, flags)
}

fn byte(cpu: &Cpu, register: Register) -> u8 {
    cpu.gpr(register.full_register().number() as u8) as u8
}

fn set_byte(cpu: &mut Cpu, register: Register, value: u8) {
    let number = register.full_register().number() as u8;
    cpu.set_gpr(number, cpu.gpr(number) & !0xff | u64::from(value));
}

/// The flags of an addition or subtraction of bytes.
fn flags_of(a: u8, b: u8, result: u8, carry: bool, overflow: u8) -> u64 {
    let when = |condition: bool, flag: u64| if condition { flag } else { 0 };
    when(carry, Rflags::CF)
        | when(result.count_ones().is_multiple_of(2), Rflags::PF)
        | when((a ^ b ^ result) & 0x10 != 0, Rflags::AF)
        | when(result == 0, Rflags::ZF)
        | when(result & 0x80 != 0, Rflags::SF)
        | when(overflow & 0x80 != 0, Rflags::OF)
}

fn offset_of(cpu: &Cpu, instruction: &Instruction, start: u64) -> u64 {
    let value = |register: Register, _: usize, _: usize| match register {
        register if register.is_gpr() => Some(match register.size() {
            4 => cpu.gpr(register.full_register().number() as u8) & 0xffff_ffff,
            _ => cpu.gpr(register.number() as u8),
        }),
        _ => Some(0),
    };
    let operand = u32::from(instruction.op0_kind() != OpKind::Memory);
    let offset = instruction.virtual_address(operand, 0, value);
    let offset = offset.expect("every register has a value");
    if instruction.is_ip_rel_memory_operand() { offset.wrapping_add(start) } else { offset }
}

/// Where in RAM the operand of a store lies, if a plain store may be made to it.
fn place(
    cpu: &mut Cpu,
    env: &mut Env<'_>,
    instruction: &Instruction,
    start: u64,
    len: u64,
) -> Option<RamOffset> {
    let base = match instruction.memory_segment() {
        Register::FS => cpu.data_base(cpu::Seg::FS),
        Register::GS => cpu.data_base(cpu::Seg::GS),
        _ => 0,
    };
    let linear = offset_of(cpu, instruction, start).wrapping_add(base);
    let address = cpu.host_address(env, linear, len, true)?;
    Some(RamOffset(address - env.mem.host_base() as u64))
}
