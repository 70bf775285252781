//! What callers tell about a qcow2 image and are told.

use crate::block::{Format, Preallocation};

/// How compressed clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Raw deflate, all versions.
    #[default]
    Zlib,
    /// Zstandard, version 3 only.
    Zstd,
}

impl Compression {
    /// The name as in `-o compression_type=`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        }
    }
}

/// What a new image is to be: `-o` of `brolga-img create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes in a cluster: a power of two, 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a reference count: 1, 2, 4, ... 64. Version 2 has 16.
    pub refcount_bits: u32,
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Leave reference counts behind and rebuild them after a crash; version 3 only.
    pub lazy_refcounts: bool,
    /// What is reserved at once.
    pub preallocation: Preallocation,
    /// For clusters written compressed.
    pub compression: Compression,
    /// The file below, as the image is to name it, and its format.
    pub backing: Option<(String, Option<Format>)>,
    /// Clusters of 32 subclusters that are allocated one by one; clusters of 16 KiB at least.
    pub extended_l2: bool,
    /// A file of its own for the data, as the image is to name it: relative to the current directory,
    /// as QEMU has it. It is made anew.
    pub data_file: Option<String>,
    /// The data file alone reads as the disk.
    pub data_file_raw: bool,
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            size: 0,
            cluster_size: 1 << 16,
            refcount_bits: 16,
            version: 3,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
            compression: Compression::Zlib,
            backing: None,
            extended_l2: false,
            data_file: None,
            data_file_raw: false,
        }
    }
}

/// What the header of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// Whether reference counts may be left behind.
    pub lazy_refcounts: bool,
    /// Reference counts are behind: the image was not closed.
    pub dirty: bool,
    /// The image was found damaged and refuses writes.
    pub corrupt: bool,
    /// For clusters written compressed.
    pub compression: Compression,
    /// The backing file as the header names it.
    pub backing_file: Option<String>,
    /// Its format if the header tells.
    pub backing_format: Option<String>,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// The external data file as the header names it.
    pub data_file: Option<String>,
    /// Whether the data file alone reads as the disk.
    pub data_file_raw: bool,
    /// Persistent bitmaps in force.
    pub bitmaps: Vec<BitmapInfo>,
}

/// A persistent bitmap: which parts of the disk were written since some moment. Brolga keeps
/// bitmaps but does not maintain them: the first change declares them out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// It was not saved properly, so that it says nothing.
    pub in_use: bool,
    /// It follows writes.
    pub auto: bool,
}

/// What a check may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    None,
    /// Free clusters that nothing uses: `-r leaks`.
    Leaks,
    /// Also rebuild wrong reference counts and flags: `-r all`.
    All,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// One line for each thing found, at most a thousand.
    pub messages: Vec<String>,
    /// Entries that are wrong and may cost data.
    pub corruptions: u64,
    /// Clusters counted as used that nothing refers to.
    pub leaks: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Clusters the disk has.
    pub total_clusters: u64,
    /// Clusters that are stored.
    pub allocated_clusters: u64,
    /// Of these, compressed ones.
    pub compressed_clusters: u64,
    /// Stored clusters that do not follow the one before them.
    pub fragmented_clusters: u64,
    /// End of the last cluster that is used or counted as used.
    pub image_end_offset: u64,
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Number, as text.
    pub id: String,
    /// Name given by the user.
    pub name: String,
    /// Bytes of machine state stored with it.
    pub vm_state_size: u64,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// Guest time in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed if counted.
    pub icount: Option<u64>,
    /// Size of the disk then.
    pub disk_size: u64,
}
