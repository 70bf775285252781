//! MXCSR. While guest code runs, the host's MXCSR holds the guest's rounding, FTZ and DAZ bits and its sticky flags, with
//! all exceptions masked: flags accrue in hardware. Unmasked exceptions go through [`vec_checked`].

use super::{STAGE0, STAGE0_HIGH, STAGE1, STAGE1_HIGH, STAGE2, STAGE2_HIGH};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::helpers::vec::host::{fma_fn, vec_fn, vec_from_int_fn, vec_to_int_fn};
use crate::ir::Ty;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use crate::state::cr4;
use std::arch::asm;

/// Bits of MXCSR (SDM 1, 10.2.3).
pub mod bit {
    /// The six sticky flags.
    pub const FLAGS: u32 = 0x3f;
    /// Invalid operation, denormal operand, division by zero: found before the operation is carried out.
    pub const BEFORE: u32 = 7;
    /// Underflow.
    pub const UE: u32 = 1 << 4;
    /// The six masks.
    pub const MASKS: u32 = 0x1f80;
    /// Flush to zero.
    pub const FTZ: u32 = 1 << 15;
    /// What MXCSR may hold: MXCSR_MASK of the FXSAVE image.
    pub const DEFINED: u32 = 0xffff;
    /// The value after reset, and the host's own.
    pub const DEFAULT: u32 = 0x1f80;
}

/// The host's MXCSR.
fn host() -> u32 {
    let mut v = 0u32;
    // SAFETY: writes four bytes of our own.
    unsafe { asm!("stmxcsr [{0}]", in(reg) &raw mut v, options(nostack, preserves_flags)) };
    v
}

fn set_host(v: u32) {
    let v = v & bit::DEFINED | bit::MASKS;
    // SAFETY: reads four bytes of our own; no reserved bit is set and all exceptions are masked.
    unsafe { asm!("ldmxcsr [{0}]", in(reg) &raw const v, options(nostack, readonly, preserves_flags)) };
}

/// Sets sticky flags in the host's MXCSR.
fn raise(flags: u32) {
    set_host(host() | flags);
}

/// One of eight half-precision numbers is denormal.
fn has_denormal_half(v: u128) -> bool {
    (0..8).map(|n| (v >> (16 * n)) as u16).any(|half| half & 0x7c00 == 0 && half & 0x3ff != 0)
}

impl Cpu {
    /// Takes the sticky flags of the host's MXCSR over into the guest's.
    pub fn sync_mxcsr(&mut self) {
        self.state.mxcsr |= host() & bit::FLAGS;
    }

    /// Makes the host's MXCSR work as the guest's.
    pub fn load_mxcsr(&self) {
        set_host(self.state.mxcsr);
    }

    /// Takes the flags over and gives the host its own MXCSR back: on leaving the run loop.
    pub fn leave_mxcsr(&mut self) {
        self.sync_mxcsr();
        set_host(bit::DEFAULT);
    }

    /// Replaces the guest's MXCSR. The value has no reserved bit.
    pub fn set_mxcsr(&mut self, v: u32) {
        let masks = (self.state.mxcsr ^ v) & bit::MASKS != 0;
        self.state.mxcsr = v & bit::DEFINED;
        set_host(v);
        if masks {
            self.update_mode();
        }
    }

    /// Runs `f` under the guest's MXCSR, with flags apart; an unmasked exception is a fault, and `f`'s result is dropped
    /// (SDM 1, 11.5.3). The host's MXCSR then holds the guest's again.
    fn run_checked<R>(&mut self, f: impl Fn() -> R) -> Result<R, Fault> {
        self.sync_mxcsr();
        let control = self.state.mxcsr & !bit::FLAGS;
        let unmasked = !(self.state.mxcsr >> 7) & bit::FLAGS;
        // Flushing to zero is the masked response to underflow only (SDM 1, 10.2.3.3).
        set_host(if unmasked & bit::UE != 0 { control & !bit::FTZ } else { control });
        let r = f();
        let mut flags = host() & bit::FLAGS;
        if unmasked & bit::UE != 0 {
            // Masked, underflow is flagged only where the tiny result is inexact as well; unmasked, always. Flushing
            // shows tiny results whether exact or not.
            set_host(control | bit::FTZ);
            f();
            flags |= host() & bit::UE;
        }
        let raised = flags & unmasked;
        self.state.mxcsr |= if raised & bit::BEFORE != 0 { flags & bit::BEFORE } else { flags };
        self.load_mxcsr();
        match raised {
            0 => Ok(r),
            _ if self.state.cr4 & cr4::OSXMMEXCPT != 0 => Err(Fault::new(vector::XM)),
            _ => Err(Fault::UD),
        }
    }
}

/// What [`vec_checked`] is to do, packed in its first operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Stage 0 = f(stage 0, stage 1); and the high halves, if there are any.
    Vec(VecOp, u8, Halves),
    /// Stage 0 = f(stage 0, stage 1, stage 2); and the high halves, if there are any.
    Fma(FmaOp, Halves),
    /// Result = f(stage 0, stage 1), cut to the type.
    ToInt(VecToInt, Ty),
    /// Stage 0 = f(stage 0, second operand).
    FromInt(VecFromInt),
}

/// How wide an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    /// 128 bits.
    One,
    /// 256 bits: an exception in one half belongs to the whole.
    Both,
}

impl Checked {
    /// As a constant for the IR.
    pub fn pack(self) -> i64 {
        match self {
            Checked::Vec(op, imm8, halves) => op as i64 | (imm8 as i64) << 16 | (halves as i64) << 28,
            Checked::ToInt(op, ty) => op as i64 | (ty as i64) << 16 | 1 << 24,
            Checked::FromInt(op) => op as i64 | 2 << 24,
            Checked::Fma(op, halves) => op as i64 | 3 << 24 | (halves as i64) << 28,
        }
    }

    fn unpack(word: u64) -> Option<Self> {
        let (op, small) = (word as u16 as i64, (word >> 16) as u8);
        let halves = if word >> 28 & 1 != 0 { Halves::Both } else { Halves::One };
        match word >> 24 & 15 {
            0 => Some(Checked::Vec(VecOp::from_imm(op)?, small, halves)),
            1 => {
                let ty = if small == Ty::I32 as u8 { Ty::I32 } else { Ty::I64 };
                Some(Checked::ToInt(VecToInt::from_imm(op)?, ty))
            }
            2 => Some(Checked::FromInt(VecFromInt::from_imm(op)?)),
            _ => Some(Checked::Fma(FmaOp::from_imm(op)?, halves)),
        }
    }
}

/// Dot products raise what their multiplications raise before they add (SDM 2A DPPS): the multiplication, and the
/// elements that take part.
fn first_stage(op: VecOp, imm8: u8) -> Option<(VecOp, u128)> {
    let (multiply, bits) = match op {
        VecOp::Dpps => (VecOp::Mulps, 32),
        VecOp::Dppd => (VecOp::Mulpd, 64),
        _ => return None,
    };
    let one = (1u128 << bits) - 1;
    let keep = (0..128 / bits).filter(|n| imm8 >> (4 + n) & 1 != 0).fold(0, |m, n| m | one << (bits * n));
    Some((multiply, keep))
}

/// A floating-point vector operation with some exception unmasked. Operands are staged in the last vector slots.
pub fn vec_checked(cpu: &mut Cpu, what: u64, b: u64, _: u64) -> Result<u64, Fault> {
    let stage = |slot: usize| cpu.state.vecs[slot];
    let (x, y, z) = (stage(STAGE0), stage(STAGE1), stage(STAGE2));
    let (xh, yh, zh) = (stage(STAGE0_HIGH), stage(STAGE1_HIGH), stage(STAGE2_HIGH));
    match Checked::unpack(what).ok_or(Fault::UD)? {
        Checked::Vec(op @ VecOp::Vcvtps2ph, imm8, halves) => {
            // It never flushes to zero (SDM 1, 14.4.1), by which other operations show tiny results that are exact.
            let underflows = cpu.state.mxcsr & bit::UE << 7 == 0;
            let f = |x, y| {
                let r = vec_fn(op)(x, y, imm8);
                if underflows && has_denormal_half(r) {
                    raise(bit::UE);
                }
                r
            };
            cpu.run_staged(halves, || f(x, y), || f(xh, yh))
        }
        Checked::Vec(op, imm8, halves) => {
            let f = vec_fn(op);
            if let Some((multiply, keep)) = first_stage(op, imm8) {
                let f = vec_fn(multiply);
                cpu.run_halves(halves, || f(x & keep, y & keep, 0), || f(xh & keep, yh & keep, 0))?;
            }
            cpu.run_staged(halves, || f(x, y, imm8), || f(xh, yh, imm8))
        }
        Checked::Fma(op, halves) => {
            let f = fma_fn(op);
            cpu.run_staged(halves, || f(x, y, z), || f(xh, yh, zh))
        }
        Checked::ToInt(op, ty) => {
            let f = vec_to_int_fn(op);
            Ok(cpu.run_checked(|| f(x, y, 0))? & ty.mask())
        }
        Checked::FromInt(op) => {
            let f = vec_from_int_fn(op);
            cpu.state.vecs[STAGE0] = cpu.run_checked(|| f(x, b, 0))?;
            Ok(0)
        }
    }
}

impl Cpu {
    fn run_halves(
        &mut self,
        halves: Halves,
        low: impl Fn() -> u128,
        high: impl Fn() -> u128,
    ) -> Result<(u128, u128), Fault> {
        self.run_checked(|| (low(), if halves == Halves::Both { high() } else { 0 }))
    }

    /// Results to where the first operand was.
    fn run_staged(&mut self, halves: Halves, low: impl Fn() -> u128, high: impl Fn() -> u128) -> Result<u64, Fault> {
        let (low, high) = self.run_halves(halves, low, high)?;
        self.state.vecs[STAGE0] = low;
        self.state.vecs[STAGE0_HIGH] = high;
        Ok(0)
    }
}

/// STMXCSR: the value.
pub fn stmxcsr(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    cpu.sync_mxcsr();
    Ok(cpu.state.mxcsr as u64)
}

/// LDMXCSR of a value.
pub fn ldmxcsr(cpu: &mut Cpu, value: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if value as u32 & !bit::DEFINED != 0 {
        return Err(Fault::GP0);
    }
    cpu.set_mxcsr(value as u32);
    Ok(0)
}
