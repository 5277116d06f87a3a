//! `lockstep replay`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use vmm::replaying::{RecordingEnd, ReplayReport, ReplayWith, replay};

use crate::exit::Exit;
use crate::options::EngineArgs;
use crate::run::{check_writable, counts, engine_name, write_json};

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A recording, as `lockstep run --record` makes it.
    log: PathBuf,
    /// Print what the guest wrote to its serial console.
    #[arg(long)]
    console: bool,
    /// Write a summary to FILE.
    #[arg(long, value_name = "FILE")]
    json_to: Option<PathBuf>,
    /// Replay on the interpreter and on the translator at once, and compare them at random steps, whatever
    /// --engine says.
    #[arg(long)]
    compare: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<Exit> {
    let began = Instant::now();
    let mut console: Box<dyn Write> =
        if args.console { Box::new(io::stdout()) } else { Box::new(io::sink()) };
    args.json_to.as_deref().map(check_writable).transpose()?;
    let with = if args.compare { ReplayWith::Both } else { ReplayWith::One(args.engine.kind()) };
    let report = replay(&args.log, with, &mut *console)?;
    let (exit, why) = verdict(&report);
    if let Some(path) = &args.json_to {
        let summary = json!({
            "reason": why,
            "exit_status": exit.code(),
            "seconds": began.elapsed().as_secs_f64(),
            "instructions": report.totals.icount,
            "guest_seconds": Duration::from_nanos(report.totals.guest_ns).as_secs_f64(),
            "digest": report.totals.digest.to_string(),
            "cpu": report.totals.cpu.to_string(),
            "entries": report.entries,
            "digests_compared": report.digest_count,
            "engines_compared": report.comparisons,
            "engine": engine_name(&report.totals),
            "counts": counts(&report.totals),
        });
        write_json(path, &summary)?;
    }
    args.engine.tell(&report.totals);
    let steps = report.totals.icount;
    let compared = report.digest_count;
    if exit == Exit::Done {
        log::info!("{why} at step {steps}; {compared} digests compared, all equal");
        if args.compare {
            log::info!("two engines compared {} times, always equal", report.comparisons);
        }
    } else {
        log::error!("{}: {why}; replayed up to step {steps}", args.log.display());
    }
    Ok(exit)
}

fn verdict(report: &ReplayReport) -> (Exit, String) {
    match &report.end {
        RecordingEnd::Whole(replay::format::End::MachineOff) => {
            (Exit::Done, "the machine went off".to_owned())
        }
        RecordingEnd::Whole(replay::format::End::RecordingStopped) => {
            (Exit::Done, "the recording was stopped".to_owned())
        }
        RecordingEnd::CutShort => (Exit::Damaged, "the recording is cut short".to_owned()),
        RecordingEnd::Damaged(error) => (Exit::Damaged, vmm::describe(error)),
        RecordingEnd::Diverged(divergence) => (Exit::Diverged, divergence.to_string()),
        RecordingEnd::Different(found) => (Exit::Diverged, found.to_string()),
    }
}
