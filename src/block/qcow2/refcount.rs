//! Reference counts of host clusters, and finding free ones (qcow2.rst, "Host cluster management").

use super::header::MAX_REFTABLE_BYTES;
use super::layout::{Entry, OFFSET};
use super::meta::{FlatTable, Meta};
use crate::block::{BlockError, Result};
use std::sync::Arc;

/// The count at `index` of a block; counts narrower than a byte start at the low bits.
pub(super) fn entry(block: &[u8], order: u32, index: u64) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block.get((index / per_byte) as usize).copied().unwrap_or(0);
        let shift = (index % per_byte) << order;
        return u64::from(byte) >> shift & ((1 << (1 << order)) - 1);
    }
    let size = 1usize << (order - 3);
    let at = index as usize * size;
    block.get(at..at + size).map_or(0, |bytes| bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// Sets the count at `index`; `value` fits.
pub(super) fn set_entry(block: &mut [u8], order: u32, index: u64, value: u64) {
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        let mask = (((1u32 << (1 << order)) - 1) as u8) << shift;
        if let Some(byte) = block.get_mut((index / per_byte) as usize) {
            *byte = *byte & !mask | (value as u8) << shift;
        }
        return;
    }
    let size = 1usize << (order - 3);
    let at = index as usize * size;
    if let Some(bytes) = block.get_mut(at..at + size) {
        bytes.copy_from_slice(&value.to_be_bytes()[8 - size..]);
    }
}

/// Host clusters that were just allocated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    /// Offset of the first.
    pub(super) host: u64,
    /// How many, one behind the other.
    pub(super) count: u64,
    /// They were never written and read as zeroes.
    pub(super) fresh: bool,
}

impl Meta {
    /// The host offset of the refcount block at an index of the table, if there is one.
    fn block_offset(&self, table_index: usize) -> Result<Option<u64>> {
        let entry = self.reftable.get(table_index);
        let offset = entry & OFFSET;
        if self.layout.within(offset) != 0 {
            return self.corrupt(format!("refcount table entry {table_index} {entry:#x} is not on a cluster"));
        }
        Ok((offset != 0).then_some(offset))
    }

    /// Brings a refcount block into the cache.
    fn load_block(&mut self, offset: u64) -> Result<()> {
        if self.blocks.get(offset).is_none() {
            self.room_for_block()?;
            let mut bytes = vec![0; self.layout.cluster() as usize];
            self.file.read(offset, &mut bytes)?;
            self.blocks.insert(offset, bytes, false);
        }
        Ok(())
    }

    /// The reference count of a host cluster.
    pub(super) fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let per_block = self.layout.block_entries();
        let Some(offset) = self.block_offset((cluster / per_block) as usize)? else { return Ok(0) };
        self.load_block(offset)?;
        let block = self.blocks.get(offset).unwrap_or_default();
        Ok(entry(block, self.layout.refcount_order, cluster % per_block))
    }

    /// The refcount block that the table has at `index`.
    pub(super) fn block(&mut self, index: u64) -> Result<Option<&[u8]>> {
        let Some(offset) = self.block_offset(index as usize)? else { return Ok(None) };
        self.load_block(offset)?;
        Ok(self.blocks.get(offset))
    }

    /// The host clusters with a count in the block that the table has at `index`, in order.
    pub(super) fn counted(&mut self, index: u64) -> Result<Vec<u64>> {
        /// Bytes looked at together: most of a block is zero.
        const STEP: usize = 8;
        let order = self.layout.refcount_order;
        let per_block = self.layout.block_entries();
        let Some(block) = self.block(index)? else { return Ok(Vec::new()) };
        let used = block.chunks(STEP).enumerate().filter(|(_, bytes)| bytes.iter().any(|&b| b != 0));
        let mut counted = Vec::new();
        for (step, bytes) in used {
            let entries = (STEP as u64 * 8) >> order;
            let first = index * per_block + step as u64 * entries;
            counted.extend((0..entries).filter(|&i| entry(bytes, order, i) != 0).map(|i| first + i));
        }
        Ok(counted)
    }

    /// Sets the reference count of a host cluster whose refcount block exists.
    pub(super) fn set_refcount(&mut self, cluster: u64, value: u64) -> Result<()> {
        if value > self.layout.max_refcount() {
            let what = format!(
                "{}: more than {} references to one cluster; delete snapshots or convert to larger refcount_bits",
                self.name(),
                self.layout.max_refcount()
            );
            return Err(BlockError::Invalid { what });
        }
        let per_block = self.layout.block_entries();
        let Some(offset) = self.block_offset((cluster / per_block) as usize)? else {
            return self.corrupt(format!("cluster {cluster:#x} is used but has no refcount block"));
        };
        self.load_block(offset)?;
        let (order, index) = (self.layout.refcount_order, cluster % per_block);
        let at = ((index << order) / 8) as usize;
        let size = ((1 << order) / 8).max(1);
        self.blocks.change(offset, at..at + size, |block| set_entry(block, order, index, value));
        if value == 0 {
            self.first_free = self.first_free.min(cluster);
            // Somebody may have written there.
            self.fresh_from = self.fresh_from.max((cluster + 1) << self.layout.cluster_bits);
        }
        Ok(())
    }

    /// Counts one reference more.
    pub(super) fn count_up(&mut self, cluster: u64) -> Result<()> {
        let count = self.refcount(cluster)?;
        self.set_refcount(cluster, count.saturating_add(1))
    }

    /// Gives back a reference that no table in the file names: allocated and never used.
    pub(super) fn undo(&mut self, host: u64, clusters: u64) -> Result<()> {
        let first = host >> self.layout.cluster_bits;
        for cluster in first..first + clusters {
            let count = self.refcount(cluster)?;
            self.set_refcount(cluster, count.saturating_sub(1))?;
            if count <= 1 && self.packing >> self.layout.cluster_bits == cluster {
                // Whoever gets the cluster next has it alone.
                self.packing = 0;
            }
        }
        Ok(())
    }

    /// Gives back references that tables in the file may still name: after the next commit.
    pub(super) fn release(&mut self, host: u64, len: u64) {
        let first = host >> self.layout.cluster_bits;
        let last = (host + len.max(1) - 1) >> self.layout.cluster_bits;
        self.waiting.extend(first..=last);
    }

    /// The end of a commit: nothing in the file names the waiting clusters any more, and no request
    /// uses them.
    pub(super) fn count_down(&mut self, mut waiting: Vec<u64>) -> Result<()> {
        waiting.sort_unstable();
        let bits = self.layout.cluster_bits;
        let mut free: Option<(u64, u64)> = None;
        for cluster in waiting {
            let count = self.refcount(cluster)?;
            if count == 0 {
                return self.corrupt(format!("cluster {:#x} was in use with a reference count of 0", cluster << bits));
            }
            self.set_refcount(cluster, count - 1)?;
            if count > 1 {
                continue;
            }
            let host = cluster << bits;
            self.l2.remove(host);
            self.l2_changes += 1;
            self.tables.remove(&host);
            if self.packing >> bits == cluster {
                self.packing = 0;
            }
            free = match free {
                Some((start, end)) if end == host => Some((start, host + (1 << bits))),
                Some((start, end)) => {
                    self.file.punch(start, end - start)?;
                    Some((host, host + (1 << bits)))
                }
                None => Some((host, host + (1 << bits))),
            };
        }
        match free {
            Some((start, end)) => self.file.punch(start, end - start),
            None => Ok(()),
        }
    }

    /// Sees to it that a refcount block covers a host cluster. A new block takes the first cluster
    /// of the range that it covers itself, which is free, since nothing there has a count.
    fn ensure_block(&mut self, cluster: u64) -> Result<()> {
        let per_block = self.layout.block_entries();
        let index = cluster / per_block;
        if index >= self.reftable.entries.len() as u64 {
            return self.grow_reftable(index + 1);
        }
        if self.block_offset(index as usize)?.is_none() {
            let own = index * per_block;
            let host = own << self.layout.cluster_bits;
            self.guard(host, self.layout.cluster())?;
            self.new_block(host, &[0])?;
            self.reftable.set(index as usize, host);
            self.tables.insert(host);
        }
        Ok(())
    }

    /// Puts a refcount block into the cache where the clusters `used` of its range count 1.
    fn new_block(&mut self, host: u64, used: &[u64]) -> Result<()> {
        self.room_for_block()?;
        let mut bytes = vec![0; self.layout.cluster() as usize];
        for &index in used {
            set_entry(&mut bytes, self.layout.refcount_order, index, 1);
        }
        self.blocks.insert(host, bytes, true);
        Ok(())
    }

    /// A longer refcount table. It and the blocks that count it stand behind all that was counted
    /// so far; the header names it when both are in the file.
    fn grow_reftable(&mut self, least: u64) -> Result<()> {
        let (bits, per_block) = (self.layout.cluster_bits, self.layout.block_entries());
        let old = self.reftable.entries.len() as u64;
        let start = old * per_block;
        let wanted = least.max(old + old / 2) + 1;
        let (mut new_blocks, mut table) = (1, 0);
        for _ in 0..64 {
            table = self.layout.clusters((wanted + new_blocks) * 8);
            let needed = (new_blocks + table).div_ceil(per_block).max(least.saturating_sub(old));
            if needed <= new_blocks {
                break;
            }
            new_blocks = needed;
        }
        if table << bits > MAX_REFTABLE_BYTES {
            let what = format!("{}: the image file cannot grow further with clusters of this size", self.name());
            return Err(BlockError::Invalid { what });
        }
        let own = new_blocks + table;
        self.guard(start << bits, own << bits)?;
        let mut entries = self.reftable.entries.clone();
        for i in 0..new_blocks {
            let host = (start + i) << bits;
            let used: Vec<u64> = (0..per_block).filter(|k| i * per_block + k < own).collect();
            self.new_block(host, &used)?;
            entries.push(host);
        }
        entries.resize(((table << bits) / 8) as usize, 0);
        self.write_blocks()?;
        let host = (start + new_blocks) << bits;
        let grown = FlatTable::new(entries);
        self.file.write(host, &grown.bytes(0..grown.entries.len()))?;
        self.file.flush()?;
        let (old_host, old_clusters) = (self.header.reftable_offset, self.header.reftable_clusters);
        (self.header.reftable_offset, self.header.reftable_clusters) = (host, table as u32);
        if let Err(e) = self.write_header() {
            (self.header.reftable_offset, self.header.reftable_clusters) = (old_host, old_clusters);
            return Err(e);
        }
        self.reftable = grown;
        self.index_tables();
        self.file.flush()?;
        self.release(old_host, u64::from(old_clusters) << bits);
        Ok(())
    }

    /// Allocates 1 to `wanted` neighbouring host clusters, each with a count of 1.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Space> {
        let mut cluster = self.first_free;
        loop {
            self.ensure_block(cluster)?;
            if self.refcount(cluster)? == 0 {
                break;
            }
            cluster += 1;
        }
        let mut count = 1;
        while count < wanted {
            let next = cluster + count;
            // Crossing into a range without a block would put that block in the way.
            if next.is_multiple_of(self.layout.block_entries()) || self.refcount(next)? != 0 {
                break;
            }
            count += 1;
        }
        self.first_free = cluster + count;
        self.take(cluster, count)
    }

    /// Allocates exactly `wanted` neighbouring clusters: for tables that must not be in pieces.
    pub(super) fn allocate_exactly(&mut self, wanted: u64) -> Result<u64> {
        self.allocate_from(self.first_free, wanted)
    }

    /// As [`allocate_exactly`](Self::allocate_exactly), at `from` (a cluster index) or behind.
    pub(super) fn allocate_from(&mut self, from: u64, wanted: u64) -> Result<u64> {
        let (mut start, mut count) = (from, 0);
        while count < wanted {
            let cluster = start + count;
            self.ensure_block(cluster)?;
            if self.refcount(cluster)? == 0 {
                count += 1;
            } else {
                (start, count) = (cluster + 1, 0);
            }
        }
        if start == self.first_free {
            self.first_free = start + wanted;
        }
        self.take(start, wanted).map(|space| space.host)
    }

    fn take(&mut self, cluster: u64, count: u64) -> Result<Space> {
        let host = cluster << self.layout.cluster_bits;
        if (cluster + count) << self.layout.cluster_bits >= 1 << 56 {
            return Err(BlockError::Invalid { what: format!("{}: the image file is too large", self.name()) });
        }
        self.guard(host, count << self.layout.cluster_bits)?;
        for index in cluster..cluster + count {
            self.set_refcount(index, 1)?;
        }
        let fresh = host >= self.fresh_from;
        self.fresh_from = self.fresh_from.max((cluster + count) << self.layout.cluster_bits);
        Ok(Space { host, count, fresh })
    }

    /// Space for a packed cluster of `len` bytes, less than a cluster: behind the last one if it
    /// fits there, also across the border if the next cluster is free.
    pub(super) fn allocate_packed(&mut self, len: u64) -> Result<u64> {
        let (bits, size) = (self.layout.cluster_bits, self.layout.cluster());
        let at = self.packing;
        let free = size - self.layout.within(at);
        if at != 0 && free < size && len <= free && self.refcount(at >> bits)? < self.layout.max_refcount() {
            self.count_up(at >> bits)?;
            self.packing = if len == free { 0 } else { at + len };
            return Ok(at);
        }
        let host = self.allocate(1)?.host;
        if self.file.len() < host + size {
            // Readers take whole sectors, also behind the last one. Setting the file's length
            // instead could cut off what another request is writing behind.
            self.file.write(host + size - 512, &[0; 512])?;
        }
        let follows = at != 0 && free < size && host == self.layout.floor(at) + size;
        if follows && self.refcount(at >> bits)? < self.layout.max_refcount() {
            self.count_up(at >> bits)?;
            self.packing = at + len;
            return Ok(at);
        }
        self.packing = host + len;
        Ok(host)
    }

    /// All entries of an L1 table that stands elsewhere in the file.
    pub(super) fn foreign_l1(&self, offset: u64, entries: u32) -> Result<Vec<u64>> {
        Ok(FlatTable::read(&*self.file, offset, entries as usize)?.entries)
    }

    /// An L2 table, through the cache: entries to be decoded one by one.
    pub(super) fn l2_table(&mut self, offset: u64) -> Result<Arc<Vec<u8>>> {
        self.load_l2(offset)?;
        Ok(self.l2.table(offset).unwrap_or_default())
    }

    /// The entries of an L2 table, through the cache.
    pub(super) fn l2_entries(&mut self, offset: u64) -> Result<Vec<Entry>> {
        self.load_l2(offset)?;
        let bytes = self.l2.get(offset).unwrap_or_default();
        Ok((0..self.layout.l2_entries() as usize).map(|i| self.layout.entry_at(bytes, i)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let max = u64::MAX >> (64 - (1u32 << order));
            set_entry(&mut block, order, 3, max);
            set_entry(&mut block, order, 4, 1);
            let all: Vec<u64> = (2..6).map(|i| entry(&block, order, i)).collect();
            assert_eq!(all, [0, max, 1, 0], "order {order}");
            set_entry(&mut block, order, 3, 0);
            assert_eq!((entry(&block, order, 3), entry(&block, order, 4)), (0, 1), "order {order}");
        }
        let mut block = vec![0; 512];
        set_entry(&mut block, 4, 1, 0x1234);
        assert_eq!(block[..4], [0, 0, 0x12, 0x34], "big-endian");
        set_entry(&mut block, 0, 9, 1);
        assert_eq!(block[1], 2, "low bits first");
    }
}
