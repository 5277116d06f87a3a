//! The server is killed with SIGKILL at the worst moments, and started again.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base::{Claimant, Generation, SeededRng, VmId};
use common::{Client, LONG, badge, qemu_ok};
use disk::arbiter::client::ArbiterClient;
use disk::client::DialError;
use disk::server::{Config, Server};
use disk::{Backend, DiskError, Extent, RequestId};
use ft::arbiter::{Answer, Op, Outcome, Request};

/// Set in the process that plays the server: its arguments, one a line.
const SERVER_VAR: &str = "LOCKSTEP_TEST_DISK_SERVER";

/// The server's side of [`Process`]. As a test of its own it has nothing to do.
#[test]
fn server_process() {
    let Ok(arguments) = std::env::var(SERVER_VAR) else { return };
    let mut lines = arguments.lines();
    let mut next = || lines.next().expect("address and state directory");
    let (listen, state) = (next().to_owned(), PathBuf::from(next()));
    let exports = lines.map(|spec| spec.parse().unwrap()).collect();
    let server = Server::bind(&Config { listen, exports, state }).unwrap();
    println!("\nlistening");
    server.run();
}

/// A server in a process of its own, killed when it is dropped.
struct Process {
    child: Child,
}

impl Process {
    fn start(listen: &str, state: &Path, exports: &[String]) -> Process {
        let arguments = [&[listen.to_owned(), state.display().to_string()], exports].concat();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .env(SERVER_VAR, arguments.join("\n"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == "listening"), "the server did not start");
        Process { child }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be dead already
        let _ = self.child.wait(); // as above
    }
}

/// An address that outgoing connections never take, so that it is free between kill and restart.
fn address(test: u32) -> String {
    format!("127.9.{}.{}:7777", std::process::id() % 250 + 1, test)
}

const A: Claimant = Claimant(0xa);
const B: Claimant = Claimant(0xb);

fn ask(server: &str, op: Op) -> Answer {
    let request = Request { vm: VmId("vm".to_owned()), op };
    let mut client = ArbiterClient::new(server, Duration::from_secs(5));
    client.ask_for(&request, LONG).unwrap()
}

fn arm(server: &str) {
    let on =
        Op::PowerOn { claimant: A, seen: Generation(0), dead: vec![], copy: None, force: false };
    ask(server, on);
    let armed = ask(server, Op::Arm { generation: Generation(2), primary: A, backup: B });
    assert_eq!(armed.outcome, Outcome::Armed);
}

fn claim(claimant: Claimant) -> Op {
    Op::Claim { generation: Generation(2), claimant }
}

/// behaviours 54, 149
#[test]
fn a_claim_that_was_recorded_but_not_answered_is_won_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (listen, state) = (address(1), dir.path().join("state"));
    let mut server = Process::start(&listen, &state, &[]);
    arm(&listen);
    let record = state.join("vm-vm.record");
    let inode = || std::fs::metadata(&record).unwrap().ino();
    let before = inode();

    // The claimant dies (or hears nothing) and the server is killed once the record is there.
    let claimed = std::thread::spawn({
        let listen = listen.clone();
        move || {
            let request = Request { vm: VmId("vm".to_owned()), op: claim(A) };
            let _ = ArbiterClient::new(listen, LONG).ask(&request); // nobody listens to the answer
        }
    });
    let started = Instant::now();
    while inode() == before {
        assert!(started.elapsed() < LONG, "no record of the claim");
    }
    server.kill();
    claimed.join().unwrap();

    let _server = Process::start(&listen, &state, &[]);
    assert_eq!(ask(&listen, claim(B)).outcome, Outcome::Lost);
    assert_eq!(ask(&listen, claim(A)).outcome, Outcome::Won);
}

/// behaviours 54, 56
#[test]
fn exactly_one_wins_however_often_the_server_is_killed_meanwhile() {
    for round in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let (listen, state) = (address(2), dir.path().join("state"));
        let mut server = Process::start(&listen, &state, &[]);
        arm(&listen);
        let claim = |claimant| {
            let listen = listen.clone();
            std::thread::spawn(move || ask(&listen, claim(claimant)).outcome)
        };
        let claims = [claim(A), claim(B)];
        // A different moment each time, from before the claims arrive to after they are answered.
        std::thread::sleep(Duration::from_micros(300 * round));
        server.kill();
        let _server = Process::start(&listen, &state, &[]);
        let outcomes = claims.map(|claim| claim.join().unwrap());
        let one = outcomes.contains(&Outcome::Won) && outcomes.contains(&Outcome::Lost);
        assert!(one, "round {round}: {outcomes:?}");
    }
}

/// behaviour 158
#[test]
fn a_fence_that_was_answered_holds_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let exports = [format!("disk={}", image.display())];
    let (listen, state) = (address(3), dir.path().join("state"));
    let url = format!("nbd://{listen}/disk");
    let mut server = Process::start(&listen, &state, &exports);
    let old = Client::connect(&url, Some(badge(1))).unwrap();
    // The winner dies with the server, so only the server's own memory speaks for it.
    drop(Client::connect(&url, Some(badge(2))).unwrap());
    server.kill();
    let _server = Process::start(&listen, &state, &exports);
    old.wait_deposed();
    assert!(matches!(old.write(0, &[1; 512]), Err(DiskError::Deposed(_))));
    let refused = Client::connect(&url, Some(badge(1))).err().unwrap();
    assert!(matches!(refused, DialError::Deposed { .. }), "{refused}");
    let again = Client::connect(&url, Some(badge(2))).unwrap();
    assert_eq!(again.read(0, 512), [0; 512]);
}

/// A killed server loses what its image library held back; the client writes it again.
#[test]
fn nothing_that_was_written_is_lost_when_the_server_is_killed() {
    for (test, format) in [(4, "raw"), (5, "qcow2")] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join(format!("disk.{format}"));
        let path = image.to_str().unwrap();
        let size = 4 << 20;
        qemu_ok("qemu-img", &["create", "-f", format, path, &size.to_string()]);
        let exports = [format!("disk={path}")];
        let (listen, state) = (address(test), dir.path().join("state"));
        let mut server = Process::start(&listen, &state, &exports);
        let client = Client::connect(&format!("nbd://{listen}/disk"), Some(badge(1))).unwrap();

        let mut model = vec![0; size];
        let mut rng = SeededRng::new(u64::from(test));
        for step in 0..200 {
            if step % 50 == 40 {
                // In the middle of requests in flight, which do not overlap each other.
                for part in 0..8 {
                    let offset = part * (size / 8);
                    rng.fill(&mut model[offset..offset + 4096]);
                    let data = model[offset..offset + 4096].to_vec();
                    let write = disk::Op::Write { offset: offset as u64, data, durable: false };
                    client.disk.submit(RequestId(part as u64), write);
                }
                server.kill();
                server = Process::start(&listen, &state, &exports);
                (0..8).for_each(|_| drop(client.next_done().unwrap()));
                continue;
            }
            let offset = rng.below(size as u64 / 512) * 512;
            let len = ((1 + rng.below(64)) * 512).min(size as u64 - offset);
            let part = &mut model[offset as usize..(offset + len) as usize];
            match rng.below(8) {
                0 => {
                    part.fill(0);
                    let extent = Extent { offset, len };
                    let may_free = rng.one_in(2);
                    client.perform(disk::Op::WriteZeroes { extent, may_free }).unwrap();
                }
                1 if step % 3 == 0 => drop(client.perform(disk::Op::Flush).unwrap()),
                _ => {
                    rng.fill(part);
                    client.write(offset, part).unwrap();
                }
            }
        }
        assert!(client.read(0, size as u64) == model, "{format}");
        client.perform(disk::Op::Flush).unwrap();
        // What was flushed needs no client that remembers it.
        drop(client);
        server.kill();
        let out = dir.path().join("out.img");
        let out_path = out.to_str().unwrap();
        qemu_ok("qemu-img", &["convert", "-f", format, "-O", "raw", path, out_path]);
        assert!(std::fs::read(&out).unwrap() == model, "{format} after a flush");
    }
}
