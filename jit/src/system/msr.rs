//! Model-specific registers (SDM 4). What is not here raises #GP.

use crate::cpu::Cpu;
use crate::cpuid::Feature;
use crate::fault::Fault;
use crate::state::{cr0, efer, reg};

/// MSR numbers.
pub mod msr_no {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const UCODE_REV: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const MC0_CTL: u32 = 0x400;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}
use msr_no::*;

/// Machine-check banks.
const BANKS: u32 = 10;
/// IA32_MCG_CAP: number of banks, and IA32_MCG_CTL exists.
const MCG_CAPABILITIES: u64 = BANKS as u64 | 1 << 8;
/// IA32_ARCH_CAPABILITIES: an emulator does not speculate across privileges. RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO,
/// MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCHITECTURE: u64 = 0b1_0111_1011 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62;
/// MSR_PLATFORM_INFO: ratio 10 of the 100 MHz bus clock gives the TSC's 1 GHz.
const PLATFORM: u64 = 10 << 8;
/// Microcode revision, in the upper half.
const MICROCODE: u64 = 1 << 32;
/// Bits of IA32_MISC_ENABLE that software may change: fast strings, limit CPUID, XD disable, and others that do nothing.
const MISC_WRITABLE: u64 = 1 | 1 << 3 | 1 << 7 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;

/// Sign-extended from 48 bits: what address MSRs demand in any mode.
fn canonical48(v: u64) -> bool {
    ((v << 16) as i64 >> 16) as u64 == v
}

impl Cpu {
    /// RDMSR. CPL 0 was checked.
    pub fn read_msr(&mut self, n: u32) -> Result<u64, Fault> {
        let m = &self.state.msr;
        let v = match n {
            TSC => Some(self.tsc()),
            APIC_BASE => Some(self.board.apic_base(self.index)),
            PLATFORM_ID | EBL_CR_POWERON | DEBUGCTL => Some(0),
            FEATURE_CONTROL => Some(1),
            TSC_ADJUST => self.feature(Feature::TSC_ADJUST).map(|()| m.tsc_adjust),
            SPEC_CTRL => self.feature(Feature::SPEC_CTRL).map(|()| m.spec_ctrl),
            UCODE_REV => Some(MICROCODE),
            PLATFORM_INFO => Some(PLATFORM),
            ARCH_CAPABILITIES => self.feature(Feature::ARCH_CAPABILITIES).map(|()| ARCHITECTURE),
            SYSENTER_CS => Some(m.sysenter_cs),
            SYSENTER_ESP => Some(m.sysenter_esp),
            SYSENTER_EIP => Some(m.sysenter_eip),
            MCG_CAP => Some(MCG_CAPABILITIES),
            MCG_STATUS => Some(m.mcg[0]),
            MCG_CTL => Some(m.mcg[1]),
            MISC_ENABLE => Some(m.misc_enable),
            PAT => Some(m.pat),
            TSC_DEADLINE => self.read_deadline(),
            X2APIC_FIRST..=X2APIC_LAST => self.board.apic_msr_read(self.index, n),
            XSS => self.feature(Feature::XSAVES).map(|()| m.xss),
            EFER => Some(self.state.efer),
            STAR => Some(m.star),
            LSTAR => Some(m.lstar),
            CSTAR => Some(m.cstar),
            FMASK => Some(m.sfmask),
            FS_BASE => Some(self.state.segs[reg::FS].base),
            GS_BASE => Some(self.state.segs[reg::GS].base),
            KERNEL_GS_BASE => Some(m.kernel_gs_base),
            TSC_AUX => self.feature(Feature::RDTSCP).map(|()| m.tsc_aux),
            _ => self.read_mtrr(n).or_else(|| self.read_bank(n)),
        };
        v.ok_or_else(|| {
            tracing::debug!(target: "unimp", "RDMSR {n:#x} at {:#x} raises #GP", self.state.rip);
            Fault::GP0
        })
    }

    fn feature(&self, f: Feature) -> Option<()> {
        self.model.has(f).then_some(())
    }

    /// The board counts without the guest's own offset.
    fn read_deadline(&self) -> Option<u64> {
        let v = self.board.apic_msr_read(self.index, TSC_DEADLINE)?;
        Some(if v == 0 { 0 } else { v.wrapping_add(self.state.msr.tsc_offset) })
    }

    fn write_deadline(&mut self, value: u64) -> bool {
        // 0 disarms; a deadline before the board's count began fires at once.
        let offset = self.state.msr.tsc_offset as i64;
        let board = if value == 0 { 0 } else { (value as i128 - offset as i128).clamp(1, u64::MAX as i128) as u64 };
        self.board.apic_msr_write(self.index, TSC_DEADLINE, board)
    }

    fn bank(n: u32) -> Option<(usize, usize)> {
        (MC0_CTL..MC0_CTL + 4 * BANKS).contains(&n).then(|| ((n - MC0_CTL) as usize / 4, (n & 3) as usize))
    }

    fn read_bank(&self, n: u32) -> Option<u64> {
        let (bank, which) = Self::bank(n)?;
        Some(self.state.msr.mc_banks[bank][which])
    }

    /// Machine-check banks: status, address and misc accept only 0 (SDM 3B 15.3.2).
    fn write_bank(&mut self, n: u32, value: u64) -> bool {
        let Some((bank, which)) = Self::bank(n) else { return false };
        let ok = which == 0 || value == 0;
        if ok {
            self.state.msr.mc_banks[bank][which] = value;
        }
        ok
    }

    /// WRMSR. CPL 0 was checked.
    pub fn write_msr(&mut self, n: u32, value: u64) -> Result<(), Fault> {
        if self.write_msr_value(n, value) {
            return Ok(());
        }
        tracing::debug!(target: "unimp", "WRMSR {n:#x} = {value:#x} at {:#x} raises #GP", self.state.rip);
        Err(Fault::GP0)
    }

    fn write_msr_value(&mut self, n: u32, value: u64) -> bool {
        match n {
            APIC_BASE => self.board.set_apic_base(self.index, value),
            TSC_DEADLINE => self.write_deadline(value),
            X2APIC_FIRST..=X2APIC_LAST => self.board.apic_msr_write(self.index, n, value),
            EFER => self.write_efer(value),
            FS_BASE | GS_BASE => {
                let seg = if n == FS_BASE { reg::FS } else { reg::GS };
                self.set_base(seg, value)
            }
            TSC => {
                let delta = value.wrapping_sub(self.tsc());
                self.shift_tsc(delta);
                true
            }
            TSC_ADJUST if self.model.has(Feature::TSC_ADJUST) => {
                let delta = value.wrapping_sub(self.state.msr.tsc_adjust);
                self.shift_tsc(delta);
                true
            }
            _ => self.write_plain(n, value) || self.write_mtrr(n, value) || self.write_bank(n, value),
        }
    }

    /// Registers that only keep a checked value.
    fn write_plain(&mut self, n: u32, value: u64) -> bool {
        let (spec, tscp) = (self.model.has(Feature::SPEC_CTRL), self.model.has(Feature::RDTSCP));
        let xsaves = self.model.has(Feature::XSAVES);
        let spec_bits = 7 | if self.model.has(Feature::BHI_CTRL) { 1 << 10 } else { 0 };
        let m = &mut self.state.msr;
        let (slot, ok) = match n {
            // Nothing to load, no branch predictors to flush, nothing to trace.
            UCODE_REV | PLATFORM_ID | EBL_CR_POWERON => return true,
            PRED_CMD => return spec && value & !1 == 0,
            DEBUGCTL => return value == 0,
            SPEC_CTRL => (&mut m.spec_ctrl, spec && value & !spec_bits == 0),
            SYSENTER_CS => (&mut m.sysenter_cs, true),
            SYSENTER_ESP => (&mut m.sysenter_esp, canonical48(value)),
            SYSENTER_EIP => (&mut m.sysenter_eip, canonical48(value)),
            MCG_STATUS => (&mut m.mcg[0], value & !7 == 0),
            MCG_CTL => (&mut m.mcg[1], value == 0 || value == u64::MAX),
            MISC_ENABLE => {
                m.misc_enable = m.misc_enable & !MISC_WRITABLE | value & MISC_WRITABLE;
                return true;
            }
            PAT => (&mut m.pat, value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7))),
            // There are no supervisor state components.
            XSS => (&mut m.xss, xsaves && value == 0),
            STAR => (&mut m.star, true),
            LSTAR => (&mut m.lstar, canonical48(value)),
            CSTAR => (&mut m.cstar, canonical48(value)),
            FMASK => (&mut m.sfmask, value >> 32 == 0),
            KERNEL_GS_BASE => (&mut m.kernel_gs_base, canonical48(value)),
            TSC_AUX => (&mut m.tsc_aux, tscp && value >> 32 == 0),
            _ => return false,
        };
        if ok {
            *slot = value;
        }
        ok
    }

    /// Sets the base of FS or GS; `false` if not canonical.
    pub fn set_base(&mut self, seg: usize, value: u64) -> bool {
        let ok = canonical48(value);
        if ok {
            self.state.segs[seg].base = value;
        }
        ok
    }

    /// SDM 3B 17.17.3: writes of the TSC change IA32_TSC_ADJUST by the same amount, and the other way.
    fn shift_tsc(&mut self, delta: u64) {
        let m = &mut self.state.msr;
        m.tsc_adjust = m.tsc_adjust.wrapping_add(delta);
        m.tsc_offset = m.tsc_offset.wrapping_add(delta);
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let bit = |f: Feature, b: u64| if self.model.has(f) { b } else { 0 };
        let defined = bit(Feature::SYSCALL, efer::SCE) | bit(Feature::LM, efer::LME) | bit(Feature::NX, efer::NXE);
        let old = self.state.efer;
        // LMA is read-only: what is written to it counts for nothing.
        if value & !(defined | efer::LMA) != 0 {
            return false;
        }
        let new = value & defined | old & efer::LMA;
        if (old ^ new) & efer::LME != 0 && self.state.cr0 & cr0::PG != 0 {
            return false;
        }
        self.state.efer = new;
        if (old ^ new) & efer::NXE != 0 {
            self.flush_tlb_all();
        }
        self.update_mode();
        true
    }
}
