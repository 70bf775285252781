//! External data files: clusters of data lie in a file of their own, each at its guest offset, and
//! have no reference counts (qcow2.rst, "incompatible_features", bit 2).

use super::header::{EXTERNAL_DATA, Header, corrupt};
use super::layout::{Entry, Layout};
use super::options::CreateOptions;
use super::{Meta, Qcow2};
use crate::block::{BlockError, HostFile, OpenOptions, Preallocation, Result, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the file lies that an image calls so. QEMU takes relative names from the current directory;
/// if nothing is there, it may still lie beside the image.
fn place(image: &Path, named: &str) -> PathBuf {
    let named = PathBuf::from(named.strip_prefix("file:").unwrap_or(named));
    let beside = image.parent().map(|directory| directory.join(&named));
    match beside.filter(|beside| !named.exists() && beside.exists()) {
        Some(beside) => beside,
        None => named,
    }
}

/// Opens the data file of the image at `path`, if it has one.
pub(super) fn open(path: &Path, header: &Header, options: &OpenOptions) -> Result<Option<Arc<dyn Storage>>> {
    if header.incompatible & EXTERNAL_DATA == 0 {
        return Ok(None);
    }
    let Some(named) = header.data_file() else {
        let what = "the header names no data file, though it says that there is one".to_string();
        return Err(corrupt(&path.to_string_lossy(), what));
    };
    let file = HostFile::open_with(&place(path, &named), !options.read_only, options.cache)?;
    if options.lock {
        file.lock(!options.read_only)?;
    }
    Ok(Some(Arc::new(file)))
}

/// Makes the data file of a new image at `path`.
pub(super) fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    let Some(named) = &options.data_file else { return Ok(()) };
    let place = PathBuf::from(named);
    let same = |p: &Path| std::fs::canonicalize(p).ok();
    if place == path || (same(&place).is_some() && same(&place) == same(path)) {
        let what = format!("data_file={named}: this is the image itself; name another file");
        return Err(BlockError::Invalid { what });
    }
    HostFile::create(&place).map(drop)
}

impl Qcow2 {
    /// Refuses what images with a data file cannot do.
    pub(super) fn no_data_file(&self, what: &str) -> Result<()> {
        if !self.layout.data_file {
            return Ok(());
        }
        let what = format!("images with a data file cannot {what}");
        Err(BlockError::Unsupported { name: self.file.name().to_string(), what })
    }

    /// Gives the data file the size of the disk.
    pub(super) fn resize_data(&self, len: u64) -> Result<()> {
        if self.layout.data_file { self.data.set_len(len) } else { Ok(()) }
    }

    /// Maps all clusters of a range to their places in the data file.
    pub(super) fn preallocate_data(&self, meta: &mut Meta, from: u64, to: u64, mode: Preallocation) -> Result<()> {
        let layout: Layout = self.layout;
        match mode {
            Preallocation::Off | Preallocation::Metadata => {}
            Preallocation::Falloc => self.data.allocate(from, to - from)?,
            Preallocation::Full => self.write_zero_data(from, to - from)?,
        }
        let mut guest = layout.floor(from);
        while guest < to {
            meta.relieve()?;
            if meta.entry(guest)? == Entry::EMPTY {
                meta.set_entry(guest, layout.own(guest))?;
            }
            guest += layout.cluster();
        }
        meta.settle()
    }
}
