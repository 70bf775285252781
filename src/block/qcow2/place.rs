//! Requests that are one read or write of the host file: found without waiting for anything.

use super::layout::Mapping;
use super::meta::Meta;
use super::{InFlight, Qcow2};
use crate::block::Transfer;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

impl Qcow2 {
    /// The metadata, if nobody has it and the L2 table of this range is in memory.
    fn meta_at_hand(&self, offset: u64) -> Option<MutexGuard<'_, Meta>> {
        let mut meta = self.meta.try_lock().ok()?;
        if meta.missing(offset).is_some() { None } else { Some(meta) }
    }

    /// Where a range is read from.
    pub(super) fn read_place(&self, offset: u64, len: u64) -> Option<Transfer> {
        let pass = self.running.try_enter()?;
        let run = self.meta_at_hand(offset)?.run(offset, len).ok().filter(|run| run.len == len)?;
        let mut transfer = match run.mapping {
            Mapping::Data { host, .. } => self.data.clone().transfer(false, host + self.layout.within(offset), len)?,
            Mapping::Unallocated { .. } => self.backing()?.backend().transfer(false, offset, len)?,
            _ => return None,
        };
        transfer.passes.push(pass);
        Some(transfer)
    }

    /// Where a range is written, if that changes no table.
    pub(super) fn write_place(&self, offset: u64, len: u64) -> Option<Transfer> {
        if self.read_only || !self.changed.load(Ordering::Acquire) {
            return None;
        }
        let pass = self.running.try_enter()?;
        let mut meta = self.meta_at_hand(offset)?;
        let wanted = InFlight { start: self.layout.floor(offset), end: offset + len };
        let busy = meta.in_flight.iter().any(|f| f.start < wanted.end && wanted.start < f.end);
        if busy || meta.many_waiting() {
            return None;
        }
        let run = meta.run(offset, len).ok().filter(|run| run.len == len)?;
        let host = run.mapping.writable()? + self.layout.within(offset);
        // Damage is for the slow way to tell of.
        if !self.layout.data_file && meta.overlap(host, len).is_some() {
            return None;
        }
        drop(meta);
        self.note(offset, len);
        let mut transfer = self.data.clone().transfer(true, host, len)?;
        transfer.passes.push(pass);
        Some(transfer)
    }
}
