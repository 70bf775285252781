//! PIIX3 IDE function (Intel 82371SB datasheet, order 290550, 2.6), function 01.1: two channels at their old ports, and
//! the bus master registers where the guest wants them.

use super::PciFunction;
use super::bar::{Bar, BarKind, Bars};
use super::config::{ConfigSpace, Identity, reg};
use crate::bus::{AccessSizes, Bus, Device, RegisterBlock, Registers};
use crate::ide::Channel;
use crate::ide::bus_master::PORTS;
use crate::state::{Inspector, StateError, StateValue};
use crate::wire::locked;
use std::sync::{Arc, Mutex};

/// Timing registers, 16 bits for each channel; bit 15 turns the channel on (datasheet 2.6.8).
const TIMING: u8 = 0x40;
/// The register that places the bus master's ports.
const BAR: u8 = 4;

/// The function. The channels are devices of their own, on the bus by themselves.
///
/// Locks: `config` is a leaf; the bus is called after it is dropped.
pub struct Piix3Ide {
    bars: Bars,
    config: Mutex<ConfigSpace>,
}

/// Bus master registers of both channels, one after the other.
struct Masters([Registers; 2]);

impl RegisterBlock for Masters {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let [first, second] = &self.0;
        if offset < PORTS { first.read(offset, size) } else { second.read(offset - PORTS, size) }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let [first, second] = &self.0;
        match offset < PORTS {
            true => first.write(offset, size, value),
            false => second.write(offset - PORTS, size, value),
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::BYTE
    }
}

fn power_on() -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let identity = Identity { vendor: 0x8086, device: 0x7010, class: 0x01_0180, revision: 0, subsystem };
    let mut config = ConfigSpace::new(identity);
    config.set(reg::STATUS, 2, 0x0280);
    config.allow(reg::COMMAND, 2, 0x0005);
    // The interrupts are those of the old ports.
    config.allow(reg::INTERRUPT_LINE, 1, 0);
    config.allow(TIMING, 4, 0xf3ff_f3ff);
    config.allow(TIMING + 4, 1, 0xff);
    config
}

impl Piix3Ide {
    /// The function for `channels`, the first and the second.
    pub fn new(bus: &Arc<Bus>, channels: [&Arc<Channel>; 2]) -> Arc<Self> {
        let registers = Arc::new(Masters(channels.map(|channel| channel.master_ports())));
        let mut config = power_on();
        let bar = Bar { index: BAR, kind: BarKind::Io, size: 2 * PORTS, registers };
        let bars = Bars::new(bus, "piix3-ide", vec![bar], &mut config).expect("one register, which is allowed");
        Arc::new(Self { bars, config: Mutex::new(config) })
    }

    fn sync(&self) {
        self.bars.sync(|| locked(&self.config).clone());
    }

    /// As after power-on; the base address register's bits stay what they are.
    fn fresh(&self) -> ConfigSpace {
        let mut config = power_on();
        let at = reg::BAR0 + 4 * BAR;
        config.set(at, 4, 1);
        config.allow(at, 4, !(2 * PORTS as u32 - 1));
        config
    }
}

impl PciFunction for Piix3Ide {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.config).read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        locked(&self.config).write(offset, size, value);
        if Bars::concerns(offset) {
            self.sync();
        }
    }

    fn regions(&self) -> Vec<super::bar::Region> {
        self.bars.regions()
    }
}

impl Device for Piix3Ide {
    fn name(&self) -> &'static str {
        "piix3-ide"
    }

    fn reset(&self) {
        *locked(&self.config) = self.fresh();
        self.sync();
    }

    fn save(&self) -> StateValue {
        locked(&self.config).save()
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let mut new = self.fresh();
        new.restore(self.name(), state)?;
        *locked(&self.config) = new;
        self.sync();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        out.field("bus_master", self.bars.base(BAR).map_or("none".to_owned(), |base| format!("{base:#06x}")));
        out.field("timing", format_args!("{:#010x}", locked(&self.config).read(TIMING, 4)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakeMemory, Random, moves_to, same_after_restore};

    fn function() -> (Arc<Bus>, Arc<Piix3Ide>) {
        let (bus, irq) = (Arc::new(Bus::new()), FakeIrq::new());
        let channel = |pin| Channel::new("ide", [None, None], FakeMemory::new(16), irq.line(pin));
        (bus.clone(), Piix3Ide::new(&bus, [&channel(14), &channel(15)]))
    }

    #[test]
    fn the_bus_master_appears_where_the_guest_puts_it() {
        let (bus, ide) = function();
        ide.config_write(0x20, 4, u32::MAX);
        assert_eq!(ide.config_read(0x20, 4), 0xffff_fff1);
        ide.config_write(0x20, 4, 0xc000);
        ide.config_write(4, 2, 5);
        bus.pio_write(0xc004, 4, 0x1234_5679);
        bus.pio_write(0xc00c, 4, 0x8765_4321);
        assert_eq!((bus.pio_read(0xc004, 4), bus.pio_read(0xc00c, 4)), (0x1234_5678, 0x8765_4320));
        let (other_bus, other) = function();
        moves_to(&*ide, &*other);
        assert_eq!(other_bus.ranges().len(), 1);
        ide.reset();
        assert!(bus.ranges().is_empty());
        assert_eq!(ide.save(), function().1.save());
    }

    #[test]
    fn channels_are_turned_on_and_random_accesses() {
        let (_, ide) = function();
        ide.config_write(0x40, 4, 0x8000_8000);
        assert_eq!(ide.config_read(0x40, 4), 0x8000_8000);
        let mut random = Random::new(21);
        for _ in 0..5000 {
            ide.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
        }
        same_after_restore(&*ide);
    }
}
