//! The CPU: an x86-64 interpreter that counts every step. It is the reference for what the guest sees.
#![forbid(unsafe_code)]

mod bus;
pub mod softfloat;

pub use bus::Bus;
