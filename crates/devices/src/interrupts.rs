//! The interrupt wiring of the board: 8259 pair, I/O APIC and local APIC with the lines between them.
//!
//! ISA line n reaches line n of the 8259 pair and pin n of the I/O APIC, but line 0 reaches pin 2 (the
//! MADT says so). The pair's INTR reaches LINT0 and pin 0. Global system interrupts 16 to 23 reach the
//! I/O APIC only.

use base::RestoreError;
use serde::{Deserialize, Serialize};

use crate::apic::{Apic, ApicState};
use crate::ioapic::{self, IoApic, IoApicState};
use crate::pic::{Pic, PicState};

/// Saved state of the interrupt controllers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptsState {
    /// The local APIC.
    pub apic: ApicState,
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The 8259 pair.
    pub pic: PicState,
}

impl base::Saved for InterruptsState {
    const KIND: &'static str = "interrupts";
    const VERSION: u16 = 1;
}

/// The three interrupt controllers.
#[derive(Debug)]
pub struct Interrupts {
    apic: Apic,
    ioapic: IoApic,
    pic: Pic,
}

impl Interrupts {
    /// The state at power-on, for a CPU whose physical addresses have `phys_addr_bits` bits.
    #[must_use]
    pub fn new(phys_addr_bits: u8) -> Interrupts {
        Interrupts { apic: Apic::new(phys_addr_bits), ioapic: IoApic::new(), pic: Pic::new() }
    }

    /// The local APIC, to look at.
    #[must_use]
    pub fn apic(&self) -> &Apic {
        &self.apic
    }

    /// Sets the level of a global system interrupt, which is an ISA line below 16. A level that is
    /// the same again does nothing.
    pub fn set_gsi(&mut self, gsi: u8, level: bool) {
        // Pin 2 belongs to line 0; line 2 is the cascade.
        let pin = match gsi {
            0 => 2,
            2 => return,
            _ => usize::from(gsi),
        };
        // The board sets every line after every access, so the usual case has to be quick.
        if self.ioapic.is_asserted(pin) == level {
            return;
        }
        self.set_pin(pin, level);
        if gsi < 16 {
            self.pic.set_irq(gsi, level);
            self.update_intr();
        }
    }

    /// A rising edge on a line that is low otherwise.
    pub fn pulse_gsi(&mut self, gsi: u8) {
        self.set_gsi(gsi, false);
        self.set_gsi(gsi, true);
        self.set_gsi(gsi, false);
    }

    /// Raises LINT1: an NMI as LVT entry LINT1 has it.
    pub fn pulse_lint1(&mut self) {
        self.apic.set_lint(1, true);
        self.apic.set_lint(1, false);
    }

    /// Reads device memory. `None`: neither APIC is at `gpa`.
    pub fn mmio_read(&mut self, now_ns: u64, gpa: u64, len: u8) -> Option<u64> {
        if let Some(offset) = self.apic_offset(gpa) {
            return Some(self.apic.mmio_read(now_ns, offset, len));
        }
        let offset = gpa.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)?;
        Some(self.ioapic.mmio_read(offset, len))
    }

    /// Writes device memory. `None`: neither APIC is at `gpa`.
    pub fn mmio_write(&mut self, now_ns: u64, gpa: u64, len: u8, value: u64) -> Option<()> {
        if let Some(offset) = self.apic_offset(gpa) {
            let accepted = self.apic.accepts_fixed();
            self.apic.mmio_write(now_ns, offset, len, value);
            self.after_apic_write(accepted);
            return Some(());
        }
        let offset = gpa.checked_sub(ioapic::BASE).filter(|offset| *offset < ioapic::SIZE)?;
        let apic = &mut self.apic;
        self.ioapic.mmio_write(offset, len, value, &mut |message| apic.handle_message(message));
        Some(())
    }

    /// Reads a port of the 8259 pair. `None`: the port is not one of its.
    pub fn port_read(&mut self, port: u16) -> Option<u8> {
        let value = self.pic.port_read(port)?;
        self.update_intr();
        Some(value)
    }

    /// Writes a port of the 8259 pair. `None`: the port is not one of its.
    pub fn port_write(&mut self, port: u16, value: u8) -> Option<()> {
        self.pic.port_write(port, value)?;
        self.update_intr();
        Some(())
    }

    /// Reads an MSR of the local APIC. `None` is #GP.
    pub fn msr_read(&mut self, now_ns: u64, msr: u32) -> Option<u64> {
        self.apic.msr_read(now_ns, msr)
    }

    /// Writes an MSR of the local APIC. `None` is #GP.
    pub fn msr_write(&mut self, now_ns: u64, msr: u32, value: u64) -> Option<()> {
        let accepted = self.apic.accepts_fixed();
        self.apic.msr_write(now_ns, msr, value)?;
        self.after_apic_write(accepted);
        Some(())
    }

    /// CR8.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.apic.task_priority()
    }

    /// Sets CR8.
    pub fn set_task_priority(&mut self, class: u8) {
        self.apic.set_task_priority(class);
    }

    /// Tells of a new TSC offset: TSC = guest ns + `offset`, wrapping.
    pub fn set_tsc_offset(&mut self, now_ns: u64, offset: u64) {
        self.apic.set_tsc_offset(now_ns, offset);
    }

    /// The CPU's INTR line.
    #[must_use]
    pub fn interrupt_pending(&self) -> bool {
        self.apic.interrupt_pending() || self.ext_int_pending()
    }

    /// The interrupt acknowledge cycle: the vector. The 8259 pair goes before the local APIC's own.
    pub fn acknowledge(&mut self) -> u8 {
        if !self.ext_int_pending() {
            return self.apic.acknowledge();
        }
        let vector = self.pic.acknowledge();
        self.update_intr();
        vector
    }

    /// Takes an NMI.
    pub fn take_nmi(&mut self) -> bool {
        self.apic.take_nmi()
    }

    /// When the local APIC's timer has an interrupt to raise, in guest ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.apic.next_deadline_ns()
    }

    /// Lets the local APIC's timer see the time.
    pub fn handle_time(&mut self, now_ns: u64) {
        self.apic.handle_time(now_ns);
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> InterruptsState {
        InterruptsState {
            apic: self.apic.state(),
            ioapic: self.ioapic.state(),
            pic: self.pic.state(),
        }
    }

    /// Interrupt controllers in a saved state.
    ///
    /// # Errors
    /// If one of them cannot be in that state.
    pub fn restore(state: InterruptsState) -> Result<Interrupts, RestoreError> {
        Ok(Interrupts {
            apic: Apic::restore(state.apic)?,
            ioapic: IoApic::restore(state.ioapic)?,
            pic: Pic::restore(state.pic)?,
        })
    }

    fn apic_offset(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.apic.mmio_base()?)?;
        (offset < 0x1000).then_some(offset)
    }

    fn set_pin(&mut self, pin: usize, level: bool) {
        let apic = &mut self.apic;
        self.ioapic.set_pin(pin, level, &mut |message| apic.handle_message(message));
    }

    fn update_intr(&mut self) {
        let intr = self.pic.intr();
        self.apic.set_lint(0, intr);
        self.set_pin(0, intr);
    }

    /// Forwards an EOI, and offers waiting level interrupts again to an APIC that did not take any before.
    fn after_apic_write(&mut self, accepted_fixed: bool) {
        let apic = &mut self.apic;
        if let Some(vector) = apic.take_eoi() {
            self.ioapic.handle_eoi(vector, &mut |message| apic.handle_message(message));
        }
        if !accepted_fixed && apic.accepts_fixed() {
            self.ioapic.service_levels(&mut |message| apic.handle_message(message));
        }
    }

    fn ext_int_pending(&self) -> bool {
        self.pic.intr()
            && (self.apic.accepts_ext_int()
                || self
                    .ioapic
                    .ext_int_message(0)
                    .is_some_and(|message| self.apic.is_destination_of(message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOAPIC: u64 = ioapic::BASE;
    const APIC: u64 = crate::apic::DEFAULT_BASE;

    fn write_redirection(interrupts: &mut Interrupts, pin: u64, value: u64) {
        for half in 0..2 {
            interrupts.mmio_write(0, IOAPIC, 4, 0x10 + pin * 2 + half);
            interrupts.mmio_write(0, IOAPIC + 0x10, 4, value >> (half * 32) & 0xffff_ffff);
        }
    }

    fn with_apics() -> Interrupts {
        let mut interrupts = Interrupts::new(40);
        interrupts.mmio_write(0, APIC + 0xf0, 4, 0x1ff);
        interrupts.port_write(0x21, 0xff);
        interrupts
    }

    #[test]
    fn a_level_line_interrupts_until_the_device_lowers_it() {
        let mut interrupts = with_apics();
        write_redirection(&mut interrupts, 17, 0x8041);
        interrupts.set_gsi(17, true);
        assert_eq!(interrupts.acknowledge(), 0x41);
        interrupts.mmio_write(0, APIC + 0xb0, 4, 0);
        assert_eq!(interrupts.acknowledge(), 0x41);
        interrupts.set_gsi(17, false);
        interrupts.mmio_write(0, APIC + 0xb0, 4, 0);
        assert!(!interrupts.interrupt_pending());
    }

    #[test]
    fn the_timer_line_reaches_pin_2() {
        let mut interrupts = with_apics();
        write_redirection(&mut interrupts, 2, 0x30);
        interrupts.pulse_gsi(0);
        assert_eq!(interrupts.acknowledge(), 0x30);
        interrupts.set_gsi(2, true);
        interrupts.mmio_write(0, APIC + 0xb0, 4, 0);
        assert!(!interrupts.interrupt_pending());
    }

    #[test]
    fn the_8259_pair_interrupts_through_lint0_or_pin_0_or_a_disabled_apic() {
        let mut interrupts = Interrupts::new(40);
        interrupts.port_write(0x21, 0);
        interrupts.pulse_gsi(1);
        assert_eq!(interrupts.acknowledge(), 0x09);
        interrupts.port_write(0x20, 0x20);

        interrupts.mmio_write(0, APIC + 0x350, 4, 0x1_0700);
        interrupts.pulse_gsi(1);
        assert!(!interrupts.interrupt_pending());
        write_redirection(&mut interrupts, 0, 0x700);
        assert_eq!(interrupts.acknowledge(), 0x09);
        interrupts.port_write(0x20, 0x20);

        write_redirection(&mut interrupts, 0, 0x1_0700);
        interrupts.pulse_gsi(1);
        assert!(!interrupts.interrupt_pending());
        interrupts.msr_write(0, crate::apic::MSR_APIC_BASE, APIC | 0x100).unwrap();
        assert_eq!(interrupts.acknowledge(), 0x09);
    }

    #[test]
    fn the_directed_eoi_register_ends_a_level_interrupt() {
        let mut interrupts = with_apics();
        write_redirection(&mut interrupts, 17, 0x8041);
        interrupts.set_gsi(17, true);
        interrupts.set_gsi(17, false);
        interrupts.mmio_write(0, IOAPIC + 0x40, 4, 0x41);
        interrupts.mmio_write(0, IOAPIC, 4, 0x10 + 34);
        assert_eq!(interrupts.mmio_read(0, IOAPIC + 0x10, 4), Some(0x8041));
    }

    #[test]
    fn a_level_that_a_disabled_apic_did_not_take_comes_when_it_is_enabled() {
        let mut interrupts = Interrupts::new(40);
        write_redirection(&mut interrupts, 17, 0x8041);
        interrupts.set_gsi(17, true);
        assert!(!interrupts.interrupt_pending());
        interrupts.mmio_write(0, APIC + 0xf0, 4, 0x1ff);
        assert_eq!(interrupts.acknowledge(), 0x41);
    }

    #[test]
    fn setting_a_line_to_the_level_it_has_is_no_edge() {
        let mut interrupts = with_apics();
        write_redirection(&mut interrupts, 14, 0x41);
        interrupts.set_gsi(14, true);
        assert_eq!(interrupts.acknowledge(), 0x41);
        interrupts.mmio_write(0, APIC + 0xb0, 4, 0);
        interrupts.set_gsi(14, true);
        assert!(!interrupts.interrupt_pending());
    }

    #[test]
    fn state_survives_a_round_trip() {
        let mut interrupts = with_apics();
        write_redirection(&mut interrupts, 17, 0x8041);
        interrupts.set_gsi(17, true);
        interrupts.set_gsi(5, true);
        let state = interrupts.state();
        assert_eq!(Interrupts::restore(state.clone()).unwrap().state(), state);
    }
}
