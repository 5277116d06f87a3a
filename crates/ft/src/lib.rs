//! Primary/backup protocol: who runs a VM, what it may say to the world, and who goes on alone.
//!
//! A state machine without I/O: no socket, thread or clock.
#![forbid(unsafe_code)]

pub mod arbiter;
mod stamp;

pub use stamp::Stamp;
