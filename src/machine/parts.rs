//! What devices are built from. It stays, so that more of them can be built while the machine runs.

use super::disks::Disks;
use super::dma::GuestMemory;
use super::input_gate::InputGate;
use super::layout::Layout;
use super::pc::{Console, Surroundings};
use super::shadow::Shadow;
use super::signals::CpuLink;
use super::video::VideoMemory;
use crate::chardev::Chardevs;
use crate::cli::config::Config;
use crate::clock::GuestClock;
use crate::entropy;
use crate::io_thread::IoHandle;
use crate::net::Netdevs;
use brolga_devices::services::PowerSink;
use std::sync::Arc;

/// The host's side of a machine, and its memory.
pub struct Parts {
    /// Where memory lies.
    pub layout: Layout,
    /// What bus masters reach.
    pub memory: Arc<GuestMemory>,
    /// RAM before ROM.
    pub shadow: Arc<Shadow>,
    /// The graphics card's memory.
    pub video: Arc<VideoMemory>,
    /// Guest time.
    pub clock: Arc<GuestClock>,
    /// Timers and doorbells.
    pub io: IoHandle,
    /// Who acts on resets and power-off.
    pub power: Arc<dyn PowerSink>,
    /// The processors.
    pub links: Vec<Arc<CpuLink>>,
    /// Images.
    pub disks: Arc<Disks>,
    /// What input of character devices goes through.
    pub input: Arc<InputGate>,
    /// Host ends of character devices.
    pub chardevs: Arc<Chardevs>,
    /// Host ends of network cards.
    pub netdevs: Arc<Netdevs>,
}

impl Parts {
    /// Has `build` build something of them.
    pub fn with<R>(&self, config: &Config, build: impl FnOnce(&Surroundings<'_>) -> R) -> R {
        build(&Surroundings {
            config,
            layout: self.layout,
            memory: self.memory.clone(),
            shadow: self.shadow.clone(),
            video: self.video.clone(),
            clock: self.clock.clone(),
            timers: &self.io,
            work: &self.io,
            netdev: &|number| self.netdevs.get(number).map(|netdev| netdev.backend.clone()),
            power: self.power.clone(),
            links: &self.links,
            disk: &|spec| self.disks.open(spec),
            entropy: &|source| entropy::open(source, config.seed, &self.io),
            console: &|id| {
                let (port, input) = (self.chardevs.port(id), self.input.clone());
                Console { backend: port.backend(), connect: Box::new(move |device| port.connect(input.guard(device))) }
            },
        })
    }
}

/// Slots of bus 0 whose devices belong to the board: the chipset, and bridges.
pub fn fixed_slots(taken: impl Iterator<Item = u8>, movable: impl Iterator<Item = u8>) -> Vec<u8> {
    let movable: Vec<u8> = movable.collect();
    let mut fixed: Vec<u8> = taken.filter(|slot| !movable.contains(slot)).collect();
    fixed.extend([0, 1]);
    fixed.sort_unstable();
    fixed.dedup();
    fixed
}
