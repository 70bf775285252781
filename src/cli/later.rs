//! Devices that come and go while the machine runs: the same words, added to what is there.

use super::config::peripherals::Peripherals;
use super::config::{Attachment, CharId, DriveSpec, Made, PciBusNumber};
use super::devices::Devices;
use super::drives::{Pending, Wants};
use super::keyval::KeyValues;
use super::{blockdev, sharing};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// What becomes of the image that a disk had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It is below the new one.
    Below,
    /// Nobody uses it.
    Free,
    /// The new one was below it, and has all of it now.
    Gone,
}

impl Devices {
    /// Adds a device to a machine that is there, and gives it all that is its own.
    pub fn add_later(&mut self, value: &str) -> Result<Made> {
        let buses = self.peripherals.wanted.serial_buses.len();
        self.check_names(value)?;
        self.add(value)?;
        let made = self.given.last().map_or(Made::Board, |spec| spec.made);
        if matches!(made, Made::SerialPort { .. }) && self.peripherals.wanted.serial_buses.len() > buses {
            bail!("No 'virtio-serial-bus' bus found for device 'virtserialport'");
        }
        sharing::check_tags(&self.peripherals.wanted.shares)?;
        self.network.settle_later()?;
        self.drives.place()?;
        Ok(made)
    }

    /// The id is to be a new one, the bus one that there is; what is wrong is said in QEMU's words.
    fn check_names(&self, value: &str) -> Result<()> {
        let keys = KeyValues::parse("-device", value, Some("driver"))?;
        if let Some(id) = keys.peek("id")
            && self.given.iter().any(|other| other.id.as_deref() == Some(id))
        {
            bail!("Duplicate device ID '{id}'");
        }
        let Some(bus) = keys.peek("bus") else { return Ok(()) };
        let serial = self.peripherals.wanted.serial_buses.iter().filter_map(|bus| bus.id.as_deref());
        let known = ["pci.0", "ide.0", "ide.1", "isa.0"].contains(&bus)
            || self.bridges.iter().any(|bridge| bridge.id == bus)
            || self.drives.scsi_hosts.iter().any(|host| host.bus == bus)
            || serial.into_iter().any(|id| bus.strip_suffix(".0").unwrap_or(bus) == id);
        if known { Ok(()) } else { bail!("Bus '{bus}' not found") }
    }

    /// A device was taken away: its name and what it had are free again.
    pub fn forget(&mut self, made: Made) {
        self.given.retain(|spec| spec.made != made || made == Made::Board);
        let Peripherals { balloon, serial_buses, shares, watchdog, .. } = &mut self.peripherals.wanted;
        match made {
            Made::Nic(at) => self.network.forget_card(at),
            Made::Disk(at) | Made::ScsiUnit(at) => self.drives.forget(at),
            Made::ScsiHost(at) => self.drives.forget_host(at),
            Made::Balloon => *balloon = None,
            Made::Watchdog => *watchdog = None,
            Made::Share(at) => {
                if let Some(share) = shares.get_mut(at) {
                    share.tag.clear();
                    let path = share.path.clone();
                    self.peripherals.shares.release(&path);
                }
            }
            Made::SerialBus(at) => {
                if let Some(bus) = serial_buses.get_mut(at) {
                    let ports: Vec<CharId> = bus.ports.drain(..).map(|port| port.chardev).collect();
                    (bus.id, bus.gone) = (None, true);
                    ports.into_iter().for_each(|port| self.chars.release(port));
                }
            }
            Made::SerialPort { bus, number } => {
                let ports = serial_buses.get_mut(bus).map(|bus| &mut bus.ports);
                if let Some(ports) = ports
                    && let Some(at) = ports.iter().position(|port| port.number == number)
                {
                    let port = ports.remove(at);
                    self.chars.release(port.chardev);
                }
            }
            Made::Rng(_) | Made::PanicFunction(_) | Made::Processor(_) | Made::Board => {}
        }
    }

    /// The SCSI host that a drive is at.
    pub fn host_of(&self, drive: usize) -> Option<usize> {
        match self.drive(drive)?.attachment {
            Some(Attachment::Scsi { host, .. }) => Some(host),
            _ => None,
        }
    }

    /// Target and unit of a drive at a SCSI host.
    pub fn scsi_place(&self, drive: usize) -> Option<(u8, u16)> {
        match self.drive(drive)?.attachment {
            Some(Attachment::Scsi { target, lun, .. }) => Some((target, lun)),
            _ => None,
        }
    }

    /// The PCI bus of a device.
    pub fn pci_bus(&self, made: Made) -> PciBusNumber {
        let bus = match made {
            Made::Nic(at) => self.network.nics.get(at).map(|nic| nic.pci_bus),
            Made::Disk(at) => self.drive(at).map(|drive| drive.pci_bus),
            Made::ScsiHost(at) => self.drives.scsi_hosts.get(at).map(|host| host.pci_bus),
            _ => None,
        };
        bus.unwrap_or(0)
    }

    /// The name of that bus.
    pub fn pci_bus_name(&self, made: Made) -> String {
        let bridge = self.pci_bus(made).checked_sub(1).and_then(|at| self.bridges.get(at));
        bridge.map_or_else(|| "pci.0".to_owned(), |bridge| bridge.id.clone())
    }

    /// The drive with this number.
    pub fn drive(&self, at: usize) -> Option<&DriveSpec> {
        self.drives.drives.get(at).map(|drive| &drive.spec)
    }
}

impl super::drives::Drives {
    /// One more drive, in the grammar of `-drive`, for a device to come; its number.
    pub fn drive_later(&mut self, value: &str) -> Result<usize> {
        let before = self.drives.len();
        self.drive(value, false)?;
        match self.drives.get(before) {
            Some(drive) if drive.wants == Wants::Device => Ok(before),
            _ => bail!("Can't hot-add drive: use if=none, and device_add with drive="),
        }
    }

    /// One more node, in the grammar of `-blockdev`. What changes: drives that no device had and that are below it now, and
    /// itself.
    pub fn node_later(&mut self, value: &str) -> Result<(Vec<DriveSpec>, DriveSpec)> {
        let keys = KeyValues::parse("-blockdev", value, Some("driver"))?;
        let Some(name) = keys.peek("node-name").map(str::to_owned) else {
            bail!("'node-name' must be specified for the root node");
        };
        if self.knows(&name) {
            bail!("Duplicate nodes with node-name='{name}'");
        }
        let values: Vec<String> = self.nodes.iter().cloned().chain([value.to_owned()]).collect();
        let all = blockdev::collect(&values)?;
        let mut covered = Vec::new();
        for node in all.iter().filter(|node| node.under.as_ref() == Some(&name)) {
            let at = self.drives.iter().position(|drive| drive.spec.node.as_ref() == Some(&node.name));
            if let Some(drive) = at.and_then(|at| self.drives.get_mut(at)) {
                if drive.spec.attachment.is_some() || drive.wants != Wants::Device {
                    bail!("Node '{}' is in use", node.name);
                }
                covered.push(drive.spec.clone());
                (drive.wants, drive.spec.id, drive.spec.node) = (Wants::Gone, None, None);
            }
            self.below.push((node.name.clone(), name.clone()));
        }
        let Some(node) = all.into_iter().find(|node| node.name == name) else { bail!("internal error: no such node") };
        let spec = self.add_node(node);
        self.nodes = values;
        Ok((covered, spec))
    }

    /// Adds a node that no other is above.
    fn add_node(&mut self, node: blockdev::Opened) -> DriveSpec {
        let fresh = DriveSpec::new(&format!("-blockdev node-name={}", node.name), Some(node.path), false, node.options);
        let (id, file_node) = (Some(node.name.clone()), node.file_node);
        let spec = DriveSpec { id, node: Some(node.name), file_node, ..fresh };
        self.drives.push(Pending { spec: spec.clone(), wants: Wants::Device });
        spec
    }

    /// Whether a drive or node is called `name`.
    fn knows(&self, name: &str) -> bool {
        self.drives.iter().any(|drive| drive.spec.id.as_deref() == Some(name))
            || self.below.iter().any(|(below, _)| below == name)
    }

    /// Takes a node away that no device has and that is below no other; those that were below it alone are to be opened
    /// again.
    pub fn forget_node(&mut self, name: &str) -> Result<Vec<DriveSpec>> {
        if self.below.iter().any(|(below, _)| below == name) {
            bail!("Node '{name}' is busy: node is used as 'file' of '{}'", self.above(name));
        }
        let at = self.drives.iter().position(|drive| drive.spec.node.as_deref() == Some(name));
        let Some(drive) = at.and_then(|at| self.drives.get_mut(at)) else {
            bail!("Failed to find node with node-name='{name}'");
        };
        if drive.spec.attachment.is_some() || drive.wants != Wants::Device {
            bail!("Node {name} is in use");
        }
        (drive.wants, drive.spec.id, drive.spec.node) = (Wants::Gone, None, None);
        let named = |value: &String| {
            KeyValues::parse("-blockdev", value, Some("driver")).is_ok_and(|keys| keys.peek("node-name") == Some(name))
        };
        self.nodes.retain(|value| !named(value));
        let bare: Vec<String> =
            self.below.iter().filter(|(_, above)| above == name).map(|(node, _)| node.clone()).collect();
        self.below.retain(|(_, above)| above != name);
        let all = blockdev::collect(&self.nodes)?;
        let again = all.into_iter().filter(|node| bare.contains(&node.name) && node.under.is_none());
        let again: Vec<_> = again.collect();
        Ok(again.into_iter().map(|node| self.add_node(node)).collect())
    }

    /// The image of a disk, which was called `old`, is the node `new` from now on. The old one, if it is free now.
    pub fn succeed(&mut self, old: &str, new: &str, how: Succession) -> Option<DriveSpec> {
        let of = |name: &str| self.drives.iter().position(|drive| drive.spec.node.as_deref() == Some(name));
        let (disk, next) = (of(old), of(new));
        if how == Succession::Gone {
            let file = self.node_file(new);
            if let Some(Pending { spec, .. }) = disk.and_then(|at| self.drives.get_mut(at)) {
                (spec.node, spec.file) = (Some(new.to_owned()), file);
            }
            // All that were between the two went with the old one.
            let mut name = new.to_owned();
            while let Some(at) = self.below.iter().position(|(below, _)| *below == name) {
                (_, name) = self.below.swap_remove(at);
                self.drop_node(&name);
            }
            return None;
        }
        let next = next?;
        if let Some(disk) = disk
            && let Ok([disk, next]) = self.drives.get_disjoint_mut([disk, next])
        {
            let (disk, next) = (&mut disk.spec, &mut next.spec);
            std::mem::swap(&mut disk.node, &mut next.node);
            std::mem::swap(&mut disk.file, &mut next.file);
            std::mem::swap(&mut disk.file_node, &mut next.file_node);
            std::mem::swap(&mut disk.options.format, &mut next.options.format);
            std::mem::swap(&mut disk.options.backing, &mut next.options.backing);
            next.id = next.node.clone();
            next.what = format!("-blockdev node-name={old}");
        }
        let free = self.drives.get_mut(next)?;
        if disk.is_some() && how == Succession::Free {
            return Some(free.spec.clone());
        }
        (free.wants, free.spec.id, free.spec.node) = (Wants::Gone, None, None);
        // Without a node's name the old one is the drive's.
        let (below, above) = if how == Succession::Below { (old, new) } else { (new, old) };
        self.below.push((below.to_owned(), above.to_owned()));
        None
    }

    /// A chain is shorter now: of the nodes below `top`, those that lie in none of `files` are forgotten.
    pub fn prune(&mut self, top: &str, files: &[PathBuf]) {
        let mut all = vec![top.to_owned()];
        let mut at = 0;
        while let Some(above) = all.get(at).cloned() {
            let below = self.below.iter().filter(|(_, upper)| *upper == above).map(|(lower, _)| lower.clone());
            all.extend(below.collect::<Vec<_>>());
            at += 1;
        }
        let stays = |drives: &Self, name: &str| drives.node_file(name).is_none_or(|file| files.contains(&file));
        let (stay, go): (Vec<String>, Vec<String>) = all.into_iter().partition(|name| stays(self, name));
        for (lower, upper) in &mut self.below {
            if go.contains(upper) && stay.contains(lower) {
                top.clone_into(upper);
            }
        }
        self.below.retain(|(lower, _)| !go.contains(lower));
        go.iter().for_each(|name| self.drop_node(name));
    }

    /// The node `name` is forgotten, with those that were for it alone.
    fn drop_node(&mut self, name: &str) {
        let named = |value: &String| {
            KeyValues::parse("-blockdev", value, Some("driver")).is_ok_and(|keys| keys.peek("node-name") == Some(name))
        };
        self.nodes.retain(|value| !named(value));
        let own: Vec<String> =
            self.below.iter().filter(|(_, above)| above == name).map(|(node, _)| node.clone()).collect();
        self.below.retain(|(_, above)| above != name);
        own.iter().for_each(|node| self.drop_node(node));
    }

    /// The file of a node.
    pub fn node_file(&self, name: &str) -> Option<PathBuf> {
        let nodes = blockdev::collect(&self.nodes).ok()?;
        nodes.into_iter().find(|node| node.name == name).map(|node| node.path)
    }

    /// The node above another.
    fn above(&self, name: &str) -> String {
        self.below.iter().find(|(below, _)| below == name).map_or_else(String::new, |(_, above)| above.clone())
    }

    /// Takes a drive of `-drive` away that no device has.
    pub fn forget_unused(&mut self, id: &str) -> Option<DriveSpec> {
        let drive = self.drives.iter_mut().find(|drive| drive.spec.id.as_deref() == Some(id))?;
        if drive.wants != Wants::Device || drive.spec.attachment.is_some() || drive.spec.node.is_some() {
            return None;
        }
        let spec = drive.spec.clone();
        (drive.wants, drive.spec.id) = (Wants::Gone, None);
        Some(spec)
    }

    /// Drives that no device has.
    pub fn free(&self) -> impl Iterator<Item = &DriveSpec> {
        let free = |drive: &&Pending| drive.wants == Wants::Device && drive.spec.attachment.is_none();
        self.drives.iter().filter(free).map(|drive| &drive.spec)
    }

    /// Whether a drive is at that SCSI host.
    pub fn is_at(&self, drive: usize, host: usize) -> bool {
        let attachment = self.drives.get(drive).and_then(|drive| drive.spec.attachment);
        matches!(attachment, Some(Attachment::Scsi { host: at, .. }) if at == host)
    }

    /// A drive's device was taken away. What was named for devices alone goes with it, nodes stay.
    pub fn forget(&mut self, at: usize) {
        let Some(drive) = self.drives.get_mut(at) else { return };
        if let Some(node) = drive.spec.node.clone() {
            let what = format!("-blockdev node-name={node}");
            let fresh = DriveSpec::new(&what, drive.spec.file.take(), false, drive.spec.options.clone());
            let file_node = drive.spec.file_node.take();
            (drive.spec, drive.wants) =
                (DriveSpec { id: Some(node.clone()), node: Some(node), file_node, ..fresh }, Wants::Device);
            return;
        }
        drive.wants = Wants::Gone;
        (drive.spec.id, drive.spec.device, drive.spec.boot_index, drive.spec.attachment) = (None, None, None, None);
        drive.spec.what.clear();
    }

    /// A SCSI host was taken away.
    pub fn forget_host(&mut self, at: usize) {
        if let Some(host) = self.scsi_hosts.get_mut(at) {
            host.bus.clear();
        }
    }
}
