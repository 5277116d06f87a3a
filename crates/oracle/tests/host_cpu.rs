//! The interpreter against the host CPU: a slice of what the `oracle` command does.

use std::process::Command;

use engines::EngineKind;
use oracle::generate::Generator;
use oracle::native::check_host;
use oracle::run::{Kind, Plan, Unit, make, run};
use oracle::state::{Case, Mode, Outcome, REGION_BYTES, Subject};
use oracle::subject::Interpreter;
use oracle::template::Template;
use oracle::{MODEL, forms, units};
use x86::iced::Code;
use x86::{CpuLevel, CpuModel};

/// Cases per form: a build without optimization gets a taste only.
const CASES: &str = if cfg!(debug_assertions) { "10" } else { "200" };

/// Every form in every mode, sequences and random bytes, from a fixed seed.
#[test]
fn the_interpreter_does_what_the_host_cpu_does() {
    check("interpreter");
}

/// The same for the translator. Single-stepped cases are the interpreter's with any engine.
#[test]
fn the_translator_does_what_the_host_cpu_does() {
    match EngineKind::Translator.make() {
        Ok(_) => check("translator"),
        Err(error) => eprintln!("skipped: {error}"),
    }
}

fn check(engine: &str) {
    if let Err(missing) = check_host() {
        eprintln!("skipped: the host lacks {}", missing.0);
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_oracle"))
        .args(["--seed", "1", "--cases", CASES, "--engine", engine])
        .output()
        .expect("the oracle command can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "differences: see above");
}

/// What the translator leaves of the forms that the base model does not have.
const LEFT_TO_THE_INTERPRETER: [&str; 9] =
    ["gather", "maskmov", "vdpp", "vhadd", "vhsub", "vrcp", "vrsqrt", "vpcmpestr", "xsavec"];

/// Each form is run until the translator has made a step in 64-bit mode: the first one, for what follows is an INT3.
#[test]
fn every_form_beyond_the_base_model_is_translated() {
    let Ok(Some(engine)) = EngineKind::Translator.make() else { return };
    const CASES: u64 = 100;
    const SEED: u64 = 1;
    let mut subject = Interpreter::with_engine(&Template::new(SEED), Some(engine));
    let mut generator = Generator::default();
    let forms = forms::compared(Mode::Long64).filter(|code| CpuModel::bits_needed(*code) != 0);
    let is_left = |name: &str| LEFT_TO_THE_INTERPRETER.iter().any(|part| name.contains(part));
    let mut translated = 0;
    for code in forms {
        let unit = Unit { kind: Kind::Single(code), mode: Mode::Long64 };
        let before = subject.engine_steps();
        let made = (0..CASES).any(|number| {
            if let Some(case) = make(&mut generator, &unit, SEED, number) {
                subject.run(&case);
            }
            subject.engine_steps() > before
        });
        assert_eq!(made, !is_left(&unit.name()), "{}", unit.name());
        translated += u32::from(made);
    }
    assert!(translated > 500 || MODEL.level < CpuLevel::V3, "{translated} forms");
}

/// Of the operands some lie on two pages: where nothing faults, it is the translator that has run the instruction.
#[test]
fn loads_and_vector_stores_across_pages_are_translated() {
    let Ok(Some(engine)) = EngineKind::Translator.make() else { return };
    const CASES: u64 = 2000;
    const SEED: u64 = 1;
    const AC: u64 = 1 << 18;
    const MASKS: u32 = 0x1f80;
    let mut subject = Interpreter::with_engine(&Template::new(SEED), Some(engine));
    let mut generator = Generator::default();
    let mut left = 0;
    let mut check = |code| {
        let unit = Unit { kind: Kind::Single(code), mode: Mode::Long64 };
        for number in 0..CASES {
            let Some(case) = make(&mut generator, &unit, SEED, number) else { continue };
            let before = subject.engine_steps();
            let outcome = subject.run(&case);
            // An unmasked exception or a check of alignment would have it interpreted.
            let may_be = case.state.rflags & AC == 0 && case.state.fx.mxcsr & MASKS == MASKS;
            if outcome.event.vector == 3 && may_be && subject.engine_steps() == before {
                left += 1;
            }
        }
    };
    check(Code::Mov_r64_rm64);
    check(Code::Movups_xmm_xmmm128);
    check(Code::Movups_xmmm128_xmm);
    if MODEL.level >= CpuLevel::V3 {
        check(Code::VEX_Vmovdqu_ymm_ymmm256);
        check(Code::VEX_Vmovdqu_ymmm256_ymm);
    }
    // Where an access sets Accessed, it may be left.
    assert!(left < 10, "{left} instructions were left to the interpreter");
}

#[test]
fn every_form_of_the_cpu_model_is_implemented() {
    let missing: Vec<_> = forms::missing().collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// An interpreter with a mistake: R10 is off by one after every case.
struct Mistaken(Interpreter);

impl Subject for Mistaken {
    fn run(&mut self, case: &Case) -> Outcome {
        let mut outcome = self.0.run(case);
        outcome.state.gpr[10] = outcome.state.gpr[10].wrapping_add(1);
        outcome
    }

    fn memory(&self, region: usize) -> &[u8; REGION_BYTES] {
        self.0.memory(region)
    }
}

#[test]
fn a_mistake_is_found_in_every_case() {
    if let Err(missing) = check_host() {
        eprintln!("skipped: the host lacks {}", missing.0);
        return;
    }
    let units = units().into_iter().filter(|unit| unit.name() == "add_rm64_r64").collect();
    let engine = EngineKind::Interpreter;
    let plan = Plan { engine, seed: 1, units, first: 0, cases: 50, only_one: false, soak: None };
    let report = run(&plan, |template| Mistaken(Interpreter::new(template)))
        .expect("the worker can be started");
    assert_eq!((report.counts[0].cases, report.counts[0].different), (50, 50));
}
