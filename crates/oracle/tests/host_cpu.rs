//! The interpreter against the host CPU: a slice of what the `oracle` command does.

use std::process::Command;

use engines::EngineKind;
use oracle::native::check_host;
use oracle::run::{Plan, run};
use oracle::state::{Case, Outcome, REGION_BYTES, Subject};
use oracle::subject::Interpreter;
use oracle::{forms, units};

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
