//! Internal snapshots (qcow2.rst, "Snapshots").

use super::header::{DIRTY, Header, MAX_L1_BYTES, be32, be64, corrupt};
use super::layout::{COPIED, Entry, OFFSET, Refers};
use super::meta::{FlatTable, Meta};
use super::options::SnapshotInfo;
use super::shadow::Target;
use super::state::MachineState;
use super::{Qcow2, TableCaches};
use crate::block::{BlockBackend, BlockError, Result, Storage};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// A larger snapshot table is refused.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// Extra data of one entry beyond this is refused.
const MAX_EXTRA: u32 = 1024;

/// One entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) info: SnapshotInfo,
    pub(super) l1_offset: u64,
    pub(super) l1_size: u32,
    /// Extra data behind the fields that we know, kept as it is.
    unknown: Vec<u8>,
}

/// Reads the snapshot table: entries, and its length in bytes.
pub(super) fn read_table(file: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for number in 0..header.snapshots {
        let bad = |what: &str| corrupt(file.name(), format!("snapshot {number} at {at:#x}: {what}"));
        if at - header.snapshots_offset > MAX_TABLE_BYTES {
            return Err(bad("the table is too long"));
        }
        let mut fixed = [0; 40];
        file.read(at, &mut fixed)?;
        let extra = be32(&fixed, 36);
        if extra > MAX_EXTRA {
            return Err(bad("too much extra data"));
        }
        let id_len = usize::from(u16::from_be_bytes([fixed[12], fixed[13]]));
        let name_len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let mut rest = vec![0; extra as usize + id_len + name_len + 8];
        file.read(at + 40, &mut rest)?;
        let (extra_data, texts) = rest.split_at(extra as usize);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // What the extra data does not reach to has its default (qcow2.rst, "Snapshot table entry").
        let field = |at: usize| (at + 8 <= extra_data.len()).then(|| be64(extra_data, at));
        let snapshot = Snapshot {
            info: SnapshotInfo {
                id: text(&texts[..id_len]),
                name: text(&texts[id_len..id_len + name_len]),
                vm_state_size: field(0).unwrap_or(u64::from(be32(&fixed, 32))),
                date_sec: be32(&fixed, 16),
                date_nsec: be32(&fixed, 20),
                vm_clock_nsec: be64(&fixed, 24),
                icount: field(16).filter(|&n| n != u64::MAX),
                disk_size: field(8).unwrap_or(header.size),
            },
            l1_offset: be64(&fixed, 0),
            l1_size: be32(&fixed, 8),
            unknown: extra_data.get(24..).unwrap_or_default().to_vec(),
        };
        if u64::from(snapshot.l1_size) * 8 > MAX_L1_BYTES || snapshot.l1_offset & ((1 << header.cluster_bits) - 1) != 0
        {
            return Err(bad("impossible L1 table"));
        }
        snapshots.push(snapshot);
        at += (40 + extra as u64 + (id_len + name_len) as u64).next_multiple_of(8);
    }
    Ok((snapshots, at - header.snapshots_offset))
}

pub(super) fn table_bytes(snapshots: &[Snapshot]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Snapshot { info, l1_offset, l1_size, unknown } in snapshots {
        bytes.extend_from_slice(&l1_offset.to_be_bytes());
        bytes.extend_from_slice(&l1_size.to_be_bytes());
        bytes.extend_from_slice(&(info.id.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&(info.name.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&info.date_sec.to_be_bytes());
        bytes.extend_from_slice(&info.date_nsec.to_be_bytes());
        bytes.extend_from_slice(&info.vm_clock_nsec.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(info.vm_state_size).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&(24 + unknown.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&info.vm_state_size.to_be_bytes());
        bytes.extend_from_slice(&info.disk_size.to_be_bytes());
        bytes.extend_from_slice(&info.icount.unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(unknown);
        bytes.extend_from_slice(info.id.as_bytes());
        bytes.extend_from_slice(info.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

impl Meta {
    /// Puts another snapshot table in the file and names it in the header.
    fn switch_snapshots(&mut self, snapshots: Vec<Snapshot>) -> Result<()> {
        let bytes = table_bytes(&snapshots);
        let host = match self.layout.clusters(bytes.len() as u64) {
            0 => 0,
            clusters => self.allocate_exactly(clusters)?,
        };
        self.write_blocks()?;
        self.file.write(host, &bytes)?;
        self.file.flush()?;
        let (old, old_bytes) = (self.header.snapshots_offset, self.snapshot_bytes);
        let before = self.header.clone();
        (self.header.snapshots_offset, self.header.snapshots) = (host, snapshots.len() as u32);
        if let Err(e) = self.write_header() {
            self.header = before;
            return Err(e);
        }
        (self.snapshots, self.snapshot_bytes) = (snapshots, bytes.len() as u64);
        self.file.flush()?;
        if old_bytes > 0 {
            self.release(old, old_bytes);
        }
        Ok(())
    }

    /// The L2 tables that an L1 table names. Each is named once: a table that says otherwise is
    /// damaged, and would take hours to walk.
    pub(super) fn tables_of(&self, l1: &[u64]) -> Result<Vec<u64>> {
        let tables: Vec<u64> = l1.iter().map(|e| e & OFFSET).filter(|&t| t != 0).collect();
        let different: HashSet<u64> = tables.iter().copied().collect();
        if different.len() < tables.len() {
            return self.corrupt("an L1 table names an L2 table twice".to_string());
        }
        Ok(tables)
    }

    /// Counts one reference more to all that an L1 table leads to.
    fn count_tree_up(&mut self, l1: &[u64]) -> Result<()> {
        let mut counted = Vec::new();
        self.unsure = true;
        let result = self.count_tree_up_into(l1, &mut counted);
        if result.is_err() {
            for cluster in counted {
                let count = self.refcount(cluster)?;
                self.set_refcount(cluster, count.saturating_sub(1))?;
            }
            self.unsure = false;
        }
        result
    }

    fn count_tree_up_into(&mut self, l1: &[u64], counted: &mut Vec<u64>) -> Result<()> {
        let bits = self.layout.cluster_bits;
        for table in self.tables_of(l1)? {
            let mut clusters = vec![table >> bits];
            for entry in self.l2_entries(table)? {
                if let Some((host, len)) = self.layout.refers(entry, self.file.name())?.range(self.layout.cluster()) {
                    clusters.extend(host >> bits..=(host + len - 1) >> bits);
                }
            }
            for cluster in clusters {
                self.count_up(cluster)?;
                counted.push(cluster);
            }
        }
        Ok(())
    }

    /// Gives back one reference to all that an L1 table leads to, after the next commit.
    fn release_tree(&mut self, l1: &[u64]) -> Result<()> {
        for table in self.tables_of(l1)? {
            for entry in self.l2_entries(table)? {
                self.release_entry(entry, Entry::EMPTY)?;
            }
            self.release(table, self.layout.cluster());
        }
        Ok(())
    }

    /// Makes the "copied" flags of the active tables say what the counts say; how many were wrong.
    pub(super) fn refresh_copied(&mut self) -> Result<u64> {
        let bits = self.layout.cluster_bits;
        let mut wrong = 0;
        for index in 0..self.l1.entries.len() {
            let entry = self.l1.get(index);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            let flag = if self.refcount(table >> bits)? == 1 { COPIED } else { 0 };
            if entry != table | flag {
                self.l1.set(index, table | flag);
                wrong += 1;
            }
            wrong += self.refresh_table(table)?;
        }
        Ok(wrong)
    }

    fn refresh_table(&mut self, table: u64) -> Result<u64> {
        let bits = self.layout.cluster_bits;
        let mut wrong = 0;
        for (index, entry) in self.l2_entries(table)?.into_iter().enumerate() {
            let host = match self.layout.refers(entry, self.file.name())? {
                Refers::Cluster(host) => host,
                // Clusters of a data file have no counts.
                Refers::Nothing if self.layout.data_file => continue,
                // Bit 63 of a compressed entry must be 0.
                Refers::Packed(..) | Refers::Nothing => 0,
            };
            let single = host != 0 && self.refcount(host >> bits)? == 1;
            let flag = if single { COPIED } else { 0 };
            if entry.word & COPIED != flag {
                self.load_l2(table)?;
                let right = Entry { word: (entry.word & !COPIED) | flag, ..entry };
                self.l2.put_entry(table, self.layout, index, right);
                wrong += 1;
            }
        }
        Ok(wrong)
    }

    /// Finds a snapshot: by id first, then by name.
    fn find_snapshot(&self, wanted: &str) -> Result<usize> {
        let by_id = self.snapshots.iter().position(|s| s.info.id == wanted);
        let found = by_id.or_else(|| self.snapshots.iter().position(|s| s.info.name == wanted));
        found.ok_or_else(|| {
            let names: Vec<_> = self.snapshots.iter().map(|s| s.info.name.as_str()).collect();
            let there =
                if names.is_empty() { "there are none".into() } else { format!("there are {}", names.join(", ")) };
            BlockError::Invalid { what: format!("{}: no snapshot '{wanted}'; {there}", self.name()) }
        })
    }

    /// The entry of a new snapshot, whose L1 table has no place yet.
    fn new_snapshot(&self, name: &str, when: SystemTime, state: MachineState, l1_size: usize) -> Snapshot {
        let highest = self.snapshots.iter().filter_map(|s| s.info.id.parse::<u64>().ok()).max();
        let since = when.duration_since(UNIX_EPOCH).unwrap_or_default();
        let info = SnapshotInfo {
            id: highest.unwrap_or(0).saturating_add(1).to_string(),
            name: name.to_string(),
            vm_state_size: state.size,
            date_sec: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
            date_nsec: since.subsec_nanos(),
            vm_clock_nsec: state.clock_nsec,
            icount: state.icount,
            disk_size: self.header.size,
        };
        Snapshot { info, l1_offset: 0, l1_size: l1_size as u32, unknown: Vec::new() }
    }

    /// Keeps the present content; the active image is cut at `base`, where a machine's state begins.
    fn add_snapshot(&mut self, name: &str, when: SystemTime, state: MachineState, base: u64) -> Result<String> {
        let entries: Vec<u64> = self.l1.entries.iter().map(|e| e & OFFSET).collect();
        let mut snapshot = self.new_snapshot(name, when, state, entries.len());
        let id = snapshot.info.id.clone();
        let mut snapshots = self.snapshots.clone();
        if self.layout.version < 3 {
            snapshots.push(snapshot);
            let mut active = entries.clone();
            active.iter_mut().skip(self.layout.l1_index(base)).for_each(|e| *e = 0);
            self.become_at_once(Target { active, size: self.header.size, snapshots, kept: Some(entries) })?;
            return Ok(id);
        }
        self.count_tree_up(&entries)?;
        self.refresh_copied()?;
        self.settle()?;
        let bytes = FlatTable::new(entries).bytes(0..self.l1.entries.len());
        snapshot.l1_offset = match self.layout.clusters(bytes.len() as u64) {
            0 => 0,
            clusters => self.allocate_exactly(clusters)?,
        };
        self.file.write(snapshot.l1_offset, &bytes)?;
        snapshots.push(snapshot);
        self.switch_snapshots(snapshots)?;
        self.cut(base)?;
        self.refresh_copied()?;
        Ok(id)
    }

    /// The L1 entries of a snapshot, without flags, and the size of its disk.
    fn content_of(&self, snapshot: &Snapshot) -> Result<(Vec<u64>, u64)> {
        let size = snapshot.info.disk_size;
        let mut entries = self.foreign_l1(snapshot.l1_offset, snapshot.l1_size)?;
        let needed = size.div_ceil(self.layout.per_l1());
        if needed * 8 > MAX_L1_BYTES || size > i64::MAX as u64 {
            return self.corrupt(format!("snapshot '{}' has {size} bytes", snapshot.info.name));
        }
        entries.iter_mut().for_each(|e| *e &= OFFSET);
        entries.resize(entries.len().max(needed as usize), 0);
        Ok((entries, size))
    }

    fn go_to_snapshot(&mut self, index: usize) -> Result<()> {
        let Some(snapshot) = self.snapshots.get(index).cloned() else { return Ok(()) };
        let (entries, size) = self.content_of(&snapshot)?;
        if self.layout.version < 3 {
            let snapshots = self.snapshots.clone();
            return self.become_at_once(Target { active: entries, size, snapshots, kept: None });
        }
        self.count_tree_up(&entries)?;
        let old = self.l1.entries.clone();
        self.switch_l1(entries, size)?;
        self.release_tree(&old)?;
        self.settle()?;
        self.refresh_copied()?;
        Ok(())
    }

    fn remove_snapshot(&mut self, index: usize) -> Result<()> {
        let mut snapshots = self.snapshots.clone();
        let gone = snapshots.remove(index);
        if self.layout.version < 3 {
            let active = self.l1.entries.iter().map(|e| e & OFFSET).collect();
            return self.become_at_once(Target { active, size: self.header.size, snapshots, kept: None });
        }
        let entries = self.foreign_l1(gone.l1_offset, gone.l1_size)?;
        self.switch_snapshots(snapshots)?;
        self.unsure = true;
        self.release_tree(&entries)?;
        if gone.l1_size > 0 {
            self.release(gone.l1_offset, u64::from(gone.l1_size) * 8);
        }
        self.settle()?;
        self.refresh_copied()?;
        Ok(())
    }
}

impl Qcow2 {
    /// The internal snapshots in the order of the file.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.meta().snapshots.iter().map(|s| s.info.clone()).collect()
    }

    /// Keeps the present content under a name; gives the new snapshot's id.
    pub fn create_snapshot(&self, name: &str, when: SystemTime) -> Result<String> {
        self.create_snapshot_with(name, when, MachineState::default())
    }

    /// Keeps the present content and the machine's state that was written before; gives the id.
    pub fn create_snapshot_with(&self, name: &str, when: SystemTime, state: MachineState) -> Result<String> {
        if name.len() > usize::from(u16::MAX) {
            return Err(BlockError::Invalid { what: "a snapshot name has at most 65535 bytes".to_string() });
        }
        let base = self.state_base();
        // The active image needs the state no more.
        self.change_counts(|meta| meta.add_snapshot(name, when, state, base))
    }

    /// Goes back to a snapshot, given by id or name: size and content. The present content is lost.
    pub fn apply_snapshot(&self, wanted: &str) -> Result<()> {
        let size = self.size.load(Ordering::Acquire);
        let resized = self.snapshots().iter().any(|s| (s.name == wanted || s.id == wanted) && s.disk_size != size);
        if resized {
            self.bitmaps_before_resize()?;
        }
        self.changing()?;
        self.note(0, u64::MAX);
        self.change_counts(|meta| {
            let index = meta.find_snapshot(wanted)?;
            meta.go_to_snapshot(index)
        })?;
        if resized {
            self.bitmaps_after_resize();
            self.note(0, u64::MAX);
        }
        Ok(())
    }

    /// From now on the image, which is open for reading only, has the size and content of a snapshot, given by id
    /// or name.
    pub fn show_snapshot(&self, wanted: &str) -> Result<()> {
        if !self.read_only {
            let what = format!("{}: a snapshot is shown in images that are open for reading only", self.file.name());
            return Err(BlockError::Invalid { what });
        }
        let _alone = self.alone();
        let mut meta = self.meta();
        let index = meta.find_snapshot(wanted)?;
        let Some(snapshot) = meta.snapshots.get(index).cloned() else { return Ok(()) };
        let (entries, size) = meta.content_of(&snapshot)?;
        meta.l1 = FlatTable::new(entries);
        meta.header.size = size;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// The content and the machine's state of a snapshot, given by id or name, for reading; this image stays as it is.
    /// What snapshots share with a backing file is not looked up there.
    pub fn view_of_snapshot(&self, wanted: &str) -> Result<Qcow2> {
        // What the file holds has to be all that there is.
        self.flush()?;
        let header = Header::read(&*self.file)?;
        let meta = Meta::load(self.file.clone(), None, header, &TableCaches::default())?;
        let view = Qcow2::assemble(self.file.clone(), meta, true, None);
        view.show_snapshot(wanted)?;
        Ok(view)
    }

    /// Deletes a snapshot, given by id or name.
    pub fn delete_snapshot(&self, wanted: &str) -> Result<()> {
        self.change_counts(|meta| {
            let index = meta.find_snapshot(wanted)?;
            meta.remove_snapshot(index)
        })
    }

    /// Runs a change during which counts and "copied" flags contradict each other. Neither costs
    /// data, but the dirty bit makes whoever opens the image after a crash set them right.
    fn change_counts<T>(&self, change: impl FnOnce(&mut Meta) -> Result<T>) -> Result<T> {
        self.changing()?;
        self.no_data_file("have snapshots; use an overlay")?;
        let _alone = self.alone();
        let mut meta = self.meta();
        if meta.unsure {
            meta.counts_follow()?;
        }
        meta.settle()?;
        meta.mark(DIRTY, true)?;
        let result = change(&mut meta);
        self.size.store(meta.header.size, Ordering::Release);
        if result.is_ok() {
            meta.unsure = false;
            meta.counts_follow()?;
            return result;
        }
        // The flags again follow the counts, whatever part of the change was made. If that fails as
        // well, the image stays dirty, and the next such change or closing it repairs it.
        if let Err(e) = meta.refresh_copied().and_then(|_| meta.counts_follow()) {
            meta.unsure = true;
            tracing::warn!("{e}");
        }
        result
    }
}
