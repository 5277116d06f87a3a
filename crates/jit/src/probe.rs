//! What the manual leaves open and this host decides as `docs/undefined.md` does: only then may flags be
//! taken from the host as they are.

use std::arch::asm;

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

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_is_one_that_the_translator_can_use() {
        assert!(super::host_agrees());
    }
}
