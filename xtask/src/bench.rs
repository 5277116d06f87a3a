//! `cargo xtask bench`: packages, images and release builds, then `crates/bench`, which measures.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, cargo, target_dir};
use crate::{images, packages, qemu};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for the benchmark: sections (cpu, boot, log, failover, ft, suite, net; all of them by default)
    /// and flags such as `--json FILE`, `--pairs N` or `--workload NAME`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench_args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure(packages::TRIALS)?;
    let needs = Needs::of(&args.bench_args);
    if needs.qemu {
        qemu::try_install();
    }
    let images = images::ensure(&needs.images)?;
    let packages = ["--package", "lockstep", "--package", "bench"];
    process::run(cargo(["build", "--release"]).args(packages))?;
    let built = target_dir().join("release");
    let mut command = Command::new(built.join("bench"));
    command.arg("--lockstep").arg(built.join("lockstep"));
    command.arg("--images").arg(images);
    command.arg("--work").arg(target_dir().join("bench"));
    process::run(command.args(&args.bench_args))
}

/// What the sections that are asked for need.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    images: Vec<images::Wanted>,
    qemu: bool,
}

impl Needs {
    fn of(args: &[String]) -> Needs {
        // A workload may be called as a section is.
        let is_value = |at: usize| at > 0 && args[at - 1] == "--workload";
        let words = || args.iter().enumerate().filter(|(at, _)| !is_value(*at)).map(|(_, arg)| arg);
        let names = |sections: &[&str]| words().any(|word| sections.contains(&word.as_str()));
        let (of_ours, of_all) = (["cpu", "boot", "log", "failover", "ft"], ["suite", "net"]);
        let everything = !names(&of_ours) && !names(&of_all);
        let mut images = Vec::new();
        if everything || names(&of_ours) {
            images.extend([images::BARE, images::REDIS]);
        }
        let with_others = everything || names(&of_all);
        if with_others || names(&["ft"]) {
            images.push(images::SUITE);
        }
        Needs { images, qemu: with_others && !names(&["--without-qemu"]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(line: &str) -> Needs {
        Needs::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<String>>())
    }

    #[test]
    fn a_section_needs_its_own_images_only() {
        let ours = vec![images::BARE, images::REDIS];
        assert_eq!(needs("cpu boot"), Needs { images: ours, qemu: false });
        let suite = Needs { images: vec![images::SUITE], qemu: true };
        assert_eq!(needs("suite --workload boot --rounds 1"), suite);
        assert_eq!(needs("net --without-qemu"), Needs { qemu: false, ..suite });
        // A guest of the pair has a compiler.
        let all = vec![images::BARE, images::REDIS, images::SUITE];
        assert_eq!(needs("ft --pairs 9"), Needs { images: all, qemu: false });
    }

    #[test]
    fn without_a_section_everything_is_needed() {
        let images = vec![images::BARE, images::REDIS, images::SUITE];
        assert_eq!(needs("--json out"), Needs { images, qemu: true });
    }
}
