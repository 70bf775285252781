//! Writing: in place where the cluster is ours alone, else into a new one, and the tables follow.

use super::compress::own;
use super::layout::Mapping;
use super::meta::Meta;
use super::{InFlight, Qcow2};
use crate::block::{BlockBackend, Result, slices};
use std::io::{IoSlice, IoSliceMut};
use std::sync::{MutexGuard, PoisonError};

/// A place for the clusters of one guest range.
pub(super) struct Place {
    pub(super) flight: InFlight,
    host: u64,
    /// Whether the clusters were allocated just now.
    new: bool,
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

    /// Writes, with the caller holding `quiet` for reading.
    pub(super) fn write_quiet(&self, offset: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            done += match self.plan(at, len - done)? {
                Plan::InPlace(host, step) => {
                    self.file.writev(host, &slices(bufs, done, step))?;
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
        self.plan_if(at, left, |mapping| mapping == Mapping::Unallocated)
    }

    fn plan_if(&self, at: u64, left: u64, fill: impl Fn(Mapping) -> bool) -> Result<Plan> {
        let start = self.layout.floor(at);
        let within = at - start;
        let mut wanted = InFlight { start, end: start + self.layout.cluster() };
        loop {
            let mut meta = self.await_flight(wanted);
            let run = meta.run(at, left)?;
            if !fill(run.mapping) {
                let host = run.mapping.writable().unwrap_or(0);
                if host != 0 {
                    meta.guard(host + within, run.len)?;
                }
                return Ok(Plan::InPlace(host + within, run.len));
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
        let (host, count, new) = match mapping {
            Mapping::Zero { host: Some(host), copied: true } => {
                meta.guard(host, clusters << self.layout.cluster_bits)?;
                (host, clusters, false)
            }
            _ => {
                let (host, count) = meta.allocate(clusters)?;
                (host, count, true)
            }
        };
        flight.end = flight.start + (count << self.layout.cluster_bits);
        meta.in_flight.push(flight);
        Ok(Place { flight, host, new })
    }

    /// Writes whole clusters, what the guest does not write taken from what was there, and then
    /// makes the L2 table name them.
    pub(super) fn fill_and_link(&self, place: &Place, at: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let flight = place.flight;
        let filled = self.fill(place, at, bufs, len);
        let mut meta = self.meta();
        let clusters = (flight.end - flight.start) >> self.layout.cluster_bits;
        let mut linked = 0;
        let result = filled.and_then(|()| {
            while linked < clusters {
                let step = linked << self.layout.cluster_bits;
                meta.replace_entry(flight.start + step, own(place.host + step))?;
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

    fn fill(&self, place: &Place, at: u64, bufs: &[IoSlice<'_>], len: u64) -> Result<()> {
        let flight = place.flight;
        let mut head = vec![0; (at - flight.start) as usize];
        let mut tail = vec![0; (flight.end - at - len) as usize];
        if !head.is_empty() {
            self.read_quiet(flight.start, &mut [IoSliceMut::new(&mut head)])?;
        }
        // Behind the end of the disk stays zero: it may grow, and must not show old data then.
        let there = self.len().saturating_sub(at + len).min(tail.len() as u64);
        if there > 0 {
            self.read_quiet(at + len, &mut [IoSliceMut::new(&mut tail[..there as usize])])?;
        }
        let mut parts = Vec::with_capacity(bufs.len() + 2);
        parts.push(IoSlice::new(&head));
        parts.extend(bufs.iter().map(|b| IoSlice::new(b)));
        parts.push(IoSlice::new(&tail));
        parts.retain(|p| !p.is_empty());
        self.file.writev(place.host, &parts)
    }
}
