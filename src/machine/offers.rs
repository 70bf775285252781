//! Disks that are offered to others by NBD.

use super::Machine;
use crate::cli::config::SocketAddress;
use crate::monitor::{Fault, Offer};
use crate::nbd::{Export, Server};
use serde_json::json;
use std::sync::{MutexGuard, PoisonError};

impl Machine {
    fn nbd(&self) -> MutexGuard<'_, Option<Server>> {
        self.nbd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the server.
    pub(super) fn listen_for_nbd(&self, address: &SocketAddress) -> Result<(), Fault> {
        let mut nbd = self.nbd();
        if nbd.is_some() {
            return Err("NBD server already running".into());
        }
        *nbd = Some(Server::start(address)?);
        Ok(())
    }

    /// Ends the server.
    pub(super) fn end_nbd(&self) -> Result<(), Fault> {
        let server = self.nbd().take().ok_or("NBD server not running")?;
        let ids: Vec<String> = server.exports().into_iter().map(|export| export.id).collect();
        drop(server);
        ids.iter().for_each(|id| self.withdrawn(id));
        Ok(())
    }

    fn withdrawn(&self, id: &str) {
        self.events.emit("BLOCK_EXPORT_DELETED", json!({ "id": id }));
    }

    /// Offers a disk.
    pub(super) fn begin_offer(&self, offer: Offer) -> Result<(), Fault> {
        let nbd = self.nbd();
        let server = nbd.as_ref().ok_or("NBD server not running")?;
        let Offer { id, device, name, description, writable } = offer;
        let absent = || Fault::new(format!("Cannot find device='{device}' nor node-name='{device}'"));
        let (node, disk) = self.disks.outside(&device).ok_or_else(absent)?;
        let taken = format!("Block export id '{id}' is already in use");
        match server.add(Export { id, node, name, description, disk, writable }) {
            true => Ok(()),
            false => Err(Fault::new(taken)),
        }
    }

    /// Ends an offer.
    pub(super) fn end_offer(&self, id: &str, hard: bool) -> Result<(), Fault> {
        let removed = self.nbd().as_ref().and_then(|server| server.remove(id, hard));
        match removed {
            None => Err(Fault::new(format!("Export '{id}' is not found"))),
            Some(false) => Err(Fault::new(format!("export '{id}' still in use"))),
            Some(true) => {
                self.withdrawn(id);
                Ok(())
            }
        }
    }

    /// All offers.
    pub(super) fn all_offers(&self) -> Vec<Offer> {
        let exports = self.nbd().as_ref().map(Server::exports).unwrap_or_default();
        let offer = |Export { id, node, name, description, writable, .. }: Export| Offer {
            id,
            device: node,
            name,
            description,
            writable,
        };
        exports.into_iter().map(offer).collect()
    }

    /// That nobody else has the image of a drive or node.
    pub(super) fn check_offers(&self, name: &str) -> Result<(), Fault> {
        let Some((node, _)) = self.disks.outside(name) else { return Ok(()) };
        match self.all_offers().iter().find(|offer| offer.device == node) {
            Some(offer) => Err(Fault::new(format!("Node '{name}' is busy: it is offered by NBD as '{}'", offer.name))),
            None => Ok(()),
        }
    }
}
