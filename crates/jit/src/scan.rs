//! Finds the instructions that one translation covers, and what each does to registers and flags.
//!
//! A translation is a trace: it starts anywhere on a page of code, follows jumps within the page and goes
//! on behind conditional branches, up to an instruction that the engine does not know, a
//! branch that leaves the page, or [`TRACE_MAX`] instructions.

use crate::avx;
use crate::bmi;
use crate::frame::{Home, home, slot};
use crate::host::both_have;
use crate::x87;
use cpu::{CodePlace, INSTRUCTION_BYTES_MAX, decoder_options};
use x86::iced::{
    Code, ConditionCode, CpuidFeature, Decoder, DecoderError, EncodingKind, FlowControl,
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits,
};

/// Longest trace, in instructions.
pub(crate) const TRACE_MAX: usize = 48;

/// The six arithmetic flags as iced numbers them.
pub(crate) const ALL_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What of the mode an SSE instruction wants: CR0.EM and CR0.TS clear, CR4.OSFXSR set. The x87 wants the first two.
const SSE_OFF: u32 = 1 << 3 | 1 << 4;
const SSE_ON: u32 = 1 << 6;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host's own instruction, on other registers.
    Copy,
    /// The same, where the upper halves of the YMM registers have to be there.
    Vector,
    /// A shift by CL: writes no flags if CL is 0.
    ShiftByCl,
    /// Nothing to do.
    Nop,
    /// IMUL with two or three operands.
    ImulTo,
    /// MUL, IMUL with one operand.
    MulWide {
        signed: bool,
    },
    DivWide {
        signed: bool,
    },
    /// BSF, BSR.
    BitScan,
    /// CBW to CQO.
    Extend,
    CmpXchg,
    /// PCMPESTRI, PCMPESTRM.
    CompareStrings,
    /// CMPXCHG16B.
    CmpXchgWide,
    /// BT and the like of a bit anywhere in memory.
    BitString,
    /// XCHG with memory.
    Exchange,
    Push,
    PushFlags,
    Cli,
    Sti,
    SwapGs,
    /// STAC, or CLAC.
    SetAc(bool),
    Syscall,
    Sysret,
    /// RDFSBASE and RDGSBASE, with the base's place in the frame.
    ReadBase(i32),
    WriteBase(i32),
    /// MOV from CR0, CR2, CR3 or CR4, which have these numbers in order.
    ReadControl(usize),
    /// INVLPG: the TLB serves nothing that the tables do not say.
    Invlpg,
    Cld,
    LoadMxcsr,
    /// RDTSC, RDTSCP.
    TimeStamp,
    /// REP MOVS, REP STOS.
    Repeat,
    /// MOV from a segment register.
    Selector,
    Pop,
    Leave,
    Jcc,
    Jmp,
    JmpIndirect,
    Call,
    CallIndirect,
    Ret,
    Lea,
    /// CLC, STC, CMC.
    Carry,
    X87(x87::Role),
    /// BMI, LZCNT and TZCNT; what they write to the flags.
    Bmi(Option<bmi::Flags>),
}

impl Kind {
    /// True for what looks first whether the running code may do it, and is the interpreter's if not.
    fn asks_first(self) -> bool {
        matches!(
            self,
            Kind::Cli
                | Kind::Sti
                | Kind::SwapGs
                | Kind::SetAc(_)
                | Kind::Syscall
                | Kind::Sysret
                | Kind::ReadBase(_)
                | Kind::WriteBase(_)
                | Kind::ReadControl(_)
                | Kind::Invlpg
                | Kind::TimeStamp
        )
    }

    /// True for branches that the trace does not follow wherever they lead.
    fn ends_trace(self) -> bool {
        matches!(
            self,
            Kind::JmpIndirect
                | Kind::Call
                | Kind::CallIndirect
                | Kind::Ret
                | Kind::Syscall
                | Kind::Sysret
        )
    }
}

/// One instruction of a trace.
#[derive(Clone, Debug)]
pub(crate) struct Insn {
    pub(crate) ins: Instruction,
    pub(crate) kind: Kind,
    /// Where on the page it starts, and where the next one does.
    pub(crate) at: u16,
    pub(crate) next: u16,
    /// Flags that it reads; those that it gives a value, whether the manual defines it or not.
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    /// General registers that it writes, one bit each.
    pub(crate) sets: u16,
    /// It can leave the translation before it is done.
    pub(crate) exits: bool,
    /// Flags that somebody may want after it: see [`find_live_flags`].
    pub(crate) live: u32,
    /// Size and direction of its memory operand.
    pub(crate) access: Option<Access>,
}

/// A memory operand's access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) bytes: u32,
    pub(crate) write: bool,
    /// #GP if the address is not a multiple of the size, which is 16 or 32 bytes then.
    pub(crate) aligned: bool,
}

/// How a trace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its last instruction, a branch.
    Branch,
    /// Goes on at this place on the page, which may be the start of the next one.
    At(u16),
    /// The instruction at this place reaches into the next page.
    Straddles(u16),
    /// The interpreter has to do the instruction at this place.
    Unknown(u16),
}

/// A trace.
pub(crate) struct Trace {
    pub(crate) insns: Vec<Insn>,
    pub(crate) end: End,
    /// It may go on where it starts.
    pub(crate) is_loop: bool,
}

/// Reads the trace of at most `most` instructions that starts at `start` on a page. Unless it is a loop, it ends where code is
/// known that it can go on with. `meaning` is of [`crate::host::meaning_on`], here and below.
pub(crate) fn scan(
    page: &[u8; 4096],
    start: u16,
    meaning: u32,
    most: usize,
    is_known: impl Fn(u16) -> bool,
) -> Trace {
    let mut info = InstructionInfoFactory::new();
    let mut insns: Vec<Insn> = Vec::with_capacity(most);
    let mut decoder = Decoder::with_ip(64, page, 0, decoder_options(meaning));
    let mut ins = Instruction::default();
    let mut at = start;
    let end = loop {
        if at == 4096 || insns.len() == most || insns.iter().any(|insn| insn.at == at) {
            break End::At(at);
        }
        decoder.set_position(usize::from(at)).expect("a place on the page");
        decoder.set_ip(u64::from(at));
        decoder.decode_out(&mut ins);
        let is_cut = decoder.last_error() == DecoderError::NoMoreBytes;
        if ins.is_invalid() && is_cut && page.len() - usize::from(at) < INSTRUCTION_BYTES_MAX {
            break End::Straddles(at);
        }
        let Some(insn) = understand(&ins, at, meaning, &mut info) else { break End::Unknown(at) };
        let kind = insn.kind;
        let next = insn.next;
        insns.push(insn);
        match kind {
            Kind::Jmp => match page_place(ins.near_branch64()) {
                Some(target) => at = target,
                None => break End::Branch,
            },
            kind if kind.ends_trace() => break End::Branch,
            _ => at = next,
        }
    };
    let goes_back = |insn: &Insn| {
        matches!(insn.kind, Kind::Jcc | Kind::Call) && insn.ins.near_branch64() == u64::from(start)
    };
    let is_loop = end == End::At(start) && !insns.is_empty() || insns.iter().any(goes_back);
    let mut end = end;
    if !is_loop && let Some(place) = insns.iter().skip(1).position(|insn| is_known(insn.at)) {
        end = End::At(insns[place + 1].at);
        insns.truncate(place + 1);
    }
    x87::mark_exits(&mut insns);
    // STI holds off interrupts for one instruction: that one has to be done in the same breath.
    let is_alone = |(place, insn): (usize, &Insn)| {
        insn.kind == Kind::Sti && insns.get(place + 1).is_none_or(|next| next.exits)
    };
    if let Some(place) = insns.iter().enumerate().position(is_alone) {
        end = End::Unknown(insns[place].at);
        insns.truncate(place);
    }
    Trace { insns, end, is_loop }
}

/// The trace of one instruction that starts on one page and ends on another. `bytes` begin with it.
pub(crate) fn scan_straddler(bytes: &[u8], start: u16, meaning: u32) -> Trace {
    let ins = Decoder::with_ip(64, bytes, u64::from(start), decoder_options(meaning)).decode();
    let insn = understand(&ins, start, meaning, &mut InstructionInfoFactory::new());
    let end = match &insn {
        None => End::Unknown(start),
        Some(insn) if insn.kind.ends_trace() || insn.kind == Kind::Jmp => End::Branch,
        Some(insn) => End::At(insn.next),
    };
    Trace { insns: insn.into_iter().collect(), end, is_loop: false }
}

/// A branch target as a place on the page, if it is on it.
pub(crate) fn page_place(target: u64) -> Option<u16> {
    (target < 4096).then_some(target as u16)
}

/// Finds out which flags somebody may want, once it is decided what exits; gives those before the trace.
pub(crate) fn find_live_flags(trace: &mut Trace) -> u32 {
    let mut live = ALL_FLAGS;
    for insn in trace.insns.iter_mut().rev() {
        insn.live = live;
        live = if insn.exits { ALL_FLAGS } else { live & !insn.writes | insn.reads };
    }
    live
}

fn understand(
    ins: &Instruction,
    at: u16,
    meaning: u32,
    info: &mut InstructionInfoFactory,
) -> Option<Insn> {
    if ins.is_invalid() {
        return None;
    }
    let kind = kind_of(ins, meaning)?;
    let options = if has_memory_operand(ins) {
        InstructionInfoOptions::NONE
    } else {
        InstructionInfoOptions::NO_MEMORY_USAGE
    };
    let used = info.info_options(ins, options);
    let mut sets = 0;
    for register in used.used_registers() {
        let full = register.register().full_register();
        let is_written = !matches!(
            register.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
        );
        if full.is_gpr64() && is_written {
            sets |= 1 << full.number();
        }
    }
    let mut access = None;
    if has_memory_operand(ins) && !matches!(kind, Kind::Lea | Kind::Nop | Kind::Invlpg) {
        let write = used.used_memory().iter().any(|memory| {
            let is_stack =
                memory.base() == Register::RSP && matches!(kind, Kind::Push | Kind::CallIndirect);
            !is_stack
                && !matches!(
                    memory.access(),
                    OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
                )
        });
        let bytes = ins.memory_size().size() as u32;
        if bytes == 0 || bytes > 32 {
            return None;
        }
        access = Some(Access { bytes, write, aligned: wants_alignment(ins, bytes) });
    }
    let mut reads = ins.rflags_read() & ALL_FLAGS;
    let mut writes = ins.rflags_modified() & ALL_FLAGS;
    match kind {
        // As the project defines what the manual leaves open, or because it may not happen.
        Kind::DivWide { .. } => writes = 0,
        Kind::BitScan => writes = RflagsBits::ZF,
        Kind::ShiftByCl => (reads, writes) = (0, 0),
        Kind::CmpXchgWide => writes = RflagsBits::ZF,
        Kind::BitString => writes = RflagsBits::CF,
        Kind::Copy => match ins.mnemonic() {
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => writes = RflagsBits::CF,
            _ => {}
        },
        Kind::Nop
        | Kind::PushFlags
        | Kind::Cld
        | Kind::LoadMxcsr
        | Kind::Repeat
        | Kind::Selector => {
            (reads, writes) = (0, 0);
        }
        _ if kind.asks_first() => (reads, writes) = (0, 0),
        Kind::X87(x87::Role::CompareFlags) | Kind::Bmi(Some(_)) => writes = ALL_FLAGS,
        Kind::Bmi(None) => writes = 0,
        _ => {}
    }
    let exits = access.is_some()
        || kind.asks_first()
        || matches!(
            kind,
            Kind::Push
                | Kind::PushFlags
                | Kind::Repeat
                | Kind::Pop
                | Kind::Leave
                | Kind::DivWide { .. }
                | Kind::Jcc
                | Kind::Call
                | Kind::CallIndirect
                | Kind::Ret
                | Kind::JmpIndirect
                | Kind::X87(_)
        );
    let next = at + ins.len() as u16;
    Some(Insn { ins: *ins, kind, at, next, reads, writes, sets, exits, live: 0, access })
}

fn has_memory_operand(ins: &Instruction) -> bool {
    ins.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// True for the instructions whose operand of so many bytes has to be aligned.
fn wants_alignment(ins: &Instruction, bytes: u32) -> bool {
    if ins.code().encoding() == EncodingKind::VEX {
        return avx::wants_alignment(ins);
    }
    bytes == 16
        && !matches!(
            ins.mnemonic(),
            Mnemonic::Movups
                | Mnemonic::Movupd
                | Mnemonic::Movdqu
                | Mnemonic::Lddqu
                | Mnemonic::Pcmpistri
                | Mnemonic::Pcmpistrm
                | Mnemonic::Pcmpestri
                | Mnemonic::Pcmpestrm
                | Mnemonic::Pcmpestri64
                | Mnemonic::Pcmpestrm64
        )
}

fn kind_of(ins: &Instruction, meaning: u32) -> Option<Kind> {
    if let Some(kind) = special_kind_of(ins) {
        return Some(kind);
    }
    if meaning & SSE_OFF == 0
        && let Some(role) = x87::role_of(ins.code())
    {
        return is_reachable(ins).then_some(Kind::X87(role));
    }
    if let Some(kind) = avx::kind_of(ins, meaning) {
        return Some(kind);
    }
    if uses_what_has_no_home(ins) || !both_have(ins.code(), meaning) {
        return None;
    }
    if let Some(kind) = bmi::kind_of(ins) {
        return Some(kind);
    }
    if !is_reachable(ins) {
        return None;
    }
    let by_memory_bits = || {
        // A bit number in a register reaches beyond the operand.
        let register_bit = has_memory_operand(ins) && ins.op1_kind() == OpKind::Register;
        if !register_bit {
            Some(Kind::Copy)
        } else {
            (ins.memory_base().size() != 4 && ins.memory_index().size() != 4)
                .then_some(Kind::BitString)
        }
    };
    let shift = || match ins.op1_kind() {
        OpKind::Register => wide_operand(ins).then_some(Kind::ShiftByCl),
        _ => shifts_within(ins).then_some(Kind::Copy),
    };
    match ins.mnemonic() {
        Mnemonic::Add
        | Mnemonic::Or
        | Mnemonic::Adc
        | Mnemonic::Sbb
        | Mnemonic::And
        | Mnemonic::Sub
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Neg
        | Mnemonic::Not
        | Mnemonic::Xadd
        | Mnemonic::Popcnt
        | Mnemonic::Movnti
        | Mnemonic::Movbe
        | Mnemonic::Crc32 => Some(Kind::Copy),
        Mnemonic::Xchg if has_memory_operand(ins) => Some(Kind::Exchange),
        Mnemonic::Xchg => Some(Kind::Copy),
        Mnemonic::Mov => Some(Kind::Copy),
        Mnemonic::Bswap => (ins.op0_register().size() != 2).then_some(Kind::Copy),
        Mnemonic::Inc | Mnemonic::Dec => Some(Kind::Copy),
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar => shift(),
        Mnemonic::Rol | Mnemonic::Ror => match ins.op1_kind() {
            OpKind::Register => None,
            _ => shifts_within(ins).then_some(Kind::Copy),
        },
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => by_memory_bits(),
        Mnemonic::Bsf | Mnemonic::Bsr => Some(Kind::BitScan),
        Mnemonic::Lea => Some(Kind::Lea),
        Mnemonic::Imul if ins.op_count() > 1 => Some(Kind::ImulTo),
        Mnemonic::Imul => wide_operand(ins).then_some(Kind::MulWide { signed: true }),
        Mnemonic::Mul => wide_operand(ins).then_some(Kind::MulWide { signed: false }),
        Mnemonic::Div => wide_operand(ins).then_some(Kind::DivWide { signed: false }),
        Mnemonic::Idiv => wide_operand(ins).then_some(Kind::DivWide { signed: true }),
        Mnemonic::Cbw
        | Mnemonic::Cwde
        | Mnemonic::Cdqe
        | Mnemonic::Cwd
        | Mnemonic::Cdq
        | Mnemonic::Cqo => Some(Kind::Extend),
        Mnemonic::Shld | Mnemonic::Shrd => match ins.op2_kind() {
            OpKind::Register => wide_operand(ins).then_some(Kind::ShiftByCl),
            _ => {
                (wide_operand(ins) && shifts_by(ins, ins.immediate(2) as u32)).then_some(Kind::Copy)
            }
        },
        Mnemonic::Cmpxchg16b => Some(Kind::CmpXchgWide),
        Mnemonic::Cmpxchg => has_memory_operand(ins).then_some(Kind::CmpXchg),
        Mnemonic::Push => matches!(
            ins.code(),
            Code::Push_r64 | Code::Pushq_imm32 | Code::Pushq_imm8 | Code::Push_rm64
        )
        .then_some(Kind::Push),
        Mnemonic::Pushfq => Some(Kind::PushFlags),
        Mnemonic::Cli => Some(Kind::Cli),
        Mnemonic::Sti => Some(Kind::Sti),
        Mnemonic::Swapgs => Some(Kind::SwapGs),
        Mnemonic::Stac => Some(Kind::SetAc(true)),
        Mnemonic::Clac => Some(Kind::SetAc(false)),
        Mnemonic::Syscall => Some(Kind::Syscall),
        Mnemonic::Sysretq => Some(Kind::Sysret),
        Mnemonic::Pop => matches!(ins.code(), Code::Pop_r64).then_some(Kind::Pop),
        Mnemonic::Leave => (ins.code() == Code::Leaveq).then_some(Kind::Leave),
        Mnemonic::Jmp => match ins.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Some(Kind::Jmp),
            Code::Jmp_rm64 => Some(Kind::JmpIndirect),
            _ => None,
        },
        Mnemonic::Call => match ins.code() {
            // If the target is not canonical, nothing is to be pushed.
            Code::Call_rel32_64
                if meaning & CodePlace::AT_EDGE != 0
                    && page_place(ins.near_branch64()).is_none() =>
            {
                None
            }
            Code::Call_rel32_64 => Some(Kind::Call),
            Code::Call_rm64 => Some(Kind::CallIndirect),
            _ => None,
        },
        Mnemonic::Ret => matches!(ins.code(), Code::Retnq | Code::Retnq_imm16).then_some(Kind::Ret),
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Reservednop
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta
        | Mnemonic::Lfence
        | Mnemonic::Mfence
        | Mnemonic::Sfence => Some(Kind::Nop),
        Mnemonic::Cld => Some(Kind::Cld),
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => Some(Kind::TimeStamp),
        Mnemonic::Clc | Mnemonic::Stc | Mnemonic::Cmc => Some(Kind::Carry),
        _ if ins.is_jcc_short_or_near() => {
            (ins.op0_kind() == OpKind::NearBranch64).then_some(Kind::Jcc)
        }
        _ if is_set_or_move_on_condition(ins) => Some(Kind::Copy),
        _ if meaning & (SSE_OFF | SSE_ON) != SSE_ON => None,
        Mnemonic::Ldmxcsr => Some(Kind::LoadMxcsr),
        Mnemonic::Stmxcsr => Some(Kind::Copy),
        Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpestri64
        | Mnemonic::Pcmpestrm64 => Some(Kind::CompareStrings),
        _ if is_copied_sse(ins) => Some(Kind::Copy),
        _ => None,
    }
}

/// What has operands that no other instruction has.
fn special_kind_of(ins: &Instruction) -> Option<Kind> {
    match ins.code() {
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            (ins.op0_kind() == OpKind::Register).then_some(Kind::Selector)
        }
        Code::Rdfsbase_r64 => Some(Kind::ReadBase(slot::FS)),
        Code::Rdgsbase_r64 => Some(Kind::ReadBase(slot::GS)),
        Code::Wrfsbase_r64 => Some(Kind::WriteBase(slot::FS)),
        Code::Wrgsbase_r64 => Some(Kind::WriteBase(slot::GS)),
        Code::Mov_r64_cr => {
            const READ: [Register; 4] =
                [Register::CR0, Register::CR2, Register::CR3, Register::CR4];
            let place = READ.iter().position(|register| *register == ins.op1_register());
            place.map(Kind::ReadControl)
        }
        Code::Invlpg_m => Some(Kind::Invlpg),
        Code::Movsb_m8_m8
        | Code::Movsw_m16_m16
        | Code::Movsd_m32_m32
        | Code::Movsq_m64_m64
        | Code::Stosb_m8_AL
        | Code::Stosw_m16_AX
        | Code::Stosd_m32_EAX
        | Code::Stosq_m64_RAX => {
            let is_wide = ins.op0_kind() == OpKind::MemoryESRDI;
            let has_base = matches!(ins.segment_prefix(), Register::FS | Register::GS);
            let repeats = ins.has_rep_prefix() && !ins.has_repne_prefix();
            (is_wide && repeats && !has_base).then_some(Kind::Repeat)
        }
        _ => None,
    }
}

/// True if the constant shift count is neither 0 nor beyond the operand.
fn shifts_within(ins: &Instruction) -> bool {
    shifts_by(ins, ins.immediate(1) as u32)
}

fn shifts_by(ins: &Instruction, count: u32) -> bool {
    let bits = 8 * operand_bytes(ins);
    let count = count & if bits == 64 { 63 } else { 31 };
    count != 0 && count < bits
}

/// Size of the first operand.
pub(crate) fn operand_bytes(ins: &Instruction) -> u32 {
    match ins.op0_kind() {
        OpKind::Memory => ins.memory_size().size() as u32,
        _ => ins.op0_register().size() as u32,
    }
}

/// 32 or 64 bits.
fn wide_operand(ins: &Instruction) -> bool {
    operand_bytes(ins) >= 4
}

/// True if every address that is computed from the page can be, and enough registers are free.
pub(crate) fn is_reachable(ins: &Instruction) -> bool {
    let fits = |distance: u64| i32::try_from(distance as i64).is_ok();
    let mut last = Register::None;
    let scratches = (0..ins.op_count())
        .filter(|n| ins.op_kind(*n) == OpKind::Register && ins.op_register(*n).is_gpr())
        .map(|n| ins.op_register(n))
        .map(|register| if is_high_byte(register) { register } else { register.full_register() })
        .filter(|register| {
            is_high_byte(*register) || matches!(home(register.number() as u8), Home::Slot(_))
        })
        .filter(|register| std::mem::replace(&mut last, *register) != *register)
        .count();
    let is_branch = ins.op_count() > 0 && ins.op0_kind() == OpKind::NearBranch64;
    if is_branch && !fits(ins.near_branch64()) || scratches > 2 {
        return false;
    }
    !has_memory_operand(ins) || scratches < 2 && is_memory_reachable(ins)
}

/// True if the address of a memory operand can be computed.
pub(crate) fn is_memory_reachable(ins: &Instruction) -> bool {
    let is_far = || i32::try_from(ins.memory_displacement64() as i64).is_err();
    match ins.memory_base() {
        _ if !has_memory_operand(ins) => true,
        Register::EIP => false,
        Register::RIP => !is_far(),
        _ => true,
    }
}

/// SETcc and CMOVcc.
pub(crate) fn is_set_or_move_on_condition(ins: &Instruction) -> bool {
    ins.condition_code() != ConditionCode::None
        && ins.flow_control() == FlowControl::Next
        && matches!(ins.cpuid_features(), [CpuidFeature::INTEL386] | [CpuidFeature::CMOV])
}

/// Segment, control and debug registers and MMX, and high byte registers in forms that do not keep
/// still while one is moved to where the host can use it.
fn uses_what_has_no_home(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|n| {
        if ins.op_kind(n) != OpKind::Register {
            return false;
        }
        let register = ins.op_register(n);
        is_high_byte(register) && !takes_high_bytes(ins)
            || !(register.is_gpr() || register.is_xmm())
    })
}

/// AH, CH, DH, BH.
pub(crate) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The forms that read no flags and write all or none.
fn takes_high_bytes(ins: &Instruction) -> bool {
    matches!(
        ins.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Test
            | Mnemonic::Cmp
            | Mnemonic::Add
            | Mnemonic::Sub
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor
    )
}

/// SSE to SSE4.2, AES, PCLMULQDQ and SHA that the host does as the manual defines, without MMX registers.
fn is_copied_sse(ins: &Instruction) -> bool {
    let is_sse = ins.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
                | CpuidFeature::AES
                | CpuidFeature::PCLMULQDQ
                | CpuidFeature::SHA
        )
    });
    let has_xmm = (0..ins.op_count())
        .any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_xmm());
    is_sse
        && has_xmm
        && !matches!(
            ins.mnemonic(),
            Mnemonic::Rcpps
                | Mnemonic::Rcpss
                | Mnemonic::Rsqrtps
                | Mnemonic::Rsqrtss
                | Mnemonic::Maskmovdqu
                | Mnemonic::Dpps
                | Mnemonic::Dppd
                | Mnemonic::Haddps
                | Mnemonic::Haddpd
                | Mnemonic::Hsubps
                | Mnemonic::Hsubpd
                | Mnemonic::Cvtpi2ps
                | Mnemonic::Cvtpi2pd
        )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::host::meaning_on;
    use x86::{CpuLevel, CpuModel};

    /// Everything that bytes can decode to: each opcode of each map, with each prefix that may choose another
    /// form, and registers or memory.
    fn decodable() -> impl Iterator<Item = Instruction> {
        const PREFIXES: [&[u8]; 13] = [
            &[],
            &[0x66],
            &[0xf2],
            &[0xf3],
            &[0xf0],
            &[0x67],
            &[0x48],
            &[0x66, 0x48],
            &[0xf2, 0x48],
            &[0xf3, 0x48],
            &[0x66, 0xf2],
            &[0x66, 0xf3],
            &[0x41],
        ];
        const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        let places = PREFIXES.into_iter().flat_map(|prefix| MAPS.map(|map| [prefix, map].concat()));
        // VEX: the opcode map; W, the length and the prefix it stands for; another register among the operands.
        let vex = (1..=3_u8).flat_map(|map| {
            let bits = (0..16_u8).map(|n| (n & 8) << 4 | 0x78 | n & 7);
            bits.map(move |bits| vec![0xc4, 0xe0 | map, bits])
        });
        places.chain(vex).flat_map(|start| {
            // The low half of the numbers have an operand in memory, the others in a register.
            (0..=255_u8).flat_map(|opcode| (0..16_u8).map(move |n| (opcode, n))).filter_map(
                move |(opcode, n)| {
                    let modrm = (n & 7) << 3 | if n < 8 { 4 } else { 0xc1 };
                    let bytes = [&start[..], &[opcode, modrm, 0x24, 1, 2, 3, 4, 5, 6, 7]].concat();
                    let ins = Decoder::with_ip(64, &bytes, 0, decoder_options(EVERYTHING)).decode();
                    (!ins.is_invalid()).then_some(ins)
                },
            )
        })
    }

    const AVX_ON: u32 = 1 << 12;
    const ALL_MODELS: u32 = of_models(CpuModel::ALL, CpuModel::ALL);
    const EVERYTHING: u32 = ALL_MODELS | SSE_ON | AVX_ON;

    const fn of_models(guest: CpuModel, host: CpuModel) -> u32 {
        meaning_on(guest.bits() << 8, host)
    }

    /// The forms that a model beyond the base has, each with what it needs.
    fn beyond_v2() -> impl Iterator<Item = (Instruction, u32)> {
        let form = |ins: &Instruction| cpu::forms::lookup(ins.code()).is_some();
        let needed = |ins: &Instruction| cpu::forms::model_bits_needed(ins.code());
        decodable().filter(form).map(move |ins| (ins, needed(&ins))).filter(|(_, bits)| *bits != 0)
    }

    #[test]
    fn every_form_beyond_v2_is_on_the_list_but_for_those_whose_like_is_not() {
        let mut names = BTreeSet::new();
        let (mut listed, mut left) = (BTreeSet::new(), BTreeSet::new());
        for (ins, _) in beyond_v2() {
            names.insert(format!("{:?}", ins.code()));
            let is_listed = kind_of(&ins, EVERYTHING).is_some();
            let which = if is_listed { &mut listed } else { &mut left };
            which.insert(format!("{:?}", ins.mnemonic()));
        }
        let forms = cpu::forms::all().map(|form| form.code);
        let all = forms.filter(|code| cpu::forms::model_bits_needed(*code) != 0);
        let unseen: Vec<_> =
            all.map(|code| format!("{code:?}")).filter(|it| !names.contains(it)).collect();
        assert_eq!(unseen, Vec::<String>::new());
        let depends_on_host = [
            "Vdppd", "Vdpps", "Vhaddpd", "Vhaddps", "Vhsubpd", "Vhsubps", "Vrcpps", "Vrcpss",
            "Vrsqrtps", "Vrsqrtss",
        ];
        let by_element = [
            "Vgatherdpd",
            "Vgatherdps",
            "Vgatherqpd",
            "Vgatherqps",
            "Vmaskmovdqu",
            "Vmaskmovpd",
            "Vmaskmovps",
            "Vpgatherdd",
            "Vpgatherdq",
            "Vpgatherqd",
            "Vpgatherqq",
            "Vpmaskmovd",
            "Vpmaskmovq",
        ];
        // Their operands are not in the registers that they are in here, or they are the system's.
        let others =
            ["Vpcmpestri", "Vpcmpestri64", "Vpcmpestrm", "Vpcmpestrm64", "Xsavec", "Xsavec64"];
        let expected = [&depends_on_host[..], &by_element, &others].concat();
        let expected: BTreeSet<String> = expected.into_iter().map(String::from).collect();
        assert_eq!(left, expected);
        assert_eq!(listed.intersection(&left).next(), None);
    }

    #[test]
    fn what_a_guest_or_a_host_lacks_is_left_alone() {
        for (ins, needed) in beyond_v2() {
            for lacking in
                [CpuModel::V2, CpuModel::V3, CpuModel { level: CpuLevel::V2, ..CpuModel::ALL }]
            {
                if needed & !lacking.bits() == 0 {
                    continue;
                }
                for models in [of_models(lacking, CpuModel::ALL), of_models(CpuModel::ALL, lacking)]
                {
                    let kind = kind_of(&ins, models | SSE_ON | AVX_ON);
                    assert_eq!(kind, None, "{:?} for {lacking}", ins.code());
                }
            }
        }
    }

    #[test]
    fn every_form_on_the_list_is_one_that_the_interpreter_has() {
        let unknown = decodable()
            .filter(|ins| {
                kind_of(ins, EVERYTHING).is_some() && cpu::forms::lookup(ins.code()).is_none()
            })
            .map(|ins| format!("{:?}", ins.code()));
        assert_eq!(unknown.collect::<BTreeSet<_>>(), Default::default());
    }

    #[test]
    fn every_form_that_depends_on_the_mode_is_left_alone_where_it_is_off() {
        use cpu::forms::Gate;
        let copied = decodable().filter(|ins| {
            let off: &[u32] = match cpu::forms::lookup(ins.code()).map(|form| form.gate()) {
                None | Some(Gate::None) => &[],
                Some(Gate::X87 | Gate::Wait) => &[SSE_OFF, SSE_ON | 1 << 3, SSE_ON | 1 << 4],
                Some(Gate::Avx) => &[0, SSE_ON, AVX_ON | 1 << 4],
                Some(_) => &[0, AVX_ON, SSE_OFF | SSE_ON, SSE_ON | 1 << 4],
            };
            off.iter().any(|it| kind_of(ins, ALL_MODELS | *it).is_some())
        });
        assert_eq!(copied.map(|ins| format!("{:?}", ins.code())).next(), None);
    }

    #[test]
    fn a_trace_ends_where_code_is_known_unless_it_is_a_loop() {
        let ends = |code: &[u8]| {
            let mut page = [0xf4; 4096];
            page[..code.len()].copy_from_slice(code);
            let trace = scan(&page, 0, meaning_on(2, CpuModel::ALL), TRACE_MAX, |at| at <= 3);
            (trace.insns.len(), trace.end, trace.is_loop)
        };
        // inc rax; inc rcx; nop; hlt
        assert_eq!(
            ends(&[0x48, 0xff, 0xc0, 0x48, 0xff, 0xc1, 0x90]),
            (1, End::At(3), false),
            "it was known where it starts, too"
        );
        // l: inc rax; inc rcx; jmp l
        assert_eq!(ends(&[0x48, 0xff, 0xc0, 0x48, 0xff, 0xc1, 0xeb, 0xf8]), (3, End::At(0), true));
    }
}
