//! Writing: in place where the cluster is ours alone, else into a new one, and the tables follow.

use super::layout::Mapping;
use super::meta::Meta;
use super::{InFlight, Qcow2};
use crate::block::{BlockBackend, BlockError, Result, slices, total};
use std::io::{IoSlice, IoSliceMut};
use std::sync::{MutexGuard, PoisonError};

/// A place for the clusters of one guest range.
pub(super) struct Place {
    pub(super) flight: InFlight,
    host: u64,
    /// Whether the clusters were allocated just now.
    new: bool,
    /// They read as zeroes as they are.
    fresh: bool,
    /// They replace others with data, so that all of it is copied.
    whole: bool,
}

/// What a part of a write does next.
pub(super) enum Plan {
    /// Overwrite in place: host offset and bytes.
    InPlace(u64, u64),
    /// Fill these clusters and link them.
    Fill(Place),
}

impl Qcow2 {
    /// The metadata, when nobody allocates clusters in this guest range any more.
    pub(super) fn await_flight(&self, flight: InFlight) -> MutexGuard<'_, Meta> {
        let busy = |meta: &mut Meta| meta.in_flight.iter().any(|f| f.start < flight.end && flight.start < f.end);
        self.landed.wait_while(self.meta(), busy).unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends an allocation and wakes those who wait for it.
    pub(super) fn land(&self, mut meta: MutexGuard<'_, Meta>, flight: InFlight) {
        if let Some(index) = meta.in_flight.iter().position(|f| *f == flight) {
            meta.in_flight.swap_remove(index);
        }
        drop(meta);
        self.landed.notify_all();
    }

    /// Writes, with the caller holding a pass.
    pub(super) fn write_running(&self, offset: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            done += match self.plan(at, len - done)? {
                Plan::InPlace(host, step) => {
                    self.data.writev(host, &slices(bufs, done, step))?;
                    step
                }
                Plan::Fill(place) => {
                    let step = (place.flight.end - at).min(len - done);
                    self.fill_and_link(&place, at, &slices(bufs, done, step), step)?;
                    step
                }
            };
        }
        Ok(())
    }

    /// Finds where the beginning of a write goes, and allocates.
    fn plan(&self, at: u64, left: u64) -> Result<Plan> {
        self.plan_if(at, left, |mapping| mapping.writable().is_none())
    }

    /// Allocates for a copy of the backing file's clusters; where there are none it says how much.
    pub(super) fn plan_copy(&self, at: u64, left: u64) -> Result<Plan> {
        self.plan_if(at, left, |mapping| matches!(mapping, Mapping::Unallocated { .. }))
    }

    fn plan_if(&self, at: u64, left: u64, fill: impl Fn(Mapping) -> bool) -> Result<Plan> {
        let start = self.layout.floor(at);
        let within = at - start;
        let mut wanted = InFlight { start, end: start + self.layout.cluster() };
        let mut fetched = false;
        loop {
            let mut meta = self.await_flight(wanted);
            if let Some(missing) = meta.missing(at).filter(|_| !fetched) {
                drop(meta);
                self.fetch(at, missing)?;
                fetched = true;
                continue;
            }
            let run = meta.run(at, left)?;
            if !fill(run.mapping) {
                let host = run.mapping.writable();
                if let Some(host) = host.filter(|_| !self.layout.data_file) {
                    meta.guard(host + within, run.len)?;
                }
                return Ok(Plan::InPlace(host.unwrap_or(0) + within, run.len));
            }
            let clusters = self.layout.clusters(within + run.len);
            let flight = InFlight { start, end: start + (clusters << self.layout.cluster_bits) };
            if flight.end > wanted.end && meta.in_flight.iter().any(|f| f.start < flight.end && start < f.end) {
                // Somebody is busy further on: wait, and look again at what is there then.
                wanted = flight;
                continue;
            }
            return self.reserve(&mut meta, flight, run.mapping).map(Plan::Fill);
        }
    }

    fn reserve(&self, meta: &mut Meta, mut flight: InFlight, mapping: Mapping) -> Result<Place> {
        meta.own_l2(flight.start)?;
        let clusters = (flight.end - flight.start) >> self.layout.cluster_bits;
        let kept = match mapping {
            Mapping::Zero { host, copied: true } | Mapping::Unallocated { host, copied: true } => host,
            // Data files hold each cluster at its own offset.
            _ if self.layout.data_file => Some(flight.start),
            _ => None,
        };
        let whole = !matches!(mapping, Mapping::Zero { host: None, .. } | Mapping::Unallocated { host: None, .. })
            && kept.is_none();
        let place = match kept {
            Some(host) => {
                if !self.layout.data_file {
                    meta.guard(host, clusters << self.layout.cluster_bits)?;
                }
                Place { flight, host, new: false, fresh: false, whole }
            }
            None => {
                let space = meta.allocate(clusters)?;
                flight.end = flight.start + (space.count << self.layout.cluster_bits);
                Place { flight, host: space.host, new: true, fresh: space.fresh, whole }
            }
        };
        meta.in_flight.push(place.flight);
        Ok(place)
    }

    /// What of a place is filled for a write: whole subclusters, or all if all is copied.
    fn filled(&self, place: &Place, at: u64, len: u64) -> (u64, u64) {
        let grain = self.layout.grain();
        match place.whole {
            true => (place.flight.start, place.flight.end),
            false => (at - at % grain, (at + len).next_multiple_of(grain)),
        }
    }

    /// Fills a place, what the guest does not write taken from what was there, and then makes the
    /// L2 table name it. Without `bufs` all is taken from there.
    pub(super) fn fill_and_link(&self, place: &Place, at: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let flight = place.flight;
        let (start, end) = self.filled(place, at, len);
        let filled = self.fill(place, (start, end), at, bufs);
        let mut meta = self.meta();
        let clusters = (flight.end - flight.start) >> self.layout.cluster_bits;
        let mut linked = 0;
        let result = filled.and_then(|()| {
            while linked < clusters {
                let step = linked << self.layout.cluster_bits;
                let guest = flight.start + step;
                let entry = match place.whole || !self.layout.extended {
                    true => self.layout.own(place.host + step),
                    false => {
                        let touched = self.layout.touched(start.saturating_sub(guest), end.saturating_sub(guest));
                        meta.entry(guest)?.filled(self.layout.own(place.host + step).word, touched)
                    }
                };
                meta.replace_entry(guest, entry)?;
                linked += 1;
            }
            Ok(())
        });
        if result.is_err() && place.new {
            meta.undo(place.host + (linked << self.layout.cluster_bits), clusters - linked)?;
        }
        self.land(meta, flight);
        result
    }

    fn fill(&self, place: &Place, (start, end): (u64, u64), at: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let len = total(bufs);
        // A data file is no longer than the disk.
        let end = if self.layout.data_file { end.min(self.len()).max(at + len) } else { end };
        let head = self.around(place, start, at)?;
        let tail = self.around(place, at + len, end)?;
        let mut parts = Vec::with_capacity(bufs.len() + 2);
        parts.push(IoSlice::new(&head));
        parts.extend(bufs.iter().map(|b| IoSlice::new(b)));
        parts.push(IoSlice::new(&tail));
        parts.retain(|p| !p.is_empty());
        if place.fresh && total(&parts) < place.flight.end - place.flight.start {
            // Reserved whole, so that later writes into the cluster find their space and lie near.
            match self.data.allocate(place.host, place.flight.end - place.flight.start) {
                Ok(()) | Err(BlockError::Unsupported { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        // Without a head the file has its zeroes there.
        let first = at - head.len() as u64;
        self.data.writev(place.host + (first - place.flight.start), &parts)
    }

    /// What was in a part of a cluster that the guest does not write; empty if the new cluster has
    /// it already.
    fn around(&self, place: &Place, from: u64, to: u64) -> Result<Vec<u8>> {
        // Behind the end of the disk stays zero: it may grow, and must not show old data then.
        let there = self.len().saturating_sub(from).min(to - from);
        if from == to || (place.fresh && self.known_zero(from, there)?) {
            return Ok(Vec::new());
        }
        let mut part = vec![0; (to - from) as usize];
        if there > 0 {
            self.read_running(from, &mut [IoSliceMut::new(&mut part[..there as usize])])?;
        }
        Ok(part)
    }
}
