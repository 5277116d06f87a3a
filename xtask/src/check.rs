//! `cargo xtask check`: everything that a change has to pass.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::process::{self, cargo};
use crate::{links, test};

/// What to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checks to run; all of them when none is named.
    parts: Vec<Part>,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The formatting of the sources.
    Fmt,
    /// The compiler's and clippy's warnings, in all targets.
    Clippy,
    /// The API documentation and its links.
    Docs,
    /// The links between the Markdown files.
    Links,
    /// `cargo xtask test`.
    Test,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    for part in parts {
        match part {
            Part::Fmt => check_fmt()?,
            Part::Clippy => check_clippy()?,
            Part::Docs => check_docs()?,
            Part::Links => links::check()?,
            Part::Test => {
                let code = test::run(&test::Args::default())?;
                if code != ExitCode::SUCCESS {
                    return Ok(code);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check_fmt() -> Result<()> {
    process::run(&mut cargo(["fmt", "--all", "--check"]))
}

fn check_clippy() -> Result<()> {
    // Build scripts and procedural macros are then those that the tests use.
    process::run(&mut cargo([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny=warnings",
    ]))
}

fn check_docs() -> Result<()> {
    let mut doc =
        cargo(["doc", "--release", "--workspace", "--no-deps", "--document-private-items"]);
    process::run(doc.env("RUSTDOCFLAGS", "--deny=warnings"))
}
