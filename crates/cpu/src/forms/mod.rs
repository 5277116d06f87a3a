//! The instruction list: every form that the interpreter implements, once, against iced's name for it.
//!
//! Each module holds handlers and the table of the forms they run. Dispatch and the list of what is
//! covered both come from these tables.

use std::sync::LazyLock;

use x86::CpuModel;
use x86::iced::Code;

use crate::decode::undefined;
use crate::op::Handler;

mod alu;
mod arith;
mod bits;
mod bmi;
mod cond;
mod far;
mod flow;
mod mov;
mod string;
mod system;

/// All tables.
const TABLES: &[&[Form]] = &[
    alu::FORMS,
    arith::FORMS,
    bits::FORMS,
    bmi::FORMS,
    far::FORMS,
    flow::FORMS,
    mov::FORMS,
    string::FORMS,
    system::FORMS,
    crate::mmx::FORMS,
    crate::sse::FORMS,
    crate::x87::FORMS,
    crate::xsave::FORMS,
];

/// Which unit an instruction needs, so that CR0 and CR4 can switch it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// None: integer and system instructions.
    None,
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM if CR0.MP and CR0.TS.
    Wait,
    /// MMX: #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// SSE: #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// AVX: #UD if not CR4.OSXSAVE or XCR0 lacks a component, #NM if CR0.TS.
    Avx,
    /// FXSAVE and FXRSTOR: #NM if CR0.EM or CR0.TS.
    Fxsave,
    /// XSAVE and XRSTOR: #NM if CR0.TS. They look at CR4.OSXSAVE themselves.
    Xsave,
}

/// One instruction form and what runs it.
#[derive(Clone, Copy)]
pub struct Form {
    /// iced's name.
    pub code: Code,
    /// Runs it if no operand is in memory.
    pub reg: Handler,
    /// Runs it if an operand is in memory.
    pub mem: Handler,
    ends_block: bool,
    protected_only: bool,
    gate: Gate,
}

impl Form {
    /// A form whose operand may be in a register or in memory.
    #[must_use]
    pub const fn both(code: Code, reg: Handler, mem: Handler) -> Form {
        Form { code, reg, mem, ends_block: false, protected_only: false, gate: Gate::None }
    }

    /// A form without a memory operand.
    #[must_use]
    pub const fn reg(code: Code, reg: Handler) -> Form {
        Form::both(code, reg, undefined)
    }

    /// A form that always has a memory operand.
    #[must_use]
    pub const fn mem(code: Code, mem: Handler) -> Form {
        Form::both(code, undefined, mem)
    }

    /// The same handler whatever the operand.
    #[must_use]
    pub const fn any(code: Code, run: Handler) -> Form {
        Form::both(code, run, run)
    }

    /// The block ends after this form: it branches, counts steps of its own (REP), or changes how
    /// the next bytes are read.
    #[must_use]
    pub const fn ends(self) -> Form {
        Form { ends_block: true, ..self }
    }

    /// #UD in real and virtual 8086 mode.
    #[must_use]
    pub const fn protected(self) -> Form {
        Form { protected_only: true, ..self }
    }

    /// The form needs a unit that can be switched off.
    #[must_use]
    pub const fn gated(self, gate: Gate) -> Form {
        Form { gate, ..self }
    }

    /// True if a block ends after this form.
    #[must_use]
    pub const fn ends_block(&self) -> bool {
        self.ends_block
    }

    /// True if the form is #UD in real and virtual 8086 mode.
    #[must_use]
    pub const fn protected_only(&self) -> bool {
        self.protected_only
    }

    /// The unit that the form needs.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }
}

/// Every form that is implemented, for whatever model.
pub fn all() -> impl Iterator<Item = &'static Form> {
    TABLES.iter().chain(crate::avx::TABLES).copied().flatten()
}

/// What is known of a code: its form, and the bits of what a model must have for it.
#[derive(Clone, Copy)]
struct Entry {
    form: Option<&'static Form>,
    needs: u32,
}

static BY_CODE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let mut by_code = vec![Entry { form: None, needs: 0 }; Code::values().count()];
    for form in all() {
        let needs = CpuModel::bits_needed(form.code);
        by_code[form.code as usize] = Entry { form: Some(form), needs };
    }
    by_code
});

/// The form of a code, if it is implemented for any model.
#[must_use]
pub fn lookup(code: Code) -> Option<&'static Form> {
    BY_CODE[code as usize].form
}

/// [`CpuModel::bits_needed`], from a table.
#[must_use]
pub fn model_bits_needed(code: Code) -> u32 {
    BY_CODE[code as usize].needs
}

/// The form of a code, if a model with these bits has it.
pub(crate) fn lookup_in(code: Code, model: u32) -> Option<&'static Form> {
    let entry = &BY_CODE[code as usize];
    entry.form.filter(|_| entry.needs & !model == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_the_forms_whose_features_it_has_and_no_others() {
        let has = |code: Code, model: CpuModel| lookup_in(code, model.bits()).is_some();
        let beyond: Vec<Code> =
            all().map(|form| form.code).filter(|code| !has(*code, CpuModel::V2)).collect();
        assert!(beyond.iter().all(|code| has(*code, CpuModel::ALL)));
        // As the CPUID of each says: AVX and the like of v3, and each option by itself.
        let with_aes = CpuModel { aes: true, ..CpuModel::V2 };
        assert!(has(Code::Aesenc_xmm_xmmm128, with_aes));
        assert!(!has(Code::VEX_Vaesenc_xmm_xmm_xmmm128, with_aes));
        assert!(!has(Code::VEX_Vaesenc_xmm_xmm_xmmm128, CpuModel::V3));
        assert!(has(Code::VEX_Vaddps_ymm_ymm_ymmm256, CpuModel::V3));
        assert!(has(Code::Addps_xmm_xmmm128, CpuModel::V2));
        assert_eq!(beyond.len(), all().filter(|form| is_beyond_v2(form.code)).count());
    }

    /// By the decoder's names, which know nothing of our list of features.
    fn is_beyond_v2(code: Code) -> bool {
        let name = format!("{code:?}");
        ["VEX_", "Tzcnt", "Lzcnt", "Movbe", "Xsavec", "Aes", "Pclmul", "Sha1", "Sha256"]
            .iter()
            .any(|start| name.starts_with(start))
    }

    #[test]
    fn every_form_is_declared_once() {
        let mut seen = std::collections::BTreeSet::new();
        for form in all() {
            assert!(seen.insert(form.code as usize), "{:?} is declared twice", form.code);
        }
    }
}
