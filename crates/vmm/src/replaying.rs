//! `lockstep replay`: repeats a recorded run, checks every mark and digest on the way, and says how
//! far the recording is whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base::LogPos;
use engines::EngineKind;
use machine::event::{Console, Output};
use machine::{Machine, MachineError};
use replay::format::{Decoder, End, Item, LogError};
use replay::{Divergence, Passed, Progress, Replayer};

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
}

/// Replays the recording in `path`; the serial console's output goes to `console`.
///
/// # Errors
/// A [`ReplayError`] if there is nothing to replay.
pub fn replay(
    path: &Path,
    kind: EngineKind,
    console: &mut dyn Write,
) -> Result<ReplayReport, ReplayError> {
    let read = |source| ReplayError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut decoder = Decoder::new();
    let mut replayer: Option<Replayer> = None;
    let mut chunk = vec![0; READ_LEN];
    let mut last_end = None;
    let damage = loop {
        match decoder.poll() {
            Ok(Some(Item::Start(state))) => {
                let mut machine = Machine::restore(&state)
                    .map_err(|source| ReplayError::Start { path: path.to_owned(), source })?;
                machine.set_engine(kind.make()?);
                decoder.set_start_icount(machine.icount());
                replayer = Some(Replayer::new(machine, LogPos(0)));
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
                    if matches!(last_end, Some(RecordingEnd::Diverged(_))) {
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
    let mut replayer = replayer.ok_or_else(|| ReplayError::NoStart { path: path.to_owned() })?;
    if let Some(end) = execute(&mut replayer, console)? {
        last_end = Some(end);
    }
    let end = match (last_end, damage) {
        (Some(diverged @ RecordingEnd::Diverged(_)), _) => diverged,
        (_, Some(error)) => RecordingEnd::Damaged(error),
        (Some(end), None) => end,
        (None, None) => RecordingEnd::CutShort,
    };
    console.flush().map_err(ReplayError::Console)?;
    let machine = replayer.machine();
    let totals = Totals::of(machine);
    let (entries, digest_count) = (replayer.executed(), replayer.digest_count());
    Ok(ReplayReport { end, totals, entries, digest_count })
}

/// Executes everything that was fed. Says how the recording ended, if it did.
fn execute(
    replayer: &mut Replayer,
    console: &mut dyn Write,
) -> Result<Option<RecordingEnd>, ReplayError> {
    let mut end = None;
    loop {
        let progress = replayer.advance(STEPS);
        for (_, output) in replayer.take_outputs() {
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
