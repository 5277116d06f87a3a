//! The main job in front of an audience: a Debian VM with redis outlives its host.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testbed::clients::{Clients, Report};
use testbed::pair::{Pair, PairConfig, SideEvent, wait_for_redis};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab};

/// Longest boot that the demo waits for.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// Port of the guest's echo service.
const ECHO_PORT: u16 = 7;
const CONNECTIONS: u64 = 8;
/// The steps of a failover, in order.
const STEPS: [(&str, &str); 7] = [
    ("last_heard", "the primary was last heard of"),
    ("peer_failed", "failure detected"),
    ("claiming", "claim sent to the arbiter"),
    ("won", "claim won"),
    ("replayed", "last entry of the log replayed"),
    ("live", "live"),
    ("first_output", "first output left"),
];

pub(crate) fn run(lab: &Lab, config: PairConfig, wants_json: bool) -> Result<()> {
    let started = Instant::now();
    let say = |text: &str| eprintln!("[{:6.1} s] {text}", started.elapsed().as_secs_f64());

    say("starting disk server, backup and primary on three hosts (network namespaces)");
    let mut pair = Pair::start(lab, config).map_err(anyhow::Error::msg)?;
    let witness = Witness::start(lab)?;
    say("the pair is armed; Debian boots, protected from its first instruction");
    wait_for_redis(BOOT_TIMEOUT).map_err(anyhow::Error::msg)?;
    say("redis answers; opening connections and checking every reply");
    let redis = Clients::redis(GUEST_ADDR, CONNECTIONS, 1)?;
    let echo = Clients::echo(GUEST_ADDR, ECHO_PORT, 2)?;
    redis.wait_for_answers(500, BOOT_TIMEOUT).map_err(anyhow::Error::msg)?;

    say("killing the primary with SIGKILL in the middle of traffic");
    let killed_ns = testbed::boottime_ns();
    pair.side(Host::A).kill();
    pair.wait_for_event(Host::B, "live", Duration::from_secs(60)).map_err(anyhow::Error::msg)?;
    say("the backup is live; the same connections go on");
    redis.wait_for_answers(500, BOOT_TIMEOUT).map_err(anyhow::Error::msg)?;
    echo.wait_for_answers(5, BOOT_TIMEOUT).map_err(anyhow::Error::msg)?;
    say("reading every acknowledged write back");
    let mut report = redis.stop();
    report.merge(echo.stop());
    let seen = witness.stop().and_then(|turns| check_owners(&turns, &[Host::A, Host::B]));
    if let Err(fault) = seen {
        report.faults.push(fault);
    }

    let timeline = timeline(&pair.events(Host::B), killed_ns);
    print_report(&timeline, &report);
    let verdict = if report.faults.is_empty() { "pass" } else { "fail" };
    println!("verdict: {verdict}");
    if wants_json {
        println!("{}", as_json(&timeline, &report, verdict));
    }
    if verdict == "fail" {
        bail!("{} faults", report.faults.len());
    }
    Ok(())
}

/// The steps that the new owner noted, in milliseconds after the kill.
fn timeline(events: &[SideEvent], killed_ns: u64) -> Vec<(&'static str, &'static str, f64)> {
    let at = |name: &str| events.iter().find(|event| event.event == name);
    let since = |event: &SideEvent| (event.boottime_ns as f64 - killed_ns as f64) / 1e6;
    STEPS.iter().filter_map(|(name, text)| Some((*name, *text, since(at(name)?)))).collect()
}

fn print_report(timeline: &[(&str, &str, f64)], report: &Report) {
    println!("timeline, in ms after the kill:");
    for (_, text, ms) in timeline {
        println!("{ms:10.1}  {text}");
    }
    println!("longest pause that a client saw: {:.0} ms", report.longest_wait.as_secs_f64() * 1e3);
    println!("replies checked: {}, wrong or missing: {}", report.answers, report.faults.len());
    for fault in &report.faults {
        println!("  {fault}");
    }
}

fn as_json(timeline: &[(&str, &str, f64)], report: &Report, verdict: &str) -> Value {
    let steps: serde_json::Map<String, Value> =
        timeline.iter().map(|(name, _, ms)| (format!("{name}_ms"), json!(ms))).collect();
    json!({
        "verdict": verdict,
        "timeline": steps,
        "client_pause_ms": report.longest_wait.as_secs_f64() * 1e3,
        "replies": report.answers,
        "faults": report.faults,
    })
}
