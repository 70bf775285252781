//! Far JMP, CALL and RET: real mode, code segments, call gates, tasks (SDM 2A, 3A 5.8).

use super::descriptor::{Descriptor, is_null, system_type};
use super::segment::{null_stack, within_limit};
use super::task::Switch;
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::Ty;
use crate::state::{Segment, attr, reg};

fn not_present(selector: u16) -> Fault {
    Fault::with_code(vector::NP, (selector & !3) as u32)
}

impl Cpu {
    /// Far JMP to `selector:offset`; `next` is the RIP a task switch saves.
    pub fn far_jump(&mut self, selector: u16, offset: u64, next: u64) -> Result<(), Fault> {
        tracing::trace!(target: "pcall", "far jump to {:04x}:{:#x} from cpl {} {:#x}", selector, offset, self.state.cpl(), self.state.rip);
        if self.paragraph_mode() {
            return self.far_paragraph(selector, offset);
        }
        let d = self.far_descriptor(selector)?;
        if d.is_segment() {
            let code = self.far_code(&d, selector)?;
            self.check_code_offset(&code, offset)?;
            self.enter_code(code, offset);
            return Ok(());
        }
        match self.system_target(&d)? {
            SystemTarget::Task(task) => self.switch_task(task, Switch::Jump { next }),
            SystemTarget::Gate => {
                let (mut target, offset) = self.call_gate(&d)?;
                let cpl = self.state.cpl();
                if target.conforming() && target.dpl() > cpl || !target.conforming() && target.dpl() != cpl {
                    return Err(Fault::gp(target.selector));
                }
                let code = self.gate_code(&mut target, cpl)?;
                self.check_code_offset(&code, offset)?;
                self.enter_code(code, offset);
                Ok(())
            }
        }
    }

    /// Far CALL with operand width `ty`.
    pub fn far_call(&mut self, selector: u16, offset: u64, ty: Ty, next: u64) -> Result<(), Fault> {
        tracing::trace!(target: "pcall", "far call to {:04x}:{:#x} from cpl {} {:#x}", selector, offset, self.state.cpl(), self.state.rip);
        let cs = self.state.segs[reg::CS].selector as u64;
        if self.paragraph_mode() {
            let mut stack = self.current_stack();
            if !within_limit(&self.state.segs[reg::CS], offset, 1) {
                return Err(Fault::GP0);
            }
            self.push_frame(&mut stack, ty, &[cs, next])?;
            self.set_stack_pointer(stack.sp, stack.mask);
            return self.far_paragraph(selector, offset);
        }
        let d = self.far_descriptor(selector)?;
        if d.is_segment() {
            let code = self.far_code(&d, selector)?;
            self.check_code_offset(&code, offset)?;
            let mut stack = self.current_stack();
            self.push_frame(&mut stack, ty, &[cs, next])?;
            self.set_stack_pointer(stack.sp, stack.mask);
            self.enter_code(code, offset);
            return Ok(());
        }
        match self.system_target(&d)? {
            SystemTarget::Task(task) => self.switch_task(task, Switch::Call { next }),
            SystemTarget::Gate => self.call_through_gate(&d, next),
        }
    }

    /// Far RET with operand width `ty`, releasing `release` bytes of parameters.
    pub fn far_return(&mut self, ty: Ty, release: u64) -> Result<(), Fault> {
        tracing::trace!(target: "pcall", "far return from cpl {} {:#x}", self.state.cpl(), self.state.rip);
        let mut stack = self.current_stack();
        let rip = self.pop_from(&mut stack, ty)?;
        let selector = self.pop_from(&mut stack, ty)? as u16;
        if self.paragraph_mode() {
            self.check_ip(rip)?;
            self.drop_from(&mut stack, release);
            self.set_stack_pointer(stack.sp, stack.mask);
            return self.far_paragraph(selector, rip);
        }
        let code = self.return_code(selector, rip)?;
        let cpl = selector as u8 & 3;
        self.drop_from(&mut stack, release);
        if cpl == self.state.cpl() {
            self.set_stack_pointer(stack.sp, stack.mask);
            self.enter_code(code, rip);
            return Ok(());
        }
        let sp = self.pop_from(&mut stack, ty)?;
        let ss = self.pop_from(&mut stack, ty)? as u16;
        let segment = self.return_stack(ss, cpl, &code)?;
        self.state.segs[reg::SS] = segment;
        self.state.segs[reg::CS] = code;
        self.state.rip = rip;
        self.drop_inner_segments(cpl);
        self.update_mode();
        let mask = self.current_stack().mask;
        self.set_stack_pointer(sp.wrapping_add(release), mask);
        Ok(())
    }

    /// The instruction pointer lies within the current code segment (real and virtual-8086 mode).
    pub fn check_ip(&self, ip: u64) -> Result<(), Fault> {
        if within_limit(&self.state.segs[reg::CS], ip, 1) { Ok(()) } else { Err(Fault::GP0) }
    }

    fn far_paragraph(&mut self, selector: u16, offset: u64) -> Result<(), Fault> {
        self.check_ip(offset)?;
        self.load_paragraph(reg::CS, selector);
        self.state.rip = offset;
        self.update_mode();
        Ok(())
    }

    fn far_descriptor(&mut self, selector: u16) -> Result<Descriptor, Fault> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        self.read_descriptor(selector, vector::GP)
    }

    /// A code segment as target of a direct far JMP or CALL; CS as it will be.
    fn far_code(&mut self, d: &Descriptor, selector: u16) -> Result<Segment, Fault> {
        let (cpl, rpl) = (self.state.cpl(), selector as u8 & 3);
        let denied = if d.conforming() { d.dpl() > cpl } else { rpl > cpl || d.dpl() != cpl };
        if !d.is_code() || denied || self.bad_code_size(d) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(not_present(selector));
        }
        let mut d = *d;
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector & !3 | cpl as u16))
    }

    /// L and D both set is reserved in long mode (SDM 3A 5.2.1).
    fn bad_code_size(&self, d: &Descriptor) -> bool {
        self.long_active() && d.long() && d.big()
    }

    /// An instruction pointer fits its code segment: limit, or canonical in 64-bit code.
    pub fn check_code_offset(&self, code: &Segment, rip: u64) -> Result<(), Fault> {
        let fits = if self.long_active() && code.attributes & attr::L != 0 {
            self.canonical(rip)
        } else {
            within_limit(code, rip, 1)
        };
        if fits { Ok(()) } else { Err(Fault::GP0) }
    }

    /// Goes on at `rip` in code segment `code`.
    pub fn enter_code(&mut self, code: Segment, rip: u64) {
        self.state.segs[reg::CS] = code;
        self.state.rip = rip;
        self.update_mode();
    }

    /// Code segment that a far return or IRET to `selector` loads, checks done (SDM 2A, RET, IRET).
    pub fn return_code(&mut self, selector: u16, rip: u64) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut d = self.read_descriptor(selector, vector::GP)?;
        let rpl = selector as u8 & 3;
        let denied = if d.conforming() { d.dpl() > rpl } else { d.dpl() != rpl };
        if !d.is_code() || rpl < self.state.cpl() || denied || self.bad_code_size(&d) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(not_present(selector));
        }
        self.mark_accessed(&mut d)?;
        let code = d.segment(selector);
        self.check_code_offset(&code, rip)?;
        Ok(code)
    }

    /// Stack segment that a return to privilege level `cpl` loads. A null selector is fine on the way to 64-bit code
    /// below CPL 3.
    pub fn return_stack(&mut self, selector: u16, cpl: u8, code: &Segment) -> Result<Segment, Fault> {
        if is_null(selector) {
            let to64 = self.long_active() && code.attributes & attr::L != 0;
            if to64 && cpl != 3 && selector as u8 & 3 == cpl {
                return Ok(null_stack(cpl));
            }
            return Err(Fault::GP0);
        }
        self.stack_segment(selector, cpl, vector::GP, false)
    }

    fn system_target(&mut self, d: &Descriptor) -> Result<SystemTarget, Fault> {
        let selector = d.selector;
        let long = self.long_active();
        let known = match d.kind() {
            system_type::CALL32 => true,
            system_type::CALL16 | system_type::TASK_GATE | system_type::TSS16 | system_type::TSS32 => !long,
            _ => false,
        };
        if !known || d.dpl() < self.state.cpl().max(selector as u8 & 3) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(not_present(selector));
        }
        Ok(match d.kind() {
            system_type::TASK_GATE => SystemTarget::Task(d.gate_selector()),
            system_type::TSS16 | system_type::TSS32 => SystemTarget::Task(selector),
            _ => SystemTarget::Gate,
        })
    }

    /// Descriptor and offset that a call gate leads to.
    fn call_gate(&mut self, gate: &Descriptor) -> Result<(Descriptor, u64), Fault> {
        let long = self.long_active();
        let selector = gate.gate_selector();
        let mut offset = gate.gate_offset();
        if long {
            offset |= self.read_descriptor_high(gate, vector::GP)? << 32;
        } else if gate.kind() == system_type::CALL16 {
            offset &= 0xffff;
        }
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let d = self.read_descriptor(selector, vector::GP)?;
        if !d.is_code() || d.dpl() > self.state.cpl() || (long && (!d.long() || d.big())) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(not_present(selector));
        }
        Ok((d, offset))
    }

    fn gate_code(&mut self, d: &mut Descriptor, cpl: u8) -> Result<Segment, Fault> {
        self.mark_accessed(d)?;
        Ok(d.segment(d.selector & !3 | cpl as u16))
    }

    fn call_through_gate(&mut self, gate: &Descriptor, next: u64) -> Result<(), Fault> {
        let (mut target, offset) = self.call_gate(gate)?;
        let old_cs = self.state.segs[reg::CS].selector as u64;
        let long = self.long_active();
        let ty = match (long, gate.kind()) {
            (true, _) => Ty::I64,
            (_, system_type::CALL32) => Ty::I32,
            _ => Ty::I16,
        };
        let inner = !target.conforming() && target.dpl() < self.state.cpl();
        let cpl = if inner { target.dpl() } else { self.state.cpl() };
        let code = self.gate_code(&mut target, cpl)?;
        self.check_code_offset(&code, offset)?;
        let mut old = self.current_stack();
        if !inner {
            self.push_frame(&mut old, ty, &[old_cs, next])?;
            self.set_stack_pointer(old.sp, old.mask);
            self.enter_code(code, offset);
            return Ok(());
        }
        let (old_ss, old_sp) = (self.state.segs[reg::SS].selector as u64, old.sp);
        let mut words = vec![old_ss, old_sp];
        let (mut stack, segment) = if long {
            let sp = self.tss_long_pointer(4 + 8 * cpl as u32)?;
            (self.long_stack(sp, cpl), null_stack(cpl))
        } else {
            let s = self.tss_stack(cpl)?;
            let count = (gate.raw >> 32 & 0x1f) as usize;
            let mut parameters = Vec::with_capacity(count);
            for _ in 0..count {
                parameters.push(self.pop_from(&mut old, ty)?);
            }
            words.extend(parameters.iter().rev());
            (s, s.segment)
        };
        words.extend([old_cs, next]);
        self.push_frame(&mut stack, ty, &words)?;
        self.state.segs[reg::SS] = segment;
        self.set_stack_pointer(stack.sp, stack.mask);
        self.enter_code(code, offset);
        Ok(())
    }
}

/// What a system descriptor named by a far JMP or CALL is.
enum SystemTarget {
    /// Call gate.
    Gate,
    /// TSS with this selector.
    Task(u16),
}
