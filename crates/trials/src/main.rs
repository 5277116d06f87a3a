//! Runs the real `lockstep` processes on a lab of network namespaces: the demo, failovers at random
//! moments, split brain, power-on. `cargo xtask demo` and `cargo xtask soak` call it; so does whoever wants to
//! see one run.

mod compare;
mod demo;
mod kill;
mod power;
mod replay;
mod rolling;
mod split;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use engines::{EngineKind, UnknownKind};
use testbed::Lab;
use testbed::pair::{PairConfig, work_folder};

#[derive(Debug, Parser)]
#[command(about = "Trials of protected VMs on a lab of network namespaces")]
struct Cli {
    #[command(flatten)]
    site: SiteArgs,
    #[command(subcommand)]
    trial: Trial,
}

/// What all trials need.
#[derive(Debug, Args)]
struct SiteArgs {
    /// The `lockstep` binary.
    #[arg(long)]
    lockstep: PathBuf,
    /// Folder of guest images; most trials use `redis`.
    #[arg(long)]
    images: PathBuf,
    /// Folder for what the trial writes. It is removed at the end if all went well.
    #[arg(long)]
    work: PathBuf,
    /// Detection timeout, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    detection_ms: u64,
    /// What runs the guest's code on hosts A and B, such as `translator,interpreter`. [default: what
    /// LOCKSTEP_ENGINE says, on both]
    #[arg(long, value_name = "A,B")]
    engines: Option<Engines>,
}

/// An engine for each side.
#[derive(Clone, Copy, Debug)]
struct Engines([EngineKind; 2]);

impl FromStr for Engines {
    type Err = String;

    fn from_str(text: &str) -> Result<Engines, String> {
        let (a, b) =
            text.split_once(',').ok_or("expected two engines, with a comma between them")?;
        let kind = |name: &str| name.parse().map_err(|error: UnknownKind| error.to_string());
        Ok(Engines([kind(a)?, kind(b)?]))
    }
}

#[derive(Debug, Subcommand)]
enum Trial {
    /// Boots Debian with redis on a pair, drives it, kills the primary, and tells what happened.
    Demo {
        /// Print the same as one JSON object on the last line of standard output.
        #[arg(long)]
        json: bool,
    },
    /// Kills primary and backup at random moments under clients that check every reply.
    Kill {
        /// How many failovers.
        #[arg(long, default_value_t = 3)]
        failovers: u32,
        /// What all choices follow from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// All failovers with one pair, over connections that stay open; without it, each has a pair
        /// of its own.
        #[arg(long)]
        rolling: bool,
    },
    /// Records a busy server and replays the recordings.
    Replay {
        /// How many recordings.
        #[arg(long, default_value_t = 1)]
        recordings: u32,
        /// Length of the load in each, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// What the load follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many to make and replay at a time.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
        jobs: u32,
        /// The share of one job, as FIRST/STEP.
        #[arg(long, hide = true)]
        share: Option<replay::Share>,
    },
    /// Runs a busy server on both engines at once and compares them all the time.
    Compare {
        /// What serves, which is an image's name.
        #[arg(long, value_enum, default_value = "workbench")]
        server: compare::Server,
        /// Length of the load, in seconds.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// What the load follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Cuts links between hosts and arbiter, holds and loses what is on its way, starts a VM twice, and
    /// looks who goes live and what is on the disk.
    Split {
        /// Only these cases, counted from 0.
        #[arg(long, value_delimiter = ',')]
        case: Vec<usize>,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("trials: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Process ids are those of the lab, where every first process is number 1, so that jobs that run at once
/// need names of their own.
fn work_name(trial: &Trial) -> String {
    match trial {
        Trial::Replay { share: Some(share), .. } => format!("trial-{share}"),
        _ => "trial".to_owned(),
    }
}

fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Trial::Replay { jobs: jobs @ 2.., share: None, .. } = cli.trial {
        return replay::run_jobs(jobs);
    }
    if let Some(status) = testbed::enter(std::env::args_os().skip(1))? {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let lab = Lab::new()?;
    let work =
        work_folder(&cli.site.work, &work_name(&cli.trial)).context("cannot make a work folder")?;
    let image = match cli.trial {
        Trial::Compare { server, .. } => server.image(),
        _ => "redis",
    };
    let config = PairConfig {
        lockstep: cli.site.lockstep.canonicalize().context("no lockstep binary")?,
        image: cli.site.images.join(image).canonicalize().context("the image is missing")?,
        work: work.clone(),
        detection_ms: cli.site.detection_ms,
        append: None,
        run_flags: Vec::new(),
        detours: Default::default(),
        engines: cli.site.engines.map(|Engines(engines)| engines),
    };
    let outcome = match cli.trial {
        Trial::Demo { json } => demo::run(&lab, config, json),
        Trial::Kill { failovers, seed, rolling: false } => kill::run(&lab, config, failovers, seed),
        Trial::Kill { failovers, seed, rolling: true } => {
            rolling::run(&lab, config, failovers, seed)
        }
        Trial::Replay { recordings, seconds, seed, share, .. } => {
            let share = share.unwrap_or(replay::Share::ALL);
            replay::run(&lab, &config, share, (recordings, seconds, seed))
        }
        Trial::Compare { server, seconds, seed } => {
            compare::run(&lab, &config, server, (seconds, seed))
        }
        Trial::Split { case } => split::run(&lab, &config, &case),
    };
    match &outcome {
        Ok(()) => std::fs::remove_dir_all(&work).context("cannot remove the work folder")?,
        Err(_) => eprintln!("trials: what the processes wrote is in {}", work.display()),
    }
    outcome.map(|()| ExitCode::SUCCESS)
}
