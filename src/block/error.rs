//! What can go wrong with an image, in one line for the user each.

use std::io;

/// The result of all calls on images.
pub type Result<T> = std::result::Result<T, BlockError>;

/// An error of a disk image.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host refused.
    #[error("{name}: {action}: {source}")]
    Io {
        /// The file.
        name: String,
        /// What was tried, as "cannot read 512 bytes at 0".
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// Not a request for a disk of this size.
    #[error("{len} bytes at {offset} lie beyond the end of the disk at {size}")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Size of the disk.
        size: u64,
    },
    /// A write to an image opened without leave to write.
    #[error("{name}: opened read-only")]
    ReadOnly {
        /// The file.
        name: String,
    },
    /// The file contradicts its format.
    #[error("{name}: damaged image: {what}")]
    Corrupt {
        /// The file.
        name: String,
        /// What does not fit.
        what: String,
    },
    /// The file needs something that Brolga has not.
    #[error("{name}: {what}")]
    Unsupported {
        /// The file.
        name: String,
        /// The feature, and what to do about it.
        what: String,
    },
    /// A file that is not in the format it was said to be in.
    #[error("{name}: not a {format} image; leave the format out to have it recognised")]
    WrongFormat {
        /// The file.
        name: String,
        /// The format asked for.
        format: &'static str,
    },
    /// A name of a format that does not exist.
    #[error("unknown image format '{name}'; there are raw and qcow2, and vmdk and vhdx to read")]
    UnknownFormat {
        /// As it was given.
        name: String,
    },
    /// An option or argument with an impossible value.
    #[error("{what}")]
    Invalid {
        /// Which, why, and what is possible.
        what: String,
    },
    /// A backing file could not be opened.
    #[error("{name}: backing file: {source}")]
    Backing {
        /// The image that names it.
        name: String,
        /// Why.
        source: Box<BlockError>,
    },
}

impl BlockError {
    /// The host's error number if the host refused, for `werror=enospc` and the like.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            BlockError::Io { source, .. } => source.raw_os_error(),
            BlockError::Backing { source, .. } => source.os_error(),
            _ => None,
        }
    }

    /// Whether the host has no space left, or none for us.
    pub fn is_no_space(&self) -> bool {
        let full = |kind| matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            BlockError::Io { source, .. } => full(source.kind()),
            BlockError::Backing { source, .. } => source.is_no_space(),
            _ => false,
        }
    }
}
