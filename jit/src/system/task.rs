//! Hardware task switch (SDM 3A chapter 7).

use super::breakpoint::dr6;
use super::descriptor::{Descriptor, is_null, system_type};
use super::segment::{null_segment, null_stack};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::Ty;
use crate::state::{Segment, cr0, cr4, flag, reg};

/// What asks for a task switch, with the instruction pointer that the old task resumes at.
#[derive(Clone, Copy, Debug)]
pub enum Switch {
    /// Far JMP.
    Jump {
        /// RIP to save.
        next: u64,
    },
    /// Far CALL.
    Call {
        /// RIP to save.
        next: u64,
    },
    /// Interrupt or exception through a task gate.
    Interrupt {
        /// RIP to save.
        rip: u64,
        /// RF, if it is set in the saved flags.
        set_rf: u64,
    },
    /// IRET with NT set.
    Return {
        /// RIP to save.
        next: u64,
    },
}

impl Switch {
    fn nests(self) -> bool {
        matches!(self, Switch::Call { .. } | Switch::Interrupt { .. })
    }
}

/// Where things are in a TSS (SDM 3A figures 7-2 and 7-10).
struct Layout {
    ty: Ty,
    rip: u64,
    flags: u64,
    registers: u64,
    segments: u64,
    segment_count: usize,
    segment_step: u64,
    ldt: u64,
    /// Smallest limit.
    limit: u32,
}

const LAYOUT16: Layout = Layout {
    ty: Ty::I16,
    rip: 0x0e,
    flags: 0x10,
    registers: 0x12,
    segments: 0x22,
    segment_count: 4,
    segment_step: 2,
    ldt: 0x2a,
    limit: 0x2b,
};
const LAYOUT32: Layout = Layout {
    ty: Ty::I32,
    rip: 0x20,
    flags: 0x24,
    registers: 0x28,
    segments: 0x48,
    segment_count: 6,
    segment_step: 4,
    ldt: 0x60,
    limit: 0x67,
};

fn layout(attributes: u16) -> &'static Layout {
    if attributes & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
}

/// The new task's registers as its TSS holds them.
struct Image {
    cr3: u64,
    rip: u64,
    flags: u64,
    registers: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Switches to the task whose TSS `selector` names. Faults up to the point where the new task's state is loaded leave
    /// the processor as it was. Later ones are the new task's (SDM 3A 7.3): they are delivered here, at its first
    /// instruction.
    pub fn switch_task(&mut self, selector: u16, how: Switch) -> Result<(), Fault> {
        if self.enter_task(selector, how)? {
            self.task_trap();
        }
        Ok(())
    }

    /// #DB if the TSS's T bit asked for it, once the new task is complete.
    pub fn task_trap(&mut self) {
        if self.pending_db & dr6::BT != 0 {
            self.state.dr[6] |= dr6::BT;
            self.deliver_in_task(Fault::new(vector::DB));
        }
    }

    fn deliver_in_task(&mut self, fault: Fault) {
        if let Err(shutdown) = self.deliver_fault(fault) {
            self.shutdown = Some(shutdown.text);
        }
    }

    /// [`Cpu::switch_task`] without the trap; `false`: a fault of the new task was delivered.
    pub fn enter_task(&mut self, selector: u16, how: Switch) -> Result<bool, Fault> {
        let d = self.task_descriptor(selector, how)?;
        let mut new = d.segment(selector);
        let to = layout(new.attributes);
        if new.limit < to.limit {
            return Err(Fault::with_code(vector::TS, (selector & !3) as u32));
        }
        let image = self.read_image(&new, to)?;
        self.probe_write_at(self.system_index(), new.base, to.limit as u64 + 1)?;
        self.probe_write_at(self.system_index(), d.address, 8)?;
        let old = self.state.tr;
        self.save_task(&old, how)?;
        if !how.nests() {
            self.mark_busy(old.selector, false)?;
        }
        if how.nests() {
            self.store_system(Ty::I16, new.base, old.selector as u64)?;
        }
        if !matches!(how, Switch::Return { .. }) {
            self.mark_busy(selector, true)?;
        }
        new.attributes |= 2;
        self.state.tr = new;
        self.state.cr0 |= cr0::TS;
        self.load_image(&image, to, how);
        let Err(fault) = self.load_task_segments(&image) else { return Ok(true) };
        self.deliver_in_task(fault);
        Ok(false)
    }

    fn task_descriptor(&mut self, selector: u16, how: Switch) -> Result<Descriptor, Fault> {
        let returning = matches!(how, Switch::Return { .. });
        let bad = if returning { vector::TS } else { vector::GP };
        let fault = |v: u8| Err(Fault::with_code(v, (selector & !3) as u32));
        if is_null(selector) || selector & 4 != 0 {
            return fault(bad);
        }
        let d = self.read_descriptor(selector, bad)?;
        let want = if returning {
            [system_type::TSS16_BUSY, system_type::TSS32_BUSY]
        } else {
            [system_type::TSS16, system_type::TSS32]
        };
        if d.is_segment() || !want.contains(&d.kind()) {
            return fault(bad);
        }
        if !d.present() {
            return fault(vector::NP);
        }
        Ok(d)
    }

    fn read_image(&mut self, tss: &Segment, l: &Layout) -> Result<Image, Fault> {
        let wide = l.ty == Ty::I32;
        let word = |cpu: &mut Self, ty: Ty, at: u64| cpu.load_system(ty, cpu.table_address(tss.base, at));
        let mut image = Image {
            cr3: if wide { word(self, Ty::I32, 0x1c)? } else { 0 },
            rip: word(self, l.ty, l.rip)?,
            flags: word(self, l.ty, l.flags)?,
            registers: [0; 8],
            segments: [0; 6],
            ldt: word(self, Ty::I16, l.ldt)? as u16,
            trap: wide && word(self, Ty::I16, 0x64)? & 1 != 0,
        };
        for n in 0..8 {
            let v = word(self, l.ty, l.registers + n * l.ty.bytes() as u64)?;
            // A 16-bit TSS leaves the upper halves undefined; silicon sets them.
            image.registers[n as usize] = if wide { v } else { v | 0xffff_0000 };
        }
        for n in 0..l.segment_count {
            image.segments[n] = word(self, Ty::I16, l.segments + n as u64 * l.segment_step)? as u16;
        }
        Ok(image)
    }

    /// Writes the old task's registers to its TSS, all checked first.
    fn save_task(&mut self, old: &Segment, how: Switch) -> Result<(), Fault> {
        let l = layout(old.attributes);
        if !old.present() || old.limit < l.limit {
            return Err(Fault::with_code(vector::TS, (old.selector & !3) as u32));
        }
        self.probe_write_at(self.system_index(), self.table_address(old.base, l.rip), l.ldt - l.rip)?;
        let mut flags = self.rflags();
        let rip = match how {
            Switch::Jump { next } | Switch::Call { next } => next,
            Switch::Interrupt { rip, set_rf } => {
                flags |= set_rf;
                rip
            }
            Switch::Return { next } => {
                flags &= !flag::NT;
                next
            }
        };
        let store = |cpu: &mut Self, ty: Ty, at: u64, v: u64| cpu.store_system(ty, cpu.table_address(old.base, at), v);
        store(self, l.ty, l.rip, rip)?;
        store(self, l.ty, l.flags, flags)?;
        for n in 0..8 {
            let v = self.gpr(n as usize);
            store(self, l.ty, l.registers + n * l.ty.bytes() as u64, v)?;
        }
        for n in 0..l.segment_count {
            let v = self.state.segs[n].selector as u64;
            store(self, Ty::I16, l.segments + n as u64 * l.segment_step, v)?;
        }
        Ok(())
    }

    fn load_image(&mut self, image: &Image, l: &Layout, how: Switch) {
        if l.ty == Ty::I32 && self.state.cr0 & cr0::PG != 0 && self.state.cr3 != image.cr3 {
            self.state.cr3 = image.cr3;
            if self.state.cr4 & cr4::PAE != 0 {
                // A bad PDPTE cannot undo the switch any more: the old ones stay, accesses of the task will tell.
                let _ = self.load_pdptes();
            }
            self.flush_tlb_non_global();
        }
        self.state.rip = image.rip;
        let nt = if how.nests() { flag::NT } else { 0 };
        let upper = if l.ty == Ty::I32 { 0 } else { self.state.rflags & 0xffff_0000 & !(flag::VM | flag::RF) };
        self.set_rflags(image.flags | nt | upper);
        self.note_rf();
        for (n, v) in image.registers.iter().enumerate() {
            self.set_gpr(n, *v);
        }
        // SDM 3B 17.2.4: local breakpoint enables are cleared by a task switch.
        self.state.dr[7] &= !0x155;
        if image.trap {
            self.pending_db |= dr6::BT;
        }
    }

    /// Loads LDTR and the segment registers in the new task; faults are #TS mostly (SDM 3A table 7-1).
    fn load_task_segments(&mut self, image: &Image) -> Result<(), Fault> {
        let cpl = image.segments[reg::CS] as u8 & 3;
        let vm86 = self.state.rflags & flag::VM != 0;
        for n in 0..6 {
            let selector = image.segments[n];
            self.state.segs[n] = if vm86 { Self::vm86_segment(selector) } else { null_segment(selector) };
        }
        self.state.ldtr = Segment { selector: image.ldt, ..Segment::default() };
        if vm86 {
            self.update_mode();
            self.state.ldtr = self.ldt_segment(image.ldt, vector::TS)?;
            return Ok(());
        }
        self.state.segs[reg::SS] = Segment { selector: image.segments[reg::SS], ..null_stack(cpl) };
        self.update_mode();
        self.state.ldtr = self.ldt_segment(image.ldt, vector::TS)?;
        self.state.segs[reg::CS] = self.task_code(image.segments[reg::CS])?;
        self.update_mode();
        let ss = self.stack_segment(image.segments[reg::SS], cpl, vector::TS, false)?;
        self.state.segs[reg::SS] = ss;
        self.update_mode();
        for n in [reg::DS, reg::ES, reg::FS, reg::GS] {
            let selector = image.segments[n];
            if is_null(selector) {
                continue;
            }
            let mut d = self.read_descriptor(selector, vector::TS)?;
            self.check_data(&d, selector, vector::TS)?;
            self.mark_accessed(&mut d)?;
            self.state.segs[n] = d.segment(selector);
            self.update_mode();
        }
        let code = self.state.segs[reg::CS];
        self.check_code_offset(&code, self.state.rip)
    }

    fn task_code(&mut self, selector: u16) -> Result<Segment, Fault> {
        let fault = |v: u8| Err(Fault::with_code(v, (selector & !3) as u32));
        if is_null(selector) {
            return fault(vector::TS);
        }
        let mut d = self.read_descriptor(selector, vector::TS)?;
        let rpl = selector as u8 & 3;
        let denied = if d.conforming() { d.dpl() > rpl } else { d.dpl() != rpl };
        if !d.is_code() || denied {
            return fault(vector::TS);
        }
        if !d.present() {
            return fault(vector::NP);
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }
}
