//! `cargo xtask demo` and `cargo xtask soak`: the real processes on a lab of network namespaces.
//!
//! Packages and the guest image come first; after that nothing needs root. The work is done by
//! `crates/trials`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::process::{self, cargo, target_dir};
use crate::{images, packages, real_programs};

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Print the result as one JSON object on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// How long to go on.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SoakArgs {
    #[command(subcommand)]
    only: Option<Only>,
    /// How many failovers of primary or backup at random moments.
    #[arg(long, default_value_t = 50)]
    failovers: u32,
    /// How many recordings of a busy server to replay.
    #[arg(long, default_value_t = 10)]
    recordings: u32,
    /// Length of each, in seconds.
    #[arg(long, default_value_t = 300)]
    recording_s: u64,
    /// How many runs of the simulator.
    #[arg(long, default_value_t = 20_000)]
    simulations: u64,
    /// How many million instructions of random programs on both engines.
    #[arg(long, default_value_t = 10_000)]
    duel_volume: u64,
    /// How long both engines run a busy server, in seconds.
    #[arg(long, default_value_t = 600)]
    compare_s: u64,
    /// What all choices follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A long test that is run when it is named.
#[derive(Debug, clap::Subcommand)]
enum Only {
    /// Run a busy server on both engines at once and compare them all the time.
    Compare {
        /// Length of the load, in seconds.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// What the load follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run random programs on both engines, and some of them on the host's CPU too.
    Duel {
        /// How many million instructions on both engines; a hundredth as many come on the host's CPU too.
        #[arg(long, default_value_t = 10_000)]
        volume: u64,
        /// The first program.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run OpenSSL, gcc, CPython's tests, SQLite and perl inside a guest and check their answers.
    RealPrograms(real_programs::Args),
}

/// A program that the host's CPU runs too has some 36,000 instructions.
const NATIVE_PROGRAMS_PER_100_MILLION: u64 = 3000;

pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    let mut command = trials()?;
    command.arg("demo");
    if args.json {
        command.arg("--json");
    }
    process::run(&mut command)
}

pub(crate) fn soak(args: &SoakArgs) -> Result<ExitCode> {
    match &args.only {
        None => {}
        Some(Only::Compare { seconds, seed }) => return compare(*seconds, *seed),
        Some(Only::Duel { volume, seed }) => return duel(*volume, *seed),
        Some(Only::RealPrograms(args)) => return real_programs::run(args),
    }
    let seed = args.seed.to_string();
    let mut simulator = cargo(["run", "--release", "--package", "sim"]);
    simulator.args(["--", "--runs", &args.simulations.to_string(), "--seed", &seed]);
    process::run(&mut simulator)?;
    process::run(trials()?.arg("split"))?;
    let recordings = ["--recordings", &args.recordings.to_string()];
    let length = ["--seconds", &args.recording_s.to_string()];
    let jobs = std::thread::available_parallelism().map_or(1, |count| count.get()).to_string();
    let mut replay = trials()?;
    replay.arg("replay").args(recordings).args(length).args(["--seed", &seed, "--jobs", &jobs]);
    process::run(&mut replay)?;
    let failovers = ["--failovers", &args.failovers.to_string()];
    process::run(trials()?.arg("kill").args(failovers).args(["--seed", &seed]))?;
    process::run(trials()?.args(["kill", "--rolling"]).args(failovers).args(["--seed", &seed]))?;
    duel(args.duel_volume, args.seed)?;
    compare(args.compare_s, args.seed)
}

fn compare(seconds: u64, seed: u64) -> Result<ExitCode> {
    packages::ensure(packages::COMPARE)?;
    images::ensure(&[images::WORKBENCH])?;
    let (seconds, seed) = (seconds.to_string(), seed.to_string());
    process::run(trials()?.args(["compare", "--seconds", &seconds, "--seed", &seed]))?;
    Ok(ExitCode::SUCCESS)
}

fn duel(volume: u64, seed: u64) -> Result<ExitCode> {
    for engine in ["interpreter", "translator"] {
        let mut native = cargo(["run", "--release", "--package", "oracle", "--bin", "oracle"]);
        native.args(["--", "--form", "program", "--engine", engine]);
        let cases = volume.div_ceil(100).saturating_mul(NATIVE_PROGRAMS_PER_100_MILLION) / 100;
        native.args(["--cases", &cases.to_string(), "--seed", &seed.to_string()]);
        process::run(&mut native)?;
    }
    let mut duel = cargo(["run", "--release", "--package", "oracle", "--bin", "duel"]);
    duel.args(["--", "--volume", &volume.to_string(), "--seed", &seed.to_string()]);
    process::run(&mut duel)?;
    Ok(ExitCode::SUCCESS)
}

/// The built trials, with everything that they need in place.
fn trials() -> Result<Command> {
    packages::ensure(packages::TRIALS)?;
    let images = images::ensure(&[images::REDIS])?;
    process::run(&mut cargo([
        "build",
        "--release",
        "--package",
        "lockstep",
        "--package",
        "trials",
    ]))?;
    let built = target_dir().join("release");
    let mut command = Command::new(built.join("trials"));
    let flag = |command: &mut Command, name: &str, path: &Path| {
        command.arg(name).arg(path);
    };
    flag(&mut command, "--lockstep", &built.join("lockstep"));
    flag(&mut command, "--images", &images);
    flag(&mut command, "--work", &target_dir().join("trials"));
    Ok(command)
}
