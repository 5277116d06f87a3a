//! 16550A UART (National Semiconductor PC16550D data sheet).
//!
//! A byte written to THR is sent at once, so THRE and TEMT are always set and the line speed is
//! without effect. Received bytes wait in a queue, as on the wire, until the FIFO has room: nothing
//! is overrun but in loopback. A character timeout comes at once when fewer bytes than the trigger
//! level are there. The interrupt pin is not gated by OUT2. Parity, framing and break errors do not
//! occur. The modem lines DCD, DSR and CTS are asserted for good.

use std::collections::VecDeque;

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::impossible;

/// Bytes that the receive FIFO holds.
pub const RX_FIFO_LEN_MAX: usize = 16;
/// Bytes that may wait on the wire.
pub const RX_WAITING_LEN_MAX: usize = 4096;

/// Saved state of the 16550A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    /// Interrupt enable register, bits 0 to 3.
    pub ier: u8,
    /// FIFO control register: bit 0 and the trigger level in bits 6 and 7.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register, bits 0 to 4.
    pub mcr: u8,
    /// Modem status: the four delta bits.
    pub msr_delta: u8,
    /// Overrun error: bit 1 of the line status.
    pub overrun: bool,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// A transmitter-empty interrupt waits to be identified.
    pub thre_pending: bool,
    /// Received bytes that the guest can read, oldest first. At most [`RX_FIFO_LEN_MAX`], or 1
    /// while the FIFO is off.
    pub rx_fifo: VecDeque<u8>,
    /// Bytes still on the wire, oldest first. At most [`RX_WAITING_LEN_MAX`].
    pub rx_waiting: VecDeque<u8>,
    /// Sent bytes that the board has not taken yet, oldest first.
    pub tx: Vec<u8>,
}

impl Saved for UartState {
    const KIND: &'static str = "uart-16550";
    const VERSION: u16 = 1;
}

/// A 16550A at eight ports.
#[derive(Debug, Default)]
pub struct Uart {
    state: UartState,
}

impl Uart {
    /// The state after a master reset, with the divisor that firmware leaves (115200 baud).
    #[must_use]
    pub fn new() -> Uart {
        Uart { state: UartState { divisor: 1, ..UartState::default() } }
    }

    /// Reads the register at `offset` (0 to 7) from the base port.
    pub fn read(&mut self, offset: u16) -> u8 {
        let s = &mut self.state;
        match offset & 7 {
            0 if s.lcr & LCR_DLAB != 0 => s.divisor as u8,
            0 => self.read_rbr(),
            1 if s.lcr & LCR_DLAB != 0 => (s.divisor >> 8) as u8,
            1 => s.ier,
            2 => self.read_iir(),
            3 => s.lcr,
            4 => s.mcr,
            5 => {
                let lsr = self.lsr();
                self.state.overrun = false;
                lsr
            }
            6 => {
                let msr = self.modem_lines() | self.state.msr_delta;
                self.state.msr_delta = 0;
                msr
            }
            _ => s.scr,
        }
    }

    /// Writes the register at `offset` (0 to 7) from the base port.
    pub fn write(&mut self, offset: u16, value: u8) {
        let s = &mut self.state;
        match offset & 7 {
            0 if s.lcr & LCR_DLAB != 0 => s.divisor = s.divisor & 0xff00 | u16::from(value),
            0 => self.write_thr(value),
            1 if s.lcr & LCR_DLAB != 0 => s.divisor = s.divisor & 0xff | u16::from(value) << 8,
            1 => self.write_ier(value),
            2 => self.write_fcr(value),
            3 => s.lcr = value,
            4 => self.write_mcr(value),
            // LSR is read-only outside factory test; MSR likewise.
            5 | 6 => {}
            _ => s.scr = value,
        }
    }

    /// How many more bytes [`Uart::handle_rx`] takes.
    #[must_use]
    pub fn room(&self) -> usize {
        RX_WAITING_LEN_MAX - self.state.rx_waiting.len()
    }

    /// Puts bytes on the wire. What is beyond [`Uart::room`] is lost, newest first, and counted in
    /// the answer.
    pub fn handle_rx(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.state.rx_waiting.extend(&bytes[..taken]);
        self.fill_fifo();
        bytes.len() - taken
    }

    /// True if bytes were sent since [`Uart::take_tx`].
    #[must_use]
    pub fn has_tx(&self) -> bool {
        !self.state.tx.is_empty()
    }

    /// The bytes sent since the last call, oldest first.
    pub fn take_tx(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state.tx)
    }

    /// The interrupt pin.
    #[must_use]
    pub fn irq_level(&self) -> bool {
        self.interrupt_id() != IIR_NONE
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> UartState {
        self.state.clone()
    }

    /// A UART in a saved state.
    ///
    /// # Errors
    /// If no UART can be in that state.
    pub fn restore(state: UartState) -> Result<Uart, RestoreError> {
        let uart = Uart { state };
        let s = &uart.state;
        if s.ier & !0xf != 0 || s.mcr & !0x1f != 0 || s.msr_delta & !0xf != 0 || s.fcr & !0xc1 != 0
        {
            return Err(impossible(UartState::KIND, "a reserved register bit is set"));
        }
        if s.rx_fifo.len() > uart.fifo_len_max() || s.rx_waiting.len() > RX_WAITING_LEN_MAX {
            return Err(impossible(UartState::KIND, "a receive queue is too long"));
        }
        Ok(uart)
    }

    fn fifo_len_max(&self) -> usize {
        if self.state.fcr & FCR_ENABLE != 0 { RX_FIFO_LEN_MAX } else { 1 }
    }

    fn trigger_len(&self) -> usize {
        if self.state.fcr & FCR_ENABLE == 0 {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.state.fcr >> 6)]
    }

    fn is_loopback(&self) -> bool {
        self.state.mcr & MCR_LOOP != 0
    }

    /// Moves bytes from the wire into the FIFO. In loopback the wire is cut off.
    fn fill_fifo(&mut self) {
        while !self.is_loopback() && self.state.rx_fifo.len() < self.fifo_len_max() {
            let Some(byte) = self.state.rx_waiting.pop_front() else { return };
            self.state.rx_fifo.push_back(byte);
        }
    }

    fn read_rbr(&mut self) -> u8 {
        let byte = self.state.rx_fifo.pop_front().unwrap_or(0);
        self.fill_fifo();
        byte
    }

    fn write_thr(&mut self, byte: u8) {
        if !self.is_loopback() {
            self.state.tx.push(byte);
        } else if self.state.rx_fifo.len() < self.fifo_len_max() {
            self.state.rx_fifo.push_back(byte);
        } else {
            self.state.overrun = true;
            if self.state.fcr & FCR_ENABLE == 0 {
                // Without a FIFO the new byte replaces the one that nobody read.
                self.state.rx_fifo[0] = byte;
            }
        }
        // The holding register was filled and is empty again.
        self.state.thre_pending = true;
    }

    fn write_ier(&mut self, value: u8) {
        let risen = value & !self.state.ier;
        self.state.ier = value & 0xf;
        // Enabling the interrupt while the register is empty raises it.
        if risen & IER_THRI != 0 {
            self.state.thre_pending = true;
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.state.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RX != 0 {
            self.state.rx_fifo.clear();
        }
        // The other bits can be written only together with bit 0.
        self.state.fcr = if value & FCR_ENABLE != 0 { value & 0xc1 } else { 0 };
        self.fill_fifo();
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.state.mcr = value & 0x1f;
        let after = self.modem_lines();
        let changed = before ^ after;
        // CTS, DSR and DCD report any change, RI only its trailing edge.
        let mut delta = (changed >> 4) & 0b1011;
        if before & !after & MSR_RI != 0 {
            delta |= MSR_RI >> 4;
        }
        self.state.msr_delta |= delta;
        self.fill_fifo();
    }

    fn modem_lines(&self) -> u8 {
        if !self.is_loopback() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let mcr = self.state.mcr;
        let line = |from: u8, to: u8| if mcr & from != 0 { to } else { 0 };
        line(MCR_RTS, MSR_CTS)
            | line(MCR_DTR, MSR_DSR)
            | line(MCR_OUT1, MSR_RI)
            | line(MCR_OUT2, MSR_DCD)
    }

    fn lsr(&self) -> u8 {
        let data_ready = u8::from(!self.state.rx_fifo.is_empty());
        LSR_THRE | LSR_TEMT | data_ready | u8::from(self.state.overrun) << 1
    }

    /// The highest pending and enabled interrupt, as IIR gives it.
    fn interrupt_id(&self) -> u8 {
        let s = &self.state;
        if s.ier & IER_RLSI != 0 && s.overrun {
            return 0x06;
        }
        if s.ier & IER_RDI != 0 && !s.rx_fifo.is_empty() {
            return if s.rx_fifo.len() >= self.trigger_len() { 0x04 } else { 0x0c };
        }
        if s.ier & IER_THRI != 0 && s.thre_pending {
            return IIR_THRE;
        }
        if s.ier & IER_MSI != 0 && s.msr_delta != 0 {
            return 0x00;
        }
        IIR_NONE
    }

    fn read_iir(&mut self) -> u8 {
        let id = self.interrupt_id();
        if id == IIR_THRE {
            self.state.thre_pending = false;
        }
        id | if self.state.fcr & FCR_ENABLE != 0 { 0xc0 } else { 0 }
    }
}

const IER_RDI: u8 = 1 << 0;
const IER_THRI: u8 = 1 << 1;
const IER_RLSI: u8 = 1 << 2;
const IER_MSI: u8 = 1 << 3;
const IIR_NONE: u8 = 0x01;
const IIR_THRE: u8 = 0x02;
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RX: u8 = 1 << 1;
const LCR_DLAB: u8 = 1 << 7;
const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u16 = 0;
    const IER: u16 = 1;
    const IIR: u16 = 2;
    const FCR: u16 = 2;
    const LCR: u16 = 3;
    const MCR: u16 = 4;
    const LSR: u16 = 5;
    const MSR: u16 = 6;

    #[test]
    fn a_polling_kernel_finds_the_transmitter_empty_and_its_bytes_come_out() {
        let mut uart = Uart::new();
        for byte in *b"ok" {
            assert_eq!(uart.read(LSR), 0x60);
            uart.write(DATA, byte);
        }
        assert!(!uart.irq_level());
        assert_eq!(uart.take_tx(), b"ok");
        assert!(!uart.has_tx());
    }

    #[test]
    fn transmitter_empty_interrupt_rises_on_enable_and_write_and_falls_on_identification() {
        let mut uart = Uart::new();
        uart.write(IER, 2);
        assert!(uart.irq_level());
        assert_eq!(uart.read(IIR), 0x02);
        assert!(!uart.irq_level());
        assert_eq!(uart.read(IIR), 0x01);
        uart.write(DATA, b'x');
        assert!(uart.irq_level());
        // Linux looks whether turning the enable off and on raises it again.
        uart.read(IIR);
        uart.write(IER, 0);
        uart.write(IER, 2);
        assert_eq!(uart.read(IIR), 0x02);
    }

    #[test]
    fn received_bytes_wait_on_the_wire_until_the_fifo_has_room() {
        let mut uart = Uart::new();
        uart.write(FCR, 0x81);
        uart.write(IER, 1);
        let bytes: Vec<u8> = (0..40).collect();
        assert_eq!(uart.handle_rx(&bytes), 0);
        assert_eq!(uart.room(), RX_WAITING_LEN_MAX - 24);
        assert_eq!(uart.read(IIR), 0xc4);
        let read: Vec<u8> = (0..40).map(|_| uart.read(DATA)).collect();
        assert_eq!(read, bytes);
        assert_eq!((uart.read(LSR), uart.irq_level()), (0x60, false));
    }

    #[test]
    fn fewer_bytes_than_the_trigger_level_are_a_character_timeout() {
        let mut uart = Uart::new();
        uart.write(FCR, 0xc1);
        uart.write(IER, 1);
        uart.handle_rx(b"a");
        assert_eq!(uart.read(IIR), 0xcc);
    }

    #[test]
    fn too_much_input_is_dropped_and_counted() {
        let mut uart = Uart::new();
        assert_eq!(uart.handle_rx(&[0; RX_WAITING_LEN_MAX]), 0);
        // One byte went into the receive buffer.
        assert_eq!(uart.handle_rx(&[1, 2, 3]), 2);
        assert_eq!(uart.room(), 0);
    }

    #[test]
    fn loopback_returns_data_and_modem_lines_and_sends_nothing() {
        let mut uart = Uart::new();
        uart.write(MCR, 0x10);
        uart.read(MSR);
        uart.write(MCR, 0x1a);
        assert_eq!(uart.read(MSR), 0x99);
        assert_eq!(uart.read(MSR), 0x90);
        uart.write(DATA, 0x5a);
        uart.write(DATA, 0x5b);
        assert_eq!(uart.read(LSR), 0x63);
        assert_eq!(uart.read(LSR), 0x61);
        assert_eq!(uart.read(DATA), 0x5b);
        assert!(!uart.has_tx());
    }

    #[test]
    fn the_ring_indicator_reports_its_trailing_edge() {
        let mut uart = Uart::new();
        uart.write(MCR, 0x14);
        uart.read(MSR);
        uart.write(IER, 8);
        uart.write(MCR, 0x10);
        assert_eq!((uart.read(IIR), uart.read(MSR), uart.read(IIR)), (0, 0x04, 1));
    }

    #[test]
    fn turning_the_fifo_on_or_off_empties_it() {
        let mut uart = Uart::new();
        uart.write(FCR, 1);
        uart.handle_rx(b"ab");
        uart.write(FCR, 0);
        assert_eq!((uart.read(LSR), uart.read(IIR)), (0x60, 1));
    }

    #[test]
    fn divisor_latch_hides_data_and_interrupt_enable() {
        let mut uart = Uart::new();
        uart.write(LCR, 0x83);
        uart.write(0, 0x34);
        uart.write(1, 0x12);
        assert_eq!((uart.read(0), uart.read(1)), (0x34, 0x12));
        uart.write(LCR, 0x03);
        assert_eq!((uart.read(1), uart.has_tx()), (0, false));
    }

    #[test]
    fn a_saved_uart_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut uart = Uart::new();
        uart.write(FCR, 0xc1);
        uart.write(IER, 0xf);
        uart.handle_rx(b"hello, this is more than a fifo");
        uart.write(DATA, b'x');
        let state = uart.state();
        assert_eq!(Uart::restore(state.clone()).unwrap().state(), state);
        assert!(Uart::restore(UartState { fcr: 0, ..state.clone() }).is_err());
        assert!(Uart::restore(UartState { ier: 0x10, ..state }).is_err());
    }
}
