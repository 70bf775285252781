//! What simple functions have in common: a configuration space with base address registers that follow it.

use super::bar::{Bar, BarError, Bars, Region};
use super::config::ConfigSpace;
use crate::bus::Bus;
use crate::state::{StateError, StateValue};
use crate::wire::locked;
use std::sync::{Arc, Mutex};

/// A function's configuration space with its windows on the bus. Locks: `config` is a leaf.
pub struct Endpoint {
    bars: Bars,
    config: Mutex<ConfigSpace>,
    /// The configuration space after power-on.
    fresh: ConfigSpace,
}

impl Endpoint {
    /// The endpoint of device `name`, which after power-on has `config` and the registers `bars`.
    pub fn new(bus: &Arc<Bus>, name: &str, bars: Vec<Bar>, mut config: ConfigSpace) -> Result<Self, BarError> {
        let bars = Bars::new(bus, name, bars, &mut config)?;
        Ok(Self { bars, config: Mutex::new(config.clone()), fresh: config })
    }

    fn sync(&self) {
        self.bars.sync(|| locked(&self.config).clone());
    }

    /// What the guest, or the device itself, reads.
    pub fn read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.config).read(offset, size)
    }

    /// A write by the guest.
    pub fn write(&self, offset: u8, size: u8, value: u32) {
        locked(&self.config).write(offset, size, value);
        if Bars::concerns(offset) {
            self.sync();
        }
    }

    /// The device itself changes its configuration space; base addresses stay.
    pub fn set(&self, offset: u8, size: u8, value: u32) {
        locked(&self.config).set(offset, size, value);
    }

    /// What the function decodes.
    pub fn regions(&self) -> Vec<Region> {
        self.bars.regions()
    }

    /// Where base address register `index` is on the bus now.
    pub fn base(&self, index: u8) -> Option<u64> {
        self.bars.base(index)
    }

    /// As after power-on.
    pub fn reset(&self) {
        *locked(&self.config) = self.fresh.clone();
        self.sync();
    }

    /// For a device's saved state.
    pub fn save(&self) -> StateValue {
        locked(&self.config).save()
    }

    /// The configuration space that `save` gave, checked and not yet taken over.
    pub fn check(&self, device: &'static str, state: &StateValue) -> Result<ConfigSpace, StateError> {
        let mut new = self.fresh.clone();
        new.restore(device, state)?;
        Ok(new)
    }

    /// Takes over what `check` gave.
    pub fn adopt(&self, config: ConfigSpace) {
        *locked(&self.config) = config;
        self.sync();
    }
}
