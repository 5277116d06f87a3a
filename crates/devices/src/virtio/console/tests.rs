use super::*;
use crate::virtio::testing::{Bench, Part, fuzz};

const BUFFER: u64 = 0x8_0000;

fn bench() -> Bench<ConsoleDevice> {
    Bench::new(Console::new(ConsoleConfig::default()), 0)
}

fn input(bench: &mut Bench<ConsoleDevice>, bytes: &[u8]) -> usize {
    bench.virtio.handle_input(&mut bench.mem, bytes)
}

#[test]
fn written_bytes_come_out_in_order() {
    let mut bench = bench();
    bench.offer(TX, &[Part::Out(BUFFER, b"hello, "), Part::Out(BUFFER + 0x100, b"wor")]);
    bench.offer(TX, &[Part::Out(BUFFER + 0x200, b"ld")]);
    bench.kick(TX);
    assert_eq!(bench.virtio.poll_output().as_deref(), Some(&b"hello, world"[..]));
    assert_eq!((bench.virtio.poll_output(), bench.take_used(TX).len()), (None, 2));
}

#[test]
fn typed_bytes_fill_buffers_and_the_rest_waits() {
    let mut bench = bench();
    bench.offer(RX, &[Part::In(BUFFER, 4)]);
    assert_eq!(input(&mut bench, b"abcdef"), 0);
    assert_eq!((bench.bytes(BUFFER, 4), bench.take_used(RX)), (b"abcd".to_vec(), vec![(0, 4)]));
    assert_eq!((bench.take_interrupts(), bench.virtio.room()), (1, RX_HELD_LEN_MAX - 2));
    bench.offer(RX, &[Part::In(BUFFER, 4)]);
    bench.kick(RX);
    assert_eq!((bench.bytes(BUFFER, 2), bench.take_used(RX)), (b"ef".to_vec(), vec![(1, 2)]));
}

#[test]
fn too_much_input_and_input_without_a_driver_is_lost_and_counted() {
    let mut bench = bench();
    assert_eq!(input(&mut bench, &[0; RX_HELD_LEN_MAX + 3]), 3);
    assert_eq!(bench.virtio.room(), 0);
    bench.write(0x70, 0);
    assert_eq!(input(&mut bench, b"ab"), 2);
    assert_eq!(bench.virtio.room(), RX_HELD_LEN_MAX, "what waited was for the old driver");
}

#[test]
fn a_known_size_is_offered() {
    let console = Console::new(ConsoleConfig { size: Some((132, 43)) });
    let bench = Bench::new(console, 0);
    assert_eq!(bench.read(0x10) & 1, 1);
    assert_eq!(bench.virtio.mmio_read(0x100, 4), 43 << 16 | 132);
}

#[test]
fn a_saved_console_goes_on_where_it_was_and_impossible_states_are_refused() {
    let mut bench = bench();
    input(&mut bench, b"typed");
    let state = bench.virtio.state();
    let restore = |state| Console::restore(ConsoleConfig::default(), state);
    assert_eq!(restore(state.clone()).unwrap().state(), state);
    let mut bad = state;
    bad.device.rx_held.resize(RX_HELD_LEN_MAX + 1, 0);
    assert!(restore(bad).is_err());
}

/// behaviour 70: whatever is in its rings, the device neither panics nor hangs.
#[test]
fn random_rings_do_no_harm() {
    let mut written = 0;
    fuzz(
        104,
        || Console::new(ConsoleConfig::default()),
        |bench, rng| {
            written += bench.virtio.poll_output().map_or(0, |bytes| bytes.len());
            if rng.one_in(3) {
                bench.virtio.handle_input(&mut bench.mem, &[1; 50]);
            }
        },
    );
    assert!(written > 1000, "the rings were not so wild that nothing went through: {written}");
}
