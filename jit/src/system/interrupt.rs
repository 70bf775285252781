//! Delivery through the interrupt vector table and the IDT, in all modes; software interrupts (SDM 3A chapter 6, 3B 20).

use super::descriptor::{Descriptor, is_null, system_type};
use super::segment::{null_segment, null_stack, within_limit};
use super::stack::Stack;
use super::task::Switch;
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::Ty;
use crate::state::{Segment, cr4, flag, mode, reg, shadow};

/// Where an event comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// External interrupt or NMI.
    External,
    /// Exception of an instruction, and INT1.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL is checked, faults have EXT clear.
    Software,
}

/// An interrupt or exception to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code to push (never in real mode).
    pub error: Option<u32>,
    /// Source.
    pub origin: Origin,
    /// Instruction pointer to push.
    pub rip: u64,
    /// RF is set in the pushed flags.
    pub set_rf: bool,
}

/// Bit of error codes: the selector index is that of an IDT gate (SDM 3A 6.13).
const IDT: u32 = 2;
/// Bit of error codes: the event was external to the program.
const EXT: u32 = 1;

impl Event {
    fn gate_fault(&self, v: u8) -> Fault {
        Fault::with_code(v, (self.vector as u32) << 3 | IDT)
    }
}

/// Target of a gate, checked.
struct Target {
    code: Segment,
    cpl: u8,
    inner: bool,
}

impl Cpu {
    /// Delivers an event. On `Err` nothing was changed but accessed bits of descriptors.
    pub fn deliver_event(&mut self, ev: &Event) -> Result<(), Fault> {
        self.log_event(ev);
        let done = if self.real_mode() {
            self.deliver_real(ev)
        } else if self.long_active() {
            self.deliver_long(ev)
        } else {
            self.deliver_protected(ev)
        };
        match done {
            Ok(()) => {
                self.state.shadow = 0;
                if ev.vector == vector::DB {
                    // SDM 3B 17.2.4: GD is cleared on entry to the debug handler.
                    self.state.dr[7] &= !(1 << 13);
                }
                self.update_mode();
                Ok(())
            }
            Err(mut f) => {
                let has_ext = matches!(f.vector, vector::TS | vector::NP | vector::SS | vector::GP);
                if ev.origin != Origin::Software && has_ext {
                    f.error = f.error.map(|e| e | EXT);
                }
                Err(f)
            }
        }
    }

    fn pushed_flags(&self, ev: &Event) -> u64 {
        self.rflags() | if ev.set_rf { flag::RF } else { 0 }
    }

    /// Real-address mode: the interrupt vector table (SDM 3B 20.1.4).
    fn deliver_real(&mut self, ev: &Event) -> Result<(), Fault> {
        if ev.vector as u32 * 4 + 3 > self.state.idtr.limit as u32 {
            return Err(ev.gate_fault(vector::GP));
        }
        let at = self.table_address(self.state.idtr.base, ev.vector as u64 * 4);
        let entry = self.load_system(Ty::I32, at)?;
        let mut stack = self.current_stack();
        let cs = self.state.segs[reg::CS].selector as u64;
        let flags = self.pushed_flags(ev) & !flag::RF;
        self.push_frame(&mut stack, Ty::I16, &[flags, cs, ev.rip])?;
        self.set_stack_pointer(stack.sp, stack.mask);
        self.state.rflags &= !(flag::IF | flag::TF | flag::AC | flag::RF);
        self.load_paragraph(reg::CS, (entry >> 16) as u16);
        self.state.rip = entry & 0xffff;
        Ok(())
    }

    fn read_gate(&mut self, ev: &Event, size: u32) -> Result<Descriptor, Fault> {
        if ev.vector as u32 * size + size - 1 > self.state.idtr.limit as u32 {
            return Err(ev.gate_fault(vector::GP));
        }
        let address = self.table_address(self.state.idtr.base, ev.vector as u64 * size as u64);
        let raw = self.load_system(Ty::I64, address)?;
        Ok(Descriptor { raw, address, selector: 0 })
    }

    /// Type, privilege and presence of an IDT gate.
    fn check_gate(&self, ev: &Event, gate: &Descriptor, kinds: &[u8]) -> Result<(), Fault> {
        let software = ev.origin == Origin::Software;
        if gate.is_segment() || !kinds.contains(&gate.kind()) || (software && gate.dpl() < self.state.cpl()) {
            return Err(ev.gate_fault(vector::GP));
        }
        if gate.present() { Ok(()) } else { Err(ev.gate_fault(vector::NP)) }
    }

    /// Code segment of a gate (SDM 3A 6.12.1).
    fn gate_target(&mut self, selector: u16, long: bool) -> Result<Target, Fault> {
        if is_null(selector) {
            return Err(Fault::GP0);
        }
        let mut d = self.read_descriptor(selector, vector::GP)?;
        let cpl = self.state.cpl();
        if !d.is_code() || d.dpl() > cpl || (long && (!d.long() || d.big())) {
            return Err(Fault::gp(selector));
        }
        if !d.present() {
            return Err(Fault::with_code(vector::NP, (selector & !3) as u32));
        }
        let inner = !d.conforming() && d.dpl() < cpl;
        if self.vm86() && !(inner && d.dpl() == 0) {
            return Err(Fault::gp(selector));
        }
        self.mark_accessed(&mut d)?;
        let cpl = if inner { d.dpl() } else { cpl };
        Ok(Target { code: d.segment(selector & !3 | cpl as u16), cpl, inner })
    }

    /// Protected mode outside long mode.
    fn deliver_protected(&mut self, ev: &Event) -> Result<(), Fault> {
        use system_type::*;
        let gate = self.read_gate(ev, 8)?;
        self.check_gate(ev, &gate, &[TASK_GATE, INT16, TRAP16, INT32, TRAP32])?;
        if gate.kind() == TASK_GATE {
            return self.interrupt_task(ev, gate.gate_selector());
        }
        let target = self.gate_target(gate.gate_selector(), false)?;
        let wide = gate.kind() & 8 != 0;
        let ty = if wide { Ty::I32 } else { Ty::I16 };
        let rip = gate.gate_offset() & ty.mask();
        let mut stack = if target.inner { self.tss_stack(target.cpl)? } else { self.current_stack() };
        if !within_limit(&target.code, rip, 1) {
            return Err(Fault::GP0);
        }
        let mut frame = Frame::default();
        if self.vm86() {
            for n in [reg::GS, reg::FS, reg::DS, reg::ES] {
                frame.add(self.state.segs[n].selector as u64);
            }
        }
        if target.inner {
            frame.add(self.state.segs[reg::SS].selector as u64);
            frame.add(self.gpr(reg::RSP));
        }
        frame.add(self.pushed_flags(ev));
        frame.add(self.state.segs[reg::CS].selector as u64);
        frame.add(ev.rip);
        if let Some(e) = ev.error {
            frame.add(e as u64);
        }
        self.push_frame(&mut stack, ty, frame.words())?;
        if self.vm86() {
            for n in [reg::GS, reg::FS, reg::DS, reg::ES] {
                self.state.segs[n] = null_segment(0);
            }
        }
        if target.inner {
            self.state.segs[reg::SS] = stack.segment;
        }
        self.set_stack_pointer(stack.sp, stack.mask);
        self.enter_gate(target.code, rip, gate.kind() & 1 == 0);
        Ok(())
    }

    /// Long mode: 16-byte gates, IST, a frame of 64-bit words on a stack aligned to 16 bytes (SDM 3A 6.14).
    fn deliver_long(&mut self, ev: &Event) -> Result<(), Fault> {
        use system_type::{INT32, TRAP32};
        let gate = self.read_gate(ev, 16)?;
        self.check_gate(ev, &gate, &[INT32, TRAP32])?;
        let high = self.load_system(Ty::I64, self.table_address(gate.address, 8))?;
        let target = self.gate_target(gate.gate_selector(), true)?;
        let rip = gate.gate_offset() | high << 32;
        let ist = (gate.raw >> 32 & 7) as u32;
        let sp = if ist != 0 {
            self.tss_long_pointer(0x24 + 8 * (ist - 1))?
        } else if target.inner {
            self.tss_long_pointer(4 + 8 * target.cpl as u32)?
        } else {
            self.gpr(reg::RSP)
        };
        let mut stack = self.long_stack(sp & !15, target.cpl);
        if !self.canonical(rip) {
            return Err(Fault::GP0);
        }
        let words = [
            self.state.segs[reg::SS].selector as u64,
            self.gpr(reg::RSP),
            self.pushed_flags(ev),
            self.state.segs[reg::CS].selector as u64,
            ev.rip,
            ev.error.unwrap_or(0) as u64,
        ];
        let words = if ev.error.is_some() { &words[..] } else { &words[..5] };
        self.push_frame(&mut stack, Ty::I64, words)?;
        if target.inner {
            self.state.segs[reg::SS] = null_stack(target.cpl);
        }
        self.set_gpr(reg::RSP, stack.sp);
        self.enter_gate(target.code, rip, gate.kind() == INT32);
        Ok(())
    }

    fn enter_gate(&mut self, code: Segment, rip: u64, clear_if: bool) {
        let mut clear = flag::TF | flag::NT | flag::VM | flag::RF;
        if clear_if {
            clear |= flag::IF;
        }
        self.state.rflags &= !clear;
        self.state.segs[reg::CS] = code;
        self.state.rip = rip;
    }

    /// An event through a task gate (SDM 3A 6.12.2); the error code goes to the new task's stack.
    fn interrupt_task(&mut self, ev: &Event, selector: u16) -> Result<(), Fault> {
        let set_rf = if ev.set_rf { flag::RF } else { 0 };
        let error = ev.error;
        if !self.enter_task(selector, Switch::Interrupt { rip: ev.rip, set_rf })? {
            return Ok(());
        }
        if let Some(e) = error {
            let ty = if self.state.tr.attributes & 8 != 0 { Ty::I32 } else { Ty::I16 };
            let mut stack = self.current_stack();
            self.push_frame(&mut stack, ty, &[e as u64])?;
            self.set_stack_pointer(stack.sp, stack.mask);
        }
        self.task_trap();
        Ok(())
    }

    /// INT n (`next` is the RIP it pushes). In virtual-8086 mode: IOPL, and the redirection bitmap with CR4.VME.
    pub fn software_interrupt(&mut self, vector: u8, next: u64) -> Result<(), Fault> {
        if self.vm86() {
            let iopl3 = self.state.rflags & flag::IOPL == flag::IOPL;
            if self.state.cr4 & cr4::VME != 0 && self.redirected(vector)? {
                return self.virtual_interrupt(vector, next, iopl3);
            }
            if !iopl3 {
                return Err(Fault::GP0);
            }
        }
        self.software_event(vector, next)
    }

    /// INT3 and INTO: as INT n without IOPL check and redirection; INT1 is a hardware exception (`Origin::Exception`).
    pub fn software_event(&mut self, vector: u8, next: u64) -> Result<(), Fault> {
        let origin = Origin::Software;
        self.lose_single_step();
        self.deliver_event(&Event { vector, error: None, origin, rip: next, set_rf: false })
    }

    /// INT1 (ICEBP).
    pub fn int1(&mut self, next: u64) -> Result<(), Fault> {
        let origin = Origin::Exception;
        self.lose_single_step();
        self.deliver_event(&Event { vector: vector::DB, error: None, origin, rip: next, set_rf: false })
    }

    /// Bit of the TSS's software interrupt redirection bitmap is clear: handled in virtual-8086 mode (SDM 3B 20.3.3).
    fn redirected(&mut self, vector: u8) -> Result<bool, Fault> {
        let tr = self.state.tr;
        if tr.attributes & 8 == 0 || tr.limit < 0x67 {
            return Ok(false);
        }
        let map = self.load_system(Ty::I16, self.table_address(tr.base, 0x66))?;
        // The bitmap is the 32 bytes below the I/O map.
        let offset = map.wrapping_sub(32).wrapping_add(vector as u64 / 8) & 0xffff;
        if map < 32 || offset > tr.limit as u64 {
            return Ok(false);
        }
        let byte = self.load_system(Ty::I8, self.table_address(tr.base, offset))?;
        Ok(byte >> (vector & 7) & 1 == 0)
    }

    /// INT n through the virtual-8086 task's own vector table at linear address 0.
    fn virtual_interrupt(&mut self, vector: u8, next: u64, iopl3: bool) -> Result<(), Fault> {
        let entry = self.load(Ty::I32, vector as u64 * 4)?;
        let mut flags = self.rflags();
        let clear = if iopl3 {
            flag::IF | flag::TF
        } else {
            // VIF stands for IF, IOPL reads as 3.
            let vif = if flags & flag::VIF != 0 { flag::IF } else { 0 };
            flags = flags & !flag::IF | vif | flag::IOPL;
            flag::VIF | flag::TF
        };
        let cs = self.state.segs[reg::CS].selector as u64;
        let mut stack = self.current_stack();
        self.push_frame(&mut stack, Ty::I16, &[flags, cs, next])?;
        self.set_stack_pointer(stack.sp, stack.mask);
        self.state.rflags &= !(clear | flag::RF);
        self.load_paragraph(reg::CS, (entry >> 16) as u16);
        self.state.rip = entry & 0xffff;
        self.update_mode();
        Ok(())
    }

    /// Interrupts are enabled and not held off: an external interrupt may be delivered now.
    pub fn interruptible(&self) -> bool {
        self.state.rflags & flag::IF != 0 && self.state.shadow == 0
    }

    /// A non-maskable interrupt may be delivered now.
    pub fn nmi_possible(&self) -> bool {
        !self.state.nmi_blocked && self.state.shadow & shadow::MOV_SS == 0
    }

    /// Stack of privilege level `cpl` from the TSS, outside long mode (SDM 3A 5.8.5).
    pub fn tss_stack(&mut self, cpl: u8) -> Result<Stack, Fault> {
        let tr = self.state.tr;
        let fault = Fault::with_code(vector::TS, (tr.selector & !3) as u32);
        let wide = tr.attributes & 8 != 0;
        let (offset, size, ty) = if wide { (4 + 8 * cpl as u32, 6, Ty::I32) } else { (2 + 4 * cpl as u32, 4, Ty::I16) };
        if !tr.present() || offset + size - 1 > tr.limit {
            return Err(fault);
        }
        let at = self.table_address(tr.base, offset as u64);
        let sp = self.load_system(ty, at)?;
        let ss = self.load_system(Ty::I16, self.table_address(at, ty.bytes() as u64))? as u16;
        let segment = self.stack_segment(ss, cpl, vector::TS, false)?;
        Ok(self.new_stack(segment, sp, cpl))
    }

    /// A stack pointer at `offset` of the 64-bit TSS.
    pub fn tss_long_pointer(&mut self, offset: u32) -> Result<u64, Fault> {
        let tr = self.state.tr;
        if offset + 7 > tr.limit {
            return Err(Fault::with_code(vector::TS, (tr.selector & !3) as u32));
        }
        self.load_system(Ty::I64, tr.base.wrapping_add(offset as u64))
    }

    /// The privilege level allows I/O and interrupt flag changes without further checks: CPL <= IOPL, not VM86.
    pub fn io_privileged(&self) -> bool {
        let iopl = (self.state.rflags & flag::IOPL) >> 12;
        self.state.mode & mode::PE == 0 || self.state.cpl() as u64 <= iopl
    }
}

/// Words of an interrupt frame, in pushing order: ten at most.
#[derive(Default)]
struct Frame {
    words: [u64; 10],
    len: usize,
}

impl Frame {
    fn add(&mut self, v: u64) {
        self.words[self.len] = v;
        self.len += 1;
    }
    fn words(&self) -> &[u64] {
        &self.words[..self.len]
    }
}
