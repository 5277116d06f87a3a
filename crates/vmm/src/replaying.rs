//! `lockstep replay`: repeats a recorded run, checks every mark and digest on the way, and says how
//! far the recording is whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::LogPos;
use engines::EngineKind;
use machine::event::{Console, Output};
use machine::{Machine, MachineError};
use replay::format::{Decoder, End, Entry, Item, LogError};
use replay::{Compared, Comparison, Divergence, EngineDifference, Passed, Progress, Replayer};

use crate::mailbox::Totals;

/// Bytes read from the file at once.
const READ_LEN: usize = 1 << 20;
/// Steps between two looks at the outputs.
const STEPS: u64 = 1 << 22;

/// Why a recording was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read.
    #[error("cannot read recording {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} cannot be replayed", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: LogError,
    },
    /// The file ends within the start state.
    #[error("{} is cut short: it ends within the machine's start state", path.display())]
    NoStart {
        /// The file.
        path: PathBuf,
    },
    /// The start state cannot be restored.
    #[error("{} holds a start state that this build cannot restore", path.display())]
    Start {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MachineError,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] engines::Unavailable),
    /// The console's output cannot be written.
    #[error("cannot write the console's output")]
    Console(#[source] io::Error),
}

/// How a recording ended.
#[derive(Debug, PartialEq, Eq)]
pub enum RecordingEnd {
    /// On purpose: it is whole.
    Whole(End),
    /// In the middle: its process was killed, or its disk was full.
    CutShort,
    /// It is damaged from here on.
    Damaged(LogError),
    /// The machine went another way than the recorded one.
    Diverged(Box<Divergence>),
    /// Two engines made different things of it.
    Different(Box<EngineDifference>),
}

/// What replays a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayWith {
    /// One engine.
    One(EngineKind),
    /// The interpreter and the translator, which are compared at random steps.
    Both,
}

enum Follower {
    One(Box<Replayer>),
    Both(Box<Comparison>),
}

impl Follower {
    fn new(state: Vec<u8>, path: &Path, with: ReplayWith) -> Result<Follower, ReplayError> {
        let start = |source| ReplayError::Start { path: path.to_owned(), source };
        match with {
            ReplayWith::One(kind) => {
                let mut machine = Machine::restore(&state).map_err(start)?;
                machine.set_engine(kind.make()?);
                Ok(Follower::One(Box::new(Replayer::new(machine, LogPos(0)))))
            }
            ReplayWith::Both => {
                EngineKind::Translator.make()?;
                let equip = Arc::new(|machine: &mut Machine| {
                    // It was had before; if the host is short of memory now, there is nothing to compare.
                    let engine = EngineKind::Translator.make();
                    machine.set_engine(engine.expect("memory for another translator"));
                });
                let both = Comparison::new(state, LogPos(0), equip).map_err(start)?;
                Ok(Follower::Both(Box::new(both)))
            }
        }
    }

    fn feed(&mut self, entry: Entry) {
        match self {
            Follower::One(replayer) => replayer.feed(entry),
            Follower::Both(comparison) => comparison.feed(entry),
        }
    }

    fn replayer(&mut self) -> &mut Replayer {
        match self {
            Follower::One(replayer) => replayer,
            Follower::Both(comparison) => comparison.interpreter(),
        }
    }

    fn advance(&mut self) -> Result<Progress, Box<EngineDifference>> {
        match self {
            Follower::One(replayer) => Ok(replayer.advance(STEPS)),
            Follower::Both(comparison) => match comparison.advance() {
                Compared::Equal(progress) => Ok(progress),
                Compared::Different(found) => Err(found),
            },
        }
    }

    fn comparisons(&self) -> u64 {
        match self {
            Follower::One(_) => 0,
            Follower::Both(comparison) => comparison.comparisons(),
        }
    }
}

impl RecordingEnd {
    fn is_a_difference(&self) -> bool {
        matches!(self, RecordingEnd::Diverged(_) | RecordingEnd::Different(_))
    }
}

/// What came out of a replay.
#[derive(Debug)]
pub struct ReplayReport {
    /// How the recording ended.
    pub end: RecordingEnd,
    /// The machine at that point.
    pub totals: Totals,
    /// Entries executed.
    pub entries: LogPos,
    /// Digests that were compared and equal.
    pub digest_count: u64,
    /// Comparisons of two engines.
    pub comparisons: u64,
}

/// Replays the recording in `path`; the serial console's output goes to `console`.
///
/// # Errors
/// A [`ReplayError`] if there is nothing to replay.
pub fn replay(
    path: &Path,
    with: ReplayWith,
    console: &mut dyn Write,
) -> Result<ReplayReport, ReplayError> {
    let read = |source| ReplayError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut decoder = Decoder::new();
    let mut replayer: Option<Follower> = None;
    let mut chunk = vec![0; READ_LEN];
    let mut last_end = None;
    let damage = loop {
        match decoder.poll() {
            Ok(Some(Item::Start(state))) => {
                let mut follower = Follower::new(state, path, with)?;
                decoder.set_start_icount(follower.replayer().machine().icount());
                replayer = Some(follower);
            }
            Ok(Some(Item::Entry(entry))) => {
                let Some(replayer) = &mut replayer else { unreachable!("the start comes first") };
                replayer.feed(entry);
            }
            Ok(None) => {
                if let Some(replayer) = &mut replayer
                    && let Some(end) = execute(replayer, console)?
                {
                    last_end = Some(end);
                    if last_end.as_ref().is_some_and(RecordingEnd::is_a_difference) {
                        break None;
                    }
                }
                let len = file.read(&mut chunk).map_err(read)?;
                if len == 0 {
                    break None;
                }
                decoder.feed(&chunk[..len]);
            }
            Err(error) if replayer.is_none() => {
                return Err(ReplayError::NotALog { path: path.to_owned(), source: error });
            }
            Err(error) => break Some(error),
        }
    };
    let mut follower = replayer.ok_or_else(|| ReplayError::NoStart { path: path.to_owned() })?;
    if !last_end.as_ref().is_some_and(RecordingEnd::is_a_difference)
        && let Some(end) = execute(&mut follower, console)?
    {
        last_end = Some(end);
    }
    let end = match (last_end, damage) {
        (Some(difference), _) if difference.is_a_difference() => difference,
        (_, Some(error)) => RecordingEnd::Damaged(error),
        (Some(end), None) => end,
        (None, None) => RecordingEnd::CutShort,
    };
    console.flush().map_err(ReplayError::Console)?;
    let comparisons = follower.comparisons();
    let replayer = follower.replayer();
    let totals = Totals::of(replayer.machine());
    let (entries, digest_count) = (replayer.executed(), replayer.digest_count());
    Ok(ReplayReport { end, totals, entries, digest_count, comparisons })
}

/// Executes everything that was fed. Says how the recording ended, if it did.
fn execute(
    follower: &mut Follower,
    console: &mut dyn Write,
) -> Result<Option<RecordingEnd>, ReplayError> {
    let mut end = None;
    loop {
        let progress = match follower.advance() {
            Ok(progress) => progress,
            Err(found) => return Ok(Some(RecordingEnd::Different(found))),
        };
        for (_, output) in follower.replayer().take_outputs() {
            if let Output::ConsoleOutput { console: Console::Serial, bytes } = output {
                console.write_all(&bytes).map_err(ReplayError::Console)?;
            }
        }
        match progress {
            Progress::Running | Progress::Passed(Passed::Armed(_) | Passed::Disarmed(_)) => {}
            Progress::Passed(Passed::End(why)) => end = Some(RecordingEnd::Whole(why)),
            Progress::Waiting => return Ok(end),
            Progress::Diverged(divergence) => {
                return Ok(Some(RecordingEnd::Diverged(divergence)));
            }
        }
    }
}
