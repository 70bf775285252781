//! Floating-point vector operations that CLIF has. They run under the guest's rounding and flush modes, which the run
//! loop keeps in the host's MXCSR.
//!
//! Operands come as `I8X16` values and are cast: a cast value is not folded into the operation as a memory operand, which
//! would let Cranelift swap the operands and pick the other NaN.

use super::super::Lower;
use crate::ir::Inst;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F32X4, F64, F64X2, I8X16, I32, I32X4, I64, I64X2, Type};
use cranelift_codegen::ir::{InstBuilder, Value};

/// Arithmetic of two operands.
#[derive(Clone, Copy, PartialEq)]
enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
}

/// Arithmetic operations: what, vector type, only the low lane.
fn arithmetic(op: VecOp) -> Option<(Arith, Type, bool)> {
    use VecOp::*;
    Some(match op {
        Addps => (Arith::Add, F32X4, false),
        Addpd => (Arith::Add, F64X2, false),
        Addss => (Arith::Add, F32X4, true),
        Addsd => (Arith::Add, F64X2, true),
        Subps => (Arith::Sub, F32X4, false),
        Subpd => (Arith::Sub, F64X2, false),
        Subss => (Arith::Sub, F32X4, true),
        Subsd => (Arith::Sub, F64X2, true),
        Mulps => (Arith::Mul, F32X4, false),
        Mulpd => (Arith::Mul, F64X2, false),
        Mulss => (Arith::Mul, F32X4, true),
        Mulsd => (Arith::Mul, F64X2, true),
        Divps => (Arith::Div, F32X4, false),
        Divpd => (Arith::Div, F64X2, false),
        Divss => (Arith::Div, F32X4, true),
        Divsd => (Arith::Div, F64X2, true),
        Minps => (Arith::Min, F32X4, false),
        Minpd => (Arith::Min, F64X2, false),
        Maxps => (Arith::Max, F32X4, false),
        Maxpd => (Arith::Max, F64X2, false),
        Minss => (Arith::Min, F32X4, true),
        Minsd => (Arith::Min, F64X2, true),
        Maxss => (Arith::Max, F32X4, true),
        Maxsd => (Arith::Max, F64X2, true),
        _ => return None,
    })
}

/// The operation works on both operands in the same lanes.
pub(super) fn is_arithmetic(op: VecOp) -> bool {
    arithmetic(op).is_some() || comparison(op, 0).is_some()
}

/// Packed comparisons that CLIF has with the same flags: condition and vector type.
fn comparison(op: VecOp, imm8: u8) -> Option<(FloatCC, Type)> {
    use VecOp::*;
    let (ty, bits) = match op {
        Cmpps => (F32X4, 7),
        Cmppd => (F64X2, 7),
        Vcmpps => (F32X4, 31),
        Vcmppd => (F64X2, 31),
        _ => return None,
    };
    // SDM 2A, CMPPD: the predicates that signal as the host's eight do, and those with the operands exchanged.
    let condition = match imm8 & bits {
        0 => FloatCC::Equal,
        1 => FloatCC::LessThan,
        2 => FloatCC::LessThanOrEqual,
        3 => FloatCC::Unordered,
        4 => FloatCC::NotEqual,
        5 => FloatCC::UnorderedOrGreaterThanOrEqual,
        6 => FloatCC::UnorderedOrGreaterThan,
        7 => FloatCC::Ordered,
        9 => FloatCC::UnorderedOrLessThan,
        10 => FloatCC::UnorderedOrLessThanOrEqual,
        13 => FloatCC::GreaterThanOrEqual,
        14 => FloatCC::GreaterThan,
        _ => return None,
    };
    Some((condition, ty))
}

fn scalar_of(ty: Type) -> Type {
    if ty == F32X4 { F32 } else { F64 }
}

impl Lower<'_, '_> {
    /// A floating-point operation as a value (I8X16), if CLIF has it with x86's results and flags.
    pub(super) fn float(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        if let Some((what, ty, scalar)) = arithmetic(op) {
            if matches!(what, Arith::Min | Arith::Max) && i.a == i.b {
                // Cranelift would see that nothing is to be done; the comparison's flags would be lost.
                return None;
            }
            let (va, vb) = (self.vec(i.a), self.vec(i.b));
            let (a, b) = (self.recast(ty, va), self.recast(ty, vb));
            let v = if scalar { self.low_lane(what, ty, a, b) } else { self.arith(what, ty, a, b) };
            return Some(self.recast(I8X16, v));
        }
        if let Some((condition, ty)) = comparison(op, i.c as u8) {
            let (va, vb) = (self.vec(i.a), self.vec(i.b));
            let (a, b) = (self.recast(ty, va), self.recast(ty, vb));
            let v = self.b.ins().fcmp(condition, a, b);
            return Some(self.recast(I8X16, v));
        }
        self.float_convert(op, i)
    }

    /// A fused multiply-add as a value (I8X16), if CLIF has it. Where several operands are NaNs the instruction gives the
    /// first factor's, then the second's; that CLIF's code multiplies its second operand by its first has the same effect.
    pub(super) fn fma(&mut self, op: FmaOp, i: &Inst) -> Option<Value> {
        let f = op.parts();
        if f.kind > 3 {
            return None;
        }
        let ty = if f.double { F64X2 } else { F32X4 };
        let [first, second, added] = match f.order {
            0 => [i.a, i.c, i.b],
            1 => [i.b, i.a, i.c],
            _ => [i.b, i.c, i.a],
        };
        let [first, second, added] = [first, second, added].map(|n| {
            let v = self.vec(n);
            let v = self.recast(ty, v);
            if f.scalar { self.b.ins().extractlane(v, 0) } else { v }
        });
        let second = if f.kind & 2 != 0 { self.b.ins().fneg(second) } else { second };
        let added = if f.kind & 1 != 0 { self.b.ins().fneg(added) } else { added };
        let v = self.b.ins().fma(second, first, added);
        let v = if f.scalar { self.with_low(i.a, ty, v) } else { v };
        Some(self.recast(I8X16, v))
    }

    fn low_lane(&mut self, what: Arith, ty: Type, a: Value, b: Value) -> Value {
        let (x, y) = (self.b.ins().extractlane(a, 0), self.b.ins().extractlane(b, 0));
        let v = self.arith(what, scalar_of(ty), x, y);
        self.b.ins().insertlane(a, v, 0)
    }

    fn arith(&mut self, what: Arith, ty: Type, a: Value, b: Value) -> Value {
        match what {
            Arith::Add => self.b.ins().fadd(a, b),
            Arith::Sub => self.b.ins().fsub(a, b),
            Arith::Mul => self.b.ins().fmul(a, b),
            Arith::Div => self.b.ins().fdiv(a, b),
            // The second operand wins for NaNs and equal values, as MINPS and MAXPS have it.
            Arith::Min | Arith::Max => {
                let less = if what == Arith::Min {
                    self.b.ins().fcmp(FloatCC::LessThan, a, b)
                } else {
                    self.b.ins().fcmp(FloatCC::LessThan, b, a)
                };
                if ty.is_vector() {
                    let mask = self.recast(ty, less);
                    self.b.ins().bitselect(mask, a, b)
                } else {
                    self.b.ins().select(less, a, b)
                }
            }
        }
    }

    fn float_convert(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        use VecOp::*;
        let low = |this: &mut Self, n: u16, ty: Type| {
            let v = this.vec(n);
            let v = this.recast(ty, v);
            this.b.ins().extractlane(v, 0)
        };
        let v = match op {
            Sqrtps | Sqrtpd => {
                let b = self.vec(i.b);
                let b = self.recast(if op == Sqrtps { F32X4 } else { F64X2 }, b);
                self.b.ins().sqrt(b)
            }
            Sqrtss | Sqrtsd => {
                let ty = if op == Sqrtss { F32X4 } else { F64X2 };
                let x = low(self, i.b, ty);
                let v = self.b.ins().sqrt(x);
                self.with_low(i.a, ty, v)
            }
            Cvtss2sd => {
                let x = low(self, i.b, F32X4);
                let v = self.b.ins().fpromote(F64, x);
                self.with_low(i.a, F64X2, v)
            }
            Cvtsd2ss => {
                let x = low(self, i.b, F64X2);
                let v = self.b.ins().fdemote(F32, x);
                self.with_low(i.a, F32X4, v)
            }
            Cvtps2pd => {
                let b = self.vec(i.b);
                let b = self.recast(F32X4, b);
                self.b.ins().fvpromote_low(b)
            }
            Cvtpd2ps => {
                let b = self.vec(i.b);
                let b = self.recast(F64X2, b);
                self.b.ins().fvdemote(b)
            }
            Cvtdq2ps => {
                let b = self.vec(i.b);
                let b = self.recast(I32X4, b);
                self.b.ins().fcvt_from_sint(F32X4, b)
            }
            Cvttps2dq => {
                let b = self.vec(i.b);
                let b = self.recast(F32X4, b);
                self.b.ins().x86_cvtt2dq(I32X4, b)
            }
            _ => return None,
        };
        Some(self.recast(I8X16, v))
    }

    /// Vector `n` with its low lane replaced.
    fn with_low(&mut self, n: u16, ty: Type, v: Value) -> Value {
        let a = self.vec(n);
        let a = self.recast(ty, a);
        self.b.ins().insertlane(a, v, 0)
    }

    /// COMISx and UCOMISx: the flags as a word, and the comparison remembered for whoever branches on it.
    pub(super) fn float_compare(&mut self, op: VecToInt, i: &Inst) {
        let ty = if matches!(op, VecToInt::Comiss | VecToInt::Ucomiss) { F32X4 } else { F64X2 };
        let (a, b) = (self.vec(i.a), self.vec(i.b));
        let (a, b) = (self.recast(ty, a), self.recast(ty, b));
        let (a, b) = (self.b.ins().extractlane(a, 0), self.b.ins().extractlane(b, 0));
        let unordered = self.b.ins().fcmp(FloatCC::Unordered, a, b);
        if matches!(op, VecToInt::Comiss | VecToInt::Comisd) {
            // CLIF compares as UCOMISx does; COMISx sets the invalid flag for quiet NaNs too.
            self.beside(unordered, |this| {
                this.vec_to_int_call(i);
            });
        }
        let less = self.b.ins().fcmp(FloatCC::UnorderedOrLessThan, a, b);
        let equal = self.b.ins().fcmp(FloatCC::UnorderedOrEqual, a, b);
        let mut word = self.b.ins().uextend(I64, less);
        for (bit, place) in [(unordered, 2), (equal, 6)] {
            let bit = self.b.ins().uextend(I64, bit);
            let n = self.iconst(place);
            let bit = self.b.ins().ishl(bit, n);
            word = self.b.ins().bor(word, bit);
        }
        self.set(i.d, word);
        self.known[i.d as usize % crate::state::VALS].floats = Some((a, b));
    }

    /// Integer results that CLIF has.
    pub(super) fn vec_to_int_native(&mut self, op: VecToInt, i: &Inst) -> Option<Value> {
        use VecToInt::*;
        let a = self.vec(i.a);
        let imm = i.c as u8;
        let v = match op {
            Ptest => return Some(self.test_bits(i)),
            Pmovmskb => self.b.ins().vhigh_bits(I32, a),
            Movmskps | Movmskpd => {
                let a = self.recast(if op == Movmskps { I32X4 } else { I64X2 }, a);
                self.b.ins().vhigh_bits(I32, a)
            }
            Pextrb => self.b.ins().extractlane(a, imm & 15),
            Pextrw => {
                let a = self.recast(cranelift_codegen::ir::types::I16X8, a);
                self.b.ins().extractlane(a, imm & 7)
            }
            Pextrd => {
                let a = self.recast(I32X4, a);
                self.b.ins().extractlane(a, imm & 3)
            }
            Pextrq => {
                let a = self.recast(I64X2, a);
                return Some(self.b.ins().extractlane(a, imm & 1));
            }
            _ => return None,
        };
        Some(self.b.ins().uextend(cranelift_codegen::ir::types::I64, v))
    }

    /// PTEST: ZF where no bit is set in both, CF where none is in the second alone.
    fn test_bits(&mut self, i: &Inst) -> Value {
        let (a, b) = (self.vec(i.a), self.vec(i.b));
        let (both, rest) = (self.b.ins().band(a, b), self.b.ins().band_not(b, a));
        let none = |this: &mut Self, v: Value, place: i64| {
            let any = this.b.ins().vany_true(v);
            let one = this.b.ins().iconst(cranelift_codegen::ir::types::I8, 1);
            let none = this.b.ins().bxor(any, one);
            let none = this.b.ins().uextend(I64, none);
            let place = this.iconst(place);
            this.b.ins().ishl(none, place)
        };
        let (zf, cf) = (none(self, both, 6), none(self, rest, 0));
        self.b.ins().bor(zf, cf)
    }

    /// Vectors from integers that CLIF has.
    pub(super) fn vec_from_int_native(&mut self, op: VecFromInt, i: &Inst) -> Option<Value> {
        use VecFromInt::*;
        use cranelift_codegen::ir::types::{I8, I16, I16X8};
        let b = self.int(i.b);
        let imm = i.c as u8;
        let (ty, lane, lanes) = match op {
            Zext64 => return Some(self.vec_of_int(b)),
            Zext32 => {
                let b = self.zext(crate::ir::Ty::I32, b);
                return Some(self.vec_of_int(b));
            }
            Pinsrb => (I8X16, I8, 15),
            Pinsrw => (I16X8, I16, 7),
            Pinsrd => (I32X4, I32, 3),
            Pinsrq => (I64X2, cranelift_codegen::ir::types::I64, 1),
            Cvtsi2sd32 | Cvtsi2sd64 | Cvtsi2ss32 | Cvtsi2ss64 => {
                let b = if matches!(op, Cvtsi2sd32 | Cvtsi2ss32) { self.b.ins().ireduce(I32, b) } else { b };
                let (ty, scalar) = if matches!(op, Cvtsi2sd32 | Cvtsi2sd64) { (F64X2, F64) } else { (F32X4, F32) };
                let v = self.b.ins().fcvt_from_sint(scalar, b);
                let v = self.with_low(i.a, ty, v);
                return Some(self.recast(I8X16, v));
            }
        };
        let a = self.vec(i.a);
        let a = self.recast(ty, a);
        let b = if lane == cranelift_codegen::ir::types::I64 { b } else { self.b.ins().ireduce(lane, b) };
        let v = self.b.ins().insertlane(a, b, imm & lanes);
        Some(self.recast(I8X16, v))
    }
}
