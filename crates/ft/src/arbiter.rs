//! What an arbiter decides: who may run a VM.
//!
//! One durable [`Record`] per VM and one operation that decides, the claim: an atomic
//! test-and-set. This file is the whole of the rules, as a pure function from a record and a
//! request to an answer and the next record. Whoever hosts it (the disk server, a witness) adds
//! only durability: **the record is durable before the answer leaves**, and requests for one VM are
//! handled one after the other.
//!
//! Every request may arrive late, twice, or after its sender gave up, so each one names what it
//! was decided on: a claim and an arm name their generation, a power-on names the generation its
//! sender had seen. A late copy then finds a record that has moved on and changes nothing.

use base::{Claimant, Generation, VmId};
use serde::{Deserialize, Serialize};

/// The arbiter's record of one VM. A VM that was never heard of is `Record::default()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Record {
    /// Nobody runs the VM.
    Off {
        /// The last generation there was.
        generation: Generation,
    },
    /// Two processes hold the VM, and the first to claim the generation goes on alone.
    Armed {
        /// The generation that may be claimed.
        generation: Generation,
        /// Who runs the VM.
        primary: Claimant,
        /// Who follows.
        backup: Claimant,
    },
    /// One process runs the VM.
    Owned {
        /// The generation that it won, or that its power-on began.
        generation: Generation,
        /// Who runs the VM.
        owner: Claimant,
    },
}

impl Default for Record {
    fn default() -> Record {
        Record::Off { generation: Generation(0) }
    }
}

/// What somebody asks about one VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// The VM.
    pub vm: VmId,
    /// The operation.
    pub op: Op,
}

/// An operation on a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// What does the record say?
    Query,
    /// "Let `claimant` start the VM." Granted from `Off`; from `Owned` if the owner is in `dead`; from
    /// `Armed` if both sides are in `dead`; from anything with `force`.
    PowerOn {
        /// The process that wants to run the VM.
        claimant: Claimant,
        /// The generation of the record that the sender decided on (from [`Op::Query`]).
        seen: Generation,
        /// Processes that their own hosts say do not run any more.
        dead: Vec<Claimant>,
        /// With local disks: the generation up to which the sender's copy is whole.
        copy: Option<Generation>,
        /// The operator takes the responsibility that no other copy runs.
        force: bool,
    },
    /// "`primary`, which owns the VM, pairs with `backup`." Both may claim `generation` from then on.
    Arm {
        /// The new generation, above the record's.
        generation: Generation,
        /// The owner.
        primary: Claimant,
        /// Its new backup.
        backup: Claimant,
    },
    /// "`claimant` goes on alone."
    Claim {
        /// The generation that ends with this claim.
        generation: Generation,
        /// Who claims it.
        claimant: Claimant,
    },
    /// "`claimant`, which owns the VM, has stopped it for good."
    PowerOff {
        /// The generation it owns.
        generation: Generation,
        /// The owner.
        claimant: Claimant,
    },
}

/// The answer to a [`Request`]. It repeats the operation, so that a late answer to an earlier
/// question is not taken for the answer to the last one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The VM.
    pub vm: VmId,
    /// What was asked.
    pub op: Op,
    /// What was decided.
    pub outcome: Outcome,
    /// The record after the decision.
    pub record: Record,
}

/// What an arbiter decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The answer to [`Op::Query`]: see [`Answer::record`].
    Record,
    /// The VM is the asker's, by this new generation.
    PoweredOn {
        /// The generation that the power-on began; the disks' stamp is `(generation, won)`.
        generation: Generation,
    },
    /// The generation is armed.
    Armed,
    /// The claimant owns the VM.
    Won,
    /// Somebody else does, or did since, or the claimant is no part of the pairing. The claimant
    /// halts for good.
    Lost,
    /// The generation was never armed, so there is nothing to win. Not a decision.
    NotArmed,
    /// The VM is off.
    PoweredOff,
    /// Nothing changed.
    Refused(Refusal),
}

/// Why an arbiter refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The record is not the one that the asker decided on.
    #[error("the record moved on to generation {now} meanwhile")]
    Moved {
        /// Where it is.
        now: Generation,
    },
    /// The VM runs, or may run, elsewhere.
    #[error("{} may still run the VM; once it is known not to, power on with --force", list(.alive))]
    MayRun {
        /// Processes that nobody vouched for.
        alive: Vec<Claimant>,
    },
    /// The asker's local disks end at an earlier generation than the VM.
    #[error("the local disks are whole up to generation {copy}, the VM went on to {newest}")]
    OlderCopy {
        /// What the asker has.
        copy: Generation,
        /// What there is.
        newest: Generation,
    },
    /// Only the owner arms a pairing or powers the VM off.
    #[error("the asker does not own the VM")]
    NotOwner,
    /// A pairing is armed: it ends by its claim before anything else.
    #[error("generation {generation} is armed and has to be claimed first")]
    StillArmed {
        /// The generation to claim.
        generation: Generation,
    },
    /// A new generation lies above the record's.
    #[error("generation {asked} is not above {newest}")]
    OldGeneration {
        /// What was asked for.
        asked: Generation,
        /// What the record says.
        newest: Generation,
    },
    /// A process does not pair with itself.
    #[error("primary and backup are the same process")]
    SameClaimant,
}

fn list(claimants: &[Claimant]) -> String {
    claimants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

impl Record {
    /// The newest generation there is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match *self {
            Record::Off { generation }
            | Record::Armed { generation, .. }
            | Record::Owned { generation, .. } => generation,
        }
    }

    /// Processes that may run the VM, now or after a claim.
    #[must_use]
    pub fn may_run(&self) -> Vec<Claimant> {
        match *self {
            Record::Off { .. } => vec![],
            Record::Armed { primary, backup, .. } => vec![primary, backup],
            Record::Owned { owner, .. } => vec![owner],
        }
    }

    /// Decides `request` and moves the record. The caller makes the record durable, if it changed,
    /// before it hands the answer out.
    pub fn handle(&mut self, request: &Request) -> Answer {
        let outcome = self.decide(&request.op);
        Answer { vm: request.vm.clone(), op: request.op.clone(), outcome, record: *self }
    }

    fn decide(&mut self, op: &Op) -> Outcome {
        match *op {
            Op::Query => Outcome::Record,
            Op::PowerOn { claimant, seen, ref dead, copy, force } => {
                self.power_on(claimant, seen, dead, copy, force)
            }
            Op::Arm { generation, primary, backup } => self.arm(generation, primary, backup),
            Op::Claim { generation, claimant } => self.claim(generation, claimant),
            Op::PowerOff { generation, claimant } => self.power_off(generation, claimant),
        }
    }

    fn power_on(
        &mut self,
        claimant: Claimant,
        seen: Generation,
        dead: &[Claimant],
        copy: Option<Generation>,
        force: bool,
    ) -> Outcome {
        let now = self.generation();
        if *self == (Record::Owned { generation: seen.next(), owner: claimant }) {
            return Outcome::PoweredOn { generation: now };
        }
        if now != seen {
            return Outcome::Refused(Refusal::Moved { now });
        }
        if !force {
            let mut alive = self.may_run();
            alive.retain(|claimant| !dead.contains(claimant));
            if !alive.is_empty() {
                return Outcome::Refused(Refusal::MayRun { alive });
            }
            if let Some(copy) = copy.filter(|copy| *copy < now) {
                return Outcome::Refused(Refusal::OlderCopy { copy, newest: now });
            }
        }
        *self = Record::Owned { generation: now.next(), owner: claimant };
        Outcome::PoweredOn { generation: now.next() }
    }

    fn arm(&mut self, generation: Generation, primary: Claimant, backup: Claimant) -> Outcome {
        let armed = Record::Armed { generation, primary, backup };
        if *self == armed {
            return Outcome::Armed;
        }
        let refusal = match *self {
            _ if primary == backup => Refusal::SameClaimant,
            Record::Owned { owner, .. } if owner != primary => Refusal::NotOwner,
            Record::Owned { generation: newest, .. } if generation <= newest => {
                Refusal::OldGeneration { asked: generation, newest }
            }
            Record::Owned { .. } => {
                *self = armed;
                return Outcome::Armed;
            }
            Record::Armed { generation, primary: owner, .. } if owner == primary => {
                Refusal::StillArmed { generation }
            }
            Record::Armed { .. } | Record::Off { .. } => Refusal::NotOwner,
        };
        Outcome::Refused(refusal)
    }

    fn claim(&mut self, generation: Generation, claimant: Claimant) -> Outcome {
        if generation > self.generation() {
            return Outcome::NotArmed;
        }
        match *self {
            Record::Armed { generation: armed, primary, backup }
                if armed == generation && (claimant == primary || claimant == backup) =>
            {
                *self = Record::Owned { generation, owner: claimant };
                Outcome::Won
            }
            Record::Owned { generation: owned, owner }
                if owned == generation && owner == claimant =>
            {
                Outcome::Won
            }
            _ => Outcome::Lost,
        }
    }

    fn power_off(&mut self, generation: Generation, claimant: Claimant) -> Outcome {
        match *self {
            Record::Owned { generation: owned, owner }
                if owned == generation && owner == claimant =>
            {
                *self = Record::Off { generation };
                Outcome::PoweredOff
            }
            Record::Off { generation: last } if last == generation => Outcome::PoweredOff,
            Record::Armed { generation, primary, backup }
                if claimant == primary || claimant == backup =>
            {
                Outcome::Refused(Refusal::StillArmed { generation })
            }
            _ => Outcome::Refused(Refusal::NotOwner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Claimant = Claimant(0xa);
    const B: Claimant = Claimant(0xb);
    const C: Claimant = Claimant(0xc);
    const G1: Generation = Generation(1);
    const G2: Generation = Generation(2);

    fn owned_by_a() -> Record {
        Record::Owned { generation: G1, owner: A }
    }

    fn armed() -> Record {
        Record::Armed { generation: G2, primary: A, backup: B }
    }

    fn claim(generation: Generation, claimant: Claimant) -> Op {
        Op::Claim { generation, claimant }
    }

    fn power_on(claimant: Claimant, seen: Generation, dead: &[Claimant]) -> Op {
        Op::PowerOn { claimant, seen, dead: dead.to_vec(), copy: None, force: false }
    }

    /// Applies `op`, checks the outcome, and that a repeated delivery changes nothing more.
    fn check(record: &mut Record, op: &Op, expected: Outcome) {
        let request = Request { vm: VmId("vm".into()), op: op.clone() };
        assert_eq!(record.handle(&request).outcome, expected, "{op:?}");
        let after = *record;
        assert_eq!(record.handle(&request).outcome, expected, "asking again: {op:?}");
        assert_eq!(*record, after, "asking again moved the record: {op:?}");
    }

    /// behaviour 54
    #[test]
    fn first_claimant_wins_and_the_other_loses() {
        for (first, second) in [(A, B), (B, A)] {
            let mut record = armed();
            check(&mut record, &claim(G2, first), Outcome::Won);
            check(&mut record, &claim(G2, second), Outcome::Lost);
            assert_eq!(record, Record::Owned { generation: G2, owner: first });
        }
    }

    /// behaviour 149
    #[test]
    fn winner_that_asks_again_is_told_again_also_after_the_other_asked() {
        let mut record = armed();
        check(&mut record, &claim(G2, B), Outcome::Won);
        check(&mut record, &claim(G2, A), Outcome::Lost);
        check(&mut record, &claim(G2, B), Outcome::Won);
    }

    /// behaviour 151
    #[test]
    fn nothing_is_granted_for_a_generation_that_was_not_armed() {
        let mut record = owned_by_a();
        check(&mut record, &claim(G2, A), Outcome::NotArmed);
        check(&mut record, &claim(G2, B), Outcome::NotArmed);
        assert_eq!(record, owned_by_a());
        let mut unknown = Record::default();
        check(&mut unknown, &claim(G1, A), Outcome::NotArmed);
    }

    #[test]
    fn stranger_never_wins_an_armed_generation() {
        let mut record = armed();
        check(&mut record, &claim(G2, C), Outcome::Lost);
        assert_eq!(record, armed());
    }

    /// behaviour 62
    #[test]
    fn claim_of_an_earlier_generation_is_lost_once_a_later_one_is_armed() {
        let mut record = armed();
        check(&mut record, &claim(G2, A), Outcome::Won);
        let g3 = Op::Arm { generation: Generation(3), primary: A, backup: C };
        check(&mut record, &g3, Outcome::Armed);
        check(&mut record, &claim(G2, B), Outcome::Lost);
        check(&mut record, &claim(G2, A), Outcome::Lost);
        check(&mut record, &claim(Generation(3), C), Outcome::Won);
    }

    #[test]
    fn only_the_owner_arms_and_only_a_newer_generation() {
        let arm = |generation, primary, backup| Op::Arm { generation, primary, backup };
        let mut record = owned_by_a();
        check(&mut record, &arm(G2, B, C), Outcome::Refused(Refusal::NotOwner));
        check(&mut record, &arm(G2, A, A), Outcome::Refused(Refusal::SameClaimant));
        let old = Refusal::OldGeneration { asked: G1, newest: G1 };
        check(&mut record, &arm(G1, A, B), Outcome::Refused(old));
        check(&mut record, &arm(G2, A, B), Outcome::Armed);
        let still = Refusal::StillArmed { generation: G2 };
        check(&mut record, &arm(Generation(3), A, C), Outcome::Refused(still));
        let mut off = Record::default();
        check(&mut off, &arm(G1, A, B), Outcome::Refused(Refusal::NotOwner));
    }

    /// behaviour 62
    #[test]
    fn late_copy_of_an_arm_request_does_not_rearm_a_claimed_generation() {
        let mut record = armed();
        check(&mut record, &claim(G2, A), Outcome::Won);
        let late = Op::Arm { generation: G2, primary: A, backup: B };
        let old = Refusal::OldGeneration { asked: G2, newest: G2 };
        check(&mut record, &late, Outcome::Refused(old));
        assert_eq!(record, Record::Owned { generation: G2, owner: A });
    }

    /// behaviour 152
    #[test]
    fn power_on_is_refused_while_another_copy_may_live() {
        let mut record = owned_by_a();
        let refused =
            |alive: &[Claimant]| Outcome::Refused(Refusal::MayRun { alive: alive.to_vec() });
        check(&mut record, &power_on(C, G1, &[]), refused(&[A]));
        check(&mut record, &power_on(C, G1, &[A]), Outcome::PoweredOn { generation: G2 });
        let mut record = armed();
        check(&mut record, &power_on(C, G2, &[]), refused(&[A, B]));
        check(&mut record, &power_on(C, G2, &[A]), refused(&[B]));
        check(&mut record, &power_on(C, G2, &[B]), refused(&[A]));
        assert_eq!(record, armed());
        check(
            &mut record,
            &power_on(C, G2, &[A, B]),
            Outcome::PoweredOn { generation: Generation(3) },
        );
    }

    /// behaviour 152
    #[test]
    fn refusal_to_power_on_names_force_and_force_takes_it() {
        let mut record = armed();
        let answer = record.handle(&Request { vm: VmId("vm".into()), op: power_on(C, G2, &[]) });
        let Outcome::Refused(refusal) = answer.outcome else { panic!("granted") };
        assert!(refusal.to_string().contains("--force"), "{refusal}");
        let force = Op::PowerOn { claimant: C, seen: G2, dead: vec![], copy: None, force: true };
        check(&mut record, &force, Outcome::PoweredOn { generation: Generation(3) });
        check(&mut record, &claim(G2, B), Outcome::Lost);
    }

    #[test]
    fn late_copy_of_a_forced_power_on_deposes_nobody() {
        let mut record = owned_by_a();
        let force = Op::PowerOn { claimant: B, seen: G1, dead: vec![], copy: None, force: true };
        check(&mut record, &force, Outcome::PoweredOn { generation: G2 });
        check(
            &mut record,
            &power_on(C, G2, &[B]),
            Outcome::PoweredOn { generation: Generation(3) },
        );
        let moved = Refusal::Moved { now: Generation(3) };
        check(&mut record, &force, Outcome::Refused(moved));
    }

    /// behaviour 152
    #[test]
    fn older_disk_copy_is_not_started() {
        let mut record = Record::Off { generation: G2 };
        let with = |copy| Op::PowerOn { claimant: A, seen: G2, dead: vec![], copy, force: false };
        let older = Refusal::OlderCopy { copy: G1, newest: G2 };
        check(&mut record, &with(Some(G1)), Outcome::Refused(older));
        check(&mut record, &with(Some(G2)), Outcome::PoweredOn { generation: Generation(3) });
    }

    /// behaviours 99, 148
    #[test]
    fn powered_off_vm_cannot_be_claimed_and_an_armed_one_is_not_powered_off() {
        let mut record = armed();
        let off = |generation, claimant| Op::PowerOff { generation, claimant };
        let still = || Outcome::Refused(Refusal::StillArmed { generation: G2 });
        check(&mut record, &off(G2, A), still());
        check(&mut record, &claim(G2, A), Outcome::Won);
        check(&mut record, &off(G2, B), Outcome::Refused(Refusal::NotOwner));
        check(&mut record, &off(G2, A), Outcome::PoweredOff);
        check(&mut record, &claim(G2, B), Outcome::Lost);
        assert_eq!(record, Record::Off { generation: G2 });
    }
}
