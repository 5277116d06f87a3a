//! The path to the server breaks again and again, at any byte. The client's user sees every request
//! done once, and the disk as if nothing had happened.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::SeededRng;
use common::{Client, DISK_SIZE, OneDisk, badge};
use disk::{Backend, DiskEvent, Extent, Op, RequestId};

/// Forwards connections to `server`, and cuts most of them after a random number of bytes.
fn unreliable_path(server: SocketAddr, seed: u64, cuts: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let rng = Arc::new(Mutex::new(SeededRng::new(seed)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let budget = {
                    let mut rng = rng.lock().unwrap();
                    // Now and then inside the negotiation, otherwise anywhere after it.
                    if rng.one_in(8) { rng.below(300) } else { rng.below(1 << 19) }
                };
                let cuts = Arc::clone(&cuts);
                std::thread::spawn(move || forward(from, to, budget, &cuts));
            }
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut budget: u64, cuts: &AtomicU64) {
    let mut buf = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut buf) {
        let passed = budget.min(len as u64) as usize;
        budget -= passed as u64;
        if to.write_all(&buf[..passed]).is_err() {
            break;
        }
        if passed < len {
            cuts.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both); // either end may have gone
    let _ = to.shutdown(Shutdown::Both); // as above
}

const BLOCK: u64 = 4096;
const BLOCKS: u64 = DISK_SIZE / BLOCK;

fn check(seed: u64) -> u64 {
    let disk = OneDisk::start();
    let cuts = Arc::new(AtomicU64::new(0));
    let path = unreliable_path(disk.server.address, seed, Arc::clone(&cuts));
    let url = format!("nbd://{path}/disk");
    // The first connection has to be asked for; every later one is the client's own affair.
    let client = loop {
        if let Ok(client) = Client::connect(&url, Some(badge(1))) {
            break client;
        }
    };
    let mut rng = SeededRng::new(seed);
    let mut model = vec![0u8; DISK_SIZE as usize];
    // Requests in flight, each on blocks of its own: the blocks, and what a read has to give.
    let mut in_flight: BTreeMap<u64, (Extent, Option<Vec<u8>>)> = BTreeMap::new();
    for id in 0..600 {
        let first = rng.below(BLOCKS);
        let count = (1 + rng.below(4)).min(BLOCKS - first);
        let extent = Extent { offset: first * BLOCK, len: count * BLOCK };
        let overlaps = |other: &Extent| {
            extent.offset < other.offset + other.len && other.offset < extent.offset + extent.len
        };
        while in_flight.len() >= 16 || in_flight.values().any(|(other, _)| overlaps(other)) {
            finish_one(seed, &client, &mut in_flight);
        }
        let part = &mut model[extent.offset as usize..(extent.offset + extent.len) as usize];
        let (op, expected) = match rng.below(8) {
            0 => (Op::Flush, Some(vec![])),
            1 => {
                part.fill(0);
                (Op::WriteZeroes { extent, may_free: true }, Some(vec![]))
            }
            2..5 => (Op::Read(extent), Some(part.to_vec())),
            _ => {
                rng.fill(part);
                let durable = rng.one_in(5);
                (Op::Write { offset: extent.offset, data: part.to_vec(), durable }, Some(vec![]))
            }
        };
        in_flight.insert(id, (extent, expected));
        client.disk.submit(RequestId(id), op);
    }
    while !in_flight.is_empty() {
        finish_one(seed, &client, &mut in_flight);
    }
    assert!(std::fs::read(&disk.image).unwrap() == model, "seed {seed}");
    cuts.load(Ordering::Relaxed)
}

fn finish_one(
    seed: u64,
    client: &Client,
    in_flight: &mut BTreeMap<u64, (Extent, Option<Vec<u8>>)>,
) {
    loop {
        match client.event() {
            DiskEvent::Done(done) => {
                let (extent, expected) = in_flight.remove(&done.id.0).expect("done twice");
                assert!(done.result.ok() == expected, "seed {seed}: {extent:?}");
                return;
            }
            DiskEvent::Deposed { why } => panic!("seed {seed}: {why}"),
            DiskEvent::Attached { .. } | DiskEvent::Lost { .. } => {}
        }
    }
}

#[test]
fn a_path_that_breaks_at_any_byte_loses_repeats_and_reorders_nothing() {
    let cuts: u64 = (0..3).map(check).sum();
    assert!(cuts > 5, "the path broke only {cuts} times");
}
