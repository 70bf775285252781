//! Gives PCI devices their addresses where no firmware does: sizes each base address register as PCI 3.0 6.2.5.1 says,
//! places it, and turns the device on; gives buses behind bridges their numbers, and bridges their windows.

use brolga_devices::pci::bridge::{PciBridge, reg as bridge_reg};
use brolga_devices::pci::config::{command, reg};
use brolga_devices::pci::{PciBus, PciFunction};
use std::ops::Range;

/// Base address registers of a function, as numbers of 32-bit words.
const REGISTERS: u8 = 6;
/// Bits of a register that are no address (PCI 3.0 figures 6-5 and 6-6).
const PORT: u32 = 1;
const PORT_FLAGS: u32 = 3;
const MEMORY_FLAGS: u32 = 0xF;
const WIDE: u32 = 4;

/// Windows of bridges are multiples of these (PCI-to-PCI Bridge 1.2, 3.2.5.6 and 3.2.5.8).
const MEMORY_WINDOW: u64 = 1 << 20;
const PORT_WINDOW: u64 = 1 << 12;

/// A range from which aligned pieces are taken, the lowest first.
struct Room {
    next: u64,
    end: u64,
}

impl Room {
    fn new(range: Range<u32>) -> Self {
        Self { next: range.start.into(), end: range.end.into() }
    }

    /// Goes on at a multiple of `unit`, if there is one left; where that is.
    fn align(&mut self, unit: u64) -> u64 {
        self.next = self.next.next_multiple_of(unit).min(self.end);
        self.next
    }

    /// `size` bytes, a power of two, aligned to their size.
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.next_multiple_of(size);
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

/// Places all registers of all functions of `bus` and of the buses behind it in `memory` and `ports`; what does not fit
/// stays off. `irq` tells the interrupt of a device's pin.
pub fn assign(bus: &PciBus, memory: Range<u32>, ports: Range<u32>, irq: impl Fn(u8, u8) -> Option<u8>) {
    Assignment { memory: Room::new(memory), ports: Room::new(ports), last_bus: 0 }.bus(bus, 0, &irq);
}

/// Tells the interrupt of a device's pin.
type Route<'a> = dyn Fn(u8, u8) -> Option<u8> + 'a;

/// What is left to give.
struct Assignment {
    memory: Room,
    ports: Room,
    /// The highest number that a bus has.
    last_bus: u8,
}

impl Assignment {
    fn bus(&mut self, bus: &PciBus, number: u8, route: &Route) {
        for (place, function) in bus.functions() {
            match function.bridge() {
                Some(bridge) => {
                    let behind = |device, pin| route(place.device(), PciBridge::pin_of(device, pin));
                    self.bridge(&*function, &bridge.bus, number, &behind);
                }
                None => self.registers(&*function),
            }
            let pin = function.config_read(reg::INTERRUPT_PIN, 1) as u8;
            if pin != 0
                && let Some(line) = route(place.device(), pin)
            {
                function.config_write(reg::INTERRUPT_LINE, 1, line.into());
            }
        }
    }

    /// The base address registers of a function.
    fn registers(&mut self, function: &dyn PciFunction) {
        let mut enable = 0;
        let mut index = 0;
        while index < REGISTERS {
            let at = reg::BAR0 + 4 * index;
            function.config_write(at, 4, u32::MAX);
            let sized = function.config_read(at, 4);
            let (flags, room, bit) = match sized & PORT {
                0 => (MEMORY_FLAGS, &mut self.memory, command::MEMORY),
                _ => (PORT_FLAGS, &mut self.ports, command::IO),
            };
            let wide = sized & PORT == 0 && sized & 6 == WIDE;
            let size = u64::from(!(sized & !flags)).wrapping_add(1) & 0xFFFF_FFFF;
            // Ports have 16 bits; the upper half of the register may be fixed at zero.
            let size = if sized & PORT != 0 { size & 0xFFFF } else { size };
            let address = if sized & !flags == 0 { None } else { room.take(size.max(1)) };
            function.config_write(at, 4, address.unwrap_or(0) as u32);
            if wide {
                function.config_write(at + 4, 4, 0);
            }
            if address.is_some() {
                enable |= bit;
            }
            index += if wide { 2 } else { 1 };
        }
        if enable != 0 {
            turn_on(function, enable);
        }
    }

    /// A bridge on bus `number` and all behind it. What those get lies together, in its windows.
    fn bridge(&mut self, bridge: &dyn PciFunction, behind: &PciBus, number: u8, route: &Route) {
        let Some(secondary) = self.last_bus.checked_add(1) else { return };
        self.last_bus = secondary;
        bridge.config_write(bridge_reg::PRIMARY, 1, number.into());
        bridge.config_write(bridge_reg::SECONDARY, 1, secondary.into());
        bridge.config_write(bridge_reg::SUBORDINATE, 1, u8::MAX.into());
        let first = (self.memory.align(MEMORY_WINDOW), self.ports.align(PORT_WINDOW));
        self.bus(behind, secondary, route);
        let end = (self.memory.align(MEMORY_WINDOW), self.ports.align(PORT_WINDOW));
        bridge.config_write(bridge_reg::SUBORDINATE, 1, self.last_bus.into());
        // Where the limit is below the base, nothing passes.
        let (base, limit) = if end.0 > first.0 { (first.0 >> 16, (end.0 - 1) >> 16) } else { (0xFFF0, 0) };
        bridge.config_write(bridge_reg::MEMORY, 4, (limit as u32 & 0xFFF0) << 16 | base as u32);
        bridge.config_write(bridge_reg::PREFETCHABLE, 4, 0xFFF0);
        let (base, limit) = if end.1 > first.1 { (first.1 >> 8, (end.1 - 1) >> 8) } else { (0xF0, 0) };
        bridge.config_write(bridge_reg::IO, 2, (limit as u32 & 0xF0) << 8 | base as u32);
        turn_on(bridge, command::IO | command::MEMORY);
    }
}

fn turn_on(function: &dyn PciFunction, enable: u16) {
    let before = function.config_read(reg::COMMAND, 2);
    function.config_write(reg::COMMAND, 2, before | u32::from(enable | command::BUS_MASTER));
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_devices::bus::{Bus, RegisterBlock};
    use brolga_devices::pci::bar::{Bar, BarKind, Bars};
    use brolga_devices::pci::config::{ConfigSpace, Identity};
    use brolga_devices::pci::{DevFn, PciFunction};
    use brolga_devices::wire::locked;
    use std::sync::{Arc, Mutex};

    struct Byte(u64);
    impl RegisterBlock for Byte {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            self.0
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    struct Card(Mutex<ConfigSpace>, Bars);
    impl PciFunction for Card {
        fn config_read(&self, offset: u8, size: u8) -> u32 {
            locked(&self.0).read(offset, size)
        }
        fn config_write(&self, offset: u8, size: u8, value: u32) {
            locked(&self.0).write(offset, size, value);
            self.1.sync(|| locked(&self.0).clone());
        }
    }

    #[test]
    fn every_register_gets_its_own_aligned_range() {
        let (bus, pci) = (Arc::new(Bus::new()), PciBus::new());
        for slot in 2..4u8 {
            let mut config =
                ConfigSpace::new(Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) });
            config.set(reg::INTERRUPT_PIN, 1, 1);
            let bar = |index, kind, size| Bar { index, kind, size, registers: Arc::new(Byte(slot.into())) };
            let bars = vec![
                bar(0, BarKind::Io, 64),
                bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000),
                bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000),
            ];
            let bars = Bars::new(&bus, "card", bars, &mut config).unwrap();
            pci.insert(DevFn::new(slot, 0), Arc::new(Card(Mutex::new(config), bars))).unwrap();
        }
        assign(&pci, 0xC000_0000..0xFEC0_0000, 0xC000..0x1_0000, |device, pin| Some(device + pin));
        let ranges: Vec<_> = bus.ranges().into_iter().map(|r| (r.base, r.last - r.base + 1)).collect();
        assert_eq!(ranges.len(), 6, "{ranges:x?}");
        assert!(ranges.iter().all(|(base, len)| base % len == 0), "{ranges:x?}");
        assert_eq!(pci.config_read(DevFn::new(3, 0), 0x3c, 1), 4);
        assert_eq!(pci.config_read(DevFn::new(2, 0), 4, 2) & 7, 7);
        assert_eq!([bus.pio_read(0xC000, 1), bus.pio_read(0xC040, 1)], [2, 3]);
    }

    fn card(bus: &Arc<Bus>, byte: u64) -> Arc<Card> {
        let mut config = ConfigSpace::new(Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) });
        config.set(reg::INTERRUPT_PIN, 1, 1);
        let bar = |index, kind, size| Bar { index, kind, size, registers: Arc::new(Byte(byte)) };
        let memory = BarKind::Memory32 { prefetchable: false };
        let bars = Bars::new(bus, "card", vec![bar(0, BarKind::Io, 64), bar(1, memory, 0x1000)], &mut config).unwrap();
        Arc::new(Card(Mutex::new(config), bars))
    }

    #[test]
    fn bridges_get_numbers_and_windows() {
        let (bus, pci) = (Arc::new(Bus::new()), PciBus::new());
        let line = brolga_devices::services::IrqLine::unconnected;
        let bridge = |parent: &Arc<Bus>, number| PciBridge::new(parent, "bridge", number, [(); 4].map(|()| line()));
        let (outer, empty) = (bridge(&bus, 1), bridge(&bus, 3));
        let inner = bridge(outer.bus(), 2);
        pci.insert(DevFn::new(2, 0), card(&bus, 0x10)).unwrap();
        pci.insert(DevFn::new(3, 0), outer.clone()).unwrap();
        outer.slots().insert(DevFn::new(1, 0), card(outer.bus(), 0x20)).unwrap();
        outer.slots().insert(DevFn::new(2, 0), inner.clone()).unwrap();
        inner.slots().insert(DevFn::new(1, 0), card(inner.bus(), 0x30)).unwrap();
        pci.insert(DevFn::new(4, 0), empty.clone()).unwrap();
        pci.insert(DevFn::new(5, 0), card(&bus, 0x40)).unwrap();
        assign(&pci, 0xC000_0000..0xFEC0_0000, 0xC000..0x1_0000, |device, pin| Some(device * 4 + pin - 1));
        let numbers = [&outer, &inner, &empty].map(|bridge| bridge.config_read(0x18, 4) & 0xFF_FFFF);
        assert_eq!(numbers, [0x02_0100, 0x02_0201, 0x03_0300]);
        let behind = pci.behind(2).unwrap();
        let place = DevFn::new(1, 0);
        let (ports, memory) = (behind.config_read(place, 0x10, 4) & !3, behind.config_read(place, 0x14, 4));
        assert_eq!((ports, memory), (0xE000, 0xC020_0000));
        assert_eq!((bus.pio_read(0xE000, 1), bus.mmio_read(0xC020_0000, 1)), (0x30, 0x30), "through both");
        assert_eq!([bus.pio_read(0xC000, 1), bus.pio_read(0xD000, 1), bus.pio_read(0xF000, 1)], [0x10, 0x20, 0x40]);
        assert_eq!(empty.config_read(0x20, 4), 0x0000_FFF0, "closed");
        // INTA# of slot 1 is INTB# of the inner bridge in slot 2, which is INTD# of the outer one in slot 3.
        assert_eq!(behind.config_read(place, 0x3C, 1), 3 * 4 + 3);
    }
}
