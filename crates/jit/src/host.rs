//! What of the CPU models the host's own CPU has. What it lacks of the guest's is the interpreter's.

use std::sync::LazyLock;

use x86::iced::Code;
use x86::{CpuLevel, CpuModel};

/// Where the host's [`CpuModel::bits`] are, beside the bits of `cpu::CodePlace::meaning`.
const SHIFT: u32 = 16;

/// The host's CPU as a model, as far as translated code uses it.
pub(crate) static HOST: LazyLock<CpuModel> = LazyLock::new(|| CpuModel {
    level: if is_v3() { CpuLevel::V3 } else { CpuLevel::V2 },
    aes: is_x86_feature_detected!("aes"),
    pclmulqdq: is_x86_feature_detected!("pclmulqdq"),
    sha: is_x86_feature_detected!("sha"),
});

fn is_v3() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe")
}

/// What bytes mean, and what of it a host has.
pub(crate) const fn meaning_on(meaning: u32, host: CpuModel) -> u32 {
    meaning | host.bits() << SHIFT
}

/// True if guest and host have an instruction, where it is one that not every model has.
pub(crate) fn both_have(code: Code, meaning: u32) -> bool {
    let needed = cpu::forms::model_bits_needed(code);
    needed & !(cpu::model_bits(meaning) & meaning >> SHIFT) == 0
}
