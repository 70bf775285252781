//! `snapshot=on`: a temporary image over the one that was asked for.

use crate::block::qcow2::{CreateOptions, Qcow2, create_in};
use crate::block::{HostFile, Image, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Where temporary files go. Without `TMPDIR` it is `/var/tmp`: they grow as large as disks, and
/// `/tmp` often lies in memory.
fn directory() -> PathBuf {
    let told = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let usual = || Some(PathBuf::from("/var/tmp")).filter(|dir| dir.is_dir());
    told.or_else(usual).unwrap_or_else(std::env::temp_dir)
}

/// An image whose clusters are first those of `image`. Its file has no name and is gone when the
/// drive is closed, however that happens; so nothing is flushed either.
pub(super) fn over(image: Image) -> Result<Image> {
    let mut file = HostFile::create_unnamed(&directory())?;
    file.never_flush();
    let file = Arc::new(file);
    create_in(file.clone(), &CreateOptions { size: image.backend().len(), ..CreateOptions::default() })?;
    Ok(Image::Qcow2(Arc::new(Qcow2::open_over(file, image)?)))
}
