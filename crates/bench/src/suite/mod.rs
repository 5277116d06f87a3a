//! The suite: the same programs natively, in guests of Lockstep and in guests of QEMU.

mod marks;
pub(crate) mod net;
mod session;
mod subjects;
mod table;
mod workloads;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use engines::EngineKind;
use serde_json::{Value, json};

use self::marks::Mark;
use self::session::{Session, Spent, follow};
use self::subjects::{NativeDisk, QEMU, Stage, Subject, qemu_version};
use self::table::Figures;
use self::workloads::{BOOT, WORKLOADS, Workload};
use crate::report;
use crate::site::Site;

/// What to run, and by whom.
#[derive(Debug, clap::Args)]
pub(crate) struct SuiteArgs {
    /// Workloads of `suite`: their names are in docs/performance.md, and `boot` is one more. May be repeated.
    /// [default: all]
    #[arg(long = "workload", value_name = "NAME")]
    workloads: Vec<String>,
    /// Leave QEMU out of `suite` and `net`.
    #[arg(long)]
    without_qemu: bool,
    /// Have QEMU replay what it recorded, too; it takes as long as all the rest of `suite`.
    #[arg(long)]
    qemu_replay: bool,
    /// Rounds of `suite` and `net` to take the median of.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Rounds of `suite` and `net` that QEMU takes part in, from the first one on. [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    qemu_rounds: Option<u32>,
    /// One more flag for `lockstep run` in `suite` and `net`, such as --run-flag=--seed=1. May be repeated.
    #[arg(long = "run-flag", value_name = "FLAG", allow_hyphen_values = true)]
    run_flags: Vec<String>,
    /// Write the tables of `suite` and `net` into this document, if everything was measured.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl SuiteArgs {
    fn is_whole(&self) -> bool {
        self.workloads.is_empty()
    }

    fn rounds_text(&self) -> String {
        let rounds =
            |count| if count == 1 { "one round".to_owned() } else { format!("{count} rounds") };
        match self.qemu_rounds.filter(|of_qemu| *of_qemu < self.rounds && !self.without_qemu) {
            Some(of_qemu) => format!("{} ({} of QEMU)", rounds(self.rounds), rounds(of_qemu)),
            None => rounds(self.rounds),
        }
    }

    /// Whether it is somebody's turn in a round, the first of which is 1.
    fn is_turn(&self, is_qemu: bool, round: u32) -> bool {
        !is_qemu || self.qemu_rounds.is_none_or(|rounds| round <= rounds)
    }

    /// QEMU's version, if it takes part.
    fn qemu(&self) -> Option<String> {
        if self.without_qemu {
            return None;
        }
        let version = qemu_version();
        if version.is_none() {
            eprintln!("bench: there is no {QEMU}, so it is left out");
        }
        version
    }

    fn stage(&self, site: &Site, name: &str, engine: EngineKind) -> Result<Stage> {
        Stage::new(site, site.folder(name)?, engine, self.run_flags.clone())
    }

    fn write_report(&self, part: &str, text: &str) -> Result<()> {
        match &self.report {
            Some(path) if self.is_whole() => report::write(path, part, text),
            _ => Ok(()),
        }
    }
}

/// The suite's workloads and the boot, in rounds; `machine` describes this host.
pub(crate) fn measure(
    site: &Site,
    args: &SuiteArgs,
    engine: EngineKind,
    machine: &str,
) -> Result<Value> {
    let workloads = chosen(&args.workloads)?;
    let with_boot = args.is_whole() || args.workloads.iter().any(|name| name == BOOT);
    let qemu = args.qemu();
    let takes_part = |subject: &Subject| match subject {
        Subject::QemuReplay => qemu.is_some() && args.qemu_replay,
        subject => qemu.is_some() || !subject.is_qemu(),
    };
    let subjects: Vec<Subject> = Subject::ALL.into_iter().filter(takes_part).collect();
    let guests: Vec<Subject> =
        subjects.iter().copied().filter(|subject| *subject != Subject::Native).collect();
    let stage = args.stage(site, "suite", engine)?;
    let mut run = Run { stage: &stage, figures: Figures::default(), answers: BTreeMap::new() };
    for round in 1..=args.rounds {
        let is_turn = |subject: &&Subject| args.is_turn(subject.is_qemu(), round);
        for subject in subjects.iter().filter(is_turn) {
            eprintln!("suite: round {round} of {}, {}", args.rounds, subject.name());
            if !workloads.is_empty() {
                run.workloads(*subject, &workloads)
                    .with_context(|| format!("cannot measure {}", subject.name()))?;
            }
        }
        if with_boot {
            let guests: Vec<Subject> = guests.iter().filter(is_turn).copied().collect();
            run.boots(&guests)?;
        }
    }
    let Run { figures, .. } = run;
    let text = tables(&figures, &workloads, &guests, with_boot);
    println!("\nCPU time over native CPU time, median of {}\n\n{text}", args.rounds_text());
    let with = qemu.as_ref().map_or("without QEMU".to_owned(), |version| format!("QEMU {version}"));
    let head = format!("{machine}; {with}; median of {}.", args.rounds_text());
    args.write_report("suite", &format!("{head}\n\n{text}"))?;
    Ok(to_json(&figures, &workloads, &subjects, qemu.as_deref()))
}

/// What is being measured.
struct Run<'a> {
    stage: &'a Stage,
    figures: Figures,
    /// What each workload computed where it ran first.
    answers: BTreeMap<String, String>,
}

/// The kernel command lines that boots are measured with: the image's, and as little as possible.
const BOOTS: [&str; 2] = ["as the image has it", "console and root only"];

impl Run<'_> {
    /// All of them, one after the other, in one guest.
    fn workloads(&mut self, subject: Subject, workloads: &[Workload]) -> Result<()> {
        let names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
        let order = format!("suite {}", names.join(" "));
        let command = match subject {
            // Guests have one CPU.
            Subject::Native => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", &last_cpu().to_string()]);
                self.stage.native(command, &order, NativeDisk::Writable)
            }
            subject => self.stage.guest(subject, &self.stage.start(&order))?,
        };
        let mut session = Session::start(subject.name(), command)?;
        let mut tell = |workload: &str, spent: Spent| {
            eprintln!(
                "  {workload:<12} {:>7.2} s of CPU time, {:>7.2} s",
                spent.cpu_s, spent.wall_s
            );
        };
        let outcome = follow(&mut session, subject.meter(), &mut tell)?;
        for name in names {
            let spent = outcome.spent.get(name);
            let spent = spent.with_context(|| format!("{name} was not marked"))?;
            self.figures.add(name, subject, *spent);
        }
        for (name, answer) in outcome.answers {
            let first = self.answers.entry(name.clone()).or_insert_with(|| answer.clone());
            ensure!(*first == answer, "{name} computed {answer}, and {first} where it ran first");
        }
        Ok(())
    }

    /// To the first line of the disk's first program, by each subject.
    fn boots(&mut self, subjects: &[Subject]) -> Result<()> {
        let starts = [self.stage.start("true"), self.stage.plain_start("true")];
        for (name, start) in BOOTS.into_iter().zip(starts) {
            for subject in subjects {
                let command = self.stage.guest(*subject, &start)?;
                let mut session = Session::start(subject.name(), command)?;
                self.figures.add(name, *subject, session.wait_for(&Mark::Init)?);
                // A replay needs a whole recording.
                session.wait_for(&Mark::Done(0))?;
                session.end();
            }
        }
        Ok(())
    }
}

fn chosen(names: &[String]) -> Result<Vec<Workload>> {
    let is_known = |name: &String| name == BOOT || WORKLOADS.iter().any(|w| w.name == name);
    if let Some(name) = names.iter().find(|name| !is_known(name)) {
        let known: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        bail!("there is no workload {name:?}, but {BOOT}, {}", known.join(", "));
    }
    let is_wanted = |w: &&Workload| names.is_empty() || names.iter().any(|name| name == w.name);
    Ok(WORKLOADS.iter().filter(is_wanted).copied().collect())
}

fn last_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}

fn tables(
    figures: &Figures,
    workloads: &[Workload],
    guests: &[Subject],
    with_boot: bool,
) -> String {
    let mut parts = Vec::new();
    if !workloads.is_empty() {
        parts.push(table::workload_table(figures, workloads, guests));
        parts.push(table::bounds_table(figures, workloads));
        parts.push(table::comparisons(figures, workloads));
    }
    if with_boot {
        parts.push("Boot, in seconds on the clock (and of CPU time):\n".to_owned());
        parts.push(table::boot_table(figures, &BOOTS, guests));
    }
    parts.join("\n")
}

fn to_json(
    figures: &Figures,
    workloads: &[Workload],
    subjects: &[Subject],
    qemu: Option<&str>,
) -> Value {
    let spent = |name: &'static str| -> Value {
        let by_subject = subjects.iter().filter_map(|subject| {
            let spent = figures.median(name, *subject)?;
            Some((
                subject.name(),
                json!({ "cpu_seconds": spent.cpu_s, "wall_seconds": spent.wall_s }),
            ))
        });
        by_subject.collect()
    };
    let each: Vec<Value> = workloads
        .iter()
        .map(|w| json!({ "name": w.name, "class": w.class.name(), "subjects": spent(w.name) }))
        .collect();
    let boots: Vec<Value> =
        BOOTS.iter().map(|boot| json!({ "name": boot, "subjects": spent(boot) })).collect();
    let means = subjects.iter().map(|subject| {
        let mean = figures.mean(workloads, None, *subject);
        (subject.name(), json!(mean))
    });
    json!({
        "qemu": qemu, "workloads": each, "boots": boots,
        "geometric_means": means.collect::<Value>(),
    })
}
