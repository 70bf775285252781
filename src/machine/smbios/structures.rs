//! The structures themselves; section numbers are those of DSP0134 3.6. Their lengths are those of version 3.0 where
//! that added fields, of 2.8 otherwise.

use super::SmbiosFacts;
use super::structure::Structure;
use crate::cli::config::{SmbiosBios, SmbiosBoard, SmbiosChassis, SmbiosConfig, SmbiosSystem};
use std::ops::Range;

/// Handles: the type in the high byte leaves room for several structures each.
mod handle {
    pub const BIOS: u16 = 0x0000;
    pub const SYSTEM: u16 = 0x0100;
    pub const BOARD: u16 = 0x0200;
    pub const CHASSIS: u16 = 0x0300;
    pub const PROCESSORS: u16 = 0x0400;
    pub const OEM_STRINGS: u16 = 0x0B00;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICES: u16 = 0x1100;
    pub const MEMORY_RANGES: u16 = 0x1300;
    pub const BOOT: u16 = 0x2000;
    pub const END: u16 = 0x7F00;
    /// No structure.
    pub const NONE: u16 = 0xFFFF;
    /// No error information structure is provided.
    pub const NOT_PROVIDED: u16 = 0xFFFE;
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Memory modules are shown in pieces of this size.
const MODULE: u64 = 16 << 30;
/// Release date of what stands in for the firmware. Guests take an old date for old, broken firmware.
const DATE: &str = "01/01/2026";

/// All structures in order.
pub(super) fn all(config: &SmbiosConfig, facts: &SmbiosFacts) -> Vec<Structure> {
    let mut out = vec![bios(&config.bios), system(&config.system, facts)];
    out.extend(board(&config.board, facts));
    out.push(chassis(&config.chassis, facts));
    out.extend((0..facts.sockets).map(|index| processor(index, facts)));
    if !config.oem_strings.is_empty() {
        out.push(oem_strings(&config.oem_strings));
    }
    let size: u64 = facts.ram.iter().map(|range| range.end.saturating_sub(range.start)).sum();
    let modules = size.div_ceil(MODULE);
    out.push(memory_array(size, modules as u16));
    out.extend((0..modules).map(|index| {
        let size = (size - index * MODULE).min(MODULE);
        memory_device(index as u16, size, facts)
    }));
    out.extend(facts.ram.iter().zip(0..).map(|(range, index)| memory_range(index, range)));
    // Type 32 (7.33): no errors detected at boot.
    out.push(Structure::new(32, handle::BOOT).bytes(&[0; 7]));
    out.push(Structure::new(127, handle::END));
    out
}

fn or<'a>(given: &'a Option<String>, default: &'a str) -> Option<&'a str> {
    Some(given.as_deref().unwrap_or(default))
}

/// Type 0, firmware (7.1).
fn bios(given: &SmbiosBios) -> Structure {
    let SmbiosBios { vendor, version, date, release, uefi } = given;
    let (major, minor) = release.unwrap_or((0, 0));
    let uefi = if uefi.unwrap_or(false) { 1 << 3 } else { 0 };
    Structure::new(0, handle::BIOS)
        .string(or(vendor, "Brolga"))
        .string(or(version, env!("CARGO_PKG_VERSION")))
        .word(0xE800) // segment
        .string(or(date, DATE))
        .byte(0) // 64 KiB
        .qword(1 << 3) // characteristics are not told
        .byte(0)
        .byte(1 << 4 | 1 << 2 | uefi) // a virtual machine; targeted content distribution
        .bytes(&[major, minor, 0xFF, 0xFF]) // no embedded controller
}

/// The bytes of a UUID as SMBIOS has them since 2.6 (7.2.1): the first three fields are little-endian.
fn encode_uuid(text_order: [u8; 16]) -> [u8; 16] {
    let mut out = text_order;
    out[0..4].reverse();
    out[4..6].reverse();
    out[6..8].reverse();
    out
}

/// Type 1, system (7.2).
fn system(given: &SmbiosSystem, facts: &SmbiosFacts) -> Structure {
    let SmbiosSystem { manufacturer, product, version, serial, uuid, sku, family } = given;
    Structure::new(1, handle::SYSTEM)
        .string(or(manufacturer, &facts.manufacturer))
        .string(or(product, &facts.product))
        .string(or(version, &facts.version))
        .string(serial.as_deref())
        .bytes(&encode_uuid(uuid.or(facts.uuid).unwrap_or([0; 16])))
        .byte(6) // woken by the power switch
        .string(sku.as_deref())
        .string(family.as_deref())
}

/// Type 2, base board (7.3), if anything is told about it.
fn board(given: &SmbiosBoard, facts: &SmbiosFacts) -> Option<Structure> {
    if *given == SmbiosBoard::default() {
        return None;
    }
    let SmbiosBoard { manufacturer, product, version, serial, asset, location } = given;
    let structure = Structure::new(2, handle::BOARD)
        .string(or(manufacturer, &facts.manufacturer))
        .string(or(product, &facts.product))
        .string(or(version, &facts.version))
        .string(serial.as_deref())
        .string(asset.as_deref())
        .byte(1) // a hosting board
        .string(location.as_deref())
        .word(handle::CHASSIS)
        .byte(0x0A) // motherboard
        .byte(0);
    Some(structure)
}

/// Type 3, chassis (7.4).
fn chassis(given: &SmbiosChassis, facts: &SmbiosFacts) -> Structure {
    let SmbiosChassis { manufacturer, version, serial, asset, sku } = given;
    Structure::new(3, handle::CHASSIS)
        .string(or(manufacturer, &facts.manufacturer))
        .byte(1) // other
        .string(or(version, &facts.version))
        .string(serial.as_deref())
        .string(asset.as_deref())
        .bytes(&[3, 3, 3, 2]) // boot-up, power, thermal: safe; security: unknown
        .dword(0)
        .bytes(&[0; 4]) // height and power cords not told, no contained elements
        .string(sku.as_deref())
}

/// Type 4, processor (7.5).
fn processor(index: u16, facts: &SmbiosFacts) -> Structure {
    let SmbiosFacts { manufacturer, processor, processor_id, processor_mhz, cores, threads, .. } = facts;
    let short = |count: u16| u8::try_from(count).unwrap_or(0xFF);
    let several_cores = if *cores > 1 { 1 << 3 } else { 0 };
    let several_threads = if threads > cores { 1 << 4 } else { 0 };
    Structure::new(4, handle::PROCESSORS + index)
        .string(Some(&format!("CPU {index}")))
        .byte(3) // central processor
        .byte(1) // family: other
        .string(Some(manufacturer))
        .qword(*processor_id)
        .string(Some(processor))
        .byte(0) // voltage and external clock not told
        .word(0)
        .word(*processor_mhz)
        .word(*processor_mhz)
        .byte(0x41) // populated, enabled
        .byte(1) // upgrade: other
        .word(handle::NONE) // caches
        .word(handle::NONE)
        .word(handle::NONE)
        .bytes(&[0; 3]) // serial number, asset tag, part number
        .bytes(&[short(*cores), short(*cores), short(*threads)])
        .word(1 << 2 | several_cores | several_threads) // 64-bit capable
        .word(1)
        .word(*cores)
        .word(*cores)
        .word(*threads)
}

/// Type 11, OEM strings (7.12).
fn oem_strings(strings: &[String]) -> Structure {
    let structure = Structure::new(11, handle::OEM_STRINGS).byte(strings.len() as u8);
    strings.iter().fold(structure, |structure, text| structure.unreferenced(text))
}

/// Type 16, physical memory array (7.17).
fn memory_array(size: u64, modules: u16) -> Structure {
    const EXTENDED: u32 = 0x8000_0000;
    let kib = u32::try_from(size / KIB).ok().filter(|&kib| kib < EXTENDED);
    Structure::new(16, handle::MEMORY_ARRAY)
        .bytes(&[1, 3, 3]) // location: other; system memory; no error correction
        .dword(kib.unwrap_or(EXTENDED))
        .word(handle::NOT_PROVIDED)
        .word(modules)
        .qword(if kib.is_some() { 0 } else { size })
}

/// The size field of type 17: MiB, or KiB with bit 15; 0x7FFF refers to the extended field, in MiB.
fn module_size(size: u64) -> (u16, u32) {
    const EXTENDED: u64 = 0x7FFF;
    match size / MIB {
        _ if !size.is_multiple_of(MIB) && size / KIB < EXTENDED => (0x8000 | (size / KIB) as u16, 0),
        mib if mib < EXTENDED => (mib as u16, 0),
        mib => (EXTENDED as u16, mib as u32 & 0x7FFF_FFFF),
    }
}

/// Type 17, memory device (7.18).
fn memory_device(index: u16, size: u64, facts: &SmbiosFacts) -> Structure {
    let (short, extended) = module_size(size);
    Structure::new(17, handle::MEMORY_DEVICES.wrapping_add(index))
        .word(handle::MEMORY_ARRAY)
        .word(handle::NOT_PROVIDED)
        .word(0xFFFF) // widths unknown
        .word(0xFFFF)
        .word(short)
        .byte(9) // DIMM
        .byte(0)
        .string(Some(&format!("DIMM {index}")))
        .byte(0) // bank
        .byte(7) // RAM
        .word(1 << 1) // other
        .word(0) // speed unknown
        .string(Some(&facts.manufacturer))
        .bytes(&[0; 4]) // serial number, asset tag, part number, rank
        .dword(extended)
        .word(0) // configured speed and voltages unknown
        .bytes(&[0; 6])
}

/// Type 19, memory array mapped address (7.20).
fn memory_range(index: u16, range: &Range<u64>) -> Structure {
    let last = range.end.saturating_sub(1);
    let kib = |address: u64| u32::try_from(address / KIB).ok().filter(|&kib| kib != u32::MAX);
    let structure = Structure::new(19, handle::MEMORY_RANGES + index);
    match (kib(range.start), kib(last)) {
        (Some(first), Some(last)) => {
            structure.dword(first).dword(last).word(handle::MEMORY_ARRAY).byte(1).qword(0).qword(0)
        }
        _ => {
            structure.dword(u32::MAX).dword(u32::MAX).word(handle::MEMORY_ARRAY).byte(1).qword(range.start).qword(last)
        }
    }
}
