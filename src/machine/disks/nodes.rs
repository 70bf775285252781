//! Nodes of `-blockdev` that nobody uses, and become images of disks or copies of them.

use super::images::Successor;
use super::{Disks, HostDisk};
use crate::cli::config::DriveSpec;
use brolga::block::{BlockBackend, Extent, Image, Preallocation, Result as BlockResult, Storage};
use brolga_devices::services::Disk;
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLockReadGuard};

/// A node that was taken from the shelf. It goes back there with this, unless it has become a disk's image.
pub struct Taken {
    disks: Arc<Disks>,
    spec: DriveSpec,
    /// Its own end, which a disk's takes the place of.
    end: Option<Arc<dyn Disk>>,
}

impl Disks {
    /// Takes the node `name` for as long as the result lives.
    pub fn take_node(self: &Arc<Self>, name: &str) -> Result<Taken, String> {
        let is_node = self.shelved().iter().any(|(spec, _)| spec.node.as_deref() == Some(name));
        match is_node.then(|| self.take_down(name)).flatten() {
            Some((spec, end)) => Ok(Taken { disks: self.clone(), spec, end: Some(end) }),
            None if self.named(name).is_some() => Err(format!("Node '{name}' is in use")),
            None => Err(format!("Cannot find device='' nor node-name='{name}'")),
        }
    }
}

/// A disk for those who are no device of the machine's: what they ask for waits while the disk has to stand still.
struct Outside(Arc<HostDisk>);

impl Disks {
    /// The drive or node `name` for others than devices: its node's name, and the disk.
    pub fn outside(&self, name: &str) -> Option<(String, Arc<dyn BlockBackend>)> {
        let free = self.shelved().into_iter().find(|(spec, _)| spec.id.as_deref() == Some(name));
        let disk = match free {
            Some((_, disk)) => self.find(&disk),
            None => self.all().into_iter().find(|disk| disk.is_called(name)),
        }?;
        let node = brolga_devices::wire::locked(&disk.names).node.clone();
        Some((node, Arc::new(Outside(disk))))
    }
}

impl Outside {
    fn open(&self) -> (RwLockReadGuard<'_, ()>, Arc<dyn BlockBackend>) {
        (self.0.gate.read().unwrap_or_else(PoisonError::into_inner), self.0.drive.backend())
    }
}

impl BlockBackend for Outside {
    fn len(&self) -> u64 {
        self.0.drive.backend().len()
    }

    fn read_only(&self) -> bool {
        self.0.drive.backend().read_only()
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.writev(offset, bufs)
    }

    fn flush(&self) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.write_zeroes(offset, len, unmap)
    }

    fn map(&self, offset: u64, len: u64) -> BlockResult<Extent> {
        let (_open, disk) = self.open();
        disk.map(offset, len)
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> BlockResult<()> {
        let (_open, disk) = self.open();
        disk.resize(len, preallocation)
    }
}

impl Taken {
    fn image(&self) -> Option<Image> {
        self.end.as_ref().and_then(|end| self.disks.find(end)).map(|disk| disk.drive.image())
    }

    /// The file that it is in.
    pub fn file(&self) -> Option<Arc<dyn Storage>> {
        self.image().map(|image| image.file().clone())
    }

    /// What a disk becomes with it.
    pub fn successor(self) -> Result<Successor, String> {
        let gone = || "the node has gone".to_owned();
        let image = self.image().ok_or_else(gone)?;
        let DriveSpec { node, file_node, file, .. } = &self.spec;
        let (node, file_node, path) = (node.clone(), file_node.clone(), file.clone().unwrap_or_else(PathBuf::new));
        if image.backend().read_only() {
            return Err(format!("Node '{}' is read-only", node.unwrap_or_default()));
        }
        Ok(Successor { image, path, node, file_node, taken: Some(self) })
    }

    /// It is a disk's image from now on.
    pub fn used(mut self) {
        if let Some(end) = self.end.take() {
            self.disks.let_go(&end);
        }
    }

    /// Its file has another content now: it is opened anew.
    pub fn renew(mut self) -> Result<(), String> {
        if let Some(end) = self.end.take() {
            self.disks.let_go(&end);
        }
        self.disks.shelve(&self.spec).map_err(|error| format!("{error:#}"))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.disks.put_back(&self.spec, end);
        }
    }
}
