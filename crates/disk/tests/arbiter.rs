//! The arbiter over loopback.

mod common;

use std::sync::mpsc::channel;
use std::time::Duration;

use base::{Claimant, Generation, VmId};
use common::{LONG, OneDisk, Running};
use disk::arbiter::client::{ArbiterClient, ArbiterError, ArbiterEvent, ArbiterThread};
use disk::client::DialError;
use ft::arbiter::{Op, Outcome, Record, Refusal, Request};

const A: Claimant = Claimant(0xa);
const B: Claimant = Claimant(0xb);

fn request(op: Op) -> Request {
    Request { vm: VmId("vm".to_owned()), op }
}

fn arm(generation: u64) -> Op {
    Op::Arm { generation: Generation(generation), primary: A, backup: B }
}

fn claim(generation: u64, claimant: Claimant) -> Request {
    request(Op::Claim { generation: Generation(generation), claimant })
}

fn power_on() -> Op {
    Op::PowerOn { claimant: A, seen: Generation(0), dead: vec![], copy: None, force: false }
}

fn client(server: &Running) -> ArbiterClient {
    ArbiterClient::new(server.address.to_string(), LONG)
}

/// A server with no export at all is an arbiter too.
fn arbiter() -> (tempfile::TempDir, Running) {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(&dir.path().join("state"), &[]);
    (dir, server)
}

/// behaviours 53, 54, 55
#[test]
fn of_two_that_claim_at_once_exactly_one_wins() {
    let (_dir, server) = arbiter();
    let mut asker = client(&server);
    asker.ask(&request(power_on())).unwrap();
    for generation in 2..30 {
        let armed = asker.ask(&request(arm(generation))).unwrap();
        assert_eq!(armed.outcome, Outcome::Armed);
        let outcomes = std::thread::scope(|scope| {
            let ask = |claimant| client(&server).ask(&claim(generation, claimant)).unwrap().outcome;
            let other = scope.spawn(move || ask(B));
            [ask(A), other.join().unwrap()]
        });
        match outcomes {
            [Outcome::Won, Outcome::Lost] => {}
            [Outcome::Lost, Outcome::Won] => {
                // Give the VM back to A for the next round.
                let off = Op::PowerOff { generation: Generation(generation), claimant: B };
                asker.ask(&request(off)).unwrap();
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// behaviour 149
#[test]
fn a_winner_that_asks_again_on_a_new_connection_is_told_again() {
    let (_dir, server) = arbiter();
    let mut asker = client(&server);
    asker.ask(&request(power_on())).unwrap();
    asker.ask(&request(arm(2))).unwrap();
    assert_eq!(client(&server).ask(&claim(2, B)).unwrap().outcome, Outcome::Won);
    assert_eq!(client(&server).ask(&claim(2, A)).unwrap().outcome, Outcome::Lost);
    assert_eq!(client(&server).ask(&claim(2, B)).unwrap().outcome, Outcome::Won);
}

/// behaviour 152
#[test]
fn power_on_is_refused_while_another_copy_may_live() {
    let (_dir, server) = arbiter();
    client(&server).ask(&request(power_on())).unwrap();
    let other =
        Op::PowerOn { claimant: B, seen: Generation(1), dead: vec![], copy: None, force: false };
    let answer = client(&server).ask(&request(other)).unwrap();
    assert_eq!(answer.outcome, Outcome::Refused(Refusal::MayRun { alive: vec![A] }));
}

#[test]
fn whoever_looks_for_a_vm_finds_its_owner() {
    let (_dir, server) = arbiter();
    let mut asker = client(&server);
    let vm = VmId("vm".to_owned());
    assert_eq!(asker.look(&vm).unwrap(), None);
    asker.announce(&vm, A, "host-a:7000").unwrap();
    asker.ask(&request(power_on())).unwrap();
    let status = asker.look(&vm).unwrap().unwrap();
    assert_eq!(status.record, Record::Owned { generation: Generation(1), owner: A });
    assert_eq!(status.addresses, [(A, "host-a:7000".to_owned())]);
    assert_eq!(asker.list().unwrap(), [status]);
}

/// behaviour 56
#[test]
fn a_question_is_asked_until_the_arbiter_is_back() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens there, and no outgoing connection takes the address.
    let listen = format!("127.8.{}.1:7777", std::process::id() % 250 + 1);
    let (send, events) = channel();
    let asker = ArbiterClient::new(&listen, Duration::from_secs(2));
    let asker = ArbiterThread::start(
        asker,
        Box::new(move |event| {
            let _ = send.send(event); // the test may have seen enough
        }),
    )
    .unwrap();
    asker.ask(request(power_on()));
    asker.ask(request(power_on()));
    let event = events.recv_timeout(LONG).unwrap();
    assert!(matches!(event, ArbiterEvent::Unreachable(_)), "{event:?}");
    let server = Running::start_at(&listen, &dir.path().join("state"), &[]);
    let answer = loop {
        if let ArbiterEvent::Answer(answer) = events.recv_timeout(LONG).unwrap() {
            break answer;
        }
    };
    assert_eq!(answer.outcome, Outcome::PoweredOn { generation: Generation(1) });
    asker.ask(request(Op::Query));
    let ArbiterEvent::Answer(answer) = events.recv_timeout(LONG).unwrap() else { panic!() };
    assert_eq!(answer.op, Op::Query, "the same question twice is asked once");
    drop((asker, server));
}

#[test]
fn a_peer_that_is_no_arbiter_is_named() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = ArbiterClient::new(address, LONG).ask(&request(Op::Query)).unwrap_err();
    let nonsense = matches!(error, ArbiterError::Dial(DialError::Nonsense { .. }));
    assert!(nonsense, "{error}");
    peer.join().unwrap();
}

#[test]
fn a_disk_and_its_arbiter_share_one_port() {
    let disk = OneDisk::start();
    let side = common::Client::connect(&disk.url(), Some(common::badge(1))).unwrap();
    side.write(0, &[1; 512]).unwrap();
    client(&disk.server).ask(&request(power_on())).unwrap();
    assert_eq!(side.read(0, 512), [1; 512]);
}
