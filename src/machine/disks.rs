//! Drives as devices use them: requests go to a drive's threads, completions come back on the I/O thread.

mod handing;
pub mod images;
pub mod nodes;
pub mod snapshots;

use super::Request;
use super::disk_statistics::{Kind, Ledger};
use super::dma::GuestMemory;
use crate::cli::config::DriveSpec;
use crate::events;
use crate::io_thread::{FdWatcher, IoHandle};
use crate::monitor::{DriveStatistics, Events, MediumInfo};
use anyhow::{Context, Result, anyhow};
use brolga::block::drive::{Drive, ErrorAction, Verdict};
use brolga::block::queue::{self, Completed, Operation, Queue, RequestMemory};
use brolga::block::{BlockError, Preallocation};
use brolga_devices::services::{Disk, DiskBuffer, DiskClient, DiskDone, DiskError, DiskRequest, Dma, GuestRange};
use brolga_devices::trace_event;
use brolga_devices::wire::locked;
use brolga_jit::mmu::ram::SHADOW;
use brolga_jit::mmu::ram_buffer::RamBuffer;
use crossbeam_channel::Sender;
use nix::poll::PollFlags;
use serde_json::json;
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Instant;

/// Threads of a drive, at most: a disk has as many requests under way.
const THREADS: usize = 4;

/// All drives of a machine.
pub struct Disks {
    memory: Arc<GuestMemory>,
    io: IoHandle,
    requests: Sender<Request>,
    events: Arc<Events>,
    disks: Mutex<Vec<Arc<HostDisk>>>,
    /// Images that no device has, with what they were opened as.
    shelf: Mutex<Vec<(DriveSpec, Arc<dyn Disk>)>>,
    /// Images opened so far, for their names.
    count: AtomicU64,
    /// Images are this process's; not while the machine is to arrive, nor when it has left.
    active: AtomicBool,
}

impl Disks {
    /// No drives yet. Those that come move data to and from `memory`, have completions told by `io`, and tell `requests`
    /// of failures that stop the machine. Images that are not `active` yet are another process's.
    pub fn new(
        memory: Arc<GuestMemory>,
        io: IoHandle,
        requests: Sender<Request>,
        events: Arc<Events>,
        active: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            active: AtomicBool::new(active),
            memory,
            io,
            requests,
            events,
            disks: Mutex::default(),
            shelf: Mutex::default(),
            count: AtomicU64::new(0),
        })
    }

    /// Opens the image of `spec`. `None`: a drive without a medium.
    pub fn open(&self, spec: &DriveSpec) -> Result<Option<Arc<dyn Disk>>> {
        let Some(path) = &spec.file else { return Ok(None) };
        if let Some((shelved, disk)) = spec.id.as_deref().and_then(|id| self.take_down(id)) {
            if shelved.options == spec.options {
                return Ok(Some(disk));
            }
            // The device wants it otherwise.
            self.remove(&disk).map_err(|error| anyhow!(error))?;
        }
        let open = if self.active() { Drive::open } else { Drive::open_inactive };
        // The reason is in the error's own words.
        let drive = open(path, &spec.options).map_err(|error| anyhow!("{}: {error}", spec.what))?;
        self.adopt(spec, drive).map(Some)
    }

    /// Takes over the image of `spec` that is open already.
    pub fn adopt(&self, spec: &DriveSpec, drive: Drive) -> Result<Arc<dyn Disk>> {
        let queue = Queue::new(drive.backend(), THREADS, drive.options().aio);
        let queue = queue.with_context(|| format!("{}: no descriptor or thread", spec.what))?;
        let disk = Arc::new(HostDisk {
            what: spec.what.clone(),
            drive,
            queue,
            memory: self.memory.clone(),
            requests: self.requests.clone(),
            events: self.events.clone(),
            label: Mutex::default(),
            names: Mutex::new(Names {
                node: spec.node.clone().unwrap_or_else(|| self.next_name()),
                file_node: spec.file_node.clone().unwrap_or_else(|| self.next_name()),
                path: spec.file.as_ref().map_or_else(String::new, |path| path.display().to_string()),
                place: place(spec.file.as_deref().unwrap_or(Path::new(""))),
            }),
            gate: RwLock::default(),
            clients: Mutex::default(),
            gone: AtomicBool::new(false),
            collecting: Mutex::default(),
            state: Mutex::default(),
        });
        self.io.watch(disk.clone());
        locked(&self.disks).push(disk.clone());
        Ok(disk)
    }

    fn next_name(&self) -> String {
        format!("#block{:03}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens the image of `spec`, which no device has yet.
    pub fn shelve(&self, spec: &DriveSpec) -> Result<()> {
        if let Some(disk) = self.open(spec)? {
            self.put_back(spec, disk);
        }
        Ok(())
    }

    /// No device has this image any more.
    pub fn put_back(&self, spec: &DriveSpec, disk: Arc<dyn Disk>) {
        if let Some(disk) = self.find(&disk) {
            *locked(&disk.label) = None;
            locked(&disk.clients).clear();
        }
        locked(&self.shelf).push((spec.clone(), disk));
    }

    /// Takes an image that no device has.
    pub fn take_down(&self, id: &str) -> Option<(DriveSpec, Arc<dyn Disk>)> {
        let mut shelf = locked(&self.shelf);
        let at = shelf.iter().position(|(spec, _)| spec.id.as_deref() == Some(id))?;
        Some(shelf.remove(at))
    }

    /// Images that no device has.
    pub fn shelved(&self) -> Vec<(DriveSpec, Arc<dyn Disk>)> {
        locked(&self.shelf).clone()
    }

    /// Gives an image another size.
    pub fn resize(&self, disk: &Arc<dyn Disk>, len: u64) -> Result<(), String> {
        let Some(disk) = self.find(disk) else { return Ok(()) };
        disk.queue.drain();
        disk.collect();
        disk.drive.backend().resize(len, Preallocation::Off).map_err(|error| error.to_string())?;
        let clients = locked(&disk.clients).clone();
        clients.iter().filter_map(Weak::upgrade).for_each(|client| client.disk_resized());
        Ok(())
    }

    fn all(&self) -> Vec<Arc<HostDisk>> {
        locked(&self.disks).clone()
    }

    /// Waits until no request is with the host any more, and its device has heard of it.
    pub fn drain(&self) {
        for disk in self.all() {
            // A device may go on with the next request when it hears of the end of one.
            while disk.queue.outstanding() != 0 {
                disk.queue.drain();
                disk.collect();
            }
        }
    }

    /// Ends all drives: what the guest gave is carried out and made durable. The user hears of what fails.
    pub fn close(&self) {
        self.drain();
        for disk in std::mem::take(&mut *locked(&self.disks)) {
            if let Err(error) = disk.close() {
                eprintln!("{error}");
            }
        }
    }

    /// Ends one drive, which no device has any more, see [`Disks::close`].
    pub fn remove(&self, disk: &Arc<dyn Disk>) -> Result<(), String> {
        let closed = self.find(disk).map_or(Ok(()), |disk| {
            disk.queue.drain();
            disk.collect();
            disk.close()
        });
        self.let_go(disk);
        closed
    }

    /// Ends one drive whose image somebody else goes on with.
    fn let_go(&self, disk: &Arc<dyn Disk>) {
        let found = {
            let mut disks = locked(&self.disks);
            let at = disks.iter().position(|other| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(disk)));
            at.map(|at| disks.swap_remove(at))
        };
        let Some(disk) = found else { return };
        disk.queue.drain();
        disk.collect();
        // The watch ends with the next completion.
        disk.gone.store(true, Ordering::SeqCst);
        disk.queue.submit(queue::Request { tag: u64::MAX, offset: 0, operation: Operation::Flush });
    }

    fn find(&self, disk: &Arc<dyn Disk>) -> Option<Arc<HostDisk>> {
        let disks = locked(&self.disks);
        disks.iter().find(|other| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(disk))).cloned()
    }

    /// Tells by which name and device events have to name `disk`.
    pub fn label(&self, disk: &Arc<dyn Disk>, name: &str, path: &str) {
        if let Some(disk) = self.find(disk) {
            *locked(&disk.label) = Some((name.to_owned(), path.to_owned()));
        }
    }

    /// The image of `disk`.
    pub fn describe(&self, disk: &Arc<dyn Disk>) -> Option<MediumInfo> {
        let disk = self.find(disk)?;
        let options = disk.drive.options();
        let (image, names) = (disk.drive.image(), locked(&disk.names).clone());
        let depth = std::iter::successors(Some(image.clone()), |image| image.qcow2().ok()?.backing()).count();
        let format = image.format().name();
        let image = brolga::img::describe(&names.path, &image);
        Some(MediumInfo {
            file: names.path,
            format,
            node: names.node,
            file_node: names.file_node,
            read_only: disk.read_only(),
            depth: depth - 1,
            detect_zeroes: options.detect_zeroes.name(),
            cache: [options.cache.writeback, options.cache.direct, options.cache.no_flush],
            image,
        })
    }

    /// What was done with `disk`, and how its last requests went, if they may stop the machine.
    pub fn statistics(&self, disk: &Arc<dyn Disk>) -> (DriveStatistics, Option<&'static str>) {
        let Some(disk) = self.find(disk) else { return Default::default() };
        let options = disk.drive.options();
        let stops = |action| matches!(action, ErrorAction::Stop | ErrorAction::Enospc);
        let state = locked(&disk.state);
        let stops = stops(options.write_errors) || stops(options.read_errors);
        (state.ledger.statistics(), stops.then_some(state.stopped_for.unwrap_or("ok")))
    }

    /// Submits again what stopped the machine.
    pub fn resume(&self) {
        for disk in self.all() {
            let held = {
                let mut state = locked(&disk.state);
                (state.stopped, state.stopped_for) = (false, None);
                std::mem::take(&mut state.held)
            };
            let _open = disk.gate.read().unwrap_or_else(PoisonError::into_inner);
            disk.queue.submit_all(held);
        }
    }
}

/// Where a file is, whatever becomes of the directory that this process is in.
fn place(path: &Path) -> PathBuf {
    // Fails for an empty path only.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where the bytes of a read go.
enum Target {
    /// To the device, with the completion.
    Device,
    /// To guest memory, from a buffer.
    Copy(Vec<GuestRange>),
    /// They are in guest memory already.
    InPlace(Vec<GuestRange>),
}

/// What a device waits for.
struct Waiting {
    kind: Kind,
    len: u64,
    since: Instant,
    token: u64,
    client: Weak<dyn DiskClient>,
    target: Target,
    write: bool,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    /// Requests that failed in a way that stops the machine.
    held: Vec<queue::Request>,
    /// The user was told of an error.
    told: bool,
    /// The machine is to stop, or has, for a request that failed.
    stopped: bool,
    /// Why: failed or nospace.
    stopped_for: Option<&'static str>,
    /// What was done so far.
    ledger: Ledger,
}

/// What an image is called.
#[derive(Clone)]
struct Names {
    /// Its name among images.
    node: String,
    /// The name of the file below it.
    file_node: String,
    path: String,
    /// The same wherever this process stands (`-daemonize`).
    place: PathBuf,
}

/// A drive. `gate` is held while a request is submitted, and by those who keep requests out; `collecting` is held while devices hear of completions; `state` is a leaf.
struct HostDisk {
    what: String,
    names: Mutex<Names>,
    /// Requests come through it.
    gate: RwLock<()>,
    /// Its drive's name and device.
    label: Mutex<Option<(String, String)>>,
    /// Who wants to know of another size.
    clients: Mutex<Vec<Weak<dyn DiskClient>>>,
    events: Arc<Events>,
    /// It was taken away.
    gone: AtomicBool,
    drive: Drive,
    queue: Queue,
    memory: Arc<GuestMemory>,
    requests: Sender<Request>,
    collecting: Mutex<()>,
    state: Mutex<State>,
}

/// Bytes from guest memory for a write. They are collected by the thread that writes them.
struct Gather {
    memory: Arc<GuestMemory>,
    ranges: Vec<GuestRange>,
    bytes: OnceLock<Vec<u8>>,
}

impl RequestMemory for Gather {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        let bytes = self.bytes.get_or_init(|| {
            let len: u64 = self.ranges.iter().map(|r| r.len).sum();
            let mut bytes = vec![0; len as usize];
            let mut rest = bytes.as_mut_slice();
            for range in &self.ranges {
                let (now, later) = rest.split_at_mut(range.len as usize);
                self.memory.read(range.gpa, now);
                rest = later;
            }
            bytes
        });
        vec![IoSlice::new(bytes)]
    }

    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        // Only what is written is gathered.
        Vec::new()
    }
}

/// Room for what a read brings, made by the thread that reads: requests that wait take no memory.
struct Room {
    len: usize,
    bytes: Vec<u8>,
}

impl RequestMemory for Room {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        vec![IoSlice::new(&self.bytes)]
    }

    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        self.bytes.resize(self.len, 0);
        vec![IoSliceMut::new(&mut self.bytes)]
    }
}

/// Guest memory as the block layer names it.
fn pairs(ranges: &[GuestRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.gpa, range.len)).collect()
}

/// Guest memory that the host fills in place, if it can: not where the chipset may have made it read-only.
fn in_place(memory: &GuestMemory, ranges: &[GuestRange]) -> Option<RamBuffer> {
    let shadow = |r: &GuestRange| r.gpa < SHADOW.end && r.gpa.saturating_add(r.len) > SHADOW.start;
    if ranges.iter().any(shadow) {
        return None;
    }
    RamBuffer::new(memory.ram().clone(), &pairs(ranges), true)
}

impl HostDisk {
    /// Makes all durable that the guest gave, and the image sound.
    fn close(&self) -> Result<(), String> {
        if self.drive.backend().read_only() || !self.drive.is_active() {
            return Ok(());
        }
        let flushed = self.drive.backend().flush();
        let closed = flushed.and_then(|()| self.drive.image().qcow2().map_or(Ok(()), |image| image.close()));
        closed.map_err(|error| format!("{}: {error}; what the guest wrote last may be lost", self.what))
    }

    /// The request as the queue takes it, and where what it reads has to be copied.
    fn translate(&self, request: DiskRequest) -> (u64, Operation, Target) {
        let room = |len: u64| Box::new(Room { len: len as usize, bytes: Vec::new() });
        let len = match &request {
            DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => buffer.len(),
            _ => 0,
        };
        match request {
            DiskRequest::Read { offset, buffer: DiskBuffer::Own(_) } => {
                (offset, Operation::Read(room(len)), Target::Device)
            }
            DiskRequest::Read { offset, buffer: DiskBuffer::Guest(ranges) } => match in_place(&self.memory, &ranges) {
                Some(buffer) => (offset, Operation::Read(Box::new(buffer)), Target::InPlace(ranges)),
                None => (offset, Operation::Read(room(len)), Target::Copy(ranges)),
            },
            DiskRequest::Write { offset, buffer } => {
                let memory = self.source(buffer);
                (offset, Operation::Write { memory, fua: false }, Target::Device)
            }
            DiskRequest::Flush => (0, Operation::Flush, Target::Device),
            DiskRequest::Discard { offset, len } => (offset, Operation::Discard { len }, Target::Device),
            DiskRequest::WriteZeroes { offset, len, unmap } => {
                (offset, Operation::WriteZeroes { len, unmap }, Target::Device)
            }
        }
    }

    /// What a write stores.
    fn source(&self, buffer: DiskBuffer) -> Box<dyn RequestMemory> {
        let ranges = match buffer {
            DiskBuffer::Own(bytes) => return Box::new(bytes),
            DiskBuffer::Guest(ranges) => ranges,
        };
        match RamBuffer::new(self.memory.ram().clone(), &pairs(&ranges), false) {
            Some(buffer) => Box::new(buffer),
            None => Box::new(Gather { memory: self.memory.clone(), ranges, bytes: OnceLock::new() }),
        }
    }

    /// Tells devices of all that is carried out. When it returns, all of it has been told.
    fn collect(&self) {
        let _one = locked(&self.collecting);
        self.queue.completed().into_iter().for_each(|completed| self.finish(completed));
    }

    /// Tells the device what became of its request, unless the request is kept for later.
    fn finish(&self, Completed { request, result }: Completed) {
        let verdict = match &result {
            Ok(()) => Verdict::Ignore,
            Err(error) => self.judge(request.tag, error),
        };
        if verdict == Verdict::Stop {
            locked(&self.state).held.push(request);
            return;
        }
        let waiting = {
            let mut state = locked(&self.state);
            let Some(waiting) = state.waiting.remove(&request.tag) else { return };
            let end = request.offset.saturating_add(waiting.len);
            state.ledger.note(waiting.kind, waiting.len, end, waiting.since.elapsed(), result.as_ref().err());
            waiting
        };
        let result = match result {
            Err(error) if verdict == Verdict::Report => Err(reason(&error)),
            _ => Ok(()),
        };
        let mut bytes = Vec::new();
        if let (Ok(()), Operation::Read(memory)) = (&result, &request.operation) {
            let parts = memory.parts();
            let read = parts.first().map_or(&[][..], |part| part);
            match waiting.target {
                Target::Device => bytes = read.to_vec(),
                Target::Copy(ranges) => self.scatter(read, &ranges),
                Target::InPlace(ranges) => ranges.iter().for_each(|r| self.memory.written(r.gpa, r.len)),
            }
        }
        if let Some(client) = waiting.client.upgrade() {
            client.disk_done(DiskDone { token: waiting.token, result, bytes });
        }
    }

    /// What becomes of a failed request; the user hears of the first one.
    fn judge(&self, tag: u64, error: &BlockError) -> Verdict {
        let (write, told) = {
            let mut state = locked(&self.state);
            let write = state.waiting.get(&tag).is_some_and(|w| w.write);
            (write, std::mem::replace(&mut state.told, true))
        };
        let verdict = self.drive.verdict(write, error);
        self.tell(write, verdict, error);
        let guests_own = matches!(error, BlockError::OutOfRange { .. } | BlockError::ReadOnly { .. });
        if verdict == Verdict::Stop {
            // Once for all that fail together. Sending fails only when the machine is ending.
            let no_space = error.is_no_space();
            let first = {
                let mut state = locked(&self.state);
                state.stopped_for = Some(if no_space { "nospace" } else { "failed" });
                !std::mem::replace(&mut state.stopped, true)
            };
            if first {
                let _ = self.requests.send(Request::DiskFailed(format!("{}: {error}", self.what)));
            }
        } else if !told && !guests_own {
            eprintln!("{}: {error}; the guest sees an I/O error", self.what);
        }
        verdict
    }

    /// Events tell of it too.
    fn tell(&self, write: bool, verdict: Verdict, error: &BlockError) {
        let (device, path) = locked(&self.label).clone().unwrap_or_default();
        let action = match verdict {
            Verdict::Ignore => "ignore",
            Verdict::Report => "report",
            Verdict::Stop => "stop",
        };
        let data = json!({
            "qom-path": path,
            "device": device,
            "node-name": locked(&self.names).node,
            "operation": if write { "write" } else { "read" },
            "action": action,
            "nospace": error.is_no_space(),
            "reason": error.to_string(),
        });
        self.events.emit("BLOCK_IO_ERROR", data);
    }

    fn scatter(&self, mut bytes: &[u8], ranges: &[GuestRange]) {
        for range in ranges {
            let (now, later) = bytes.split_at(bytes.len().min(range.len as usize));
            self.memory.write(range.gpa, now);
            bytes = later;
        }
    }
}

/// The failure as the guest can be told.
fn reason(error: &BlockError) -> DiskError {
    match error {
        BlockError::OutOfRange { .. } => DiskError::OutOfRange,
        BlockError::ReadOnly { .. } => DiskError::ReadOnly,
        _ => DiskError::Host,
    }
}

/// A request, for those who trace.
fn describe(request: &DiskRequest) -> String {
    match request {
        DiskRequest::Read { offset, buffer } => format!("read {offset:#x} {:#x}", buffer.len()),
        DiskRequest::Write { offset, buffer } => format!("write {offset:#x} {:#x}", buffer.len()),
        DiskRequest::Flush => "flush".to_owned(),
        DiskRequest::Discard { offset, len } => format!("discard {offset:#x} {len:#x}"),
        DiskRequest::WriteZeroes { offset, len, .. } => format!("write zeroes {offset:#x} {len:#x}"),
    }
}

impl Disk for HostDisk {
    fn watch_size(&self, client: Weak<dyn DiskClient>) {
        locked(&self.clients).push(client);
    }

    fn len(&self) -> u64 {
        self.drive.backend().len()
    }

    fn read_only(&self) -> bool {
        self.drive.backend().read_only()
    }

    fn write_cache(&self) -> bool {
        self.drive.has_write_cache()
    }

    fn submit(&self, request: DiskRequest, token: u64, client: Weak<dyn DiskClient>) {
        trace_event!(events::BLOCK, "{}", describe(&request));
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let (kind, len) = Kind::of(&request);
        let (offset, operation, target) = self.translate(request);
        let tag = {
            let mut state = locked(&self.state);
            let tag = state.next;
            state.next = tag.wrapping_add(1);
            let since = Instant::now();
            state.waiting.insert(tag, Waiting { kind, len, since, token, client, target, write: operation.is_write() });
            tag
        };
        self.queue.submit(queue::Request { tag, offset, operation });
    }
}

impl FdWatcher for HostDisk {
    fn fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn interest(&self) -> PollFlags {
        PollFlags::POLLIN
    }

    fn ready(&self, _events: PollFlags) -> bool {
        self.collect();
        !self.gone.load(Ordering::SeqCst)
    }
}
