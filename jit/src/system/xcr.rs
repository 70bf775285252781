//! Extended control registers: XCR0 (SDM 1, 13.3).

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::cr4;

impl Cpu {
    /// XGETBV of register `n`.
    pub fn read_xcr(&self, n: u32) -> Result<u64, Fault> {
        if self.state.cr4 & cr4::OSXSAVE == 0 {
            return Err(Fault::UD);
        }
        match n {
            0 => Ok(self.state.xcr0),
            // XINUSE: which enabled components are not in their initial state; all may be.
            1 if self.model.xgetbv1() => Ok(self.state.xcr0),
            _ => Err(Fault::GP0),
        }
    }

    /// XSETBV of register `n`. CPL 0 was checked.
    pub fn write_xcr(&mut self, n: u32, value: u64) -> Result<(), Fault> {
        if self.state.cr4 & cr4::OSXSAVE == 0 {
            return Err(Fault::UD);
        }
        if n != 0 || value & 1 == 0 || value & !self.model.xcr0_mask() != 0 || value & 6 == 4 {
            return Err(Fault::GP0);
        }
        self.state.xcr0 = value;
        self.update_mode();
        Ok(())
    }
}
