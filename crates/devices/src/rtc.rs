//! Real-time clock and CMOS RAM (Motorola MC146818A), with the century byte at 0x32.
//!
//! The time is the start time, in seconds since 1970 (UTC), plus guest time. Interrupts are IRQ 8.
//! Periods and updates that pass unseen coalesce. An update takes no time; UIP is set for the 244 us
//! before it. Daylight saving and the square wave output are left out.

use base::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use crate::impossible;

/// Bytes of CMOS RAM, registers included.
pub const CMOS_LEN: usize = 128;
/// The latest start time: the end of the year 9999.
pub const START_SECONDS_MAX: u64 = 253_402_300_799;

/// Saved state of the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Byte that port 0x71 shows. Bit 7 of port 0x70 (NMI mask) is kept.
    pub index: u8,
    /// CMOS RAM. The time lies here only while the clock is stopped; 128 bytes.
    pub cmos: Vec<u8>,
    /// Seconds since 1970 at `epoch_ns`.
    pub epoch_seconds: u64,
    /// Guest time at which it was `epoch_seconds`.
    pub epoch_ns: u64,
    /// Day of the week minus the one that the date gives, modulo 7: the guest can set any.
    pub weekday_offset: u8,
    /// Guest time up to which the flags of register C are true.
    pub seen_ns: u64,
    /// Guest time from which the divider chain counts.
    pub divider_ns: u64,
}

impl Saved for RtcState {
    const KIND: &'static str = "rtc-mc146818";
    const VERSION: u16 = 1;
}

/// What firmware leaves in CMOS RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtcConfig {
    /// Seconds since 1970 (UTC) at power-on, at most [`START_SECONDS_MAX`].
    pub start_seconds: u64,
    /// Bytes of RAM below 4 GiB.
    pub low_ram_bytes: u64,
    /// Bytes of RAM from 4 GiB on.
    pub high_ram_bytes: u64,
}

/// The clock at ports 0x70 and 0x71.
#[derive(Debug)]
pub struct Rtc {
    state: RtcState,
}

impl Rtc {
    /// The clock as firmware leaves it: it runs, in BCD and 24 hours, without interrupts.
    #[must_use]
    pub fn new(config: RtcConfig) -> Rtc {
        let mut cmos = vec![0; CMOS_LEN];
        cmos[REG_A] = 0x26;
        cmos[REG_B] = B_24H;
        // Equipment: no floppy, no coprocessor bit matters; the memory sizes are where QEMU has them.
        cmos[0x14] = 0x06;
        let put = |cmos: &mut Vec<u8>, at: usize, value: u64, len: usize| {
            cmos[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let kib = config.low_ram_bytes >> 10;
        let extended_kib = kib.saturating_sub(1 << 10).min(0xffff);
        put(&mut cmos, 0x15, 640, 2);
        put(&mut cmos, 0x17, extended_kib, 2);
        put(&mut cmos, 0x30, extended_kib, 2);
        put(&mut cmos, 0x34, (kib.saturating_sub(16 << 10) >> 6).min(0xffff), 2);
        put(&mut cmos, 0x5b, (config.high_ram_bytes >> 16).min(0xff_ffff), 3);
        Rtc {
            state: RtcState {
                index: 0,
                cmos,
                epoch_seconds: config.start_seconds.min(START_SECONDS_MAX),
                epoch_ns: 0,
                weekday_offset: 0,
                seen_ns: 0,
                divider_ns: 0,
            },
        }
    }

    /// Reads port 0x70 or 0x71. `None`: the port is not one of ours.
    pub fn port_read(&mut self, now_ns: u64, port: u16) -> Option<u8> {
        match port {
            // The index is write-only.
            0x70 => Some(0xff),
            0x71 => Some(self.read_data(now_ns)),
            _ => None,
        }
    }

    /// Writes one of these ports. `None`: the port is not one of ours.
    pub fn port_write(&mut self, now_ns: u64, port: u16, value: u8) -> Option<()> {
        match port {
            0x70 => self.state.index = value,
            0x71 => self.write_data(now_ns, value),
            _ => return None,
        }
        Some(())
    }

    /// The level of IRQ 8. It stays high until the guest reads register C.
    #[must_use]
    pub fn irq_level(&self) -> bool {
        self.enabled_flags() != 0
    }

    /// When IRQ 8 rises next, in guest ns.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let b = self.state.cmos[REG_B];
        if self.irq_level() || b & (C_PERIODIC | C_ALARM | C_UPDATE) == 0 {
            return None;
        }
        let after_ns = self.state.seen_ns;
        let periodic = (b & C_PERIODIC != 0).then(|| self.next_period_ns(after_ns)).flatten();
        let update = (b & C_UPDATE != 0).then(|| self.next_update_ns(after_ns)).flatten();
        let alarm = (b & C_ALARM != 0).then(|| self.next_alarm_ns(after_ns)).flatten();
        [periodic, update, alarm].into_iter().flatten().min()
    }

    /// Lets the clock see the time.
    pub fn handle_time(&mut self, now_ns: u64) {
        let after_ns = self.state.seen_ns;
        if now_ns <= after_ns {
            return;
        }
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now_ns);
        let mut flags = 0;
        if due(self.next_period_ns(after_ns)) {
            flags |= C_PERIODIC;
        }
        if due(self.next_update_ns(after_ns)) {
            flags |= C_UPDATE;
        }
        if due(self.next_alarm_ns(after_ns)) {
            flags |= C_ALARM;
        }
        self.state.cmos[REG_C] |= flags;
        self.state.seen_ns = now_ns;
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> RtcState {
        self.state.clone()
    }

    /// A clock in a saved state.
    ///
    /// # Errors
    /// If no clock can be in that state.
    pub fn restore(state: RtcState) -> Result<Rtc, RestoreError> {
        if state.cmos.len() != CMOS_LEN {
            return Err(impossible(RtcState::KIND, "CMOS RAM is not 128 bytes"));
        }
        if state.epoch_seconds > START_SECONDS_MAX || state.weekday_offset > 6 {
            return Err(impossible(RtcState::KIND, "the time is out of range"));
        }
        if state.epoch_ns > state.seen_ns || state.divider_ns > state.seen_ns {
            return Err(impossible(RtcState::KIND, "the clock was set in the future"));
        }
        Ok(Rtc { state })
    }

    fn read_data(&mut self, now_ns: u64) -> u8 {
        self.handle_time(now_ns);
        let index = usize::from(self.state.index & 0x7f);
        match index {
            REG_A => self.state.cmos[REG_A] | if self.update_is_near(now_ns) { A_UIP } else { 0 },
            REG_C => {
                let irq = if self.irq_level() { C_IRQ } else { 0 };
                let flags = std::mem::take(&mut self.state.cmos[REG_C]);
                flags | irq
            }
            REG_D => D_VALID,
            _ if self.runs() && is_time(index) => self.time_bytes(now_ns)[time_slot(index)],
            _ => self.state.cmos[index],
        }
    }

    fn write_data(&mut self, now_ns: u64, value: u8) {
        self.handle_time(now_ns);
        let index = usize::from(self.state.index & 0x7f);
        match index {
            REG_A | REG_B => self.write_control(now_ns, index, value),
            REG_C | REG_D => {}
            _ if is_time(index) && self.runs() => {
                self.store_time(now_ns);
                self.state.cmos[index] = value;
                self.load_time(now_ns);
            }
            _ => self.state.cmos[index] = value,
        }
    }

    fn write_control(&mut self, now_ns: u64, index: usize, value: u8) {
        let ran = self.runs();
        if ran {
            // Stopping keeps the time in the bytes; it is there in the old format.
            self.store_time(now_ns);
        }
        if index == REG_A {
            let was_reset = self.divider_is_reset();
            self.state.cmos[REG_A] = value & !A_UIP;
            if was_reset && !self.divider_is_reset() {
                self.state.divider_ns = now_ns;
            }
        } else {
            let format = (self.state.cmos[REG_B] ^ value) & (B_24H | B_BINARY);
            self.state.cmos[REG_B] = value;
            if format != 0 && ran && self.runs() {
                // The count goes on; the bytes are shown in the new format.
                return;
            }
            if value & B_SET != 0 {
                self.state.cmos[REG_B] &= !C_UPDATE;
            }
        }
        if self.runs() && !ran {
            self.load_time(now_ns);
        }
    }

    fn divider_is_reset(&self) -> bool {
        self.state.cmos[REG_A] >> 4 & 7 >= 6
    }

    /// False while the guest sets the clock or holds the divider in reset.
    fn runs(&self) -> bool {
        self.state.cmos[REG_B] & B_SET == 0 && !self.divider_is_reset()
    }

    fn enabled_flags(&self) -> u8 {
        self.state.cmos[REG_B] & self.state.cmos[REG_C] & (C_PERIODIC | C_ALARM | C_UPDATE)
    }

    fn seconds_at(&self, ns: u64) -> u64 {
        self.state.epoch_seconds + ns.saturating_sub(self.state.epoch_ns) / NS_PER_S
    }

    fn update_is_near(&self, now_ns: u64) -> bool {
        self.runs() && now_ns.saturating_sub(self.state.epoch_ns) % NS_PER_S >= NS_PER_S - UIP_NS
    }

    fn next_update_ns(&self, after_ns: u64) -> Option<u64> {
        let seconds = after_ns.saturating_sub(self.state.epoch_ns) / NS_PER_S + 1;
        let at = self.state.epoch_ns.checked_add(seconds.checked_mul(NS_PER_S)?)?;
        self.runs().then_some(at)
    }

    /// The next multiple of the period that register A selects.
    fn next_period_ns(&self, after_ns: u64) -> Option<u64> {
        let rate = u32::from(self.state.cmos[REG_A] & 0xf);
        if rate == 0 || self.divider_is_reset() {
            return None;
        }
        // Rates 1 and 2 are those of 8 and 9 with a 32 kHz crystal.
        let cycles = 1u128 << (if rate <= 2 { rate + 6 } else { rate - 1 });
        let elapsed = u128::from(after_ns.saturating_sub(self.state.divider_ns));
        let done = elapsed * CRYSTAL_HZ / (cycles * u128::from(NS_PER_S));
        let ns = ((done + 1) * cycles * u128::from(NS_PER_S)).div_ceil(CRYSTAL_HZ);
        self.state.divider_ns.checked_add(u64::try_from(ns).ok()?)
    }

    /// The first second after `after_ns` whose hour, minute and second the alarm names.
    fn next_alarm_ns(&self, after_ns: u64) -> Option<u64> {
        if !self.runs() {
            return None;
        }
        let field = |index: usize, last: u64| {
            let byte = self.state.cmos[index];
            // The two top bits mean any value.
            if byte >= 0xc0 {
                Some(0..=last)
            } else {
                let value = if last == 23 { self.hour_of(byte) } else { self.number_of(byte) };
                (value <= last).then_some(value..=value)
            }
        };
        let seconds = field(0x01, 59)?;
        let minutes = field(0x03, 59)?;
        let hours = field(0x05, 23)?;
        let first = self.seconds_at(after_ns) + 1;
        let midnight = first - first % DAY_S;
        let at = (0..2)
            .flat_map(|day| hours.clone().map(move |hour| midnight + day * DAY_S + hour * 3600))
            .filter(|hour| hour + 3600 > first)
            .flat_map(|hour| minutes.clone().map(move |minute| hour + minute * 60))
            .filter(|minute| minute + 60 > first)
            .flat_map(|minute| seconds.clone().map(move |second| minute + second))
            .find(|at| *at >= first)?;
        let offset = (at - self.state.epoch_seconds).checked_mul(NS_PER_S)?;
        self.state.epoch_ns.checked_add(offset)
    }

    /// Writes the time into its bytes.
    fn store_time(&mut self, now_ns: u64) {
        let bytes = self.time_bytes(now_ns);
        for (slot, index) in TIME_INDEXES.into_iter().enumerate() {
            self.state.cmos[index] = bytes[slot];
        }
    }

    /// Sets the clock from its bytes. Values out of range are carried, as a counter would.
    fn load_time(&mut self, now_ns: u64) {
        let byte = |index: usize| self.state.cmos[index];
        let number = |index: usize| self.number_of(byte(index));
        let year = number(0x32) * 100 + number(0x09);
        let days =
            days_from_date(year.clamp(1970, 9999), number(0x08).clamp(1, 12), number(0x07).max(1));
        let hour = self.hour_of(byte(0x04));
        let seconds = days * DAY_S + hour * 3600 + number(0x02) * 60 + number(0x00);
        let weekday = number(0x06).clamp(1, 7) - 1;
        self.state.epoch_seconds = seconds.min(START_SECONDS_MAX);
        self.state.weekday_offset =
            ((weekday + 7 - weekday_of(self.state.epoch_seconds / DAY_S)) % 7) as u8;
        self.state.epoch_ns = now_ns;
    }

    /// Seconds, minutes, hours, weekday, day, month, year and century as the guest reads them.
    fn time_bytes(&self, now_ns: u64) -> [u8; 8] {
        let total = self.seconds_at(now_ns);
        let (days, second) = (total / DAY_S, total % DAY_S);
        let (year, month, day) = date_from_days(days);
        let weekday = (weekday_of(days) + u64::from(self.state.weekday_offset)) % 7 + 1;
        let byte = |value: u64| self.byte_of(value);
        [
            byte(second % 60),
            byte(second / 60 % 60),
            self.hour_byte(second / 3600),
            byte(weekday),
            byte(day),
            byte(month),
            byte(year % 100),
            byte(year / 100 % 100),
        ]
    }

    fn is_binary(&self) -> bool {
        self.state.cmos[REG_B] & B_BINARY != 0
    }

    fn byte_of(&self, value: u64) -> u8 {
        let value = value as u8;
        if self.is_binary() { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn number_of(&self, byte: u8) -> u64 {
        u64::from(if self.is_binary() { byte } else { (byte >> 4) * 10 + (byte & 0xf) })
    }

    fn hour_byte(&self, hour: u64) -> u8 {
        if self.state.cmos[REG_B] & B_24H != 0 {
            return self.byte_of(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        self.byte_of((hour + 11) % 12 + 1) | pm
    }

    fn hour_of(&self, byte: u8) -> u64 {
        if self.state.cmos[REG_B] & B_24H != 0 {
            return self.number_of(byte);
        }
        let pm = if byte & HOUR_PM != 0 { 12 } else { 0 };
        self.number_of(byte & !HOUR_PM) % 12 + pm
    }
}

fn is_time(index: usize) -> bool {
    TIME_INDEXES.contains(&index)
}

fn time_slot(index: usize) -> usize {
    TIME_INDEXES.iter().position(|time| *time == index).expect("asked only for time bytes")
}

/// 0 for Sunday.
fn weekday_of(days: u64) -> u64 {
    (days + 4) % 7
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. `day` may lie beyond the month.
fn days_from_date(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March put the leap day last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - DAYS_TO_1970
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01.
fn date_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (year_of_era * 365 + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (day_of_year * 5 + 2) / 153;
    let day = day_of_year - (shifted_month * 153 + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Bytes of seconds, minutes, hours, weekday, day, month, year and century.
const TIME_INDEXES: [usize; 8] = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32];
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
const A_UIP: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;
const C_IRQ: u8 = 1 << 7;
/// Flag bits of register C and, in the same places, enable bits of register B.
const C_PERIODIC: u8 = 1 << 6;
const C_ALARM: u8 = 1 << 5;
const C_UPDATE: u8 = 1 << 4;
const D_VALID: u8 = 1 << 7;
const HOUR_PM: u8 = 1 << 7;
const NS_PER_S: u64 = 1_000_000_000;
const UIP_NS: u64 = 244_000;
const CRYSTAL_HZ: u128 = 32_768;
const DAY_S: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = NS_PER_S;
    /// 2023-11-14 22:13:20 UTC, a Tuesday.
    const START: u64 = 1_700_000_000;

    fn clock() -> Rtc {
        let config =
            RtcConfig { start_seconds: START, low_ram_bytes: 3 << 30, high_ram_bytes: 1 << 30 };
        Rtc::new(config)
    }

    fn read(rtc: &mut Rtc, now_ns: u64, index: u8) -> u8 {
        rtc.port_write(now_ns, 0x70, index).unwrap();
        rtc.port_read(now_ns, 0x71).unwrap()
    }

    fn write(rtc: &mut Rtc, now_ns: u64, index: u8, value: u8) {
        rtc.port_write(now_ns, 0x70, index).unwrap();
        rtc.port_write(now_ns, 0x71, value).unwrap();
    }

    fn time(rtc: &mut Rtc, now_ns: u64) -> Vec<u8> {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rtc, now_ns, index)).to_vec()
    }

    #[test]
    fn the_time_is_the_start_time_plus_guest_time() {
        let mut rtc = clock();
        assert_eq!(time(&mut rtc, 0), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
        let later_ns = (86_400 + 2 * 3600) * S;
        assert_eq!(time(&mut rtc, later_ns), [0x20, 0x23, 0x11, 0x16, 5, 0x00, 0x13, 0x20]);
    }

    #[test]
    fn binary_and_twelve_hour_formats_show_the_same_time() {
        let mut rtc = clock();
        write(&mut rtc, 0, 0x0b, 0x04);
        assert_eq!(time(&mut rtc, 0), [20, 23, 11, 14, 3, 0x80 | 10, 13, 20]);
        write(&mut rtc, 0, 0x0b, 0x00);
        assert_eq!(read(&mut rtc, 0, 4), 0x90);
        assert_eq!(read(&mut rtc, 2 * 3600 * S, 4), 0x12, "midnight is 12 AM");
    }

    #[test]
    fn a_stopped_clock_takes_a_new_time_and_goes_on_from_it() {
        let mut rtc = clock();
        write(&mut rtc, 0, 0x0b, 0x82);
        for (index, value) in
            [(0x32, 0x20), (9, 0x24), (8, 2), (7, 0x29), (6, 5), (4, 0x23), (2, 0x59), (0, 0x59)]
        {
            write(&mut rtc, 5 * S, index, value);
        }
        assert_eq!(read(&mut rtc, 9 * S, 0), 0x59, "it stands still");
        write(&mut rtc, 10 * S, 0x0b, 0x02);
        assert_eq!(time(&mut rtc, 11 * S), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn writing_one_byte_of_a_running_clock_changes_only_that() {
        let mut rtc = clock();
        write(&mut rtc, S, 2, 0x45);
        assert_eq!(time(&mut rtc, S), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x45, 0x21]);
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(date_from_days(0), (1970, 1, 1));
        assert_eq!(date_from_days(11_016), (2000, 2, 29));
        assert_eq!(date_from_days(days_from_date(2100, 2, 28) + 1), (2100, 3, 1));
        for days in (0..3_000_000).step_by(37) {
            let (year, month, day) = date_from_days(days);
            assert_eq!(days_from_date(year, month, day), days);
        }
    }

    #[test]
    fn update_in_progress_shows_before_the_second_ends() {
        let mut rtc = clock();
        assert_eq!(read(&mut rtc, S - 244_001, 0x0a), 0x26);
        assert_eq!(read(&mut rtc, S - 244_000, 0x0a), 0xa6);
        assert_eq!(read(&mut rtc, S, 0x0a), 0x26);
    }

    #[test]
    fn the_update_interrupt_comes_each_second_until_register_c_is_read() {
        let mut rtc = clock();
        assert_eq!(rtc.next_deadline_ns(), None);
        write(&mut rtc, 0, 0x0b, 0x12);
        assert_eq!(rtc.next_deadline_ns(), Some(S));
        rtc.handle_time(3 * S + 5);
        assert!(rtc.irq_level());
        assert_eq!(rtc.next_deadline_ns(), None, "the line is high");
        assert_eq!(read(&mut rtc, 3 * S + 5, 0x0c), 0xd0);
        assert!(!rtc.irq_level());
        assert_eq!(rtc.next_deadline_ns(), Some(4 * S));
    }

    #[test]
    fn the_periodic_interrupt_has_the_selected_rate() {
        let mut rtc = clock();
        write(&mut rtc, 0, 0x0b, 0x42);
        // Rate 6 is 1024 Hz, 15 is 2 Hz, 1 is 256 Hz.
        assert_eq!(rtc.next_deadline_ns(), Some(976_563));
        write(&mut rtc, 0, 0x0a, 0x2f);
        assert_eq!(rtc.next_deadline_ns(), Some(S / 2));
        write(&mut rtc, 0, 0x0a, 0x21);
        assert_eq!(rtc.next_deadline_ns(), Some(3_906_250));
        write(&mut rtc, 0, 0x0a, 0x20);
        assert_eq!(rtc.next_deadline_ns(), None);
    }

    #[test]
    fn the_alarm_comes_at_its_time_and_any_stands_for_each() {
        let mut rtc = clock();
        for (index, value) in [(5, 0x22), (3, 0x13), (1, 0x30)] {
            write(&mut rtc, 0, index, value);
        }
        write(&mut rtc, 0, 0x0b, 0x22);
        assert_eq!(rtc.next_deadline_ns(), Some(10 * S));
        rtc.handle_time(10 * S);
        assert_eq!(read(&mut rtc, 10 * S, 0x0c), 0xf0);
        assert_eq!(rtc.next_deadline_ns(), Some((10 + 86_400) * S));
        write(&mut rtc, 10 * S, 5, 0xff);
        assert_eq!(rtc.next_deadline_ns(), Some((10 + 3_600) * S));
        write(&mut rtc, 10 * S, 3, 0xc0);
        assert_eq!(rtc.next_deadline_ns(), Some((10 + 60) * S));
        write(&mut rtc, 10 * S, 1, 0xff);
        assert_eq!(rtc.next_deadline_ns(), Some(11 * S));
        write(&mut rtc, 10 * S, 1, 0x7f);
        assert_eq!(rtc.next_deadline_ns(), None, "there is no such second");
    }

    #[test]
    fn memory_sizes_are_where_qemu_has_them() {
        let mut rtc = clock();
        let mut bytes = |range: std::ops::RangeInclusive<u8>| {
            range.rev().fold(0u64, |sum, index| sum << 8 | u64::from(read(&mut rtc, 0, index)))
        };
        assert_eq!(bytes(0x15..=0x16), 640);
        assert_eq!(bytes(0x17..=0x18), 0xffff);
        assert_eq!(bytes(0x34..=0x35), ((3 << 30) - (16 << 20)) >> 16);
        assert_eq!(bytes(0x5b..=0x5d), (1 << 30) >> 16);
    }

    #[test]
    fn a_saved_clock_goes_on_where_it_was_and_impossible_states_are_refused() {
        let mut rtc = clock();
        write(&mut rtc, 7, 0x0b, 0x72);
        rtc.handle_time(5 * S);
        let state = rtc.state();
        assert_eq!(Rtc::restore(state.clone()).unwrap().state(), state);
        assert!(Rtc::restore(RtcState { cmos: vec![0; 127], ..state.clone() }).is_err());
        assert!(Rtc::restore(RtcState { epoch_seconds: u64::MAX, ..state }).is_err());
    }

    #[test]
    fn no_sequence_of_accesses_panics_and_deadlines_lie_ahead() {
        let mut rng = base::SeededRng::new(6);
        let mut rtc = clock();
        let mut now_ns = 0u64;
        for _ in 0..100_000 {
            let bits = rng.below(40);
            now_ns += rng.below(1 << bits);
            match rng.below(3) {
                0 => drop(read(&mut rtc, now_ns, rng.below(0x35) as u8)),
                1 => write(&mut rtc, now_ns, rng.below(0x35) as u8, rng.u64() as u8),
                _ => rtc.handle_time(now_ns),
            }
            assert!(rtc.next_deadline_ns().is_none_or(|at| at > rtc.state.seen_ns));
        }
        rtc.handle_time(u64::MAX);
        assert!(Rtc::restore(rtc.state()).is_ok());
    }
}
