//! Power-on, RESET and INIT states (SDM 3A 9.1.1, table 9-1), and the register set the program exchanges.

use crate::cpu::Cpu;
use crate::state::{CpuState, HIGH, Msrs, Segment, TableRegister, X87, attr, cr0, reg};
use crate::vcpu::{MoreRegisters, Registers, SegmentRegister};

/// Data segment: present, writable, accessed.
const DATA: u16 = attr::P | attr::S | attr::RW | attr::ACCESSED;
/// Code segment: present, readable, accessed.
const CODE: u16 = DATA | attr::CODE;
/// Present LDT.
const LDT: u16 = attr::P | 2;
/// Present, busy 32-bit TSS.
const TSS: u16 = attr::P | 11;

/// IA32_PAT after reset (SDM 3A table 11-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings, and no BTS or PEBS.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;

impl Cpu {
    /// Power-on state. The TSC is not reset: all processors keep one count, as the board gives it.
    pub fn reset(&mut self) {
        tracing::trace!(target: "cpu_reset", "CPU Reset (CPU {})\n{}", self.index, self.dump_for_reset());
        self.init_registers();
        let s = &mut self.state;
        s.cr0 = cr0::CD | cr0::NW | cr0::ET;
        s.x87 = X87 { regs: [0; 8], fcw: 0x40, fsw: 0, tags: 0xff, fop: 0, fip: 0, fdp: 0, fcs: 0, fds: 0 };
        s.vecs = [0; _];
        s.mxcsr = 0x1f80;
        s.xcr0 = 1;
        s.msr = Msrs { pat: PAT_RESET, misc_enable: MISC_ENABLE_RESET, tsc_aux: 0, ..Msrs::default() };
        self.shutdown = None;
        self.update_fpu_error();
        self.update_mode();
    }

    /// What RESET and INIT have in common.
    fn init_registers(&mut self) {
        let signature = self.model.signature() as u64;
        let s = &mut self.state;
        s.vals.fill(0);
        s.vals[reg::RDX] = signature;
        s.rip = 0xfff0;
        s.rflags = 2;
        (s.cc_op, s.cc_res, s.cc_src) = (0, 0, 0);
        let segment = |attributes| Segment { base: 0, limit: 0xffff, attributes, selector: 0 };
        s.segs = [segment(DATA); 6];
        s.segs[reg::CS] = Segment { base: 0xffff_0000, selector: 0xf000, ..segment(CODE) };
        s.ldtr = segment(LDT);
        s.tr = segment(TSS);
        s.gdtr = TableRegister { base: 0, limit: 0xffff };
        s.idtr = TableRegister { base: 0, limit: 0xffff };
        (s.cr2, s.cr3, s.cr4, s.efer) = (0, 0, 0, 0);
        s.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        s.shadow = 0;
        s.halted = false;
        s.nmi_blocked = false;
        self.pdptes = [0; 4];
        self.monitor = None;
        self.monitored = None;
        self.mwait = None;
        self.pending_db = 0;
        self.flush_tlb_all();
    }

    /// INIT, as far as a start-up message follows: CS = `vector << 8`, IP 0. Caches' mode, FPU and MSRs stay.
    pub fn init_start_up(&mut self, vector: u8) {
        let caches = self.state.cr0 & (cr0::CD | cr0::NW);
        self.init_registers();
        self.state.cr0 = caches | cr0::ET;
        let cs = &mut self.state.segs[reg::CS];
        cs.selector = (vector as u16) << 8;
        cs.base = (vector as u64) << 12;
        self.state.rip = 0;
        self.update_mode();
    }

    /// The registers the program sees.
    pub fn get_registers(&self) -> Registers {
        let s = &self.state;
        Registers {
            gpr: std::array::from_fn(|n| s.vals[n]),
            rip: s.rip,
            rflags: self.rflags(),
            segments: s.segs.map(|g| segment_out(&g)),
            ldtr: segment_out(&s.ldtr),
            tr: segment_out(&s.tr),
            gdtr: (s.gdtr.base, s.gdtr.limit),
            idtr: (s.idtr.base, s.idtr.limit),
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
        }
    }

    /// Sets the registers, and drops every translation made under the old ones.
    pub fn set_registers(&mut self, r: &Registers) {
        let s: &mut CpuState = &mut self.state;
        s.vals[..16].copy_from_slice(&r.gpr);
        s.rip = r.rip;
        s.segs = r.segments.map(|g| segment_in(&g));
        s.ldtr = segment_in(&r.ldtr);
        s.tr = segment_in(&r.tr);
        s.gdtr = TableRegister { base: r.gdtr.0, limit: r.gdtr.1 };
        s.idtr = TableRegister { base: r.idtr.0, limit: r.idtr.1 };
        (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (r.cr0 | cr0::ET, r.cr2, r.cr3, r.cr4, r.efer);
        s.halted = false;
        if self.pae_paging() {
            // Reserved bits cannot be reported here; accesses through such an entry fault.
            let _ = self.load_pdptes();
        }
        self.set_rflags(r.rflags);
        self.flush_tlb_all();
    }

    /// The other registers that debuggers see.
    pub fn get_more_registers(&self) -> MoreRegisters {
        let (s, x) = (&self.state, &self.state.x87);
        let top = usize::from(x.fsw >> 11 & 7);
        MoreRegisters {
            st: std::array::from_fn(|n| std::array::from_fn(|i| x.regs[(top + n) & 7].to_le_bytes()[i])),
            x87: [x.fcw, x.fsw, x.tag_word()],
            x87_pointers: [x.fcs.into(), x.fip, x.fds.into(), x.fdp, x.fop.into()],
            xmm: std::array::from_fn(|n| s.vecs[n]),
            ymm_high: std::array::from_fn(|n| s.vecs[HIGH + n]),
            mxcsr: s.mxcsr,
            kernel_gs_base: s.msr.kernel_gs_base,
            cr8: self.board.cr8(self.index),
        }
    }

    /// Sets the other registers that debuggers see.
    pub fn set_more_registers(&mut self, r: &MoreRegisters) {
        const MXCSR_DEFINED: u32 = 0xffff;
        let (s, [fcs, fip, fds, fdp, fop]) = (&mut self.state, r.x87_pointers);
        let x = &mut s.x87;
        [x.fcw, x.fsw] = [r.x87[0], r.x87[1]];
        let top = usize::from(x.fsw >> 11 & 7);
        for (n, st) in r.st.iter().enumerate() {
            let mut bytes = [0; 16];
            bytes[..st.len()].copy_from_slice(st);
            x.regs[(top + n) & 7] = u128::from_le_bytes(bytes);
        }
        x.set_tag_word(r.x87[2]);
        (x.fcs, x.fds, x.fop) = (fcs as u16, fds as u16, fop as u16 & 0x7ff);
        (x.fip, x.fdp) = (fip, fdp);
        for (vec, value) in s.vecs.iter_mut().zip(r.xmm.iter().chain(&r.ymm_high)) {
            *vec = *value;
        }
        s.mxcsr = r.mxcsr & MXCSR_DEFINED;
        s.msr.kernel_gs_base = r.kernel_gs_base;
        self.board.set_cr8(self.index, r.cr8 & 15);
        self.update_fpu_error();
        self.update_mode();
    }

    /// Three-level PAE paging is on, with PDPTE registers.
    pub fn pae_paging(&self) -> bool {
        let p = self.paging();
        p.cr0 & cr0::PG != 0 && p.cr4 & crate::state::cr4::PAE != 0 && p.efer & crate::state::efer::LMA == 0
    }
}

fn segment_out(s: &Segment) -> SegmentRegister {
    SegmentRegister { selector: s.selector, base: s.base, limit: s.limit, attributes: s.attributes }
}

fn segment_in(s: &SegmentRegister) -> Segment {
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes: s.attributes }
}
