//! The transceiver in the chip. Its registers are at fixed places among the others (datasheet 6.19 to 6.28). It agrees
//! with the other end at once, on 100 Mb/s in full duplex.

use serde::{Deserialize, Serialize};

/// Basic mode control.
const RESET: u16 = 1 << 15;
const RESTART: u16 = 1 << 9;
const CONTROL_AT_RESET: u16 = 0x3100;
/// Bits that software sets: speed, negotiation, duplex.
const CONTROL_BITS: u16 = 0x3100;
/// Basic mode status: all of 10 and 100 Mb/s, negotiation, extended registers.
const ABILITIES: u16 = 0x7809;
/// Basic mode status: link, and negotiation complete.
const LINKED: u16 = 0x0024;
/// Everything, in IEEE 802.3's frames, with pauses.
const ADVERTISED: u16 = 0x05e1;
/// What the other end can do is what we can; it has seen ours.
const PARTNER: u16 = 0x45e1;
/// N-way expansion: the other end negotiates, and a new page came.
const EXPANSION: u16 = 0x0003;
/// Configuration and status: heart beat, jabber, 100 Mb/s whatever the line says.
const STATUS_AT_RESET: u16 = 0x03c0;
/// The same: there is a link; it changed. Drivers look for these two where the datasheet has reserved bits.
const LINK_OK: u16 = 1 << 10;
const LINK_CHANGED: u16 = 1 << 11;

/// What of the transceiver's registers can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phy {
    control: u16,
    advertised: u16,
    changed: bool,
    /// How often the cable was pulled out (DIS).
    disconnects: u16,
}

impl Phy {
    /// After reset.
    pub fn new() -> Self {
        Self { control: CONTROL_AT_RESET, advertised: ADVERTISED, changed: false, disconnects: 0 }
    }

    /// The cable was plugged in or pulled out.
    pub fn moved(&mut self, cable: bool) {
        self.changed = true;
        self.disconnects = self.disconnects.saturating_add(u16::from(!cable));
    }

    /// The 16 bits at `offset`; `cable`: the other end is there.
    pub fn read(&self, offset: u8, cable: bool) -> u16 {
        let linked = |bits: u16| if cable { bits } else { 0 };
        match offset {
            0x62 => self.control,
            0x64 => ABILITIES | linked(LINKED),
            0x66 => self.advertised,
            0x68 => linked(PARTNER),
            0x6a => linked(EXPANSION),
            0x6c => self.disconnects,
            0x74 => STATUS_AT_RESET | linked(LINK_OK) | if self.changed { LINK_CHANGED } else { 0 },
            _ => 0,
        }
    }

    /// The 16 bits at `offset` were read: what reading takes back.
    pub fn was_read(&mut self, offset: u8) {
        match offset {
            0x6c => self.disconnects = 0,
            0x74 => self.changed = false,
            _ => {}
        }
    }

    /// Writes 16 bits; `true`: the link was negotiated anew.
    pub fn write(&mut self, offset: u8, value: u16) -> bool {
        match offset {
            0x62 if value & RESET != 0 => {
                *self = Self::new();
                return true;
            }
            0x62 => {
                self.control = value & CONTROL_BITS;
                return value & RESTART != 0;
            }
            0x66 => self.advertised = value,
            _ => {}
        }
        false
    }
}
