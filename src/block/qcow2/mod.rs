//! QEMU's copy-on-write format, versions 2 and 3 (QEMU: docs/interop/qcow2.rst).
//!
//! Locks, in the order they are taken: `flushing`, then `running`, then `meta`. Requests have a pass
//! of `running` over their data I/O, so that no cluster they found is given out anew meanwhile: a
//! flush that frees clusters waits for the requests that were there before it. What changes the
//! structure of the image keeps all out. `meta` is held for lookups and table changes only.

mod amend;
mod bitmap_edit;
mod bitmap_track;
mod bitmaps;
mod cache;
mod caches;
mod chain;
mod check;
mod commit;
mod compress;
mod create;
mod data_file;
mod empty;
mod header;
mod layout;
mod meta;
mod options;
mod place;
mod populate;
mod read;
mod refcount;
mod references;
mod resize;
mod shadow;
mod snapshot;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod write;
mod zero;

pub use bitmap_edit::{BitmapChange, BitmapContent};
pub use caches::TableCaches;
pub use create::{create, create_in};
pub use options::{BitmapInfo, CheckReport, Compression, CreateOptions, Info, Repair, SnapshotInfo};
pub use state::MachineState;

use super::running::Running;
use super::{
    BlockBackend, BlockError, Extent, Format, Image, OpenOptions, Preallocation, Result, Storage, Transfer, check_range,
};
use header::{CORRUPT, DIRTY, Header, LAZY_REFCOUNTS};
use layout::Layout;
use meta::{InFlight, Meta};
use std::collections::HashSet;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// An open qcow2 image.
pub struct Qcow2 {
    file: Arc<dyn Storage>,
    layout: Layout,
    compression: Compression,
    read_only: bool,
    /// Leaf lock.
    backing: RwLock<Option<Image>>,
    /// Where data clusters lie: `file`, or the external data file.
    data: Arc<dyn Storage>,
    /// The data file is to read the same without the tables.
    data_is_raw: bool,
    /// Whether the host file is much smaller than what is allocated in it.
    sparse: OnceLock<bool>,
    /// Something was changed, and the header says nothing that this made wrong.
    changed: AtomicBool,
    /// Persistent bitmaps that follow the changes.
    tracked: bitmap_track::Tracked,
    size: AtomicU64,
    running: Arc<Running>,
    /// One flush at a time; the number of the last one that succeeded.
    flushing: Mutex<u64>,
    /// Flushes that began.
    flushes: AtomicU64,
    meta: Mutex<Meta>,
    /// Some allocation has ended.
    landed: Condvar,
}

impl Qcow2 {
    /// Opens an image in `file`; `path` is where relative backing files are looked for, `depth`
    /// how many images stand above this one.
    pub(super) fn open(file: Arc<dyn Storage>, path: &Path, options: &OpenOptions, depth: u32) -> Result<Qcow2> {
        let header = Header::read(&*file)?;
        let name = file.name().to_string();
        if header.incompatible & CORRUPT != 0 && !options.read_only && !options.for_check {
            let what = "marked corrupt; repair it with brolga-img check -r all, or open it read-only".to_string();
            return Err(BlockError::Corrupt { name, what });
        }
        let data_file = data_file::open(path, &header, options)?;
        let mut meta = Meta::load(file.clone(), data_file, header, &options.tables)?;
        if !options.read_only && !options.for_check {
            prepare_for_writing(&mut meta)?;
        }
        let backing = match &meta.header.backing_file {
            _ if !options.backing => None,
            _ if options.over.is_some() => {
                options.over.as_deref().map(|layer| chain::open_given(path, layer, depth)).transpose()?
            }
            Some(named) => {
                Some(chain::open_backing(path, named, meta.header.backing_format().as_deref(), depth, options)?)
            }
            _ => None,
        };
        Ok(Qcow2::assemble(file, meta, options.read_only, backing))
    }

    /// Opens an image that names no backing file, over one that is open already.
    pub fn open_over(file: Arc<dyn Storage>, backing: Image) -> Result<Qcow2> {
        let header = Header::read(&*file)?;
        let meta = Meta::load(file.clone(), None, header, &TableCaches::default())?;
        Ok(Qcow2::assemble(file, meta, false, Some(backing)))
    }

    /// Opens an image for writing whose data file the tests have.
    #[cfg(test)]
    fn open_with_data(file: Arc<dyn Storage>, data: Arc<dyn Storage>) -> Result<Qcow2> {
        let header = Header::read(&*file)?;
        let mut meta = Meta::load(file.clone(), Some(data), header, &TableCaches::default())?;
        prepare_for_writing(&mut meta)?;
        Ok(Qcow2::assemble(file, meta, false, None))
    }

    fn assemble(file: Arc<dyn Storage>, meta: Meta, read_only: bool, backing: Option<Image>) -> Qcow2 {
        let header = &meta.header;
        Qcow2 {
            layout: meta.layout,
            compression: header.compression,
            read_only,
            backing: RwLock::new(backing),
            size: header.size.into(),
            running: Arc::default(),
            flushing: Mutex::new(0),
            flushes: 0.into(),
            data: meta.data_file.clone().unwrap_or_else(|| file.clone()),
            data_is_raw: meta.data_file.is_some() && header.autoclear & header::DATA_FILE_RAW != 0,
            changed: false.into(),
            tracked: bitmap_track::Tracked::default(),
            sparse: OnceLock::new(),
            meta: Mutex::new(meta),
            landed: Condvar::new(),
            file,
        }
    }

    fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> Result<()> {
        match self.read_only {
            true => Err(BlockError::ReadOnly { name: self.file.name().to_string() }),
            false => Ok(()),
        }
    }

    /// What the header says.
    pub fn info(&self) -> Info {
        let meta = self.meta();
        let header = &meta.header;
        Info {
            version: header.version,
            cluster_size: self.layout.cluster(),
            refcount_bits: 1 << header.refcount_order,
            lazy_refcounts: header.compatible & LAZY_REFCOUNTS != 0,
            dirty: header.incompatible & DIRTY != 0,
            corrupt: header.incompatible & CORRUPT != 0,
            compression: header.compression,
            backing_file: header.backing_file.clone(),
            backing_format: header.backing_format(),
            extended_l2: self.layout.extended,
            data_file: header.data_file(),
            data_file_raw: self.data_is_raw,
            bitmaps: bitmaps::list(&*self.file, header),
        }
    }

    /// The backing image, if there is one and it was opened.
    pub fn backing(&self) -> Option<Image> {
        self.backing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on over another image that reads the same where this one has nothing, or over none. No
    /// request is under way; the header says what [`Self::set_backing`] made it say.
    pub fn rest_on(&self, backing: Option<Image>) {
        *self.backing.write().unwrap_or_else(PoisonError::into_inner) = backing;
    }

    /// The host file.
    pub fn file(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    /// Names another backing file in the header, or none. Content is not touched, and this open
    /// image goes on with the file it has: `rebase -u`.
    pub fn set_backing(&self, backing: Option<(&str, Option<Format>)>) -> Result<()> {
        self.writable()?;
        let mut meta = self.meta();
        let before = meta.header.clone();
        meta.header.set_backing(backing.map(|(file, format)| (file, format.map(Format::name))));
        if let Err(e) = meta.write_header() {
            meta.header = before;
            return Err(e);
        }
        self.file.flush()
    }

    /// Makes everything durable. Dropping does it too but cannot tell of errors.
    pub fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.flush()?;
        self.store_bitmaps()?;
        if self.meta().marked {
            let _alone = self.alone();
            self.meta().counts_follow()?;
        }
        Ok(())
    }
}

/// What a first write relies on: right counts.
fn prepare_for_writing(meta: &mut Meta) -> Result<()> {
    let blocks: Vec<u64> = meta.reftable.entries.iter().copied().filter(|&e| e != 0).collect();
    if blocks.iter().collect::<HashSet<_>>().len() < blocks.len() && meta.header.incompatible & DIRTY == 0 {
        return meta.corrupt("a refcount block is named twice; repair it with brolga-img check -r all".to_string());
    }
    if meta.header.incompatible & DIRTY != 0 {
        let report = meta.check(Repair::All)?;
        meta.settle()?;
        if report.corruptions > report.corruptions_fixed {
            return meta.corrupt("reference counts could not be repaired; run brolga-img check".to_string());
        }
        meta.counts_follow()?;
    }
    Ok(())
}

impl BlockBackend for Qcow2 {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        check_range(offset, super::total_mut(bufs), self.len())?;
        let _pass = self.running.enter();
        self.read_running(offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.changing()?;
        let len = super::total(bufs);
        check_range(offset, len, self.len())?;
        self.note(offset, len);
        if self.meta().many_waiting() {
            self.flush_in_steps()?;
        }
        let _pass = self.running.enter();
        self.write_running(offset, bufs, len)
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.flush_in_steps()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.changing()?;
        check_range(offset, len, self.len())?;
        self.note(offset, len);
        self.discard_range(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.changing()?;
        check_range(offset, len, self.len())?;
        self.note(offset, len);
        self.zero_range(offset, len, unmap)
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.len())?;
        self.map_files(offset, len.max(1))
    }

    fn transfer(&self, write: bool, offset: u64, len: u64) -> Option<Transfer> {
        check_range(offset, len, self.len()).ok()?;
        if write { self.write_place(offset, len) } else { self.read_place(offset, len) }
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        self.changing()?;
        self.resize_to(len, preallocation)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::error!("{e}");
        }
    }
}
