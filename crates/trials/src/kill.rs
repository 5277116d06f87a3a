//! Failovers at random moments, of primary and of backup, under clients that check every reply.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::SeededRng;
use testbed::clients::{Clients, Report};
use testbed::pair::{Pair, PairConfig, other, wait_for_redis};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(60);
/// Port of the guest's echo service.
const ECHO_PORT: u16 = 7;
const CONNECTIONS: u64 = 4;
/// Longest time from the pair being loaded to the kill, in milliseconds.
const KILL_DELAY_MS_MAX: u64 = 2500;
/// How many right answers have to come after each failover.
const ANSWERS_AFTER: u64 = 100;

/// Runs `failovers` failovers, each on a pair of its own that starts from power-on.
pub(crate) fn run(lab: &Lab, config: PairConfig, failovers: u32, seed: u64) -> Result<()> {
    let mut rng = SeededRng::new(seed);
    let mut total = Report::default();
    for index in 0..failovers {
        // Two of three hit the primary.
        let victim = if rng.below(3) == 0 { Host::B } else { Host::A };
        let delay = Duration::from_millis(rng.below(KILL_DELAY_MS_MAX));
        let work = config.work.join(format!("failover-{index}"));
        std::fs::create_dir(&work).context("cannot make a work folder")?;
        let one = PairConfig { work, ..config.clone() };
        let started = Instant::now();
        let report =
            failover(lab, one, victim, delay, rng.u64()).map_err(anyhow::Error::msg).with_context(
                || format!("failover {index} of --seed {seed}: {victim:?} after {delay:?}"),
            )?;
        eprintln!(
            "failover {index}: killed {victim:?} {delay:?} into the load; {} replies right, {} faults, \
             longest wait {:?} ({:.0?})",
            report.answers,
            report.faults.len(),
            report.longest_wait,
            started.elapsed(),
        );
        let faults = report.faults.clone();
        total.merge(report);
        if !faults.is_empty() {
            bail!("failover {index} of --seed {seed} was seen by clients: {faults:#?}");
        }
    }
    println!("{failovers} failovers, {} replies checked, 0 faults", total.answers);
    Ok(())
}

fn failover(
    lab: &Lab,
    config: PairConfig,
    victim: Host,
    delay: Duration,
    seed: u64,
) -> Result<Report, String> {
    let witness = Witness::start(lab).map_err(|error| error.to_string())?;
    let mut pair = Pair::start(lab, config)?;
    wait_for_redis(BOOT_TIMEOUT)?;
    let redis = Clients::redis(GUEST_ADDR, CONNECTIONS, seed).map_err(|e| e.to_string())?;
    let echo = Clients::echo(GUEST_ADDR, ECHO_PORT, seed).map_err(|e| e.to_string())?;
    redis.wait_for_answers(20, BOOT_TIMEOUT)?;
    thread::sleep(delay);

    pair.side(victim).kill();
    let survivor = other(victim);
    let live = pair.wait_for_event(survivor, "live", FAILOVER_TIMEOUT);
    let after = live
        .and_then(|_| redis.wait_for_answers(ANSWERS_AFTER, FAILOVER_TIMEOUT))
        .and_then(|()| echo.wait_for_answers(3, FAILOVER_TIMEOUT));
    let mut report = redis.stop();
    report.merge(echo.stop());
    if let Err(fault) = after {
        report.faults.push(fault);
    }
    // While the primary lives, nothing comes from the backup.
    let owners: &[Host] = if victim == Host::A { &[Host::A, Host::B] } else { &[Host::A] };
    if let Err(fault) = witness.stop().and_then(|turns| check_owners(&turns, owners)) {
        report.faults.push(fault);
    }
    Ok(report)
}
