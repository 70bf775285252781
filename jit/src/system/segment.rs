//! Segment registers: loads, access checks, and the instructions that only look at descriptors.

use super::descriptor::{Descriptor, is_null, system_type};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::{Ty, seg_addr};
use crate::mmu::access::NOWHERE;
use crate::state::{Segment, attr, efer, mode, reg};

/// What a load of a segment register from real or virtual-8086 mode sets.
const REAL_LIMIT: u32 = 0xffff;
/// Attributes of every segment in virtual-8086 mode: present, DPL 3, writable data, accessed (SDM 3B 20.2).
const VM86_ATTRIBUTES: u16 = 0xf3;

impl Cpu {
    /// In real-address mode.
    pub fn real_mode(&self) -> bool {
        self.state.mode & mode::PE == 0
    }

    /// In virtual-8086 mode.
    pub fn vm86(&self) -> bool {
        self.state.mode & mode::VM86 != 0
    }

    /// Real-address or virtual-8086 mode: segments are paragraphs.
    pub fn paragraph_mode(&self) -> bool {
        self.real_mode() || self.vm86()
    }

    /// Long mode is active (64-bit or compatibility mode).
    pub fn long_active(&self) -> bool {
        self.state.efer & efer::LMA != 0
    }

    /// Linear address of `offset` in segment `seg` for an access of `bytes` bytes, limits and rights checked
    /// (SDM 3A 5.3, 5.4). #SS for the stack segment, #GP for others, error code 0.
    pub fn seg_check(&self, seg: usize, offset: u64, bytes: u32, write: bool) -> Result<u64, Fault> {
        let s = self.state.segs.get(seg).copied().unwrap_or_default();
        if self.state.long64() {
            return Ok(if seg >= reg::FS { s.base.wrapping_add(offset) } else { offset });
        }
        let fault = if seg == reg::SS { Fault::SS0 } else { Fault::GP0 };
        if self.segment_allows(&s, offset, bytes, write) {
            Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
        } else {
            Err(fault)
        }
    }

    /// What the operation `segaddr` gives for its constant and an offset.
    pub fn seg_addr(&mut self, imm: u64, offset: u64) -> Result<u64, Fault> {
        let (seg, bytes) = ((imm & 7) as usize, (imm >> 8) as u32);
        let (write, later) = (imm & seg_addr::WRITE != 0, imm & seg_addr::LATER != 0);
        let checked = self.seg_check(seg, offset, bytes, write);
        if checked.is_err() && bytes == 10 {
            // Silicon does eight bytes, then two: a page fault of the first piece comes before the limit of the second.
            let first = self.seg_check(seg, offset, 8, write);
            let page =
                first.and_then(|at| if write { self.probe_write(at, 8) } else { self.load(Ty::I64, at).map(drop) });
            match (first, page) {
                (Ok(at), Err(_)) if later => return Ok(at),
                (Ok(_), Err(fault)) => return Err(fault),
                _ => {}
            }
        }
        if later { checked.or(Ok(NOWHERE)) } else { checked }
    }

    /// Limit and rights of a segment admit the access. Not for 64-bit mode.
    pub fn segment_allows(&self, s: &Segment, offset: u64, bytes: u32, write: bool) -> bool {
        if !self.paragraph_mode() {
            let code = s.attributes & attr::CODE != 0;
            let rw = s.attributes & attr::RW != 0;
            let right = if write { !code && rw } else { !code || rw };
            if !s.present() || !right {
                return false;
            }
        }
        within_limit(s, offset, bytes)
    }

    /// Sets a segment register as real mode and virtual-8086 mode do: base = selector * 16. Real mode keeps limit and
    /// attributes ("unreal" big segments, SDM 3A 9.9.2); VM86 sets them.
    pub fn load_paragraph(&mut self, seg: usize, selector: u16) {
        let vm86 = self.vm86();
        let s = &mut self.state.segs[seg];
        s.selector = selector;
        s.base = (selector as u64) << 4;
        if vm86 {
            s.limit = REAL_LIMIT;
            s.attributes = VM86_ATTRIBUTES;
        }
    }

    /// A segment register's content in virtual-8086 mode.
    pub fn vm86_segment(selector: u16) -> Segment {
        Segment { base: (selector as u64) << 4, limit: REAL_LIMIT, attributes: VM86_ATTRIBUTES, selector }
    }

    /// MOV, POP, LDS...: loads ES, SS, DS, FS or GS (not CS).
    pub fn load_segment(&mut self, seg: usize, selector: u16) -> Result<(), Fault> {
        if self.paragraph_mode() {
            self.load_paragraph(seg, selector);
        } else if seg == reg::SS {
            let cpl = self.state.cpl();
            let s = self.stack_segment(selector, cpl, vector::GP, true)?;
            self.state.segs[reg::SS] = s;
        } else {
            self.state.segs[seg] = self.data_segment(selector)?;
        }
        self.update_mode();
        Ok(())
    }

    /// The content that loading `selector` into DS, ES, FS or GS gives, checks done (SDM 2A, MOV).
    pub fn data_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut d = self.read_descriptor(selector, vector::GP)?;
        self.check_data(&d, selector, vector::GP)?;
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// Rights of a data segment load; `bad` is #GP, or #TS in a task switch.
    pub fn check_data(&self, d: &Descriptor, selector: u16, bad: u8) -> Result<(), Fault> {
        let code = (selector & !3) as u32;
        let privilege = (selector as u8 & 3).max(self.state.cpl());
        if !d.readable() || (!d.conforming() && d.dpl() < privilege) {
            return Err(Fault::with_code(bad, code));
        }
        if !d.present() {
            return Err(Fault::with_code(vector::NP, code));
        }
        Ok(())
    }

    /// The content that loading `selector` into SS gives at privilege level `cpl`. `bad` is #GP, or #TS when the
    /// selector comes from a TSS. `null_ok`: a null selector is fine in 64-bit mode below CPL 3 if its RPL is the CPL.
    pub fn stack_segment(&mut self, selector: u16, cpl: u8, bad: u8, null_ok: bool) -> Result<Segment, Fault> {
        let fault = |v: u8| Err(Fault::with_code(v, (selector & !3) as u32));
        if is_null(selector) {
            if null_ok && self.state.long64() && cpl != 3 && selector as u8 & 3 == cpl {
                return Ok(null_stack(cpl));
            }
            return fault(bad);
        }
        let mut d = self.read_descriptor(selector, bad)?;
        if selector as u8 & 3 != cpl || !d.writable_data() || d.dpl() != cpl {
            return fault(bad);
        }
        if !d.present() {
            return fault(vector::SS);
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// LLDT (the privilege was checked).
    pub fn load_ldt(&mut self, selector: u16) -> Result<(), Fault> {
        self.state.ldtr = self.ldt_segment(selector, vector::GP)?;
        Ok(())
    }

    /// The content of LDTR for `selector`; `bad` is #GP, or #TS in a task switch.
    pub fn ldt_segment(&mut self, selector: u16, bad: u8) -> Result<Segment, Fault> {
        let fault = |v: u8| Err(Fault::with_code(v, (selector & !3) as u32));
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        if selector & 4 != 0 {
            return fault(bad);
        }
        let d = self.read_descriptor(selector, bad)?;
        if !d.is_system(system_type::LDT) {
            return fault(bad);
        }
        if !d.present() {
            return fault(if bad == vector::GP { vector::NP } else { bad });
        }
        let mut s = d.segment(selector);
        if self.long_active() {
            s.base |= self.read_descriptor_high(&d, bad)? << 32;
            if !self.canonical(s.base) {
                return fault(bad);
            }
        }
        Ok(s)
    }

    /// LTR (the privilege was checked): an available TSS, marked busy.
    pub fn load_task_register(&mut self, selector: u16) -> Result<(), Fault> {
        let fault = |v: u8| Err(Fault::with_code(v, (selector & !3) as u32));
        if is_null(selector) || selector & 4 != 0 {
            return fault(vector::GP);
        }
        let d = self.read_descriptor(selector, vector::GP)?;
        let long = self.long_active();
        if !d.is_system(system_type::TSS32) && (long || !d.is_system(system_type::TSS16)) {
            return fault(vector::GP);
        }
        if !d.present() {
            return fault(vector::NP);
        }
        let mut s = d.segment(selector);
        if long {
            s.base |= self.read_descriptor_high(&d, vector::GP)? << 32;
            if !self.canonical(s.base) {
                return fault(vector::GP);
            }
        }
        self.mark_busy(selector, true)?;
        s.attributes |= 2;
        self.state.tr = s;
        Ok(())
    }

    /// The descriptor if LAR, LSL, VERR and VERW may see it at all: table limit, and privilege unless conforming code.
    fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Fault> {
        if is_null(selector) {
            return Ok(None);
        }
        let d = match self.read_descriptor(selector, vector::GP) {
            Ok(d) => d,
            Err(f) if f.vector == vector::PF => return Err(f),
            Err(_) => return Ok(None),
        };
        let privilege = (selector as u8 & 3).max(self.state.cpl());
        Ok((d.conforming() || d.dpl() >= privilege).then_some(d))
    }

    /// LAR: access rights (bits 23:8 of the second doubleword), if visible and of a fit type.
    pub fn access_rights(&mut self, selector: u16) -> Result<Option<u64>, Fault> {
        let long = self.long_active();
        let fit = |d: &Descriptor| {
            d.is_segment()
                || match d.kind() {
                    system_type::LDT | system_type::TSS32 | system_type::TSS32_BUSY | system_type::CALL32 => true,
                    1 | 3 | 4 | 5 => !long,
                    _ => false,
                }
        };
        Ok(self.visible_descriptor(selector)?.filter(fit).map(|d| d.raw >> 32 & 0xff_ff00))
    }

    /// LSL: limit in bytes, if visible and of a fit type.
    pub fn segment_limit(&mut self, selector: u16) -> Result<Option<u64>, Fault> {
        let long = self.long_active();
        let fit = |d: &Descriptor| {
            d.is_segment()
                || match d.kind() {
                    system_type::LDT | system_type::TSS32 | system_type::TSS32_BUSY => true,
                    1 | 3 => !long,
                    _ => false,
                }
        };
        Ok(self.visible_descriptor(selector)?.filter(fit).map(|d| d.limit() as u64))
    }

    /// VERR (`write` false) and VERW.
    pub fn verify_segment(&mut self, selector: u16, write: bool) -> Result<bool, Fault> {
        let d = self.visible_descriptor(selector)?;
        Ok(d.is_some_and(|d| if write { d.writable_data() } else { d.readable() }))
    }

    /// After a return to an outer level: data segments that the new level may not use become null (SDM 2A, RET).
    pub fn drop_inner_segments(&mut self, cpl: u8) {
        for n in [reg::ES, reg::DS, reg::FS, reg::GS] {
            let s = &mut self.state.segs[n];
            let a = s.attributes;
            let conforming = a & (attr::CODE | attr::EC) == attr::CODE | attr::EC;
            if s.present() && !conforming && s.dpl() < cpl {
                *s = null_segment(0);
            }
        }
    }
}

/// Offsets `offset` to `offset + bytes - 1` lie within the segment's limit.
pub fn within_limit(s: &Segment, offset: u64, bytes: u32) -> bool {
    let last = offset.wrapping_add(bytes.max(1) as u64 - 1);
    if s.attributes & (attr::CODE | attr::EC) == attr::EC {
        let top = if s.attributes & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
        return offset > s.limit as u64 && last <= top;
    }
    // A 4 GiB segment wraps without fault, as the flat fast path does.
    s.limit == u32::MAX || last <= s.limit as u64
}

/// A data segment register with a null selector: not present, base and limit 0.
pub fn null_segment(selector: u16) -> Segment {
    Segment { selector, ..Segment::default() }
}

/// SS with a null selector at privilege level `cpl` (64-bit mode): not usable, but its DPL is the CPL.
pub fn null_stack(cpl: u8) -> Segment {
    Segment { selector: cpl as u16, attributes: (cpl as u16) << attr::DPL_SHIFT, ..Segment::default() }
}
