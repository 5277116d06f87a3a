//! Split brain: cut links, stopped processes and a silent arbiter, with real processes.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use testbed::clients::Clients;
use testbed::pair::{Pair, PairConfig, wait_for_redis};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a side is given to do what it must not.
const GRACE: Duration = Duration::from_secs(4);

/// A case's name and what it does with a pair under load.
type Case = (&'static str, fn(&Lab, &mut Pair<'_>) -> Result<Owner>);

/// Who has to own the VM at the end.
enum Owner {
    A,
    B,
    /// Whichever won, but one only.
    One,
}

const CASES: &[Case] = &[
    ("the link between the hosts is cut, both reach the arbiter: one goes on", link_cut),
    ("the link is cut and B cannot reach the arbiter: A goes on", link_and_b_cut),
    ("the link and the arbiter are cut: nobody goes on until it is back", all_cut),
    ("a primary that was stopped and continued after B went live changes nothing", primary_stopped),
];

pub(crate) fn run(lab: &Lab, config: &PairConfig, only: Option<usize>) -> Result<()> {
    let is_wanted = |index: usize| only.is_none_or(|only| only == index);
    let mut count = 0;
    for (index, (name, case)) in CASES.iter().enumerate().filter(|(index, _)| is_wanted(*index)) {
        count += 1;
        eprintln!("{name}");
        let work = config.work.join(format!("split-{index}"));
        std::fs::create_dir(&work)?;
        run_case(lab, PairConfig { work, ..config.clone() }, *case)?;
        eprintln!("  ok");
    }
    println!("{count} split-brain cases, 0 with two owners");
    Ok(())
}

fn run_case(
    lab: &Lab,
    config: PairConfig,
    case: fn(&Lab, &mut Pair<'_>) -> Result<Owner>,
) -> Result<()> {
    let msg = anyhow::Error::msg;
    let witness = Witness::start(lab)?;
    let mut pair = Pair::start(lab, config).map_err(msg)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(msg)?;
    let clients = Clients::redis(GUEST_ADDR, 2, 9)?;
    clients.wait_for_answers(20, STEP_TIMEOUT).map_err(msg)?;
    let owner = case(lab, &mut pair)?;
    lab.set_channel(true)?;
    clients.wait_for_answers(20, STEP_TIMEOUT).map_err(msg)?;
    thread::sleep(GRACE);
    let report = clients.stop();
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);
    let turns = witness.stop().map_err(msg)?;
    let of_a = || check_owners(&turns, &[Host::A]);
    let of_b = || check_owners(&turns, &[Host::A, Host::B]);
    match owner {
        Owner::A => of_a(),
        Owner::B => of_b(),
        Owner::One => of_a().or_else(|_| of_b()),
    }
    .map_err(msg)
}

fn lives(pair: &Pair<'_>) -> [bool; 2] {
    [Host::A, Host::B].map(|host| pair.events(host).iter().any(|event| event.event == "live"))
}

fn link_cut(lab: &Lab, pair: &mut Pair<'_>) -> Result<Owner> {
    lab.set_channel(false)?;
    wait_until(|| lives(pair) != [false, false])?;
    thread::sleep(GRACE);
    let lives = lives(pair);
    ensure!(lives != [true, true], "both sides went live");
    Ok(Owner::One)
}

fn link_and_b_cut(lab: &Lab, pair: &mut Pair<'_>) -> Result<Owner> {
    lab.set_service(Host::B, false)?;
    lab.set_channel(false)?;
    wait_until(|| lives(pair)[0])?;
    thread::sleep(GRACE);
    ensure!(!lives(pair)[1], "B went live without the arbiter");
    lab.set_service(Host::B, true)?;
    thread::sleep(GRACE);
    ensure!(!lives(pair)[1], "B went live after A had won");
    Ok(Owner::A)
}

fn all_cut(lab: &Lab, pair: &mut Pair<'_>) -> Result<Owner> {
    for host in [Host::A, Host::B] {
        lab.set_service(host, false)?;
    }
    lab.set_channel(false)?;
    thread::sleep(GRACE);
    ensure!(lives(pair) == [false, false], "a side went live without the arbiter");
    for host in [Host::A, Host::B] {
        lab.set_service(host, true)?;
    }
    wait_until(|| lives(pair) != [false, false])?;
    thread::sleep(GRACE);
    ensure!(lives(pair) != [true, true], "both sides went live");
    Ok(Owner::One)
}

fn primary_stopped(_lab: &Lab, pair: &mut Pair<'_>) -> Result<Owner> {
    pair.side(Host::A).signal(Signal::SIGSTOP)?;
    pair.wait_for_event(Host::B, "live", STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
    thread::sleep(GRACE);
    pair.side(Host::A).signal(Signal::SIGCONT)?;
    let status = pair.side(Host::A).wait(STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
    ensure!(!status.success(), "the deposed primary ended as if all was well");
    Ok(Owner::B)
}

fn wait_until(mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + STEP_TIMEOUT;
    while !done() {
        ensure!(std::time::Instant::now() < deadline, "nobody went live in {STEP_TIMEOUT:?}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
