//! Small system ports: reset control (0xcf9), system control A (0x92), POST code (0x80) and the
//! coprocessor's ports (0xf0, 0xf1).

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::PowerRequest;

/// Saved state of the system ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetState {
    /// Reset control register: bits 1 to 3.
    pub reset_control: u8,
    /// System control port A, without the reset bit. Bit 1 is the A20 gate, which has no effect.
    pub system_control: u8,
    /// The last POST code.
    pub post_code: u8,
}

impl Saved for ResetState {
    const KIND: &'static str = "system-ports";
    const VERSION: u16 = 1;
}

/// The system ports.
#[derive(Debug)]
pub struct ResetPorts {
    state: ResetState,
}

impl Default for ResetPorts {
    fn default() -> ResetPorts {
        ResetPorts::new()
    }
}

impl ResetPorts {
    /// The state at power-on, with A20 on.
    #[must_use]
    pub fn new() -> ResetPorts {
        ResetPorts { state: ResetState { reset_control: 0, system_control: 2, post_code: 0 } }
    }

    /// Reads one of the ports. `None`: the port is not one of ours.
    #[must_use]
    pub fn port_read(&self, port: u16) -> Option<u8> {
        match port {
            PORT_RESET => Some(self.state.reset_control),
            0x92 => Some(self.state.system_control),
            0x80 => Some(self.state.post_code),
            _ => None,
        }
    }

    /// Writes one of the ports. `None`: the port is not one of ours.
    pub fn port_write(&mut self, port: u16, value: u8) -> Option<Option<PowerRequest>> {
        let resets = match port {
            PORT_RESET => {
                let risen = value & RESET_CPU & !self.state.reset_control != 0;
                self.state.reset_control = value & 0x0e;
                risen
            }
            0x92 => {
                self.state.system_control = value & !1;
                value & 1 != 0
            }
            0x80 => {
                self.state.post_code = value;
                false
            }
            // Clearing the coprocessor's busy latch: the CPU reports errors by exception.
            0xf0 | 0xf1 => false,
            _ => return None,
        };
        Some(resets.then_some(PowerRequest::Reset))
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> ResetState {
        self.state.clone()
    }

    /// System ports in a saved state.
    ///
    /// # Errors
    /// If they cannot be in that state.
    pub fn restore(state: ResetState) -> Result<ResetPorts, RestoreError> {
        if state.reset_control & !0x0e != 0 || state.system_control & 1 != 0 {
            return Err(crate::impossible(ResetState::KIND, "a reserved bit is set"));
        }
        Ok(ResetPorts { state })
    }
}

/// True for an access that belongs to PCI's address register at 0xcf8, which is not there. The reset
/// control register lies inside it and takes bytes only: a search for PCI must not reset the machine.
#[must_use]
pub fn is_pci_address(port: u16, len: u8) -> bool {
    len > 1 && port <= 0xcfb && u32::from(port) + u32::from(len) > 0xcf8
}

/// The reset control register; the FADT's reset register is here.
pub const PORT_RESET: u16 = 0xcf9;
/// What the FADT says to write there: a full reset.
pub const RESET_VALUE: u8 = 0x06;
const RESET_CPU: u8 = 1 << 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_control_resets_when_its_bit_rises() {
        let mut ports = ResetPorts::new();
        assert_eq!(ports.port_write(PORT_RESET, 0x02), Some(None));
        let reset = Some(Some(PowerRequest::Reset));
        assert_eq!(ports.port_write(PORT_RESET, RESET_VALUE), reset);
        assert_eq!(ports.port_read(PORT_RESET), Some(RESET_VALUE));
        assert_eq!(ports.port_write(PORT_RESET, RESET_VALUE), Some(None), "it did not rise");
    }

    #[test]
    fn words_around_the_reset_control_register_are_pcis() {
        let accesses =
            [(0xcf8, 4), (0xcf8, 2), (0xcf9, 2), (0xcf5, 4), (0xcf9, 1), (0xcf6, 2), (0xcfc, 4)];
        let expected = [true, true, true, true, false, false, false];
        assert_eq!(accesses.map(|(port, len)| is_pci_address(port, len)), expected);
    }

    #[test]
    fn system_control_resets_and_keeps_the_a20_gate() {
        let mut ports = ResetPorts::new();
        assert_eq!(ports.port_read(0x92), Some(2));
        assert_eq!(ports.port_write(0x92, 0), Some(None));
        assert_eq!(ports.port_write(0x92, 3), Some(Some(PowerRequest::Reset)));
        assert_eq!(ports.port_read(0x92), Some(2));
    }

    #[test]
    fn saved_ports_go_on_where_they_were_and_impossible_states_are_refused() {
        let mut ports = ResetPorts::new();
        ports.port_write(0x80, 0x42);
        let state = ports.state();
        assert_eq!(ResetPorts::restore(state.clone()).unwrap().port_read(0x80), Some(0x42));
        assert!(ResetPorts::restore(ResetState { reset_control: 1, ..state }).is_err());
    }
}
