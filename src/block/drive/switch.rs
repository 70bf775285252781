//! The disk that a guest sees, whose image can become another one while the guest runs.

use super::DriveOptions;
use super::filter::Filter;
use crate::block::{BlockBackend, Extent, Image, Preallocation, Result, Transfer, total};
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Who has to know of changes to a disk: a copy that is being made of it.
pub trait Watcher: Send + Sync {
    /// The bytes are about to change.
    fn before(&self, offset: u64, len: u64);
    /// They have changed, or the change failed halfway.
    fn after(&self, offset: u64, len: u64);
}

#[derive(Clone)]
struct Now {
    image: Image,
    backend: Arc<dyn BlockBackend>,
    watcher: Option<Arc<dyn Watcher>>,
}

/// The disk. The lock is a leaf: requests take what is there when they begin.
pub(super) struct Switch {
    now: RwLock<Now>,
    /// The image is this process's. Otherwise it is open for reading only, of which devices know nothing.
    active: AtomicBool,
}

impl Switch {
    pub(super) fn new(image: Image, options: &DriveOptions) -> Self {
        let backend = Arc::new(Filter::new(image.clone(), options));
        Self { now: RwLock::new(Now { image, backend, watcher: None }), active: AtomicBool::new(true) }
    }

    fn now(&self) -> Now {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn backend(&self) -> Arc<dyn BlockBackend> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).backend.clone()
    }

    /// The image now.
    pub(super) fn image(&self) -> Image {
        self.now.read().unwrap_or_else(PoisonError::into_inner).image.clone()
    }

    /// From now on the disk is `image`.
    pub(super) fn replace(&self, image: Image, options: &DriveOptions) {
        let backend = Arc::new(Filter::new(image.clone(), options));
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        (now.image, now.backend) = (image, backend);
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// Whether the image is this process's from now on.
    pub(super) fn set_active(&self, active: bool) {
        self.active.store(active, Ordering::SeqCst);
    }

    /// Whoever has to know of changes from now on.
    pub(super) fn watch(&self, watcher: Option<Arc<dyn Watcher>>) {
        self.now.write().unwrap_or_else(PoisonError::into_inner).watcher = watcher;
    }

    /// Makes a change of which somebody may have to know.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&dyn BlockBackend) -> Result<()>) -> Result<()> {
        let Now { backend, watcher, .. } = self.now();
        watcher.iter().for_each(|watcher| watcher.before(offset, len));
        let done = change(&*backend);
        watcher.iter().for_each(|watcher| watcher.after(offset, len));
        done
    }
}

impl BlockBackend for Switch {
    fn len(&self) -> u64 {
        self.backend().len()
    }

    fn read_only(&self) -> bool {
        // Only one that is to be written is ever inactive.
        self.is_active() && self.backend().read_only()
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.backend().readv(offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.change(offset, total(bufs), |below| below.writev(offset, bufs))
    }

    fn flush(&self) -> Result<()> {
        self.backend().flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(offset, len, |below| below.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.change(offset, len, |below| below.write_zeroes(offset, len, unmap))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.backend().map(offset, len)
    }

    fn transfer(&self, write: bool, offset: u64, len: u64) -> Option<Transfer> {
        let Now { backend, watcher, .. } = self.now();
        // Who watches has to hear of writes before and after.
        if write && watcher.is_some() { None } else { backend.transfer(write, offset, len) }
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        self.backend().resize(len, preallocation)
    }
}
