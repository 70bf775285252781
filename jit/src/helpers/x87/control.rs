//! Control instructions.

use super::state::sw;
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::state::cr0;

/// #MF if an unmasked exception is pending (SDM 1, 8.6 and 8.7). With CR0.NE clear the board is told by FERR#, and the
/// processor waits for the interrupt that comes of it, unless it is told to go on (SDM 1, appendix D.2.1).
pub(super) fn pending(cpu: &mut Cpu) -> Result<(), Fault> {
    if cpu.state.x87.fsw & sw::ES_B & 0x80 == 0 {
        return Ok(());
    }
    if cpu.state.cr0 & cr0::NE != 0 {
        return Err(Fault::new(vector::MF));
    }
    if !cpu.fpu_error {
        cpu.fpu_error = true;
        cpu.board.set_fpu_error(cpu.index, true);
    }
    if cpu.board.fpu_error_ignored(cpu.index) { Ok(()) } else { Err(Fault::FROZEN) }
}

impl Cpu {
    /// The x87 status may have changed for the better: takes FERR# back if no exception is pending any more.
    pub(crate) fn update_fpu_error(&mut self) {
        if self.fpu_error && self.state.x87.fsw & sw::ES_B & 0x80 == 0 {
            self.fpu_error = false;
            self.board.set_fpu_error(self.index, false);
        }
    }
}

pub(super) fn wait(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    pending(cpu).map(|()| 0)
}

pub(super) fn mmx_check(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    pending(cpu).map(|()| 0)
}

pub(super) fn emms(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    // TOP = 0 as with every MMX instruction (measured).
    cpu.state.x87.set_top(0);
    cpu.state.x87.tags = 0;
    Ok(0)
}

pub(super) fn finit(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    cpu.state.x87.finit();
    cpu.update_fpu_error();
    Ok(0)
}

pub(super) fn fclex(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    cpu.state.x87.fsw &= !(sw::EXCEPTIONS | sw::SF | sw::ES_B);
    cpu.update_fpu_error();
    Ok(0)
}

pub(super) fn fldcw(cpu: &mut Cpu, v: u64, _: u64, _: u64) -> Result<u64, Fault> {
    pending(cpu)?;
    cpu.state.x87.set_fcw(v as u16);
    cpu.update_fpu_error();
    Ok(0)
}

pub(super) fn fstcw(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    Ok(cpu.state.x87.fcw as u64)
}

pub(super) fn fstsw(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    Ok(cpu.state.x87.fsw as u64)
}
