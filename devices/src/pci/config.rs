//! A function's configuration space: its bytes, and which of their bits the guest can change (PCI 3.0 chapter 6).

use crate::state::{StateError, StateValue, from_state, to_state};

/// Configuration register offsets (PCI 3.0 figure 6-1).
pub mod reg {
    /// Vendor id, 16 bits; device id follows.
    pub const VENDOR: u8 = 0x00;
    /// Command, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u8 = 0x06;
    /// Revision; the class code follows, 24 bits.
    pub const REVISION: u8 = 0x08;
    /// Size of a cache line in 32-bit words; the latency timer follows.
    pub const CACHE_LINE: u8 = 0x0c;
    /// Header type.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// First base address register.
    pub const BAR0: u8 = 0x10;
    /// Subsystem vendor and device, 32 bits.
    pub const SUBSYSTEM: u8 = 0x2c;
    /// Address of the expansion ROM.
    pub const ROM: u8 = 0x30;
    /// First capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line, as firmware leaves it for the operating system.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// Interrupt pin: 1 is INTA#.
    pub const INTERRUPT_PIN: u8 = 0x3d;
}

/// Command register bits (PCI 3.0 6.2.2).
pub mod command {
    /// Answers I/O accesses.
    pub const IO: u16 = 1 << 0;
    /// Answers memory accesses.
    pub const MEMORY: u16 = 1 << 1;
    /// May master the bus.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Must not assert INTx#.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// What identifies a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface: 0xCCSSPP.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor and id; 0 if there is none.
    pub subsystem: (u16, u16),
}

const LEN: usize = 256;

/// The 256 bytes of a function's configuration space.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits that a write sets or clears.
    writable: Vec<u8>,
    /// Bits that a write of 1 clears.
    write_1_to_clear: Vec<u8>,
}

impl ConfigSpace {
    /// A type 0 header with `identity`; writable are the interrupt line and the command bits for decoding, bus
    /// mastering, parity, SERR# and INTx disable. The errors in the status register clear by writing 1.
    pub fn new(identity: Identity) -> Self {
        let Identity { vendor, device, class, revision, subsystem: (subsystem_vendor, subsystem_device) } = identity;
        let mut config = Self { bytes: vec![0; LEN], writable: vec![0; LEN], write_1_to_clear: vec![0; LEN] };
        config.set(reg::VENDOR, 4, u32::from(device) << 16 | u32::from(vendor));
        config.set(reg::REVISION, 4, class << 8 | u32::from(revision));
        config.set(reg::SUBSYSTEM, 4, u32::from(subsystem_device) << 16 | u32::from(subsystem_vendor));
        config.allow(reg::COMMAND, 2, 0x0547);
        config.allow(reg::INTERRUPT_LINE, 1, 0xff);
        for (i, mask) in [(reg::STATUS, 0x00), (reg::STATUS + 1, 0xf9)] {
            config.write_1_to_clear[usize::from(i)] = mask;
        }
        config
    }

    /// Sets `size` bytes at `offset`, whether the guest could or not.
    pub fn set(&mut self, offset: u8, size: u8, value: u32) {
        fill(&mut self.bytes, offset, size, value);
    }

    /// Makes exactly the bits of `mask` writable in `size` bytes at `offset`.
    pub fn allow(&mut self, offset: u8, size: u8, mask: u32) {
        fill(&mut self.writable, offset, size, mask);
    }

    /// Reads `size` (1, 2 or 4) bytes at `offset`.
    pub fn read(&self, offset: u8, size: u8) -> u32 {
        let bytes = self.bytes.iter().skip(offset.into()).take(size.min(4).into());
        bytes.rev().fold(0, |acc, byte| acc << 8 | u32::from(*byte))
    }

    /// A write by the guest.
    pub fn write(&mut self, offset: u8, size: u8, value: u32) {
        let first = usize::from(offset);
        for (index, new) in (first..LEN).zip(value.to_le_bytes()).take(size.into()) {
            let (writable, clears) = (self.writable[index], self.write_1_to_clear[index]);
            let byte = &mut self.bytes[index];
            *byte = (*byte & !writable | new & writable) & !(new & clears);
        }
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.read(reg::COMMAND, 2) as u16
    }

    /// The bytes, for a device's saved state.
    pub fn save(&self) -> StateValue {
        to_state(&self.bytes)
    }

    /// Takes over saved bytes; those of another device are refused.
    pub fn restore(&mut self, device: &'static str, state: &StateValue) -> Result<(), StateError> {
        let bytes: Vec<u8> = from_state(device, state)?;
        if bytes.len() != LEN || bytes[..4] != self.bytes[..4] {
            let reason = "not the configuration space of this device".into();
            return Err(StateError::Malformed { device, reason });
        }
        self.bytes = bytes;
        Ok(())
    }
}

fn fill(bytes: &mut [u8], offset: u8, size: u8, value: u32) {
    bytes.iter_mut().skip(offset.into()).zip(value.to_le_bytes()).take(size.into()).for_each(|(b, v)| *b = v);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let subsystem = (0x1af4, 0x1100);
        ConfigSpace::new(Identity { vendor: 0x8086, device: 0x7010, class: 0x01_0180, revision: 3, subsystem })
    }

    #[test]
    fn identity_is_read_only() {
        let mut c = config();
        (0..=255).step_by(4).for_each(|at| c.write(at, 4, u32::MAX));
        assert_eq!(c.read(0, 4), 0x7010_8086);
        assert_eq!(c.read(8, 4), 0x0101_8003);
        assert_eq!(c.read(0x2c, 4), 0x1100_1af4);
        assert_eq!(c.command(), 0x0547);
        assert_eq!(c.read(0x3c, 2), 0x00ff);
    }

    #[test]
    fn errors_clear_by_writing_one() {
        let mut c = config();
        c.set(reg::STATUS, 2, 0xf290);
        c.write(reg::STATUS, 2, 0x1000);
        assert_eq!(c.read(reg::STATUS, 2), 0xe290);
        c.write(reg::COMMAND, 4, 0xffff_0003);
        assert_eq!(c.read(reg::COMMAND, 4), 0x0290_0003);
    }

    #[test]
    fn accesses_at_the_end_stay_inside() {
        let mut c = config();
        c.write(0xff, 4, u32::MAX);
        assert_eq!(c.read(0xfe, 4), 0);
    }

    #[test]
    fn anothers_state_is_refused() {
        let mut c = config();
        c.write(4, 2, 3);
        let saved = c.save();
        let mut same = config();
        same.restore("x", &saved).unwrap();
        assert_eq!(same.save(), saved);
        let mut other = config();
        other.set(0, 2, 0x1234);
        other.restore("x", &saved).unwrap_err();
        other.restore("x", &serde_json::json!([1])).unwrap_err();
    }
}
