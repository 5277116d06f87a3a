//! Recordings of a busy server: each replays to equal digests, and one that was cut by SIGKILL is
//! named as cut and replays as far as it is whole.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testbed::clients::Clients;
use testbed::pair::{ImageSettings, PairConfig, wait_for_redis};
use testbed::{GUEST_ADDR, Host, Lab, Process};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECTIONS: u64 = 4;
/// Exit status of a replay whose recording was cut short.
const CUT_SHORT: i32 = 5;

/// Records and replays `recordings` runs of `seconds` of load each, then one that is killed.
pub(crate) fn run(
    lab: &Lab,
    config: &PairConfig,
    recordings: u32,
    seconds: u64,
    seed: u64,
) -> Result<()> {
    for index in 0..recordings {
        let log = config.work.join(format!("recording-{index}"));
        record(lab, config, &log, seconds, seed + u64::from(index), false)?;
        let (code, report) = replay(config, &log)?;
        ensure!(code == Some(0), "the replay of recording {index} ended with {code:?}:\n{report}");
        eprintln!("recording {index}: {}", report.trim());
        std::fs::remove_file(&log)?;
    }
    let log = config.work.join("recording-cut");
    record(lab, config, &log, seconds.min(10), seed, true)?;
    let (code, report) = replay(config, &log)?;
    ensure!(
        code == Some(CUT_SHORT),
        "the replay of a cut recording ended with {code:?}:\n{report}"
    );
    eprintln!("recording cut by SIGKILL: {}", report.trim());
    println!("{recordings} recordings of {seconds} s of load replayed, and one that was cut");
    Ok(())
}

fn record(
    lab: &Lab,
    config: &PairConfig,
    log: &Path,
    seconds: u64,
    seed: u64,
    is_killed: bool,
) -> Result<()> {
    let settings = ImageSettings::read(&config.image).map_err(anyhow::Error::msg)?;
    let mut command = lab.command(Host::A, config.lockstep.to_str().context("a path of text")?);
    command.arg("run").arg("--kernel").arg(config.image.join("vmlinuz"));
    command.arg("--initrd").arg(config.image.join("initrd.img"));
    command.args(["--append", &settings.append_with_network(), "--snapshot"]);
    command.args(["--mem", &settings.mem.to_string()]);
    command.arg("--disk").arg(config.image.join("disk.img"));
    command.args(["--net", &format!("packet:{}", lab.guest_interface())]);
    command.arg("--record").arg(log);
    command.env("LOCKSTEP_RUN_DIR", config.work.join("run"));
    let mut vm = Process::start("recorded VM", command)?;

    wait_for_redis(BOOT_TIMEOUT).map_err(anyhow::Error::msg)?;
    let clients = Clients::redis(GUEST_ADDR, CONNECTIONS, seed)?;
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        clients.wait_for_answers(1, STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
    }
    let report = clients.stop();
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);
    if is_killed {
        vm.kill();
        return Ok(());
    }
    vm.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = vm.wait(STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
    ensure!(status.success(), "the recorded VM ended with {status}:\n{}", vm.output());
    Ok(())
}

/// The replay's exit status and what it said.
fn replay(config: &PairConfig, log: &Path) -> Result<(Option<i32>, String)> {
    let output = Command::new(&config.lockstep).arg("replay").arg(log).output()?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    // The guest's console is on standard output.
    let last = report.lines().rev().find(|line| !line.is_empty()).unwrap_or_default().to_owned();
    Ok((output.status.code(), last))
}
