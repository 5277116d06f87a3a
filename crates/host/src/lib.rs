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
pub mod tcp;
pub mod terminal;
mod wake;

pub use wake::{Readiness, Ready, Waited, Wake, wait_any, wait_readable};

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

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The user that this process runs as.
#[must_use]
pub fn user_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// An identity of this host that stays the same until it boots anew, and that no other host has: the
/// kernel's boot ID. Containers and network namespaces of one host share it.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
