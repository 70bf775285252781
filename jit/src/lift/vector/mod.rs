//! Semantics of MMX, SSE to SSE4.2, AES-NI, PCLMULQDQ and SHA, of AVX, AVX2, FMA and F16C, and of the state instructions
//! around them.

mod avx;
mod float;
mod fma;
mod lanes;
mod masked;
mod mmx;
mod moves;
mod operands;
mod packed;
mod permute;
mod save;

use super::operand::{Mem, seg_base_offset, segment_number, vreg};
use super::{Flow, Lifter};
use crate::fault::vector as vec_no;
use crate::helpers::integer::ALIGN_VECTOR;
use crate::helpers::vec::{self, CHECKED, Checked, Halves, STAGE0, STAGE1};
use crate::ir::op::Op;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::ir::{Ty, VVal, Val, mem};
use crate::state::{mode, reg};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    if i.is_string_instruction() {
        return None;
    }
    if let Some(flow) = save::lift(l, i) {
        return Some(flow);
    }
    let is_mm = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm();
    if i.mnemonic() == Mnemonic::Emms || (0..i.op_count()).any(is_mm) {
        return mmx::lift(l, i);
    }
    if matches!(i.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd) {
        // From memory: MMX state has no part in it.
        let refused = l.sse_check();
        return refused.or_else(|| {
            mmx::from_mmx(l, i);
            Some(Flow::Next)
        });
    }
    moves::lift(l, i)
        .or_else(|| packed::lift(l, i))
        .or_else(|| float::lift(l, i))
        .or_else(|| avx::lift(l, i))
        .or_else(|| fma::lift(l, i))
}

/// A memory or register source operand of `bytes` bytes: unaligned access allowed or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Align {
    /// Operands of 16 and 32 bytes must be aligned.
    Checked,
    /// Any address.
    Any,
}

impl Lifter<'_> {
    /// What every SSE instruction checks first (SDM 3A 13.1, table 2-17 of 2A): #UD or #NM.
    pub(super) fn sse_check(&mut self) -> Option<Flow> {
        if self.has(mode::EM) || !self.has(mode::OSFXSR) {
            return Some(self.undefined());
        }
        self.task_switched()
    }

    /// #NM after a task switch.
    pub(super) fn task_switched(&mut self) -> Option<Flow> {
        if !self.has(mode::TS) {
            return None;
        }
        self.b.raise(vec_no::NM);
        Some(Flow::End)
    }

    /// `d = op(a, b, imm8)`, by the checking path where MXCSR has exceptions unmasked.
    pub(super) fn vec_op(&mut self, op: VecOp, d: VVal, a: VVal, b: VVal, imm8: u8) {
        if !(op.is_fp() && self.has(mode::FP_UNMASKED)) {
            return self.b.vec(op, d, a, b, imm8);
        }
        self.stage(a, b);
        self.checked(Checked::Vec(op, imm8, Halves::One), Val::NONE);
        self.unstage(d);
    }

    /// Integer result of `op(a, b)`.
    pub(super) fn vec_to_int(&mut self, op: VecToInt, ty: Ty, a: VVal, b: VVal, imm8: u8) -> Val {
        if !(op.is_fp() && self.has(mode::FP_UNMASKED)) {
            return self.b.vec_to_int(op, ty, a, b, imm8);
        }
        self.stage(a, b);
        self.checked(Checked::ToInt(op, ty), Val::NONE)
    }

    /// `d = op(a, b)` of an integer `b`.
    pub(super) fn vec_from_int(&mut self, op: VecFromInt, ty: Ty, d: VVal, a: VVal, b: Val, imm8: u8) {
        if !(op.is_fp() && self.has(mode::FP_UNMASKED)) {
            return self.b.vec_from_int(op, ty, d, a, b, imm8);
        }
        self.stage(a, a);
        self.checked(Checked::FromInt(op), b);
        self.unstage(d);
    }

    pub(super) fn checked(&mut self, what: Checked, b: Val) -> Val {
        let what = self.b.iconst(what.pack());
        self.b.call(CHECKED, &[what, b])
    }

    /// Puts vector operands where helpers find them.
    pub(super) fn stage(&mut self, a: VVal, b: VVal) {
        self.b.vset_state(16, vec::stage_offset(STAGE0), a);
        self.b.vset_state(16, vec::stage_offset(STAGE1), b);
    }

    /// Gets a helper's vector result.
    pub(super) fn unstage(&mut self, d: VVal) {
        self.b.vget_state(d, 16, vec::stage_offset(STAGE0));
    }

    /// Memory operand of 4, 8, 16 or 32 bytes.
    pub(super) fn vec_mem(&mut self, i: &Instruction, bytes: usize, write: bool, align: Align) -> Mem {
        if bytes < 16 || align == Align::Any {
            return self.mem(i, bytes, write);
        }
        let seg = segment_number(i.memory_segment());
        if seg == reg::SS && !self.has(mode::CS64) && !self.has(mode::FLAT) {
            // #GP for the alignment comes before #SS for the limit (measured).
            let offset = self.effective_address(i);
            let base = self.b.get_state(Ty::I64, seg_base_offset(seg));
            let linear = self.b.op2(Op::Add, Ty::I32, base, offset);
            let mask = self.b.iconst(bytes as i64 - 1);
            self.b.call(ALIGN_VECTOR, &[linear, mask]);
        }
        let mut m = self.mem(i, bytes, write);
        m.flags |= mem::ALIGNED;
        m
    }

    /// Loads 1, 2, 4, 8 or 16 bytes into a new temporary, the rest zero, or 32 into a pair.
    pub(super) fn vec_load(&mut self, i: &Instruction, bytes: usize, align: Align) -> VVal {
        let t = self.b.vtemp();
        let m = self.vec_mem(i, bytes, false, align);
        if bytes < 4 {
            let v = self.load(Ty::from_bytes(bytes), m);
            self.vec_zext(Ty::I64, t, v);
        } else {
            self.b.vload(t, bytes, m.addr, m.disp, m.flags);
        }
        t
    }

    /// A general register's value as a vector, the rest zero.
    pub(super) fn vec_zext(&mut self, ty: Ty, d: VVal, v: Val) {
        let op = if ty == Ty::I64 { VecFromInt::Zext64 } else { VecFromInt::Zext32 };
        // The vector operand does not count.
        self.b.vec_from_int(op, ty, d, VVal(0), v, 0);
    }

    /// Vector operand `n`: an XMM or YMM register, or memory of the size that the instruction declares.
    pub(super) fn vec_read(&mut self, i: &Instruction, n: u32, align: Align) -> VVal {
        match i.op_kind(n) {
            OpKind::Register => vreg(i.op_register(n)),
            _ => self.vec_load(i, i.memory_size().size(), align),
        }
    }

    /// Stores the low bytes of a vector.
    pub(super) fn vec_store(&mut self, i: &Instruction, bytes: usize, v: VVal, align: Align) {
        let m = self.vec_mem(i, bytes, true, align);
        self.b.vstore(bytes, m.addr, m.disp, v, m.flags);
    }

    /// Linear address of a memory operand as one value.
    pub(in crate::lift) fn linear(&mut self, m: Mem) -> Val {
        if m.disp == 0 { m.addr } else { self.b.op2(Op::Add, Ty::I64, m.addr, m.disp) }
    }

    /// Where the bits of the sign of `v`'s elements are set, `yes`, else `no` (BLENDV's rule). The mask has all bits of
    /// an element equal.
    pub(super) fn vec_choose(&mut self, d: VVal, mask: VVal, yes: VVal, no: VVal) {
        let (x, y) = (self.b.vtemp(), self.b.vtemp());
        self.b.vec(VecOp::Pand, x, mask, yes, 0);
        self.b.vec(VecOp::Pandn, y, mask, no, 0);
        self.b.vec(VecOp::Por, d, x, y, 0);
    }
}
