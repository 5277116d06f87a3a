//! The `lockstep` command.
//!
//! Parsing touches nothing outside; each command then turns its flags into a checked configuration
//! and hands it to the crate that does the work.
#![forbid(unsafe_code)]

mod backup;
mod console;
mod diagnostics;
mod disk;
mod documents;
mod exit;
mod find;
mod image;
mod keys;
mod options;
mod power;
mod replay;
mod run;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs a Linux VM on two hosts in lockstep: when one host dies, the other goes on at the same
/// instruction.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    /// Say more about what happens, on standard error; twice for even more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Power a VM on, alone or protected by a backup.
    Run(Box<run::RunArgs>),
    /// Wait for a primary, follow its VM and take it over if that host fails.
    Backup(Box<backup::BackupArgs>),
    /// Serve disks to both hosts of a pair, and decide which of them goes on.
    Disk(disk::DiskArgs),
    /// Say how VMs are, on this host or wherever they run.
    Status(status::StatusArgs),
    /// Connect to a VM's console, and stay connected when it moves.
    Console(console::ConsoleArgs),
    /// Press a VM's power or reset button, or cut its power.
    Power(power::PowerArgs),
    /// Repeat a recorded run and check it.
    Replay(replay::ReplayArgs),
    /// Build guest images from Debian packages.
    Image(image::ImageArgs),
    /// Make the key that all hosts of a site share.
    Keys(keys::KeysArgs),
    /// Print a shell's completions.
    Completions(documents::CompletionsArgs),
    /// Write the manual pages.
    Man(documents::ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    diagnostics::start(cli.verbose);
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Backup(args) => backup::run(*args),
        Command::Disk(args) => disk::run(args),
        Command::Status(args) => status::run(&args),
        Command::Console(args) => console::run(&args),
        Command::Power(args) => power::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Image(args) => image::run(args),
        Command::Keys(args) => keys::run(&args),
        Command::Completions(args) => documents::completions(&args),
        Command::Man(args) => documents::man(&args),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            diagnostics::print_error(&error);
            exit::of_error(&error).into()
        }
    }
}
