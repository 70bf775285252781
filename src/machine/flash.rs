//! Flash with firmware: the first chip ends at 4 GiB, the second lies before it.

use super::disks::Disks;
use super::dma::GuestMemory;
use super::media::Plugged;
use crate::cli::config::{Attachment, Config, DriveSpec};
use anyhow::{Context, Result, bail};
use brolga::block::drive::Drive;
use brolga_devices::bus::Bus;
use brolga_devices::pflash::{BLOCK, Flash, FlashWindow};
use std::io::IoSliceMut;
use std::sync::Arc;

/// Where the first chip ends.
const END: u64 = 1 << 32;
/// Most bytes of both.
const LIMIT: u64 = 8 << 20;

/// An image for a chip.
pub struct FlashImage {
    spec: DriveSpec,
    unit: u8,
    drive: Drive,
    content: Vec<u8>,
}

/// Opens the images of all chips, the first chip's first.
pub fn open(config: &Config) -> Result<Vec<FlashImage>> {
    let mut images = Vec::new();
    for spec in &config.drives {
        let (Some(Attachment::Flash { unit }), Some(path)) = (spec.attachment, &spec.file) else { continue };
        let what = &spec.what;
        let open = if config.incoming.is_some() { Drive::open_inactive } else { Drive::open };
        let drive = open(path, &spec.options).with_context(|| what.clone())?;
        let len = drive.backend().len();
        if len == 0 || len % BLOCK as u64 != 0 || len > LIMIT {
            bail!("{what}: {len} bytes are no flash image; its size is a multiple of 4 KiB, up to 8 MiB");
        }
        let mut content = vec![0; len as usize];
        drive.backend().readv(0, &mut [IoSliceMut::new(&mut content)]).with_context(|| what.clone())?;
        images.push(FlashImage { spec: spec.clone(), unit, drive, content });
    }
    images.sort_by_key(|image| image.unit);
    if let (true, Some(last)) = (size(&images) > LIMIT, images.last()) {
        bail!("{}: both flash chips have more than 8 MiB; use smaller images", last.spec.what);
    }
    Ok(images)
}

/// Bytes of all chips.
pub fn size(images: &[FlashImage]) -> u64 {
    images.iter().map(|image| image.content.len() as u64).sum()
}

/// A chip's place in memory.
struct Window {
    memory: Arc<GuestMemory>,
    base: u64,
}

impl FlashWindow for Window {
    fn show(&self, offset: u64, bytes: &[u8]) {
        let gpa = self.base + offset;
        self.memory.ram().write(gpa, bytes, true);
        self.memory.written(gpa, bytes.len() as u64);
    }
}

/// Puts the chips in their places.
pub fn plug_in(
    images: Vec<FlashImage>,
    bus: &Arc<Bus>,
    memory: &Arc<GuestMemory>,
    disks: &Disks,
) -> Result<Vec<Plugged>> {
    let (mut end, mut plugged) = (END, Vec::new());
    for FlashImage { spec, unit, drive, content } in images {
        let len = content.len() as u64;
        end -= len;
        let disk = disks.adopt(&spec, drive)?;
        let window = Arc::new(Window { memory: memory.clone(), base: end });
        let flash = Flash::new(content, disk.clone(), window);
        let name = format!("flash{unit}");
        bus.register_mmio(end, len, &name, flash.clone())?;
        bus.add_device(name, flash);
        plugged.push(Plugged { spec, disk: Some(disk), drive: None });
    }
    Ok(plugged)
}
