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

/// Runs one instruction on an operand with these flags set before; gives its result and flags.
macro_rules! try_one {
    ($ins:literal, $value:expr, $flags:expr) => {{
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
    let (left, after_left) = try_one!("shl {value}, 5", value, flags);
    let left_of = (left ^ value << 4) >> 63;
    let (right, after_right) = try_one!("shr {value}, 5", value, flags);
    let right_of = (right ^ right << 1) >> 63;
    let (_, after_arithmetic) = try_one!("sar {value}, 5", value, flags);
    let (rolled, after_rol) = try_one!("rol {value}, 5", value, flags);
    let rol_of = rolled >> 63 ^ rolled & 1;
    let (rolled_right, after_ror) = try_one!("ror {value}, 5", value, flags);
    let ror_of = (rolled_right ^ rolled_right << 1) >> 63;
    let bits = [
        try_one!("bt {value}, 7", value, flags).1,
        try_one!("bts {value}, 7", value, flags).1,
        try_one!("btr {value}, 7", value, flags).1,
        try_one!("btc {value}, 7", value, flags).1,
    ];
    let of = |flags: u64| u64::from(flags & OF != 0);
    logic.iter().all(|after| after & AF == 0)
        && of(after_left) == left_of
        && of(after_right) == right_of
        && of(after_arithmetic) == 0
        && of(after_rol) == rol_of
        && of(after_ror) == ror_of
        && [after_rol, after_ror].iter().all(|after| (after ^ before) & (PF | AF | ZF | SF) == 0)
        && bits.iter().all(|after| (after ^ before) & !CF == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_is_one_that_the_translator_can_use() {
        assert!(super::host_agrees());
    }
}
