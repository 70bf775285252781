//! SCSI command sets, whatever carries them: primary commands (SPC-4), those of disks (SBC-3) and of CD drives (MMC-4).
//!
//! A [`Unit`] says what a command comes to; whoever carries commands moves the data and asks the disk.

pub mod disk;
pub(crate) mod drive;
pub mod identity;
pub(crate) mod luns;
mod mode;
pub mod optical;
pub(crate) mod steps;
mod unit;

pub use identity::{Carrier, Identity};
pub use unit::{Unit, UnitState};

use serde::{Deserialize, Serialize};

/// Why a command failed: sense key, and code with qualifier (SPC-4 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code and qualifier.
    pub code: (u8, u8),
}

impl Sense {
    /// There is no medium.
    pub const NO_MEDIUM: Self = Self::new(2, 0x3a, 0x00);
    /// There is no medium, as the tray is open.
    pub const TRAY_OPEN: Self = Self::new(2, 0x3a, 0x02);
    /// The medium could not be read.
    pub const UNREADABLE: Self = Self::new(3, 0x11, 0x00);
    /// The medium could not be written.
    pub const UNWRITABLE: Self = Self::new(3, 0x0c, 0x00);
    /// A list of parameters ends too early.
    pub const SHORT_LIST: Self = Self::new(5, 0x1a, 0x00);
    /// There is no such command.
    pub const BAD_COMMAND: Self = Self::new(5, 0x20, 0x00);
    /// There are no such blocks.
    pub const BEYOND_END: Self = Self::new(5, 0x21, 0x00);
    /// A field of the command has a value that is not possible.
    pub const BAD_FIELD: Self = Self::new(5, 0x24, 0x00);
    /// There is no such logical unit.
    pub const NO_UNIT: Self = Self::new(5, 0x25, 0x00);
    /// A field of a list of parameters has a value that is not possible.
    pub const BAD_PARAMETER: Self = Self::new(5, 0x26, 0x00);
    /// The medium is of a kind that this is not possible with.
    pub const WRONG_MEDIUM: Self = Self::new(5, 0x30, 0x02);
    /// Values are not kept.
    pub const NOT_SAVED: Self = Self::new(5, 0x39, 0x00);
    /// The guest wants the medium to stay.
    pub const LOCKED: Self = Self::new(5, 0x53, 0x02);
    /// Another medium is in the drive.
    pub const CHANGED: Self = Self::new(6, 0x28, 0x00);
    /// Power came, or a reset.
    pub const POWERED_ON: Self = Self::new(6, 0x29, 0x00);
    /// The medium is write-protected.
    pub const PROTECTED: Self = Self::new(7, 0x27, 0x00);
    /// The data differ from those on the medium.
    pub const DIFFERENT: Self = Self::new(0xe, 0x1d, 0x00);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code: (code, qualifier) }
    }

    /// In fixed format, about the present command (SPC-4 4.5.3).
    pub fn bytes(self) -> [u8; 18] {
        let mut out = [0; 18];
        (out[0], out[2], out[7], out[12], out[13]) = (0x70, self.key, 10, self.code.0, self.code.1);
        out
    }
}

/// Big-endian fields of a command.
#[derive(Clone, Copy)]
pub(crate) struct Cdb<'a>(pub &'a [u8]);

impl Cdb<'_> {
    /// One byte; those that are not there read as zero.
    pub fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// `len` bytes, at most 8.
    pub fn number(self, at: usize, len: usize) -> u64 {
        (at..at + len).fold(0, |acc, i| acc << 8 | u64::from(self.byte(i)))
    }

    /// First block and how many, where commands have them by their length: the group in the operation code's upper
    /// bits (SPC-4 4.3.2).
    pub fn blocks(self) -> (u64, u64) {
        match self.byte(0) >> 5 {
            0 => (self.number(1, 3) & 0x1f_ffff, if self.byte(4) == 0 { 256 } else { self.byte(4).into() }),
            4 => (self.number(2, 8), self.number(10, 4)),
            5 => (self.number(2, 4), self.number(6, 4)),
            _ => (self.number(2, 4), self.number(7, 2)),
        }
    }
}

/// What a command comes to. Blocks exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// These bytes go to the host.
    Data(Vec<u8>),
    /// These blocks go to the host.
    Read {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
    },
    /// These blocks come from the host.
    Write {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
        /// They are durable before the command ends.
        durable: bool,
        /// They are read back.
        verify: bool,
    },
    /// These blocks are read, and go nowhere.
    Verify {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
    },
    /// What comes from the host is compared with these blocks.
    Compare {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
    },
    /// The host has a list of this many bytes for [`Unit::parameters`]; not 0.
    Parameters(u64),
    /// These stretches, first block and how many, are needed no longer.
    Discard(Vec<(u64, u64)>),
    /// These blocks are to read as zero.
    Zero {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
        /// Their space may be given back.
        unmap: bool,
    },
    /// All of these blocks get the same content.
    Fill {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
        /// The content of one block.
        block: Vec<u8>,
    },
    /// What was written is to be durable.
    Flush,
    /// It failed.
    Check(Sense),
}

/// `bytes` for a host that has room for `allocated` of them.
pub(crate) fn data(mut bytes: Vec<u8>, allocated: u64) -> Answer {
    bytes.truncate(usize::try_from(allocated).unwrap_or(usize::MAX));
    if bytes.is_empty() { Answer::Done } else { Answer::Data(bytes) }
}

/// Whether `count` blocks from `first` on exist on a medium of `blocks`.
pub(crate) fn within(first: u64, count: u64, blocks: u64) -> Result<(), Sense> {
    match first.checked_add(count).is_some_and(|end| end <= blocks) {
        true => Ok(()),
        false => Err(Sense::BEYOND_END),
    }
}

/// READ CAPACITY (10): the last block, and their size (SBC-3 5.15).
pub(crate) fn capacity_10(blocks: u64, size: u32) -> Vec<u8> {
    let last = blocks.saturating_sub(1).min(u32::MAX.into()) as u32;
    [last.to_be_bytes(), size.to_be_bytes()].concat()
}

/// READ CAPACITY (16), without what is about provisioning (SBC-3 5.16).
pub(crate) fn capacity_16(blocks: u64, size: u32) -> Vec<u8> {
    let mut out = blocks.saturating_sub(1).to_be_bytes().to_vec();
    out.extend(size.to_be_bytes());
    out.resize(32, 0);
    out
}
