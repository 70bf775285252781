//! Memory type range registers (SDM 3A 11.11). Guest memory has one type: the registers only keep their values.

use crate::cpu::Cpu;
use crate::mmu::walk::PHYS_BITS;

/// Variable ranges.
const VARIABLE: u32 = 8;
/// IA32_MTRRCAP: variable ranges, fixed ranges, write-combining.
pub const CAPABILITIES: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;

/// Types that exist: UC, WC, WT, WP, WB.
fn valid_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}

/// Index of a fixed-range MSR.
fn fixed_index(msr: u32) -> Option<usize> {
    match msr {
        0x250 => Some(0),
        0x258 | 0x259 => Some((msr - 0x258) as usize + 1),
        0x268..=0x26f => Some((msr - 0x268) as usize + 3),
        _ => None,
    }
}

/// Fixed ranges of the first MiB as firmware leaves them: RAM below A_0000 and the BIOS above C_0000 are write-back, the
/// video memory between is uncacheable. In MSR order: 64 KiB, two of 16 KiB, eight of 4 KiB.
const FIRMWARE_FIXED: [u64; 11] = {
    const WB: u64 = 0x0606_0606_0606_0606;
    [WB, WB, 0, WB, WB, WB, WB, WB, WB, WB, WB]
};

impl Cpu {
    /// The MTRRs as firmware leaves them: enabled, everything write-back but the video memory.
    pub fn set_up_mtrrs(&mut self) {
        self.state.msr.mtrr_def_type = 0xc06;
        self.state.msr.mtrr_fixed = FIRMWARE_FIXED;
    }

    /// Reads an MTRR; `None` if the number is none.
    pub fn read_mtrr(&self, msr: u32) -> Option<u64> {
        let m = &self.state.msr;
        match msr {
            0xfe => Some(CAPABILITIES),
            0x2ff => Some(m.mtrr_def_type),
            0x200..=0x20f => m.mtrr_variable.get((msr - 0x200) as usize).copied(),
            _ => m.mtrr_fixed.get(fixed_index(msr)?).copied(),
        }
    }

    /// Writes an MTRR; `false` if there is none or the value is not allowed.
    pub fn write_mtrr(&mut self, msr: u32, value: u64) -> bool {
        let physical = (1u64 << PHYS_BITS) - 1;
        let m = &mut self.state.msr;
        match msr {
            0x2ff => {
                let ok = value & !0xcff == 0 && valid_type(value as u8);
                if ok {
                    m.mtrr_def_type = value;
                }
                ok
            }
            0x200..=0x20f => {
                let mask_register = msr & 1 != 0;
                let reserved = if mask_register { 0x7ff } else { 0xf00 };
                let ok = value & (reserved | !physical) == 0 && (mask_register || valid_type(value as u8));
                if ok && let Some(slot) = m.mtrr_variable.get_mut((msr - 0x200) as usize) {
                    *slot = value;
                }
                ok
            }
            _ => {
                let Some(slot) = fixed_index(msr).and_then(|n| m.mtrr_fixed.get_mut(n)) else { return false };
                let ok = value.to_le_bytes().iter().all(|t| valid_type(*t));
                if ok {
                    *slot = value;
                }
                ok
            }
        }
    }
}
