//! Clients that mean no good, or are broken: the server and everybody else go on.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use base::SeededRng;
use common::{Client, LONG, OneDisk};
use disk::{Extent, Op};

fn raw(disk: &OneDisk) -> TcpStream {
    let stream = TcpStream::connect(disk.server.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Negotiates by the old, short way, so that requests can follow.
fn transmission(disk: &OneDisk) -> TcpStream {
    let mut stream = raw(disk);
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn request(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&7u64.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// The error number of the next reply.
fn answer(stream: &mut TcpStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[8..], 7u64.to_be_bytes());
    u32::from_be_bytes(reply[4..8].try_into().unwrap())
}

/// The server is still there, for a client that behaves.
fn check_alive(disk: &OneDisk) {
    let client = Client::connect(&disk.url(), None).unwrap();
    client.write(0, &[1; 512]).unwrap();
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn noise_in_any_phase_ends_its_own_connection_only() {
    let disk = OneDisk::start();
    for seed in 0..60 {
        let mut rng = SeededRng::new(seed);
        let mut noise = vec![0; rng.below(4096) as usize + 64];
        rng.fill(&mut noise);
        let mut stream = if rng.one_in(2) { raw(&disk) } else { transmission(&disk) };
        let _ = stream.write_all(&noise); // the server may have hung up already
        let _ = stream.shutdown(std::net::Shutdown::Write); // as above
        let mut end = Vec::new();
        let ended = stream.read_to_end(&mut end);
        let timed_out =
            matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "the server keeps the connection of seed {seed}");
    }
    check_alive(&disk);
}

#[test]
fn requests_that_cannot_be_are_answered_with_an_error() {
    let disk = OneDisk::start();
    let mut stream = transmission(&disk);
    let size = common::DISK_SIZE;
    let (invalid, no_space, overflow) = (22, 28, 75);
    for (bytes, expected) in [
        (request(0, size, 512), invalid),
        (request(0, u64::MAX, 512), invalid),
        (request(0, 0, u32::MAX), overflow),
        (request(6, size - 512, 1024), no_space),
        (request(4, size, 1), invalid),
        (request(99, 0, 0), invalid),
        (request(0, 0, 0), 0),
        (request(3, u64::MAX, 9), 0),
    ] {
        stream.write_all(&bytes).unwrap();
        assert_eq!(answer(&mut stream), expected, "{bytes:?}");
    }
    let beyond = [request(1, size - 2, 4), b"abcd".to_vec()].concat();
    stream.write_all(&beyond).unwrap();
    assert_eq!(answer(&mut stream), no_space);
    let unknown_flag = {
        let mut bytes = request(0, 0, 512);
        bytes[4] = 0x80;
        bytes
    };
    stream.write_all(&unknown_flag).unwrap();
    assert_eq!(answer(&mut stream), invalid);
}

#[test]
fn a_write_of_four_gigabytes_ends_the_connection_before_any_memory_is_taken() {
    let disk = OneDisk::start();
    let mut stream = transmission(&disk);
    stream.write_all(&request(1, 0, u32::MAX)).unwrap();
    // Well below the time after which any stalled client is dropped.
    stream.set_read_timeout(Some(std::time::Duration::from_secs(15))).unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    check_alive(&disk);
}

#[test]
fn silent_and_half_sent_connections_hold_up_nobody() {
    let disk = OneDisk::start();
    let mut silent = Vec::new();
    for index in 0..100 {
        let mut stream = if index % 2 == 0 { raw(&disk) } else { transmission(&disk) };
        if index % 4 == 1 {
            // Half of a write's payload.
            stream.write_all(&[request(1, 0, 4096), vec![9; 2048]].concat()).unwrap();
        }
        silent.push(stream);
    }
    check_alive(&disk);
    // A writer with a stamp does not wait for payload that never comes either.
    let vm = Client::connect(&disk.url(), Some(common::badge(1))).unwrap();
    vm.write(0, &[2; 512]).unwrap();
    assert_eq!(vm.read(0, 512), [2; 512]);
}

#[test]
fn a_client_that_takes_no_replies_is_bounded_and_holds_up_nobody() {
    let disk = OneDisk::start();
    let mut greedy = transmission(&disk);
    greedy.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    // Each asks for the whole disk; the server stops reading once its own bound is reached.
    let many = request(0, 0, common::DISK_SIZE as u32).repeat(2_000_000);
    assert!(greedy.write_all(&many).is_err(), "the server took everything");
    check_alive(&disk);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_the_rest_served() {
    let disk = OneDisk::start();
    let client = Client::connect(&disk.url(), None).unwrap();
    let mut kept = Vec::new();
    let refused = loop {
        let mut stream = raw(&disk);
        let mut greeting = [0; 18];
        match stream.read_exact(&mut greeting) {
            Ok(()) => kept.push(stream),
            Err(error) => break error,
        }
        assert!(kept.len() < 1000, "there is no limit");
    };
    assert_ne!(refused.kind(), std::io::ErrorKind::WouldBlock);
    client.perform(Op::Read(Extent { offset: 0, len: 4096 })).unwrap();
    drop(kept);
}
