//! Tables in memory: a bounded number, the least recently used ones leave first.

use super::layout::{Entry, Layout};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Changes reach the file in these pieces, which suit all devices.
const SECTOR: usize = 4096;

struct Table {
    /// Shared while a copy is on its way to the file.
    bytes: Arc<Vec<u8>>,
    /// The part that the file has not.
    dirty: Option<Range<usize>>,
    used: u64,
    /// When it was changed last.
    changed: u64,
}

/// The changed part of a table as it was at one moment.
pub(super) struct Copy {
    table: u64,
    bytes: Arc<Vec<u8>>,
    part: Range<usize>,
    changed: u64,
}

impl Copy {
    /// Host offset and bytes.
    pub(super) fn part(&self) -> (u64, &[u8]) {
        (self.table + self.part.start as u64, self.bytes.get(self.part.clone()).unwrap_or_default())
    }
}

/// Tables of one cluster each, by host offset.
pub(super) struct Cache {
    tables: HashMap<u64, Table>,
    limit: usize,
    tick: u64,
}

impl Cache {
    /// At most `limit` tables.
    pub(super) fn new(limit: u64) -> Cache {
        Cache { tables: HashMap::new(), limit: usize::try_from(limit).unwrap_or(usize::MAX), tick: 0 }
    }

    /// Whether the next [`insert`](Self::insert) needs room.
    pub(super) fn full(&self) -> bool {
        self.tables.len() >= self.limit
    }

    /// Whether too few tables are clean for [`evict`](Self::evict) to bring much.
    pub(super) fn mostly_dirty(&self) -> bool {
        self.tables.values().filter(|t| t.dirty.is_none()).count() < self.limit.div_ceil(4)
    }

    /// Drops the older half of the clean tables.
    pub(super) fn evict(&mut self) {
        let mut ages: Vec<u64> = self.tables.values().filter(|t| t.dirty.is_none()).map(|t| t.used).collect();
        ages.sort_unstable();
        if let Some(&middle) = ages.get(ages.len() / 2) {
            self.tables.retain(|_, t| t.dirty.is_some() || t.used > middle);
        }
    }

    pub(super) fn get(&mut self, offset: u64) -> Option<&[u8]> {
        self.tick += 1;
        let tick = self.tick;
        self.tables.get_mut(&offset).map(|table| {
            table.used = tick;
            &table.bytes[..]
        })
    }

    /// A table as it is now.
    pub(super) fn table(&mut self, offset: u64) -> Option<Arc<Vec<u8>>> {
        self.get(offset)?;
        self.tables.get(&offset).map(|table| table.bytes.clone())
    }

    /// Changes a part of a table that is here: it counts as dirty from now on.
    pub(super) fn change(&mut self, offset: u64, part: Range<usize>, change: impl FnOnce(&mut [u8])) {
        self.tick += 1;
        let Some(table) = self.tables.get_mut(&offset) else { return };
        let whole = part.start / SECTOR * SECTOR..part.end.next_multiple_of(SECTOR).min(table.bytes.len());
        let before = table.dirty.take().unwrap_or_else(|| whole.clone());
        table.dirty = Some(before.start.min(whole.start)..before.end.max(whole.end));
        (table.used, table.changed) = (self.tick, self.tick);
        let bytes: &mut Vec<u8> = Arc::make_mut(&mut table.bytes);
        change(bytes);
    }

    /// Changes an entry of an L2 table that is here.
    pub(super) fn put_entry(&mut self, offset: u64, layout: Layout, index: usize, entry: Entry) {
        let size = layout.entry_bytes() as usize;
        self.change(offset, index * size..(index + 1) * size, |table| layout.put_entry(table, index, entry));
    }

    pub(super) fn insert(&mut self, offset: u64, bytes: Vec<u8>, dirty: bool) {
        self.tick += 1;
        let dirty = dirty.then_some(0..bytes.len());
        self.tables.insert(offset, Table { bytes: Arc::new(bytes), dirty, used: self.tick, changed: self.tick });
    }

    /// Forgets a table whose cluster is no longer one.
    pub(super) fn remove(&mut self, offset: u64) {
        self.tables.remove(&offset);
    }

    /// Forgets all tables.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
    }

    pub(super) fn any_dirty(&self) -> bool {
        self.tables.values().any(|t| t.dirty.is_some())
    }

    /// What the file has not, as it is now and in the order of the file.
    pub(super) fn copies(&self) -> Vec<Copy> {
        let copy = |(&table, t): (&u64, &Table)| {
            let part = t.dirty.clone()?;
            Some(Copy { table, bytes: t.bytes.clone(), part, changed: t.changed })
        };
        let mut copies: Vec<Copy> = self.tables.iter().filter_map(copy).collect();
        copies.sort_unstable_by_key(|c| c.table);
        copies
    }

    /// The file has this copy now: the table is clean unless it was changed meanwhile.
    pub(super) fn stored(&mut self, copy: &Copy) {
        if let Some(table) = self.tables.get_mut(&copy.table).filter(|t| t.changed == copy.changed) {
            table.dirty = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_tables_stay() {
        let mut cache = Cache::new(16);
        for i in 0..16 {
            cache.insert(i, vec![i as u8], i == 0);
        }
        assert!(cache.full());
        assert!(cache.get(1).is_some(), "now the youngest");
        cache.evict();
        assert!(!cache.full());
        assert_eq!(cache.get(0), Some(&[0][..]));
        assert_eq!(cache.get(1), Some(&[1][..]));
        assert_eq!(cache.get(2), None);
        assert_eq!(cache.copies().iter().map(|c| c.part()).collect::<Vec<_>>(), [(0, &[0][..])]);
    }

    #[test]
    fn copies_are_of_their_moment() {
        let mut cache = Cache::new(4);
        cache.insert(65536, vec![0; 65536], false);
        assert!(!cache.any_dirty());
        cache.change(65536, 9000..9008, |t| t[9000] = 1);
        let copies = cache.copies();
        cache.change(65536, 30000..30001, |t| t[30000] = 2);
        let (at, bytes) = copies[0].part();
        assert_eq!((at, bytes.len(), bytes[9000 - 8192]), (65536 + 8192, 4096, 1));
        cache.stored(&copies[0]);
        assert!(cache.any_dirty(), "changed since");
        let copies = cache.copies();
        assert_eq!(copies[0].part().1.len(), 32768 - 8192);
        cache.stored(&copies[0]);
        assert!(!cache.any_dirty());
    }
}
