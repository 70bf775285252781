//! Disk images: what devices and `brolga-img` read and write, whatever the format of the file.
//!
//! [`open`] gives an [`Image`]; [`Image::backend`] is what a device needs. Formats stand on a
//! [`Storage`], the host file, so that tests can put a recording or failing one in its place.

mod cache_mode;
mod direct;
pub mod drive;
mod error;
mod flights;
mod foreign;
mod lock;
mod probe;
pub mod qcow2;
pub mod queue;
mod raw;
mod running;
#[cfg(test)]
mod scratch;
mod storage;
mod transfer;
mod uring;
mod vectors;

pub use cache_mode::CacheMode;
pub use error::{BlockError, Result};
pub use foreign::Foreign;
pub use probe::{Image, Layer, MAX_CHAIN, OpenOptions, open, open_storage, probe};
pub use raw::{Raw, create as create_raw};
pub use storage::{HostFile, Storage};
pub use transfer::{Aio, Transfer};
pub use vectors::{slice_mut, slices, total, total_mut};

use std::io::{IoSlice, IoSliceMut};

/// The format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// A format that is recognised to be read, or to be refused by its name.
    Foreign(&'static str),
}

impl Format {
    /// The name as in `-f` and `format=`.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Foreign(name) => name,
        }
    }

    /// The format with that name, or an error that lists the names there are.
    pub fn from_name(name: &str) -> Result<Format> {
        match name {
            "raw" | "file" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            "vmdk" => Ok(Format::Foreign("vmdk")),
            "vhdx" => Ok(Format::Foreign("vhdx")),
            _ => Err(BlockError::UnknownFormat { name: name.to_string() }),
        }
    }
}

/// What a stretch of a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes that are stored in some file.
    Data,
    /// Reads as zeroes, and the image says so itself (it takes no data from a backing file).
    Zero,
    /// Not allocated in this image and no backing file below: reads as zeroes.
    Hole,
}

/// One stretch of equal state, from [`BlockBackend::map`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// What is there.
    pub content: Content,
    /// Which image of the chain decides: 0 is the image itself, 1 its backing file, and so on.
    pub depth: u32,
    /// Where the bytes stand in the host file of that image if they stand there as they are, or the
    /// place that is kept for them.
    pub host_offset: Option<u64>,
    /// Whether the bytes are stored compressed.
    pub compressed: bool,
    /// Data that the image has a place for, where the host file has a hole: reads as zeroes.
    pub sparse: bool,
}

/// What is reserved in the file when an image is made or grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing: the file stays sparse.
    #[default]
    Off,
    /// Tables only (qcow2).
    Metadata,
    /// Tables, and host space reserved without writing it.
    Falloc,
    /// Tables, and zeroes written.
    Full,
}

impl Preallocation {
    /// The mode with the name that `-o preallocation=` takes.
    pub fn from_name(name: &str) -> Result<Preallocation> {
        match name {
            "off" => Ok(Preallocation::Off),
            "metadata" => Ok(Preallocation::Metadata),
            "falloc" => Ok(Preallocation::Falloc),
            "full" => Ok(Preallocation::Full),
            _ => Err(BlockError::Invalid {
                what: format!("preallocation={name}: there are off, metadata, falloc and full"),
            }),
        }
    }
}

/// A disk: bytes from 0 to [`len`](BlockBackend::len).
///
/// All methods take `&self`; requests from several threads run in parallel. Overlapping requests
/// that run at the same time have no defined order. A write is safe from a power cut once a
/// [`flush`](BlockBackend::flush) that began after it has returned. Every call may block on the
/// host: devices call from their worker threads only.
pub trait BlockBackend: Send + Sync {
    /// The size in bytes.
    fn len(&self) -> u64;

    /// Whether the disk has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Reads into all of `bufs` from `offset` on. Beyond the end is an error.
    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()>;

    /// Writes all of `bufs` from `offset` on. Beyond the end is an error.
    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;

    /// Makes everything written before durable.
    fn flush(&self) -> Result<()>;

    /// Tells that the bytes are no longer needed; they may read as anything that was there or zero.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes the bytes read as zero; with `unmap` their space may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;

    /// The state of the disk from `offset` on: one stretch, at most `len` bytes. `len` is not 0
    /// and `offset` lies on the disk. Two neighbours may have the same state.
    fn map(&self, offset: u64, len: u64) -> Result<Extent>;

    /// Changes the size; what is added reads as zeroes.
    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()>;

    /// Where in which host file the whole of a request lies, if nothing else is to be done for it
    /// and finding that out takes no time. Whoever gets it may move the bytes without
    /// [`readv`](BlockBackend::readv) or [`writev`](BlockBackend::writev), and keeps it until it has.
    fn transfer(&self, _write: bool, _offset: u64, _len: u64) -> Option<Transfer> {
        None
    }

    /// Reads into one buffer.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.readv(offset, &mut [IoSliceMut::new(buf)])
    }

    /// Writes one buffer.
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.writev(offset, &[IoSlice::new(buf)])
    }
}

/// Fails unless `offset..offset + len` lies within `size` bytes.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(BlockError::OutOfRange { offset, len, size }),
    }
}
