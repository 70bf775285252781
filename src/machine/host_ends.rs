//! Host ends that come and go while the machine runs.

use super::Machine;
use crate::monitor::{Class, Fault, RunState};

impl Machine {
    /// Opens a host end for network cards.
    pub(super) fn open_netdev(&self, value: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let mut next = inventory.collected.clone();
        let number = next.network.netdev_later(value).map_err(|error| Fault::new(format!("{error:#}")))?;
        if let Some(spec) = next.network.netdevs.get(number) {
            self.parts.netdevs.add(spec).map_err(|error| Fault::new(format!("{error:#}")))?;
        }
        if self.state() != RunState::Running {
            self.parts.netdevs.get(number).iter().for_each(|netdev| netdev.hold());
        }
        inventory.collected = next;
        Ok(())
    }

    /// Closes a host end; a card that has it is left without.
    pub(super) fn close_netdev(&self, id: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let found = self.parts.netdevs.all().into_iter().find(|(_, netdev)| netdev.id == id);
        let missing = || Fault::of(Class::DeviceNotFound, format!("Device '{id}' not found"));
        let (number, _) = found.ok_or_else(missing)?;
        self.parts.netdevs.remove(number);
        inventory.collected.network.forget_netdev(number);
        Ok(())
    }
}
