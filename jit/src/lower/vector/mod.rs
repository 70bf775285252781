//! Vector operations. Those without a CLIF form of their own call the interpreter's function on the state's registers.

mod float;
mod packed;
pub(super) mod sticky;

use super::memory::Need;
use super::{Lower, Thunk, inline_name};
use crate::baseline;
use crate::ir::build::vec_bytes;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use crate::ir::{Inst, Op, Ty, VVal, mem};
use crate::state::{CpuState, HIGH, VECS};
use cranelift_codegen::ir::types::{I8X16, I64, I64X2};
use cranelift_codegen::ir::{AbiParam, Endianness, InstBuilder, MemFlagsData, Signature, Value};
use cranelift_codegen::isa::CallConv;
use std::mem::offset_of;

/// Offset of a vector register in the state.
pub(super) fn vec_offset(n: u16) -> i32 {
    (offset_of!(CpuState, vecs) + (n as usize % VECS) * size_of::<u128>()) as i32
}

impl Lower<'_, '_> {
    /// Value of a vector, I8X16.
    pub(super) fn vec(&mut self, n: u16) -> Value {
        if let Some(v) = self.vecs[n as usize % VECS] {
            return v;
        }
        let v = self.b.ins().load(I8X16, self.state_mem, self.env, vec_offset(n));
        self.vecs[n as usize % VECS] = Some(v);
        v
    }

    /// Sets a vector (I8X16).
    pub(super) fn set_vec(&mut self, n: u16, v: Value) {
        self.overwrite(n);
        let n = n as usize % VECS;
        self.vecs[n] = Some(v);
        self.unsettled.vecs |= 1 << n;
    }

    /// A guest instruction begins: nobody looks at the temporaries of the one before.
    pub(super) fn drop_vector_temporaries(&mut self) {
        for n in VVal::TEMP0..VECS as u16 {
            self.overwrite(n);
            self.vecs[n as usize] = None;
        }
        self.unsettled.vecs &= (1 << VVal::TEMP0) - 1;
    }

    /// A 64-bit value zero-extended to a vector.
    pub(super) fn vec_of_int(&mut self, v: Value) -> Value {
        let v = self.b.ins().scalar_to_vector(I64X2, v);
        self.recast(cranelift_codegen::ir::types::I8X16, v)
    }

    pub(super) fn recast(&mut self, ty: cranelift_codegen::ir::Type, v: Value) -> Value {
        if self.b.func.dfg.value_type(v) == ty {
            return v;
        }
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    pub(super) fn vector_op(&mut self, i: &Inst) {
        match i.op {
            Op::VMov => {
                let v = self.vec(i.a);
                self.set_vec(i.d, v);
            }
            Op::VLoad => self.vload(i),
            Op::ClearHigh => {
                let zero = self.zero();
                for n in (0..HIGH as u16).filter(|n| i.imm >> n & 1 != 0) {
                    self.set_vec(n + HIGH as u16, zero);
                }
            }
            Op::Fma => match FmaOp::from_imm(i.imm).and_then(|op| self.fma(op, i)) {
                Some(v) => self.set_fused(i, v),
                None => self.fma_call(i),
            },
            Op::VStore => self.vstore(i),
            Op::VGetState => {
                let m = self.state_mem;
                let v = match vec_bytes(i.ty) {
                    16 => self.b.ins().load(I8X16, m, self.env, i.imm as i32),
                    8 => {
                        let v = self.b.ins().load(I64, m, self.env, i.imm as i32);
                        self.vec_of_int(v)
                    }
                    _ => {
                        let v = self.b.ins().uload32(m, self.env, i.imm as i32);
                        self.vec_of_int(v)
                    }
                };
                self.set_vec(i.d, v);
            }
            Op::VSetState => {
                let v = self.vec(i.a);
                let v = self.low_part(i.ty, v);
                self.b.ins().store(self.state_mem, v, self.env, i.imm as i32);
            }
            Op::Vec => {
                let native = VecOp::from_imm(i.imm)
                    .and_then(|op| Some((op, if op.is_fp() { self.float(op, i)? } else { self.packed(op, i)? })));
                match native {
                    Some((op, v)) => self.set_result(op, i, v),
                    None => match VecOp::from_imm(i.imm).and_then(|op| self.vec_inline(op, i)) {
                        Some(v) => self.set_vec(i.d, v),
                        None => self.vec_call(i),
                    },
                }
            }
            Op::VecToInt => {
                if let Some(op) = VecToInt::from_imm(i.imm).filter(|op| op.compares_floats()) {
                    return self.float_compare(op, i);
                }
                if let Some(v) = VecToInt::from_imm(i.imm).and_then(|op| self.vec_to_int_native(op, i)) {
                    let v = self.zext(i.ty, v);
                    return self.set(i.d, v);
                }
                let v = self.vec_to_int_call(i);
                let v = self.zext(i.ty, v);
                self.set(i.d, v);
            }
            _ => {
                let op = VecFromInt::from_imm(i.imm);
                if let Some(v) = op.and_then(|op| self.vec_from_int_native(op, i)) {
                    return if op.is_some_and(|op| op.is_fp()) { self.set_float(i.d, v) } else { self.set_vec(i.d, v) };
                }
                let words = self.iconst(i.d as i64 | (i.a as i64) << 16 | (i.c as i64) << 32);
                let (op, b) = (self.iconst(i.imm), self.int(i.b));
                self.call(Thunk::VecFromInt, &[self.env, op, words, b]);
                self.vecs[i.d as usize % VECS] = None;
            }
        }
    }

    /// An integer result by call.
    fn vec_to_int_call(&mut self, i: &Inst) -> Value {
        let words = self.iconst(i.a as i64 | (i.b as i64) << 16 | (i.c as i64) << 32);
        let op = self.iconst(i.imm);
        self.call(Thunk::VecToInt, &[self.env, op, words]).expect("thunk has a result")
    }

    /// A vector operation as the host's instruction in place of a call that takes and gives vectors in registers.
    fn vec_inline(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        let (namespace, index) = inline_name(baseline::inline_vector(op, i.c as u8)?);
        let (a, b) = (self.vec(i.a), self.vec(i.b));
        let mut signature = Signature::new(CallConv::SystemV);
        signature.params.extend([AbiParam::new(I8X16); 2]);
        signature.returns.push(AbiParam::new(I8X16));
        let f = self.import(namespace, index, signature);
        let call = self.b.ins().call(f, &[a, b]);
        // Calls are never dropped, nor what goes into them.
        for n in [i.a, i.b] {
            self.unseen[n as usize % VECS] = None;
        }
        self.b.inst_results(call).first().copied()
    }

    /// A vector operation by call.
    fn vec_call(&mut self, i: &Inst) {
        let words = self.iconst(i.d as i64 | (i.a as i64) << 16 | (i.b as i64) << 32 | (i.c as i64) << 48);
        let op = self.iconst(i.imm);
        self.call(Thunk::Vec, &[self.env, op, words]);
        self.vecs[i.d as usize % VECS] = None;
    }

    /// A fused multiply-add by call.
    fn fma_call(&mut self, i: &Inst) {
        let words = self.iconst(i.d as i64 | (i.a as i64) << 16 | (i.b as i64) << 32 | (i.c as i64) << 48);
        let op = self.iconst(i.imm);
        self.call(Thunk::Fma, &[self.env, op, words]);
        self.vecs[i.d as usize % VECS] = None;
    }

    /// The low 4, 8 or 16 bytes of a vector as something to store.
    fn low_part(&mut self, ty: Ty, v: Value) -> Value {
        match vec_bytes(ty) {
            16 => v,
            n => {
                let v = self.recast(I64X2, v);
                let v = self.b.ins().extractlane(v, 0);
                if n == 8 { v } else { self.narrow(Ty::I32, v) }
            }
        }
    }

    fn vload(&mut self, i: &Inst) {
        let base = self.int(i.a);
        let bytes = vec_bytes(i.ty);
        let need = if i.c & mem::ALIGNED != 0 { Need::ReadAligned } else { Need::Read };
        let host = self.host(base, i.imm, bytes as u64, need);
        let v = match bytes {
            32 => {
                let low = self.b.ins().load(I8X16, self.guest_mem, host.base, host.offset);
                let high = self.b.ins().load(I8X16, self.guest_mem, host.base, host.offset + 16);
                self.set_vec(i.d + HIGH as u16, high);
                low
            }
            16 => self.b.ins().load(I8X16, self.guest_mem, host.base, host.offset),
            8 => {
                let v = self.load_int(Ty::I64, host);
                self.vec_of_int(v)
            }
            _ => {
                let v = self.load_int(Ty::I32, host);
                self.vec_of_int(v)
            }
        };
        self.set_vec(i.d, v);
    }

    fn vstore(&mut self, i: &Inst) {
        let base = self.int(i.a);
        let need = if i.c & mem::ALIGNED != 0 { Need::WriteAligned } else { Need::Write };
        let host = self.host(base, i.imm, vec_bytes(i.ty) as u64, need);
        let v = self.vec(i.b);
        if vec_bytes(i.ty) == 32 {
            let high = self.vec(i.b + HIGH as u16);
            self.b.ins().store(self.guest_mem, v, host.base, host.offset);
            self.b.ins().store(self.guest_mem, high, host.base, host.offset + 16);
            return;
        }
        let v = self.low_part(i.ty, v);
        self.b.ins().store(self.guest_mem, v, host.base, host.offset);
    }
}
