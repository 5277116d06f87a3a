//! Random values of which many are interesting: edges of integers and of floating point.

use base::SeededRng;

/// An integer of `bytes` bytes (1 to 8), zero-extended.
pub fn int(rng: &mut SeededRng, bytes: usize) -> u64 {
    let bits = bytes as u32 * 8;
    let mask = u64::MAX >> (64 - bits);
    let value = match rng.below(10) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << (bits - 1),
        4 => (1 << (bits - 1)) - 1,
        5 => 1 << rng.below(u64::from(bits)),
        6 => rng.below(256),
        7 => 0u64.wrapping_sub(rng.below(256)),
        _ => rng.u64(),
    };
    value & mask
}

/// A 64-bit register: interesting at one of its widths, or a random number.
pub fn register(rng: &mut SeededRng) -> u64 {
    match rng.below(8) {
        0 => int(rng, 8),
        1 => int(rng, 4),
        2 => rng.u64() << 32 | int(rng, 4),
        3 => rng.u64() & !0xffff | int(rng, 2),
        4 => rng.u64() & !0xff | int(rng, 1),
        5 => rng.u64() & !0xff00 | int(rng, 1) << 8,
        _ => rng.u64(),
    }
}

/// The bits of a binary floating point number with `exponent_bits` and `fraction_bits`.
fn float(rng: &mut SeededRng, exponent_bits: u32, fraction_bits: u32) -> u64 {
    let exponent_max = (1u64 << exponent_bits) - 1;
    let bias = exponent_max >> 1;
    let fraction_mask = (1u64 << fraction_bits) - 1;
    let sign = rng.below(2) << (exponent_bits + fraction_bits);
    let fraction = match rng.below(6) {
        0 => 0,
        1 => fraction_mask,
        2 => 1 << rng.below(u64::from(fraction_bits)),
        3 => rng.u64() & fraction_mask & !(fraction_mask >> rng.below(u64::from(fraction_bits))),
        _ => rng.u64() & fraction_mask,
    };
    let (exponent, fraction) = match rng.below(16) {
        0 => (0, 0),
        1 => (0, fraction),
        2 => (exponent_max, 0),
        // Quiet and signaling NaN.
        3 => (exponent_max, fraction | 1 << (fraction_bits - 1)),
        4 => (exponent_max, fraction & !(1 << (fraction_bits - 1)) | 1),
        5 => (1, fraction),
        6 => (exponent_max - 1, fraction),
        7 => (bias, 0),
        8..=11 => (bias - 4 + rng.below(70).min(exponent_max / 2 - 1), fraction),
        12 => (bias - rng.below(u64::from(fraction_bits) + 3), fraction),
        _ => (rng.u64() & exponent_max, fraction),
    };
    sign | exponent << fraction_bits | fraction
}

/// The bits of an `f32`.
pub fn f32_bits(rng: &mut SeededRng) -> u32 {
    float(rng, 8, 23) as u32
}

/// The bits of an `f64`.
pub fn f64_bits(rng: &mut SeededRng) -> u64 {
    float(rng, 11, 52)
}

/// An 80-bit number, unsupported encodings included.
pub fn f80(rng: &mut SeededRng) -> [u8; 10] {
    let sign = (rng.below(2) as u16) << 15;
    let fraction = match rng.below(6) {
        0 => 0,
        1 => u64::MAX >> 1,
        2 => 1 << rng.below(63),
        3 => rng.u64() << rng.below(63) & u64::MAX >> 1,
        4 => rng.u64() >> rng.below(63) & u64::MAX >> 1,
        _ => rng.u64() & u64::MAX >> 1,
    };
    const INTEGER: u64 = 1 << 63;
    const QUIET: u64 = 1 << 62;
    let (exponent, significand) = match rng.below(20) {
        0 => (0, 0),
        // Denormal and pseudo-denormal.
        1 => (0, fraction),
        2 => (0, fraction | INTEGER),
        3 => (0x7fff, INTEGER),
        4 => (0x7fff, fraction | INTEGER | QUIET),
        5 => (0x7fff, fraction & !QUIET | INTEGER | 1),
        // Unsupported: unnormal, pseudo-infinity, pseudo-NaN.
        6 if rng.one_in(3) => (rng.below(0x7fff) as u16, fraction),
        7 if rng.one_in(3) => (0x7fff, fraction),
        8 => (1, fraction | INTEGER),
        9 => (0x7ffe, fraction | INTEGER),
        10 => (0x3fff, INTEGER),
        // Small integers and numbers near the edges of the integer formats.
        11..=14 => (0x3ffe + rng.below(70) as u16, fraction | INTEGER),
        15 => (0x3fff - rng.below(70) as u16, fraction | INTEGER),
        // Near the edges of the single and double formats.
        16 => (0x3fff - 1023 - 60 + rng.below(70) as u16, fraction | INTEGER),
        17 => (0x3fff - 127 - 30 + rng.below(40) as u16, fraction | INTEGER),
        18 => (
            0x3fff + [127, 1023][rng.below(2) as usize] - 2 + rng.below(4) as u16,
            fraction | INTEGER,
        ),
        _ => (rng.below(0x7fff) as u16, fraction | INTEGER),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

/// A packed decimal number, with digits above 9 now and then.
pub fn bcd(rng: &mut SeededRng) -> [u8; 10] {
    let mut bytes = [0; 10];
    let digits = rng.below(19) as usize;
    for digit in 0..digits {
        bytes[digit / 2] |= (rng.below(10) as u8) << (digit % 2 * 4);
    }
    bytes[9] = (rng.below(2) as u8) << 7;
    bytes
}

/// 16 bytes that are interesting in one of the formats of a vector register.
pub fn vector(rng: &mut SeededRng) -> [u8; 16] {
    let mut bytes = [0; 16];
    match rng.below(8) {
        0..=2 => {
            for lane in bytes.chunks_exact_mut(4) {
                lane.copy_from_slice(&f32_bits(rng).to_le_bytes());
            }
        }
        3 | 4 => {
            for lane in bytes.chunks_exact_mut(8) {
                lane.copy_from_slice(&f64_bits(rng).to_le_bytes());
            }
        }
        5 => rng.fill(&mut bytes),
        _ => {
            let size = 1 << rng.below(4);
            for lane in bytes.chunks_exact_mut(size) {
                lane.copy_from_slice(&int(rng, size).to_le_bytes()[..size]);
            }
        }
    }
    bytes
}

/// Fills memory with a mix of everything above, each piece at an arbitrary place.
pub fn fill(rng: &mut SeededRng, memory: &mut [u8]) {
    rng.fill(memory);
    let mut at = 0;
    while at + 32 < memory.len() {
        at += rng.below(12) as usize;
        match rng.below(4) {
            0 => {
                let value = f80(rng);
                memory[at..at + 10].copy_from_slice(&value);
                at += 10;
            }
            1 => at += 8,
            _ => {
                let value = vector(rng);
                memory[at..at + 16].copy_from_slice(&value);
                at += 16;
            }
        }
    }
}
