//! A stack that is not, or not yet, the current one: frames of interrupts, far calls and returns.

use super::segment::within_limit;
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::Ty;
use crate::mmu::tlb::{SUPERVISOR, SUPERVISOR_SMAP, USER};
use crate::state::{Segment, attr, cr4, flag, reg};

/// A stack: segment, pointer, and the privilege of accesses to it.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    /// The stack segment.
    pub segment: Segment,
    /// Stack pointer.
    pub sp: u64,
    /// Bits of the stack pointer that move.
    pub mask: u64,
    /// MMU index of accesses.
    pub index: usize,
    /// 64-bit mode: no base, no limit.
    pub flat: bool,
    /// Error code of #SS: 0, or the selector of a stack being switched to.
    pub code: u32,
}

/// Bits of the stack pointer that a stack segment uses.
pub fn stack_mask(s: &Segment) -> u64 {
    if s.attributes & attr::DB != 0 { 0xffff_ffff } else { 0xffff }
}

impl Cpu {
    /// MMU index of explicit accesses at privilege level `cpl`.
    pub fn index_for(&self, cpl: u8) -> usize {
        if cpl == 3 {
            USER
        } else if self.state.cr4 & cr4::SMAP != 0 && self.state.rflags & flag::AC == 0 {
            SUPERVISOR_SMAP
        } else {
            SUPERVISOR
        }
    }

    /// The stack now in use.
    pub fn current_stack(&self) -> Stack {
        let segment = self.state.segs[reg::SS];
        let flat = self.state.long64();
        Stack {
            segment,
            sp: self.gpr(reg::RSP),
            mask: if flat { u64::MAX } else { stack_mask(&segment) },
            index: self.state.mmu_index(),
            flat,
            code: 0,
        }
    }

    /// A stack to switch to, at privilege level `cpl`.
    pub fn new_stack(&self, segment: Segment, sp: u64, cpl: u8) -> Stack {
        Stack {
            segment,
            sp,
            mask: stack_mask(&segment),
            index: self.index_for(cpl),
            flat: false,
            code: (segment.selector & !3) as u32,
        }
    }

    /// A 64-bit stack at privilege level `cpl`.
    pub fn long_stack(&self, sp: u64, cpl: u8) -> Stack {
        let index = self.index_for(cpl);
        Stack { segment: Segment::default(), sp, mask: u64::MAX, index, flat: true, code: 0 }
    }

    /// Linear address of `bytes` bytes at stack offset `offset`.
    fn stack_linear(&self, s: &Stack, offset: u64, bytes: u32) -> Result<u64, Fault> {
        if s.flat {
            // SDM 3A 6.14.2, SDM 1 3.3.7.1: a non-canonical stack address is #SS.
            let last = offset.wrapping_add(bytes as u64 - 1);
            if self.canonical(offset) && self.canonical(last) {
                return Ok(offset);
            }
        } else if within_limit(&s.segment, offset, bytes) {
            return Ok(s.segment.base.wrapping_add(offset) & 0xffff_ffff);
        }
        Err(Fault::with_code(vector::SS, s.code))
    }

    /// Pushes `values` in order, each `ty` wide. All are checked first: at a fault nothing was written.
    pub fn push_frame(&mut self, s: &mut Stack, ty: Ty, values: &[u64]) -> Result<(), Fault> {
        let bytes = ty.bytes() as u64;
        let slot = |n: usize| s.sp.wrapping_sub(bytes * (n as u64 + 1)) & s.mask;
        for n in 0..values.len() {
            let linear = self.stack_linear(s, slot(n), bytes as u32)?;
            self.probe_write_at(s.index, linear, bytes)?;
        }
        for (n, v) in values.iter().enumerate() {
            let linear = self.stack_linear(s, slot(n), bytes as u32)?;
            self.store_at(s.index, ty, linear, *v & ty.mask())?;
        }
        s.sp = (s.sp & !s.mask) | (s.sp.wrapping_sub(bytes * values.len() as u64) & s.mask);
        Ok(())
    }

    /// Pops one value of width `ty`.
    pub fn pop_from(&mut self, s: &mut Stack, ty: Ty) -> Result<u64, Fault> {
        let linear = self.stack_linear(s, s.sp & s.mask, ty.bytes() as u32)?;
        let v = self.load_at(s.index, ty, linear)?;
        self.drop_from(s, ty.bytes() as u64);
        Ok(v)
    }

    /// Moves the stack pointer up by `bytes`.
    pub fn drop_from(&mut self, s: &mut Stack, bytes: u64) {
        s.sp = (s.sp & !s.mask) | (s.sp.wrapping_add(bytes) & s.mask);
    }

    /// Makes `sp` of `s` the current stack pointer: its upper bits stay for 16-bit stacks.
    pub fn set_stack_pointer(&mut self, sp: u64, mask: u64) {
        let old = self.gpr(reg::RSP);
        let v = if mask == 0xffff { old & !0xffff | sp & 0xffff } else { sp & mask };
        self.set_gpr(reg::RSP, v);
    }
}
