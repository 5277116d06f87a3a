//! What protection costs work that needs the CPU: guest steps per second protected over unprotected.
//!
//! A backup executes what the primary does, so it takes a core. While the unprotected VM runs, a
//! replay of another recording takes that core in its place: what is compared is protection, and not
//! what two busy cores do to each other's clock and cache.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::pair::{ImageSettings, Pair, PairConfig};
use testbed::{Host, Lab, Process};

use crate::site::{Site, number, status, text};
use crate::stats::{median, quantile};

/// What a guest does without end.
struct Work {
    name: &'static str,
    title: &'static str,
    image: &'static str,
    /// The kernel's command line.
    append: &'static str,
    /// What the console shows when the work has begun.
    begun: &'static str,
}

/// No program is started on the way.
const INTEGER: Work = Work {
    name: "cpu",
    title: "CPU-bound work",
    image: "redis",
    append: "console=ttyS0 mitigations=off cryptomgr.notests quiet \
        lockstep.run=\"echo work-$((40+2)); while :; do i=$((i + 1)); a=${i#1}$a; a=${a%???????}; done\"",
    begun: "work-42",
};

/// What a compiler reads has been read once when it begins.
const COMPILE: Work = Work {
    name: "compile",
    title: "a compiler, an assembler and a linker",
    image: "suite",
    append: "console=ttyS0 mitigations=off cryptomgr.notests quiet root=/dev/vda \
        lockstep.run=\"while :; do suite gcc; done\"",
    begun: "suite: answer gcc",
};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// From there to the first sample: a backup that falls behind has done so by then.
const SETTLE: Duration = Duration::from_secs(2);
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Exit status of a replay whose recording ends where its process was killed.
const CUT_SHORT: i32 = 5;

pub(crate) fn measure(lab: &Lab, site: &Site, pairs: u32, window: Duration) -> Result<Value> {
    let mut results = serde_json::Map::new();
    for work in [&INTEGER, &COMPILE] {
        results.insert(work.name.to_owned(), measure_work(lab, site, work, pairs, window)?);
    }
    Ok(results.into())
}

fn measure_work(
    lab: &Lab,
    site: &Site,
    work: &Work,
    pairs: u32,
    window: Duration,
) -> Result<Value> {
    let recording = record(lab, site, work, window)?;
    println!("\nFT/non-FT on {}: million guest steps per second, interleaved pairs", work.title);
    println!("  {:>4} {:>10} {:>12} {:>8}", "pair", "protected", "unprotected", "ratio");
    let mut runs = Vec::new();
    let mut ratios = Vec::new();
    for index in 0..pairs {
        // The order alternates, so that a drift of the host's speed favours neither.
        let (protected, unprotected) = if index % 2 == 0 {
            let protected = protected(lab, site, work, index, window)?;
            (protected, unprotected(lab, site, work, index, window, &recording)?)
        } else {
            let unprotected = unprotected(lab, site, work, index, window, &recording)?;
            (protected(lab, site, work, index, window)?, unprotected)
        };
        let ratio = protected / unprotected;
        println!(
            "  {:>4} {:>10.1} {:>12.1} {ratio:>8.3}",
            index + 1,
            protected / 1e6,
            unprotected / 1e6
        );
        ratios.push(ratio);
        runs.push(json!({
            "protected_steps_per_second": protected, "unprotected_steps_per_second": unprotected,
        }));
    }
    let (q1, mid, q3) = (quantile(&ratios, 0.25), median(&ratios), quantile(&ratios, 0.75));
    println!("  median {mid:.3}, quartiles {q1:.3} and {q3:.3}");
    Ok(json!({ "pairs": runs, "ratio": { "median": mid, "quartile_1": q1, "quartile_3": q3 } }))
}

fn protected(lab: &Lab, site: &Site, work: &Work, index: u32, window: Duration) -> Result<f64> {
    let config = site.pair(&format!("ft-{}-{index}", work.name), Some(work.append.to_owned()))?;
    let config = PairConfig { image: site.images.join(work.image), ..config };
    let mut pair = Pair::start(lab, config).map_err(text)?;
    pair.side(Host::A).wait_for(work.begun, BOOT_TIMEOUT).map_err(text)?;
    rate(|| pair.command(Host::A), window)
}

fn unprotected(
    lab: &Lab,
    site: &Site,
    work: &Work,
    index: u32,
    window: Duration,
    recording: &Path,
) -> Result<f64> {
    let folder = site.folder(&format!("non-ft-{}-{index}", work.name))?;
    let solo = Solo { lab, site, work, folder };
    let measure = || solo.start(&[]).and_then(|_vm| rate(|| solo.command(), window));
    beside_replays(lab, site, recording, measure)
}

/// Measures something while `recording` is replayed again and again.
pub(crate) fn beside_replays<R>(
    lab: &Lab,
    site: &Site,
    recording: &Path,
    measure: impl FnOnce() -> Result<R>,
) -> Result<R> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let replays = scope.spawn(|| replay_until(&stop, lab, site, recording));
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        replays.join().expect("the replays' thread does not panic")?;
        measured
    })
}

/// Replays `recording` again and again.
fn replay_until(stop: &AtomicBool, lab: &Lab, site: &Site, recording: &Path) -> Result<()> {
    let mut current: Option<Killed> = None;
    while !stop.load(Ordering::Relaxed) {
        let ended = match &mut current {
            Some(Killed(child)) => child.try_wait().context("cannot wait for a replay")?,
            None => None,
        };
        if let Some(status) = ended {
            let is_cut = status.code() == Some(CUT_SHORT);
            anyhow::ensure!(
                status.success() || is_cut,
                "the replay on the other core failed: {status}"
            );
            current = None;
        }
        if current.is_none() {
            let mut command = lab.command(Host::B, &program(site));
            command.arg("replay").arg(recording).stdout(Stdio::null()).stderr(Stdio::null());
            current = Some(Killed(command.spawn().context("cannot start a replay")?));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A child that does not outlive its value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait(); // likewise
    }
}

/// Records the same work, to have something to replay.
fn record(lab: &Lab, site: &Site, work: &Work, window: Duration) -> Result<PathBuf> {
    let folder = site.folder(&format!("recording-{}", work.name))?;
    let solo = Solo { lab, site, work, folder };
    let path = solo.folder.join("log");
    let mut vm = solo.start(&["--record", path.to_str().context("a path that is no text")?])?;
    thread::sleep(window);
    vm.signal(Signal::SIGTERM).context("cannot end the recording")?;
    vm.wait(END_TIMEOUT).map_err(text)?;
    Ok(path)
}

/// A VM without a backup, otherwise as a [`Pair`] has it.
struct Solo<'a> {
    lab: &'a Lab,
    site: &'a Site,
    work: &'a Work,
    folder: PathBuf,
}

impl Solo<'_> {
    /// Starts it and waits for the work.
    fn start(&self, flags: &[&str]) -> Result<Process> {
        let image = self.site.images.join(self.work.image);
        let mem = ImageSettings::read(&image).map_err(text)?.mem.to_string();
        let mut command = self.command();
        command.args(["run", "--name", "vm", "--mem", &mem, "--append", self.work.append]);
        command.arg("--kernel").arg(image.join("vmlinuz"));
        command.arg("--initrd").arg(image.join("initrd.img"));
        command.arg("--disk").arg(format!("{},snapshot", image.join("disk.img").display()));
        command.args(["--net", &format!("packet:{}", self.lab.guest_interface())]);
        command.args(flags);
        let mut vm = Process::start("the unprotected VM", command)?;
        vm.wait_for(self.work.begun, BOOT_TIMEOUT).map_err(text)?;
        Ok(vm)
    }

    fn command(&self) -> Command {
        let mut command = self.lab.command(Host::A, &program(self.site));
        command.env("LOCKSTEP_RUN_DIR", self.folder.join("run"));
        command
    }
}

fn program(site: &Site) -> String {
    site.lockstep.display().to_string()
}

/// Guest steps per second of the VM that `lockstep` commands find.
fn rate(lockstep: impl Fn() -> Command, window: Duration) -> Result<f64> {
    let sample =
        || Ok::<_, anyhow::Error>((number(&status(lockstep())?, "icount")?, Instant::now()));
    thread::sleep(SETTLE);
    let (steps, start) = sample()?;
    thread::sleep(window);
    let (steps_end, end) = sample()?;
    Ok((steps_end - steps) / (end - start).as_secs_f64())
}
