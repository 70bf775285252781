//! Vector operations: loaded from the state, done by the host's instruction, stored back. What has no such instruction is
//! called.

use super::asm::{Map, Mem, RAX, RCX, RDX, RSI, Reg, XMM0, XMM1};
use super::memory::Need;
use super::sse::{self, Encoding, Side};
use super::{Emit, Target, state, val};
use crate::ir::build::vec_bytes;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::ir::{Inst, Op, Ty, mem};
use crate::lower::Thunk;
use crate::state::{CpuState, HIGH, VALS, VECS};
use std::mem::offset_of;

/// Place of a vector in the state.
fn vec(n: u16) -> Mem {
    state(offset_of!(CpuState, vecs) + (n as usize % VECS) * size_of::<u128>())
}

impl Emit<'_> {
    /// Emits the operation at `n`; how many were done.
    pub(super) fn vector_op(&mut self, n: usize, i: &Inst) -> usize {
        match i.op {
            Op::VMov => {
                self.load_vec(XMM0, i.a);
                self.store_vec(i.d);
            }
            Op::VLoad if vec_bytes(i.ty) == 32 => {
                let m = self.host(i, 32, Need { write: false, aligned: i.c & mem::ALIGNED != 0 });
                for half in [0, HIGH as u16] {
                    self.a.sse(0, Map::M0f, 0x10, false, XMM0, m.after(half as i32));
                    self.store_vec(i.d + half);
                }
            }
            Op::VStore if vec_bytes(i.ty) == 32 => {
                let m = self.host(i, 32, Need { write: true, aligned: i.c & mem::ALIGNED != 0 });
                for half in [0, HIGH as u16] {
                    self.load_vec(XMM0, i.b + half);
                    self.a.sse(0, Map::M0f, 0x11, false, XMM0, m.after(half as i32));
                }
            }
            Op::VLoad => {
                let m = self.host(i, vec_bytes(i.ty) as i32, Need { write: false, aligned: i.c & mem::ALIGNED != 0 });
                self.load_part(i.ty, m);
                self.store_vec(i.d);
            }
            Op::VStore => {
                let m = self.host(i, vec_bytes(i.ty) as i32, Need { write: true, aligned: i.c & mem::ALIGNED != 0 });
                self.store_part(i, i.b, m);
            }
            Op::VGetState => {
                self.load_part(i.ty, state(i.imm as usize));
                self.store_vec(i.d);
            }
            Op::VSetState => self.store_part(i, i.a, state(i.imm as usize)),
            Op::Vec => self.vec_op(i),
            Op::Fma => self.fma(i),
            Op::VecToInt => return self.vec_to_int(n, i),
            _ => self.vec_from_int(i),
        }
        1
    }

    fn load_vec(&mut self, to: Reg, n: u16) {
        // MOVAPS: the state's registers are aligned.
        self.a.sse(0, Map::M0f, 0x28, false, to, vec(n));
    }

    fn store_vec(&mut self, n: u16) {
        self.a.sse(0, Map::M0f, 0x29, false, XMM0, vec(n));
    }

    /// XMM0 = 4, 8 or 16 bytes of memory, the rest zero: MOVD, MOVQ, MOVUPS.
    fn load_part(&mut self, ty: Ty, m: Mem) {
        match vec_bytes(ty) {
            16 => self.a.sse(0, Map::M0f, 0x10, false, XMM0, m),
            8 => self.a.sse(0xf3, Map::M0f, 0x7e, false, XMM0, m),
            _ => self.a.sse(0x66, Map::M0f, 0x6e, false, XMM0, m),
        }
    }

    /// Memory = the low 4, 8 or 16 bytes of vector `n`.
    fn store_part(&mut self, i: &Inst, n: u16, m: Mem) {
        match vec_bytes(i.ty) {
            16 => {
                self.load_vec(XMM0, n);
                self.a.sse(0, Map::M0f, 0x11, false, XMM0, m);
            }
            bytes => {
                let ty = if bytes == 8 { Ty::I64 } else { Ty::I32 };
                self.a.load(ty, RDX, vec(n));
                self.a.store(ty, m, RDX);
            }
        }
    }

    fn emit(&mut self, e: &Encoding, reg: Reg, rm: Reg, imm: u16) {
        self.a.sse(e.prefix, e.map, e.opcode, e.wide, reg, rm);
        if e.imm {
            self.a.byte(imm as u8);
        }
    }

    fn vec_op(&mut self, i: &Inst) {
        let op = VecOp::from_imm(i.imm);
        if op == Some(VecOp::Pxor) && i.a == i.b {
            self.a.sse(0, Map::M0f, 0x57, false, XMM0, XMM0);
        } else if let Some((opcode, group)) = op.and_then(sse::shift) {
            self.load_vec(XMM0, i.a);
            self.a.sse(0x66, Map::M0f, opcode, false, Reg(group), XMM0);
            self.a.byte(i.c as u8);
        } else if let Some(e) = op.and_then(sse::vec) {
            self.load_vec(XMM0, i.a);
            self.load_vec(XMM1, i.b);
            self.emit(&e, XMM0, XMM1, i.c);
        } else {
            let words = i.d as u64 | (i.a as u64) << 16 | (i.b as u64) << 32 | (i.c as u64) << 48;
            return self.call_vec(Thunk::Vec, i, words);
        }
        self.store_vec(i.d);
    }

    fn fma(&mut self, i: &Inst) {
        let words = i.d as u64 | (i.a as u64) << 16 | (i.b as u64) << 32 | (i.c as u64) << 48;
        self.call_vec(Thunk::Fma, i, words);
    }

    fn call_vec(&mut self, thunk: Thunk, i: &Inst, words: u64) {
        self.before_call();
        self.cpu_to_rdi();
        self.a.mov_imm(RSI, i.imm as u64);
        self.a.mov_imm(RDX, words);
        if thunk == Thunk::VecFromInt {
            self.a.load(Ty::I64, RCX, val(i.b as usize % VALS));
        }
        self.call(Target::Thunk(thunk));
    }

    fn vec_to_int(&mut self, n: usize, i: &Inst) -> usize {
        let op = VecToInt::from_imm(i.imm);
        if let Some((op, e)) = op.and_then(|op| Some((op, sse::comparison(op)?))) {
            self.load_vec(XMM0, i.a);
            self.load_vec(XMM1, i.b);
            self.emit(&e, XMM0, XMM1, i.c);
            return self.comparison_flags(n, i, op);
        }
        let Some((e, side)) = op.and_then(sse::to_int) else {
            self.call_vec(Thunk::VecToInt, i, i.a as u64 | (i.b as u64) << 16 | (i.c as u64) << 32);
            let r = self.scratch();
            self.a.zext(i.ty, r, RAX);
            self.set(i.d, r);
            return 1;
        };
        self.load_vec(XMM0, i.a);
        let r = self.scratch();
        match side {
            Side::Reg => self.emit(&e, r, XMM0, i.c),
            Side::Rm => self.emit(&e, XMM0, r, i.c),
        }
        self.a.zext(i.ty, r, r);
        self.set(i.d, r);
        1
    }

    fn vec_from_int(&mut self, i: &Inst) {
        let Some(e) = VecFromInt::from_imm(i.imm).and_then(sse::from_int) else {
            return self.call_vec(Thunk::VecFromInt, i, i.d as u64 | (i.a as u64) << 16 | (i.c as u64) << 32);
        };
        let r = self.int(i.b);
        self.load_vec(XMM0, i.a);
        self.emit(&e, XMM0, r, i.c);
        self.store_vec(i.d);
    }
}
