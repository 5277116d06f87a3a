//! A network of hosts on one machine, and clients that check every reply: for tests, the demo and
//! the benchmarks.
//!
//! A [`Lab`] is a set of network namespaces inside namespaces of its own, so nothing of it outlives
//! the process and nothing needs root. [`clients`] drives a guest's services and compares each
//! answer with a model; [`witness`] watches who sends on the guest's network.
#![forbid(unsafe_code)]

pub mod clients;
mod lab;
pub mod pair;
mod process;
pub mod relay;
mod terminal;
pub mod witness;

pub use lab::{
    CHANNEL_ADDRS, CLIENT_ADDR, GUEST_ADDR, Host, Lab, LabError, SERVICE_ADDRS, enter, test_in_lab,
};
pub use process::Process;
pub use terminal::Terminal;

/// The machine's clock since boot, suspend included, in nanoseconds: the one that the events of
/// `lockstep` processes carry.
#[must_use]
pub fn boottime_ns() -> u64 {
    host::clock::boottime().0
}
