//! Comparing the reference counts with all references, and setting them right.

use super::Qcow2;
use super::header::{CORRUPT, DIRTY};
use super::layout::{COMPRESSED, COPIED, Entry, Mapping, OFFSET, Refers, SUBCLUSTERS};
use super::meta::Meta;
use super::options::{CheckReport, Repair};
use crate::block::Result;
use std::collections::{HashMap, HashSet};

/// Messages kept: a wrecked image has millions.
const MAX_MESSAGES: usize = 1000;
/// Counts kept together.
const CHUNK: u64 = 4096;

/// References found, by host cluster. Only what is referred to takes memory.
#[derive(Default)]
pub(super) struct References {
    chunks: HashMap<u64, Vec<u32>>,
}

impl References {
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster / CHUNK));
        chunk.and_then(|c| c.get((cluster % CHUNK) as usize)).map_or(0, |&n| u64::from(n))
    }

    pub(super) fn add(&mut self, cluster: u64) {
        let chunk = self.chunks.entry(cluster / CHUNK).or_insert_with(|| vec![0; CHUNK as usize]);
        if let Some(count) = chunk.get_mut((cluster % CHUNK) as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// The clusters with references, in order.
    fn clusters(&self) -> Vec<u64> {
        let mut chunks: Vec<_> = self.chunks.iter().collect();
        chunks.sort_unstable_by_key(|chunk| *chunk.0);
        let mut used = Vec::new();
        for (&key, counts) in chunks {
            used.extend((0..CHUNK).zip(counts).filter(|pair| *pair.1 > 0).map(|(i, _)| key * CHUNK + i));
        }
        used
    }
}

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
        for entry in self.meta.l2_entries(table)? {
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
        self.refer(header.reftable_offset, u64::from(header.reftable_clusters) * cluster, "the refcount table");
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
        let mut wanted: Vec<u64> = self.references.clusters().iter().map(|c| c / per_block).collect();
        wanted.dedup();
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
        let referred = self.references.clusters();
        let mut rest = referred.as_slice();
        self.blocks.sort_unstable();
        for index in self.blocks.clone() {
            let (here, behind) = rest.split_at(rest.partition_point(|&c| c < (index + 1) * per_block));
            rest = behind;
            let mut clusters: Vec<u64> = self.meta.counted(index)?;
            clusters.retain(|&c| self.references.get(c) == 0);
            clusters.extend(here);
            clusters.sort_unstable();
            for cluster in clusters {
                self.compare_one(cluster, repair)?;
            }
        }
        for &cluster in rest {
            self.compare_one(cluster, repair)?;
        }
        Ok(())
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
            for entry in self.meta.l2_entries(table)? {
                if let Ok(Refers::Cluster(host)) = layout.refers(entry, "") {
                    self.copied_flag(entry.word, host, "L2 entry")?;
                }
            }
        }
        Ok(())
    }

    fn copied_flag(&mut self, entry: u64, host: u64, what: &str) -> Result<()> {
        let count = self.meta.refcount(host >> self.meta.layout.cluster_bits).unwrap_or(0);
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
        };
        check.refer_all()?;
        check.refer_blocks(repair == Repair::All);
        if repair == Repair::All {
            check.add_blocks()?;
        }
        check.compare(repair)?;
        let last = check.references.clusters().last().map_or(0, |c| c + 1).max(check.last);
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
