//! The arbiter: who may run a VM, kept durably by the disk server, asked over its port.
//!
//! What is decided, and why, is `ft::arbiter`; here are the record's durability, the wire and the
//! client. `docs/formats/arbiter.md` describes the wire and the files.

pub mod client;
pub(crate) mod store;
pub mod wire;
