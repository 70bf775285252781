//! Floating-point results that are overwritten before anything looks at them. Cranelift drops their stores, then the
//! operations, and with them the flags they would leave in MXCSR.
//!
//! A result is unseen until a fault point or a call looks at the state. One that goes into another operation lives as long
//! as that one's result. What is overwritten unseen gets a store that Cranelift keeps; such code is rare. So does a
//! comparison whose flags nobody reads.

use super::super::Lower;
use super::float;
use crate::ir::vecop::{VecOp, VecToInt};
use crate::ir::{Block, Inst, Op};
use crate::passes::dead_flags;
use crate::state::{CpuState, VECS};
use cranelift_codegen::ir::types::{I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use std::mem::offset_of;

impl Lower<'_, '_> {
    /// Sets register `i.d` to the result of a vector operation.
    pub(super) fn set_result(&mut self, op: VecOp, i: &Inst, v: Value) {
        let mut alive = op.is_fp();
        for n in consumed(op, i).into_iter().flatten() {
            alive |= self.unseen[n as usize % VECS].take().is_some();
        }
        self.set_vec(i.d, v);
        if alive {
            self.unseen[i.d as usize % VECS] = Some(v);
        }
    }

    /// Sets register `i.d` to the result of a fused multiply-add.
    pub(super) fn set_fused(&mut self, i: &Inst, v: Value) {
        for n in [i.a, i.b, i.c] {
            self.unseen[n as usize % VECS] = None;
        }
        self.set_float(i.d, v);
    }

    /// Sets register `n` to a floating-point result that has no vector operands as a whole.
    pub(super) fn set_float(&mut self, n: u16, v: Value) {
        self.set_vec(n, v);
        self.unseen[n as usize % VECS] = Some(v);
    }

    /// Register `n` is about to be overwritten.
    pub(super) fn overwrite(&mut self, n: u16) {
        let n = n as usize % VECS;
        let Some(v) = self.unseen[n].take() else { return };
        // A copy stands for it.
        match (0..VECS).find(|m| *m != n && self.vecs[*m] == Some(v)) {
            Some(m) => self.unseen[m] = Some(v),
            None => self.keep(v),
        }
    }

    /// Operation `n` was done. If it is a comparison whose result nobody looks at, it stays for the flags in MXCSR.
    pub(in crate::lower) fn keep_comparison(&mut self, block: &Block, visible: &[bool], n: usize) {
        let i = &block.insts[n];
        if i.op == Op::VecToInt
            && VecToInt::from_imm(i.imm).is_some_and(VecToInt::compares_floats)
            && dead_flags::in_vain(block, visible, n)
        {
            let word = self.int(i.d);
            self.keep_int(word);
        }
    }

    /// Makes a value needed: atomic stores are never dropped. The slot is free between a helper's return and the next
    /// call.
    fn keep(&mut self, v: Value) {
        let v = self.recast(I64X2, v);
        let low = self.b.ins().extractlane(v, 0);
        self.keep_int(low);
    }

    /// The same of an integer.
    fn keep_int(&mut self, low: Value) {
        let offset = self.b.ins().iconst(I64, offset_of!(CpuState, helper_result) as i64);
        let slot = self.b.ins().iadd(self.env, offset);
        self.b.ins().atomic_store(self.state_mem, low, slot);
    }
}

/// Operands that the result depends on as a whole, or in the lanes where operations work.
fn consumed(op: VecOp, i: &Inst) -> [Option<u16>; 2] {
    match op {
        VecOp::Movss | VecOp::Movsd | VecOp::Movq => [None; 2],
        // All zero or all ones, whatever the operand.
        _ if i.a == i.b && !op.is_fp() => [None; 2],
        _ if op.one_source() || op.is_fp() && !float::is_arithmetic(op) => [None, Some(i.b)],
        _ => [Some(i.a), Some(i.b)],
    }
}
