//! The transport, with the entropy device behind it because that has the least of its own.

use super::*;
use crate::virtio::Rng;
use crate::virtio::testing::ring;

fn setup() -> (GuestMem, Rng) {
    (GuestMem::new(1 << 20).unwrap(), Rng::new())
}

fn write(mem: &mut GuestMem, rng: &mut Rng, offset: u64, value: u32) {
    rng.mmio_write(mem, offset, 4, u64::from(value));
}

fn status(mem: &mut GuestMem, rng: &mut Rng, value: u32) -> u64 {
    write(mem, rng, 0x70, value);
    rng.mmio_read(0x70, 4)
}

fn accept_features(mem: &mut GuestMem, rng: &mut Rng, features: u64) {
    for half in 0..2 {
        write(mem, rng, 0x24, half);
        write(mem, rng, 0x20, (features >> (32 * half)) as u32);
    }
}

#[test]
fn the_window_identifies_itself() {
    let (mut mem, mut rng) = setup();
    let identity = [0, 4, 8].map(|offset| rng.mmio_read(offset, 4));
    assert_eq!(identity, [0x7472_6976, 2, 4]);
    let mut features = |select| {
        write(&mut mem, &mut rng, 0x14, select);
        rng.mmio_read(0x10, 4)
    };
    assert_eq!([features(0), features(1), features(2)], [0x3000_0000, 1, 0]);
}

#[test]
fn features_are_accepted_only_with_version_1_and_if_offered() {
    let (mut mem, mut rng) = setup();
    assert_eq!(status(&mut mem, &mut rng, 3), 3);
    assert_eq!(status(&mut mem, &mut rng, 11), 3, "no features");
    accept_features(&mut mem, &mut rng, F_VERSION_1 | 1);
    assert_eq!(status(&mut mem, &mut rng, 11), 3, "one that is not offered");
    assert_eq!(status(&mut mem, &mut rng, 7), 3, "not without features");
    accept_features(&mut mem, &mut rng, F_VERSION_1);
    assert_eq!(status(&mut mem, &mut rng, 11), 11);
    // Then they are fixed.
    accept_features(&mut mem, &mut rng, F_VERSION_1 | F_RING_EVENT_IDX);
    assert_eq!(rng.features(), F_VERSION_1);
    assert_eq!(status(&mut mem, &mut rng, 15), 15);
    assert_eq!(status(&mut mem, &mut rng, 0x80), 0x8f, "bits stay until the reset");
    assert_eq!(status(&mut mem, &mut rng, 0), 0);
    assert_eq!(rng.features(), 0);
}

#[test]
fn a_queue_becomes_ready_only_if_it_is_well_formed() {
    let (mut mem, mut rng) = setup();
    let mut ready_with = |size: u32, used: u32| {
        for (offset, value) in [(0x44, 0), (0x38, size), (0x80, 0x1000), (0xa0, used), (0x44, 1)] {
            write(&mut mem, &mut rng, offset, value);
        }
        rng.mmio_read(0x44, 4) == 1
    };
    assert!(ready_with(16, 0x3000));
    assert!(ready_with(256, 0x3000));
    for (size, used) in [(0, 0x3000), (3, 0x3000), (512, 0x3000), (0x1_0010, 0x3000), (16, 0x3002)]
    {
        assert!(!ready_with(size, used), "{size} {used:#x}");
    }
}

#[test]
fn registers_of_a_ready_queue_and_of_missing_queues_take_nothing() {
    let (mut mem, mut rng) = setup();
    for (offset, value) in [(0x38, 16), (0x80, 0x1000), (0x44, 1), (0x80, 0x5000), (0x38, 8)] {
        write(&mut mem, &mut rng, offset, value);
    }
    let queue = &rng.state().transport.queues[0];
    assert_eq!((queue.desc, queue.size), (0x1000, 16));
    write(&mut mem, &mut rng, 0x30, 7);
    assert_eq!((rng.mmio_read(0x34, 4), rng.mmio_read(0x44, 4)), (0, 0));
    write(&mut mem, &mut rng, 0x44, 1);
    write(&mut mem, &mut rng, 0x50, 7);
    write(&mut mem, &mut rng, 0x50, u32::MAX);
    assert_eq!(rng.state().transport.queues.len(), 1);
}

#[test]
fn control_registers_take_aligned_words_only() {
    let (mut mem, mut rng) = setup();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4)] {
        assert_eq!(rng.mmio_read(offset, len), 0);
    }
    rng.mmio_write(&mut mem, 0x70, 1, 3);
    rng.mmio_write(&mut mem, 0x70, 8, 3);
    assert_eq!(rng.mmio_read(0x70, 4), 0);
}

#[test]
fn a_kick_before_driver_ok_counts_when_the_driver_is_ready() {
    let (mut mem, mut rng) = setup();
    accept_features(&mut mem, &mut rng, F_VERSION_1);
    status(&mut mem, &mut rng, 11);
    let ring = ring(0);
    for (offset, value) in
        [(0x38, 16), (0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used), (0x44, 1)]
    {
        write(&mut mem, &mut rng, offset, value as u32);
    }
    let desc = 0x8_0000u128 | 64 << 64 | 2 << 96;
    mem.write_obj(base::Gpa(ring.desc), desc).unwrap();
    mem.write_obj(base::Gpa(ring.avail + 2), 1u16).unwrap();
    write(&mut mem, &mut rng, 0x50, 0);
    assert_eq!(rng.poll_wanted(), None, "a device does not touch its queues before");
    status(&mut mem, &mut rng, 15);
    assert_eq!(rng.poll_wanted(), Some(64));
}

#[test]
fn a_queue_that_the_driver_takes_away_is_left_alone() {
    let (mut mem, mut rng) = setup();
    let state = |rng: &Rng| rng.state().transport.queues[0].clone();
    for (offset, value) in [(0x38, 16), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1)] {
        write(&mut mem, &mut rng, offset, value);
    }
    write(&mut mem, &mut rng, 0x44, 0);
    assert_eq!((state(&rng).is_ready, state(&rng).next_avail), (false, 0));
    accept_features(&mut mem, &mut rng, F_VERSION_1);
    status(&mut mem, &mut rng, 15);
    write(&mut mem, &mut rng, 0x50, 0);
    assert_eq!(rng.mmio_read(0x70, 4), 15);
}
