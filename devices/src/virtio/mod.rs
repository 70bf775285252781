//! Virtio devices (Virtual I/O Device version 1.2): split queues, the PCI transport, and devices on it.
//!
//! Everything that the guest can write is hostile: a ring that contradicts itself stops its device until it is reset.

pub mod balloon;
pub mod blk;
mod chain;
pub mod net;
pub mod ninep;
pub mod pci;
pub mod queue;
pub mod rng;
pub mod scsi;
pub mod serial;

#[cfg(test)]
pub(crate) mod bench;

use crate::state::{Inspector, StateError, StateValue};
use queue::Queues;
use std::sync::Arc;

/// Feature bits of all devices (chapter 6).
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Each side says at which index it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy driver.
    pub const VERSION_1: u64 = 1 << 32;
}

/// A device behind a transport. It takes its requests from the queues that it was made with.
pub trait VirtioDevice: Send + Sync {
    /// Name as `info qtree` shows it.
    fn name(&self) -> &'static str;
    /// The type (chapter 5).
    fn device_type(&self) -> u16;
    /// PCI class, subclass and programming interface.
    fn pci_class(&self) -> u32;
    /// Features offered, besides those of the queues.
    fn features(&self) -> u64;
    /// The configuration space as it is now.
    fn config(&self) -> Vec<u8>;
    /// The driver writes `bytes` at `offset` of the configuration space.
    fn config_write(&self, offset: usize, bytes: &[u8]);
    /// The driver is ready; it took these features.
    fn start(&self, features: u64);
    /// There may be requests in queue `index`. Returns at once: the work is done elsewhere.
    fn notify(&self, index: usize);
    /// As after power-on; what is under way is forgotten.
    fn reset(&self);
    /// Requests are under way that a reset has not yet seen the end of.
    fn busy(&self) -> bool;
    /// The state besides that of the queues.
    fn save(&self) -> StateValue;
    /// Takes over a state that `save` made. `check`: only says whether it would.
    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError>;
    /// Shows the state.
    fn inspect(&self, out: &mut Inspector);
}

/// A device with its queues, as a transport takes it.
pub struct Parts {
    /// The device.
    pub device: Arc<dyn VirtioDevice>,
    /// Its queues.
    pub queues: Arc<Queues>,
}
