//! Network cards in their PCI slots.

use super::pc::Surroundings;
use crate::cli::config::network::{NicModel, NicSpec};
use anyhow::{Context, Result, anyhow};
use brolga_devices::bus::Bus;
use brolga_devices::e1000::{self, E1000};
use brolga_devices::pci::piix3::Piix3;
use brolga_devices::pci::{DevFn, PciBus};
use std::sync::Arc;

/// INTA#.
const PIN: u8 = 1;

/// Plugs in the cards that were asked for.
pub fn plug_in(s: &Surroundings, bus: &Arc<Bus>, pci: &Arc<PciBus>, bridge: &Arc<Piix3>) -> Result<()> {
    // Those that say where they go come first, or another might be there.
    let (placed, others): (Vec<_>, Vec<_>) = (0..).zip(&s.config.nics).partition(|(_, nic)| nic.place.is_some());
    placed.into_iter().chain(others).try_for_each(|(index, nic)| {
        let place = match nic.place {
            Some((device, function)) => DevFn::new(device, function),
            None => {
                DevFn::new(pci.free_device().ok_or_else(|| anyhow!("all PCI slots are in use; leave cards out"))?, 0)
            }
        };
        card(s, bus, pci, bridge, (index, nic), place)
            .with_context(|| format!("-device {},addr={place}", name(nic.model)))
    })
}

fn name(model: NicModel) -> &'static str {
    match model {
        NicModel::E1000 => "e1000",
    }
}

fn card(
    s: &Surroundings,
    bus: &Arc<Bus>,
    pci: &Arc<PciBus>,
    bridge: &Arc<Piix3>,
    (index, nic): (usize, &NicSpec),
    place: DevFn,
) -> Result<()> {
    let netdev = nic.netdev.and_then(|netdev| s.netdevs.get(netdev));
    match nic.model {
        NicModel::E1000 => {
            let surroundings = e1000::Surroundings {
                bus,
                irq: bridge.intx(place.device(), PIN),
                dma: s.memory.clone(),
                backend: netdev.map(|netdev| netdev.backend.clone()),
                clock: s.clock.clone(),
                timers: s.timers,
                work: s.work,
            };
            let card = E1000::new(nic.mac, surroundings)?;
            pci.insert(place, card.clone())?;
            bus.add_device(format!("e1000.{index}"), card);
        }
    }
    Ok(())
}
