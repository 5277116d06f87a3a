//! 8254 programmable interval timer, three counters, and the speaker port 0x61.
//!
//! Counts are computed from guest time in ticks of 1193182 Hz. The gates of counters 0 and 1 are high
//! for good, that of counter 2 is bit 0 of port 0x61. Rising edges of counter 0's output are IRQ 0;
//! those that pass unseen coalesce into one. Bit 4 of port 0x61 toggles every 15085 ns, as memory
//! refresh does. A new count in mode 3 takes effect at the end of a whole period, not of a half.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::impossible;

/// Frequency of the counters, in hertz.
pub const PIT_HZ: u64 = 1_193_182;

/// Saved state of one counter. A tick is the number of whole cycles of [`PIT_HZ`] since power-on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitCounterState {
    /// Mode 0 to 5.
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Access: 1 low byte, 2 high byte, 3 low then high.
    pub access: u8,
    /// The count that the present period began with: 1 to 65536.
    pub reload: u32,
    /// The count of the next period, and the tick at which that begins. In modes 1 and 5 it begins
    /// with the next trigger and the tick has no meaning.
    pub next_reload: Option<(u32, u64)>,
    /// When the present period began; `None` if the counter waits for a count or a trigger.
    pub start_tick: Option<u64>,
    /// Ticks of the period that had passed when a low gate stopped it.
    pub paused_ticks: Option<u64>,
    /// A count was loaded since the control word.
    pub is_loaded: bool,
    /// Low byte of a count whose high byte has not come.
    pub write_low: Option<u8>,
    /// The next read of an access-3 counter gives the high byte.
    pub read_high: bool,
    /// Latched count.
    pub latched_count: Option<u16>,
    /// Latched status.
    pub latched_status: Option<u8>,
    /// Level of the gate.
    pub gate: bool,
}

/// Saved state of the 8254 and of port 0x61.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// The counters.
    pub counters: [PitCounterState; 3],
    /// Bit 1 of port 0x61: the counter drives the speaker.
    pub speaker_data: bool,
    /// Tick up to which edges of counter 0's output were looked for.
    pub seen_tick: u64,
    /// An edge of counter 0's output that nobody has taken.
    pub edge_pending: bool,
}

impl Saved for PitState {
    const KIND: &'static str = "pit-8254";
    const VERSION: u16 = 1;
}

/// An 8254 at ports 0x40 to 0x43, and port 0x61.
#[derive(Debug)]
pub struct Pit {
    state: PitState,
}

impl Default for Pit {
    fn default() -> Pit {
        Pit::new()
    }
}

impl Pit {
    /// The state that firmware leaves: counter 0 makes a pulse every 65536 ticks, the others wait.
    #[must_use]
    pub fn new() -> Pit {
        let waiting = PitCounterState {
            mode: 0,
            bcd: false,
            access: 3,
            reload: COUNT_MAX,
            next_reload: None,
            start_tick: None,
            paused_ticks: None,
            is_loaded: false,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            gate: true,
        };
        let timer =
            PitCounterState { mode: 2, start_tick: Some(0), is_loaded: true, ..waiting.clone() };
        let speaker = PitCounterState { gate: false, ..waiting.clone() };
        Pit {
            state: PitState {
                counters: [timer, waiting, speaker],
                speaker_data: false,
                seen_tick: 0,
                edge_pending: false,
            },
        }
    }

    /// Reads port 0x40 to 0x43 or 0x61. `None`: the port is not one of ours.
    pub fn port_read(&mut self, now_ns: u64, port: u16) -> Option<u8> {
        self.handle_time(now_ns);
        let now = to_ticks(now_ns);
        match port {
            0x40..=0x42 => Some(self.state.counters[usize::from(port - 0x40)].read(now)),
            // The control word cannot be read.
            0x43 => Some(0xff),
            0x61 => {
                let counter = &self.state.counters[2];
                Some(
                    u8::from(counter.gate)
                        | u8::from(self.state.speaker_data) << 1
                        | (((now_ns / REFRESH_TOGGLE_NS) & 1) as u8) << 4
                        | u8::from(counter.output(now)) << 5,
                )
            }
            _ => None,
        }
    }

    /// Writes one of these ports. `None`: the port is not one of ours.
    pub fn port_write(&mut self, now_ns: u64, port: u16, value: u8) -> Option<()> {
        self.handle_time(now_ns);
        let now = to_ticks(now_ns);
        let was_high = self.state.counters[0].output(now);
        match port {
            0x40..=0x42 => self.state.counters[usize::from(port - 0x40)].write(now, value),
            0x43 => self.write_control(now, value),
            0x61 => {
                self.state.speaker_data = value & 2 != 0;
                self.state.counters[2].set_gate(now, value & 1 != 0);
            }
            _ => return None,
        }
        // A control word moves the output at once; a rise by it is an edge too.
        self.state.edge_pending |= !was_high && self.state.counters[0].output(now);
        Some(())
    }

    /// When IRQ 0 has its next rising edge, in guest ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.state.counters[0].next_rise(self.state.seen_tick).map(ns_at_tick)
    }

    /// Lets the counters see the time.
    pub fn handle_time(&mut self, now_ns: u64) {
        let now = to_ticks(now_ns);
        let rise = self.state.counters[0].next_rise(self.state.seen_tick);
        self.state.edge_pending |= rise.is_some_and(|at| at <= now);
        self.state.seen_tick = self.state.seen_tick.max(now);
        for counter in &mut self.state.counters {
            counter.begin_next_period(now);
        }
    }

    /// Takes a rising edge of IRQ 0.
    pub fn take_irq_edge(&mut self) -> bool {
        std::mem::take(&mut self.state.edge_pending)
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> PitState {
        self.state.clone()
    }

    /// An 8254 in a saved state.
    ///
    /// # Errors
    /// If no 8254 can be in that state.
    pub fn restore(state: PitState) -> Result<Pit, RestoreError> {
        let count = 1..=COUNT_MAX;
        let is_bad = |c: &PitCounterState| {
            c.mode > 5
                || !(1..=3).contains(&c.access)
                || !count.contains(&c.reload)
                || c.next_reload.is_some_and(|(next, _)| !count.contains(&next))
                || c.start_tick.max(c.paused_ticks).is_some_and(|tick| tick > TICK_MAX)
        };
        if state.counters.iter().any(is_bad) || state.seen_tick > TICK_MAX {
            return Err(impossible(PitState::KIND, "a mode, count or time is out of range"));
        }
        Ok(Pit { state })
    }

    fn write_control(&mut self, now: u64, value: u8) {
        if value >> 6 == 3 {
            for (index, counter) in self.state.counters.iter_mut().enumerate() {
                if value & 2 << index != 0 {
                    counter.read_back(now, value);
                }
            }
            return;
        }
        let counter = &mut self.state.counters[usize::from(value >> 6)];
        match value >> 4 & 3 {
            0 => counter.latch_count(now),
            access => counter.set_mode(access, value),
        }
    }
}

impl PitCounterState {
    fn set_mode(&mut self, access: u8, control: u8) {
        let mode = control >> 1 & 7;
        *self = PitCounterState {
            // The top bit is not looked at for modes 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: control & 1 != 0,
            access,
            reload: self.reload,
            next_reload: None,
            start_tick: None,
            paused_ticks: None,
            is_loaded: false,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            gate: self.gate,
        };
    }

    fn write(&mut self, now: u64, value: u8) {
        let count = match (self.access, self.write_low.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.write_low = Some(value);
                if self.mode == 0 {
                    // The first byte stops the count.
                    self.start_tick = None;
                }
                return;
            }
        };
        let count = if self.bcd { from_bcd(count) } else { u32::from(count) };
        let largest = if self.bcd { 10_000 } else { COUNT_MAX };
        self.load(now, if count == 0 { largest } else { count });
    }

    fn load(&mut self, now: u64, count: u32) {
        self.is_loaded = true;
        match self.mode {
            1 | 5 => self.next_reload = Some((count, 0)),
            2 | 3 if self.start_tick.is_some() && self.paused_ticks.is_none() => {
                let left = u64::from(self.reload) - self.elapsed(now) % u64::from(self.reload);
                self.next_reload = Some((count, now + left));
            }
            _ => {
                self.reload = count;
                self.start_tick = Some(now);
                self.paused_ticks = (!self.gate).then_some(0);
            }
        }
    }

    fn set_gate(&mut self, now: u64, gate: bool) {
        let risen = gate && !self.gate;
        let fallen = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            1 | 5 if risen && self.is_loaded => self.restart(now),
            2 | 3 if risen && self.start_tick.is_some() => self.restart(now),
            0 | 4 if risen => {
                if let Some(ticks) = self.paused_ticks.take() {
                    self.start_tick = Some(now.saturating_sub(ticks));
                }
            }
            0 | 2 | 3 | 4 if fallen && self.start_tick.is_some() => {
                self.paused_ticks = Some(self.elapsed(now));
            }
            _ => {}
        }
    }

    fn restart(&mut self, now: u64) {
        if let Some((count, _)) = self.next_reload.take() {
            self.reload = count;
        }
        self.start_tick = Some(now);
        self.paused_ticks = None;
    }

    /// Takes the count of the next period once that has begun. Every access to the part does this first.
    fn begin_next_period(&mut self, now: u64) {
        let Some((count, tick)) = self.next_reload else { return };
        if matches!(self.mode, 2 | 3) && self.paused_ticks.is_none() && tick <= now {
            self.reload = count;
            self.start_tick = Some(tick);
            self.next_reload = None;
        }
    }

    /// Ticks since the period began.
    fn elapsed(&self, now: u64) -> u64 {
        self.paused_ticks.unwrap_or_else(|| now.saturating_sub(self.start_tick.unwrap_or(now)))
    }

    /// The count as the part holds it; only its low 16 bits can be read.
    fn count(&self, now: u64) -> u32 {
        let reload = u64::from(self.reload);
        let elapsed = self.elapsed(now);
        let count = match self.mode {
            2 => reload - elapsed % reload,
            // Counts down by two, twice a period.
            3 => (reload & !1).max(2) - elapsed * 2 % (reload & !1).max(2),
            // Goes on below zero.
            _ if self.bcd => (reload + 10_000 - elapsed % 10_000) % 10_000,
            _ => reload.wrapping_sub(elapsed) & 0xffff,
        };
        count as u32
    }

    fn output(&self, now: u64) -> bool {
        if self.start_tick.is_none() {
            return self.mode != 0;
        }
        let elapsed = self.elapsed(now);
        let reload = u64::from(self.reload);
        match self.mode {
            0 | 1 => elapsed >= reload,
            // A low gate forces the output high.
            2 => self.paused_ticks.is_some() || elapsed % reload != reload - 1,
            3 => self.paused_ticks.is_some() || elapsed % reload < reload.div_ceil(2),
            // A strobe of one tick.
            _ => elapsed != reload,
        }
    }

    /// The first tick after `after` at which the output rises.
    fn next_rise(&self, after: u64) -> Option<u64> {
        if self.paused_ticks.is_some() {
            return None;
        }
        let start = self.start_tick?;
        let reload = u64::from(self.reload);
        let rise = match self.mode {
            0 | 1 => reload,
            2 | 3 => (self.elapsed(after) / reload + 1) * reload,
            _ => reload + 1,
        };
        Some(start + rise).filter(|tick| *tick > after)
    }

    fn readable_count(&self, now: u64) -> u16 {
        let count = self.count(now);
        if self.bcd { to_bcd(count % 10_000) } else { count as u16 }
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.readable_count(now));
        }
    }

    fn read_back(&mut self, now: u64, control: u8) {
        // Both bits are active low.
        if control & 0x20 == 0 {
            self.latch_count(now);
        }
        if control & 0x10 == 0 && self.latched_status.is_none() {
            self.latched_status = Some(
                u8::from(self.output(now)) << 7
                    | u8::from(!self.is_loaded) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.readable_count(now));
        let [low, high] = count.to_le_bytes();
        let is_high = self.access == 2 || self.access == 3 && self.read_high;
        self.read_high = self.access == 3 && !self.read_high;
        if self.access != 3 || is_high {
            self.latched_count = None;
        }
        if is_high { high } else { low }
    }
}

fn to_ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PIT_HZ) / NS_PER_S) as u64
}

/// The first nanosecond of a tick.
fn ns_at_tick(tick: u64) -> u64 {
    let ns = (u128::from(tick) * NS_PER_S).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (digit * 4) & 0xf))
}

fn to_bcd(value: u32) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | ((value / 10u32.pow(digit) % 10) as u16) << (digit * 4))
}

const NS_PER_S: u128 = 1_000_000_000;
const COUNT_MAX: u32 = 0x10000;
/// More ticks than 64 bits of nanoseconds hold; sums of a tick and a count stay far below 2^64.
const TICK_MAX: u64 = 1 << 60;
const REFRESH_TOGGLE_NS: u64 = 15_085;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pit: &mut Pit, now_ns: u64, control: u8, count: u16) {
        let port = 0x40 + u16::from(control >> 6);
        let [low, high] = count.to_le_bytes();
        pit.port_write(now_ns, 0x43, control).unwrap();
        pit.port_write(now_ns, port, low).unwrap();
        pit.port_write(now_ns, port, high).unwrap();
    }

    fn read_count(pit: &mut Pit, tick: u64, counter: u16) -> u16 {
        let now_ns = ns_at_tick(tick);
        pit.port_write(now_ns, 0x43, (counter as u8) << 6).unwrap();
        let low = pit.port_read(now_ns, 0x40 + counter).unwrap();
        let high = pit.port_read(now_ns, 0x40 + counter).unwrap();
        u16::from_le_bytes([low, high])
    }

    #[test]
    fn a_rate_generator_interrupts_every_period_and_missed_ones_coalesce() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0x34, 11932);
        let period_ns = pit.next_deadline_ns().unwrap();
        assert_eq!(period_ns, ns_at_tick(11932));
        pit.handle_time(period_ns - 1);
        assert!(!pit.take_irq_edge());
        pit.handle_time(period_ns);
        assert!(pit.take_irq_edge());
        pit.handle_time(ns_at_tick(11932 * 5 + 3));
        assert!(pit.take_irq_edge() && !pit.take_irq_edge());
        assert_eq!(pit.next_deadline_ns(), Some(ns_at_tick(11932 * 6)));
        assert_eq!(read_count(&mut pit, 11932 * 5 + 3, 0), 11929);
    }

    #[test]
    fn a_one_shot_interrupts_once_and_counts_on_below_zero() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0x30, 100);
        assert_eq!(read_count(&mut pit, 40, 0), 60);
        pit.handle_time(pit.next_deadline_ns().unwrap());
        assert!(pit.take_irq_edge());
        assert_eq!(pit.next_deadline_ns(), None);
        assert_eq!(read_count(&mut pit, 103, 0), 0xfffd);
    }

    #[test]
    fn a_new_count_waits_for_the_end_of_the_period() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0x34, 100);
        pit.port_write(ns_at_tick(250), 0x40, 10).unwrap();
        pit.port_write(ns_at_tick(250), 0x40, 0).unwrap();
        assert_eq!(read_count(&mut pit, 260, 0), 40);
        pit.take_irq_edge();
        assert_eq!(pit.next_deadline_ns(), Some(ns_at_tick(300)));
        pit.handle_time(ns_at_tick(303));
        assert!(pit.take_irq_edge());
        assert_eq!(pit.next_deadline_ns(), Some(ns_at_tick(310)));
        assert_eq!(read_count(&mut pit, 303, 0), 7);
    }

    #[test]
    fn square_wave_counts_by_two_and_is_high_for_the_first_half() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0x36, 100);
        assert_eq!(read_count(&mut pit, 10, 0), 80);
        assert_eq!(read_count(&mut pit, 60, 0), 80);
        let mut status = |tick| {
            pit.port_write(ns_at_tick(tick), 0x43, 0xe2).unwrap();
            pit.port_read(ns_at_tick(tick), 0x40).unwrap()
        };
        assert_eq!((status(149), status(151)), (0xb6, 0x36));
        assert_eq!(status(201), 0xb6);
    }

    #[test]
    fn linux_calibrates_against_counter_2_through_port_0x61() {
        let mut pit = Pit::new();
        pit.port_write(0, 0x61, 1).unwrap();
        load(&mut pit, 0, 0xb0, 59659);
        let end_ns = ns_at_tick(59659);
        assert_eq!(pit.port_read(end_ns - 1, 0x61).unwrap() & 0x21, 0x01);
        assert_eq!(pit.port_read(end_ns, 0x61).unwrap() & 0x21, 0x21);
        assert!(end_ns.abs_diff(50_000_000) < 1_000, "50 ms");
    }

    #[test]
    fn a_low_gate_stops_counting_and_a_high_one_goes_on() {
        let mut pit = Pit::new();
        pit.port_write(0, 0x61, 1).unwrap();
        load(&mut pit, 0, 0xb0, 100);
        pit.port_write(ns_at_tick(30), 0x61, 0).unwrap();
        assert_eq!(read_count(&mut pit, 5000, 2), 70);
        pit.port_write(ns_at_tick(6000), 0x61, 1).unwrap();
        assert_eq!(read_count(&mut pit, 6010, 2), 60);
    }

    #[test]
    fn a_hardware_one_shot_waits_for_its_gate() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0xb2, 100);
        assert_eq!(pit.port_read(ns_at_tick(500), 0x61).unwrap() & 0x20, 0x20);
        pit.port_write(ns_at_tick(500), 0x61, 1).unwrap();
        assert_eq!(pit.port_read(ns_at_tick(599), 0x61).unwrap() & 0x20, 0);
        assert_eq!(pit.port_read(ns_at_tick(600), 0x61).unwrap() & 0x20, 0x20);
    }

    #[test]
    fn read_back_latches_status_before_count_and_keeps_the_first() {
        let mut pit = Pit::new();
        load(&mut pit, 0, 0x30, 1000);
        pit.port_write(ns_at_tick(100), 0x43, 0xc2).unwrap();
        pit.port_write(ns_at_tick(200), 0x43, 0xc2).unwrap();
        let bytes: Vec<u8> =
            (0..3).map(|_| pit.port_read(ns_at_tick(300), 0x40).unwrap()).collect();
        assert_eq!(bytes, [0x30, (900u16 & 0xff) as u8, 3]);
    }

    #[test]
    fn single_byte_access_and_bcd_work() {
        let mut pit = Pit::new();
        pit.port_write(0, 0x43, 0x11).unwrap();
        pit.port_write(0, 0x40, 0x42).unwrap();
        assert_eq!(pit.port_read(ns_at_tick(3), 0x40), Some(0x39));
        pit.port_write(0, 0x43, 0x20).unwrap();
        pit.port_write(0, 0x40, 0x12).unwrap();
        assert_eq!(pit.port_read(ns_at_tick(0x10), 0x40), Some(0x11));
    }

    #[test]
    fn a_saved_timer_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut pit = Pit::new();
        load(&mut pit, 5_000, 0x34, 1000);
        pit.port_write(6_000, 0x40, 7).unwrap();
        let state = pit.state();
        assert_eq!(Pit::restore(state.clone()).unwrap().state(), state);
        let refused = |change: fn(&mut PitCounterState)| {
            let mut state = state.clone();
            change(&mut state.counters[1]);
            Pit::restore(state).is_err()
        };
        assert!(refused(|c| c.reload = 0));
        assert!(refused(|c| c.mode = 6));
        assert!(refused(|c| c.start_tick = Some(u64::MAX)));
        assert!(refused(|c| c.paused_ticks = Some(u64::MAX)));
    }

    #[test]
    fn no_sequence_of_accesses_panics_and_deadlines_lie_ahead() {
        let mut rng = base::SeededRng::new(5);
        let mut pit = Pit::new();
        let mut now_ns = 0u64;
        for _ in 0..200_000 {
            let bits = rng.below(24);
            now_ns += rng.below(1 << bits);
            let port = [0x40, 0x41, 0x42, 0x43, 0x61][rng.below(5) as usize];
            match rng.below(3) {
                0 => drop(pit.port_read(now_ns, port)),
                1 => drop(pit.port_write(now_ns, port, rng.u64() as u8)),
                _ => pit.handle_time(now_ns),
            }
            pit.handle_time(now_ns);
            assert!(pit.next_deadline_ns().is_none_or(|at| at > now_ns));
        }
        pit.handle_time(u64::MAX);
        assert!(Pit::restore(pit.state()).is_ok());
    }
}
