//! Civil time and its form in the RTC's registers.

/// A date and time of day, as the registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 (Sunday) to 7.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

const DAY: i64 = 86_400;

/// Days from 1970-01-01 to the given date of the Gregorian calendar. A month outside 1 to 12 carries into the year.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March here, so that the leap day is a year's last.
    let months = (month - 3).rem_euclid(12);
    let year = year + (month - 3).div_euclid(12);
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 153 days in five months from March on; 719468 days from 0000-03-01 to 1970-01-01.
    year * 365 + leap_days + (153 * months + 2) / 5 + day - 1 - 719_468
}

impl Civil {
    /// The date and time `seconds` after the Unix epoch.
    pub(super) fn from_epoch(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // An estimate that is never late, then the exact year.
        let mut year = 1970 + if days < 0 { days.div_euclid(365) } else { days / 366 };
        while days_since_epoch(year + 1, 1, 1) <= days {
            year += 1 + (days - days_since_epoch(year + 1, 1, 1)) / 366;
        }
        let month = (2..=12).take_while(|m| days_since_epoch(year, *m, 1) <= days).last().unwrap_or(1);
        Self {
            year,
            month: month as u8,
            day: (days - days_since_epoch(year, month, 1) + 1) as u8,
            // 1970-01-01 was a Thursday.
            weekday: (days + 4).rem_euclid(7) as u8 + 1,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since the Unix epoch. Fields out of their range carry into the next larger one.
    pub(super) fn to_epoch(self) -> i64 {
        let Self { year, month, day, weekday: _, hour, minute, second } = self;
        let days = days_since_epoch(year, month.into(), day.into());
        days * DAY + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second)
    }
}

/// How register B says numbers are written (MC146818 datasheet, "Register B").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Binary instead of BCD.
    pub(super) binary: bool,
    /// Hours 0 to 23 instead of 1 to 12 with bit 7 for PM.
    pub(super) hours_24: bool,
}

impl Format {
    /// A number from 0 to 99 as a register holds it.
    pub(super) fn encode(self, value: u8) -> u8 {
        if self.binary { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    /// What a register's content means; digits above 9 count as they are.
    pub(super) fn decode(self, register: u8) -> u8 {
        if self.binary { register } else { (register >> 4) * 10 + (register & 0xf) }
    }

    /// An hour from 0 to 23 as the register holds it.
    pub(super) fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let on_dial = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(on_dial) | if hour >= 12 { 0x80 } else { 0 }
    }

    /// The hour that the register's content means.
    pub(super) fn decode_hour(self, register: u8) -> u8 {
        if self.hours_24 {
            return self.decode(register);
        }
        self.decode(register & 0x7f) % 12 + if register & 0x80 != 0 { 12 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let at = |s| {
            let c = Civil::from_epoch(s);
            (c.year, c.month, c.day, c.weekday, c.hour, c.minute, c.second)
        };
        assert_eq!(at(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(at(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(at(1_709_164_798), (2024, 2, 28, 4, 23, 59, 58));
        assert_eq!(at(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0), "2100 is no leap year");
        assert_eq!(at(-1), (1969, 12, 31, 4, 23, 59, 59));
    }

    #[test]
    fn there_and_back() {
        let mut seconds = -40_000_000_000i64;
        while seconds < 60_000_000_000 {
            assert_eq!(Civil::from_epoch(seconds).to_epoch(), seconds);
            seconds += 86_399 * 17 + 3;
        }
    }

    #[test]
    fn hours_in_all_formats() {
        for (binary, hours_24) in [(false, false), (false, true), (true, false), (true, true)] {
            let format = Format { binary, hours_24 };
            for hour in 0..24 {
                assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
            }
        }
        let bcd_12 = Format { binary: false, hours_24: false };
        assert_eq!([0, 1, 12, 13, 23].map(|h| bcd_12.encode_hour(h)), [0x12, 0x01, 0x92, 0x81, 0x91]);
    }
}
