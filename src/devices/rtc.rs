//! A real-time clock (Motorola MC146818) with the host's time in UTC: ports 0x70 (index) and 0x71 (data).
//!
//! It exists so that nobody who looks for it waits: without it these ports read as ones, which a kernel takes for an
//! update in progress and polls for a second. It has no interrupts, and time written to it is ignored: the host's clock
//! is right. Accesses come on vCPU threads. In a run that can be repeated it stands still at the beginning of that.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bus::BusDeviceMut;
use crate::devices::Builder;
use crate::devices::builder::PlacedPorts;
use crate::firmware::HID_RTC;

/// Index port; the data port follows.
pub const PORT: u16 = 0x70;
/// Where the century is, as most machines have it; the FADT may name it.
pub const CENTURY: u8 = 0x32;

/// Bit 7 of the index masks NMIs and is no part of the address.
const INDEX: u8 = 0x7f;
const SIZE: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
/// Register A: divider 32.768 kHz, rate 1024 Hz, and no update in progress (bit 7), ever.
const STATUS_A: u8 = 0x0a;
const STATUS_A_VALUE: u8 = 0x26;
/// Register B: number format and hours.
const STATUS_B: u8 = 0x0b;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// What a guest may set of it: no interrupts.
const STATUS_B_WRITABLE: u8 = BINARY | HOURS_24 | 1;
/// Register C: no interrupt is pending.
const STATUS_C: u8 = 0x0c;
/// Register D: time and memory are valid.
const STATUS_D: u8 = 0x0d;
const VALID: u8 = 1 << 7;

/// A moment as the chip shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Moment {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
}

struct Rtc {
    index: u8,
    memory: [u8; SIZE],
    /// The time shown until seconds or register A are read again: the parts of a time fit together.
    shown: Moment,
    taken: Option<Instant>,
    /// Seconds since 1970 that it shows for ever.
    stopped: Option<u64>,
}

/// Places the clock. A guest kernel that has kvmclock needs no other source of the time, so for it the clock is better
/// not `listed` in ACPI: its driver would read it some fifty times at start. Other kernels need it to know the date.
pub fn place(builder: &mut Builder<'_>, listed: bool) {
    let device = Arc::new(Mutex::new(Rtc::new(builder.deterministic.map(|how| how.date))));
    let hid = listed.then_some(HID_RTC);
    builder.ports.push(PlacedPorts { name: "rtc".into(), base: PORT, len: 2, gsi: None, hid, device });
}

impl Rtc {
    fn new(stopped: Option<u64>) -> Self {
        let mut memory = [0; SIZE];
        memory[usize::from(STATUS_B)] = HOURS_24;
        Self { index: 0, memory, shown: Moment::default(), taken: None, stopped }
    }

    fn time(&mut self, afresh: bool) -> Moment {
        if afresh || self.taken.is_none_or(|taken| taken.elapsed() >= Duration::from_secs(1)) {
            let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
            self.shown = moment(self.stopped.unwrap_or_else(now));
            self.taken = Some(Instant::now());
        }
        self.shown
    }

    fn register(&mut self) -> u8 {
        let time = self.time(matches!(self.index, SECONDS | STATUS_A));
        let format = self.memory[usize::from(STATUS_B)];
        let number = |value: u8| if format & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) };
        match self.index {
            SECONDS => number(time.second),
            MINUTES => number(time.minute),
            HOURS if format & HOURS_24 != 0 => number(time.hour),
            HOURS => number((time.hour + 11) % 12 + 1) | if time.hour >= 12 { 0x80 } else { 0 },
            WEEKDAY => number(time.weekday),
            DAY => number(time.day),
            MONTH => number(time.month),
            YEAR => number(time.year),
            CENTURY => number(time.century),
            STATUS_A => STATUS_A_VALUE,
            STATUS_C => 0,
            STATUS_D => VALID,
            other => self.memory.get(usize::from(other)).copied().unwrap_or(0),
        }
    }
}

impl BusDeviceMut for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, Some(first)) = (offset, data.first_mut()) {
            *first = self.register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match (offset, self.index) {
            (0, _) => self.index = value & INDEX,
            (1, STATUS_B) => self.memory[usize::from(STATUS_B)] = value & STATUS_B_WRITABLE,
            (1, index) => self.memory.iter_mut().skip(index.into()).take(1).for_each(|cell| *cell = value),
            _ => {}
        }
    }
}

/// The calendar's view of `seconds` since 1970. Years are counted from March, so that a leap day is the last of one.
fn moment(seconds: u64) -> Moment {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let since_year_0 = days.saturating_add(DAYS_TO_1970);
    let day_of_era = since_year_0 % DAYS_PER_400_YEARS;
    // Leap days so far in this era do not count as parts of 365-day years.
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = since_year_0 / DAYS_PER_400_YEARS * 400 + year_of_era + u64::from(month <= 2);
    Moment {
        second: (second % 60) as u8,
        minute: (second / 60 % 60) as u8,
        hour: (second / 3_600) as u8,
        // 1970 began on a Thursday.
        weekday: ((days + 4) % 7 + 1) as u8,
        day: day as u8,
        month: month as u8,
        year: (year % 100) as u8,
        century: (year / 100 % 100) as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    fn set(rtc: &mut Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    #[test]
    fn the_calendar_is_right_at_its_corners() {
        let cases = [
            (0, (1970, 1, 1, 5), (0, 0, 0)),
            (951_782_399, (2000, 2, 28, 2), (23, 59, 59)),
            (951_782_400, (2000, 2, 29, 3), (0, 0, 0)),
            (978_307_199, (2000, 12, 31, 1), (23, 59, 59)),
            (1_709_251_199, (2024, 2, 29, 5), (23, 59, 59)),
            (1_795_392_000, (2026, 11, 23, 2), (0, 0, 0)),
            (4_107_542_400, (2100, 3, 1, 2), (0, 0, 0)),
        ];
        for (seconds, (year, month, day, weekday), (hour, minute, second)) in cases {
            let m = moment(seconds);
            let date = (u32::from(m.century) * 100 + u32::from(m.year), m.month, m.day, m.weekday);
            assert_eq!(date, (year, month, day, weekday), "{seconds}");
            assert_eq!((m.hour, m.minute, m.second), (hour, minute, second), "{seconds}");
        }
        moment(u64::MAX);
    }

    #[test]
    fn a_kernel_reads_the_time_at_once() {
        let mut rtc = Rtc::new(None);
        assert_eq!(get(&mut rtc, STATUS_A) & 0x80, 0, "no update in progress");
        assert_eq!(get(&mut rtc, STATUS_D), VALID);
        assert_eq!(get(&mut rtc, STATUS_B), HOURS_24);
        assert_eq!(get(&mut rtc, STATUS_C), 0);
        rtc.shown = moment(1_795_435_199);
        rtc.taken = Some(Instant::now() + Duration::from_secs(1000));
        let time: Vec<_> =
            [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES].iter().map(|&index| get(&mut rtc, index | 0x80)).collect();
        assert_eq!(time, [0x20, 0x26, 0x11, 0x23, 0x11, 0x59]);
        rtc.shown.hour = 12;
        set(&mut rtc, STATUS_B, 0xff);
        assert_eq!(get(&mut rtc, STATUS_B), STATUS_B_WRITABLE, "no interrupts can be turned on");
        assert_eq!(get(&mut rtc, YEAR), 26);
        set(&mut rtc, STATUS_B, 0);
        assert_eq!(get(&mut rtc, HOURS), 0x92);
        rtc.shown.hour = 0;
        assert_eq!(get(&mut rtc, HOURS), 0x12);
    }

    #[test]
    fn the_time_is_the_hosts_and_memory_keeps_what_is_written() {
        let mut rtc = Rtc::new(None);
        set(&mut rtc, YEAR, 0x77);
        get(&mut rtc, SECONDS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!([moment(now), moment(now - 1)].contains(&rtc.shown));
        set(&mut rtc, 0x40, 0x5a);
        assert_eq!(get(&mut rtc, 0x40), 0x5a);
        for index in 0..=0xff {
            set(&mut rtc, index, 0xff);
            get(&mut rtc, index);
        }
        rtc.write(0, &[]);
        rtc.write(9, &[1]);
        let mut wide = [0; 4];
        rtc.read(0, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }
}
