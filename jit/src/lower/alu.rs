//! Integer operations, state fields.

use super::Lower;
use crate::ir::{Inst, Op, Ty};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8, I16, I32, I64, I128, Type};
use cranelift_codegen::ir::{InstBuilder, Value};

/// CLIF type of a width.
pub(super) fn clif_ty(ty: Ty) -> Type {
    match ty {
        Ty::I8 => I8,
        Ty::I16 => I16,
        Ty::I32 => I32,
        Ty::I64 => I64,
    }
}

impl Lower<'_, '_> {
    /// The low bits of a 64-bit value as a value of the width.
    pub(super) fn narrow(&mut self, ty: Ty, v: Value) -> Value {
        if ty == Ty::I64 { v } else { self.b.ins().ireduce(clif_ty(ty), v) }
    }

    /// A value of the width zero-extended to 64 bits.
    pub(super) fn widen(&mut self, ty: Ty, v: Value) -> Value {
        if ty == Ty::I64 { v } else { self.b.ins().uextend(I64, v) }
    }

    /// Zero-extension of the low bits.
    pub(super) fn zext(&mut self, ty: Ty, v: Value) -> Value {
        let n = self.narrow(ty, v);
        self.widen(ty, n)
    }

    /// Sign-extension of the low bits to 64.
    pub(super) fn sext(&mut self, ty: Ty, v: Value) -> Value {
        if ty == Ty::I64 {
            return v;
        }
        let n = self.narrow(ty, v);
        self.b.ins().sextend(I64, n)
    }

    pub(super) fn iconst(&mut self, v: i64) -> Value {
        self.b.ins().iconst(I64, v)
    }

    pub(super) fn alu_op(&mut self, i: &Inst) {
        let ty = i.ty;
        match i.op {
            Op::Mov => {
                let a = if i.a == crate::ir::Val::IMM.0 {
                    self.iconst(i.imm & ty.mask() as i64)
                } else {
                    let v = self.int(i.a);
                    self.zext(ty, v)
                };
                let known = self.known_of(i.a, ty);
                self.set(i.d, a);
                if let Some(k) = known {
                    self.known[i.d as usize % crate::state::VALS].truth = k;
                }
            }
            Op::Sub => self.subtract(i),
            Op::CmpEq | Op::CmpNe | Op::CmpUlt | Op::CmpUle | Op::CmpSlt => self.compare(i),
            Op::Select => self.select(i),
            Op::Lea => self.lea(i),
            Op::Ins8 | Op::Ins8h | Op::Ins16 | Op::Ext8h => self.insert(i),
            Op::Mul | Op::MulHiU | Op::MulHiS => self.multiply(i),
            Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror => self.shift(i),
            Op::Sext => {
                let a = self.int(i.a);
                let v = self.sext(ty, a);
                self.set(i.d, v);
            }
            Op::Add | Op::And | Op::Or | Op::Xor => self.binary(i),
            _ => self.unary(i),
        }
    }

    /// The comparison behind a copied value.
    fn known_of(&self, n: u16, _ty: Ty) -> Option<Option<Value>> {
        (n != crate::ir::Val::IMM.0).then(|| self.known[n as usize % crate::state::VALS].truth)
    }

    fn binary(&mut self, i: &Inst) {
        let (a, b) = (self.int(i.a), self.src(i));
        let (a, b) = (self.narrow(i.ty, a), self.narrow(i.ty, b));
        let v = match i.op {
            Op::Add => self.b.ins().iadd(a, b),
            Op::And => self.b.ins().band(a, b),
            Op::Or => self.b.ins().bor(a, b),
            _ => self.b.ins().bxor(a, b),
        };
        let v = self.widen(i.ty, v);
        self.set(i.d, v);
    }

    fn subtract(&mut self, i: &Inst) {
        let (a, b) = (self.int(i.a), self.src(i));
        let (a, b) = (self.narrow(i.ty, a), self.narrow(i.ty, b));
        let v = self.b.ins().isub(a, b);
        let v = self.widen(i.ty, v);
        self.set(i.d, v);
        self.known[i.d as usize % crate::state::VALS].difference = Some((i.ty, a, b));
    }

    fn compare(&mut self, i: &Inst) {
        let (a, b) = (self.int(i.a), self.src(i));
        let (a, b) = (self.narrow(i.ty, a), self.narrow(i.ty, b));
        let cc = match i.op {
            Op::CmpEq => IntCC::Equal,
            Op::CmpNe => IntCC::NotEqual,
            Op::CmpUlt => IntCC::UnsignedLessThan,
            Op::CmpUle => IntCC::UnsignedLessThanOrEqual,
            _ => IntCC::SignedLessThan,
        };
        let t = self.b.ins().icmp(cc, a, b);
        self.set_truth(i.d, t);
    }

    /// Sets an integer to a comparison's result.
    pub(super) fn set_truth(&mut self, d: u16, t: Value) {
        let v = self.b.ins().uextend(I64, t);
        self.set(d, v);
        self.known[d as usize % crate::state::VALS].truth = Some(t);
    }

    /// Whether an integer is not zero, as something to branch on.
    pub(super) fn truth(&mut self, n: u16) -> Value {
        match self.known[n as usize % crate::state::VALS].truth {
            Some(t) => t,
            None => self.int(n),
        }
    }

    fn select(&mut self, i: &Inst) {
        let c = self.truth(i.a);
        let (b, d) = (self.int(i.b), self.int(i.c));
        let (b, d) = (self.narrow(i.ty, b), self.narrow(i.ty, d));
        let v = self.b.ins().select(c, b, d);
        let v = self.widen(i.ty, v);
        self.set(i.d, v);
    }

    fn lea(&mut self, i: &Inst) {
        let none = crate::ir::Val::NONE.0;
        let mut v = None;
        if i.b != none {
            let x = self.int(i.b);
            v = Some(if i.c == 0 {
                x
            } else {
                let n = self.iconst(i.c as i64);
                self.b.ins().ishl(x, n)
            });
        }
        if i.a != none {
            let a = self.int(i.a);
            v = Some(match v {
                Some(x) => self.b.ins().iadd(a, x),
                None => a,
            });
        }
        let mut v = match v {
            None => self.iconst(i.imm),
            Some(v) if i.imm != 0 => {
                let c = self.iconst(i.imm);
                self.b.ins().iadd(v, c)
            }
            Some(v) => v,
        };
        v = self.zext(i.ty, v);
        self.set(i.d, v);
    }

    fn insert(&mut self, i: &Inst) {
        let a = self.int(i.a);
        let v = match i.op {
            Op::Ext8h => {
                let n = self.iconst(8);
                let v = self.b.ins().ushr(a, n);
                self.zext(Ty::I8, v)
            }
            op => {
                let b = self.src(i);
                let (mask, ty) = match op {
                    Op::Ins16 => (!0xffff, Ty::I16),
                    Op::Ins8h => (!0xff00, Ty::I8),
                    _ => (!0xff, Ty::I8),
                };
                let m = self.iconst(mask);
                let keep = self.b.ins().band(a, m);
                let mut part = self.zext(ty, b);
                if op == Op::Ins8h {
                    let n = self.iconst(8);
                    part = self.b.ins().ishl(part, n);
                }
                self.b.ins().bor(keep, part)
            }
        };
        self.set(i.d, v);
    }

    fn multiply(&mut self, i: &Inst) {
        let (a, b) = (self.int(i.a), self.src(i));
        let ty = i.ty;
        let v = match (i.op, ty) {
            (Op::Mul, _) => {
                let (a, b) = (self.narrow(ty, a), self.narrow(ty, b));
                let v = self.b.ins().imul(a, b);
                self.widen(ty, v)
            }
            (op, Ty::I64) => {
                // One multiplication gives both halves when written this way (umulhi beside imul would be two).
                let (a, b) = if op == Op::MulHiU {
                    (self.b.ins().uextend(I128, a), self.b.ins().uextend(I128, b))
                } else {
                    (self.b.ins().sextend(I128, a), self.b.ins().sextend(I128, b))
                };
                let v = self.b.ins().imul(a, b);
                self.b.ins().isplit(v).1
            }
            (op, _) => {
                let (a, b) = if op == Op::MulHiU {
                    (self.zext(ty, a), self.zext(ty, b))
                } else {
                    (self.sext(ty, a), self.sext(ty, b))
                };
                let v = self.b.ins().imul(a, b);
                let n = self.iconst(ty.bits() as i64);
                let v = self.b.ins().ushr(v, n);
                self.zext(ty, v)
            }
        };
        self.set(i.d, v);
    }

    fn shift(&mut self, i: &Inst) {
        let (a, b) = (self.int(i.a), self.src(i));
        let ty = i.ty;
        if matches!(i.op, Op::Rol | Op::Ror) {
            let (a, b) = (self.narrow(ty, a), self.narrow(ty, b));
            let v = if i.op == Op::Rol { self.b.ins().rotl(a, b) } else { self.b.ins().rotr(a, b) };
            let v = self.widen(ty, v);
            return self.set(i.d, v);
        }
        if matches!(ty, Ty::I32 | Ty::I64) {
            // CLIF masks the count by the width, as x86 does.
            let (a, b) = (self.narrow(ty, a), self.narrow(ty, b));
            let v = match i.op {
                Op::Shl => self.b.ins().ishl(a, b),
                Op::Shr => self.b.ins().ushr(a, b),
                _ => self.b.ins().sshr(a, b),
            };
            let v = self.widen(ty, v);
            return self.set(i.d, v);
        }
        // 8 and 16 bits: x86 masks the count by 31, so bits may leave altogether.
        let m = self.iconst(31);
        let n = self.b.ins().band(b, m);
        let v = match i.op {
            Op::Shl => {
                let a = self.zext(ty, a);
                self.b.ins().ishl(a, n)
            }
            Op::Shr => {
                let a = self.zext(ty, a);
                self.b.ins().ushr(a, n)
            }
            _ => {
                let a = self.sext(ty, a);
                self.b.ins().sshr(a, n)
            }
        };
        let v = self.zext(ty, v);
        self.set(i.d, v);
    }

    fn unary(&mut self, i: &Inst) {
        let ty = i.ty;
        let a = self.int(i.a);
        let n = self.narrow(ty, a);
        let v = match i.op {
            Op::Not => self.b.ins().bnot(n),
            Op::Neg => self.b.ins().ineg(n),
            Op::Bswap => self.b.ins().bswap(n),
            Op::Clz => self.b.ins().clz(n),
            Op::Ctz => self.b.ins().ctz(n),
            Op::Popcnt => self.b.ins().popcnt(n),
            other => unreachable!("{other:?} is lowered elsewhere"),
        };
        let v = self.widen(ty, v);
        self.set(i.d, v);
    }

    pub(super) fn state_op(&mut self, i: &Inst) {
        let offset = i.imm as i32;
        let ty = clif_ty(i.ty);
        if i.op == Op::GetState {
            let v = self.b.ins().load(ty, self.state_mem, self.env, offset);
            let v = self.widen(i.ty, v);
            self.set(i.d, v);
        } else {
            let v = self.int(i.a);
            let v = self.narrow(i.ty, v);
            self.b.ins().store(self.state_mem, v, self.env, offset);
        }
    }
}
