//! The display interface of Bochs (its "VBE Display API"): modes with all pixels in a row, set by sixteen-bit registers.

use super::memory::SIZE;
use serde::{Deserialize, Serialize};

/// Registers.
const ID: u16 = 0;
const WIDTH: u16 = 1;
const HEIGHT: u16 = 2;
const DEPTH: u16 = 3;
const ENABLE: u16 = 4;
const BANK: u16 = 5;
const VIRTUAL_WIDTH: u16 = 6;
const VIRTUAL_HEIGHT: u16 = 7;
const X_OFFSET: u16 = 8;
const Y_OFFSET: u16 = 9;
const MEMORY: u16 = 10;
/// Bits of the enable register.
const ENABLED: u16 = 1;
const GET_LIMITS: u16 = 2;
const KEEP_MEMORY: u16 = 0x80;
/// The newest version of the interface; drivers write older ones to ask for those.
const VERSION: u16 = 0xb0c5;
const OLDEST: u16 = 0xb0c0;
const MOST_WIDTH: u16 = 16000;
const MOST_HEIGHT: u16 = 12000;
const MOST_DEPTH: u16 = 32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispi {
    index: u16,
    id: u16,
    width: u16,
    height: u16,
    depth: u16,
    enable: u16,
    bank: u16,
    virtual_width: u16,
    x: u16,
    y: u16,
}

impl Default for Dispi {
    fn default() -> Self {
        let (index, width, height, enable, bank, virtual_width, x, y) = Default::default();
        Self { index, id: VERSION, width, height, depth: 8, enable, bank, virtual_width, x, y }
    }
}

/// What a write asks the rest of the card to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Such a mode begins; memory is cleared or not.
    Begins {
        /// Bytes to clear from the start of memory.
        clear: usize,
    },
}

impl Dispi {
    /// Selects a register.
    pub fn select(&mut self, index: u16) {
        self.index = index;
    }

    /// The register selected.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether such a mode is shown.
    pub fn enabled(&self) -> bool {
        self.enable & ENABLED != 0
    }

    /// Width, height and bits of a pixel.
    pub fn mode(&self) -> (u16, u16, u16) {
        (self.width, self.height, self.depth)
    }

    /// What is added to addresses in the window.
    pub fn bank_offset(&self) -> u32 {
        u32::from(self.bank) << 16
    }

    /// Bytes from one row to the next, and where the first one begins.
    pub fn place(&self) -> (usize, usize) {
        let pixel = usize::from(self.depth.max(8)).div_ceil(8);
        (self.pitch(), usize::from(self.y) * self.pitch() + usize::from(self.x) * pixel)
    }

    fn pitch(&self) -> usize {
        usize::from(self.virtual_width.max(self.width)) * usize::from(self.depth.max(8)).div_ceil(8)
    }

    /// The value of register `index`.
    pub fn read(&self, index: u16) -> u16 {
        let limits = self.enable & GET_LIMITS != 0;
        match index {
            ID => self.id,
            WIDTH if limits => MOST_WIDTH,
            HEIGHT if limits => MOST_HEIGHT,
            DEPTH if limits => MOST_DEPTH,
            WIDTH => self.width,
            HEIGHT => self.height,
            DEPTH => self.depth,
            ENABLE => self.enable,
            BANK => self.bank,
            VIRTUAL_WIDTH => self.virtual_width,
            VIRTUAL_HEIGHT => u16::try_from(SIZE / self.pitch().max(1)).unwrap_or(u16::MAX),
            X_OFFSET => self.x,
            Y_OFFSET => self.y,
            MEMORY => (SIZE >> 16) as u16,
            _ => 0,
        }
    }

    /// A write of register `index`.
    pub fn write(&mut self, index: u16, value: u16) -> Effect {
        match index {
            ID if (OLDEST..=VERSION).contains(&value) => self.id = value,
            WIDTH if value <= MOST_WIDTH && value.is_multiple_of(8) => self.width = value,
            HEIGHT if value <= MOST_HEIGHT => self.height = value,
            DEPTH if matches!(value, 4 | 8 | 15 | 16 | 24 | 32) => self.depth = value,
            BANK => self.bank = value % (SIZE >> 16) as u16,
            VIRTUAL_WIDTH => self.virtual_width = value.max(self.width).min(MOST_WIDTH),
            X_OFFSET => self.x = value,
            Y_OFFSET => self.y = value,
            ENABLE => {
                let begins = value & ENABLED != 0 && !self.enabled();
                self.enable = value;
                if begins {
                    (self.virtual_width, self.x, self.y, self.bank) = (self.width, 0, 0, 0);
                    let all = self.pitch().saturating_mul(self.height.into()).min(SIZE);
                    return Effect::Begins { clear: if value & KEEP_MEMORY == 0 { all } else { 0 } };
                }
            }
            _ => {}
        }
        Effect::None
    }
}
