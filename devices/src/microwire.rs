//! Serial EEPROM of type 93C46 with 64 words of 16 bits, as network cards have it (Microchip 93C46B datasheet, table 2-1):
//! chip select, clock and data pins, instructions of nine bits.

use serde::{Deserialize, Serialize};

/// Words.
pub const WORDS: usize = 64;
/// Start bit, two bits of operation and six of address.
const INSTRUCTION_BITS: u8 = 9;
/// With the word that follows.
const WRITE_BITS: u8 = INSTRUCTION_BITS + 16;

/// Operations, with the start bit before them.
mod operation {
    /// With the two highest bits of the address: 0 write disable, 1 write all, 2 erase all, 3 write enable.
    pub const EXTENDED: u8 = 0b100;
    pub const WRITE: u8 = 0b101;
    pub const READ: u8 = 0b110;
    pub const ERASE: u8 = 0b111;
}

/// The part and what is under way with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Microwire {
    words: Vec<u16>,
    writable: bool,
    clock: bool,
    /// Bits taken in since the start bit, and how many.
    input: u32,
    bits: u8,
    /// What is being shifted out; the next bit is the highest.
    output: u32,
}

impl Microwire {
    /// A part with these words; the rest is erased.
    pub fn new(words: &[u16]) -> Self {
        let mut words = words.to_vec();
        words.resize(WORDS, 0xffff);
        Self { words, writable: false, clock: false, input: 0, bits: 0, output: 0 }
    }

    /// The word at `address`.
    pub fn word(&self, address: usize) -> u16 {
        self.words.get(address).copied().unwrap_or(0xffff)
    }

    /// Whether there are as many words as there should be: for states that come from outside.
    pub fn is_whole(&self) -> bool {
        self.words.len() == WORDS
    }

    /// The data output. Not selected, nobody drives it, and it reads as 1; so it does when a write is done.
    pub fn output(&self) -> bool {
        self.bits == 0 || self.output >> 31 != 0
    }

    /// Sets the pins. The part acts on rising edges of its clock while it is selected.
    pub fn pins(&mut self, select: bool, clock: bool, data: bool) {
        let rises = !std::mem::replace(&mut self.clock, clock) && clock;
        if !select {
            // A write starts when the part is let go.
            let taken = std::mem::take(&mut self.bits);
            if taken >= INSTRUCTION_BITS {
                self.program(taken);
            }
            (self.input, self.output) = (0, 0);
            return;
        }
        // Zeros before the start bit count for nothing.
        if !rises || self.bits == 0 && !data {
            return;
        }
        self.output <<= 1;
        if self.bits < WRITE_BITS {
            self.input = self.input << 1 | u32::from(data);
            self.bits += 1;
        }
        if self.bits == INSTRUCTION_BITS && self.input >> 6 == u32::from(operation::READ) {
            // A 0 precedes the data.
            self.output = u32::from(self.word(self.input as usize & 0x3f)) << 15;
        }
    }

    /// Carries out the instruction of which `taken` bits came in, if it changes something.
    fn program(&mut self, taken: u8) {
        let after = taken.saturating_sub(INSTRUCTION_BITS);
        let instruction = self.input >> after;
        let (op, address) = ((instruction >> 6) as u8, instruction as usize & 0x3f);
        let data = (taken == WRITE_BITS).then_some(self.input as u16);
        match (op, address >> 4, data) {
            (operation::EXTENDED, 0, _) => self.writable = false,
            (operation::EXTENDED, 3, _) => self.writable = true,
            _ if !self.writable => {}
            (operation::EXTENDED, 2, _) => self.words.fill(0xffff),
            (operation::EXTENDED, 1, Some(data)) => self.words.fill(data),
            (operation::ERASE, _, _) => self.set(address, 0xffff),
            (operation::WRITE, _, Some(data)) => self.set(address, data),
            _ => {}
        }
    }

    fn set(&mut self, address: usize, value: u16) {
        self.words.get_mut(address).into_iter().for_each(|word| *word = value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Selects the part, clocks `bits` bits of `value` in, and 16 out.
    fn talk(part: &mut Microwire, value: u32, bits: u32, read: bool) -> u16 {
        part.pins(true, false, false);
        for i in (0..bits).rev() {
            for clock in [false, true, false] {
                part.pins(true, clock, value >> i & 1 != 0);
            }
        }
        let mut word = 0;
        for _ in 0..if read { 16 } else { 0 } {
            part.pins(true, true, false);
            word = word << 1 | u16::from(part.output());
            part.pins(true, false, false);
        }
        part.pins(false, false, false);
        word
    }

    #[test]
    fn words_are_read_and_written_bit_by_bit() {
        let mut part = Microwire::new(&[0x8129, 0x1234]);
        let read = |part: &mut Microwire, address: u32| talk(part, 0b110 << 6 | address, 9, true);
        assert_eq!([0, 1, 63].map(|at| read(&mut part, at)), [0x8129, 0x1234, 0xffff]);
        // What asks for eight bits of address gets something else, and so finds out.
        assert_ne!(talk(&mut part, 0b110 << 8, 11, true), 0x8129);
        talk(&mut part, 0b101 << 22 | 1 << 16 | 0x5678, 25, false);
        assert_eq!(read(&mut part, 1), 0x1234, "not before writing is enabled");
        talk(&mut part, 0b100 << 6 | 0x30, 9, false);
        talk(&mut part, 0b101 << 22 | 1 << 16 | 0x5678, 25, false);
        assert_eq!(read(&mut part, 1), 0x5678);
        talk(&mut part, 0b101 << 21 | 1 << 15 | 0x4321, 24, false);
        assert_eq!(read(&mut part, 1), 0x5678, "a word too short is not written");
        talk(&mut part, 0b111 << 6 | 1, 9, false);
        assert_eq!(read(&mut part, 1), 0xffff);
        talk(&mut part, 0b100 << 22 | 0x10 << 16 | 0x0f0f, 25, false);
        assert_eq!([0, 63].map(|at| read(&mut part, at)), [0x0f0f; 2]);
        talk(&mut part, 0b100 << 6, 9, false);
        talk(&mut part, 0b100 << 6 | 0x20, 9, false);
        assert_eq!(read(&mut part, 5), 0x0f0f, "writing is disabled");
        assert!(part.output() && part.is_whole());
    }
}
