//! `duel`: random programs on the interpreter and on the translator.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use engines::EngineKind;
use oracle::programs::{Duel, Factory, Plan};

const USAGE: &str = "\
usage: duel [--seed N] [--programs N] [--steps N] [--seconds N] [--volume N] [--loops]

  --seed N      the first program (1); the next ones follow
  --programs N  how many (1000)
  --steps N     steps of each (50000); every sixth, which loops for long, makes a hundred times as many
  --seconds N   go on with new programs until this much time is over
  --volume N    go on until so many million steps were made in all
  --loops       have the translator take every loop for one of many rounds
Exit status: 0 no difference, 1 differences, 2 usage, 3 there is no translator for this host.";

const MILLION: u64 = 1_000_000;
/// Steps between two words on how far it is.
const TOLD_STEPS: u64 = 1000 * MILLION;
/// Differences after which it gives up.
const FAILURES_MAX: u32 = 5;

struct Options {
    seed: u64,
    programs: u64,
    steps: u64,
    seconds: Option<u64>,
    volume: Option<u64>,
    loops: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seed: 1,
        programs: 1000,
        steps: 50_000,
        seconds: None,
        volume: None,
        loops: false,
    };
    while let Some(arg) = args.next() {
        if arg == "--loops" {
            options.loops = true;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg}: a value is missing or unknown"))?;
        let number = value.parse().map_err(|_| format!("{arg} {value}: not a number"))?;
        match arg.as_str() {
            "--seed" => options.seed = number,
            "--programs" => options.programs = number,
            "--steps" => options.steps = number,
            "--seconds" => options.seconds = Some(number),
            "--volume" => options.volume = Some(number),
            _ => return Err(format!("{arg}: unknown")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("duel: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = EngineKind::Translator.make() {
        eprintln!("duel: {error}");
        return ExitCode::from(3);
    }
    let make: Factory = if options.loops {
        || engines::translator_of_long_loops().expect("there is a translator")
    } else {
        || EngineKind::Translator.make().ok().flatten().expect("it was had before")
    };
    let mut duel = Duel::new(make, Plan { steps: options.steps, shrink: true, isolate: true });
    let began = Instant::now();
    let end = options.seconds.map(Duration::from_secs);
    let (mut seed, mut failures) = (options.seed, 0);
    let goes_on = |seed: u64, steps: u64| match (end, options.volume) {
        (Some(end), _) => began.elapsed() < end,
        (None, Some(volume)) => steps / MILLION < volume,
        (None, None) => seed < options.seed.saturating_add(options.programs),
    };
    let mut told = 0;
    while goes_on(seed, duel.steps) && failures < FAILURES_MAX {
        if let Err(failure) = duel.run(seed) {
            println!("{failure}\n");
            failures += 1;
        }
        seed += 1;
        if duel.steps / TOLD_STEPS > told {
            told = duel.steps / TOLD_STEPS;
            eprintln!(
                "{} million steps after {} s",
                duel.steps / MILLION,
                began.elapsed().as_secs()
            );
        }
    }
    println!(
        "{} programs from {}, {} steps, {} of them the engine's, {failures} different, {:.1} s",
        seed - options.seed,
        options.seed,
        duel.steps,
        duel.engine_steps,
        began.elapsed().as_secs_f64()
    );
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
