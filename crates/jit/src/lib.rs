//! The translator: an engine that turns guest code into host code, block by block.
//!
//! It executes only what it can execute exactly, with the step count exact at every exit, and leaves the rest
//! to the interpreter (`cpu::Engine`). See `docs/engine.md`.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod avx;
mod bmi;
mod cache;
mod emit;
mod fold;
mod frame;
mod hints;
mod host;
mod jumps;
mod memory;
mod plan;
mod probe;
mod returns;
mod rounds;
mod scan;
mod sides;
mod strings;
mod system;
mod translate;
mod translator;
mod x87;

pub use translator::{NotPossible, Translator};
