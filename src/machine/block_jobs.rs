//! Work on images that are in use: snapshots of several at one moment, copies, chains that grow and shrink.

use super::Machine;
use super::copying::{Backup, CHUNK, Mirror};
use super::disks::Disks;
use super::disks::images::{NamedDisk, Successor, holds};
use crate::monitor::{BlockJob, BlockTask, BlockWork, Busy, Class, Fault, ImageChange, JobSpec, Progress, Word};
use brolga::block::drive::Watcher;
use brolga::block::qcow2::MachineState;
use brolga::block::{BlockBackend, Image};
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
    Backup(NamedDisk, Box<(BlockJob, Successor, Busy)>),
}

/// A job's work.
type Work = Box<dyn FnOnce(&Progress) -> Result<(), String> + Send>;

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
            ImageChange::Backup(job) => {
                let disk = named(&self.disks, &job.device)?;
                let in_use = || Fault::new(format!("Device '{}' is in use by another job", disk.name()));
                let busy = self.jobs.occupy(&disk.name()).ok_or_else(in_use)?;
                let target = target_of(job, &disk)?;
                Ok(Ready::Backup(disk, Box::new((job.clone(), target, busy))))
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

    /// Makes prepared changes; the disks stand still. What is to go on when they do not.
    fn carry_out(&self, ready: Vec<Ready>) -> Result<Vec<(JobSpec, Work)>, String> {
        let mut started = Vec::new();
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
        for change in ready {
            match change {
                Ready::Overlay(disk, next) => self.disks.succeed(&disk, next),
                Ready::Backup(disk, backup) => {
                    let (job, target, busy) = *backup;
                    let spec = spec_of(&job, &disk);
                    let copying = Copying::begin(&self.disks, &disk, target, job.top);
                    let work = move |progress: &Progress| copying.run(progress).map(|()| drop(busy));
                    started.push((spec, Box::new(work) as Work));
                }
                Ready::Internal(..) => {}
            }
        }
        Ok(started)
    }
}

impl BlockWork for Machine {
    fn change_images(&self, changes: &[ImageChange]) -> Result<(), Fault> {
        let ready = changes.iter().map(|change| self.prepare(change)).collect::<Result<Vec<_>, _>>()?;
        let disks: Vec<NamedDisk> = ready
            .iter()
            .map(|ready| match ready {
                Ready::Overlay(disk, _) | Ready::Internal(disk, _) | Ready::Backup(disk, _) => disk.clone(),
            })
            .collect();
        let jobs = self.disks.still(&disks, || self.carry_out(ready))?;
        Ok(jobs.into_iter().try_for_each(|(spec, work)| self.jobs.start(spec, work, |_| Ok(())))?)
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
        let spec = spec_of(&job, &disk);
        let in_use = || Fault::new(format!("Device '{}' is in use by another job", disk.name()));
        let busy = self.jobs.occupy(&disk.name()).ok_or_else(in_use)?;
        let disks = self.disks.clone();
        match job.task {
            BlockTask::Backup => {
                let target = target_of(&job, &disk)?;
                let copying =
                    self.disks.still(std::slice::from_ref(&disk), || Copying::begin(&disks, &disk, target, job.top));
                let work = move |progress: &Progress| copying.run(progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Mirror => {
                disk.check()?;
                let (target, depth) = (target_of(&job, &disk)?, job.top.then_some(1));
                let work =
                    move |progress: &Progress| follow(&disks, &disk, target, depth, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Commit => {
                disk.check()?;
                let (from, base) = commit_range(&job, &disk)?;
                let below = disk.below(base)?;
                if from != 0 {
                    let work =
                        move |progress: &Progress| sink(&disks, &disk, (from, base), progress).map(|()| drop(busy));
                    return Ok(self.jobs.start(spec, work, |_| Ok(()))?);
                }
                let depth = u32::try_from(base).ok();
                let work =
                    move |progress: &Progress| follow(&disks, &disk, below, depth, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Stream => {
                disk.check()?;
                disk.image().qcow2().map_err(|e| e.to_string())?;
                let base = job.base.as_ref().map(|name| in_chain(&disk, name)).transpose()?;
                let work = move |progress: &Progress| stream(&disks, &disk, base, progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
        }
    }
}

fn spec_of(job: &BlockJob, disk: &NamedDisk) -> JobSpec {
    JobSpec {
        id: job.id.clone().unwrap_or_else(|| disk.name()),
        kind: job.task.kind(),
        block: true,
        auto_finalize: job.auto_finalize,
        auto_dismiss: job.auto_dismiss,
        speed: job.speed,
    }
}

/// The file that a disk is copied to.
fn target_of(job: &BlockJob, disk: &NamedDisk) -> Result<Successor, String> {
    Successor::target(&job.target, &job.format, job.existing, disk.backend().len(), job.node.clone())
}

/// How far below a disk's image the one in that file is.
fn in_chain(disk: &NamedDisk, name: &str) -> Result<usize, Fault> {
    let found = disk.depth_of(name).filter(|depth| *depth != 0);
    found.ok_or_else(|| Fault::new(format!("Can't find '{name}' in the backing chain")))
}

/// The image whose content goes down, and the one that it goes to, by their depths.
fn commit_range(job: &BlockJob, disk: &NamedDisk) -> Result<(usize, usize), Fault> {
    let from = match &job.from {
        Some(name) => disk.depth_of(name).ok_or_else(|| Fault::new(format!("Top image file {name} not found")))?,
        None => 0,
    };
    let base = match &job.base {
        Some(name) => in_chain(disk, name)?,
        None => disk.chain().len() - 1,
    };
    if base == 0 {
        return Err(Fault::new(format!("Device '{}' has no backing file", disk.name())));
    }
    match from < base {
        true => Ok((from, base)),
        false => {
            Err(Fault::new(format!("Can't find '{}' in the backing chain", job.base.as_deref().unwrap_or_default())))
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

/// Which chunks are copied: those that the first `depth` images of the chain hold something of, or all.
fn wanted(source: Arc<dyn BlockBackend>, depth: Option<u32>) -> impl Fn(u64) -> bool {
    move |chunk| depth.is_none_or(|depth| holds(&*source, chunk * CHUNK, CHUNK, depth))
}

/// A copy of what a disk was at a moment. The disk is watched as long as it lives.
struct Copying {
    disks: Arc<Disks>,
    disk: NamedDisk,
    backup: Arc<Backup>,
    target: Successor,
}

impl Copying {
    /// The moment is now: the disk has no request under way.
    fn begin(disks: &Arc<Disks>, disk: &NamedDisk, target: Successor, top: bool) -> Self {
        let source = disk.image().backend();
        let backup = Backup::new(source.clone(), target.backend(), &wanted(source, top.then_some(1)));
        disk.watch(Some(backup.clone()));
        Self { disks: disks.clone(), disk: disk.clone(), backup, target }
    }

    fn run(self, progress: &Progress) -> Result<(), String> {
        step_through(&self.backup, progress)?;
        self.target.settle()
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.disks.still(std::slice::from_ref(&self.disk), || self.disk.watch(None));
    }
}

/// Copies all that is left.
fn step_through(backup: &Backup, progress: &Progress) -> Result<(), String> {
    progress.set(0, backup.left());
    while let Some(copied) = backup.step().map_err(|e| e.to_string())? {
        if !progress.step(copied) {
            return Err(cancelled());
        }
    }
    Ok(())
}

/// Writes what images below the disk's own have, from one on, to the one at `base`, which the one above them rests on then.
fn sink(disks: &Disks, disk: &NamedDisk, (from, base): (usize, usize), progress: &Progress) -> Result<(), String> {
    let chain = disk.chain();
    let (Some(above), Some(source), Some(target)) = (chain.get(from - 1), chain.get(from), chain.get(base)) else {
        return Err("the chain has changed".to_owned());
    };
    let (source, depth) = (source.backend(), u32::try_from(base - from).ok());
    let backup = Backup::new(source.clone(), target.backend(), &wanted(source, depth));
    step_through(&backup, progress)?;
    target.backend().flush().map_err(|e| e.to_string())?;
    rest(disks, disk, above, Some(target.clone()))
}

/// Has an image of the disk's chain rest on another one from now on, or on none.
fn rest(disks: &Disks, disk: &NamedDisk, above: &Image, below: Option<Image>) -> Result<(), String> {
    let image = above.qcow2().map_err(|e| e.to_string())?;
    let named = match &below {
        Some(below) => {
            let name = below.file().name().to_owned();
            let path = std::fs::canonicalize(&name).map_err(|e| format!("{name}: {e}"))?;
            Some((path.to_str().ok_or("the image's path is not UTF-8")?.to_owned(), below.format()))
        }
        None => None,
    };
    image
        .set_backing(named.as_ref().map(|(name, format)| (name.as_str(), Some(*format))))
        .map_err(|e| e.to_string())?;
    disks.still(std::slice::from_ref(disk), || image.rest_on(below));
    Ok(())
}

fn follow(
    disks: &Disks,
    disk: &NamedDisk,
    target: Successor,
    depth: Option<u32>,
    progress: &Progress,
) -> Result<(), String> {
    let made = Mutex::new(None);
    let watch = Watch::begin(disks, disk, || {
        let source = disk.image().backend();
        let mirror = Mirror::new(source.clone(), target.backend(), &wanted(source, depth));
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

fn stream(disks: &Disks, disk: &NamedDisk, base: Option<usize>, progress: &Progress) -> Result<(), String> {
    let image = disk.image();
    let qcow2 = image.qcow2().map_err(|e| e.to_string())?;
    let (backend, chain) = (disk.backend(), disk.chain());
    let (len, depth) = (backend.len(), base.unwrap_or(chain.len()) as u32);
    progress.set(0, len);
    let mut at = 0;
    while at < len {
        let step = CHUNK.min(len - at);
        // What comes from the base or from below it stays there.
        let mut part = at;
        while part < at + step {
            let extent = image.backend().map(part, at + step - part).map_err(|e| e.to_string())?;
            let end = extent.offset.saturating_add(extent.len).clamp(part + 1, at + step);
            if (1..depth).contains(&extent.depth) {
                qcow2.populate(part, end - part).map_err(|e| e.to_string())?;
            }
            part = end;
        }
        at += step;
        if !progress.step(step) {
            return Err(cancelled());
        }
    }
    backend.flush().map_err(|e| e.to_string())?;
    rest(disks, disk, &image, base.and_then(|base| chain.get(base).cloned()))
}
