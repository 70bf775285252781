//! PCI: the bus with its functions, and how the processor reaches their configuration space (PCI Local Bus
//! Specification 3.0; configuration mechanism #1 in 3.2.2.3.2).

pub mod bar;
pub mod bridge;
pub mod config;
pub mod endpoint;
pub mod hotplug;
pub mod i440fx;
pub mod mechanism;
pub mod msix;
pub mod piix3;
pub mod piix3_ide;
pub mod piix4_pm;

use crate::{trace, trace_event};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A function's place on its bus: device (slot) and function number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevFn(pub u8);

impl DevFn {
    /// Device 0 to 31, function 0 to 7; larger numbers wrap.
    pub const fn new(device: u8, function: u8) -> Self {
        Self((device & 0x1f) << 3 | function & 7)
    }

    /// Device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl std::fmt::Display for DevFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}.{:x}", self.device(), self.function())
    }
}

/// A PCI function, as configuration accesses see it. An access never crosses an aligned 32-bit word.
pub trait PciFunction: Send + Sync {
    /// Reads `size` (1, 2 or 4) bytes of configuration space at `offset`.
    fn config_read(&self, offset: u8, size: u8) -> u32;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn config_write(&self, offset: u8, size: u8, value: u32);
    /// What it decodes by base address registers.
    fn regions(&self) -> Vec<bar::Region> {
        Vec::new()
    }
    /// What is behind it, if it is a bridge to another bus.
    fn bridge(&self) -> Option<Bridge> {
        None
    }
}

/// A bridge, as configuration accesses to buses behind it see it.
pub struct Bridge {
    /// Number of the bus behind it; 0: it has none yet.
    pub secondary: u8,
    /// The last number of a bus behind it.
    pub subordinate: u8,
    /// The bus behind it.
    pub bus: Arc<PciBus>,
}

/// The place is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PCI slot {0} is already in use")]
pub struct SlotInUse(pub DevFn);

/// A bus: the functions by their place.
#[derive(Default)]
pub struct PciBus {
    functions: RwLock<BTreeMap<DevFn, Arc<dyn PciFunction>>>,
}

impl PciBus {
    /// An empty bus.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Plugs a function in.
    pub fn insert(&self, place: DevFn, function: Arc<dyn PciFunction>) -> Result<(), SlotInUse> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&place) {
            return Err(SlotInUse(place));
        }
        functions.insert(place, function);
        Ok(())
    }

    /// Takes a function out.
    pub fn remove(&self, place: DevFn) -> Option<Arc<dyn PciFunction>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(&place)
    }

    /// The first device number from 1 up that has no function.
    pub fn free_device(&self) -> Option<u8> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        (1..32).find(|device| functions.keys().all(|place| place.device() != *device))
    }

    /// The function at `place`.
    pub fn function(&self, place: DevFn) -> Option<Arc<dyn PciFunction>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(&place).cloned()
    }

    /// All functions, by place.
    pub fn functions(&self) -> Vec<(DevFn, Arc<dyn PciFunction>)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().map(|(place, function)| (*place, function.clone())).collect()
    }

    /// The bus with this number behind one of the bridges on this bus, or behind those.
    pub fn behind(&self, number: u8) -> Option<Arc<PciBus>> {
        let bridges = self.functions().into_iter().filter_map(|(_, function)| function.bridge());
        let mut leads = bridges.filter(|b| b.secondary != 0 && (b.secondary..=b.subordinate).contains(&number));
        let Bridge { secondary, bus, .. } = leads.next()?;
        if secondary == number { Some(bus) } else { bus.behind(number) }
    }

    /// Configuration read; where no function answers, all ones (master abort).
    pub fn config_read(&self, place: DevFn, offset: u8, size: u8) -> u32 {
        let absent = u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)));
        let value = self.function(place).map_or(absent, |function| function.config_read(offset, size) & absent);
        let (device, function) = (place.device(), place.function());
        trace_event!(trace::PCI_READ, "{device:02x}.{function} @{offset:#x} -> {value:#x}");
        value
    }

    /// Configuration write; goes nowhere if no function answers.
    pub fn config_write(&self, place: DevFn, offset: u8, size: u8, value: u32) {
        let (device, function) = (place.device(), place.function());
        trace_event!(trace::PCI_WRITE, "{device:02x}.{function} @{offset:#x} <- {value:#x}");
        if let Some(function) = self.function(place) {
            function.config_write(offset, size, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u32);
    impl PciFunction for Fixed {
        fn config_read(&self, _offset: u8, _size: u8) -> u32 {
            self.0
        }
        fn config_write(&self, _offset: u8, _size: u8, _value: u32) {}
    }

    #[test]
    fn places() {
        let place = DevFn::new(1, 3);
        assert_eq!((place.0, place.device(), place.function()), (0x0b, 1, 3));
        assert_eq!(place.to_string(), "01.3");
    }

    #[test]
    fn functions_come_and_go() {
        let bus = PciBus::new();
        let place = DevFn::new(1, 0);
        assert_eq!(bus.config_read(place, 0, 2), 0xffff);
        bus.insert(place, Arc::new(Fixed(0x1234_5678))).unwrap();
        assert_eq!(bus.insert(place, Arc::new(Fixed(0))), Err(SlotInUse(place)));
        assert_eq!(bus.config_read(place, 0, 4), 0x1234_5678);
        assert_eq!(bus.config_read(place, 0, 1), 0x78);
        assert_eq!(bus.free_device(), Some(2));
        assert!(bus.remove(place).is_some());
        assert_eq!(bus.config_read(place, 0, 4), u32::MAX);
    }
}
