//! Devices that come and go while the machine runs: the same words, added to what is there.

use super::config::peripherals::Peripherals;
use super::config::{Attachment, CharId, DriveSpec, Made, PciBusNumber};
use super::devices::Devices;
use super::drives::Wants;
use super::keyval::KeyValues;
use super::sharing;
use anyhow::{Result, bail};

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
            Made::Rng(_) | Made::PanicFunction(_) | Made::Board => {}
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
            (drive.spec, drive.wants) =
                (DriveSpec { id: Some(node.clone()), node: Some(node), ..fresh }, Wants::Device);
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
