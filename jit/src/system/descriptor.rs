//! Segment and gate descriptors in memory (SDM 3A 3.4.5, 5.8.3, 6.14.1).

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::state::{Segment, attr};

/// Types of system descriptors (SDM 3A table 3-2).
pub mod system_type {
    #![allow(missing_docs)]
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    pub const CALL32: u8 = 12;
    pub const INT32: u8 = 14;
    pub const TRAP32: u8 = 15;
}

/// A descriptor as read from a table, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// The first eight bytes.
    pub raw: u64,
    /// Linear address.
    pub address: u64,
    /// The selector that named it.
    pub selector: u16,
}

impl Descriptor {
    /// Type field, bits 3:0.
    pub fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 15
    }
    /// Code or data, not a system descriptor.
    pub fn is_segment(&self) -> bool {
        self.raw >> 44 & 1 != 0
    }
    /// A system descriptor of type `kind` (see [`system_type`]).
    pub fn is_system(&self, kind: u8) -> bool {
        !self.is_segment() && self.kind() == kind
    }
    /// Code segment.
    pub fn is_code(&self) -> bool {
        self.is_segment() && self.raw >> 43 & 1 != 0
    }
    /// Conforming code segment.
    pub fn conforming(&self) -> bool {
        self.is_code() && self.raw >> 42 & 1 != 0
    }
    /// Data segment that may be written.
    pub fn writable_data(&self) -> bool {
        self.is_segment() && !self.is_code() && self.raw >> 41 & 1 != 0
    }
    /// May be read: all data, and code with the R bit.
    pub fn readable(&self) -> bool {
        self.is_segment() && (!self.is_code() || self.raw >> 41 & 1 != 0)
    }
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }
    /// Present.
    pub fn present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }
    /// L bit: 64-bit code.
    pub fn long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }
    /// D/B bit.
    pub fn big(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }
    /// Base address, 32 bits.
    pub fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56 & 0xff) << 24
    }
    /// Limit in bytes.
    pub fn limit(&self) -> u32 {
        let l = (self.raw & 0xffff) as u32 | (self.raw >> 32) as u32 & 0xf_0000;
        if self.raw >> 55 & 1 != 0 { l << 12 | 0xfff } else { l }
    }
    /// Gate: selector of the target.
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// Gate: low 32 bits of the offset.
    pub fn gate_offset(&self) -> u64 {
        (self.raw & 0xffff) | self.raw >> 32 & 0xffff_0000
    }
    /// The hidden part of a segment register, with `selector` as the visible one.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), attributes: (self.raw >> 40) as u16 & 0xf0ff, selector }
    }
}

/// A null selector: index 0 of the GDT, whatever the RPL.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

impl Cpu {
    /// Reads the descriptor that `selector` names from GDT or LDT; outside the table's limit raises `vector`(selector).
    pub fn read_descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Fault> {
        let fault = Fault::with_code(vector, (selector & !3) as u32);
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, self.state.gdtr.limit as u32)
        } else if self.state.ldtr.present() {
            (self.state.ldtr.base, self.state.ldtr.limit)
        } else {
            return Err(fault);
        };
        let offset = (selector & !7) as u32;
        if offset + 7 > limit {
            return Err(fault);
        }
        let address = self.table_address(base, offset as u64);
        let raw = self.load_system(Ty::I64, address)?;
        Ok(Descriptor { raw, address, selector })
    }

    /// Second half of a 16-byte system descriptor of long mode: bits 63:32 of base or offset. Its type field must be 0.
    pub fn read_descriptor_high(&mut self, d: &Descriptor, vector: u8) -> Result<u64, Fault> {
        let fault = Fault::with_code(vector, (d.selector & !3) as u32);
        let limit = if d.selector & 4 == 0 { self.state.gdtr.limit as u32 } else { self.state.ldtr.limit };
        if (d.selector & !7) as u32 + 15 > limit {
            return Err(fault);
        }
        let high = self.load_system(Ty::I64, d.address.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return Err(fault);
        }
        Ok(high & 0xffff_ffff)
    }

    /// Sets the accessed bit of a code or data descriptor in memory if it is clear.
    pub fn mark_accessed(&mut self, d: &mut Descriptor) -> Result<(), Fault> {
        if d.raw >> 40 & attr::ACCESSED as u64 == 0 {
            d.raw |= (attr::ACCESSED as u64) << 40;
            self.store_system(Ty::I8, d.address.wrapping_add(5), d.raw >> 40 & 0xff)?;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of a TSS descriptor in memory (SDM 3A 7.2.2).
    pub fn mark_busy(&mut self, selector: u16, busy: bool) -> Result<(), Fault> {
        let address = self.table_address(self.state.gdtr.base, (selector & !7) as u64).wrapping_add(5);
        let old = self.load_system(Ty::I8, address)?;
        self.store_system(Ty::I8, address, if busy { old | 2 } else { old & !2 })
    }

    /// Linear address in a descriptor table: 32 bits wide outside long mode.
    pub fn table_address(&self, base: u64, offset: u64) -> u64 {
        self.wrap_linear(base.wrapping_add(offset))
    }
}
