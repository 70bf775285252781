//! The floppy controller, where there are drives for it.

use super::pc::Surroundings;
use super::storage::Drives;
use crate::cli::config::Attachment;
use anyhow::Result;
use brolga_devices::bus::Bus;
use brolga_devices::fdc::{DRIVES, DriveConfig, DriveType, Fdc, Geometry, PORTS};
use brolga_devices::isa_dma::IsaDma;
use brolga_devices::rtc::{Rtc, cmos};
use brolga_devices::services::IrqLine;
use std::sync::Arc;

/// Ports: the registers, and the one apart.
const REGISTERS: u16 = 0x3F0;
const INPUT: u16 = 0x3F7;
/// ISA interrupt and DMA channel.
pub const IRQ: u32 = 6;
/// See [`IRQ`].
pub const CHANNEL: usize = 2;
/// Equipment byte: an x87 and a mouse, floppy drives, and one more than the first.
const EQUIPPED: u8 = 0x07;
const SECOND: u8 = 0x40;
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Plugs in the controller, and tells firmware of its drives.
pub fn plug_in(
    s: &Surroundings,
    bus: &Arc<Bus>,
    (dma, irq): (&Arc<IsaDma>, IrqLine),
    rtc: &Rtc,
    all: &mut Drives,
) -> Result<()> {
    let mut drives: [Option<DriveConfig>; DRIVES] = Default::default();
    for spec in &s.config.drives {
        let Some(Attachment::Floppy { unit, kind }) = spec.attachment else { continue };
        let disk = all.open(s, spec)?;
        // An empty drive is one that reads all diskettes of its size.
        let fits = disk.as_ref().map_or(DriveType::Small2880, |disk| Geometry::of(disk.len() / SECTOR).drive);
        drives[usize::from(unit) % DRIVES] = Some(DriveConfig { drive: kind.unwrap_or(fits), medium: disk });
        let path = |index| (index, format!("/pci@i0cf8/isa@1/fdc@03f0/floppy@{unit}"));
        all.boot_paths.extend(spec.boot_index.map(path));
    }
    if drives.iter().all(Option::is_none) {
        return Ok(());
    }
    let types = drives.each_ref().map(|drive| drive.as_ref().map_or(0, |config| config.drive.cmos()));
    rtc.set_cmos(cmos::FLOPPY_TYPES, types[0] << 4 | types[1]);
    let count = types.iter().filter(|kind| **kind != 0).count();
    let equipment = EQUIPPED | if count > 1 { SECOND } else { 0 };
    rtc.set_cmos(cmos::EQUIPMENT, equipment);
    let fdc = Fdc::new(drives, dma.channel(CHANNEL), irq);
    bus.register_pio(REGISTERS, PORTS as u32, "floppy", fdc.ports())?;
    bus.register_pio(INPUT, 1, "floppy", fdc.input_port())?;
    bus.add_device("floppy", fdc.clone());
    for spec in &s.config.drives {
        let Some(Attachment::Floppy { unit, .. }) = spec.attachment else { continue };
        all.removable(spec, Some(fdc.medium_drive(unit.into())));
    }
    Ok(())
}
