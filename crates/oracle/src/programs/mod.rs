//! Random programs in a whole small machine, run by two engines and compared.
//!
//! The oracle's cases end after a few instructions at CPL 3, because a host kernel runs them. Here nobody
//! has to trust the program: it loops, calls, rewrites itself and its page tables, faults, is
//! interrupted, and runs for hundreds of thousands of steps at CPL 0 or 3. What it leaves is compared with
//! the interpreter's at every cut: registers, all RAM with Accessed and Dirty bits, which pages count as
//! written, and everything that the board was asked.

mod board;
mod duel;
mod layout;
mod write;

pub use duel::{Duel, Failure, Plan};
pub use write::Program;

/// Makes the engine under test.
pub type Factory = fn() -> engines::BoxedEngine;
