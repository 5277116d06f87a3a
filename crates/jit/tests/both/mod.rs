//! A guest on both engines.

use base::{Icount, SeededRng};
use cpu::{CpuStop, Engine};
use jit::Translator;

use crate::common::Vm;

/// The vector that comes in between.
pub(crate) const INTERRUPT: u8 = 0x40;
pub(crate) const STEPS: u64 = 60_000;

/// Runs what `guest` makes on both engines, compared at random cuts, half of them with an interrupt. Gives the
/// translator's.
pub(crate) fn compare(guest: impl Fn() -> Vm, seed: u64) -> Vm {
    let mut rng = SeededRng::new(seed);
    let (mut ours, mut theirs) = (guest(), guest());
    let mut translator = Translator::new().expect("this host has a translator");
    let mut at = 0;
    while at < STEPS {
        let len = [3, 40, 700][rng.below(3) as usize];
        at += 1 + rng.below(len);
        let stop = ours.cpu.run(&mut ours.mem, &mut ours.bus, Icount(at));
        assert_eq!(stop, CpuStop::Reached, "at {at}");
        let (mem, bus) = (&mut theirs.mem, &mut theirs.bus);
        theirs.cpu.run_with(mem, bus, Icount(at), &mut translator);
        let differences = ours.cpu.save().differences(&theirs.cpu.save());
        assert_eq!(differences, Vec::<String>::new(), "at {at}");
        assert_eq!(ours.bus, theirs.bus, "at {at}");
        if rng.one_in(2) {
            (ours.bus.interrupt, theirs.bus.interrupt) = (Some(INTERRUPT), Some(INTERRUPT));
        }
    }
    theirs
}

/// Runs a guest in the translator in one go without interrupts; gives one of the translator's counts.
pub(crate) fn count(vm: &mut Vm, name: &str) -> u64 {
    let mut translator = Translator::new().expect("this host has a translator");
    vm.cpu.run_with(&mut vm.mem, &mut vm.bus, Icount(STEPS), &mut translator);
    let counts = translator.stats();
    let found = counts.iter().find(|(known, _)| *known == name).map(|(_, count)| *count);
    found.unwrap_or_else(|| panic!("no {name} in {counts:?}"))
}

pub(crate) fn has_translator() -> bool {
    let made = Translator::new();
    if let Err(error) = &made {
        eprintln!("skipped: {error}");
    }
    made.is_ok()
}
