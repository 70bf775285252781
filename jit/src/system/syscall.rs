//! Fast system calls (SDM 2B: SYSCALL, SYSRET, SYSENTER, SYSEXIT). Segments get fixed attributes, no table is read.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::{Segment, attr, efer, flag, reg};

const DATA: u16 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G | attr::DB;
const CODE: u16 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::CODE | attr::G;

fn flat(selector: u16, attributes: u16, cpl: u8) -> Segment {
    let attributes = attributes | (cpl as u16) << attr::DPL_SHIFT;
    Segment { base: 0, limit: u32::MAX, attributes, selector: selector & !3 | cpl as u16 }
}

fn code(selector: u16, long: bool, cpl: u8) -> Segment {
    flat(selector, CODE | if long { attr::L } else { attr::DB }, cpl)
}

impl Cpu {
    /// SYSCALL. Only 64-bit mode has it here, as on Intel processors.
    pub fn syscall(&mut self, next: u64) -> Result<(), Fault> {
        if !self.state.long64() || self.state.efer & efer::SCE == 0 {
            return Err(Fault::UD);
        }
        let flags = self.rflags() & !flag::RF;
        self.set_gpr(reg::RCX, next);
        self.set_gpr(11, flags);
        let kept = flags & !self.state.msr.sfmask | 2;
        self.set_arith_flags(kept);
        self.state.rflags = kept & !flag::ARITH;
        let selector = (self.state.msr.star >> 32) as u16;
        self.state.segs[reg::CS] = code(selector, true, 0);
        self.state.segs[reg::SS] = flat(selector.wrapping_add(8), DATA, 0);
        self.state.rip = self.state.msr.lstar;
        if self.state.rflags & flag::TF == 0 {
            self.lose_single_step();
        }
        self.update_mode();
        Ok(())
    }

    /// SYSRET to 64-bit code (`wide`) or compatibility mode.
    pub fn sysret(&mut self, wide: bool) -> Result<(), Fault> {
        if !self.state.long64() || self.state.efer & efer::SCE == 0 {
            return Err(Fault::UD);
        }
        let target = self.gpr(reg::RCX);
        if self.state.cpl() != 0 || (wide && !self.canonical(target)) {
            return Err(Fault::GP0);
        }
        const LOADED: u64 = 0x3c_7fd7;
        let selector = (self.state.msr.star >> 48) as u16;
        let flags = self.gpr(11) & LOADED | 2;
        self.set_arith_flags(flags);
        self.state.rflags = flags & !flag::ARITH;
        let cs = if wide { selector.wrapping_add(16) } else { selector };
        self.state.segs[reg::CS] = code(cs, wide, 3);
        self.state.segs[reg::SS] = flat(selector.wrapping_add(8), DATA, 3);
        self.state.rip = if wide { target } else { target & 0xffff_ffff };
        self.reconsider_requests();
        self.update_mode();
        Ok(())
    }

    /// SYSENTER.
    pub fn sysenter(&mut self) -> Result<(), Fault> {
        let cs = self.state.msr.sysenter_cs as u16;
        if self.real_mode() || cs & !3 == 0 {
            return Err(Fault::GP0);
        }
        let long = self.long_active();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        self.state.rflags &= !(flag::VM | flag::IF | flag::RF);
        self.state.segs[reg::CS] = code(cs, long, 0);
        self.state.segs[reg::SS] = flat((cs & !3).wrapping_add(8), DATA, 0);
        self.set_gpr(reg::RSP, self.state.msr.sysenter_esp & mask);
        self.state.rip = self.state.msr.sysenter_eip & mask;
        self.update_mode();
        Ok(())
    }

    /// SYSEXIT to 64-bit code (`wide`) or 32-bit code.
    pub fn sysexit(&mut self, wide: bool) -> Result<(), Fault> {
        let cs = self.state.msr.sysenter_cs as u16 & !3;
        if self.real_mode() || cs == 0 || self.state.cpl() != 0 {
            return Err(Fault::GP0);
        }
        let (rip, rsp) = (self.gpr(reg::RDX), self.gpr(reg::RCX));
        if wide && !(self.canonical(rip) && self.canonical(rsp)) {
            return Err(Fault::GP0);
        }
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        let step = if wide { 32 } else { 16 };
        self.state.segs[reg::CS] = code(cs.wrapping_add(step), wide, 3);
        self.state.segs[reg::SS] = flat(cs.wrapping_add(step + 8), DATA, 3);
        self.set_gpr(reg::RSP, rsp & mask);
        self.state.rip = rip & mask;
        self.update_mode();
        Ok(())
    }
}
