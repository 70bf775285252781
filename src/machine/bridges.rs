//! PCI bridges, and the buses that devices are plugged in.

use super::storage::Slots;
use crate::cli::config::{Attachment, BridgeSpec, Config, PciBusNumber};
use anyhow::{Context, Result};
use brolga_devices::bus::Bus;
use brolga_devices::pci::bridge::PciBridge;
use brolga_devices::pci::{DevFn, PciBus};
use brolga_devices::services::IrqLine;
use std::sync::Arc;

/// What firmware calls bus 0.
const ROOT_PATH: &str = "/pci@i0cf8";
/// Places of the chipset and of the graphics card.
const CHIPSET: std::ops::Range<u8> = 0..3;

/// A bridge in its place.
pub struct Bridged {
    bridge: Arc<PciBridge>,
    /// What firmware calls it.
    path: String,
}

/// A PCI bus as a device on it sees it.
pub struct Segment<'a> {
    slots: &'a Slots<'a>,
    bridged: Option<&'a Bridged>,
    /// Its number.
    pub number: PciBusNumber,
    /// Tells devices on different buses apart in their names: empty for bus 0.
    pub prefix: String,
}

impl<'a> Segment<'a> {
    /// The bus with this number.
    pub fn new(slots: &'a Slots<'a>, number: PciBusNumber) -> Self {
        let bridged = number.checked_sub(1).and_then(|at| slots.bridges.get(at));
        let prefix = if bridged.is_some() { format!("{number}:") } else { String::new() };
        let number = if bridged.is_some() { number } else { 0 };
        Self { slots, bridged, number, prefix }
    }

    /// Where registers appear.
    pub fn bus(&self) -> &'a Arc<Bus> {
        self.bridged.map_or(self.slots.bus, |bridged| bridged.bridge.bus())
    }

    /// Its slots.
    pub fn pci(&self) -> &'a Arc<PciBus> {
        self.bridged.map_or(self.slots.pci, |bridged| bridged.bridge.slots())
    }

    /// The wire for a pin (1 is INTA#) of a device.
    pub fn intx(&self, device: u8, pin: u8) -> IrqLine {
        match self.bridged {
            Some(bridged) => bridged.bridge.intx(device, pin),
            None => self.slots.piix3.intx(device, pin),
        }
    }

    /// What firmware calls it.
    pub fn path(&self) -> &str {
        self.bridged.map_or(ROOT_PATH, |bridged| &bridged.path)
    }
}

/// Plugs in the bridges that were asked for.
pub fn plug_in(slots: &Slots) -> Result<Vec<Bridged>> {
    let config = slots.s.config;
    let mut all = Vec::new();
    for (number, spec) in (1..).zip(&config.bridges) {
        let so_far = Slots { bridges: &all, ..*slots };
        let next = bridge(&so_far, spec, number).with_context(|| spec.what.clone())?;
        all.push(next);
    }
    Ok(all)
}

fn bridge(slots: &Slots, spec: &BridgeSpec, number: PciBusNumber) -> Result<Bridged> {
    let segment = Segment::new(slots, spec.bus);
    let place = match spec.place {
        Some((device, function)) => DevFn::new(device, function),
        None => DevFn::new(
            free(slots.s.config, &segment, spec.bus).context("all PCI slots are taken; leave a device out")?,
            0,
        ),
    };
    let pins = [1, 2, 3, 4].map(|pin| segment.intx(place.device(), pin));
    let name = format!("pci-bridge.{number}");
    let bridge = PciBridge::new(segment.bus(), &name, spec.chassis, pins);
    segment.pci().insert(place, bridge.clone())?;
    slots.bus.add_device(name, bridge.clone());
    let function = if place.function() == 0 { String::new() } else { format!(",{:x}", place.function()) };
    let path = format!("{}/pci-bridge@{:x}{function}", segment.path(), place.device());
    Ok(Bridged { bridge, path })
}

/// The last slot that nobody is in or asks for: other devices get those that they would have without bridges.
fn free(config: &Config, segment: &Segment, bus: PciBusNumber) -> Option<u8> {
    let mut asked: Vec<u8> = Vec::new();
    let mut ask = |on: PciBusNumber, device: Option<u8>| asked.extend(device.filter(|_| on == bus));
    config.nics.iter().for_each(|nic| ask(nic.pci_bus, nic.place.map(|place| place.0)));
    config.bridges.iter().for_each(|bridge| ask(bridge.bus, bridge.place.map(|place| place.0)));
    config.scsi_hosts.iter().for_each(|host| ask(host.pci_bus, host.slot));
    for drive in &config.drives {
        if let Some(Attachment::VirtioBlk { slot, .. }) = drive.attachment {
            ask(drive.pci_bus, slot);
        }
    }
    config.peripherals.places().for_each(|place| ask(0, Some(place.0)));
    let taken = |device: u8| segment.pci().functions().iter().any(|(place, _)| place.device() == device);
    let reserved = |device: u8| bus == 0 && CHIPSET.contains(&device);
    (1..32).rev().find(|&device| !(reserved(device) || asked.contains(&device) || taken(device)))
}
