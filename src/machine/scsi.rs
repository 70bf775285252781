//! SCSI hosts in their PCI slots, with disks and CD drives.

use super::bridges::Segment;
use super::storage::{Drives, Slots};
use crate::cli::config::{Attachment, DriveSpec, Made, ScsiHostModel, ScsiHostSpec};
use anyhow::{Context, Result, bail};
use brolga_devices::lsi::{self, Chip, Lsi};
use brolga_devices::pci::DevFn;
use brolga_devices::scsi::{Carrier, Identity, Unit};
use brolga_devices::services::{MediumDrive, MsiSink};
use brolga_devices::virtio::pci::VirtioPci;
use brolga_devices::virtio::scsi::VirtioScsi;
use std::sync::Arc;

/// INTA#.
const PIN: u8 = 1;

/// A host, as it gets its units.
pub enum Host {
    /// Units may come and go.
    Virtio(Arc<VirtioScsi>),
    /// Units are those from the start.
    Lsi(Chip, Arc<Lsi>),
}

impl Host {
    fn plug(&self, target: u8, lun: u16, unit: Unit) -> Result<()> {
        let there = match self {
            Host::Virtio(host) => host.plug((target, lun), unit),
            Host::Lsi(_, host) => host.plug(target, lun.min(u8::MAX.into()) as u8, unit),
        };
        if there { Ok(()) } else { bail!("internal error: there is no place for scsi-id={target}, lun={lun}") }
    }

    fn medium_drive(&self, target: u8, lun: u16) -> Arc<dyn MediumDrive> {
        match self {
            Host::Virtio(host) => host.medium_drive((target, lun)),
            Host::Lsi(_, host) => host.medium_drive(target, lun.min(u8::MAX.into()) as u8),
        }
    }
}

fn lsi(slots: &Slots, segment: &Segment, slot: u8, chip: Chip) -> Result<Arc<Lsi>> {
    let Slots { s, .. } = slots;
    let surroundings = lsi::Surroundings {
        bus: segment.bus(),
        irq: segment.intx(slot, PIN),
        dma: s.memory.clone(),
        clock: s.clock.clone(),
        timers: s.timers,
        work: s.work,
    };
    Ok(Lsi::new(chip, surroundings)?)
}

/// Plugs in all hosts with their units.
pub fn plug_in(slots: &Slots, all: &mut Drives) -> Result<()> {
    let s = slots.s;
    let hosts = || s.config.scsi_hosts.iter().enumerate();
    // Those that name their slot get it first.
    let (fixed, free): (Vec<_>, Vec<_>) = hosts().partition(|(_, spec)| spec.slot.is_some());
    for (index, spec) in fixed.into_iter().chain(free) {
        all.scsi_host(slots, index, spec, &s.config.drives)?;
    }
    Ok(())
}

impl Drives {
    /// Plugs in a host, with those of `drives` that are at it.
    pub fn scsi_host(&mut self, slots: &Slots, index: usize, spec: &ScsiHostSpec, drives: &[DriveSpec]) -> Result<()> {
        let Slots { s, bus, apics, .. } = slots;
        let segment = Segment::new(slots, spec.pci_bus);
        let (pci, prefix) = (segment.pci(), &segment.prefix);
        let slot = spec.slot.or_else(|| pci.free_device());
        let slot = slot.with_context(|| format!("{}: all PCI slots are taken; leave a device out", spec.what))?;
        let host = match spec.model {
            ScsiHostModel::Virtio { queues } => Host::Virtio(VirtioScsi::new(queues, s.memory.clone(), s.work)),
            ScsiHostModel::Lsi(chip) => Host::Lsi(chip, lsi(slots, &segment, slot, chip)?),
        };
        for drive in drives {
            let Some(Attachment::Scsi { host: at, target, lun }) = drive.attachment else { continue };
            if at != index {
                continue;
            }
            self.scsi_unit(slots, &host, drive)?;
            let path = |index| (index, format!("{}/scsi@{slot:x}/channel@0/disk@{target:x},{lun:x}", segment.path()));
            self.boot_paths.extend(drive.boot_index.map(path));
        }
        let seat = |name: &str| {
            let name = format!("{name}@{prefix}{slot:02x}");
            segment.seat(Made::ScsiHost(index), DevFn::new(slot, 0), name)
        };
        let seated = match &host {
            Host::Virtio(host) => {
                let msi = Arc::clone(apics) as Arc<dyn MsiSink>;
                let device = VirtioPci::new(segment.bus(), host.parts(), segment.intx(slot, PIN), msi)?;
                seat("virtio-scsi").take(bus, pci, device)
            }
            Host::Lsi(chip, device) => seat(chip.name()).take(bus, pci, device.clone()),
        };
        self.seats.push(seated.with_context(|| spec.what.clone())?);
        self.hosts.push((index, Arc::new(host)));
        Ok(())
    }

    /// Plugs a disk or CD drive in at a host.
    pub fn scsi_unit(&mut self, slots: &Slots, host: &Host, drive: &DriveSpec) -> Result<()> {
        let Some(Attachment::Scsi { target, lun, .. }) = drive.attachment else { return Ok(()) };
        host.plug(target, lun, Unit::new(identity(drive), self.open(slots.s, drive)?))?;
        if drive.cd {
            self.removable(drive, Some(host.medium_drive(target, lun)));
        }
        Ok(())
    }
}

/// What a unit says it is.
fn identity(spec: &DriveSpec) -> Identity {
    let model = if spec.cd { "BROLGA CD-ROM" } else { "BROLGA HARDDISK" };
    let text = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.to_owned());
    let serial = text(&spec.serial, "");
    // What tells the unit from others: as asked for, or its serial number, or what the host calls it.
    let usual = if serial.is_empty() { text(&spec.id, "") } else { serial.clone() };
    Identity {
        cd: spec.cd,
        carrier: Carrier::Scsi,
        vendor: text(&spec.vendor, "BROLGA"),
        product: text(&spec.model, model),
        revision: text(&spec.version, env!("CARGO_PKG_VERSION")),
        id: text(&spec.device_id, &usual),
        serial,
        wwn: spec.wwn,
    }
}
