//! ATA and ATAPI on a PC's two IDE channels (ATA/ATAPI-7, T13/1532D): task file registers, commands and transfers.
//!
//! A [`Channel`] has the command block, the control register and up to two drives; disk work happens elsewhere and
//! comes back as completions. The bus master half of a PIIX3 is in [`bus_master`].

mod ata;
mod atapi;
pub mod bus_master;
mod channel;
mod drive;
mod identify;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use drive::DriveConfig;

/// Bytes of a disk sector.
pub const SECTOR: u64 = 512;

/// Status register bits (ATA/ATAPI-7 volume 1, 5.14).
mod status {
    pub const ERR: u8 = 0x01;
    pub const DRQ: u8 = 0x08;
    /// Seek complete, as old drivers expect it.
    pub const DSC: u8 = 0x10;
    pub const DF: u8 = 0x20;
    pub const DRDY: u8 = 0x40;
    pub const BSY: u8 = 0x80;
    /// Ready and idle.
    pub const IDLE: u8 = DRDY | DSC;
}

/// Error register bits (5.9).
mod error {
    pub const ABRT: u8 = 0x04;
    pub const IDNF: u8 = 0x10;
    pub const UNC: u8 = 0x40;
    /// What diagnostics leave where all is well.
    pub const PASSED: u8 = 0x01;
}

/// Interrupt reason bits of packet commands, in the sector count register.
mod reason {
    /// Command, not data.
    pub const COD: u8 = 0x01;
    /// To the host.
    pub const IO: u8 = 0x02;
}

/// Device register bits.
mod device {
    pub const LBA: u8 = 0x40;
    pub const SECOND: u8 = 0x10;
    /// These bits always read as one.
    pub const OBSOLETE: u8 = 0xa0;
}
