//! How offsets split into tables, and what the entries of tables mean.

use super::header::{Header, corrupt};
use crate::block::Result;

/// Entry flag: the cluster's reference count is exactly 1, so it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
/// L2 entry flag: the cluster is stored compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// L2 entry flag of version 3: the cluster reads as zeroes.
pub(super) const ZERO: u64 = 1;
/// The host offset in L1 and standard L2 entries: bits 9 to 55.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Sizes that never change while an image is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) version: u32,
}

/// What an L2 entry says of its guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    Unallocated,
    /// Reads as zeroes; a host cluster may be kept for it.
    Zero {
        host: Option<u64>,
        copied: bool,
    },
    Data {
        host: u64,
        copied: bool,
    },
    /// `len` bytes at `host` hold the packed cluster, and something behind it perhaps.
    Compressed {
        host: u64,
        len: u64,
    },
}

impl Mapping {
    /// The host cluster that can be written in place, if there is one.
    pub(super) fn writable(self) -> Option<u64> {
        match self {
            Mapping::Data { host, copied: true } => Some(host),
            _ => None,
        }
    }
}

impl Layout {
    pub(super) fn of(header: &Header) -> Layout {
        Layout { cluster_bits: header.cluster_bits, refcount_order: header.refcount_order, version: header.version }
    }

    /// Bytes in a cluster.
    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster() / 8
    }

    /// Guest bytes that one L1 entry covers.
    pub(super) fn per_l1(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Counts in a refcount block.
    pub(super) fn block_entries(self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// The highest reference count.
    pub(super) fn max_refcount(self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    pub(super) fn l1_index(self, guest: u64) -> usize {
        (guest / self.per_l1()) as usize
    }

    pub(super) fn l2_index(self, guest: u64) -> usize {
        ((guest >> self.cluster_bits) % self.l2_entries()) as usize
    }

    /// The offset within its cluster.
    pub(super) fn within(self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }

    pub(super) fn floor(self, offset: u64) -> u64 {
        offset & !(self.cluster() - 1)
    }

    /// Clusters that `bytes` take.
    pub(super) fn clusters(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }

    /// Decodes an L2 entry; a host offset that is not on a cluster is damage.
    pub(super) fn mapping(self, entry: u64, name: &str) -> Result<Mapping> {
        if entry & COMPRESSED != 0 {
            // qcow2.rst, "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8).
            let x = 62 - (self.cluster_bits - 8);
            let host = entry & ((1 << x) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> x;
            if host >= 1 << 56 {
                return Err(corrupt(name, format!("L2 entry {entry:#x}")));
            }
            return Ok(Mapping::Compressed { host, len: (sectors + 1) * 512 - (host & 511) });
        }
        let (host, copied) = (entry & OFFSET, entry & COPIED != 0);
        if self.within(host) != 0 {
            return Err(corrupt(name, format!("L2 entry {entry:#x} is not on a cluster")));
        }
        if entry & ZERO != 0 {
            if self.version < 3 {
                return Err(corrupt(name, format!("L2 entry {entry:#x}: version 2 has no zero clusters")));
            }
            return Ok(Mapping::Zero { host: (host != 0).then_some(host), copied });
        }
        Ok(if host == 0 { Mapping::Unallocated } else { Mapping::Data { host, copied } })
    }

    /// The L2 entry for a packed cluster, or none if the offset is too large for one.
    pub(super) fn compressed_entry(self, host: u64, len: u64) -> Option<u64> {
        let x = 62 - (self.cluster_bits - 8);
        let sectors = (host + len).div_ceil(512) - host / 512 - 1;
        (host < 1 << x.min(56)).then_some(COMPRESSED | sectors << x | host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_entries_come_back() {
        for cluster_bits in 9..=21 {
            let layout = Layout { cluster_bits, refcount_order: 4, version: 3 };
            for (host, len) in [(0x10_0000, 1), (0x10_01ff, 2), (0x10_0003, 500), (0x2000_0000, layout.cluster() - 1)] {
                let entry = layout.compressed_entry(host, len).unwrap();
                let Mapping::Compressed { host: h, len: l } = layout.mapping(entry, "test").unwrap() else {
                    panic!("not compressed")
                };
                assert_eq!(h, host);
                assert!(l >= len && l < len + 512 && (h + l) % 512 == 0, "{cluster_bits} {host} {len} {l}");
            }
        }
    }

    #[test]
    fn entries_off_the_cluster_are_damage() {
        let layout = Layout { cluster_bits: 16, refcount_order: 4, version: 2 };
        assert!(layout.mapping(0x1_0200, "test").is_err());
        assert!(layout.mapping(0x1_0001, "test").is_err());
        assert_eq!(layout.mapping(COPIED | 0x2_0000, "test").unwrap(), Mapping::Data { host: 0x2_0000, copied: true });
        assert_eq!(Layout { refcount_order: 6, ..layout }.max_refcount(), u64::MAX);
        assert_eq!(Layout { refcount_order: 0, ..layout }.max_refcount(), 1);
    }
}
