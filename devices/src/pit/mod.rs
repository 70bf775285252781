//! Intel 8254 interval timer (datasheet order 231164) and the PC's port 0x61 around its channel 2.
//!
//! Counters are not stepped: all of their state follows from the tick at which they were loaded and the guest clock,
//! so nothing drifts however late the host is. Interrupt edges that a late host missed become one.

mod counter;

use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::{Clock, IrqLine, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use counter::Counter;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// Input clock in Hz: 14.31818 MHz / 12.
pub const PIT_HZ: u64 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;
/// Ticks between two changes of port 0x61's refresh bit: the refresh request comes every 15.085 us.
const REFRESH_TICKS: i64 = 18;

/// Ticks of the input clock that have passed at `ns`.
fn ticks_at(ns: u64) -> i64 {
    i64::try_from(u128::from(ns) * u128::from(PIT_HZ) / NS_PER_S).unwrap_or(i64::MAX)
}

/// The first nanosecond at which `tick` has been reached.
fn ns_of(tick: i64) -> u64 {
    let tick = u128::try_from(tick).unwrap_or(0);
    u64::try_from((tick * NS_PER_S).div_ceil(u128::from(PIT_HZ))).unwrap_or(u64::MAX - 1)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    counters: [Counter; 3],
    /// Port 0x61 bit 1: the counter's output reaches the speaker.
    speaker_data: bool,
    /// Port 0x61 bits 2 and 3: parity and channel checks, stored only.
    checks: u8,
    /// Tick of the next rising edge of counter 0's output.
    next_edge: Option<i64>,
}

impl Regs {
    fn power_on() -> Self {
        // Gates 0 and 1 are tied high, gate 2 is port 0x61 bit 0.
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Self { counters, speaker_data: false, checks: 0, next_edge: None }
    }

    /// The control word register (datasheet "Programming the 8254").
    fn write_control(&mut self, value: u8, now: i64) {
        let select = usize::from(value >> 6);
        if let Some(counter) = self.counters.get_mut(select) {
            counter.control(value & 0x3f, now);
            return;
        }
        // Read-back command: D5 and D4 low mean count and status.
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if value & (2 << index) != 0 {
                if value & 0x20 == 0 {
                    counter.latch_count(now);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(now);
                }
            }
        }
    }
}

/// The timer chip, its interrupt, and port 0x61.
///
/// Locks: `regs` is a leaf; line and timer are driven after it is dropped.
pub struct Pit {
    irq: Wire,
    timer: TimerSlot,
    clock: Arc<dyn Clock>,
    regs: Mutex<Regs>,
}

impl Pit {
    /// A timer whose counter 0 drives `irq` (ISA IRQ 0).
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, timers: &dyn TimerService) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            irq: Wire::new(irq),
            timer: TimerSlot::new(timers.create(this.clone(), 0)),
            clock,
            regs: Mutex::new(Regs::power_on()),
        })
    }

    /// The four ports from 0x40.
    pub fn ports(self: &Arc<Self>) -> Registers {
        Arc::new(CounterPorts(self.clone()))
    }

    /// Port 0x61: speaker, gate 2, refresh bit (one byte).
    pub fn speaker_port(self: &Arc<Self>) -> Registers {
        Arc::new(SpeakerPort(self.clone()))
    }

    /// Channel 2 as a speaker hears it: the frequency in Hz of its square wave, if it is audible.
    pub fn speaker_tone(&self) -> Option<u32> {
        let regs = locked(&self.regs);
        regs.speaker_data.then(|| regs.counters[2].square_wave_ticks())?.map(|ticks| (PIT_HZ / ticks) as u32)
    }

    fn with<R>(&self, change: impl FnOnce(&mut Regs, i64) -> R) -> R {
        let now = ticks_at(self.clock.now_ns());
        let mut regs = locked(&self.regs);
        let missed = regs.next_edge.is_some_and(|at| at <= now);
        let result = change(&mut regs, now);
        let [first, ..] = &mut regs.counters;
        let level = first.output(now);
        regs.next_edge = first.next_rise(now);
        self.irq.want(level);
        self.timer.want(regs.next_edge.map(ns_of));
        drop(regs);
        if missed {
            self.irq.flush_after_rise();
        } else {
            self.irq.flush();
        }
        self.timer.flush();
        result
    }
}

impl TimerTarget for Pit {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        self.timer.fired();
        self.with(|_, _| ());
    }
}

struct CounterPorts(Arc<Pit>);

impl RegisterBlock for CounterPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let index = (offset & 3) as usize;
        // The control word register cannot be read (datasheet table 1).
        let read = |regs: &mut Regs, now| regs.counters.get_mut(index).map_or(0xff, |c| c.read(now));
        let now = ticks_at(self.0.clock.now_ns());
        // Reading moves no output, so neither line nor timer need a look: calibration loops read a lot.
        u64::from(read(&mut locked(&self.0.regs), now))
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let index = (offset & 3) as usize;
        self.0.with(|regs, now| match regs.counters.get_mut(index) {
            Some(counter) => counter.write(value as u8, now),
            None => regs.write_control(value as u8, now),
        });
    }
}

struct SpeakerPort(Arc<Pit>);

impl RegisterBlock for SpeakerPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        let now = ticks_at(self.0.clock.now_ns());
        let mut regs = locked(&self.0.regs);
        let refresh = (now / REFRESH_TICKS) & 1 != 0;
        let counter = &mut regs.counters[2];
        let (gate, output) = (counter.gate(), counter.output(now));
        u64::from(gate)
            | u64::from(regs.speaker_data) << 1
            | u64::from(regs.checks) << 2
            | u64::from(refresh) << 4
            | u64::from(output) << 5
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.with(|regs, now| {
            regs.speaker_data = value & 2 != 0;
            regs.checks = (value >> 2) as u8 & 3;
            regs.counters[2].set_gate(value & 1 != 0, now);
        });
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        "isa-pit"
    }

    fn reset(&self) {
        let Self { irq, timer, clock: _, regs } = self;
        let mut regs = locked(regs);
        *regs = Regs::power_on();
        irq.want(false);
        timer.want(None);
        drop(regs);
        irq.flush();
        timer.flush();
    }

    fn save(&self) -> StateValue {
        let Self { irq: _, timer: _, clock: _, regs } = self;
        to_state(&*locked(regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { irq, timer, clock, regs } = self;
        let mut new: Regs = from_state(self.name(), state)?;
        let now = ticks_at(clock.now_ns());
        if !new.counters.iter().all(Counter::is_sane) {
            return Err(StateError::Malformed { device: self.name(), reason: "impossible count".into() });
        }
        let mut regs = locked(regs);
        irq.adopt(new.counters[0].output(now));
        timer.want(new.next_edge.map(ns_of));
        *regs = new;
        drop(regs);
        timer.flush();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let now = ticks_at(self.clock.now_ns());
        let Regs { counters, speaker_data, checks, next_edge } = &mut *locked(&self.regs);
        for (index, counter) in counters.iter_mut().enumerate() {
            out.group(&format!("counter {index}"), |out| counter.inspect(out, now));
        }
        out.field("speaker_data", speaker_data);
        out.field("checks", checks);
        out.field("next_edge_ns", next_edge.map_or("never".to_owned(), |tick| ns_of(tick).to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakeTime, fuzz, moves_to};

    struct Bench {
        time: Arc<FakeTime>,
        irq: Arc<FakeIrq>,
        pit: Arc<Pit>,
        ports: Registers,
        speaker: Registers,
    }

    impl Bench {
        fn new() -> Self {
            let (time, irq) = (FakeTime::new(), FakeIrq::new());
            let pit = Pit::new(irq.line(0), time.clone(), &*time);
            Self { ports: pit.ports(), speaker: pit.speaker_port(), time, irq, pit }
        }
        fn control(&self, value: u64) {
            self.ports.write(3, 1, value);
        }
        fn load(&self, channel: u64, count: u64) {
            self.ports.write(channel, 1, count & 0xff);
            self.ports.write(channel, 1, count >> 8);
        }
        fn count(&self, channel: u64) -> u64 {
            self.control(channel << 6);
            self.ports.read(channel, 1) | self.ports.read(channel, 1) << 8
        }
        fn to_tick(&self, tick: i64) {
            self.time.advance_to(ns_of(tick));
        }
        fn out2(&self) -> bool {
            self.speaker.read(0, 1) & 0x20 != 0
        }
    }

    #[test]
    fn ticks_and_nanoseconds_agree() {
        for tick in [0, 1, 2, 17, 1_193_181, 1_193_182, 987_654_321_987] {
            assert_eq!(ticks_at(ns_of(tick)), tick);
            if tick > 0 {
                assert_eq!(ticks_at(ns_of(tick) - 1), tick - 1);
            }
        }
        assert_eq!(ns_of(1_193_182), 1_000_000_000);
        assert!(ticks_at(u64::MAX) > 0);
    }

    #[test]
    fn periodic_interrupts_do_not_drift() {
        let b = Bench::new();
        b.control(0x34);
        b.load(0, 11932);
        b.irq.clear();
        // One hour, looked at in uneven steps: exactly as many edges as periods.
        let mut at = 0;
        while at < 3_600_000_000_000 {
            at += 7_777_777;
            b.time.advance_to(at);
        }
        let expected = (ticks_at(at) - 1) / 11932;
        assert_eq!(b.irq.rises(0) as i64, expected);
    }

    #[test]
    fn a_late_host_gives_one_edge_and_keeps_phase() {
        let b = Bench::new();
        b.control(0x36);
        b.load(0, 1000);
        b.to_tick(10);
        b.irq.clear();
        b.time.stall_until(ns_of(123_456));
        assert_eq!(b.irq.rises(0), 1);
        assert_eq!(b.time.next_deadline(), Some(ns_of(124_001)));
    }

    #[test]
    fn mode_0_interrupts_on_terminal_count() {
        let b = Bench::new();
        b.control(0x30);
        assert!(!b.irq.level(0));
        b.load(0, 5);
        b.to_tick(5);
        assert!(!b.irq.level(0));
        assert_eq!(b.count(0), 1);
        b.to_tick(6);
        assert!(b.irq.level(0), "N + 1 clocks after the write");
        b.to_tick(7);
        assert_eq!(b.count(0), 0xffff, "goes on counting");
        b.load(0, 0x100);
        assert!(!b.irq.level(0));
    }

    #[test]
    fn channel_2_calibration_as_linux_does_it() {
        // quick_pit_calibrate: gate on, speaker off, mode 0, 0xffff, then watch the high byte fall.
        let b = Bench::new();
        b.speaker.write(0, 1, 0x01);
        b.control(0xb0);
        b.load(2, 0xffff);
        let high = || {
            b.ports.read(2, 1);
            b.ports.read(2, 1)
        };
        b.to_tick(1);
        assert_eq!(high(), 0xff);
        b.to_tick(1 + 256);
        assert_eq!(high(), 0xfe);
        b.to_tick(1 + 3 * 256);
        assert_eq!(high(), 0xfc);
        assert!(!b.out2());
        b.to_tick(1 + 0xffff);
        assert!(b.out2());
    }

    #[test]
    fn gate_2_pauses_and_triggers() {
        let b = Bench::new();
        b.control(0xb0);
        b.load(2, 100);
        b.to_tick(50);
        assert_eq!(b.count(2), 100, "gate low: no counting");
        b.speaker.write(0, 1, 1);
        b.to_tick(60);
        assert_eq!(b.count(2), 90);
        b.speaker.write(0, 1, 0);
        b.to_tick(70);
        assert_eq!(b.count(2), 90);
        // Mode 1: low for N clocks after each rising edge.
        b.control(0xb2);
        b.load(2, 20);
        assert!(b.out2());
        b.speaker.write(0, 1, 1);
        b.to_tick(71);
        assert!(!b.out2());
        b.to_tick(90);
        assert!(!b.out2());
        b.to_tick(91);
        assert!(b.out2());
    }

    #[test]
    fn refresh_bit_toggles() {
        let b = Bench::new();
        let bit = |tick| {
            b.to_tick(tick);
            b.speaker.read(0, 1) & 0x10
        };
        assert_eq!([0, 17, 18, 35, 36].map(bit), [0, 0, 0x10, 0x10, 0]);
    }

    #[test]
    fn read_back_latches_status_before_count() {
        let b = Bench::new();
        b.control(0x74);
        b.load(1, 0x1234);
        b.to_tick(1);
        b.control(0xc4);
        assert_eq!(b.ports.read(1, 1), 0xb4, "OUT high, loaded, both bytes, mode 2");
        assert_eq!(b.ports.read(1, 1) | b.ports.read(1, 1) << 8, 0x1234);
        b.control(0x74);
        b.control(0xe4);
        assert_eq!(b.ports.read(1, 1), 0xf4, "null count until a count is loaded");
    }

    #[test]
    fn tone_of_the_speaker() {
        let b = Bench::new();
        b.control(0xb6);
        b.load(2, 1193);
        assert_eq!(b.pit.speaker_tone(), None);
        b.speaker.write(0, 1, 3);
        assert_eq!(b.pit.speaker_tone(), Some(1000));
        assert_eq!(b.speaker.read(0, 1) & 0x0f, 3);
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = Bench::new();
        b.control(0x34);
        b.load(0, 100);
        b.speaker.write(0, 1, 0x0f);
        b.to_tick(57);
        let other = Bench::new();
        other.to_tick(57);
        moves_to(&*b.pit, &*other.pit);
        other.irq.clear();
        other.to_tick(101);
        assert_eq!(other.irq.rises(0), 1);
        b.pit.reset();
        assert_eq!(b.pit.save(), Bench::new().pit.save());
        assert_eq!(b.time.next_deadline(), None);
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new();
        fuzz(&*b.pit, &[(&*b.ports, 4), (&*b.speaker, 1)], &b.time, 3);
    }
}
