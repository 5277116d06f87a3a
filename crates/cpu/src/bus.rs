//! What lies outside the CPU: everything that is not RAM.

use base::{Gpa, Icount};
use mem::GuestMem;

/// The board as the CPU sees it: device registers, ports, the interrupt controller and the clock.
///
/// Every call carries `now`, the steps retired before the instruction that makes it, so that a
/// device computes the time exactly. Calls may raise or lower the interrupt line or ask for a stop;
/// the CPU looks at [`Bus::interrupt_pending`], [`Bus::take_nmi`] and [`Bus::stop_requested`] after
/// the instruction that called, and when `run` starts. Devices may write RAM during a call (a
/// virtio kick); the CPU then drains [`GuestMem::take_watched_writes`].
pub trait Bus {
    /// Reads `len` (1, 2, 4 or 8) bytes of device memory. An address where nothing is reads all ones.
    fn mmio_read(&mut self, mem: &mut GuestMem, now: Icount, gpa: Gpa, len: u8) -> u64;

    /// Writes the low `len` (1, 2, 4 or 8) bytes of `value` to device memory.
    fn mmio_write(&mut self, mem: &mut GuestMem, now: Icount, gpa: Gpa, len: u8, value: u64);

    /// Reads `len` (1, 2 or 4) bytes from a port. A port where nothing is reads all ones.
    fn port_read(&mut self, mem: &mut GuestMem, now: Icount, port: u16, len: u8) -> u32;

    /// Writes the low `len` (1, 2 or 4) bytes of `value` to a port.
    fn port_write(&mut self, mem: &mut GuestMem, now: Icount, port: u16, len: u8, value: u32);

    /// Reads a model-specific register that belongs to the board (`IA32_APIC_BASE`, the x2APIC
    /// range, `IA32_TSC_DEADLINE`). `None` means #GP. Not called for registers of the CPU's own.
    fn msr_read(&mut self, now: Icount, msr: u32) -> Option<u64>;

    /// Writes such a register. `None` means #GP.
    fn msr_write(&mut self, now: Icount, msr: u32, value: u64) -> Option<()>;

    /// Guest time in nanoseconds since power-on, as the anchors define it. The CPU adds the offset
    /// that the guest wrote (`IA32_TSC`, `IA32_TSC_ADJUST`) to make the TSC, which runs at 1 GHz.
    fn guest_ns(&mut self, now: Icount) -> u64;

    /// Tells the board of a new TSC offset, in ticks of 1 ns: TSC = guest time + offset (wrapping).
    fn set_tsc_offset(&mut self, now: Icount, offset: u64);

    /// CR8: the local APIC's task priority class (0 to 15).
    fn task_priority(&mut self) -> u8;

    /// Sets CR8.
    fn set_task_priority(&mut self, now: Icount, class: u8);

    /// The state of the CPU's INTR line, the local APIC's priorities applied.
    fn interrupt_pending(&self) -> bool;

    /// The interrupt acknowledge cycle: the vector to deliver. Called only while
    /// [`Bus::interrupt_pending`] holds; a spurious interrupt gives its own vector.
    fn acknowledge_interrupt(&mut self, now: Icount) -> u8;

    /// Takes an edge on NMI, if there was one.
    fn take_nmi(&mut self) -> bool;

    /// True if `run` is to return at the next step boundary: a timer was set, an output is ready, the
    /// guest asked for reset or power-off. Stays true until the board clears it.
    fn stop_requested(&self) -> bool;
}

/// A bus on which nothing is: no device, no interrupt; a step takes a nanosecond. For the CPU alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBus;

impl Bus for NoBus {
    fn mmio_read(&mut self, _: &mut GuestMem, _: Icount, _: Gpa, _: u8) -> u64 {
        u64::MAX
    }

    fn mmio_write(&mut self, _: &mut GuestMem, _: Icount, _: Gpa, _: u8, _: u64) {}

    fn port_read(&mut self, _: &mut GuestMem, _: Icount, _: u16, _: u8) -> u32 {
        u32::MAX
    }

    fn port_write(&mut self, _: &mut GuestMem, _: Icount, _: u16, _: u8, _: u32) {}

    fn msr_read(&mut self, _: Icount, _: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _: Icount, _: u32, _: u64) -> Option<()> {
        None
    }

    fn guest_ns(&mut self, now: Icount) -> u64 {
        now.0
    }

    fn set_tsc_offset(&mut self, _: Icount, _: u64) {}

    fn task_priority(&mut self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, _: Icount, _: u8) {}

    fn interrupt_pending(&self) -> bool {
        false
    }

    fn acknowledge_interrupt(&mut self, _: Icount) -> u8 {
        0
    }

    fn take_nmi(&mut self) -> bool {
        false
    }

    fn stop_requested(&self) -> bool {
        false
    }
}
