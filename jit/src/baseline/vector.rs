//! Vector operations, done by the host's instructions on registers that hold the values within the block. Guest registers
//! are written through. What has no host instruction is called.

use super::asm::{Map, Mem, RAX, RCX, RDX, RSI, Reg};
use super::memory::Need;
use super::sse::{self, Encoding, Side};
use super::{Emit, Target, state, val};
use crate::ir::build::vec_bytes;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use crate::ir::{Inst, Op, Ty, VVal, mem};
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
                let r = self.copy_vector(i.a);
                self.set_vector(i.d, r);
            }
            Op::VLoad => self.vector_load(i),
            Op::VStore => self.vector_store(i),
            Op::VGetState => {
                let r = self.vector_scratch();
                self.load_part(i.ty, r, state(i.imm as usize));
                self.set_vector(i.d, r);
            }
            Op::VSetState => {
                let r = self.vector(i.a);
                self.store_part(i.ty, r, state(i.imm as usize));
            }
            Op::Vec => self.vec_op(i),
            Op::Fma => self.fma(i),
            Op::ClearHigh => self.clear_high(i),
            Op::VecToInt => return self.vec_to_int(n, i),
            _ => self.vec_from_int(i),
        }
        1
    }

    /// A register that holds vector `n`.
    fn vector(&mut self, n: u16) -> Reg {
        if let Some(r) = self.vectors.find(n) {
            return r;
        }
        let r = self.vector_scratch();
        // MOVAPS: the state's registers are aligned.
        self.a.sse(0, Map::M0f, 0x28, false, r, vec(n));
        self.vectors.bind(n, r);
        r
    }

    /// A register with nothing in it, for a result.
    fn vector_scratch(&mut self) -> Reg {
        let (r, spill) = self.vectors.take();
        if let Some(n) = spill {
            self.store_vector(n, r);
        }
        r
    }

    /// A register with a copy of vector `n` that may be changed.
    fn copy_vector(&mut self, n: u16) -> Reg {
        let from = self.vector(n);
        let r = self.vector_scratch();
        self.a.sse(0, Map::M0f, 0x28, false, r, from);
        r
    }

    /// `r` is vector `n` from now on; guest registers are written through.
    fn set_vector(&mut self, n: u16, r: Reg) {
        self.vectors.bind(n, r);
        if n < VVal::TEMP0 {
            self.store_vector(n, r);
        }
    }

    pub(super) fn store_vector(&mut self, n: u16, r: Reg) {
        self.a.sse(0, Map::M0f, 0x29, false, r, vec(n));
    }

    fn vector_load(&mut self, i: &Inst) {
        let bytes = vec_bytes(i.ty);
        let m = self.host(i, bytes as i32, Need { write: false, aligned: i.c & mem::ALIGNED != 0 });
        if bytes == 32 {
            let high = self.vector_scratch();
            self.a.sse(0, Map::M0f, 0x10, false, high, m.after(16));
            let low = self.vector_scratch();
            self.a.sse(0, Map::M0f, 0x10, false, low, m);
            self.set_vector(i.d + HIGH as u16, high);
            return self.set_vector(i.d, low);
        }
        let r = self.vector_scratch();
        self.load_part(i.ty, r, m);
        self.set_vector(i.d, r);
    }

    fn vector_store(&mut self, i: &Inst) {
        let bytes = vec_bytes(i.ty);
        let m = self.host(i, bytes as i32, Need { write: true, aligned: i.c & mem::ALIGNED != 0 });
        let low = self.vector(i.b);
        if bytes == 32 {
            let high = self.vector(i.b + HIGH as u16);
            self.a.sse(0, Map::M0f, 0x11, false, high, m.after(16));
            return self.a.sse(0, Map::M0f, 0x11, false, low, m);
        }
        self.store_part(i.ty, low, m);
    }

    /// `r` = 4, 8 or 16 bytes of memory, the rest zero: MOVD, MOVQ, MOVUPS.
    fn load_part(&mut self, ty: Ty, r: Reg, m: Mem) {
        match vec_bytes(ty) {
            16 => self.a.sse(0, Map::M0f, 0x10, false, r, m),
            8 => self.a.sse(0xf3, Map::M0f, 0x7e, false, r, m),
            _ => self.a.sse(0x66, Map::M0f, 0x6e, false, r, m),
        }
    }

    /// Memory = the low 4, 8 or 16 bytes of `r`.
    fn store_part(&mut self, ty: Ty, r: Reg, m: Mem) {
        match vec_bytes(ty) {
            16 => self.a.sse(0, Map::M0f, 0x11, false, r, m),
            8 => self.a.sse(0x66, Map::M0f, 0xd6, false, r, m),
            _ => self.a.sse(0x66, Map::M0f, 0x7e, false, r, m),
        }
    }

    /// An instruction of SSE.
    fn emit(&mut self, e: &Encoding, reg: Reg, rm: Reg, imm: u16) {
        self.a.sse(e.prefix, e.map, e.opcode, e.wide, reg, rm);
        if e.imm {
            self.a.byte(imm as u8);
        }
    }

    /// The same instruction with three operands.
    fn emit_vex(&mut self, e: &Encoding, reg: Reg, first: Reg, rm: Reg, imm: u16) {
        self.a.vex(e.prefix, e.map, e.opcode, e.wide, reg, first, rm);
        if e.imm {
            self.a.byte(imm as u8);
        }
    }

    fn vec_op(&mut self, i: &Inst) {
        let Some(op) = VecOp::from_imm(i.imm) else { return };
        let r = if op == VecOp::Pxor && i.a == i.b {
            let r = self.vector_scratch();
            self.a.sse(0, Map::M0f, 0x57, false, r, r);
            r
        } else if let Some((opcode, group)) = sse::shift(op) {
            let r = self.copy_vector(i.a);
            self.a.sse(0x66, Map::M0f, opcode, false, Reg(group), r);
            self.a.byte(i.c as u8);
            r
        } else if let Some(e) = self.avx.then(|| sse::vex(op)).flatten() {
            self.vex_op(op, &e, i)
        } else if let Some(e) = sse::vec(op) {
            let b = self.vector(i.b);
            let r = if op.one_source() { self.vector_scratch() } else { self.copy_vector(i.a) };
            self.emit(&e, r, b, i.c);
            r
        } else {
            let words = i.d as u64 | (i.a as u64) << 16 | (i.b as u64) << 32 | (i.c as u64) << 48;
            return self.call_vec(Thunk::Vec, i, words);
        };
        self.set_vector(i.d, r);
    }

    fn vex_op(&mut self, op: VecOp, e: &Encoding, i: &Inst) -> Reg {
        let b = self.vector(i.b);
        if op == VecOp::Vcvtps2ph {
            // The source is in the field `reg`.
            let r = self.vector_scratch();
            self.emit_vex(e, b, sse::NO_OPERAND, r, i.c);
            return r;
        }
        let a = if op.one_source() { sse::NO_OPERAND } else { self.vector(i.a) };
        let r = self.vector_scratch();
        self.emit_vex(e, r, a, b, i.c);
        r
    }

    fn clear_high(&mut self, i: &Inst) {
        let zero = self.vector_scratch();
        self.a.sse(0, Map::M0f, 0x57, false, zero, zero);
        for n in (0..HIGH as u16).filter(|n| i.imm >> n & 1 != 0).map(|n| n + HIGH as u16) {
            self.vectors.forget(n);
            self.store_vector(n, zero);
        }
    }

    fn fma(&mut self, i: &Inst) {
        let Some(op) = FmaOp::from_imm(i.imm) else { return };
        let (b, c) = (self.vector(i.b), self.vector(i.c));
        let r = self.copy_vector(i.a);
        self.emit_vex(&sse::fma(op), r, b, c, 0);
        self.set_vector(i.d, r);
    }

    fn call_vec(&mut self, thunk: Thunk, i: &Inst, words: u64) {
        self.before_call();
        // The result is in the state.
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
            let (a, b) = (self.vector(i.a), self.vector(i.b));
            self.emit(&e, a, b, i.c);
            return self.comparison_flags(n, i, op);
        }
        let Some((e, side)) = op.and_then(sse::to_int) else {
            self.call_vec(Thunk::VecToInt, i, i.a as u64 | (i.b as u64) << 16 | (i.c as u64) << 32);
            let r = self.scratch();
            self.a.zext(i.ty, r, RAX);
            self.set(i.d, r);
            return 1;
        };
        let a = self.vector(i.a);
        let r = self.scratch();
        match side {
            Side::Reg => self.emit(&e, r, a, i.c),
            Side::Rm => self.emit(&e, a, r, i.c),
        }
        self.a.zext(i.ty, r, r);
        self.set(i.d, r);
        1
    }

    fn vec_from_int(&mut self, i: &Inst) {
        let Some((op, e)) = VecFromInt::from_imm(i.imm).and_then(|op| Some((op, sse::from_int(op)?))) else {
            return self.call_vec(Thunk::VecFromInt, i, i.d as u64 | (i.a as u64) << 16 | (i.c as u64) << 32);
        };
        let b = self.int(i.b);
        let alone = matches!(op, VecFromInt::Zext32 | VecFromInt::Zext64);
        let r = if alone { self.vector_scratch() } else { self.copy_vector(i.a) };
        self.emit(&e, r, b, i.c);
        self.set_vector(i.d, r);
    }
}
