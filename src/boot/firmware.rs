//! `-bios`: a firmware image in ROM below 4 GiB, started at the reset vector.

use super::image::Image;
use super::placement::Placement;
use super::refuse;
use crate::machine::layout::{ROM_GRANULE, ROM_MAX};
use anyhow::Result;

/// Size of the image, checked.
pub fn size(image: &Image) -> Result<u64> {
    let size = image.size()?;
    if size == 0 || size % ROM_GRANULE != 0 {
        refuse!(image, "{size} bytes are no multiple of {} KiB; pad the image at its front", ROM_GRANULE >> 10);
    }
    if size > ROM_MAX {
        refuse!(
            image,
            "{size} bytes are more than the {} MiB that fit below 4 GiB; use a smaller image",
            ROM_MAX >> 20
        );
    }
    Ok(size)
}

/// Copies the image to its ROM. The copy that the guest sees below 1 MiB is the same memory.
pub fn load(image: &Image, rom_size: u64, placement: &mut Placement) -> Result<()> {
    let size = size(image)?;
    if size != rom_size {
        refuse!(image, "its size changed from {rom_size} to {size} bytes while the machine ran; restart to use it");
    }
    placement.put_file(image, 0, size, size, (1 << 32) - size)
}
