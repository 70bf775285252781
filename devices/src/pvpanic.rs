//! The port through which a guest's kernel tells of its crash, on ISA and on PCI (QEMU's specification "PVPANIC DEVICE"):
//! a read gives the events that it takes, a write of one of these bits reports it.

use crate::bus::{Bus, Device, RegisterBlock};
use crate::guest_error;
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::endpoint::Endpoint;
use crate::services::{PowerEvent, PowerSink};
use crate::state::{Inspector, StateError, StateValue, from_state};
use std::sync::Arc;

/// The usual port.
pub const PORT: u16 = 0x505;
/// Bytes of the registers in memory.
const BAR_SIZE: u64 = 16;

/// What can be reported, by bit.
const EVENTS: [(u8, PowerEvent); 3] =
    [(1 << 0, PowerEvent::GuestPanicked), (1 << 1, PowerEvent::CrashLoaded), (1 << 2, PowerEvent::PowerOff)];

/// The register.
pub struct PanicPort {
    power: Arc<dyn PowerSink>,
}

impl PanicPort {
    /// One that tells `power`.
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { power })
    }
}

impl RegisterBlock for PanicPort {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let all = EVENTS.iter().fold(0, |bits, (bit, _)| bits | bit);
        if offset == 0 { all.into() } else { 0 }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let event = EVENTS.iter().find(|(bit, _)| offset == 0 && value & u64::from(*bit) != 0);
        match event {
            Some((_, event)) => self.power.request(*event),
            None => guest_error!("pvpanic: {value:#x} at {offset} reports nothing"),
        }
    }
}

impl Device for PanicPort {
    fn name(&self) -> &'static str {
        "pvpanic"
    }
    fn reset(&self) {}
    fn save(&self) -> StateValue {
        StateValue::Null
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        from_state(self.name(), state)
    }
    fn inspect(&self, out: &mut Inspector) {
        out.field("events", format_args!("{:#x}", self.read(0, 1)));
    }
}

/// The register in a PCI function.
pub struct PanicFunction {
    endpoint: Endpoint,
}

impl PanicFunction {
    /// A function on `bus` that tells `power`.
    pub fn new(bus: &Arc<Bus>, power: Arc<dyn PowerSink>) -> Result<Arc<Self>, BarError> {
        let identity =
            Identity { vendor: 0x1b36, device: 0x0011, class: 0x08_8000, revision: 1, subsystem: (0x1af4, 0x1100) };
        let registers = PanicPort::new(power);
        let kind = BarKind::Memory32 { prefetchable: false };
        let bars = vec![Bar { index: 0, kind, size: BAR_SIZE, registers }];
        Ok(Arc::new(Self { endpoint: Endpoint::new(bus, "pvpanic-pci", bars, ConfigSpace::new(identity))? }))
    }
}

impl PciFunction for PanicFunction {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.endpoint.read(offset, size)
    }
    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.endpoint.write(offset, size, value);
    }

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.endpoint.regions()
    }
}

impl Device for PanicFunction {
    fn name(&self) -> &'static str {
        "pvpanic-pci"
    }
    fn reset(&self) {
        self.endpoint.reset();
    }
    fn save(&self) -> StateValue {
        self.endpoint.save()
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        self.endpoint.check(self.name(), state).map(|config| self.endpoint.adopt(config))
    }
    fn inspect(&self, out: &mut Inspector) {
        out.field("address", format_args!("{:#x}", self.endpoint.read(0x10, 4)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakePower, FakeTime, fuzz, moves_to, same_after_restore};

    #[test]
    fn each_bit_reports_its_event() {
        let power = Arc::new(FakePower::default());
        let port = PanicPort::new(power.clone());
        assert_eq!(port.read(0, 1), 7);
        [1, 2, 4, 3, 8, 0].into_iter().for_each(|value| port.write(0, 1, value));
        use PowerEvent::{CrashLoaded, GuestPanicked, PowerOff};
        assert_eq!(power.events(), [GuestPanicked, CrashLoaded, PowerOff, GuestPanicked]);
        fuzz(&*port, &[(&*port, 1)], &FakeTime::new(), 51);
    }

    #[test]
    fn the_function_has_it_where_its_register_says() {
        let (bus, power) = (Arc::new(Bus::new()), Arc::new(FakePower::default()));
        let f = PanicFunction::new(&bus, power.clone()).unwrap();
        assert_eq!(f.config_read(0, 4), 0x0011_1b36);
        f.config_write(0x10, 4, 0xfeb0_0000);
        f.config_write(4, 2, 2);
        assert_eq!(bus.mmio_read(0xfeb0_0000, 1), 7);
        bus.mmio_write(0xfeb0_0000, 1, 2);
        assert_eq!(power.events(), [PowerEvent::CrashLoaded]);
        same_after_restore(&*f);
        moves_to(&*f, &*PanicFunction::new(&Arc::new(Bus::new()), power).unwrap());
        f.reset();
        assert_eq!(bus.mmio_read(0xfeb0_0000, 1), 0xff);
    }
}
