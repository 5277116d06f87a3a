//! The machine: CPU, RAM and devices as one pure function of a start state and an event log.
#![forbid(unsafe_code)]

pub mod event;
