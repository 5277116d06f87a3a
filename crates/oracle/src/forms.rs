//! What is known about instruction forms: which can be compared, and what each leaves undefined.
//!
//! Manual references are to the Intel SDM ("SDM") and the AMD APM ("APM").

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use x86::CpuModel;

use crate::state::Mode;
use crate::{MODEL, encode};

/// How far the oracle covers a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// Results and faults are compared.
    Full,
    /// The form is privileged, so a program sees only its #GP or #UD.
    FaultOnly,
    /// Not compared, for this reason.
    Excluded(&'static str),
}

/// How far the oracle covers `code` in `mode`.
#[must_use]
pub fn coverage(code: Code, mode: Mode) -> Coverage {
    use Mnemonic as M;
    let nondeterministic = "the host's own value: differs from host to host or from run to run";
    let kernel = "enters the host's kernel";
    match code.mnemonic() {
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpid | M::Rdrand | M::Rdseed | M::Xgetbv => {
            Coverage::Excluded(nondeterministic)
        }
        M::Syscall | M::Sysenter | M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq => {
            Coverage::Excluded(kernel)
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Smsw | M::Str => {
            Coverage::Excluded("the host's kernel forbids it to programs (UMIP) or emulates it")
        }
        M::Vmcall | M::Vmmcall | M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx => {
            Coverage::Excluded("reaches the hypervisor below the host")
        }
        M::Int1 => Coverage::Excluded("the hypervisor below the host intercepts it"),
        M::Reservednop if code.op_code().op_code() == 0x0d => Coverage::Excluded(
            "a register operand is #UD on AMD (APM PREFETCHW) and a NOP on Intel",
        ),
        _ if code == Code::Movsxd_r16_rm16 => {
            Coverage::Excluded("reads 16 bits on Intel (SDM MOVSXD) and 32 on AMD")
        }
        _ if is_intel_far_64(code) => Coverage::Excluded(
            "REX.W far pointers are Intel's alone (SDM JMP, CALL, LSS; APM: REX.W is ignored)",
        ),
        M::Ud0 => {
            Coverage::Excluded("has a ModRM byte on Intel (SDM UD) and none on AMD (APM UD0)")
        }
        _ if is_amd_only(code, mode) => Coverage::Excluded(
            "AMD only: Intel ignores 66H on near branches in 64-bit mode (SDM Jcc)",
        ),
        _ if code.op_code().must_be_cpl0() || code.op_code().is_privileged() => Coverage::FaultOnly,
        _ => Coverage::Full,
    }
}

fn is_intel_far_64(code: Code) -> bool {
    matches!(
        code,
        Code::Lss_r64_m1664
            | Code::Lfs_r64_m1664
            | Code::Lgs_r64_m1664
            | Code::Call_m1664
            | Code::Jmp_m1664
    )
}

/// True for forms that only an AMD CPU decodes.
fn is_amd_only(code: Code, mode: Mode) -> bool {
    let op = code.op_code();
    mode == Mode::Long64 && op.amd_decoder64() && !op.intel_decoder64()
}

/// True if the instruction as it stands is not compared: because it belongs to an extension that
/// the guest does not have and the host may, because it must not run natively, or because AMD and Intel define it differently and we present an Intel CPU. (A SYSCALL by accident
/// would do no harm, but its result is the filter's.)
#[must_use]
pub fn is_forbidden(instr: &Instruction, mode: Mode, bytes: &[u8]) -> bool {
    !instr.is_invalid()
        && !is_implemented(instr.code())
        && !is_of(*MODEL, instr.code())
        || instr.code() == Code::Int_imm8 && instr.immediate8() == 0x80
        || matches!(coverage(instr.code(), mode), Coverage::Excluded(_))
        || mode == Mode::Long64 && is_near_branch(instr) && has_prefix(bytes, &[0x66])
        // APM MOV CRn: with LOCK it reaches CR8 in every mode; Intel has no such encoding.
        || has_prefix(bytes, &[0xf0]) && bytes.windows(2).any(|it| matches!(it, [0x0f, 0x20 | 0x22]))
        // SDM CVTPI2PS: a transition to MMX, also from memory; AMD's make none then.
        || instr.code() == Code::Cvtpi2ps_xmm_mmm64 && instr.op1_kind() == OpKind::Memory
        // iced takes F3 90 with REX.B for PAUSE; the CPU exchanges R8.
        || instr.code() == Code::Pause && bytes.iter().any(|byte| byte & 0xf1 == 0x41)
        // SDM PEXTRQ, PINSRQ: VEX.W is ignored outside 64-bit mode; AMD's raise #UD.
        || mode != Mode::Long64 && is_dword_lane(instr.code()) && has_vex_w(bytes)
        // A repeat prefix on LOOPcc is meaningless by the manuals; on AMD it changes the condition.
        || instr.is_loopcc() && has_prefix(bytes, &[0xf2, 0xf3])
}

fn is_dword_lane(code: Code) -> bool {
    matches!(code, Code::VEX_Vpextrd_rm32_xmm_imm8 | Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8)
}

/// True if a VEX prefix of three bytes sets W.
fn has_vex_w(bytes: &[u8]) -> bool {
    bytes.iter().position(|byte| *byte == 0xc4).is_some_and(|at| bytes[at + 2] & 0x80 != 0)
}

/// SDM, Jcc/JMP/CALL/RET/LOOP: in 64-bit mode the operand size is 64 bits whatever the prefix says.
/// APM, "Operand-Size Override Prefix": a 66H makes near branches 16 bits wide.
fn is_near_branch(instr: &Instruction) -> bool {
    use Mnemonic as M;
    instr.is_jcc_short_or_near()
        || instr.is_jmp_short_or_near()
        || instr.is_call_near()
        || instr.is_jmp_near_indirect()
        || instr.is_call_near_indirect()
        || instr.is_jcx_short()
        || instr.is_loop()
        || instr.is_loopcc()
        || instr.mnemonic() == M::Ret
}

/// True if one of `wanted` is among the prefixes that `bytes` start with. (A byte that is REX in
/// 64-bit code and INC or DEC elsewhere may be taken for a prefix; that only skips a case.)
fn has_prefix(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes
        .iter()
        .take_while(|byte| {
            matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        })
        .any(|byte| wanted.contains(byte))
}

/// The forms that are compared in `mode`: all that the interpreter and the host have, but for the excluded.
pub fn compared(mode: Mode) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| {
        is_implemented(*code)
            && CpuModel::bits_needed(*code) & !MODEL.bits() == 0
            && encode::is_encodable(*code, mode)
            && !matches!(coverage(*code, mode), Coverage::Excluded(_))
    })
}

/// All forms of a model that can be encoded in `mode`.
pub fn forms_of(model: CpuModel, mode: Mode) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| encode::is_encodable(*code, mode) && is_of(model, *code))
}

fn is_of(model: CpuModel, code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| is_v2(feature) || model.has_feature(*feature))
}

/// The interpreter has the form, or the form is #UD by definition.
fn is_implemented(code: Code) -> bool {
    use Mnemonic as M;
    cpu::forms::lookup(code).is_some() || matches!(code.mnemonic(), M::Ud0 | M::Ud1 | M::Ud2)
}

/// Forms of any CPU model that the interpreter does not have.
pub fn missing() -> impl Iterator<Item = (Code, Mode)> {
    Mode::ALL.into_iter().flat_map(|mode| {
        forms_of(CpuModel::ALL, mode)
            .filter(move |code| !is_implemented(*code) && !is_amd_only(*code, mode))
            .map(move |code| (code, mode))
    })
}

fn is_v2(feature: &CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::X64
            | F::CMOV
            | F::CPUID
            | F::CX8
            | F::CMPXCHG16B
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::POPCNT
            | F::FXSR
            | F::XSAVE
            | F::CLFSH
            | F::PAUSE
            | F::MULTIBYTENOP
            | F::SYSCALL
            | F::SEP
            | F::MSR
            | F::TSC
            | F::RDTSCP
            | F::RDPMC
            | F::FSGSBASE
            | F::PREFETCHW
    )
}

/// True if the instruction makes several accesses, or one that a CPU may split, in an order that the
/// manual leaves open: which address a page fault names, and what was stored before it, is the
/// implementation's choice.
#[must_use]
pub fn has_several_accesses(instr: &Instruction) -> bool {
    use Mnemonic as M;
    instr.is_jmp_far_indirect()
        || instr.is_vsib()
        || is_masked(instr)
        || matches!(
            instr.mnemonic(),
            M::Iret
                | M::Iretd
                | M::Iretq
                | M::Retf
                | M::Call
                | M::Fxsave
                | M::Fxsave64
                | M::Fxrstor
                | M::Fxrstor64
                | M::Xsave
                | M::Xsave64
                | M::Xrstor
                | M::Xrstor64
                | M::Xsavec
                | M::Xsavec64
                | M::Fnsave
                | M::Frstor
                | M::Fnstenv
                | M::Fldenv
                | M::Fstp
                | M::Fld
                | M::Fbld
                | M::Fbstp
                | M::Maskmovq
                | M::Maskmovdqu
                | M::Vmaskmovdqu
                | M::Pusha
                | M::Pushad
                | M::Popa
                | M::Popad
                | M::Enter
                | M::Bound
                | M::Les
                | M::Lds
                | M::Lss
                | M::Lfs
                | M::Lgs
        )
}

/// True for the moves of elements that a mask chooses.
#[must_use]
pub fn is_masked(instr: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instr.mnemonic(), M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq)
}

/// Forms whose result is an approximation of the implementation's own: compared against an error
/// bound, never in sequences.
#[must_use]
pub fn is_approximate(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Rcpps
            | M::Rcpss
            | M::Rsqrtps
            | M::Rsqrtss
            | M::Vrcpps
            | M::Vrcpss
            | M::Vrsqrtps
            | M::Vrsqrtss
            | M::Fsin
            | M::Fcos
            | M::Fsincos
            | M::Fptan
            | M::Fpatan
            | M::F2xm1
            | M::Fyl2x
            | M::Fyl2xp1
    )
}

/// True if the form may stand in a random sequence: it goes on to the next instruction, and leaves
/// nothing undefined but flags.
#[must_use]
pub fn is_sequence_member(code: Code, mode: Mode) -> bool {
    use Mnemonic as M;
    code.flow_control() == iced_x86::FlowControl::Next
        && coverage(code, mode) == Coverage::Full
        && !is_approximate(code)
        // Its upper half differs between the vendors.
        && code != Code::Cmpxchg_rm32_r32
        && !matches!(
            code.mnemonic(),
            // Images of the x87 pointers, or wholesale state.
            M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Xsave | M::Xsave64
                | M::Xrstor | M::Xrstor64 | M::Xsavec | M::Xsavec64 | M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor
                // Flags by other means than arithmetic, or a stack pointer that goes astray.
                | M::Popf | M::Popfd | M::Popfq | M::Leave | M::Enter
                // Results that the manual leaves undefined for some operands.
                | M::Shld | M::Shrd | M::Bsf | M::Bsr
                | M::Wrfsbase | M::Wrgsbase
                // C1 differs between the vendors, and FNSTSW would store it.
                | M::Fcomi
                | M::Fcomip
                | M::Fucomi
                | M::Fucomip
                // MXCSR as memory has it, with AMD's bit 17.
                | M::Ldmxcsr
                | M::Vldmxcsr
        )
}

const RESULT_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Which flags are undefined after the instruction if `before` were undefined ahead of it. The
/// count of a shift or rotate is taken as unknown.
#[must_use]
pub fn undefined_after(instr: &Instruction, before: u32) -> u32 {
    let defined = instr.rflags_written() | instr.rflags_cleared() | instr.rflags_set();
    if is_repeated(instr) {
        // With a count of 0 every flag stays.
        return before;
    }
    if is_shift(instr) {
        // Likewise.
        return before
            | instr.rflags_undefined()
            | RflagsBits::OF
            | RflagsBits::AF
            | RflagsBits::CF;
    }
    before & !defined | instr.rflags_undefined() & RESULT_FLAGS
}

/// The count of a shift or rotate, masked, with CL as given.
#[must_use]
pub fn shift_count(instr: &Instruction, cl: u8) -> u32 {
    let last = instr.op_count() - 1;
    let count = match instr.op_kind(last) {
        OpKind::Register if instr.op_register(last) == Register::CL => cl,
        _ => instr.immediate8(),
    };
    u32::from(count) & if operand_bits(instr) == 64 { 63 } else { 31 }
}

fn operand_bits(instr: &Instruction) -> u32 {
    match instr.op0_kind() {
        OpKind::Register => instr.op0_register().size() as u32 * 8,
        _ => instr.memory_size().size() as u32 * 8,
    }
}

/// As [`undefined_after`] for one instruction whose count is known: CL as the case sets it, or the
/// immediate.
#[must_use]
pub fn undefined_after_single(instr: &Instruction, cl: u8) -> u32 {
    if !is_shift(instr) {
        return instr.rflags_undefined() & RESULT_FLAGS;
    }
    use Mnemonic as M;
    let bits = operand_bits(instr);
    let count = shift_count(instr, cl);
    if count == 0 {
        return 0;
    }
    let overflow = if count == 1 { 0 } else { RflagsBits::OF };
    match instr.mnemonic() {
        M::Rol | M::Ror | M::Rcl | M::Rcr => overflow,
        // SDM, SAL/SAR/SHL/SHR: AF undefined, CF too for SHL and SHR with a count of the size or more.
        M::Sar => overflow | RflagsBits::AF,
        M::Shld | M::Shrd if count > bits => RESULT_FLAGS,
        M::Shld | M::Shrd => overflow | RflagsBits::AF,
        _ => {
            let carry = if count >= bits { RflagsBits::CF } else { 0 };
            overflow | RflagsBits::AF | carry
        }
    }
}

/// True for a string instruction with a repeat prefix.
#[must_use]
pub fn is_repeated(instr: &Instruction) -> bool {
    instr.is_string_instruction() && (instr.has_rep_prefix() || instr.has_repne_prefix())
}

fn is_shift(instr: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instr.mnemonic(),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd
    )
}

/// iced's flag bits as bits of RFLAGS.
#[must_use]
pub fn rflags_bits(flags: u32) -> u64 {
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ]
    .iter()
    .filter(|(flag, _)| flags & flag != 0)
    .map(|(_, bit)| 1u64 << bit)
    .sum()
}
