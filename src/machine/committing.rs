//! `commit`: what a disk's image holds goes into the image below it, at once, while the disk stands still.

use super::Machine;
use super::copying::{Backup, CHUNK};
use super::disks::images::{NamedDisk, holds};
use crate::monitor::Fault;
use brolga::block::qcow2::Qcow2;
use brolga::block::{BlockError, HostFile, Image, OpenOptions, Preallocation, open_storage};
use std::path::PathBuf;
use std::sync::Arc;

impl Machine {
    /// Commits the disk `name`, or every one that has an image below it.
    pub(super) fn commit_disks(&self, name: &str) -> Result<(), Fault> {
        if name == "all" {
            let over = self.disks.every().into_iter().filter(|disk| disk.chain().len() > 1);
            return over.into_iter().try_for_each(|disk| self.commit_disk(&disk, &disk.name()));
        }
        let disk = self.disks.named(name).ok_or_else(|| Fault::new(format!("Device '{name}' not found")))?;
        self.commit_disk(&disk, name)
    }

    fn commit_disk(&self, disk: &NamedDisk, name: &str) -> Result<(), Fault> {
        let failed = |why: &dyn std::fmt::Display| Fault::new(format!("'commit' error for '{name}': {why}"));
        let Some(_busy) = self.jobs.occupy(&disk.name()) else { return Err(failed(&"a job works on it")) };
        if disk.backend().read_only() {
            return Err(failed(&"it is read-only"));
        }
        self.disks.still(std::slice::from_ref(disk), || commit(disk)).map_err(|why| failed(&why))
    }
}

/// Nothing else uses the disk.
fn commit(disk: &NamedDisk) -> Result<(), String> {
    let image = disk.image();
    let top = image.qcow2().map_err(|_| "it has no backing file")?;
    let below = top.backing().ok_or("it has no backing file")?;
    if !top.snapshots().is_empty() {
        return Err("it has snapshots, which hold on to its content; delete them first".to_owned());
    }
    // Nothing of it may be held while it is opened anew.
    let read_only = below.backend().read_only();
    let base = if read_only { writable(disk, top, below)? } else { below };
    let (source, target) = (image.backend(), base.backend());
    if target.len() < source.len() {
        target.resize(source.len(), Preallocation::Off).map_err(|e| e.to_string())?;
    }
    let held = |chunk: u64| holds(&*source, chunk * CHUNK, CHUNK, 1);
    let copy = Backup::new(source.clone(), target.clone(), &held);
    while copy.step().map_err(|e| e.to_string())?.is_some() {}
    target.flush().map_err(|e| e.to_string())?;
    // All that it held is in the base by now, durably.
    top.make_empty().map_err(|e| format!("committed, but it could not be emptied: {e}"))
}

/// Has `top` rest on an image that can be written, in place of the same one that is open for reading.
fn writable(disk: &NamedDisk, top: &Qcow2, below: Image) -> Result<Image, String> {
    let lower = below.qcow2().ok().and_then(|image| image.backing());
    let path = PathBuf::from(below.file().name());
    let failed = |e: BlockError| e.to_string();
    let opened = |read_only: bool| {
        let file = Arc::new(HostFile::open_with(&path, !read_only, disk.cache())?);
        let options = OpenOptions { format: Some(below.format()), read_only, backing: false, ..OpenOptions::default() };
        let image = open_storage(file.clone(), &path, &options)?;
        if let Ok(image) = image.qcow2() {
            image.rest_on(lower.clone());
        }
        Ok((file, image))
    };
    // One of the two it is to be, whichever can be locked.
    let ((file, image), (unlocked, as_before)) = (opened(false).map_err(failed)?, opened(true).map_err(failed)?);
    if image.backend().len() != below.backend().len() {
        return Err(format!("{}: somebody has put another image there", path.display()));
    }
    // Nobody may have it open when it is locked, and we have until it is let go.
    top.rest_on(None);
    drop(below);
    match file.lock(true) {
        Ok(()) => {
            top.rest_on(Some(image.clone()));
            Ok(image)
        }
        Err(why) => {
            top.rest_on(Some(as_before));
            drop((file, image));
            unlocked.lock(false).map_err(failed).and(Err(failed(why)))
        }
    }
}
