//! Where a PC's RAM and ROM lie.

use brolga_jit::mmu::ram::RamRegion;
use std::ops::Range;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// RAM ends below this address at the latest; above it lies the PCI hole.
const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// Second piece of RAM.
const HIGH_RAM_START: u64 = 4 * GIB;
/// Frame buffer window of VGA.
const VGA_HOLE: Range<u64> = 0xA_0000..0xC_0000;
/// Extended BIOS data area of a conventional size: its start is the top of conventional memory.
const EBDA_START: u64 = 0x9_FC00;
/// System firmware area: ACPI and SMBIOS tables of a direct kernel boot.
const FIRMWARE_AREA: Range<u64> = 0xE_0000..0x10_0000;
/// Largest guest-physical address plus one: the processor models have 40 address bits at least.
const PHYSICAL_LIMIT: u64 = 1 << 40;
/// ROM sizes: a multiple of this, up to [`ROM_MAX`].
pub const ROM_GRANULE: u64 = 64 * KIB;
/// Largest ROM.
pub const ROM_MAX: u64 = 16 * MIB;

/// How memory is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM from address 0, holes included.
    pub low: u64,
    /// RAM from 4 GiB.
    pub high: u64,
    /// ROM below 4 GiB.
    pub rom: u64,
}

/// What a range of a memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Usable RAM.
    Ram,
    /// To be left alone.
    Reserved,
}

/// One entry of the memory map that boot loaders hand to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

impl Layout {
    /// The layout for `ram` bytes of RAM and `rom` bytes of firmware; the error names the option.
    pub fn new(ram: u64, rom: u64) -> Result<Self, String> {
        if rom != 0 && ram < MIB {
            return Err(format!("-m: firmware needs 1 MiB of memory at least, not {} KiB; give more", ram / KIB));
        }
        let low = ram.min(LOW_RAM_LIMIT);
        let high = ram - low;
        if high > PHYSICAL_LIMIT - HIGH_RAM_START {
            return Err(format!(
                "-m: {} MiB do not fit into the processor's 40-bit physical addresses; give at most {} MiB",
                ram / MIB,
                (PHYSICAL_LIMIT - HIGH_RAM_START + LOW_RAM_LIMIT) / MIB
            ));
        }
        Ok(Self { low, high, rom })
    }

    /// Size of the memory file.
    pub fn file_size(&self) -> u64 {
        self.low + self.high + self.rom
    }

    /// The mapping: offsets equal addresses up to the end of low RAM, then come high RAM and the ROM. What the guest
    /// sees of the ROM below 1 MiB is the shadow RAM's affair.
    pub fn regions(&self) -> Vec<RamRegion> {
        let rom_offset = self.low + self.high;
        let ram = |range: Range<u64>| {
            let end = range.end.min(self.low);
            (range.start < end).then(|| RamRegion {
                gpa: range.start,
                size: end - range.start,
                offset: range.start,
                rom: false,
            })
        };
        let rom =
            |gpa, size| (size != 0).then_some(RamRegion { gpa, size, offset: rom_offset + self.rom - size, rom: true });
        let high = (self.high != 0).then_some(RamRegion {
            gpa: HIGH_RAM_START,
            size: self.high,
            offset: self.low,
            rom: false,
        });
        [ram(0..VGA_HOLE.start), ram(VGA_HOLE.end..self.low), rom(HIGH_RAM_START - self.rom, self.rom), high]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The memory map for a guest that is started without firmware.
    pub fn memory_map(&self) -> Vec<MemoryRange> {
        let range = |kind, range: Range<u64>| {
            (range.start < range.end).then(|| MemoryRange { start: range.start, size: range.end - range.start, kind })
        };
        [
            range(RangeKind::Ram, 0..EBDA_START.min(self.low)),
            range(RangeKind::Reserved, EBDA_START..VGA_HOLE.start.min(self.low)),
            range(RangeKind::Reserved, FIRMWARE_AREA.start..FIRMWARE_AREA.end.min(self.low)),
            range(RangeKind::Ram, FIRMWARE_AREA.end..self.low),
            range(RangeKind::Ram, HIGH_RAM_START..HIGH_RAM_START + self.high),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// RAM from 1 MiB to the end of low RAM: where kernels are loaded. Empty if there is none.
    pub fn extended(&self) -> Range<u64> {
        MIB..self.low.max(MIB)
    }

    /// RAM from 4 GiB.
    pub fn above_4g(&self) -> Range<u64> {
        HIGH_RAM_START..HIGH_RAM_START + self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_jit::mmu::ram::Ram;

    fn check(layout: Layout) -> Ram {
        Ram::new(layout.file_size(), layout.regions()).expect("regions ascend and fit the file")
    }

    #[test]
    fn small_memory_is_one_piece_with_a_vga_hole() {
        let layout = Layout::new(64 * MIB, 0).unwrap();
        let ram = check(layout);
        assert_eq!(ram.size(), 64 * MIB);
        assert!(ram.region_of(0x9_FFFF).is_some() && ram.region_of(0xA_0000).is_none());
        assert!(ram.region_of(0xC_0000).is_some_and(|r| !r.rom));
        assert!(ram.region_of(64 * MIB - 1).is_some() && ram.region_of(64 * MIB).is_none());
        assert_eq!(layout.above_4g().count(), 0);
    }

    #[test]
    fn large_memory_goes_on_above_the_pci_hole_with_linear_offsets() {
        let layout = Layout::new(5 * GIB, 0).unwrap();
        assert_eq!((layout.low, layout.high), (3 * GIB, 2 * GIB));
        let ram = check(layout);
        assert!(ram.region_of(3 * GIB).is_none());
        assert_eq!(ram.region_of(4 * GIB).unwrap().offset, 3 * GIB);
        assert_eq!(layout.memory_map().last().unwrap().size, 2 * GIB);
    }

    #[test]
    fn rom_ends_at_4_gib() {
        let ram = check(Layout::new(16 * MIB, 256 * KIB).unwrap());
        assert!(ram.write(0xFFFF_FFF0, b"reset", true));
        assert!(!ram.write(0xFFFC_0000, b"x", false), "read-only");
        assert!(ram.region_of(0xFFFB_FFFF).is_none());
        assert!(ram.region_of(0xF_FFFF).is_some_and(|r| !r.rom), "shadow RAM");
        assert!(Layout::new(MIB - 4 * KIB, 64 * KIB).unwrap_err().starts_with("-m: firmware needs"));
    }

    #[test]
    fn tiny_and_huge_memory() {
        let tiny = Layout::new(4 * KIB, 0).unwrap();
        assert_eq!(check(tiny).regions().len(), 1);
        assert_eq!(tiny.memory_map(), [MemoryRange { start: 0, size: 4 * KIB, kind: RangeKind::Ram }]);
        assert!(tiny.extended().is_empty());
        assert!(Layout::new(1 << 40, 0).unwrap_err().starts_with("-m: 1048576 MiB"));
        assert!(Layout::new((1 << 40) - GIB, 0).is_ok());
    }

    #[test]
    fn memory_map_ascends_without_overlap() {
        for ram in [4 * KIB, 640 * KIB, 960 * KIB, MIB, 2 * GIB, 8 * GIB] {
            let mut end = 0;
            for r in Layout::new(ram, 0).unwrap().memory_map() {
                assert!(r.start >= end && r.size > 0, "{ram}: {r:?}");
                end = r.start + r.size;
            }
        }
    }
}
