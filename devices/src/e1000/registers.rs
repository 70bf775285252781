//! Registers of the 82540EM by the names of Intel's software developer's manual (PCI/PCI-X Family of Gigabit Ethernet
//! Controllers, order 317453, chapter 13), and what reads and writes of them do that involves nobody else.

use super::eeprom::Eeprom;
use super::phy::Phy;
use super::stats::{self, Stats};
use crate::unimp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Offsets (table 13-2).
pub mod reg {
    pub const CTRL: u32 = 0x0000;
    /// The same register again.
    pub const CTRL_DUP: u32 = 0x0004;
    pub const STATUS: u32 = 0x0008;
    pub const EECD: u32 = 0x0010;
    pub const EERD: u32 = 0x0014;
    pub const MDIC: u32 = 0x0020;
    pub const VET: u32 = 0x0038;
    pub const ICR: u32 = 0x00c0;
    pub const ITR: u32 = 0x00c4;
    pub const ICS: u32 = 0x00c8;
    pub const IMS: u32 = 0x00d0;
    pub const IMC: u32 = 0x00d8;
    pub const RCTL: u32 = 0x0100;
    pub const TCTL: u32 = 0x0400;
    pub const PBA: u32 = 0x1000;
    pub const RDBAL: u32 = 0x2800;
    pub const RDTR: u32 = 0x2820;
    pub const TDBAL: u32 = 0x3800;
    pub const RXCSUM: u32 = 0x5000;
    pub const MTA: u32 = 0x5200;
    pub const RA: u32 = 0x5400;
    pub const VFTA: u32 = 0x5600;
}

/// Device control (13.4.1).
pub mod ctrl {
    pub const FD: u32 = 1 << 0;
    pub const SLU: u32 = 1 << 6;
    pub const RST: u32 = 1 << 26;
    pub const VME: u32 = 1 << 30;
    pub const PHY_RST: u32 = 1 << 31;
}

/// Receive control (13.4.22).
pub mod rctl {
    pub const EN: u32 = 1 << 1;
    pub const UPE: u32 = 1 << 3;
    pub const MPE: u32 = 1 << 4;
    pub const LPE: u32 = 1 << 5;
    pub const LBM: u32 = 3 << 6;
    pub const BAM: u32 = 1 << 15;
    pub const VFE: u32 = 1 << 18;
    pub const BSEX: u32 = 1 << 25;
    pub const SECRC: u32 = 1 << 26;
}

/// Transmit control (13.4.33).
pub mod tctl {
    pub const EN: u32 = 1 << 1;
}

/// Interrupt causes (13.4.17).
pub mod cause {
    pub const TXDW: u32 = 1 << 0;
    pub const TXQE: u32 = 1 << 1;
    pub const LSC: u32 = 1 << 2;
    pub const RXDMT0: u32 = 1 << 4;
    pub const RXO: u32 = 1 << 6;
    pub const RXT0: u32 = 1 << 7;
    pub const MDAC: u32 = 1 << 9;
    /// Those that the 82540EM has.
    pub const ALL: u32 = 0x0001_fedf;
}

/// Words of the multicast and VLAN tables.
pub const TABLE: usize = 128;
/// Words of the receive addresses: 16 pairs.
pub const ADDRESSES: usize = 32;
/// A receive address is valid (13.5.4).
pub const ADDRESS_VALID: u32 = 1 << 31;

/// A descriptor ring (13.4.25 to 13.4.29).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Guest-physical address, a multiple of 16.
    pub base: u64,
    /// Length in bytes, a multiple of 128.
    pub len: u32,
    /// The next descriptor of ours.
    pub head: u32,
    /// The first descriptor that is not ours any more.
    pub tail: u32,
}

/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;

impl Ring {
    /// Number of descriptors.
    pub fn count(&self) -> u32 {
        self.len / DESCRIPTOR as u32
    }

    /// Descriptors that are ours; none while head or tail lie outside.
    pub fn ours(&self) -> u32 {
        let count = self.count();
        if self.head >= count || self.tail >= count {
            return 0;
        }
        if self.tail >= self.head { self.tail - self.head } else { count - self.head + self.tail }
    }

    /// Where descriptor `index` lies.
    pub fn address(&self, index: u32) -> u64 {
        self.base.wrapping_add(u64::from(index) * DESCRIPTOR)
    }

    /// The descriptor after `index`.
    pub fn after(&self, index: u32) -> u32 {
        if index + 1 >= self.count() { 0 } else { index + 1 }
    }

    fn read(&self, offset: u32) -> u32 {
        match offset {
            0x00 => self.base as u32,
            0x04 => (self.base >> 32) as u32,
            0x08 => self.len,
            0x10 => self.head,
            0x18 => self.tail,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u32, value: u32) {
        match offset {
            0x00 => self.base = self.base & !0xffff_ffff | u64::from(value & !0xf),
            0x04 => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            0x08 => self.len = value & 0xf_ff80,
            0x10 => self.head = value & 0xffff,
            0x18 => self.tail = value & 0xffff,
            _ => {}
        }
    }
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    pub ctrl: u32,
    /// There is a cable, and it is plugged in.
    #[serde(skip)]
    pub cable: bool,
    pub eeprom: Eeprom,
    pub mdic: u32,
    pub phy: Phy,
    pub icr: u32,
    pub ims: u32,
    pub itr: u32,
    pub rctl: u32,
    pub tctl: u32,
    pub rx: Ring,
    pub tx: Ring,
    pub rxcsum: u32,
    pub vet: u32,
    pub ra: Vec<u32>,
    pub mta: Vec<u32>,
    pub vfta: Vec<u32>,
    pub stats: Stats,
    /// Registers that hold what was written and do nothing in this model: timing of a real cable and of real memory.
    pub plain: BTreeMap<u32, u32>,
    /// Address of indirect accesses (BAR 1).
    pub io_address: u32,
    /// No interrupt before this guest time (ITR).
    pub quiet_until: u64,
    /// A frame was refused for want of descriptors.
    pub starved: bool,
}

/// What a write asks the device to do, beyond changing registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Descriptors to send.
    pub transmit: bool,
    /// Room to receive, after there was none.
    pub receive: bool,
    /// Reset of the card.
    pub reset: bool,
}

/// Plain registers, with the bits they have: flow control, TIPG, AIT, LEDs, packet buffer split, thresholds, FIFO
/// pointers, wake-up.
fn plain_mask(offset: u32) -> Option<u32> {
    Some(match offset {
        0x0018 | 0x001c | 0x0028 | 0x002c | 0x0030 | 0x0170 | 0x0178 | 0x0410 | 0x0458 | 0x0e00 => u32::MAX,
        reg::PBA => 0xffff,
        0x2160 | 0x2168 => 0x8000_fff8,
        0x2410..=0x2430 | 0x3410..=0x3430 => 0x1fff,
        // Delays of interrupts count from 0 here, which the manual allows.
        reg::RDTR | 0x282c | 0x3820 | 0x382c => 0xffff,
        0x2828 | 0x3828 | 0x2c00 | 0x3000 | 0x3830 => u32::MAX,
        0x5800..=0x5810 | 0x5838..=0x5858 | 0x5880..=0x588c | 0x5900 | 0x5a00..=0x5a7c | 0x5f00..=0x5f18 => u32::MAX,
        _ => return None,
    })
}

impl Registers {
    /// After power-on, with the address in the EEPROM.
    pub fn power_on(mac: [u8; 6], cable: bool) -> Self {
        let mut this = Self {
            ctrl: ctrl::FD,
            cable,
            eeprom: Eeprom::new(mac),
            mdic: 0,
            phy: Phy::new(),
            icr: 0,
            ims: 0,
            itr: 0,
            rctl: 0,
            tctl: 0,
            rx: Ring::default(),
            tx: Ring::default(),
            // RXCSUM comes up with its offload bits clear (13.4.32).
            rxcsum: 0,
            vet: 0x8100,
            ra: vec![0; ADDRESSES],
            mta: vec![0; TABLE],
            vfta: vec![0; TABLE],
            stats: Stats::default(),
            plain: BTreeMap::from([(reg::PBA, 0x0010_0030)]),
            io_address: 0,
            quiet_until: 0,
            starved: false,
        };
        this.ra[0] = u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]);
        this.ra[1] = u32::from(mac[4]) | u32::from(mac[5]) << 8 | ADDRESS_VALID;
        this
    }

    /// Frames can come and go.
    pub fn link_up(&self) -> bool {
        self.cable && self.ctrl & ctrl::SLU != 0
    }

    /// The cable is plugged in or pulled out.
    pub fn set_cable(&mut self, cable: bool) {
        let was_up = self.link_up();
        self.cable = cable;
        if was_up != self.link_up() {
            self.icr |= cause::LSC;
        }
    }

    /// 13.4.2: full duplex at 1000 Mb/s, while the link is up.
    fn status(&self) -> u32 {
        const FD: u32 = 1 << 0;
        const LU: u32 = 1 << 1;
        const SPEED_1000: u32 = 2 << 6;
        const DETECTED_1000: u32 = 2 << 8;
        FD | SPEED_1000 | DETECTED_1000 | if self.link_up() { LU } else { 0 }
    }

    /// Whether an interrupt is due.
    pub fn pending(&self) -> bool {
        self.icr & self.ims != 0
    }

    /// Reads the register at `offset`, a multiple of 4.
    pub fn read(&mut self, offset: u32) -> u32 {
        match offset {
            reg::CTRL | reg::CTRL_DUP => self.ctrl,
            reg::STATUS => self.status(),
            reg::EECD => self.eeprom.read_control(),
            reg::EERD => self.eeprom.read_register(),
            reg::MDIC => self.mdic,
            reg::VET => self.vet,
            reg::ICR => std::mem::take(&mut self.icr),
            reg::ITR => self.itr,
            reg::ICS => 0,
            reg::IMS => self.ims,
            reg::IMC => 0,
            reg::RCTL => self.rctl,
            reg::TCTL => self.tctl,
            0x2800..=0x281c => self.rx.read(offset - reg::RDBAL),
            0x3800..=0x381c => self.tx.read(offset - reg::TDBAL),
            reg::RXCSUM => self.rxcsum,
            stats::FIRST..=stats::LAST => self.stats.read(offset),
            0x5200..=0x53fc => word(&self.mta, offset - reg::MTA),
            0x5400..=0x547c => word(&self.ra, offset - reg::RA),
            0x5600..=0x57fc => word(&self.vfta, offset - reg::VFTA),
            _ if plain_mask(offset).is_some() => self.plain.get(&offset).copied().unwrap_or(0),
            _ => {
                unimp!("e1000: read of register {offset:#06x}");
                0
            }
        }
    }

    /// Writes the register at `offset`, a multiple of 4.
    pub fn write(&mut self, offset: u32, value: u32) -> Effect {
        let mut effect = Effect::default();
        match offset {
            reg::CTRL | reg::CTRL_DUP => {
                let was_up = self.link_up();
                self.ctrl = value & !(ctrl::RST | ctrl::PHY_RST);
                effect.reset = value & ctrl::RST != 0;
                if value & ctrl::PHY_RST != 0 {
                    self.phy = Phy::new();
                }
                if was_up != self.link_up() {
                    self.icr |= cause::LSC;
                }
            }
            reg::EECD => self.eeprom.write_control(value),
            reg::EERD => self.eeprom.write_register(value),
            reg::MDIC => self.phy_access(value),
            reg::VET => self.vet = value & 0xffff,
            reg::ICR => self.icr &= !value,
            reg::ITR => self.itr = value & 0xffff,
            reg::ICS => self.icr |= value & cause::ALL,
            reg::IMS => self.ims |= value & cause::ALL,
            reg::IMC => self.ims &= !value,
            reg::RCTL => {
                self.rctl = value;
                effect.receive = self.more_room();
            }
            reg::TCTL => {
                self.tctl = value;
                effect.transmit = self.tx.ours() != 0;
            }
            0x2800..=0x281c => {
                self.rx.write(offset - reg::RDBAL, value);
                effect.receive = self.more_room();
            }
            0x3800..=0x381c => {
                self.tx.write(offset - reg::TDBAL, value);
                effect.transmit = self.tctl & tctl::EN != 0 && self.tx.ours() != 0;
            }
            reg::RXCSUM => self.rxcsum = value & 0x3ff,
            // Statistics are for reading.
            stats::FIRST..=stats::LAST => {}
            0x5200..=0x53fc => set(&mut self.mta, offset - reg::MTA, value),
            0x5400..=0x547c => set(&mut self.ra, offset - reg::RA, value),
            0x5600..=0x57fc => set(&mut self.vfta, offset - reg::VFTA, value),
            _ => match plain_mask(offset) {
                Some(mask) => drop(self.plain.insert(offset, value & mask)),
                None => unimp!("e1000: write of {value:#x} to register {offset:#06x}"),
            },
        }
        effect
    }

    /// Frames that wait on the host side have room now, or are no longer wanted.
    fn more_room(&mut self) -> bool {
        let room = self.rctl & rctl::EN == 0 || self.rx.ours() != 0;
        self.starved && room && {
            self.starved = false;
            true
        }
    }

    /// Access to the transceiver (13.4.6), done at once.
    fn phy_access(&mut self, value: u32) {
        const WRITE: u32 = 1;
        const READ: u32 = 2;
        const READY: u32 = 1 << 28;
        const INTERRUPT: u32 = 1 << 29;
        const ERROR: u32 = 1 << 30;
        let register = value >> 16 & 0x1f;
        self.mdic = value & !ERROR | READY;
        // The transceiver has address 1.
        match (value >> 21 & 0x1f, value >> 26 & 3) {
            (1, READ) => self.mdic = self.mdic & !0xffff | u32::from(self.phy.read(register, self.cable)),
            (1, WRITE) => {
                if self.phy.write(register, value as u16) {
                    self.icr |= cause::LSC;
                }
            }
            _ => self.mdic |= ERROR,
        }
        if value & INTERRUPT != 0 {
            self.icr |= cause::MDAC;
        }
    }

    /// Whether the tables have their lengths: for states that come from outside.
    pub fn is_whole(&self) -> bool {
        let Self { ra, mta, vfta, stats, eeprom, .. } = self;
        ra.len() == ADDRESSES && mta.len() == TABLE && vfta.len() == TABLE && stats.is_whole() && eeprom.is_whole()
    }
}

fn word(table: &[u32], offset: u32) -> u32 {
    table.get(offset as usize / 4).copied().unwrap_or(0)
}

fn set(table: &mut [u32], offset: u32, value: u32) {
    table.get_mut(offset as usize / 4).into_iter().for_each(|word| *word = value);
}
