//! One VM that outlives one host after the other: a side dies, the other goes on and gets a new backup,
//! and so on, over the same client connections from the first failover to the last.
//!
//! A side dies in one of three ways: its process is killed; its process is stopped, and continued once
//! the other side owns the VM; or its host loses all networks, and gets them back likewise. Now and
//! then the backup-to-be is killed while it is being made.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use base::SeededRng;
use nix::sys::signal::Signal;
use testbed::clients::{Clients, Report};
use testbed::pair::{Pair, PairConfig, other, wait_for_redis};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// Port of the guest's echo service.
const ECHO_PORT: u16 = 7;
const CONNECTIONS: u64 = 4;
/// Longest time from the pair being armed to the next death, in milliseconds.
const DEATH_DELAY_MS_MAX: u64 = 2500;
/// Longest time that a backup-to-be lives which is killed, in milliseconds. A pairing takes about that
/// long, so that some die early in it, some late, and some just after.
const YOUNG_DEATH_MS_MAX: u64 = 1500;
/// Longest time that a stopped side sleeps after the other went live, in milliseconds.
const SLEEP_MS_MAX: u64 = 3000;
/// How many right answers have to come after each failover.
const ANSWERS_AFTER: u64 = 50;

/// How a side dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    Killed,
    Stopped,
    Isolated,
}

/// What one failover took.
struct Figures {
    detected: Duration,
    live: Duration,
    client_pause: Duration,
    redundant_after: Duration,
    stun: Duration,
    client_pause_in_pairing: Duration,
}

/// A pair and those who use it, from the first failover to the last.
struct Rolling<'lab> {
    lab: &'lab Lab,
    pair: Pair<'lab>,
    rng: SeededRng,
    owner: Host,
    redis: Clients,
    echo: Clients,
    /// Who owned the VM, one after the other.
    owners: Vec<Host>,
    young_deaths: u32,
}

/// Lets sides of one pair die `failovers` times.
pub(crate) fn run(lab: &Lab, config: PairConfig, failovers: u32, seed: u64) -> Result<()> {
    let msg = anyhow::Error::msg;
    let witness = Witness::start(lab)?;
    let pair = Pair::start(lab, config).map_err(msg)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(msg)?;
    let redis = Clients::redis(GUEST_ADDR, CONNECTIONS, seed)?;
    let echo = Clients::echo(GUEST_ADDR, ECHO_PORT, seed)?;
    redis.wait_for_answers(20, BOOT_TIMEOUT).map_err(msg)?;
    let (rng, owner, owners) = (SeededRng::new(seed), Host::A, vec![Host::A]);
    let mut rolling = Rolling { lab, pair, rng, owner, redis, echo, owners, young_deaths: 0 };

    let mut faults = Vec::new();
    let mut all = Vec::new();
    for index in 0..failovers {
        match rolling.failover(index) {
            Ok(figures) => all.push(figures),
            Err(fault) => {
                faults.push(format!("failover {index}: {fault}"));
                break;
            }
        }
    }
    let Rolling { redis, echo, owners, young_deaths, .. } = rolling;
    let mut report: Report = redis.stop();
    report.merge(echo.stop());
    faults.append(&mut report.faults);
    if let Err(fault) = witness.stop().and_then(|turns| check_owners(&turns, &owners)) {
        faults.push(fault);
    }
    if !faults.is_empty() {
        bail!("--rolling --seed {seed}: {}", faults.join("\n"));
    }
    print_figures(&all);
    println!(
        "{failovers} failovers of one pair ({} changes of the owner, {young_deaths} deaths of a backup in \
         the making) over the same connections, {} replies checked, 0 faults",
        owners.len() - 1,
        report.answers
    );
    Ok(())
}

impl Rolling<'_> {
    fn failover(&mut self, index: u32) -> Result<Figures, String> {
        // Two of three hit the primary.
        let hits_primary = self.rng.below(3) != 0;
        let victim = if hits_primary { self.owner } else { other(self.owner) };
        let death = match self.rng.below(4) {
            0 => Death::Stopped,
            1 => Death::Isolated,
            _ => Death::Killed,
        };
        thread::sleep(Duration::from_millis(self.rng.below(DEATH_DELAY_MS_MAX)));
        let _ = self.take_longest_wait(); // what was before is told already

        let died_ns = testbed::boottime_ns();
        self.strike(victim, death)?;
        let survivor = other(victim);
        let mut after = |event| {
            let found = self.pair.wait_for_event_since(survivor, event, died_ns, STEP_TIMEOUT)?;
            Ok::<_, String>(Duration::from_nanos(found.boottime_ns - died_ns))
        };
        let (detected, live) = (after("peer_failed")?, after("live")?);
        if hits_primary {
            self.owner = survivor;
            self.owners.push(survivor);
        }
        self.wait_for_answers()?;
        let client_pause = self.take_longest_wait();
        self.clear_away(victim, death, hits_primary)?;

        let (redundant_after, stun) = self.protect_again()?;
        self.wait_for_answers()?;
        let client_pause_in_pairing = self.take_longest_wait();
        eprintln!(
            "failover {index}: {} {victim:?} {death:?}; detected after {detected:.2?}, live after \
             {live:.2?}, a client waited {client_pause:.2?}; protected again after \
             {redundant_after:.2?} with a stun of {stun:.2?}, a client waited \
             {client_pause_in_pairing:.2?}",
            if hits_primary { "primary" } else { "backup" },
        );
        Ok(Figures { detected, live, client_pause, redundant_after, stun, client_pause_in_pairing })
    }

    fn strike(&mut self, victim: Host, death: Death) -> Result<(), String> {
        match death {
            Death::Killed => self.pair.side(victim).kill(),
            Death::Stopped => {
                self.pair.side(victim).signal(Signal::SIGSTOP).map_err(|e| e.to_string())?;
            }
            Death::Isolated => self.lab.set_all(victim, false).map_err(|e| e.to_string())?,
        }
        Ok(())
    }

    /// The side that was replaced wakes up, if it can, and has to find out that it is none any more:
    /// a former primary ends, a former backup waits for a primary again and is ended here, so that
    /// each protection begins with a fresh process.
    fn clear_away(&mut self, victim: Host, death: Death, was_owner: bool) -> Result<(), String> {
        match death {
            Death::Killed => return Ok(()),
            Death::Stopped => {
                thread::sleep(Duration::from_millis(self.rng.below(SLEEP_MS_MAX)));
                self.pair.side(victim).signal(Signal::SIGCONT).map_err(|e| e.to_string())?;
            }
            Death::Isolated => {
                thread::sleep(Duration::from_millis(self.rng.below(SLEEP_MS_MAX)));
                self.lab.set_all(victim, true).map_err(|e| e.to_string())?;
            }
        }
        if was_owner {
            let status = self.pair.side(victim).wait(STEP_TIMEOUT)?;
            return match status.success() {
                true => Err(format!("the deposed {victim:?} ended as if all was well")),
                false => Ok(()),
            };
        }
        self.pair.side(victim).wait_for("; waiting for a primary", STEP_TIMEOUT)?;
        self.pair.side(victim).kill();
        Ok(())
    }

    /// A backup is started, as an operator's supervisor would do it; the owner finds it by itself.
    fn protect_again(&mut self) -> Result<(Duration, Duration), String> {
        let host = other(self.owner);
        if self.rng.below(2) == 0 {
            self.young_deaths += 1;
            self.pair.start_backup(host)?;
            thread::sleep(Duration::from_millis(self.rng.below(YOUNG_DEATH_MS_MAX)));
            self.pair.side(host).kill();
            self.wait_for_answers()?;
        }
        let since = testbed::boottime_ns();
        self.pair.start_backup(host)?;
        let owner = self.owner;
        let protected = self.pair.wait_for_event_since(owner, "protected", since, STEP_TIMEOUT)?;
        let snapshot = self.pair.wait_for_event_since(owner, "snapshot", since, STEP_TIMEOUT)?;
        let stun_ns = snapshot.detail["stun_ns"].as_u64().ok_or("a snapshot without its stun")?;
        let took = Duration::from_nanos(protected.boottime_ns - since);
        Ok((took, Duration::from_nanos(stun_ns)))
    }

    fn wait_for_answers(&self) -> Result<(), String> {
        self.redis.wait_for_answers(ANSWERS_AFTER, STEP_TIMEOUT)?;
        self.echo.wait_for_answers(2, STEP_TIMEOUT)
    }

    fn take_longest_wait(&self) -> Duration {
        self.redis.take_longest_wait().max(self.echo.take_longest_wait())
    }
}

fn print_figures(all: &[Figures]) {
    let show = |name: &str, of: fn(&Figures) -> Duration| {
        let mut times: Vec<Duration> = all.iter().map(of).collect();
        times.sort();
        if let (Some(last), Some(median)) = (times.last(), times.get(times.len() / 2)) {
            println!("{name}: median {median:.2?}, longest {last:.2?}");
        }
    };
    show("from the death to its detection", |figures| figures.detected);
    show("from the death to going live", |figures| figures.live);
    show("a client's longest wait around it", |figures| figures.client_pause);
    show("from a backup's start to protection", |figures| figures.redundant_after);
    show("the guest stood still for its copy", |figures| figures.stun);
    show("a client's longest wait around that", |figures| figures.client_pause_in_pairing);
}
