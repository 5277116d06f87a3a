//! A protected pair under a redis load: how much it logs, and how long a failover takes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testbed::clients::Clients;
use testbed::pair::{Pair, wait_for_redis};
use testbed::{GUEST_ADDR, Host, Lab, boottime_ns};

use crate::site::{Site, text};
use crate::stats::median;

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECTIONS: u64 = 8;
/// Answers that come before anything is measured under load, and after a failover.
const ANSWERS: u64 = 100;
/// Between two failovers under load there is this much of it, so that no kill hits the boot's tail.
const LOAD_TIME: Duration = Duration::from_secs(2);
/// What is told of a failover, in order, and the event that it is read from.
const STEPS: [(&str, &str); 3] =
    [("detected", "peer_failed"), ("live", "live"), ("first output", "first_output")];

/// Bytes of log payload per second, idle and under load.
pub(crate) fn measure_log(lab: &Lab, site: &Site, window: Duration) -> Result<Value> {
    let mut pair = boot(lab, site, "log")?;
    // Debian's services are still busy for a moment after redis answers.
    thread::sleep(window / 2);
    let (idle, _) = log_rate(&pair, window, || 0)?;
    let clients = Clients::redis(GUEST_ADDR, CONNECTIONS, 1)?;
    clients.wait_for_answers(ANSWERS, BOOT_TIMEOUT).map_err(text)?;
    let (load, answers) = log_rate(&pair, window, || clients.answers())?;
    check(clients.stop().faults)?;
    println!("\nLog payload of a protected pair, from `lockstep status` (log_bytes)");
    println!("  idle            {idle:>10.0} bytes/s");
    println!("  redis, {CONNECTIONS} clients {load:>10.0} bytes/s at {answers:.0} replies/s");
    pair.side(Host::A).kill();
    Ok(json!({
        "source": "status", "idle_bytes_per_second": idle, "load_bytes_per_second": load,
        "load_replies_per_second": answers,
    }))
}

/// Log bytes and counts of `counter`, per second.
fn log_rate(pair: &Pair<'_>, window: Duration, counter: impl Fn() -> u64) -> Result<(f64, f64)> {
    let sample = || -> Result<(f64, f64, Instant)> {
        let status = crate::site::status(pair.command(Host::A))?;
        Ok((crate::site::number(&status, "log_bytes")?, counter() as f64, Instant::now()))
    };
    let (bytes, count, start) = sample()?;
    thread::sleep(window);
    let (bytes_end, count_end, end) = sample()?;
    let seconds = (end - start).as_secs_f64();
    Ok(((bytes_end - bytes) / seconds, (count_end - count) / seconds))
}

/// Kills the primary under load, on a new pair each time.
pub(crate) fn measure_failover(lab: &Lab, site: &Site, count: u32) -> Result<Value> {
    let mut steps: [Vec<f64>; STEPS.len()] = Default::default();
    let mut pauses = Vec::new();
    for index in 0..count {
        let mut pair = boot(lab, site, &format!("failover-{index}"))?;
        let clients = Clients::redis(GUEST_ADDR, CONNECTIONS, u64::from(index))?;
        clients.wait_for_answers(ANSWERS, BOOT_TIMEOUT).map_err(text)?;
        thread::sleep(LOAD_TIME);
        let killed_ns = boottime_ns();
        pair.side(Host::A).kill();
        for ((_, event), times) in STEPS.iter().zip(&mut steps) {
            let event = pair.wait_for_event(Host::B, event, FAILOVER_TIMEOUT).map_err(text)?;
            times.push((event.boottime_ns as f64 - killed_ns as f64) / 1e6);
        }
        clients.wait_for_answers(ANSWERS, FAILOVER_TIMEOUT).map_err(text)?;
        let report = clients.stop();
        check(report.faults)?;
        pauses.push(report.longest_wait.as_secs_f64() * 1e3);
    }
    println!(
        "\nFailover under redis load, ms after SIGKILL of the primary, median of {count} \
         (detection timeout {} ms)",
        site.detection_ms
    );
    let mut result = json!({ "detection_timeout_ms": site.detection_ms });
    for ((name, event), times) in STEPS.iter().zip(&steps) {
        println!("  {name:<22} {:>8.1}", median(times));
        result[format!("{event}_ms")] = json!(times);
    }
    println!("  {:<22} {:>8.1}", "longest client pause", median(&pauses));
    result["client_pause_ms"] = json!(pauses);
    Ok(result)
}

fn boot<'lab>(lab: &'lab Lab, site: &Site, name: &str) -> Result<Pair<'lab>> {
    let pair = Pair::start(lab, site.pair(name, None)?).map_err(text)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(text)?;
    Ok(pair)
}

fn check(faults: Vec<String>) -> Result<()> {
    if !faults.is_empty() {
        bail!("the clients saw faults, so the figures mean nothing: {faults:#?}");
    }
    Ok(())
}
