//! How much memory the tables of an image may take: `l2-cache-size` and its kin.

use crate::block::{BlockError, Result};

/// Limits in bytes, as QEMU's options of the same names (QEMU: docs/qcow2-cache.txt). What is not
/// given follows: 32 MiB for L2 tables, which cover 256 GiB of disk with clusters of 64 KiB, and
/// 256 KiB for reference counts. Memory is taken as tables are used. Four tables of each kind are
/// always allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableCaches {
    /// `l2-cache-size`: L2 tables.
    pub l2: Option<u64>,
    /// `refcount-cache-size`: refcount blocks.
    pub refcounts: Option<u64>,
    /// `cache-size`: both together.
    pub both: Option<u64>,
}

/// L2 tables if nothing is said.
const L2_DEFAULT: u64 = 32 << 20;
/// Refcount blocks if nothing is said.
const REFCOUNTS_DEFAULT: u64 = 256 << 10;
/// Fewer tables make one request throw out what the next one needs.
const LEAST_TABLES: u64 = 4;

impl TableCaches {
    /// Whether the three sizes fit together.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(BlockError::Invalid { what: what.to_string() });
        let Some(both) = self.both else { return Ok(()) };
        if self.l2.is_some() && self.refcounts.is_some() {
            return wrong("cache-size, l2-cache-size and refcount-cache-size: only two of them can be set");
        }
        if self.l2.is_some_and(|l2| l2 > both) {
            return wrong("l2-cache-size may not be more than cache-size");
        }
        if self.refcounts.is_some_and(|refcounts| refcounts > both) {
            return wrong("refcount-cache-size may not be more than cache-size");
        }
        Ok(())
    }

    /// Bytes for L2 tables and refcount blocks of an image with these clusters, whose L2 tables
    /// take `all_l2` bytes together.
    pub(super) fn limits(&self, cluster: u64, all_l2: u64) -> (u64, u64) {
        let least = LEAST_TABLES * cluster;
        let (l2, refcounts) = match (self.l2, self.refcounts, self.both) {
            (Some(l2), Some(refcounts), _) => (l2, refcounts),
            (Some(l2), None, Some(both)) => (l2, both - l2.min(both)),
            (None, Some(refcounts), Some(both)) => (both - refcounts.min(both), refcounts),
            // L2 tables first, but never without a few counts.
            (None, None, Some(both)) => {
                let l2 = all_l2.max(least).min(both.saturating_sub(least));
                (l2, both - l2.min(both))
            }
            (l2, refcounts, None) => (l2.unwrap_or(L2_DEFAULT), refcounts.unwrap_or(REFCOUNTS_DEFAULT)),
        };
        (l2.max(least), refcounts.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_each_other() {
        const K: u64 = 1 << 10;
        const M: u64 = 1 << 20;
        let limits = |l2, refcounts, both| TableCaches { l2, refcounts, both }.limits(64 * K, 100 * M);
        assert_eq!(limits(None, None, None), (32 * M, 256 * K));
        assert_eq!(limits(Some(M), None, None), (M, 256 * K));
        assert_eq!(limits(Some(M), None, Some(3 * M)), (M, 2 * M));
        assert_eq!(limits(None, Some(M), Some(3 * M)), (2 * M, M));
        assert_eq!(limits(None, None, Some(3 * M)), (3 * M - 256 * K, 256 * K));
        assert_eq!(limits(None, None, Some(200 * M)), (100 * M, 100 * M));
        assert_eq!(limits(Some(0), Some(0), None), (256 * K, 256 * K));
        assert_eq!(TableCaches::default().limits(2 * M, M), (32 * M, 8 * M), "four tables at least");
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |l2, refcounts, both| TableCaches { l2, refcounts, both }.check();
        check(Some(1), Some(1), None).unwrap();
        check(Some(1), None, Some(1)).unwrap();
        assert!(check(Some(1), Some(1), Some(3)).is_err());
        assert!(check(Some(2), None, Some(1)).is_err());
        assert!(check(None, Some(2), Some(1)).is_err());
    }
}
