//! The transceiver on the card, a Marvell 88E1011: as drivers see it through MDIC. It agrees with the other end at
//! once, on 1000 Mb/s in full duplex.

use serde::{Deserialize, Serialize};

/// Registers (IEEE 802.3 22.2.4, and Marvell's own).
const CONTROL: u32 = 0;
const STATUS: u32 = 1;
const IDENTIFIER_1: u32 = 2;
const IDENTIFIER_2: u32 = 3;
const ADVERTISEMENT: u32 = 4;
const PARTNER: u32 = 5;
const EXPANSION: u32 = 6;
const CONTROL_1000: u32 = 9;
const STATUS_1000: u32 = 10;
const STATUS_EXTENDED: u32 = 15;
const SPECIFIC_CONTROL: u32 = 16;
const SPECIFIC_STATUS: u32 = 17;

const RESET: u16 = 1 << 15;
const RESTART: u16 = 1 << 9;
const NEGOTIATE: u16 = 1 << 12;
/// Status: link.
const LINK: u16 = 1 << 2;
/// Status: negotiation is complete.
const COMPLETE: u16 = 1 << 5;
/// Specific status: link.
const SPECIFIC_LINK: u16 = 1 << 10;

/// The registers that software writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phy {
    control: u16,
    advertisement: u16,
    control_1000: u16,
    specific_control: u16,
}

impl Phy {
    /// After reset.
    pub fn new() -> Self {
        Self { control: 0x1140, advertisement: 0x0de1, control_1000: 0x0e00, specific_control: 0x0360 }
    }

    /// Reads a register; `cable`: the other end is there.
    pub fn read(&self, register: u32, cable: bool) -> u16 {
        let linked = |bits: u16| if cable { bits } else { 0 };
        match register {
            CONTROL => self.control,
            // All of 10 and 100 Mb/s, extended status and registers, negotiation.
            STATUS => 0x7949 | linked(LINK | COMPLETE),
            IDENTIFIER_1 => 0x0141,
            IDENTIFIER_2 => 0x0c20,
            ADVERTISEMENT => self.advertisement,
            // The same abilities as ours, acknowledged.
            PARTNER => linked(0x45e1),
            EXPANSION => linked(0x0003),
            CONTROL_1000 => self.control_1000,
            STATUS_1000 => linked(0x7c00),
            STATUS_EXTENDED => 0x3000,
            SPECIFIC_CONTROL => self.specific_control,
            // 1000 Mb/s, full duplex, resolved.
            SPECIFIC_STATUS => linked(0xa800 | SPECIFIC_LINK),
            _ => 0,
        }
    }

    /// Writes a register; `true`: the link was negotiated anew.
    pub fn write(&mut self, register: u32, value: u16) -> bool {
        match register {
            CONTROL if value & RESET != 0 => {
                *self = Self::new();
                return true;
            }
            CONTROL => {
                self.control = value & !RESTART;
                return value & NEGOTIATE != 0 && value & RESTART != 0;
            }
            ADVERTISEMENT => self.advertisement = value,
            CONTROL_1000 => self.control_1000 = value,
            SPECIFIC_CONTROL => self.specific_control = value,
            _ => {}
        }
        false
    }
}
