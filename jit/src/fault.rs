//! Guest exceptions as values.

/// Exception vectors (SDM 3A 6.15).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    /// Delivered as a software interrupt, so only tests name it.
    #[cfg(test)]
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// An exception that the current instruction raises. The instruction has had no effect (faults), unless its helper
/// committed one on purpose (traps).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error: Option<u32>,
    /// Faulting linear address, for page faults.
    pub address: u64,
}

impl Fault {
    /// An exception without error code.
    pub const fn new(vector: u8) -> Self {
        Self { vector, error: None, address: 0 }
    }
    /// An exception with error code.
    pub const fn with_code(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: 0 }
    }
    /// #UD.
    pub const UD: Self = Self::new(vector::UD);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_code(vector::SS, 0);
    /// #NM.
    pub const NM: Self = Self::new(vector::NM);
    /// #DE.
    pub const DE: Self = Self::new(vector::DE);
    /// Not an exception: the processor waits for an interrupt before the instruction (x87 errors with CR0.NE clear).
    pub const FROZEN: Self = Self::new(u8::MAX);
    /// Not an exception: the instruction accesses a page that a debugger watches, and is to run alone.
    pub const WATCHED: Self = Self::new(u8::MAX - 1);
    /// #GP(selector), RPL bits dropped.
    pub const fn gp(selector: u16) -> Self {
        Self::with_code(vector::GP, (selector & !3) as u32)
    }
    /// #PF at `address`.
    pub const fn page(address: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), address }
    }
}
