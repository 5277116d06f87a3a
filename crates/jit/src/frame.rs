//! What translated code and Rust share: the context that is passed in, the stack frame that holds what
//! has no register, and the stubs at the start of the cache.
//!
//! While translated code runs, RSP points to the frame. Guest registers are in host registers
//! ([`home`]) but for five that programs use least. AH and AL hold the guest's arithmetic
//! flags as LAHF and SETO leave them; R15 the steps left of the budget; R10 and R11 are scratch.

use crate::emit::{Alu, Emitter, cc, reg};

/// Scratch: an address, then what it points to.
pub(crate) const S: u8 = reg::R10;
/// Scratch.
pub(crate) const T: u8 = reg::R11;
/// Steps left of the budget.
pub(crate) const BUDGET: u8 = reg::R15;

/// Where a guest register lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Reg(u8),
    /// At this distance from RSP.
    Slot(i32),
}

/// The home of guest register `number`.
pub(crate) fn home(number: u8) -> Home {
    match number {
        0 => Home::Reg(reg::R8),
        4 => Home::Reg(reg::R9),
        1 | 2 | 3 | 5 | 6 | 7 | 12 | 13 | 14 => Home::Reg(number),
        8..=11 => Home::Slot(i32::from(number - 8) * 8),
        _ => Home::Slot(32),
    }
}

/// Offsets in the frame.
pub(crate) mod slot {
    /// Linear address of the running code's page.
    pub(crate) const PAGE: i32 = 40;
    pub(crate) const TLB: i32 = 48;
    pub(crate) const RAM: i32 = 56;
    pub(crate) const JUMPS: i32 = 64;
    /// `CodePlace::context`.
    pub(crate) const CONTEXT: i32 = 72;
    /// The [`super::Context`].
    pub(crate) const SHARED: i32 = 80;
    pub(crate) const FS: i32 = 88;
    pub(crate) const GS: i32 = 96;
    /// The exit taken.
    pub(crate) const SITE: i32 = 104;
    /// A call's target, and its page, while the return address is pushed.
    pub(crate) const TARGET: i32 = 112;
    pub(crate) const TARGET_PAGE: i32 = 120;
    pub(crate) const BYTES: i32 = 136;
}

/// In and out of translated code.
#[repr(C)]
pub(crate) struct Context {
    pub(crate) gpr: [u64; 16],
    /// LAHF's AH in bits 8 to 15, OF in bit 0.
    pub(crate) flags: u64,
    pub(crate) budget: u64,
    pub(crate) page: u64,
    pub(crate) tlb: u64,
    pub(crate) ram: u64,
    pub(crate) jumps: u64,
    pub(crate) context: u64,
    pub(crate) fs: u64,
    pub(crate) gs: u64,
    pub(crate) site: u64,
    /// For the slow path: the CPU and its environment, while translated code runs.
    pub(crate) cpu: *mut (),
    pub(crate) env: *mut (),
    pub(crate) slow_calls: u64,
}

const FLAGS: i32 = 128;
const BUDGET_AT: i32 = 136;
const PAGE: i32 = 144;
const SITE: i32 = 200;

const _: () = assert!(std::mem::offset_of!(Context, flags) == FLAGS as usize);
const _: () = assert!(std::mem::offset_of!(Context, budget) == BUDGET_AT as usize);
const _: () = assert!(std::mem::offset_of!(Context, page) == PAGE as usize);
const _: () = assert!(std::mem::offset_of!(Context, site) == SITE as usize);

/// Frame slots that are filled from the context, in order from [`PAGE`] on.
const COPIED: [i32; 7] =
    [slot::PAGE, slot::TLB, slot::RAM, slot::JUMPS, slot::CONTEXT, slot::FS, slot::GS];

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stubs {
    /// `extern "sysv64" fn(*mut Context, code)`.
    pub(crate) enter: u64,
    /// Leaves translated code.
    pub(crate) exit: u64,
    /// Called with a linear address in S and a `SlowAccess` in T; comes back with a host address in S or
    /// leaves by the site in the frame.
    pub(crate) slow: u64,
}

const SAVED: [u8; 6] = [reg::RBX, reg::RBP, reg::R12, reg::R13, reg::R14, reg::R15];
/// Registers that the slow path's callee may clobber and that hold something.
const CALLER_SAVED: [u8; 7] =
    [reg::RAX, reg::RCX, reg::RDX, reg::RSI, reg::RDI, reg::R8, reg::R9];

pub(crate) fn emit_stubs(e: &mut Emitter, slow: u64) -> Stubs {
    let enter = e.here();
    for r in SAVED {
        e.push(r);
    }
    e.alu_imm(Alu::Sub, reg::RSP, slot::BYTES);
    e.store(reg::RSP, slot::SHARED, reg::RDI);
    for (n, to) in COPIED.into_iter().enumerate() {
        e.load(reg::RAX, reg::RDI, PAGE + 8 * n as i32);
        e.store(reg::RSP, to, reg::RAX);
    }
    e.mov(S, reg::RSI);
    e.mov(T, reg::RDI);
    for number in 0..16 {
        let from = i32::from(number) * 8;
        match home(number) {
            Home::Reg(r) => e.load(r, T, from),
            Home::Slot(to) => {
                e.load(reg::RAX, T, from);
                e.store(reg::RSP, to, reg::RAX);
            }
        }
    }
    e.load(reg::RAX, T, FLAGS);
    e.load(BUDGET, T, BUDGET_AT);
    e.jmp_reg(S);

    let exit = e.here();
    e.load(T, reg::RSP, slot::SHARED);
    e.store(T, FLAGS, reg::RAX);
    e.store(T, BUDGET_AT, BUDGET);
    for number in 0..16 {
        let to = i32::from(number) * 8;
        match home(number) {
            Home::Reg(r) => e.store(T, to, r),
            Home::Slot(from) => {
                e.load(S, reg::RSP, from);
                e.store(T, to, S);
            }
        }
    }
    e.load(S, reg::RSP, slot::PAGE);
    e.store(T, PAGE, S);
    e.load(S, reg::RSP, slot::SITE);
    e.store(T, SITE, S);
    e.alu_imm(Alu::Add, reg::RSP, slot::BYTES);
    for r in SAVED.into_iter().rev() {
        e.pop(r);
    }
    e.raw(&[0xc3]);

    let slow_at = e.here();
    for r in CALLER_SAVED {
        e.push(r);
    }
    // The return address and seven registers lie above the frame.
    e.load(reg::RDI, reg::RSP, 64 + slot::SHARED);
    e.mov(reg::RSI, S);
    e.mov(reg::RDX, T);
    e.mov_imm64(reg::RAX, slow);
    e.call_reg(reg::RAX);
    e.mov(S, reg::RAX);
    for r in CALLER_SAVED.into_iter().rev() {
        e.pop(r);
    }
    e.test(S, S);
    let failed = e.jcc(cc::E);
    e.raw(&[0xc3]);
    e.fill(failed);
    e.alu_imm(Alu::Add, reg::RSP, 8);
    e.jmp_to(exit);
    Stubs { enter, exit, slow: slow_at }
}
