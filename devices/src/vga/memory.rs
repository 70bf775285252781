//! Display memory: four planes behind the window at 0xA0000, and the same bytes in a row behind a base address register.

use super::registers::Registers;
use crate::services::DeviceMemory;
use std::sync::Arc;

/// Bytes of display memory.
pub const SIZE: usize = 16 << 20;
/// Graphics registers that decide about accesses.
const SET_RESET: usize = 0;
const ENABLE_SET_RESET: usize = 1;
const COLOUR_COMPARE: usize = 2;
const ROTATE: usize = 3;
const READ_MAP: usize = 4;
const MODE: usize = 5;
const MISCELLANEOUS: usize = 6;
const COLOUR_DONT_CARE: usize = 7;
const BIT_MASK: usize = 8;
/// Sequencer registers.
const MAP_MASK: usize = 2;
const MEMORY_MODE: usize = 4;
/// Memory mode: addresses are not split into odd and even; four planes lie in a row.
const SEQUENTIAL: u8 = 4;
const CHAIN_4: u8 = 8;

/// The memory: byte `4 * a + p` is that of plane `p` at address `a`.
pub struct Memory {
    /// All bytes.
    pub bytes: Arc<dyn DeviceMemory>,
    /// What the last read left for the next write, a byte for each plane.
    pub latch: u32,
}

/// A byte for each plane from a bit for each.
fn spread(bits: u8) -> u32 {
    (0..4).fold(0, |out, plane| if bits >> plane & 1 != 0 { out | 0xff << (8 * plane) } else { out })
}

/// The same byte in each plane.
fn each(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

impl Memory {
    /// As after power-on, with these bytes.
    pub fn new(bytes: Arc<dyn DeviceMemory>) -> Self {
        Self { bytes, latch: 0 }
    }

    /// Where in the planes an offset from 0xA0000 leads.
    fn mapped(registers: &Registers, offset: u32, bank: u32) -> Option<u32> {
        let (start, len) = match registers.graphics(MISCELLANEOUS) >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        offset.checked_sub(start).filter(|at| *at < len).map(|at| at.wrapping_add(bank))
    }

    /// The byte at `index` of all of memory, which repeats.
    fn at(&self, index: u32) -> u8 {
        let mut byte = [0];
        self.bytes.read(u64::from(index) % SIZE as u64, &mut byte);
        byte[0]
    }

    fn set(&self, index: u32, value: u8) {
        self.bytes.write(u64::from(index) % SIZE as u64, &[value]);
    }

    /// Where the byte of the first plane is.
    fn start(address: u32) -> u64 {
        u64::from(address) * 4 % SIZE as u64
    }

    fn planes(&self, address: u32) -> u32 {
        let mut bytes = [0; 4];
        self.bytes.read(Self::start(address), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A byte read through the window.
    pub fn read(&mut self, registers: &Registers, offset: u32, bank: u32) -> u8 {
        let Some(address) = Self::mapped(registers, offset, bank) else { return 0xff };
        let mode = registers.sequencer(MEMORY_MODE);
        if mode & CHAIN_4 != 0 {
            return self.at(address);
        }
        if registers.graphics(MODE) & 0x10 != 0 {
            // Odd and even addresses are planes of their own.
            let plane = u32::from(registers.graphics(READ_MAP) & 2) | address & 1;
            self.latch = self.planes(address & !1);
            return self.at((address & !1) << 1 | plane);
        }
        self.latch = self.planes(address);
        if registers.graphics(MODE) & 8 == 0 {
            return (self.latch >> (8 * u32::from(registers.graphics(READ_MAP) & 3))) as u8;
        }
        // Bits whose colour is that of the comparison.
        let care = spread(registers.graphics(COLOUR_DONT_CARE));
        let differs = (self.latch ^ spread(registers.graphics(COLOUR_COMPARE))) & care;
        !(differs | differs >> 8 | differs >> 16 | differs >> 24) as u8
    }

    /// A byte written through the window.
    pub fn write(&self, registers: &Registers, offset: u32, bank: u32, value: u8) {
        let Some(address) = Self::mapped(registers, offset, bank) else { return };
        let (mode, mask) = (registers.sequencer(MEMORY_MODE), registers.sequencer(MAP_MASK));
        if mode & CHAIN_4 != 0 {
            if mask >> (address & 3) & 1 != 0 {
                self.set(address, value);
            }
            return;
        }
        if mode & SEQUENTIAL == 0 {
            let plane = u32::from(registers.graphics(READ_MAP) & 2) | address & 1;
            if mask >> plane & 1 != 0 {
                self.set((address & !1) << 1 | plane, value);
            }
            return;
        }
        let new = self.combined(registers, value);
        let mask = spread(mask);
        let old = self.planes(address);
        self.bytes.write(Self::start(address), &(old & !mask | new & mask).to_le_bytes());
    }

    /// What a write makes of the byte, the latch and the registers.
    fn combined(&self, registers: &Registers, value: u8) -> u32 {
        let rotated = value.rotate_right((registers.graphics(ROTATE) & 7).into());
        let (set, mut bits) = (spread(registers.graphics(SET_RESET)), registers.graphics(BIT_MASK));
        let data = match registers.graphics(MODE) & 3 {
            0 => {
                let enabled = spread(registers.graphics(ENABLE_SET_RESET));
                each(rotated) & !enabled | set & enabled
            }
            1 => return self.latch,
            2 => spread(value),
            _ => {
                bits &= rotated;
                set
            }
        };
        let data = match registers.graphics(ROTATE) >> 3 & 3 {
            0 => data,
            1 => data & self.latch,
            2 => data | self.latch,
            _ => data ^ self.latch,
        };
        let bits = each(bits);
        data & bits | self.latch & !bits
    }
}
