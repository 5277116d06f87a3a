//! Stamps over loopback, as both sides of a pair use them.

mod common;

use base::VmId;
use common::{Client, OneDisk, Running, badge, stamp};
use disk::client::DialError;
use disk::{Access, Backend, Badge, DiskError, Extent, Op, RequestId};

/// behaviours 118, 158
#[test]
fn the_winner_deposes_the_other_side_for_good() {
    let disk = OneDisk::start();
    let old = Client::connect(&disk.url(), Some(badge(1))).unwrap();
    old.write(0, &[1; 512]).unwrap();
    let new = Client::connect(&disk.url(), Some(badge(2))).unwrap();
    new.write(0, &[2; 512]).unwrap();

    old.disk.submit(RequestId(7), Op::Write { offset: 0, data: vec![3; 512], durable: false });
    old.wait_deposed();
    assert!(matches!(old.wait(7), Err(DiskError::Deposed(_))));
    assert!(matches!(old.perform(Op::Flush), Err(DiskError::Deposed(_))), "also what comes later");
    let again = Client::connect(&disk.url(), Some(badge(1))).err().unwrap();
    assert!(matches!(again, DialError::Deposed { .. }), "{again}");
    assert_eq!(new.read(0, 512), [2; 512]);
}

/// behaviour 158
#[test]
fn a_deposed_side_stays_deposed_over_a_restart_of_the_server() {
    let OneDisk { dir, image, server } = OneDisk::start();
    drop(Client::connect(&server.url("disk"), Some(badge(5))).unwrap());
    drop(server);
    let exports = [format!("disk={}", image.display())];
    let server = Running::start(&dir.path().join("state"), &exports);
    let refused = Client::connect(&server.url("disk"), Some(badge(4))).err().unwrap();
    assert!(matches!(refused, DialError::Deposed { .. }), "{refused}");
    Client::connect(&server.url("disk"), Some(badge(5))).unwrap();
}

#[test]
fn a_side_that_won_goes_on_with_its_requests_under_the_new_stamp() {
    let disk = OneDisk::start();
    let side = Client::connect(&disk.url(), Some(badge(1))).unwrap();
    assert_eq!(side.wait_attached(), Some(stamp(1)));
    for id in 0..50 {
        let data = vec![9; 4096];
        side.disk.submit(RequestId(id), Op::Write { offset: id * 4096, data, durable: false });
    }
    side.disk.restamp(stamp(2));
    // Every request ends well, whether it was answered before the change or issued again after it.
    (0..50).for_each(|_| drop(side.next_done().unwrap()));
    let refused = loop {
        // The new stamp may still be on its way.
        match Client::connect(&disk.url(), Some(Badge { access: Access::Read, ..badge(1) })) {
            Ok(_) => std::thread::yield_now(),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, DialError::Deposed { .. }), "{refused}");
    assert_eq!(side.read(0, 50 * 4096), vec![9; 50 * 4096]);
}

#[test]
fn stamps_of_two_vms_do_not_mix() {
    let disk = OneDisk::start();
    let _vm = Client::connect(&disk.url(), Some(badge(1))).unwrap();
    let other = Badge { vm: VmId("other".to_owned()), ..badge(9) };
    let refused = Client::connect(&disk.url(), Some(other)).err().unwrap();
    assert!(matches!(refused, DialError::Refused { .. }));
    assert!(refused.to_string().contains("belongs to VM vm"), "{refused}");
}

#[test]
fn a_reader_deposes_nobody_and_writes_nothing() {
    let disk = OneDisk::start();
    let writer = Client::connect(&disk.url(), Some(badge(1))).unwrap();
    let reader = Badge { access: Access::Read, ..badge(3) };
    let reader = Client::connect(&disk.url(), Some(reader)).unwrap();
    writer.write(0, &[1; 512]).unwrap();
    assert!(reader.disk.info().read_only);
    assert_eq!(reader.read(0, 512), [1; 512]);
    assert!(matches!(reader.write(0, &[2; 512]), Err(DiskError::ReadOnly)));
}

#[test]
fn requests_survive_a_server_that_goes_away_and_comes_back() {
    let OneDisk { dir, image, server } = OneDisk::start();
    // The address stays ours while nobody listens: it is not the one that outgoing connections use.
    drop(server);
    let listen = format!("127.7.{}.1:7777", std::process::id() % 250 + 1);
    let exports = [format!("disk={}", image.display())];
    let server = Running::start_at(&listen, &dir.path().join("state"), &exports);
    let side = Client::connect(&server.url("disk"), Some(badge(1))).unwrap();
    side.write(0, &[4; 4096]).unwrap();
    drop(server);
    side.disk.submit(RequestId(1), Op::Read(Extent { offset: 0, len: 4096 }));
    side.disk.submit(RequestId(2), Op::Flush);
    let server = Running::start_at(&listen, &dir.path().join("state"), &exports);
    let mut results = [side.next_done().unwrap(), side.next_done().unwrap()];
    results.sort();
    assert_eq!(results, [vec![], vec![4; 4096]]);
    drop(server);
}

#[test]
fn a_disk_that_is_closed_says_so_to_what_is_left() {
    let OneDisk { server, .. } = OneDisk::start();
    let (send, events) = std::sync::mpsc::channel();
    let options = disk::client::NbdOptions {
        address: server.url("disk").parse().unwrap(),
        badge: None,
        connect_timeout: common::LONG,
        read_only: false,
    };
    let sink = Box::new(move |event| send.send(event).unwrap());
    let client = disk::client::NbdClient::connect(options, sink).unwrap();
    drop(server);
    for id in 0..10 {
        client.submit(RequestId(id), Op::Flush);
    }
    drop(client);
    let done = events.iter().filter(|event| matches!(event, disk::DiskEvent::Done(_))).count();
    assert_eq!(done, 10);
}

#[test]
fn a_snapshot_of_an_export_changes_and_deposes_nothing() {
    let disk = OneDisk::start();
    let vm = Client::connect(&disk.url(), Some(badge(1))).unwrap();
    vm.write(0, &[1; 4096]).unwrap();
    let options = disk::open::OpenOptions {
        badge: Some(badge(2)),
        snapshot: true,
        connect_timeout: common::LONG,
    };
    let (send, events) = std::sync::mpsc::channel();
    let sink = Box::new(move |event| send.send(event).unwrap());
    let snapshot = disk::open::open(&disk.url().parse().unwrap(), options, sink).unwrap();
    let perform = |op| {
        snapshot.submit(RequestId(1), op);
        match events.recv().unwrap() {
            disk::DiskEvent::Done(done) => done.result.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    perform(Op::Write { offset: 512, data: vec![2; 512], durable: true });
    let expected = [vec![1; 512], vec![2; 512], vec![1; 3072]].concat();
    assert_eq!(perform(Op::Read(Extent { offset: 0, len: 4096 })), expected);
    assert_eq!(vm.read(0, 4096), [1; 4096]);
    vm.write(0, &[3; 512]).unwrap();
}
