//! Zero clusters and discard.

use super::layout::{Entry, Mapping};
use super::meta::Meta;
use super::{InFlight, Qcow2};
use crate::block::{BlockBackend, Result};
use std::io::IoSlice;
use std::sync::MutexGuard;

/// Zeroes written at once where an image cannot say "zero".
const CHUNK: u64 = 1 << 20;
/// Bytes of a range for which allocations are waited for at once.
const SPAN: u64 = 64 << 20;

/// What becomes of one cluster.
enum Change {
    /// Nothing.
    Keep,
    /// Its entry becomes this.
    Entry(Entry),
    /// Zeroes must be written.
    Write,
}

impl Qcow2 {
    /// Where the backing file ends; 0 without one. Behind it unallocated clusters are zero.
    pub(super) fn below_len(&self) -> u64 {
        self.backing().map_or(0, |b| b.backend().len())
    }

    /// The whole pieces of `size` bytes in a range; the disk's end also ends one.
    fn whole(&self, offset: u64, end: u64, size: u64) -> (u64, u64) {
        let last = if end >= self.len() { end.next_multiple_of(size) } else { end - end % size };
        (offset.next_multiple_of(size), last)
    }

    /// [`BlockBackend::write_zeroes`] with the range checked.
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = offset + len;
        let (first, last) = self.whole(offset, end, self.layout.grain());
        if first >= last {
            return self.zero_bytes(offset, len);
        }
        self.zero_bytes(offset, first - offset)?;
        self.zero_bytes(last.min(end), end - last.min(end))?;
        if self.layout.version < 3 && first < self.below_len() {
            return self.zero_bytes(first, last.min(end) - first);
        }
        if self.data_is_raw {
            // The data file alone must read the same.
            self.data.zero(first, last.min(end) - first, unmap)?;
        }
        self.change_clusters(first, last, |meta, at, touched| self.zeroed(meta, at, touched, unmap))
    }

    /// Writes zeroes as data where they are not zero anyway.
    pub(super) fn zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.known_zero(offset, len)? {
            return Ok(());
        }
        let zeroes = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(CHUNK);
            let _pass = self.running.enter();
            self.write_running(offset + done, &[IoSlice::new(&zeroes[..step as usize])], step)?;
            done += step;
        }
        Ok(())
    }

    /// Changes the entries of all clusters in a range, as `change` says for each, given the range
    /// in the cluster that is meant. Allocations in the range end first: what they link afterwards
    /// would bring old content back.
    fn change_clusters(
        &self,
        first: u64,
        last: u64,
        change: impl Fn(&mut Meta, u64, (u64, u64)) -> Result<Change>,
    ) -> Result<()> {
        let cluster = self.layout.cluster();
        let mut guest = first;
        while guest < last {
            if self.meta().many_waiting() {
                self.flush_in_steps()?;
            }
            let span = last.min(guest.saturating_add(SPAN));
            let start = self.layout.floor(guest);
            let mut meta = self.await_flight(InFlight { start, end: span.next_multiple_of(cluster) });
            while guest < span && !meta.many_waiting() {
                let start = self.layout.floor(guest);
                let end = last.min(start + cluster);
                guest = match change(&mut meta, guest, (guest - start, end - start))? {
                    Change::Keep => self.behind_kept(&mut meta, guest, span)?,
                    Change::Entry(entry) => {
                        meta.replace_entry(guest, entry)?;
                        end
                    }
                    Change::Write => {
                        drop(meta);
                        self.zero_bytes(guest, end.min(self.len()) - guest)?;
                        guest = end;
                        break;
                    }
                };
            }
        }
        Ok(())
    }

    /// Where a run of clusters ends that stay as they are, or the cluster if it is shorter.
    fn behind_kept(&self, meta: &mut MutexGuard<'_, Meta>, guest: u64, span: u64) -> Result<u64> {
        let next = self.layout.floor(guest) + self.layout.cluster();
        let run = meta.run(guest, span - guest)?;
        Ok(next.max(self.layout.floor(guest + run.len)).min(span.max(next)))
    }

    /// What makes a part of a cluster zero.
    fn zeroed(&self, meta: &mut Meta, at: u64, (start, end): (u64, u64), unmap: bool) -> Result<Change> {
        let layout = self.layout;
        let old = meta.entry(at)?;
        if self.nothing_there(old, at)? {
            return Ok(Change::Keep);
        }
        let mapping = layout.mapping(old, layout.sub(at), self.file.name())?;
        let all = start == 0 && end == layout.cluster();
        if !all {
            // Part of a cluster: there are subclusters.
            return Ok(match mapping {
                Mapping::Compressed { .. } => Change::Write,
                _ => Change::Entry(old.zeroed(layout.touched(start, end))),
            });
        }
        let kept = match mapping {
            Mapping::Data { host, copied: true } | Mapping::Unallocated { host: Some(host), copied: true } => {
                Some(host)
            }
            Mapping::Zero { host, copied: true } => host,
            _ => None,
        };
        let entry = match layout.version {
            3.. => layout.zero_entry(kept.filter(|_| !unmap || self.data_is_raw)),
            _ => Entry::EMPTY,
        };
        Ok(if entry == old { Change::Keep } else { Change::Entry(entry) })
    }

    /// Whether an entry stores nothing, and nothing is below.
    fn nothing_there(&self, entry: Entry, at: u64) -> Result<bool> {
        Ok(entry == Entry::EMPTY && self.layout.floor(at) >= self.below_len())
    }

    /// [`BlockBackend::discard`] with the range checked.
    pub(super) fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        if self.data_is_raw {
            return self.zero_range(offset, len, true);
        }
        let (first, last) = self.whole(offset, offset + len, self.layout.cluster());
        if self.layout.data_file && first < last {
            self.data.punch(first, last.min(self.len()) - first)?;
        }
        self.change_clusters(first, last, |meta, at, _| {
            let old = meta.entry(at)?;
            let empty = self.layout.version < 3;
            // Version 2 has no zero clusters: the backing file's old data would come up.
            let kept = old == Entry::EMPTY || (empty && at < self.below_len());
            let entry = if empty { Entry::EMPTY } else { self.layout.zero_entry(None) };
            Ok(if kept || old == entry { Change::Keep } else { Change::Entry(entry) })
        })
    }
}
