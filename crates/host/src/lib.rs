//! The system calls that Lockstep makes: network links, the terminal, clocks, entropy, files,
//! signals and wake-ups. It moves bytes and tells the time; it decides nothing about guests.
//!
//! Everything here may be called from several threads, and every error names the operation and what
//! it acted on.

pub mod clock;
pub mod files;
pub mod link;
pub mod offload;
pub mod signals;
pub mod stream;
pub mod terminal;
mod wake;

pub use wake::{Readiness, Wake, wait_readable};

/// Fills `bytes` from the host's random number generator.
///
/// # Panics
/// If the kernel has none, which no supported kernel does.
pub fn entropy(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has a random number generator");
}

/// 128 random bits, for identities that nobody else may draw.
#[must_use]
pub fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    entropy(&mut bytes);
    u128::from_le_bytes(bytes)
}
