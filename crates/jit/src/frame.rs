//! What translated code and Rust share: the context that is passed in, the stack frame that holds what
//! has no register, and the stubs at the start of the cache.
//!
//! While translated code runs, RSP points to the frame. Guest registers are in host registers
//! ([`home`]) but for five that programs use least. AH and AL hold the guest's arithmetic
//! flags as LAHF and SETO leave them; R15 the steps left of the budget; R10 and R11 are scratch.

use cpu::{Rights, SecondLevel};

use crate::avx;
use crate::emit::{Alu, Emitter, RegMem, cc, reg};
use crate::hints;
use crate::jumps::Ways;
use crate::memory::{TLB_DISTANCE, TLB_HOST, TLB_WRITE, tlb_tag};
use crate::scan::Access;
use crate::sides::{self, SideState, SideStubs};
use crate::translator::SITE_TO_ZERO;
use crate::x87::{self, X87Context};

/// Scratch: an address, then what it points to.
pub(crate) const S: u8 = reg::R10;
/// Scratch.
pub(crate) const T: u8 = reg::R11;
/// Steps left of the budget.
pub(crate) const BUDGET: u8 = reg::R15;

/// Where a guest register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Linear address of the pinned page, and the distance from there to its host address.
    pub(crate) const PIN_PAGE: i32 = 56;
    pub(crate) const PIN_DELTA: i32 = 64;
    /// The mapping and the page of the running code, in one word: `Translator::key_of`.
    pub(crate) const KEY: i32 = 72;
    /// The place of the last call in [`crate::returns::Returns`].
    pub(crate) const RETURNS: i32 = 80;
    /// The running view's part of [`crate::hints::Hints`].
    pub(crate) const HINTS: i32 = 88;
    /// The host addresses of groups of accesses.
    pub(crate) const GROUPS: i32 = 96;
    /// The cells of a loop, three words each: a page's linear address, its host address, and the distance between them.
    pub(crate) const CELLS: i32 = GROUPS + 8 * crate::plan::GROUPS as i32;
    /// Goes up to 0 with the accesses that a cell did not serve since the loop was entered.
    pub(crate) const MISSES: i32 = CELLS + 24 * crate::memory::CELLS_MAX as i32;
    /// The budget when the loop was entered.
    pub(crate) const ENTERED: i32 = MISSES + 8;
    pub(crate) const FS: i32 = ENTERED + 8;
    pub(crate) const GS: i32 = FS + 8;
    /// `cpu::SecondLevel`: its entries, what its keys have in the upper and in the lower half, and the host's RAM.
    pub(crate) const SECOND: i32 = GS + 8;
    pub(crate) const KEYS: i32 = SECOND + 8;
    pub(crate) const HOST_BASE: i32 = KEYS + 16;
    /// The table of jumps that holds here.
    pub(crate) const JUMPS: i32 = HOST_BASE + 8;
    /// Address of the XMM registers in the CPU.
    pub(crate) const XMM: i32 = JUMPS + 8;
    /// Likewise of the upper halves of the YMM registers; and 1 if they are in the host's, else 0.
    pub(crate) const YMM: i32 = XMM + 8;
    pub(crate) const YMM_HELD: i32 = YMM + 8;
    /// RFLAGS but for the arithmetic flags. The context has it, too, as far as AC goes.
    pub(crate) const RFLAGS: i32 = YMM_HELD + 8;
    /// What the running code may do: [`crate::sides::may`].
    pub(crate) const MAY: i32 = RFLAGS + 8;
    /// 1 if no interrupt waits, else 0.
    pub(crate) const NONE_WAITS: i32 = MAY + 8;
    /// `IA32_KERNEL_GS_BASE`.
    pub(crate) const KERNEL_GS: i32 = NONE_WAITS + 8;
    /// Two registers while REP runs.
    pub(crate) const REPEATED: i32 = KERNEL_GS + 8;
    /// 1 if the host's x87 is the guest's; then also where its last instruction was, as a linear address and a place
    /// from there, and the offset of the last operand.
    pub(crate) const X87_HELD: i32 = REPEATED + 16;
    pub(crate) const X87_PAGE: i32 = X87_HELD + 8;
    pub(crate) const X87_AT: i32 = X87_PAGE + 8;
    pub(crate) const X87_OPERAND: i32 = X87_AT + 8;
    /// The [`super::Context`].
    pub(crate) const SHARED: i32 = X87_OPERAND + 8;
    /// The exit taken.
    pub(crate) const SITE: i32 = SHARED + 8;
    /// An indirect branch's target.
    pub(crate) const TARGET: i32 = SITE + 8;
    /// The host's MXCSR.
    pub(crate) const MXCSR: i32 = TARGET + 8;
    pub(crate) const BYTES: i32 = (MXCSR + 8) / 16 * 16 + 8;
    // With six registers and the return address above it, the frame leaves the stack aligned for calls.
    const _: () = assert!(BYTES % 16 == 8, "the slow path is called with an aligned stack");
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
    pub(crate) key: u64,
    pub(crate) ways: Ways,
    pub(crate) hints: u64,
    pub(crate) fs: u64,
    pub(crate) gs: u64,
    pub(crate) xmm: u64,
    pub(crate) ymm: u64,
    pub(crate) rflags: u64,
    pub(crate) may: u64,
    pub(crate) none_waits: u64,
    pub(crate) kernel_gs: u64,
    pub(crate) site: u64,
    pub(crate) target: u64,
    pub(crate) mxcsr: u64,
    pub(crate) pin_page: u64,
    pub(crate) pin_delta: u64,
    pub(crate) second: u64,
    pub(crate) high_keys: u64,
    pub(crate) low_keys: u64,
    pub(crate) host_base: u64,
    /// By number.
    pub(crate) selectors: [u64; 6],
    pub(crate) tsc_aux: u64,
    /// Steps that [`cpu::Engine::run`] was given.
    pub(crate) whole_budget: u64,
    /// The budget with which the last loop was entered.
    pub(crate) entered: u64,
    pub(crate) x87: X87Context,
    /// CR0, CR2, CR3 and CR4.
    pub(crate) control: [u64; 4],
    /// What `may` is at first, and what it follows from.
    pub(crate) may_by_rights: u64,
    pub(crate) rights: Option<Rights>,
    /// Both sides of a system call, the program's first.
    pub(crate) sides: [SideState; 2],
    /// The side to which the last system call has led, plus 1, where the CPU has not followed yet.
    pub(crate) side: u64,
    /// Where SYSCALL leads, and what of RFLAGS it keeps.
    pub(crate) call_target: u64,
    pub(crate) kept_flags: u64,
    /// The pin that CLAC brings back: page and distance.
    pub(crate) pin_before_ac: [u64; 2],
    /// What was loaded from two pages.
    pub(crate) across: [u8; 64],
    /// For the slow path: the CPU and its environment, while translated code runs.
    pub(crate) cpu: *mut (),
    pub(crate) env: *mut (),
    pub(crate) slow_calls: u64,
}

impl Context {
    pub(crate) fn new() -> Context {
        Context {
            gpr: [0; 16],
            flags: 0,
            budget: 0,
            page: 0,
            tlb: 0,
            key: 0,
            ways: Ways::NONE,
            hints: 0,
            fs: 0,
            gs: 0,
            xmm: 0,
            ymm: 0,
            rflags: 0,
            may: 0,
            none_waits: 0,
            kernel_gs: 0,
            site: 0,
            target: 0,
            mxcsr: 0,
            pin_page: 0,
            pin_delta: 0,
            second: 0,
            high_keys: 0,
            low_keys: 0,
            host_base: 0,
            selectors: [0; 6],
            tsc_aux: 0,
            whole_budget: 0,
            entered: 0,
            x87: X87Context::new(),
            control: [0; 4],
            may_by_rights: 0,
            rights: None,
            sides: [SideState::NONE; 2],
            side: 0,
            call_target: 0,
            kept_flags: 0,
            pin_before_ac: [0; 2],
            across: [0; 64],
            cpu: std::ptr::null_mut(),
            env: std::ptr::null_mut(),
            slow_calls: 0,
        }
    }
}

/// Where a field of the context is.
macro_rules! at {
    ($($field:ident).+) => {
        std::mem::offset_of!(crate::frame::Context, $($field).+) as i32
    };
}
pub(crate) use at;

/// What the frame gets from the context.
const COPIED: [(i32, i32); 20] = [
    (slot::PAGE, at!(page)),
    (slot::TLB, at!(tlb)),
    (slot::JUMPS, at!(ways.jumps)),
    (slot::KEY, at!(key)),
    (slot::RETURNS, at!(ways.last_call)),
    (slot::HINTS, at!(hints)),
    (slot::FS, at!(fs)),
    (slot::GS, at!(gs)),
    (slot::XMM, at!(xmm)),
    (slot::YMM, at!(ymm)),
    (slot::RFLAGS, at!(rflags)),
    (slot::MAY, at!(may)),
    (slot::NONE_WAITS, at!(none_waits)),
    (slot::KERNEL_GS, at!(kernel_gs)),
    (slot::PIN_PAGE, at!(pin_page)),
    (slot::PIN_DELTA, at!(pin_delta)),
    (slot::SECOND, at!(second)),
    (slot::KEYS, at!(high_keys)),
    (slot::KEYS + 8, at!(low_keys)),
    (slot::HOST_BASE, at!(host_base)),
];

/// What the context gets from the frame.
const LEFT: [(i32, i32); 13] = [
    (slot::MAY, at!(may)),
    (slot::FS, at!(fs)),
    (slot::GS, at!(gs)),
    (slot::KERNEL_GS, at!(kernel_gs)),
    (slot::ENTERED, at!(entered)),
    (slot::KEY, at!(key)),
    (slot::RETURNS, at!(ways.last_call)),
    (slot::PAGE, at!(page)),
    (slot::RFLAGS, at!(rflags)),
    (slot::SITE, at!(site)),
    (slot::TARGET, at!(target)),
    (slot::PIN_PAGE, at!(pin_page)),
    (slot::PIN_DELTA, at!(pin_delta)),
];

/// Sizes of accesses that have a stub of their own: 1 to 32 bytes.
const SLOW_SIZES: usize = 6;

/// Addresses of the stubs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stubs {
    /// `extern "sysv64" fn(*mut Context, code)`.
    pub(crate) enter: u64,
    /// Leaves translated code, by the site in S.
    pub(crate) exit: u64,
    /// Called with a linear address in S and a size, with bit 16 set for a store, in T; comes back
    /// with a host address in S, or 0, which it is then compared with. Bits 24 and up of T may have the number of a vector
    /// register and 1: then it may come back with [`crate::translator::SLOW_STORED`].
    pub(crate) slow: u64,
    /// The same as `slow`, with 0 for what the TLB does not know on its second level, either.
    pub(crate) known: u64,
    /// The same after a look-up, with what that leaves in S and T: for loads and for stores, by the logarithm of the size.
    pub(crate) slow_after: [[u64; SLOW_SIZES]; 2],
    /// Called with the steps left of the budget in S; comes back with the time stamp counter in S. T is lost.
    pub(crate) time_stamp: u64,
    /// Jumped to with a linear address in T where the entry of the jump table that S points to does not serve: goes on there
    /// if the other one of its pair does, or leaves.
    pub(crate) far_by_other: u64,
    /// Leaves, with a linear address in T to go on at.
    pub(crate) leave_far: u64,
    /// Leaves to go on at linear address 0, from any page.
    pub(crate) to_zero: u64,
    /// Called with a linear address in S. Pins its page if the TLB says that it may be stored to; then T is the place
    /// on it, and otherwise beyond any page. Clobbers S and RFLAGS.
    pub(crate) repin: u64,
    /// Called with a linear address in S and a cell's place in the frame in T, for a load and for a store. If the TLB
    /// knows the page, the cell does then, T is 1 and S the place on the page; otherwise T is 0. Clobbers RFLAGS.
    pub(crate) fill_cell: [u64; 2],
    /// Where a hint does not serve, for loads and for stores: called with a linear address in S and [`crate::hints::word`] in T. With
    /// CF set, the hint serves then, and S is the host address. Otherwise as after `slow`. Clobbers T and RFLAGS.
    pub(crate) hint: [u64; 2],
    /// The same, but without CF the linear address is still in S.
    pub(crate) hint_only: [u64; 2],
    /// Called to have the guest's x87 in the host's; comes back with S = 0 if the interpreter has to do what the guest
    /// does with it. Clobbers S, T and RFLAGS.
    pub(crate) hold_x87: u64,
    /// Called to have the upper halves of the guest's YMM registers in the host's. Clobbers S.
    pub(crate) hold_ymm: u64,
    pub(crate) sides: SideStubs,
}

const SAVED: [u8; 6] = [reg::RBX, reg::RBP, reg::R12, reg::R13, reg::R14, reg::R15];
/// Registers that the slow path's callee may clobber and that hold something.
const CALLER_SAVED: [u8; 7] = [reg::RAX, reg::RCX, reg::RDX, reg::RSI, reg::RDI, reg::R8, reg::R9];

impl Emitter {
    /// Leaves by a site, with [`Stubs::exit`].
    pub(crate) fn leave(&mut self, site: u32, exit: u64) {
        self.mov_imm32(S, site);
        self.jmp_to(exit);
    }

    /// Goes on in a stub that may leave by a site.
    pub(crate) fn go_on_in(&mut self, stub: u64, site: u32) {
        self.store_imm64(reg::RSP, slot::SITE, site as i32);
        self.jmp_to(stub);
    }
}

/// Moves all XMM registers to (`store`) or from where `base` points.
fn move_xmm(e: &mut Emitter, base: u8, store: bool) {
    for number in 0..16u8 {
        e.xmm_move(number, base, i32::from(number) * 16, store);
    }
}

/// What translated code calls: `extern "sysv64"` functions with the context, S and T as arguments, and S as result.
pub(crate) struct Callees {
    pub(crate) slow: u64,
    pub(crate) time_stamp: u64,
    pub(crate) fill_x87: u64,
}

pub(crate) fn emit_stubs(e: &mut Emitter, callees: &Callees, nowhere: u64) -> Stubs {
    let enter = e.here();
    for r in SAVED {
        e.push(r);
    }
    e.alu_imm(Alu::Sub, reg::RSP, slot::BYTES);
    e.store(reg::RSP, slot::SHARED, reg::RDI);
    for (to, from) in COPIED {
        e.load(reg::RAX, reg::RDI, from);
        e.store(reg::RSP, to, reg::RAX);
    }
    e.store_imm64(reg::RSP, slot::X87_HELD, 0);
    e.store_imm64(reg::RSP, slot::YMM_HELD, 0);
    e.stmxcsr(reg::RSP, slot::MXCSR);
    e.ldmxcsr(reg::RDI, at!(mxcsr));
    e.load(S, reg::RSP, slot::XMM);
    move_xmm(e, S, false);
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
    e.load(reg::RAX, T, at!(flags));
    e.load(BUDGET, T, at!(budget));
    e.jmp_reg(S);

    let to_zero = e.here();
    e.mov_imm32(T, 0);
    e.store_imm64(reg::RSP, slot::SITE, SITE_TO_ZERO as i32);
    let with_site = e.jmp();

    let far_by_other = e.here();
    e.jump_by_other_entry().fill(e);
    e.fill(with_site);
    let leave_far = e.here();
    e.store(reg::RSP, slot::TARGET, T);
    let is_noted = e.jmp();

    let exit = e.here();
    e.store(reg::RSP, slot::SITE, S);
    e.fill(is_noted);
    e.load(T, reg::RSP, slot::SHARED);
    e.store(T, at!(flags), reg::RAX);
    e.store(T, at!(budget), BUDGET);
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
    for (from, to) in LEFT {
        e.load(S, reg::RSP, from);
        e.store(T, to, S);
    }
    x87::emit_release(e);
    avx::emit_release(e, 0, S);
    e.load(S, reg::RSP, slot::XMM);
    move_xmm(e, S, true);
    e.stmxcsr(T, at!(mxcsr));
    e.ldmxcsr(reg::RSP, slot::MXCSR);
    e.alu_imm(Alu::Add, reg::RSP, slot::BYTES);
    for r in SAVED.into_iter().rev() {
        e.pop(r);
    }
    e.ret();

    let slow = e.here();
    refill(e);
    call_out(e, callees.slow, 0);
    let known = e.here();
    refill(e);
    e.mov_imm32(S, 0);
    e.test(S, S);
    e.ret();
    let slow_after = [false, true].map(|write| {
        std::array::from_fn(|size| {
            let access = Access { bytes: 1 << size, write, aligned: false };
            let start = e.here();
            e.alu_mem(Alu::Add, S, T, tlb_tag(access));
            e.mov_imm32(T, slow_word(access));
            e.jmp_to(slow);
            start
        })
    });
    let time_stamp = call_out(e, callees.time_stamp, 0);

    let repin = e.here();
    e.tlb_entry(T, S, 8 + slot::TLB);
    e.alu_mem(Alu::Sub, S, T, TLB_WRITE);
    e.alu_imm(Alu::Cmp, S, 4095);
    let unknown = e.jcc(cc::A);
    e.push(reg::RAX);
    e.load(reg::RAX, T, TLB_WRITE);
    e.store(reg::RSP, 16 + slot::PIN_PAGE, reg::RAX);
    e.load(T, T, TLB_DISTANCE);
    e.store(reg::RSP, 16 + slot::PIN_DELTA, T);
    e.pop(reg::RAX);
    e.mov(T, S);
    e.ret();
    e.fill(unknown);
    e.mov_imm64(T, u64::MAX);
    e.ret();
    let fill_cell = [0, TLB_WRITE].map(|tag| fill_cell(e, tag));
    let hint = [false, true].map(|write| hints::emit_stub(e, write, nowhere, Some(slow)));
    let hint_only = [false, true].map(|write| hints::emit_stub(e, write, nowhere, None));
    let hold_x87 = x87::emit_hold(e, callees.fill_x87);
    let hold_ymm = avx::emit_hold(e);
    let sides = sides::emit_stubs(e, far_by_other);
    Stubs {
        enter,
        exit,
        slow,
        known,
        slow_after,
        time_stamp,
        far_by_other,
        leave_far,
        to_zero,
        repin,
        fill_cell,
        hint,
        hint_only,
        hold_x87,
        hold_ymm,
        sides,
    }
}

/// The beginning of the slow path: brings an entry back from the TLB's second level and returns, or goes on behind.
fn refill(e: &mut Emitter) {
    const USED: [u8; 3] = [reg::RAX, reg::RCX, reg::RDX];
    const BELOW: i32 = 32;
    for r in USED {
        e.push(r);
    }
    e.mov32(reg::RAX, S);
    e.alu_imm_sized(Alu::And, 4, reg::RAX, 0xfff);
    e.two_byte(4, 0xb7, reg::RDX, RegMem::Reg(T)); // the size, by MOVZX
    e.alu(Alu::Add, reg::RAX, reg::RDX);
    e.alu_imm(Alu::Cmp, reg::RAX, 4096);
    let crosses = e.jcc(cc::A);
    // -1 in the upper half of the address space, 0 in the lower one.
    e.mov(reg::RAX, S);
    e.shift(7, reg::RAX, 63);
    e.lea_index(reg::RCX, Some(reg::RSP), reg::RAX, 3, 0);
    e.load(reg::RCX, reg::RCX, BELOW + slot::KEYS + 8);
    e.mov(reg::RDX, S);
    e.alu_imm(Alu::And, reg::RDX, -4096);
    e.alu(Alu::Add, reg::RCX, reg::RDX);
    e.mov_imm64(reg::RAX, SecondLevel::HASH);
    e.two_byte(8, 0xaf, reg::RAX, RegMem::Reg(reg::RCX)); // IMUL
    e.shift(5, reg::RAX, 64 - SecondLevel::BITS as u8);
    e.shift(4, reg::RAX, 4);
    e.alu_mem(Alu::Add, reg::RAX, reg::RSP, BELOW + slot::SECOND);
    e.alu_mem(Alu::Cmp, reg::RCX, reg::RAX, 0);
    let unknown = e.jcc(cc::NE);
    e.load(reg::RAX, reg::RAX, 8);
    e.test_imm_sized(4, T, 1 << 16);
    let reads = e.jcc(cc::E);
    e.test_imm_sized(1, reg::RAX, 1);
    let may_not_store = e.jcc(cc::E);
    e.fill(reads);
    // RDX is the page; no page that is looked for here has the tag of its neighbour.
    e.tlb_entry(reg::RCX, S, BELOW + slot::TLB);
    e.store(reg::RCX, 0, reg::RDX);
    e.test_imm_sized(1, reg::RAX, 1);
    let may_store = e.jcc(cc::NE);
    e.alu_imm(Alu::Xor, reg::RDX, 1 << 12);
    e.fill(may_store);
    e.store(reg::RCX, TLB_WRITE, reg::RDX);
    e.alu_imm(Alu::And, reg::RAX, -4096);
    e.alu_mem(Alu::Add, reg::RAX, reg::RSP, BELOW + slot::HOST_BASE);
    e.store(reg::RCX, TLB_HOST, reg::RAX);
    e.mov(reg::RDX, S);
    e.alu_imm(Alu::And, reg::RDX, -4096);
    e.alu(Alu::Sub, reg::RAX, reg::RDX);
    e.store(reg::RCX, TLB_DISTANCE, reg::RAX);
    e.alu(Alu::Add, S, reg::RAX);
    e.test(S, S); // not 0
    for r in USED.into_iter().rev() {
        e.pop(r);
    }
    e.ret();
    [crosses, unknown, may_not_store].into_iter().for_each(|hole| e.fill(hole));
    for r in USED.into_iter().rev() {
        e.pop(r);
    }
}

fn fill_cell(e: &mut Emitter, tag: i32) -> u64 {
    let start = e.here();
    const BELOW: i32 = 24;
    e.push(reg::RAX);
    e.push(reg::RCX);
    e.tlb_entry(reg::RAX, S, BELOW + slot::TLB);
    e.mov(reg::RCX, S);
    e.alu_mem(Alu::Sub, reg::RCX, reg::RAX, tag);
    e.alu_imm(Alu::Cmp, reg::RCX, 4095);
    let unknown = e.jcc(cc::A);
    e.alu(Alu::Sub, S, reg::RCX); // the page
    e.lea_index(T, Some(reg::RSP), T, 0, BELOW);
    e.store(T, 0, S);
    e.load(reg::RAX, reg::RAX, TLB_DISTANCE);
    e.store(T, 16, reg::RAX);
    e.alu(Alu::Add, reg::RAX, S);
    e.store(T, 8, reg::RAX);
    e.mov(S, reg::RCX);
    e.mov_imm32(T, 1);
    let done = e.jmp();
    e.fill(unknown);
    e.mov_imm32(T, 0);
    e.fill(done);
    e.pop(reg::RCX);
    e.pop(reg::RAX);
    e.ret();
    start
}

/// A stub that calls a function with everything saved that is in registers. It is called with `pushed` bytes below the
/// frame, a multiple of 16.
pub(crate) fn call_out(e: &mut Emitter, function: u64, pushed: i32) -> u64 {
    let start = e.here();
    for r in CALLER_SAVED {
        e.push(r);
    }
    // The return address and seven registers lie there, too.
    let below = pushed + 64;
    e.load(reg::RAX, reg::RSP, below + slot::XMM);
    move_xmm(e, reg::RAX, true);
    avx::emit_release(e, below, reg::RAX);
    e.load(reg::RDI, reg::RSP, below + slot::SHARED);
    // What is called may use the x87 as it likes.
    x87::emit_set_aside(e, below, reg::RDI);
    e.mov(reg::RSI, S);
    e.mov(reg::RDX, T);
    e.mov_imm64(reg::RAX, function);
    e.call_reg(reg::RAX);
    e.mov(S, reg::RAX);
    x87::emit_take_back(e, below, reg::RAX);
    e.load(reg::RAX, reg::RSP, below + slot::XMM);
    move_xmm(e, reg::RAX, false);
    avx::emit_take_back(e, below, reg::RAX);
    for r in CALLER_SAVED.into_iter().rev() {
        e.pop(r);
    }
    e.test(S, S);
    e.ret();
    start
}

/// What the slow path wants to know of an access.
pub(crate) fn slow_word(access: Access) -> u32 {
    access.bytes | u32::from(access.write) << 16
}

impl Stubs {
    /// The slow path after a look-up for this access, if there is one of its own.
    pub(crate) fn slow_after(&self, access: Access) -> Option<u64> {
        let stubs = &self.slow_after[usize::from(access.write)];
        let size = access.bytes.is_power_of_two().then(|| access.bytes.trailing_zeros())?;
        stubs.get(size as usize).copied()
    }
}
