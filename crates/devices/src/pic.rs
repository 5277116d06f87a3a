//! The pair of 8259A interrupt controllers of a PC, with the edge/level registers (ELCR).
//!
//! The slave sits on IRQ2 of the master whatever ICW3 says. 8086 mode only: the vector is ICW2 plus
//! the line. An edge that falls again before it is acknowledged stays latched.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::impossible;

/// Saved state of one 8259A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicChipState {
    /// Interrupt request register.
    pub irr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// Levels of the request lines.
    pub lines: u8,
    /// Which lines are level triggered.
    pub elcr: u8,
    /// Vector of line 0: a multiple of 8.
    pub vector_base: u8,
    /// Line with the highest priority.
    pub highest: u8,
    /// Which initialization word comes next.
    pub init: PicInit,
    /// ICW1 announced an ICW4.
    pub wants_icw4: bool,
    /// ICW1: there is no slave.
    pub is_single: bool,
    /// All lines are level triggered (ICW1).
    pub is_level_triggered: bool,
    /// The acknowledge cycle ends the interrupt.
    pub auto_eoi: bool,
    /// Rotate at automatic EOI.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// A read of the command port gives the ISR, not the IRR.
    pub reads_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

/// Which initialization word an 8259A waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PicInit {
    /// None: it runs.
    #[default]
    Done,
    /// ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
}

/// Saved state of the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Master, then slave.
    pub chips: [PicChipState; 2],
}

impl Saved for PicState {
    const KIND: &'static str = "pic-8259";
    const VERSION: u16 = 1;
}

/// The pair of 8259A.
#[derive(Debug, Default)]
pub struct Pic {
    state: PicState,
}

impl Pic {
    /// The pair as firmware leaves it: vectors from 0x08 and 0x70 and every line but the cascade
    /// masked.
    #[must_use]
    pub fn new() -> Pic {
        let chip = |vector_base, imr| PicChipState { vector_base, imr, ..PicChipState::default() };
        Pic { state: PicState { chips: [chip(0x08, 0xfb), chip(0x70, 0xff)] } }
    }

    /// Reads port 0x20, 0x21, 0xa0, 0xa1, 0x4d0 or 0x4d1. `None`: the port is not one of ours.
    pub fn port_read(&mut self, port: u16) -> Option<u8> {
        let chip = chip_of(port)?;
        let s = &mut self.state.chips[chip];
        let value = match port {
            0x4d0 | 0x4d1 => return Some(s.elcr),
            _ if s.poll => self.poll(chip),
            0x21 | 0xa1 => s.imr,
            _ if s.reads_isr => s.isr,
            _ => s.irr,
        };
        self.update_cascade();
        Some(value)
    }

    /// Writes one of these ports. `None`: the port is not one of ours.
    pub fn port_write(&mut self, port: u16, value: u8) -> Option<()> {
        let chip = chip_of(port)?;
        let s = &mut self.state.chips[chip];
        match port {
            // Timer, keyboard, cascade, clock and coprocessor are always edge triggered.
            0x4d0 => s.write_elcr(value & 0xf8),
            0x4d1 => s.write_elcr(value & 0xde),
            0x20 | 0xa0 if value & ICW1 != 0 => s.write_icw1(value),
            0x20 | 0xa0 if value & OCW3 != 0 => s.write_ocw3(value),
            0x20 | 0xa0 => s.write_ocw2(value),
            _ => s.write_data(value),
        }
        self.update_cascade();
        Some(())
    }

    /// Sets the level of a request line, 0 to 15. Line 2 is the cascade and cannot be set.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        if irq == 2 || irq > 15 {
            return;
        }
        self.state.chips[usize::from(irq >> 3)].set_line(irq & 7, level);
        self.update_cascade();
    }

    /// The INTR line.
    #[must_use]
    pub fn intr(&self) -> bool {
        self.state.chips[0].pending(true).is_some()
    }

    /// The interrupt acknowledge cycle: the vector. If nothing is requested any more it is that of
    /// line 7, and no in-service bit is set.
    pub fn acknowledge(&mut self) -> u8 {
        let [master, slave] = &mut self.state.chips;
        let line = master.pending(true);
        if let Some(line) = line {
            master.acknowledge(line);
        }
        let vector = if line == Some(CASCADE) {
            let line = slave.pending(false);
            if let Some(line) = line {
                slave.acknowledge(line);
            }
            slave.vector_base + line.unwrap_or(7)
        } else {
            master.vector_base + line.unwrap_or(7)
        };
        self.update_cascade();
        vector
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> PicState {
        self.state.clone()
    }

    /// A pair in a saved state.
    ///
    /// # Errors
    /// If no pair can be in that state.
    pub fn restore(state: PicState) -> Result<Pic, RestoreError> {
        let is_bad = |chip: &PicChipState| chip.vector_base & 7 != 0 || chip.highest > 7;
        if state.chips.iter().any(is_bad) {
            return Err(impossible(PicState::KIND, "vector base or priority is out of range"));
        }
        Ok(Pic { state })
    }

    fn poll(&mut self, chip: usize) -> u8 {
        let s = &mut self.state.chips[chip];
        s.poll = false;
        let Some(line) = s.pending(chip == 0) else { return 0 };
        s.acknowledge(line);
        0x80 | line
    }

    /// The slave's INT is line 2 of the master; each new request of the slave is a new edge.
    fn update_cascade(&mut self) {
        let [master, slave] = &mut self.state.chips;
        let level = slave.pending(false).is_some();
        master.set_line(CASCADE, level);
        let bit = 1 << CASCADE;
        master.irr = if level { master.irr | bit } else { master.irr & !bit };
    }
}

impl PicChipState {
    fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << line;
        if level && (self.lines & bit == 0 || self.is_level(line)) {
            self.irr |= bit;
        }
        if !level && self.is_level(line) {
            self.irr &= !bit;
        }
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value;
        // The request of a level triggered line is its level.
        self.irr = self.irr & !value | self.lines & value;
    }

    fn is_level(&self, line: u8) -> bool {
        self.is_level_triggered || self.elcr & 1 << line != 0
    }

    /// Rank of the first set line in `lines`: 0 is the highest priority, 8 means none.
    fn rank(&self, lines: u8) -> u8 {
        lines.rotate_right(u32::from(self.highest)).trailing_zeros() as u8
    }

    /// The line that asks the CPU, if one does.
    fn pending(&self, is_master: bool) -> Option<u8> {
        if self.init != PicInit::Done {
            return None;
        }
        let rank = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && is_master {
            // Requests of the slave pass while another of the slave is served.
            in_service &= !(1 << CASCADE);
        }
        (rank < self.rank(in_service)).then_some((rank + self.highest) & 7)
    }

    fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        // A level stays requested as long as its line is high.
        if !self.is_level(line) {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = (line + 1) & 7;
        }
    }

    fn write_icw1(&mut self, value: u8) {
        *self = PicChipState {
            lines: self.lines,
            elcr: self.elcr,
            vector_base: self.vector_base,
            init: PicInit::Icw2,
            wants_icw4: value & 1 != 0,
            is_single: value & 2 != 0,
            is_level_triggered: value & 8 != 0,
            ..PicChipState::default()
        };
        // Edges are forgotten; a line that is high in level mode asks at once.
        let level_lines = if self.is_level_triggered { 0xff } else { self.elcr };
        self.irr = self.lines & level_lines;
    }

    fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            PicInit::Done => {
                self.imr = value;
                PicInit::Done
            }
            PicInit::Icw2 => {
                self.vector_base = value & 0xf8;
                if !self.is_single { PicInit::Icw3 } else { self.after_icw3() }
            }
            PicInit::Icw3 => self.after_icw3(),
            PicInit::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                PicInit::Done
            }
        };
    }

    fn after_icw3(&self) -> PicInit {
        if self.wants_icw4 { PicInit::Icw4 } else { PicInit::Done }
    }

    fn write_ocw2(&mut self, value: u8) {
        let line = value & 7;
        match value >> 5 {
            0b001 => drop(self.end_highest()),
            0b101 => {
                if let Some(line) = self.end_highest() {
                    self.highest = (line + 1) & 7;
                }
            }
            0b011 => self.isr &= !(1 << line),
            0b111 => {
                self.isr &= !(1 << line);
                self.highest = (line + 1) & 7;
            }
            0b110 => self.highest = (line + 1) & 7,
            0b100 => self.rotate_on_auto_eoi = true,
            0b000 => self.rotate_on_auto_eoi = false,
            _ => {}
        }
    }

    /// Ends the interrupt of the highest priority. In special mask mode a masked one is left alone.
    fn end_highest(&mut self) -> Option<u8> {
        let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let rank = self.rank(candidates);
        if rank == 8 {
            return None;
        }
        let line = (rank + self.highest) & 7;
        self.isr &= !(1 << line);
        Some(line)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.reads_isr = value & 0x01 != 0;
        }
    }
}

fn chip_of(port: u16) -> Option<usize> {
    match port {
        0x20 | 0x21 | 0x4d0 => Some(0),
        0xa0 | 0xa1 | 0x4d1 => Some(1),
        _ => None,
    }
}

const CASCADE: u8 = 2;
const ICW1: u8 = 0x10;
const OCW3: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn initialized() -> Pic {
        let mut pic = Pic::new();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, 0x00),
            (0xa1, 0x00),
        ] {
            pic.port_write(port, value).unwrap();
        }
        pic
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_irq(irq, true);
        pic.set_irq(irq, false);
    }

    #[test]
    fn the_lowest_line_goes_first_and_blocks_lower_ones_until_eoi() {
        let mut pic = initialized();
        pulse(&mut pic, 4);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.intr());
        pic.port_write(0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x34);
        pulse(&mut pic, 1);
        assert!(pic.intr(), "a higher line interrupts the handler");
        pic.port_write(0x20, 0x0b);
        assert_eq!(pic.port_read(0x20), Some(0x10));
        pic.port_write(0x20, 0x0a);
        assert_eq!(pic.port_read(0x20), Some(0x02));
    }

    #[test]
    fn the_slave_needs_both_ends() {
        let mut pic = initialized();
        pulse(&mut pic, 8);
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x38);
        pic.port_write(0xa0, 0x20);
        assert!(!pic.intr(), "the cascade is still in service");
        pic.port_write(0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x3c);
    }

    #[test]
    fn a_level_that_falls_before_the_acknowledge_is_spurious() {
        let mut pic = initialized();
        pic.port_write(0x4d0, 0xff);
        assert_eq!(pic.port_read(0x4d0), Some(0xf8));
        pic.port_write(0x4d1, 0xff);
        assert_eq!(pic.port_read(0x4d1), Some(0xde));
        pic.set_irq(5, true);
        assert!(pic.intr());
        pic.set_irq(5, false);
        assert_eq!(pic.acknowledge(), 0x37);
        pic.port_write(0x4d0, 0);
        pic.set_irq(5, true);
        pic.acknowledge();
        pic.port_write(0x20, 0x20);
        pic.port_write(0x4d0, 0x20);
        assert!(pic.intr(), "the line is high and has become level triggered");
        pic.set_irq(5, false);
        pic.port_write(0x20, 0x0b);
        assert_eq!(pic.port_read(0x20), Some(0));
    }

    #[test]
    fn a_spurious_slave_interrupt_leaves_the_cascade_in_service() {
        let mut pic = initialized();
        pic.port_write(0x4d1, 0x08);
        pic.set_irq(11, true);
        // The request is withdrawn between the master's and the slave's part of the cycle.
        pic.state.chips[1].irr = 0;
        assert_eq!(pic.acknowledge(), 0x3f);
        pic.port_write(0x20, 0x0b);
        assert_eq!(pic.port_read(0x20), Some(4));
    }

    #[test]
    fn a_level_asks_again_after_eoi_while_it_is_high() {
        let mut pic = initialized();
        pic.port_write(0x4d0, 0x20);
        pic.set_irq(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        assert!(!pic.intr());
        pic.port_write(0x20, 0x65);
        assert!(pic.intr());
        pic.set_irq(5, false);
        assert!(!pic.intr());
    }

    #[test]
    fn special_mask_mode_lets_lower_lines_through() {
        let mut pic = initialized();
        pulse(&mut pic, 1);
        pic.acknowledge();
        pulse(&mut pic, 4);
        assert!(!pic.intr());
        pic.port_write(0x21, 0x02);
        pic.port_write(0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn automatic_eoi_rotation_and_poll_work() {
        let mut pic = initialized();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x03)] {
            pic.port_write(port, value);
        }
        pic.port_write(0x20, 0x80);
        pulse(&mut pic, 0);
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x30);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x31, "line 0 has the lowest priority now");
        pic.port_write(0x20, 0x0c);
        assert_eq!(pic.port_read(0x20), Some(0x80));
        pic.port_write(0x20, 0x0c);
        assert_eq!(pic.port_read(0x20), Some(0));
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
        let mut pic = initialized();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04), (0x21, 0x11)] {
            pic.port_write(port, value);
        }
        pulse(&mut pic, 12);
        assert_eq!(pic.acknowledge(), 0x3c);
        pulse(&mut pic, 8);
        assert_eq!(pic.acknowledge(), 0x38);
    }

    #[test]
    fn masked_lines_and_foreign_ports_are_silent() {
        let mut pic = Pic::new();
        pulse(&mut pic, 0);
        pic.set_irq(2, true);
        pic.set_irq(200, true);
        assert!(!pic.intr());
        assert_eq!(pic.port_read(0x22), None);
        assert_eq!(pic.port_write(0x4d2, 0), None);
    }

    #[test]
    fn a_saved_pair_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut pic = initialized();
        pulse(&mut pic, 3);
        pulse(&mut pic, 9);
        pic.acknowledge();
        let state = pic.state();
        assert_eq!(Pic::restore(state.clone()).unwrap().state(), state);
        let mut bad = state;
        bad.chips[1].vector_base = 1;
        assert!(Pic::restore(bad).is_err());
    }

    #[test]
    fn no_sequence_of_accesses_panics() {
        let mut rng = base::SeededRng::new(3);
        let mut pic = Pic::new();
        for _ in 0..100_000 {
            let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][rng.below(6) as usize];
            match rng.below(4) {
                0 => drop(pic.port_read(port)),
                1 => drop(pic.port_write(port, rng.u64() as u8)),
                2 => pic.set_irq(rng.below(16) as u8, rng.one_in(2)),
                _ => drop(pic.acknowledge()),
            }
        }
        let state = pic.state();
        assert_eq!(Pic::restore(state.clone()).unwrap().state(), state);
    }
}
