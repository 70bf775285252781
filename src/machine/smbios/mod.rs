//! SMBIOS tables (DSP0134 3.6) for guests that are started without firmware: what `dmidecode` shows.
//!
//! Two entry points lead to one table: the 64-bit one of version 3 and, for old guests, the 32-bit one of 2.8.

mod structure;
mod structures;
#[cfg(test)]
mod tests;

use crate::cli::config::SmbiosConfig;
use std::ops::Range;
use structure::Structure;

/// Length of the 64-bit entry point, padded to the 16-byte grid on which guests look.
const ENTRY_64_ROOM: usize = 32;
/// Length of the 32-bit entry point with padding.
const ENTRY_32_ROOM: usize = 32;
/// Where guests look for the entry points.
const SEARCHED: Range<u64> = 0xF_0000..0x10_0000;

/// What the tables say about the machine, where `-smbios` does not override it.
#[derive(Clone, Debug)]
pub struct SmbiosFacts {
    /// Manufacturer of system, chassis, processors and memory.
    pub manufacturer: String,
    /// The machine, e.g. `Standard PC (i440FX + PIIX, 1996)`.
    pub product: String,
    /// The machine's version, e.g. `pc-i440fx-9.0`.
    pub version: String,
    /// `-uuid`, in text order; `-smbios type=1,uuid=` goes before it.
    pub uuid: Option<[u8; 16]>,
    /// Name of the processor model.
    pub processor: String,
    /// CPUID leaf 1: EAX in the low half, EDX in the high one.
    pub processor_id: u64,
    /// Clock rate of the processors in MHz.
    pub processor_mhz: u16,
    /// Number of processor packages.
    pub sockets: u16,
    /// Cores of a package.
    pub cores: u16,
    /// Threads of a package, over all its cores.
    pub threads: u16,
    /// Where RAM lies, in ascending order; holes below 1 MiB do not count.
    pub ram: Vec<Range<u64>>,
}

/// The tables, ready to be stored.
#[derive(Clone, Debug)]
pub struct SmbiosTables {
    /// Where `blob` goes: the 64-bit entry point lies at its start, the 32-bit one 32 bytes later.
    pub base_gpa: u64,
    /// Entry points and table.
    pub blob: Vec<u8>,
}

/// Why there are no tables. The messages are meant for users.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SmbiosError {
    /// More than 255 strings in one structure.
    #[error("-smbios type=11: {0} strings do not fit into the table; give at most 255")]
    TooManyStrings(usize),
    /// The tables do not fit below 1 MiB.
    #[error("-smbios: the tables take {0} bytes and only {1} fit below 1 MiB; give shorter strings")]
    TooLarge(usize, u64),
    /// The base is not where guests look.
    #[error("SMBIOS entry points at {0:#x}: guests look at multiples of 16 from 0xf0000 to 0xfffff")]
    Misplaced(u64),
}

/// Builds the tables for `base_gpa`, a multiple of 16 within 0xF0000..0x100000.
pub fn build(config: &SmbiosConfig, facts: &SmbiosFacts, base_gpa: u64) -> Result<SmbiosTables, SmbiosError> {
    if !SEARCHED.contains(&base_gpa) || !base_gpa.is_multiple_of(16) {
        return Err(SmbiosError::Misplaced(base_gpa));
    }
    if config.oem_strings.len() > 255 {
        return Err(SmbiosError::TooManyStrings(config.oem_strings.len()));
    }
    let structures: Vec<Vec<u8>> = structures::all(config, facts).into_iter().map(Structure::into_bytes).collect();
    let table = structures.concat();
    let (total, room) = (ENTRY_64_ROOM + ENTRY_32_ROOM + table.len(), SEARCHED.end - base_gpa);
    if total as u64 > room {
        return Err(SmbiosError::TooLarge(total, room));
    }
    // Within the searched area all addresses and lengths fit the 32-bit entry point's fields.
    let address = base_gpa as u32 + (ENTRY_64_ROOM + ENTRY_32_ROOM) as u32;
    let largest = structures.iter().map(Vec::len).max().unwrap_or(0);
    let mut blob = entry_64(address, table.len() as u32);
    blob.resize(ENTRY_64_ROOM, 0);
    blob.extend(entry_32(address, table.len() as u16, largest as u16, structures.len() as u16));
    blob.resize(ENTRY_64_ROOM + ENTRY_32_ROOM, 0);
    blob.extend(table);
    Ok(SmbiosTables { base_gpa, blob })
}

/// The tables for firmware, which places them: the 32-bit entry point with the address left open, and the table.
pub fn for_firmware(config: &SmbiosConfig, facts: &SmbiosFacts) -> Result<(Vec<u8>, Vec<u8>), SmbiosError> {
    let tables = build(config, facts, SEARCHED.start)?;
    let (entries, table) = tables.blob.split_at(ENTRY_64_ROOM + ENTRY_32_ROOM);
    let count = u16::from_le_bytes([entries[ENTRY_64_ROOM + 0x1C], entries[ENTRY_64_ROOM + 0x1D]]);
    let largest = u16::from_le_bytes([entries[ENTRY_64_ROOM + 8], entries[ENTRY_64_ROOM + 9]]);
    Ok((entry_32(0, table.len() as u16, largest, count), table.to_vec()))
}

/// The byte that makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// The 64-bit entry point (5.2.2), version 3.0.
fn entry_64(address: u32, length: u32) -> Vec<u8> {
    let mut out = b"_SM3_".to_vec();
    out.extend([0, 24, 3, 0, 0, 1, 0]);
    out.extend(length.to_le_bytes());
    out.extend(u64::from(address).to_le_bytes());
    out[5] = checksum(&out);
    out
}

/// The 32-bit entry point (5.2.1), version 2.8.
fn entry_32(address: u32, length: u16, largest: u16, count: u16) -> Vec<u8> {
    let mut out = b"_SM_".to_vec();
    out.extend([0, 31, 2, 8]);
    out.extend(largest.to_le_bytes());
    out.extend([0; 6]);
    out.extend(b"_DMI_\0");
    out.extend(length.to_le_bytes());
    out.extend(address.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.push(0x28);
    out[0x15] = checksum(&out[0x10..]);
    out[4] = checksum(&out);
    out
}
