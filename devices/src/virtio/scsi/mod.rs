//! SCSI host (section 5.6): up to 256 targets with logical units, a control queue, an event queue and request queues.

mod command;
mod control;
#[cfg(test)]
mod tests;

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::scsi::drive::{Drive, Units};
use crate::scsi::steps::{self, Next, Step};
use crate::scsi::{Unit, UnitState};
use crate::services::{Disk, DiskClient, DiskDone, DiskRequest, Dma, Doorbell, MediumDrive, WorkService, WorkTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use control::Management;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Pieces of a request besides header and answer.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Requests taken from a queue before others on the I/O thread have their turn.
const REQUESTS_AT_ONCE: usize = 2 * QUEUE_SIZE as usize;
/// The first two queues.
const CONTROL_QUEUE: usize = 0;
const EVENT_QUEUE: usize = 1;
const REQUEST_QUEUES: usize = 2;
/// Most request queues: each queue has a bit.
pub const MAX_QUEUES: u16 = 62;
/// Sectors of one request, requests of one unit, and the highest numbers of targets and units, as the driver is told.
const MAX_SECTORS: u32 = crate::scsi::identity::MAX_TRANSFER;
const REQUESTS_OF_UNIT: u32 = 128;
const MAX_TARGET: u16 = 255;
/// The highest number of a unit.
pub const MAX_LUN: u16 = 16383;
/// Bytes of an event.
const EVENT: u32 = 16;
/// Lengths that the driver may change within these bounds, and what they are first.
const SENSE_SIZE: u32 = 96;
const CDB_SIZE: u32 = 32;
const SIZE_LIMIT: u32 = 255;
/// Where these are in the configuration space, and its length.
const SENSE_AT: usize = 20;
const CDB_AT: usize = 24;
const CONFIG: usize = 36;

/// Feature bits (5.6.3).
mod feature {
    pub const HOTPLUG: u64 = 1 << 1;
    pub const CHANGE: u64 = 1 << 2;
}

/// Where a unit is: target and logical unit number.
pub type Place = (u8, u16);

/// A command under way.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    queue: usize,
    chain: Chain,
    /// What is still to be done; restored commands begin anew.
    #[serde(skip)]
    job: Job,
}

/// What a command still needs.
#[derive(Clone, Default)]
struct Job {
    place: Place,
    tag: u64,
    disk: Option<Arc<dyn Disk>>,
    steps: VecDeque<Step>,
    /// Bytes that the driver has got or given at the end.
    moved: u64,
    /// Bytes that the driver has room for, or has given.
    offered: u64,
    /// The answer that a management function chose for it.
    aborted: Option<u8>,
}

#[derive(Default)]
struct State {
    features: u64,
    /// Lengths of commands and of senses.
    cdb_size: u32,
    sense_size: u32,
    units: BTreeMap<Place, Unit>,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    management: Vec<Management>,
    /// Events that found no room.
    missed: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    features: u64,
    cdb_size: u32,
    sense_size: u32,
    units: Vec<(Place, UnitState)>,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    management: Vec<Management>,
    missed: bool,
}

/// The device.
///
/// Locks: `state` is a leaf but for what disks say of themselves; queues, disk requests and guest memory are used
/// without it. Requests are taken by one thread at a time, the one that posted work runs on.
pub struct VirtioScsi {
    queues: Arc<Queues>,
    doorbell: Box<dyn Doorbell>,
    this: Weak<VirtioScsi>,
    /// Queues to be looked at, by bit.
    kicked: AtomicU64,
    state: Mutex<State>,
    /// Requests with disks, of this life and of those before a reset.
    under_way: AtomicU64,
}

impl VirtioScsi {
    /// A host with `queues` request queues (1 to 62). Its work is done by `work`.
    pub fn new(queues: u16, dma: Arc<dyn Dma>, work: &dyn WorkService) -> Arc<Self> {
        let count = usize::from(queues.clamp(1, MAX_QUEUES)) + REQUEST_QUEUES;
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            queues: Queues::new(dma, count, QUEUE_SIZE),
            doorbell: work.doorbell(this.clone(), 0),
            this: this.clone(),
            kicked: AtomicU64::new(0),
            state: Mutex::new(State { cdb_size: CDB_SIZE, sense_size: SENSE_SIZE, ..State::default() }),
            under_way: AtomicU64::new(0),
        })
    }

    /// For a transport.
    pub fn parts(self: &Arc<Self>) -> Parts {
        Parts { device: self.clone(), queues: self.queues.clone() }
    }

    /// Adds a unit; the driver is told. `false`: there is one at this place.
    pub fn plug(&self, place: Place, unit: Unit) -> bool {
        {
            let mut state = locked(&self.state);
            if place.1 > MAX_LUN || state.units.contains_key(&place) {
                return false;
            }
            state.units.insert(place, unit);
        }
        self.report(control::Event::Added(place));
        true
    }

    /// Takes a unit away; the driver is told. `false`: there is none.
    pub fn unplug(&self, place: Place) -> bool {
        let found = locked(&self.state).units.remove(&place).is_some();
        if found {
            self.report(control::Event::Removed(place));
        }
        found
    }

    /// Looks at or changes the unit at `place`, if there is one.
    pub fn with_unit<R>(&self, place: Place, f: impl FnOnce(&mut Unit) -> R) -> Option<R> {
        locked(&self.state).units.get_mut(&place).map(f)
    }

    /// The CD drive at `place`, for the user.
    pub fn medium_drive(self: &Arc<Self>, place: Place) -> Arc<dyn MediumDrive> {
        Arc::new(Drive { host: self.clone(), place })
    }

    /// Looks at all queues that were notified.
    fn serve(&self) {
        let kicked = self.kicked.swap(0, Ordering::SeqCst);
        for index in (0..self.queues.count()).filter(|index| kicked >> index & 1 != 0) {
            if index == EVENT_QUEUE {
                self.room_for_events();
            } else if !self.serve_queue(index) {
                self.notify(index);
            }
        }
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
                Some(chain) if index == CONTROL_QUEUE => self.manage(chain),
                Some(chain) => self.take(index, chain),
                None => return true,
            }
        }
        false
    }

    /// Has the next step of a command done, or ends it.
    fn go_on(&self, mut pending: Pending) {
        if let Some(response) = pending.job.aborted {
            return self.finish(&pending, command::Verdict::Response(response));
        }
        let (room, data) = self.data_of(&pending.chain);
        let next = match pending.job.steps.front_mut() {
            None => return self.finish(&pending, command::Verdict::Good),
            Some(step) => step.request(&room, &data),
        };
        let Some(disk) = pending.job.disk.clone() else {
            return self.finish(&pending, command::Verdict::Check(crate::scsi::Sense::NO_MEDIUM));
        };
        let token = {
            let mut state = locked(&self.state);
            let token = state.next;
            state.next = token.wrapping_add(1);
            state.pending.insert(token, pending);
            token
        };
        self.submit(&disk, next, token);
    }

    fn submit(&self, disk: &Arc<dyn Disk>, request: DiskRequest, token: u64) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let client: Weak<dyn DiskClient> = self.this.clone();
        disk.submit(request, token, client);
    }

    /// A disk has done its part.
    fn done(&self, mut pending: Pending, done: DiskDone) {
        let data = self.data_of(&pending.chain).1;
        let Some(step) = pending.job.steps.front_mut() else { return };
        match step.done(done, &data, &**self.queues.dma()) {
            Next::Again => {}
            Next::Over => drop(pending.job.steps.pop_front()),
            Next::Failed(sense) => {
                let verdict = match pending.job.aborted {
                    Some(response) => command::Verdict::Response(response),
                    None => command::Verdict::Check(sense),
                };
                self.with_unit(pending.job.place, |unit| unit.told());
                return self.finish(&pending, verdict);
            }
        }
        self.go_on(pending);
    }
}

impl Units<Place> for VirtioScsi {
    fn reach(&self, place: Place, f: &mut dyn FnMut(&mut Unit)) {
        self.with_unit(place, f);
    }
}

impl WorkTarget for VirtioScsi {
    fn work(&self, _tag: u32) {
        self.serve();
    }
}

impl DiskClient for VirtioScsi {
    fn disk_done(&self, done: DiskDone) {
        let token = done.token;
        let pending = locked(&self.state).pending.remove(&token);
        // What a reset forgot ends here.
        if let Some(pending) = pending {
            self.done(pending, done);
            self.over(token);
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for VirtioScsi {
    fn name(&self) -> &'static str {
        "virtio-scsi-pci"
    }

    fn device_type(&self) -> u16 {
        8
    }

    fn pci_class(&self) -> u32 {
        0x01_0000
    }

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn config(&self) -> Vec<u8> {
        let state = locked(&self.state);
        let queues = (self.queues.count() - REQUEST_QUEUES) as u32;
        let words =
            [queues, SEGMENTS, MAX_SECTORS, REQUESTS_OF_UNIT, EVENT, state.sense_size, state.cdb_size].into_iter();
        let mut out: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        // No channels but one.
        out.extend([0, 0]);
        out.extend(MAX_TARGET.to_le_bytes());
        out.extend(u32::from(MAX_LUN).to_le_bytes());
        debug_assert_eq!(out.len(), CONFIG);
        out
    }

    fn config_write(&self, offset: usize, bytes: &[u8]) {
        let mut state = locked(&self.state);
        let change = |at: usize, old: u32| {
            let mut word = old.to_le_bytes();
            // Legacy drivers write byte by byte.
            for (at, byte) in (at..at + 4).zip(&mut word) {
                *byte = at.checked_sub(offset).and_then(|i| bytes.get(i)).copied().unwrap_or(*byte);
            }
            Some(u32::from_le_bytes(word)).filter(|new| *new <= SIZE_LIMIT)
        };
        state.sense_size = change(SENSE_AT, state.sense_size).unwrap_or(state.sense_size);
        state.cdb_size = change(CDB_AT, state.cdb_size).filter(|new| *new > 0).unwrap_or(state.cdb_size);
    }

    fn start(&self, features: u64) {
        locked(&self.state).features = features;
    }

    fn notify(&self, index: usize) {
        self.kicked.fetch_or(1u64.checked_shl(index as u32).unwrap_or(0), Ordering::SeqCst);
        self.doorbell.ring();
    }

    fn reset(&self) {
        self.kicked.store(0, Ordering::SeqCst);
        let mut state = locked(&self.state);
        // Numbers go on: what is under way must not be taken for something new.
        let (units, next) = (std::mem::take(&mut state.units), state.next);
        *state = State { units, next, cdb_size: CDB_SIZE, sense_size: SENSE_SIZE, ..State::default() };
        state.units.values_mut().for_each(Unit::reset);
    }

    fn busy(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) != 0
    }

    fn save(&self) -> StateValue {
        let state = locked(&self.state);
        let State { features, cdb_size, sense_size, units, next, pending, management, missed } = &*state;
        to_state(&Saved {
            features: *features,
            cdb_size: *cdb_size,
            sense_size: *sense_size,
            units: units.iter().map(|(place, unit)| (*place, unit.save())).collect(),
            next: *next,
            pending: pending.clone(),
            management: management.clone(),
            missed: *missed,
        })
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let new: Saved = from_state(self.name(), state)?;
        let malformed = |reason: &str| StateError::Malformed { device: self.name(), reason: reason.into() };
        {
            let live = locked(&self.state);
            let same = |((a, unit), (b, state)): ((&Place, &Unit), &(Place, UnitState))| a == b && unit.fits(state);
            if live.units.len() != new.units.len() || !live.units.iter().zip(&new.units).all(same) {
                return Err(malformed("the units are not those of this host"));
            }
        }
        let sound = |p: &Pending| (REQUEST_QUEUES..self.queues.count()).contains(&p.queue);
        if !new.pending.values().all(sound) || new.cdb_size > SIZE_LIMIT || new.sense_size > SIZE_LIMIT {
            return Err(malformed("a request is not one of this host"));
        }
        if check {
            return Ok(());
        }
        {
            let mut live = locked(&self.state);
            (live.features, live.cdb_size, live.sense_size) = (new.features, new.cdb_size, new.sense_size);
            (live.next, live.missed) = (new.next, new.missed);
            live.pending.clear();
            live.management.clear();
            live.units.values_mut().zip(new.units).for_each(|(unit, (_, state))| unit.restore(state));
        }
        // What was under way begins anew.
        new.pending.into_values().for_each(|p| self.take(p.queue, p.chain));
        new.management.into_iter().for_each(|m| self.manage(m.chain));
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        out.field("queues", self.queues.count() - REQUEST_QUEUES);
        out.field("requests", state.pending.len());
        for ((target, lun), unit) in &state.units {
            let kind = if unit.identity().cd { "scsi-cd" } else { "scsi-hd" };
            out.group(&format!("{kind} scsi-id={target} lun={lun}"), |out| unit.inspect(out));
        }
    }
}
