//! Block device (section 5.2): reads, writes, flushes, discards and zeroes on a [`Disk`].

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::services::{
    Disk, DiskBuffer, DiskClient, DiskDone, DiskRequest, Dma, Doorbell, GuestRange, WorkService, WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Pieces of a request besides header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
const SECTOR: u64 = 512;
/// Requests taken from a queue before others on the I/O thread have their turn.
const REQUESTS_AT_ONCE: usize = 2 * QUEUE_SIZE as usize;
/// Bytes of a request's header, of an identification, and of an entry of a discard.
const HEADER: u64 = 16;
const IDENTIFICATION: usize = 20;
const DISCARD_ENTRY: u64 = 16;
/// Most bytes of one request.
const MAX_BYTES: u64 = 64 << 20;
/// Most sectors of one discard or of one stretch of zeros (2 GiB less a sector, as QEMU has it), and stretches of a
/// request.
const MAX_DISCARD: u32 = (i32::MAX as u32) >> 9;
const MAX_ENTRIES: u32 = 32;
/// Length of the configuration space, and where in it the driver writes the cache mode.
const CONFIG: usize = 60;
const WRITEBACK: usize = 32;

/// Feature bits (5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status of a request.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A request under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    queue: usize,
    chain: Chain,
    /// Bytes that a read has written by its end.
    read: u32,
    /// Disk requests still to be submitted for it, the last first.
    entries: Vec<Entry>,
    /// Flush when everything else is done.
    flush: bool,
}

/// A stretch to discard or to fill with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    sector: u64,
    sectors: u32,
    zeroes: bool,
    unmap: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    features: u64,
    started: bool,
    /// The write cache is on: writes are durable after a flush.
    writeback: bool,
    next: u64,
    pending: BTreeMap<u64, Pending>,
}

/// The device.
///
/// Locks: `state` is a leaf; queues, disk and guest memory are used without it. Each queue has a doorbell of its own: one
/// that is never empty leaves the others their turns. What they take goes to the disk, which works on many requests at
/// once.
pub struct VirtioBlk {
    disk: Arc<dyn Disk>,
    serial: [u8; IDENTIFICATION],
    queues: Arc<Queues>,
    doorbells: Vec<Box<dyn Doorbell>>,
    this: Weak<VirtioBlk>,
    state: Mutex<State>,
    /// Requests with the disk, of this life and of those before a reset.
    under_way: AtomicU64,
}

impl VirtioBlk {
    /// A device on `disk` with `queues` queues (1 to 64); `serial` has up to 20 characters. Its work is done by `work`.
    pub fn parts(disk: Arc<dyn Disk>, serial: &str, queues: u16, dma: Arc<dyn Dma>, work: &dyn WorkService) -> Parts {
        let queues = Queues::new(dma, queues.clamp(1, 64).into(), QUEUE_SIZE);
        let mut identification = [0; IDENTIFICATION];
        identification.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let state = State { writeback: disk.write_cache(), ..State::default() };
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            disk,
            serial: identification,
            queues: queues.clone(),
            doorbells: (0..queues.count()).map(|queue| work.doorbell(this.clone(), queue as u32)).collect(),
            this: this.clone(),
            state: Mutex::new(state),
            under_way: AtomicU64::new(0),
        });
        let client: Weak<dyn DiskClient> = device.this.clone();
        device.disk.watch_size(client);
        Parts { device, queues }
    }

    /// Takes what is in a queue. `false`: there may be more, and others are to have their turn.
    fn serve_queue(&self, index: usize) -> bool {
        self.queues.want_notifications(index, false);
        for _ in 0..REQUESTS_AT_ONCE {
            let chain = self.queues.pop(index).or_else(|| {
                self.queues.want_notifications(index, true);
                // What came between the last look and the wish to be told.
                self.queues.pop(index)
            });
            match chain {
                Some(chain) => self.take(index, chain),
                None => return true,
            }
        }
        false
    }

    /// Starts a request.
    fn take(&self, queue: usize, chain: Chain) {
        let dma = self.queues.dma().clone();
        let Some(status_room) = chain.writable.iter().rev().find(|r| r.len > 0).copied() else {
            return self.queues.stop();
        };
        let mut header = [0; HEADER as usize];
        let Some(data) = split(&dma, &chain.readable, &mut header) else { return self.queues.stop() };
        let [a, b, c, d, _, _, _, _, e, f, g, h, i, j, k, l] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes([e, f, g, h, i, j, k, l]));
        let room = without_last_byte(&chain.writable, status_room);
        let mut pending = Pending { queue, chain, read: 0, entries: Vec::new(), flush: false };
        let request = match kind {
            kind::IN => self.transfer(&room, sector).map(|(offset, len)| {
                pending.read = len;
                DiskRequest::Read { offset, buffer: DiskBuffer::Guest(room) }
            }),
            kind::OUT => self.transfer(&data, sector).and_then(|(offset, _)| {
                pending.flush = !locked(&self.state).writeback;
                match self.disk.read_only() {
                    true => Err(IO_ERROR),
                    false => Ok(DiskRequest::Write { offset, buffer: DiskBuffer::Guest(data) }),
                }
            }),
            kind::FLUSH => Ok(DiskRequest::Flush),
            kind::GET_ID => {
                let len = self.identify(&dma, &room);
                return self.finish(&pending, OK, len);
            }
            kind::DISCARD | kind::WRITE_ZEROES => self.entries(&dma, &data, kind).and_then(|entries| {
                pending.entries = entries;
                pending.entries.pop().map(|entry| entry.request()).ok_or(IO_ERROR)
            }),
            _ => Err(UNSUPPORTED),
        };
        match request {
            Ok(request) => self.submit(pending, request),
            Err(status) => self.finish(&pending, status, 0),
        }
    }

    /// Whether sectors from `sector` on fit what the driver gives or has room for, and the disk. Offset and length.
    fn transfer(&self, ranges: &[GuestRange], sector: u64) -> Result<(u64, u32), u8> {
        let len = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let offset = sector.checked_mul(SECTOR).ok_or(IO_ERROR)?;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.disk.len());
        match fits && len % SECTOR == 0 && (1..=MAX_BYTES).contains(&len) {
            true => Ok((offset, len as u32)),
            false => Err(IO_ERROR),
        }
    }

    /// Writes the serial number; how many bytes.
    fn identify(&self, dma: &Arc<dyn Dma>, room: &[GuestRange]) -> u32 {
        let mut rest = &self.serial[..];
        for range in room {
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(range.len).unwrap_or(usize::MAX)));
            dma.write(range.gpa, now);
            rest = later;
        }
        (IDENTIFICATION - rest.len()) as u32
    }

    /// The stretches that a discard or write of zeros names, the last first (5.2.6.2).
    fn entries(&self, dma: &Arc<dyn Dma>, data: &[GuestRange], kind: u32) -> Result<Vec<Entry>, u8> {
        let len = data.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let count = len / DISCARD_ENTRY;
        if len % DISCARD_ENTRY != 0 || count == 0 || count > MAX_ENTRIES.into() || self.disk.read_only() {
            return Err(IO_ERROR);
        }
        let mut bytes = vec![0; len as usize];
        split(dma, data, &mut bytes);
        let zeroes = kind == kind::WRITE_ZEROES;
        let mut entries = Vec::new();
        for entry in bytes.chunks_exact(DISCARD_ENTRY as usize) {
            let &[a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = entry else { return Err(IO_ERROR) };
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let (sectors, flags) = (u32::from_le_bytes([i, j, k, l]), u32::from_le_bytes([m, n, o, p]));
            let end = sector.checked_add(sectors.into()).filter(|end| *end <= self.disk.len() / SECTOR);
            if flags & !u32::from(zeroes) != 0 {
                return Err(UNSUPPORTED);
            }
            if end.is_none() || sectors > MAX_DISCARD {
                return Err(IO_ERROR);
            }
            entries.push(Entry { sector, sectors, zeroes, unmap: flags & 1 != 0 });
        }
        entries.reverse();
        Ok(entries)
    }

    fn submit(&self, pending: Pending, request: DiskRequest) {
        let token = {
            let mut state = locked(&self.state);
            let token = state.next;
            state.next = token.wrapping_add(1);
            state.pending.insert(token, pending);
            token
        };
        self.start_disk(request, token);
    }

    fn start_disk(&self, request: DiskRequest, token: u64) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let client: Weak<dyn DiskClient> = self.this.clone();
        self.disk.submit(request, token, client);
    }

    /// Tells the driver what became of a request that wrote `len` bytes besides the status.
    fn finish(&self, pending: &Pending, status: u8, len: u32) {
        if let Some(room) = pending.chain.writable.iter().rev().find(|r| r.len > 0) {
            self.queues.dma().write(room.gpa.wrapping_add(room.len - 1), &[status]);
        }
        self.queues.push(pending.queue, pending.chain.head, len.saturating_add(1));
    }
}

impl Entry {
    fn request(&self) -> DiskRequest {
        let (offset, len) = (self.sector * SECTOR, u64::from(self.sectors) * SECTOR);
        match self.zeroes {
            true => DiskRequest::WriteZeroes { offset, len, unmap: self.unmap },
            false => DiskRequest::Discard { offset, len },
        }
    }
}

/// Fills `first` from the start of `ranges`; what follows. `None`: they are shorter.
fn split(dma: &Arc<dyn Dma>, ranges: &[GuestRange], first: &mut [u8]) -> Option<Vec<GuestRange>> {
    let mut rest = Vec::new();
    let mut want = first;
    for range in ranges {
        let now = range.len.min(want.len() as u64);
        let (fill, later) = want.split_at_mut(now as usize);
        dma.read(range.gpa, fill);
        want = later;
        if now < range.len {
            rest.push(GuestRange { gpa: range.gpa.wrapping_add(now), len: range.len - now });
        }
    }
    want.is_empty().then_some(rest)
}

/// Room for data: all but the last byte, which lies in `last`.
fn without_last_byte(ranges: &[GuestRange], last: GuestRange) -> Vec<GuestRange> {
    let mut room: Vec<GuestRange> = ranges.iter().copied().filter(|r| r.len > 0).collect();
    room.pop();
    if last.len > 1 {
        room.push(GuestRange { gpa: last.gpa, len: last.len - 1 });
    }
    room
}

impl WorkTarget for VirtioBlk {
    fn work(&self, tag: u32) {
        if !self.serve_queue(tag as usize) {
            self.notify(tag as usize);
        }
    }
}

impl DiskClient for VirtioBlk {
    fn disk_resized(&self) {
        self.queues.config_changed();
    }

    fn disk_done(&self, done: DiskDone) {
        let pending = locked(&self.state).pending.remove(&done.token);
        // What a reset forgot ends here.
        if let Some(mut pending) = pending {
            match done.result {
                Err(_) => self.finish(&pending, IO_ERROR, 0),
                Ok(()) => match pending.entries.pop() {
                    Some(entry) => self.submit(pending, entry.request()),
                    None if std::mem::take(&mut pending.flush) => self.submit(pending, DiskRequest::Flush),
                    None => self.finish(&pending, OK, pending.read),
                },
            }
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for VirtioBlk {
    fn name(&self) -> &'static str {
        "virtio-blk-pci"
    }

    fn device_type(&self) -> u16 {
        2
    }

    fn pci_class(&self) -> u32 {
        0x01_0000
    }

    fn features(&self) -> u64 {
        use feature::{BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, MQ, RO, SEG_MAX, WRITE_ZEROES};
        let several = if self.queues.count() > 1 { MQ } else { 0 };
        let changes = if self.disk.read_only() { RO } else { DISCARD | WRITE_ZEROES };
        SEG_MAX | BLK_SIZE | FLUSH | CONFIG_WCE | several | changes
    }

    fn config(&self) -> Vec<u8> {
        let mut out = vec![0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| out.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        put(0, &(self.disk.len() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(WRITEBACK, &[locked(&self.state).writeback.into()]);
        put(34, &(self.queues.count() as u16).to_le_bytes());
        for (at, value) in [(36, MAX_DISCARD), (40, MAX_ENTRIES), (44, 1), (48, MAX_DISCARD), (52, MAX_ENTRIES)] {
            put(at, &value.to_le_bytes());
        }
        put(56, &[1]);
        out
    }

    fn config_write(&self, offset: usize, bytes: &[u8]) {
        let value = WRITEBACK.checked_sub(offset).and_then(|at| bytes.get(at));
        let mut state = locked(&self.state);
        if let Some(value) = value
            && state.features & feature::CONFIG_WCE != 0
        {
            state.writeback = value & 1 != 0;
        }
    }

    fn start(&self, features: u64) {
        let mut state = locked(&self.state);
        (state.features, state.started) = (features, true);
        // A driver that cannot flush gets no cache (5.2.6.2, legacy drivers).
        if features & feature::FLUSH == 0 {
            state.writeback = false;
        }
    }

    fn notify(&self, index: usize) {
        if let Some(doorbell) = self.doorbells.get(index) {
            doorbell.ring();
        }
    }

    fn reset(&self) {
        let writeback = self.disk.write_cache();
        let mut state = locked(&self.state);
        // Numbers go on: what is under way must not be taken for something new.
        *state = State { next: state.next, writeback, ..State::default() };
    }

    fn busy(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) != 0
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.state))
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let mut new: State = from_state(self.name(), state)?;
        let limit = self.disk.len() / SECTOR;
        let sound = |p: &Pending| {
            let entries = p.entries.iter().all(|e| e.sector <= limit && u64::from(e.sectors) <= limit);
            p.queue < self.queues.count() && entries
        };
        if !new.pending.values().all(sound) {
            let reason = "a request is not one of this device".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        if check {
            return Ok(());
        }
        // Requests that were under way begin anew.
        let again = std::mem::take(&mut new.pending);
        *locked(&self.state) = new;
        again.into_values().for_each(|p| self.take(p.queue, p.chain));
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        out.field("sectors", self.disk.len() / SECTOR);
        out.field("queues", self.queues.count());
        out.field("write_cache", state.writeback);
        out.field("requests", state.pending.len());
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
pub(crate) mod tests;
