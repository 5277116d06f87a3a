use super::*;
use crate::virtio::testing::{Bench, Part, fuzz};

const BUFFER: u64 = 0x8_0000;

fn bench() -> Bench<RngDevice> {
    Bench::new(Rng::new(), 0)
}

fn offer(bench: &mut Bench<RngDevice>, len: u32) {
    bench.offer(0, &[Part::In(BUFFER, len)]);
    bench.kick(0);
}

/// behaviour 20: random bytes are what the board hands in, and nothing else.
#[test]
fn a_buffer_is_filled_when_the_bytes_come() {
    let mut bench = bench();
    offer(&mut bench, 64);
    assert_eq!(bench.virtio.poll_wanted(), Some(64));
    assert_eq!(bench.virtio.poll_wanted(), None, "it asks once");
    assert_eq!((bench.virtio.reissue(), bench.take_interrupts()), (Some(64), 0));
    bench.virtio.handle_entropy(&mut bench.mem, &[7; 64]).unwrap();
    assert_eq!((bench.bytes(BUFFER, 64), bench.take_interrupts()), (vec![7; 64], 1));
    assert_eq!((bench.take_used(0), bench.virtio.reissue()), (vec![(0, 64)], None));
}

#[test]
fn requests_are_bounded_and_answered_one_by_one() {
    let mut bench = bench();
    offer(&mut bench, 10_000);
    offer(&mut bench, 8);
    assert_eq!(bench.virtio.poll_wanted(), Some(ENTROPY_LEN_MAX));
    // Fewer bytes than wanted are fine.
    bench.virtio.handle_entropy(&mut bench.mem, &[1; 100]).unwrap();
    assert_eq!(bench.virtio.poll_wanted(), Some(8));
    bench.virtio.handle_entropy(&mut bench.mem, &[2; 8]).unwrap();
    assert_eq!(bench.take_used(0), [(0, 100), (1, 8)]);
}

#[test]
fn bytes_that_nobody_asked_for_are_refused() {
    let mut bench = bench();
    offer(&mut bench, 8);
    let error = bench.virtio.handle_entropy(&mut bench.mem, &[1]).unwrap_err();
    assert_eq!(error, RngError { len: 1, wanted: 0 });
    bench.virtio.poll_wanted();
    assert!(bench.virtio.handle_entropy(&mut bench.mem, &[1; 9]).is_err());
    assert!(bench.virtio.handle_entropy(&mut bench.mem, &[]).is_err());
    assert!(bench.virtio.handle_entropy(&mut bench.mem, &[1; 8]).is_ok());
}

#[test]
fn an_answer_to_a_request_from_before_a_reset_is_for_nobody() {
    let mut bench = bench();
    offer(&mut bench, 8);
    bench.virtio.poll_wanted();
    bench.start(0);
    offer(&mut bench, 16);
    assert_eq!(bench.virtio.poll_wanted(), None, "one question at a time");
    bench.virtio.handle_entropy(&mut bench.mem, &[1; 8]).unwrap();
    assert_eq!((bench.take_used(0), bench.virtio.poll_wanted()), (vec![], Some(16)));
}

#[test]
fn a_chain_without_room_goes_back_at_once() {
    let mut bench = bench();
    bench.offer(0, &[Part::Out(BUFFER, &[0; 8])]);
    bench.kick(0);
    assert_eq!((bench.take_used(0), bench.virtio.poll_wanted()), (vec![(0, 0)], None));
}

#[test]
fn a_saved_device_goes_on_where_it_was_and_impossible_states_are_refused() {
    let mut bench = bench();
    offer(&mut bench, 8);
    bench.virtio.poll_wanted();
    let state = bench.virtio.state();
    assert_eq!(Rng::restore(&bench.mem, state.clone()).unwrap().state(), state);
    let refused = |change: fn(&mut RngState)| {
        let mut state = state.clone();
        change(&mut state.device);
        Rng::restore(&bench.mem, state).is_err()
    };
    assert!(refused(|s| s.waiting.clear()));
    assert!(refused(|s| s.asked_len = Some(5000)));
    assert!(refused(|s| s.waiting[0].writable[0].gpa.0 = 1 << 40));
    assert!(refused(|s| s.waiting[0].writable.clear()));
}

/// behaviour 70: whatever is in its rings, the device neither panics nor hangs.
#[test]
fn random_rings_do_no_harm() {
    let mut answered = 0;
    fuzz(103, Rng::new, |bench, rng| {
        if rng.one_in(2) {
            bench.virtio.poll_wanted();
        }
        if let Some(len) = bench.virtio.reissue().filter(|_| rng.one_in(2)) {
            bench.virtio.handle_entropy(&mut bench.mem, &vec![3; len as usize]).unwrap();
            answered += 1;
        }
        if rng.one_in(20) {
            let state = bench.virtio.state();
            assert_eq!(Rng::restore(&bench.mem, state.clone()).unwrap().state(), state);
        }
    });
    assert!(answered > 100, "the rings were not so wild that nothing went through: {answered}");
}
