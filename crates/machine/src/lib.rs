//! The machine: CPU, RAM and devices as one pure function of a start state and an event log.
#![forbid(unsafe_code)]

mod boot;
mod clock;
pub mod event;

pub use boot::{BootError, BootPayload};
pub use clock::{Clock, ClockMode};
