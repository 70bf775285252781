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
        let open_options = OpenOptions {
            format: options.format,
            read_only: options.read_only || options.snapshot,
            lock: options.lock,
            cache: options.cache,
            tables: options.tables,
            backing: options.backing != Backing::None,
            over: match &options.backing {
                Backing::Given(layer) => Some(layer.clone()),
                Backing::Named | Backing::None => None,
            },
            ..OpenOptions::default()
        };
        let image = open(path, &open_options)?;
        let image = if options.snapshot && !options.read_only { overlay::over(image)? } else { image };
        Ok(Drive::of(image, options))
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
