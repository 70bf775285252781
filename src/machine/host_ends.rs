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

    /// Opens a host end for character devices.
    pub(super) fn open_chardev(&self, value: &str) -> Result<Option<String>, Fault> {
        let mut inventory = self.inventory();
        let mut next = inventory.collected.chars.clone();
        let id = next.define_later(value).map_err(|error| plain("-chardev", value, &error))?;
        let Some(spec) = next.chardevs.get(id.0) else { return Ok(None) };
        let pty = self.parts.chardevs.add(id, spec)?;
        inventory.collected.chars = next;
        Ok(pty)
    }

    /// Opens another one in the place of one.
    pub(super) fn swap_chardev(&self, label: &str, value: &str) -> Result<Option<String>, Fault> {
        let mut inventory = self.inventory();
        let mut next = inventory.collected.chars.clone();
        let id = next.known(label).ok_or_else(|| Fault::new(format!("Chardev '{label}' does not exist")))?;
        self.parts.chardevs.can_change(id)?;
        next.redefine(id, value).map_err(|error| plain("-chardev", value, &error))?;
        let Some(spec) = next.chardevs.get(id.0) else { return Ok(None) };
        if spec.mux {
            return Err("Mux device hotswap not supported yet".into());
        }
        let pty = self.parts.chardevs.change(id, spec)?;
        inventory.collected.chars = next;
        Ok(pty)
    }

    /// Closes one that nobody uses.
    pub(super) fn close_chardev(&self, label: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let chars = &mut inventory.collected.chars;
        let id = chars.known(label).ok_or_else(|| Fault::new(format!("Chardev '{label}' not found")))?;
        if chars.is_used(id) {
            return Err(Fault::new(format!("Chardev '{label}' is busy")));
        }
        chars.forget(id);
        self.parts.chardevs.remove(id);
        Ok(())
    }

    /// Makes an object that devices may name.
    pub(super) fn make_object(&self, value: &str) -> Result<(), Fault> {
        let objects = &mut self.inventory().collected.peripherals.objects;
        let id = value.split(',').find_map(|part| part.strip_prefix("id="));
        if let Some(id) = id.filter(|id| objects.has(id)) {
            let why = format!("attempt to add duplicate property '{id}' to object (type 'container')");
            return Err(Fault::new(why));
        }
        objects.add(value).map_err(|error| plain("-object", value, &error))
    }

    /// Opens an image for a device to come.
    pub(super) fn open_drive(&self, value: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let mut next = inventory.collected.drives.clone();
        let at = next.drive_later(value).map_err(|error| plain("-drive", value, &error))?;
        if let Some(drive) = next.drives.get(at) {
            self.disks.shelve(&drive.spec).map_err(|error| plain("-drive", value, &error))?;
        }
        inventory.collected.drives = next;
        Ok(())
    }

    /// Closes an image of `-drive` that no device has.
    pub(super) fn close_unused(&self, id: &str) -> Result<(), Fault> {
        self.check_offers(id)?;
        let mut inventory = self.inventory();
        let drives = &mut inventory.collected.drives;
        if drives.forget_unused(id).is_none() {
            return Err(match drives.drives.iter().any(|drive| drive.spec.id.as_deref() == Some(id)) {
                true => Fault::new(format!("Device '{id}' is in use: take its device away with device_del")),
                false => Fault::of(Class::DeviceNotFound, format!("Device '{id}' not found")),
            });
        }
        self.close_shelved(id)
    }

    /// Closes an image on the shelf.
    fn close_shelved(&self, id: &str) -> Result<(), Fault> {
        match self.disks.take_down(id) {
            Some((_, disk)) => self.disks.remove(&disk).map_err(Fault::new),
            None => Ok(()),
        }
    }

    /// Opens an image as a node.
    pub(super) fn open_node(&self, value: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let mut next = inventory.collected.drives.clone();
        let (covered, spec) = next.node_later(value).map_err(|error| plain("-blockdev", value, &error))?;
        // What is below it is opened with it, and by nobody else.
        for below in covered.iter().filter_map(|spec| spec.id.as_deref()) {
            self.close_shelved(below)?;
        }
        if let Err(error) = self.disks.shelve(&spec) {
            for below in &covered {
                self.disks.shelve(below).map_err(|error| plain("-blockdev", value, &error))?;
            }
            return Err(plain("-blockdev", value, &error));
        }
        inventory.collected.drives = next;
        Ok(())
    }

    /// Closes a node.
    pub(super) fn close_node(&self, name: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        self.check_offers(name)?;
        let mut next = inventory.collected.drives.clone();
        let again = next.forget_node(name).map_err(|error| Fault::new(error.to_string()))?;
        if !self.disks.shelved().iter().any(|(spec, _)| spec.node.as_deref() == Some(name)) {
            return Err(Fault::new(format!("Node {name} is in use")));
        }
        self.close_shelved(name)?;
        inventory.collected.drives = next;
        for below in &again {
            self.disks.shelve(below).map_err(|error| Fault::new(format!("{error:#}")))?;
        }
        Ok(())
    }
}

/// Why not, without the option's name and value, which the user has just typed.
fn plain(option: &str, value: &str, error: &anyhow::Error) -> Fault {
    let text = format!("{error:#}");
    Fault::new(text.strip_prefix(&format!("{option} {value}: ")).unwrap_or(&text))
}
