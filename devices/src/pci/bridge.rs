//! PCI-to-PCI bridge (PCI-to-PCI Bridge Architecture Specification 1.2; "the specification" here), the one that QEMU
//! calls `pci-bridge`: a bus of its own, windows through which accesses reach it, and interrupts by way of the bridge's
//! own pins.

use super::config::{ConfigSpace, Identity, command, reg as config_reg};
use super::{Bridge, PciBus, PciFunction};
use crate::bus::{AccessSizes, Bus, Device, RegisterBlock, Space};
use crate::guest_error;
use crate::services::{IrqLine, IrqSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Registers of the type 1 header (specification figure 3-2).
pub mod reg {
    /// Primary, secondary and subordinate bus number, one byte each.
    pub const PRIMARY: u8 = 0x18;
    /// The bus behind the bridge.
    pub const SECONDARY: u8 = 0x19;
    /// The last bus behind the bridge.
    pub const SUBORDINATE: u8 = 0x1a;
    /// Ports: base and limit, one byte each.
    pub const IO: u8 = 0x1c;
    /// Memory: base and limit, two bytes each.
    pub const MEMORY: u8 = 0x20;
    /// Memory without side effects, the same; the upper halves follow.
    pub const PREFETCHABLE: u8 = 0x24;
    /// Upper half of its base.
    pub const UPPER_BASE: u8 = 0x28;
    /// Upper half of its limit.
    pub const UPPER_LIMIT: u8 = 0x2c;
}

/// Bus numbers and windows, which firmware or an operating system gives.
const NUMBERS: u32 = 0x00ff_ffff;
/// Latency of the other side, which matters on real wires only.
const SECONDARY_LATENCY: u8 = 0x1b;
const SECONDARY_STATUS: u8 = 0x1e;
const BRIDGE_CONTROL: u8 = 0x3e;
/// Prefetchable addresses have 64 bits.
const WIDE: u32 = 1;
/// Slot identification (specification 13.1).
const SLOT_ID: u8 = 0x40;
const SLOT_ID_CAPABILITY: u32 = 0x04;
/// First bridge of its chassis.
const FIRST_IN_CHASSIS: u32 = 1 << 5;
/// INTA# to INTD#.
const PINS: usize = 4;

/// A window: what reaches the bus behind at the same address.
struct Passage {
    parent: Weak<Bus>,
    space: Space,
    name: String,
    forward: Arc<Forward>,
    /// First and last address on the bus in front. Held while its map changes, which orders changes.
    mapped: Mutex<Option<(u64, u64)>>,
}

/// The registers that a window has in front: those behind.
struct Forward {
    behind: Arc<Bus>,
    space: Space,
    base: AtomicU64,
}

impl RegisterBlock for Forward {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let address = self.base.load(Ordering::Acquire).wrapping_add(offset);
        match self.space {
            Space::Port => self.behind.pio_read(address as u16, size).into(),
            Space::Memory => self.behind.mmio_read(address, size),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let address = self.base.load(Ordering::Acquire).wrapping_add(offset);
        match self.space {
            Space::Port => self.behind.pio_write(address as u16, size, value as u32),
            Space::Memory => self.behind.mmio_write(address, size, value),
        }
    }

    fn sizes(&self) -> AccessSizes {
        match self.space {
            Space::Port => AccessSizes::UP_TO_DWORD,
            Space::Memory => AccessSizes { min: 1, max: 8 },
        }
    }
}

impl Passage {
    fn new(parent: &Arc<Bus>, behind: &Arc<Bus>, space: Space, name: String) -> Self {
        let forward = Arc::new(Forward { behind: behind.clone(), space, base: AtomicU64::new(0) });
        Self { parent: Arc::downgrade(parent), space, name, forward, mapped: Mutex::new(None) }
    }

    /// Moves the window to where `wanted` says. Call it without the bridge's lock; `wanted` may take it.
    fn sync(&self, wanted: impl FnOnce() -> Option<(u64, u64)>) {
        let mut mapped = locked(&self.mapped);
        let wanted = wanted();
        let Some(parent) = self.parent.upgrade().filter(|_| *mapped != wanted) else { return };
        if let Some((base, _)) = mapped.take() {
            // It was registered here and nobody else unregisters it.
            let _ = parent.unregister(self.space, base);
        }
        let Some((base, last)) = wanted else { return };
        self.forward.base.store(base, Ordering::Release);
        let len = (last - base).saturating_add(1);
        match parent.register(self.space, base, len, &self.name, self.forward.clone()) {
            Ok(()) => *mapped = Some((base, last)),
            Err(error) => guest_error!("{}: not mapped: {error}", self.name),
        }
    }
}

struct State {
    config: ConfigSpace,
    /// For each pin of the bridge the devices (bit by slot) that assert it.
    asserted: [u32; PINS],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    asserted: [u32; PINS],
}

/// The bridge. As an [`IrqSink`] it takes INTA# to INTD# of all slots behind it, see [`PciBridge::intx`].
///
/// Locks: `state` is a leaf; interrupts and buses are driven after it is dropped.
pub struct PciBridge {
    chassis: u8,
    behind: Arc<Bus>,
    functions: Arc<PciBus>,
    pins: [Wire; PINS],
    passages: [Passage; 3],
    state: Mutex<State>,
}

fn power_on(chassis: u8) -> ConfigSpace {
    let identity = Identity { vendor: 0x1b36, device: 0x0001, class: 0x06_0400, revision: 0, subsystem: (0, 0) };
    let mut config = ConfigSpace::new(identity);
    config.set(config_reg::HEADER_TYPE, 1, 1);
    config.set(config_reg::STATUS, 2, 0x0010);
    config.allow(config_reg::CACHE_LINE, 2, 0xffff);
    config.allow(reg::PRIMARY, 4, NUMBERS);
    config.allow(SECONDARY_LATENCY, 1, 0xf8);
    config.allow(reg::IO, 2, 0xf0f0);
    // Fast back-to-back, as on the side in front.
    config.set(SECONDARY_STATUS, 2, 0x00a0);
    config.allow(reg::MEMORY, 4, 0xfff0_fff0);
    config.set(reg::PREFETCHABLE, 4, WIDE << 16 | WIDE);
    config.allow(reg::PREFETCHABLE, 4, 0xfff0_fff0);
    config.allow(reg::UPPER_BASE, 4, u32::MAX);
    config.allow(reg::UPPER_LIMIT, 4, u32::MAX);
    config.set(config_reg::CAPABILITIES, 1, SLOT_ID.into());
    config.set(SLOT_ID, 4, u32::from(chassis) << 24 | FIRST_IN_CHASSIS << 16 | SLOT_ID_CAPABILITY);
    // Parity, SERR#, master abort.
    config.allow(BRIDGE_CONTROL, 2, 0x0023);
    config
}

/// First and last port that pass (specification 3.2.5.6): 4 KiB each.
fn ports(config: &ConfigSpace) -> Option<(u64, u64)> {
    let [base, limit] = [0, 1].map(|at| u64::from(config.read(reg::IO + at, 1) & 0xf0) << 8);
    (config.command() & command::IO != 0 && base <= limit).then_some((base, limit | 0xfff))
}

/// First and last address of a memory window (3.2.5.8, 3.2.5.9): 1 MiB each.
fn memory(config: &ConfigSpace, at: u8) -> Option<(u64, u64)> {
    let upper = |register: u8| if at == reg::PREFETCHABLE { u64::from(config.read(register, 4)) << 32 } else { 0 };
    let low = |at: u8| u64::from(config.read(at, 2) & 0xfff0) << 16;
    let (base, limit) = (low(at) | upper(reg::UPPER_BASE), low(at + 2) | upper(reg::UPPER_LIMIT) | 0xf_ffff);
    // All of the address space is no window.
    let sane = base <= limit && limit - base < u64::MAX >> 1;
    (config.command() & command::MEMORY != 0 && sane).then_some((base, limit))
}

impl PciBridge {
    /// A bridge on `parent`, whose own pins lead to `pins`. `chassis`: its number as the slot's identification has it.
    pub fn new(parent: &Arc<Bus>, name: &str, chassis: u8, pins: [IrqLine; PINS]) -> Arc<Self> {
        let behind = Arc::new(Bus::new());
        let passage = |space, what: &str| Passage::new(parent, &behind, space, format!("{name} {what}"));
        let passages = [
            passage(Space::Port, "ports"),
            passage(Space::Memory, "memory"),
            passage(Space::Memory, "prefetchable memory"),
        ];
        let state = Mutex::new(State { config: power_on(chassis), asserted: [0; PINS] });
        Arc::new(Self { chassis, behind, functions: PciBus::new(), pins: pins.map(Wire::new), passages, state })
    }

    /// Where the registers of devices behind it appear.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.behind
    }

    /// The slots behind it.
    pub fn slots(&self) -> &Arc<PciBus> {
        &self.functions
    }

    /// The wire for interrupt pin `pin` (1 is INTA#) of device `device` behind it.
    pub fn intx(self: &Arc<Self>, device: u8, pin: u8) -> IrqLine {
        IrqLine::new(self.clone(), u32::from(device & 0x1f) * 4 + u32::from(pin.wrapping_sub(1) & 3))
    }

    /// The bridge's own pin (1 is INTA#) to which pin `pin` of device `device` behind it leads (specification 9.1).
    pub fn pin_of(device: u8, pin: u8) -> u8 {
        (device.wrapping_add(pin.wrapping_sub(1)) & 3) + 1
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = locked(&self.state);
        change(&mut state);
        self.pins.iter().zip(state.asserted).for_each(|(pin, devices)| pin.want(devices != 0));
        drop(state);
        self.pins.iter().for_each(Wire::flush);
    }

    /// After a change of the configuration space.
    fn apply(&self) {
        let [io, plain, prefetchable] = &self.passages;
        let config = || locked(&self.state).config.clone();
        io.sync(|| ports(&config()));
        plain.sync(|| memory(&config(), reg::MEMORY));
        prefetchable.sync(|| memory(&config(), reg::PREFETCHABLE));
    }
}

impl IrqSink for PciBridge {
    fn set_irq(&self, pin: u32, level: bool) {
        let (device, own) = ((pin >> 2 & 0x1f) as u8, (pin & 3) as u8);
        let outward = usize::from(Self::pin_of(device, own + 1) - 1) % PINS;
        self.with(|state| {
            let bit = 1u32 << device;
            let devices = &mut state.asserted[outward];
            *devices = if level { *devices | bit } else { *devices & !bit };
        });
    }
}

impl PciFunction for PciBridge {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.state).config.read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        locked(&self.state).config.write(offset, size, value);
        self.apply();
    }

    fn bridge(&self) -> Option<Bridge> {
        let state = locked(&self.state);
        let number = |at| state.config.read(at, 1) as u8;
        let (secondary, subordinate) = (number(reg::SECONDARY), number(reg::SUBORDINATE));
        Some(Bridge { secondary, subordinate, bus: self.functions.clone() })
    }
}

impl Device for PciBridge {
    fn name(&self) -> &'static str {
        "pci-bridge"
    }

    fn reset(&self) {
        // Devices behind it take their requests back themselves.
        self.with(|state| state.config = power_on(self.chassis));
        self.apply();
    }

    fn save(&self) -> StateValue {
        let State { config, asserted } = &*locked(&self.state);
        to_state(&Saved { config: config.save(), asserted: *asserted })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Saved { config: saved, asserted } = from_state(self.name(), state)?;
        let mut config = power_on(self.chassis);
        config.restore(self.name(), &saved)?;
        let mut state = locked(&self.state);
        *state = State { config, asserted };
        self.pins.iter().zip(asserted).for_each(|(pin, devices)| pin.adopt(devices != 0));
        drop(state);
        self.apply();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let config = locked(&self.state).config.clone();
        let [first, last] = [reg::SECONDARY, reg::SUBORDINATE].map(|at| config.read(at, 1));
        out.field("buses", format_args!("{first} to {last}"));
        for (name, passage) in ["ports", "memory", "prefetchable"].into_iter().zip(&self.passages) {
            let mapped = *locked(&passage.mapped);
            out.field(name, mapped.map_or("none".to_owned(), |(base, last)| format!("{base:#x} to {last:#x}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakePower, Random, moves_to, same_after_restore};
    use crate::pci::DevFn;
    use crate::pci::bar::{Bar, BarKind};
    use crate::pci::endpoint::Endpoint;
    use crate::pci::mechanism::ConfigMechanism;

    struct Byte(u64);
    impl RegisterBlock for Byte {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            self.0
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    /// A card with 16 ports and a page of memory that read as a byte.
    struct Card(Endpoint);
    impl Card {
        fn new(bus: &Arc<Bus>, byte: u64) -> Arc<Self> {
            let config = ConfigSpace::new(Identity {
                vendor: 0x1234,
                device: byte as u16,
                class: 0,
                revision: 0,
                subsystem: (0, 0),
            });
            let bar = |index, kind, size| Bar { index, kind, size, registers: Arc::new(Byte(byte)) };
            let memory = BarKind::Memory32 { prefetchable: false };
            let bars = vec![bar(0, BarKind::Io, 16), bar(1, memory, 0x1000)];
            Arc::new(Self(Endpoint::new(bus, "card", bars, config).unwrap()))
        }
    }
    impl PciFunction for Card {
        fn config_read(&self, offset: u8, size: u8) -> u32 {
            self.0.read(offset, size)
        }
        fn config_write(&self, offset: u8, size: u8, value: u32) {
            self.0.write(offset, size, value);
        }
    }

    struct Bench {
        bus: Arc<Bus>,
        irq: Arc<FakeIrq>,
        bridge: Arc<PciBridge>,
        inner: Arc<PciBridge>,
    }

    impl Bench {
        /// A bridge in slot 3 with a card in slot 1, and with another bridge in slot 2 that has a card in slot 5.
        fn new() -> Self {
            let (bus, irq, root) = (Arc::new(Bus::new()), FakeIrq::new(), PciBus::new());
            let pins = [0, 1, 2, 3].map(|pin| irq.line(pin));
            let bridge = PciBridge::new(&bus, "one", 1, pins);
            root.insert(DevFn::new(3, 0), bridge.clone()).unwrap();
            bridge.slots().insert(DevFn::new(1, 0), Card::new(bridge.bus(), 0x11)).unwrap();
            let pins = [1, 2, 3, 4].map(|pin| bridge.intx(2, pin));
            let inner = PciBridge::new(bridge.bus(), "two", 2, pins);
            bridge.slots().insert(DevFn::new(2, 0), inner.clone()).unwrap();
            inner.slots().insert(DevFn::new(5, 0), Card::new(inner.bus(), 0x22)).unwrap();
            let mechanism = ConfigMechanism::new(root, Arc::new(FakePower::default()));
            bus.register_pio(0xcf8, 8, "pci-config", mechanism).unwrap();
            Self { bus, irq, bridge, inner }
        }

        fn config(&self, bus: u32, device: u32, offset: u32) -> u32 {
            self.bus.pio_write(0xcf8, 4, 1 << 31 | bus << 16 | device << 11 | offset);
            self.bus.pio_read(0xcfc, 4)
        }

        fn set(&self, bus: u32, device: u32, offset: u32, value: u32) {
            self.bus.pio_write(0xcf8, 4, 1 << 31 | bus << 16 | device << 11 | offset);
            self.bus.pio_write(0xcfc, 4, value);
        }

        /// As firmware sets it all up.
        fn ready() -> Self {
            let b = Self::new();
            b.set(0, 3, 0x18, 0x0002_0100);
            b.set(1, 2, 0x18, 0x0002_0201);
            for (bus, device, ports, memory) in [(0, 3, 0xd0c0, 0xfe10_fe00), (1, 2, 0xd0d0, 0xfe10_fe10)] {
                b.set(bus, device, 0x1c, ports);
                b.set(bus, device, 0x20, memory);
                b.set(bus, device, 0x24, 0x0000_fff0);
                b.set(bus, device, 0x04, 7);
            }
            for (bus, device, base) in [(1, 1, 0), (2, 5, 0x10_0000)] {
                b.set(bus, device, 0x10, 0xc000 + base / 0x100);
                b.set(bus, device, 0x14, 0xfe00_0000 + base);
                b.set(bus, device, 0x04, 7);
            }
            b
        }
    }

    #[test]
    fn buses_are_found_by_their_numbers() {
        let b = Bench::new();
        assert_eq!(b.config(0, 3, 0), 0x0001_1b36);
        assert_eq!(b.config(0, 3, 0x0c) >> 16 & 0xff, 1, "a bridge's header");
        assert_eq!(b.config(0, 3, 0x40), 0x0120_0004, "chassis 1");
        assert_eq!(b.config(1, 1, 0), u32::MAX, "it has no number yet");
        let b = Bench::ready();
        assert_eq!([b.config(1, 1, 0), b.config(2, 5, 0)], [0x0011_1234, 0x0022_1234]);
        assert_eq!([b.config(1, 3, 0), b.config(3, 1, 0), b.config(2, 1, 0)], [u32::MAX; 3]);
        b.set(0, 3, 0x18, 0x0001_0100);
        assert_eq!(b.config(2, 5, 0), u32::MAX, "not among its buses any more");
    }

    #[test]
    fn accesses_pass_through_windows() {
        let b = Bench::ready();
        let all = || {
            let ports = [0xc000u16, 0xd000].map(|at| b.bus.pio_read(at, 1));
            (ports, [0xfe00_0000u64, 0xfe10_0ffc].map(|at| b.bus.mmio_read(at, 1)))
        };
        assert_eq!(all(), ([0x11, 0x22], [0x11, 0x22]));
        b.set(1, 2, 0x20, 0xfe00_fe10);
        assert_eq!(all(), ([0x11, 0x22], [0x11, 0xff]), "the inner one is closed for memory");
        b.set(0, 3, 0x04, 2);
        assert_eq!(all(), ([0xff, 0xff], [0x11, 0xff]));
        b.set(0, 3, 0x04, 0);
        assert_eq!(b.bus.ranges().len(), 1, "only the configuration mechanism is left");
        // 64 bits, and a limit that makes no sense.
        b.set(0, 3, 0x28, 0x80);
        b.set(0, 3, 0x2c, 0x80);
        b.set(0, 3, 0x24, 0x0010_0000);
        b.set(0, 3, 0x04, 2);
        assert!(b.bus.ranges().iter().any(|range| range.base == 0x80_0000_0000 && range.last == 0x80_001f_ffff));
        b.set(0, 3, 0x28, 0);
        b.set(0, 3, 0x2c, u32::MAX);
        assert!(b.bus.ranges().iter().all(|range| range.last < 1 << 33));
    }

    #[test]
    fn interrupts_are_shared_and_turned_by_slot() {
        let b = Bench::new();
        let (card, other) = (b.bridge.intx(1, 1), b.bridge.intx(5, 1));
        card.set(true);
        assert!(b.irq.level(1), "INTA# of slot 1 is INTB#");
        other.set(true);
        card.set(false);
        assert!(b.irq.level(1), "slot 5 asserts it too");
        other.set(false);
        assert!(!b.irq.level(1));
        b.inner.intx(5, 1).set(true);
        assert!(b.irq.level(3), "INTB# of slot 2 is INTD#");
        assert_eq!([PciBridge::pin_of(0, 1), PciBridge::pin_of(3, 2), PciBridge::pin_of(31, 4)], [1, 1, 3]);
    }

    #[test]
    fn state_moves_reset_equals_new_and_random_accesses() {
        let b = Bench::ready();
        b.bridge.intx(1, 1).set(true);
        let other = Bench::new();
        moves_to(&*b.bridge, &*other.bridge);
        assert!(other.irq.history().is_empty(), "a restored level is no edge");
        assert_eq!(other.bus.ranges().len(), 3);
        b.bridge.intx(1, 1).set(false);
        let mut random = Random::new(31);
        for _ in 0..5000 {
            b.bridge.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
            b.inner.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
            b.bus.mmio_read(random.next() & 0xffff_fffc, 4);
            b.bus.mmio_write(random.next() & 0xffff_fffc, 4, random.next());
            b.config(random.below(256) as u32, random.below(32) as u32, random.next() as u32 & 0xfc);
            if random.below(4) == 0 {
                b.bridge.set_irq(random.next() as u32, random.below(2) == 0);
            }
        }
        same_after_restore(&*b.bridge);
        for pin in 0..128 {
            b.bridge.set_irq(pin, false);
        }
        b.bridge.reset();
        assert_eq!(b.bridge.save(), Bench::new().bridge.save());
        assert!((0..4).all(|pin| !b.irq.level(pin)));
    }
}
