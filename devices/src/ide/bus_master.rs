//! The bus master half of a channel (Intel 82371SB datasheet 2.7; Programming Interface for Bus Master IDE Controller,
//! revision 1.0): three registers and a list of memory regions.

use crate::services::{Dma, GuestRange};
use serde::{Deserialize, Serialize};

/// Ports of one channel.
pub const PORTS: u64 = 8;

/// Command register: start; data goes to memory.
const START: u8 = 1;
const TO_MEMORY: u8 = 8;
/// Status register.
const ACTIVE: u8 = 1;
const ERROR: u8 = 2;
const INTERRUPT: u8 = 4;
/// Drives can do DMA, as firmware notes it.
const CAPABLE: u8 = 0x60;
/// Regions that a list can have: it is 64 KiB at most.
const MAX_REGIONS: u32 = 8192;
const LAST: u32 = 1 << 31;

/// Registers of a bus master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BusMaster {
    command: u8,
    status: u8,
    list: u32,
    /// The list describes more memory than the transfer under way needs.
    longer: bool,
}

/// What a list describes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub ranges: Vec<GuestRange>,
    /// Bytes, at most those asked for.
    pub len: u64,
}

impl BusMaster {
    pub fn read(&self, offset: u64) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4..=7 => self.list.to_le_bytes()[(offset - 4) as usize],
            _ => 0xff,
        }
    }

    /// `true`: a transfer is to start now.
    pub fn write(&mut self, offset: u64, value: u8) -> bool {
        match offset {
            0 => {
                let started = value & START != 0 && self.command & START == 0;
                self.command = value & (START | TO_MEMORY);
                if value & START == 0 {
                    self.status &= !ACTIVE;
                }
                if started {
                    self.status |= ACTIVE;
                }
                return started;
            }
            2 => {
                let kept = self.status & (ACTIVE | (ERROR | INTERRUPT) & !value);
                self.status = kept | value & CAPABLE;
            }
            4..=7 => {
                let mut bytes = self.list.to_le_bytes();
                bytes[(offset - 4) as usize] = value;
                self.list = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        false
    }

    /// A transfer may run.
    pub fn started(&self) -> bool {
        self.command & START != 0 && self.status & ACTIVE != 0
    }

    /// Data goes to memory.
    pub fn writes_memory(&self) -> bool {
        self.command & TO_MEMORY != 0
    }

    /// The drive's interrupt rose.
    pub fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The transfer is over. A list that describes more stays active (Programming Interface 3.1).
    pub fn finish(&mut self) {
        if !self.longer {
            self.status &= !ACTIVE;
        }
    }

    /// The transfer cannot run: directions contradict each other, or the list is too short.
    pub fn give_up(&mut self, error: bool) {
        self.status &= !ACTIVE;
        if error {
            self.status |= ERROR;
        }
    }

    /// Reads the list up to `wanted` bytes.
    pub fn regions(&mut self, dma: &dyn Dma, wanted: u64) -> Regions {
        let mut found = Regions { ranges: Vec::new(), len: 0 };
        self.longer = false;
        for index in 0..MAX_REGIONS {
            let mut entry = [0; 8];
            dma.read(u64::from(self.list) + 8 * u64::from(index), &mut entry);
            let [a, b, c, d, e, f, g, h] = entry;
            let (address, word) = (u32::from_le_bytes([a, b, c, d]) & !1, u32::from_le_bytes([e, f, g, h]));
            let len = match u64::from(word & 0xfffe) {
                0 => 0x1_0000,
                len => len,
            };
            let used = len.min(wanted - found.len);
            found.ranges.push(GuestRange { gpa: address.into(), len: used });
            found.len += used;
            if found.len == wanted {
                self.longer = used < len || word & LAST == 0;
                break;
            }
            if word & LAST != 0 {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeMemory;

    #[test]
    fn lists_end_where_they_say_or_where_enough_is_found() {
        let memory = FakeMemory::new(0x2_0000);
        let mut master = BusMaster::default();
        (0..4).for_each(|i| {
            master.write(4 + i, [0x03, 0x10, 0, 0][i as usize]);
        });
        assert_eq!(master.read(4), 0x00, "the list is aligned");
        memory.write(0x1000, &[0, 0x20, 0, 0, 0, 2, 0, 0, 0, 0x40, 0, 0, 0, 4, 0, 0x80]);
        let all = master.regions(&*memory, 0x600);
        assert_eq!(all.len, 0x600);
        assert_eq!(all.ranges, [GuestRange { gpa: 0x2000, len: 0x200 }, GuestRange { gpa: 0x4000, len: 0x400 }]);
        assert!(!master.longer);
        assert_eq!(master.regions(&*memory, 0x1000).len, 0x600, "the list is shorter");
        assert_eq!(master.regions(&*memory, 0x300).ranges[1].len, 0x100);
        assert!(master.longer);
        // Entries of zeros without an end: 64 KiB each.
        memory.write(0x1000, &[0; 16]);
        assert_eq!(master.regions(&*memory, u64::MAX).ranges.len(), 8192);
    }

    #[test]
    fn status_bits_clear_by_writing_one() {
        let mut master = BusMaster::default();
        assert!(master.write(0, 9) && !master.write(0, 9), "it starts once");
        assert_eq!((master.read(0), master.read(2)), (9, 1));
        master.interrupt();
        master.give_up(true);
        master.write(2, 0x60);
        assert_eq!(master.read(2), 0x66);
        master.write(2, 0x66);
        assert_eq!(master.read(2), 0x60);
    }
}
