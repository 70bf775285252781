//! IRET in all modes (SDM 2A, IRET/IRETD/IRETQ).

use super::task::Switch;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::state::{cr4, flag, reg};

impl Cpu {
    /// IRET with operand width `ty`.
    pub fn interrupt_return(&mut self, ty: Ty, next: u64) -> Result<(), Fault> {
        tracing::trace!(target: "pcall", "interrupt return from cpl {} {:#x}", self.state.cpl(), self.state.rip);
        if self.real_mode() {
            self.iret_real(ty)?;
        } else if self.vm86() {
            self.iret_vm86(ty)?;
        } else if self.state.rflags & flag::NT != 0 {
            if self.long_active() {
                return Err(Fault::GP0);
            }
            let link = self.load_system(Ty::I16, self.state.tr.base)? as u16;
            self.switch_task(link, Switch::Return { next })?;
        } else {
            self.iret_protected(ty)?;
        }
        // SDM 3A 6.7.1: IRET unblocks NMIs.
        if std::mem::take(&mut self.state.nmi_blocked) {
            self.reconsider_requests();
        }
        Ok(())
    }

    fn iret_real(&mut self, ty: Ty) -> Result<(), Fault> {
        let mut stack = self.current_stack();
        let ip = self.pop_from(&mut stack, ty)?;
        let cs = self.pop_from(&mut stack, ty)? as u16;
        let flags = self.pop_from(&mut stack, ty)?;
        self.check_ip(ip)?;
        self.set_stack_pointer(stack.sp, stack.mask);
        self.load_paragraph(reg::CS, cs);
        self.state.rip = ip;
        let keep = flag::VM | flag::VIF | flag::VIP;
        self.load_flags_masked(flags, if ty == Ty::I16 { 0xffff } else { !keep });
        self.update_mode();
        Ok(())
    }

    fn iret_vm86(&mut self, ty: Ty) -> Result<(), Fault> {
        let iopl3 = self.state.rflags & flag::IOPL == flag::IOPL;
        let virtual_if = !iopl3 && self.state.cr4 & cr4::VME != 0 && ty == Ty::I16;
        if !iopl3 && !virtual_if {
            return Err(Fault::GP0);
        }
        let mut stack = self.current_stack();
        let ip = self.pop_from(&mut stack, ty)?;
        let cs = self.pop_from(&mut stack, ty)? as u16;
        let flags = self.pop_from(&mut stack, ty)?;
        self.check_ip(ip)?;
        if virtual_if && (flags & flag::IF != 0 && self.state.rflags & flag::VIP != 0 || flags & flag::TF != 0) {
            return Err(Fault::GP0);
        }
        self.set_stack_pointer(stack.sp, stack.mask);
        self.load_paragraph(reg::CS, cs);
        self.state.rip = ip;
        let fixed = flag::VM | flag::IOPL | flag::VIF | flag::VIP;
        let width = if ty == Ty::I16 { 0xffff } else { u64::MAX };
        if virtual_if {
            self.load_flags_masked(flags, width & !fixed & !flag::IF);
            let vif = if flags & flag::IF != 0 { flag::VIF } else { 0 };
            self.state.rflags = self.state.rflags & !flag::VIF | vif;
        } else {
            self.load_flags_masked(flags, width & !fixed);
        }
        self.update_mode();
        Ok(())
    }

    fn iret_protected(&mut self, ty: Ty) -> Result<(), Fault> {
        let mut stack = self.current_stack();
        let long64 = self.state.long64();
        let rip = self.pop_from(&mut stack, ty)?;
        let selector = self.pop_from(&mut stack, ty)? as u16;
        let flags = self.pop_from(&mut stack, ty)?;
        let old_cpl = self.state.cpl();
        if flags & flag::VM != 0 && ty == Ty::I32 && old_cpl == 0 && !self.long_active() {
            return self.iret_to_vm86(rip, selector, flags, stack);
        }
        let code = self.return_code(selector, rip)?;
        let cpl = selector as u8 & 3;
        let mask = self.iret_flag_mask(ty, old_cpl);
        if cpl == old_cpl && !long64 {
            self.set_stack_pointer(stack.sp, stack.mask);
            self.load_flags_masked(flags, mask);
            self.enter_code(code, rip);
            return Ok(());
        }
        let sp = self.pop_from(&mut stack, ty)?;
        let ss = self.pop_from(&mut stack, ty)? as u16;
        let segment = self.return_stack(ss, cpl, &code)?;
        self.load_flags_masked(flags, mask);
        self.state.segs[reg::SS] = segment;
        self.state.segs[reg::CS] = code;
        self.state.rip = rip;
        if cpl != old_cpl {
            self.drop_inner_segments(cpl);
        }
        self.update_mode();
        let mask = self.current_stack().mask;
        self.set_stack_pointer(sp, mask);
        Ok(())
    }

    /// Flags that IRET loads at this privilege (SDM 2A, IRET).
    fn iret_flag_mask(&self, ty: Ty, cpl: u8) -> u64 {
        let mut mask = flag::ARITH | flag::TF | flag::DF | flag::NT;
        if ty != Ty::I16 {
            mask |= flag::RF | flag::AC | flag::ID;
        }
        if self.io_privileged() {
            mask |= flag::IF;
        }
        if cpl == 0 {
            mask |= flag::IOPL;
            if ty != Ty::I16 {
                mask |= flag::VIF | flag::VIP;
            }
        }
        mask
    }

    fn iret_to_vm86(&mut self, rip: u64, cs: u16, flags: u64, mut stack: super::stack::Stack) -> Result<(), Fault> {
        let mut words = [0; 6];
        for w in &mut words {
            *w = self.pop_from(&mut stack, Ty::I32)?;
        }
        let [sp, ss, es, ds, fs, gs] = words;
        if rip > 0xffff {
            return Err(Fault::GP0);
        }
        self.load_flags_masked(flags, u64::MAX);
        for (n, v) in [(reg::CS, cs as u64), (reg::SS, ss), (reg::ES, es), (reg::DS, ds), (reg::FS, fs), (reg::GS, gs)]
        {
            self.state.segs[n] = Self::vm86_segment(v as u16);
        }
        self.set_gpr(reg::RSP, sp);
        self.state.rip = rip;
        self.update_mode();
        Ok(())
    }
}
