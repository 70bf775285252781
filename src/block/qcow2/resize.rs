//! Growing and shrinking.

use super::Qcow2;
use super::layout::{Entry, OFFSET};
use super::meta::{FlatTable, Meta};
use crate::block::{BlockBackend, BlockError, Preallocation, Result};
use std::sync::atomic::Ordering;

/// Bytes of zeroes written at once for `preallocation=full`.
const CHUNK: usize = 1 << 20;

impl Meta {
    /// Gives the image an L1 table of exactly these entries, and with it a size, in one step.
    pub(super) fn switch_l1(&mut self, entries: Vec<u64>, size: u64) -> Result<()> {
        self.settle()?;
        let clusters = self.layout.clusters(entries.len() as u64 * 8);
        let host = if clusters == 0 { 0 } else { self.allocate_exactly(clusters)? };
        self.write_blocks()?;
        let mut table = FlatTable::new(entries);
        // Whole clusters: nothing stale behind the last entry.
        let mut bytes = table.bytes(0..table.entries.len());
        bytes.resize((clusters << self.layout.cluster_bits) as usize, 0);
        self.file.write(host, &bytes)?;
        self.file.flush()?;
        let (old, old_len) = (self.header.l1_offset, self.l1.entries.len() as u64 * 8);
        let before = self.header.clone();
        (self.header.l1_offset, self.header.l1_size, self.header.size) = (host, table.entries.len() as u32, size);
        if let Err(e) = self.write_header() {
            self.header = before;
            return Err(e);
        }
        std::mem::swap(&mut self.l1, &mut table);
        self.index_tables();
        self.file.flush()?;
        if old_len > 0 {
            self.release(old, old_len);
        }
        Ok(())
    }

    /// Cuts off all clusters from `guest` on, a cluster's beginning.
    pub(super) fn cut(&mut self, guest: u64) -> Result<()> {
        let layout = self.layout;
        let mut at = guest;
        while !at.is_multiple_of(layout.per_l1()) {
            if self.entry(at)? != Entry::EMPTY {
                self.replace_entry(at, Entry::EMPTY)?;
            }
            at += layout.cluster();
        }
        for index in layout.l1_index(at)..self.l1.entries.len() {
            let table = self.l1.get(index) & OFFSET;
            if table == 0 {
                continue;
            }
            let entries = self.l2_entries(table)?;
            self.l1.set(index, 0);
            for entry in entries {
                self.release_entry(entry, Entry::EMPTY)?;
            }
            self.release(table, layout.cluster());
            self.relieve()?;
        }
        self.settle()
    }
}

impl Qcow2 {
    /// [`BlockBackend::resize`] for an image that may be written.
    pub(super) fn resize_to(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        let old = self.len();
        let name = self.file.name();
        let version_2_snapshots = self.layout.version < 3 && !self.meta().snapshots.is_empty();
        if version_2_snapshots && len != old {
            let what = format!("{name}: version 2 images with snapshots keep their size; delete the snapshots first");
            return Err(BlockError::Invalid { what });
        }
        let entries = len.div_ceil(self.layout.per_l1());
        if entries * 8 > super::header::MAX_L1_BYTES || len > i64::MAX as u64 {
            let most = super::header::MAX_L1_BYTES / 8 * self.layout.per_l1();
            let what = format!("{name}: {len} bytes are too much with clusters of this size; at most {most}");
            return Err(BlockError::Invalid { what });
        }
        self.bitmaps_before_resize()?;
        if len < old {
            // Whoever grows the image again, QEMU too, takes the rest of the last cluster for zero.
            let rest = (self.layout.clusters(len) << self.layout.cluster_bits).min(old) - len;
            self.zero_bytes(len, rest)?;
        }
        {
            let _alone = self.alone();
            let mut meta = self.meta();
            if len > old {
                // A machine's state may stand behind the disk: it must not become disk.
                meta.cut(self.layout.clusters(old) << self.layout.cluster_bits)?;
            }
            if entries > meta.l1.entries.len() as u64 {
                let mut grown = meta.l1.entries.clone();
                grown.resize(entries as usize, 0);
                meta.switch_l1(grown, len)?;
            } else {
                meta.header.size = len;
                meta.write_header()?;
                self.file.flush()?;
            }
            self.resize_data(len)?;
            self.size.store(len, Ordering::Release);
            self.bitmaps_after_resize();
            if len < old {
                meta.cut(self.layout.clusters(len) << self.layout.cluster_bits)?;
            }
        }
        if len > old {
            // Old data may stand behind the old end in its cluster, and in a longer backing file.
            let below = self.below_len();
            let stale = below.max(self.layout.clusters(old) << self.layout.cluster_bits).min(len);
            if stale > old {
                self.zero_range(old, stale - old, false)?;
            }
            if preallocation != Preallocation::Off {
                self.preallocate(old, len, preallocation)?;
            }
        }
        self.flush()
    }

    /// Allocates every cluster of a range behind the end of the file, where all is zero.
    fn preallocate(&self, from: u64, to: u64, preallocation: Preallocation) -> Result<()> {
        let _alone = self.alone();
        let layout = self.layout;
        let mut meta = self.meta();
        if layout.data_file {
            return self.preallocate_data(&mut meta, from, to, preallocation);
        }
        let mut guest = layout.clusters(from) << layout.cluster_bits;
        let mut behind = layout.clusters(self.file.len());
        while guest < to {
            meta.own_l2(guest)?;
            behind = behind.max(layout.clusters(self.file.len()));
            let until = (guest + layout.per_l1() - guest % layout.per_l1()).min(to);
            // Blocks of counts stand at the beginning of their range: pieces go around them.
            let room = layout.block_entries() - 1;
            let count = layout.clusters(until - guest).min(room);
            let host = meta.allocate_from(behind, count)?;
            behind = (host >> layout.cluster_bits) + count;
            let bytes = count << layout.cluster_bits;
            match preallocation {
                Preallocation::Falloc => self.file.allocate(host, bytes)?,
                Preallocation::Full => self.write_zero_data(host, bytes)?,
                Preallocation::Metadata | Preallocation::Off => self.file.set_len(self.file.len().max(host + bytes))?,
            }
            for i in 0..count {
                let step = i << layout.cluster_bits;
                let fresh = meta.entry(guest + step)? == Entry::EMPTY;
                if fresh {
                    // Version 3 says zero, whatever a host device held there before.
                    let entry = match layout.version {
                        3.. => layout.zero_entry(Some(host + step)),
                        _ => layout.own(host + step),
                    };
                    meta.set_entry(guest + step, entry)?;
                } else {
                    meta.undo(host + step, 1)?;
                }
            }
            guest += bytes;
        }
        meta.settle()
    }

    pub(super) fn write_zero_data(&self, host: u64, len: u64) -> Result<()> {
        let zeroes = vec![0; CHUNK];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(CHUNK as u64);
            self.data.write(host + done, &zeroes[..step as usize])?;
            done += step;
        }
        Ok(())
    }
}
