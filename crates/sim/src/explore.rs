//! Every course that arbitration can take, at a small size.
//!
//! The arbiter's record is the shipped one. The processes are reduced to what matters for ownership:
//! who pairs, arms, claims, ends and crashes when. Whatever was once sent may arrive late, more than once, or
//! never, so messages are sets that only grow: to the arbiter, from it, and entries of the log. A
//! breadth-first search visits every state that any order of these leads to, and a violation comes with the
//! shortest way to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::{Claimant, Generation, VmId};
use ft::arbiter::{Answer, Op, Outcome, Record, Request};

/// How large the explored world is.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Processes, the first of which has powered the VM on.
    pub processes: u8,
    /// Pairings that may be tried.
    pub pairings: u64,
    /// Crashes.
    pub crashes: u8,
}

/// What an exploration saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Of these, states in which a former backup runs the VM.
    pub taken_over: usize,
    /// States in which the VM was powered off.
    pub off: usize,
}

/// A state that must not be, and how the world came to it.
#[derive(Debug)]
pub struct Violation {
    /// What is wrong.
    pub what: String,
    /// Steps from the start.
    pub steps: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// Has joined nobody.
    Idle,
    /// Owns the VM and lets everything out.
    Alone { owned: u64, newest: u64, doing: Doing },
    /// Runs the VM under the output rule.
    Primary { generation: u64, backup: u8, ended: bool },
    /// Follows.
    Backup { generation: u64, armed: bool },
    /// Has claimed, and waits.
    Claiming { generation: u64, followed: bool },
    /// Does nothing for good; what the end was acknowledged for is remembered.
    Halted { ended: Option<u64> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    Nothing,
    Arming { generation: u64, backup: u8 },
    Tidying { generation: u64 },
    PoweringOff,
}

/// An entry of the log on its way to one backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Written {
    Armed(u64, u8),
    End(u64, u8),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    record: (u8, u64, u8, u8),
    sides: Vec<Side>,
    /// Asked so far: index into `Model::ops`.
    asked: BTreeSet<usize>,
    /// Answered so far: operation and outcome.
    answered: BTreeSet<(usize, u8)>,
    written: BTreeSet<Written>,
    crashes: u8,
    taken_over: bool,
}

/// Explores everything within `bounds`.
///
/// # Errors
/// The first [`Violation`], by the shortest way.
pub fn explore(bounds: Bounds) -> Result<Explored, Box<Violation>> {
    Model::default().explore(bounds)
}

#[derive(Default)]
struct Model {
    ops: Vec<Op>,
}

const WON: u8 = 0;
const LOST: u8 = 1;
const NOT_ARMED: u8 = 2;
const ARMED: u8 = 3;
const OFF: u8 = 4;
const REFUSED: u8 = 5;

impl Model {
    fn explore(&mut self, bounds: Bounds) -> Result<Explored, Box<Violation>> {
        let alone = Side::Alone { owned: 1, newest: 1, doing: Doing::Nothing };
        let mut sides = vec![Side::Idle; usize::from(bounds.processes)];
        sides[0] = alone;
        let start = State {
            record: pack(Record::Owned { generation: Generation(1), owner: name(0) }),
            sides,
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            written: BTreeSet::new(),
            crashes: 0,
            taken_over: false,
        };
        let mut came_from: BTreeMap<State, Option<(State, String)>> = BTreeMap::new();
        came_from.insert(start.clone(), None);
        let mut queue = VecDeque::from([start]);
        let mut explored = Explored { states: 0, taken_over: 0, off: 0 };
        while let Some(state) = queue.pop_front() {
            explored.states += 1;
            explored.taken_over += usize::from(state.taken_over);
            explored.off += usize::from(matches!(unpack(state.record), Record::Off { .. }));
            if let Some(what) = violation(&state) {
                return Err(Box::new(Violation { what, steps: way(&came_from, state) }));
            }
            for (step, next) in self.steps(&state, bounds) {
                if !came_from.contains_key(&next) {
                    came_from.insert(next.clone(), Some((state.clone(), step)));
                    queue.push_back(next);
                }
            }
        }
        Ok(explored)
    }

    fn steps(&mut self, state: &State, bounds: Bounds) -> Vec<(String, State)> {
        let mut steps = vec![];
        for process in 0..bounds.processes {
            self.own_steps(state, bounds, process, &mut steps);
            self.answers(state, process, &mut steps);
            read_log(state, process, &mut steps);
        }
        for &asked in &state.asked {
            let mut next = state.clone();
            let mut record = unpack(state.record);
            let request = Request { vm: VmId(String::new()), op: self.ops[asked].clone() };
            let Answer { outcome, .. } = record.handle(&request);
            next.record = pack(record);
            next.answered.insert((asked, outcome_code(&outcome)));
            steps.push((format!("arbiter: {:?} -> {outcome:?}", request.op), next));
        }
        steps
    }

    /// What a process may do on its own at any time.
    fn own_steps(
        &mut self,
        state: &State,
        bounds: Bounds,
        process: u8,
        steps: &mut Vec<(String, State)>,
    ) {
        let side = &state.sides[usize::from(process)];
        let mut add = |what: &str, next: State| steps.push((format!("{process} {what}"), next));
        let with = |side: Side| {
            let mut next = state.clone();
            next.sides[usize::from(process)] = side;
            next
        };
        let crashed = Side::Halted { ended: None };
        if state.crashes < bounds.crashes && !matches!(side, Side::Halted { .. } | Side::Idle) {
            let mut next = with(crashed.clone());
            next.crashes += 1;
            add("crashes", next);
        }
        match *side {
            Side::Alone { owned, newest, doing: Doing::Nothing } => {
                for backup in 0..bounds.processes {
                    let idle = state.sides[usize::from(backup)] == Side::Idle;
                    if idle && newest < 1 + bounds.pairings {
                        let generation = newest + 1;
                        let doing = Doing::Arming { generation, backup };
                        let mut next = with(Side::Alone { owned, newest: generation, doing });
                        next.sides[usize::from(backup)] = Side::Backup { generation, armed: false };
                        let op = Op::Arm {
                            generation: Generation(generation),
                            primary: name(process),
                            backup: name(backup),
                        };
                        next.asked.insert(self.op(op));
                        add("asks to arm", next);
                    }
                }
                let doing = Doing::PoweringOff;
                let mut next = with(Side::Alone { owned, newest, doing });
                let (generation, claimant) = (Generation(owned), name(process));
                next.asked.insert(self.op(Op::PowerOff { generation, claimant }));
                add("powers off", next);
            }
            Side::Alone { owned, newest, doing: Doing::Arming { generation, .. } } => {
                let doing = Doing::Tidying { generation };
                let mut next = with(Side::Alone { owned, newest, doing });
                next.asked.insert(self.claim(generation, process));
                add("drops the clone and claims", next);
            }
            Side::Alone { .. } => {}
            Side::Primary { generation, backup, ended } => {
                let mut next = with(Side::Claiming { generation, followed: false });
                next.asked.insert(self.claim(generation, process));
                add("claims", next);
                if !ended {
                    let mut next = with(Side::Primary { generation, backup, ended: true });
                    next.written.insert(Written::End(generation, backup));
                    add("writes the end", next);
                }
                // The acknowledgement of the end arrives.
                let acknowledged = Side::Halted { ended: Some(generation) };
                if ended && state.sides[usize::from(backup)] == acknowledged {
                    let doing = Doing::Tidying { generation };
                    let owned = generation - 1;
                    let mut next = with(Side::Alone { owned, newest: generation, doing });
                    next.asked.insert(self.claim(generation, process));
                    add("hears that the end is known", next);
                }
            }
            Side::Backup { generation, armed } => {
                if armed {
                    let mut next = with(Side::Claiming { generation, followed: true });
                    next.asked.insert(self.claim(generation, process));
                    add("claims", next);
                } else {
                    add("drops out", with(crashed));
                }
            }
            Side::Idle | Side::Claiming { .. } | Side::Halted { .. } => {}
        }
    }

    /// An answer arrives, for the first time or again.
    fn answers(&self, state: &State, process: u8, steps: &mut Vec<(String, State)>) {
        for &(asked, code) in &state.answered {
            let op = &self.ops[asked];
            let side = &state.sides[usize::from(process)];
            let Some(next_side) = hear(side, name(process), op, code) else { continue };
            let mut next = state.clone();
            if let (Side::Claiming { followed: true, .. }, Side::Alone { .. }) = (side, &next_side)
            {
                next.taken_over = true;
            }
            if let Side::Primary { generation, backup, .. } = next_side {
                next.written.insert(Written::Armed(generation, backup));
            }
            next.sides[usize::from(process)] = next_side;
            steps.push((format!("{process} hears the answer to {op:?}"), next));
        }
    }

    fn claim(&mut self, generation: u64, process: u8) -> usize {
        self.op(Op::Claim { generation: Generation(generation), claimant: name(process) })
    }

    fn op(&mut self, op: Op) -> usize {
        self.ops.iter().position(|known| *known == op).unwrap_or_else(|| {
            self.ops.push(op);
            self.ops.len() - 1
        })
    }
}

/// What a side becomes on an answer, if the answer is to what it waits for.
fn hear(side: &Side, own: Claimant, op: &Op, code: u8) -> Option<Side> {
    let halted = Side::Halted { ended: None };
    match (side, op) {
        (Side::Claiming { generation, .. }, Op::Claim { generation: of, claimant })
            if of.0 == *generation && *claimant == own =>
        {
            let doing = Doing::Nothing;
            match code {
                WON => Some(Side::Alone { owned: of.0, newest: of.0, doing }),
                LOST => Some(halted),
                _ => None,
            }
        }
        (Side::Alone { owned, newest, doing }, _) => {
            let alone = |owned, doing| Some(Side::Alone { owned, newest: *newest, doing });
            match (*doing, op, code) {
                // A refused or unanswered arm may still have been granted: it ends in a claim.
                (Doing::Arming { generation, backup }, Op::Arm { generation: of, .. }, ARMED)
                    if of.0 == generation =>
                {
                    Some(Side::Primary { generation, backup, ended: false })
                }
                (Doing::Tidying { generation }, Op::Claim { generation: of, claimant }, code)
                    if of.0 == generation && *claimant == own =>
                {
                    match code {
                        WON => alone(generation, Doing::Nothing),
                        NOT_ARMED => alone(*owned, Doing::Nothing),
                        _ => Some(halted),
                    }
                }
                (Doing::PoweringOff, Op::PowerOff { claimant, .. }, OFF) if *claimant == own => {
                    Some(halted)
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// A backup reads an entry that was written for it.
fn read_log(state: &State, process: u8, steps: &mut Vec<(String, State)>) {
    let Side::Backup { generation, armed } = state.sides[usize::from(process)] else { return };
    let mut become_side = |what: &str, side: Side| {
        let mut next = state.clone();
        next.sides[usize::from(process)] = side;
        steps.push((format!("{process} reads {what}"), next));
    };
    if !armed && state.written.contains(&Written::Armed(generation, process)) {
        become_side("that it is armed", Side::Backup { generation, armed: true });
    }
    if armed && state.written.contains(&Written::End(generation, process)) {
        become_side("the end", Side::Halted { ended: Some(generation) });
    }
}

fn violation(state: &State) -> Option<String> {
    let alone = |side: &Side| matches!(side, Side::Alone { .. });
    let owners: Vec<usize> =
        (0..state.sides.len()).filter(|process| alone(&state.sides[*process])).collect();
    if owners.len() > 1 {
        return Some(format!("{owners:?} believe to own the VM alone"));
    }
    let owner = *owners.first()?;
    // While somebody is alone, nobody else can win.
    for (process, side) in state.sides.iter().enumerate().filter(|(other, _)| *other != owner) {
        let generation = match *side {
            Side::Claiming { generation, .. } | Side::Backup { generation, armed: true } => {
                generation
            }
            Side::Primary { generation, .. } => generation,
            _ => continue,
        };
        let (generation, claimant) = (Generation(generation), name(process as u8));
        let op = Op::Claim { generation, claimant };
        let request = Request { vm: VmId(String::new()), op };
        if unpack(state.record).handle(&request).outcome == Outcome::Won {
            return Some(format!("{process} can win {generation} while {owner} is alone"));
        }
    }
    None
}

fn way(came_from: &BTreeMap<State, Option<(State, String)>>, state: State) -> Vec<String> {
    let mut steps = vec![];
    let mut at = &state;
    while let Some(Some((before, step))) = came_from.get(at) {
        steps.push(step.clone());
        at = before;
    }
    steps.reverse();
    steps
}

fn name(process: u8) -> Claimant {
    Claimant(u128::from(process))
}

fn outcome_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Won => WON,
        Outcome::Lost => LOST,
        Outcome::NotArmed => NOT_ARMED,
        Outcome::Armed => ARMED,
        Outcome::PoweredOff => OFF,
        _ => REFUSED,
    }
}

/// The record as plain numbers, which have an order.
fn pack(record: Record) -> (u8, u64, u8, u8) {
    match record {
        Record::Off { generation } => (0, generation.0, 0, 0),
        Record::Armed { generation, primary, backup } => {
            (1, generation.0, primary.0 as u8, backup.0 as u8)
        }
        Record::Owned { generation, owner } => (2, generation.0, owner.0 as u8, 0),
    }
}

fn unpack((kind, generation, a, b): (u8, u64, u8, u8)) -> Record {
    let generation = Generation(generation);
    match kind {
        0 => Record::Off { generation },
        1 => Record::Armed { generation, primary: name(a), backup: name(b) },
        _ => Record::Owned { generation, owner: name(a) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviours 54, 55, 60, 62, 148, 149, 151
    #[test]
    fn no_order_of_messages_and_crashes_makes_two_owners() {
        let bounds = Bounds { processes: 3, pairings: 2, crashes: 1 };
        match explore(bounds) {
            Ok(explored) => {
                assert!(explored.states > 1_000, "{explored:?}");
                assert!(explored.taken_over > 100 && explored.off > 100, "{explored:?}");
            }
            Err(violation) => panic!("{}\n{}", violation.what, violation.steps.join("\n")),
        }
    }
}
