//! ACPI fixed hardware (ACPI 6.4, chapter 4): PM1a event and control blocks and the PM timer.
//!
//! The board is in ACPI mode from power-on, so SCI_EN is always set. The power button is the fixed
//! one. There are no general-purpose events and no sleep states but S5. The SCI is IRQ 9.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::{PowerRequest, impossible};

/// Frequency of the PM timer, in hertz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// First port: PM1a status (2 bytes) and enable (2 bytes).
pub const PORT_PM1A_EVENT: u16 = 0x600;
/// PM1a control, 2 bytes.
pub const PORT_PM1A_CONTROL: u16 = 0x604;
/// PM timer, 4 bytes.
pub const PORT_PM_TIMER: u16 = 0x608;
/// SLP_TYP of S5, as `_S5` gives it.
pub const SLEEP_TYPE_S5: u8 = 0;

/// Saved state of the fixed hardware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// PM1a status, without the timer's bit.
    pub status: u16,
    /// PM1a enable.
    pub enable: u16,
    /// PM1a control, without SCI_EN and SLP_EN.
    pub control: u16,
    /// Value of the timer's tick counter up to which `status` is true.
    pub seen_ticks: u64,
}

impl Saved for PmState {
    const KIND: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

/// The fixed hardware at ports 0x600 to 0x60b.
#[derive(Debug, Default)]
pub struct Pm {
    state: PmState,
}

impl Pm {
    /// The state at power-on.
    #[must_use]
    pub fn new() -> Pm {
        Pm::default()
    }

    /// Reads `len` (1, 2 or 4) bytes. `None`: the port is not one of ours.
    pub fn port_read(&mut self, now_ns: u64, port: u16, len: u8) -> Option<u32> {
        let offset = port.checked_sub(PORT_PM1A_EVENT).filter(|offset| *offset < PORT_COUNT)?;
        self.handle_time(now_ns);
        let s = &self.state;
        let timer = to_ticks(now_ns) as u32;
        let bytes: [u8; PORT_COUNT as usize + 4] = {
            let mut bytes = [0; PORT_COUNT as usize + 4];
            bytes[0..2].copy_from_slice(&s.status.to_le_bytes());
            bytes[2..4].copy_from_slice(&s.enable.to_le_bytes());
            bytes[4..6].copy_from_slice(&(s.control | SCI_EN).to_le_bytes());
            bytes[8..12].copy_from_slice(&timer.to_le_bytes());
            bytes
        };
        let at = usize::from(offset);
        let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(if len >= 4 { word } else { word & ((1 << (u32::from(len) * 8)) - 1) })
    }

    /// Writes `len` (1, 2 or 4) bytes. `None`: the port is not one of ours.
    pub fn port_write(
        &mut self,
        now_ns: u64,
        port: u16,
        len: u8,
        value: u32,
    ) -> Option<Option<PowerRequest>> {
        let offset = port.checked_sub(PORT_PM1A_EVENT).filter(|offset| *offset < PORT_COUNT)?;
        self.handle_time(now_ns);
        let mut request = None;
        for (index, byte) in value.to_le_bytes().iter().take(usize::from(len)).enumerate() {
            request = request.or(self.write_byte(offset + index as u16, *byte));
        }
        Some(request)
    }

    /// Presses the power button.
    pub fn handle_power_button(&mut self) {
        self.state.status |= STATUS_POWER_BUTTON;
    }

    /// The level of the SCI.
    #[must_use]
    pub fn irq_level(&self) -> bool {
        self.state.status & self.state.enable & EVENTS != 0
    }

    /// When the SCI rises next by the timer, in guest ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if self.state.enable & STATUS_TIMER == 0 || self.irq_level() {
            return None;
        }
        // The status bit is set when the top bit of the 32 changes.
        let tick = (self.state.seen_ticks / TOGGLE_TICKS + 1) * TOGGLE_TICKS;
        let ns = (u128::from(tick) * NS_PER_S).div_ceil(u128::from(PM_TIMER_HZ));
        u64::try_from(ns).ok()
    }

    /// Lets the timer see the time.
    pub fn handle_time(&mut self, now_ns: u64) {
        let now = to_ticks(now_ns);
        if now / TOGGLE_TICKS > self.state.seen_ticks / TOGGLE_TICKS {
            self.state.status |= STATUS_TIMER;
        }
        self.state.seen_ticks = self.state.seen_ticks.max(now);
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> PmState {
        self.state.clone()
    }

    /// Fixed hardware in a saved state.
    ///
    /// # Errors
    /// If it cannot be in that state.
    pub fn restore(state: PmState) -> Result<Pm, RestoreError> {
        let reserved = state.status & !STATUS_ALL != 0
            || state.enable & !ENABLE_KEPT != 0
            || state.control & !CONTROL_KEPT != 0;
        if reserved || state.seen_ticks > TICKS_MAX {
            return Err(impossible(PmState::KIND, "a reserved bit is set"));
        }
        Ok(Pm { state })
    }

    fn write_byte(&mut self, offset: u16, byte: u8) -> Option<PowerRequest> {
        let s = &mut self.state;
        let word = if offset & 1 == 0 { u16::from(byte) } else { u16::from(byte) << 8 };
        let kept = if offset & 1 == 0 { 0xff00 } else { 0x00ff };
        match offset & !1 {
            // Status bits are cleared by writing ones.
            0 => s.status &= !word,
            2 => s.enable = (s.enable & kept | word) & ENABLE_KEPT,
            4 => {
                s.control = (s.control & kept | word) & CONTROL_KEPT;
                let sleep_type = (s.control >> 10 & 7) as u8;
                if word & SLP_EN != 0 && sleep_type == SLEEP_TYPE_S5 {
                    return Some(PowerRequest::Off);
                }
            }
            _ => {}
        }
        None
    }
}

fn to_ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PM_TIMER_HZ) / NS_PER_S) as u64
}

const PORT_COUNT: u16 = 12;
const NS_PER_S: u128 = 1_000_000_000;
const TOGGLE_TICKS: u64 = 1 << 31;
const TICKS_MAX: u64 = 1 << 60;
const STATUS_TIMER: u16 = 1 << 0;
const STATUS_GLOBAL: u16 = 1 << 5;
const STATUS_POWER_BUTTON: u16 = 1 << 8;
/// Events that can be enabled.
const EVENTS: u16 = STATUS_TIMER | STATUS_GLOBAL | STATUS_POWER_BUTTON;
const STATUS_ALL: u16 = EVENTS;
/// The clock's event can be enabled, as Linux does, and never comes: its alarm is IRQ 8.
const ENABLE_KEPT: u16 = EVENTS | 1 << 10;
const SCI_EN: u16 = 1 << 0;
const SLP_EN: u16 = 1 << 13;
/// BM_RLD and SLP_TYP.
const CONTROL_KEPT: u16 = 0x1c02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps_at_32_bits() {
        let mut pm = Pm::new();
        assert_eq!(pm.port_read(1_000_000_000, PORT_PM_TIMER, 4), Some(3_579_545));
        let wrap_ns = ((1u128 << 32) * NS_PER_S).div_ceil(u128::from(PM_TIMER_HZ)) as u64;
        assert_eq!(pm.port_read(wrap_ns - 1, PORT_PM_TIMER, 4), Some(u32::MAX));
        assert_eq!(pm.port_read(wrap_ns, PORT_PM_TIMER, 4), Some(0));
        assert_eq!(pm.port_read(wrap_ns, PORT_PM_TIMER + 1, 2), Some(0));
    }

    #[test]
    fn sleep_type_5_with_enable_powers_off_as_a_word_or_a_byte() {
        let mut pm = Pm::new();
        assert_eq!(pm.port_write(0, PORT_PM1A_CONTROL, 2, 0x0001), Some(None));
        assert_eq!(pm.port_write(0, PORT_PM1A_CONTROL, 2, 0x3400), Some(None), "S3 is not there");
        assert_eq!(pm.port_read(0, PORT_PM1A_CONTROL, 2), Some(0x1401));
        assert_eq!(pm.port_write(0, PORT_PM1A_CONTROL, 2, 0x2000), Some(Some(PowerRequest::Off)));
        assert_eq!(pm.port_write(0, PORT_PM1A_CONTROL + 1, 1, 0x20), Some(Some(PowerRequest::Off)));
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let mut pm = Pm::new();
        pm.handle_power_button();
        assert!(!pm.irq_level());
        pm.port_write(0, PORT_PM1A_EVENT + 2, 2, 0xffff).unwrap();
        assert!(pm.irq_level());
        assert_eq!(pm.port_read(0, PORT_PM1A_EVENT, 4), Some(0x0521_0100));
        pm.port_write(0, PORT_PM1A_EVENT, 2, 0x0021).unwrap();
        assert!(pm.irq_level(), "other bits were cleared");
        pm.port_write(0, PORT_PM1A_EVENT, 2, 0x0100).unwrap();
        assert!(!pm.irq_level());
    }

    #[test]
    fn the_timer_event_comes_when_the_top_bit_changes() {
        let mut pm = Pm::new();
        assert_eq!(pm.next_deadline_ns(), None);
        pm.port_write(0, PORT_PM1A_EVENT + 2, 2, 1).unwrap();
        let at = pm.next_deadline_ns().unwrap();
        pm.handle_time(at - 1);
        assert!(!pm.irq_level());
        pm.handle_time(at);
        assert!(pm.irq_level());
        pm.port_write(at, PORT_PM1A_EVENT, 2, 1).unwrap();
        assert!(pm.next_deadline_ns().unwrap() > at);
    }

    #[test]
    fn foreign_ports_are_left_alone() {
        let mut pm = Pm::new();
        assert_eq!(pm.port_read(0, 0x5ff, 1), None);
        assert_eq!(pm.port_read(0, 0x60c, 1), None);
        assert_eq!(pm.port_write(0, 0x60c, 4, 0), None);
        // The end of the block has nothing behind it.
        assert_eq!(pm.port_read(0, 0x60b, 4), Some(0));
        assert_eq!(pm.port_write(0, 0x60b, 4, u32::MAX), Some(None));
    }

    #[test]
    fn a_saved_block_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut pm = Pm::new();
        pm.port_write(77, PORT_PM1A_EVENT + 2, 2, 0x101).unwrap();
        pm.handle_power_button();
        let state = pm.state();
        assert_eq!(Pm::restore(state.clone()).unwrap().state(), state);
        assert!(Pm::restore(PmState { enable: 2, ..state.clone() }).is_err());
        assert!(Pm::restore(PmState { control: SCI_EN, ..state }).is_err());
    }
}
