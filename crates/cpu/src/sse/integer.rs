//! Packed integer operations of MMX to SSE4.2 as functions of whole registers.
//!
//! An MMX operand is the low half of a register whose upper half is zero; of a result only the low
//! half counts. Where lanes of different places meet (unpack, pack, horizontal sums, byte shuffles)
//! the MMX form has a function of its own, named `*_mmx`.

use super::lanes::Lane;

/// Operations that treat every lane alike: `name: lane, |a, b| expression;`.
macro_rules! lanewise {
    ($($name:ident: $lane:ty, |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[inline]
        pub(crate) fn $name(a: u128, b: u128) -> u128 {
            <$lane>::zip(a, b, |$a, $b| $body)
        }
    )*};
}

lanewise! {
    paddd: u32, |a, b| a.wrapping_add(b);
    paddq: u64, |a, b| a.wrapping_add(b);
    paddsb: i8, |a, b| a.saturating_add(b);
    paddsw: i16, |a, b| a.saturating_add(b);
    paddusb: u8, |a, b| a.saturating_add(b);
    paddusw: u16, |a, b| a.saturating_add(b);
    psubd: u32, |a, b| a.wrapping_sub(b);
    psubq: u64, |a, b| a.wrapping_sub(b);
    psubsb: i8, |a, b| a.saturating_sub(b);
    psubsw: i16, |a, b| a.saturating_sub(b);
    psubusb: u8, |a, b| a.saturating_sub(b);
    psubusw: u16, |a, b| a.saturating_sub(b);
    pmullw: u16, |a, b| a.wrapping_mul(b);
    pmulhw: i16, |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    pmulhuw: u16, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    pmulhrsw: i16, |a, b| ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16;
    pmulld: u32, |a, b| a.wrapping_mul(b);
    pmuludq: u64, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
    pmuldq: i64, |a, b| i64::from(a as i32) * i64::from(b as i32);
    pmaddwd: u32, |a, b| {
        let product = |shift: u32| i32::from((a >> shift) as i16) * i32::from((b >> shift) as i16);
        product(0).wrapping_add(product(16)) as u32
    };
    pmaddubsw: u16, |a, b| {
        let product = |shift: u16| i32::from((a >> shift) as u8) * i32::from((b >> shift) as i8);
        (product(0) + product(8)).clamp(-0x8000, 0x7fff) as u16
    };
    pcmpeqd: u32, |a, b| if a == b { !0 } else { 0 };
    pcmpeqq: u64, |a, b| if a == b { !0 } else { 0 };
    pcmpgtd: i32, |a, b| if a > b { !0 } else { 0 };
    pcmpgtq: i64, |a, b| if a > b { !0 } else { 0 };
    pavgb: u8, |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8;
    pavgw: u16, |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16;
    pminsb: i8, |a, b| a.min(b);
    pminuw: u16, |a, b| a.min(b);
    pminsw: i16, |a, b| a.min(b);
    pminud: u32, |a, b| a.min(b);
    pminsd: i32, |a, b| a.min(b);
    pmaxsb: i8, |a, b| a.max(b);
    pmaxuw: u16, |a, b| a.max(b);
    pmaxsw: i16, |a, b| a.max(b);
    pmaxud: u32, |a, b| a.max(b);
    pmaxsd: i32, |a, b| a.max(b);
    psignb: i8, |a, b| a.wrapping_mul(b.signum());
    psignw: i16, |a, b| a.wrapping_mul(b.signum());
    psignd: i32, |a, b| a.wrapping_mul(b.signum());
    pabsb: i8, |_a, b| b.wrapping_abs();
    pabsw: i16, |_a, b| b.wrapping_abs();
    pabsd: i32, |_a, b| b.wrapping_abs();
    pand: u64, |a, b| a & b;
    pandn: u64, |a, b| !a & b;
    por: u64, |a, b| a | b;
    pxor: u64, |a, b| a ^ b;
}

/// Lanes of `W` bits inside one integer: what string functions use most, without taking registers
/// apart.
mod swar {
    /// The top bit of every lane.
    const fn tops<const W: u32>() -> u128 {
        u128::MAX / ((1 << W) - 1) << (W - 1)
    }

    /// All ones in the lanes whose top bit is set in `bits`, where no other bit may be.
    #[inline(always)]
    fn spread<const W: u32>(bits: u128) -> u128 {
        let ones = bits >> (W - 1);
        (ones << W).wrapping_sub(ones)
    }

    #[inline(always)]
    pub(super) fn add<const W: u32>(a: u128, b: u128) -> u128 {
        let tops = tops::<W>();
        // Without top bits nothing carries into the next lane; those add like exclusive or.
        ((a & !tops) + (b & !tops)) ^ ((a ^ b) & tops)
    }

    #[inline(always)]
    pub(super) fn sub<const W: u32>(a: u128, b: u128) -> u128 {
        let tops = tops::<W>();
        ((a | tops) - (b & !tops)) ^ ((a ^ !b) & tops)
    }

    #[inline(always)]
    pub(super) fn equal<const W: u32>(a: u128, b: u128) -> u128 {
        let tops = tops::<W>();
        let differs = a ^ b;
        spread::<W>(!((differs & !tops) + !tops | differs) & tops)
    }

    /// Unsigned `a < b`.
    #[inline(always)]
    pub(super) fn below<const W: u32>(a: u128, b: u128) -> u128 {
        let tops = tops::<W>();
        let difference = (a | tops) - (b & !tops);
        spread::<W>((!a & b | !(a ^ b) & !difference) & tops)
    }

    /// Signed `a > b`.
    #[inline(always)]
    pub(super) fn greater<const W: u32>(a: u128, b: u128) -> u128 {
        below::<W>(b ^ tops::<W>(), a ^ tops::<W>())
    }
}

macro_rules! by_swar {
    ($($name:ident: |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[inline]
        pub(crate) fn $name($a: u128, $b: u128) -> u128 {
            $body
        }
    )*};
}

by_swar! {
    paddb: |a, b| swar::add::<8>(a, b);
    paddw: |a, b| swar::add::<16>(a, b);
    psubb: |a, b| swar::sub::<8>(a, b);
    psubw: |a, b| swar::sub::<16>(a, b);
    pcmpeqb: |a, b| swar::equal::<8>(a, b);
    pcmpeqw: |a, b| swar::equal::<16>(a, b);
    pcmpgtb: |a, b| swar::greater::<8>(a, b);
    pcmpgtw: |a, b| swar::greater::<16>(a, b);
    pminub: |a, b| a & swar::below::<8>(a, b) | b & !swar::below::<8>(a, b);
    pmaxub: |a, b| b & swar::below::<8>(a, b) | a & !swar::below::<8>(a, b);
}

/// Shifts whose count is a whole quadword: `name: lane, |a, count| within, beyond the lane's width`.
macro_rules! shifts {
    ($($name:ident: $lane:ty, |$a:ident, $n:ident| $within:expr, $beyond:expr;)*) => {$(
        /// Every lane of `a` by the low quadword of `count`.
        #[inline]
        pub(crate) fn $name(a: u128, count: u128) -> u128 {
            let count = count as u64;
            if count < u64::from(<$lane>::BITS) {
                let $n = count as u32;
                <$lane>::map(a, |$a| $within)
            } else {
                <$lane>::map(a, |$a| { let _ = $a; $beyond })
            }
        }
    )*};
}

shifts! {
    psllw: u16, |a, n| a << n, 0;
    pslld: u32, |a, n| a << n, 0;
    psllq: u64, |a, n| a << n, 0;
    psrlw: u16, |a, n| a >> n, 0;
    psrld: u32, |a, n| a >> n, 0;
    psrlq: u64, |a, n| a >> n, 0;
    psraw: i16, |a, n| a >> n, a >> 15;
    psrad: i32, |a, n| a >> n, a >> 31;
}

#[inline]
pub(crate) fn pslldq(a: u128, bytes: u128) -> u128 {
    a.checked_shl(bytes.min(16) as u32 * 8).unwrap_or(0)
}

#[inline]
pub(crate) fn psrldq(a: u128, bytes: u128) -> u128 {
    a.checked_shr(bytes.min(16) as u32 * 8).unwrap_or(0)
}

/// Interleaves the low halves of both registers.
macro_rules! unpacks {
    ($($low:ident, $high:ident, $high_mmx:ident: $lane:ty;)*) => {$(
        #[inline]
        pub(crate) fn $low(a: u128, b: u128) -> u128 {
            let (a, b) = (<$lane>::split(a), <$lane>::split(b));
            <$lane>::join(std::array::from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] }))
        }

        #[inline]
        pub(crate) fn $high(a: u128, b: u128) -> u128 {
            $low(a >> 64, b >> 64)
        }

        #[inline]
        pub(crate) fn $high_mmx(a: u128, b: u128) -> u128 {
            $low(a, b) >> 64
        }
    )*};
}

unpacks! {
    punpcklbw, punpckhbw, punpckhbw_mmx: u8;
    punpcklwd, punpckhwd, punpckhwd_mmx: u16;
    punpckldq, punpckhdq, punpckhdq_mmx: u32;
}

#[inline]
pub(crate) fn punpcklqdq(a: u128, b: u128) -> u128 {
    u128::from(a as u64) | b << 64
}

#[inline]
pub(crate) fn punpckhqdq(a: u128, b: u128) -> u128 {
    a >> 64 | (b >> 64) << 64
}

/// Operations that take neighbouring lanes of `a`, then of `b`; the MMX form sees both in one.
macro_rules! pairwise {
    ($($name:ident, $mmx:ident: |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[inline]
        pub(crate) fn $name($a: u128, $b: u128) -> u128 {
            $body
        }

        #[inline]
        pub(crate) fn $mmx(a: u128, b: u128) -> u128 {
            $name(punpcklqdq(a, b), 0)
        }
    )*};
}

/// The lanes of `a`, then of `b`, each narrowed.
#[inline]
fn pack<W: Lane, N: Lane>(a: u128, b: u128, narrow: impl Fn(W) -> N) -> u128
where
    N::Vector: Default,
{
    let (a, b) = (W::split(a), W::split(b));
    let mut lanes = N::Vector::default();
    for (lane, wide) in lanes.as_mut().iter_mut().zip(a.as_ref().iter().chain(b.as_ref())) {
        *lane = narrow(*wide);
    }
    N::join(lanes)
}

/// The neighbouring lanes of `a`, then of `b`, each pair folded.
#[inline]
fn fold_pairs<L: Lane>(a: u128, b: u128, fold: impl Fn(L, L) -> L) -> u128
where
    L::Vector: Default,
{
    let (a, b) = (L::split(a), L::split(b));
    let mut lanes = L::Vector::default();
    let pairs = a.as_ref().chunks_exact(2).chain(b.as_ref().chunks_exact(2));
    for (lane, pair) in lanes.as_mut().iter_mut().zip(pairs) {
        *lane = fold(pair[0], pair[1]);
    }
    L::join(lanes)
}

pairwise! {
    packsswb, packsswb_mmx: |a, b| pack(a, b, |w: i16| w.clamp(-0x80, 0x7f) as i8);
    packssdw, packssdw_mmx: |a, b| pack(a, b, |w: i32| w.clamp(-0x8000, 0x7fff) as i16);
    packuswb, packuswb_mmx: |a, b| pack(a, b, |w: i16| w.clamp(0, 0xff) as u8);
    phaddw, phaddw_mmx: |a, b| fold_pairs(a, b, u16::wrapping_add);
    phaddd, phaddd_mmx: |a, b| fold_pairs(a, b, u32::wrapping_add);
    phaddsw, phaddsw_mmx: |a, b| fold_pairs(a, b, i16::saturating_add);
    phsubw, phsubw_mmx: |a, b| fold_pairs(a, b, u16::wrapping_sub);
    phsubd, phsubd_mmx: |a, b| fold_pairs(a, b, u32::wrapping_sub);
    phsubsw, phsubsw_mmx: |a, b| fold_pairs(a, b, i16::saturating_sub);
}

#[inline]
pub(crate) fn packusdw(a: u128, b: u128) -> u128 {
    pack(a, b, |w: i32| w.clamp(0, 0xffff) as u16)
}

/// Sums of absolute differences of bytes, one per quadword.
#[inline]
pub(crate) fn psadbw(a: u128, b: u128) -> u128 {
    let differences = u8::zip(a, b, u8::abs_diff).to_le_bytes();
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
    u64::join([sum(&differences[..8]), sum(&differences[8..])])
}

/// The top bits of all bytes.
#[inline]
pub(crate) fn pmovmskb(a: u128) -> u64 {
    // The product moves bit 8 * i to bit 56 + i; no two terms meet.
    let gather =
        |half: u64| (half >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    gather(a as u64) | gather((a >> 64) as u64) << 8
}

#[inline]
pub(crate) fn movmskps(a: u128) -> u64 {
    u32::split(a).iter().enumerate().fold(0, |mask, (i, lane)| mask | u64::from(lane >> 31) << i)
}

#[inline]
pub(crate) fn movmskpd(a: u128) -> u64 {
    (a as u64 >> 63) | ((a >> 127) as u64) << 1
}

#[inline]
pub(crate) fn pshufb(a: u128, b: u128) -> u128 {
    let table = a.to_le_bytes();
    u8::map(b, |index| if index & 0x80 != 0 { 0 } else { table[usize::from(index & 15)] })
}

#[inline]
pub(crate) fn pshufb_mmx(a: u128, b: u128) -> u128 {
    pshufb(a, b & 0x8787_8787_8787_8787)
}

#[inline]
pub(crate) fn pshufd(a: u128, order: u8) -> u128 {
    let lanes = u32::split(a);
    u32::join(std::array::from_fn(|i| lanes[usize::from(order >> (2 * i) & 3)]))
}

#[inline]
pub(crate) fn pshuflw(a: u128, order: u8) -> u128 {
    let lanes = u16::split(a);
    u16::join(std::array::from_fn(|i| {
        if i < 4 { lanes[usize::from(order >> (2 * i) & 3)] } else { lanes[i] }
    }))
}

#[inline]
pub(crate) fn pshufhw(a: u128, order: u8) -> u128 {
    pshuflw(a.rotate_right(64), order).rotate_left(64)
}

#[inline]
pub(crate) fn shufps(a: u128, b: u128, order: u8) -> u128 {
    let (a, b) = (u32::split(a), u32::split(b));
    let pick = |from: &[u32; 4], i: u32| from[usize::from(order >> (2 * i) & 3)];
    u32::join([pick(&a, 0), pick(&a, 1), pick(&b, 2), pick(&b, 3)])
}

#[inline]
pub(crate) fn shufpd(a: u128, b: u128, order: u8) -> u128 {
    let (a, b) = (u64::split(a), u64::split(b));
    u64::join([a[usize::from(order & 1)], b[usize::from(order >> 1 & 1)]])
}

#[inline]
pub(crate) fn palignr(a: u128, b: u128, bytes: u8) -> u128 {
    let shift = u32::from(bytes) * 8;
    match shift {
        0 => b,
        1..128 => b >> shift | a << (128 - shift),
        128..256 => a >> (shift - 128),
        _ => 0,
    }
}

#[inline]
pub(crate) fn palignr_mmx(a: u128, b: u128, bytes: u8) -> u128 {
    psrldq(punpcklqdq(b, a), u128::from(bytes))
}

/// The lanes of `a` or `b` as the bits of `mask` say.
macro_rules! blends {
    ($($immediate:ident, $variable:ident: $lane:ty;)*) => {$(
        #[inline]
        pub(crate) fn $immediate(a: u128, b: u128, mask: u8) -> u128 {
            let (a, b) = (<$lane>::split(a), <$lane>::split(b));
            <$lane>::join(std::array::from_fn(|i| if mask >> i & 1 != 0 { b[i] } else { a[i] }))
        }

        /// By the top bits of the lanes of `mask` (XMM0).
        #[inline]
        pub(crate) fn $variable(a: u128, b: u128, mask: u128) -> u128 {
            let (a, b, mask) = (<$lane>::split(a), <$lane>::split(b), <$lane>::split(mask));
            let top = |i: usize| mask[i] >> (<$lane>::BITS - 1) != 0;
            <$lane>::join(std::array::from_fn(|i| if top(i) { b[i] } else { a[i] }))
        }
    )*};
}

blends! {
    blendps, blendvps: u32;
    blendpd, blendvpd: u64;
}

#[inline]
pub(crate) fn pblendw(a: u128, b: u128, mask: u8) -> u128 {
    let (a, b) = (u16::split(a), u16::split(b));
    u16::join(std::array::from_fn(|i| if mask >> i & 1 != 0 { b[i] } else { a[i] }))
}

/// By the top bits of the bytes of `mask` (XMM0).
#[inline]
pub(crate) fn pblendvb(a: u128, b: u128, mask: u128) -> u128 {
    let (a, b, mask) = (u8::split(a), u8::split(b), u8::split(mask));
    u8::join(std::array::from_fn(|i| if mask[i] >> 7 != 0 { b[i] } else { a[i] }))
}

/// Widening moves: `name: from, to` lanes.
macro_rules! extends {
    ($($name:ident: $from:ty => $to:ty;)*) => {$(
        #[inline]
        pub(crate) fn $name(a: u128) -> u128 {
            let lanes = <$from>::split(a);
            <$to>::join(std::array::from_fn(|i| <$to>::from(lanes[i])))
        }
    )*};
}

extends! {
    pmovsxbw: i8 => i16;
    pmovsxbd: i8 => i32;
    pmovsxbq: i8 => i64;
    pmovsxwd: i16 => i32;
    pmovsxwq: i16 => i64;
    pmovsxdq: i32 => i64;
    pmovzxbw: u8 => u16;
    pmovzxbd: u8 => u32;
    pmovzxbq: u8 => u64;
    pmovzxwd: u16 => u32;
    pmovzxwq: u16 => u64;
    pmovzxdq: u32 => u64;
}

/// Eight sums of four absolute differences: a sliding window of `a` against one block of `b`.
#[inline]
pub(crate) fn mpsadbw(a: u128, b: u128, select: u8) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let window = usize::from(select >> 2 & 1) * 4;
    let block = usize::from(select & 3) * 4;
    u16::join(std::array::from_fn(|i| {
        (0..4).map(|j| u16::from(a[window + i + j].abs_diff(b[block + j]))).sum()
    }))
}

/// The smallest word and the place where it is first.
#[inline]
pub(crate) fn phminposuw(a: u128) -> u128 {
    let words = u16::split(a);
    let (index, word) = words.iter().enumerate().min_by_key(|(_, word)| **word).unwrap_or((0, &0));
    u128::from(*word) | (index as u128) << 16
}

/// INSERTPS with the source lane already picked.
#[inline]
pub(crate) fn insertps(a: u128, value: u32, control: u8) -> u128 {
    let mut lanes = u32::split(a);
    lanes[usize::from(control >> 4 & 3)] = value;
    for (i, lane) in lanes.iter_mut().enumerate() {
        if control >> i & 1 != 0 {
            *lane = 0;
        }
    }
    u32::join(lanes)
}

/// A register with one lane replaced; `index` is taken modulo the number of lanes.
macro_rules! inserts {
    ($($insert:ident, $extract:ident: $lane:ty;)*) => {$(
        #[inline]
        pub(crate) fn $insert(a: u128, value: $lane, index: u8) -> u128 {
            let mut lanes = <$lane>::split(a);
            let index = usize::from(index) % lanes.len();
            lanes[index] = value;
            <$lane>::join(lanes)
        }

        #[inline]
        pub(crate) fn $extract(a: u128, index: u8) -> $lane {
            let lanes = <$lane>::split(a);
            lanes[usize::from(index) % lanes.len()]
        }
    )*};
}

inserts! {
    insert_byte, extract_byte: u8;
    insert_word, extract_word: u16;
    insert_dword, extract_dword: u32;
    insert_qword, extract_qword: u64;
}

#[inline]
pub(crate) fn movsldup(a: u128) -> u128 {
    pshufd(a, 0b10_10_00_00)
}

#[inline]
pub(crate) fn movshdup(a: u128) -> u128 {
    pshufd(a, 0b11_11_01_01)
}

#[inline]
pub(crate) fn movddup(a: u128) -> u128 {
    punpcklqdq(a, a)
}

#[cfg(test)]
mod tests {
    use base::SeededRng;

    use super::*;

    #[test]
    fn lanes_inside_an_integer_agree_with_lanes_taken_apart() {
        let mut rng = SeededRng::new(1);
        for _ in 0..40_000 {
            let mut register = || {
                let bits = u128::from(rng.u64()) << 64 | u128::from(rng.u64());
                // Often lanes of 0, ones or only a top bit, which carries get wrong first.
                if rng.one_in(2) {
                    bits
                } else {
                    u8::map(bits, |b| [0, 0xff, 0x80, b][usize::from(b & 3)])
                }
            };
            let (a, b) = (register(), register());
            let mask = |set: bool| if set { !0 } else { 0 };
            assert_eq!(paddb(a, b), u8::zip(a, b, u8::wrapping_add), "{a:x} {b:x}");
            assert_eq!(paddw(a, b), u16::zip(a, b, u16::wrapping_add), "{a:x} {b:x}");
            assert_eq!(psubb(a, b), u8::zip(a, b, u8::wrapping_sub), "{a:x} {b:x}");
            assert_eq!(psubw(a, b), u16::zip(a, b, u16::wrapping_sub), "{a:x} {b:x}");
            assert_eq!(pcmpeqb(a, b), u8::zip(a, b, |a, b| mask(a == b) as u8), "{a:x} {b:x}");
            assert_eq!(pcmpeqw(a, b), u16::zip(a, b, |a, b| mask(a == b) as u16), "{a:x} {b:x}");
            assert_eq!(pcmpgtb(a, b), i8::zip(a, b, |a, b| mask(a > b) as i8), "{a:x} {b:x}");
            assert_eq!(pcmpgtw(a, b), i16::zip(a, b, |a, b| mask(a > b) as i16), "{a:x} {b:x}");
            assert_eq!(pminub(a, b), u8::zip(a, b, Ord::min), "{a:x} {b:x}");
            assert_eq!(pmaxub(a, b), u8::zip(a, b, Ord::max), "{a:x} {b:x}");
        }
    }

    #[test]
    fn pmovmskb_gathers_every_top_bit() {
        for bit in 0..16 {
            assert_eq!(pmovmskb(0x80 << (8 * bit)), 1 << bit);
            assert_eq!(pmovmskb(!(0x80 << (8 * bit))), 0xffff ^ 1 << bit);
        }
    }
}
