//! The tables in memory, and the order in which they reach the file.
//!
//! At every moment the file holds at most leaks. That rests on one order, kept by
//! [`Meta::commit`]: refcount blocks, then the refcount table, then L2 tables, then the L1 table,
//! with a flush between; only after that are the clusters counted down that these tables no
//! longer name ([`Meta::release`], [`Meta::settle`]), and only then can they be given out again.

use super::cache::{Cache, Copy};
use super::caches::TableCaches;
use super::header::{DIRTY, Header, LAZY_REFCOUNTS, be64, corrupt};
use super::layout::{Layout, OFFSET};
use super::options::Repair;
use super::snapshot::{self, Snapshot};
use crate::block::{Result, Storage};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Clusters that wait for their release; more force a commit.
const MAX_WAITING: usize = 1 << 16;
/// Table entries written at once.
const SECTOR_ENTRIES: usize = 512;

/// A table that is in memory whole: L1 or refcount table.
pub(super) struct FlatTable {
    pub(super) entries: Vec<u64>,
    /// Changed entries that the file has not.
    dirty: Option<Range<usize>>,
    /// Changes so far.
    changes: u64,
}

/// The changed sectors of a table as they were at one moment.
pub(super) struct FlatCopy {
    start: usize,
    bytes: Vec<u8>,
    changes: u64,
}

impl FlatTable {
    pub(super) fn new(entries: Vec<u64>) -> FlatTable {
        FlatTable { entries, dirty: None, changes: 0 }
    }

    pub(super) fn read(file: &dyn Storage, offset: u64, entries: usize) -> Result<FlatTable> {
        let mut bytes = vec![0; entries * 8];
        file.read(offset, &mut bytes)?;
        Ok(FlatTable::new((0..entries).map(|i| be64(&bytes, i * 8)).collect()))
    }

    pub(super) fn get(&self, index: usize) -> u64 {
        self.entries.get(index).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, index: usize, value: u64) {
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = value;
            self.changes += 1;
            let old = self.dirty.take().unwrap_or(index..index);
            self.dirty = Some(old.start.min(index)..old.end.max(index + 1));
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.is_some()
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.entries.get(range).unwrap_or_default().iter().flat_map(|e| e.to_be_bytes()).collect()
    }

    /// What the file has not, as it is now.
    pub(super) fn copy(&self) -> Option<FlatCopy> {
        let range = self.dirty.clone()?;
        let start = range.start / SECTOR_ENTRIES * SECTOR_ENTRIES;
        let end = range.end.next_multiple_of(SECTOR_ENTRIES).min(self.entries.len());
        Some(FlatCopy { start, bytes: self.bytes(start..end), changes: self.changes })
    }

    /// Writes a copy of this table, which starts at `offset`.
    pub(super) fn store(&mut self, copy: &FlatCopy, file: &dyn Storage, offset: u64) -> Result<()> {
        file.write(offset + copy.start as u64 * 8, &copy.bytes)?;
        if copy.changes == self.changes {
            self.dirty = None;
        }
        Ok(())
    }

    /// Writes the changed sectors of a table that starts at `offset`.
    fn write(&mut self, file: &dyn Storage, offset: u64) -> Result<()> {
        self.copy().map_or(Ok(()), |copy| self.store(&copy, file, offset))
    }
}

/// A guest range whose clusters are being allocated by some request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// All metadata of one image.
pub(super) struct Meta {
    pub(super) file: Arc<dyn Storage>,
    /// The external data file, if there is one.
    pub(super) data_file: Option<Arc<dyn Storage>>,
    pub(super) layout: Layout,
    pub(super) header: Header,
    pub(super) l1: FlatTable,
    pub(super) reftable: FlatTable,
    pub(super) l2: Cache,
    pub(super) blocks: Cache,
    pub(super) snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table in the file.
    pub(super) snapshot_bytes: u64,
    /// Changes so far of L2 tables in the file, and of which clusters are some.
    pub(super) l2_changes: u64,
    /// No cluster below this index is free.
    pub(super) first_free: u64,
    /// Host clusters from this offset on were never written: they read as zeroes.
    pub(super) fresh_from: u64,
    /// A change of counts was broken off: they may be too high, and flags may not fit to them.
    pub(super) unsure: bool,
    /// We said that the image is dirty, and have not yet taken it back.
    pub(super) marked: bool,
    /// Commits begun here, which overtake one that is on its way to the file.
    pub(super) commits: u64,
    /// Where the next compressed cluster may start; 0 if a new host cluster is needed.
    pub(super) packing: u64,
    /// Host clusters to be counted down once, by index, when no table in the file names them.
    pub(super) waiting: Vec<u64>,
    pub(super) in_flight: Vec<InFlight>,
    /// Host offsets of the active L2 tables and the refcount blocks: never data.
    pub(super) tables: HashSet<u64>,
}

impl Meta {
    /// Reads all tables that stay in memory.
    pub(super) fn load(
        file: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        header: Header,
        caches: &TableCaches,
    ) -> Result<Meta> {
        let layout = Layout::of(&header);
        let l1 = FlatTable::read(&*file, header.l1_offset, header.l1_size as usize)?;
        let entries = u64::from(header.reftable_clusters) * layout.cluster() / 8;
        let reftable = FlatTable::read(&*file, header.reftable_offset, entries as usize)?;
        let (snapshots, snapshot_bytes) = snapshot::read_table(&*file, &header)?;
        caches.check()?;
        let all_l2 = header.size.div_ceil(layout.per_l1()) << layout.cluster_bits;
        let (l2_bytes, block_bytes) = caches.limits(layout.cluster(), all_l2);
        let mut meta = Meta {
            file,
            data_file,
            layout,
            header,
            l1,
            reftable,
            l2: Cache::new(l2_bytes / layout.cluster()),
            blocks: Cache::new(block_bytes / layout.cluster()),
            snapshots,
            snapshot_bytes,
            l2_changes: 0,
            first_free: 0,
            fresh_from: 0,
            unsure: false,
            marked: false,
            commits: 0,
            packing: 0,
            waiting: Vec::new(),
            in_flight: Vec::new(),
            tables: HashSet::new(),
        };
        meta.fresh_from = meta.file.len().next_multiple_of(layout.cluster());
        meta.index_tables();
        Ok(meta)
    }

    /// Builds the set of clusters that hold tables.
    pub(super) fn index_tables(&mut self) {
        let entries = self.l1.entries.iter().chain(&self.reftable.entries);
        self.tables = entries.map(|e| e & OFFSET).filter(|&o| o != 0).collect();
    }

    pub(super) fn name(&self) -> &str {
        self.file.name()
    }

    /// Damage found in the file.
    pub(super) fn corrupt<T>(&self, what: String) -> Result<T> {
        Err(corrupt(self.file.name(), what))
    }

    /// Writes the header with its present values.
    pub(super) fn write_header(&self) -> Result<()> {
        self.file.write(0, &self.header.to_bytes(self.name())?)
    }

    /// Sets or clears incompatible feature bits, durably. Version 2 has none.
    pub(super) fn mark(&mut self, bits: u64, on: bool) -> Result<()> {
        let old = self.header.incompatible;
        let new = if on { old | bits } else { old & !bits };
        if self.header.version < 3 || new == old {
            return Ok(());
        }
        self.flush_all()?;
        // Not taken back on an error: the file may say so already.
        self.marked |= on && bits & DIRTY != 0;
        self.header.incompatible = new;
        if let Err(e) = self.write_header() {
            self.header.incompatible = old;
            return Err(e);
        }
        self.marked &= on || bits & DIRTY == 0;
        self.file.flush()
    }

    /// Brings all tables to the file in the safe order. Data and tables that were written before
    /// are durable afterwards, the last tables only with the next flush of the file.
    ///
    /// The metadata stays locked meanwhile: this is for changes of structure and for when there
    /// is no room. A flush of the guest goes the same way in steps (see [`super::commit`]).
    pub(super) fn commit(&mut self) -> Result<()> {
        self.commits += 1;
        if self.l2.any_dirty() || self.l1.is_dirty() {
            self.counts_may_lag()?;
        }
        self.write_counts()?;
        if self.l2.any_dirty() {
            self.flush_all()?;
            for copy in self.l2.copies() {
                self.l2_changes += 1;
                self.write_copy(&copy)?;
                self.l2.stored(&copy);
            }
        }
        if self.l1.is_dirty() {
            self.flush_all()?;
            self.l1.write(&*self.file, self.header.l1_offset)?;
        }
        Ok(())
    }

    /// Commits, and gives the clusters free that no table names any more. The caller keeps requests
    /// out: one that found such a cluster before may still be reading from it.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.commit()?;
        if !self.waiting.is_empty() {
            self.flush_all()?;
            let waiting = std::mem::take(&mut self.waiting);
            self.count_down(waiting)?;
            // Else the counts of the last commit before closing would stay too high.
            self.write_counts()?;
        }
        Ok(())
    }

    /// Makes data and tables durable that were written before.
    pub(super) fn flush_all(&self) -> Result<()> {
        if let Some(data) = &self.data_file {
            data.flush()?;
        }
        self.file.flush()
    }

    /// Writes a part of a table.
    pub(super) fn write_copy(&self, copy: &Copy) -> Result<()> {
        let (offset, bytes) = copy.part();
        self.file.write(offset, bytes)
    }

    /// Whether reference counts may be left behind: whoever finds the dirty bit rebuilds them
    /// (qcow2.rst, "lazy refcounts").
    pub(super) fn is_lazy(&self) -> bool {
        self.header.version >= 3 && self.header.compatible & LAZY_REFCOUNTS != 0
    }

    /// Before tables reach the file whose counts do not: says so, durably.
    pub(super) fn counts_may_lag(&mut self) -> Result<()> {
        if self.is_lazy() { self.mark(DIRTY, true) } else { Ok(()) }
    }

    /// The first half of a commit: counts are in the file before anything that relies on them,
    /// unless they may lag.
    pub(super) fn write_counts(&mut self) -> Result<()> {
        if self.is_lazy() && self.header.incompatible & DIRTY != 0 { Ok(()) } else { self.write_blocks() }
    }

    /// Brings counts to the file that lag behind, and says so. Nobody else uses the image.
    pub(super) fn counts_follow(&mut self) -> Result<()> {
        self.settle()?;
        if self.unsure {
            let report = self.check(Repair::All)?;
            if report.corruptions > report.corruptions_fixed {
                return self.corrupt("counts could not be repaired; run brolga-img check -r all".to_string());
            }
            self.settle()?;
            self.unsure = false;
        }
        self.write_blocks()?;
        self.mark(DIRTY, false)
    }

    /// Writes all counts that the file has not.
    pub(super) fn write_blocks(&mut self) -> Result<()> {
        self.write_blocks_alone()?;
        if self.reftable.is_dirty() {
            self.file.flush()?;
            self.reftable.write(&*self.file, self.header.reftable_offset)?;
        }
        Ok(())
    }

    /// Writes all changed refcount blocks, and not the table that names them.
    pub(super) fn write_blocks_alone(&mut self) -> Result<()> {
        for copy in self.blocks.copies() {
            self.write_copy(&copy)?;
            self.blocks.stored(&copy);
        }
        Ok(())
    }

    /// Whether so many clusters wait for their release that it should not wait for a flush.
    pub(super) fn many_waiting(&self) -> bool {
        self.waiting.len() > MAX_WAITING
    }

    /// Settles if very many clusters wait for their release.
    pub(super) fn relieve(&mut self) -> Result<()> {
        if self.many_waiting() { self.settle() } else { Ok(()) }
    }

    /// Makes room in the cache of L2 tables.
    pub(super) fn room_for_l2(&mut self) -> Result<()> {
        if self.l2.full() {
            if self.l2.mostly_dirty() {
                self.commit()?;
            }
            self.l2.evict();
        }
        Ok(())
    }

    /// Makes room in the cache of refcount blocks. Counts may always be written early: up means a
    /// leak at worst, and down happens only when nothing in the file refers to the cluster.
    pub(super) fn room_for_block(&mut self) -> Result<()> {
        if self.blocks.full() {
            if self.blocks.mostly_dirty() {
                self.write_blocks()?;
            }
            self.blocks.evict();
        }
        Ok(())
    }

    /// The metadata that `host..host + len` would overwrite, if any.
    pub(super) fn overlap(&self, host: u64, len: u64) -> Option<&'static str> {
        let end = host.saturating_add(len);
        let meets = |offset: u64, size: u64| size > 0 && host < offset.saturating_add(size) && offset < end;
        let cluster = self.layout.cluster();
        let reftable = u64::from(self.header.reftable_clusters) * cluster;
        if meets(0, cluster) {
            return Some("the header");
        }
        if meets(self.header.reftable_offset, reftable) {
            return Some("the refcount table");
        }
        if meets(self.header.l1_offset, self.l1.entries.len() as u64 * 8) {
            return Some("the L1 table");
        }
        if meets(self.header.snapshots_offset, self.snapshot_bytes) {
            return Some("the snapshot table");
        }
        if self.snapshots.iter().any(|s| meets(s.l1_offset, u64::from(s.l1_size) * 8)) {
            return Some("the L1 table of a snapshot");
        }
        let mut at = self.layout.floor(host);
        while at < end {
            if self.tables.contains(&at) {
                return Some("an L2 table or refcount block");
            }
            at += cluster;
        }
        None
    }

    /// Fails, and marks the image corrupt, if a write to this place would destroy metadata.
    pub(super) fn guard(&mut self, host: u64, len: u64) -> Result<()> {
        let Some(what) = self.overlap(host, len) else { return Ok(()) };
        self.mark(super::header::CORRUPT, true)?;
        self.corrupt(format!("a write to {host:#x} would overwrite {what}; repair it with brolga-img check -r all"))
    }
}
