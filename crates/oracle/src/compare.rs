//! What has to be equal after a case, and what may differ for a reason.
//!
//! Every exemption is a line here with its reason; `docs/oracle.md` lists them for people.

use std::fmt::Write as _;

use iced_x86::{
    Code, CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::encode::decode;
use crate::forms;
use crate::generate::{segment_base, stack_address};
use crate::state::{
    CS_64, Case, Event, Fx, Mode, Outcome, REGION_BYTES, REGIONS, Selectors, State, Subject,
};

/// Flags that are compared: those that a program can set, and RF in the image that the handler gets.
const FLAGS_COMPARED: u64 = 0x5_0fd5;

/// Names of the general registers in the order of [`State::gpr`].
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Bytes of memory that are not compared: `len` bytes at a linear address.
#[derive(Clone, Copy, Debug)]
struct Hole {
    at: u64,
    len: u64,
}

/// Compares what two subjects made of one case. Empty if all that is defined is equal; otherwise
/// one line per difference.
pub fn differences(
    case: &Case,
    native: (&Outcome, &dyn Subject),
    ours: (&Outcome, &dyn Subject),
) -> Vec<String> {
    let (host, cpu) = (native.0, ours.0);
    let mut found = Vec::new();
    if is_left_open(case, host, cpu) {
        return found;
    }
    let rules = Rules::of(case, host);
    if !same_event(&host.event, &cpu.event, &rules) {
        found.push(format!("event: host {}, ours {}", host.event, cpu.event));
    }
    compare_state(&host.state, &cpu.state, &rules, &mut found);
    for (region, start) in REGIONS.into_iter().enumerate() {
        let (host, cpu) = (native.1.memory(region), ours.1.memory(region));
        if host != cpu {
            compare_memory(start, host, cpu, &rules.holes, &mut found);
        }
    }
    found
}

/// True if the manuals leave open whether there is a fault at all.
fn is_left_open(case: &Case, host: &Outcome, ours: &Outcome) -> bool {
    // SDM vol. 1, 8.5.2: an unmasked denormal operand leaves TOP as it is; AMD's FLD pushes it first.
    const DENORMAL: u16 = 2;
    let is_denormal = host.state.fx.fsw & !host.state.fx.fcw & DENORMAL != 0;
    let loads = |instr: &Instruction| matches!(instr.code(), Code::Fld_m32fp | Code::Fld_m64fp);
    if is_denormal && executed(case, host).iter().any(loads) {
        return true;
    }
    // SDM SHA1MSG1 and its like (exceptions type 4): a misaligned operand is #GP; AMD's take it.
    let is_sha = |instr: &Instruction| instr.code().cpuid_features().contains(&CpuidFeature::SHA);
    if ours.event.vector == 13 && faulted(case, ours).is_some_and(|instr| is_sha(&instr)) {
        return true;
    }
    let Some(instr) = faulted(case, host) else { return false };
    // SDM MASKMOVDQU: faults of bytes that the mask leaves out.
    let is_masked = matches!(
        instr.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    );
    // Undefined bytes at the end of a page: whether the CPU reads on before it says #UD.
    const FETCH: u32 = 0x10;
    let is_fetch = |event: &Event| event.vector == 14 && event.error & FETCH != 0;
    let is_undefined = |event: &Event| event.vector == 6;
    let is_cut_off = instr.is_invalid()
        && (is_fetch(&host.event) && is_undefined(&ours.event)
            || is_undefined(&host.event) && is_fetch(&ours.event));
    // AMD's raise #GP for a non-canonical offset too, Intel's only for the sum with the base.
    let has_base = match instr.memory_segment() {
        Register::FS => case.state.fs_base != 0,
        Register::GS => case.state.gs_base != 0,
        _ => false,
    };
    let is_offset = has_base && host.event.vector == 13 && ours.event.vector == 14;
    // AMD's hold the whole operand against the segment's limit, the chosen elements or not; the SDM excepts
    // those that are not chosen from every fault.
    let is_beyond_limit = forms::is_masked(&instr)
        && case.mode != Mode::Long64
        && matches!(host.event.vector, 12 | 13);
    // A single step of a gather that faults after some elements: AMD's trap before they fault.
    let is_step_of_gather = instr.is_vsib() && host.event.vector == 1;
    is_masked && matches!(host.event.vector, 12..=14)
        || is_beyond_limit
        || is_step_of_gather
        || is_cut_off
        || is_offset && case.mode == Mode::Long64
}

fn same_event(host: &Event, ours: &Event, rules: &Rules) -> bool {
    // Linux reports a fault on one of its own addresses, and on the last page below them, as if the
    // page were present, whatever it is.
    const LINUX_USER_END: u64 = 0x7fff_ffff_f000;
    let ignored = u32::from(host.vector == 14 && host.cr2 >= LINUX_USER_END);
    if host.vector == ours.vector
        && host.error | ignored == ours.error | ignored
        && (host.cr2 == ours.cr2
            || rules.has_several_accesses && host.cr2.abs_diff(ours.cr2) < SAVE_AREA_BYTES_MAX)
    {
        return true;
    }
    // #TS, #NP, #SS, #GP, #PF: what segments and pages raise.
    let are_access_faults = [host, ours].iter().all(|event| matches!(event.vector, 10..=14));
    are_access_faults && (rules.has_several_accesses || rules.is_misaligned)
        || rules.wraps && [host, ours].iter().all(|event| matches!(event.vector, 10..=14 | 17))
}

/// The largest memory operand that the manual lets a CPU access piece by piece in any order.
const SAVE_AREA_BYTES_MAX: u64 = 832;

/// What may differ in one case.
#[derive(Default)]
struct Rules {
    flags_ignored: u64,
    fsw_ignored: u16,
    mxcsr_ignored: u32,
    holes: Vec<Hole>,
    /// ST and XMM registers hold an approximation.
    is_approximate: bool,
    /// The instruction that faulted has several accesses, in an order that the manual leaves open.
    has_several_accesses: bool,
    /// An operand of 16 bytes or more is misaligned, which is #GP beside whatever else is wrong
    /// with its address.
    is_misaligned: bool,
    /// An operand or the stack wraps at 4 GiB. SDM vol. 3, 5.3: whether that exceeds a limit of
    /// 4 GiB is the implementation's choice.
    wraps: bool,
    /// Bits of the general registers that are compared.
    gpr_mask: u64,
    /// A 16-bit double shift by more than 16: flags and result are undefined (SDM SHLD, SHRD).
    result_ignored: Option<Register>,
    /// Vector registers that are not compared, one bit each.
    vectors_ignored: u32,
    /// A general register whose upper half is not compared.
    upper_ignored: Option<usize>,
}

impl Rules {
    fn of(case: &Case, host: &Outcome) -> Rules {
        let mut rules = Rules::default();
        let executed = executed(case, host);
        let is_single = executed.len() <= 1
            && decode(case.mode, &case.code, case.state.rip).0.len() == case.code.len();
        let mut undefined = 0;
        for instr in &executed {
            undefined = if is_single {
                forms::undefined_after_single(instr, case.state.gpr[1] as u8)
            } else {
                forms::undefined_after(instr, undefined)
            };
            rules.add(case, instr);
        }
        rules.flags_ignored = forms::rflags_bits(undefined);
        rules.gpr_mask = u64::MAX;
        // SDM vol. 1, 3.4.1.1: leaving 64-bit mode makes the upper halves undefined.
        if case.mode == Mode::Long64 && host.state.sel.cs != CS_64 {
            rules.gpr_mask = 0xffff_ffff;
        }
        if let Some(instr) = faulted(case, host) {
            rules.add_fault(case, &host.state, &instr);
        }
        rules
    }

    /// The bits of a general register that hold an undefined result.
    fn result_bits(&self, number: usize) -> u64 {
        match self.result_ignored {
            Some(reg) if reg.full_register().number() == number => 0xffff,
            _ if self.upper_ignored == Some(number) => u64::MAX << 32,
            _ => 0,
        }
    }

    /// Rules for an instruction that did not complete; `state` is what it started from.
    fn add_fault(&mut self, case: &Case, state: &State, instr: &Instruction) {
        use Mnemonic as M;
        self.has_several_accesses = forms::has_several_accesses(instr);
        let size = instr.memory_size().size() as u64;
        self.is_misaligned = matches!(size, 16 | 32)
            && operand_address(case.mode, state, instr, |_| true).is_some_and(|at| at % size != 0);
        let wraps = |at: u64| (at as u32).wrapping_add(64) < 128;
        self.wraps = case.mode != Mode::Long64
            && (wraps(stack_address(case.mode, state))
                || operand_addresses(case.mode, state, instr, |_| true).into_iter().any(wraps)
                || instr.mnemonic() == M::Leave && wraps(state.gpr[5]));
        if self.has_several_accesses {
            // What was pushed before the fault lies below the stack pointer.
            const PUSHED_BYTES_MAX: u64 = 33 * 8;
            let at = stack_address(case.mode, state).wrapping_sub(PUSHED_BYTES_MAX);
            self.holes.push(Hole { at, len: PUSHED_BYTES_MAX });
            if let Some(at) = operand_address(case.mode, state, instr, is_written) {
                self.holes.push(Hole { at, len: instr.memory_size().size() as u64 });
            }
        }
        if instr.is_vsib() {
            // Which elements were loaded before the one that faulted; the mask tells.
            let registers = [instr.op0_register(), instr.op2_register()];
            self.vectors_ignored =
                registers.iter().fold(0, |bits, register| bits | 1 << register.number());
        }
        if matches!(instr.mnemonic(), M::Dpps | M::Dppd | M::Vdpps | M::Vdppd) {
            // Which steps go on after one that raised an unmasked exception is left open.
            self.mxcsr_ignored = 0x3f;
        }
        if matches!(instr.mnemonic(), M::Popa | M::Popad) {
            // What was popped before the fault.
            self.gpr_mask = 0;
        }
    }

    fn add(&mut self, case: &Case, instr: &Instruction) {
        use Mnemonic as M;
        let image = || operand_address(case.mode, &case.state, instr, is_written);
        match instr.mnemonic() {
            M::Fxsave | M::Fxsave64 | M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 => {
                if let Some(at) = image() {
                    // FOP, FIP, FDP; MXCSR_MASK; and the bytes that are left to software.
                    self.holes.push(Hole { at: at + 6, len: 18 });
                    self.holes.push(Hole { at: at + 28, len: 4 });
                }
            }
            M::Fnstenv | M::Fnsave => {
                if let Some(at) = image() {
                    let is_16 =
                        instr.memory_size().size() == 14 || instr.memory_size().size() == 94;
                    let (from, len) = if is_16 { (6, 8) } else { (12, 16) };
                    self.holes.push(Hole { at: at + from, len });
                }
            }
            M::Shld | M::Shrd
                if forms::shift_count(instr, case.state.gpr[1] as u8) > 16
                    && instr.op1_register().size() == 2 =>
            {
                if instr.op0_kind() == OpKind::Register {
                    self.result_ignored = Some(instr.op0_register());
                } else if let Some(at) = image() {
                    self.holes.push(Hole { at, len: 2 });
                }
            }
            // SDM FCOMI sets C1 to 0, AMD's leave it.
            M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => self.fsw_ignored |= 0x200,
            // SDM CMPXCHG writes the destination back when the comparison fails, which clears the
            // upper half of a 32-bit register; APM CMPXCHG leaves it alone.
            M::Cmpxchg if instr.op0_register().is_gpr32() => {
                self.upper_ignored = Some(instr.op0_register().full_register().number());
            }
            _ => {}
        }
        self.is_approximate |= forms::is_approximate(instr.code());
        if self.is_approximate {
            // C1, PE and (of a tiny result) UE follow from the last bit of the result; ES and B from
            // those that are unmasked.
            self.fsw_ignored |= 0x230;
            if case.state.fx.fcw & 0x30 != 0x30 {
                self.fsw_ignored |= 0x8080;
            }
        }
    }
}

fn is_written(access: OpAccess) -> bool {
    !matches!(access, OpAccess::Read | OpAccess::NoMemAccess)
}

/// The address of the first memory operand with an access that is asked for.
pub(crate) fn operand_address(
    mode: Mode,
    state: &State,
    instr: &Instruction,
    access: impl Fn(OpAccess) -> bool,
) -> Option<u64> {
    operand_addresses(mode, state, instr, access).first().copied()
}

/// The addresses of all memory operands with an access that is asked for.
fn operand_addresses(
    mode: Mode,
    state: &State,
    instr: &Instruction,
    access: impl Fn(OpAccess) -> bool,
) -> Vec<u64> {
    let value = |reg: Register, _, _| {
        if reg.is_vector_register() {
            None
        } else if reg.is_segment_register() {
            Some(segment_base(state, mode, reg))
        } else {
            let full = state.gpr.get(reg.full_register().number()).copied()?;
            Some(if reg.size() == 4 { full & 0xffff_ffff } else { full })
        }
    };
    let mut info = InstructionInfoFactory::new();
    let memory = info.info(instr).used_memory().iter().filter(|used| access(used.access()));
    memory
        .filter_map(|used| used.virtual_address(0, value))
        .map(|at| at & mode.gpr_mask())
        .collect()
}

/// The instruction that raised the exception, if it did not complete.
fn faulted(case: &Case, host: &Outcome) -> Option<Instruction> {
    let at = host.state.rip.wrapping_sub(case.state.rip);
    let code = case.code.get(usize::try_from(at).ok()?..)?;
    Some(decode(case.mode, code, host.state.rip).0)
}

/// The instructions that completed. A fault leaves RIP at the instruction that did not.
fn executed(case: &Case, host: &Outcome) -> Vec<Instruction> {
    let mut instrs = Vec::new();
    let mut at = 0;
    let is_fault = !matches!(host.event.vector, 1 | 3 | 4);
    while at < case.code.len() {
        let ip = case.state.rip + at as u64;
        let (instr, _) = decode(case.mode, &case.code[at..], ip);
        let is_here = is_fault && host.state.rip == ip;
        if instr.is_invalid() || is_here && !forms::is_repeated(&instr) {
            break;
        }
        instrs.push(instr);
        if is_here {
            break;
        }
        at += instr.len();
    }
    instrs
}

fn compare_state(host: &State, ours: &State, rules: &Rules, found: &mut Vec<String>) {
    for (i, name) in GPR_NAMES.iter().enumerate() {
        if (host.gpr[i] ^ ours.gpr[i]) & rules.gpr_mask & !rules.result_bits(i) != 0 {
            found.push(format!("{name}: host {:#x}, ours {:#x}", host.gpr[i], ours.gpr[i]));
        }
    }
    if host.rip != ours.rip {
        found.push(format!("rip: host {:#x}, ours {:#x}", host.rip, ours.rip));
    }
    let flags = (host.rflags ^ ours.rflags) & FLAGS_COMPARED & !rules.flags_ignored;
    if flags != 0 {
        found.push(format!(
            "rflags: host {}, ours {} (differ in {})",
            flag_names(host.rflags),
            flag_names(ours.rflags),
            flag_names(flags)
        ));
    }
    if without_null_rpl(host.sel) != without_null_rpl(ours.sel) {
        found.push(format!("selectors: host {:x?}, ours {:x?}", host.sel, ours.sel));
    }
    for (name, host, ours) in
        [("fs base", host.fs_base, ours.fs_base), ("gs base", host.gs_base, ours.gs_base)]
    {
        if host != ours {
            found.push(format!("{name}: host {host:#x}, ours {ours:#x}"));
        }
    }
    compare_fx(&host.fx, &ours.fx, rules, found);
    for i in 0..16 {
        compare_vector("upper half of ymm", i, &host.ymm_high[i], &ours.ymm_high[i], rules, found);
    }
}

fn compare_vector(
    name: &str,
    number: usize,
    host: &[u8; 16],
    ours: &[u8; 16],
    rules: &Rules,
    found: &mut Vec<String>,
) {
    let is_ignored = rules.vectors_ignored & 1 << number != 0;
    if host != ours && !is_ignored && !(rules.is_approximate && is_near_f32s(host, ours)) {
        found.push(format!("{name}{number}: host {}, ours {}", hex(host), hex(ours)));
    }
}

/// The host's handler runs after an IRET from its kernel, which sets null selectors to 0.
fn without_null_rpl(sel: Selectors) -> Selectors {
    let clear = |selector: u16| if selector < 4 { 0 } else { selector };
    Selectors { ds: clear(sel.ds), es: clear(sel.es), fs: clear(sel.fs), gs: clear(sel.gs), ..sel }
}

fn compare_fx(host: &Fx, ours: &Fx, rules: &Rules, found: &mut Vec<String>) {
    for (name, host, ours, ignored) in [
        ("fcw", host.fcw, ours.fcw, 0),
        ("fsw", host.fsw, ours.fsw, rules.fsw_ignored),
        ("ftw", u16::from(host.ftw), u16::from(ours.ftw), 0),
    ] {
        if (host ^ ours) & !ignored != 0 {
            found.push(format!("{name}: host {host:#06x}, ours {ours:#06x}"));
        }
    }
    if (host.mxcsr ^ ours.mxcsr) & !rules.mxcsr_ignored != 0 {
        found.push(format!("mxcsr: host {:#x}, ours {:#x}", host.mxcsr, ours.mxcsr));
    }
    for i in 0..8 {
        let (host, ours) = (&host.st[i], &ours.st[i]);
        if host != ours && !(rules.is_approximate && is_near_f80(host, ours)) {
            found.push(format!("st({i}): host {}, ours {}", hex(&host[..10]), hex(&ours[..10])));
        }
    }
    for i in 0..16 {
        compare_vector("xmm", i, &host.xmm[i], &ours.xmm[i], rules, found);
    }
}

/// True if both are within the bound of SDM "x87 FPU Transcendental Instruction Accuracy" of the
/// true value: 1 unit in the last place each, so 2 from each other.
fn is_near_f80(host: &[u8; 16], ours: &[u8; 16]) -> bool {
    let parts = |bytes: &[u8; 16]| {
        let significand = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let exponent = u16::from_le_bytes([bytes[8], bytes[9]]);
        (exponent >> 15, i128::from(exponent & 0x7fff) << 63 | i128::from(significand << 1 >> 1))
    };
    let ((host_sign, host), (our_sign, ours)) = (parts(host), parts(ours));
    host_sign == our_sign && (host - ours).abs() <= 2
}

/// True if each lane is equal, or both lie within the bound of SDM RCPPS and RSQRTPS: a relative
/// error of 1.5 * 2^-12 each.
fn is_near_f32s(host: &[u8; 16], ours: &[u8; 16]) -> bool {
    host.chunks_exact(4).zip(ours.chunks_exact(4)).all(|(host, ours)| {
        let [host, ours] = [host, ours]
            .map(|lane| f64::from(f32::from_le_bytes([lane[0], lane[1], lane[2], lane[3]])));
        // SDM RCPPS: results about as small as the smallest normal number may be flushed to 0.
        let is_tiny = |value: f64| value.abs() <= f64::from(f32::MIN_POSITIVE) * 1.001;
        host.to_bits() == ours.to_bits()
            || is_tiny(host) && is_tiny(ours)
            || (host - ours).abs() <= host.abs().max(ours.abs()) * 3.1 / 4096.0
    })
}

fn compare_memory(
    start: u64,
    host: &[u8; REGION_BYTES],
    ours: &[u8; REGION_BYTES],
    holes: &[Hole],
    found: &mut Vec<String>,
) {
    let differs = |at: &usize| {
        let address = start + *at as u64;
        host[*at] != ours[*at] && !holes.iter().any(|hole| address.wrapping_sub(hole.at) < hole.len)
    };
    let Some(first) = (0..REGION_BYTES).find(differs) else { return };
    let last = (0..REGION_BYTES).rev().find(differs).unwrap_or(first);
    let end = (last + 1).min(first + 32);
    found.push(format!(
        "memory at {:#x}, {} bytes: host {}, ours {}",
        start + first as u64,
        last + 1 - first,
        hex(&host[first..end]),
        hex(&ours[first..end])
    ));
}

fn flag_names(flags: u64) -> String {
    const NAMES: [(u64, &str); 12] = [
        (1 << 0, "CF"),
        (1 << 2, "PF"),
        (1 << 4, "AF"),
        (1 << 6, "ZF"),
        (1 << 7, "SF"),
        (1 << 8, "TF"),
        (1 << 9, "IF"),
        (1 << 10, "DF"),
        (1 << 11, "OF"),
        (1 << 14, "NT"),
        (1 << 16, "RF"),
        (1 << 18, "AC"),
    ];
    let set: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "none".to_owned() } else { set.join("+") }
}

/// Bytes as one number, most significant first.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().rev() {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

/// The case for a person: code, disassembly, registers and memory operands before.
#[must_use]
pub fn describe(case: &Case) -> String {
    let mut text = String::new();
    let mut at = 0;
    let mut formatter = iced_x86::FastFormatter::new();
    while at < case.code.len() {
        let ip = case.state.rip + at as u64;
        let (instr, _) = decode(case.mode, &case.code[at..], ip);
        let len = instr.len().max(1).min(case.code.len() - at);
        let bytes: Vec<String> =
            case.code[at..at + len].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut disassembly = String::new();
        formatter.format(&instr, &mut disassembly);
        let _ = writeln!(
            text,
            "  {ip:#x}: {:<32} {disassembly}  [{:?}]",
            bytes.join(" "),
            instr.code()
        );
        at += len;
        describe_memory(case, &instr, &mut text);
    }
    let state = &case.state;
    for (row, names) in GPR_NAMES.chunks(4).enumerate() {
        let regs: Vec<String> = names
            .iter()
            .zip(&state.gpr[row * 4..])
            .map(|(name, value)| format!("{name}={value:016x}"))
            .collect();
        let _ = writeln!(text, "  {}", regs.join(" "));
    }
    let _ = writeln!(
        text,
        "  rip={:x} flags={} cs={:x} ss={:x} ds={:x} es={:x} fs={:x}:{:x} gs={:x}:{:x}",
        state.rip,
        flag_names(state.rflags),
        state.sel.cs,
        state.sel.ss,
        state.sel.ds,
        state.sel.es,
        state.sel.fs,
        state.fs_base,
        state.sel.gs,
        state.gs_base
    );
    let fx = &state.fx;
    let _ = writeln!(
        text,
        "  fcw={:04x} fsw={:04x} ftw={:02x} mxcsr={:x}",
        fx.fcw, fx.fsw, fx.ftw, fx.mxcsr
    );
    for (i, st) in fx.st.iter().enumerate() {
        let _ = write!(text, "  st{i}={}{}", hex(&st[..10]), if i % 4 == 3 { "\n" } else { "" });
    }
    for (i, xmm) in fx.xmm.iter().enumerate() {
        let _ = write!(text, "  xmm{i}={}{}", hex(xmm), if i % 3 == 2 { "\n" } else { "" });
    }
    for (i, high) in state.ymm_high.iter().enumerate() {
        let end = if i % 3 == 2 { "\n" } else { "" };
        let _ = write!(text, "  ymm{i}.high={}{end}", hex(high));
    }
    text.push('\n');
    for (at, bytes) in &case.patches {
        let _ = writeln!(text, "  memory {at:#x} = {}", hex(bytes));
    }
    text
}

fn describe_memory(case: &Case, instr: &Instruction, text: &mut String) {
    let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    let address =
        if has_memory { operand_address(case.mode, &case.state, instr, |_| true) } else { None };
    if let Some(at) = address {
        let _ = writeln!(text, "    memory operand at {at:#x} if the registers are as below");
    }
}
