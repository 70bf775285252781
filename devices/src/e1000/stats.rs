//! Statistics registers (13.7): they count, stop at their largest value, and go back to 0 when read.

use serde::{Deserialize, Serialize};

/// Offsets of the registers that count here.
mod reg {
    pub const MPC: u32 = 0x4010;
    pub const PRC64: u32 = 0x405c;
    pub const GPRC: u32 = 0x4074;
    pub const BPRC: u32 = 0x4078;
    pub const MPRC: u32 = 0x407c;
    pub const GPTC: u32 = 0x4080;
    pub const GORC: u32 = 0x4088;
    pub const GOTC: u32 = 0x4090;
    pub const ROC: u32 = 0x40ac;
    pub const TOR: u32 = 0x40c0;
    pub const TOT: u32 = 0x40c8;
    pub const TPR: u32 = 0x40d0;
    pub const TPT: u32 = 0x40d4;
    pub const PTC64: u32 = 0x40d8;
    pub const MPTC: u32 = 0x40f0;
    pub const BPTC: u32 = 0x40f4;
    pub const TSCTC: u32 = 0x40f8;
}

/// First and last register.
pub const FIRST: u32 = 0x4000;
pub const LAST: u32 = 0x40fc;
const WORDS: usize = 64;
/// Octets count with the frame's checksum.
const CRC: u64 = 4;

/// The counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats(Vec<u32>);

impl Default for Stats {
    fn default() -> Self {
        Self(vec![0; WORDS])
    }
}

/// Which of the counters by length a frame belongs to, from `first` on.
fn by_length(first: u32, octets: u64) -> u32 {
    let class = match octets {
        0..=64 => 0,
        65..=127 => 1,
        128..=255 => 2,
        256..=511 => 3,
        512..=1023 => 4,
        _ => 5,
    };
    first + 4 * class
}

fn is_broadcast(frame: &[u8]) -> bool {
    frame.get(..6) == Some(&[0xff; 6])
}

fn is_multicast(frame: &[u8]) -> bool {
    frame.first().is_some_and(|byte| byte & 1 != 0) && !is_broadcast(frame)
}

impl Stats {
    /// Reads a register, which clears it. The halves of a 64-bit counter clear each on its own.
    pub fn read(&mut self, offset: u32) -> u32 {
        self.0.get_mut((offset.wrapping_sub(FIRST) / 4) as usize).map_or(0, std::mem::take)
    }

    fn count(&mut self, offset: u32) {
        if let Some(counter) = self.0.get_mut((offset.wrapping_sub(FIRST) / 4) as usize) {
            *counter = counter.saturating_add(1);
        }
    }

    fn add_octets(&mut self, offset: u32, octets: u64) {
        let at = (offset.wrapping_sub(FIRST) / 4) as usize;
        let Some([low, high]) = self.0.get_mut(at..at + 2) else { return };
        let sum = (u64::from(*high) << 32 | u64::from(*low)).saturating_add(octets);
        (*low, *high) = (sum as u32, (sum >> 32) as u32);
    }

    /// A frame was received.
    pub fn received(&mut self, frame: &[u8]) {
        let octets = frame.len() as u64 + CRC;
        for counter in [reg::TPR, reg::GPRC, by_length(reg::PRC64, octets)] {
            self.count(counter);
        }
        self.add_octets(reg::GORC, octets);
        self.add_octets(reg::TOR, octets);
        if is_broadcast(frame) {
            self.count(reg::BPRC);
        } else if is_multicast(frame) {
            self.count(reg::MPRC);
        }
    }

    /// A frame was sent.
    pub fn sent(&mut self, frame: &[u8]) {
        let octets = frame.len() as u64 + CRC;
        for counter in [reg::TPT, reg::GPTC, by_length(reg::PTC64, octets)] {
            self.count(counter);
        }
        self.add_octets(reg::GOTC, octets);
        self.add_octets(reg::TOT, octets);
        if is_broadcast(frame) {
            self.count(reg::BPTC);
        } else if is_multicast(frame) {
            self.count(reg::MPTC);
        }
    }

    /// A large packet was cut into frames.
    pub fn segmented(&mut self) {
        self.count(reg::TSCTC);
    }

    /// A frame longer than the guest takes was dropped.
    pub fn oversized(&mut self) {
        self.count(reg::ROC);
    }

    /// A frame was lost for want of a place.
    pub fn missed(&mut self) {
        self.count(reg::MPC);
    }

    /// Whether the list has its length.
    pub fn is_whole(&self) -> bool {
        self.0.len() == WORDS
    }
}
