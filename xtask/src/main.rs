//! Chores of the workspace: `cargo xtask check`, `test`, `demo`, `soak`,
//! `bench`.
//!
//! Everything runs from the workspace's root, whatever the current directory is. Each command is a
//! module; `packages` and `images` hold what several of them need before they can start.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod images;
mod links;
mod packages;
mod process;
mod qemu;
mod real_programs;
mod test;
mod trials;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the Lockstep workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every check, or only those named, in the order given.
    Check(check::Args),
    /// Install what the tests need, build the guest images and run all tests.
    Test(test::Args),
    /// Show a Debian VM with redis outliving its host.
    Demo(trials::DemoArgs),
    /// Run the long tests: simulator, split brain, recordings and failovers; or the one named.
    Soak(trials::SoakArgs),
    /// Measure the engines, protected VMs, and guests against native programs and QEMU, or only what is named.
    Bench(bench::Args),
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Command::Check(args) => check::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => trials::demo(&args).map(|()| ExitCode::SUCCESS),
        Command::Soak(args) => trials::soak(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
