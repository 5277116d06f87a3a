//! The x86 architecture as data: registers, flags, control bits, exceptions, segment descriptors,
//! model-specific registers, CPU models and CPUID. Decoding is `iced-x86`'s, which this crate passes on.
#![forbid(unsafe_code)]

mod control;
pub mod cpuid;
mod descriptor;
mod exception;
mod model;
pub mod msr;

pub use control::{Cr0, Cr4, Dr6, Dr7, Efer, Rflags};
pub use descriptor::{Access, Descriptor, Selector, SystemType};
pub use exception::{Exception, PageFaultBits, Vector};
pub use iced_x86 as iced;
pub use model::{CpuLevel, CpuModel};
