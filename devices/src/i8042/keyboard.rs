//! A PS/2 keyboard with 102 keys and scan code sets 1 and 2 (IBM PS/2 Hardware Interface Technical Reference, "Keyboards").

use crate::state::Inspector;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Codes the keyboard keeps for a host that does not read. One more is answered with an overrun code.
const QUEUE: usize = 16;
/// Replies may exceed the key queue, by no more than this.
const QUEUE_WITH_REPLIES: usize = QUEUE + 8;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

/// What the controller's translation (command byte bit 6) makes of each set 2 code below 0x80, for the table's use in
/// both directions. From the scan code tables of the technical reference: set 2 row, set 1 value.
pub(super) const SET_2_TO_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59, // 00
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b, // 10
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d, // 20
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f, // 30
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61, // 40
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76, // 50
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f, // 60
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54, // 70
];

/// The code that set 2 has for a key's set 1 code.
fn set_2_code(set_1: u8) -> Option<u8> {
    match set_1 {
        // F7 and SysRq have codes of their own above 0x7f.
        0x41 => Some(0x83),
        0x54 => Some(0x84),
        code => SET_2_TO_1.iter().position(|c| *c == code).map(|i| i as u8),
    }
}

/// A key, by its code in set 1 as `sendkey` and displays know it: 0x01 to 0x7f, with 0xe000 added for the keys that
/// have an 0xe0 prefix. Pause is [`Key::PAUSE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u16);

impl Key {
    /// The Pause key, which has no release code.
    pub const PAUSE: Key = Key(0xe046);
    /// Print Screen.
    pub const PRINT: Key = Key(0xe037);
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keyboard {
    queue: VecDeque<u8>,
    /// The command whose parameter comes next.
    command: Option<u8>,
    scanning: bool,
    set: u8,
    /// Bits 0 to 2: scroll, num, caps lock.
    leds: u8,
    typematic: u8,
    /// What `resend` repeats.
    last_sent: u8,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self { queue: VecDeque::new(), command: None, scanning: true, set: 2, leds: 0, typematic: 0x2b, last_sent: 0 }
    }

    pub(super) fn is_sane(&self) -> bool {
        self.queue.len() <= QUEUE_WITH_REPLIES && matches!(self.set, 1 | 2)
    }

    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next byte for the controller.
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    fn reply(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.queue.len() < QUEUE_WITH_REPLIES {
                self.queue.push_back(*byte);
            }
        }
    }

    fn defaults(&mut self) {
        let Self { queue, command, scanning: _, set, leds: _, typematic, last_sent: _ } = self;
        queue.clear();
        *command = None;
        *set = 2;
        *typematic = 0x2b;
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(command) = self.command.take() {
            // A byte above 0xec is no parameter but the next command.
            if byte < 0xed {
                return self.parameter(command, byte);
            }
        }
        match byte {
            0xee => self.reply(&[0xee]),
            // LEDs, scan code set, typematic rate, key types of set 3: a parameter follows.
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.command = Some(byte);
                self.reply(&[ACK]);
            }
            0xf2 => self.reply(&[ACK, 0xab, 0x83]),
            0xf4 => {
                self.queue.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.defaults();
                self.scanning = byte == 0xf6;
                self.reply(&[ACK]);
            }
            // Types of all keys, which matter to set 3 alone.
            0xf7..=0xfa => self.reply(&[ACK]),
            0xfe => self.queue.push_front(self.last_sent),
            0xff => {
                self.defaults();
                self.scanning = true;
                self.leds = 0;
                self.reply(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
        self.queue.truncate(QUEUE_WITH_REPLIES);
    }

    fn parameter(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (0xed, _) => self.leds = byte & 7,
            (0xf0, 0) => return self.reply(&[ACK, self.set]),
            (0xf0, 1 | 2) => self.set = byte,
            // Set 3 is not there, as on most keyboards; the host learns it from this.
            (0xf0, _) => return self.reply(&[RESEND]),
            (0xf3, _) => self.typematic = byte & 0x7f,
            _ => {}
        }
        self.reply(&[ACK]);
    }

    /// A key goes down or up.
    pub(super) fn key(&mut self, key: Key, pressed: bool) {
        if !self.scanning {
            return;
        }
        let codes = self.codes(key, pressed);
        if codes.is_empty() {
            return;
        }
        if self.queue.len() + codes.len() <= QUEUE {
            self.queue.extend(codes);
        } else if self.queue.len() < QUEUE {
            // Overrun: 0xff in set 1, 0x00 in the others.
            self.queue.push_back(if self.set == 1 { 0xff } else { 0 });
        }
    }

    fn codes(&self, key: Key, pressed: bool) -> Vec<u8> {
        let [high, low] = key.0.to_be_bytes();
        let set_1 = self.set == 1;
        match (key, pressed) {
            (Key::PAUSE, false) => return Vec::new(),
            (Key::PAUSE, true) if set_1 => return vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
            (Key::PAUSE, true) => return vec![0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            (Key::PRINT, true) if set_1 => return vec![0xe0, 0x2a, 0xe0, 0x37],
            (Key::PRINT, false) if set_1 => return vec![0xe0, 0xb7, 0xe0, 0xaa],
            (Key::PRINT, true) => return vec![0xe0, 0x12, 0xe0, 0x7c],
            (Key::PRINT, false) => return vec![0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            _ => {}
        }
        let Some(set_2) = set_2_code(low & 0x7f).filter(|_| low != 0 && low < 0x80) else { return Vec::new() };
        let mut codes = Vec::new();
        if high == 0xe0 {
            codes.push(0xe0);
        }
        match (set_1, pressed) {
            (true, true) => codes.push(low),
            (true, false) => codes.push(low | 0x80),
            (false, true) => codes.push(set_2),
            (false, false) => codes.extend([0xf0, set_2]),
        }
        codes
    }

    pub(super) fn inspect(&self, out: &mut Inspector) {
        let Self { queue, command, scanning, set, leds, typematic, last_sent: _ } = self;
        out.field("queue", format_args!("{queue:02x?}"));
        out.field("command", format_args!("{command:02x?}"));
        out.field("scanning", scanning);
        out.field("set", set);
        out.field("leds", format_args!("{leds:#x}"));
        out.field("typematic", format_args!("{typematic:#04x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.take()).collect()
    }

    #[test]
    fn commands_are_answered() {
        let mut k = Keyboard::new();
        let mut ask = |bytes: &[u8]| {
            bytes.iter().for_each(|b| k.command(*b));
            sent(&mut k)
        };
        assert_eq!(ask(&[0xff]), [0xfa, 0xaa]);
        assert_eq!(ask(&[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(ask(&[0xee]), [0xee]);
        assert_eq!(ask(&[0xed, 0x05]), [0xfa, 0xfa]);
        assert_eq!(ask(&[0xf3, 0x00]), [0xfa, 0xfa]);
        assert_eq!(ask(&[0xf0, 0x00]), [0xfa, 0xfa, 2]);
        assert_eq!(ask(&[0xf0, 0x03]), [0xfa, 0xfe]);
        assert_eq!(ask(&[0xfe]), [0xfe]);
        assert_eq!(ask(&[0x10]), [0xfe]);
        assert_eq!(ask(&[0xed, 0xf4]), [0xfa], "a command instead of the parameter takes its place");
        assert_eq!(k.leds(), 5);
    }

    #[test]
    fn keys_in_both_sets() {
        let mut k = Keyboard::new();
        k.key(Key(0x1e), true);
        k.key(Key(0x1e), false);
        k.key(Key(0xe048), true);
        k.key(Key(0xe048), false);
        assert_eq!(sent(&mut k), [0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75]);
        k.key(Key(0x41), true);
        k.key(Key::PAUSE, false);
        k.key(Key(0), true);
        k.key(Key(0x80), true);
        assert_eq!(sent(&mut k), [0x83]);
        k.command(0xf0);
        k.command(1);
        sent(&mut k);
        k.key(Key(0xe048), false);
        assert_eq!(sent(&mut k), [0xe0, 0xc8]);
        k.command(0xf5);
        sent(&mut k);
        k.key(Key(0x1e), true);
        assert!(!k.has_output(), "disabled");
    }

    #[test]
    fn overrun_is_told() {
        let mut k = Keyboard::new();
        for _ in 0..40 {
            k.key(Key(0x02), true);
        }
        assert_eq!(sent(&mut k).len(), QUEUE);
        for _ in 0..6 {
            k.key(Key(0xe048), false);
        }
        assert_eq!(sent(&mut k).last(), Some(&0));
    }
}
