//! The counters that the chip writes to memory when asked (datasheet 6.5, DTCCR).

use serde::{Deserialize, Serialize};

/// What is counted. Collisions and aborts there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    sent: u64,
    received: u64,
    receive_errors: u32,
    missed: u16,
    to_us: u64,
    broadcasts: u64,
    multicasts: u32,
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One station.
    Station,
    /// A group.
    Group,
    /// Everybody.
    All,
}

impl Tally {
    /// Bytes in memory.
    pub const LEN: usize = 64;

    /// A frame was sent.
    pub fn sent(&mut self) {
        self.sent = self.sent.wrapping_add(1);
    }

    /// A frame was received.
    pub fn received(&mut self, to: To) {
        self.received = self.received.wrapping_add(1);
        match to {
            To::Station => self.to_us = self.to_us.wrapping_add(1),
            To::Group => self.multicasts = self.multicasts.wrapping_add(1),
            To::All => self.broadcasts = self.broadcasts.wrapping_add(1),
        }
    }

    /// A frame was too long.
    pub fn bad(&mut self) {
        self.receive_errors = self.receive_errors.wrapping_add(1);
    }

    /// A frame was lost for want of a place.
    pub fn missed(&mut self) {
        self.missed = self.missed.wrapping_add(1);
    }

    /// As it is in memory.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (at, value) in [
            (0, &self.sent.to_le_bytes()[..]),
            (8, &self.received.to_le_bytes()),
            (24, &self.receive_errors.to_le_bytes()),
            (28, &self.missed.to_le_bytes()),
            (40, &self.to_us.to_le_bytes()),
            (48, &self.broadcasts.to_le_bytes()),
            (56, &self.multicasts.to_le_bytes()),
        ] {
            bytes[at..at + value.len()].copy_from_slice(value);
        }
        bytes
    }
}
