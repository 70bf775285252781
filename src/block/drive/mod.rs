//! Drives: images as `-drive` and `-blockdev` open them for a machine.

mod filter;
pub mod keys;
mod overlay;
mod policy;
mod switch;
#[cfg(test)]
mod tests;

pub use policy::{DetectZeroes, DiscardMode, ErrorAction, Verdict};
pub use switch::Watcher;

use super::qcow2::TableCaches;
use super::{Aio, BlockBackend, BlockError, CacheMode, Format, Image, Layer, OpenOptions, Result, open};
use std::path::Path;
use std::sync::Arc;
use switch::Switch;

/// What a drive is to be like. The defaults are those of `-drive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOptions {
    /// `format=`; recognised by its first bytes if none.
    pub format: Option<Format>,
    /// `readonly=on`: the guest sees a write-protected disk.
    pub read_only: bool,
    /// `snapshot=on` and `-snapshot`: writes go to a temporary file, which is gone with the drive.
    pub snapshot: bool,
    /// `cache=`, `cache.direct=`, `cache.no-flush=`.
    pub cache: CacheMode,
    /// `discard=`.
    pub discard: DiscardMode,
    /// `detect-zeroes=`.
    pub detect_zeroes: DetectZeroes,
    /// `copy-on-read=on`: what is read from a backing file is kept in the image.
    pub copy_on_read: bool,
    /// `werror=`.
    pub write_errors: ErrorAction,
    /// `rerror=`.
    pub read_errors: ErrorAction,
    /// `aio=`.
    pub aio: Aio,
    /// `l2-cache-size=` and its kin.
    pub tables: TableCaches,
    /// Keep other programs out (`file.locking=`).
    pub lock: bool,
    /// `backing=`.
    pub backing: Backing,
}

/// Which backing file an image has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Backing {
    /// The one that it names, if it does.
    #[default]
    Named,
    /// None: what it does not hold itself reads as zeroes.
    None,
    /// This one, whatever it names.
    Given(Box<Layer>),
}

impl Default for DriveOptions {
    fn default() -> Self {
        DriveOptions {
            format: None,
            read_only: false,
            snapshot: false,
            cache: CacheMode::default(),
            discard: DiscardMode::default(),
            detect_zeroes: DetectZeroes::default(),
            copy_on_read: false,
            write_errors: ErrorAction::Enospc,
            read_errors: ErrorAction::Report,
            aio: Aio::Best,
            tables: TableCaches::default(),
            lock: true,
            backing: Backing::Named,
        }
    }
}

impl DriveOptions {
    /// How its image is opened.
    fn to_open(&self) -> OpenOptions {
        OpenOptions {
            format: self.format,
            read_only: self.read_only || self.snapshot,
            lock: self.lock,
            cache: self.cache,
            tables: self.tables,
            backing: self.backing != Backing::None,
            over: match &self.backing {
                Backing::Given(layer) => Some(layer.clone()),
                Backing::Named | Backing::None => None,
            },
            ..OpenOptions::default()
        }
    }

    /// How its image is opened while it is another process's.
    fn to_look_at(&self) -> OpenOptions {
        OpenOptions { read_only: true, lock: false, ..self.to_open() }
    }

    /// Whether the options fit together.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(BlockError::Invalid { what: what.to_string() });
        if self.detect_zeroes == DetectZeroes::Unmap && self.discard == DiscardMode::Ignore {
            return wrong("detect-zeroes=unmap needs discard=unmap");
        }
        if self.copy_on_read && self.read_only {
            return wrong("copy-on-read=on: a read-only drive cannot keep what it reads; leave one of them out");
        }
        if self.aio == Aio::Native && !self.cache.direct {
            return wrong("aio=native needs cache.direct=on (cache=none or directsync)");
        }
        if self.read_errors == ErrorAction::Enospc {
            return wrong("rerror=enospc: reading needs no space; there are report, ignore and stop");
        }
        self.tables.check()
    }
}

/// An open drive.
#[derive(Clone)]
pub struct Drive {
    backend: Arc<Switch>,
    options: DriveOptions,
}

impl Drive {
    /// Opens the image at `path` as `options` say.
    pub fn open(path: &Path, options: &DriveOptions) -> Result<Drive> {
        options.check()?;
        let image = open(path, &options.to_open())?;
        let image = if options.snapshot && !options.read_only { overlay::over(image)? } else { image };
        Ok(Drive::of(image, options))
    }

    /// Opens an image that another process writes for now: nothing is read of it but what it is like, and nothing written,
    /// before [`Drive::activate`]. One that is not to be written is opened as ever.
    pub fn open_inactive(path: &Path, options: &DriveOptions) -> Result<Drive> {
        options.check()?;
        if options.read_only || options.snapshot {
            return Drive::open(path, options);
        }
        let drive = Drive::of(open(path, &options.to_look_at())?, options);
        drive.backend.set_active(false);
        Ok(drive)
    }

    /// Whether its image is this process's.
    pub fn is_active(&self) -> bool {
        self.backend.is_active()
    }

    /// Makes all durable and lets go of the image, at `path`, so that another process can write it. No request may be under
    /// way, and none may come.
    pub fn deactivate(&self, path: &Path) -> Result<()> {
        if self.options.snapshot || self.backend.read_only() || !self.is_active() {
            return Ok(());
        }
        let image = self.image();
        self.backend.flush()?;
        if let Image::Qcow2(image) = &image {
            image.close()?;
        }
        let options = OpenOptions { format: Some(image.format()), ..self.options.to_look_at() };
        self.replace(open(path, &options)?);
        self.backend.set_active(false);
        Ok(())
    }

    /// Takes over the image, at `path`, which another process has let go of.
    pub fn activate(&self, path: &Path) -> Result<()> {
        if self.is_active() {
            return Ok(());
        }
        let options = OpenOptions { format: Some(self.image().format()), ..self.options.to_open() };
        self.replace(open(path, &options)?);
        self.backend.set_active(true);
        Ok(())
    }

    /// The drive that an open image is; of `options` only what concerns requests counts.
    pub fn of(image: Image, options: &DriveOptions) -> Drive {
        Drive { backend: Arc::new(Switch::new(image, options)), options: options.clone() }
    }

    /// The disk, for devices.
    pub fn backend(&self) -> Arc<dyn BlockBackend> {
        self.backend.clone()
    }

    /// The image behind it; with `snapshot` the temporary one.
    pub fn image(&self) -> Image {
        self.backend.image()
    }

    /// From now on the disk is `image`. No request may be under way: some move bytes without coming back here.
    pub fn replace(&self, image: Image) {
        self.backend.replace(image, &self.options);
    }

    /// Tells `watcher`, and nobody else, of changes. No request may be under way.
    pub fn watch(&self, watcher: Option<Arc<dyn Watcher>>) {
        self.backend.watch(watcher);
    }

    /// What it was opened with.
    pub fn options(&self) -> &DriveOptions {
        &self.options
    }

    /// Whether the guest is to see a disk with a write cache.
    pub fn has_write_cache(&self) -> bool {
        self.options.cache.writeback
    }

    /// What becomes of a failed request.
    pub fn verdict(&self, write: bool, error: &BlockError) -> Verdict {
        let action = if write { self.options.write_errors } else { self.options.read_errors };
        action.verdict(error)
    }
}
