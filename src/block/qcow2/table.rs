//! Guest clusters to host clusters: the L1 and L2 tables (qcow2.rst, "Cluster mapping").

use super::header::be64;
use super::layout::{COPIED, Mapping, OFFSET};
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

impl Meta {
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
    pub(super) fn entry(&mut self, guest: u64) -> Result<u64> {
        let table = self.l1.get(self.layout.l1_index(guest)) & OFFSET;
        if table == 0 {
            return Ok(0);
        }
        self.load_l2(table)?;
        Ok(be64(self.l2.get(table).unwrap_or_default(), self.layout.l2_index(guest) * 8))
    }

    /// How `guest..guest + len` begins: as many bytes as are stored the same way, one behind the
    /// other. Ends with the L2 table at the latest.
    pub(super) fn run(&mut self, guest: u64, len: u64) -> Result<Run> {
        let layout = self.layout;
        let len = len.min(layout.per_l1() - guest % layout.per_l1());
        let table = self.l1.get(layout.l1_index(guest)) & OFFSET;
        if table == 0 {
            return Ok(Run { mapping: Mapping::Unallocated, len });
        }
        self.load_l2(table)?;
        let file = self.file.clone();
        let name = file.name();
        let bytes = self.l2.get(table).unwrap_or_default();
        let first = layout.l2_index(guest);
        let mapping = layout.mapping(be64(bytes, first * 8), name)?;
        let mut covered = layout.cluster() - layout.within(guest);
        let mut index = first + 1;
        while covered < len {
            let next = layout.mapping(be64(bytes, index * 8), name)?;
            let step = ((index - first) as u64) << layout.cluster_bits;
            let follows = match (mapping, next) {
                (Mapping::Unallocated, Mapping::Unallocated) => true,
                (Mapping::Zero { host: a, copied: c }, Mapping::Zero { host: b, copied: d }) => {
                    c == d && a.map(|a| a + step) == b
                }
                (Mapping::Data { host: a, copied: c }, Mapping::Data { host: b, copied: d }) => c == d && a + step == b,
                _ => false,
            };
            if !follows {
                break;
            }
            covered += layout.cluster();
            index += 1;
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
        let (host, _) = self.allocate(1)?;
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
    pub(super) fn set_entry(&mut self, guest: u64, entry: u64) -> Result<()> {
        let table = self.own_l2(guest)?;
        self.load_l2(table)?;
        let at = self.layout.l2_index(guest) * 8;
        if let Some(bytes) = self.l2.get_mut(table).and_then(|t| t.get_mut(at..at + 8)) {
            bytes.copy_from_slice(&entry.to_be_bytes());
        }
        Ok(())
    }

    /// Changes an L2 entry and gives back what the old one referred to.
    pub(super) fn replace_entry(&mut self, guest: u64, entry: u64) -> Result<()> {
        let old = self.entry(guest)?;
        // After the change nothing may fail: the caller takes an error for "not linked".
        self.layout.mapping(old, self.file.name())?;
        self.set_entry(guest, entry)?;
        self.release_entry(old, entry)
    }

    /// Gives back what an L2 entry refers to, unless `kept` refers to it as well.
    pub(super) fn release_entry(&mut self, entry: u64, kept: u64) -> Result<()> {
        let kept = match self.layout.mapping(kept, self.file.name())? {
            Mapping::Data { host, .. } => Some(host),
            Mapping::Zero { host, .. } => host,
            _ => None,
        };
        match self.layout.mapping(entry, self.file.name())? {
            Mapping::Data { host, .. } | Mapping::Zero { host: Some(host), .. } if Some(host) != kept => {
                self.release(host, self.layout.cluster());
            }
            Mapping::Compressed { host, len } => self.release(host, len),
            _ => {}
        }
        Ok(())
    }
}
