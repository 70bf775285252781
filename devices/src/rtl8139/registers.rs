//! Registers by the names of Realtek's datasheet (RTL8139C(L)+, revision 1.6, chapter 6), and what reads and writes of
//! them do that involves nobody else.
//!
//! Registers have all widths, and drivers reach them by others. As on the PCI bus, an access here is one to a 32-bit
//! word of which some bytes are meant.

use super::phy::Phy;
use super::tally::Tally;
use crate::microwire::Microwire;
use crate::unimp;
use serde::{Deserialize, Serialize};

/// Bytes of the registers.
pub const LEN: u64 = 256;
const WORDS: usize = 64;
/// Most descriptors of a ring (datasheet 7.1).
pub const RING: u8 = 64;
/// Transmit descriptors that are registers.
const SLOTS: usize = 4;

/// Command (6.8).
pub mod command {
    pub const EMPTY: u8 = 1 << 0;
    pub const TRANSMIT: u8 = 1 << 2;
    pub const RECEIVE: u8 = 1 << 3;
    pub const RESET: u8 = 1 << 4;
}

/// C+ command (6.33).
pub mod plus {
    pub const TRANSMIT: u16 = 1 << 0;
    pub const RECEIVE: u16 = 1 << 1;
    pub const CHECK_SUMS: u16 = 1 << 5;
    pub const UNTAG: u16 = 1 << 6;
    pub const ALL: u16 = 0x7b;
}

/// Interrupts (6.9, 6.10).
pub mod cause {
    pub const ROK: u16 = 1 << 0;
    pub const TOK: u16 = 1 << 2;
    /// No receive descriptor is ours (C+), or the buffer is full.
    pub const RDU: u16 = 1 << 4;
    pub const LINK: u16 = 1 << 5;
    pub const TDU: u16 = 1 << 7;
    pub const SOFTWARE: u16 = 1 << 8;
    pub const TIMEOUT: u16 = 1 << 14;
    pub const ALL: u16 = 0xe1ff;
}

/// Receive configuration (6.12).
pub mod rcr {
    pub const ALL_STATIONS: u32 = 1 << 0;
    pub const OURS: u32 = 1 << 1;
    pub const GROUPS: u32 = 1 << 2;
    pub const BROADCASTS: u32 = 1 << 3;
    /// A frame at the buffer's end goes on behind it and not at its start.
    pub const NO_WRAP: u32 = 1 << 7;
    pub const BITS: u32 = 0x0f03_ffbf;
}

/// Transmit configuration (6.11).
mod tcr {
    pub const BITS: u32 = 0x030f_07f0;
    pub const LOOPBACK: u32 = 3 << 17;
    /// Hardware version.
    pub const VERSION_C: u32 = 0x7400_0000;
    pub const VERSION_C_PLUS: u32 = 0x7480_0000;
}

/// Status of a transmit descriptor (6.3).
mod tsd {
    pub const LEN: u32 = 0x1fff;
    /// The chip is done with it.
    pub const OWN: u32 = 1 << 13;
    pub const TOK: u32 = 1 << 15;
    /// Bits that software sets: length, OWN, threshold.
    pub const BITS: u32 = LEN | OWN | 0x3f_0000;
}

/// EEPROM (6.14).
mod eeprom {
    pub const DATA_OUT: u8 = 1 << 0;
    pub const DATA_IN: u8 = 1 << 1;
    pub const CLOCK: u8 = 1 << 2;
    pub const SELECT: u8 = 1 << 3;
    pub const MODE: u8 = 3 << 6;
    pub const LOAD: u8 = 1 << 6;
    pub const PROGRAM: u8 = 2 << 6;
    pub const CONFIGURE: u8 = 3 << 6;
    /// What is in the first word if there is an EEPROM.
    pub const MAGIC: u16 = 0x8129;
    /// The first of three words with the hardware address.
    pub const ADDRESS: usize = 7;
}

/// Transmit polling (6.30).
mod poll {
    pub const SOFTWARE: u8 = 1 << 0;
    pub const QUEUES: u8 = 3 << 6;
}

/// Cycles of the PCI clock, which the timer counts, in a microsecond.
const CLOCK_MHZ: u128 = 33;
/// Tally dump: start.
const DUMP: u64 = 1 << 3;

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// There are the registers of C+ mode.
    #[serde(skip)]
    pub plus: bool,
    /// There is a cable, and it is plugged in.
    #[serde(skip)]
    pub cable: bool,
    pub id: [u8; 6],
    pub mar: u64,
    tx_status: [u32; SLOTS],
    /// Addresses of C mode's transmit buffers; in C+ mode those of the normal and the high priority ring.
    tx_address: [u32; SLOTS],
    /// Next transmit descriptor of C mode, and of both rings.
    slot: u8,
    tx_index: [u8; 2],
    /// Where the tally goes (6.5).
    tally_address: u64,
    pub tally: Tally,
    pub rx_buffer: u32,
    /// Where the driver reads and the chip writes in the receive buffer.
    rx_read: u32,
    pub rx_write: u32,
    pub rx_index: u8,
    rx_ring: u64,
    pub command: u8,
    imr: u16,
    pub isr: u16,
    tcr: u32,
    pub rcr: u32,
    /// Guest time at which the timer was 0.
    timer_start: u64,
    timer_interrupt: u32,
    /// When it next reaches that.
    timer_due: Option<u64>,
    missed: u32,
    eeprom_control: u8,
    pub eeprom: Microwire,
    config: [u8; 6],
    pub phy: Phy,
    pub cpcr: u16,
    /// Rings that are to be looked at: bit 6 the normal one, bit 7 the one of high priority.
    pub polled: u8,
    /// Registers that hold what was written and do nothing in this model.
    plain: Vec<u32>,
    /// A frame was refused for want of room.
    pub starved: bool,
}

/// What a write asks the device to do, beyond changing registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Something to send.
    pub transmit: bool,
    /// Perhaps room to receive, after there was none.
    pub receive: bool,
    /// Reset of the chip.
    pub reset: bool,
    /// The tally is to be written there.
    pub dump: Option<u64>,
}

/// What C mode is to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where it lies.
    pub address: u64,
    /// Bytes.
    pub len: usize,
    number: usize,
}

/// A write to some bytes of a word.
#[derive(Clone, Copy)]
struct Bytes {
    value: u32,
    mask: u32,
}

impl Bytes {
    /// The word as it is afterwards.
    fn over(self, before: u32) -> u32 {
        before & !self.mask | self.value & self.mask
    }

    /// Byte `index`, if it is meant.
    fn byte(self, index: u32) -> Option<u8> {
        let shift = 8 * (index & 3);
        (self.mask >> shift & 0xff != 0).then_some((self.value >> shift) as u8)
    }

    /// Half `index` of the word as it is afterwards, if any of it is meant.
    fn half(self, index: u32, before: u16) -> Option<u16> {
        let shift = 16 * (index & 1);
        let mask = (self.mask >> shift) as u16;
        (mask != 0).then_some(before & !mask | (self.value >> shift) as u16 & mask)
    }
}

fn pair(low: u16, high: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// Writes half of 64 bits.
fn write_half(whole: &mut u64, high: bool, bytes: Bytes) {
    let shift = if high { 32 } else { 0 };
    let new = u64::from(bytes.over((*whole >> shift) as u32)) << shift;
    *whole = *whole & !(0xffff_ffff << shift) | new;
}

/// Plain registers, with the bits they have: multiple interrupt select, test registers, parameters of the line, wake-up
/// frames, interrupt mitigation, early transmit threshold.
fn plain_mask(offset: u8) -> u32 {
    match offset {
        0x5c => 0xffff,
        0x70 => 0xffff_ffff,
        0x78 | 0x7c => u32::MAX,
        0x80 => 0xff,
        0x84..=0xd3 => u32::MAX,
        0xe0 => 0xffff_0000,
        0xec => 0x3f,
        _ => 0,
    }
}

impl Registers {
    /// After power-on, with the address in the EEPROM.
    pub fn power_on(mac: [u8; 6], plus: bool, cable: bool) -> Self {
        let mut words = [0; 10];
        words[0] = eeprom::MAGIC;
        // Identifiers: vendor, device, subsystem.
        words[1..5].copy_from_slice(&[0x10ec, 0x8139, 0x1af4, 0x1100]);
        for (word, two) in words[eeprom::ADDRESS..].iter_mut().zip(mac.chunks(2)) {
            *word = u16::from_le_bytes([two[0], two[1]]);
        }
        Self {
            plus,
            cable,
            id: mac,
            mar: 0,
            tx_status: [tsd::OWN; SLOTS],
            tx_address: [0; SLOTS],
            slot: 0,
            tx_index: [0; 2],
            tally_address: 0,
            tally: Tally::default(),
            rx_buffer: 0,
            rx_read: 0,
            rx_write: 0,
            rx_index: 0,
            rx_ring: 0,
            command: 0,
            imr: 0,
            isr: 0,
            tcr: 0x0300_0000,
            rcr: 0,
            timer_start: 0,
            timer_interrupt: 0,
            timer_due: None,
            missed: 0,
            eeprom_control: 0,
            eeprom: Microwire::new(&words),
            // Registers in I/O and in memory space; fast back-to-back.
            config: [0, 0x0c, 0, 0x01, 0, 0],
            phy: Phy::new(),
            cpcr: 0,
            polled: 0,
            plain: vec![0; WORDS],
            starved: false,
        }
    }

    /// Command.RST: addresses and what the EEPROM has stay (6.8).
    pub fn reset(&mut self, now: u64) {
        let Self { plus, cable, id, mar, eeprom, config, phy, .. } = self.clone();
        let fresh = Self::power_on(id, plus, cable);
        *self = Self { mar, eeprom, config, phy, timer_start: now, ..fresh };
    }

    /// The link's state changed.
    pub fn set_cable(&mut self, cable: bool) {
        if self.cable != cable {
            self.cable = cable;
            self.phy.moved(cable);
            self.isr |= cause::LINK;
        }
    }

    /// Whether an interrupt is due.
    pub fn pending(&self) -> bool {
        self.isr & self.imr != 0
    }

    /// Frames go back to the receiver.
    pub fn loops_back(&self) -> bool {
        self.tcr & tcr::LOOPBACK == tcr::LOOPBACK
    }

    /// C+ mode, at least one way.
    fn in_plus_mode(&self) -> bool {
        self.cpcr & (plus::TRANSMIT | plus::RECEIVE) != 0
    }

    /// Transmits from rings.
    pub fn sends_from_rings(&self) -> bool {
        self.command & command::TRANSMIT != 0 && self.cpcr & plus::TRANSMIT != 0
    }

    /// Receives to a ring.
    pub fn receives_to_ring(&self) -> bool {
        self.cpcr & plus::RECEIVE != 0
    }

    /// What C mode sends next.
    pub fn next_slot(&self) -> Option<Slot> {
        let number = usize::from(self.slot) % SLOTS;
        let status = self.tx_status[number];
        let on = self.command & command::TRANSMIT != 0 && self.cpcr & plus::TRANSMIT == 0;
        (on && status & tsd::OWN == 0).then_some(Slot {
            address: self.tx_address[number].into(),
            len: (status & tsd::LEN) as usize,
            number,
        })
    }

    /// `slot` was sent.
    pub fn slot_done(&mut self, slot: Slot) {
        self.tx_status[slot.number] |= tsd::OWN | tsd::TOK;
        self.slot = (slot.number as u8 + 1) % SLOTS as u8;
        self.isr |= cause::TOK;
        self.tally.sent();
    }

    /// Where the next descriptor of transmit ring `queue` (0 normal, 1 high priority) lies.
    pub fn tx_descriptor(&self, queue: usize) -> u64 {
        let queue = queue & 1;
        let base = u64::from(self.tx_address[2 * queue + 1]) << 32 | u64::from(self.tx_address[2 * queue] & !0xff);
        base.wrapping_add(16 * u64::from(self.tx_index[queue] % RING))
    }

    /// Goes on to the next descriptor of ring `queue`; `end`: that was the last one.
    pub fn tx_advance(&mut self, queue: usize, end: bool) {
        let index = &mut self.tx_index[queue & 1];
        *index = if end { 0 } else { (*index + 1) % RING };
    }

    /// Where descriptor `index` of the receive ring lies.
    pub fn rx_descriptor(&self, index: u8) -> u64 {
        (self.rx_ring & !0xff).wrapping_add(16 * u64::from(index % RING))
    }

    /// Bytes of the receive buffer of C mode.
    pub fn rx_size(&self) -> u32 {
        8192 << (self.rcr >> 11 & 3)
    }

    /// How many bytes of it are free.
    pub fn rx_room(&self) -> u32 {
        let size = self.rx_size();
        size - (self.rx_write.wrapping_sub(self.rx_read) & (size - 1))
    }

    /// A frame was lost for want of room.
    pub fn miss(&mut self) {
        self.missed = (self.missed + 1) & 0xff_ffff;
        self.tally.missed();
        self.isr |= cause::RDU;
    }

    fn ticks(&self, now: u64) -> u128 {
        u128::from(now.saturating_sub(self.timer_start)) * CLOCK_MHZ / 1000
    }

    /// Settles when the timer next reaches its interrupt value (6.16: never if that is 0).
    fn set_timer(&mut self, now: u64) {
        const PERIOD: u128 = 1 << 32;
        let ticks = self.ticks(now);
        let wanted = u128::from(self.timer_interrupt);
        let round = ticks & !(PERIOD - 1);
        let next = if round + wanted > ticks { round + wanted } else { round + PERIOD + wanted };
        let after = (next * 1000).div_ceil(CLOCK_MHZ);
        let due = u64::try_from(after).ok().and_then(|after| self.timer_start.checked_add(after));
        self.timer_due = due.filter(|_| wanted != 0);
    }

    /// What the timer came to by `now`; when it is next due.
    pub fn timer(&mut self, now: u64) -> Option<u64> {
        if self.timer_due.is_some_and(|due| now >= due) {
            self.isr |= cause::TIMEOUT;
            self.set_timer(now);
        }
        // Without its interrupt nobody waits for it.
        self.timer_due.filter(|_| self.imr & cause::TIMEOUT != 0 && self.isr & cause::TIMEOUT == 0)
    }

    /// TSAD: status of all four descriptors at once (6.18).
    fn summary(&self) -> u16 {
        let bits = |bit: u32| (0..SLOTS).fold(0u16, |all, i| all | u16::from(self.tx_status[i] & bit != 0) << i);
        bits(tsd::OWN) | bits(tsd::TOK) << 12
    }

    /// What the EEPROM's register shows.
    fn eeprom_pins(&self) -> u8 {
        let programs = self.eeprom_control & eeprom::MODE == eeprom::PROGRAM;
        self.eeprom_control | if programs && self.eeprom.output() { eeprom::DATA_OUT } else { 0 }
    }

    /// Reads `size` bytes at `offset`, within a 32-bit word.
    pub fn read(&mut self, offset: u8, size: u8, now: u64) -> u32 {
        let (word, shift) = (offset & !3, 8 * u32::from(offset & 3));
        let value = self.word(word, now);
        for half in [word, word + 2] {
            // Either byte takes back what reading takes back.
            if half < offset.saturating_add(size) && offset <= half + 1 {
                self.phy.was_read(half);
            }
        }
        value >> shift & u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
    }

    fn word(&self, offset: u8, now: u64) -> u32 {
        let phy = |offset| self.phy.read(offset, self.cable);
        let [a, b, c, d, e, f] = self.id;
        match offset {
            0x00 => u32::from_le_bytes([a, b, c, d]),
            0x04 => u32::from_le_bytes([e, f, 0, 0]),
            0x08 => self.mar as u32,
            0x0c => (self.mar >> 32) as u32,
            0x10 if self.in_plus_mode() => self.tally_address as u32,
            0x14 if self.in_plus_mode() => (self.tally_address >> 32) as u32,
            0x10..=0x1c => self.tx_status[usize::from(offset - 0x10) / 4],
            0x20..=0x2c => self.tx_address[usize::from(offset - 0x20) / 4],
            0x30 => self.rx_buffer,
            0x34 => {
                let empty = if self.rx_room() == self.rx_size() { command::EMPTY } else { 0 };
                u32::from(self.command | empty) << 24
            }
            0x38 => pair((self.rx_read as u16).wrapping_sub(0x10), self.rx_write as u16),
            0x3c => pair(self.imr, self.isr),
            0x40 => self.tcr | if self.plus { tcr::VERSION_C_PLUS } else { tcr::VERSION_C },
            0x44 => self.rcr,
            0x48 => self.ticks(now) as u32,
            0x4c => self.missed,
            0x50 => u32::from_le_bytes([self.eeprom_pins(), self.config[0], self.config[1], 0]),
            0x54 => self.timer_interrupt,
            // Media status (6.17): flow control both ways, auxiliary power; the link bit says that there is none.
            0x58 => u32::from_le_bytes([0xd0 | u8::from(!self.cable) << 2, self.config[3], self.config[4], 0]),
            // Revision.
            0x5c => self.plain(offset) | 0x10 << 16,
            0x60 => pair(self.summary(), phy(0x62)),
            0x64 | 0x68 | 0x6c | 0x74 => pair(phy(offset), phy(offset + 2)),
            0xd8 => self.config[5].into(),
            0xe0 if self.plus => pair(self.cpcr, 0) | self.plain(offset),
            0xe4 if self.plus => self.rx_ring as u32,
            0xe8 if self.plus => (self.rx_ring >> 32) as u32,
            _ => self.plain(offset),
        }
    }

    fn plain(&self, offset: u8) -> u32 {
        self.plain.get(usize::from(offset) / 4).copied().unwrap_or(0)
    }

    /// Writes the low `size` bytes of `value` at `offset`, within a 32-bit word.
    pub fn write(&mut self, offset: u8, size: u8, value: u32, now: u64) -> Effect {
        let shift = 8 * u32::from(offset & 3);
        let mask = u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))) << shift;
        let bytes = Bytes { value: value << shift, mask };
        let mut effect = Effect::default();
        match offset & !3 {
            at @ (0x00 | 0x04) => {
                let old =
                    u32::from_le_bytes([0, 1, 2, 3].map(|i| self.id.get(usize::from(at) + i).copied().unwrap_or(0)));
                let new = bytes.over(old).to_le_bytes();
                self.id.iter_mut().skip(at.into()).zip(new).for_each(|(to, from)| *to = from);
            }
            at @ (0x08 | 0x0c) => write_half(&mut self.mar, at == 0x0c, bytes),
            at @ 0x10..=0x1c => self.write_status(usize::from(at - 0x10) / 4, bytes, &mut effect),
            at @ 0x20..=0x2c => {
                let address = &mut self.tx_address[usize::from(at - 0x20) / 4];
                *address = bytes.over(*address);
            }
            0x30 => self.rx_buffer = bytes.over(self.rx_buffer),
            0x34 => bytes.byte(3).into_iter().for_each(|value| self.write_command(value, &mut effect)),
            0x38 => {
                if let Some(value) = bytes.half(0, (self.rx_read as u16).wrapping_sub(0x10)) {
                    self.rx_read = u32::from(value.wrapping_add(0x10)) & (self.rx_size() - 1);
                    effect.receive = self.starved;
                }
            }
            0x3c => {
                self.imr = bytes.half(0, self.imr).unwrap_or(self.imr) & cause::ALL;
                self.isr &= !bytes.half(1, 0).unwrap_or(0);
                // Drivers of rings tell of free descriptors in no other way.
                effect.receive = self.starved;
            }
            0x40 => self.tcr = bytes.over(self.tcr) & tcr::BITS,
            0x44 => {
                self.rcr = bytes.over(self.rcr) & rcr::BITS;
                let inside = self.rx_size() - 1;
                (self.rx_read, self.rx_write) = (self.rx_read & inside, self.rx_write & inside);
                effect.receive = self.starved;
            }
            0x48 => {
                self.timer_start = now;
                self.set_timer(now);
            }
            0x4c => self.missed = 0,
            0x54 => {
                self.timer_interrupt = bytes.over(self.timer_interrupt);
                self.set_timer(now);
            }
            0x50 => self.write_eeprom(bytes),
            0x58 => {
                self.configure(3, bytes.byte(1), 0x70);
                self.configure(4, bytes.byte(2), 0xf5);
            }
            at @ (0x60 | 0x64 | 0x68) => {
                for (half, place) in [(0, at), (1, at + 2)] {
                    let new = bytes.half(half, self.phy.read(place, self.cable));
                    if new.is_some_and(|value| self.phy.write(place, value)) {
                        self.isr |= cause::LINK;
                    }
                }
            }
            0xd8 => {
                self.configure(5, bytes.byte(0), 0x7f);
                self.poll(bytes.byte(1).unwrap_or(0), &mut effect);
            }
            at @ 0xe0 => {
                if let Some(value) = bytes.half(0, self.cpcr).filter(|_| self.plus) {
                    self.cpcr = value & plus::ALL;
                }
                self.write_plain(at, bytes);
            }
            at @ (0xe4 | 0xe8) if self.plus => write_half(&mut self.rx_ring, at == 0xe8, bytes),
            at => self.write_plain(at, bytes),
        }
        effect
    }

    fn write_plain(&mut self, offset: u8, bytes: Bytes) {
        let mask = plain_mask(offset);
        if mask & bytes.mask == 0 && bytes.value != 0 && !(offset == 0xe0 && self.plus) {
            unimp!("rtl8139: write of {:#010x} to the register at {offset:#04x}", bytes.value);
        }
        if let Some(word) = self.plain.get_mut(usize::from(offset) / 4) {
            *word = bytes.over(*word) & mask;
        }
    }

    /// The status of a transmit descriptor, or where the tally goes.
    fn write_status(&mut self, number: usize, bytes: Bytes, effect: &mut Effect) {
        if !self.in_plus_mode() {
            let status = &mut self.tx_status[number % SLOTS];
            // Reports of the frame before are gone with it.
            *status = bytes.over(*status) & tsd::BITS;
            effect.transmit = *status & tsd::OWN == 0;
        } else if number < 2 {
            write_half(&mut self.tally_address, number == 1, bytes);
            // What is done at once never shows as under way.
            let starts = self.tally_address & DUMP != 0;
            self.tally_address &= !DUMP;
            effect.dump = starts.then_some(self.tally_address & !0x3f);
        }
    }

    fn write_command(&mut self, value: u8, effect: &mut Effect) {
        if value & command::RESET != 0 {
            effect.reset = true;
            return;
        }
        let new = value & (command::RECEIVE | command::TRANSMIT);
        let rises = new & !self.command;
        self.command = new;
        // Both begin with their first descriptor.
        if rises & command::TRANSMIT != 0 {
            (self.slot, self.tx_index) = (0, [0; 2]);
            effect.transmit = true;
        }
        if rises & command::RECEIVE != 0 {
            (self.rx_read, self.rx_write, self.rx_index) = (0, 0, 0);
        }
        effect.receive = self.starved;
    }

    fn write_eeprom(&mut self, bytes: Bytes) {
        if let Some(value) = bytes.byte(0) {
            let on = |bit: u8| value & bit != 0;
            let programs = value & eeprom::MODE == eeprom::PROGRAM;
            self.eeprom.pins(programs && on(eeprom::SELECT), on(eeprom::CLOCK), on(eeprom::DATA_IN));
            self.eeprom_control = value & !eeprom::DATA_OUT;
            if value & eeprom::MODE == eeprom::LOAD {
                // Done at once, and back to normal.
                let word = |i| self.eeprom.word(eeprom::ADDRESS + i).to_le_bytes();
                let ([a, b], [c, d], [e, f]) = (word(0), word(1), word(2));
                self.id = [a, b, c, d, e, f];
                self.eeprom_control &= !eeprom::MODE;
            }
        }
        self.configure(1, bytes.byte(2), 0xf3);
    }

    /// Changes the bits of `mask` in CONFIGn, which the EEPROM's register protects.
    fn configure(&mut self, number: usize, value: Option<u8>, mask: u8) {
        let allowed = self.eeprom_control & eeprom::MODE == eeprom::CONFIGURE;
        if let (Some(value), Some(config)) = (value.filter(|_| allowed), self.config.get_mut(number)) {
            *config = *config & !mask | value & mask;
        }
    }

    fn poll(&mut self, value: u8, effect: &mut Effect) {
        if value & poll::SOFTWARE != 0 {
            self.isr |= cause::SOFTWARE;
        }
        if self.plus {
            self.polled |= value & poll::QUEUES;
            effect.transmit = self.polled != 0;
        }
    }

    /// Whether tables have their lengths and positions are inside: for states that come from outside.
    pub fn is_whole(&self) -> bool {
        let inside = self.rx_read.max(self.rx_write) < self.rx_size();
        self.plain.len() == WORDS && self.eeprom.is_whole() && inside && self.rcr & !rcr::BITS == 0
    }
}
