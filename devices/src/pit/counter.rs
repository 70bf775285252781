//! One counter of the 8254, in terms of ticks of its input clock.

use crate::state::Inspector;
use serde::{Deserialize, Serialize};

/// Which bytes of the count are read and written (control word bits 5:4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    /// Low byte first.
    Both,
}

/// A counting element that is loaded: where it is in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// Tick at which the count was in the counter undiminished. One tick after the write (datasheet "Mode
    /// Definitions": a count is loaded with the next clock pulse).
    start: i64,
    /// The count, 1 to 65536.
    count: i64,
    /// The gate holds the counter since this tick.
    held_since: Option<i64>,
}

/// A counter: mode, count, latches, gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// Count register, 1 to 65536; `None` after a control word, until a count is written.
    reload: Option<i64>,
    run: Option<Run>,
    /// Modes 2 and 3: tick at which the count register replaces the count under way.
    reload_at: Option<i64>,
    /// Low byte written, high byte to come.
    low_written: Option<u8>,
    /// The next read of an unlatched count gives the high byte.
    read_high: bool,
    /// Latched count, and how many of its bytes are still to be read.
    latched: Option<(u16, u8)>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter that nobody has programmed; the datasheet leaves its state open.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: Access::Both,
            gate,
            reload: None,
            run: None,
            reload_at: None,
            low_written: None,
            read_high: false,
            latched: None,
            latched_status: None,
        }
    }

    /// A control word for this counter (its low six bits); counter latch commands too.
    pub(super) fn control(&mut self, word: u8, now: i64) {
        let access = match word >> 4 & 3 {
            0 => return self.latch_count(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = match word >> 1 & 7 {
            // Bit 3 does not matter in modes 2 and 3 (datasheet figure 7).
            mode @ (6 | 7) => mode & 3,
            mode => mode,
        };
        *self = Self { mode, bcd: word & 1 != 0, access, ..Self::new(self.gate) };
    }

    /// A byte of the count.
    pub(super) fn write(&mut self, byte: u8, now: i64) {
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, Some(low)) => u16::from(byte) << 8 | u16::from(low),
            (Access::Both, None) => {
                self.low_written = Some(byte);
                // Mode 0: the first byte stops the counting and takes the output low.
                if self.mode == 0 {
                    self.run = None;
                    self.reload = None;
                }
                return;
            }
        };
        self.load(self.decode(count), now);
    }

    fn load(&mut self, count: i64, now: i64) {
        self.advance(now);
        self.reload = Some(count);
        match (self.mode, &self.run) {
            // Triggered modes wait for the gate; a count under way goes on.
            (1 | 5, _) => {}
            (2 | 3, Some(run)) => self.reload_at = Some(self.next_boundary(run, now)),
            (2 | 3, None) if !self.gate => {}
            _ => self.start(now),
        }
    }

    /// Loads the counting element with the next clock pulse.
    fn start(&mut self, now: i64) {
        self.reload_at = None;
        self.run = self.reload.map(|count| {
            let start = now.saturating_add(1);
            let held_since = (self.pauses() && !self.gate).then_some(start);
            Run { start, count, held_since }
        });
    }

    /// Modes in which a low gate holds the count (datasheet figure 21).
    fn pauses(&self) -> bool {
        matches!(self.mode, 0 | 4)
    }

    /// Where a new count may replace the old: the end of the period, or in mode 3 of the half-cycle.
    fn next_boundary(&self, run: &Run, now: i64) -> i64 {
        let elapsed = now.saturating_sub(run.start);
        if elapsed < 0 {
            return run.start;
        }
        let period = run.start + elapsed - elapsed % run.count;
        let half = high_ticks(run.count);
        if self.mode == 3 && elapsed % run.count < half { period + half } else { period + run.count }
    }

    /// Carries out a reload that has come due.
    fn advance(&mut self, now: i64) {
        let (Some(at), Some(run), Some(count)) = (self.reload_at, self.run, self.reload) else { return };
        if now < at {
            return;
        }
        let was_high_half = self.mode == 3 && at > run.start && (at - run.start) % run.count != 0;
        // After the high half of a square wave the new count's low half follows.
        let start = if was_high_half { at - high_ticks(count) } else { at };
        self.run = Some(Run { start, count, held_since: None });
        self.reload_at = None;
    }

    /// Ticks since the load, not counting those while held; negative before the load.
    fn elapsed(run: &Run, now: i64) -> i64 {
        run.held_since.map_or(now, |at| at.min(now)).saturating_sub(run.start)
    }

    /// The level of the gate.
    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    /// Sets the gate's level.
    pub(super) fn set_gate(&mut self, gate: bool, now: i64) {
        self.advance(now);
        if std::mem::replace(&mut self.gate, gate) == gate {
            return;
        }
        match self.mode {
            0 | 4 => {
                if let Some(run) = &mut self.run {
                    match run.held_since.take() {
                        Some(since) if gate => run.start += now.max(since) - since,
                        since => run.held_since = since.or(Some(now.max(run.start))),
                    }
                }
            }
            1 | 5 if gate => self.start(now),
            1 | 5 => {}
            // Rate generators: low stops and takes the output high, rising starts anew.
            _ if gate => self.start(now),
            _ => {
                self.run = None;
                self.reload_at = None;
            }
        }
    }

    /// The level of OUT.
    pub(super) fn output(&mut self, now: i64) -> bool {
        self.advance(now);
        let Some(run) = &self.run else { return self.mode != 0 };
        let elapsed = Self::elapsed(run, now);
        if elapsed < 0 {
            // Programmed but not loaded: still the level of before.
            return self.mode != 0;
        }
        match self.mode {
            0 | 1 => elapsed >= run.count,
            2 => elapsed % run.count != run.count - 1 || run.count == 1,
            3 => elapsed % run.count < high_ticks(run.count),
            _ => elapsed != run.count,
        }
    }

    /// The tick after `now` at which OUT rises next.
    pub(super) fn next_rise(&mut self, now: i64) -> Option<i64> {
        self.advance(now);
        let run = self.run.as_ref().filter(|run| run.held_since.is_none())?;
        let once = match self.mode {
            0 | 1 => run.start.saturating_add(run.count),
            4 | 5 => run.start.saturating_add(run.count + 1),
            _ => return Some(self.next_period(run, now)),
        };
        (once > now).then_some(once)
    }

    fn next_period(&self, run: &Run, now: i64) -> i64 {
        let elapsed = now.saturating_sub(run.start);
        let next = if elapsed < 0 { run.start + run.count } else { now - elapsed % run.count + run.count };
        // The replacement of the count may come first and move the edges: look again then.
        self.reload_at.filter(|at| *at > now).map_or(next, |at| next.min(at))
    }

    /// Ticks of a period, if this is a square wave under way.
    pub(super) fn square_wave_ticks(&self) -> Option<u64> {
        let run = self.run.as_ref().filter(|_| self.mode == 3)?;
        u64::try_from(run.count).ok()
    }

    /// What the counting element holds, as a guest reads it.
    fn value(&mut self, now: i64) -> u16 {
        self.advance(now);
        let Some(run) = &self.run else { return self.encode(self.reload.unwrap_or(0)) };
        let elapsed = Self::elapsed(run, now).max(0);
        let left = match self.mode {
            2 => run.count - elapsed % run.count,
            // Counts down by two in each half; an odd count sheds its one first (datasheet "Mode 3").
            3 => {
                let (phase, half) = (elapsed % run.count, high_ticks(run.count));
                (run.count & !1) - 2 * if phase < half { phase } else { phase - half }
            }
            // Goes on from the top after zero.
            _ => run.count - elapsed,
        };
        self.encode(left)
    }

    /// Latches the count; a latched count waits for its reader (datasheet "Counter Latch Command").
    pub(super) fn latch_count(&mut self, now: i64) {
        if self.latched.is_none() {
            let bytes = if self.access == Access::Both { 2 } else { 1 };
            self.latched = Some((self.value(now), bytes));
        }
    }

    /// Latches the status byte (datasheet figure 11).
    pub(super) fn latch_status(&mut self, now: i64) {
        if self.latched_status.is_none() {
            let output = self.output(now);
            let loaded = self.reload_at.is_none() && self.run.is_some_and(|run| run.start <= now);
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            let status = u8::from(output) << 7 | u8::from(!loaded) << 6;
            self.latched_status = Some(status | access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    /// A read of the counter's port.
    pub(super) fn read(&mut self, now: i64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some((value, bytes)) = self.latched.take() {
            let [low, high] = value.to_le_bytes();
            return match (self.access, bytes) {
                (Access::Both, 2) => {
                    self.latched = Some((value, 1));
                    low
                }
                (Access::Low, _) => low,
                _ => high,
            };
        }
        let [low, high] = self.value(now).to_le_bytes();
        match self.access {
            Access::Low => low,
            Access::High => high,
            Access::Both => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
        }
    }

    /// Written count to ticks; 0 is the largest count.
    fn decode(&self, written: u16) -> i64 {
        let count = if self.bcd {
            (0..4).rev().fold(0, |acc, digit| acc * 10 + i64::from(written >> (4 * digit) & 0xf))
        } else {
            i64::from(written)
        };
        match count {
            0 => self.modulus(),
            count => count,
        }
    }

    fn modulus(&self) -> i64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn encode(&self, count: i64) -> u16 {
        let count = count.rem_euclid(self.modulus());
        if !self.bcd {
            return count as u16;
        }
        [1000, 100, 10, 1].into_iter().fold(0, |acc, unit| acc << 4 | (count / unit % 10) as u16)
    }

    /// Whether a restored counter keeps what the arithmetic here relies on.
    pub(super) fn is_sane(&self) -> bool {
        let range = 1..=0x1_0000;
        let ticks = 0..i64::MAX / 2;
        self.mode < 6
            && self.reload.is_none_or(|count| range.contains(&count))
            && self.reload_at.is_none_or(|at| ticks.contains(&at))
            && self.run.is_none_or(|run| {
                range.contains(&run.count)
                    && (-0x1_0000..i64::MAX / 2).contains(&run.start)
                    && run.held_since.is_none_or(|at| ticks.contains(&at))
            })
    }

    pub(super) fn inspect(&mut self, out: &mut Inspector, now: i64) {
        let output = self.output(now);
        let value = self.value(now);
        let Self {
            mode,
            bcd,
            access,
            gate,
            reload,
            run: _,
            reload_at: _,
            low_written: _,
            read_high: _,
            latched,
            latched_status,
        } = self;
        out.field("mode", mode);
        out.field("bcd", bcd);
        out.field("access", format_args!("{access:?}"));
        out.field("gate", gate);
        out.field("out", output);
        out.field("count", format_args!("{value:#06x}"));
        out.field("reload", format_args!("{reload:?}"));
        out.field("latched", format_args!("{latched:?}"));
        out.field("latched_status", format_args!("{latched_status:?}"));
    }
}

/// How long a square wave of `count` is high (datasheet "Mode 3": (N + 1) / 2 for odd counts).
fn high_ticks(count: i64) -> i64 {
    (count + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programmed(control: u8, count: u16) -> Counter {
        let mut counter = Counter::new(true);
        counter.control(0x30 | control, 0);
        let [low, high] = count.to_le_bytes();
        counter.write(low, 0);
        counter.write(high, 0);
        counter
    }

    fn wave(counter: &mut Counter, ticks: std::ops::Range<i64>) -> String {
        ticks.map(|t| if counter.output(t) { 'H' } else { 'l' }).collect()
    }

    #[test]
    fn waves_of_all_modes() {
        assert_eq!(wave(&mut programmed(0x0, 4), 0..9), "lllllHHHH");
        assert_eq!(wave(&mut programmed(0x4, 3), 0..11), "HHHlHHlHHlH");
        assert_eq!(wave(&mut programmed(0x6, 4), 0..10), "HHHllHHllH");
        assert_eq!(wave(&mut programmed(0x6, 5), 0..12), "HHHHllHHHllH");
        assert_eq!(wave(&mut programmed(0x8, 3), 0..8), "HHHHlHHH");
        for mode in [0x2, 0xa] {
            let mut counter = programmed(mode, 3);
            assert_eq!(wave(&mut counter, 0..4), "HHHH", "no trigger yet");
            counter.set_gate(false, 4);
            counter.set_gate(true, 10);
            let expected = if mode == 2 { "HlllHHHH" } else { "HHHHlHHH" };
            assert_eq!(wave(&mut counter, 10..18), expected);
        }
    }

    #[test]
    fn rises_are_where_the_wave_rises() {
        for mode in [0u8, 4, 6, 8] {
            for count in [2u16, 3, 7, 8] {
                let mut counter = programmed(mode, count);
                let wave = wave(&mut counter, 0..60);
                let rises: Vec<i64> =
                    wave.as_bytes().windows(2).zip(1..).filter(|(w, _)| *w == b"lH").map(|w| w.1).collect();
                let mut found = Vec::new();
                let mut now = 0;
                while let Some(at) = counter.next_rise(now).filter(|at| *at < 60) {
                    found.push(at);
                    now = at;
                }
                assert_eq!(found, rises, "mode {} count {count}: {wave}", mode >> 1);
            }
        }
    }

    #[test]
    fn a_new_count_waits_for_the_period() {
        let mut counter = programmed(0x4, 10);
        counter.write(4, 5);
        counter.write(0, 5);
        assert_eq!(wave(&mut counter, 5..20), "HHHHHlHHHlHHHlH");
        let mut counter = programmed(0x6, 8);
        counter.write(4, 2);
        counter.write(0, 2);
        assert_eq!(wave(&mut counter, 0..14), "HHHHHllHHllHHl", "from the end of the half-cycle on");
    }

    #[test]
    fn mode_3_counts_by_two() {
        let mut counter = programmed(0x6, 8);
        assert_eq!((1..10).map(|t| counter.value(t)).collect::<Vec<_>>(), [8, 6, 4, 2, 8, 6, 4, 2, 8]);
        let mut counter = programmed(0x6, 5);
        assert_eq!((1..7).map(|t| counter.value(t)).collect::<Vec<_>>(), [4, 2, 0, 4, 2, 4]);
    }

    #[test]
    fn bcd_counts_in_tens() {
        let mut counter = programmed(0x1, 0x0100);
        assert_eq!([1, 2, 101, 102].map(|t| counter.value(t)), [0x100, 0x99, 0, 0x9999]);
        let mut counter = programmed(0x5, 0);
        assert_eq!([1, 2].map(|t| counter.value(t)), [0, 0x9999], "0 means 10000");
    }

    #[test]
    fn a_latch_waits_for_its_reader() {
        let mut counter = programmed(0x4, 0x1000);
        counter.control(0x00, 0x101);
        counter.control(0x00, 0x401);
        assert_eq!(counter.read(0x500), 0x00);
        assert_eq!(counter.read(0x600), 0x0f);
        assert_eq!(counter.read(0x501), 0x00, "not latched any more");
        assert_eq!(counter.read(0x501), 0x0b);
    }

    #[test]
    fn one_byte_access() {
        let mut counter = Counter::new(true);
        counter.control(0x14, 0);
        counter.write(0x80, 0);
        assert_eq!(counter.read(1), 0x80);
        counter.control(0x24, 1);
        counter.write(0x02, 1);
        assert_eq!(counter.read(3), 0x01);
    }

    #[test]
    fn a_gate_going_low_before_the_load_holds_everything() {
        let mut counter = programmed(0x0, 4);
        counter.set_gate(false, 0);
        assert_eq!(counter.value(50), 4);
        counter.set_gate(true, 50);
        assert_eq!(counter.next_rise(50), Some(54));
    }
}
