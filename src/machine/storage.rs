//! Which disks a PC has, and where: IDE channels at their old ports, virtio disks in PCI slots.

use super::bridges::{Bridged, Segment};
use super::media::Plugged;
use super::pc::Surroundings;
use super::scsi::{self, Host};
use super::seats::Seat;
use crate::cli::config::{Attachment, DriveSpec, Made};
use anyhow::{Context, Result};
use brolga_devices::bus::Bus;
use brolga_devices::ide::{Channel, DriveConfig};
use brolga_devices::lapic::LocalApics;
use brolga_devices::pci::piix3::Piix3;
use brolga_devices::pci::piix3_ide::Piix3Ide;
use brolga_devices::pci::{DevFn, PciBus};
use brolga_devices::services::{Disk, IrqLine, MediumDrive, MsiSink};
use brolga_devices::virtio::blk::VirtioBlk;
use brolga_devices::virtio::pci::VirtioPci;
use std::sync::Arc;

/// The PCI function of both IDE channels.
pub const IDE_FUNCTION: DevFn = DevFn::new(1, 1);
/// IDE channels: command block, control port, ISA interrupt.
pub const IDE_CHANNELS: [(u16, u16, u32); 2] = [(0x1F0, 0x3F6, 14), (0x170, 0x376, 15)];

/// Drives in their places.
#[derive(Default)]
pub struct Drives {
    /// Devices with a place in the boot order, and what firmware calls them (IEEE 1275).
    pub boot_paths: Vec<(u32, String)>,
    /// All drives.
    pub plugged: Vec<Plugged>,
    /// SCSI hosts, by their numbers.
    pub hosts: Vec<(usize, Arc<Host>)>,
    /// Where devices are.
    pub seats: Vec<Seat>,
}

impl Drives {
    /// Opens the image of `spec`, and takes note of the drive.
    pub fn open(&mut self, s: &Surroundings, spec: &DriveSpec) -> Result<Option<Arc<dyn Disk>>> {
        let disk = (s.disk)(spec)?;
        self.plugged.push(Plugged { spec: spec.clone(), disk: disk.clone(), drive: None });
        Ok(disk)
    }

    /// The drive that was noted last for `spec` has a medium that can be changed.
    pub fn removable(&mut self, spec: &DriveSpec, drive: Option<Arc<dyn MediumDrive>>) {
        if let Some(plugged) = self.plugged.iter_mut().rev().find(|plugged| plugged.spec == *spec) {
            plugged.drive = drive;
        }
    }
}

/// Where disks are plugged in.
pub struct Slots<'a> {
    /// What was asked for, and the host's side.
    pub s: &'a Surroundings<'a>,
    /// Ports and addresses.
    pub bus: &'a Arc<Bus>,
    /// PCI slots.
    pub pci: &'a Arc<PciBus>,
    /// Interrupt pins of slots.
    pub piix3: &'a Arc<Piix3>,
    /// Where messages go.
    pub apics: &'a Arc<LocalApics>,
    /// Bridges, in the configuration's order.
    pub bridges: &'a [Bridged],
}

/// Plugs in all drives. `interrupts` are those of the IDE channels.
pub fn plug_in(slots: &Slots, interrupts: [IrqLine; 2]) -> Result<Drives> {
    let mut all = Drives::default();
    ide(slots, interrupts, &mut all)?;
    virtio(slots, &mut all)?;
    scsi::plug_in(slots, &mut all)?;
    for spec in &slots.s.config.drives {
        let (Some(Attachment::Ide { channel, unit }), Some(index)) = (spec.attachment, spec.boot_index) else {
            continue;
        };
        all.boot_paths.push((index, format!("/pci@i0cf8/ide@1,1/drive@{channel}/disk@{unit}")));
    }
    Ok(all)
}

/// The IDE channels, where there are drives for them, or firmware that looks for some.
fn ide(slots: &Slots, interrupts: [IrqLine; 2], all: &mut Drives) -> Result<()> {
    let Slots { s, bus, pci, .. } = slots;
    let mut drives: [[Option<DriveConfig>; 2]; 2] = Default::default();
    for spec in &s.config.drives {
        let Some(Attachment::Ide { channel, unit }) = spec.attachment else { continue };
        drives[usize::from(channel & 1)][usize::from(unit & 1)] = Some(ide_drive(spec, all.open(s, spec)?));
    }
    if s.config.boot.bios.is_none() && drives.iter().flatten().all(Option::is_none) {
        return Ok(());
    }
    let mut channels = Vec::new();
    let places = drives.into_iter().zip(IDE_CHANNELS).zip(interrupts);
    for (i, ((drives, (command, control, _)), irq)) in places.enumerate() {
        let name = format!("ide{i}");
        let channel = Channel::new(&name, drives, s.memory.clone(), irq);
        bus.register_pio(command, 8, &name, channel.command_ports())?;
        bus.register_pio(control, 1, &name, channel.control_port())?;
        bus.add_device(name, channel.clone());
        channels.push(channel);
    }
    for spec in &s.config.drives {
        let Some(Attachment::Ide { channel, unit }) = spec.attachment else { continue };
        all.removable(spec, channels.get(usize::from(channel)).and_then(|c| c.medium_drive(unit != 0)));
    }
    if let [first, second] = channels.as_slice() {
        let function = Piix3Ide::new(bus, [first, second]);
        pci.insert(IDE_FUNCTION, function.clone())?;
        bus.add_device("piix3-ide", function);
    }
    Ok(())
}

/// Virtio disks in their PCI slots.
fn virtio(slots: &Slots, all: &mut Drives) -> Result<()> {
    let disks = |fixed: bool| {
        slots.s.config.drives.iter().enumerate().filter(
            move |(_, d)| matches!(d.attachment, Some(Attachment::VirtioBlk { slot, .. }) if slot.is_some() == fixed),
        )
    };
    // Those that name their slot get it first.
    disks(true).chain(disks(false)).try_for_each(|(index, spec)| all.virtio_disk(slots, index, spec))
}

impl Drives {
    /// Plugs in a virtio disk.
    pub fn virtio_disk(&mut self, slots: &Slots, index: usize, spec: &DriveSpec) -> Result<()> {
        let Slots { s, bus, apics, .. } = slots;
        let Some(Attachment::VirtioBlk { slot, queues }) = spec.attachment else { return Ok(()) };
        let segment = Segment::new(slots, spec.pci_bus);
        let slot = slot.or_else(|| segment.pci().free_device());
        let slot = slot.with_context(|| format!("{}: all PCI slots are taken; leave a device out", spec.what))?;
        let disk = self.open(s, spec)?.with_context(|| format!("{}: it needs an image", spec.what))?;
        let serial = spec.serial.as_deref().unwrap_or("");
        let parts = VirtioBlk::parts(disk, serial, queues, s.memory.clone(), s.work);
        let messages = Arc::clone(apics) as Arc<dyn MsiSink>;
        let device = VirtioPci::new(segment.bus(), parts, segment.intx(slot, 1), messages)?;
        let name = format!("virtio-blk@{}{slot:02x}", segment.prefix);
        let seat = segment.seat(Made::Disk(index), DevFn::new(slot, 0), name);
        self.seats.push(seat.take(bus, segment.pci(), device).with_context(|| spec.what.clone())?);
        let path = |index| (index, format!("{}/scsi@{slot:x}/disk@0,0", segment.path()));
        self.boot_paths.extend(spec.boot_index.map(path));
        Ok(())
    }
}

/// What an IDE drive calls itself. Serial numbers tell drives apart, so there is always one.
fn ide_drive(spec: &DriveSpec, disk: Option<Arc<dyn Disk>>) -> DriveConfig {
    let place = match spec.attachment {
        Some(Attachment::Ide { channel, unit }) => channel * 2 + unit + 1,
        _ => 0,
    };
    let model = if spec.cd { "BROLGA DVD-ROM" } else { "BROLGA HARDDISK" };
    DriveConfig {
        disk,
        cd: spec.cd,
        serial: spec.serial.clone().unwrap_or_else(|| format!("BG{place:05}")),
        model: spec.model.clone().unwrap_or_else(|| model.to_owned()),
        version: spec.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
    }
}
