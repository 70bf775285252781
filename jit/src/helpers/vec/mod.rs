//! Helpers of the vector family, and the functions behind the IR's vector operations.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vector operations run on the host's SSE instructions: hosts other than x86-64 need plain Rust ones");

mod crypto;
mod host;
mod lanes;
mod masked;
pub mod mxcsr;
mod strings;
mod xsave;

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::helpers::effect::{FAULTS, X87};
use crate::ir::VVal;
use crate::state::{CpuState, VECS};
use masked::{gather, masked_load, masked_store};
use mxcsr::{ldmxcsr, stmxcsr, vec_checked};
use std::mem::offset_of;
use xsave::{fxrstor, fxsave, xrstor, xsave};

#[cfg(test)]
pub use host::Pinned;
pub use host::{fma_fn, host_has_avx2, host_has_required, vec_fn, vec_from_int_fn, vec_to_int_fn};
pub use masked::{Gather, Masked};
pub use mxcsr::{Checked, Halves};
pub use xsave::Form;

/// Vector slots through which helpers get operands and give results: those behind the IR's values. Operands a, b, and
/// the high halves of both, then both halves of c. (Generated code may keep temporaries elsewhere than in the state.)
pub const STAGE0: usize = VVal::END as usize;
/// Operand b.
pub const STAGE1: usize = STAGE0 + 1;
/// High half of a.
pub const STAGE0_HIGH: usize = STAGE0 + 2;
/// High half of b.
pub const STAGE1_HIGH: usize = STAGE0 + 3;
/// Operand c.
pub const STAGE2: usize = STAGE0 + 4;
/// High half of c.
pub const STAGE2_HIGH: usize = STAGE0 + 5;
const _: () = assert!(STAGE2_HIGH < VECS);

/// Offset of a staging slot in the state.
pub const fn stage_offset(slot: usize) -> usize {
    offset_of!(CpuState, vecs) + slot * size_of::<u128>()
}

crate::helper_family! { 3;
    /// Operation of [`Checked`] in a, integer operand in b; vectors in the stage.
    CHECKED = vec_checked, FAULTS;
    /// Result: MXCSR.
    STMXCSR = stmxcsr, 0;
    /// MXCSR = a. The mode word may change.
    LDMXCSR = ldmxcsr, FAULTS;
    /// Stage 0 = two SHA-256 rounds on stage 0 (CDGH) and stage 1 (ABEF) with the message words b (low), c (high).
    SHA256RNDS2 = sha256rnds2, 0;
    /// Index in bits 31:0, arithmetic flags above; immediate in a (bit 8: 64-bit lengths), lengths b and c. Stage 0
    /// becomes the mask.
    PCMPESTR = pcmpestr, 0;
    /// Stores the bytes of stage 0 that stage 1 selects at linear address a; b: bytes 8 or 16.
    MASKMOV = maskmov, FAULTS;
    /// Stage 0 = what stage 1 selects of memory at offset b; [`Masked`] in a.
    MASKED_LOAD = masked_load, FAULTS;
    /// Memory at offset b = what stage 1 selects of stage 0; [`Masked`] in a.
    MASKED_STORE = masked_store, FAULTS;
    /// [`Gather`] in a; b: base and displacement. Registers of the state change, before a fault too.
    GATHER = gather, FAULTS;
    /// FXSAVE to a, [`Form`] in b.
    FXSAVE = fxsave, FAULTS | X87;
    /// FXRSTOR from a, [`Form`] in b. The mode word may change.
    FXRSTOR = fxrstor, FAULTS | X87;
    /// XSAVE family to a, [`Form`] in b, requested features in c.
    XSAVE = xsave, FAULTS | X87;
    /// XRSTOR family from a, [`Form`] in b, requested features in c. The mode word may change.
    XRSTOR = xrstor, FAULTS | X87;
}

fn sha256rnds2(cpu: &mut Cpu, _: u64, low: u64, high: u64) -> Result<u64, Fault> {
    let (a, b) = (cpu.state.vecs[STAGE0], cpu.state.vecs[STAGE1]);
    cpu.state.vecs[STAGE0] = host::sha256rnds2(a, b, low as u128 | (high as u128) << 64);
    Ok(0)
}

fn pcmpestr(cpu: &mut Cpu, imm: u64, length_a: u64, length_b: u64) -> Result<u64, Fault> {
    let (a, b) = (cpu.state.vecs[STAGE0], cpu.state.vecs[STAGE1]);
    let length = |v: u64| if imm & 0x100 != 0 { v as i64 } else { v as i32 as i64 };
    let imm8 = imm as u8;
    let r = strings::Outcome::explicit(a, b, (length(length_a), length(length_b)), imm8);
    cpu.state.vecs[STAGE0] = r.mask(imm8);
    Ok(r.index(imm8))
}

/// Bytes whose mask bit is clear are not written, but faults on them are raised, of the high half first, even where no
/// bit is set (SDM 2B MASKMOVDQU leaves that open; measured). `second`: where the high half goes, if there is one.
fn maskmov(cpu: &mut Cpu, address: u64, bytes: u64, second: u64) -> Result<u64, Fault> {
    let data = cpu.state.vecs[STAGE0].to_le_bytes();
    let mask = cpu.state.vecs[STAGE1].to_le_bytes();
    let halves = [(address, 0), (second, 8)];
    let halves = if bytes == 16 { &halves[..] } else { &halves[..1] };
    for (address, _) in halves.iter().rev() {
        cpu.probe_write(*address, 8)?;
    }
    for (address, first) in halves {
        let mut at = 0;
        while at < 8 {
            let run = mask[first + at..first + 8].iter().take_while(|m| *m & 0x80 != 0).count();
            if run > 0 {
                cpu.store_bytes(address.wrapping_add(at as u64), &data[first + at..first + at + run])?;
            }
            at += run + 1;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
