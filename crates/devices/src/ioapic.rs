//! I/O APIC (Intel 82093AA, with the EOI register of version 0x20).
//!
//! An edge that comes while its pin is masked is lost, as on the part. Polarity is kept but without
//! effect: `level` in the calls means asserted.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::apic::{DeliveryMode, Message};
use crate::impossible;

/// Where the registers lie in memory.
pub const BASE: u64 = 0xfec0_0000;
/// How many bytes they take.
pub const SIZE: u64 = 0x1000;
/// Number of pins.
pub const PIN_COUNT: usize = 24;

/// Saved state of the I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// Which register the window shows.
    pub select: u8,
    /// Identification, bits 24 to 27 of the register.
    pub id: u8,
    /// Redirection table.
    pub redirection: [u64; PIN_COUNT],
    /// Which pins are asserted, bit by bit.
    pub asserted: u32,
}

impl Saved for IoApicState {
    const KIND: &'static str = "io-apic";
    const VERSION: u16 = 1;
}

/// An I/O APIC of 24 pins.
#[derive(Debug)]
pub struct IoApic {
    state: IoApicState,
}

impl Default for IoApic {
    fn default() -> IoApic {
        IoApic::new()
    }
}

impl IoApic {
    /// The state after reset: every pin masked.
    #[must_use]
    pub fn new() -> IoApic {
        let redirection = [ENTRY_MASKED; PIN_COUNT];
        IoApic { state: IoApicState { select: 0, id: 0, redirection, asserted: 0 } }
    }

    /// Reads at `offset` from [`BASE`].
    #[must_use]
    pub fn mmio_read(&self, offset: u64, _len: u8) -> u64 {
        match offset {
            0x00 => u64::from(self.state.select),
            0x10 => u64::from(self.read_register()),
            _ => 0,
        }
    }

    /// Writes at `offset` from [`BASE`]. `send` takes a message to the local APIC and says
    /// whether it was accepted.
    pub fn mmio_write(
        &mut self,
        offset: u64,
        len: u8,
        value: u64,
        send: &mut dyn FnMut(Message) -> bool,
    ) {
        match offset {
            0x00 => self.state.select = value as u8,
            // The window and the EOI register are 32 bits wide.
            0x10 if len >= 4 => self.write_register(value as u32, send),
            0x40 => self.handle_eoi(value as u8, send),
            _ => {}
        }
    }

    /// Asserts or negates a pin. A pin beyond the last is not there.
    pub fn set_pin(&mut self, pin: usize, asserted: bool, send: &mut dyn FnMut(Message) -> bool) {
        if pin >= PIN_COUNT {
            return;
        }
        let was = self.is_asserted(pin);
        if asserted {
            self.state.asserted |= 1 << pin;
        } else {
            self.state.asserted &= !(1 << pin);
        }
        let is_edge = self.state.redirection[pin] & ENTRY_LEVEL == 0;
        if asserted && !(is_edge && was) {
            self.service(pin, send);
        }
    }

    /// The end of an interrupt: pins of that vector that are still asserted ask again.
    pub fn handle_eoi(&mut self, vector: u8, send: &mut dyn FnMut(Message) -> bool) {
        for pin in 0..PIN_COUNT {
            let entry = &mut self.state.redirection[pin];
            if *entry & ENTRY_LEVEL == 0 || *entry as u8 != vector {
                continue;
            }
            *entry &= !ENTRY_REMOTE_IRR;
            if self.is_asserted(pin) {
                self.service(pin, send);
            }
        }
    }

    /// The message of a pin that passes the 8259 pair's interrupt on, if it is not masked.
    #[must_use]
    pub fn ext_int_message(&self, pin: usize) -> Option<Message> {
        let entry = *self.state.redirection.get(pin)?;
        let message = message_of(entry);
        (entry & ENTRY_MASKED == 0 && message.mode == DeliveryMode::ExtInt).then_some(message)
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> IoApicState {
        self.state.clone()
    }

    /// An I/O APIC in a saved state.
    ///
    /// # Errors
    /// If no I/O APIC can be in that state.
    pub fn restore(state: IoApicState) -> Result<IoApic, RestoreError> {
        let reserved = |entry: &u64| entry & !(ENTRY_WRITABLE | ENTRY_REMOTE_IRR) != 0;
        if state.id > 0xf
            || state.asserted >> PIN_COUNT != 0
            || state.redirection.iter().any(reserved)
        {
            return Err(impossible(IoApicState::KIND, "a reserved register bit is set"));
        }
        Ok(IoApic { state })
    }

    /// True if the pin is asserted; false if there is no such pin.
    #[must_use]
    pub fn is_asserted(&self, pin: usize) -> bool {
        pin < PIN_COUNT && self.state.asserted & 1 << pin != 0
    }

    /// Sends the message of every asserted level pin that waits.
    pub(crate) fn service_levels(&mut self, send: &mut dyn FnMut(Message) -> bool) {
        for pin in 0..PIN_COUNT {
            if self.is_asserted(pin) && self.state.redirection[pin] & ENTRY_LEVEL != 0 {
                self.service(pin, send);
            }
        }
    }

    /// Sends the message of an asserted pin, if its entry lets it.
    fn service(&mut self, pin: usize, send: &mut dyn FnMut(Message) -> bool) {
        let entry = self.state.redirection[pin];
        let message = message_of(entry);
        if entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) != 0 || message.mode == DeliveryMode::ExtInt {
            return;
        }
        if send(message) && message.is_level {
            self.state.redirection[pin] |= ENTRY_REMOTE_IRR;
        }
    }

    fn read_register(&self) -> u32 {
        match self.state.select {
            0 | 2 => u32::from(self.state.id) << 24,
            1 => VERSION | (PIN_COUNT as u32 - 1) << 16,
            select @ 0x10..0x40 => {
                let entry = self.state.redirection[usize::from(select - 0x10) >> 1];
                (if select & 1 == 0 { entry } else { entry >> 32 }) as u32
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32, send: &mut dyn FnMut(Message) -> bool) {
        match self.state.select {
            0 => self.state.id = (value >> 24 & 0xf) as u8,
            select @ 0x10..0x40 => {
                let pin = usize::from(select - 0x10) >> 1;
                let entry = &mut self.state.redirection[pin];
                let shift = u32::from(select & 1) * 32;
                let kept = *entry & !(0xffff_ffff << shift) | *entry & ENTRY_REMOTE_IRR;
                *entry = kept | u64::from(value) << shift & ENTRY_WRITABLE;
                if *entry & ENTRY_LEVEL == 0 {
                    *entry &= !ENTRY_REMOTE_IRR;
                } else if self.is_asserted(pin) {
                    self.service(pin, send);
                }
            }
            _ => {}
        }
    }
}

/// The message that a redirection entry sends. Fixed and lowest priority can be level triggered.
fn message_of(entry: u64) -> Message {
    let mode = DeliveryMode::of(entry as u32);
    let has_vector = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
    Message {
        destination: (entry >> 56) as u32,
        is_logical: entry & 1 << 11 != 0,
        mode,
        vector: entry as u8,
        is_level: has_vector && entry & ENTRY_LEVEL != 0,
    }
}

const VERSION: u32 = 0x20;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Destination, mask, trigger, polarity, destination mode, delivery mode, vector.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

#[cfg(test)]
mod tests {
    use super::*;

    /// An I/O APIC whose messages are collected.
    #[derive(Default)]
    struct Bench {
        ioapic: IoApic,
        sent: Vec<Message>,
    }

    impl Bench {
        fn write(&mut self, register: u8, value: u32) {
            let sent = &mut self.sent;
            let mut send = |message| {
                sent.push(message);
                true
            };
            self.ioapic.mmio_write(0, 4, u64::from(register), &mut send);
            self.ioapic.mmio_write(0x10, 4, u64::from(value), &mut send);
        }

        fn read(&mut self, register: u8) -> u32 {
            self.ioapic.mmio_write(0, 4, u64::from(register), &mut |_| true);
            self.ioapic.mmio_read(0x10, 4) as u32
        }

        fn pin(&mut self, pin: usize, asserted: bool) {
            let sent = &mut self.sent;
            self.ioapic.set_pin(pin, asserted, &mut |message| {
                sent.push(message);
                true
            });
        }

        fn eoi(&mut self, vector: u8) {
            let sent = &mut self.sent;
            self.ioapic.mmio_write(0x40, 4, u64::from(vector), &mut |message| {
                sent.push(message);
                true
            });
        }

        fn vectors(&mut self) -> Vec<u8> {
            self.sent.drain(..).map(|message| message.vector).collect()
        }
    }

    #[test]
    fn identification_is_four_bits_wide_and_the_version_read_only() {
        let mut bench = Bench::default();
        bench.write(0, u32::MAX);
        assert_eq!((bench.read(0), bench.read(2)), (0x0f00_0000, 0x0f00_0000));
        bench.write(2, 0);
        assert_eq!(bench.read(2), 0x0f00_0000);
        bench.write(1, 0);
        assert_eq!(bench.read(1), 0x0017_0020);
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let mut bench = Bench::default();
        bench.write(0x10 + 28, 0x81 | 1 << 16);
        bench.pin(14, true);
        bench.pin(14, false);
        bench.write(0x10 + 28, 0x81);
        assert_eq!(bench.vectors(), []);
        bench.pin(14, true);
        bench.pin(14, true);
        bench.pin(14, false);
        assert_eq!(bench.vectors(), [0x81]);
    }

    #[test]
    fn a_level_is_sent_again_after_eoi_while_asserted_and_waits_while_masked() {
        let mut bench = Bench::default();
        bench.write(0x10 + 28, 0x8077);
        bench.pin(14, true);
        bench.pin(14, true);
        assert_eq!((bench.vectors(), bench.read(0x10 + 28)), (vec![0x77], 0xc077));
        bench.eoi(0x77);
        assert_eq!(bench.vectors(), [0x77]);
        bench.write(0x10 + 28, 0x1_8077);
        bench.eoi(0x77);
        assert_eq!((bench.vectors(), bench.read(0x10 + 28)), (vec![], 0x1_8077));
        bench.write(0x10 + 28, 0x8077);
        assert_eq!(bench.vectors(), [0x77]);
        bench.pin(14, false);
        bench.eoi(0x77);
        assert_eq!(bench.vectors(), []);
    }

    #[test]
    fn turning_an_entry_to_edge_clears_its_remote_irr() {
        let mut bench = Bench::default();
        bench.write(0x10, 0x8077);
        bench.pin(0, true);
        bench.write(0x10, 0x0077);
        bench.write(0x10, 0x8077);
        assert_eq!(bench.vectors(), [0x77, 0x77]);
    }

    #[test]
    fn messages_carry_destination_and_mode() {
        let mut bench = Bench::default();
        bench.write(0x11, 0x0300_0000);
        bench.write(0x10, 0x0000_0c41);
        bench.pin(0, true);
        let expected = Message {
            destination: 3,
            is_logical: true,
            mode: DeliveryMode::Nmi,
            vector: 0x41,
            is_level: false,
        };
        assert_eq!(bench.sent, [expected]);
        bench.write(0x10, 0x0000_0700);
        bench.pin(0, false);
        bench.pin(0, true);
        assert_eq!(bench.sent.len(), 1, "ExtINT is for the acknowledge cycle");
        assert!(bench.ioapic.ext_int_message(0).is_some());
        assert!(bench.ioapic.ext_int_message(1).is_none());
    }

    #[test]
    fn registers_that_are_not_there_read_zero_and_take_nothing() {
        let mut bench = Bench::default();
        for register in [3, 0xf, 0x40, 0xff] {
            bench.write(register, u32::MAX);
            assert_eq!(bench.read(register), 0, "{register:#x}");
        }
        bench.pin(24, true);
        bench.pin(usize::MAX, true);
        assert_eq!(bench.ioapic.mmio_read(0x20, 4), 0);
    }

    #[test]
    fn a_saved_ioapic_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut bench = Bench::default();
        bench.write(0x10 + 28, 0x8077);
        bench.pin(14, true);
        let state = bench.ioapic.state();
        assert_eq!(IoApic::restore(state.clone()).unwrap().state(), state);
        assert!(IoApic::restore(IoApicState { asserted: 1 << 24, ..state.clone() }).is_err());
        assert!(IoApic::restore(IoApicState { id: 16, ..state }).is_err());
    }
}
