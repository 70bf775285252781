//! Work on images that are in use: snapshots of several at one moment, copies, chains that grow and shrink.

use super::Machine;
use super::copying::{Backup, CHUNK, Mirror};
use super::disks::Disks;
use super::disks::images::{NamedDisk, Successor};
use crate::monitor::{BlockJob, BlockTask, BlockWork, Class, Fault, ImageChange, JobSpec, Progress, Word};
use brolga::block::drive::Watcher;
use brolga::block::qcow2::MachineState;
use brolga_devices::services::Clock;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How often a copy that follows its disk looks for what changed.
const LOOK: Duration = Duration::from_millis(20);

fn named(disks: &Disks, device: &str) -> Result<NamedDisk, Fault> {
    let absent = || Fault::of(Class::GenericError, format!("Cannot find device='{device}' nor node-name='{device}'"));
    disks.named(device).ok_or_else(absent)
}

/// A change that was prepared.
enum Ready {
    Overlay(NamedDisk, Successor),
    Internal(NamedDisk, String),
}

impl Machine {
    fn prepare(&self, change: &ImageChange) -> Result<Ready, Fault> {
        match change {
            ImageChange::Abort => Err("Transaction aborted using Abort action".into()),
            ImageChange::Overlay { device, file, existing, node } => {
                let disk = named(&self.disks, device)?;
                if let Some(name) = self.jobs.busy(Some(&disk.name())) {
                    return Err(Fault::new(format!("Device '{name}' is in use by a job")));
                }
                let next = disk.overlay(file, *existing, node.clone())?;
                Ok(Ready::Overlay(disk, next))
            }
            ImageChange::Internal { device, name } => {
                let disk = named(&self.disks, device)?;
                disk.check()?;
                let keeper = self.disks.keepers(Some(std::slice::from_ref(device)))?;
                if name.is_empty() {
                    return Err("Name is empty".into());
                }
                match keeper.iter().any(|keeper| keeper.find(name).is_some()) {
                    true => Err(Fault::new(format!("Snapshot with name '{name}' already exists on device '{device}'"))),
                    false => Ok(Ready::Internal(disk, name.clone())),
                }
            }
        }
    }

    /// Makes prepared changes; the disks stand still.
    fn carry_out(&self, ready: Vec<Ready>) -> Result<(), String> {
        let (when, clock_nsec) = (SystemTime::now(), self.clock.now_ns());
        let state = MachineState { size: 0, clock_nsec, icount: None };
        let mut kept = Vec::new();
        // What goes below is whole in its file from now on. It may fail, so it comes first.
        for overlay in &ready {
            if let Ready::Overlay(disk, _) = overlay {
                let flushed = disk.backend().flush();
                let closed = flushed.and_then(|()| disk.image().qcow2().map_or(Ok(()), |image| image.close()));
                closed.map_err(|e| e.to_string())?;
            }
        }
        for internal in &ready {
            let Ready::Internal(disk, name) = internal else { continue };
            let keeper = self.disks.keeper(&disk.name());
            if let Err(why) =
                keeper.and_then(|keeper| keeper.keep(name, when, state).map(|()| kept.push((keeper, name))))
            {
                // The first failure is the one to tell.
                let undo = |(keeper, name): &(super::disks::snapshots::Keeper, &String)| {
                    keeper.find(name).map_or(Ok(()), |snapshot| keeper.forget(&snapshot))
                };
                let _ = kept.iter().try_for_each(undo);
                return Err(why);
            }
        }
        for overlay in ready {
            if let Ready::Overlay(disk, next) = overlay {
                self.disks.succeed(&disk, next);
            }
        }
        Ok(())
    }
}

impl BlockWork for Machine {
    fn change_images(&self, changes: &[ImageChange]) -> Result<(), Fault> {
        let ready = changes.iter().map(|change| self.prepare(change)).collect::<Result<Vec<_>, _>>()?;
        let disks: Vec<NamedDisk> = ready
            .iter()
            .map(|ready| match ready {
                Ready::Overlay(disk, _) | Ready::Internal(disk, _) => disk.clone(),
            })
            .collect();
        Ok(self.disks.still(&disks, || self.carry_out(ready))?)
    }

    fn delete_internal(&self, device: &str, id: Option<&str>, name: Option<&str>) -> Result<Value, Fault> {
        let keeper = self.disks.keeper(named(&self.disks, device)?.name().as_str())?;
        let found = id.or(name).and_then(|tag| keeper.find(tag));
        let fits = |s: &brolga::block::qcow2::SnapshotInfo| {
            id.is_none_or(|id| s.id == id) && name.is_none_or(|name| s.name == name)
        };
        let (shown_id, shown_name) = (id.unwrap_or("(null)"), name.unwrap_or("(null)"));
        let absent =
            format!("Snapshot with id '{shown_id}' and name '{shown_name}' does not exist on device '{device}'");
        let found = found.filter(fits).ok_or(absent)?;
        keeper.forget(&found)?;
        Ok(brolga::img::snapshot_json(&found))
    }

    fn start_block_job(&self, job: BlockJob) -> Result<(), Fault> {
        let disk = named(&self.disks, &job.device)?;
        let spec = JobSpec {
            id: job.id.clone().unwrap_or_else(|| disk.name()),
            kind: job.task.kind(),
            block: true,
            auto_finalize: job.auto_finalize,
            auto_dismiss: job.auto_dismiss,
            speed: job.speed,
        };
        let in_use = || Fault::new(format!("Device '{}' is in use by another job", disk.name()));
        let busy = self.jobs.occupy(&disk.name()).ok_or_else(in_use)?;
        let (disks, len) = (self.disks.clone(), disk.backend().len());
        let target = |top| Successor::target(&job.target, &job.format, job.existing, top, job.node.clone());
        match job.task {
            BlockTask::Backup => {
                let (target, top) = (target(len)?, job.top);
                let work =
                    move |progress: &Progress| backup(&disks, &disk, &target, top, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Mirror => {
                disk.check()?;
                let (target, top) = (target(len)?, job.top);
                let work = move |progress: &Progress| follow(&disks, &disk, target, top, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Commit => {
                disk.check()?;
                let below = disk.below()?;
                let work = move |progress: &Progress| follow(&disks, &disk, below, true, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Stream => {
                disk.check()?;
                disk.image().qcow2().map_err(|e| e.to_string())?;
                let work = move |progress: &Progress| stream(&disk, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
        }
    }
}

/// What a job that was cancelled comes to.
fn cancelled() -> String {
    "the job was cancelled".to_owned()
}

/// Watches a disk as long as it lives.
struct Watch<'a> {
    disks: &'a Disks,
    disk: &'a NamedDisk,
}

impl<'a> Watch<'a> {
    fn begin(disks: &'a Disks, disk: &'a NamedDisk, watcher: impl FnOnce() -> Arc<dyn Watcher>) -> Self {
        let disk_of = std::slice::from_ref(disk);
        disks.still(disk_of, || disk.watch(Some(watcher())));
        Self { disks, disk }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.disks.still(std::slice::from_ref(self.disk), || self.disk.watch(None));
    }
}

/// Which chunks are copied.
fn wanted(disk: &NamedDisk, top: bool) -> impl Fn(u64) -> bool + '_ {
    move |chunk| !top || disk.holds(chunk * CHUNK, CHUNK)
}

fn backup(disks: &Disks, disk: &NamedDisk, target: &Successor, top: bool, progress: &Progress) -> Result<(), String> {
    let made = Mutex::new(None);
    let watch = Watch::begin(disks, disk, || {
        let source = disk.image().backend();
        let backup = Backup::new(source, target.backend(), &wanted(disk, top));
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(backup.clone());
        backup
    });
    let Some(backup) = made.into_inner().unwrap_or_else(PoisonError::into_inner) else { return Err(cancelled()) };
    progress.set(0, backup.left());
    loop {
        let copied = backup.step().map_err(|e| e.to_string())?;
        let Some(copied) = copied else { break };
        if !progress.step(copied) {
            return Err(cancelled());
        }
    }
    drop(watch);
    target.settle()
}

fn follow(disks: &Disks, disk: &NamedDisk, target: Successor, top: bool, progress: &Progress) -> Result<(), String> {
    let made = Mutex::new(None);
    let watch = Watch::begin(disks, disk, || {
        let source = disk.image().backend();
        let mirror = Mirror::new(source, target.backend(), &wanted(disk, top));
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(mirror.clone());
        mirror
    });
    let Some(mirror) = made.into_inner().unwrap_or_else(PoisonError::into_inner) else { return Err(cancelled()) };
    progress.set(0, mirror.left());
    let word = loop {
        while let Some(copied) = mirror.step().map_err(|e| e.to_string())? {
            progress.more(mirror.left());
            if !progress.step(copied) {
                return Err(cancelled());
            }
        }
        progress.ready();
        if let Some(word) = progress.word(LOOK) {
            break word;
        }
    };
    if word == Word::Stop {
        return Err(cancelled());
    }
    // The rest, while nothing changes; then the disk is the copy, if that is what was asked for.
    disks.still(std::slice::from_ref(disk), || {
        while mirror.step().map_err(|e| e.to_string())?.is_some() {}
        target.settle()?;
        if word == Word::Complete {
            disks.succeed(disk, target);
        }
        disk.watch(None);
        Ok::<(), String>(())
    })?;
    drop(watch);
    Ok(())
}

fn stream(disk: &NamedDisk, progress: &Progress) -> Result<(), String> {
    let image = disk.image();
    let image = image.qcow2().map_err(|e| e.to_string())?;
    let len = disk.backend().len();
    progress.set(0, len);
    let mut at = 0;
    while at < len {
        let step = CHUNK.min(len - at);
        image.populate(at, step).map_err(|e| e.to_string())?;
        at += step;
        if !progress.step(step) {
            return Err(cancelled());
        }
    }
    // All that was below is in it: it needs nobody any more.
    disk.backend().flush().and_then(|()| image.set_backing(None)).map_err(|e| e.to_string())
}
