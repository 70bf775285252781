//! The registers of the MC146818 as a function of time.

use super::calendar::{Civil, Format};
use super::cmos;
use crate::services::Clock;
use crate::state::Inspector;
use serde::{Deserialize, Serialize};

const NS_PER_S: i128 = 1_000_000_000;
/// The update-in-progress flag comes this long before an update (datasheet, "Update Cycle").
const UIP_NS: i128 = 244_000;
/// The wall clock may be moved by the host: an alarm far away is looked at anew after this long.
const LOOK_AGAIN_NS: i128 = 600 * NS_PER_S;
const RAM_LEN: usize = 128;

/// Register numbers (datasheet figure 11).
mod reg {
    pub const SECONDS: u8 = 0;
    pub const SECONDS_ALARM: u8 = 1;
    pub const MINUTES: u8 = 2;
    pub const MINUTES_ALARM: u8 = 3;
    pub const HOURS: u8 = 4;
    pub const HOURS_ALARM: u8 = 5;
    pub const WEEKDAY: u8 = 6;
    pub const DAY: u8 = 7;
    pub const MONTH: u8 = 8;
    pub const YEAR: u8 = 9;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
}

const A_UIP: u8 = 0x80;
/// Divider chain, the time base: 010 is 32768 Hz, 110 and 111 hold it in reset.
const A_DIVIDER_RESET: u8 = 0x60;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_IRQ: u8 = 0x80;
/// Interrupt enables in register B and flags in register C have the same places.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;

/// The two clocks, read once for an access.
pub(super) struct Now {
    /// Guest time in nanoseconds.
    ns: u64,
    /// The guest's wall clock in nanoseconds since the Unix epoch.
    wall: i128,
}

impl Now {
    pub(super) fn of(clock: &dyn Clock) -> Self {
        let (seconds, ns) = clock.wall_clock();
        Self { ns: clock.now_ns(), wall: i128::from(seconds) * NS_PER_S + i128::from(ns) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Regs {
    /// The last byte written to the index port, with the NMI mask in bit 7.
    index: u8,
    /// Alarm registers, A, B, RAM; and the time while it stands still. C is in `flags`.
    ram: Vec<u8>,
    /// Register C without its bit 7.
    flags: u8,
    /// What the clock shows less the wall clock: seconds, and nanoseconds to add to them.
    offset_s: i64,
    offset_ns: u32,
    /// The time shown, in seconds since the epoch, up to which alarm and update flags are worked out.
    seen: i64,
    /// Guest time at which the periodic divider started, and the periods up to which its flag is worked out.
    period_base_ns: u64,
    periods_seen: u64,
}

impl Regs {
    pub(super) fn new(now: &Now) -> Self {
        let mut ram = vec![0; RAM_LEN];
        // 32768 Hz, 1024 Hz periodic rate; 24 hours, BCD: what every firmware sets.
        ram[usize::from(reg::A)] = 0x26;
        ram[usize::from(reg::B)] = B_24_HOURS;
        let seen = i64::try_from(now.wall.div_euclid(NS_PER_S)).unwrap_or(0);
        Self { index: 0, ram, flags: 0, offset_s: 0, offset_ns: 0, seen, period_base_ns: now.ns, periods_seen: 0 }
    }

    /// Whether a restored state keeps what the arithmetic here relies on.
    pub(super) fn is_sane(&self) -> bool {
        // Thirty thousand years and more: all that the registers can say.
        let range = -1_000_000_000_000..=1_000_000_000_000;
        self.ram.len() == RAM_LEN && range.contains(&self.offset_s) && range.contains(&self.seen)
    }

    fn get(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn put(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    pub(super) fn set_ram(&mut self, index: u8, value: u8) {
        if index > reg::D {
            self.put(index, value);
        }
    }

    pub(super) fn select(&mut self, value: u8) {
        self.index = value;
    }

    pub(super) fn nmi_masked(&self) -> bool {
        self.index & 0x80 != 0
    }

    /// The RESET pin clears interrupt enables, the square wave and the flags (datasheet, "RESET").
    pub(super) fn reset_pin(&mut self) {
        self.index = 0;
        self.flags = 0;
        let b = self.get(reg::B) & !(PERIODIC | ALARM | UPDATE | 0x08);
        self.put(reg::B, b);
    }

    fn format(&self) -> Format {
        let b = self.get(reg::B);
        Format { binary: b & B_BINARY != 0, hours_24: b & B_24_HOURS != 0 }
    }

    fn divider_held(&self) -> bool {
        self.get(reg::A) & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Whether the seconds advance.
    fn running(&self) -> bool {
        self.get(reg::B) & B_SET == 0 && !self.divider_held()
    }

    /// The time shown, in nanoseconds since the epoch, if the clock runs.
    fn shown_ns(&self, now: &Now) -> i128 {
        now.wall + i128::from(self.offset_s) * NS_PER_S + i128::from(self.offset_ns)
    }

    fn shown(&self, now: &Now) -> i64 {
        i64::try_from(self.shown_ns(now).div_euclid(NS_PER_S)).unwrap_or(0)
    }

    /// A running clock's time, written out into the time registers.
    fn write_out(&mut self, now: &Now) {
        let (civil, format) = (Civil::from_epoch(self.shown(now)), self.format());
        let Civil { year, month, day, weekday, hour, minute, second } = civil;
        self.put(reg::SECONDS, format.encode(second));
        self.put(reg::MINUTES, format.encode(minute));
        self.put(reg::HOURS, format.encode_hour(hour));
        self.put(reg::WEEKDAY, format.encode(weekday));
        self.put(reg::DAY, format.encode(day));
        self.put(reg::MONTH, format.encode(month));
        self.put(reg::YEAR, format.encode(year.rem_euclid(100) as u8));
        self.put(cmos::CENTURY, format.encode(year.div_euclid(100).rem_euclid(100) as u8));
    }

    /// Starts the clock from what the time registers say. `phase_ns`: how far into the second it is.
    fn take_in(&mut self, now: &Now, phase_ns: i128) {
        let format = self.format();
        let number = |index| format.decode(self.get(index));
        let civil = Civil {
            year: i64::from(number(cmos::CENTURY)) * 100 + i64::from(number(reg::YEAR)),
            month: number(reg::MONTH),
            day: number(reg::DAY),
            weekday: 1,
            hour: format.decode_hour(self.get(reg::HOURS)),
            minute: number(reg::MINUTES),
            second: number(reg::SECONDS),
        };
        self.seen = civil.to_epoch();
        let offset = i128::from(self.seen) * NS_PER_S + phase_ns - now.wall;
        self.offset_s = i64::try_from(offset.div_euclid(NS_PER_S)).unwrap_or(0);
        self.offset_ns = offset.rem_euclid(NS_PER_S) as u32;
    }

    fn phase(&self, now: &Now) -> i128 {
        self.shown_ns(now).rem_euclid(NS_PER_S)
    }

    /// Sets the flags of what has happened since the last look.
    pub(super) fn catch_up(&mut self, now: &Now) {
        if self.running() {
            let shown = self.shown(now);
            if shown > self.seen {
                self.flags |= UPDATE;
                if self.next_alarm(self.seen).is_some_and(|at| at <= shown) {
                    self.flags |= ALARM;
                }
            }
            self.seen = shown;
        }
        if let Some(period) = self.period_ticks() {
            let periods = self.divider_ticks(now) / period;
            if periods > self.periods_seen {
                self.flags |= PERIODIC;
            }
            self.periods_seen = periods;
        }
    }

    /// Ticks of 32768 Hz since the periodic divider started.
    fn divider_ticks(&self, now: &Now) -> u64 {
        let ns = now.ns.saturating_sub(self.period_base_ns);
        (u128::from(ns) * 32_768 / 1_000_000_000) as u64
    }

    /// Ticks of 32768 Hz between periodic interrupts (datasheet table 5), if there are any.
    fn period_ticks(&self) -> Option<u64> {
        if self.divider_held() {
            return None;
        }
        match self.get(reg::A) & 0x0f {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn restart_periods(&mut self, now: &Now) {
        self.period_base_ns = now.ns;
        self.periods_seen = 0;
    }

    /// The first second after `after` at which the alarm registers match, within a day.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let format = self.format();
        // Two most significant bits set: any value matches (datasheet, "Alarm Registers").
        let matches = |register: u8, value: u8| register & 0xc0 == 0xc0 || register == value;
        let (hours, minutes, seconds) =
            (self.get(reg::HOURS_ALARM), self.get(reg::MINUTES_ALARM), self.get(reg::SECONDS_ALARM));
        let mut at = after.saturating_add(1);
        let end = at.saturating_add(86_400);
        while at < end {
            let civil = Civil::from_epoch(at);
            if !matches(hours, format.encode_hour(civil.hour)) {
                at += 3600 - at.rem_euclid(3600);
            } else if !matches(minutes, format.encode(civil.minute)) {
                at += 60 - at.rem_euclid(60);
            } else if !matches(seconds, format.encode(civil.second)) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// The level of the interrupt output.
    pub(super) fn interrupt(&self) -> bool {
        self.flags & self.get(reg::B) & (PERIODIC | ALARM | UPDATE) != 0
    }

    /// Whether an interrupt of this kind is enabled and has not happened yet.
    fn awaits(&self, kind: u8) -> bool {
        self.get(reg::B) & !self.flags & kind != 0
    }

    pub(super) fn periodic_deadline(&self, _now: &Now) -> Option<u64> {
        let period = self.period_ticks().filter(|_| self.awaits(PERIODIC))?;
        let ticks = u128::from(self.periods_seen.saturating_add(1)) * u128::from(period);
        let ns = (ticks * 1_000_000_000).div_ceil(32_768);
        Some(self.period_base_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX - 1)).min(u64::MAX - 1))
    }

    pub(super) fn seconds_deadline(&self, now: &Now) -> Option<u64> {
        if !self.running() {
            return None;
        }
        let update = self.awaits(UPDATE).then(|| self.seen.saturating_add(1));
        let alarm = self.awaits(ALARM).then(|| self.next_alarm(self.seen)).flatten();
        let at = update.into_iter().chain(alarm).min()?;
        let wait = (i128::from(at) * NS_PER_S - self.shown_ns(now)).clamp(1, LOOK_AGAIN_NS);
        Some(now.ns.saturating_add(wait as u64).min(u64::MAX - 1))
    }

    /// Reads the selected register.
    pub(super) fn read(&mut self, now: &Now) -> u8 {
        match self.index & 0x7f {
            reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | cmos::CENTURY => {
                if self.running() {
                    self.write_out(now);
                }
                self.get(self.index & 0x7f)
            }
            reg::A => {
                let updating = self.running() && self.phase(now) >= NS_PER_S - UIP_NS;
                self.get(reg::A) | if updating { A_UIP } else { 0 }
            }
            reg::C => {
                let value = self.flags | if self.interrupt() { C_IRQ } else { 0 };
                self.flags = 0;
                value
            }
            // Valid RAM and time: the battery never runs out.
            reg::D => 0x80,
            index => self.get(index),
        }
    }

    /// Seconds from the host's clock to this one.
    pub(super) fn offset(&self) -> i64 {
        self.offset_s
    }

    /// Writes the selected register.
    pub(super) fn write(&mut self, value: u8, now: &Now) {
        match self.index & 0x7f {
            index @ (reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | cmos::CENTURY) => {
                let running = self.running();
                if running {
                    self.write_out(now);
                }
                self.put(index, value);
                if running {
                    self.take_in(now, self.phase(now));
                }
            }
            reg::A => self.write_a(value & !A_UIP, now),
            reg::B => self.write_b(value, now),
            reg::C | reg::D => {}
            index => self.put(index, value),
        }
    }

    fn write_a(&mut self, value: u8, now: &Now) {
        let (was_running, was_held, old) = (self.running(), self.divider_held(), self.get(reg::A));
        if was_running {
            self.write_out(now);
        }
        self.put(reg::A, value);
        if value & 0x7f != old & 0x7f {
            self.restart_periods(now);
        }
        // Released from reset, the divider takes half a second to the first update (datasheet, "Divider Control").
        if was_held && self.running() {
            self.take_in(now, NS_PER_S / 2);
        }
    }

    fn write_b(&mut self, value: u8, now: &Now) {
        let was_running = self.running();
        if was_running {
            self.write_out(now);
        }
        // SET going on aborts updates and their interrupt (datasheet, "Register B").
        let value = if value & B_SET != 0 { value & !UPDATE } else { value };
        self.put(reg::B, value);
        if !was_running && self.running() {
            self.take_in(now, self.phase(now));
        }
    }

    pub(super) fn inspect(&mut self, out: &mut Inspector, now: &Now) {
        if self.running() {
            self.write_out(now);
        }
        let format = self.format();
        let number = |index| format.decode(self.get(index));
        let (hour, minute, second) =
            (format.decode_hour(self.get(reg::HOURS)), number(reg::MINUTES), number(reg::SECONDS));
        let (century, year, month, day) =
            (number(cmos::CENTURY), number(reg::YEAR), number(reg::MONTH), number(reg::DAY));
        out.field("time", format_args!("{century:02}{year:02}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"));
        let Self { index, ram: _, flags, offset_s, offset_ns, seen: _, period_base_ns: _, periods_seen: _ } = self;
        out.field("index", format_args!("{index:#04x}"));
        out.field("flags", format_args!("{flags:#04x}"));
        out.field("offset", format_args!("{offset_s} s + {offset_ns} ns"));
        out.field("a", format_args!("{:#04x}", self.get(reg::A)));
        out.field("b", format_args!("{:#04x}", self.get(reg::B)));
    }
}
