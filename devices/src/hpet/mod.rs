//! The high precision event timer (IA-PC HPET specification 1.0a): a 64-bit counter at 100 MHz and comparators.

mod comparators;

use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::services::{Clock, IrqLine, MsiSink, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use comparators::{Core, Line, Output, Volatile};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

const NAME: &str = "hpet";

/// Length of the register window in bytes.
pub const WINDOW: u64 = 0x400;
/// Period of the main counter in femtoseconds, as the ACPI table and the capability register tell it.
pub const PERIOD_FS: u32 = 10_000_000;

/// What the outputs of an HPET are wired to.
pub struct HpetWiring {
    /// One wire per interrupt route, indexed by the number in the timers' route fields (I/O APIC inputs).
    pub routes: Vec<IrqLine>,
    /// The routes that the timers offer to the guest, one bit each.
    pub route_mask: u32,
    /// Where timer 0 goes under legacy replacement (the 8254's place).
    pub legacy_timer: IrqLine,
    /// Where timer 1 goes under legacy replacement (the RTC's place).
    pub legacy_rtc: IrqLine,
    /// High while legacy replacement is on: the 8254 and the RTC must be cut off their interrupts then.
    pub legacy_mode: IrqLine,
    /// Where message-signalled interrupts go.
    pub msi: Arc<dyn MsiSink>,
}

/// An output: a wire for levels, and the same line for pulses.
struct Pin {
    wire: Wire,
    line: IrqLine,
}

impl Pin {
    fn new(line: IrqLine) -> Self {
        Self { wire: Wire::new(line.clone()), line }
    }
}

/// A high precision event timer. One lock, not held while calling out.
pub struct Hpet {
    clock: Arc<dyn Clock>,
    routes: Vec<Pin>,
    legacy_timer: Pin,
    legacy_rtc: Pin,
    legacy_mode: Wire,
    msi: Arc<dyn MsiSink>,
    timers: Vec<TimerSlot>,
    core: Mutex<Core>,
}

impl Hpet {
    /// An HPET with `timers` comparators (3 to 24, what the window holds; other numbers are brought into that range).
    pub fn new(timers: usize, wiring: HpetWiring, clock: Arc<dyn Clock>, service: &dyn TimerService) -> Arc<Self> {
        let HpetWiring { routes, route_mask, legacy_timer, legacy_rtc, legacy_mode, msi } = wiring;
        let count = timers.clamp(3, 24);
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            clock,
            routes: routes.into_iter().map(Pin::new).collect(),
            legacy_timer: Pin::new(legacy_timer),
            legacy_rtc: Pin::new(legacy_rtc),
            legacy_mode: Wire::new(legacy_mode),
            msi,
            timers: (0..count as u32)
                .map(|tag| {
                    let target: Weak<dyn TimerTarget> = this.clone();
                    TimerSlot::new(service.create(target, tag))
                })
                .collect(),
            core: Mutex::new(Core::new(count, route_mask)),
        })
    }

    /// The low half of the capability register, which the ACPI table repeats as the event timer block ID.
    pub fn block_id(&self) -> u32 {
        locked(&self.core).capabilities() as u32
    }

    fn pin(&self, line: Line) -> Option<&Pin> {
        match line {
            Line::Route(index) => self.routes.get(index),
            Line::LegacyTimer => Some(&self.legacy_timer),
            Line::LegacyRtc => Some(&self.legacy_rtc),
        }
    }

    fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.routes.iter().chain([&self.legacy_timer, &self.legacy_rtc])
    }

    /// Notes what wires and timers should be, with the lock held.
    fn note(&self, core: &MutexGuard<'_, Core>) {
        for (index, pin) in self.routes.iter().enumerate() {
            pin.wire.want(core.level(Line::Route(index)));
        }
        self.legacy_timer.wire.want(core.level(Line::LegacyTimer));
        self.legacy_rtc.wire.want(core.level(Line::LegacyRtc));
        self.legacy_mode.want(core.legacy());
        for (index, slot) in self.timers.iter().enumerate() {
            slot.want(core.wake_ns(index));
        }
    }

    /// Brings the state up to now, acts on it, and lets the outside know.
    fn with<R>(&self, act: impl FnOnce(&mut Core, u64) -> R) -> R {
        let now_ns = self.clock.now_ns();
        let (result, outputs) = {
            let mut core = locked(&self.core);
            let mut outputs = core.catch_up(now_ns);
            let result = act(&mut core, now_ns);
            outputs.extend(core.catch_up(now_ns));
            self.note(&core);
            (result, outputs)
        };
        self.legacy_mode.flush();
        for output in outputs {
            match output {
                Output::Pulse(line) => self.pulse(line),
                Output::Message { address, data } => self.msi.send_msi(address.into(), data),
            }
        }
        self.pins().for_each(|pin| pin.wire.flush());
        self.timers.iter().for_each(TimerSlot::flush);
        result
    }

    fn pulse(&self, line: Line) {
        if let Some(pin) = self.pin(line)
            && !pin.wire.level()
        {
            pin.line.pulse();
        }
    }
}

impl TimerTarget for Hpet {
    fn timer_fired(&self, tag: u32, _now_ns: u64) {
        if let Some(slot) = self.timers.get(tag as usize) {
            slot.fired();
        }
        self.with(|_, _| ());
    }
}

impl RegisterBlock for Hpet {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = self.with(|core, now| core.read(offset & 0x3F8, now));
        match size {
            8 => value,
            _ => (value >> ((offset & 4) * 8)) & 0xFFFF_FFFF,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let (value, mask) = match (size, offset & 4) {
            (8, _) => (value, u64::MAX),
            (_, 0) => (value & 0xFFFF_FFFF, 0xFFFF_FFFF),
            _ => (value << 32, 0xFFFF_FFFF << 32),
        };
        self.with(|core, now| core.write(offset & 0x3F8, value, mask, now));
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes { min: 4, max: 8 }
    }
}

impl Device for Hpet {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&self) {
        self.with(|core, _| core.reset());
    }

    fn save(&self) -> StateValue {
        to_state(&locked(&self.core).state)
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let state: Volatile = from_state(NAME, state)?;
        {
            let mut core = locked(&self.core);
            core.adopt(state).map_err(|reason| StateError::Malformed { device: NAME, reason })?;
            self.note(&core);
            // The interrupt controllers restore their own view of the wires.
            self.pins().for_each(|pin| pin.wire.adopt(pin.wire.level()));
            self.legacy_mode.adopt(self.legacy_mode.level());
            self.timers.iter().for_each(TimerSlot::fired);
        }
        self.timers.iter().for_each(TimerSlot::flush);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let now_ns = self.clock.now_ns();
        locked(&self.core).inspect(now_ns, out);
    }
}

#[cfg(test)]
mod tests;
