//! behaviour 70: what a driver must not do with its rings, each found for its own reason.

use mem::{HIGH_RAM_START, LOW_RAM_MAX};

use super::*;

const DATA: u64 = 0x8_0000;
const TABLE: u64 = 0x9_0000;
const FEATURES: RingFeatures = RingFeatures { indirect: true, event_idx: true };

struct Bench {
    mem: GuestMem,
    queue: QueueState,
}

fn bench() -> Bench {
    let queue = QueueState {
        size: 4,
        is_ready: true,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
        ..QueueState::default()
    };
    Bench { mem: GuestMem::new(1 << 20).unwrap(), queue }
}

impl Bench {
    fn desc(&mut self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let desc = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.mem.write_obj(Gpa(at), desc).unwrap();
    }

    fn set_avail(&mut self, idx: u16, head: u16) {
        self.mem.write_obj(Gpa(0x2002), idx).unwrap();
        self.mem.write_obj(Gpa(0x2004), head).unwrap();
    }

    fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        self.queue.pop(&self.mem, FEATURES)
    }

    fn pop_error(mut self) -> Broken {
        self.set_avail(1, 0);
        self.pop().unwrap_err()
    }
}

#[test]
fn a_chain_is_taken_with_its_parts_in_order() {
    let mut b = bench();
    b.desc(0x1000, DATA, 8, DESC_NEXT, 2);
    b.desc(0x1020, DATA + 0x100, 0, DESC_NEXT, 3);
    b.desc(0x1030, TABLE, 32, DESC_INDIRECT, 0);
    b.desc(TABLE, DATA + 0x200, 4, DESC_WRITE | DESC_NEXT, 1);
    b.desc(TABLE + 16, DATA + 0x300, 2, DESC_WRITE, 0);
    b.set_avail(1, 0);
    let chain = b.pop().unwrap().unwrap();
    let segment = |gpa, len| Segment { gpa: Gpa(gpa), len };
    assert_eq!(chain.readable, [segment(DATA, 8)]);
    assert_eq!(chain.writable, [segment(DATA + 0x200, 4), segment(DATA + 0x300, 2)]);
    assert_eq!(b.pop(), Ok(None));
    b.queue.unpop(1);
    assert_eq!(b.pop(), Ok(Some(chain)));
}

#[test]
fn the_available_index_must_not_run_ahead() {
    let mut b = bench();
    b.desc(0x1000, DATA, 8, 0, 0);
    b.set_avail(5, 0);
    assert_eq!(b.pop(), Err(Broken::AvailIndex));
    b.set_avail(4, 0);
    assert!(b.pop().is_ok());
}

#[test]
fn a_loop_ends() {
    let mut b = bench();
    b.desc(0x1000, DATA, 8, DESC_NEXT, 1);
    b.desc(0x1010, DATA, 8, DESC_NEXT, 0);
    assert_eq!(b.pop_error(), Broken::ChainLen);
}

#[test]
fn indirect_tables_do_not_nest_and_have_whole_descriptors() {
    let mut nested = bench();
    nested.desc(0x1000, TABLE, 16, DESC_INDIRECT, 0);
    nested.desc(TABLE, TABLE, 16, DESC_INDIRECT, 0);
    assert_eq!(nested.pop_error(), Broken::Indirect);
    for (len, flags) in [(0, 0), (24, 0), (16, DESC_NEXT)] {
        let mut b = bench();
        b.desc(0x1000, TABLE, len, DESC_INDIRECT | flags, 0);
        assert_eq!(b.pop_error(), Broken::Indirect);
    }
    let mut outside = bench();
    outside.desc(0x1000, TABLE, 16, DESC_INDIRECT, 0);
    outside.desc(TABLE, DATA, 8, DESC_NEXT, 1);
    assert_eq!(outside.pop_error(), Broken::DescIndex);
}

#[test]
fn readable_parts_come_before_writable_ones() {
    let mut b = bench();
    b.desc(0x1000, DATA, 8, DESC_WRITE | DESC_NEXT, 1);
    b.desc(0x1010, DATA, 8, 0, 0);
    assert_eq!(b.pop_error(), Broken::Order);
}

#[test]
fn memory_must_be_ram_in_one_piece() {
    for (address, len) in [(0xf_fff0, 17), (1 << 40, 1), (u64::MAX, 1), (DATA, u32::MAX)] {
        let mut b = bench();
        b.desc(0x1000, address, len, 0, 0);
        assert!(matches!(b.pop_error(), Broken::NotRam(_)), "{address:#x} {len:#x}");
    }
    // Both ends in RAM, the hole between them.
    let mem = GuestMem::new(LOW_RAM_MAX + (1 << 20)).unwrap();
    let across = (HIGH_RAM_START - LOW_RAM_MAX) as u32 + 32;
    let mut b = Bench { mem, ..bench() };
    b.desc(0x1000, LOW_RAM_MAX - 16, across, 0, 0);
    assert!(matches!(b.pop_error(), Broken::NotRam(_)));
}

#[test]
fn rings_outside_ram_are_found() {
    let mut b = bench();
    b.queue.avail = u64::MAX - 1;
    assert!(matches!(b.pop(), Err(Broken::NotRam(_))));
    let mut b = bench();
    b.queue.desc = u64::MAX - 15;
    b.set_avail(1, 1);
    assert!(matches!(b.pop(), Err(Broken::NotRam(_))));
    let mut b = bench();
    b.queue.used = 0xfee0_0000;
    assert!(matches!(b.queue.push_used(&mut b.mem, 0, 0), Err(Broken::NotRam(_))));
    assert!(matches!(b.queue.want_kick(&mut b.mem, FEATURES), Err(Broken::NotRam(_))));
}

#[test]
fn indexes_wrap() {
    let mut b = bench();
    b.desc(0x1000, DATA, 8, 0, 0);
    b.queue.next_avail = u16::MAX;
    b.queue.next_used = u16::MAX;
    b.queue.notified_used = Some(u16::MAX);
    b.set_avail(0, 0);
    assert!(b.pop().unwrap().is_some());
    b.queue.push_used(&mut b.mem, 0, 7).unwrap();
    assert_eq!(b.mem.read_obj::<u16>(Gpa(0x3002)), Ok(0));
    assert_eq!(b.mem.read_obj::<u64>(Gpa(0x3004 + 3 * 8)), Ok(7 << 32));
    // The driver asked for the one that was just given back.
    b.mem.write_obj(Gpa(0x2004 + 8), u16::MAX).unwrap();
    assert_eq!(b.queue.take_notification(&b.mem, FEATURES), Ok(true));
    assert_eq!(b.queue.take_notification(&b.mem, FEATURES), Ok(false));
}

#[test]
fn copies_respect_the_borders_of_segments() {
    let mut b = bench();
    b.mem.write(Gpa(DATA), &[1, 2, 3, 4]).unwrap();
    b.mem.write(Gpa(DATA + 0x100), &[5, 6]).unwrap();
    let segments =
        vec![Segment { gpa: Gpa(DATA), len: 4 }, Segment { gpa: Gpa(DATA + 0x100), len: 2 }];
    let chain = Chain { head: 0, readable: segments.clone(), writable: segments };
    assert_eq!(chain.read(&b.mem, 3, 2), Ok(vec![4, 5]));
    assert_eq!(chain.read(&b.mem, 5, 100), Ok(vec![6]));
    assert_eq!(chain.read(&b.mem, 100, 1), Ok(vec![]));
    chain.write(&mut b.mem, 2, &[9, 8, 7, 6, 5]).unwrap();
    assert_eq!(chain.read(&b.mem, 0, 100), Ok(vec![1, 2, 9, 8, 7, 6]));
}
