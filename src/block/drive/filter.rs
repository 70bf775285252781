//! A drive's own doing on the way of each request to its image.

use super::{DetectZeroes, DiscardMode, DriveOptions};
use crate::block::vectors::all_zero;
use crate::block::{BlockBackend, Extent, Image, Preallocation, Result, Transfer, check_range, total, total_mut};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

/// The disk that the guest sees.
pub(super) struct Filter {
    below: Arc<dyn BlockBackend>,
    image: Image,
    /// Writes are flushed at once.
    through: bool,
    discard: bool,
    detect: DetectZeroes,
    copy_on_read: bool,
}

impl Filter {
    pub(super) fn new(image: Image, options: &DriveOptions) -> Filter {
        Filter {
            below: image.backend(),
            image,
            through: !options.cache.writeback,
            discard: options.discard == DiscardMode::Unmap,
            detect: options.detect_zeroes,
            copy_on_read: options.copy_on_read,
        }
    }

    /// After a change: durable at once if the guest is told of no cache.
    fn settle(&self) -> Result<()> {
        if self.through { self.below.flush() } else { Ok(()) }
    }
}

impl BlockBackend for Filter {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn read_only(&self) -> bool {
        self.below.read_only()
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        if let (true, Image::Qcow2(image)) = (self.copy_on_read, &self.image) {
            let len = total_mut(bufs);
            check_range(offset, len, self.len())?;
            // The guest gets its bytes even where the copy could not be kept.
            if let Err(e) = image.populate(offset, len) {
                tracing::warn!("copy-on-read: {e}");
            }
        }
        self.below.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        if self.detect != DetectZeroes::Off && all_zero(bufs) {
            let unmap = self.discard && self.detect == DetectZeroes::Unmap;
            self.below.write_zeroes(offset, total(bufs), unmap)?;
        } else {
            self.below.writev(offset, bufs)?;
        }
        self.settle()
    }

    fn flush(&self) -> Result<()> {
        self.below.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.discard {
            return check_range(offset, len, self.len());
        }
        self.below.discard(offset, len)?;
        self.settle()
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.below.write_zeroes(offset, len, unmap && self.discard)?;
        self.settle()
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.below.map(offset, len)
    }

    fn transfer(&self, write: bool, offset: u64, len: u64) -> Option<Transfer> {
        let more = if write { self.through || self.detect != DetectZeroes::Off } else { self.copy_on_read };
        if more { None } else { self.below.transfer(write, offset, len) }
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        self.below.resize(len, preallocation)
    }
}
