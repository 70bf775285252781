//! The header and its extensions (qcow2.rst, "Header" and "Header extensions").

use super::layout::Layout;
use super::options::Compression;
use crate::block::{BlockError, Result, Storage};

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;
/// Header length of version 2, and the shortest of version 3.
const V2_LENGTH: u32 = 72;
const V3_LENGTH: u32 = 104;
/// With the compression type.
const FULL_LENGTH: u32 = 112;

/// Incompatible feature: reference counts may be wrong.
pub(super) const DIRTY: u64 = 1 << 0;
/// Incompatible feature: some structure is damaged, writing forbidden.
pub(super) const CORRUPT: u64 = 1 << 1;
pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature: reference counts may be left behind.
pub(super) const LAZY_REFCOUNTS: u64 = 1 << 0;

/// Autoclear feature: the bitmaps fit to the content.
pub(super) const BITMAPS_FIT: u64 = 1 << 0;
/// Autoclear feature: the data file alone reads as the disk.
pub(super) const DATA_FILE_RAW: u64 = 1 << 1;

const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_DATA_FILE: u32 = 0x4441_5441;
/// Subclusters are at least sectors (qcow2.rst, "incompatible_features", bit 4).
pub(super) const LEAST_EXTENDED_BITS: u32 = 14;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;

/// Tables larger than these are refused: nothing real is near, and memory stays bounded.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
/// qcow2.rst: the backing file name has at most 1023 bytes.
const MAX_BACKING_NAME: u32 = 1023;

/// The header, host byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_size: u32,
    pub(super) l1_offset: u64,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) refcount_order: u32,
    pub(super) compression: Compression,
    pub(super) backing_file: Option<String>,
    /// Type and content, all but the end mark, in the file's order.
    pub(super) extensions: Vec<(u32, Vec<u8>)>,
}

/// The big-endian number at `at`; 0 beyond the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// The big-endian number at `at`; 0 beyond the end.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl Header {
    /// A new image without any table.
    pub(super) fn new(version: u32, cluster_bits: u32, refcount_order: u32, compression: Compression) -> Header {
        Header {
            version,
            cluster_bits,
            size: 0,
            l1_size: 0,
            l1_offset: 0,
            reftable_offset: 0,
            reftable_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: if compression == Compression::Zlib { 0 } else { COMPRESSION_TYPE },
            compatible: 0,
            autoclear: 0,
            refcount_order,
            compression,
            backing_file: None,
            extensions: Vec::new(),
        }
    }

    /// Reads and checks everything that stands in the first cluster.
    pub(super) fn read(file: &dyn Storage) -> Result<Header> {
        let name = file.name().to_string();
        let mut fixed = [0; FULL_LENGTH as usize];
        file.read(0, &mut fixed)?;
        if be32(&fixed, 0) != MAGIC {
            return Err(BlockError::WrongFormat { name, format: "qcow2" });
        }
        let version = be32(&fixed, 4);
        if version != 2 && version != 3 {
            let what = format!("qcow2 version {version} is not supported; there are 2 and 3");
            return Err(BlockError::Unsupported { name, what });
        }
        if be32(&fixed, 32) != 0 {
            let what = "encrypted images are not supported; decrypt it with qemu-img convert".to_string();
            return Err(BlockError::Unsupported { name, what });
        }
        let cluster_bits = be32(&fixed, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt(&name, format!("cluster_bits {cluster_bits}; possible are 9 to 21")));
        }
        let length = if version == 2 { V2_LENGTH } else { be32(&fixed, 100) };
        if u64::from(length) > 1 << cluster_bits || (version == 3 && length < V3_LENGTH) {
            return Err(corrupt(&name, format!("header length {length}")));
        }
        let mut cluster = vec![0; 1 << cluster_bits];
        file.read(0, &mut cluster)?;
        // What the header does not reach to has its default (qcow2.rst, "Additional fields").
        let field64 = |at: usize| if (at as u32) < length { be64(&cluster, at) } else { 0 };
        let mut header = Header {
            version,
            cluster_bits,
            size: be64(&cluster, 24),
            l1_size: be32(&cluster, 36),
            l1_offset: be64(&cluster, 40),
            reftable_offset: be64(&cluster, 48),
            reftable_clusters: be32(&cluster, 56),
            snapshots: be32(&cluster, 60),
            snapshots_offset: be64(&cluster, 64),
            incompatible: field64(72),
            compatible: field64(80),
            autoclear: field64(88),
            refcount_order: if version == 2 { 4 } else { be32(&cluster, 96) },
            compression: Compression::Zlib,
            backing_file: None,
            extensions: Vec::new(),
        };
        header.read_extensions(&cluster, length as usize, &name)?;
        header.read_backing_name(&cluster, &name)?;
        header.check_features(&cluster, length, &name)?;
        header.check_tables(&name)?;
        Ok(header)
    }

    fn read_extensions(&mut self, cluster: &[u8], length: usize, name: &str) -> Result<()> {
        let backing = be64(cluster, 8);
        let end = if backing == 0 { cluster.len() } else { (backing as usize).min(cluster.len()) };
        let mut at = length.next_multiple_of(8);
        while at + 8 <= end {
            let (kind, len) = (be32(cluster, at), be32(cluster, at + 4) as usize);
            if kind == 0 {
                break;
            }
            let content = at.checked_add(8).and_then(|start| Some(start..start.checked_add(len)?));
            let Some(content) = content.filter(|c| c.end <= end).and_then(|c| cluster.get(c)) else {
                return Err(corrupt(name, format!("header extension {kind:#x} of {len} bytes leaves the header")));
            };
            self.extensions.push((kind, content.to_vec()));
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    fn read_backing_name(&mut self, cluster: &[u8], name: &str) -> Result<()> {
        let (offset, len) = (be64(cluster, 8), be32(cluster, 16));
        if offset == 0 {
            return Ok(());
        }
        let end = offset.checked_add(u64::from(len));
        let bytes = end.filter(|&e| len <= MAX_BACKING_NAME && e <= cluster.len() as u64);
        let bytes = bytes.and_then(|end| cluster.get(offset as usize..end as usize));
        let text = bytes.and_then(|b| std::str::from_utf8(b).ok());
        let text = text.ok_or_else(|| corrupt(name, format!("backing file name of {len} bytes at {offset:#x}")))?;
        self.backing_file = (!text.is_empty()).then(|| text.to_string());
        Ok(())
    }

    fn check_features(&mut self, cluster: &[u8], length: u32, name: &str) -> Result<()> {
        if self.version == 2 {
            (self.incompatible, self.compatible, self.autoclear) = (0, 0, 0);
        }
        let known = DIRTY | CORRUPT | COMPRESSION_TYPE | EXTERNAL_DATA | EXTENDED_L2;
        let unknown = self.incompatible & !known;
        if unknown != 0 {
            let names: Vec<_> = (0..64).filter(|bit| unknown >> bit & 1 != 0).map(|bit| self.feature(bit)).collect();
            let what = format!("the image uses features that are not supported: {}", names.join(", "));
            return Err(BlockError::Unsupported { name: name.to_string(), what });
        }
        if self.incompatible & EXTENDED_L2 != 0 && self.cluster_bits < LEAST_EXTENDED_BITS {
            let what = format!("extended L2 entries with cluster_bits {}; at least 14 are needed", self.cluster_bits);
            return Err(corrupt(name, what));
        }
        if self.refcount_order > 6 {
            return Err(corrupt(name, format!("refcount_order {}; possible are 0 to 6", self.refcount_order)));
        }
        // A type other than zlib must have its feature bit (qcow2.rst, "compression_type").
        let kind = if length > 104 { cluster.get(104).copied().unwrap_or(0) } else { 0 };
        self.compression = match (kind, self.incompatible & COMPRESSION_TYPE != 0) {
            (0, _) => Compression::Zlib,
            (1, true) => Compression::Zstd,
            _ => {
                let what = format!("compression type {kind} is not supported; there are zlib and zstd");
                return Err(BlockError::Unsupported { name: name.to_string(), what });
            }
        };
        Ok(())
    }

    /// The name of an incompatible feature, from the file's table if we do not know it.
    fn feature(&self, bit: u32) -> String {
        let table = self.extensions.iter().find(|(kind, _)| *kind == EXT_FEATURE_NAMES);
        let entries = table.map_or(&[][..], |(_, bytes)| bytes).chunks_exact(48);
        for entry in entries {
            if entry[0] == 0 && u32::from(entry[1]) == bit {
                let text = entry[2..].split(|&b| b == 0).next().unwrap_or_default();
                return String::from_utf8_lossy(text).escape_debug().to_string();
            }
        }
        format!("incompatible feature bit {bit}")
    }

    fn check_tables(&self, name: &str) -> Result<()> {
        let aligned = |offset: u64| offset & ((1 << self.cluster_bits) - 1) == 0 && offset < 1 << 56;
        if u64::from(self.l1_size) * 8 > MAX_L1_BYTES || !aligned(self.l1_offset) {
            return Err(corrupt(name, format!("L1 table of {} entries at {:#x}", self.l1_size, self.l1_offset)));
        }
        let reftable = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable > MAX_REFTABLE_BYTES || reftable == 0 || !aligned(self.reftable_offset) || self.reftable_offset == 0
        {
            let what = format!("refcount table of {} clusters at {:#x}", self.reftable_clusters, self.reftable_offset);
            return Err(corrupt(name, what));
        }
        if self.snapshots > MAX_SNAPSHOTS || (self.snapshots > 0 && !aligned(self.snapshots_offset)) {
            let what = format!("{} snapshots at {:#x}", self.snapshots, self.snapshots_offset);
            return Err(corrupt(name, what));
        }
        // The L1 table must reach to the end.
        let per_l1 = Layout::of(self).per_l1();
        if self.size > i64::MAX as u64 || self.size.div_ceil(per_l1) > u64::from(self.l1_size) {
            return Err(corrupt(name, format!("a disk of {} bytes with {} L1 entries", self.size, self.l1_size)));
        }
        Ok(())
    }

    /// The format of the backing file if the header tells.
    pub(super) fn backing_format(&self) -> Option<String> {
        let found = self.extensions.iter().find(|(kind, _)| *kind == EXT_BACKING_FORMAT);
        found.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The name of the external data file, if the header tells one.
    pub(super) fn data_file(&self) -> Option<String> {
        let found = self.extensions.iter().find(|(kind, _)| *kind == EXT_DATA_FILE);
        found.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
    }

    /// Names an external data file; `raw` if it alone is to read as the disk.
    pub(super) fn set_data_file(&mut self, name: &str, raw: bool) {
        self.incompatible |= EXTERNAL_DATA;
        self.autoclear |= if raw { DATA_FILE_RAW } else { 0 };
        self.extensions.push((EXT_DATA_FILE, name.as_bytes().to_vec()));
    }

    /// Names another backing file, or none.
    pub(super) fn set_backing(&mut self, backing: Option<(&str, Option<&str>)>) {
        self.extensions.retain(|(kind, _)| *kind != EXT_BACKING_FORMAT);
        self.backing_file = backing.map(|(file, _)| file.to_string());
        if let Some((_, Some(format))) = backing {
            self.extensions.push((EXT_BACKING_FORMAT, format.as_bytes().to_vec()));
        }
    }

    /// The first bytes of the file. All fields that change in normal work lie in the first sector,
    /// which the host writes whole or not at all.
    pub(super) fn to_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let length = if self.version == 2 { V2_LENGTH } else { FULL_LENGTH };
        let mut bytes = vec![0; length as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_be_bytes());
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.reftable_offset.to_be_bytes());
        put(56, &self.reftable_clusters.to_be_bytes());
        put(60, &self.snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        if self.version > 2 {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &length.to_be_bytes());
            put(104, &[(self.compression == Compression::Zstd).into()]);
        }
        for (kind, content) in &self.extensions {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; 8]);
        if let Some(backing) = &self.backing_file {
            let offset = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&offset.to_be_bytes());
            bytes[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            bytes.extend_from_slice(backing.as_bytes());
            if backing.len() as u32 > MAX_BACKING_NAME {
                let what =
                    format!("{name}: a backing file name of {} bytes; {MAX_BACKING_NAME} are possible", backing.len());
                return Err(BlockError::Invalid { what });
            }
        }
        if bytes.len() > 1 << self.cluster_bits {
            let what = format!("{name}: backing file name and header do not fit in one cluster; use larger clusters");
            return Err(BlockError::Invalid { what });
        }
        Ok(bytes)
    }
}

pub(super) fn corrupt(name: &str, what: String) -> BlockError {
    BlockError::Corrupt { name: name.to_string(), what }
}
