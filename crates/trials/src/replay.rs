//! Recordings of a busy server, from power-on to power-off: each replays to equal digests, and one that
//! was cut by SIGKILL is named as cut and replays as far as it is whole.
//!
//! The load is mixed: Redis with every write on its disk before the answer, a byte stream, and a
//! shell on the console that reads the disk, sums up what it read, and takes random bytes.

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base::SeededRng;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::clients::Clients;
use testbed::pair::{ImageSettings, PairConfig, wait_for_redis};
use testbed::{GUEST_ADDR, Host, Lab, Process};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECTIONS: u64 = 3;
/// Port of the guest's echo service.
const ECHO_PORT: u16 = 7;
/// Exit status of a replay whose recording was cut short.
const CUT_SHORT: i32 = 5;
/// Length of the load before the process is killed, in seconds.
const CUT_LOAD_S: u64 = 10;
/// Steps between two digests in a log.
const DIGEST_STEPS: u64 = 1 << 24;
/// Blocks of 256 KiB of the disk from which the console's shell chooses.
const DISK_BLOCKS: u64 = 1500;
/// What `sha256sum` says if nothing was read.
const SUM_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// How long the shell rests between two commands.
const SHELL_REST: Duration = Duration::from_millis(300);

/// How a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The guest is asked to power off.
    PowerOff,
    /// The operator ends the process.
    Terminated,
    /// The process is killed.
    Killed,
}

/// Records and replays this job's share of `recordings` runs with `seconds` of load each, then (once in
/// all) a run that is killed.
pub(crate) fn run(
    lab: &Lab,
    config: &PairConfig,
    share: Share,
    (recordings, seconds, seed): (u32, u64, u64),
) -> Result<()> {
    let mut count = 0;
    for index in (share.first..recordings).step_by(share.step as usize) {
        // Most end as a server does.
        let ending = if index % 4 == 3 { Ending::Terminated } else { Ending::PowerOff };
        record_and_replay(lab, config, ending, seconds, seed + u64::from(index))
            .with_context(|| format!("recording {index}"))?;
        count += 1;
    }
    let mut cut = "";
    if share.first == 0 {
        record_and_replay(lab, config, Ending::Killed, seconds.min(CUT_LOAD_S), seed)?;
        cut = ", and one that was cut";
    }
    println!("{count} recordings of {seconds} s of load replayed{cut}");
    Ok(())
}

fn record_and_replay(
    lab: &Lab,
    config: &PairConfig,
    ending: Ending,
    seconds: u64,
    seed: u64,
) -> Result<()> {
    let file = |name: &str| config.work.join(format!("{name}-{seed}-{ending:?}"));
    let (log, recorded, replayed) = (file("log"), file("recorded"), file("replayed"));
    record(lab, config, &log, &recorded, Load { seconds, seed, ending })?;
    let bytes = std::fs::metadata(&log)?.len();
    let (code, said) = replay(config, &log, &replayed)?;
    let expected = if ending == Ending::Killed { CUT_SHORT } else { 0 };
    ensure!(code == Some(expected), "the replay ended with {code:?}: {said}");
    let replayed = read_summary(&replayed)?;
    let number = |summary: &Value, name: &str| summary[name].as_f64().unwrap_or(f64::NAN);
    let instructions = number(&replayed, "instructions");
    let compared = number(&replayed, "digests_compared");
    ensure!(
        compared >= (instructions / DIGEST_STEPS as f64).floor(),
        "{compared} digests were compared in {instructions} steps"
    );
    let mut took = String::new();
    if ending != Ending::Killed {
        let recorded = read_summary(&recorded)?;
        for name in ["digest", "instructions"] {
            let (made, again) = (&recorded[name], &replayed[name]);
            ensure!(made == again, "{name}: recorded {made}, replayed {again}");
        }
        took = format!(", recorded in {:.1} s", number(&recorded, "seconds"));
    }
    eprintln!(
        "{ending:?}: {instructions} instructions{took}, replayed in {:.1} s; {} entries, {bytes} bytes; \
         {compared} digests compared, all equal",
        number(&replayed, "seconds"),
        number(&replayed, "entries"),
    );
    std::fs::remove_file(&log)?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Load {
    seconds: u64,
    seed: u64,
    ending: Ending,
}

fn record(lab: &Lab, config: &PairConfig, log: &Path, summary: &Path, load: Load) -> Result<()> {
    let msg = anyhow::Error::msg;
    let settings = ImageSettings::read(&config.image).map_err(msg)?;
    let mut command = lab.command(Host::A, config.lockstep.to_str().context("a path of text")?);
    command.arg("run").arg("--kernel").arg(config.image.join("vmlinuz"));
    command.arg("--initrd").arg(config.image.join("initrd.img"));
    command.args(["--append", &settings.append_with_network(), "--snapshot"]);
    command.args(["--mem", &settings.mem.to_string()]);
    command.arg("--disk").arg(config.image.join("disk.img"));
    command.args(["--net", &format!("packet:{}", lab.guest_interface())]);
    command.arg("--record").arg(log).arg("--json-to").arg(summary);
    command.env("LOCKSTEP_RUN_DIR", config.work.join("run")).stdin(Stdio::piped());
    let mut vm = Process::start("recorded VM", command)?;

    wait_for_redis(BOOT_TIMEOUT).map_err(msg)?;
    let redis = Clients::redis(GUEST_ADDR, CONNECTIONS, load.seed)?;
    let echo = Clients::echo(GUEST_ADDR, ECHO_PORT, load.seed)?;
    let until = Instant::now() + Duration::from_secs(load.seconds);
    let mut shell = Shell { rng: SeededRng::new(load.seed), count: 0 };
    while Instant::now() < until {
        redis.wait_for_answers(1, STEP_TIMEOUT).map_err(msg)?;
        shell.work(&mut vm)?;
        thread::sleep(SHELL_REST);
    }
    let mut report = redis.stop();
    report.merge(echo.stop());
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);
    ensure!(shell.count > 0, "the console's shell did nothing");
    match load.ending {
        Ending::Killed => {
            vm.kill();
            return Ok(());
        }
        Ending::Terminated => vm.signal(Signal::SIGTERM)?,
        Ending::PowerOff => vm.type_line("poweroff")?,
    }
    let status = vm.wait(STEP_TIMEOUT).map_err(msg)?;
    ensure!(status.success(), "the recorded VM ended with {status}:\n{}", vm.output());
    Ok(())
}

/// The guest's shell on the console.
struct Shell {
    rng: SeededRng,
    count: u32,
}

impl Shell {
    /// Has a part of the disk read past the guest's cache and summed up, with random bytes taken on
    /// the way.
    fn work(&mut self, vm: &mut Process) -> Result<()> {
        self.count += 1;
        let (begin, end) = (format!("n{}=", self.count), "=n");
        let block = self.rng.below(DISK_BLOCKS);
        let random = "dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum >/dev/null";
        let read = format!("dd if=/dev/vda bs=256k count=1 skip={block} iflag=direct 2>/dev/null");
        vm.type_line(&format!("{random}; echo {begin}$({read} | sha256sum){end}"))?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            let output = vm.output();
            let mut answers = output.split(&begin).skip(1);
            if answers.any(|rest| rest.split_once(end).is_some_and(|(sum, _)| is_sum(sum))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the guest's shell does not answer; the console has\n{output}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether this is what `sha256sum` says of something; the console echoes the command too.
fn is_sum(text: &str) -> bool {
    let sum = text.split_whitespace().next().unwrap_or_default();
    sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()) && sum != SUM_OF_NOTHING
}

/// The replay's exit status and what it said.
fn replay(config: &PairConfig, log: &Path, summary: &Path) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(&config.lockstep);
    let output = command.arg("replay").arg(log).arg("--json-to").arg(summary).output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((output.status.code(), said))
}

fn read_summary(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("no summary {}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Runs this program `jobs` times at once, each in a lab of its own with its share of the recordings.
pub(crate) fn run_jobs(jobs: u32) -> Result<ExitCode> {
    let start = |job: u32| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1));
        command.args(["--share", &format!("{job}/{jobs}")]).spawn()
    };
    let children: Vec<_> = (0..jobs).map(start).collect::<Result<_, _>>()?;
    let mut code = ExitCode::SUCCESS;
    for mut child in children {
        if !child.wait()?.success() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// One job's share of the recordings: those whose number leaves `first` when divided by `step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    first: u32,
    step: u32,
}

impl Share {
    pub(crate) const ALL: Share = Share { first: 0, step: 1 };
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}of{}", self.first, self.step)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let numbers = text.split_once('/').map(|(first, step)| (first.parse(), step.parse()));
        match numbers {
            Some((Ok(first), Ok(step))) if first < step => Ok(Share { first, step }),
            _ => Err(format!("{text} is no share such as 0/2")),
        }
    }
}
