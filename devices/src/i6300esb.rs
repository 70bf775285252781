//! The watchdog of Intel's 6300ESB I/O controller hub (datasheet 300641, chapter 16): a timer in two stages, the second of
//! which resets the machine unless the guest reloads it.

use crate::bus::{AccessSizes, Bus, Device, RegisterBlock, Registers};
use crate::guest_error;
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::endpoint::Endpoint;
use crate::services::{Clock, PowerEvent, PowerSink, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// Configuration register (16.4.1), 16 bits, and its bits.
const CONFIG: u8 = 0x60;
const INTERRUPT_TYPE: u16 = 3;
const INTERRUPTS_OFF: u16 = 3;
const FAST: u16 = 1 << 2;
const OUTPUT_OFF: u16 = 1 << 5;
/// Lock register (16.4.2), 8 bits, and its bits.
const LOCK: u8 = 0x68;
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;

/// Memory registers (16.5).
mod reg {
    pub const PRELOAD_1: u64 = 0x00;
    pub const PRELOAD_2: u64 = 0x04;
    pub const STATUS: u64 = 0x08;
    pub const RELOAD: u64 = 0x0c;
}
const BAR_SIZE: u64 = 16;
const PRELOAD: u32 = 0xf_ffff;
/// Bits of the reload register: begin anew, and whether the timer had run out.
const RELOAD: u64 = 1 << 8;
const TIMED_OUT: u64 = 1 << 9;
/// Values written to the reload register one after the other let the next write through (16.5.4).
const UNLOCK: [u64; 2] = [0x80, 0x86];
/// The clock of the bus, and powers of two by which it is divided.
const HZ: u64 = 33_000_000;
const SLOW_SHIFT: u32 = 15;
const FAST_SHIFT: u32 = 5;
const NS: u128 = 1_000_000_000;

/// Which stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// Counts down to an interrupt.
    First,
    /// Counts down to the reset.
    Second,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    preload: [u32; 2],
    /// The first stage has ended.
    interrupt: bool,
    /// How many values of the unlocking sequence came in a row.
    unlocked: u8,
    /// What runs, and when it ends in nanoseconds of guest time.
    running: Option<(Stage, u64)>,
    /// The timer ran out; survives the reset that it caused.
    timed_out: bool,
}

const FRESH: State = State { preload: [PRELOAD; 2], interrupt: false, unlocked: 0, running: None, timed_out: false };

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    state: State,
}

/// The watchdog. Locks: `state` before the endpoint's; timer and power are used without.
pub struct I6300Esb {
    endpoint: Endpoint,
    clock: Arc<dyn Clock>,
    power: Arc<dyn PowerSink>,
    timer: TimerSlot,
    state: Mutex<State>,
}

struct Memory(Weak<I6300Esb>);

fn power_on() -> ConfigSpace {
    let identity = Identity { vendor: 0x8086, device: 0x25ab, class: 0x08_8000, revision: 0, subsystem: (0, 0) };
    let mut config = ConfigSpace::new(identity);
    config.allow(CONFIG, 2, (INTERRUPT_TYPE | FAST | OUTPUT_OFF).into());
    config
}

impl I6300Esb {
    /// A watchdog on `bus` that tells `power`.
    pub fn new(
        bus: &Arc<Bus>,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
        power: Arc<dyn PowerSink>,
    ) -> Result<Arc<Self>, BarError> {
        let mut failure = None;
        let this = Arc::new_cyclic(|weak: &Weak<Self>| {
            let registers: Registers = Arc::new(Memory(weak.clone()));
            let kind = BarKind::Memory32 { prefetchable: false };
            let bars = vec![Bar { index: 0, kind, size: BAR_SIZE, registers }];
            let endpoint = Endpoint::new(bus, "i6300esb", bars, power_on()).or_else(|error| {
                failure = Some(error);
                Endpoint::new(bus, "i6300esb", Vec::new(), power_on())
            });
            Self {
                endpoint: endpoint.expect("no registers at all are always possible"),
                clock,
                power,
                timer: TimerSlot::new(timers.create(weak.clone(), 0)),
                state: Mutex::new(FRESH),
            }
        });
        failure.map_or(Ok(this), Err)
    }

    fn setup(&self) -> u16 {
        self.endpoint.read(CONFIG, 2) as u16
    }

    fn lock_bits(&self) -> u8 {
        self.endpoint.read(LOCK, 1) as u8
    }

    /// Starts a stage, or none.
    fn run(&self, state: &mut State, stage: Option<Stage>) {
        let shift = if self.setup() & FAST != 0 { FAST_SHIFT } else { SLOW_SHIFT };
        state.running = stage.map(|stage| {
            let [first, second] = state.preload;
            let ticks = if stage == Stage::First { first } else { second };
            let ns = (u128::from(ticks) << shift) * NS / u128::from(HZ);
            (stage, self.clock.now_ns().saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)))
        });
        self.timer.want(state.running.map(|(_, end)| end));
    }

    /// The guest writes the lock register. Once it is locked it stays as it is until a reset.
    fn set_lock(&self, value: u8) {
        let before = self.lock_bits();
        if before & LOCKED != 0 {
            return guest_error!("i6300esb: the lock register is locked");
        }
        {
            let mut state = locked(&self.state);
            self.endpoint.set(LOCK, 1, (value & (LOCKED | ENABLED | FREE_RUNNING)).into());
            match (before & ENABLED != 0, value & ENABLED != 0) {
                (false, true) => self.run(&mut state, Some(Stage::First)),
                (_, false) => self.run(&mut state, None),
                (true, true) => {}
            }
        }
        self.timer.flush();
    }

    fn read(&self, offset: u64) -> u64 {
        let state = locked(&self.state);
        match offset {
            reg::PRELOAD_1 => state.preload[0].into(),
            reg::PRELOAD_2 => state.preload[1].into(),
            reg::STATUS => state.interrupt.into(),
            reg::RELOAD => u64::from(state.timed_out) * TIMED_OUT,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u64) {
        {
            let mut state = locked(&self.state);
            let unlocked = state.unlocked == 2;
            match (offset, unlocked) {
                (reg::RELOAD, false) => {
                    let expected = UNLOCK.get(usize::from(state.unlocked)).copied();
                    state.unlocked = if Some(value) == expected { state.unlocked + 1 } else { 0 };
                    return;
                }
                (reg::PRELOAD_1, true) => state.preload[0] = value as u32 & PRELOAD,
                (reg::PRELOAD_2, true) => state.preload[1] = value as u32 & PRELOAD,
                (reg::RELOAD, true) => {
                    state.timed_out &= value & TIMED_OUT == 0;
                    if value & RELOAD != 0 && self.lock_bits() & ENABLED != 0 {
                        self.run(&mut state, Some(Stage::First));
                    }
                }
                // No write is let through for it, and writing 1 clears it.
                (reg::STATUS, _) => state.interrupt &= value & 1 == 0,
                _ => guest_error!("i6300esb: a write of {value:#x} to {offset:#x} that was not unlocked"),
            }
            state.unlocked = 0;
        }
        self.timer.flush();
    }
}

impl TimerTarget for I6300Esb {
    fn timer_fired(&self, _tag: u32, now_ns: u64) {
        let fired = {
            let mut state = locked(&self.state);
            match state.running.filter(|(_, end)| now_ns >= *end) {
                None => false,
                Some((Stage::First, _)) => {
                    state.interrupt = true;
                    if self.setup() & INTERRUPT_TYPE != INTERRUPTS_OFF {
                        tracing::warn!(target: "unimp", "i6300esb: the first stage raises no interrupt");
                    }
                    self.run(&mut state, Some(Stage::Second));
                    false
                }
                Some((Stage::Second, _)) => {
                    let again = self.lock_bits() & FREE_RUNNING != 0;
                    self.run(&mut state, again.then_some(Stage::First));
                    let resets = self.setup() & OUTPUT_OFF == 0;
                    state.timed_out |= resets;
                    resets
                }
            }
        };
        self.timer.flush();
        if fired {
            self.power.request(PowerEvent::Watchdog);
        }
    }
}

impl RegisterBlock for Memory {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |device| device.read(offset & !3) >> (8 * (offset & 3)))
    }
    fn write(&self, offset: u64, _size: u8, value: u64) {
        if let Some(device) = self.0.upgrade() {
            device.write(offset, value);
        }
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl PciFunction for I6300Esb {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.endpoint.read(offset, size)
    }
    fn config_write(&self, offset: u8, size: u8, value: u32) {
        if offset == LOCK {
            return self.set_lock(value as u8);
        }
        self.endpoint.write(offset, size, value);
    }

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.endpoint.regions()
    }
}

impl Device for I6300Esb {
    fn name(&self) -> &'static str {
        "i6300esb"
    }

    fn reset(&self) {
        {
            let mut state = locked(&self.state);
            // It tells the guest why it was reset.
            *state = State { timed_out: state.timed_out, ..FRESH };
            self.timer.want(None);
        }
        self.timer.flush();
        self.endpoint.reset();
    }

    fn save(&self) -> StateValue {
        let state = locked(&self.state).clone();
        to_state(&Saved { config: self.endpoint.save(), state })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Saved { config, state } = from_state(self.name(), state)?;
        let config = self.endpoint.check(self.name(), &config)?;
        if state.unlocked > 2 || state.preload.iter().any(|ticks| *ticks > PRELOAD) {
            return Err(StateError::Malformed { device: self.name(), reason: "a register is out of range".into() });
        }
        self.endpoint.adopt(config);
        {
            let mut now = locked(&self.state);
            self.timer.want(state.running.map(|(_, end)| end));
            *now = state;
        }
        self.timer.flush();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let State { preload, interrupt, unlocked: _, running, timed_out } = locked(&self.state).clone();
        out.field("enabled", self.lock_bits() & ENABLED != 0);
        out.field("preload", format_args!("{:#x} {:#x}", preload[0], preload[1]));
        out.field("first_stage_over", interrupt);
        if let Some((_, end)) = running {
            out.field("ends_in_ns", end.saturating_sub(self.clock.now_ns()));
        }
        out.field("timed_out", timed_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakePower, FakeTime, fuzz, moves_to};

    const AT: u64 = 0xfeb0_0000;
    const SECOND: u64 = 1_000_000_000;

    struct Bench {
        bus: Arc<Bus>,
        time: Arc<FakeTime>,
        power: Arc<FakePower>,
        device: Arc<I6300Esb>,
    }

    impl Bench {
        fn new() -> Self {
            let (bus, time, power) = (Arc::new(Bus::new()), FakeTime::new(), Arc::new(FakePower::default()));
            let device = I6300Esb::new(&bus, time.clone(), &*time, power.clone()).unwrap();
            device.config_write(0x10, 4, AT as u32);
            device.config_write(4, 2, 2);
            Self { bus, time, power, device }
        }

        fn unlocked(&self, offset: u64, value: u64) {
            UNLOCK.into_iter().for_each(|word| self.bus.mmio_write(AT + reg::RELOAD, 2, word));
            self.bus.mmio_write(AT + offset, if offset == reg::RELOAD { 2 } else { 4 }, value);
        }

        /// As Linux' driver starts it, with `seconds` for both stages together.
        fn start(&self, seconds: u64) {
            self.device.config_write(CONFIG, 2, INTERRUPTS_OFF.into());
            let half = seconds << 9;
            self.unlocked(reg::PRELOAD_1, half);
            self.unlocked(reg::PRELOAD_2, half);
            self.unlocked(reg::RELOAD, RELOAD);
            self.device.config_write(LOCK, 1, ENABLED.into());
        }
    }

    #[test]
    fn a_guest_that_feeds_it_lives() {
        let b = Bench::new();
        assert_eq!(b.device.config_read(0, 4), 0x25ab_8086);
        b.start(30);
        for _ in 0..5 {
            b.time.advance(25 * SECOND);
            b.unlocked(reg::RELOAD, RELOAD);
        }
        assert!(b.power.events().is_empty());
        b.time.advance(31 * SECOND);
        assert_eq!(b.power.events(), [PowerEvent::Watchdog]);
        assert_eq!(b.bus.mmio_read(AT + reg::STATUS, 4), 1);
        b.device.reset();
        assert!(b.time.next_deadline().is_none());
        b.device.config_write(0x10, 4, AT as u32);
        b.device.config_write(4, 2, 2);
        assert_eq!(b.bus.mmio_read(AT + reg::RELOAD, 2), TIMED_OUT, "it says why");
        b.unlocked(reg::RELOAD, TIMED_OUT);
        assert_eq!(b.bus.mmio_read(AT + reg::RELOAD, 2), 0);
    }

    #[test]
    fn nothing_without_the_sequence_and_nothing_locked() {
        let b = Bench::new();
        b.bus.mmio_write(AT, 4, 5);
        assert_eq!(b.bus.mmio_read(AT, 4), u64::from(PRELOAD));
        b.bus.mmio_write(AT + reg::RELOAD, 2, 0x86);
        b.bus.mmio_write(AT + reg::RELOAD, 2, 0x80);
        b.bus.mmio_write(AT, 4, 5);
        assert_eq!(b.bus.mmio_read(AT, 4), u64::from(PRELOAD));
        b.start(10);
        b.device.config_write(LOCK, 1, u32::from(LOCKED | ENABLED));
        b.device.config_write(LOCK, 1, 0);
        assert_eq!(b.device.config_read(LOCK, 1), u32::from(LOCKED | ENABLED));
        b.device.reset();
        b.device.config_write(LOCK, 1, 0);
        assert_eq!(b.device.config_read(LOCK, 1), 0);
    }

    #[test]
    fn stopped_and_silent() {
        let b = Bench::new();
        b.start(10);
        b.device.config_write(LOCK, 1, 0);
        b.time.advance(100 * SECOND);
        b.device.config_write(CONFIG, 2, (OUTPUT_OFF | FAST).into());
        b.device.config_write(LOCK, 1, u32::from(ENABLED | FREE_RUNNING));
        b.time.advance(100 * SECOND);
        assert!(b.power.events().is_empty());
        assert!(b.time.next_deadline().is_some(), "it runs on");
    }

    #[test]
    fn state_moves_while_it_runs() {
        let b = Bench::new();
        b.start(10);
        b.time.advance(3 * SECOND);
        let other = Bench::new();
        other.time.advance(3 * SECOND);
        moves_to(&*b.device, &*other.device);
        other.time.advance(8 * SECOND);
        assert_eq!(other.power.events(), [PowerEvent::Watchdog]);
        let mut bad = b.device.save();
        bad["state"]["unlocked"] = 3.into();
        b.device.restore(&bad).unwrap_err();
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new();
        b.start(2);
        fuzz(&*b.device, &[(&Memory(Arc::downgrade(&b.device)), BAR_SIZE)], &b.time, 61);
        for offset in 0..=255 {
            b.device.config_write(offset & !3, 4, 0x1234_5678);
        }
        b.time.advance(100 * SECOND);
    }
}
