use super::*;
use crate::virtio::testing::{Bench, Part, fuzz, ring};
use crate::virtio::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC};

const DATA: u64 = 0x8_0000;
const HEADER: u64 = 0x9_0000;
const STATUS: u64 = 0xa_0000;

fn config() -> BlkConfig {
    BlkConfig { sector_count: 2048, is_read_only: false, id: "disk-0".to_owned() }
}

fn bench() -> Bench<BlkDevice> {
    Bench::new(Blk::new(config()), 0)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Submits a read of `len` bytes to `data`; the status goes to a place of its own.
fn submit_read(bench: &mut Bench<BlkDevice>, sector: u64, data: u64, len: u32, status: u64) {
    let header = header(T_IN, sector);
    let parts = [Part::Out(HEADER, &header), Part::In(data, len), Part::In(status, 1)];
    bench.offer(0, &parts);
    bench.kick(0);
}

fn submit_write(bench: &mut Bench<BlkDevice>, sector: u64, bytes: &[u8], status: u64) {
    let header = header(T_OUT, sector);
    let parts = [Part::Out(HEADER, &header), Part::Out(DATA, bytes), Part::In(status, 1)];
    bench.offer(0, &parts);
    bench.kick(0);
}

fn submit_other(bench: &mut Bench<BlkDevice>, kind: u32, payload: &[u8]) {
    let header = header(kind, 0);
    bench.offer(0, &[Part::Out(HEADER, &header), Part::Out(DATA, payload), Part::In(STATUS, 1)]);
    bench.kick(0);
}

fn done(bench: &mut Bench<BlkDevice>, number: u64, result: DiskResult) {
    bench.virtio.handle_done(&mut bench.mem, number, &result).unwrap();
}

/// behaviour 110, behaviour 112: a read changes memory when its completion is delivered.
#[test]
fn read_data_enters_memory_only_at_the_completion() {
    let mut bench = bench();
    bench.mem.write(base::Gpa(DATA), &[0xee; 1024]).unwrap();
    submit_read(&mut bench, 8, DATA, 1024, STATUS);
    let request = bench.virtio.poll_request();
    assert_eq!(request, Some((0, DiskOp::Read { offset: 4096, len: 1024 })));
    assert_eq!((bench.bytes(DATA, 1024), bench.take_interrupts()), (vec![0xee; 1024], 0));
    done(&mut bench, 0, DiskResult::Data(vec![7; 1024]));
    assert_eq!(bench.bytes(DATA, 1024), [7; 1024]);
    assert_eq!((bench.bytes(STATUS, 1), bench.take_interrupts()), (vec![0], 1));
    assert_eq!(bench.take_used(0), [(0, 1025)]);
}

/// behaviour 111: a write is taken at submission.
#[test]
fn later_stores_do_not_change_what_is_written() {
    let mut bench = bench();
    submit_write(&mut bench, 2, &[1; 512], STATUS);
    bench.mem.write(base::Gpa(DATA), &[2; 512]).unwrap();
    let expected = DiskOp::Write { offset: 1024, data: vec![1; 512] };
    assert_eq!(bench.virtio.poll_request(), Some((0, expected)));
    done(&mut bench, 0, DiskResult::Done);
    assert_eq!(bench.take_used(0), [(0, 1)]);
}

/// behaviour 108: operations on the same blocks run in the order of their submission.
#[test]
fn a_request_waits_for_the_completion_of_an_earlier_one_on_the_same_blocks() {
    let mut bench = bench();
    submit_write(&mut bench, 0, &[1; 1024], STATUS);
    submit_read(&mut bench, 1, DATA + 0x1000, 512, STATUS + 1);
    submit_write(&mut bench, 1, &[3; 512], STATUS + 2);
    submit_read(&mut bench, 100, DATA + 0x2000, 512, STATUS + 3);
    let numbers = |bench: &mut Bench<BlkDevice>| {
        std::iter::from_fn(|| bench.virtio.poll_request()).map(|(number, _)| number).collect()
    };
    let handed_out: Vec<u64> = numbers(&mut bench);
    assert_eq!(handed_out, [0, 3]);
    done(&mut bench, 0, DiskResult::Done);
    let handed_out: Vec<u64> = numbers(&mut bench);
    assert_eq!(handed_out, [1]);
    done(&mut bench, 1, DiskResult::Data(vec![0; 512]));
    let handed_out: Vec<u64> = numbers(&mut bench);
    assert_eq!(handed_out, [2]);
}

/// behaviour 109: two operations on the same memory depend on the order of completions only.
#[test]
fn two_reads_into_the_same_page_end_with_the_one_completed_last() {
    let mut bench = bench();
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    submit_read(&mut bench, 8, DATA, 512, STATUS + 1);
    while bench.virtio.poll_request().is_some() {}
    done(&mut bench, 1, DiskResult::Data(vec![2; 512]));
    done(&mut bench, 0, DiskResult::Data(vec![1; 512]));
    assert_eq!(bench.bytes(DATA, 512), [1; 512]);
    assert_eq!(bench.take_used(0).iter().map(|used| used.0).collect::<Vec<_>>(), [3, 0]);
}

/// behaviours 114 and 115: exactly what was started and not completed is issued again, in order.
#[test]
fn reissue_names_every_handed_out_request_without_a_completion() {
    let mut bench = bench();
    submit_write(&mut bench, 0, &[1; 512], STATUS);
    submit_write(&mut bench, 1, &[2; 512], STATUS + 1);
    submit_write(&mut bench, 1, &[3; 512], STATUS + 2);
    assert!(bench.virtio.reissue().is_empty());
    while bench.virtio.poll_request().is_some() {}
    done(&mut bench, 0, DiskResult::Done);
    let expected = [(1, DiskOp::Write { offset: 512, data: vec![2; 512] })];
    assert_eq!(bench.virtio.reissue(), expected);
    let state = bench.virtio.state();
    let restored = Blk::restore(config(), &bench.mem, state.clone()).unwrap();
    assert_eq!((restored.state(), restored.reissue()), (state, expected.to_vec()));
}

/// behaviour 117: what the disk could not do is an error for the guest, nothing else is.
#[test]
fn a_failed_request_has_an_error_status() {
    let mut bench = bench();
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    bench.virtio.poll_request();
    done(&mut bench, 0, DiskResult::Failed);
    assert_eq!((bench.bytes(STATUS, 1), bench.take_used(0)), (vec![1], vec![(0, 1)]));
}

#[test]
fn flush_discard_and_write_zeroes_are_handed_out() {
    let mut bench = bench();
    submit_other(&mut bench, T_FLUSH, &[]);
    let mut range = 4u64.to_le_bytes().to_vec();
    range.extend(8u32.to_le_bytes());
    range.extend([0; 4]);
    submit_other(&mut bench, T_DISCARD, &range);
    range[12] = 1;
    range[0] = 100;
    submit_other(&mut bench, T_WRITE_ZEROES, &range);
    let ops: Vec<DiskOp> =
        std::iter::from_fn(|| bench.virtio.poll_request()).map(|(_, op)| op).collect();
    let expected = [
        DiskOp::Flush,
        DiskOp::Discard { offset: 2048, len: 4096 },
        DiskOp::WriteZeroes { offset: 51_200, len: 4096 },
    ];
    assert_eq!(ops, expected);
}

#[test]
fn requests_that_cannot_be_are_refused_at_once() {
    let status_of = |kind: u32, sector: u64, payload: &[u8]| {
        let mut bench = bench();
        bench.mem.write(base::Gpa(STATUS), &[0xff]).unwrap();
        let header = header(kind, sector);
        bench
            .offer(0, &[Part::Out(HEADER, &header), Part::Out(DATA, payload), Part::In(STATUS, 1)]);
        bench.kick(0);
        assert_eq!(bench.virtio.poll_request(), None);
        bench.bytes(STATUS, 1)[0]
    };
    assert_eq!(status_of(T_OUT, 2048, &[0; 512]), 1, "behind the end");
    assert_eq!(status_of(T_OUT, u64::MAX, &[0; 512]), 1);
    assert_eq!(status_of(T_OUT, 0, &[0; 100]), 1, "part of a sector");
    assert_eq!(status_of(T_OUT, 0, &[]), 0, "nothing to do");
    assert_eq!(status_of(99, 0, &[]), 2);
    assert_eq!(status_of(T_DISCARD, 0, &[0; 32]), 2, "two ranges");
    let mut range = [0; 16];
    range[8] = 1;
    range[12] = 1;
    assert_eq!(status_of(T_DISCARD, 0, &range), 2, "unmap is for write zeroes");
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let disk = Blk::new(BlkConfig { is_read_only: true, ..config() });
    let mut bench = Bench::new(disk, 0);
    submit_write(&mut bench, 0, &[0; 512], STATUS);
    submit_other(&mut bench, T_WRITE_ZEROES, &[0; 16]);
    assert_eq!((bench.virtio.poll_request(), bench.take_used(0).len()), (None, 2));
    assert_eq!(bench.bytes(STATUS, 1), [1]);
    assert_eq!(bench.virtio.mmio_read(0x10, 4) & 1 << 5, 1 << 5);
}

#[test]
fn the_identification_and_the_configuration_are_the_boards() {
    let mut bench = bench();
    let header = header(T_GET_ID, 0);
    bench.offer(0, &[Part::Out(HEADER, &header), Part::In(DATA, 20), Part::In(STATUS, 1)]);
    bench.kick(0);
    assert_eq!(bench.bytes(DATA, 20), b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.virtio.mmio_read(0x100, 8), 2048);
    assert_eq!(bench.virtio.mmio_read(0x114, 4), 512);
}

#[test]
fn a_request_may_be_cut_into_descriptors_in_any_way() {
    let mut bench = bench();
    let head = header(T_OUT, 0);
    let parts = [
        Part::Out(HEADER, &head[..5]),
        Part::Out(HEADER + 0x100, &head[5..]),
        Part::Out(DATA, &[1; 100]),
        Part::Out(DATA + 0x1000, &[2; 412]),
        Part::In(STATUS, 1),
    ];
    bench.offer_indirect(0, 0xb_0000, &parts);
    bench.kick(0);
    let Some((0, DiskOp::Write { offset: 0, data })) = bench.virtio.poll_request() else {
        panic!("a write was submitted");
    };
    assert_eq!((data.len(), data[99], data[100]), (512, 1, 2));
    // One descriptor for data and status.
    let head = header(T_IN, 4);
    bench.offer(0, &[Part::Out(HEADER, &head), Part::In(DATA, 513)]);
    bench.kick(0);
    assert_eq!(bench.virtio.poll_request(), Some((1, DiskOp::Read { offset: 2048, len: 512 })));
    done(&mut bench, 1, DiskResult::Data(vec![9; 512]));
    assert_eq!(bench.bytes(DATA + 511, 2), [9, 0]);
}

#[test]
fn after_a_reset_an_old_request_still_holds_back_a_new_one_and_touches_no_memory() {
    let mut bench = bench();
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    submit_write(&mut bench, 0, &[1; 512], STATUS + 1);
    assert_eq!(bench.virtio.poll_request().map(|request| request.0), Some(0));
    bench.start(0);
    submit_write(&mut bench, 0, &[2; 512], STATUS + 2);
    assert_eq!(bench.virtio.poll_request(), None, "the read is still on its way");
    bench.mem.write(base::Gpa(DATA), &[5; 512]).unwrap();
    done(&mut bench, 0, DiskResult::Data(vec![9; 512]));
    assert_eq!(bench.bytes(DATA, 512), [5; 512]);
    assert_eq!(bench.take_used(0), []);
    // What the old driver submitted behind it was never started.
    let expected = DiskOp::Write { offset: 0, data: vec![2; 512] };
    assert_eq!(bench.virtio.poll_request(), Some((2, expected)));
}

#[test]
fn completions_that_fit_no_request_are_refused() {
    let mut bench = bench();
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    let mut refused = |number, result: DiskResult| {
        bench.virtio.handle_done(&mut bench.mem, number, &result).unwrap_err()
    };
    assert_eq!(refused(0, DiskResult::Failed), BlkError::NotInFlight { number: 0 });
    bench.virtio.poll_request();
    let mut refused = |number, result: DiskResult| {
        bench.virtio.handle_done(&mut bench.mem, number, &result).unwrap_err()
    };
    assert_eq!(refused(1, DiskResult::Done), BlkError::NotInFlight { number: 1 });
    assert_eq!(refused(0, DiskResult::Done), BlkError::WrongResult { number: 0 });
    assert_eq!(refused(0, DiskResult::Data(vec![0; 511])), BlkError::WrongResult { number: 0 });
    done(&mut bench, 0, DiskResult::Failed);
}

/// behaviour 70: each thing that a driver must not do ends in a device that asks for a reset.
#[test]
fn a_malicious_ring_stops_the_device_until_its_reset() {
    type Attack = fn(&mut Bench<BlkDevice>);
    let desc = |slot: u64| ring(0).desc + slot * 16;
    assert_eq!(desc(0), 0x1_0000);
    let attacks: [(&str, Attack); 10] = [
        ("a loop", |b| {
            b.write_desc(0x1_0000, DATA, 16, 1, 0);
            b.publish(0, 0);
        }),
        ("an address outside RAM", |b| {
            b.write_desc(0x1_0000, 0xfee0_0000, 16, 0, 0);
            b.publish(0, 0);
        }),
        ("a length that wraps", |b| {
            b.write_desc(0x1_0000, DATA, u32::MAX, 0, 0);
            b.publish(0, 0);
        }),
        ("a head out of range", |b| b.publish(0, 16)),
        ("a next out of range", |b| {
            b.write_desc(0x1_0000, DATA, 16, 1, 999);
            b.publish(0, 0);
        }),
        ("an index that jumps", |b| b.mem.write_obj(base::Gpa(0x1_4002), 1000u16).unwrap()),
        ("a readable part behind a writable one", |b| {
            b.write_desc(0x1_0000, DATA, 16, 3, 1);
            b.write_desc(0x1_0010, DATA, 16, 0, 0);
            b.publish(0, 0);
        }),
        ("an indirect table in an indirect table", |b| {
            b.write_desc(0xb_0000, 0xb_0000, 16, 4, 0);
            b.write_desc(0x1_0000, 0xb_0000, 16, 4, 0);
            b.publish(0, 0);
        }),
        ("an indirect table of a broken length", |b| {
            b.write_desc(0x1_0000, 0xb_0000, 17, 4, 0);
            b.publish(0, 0);
        }),
        ("a request without a status", |b| {
            b.write_desc(0x1_0000, DATA, 16, 0, 0);
            b.publish(0, 0);
        }),
    ];
    for (name, attack) in attacks {
        let mut bench = bench();
        attack(&mut bench);
        bench.kick(0);
        assert!(bench.needs_reset(), "{name}");
        assert_eq!(bench.take_interrupts(), 2, "{name}");
        bench.start(0);
        submit_write(&mut bench, 0, &[0; 512], STATUS);
        assert!(bench.virtio.poll_request().is_some(), "{name}");
    }
}

#[test]
fn indirect_tables_need_their_feature() {
    let mut bench = Bench::new(Blk::new(config()), F_RING_INDIRECT_DESC);
    let header = header(T_FLUSH, 0);
    bench.offer_indirect(0, 0xb_0000, &[Part::Out(HEADER, &header), Part::In(STATUS, 1)]);
    bench.kick(0);
    assert!(bench.needs_reset());
}

/// behaviour 70: a used ring over the available ring could feed itself for ever.
#[test]
fn a_ring_that_the_device_refills_by_its_own_writes_ends() {
    let mut bench = bench();
    let header = header(T_GET_ID, 0);
    bench.offer(0, &[Part::Out(HEADER, &header), Part::In(DATA, 21)]);
    let mut state = bench.virtio.state();
    // The used index lies where the available index does, and is ahead of it.
    state.transport.queues[0].used = ring(0).avail;
    state.transport.queues[0].next_used = 5;
    bench.virtio = Blk::restore(config(), &bench.mem, state).unwrap();
    // Every element that is written names the first head again.
    bench.kick(0);
    assert_eq!(bench.virtio.state().transport.queues[0].next_avail, 17);
}

#[test]
fn heads_offered_twice_cannot_make_more_requests_than_the_bound() {
    let mut bench = bench();
    let header = header(T_IN, 0);
    bench.offer(0, &[Part::Out(HEADER, &header), Part::In(DATA, 512), Part::In(STATUS, 1)]);
    bench.kick(0);
    for _ in 0..1000 {
        bench.publish(0, 0);
        bench.kick(0);
    }
    assert!(bench.virtio.state().device.requests.len() <= IN_FLIGHT_MAX);
}

#[test]
fn held_data_is_bounded_and_the_rest_of_the_queue_waits() {
    let mut bench = bench();
    let mut requests = Vec::new();
    for number in 0..HELD_BYTES_MAX / REQUEST_BYTES_MAX {
        let op = DiskOp::Read { offset: 0, len: REQUEST_BYTES_MAX as u32 };
        requests.push(BlkRequest { number, op, chain: None, is_handed_out: true });
    }
    bench.virtio.device_mut().state = BlkState { next_number: 16, requests };
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    assert_eq!(bench.virtio.state().device.requests.len(), 16);
    done(&mut bench, 0, DiskResult::Failed);
    assert_eq!(bench.virtio.state().device.requests.len(), 16, "the one that waited came in");
}

#[test]
fn event_index_suppresses_interrupts_until_the_driver_asks() {
    let mut bench = bench();
    submit_other(&mut bench, 99, &[]);
    assert_eq!(bench.take_interrupts(), 1);
    // The driver did not move its event on, so it is not told again.
    submit_other(&mut bench, 99, &[]);
    assert_eq!(bench.take_interrupts(), 0);
    bench.take_used(0);
    submit_other(&mut bench, 99, &[]);
    assert_eq!(bench.take_interrupts(), 1);
    // And the device wants to be kicked for the next chain.
    let avail_event: u16 = bench.mem.read_obj(base::Gpa(ring(0).used + 4 + 16 * 8)).unwrap();
    assert_eq!(avail_event, 3);
}

#[test]
fn without_event_index_the_drivers_flag_suppresses_interrupts() {
    let mut bench = Bench::new(Blk::new(config()), F_RING_EVENT_IDX);
    bench.mem.write_obj(base::Gpa(ring(0).avail), 1u16).unwrap();
    submit_other(&mut bench, 99, &[]);
    assert_eq!(bench.take_interrupts(), 0);
    bench.mem.write_obj(base::Gpa(ring(0).avail), 0u16).unwrap();
    submit_other(&mut bench, 99, &[]);
    assert_eq!(bench.take_interrupts(), 1);
}

#[test]
fn saved_requests_that_cannot_be_are_refused() {
    let mut bench = bench();
    submit_read(&mut bench, 0, DATA, 512, STATUS);
    let state = bench.virtio.state();
    let refused = |change: fn(&mut BlkState)| {
        let mut state = state.clone();
        change(&mut state.device);
        Blk::restore(config(), &bench.mem, state).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|s| s.next_number = 0));
    assert!(refused(|s| s.requests[0].op = DiskOp::Read { offset: 1 << 20, len: 512 }));
    assert!(refused(|s| s.requests[0].op = DiskOp::Read { offset: 0, len: 1024 }));
    assert!(refused(|s| s.requests[0].op = DiskOp::Read { offset: 100, len: 512 }));
    assert!(refused(|s| s.requests[0].op = DiskOp::Read { offset: 0, len: 0 }));
    assert!(refused(|s| s.requests[0].chain.as_mut().unwrap().writable[0].gpa.0 = u64::MAX));
}

/// behaviour 70: whatever is in its rings, the device neither panics nor hangs.
#[test]
fn random_rings_do_no_harm() {
    fuzz(
        101,
        || Blk::new(config()),
        |bench, rng| {
            while let Some((number, op)) = bench.virtio.poll_request() {
                if rng.one_in(2) {
                    continue;
                }
                let result = match op {
                    DiskOp::Read { len, .. } => DiskResult::Data(vec![1; len as usize]),
                    _ => DiskResult::Done,
                };
                bench.virtio.handle_done(&mut bench.mem, number, &result).unwrap();
            }
            if rng.one_in(20) {
                let state = bench.virtio.state();
                let restored = Blk::restore(config(), &bench.mem, state.clone()).unwrap();
                assert_eq!(restored.state(), state);
            }
            for (number, op) in bench.virtio.reissue() {
                if rng.one_in(3) {
                    let result = if matches!(op, DiskOp::Read { .. }) {
                        DiskResult::Failed
                    } else {
                        DiskResult::Done
                    };
                    bench.virtio.handle_done(&mut bench.mem, number, &result).unwrap();
                }
            }
        },
    );
}
