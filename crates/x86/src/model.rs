//! The CPU models that a VM can have: a level of the x86-64 psABI, and options.
//!
//! A model is part of what a machine is made of, the same on every host. What it adds to the base is
//! listed once, in [`FEATURES`]: CPUID shows it from there, and decoding asks there whether an instruction exists.

use std::fmt;
use std::str::FromStr;

use iced_x86::{Code, CpuidFeature};
use serde::{Deserialize, Serialize};

/// A level of the x86-64 psABI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CpuLevel {
    /// `x86-64-v2`: SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// `x86-64-v3`: also AVX2, BMI1, BMI2, FMA, F16C, LZCNT and MOVBE. What a VM has if nobody says otherwise, on every
    /// host, because what it is does not depend on where it was powered on.
    #[default]
    V3,
}

/// What CPU a VM has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// The level.
    pub level: CpuLevel,
    /// AES-NI.
    pub aes: bool,
    /// PCLMULQDQ.
    pub pclmulqdq: bool,
    /// SHA.
    pub sha: bool,
}

/// What a feature comes with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    V3,
    Aes,
    Pclmulqdq,
    Sha,
}

/// Names of the options, and each with what it stands for.
const OPTIONS: [(&str, Part); 3] =
    [("aes", Part::Aes), ("pclmulqdq", Part::Pclmulqdq), ("sha", Part::Sha)];

/// A word of CPUID that has bits of optional features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Leaf 1, ECX.
    Leaf1Ecx,
    /// Leaf 7, EBX.
    Leaf7Ebx,
    /// Leaf DH, subleaf 1, EAX.
    LeafD1Eax,
    /// Leaf 80000001H, ECX.
    ExtendedEcx,
}

struct Feature {
    iced: CpuidFeature,
    part: Part,
    word: Word,
    bit: u32,
}

const fn feature(iced: CpuidFeature, part: Part, word: Word, bit: u32) -> Feature {
    Feature { iced, part, word, bit }
}

/// Everything that not every model has.
const FEATURES: [Feature; 12] = [
    feature(CpuidFeature::PCLMULQDQ, Part::Pclmulqdq, Word::Leaf1Ecx, 1),
    feature(CpuidFeature::FMA, Part::V3, Word::Leaf1Ecx, 12),
    feature(CpuidFeature::MOVBE, Part::V3, Word::Leaf1Ecx, 22),
    feature(CpuidFeature::AES, Part::Aes, Word::Leaf1Ecx, 25),
    feature(CpuidFeature::AVX, Part::V3, Word::Leaf1Ecx, 28),
    feature(CpuidFeature::F16C, Part::V3, Word::Leaf1Ecx, 29),
    feature(CpuidFeature::BMI1, Part::V3, Word::Leaf7Ebx, 3),
    feature(CpuidFeature::AVX2, Part::V3, Word::Leaf7Ebx, 5),
    feature(CpuidFeature::BMI2, Part::V3, Word::Leaf7Ebx, 8),
    feature(CpuidFeature::SHA, Part::Sha, Word::Leaf7Ebx, 29),
    feature(CpuidFeature::XSAVEC, Part::V3, Word::LeafD1Eax, 1),
    feature(CpuidFeature::LZCNT, Part::V3, Word::ExtendedEcx, 5),
];

impl CpuModel {
    /// The base: `x86-64-v2` without options.
    pub const V2: CpuModel =
        CpuModel { level: CpuLevel::V2, aes: false, pclmulqdq: false, sha: false };
    /// `x86-64-v3` without options.
    pub const V3: CpuModel = CpuModel { level: CpuLevel::V3, ..CpuModel::V2 };
    /// `x86-64-v3` with every option.
    pub const ALL: CpuModel =
        CpuModel { level: CpuLevel::V3, aes: true, pclmulqdq: true, sha: true };

    /// The model as four bits, for keys of caches.
    #[must_use]
    pub const fn bits(self) -> u32 {
        (matches!(self.level, CpuLevel::V3) as u32)
            | (self.aes as u32) << 1
            | (self.pclmulqdq as u32) << 2
            | (self.sha as u32) << 3
    }

    /// The bits of what a model must have for an instruction to exist. 0 if every model has it; what no model has
    /// is not told here.
    #[must_use]
    pub fn bits_needed(code: Code) -> u32 {
        let needed = FEATURES.iter().filter(|it| code.cpuid_features().contains(&it.iced));
        needed.fold(0, |bits, it| bits | it.part.bit())
    }

    /// True if the model has one of the features that not every model has.
    #[must_use]
    pub fn has_feature(self, feature: CpuidFeature) -> bool {
        FEATURES.iter().any(|it| it.iced == feature && self.has(it.part))
    }

    /// True if the model has it.
    fn has(self, part: Part) -> bool {
        self.bits() & part.bit() != 0
    }

    /// What this model has and another lacks, in words; `None` if that is nothing.
    #[must_use]
    pub fn beyond(self, other: CpuModel) -> Option<String> {
        let lacks = |part: Part| self.has(part) && !other.has(part);
        let level = lacks(Part::V3).then_some("x86-64-v3");
        let options = OPTIONS.iter().filter(|(_, part)| lacks(*part)).map(|(name, _)| *name);
        let names: Vec<&str> = level.into_iter().chain(options).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The bits of one word of CPUID that the model sets.
    pub(crate) fn cpuid_bits(self, word: Word) -> u32 {
        let shown = FEATURES.iter().filter(|it| it.word == word && self.has(it.part));
        shown.fold(0, |bits, it| bits | 1 << it.bit)
    }

    fn set(&mut self, part: Part, on: bool) {
        match part {
            Part::V3 => self.level = if on { CpuLevel::V3 } else { CpuLevel::V2 },
            Part::Aes => self.aes = on,
            Part::Pclmulqdq => self.pclmulqdq = on,
            Part::Sha => self.sha = on,
        }
    }
}

impl Part {
    const fn bit(self) -> u32 {
        let mut model = CpuModel::V2;
        match self {
            Part::V3 => model.level = CpuLevel::V3,
            Part::Aes => model.aes = true,
            Part::Pclmulqdq => model.pclmulqdq = true,
            Part::Sha => model.sha = true,
        }
        model.bits()
    }
}

/// `v2` or `v3`, and behind it `,+aes`, `,+pclmulqdq` and `,+sha` in any order.
impl FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuModel, String> {
        let bad = |part: &str| {
            format!(
                "CPU {text:?}: {part:?} is unknown (v2 or v3, with ,+aes ,+pclmulqdq or ,+sha behind it)"
            )
        };
        let mut parts = text.split(',');
        let level = parts.next().unwrap_or_default();
        let mut model = match level.strip_prefix("x86-64-").unwrap_or(level) {
            "v2" => CpuModel::V2,
            "v3" => CpuModel::V3,
            _ => return Err(bad(level)),
        };
        for part in parts {
            let name = part.strip_prefix('+').ok_or_else(|| bad(part))?;
            let option = OPTIONS.iter().find(|(known, _)| *known == name);
            model.set(option.ok_or_else(|| bad(part))?.1, true);
        }
        Ok(model)
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.level == CpuLevel::V3 { "v3" } else { "v2" })?;
        OPTIONS
            .iter()
            .filter(|(_, part)| self.has(*part))
            .try_for_each(|(name, _)| write!(f, ",+{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_as_they_are_written() {
        for bits in 0..16 {
            let mut model = CpuModel::V2;
            for part in [Part::V3, Part::Aes, Part::Pclmulqdq, Part::Sha] {
                model.set(part, bits & part.bit() != 0);
            }
            assert_eq!(model.bits(), bits);
            assert_eq!(model.to_string().parse(), Ok(model));
        }
        assert_eq!("x86-64-v3,+sha,+aes".parse::<CpuModel>().unwrap().to_string(), "v3,+aes,+sha");
        for nonsense in ["", "v4", "v3,aes", "v3,+avx", "v3,", "host"] {
            assert!(nonsense.parse::<CpuModel>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_model_tells_what_it_has_beyond_another() {
        let with_aes = CpuModel { aes: true, ..CpuModel::V2 };
        assert_eq!(CpuModel::ALL.beyond(with_aes).as_deref(), Some("x86-64-v3, pclmulqdq, sha"));
        assert_eq!(CpuModel::V3.beyond(CpuModel::ALL), None);
    }

    #[test]
    fn what_an_instruction_needs_follows_from_its_features() {
        assert_eq!(CpuModel::bits_needed(Code::Add_rm32_r32), 0);
        assert_eq!(CpuModel::bits_needed(Code::Movbe_r16_m16), CpuModel::V3.bits());
        let both = CpuModel { aes: true, ..CpuModel::V3 };
        assert_eq!(CpuModel::bits_needed(Code::VEX_Vaesenc_xmm_xmm_xmmm128), both.bits());
    }
}
