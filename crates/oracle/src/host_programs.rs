//! Programs that the host's CPU runs too: loops over random instructions, at CPL 3, in the regions of a case.
//!
//! A case ends at its INT3 or at the first fault, so whatever would end most programs early is kept rare or out:
//! operands of 16 bytes are aligned, divisors are seldom tried, floating-point exceptions are masked. Before
//! each place that can be reached in two ways all flags are defined again, so that none is read that the
//! manual leaves open on one of the ways.

use base::SeededRng;
use iced_x86::{Code, Mnemonic, OpKind};

use crate::encode::fixed_bases;
use crate::forms;
use crate::generate::Generator;
use crate::state::{CODE, Case, DATA, HIGH, Mode, REGION_BYTES};
use crate::values;

/// The register that counts rounds.
const COUNTER: u8 = 13;
const RSP: usize = 4;
/// Beyond the reach of the fixed bases' displacements.
const STACK: u64 = DATA + REGION_BYTES as u64 - 0x200;
const CODE_LEN_MAX: usize = REGION_BYTES - 1024;
const MXCSR_MASKED: u32 = 0x1f80;
const FCW_MASKED: u16 = 0x7f;

struct Writer<'a> {
    generator: &'a mut Generator,
    codes: &'a [Code],
    rng: &'a mut SeededRng,
    start: u64,
    code: Vec<u8>,
    /// Flags that the manual leaves open here.
    undefined: u32,
    /// Addresses of functions.
    functions: Vec<u64>,
}

impl Generator {
    /// A case in 64-bit mode whose code loops over random members of `codes`.
    pub fn program(&mut self, codes: &[Code], rng: &mut SeededRng) -> Case {
        let mut state = crate::generate::state(Mode::Long64, rng);
        let [low, high] = fixed_bases(Mode::Long64);
        state.rip = CODE + 64;
        state.gpr[low] = DATA + 0x1000;
        state.gpr[high] = HIGH + 0x1000;
        state.gpr[RSP] = STACK;
        state.fx.mxcsr = MXCSR_MASKED | (rng.below(4) as u32) << 13 | (rng.below(2) as u32) << 15;
        state.fx.fcw = FCW_MASKED | (rng.below(4) as u16) << 8 | (rng.below(4) as u16) << 10;
        (state.fx.fsw, state.fx.ftw) = (0, 0);
        let start = state.rip;
        let (code, functions) = (Vec::new(), Vec::new());
        let mut writer =
            Writer { generator: self, codes, rng, start, code, undefined: 0, functions };
        writer.write();
        let code = writer.code;
        Case { mode: Mode::Long64, code, state, patches: vec![] }
    }
}

impl Writer<'_> {
    fn write(&mut self) {
        self.write_functions();
        for _ in 0..2 + self.rng.below(5) {
            if self.code.len() > CODE_LEN_MAX / 2 {
                break;
            }
            self.write_loop();
        }
        self.define_flags();
    }

    fn address(&self) -> u64 {
        self.start + self.code.len() as u64
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }

    /// `cmp reg, reg`: gives every flag a value.
    fn define_flags(&mut self) {
        let (a, b) = (self.rng.below(8) as u8, self.rng.below(8) as u8);
        self.raw(&[0x48, 0x39, 0xc0 | a << 3 | b]);
        self.undefined = 0;
    }

    fn load(&mut self, reg: u8, value: u64) {
        let rex = 0x48 | reg >> 3;
        self.raw(&[&[rex, 0xb8 | reg & 7], &value.to_le_bytes()[..]].concat());
    }

    /// A branch over what `write` writes.
    fn over(&mut self, opcode: &[u8], write: impl FnOnce(&mut Self)) {
        self.raw(opcode);
        self.raw(&[0; 4]);
        let end = self.code.len();
        write(self);
        let distance = (self.code.len() - end) as u32;
        self.code[end - 4..end].copy_from_slice(&distance.to_le_bytes());
        self.define_flags();
    }

    fn write_functions(&mut self) {
        self.over(&[0xe9], |writer| {
            for _ in 0..2 {
                writer.functions.push(writer.address());
                for _ in 0..1 + writer.rng.below(6) {
                    writer.write_member(true);
                }
                writer.raw(&[0xc3]);
            }
        });
    }

    fn write_loop(&mut self) {
        let rounds = match self.rng.below(8) {
            0 => 1 + self.rng.below(4000),
            _ => 1 + self.rng.below(300),
        };
        self.load(COUNTER, rounds);
        let head = self.address();
        self.load(RSP as u8, STACK);
        self.define_flags();
        for _ in 0..3 + self.rng.below(20) {
            self.write_something();
        }
        self.raw(&[0x49, 0xff, 0xcd]); // dec r13
        let distance = head.wrapping_sub(self.address() + 6) as u32;
        self.raw(&[&[0x0f, 0x85], &distance.to_le_bytes()[..]].concat()); // jnz
        self.define_flags();
    }

    fn write_something(&mut self) {
        match self.rng.below(24) {
            0..=2 => {
                self.define_flags();
                let condition = 0x80 | self.rng.below(16) as u8;
                let count = 1 + self.rng.below(4);
                self.over(&[0x0f, condition], |writer| {
                    (0..count).for_each(|_| writer.write_member(false));
                });
            }
            3 => {
                // A fault in the function shows the flags from before the call.
                self.define_flags();
                let index = self.rng.below(self.functions.len() as u64) as usize;
                let distance = self.functions[index].wrapping_sub(self.address() + 5) as u32;
                self.raw(&[&[0xe8], &distance.to_le_bytes()[..]].concat());
                self.define_flags();
            }
            4 => {
                // add byte [rip+1], value; add eax, imm32: into the immediate operand.
                let value = self.rng.u64();
                self.raw(&[0x80, 0x05, 1, 0, 0, 0, value as u8]);
                self.raw(&[&[0x05], &((value >> 32) as u32).to_le_bytes()[..]].concat());
                self.undefined = 0;
            }
            5 => {
                // mov reg, value
                let reg = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12][self.rng.below(12) as usize];
                let value = values::register(self.rng);
                self.load(reg, value);
            }
            6 => self.write_string(),
            _ => self.write_member(false),
        }
    }

    fn write_string(&mut self) {
        for reg in [6, 7] {
            let at = DATA + 0x600 + self.rng.below(0xa00);
            self.load(reg, at);
        }
        let count = self.rng.below(33);
        self.load(1, count);
        self.define_flags();
        let repeat = [0xf3, 0xf3, 0xf2][self.rng.below(3) as usize];
        let operations = [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf];
        let operation = operations[self.rng.below(operations.len() as u64) as usize];
        self.raw(&[repeat, operation]);
    }

    /// A random instruction that goes on to the next one.
    fn write_member(&mut self, in_function: bool) {
        for _ in 0..40 {
            let code = self.codes[self.rng.below(self.codes.len() as u64) as usize];
            let at = self.address();
            let (undefined, rng) = (self.undefined, &mut *self.rng);
            let Some(encoded) =
                self.generator.sequence_member(code, Mode::Long64, at, undefined, rng)
            else {
                continue;
            };
            if !self.is_wanted(&encoded.instr, in_function) {
                continue;
            }
            self.undefined = forms::undefined_after(&encoded.instr, self.undefined);
            self.raw(&encoded.bytes);
            return;
        }
    }

    fn is_wanted(&mut self, instr: &iced_x86::Instruction, in_function: bool) -> bool {
        use Mnemonic as M;
        let writes_counter = self.generator.writes(instr, usize::from(COUNTER));
        let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
        let is_misaligned =
            instr.memory_size().size() >= 16 && !instr.memory_displacement64().is_multiple_of(16);
        // Those whose address is no operand, or follows from a register that may hold anything.
        let goes_astray = instr.is_string_instruction()
            || match instr.mnemonic() {
                M::Bt | M::Bts | M::Btr | M::Btc => instr.op1_kind() == OpKind::Register,
                M::Div | M::Idiv | M::Fldcw | M::Xlatb | M::Maskmovq | M::Maskmovdqu => true,
                _ => false,
            };
        !(writes_counter
            || has_memory && is_misaligned
            || in_function && instr.is_stack_instruction()
            || goes_astray && !self.rng.one_in(200))
    }
}
