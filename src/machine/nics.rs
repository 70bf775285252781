//! Network cards in their PCI slots.

use super::bridges::Segment;
use super::seats::Seat;
use super::storage::Slots;
use crate::cli::config::network::{NetdevKind, NetdevSpec, NicModel, NicSpec};
use crate::cli::config::{Config, Made};
use anyhow::{Context, Result, anyhow};
use brolga_devices::e1000::{self, E1000};
use brolga_devices::pci::DevFn;
use brolga_devices::pci::bar::Rom;
use brolga_devices::rtl8139::{self, Rtl8139};
use brolga_devices::services::{MsiSink, NetBackend, NetFrontend};
use brolga_devices::virtio::net::VirtioNet;
use brolga_devices::virtio::pci::VirtioPci;
use std::sync::{Arc, Weak};

/// INTA#.
const PIN: u8 = 1;

/// The cards that were plugged in.
#[derive(Default)]
pub struct Plugged {
    /// With their numbers, in the order of those.
    pub cards: Vec<(usize, Weak<dyn NetFrontend>)>,
    /// Those with a place in the boot order, and what firmware calls them.
    pub boot_paths: Vec<(u32, String)>,
    /// Where they are.
    pub seats: Vec<Seat>,
}

/// Plugs in the cards that were asked for.
pub fn plug_in(slots: &Slots) -> Result<Plugged> {
    let Slots { s, .. } = slots;
    // Those that say where they go come first, or another might be there.
    let (placed, others): (Vec<_>, Vec<_>) = (0..).zip(&s.config.nics).partition(|(_, nic)| nic.place.is_some());
    let mut plugged = Plugged::default();
    for (index, nic) in placed.into_iter().chain(others) {
        plugged.plug(slots, index, nic)?;
    }
    plugged.cards.sort_by_key(|(index, _)| *index);
    Ok(plugged)
}

impl Plugged {
    /// Plugs in one card.
    pub fn plug(&mut self, slots: &Slots, index: usize, nic: &NicSpec) -> Result<()> {
        let segment = Segment::new(slots, nic.pci_bus);
        let place = match nic.place {
            Some((device, function)) => DevFn::new(device, function),
            None => DevFn::new(
                segment.pci().free_device().ok_or_else(|| anyhow!("all PCI slots are in use; leave cards out"))?,
                0,
            ),
        };
        let plugged = card(slots, &segment, (index, nic), place);
        let (card, seat) = plugged.with_context(|| format!("-device {},addr={place}", nic.model.name()))?;
        self.cards.push((index, card));
        self.seats.push(seat);
        let path = || format!("{}/ethernet@{:x}{}/ethernet-phy@0", segment.path(), place.device(), function(place));
        self.boot_paths.extend(nic.boot_index.map(|at| (at, path())));
        Ok(())
    }
}

/// How Open Firmware's paths show a function: not at all if it is the first.
fn function(place: DevFn) -> String {
    match place.function() {
        0 => String::new(),
        function => format!(",{function:x}"),
    }
}

/// The card's boot ROM. Without firmware nobody would run it.
fn rom(slots: &Slots, nic: &NicSpec) -> Result<Option<Rom>> {
    let Some(path) = nic.rom.as_ref().filter(|_| nic.rom_bar && slots.s.config.boot.bios.is_some()) else {
        return Ok(None);
    };
    let shown = path.display();
    let image = std::fs::read(path).with_context(|| format!("romfile={shown}: cannot be read"))?;
    let rom = Rom::new(&image).ok_or_else(|| anyhow!("romfile={shown}: larger than 16 MiB; use another"))?;
    // Code for modern virtio cards serves the transitional one too, which has another id.
    Ok(Some(match nic.model {
        NicModel::VirtioNet { .. } => rom.made_for(0x1af4, 0x1041, 0x1000),
        NicModel::E1000 | NicModel::Rtl8139 { .. } => rom,
    }))
}

/// Tells the user of cards and host ends that nothing is connected to, as those are mistakes more often than not.
pub fn tell_alone(config: &Config) {
    let program = &config.identity.program;
    for nic in config.nics.iter().filter(|nic| nic.netdev.is_none()) {
        let model = nic.model.name();
        eprintln!(
            "{program}: -device {model}: no host end, its cable leads nowhere; add -netdev user,id=n and netdev=n"
        );
    }
    for (at, netdev) in config.netdevs.iter().enumerate() {
        let at_port =
            |port: &NetdevSpec| matches!(port.kind, NetdevKind::HubPort { netdev: Some(end), .. } if end == at);
        let holds = matches!(netdev.kind, NetdevKind::HubPort { netdev: Some(_), .. });
        if !holds && config.nics.iter().all(|nic| nic.netdev != Some(at)) && !config.netdevs.iter().any(at_port) {
            let id = &netdev.id;
            eprintln!("{program}: -netdev id={id}: no card is connected to it; add -device virtio-net-pci,netdev={id}");
        }
    }
}

fn card(
    slots: &Slots,
    segment: &Segment,
    (index, nic): (usize, &NicSpec),
    place: DevFn,
) -> Result<(Weak<dyn NetFrontend>, Seat)> {
    let Slots { s, bus: all, apics, .. } = slots;
    let seat = |name: &str| segment.seat(Made::Nic(index), place, format!("{name}.{index}"));
    let (bus, pci) = (segment.bus(), segment.pci());
    let rom = rom(slots, nic)?;
    let backend: Option<Arc<dyn NetBackend>> = nic.netdev.and_then(|netdev| (s.netdev)(netdev));
    let irq = segment.intx(place.device(), PIN);
    match nic.model {
        NicModel::E1000 => {
            let surroundings = e1000::Surroundings {
                bus,
                irq,
                dma: s.memory.clone(),
                backend,
                clock: s.clock.clone(),
                timers: s.timers,
                work: s.work,
                rom,
            };
            let card = E1000::new(nic.mac, surroundings)?;
            let frontend = Arc::downgrade(&card.frontend());
            Ok((frontend, seat("e1000").take(all, pci, card)?))
        }
        NicModel::Rtl8139 { plus } => {
            let surroundings = rtl8139::Surroundings {
                bus,
                irq,
                dma: s.memory.clone(),
                backend,
                clock: s.clock.clone(),
                timers: s.timers,
                work: s.work,
                rom,
            };
            let card = Rtl8139::new(nic.mac, plus, surroundings)?;
            let frontend = Arc::downgrade(&card.frontend());
            Ok((frontend, seat("rtl8139").take(all, pci, card)?))
        }
        NicModel::VirtioNet { pairs, without } => {
            let (parts, frontend) = VirtioNet::parts(nic.mac, pairs, without, s.memory.clone(), backend, s.work);
            let msi = Arc::clone(apics) as Arc<dyn MsiSink>;
            let card = VirtioPci::with_rom(bus, parts, irq, msi, rom)?;
            let seat = seat("virtio-net").take(all, pci, card)?;
            Ok((Arc::downgrade(&frontend), seat))
        }
    }
}
