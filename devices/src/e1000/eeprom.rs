//! The card's EEPROM: 64 words (manual chapter 5), read word by word (EERD, 13.4.4) or bit by bit as a Microwire
//! part of type 93C46 (EECD, 13.4.3).

use crate::microwire::{Microwire, WORDS};
use serde::{Deserialize, Serialize};

/// The words' sum (5.6.35).
const SUM: u16 = 0xbaba;

/// EECD bits.
const CLOCK: u32 = 1 << 0;
const SELECT: u32 = 1 << 1;
const DATA_IN: u32 = 1 << 2;
const DATA_OUT: u32 = 1 << 3;
const REQUEST: u32 = 1 << 6;
const GRANT: u32 = 1 << 7;
const PRESENT: u32 = 1 << 8;
/// Bits that software sets.
const WRITABLE: u32 = CLOCK | SELECT | DATA_IN | 0x30 | REQUEST;

/// EERD bits.
const START: u32 = 1 << 0;
const DONE: u32 = 1 << 4;

/// The EEPROM and what is under way with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eeprom {
    part: Microwire,
    control: u32,
    read: u32,
}

impl Eeprom {
    /// An EEPROM as a card with this address has it.
    pub fn new(mac: [u8; 6]) -> Self {
        let mut words = vec![0xffff; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.chunks(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        for (at, value) in [
            // Compatibility: nothing special. Board number.
            (0x03, 0x0000),
            (0x08, 0x1000),
            (0x09, 0x0001),
            // Initialization control 1: identifiers below are loaded.
            (0x0a, 0x6403),
            // Subsystem and device.
            (0x0b, 0x1100),
            (0x0c, 0x1af4),
            (0x0d, 0x100e),
            (0x0e, 0x8086),
            // Initialization control 2: pause frames both ways, auto-negotiation.
            (0x0f, 0x3040),
            // Initialization control 3: no wake-up.
            (0x24, 0x0000),
        ] {
            words[at] = value;
        }
        let sum = words[..WORDS - 1].iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        words[WORDS - 1] = SUM.wrapping_sub(sum);
        Self { part: Microwire::new(&words), control: 0, read: 0 }
    }

    /// Whether there are as many words as there should be: for states that come from outside.
    pub fn is_whole(&self) -> bool {
        self.part.is_whole()
    }

    /// EERD.
    pub fn read_register(&self) -> u32 {
        self.read
    }

    /// EERD: a read is done at once.
    pub fn write_register(&mut self, value: u32) {
        let address = value >> 8 & 0xff;
        self.read = value & 0xff00;
        if value & START != 0 {
            self.read |= u32::from(self.part.word(address as usize)) << 16 | DONE;
        }
    }

    /// EECD.
    pub fn read_control(&self) -> u32 {
        let out = if self.part.output() { DATA_OUT } else { 0 };
        let grant = if self.control & REQUEST != 0 { GRANT } else { 0 };
        self.control | out | grant | PRESENT
    }

    /// EECD.
    pub fn write_control(&mut self, value: u32) {
        self.control = value & WRITABLE;
        self.part.pins(value & SELECT != 0, value & CLOCK != 0, value & DATA_IN != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    #[test]
    fn the_sum_is_right_and_the_address_comes_first() {
        let e = Eeprom::new(MAC);
        assert_eq!((0..WORDS).fold(0u16, |sum, at| sum.wrapping_add(e.part.word(at))), 0xbaba);
        assert_eq!([0, 1, 2].map(|at| e.part.word(at)), [0x5452, 0x1200, 0x5634]);
    }

    #[test]
    fn words_by_register() {
        let mut e = Eeprom::new(MAC);
        e.write_register(2 << 8 | 1);
        assert_eq!(e.read_register(), 0x5634_0210);
        e.write_register(0xff << 8 | 1);
        assert_eq!(e.read_register() >> 16, 0xffff, "beyond the end");
    }

    /// As drivers do it: request, select, command, 16 bits.
    fn read_by_bits(e: &mut Eeprom, address: u32) -> u16 {
        e.write_control(REQUEST);
        assert_ne!(e.read_control() & GRANT, 0);
        let base = REQUEST | SELECT;
        e.write_control(base);
        let command = 0b110 << 6 | address;
        for i in (0..9).rev() {
            let data = if command >> i & 1 != 0 { DATA_IN } else { 0 };
            for clock in [0, CLOCK, 0] {
                e.write_control(base | data | clock);
            }
        }
        let mut word = 0;
        for _ in 0..16 {
            e.write_control(base | CLOCK);
            word = word << 1 | u16::from(e.read_control() & DATA_OUT != 0);
            e.write_control(base);
        }
        e.write_control(REQUEST);
        e.write_control(0);
        word
    }

    #[test]
    fn words_bit_by_bit() {
        let mut e = Eeprom::new(MAC);
        for address in [0, 1, 2, 0x0f, 0x3f] {
            assert_eq!(read_by_bits(&mut e, address), e.part.word(address as usize));
        }
    }
}
