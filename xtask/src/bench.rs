//! `cargo xtask bench`: packages, images and release builds, then `crates/bench`, which measures.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, cargo, target_dir};
use crate::{images, packages};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for the benchmark: sections (cpu, boot, log, failover, ft; all of them by default) and
    /// flags such as `--json FILE`, `--pairs N` or `--window SECONDS`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench_args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure(packages::TRIALS)?;
    let images = images::ensure(&[images::BARE, images::REDIS])?;
    let packages = ["--package", "lockstep", "--package", "bench"];
    process::run(cargo(["build", "--release"]).args(packages))?;
    let built = target_dir().join("release");
    let mut command = Command::new(built.join("bench"));
    command.arg("--lockstep").arg(built.join("lockstep"));
    command.arg("--images").arg(images);
    command.arg("--work").arg(target_dir().join("bench"));
    process::run(command.args(&args.bench_args))
}
