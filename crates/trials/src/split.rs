//! Split brain: cut links, stopped processes, a silent arbiter, bytes that arrive late and answers that
//! never do, with real processes.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use testbed::clients::Clients;
use testbed::pair::{DISK_SERVER, Detour, Pair, PairConfig, wait_for_redis};
use testbed::relay::{Relay, Way};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab, Process};

use crate::power;

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a side is given to do what it must not.
const GRACE: Duration = Duration::from_secs(4);

/// Exit status of a side that lost the VM.
const LOST: i32 = 4;

/// A case's name and what it does.
type Case = (&'static str, fn(&Lab, PairConfig) -> Result<()>);

/// Who has to own the VM at the end.
enum Owner {
    A,
    B,
    /// Whichever won, but one only.
    One,
}

const CASES: &[Case] = &[
    ("the link between the hosts is cut, both reach the arbiter: one goes on", |lab, config| {
        under_load(lab, config, link_cut)
    }),
    ("the link is cut and B cannot reach the arbiter: A goes on", |lab, config| {
        under_load(lab, config, link_and_b_cut)
    }),
    ("the link and the arbiter are cut: nobody goes on until it is back", |lab, config| {
        under_load(lab, config, all_cut)
    }),
    (
        "a primary that was stopped and continued after B went live changes nothing",
        |lab, config| under_load(lab, config, primary_stopped),
    ),
    ("the old primary's disk writes arrive when B is live: they are refused", late_writes),
    ("the answer to B's claim is lost: B asks again and has won", lost_answer),
    (
        "power-on is refused beside a copy that runs, is stopped, or is cut off",
        power::beside_a_copy,
    ),
    (
        "all hosts are lost: power-on needs their word, and the disk is as after a crash",
        power::after_a_crash,
    ),
];

/// Runs all cases, or only those.
pub(crate) fn run(lab: &Lab, config: &PairConfig, only: &[usize]) -> Result<()> {
    let is_wanted = |index: usize| only.is_empty() || only.contains(&index);
    let mut count = 0;
    for (index, (name, case)) in CASES.iter().enumerate().filter(|(index, _)| is_wanted(*index)) {
        count += 1;
        eprintln!("{name}");
        let work = config.work.join(format!("split-{index}"));
        std::fs::create_dir(&work)?;
        case(lab, PairConfig { work, ..config.clone() }).context(*name)?;
        eprintln!("  ok");
    }
    println!("{count} split-brain cases, 0 with two owners");
    Ok(())
}

/// Starts a pair and its clients, lets `case` happen to it, and checks that the clients saw one machine
/// and the witness the right owners.
fn under_load(
    lab: &Lab,
    config: PairConfig,
    case: impl FnOnce(&Lab, &mut Pair<'_>) -> Result<Owner>,
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
    wait_until("a side goes live", || lives(pair) != [false, false])?;
    thread::sleep(GRACE);
    let lives = lives(pair);
    ensure!(lives != [true, true], "both sides went live");
    Ok(Owner::One)
}

fn link_and_b_cut(lab: &Lab, pair: &mut Pair<'_>) -> Result<Owner> {
    lab.set_service(Host::B, false)?;
    lab.set_channel(false)?;
    wait_until("a side goes live", || lives(pair)[0])?;
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
    wait_until("a side goes live", || lives(pair) != [false, false])?;
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

/// A file of the guest, to whose block on the disk the old and the new owner write.
const BLOCK: &str = "/block";
const BLOCK_LEN: usize = 4096;
const NOTHING: &str = "nothing-written-yet-----";
const OLD: &str = "written-by-the-old-owner";
const NEW: &str = "written-by-the-new-owner";

/// A's writes stay on their way while B takes over, has them carried out itself, and writes something
/// else to the same place. Then they arrive. The arbiter stays out of A's reach: only the disk server
/// can refuse it.
fn late_writes(lab: &Lab, mut config: PairConfig) -> Result<()> {
    let [to_disk, to_arbiter] = [Relay::start(DISK_SERVER)?, Relay::start(DISK_SERVER)?];
    config.detours[Host::A as usize] =
        Detour { disk: Some(to_disk.addr()), arbiter: Some(to_arbiter.addr()) };
    under_load(lab, config, |lab, pair| {
        let mut console = pair.console(Host::B).map_err(anyhow::Error::msg)?;
        // Once before, so that there is a place and nothing has to be read later.
        console.type_line(&format!("{}; sync", write_block(NOTHING, BLOCK, 0)))?;
        answer(&mut console, "echo prepared")?;
        let place = block_of(&pair.disk_image(), NOTHING)?;
        // By the disk and not by the file, whose times are in the journal, which may wait for a write of
        // Redis that is held as well.
        let write = |what| write_block(what, "/dev/vda", place);
        console.type_line(&write(NOTHING))?;
        answer(&mut console, "echo rehearsed")?;

        for way in [Way::Up, Way::Down] {
            to_disk.hold(way, b"");
        }
        console.type_line(&write(OLD))?;
        let mut in_flight = None;
        wait_until("a write of the old owner is on its way", || {
            let held = to_disk.held(Way::Up);
            in_flight = held.iter().find_map(|bytes| find_write(bytes, OLD));
            in_flight.is_some()
        })?;
        let (image, offset) = (pair.disk_image(), in_flight.context("a write in flight")?);
        ensure!(read_at(&image, offset)? != OLD, "the write that is held has arrived");

        for way in [Way::Up, Way::Down] {
            to_arbiter.hold(way, b"");
        }
        lab.set_channel(false)?;
        pair.wait_for_event(Host::B, "live", STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
        wait_until("the console has found B", || {
            console.output().matches("connected to VM").count() > 1
        })?;
        answer(&mut console, "echo went on")?;
        ensure!(read_at(&image, offset)? == OLD, "B has not carried out what A had begun");
        console.type_line(&write(NEW))?;
        answer(&mut console, "echo written")?;
        ensure!(read_at(&image, offset)? == NEW, "the new owner's write is not on the disk");

        let held: usize = to_disk.held(Way::Up).iter().map(Vec::len).sum();
        to_disk.release();
        let ended = pair.side(Host::A).wait(STEP_TIMEOUT).map_err(anyhow::Error::msg);
        let found = read_at(&image, offset)?;
        ensure!(found == NEW, "a late write has landed: the disk has {found:?}");
        let status = ended?;
        ensure!(status.code() == Some(LOST), "the deposed primary ended with {status}");
        let said = pair.side(Host::A).output();
        ensure!(
            said.contains("deposed"),
            "A did not hear from its disk that it is deposed: {said}"
        );
        eprintln!("  {held} bytes of A's requests arrived late; its disk told it: deposed");
        Ok(Owner::B)
    })
}

/// Has the guest's shell write `what` past its cache, as block number `place` of a file or disk.
fn write_block(what: &str, to: &str, place: u64) -> String {
    let how = format!("seek={place} conv=sync,notrunc oflag=direct");
    format!("echo {what} | /bin/dd of={to} bs={BLOCK_LEN} {how}")
}

/// Which block of an image starts with `what`.
fn block_of(image: &Path, what: &str) -> Result<u64> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(image)?);
    let mut block = [0; BLOCK_LEN];
    let mut place = 0;
    loop {
        file.read_exact(&mut block).with_context(|| format!("{what:?} is not on the disk"))?;
        if block.starts_with(what.as_bytes()) {
            return Ok(place);
        }
        place += 1;
    }
}

/// Waits until the guest's shell has done everything that was typed.
fn answer(console: &mut Process, question: &str) -> Result<()> {
    // The console shows what was typed as well, and that ends otherwise.
    console.type_line(&format!("{question} $((1+1))"))?;
    let answer = question.replace("echo ", "") + " 2";
    console.wait_for(&answer, STEP_TIMEOUT).map_err(anyhow::Error::msg)
}

fn read_at(image: &Path, offset: u64) -> Result<String> {
    let mut bytes = [0; OLD.len()];
    File::open(image)?.read_exact_at(&mut bytes, offset)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where the NBD write request in `bytes` goes whose data begin with `data`.
fn find_write(bytes: &[u8], data: &str) -> Option<u64> {
    const HEADER_LEN: usize = 28;
    /// Magic number, no flags, the command for writing.
    const WRITE: [u8; 8] = [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1];
    let is_it = |window: &&[u8]| window.starts_with(&WRITE) && window.ends_with(data.as_bytes());
    let found = bytes.windows(HEADER_LEN + data.len()).find(is_it)?;
    Some(u64::from_be_bytes(found[16..24].try_into().ok()?))
}

/// How a claim of the VM `vm`, and its answer, look on the wire (docs/formats/arbiter.md).
const CLAIM: &[u8] = b"\x02vm\x03";

/// B claims and wins, and the answer never comes. A asks next, and has lost. Nobody runs the VM, until
/// B hears that it has won.
fn lost_answer(lab: &Lab, mut config: PairConfig) -> Result<()> {
    let to_arbiter = Relay::start(DISK_SERVER)?;
    config.detours[Host::B as usize].arbiter = Some(to_arbiter.addr());
    under_load(lab, config, |lab, pair| {
        to_arbiter.hold(Way::Down, CLAIM);
        lab.set_service(Host::A, false)?;
        lab.set_channel(false)?;
        wait_until("B has claimed", || !to_arbiter.held(Way::Down).is_empty())?;
        lab.set_service(Host::A, true)?;
        let status = pair.side(Host::A).wait(STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
        ensure!(status.code() == Some(LOST), "the primary, which had not won, ended with {status}");
        ensure!(lives(pair) == [false, false], "a side went live that cannot know that it has won");
        let asked_before = claims(pair, "Won").len();

        to_arbiter.cut();
        pair.wait_for_event(Host::B, "live", STEP_TIMEOUT).map_err(anyhow::Error::msg)?;
        wait_until("B has asked again", || claims(pair, "Won").len() > asked_before)?;
        let won = claims(pair, "Won");
        ensure!(won.iter().all(|claim| *claim == won[0]), "different claims were won: {won:?}");
        ensure!(!claims(pair, "Lost").contains(&won[0]), "B was told once that it had lost");
        eprintln!("  {asked_before} answers to B's claim were lost, the next one came");
        Ok(Owner::B)
    })
}

/// The claims that the arbiter answered so, from its diagnostics.
fn claims(pair: &Pair<'_>, outcome: &str) -> Vec<String> {
    let said = pair.disk.output();
    let answers = said.lines().filter_map(|line| line.split_once(" -> "));
    let claims = answers.filter(|(asked, told)| asked.contains("Claim") && *told == outcome);
    claims.map(|(asked, _)| asked.to_owned()).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + STEP_TIMEOUT;
    while !done() {
        ensure!(std::time::Instant::now() < deadline, "not within {STEP_TIMEOUT:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
