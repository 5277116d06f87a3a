//! Runs the simulation from seeds: `cargo run -p sim --release -- --runs 1000 --seed 1`.

use std::process::ExitCode;

use sim::{Plan, run, soak};

const USAGE: &str = "usage: sim [--plan calm|single|storm] [--seed N] [--runs N] [--trace]";

struct Arguments {
    plans: Vec<Plan>,
    seed: u64,
    runs: u64,
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for plan in &arguments.plans {
        failed |= !check(*plan, &arguments);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn check(plan: Plan, arguments: &Arguments) -> bool {
    let seeds = arguments.seed..arguments.seed.saturating_add(arguments.runs);
    if arguments.trace {
        for seed in seeds.clone() {
            let sim = run(plan, seed, true);
            sim.trace.iter().flatten().for_each(|line| println!("{line}"));
        }
    }
    match soak(plan, seeds) {
        Ok(summary) => {
            println!("{plan:?}: {summary:?}");
            true
        }
        Err(failure) => {
            println!("{plan:?}: seed {} fails:", failure.seed);
            failure.violations.iter().for_each(|violation| println!("  {violation}"));
            println!("to repeat: {}", failure.repeat());
            false
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let plans = vec![Plan::Calm, Plan::Single, Plan::Storm];
    let mut arguments = Arguments { plans, seed: 1, runs: 100, trace: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is not a number"));
        match word.as_str() {
            "--plan" => arguments.plans = vec![plan(&value()?)?],
            "--seed" => arguments.seed = number(value()?)?,
            "--runs" => arguments.runs = number(value()?)?,
            "--trace" => arguments.trace = true,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(arguments)
}

fn plan(name: &str) -> Result<Plan, String> {
    match name {
        "calm" => Ok(Plan::Calm),
        "single" => Ok(Plan::Single),
        "storm" => Ok(Plan::Storm),
        _ => Err(format!("unknown plan {name}")),
    }
}
