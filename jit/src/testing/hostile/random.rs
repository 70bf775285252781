//! What programs hold in registers, at random.

use super::{RAM, ROM};
use crate::testing::Random;

impl Random {
    /// An address in RAM, sometimes in ROM, at a page's end or where nothing is.
    pub fn address(&mut self) -> u64 {
        match self.below(16) {
            0 => ROM + self.below(0x2000),
            1 => (1 + self.below(RAM >> 12)) * 0x1000 - self.below(16),
            2 => RAM + self.below(0x2000),
            3 => self.bits() >> self.below(64),
            _ => self.below(RAM),
        }
    }

    /// A register's value: mostly an address, else a small number, one near a power of two, or anything.
    pub fn register(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(0x100),
            1 => (1u64 << self.below(64)).wrapping_sub(self.below(3)),
            2 => self.bits(),
            _ => self.address(),
        }
    }
}
