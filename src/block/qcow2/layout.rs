//! How offsets split into tables, and what the entries of tables mean.

use super::header::{EXTENDED_L2, EXTERNAL_DATA, Header, be64, corrupt};
use crate::block::Result;

/// Entry flag: the cluster's reference count is exactly 1, so it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
/// L2 entry flag: the cluster is stored compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// L2 entry flag of version 3: the cluster reads as zeroes.
pub(super) const ZERO: u64 = 1;
/// The host offset in L1 and standard L2 entries: bits 9 to 55.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Subclusters of a cluster with extended L2 entries.
pub(super) const SUBCLUSTERS: u32 = 32;
/// The bitmap of an extended entry whose subclusters all read as zeroes.
const ALL_ZERO: u64 = 0xffff_ffff << SUBCLUSTERS;

/// Sizes that never change while an image is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) version: u32,
    /// L2 entries have a second half: what each subcluster is.
    pub(super) extended: bool,
    /// Data lies in another file: its clusters have no counts, and may be at offset 0.
    pub(super) data_file: bool,
}

/// An L2 entry. The bitmap is 0 unless entries are extended (qcow2.rst, "Extended L2 Entries"): bit
/// `n` says that subcluster `n` holds data, bit `32 + n` that it reads as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry {
    pub(super) word: u64,
    pub(super) bitmap: u64,
}

impl Entry {
    /// Nothing is stored.
    pub(super) const EMPTY: Entry = Entry { word: 0, bitmap: 0 };

    /// A word alone.
    pub(super) fn of(word: u64) -> Entry {
        Entry { word, bitmap: 0 }
    }

    /// This entry with the subclusters of `touched` (bits 0 to 31) holding data at `word`.
    pub(super) fn filled(self, word: u64, touched: u64) -> Entry {
        Entry { word, bitmap: (self.bitmap & !(touched << SUBCLUSTERS)) | touched }
    }

    /// This entry with the subclusters of `touched` reading as zeroes.
    pub(super) fn zeroed(self, touched: u64) -> Entry {
        Entry { word: self.word, bitmap: (self.bitmap & !touched) | touched << SUBCLUSTERS }
    }
}

/// What an L2 entry says of its guest cluster, or of one subcluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The backing file shows; a host cluster may be kept for it.
    Unallocated {
        host: Option<u64>,
        copied: bool,
    },
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

/// Where `step` clusters further on a host cluster must be to follow.
fn next_host(host: Option<u64>, step: u64) -> Option<u64> {
    host.map(|h| h + step)
}

impl Mapping {
    /// Not stored at all.
    pub(super) const NONE: Mapping = Mapping::Unallocated { host: None, copied: false };

    /// The host cluster that can be written in place, if there is one.
    pub(super) fn writable(self) -> Option<u64> {
        match self {
            Mapping::Data { host, copied: true } => Some(host),
            _ => None,
        }
    }

    /// Whether `next`, `step` bytes of whole clusters behind, goes on in the same way.
    pub(super) fn goes_on(self, next: Mapping, step: u64) -> bool {
        match (self, next) {
            (Mapping::Unallocated { host: a, copied: c }, Mapping::Unallocated { host: b, copied: d })
            | (Mapping::Zero { host: a, copied: c }, Mapping::Zero { host: b, copied: d }) => {
                next_host(a, step) == b && (a.is_none() || c == d)
            }
            (Mapping::Data { host: a, copied: c }, Mapping::Data { host: b, copied: d }) => c == d && a + step == b,
            _ => false,
        }
    }
}

/// What an L2 entry counts a reference to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refers {
    Nothing,
    /// One host cluster.
    Cluster(u64),
    /// The clusters that these bytes touch.
    Packed(u64, u64),
}

impl Refers {
    /// First offset and bytes.
    pub(super) fn range(self, cluster: u64) -> Option<(u64, u64)> {
        match self {
            Refers::Nothing => None,
            Refers::Cluster(host) => Some((host, cluster)),
            Refers::Packed(host, len) => Some((host, len)),
        }
    }
}

impl Layout {
    pub(super) fn of(header: &Header) -> Layout {
        Layout {
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            version: header.version,
            extended: header.incompatible & EXTENDED_L2 != 0,
            data_file: header.incompatible & EXTERNAL_DATA != 0,
        }
    }

    /// Bytes in a cluster.
    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub(super) fn l2_entries(self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    /// Bytes of an L2 entry.
    pub(super) fn entry_bytes(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes that are allocated and zeroed alone: a subcluster, or a cluster if there are none.
    pub(super) fn grain(self) -> u64 {
        if self.extended { self.cluster() / u64::from(SUBCLUSTERS) } else { self.cluster() }
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

    /// The subcluster that holds a guest offset; 0 without subclusters.
    pub(super) fn sub(self, guest: u64) -> u32 {
        if self.extended { (self.within(guest) / self.grain()) as u32 } else { 0 }
    }

    /// The subclusters that `start..end` of a guest cluster touches, as bits 0 to 31 of a bitmap.
    pub(super) fn touched(self, start: u64, end: u64) -> u64 {
        if !self.extended || start >= end {
            return 0;
        }
        let (first, last) = (start / self.grain(), (end.min(self.cluster()) - 1) / self.grain());
        (0xffff_ffff_u64 >> (31 - (last - first).min(31))) << first
    }

    /// The entry of a cluster at `host` that belongs to the active image alone and is data.
    pub(super) fn own(self, host: u64) -> Entry {
        Entry { word: host | COPIED, bitmap: if self.extended { 0xffff_ffff } else { 0 } }
    }

    /// The entry of a cluster that reads as zeroes, with the host cluster that is kept for it.
    pub(super) fn zero_entry(self, kept: Option<u64>) -> Entry {
        let word = kept.map_or(0, |host| host | COPIED);
        if self.extended { Entry { word, bitmap: ALL_ZERO } } else { Entry::of(word | ZERO) }
    }

    /// The entry at an index of an L2 table.
    pub(super) fn entry_at(self, table: &[u8], index: usize) -> Entry {
        let at = index * self.entry_bytes() as usize;
        Entry { word: be64(table, at), bitmap: if self.extended { be64(table, at + 8) } else { 0 } }
    }

    /// Changes the entry at an index of an L2 table.
    pub(super) fn put_entry(self, table: &mut [u8], index: usize, entry: Entry) {
        let at = index * self.entry_bytes() as usize;
        let mut put = |at: usize, value: u64| {
            if let Some(bytes) = table.get_mut(at..at + 8) {
                bytes.copy_from_slice(&value.to_be_bytes());
            }
        };
        put(at, entry.word);
        if self.extended {
            put(at + 8, entry.bitmap);
        }
    }

    /// What is stored packed: host offset and length.
    fn packed(self, word: u64, name: &str) -> Result<(u64, u64)> {
        // qcow2.rst, "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8).
        let x = 62 - (self.cluster_bits - 8);
        let host = word & ((1 << x) - 1);
        let sectors = (word & (COMPRESSED - 1)) >> x;
        if host >= 1 << 56 || self.data_file {
            return Err(corrupt(name, format!("L2 entry {word:#x}")));
        }
        Ok((host, (sectors + 1) * 512 - (host & 511)))
    }

    /// The host cluster in an entry that is not packed, if it has one.
    fn host(self, word: u64, name: &str) -> Result<Option<u64>> {
        let host = word & OFFSET;
        if self.within(host) != 0 {
            return Err(corrupt(name, format!("L2 entry {word:#x} is not on a cluster")));
        }
        // Offset 0 is a place in a data file only (qcow2.rst, "Standard Cluster Descriptor").
        Ok((host != 0 || (self.data_file && word & COPIED != 0)).then_some(host))
    }

    /// What an entry counts a reference to.
    pub(super) fn refers(self, entry: Entry, name: &str) -> Result<Refers> {
        if entry.word & COMPRESSED != 0 {
            return self.packed(entry.word, name).map(|(host, len)| Refers::Packed(host, len));
        }
        match self.host(entry.word, name)? {
            Some(host) if !self.data_file => Ok(Refers::Cluster(host)),
            _ => Ok(Refers::Nothing),
        }
    }

    /// Decodes an L2 entry for one of its subclusters; a host offset that is not on a cluster is
    /// damage.
    pub(super) fn mapping(self, entry: Entry, sub: u32, name: &str) -> Result<Mapping> {
        if entry.word & COMPRESSED != 0 {
            return self.packed(entry.word, name).map(|(host, len)| Mapping::Compressed { host, len });
        }
        let (place, copied) = (self.host(entry.word, name)?, entry.word & COPIED != 0);
        let bad = || Err(corrupt(name, format!("L2 entry {:#x} {:#x}", entry.word, entry.bitmap)));
        let (data, zero) = match self.extended {
            true => (entry.bitmap >> sub & 1 != 0, entry.bitmap >> (SUBCLUSTERS + sub) & 1 != 0),
            false => (place.is_some() && entry.word & ZERO == 0, entry.word & ZERO != 0),
        };
        match (data, zero, place) {
            (true, true, _) | (true, false, None) => bad(),
            (false, true, _) if self.version < 3 => bad(),
            (_, _, _) if self.extended && entry.word & ZERO != 0 => bad(),
            (true, false, Some(host)) => Ok(Mapping::Data { host, copied }),
            (false, true, host) => Ok(Mapping::Zero { host, copied }),
            (false, false, host) => Ok(Mapping::Unallocated { host, copied }),
        }
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

    fn layout(cluster_bits: u32, version: u32) -> Layout {
        Layout { cluster_bits, refcount_order: 4, version, extended: false, data_file: false }
    }

    #[test]
    fn compressed_entries_come_back() {
        for cluster_bits in 9..=21 {
            let layout = layout(cluster_bits, 3);
            for (host, len) in [(0x10_0000, 1), (0x10_01ff, 2), (0x10_0003, 500), (0x2000_0000, layout.cluster() - 1)] {
                let entry = Entry::of(layout.compressed_entry(host, len).unwrap());
                let Mapping::Compressed { host: h, len: l } = layout.mapping(entry, 0, "test").unwrap() else {
                    panic!("not compressed")
                };
                assert_eq!((h, layout.refers(entry, "test").unwrap()), (host, Refers::Packed(h, l)));
                assert!(l >= len && l < len + 512 && (h + l) % 512 == 0, "{cluster_bits} {host} {len} {l}");
            }
        }
    }

    #[test]
    fn entries_off_the_cluster_are_damage() {
        let layout = layout(16, 2);
        let decode = |word| layout.mapping(Entry::of(word), 0, "test");
        assert!(decode(0x1_0200).is_err());
        assert!(decode(0x1_0001).is_err());
        assert_eq!(decode(COPIED | 0x2_0000).unwrap(), Mapping::Data { host: 0x2_0000, copied: true });
        assert_eq!(Layout { refcount_order: 6, ..layout }.max_refcount(), u64::MAX);
        assert_eq!(Layout { refcount_order: 0, ..layout }.max_refcount(), 1);
    }

    #[test]
    fn subclusters_have_their_own_state() {
        let layout = Layout { extended: true, ..layout(16, 3) };
        assert_eq!((layout.grain(), layout.l2_entries()), (2048, 4096));
        assert_eq!(layout.touched(2048, 6144), 0b110);
        assert_eq!(layout.touched(2047, 6145), 0b1111);
        assert_eq!(layout.touched(0, 65536), 0xffff_ffff);
        assert_eq!(layout.touched(65535, 65536), 1 << 31);
        let entry = layout.zero_entry(None).filled(COPIED | 0x3_0000, 0b100);
        let decode = |entry, sub| layout.mapping(entry, sub, "test");
        assert_eq!(decode(entry, 2).unwrap(), Mapping::Data { host: 0x3_0000, copied: true });
        assert_eq!(decode(entry, 3).unwrap(), Mapping::Zero { host: Some(0x3_0000), copied: true });
        assert_eq!(decode(entry.zeroed(0b100), 2).unwrap(), Mapping::Zero { host: Some(0x3_0000), copied: true });
        assert_eq!(
            decode(Entry::of(0x3_0000), 0).unwrap(),
            Mapping::Unallocated { host: Some(0x3_0000), copied: false }
        );
        assert!(decode(Entry { word: 0, bitmap: 1 }, 0).is_err(), "data without a place");
        assert!(decode(Entry { word: 0x3_0000, bitmap: 1 | 1 << 32 }, 0).is_err(), "data and zero");
        assert!(decode(Entry { word: 0x3_0001, bitmap: 1 }, 0).is_err(), "the flag of plain entries");
        let mut table = [0; 64];
        layout.put_entry(&mut table, 2, entry);
        assert_eq!((layout.entry_at(&table, 2), layout.entry_at(&table, 1)), (entry, Entry::EMPTY));
    }

    #[test]
    fn data_files_begin_at_offset_0() {
        let layout = Layout { data_file: true, ..layout(16, 3) };
        assert_eq!(layout.mapping(Entry::of(COPIED), 0, "test").unwrap(), Mapping::Data { host: 0, copied: true });
        assert_eq!(layout.mapping(Entry::EMPTY, 0, "test").unwrap(), Mapping::NONE);
        assert_eq!(layout.refers(Entry::of(COPIED | 0x5_0000), "test").unwrap(), Refers::Nothing);
        assert!(layout.refers(Entry::of(COMPRESSED), "test").is_err());
    }
}
