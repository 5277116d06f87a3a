//! AVX, AVX2, FMA, F16C and the VEX forms of AES and PCLMULQDQ. What the instructions compute is `sse`'s, by halves of
//! 128 bits, wherever a 256-bit instruction does to each half what the 128-bit one does.
//!
//! Every form writes its whole destination: what is above the result becomes 0. Memory operands need not be
//! aligned, but for the moves that say so.

mod float;
mod fma;
mod integer;
mod masked;
mod moves;

use mem::Pod;

use crate::forms::Form;
use crate::op::Op;
use crate::{Cpu, sse};

/// A YMM register: the low half, then the high half.
pub(crate) type Ymm = [u128; 2];

/// A vector of 128 or 256 bits.
pub(crate) trait Vector: Pod {
    /// Operand `n`, a register.
    fn get(cpu: &Cpu, op: &Op, n: usize) -> Self;

    /// Writes operand `n` and clears what is above.
    fn set(self, cpu: &mut Cpu, op: &Op, n: usize);

    /// Applies `f` to each half; it is told which one.
    fn map_halves(self, f: impl FnMut(u32, u128) -> u128) -> Self;

    /// Applies `f` to the halves of both; it is told which one.
    fn zip_halves(self, other: Self, f: impl FnMut(u32, u128, u128) -> u128) -> Self;
}

impl Vector for u128 {
    #[inline(always)]
    fn get(cpu: &Cpu, op: &Op, n: usize) -> u128 {
        sse::xmm(cpu, op, n)
    }

    #[inline(always)]
    fn set(self, cpu: &mut Cpu, op: &Op, n: usize) {
        [self, 0].set(cpu, op, n);
    }

    #[inline(always)]
    fn map_halves(self, mut f: impl FnMut(u32, u128) -> u128) -> u128 {
        f(0, self)
    }

    #[inline(always)]
    fn zip_halves(self, other: u128, mut f: impl FnMut(u32, u128, u128) -> u128) -> u128 {
        f(0, self, other)
    }
}

impl Vector for Ymm {
    #[inline(always)]
    fn get(cpu: &Cpu, op: &Op, n: usize) -> Ymm {
        let number = usize::from(op.r[n] & 15);
        [cpu.sse.xmm[number], cpu.sse.ymm_high[number]]
    }

    #[inline(always)]
    fn set(self, cpu: &mut Cpu, op: &Op, n: usize) {
        let number = usize::from(op.r[n] & 15);
        [cpu.sse.xmm[number], cpu.sse.ymm_high[number]] = self;
    }

    #[inline(always)]
    fn map_halves(self, mut f: impl FnMut(u32, u128) -> u128) -> Ymm {
        [f(0, self[0]), f(1, self[1])]
    }

    #[inline(always)]
    fn zip_halves(self, other: Ymm, mut f: impl FnMut(u32, u128, u128) -> u128) -> Ymm {
        [f(0, self[0], other[0]), f(1, self[1], other[1])]
    }
}

/// A form of AVX whose operand is in a register or in memory.
macro_rules! avx {
    ($code:ident, $reg:expr, $mem:expr) => {
        $crate::forms::Form::both(x86::iced::Code::$code, $reg, $mem)
            .gated($crate::forms::Gate::Avx)
    };
}

/// `vector = f(half, vector, vector/m)`, for one length.
macro_rules! three_operands {
    ($code:ident, $length:ty, $f:expr) => {
        $crate::avx::avx!(
            $code,
            |cpu, _, op| {
                let (a, b) = (<$length>::get(cpu, op, 1), <$length>::get(cpu, op, 2));
                a.zip_halves(b, |half, a, b| $f(half, op, a, b)).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = cpu.load::<$length>(env, op)?;
                let a = <$length>::get(cpu, op, 1);
                a.zip_halves(b, |half, a, b| $f(half, op, a, b)).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// `vector = f(half, vector/m)`, for one length.
macro_rules! two_operands {
    ($code:ident, $length:ty, $f:expr) => {
        $crate::avx::avx!(
            $code,
            |cpu, _, op| {
                <$length>::get(cpu, op, 1).map_halves(|half, b| $f(half, op, b)).set(cpu, op, 0);
                Ok(())
            },
            |cpu, env, op| {
                let b = cpu.load::<$length>(env, op)?;
                b.map_halves(|half, b| $f(half, op, b)).set(cpu, op, 0);
                Ok(())
            }
        )
    };
}

/// Both lengths of `vector = f(vector, vector/m)`.
macro_rules! binary {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            $crate::avx::three_operands!($xmm, u128, |_, _, a, b| $f(a, b)),
            $crate::avx::three_operands!($ymm, $crate::avx::Ymm, |_, _, a, b| $f(a, b)),
        ]
    };
}

/// Both lengths of `vector = f(vector/m)`.
macro_rules! unary {
    ($xmm:ident, $ymm:ident, $f:expr) => {
        [
            $crate::avx::two_operands!($xmm, u128, |_, _, b| $f(b)),
            $crate::avx::two_operands!($ymm, $crate::avx::Ymm, |_, _, b| $f(b)),
        ]
    };
}

/// The immediate as the instruction applies it to a half: each has `$bits` of it, or both have all (0).
#[inline(always)]
fn imm_of(op: &Op, half: u32, bits: u32) -> u8 {
    (op.imm as u8) >> (half * bits)
}

/// Both lengths of `vector = f(vector, vector/m, imm8)`; each half has `$bits` of the immediate.
macro_rules! with_imm {
    ($xmm:ident, $ymm:ident, $bits:literal, $f:expr) => {
        [
            $crate::avx::three_operands!($xmm, u128, |_, op: &Op, a, b| $f(a, b, op.imm as u8)),
            $crate::avx::three_operands!($ymm, $crate::avx::Ymm, |half, op: &Op, a, b| {
                $f(a, b, $crate::avx::imm_of(op, half, $bits))
            }),
        ]
    };
}

/// Both lengths of `vector = f(vector/m, imm8)`; each half has `$bits` of the immediate.
macro_rules! unary_imm {
    ($xmm:ident, $ymm:ident, $bits:literal, $f:expr) => {
        [
            $crate::avx::two_operands!($xmm, u128, |_, op: &Op, b| $f(b, op.imm as u8)),
            $crate::avx::two_operands!($ymm, $crate::avx::Ymm, |half, op: &Op, b| {
                $f(b, $crate::avx::imm_of(op, half, $bits))
            }),
        ]
    };
}

use {avx, binary, three_operands, two_operands, unary, unary_imm, with_imm};

/// Every form of this module.
pub(crate) const TABLES: &[&[Form]] = &[
    float::PAIRS.as_flattened(),
    float::FORMS,
    fma::PACKED.as_flattened(),
    fma::SCALAR,
    integer::PAIRS.as_flattened(),
    integer::FORMS,
    masked::FORMS,
    moves::FORMS,
];
