//! Tables in memory: a bounded number, the least recently used ones leave first.

use std::collections::HashMap;

struct Table {
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
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

    /// Drops the older half of the clean tables.
    pub(super) fn evict(&mut self) {
        let mut ages: Vec<u64> = self.tables.values().filter(|t| !t.dirty).map(|t| t.used).collect();
        ages.sort_unstable();
        if let Some(&middle) = ages.get(ages.len() / 2) {
            self.tables.retain(|_, t| t.dirty || t.used > middle);
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

    /// For changing: the table counts as dirty from now on.
    pub(super) fn get_mut(&mut self, offset: u64) -> Option<&mut [u8]> {
        self.tick += 1;
        let tick = self.tick;
        self.tables.get_mut(&offset).map(|table| {
            table.used = tick;
            table.dirty = true;
            &mut table.bytes[..]
        })
    }

    pub(super) fn insert(&mut self, offset: u64, bytes: Vec<u8>, dirty: bool) {
        self.tick += 1;
        self.tables.insert(offset, Table { bytes, dirty, used: self.tick });
    }

    /// Forgets a table whose cluster is no longer one.
    pub(super) fn remove(&mut self, offset: u64) {
        self.tables.remove(&offset);
    }

    pub(super) fn any_dirty(&self) -> bool {
        self.tables.values().any(|t| t.dirty)
    }

    /// The dirty tables in the order of the file.
    pub(super) fn dirty(&self) -> Vec<u64> {
        let mut offsets: Vec<u64> = self.tables.iter().filter(|(_, t)| t.dirty).map(|(&o, _)| o).collect();
        offsets.sort_unstable();
        offsets
    }

    pub(super) fn cleaned(&mut self, offset: u64) {
        if let Some(table) = self.tables.get_mut(&offset) {
            table.dirty = false;
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
        assert_eq!(cache.dirty(), [0]);
    }
}
