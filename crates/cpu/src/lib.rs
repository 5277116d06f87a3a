//! The CPU: an x86-64 interpreter that counts every step. It is the reference for what the guest sees.
//!
//! [`Cpu::run`] executes decoded blocks from a cache (`code`), one handler call per instruction
//! (`op`, `forms`). Memory operands go through a software TLB (`tlb`, `access`) that behaves as if
//! it were not there (`walk`). Interrupts and exceptions are in `event`, the definition of a step
//! and of what happens between two of them in `run`.
#![forbid(unsafe_code)]

mod access;
mod avx;
mod bus;
mod code;
mod cpu;
mod decode;
mod engine;
mod event;
mod flags;
pub mod forms;
mod mmx;
mod op;
mod profile;
mod run;
mod segment;
pub mod softfloat;
mod sse;
mod state;
mod system;
mod task;
mod tlb;
mod walk;
mod word;
mod x87;
mod xsave;

pub use access::is_canonical;
pub use bus::{Bus, NoBus};
pub use cpu::{Cpu, CpuStats};
pub use decode::{INSTRUCTION_BYTES_MAX, decoder_options, model_bits};
pub use engine::{CodeContext, CodePlace, Engine, Next, Rights, SettledPage, Side, SystemCalls};
pub use flags::Flags;
pub use op::{Env, Fault, Handler, Op};
pub use profile::{Doing, Marker, Profile};
pub use run::CpuStop;
pub use state::{
    CpuState, F80, Mtrrs, Seg, Segment, Shadow, SseState, SystemState, TableRegister, X87State,
};
pub use tlb::SecondLevel;
pub use word::Word;
