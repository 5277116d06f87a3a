//! A 128-bit register as lanes. Lane 0 is the lowest.

/// An integer that fills a register several times.
pub(crate) trait Lane: Copy {
    /// All lanes of a register.
    type Vector: AsRef<[Self]> + AsMut<[Self]> + Copy;
    /// Takes a register apart.
    fn split(register: u128) -> Self::Vector;
    /// Puts a register together.
    fn join(lanes: Self::Vector) -> u128;

    /// Applies `f` lane by lane.
    fn map(a: u128, f: impl Fn(Self) -> Self) -> u128;

    /// Applies `f` to both registers lane by lane.
    fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128;
}

macro_rules! lane {
    ($($lane:ty: $count:literal),*) => {$(
        impl Lane for $lane {
            type Vector = [$lane; $count];

            #[inline(always)]
            fn split(register: u128) -> [$lane; $count] {
                let bytes = register.to_le_bytes();
                let (chunks, _) = bytes.as_chunks::<{ 16 / $count }>();
                std::array::from_fn(|i| <$lane>::from_le_bytes(chunks[i]))
            }

            #[inline(always)]
            fn join(lanes: [$lane; $count]) -> u128 {
                let mut bytes = [0; 16];
                let (chunks, _) = bytes.as_chunks_mut::<{ 16 / $count }>();
                for (chunk, lane) in chunks.iter_mut().zip(lanes) {
                    *chunk = lane.to_le_bytes();
                }
                u128::from_le_bytes(bytes)
            }

            // Counted loops over arrays of known length become vector instructions.
            #[inline(always)]
            fn map(a: u128, f: impl Fn($lane) -> $lane) -> u128 {
                let mut lanes = <$lane>::split(a);
                for i in 0..$count {
                    lanes[i] = f(lanes[i]);
                }
                <$lane>::join(lanes)
            }

            #[inline(always)]
            fn zip(a: u128, b: u128, f: impl Fn($lane, $lane) -> $lane) -> u128 {
                let (mut lanes, b) = (<$lane>::split(a), <$lane>::split(b));
                for i in 0..$count {
                    lanes[i] = f(lanes[i], b[i]);
                }
                <$lane>::join(lanes)
            }
        }
    )*};
}

lane!(u8: 16, i8: 16, u16: 8, i16: 8, u32: 4, i32: 4, u64: 2, i64: 2);
