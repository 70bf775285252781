//! Debug registers and debug traps (SDM 3B chapter 17).

use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::state::{cr4, flag, mode, shadow};

/// DR6 bits.
pub mod dr6 {
    #![allow(missing_docs)]
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
}
/// DR6: bits that read as 1.
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xf | dr6::BD | dr6::BS | dr6::BT;
/// DR7: bit 10 reads as 1.
const DR7_FIXED: u64 = 0x400;
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR7: general detect.
const GD: u64 = 1 << 13;
/// Mark in `pending_db`: see [`Cpu::lose_single_step`].
const NO_SINGLE_STEP: u64 = 1 << 63;
/// Mark in `pending_db`: the current instruction loaded RF, which holds for the next one.
const RF_LOADED: u64 = 1 << 62;

/// Conditions of the R/W fields.
mod condition {
    pub const EXECUTE: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const IO: u64 = 2;
}

impl Cpu {
    /// MOV to or from a debug register: which one it is, checks done. CPL 0 was checked.
    fn debug_register(&mut self, n: u64) -> Result<usize, Fault> {
        let n = match n {
            4 | 5 if self.state.cr4 & cr4::DE != 0 => return Err(Fault::UD),
            4 | 5 => n + 2,
            _ => n & 7,
        };
        if self.state.dr[7] & GD != 0 {
            self.state.dr[6] |= dr6::BD;
            return Err(Fault::new(vector::DB));
        }
        Ok(n as usize)
    }

    /// MOV from DR`n`.
    pub fn read_debug(&mut self, n: u64) -> Result<u64, Fault> {
        let n = self.debug_register(n)?;
        Ok(self.state.dr[n])
    }

    /// MOV to DR`n`.
    pub fn write_debug(&mut self, n: u64, value: u64) -> Result<(), Fault> {
        let n = self.debug_register(n)?;
        if n >= 6 && value >> 32 != 0 {
            return Err(Fault::GP0);
        }
        self.state.dr[n] = match n {
            6 => value & DR6_WRITABLE | DR6_FIXED,
            7 => value & DR7_WRITABLE | DR7_FIXED,
            _ => value,
        };
        self.update_mode();
        Ok(())
    }

    /// DR6 bits of the enabled breakpoints among `conditions` (a bit per R/W code) that touch
    /// `bytes` bytes at `address`.
    fn matches(&self, address: u64, bytes: u64, conditions: u64) -> u64 {
        let dr7 = self.state.dr[7];
        let mut hits = 0;
        for n in 0..4 {
            let enabled = dr7 >> (2 * n) & 3 != 0;
            let kind = dr7 >> (16 + 4 * n) & 3;
            if !enabled || conditions >> kind & 1 == 0 {
                continue;
            }
            // LEN: 1, 2, 8, 4 bytes; the address is aligned to it.
            let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
            let first = self.state.dr[n as usize] & !(len - 1);
            if address <= first.wrapping_add(len - 1) && first <= address.wrapping_add(bytes.max(1) - 1) {
                hits |= 1 << n;
            }
        }
        hits
    }

    /// Notes a data access for breakpoints. The interpreter calls it for each access under [`mode::STEP`]; the trap comes
    /// after the instruction.
    pub fn note_data_access(&mut self, linear: u64, bytes: u64, write: bool) {
        // R/W code 3 is reads and writes, 1 is writes.
        let conditions = if write { 1 << condition::WRITE | 1 << 3 } else { 1 << 3 };
        self.pending_db |= self.matches(linear, bytes, conditions);
        self.note_watched(linear, bytes, write);
    }

    /// Notes a port access for I/O breakpoints (CR4.DE).
    pub fn note_port_access(&mut self, port: u16, bytes: u64) {
        if self.state.mode & mode::STEP != 0 && self.state.cr4 & cr4::DE != 0 {
            self.pending_db |= self.matches(port as u64, bytes, 1 << condition::IO);
        }
    }

    /// #DB if an instruction breakpoint is set on the instruction at `state.rip` and RF does not hold it off. The run loop
    /// calls it before each instruction under [`mode::STEP`].
    pub fn check_code_breakpoints(&mut self) -> Result<(), Fault> {
        if self.state.rflags & flag::RF != 0 || self.state.shadow & shadow::MOV_SS != 0 {
            return Ok(());
        }
        let hits = self.matches(self.state.linear_rip(), 1, 1 << condition::EXECUTE);
        if hits == 0 {
            return Ok(());
        }
        self.state.dr[6] = self.state.dr[6] & !0xf | hits;
        Err(Fault::new(vector::DB))
    }

    /// What follows an instruction that ran alone: #DB for TF (`single_step`: it was set before the instruction), for data
    /// and I/O breakpoints and for a task switch. `state.rip` is that of the next instruction.
    pub fn post_step(&mut self, single_step: bool) -> Result<(), Fault> {
        if self.pending_db & RF_LOADED == 0 {
            self.state.rflags &= !flag::RF;
        }
        self.pending_db &= !RF_LOADED;
        if self.state.shadow & shadow::MOV_SS != 0 {
            // Held off until after the next instruction (SDM 3A 6.8.3).
            return Ok(());
        }
        let mut hits = std::mem::take(&mut self.pending_db);
        if single_step && hits & NO_SINGLE_STEP == 0 {
            hits |= dr6::BS;
        }
        hits &= DR6_WRITABLE;
        if hits == 0 {
            return Ok(());
        }
        self.state.dr[6] = self.state.dr[6] & !0xf | hits;
        Err(Fault::new(vector::DB))
    }

    /// The current instruction loaded RF (IRET, task switch): it is not cleared behind it.
    pub fn note_rf(&mut self) {
        if self.state.rflags & flag::RF != 0 && self.state.mode & mode::STEP != 0 {
            self.pending_db |= RF_LOADED;
        }
    }

    /// A fault ends the current instruction: its traps do not come.
    pub fn drop_traps(&mut self) {
        self.pending_db = 0;
    }

    /// The current instruction entered a handler or the kernel with TF cleared: its own single-step trap is lost.
    pub fn lose_single_step(&mut self) {
        if self.state.mode & mode::TF != 0 {
            self.pending_db |= NO_SINGLE_STEP;
        }
    }
}
