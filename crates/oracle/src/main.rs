//! `oracle`: compares the interpreter or the translator with the host CPU.

use std::process::ExitCode;
use std::time::Duration;

use engines::EngineKind;
use oracle::forms::Coverage;
use oracle::native;
use oracle::run::{Count, Kind, Plan, Report, form_name, run};
use oracle::state::Mode;
use oracle::subject::Interpreter;
use oracle::{forms, units};

const USAGE: &str = "\
usage: oracle [--seed N] [--mode 32|64] [--form NAME]... [--cases N | --case N] [--seconds N] [--list]
              [--engine interpreter|translator]

  --seed N      names all random numbers (1)
  --mode BITS   only 32-bit or only 64-bit code
  --form NAME   only this form: an iced-x86 code name such as add_rm64_r64, `sequence`,
                `program` or `bytes`
  --cases N     cases per form (200); sequences and random bytes get 50 times as many
  --case N      only the case with this number
  --seconds N   go on with new cases until this much time is over
  --engine E    what is compared with the host (interpreter)
  --list        print a row for every form, not only for those that stand out
Exit status: 0 no difference, 1 differences, 2 usage, 3 the host cannot do it.";

/// What the command line asks for.
struct Options {
    seed: u64,
    mode: Option<Mode>,
    forms: Vec<String>,
    cases: u64,
    case: Option<u64>,
    seconds: Option<u64>,
    list: bool,
    engine: EngineKind,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seed: 1,
        mode: None,
        forms: vec![],
        cases: 200,
        case: None,
        seconds: None,
        list: false,
        engine: EngineKind::Interpreter,
    };
    while let Some(arg) = args.next() {
        if arg == "--list" {
            options.list = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg}: a value is missing or unknown"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{arg} {value}: not a number"));
        match arg.as_str() {
            "--seed" => options.seed = number()?,
            "--cases" => options.cases = number()?,
            "--case" => options.case = Some(number()?),
            "--seconds" => options.seconds = Some(number()?),
            "--engine" => options.engine = value.parse().map_err(|error| format!("{error}"))?,
            "--form" => options.forms.push(value.to_lowercase()),
            "--mode" => {
                let bits = number()?;
                let mode = Mode::ALL.into_iter().find(|mode| u64::from(mode.bits()) == bits);
                options.mode = Some(mode.ok_or_else(|| format!("--mode {value}: 32 or 64"))?);
            }
            _ => return Err(format!("{arg}: unknown")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("oracle: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(missing) = native::check_host() {
        eprintln!("oracle: this host cannot be the oracle: it lacks {}", missing.0);
        return ExitCode::from(3);
    }
    let mut chosen = units();
    chosen.retain(|unit| options.mode.is_none_or(|mode| unit.mode == mode));
    if !options.forms.is_empty() {
        chosen.retain(|unit| options.forms.contains(&unit.name()));
    }
    if chosen.is_empty() {
        eprintln!("oracle: no such form in that mode: {}", options.forms.join(" "));
        return ExitCode::from(2);
    }
    let plan = Plan {
        engine: options.engine,
        seed: options.seed,
        units: chosen,
        first: options.case.unwrap_or(0),
        cases: if options.case.is_some() { 1 } else { options.cases },
        only_one: options.case.is_some(),
        soak: options.seconds.map(Duration::from_secs),
    };
    if let Err(error) = options.engine.make() {
        eprintln!("oracle: {error}");
        return ExitCode::from(3);
    }
    // The worker makes its own.
    let engine = || options.engine.make().expect("it was had before");
    match run(&plan, |template| Interpreter::with_engine(template, engine())) {
        Ok(report) => {
            print_summary(&plan, &report, options.list);
            if report.counts.iter().any(|count| count.different > 0) {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("oracle: {error}");
            ExitCode::from(3)
        }
    }
}

/// Rows for what stands out, the forms that are not covered with their reasons, and the totals.
fn print_summary(plan: &Plan, report: &Report, list: bool) {
    println!("{:<36} {:>4} {:>9} {:>9} {:>9}", "form", "mode", "cases", "completed", "different");
    for (unit, count) in plan.units.iter().zip(&report.counts) {
        if list || count.different > 0 || count.cases == 0 && plan.soak.is_none() {
            println!(
                "{:<36} {:>4} {:>9} {:>9} {:>9}",
                unit.name(),
                unit.mode.bits(),
                count.cases,
                count.completed,
                count.different
            );
        }
    }
    if list {
        print_excluded();
    }
    for (code, mode) in forms::missing() {
        println!("{} {}: not implemented", form_name(code), mode.bits());
    }
    let sum = |field: fn(&Count) -> u64| report.counts.iter().map(field).sum::<u64>();
    let singles = plan.units.iter().filter(|unit| matches!(unit.kind, Kind::Single(_))).count();
    let cases = sum(|count| count.cases);
    println!(
        "seed {}: {singles} forms, {cases} cases, {} instructions, {} completed, {} different, {} not finished by \
         the host, {:.1} s, {:.0} cases/s",
        plan.seed,
        sum(|count| count.instructions),
        sum(|count| count.completed),
        sum(|count| count.different),
        sum(|count| count.host_hung),
        report.elapsed.as_secs_f64(),
        cases as f64 / report.elapsed.as_secs_f64()
    );
}

/// The forms of the CPU model that are compared in part or not at all, and why.
fn print_excluded() {
    println!("covered in part, or not:");
    for mode in Mode::ALL {
        for code in forms::forms_of(*oracle::MODEL, mode) {
            let why = match forms::coverage(code, mode) {
                Coverage::Full => continue,
                Coverage::FaultOnly => "only its fault at CPL 3: the form is privileged",
                Coverage::Excluded(reason) => reason,
            };
            println!("  {} {}: {why}", form_name(code), mode.bits());
        }
    }
}
