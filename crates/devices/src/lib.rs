//! The devices of the board as pure state machines: no thread, no clock, no file.
//!
//! Time comes in as guest nanoseconds (`now_ns`), interrupts go out as levels or edges that the
//! board polls and forwards, and everything that leaves the machine is handed out as a value. What a
//! guest can observe of a device stands in one plain `...State` struct; `state` copies it out and
//! `restore` accepts it back only if it describes a state that the device can be in.
//!
//! Knows nothing of the CPU, the bus and the log. `docs/board.md` has the addresses.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod apic;
pub mod debug_exit;
pub mod fw_cfg;
pub mod i8042;
pub mod interrupts;
pub mod io;
pub mod ioapic;
pub mod layout;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod reset;
pub mod rtc;
pub mod uart;
pub mod virtio;

use serde::{Deserialize, Serialize};

/// What a guest asks of the machine's power through some register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerRequest {
    /// Power off (ACPI S5).
    Off,
    /// Reset.
    Reset,
}

/// A state that no device of that kind can be in.
fn impossible(kind: &'static str, why: impl Into<String>) -> base::RestoreError {
    base::RestoreError::Impossible { kind, why: why.into() }
}
