//! AVX, AVX2, FMA and F16C: the host's own, with the guest's YMM registers in the host's.
//!
//! Their lower halves are there as the XMM registers are. The upper halves are loaded by the first translation with such
//! an instruction ([`emit_hold`]) and stored again when translated code is left ([`emit_release`]), so whoever uses no
//! AVX pays nothing for them. In between they are in the CPU, where SSE leaves them alone.

use x86::iced::{EncodingKind, Instruction, Mnemonic};

use crate::emit::{Emitter, cc, reg};
use crate::frame::{S, slot};
use crate::host::both_have;
use crate::scan::{Kind, is_reachable};
use crate::translate::{Cold, Gen};

/// What of the mode AVX wants: CR0.TS clear, CR4.OSXSAVE and XCR0's components set.
const OFF: u32 = 1 << 4;
const ON: u32 = 1 << 12;

/// A VEX instruction with vectors that the host does as the manual defines. Those that are not depend on the host as their
/// SSE ones do, or access element by element.
pub(crate) fn kind_of(ins: &Instruction, meaning: u32) -> Option<Kind> {
    let is_there = ins.code().encoding() == EncodingKind::VEX
        && meaning & (OFF | ON) == ON
        && cpu::forms::lookup(ins.code()).is_some_and(|form| form.gate() == cpu::forms::Gate::Avx)
        && both_have(ins.code(), meaning)
        && is_reachable(ins);
    if !is_there {
        return None;
    }
    match ins.mnemonic() {
        Mnemonic::Vldmxcsr => Some(Kind::LoadMxcsr),
        Mnemonic::Vstmxcsr => Some(Kind::Copy),
        Mnemonic::Vrcpps
        | Mnemonic::Vrcpss
        | Mnemonic::Vrsqrtps
        | Mnemonic::Vrsqrtss
        | Mnemonic::Vdpps
        | Mnemonic::Vdppd
        | Mnemonic::Vhaddps
        | Mnemonic::Vhaddpd
        | Mnemonic::Vhsubps
        | Mnemonic::Vhsubpd
        | Mnemonic::Vpcmpestri
        | Mnemonic::Vpcmpestrm
        | Mnemonic::Vpcmpestri64
        | Mnemonic::Vpcmpestrm64
        | Mnemonic::Vmaskmovdqu
        | Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq => None,
        _ if ins.is_vsib() => None,
        _ => Some(Kind::Vector),
    }
}

/// True if the memory operand has to be aligned to its size: with VEX only where it says so.
pub(crate) fn wants_alignment(ins: &Instruction) -> bool {
    matches!(
        ins.mnemonic(),
        Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntdqa
    )
}

impl Gen<'_> {
    /// Has the upper halves in the host's registers, before the first instruction of a trace that needs them. The flags
    /// are at home.
    pub(crate) fn hold_ymm(&mut self) {
        self.e.test_byte(reg::RSP, slot::YMM_HELD, 1);
        let hole = self.e.jcc(cc::E);
        let back = self.e.here();
        self.cold.push(Cold::HoldYmm { hole, back });
    }
}

/// The stub [`crate::frame::Stubs::hold_ymm`].
pub(crate) fn emit_hold(e: &mut Emitter) -> u64 {
    // The return address lies below the frame.
    const BELOW: i32 = 8;
    let start = e.here();
    e.store_imm64(reg::RSP, BELOW + slot::YMM_HELD, 1);
    move_upper(e, BELOW, S, false);
    e.ret();
    start
}

/// Stores the upper halves, if they are in the host's registers, and clears them there: what runs next may be slow
/// with them. The frame lies `below` bytes above. Clobbers `scratch`.
pub(crate) fn emit_release(e: &mut Emitter, below: i32, scratch: u8) {
    e.test_byte(reg::RSP, below + slot::YMM_HELD, 1);
    let elsewhere = e.jcc(cc::E);
    move_upper(e, below, scratch, true);
    e.vzeroupper();
    e.fill(elsewhere);
}

/// Loads them again after [`emit_release`] for the time of a call.
pub(crate) fn emit_take_back(e: &mut Emitter, below: i32, scratch: u8) {
    e.test_byte(reg::RSP, below + slot::YMM_HELD, 1);
    let elsewhere = e.jcc(cc::E);
    move_upper(e, below, scratch, false);
    e.fill(elsewhere);
}

fn move_upper(e: &mut Emitter, below: i32, scratch: u8, store: bool) {
    e.load(scratch, reg::RSP, below + slot::YMM);
    for number in 0..16u8 {
        e.ymm_upper_move(number, scratch, i32::from(number) * 16, store);
    }
}
