//! Random programs on the interpreter and on an engine: a slice of what the `duel` command does.

#[path = "../../cpu/tests/common/copycat.rs"]
mod copycat;

use copycat::Copycat;
use cpu::{Cpu, Engine, Env, Next};
use engines::{BoxedEngine, EngineKind};
use mem::{GuestMem, WatchedWrite};
use oracle::programs::{Duel, Plan, Program};
use x86::CpuModel;

/// Programs and steps of each: a build without optimization gets a taste only.
const PROGRAMS: u64 = if cfg!(debug_assertions) { 12 } else { 150 };
const PLAN: Plan =
    Plan { steps: if cfg!(debug_assertions) { 3000 } else { 30_000 }, shrink: true, isolate: true };

fn check(make: fn() -> BoxedEngine) -> Duel {
    check_some(make, PROGRAMS)
}

fn check_some(make: fn() -> BoxedEngine, programs: u64) -> Duel {
    let mut duel = Duel::new(make, PLAN);
    for seed in 1..=programs {
        if let Err(failure) = duel.run(seed) {
            panic!("{failure}");
        }
    }
    println!("{} steps, {} of them the engine's", duel.steps, duel.engine_steps);
    duel
}

#[test]
fn random_programs_cannot_tell_an_engine_that_stops_at_random() {
    let duel = check(|| Box::new(Copycat::new(1)));
    assert!(duel.engine_steps > duel.steps / 100, "the engine made {} steps", duel.engine_steps);
}

#[test]
fn random_programs_cannot_tell_the_translator() {
    if let Err(error) = EngineKind::Translator.make() {
        eprintln!("skipped: {error}");
        return;
    }
    let make = || EngineKind::Translator.make().unwrap().expect("it was asked for by name");
    let duel = check(make);
    assert!(duel.engine_steps > duel.steps / 2, "the engine made {} steps", duel.engine_steps);
}

/// behaviour 22
#[test]
fn random_programs_cannot_tell_a_translator_whose_host_has_less_than_their_cpu() {
    if let Err(error) = EngineKind::Translator.make() {
        eprintln!("skipped: {error}");
        return;
    }
    let make = || engines::translator_on(CpuModel::V2).expect("there is a translator");
    let duel = check_some(make, PROGRAMS / 3);
    assert!(duel.engine_steps > duel.steps / 2, "the engine made {} steps", duel.engine_steps);
}

/// behaviour 28
#[test]
fn random_programs_cannot_tell_a_translator_that_takes_every_loop_for_a_long_one() {
    if let Err(error) = EngineKind::Translator.make() {
        eprintln!("skipped: {error}");
        return;
    }
    let make = || engines::translator_of_long_loops().expect("there is a translator");
    let duel = check_some(make, PROGRAMS / 3);
    assert!(duel.engine_steps > duel.steps / 2, "the engine made {} steps", duel.engine_steps);
}

/// An engine with a mistake: once, after a few instructions, it changes R10.
struct Mistaken(Copycat, bool);

impl Engine for Mistaken {
    fn run(&mut self, cpu: &mut Cpu, env: &mut Env<'_>, budget: u64) -> Next {
        let next = self.0.run(cpu, env, budget);
        if self.0.steps > 3 && !std::mem::replace(&mut self.1, true) {
            cpu.set_gpr(10, cpu.gpr(10) ^ 4);
        }
        next
    }

    fn drop_code(&mut self, cpu: &mut Cpu, mem: &mut GuestMem, write: WatchedWrite) {
        self.0.drop_code(cpu, mem, write);
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        self.0.stats()
    }
}

#[test]
fn a_mistake_is_found_and_the_report_says_what_differs_and_how_to_repeat_it() {
    let make = || Box::new(Mistaken(Copycat::new(1), false)) as BoxedEngine;
    let mut duel = Duel::new(make, Plan { steps: 3000, shrink: false, isolate: false });
    let failure =
        (1..20).find_map(|seed| duel.run(seed).err()).expect("a mistake in every program");
    let text = failure.to_string();
    assert!(text.contains("** r10: ") && text.contains("--seed "), "{text}");
}

#[test]
fn a_seed_names_one_program() {
    let text = |seed| format!("{:?}", Program::new(seed));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}
