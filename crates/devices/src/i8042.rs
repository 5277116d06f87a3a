//! The keyboard controller of a PC (Intel 8042) with nothing plugged into it.
//!
//! It answers the controller's commands; what is sent to a keyboard or a mouse comes back as a
//! timeout. Interrupts (IRQ 1 and 12) are never raised, so a driver has to poll; the FADT says that
//! there is no 8042, and only software that does not read ACPI looks here. The A20 gate is kept but
//! without effect: address line 20 is always on.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::PowerRequest;

/// Saved state of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// Command byte (byte 0 of the controller's RAM).
    pub command_byte: u8,
    /// Output port; bit 0 is the reset line (active low), bit 1 the A20 gate.
    pub output_port: u8,
    /// Byte in the output buffer.
    pub output: Option<u8>,
    /// Status bits that came with it: 5 for the auxiliary device, 6 for a timeout.
    pub output_status: u8,
    /// Command whose parameter comes with the next write to port 0x60.
    pub parameter_of: Option<u8>,
    /// The last write went to port 0x64.
    pub last_was_command: bool,
}

impl Saved for I8042State {
    const KIND: &'static str = "i8042";
    const VERSION: u16 = 1;
}

/// The controller at ports 0x60 and 0x64.
#[derive(Debug)]
pub struct I8042 {
    state: I8042State,
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042::new()
    }
}

impl I8042 {
    /// The state that firmware leaves.
    #[must_use]
    pub fn new() -> I8042 {
        I8042 {
            state: I8042State {
                command_byte: COMMAND_SYSTEM | COMMAND_NO_KEYBOARD | COMMAND_NO_AUX,
                output_port: OUTPUT_RESET | OUTPUT_A20,
                output: None,
                output_status: 0,
                parameter_of: None,
                last_was_command: false,
            },
        }
    }

    /// Reads port 0x60 or 0x64. `None`: the port is not one of ours.
    pub fn port_read(&mut self, port: u16) -> Option<u8> {
        match port {
            0x60 => {
                self.state.output_status = 0;
                Some(self.state.output.take().unwrap_or(0))
            }
            0x64 => Some(self.status()),
            _ => None,
        }
    }

    /// Writes one of these ports. `None`: the port is not one of ours.
    pub fn port_write(&mut self, port: u16, value: u8) -> Option<Option<PowerRequest>> {
        self.state.last_was_command = port == 0x64;
        match port {
            0x60 => Some(self.write_data(value)),
            0x64 => Some(self.write_command(value)),
            _ => None,
        }
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> I8042State {
        self.state.clone()
    }

    /// A controller in a saved state.
    ///
    /// # Errors
    /// If no controller can be in that state.
    pub fn restore(state: I8042State) -> Result<I8042, RestoreError> {
        let is_bad = state.output_status & !(STATUS_AUX | STATUS_TIMEOUT) != 0
            || state.output.is_none() && state.output_status != 0;
        if is_bad {
            return Err(crate::impossible(I8042State::KIND, "status bits without a byte"));
        }
        Ok(I8042 { state })
    }

    fn status(&self) -> u8 {
        let s = &self.state;
        // The keyboard lock is open; the input buffer is always empty.
        let mut status = STATUS_UNLOCKED | s.output_status;
        if s.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if s.command_byte & COMMAND_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if s.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn answer(&mut self, byte: u8, status: u8) {
        self.state.output = Some(byte);
        self.state.output_status = status;
    }

    fn write_command(&mut self, command: u8) -> Option<PowerRequest> {
        self.state.parameter_of = None;
        match command {
            0x20 => self.answer(self.state.command_byte, 0),
            0x60 | 0xd1..=0xd4 => self.state.parameter_of = Some(command),
            0xa7 => self.state.command_byte |= COMMAND_NO_AUX,
            0xa8 => self.state.command_byte &= !COMMAND_NO_AUX,
            // The interface tests find clock and data lines in order.
            0xa9 | 0xab => self.answer(0x00, 0),
            0xaa => self.answer(0x55, 0),
            0xad => self.state.command_byte |= COMMAND_NO_KEYBOARD,
            0xae => self.state.command_byte &= !COMMAND_NO_KEYBOARD,
            0xc0 => self.answer(0x80, 0),
            0xd0 => self.answer(self.state.output_port, 0),
            // Other controllers have these for the A20 gate.
            0xdd => self.state.output_port &= !OUTPUT_A20,
            0xdf => self.state.output_port |= OUTPUT_A20,
            // Pulses the output lines whose bits are 0.
            0xf0..=0xff if command & OUTPUT_RESET == 0 => return Some(PowerRequest::Reset),
            _ => {}
        }
        None
    }

    fn write_data(&mut self, value: u8) -> Option<PowerRequest> {
        match self.state.parameter_of.take() {
            Some(0x60) => self.state.command_byte = value,
            Some(0xd1) => {
                self.state.output_port = value;
                if value & OUTPUT_RESET == 0 {
                    return Some(PowerRequest::Reset);
                }
            }
            Some(0xd2) => self.answer(value, 0),
            Some(0xd3) => self.answer(value, STATUS_AUX),
            // Nobody answers on either line.
            Some(0xd4) => self.answer(0xfe, STATUS_AUX | STATUS_TIMEOUT),
            _ => self.answer(0xfe, STATUS_TIMEOUT),
        }
        None
    }
}

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;
const COMMAND_SYSTEM: u8 = 1 << 2;
const COMMAND_NO_KEYBOARD: u8 = 1 << 4;
const COMMAND_NO_AUX: u8 = 1 << 5;
const OUTPUT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_pulse_resets_and_other_pulses_do_not() {
        let mut i8042 = I8042::new();
        assert_eq!(i8042.port_write(0x64, 0xfe), Some(Some(PowerRequest::Reset)));
        assert_eq!(i8042.port_write(0x64, 0xff), Some(None));
        i8042.port_write(0x64, 0xd1);
        assert_eq!(i8042.port_write(0x60, 0x02), Some(Some(PowerRequest::Reset)));
        assert_eq!(i8042.port_read(0x64).unwrap() & 2, 0, "ready for the next command");
    }

    #[test]
    fn the_self_test_passes_and_the_command_byte_is_kept() {
        let mut i8042 = I8042::new();
        i8042.port_write(0x64, 0xaa);
        assert_eq!(i8042.port_read(0x64).unwrap() & 1, 1);
        assert_eq!(i8042.port_read(0x60), Some(0x55));
        assert_eq!(i8042.port_read(0x64).unwrap() & 1, 0);
        i8042.port_write(0x64, 0x60);
        i8042.port_write(0x60, 0x47);
        i8042.port_write(0x64, 0x20);
        assert_eq!(i8042.port_read(0x60), Some(0x47));
    }

    #[test]
    fn a_keyboard_or_mouse_command_times_out() {
        let mut i8042 = I8042::new();
        i8042.port_write(0x60, 0xed);
        assert_eq!(i8042.port_read(0x64).unwrap() & 0x61, 0x41);
        assert_eq!(i8042.port_read(0x60), Some(0xfe));
        i8042.port_write(0x64, 0xd4);
        i8042.port_write(0x60, 0xf4);
        assert_eq!(i8042.port_read(0x64).unwrap() & 0x61, 0x61);
    }

    #[test]
    fn a_saved_controller_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut i8042 = I8042::new();
        i8042.port_write(0x64, 0xd4);
        i8042.port_write(0x60, 0);
        i8042.port_write(0x64, 0x60);
        let state = i8042.state();
        assert_eq!(I8042::restore(state.clone()).unwrap().state(), state);
        assert!(I8042::restore(I8042State { output_status: 1, ..state }).is_err());
    }
}
