//! Other options for an image that is there: `brolga-img amend`.

use super::Qcow2;
use super::header::{DIRTY, LAZY_REFCOUNTS};
use super::layout::{Entry, Mapping};
use super::options::Compression;
use crate::block::{BlockBackend, BlockError, Result};

impl Qcow2 {
    fn refuse<T>(&self, what: &str) -> Result<T> {
        Err(BlockError::Invalid { what: format!("{}: {what}", self.file.name()) })
    }

    /// Lets reference counts be left behind, or no longer.
    pub fn set_lazy_refcounts(&self, on: bool) -> Result<()> {
        self.writable()?;
        let _alone = self.alone();
        let mut meta = self.meta();
        if meta.header.version < 3 {
            return if on { self.refuse("lazy_refcounts=on needs compat=1.1") } else { Ok(()) };
        }
        // All counts are in the file before it says that they must be.
        meta.counts_follow()?;
        let before = meta.header.compatible;
        meta.header.compatible = if on { before | LAZY_REFCOUNTS } else { before & !LAZY_REFCOUNTS };
        if let Err(e) = meta.write_header() {
            meta.header.compatible = before;
            return Err(e);
        }
        self.file.flush()
    }

    /// Makes it an image of another version, in force when it is opened the next time; this open image is of no
    /// further use.
    pub fn set_version(&self, version: u32) -> Result<()> {
        self.writable()?;
        if version == 2 && self.layout.version > 2 {
            self.fit_version_2()?;
        }
        let _alone = self.alone();
        let mut meta = self.meta();
        meta.counts_follow()?;
        let before = meta.header.clone();
        meta.header.version = version;
        if version == 2 {
            (meta.header.compatible, meta.header.autoclear) = (0, 0);
        }
        if let Err(e) = meta.write_header() {
            meta.header = before;
            return Err(e);
        }
        self.file.flush()
    }

    /// Sees to it that nothing is there which version 2 has not.
    fn fit_version_2(&self) -> Result<()> {
        {
            let meta = self.meta();
            let header = &meta.header;
            if header.incompatible & !DIRTY != 0 || header.compression != Compression::Zlib {
                return self
                    .refuse("uses features that compat=0.10 has not; convert it: convert -O qcow2 -o compat=0.10");
            }
            if header.refcount_order != 4 {
                return self
                    .refuse("compat=0.10 has refcounts of 16 bits; convert it: convert -O qcow2 -o compat=0.10");
            }
            if !meta.snapshots.is_empty() {
                return self.refuse("snapshots may hold zero clusters, which compat=0.10 has not; delete them first");
            }
        }
        for bitmap in self.info().bitmaps {
            self.change_bitmap(&bitmap.name, &super::BitmapChange::Remove)?;
        }
        self.expand_zeroes()
    }

    /// Gives reference counts another width, 1 to 64 bits: a power of two.
    pub fn set_refcount_bits(&self, bits: u32) -> Result<()> {
        self.writable()?;
        if self.layout.version < 3 && self.info().version < 3 {
            return self.refuse("has refcounts of 16 bits in version 2; amend -o compat=1.1 first");
        }
        let _alone = self.alone();
        self.meta().change_width(bits.trailing_zeros())
    }

    /// Zero clusters become unallocated where that reads the same, and data elsewhere.
    fn expand_zeroes(&self) -> Result<()> {
        self.changing()?;
        let below = self.below_len();
        let zeroes = vec![0; self.layout.cluster() as usize];
        let mut guest = 0;
        while guest < self.len() {
            let run = self.meta().run(guest, self.len() - guest)?;
            let end = guest + run.len;
            let zero = matches!(run.mapping, Mapping::Zero { .. });
            while zero && guest < end {
                let len = self.layout.cluster().min(self.len() - guest);
                if guest < below {
                    self.write(guest, zeroes.get(..len as usize).unwrap_or_default())?;
                } else {
                    let _alone = self.alone();
                    self.meta().replace_entry(guest, Entry::EMPTY)?;
                }
                guest += self.layout.cluster();
            }
            guest = guest.max(end);
        }
        self.flush()
    }
}
