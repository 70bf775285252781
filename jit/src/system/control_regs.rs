//! Control registers: what may be written when, and what a write entails (SDM 3A 2.5, 4.1, 9.8.5).

use crate::cpu::Cpu;
use crate::cpuid::Feature;
use crate::fault::Fault;
use crate::mmu::walk::PHYS_BITS;
use crate::state::{attr, cr0, cr4, efer, reg};

/// CR0 bits that exist; the others read as written 0 below bit 32 and fault above.
const CR0_DEFINED: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;

impl Cpu {
    /// MOV to CR0. The caller checked CPL 0.
    pub fn write_cr0(&mut self, value: u64) -> Result<(), Fault> {
        if value >> 32 != 0 {
            return Err(Fault::GP0);
        }
        let new = value & CR0_DEFINED | cr0::ET;
        let old = self.state.cr0;
        let (pg, pe) = (new & cr0::PG != 0, new & cr0::PE != 0);
        if (pg && !pe) || (new & cr0::NW != 0 && new & cr0::CD == 0) {
            return Err(Fault::GP0);
        }
        let enabling = pg && old & cr0::PG == 0;
        let disabling = !pg && old & cr0::PG != 0;
        let lme = self.state.efer & efer::LME != 0;
        if enabling && lme {
            let cs_long = self.state.segs[reg::CS].attributes & attr::L != 0;
            if self.state.cr4 & cr4::PAE == 0 || cs_long || self.state.tr.attributes & 8 == 0 {
                return Err(Fault::GP0);
            }
        }
        if disabling && (self.state.long64() || self.state.cr4 & cr4::PCIDE != 0) {
            return Err(Fault::GP0);
        }
        let pae = self.state.cr4 & cr4::PAE != 0;
        // SDM 3A 4.4.1: PDPTEs are loaded when paging is enabled or CD or NW change under PAE paging.
        let caches = (old ^ new) & (cr0::CD | cr0::NW) != 0;
        if pg && pae && !lme && (enabling || caches) && !self.load_pdptes() {
            return Err(Fault::GP0);
        }
        tracing::trace!(target: "mmu", "CR0 update: CR0={new:#010x}");
        self.state.cr0 = new;
        if enabling && lme {
            self.state.efer |= efer::LMA;
        } else if disabling {
            self.state.efer &= !efer::LMA;
        }
        if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        Ok(())
    }

    /// CLTS.
    pub fn clear_ts(&mut self) {
        self.state.cr0 &= !cr0::TS;
        self.update_mode();
    }

    /// LMSW: the low four bits of CR0; PE can be set only.
    pub fn load_machine_status(&mut self, value: u64) -> Result<(), Fault> {
        let keep = self.state.cr0 & !0xe;
        self.write_cr0(keep | value & 0xf)
    }

    /// MOV to CR3.
    pub fn write_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let pcide = self.state.cr4 & cr4::PCIDE != 0;
        let long = self.long_active();
        let mut new = value;
        // SDM 3A 4.10.4.1: with bit 63 the translations of the new PCID stay.
        let keep = long && pcide && value >> 63 != 0;
        if long {
            if pcide {
                new &= !(1 << 63);
            }
            if new >> PHYS_BITS != 0 {
                return Err(Fault::GP0);
            }
        } else {
            new &= 0xffff_ffff;
        }
        let paging = self.state.cr0 & cr0::PG != 0;
        let old = std::mem::replace(&mut self.state.cr3, new);
        if paging && self.state.cr4 & cr4::PAE != 0 && !long && !self.load_pdptes() {
            self.state.cr3 = old;
            return Err(Fault::GP0);
        }
        tracing::trace!(target: "mmu", "CR3 update: CR3={new:016x}");
        if paging && long && pcide {
            self.switch_address_space(old as u16 & 0xfff, new as u16 & 0xfff, keep);
        } else if paging {
            self.flush_tlb_non_global();
        }
        Ok(())
    }

    /// CR4 bits this processor has.
    fn cr4_defined(&self) -> u64 {
        let m = &self.model;
        let bit = |f: Feature, b: u64| if m.has(f) { b } else { 0 };
        bit(Feature::VME, cr4::VME | cr4::PVI)
            | bit(Feature::TSC, cr4::TSD)
            | bit(Feature::DE, cr4::DE)
            | bit(Feature::PSE, cr4::PSE)
            | bit(Feature::PAE, cr4::PAE)
            | bit(Feature::MCE, cr4::MCE)
            | bit(Feature::PGE, cr4::PGE)
            | cr4::PCE
            | bit(Feature::FXSR, cr4::OSFXSR)
            | bit(Feature::SSE, cr4::OSXMMEXCPT)
            | bit(Feature::UMIP, cr4::UMIP)
            | bit(Feature::FSGSBASE, cr4::FSGSBASE)
            | bit(Feature::PCID, cr4::PCIDE)
            | bit(Feature::XSAVE, cr4::OSXSAVE)
            | bit(Feature::SMEP, cr4::SMEP)
            | bit(Feature::SMAP, cr4::SMAP)
    }

    /// MOV to CR4.
    pub fn write_cr4(&mut self, new: u64) -> Result<(), Fault> {
        let old = self.state.cr4;
        let changed = old ^ new;
        let long = self.long_active();
        if new & !self.cr4_defined() != 0 || (long && new & cr4::PAE == 0) {
            return Err(Fault::GP0);
        }
        if changed & new & cr4::PCIDE != 0 && (!long || self.state.cr3 & 0xfff != 0) {
            return Err(Fault::GP0);
        }
        let paging = self.state.cr0 & cr0::PG != 0;
        let reload = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP;
        if paging && new & cr4::PAE != 0 && !long && changed & reload != 0 {
            self.state.cr4 = new;
            if !self.load_pdptes() {
                self.state.cr4 = old;
                return Err(Fault::GP0);
            }
        }
        tracing::trace!(target: "mmu", "CR4 update: CR4={new:08x}");
        self.state.cr4 = new;
        // SDM 3A 4.10.4.1.
        let flush = cr4::PGE | cr4::PAE | cr4::PSE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE | cr4::LA57;
        if changed & flush != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        Ok(())
    }

    /// MOV to CR`n`; CPL 0 was checked.
    pub fn write_control(&mut self, n: u64, value: u64) -> Result<(), Fault> {
        match n {
            0 => self.write_cr0(value),
            2 => {
                self.state.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value >> 4 == 0 => {
                self.board.set_cr8(self.index, value as u8);
                Ok(())
            }
            8 => Err(Fault::GP0),
            _ => Err(Fault::UD),
        }
    }

    /// MOV from CR`n`; CPL 0 was checked.
    pub fn read_control(&mut self, n: u64) -> Result<u64, Fault> {
        Ok(match n {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            4 => self.state.cr4,
            8 => self.board.cr8(self.index) as u64,
            _ => return Err(Fault::UD),
        })
    }

    /// The current PCID; 0 without PCIDs (SDM 3A 4.10.1).
    fn pcid(&self) -> u64 {
        if self.state.cr4 & cr4::PCIDE != 0 { self.state.cr3 & 0xfff } else { 0 }
    }

    /// INVPCID with its 16-byte descriptor (SDM 2A). The TLB that generated code reads holds the current PCID's translations
    /// only; those of others are in the second one, and go with their generation, all at once.
    pub fn invalidate_pcid(&mut self, kind: u64, descriptor: u128) -> Result<(), Fault> {
        let pcid = descriptor as u64;
        let address = (descriptor >> 64) as u64;
        let pcide = self.state.cr4 & cr4::PCIDE != 0;
        if kind > 3 || pcid >> 12 != 0 || (kind < 2 && pcid != 0 && !pcide) {
            return Err(Fault::GP0);
        }
        match kind {
            0 if !self.canonical(address) => return Err(Fault::GP0),
            0 | 1 if pcid != self.pcid() => self.contexts.forget_pcid(pcid as u16),
            0 => self.flush_tlb_page(address),
            1 => self.flush_tlb_non_global(),
            2 => self.flush_tlb_all(),
            _ => {
                self.contexts.forget_others();
                self.flush_tlb_non_global();
            }
        }
        Ok(())
    }
}
