//! Where devices that can come and go are.

use super::bridges::Segment;
use crate::cli::config::{Made, PciBusNumber};
use brolga_devices::bus::{Bus, Device};
use brolga_devices::pci::{DevFn, PciBus, PciFunction, SlotInUse};
use std::sync::Arc;

/// The PCI slot that a device sits in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// What was asked for.
    pub made: Made,
    /// The PCI bus.
    pub bus: PciBusNumber,
    /// Its place there.
    pub place: DevFn,
    /// What the board calls it.
    pub name: String,
}

impl Seat {
    /// Seats a device.
    pub fn take<D: Device + PciFunction + 'static>(
        self,
        all: &Bus,
        slots: &PciBus,
        device: Arc<D>,
    ) -> Result<Self, SlotInUse> {
        slots.insert(self.place, device.clone())?;
        all.add_device(self.name.clone(), device);
        Ok(self)
    }
}

impl Segment<'_> {
    /// A seat on this bus for what was `made`.
    pub fn seat(&self, made: Made, place: DevFn, name: String) -> Seat {
        Seat { made, bus: self.number, place, name }
    }
}
