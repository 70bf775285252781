//! Work on images that are in use: snapshots of several at one moment, copies, chains that grow and shrink.

use super::Machine;
use super::copying::{Backup, CHUNK, Mirror};
use super::disks::Disks;
use super::disks::images::{NamedDisk, Successor, holds};
use crate::cli::Succession;
use crate::cli::config::SocketAddress;
use crate::monitor::{
    BlockJob, BlockTask, BlockWork, Busy, Class, Fault, ImageChange, JobSpec, NewImage, Offer, Progress, Word,
};
use brolga::block::drive::Watcher;
use brolga::block::qcow2::{MachineState, create_in};
use brolga::block::{BlockBackend, HostFile, Image, Preallocation, create_raw};
use brolga_devices::services::Clock;
use serde_json::Value;
use std::path::PathBuf;
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
    /// The same with a node that is open already.
    Over(NamedDisk, Successor),
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
            ImageChange::Over { device, overlay } => {
                let disk = named(&self.disks, device)?;
                if let Some(name) = self.jobs.busy(Some(&disk.name())) {
                    return Err(Fault::new(format!("Device '{name}' is in use by a job")));
                }
                let next = self.disks.take_node(overlay)?.successor()?;
                disk.may_have_over(&next)?;
                Ok(Ready::Over(disk, next))
            }
            ImageChange::Backup(job) => {
                let disk = named(&self.disks, &job.device)?;
                let in_use = || Fault::new(format!("Device '{}' is in use by another job", disk.name()));
                let busy = self.jobs.occupy(&disk.name()).ok_or_else(in_use)?;
                let target = target_of(&self.disks, job, &disk)?;
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
            if let Ready::Overlay(disk, _) | Ready::Over(disk, _) = overlay {
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
                Ready::Over(disk, next) => {
                    next.rest_on(&disk);
                    self.disks.succeed(&disk, next);
                }
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

impl Machine {
    fn start_mirror(&self, job: BlockJob, disk: NamedDisk, busy: Busy) -> Result<(), Fault> {
        let (disks, spec) = (self.disks.clone(), spec_of(&job, &disk));
        disk.check()?;
        let (target, depth) = (target_of(&disks, &job, &disk)?, job.top.then_some(1));
        let node = target.node().filter(|_| job.to_node).map(str::to_owned);
        let followed = self.followed(&disk, node, Succession::Free);
        let work = move |progress: &Progress| {
            let complete = follow(&disks, &disk, target, depth, progress)?;
            drop(busy);
            if complete { followed() } else { Ok(()) }
        };
        Ok(self.jobs.start(spec, work, |_| Ok(()))?)
    }

    fn start_commit(&self, job: BlockJob, disk: NamedDisk, busy: Busy) -> Result<(), Fault> {
        let (disks, spec) = (self.disks.clone(), spec_of(&job, &disk));
        disk.check()?;
        let node = if job.by_nodes { job.base.clone() } else { None };
        let job = self.by_files(job, &disk)?;
        let (from, base) = commit_range(&job, &disk)?;
        let below = disk.below(base)?;
        if from != 0 {
            let pruned = self.pruned(&disk);
            let work = move |progress: &Progress| {
                sink(&disks, &disk, (from, base), job.backing, progress)?;
                drop(busy);
                pruned();
                Ok(())
            };
            return Ok(self.jobs.start(spec, work, |_| Ok(()))?);
        }
        if job.backing.is_some() {
            return Err("'backing-file' is for images above others: the disk's own has none above".into());
        }
        let (depth, below) = (u32::try_from(base).ok(), below.called(node.clone()));
        let followed = self.followed(&disk, node, Succession::Gone);
        let work = move |progress: &Progress| {
            let complete = follow(&disks, &disk, below, depth, progress)?;
            drop(busy);
            if complete { followed() } else { Ok(()) }
        };
        Ok(self.jobs.start(spec, work, |_| Ok(()))?)
    }

    /// Chosen nodes of a disk by their files.
    fn by_files(&self, mut job: BlockJob, disk: &NamedDisk) -> Result<BlockJob, Fault> {
        if job.by_nodes {
            let inventory = self.inventory();
            for name in [&mut job.base, &mut job.from].into_iter().flatten() {
                let own = (*name == disk.node()).then(|| disk.path());
                let file = own.or_else(|| inventory.collected.drives.node_file(name));
                let file = file.ok_or_else(|| Fault::new(format!("Cannot find device='' nor node-name='{name}'")))?;
                *name = file.display().to_string();
            }
        }
        Ok(job)
    }

    /// What is to be done when a disk's chain has become shorter: nodes that are not in it any more are forgotten.
    fn pruned(&self, disk: &NamedDisk) -> impl FnOnce() + Send + use<> {
        let (machine, disk) = (self.this.get().cloned(), disk.clone());
        move || {
            let Some(machine) = machine.and_then(|weak| weak.upgrade()) else { return };
            let files: Vec<PathBuf> = disk.chain().iter().map(|image| image.file().name().into()).collect();
            machine.inventory().collected.drives.prune(&disk.node(), &files);
        }
    }

    /// What is to be done when a disk has become a copy, or an image below: names of nodes are others then.
    fn followed(
        &self,
        disk: &NamedDisk,
        node: Option<String>,
        how: Succession,
    ) -> impl FnOnce() -> Result<(), String> + Send + use<> {
        let (machine, old) = (self.this.get().cloned(), disk.node());
        move || {
            let (Some(machine), Some(new)) = (machine.and_then(|weak| weak.upgrade()), node) else { return Ok(()) };
            let freed = machine.inventory().collected.drives.succeed(&old, &new, how);
            match freed {
                Some(spec) => machine.disks.shelve(&spec).map_err(|error| format!("{error:#}")),
                None => Ok(()),
            }
        }
    }
}

/// Makes a file, or makes one empty that nobody uses.
fn make_file(path: &str, size: u64, preallocation: Preallocation) -> Result<(), String> {
    let path = std::path::Path::new(path);
    let unused = match path.exists() {
        true => HostFile::open(path, true).and_then(|file| file.lock(true)),
        false => Ok(()),
    };
    unused.and_then(|()| create_raw(path, size, preallocation)).map_err(|e| e.to_string())
}

impl BlockWork for Machine {
    fn change_images(&self, changes: &[ImageChange]) -> Result<(), Fault> {
        let ready = changes.iter().map(|change| self.prepare(change)).collect::<Result<Vec<_>, _>>()?;
        let disks: Vec<NamedDisk> = ready
            .iter()
            .map(|ready| match ready {
                Ready::Overlay(disk, _) | Ready::Over(disk, _) | Ready::Internal(disk, _) | Ready::Backup(disk, _) => {
                    disk.clone()
                }
            })
            .collect();
        let covered = ready.iter().filter_map(|ready| match ready {
            Ready::Over(disk, next) => Some((disk.node(), next.node()?.to_owned())),
            _ => None,
        });
        let covered: Vec<(String, String)> = covered.collect();
        let jobs = self.disks.still(&disks, || self.carry_out(ready))?;
        for (old, new) in &covered {
            self.inventory().collected.drives.succeed(old, new, Succession::Below);
        }
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

    fn create_image(&self, id: &str, image: NewImage) -> Result<(), Fault> {
        let disks = self.disks.clone();
        let work = move |_: &Progress| match image {
            NewImage::File { path, size, preallocation } => make_file(&path, size, preallocation),
            NewImage::Qcow2 { node, options } => {
                let taken = disks.take_node(&node)?;
                let file = taken.file().ok_or("the node has gone")?;
                let made = file.set_len(0).and_then(|()| create_in(file, &options)).map_err(|e| e.to_string());
                taken.renew().and(made)
            }
        };
        Ok(self.jobs.start(JobSpec::plain(id, "create"), work, |_| Ok(()))?)
    }

    fn commit(&self, device: &str) -> Result<(), Fault> {
        self.commit_disks(device)
    }

    fn start_nbd(&self, address: &SocketAddress) -> Result<(), Fault> {
        self.listen_for_nbd(address)
    }

    fn stop_nbd(&self) -> Result<(), Fault> {
        self.end_nbd()
    }

    fn offer(&self, offer: Offer) -> Result<(), Fault> {
        self.begin_offer(offer)
    }

    fn withdraw(&self, id: &str, hard: bool) -> Result<(), Fault> {
        self.end_offer(id, hard)
    }

    fn offers(&self) -> Vec<Offer> {
        self.all_offers()
    }

    fn start_block_job(&self, job: BlockJob) -> Result<(), Fault> {
        let disk = named(&self.disks, &job.device)?;
        let spec = spec_of(&job, &disk);
        let in_use = || Fault::new(format!("Device '{}' is in use by another job", disk.name()));
        let busy = self.jobs.occupy(&disk.name()).ok_or_else(in_use)?;
        let disks = self.disks.clone();
        match job.task {
            BlockTask::Backup => {
                let target = target_of(&disks, &job, &disk)?;
                let copying =
                    self.disks.still(std::slice::from_ref(&disk), || Copying::begin(&disks, &disk, target, job.top));
                let work = move |progress: &Progress| copying.run(progress).map(|()| drop(busy));
                Ok(self.jobs.start(spec, work, |_| Ok(()))?)
            }
            BlockTask::Mirror => self.start_mirror(job, disk, busy),
            BlockTask::Commit => self.start_commit(job, disk, busy),
            BlockTask::Stream => {
                disk.check()?;
                disk.image().qcow2().map_err(|e| e.to_string())?;
                let job = self.by_files(job, &disk)?;
                let base = job.base.as_ref().map(|name| in_chain(&disk, name)).transpose()?;
                if base.is_none() && job.backing.is_some() {
                    return Err("backing file specified, but streaming the entire chain".into());
                }
                let pruned = self.pruned(&disk);
                let work = move |progress: &Progress| {
                    stream(&disks, &disk, base, job.backing, progress)?;
                    drop(busy);
                    pruned();
                    Ok(())
                };
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

/// The file or node that a disk is copied to.
fn target_of(disks: &Arc<Disks>, job: &BlockJob, disk: &NamedDisk) -> Result<Successor, String> {
    if job.to_node {
        let target = disks.take_node(&job.target)?.successor()?;
        return match target.backend().len() == disk.backend().len() {
            true => Ok(target),
            false => {
                Err(format!("Source and target image have different sizes: '{}' and '{}'", disk.node(), job.target))
            }
        };
    }
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

/// Writes what images below the disk's own have, from one on, to the one at `base`, which the one above them rests on then,
/// and calls `named`, or by its path.
fn sink(
    disks: &Disks,
    disk: &NamedDisk,
    (from, base): (usize, usize),
    named: Option<String>,
    progress: &Progress,
) -> Result<(), String> {
    let chain = disk.chain();
    let (Some(above), Some(source), Some(target)) = (chain.get(from - 1), chain.get(from), chain.get(base)) else {
        return Err("the chain has changed".to_owned());
    };
    let (source, depth) = (source.backend(), u32::try_from(base - from).ok());
    let backup = Backup::new(source.clone(), target.backend(), &wanted(source, depth));
    step_through(&backup, progress)?;
    target.backend().flush().map_err(|e| e.to_string())?;
    rest(disks, disk, above, Some(target.clone()), named)
}

/// Has an image of the disk's chain rest on another one from now on, or on none; what it calls that, if not by its path.
fn rest(
    disks: &Disks,
    disk: &NamedDisk,
    above: &Image,
    below: Option<Image>,
    named: Option<String>,
) -> Result<(), String> {
    let image = above.qcow2().map_err(|e| e.to_string())?;
    let named = match (&below, named) {
        (Some(below), Some(name)) => Some((name, below.format())),
        (Some(below), None) => {
            let name = below.file().name().to_owned();
            let path = std::fs::canonicalize(&name).map_err(|e| format!("{name}: {e}"))?;
            Some((path.to_str().ok_or("the image's path is not UTF-8")?.to_owned(), below.format()))
        }
        (None, _) => None,
    };
    image
        .set_backing(named.as_ref().map(|(name, format)| (name.as_str(), Some(*format))))
        .map_err(|e| e.to_string())?;
    disks.still(std::slice::from_ref(disk), || image.rest_on(below));
    Ok(())
}

/// Copies and follows until it is told to end. Whether the copy is the disk now.
fn follow(
    disks: &Disks,
    disk: &NamedDisk,
    target: Successor,
    depth: Option<u32>,
    progress: &Progress,
) -> Result<bool, String> {
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
    Ok(word == Word::Complete)
}

fn stream(
    disks: &Disks,
    disk: &NamedDisk,
    base: Option<usize>,
    named: Option<String>,
    progress: &Progress,
) -> Result<(), String> {
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
    rest(disks, disk, &image, base.and_then(|base| chain.get(base).cloned()), named)
}
