//! Network cards in their PCI slots.

use super::storage::Slots;
use crate::cli::config::network::{NicModel, NicSpec};
use anyhow::{Context, Result, anyhow};
use brolga_devices::e1000::{self, E1000};
use brolga_devices::pci::DevFn;
use brolga_devices::services::MsiSink;
use brolga_devices::virtio::net::VirtioNet;
use brolga_devices::virtio::pci::VirtioPci;
use std::sync::Arc;

/// INTA#.
const PIN: u8 = 1;

/// Plugs in the cards that were asked for.
pub fn plug_in(slots: &Slots) -> Result<()> {
    let Slots { s, pci, .. } = slots;
    // Those that say where they go come first, or another might be there.
    let (placed, others): (Vec<_>, Vec<_>) = (0..).zip(&s.config.nics).partition(|(_, nic)| nic.place.is_some());
    placed.into_iter().chain(others).try_for_each(|(index, nic)| {
        let place = match nic.place {
            Some((device, function)) => DevFn::new(device, function),
            None => {
                DevFn::new(pci.free_device().ok_or_else(|| anyhow!("all PCI slots are in use; leave cards out"))?, 0)
            }
        };
        card(slots, (index, nic), place).with_context(|| format!("-device {},addr={place}", name(nic.model)))
    })
}

fn name(model: NicModel) -> &'static str {
    match model {
        NicModel::E1000 => "e1000",
        NicModel::VirtioNet { .. } => "virtio-net-pci",
    }
}

fn card(slots: &Slots, (index, nic): (usize, &NicSpec), place: DevFn) -> Result<()> {
    let Slots { s, bus, pci, piix3, apics } = slots;
    let backend = nic.netdev.and_then(|netdev| s.netdevs.get(netdev)).map(|netdev| netdev.backend.clone());
    let irq = piix3.intx(place.device(), PIN);
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
            };
            let card = E1000::new(nic.mac, surroundings)?;
            pci.insert(place, card.clone())?;
            bus.add_device(format!("e1000.{index}"), card);
        }
        NicModel::VirtioNet { pairs } => {
            let parts = VirtioNet::parts(nic.mac, pairs, s.memory.clone(), backend, s.work);
            let card = VirtioPci::new(bus, parts, irq, Arc::clone(apics) as Arc<dyn MsiSink>)?;
            pci.insert(place, card.clone())?;
            bus.add_device(format!("virtio-net.{index}"), card);
        }
    }
    Ok(())
}
