//! Runs cases in a throw-away process, and watches it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::SeededRng;
use engines::EngineKind;
use iced_x86::Code;

use crate::compare::{describe, differences};
use crate::encode::decode;
use crate::forms;
use crate::generate::Generator;
use crate::native::Native;
use crate::state::{Case, Mode, Subject};
use crate::template::Template;
use crate::undefined;

/// A case that runs longer than this hangs.
const HANG: Duration = Duration::from_secs(10);
const HUNG: &str = "hung";
/// Differences of one unit that are printed in full; all are counted.
const PRINTED_MAX: u64 = 1;

/// What a unit's cases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One instruction of a form.
    Single(Code),
    /// A sequence.
    Sequence,
    /// A program with loops.
    Program,
    /// Random bytes.
    Bytes,
}

/// One row of the summary: cases of one kind in one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The kind.
    pub kind: Kind,
    /// The mode.
    pub mode: Mode,
}

impl Unit {
    /// The name on the command line: the form, `sequence`, `program` or `bytes`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.kind {
            Kind::Single(code) => form_name(code),
            Kind::Sequence => "sequence".to_owned(),
            Kind::Program => "program".to_owned(),
            Kind::Bytes => "bytes".to_owned(),
        }
    }

    /// The random numbers of case `number`: a stream of its own.
    fn rng(&self, seed: u64, number: u64) -> SeededRng {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let name = self.name();
        let numbers = [seed, number, u64::from(self.mode.bits())];
        for byte in name.bytes().chain(numbers.iter().flat_map(|n| n.to_le_bytes())) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        SeededRng::new(hash)
    }
}

/// iced's name of a form, in lower case.
#[must_use]
pub fn form_name(code: Code) -> String {
    format!("{code:?}").to_lowercase()
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is compared with the host: for the command that repeats a case.
    pub engine: EngineKind,
    /// Names all random numbers.
    pub seed: u64,
    /// The units.
    pub units: Vec<Unit>,
    /// First case number.
    pub first: u64,
    /// Cases per unit and round; sequences and bytes, but not programs, get [`FACTOR`] times as many.
    pub cases: u64,
    /// Run exactly one case of every unit, sequences and bytes too.
    pub only_one: bool,
    /// Go on with new rounds until this much time is over; `None` for one round.
    pub soak: Option<Duration>,
}

/// Sequences and random bytes stand for many forms.
pub const FACTOR: u64 = 50;

/// Counts of one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Cases compared.
    pub cases: u64,
    /// Cases that completed: they ended at the single step or the INT3, not in a fault.
    pub completed: u64,
    /// Instructions of these, as ours counts them.
    pub instructions: u64,
    /// Cases in which something differed.
    pub different: u64,
    /// Cases that the generator could not make.
    pub not_made: u64,
    /// Cases that the host did not finish: its kernel loops for ever on a few mode changes with a
    /// 16-bit stack. Nothing was compared.
    pub host_hung: u64,
}

/// What came out.
#[derive(Debug)]
pub struct Report {
    /// One per unit of the plan.
    pub counts: Vec<Count>,
    /// Time from start to end.
    pub elapsed: Duration,
}

/// Counters in memory that parent and worker share.
struct Shared {
    words: &'static [AtomicU64],
}

const UNIT: usize = 0;
const CASE: usize = 1;
const ROUND: usize = 2;
const PHASE: usize = 3;
const HEADER: usize = 4;

/// Value of the word `PHASE` while the host runs a case.
const ON_HOST: u64 = 1;

const CASES: usize = 0;
const DIFFERENT: usize = 1;
const NOT_MADE: usize = 2;
const COMPLETED: usize = 3;
const HOST_HUNG: usize = 4;
const INSTRUCTIONS: usize = 5;
const FIELDS: usize = 6;

/// Words that a process shares with its children, zero at first. They are there until it ends.
pub(crate) fn shared_words(len: usize) -> io::Result<&'static [AtomicU64]> {
    // SAFETY: an anonymous mapping touches no memory in use.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len * 8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has `len` words, is never unmapped, starts as zeros, and is used through
    // atomics only.
    Ok(unsafe { std::slice::from_raw_parts(at.cast::<AtomicU64>(), len) })
}

/// Ends this process by a signal after so many seconds: for children that may hang.
pub(crate) fn end_after(seconds: u32) {
    // SAFETY: no memory is touched.
    unsafe { libc::alarm(seconds) };
}

impl Shared {
    fn new(units: usize) -> io::Result<Shared> {
        Ok(Shared { words: shared_words(HEADER + units * FIELDS)? })
    }

    fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Relaxed);
    }

    fn add(&self, unit: usize, field: usize) -> u64 {
        self.add_many(unit, field, 1)
    }

    fn add_many(&self, unit: usize, field: usize, count: u64) -> u64 {
        self.words[HEADER + unit * FIELDS + field].fetch_add(count, Ordering::Relaxed)
    }

    fn count(&self, unit: usize) -> Count {
        let field = |field: usize| self.load(HEADER + unit * FIELDS + field);
        Count {
            cases: field(CASES),
            completed: field(COMPLETED),
            instructions: field(INSTRUCTIONS),
            different: field(DIFFERENT),
            not_made: field(NOT_MADE),
            host_hung: field(HOST_HUNG),
        }
    }
}

/// Runs the plan. `ours` makes the subject that is compared with the host, in the worker.
///
/// # Errors
/// A system call was refused.
pub fn run<S: Subject>(plan: &Plan, ours: impl Fn(&Template) -> S) -> io::Result<Report> {
    let shared = Shared::new(plan.units.len())?;
    let start = Instant::now();
    loop {
        io::stdout().flush()?;
        // SAFETY: the process has one thread, so the child is a whole copy of it.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let status = match work(plan, &shared, start, &ours) {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("oracle: cannot prepare the host: {error}");
                        3
                    }
                };
                let _ = io::stdout().flush(); // the parent sees the status in any case
                std::process::exit(status);
            }
            _ => {}
        }
        let status = watch(pid, &shared)?;
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            break;
        }
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 3 {
            return Err(io::Error::other("the worker did not start"));
        }
        let (unit, number) = (shared.load(UNIT) as usize, shared.load(CASE));
        let how = if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL {
            HUNG.to_owned()
        } else if libc::WIFSIGNALED(status) {
            format!("died of signal {}", libc::WTERMSIG(status))
        } else {
            format!("ended with status {}", libc::WEXITSTATUS(status))
        };
        println!("the worker {how} in a case of {}", plan.units[unit].name());
        println!("  repeat: {}", command(plan, &plan.units[unit], number));
        if shared.load(PHASE) == ON_HOST && how == HUNG {
            shared.add(unit, HOST_HUNG);
        } else {
            shared.add(unit, CASES);
            shared.add(unit, DIFFERENT);
        }
        shared.store(CASE, number + 1);
    }
    let counts = (0..plan.units.len()).map(|unit| shared.count(unit)).collect();
    Ok(Report { counts, elapsed: start.elapsed() })
}

/// Runs `f` in a child process, where native execution can do no harm, and gives the child's exit
/// status: 0 if `f` returned, 101 if it panicked, 128 plus the number of the signal that ended it.
///
/// # Panics
/// If the host gives no process.
pub fn in_child(f: impl FnOnce()) -> i32 {
    // SAFETY: the child runs `f` on a copy of the calling thread and leaves by `_exit`; the C
    // library keeps its allocator usable across a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a live local, `pid` our own child.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "waitpid: {}", io::Error::last_os_error());
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// Waits for the worker, and kills it if it makes no progress.
fn watch(pid: libc::pid_t, shared: &Shared) -> io::Result<libc::c_int> {
    let progress = || (shared.load(UNIT), shared.load(CASE), shared.load(ROUND));
    let mut last = (progress(), Instant::now());
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live local.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            _ => return Ok(status),
        }
        let now = progress();
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > HANG {
            // SAFETY: `pid` is our own child, not yet waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The worker: goes on where the shared counters say.
fn work<S: Subject>(
    plan: &Plan,
    shared: &Shared,
    start: Instant,
    ours: &impl Fn(&Template) -> S,
) -> io::Result<()> {
    let template = Template::new(plan.seed);
    let mut ours = ours(&template);
    let mut native = Native::new(template)?;
    let mut generator = Generator::default();
    loop {
        let round = shared.load(ROUND);
        while (shared.load(UNIT) as usize) < plan.units.len() {
            let index = shared.load(UNIT) as usize;
            let unit = &plan.units[index];
            let cases = match unit.kind {
                Kind::Single(_) => plan.cases,
                _ if plan.only_one => 1,
                Kind::Program => plan.cases,
                _ => plan.cases.saturating_mul(FACTOR),
            };
            let first = plan.first + round * cases;
            while shared.load(CASE) < first + cases {
                let number = shared.load(CASE).max(first);
                shared.store(CASE, number);
                one(plan, index, number, shared, &mut generator, &mut native, &mut ours);
                shared.store(CASE, number + 1);
                if plan.soak.is_some_and(|soak| start.elapsed() > soak) {
                    return Ok(());
                }
            }
            shared.store(CASE, 0);
            shared.store(UNIT, index as u64 + 1);
        }
        if plan.soak.is_none() {
            return Ok(());
        }
        shared.store(UNIT, 0);
        shared.store(ROUND, round + 1);
    }
}

fn one(
    plan: &Plan,
    index: usize,
    number: u64,
    shared: &Shared,
    generator: &mut Generator,
    native: &mut dyn Subject,
    ours: &mut dyn Subject,
) {
    let unit = &plan.units[index];
    let Some(case) = make(generator, unit, plan.seed, number) else {
        shared.add(index, NOT_MADE);
        return;
    };
    shared.store(PHASE, ON_HOST);
    let host = native.run(&case);
    shared.store(PHASE, 0);
    let cpu = ours.run(&case);
    shared.add(index, CASES);
    shared.add_many(index, INSTRUCTIONS, ours.steps());
    if matches!(host.event.vector, 1 | 3) {
        shared.add(index, COMPLETED);
    }
    let mut found = differences(&case, (&host, native), (&cpu, ours));
    if matches!(unit.kind, Kind::Single(_)) {
        found.extend(undefined::differences(&case, &cpu, ours));
    }
    if !found.is_empty() && shared.add(index, DIFFERENT) < PRINTED_MAX {
        let mut text = format!("difference in {} ({}-bit)\n", unit.name(), unit.mode.bits());
        text.push_str(&describe(&case));
        for line in &found {
            let _ = writeln!(text, "  ** {line}"); // writing to a String cannot fail
        }
        for (who, outcome) in [("host", &host), ("ours", &cpu)] {
            let (event, rip) = (outcome.event, outcome.state.rip);
            let _ = writeln!(text, "  {who} ended at {rip:#x} with {event}");
        }
        println!("{text}  repeat: {}\n", command(plan, unit, number));
    }
}

/// The case that seed, unit and number name. `None` if it is not to run, or cannot be made.
pub fn make(generator: &mut Generator, unit: &Unit, seed: u64, number: u64) -> Option<Case> {
    let mut rng = unit.rng(seed, number);
    let case = match unit.kind {
        Kind::Single(code) => generator.single(code, unit.mode, &mut rng)?,
        Kind::Sequence => {
            let codes = sequence_codes(unit.mode);
            generator.sequence(codes, unit.mode, &mut rng)
        }
        Kind::Program => generator.program(sequence_codes(unit.mode), &mut rng),
        Kind::Bytes => generator.bytes(unit.mode, &mut rng)?,
    };
    let (first, _) = decode(case.mode, &case.code, case.state.rip);
    (!forms::is_forbidden(&first, case.mode, &case.code)).then_some(case)
}

fn sequence_codes(mode: Mode) -> &'static [Code] {
    use std::sync::OnceLock;
    static CODES: [OnceLock<Vec<Code>>; 3] = [const { OnceLock::new() }; 3];
    let index = mode as usize;
    CODES[index].get_or_init(|| {
        forms::compared(mode).filter(|code| forms::is_sequence_member(*code, mode)).collect()
    })
}

/// The command that repeats a case.
#[must_use]
pub fn command(plan: &Plan, unit: &Unit, number: u64) -> String {
    format!(
        "cargo run -p oracle --release -- --engine {} --seed {} --form {} --mode {} --case {number}",
        plan.engine,
        plan.seed,
        unit.name(),
        unit.mode.bits()
    )
}
