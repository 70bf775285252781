//! RFLAGS by instruction: CLI, STI, PUSHF, POPF and what they share with IRET.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::state::{cr4, flag, mode, shadow};

/// Flags that exist and can be loaded.
const DEFINED: u64 = 0x3f_7fd5;
/// Flags that the mode word depends on.
const IN_MODE: u64 = flag::TF | flag::VM | flag::AC;

impl Cpu {
    /// Loads the flags in `mask` from `v`. RF is kept only while breakpoints are armed: nothing else looks at it.
    pub fn load_flags_masked(&mut self, v: u64, mask: u64) {
        let mut mask = mask & DEFINED;
        let mut v = v;
        if self.state.mode & mode::STEP == 0 {
            mask |= flag::RF;
            v &= !flag::RF;
        }
        let arith = self.rflags() & !mask | v & mask;
        self.set_arith_flags(arith);
        let old = self.state.rflags;
        let mask = mask & !flag::ARITH;
        self.state.rflags = old & !mask | v & mask | 2;
        if mask & flag::RF != 0 {
            self.note_rf();
        }
        if (old ^ self.state.rflags) & IN_MODE != 0 {
            self.update_mode();
        }
        if self.state.rflags & !old & flag::IF != 0 {
            self.reconsider_requests();
        }
    }

    /// CLI (SDM 2A): IOPL, or virtual interrupts with VME and PVI.
    pub fn cli(&mut self) -> Result<(), Fault> {
        if self.io_privileged() {
            self.state.rflags &= !flag::IF;
        } else if self.virtual_interrupts() {
            self.state.rflags &= !flag::VIF;
        } else {
            return Err(Fault::GP0);
        }
        Ok(())
    }

    /// STI: interrupts are held off for one more instruction if they were off.
    pub fn sti(&mut self) -> Result<(), Fault> {
        if self.io_privileged() {
            if self.state.rflags & flag::IF == 0 {
                self.state.rflags |= flag::IF;
                self.state.shadow |= shadow::STI;
                self.reconsider_requests();
            }
        } else if self.virtual_interrupts() && self.state.rflags & flag::VIP == 0 {
            self.state.rflags |= flag::VIF;
        } else {
            return Err(Fault::GP0);
        }
        Ok(())
    }

    /// CLI and STI act on VIF: VME in virtual-8086 mode, PVI at CPL 3 (SDM 3B 20.3, 20.4).
    fn virtual_interrupts(&self) -> bool {
        let bit = if self.vm86() { cr4::VME } else { cr4::PVI };
        self.state.cr4 & bit != 0 && self.state.cpl() == 3
    }

    /// What PUSHF with operand width `ty` pushes.
    pub fn pushf(&self, ty: Ty) -> Result<u64, Fault> {
        let flags = self.rflags() & !(flag::RF | flag::VM);
        if !self.vm86() || self.state.rflags & flag::IOPL == flag::IOPL {
            return Ok(flags & ty.mask());
        }
        if self.state.cr4 & cr4::VME == 0 || ty != Ty::I16 {
            return Err(Fault::GP0);
        }
        let vif = if flags & flag::VIF != 0 { flag::IF } else { 0 };
        Ok((flags & !flag::IF | vif | flag::IOPL) & 0xffff)
    }

    /// POPF with operand width `ty`.
    pub fn popf(&mut self, v: u64, ty: Ty) -> Result<(), Fault> {
        let base = flag::ARITH | flag::TF | flag::DF | flag::NT;
        // RF is cleared by POPF, VIF and VIP too where they are not kept (SDM 2B, POPF).
        let wide = if ty == Ty::I16 { 0 } else { flag::AC | flag::ID };
        if self.vm86() {
            return self.popf_vm86(v, ty, base | wide);
        }
        let mut mask = base | wide;
        if self.io_privileged() {
            mask |= flag::IF;
        }
        if self.state.cpl() == 0 {
            mask |= flag::IOPL;
        }
        self.load_flags_masked(v, mask);
        Ok(())
    }

    fn popf_vm86(&mut self, v: u64, ty: Ty, mask: u64) -> Result<(), Fault> {
        if self.state.rflags & flag::IOPL == flag::IOPL {
            self.load_flags_masked(v, mask | flag::IF);
            return Ok(());
        }
        let vip = self.state.rflags & flag::VIP != 0;
        if self.state.cr4 & cr4::VME == 0 || ty != Ty::I16 || v & flag::TF != 0 || (v & flag::IF != 0 && vip) {
            return Err(Fault::GP0);
        }
        self.load_flags_masked(v, mask);
        let vif = if v & flag::IF != 0 { flag::VIF } else { 0 };
        self.state.rflags = self.state.rflags & !flag::VIF | vif;
        Ok(())
    }
}
