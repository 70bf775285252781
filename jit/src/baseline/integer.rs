//! Integer operations.

use super::asm::{Alu, Mem, RAX, RCX, RDX, Reg, Shift, Unary, cc};
use super::{Emit, HostFlags};
use crate::ir::flags::CcKind;
use crate::ir::{Inst, Op, Ty, Val};

/// The constant of an operation as an immediate of its width, if it fits one.
fn immediate(ty: Ty, imm: i64) -> Option<i32> {
    match ty {
        Ty::I64 => i32::try_from(imm).ok(),
        _ => Some(imm as i32),
    }
}

impl Emit<'_> {
    pub(super) fn alu_op(&mut self, n: usize, i: &Inst) {
        match i.op {
            Op::Mov => self.mov(i),
            Op::Add | Op::Sub | Op::And | Op::Or | Op::Xor => self.binary(n, i),
            Op::CmpEq | Op::CmpNe | Op::CmpUlt | Op::CmpUle | Op::CmpSlt => self.compare(i),
            Op::Select => {
                let c = self.int(i.a);
                self.a.test(Ty::I64, c, c);
                self.choose(cc::NE, i);
            }
            Op::Lea => self.lea(i),
            Op::Ins8 | Op::Ins8h | Op::Ins16 | Op::Ext8h => self.insert(n, i),
            Op::Mul | Op::MulHiU | Op::MulHiS => self.multiply(i),
            Op::Shl | Op::Shr | Op::Sar | Op::Rol | Op::Ror => self.shift(n, i),
            Op::Sext => {
                let a = self.int(i.a);
                let r = self.scratch();
                self.a.sext(i.ty, r, a);
                self.set(i.d, r);
            }
            Op::Clz | Op::Ctz | Op::Popcnt => self.count(i),
            _ => self.unary(n, i),
        }
    }

    /// Second operand: its register, or RAX with the constant.
    fn src(&mut self, i: &Inst) -> Reg {
        if i.b == Val::IMM.0 {
            self.a.mov_imm(RAX, i.imm as u64);
            return RAX;
        }
        self.int(i.b)
    }

    /// Cuts a result of 8 or 16 bits to its width; wider operations do that by themselves.
    pub(super) fn cut(&mut self, ty: Ty, r: Reg) {
        if matches!(ty, Ty::I8 | Ty::I16) {
            self.a.zext(ty, r, r);
        }
    }

    fn mov(&mut self, i: &Inst) {
        if i.a == Val::IMM.0 {
            let r = self.scratch();
            self.a.mov_imm(r, i.imm as u64 & i.ty.mask());
            return self.set(i.d, r);
        }
        let a = self.int(i.a);
        let r = self.scratch();
        self.a.zext(i.ty, r, a);
        self.set(i.d, r);
    }

    fn binary(&mut self, n: usize, i: &Inst) {
        let (op, kind) = match i.op {
            Op::Add => (Alu::Add, CcKind::Add),
            Op::Sub => (Alu::Sub, CcKind::Sub),
            Op::And => (Alu::And, CcKind::Logic),
            Op::Or => (Alu::Or, CcKind::Logic),
            _ => (Alu::Xor, CcKind::Logic),
        };
        // Operands first: loads change no flags, and a copy must not push an operand out of its register.
        let constant = (i.b == Val::IMM.0).then(|| immediate(i.ty, i.imm)).flatten();
        let b = if constant.is_none() { Some(self.src(i)) } else { None };
        let r = self.copy_of_a(n, i);
        match (constant, b) {
            (Some(v), _) => self.a.alu_imm(op, i.ty, r, v),
            (_, Some(b)) => self.a.alu(op, i.ty, r, b),
            _ => {}
        }
        self.cut(i.ty, r);
        self.set(i.d, r);
        self.host = Some(HostFlags { value: i.d, ty: i.ty, kind });
    }

    fn compare(&mut self, i: &Inst) {
        let cond = match i.op {
            Op::CmpEq => cc::E,
            Op::CmpNe => cc::NE,
            Op::CmpUlt => cc::B,
            Op::CmpUle => cc::BE,
            _ => cc::L,
        };
        let a = self.int(i.a);
        match (i.b == Val::IMM.0).then(|| immediate(i.ty, i.imm)).flatten() {
            Some(v) => self.a.alu_imm(Alu::Cmp, i.ty, a, v),
            None => {
                let b = self.src(i);
                self.a.alu(Alu::Cmp, i.ty, a, b);
            }
        }
        self.set_condition(cond, i.d);
    }

    /// Integer `d` = 1 if the host's condition holds else 0.
    pub(super) fn set_condition(&mut self, cond: u8, d: u16) {
        let r = self.scratch();
        self.a.setcc(cond, r);
        self.a.zext(Ty::I8, r, r);
        self.set(d, r);
    }

    /// `d` = the host's condition ? b : c, of a `select`.
    pub(super) fn choose(&mut self, cond: u8, i: &Inst) {
        let (yes, no) = (self.int(i.b), self.int(i.c));
        let r = self.scratch();
        self.a.mov(r, no);
        self.a.cmov(cond, i.ty, r, yes);
        self.cut(i.ty, r);
        self.set(i.d, r);
    }

    fn lea(&mut self, i: &Inst) {
        let base = (i.a != Val::NONE.0).then(|| self.int(i.a));
        let index = (i.b != Val::NONE.0).then(|| (self.int(i.b), i.c as u8 & 3));
        let r = self.scratch();
        match i32::try_from(i.imm) {
            _ if base.is_none() && index.is_none() => self.a.mov_imm(r, i.imm as u64 & i.ty.mask()),
            Ok(disp) => self.a.lea(i.ty, r, Mem { base, index, disp }),
            Err(_) => {
                self.a.mov_imm(RAX, i.imm as u64);
                self.a.lea(Ty::I64, r, Mem { base, index, disp: 0 });
                self.a.lea(i.ty, r, Mem::indexed(r, RAX, 0));
            }
        }
        self.cut(i.ty, r);
        self.set(i.d, r);
    }

    fn insert(&mut self, n: usize, i: &Inst) {
        if i.op == Op::Ext8h {
            let a = self.int(i.a);
            self.a.mov(RAX, a);
            let r = self.scratch();
            self.a.movzx_ah(RDX);
            self.a.mov(r, RDX);
            return self.set(i.d, r);
        }
        let b = self.src(i);
        let r = self.copy_of_a(n, i);
        match i.op {
            Op::Ins8 => self.a.mov_part(Ty::I8, r, b),
            Op::Ins16 => self.a.mov_part(Ty::I16, r, b),
            _ => {
                self.a.mov(RCX, b);
                self.a.mov(RAX, r);
                self.a.mov_to_ah(RCX);
                self.a.mov(r, RAX);
            }
        }
        self.set(i.d, r);
    }

    fn multiply(&mut self, i: &Inst) {
        let a = self.int(i.a);
        let b = self.src(i);
        let r = self.scratch();
        let (ty, signed) = (i.ty, i.op == Op::MulHiS);
        if i.op == Op::Mul {
            self.a.mov(r, a);
            self.a.imul(if ty == Ty::I64 { Ty::I64 } else { Ty::I32 }, r, b);
        } else if ty == Ty::I64 {
            // The constant, if it is one, is in RAX already.
            let other = if b == RAX { a } else { b };
            if b != RAX {
                self.a.mov(RAX, a);
            }
            self.a.unary(if signed { Unary::Imul } else { Unary::Mul }, ty, other);
            self.a.mov(r, RDX);
        } else {
            for (to, from) in [(RCX, b), (r, a)] {
                if signed { self.a.sext(ty, to, from) } else { self.a.zext(ty, to, from) }
            }
            self.a.imul(Ty::I64, r, RCX);
            self.a.shift_imm(Shift::Shr, Ty::I64, r, ty.bits() as u8);
            if ty == Ty::I32 {
                self.a.zext(ty, r, r);
            }
        }
        self.cut(ty, r);
        self.set(i.d, r);
    }

    fn shift(&mut self, n: usize, i: &Inst) {
        let op = match i.op {
            Op::Shl => Shift::Shl,
            Op::Shr => Shift::Shr,
            Op::Sar => Shift::Sar,
            Op::Rol => Shift::Rol,
            _ => Shift::Ror,
        };
        if i.b != Val::IMM.0 {
            let b = self.int(i.b);
            self.a.mov(RCX, b);
        }
        let r = self.copy_of_a(n, i);
        let rotates = matches!(op, Shift::Rol | Shift::Ror);
        // Shifts of 8 and 16 bits count to 31, so bits may leave altogether: they are done on 32 bits. Rotations count
        // modulo the width, which divides 32.
        let narrow = matches!(i.ty, Ty::I8 | Ty::I16) && !rotates;
        let ty = if narrow { Ty::I32 } else { i.ty };
        match op {
            Shift::Shr if narrow => self.a.zext(i.ty, r, r),
            Shift::Sar if narrow => self.a.sext(i.ty, r, r),
            _ => {}
        }
        if i.b == Val::IMM.0 {
            let count = i.imm as u8 & if i.ty == Ty::I64 { 63 } else { 31 };
            self.a.shift_imm(op, ty, r, count);
        } else {
            self.a.shift_cl(op, ty, r);
        }
        if i.ty == Ty::I32 {
            // A shift by 0 leaves the register as it was, the upper half too.
            self.a.zext(Ty::I32, r, r);
        }
        self.cut(i.ty, r);
        self.set(i.d, r);
    }

    /// Leading zeros, trailing zeros, ones.
    fn count(&mut self, i: &Inst) {
        let a = self.int(i.a);
        let r = self.scratch();
        let ty = if i.ty == Ty::I64 { Ty::I64 } else { Ty::I32 };
        self.a.zext(i.ty, r, a);
        let bits = i.ty.bits() as u64;
        match i.op {
            Op::Popcnt => self.a.popcnt(ty, r, r),
            Op::Clz => {
                // 0 gives 2 * width - 1, which the exclusive or makes the width.
                self.a.mov_imm(RCX, 2 * bits - 1);
                self.a.bit_scan(true, ty, r, r);
                self.a.cmov(cc::E, ty, r, RCX);
                self.a.alu_imm(Alu::Xor, ty, r, bits as i32 - 1);
            }
            _ => {
                self.a.mov_imm(RCX, bits);
                self.a.bit_scan(false, ty, r, r);
                self.a.cmov(cc::E, ty, r, RCX);
            }
        }
        self.set(i.d, r);
    }

    fn unary(&mut self, n: usize, i: &Inst) {
        let r = self.copy_of_a(n, i);
        match (i.op, i.ty) {
            (Op::Not, ty) => self.a.unary(Unary::Not, ty, r),
            (Op::Neg, ty) => self.a.unary(Unary::Neg, ty, r),
            (Op::Bswap, Ty::I16) => {
                self.a.bswap(Ty::I32, r);
                self.a.shift_imm(Shift::Shr, Ty::I32, r, 16);
            }
            (Op::Bswap, Ty::I32 | Ty::I64) => self.a.bswap(i.ty, r),
            // A byte is its own reverse; nothing else comes here.
            _ => {}
        }
        self.cut(i.ty, r);
        self.set(i.d, r);
    }
}
