//! Writes random programs.

use std::ops::Range;
use std::sync::OnceLock;

use base::SeededRng;
use cpu::CpuState;
use iced_x86::{
    Code, CpuidFeature, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use x86::cpuid::xcr0_all;
use x86::{CpuLevel, CpuModel, Cr0, Cr4, Rflags};

use super::board::{DMA_PORT, STOP_PORT};
use super::layout::{
    ADDRESS_SPACES, CODE, CODE_ALIAS, CODE_BYTES, DATA, DATA_ALIAS, DATA_FRAMES, DATA_PAGES,
    DEVICE, PAGE, STACK, TABLE_WINDOW, UPPER_HALF, pte, start_state, system_calls,
};
use crate::MODEL;
use crate::encode::{self, Addressing, decode};
use crate::forms::{self, Coverage};
use crate::state::Mode;
use crate::values;

/// The longest piece of a program.
const PIECE_BYTES_MAX: usize = 2048;
/// One program in so many works.
const PROGRAMS_PER_WORKER: u64 = 6;
/// Where in the data a table of functions lies.
const FUNCTION_TABLE: u64 = 0xf00;
const FUNCTIONS: usize = 8;
/// One program of so many is for the CPU with all that there is, the others for the base model.
const PROGRAMS_PER_OTHER_MODEL: u64 = 2;
/// The register that counts a loop's rounds.
const COUNTER: Register = Register::R12;
const RSP: usize = 4;

/// A random program with the state and data that it starts from. The seed names it.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it follows from.
    pub seed: u64,
    /// It works: it stays in its loops for long, and little happens that sends it elsewhere. In the others,
    /// something happens all the time.
    pub(crate) works: bool,
    pub(crate) code: Vec<u8>,
    /// Where its pieces lie: single instructions and groups that belong together.
    pub(crate) pieces: Vec<Range<usize>>,
    pub(crate) data: Vec<u8>,
    pub(crate) start: CpuState,
    /// The CPU that it is written for.
    pub(crate) model: CpuModel,
}

impl Program {
    /// The program that `seed` names.
    #[must_use]
    pub fn new(seed: u64) -> Program {
        let mut writer = Writer::new(seed);
        let (user, works, model) = (writer.user, writer.works, writer.model);
        writer.write_all();
        let Writer { mut rng, mut code, pieces, functions, .. } = writer;
        assert!(code.len() <= CODE_BYTES as usize, "program {seed} is {} bytes long", code.len());
        code.resize(CODE_BYTES as usize, 0x90);
        let mut data = vec![0; (DATA_PAGES * PAGE) as usize];
        values::fill(&mut rng, &mut data);
        for (index, function) in functions.iter().cycle().take(FUNCTIONS).enumerate() {
            let at = FUNCTION_TABLE as usize + 8 * index;
            data[at..at + 8].copy_from_slice(&function.to_le_bytes());
        }
        let start = start(user, model, *functions.last().unwrap_or(&CODE), &mut rng);
        Program { seed, works, code, pieces, data, start, model }
    }

    /// Replaces a piece by instructions that do nothing.
    pub(crate) fn blank(&mut self, piece: usize) {
        let piece = self.pieces[piece].clone();
        self.code[piece].fill(0x90);
    }

    /// True if a piece was replaced.
    pub(crate) fn is_blank(&self, piece: usize) -> bool {
        self.code[self.pieces[piece].clone()].iter().all(|byte| *byte == 0x90)
    }
}

fn start(user: bool, model: CpuModel, rip: u64, rng: &mut SeededRng) -> CpuState {
    let mut state = start_state(user);
    if model.level >= CpuLevel::V3 {
        state.sys.xcr0 = xcr0_all(model);
        state
            .sse
            .ymm_high
            .iter_mut()
            .for_each(|high| *high = u128::from_le_bytes(values::vector(rng)));
    }
    state.rip = rip;
    for (number, reg) in state.gpr.iter_mut().enumerate().filter(|(number, _)| *number != RSP) {
        *reg = match number % 3 {
            0 => DATA + rng.below(2 * PAGE),
            _ => values::register(rng),
        };
    }
    state.rflags |= rng.u64() & Rflags::STATUS;
    state.sse.xmm.iter_mut().for_each(|xmm| *xmm = u128::from_le_bytes(values::vector(rng)));
    for reg in &mut state.x87.regs {
        let bytes = values::f80(rng);
        reg.significand = u64::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        reg.sign_exponent = u16::from_le_bytes([bytes[8], bytes[9]]);
    }
    state.x87.control = x87_control(rng);
    // The condition codes and TOP.
    state.x87.status = rng.u64() as u16 & 0x7f00;
    state.x87.full = rng.u64() as u8;
    state.seg[cpu::Seg::FS].base = DATA;
    state.seg[cpu::Seg::GS].base = DATA_ALIAS + rng.below(PAGE);
    state.sys.kernel_gs_base = DATA;
    if rng.one_in(10) {
        // Alignment checks.
        state.sys.cr0 |= Cr0::AM;
        state.rflags |= Rflags::AC;
    }
    if rng.one_in(12) {
        state.sys.cr4 |= Cr4::SMAP;
        state.rflags |= Rflags::AC;
    }
    // By a stream of its own, too.
    let calls = &mut SeededRng::new(rip ^ state.gpr[0] ^ 0xca11);
    if calls.one_in(2) {
        state.sys.cr4 |= Cr4::SMAP;
        state.rflags |= if user { 0 } else { Rflags::AC };
    }
    (state.sys.lstar, state.sys.fmask) = system_calls(calls);
    if rng.one_in(6) {
        state.sys.cr0 &= !Cr0::WP;
    }
    if rng.one_in(20) {
        // A breakpoint on data: enabled, for reads and writes of 4 bytes.
        state.sys.dr[0] = DATA + 4 * rng.below(PAGE / 4);
        state.sys.dr7 |= 0x000f_0001;
    }
    if rng.one_in(20) {
        // One on an instruction.
        state.sys.dr[1] = CODE + rng.below(CODE_BYTES);
        state.sys.dr7 |= 4;
    }
    state
}

/// An x87 control word with any rounding and precision, mostly without an unmasked exception.
fn x87_control(rng: &mut SeededRng) -> u16 {
    let masks = if rng.one_in(10) { rng.u64() as u16 & 0x3f } else { 0x3f };
    let fields = if rng.one_in(2) { 0x300 } else { rng.u64() as u16 & 0x1f00 };
    0x40 | masks | fields
}

/// Forms by kind, so that the common ones are common in programs too.
struct Forms {
    integer: Vec<Code>,
    vector: Vec<Code>,
    /// What not every model has.
    optional: Vec<Code>,
    x87: Vec<Code>,
    other: Vec<Code>,
    privileged: Vec<Code>,
}

fn all_forms() -> &'static Forms {
    static FORMS: OnceLock<Forms> = OnceLock::new();
    FORMS.get_or_init(|| {
        use CpuidFeature as F;
        let mut all = Forms {
            integer: Vec::new(),
            vector: Vec::new(),
            optional: Vec::new(),
            x87: Vec::new(),
            other: Vec::new(),
            privileged: Vec::new(),
        };
        for code in forms::compared(Mode::Long64) {
            let has = |wanted: &[F]| code.cpuid_features().iter().any(|it| wanted.contains(it));
            let list = if forms::coverage(code, Mode::Long64) == Coverage::FaultOnly {
                &mut all.privileged
            } else if CpuModel::bits_needed(code) != 0 {
                &mut all.optional
            } else if has(&[F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2]) {
                &mut all.vector
            } else if has(&[F::MMX, F::FXSR, F::XSAVE]) || replaces_x87_control(code) {
                &mut all.other
            } else if has(&[F::FPU, F::FPU287, F::FPU387]) {
                &mut all.x87
            } else {
                &mut all.integer
            };
            list.push(code);
        }
        all
    })
}

/// With random operands, what these leave is seldom a state without unmasked exceptions.
fn replaces_x87_control(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Fldcw | Mnemonic::Fldenv | Mnemonic::Frstor | Mnemonic::Fninit | Mnemonic::Fnsave
    )
}

fn pick<T: Copy>(list: &[T], rng: &mut SeededRng) -> T {
    list[rng.below(list.len() as u64) as usize]
}

struct Writer {
    rng: SeededRng,
    info: InstructionInfoFactory,
    user: bool,
    /// As in [`Program`].
    works: bool,
    model: CpuModel,
    code: Vec<u8>,
    pieces: Vec<Range<usize>>,
    /// Linear addresses of the functions so far.
    functions: Vec<u64>,
    /// Loops around what is written now.
    depth: u32,
}

impl Writer {
    fn new(seed: u64) -> Writer {
        let mut rng = SeededRng::new(seed);
        let user = rng.one_in(2);
        let works = rng.one_in(PROGRAMS_PER_WORKER);
        // By a stream of its own, so that the programs of the base model are those of before.
        let is_base = !SeededRng::new(seed ^ 0xc9_0d31).one_in(PROGRAMS_PER_OTHER_MODEL);
        let model = if is_base { CpuModel::V2 } else { *MODEL };
        let (info, code, pieces) = (InstructionInfoFactory::new(), Vec::new(), Vec::new());
        Writer { rng, info, user, works, model, code, pieces, functions: Vec::new(), depth: 0 }
    }

    fn write_all(&mut self) {
        for _ in 0..FUNCTIONS {
            let at = self.address();
            for _ in 0..1 + self.rng.below(12) {
                self.write_something();
            }
            self.raw(&[0xc3]);
            self.functions.push(at);
        }
        // The main part; it begins where the last "function" does.
        let at = self.address();
        self.functions.push(at);
        let end = CODE_BYTES as usize - PIECE_BYTES_MAX;
        while self.code.len() < end {
            self.write_something();
        }
        // Back to the main part, or wherever the displacement leads after a store into it.
        self.make_room(5);
        let distance = at.wrapping_sub(self.address() + 5) as u32;
        self.raw(&[&[0xe9], &distance.to_le_bytes()[..]].concat());
    }

    /// The linear address of what is written next.
    fn address(&self) -> u64 {
        CODE + self.code.len() as u64
    }

    /// Writes a piece. If its bytes depend on its address, [`Writer::make_room`] comes first.
    fn raw(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        let start = self.code.len();
        self.code.extend(bytes);
        self.pieces.push(start..self.code.len());
    }

    /// Makes the next `len` bytes lie between two multiples of 64: after a fault the program goes on at
    /// such an address, so one instruction has to begin there.
    fn make_room(&mut self, len: usize) {
        let left = 64 - self.code.len() % 64;
        if left < len {
            const NOP4: [u8; 4] = [0x0f, 0x1f, 0x40, 0];
            (0..left / 4).for_each(|_| self.code.extend(NOP4));
            self.code.resize(self.code.len() + left % 4, 0x90);
        }
    }

    fn write_something(&mut self) {
        if self.works {
            return self.write_work();
        }
        match self.rng.below(40) {
            0 if self.depth < 2 => self.write_loop(),
            1 if self.depth < 2 => self.write_walk(),
            2..=4 => self.write_forward_branch(),
            5..=6 => self.write_call(),
            7 => self.write_indirect_jump(),
            8 => self.write_self_modification(),
            9 => self.write_table_store(),
            10 => self.write_string(),
            11 => self.write_control(),
            12 if self.user => self.raw(&[0x0f, 0x05]), // syscall
            12 => self.write_kernel(),
            13 => self.write_constant(),
            14 => self.write_stack_use(),
            15..=20 => self.write_form(FormKind::Vector),
            21 if self.rng.one_in(2) => self.write_form(FormKind::Other),
            22 => self.write_x87(),
            _ => self.write_form(FormKind::Integer),
        }
    }

    /// The same with less of what costs a whole page of translations, or sends the program elsewhere.
    fn write_work(&mut self) {
        let is_rare = self.rng.one_in(12);
        match self.rng.below(40) {
            0..=2 if self.depth < 2 => self.write_loop(),
            3 if self.depth < 2 => self.write_walk(),
            4..=8 => self.write_forward_branch(),
            9..=10 => self.write_call(),
            11 => self.write_indirect_jump(),
            12 if is_rare => self.write_self_modification(),
            13 if is_rare => self.write_table_store(),
            14 if is_rare => self.write_string(),
            15 if is_rare => self.write_control(),
            16 if self.user => self.raw(&[0x0f, 0x05]), // syscall
            16 if is_rare => self.write_kernel(),
            17 => self.write_constant(),
            18..=19 => self.write_stack_use(),
            20 if is_rare => self.write_form(FormKind::Other),
            21..=26 => self.write_form(FormKind::Vector),
            27 => self.write_x87(),
            _ => self.write_form(FormKind::Integer),
        }
    }

    /// Some x87 instructions, perhaps with other values and another control word before.
    fn write_x87(&mut self) {
        if self.rng.one_in(3) {
            let control = x87_control(&mut self.rng);
            // fnclex; push control; fldcw [rsp]; lea rsp, [rsp+8]
            let push = [&[0xdb, 0xe2, 0x68], &u32::from(control).to_le_bytes()[..]].concat();
            self.raw(&[&push[..], &[0xd9, 0x2c, 0x24, 0x48, 0x8d, 0x64, 0x24, 8]].concat());
        }
        for _ in 0..self.rng.below(4) {
            // ffree st(7); fld tbyte [data]
            let at = (DATA + 16 * self.rng.below(PAGE / 16)) as u32;
            self.raw(&[&[0xdd, 0xc7, 0xdb, 0x2c, 0x25], &at.to_le_bytes()[..]].concat());
        }
        for _ in 0..2 + self.rng.below(8) {
            self.write_form(FormKind::X87);
        }
    }

    fn write_constant(&mut self) {
        let reg = self.some_register();
        let value = values::register(&mut self.rng);
        self.load(reg, value);
    }

    /// Any register but RSP and the loop counter.
    fn some_register(&mut self) -> u8 {
        loop {
            let reg = self.rng.below(16) as u8;
            if reg as usize != RSP && reg as usize != COUNTER.number() {
                return reg;
            }
        }
    }

    /// `mov reg, value`.
    fn load(&mut self, reg: u8, value: u64) {
        let rex = 0x48 | reg >> 3;
        self.raw(&[&[rex, 0xb8 | reg & 7], &value.to_le_bytes()[..]].concat());
    }

    fn write_loop(&mut self) {
        let rounds = match self.rng.below(8) {
            0 if self.works => 20_000,
            0 => 400,
            1 => 1,
            _ if self.works => 50 + self.rng.below(3000),
            _ => 2 + self.rng.below(40),
        };
        self.depth += 1;
        if self.depth == 1 {
            self.load(COUNTER.number() as u8, rounds);
        }
        let start = self.address();
        for _ in 0..1 + self.rng.below(10) {
            self.write_something();
        }
        if self.depth == 1 {
            self.raw(&[0x49, 0xff, 0xcc]); // dec r12
            self.make_room(6);
            let distance = start.wrapping_sub(self.address() + 6) as u32;
            // jnz, jns or jg
            let condition = pick(&[0x85, 0x89, 0x8f], &mut self.rng);
            self.raw(&[&[0x0f, condition], &distance.to_le_bytes()[..]].concat());
        } else {
            // An inner one.
            self.make_room(5);
            let distance = start.wrapping_sub(self.address() + 2);
            if let Ok(distance) = i8::try_from(distance.wrapping_sub(3) as i64) {
                // and ecx, 7; loop, loope or loopne
                let opcode = pick(&[0xe2, 0xe1, 0xe0], &mut self.rng);
                self.raw(&[0x83, 0xe1, 7, opcode, distance as u8]);
            }
        }
        self.depth -= 1;
    }

    /// A loop whose accesses move by constants over the data, in steps that add up to a page or two.
    fn write_walk(&mut self) {
        // Three pointers, an index, a count and two that are computed with; none is RSP or the loop counter.
        let mut registers = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15];
        for place in 0..7usize {
            registers.swap(place, place + self.rng.below(14 - place as u64) as usize);
        }
        let [a, b, c, index, count, one, other, ..] = registers;
        let pointers = [a, b, c];
        let step: u64 = pick(&[1, 2, 4, 8, 8, 16, 16, 32, 48, 100, 600], &mut self.rng);
        let goes_down = self.rng.one_in(4);
        for pointer in pointers {
            let at = self.rng.below(PAGE) & pick(&[!0, !7, !15, !15], &mut self.rng);
            // Far from the table of functions. Next to the last two are pages with other rights.
            const STARTS: [u64; 8] = [
                DATA_ALIAS + 3 * PAGE,
                DATA_ALIAS + 3 * PAGE,
                DATA_ALIAS + 4 * PAGE,
                DATA_ALIAS + 4 * PAGE,
                DATA_ALIAS + 5 * PAGE,
                DATA_ALIAS + 5 * PAGE,
                DATA_ALIAS + 7 * PAGE,
                DATA + 3 * PAGE,
            ];
            let start = pick(&STARTS, &mut self.rng);
            self.load(pointer, start + at);
        }
        self.load(index, 0);
        let rounds = 1 + self.rng.below(2 * PAGE / step);
        self.load(count, rounds);
        let step = if goes_down { step.wrapping_neg() } else { step };
        let start = self.address();
        let moves_index = self.rng.one_in(2);
        let add = |register: u8, value: u64| {
            let value = (value as u32).to_le_bytes();
            [&[0x48 | register >> 3, 0x81, 0xc0 | register & 7], &value[..]].concat()
        };
        for _ in 0..1 + self.rng.below(6) {
            let pointer = pointers[self.rng.below(3) as usize];
            let register = pick(&[one, other], &mut self.rng);
            self.write_walking_access(pointer, index, register);
            match self.rng.below(12) {
                0 => self.raw(&add(one, 3)),
                // adc one, other
                1 => self.raw(&[
                    0x48 | other >> 3 << 2 | one >> 3,
                    0x11,
                    0xc0 | (other & 7) << 3 | one & 7,
                ]),
                2 if !moves_index => self.raw(&add(pointer, step)),
                3 => self.write_forward_branch(),
                _ => {}
            }
        }
        if moves_index {
            self.raw(&add(index, step));
        } else {
            pointers.into_iter().for_each(|pointer| self.raw(&add(pointer, step)));
        }
        // dec count
        self.raw(&[0x48 | count >> 3, 0xff, 0xc8 | count & 7]);
        self.make_room(6);
        let distance = start.wrapping_sub(self.address() + 6) as u32;
        self.raw(&[&[0x0f, 0x85], &distance.to_le_bytes()[..]].concat()); // jnz
    }

    /// One access of such a loop.
    fn write_walking_access(&mut self, pointer: u8, index: u8, register: u8) {
        // mov, add and cmp from memory; mov and add to it; movups and paddd; movups and movaps to memory
        let (prefix, opcode): (&[u8], &[u8]) = pick(
            &[
                (&[], &[0x8b]),
                (&[], &[0x03]),
                (&[], &[0x3b]),
                (&[], &[0x89]),
                (&[], &[0x01]),
                (&[], &[0x0f, 0x10]),
                (&[0x66], &[0x0f, 0xfe]),
                (&[], &[0x0f, 0x11]),
                (&[], &[0x0f, 0x29]),
            ],
            &mut self.rng,
        );
        let wide = if self.rng.one_in(2) { 0x48 } else { 0x40 };
        let rex = wide | register >> 3 << 2 | pointer >> 3;
        let distance = 16 * self.rng.below(4) as u8;
        let r = (register & 7) << 3;
        let scale = pick(&[0, 0, 1], &mut self.rng) << 6;
        let operand = if self.rng.one_in(2) {
            [
                &[rex | index >> 3 << 1],
                opcode,
                &[0x44 | r, scale | (index & 7) << 3 | pointer & 7, distance],
            ]
            .concat()
        } else {
            [&[rex], opcode, &[0x84 | r, 0x20 | pointer & 7], &u32::from(distance).to_le_bytes()]
                .concat()
        };
        self.raw(&[prefix, &operand].concat());
    }

    fn write_forward_branch(&mut self) {
        let condition = self.rng.below(16) as u8;
        let is_near = self.rng.one_in(2);
        match (is_near, self.rng.below(12)) {
            (true, 0) => self.raw(&[0xe9, 0, 0, 0, 0]),
            (true, _) => self.raw(&[0x0f, 0x80 | condition, 0, 0, 0, 0]),
            (false, 0) => self.raw(&[0xeb, 0]),
            (false, 1) => self.raw(&[0xe3, 0]), // jrcxz
            (false, _) => self.raw(&[0x70 | condition, 0]),
        }
        let end = self.code.len();
        for _ in 0..1 + self.rng.below(4) {
            self.write_something();
        }
        let distance = self.code.len() - end;
        if is_near {
            self.code[end - 4..end].copy_from_slice(&(distance as u32).to_le_bytes());
        } else if let Ok(distance) = i8::try_from(distance) {
            self.code[end - 1] = distance as u8;
        }
    }

    fn write_call(&mut self) {
        let Some(count) = std::num::NonZero::new(self.functions.len().min(FUNCTIONS)) else {
            return;
        };
        let index = self.rng.below(count.get() as u64);
        let function = self.functions[index as usize];
        match self.rng.below(5) {
            0 => {
                // call [table]
                let entry = (DATA + FUNCTION_TABLE + 8 * index) as u32;
                self.raw(&[&[0xff, 0x14, 0x25], &entry.to_le_bytes()[..]].concat());
            }
            1 => {
                let reg = self.some_register();
                self.load(reg, function);
                let rex = 0x40 | reg >> 3;
                self.raw(&[rex, 0xff, 0xd0 | reg & 7]);
            }
            2 => {
                // A call whose return address the program pushes itself: push; jmp.
                self.make_room(10);
                let back = self.address() + 10;
                self.raw(&[&[0x68], &(back as u32).to_le_bytes()[..]].concat());
                let distance = function.wrapping_sub(self.address() + 5) as u32;
                self.raw(&[&[0xe9], &distance.to_le_bytes()[..]].concat());
            }
            _ => {
                self.make_room(5);
                let distance = function.wrapping_sub(self.address() + 5) as u32;
                self.raw(&[&[0xe8], &distance.to_le_bytes()[..]].concat());
            }
        }
    }

    /// Goes on at another linear address of the same code, or over a few instructions.
    fn write_indirect_jump(&mut self) {
        let reg = self.some_register();
        let view = match self.rng.below(4) {
            0 => CODE_ALIAS.wrapping_sub(CODE),
            1 => UPPER_HALF,
            _ => 0,
        };
        let rex = 0x40 | reg >> 3;
        self.make_room(13);
        let target = self.address() + 10 + 3;
        self.load(reg, target.wrapping_add(view));
        self.raw(&[rex, 0xff, 0xe0 | reg & 7]);
    }

    /// A store into code that runs soon.
    fn write_self_modification(&mut self) {
        let value = self.rng.u64() as u8;
        match self.rng.below(4) {
            0 => {
                // mov byte [rip+1], value; mov al, imm: into the next instruction.
                self.raw(&[0xc6, 0x05, 1, 0, 0, 0, value, 0xb0, 0]);
            }
            1 => {
                // inc byte [rip-...]: into one of the instructions before.
                let back = 1 + self.rng.below(120.min(self.code.len() as u64 + 1)) as u32;
                let distance = 0u32.wrapping_sub(6 + back);
                self.raw(&[&[0xfe, 0x05], &distance.to_le_bytes()[..]].concat());
            }
            2 => {
                // mov word [rip+n], value: anywhere behind.
                let ahead = self.rng.below(3 * PAGE) as u32;
                let value = self.rng.u64() as u16;
                let tail = [&ahead.to_le_bytes()[..], &value.to_le_bytes()].concat();
                self.raw(&[&[0x66, 0xc7, 0x05], &tail[..]].concat());
            }
            _ => {
                // The same by the alias: mov byte [alias+n], value.
                let here = self.code.len() as u64;
                let at = (CODE_ALIAS + (here + self.rng.below(200)) % CODE_BYTES) as u32;
                self.raw(&[&[0xc6, 0x04, 0x25], &at.to_le_bytes()[..], &[value]].concat());
            }
        }
    }

    /// Changes the page-table entry of a data page.
    fn write_table_store(&mut self) {
        let window =
            if self.rng.one_in(8) { TABLE_WINDOW.wrapping_add(PAGE) } else { TABLE_WINDOW };
        let at = (window + 8 * self.rng.below(DATA_PAGES)) as u32;
        let at_bytes = at.to_le_bytes();
        match self.rng.below(4) {
            0 => {
                // and byte [at], !(A | D), or !D, or !P
                let mask = pick(&[0x9f, 0xbf, 0xdf, 0xfe], &mut self.rng);
                self.raw(&[&[0x80, 0x24, 0x25], &at_bytes[..], &[mask]].concat());
            }
            1 => {
                // xor byte [at], RW or US or P
                let bit = pick(&[1, 2, 4], &mut self.rng);
                self.raw(&[&[0x80, 0x34, 0x25], &at_bytes[..], &[bit]].concat());
            }
            _ => {
                let frame = DATA_FRAMES + PAGE * self.rng.below(DATA_PAGES);
                let entry = match self.rng.below(12) {
                    0 => DEVICE | pte::ALL,
                    1 => 0,
                    2 => frame | pte::P | pte::US,
                    3 => frame | pte::ALL | pte::NX,
                    4 => CODE | pte::ALL,
                    5 => self.rng.u64(),
                    _ => frame | pte::ALL,
                };
                self.load(0, entry);
                self.raw(&[&[0x48, 0x89, 0x04, 0x25], &at_bytes[..]].concat());
            }
        }
        if !self.user && self.rng.one_in(3) {
            let page = (DATA + PAGE * self.rng.below(DATA_PAGES)) as u32;
            self.raw(&[&[0x0f, 0x01, 0x3c, 0x25], &page.to_le_bytes()[..]].concat()); // invlpg
        }
    }

    fn write_string(&mut self) {
        let count = match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(6000),
            _ => self.rng.below(60),
        };
        let (source, target) = (self.target(8), self.target(8));
        self.load(6, source);
        self.load(7, target);
        self.load(1, count);
        if self.rng.one_in(5) {
            self.raw(&[0xfd]); // std
        }
        let repeat = pick(&[0xf3, 0xf3, 0xf2], &mut self.rng);
        let operation =
            pick(&[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf], &mut self.rng);
        match self.rng.below(4) {
            0 => self.raw(&[operation]),
            1 => self.raw(&[repeat, 0x48, operation]),
            _ => self.raw(&[repeat, operation]),
        }
        self.raw(&[0xfc]); // cld
    }

    /// What leaves the straight way: flags, traps, system calls.
    fn write_control(&mut self) {
        match self.rng.below(12) {
            0 => {
                // pushfq; or dword [rsp], TF; popfq
                self.raw(&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d]);
            }
            1 => self.raw(&[0xcc]),
            2 => self.raw(&[0xcd, 0x80]),
            3 => self.raw(&[0x0f, 0x05]),
            4 => self.raw(&[0x0f, 0x0b]),
            5 => self.raw(&[0x0f, 0x31]), // rdtsc
            6 => self.raw(&[0x0f, 0xa2]), // cpuid
            7 => {
                // pushfq; pop reg; and: all flags live
                let reg = self.rng.below(4) as u8;
                self.raw(&[0x9c, 0x58 | reg]);
            }
            8 => self.raw(&[0x9f]), // lahf
            9 => self.raw(&[0x9e]), // sahf
            _ => {
                let condition = self.rng.below(16) as u8;
                let reg = self.rng.below(8) as u8;
                self.raw(&[0x0f, 0x90 | condition, 0xc0 | reg]); // setcc
            }
        }
    }

    fn write_stack_use(&mut self) {
        match self.rng.below(6) {
            0 => {
                let reg = self.some_register();
                self.raw(&[0x40 | reg >> 3, 0x50 | reg & 7]);
                let reg = self.some_register();
                self.raw(&[0x40 | reg >> 3, 0x58 | reg & 7]);
            }
            // sub rsp, 40; add rsp, 40 with something in between
            1 => {
                self.raw(&[0x48, 0x83, 0xec, 40]);
                self.write_something();
                self.raw(&[0x48, 0x83, 0xc4, 40]);
            }
            // push rbp; mov rbp, rsp; ...; leave
            2 => {
                self.raw(&[0x55, 0x48, 0x89, 0xe5]);
                self.write_something();
                self.raw(&[0xc9]);
            }
            3 => {
                // Near a page's border.
                let at = STACK - PAGE + self.rng.below(24);
                self.load(RSP as u8, at);
            }
            4 => {
                // push [mem]; pop [mem]
                let (from, to) = (self.target(8) as u32, self.target(8) as u32);
                self.raw(&[&[0xff, 0x34, 0x25], &from.to_le_bytes()[..]].concat());
                self.raw(&[&[0x8f, 0x04, 0x25], &to.to_le_bytes()[..]].concat());
            }
            _ => {
                let (value, reg) = (self.rng.u64() as u8, self.rng.below(4) as u8);
                self.raw(&[0x6a, value]); // push imm8
                self.raw(&[0x58 | reg]);
            }
        }
    }

    fn write_kernel(&mut self) {
        let port = pick(&[STOP_PORT, DMA_PORT, 0x70], &mut self.rng);
        let reg = self.rng.below(8) as u8;
        match self.rng.below(14) {
            0 => {
                let space = pick(&ADDRESS_SPACES, &mut self.rng);
                self.load(0, space);
                self.raw(&[0x0f, 0x22, 0xd8]); // mov cr3, rax
            }
            1 => self.raw(&[0xfa]),                               // cli
            2 | 3 => self.raw(&[0xfb]),                           // sti
            4 => self.raw(&[0xe6, port]),                         // out
            5 => self.raw(&[0xe5, 0x71]),                         // in eax, 71h
            6 => self.raw(&[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]), // swapgs, twice
            7 => self.raw(&[0x8e, 0xd0 | reg]),                   // mov ss, reg
            8 => {
                self.raw(&[0x0f, 0x01, 0xca]); // clac
                self.write_something();
                self.raw(&[0x0f, 0x01, 0xcb]); // stac
            }
            9 => {
                self.raw(&[0x0f, 0x01, 0xcb]); // stac
                self.write_stack_use();
            }
            10 => {
                let base = self.target(8);
                self.load(reg, base);
                // wrfsbase or wrgsbase
                let number = pick(&[0xd0, 0xd8], &mut self.rng);
                self.raw(&[0xf3, 0x48, 0x0f, 0xae, number | reg]);
            }
            11 => {
                // lea rcx, [rip+13]; mov r11, flags; sysretq
                let flags = self.rng.u64()
                    & pick(&[0x8d5, 0xfd5, 0x20_0fd5, u64::MAX], &mut self.rng)
                    & !pick(&[0, Rflags::TF], &mut self.rng);
                let flags = &flags.to_le_bytes()[..];
                let start = [0x48, 0x8d, 0x0d, 13, 0, 0, 0, 0x49, 0xbb];
                self.raw(&[&start[..], flags, &[0x48, 0x0f, 0x07]].concat());
            }
            _ => self.raw(&[0x0f, 0x20, 0xd8]), // mov rax, cr3
        }
    }

    /// An address for an operand of `bytes` bytes.
    fn target(&mut self, bytes: u64) -> u64 {
        let page = PAGE * pick(&[0, 0, 0, 0, 1, 1, 3, 3, 7, 2, 4, 5, 6], &mut self.rng);
        // In a loop, one fault costs as much as a hundred rounds.
        let is_plain = self.works && !self.rng.one_in(60);
        let align = if is_plain || self.rng.below(3) > 0 {
            bytes.clamp(1, 64).next_power_of_two()
        } else {
            1
        };
        let inside = self.rng.below(PAGE - bytes.min(PAGE - 1)) / align * align;
        match self.rng.below(40) {
            _ if is_plain => DATA + pick(&[0, 1], &mut self.rng) * PAGE + inside,
            // Across a page's border.
            0 | 1 => DATA + page + PAGE - self.rng.below(bytes + 1),
            2 => DATA + page + inside,
            3 | 4 => DATA_ALIAS + page + inside,
            5 => DATA_ALIAS + page + PAGE - self.rng.below(bytes + 1),
            6 => CODE + self.rng.below(CODE_BYTES),
            7 => CODE_ALIAS + self.rng.below(CODE_BYTES),
            8 => STACK - PAGE + inside,
            9 => TABLE_WINDOW + 8 * self.rng.below(DATA_PAGES),
            10 => UPPER_HALF + DATA + inside,
            11 => match self.rng.below(4) {
                0 => 0x0000_8000_0000_0000 - self.rng.below(2 * bytes + 1),
                1 => UPPER_HALF - self.rng.below(2 * bytes + 1),
                2 => self.rng.u64(),
                _ => u64::MAX - self.rng.below(2 * bytes + 1),
            },
            _ => DATA + pick(&[0, 1], &mut self.rng) * PAGE + inside,
        }
    }

    fn write_form(&mut self, kind: FormKind) {
        let all = all_forms();
        for _ in 0..20 {
            let code = match kind {
                FormKind::Integer if self.user && self.rng.one_in(200) => {
                    pick(&all.privileged, &mut self.rng)
                }
                FormKind::Integer => pick(&all.integer, &mut self.rng),
                FormKind::Vector if self.model != CpuModel::V2 && self.rng.one_in(2) => {
                    pick(&all.optional, &mut self.rng)
                }
                FormKind::Vector => pick(&all.vector, &mut self.rng),
                FormKind::X87 => pick(&all.x87, &mut self.rng),
                FormKind::Other => pick(&all.other, &mut self.rng),
            };
            if self.try_form(code).is_some() {
                return;
            }
        }
    }

    /// Writes one instruction of a form, and before it what gives its memory operand a good address.
    fn try_form(&mut self, code: Code) -> Option<()> {
        self.make_room(15);
        let encoded =
            encode::random(code, Mode::Long64, Addressing::Any, self.address(), &mut self.rng)?;
        let instruction = encoded.instr;
        if !self.is_wanted(&instruction) {
            return None;
        }
        let mut bytes = encoded.bytes;
        let has_memory =
            (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
        if has_memory && !self.rng.one_in(if self.works { 600 } else { 30 }) {
            self.aim(&instruction, &mut bytes, encoded.offsets.displacement_offset());
        }
        self.raw(&bytes);
        Some(())
    }

    fn is_wanted(&mut self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        // Indices are seldom near.
        if self.works && instruction.is_vsib() {
            return false;
        }
        let leaves_the_way = instruction.flow_control() != FlowControl::Next
            || matches!(instruction.mnemonic(), M::Hlt | M::Std | M::Wrfsbase | M::Wrgsbase)
            || instruction.op0_register().is_segment_register();
        if leaves_the_way && !self.rng.one_in(if self.works { 400 } else { 20 }) {
            return false;
        }
        let divides = matches!(instruction.mnemonic(), M::Div | M::Idiv);
        if self.works && divides && !self.rng.one_in(20) {
            return false;
        }
        let writes = |used: &iced_x86::UsedRegister, reg: Register| {
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
                && used.register().full_register() == reg
        };
        let (loses_stack, loses_count) = {
            let used = self.info.info(instruction).used_registers();
            let is_stack = instruction.is_stack_instruction();
            (
                !is_stack && used.iter().any(|used| writes(used, Register::RSP)),
                used.iter().any(|used| writes(used, COUNTER)),
            )
        };
        let is_lost = loses_stack && !self.rng.one_in(20) || loses_count && self.depth > 0;
        !is_lost
    }

    /// Sets base and index registers, or the displacement, so that the operand lies at a chosen target.
    fn aim(&mut self, instruction: &Instruction, bytes: &mut [u8], displacement_at: usize) {
        let size = instruction.memory_size().size().max(1) as u64;
        let segment_base = match instruction.memory_segment() {
            Register::FS => DATA,
            Register::GS => DATA_ALIAS,
            _ => 0,
        };
        let target = self.target(size).wrapping_sub(segment_base);
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let displacement = instruction.memory_displacement64();
        let scale = u64::from(instruction.memory_index_scale());
        let number = |reg: Register| reg.full_register().number() as u8;
        let is_counter = |reg: Register| reg.full_register() == COUNTER;
        if self.depth > 0 && (is_counter(base) || is_counter(index)) {
            return;
        }
        if instruction.is_ip_rel_memory_operand() {
            // Nothing is written before it, so its end is known.
            let end = self.address() + bytes.len() as u64;
            let low = target & 0x3f_ffff;
            let distance = low.wrapping_sub(end) as u32;
            bytes[displacement_at..displacement_at + 4].copy_from_slice(&distance.to_le_bytes());
        } else if base.is_gpr() && index.is_gpr() && number(base) != number(index) {
            let small = self.rng.below(64);
            self.load(number(index), small);
            self.load(number(base), target.wrapping_sub(displacement).wrapping_sub(small * scale));
        } else if base.is_gpr() && index.is_gpr() {
            self.load(number(base), target.wrapping_sub(displacement) / (1 + scale));
        } else if base.is_gpr() {
            self.load(number(base), target.wrapping_sub(displacement));
        } else if index.is_gpr() {
            self.load(number(index), target.wrapping_sub(displacement) / scale);
        } else if instruction.memory_displ_size() >= 4 {
            let low = (target & 0x3f_ffff) as u32;
            bytes[displacement_at..displacement_at + 4].copy_from_slice(&low.to_le_bytes());
        }
    }
}

#[derive(Clone, Copy)]
enum FormKind {
    Integer,
    Vector,
    X87,
    Other,
}

/// The instructions at an address, for people.
pub(crate) fn disassemble(bytes: &[u8], address: u64) -> (String, usize) {
    let (instruction, _) = decode(Mode::Long64, bytes, address);
    let mut text = String::new();
    let mut formatter = iced_x86::FastFormatter::new();
    formatter.format(&instruction, &mut text);
    (text, instruction.len())
}
