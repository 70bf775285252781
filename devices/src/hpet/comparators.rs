//! Registers and comparators of the HPET, without locks and without calls to the outside.

use super::PERIOD_FS;
use crate::state::Inspector;
use serde::{Deserialize, Serialize};

/// Register offsets (specification 2.3.1); timers from `TIMERS` in steps of `TIMER_STEP`.
mod reg {
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIGURATION: u64 = 0x010;
    pub const STATUS: u64 = 0x020;
    pub const COUNTER: u64 = 0x0F0;
    pub const TIMERS: u64 = 0x100;
    pub const TIMER_STEP: u64 = 0x20;
    pub const TIMER_CONFIGURATION: u64 = 0x00;
    pub const TIMER_COMPARATOR: u64 = 0x08;
    pub const TIMER_MESSAGE: u64 = 0x10;
}

const ENABLE: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;

/// Timer configuration bits (specification 2.3.8).
mod timer {
    pub const LEVEL: u64 = 1 << 1;
    pub const INTERRUPT: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const SET_VALUE: u64 = 1 << 6;
    pub const NARROW: u64 = 1 << 8;
    pub const ROUTE_SHIFT: u32 = 9;
    pub const ROUTE: u64 = 0x1F << ROUTE_SHIFT;
    pub const MESSAGE: u64 = 1 << 14;
    pub const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | NARROW | ROUTE | MESSAGE;
    /// Periodic, 64 bits wide, message-signalled interrupts.
    pub const CAPABILITIES: u64 = 1 << 4 | 1 << 5 | 1 << 15;
}

/// Nanoseconds a count.
const TICK_NS: u64 = PERIOD_FS as u64 / 1_000_000;

/// Periods below this do not each get a call of the timer service.
const SHORTEST_WAKE_NS: u64 = 10_000;

/// Where an interrupt goes by wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Route(usize),
    LegacyTimer,
    LegacyRtc,
}

/// What an expiry sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Pulse(Line),
    Message { address: u32, data: u32 },
}

/// One comparator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparator {
    /// The writable bits of its configuration.
    config: u64,
    value: u64,
    /// What was last written to the comparator: the period in periodic mode.
    period: u64,
    /// Message address in the high half, data in the low one.
    message: u64,
    /// Guest time of the next match, while the counter runs.
    due_ns: Option<u64>,
}

impl Comparator {
    /// After reset. The comparator's reset value is all ones (specification 2.3.9).
    fn power_on() -> Self {
        Self { config: 0, value: u64::MAX, period: 0, message: 0, due_ns: None }
    }

    fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// The bits that are compared.
    fn mask(&self) -> u64 {
        if self.has(timer::NARROW) { 0xFFFF_FFFF } else { u64::MAX }
    }

    /// Finds the next match. `passed`: a match just now is behind, not ahead.
    fn schedule(&mut self, counter: u64, now_ns: u64, passed: bool) {
        let mut ticks = self.value.wrapping_sub(counter) & self.mask();
        if ticks == 0 && passed {
            ticks = self.mask().saturating_add(1);
        }
        self.due_ns = (now_ns / TICK_NS).checked_add(ticks).and_then(|ticks| ticks.checked_mul(TICK_NS));
    }

    /// If a match has passed, moves on to the next one and says so. Several missed ones count as one.
    fn expire(&mut self, counter: u64, now_ns: u64) -> bool {
        if self.due_ns.is_none_or(|due| due > now_ns) {
            return false;
        }
        let period = self.period & self.mask();
        if self.has(timer::PERIODIC) && period != 0 {
            let behind = counter.wrapping_sub(self.value) & self.mask();
            let steps = (behind / period).wrapping_add(1);
            self.value = self.value.wrapping_add(steps.wrapping_mul(period)) & self.mask();
        }
        self.schedule(counter, now_ns, true);
        true
    }

    fn write_config(&mut self, value: u64, mask: u64) {
        self.config = (self.config & !mask | value & mask) & timer::WRITABLE;
        if self.has(timer::NARROW) {
            self.value &= 0xFFFF_FFFF;
            self.period &= 0xFFFF_FFFF;
        }
    }

    /// Writes the comparator. In periodic mode the accumulator changes only under the set-value bit, which then
    /// clears; what is written is the period in any case (specification 2.3.9.2.2).
    fn write_value(&mut self, value: u64, mask: u64) {
        let merge = |old: u64| old & !mask | value & mask;
        if !self.has(timer::PERIODIC) || self.has(timer::SET_VALUE) {
            self.value = merge(self.value) & self.mask();
        }
        self.period = merge(self.period) & self.mask();
        self.config &= !timer::SET_VALUE;
    }
}

/// The volatile state. It is saved as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volatile {
    config: u64,
    /// Level-triggered timers that fired, one bit each.
    status: u32,
    /// Running: what to add to guest time in ticks. Halted: the counter itself.
    counter: u64,
    timers: Vec<Comparator>,
}

impl Volatile {
    fn power_on(timers: usize) -> Self {
        Self { config: 0, status: 0, counter: 0, timers: vec![Comparator::power_on(); timers] }
    }
}

/// The HPET without its connections.
pub(super) struct Core {
    route_mask: u32,
    pub(super) state: Volatile,
}

impl Core {
    pub(super) fn new(timers: usize, route_mask: u32) -> Self {
        Self { route_mask, state: Volatile::power_on(timers) }
    }

    pub(super) fn reset(&mut self) {
        self.state = Volatile::power_on(self.state.timers.len());
    }

    pub(super) fn adopt(&mut self, state: Volatile) -> Result<(), String> {
        if state.timers.len() != self.state.timers.len() {
            return Err(format!("{} timers saved, {} present", state.timers.len(), self.state.timers.len()));
        }
        self.state = state;
        Ok(())
    }

    fn running(&self) -> bool {
        self.state.config & ENABLE != 0
    }

    /// Whether legacy replacement is in effect (specification 2.3.5: both bits).
    pub(super) fn legacy(&self) -> bool {
        self.state.config & (ENABLE | LEGACY) == ENABLE | LEGACY
    }

    fn counter(&self, now_ns: u64) -> u64 {
        if self.running() { (now_ns / TICK_NS).wrapping_add(self.state.counter) } else { self.state.counter }
    }

    fn set_counter(&mut self, value: u64, now_ns: u64) {
        self.state.counter = if self.running() { value.wrapping_sub(now_ns / TICK_NS) } else { value };
    }

    /// The wire of timer `index`.
    fn line(&self, index: usize) -> Line {
        match index {
            0 if self.legacy() => Line::LegacyTimer,
            1 if self.legacy() => Line::LegacyRtc,
            _ => {
                let config = self.state.timers.get(index).map_or(0, |t| t.config);
                Line::Route(((config & timer::ROUTE) >> timer::ROUTE_SHIFT) as usize)
            }
        }
    }

    /// Whether a level-triggered timer holds `line`.
    pub(super) fn level(&self, line: Line) -> bool {
        self.running()
            && self.state.status != 0
            && self.state.timers.iter().enumerate().any(|(index, t)| {
                let asserts = t.has(timer::LEVEL) && t.has(timer::INTERRUPT) && !t.has(timer::MESSAGE);
                asserts && self.state.status >> index & 1 != 0 && self.line(index) == line
            })
    }

    /// When timer `index` has to be looked at without the guest asking: its next match, if that interrupts. Periods
    /// too short to be kept up with are looked at in groups, so that a guest cannot keep the timer thread busy.
    pub(super) fn wake_ns(&self, index: usize) -> Option<u64> {
        let t = self.state.timers.get(index).filter(|t| t.has(timer::INTERRUPT))?;
        let hasty = t.has(timer::PERIODIC) && (1..SHORTEST_WAKE_NS / TICK_NS).contains(&(t.period & t.mask()));
        Some(t.due_ns?.saturating_add(if hasty { SHORTEST_WAKE_NS } else { 0 }))
    }

    /// Handles all matches up to now.
    pub(super) fn catch_up(&mut self, now_ns: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        if !self.running() {
            return outputs;
        }
        let counter = self.counter(now_ns);
        for index in 0..self.state.timers.len() {
            let Some(t) = self.state.timers.get_mut(index) else { continue };
            if !t.expire(counter, now_ns) {
                continue;
            }
            let (config, message) = (t.config, t.message);
            if config & timer::LEVEL != 0 {
                self.state.status |= 1 << index;
            }
            if config & timer::INTERRUPT == 0 {
                continue;
            }
            if config & timer::MESSAGE != 0 {
                outputs.push(Output::Message { address: (message >> 32) as u32, data: message as u32 });
            } else if config & timer::LEVEL == 0 {
                outputs.push(Output::Pulse(self.line(index)));
            }
        }
        outputs
    }

    fn reschedule(&mut self, now_ns: u64) {
        let (running, counter) = (self.running(), self.counter(now_ns));
        for t in &mut self.state.timers {
            if running {
                t.schedule(counter, now_ns, false);
            } else {
                t.due_ns = None;
            }
        }
    }

    /// Capabilities: revision 1, number of the last timer, 64-bit counter, legacy replacement, vendor Intel, period.
    pub(super) fn capabilities(&self) -> u64 {
        let last = self.state.timers.len() as u64 - 1;
        u64::from(PERIOD_FS) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | last << 8 | 1
    }

    /// Reads the 64-bit register at `offset`.
    pub(super) fn read(&self, offset: u64, now_ns: u64) -> u64 {
        match offset {
            reg::CAPABILITIES => self.capabilities(),
            reg::CONFIGURATION => self.state.config,
            reg::STATUS => self.state.status.into(),
            reg::COUNTER => self.counter(now_ns),
            reg::TIMERS.. => self.read_timer(offset),
            _ => 0,
        }
    }

    fn read_timer(&self, offset: u64) -> u64 {
        let Some(t) = self.state.timers.get(Self::timer_index(offset)) else { return 0 };
        match offset % reg::TIMER_STEP {
            reg::TIMER_CONFIGURATION => u64::from(self.route_mask) << 32 | timer::CAPABILITIES | t.config,
            reg::TIMER_COMPARATOR => t.value,
            reg::TIMER_MESSAGE => t.message,
            _ => 0,
        }
    }

    fn timer_index(offset: u64) -> usize {
        (offset.wrapping_sub(reg::TIMERS) / reg::TIMER_STEP) as usize
    }

    /// Writes those bits of the 64-bit register at `offset` that `mask` has.
    pub(super) fn write(&mut self, offset: u64, value: u64, mask: u64, now_ns: u64) {
        match offset {
            reg::CONFIGURATION => {
                let counter = self.counter(now_ns);
                let was_running = self.running();
                self.state.config = (self.state.config & !mask | value & mask) & (ENABLE | LEGACY);
                if self.running() != was_running {
                    self.set_counter(counter, now_ns);
                    self.reschedule(now_ns);
                }
            }
            reg::STATUS => self.state.status &= !((value & mask) as u32),
            reg::COUNTER => {
                self.set_counter(self.counter(now_ns) & !mask | value & mask, now_ns);
                self.reschedule(now_ns);
            }
            reg::TIMERS.. => self.write_timer(offset, value, mask, now_ns),
            _ => {}
        }
    }

    fn write_timer(&mut self, offset: u64, value: u64, mask: u64, now_ns: u64) {
        let (running, counter, index) = (self.running(), self.counter(now_ns), Self::timer_index(offset));
        let Some(t) = self.state.timers.get_mut(index) else { return };
        let (config, comparator) = (t.config, t.value);
        match offset % reg::TIMER_STEP {
            reg::TIMER_CONFIGURATION => t.write_config(value, mask),
            reg::TIMER_COMPARATOR => t.write_value(value, mask),
            reg::TIMER_MESSAGE => t.message = t.message & !mask | value & mask,
            _ => {}
        }
        if t.config & timer::LEVEL == 0 {
            self.state.status &= !(1u32 << index); // the bit belongs to level-triggered timers only
        }
        let rewritten = offset % reg::TIMER_STEP == reg::TIMER_COMPARATOR;
        let resized = (config ^ t.config) & timer::NARROW != 0;
        if running && (rewritten || resized || comparator != t.value) {
            t.schedule(counter, now_ns, !rewritten);
        }
    }

    pub(super) fn inspect(&self, now_ns: u64, out: &mut Inspector) {
        let Volatile { config, status, counter: _, timers } = &self.state;
        out.field("config", format_args!("{config:#x}"));
        out.field("status", format_args!("{status:#x}"));
        out.field("counter", format_args!("{:#x}", self.counter(now_ns)));
        for (index, Comparator { config, value, period, message, due_ns }) in timers.iter().enumerate() {
            out.group(&format!("timer {index}"), |out| {
                out.field("config", format_args!("{config:#x}"));
                out.field("comparator", format_args!("{value:#x}"));
                out.field("period", format_args!("{period:#x}"));
                out.field("message", format_args!("{message:#x}"));
                match due_ns {
                    Some(ns) => out.field("due-ns", ns),
                    None => out.field("due-ns", "never"),
                }
            });
        }
    }
}
