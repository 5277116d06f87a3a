//! What must never happen, looked at while the world runs, by somebody who sees all of it.

use std::collections::{BTreeMap, BTreeSet};

use base::{Claimant, Generation};
use ft::Role;
use ft::arbiter::{Answer, Op, Outcome};

use crate::machine::Reply;
use crate::net::MS;
use crate::world::Proc;

/// More than this many violations say nothing new.
const VIOLATIONS_MAX: usize = 20;

/// The observer's notes.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    violations: Vec<String>,
    /// Who let frames out last, and who did before: those never may again.
    talking: Option<usize>,
    deposed: BTreeSet<usize>,
    /// Numbers of the outputs that were let out.
    emitted: BTreeSet<u64>,
    won: BTreeMap<Generation, Claimant>,
    went_live: BTreeMap<Generation, usize>,
    pub(crate) lives: usize,
    /// An owner has given up on new backups for an hour.
    pub(crate) too_many_divergences: bool,
}

impl Checks {
    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(crate) fn violation(&mut self, now: u64, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("at {:.3} ms: {text}", now as f64 / MS as f64));
        }
    }

    pub(crate) fn that(&mut self, holds: bool, now: u64, text: impl FnOnce() -> String) {
        if !holds {
            self.violation(now, text());
        }
    }

    /// No frame from the old side after the first from the new one.
    pub(crate) fn frame(&mut self, now: u64, proc: usize) {
        if self.deposed.contains(&proc) {
            self.violation(
                now,
                format!("process {proc} sent a frame after another had taken over"),
            );
        }
        if let Some(before) = self.talking.replace(proc).filter(|before| *before != proc) {
            self.deposed.insert(before);
        }
    }

    pub(crate) fn emitted(&mut self, number: u64) {
        self.emitted.insert(number);
    }

    /// Every reply that the machine made was let out, by whichever side.
    pub(crate) fn nothing_unsaid(&mut self, now: u64, this: &Proc) {
        let Some(machine) = &this.machine else { return };
        let replies = (0u64..).zip(&machine.outputs).filter(|(_, is_reply)| **is_reply);
        let unsaid: Vec<u64> = replies
            .map(|(number, _)| number)
            .filter(|number| !self.emitted.contains(number))
            .collect();
        self.that(unsaid.is_empty(), now, || format!("outputs {unsaid:?} were never let out"));
    }

    /// Nobody but one believes to be alone.
    pub(crate) fn owners(&mut self, now: u64, procs: &[Proc]) {
        let alone = |proc: &&Proc| proc.alive && proc.node.role() == Role::Solo;
        if procs.iter().filter(alone).count() > 1 {
            self.violation(now, "two processes believe to own the VM alone".into());
        }
    }

    pub(crate) fn answer(&mut self, now: u64, answer: &Answer) {
        if let (Op::Claim { generation, claimant }, Outcome::Won) = (&answer.op, &answer.outcome) {
            let winner = *self.won.entry(*generation).or_insert(*claimant);
            self.that(winner == *claimant, now, || format!("{generation} was won twice"));
        }
    }

    pub(crate) fn live(&mut self, now: u64, proc: usize, generation: Generation, this: &Proc) {
        self.lives += 1;
        let first = *self.went_live.entry(generation).or_insert(proc);
        self.that(first == proc, now, || format!("two went live in generation {generation}"));
        let won = self.won.get(&generation) == Some(&this.claimant);
        self.that(won, now, || format!("process {proc} went live without having won"));
        self.that(this.halted.is_none(), now, || format!("process {proc} went live, halted"));
    }

    /// Everything that a client saw acknowledged is in the machine, just as it was acknowledged.
    pub(crate) fn nothing_lost<'a>(
        &mut self,
        now: u64,
        this: &Proc,
        replies: impl Iterator<Item = &'a Reply>,
    ) {
        let Some(machine) = &this.machine else { return };
        for reply in replies {
            let kept = machine.history.get(reply.number as usize) == Some(reply);
            self.that(kept, now, || format!("acknowledged and lost: {reply:?}"));
        }
        let wrong = machine.disk_is_wrong;
        self.that(wrong.is_none(), now, || format!("the disk held the wrong data for {wrong:?}"));
    }
}
