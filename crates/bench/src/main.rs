//! Measurements: `cargo xtask bench` runs them. What they measure and how is in `docs/bench.md`.
#![forbid(unsafe_code)]

mod cpu;
mod ft;
mod guest;
mod protected;
mod report;
mod site;
mod stats;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use engines::EngineKind;
use serde_json::{Value, json};
use testbed::Lab;
use testbed::pair::work_folder;

use crate::site::Site;

#[derive(Debug, Parser)]
#[command(about = "Measures the CPU, and protected VMs on a lab of network namespaces")]
struct Cli {
    /// The `lockstep` binary.
    #[arg(long)]
    lockstep: PathBuf,
    /// Folder of guest images; `bare` and `redis` are used.
    #[arg(long)]
    images: PathBuf,
    /// Folder for what the processes write. It is removed at the end if all went well.
    #[arg(long)]
    work: PathBuf,
    /// What to measure. [default: everything]
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Write the figures to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What runs the guest in `cpu` and `boot`: auto, interpreter or translator. Several take turns, and the last
    /// one is set against the first; `suite` and `net` take the last one. May be repeated. [default: the interpreter
    /// and, where the host has it, the translator; auto in `suite` and `net`]
    #[arg(long)]
    engine: Vec<EngineKind>,
    /// Boots to take the median of.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    boots: u32,
    /// Failovers to take the median of.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    failovers: u32,
    /// Pairs of a protected and an unprotected run.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds over which a rate is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    window: u64,
    /// Detection timeout, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    detection_ms: u64,
    #[command(flatten)]
    suite: suite::SuiteArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// The CPU's speed on integer workloads.
    Cpu,
    /// Time to a shell.
    Boot,
    /// Log payload, idle and under load.
    Log,
    /// Failover times.
    Failover,
    /// What protection costs on CPU-bound work.
    Ft,
    /// Programs in the guest, against the same natively and in QEMU.
    Suite,
    /// Servers in the guest, against the same natively and in QEMU.
    Net,
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Section::Cpu => "cpu",
            Section::Boot => "boot",
            Section::Log => "log",
            Section::Failover => "failover",
            Section::Ft => "ft",
            Section::Suite => "suite",
            Section::Net => "net",
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(status) = testbed::enter(std::env::args_os().skip(1))? {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
    }
    let lab = Lab::new()?;
    let work = work_folder(&cli.work, "bench").and_then(|work| work.canonicalize());
    let work = work.context("cannot make a work folder")?;
    let site = Site {
        lockstep: cli.lockstep.canonicalize().context("no lockstep binary")?,
        images: cli.images.canonicalize().context("no guest images")?,
        work: work.clone(),
        detection_ms: cli.detection_ms,
    };
    let figures = measure(&cli, &lab, &site).inspect_err(|_| {
        eprintln!("bench: what the processes wrote is in {}", work.display());
    })?;
    std::fs::remove_dir_all(&work).context("cannot remove the work folder")?;
    if let Some(path) = &cli.json {
        std::fs::write(path, format!("{figures:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(cli: &Cli, lab: &Lab, site: &Site) -> Result<Value> {
    let window = Duration::from_secs(cli.window);
    let bare = site.images.join("bare");
    let (machine, described) = describe_machine();
    let mut figures = json!({ "machine": described });
    let engine = cli.engine.last().copied().unwrap_or_default();
    let mut engines = cli.engine.clone();
    if engines.is_empty() {
        engines.push(EngineKind::Interpreter);
        engines.extend(EngineKind::Translator.make().is_ok().then_some(EngineKind::Translator));
    }
    let wanted = if cli.sections.is_empty() { Section::value_variants() } else { &cli.sections };
    for section in wanted {
        figures[section.name()] = match section {
            Section::Cpu => cpu::measure(&bare, &engines),
            Section::Boot => cpu::measure_boot(&bare, &engines, cli.boots),
            Section::Log => protected::measure_log(lab, site, window),
            Section::Failover => protected::measure_failover(lab, site, cli.failovers),
            Section::Ft => ft::measure(lab, site, cli.pairs, window),
            Section::Suite => suite::measure(site, &cli.suite, engine, &machine),
            Section::Net => suite::net::measure(lab, site, &cli.suite, engine, &machine),
        }
        .with_context(|| format!("cannot measure {}", section.name()))?;
    }
    Ok(figures)
}

/// The host, and how busy others keep it: figures from a busy host are worth less.
fn describe_machine() -> (String, Value) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let of_cpu = |what: &str| {
        let line = cpuinfo.lines().find(|line| line.split('\t').next() == Some(what));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value)
    };
    let (model, family, number) = (of_cpu("model name"), of_cpu("cpu family"), of_cpu("model"));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let loads = read("/proc/loadavg");
    let load: f64 = loads.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let text = format!(
        "{model} (family {family}, model {number}), {cores} cores, Linux {kernel}, load average {load} at the start"
    );
    println!("{text}");
    let figures = json!({
        "cpu": model, "family": family, "model": number, "cores": cores, "kernel": kernel,
        "load_average_at_start": load,
    });
    (text, figures)
}
