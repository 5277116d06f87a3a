//! One program on the interpreter and on an engine, compared at every cut.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Icount, SeededRng};
use cpu::{Cpu, CpuStop};
use engines::BoxedEngine;
use mem::GuestMem;
use x86::Rflags;

use super::board::Board;
use super::layout::{
    CODE, CODE_BYTES, DATA_FRAMES, DATA_PAGES, INTERRUPT, KICK, PAGE, build, repair,
};
use super::write::{Program, disassemble};
use crate::run::{end_after, in_child, shared_words};

/// Steps between two kicks, so that no program stays in one loop.
const KICK_STEPS: u64 = 6000;
/// The same of a program that works, which is to stay in its loops.
const WORK_KICK_STEPS: u64 = 1_000_000;
/// A program that works makes so many times the steps of one in which something happens all the time.
const WORK_FACTOR: u64 = 100;
/// A program that has had so many blocks decoded ends: a long loop that rewrites itself costs a thousand times as
/// much as others, and is soon the same again.
const BLOCKS_DECODED_MAX: u64 = 10_000;
/// Instructions before the difference that are listed.
const LISTED: usize = 24;
/// Runs that a failure may take to be made small.
const SHRINK_RUNS_MAX: u32 = 1500;

/// A run that takes longer hangs.
const HANG_SECONDS: u32 = 300;
/// The status of one that did: 128 and SIGALRM.
const HUNG: i32 = 128 + 14;

/// How to run programs.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Steps of each program; of one that works, a hundred times as many.
    pub steps: u64,
    /// Whether to make a failure small, which takes many runs.
    pub shrink: bool,
    /// Whether each run is a process of its own, so that one that dies or hangs is a difference too.
    pub isolate: bool,
}

/// What happens from outside at a cut.
#[derive(Clone, Debug)]
enum Action {
    Nothing,
    Interrupt,
    Kick,
    /// The same, and a device puts back the program and its page tables.
    Repair,
    Nmi,
    /// A device writes to RAM.
    Dma(u64, u64),
    /// All caches are forgotten.
    DropCaches,
    /// The marks of written pages are taken, as for a digest.
    TakeWritten,
    /// The CPU is saved and restored.
    Restore,
}

/// A step count at which the run is cut, and what happens there.
#[derive(Clone, Debug)]
struct Cut {
    at: u64,
    action: Action,
}

/// The cuts of a program. Where they come thick, they are of three kinds: many short slices, few long ones,
/// both. A program that works runs far between them, and then there are some close together.
fn cuts(program: &Program, steps: u64) -> Vec<Cut> {
    let mut rng = SeededRng::new(program.seed ^ 0x5eed_c075);
    let (lens, steps, kick_steps): (&[u64], u64, u64) = match (program.works, rng.below(8)) {
        (true, _) => (
            &[300_000, 300_000, 100_000, 1000, 30],
            steps.saturating_mul(WORK_FACTOR),
            WORK_KICK_STEPS,
        ),
        (_, 0) => (&[1, 2, 3, 5, 8, 20], steps, KICK_STEPS),
        (_, 1 | 2) => (&[20_000], steps, KICK_STEPS),
        (_, 3 | 4) => (&[1, 10, 100, 1000], steps, KICK_STEPS),
        _ => (&[400, 3000], steps, KICK_STEPS),
    };
    let mut cuts = Vec::new();
    let (mut at, mut next_kick) = (0, kick_steps);
    while at < steps {
        let len = lens[rng.below(lens.len() as u64) as usize];
        at = (at + 1 + rng.below(len)).min(next_kick).min(steps);
        let action = if at == next_kick {
            next_kick += kick_steps / 2 + rng.below(kick_steps);
            if rng.one_in(2) { Action::Kick } else { Action::Repair }
        } else {
            match rng.below(40) {
                0..=3 => Action::Interrupt,
                4 => Action::Nmi,
                5 => Action::Dma(CODE + rng.below(CODE_BYTES - 8), rng.u64()),
                6 => Action::Dma(DATA_FRAMES + rng.below(DATA_PAGES * PAGE - 8), rng.u64()),
                7 => Action::DropCaches,
                8 => Action::TakeWritten,
                9 if rng.one_in(8) => Action::Restore,
                _ => Action::Nothing,
            }
        };
        cuts.push(Cut { at, action });
    }
    cuts
}

/// One of the two machines.
struct Side {
    /// The program's bytes as they were.
    code: Vec<u8>,
    cpu: Cpu,
    mem: GuestMem,
    board: Board,
    engine: Option<BoxedEngine>,
}

impl Side {
    fn new(program: &Program, engine: Option<BoxedEngine>) -> Side {
        let mut cpu = Cpu::of_model(program.model);
        cpu.restore(&program.start).expect("programs start in a state that a CPU can have");
        let mem = build(&program.code, &program.data);
        Side { code: program.code.clone(), cpu, mem, board: Board::default(), engine }
    }

    /// Runs to a step count; false if the machine goes no further.
    fn run_to(&mut self, at: u64) -> bool {
        loop {
            let stop = match &mut self.engine {
                Some(engine) => {
                    self.cpu.run_with(&mut self.mem, &mut self.board, Icount(at), &mut **engine)
                }
                None => self.cpu.run(&mut self.mem, &mut self.board, Icount(at)),
            };
            match stop {
                CpuStop::Reached => return true,
                CpuStop::Shutdown => return false,
                CpuStop::StopRequested => self.board.stop = false,
                CpuStop::Halted if self.cpu.rflags() & Rflags::IF != 0 => {
                    self.board.interrupt = Some(INTERRUPT);
                }
                CpuStop::Halted if self.board.nmi || self.cpu.sys().nmi_blocked => return false,
                CpuStop::Halted => self.board.nmi = true,
            }
        }
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Nothing => {}
            Action::Interrupt => self.board.interrupt = Some(INTERRUPT),
            Action::Kick => self.board.interrupt = Some(KICK),
            Action::Repair => {
                repair(&mut self.mem, &self.code);
                self.board.interrupt = Some(KICK);
            }
            Action::Nmi => self.board.nmi = true,
            Action::Dma(at, value) => {
                self.mem.write_obj(base::Gpa(*at), *value).expect("it lies in RAM");
            }
            Action::DropCaches => self.cpu.drop_caches(),
            Action::TakeWritten => {
                self.mem.marks_mut().take_written();
                self.cpu.drop_store_rights();
            }
            Action::Restore => {
                let state = self.cpu.save();
                self.cpu.restore(&state).expect("it was just saved");
            }
        }
    }
}

/// The interpreter and an engine with the same program.
pub struct Duel {
    make: super::Factory,
    plan: Plan,
    /// What a run says of itself, also to its parent: see [`Word`].
    words: &'static [AtomicU64],
    /// Steps that both sides have made, over all programs.
    pub steps: u64,
    /// Of these, steps that the engine made itself.
    pub engine_steps: u64,
}

/// Indices of a run's words.
enum Word {
    /// The cut that it runs to.
    Cut,
    /// One more than the cut at which the sides differ; 0 if they do not.
    Differs,
    Steps,
    EngineSteps,
    Count,
}

/// A difference between the two.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    /// The last step count at which both were equal, and the first at which they were not.
    equal: u64,
    differs: u64,
    what: Vec<String>,
    listing: Vec<String>,
    left_of_program: usize,
    command: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "program {}: equal at step {}, different at {} ({} pieces of the program are needed)",
            self.seed, self.equal, self.differs, self.left_of_program
        )?;
        for line in &self.listing {
            writeln!(f, "  {line}")?;
        }
        for line in &self.what {
            writeln!(f, "  ** {line}")?;
        }
        write!(f, "  repeat: {}", self.command)
    }
}

impl Duel {
    /// `make` gives a new engine for each program.
    ///
    /// # Panics
    /// If the host has no memory.
    #[must_use]
    pub fn new(make: super::Factory, plan: Plan) -> Duel {
        let words = shared_words(Word::Count as usize).expect("a page of memory");
        Duel { make, plan, words, steps: 0, engine_steps: 0 }
    }

    /// Runs the program that `seed` names.
    ///
    /// # Errors
    /// The first difference.
    pub fn run(&mut self, seed: u64) -> Result<(), Box<Failure>> {
        let program = Program::new(seed);
        let cuts = cuts(&program, self.plan.steps);
        let Some(found) = self.first_difference(&program, &cuts) else { return Ok(()) };
        Err(Box::new(self.explain(program, cuts, found)))
    }

    /// Runs both sides from cut to cut. The index of the first cut at which they differ.
    fn first_difference(&mut self, program: &Program, cuts: &[Cut]) -> Option<usize> {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let mut status = 0;
        if self.plan.isolate {
            status = in_child(|| {
                std::panic::set_hook(Box::new(|_| {}));
                end_after(HANG_SECONDS);
                self.run_sides(program, cuts);
            });
        } else {
            self.run_sides(program, cuts);
        }
        self.steps += self.word(Word::Steps);
        self.engine_steps += self.word(Word::EngineSteps);
        if status != 0 {
            return Some(self.word(Word::Cut) as usize);
        }
        (self.word(Word::Differs) as usize).checked_sub(1)
    }

    fn word(&self, word: Word) -> u64 {
        self.words[word as usize].load(Ordering::Relaxed)
    }

    fn set(&self, word: Word, value: u64) {
        self.words[word as usize].store(value, Ordering::Relaxed);
    }

    fn run_sides(&self, program: &Program, cuts: &[Cut]) {
        let mut ours = Side::new(program, None);
        let mut theirs = Side::new(program, Some((self.make)()));
        for (index, cut) in cuts.iter().enumerate() {
            self.set(Word::Cut, index as u64);
            let goes_on = [ours.run_to(cut.at), theirs.run_to(cut.at)];
            // What was written since the marks were taken last; and all, before they are, and at the end.
            let is_worn = ours.cpu.stats().blocks_decoded > BLOCKS_DECODED_MAX;
            let is_last = index + 1 == cuts.len() || is_worn;
            let all = is_last || matches!(cut.action, Action::TakeWritten);
            let are_equal = if all { are_equal } else { are_equal_where_written };
            if goes_on[0] != goes_on[1] || !are_equal(&ours, &theirs) {
                self.set(Word::Differs, index as u64 + 1);
                break;
            }
            if !goes_on[0] || is_last {
                break;
            }
            ours.apply(&cut.action);
            theirs.apply(&cut.action);
        }
        self.set(Word::Steps, ours.cpu.icount().0);
        self.set(Word::EngineSteps, theirs.cpu.stats().engine_steps);
    }

    /// Makes the program small and finds the step.
    fn explain(&mut self, mut program: Program, mut cuts: Vec<Cut>, found: usize) -> Failure {
        cuts.truncate(found + 1);
        let mut runs = 0;
        if self.plan.shrink {
            self.shrink(&mut program, &mut cuts, &mut runs);
        }
        self.narrow(&program, &mut cuts);
        let last = cuts.len() - 1;
        let equal = last.checked_sub(1).map_or(0, |before| cuts[before].at);
        let (what, listing) = self.describe(&program, &cuts);
        let seed = program.seed;
        let command = format!(
            "cargo run -p oracle --release --bin duel -- --seed {seed} --programs 1 --steps {}",
            self.plan.steps
        );
        let left_of_program =
            (0..program.pieces.len()).filter(|piece| !program.is_blank(*piece)).count();
        Failure { seed, equal, differs: cuts[last].at, what, listing, left_of_program, command }
    }

    /// Blanks as much of the program as the difference does not need: halves, quarters and so on.
    fn shrink(&mut self, program: &mut Program, cuts: &mut Vec<Cut>, runs: &mut u32) {
        let mut len = program.pieces.len();
        while len > 0 && *runs < SHRINK_RUNS_MAX {
            for start in (0..program.pieces.len()).step_by(len) {
                let range = start..(start + len).min(program.pieces.len());
                if range.clone().all(|piece| program.is_blank(piece)) || *runs >= SHRINK_RUNS_MAX {
                    continue;
                }
                let mut smaller = program.clone();
                range.for_each(|piece| smaller.blank(piece));
                *runs += 1;
                if let Some(found) = self.first_difference(&smaller, cuts) {
                    *program = smaller;
                    cuts.truncate(found + 1);
                }
            }
            len /= 2;
        }
        // What happens from outside, one after the other.
        for index in (0..cuts.len().saturating_sub(1)).rev() {
            if *runs >= SHRINK_RUNS_MAX {
                return;
            }
            let Some(cut) = cuts.get(index) else { continue };
            if matches!(cut.action, Action::Nothing) {
                continue;
            }
            let mut fewer = cuts.clone();
            fewer[index].action = Action::Nothing;
            *runs += 1;
            if let Some(found) = self.first_difference(program, &fewer) {
                fewer.truncate(found + 1);
                *cuts = fewer;
            }
        }
    }

    /// Puts a cut before the last one, as late as both are still equal there.
    fn narrow(&mut self, program: &Program, cuts: &mut [Cut]) {
        let last = cuts.len() - 1;
        let mut low = last.checked_sub(1).map_or(0, |before| cuts[before].at);
        let mut high = cuts[last].at;
        // A cut may hide the difference, so the last one stays where it is known.
        let differs_at = |duel: &mut Self, at: u64| {
            let mut probe = cuts.to_vec();
            probe[last].at = at;
            duel.first_difference(program, &probe).is_some()
        };
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if differs_at(self, middle) { high = middle } else { low = middle }
        }
        if differs_at(self, high) {
            cuts[last].at = high;
        }
    }

    /// What differs, and the instructions that led there.
    fn describe(&mut self, program: &Program, cuts: &[Cut]) -> (Vec<String>, Vec<String>) {
        let (last, before) = cuts.split_last().expect("a difference is seen at a cut");
        let up_to_last = |engine| {
            let mut side = Side::new(program, engine);
            for cut in before {
                side.run_to(cut.at);
                side.apply(&cut.action);
            }
            side
        };
        let mut ours = up_to_last(None);
        let mut listing = Vec::new();
        loop {
            let now = ours.cpu.icount().0;
            if now >= last.at {
                break;
            }
            if last.at - now <= LISTED as u64 {
                listing.push(line_at(&mut ours));
            }
            let goal =
                if last.at - now > LISTED as u64 { last.at - LISTED as u64 } else { now + 1 };
            if !ours.run_to(goal) {
                break;
            }
        }
        // An engine's memory for code may be shared with children, so each process makes its own engine.
        let make_theirs = || {
            let mut theirs = up_to_last(Some((self.make)()));
            theirs.run_to(last.at);
            theirs
        };
        if self.plan.isolate {
            let status = in_child(|| {
                end_after(HANG_SECONDS);
                make_theirs();
            });
            if status != 0 {
                return (vec![death(status)], listing);
            }
        }
        let theirs = make_theirs();
        (differences(&ours, &theirs), listing)
    }
}

/// How a run ended that did not finish.
fn death(status: i32) -> String {
    match status {
        HUNG => "the engine hangs".to_owned(),
        101 => "the engine panics".to_owned(),
        status if status > 128 => format!("the engine dies of signal {}", status - 128),
        status => format!("the engine ends with status {status}"),
    }
}

/// The step count and the instruction there.
fn line_at(side: &mut Side) -> String {
    let (now, rip) = (side.cpu.icount(), side.cpu.rip());
    let linear = rip & 0x3f_ffff;
    let at = match linear {
        linear if (super::layout::CODE_ALIAS..).contains(&linear) => {
            linear - super::layout::CODE_ALIAS + CODE
        }
        linear => linear,
    };
    let mut bytes = [0; 15];
    if side.mem.read(base::Gpa(at), &mut bytes).is_err() {
        return format!("{now} {rip:#x}: not in RAM");
    }
    let (text, len) = disassemble(&bytes, rip);
    let hex = bytes[..len].iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // writing to a String cannot fail
        hex
    });
    format!("{now:>8} {rip:#x}: {hex:<24} {text}")
}

fn are_equal(ours: &Side, theirs: &Side) -> bool {
    ours.cpu.save() == theirs.cpu.save()
        && ours.board == theirs.board
        && pages(ours, theirs).all(|page| {
            ours.mem.page(page) == theirs.mem.page(page)
                && ours.mem.marks().is_written(page) == theirs.mem.marks().is_written(page)
        })
}

/// The same but for pages that count as not written since their marks were taken.
fn are_equal_where_written(ours: &Side, theirs: &Side) -> bool {
    let (marks, others) = (ours.mem.marks(), theirs.mem.marks());
    ours.cpu.save() == theirs.cpu.save()
        && ours.board == theirs.board
        && marks.written().len() == others.written().len()
        && marks
            .written()
            .iter()
            .all(|page| others.is_written(*page) && ours.mem.page(*page) == theirs.mem.page(*page))
}

/// The RAM pages that either has written.
fn pages<'a>(ours: &'a Side, theirs: &'a Side) -> impl Iterator<Item = u64> + 'a {
    let touched = |side: &'a Side, page: u64| side.mem.marks().is_touched(page);
    (0..ours.mem.page_count()).filter(move |page| touched(ours, *page) || touched(theirs, *page))
}

/// One line for each thing that differs: the interpreter's, then the engine's.
fn differences(ours: &Side, theirs: &Side) -> Vec<String> {
    let mut found = ours.cpu.save().differences(&theirs.cpu.save());
    if ours.board != theirs.board {
        found.push("the board was asked something else".to_owned());
    }
    for page in pages(ours, theirs) {
        let (a, b) = (ours.mem.page(page), theirs.mem.page(page));
        if let Some(at) = (0..a.len()).find(|at| a[*at] != b[*at]) {
            let address = page * PAGE + at as u64;
            found.push(format!("RAM at {address:#x}: {:#04x}, other {:#04x}", a[at], b[at]));
        }
        let written = [ours, theirs].map(|side| side.mem.marks().is_written(page));
        if written[0] != written[1] {
            found.push(format!("page {page:#x} is written: {}, other {}", written[0], written[1]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::layout::HANDLERS;

    /// Of a program's boundaries, those in the program itself, not in a handler; and those at CPL 3.
    #[test]
    fn programs_spend_their_steps_in_their_own_code() {
        let (mut own, mut user, mut all) = (0, 0, 0);
        for seed in 0..30 {
            let mut side = Side::new(&Program::new(seed), None);
            for at in (0..4000).step_by(37) {
                if at % 999 == 0 {
                    side.apply(&Action::Repair);
                }
                if !side.run_to(at) {
                    break;
                }
                all += 1;
                user += u32::from(side.cpu.cpl() == 3);
                own += u32::from(!(HANDLERS..CODE).contains(&side.cpu.rip()));
            }
        }
        println!("{own} of {all} in the program, {user} at CPL 3");
        assert!(all > 2000 && own > all * 7 / 10 && user > all / 5 && user < all * 4 / 5);
    }
}
