//! Random cases: one instruction of a given form, sequences, and random bytes.

use base::SeededRng;
use iced_x86::{
    Code, CodeSize, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpKind, Register,
    UsedMemory,
};

use x86::CpuLevel;
use x86::cpuid::{XSAVE_BYTES, YMM_BYTES, xcr0_all};

use crate::MODEL;
use crate::encode::{self, Addressing, Encoded, decode, fixed_bases};
use crate::forms;
use crate::state::{
    CODE, CS_16, CS_32, CS_64, Case, DATA, DS_16, DS_FLAT, Fx, HIGH, LDT, Mode, REGION_BYTES,
    Selectors, State, base_of, code_base, is_32_bit,
};
use crate::values;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;

const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const AC: u64 = 1 << 18;
const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// Bytes of an XSAVE area with everything.
const SAVE_AREA_BYTES: u32 = XSAVE_BYTES + YMM_BYTES;

/// The longest random sequence, in instructions.
pub const SEQUENCE_LEN_MAX: u64 = 20;

/// Makes cases.
pub struct Generator {
    info: InstructionInfoFactory,
}

impl Default for Generator {
    fn default() -> Generator {
        Generator { info: InstructionInfoFactory::new() }
    }
}

impl Generator {
    /// A case with one instruction of the form `code`. `None` if no encoding was found.
    pub fn single(&mut self, code: Code, mode: Mode, rng: &mut SeededRng) -> Option<Case> {
        let ip = code_offset(mode, 64 + rng.below(REGION_BYTES as u64 - 256));
        let encoded = encode::random(code, mode, Addressing::Any, ip, rng)?;
        if forms::is_forbidden(&encoded.instr, mode, &encoded.bytes) {
            return None;
        }
        let mut case =
            Case { mode, code: encoded.bytes.clone(), state: state(mode, rng), patches: vec![] };
        case.state.rip = ip;
        if rng.one_in(7) {
            case.state.rflags |= TF;
        }
        if rng.one_in(12) {
            case.state.rflags |= AC;
        }
        if encoded.instr.memory_size().size() > 8 || forms::has_several_accesses(&encoded.instr) {
            // SDM MOVDQU: whether a 16-byte operand raises #AC is the implementation's choice.
            case.state.rflags &= !AC;
        }
        // The fit may change the displacement, so it decodes again.
        self.fit(&mut case, &encoded, rng)?;
        if rng.one_in(24) {
            move_to_page_end(&mut case, rng);
        }
        Some(case)
    }

    /// A case with 2 to [`SEQUENCE_LEN_MAX`] instructions out of `codes`.
    pub fn sequence(&mut self, codes: &[Code], mode: Mode, rng: &mut SeededRng) -> Case {
        let len = 2 + rng.below(SEQUENCE_LEN_MAX - 1);
        let ip = code_offset(mode, 64 + rng.below(REGION_BYTES as u64 - 512));
        let mut state = state(mode, rng);
        state.rip = ip;
        let [low, high] = fixed_bases(mode);
        let high_region = if mode == Mode::Long64 { HIGH } else { DATA };
        let offset = |address: u64, selector: u16| address.wrapping_sub(base_of(selector));
        let mask = mode.gpr_mask();
        state.gpr[low] = offset(DATA + 0x1000, state.sel.ss) & mask;
        state.gpr[high] = offset(high_region + 0x1000, state.sel.ds) & mask;
        for pointer in [6, 7] {
            let at = DATA + 0x400 + rng.below(0x1000);
            state.gpr[pointer] = offset(at, state.sel.ds) & mask;
        }
        let mut case = Case { mode, code: vec![], state, patches: vec![] };
        let mut undefined = 0;
        let mut count = 0;
        let mut misses = 0;
        while count < len && misses < 200 {
            let code = codes[rng.below(codes.len() as u64) as usize];
            let at = ip + case.code.len() as u64;
            match self.sequence_member(code, mode, at, undefined, rng) {
                Some(encoded) => {
                    undefined = forms::undefined_after(&encoded.instr, undefined);
                    case.code.extend(encoded.bytes);
                    count += 1;
                }
                None => misses += 1,
            }
        }
        case
    }

    pub(crate) fn sequence_member(
        &mut self,
        code: Code,
        mode: Mode,
        at: u64,
        undefined: u32,
        rng: &mut SeededRng,
    ) -> Option<Encoded> {
        let mut encoded = encode::random(code, mode, Addressing::Fixed, at, rng)?;
        if encoded.instr.rflags_read() & undefined != 0
            || forms::is_forbidden(&encoded.instr, mode, &encoded.bytes)
        {
            return None;
        }
        let protected = fixed_bases(mode);
        let info = self.info.info(&encoded.instr);
        let writes_protected = info.used_registers().iter().any(|used| {
            use iced_x86::OpAccess::{CondRead, NoMemAccess, None, Read};
            let is_read = matches!(used.access(), Read | CondRead | NoMemAccess | None);
            !is_read && used.register().is_gpr() && {
                let full = used.register().full_register().number();
                protected.contains(&full) || full == RSP && !encoded.instr.is_stack_instruction()
            }
        });
        if writes_protected {
            return None;
        }
        if let Some(displacement) = displacement_of(&encoded) {
            let align = if rng.one_in(3) { 1 } else { 16 };
            let value = (rng.below(6000) as i64 - 3000) / align * align;
            let size = displacement.len();
            encoded.bytes[displacement].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        let (instr, offsets) = decode(mode, &encoded.bytes, at);
        (instr.code() == code).then_some(Encoded { instr, offsets, ..encoded })
    }

    /// Whether an instruction writes the general register of this number.
    pub(crate) fn writes(&mut self, instr: &Instruction, number: usize) -> bool {
        use iced_x86::OpAccess::{CondRead, NoMemAccess, None, Read};
        self.info.info(instr).used_registers().iter().any(|used| {
            let is_read = matches!(used.access(), Read | CondRead | NoMemAccess | None);
            let register = used.register();
            !is_read && register.is_gpr() && register.full_register().number() == number
        })
    }

    /// A case of random bytes, single-stepped: for lengths, prefixes and #UD. `None` if the bytes are
    /// not to run.
    pub fn bytes(&mut self, mode: Mode, rng: &mut SeededRng) -> Option<Case> {
        let mut bytes = vec![0; 15];
        rng.fill(&mut bytes);
        // Uniform bytes seldom reach the two-byte and three-byte maps.
        let mut at = 0;
        while rng.one_in(3) && at < 5 {
            const PREFIXES: [u8; 12] =
                [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x2e, 0x36, 0x48, 0x41, 0x4f];
            bytes[at] = PREFIXES[rng.below(PREFIXES.len() as u64) as usize];
            at += 1;
        }
        match rng.below(6) {
            0 | 1 => bytes[at] = 0x0f,
            4 => bytes[at] = 0xc5,
            5 => {
                bytes[at] = 0xc4;
                // One of the maps that there are, mostly.
                bytes[at + 1] = bytes[at + 1] & 0xe0 | rng.below(5) as u8;
            }
            2 if rng.one_in(2) => {
                bytes[at] = 0x0f;
                bytes[at + 1] = if rng.one_in(2) { 0x38 } else { 0x3a };
            }
            3 if rng.one_in(3) => bytes[at] = 0xd8 | rng.u64() as u8 & 7,
            _ => {}
        }
        let ip = code_offset(mode, 64 + rng.below(REGION_BYTES as u64 - 256));
        let (instr, offsets) = decode(mode, &bytes, ip);
        if forms::is_forbidden(&instr, mode, &bytes) {
            return None;
        }
        let mut case = Case { mode, code: bytes.clone(), state: state(mode, rng), patches: vec![] };
        case.state.rip = ip;
        case.state.rflags |= TF;
        if !instr.is_invalid() {
            let encoded = Encoded { bytes: bytes[..instr.len()].to_vec(), instr, offsets };
            case.code.clone_from(&encoded.bytes);
            let _ = self.fit(&mut case, &encoded, rng); // without a fit it is still a case
            let (instr, _) = decode(mode, &case.code, ip);
            if wraps_at_64_kib(&case, self.info.info(&instr).used_memory()) {
                return None;
            }
        }
        if rng.one_in(6) {
            move_to_page_end(&mut case, rng);
        }
        Some(case)
    }

    /// Sets registers, displacement and memory so that the instruction does something interesting.
    fn fit(&mut self, case: &mut Case, encoded: &Encoded, rng: &mut SeededRng) -> Option<()> {
        let instr = encoded.instr;
        set_counts(case, &instr, rng);
        self.fit_memory(case, encoded, rng);
        if is_far(&instr) && case.mode == Mode::Long64 {
            // Whether a far transfer to 32-bit code still uses all 64 bits of RSP differs.
            let offset = case.state.gpr[RSP] & 0x1fff;
            case.state.gpr[RSP] = DATA + offset;
        }
        set_branch(case, encoded, rng);
        let (instr, _) = decode(case.mode, &case.code, case.state.rip);
        set_operands(case, &instr, rng);
        let memory: Vec<UsedMemory> = self.info.info(&instr).used_memory().to_vec();
        if wraps_at_64_kib(case, &memory) {
            return None;
        }
        set_contents(case, &instr, &memory, rng);
        (instr.code() == encoded.instr.code()).then_some(())
    }

    fn fit_memory(&mut self, case: &mut Case, encoded: &Encoded, rng: &mut SeededRng) {
        let memory: Vec<UsedMemory> = self.info.info(&encoded.instr).used_memory().to_vec();
        let mut fixed: Vec<usize> = vec![];
        for used in &memory {
            if rng.one_in(24) {
                continue; // wherever the random registers point
            }
            fit_one(case, encoded, used, &mut fixed, rng);
        }
    }
}

fn is_far(instr: &Instruction) -> bool {
    matches!(instr.mnemonic(), Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq)
        || instr.is_call_far_indirect()
}

/// True if an operand with a 16-bit address reaches beyond offset FFFFH: whether it goes on there
/// or at 0 differs from CPU to CPU.
fn wraps_at_64_kib(case: &Case, memory: &[UsedMemory]) -> bool {
    memory.iter().any(|used| {
        used.address_size() == CodeSize::Code16
            && effective_address(&case.state, used) + operand_bytes(used.memory_size()) > 0x1_0000
    })
}

/// RIP for a place in the code pages.
fn code_offset(mode: Mode, at: u64) -> u64 {
    CODE + at - code_base(mode)
}

/// Where a displacement of full size lies.
fn displacement_of(encoded: &Encoded) -> Option<std::ops::Range<usize>> {
    let has_memory =
        (0..encoded.instr.op_count()).any(|op| encoded.instr.op_kind(op) == OpKind::Memory);
    let size = encoded.offsets.displacement_size();
    (has_memory && matches!(size, 2 | 4)).then(|| {
        let at = encoded.offsets.displacement_offset();
        at..at + size
    })
}

/// Bytes that an operand takes; the save areas by their usual size.
fn operand_bytes(size: MemorySize) -> u64 {
    match size {
        MemorySize::Xsave | MemorySize::Xsave64 => u64::from(SAVE_AREA_BYTES),
        other => (other.size() as u64).max(1),
    }
}

/// An address for an operand of `bytes` bytes.
fn target(mode: Mode, low_only: bool, bytes: u64, rng: &mut SeededRng) -> u64 {
    let start = if mode == Mode::Long64 && !low_only && rng.one_in(2) { HIGH } else { DATA };
    let region = REGION_BYTES as u64;
    let align = if rng.below(4) < 3 { bytes.min(16).next_power_of_two() } else { 1 };
    let align = if bytes >= 512 && !rng.one_in(4) { 64 } else { align };
    let within = |rng: &mut SeededRng, len: u64| rng.below(len.max(1)) / align * align;
    match rng.below(40) {
        // Across the page border inside the region, into the read-only page, before the region,
        // behind the read-only page, and the read-only page itself.
        0..=2 => start + 4096 - rng.below(bytes + 1),
        3 => start + region - rng.below(bytes + 1),
        4 => start.wrapping_sub(rng.below(bytes + 1)),
        5 => start + region + 4096 - rng.below(bytes + 1),
        6 => start + region + within(rng, 4096 - bytes.min(4095)),
        // Unmapped.
        7 => start - 0x1_0000 + rng.below(0x1000),
        8 if !low_only && mode == Mode::Long64 => match rng.below(4) {
            0 => 0x0000_7fff_ffff_f000 - rng.below(bytes + 1),
            1 => 0x0000_8000_0000_0000 - rng.below(2 * bytes + 1),
            2 => rng.u64(),
            _ => u64::MAX - rng.below(2 * bytes + 1),
        },
        _ => start + within(rng, region - bytes),
    }
}

/// The base of a segment register as the case has it.
#[must_use]
pub fn segment_base(state: &State, mode: Mode, segment: Register) -> u64 {
    match segment {
        Register::FS => state.fs_base,
        Register::GS => state.gs_base,
        _ if mode == Mode::Long64 => 0,
        Register::CS => base_of(state.sel.cs),
        Register::SS => base_of(state.sel.ss),
        Register::ES => base_of(state.sel.es),
        _ => base_of(state.sel.ds),
    }
}

fn is_canonical(address: u64) -> bool {
    address.wrapping_add(1 << 47) >> 48 == 0
}

fn address_mask(size: CodeSize) -> u64 {
    match size {
        CodeSize::Code16 => 0xffff,
        CodeSize::Code32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Sets base register, index register or displacement so that `used` lies at a chosen target.
fn fit_one(
    case: &mut Case,
    encoded: &Encoded,
    used: &UsedMemory,
    fixed: &mut Vec<usize>,
    rng: &mut SeededRng,
) {
    let bytes = operand_bytes(used.memory_size());
    let mask = address_mask(used.address_size());
    let number = |reg: Register| reg.is_gpr().then(|| reg.full_register().number());
    let base = number(used.base());
    let index = number(used.index());
    let has_segment = matches!(used.segment(), Register::FS | Register::GS);
    let low_only = mask != u64::MAX || base.is_none() && index.is_none();
    let target = target(case.mode, low_only, bytes, rng);
    let base_value = segment_base(&case.state, case.mode, used.segment());
    if mask == 0xffff && !(DATA - 0x8000..DATA + 0x1000).contains(&base_value) {
        // 64 KiB of offsets reach nothing that is mapped, but a segment base does.
        if has_segment && case.state.sel.fs == DS_FLAT && case.state.sel.gs == DS_FLAT {
            let offset = effective_address(&case.state, used);
            let base = target.wrapping_sub(offset) & case.mode.gpr_mask();
            set_segment_base(&mut case.state, used.segment(), base);
        }
        return;
    }
    let mut offset = target.wrapping_sub(base_value) & mask;
    if has_segment && is_canonical(target) && !is_canonical(offset) {
        // AMD raises #GP for a non-canonical offset too, Intel only for the sum.
        set_segment_base(&mut case.state, used.segment(), 0);
        offset = target & mask;
    }
    let is_explicit = (0..encoded.instr.op_count())
        .any(|op| encoded.instr.op_kind(op) == OpKind::Memory)
        && used.base() == encoded.instr.memory_base()
        && used.index() == encoded.instr.memory_index();
    let scale = u64::from(used.scale());
    match (base, index) {
        (Some(base), _) if fixed.contains(&base) => {}
        (Some(base), None) => {
            set_register(case, base, offset.wrapping_sub(used.displacement()), mask, rng);
            fixed.push(base);
        }
        (Some(base), Some(index)) if base != index => {
            if rng.one_in(2) {
                case.state.gpr[index] = rng.below(256).wrapping_sub(128);
            }
            let scaled = case.state.gpr[index].wrapping_mul(scale);
            let value = offset.wrapping_sub(used.displacement()).wrapping_sub(scaled);
            set_register(case, base, value, mask, rng);
            fixed.extend([base, index]);
        }
        (Some(base), Some(_)) => {
            let value = offset.wrapping_sub(used.displacement()) / (1 + scale);
            set_register(case, base, value, mask, rng);
            fixed.push(base);
        }
        (None, Some(index)) if is_explicit && encoded.offsets.displacement_size() >= 2 => {
            let spare = rng.below(64) * scale;
            let value = offset.wrapping_sub(spare) / scale;
            set_register(case, index, value, mask, rng);
            fixed.push(index);
            let rest = offset.wrapping_sub(value.wrapping_mul(scale));
            set_displacement(case, encoded, rest);
        }
        (None, None) if is_explicit => {
            let origin =
                if encoded.instr.is_ip_rel_memory_operand() { encoded.instr.next_ip() } else { 0 };
            set_displacement(case, encoded, offset.wrapping_sub(origin));
        }
        _ => {}
    }
}

/// Writes a register that is used as an address of the given mask; the bits above are garbage.
fn set_register(case: &mut Case, reg: usize, value: u64, mask: u64, rng: &mut SeededRng) {
    let garbage = if rng.one_in(2) { rng.u64() } else { 0 };
    case.state.gpr[reg] = (value & mask | garbage & !mask) & case.mode.gpr_mask();
}

fn set_segment_base(state: &mut State, segment: Register, base: u64) {
    if segment == Register::FS {
        state.fs_base = base;
    } else {
        state.gs_base = base;
    }
}

fn set_displacement(case: &mut Case, encoded: &Encoded, value: u64) {
    let (at, size) = (encoded.offsets.displacement_offset(), encoded.offsets.displacement_size());
    case.code[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// The linear address of an operand as the case has its registers.
fn linear_address(state: &State, mode: Mode, used: &UsedMemory) -> u64 {
    let linear =
        effective_address(state, used).wrapping_add(segment_base(state, mode, used.segment()));
    linear & mode.gpr_mask()
}

fn effective_address(state: &State, used: &UsedMemory) -> u64 {
    let value = |reg: Register| {
        if reg == Register::AL {
            state.gpr[RAX] & 0xff
        } else if reg.is_gpr() {
            state.gpr[reg.full_register().number()]
        } else {
            0
        }
    };
    let sum = value(used.base())
        .wrapping_add(value(used.index()).wrapping_mul(u64::from(used.scale())))
        .wrapping_add(used.displacement());
    sum & address_mask(used.address_size())
}

/// Small counts for repeated string instructions and LOOP.
fn set_counts(case: &mut Case, instr: &Instruction, rng: &mut SeededRng) {
    let counts = instr.has_rep_prefix() || instr.has_repne_prefix();
    let loops = matches!(
        instr.mnemonic(),
        Mnemonic::Loop
            | Mnemonic::Loope
            | Mnemonic::Loopne
            | Mnemonic::Jcxz
            | Mnemonic::Jecxz
            | Mnemonic::Jrcxz
    );
    if counts && instr.is_string_instruction() {
        let count = if rng.one_in(20) { rng.below(3000) } else { rng.below(24) };
        // Whether INS and OUTS look at the port's permission if there is nothing to do is left open.
        let is_io = instr.code().op_code().is_input_output();
        let count = count + u64::from(is_io);
        case.state.gpr[RCX] = case.state.gpr[RCX] & !0xffff_ffff | count;
        if case.mode == Mode::Long64 && !rng.one_in(8) {
            case.state.gpr[RCX] = count;
        }
    } else if loops && rng.one_in(2) {
        let garbage = case.state.gpr[RCX];
        let mask = [0xffff, 0xffff_ffff, u64::MAX][rng.below(3) as usize];
        case.state.gpr[RCX] = garbage & !mask | rng.below(3);
    }
    if instr.is_string_instruction() && rng.one_in(2) {
        case.state.rflags |= DF;
    }
}

/// Where the code can go on, as a value of RIP: an INT3 in the code pages, far enough from the
/// instruction.
fn code_address(case: &Case, rng: &mut SeededRng) -> u64 {
    loop {
        let at = code_offset(case.mode, rng.below(REGION_BYTES as u64));
        if at.abs_diff(case.state.rip) > 32 {
            return at;
        }
    }
}

/// Points relative branches into the code pages, mostly.
fn set_branch(case: &mut Case, encoded: &Encoded, rng: &mut SeededRng) {
    let is_near = (0..encoded.instr.op_count()).any(|op| {
        matches!(
            encoded.instr.op_kind(op),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
    });
    if is_near {
        let (at, size) = (encoded.offsets.immediate_offset(), encoded.offsets.immediate_size());
        let next = case.state.rip + case.code.len() as u64;
        let displacement = match size {
            // Behind the instruction, or before it: never into it.
            1 if rng.one_in(2) => rng.below(128),
            1 => 0u64.wrapping_sub(64 + rng.below(64)),
            _ if rng.one_in(8) => rng.u64() | 0x100_0000,
            _ => code_address(case, rng).wrapping_sub(next),
        };
        case.code[at..at + size].copy_from_slice(&displacement.to_le_bytes()[..size]);
    } else if matches!(encoded.instr.op_kind(0), OpKind::FarBranch16 | OpKind::FarBranch32) {
        let (at, size) = (encoded.offsets.immediate_offset(), encoded.offsets.immediate_size());
        let target = code_address(case, rng);
        case.code[at..at + size].copy_from_slice(&target.to_le_bytes()[..size]);
        let (at, size) = (encoded.offsets.immediate_offset2(), encoded.offsets.immediate_size2());
        if size == 2 {
            let selector = code_selector(case, rng);
            case.code[at..at + 2].copy_from_slice(&selector.to_le_bytes());
        }
    }
}

fn code_selector(case: &Case, rng: &mut SeededRng) -> u16 {
    match rng.below(8) {
        // Linux loops for ever on 64-bit code with a 16-bit stack segment.
        // With a base, the stack lies elsewhere in 64-bit code.
        _ if !is_32_bit(case.state.sel.ss) || base_of(case.state.sel.ss) != 0 => CS_32,
        0..=2 => CS_32,
        3 => CS_16,
        4 | 5 => CS_64,
        _ => any_selector(rng),
    }
}

/// A selector: usable, or unusable in one of the ways there are. Descriptors that Linux fills per
/// CPU (TSS, LDT, the CPU number) are left out: their contents are not known here.
fn any_selector(rng: &mut SeededRng) -> u16 {
    // Linux's table: kernel code (32-bit, 64-bit) and data, user code and data; empty entries; and
    // what lies beyond its end.
    const USED: [u16; 6] = [0x08, 0x10, 0x18, 0x20, 0x28, 0x30];
    const EMPTY: [u16; 6] = [0x38, 0x60, 0x68, 0x80, 0x1000, 0xfff8];
    let rpl = if rng.one_in(4) { rng.below(4) as u16 } else { 3 };
    match rng.below(14) {
        0..=5 => DS_FLAT,
        6 => rng.below(4) as u16,
        12 | 13 => (rng.below(LDT.len() as u64 + 1) as u16) << 3 | 4 | rpl,
        7 => EMPTY[rng.below(6) as usize] | rpl,
        8 => EMPTY[rng.below(6) as usize] | 4 | rpl,
        _ => USED[rng.below(6) as usize] | rpl,
    }
}

/// Register operands for which uniform values are dull.
fn set_operands(case: &mut Case, instr: &Instruction, rng: &mut SeededRng) {
    let gpr = |op: u32| {
        let is_gpr = op < instr.op_count()
            && instr.op_kind(op) == OpKind::Register
            && instr.op_register(op).is_gpr();
        is_gpr.then(|| instr.op_register(op))
    };
    match instr.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if rng.below(4) < 3 => {
            // A quotient that fits needs a small upper half.
            let high = if rng.one_in(2) { 0 } else { u64::MAX };
            let sign = (case.state.gpr[RAX] as i64 >> 63) as u64;
            let high = if rng.one_in(2) { sign } else { high } & case.mode.gpr_mask();
            case.state.gpr[RDX] = high;
            if instr.op0_kind() == OpKind::Register && instr.op0_register().size() == 1 {
                case.state.gpr[RAX] = case.state.gpr[RAX] & !0xff00 | high & 0xff00;
            }
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc if rng.one_in(2) => {
            // With a memory operand the bit number reaches beyond it.
            if let Some(reg) = gpr(1) {
                let number = reg.full_register().number();
                if instr.op0_kind() != OpKind::Memory
                    || ![instr.memory_base(), instr.memory_index()]
                        .iter()
                        .any(|used| used.is_gpr() && used.full_register().number() == number)
                {
                    case.state.gpr[number] =
                        rng.below(2048).wrapping_sub(1024) & case.mode.gpr_mask();
                }
            }
        }
        Mnemonic::Cmpxchg if rng.one_in(2) => {
            if let Some(reg) = gpr(0).filter(|reg| {
                !matches!(reg, Register::AH | Register::BH | Register::CH | Register::DH)
            }) {
                case.state.gpr[RAX] = case.state.gpr[reg.full_register().number()];
            }
        }
        Mnemonic::Jmp | Mnemonic::Call if !rng.one_in(8) => {
            if let Some(reg) = gpr(0) {
                case.state.gpr[reg.full_register().number()] = code_address(case, rng);
            }
        }
        Mnemonic::Mov | Mnemonic::Verr | Mnemonic::Verw | Mnemonic::Lar | Mnemonic::Lsl => {
            let loads_segment =
                instr.mnemonic() != Mnemonic::Mov || instr.op0_register().is_segment_register();
            let source =
                if matches!(instr.mnemonic(), Mnemonic::Verr | Mnemonic::Verw) { 0 } else { 1 };
            if let (true, Some(reg)) = (loads_segment, gpr(source)) {
                let number = reg.full_register().number();
                let high = case.state.gpr[number] & !0xffff;
                case.state.gpr[number] = high | u64::from(any_selector(rng));
            }
        }
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase if !rng.one_in(6) => {
            if let Some(reg) = gpr(0) {
                case.state.gpr[reg.full_register().number()] = segment_base_value(case.mode, rng);
            }
        }
        // Outside of these ranges the manual leaves the result undefined.
        Mnemonic::F2xm1 => limit_exponent(&mut case.state.fx.st[0], 0x3ffe),
        Mnemonic::Fyl2xp1 => limit_exponent(&mut case.state.fx.st[0], 0x3ffc),
        // XCR0 of the host has more bits than ours; only those that both have are asked for.
        Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsavec
        | Mnemonic::Xsavec64
        | Mnemonic::Xrstor
        | Mnemonic::Xrstor64 => {
            let asked = rng.u64() & xcr0_all(*MODEL);
            case.state.gpr[RAX] = case.state.gpr[RAX] & !0xffff_ffff | asked;
            case.state.gpr[RDX] &= !0xffff_ffff;
        }
        _ if instr.is_vsib() => set_indices(case, instr, rng),
        Mnemonic::Shlx | Mnemonic::Shrx | Mnemonic::Sarx | Mnemonic::Bzhi if rng.one_in(2) => {
            if let Some(reg) = gpr(2) {
                let number = reg.full_register().number();
                let is_base = [instr.memory_base(), instr.memory_index()]
                    .iter()
                    .any(|used| used.is_gpr() && used.full_register().number() == number);
                if !is_base {
                    case.state.gpr[number] = case.state.gpr[number] & !0xff | rng.below(80);
                }
            }
        }
        _ => {}
    }
}

/// Indices of a gather that mostly lie near the base, and masks of all kinds.
fn set_indices(case: &mut Case, instr: &Instruction, rng: &mut SeededRng) {
    let is_wide = instr.is_vsib64();
    let index = instr.memory_index().number();
    let scale = i64::from(instr.memory_index_scale());
    let near = !rng.one_in(8);
    for half in [&mut case.state.fx.xmm[index], &mut case.state.ymm_high[index]] {
        for lane in half.chunks_exact_mut(if is_wide { 8 } else { 4 }) {
            let value = if near || !rng.one_in(4) {
                ((rng.below(256) as i64 - 128) / scale) as u64
            } else {
                rng.u64()
            };
            let len = lane.len();
            lane.copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }
    let mask = instr.op2_register().number();
    if rng.one_in(3) {
        case.state.fx.xmm[mask] = [0x80; 16];
        case.state.ymm_high[mask] = [0x80; 16];
    }
}

/// Scales a finite number down until its biased exponent is at most `max`.
fn limit_exponent(st: &mut [u8; 16], max: u16) {
    let word = u16::from_le_bytes([st[8], st[9]]);
    let exponent = word & 0x7fff;
    if exponent > max && exponent != 0x7fff {
        let limited = word & 0x8000 | (max - exponent % 64);
        st[8..10].copy_from_slice(&limited.to_le_bytes());
    }
}

/// Memory contents for which what the template holds is dull.
fn set_contents(case: &mut Case, instr: &Instruction, memory: &[UsedMemory], rng: &mut SeededRng) {
    use Mnemonic as M;
    for used in memory {
        let at = linear_address(&case.state, case.mode, used);
        let size = operand_bytes(used.memory_size());
        if let Some(bytes) = contents(case, instr, used, rng) {
            patch(case, at, &bytes);
        } else if rng.one_in(2) {
            let bytes = match used.memory_size() {
                MemorySize::Float80 => values::f80(rng).to_vec(),
                MemorySize::Bcd => values::bcd(rng).to_vec(),
                MemorySize::Float32 => values::f32_bits(rng).to_le_bytes().to_vec(),
                MemorySize::Float64 => values::f64_bits(rng).to_le_bytes().to_vec(),
                _ if size <= 8 && size.is_power_of_two() => {
                    values::int(rng, size as usize).to_le_bytes()[..size as usize].to_vec()
                }
                _ => continue,
            };
            patch(case, at, &bytes);
        }
    }
    // The stack of a return: where to, and for far returns the selectors and the outer stack.
    let stack = stack_address(case.mode, &case.state);
    let words: Vec<u64> = match instr.mnemonic() {
        M::Ret if !rng.one_in(8) => vec![code_address(case, rng)],
        M::Retf if !rng.one_in(8) => {
            vec![code_address(case, rng), u64::from(code_selector(case, rng))]
        }
        M::Iret | M::Iretd | M::Iretq if !rng.one_in(8) => vec![
            code_address(case, rng),
            u64::from(code_selector(case, rng)),
            rng.u64() & ARITHMETIC_FLAGS | 0x202,
            DATA + 0x800 + rng.below(0x1000),
            u64::from(if rng.one_in(4) { any_selector(rng) } else { DS_FLAT }),
        ],
        _ => return,
    };
    let size = stack_word_bytes(instr, case.mode);
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_le_bytes()[..size].to_vec()).collect();
    patch(case, stack, &bytes);
}

/// The linear address of the top of the stack.
#[must_use]
pub fn stack_address(mode: Mode, state: &State) -> u64 {
    let pointer = state.gpr[RSP];
    if mode == Mode::Long64 {
        return pointer;
    }
    let ss = state.sel.ss;
    let offset = if is_32_bit(ss) { pointer } else { pointer & 0xffff };
    base_of(ss).wrapping_add(offset) & 0xffff_ffff
}

/// Bytes of one stack slot that a return instruction pops.
fn stack_word_bytes(instr: &Instruction, mode: Mode) -> usize {
    match instr.code() {
        Code::Retnw | Code::Retnw_imm16 | Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd | Code::Retnd | Code::Retnd_imm16 => 4,
        _ if mode == Mode::Long64 => 8,
        _ => 4,
    }
}

fn contents(
    case: &Case,
    instr: &Instruction,
    used: &UsedMemory,
    rng: &mut SeededRng,
) -> Option<Vec<u8>> {
    use Mnemonic as M;
    Some(match instr.mnemonic() {
        M::Fxrstor | M::Fxrstor64 => fxsave_image(rng).to_vec(),
        M::Xrstor | M::Xrstor64 => {
            let mut area = fxsave_image(rng).to_vec();
            area.resize(SAVE_AREA_BYTES as usize, 0);
            rng.fill(&mut area[XSAVE_BYTES as usize..]);
            let all = xcr0_all(*MODEL);
            let present = if rng.one_in(2) { all } else { rng.u64() & all };
            area[512] = (rng.u64() & present) as u8;
            let is_compacted = MODEL.level >= CpuLevel::V3 && rng.one_in(2);
            if is_compacted {
                // Compacted, and at times with a component that is not among those present.
                area[520] = if rng.one_in(8) { rng.u64() & all } else { present } as u8;
                area[527] = 0x80;
            }
            if rng.one_in(8) {
                // A reserved bit of the header, or one beyond any XCR0. (Bit 15 of XSTATE_BV is a
                // supervisor component, which AMD accepts. In a compacted area it lets the last bytes be
                // anything, SDM vol. 1, 13.8.2 does not.)
                let bytes = if is_compacted { 22 } else { 62 };
                let at = 514 + rng.below(bytes) as usize;
                // Components that the host may have.
                let at = if is_compacted && matches!(at, 520 | 521) { 522 } else { at };
                area[at] |= 0x80;
            }
            area
        }
        M::Ldmxcsr | M::Vldmxcsr => mxcsr(rng, true).to_le_bytes().to_vec(),
        M::Cmpxchg if rng.one_in(2) => {
            case.state.gpr[RAX].to_le_bytes()[..operand_bytes(used.memory_size()) as usize].to_vec()
        }
        M::Cmpxchg8b if rng.one_in(2) => {
            let low = case.state.gpr[RAX] as u32;
            let high = case.state.gpr[RDX] as u32;
            [low.to_le_bytes(), high.to_le_bytes()].concat()
        }
        M::Cmpxchg16b if rng.one_in(2) => {
            [case.state.gpr[RAX].to_le_bytes(), case.state.gpr[RDX].to_le_bytes()].concat()
        }
        M::Jmp | M::Call if !rng.one_in(8) => {
            let size = operand_bytes(used.memory_size()) as usize;
            let mut bytes = code_address(case, rng).to_le_bytes().to_vec();
            let is_far = matches!(
                used.memory_size(),
                MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64
            );
            if is_far {
                bytes.resize(size - 2, 0);
                bytes.extend(code_selector(case, rng).to_le_bytes());
            }
            bytes.resize(size, 0);
            bytes
        }
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs if !rng.one_in(8) => {
            let size = operand_bytes(used.memory_size()) as usize;
            let mut bytes = vec![0; size];
            rng.fill(&mut bytes);
            bytes[size - 2..].copy_from_slice(&any_selector(rng).to_le_bytes());
            bytes
        }
        M::Verr | M::Verw | M::Lar | M::Lsl => any_selector(rng).to_le_bytes().to_vec(),
        M::Mov if instr.op0_register().is_segment_register() => {
            any_selector(rng).to_le_bytes().to_vec()
        }
        M::Pop if instr.op0_register().is_segment_register() => {
            any_selector(rng).to_le_bytes().to_vec()
        }
        _ => return None,
    })
}

/// Adds a patch if it lies in a data region as a whole.
fn patch(case: &mut Case, at: u64, bytes: &[u8]) {
    let is_data = [DATA, HIGH].iter().any(|start| {
        at >= *start
            && at < start + REGION_BYTES as u64
            && bytes.len() as u64 <= start + REGION_BYTES as u64 - at
    });
    if is_data {
        case.patches.push((at, bytes.to_vec()));
    }
}

/// Moves the code so that it ends at the last mapped byte or beyond it.
fn move_to_page_end(case: &mut Case, rng: &mut SeededRng) {
    let end = CODE + REGION_BYTES as u64;
    let cut = if rng.one_in(2) { 0 } else { rng.below(case.code.len() as u64) };
    let kept = case.code.len() - cut as usize;
    case.code.truncate(kept);
    case.state.rip = end - kept as u64 - code_base(case.mode);
}

/// A random state of everything.
pub(crate) fn state(mode: Mode, rng: &mut SeededRng) -> State {
    let mut state = State::default();
    for reg in &mut state.gpr {
        *reg = values::register(rng) & mode.gpr_mask();
    }
    if mode != Mode::Long64 {
        state.gpr[8..].fill(0);
    }
    state.rflags = 2 | 0x200 | rng.u64() & ARITHMETIC_FLAGS;
    if rng.one_in(4) {
        state.rflags |= DF;
    }
    set_segments(&mut state, mode, rng);
    let stack = if mode == Mode::Long64 && rng.one_in(2) { HIGH } else { DATA };
    let offset = match rng.below(16) {
        0 => 4096 - rng.below(32) + 16,
        1 => rng.below(64),
        2 => REGION_BYTES as u64 - rng.below(64),
        _ => 256 + rng.below(REGION_BYTES as u64 - 512),
    };
    let at = stack + if rng.one_in(4) { offset } else { offset & !15 };
    let base = if mode == Mode::Long64 { 0 } else { base_of(state.sel.ss) };
    state.gpr[RSP] = at.wrapping_sub(base) & mode.gpr_mask();
    state.fx = fx(rng);
    if MODEL.level >= CpuLevel::V3 && !rng.one_in(4) {
        state.ymm_high = std::array::from_fn(|_| values::vector(rng));
    }
    if mode != Mode::Long64 {
        state.fx.xmm[8..].fill([0; 16]);
        state.ymm_high[8..].fill([0; 16]);
    }
    state
}

fn set_segments(state: &mut State, mode: Mode, rng: &mut SeededRng) {
    let flat = Selectors { cs: mode.cs(), ss: DS_FLAT, ds: DS_FLAT, es: DS_FLAT, fs: 0, gs: 0 };
    state.sel = match mode {
        Mode::Long64 => flat,
        Mode::Compat32 => Selectors { fs: DS_FLAT, gs: DS_FLAT, ..flat },
        Mode::Compat16 => {
            Selectors { cs: CS_16, ss: DS_16, ds: DS_16, es: DS_16, fs: DS_FLAT, gs: DS_FLAT }
        }
    };
    if mode != Mode::Long64 && rng.one_in(4) {
        // Readable segments of the local table: small ones, read-only ones, expand-down ones, code.
        const DATA_LIKE: [u16; 8] = [0x07, 0x0f, 0x17, 0x1f, 0x27, 0x2f, 0x3f, 0x4f];
        const STACK_LIKE: [u16; 5] = [0x0f, 0x17, 0x27, 0x2f, 0x4f];
        let mut pick = |list: &[u16], or: u16| {
            if rng.one_in(2) { list[rng.below(list.len() as u64) as usize] } else { or }
        };
        state.sel.ds = pick(&DATA_LIKE, state.sel.ds);
        state.sel.es = pick(&DATA_LIKE, state.sel.es);
        state.sel.ss = pick(&STACK_LIKE, state.sel.ss);
        state.sel.fs = pick(&DATA_LIKE, state.sel.fs);
        state.sel.gs = pick(&[0, 0x4f], state.sel.gs);
    }
    let mut base = |selector: u16| {
        if mode == Mode::Long64 || selector == DS_FLAT {
            segment_base_value(mode, rng)
        } else {
            base_of(selector)
        }
    };
    (state.fs_base, state.gs_base) = (base(state.sel.fs), base(state.sel.gs));
}

fn segment_base_value(mode: Mode, rng: &mut SeededRng) -> u64 {
    let base = match rng.below(5) {
        0 => 0,
        1 => rng.below(0x10000),
        2 => DATA,
        3 => 0u64.wrapping_sub(rng.below(0x1_0000_0000) + 1),
        _ => rng.u64() >> 17,
    };
    base & mode.gpr_mask()
}

/// A control or status register of SSE.
fn mxcsr(rng: &mut SeededRng, with_reserved: bool) -> u32 {
    let mut value = 0x1f80;
    if rng.one_in(4) {
        value = (rng.u64() as u32) & 0x1f80;
    }
    value |= (rng.u64() as u32) & 0x6000;
    if rng.one_in(2) {
        value |= (rng.u64() as u32) & 0x3f;
    }
    if rng.one_in(4) {
        value |= (rng.u64() as u32) & 0x8040;
    }
    if with_reserved && rng.one_in(10) {
        // Bit 17 is AMD's misaligned mode, so it is left out.
        value |= 1 << (18 + rng.below(14));
    }
    value
}

/// x87 and SSE state that the CPU could be in.
fn fx(rng: &mut SeededRng) -> Fx {
    let mut fx = Fx { mxcsr: mxcsr(rng, false), ..Fx::default() };
    fx.fcw = 0x340 | 0x3f;
    if rng.one_in(3) {
        let masks = if rng.one_in(2) { 0x3f } else { rng.u64() as u16 & 0x3f };
        let precision = [0x000, 0x200, 0x300, 0x300][rng.below(4) as usize];
        fx.fcw = 0x40 | masks | precision | rng.u64() as u16 & 0x0c00;
    }
    let top = rng.below(8) as u16;
    fx.fsw = top << 11 | rng.u64() as u16 & 0x4700;
    if rng.one_in(2) {
        let flags = rng.u64() as u16 & 0x7f;
        // Mostly no unmasked exception is pending.
        let flags = if rng.one_in(4) { flags } else { flags & (fx.fcw & 0x3f | 0x40) };
        fx.fsw |= flags;
    }
    if fx.fsw & !fx.fcw & 0x3f != 0 {
        fx.fsw |= 0x8080;
    }
    fx.ftw = match rng.below(4) {
        0 => rng.u64() as u8,
        1 => 0,
        _ => 0xff,
    };
    for st in &mut fx.st {
        if rng.one_in(8) {
            // As an MMX instruction leaves it.
            st[..8].copy_from_slice(&rng.u64().to_le_bytes());
            st[8..10].fill(0xff);
        } else {
            st[..10].copy_from_slice(&values::f80(rng));
        }
    }
    for xmm in &mut fx.xmm {
        *xmm = values::vector(rng);
    }
    fx
}

/// A memory image for FXRSTOR, with a reserved MXCSR bit now and then.
fn fxsave_image(rng: &mut SeededRng) -> [u8; 512] {
    let fx = fx(rng);
    let mut image = [0; 512];
    image[0..2].copy_from_slice(&fx.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fx.fsw.to_le_bytes());
    image[4] = fx.ftw;
    image[24..28].copy_from_slice(&mxcsr(rng, true).to_le_bytes());
    for (i, st) in fx.st.iter().enumerate() {
        image[32 + i * 16..][..10].copy_from_slice(&st[..10]);
    }
    for (i, xmm) in fx.xmm.iter().enumerate() {
        image[160 + i * 16..][..16].copy_from_slice(xmm);
    }
    image
}
