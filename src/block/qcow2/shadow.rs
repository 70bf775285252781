//! Changes of snapshots in version 2, which has no dirty bit: counts and "copied" flags must fit to each other at
//! every moment. So all that changes is written elsewhere, and one write of the header puts it in force. In the same
//! way reference counts get another width.

use super::header::{Header, MAX_REFTABLE_BYTES};
use super::layout::{COPIED, Entry, Layout, OFFSET, Refers};
use super::meta::{FlatTable, Meta};
use super::refcount::set_entry;
use super::references::References;
use super::snapshot::{Snapshot, table_bytes};
use crate::block::{BlockError, Result};
use std::collections::HashSet;

/// What an image is to become.
pub(super) struct Target {
    /// Host offsets of the active L2 tables.
    pub(super) active: Vec<u64>,
    /// Size of the disk.
    pub(super) size: u64,
    pub(super) snapshots: Vec<Snapshot>,
    /// L2 tables of the last snapshot, whose L1 table is to be written.
    pub(super) kept: Option<Vec<u64>>,
}

/// The new state while it is written.
struct Shadow {
    references: References,
    /// The first cluster behind all that is written so far.
    next: u64,
}

impl Meta {
    /// Makes the image what `target` says, in one step. The caller keeps requests out.
    pub(super) fn become_at_once(&mut self, target: Target) -> Result<()> {
        self.settle()?;
        let cluster = self.layout.cluster();
        let mut shadow = Shadow { references: References::default(), next: self.layout.clusters(self.file.len()) };
        let done = self.write_shadow(target, &mut shadow);
        // Something was written there, in force or not.
        self.fresh_from = self.fresh_from.max(self.file.len().next_multiple_of(cluster));
        let freed = done?;
        for (host, len) in freed {
            self.file.punch(host, len)?;
        }
        Ok(())
    }

    /// Writes all new tables and then the header; gives what nothing names any more.
    fn write_shadow(&mut self, mut target: Target, shadow: &mut Shadow) -> Result<Vec<(u64, u64)>> {
        shadow.references.add(0);
        let kept = target.kept.take();
        let old = target.snapshots.len() - usize::from(kept.is_some());
        for snapshot in target.snapshots.iter().take(old) {
            let l1 = self.foreign_l1(snapshot.l1_offset, snapshot.l1_size)?;
            self.shadow_range(shadow, snapshot.l1_offset, u64::from(snapshot.l1_size) * 8);
            self.shadow_tree(shadow, &l1, true)?;
        }
        if let (Some(tables), Some(snapshot)) = (&kept, target.snapshots.last_mut()) {
            self.shadow_tree(shadow, tables, true)?;
            let bytes = FlatTable::new(tables.clone()).bytes(0..tables.len());
            snapshot.l1_offset = self.shadow_write(shadow, bytes)?;
        }
        self.shadow_tree(shadow, &target.active, false)?;
        let active = self.shadow_active(shadow, &target.active)?;
        let mut header = self.header.clone();
        let l1 = FlatTable::new(active);
        header.l1_offset = self.shadow_write(shadow, l1.bytes(0..l1.entries.len()))?;
        (header.l1_size, header.size) = (l1.entries.len() as u32, target.size);
        let table = table_bytes(&target.snapshots);
        let snapshot_bytes = table.len() as u64;
        header.snapshots_offset = self.shadow_write(shadow, table)?;
        header.snapshots = target.snapshots.len() as u32;
        let reftable = self.shadow_counts(self.layout, shadow, &mut header)?;
        self.file.flush()?;
        let freed = self.freed_by(shadow)?;
        let before = std::mem::replace(&mut self.header, header);
        if let Err(e) = self.write_header() {
            self.header = before;
            return Err(e);
        }
        (self.l1, self.reftable) = (l1, reftable);
        (self.snapshots, self.snapshot_bytes) = (target.snapshots, snapshot_bytes);
        self.l2.clear();
        self.l2_changes += 1;
        self.blocks.clear();
        (self.first_free, self.packing) = (0, 0);
        self.index_tables();
        self.file.flush()?;
        Ok(freed)
    }

    fn shadow_range(&self, shadow: &mut Shadow, host: u64, len: u64) {
        let bits = self.layout.cluster_bits;
        for cluster in (host >> bits)..self.layout.clusters(host + len) {
            shadow.references.add(cluster);
        }
    }

    /// Counts what L2 tables refer to, and with `tables` them as well.
    fn shadow_tree(&mut self, shadow: &mut Shadow, l1: &[u64], tables: bool) -> Result<()> {
        for table in self.tables_of(l1)? {
            if tables {
                shadow.references.add(table >> self.layout.cluster_bits);
            }
            for entry in self.l2_entries(table)? {
                let refers = self.layout.refers(entry, self.file.name())?;
                if let Some((host, len)) = refers.range(self.layout.cluster()) {
                    self.shadow_range(shadow, host, len);
                }
            }
        }
        Ok(())
    }

    /// The active L1 table: L2 tables whose flags would not fit any more are copied.
    fn shadow_active(&mut self, shadow: &mut Shadow, tables: &[u64]) -> Result<Vec<u64>> {
        let bits = self.layout.cluster_bits;
        let mut active = Vec::with_capacity(tables.len());
        for &table in tables {
            if table == 0 {
                active.push(0);
                continue;
            }
            let mut right = vec![0; self.layout.cluster() as usize];
            let mut fits = true;
            for (index, entry) in self.l2_entries(table)?.into_iter().enumerate() {
                let single = match self.layout.refers(entry, self.file.name())? {
                    Refers::Cluster(host) => shadow.references.get(host >> bits) == 1,
                    Refers::Packed(..) | Refers::Nothing => false,
                };
                let word = (entry.word & !COPIED) | if single { COPIED } else { 0 };
                fits &= word == entry.word;
                self.layout.put_entry(&mut right, index, Entry { word, ..entry });
            }
            if fits {
                shadow.references.add(table >> bits);
                active.push(table);
            } else {
                active.push(self.shadow_write(shadow, right)?);
            }
        }
        for entry in active.iter_mut().filter(|e| **e != 0) {
            if shadow.references.get(*entry >> bits) == 1 {
                *entry |= COPIED;
            }
        }
        Ok(active)
    }

    /// Writes bytes to new clusters, each with one reference; their offset, or 0 if there are none.
    fn shadow_write(&self, shadow: &mut Shadow, mut bytes: Vec<u8>) -> Result<u64> {
        let clusters = self.layout.clusters(bytes.len() as u64);
        if clusters == 0 {
            return Ok(0);
        }
        let host = shadow.next << self.layout.cluster_bits;
        bytes.resize((clusters << self.layout.cluster_bits) as usize, 0);
        self.file.write(host, &bytes)?;
        self.shadow_range(shadow, host, bytes.len() as u64);
        shadow.next += clusters;
        Ok(host)
    }

    /// Writes the counts of everything, themselves included, and names them in the header.
    fn shadow_counts(&self, layout: Layout, shadow: &mut Shadow, header: &mut Header) -> Result<FlatTable> {
        let (bits, per_block) = (layout.cluster_bits, layout.block_entries());
        let (mut blocks, mut table) = (0, 0);
        loop {
            let needed = (shadow.next + blocks + table).div_ceil(per_block);
            if needed == blocks {
                break;
            }
            (blocks, table) = (needed, self.layout.clusters(needed * 8));
        }
        if table << bits > MAX_REFTABLE_BYTES {
            let what = format!("{}: the image file cannot grow further with clusters of this size", self.name());
            return Err(BlockError::Invalid { what });
        }
        let first = shadow.next;
        (first..first + blocks + table).for_each(|cluster| shadow.references.add(cluster));
        for index in 0..blocks {
            let mut block = vec![0; self.layout.cluster() as usize];
            for i in 0..per_block {
                let count = shadow.references.get(index * per_block + i);
                if count > layout.max_refcount() {
                    let what = format!("{}: too many references to one cluster; delete snapshots", self.name());
                    return Err(BlockError::Invalid { what });
                }
                if count > 0 {
                    set_entry(&mut block, layout.refcount_order, i, count);
                }
            }
            self.file.write((first + index) << bits, &block)?;
        }
        let mut entries: Vec<u64> = (first..first + blocks).map(|cluster| cluster << bits).collect();
        entries.resize(((table << bits) / 8) as usize, 0);
        let reftable = FlatTable::new(entries);
        self.file.write((first + blocks) << bits, &reftable.bytes(0..reftable.entries.len()))?;
        (header.reftable_offset, header.reftable_clusters) = ((first + blocks) << bits, table as u32);
        shadow.next += blocks + table;
        Ok(reftable)
    }

    /// Gives reference counts another width: 1 << `order` bits. A crash leaves the old counts or the new ones. The
    /// caller keeps requests out.
    pub(super) fn change_width(&mut self, order: u32) -> Result<()> {
        self.counts_follow()?;
        let (bits, layout) = (self.layout.cluster_bits, Layout { refcount_order: order, ..self.layout });
        let table = self.header.reftable_offset >> bits;
        let table = table..table + u64::from(self.header.reftable_clusters);
        let blocks = self.reftable.entries.iter().map(|e| (e & OFFSET) >> bits);
        let blocks: HashSet<u64> = blocks.filter(|&cluster| cluster != 0).collect();
        let mut shadow = Shadow { references: References::default(), next: self.layout.clusters(self.file.len()) };
        for index in 0..self.reftable.entries.len() as u64 {
            for cluster in self.counted(index)? {
                let count = self.refcount(cluster)?;
                if count > layout.max_refcount() || count > u64::from(u32::MAX) {
                    let what = format!(
                        "{}: a cluster has {count} references, too many for refcount_bits={}; delete snapshots",
                        self.name(),
                        1 << order
                    );
                    return Err(BlockError::Invalid { what });
                }
                // What counts now will not be there.
                if !blocks.contains(&cluster) && !table.contains(&cluster) {
                    shadow.references.add_all(cluster, count as u32);
                }
                shadow.next = shadow.next.max(cluster + 1);
            }
        }
        let mut header = self.header.clone();
        header.refcount_order = order;
        let done = self.shadow_counts(layout, &mut shadow, &mut header).and_then(|table| {
            self.file.flush()?;
            Ok(table)
        });
        self.fresh_from = self.fresh_from.max(self.file.len().next_multiple_of(self.layout.cluster()));
        let reftable = done?;
        let freed = self.freed_by(&shadow)?;
        let before = std::mem::replace(&mut self.header, header);
        if let Err(e) = self.write_header() {
            self.header = before;
            return Err(e);
        }
        (self.reftable, self.layout) = (reftable, layout);
        self.blocks.clear();
        (self.first_free, self.packing) = (0, 0);
        self.index_tables();
        self.file.flush()?;
        freed.into_iter().try_for_each(|(host, len)| self.file.punch(host, len))
    }

    /// Ranges of clusters that were counted, and will not be.
    fn freed_by(&mut self, shadow: &Shadow) -> Result<Vec<(u64, u64)>> {
        let size = self.layout.cluster();
        let mut freed: Vec<(u64, u64)> = Vec::new();
        for index in 0..self.reftable.entries.len() as u64 {
            if self.reftable.get(index as usize) & OFFSET == 0 {
                continue;
            }
            for cluster in self.counted(index)?.into_iter().filter(|&c| shadow.references.get(c) == 0) {
                let host = cluster << self.layout.cluster_bits;
                match freed.last_mut() {
                    Some((start, len)) if *start + *len == host => *len += size,
                    _ => freed.push((host, size)),
                }
            }
        }
        Ok(freed)
    }
}
