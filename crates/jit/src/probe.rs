//! What the manual leaves open and this host decides as `docs/undefined.md` does: only then may flags be
//! taken from the host as they are.

use std::arch::asm;
use std::sync::LazyLock;

use cpu::{F80, X87State};

use crate::x87::Image;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

const OPERANDS: [u64; 8] = [
    0,
    1,
    0x8000_0000_0000_0000,
    0x4000_0000_0000_0001,
    u64::MAX,
    0xff,
    0x7fff_ffff,
    0xa5a5_5a5a_1234_5678,
];

/// Runs one instruction on an operand with these flags set before and a count in CL; gives its result and flags.
macro_rules! try_one {
    ($ins:expr, $value:expr, $flags:expr) => {
        try_one!($ins, $value, $flags, 7)
    };
    ($ins:expr, $value:expr, $flags:expr, $count:expr) => {{
        let mut value: u64 = $value;
        let mut flags: u64 = $flags;
        // SAFETY: changes two registers, the flags, and the stack below its pointer.
        unsafe {
            asm!(
                "push {flags}",
                "popfq",
                $ins,
                "pushfq",
                "pop {flags}",
                value = inout(reg) value,
                flags = inout(reg) flags,
                in("rcx") $count as u64,
            );
        }
        (value, flags & ALL)
    }};
}

/// True if the host's undefined flags are as the project defines them, where it does not correct them.
pub(crate) fn host_agrees() -> bool {
    OPERANDS.into_iter().all(|value| [2, 2 | ALL].into_iter().all(|flags| agrees(value, flags)))
}

fn agrees(value: u64, flags: u64) -> bool {
    let before = flags & ALL;
    let logic = [
        try_one!("and {value}, -1", value, flags).1,
        try_one!("or {value}, 0", value, flags).1,
        try_one!("xor {value}, 0", value, flags).1,
        try_one!("test {value}, {value}", value, flags).1,
    ];
    let bits = [
        try_one!("bt {value}, 7", value, flags).1,
        try_one!("bts {value}, 7", value, flags).1,
        try_one!("btr {value}, 7", value, flags).1,
        try_one!("btc {value}, 7", value, flags).1,
        try_one!("bt {value}, rcx", value, flags).1,
    ];
    logic.iter().all(|after| after & AF == 0)
        && bits.iter().all(|after| (after ^ before) & !CF == 0)
        && shifts_agree(value, flags)
        && rotates_agree(value, flags)
}

/// OF after shifts and rotates by constants, of all widths, or by CL. Each row: width, count.
macro_rules! overflows_agree {
    ($op:literal, constants, $value:expr, $flags:expr) => {
        overflows_agree!($op, $value, $flags,
            ":l" 8 "2" 2, ":l" 8 "7" 7, ":x" 16 "2" 2, ":x" 16 "15" 15,
            ":e" 32 "5" 5, ":e" 32 "31" 31, "" 64 "5" 5, "" 64 "63" 63)
    };
    ($op:literal, cl, $value:expr, $flags:expr) => {
        overflows_agree!($op, $value, $flags,
            ":e" 32 "cl" 1, ":e" 32 "cl" 5, ":e" 32 "cl" 31,
            "" 64 "cl" 1, "" 64 "cl" 5, "" 64 "cl" 63)
    };
    ($op:literal, $value:expr, $flags:expr, $($width:literal $bits:literal $by:literal $count:literal),+) => {
        [$({
            let ins = try_one!(
                concat!($op, " {value", $width, "}, ", $by), $value, $flags, $count
            );
            overflow_agrees($op, $bits, ins.0, ins.1)
        }),+].iter().all(|agrees| *agrees)
    };
}

fn shifts_agree(value: u64, flags: u64) -> bool {
    overflows_agree!("shl", constants, value, flags)
        && overflows_agree!("shr", constants, value, flags)
        && overflows_agree!("sar", constants, value, flags)
        && overflows_agree!("shl", cl, value, flags)
        && overflows_agree!("shr", cl, value, flags)
        && overflows_agree!("sar", cl, value, flags)
        && double_shifts_agree(value, flags)
}

/// OF after SHLD and SHRD by more than 1, with the operand's own bits shifted in.
fn double_shifts_agree(value: u64, flags: u64) -> bool {
    let left = [
        (32, try_one!("shld {value:e}, {value:e}, 5", value, flags)),
        (64, try_one!("shld {value}, {value}, 63", value, flags)),
        (64, try_one!("shld {value}, {value}, cl", value, flags)),
    ];
    let right = [
        (32, try_one!("shrd {value:e}, {value:e}, 5", value, flags)),
        (64, try_one!("shrd {value}, {value}, 63", value, flags)),
        (64, try_one!("shrd {value}, {value}, cl", value, flags)),
    ];
    left.iter().all(|(bits, ins)| overflow_agrees("shl", *bits, ins.0, ins.1))
        && right.iter().all(|(bits, ins)| overflow_agrees("shr", *bits, ins.0, ins.1))
}

fn rotates_agree(value: u64, flags: u64) -> bool {
    let kept =
        [try_one!("rol {value}, 5", value, flags).1, try_one!("ror {value}, 5", value, flags).1];
    kept.iter().all(|after| (after ^ flags) & (PF | AF | ZF | SF) == 0)
        && overflows_agree!("rol", constants, value, flags)
        && overflows_agree!("ror", constants, value, flags)
}

/// True if OF is as if the last bit were shifted on its own.
fn overflow_agrees(op: &str, bits: u32, result: u64, after: u64) -> bool {
    let bit = |number: u32| result >> number & 1;
    let top = bit(bits - 1);
    let ours = match op {
        "shl" => top ^ after & CF,
        "sar" => 0,
        "rol" => top ^ bit(0),
        _ => top ^ bit(bits - 2),
    };
    after & OF == ours << 11
}

/// The condition codes of the x87's status word.
const C0: u16 = 1 << 8;
const C1: u16 = 1 << 9;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
const CODES: u16 = C0 | C1 | C2 | C3;
/// An invalid operation, and one that is a stack fault.
const INVALID: u16 = 1;
const STACK_FAULT: u16 = 1 << 6 | INVALID;

/// Runs instructions on an x87; gives what they leave. All arithmetic flags are set before.
macro_rules! try_x87 {
    ($ins:expr, $before:expr) => {
        try_x87!($ins, $before, flags).0
    };
    ($ins:expr, $before:expr, flags) => {{
        let mut after: X87State = $before.clone();
        let mut image = Image::of(&after);
        let mut flags: u64 = ALL;
        // SAFETY: the image is as long as what is loaded and stored, the store leaves the x87 as it is between
        // functions, and the stack below its pointer may be written.
        unsafe {
            asm!(
                "frstor [{image}]",
                "push {flags}",
                "popfq",
                $ins,
                "pushfq",
                "pop {flags}",
                "fnsave [{image}]",
                image = in(reg) image.as_mut_ptr(),
                flags = inout(reg) flags,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
        image.put(&mut after);
        (after, flags & ALL)
    }};
}

/// What the host's x87 does as the project defines what the manual leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct X87Agreement {
    /// All but what follows.
    pub(crate) most: bool,
    /// FCMOVcc leaves C1 alone.
    pub(crate) moves: bool,
    /// FLD of an empty register onto a full stack is an underflow.
    pub(crate) copies: bool,
}

/// In what the host's x87 agrees with the project.
pub(crate) static HOST_X87: LazyLock<X87Agreement> = LazyLock::new(host_x87);

fn host_x87() -> X87Agreement {
    let value = |significand, sign_exponent| F80 { significand, sign_exponent };
    let (one, three) = (value(1 << 63, 0x3fff), value(3 << 62, 0x4000));
    let x87 = |st0, st1| {
        let mut x87 = X87State::reset();
        (x87.control, x87.status, x87.full) = (0x37f, CODES, 3);
        (x87.regs[0], x87.regs[1]) = (st0, st1);
        x87
    };
    let codes = |x87: &X87State| x87.status & CODES;
    let ones = x87(one, one);
    let clear_c1 = [
        try_x87!("fadd st(0), st(1)", ones),
        try_x87!("fdivp st(1), st(0)", ones),
        try_x87!("fsqrt", ones),
        try_x87!("frndint", ones),
        try_x87!("fld st(1)", ones),
        try_x87!("fld1", ones),
        try_x87!("fchs", ones),
        try_x87!("fabs", ones),
        try_x87!("fst st(1)", ones),
        try_x87!("fxch st(1)", ones),
        try_x87!("ffree st(1); fincstp; fdecstp", ones),
        try_x87!("fincstp", ones),
        try_x87!("fdecstp", ones),
        try_x87!("fincstp; fdecstp; fcomi st(0), st(1)", ones),
        try_x87!("fincstp; fdecstp; fucomip st(0), st(1)", ones),
    ];
    let nothing = try_x87!("fnop", ones);
    let moves = [try_x87!("fcmovb st(0), st(1)", ones), try_x87!("fcmovnb st(0), st(1)", ones)];
    let order = [
        (try_x87!("fcomi st(0), st(1)", ones, flags), ZF),
        (try_x87!("fucomi st(0), st(1)", x87(one, three), flags), CF),
        (try_x87!("fucomi st(0), st(1)", x87(three, one), flags), 0),
    ];
    let (nan, negative) = (value(3 << 62, 0x7fff), value(3 << 62, 0xffff));
    let nans = [
        try_x87!("fadd st(0), st(1)", x87(nan, negative)),
        try_x87!("fadd st(0), st(1)", x87(negative, nan)),
        try_x87!("fmul st(0), st(1)", x87(nan, negative)),
        try_x87!("fdiv st(0), st(1)", x87(negative, nan)),
    ];
    // Of precision control the value that is reserved.
    let reserved = X87State { control: 0x17f, ..x87(one, three) };
    let third = try_x87!("fdiv st(0), st(1)", reserved).regs[0];
    // ST(7) is full and ST(1) is empty.
    let both_faults = X87State { full: 0x81, ..ones.clone() };
    let fault = try_x87!("fld st(1)", both_faults).status & (STACK_FAULT | C1);
    let most = clear_c1.iter().all(|after| codes(after) == CODES & !C1)
        && codes(&nothing) == CODES
        && order.iter().all(|((_, flags), ours)| flags == ours)
        && nans.iter().all(|after| after.regs[0] == nan && after.status & INVALID == 0)
        && third == value(0xaaaa_aaaa_aaaa_aaab, 0x3ffd);
    X87Agreement {
        most,
        moves: moves.iter().all(|after| codes(after) == CODES),
        copies: fault == STACK_FAULT,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_is_one_that_the_translator_can_use() {
        assert!(super::host_agrees());
        let x87 = super::X87Agreement { most: true, moves: true, copies: true };
        assert_eq!(*super::HOST_X87, x87);
    }
}
