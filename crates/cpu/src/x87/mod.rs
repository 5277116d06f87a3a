//! The x87 FPU.
//!
//! `stack` keeps registers, tags, condition codes and exceptions; `arith` computes on them;
//! `transcendental` has the functions; `environment` the control instructions; `forms` the list.
//!
//! Pointers: every instruction that is not a control instruction sets the instruction pointer, and
//! one with a memory operand the operand pointer, to the offset (in real and virtual 8086 mode to
//! the linear address). CS and DS are always saved as 0, as CPUID announces (leaf 7, EBX bit 13), and so
//! is the opcode: CPUs that keep it do so only at an unmasked exception.
//!
//! An unmasked exception is raised by the next waiting instruction, as #MF. With CR0.NE clear the
//! pin FERR# would tell an interrupt controller; here nothing is wired to it, and execution goes
//! on as if IGNNE# were asserted.

mod arith;
mod environment;
mod forms;
mod stack;
mod transcendental;
mod wide;

pub(crate) use forms::FORMS;
