//! ATA commands of a disk (ATA/ATAPI-7 volume 1, chapter 6).

use super::drive::{Drive, MAX_TRIM, Outcome, Task};
use super::{device, error, identify, status};
use crate::services::DiskRequest;
use crate::unimp;

/// Sectors a block of READ and WRITE MULTIPLE, at most.
pub(super) const MAX_MULTIPLE: u8 = 16;

/// How a command names its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Address {
    /// 28 bits, or cylinder, head and sector.
    Short,
    /// 48 bits.
    Long,
}

impl Drive {
    /// A write to the command register of a disk.
    pub fn ata_command(&mut self, command: u8) -> Outcome {
        use Address::{Long, Short};
        self.forget();
        self.state.regs.error = 0;
        match command {
            0x20 | 0x21 => self.read(Short, 1),
            0x24 => self.read(Long, 1),
            0xc4 => self.read(Short, self.state.multiple.into()),
            0x29 => self.read(Long, self.state.multiple.into()),
            0x30 | 0x31 => self.write(Short, 1),
            0x34 => self.write(Long, 1),
            0xc5 => self.write(Short, self.state.multiple.into()),
            0x39 => self.write(Long, self.state.multiple.into()),
            0xc8 | 0xc9 => self.dma(Short, false),
            0x25 => self.dma(Long, false),
            0xca | 0xcb => self.dma(Short, true),
            0x35 => self.dma(Long, true),
            0x40 | 0x41 => self.verify(Short),
            0x42 => self.verify(Long),
            0x06 => self.data_set_management(),
            0xe7 | 0xea => self.flush(),
            0xec => {
                let words = identify::disk(self);
                self.offer(words)
            }
            0xef => self.set_features(),
            0x91 => self.set_geometry(),
            0xc6 => self.set_multiple(),
            0xf8 => self.native_max(false),
            0x27 => self.native_max(true),
            // Recalibrate, seek, and power states, which a disk without mechanics has none of.
            0x10..=0x1f | 0x70..=0x7f | 0x94..=0x97 | 0x99 | 0xe0..=0xe3 | 0xe6 => self.done(),
            0x98 | 0xe5 => {
                // Active, or idle.
                self.state.regs.count = 0xff;
                self.done()
            }
            0xa1 => {
                self.sign();
                self.fail(error::ABRT)
            }
            // NOP and DEVICE RESET are commands that a disk aborts.
            0x00 | 0x08 => self.fail(error::ABRT),
            _ => {
                unimp!("ATA command {command:#04x}");
                self.fail(error::ABRT)
            }
        }
    }

    /// The sectors that the registers name, if all of them exist.
    fn addressed(&self, address: Address) -> Result<(u64, u64), u8> {
        let r = &self.state.regs;
        let wide = |a: u8, b: u8, c: u8| u64::from(a) | u64::from(b) << 8 | u64::from(c) << 16;
        let (start, count) = match address {
            Address::Long => {
                let start = wide(r.low, r.mid, r.high) | wide(r.old_low, r.old_mid, r.old_high) << 24;
                let count = u64::from(r.old_count) << 8 | u64::from(r.count);
                (start, if count == 0 { 0x1_0000 } else { count })
            }
            Address::Short => {
                let head = u64::from(r.device & 0x0f);
                let start = match r.device & device::LBA {
                    0 => self.translate(head)?,
                    _ => wide(r.low, r.mid, r.high) | head << 24,
                };
                (start, if r.count == 0 { 0x100 } else { r.count.into() })
            }
        };
        match start + count <= self.sectors() {
            true => Ok((start, count)),
            false => Err(error::IDNF),
        }
    }

    /// Cylinder, head and sector as a sector number, by the geometry that the host set.
    fn translate(&self, head: u64) -> Result<u64, u8> {
        let (r, s) = (&self.state.regs, &self.state);
        let cylinder = u64::from(r.high) << 8 | u64::from(r.mid);
        let sector = u64::from(r.low).checked_sub(1).ok_or(error::IDNF)?;
        if sector >= s.sectors.into() || head >= s.heads.into() {
            return Err(error::IDNF);
        }
        Ok((cylinder * u64::from(s.heads) + head) * u64::from(s.sectors) + sector)
    }

    fn read(&mut self, address: Address, block: u64) -> Outcome {
        match self.addressed(address) {
            Err(bits) => self.fail(bits),
            Ok(_) if block == 0 => self.fail(error::ABRT),
            Ok((next, left)) => {
                self.state.task = Task::Read { next, left, block };
                self.fetch(next, left)
            }
        }
    }

    fn write(&mut self, address: Address, block: u64) -> Outcome {
        match self.addressed(address) {
            Err(bits) => self.fail(bits),
            Ok(_) if block == 0 => self.fail(error::ABRT),
            Ok((next, left)) => {
                self.state.task = Task::Write { next, left, block };
                self.collect(false)
            }
        }
    }

    fn dma(&mut self, address: Address, write: bool) -> Outcome {
        match self.addressed(address) {
            Err(bits) => self.fail(bits),
            Ok((next, count)) => {
                self.state.task = Task::Dma { next, count, write };
                self.state.regs.status = status::IDLE | status::DRQ;
                Outcome::DMA
            }
        }
    }

    /// Whether the sectors could be read is left to those who read them; that they exist is checked.
    fn verify(&mut self, address: Address) -> Outcome {
        match self.addressed(address) {
            Err(bits) => self.fail(bits),
            Ok(_) => self.done(),
        }
    }

    /// DATA SET MANAGEMENT: of its functions there is TRIM.
    fn data_set_management(&mut self) -> Outcome {
        let r = &self.state.regs;
        let blocks = u64::from(r.old_count) << 8 | u64::from(r.count);
        if r.feature & 1 == 0 || !(1..=MAX_TRIM).contains(&blocks) {
            return self.fail(error::ABRT);
        }
        self.state.task = Task::Trim { blocks };
        self.state.regs.status = status::IDLE | status::DRQ;
        Outcome::DMA
    }

    fn flush(&mut self) -> Outcome {
        self.state.task = Task::Flush;
        self.submit(DiskRequest::Flush)
    }

    fn set_features(&mut self) -> Outcome {
        match self.state.regs.feature {
            0x02 => self.state.write_cache = true,
            0x82 => {
                self.state.write_cache = false;
                return self.flush();
            }
            0x03 => match self.state.regs.count {
                // Default, PIO, multiword and ultra DMA modes.
                mode @ (0x00 | 0x01 | 0x08..=0x0c | 0x20..=0x22 | 0x40..=0x45) => self.state.mode = mode,
                _ => return self.fail(error::ABRT),
            },
            // Power management, read look-ahead, keeping settings over a reset.
            0x05 | 0x85 | 0x55 | 0xaa | 0x66 | 0xcc => {}
            _ => return self.fail(error::ABRT),
        }
        self.done()
    }

    fn set_geometry(&mut self) -> Outcome {
        let (heads, sectors) = ((self.state.regs.device & 0x0f) + 1, self.state.regs.count);
        if sectors == 0 {
            return self.fail(error::ABRT);
        }
        (self.state.heads, self.state.sectors) = (heads, sectors);
        self.done()
    }

    fn set_multiple(&mut self) -> Outcome {
        let count = self.state.regs.count;
        if count > MAX_MULTIPLE || !(count == 0 || count.is_power_of_two()) {
            return self.fail(error::ABRT);
        }
        self.state.multiple = count;
        self.done()
    }

    /// The last sector's number goes to the address registers.
    fn native_max(&mut self, long: bool) -> Outcome {
        let last = self.sectors().saturating_sub(1);
        let last = if long { last } else { last.min((1 << 28) - 1) };
        let [low, mid, high, fourth, fifth, sixth, ..] = last.to_le_bytes();
        let r = &mut self.state.regs;
        (r.low, r.mid, r.high) = (low, mid, high);
        match long {
            true => (r.old_low, r.old_mid, r.old_high) = (fourth, fifth, sixth),
            false => r.device = r.device & 0xf0 | fourth & 0x0f,
        }
        self.done()
    }

    /// Cylinders, heads and sectors of a disk with translation (ATA/ATAPI-5 annex B).
    pub fn geometry(&self) -> (u16, u16, u16) {
        let cylinders = (self.sectors() / (16 * 63)).clamp(u64::from(self.sectors() > 0), 16383);
        (cylinders as u16, 16, 63)
    }
}
