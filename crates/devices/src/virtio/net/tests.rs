use super::*;
use crate::virtio::F_RING_EVENT_IDX;
use crate::virtio::testing::{Bench, Part, QUEUE_SIZE, fuzz, ring};

const BUFFER: u64 = 0x8_0000;
const HEADER: u64 = 0xa_0000;

const CONFIG: NetConfig = NetConfig { mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56], mtu: 1500 };

fn bench() -> Bench<NetDevice> {
    Bench::new(Net::new(CONFIG), 0)
}

fn frame(byte: u8, len: usize) -> Vec<u8> {
    vec![byte; len]
}

fn offer_buffer(bench: &mut Bench<NetDevice>, index: u64, len: u32) -> u16 {
    bench.offer(RX, &[Part::In(BUFFER + index * 0x1000, len)])
}

fn receive(bench: &mut Bench<NetDevice>, frames: &[Vec<u8>]) {
    let frames = frames.iter().cloned().map(Frame::from).collect();
    bench.virtio.handle_frames(&mut bench.mem, frames);
}

/// Kicks the transmit ring and lets the wait after it pass.
fn send(bench: &mut Bench<NetDevice>) {
    bench.kick(TX);
    bench.virtio.send_waiting(&mut bench.mem);
}

/// The complete frames that were sent since the last call.
fn take_sent(bench: &mut Bench<NetDevice>) -> Option<Vec<Vec<u8>>> {
    let complete = |frame: Frame| {
        assert_eq!(frame.offload, None);
        frame.bytes
    };
    Some(bench.virtio.poll_frames()?.into_iter().map(complete).collect())
}

/// behaviour 124: a group of received frames is announced by one interrupt.
#[test]
fn received_frames_fill_buffers_in_order_and_one_interrupt_announces_them() {
    let mut bench = bench();
    for index in 0..3 {
        offer_buffer(&mut bench, index, 1526);
    }
    bench.kick(RX);
    receive(&mut bench, &[frame(1, 60), frame(2, 1514)]);
    assert_eq!(bench.take_interrupts(), 1);
    assert_eq!(bench.take_used(RX), [(0, 72), (1, 1526)]);
    let mut expected = vec![0; 10];
    expected.extend([1, 0]);
    expected.extend(frame(1, 60));
    assert_eq!(bench.bytes(BUFFER, 72), expected);
}

/// behaviour 120, behaviour 121: the receive ring changes only in the call that brings the frames.
#[test]
fn a_kick_alone_changes_no_receive_ring() {
    let mut bench = bench();
    offer_buffer(&mut bench, 0, 1526);
    bench.kick(RX);
    assert_eq!((bench.take_used(RX), bench.take_interrupts()), (vec![], 0));
}

#[test]
fn a_long_frame_is_spread_over_merged_buffers() {
    let mut bench = bench();
    for index in 0..3 {
        offer_buffer(&mut bench, index, 100);
    }
    receive(&mut bench, &[frame(7, 200)]);
    assert_eq!(bench.take_used(RX), [(0, 100), (1, 100), (2, 12)]);
    assert_eq!(bench.bytes(BUFFER + 10, 2), [3, 0]);
    assert_eq!(bench.bytes(BUFFER + 0x2000, 12), [7; 12]);
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more_without_using_any() {
    let mut bench = bench();
    offer_buffer(&mut bench, 0, 100);
    receive(&mut bench, &[frame(7, 150)]);
    assert_eq!(bench.take_used(RX), []);
    let event: u16 = bench.mem.read_obj(base::Gpa(ring(RX).used + 4 + 16 * 8)).unwrap();
    assert_eq!(event, 1, "the next buffer is to be announced");
    offer_buffer(&mut bench, 1, 100);
    bench.kick(RX);
    assert_eq!(bench.take_used(RX), [(0, 100), (1, 62)]);
}

#[test]
fn without_merged_buffers_a_frame_that_does_not_fit_is_dropped() {
    let mut bench = Bench::new(Net::new(CONFIG), F_MRG_RXBUF);
    offer_buffer(&mut bench, 0, 100);
    offer_buffer(&mut bench, 1, 100);
    receive(&mut bench, &[frame(1, 200), frame(2, 60)]);
    assert_eq!(bench.virtio.rx_dropped(), 1);
    assert_eq!(bench.bytes(BUFFER + 12, 60), [2; 60]);
    assert_eq!(bench.take_used(RX), [(0, 72)]);
}

#[test]
fn frames_without_buffers_are_held_to_a_bound_and_dropped_newest_first() {
    let mut bench = bench();
    let frames: Vec<Vec<u8>> = (0..RX_HELD_MAX + 5).map(|index| frame(index as u8, 60)).collect();
    receive(&mut bench, &frames);
    assert_eq!(bench.virtio.rx_dropped(), 5);
    offer_buffer(&mut bench, 0, 1526);
    bench.kick(RX);
    assert_eq!(bench.bytes(BUFFER + 12, 1), [0], "the oldest comes first");
}

#[test]
fn frames_for_nobody_and_of_impossible_length_are_dropped() {
    let mut net = Net::new(CONFIG);
    let mut mem = GuestMem::new(1 << 20).unwrap();
    net.handle_frames(&mut mem, vec![frame(0, 60).into()]);
    assert_eq!(net.rx_dropped(), 1);
    let mut bench = bench();
    receive(&mut bench, &[frame(0, 13), frame(0, FRAME_LEN_MAX + 1)]);
    assert_eq!(bench.virtio.rx_dropped(), 2);
}

/// behaviours 31 and 123: one kick is one operation, whatever number of frames the ring holds.
#[test]
fn the_ring_is_drained_at_once_and_its_frames_leave_as_one_batch() {
    let mut bench = bench();
    for index in 0..5u8 {
        let at = BUFFER + u64::from(index) * 0x1000;
        bench.offer(TX, &[Part::Out(HEADER, &[0; 12]), Part::Out(at, &[index; 60])]);
    }
    send(&mut bench);
    let expected: Vec<Vec<u8>> = (0..5).map(|index| frame(index, 60)).collect();
    assert_eq!(take_sent(&mut bench), Some(expected));
    assert_eq!(bench.virtio.poll_frames(), None);
    let heads: Vec<u16> = bench.take_used(TX).iter().map(|used| used.0).collect();
    assert_eq!(heads, [0, 2, 4, 6, 8], "descriptors return at the kick");
}

/// behaviours 31 and 123: until the frames leave nothing changes in RAM, so that the driver does not kick again.
#[test]
fn frames_wait_after_a_kick_and_no_second_one_is_asked_for() {
    let mut bench = bench();
    let avail_event = |bench: &Bench<NetDevice>| -> u16 {
        bench.mem.read_obj(base::Gpa(ring(TX).used + 4 + u64::from(QUEUE_SIZE) * 8)).unwrap()
    };
    // What was in the ring when the driver started counts as kicked.
    bench.virtio.send_waiting(&mut bench.mem);
    assert!(!bench.virtio.waits_to_send());
    bench.offer(TX, &[Part::Out(BUFFER, &[0; 72])]);
    bench.kick(TX);
    assert!(bench.virtio.waits_to_send());
    bench.offer(TX, &[Part::Out(BUFFER, &[0; 72])]);
    assert_eq!(
        (take_sent(&mut bench), bench.take_used(TX), avail_event(&bench)),
        (None, vec![], 0)
    );
    bench.virtio.send_waiting(&mut bench.mem);
    assert!(!bench.virtio.waits_to_send());
    assert_eq!(take_sent(&mut bench).map(|frames| frames.len()), Some(2));
    assert_eq!((bench.take_used(TX).len(), avail_event(&bench)), (2, 2));
    bench.virtio.send_waiting(&mut bench.mem);
    assert_eq!(take_sent(&mut bench), None);
}

#[test]
fn a_driver_that_resets_the_device_while_frames_wait_sends_none_of_them() {
    let mut bench = bench();
    bench.offer(TX, &[Part::Out(BUFFER, &[0; 72])]);
    bench.kick(TX);
    bench.start(0);
    bench.virtio.send_waiting(&mut bench.mem);
    assert_eq!((take_sent(&mut bench), bench.take_used(TX)), (None, vec![]));
}

#[test]
fn header_and_frame_may_share_a_descriptor_and_tables_may_be_indirect() {
    let mut bench = bench();
    let mut bytes = vec![0; 12];
    bytes.extend(frame(9, 80));
    bench.offer(TX, &[Part::Out(BUFFER, &bytes)]);
    let parts = [Part::Out(HEADER, &bytes[..20]), Part::Out(HEADER + 0x100, &bytes[20..])];
    bench.offer_indirect(TX, 0xb_0000, &parts);
    send(&mut bench);
    assert_eq!(take_sent(&mut bench), Some(vec![frame(9, 80), frame(9, 80)]));
}

#[test]
fn sent_frames_of_impossible_length_or_kind_are_dropped() {
    let mut bench = bench();
    bench.offer(TX, &[Part::Out(BUFFER, &[0; 25])]);
    bench.offer(TX, &[Part::Out(BUFFER, &[])]);
    bench.offer(TX, &[Part::Out(BUFFER, &[0; 12 + FRAME_LEN_MAX + 1])]);
    let mut bytes = vec![0, 9];
    bytes.resize(72, 0);
    bench.offer(TX, &[Part::Out(BUFFER, &bytes)]);
    send(&mut bench);
    assert_eq!(bench.virtio.poll_frames(), None);
    assert_eq!((bench.virtio.state().device.tx_dropped, bench.take_used(TX).len()), (4, 4));
}

#[test]
fn the_driver_learns_which_checksums_are_right() {
    let mut bench = bench();
    offer_buffer(&mut bench, 0, 1526);
    offer_buffer(&mut bench, 1, 1526);
    let good = offload::tests::udp_frame(b"payload");
    let mut bad = good.clone();
    bad[42] ^= 1;
    receive(&mut bench, &[good.clone(), bad]);
    assert_eq!((bench.bytes(BUFFER, 1), bench.bytes(BUFFER + 0x1000, 1)), (vec![2], vec![0]));
    let mut bench = Bench::new(Net::new(CONFIG), F_GUEST_CSUM);
    offer_buffer(&mut bench, 0, 1526);
    receive(&mut bench, &[good]);
    assert_eq!(bench.bytes(BUFFER, 1), [0]);
}

/// A header as a driver writes it, and the frame behind it.
fn with_header(offload: &Offload, frame: &[u8]) -> Vec<u8> {
    [&offload.header(u16::to_le_bytes)[..], &[0; 2], frame].concat()
}

fn csum() -> Offload {
    Offload { needs_csum: true, csum_start: 34, csum_offset: 6, ..Offload::default() }
}

fn tso(gso_type: u8) -> Offload {
    Offload {
        needs_csum: true,
        gso_type,
        header_len: 66,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    }
}

/// TCP over IPv4 with 4000 bytes of payload, whose checksum is left out.
fn tcp_frame() -> Vec<u8> {
    let mut frame = offload::tests::tcp_head(true, 4000);
    frame.extend((0..4000u32).map(|index| index as u8));
    frame
}

#[test]
fn an_unfinished_frame_leaves_with_what_is_left_to_do() {
    for (offload, bytes) in
        [(csum(), frame(3, 60)), (tso(Offload::GSO_TCP4 | Offload::GSO_ECN), tcp_frame())]
    {
        let mut bench = bench();
        bench.offer(TX, &[Part::Out(BUFFER, &with_header(&offload, &bytes))]);
        send(&mut bench);
        let sent = bench.virtio.poll_frames();
        assert_eq!(sent, Some(vec![Frame { offload: Some(offload), bytes }]));
    }
}

#[test]
fn a_driver_sends_no_unfinished_frames_of_kinds_that_it_did_not_accept() {
    let sent = |without: u64, offload: Offload| {
        let mut bench = Bench::new(Net::new(CONFIG), without);
        bench.offer(TX, &[Part::Out(BUFFER, &with_header(&offload, &tcp_frame()))]);
        send(&mut bench);
        (bench.virtio.poll_frames(), bench.virtio.state().device.tx_dropped)
    };
    let (complete, _) = sent(F_OFFLOADS, csum());
    assert_eq!(complete.unwrap()[0].offload, None, "the header means nothing");
    let [tso4, tso6, ecn] = F_HOST_TSO;
    assert_eq!(sent(tso4, tso(Offload::GSO_TCP4)), (None, 1));
    assert_eq!(sent(ecn, tso(Offload::GSO_TCP4 | Offload::GSO_ECN)), (None, 1));
    assert!(sent(ecn | tso6, tso(Offload::GSO_TCP4)).0.is_some());
}

#[test]
fn unfinished_frames_that_contradict_themselves_are_dropped() {
    let is_sent = |offload: Offload, bytes: &[u8]| {
        let mut bench = bench();
        bench.offer(TX, &[Part::Out(BUFFER, &with_header(&offload, bytes))]);
        send(&mut bench);
        assert_eq!(bench.take_used(TX).len(), 1);
        bench.virtio.poll_frames().is_some()
    };
    let tso4 = tso(Offload::GSO_TCP4);
    assert!(is_sent(tso4, &tcp_frame()));
    assert!(!is_sent(Offload { csum_start: 4100, ..tso4 }, &tcp_frame()));
    assert!(!is_sent(Offload { csum_offset: u16::MAX, ..csum() }, &frame(0, 60)));
    assert!(!is_sent(Offload { gso_size: 0, ..tso4 }, &tcp_frame()));
    assert!(!is_sent(Offload { gso_size: 1, ..tso4 }, &tcp_frame()), "too many segments");
    assert!(!is_sent(tso(Offload::GSO_TCP6), &tcp_frame()));
    assert!(!is_sent(tso(Offload::GSO_UDP_L4), &tcp_frame()));
    assert!(!is_sent(tso4, &tcp_frame()[..60]), "a header cut short");
    assert!(!is_sent(tso4, &offload::tests::udp_frame(b"datagram")));
}

fn receive_unfinished(bench: &mut Bench<NetDevice>, offload: Offload, bytes: &[u8]) {
    for index in 0..4 {
        offer_buffer(bench, index, 1526);
    }
    let frame = Frame { offload: Some(offload), bytes: bytes.to_vec() };
    bench.virtio.handle_frames(&mut bench.mem, vec![frame]);
}

#[test]
fn an_unfinished_frame_reaches_a_driver_that_takes_it_as_it_is() {
    let mut bench = bench();
    let (offload, bytes) = (tso(Offload::GSO_TCP4), tcp_frame());
    receive_unfinished(&mut bench, offload, &bytes);
    let lens: Vec<u32> = bench.take_used(RX).iter().map(|used| used.1).collect();
    assert_eq!(lens, [1526, 1526, 1026]);
    let mut first = with_header(&offload, &bytes[..1514]);
    first[10] = 3;
    assert_eq!(bench.bytes(BUFFER, 1526), first);
    let last = &bytes[bytes.len() - 1026..];
    assert_eq!(bench.bytes(BUFFER + 0x2000, 1026), last);
}

#[test]
fn an_unfinished_frame_is_completed_for_a_driver_that_does_not_take_it() {
    let [tso4, _, ecn] = F_GUEST_TSO;
    let plain = tso(Offload::GSO_TCP4);
    for (without, offload) in [
        (tso4, plain),
        (F_GUEST_CSUM, plain),
        (ecn, Offload { gso_type: plain.gso_type | Offload::GSO_ECN, ..plain }),
    ] {
        let mut bench = Bench::new(Net::new(CONFIG), without);
        receive_unfinished(&mut bench, offload, &tcp_frame());
        let lens: Vec<u32> = bench.take_used(RX).iter().map(|used| used.1).collect();
        assert_eq!(lens, [1526, 1526, 1182], "three segments with a header each");
        assert_eq!(bench.bytes(BUFFER + 1, 9), [0; 9], "nothing is left to do");
    }
    let mut bench = Bench::new(Net::new(CONFIG), F_GUEST_CSUM);
    receive_unfinished(&mut bench, csum(), &frame(0, 60));
    assert_eq!(bench.take_used(RX), [(0, 72)]);
    assert_eq!(bench.bytes(BUFFER + 12 + 40, 2), [0xff, 0xff]);
    receive_unfinished(&mut bench, csum(), &frame(0, 20));
    assert_eq!((bench.take_used(RX), bench.virtio.rx_dropped()), (vec![], 1));
}

/// behaviour 51: the driver is asked to announce itself and acknowledges.
#[test]
fn an_announcement_is_asked_for_until_the_driver_acknowledges() {
    let mut bench = bench();
    let generation = bench.read(0xfc);
    bench.virtio.handle_announce();
    assert_eq!(bench.take_interrupts(), 2);
    assert_eq!(bench.virtio.mmio_read(0x106, 2), 3);
    assert_ne!(bench.read(0xfc), generation);
    bench.offer(CONTROL, &[Part::Out(BUFFER, &[3, 0]), Part::In(HEADER, 1)]);
    bench.kick(CONTROL);
    assert_eq!((bench.bytes(HEADER, 1), bench.virtio.mmio_read(0x106, 2)), (vec![0], 1));
    // Commands that were not offered are refused.
    bench.offer(CONTROL, &[Part::Out(BUFFER, &[0, 0, 1]), Part::In(HEADER, 1)]);
    bench.kick(CONTROL);
    assert_eq!(bench.bytes(HEADER, 1), [1]);
}

#[test]
fn a_driver_that_does_not_know_announcements_is_not_asked() {
    let mut bench = Bench::new(Net::new(CONFIG), F_GUEST_ANNOUNCE);
    bench.virtio.handle_announce();
    assert_eq!((bench.take_interrupts(), bench.virtio.mmio_read(0x106, 2)), (0, 1));
}

#[test]
fn the_configuration_is_the_boards() {
    let bench = bench();
    let mac: Vec<u8> = (0..6).map(|at| bench.virtio.mmio_read(0x100 + at, 1) as u8).collect();
    assert_eq!(mac, CONFIG.mac);
    assert_eq!(bench.virtio.mmio_read(0x10a, 2), 1500);
    assert_eq!(bench.virtio.mmio_read(0x10c, 4), 0, "behind the end");
    assert_eq!(bench.virtio.mmio_read(u64::MAX, 8), 0);
}

#[test]
fn an_empty_receive_buffer_is_the_drivers_mistake() {
    let mut bench = bench();
    bench.offer(RX, &[Part::Out(BUFFER, &[0; 100])]);
    receive(&mut bench, &[frame(0, 60)]);
    assert!(bench.needs_reset());
}

#[test]
fn a_saved_device_goes_on_where_it_was_and_impossible_states_are_refused() {
    let mut bench = bench();
    receive(&mut bench, &[frame(1, 60), frame(2, 60)]);
    bench.virtio.handle_announce();
    let state = bench.virtio.state();
    let mut restored = Net::restore(CONFIG, state.clone()).unwrap();
    assert_eq!(restored.state(), state);
    std::mem::swap(&mut bench.virtio, &mut restored);
    offer_buffer(&mut bench, 0, 1526);
    bench.kick(RX);
    assert_eq!(bench.take_used(RX), [(0, 72)]);
    let refused = |change: fn(&mut VirtioState<NetState>)| {
        let mut state = state.clone();
        change(&mut state);
        Net::restore(CONFIG, state).is_err()
    };
    assert!(refused(|s| s.device.rx_held.push_back(Frame::default())));
    assert!(refused(|s| s.device.rx_held.resize(RX_HELD_MAX + 1, vec![0; 60].into())));
    assert!(refused(|s| s.transport.queues.clear()));
    assert!(refused(|s| s.transport.queues[0].size = 3));
    assert!(refused(|s| s.transport.queues[0].size = 512));
    assert!(refused(|s| s.transport.status |= 0x20));
    assert!(refused(|s| s.transport.status &= !8));
    assert!(refused(|s| s.transport.driver_features |= 1 << 63));
}

#[test]
fn a_reset_forgets_what_belongs_to_the_driver() {
    let mut bench = bench();
    receive(&mut bench, &[frame(1, 60)]);
    bench.virtio.handle_announce();
    bench.start(F_RING_EVENT_IDX);
    for index in 0..u64::from(QUEUE_SIZE) {
        offer_buffer(&mut bench, index, 1526);
    }
    bench.kick(RX);
    assert_eq!((bench.take_used(RX), bench.virtio.mmio_read(0x106, 2)), (vec![], 1));
}

/// behaviour 70: whatever is in its rings, the device neither panics nor hangs.
#[test]
fn random_rings_do_no_harm() {
    let mut sent = 0;
    fuzz(
        102,
        || Net::new(CONFIG),
        |bench, rng| {
            sent += bench.virtio.poll_frames().map_or(0, |frames| frames.len());
            if rng.one_in(3) {
                let bytes = frame(0x55, rng.below(2000) as usize);
                let mut header = [0; Offload::HEADER_LEN];
                rng.fill(&mut header);
                let offload = Offload::of(&header, u16::from_le_bytes);
                let offload = offload.filter(|_| rng.one_in(2));
                bench.virtio.handle_frames(&mut bench.mem, vec![Frame { offload, bytes }]);
            }
            if rng.one_in(2) {
                bench.virtio.send_waiting(&mut bench.mem);
            }
            if rng.one_in(10) {
                bench.virtio.handle_announce();
            }
            if rng.one_in(20) {
                let state = bench.virtio.state();
                assert_eq!(Net::restore(CONFIG, state.clone()).unwrap().state(), state);
            }
        },
    );
    assert!(sent > 100, "the rings were not so wild that nothing went through: {sent}");
}
