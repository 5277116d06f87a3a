//! The machine: CPU, RAM and devices as one pure function of a start state and an event log.
#![forbid(unsafe_code)]

mod board;
mod boot;
mod clock;
mod config;
pub mod event;
mod machine;
mod slots;
mod snapshot;

pub use boot::{BootError, BootPayload};
pub use clock::{ClockMode, NS_PER_STEP_ONE_Q32, NS_PER_STEP_Q32_MAX};
pub use config::{ConfigError, DISKS_MAX, DiskConfig, MachineConfig, NICS_MAX, NicConfig};
pub use cpu::{Doing, Marker, Profile};
pub use machine::{Machine, MachineError, Off, Stop};
pub use snapshot::SnapshotError;
pub use x86::{CpuLevel, CpuModel};
