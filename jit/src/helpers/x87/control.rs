//! Control instructions.

use super::state::sw;
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::state::cr0;

/// #MF if an unmasked exception is pending (SDM 1, 8.6 and 8.7).
pub(super) fn pending(cpu: &Cpu) -> Result<(), Fault> {
    if cpu.state.x87.fsw & sw::ES_B & 0x80 == 0 {
        return Ok(());
    }
    if cpu.state.cr0 & cr0::NE != 0 {
        return Err(Fault::new(vector::MF));
    }
    tracing::debug!(target: "unimp", "x87 exception with CR0.NE clear: FERR# is not wired to an interrupt");
    Ok(())
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
    Ok(0)
}

pub(super) fn fclex(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    cpu.state.x87.fsw &= !(sw::EXCEPTIONS | sw::SF | sw::ES_B);
    Ok(0)
}

pub(super) fn fldcw(cpu: &mut Cpu, v: u64, _: u64, _: u64) -> Result<u64, Fault> {
    pending(cpu)?;
    cpu.state.x87.set_fcw(v as u16);
    Ok(0)
}

pub(super) fn fstcw(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    Ok(cpu.state.x87.fcw as u64)
}

pub(super) fn fstsw(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    Ok(cpu.state.x87.fsw as u64)
}
