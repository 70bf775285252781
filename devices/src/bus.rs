//! The address maps: port I/O and memory-mapped I/O, and the shape of a device.
//!
//! Access sizes are handled here and nowhere else: a device says which sizes it implements
//! ([`AccessSizes`]), the bus splits or widens what the guest does to that.

use crate::state::{Inspector, StateError, StateValue};
use std::sync::Arc;

/// What every device model is. A device synchronises itself: all methods take `&self`.
/// No lock of the device may be held while it calls out (interrupt lines, timers, back ends).
pub trait Device: Send + Sync {
    /// Name as `info qtree` shows it, e.g. `isa-serial`.
    fn name(&self) -> &'static str;
    /// Back to the state after power-on.
    fn reset(&self);
    /// The volatile state, complete.
    fn save(&self) -> StateValue;
    /// Takes over a state that `save` made; refuses what does not fit and then changes nothing.
    fn restore(&self, state: &StateValue) -> Result<(), StateError>;
    /// Shows the state to people (`info qtree`, `info pic`) and tests.
    fn inspect(&self, out: &mut Inspector);
}

/// The access sizes, in bytes, that a device's registers implement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessSizes {
    /// Smallest: 1, 2, 4 or 8. Smaller accesses read the wider register and take part of it; writes are widened with zeros.
    pub min: u8,
    /// Largest: 1, 2, 4 or 8. Larger accesses are split into several, low address first.
    pub max: u8,
}

impl AccessSizes {
    /// Byte registers.
    pub const BYTE: Self = Self { min: 1, max: 1 };
    /// Anything up to 32 bits.
    pub const UP_TO_DWORD: Self = Self { min: 1, max: 4 };
    /// 32-bit registers only.
    pub const DWORD: Self = Self { min: 4, max: 4 };
}

/// Registers in a port or memory range. Offsets count from the range's start.
pub trait RegisterBlock: Send + Sync {
    /// Reads `size` bytes at `offset`; `size` is always within [`RegisterBlock::sizes`].
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64);
    /// The sizes implemented.
    fn sizes(&self) -> AccessSizes {
        AccessSizes::BYTE
    }
}

/// A range's registers, shared with whoever wires the machine.
pub type Registers = Arc<dyn RegisterBlock>;
