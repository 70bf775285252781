//! The processor's system side: reset, exceptions and interrupts, segments, task switch, control registers, MSRs.
//!
//! Everything here works on [`crate::cpu::Cpu`]. A function that returns `Err` has left the processor as it was, so that
//! the caller can deliver the fault for the same instruction (SDM 3A 6.6).

pub mod breakpoint;
pub mod control_regs;
pub mod descriptor;
pub mod dump;
pub mod exception;
pub mod far;
pub mod flags;
pub mod interrupt;
pub mod io;
pub mod iret;
pub mod logs;
pub mod msr;
pub mod mtrr;
pub mod mwait;
pub mod near;
pub mod reset;
pub mod segment;
pub mod stack;
pub mod syscall;
pub mod task;
pub mod xcr;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
