//! The devices for test kernels, all opt-in: QEMU's `isa-debug-exit` at port 0xf4 and the parts of its
//! `pc-testdev` that kvm-unit-tests use (a data register, interrupt lines and a little device memory).

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

/// Where the test device's memory lies.
pub const TEST_MEMORY_BASE: u64 = 0xff00_0000;
/// How many bytes it has.
pub const TEST_MEMORY_LEN: u64 = 0x1_0000;
/// First of the 24 ports that set an interrupt line each.
pub const PORT_TEST_IRQ: u16 = 0x2000;

/// Saved state of the test devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugExitState {
    /// Data register at port 0xe0.
    pub data: u32,
    /// Device memory, up to the last byte that is not zero.
    pub memory: Vec<u8>,
}

impl Saved for DebugExitState {
    const KIND: &'static str = "test-devices";
    const VERSION: u16 = 1;
}

/// What a write to the test devices does outside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestEffect {
    /// Nothing.
    None,
    /// The machine is to end with this exit status of the process.
    Exit(u8),
    /// A global system interrupt line takes this level.
    SetLine {
        /// Which: 0 to 23.
        gsi: u8,
        /// Its level.
        level: bool,
    },
}

/// The devices for test kernels.
#[derive(Debug, Default)]
pub struct DebugExit {
    data: u32,
    memory: Vec<u8>,
}

impl DebugExit {
    /// The state at power-on.
    #[must_use]
    pub fn new() -> DebugExit {
        DebugExit::default()
    }

    /// Reads `len` (1, 2 or 4) bytes from a port. `None`: the port is not one of ours.
    #[must_use]
    pub fn port_read(&self, port: u16, len: u8) -> Option<u32> {
        match port {
            0xe0..=0xe3 => Some(low_bytes(self.data >> ((port - 0xe0) * 8), len)),
            0xe4..=0xeb | 0xf4..=0xf7 => Some(0),
            PORT_TEST_IRQ..=0x2017 => Some(0),
            _ => None,
        }
    }

    /// Writes `len` (1, 2 or 4) bytes to a port. `None`: the port is not one of ours.
    pub fn port_write(&mut self, port: u16, len: u8, value: u32) -> Option<TestEffect> {
        let value = low_bytes(value, len);
        match port {
            0xe0..=0xe3 => {
                let shift = (port - 0xe0) * 8;
                let mask = low_bytes(u32::MAX, len) << shift;
                self.data = self.data & !mask | value << shift & mask;
            }
            // The flush port: there is nothing to flush.
            0xe4..=0xeb => {}
            0xf4..=0xf7 => return Some(TestEffect::Exit((value << 1 | 1) as u8)),
            PORT_TEST_IRQ..=0x2017 => {
                let gsi = (port - PORT_TEST_IRQ) as u8;
                return Some(TestEffect::SetLine { gsi, level: value != 0 });
            }
            _ => return None,
        }
        Some(TestEffect::None)
    }

    /// Reads `len` (1 to 8) bytes of the device memory. `None`: `gpa` is elsewhere.
    #[must_use]
    pub fn mmio_read(&self, gpa: u64, len: u8) -> Option<u64> {
        let at = memory_offset(gpa)?;
        let byte = |index: usize| u64::from(self.memory.get(index).copied().unwrap_or(0));
        Some((0..usize::from(len)).fold(0, |value, index| value | byte(at + index) << (index * 8)))
    }

    /// Writes `len` (1 to 8) bytes of the device memory. `None`: `gpa` is elsewhere.
    pub fn mmio_write(&mut self, gpa: u64, len: u8, value: u64) -> Option<()> {
        let at = memory_offset(gpa)?;
        let end = (at + usize::from(len)).min(TEST_MEMORY_LEN as usize);
        if self.memory.len() < end {
            self.memory.resize(end, 0);
        }
        let bytes = value.to_le_bytes();
        self.memory[at..end].copy_from_slice(&bytes[..end - at]);
        Some(())
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> DebugExitState {
        let used = self.memory.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        DebugExitState { data: self.data, memory: self.memory[..used].to_vec() }
    }

    /// Test devices in a saved state.
    ///
    /// # Errors
    /// If they cannot be in that state.
    pub fn restore(state: DebugExitState) -> Result<DebugExit, RestoreError> {
        if state.memory.len() as u64 > TEST_MEMORY_LEN {
            return Err(crate::impossible(DebugExitState::KIND, "too much device memory"));
        }
        Ok(DebugExit { data: state.data, memory: state.memory })
    }
}

fn memory_offset(gpa: u64) -> Option<usize> {
    let offset = gpa.checked_sub(TEST_MEMORY_BASE).filter(|offset| *offset < TEST_MEMORY_LEN)?;
    Some(offset as usize)
}

fn low_bytes(value: u32, len: u8) -> u32 {
    if len >= 4 { value } else { value & ((1 << (u32::from(len) * 8)) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_qemus() {
        let mut device = DebugExit::new();
        assert_eq!(device.port_write(0xf4, 4, 0), Some(TestEffect::Exit(1)));
        assert_eq!(device.port_write(0xf4, 1, 0x10), Some(TestEffect::Exit(0x21)));
        assert_eq!(device.port_write(0xf4, 4, 0x1ff), Some(TestEffect::Exit(0xff)));
        assert_eq!(device.port_write(0xf3, 1, 0), None);
    }

    #[test]
    fn interrupt_line_ports_set_lines() {
        let mut device = DebugExit::new();
        let expected = TestEffect::SetLine { gsi: 14, level: true };
        assert_eq!(device.port_write(0x200e, 1, 1), Some(expected));
        assert_eq!(device.port_write(0x2018, 1, 1), None);
    }

    #[test]
    fn the_data_register_takes_every_size() {
        let mut device = DebugExit::new();
        device.port_write(0xe0, 4, 0x1234_5678);
        device.port_write(0xe1, 1, 0xab);
        assert_eq!(device.port_read(0xe0, 4), Some(0x1234_ab78));
        assert_eq!(device.port_read(0xe2, 2), Some(0x1234));
        device.port_write(0xe3, 4, u32::MAX);
        assert_eq!(device.port_read(0xe0, 4), Some(0xff34_ab78));
    }

    #[test]
    fn device_memory_holds_what_was_written_up_to_its_end() {
        let mut device = DebugExit::new();
        let last = TEST_MEMORY_BASE + TEST_MEMORY_LEN - 2;
        device.mmio_write(last, 8, u64::MAX).unwrap();
        assert_eq!(device.mmio_read(last, 8), Some(0xffff));
        assert_eq!(device.mmio_read(TEST_MEMORY_BASE + 5, 8), Some(0));
        assert_eq!(device.mmio_write(TEST_MEMORY_BASE + TEST_MEMORY_LEN, 1, 0), None);
        let state = device.state();
        assert_eq!(DebugExit::restore(state.clone()).unwrap().state(), state);
        let memory = vec![0; TEST_MEMORY_LEN as usize + 1];
        assert!(DebugExit::restore(DebugExitState { memory, ..state }).is_err());
    }
}
