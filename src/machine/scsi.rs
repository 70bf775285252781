//! SCSI hosts in their PCI slots, with disks and CD drives.

use super::storage::{Drives, Slots};
use crate::cli::config::{Attachment, DriveSpec};
use anyhow::{Context, Result};
use brolga_devices::pci::DevFn;
use brolga_devices::scsi::{Carrier, Identity, Unit};
use brolga_devices::services::MsiSink;
use brolga_devices::virtio::pci::VirtioPci;
use brolga_devices::virtio::scsi::VirtioScsi;
use std::sync::Arc;

/// Plugs in all hosts with their units.
pub fn plug_in(slots: &Slots, all: &mut Drives) -> Result<()> {
    let Slots { s, bus, pci, piix3, apics } = slots;
    let hosts = || s.config.scsi_hosts.iter().enumerate();
    // Those that name their slot get it first.
    let (fixed, free): (Vec<_>, Vec<_>) = hosts().partition(|(_, spec)| spec.slot.is_some());
    for (index, spec) in fixed.into_iter().chain(free) {
        let slot = spec.slot.or_else(|| pci.free_device());
        let slot = slot.with_context(|| format!("{}: all PCI slots are taken; leave a device out", spec.what))?;
        let host = VirtioScsi::new(spec.queues, s.memory.clone(), s.work);
        for drive in &s.config.drives {
            let Some(Attachment::Scsi { host: at, target, lun }) = drive.attachment else { continue };
            if at != index {
                continue;
            }
            host.plug((target, lun), Unit::new(identity(drive), all.open(s, drive)?));
            if drive.cd {
                all.removable(drive, Some(host.medium_drive((target, lun))));
            }
            let path = |index| (index, format!("/pci@i0cf8/scsi@{slot:x}/channel@0/disk@{target:x},{lun:x}"));
            all.boot_paths.extend(drive.boot_index.map(path));
        }
        let msi = Arc::clone(apics) as Arc<dyn MsiSink>;
        let device = VirtioPci::new(bus, host.parts(), piix3.intx(slot, 1), msi)?;
        pci.insert(DevFn::new(slot, 0), device.clone()).with_context(|| spec.what.clone())?;
        bus.add_device(format!("virtio-scsi@{slot:02x}"), device);
    }
    Ok(())
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
