//! Guest clusters to host clusters: the L1 and L2 tables (qcow2.rst, "Cluster mapping").

use super::Qcow2;
use super::layout::{COPIED, Entry, Mapping, OFFSET, Refers};
use super::meta::Meta;
use crate::block::Result;

/// Guest bytes that are stored in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Of the first cluster. Host offsets are those of the cluster's beginning.
    pub(super) mapping: Mapping,
    /// Bytes from the offset asked for.
    pub(super) len: u64,
}

/// An L2 table that is not in memory, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    /// Host offset.
    table: u64,
    /// [`Meta::l2_changes`] then.
    changes: u64,
}

impl Qcow2 {
    /// How a guest range begins, as [`Meta::run`] tells. Nobody waits for the metadata while the host reads a table.
    pub(super) fn run(&self, guest: u64, len: u64) -> Result<Run> {
        let mut meta = self.meta();
        if let Some(missing) = meta.missing(guest) {
            drop(meta);
            self.fetch(guest, missing)?;
            meta = self.meta();
        }
        meta.run(guest, len)
    }

    /// Brings an L2 table into the cache. If something has changed meanwhile it does not, since the table may no longer
    /// be what was read; whoever needs it then has to wait for the host.
    pub(super) fn fetch(&self, guest: u64, missing: Missing) -> Result<()> {
        let mut bytes = vec![0; self.layout.cluster() as usize];
        self.file.read(missing.table, &mut bytes)?;
        let mut meta = self.meta();
        if meta.missing(guest) == Some(missing) {
            meta.room_for_l2()?;
            meta.l2.insert(missing.table, bytes, false);
        }
        Ok(())
    }
}

impl Meta {
    /// The L2 table of a guest offset, if there is one that has to be read first.
    pub(super) fn missing(&mut self, guest: u64) -> Option<Missing> {
        let table = self.l1.get(self.layout.l1_index(guest)) & OFFSET;
        let there = table == 0 || self.layout.within(table) != 0 || self.l2.get(table).is_some();
        (!there).then_some(Missing { table, changes: self.l2_changes })
    }

    /// Brings an L2 table into the cache.
    pub(super) fn load_l2(&mut self, offset: u64) -> Result<()> {
        if self.layout.within(offset) != 0 {
            return self.corrupt(format!("L2 table at {offset:#x} is not on a cluster"));
        }
        if self.l2.get(offset).is_none() {
            self.room_for_l2()?;
            let mut bytes = vec![0; self.layout.cluster() as usize];
            self.file.read(offset, &mut bytes)?;
            self.l2.insert(offset, bytes, false);
        }
        Ok(())
    }

    /// The L2 entry of a guest offset.
    pub(super) fn entry(&mut self, guest: u64) -> Result<Entry> {
        let table = self.l1.get(self.layout.l1_index(guest)) & OFFSET;
        if table == 0 {
            return Ok(Entry::EMPTY);
        }
        self.load_l2(table)?;
        Ok(self.layout.entry_at(self.l2.get(table).unwrap_or_default(), self.layout.l2_index(guest)))
    }

    /// How `guest..guest + len` begins: as many bytes as are stored the same way, one behind the
    /// other. Ends with the L2 table at the latest.
    pub(super) fn run(&mut self, guest: u64, len: u64) -> Result<Run> {
        let layout = self.layout;
        let len = len.min(layout.per_l1() - guest % layout.per_l1());
        let table = self.l1.get(layout.l1_index(guest)) & OFFSET;
        if table == 0 {
            return Ok(Run { mapping: Mapping::NONE, len });
        }
        self.load_l2(table)?;
        let file = self.file.clone();
        let name = file.name();
        let bytes = self.l2.get(table).unwrap_or_default();
        let entry = |guest| layout.entry_at(bytes, layout.l2_index(guest));
        let mapping = layout.mapping(entry(guest), layout.sub(guest), name)?;
        if let Mapping::Compressed { .. } = mapping {
            return Ok(Run { mapping, len: len.min(layout.cluster() - layout.within(guest)) });
        }
        let mut covered = layout.grain() - guest % layout.grain();
        while covered < len {
            let at = guest + covered;
            let next = layout.mapping(entry(at), layout.sub(at), name)?;
            if !mapping.goes_on(next, layout.floor(at) - layout.floor(guest)) {
                break;
            }
            covered += layout.grain();
        }
        Ok(Run { mapping, len: covered.min(len) })
    }

    /// The L2 table of a guest offset, made or copied so that it belongs to the active image alone.
    pub(super) fn own_l2(&mut self, guest: u64) -> Result<u64> {
        let index = self.layout.l1_index(guest);
        if index >= self.l1.entries.len() {
            return self.corrupt(format!("the L1 table does not reach to {guest:#x}"));
        }
        let old = self.l1.get(index);
        let table = old & OFFSET;
        if table != 0 && old & COPIED != 0 {
            self.load_l2(table)?;
            return Ok(table);
        }
        let host = self.allocate(1)?.host;
        let bytes = match table {
            0 => Ok(vec![0; self.layout.cluster() as usize]),
            _ => self.load_l2(table).map(|()| self.l2.get(table).unwrap_or_default().to_vec()),
        };
        let bytes = match bytes.and_then(|b| self.room_for_l2().map(|()| b)) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.undo(host, 1)?;
                return Err(e);
            }
        };
        self.l2.insert(host, bytes, true);
        self.tables.insert(host);
        self.l1.set(index, host | COPIED);
        if table != 0 {
            self.release(table, self.layout.cluster());
        }
        Ok(host)
    }

    /// Changes the L2 entry of a guest offset; what the old entry refers to is not touched.
    pub(super) fn set_entry(&mut self, guest: u64, entry: Entry) -> Result<()> {
        let table = self.own_l2(guest)?;
        self.load_l2(table)?;
        self.l2.put_entry(table, self.layout, self.layout.l2_index(guest), entry);
        Ok(())
    }

    /// Changes an L2 entry and gives back what the old one referred to.
    pub(super) fn replace_entry(&mut self, guest: u64, entry: Entry) -> Result<()> {
        let old = self.entry(guest)?;
        // After the change nothing may fail: the caller takes an error for "not linked".
        self.layout.refers(old, self.file.name())?;
        self.set_entry(guest, entry)?;
        self.release_entry(old, entry)
    }

    /// Gives back what an L2 entry refers to, unless `kept` refers to it as well.
    pub(super) fn release_entry(&mut self, entry: Entry, kept: Entry) -> Result<()> {
        let kept = self.layout.refers(kept, self.file.name())?;
        match self.layout.refers(entry, self.file.name())? {
            old @ Refers::Cluster(host) if old != kept => self.release(host, self.layout.cluster()),
            Refers::Packed(host, len) => self.release(host, len),
            _ => {}
        }
        Ok(())
    }
}
