//! Comparing the reference counts with all references, and setting them right.

use super::Qcow2;
use super::header::{CORRUPT, DIRTY};
use super::layout::{COMPRESSED, COPIED, Entry, Mapping, OFFSET, Refers, SUBCLUSTERS};
use super::meta::{FlatTable, Meta};
use super::options::{CheckReport, Repair};
use super::refcount;
use super::references::References;
use crate::block::Result;
use std::collections::HashSet;

/// Messages kept: a wrecked image has millions.
const MAX_MESSAGES: usize = 1000;
/// One run over an image.
struct Check<'a> {
    meta: &'a mut Meta,
    report: CheckReport,
    references: References,
    /// Clusters in the file, the last one perhaps in part.
    file_clusters: u64,
    /// Indices into the refcount table of the blocks that can be ones. Only these are walked: a
    /// table that names one block a million times must not take a million walks.
    blocks: Vec<u64>,
    /// Behind the last cluster that is counted or referred to, as far as that is known.
    last: u64,
    /// Counts are not what the references say, and stay so.
    counts_differ: bool,
    /// The refcount table is where none can be: its place behind the end of the file, or in other tables.
    misplaced: bool,
}

impl Check<'_> {
    fn say(&mut self, message: String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
    }

    fn wrong(&mut self, message: String) {
        self.report.corruptions += 1;
        self.say(format!("ERROR {message}"));
    }

    /// Counts a reference to each cluster of a range.
    fn refer(&mut self, host: u64, len: u64, what: &str) {
        if len == 0 {
            return;
        }
        let bits = self.meta.layout.cluster_bits;
        let (first, last) = (host >> bits, (host.saturating_add(len) - 1) >> bits);
        if first >= self.file_clusters {
            self.wrong(format!("{what} at {host:#x} lies behind the end of the file"));
            return;
        }
        for cluster in first..=last.min(self.file_clusters) {
            self.references.add(cluster);
        }
    }

    fn refer_l1(&mut self, l1: &[u64], active: bool) -> Result<()> {
        let layout = self.meta.layout;
        let mut seen = HashSet::new();
        for (index, &entry) in l1.iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            if layout.within(table) != 0 || table >> layout.cluster_bits >= self.file_clusters {
                self.wrong(format!("L1 entry {index} {entry:#x} is no place for a table"));
                continue;
            }
            self.refer(table, layout.cluster(), "L2 table");
            if !seen.insert(table) {
                self.wrong(format!("L2 table at {table:#x} is named twice"));
                continue;
            }
            self.refer_l2(table, active)?;
        }
        Ok(())
    }

    fn refer_l2(&mut self, table: u64, active: bool) -> Result<()> {
        let layout = self.meta.layout;
        let mut before = None;
        let bytes = self.meta.l2_table(table)?;
        for index in 0..layout.l2_entries() as usize {
            let entry = layout.entry_at(&bytes, index);
            if entry == Entry::EMPTY {
                continue;
            }
            let Ok(refers) = layout.refers(entry, "") else {
                self.wrong(format!("L2 table at {table:#x}: impossible entry {:#x}", entry.word));
                continue;
            };
            if self.subclusters_wrong(entry) {
                let Entry { word, bitmap } = entry;
                self.wrong(format!("L2 table at {table:#x}: impossible entry {word:#x} with bitmap {bitmap:#x}"));
            }
            if let Some((host, len)) = refers.range(layout.cluster()) {
                self.refer(host, len, "data");
            }
            if let Some((host, packed)) = self.stored(entry).filter(|_| active) {
                self.report.allocated_clusters += 1;
                self.report.compressed_clusters += u64::from(packed);
                let near = before.is_none_or(|b| b == host) && !packed;
                self.report.fragmented_clusters += u64::from(!near);
                before = Some(layout.floor(host) + layout.cluster());
            }
        }
        Ok(())
    }

    /// Whether some subcluster of an entry cannot be as it says.
    fn subclusters_wrong(&self, entry: Entry) -> bool {
        let layout = self.meta.layout;
        if entry.word & COMPRESSED != 0 {
            return entry.bitmap != 0;
        }
        (0..if layout.extended { SUBCLUSTERS } else { 1 }).any(|sub| layout.mapping(entry, sub, "").is_err())
    }

    /// Where the data of an entry lies, and whether it is packed; none for zero clusters.
    fn stored(&self, entry: Entry) -> Option<(u64, bool)> {
        match self.meta.layout.mapping(entry, 0, "").ok()? {
            Mapping::Data { host, .. } => Some((host, false)),
            Mapping::Compressed { host, .. } => Some((host, true)),
            Mapping::Zero { host: Some(host), .. } | Mapping::Unallocated { host: Some(host), .. }
                if self.meta.layout.extended =>
            {
                Some((host, false))
            }
            _ => None,
        }
    }

    /// Counts every reference there is.
    fn refer_all(&mut self) -> Result<()> {
        let header = self.meta.header.clone();
        let cluster = self.meta.layout.cluster();
        self.refer(0, cluster, "the header");
        self.refer(header.l1_offset, u64::from(header.l1_size) * 8, "the L1 table");
        self.refer(header.snapshots_offset, self.meta.snapshot_bytes, "the snapshot table");
        for (host, len) in super::bitmaps::ranges(&*self.meta.file, &header)? {
            self.refer(host, len, "a bitmap");
        }
        let l1 = self.meta.l1.entries.clone();
        self.refer_l1(&l1, true)?;
        for snapshot in self.meta.snapshots.clone() {
            let bytes = u64::from(snapshot.l1_size) * 8;
            self.refer(snapshot.l1_offset, bytes, "the L1 table of a snapshot");
            let l1 = self.meta.foreign_l1(snapshot.l1_offset, snapshot.l1_size)?;
            self.refer_l1(&l1, false)?;
        }
        let (table, clusters) = (header.reftable_offset, u64::from(header.reftable_clusters));
        let first = table >> self.meta.layout.cluster_bits;
        let end = first.saturating_add(clusters);
        let taken = |cluster| self.references.get(cluster) > 0;
        if end > self.file_clusters || (first..end).any(taken) {
            self.wrong(format!("the refcount table at {table:#x} is in no place for it"));
            self.misplaced = true;
        } else {
            self.refer(table, clusters * cluster, "the refcount table");
        }
        Ok(())
    }

    /// Gives the refcount table a place behind all else. It is written by [`write_reftable`](Self::write_reftable), when
    /// all blocks are known.
    fn move_reftable(&mut self) {
        let clusters = u64::from(self.meta.header.reftable_clusters);
        self.meta.header.reftable_offset = self.file_clusters << self.meta.layout.cluster_bits;
        for cluster in self.file_clusters..self.file_clusters + clusters {
            self.references.add(cluster);
        }
        self.file_clusters += clusters;
    }

    /// Makes the header name the table at its new place, where it is complete.
    fn write_reftable(&mut self) -> Result<()> {
        let all = 0..self.meta.reftable.entries.len();
        let mut bytes = self.meta.reftable.bytes(all);
        bytes.resize((u64::from(self.meta.header.reftable_clusters) * self.meta.layout.cluster()) as usize, 0);
        self.meta.file.write(self.meta.header.reftable_offset, &bytes)?;
        self.meta.file.flush()?;
        self.meta.write_header()?;
        self.meta.file.flush()?;
        self.meta.reftable = FlatTable::new(self.meta.reftable.entries.clone());
        self.report.corruptions_fixed += 1;
        Ok(())
    }

    /// Counts the refcount blocks; with `drop_bad` forgets those that cannot be ones.
    fn refer_blocks(&mut self, drop_bad: bool) {
        let layout = self.meta.layout;
        for index in 0..self.meta.reftable.entries.len() {
            let entry = self.meta.reftable.get(index);
            let block = entry & OFFSET;
            if entry == 0 {
                continue;
            }
            let outside = block >> layout.cluster_bits >= self.file_clusters;
            let taken = self.references.get(block >> layout.cluster_bits) > 0;
            if entry != block || layout.within(block) != 0 || block == 0 || outside || taken {
                self.wrong(format!("refcount table entry {index} {entry:#x} is no place for a block"));
                if drop_bad {
                    self.meta.reftable.set(index, 0);
                    self.report.corruptions_fixed += 1;
                }
                continue;
            }
            self.refer(block, layout.cluster(), "refcount block");
            self.blocks.push(index as u64);
        }
    }

    /// New refcount blocks behind the end of the file for clusters that have references but none.
    fn add_blocks(&mut self) -> Result<()> {
        let layout = self.meta.layout;
        let per_block = layout.block_entries();
        let mut wanted: Vec<u64> = self.references.used(per_block);
        while let Some(index) = wanted.pop() {
            let Some(&0) = self.meta.reftable.entries.get(index as usize) else { continue };
            let cluster = self.file_clusters;
            self.file_clusters += 1;
            let host = cluster << layout.cluster_bits;
            let bytes = vec![0; layout.cluster() as usize];
            self.meta.file.write(host, &bytes)?;
            self.meta.room_for_block()?;
            self.meta.blocks.insert(host, bytes, true);
            self.meta.reftable.set(index as usize, host);
            self.blocks.push(index);
            self.references.add(cluster);
            wanted.push(cluster / per_block);
        }
        Ok(())
    }

    /// Compares counts with references, cluster by cluster, in the order of the file.
    fn compare(&mut self, repair: Repair) -> Result<()> {
        let per_block = self.meta.layout.block_entries();
        self.blocks.sort_unstable();
        let walked = std::mem::take(&mut self.blocks);
        // Blocks that are there, and blocks that should be.
        let mut all = self.references.used(per_block);
        all.extend(&walked);
        all.sort_unstable();
        all.dedup();
        for index in all {
            let first = index * per_block;
            if walked.binary_search(&index).is_ok() {
                self.compare_block(index, first, repair)?;
                continue;
            }
            for cluster in first..first + per_block {
                if self.references.get(cluster) > 0 {
                    self.compare_one(cluster, repair)?;
                }
            }
        }
        self.blocks = walked;
        Ok(())
    }

    /// One block against the references to its clusters, `first` and those behind.
    fn compare_block(&mut self, index: u64, first: u64, repair: Repair) -> Result<()> {
        let (order, per_block) = (self.meta.layout.refcount_order, self.meta.layout.block_entries());
        let mut different = Vec::new();
        {
            let Some(block) = self.meta.block(index)? else { return Ok(()) };
            let mut at = 0;
            while at < per_block {
                // References to clusters that lie together, none if there are no such.
                let (near, there) = self.references.stretch(first + at, per_block - at);
                for i in 0..there {
                    let counted = refcount::entry(block, order, at + i);
                    if near.map_or(0, |near| near.get(i as usize).copied().map_or(0, u64::from)) != counted {
                        different.push(first + at + i);
                    }
                }
                at += there;
            }
        }
        different.into_iter().try_for_each(|cluster| self.compare_one(cluster, repair))
    }

    fn compare_one(&mut self, cluster: u64, repair: Repair) -> Result<()> {
        let found = self.references.get(cluster);
        let counted = self.meta.refcount(cluster).unwrap_or(0);
        if counted == found {
            return Ok(());
        }
        let fix = repair == Repair::All || (repair == Repair::Leaks && counted > found);
        let fixed = fix && self.meta.set_refcount(cluster, found).is_ok();
        let verb = if fixed {
            "Repaired"
        } else if counted > found {
            "Leaked"
        } else {
            "ERROR"
        };
        if counted > 0 && !fixed {
            self.last = self.last.max(cluster + 1);
        }
        self.say(format!("{verb} cluster {cluster} refcount={counted} reference={found}"));
        self.counts_differ |= !fixed;
        let leak = counted > found;
        self.report.leaks += u64::from(leak);
        self.report.corruptions += u64::from(!leak);
        self.report.leaks_fixed += u64::from(leak && fixed);
        self.report.corruptions_fixed += u64::from(!leak && fixed);
        Ok(())
    }

    /// The "copied" flags of the active tables against the counts.
    fn copied_flags(&mut self) -> Result<()> {
        let layout = self.meta.layout;
        for (index, entry) in self.meta.l1.entries.clone().into_iter().enumerate() {
            let table = entry & OFFSET;
            if table == 0 || layout.within(table) != 0 || table >> layout.cluster_bits >= self.file_clusters {
                continue;
            }
            self.copied_flag(entry, table, &format!("L1 entry {index}"))?;
            let bytes = self.meta.l2_table(table)?;
            for index in 0..layout.l2_entries() as usize {
                let entry = layout.entry_at(&bytes, index);
                if let Ok(Refers::Cluster(host)) = layout.refers(entry, "") {
                    self.copied_flag(entry.word, host, "L2 entry")?;
                }
            }
        }
        Ok(())
    }

    fn copied_flag(&mut self, entry: u64, host: u64, what: &str) -> Result<()> {
        let cluster = host >> self.meta.layout.cluster_bits;
        let count = match self.counts_differ {
            true => self.meta.refcount(cluster).unwrap_or(0),
            false => self.references.get(cluster),
        };
        if (count == 1) != (entry & COPIED != 0) {
            self.wrong(format!("{what} {entry:#x}: the copied flag does not fit to refcount {count}"));
        }
        Ok(())
    }
}

impl Meta {
    /// Checks all tables, and repairs what is asked for.
    pub(super) fn check(&mut self, repair: Repair) -> Result<CheckReport> {
        let file_clusters = self.layout.clusters(self.file.len());
        let references = References::default();
        let mut check = Check {
            meta: self,
            report: CheckReport::default(),
            references,
            file_clusters,
            blocks: Vec::new(),
            last: 0,
            counts_differ: false,
            misplaced: false,
        };
        check.refer_all()?;
        check.refer_blocks(repair == Repair::All);
        if repair == Repair::All {
            if check.misplaced {
                check.move_reftable();
            }
            check.add_blocks()?;
            if check.misplaced {
                check.meta.write_blocks_alone()?;
                check.write_reftable()?;
            }
        }
        check.compare(repair)?;
        let last = check.references.end().max(check.last);
        let before = check.report.corruptions;
        check.copied_flags()?;
        let flags = check.report.corruptions - before;
        let mut report = check.report;
        report.image_end_offset = last << self.layout.cluster_bits;
        report.total_clusters = self.layout.clusters(self.header.size);
        if repair != Repair::None {
            self.index_tables();
            self.packing = 0;
        }
        if repair == Repair::All && flags > 0 {
            self.refresh_copied()?;
            report.corruptions_fixed += flags;
        }
        Ok(report)
    }
}

impl Qcow2 {
    /// Checks the image, and repairs it if it may be written.
    pub fn check(&self, repair: Repair) -> Result<CheckReport> {
        let _alone = self.alone();
        let mut meta = self.meta();
        if repair != Repair::None {
            self.writable()?;
        }
        if !self.read_only {
            meta.settle()?;
        }
        let report = meta.check(repair)?;
        if repair != Repair::None {
            meta.settle()?;
            meta.write_blocks()?;
            self.file.flush()?;
        }
        if repair == Repair::All && report.corruptions == report.corruptions_fixed {
            meta.mark(DIRTY | CORRUPT, false)?;
        }
        Ok(report)
    }
}
