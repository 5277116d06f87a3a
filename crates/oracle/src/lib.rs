//! The host CPU as oracle for the interpreter.
//!
//! A *case* is a few bytes of code with the whole state that it starts from. The host CPU runs it
//! natively, the interpreter runs it too, and everything that the manual defines has to be equal:
//! registers, flags, memory, x87, SSE, and the exception that ended it. `docs/oracle.md` says what
//! is compared and what is not.
//!
//! Test-only. Unsafe code is in [`native`] and in the supervisor's system calls.

pub mod compare;
pub mod encode;
pub mod forms;
pub mod generate;
mod host_programs;
pub mod native;
pub mod programs;
pub mod run;
pub mod state;
pub mod subject;
pub mod template;
pub mod undefined;
pub mod values;

use std::sync::LazyLock;

use run::{Kind, Unit};
use state::Mode;
use x86::{CpuLevel, CpuModel};

/// The guest's CPU: with all that any model has, as far as the host can be asked about it.
pub static MODEL: LazyLock<CpuModel> = LazyLock::new(|| CpuModel {
    level: if host_is_v3() { CpuLevel::V3 } else { CpuLevel::V2 },
    aes: std::is_x86_feature_detected!("aes"),
    pclmulqdq: std::is_x86_feature_detected!("pclmulqdq"),
    sha: std::is_x86_feature_detected!("sha"),
});

fn host_is_v3() -> bool {
    std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("f16c")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("lzcnt")
        && std::is_x86_feature_detected!("movbe")
        && std::is_x86_feature_detected!("xsavec")
}

/// Every unit that is compared: the forms that the interpreter implements, sequences of them and
/// random bytes, in all modes, and programs in 64-bit mode.
#[must_use]
pub fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for mode in Mode::ALL {
        units.extend(forms::compared(mode).map(|code| Unit { kind: Kind::Single(code), mode }));
        units.extend([Kind::Sequence, Kind::Bytes].map(|kind| Unit { kind, mode }));
        if mode == Mode::Long64 {
            units.push(Unit { kind: Kind::Program, mode });
        }
    }
    units
}
