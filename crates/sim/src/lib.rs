//! Simulation of the fault-tolerance protocol: the shipped `ft` code in a world where everything that can go
//! wrong does, repeatably.
//!
//! [`Sim`] is the world, [`Fault`] what goes wrong in it, and [`soak()`] runs it from seeds. The guest is a
//! small [`machine::Machine`] with a real log: its replies show any operation that was lost, repeated or
//! taken out of order.
#![forbid(unsafe_code)]

mod checks;
pub mod explore;
mod faults;
pub mod machine;
pub mod net;
mod soak;
mod world;

pub use faults::{Fault, Plan, Side};
pub use net::MS;
pub use soak::{Failure, Summary, run, soak};
pub use world::{CLIENTS, HOSTS, PlacedOutput, Sim};
