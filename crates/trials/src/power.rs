//! Power-on: not while another copy of the VM may live, and after the loss of all hosts from disks that
//! are as after a crash.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Error, Result, ensure};
use nix::sys::signal::Signal;
use testbed::clients::{Clients, Written};
use testbed::pair::{Pair, PairConfig, wait_for_redis};
use testbed::witness::{Witness, check_owners};
use testbed::{GUEST_ADDR, Host, Lab};

const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// After this time without an answer a client knows that the server is lost. In these cases no side
/// takes over, so that answers come soon or never.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECTIONS: u64 = 2;
const REDIS: SocketAddrV4 = SocketAddrV4::new(GUEST_ADDR, 6379);
/// Exit status of a power-on that was refused because another copy may run.
const REFUSED: i32 = 6;

/// A runs the VM without a backup, and B's operator powers it on as well: refused, whatever A's host is
/// like, and nobody notices. It is allowed when A's guest has powered off.
pub(crate) fn beside_a_copy(lab: &Lab, config: PairConfig) -> Result<()> {
    let witness = Witness::start(lab)?;
    let mut pair = Pair::prepare(lab, config).map_err(Error::msg)?;
    pair.start_primary(Host::A).map_err(Error::msg)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(Error::msg)?;
    let clients = Clients::redis(GUEST_ADDR, CONNECTIONS, 5)?;
    clients.wait_for_answers(20, STEP_TIMEOUT).map_err(Error::msg)?;

    check_refused(&mut pair, Host::B, "beside a copy that runs")?;
    pair.side(Host::A).signal(Signal::SIGSTOP)?;
    check_refused(&mut pair, Host::B, "beside a copy that is stopped")?;
    pair.side(Host::A).signal(Signal::SIGCONT)?;
    clients.wait_for_answers(20, STEP_TIMEOUT).map_err(Error::msg)?;
    lab.set_all(Host::A, false)?;
    check_refused(&mut pair, Host::B, "beside a copy that is cut off")?;
    lab.set_all(Host::A, true)?;
    clients.wait_for_answers(20, STEP_TIMEOUT).map_err(Error::msg)?;
    let report = clients.stop();
    ensure!(report.faults.is_empty(), "clients saw {:#?}", report.faults);

    let mut console = pair.console(Host::A).map_err(Error::msg)?;
    console.type_line("poweroff")?;
    let status = pair.side(Host::A).wait(STEP_TIMEOUT).map_err(Error::msg)?;
    ensure!(status.success(), "the VM that was powered off ended with {status}");
    pair.start_primary(Host::B).map_err(Error::msg)?;
    pair.wait_for_event(Host::B, "powered_on", STEP_TIMEOUT).map_err(Error::msg)?;
    check_owners(&witness.stop().map_err(Error::msg)?, &[Host::A]).map_err(Error::msg)
}

/// Both hosts of a pair, and the disk server's process, are lost at once in the middle of writes. Until
/// both hosts say that they run nothing any more the VM stays off; then it has every write that was
/// acknowledged.
pub(crate) fn after_a_crash(lab: &Lab, config: PairConfig) -> Result<()> {
    let mut pair = Pair::start(lab, config).map_err(Error::msg)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(Error::msg)?;
    let clients = Clients::redis_with_timeout(GUEST_ADDR, CONNECTIONS, 7, ANSWER_TIMEOUT)?;
    clients.wait_for_answers(200, STEP_TIMEOUT).map_err(Error::msg)?;

    clients.expect_the_loss_of_the_server();
    for host in [Host::A, Host::B] {
        pair.side(host).kill();
    }
    pair.restart_disk().map_err(Error::msg)?;
    check_refused(&mut pair, Host::A, "while B's host says nothing")?;
    pair.start_backup(Host::B).map_err(Error::msg)?;
    pair.start_primary(Host::A).map_err(Error::msg)?;
    pair.wait_for_event(Host::A, "protected", STEP_TIMEOUT).map_err(Error::msg)?;
    wait_for_redis(BOOT_TIMEOUT).map_err(Error::msg)?;

    let (report, written) = clients.join();
    ensure!(report.faults.is_empty(), "before the crash clients saw {:#?}", report.faults);
    check_written(&written)
}

fn check_written(written: &Written) -> Result<()> {
    let count = written.read_back(REDIS).map_err(Error::msg)?;
    eprintln!("  every acknowledged write is there, in {count} keys");
    Ok(())
}

fn check_refused(pair: &mut Pair<'_>, host: Host, when: &str) -> Result<()> {
    pair.start_primary(host).map_err(Error::msg)?;
    let status = pair.side(host).wait(STEP_TIMEOUT).map_err(Error::msg);
    let said = pair.side(host).output();
    let status = status.map_err(|error| error.context(format!("not refused {when}")))?;
    ensure!(status.code() == Some(REFUSED), "power-on {when} ended with {status}: {said}");
    ensure!(said.contains("may still run the VM"), "power-on {when} was refused so: {said}");
    Ok(())
}
