//! Random runs, each from its seed.

use base::SeededRng;
use ft::{Halted, Role, Timing};

use crate::faults::{Fault, Plan, Side};
use crate::net::{MS, Quality};
use crate::world::Sim;

/// A run that showed what must not happen.
#[derive(Debug)]
pub struct Failure {
    /// Its plan and seed.
    pub plan: Plan,
    /// See [`Failure::repeat`].
    pub seed: u64,
    /// What was seen.
    pub violations: Vec<String>,
}

impl Failure {
    /// The command that repeats the run, with a trace of all that happened.
    #[must_use]
    pub fn repeat(&self) -> String {
        let plan = format!("{:?}", self.plan).to_lowercase();
        format!("cargo run -p sim --release -- --plan {plan} --seed {} --runs 1 --trace", self.seed)
    }
}

/// What a range of runs saw, so that a soak which tests nothing shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Runs.
    pub runs: usize,
    /// How often a side went on alone.
    pub takeovers: usize,
    /// Operations that clients saw acknowledged.
    pub acknowledged: usize,
    /// Runs after which the VM was off, or all who could run it had crashed.
    pub without_vm: usize,
}

/// Runs `plan` from every seed of the range.
///
/// # Errors
/// The first run with a violation.
pub fn soak(plan: Plan, seeds: std::ops::Range<u64>) -> Result<Summary, Failure> {
    let mut summary = Summary::default();
    for seed in seeds {
        let sim = run(plan, seed, false);
        if !sim.violations().is_empty() {
            return Err(Failure { plan, seed, violations: sim.violations().to_vec() });
        }
        summary.runs += 1;
        summary.takeovers += sim.takeovers();
        summary.acknowledged += sim.acknowledged();
        summary.without_vm += usize::from(sim.owner().is_none());
    }
    Ok(summary)
}

/// One run.
#[must_use]
pub fn run(plan: Plan, seed: u64, trace: bool) -> Sim {
    let mut rng = SeededRng::new(seed ^ 0x5eed);
    let mut sim = Sim::new(seed, timing(&mut rng));
    sim.trace = trace.then(Vec::new);
    // Two retransmissions in a row are longer than the shortest timeout.
    let resent = if sim.timing.detection.0 < 1_000 * MS { 0 } else { 2 };
    sim.net.usual = Quality { resent, ..Quality::default() };
    sim.net.mend();
    // A shell may take up to a third of the timeout between its check and the wire.
    sim.emit_delay_max = if rng.one_in(2) { MS } else { sim.timing.fresh_max().0 * 9 / 10 };
    let up = sim.run_until(20_000 * MS, Sim::protected);
    if !up {
        sim.violate("no pairing came about");
        return sim;
    }
    sim.run(MS * rng.below(1_000));
    match plan {
        Plan::Calm => calm(&mut sim, &mut rng),
        Plan::Single => single(&mut sim, &mut rng),
        Plan::Storm => storm(&mut sim, &mut rng),
    }
    sim
}

fn timing(rng: &mut SeededRng) -> Timing {
    match rng.below(4) {
        0 => Timing::aggressive(),
        1 => Timing::relaxed(),
        _ => Timing::default(),
    }
}

fn calm(sim: &mut Sim, rng: &mut SeededRng) {
    // Of everything that a healthy pair has to live with, a little less than the timeout.
    let patience = sim.timing.detection.0;
    sim.net.usual = Quality { lost: 50, repeated: 50, ..sim.net.usual };
    sim.net.mend();
    for _ in 0..6 {
        let side = if rng.one_in(2) { Side::Primary } else { Side::Backup };
        let fault = match rng.below(4) {
            0 => Fault::Stop(side, rng.below(patience / 2)),
            1 => Fault::Stall(side, rng.below(patience / 2)),
            2 => Fault::Slow(1_000 + rng.below(3_000), rng.below(3_000 * MS)),
            _ => Fault::ArbiterDown(rng.below(3_000 * MS)),
        };
        sim.inject(0, fault);
        sim.run(patience + rng.below(2_000 * MS));
    }
    finish(sim, true);
    if sim.takeovers() > 0 {
        sim.violate("a side of a healthy pair went on alone");
    }
}

fn single(sim: &mut Sim, rng: &mut SeededRng) {
    let fault = Fault::single(rng);
    if rng.one_in(2) {
        sim.run_to_held_output();
    }
    sim.inject(0, fault);
    sim.run(15_000 * MS);
    finish(sim, true);
}

fn storm(sim: &mut Sim, rng: &mut SeededRng) {
    for (wait, fault) in Fault::storm(rng) {
        if rng.one_in(4) {
            sim.run_to_held_output();
        }
        sim.inject(0, fault);
        sim.run(wait);
    }
    sim.run(5_000 * MS);
    finish(sim, false);
}

/// Mends everything, waits, and looks whether the VM is whole.
fn finish(sim: &mut Sim, vm_survives: bool) {
    sim.calm_down();
    sim.run(30_000 * MS);
    sim.check_end(vm_survives);
}

impl Sim {
    /// Notes a violation.
    pub fn violate(&mut self, text: &str) {
        let now = self.now;
        self.checks.violation(now, text.into());
    }

    /// No more faults.
    pub fn calm_down(&mut self) {
        self.net.mend();
        self.arbiter_down = 0;
        self.answers_lost = 0;
        self.note(|| "all is mended".into());
    }

    /// Once all is mended: everybody has made up their mind, and a VM that may run does, whole and
    /// protected.
    pub fn check_end(&mut self, vm_survives: bool) {
        let undecided: Vec<usize> = (0..self.procs.len())
            .filter(|proc| self.procs[*proc].alive)
            .filter(|proc| self.procs[*proc].node.role() == Role::GoingLive)
            .collect();
        if !undecided.is_empty() {
            self.violate(&format!("{undecided:?} have not made up their minds"));
        }
        let Some(owner) = self.owner() else {
            let may_run = self.record.may_run();
            let of = |claimant: &base::Claimant| self.find(*claimant);
            let waits = |proc: &crate::world::Proc| proc.alive && proc.halted.is_none();
            let lives = may_run.iter().filter_map(of).any(waits);
            // The owner by record has halted without having to.
            let gave_up = |proc: &crate::world::Proc| {
                let rightly =
                    matches!(proc.halted, None | Some(Halted::Diverged(_) | Halted::PoweredOff));
                !rightly
            };
            let halted = may_run.iter().filter_map(of).any(gave_up);
            if vm_survives || lives || (halted && may_run.len() == 1) {
                self.violate("nobody runs the VM");
            }
            return;
        };
        let before = self.acknowledged();
        self.run(5_000 * MS);
        if self.acknowledged() < before + crate::CLIENTS {
            self.violate("the VM does not serve");
        }
        if !self.protected() && self.repair && !self.checks.too_many_divergences {
            self.violate("the VM has no backup");
        }
        self.clients_stop = true;
        self.run(3_000 * MS);
        let now = self.now;
        let replies: Vec<_> = self.replies().copied().collect();
        self.checks.nothing_lost(now, &self.procs[owner], replies.iter());
        self.checks.nothing_unsaid(now, &self.procs[owner]);
        let blocks = self.disk_blocks();
        let machine = self.procs[owner].machine.as_ref();
        let same = machine.is_some_and(|machine| machine.disk_is_quiet() && machine.disk == blocks);
        self.checks.that(same, now, || "the disk does not hold what the machine wrote".into());
    }
}
