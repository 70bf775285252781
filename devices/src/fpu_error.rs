//! The coprocessor error logic of the PC: what an x87 error becomes while the processor does not raise #MF for it
//! (CR0.NE clear).
//!
//! The processor asserts FERR#, which latches IRQ 13. The handler writes to port F0h: that takes the interrupt back and
//! asserts IGNNE#, under which x87 instructions run in spite of the error until it is gone (82371SB datasheet, 2.5.5 and
//! the signals FERR# and IGNNE#; SDM 1, appendix D.2).

use crate::bus::{Device, RegisterBlock};
use crate::services::IrqLine;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// What the logic remembers.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Latches {
    /// FERR# is asserted.
    error: bool,
    /// IRQ 13 is asserted.
    interrupt: bool,
    /// IGNNE# is asserted.
    ignore: bool,
}

/// Port F0h and the latches behind it.
pub struct FpuError {
    latches: Mutex<Latches>,
    irq: Wire,
}

impl FpuError {
    /// No error; `irq` is IRQ 13.
    pub fn new(irq: IrqLine) -> Arc<Self> {
        Arc::new(Self { latches: Mutex::default(), irq: Wire::new(irq) })
    }

    /// Sets the level of FERR#.
    pub fn set_error(&self, asserted: bool) {
        self.change(|l| {
            l.interrupt |= asserted && !l.error;
            l.ignore &= asserted;
            l.error = asserted;
        });
    }

    /// The level of IGNNE#.
    pub fn ignored(&self) -> bool {
        locked(&self.latches).ignore
    }

    fn change(&self, f: impl FnOnce(&mut Latches)) {
        {
            let mut latches = locked(&self.latches);
            f(&mut latches);
            self.irq.want(latches.interrupt);
        }
        self.irq.flush();
    }
}

impl RegisterBlock for FpuError {
    /// Write-only: nobody drives the bus.
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {
        self.change(|l| {
            l.interrupt = false;
            l.ignore = l.error;
        });
    }
}

impl Device for FpuError {
    fn name(&self) -> &'static str {
        "fpu-error"
    }
    fn reset(&self) {
        self.change(|l| *l = Latches::default());
    }
    fn save(&self) -> StateValue {
        let Self { latches, irq: _ } = self;
        to_state(&*locked(latches))
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { latches, irq } = self;
        let restored: Latches = from_state(self.name(), state)?;
        let mut latches = locked(latches);
        *latches = restored;
        irq.adopt(restored.interrupt);
        Ok(())
    }
    fn inspect(&self, out: &mut Inspector) {
        let Latches { error, interrupt, ignore } = *locked(&self.latches);
        out.field("ferr", error);
        out.field("irq13", interrupt);
        out.field("ignne", ignore);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeIrq;

    #[test]
    fn an_error_interrupts_once_and_is_ignored_from_the_write_on_until_it_is_gone() {
        let irq = FakeIrq::new();
        let fpu = FpuError::new(irq.line(13));
        fpu.write(0, 1, 0);
        assert!(!fpu.ignored(), "there is no error");
        fpu.set_error(true);
        fpu.set_error(true);
        assert!(irq.level(13) && !fpu.ignored());
        let saved = fpu.save();
        fpu.write(0, 1, 0);
        assert!(!irq.level(13) && fpu.ignored());
        fpu.set_error(true);
        assert!(!irq.level(13) && fpu.ignored(), "the same error");
        fpu.set_error(false);
        assert!(!fpu.ignored());
        fpu.set_error(true);
        assert_eq!(irq.history(), [(13, true), (13, false), (13, true)]);
        let other = FpuError::new(irq.line(5));
        other.restore(&saved).unwrap();
        assert_eq!(other.save(), saved);
        other.write(0, 1, 0);
        assert!(other.ignored());
        assert_eq!(irq.history().last(), Some(&(5, false)));
        fpu.reset();
        assert!(!irq.level(13));
        assert_eq!(fpu.read(0, 1), u64::MAX);
    }
}
