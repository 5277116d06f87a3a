//! A driver for tests: it lays out the rings in RAM and talks to the window.

use base::Gpa;
use mem::GuestMem;

use super::transport::{Backend, Virtio};
use super::{F_RING_EVENT_IDX, F_RING_INDIRECT_DESC, F_VERSION_1};

/// Entries of the driver's queues.
pub(crate) const QUEUE_SIZE: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A device with RAM and a driver that has set it up.
pub(crate) struct Bench<B> {
    pub(crate) mem: GuestMem,
    pub(crate) virtio: Virtio<B>,
    next_desc: u16,
    seen_used: Vec<u16>,
}

/// A part of a chain.
pub(crate) enum Part<'a> {
    /// Bytes for the device, placed at the address.
    Out(u64, &'a [u8]),
    /// Room for the device.
    In(u64, u32),
}

pub(crate) fn ring(queue: usize) -> Ring {
    let base = 0x1_0000 * (queue as u64 + 1);
    Ring { desc: base, avail: base + 0x4000, used: base + 0x8000 }
}

pub(crate) struct Ring {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

impl<B: Backend> Bench<B> {
    /// A driver that accepts all features but those in `without`.
    pub(crate) fn new(virtio: Virtio<B>, without: u64) -> Bench<B> {
        let mem = GuestMem::new(2 << 20).unwrap();
        let mut bench = Bench { mem, virtio, next_desc: 0, seen_used: vec![0; B::QUEUE_COUNT] };
        bench.start(without);
        bench
    }

    pub(crate) fn start(&mut self, without: u64) {
        self.next_desc = 0;
        self.seen_used.fill(0);
        self.write(0x70, 0);
        self.write(0x70, 3);
        let features = (self.virtio.device().features()
            | F_VERSION_1
            | F_RING_INDIRECT_DESC
            | F_RING_EVENT_IDX)
            & !without;
        for half in 0..2 {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11, "features are accepted");
        for queue in 0..B::QUEUE_COUNT {
            self.start_queue(queue);
        }
        self.write(0x70, 15);
    }

    fn start_queue(&mut self, queue: usize) {
        let ring = ring(queue);
        self.mem.write(Gpa(ring.avail), &[0; 64]).unwrap();
        self.mem.write(Gpa(ring.used), &[0; 256]).unwrap();
        self.write(0x30, queue as u32);
        self.write(0x38, u32::from(QUEUE_SIZE));
        for (at, address) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
            self.write(at, address as u32);
            self.write(at + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
        assert_eq!(self.read(0x44), 1, "the queue is ready");
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        self.virtio.mmio_read(offset, 4) as u32
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.virtio.mmio_write(&mut self.mem, offset, 4, u64::from(value));
    }

    pub(crate) fn kick(&mut self, queue: usize) {
        self.write(0x50, queue as u32);
    }

    pub(crate) fn write_desc(&mut self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let desc = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.mem.write_obj(Gpa(at), desc).unwrap();
    }

    /// Puts a chain into a queue without kicking; gives back its head.
    pub(crate) fn offer(&mut self, queue: usize, parts: &[Part<'_>]) -> u16 {
        let head = self.next_desc;
        for (index, part) in parts.iter().enumerate() {
            let (address, len, flags) = self.place(part);
            let slot = self.take_desc();
            let more = index + 1 < parts.len();
            let flags = flags | if more { NEXT } else { 0 };
            let next = self.next_desc;
            self.write_desc(ring(queue).desc + u64::from(slot) * 16, address, len, flags, next);
        }
        self.publish(queue, head);
        head
    }

    /// Like [`Bench::offer`], with the parts in an indirect table at `table`.
    pub(crate) fn offer_indirect(&mut self, queue: usize, table: u64, parts: &[Part<'_>]) -> u16 {
        for (index, part) in parts.iter().enumerate() {
            let (address, len, flags) = self.place(part);
            let more = if index + 1 < parts.len() { NEXT } else { 0 };
            let at = table + index as u64 * 16;
            self.write_desc(at, address, len, flags | more, index as u16 + 1);
        }
        let head = self.take_desc();
        let at = ring(queue).desc + u64::from(head) * 16;
        self.write_desc(at, table, parts.len() as u32 * 16, INDIRECT, 0);
        self.publish(queue, head);
        head
    }

    fn take_desc(&mut self) -> u16 {
        let slot = self.next_desc;
        self.next_desc = (slot + 1) % QUEUE_SIZE;
        slot
    }

    fn place(&mut self, part: &Part<'_>) -> (u64, u32, u16) {
        match part {
            Part::Out(address, bytes) => {
                self.mem.write(Gpa(*address), bytes).unwrap();
                (*address, bytes.len() as u32, 0)
            }
            Part::In(address, len) => (*address, *len, WRITE),
        }
    }

    /// Makes a head available.
    pub(crate) fn publish(&mut self, queue: usize, head: u16) {
        let avail = ring(queue).avail;
        let idx: u16 = self.mem.read_obj(Gpa(avail + 2)).unwrap();
        let slot = u64::from(idx % QUEUE_SIZE);
        self.mem.write_obj(Gpa(avail + 4 + slot * 2), head).unwrap();
        self.mem.write_obj(Gpa(avail + 2), idx.wrapping_add(1)).unwrap();
    }

    /// Takes what the device gave back: heads and lengths.
    pub(crate) fn take_used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let used = ring(queue).used;
        let idx: u16 = self.mem.read_obj(Gpa(used + 2)).unwrap();
        let mut taken = Vec::new();
        while self.seen_used[queue] != idx {
            let slot = u64::from(self.seen_used[queue] % QUEUE_SIZE);
            let element: u64 = self.mem.read_obj(Gpa(used + 4 + slot * 8)).unwrap();
            taken.push((element as u16, (element >> 32) as u32));
            self.seen_used[queue] = self.seen_used[queue].wrapping_add(1);
        }
        // Ask to be notified of the next.
        let event = ring(queue).avail + 4 + u64::from(QUEUE_SIZE) * 2;
        self.mem.write_obj(Gpa(event), idx).unwrap();
        taken
    }

    /// Takes and acknowledges the pending interrupts.
    pub(crate) fn take_interrupts(&mut self) -> u32 {
        let status = self.read(0x60);
        self.write(0x64, status);
        assert!(!self.virtio.irq_level());
        status
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read(Gpa(address), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.read(0x70) & 0x40 != 0
    }
}

/// Random rings, descriptors and register writes: nothing may panic or run without end.
/// `between` does what the world outside does to the device.
pub(crate) fn fuzz<B: Backend>(
    seed: u64,
    make: impl Fn() -> Virtio<B>,
    mut between: impl FnMut(&mut Bench<B>, &mut base::SeededRng),
) {
    println!("seed {seed}");
    let mut rng = base::SeededRng::new(seed);
    for _ in 0..300 {
        let without = if rng.one_in(2) { 0 } else { F_RING_EVENT_IDX };
        let mut bench = Bench::new(make(), without);
        for _ in 0..60 {
            step(&mut bench, &mut rng);
            between(&mut bench, &mut rng);
            if bench.needs_reset() {
                bench.start(without);
            }
        }
    }
}

fn step<B: Backend>(bench: &mut Bench<B>, rng: &mut base::SeededRng) {
    let queue = rng.below(B::QUEUE_COUNT as u64) as usize;
    let ring = ring(queue);
    match rng.below(12) {
        // Mostly plausible descriptors, some wild.
        0..=5 => {
            for _ in 0..4 {
                let address = match rng.below(8) {
                    0 => rng.u64(),
                    1 => ring.used,
                    2 => ring.avail,
                    3 => ring.desc,
                    _ => 0x8_0000 + rng.below(0x1000),
                };
                let len = match rng.below(10) {
                    0 => rng.u64() as u32,
                    1 => 0,
                    _ => 16 * rng.below(64) as u32,
                };
                let flags = if rng.one_in(10) { rng.u64() as u16 } else { rng.below(4) as u16 };
                let slot = rng.below(u64::from(QUEUE_SIZE));
                let next = if rng.one_in(20) { rng.u64() } else { rng.below(16) } as u16;
                bench.write_desc(ring.desc + slot * 16, address, len, flags, next);
            }
        }
        6..=9 => {
            let head = if rng.one_in(30) { rng.u64() } else { rng.below(16) } as u16;
            bench.publish(queue, head);
            bench.kick(queue);
        }
        10 if rng.one_in(4) => {
            let idx = rng.u64() as u16;
            bench.mem.write_obj(Gpa(ring.avail + 2), idx).unwrap();
            bench.kick(queue);
        }
        _ => {
            let offset = rng.below(0x120);
            let value = rng.u64() >> rng.below(64);
            let len = 1 << rng.below(4);
            // A reset or a status is for another day, most of the time.
            if offset != 0x70 || rng.one_in(10) {
                bench.virtio.mmio_write(&mut bench.mem, offset, len, value);
            }
            let _ = bench.virtio.mmio_read(offset, len); // only that it does not panic
        }
    }
}
