//! Gives PCI devices their addresses where no firmware does: sizes each base address register as PCI 3.0 6.2.5.1 says,
//! places it, and turns the device on.

use brolga_devices::pci::PciBus;
use brolga_devices::pci::config::{command, reg};
use std::ops::Range;

/// Base address registers of a function, as numbers of 32-bit words.
const REGISTERS: u8 = 6;
/// Bits of a register that are no address (PCI 3.0 figures 6-5 and 6-6).
const PORT: u32 = 1;
const PORT_FLAGS: u32 = 3;
const MEMORY_FLAGS: u32 = 0xF;
const WIDE: u32 = 4;

/// A range from which aligned pieces are taken, the lowest first.
struct Room {
    next: u64,
    end: u64,
}

impl Room {
    fn new(range: Range<u32>) -> Self {
        Self { next: range.start.into(), end: range.end.into() }
    }

    /// `size` bytes, a power of two, aligned to their size.
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.next_multiple_of(size);
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

/// Places all registers of all functions of `bus` in `memory` and `ports`; what does not fit stays off. `irq` tells the
/// interrupt of a device's pin.
pub fn assign(bus: &PciBus, memory: Range<u32>, ports: Range<u32>, irq: impl Fn(u8, u8) -> Option<u8>) {
    let (mut memory, mut ports) = (Room::new(memory), Room::new(ports));
    for (place, function) in bus.functions() {
        let mut enable = 0;
        let mut index = 0;
        while index < REGISTERS {
            let at = reg::BAR0 + 4 * index;
            function.config_write(at, 4, u32::MAX);
            let sized = function.config_read(at, 4);
            let (flags, room, bit) = match sized & PORT {
                0 => (MEMORY_FLAGS, &mut memory, command::MEMORY),
                _ => (PORT_FLAGS, &mut ports, command::IO),
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
        let pin = function.config_read(reg::INTERRUPT_PIN, 1) as u8;
        if pin != 0
            && let Some(line) = irq(place.device(), pin)
        {
            function.config_write(reg::INTERRUPT_LINE, 1, line.into());
        }
        if enable != 0 {
            let before = function.config_read(reg::COMMAND, 2);
            function.config_write(reg::COMMAND, 2, before | u32::from(enable | command::BUS_MASTER));
        }
    }
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
}
