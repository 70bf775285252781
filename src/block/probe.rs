//! Which format a file has, and opening it with its backing chain.

use super::foreign::{Foreign, READABLE};
use super::qcow2::{Qcow2, TableCaches};
use super::{BlockBackend, BlockError, CacheMode, Format, HostFile, Raw, Result, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// The format; recognised by its first bytes if none.
    pub format: Option<Format>,
    /// Refuse writes. Backing files are always opened so.
    pub read_only: bool,
    /// Open the backing chain. Without it unallocated bytes read as zeroes, and `map` says hole:
    /// for tools that look at one file only.
    pub backing: bool,
    /// Open an image marked corrupt or dirty for writing without repairing it: for `check`.
    pub for_check: bool,
    /// Keep other programs out as QEMU does: one writer or many readers, for the whole chain.
    /// Two openings in one process keep each other out as well.
    pub lock: bool,
    /// How the host's cache is used; for the whole chain. `writeback` is for the drive to do.
    pub cache: CacheMode,
    /// Memory for the tables of this image.
    pub tables: TableCaches,
    /// The backing file that is taken, whatever the image names.
    pub over: Option<Box<Layer>>,
}

/// An image that is to be opened below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its file.
    pub path: PathBuf,
    /// How it is opened; writes are refused anyway.
    pub options: OpenOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            format: None,
            read_only: false,
            backing: true,
            for_check: false,
            lock: false,
            cache: CacheMode::default(),
            tables: TableCaches::default(),
            over: None,
        }
    }
}

/// The longest chain of backing files that is followed.
pub const MAX_CHAIN: u32 = 200;

/// An open image.
#[derive(Clone)]
pub enum Image {
    /// A raw image.
    Raw(Arc<Raw>),
    /// A qcow2 image.
    Qcow2(Arc<Qcow2>),
    /// An image in a format that can only be read.
    Foreign(Arc<Foreign>),
}

impl Image {
    /// The disk, for devices.
    pub fn backend(&self) -> Arc<dyn BlockBackend> {
        match self {
            Image::Raw(raw) => raw.clone(),
            Image::Qcow2(qcow2) => qcow2.clone(),
            Image::Foreign(foreign) => foreign.clone(),
        }
    }

    /// The format it has.
    pub fn format(&self) -> Format {
        match self {
            Image::Raw(_) => Format::Raw,
            Image::Qcow2(_) => Format::Qcow2,
            Image::Foreign(foreign) => Format::Foreign(foreign.format()),
        }
    }

    /// The host file.
    pub fn file(&self) -> &Arc<dyn Storage> {
        match self {
            Image::Raw(raw) => raw.file(),
            Image::Qcow2(qcow2) => qcow2.file(),
            Image::Foreign(foreign) => foreign.file(),
        }
    }

    /// The driver with everything that only qcow2 has, or an error that says so.
    pub fn qcow2(&self) -> Result<&Arc<Qcow2>> {
        match self {
            Image::Qcow2(qcow2) => Ok(qcow2),
            other => Err(BlockError::Unsupported {
                name: other.file().name().to_string(),
                what: format!("{} images cannot do that; convert it to qcow2 first", other.format().name()),
            }),
        }
    }
}

/// Magic numbers at fixed places, and the format they mean.
const MAGIC: &[(usize, &[u8], Format)] = &[
    (0, b"QFI\xfb\0\0\0\x02", Format::Qcow2),
    (0, b"QFI\xfb\0\0\0\x03", Format::Qcow2),
    (0, b"QFI\xfb\0\0\0\x01", Format::Foreign("qcow")),
    (0, b"QED\0", Format::Foreign("qed")),
    (0, b"KDMV", Format::Foreign("vmdk")),
    (0, b"COWD", Format::Foreign("vmdk")),
    (0, b"# Disk DescriptorFile", Format::Foreign("vmdk")),
    (0, b"vhdxfile", Format::Foreign("vhdx")),
    (0, b"conectix", Format::Foreign("vpc")),
    (0, b"LUKS\xba\xbe", Format::Foreign("luks")),
    (0, b"WithoutFreeSpace", Format::Foreign("parallels")),
    (0, b"WithouFreSpacExt", Format::Foreign("parallels")),
    (0, b"Bochs Virtual HD Image", Format::Foreign("bochs")),
    (0x40, b"\x7f\x10\xda\xbe", Format::Foreign("vdi")),
];

/// The format that the first bytes of a file show; raw if none.
pub fn probe(file: &dyn Storage) -> Result<Format> {
    let mut head = [0; 512];
    file.read(0, &mut head)?;
    let found = MAGIC.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|h| h.starts_with(magic)));
    match found {
        Some((_, _, format)) => Ok(*format),
        None if head.starts_with(b"QFI\xfb") => Ok(Format::Qcow2),
        None => Ok(Format::Raw),
    }
}

/// Opens the image at `path`.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Image> {
    open_at_depth(path, options, 0)
}

pub(super) fn open_at_depth(path: &Path, options: &OpenOptions, depth: u32) -> Result<Image> {
    let file = HostFile::open_with(path, !options.read_only, options.cache)?;
    if options.lock {
        file.lock(!options.read_only)?;
    }
    open_with(Arc::new(file), path, options, depth)
}

/// Opens an image in a file of any kind; `path` is where relative backing files are looked for.
pub fn open_storage(file: Arc<dyn Storage>, path: &Path, options: &OpenOptions) -> Result<Image> {
    open_with(file, path, options, 0)
}

fn open_with(file: Arc<dyn Storage>, path: &Path, options: &OpenOptions, depth: u32) -> Result<Image> {
    let format = match options.format {
        Some(format) => format,
        None => probe(&*file)?,
    };
    match format {
        Format::Raw => Ok(Image::Raw(Arc::new(Raw::new(file, options.read_only)))),
        Format::Qcow2 => Ok(Image::Qcow2(Arc::new(Qcow2::open(file, path, options, depth)?))),
        Format::Foreign(format) if READABLE.contains(&format) && options.read_only => {
            Ok(Image::Foreign(Arc::new(Foreign::open(file, path, format)?)))
        }
        Format::Foreign(format) if READABLE.contains(&format) => {
            let name = file.name().to_string();
            let what = format!(
                "{format} images can only be read: use readonly=on or snapshot=on, or convert it: brolga-img convert -O \
                 qcow2 '{name}' disk.qcow2"
            );
            Err(BlockError::Unsupported { name, what })
        }
        Format::Foreign(format) => {
            let name = file.name().to_string();
            let what = format!(
                "{format} images are not supported; convert it: qemu-img convert -f {format} -O qcow2 '{name}' disk.qcow2"
            );
            Err(BlockError::Unsupported { name, what })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::scratch::Scratch;

    #[test]
    fn formats_are_recognised() {
        let dir = Scratch::new();
        for (bytes, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], Format::Qcow2),
            (b"QFI\xfb\0\0\0\x09", Format::Qcow2),
            (b"KDMV", Format::Foreign("vmdk")),
            (b"", Format::Raw),
            (b"QFI", Format::Raw),
        ] {
            let path = dir.path("probe");
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(probe(&HostFile::open(&path, false).unwrap()).unwrap(), format);
        }
        let path = dir.path("disk.qed");
        std::fs::write(&path, b"QED\0").unwrap();
        let error = open(&path, &OpenOptions::default()).err().expect("no qed").to_string();
        assert!(error.contains("qemu-img convert -f qed"), "{error}");
    }
}
