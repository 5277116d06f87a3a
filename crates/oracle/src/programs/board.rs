//! A board that answers by rule and remembers everything that it was asked.

use base::{Gpa, Icount};
use cpu::Bus;
use mem::GuestMem;

use super::layout::{CODE, CODE_BYTES};

/// A write to this port has the board ask for the end of the run.
pub(crate) const STOP_PORT: u8 = 0x80;
/// A write to this port has the board write to the program, as a device would.
pub(crate) const DMA_PORT: u8 = 0x81;

/// The board. Equal boards were asked the same, in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Board {
    /// A hash of everything so far.
    seen: u64,
    /// A vector that waits.
    pub(crate) interrupt: Option<u8>,
    pub(crate) nmi: bool,
    pub(crate) stop: bool,
}

impl Board {
    /// Notes a question; the answer follows from all questions so far.
    fn note(&mut self, words: [u64; 4]) -> u64 {
        for word in words {
            self.seen = (self.seen.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.seen
    }
}

impl Bus for Board {
    fn mmio_read(&mut self, _: &mut GuestMem, now: Icount, gpa: Gpa, len: u8) -> u64 {
        self.note([1, now.0, gpa.0, u64::from(len)])
    }

    fn mmio_write(&mut self, _: &mut GuestMem, now: Icount, gpa: Gpa, len: u8, value: u64) {
        self.note([2 | u64::from(len) << 8, now.0, gpa.0, value]);
    }

    fn port_read(&mut self, _: &mut GuestMem, now: Icount, port: u16, len: u8) -> u32 {
        self.note([3, now.0, u64::from(port), u64::from(len)]) as u32
    }

    fn port_write(&mut self, mem: &mut GuestMem, now: Icount, port: u16, len: u8, value: u32) {
        let random = self.note([4 | u64::from(len) << 8, now.0, u64::from(port), u64::from(value)]);
        match port {
            port if port == u16::from(STOP_PORT) => self.stop = true,
            port if port == u16::from(DMA_PORT) => {
                let at = CODE + random % CODE_BYTES;
                mem.write(Gpa(at), &[value as u8]).expect("the program lies in RAM");
            }
            _ => {}
        }
    }

    fn msr_read(&mut self, _: Icount, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: Icount, _: u32, _: u64) -> Option<()> {
        None
    }

    fn guest_ns(&mut self, now: Icount) -> u64 {
        now.0
    }

    fn set_tsc_offset(&mut self, now: Icount, offset: u64) {
        self.note([5, now.0, offset, 0]);
    }

    fn task_priority(&mut self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, now: Icount, priority: u8) {
        self.note([6, now.0, u64::from(priority), 0]);
    }

    fn interrupt_pending(&self) -> bool {
        self.interrupt.is_some()
    }

    fn acknowledge_interrupt(&mut self, now: Icount) -> u8 {
        let vector = self.interrupt.take().expect("it is asked only while one is pending");
        self.note([7, now.0, u64::from(vector), 0]);
        vector
    }

    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    fn stop_requested(&self) -> bool {
        self.stop
    }
}
