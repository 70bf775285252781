//! The register file (IBM VGA technical reference; FreeVGA gives the same): miscellaneous output, sequencer, graphics
//! controller, CRT controller, attribute controller and palette, at ports 0x3B0 to 0x3DF.

use serde::{Deserialize, Serialize};

/// Port, and how the registers behind indexes are arranged.
pub const FIRST_PORT: u16 = 0x3b0;
pub const PORTS: u16 = 0x30;
const ATTRIBUTE: u16 = 0x3c0;
const ATTRIBUTE_READ: u16 = 0x3c1;
const MISCELLANEOUS: u16 = 0x3c2;
const SEQUENCER: u16 = 0x3c4;
const PALETTE_MASK: u16 = 0x3c6;
const PALETTE_READ: u16 = 0x3c7;
const PALETTE_WRITE: u16 = 0x3c8;
const PALETTE_DATA: u16 = 0x3c9;
const FEATURE_READ: u16 = 0x3ca;
const MISCELLANEOUS_READ: u16 = 0x3cc;
const GRAPHICS: u16 = 0x3ce;
/// CRT controller and status, for colour; monochrome has them at 0x3B4 and 0x3BA.
const CRT: u16 = 0x3d4;
const STATUS: u16 = 0x3da;
const COLOUR_OFFSET: u16 = 0x20;
/// Miscellaneous output: colour addresses.
const COLOUR: u8 = 1;
/// Index of the attribute controller: the display takes its palette from it.
const PALETTE_SOURCE: u8 = 0x20;
/// Registers 0 to 7 of the CRT controller are protected by this bit of register 0x11, but for one bit of register 7.
const PROTECT: u8 = 0x80;
const LINE_COMPARE_BIT: u8 = 0x10;
/// Bits of the status that change as the beam moves: blanking and vertical retrace.
const BEAM: u8 = 0x09;

/// Bits of sequencer registers that exist.
const SEQUENCER_MASKS: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
/// The same for the graphics controller.
const GRAPHICS_MASKS: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];
const CRT_REGISTERS: usize = 0x19;
const ATTRIBUTES: usize = 0x15;
const COLOURS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registers {
    miscellaneous: u8,
    feature: u8,
    sequencer_index: u8,
    sequencer: [u8; 5],
    graphics_index: u8,
    graphics: [u8; 9],
    crt_index: u8,
    crt: [u8; CRT_REGISTERS],
    attribute_index: u8,
    /// The next write of the attribute port is data.
    attribute_data: bool,
    attributes: [u8; ATTRIBUTES],
    palette: Vec<[u8; 3]>,
    palette_mask: u8,
    palette_read: (u8, u8),
    palette_write: (u8, u8),
    reading: bool,
    status: u8,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            miscellaneous: 0,
            feature: 0,
            sequencer_index: 0,
            sequencer: [0; 5],
            graphics_index: 0,
            graphics: [0; 9],
            crt_index: 0,
            crt: [0; CRT_REGISTERS],
            attribute_index: 0,
            attribute_data: false,
            attributes: [0; ATTRIBUTES],
            palette: vec![[0; 3]; COLOURS],
            palette_mask: 0xff,
            palette_read: (0, 0),
            palette_write: (0, 0),
            reading: false,
            status: 0,
        }
    }
}

/// One component further.
fn advance((colour, component): (u8, u8)) -> (u8, u8) {
    if component >= 2 { (colour.wrapping_add(1), 0) } else { (colour, component + 1) }
}

impl Registers {
    /// Sequencer register.
    pub fn sequencer(&self, index: usize) -> u8 {
        self.sequencer.get(index).copied().unwrap_or(0)
    }

    /// Graphics controller register.
    pub fn graphics(&self, index: usize) -> u8 {
        self.graphics.get(index).copied().unwrap_or(0)
    }

    /// CRT controller register.
    pub fn crt(&self, index: usize) -> u8 {
        self.crt.get(index).copied().unwrap_or(0)
    }

    /// Attribute controller register.
    pub fn attribute(&self, index: usize) -> u8 {
        self.attributes.get(index).copied().unwrap_or(0)
    }

    /// The palette's colour, six bits each of red, green and blue, that the display takes for `index`.
    pub fn colour(&self, index: u8) -> [u8; 3] {
        self.palette.get(usize::from(index & self.palette_mask)).copied().unwrap_or_default()
    }

    /// As the display interface sets them for its modes: the window shows 64 KiB of memory in a row.
    pub fn show_linear(&mut self) {
        let (mode, window, memory) = (self.graphics(5), self.graphics(6), self.sequencer(4));
        set(&mut self.graphics, 5, mode & !0x10);
        set(&mut self.graphics, 6, window & !0x0c | 0x05);
        set(&mut self.sequencer, 2, 0x0f);
        set(&mut self.sequencer, 4, memory | 0x0c);
    }

    /// Whether the sizes could have come from here.
    pub fn sound(&self) -> bool {
        self.palette.len() == COLOURS && self.palette_read.1 < 3 && self.palette_write.1 < 3
    }

    /// Ports of the other display kind are not decoded.
    fn decoded(&self, port: u16) -> Option<u16> {
        let colour = self.miscellaneous & COLOUR != 0;
        match port {
            0x3b0..=0x3bf if colour => None,
            0x3b0..=0x3bf => Some(port + COLOUR_OFFSET),
            0x3d0..=0x3df if !colour => None,
            _ => Some(port),
        }
    }

    /// A byte read from `port`.
    pub fn read(&mut self, port: u16) -> u8 {
        let Some(port) = self.decoded(port) else { return 0xff };
        match port {
            ATTRIBUTE if self.attribute_data => 0,
            ATTRIBUTE => self.attribute_index,
            ATTRIBUTE_READ => self.attributes.get(usize::from(self.attribute_index & 0x1f)).copied().unwrap_or(0),
            // Input status 0: a display is connected.
            MISCELLANEOUS => 0x10,
            SEQUENCER => self.sequencer_index,
            0x3c5 => self.sequencer(self.sequencer_index.into()),
            PALETTE_MASK => self.palette_mask,
            PALETTE_READ => {
                if self.reading {
                    3
                } else {
                    0
                }
            }
            PALETTE_WRITE => self.palette_write.0,
            PALETTE_DATA => {
                let (colour, component) = self.palette_read;
                self.palette_read = advance(self.palette_read);
                let colour = self.palette.get(usize::from(colour));
                colour.and_then(|c| c.get(usize::from(component))).copied().unwrap_or(0)
            }
            FEATURE_READ => self.feature,
            MISCELLANEOUS_READ => self.miscellaneous,
            GRAPHICS => self.graphics_index,
            0x3cf => self.graphics(self.graphics_index.into()),
            CRT => self.crt_index,
            0x3d5 => self.crt(self.crt_index.into()),
            STATUS => {
                self.attribute_data = false;
                // Whoever waits for the beam sees it come and go.
                self.status ^= BEAM;
                self.status
            }
            _ => 0xff,
        }
    }

    /// A byte written to `port`.
    pub fn write(&mut self, port: u16, value: u8) {
        let Some(port) = self.decoded(port) else { return };
        match port {
            ATTRIBUTE if !self.attribute_data => {
                self.attribute_index = value & (0x1f | PALETTE_SOURCE);
                self.attribute_data = true;
            }
            ATTRIBUTE => {
                self.attribute_data = false;
                // The sixteen colours cannot be changed while they are shown.
                let index = usize::from(self.attribute_index & 0x1f);
                if index >= 16 || self.attribute_index & PALETTE_SOURCE == 0 {
                    set(&mut self.attributes, index, value);
                }
            }
            MISCELLANEOUS => self.miscellaneous = value & !0x10,
            SEQUENCER => self.sequencer_index = value & 7,
            0x3c5 => {
                let index = usize::from(self.sequencer_index);
                set(&mut self.sequencer, index, value & SEQUENCER_MASKS.get(index).copied().unwrap_or(0));
            }
            PALETTE_MASK => self.palette_mask = value,
            PALETTE_READ => (self.palette_read, self.reading) = ((value, 0), true),
            PALETTE_WRITE => (self.palette_write, self.reading) = ((value, 0), false),
            PALETTE_DATA => {
                let (colour, component) = self.palette_write;
                if let Some(colour) = self.palette.get_mut(usize::from(colour)) {
                    set(colour, component.into(), value & 0x3f);
                }
                self.palette_write = advance(self.palette_write);
            }
            GRAPHICS => self.graphics_index = value & 0x0f,
            0x3cf => {
                let index = usize::from(self.graphics_index);
                set(&mut self.graphics, index, value & GRAPHICS_MASKS.get(index).copied().unwrap_or(0));
            }
            CRT => self.crt_index = value,
            0x3d5 => self.set_crt(value),
            STATUS => self.feature = value & 0x10,
            _ => {}
        }
    }

    fn set_crt(&mut self, value: u8) {
        let index = usize::from(self.crt_index);
        if index <= 7 && self.crt(0x11) & PROTECT != 0 {
            if index == 7 {
                let kept = self.crt(7) & !LINE_COMPARE_BIT;
                set(&mut self.crt, 7, kept | value & LINE_COMPARE_BIT);
            }
            return;
        }
        set(&mut self.crt, index, value);
    }
}

fn set(registers: &mut [u8], index: usize, value: u8) {
    if let Some(register) = registers.get_mut(index) {
        *register = value;
    }
}
