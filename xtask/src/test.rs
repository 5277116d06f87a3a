//! `cargo xtask test`: all tests, with what they need in place.
//!
//! The last line on standard output is `N passed, N failed, N skipped`, summed over every test
//! binary and documentation test.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::process::{cargo, show};
use crate::{images, packages};

/// Which tests to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Arguments for `cargo test` in place of `--workspace`, such as `-p replay busy_server`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure(packages::TEST)?;
    let images = images::ensure(images::TEST)?;
    run_tests(args, &images)
}

fn run_tests(args: &Args, images: &Path) -> Result<ExitCode> {
    let mut command = cargo(["test", "--release", "--no-fail-fast"]);
    if args.cargo_args.is_empty() {
        command.arg("--workspace");
    }
    command.args(&args.cargo_args);
    let line = show(&command);
    eprintln!("+ {line}");

    command.env("LOCKSTEP_IMAGES", images).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {line}"))?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut totals = Totals::default();
    let mut reader = BufReader::new(stdout);
    let mut text = Vec::new();
    // By bytes, because a failing test may print anything.
    while reader.read_until(b'\n', &mut text).context("cannot read the tests' output")? > 0 {
        std::io::stdout().write_all(&text).context("cannot write to standard output")?;
        totals.add_line(&String::from_utf8_lossy(&text));
        text.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for {line}"))?;

    if !status.success() && totals.failed == 0 {
        // It did not compile, or a test's process died before it could say how it went.
        eprintln!("{line}: {status}");
        totals.failed = 1;
    }
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped);
    let good = status.success() && totals.failed == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The sum over the test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Totals {
    /// Adds a test binary's closing line; any other line changes nothing.
    fn add_line(&mut self, line: &str) {
        let Some(rest) = line.trim_end().strip_prefix("test result: ") else { return };
        let Some((_, counts)) = rest.split_once(". ") else { return };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_test_binaries_are_summed() {
        let mut totals = Totals::default();
        totals.add_line("running 3 tests\n");
        totals.add_line("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s\n");
        totals.add_line("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.02s\n");
        assert_eq!(totals, Totals { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_tests_own_output_is_not_counted() {
        let mut totals = Totals::default();
        totals.add_line("  test result: ok. 3 passed; 0 failed\n");
        totals.add_line("test result: nonsense\n");
        assert_eq!(totals, Totals::default());
    }
}
