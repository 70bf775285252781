//! Disks whose images go over to another process, or come from there.

use super::Disks;
use brolga_devices::wire::locked;
use std::sync::atomic::Ordering;

impl Disks {
    /// Whether images are this process's.
    pub fn active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// Why the machine cannot leave with its disks: what one of them holds would stay here.
    pub fn keeps(&self) -> Option<String> {
        let all = self.all();
        let kept = all.iter().find(|disk| {
            let options = disk.drive.options();
            options.snapshot && !options.read_only
        });
        kept.map(|disk| {
            format!("'{}' has snapshot=on: what the guest wrote to it is in this process only", disk.shown())
        })
    }

    /// Makes all durable and lets go of images; all of them, or none. No request is under way.
    pub fn deactivate(&self) -> Result<(), String> {
        let done = self.all().iter().try_for_each(|disk| {
            let path = locked(&disk.names).place.clone();
            disk.drive.deactivate(&path).map_err(|error| format!("{}: {error}", disk.shown()))
        });
        self.active.store(false, Ordering::SeqCst);
        // What cannot be taken back is told by whoever goes on.
        done.inspect_err(|_| drop(self.activate()))
    }

    /// Takes over the images. No request is under way.
    pub fn activate(&self) -> Result<(), String> {
        self.all().iter().try_for_each(|disk| {
            let path = locked(&disk.names).place.clone();
            disk.drive.activate(&path).map_err(|error| format!("{}: {error}", disk.shown()))
        })?;
        self.active.store(true, Ordering::SeqCst);
        Ok(())
    }
}
