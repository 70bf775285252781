//! What IDENTIFY DEVICE and IDENTIFY PACKET DEVICE answer (ATA/ATAPI-7 volume 1, 6.17 and 6.18).

use super::ata::MAX_MULTIPLE;
use super::drive::{Drive, MAX_TRIM};

const WORDS: usize = 256;
/// Multiword DMA modes 0 to 2, and ultra DMA modes 0 to 5.
const MULTIWORD: u16 = 0x07;
const ULTRA: u16 = 0x3f;

/// The 256 words being filled.
struct Words([u16; WORDS]);

impl Words {
    fn set(&mut self, first: usize, values: &[u16]) {
        self.0.iter_mut().skip(first).zip(values).for_each(|(word, value)| *word = *value);
    }

    /// Text in the odd order of bytes that ATA has, filled up with blanks.
    fn text(&mut self, first: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
        for word in self.0.iter_mut().skip(first).take(words) {
            let pair = [(); 2].map(|()| bytes.next().unwrap_or(b' '));
            *word = u16::from_be_bytes(pair);
        }
    }

    fn names(&mut self, drive: &Drive) {
        self.text(10, 10, &drive.serial);
        self.text(23, 4, &drive.version);
        self.text(27, 20, &drive.model);
    }

    /// Transfer modes and their times in nanoseconds; `mode` is the one set.
    fn transfer_modes(&mut self, mode: u8) {
        let chosen = |first: u8| match mode.checked_sub(first) {
            Some(n @ 0..=7) => 0x100u16 << n,
            _ => 0,
        };
        let multiword = if (0x20..0x28).contains(&mode) { chosen(0x20) } else { 0 };
        let ultra = if mode >= 0x40 { chosen(0x40) } else { 0 };
        self.set(63, &[MULTIWORD | multiword, 3, 120, 120, 120, 120]);
        self.set(88, &[ULTRA | ultra]);
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_iter().flat_map(u16::to_le_bytes).collect()
    }
}

/// The answer of a disk.
pub(super) fn disk(drive: &Drive) -> Vec<u8> {
    let mut w = Words([0; WORDS]);
    let (cylinders, heads, sectors) = drive.geometry();
    let total = drive.sectors();
    let short = total.min((1 << 28) - 1) as u32;
    let (set_heads, set_sectors) = (u16::from(drive.state.heads), u16::from(drive.state.sectors));
    let track = u64::from(set_heads) * u64::from(set_sectors);
    let set_cylinders = (total / track.max(1)).min(0xffff) as u16;
    let visible = u32::from(set_cylinders) * track as u32;
    w.set(0, &[0x0040, cylinders, 0, heads, 0, 512, sectors]);
    w.names(drive);
    w.set(47, &[0x8000 | u16::from(MAX_MULTIPLE), 1, 0x0b00, 0x4000, 0x0200, 0x0200]);
    w.set(53, &[7, set_cylinders, set_heads, set_sectors, visible as u16, (visible >> 16) as u16]);
    w.set(59, &[if drive.state.multiple == 0 { 0 } else { 0x100 | u16::from(drive.state.multiple) }]);
    w.set(60, &[short as u16, (short >> 16) as u16]);
    w.transfer_modes(drive.state.mode);
    // ATA-4 to 7; 48-bit addresses and both flush commands; the write cache if there is one.
    let cache = u16::from(drive.disk.as_ref().is_some_and(|disk| disk.write_cache())) << 5;
    let cache_on = if drive.state.write_cache { cache } else { 0 };
    w.set(80, &[0x00f0, 0x0016, 0x4000 | cache, 0x7400, 0x4000, 0x4000 | cache_on, 0x3400, 0x4000]);
    w.set(93, &[0x6001]);
    let long = total.min((1 << 48) - 1);
    w.set(100, &[long as u16, (long >> 16) as u16, (long >> 32) as u16, 0]);
    // Blocks of a TRIM, and that there is one.
    w.set(105, &[MAX_TRIM as u16]);
    w.set(169, &[1]);
    // Solid state: nothing turns.
    w.set(217, &[1]);
    w.bytes()
}

/// The answer of a CD drive.
pub(super) fn packet(drive: &Drive) -> Vec<u8> {
    let mut w = Words([0; WORDS]);
    // Removable CD drive, data request within 50 microseconds, packets of 12 bytes.
    w.set(0, &[0x85c0]);
    w.names(drive);
    w.set(48, &[1, 0x0b00]);
    w.set(53, &[7]);
    w.transfer_modes(drive.state.mode);
    w.set(71, &[30, 30]);
    // Packet commands and DEVICE RESET.
    w.set(80, &[0x001e, 0, 0x4210, 0x4000, 0x4000, 0x4210, 0, 0x4000]);
    w.set(93, &[0x6001]);
    w.bytes()
}
