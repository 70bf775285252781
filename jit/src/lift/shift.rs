//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD, and the BMI2 forms without flags.

use super::{Flow, Lifter};
use crate::helpers::integer as helper;
use crate::ir::flags::CcKind;
use crate::ir::op::Op;
use crate::ir::{Ty, Val};
use crate::state::{flag, reg};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => l.shift(i, Op::Shl, CcKind::Shl),
        Mnemonic::Shr => l.shift(i, Op::Shr, CcKind::Shr),
        Mnemonic::Sar => l.shift(i, Op::Sar, CcKind::Shr),
        Mnemonic::Rol => l.rotate(i, Op::Rol),
        Mnemonic::Ror => l.rotate(i, Op::Ror),
        Mnemonic::Rcl => l.rotate_carry(i, true),
        Mnemonic::Rcr => l.rotate_carry(i, false),
        Mnemonic::Shld => l.double_shift(i, true),
        Mnemonic::Shrd => l.double_shift(i, false),
        Mnemonic::Shlx => l.plain_shift(i, Op::Shl),
        Mnemonic::Shrx => l.plain_shift(i, Op::Shr),
        Mnemonic::Sarx => l.plain_shift(i, Op::Sar),
        Mnemonic::Rorx => l.plain_shift(i, Op::Ror),
        _ => return None,
    }
    Some(Flow::Next)
}

/// A shift count: known, or masked in a value.
#[derive(Clone, Copy)]
enum Count {
    Known(i64),
    Value(Val),
}

impl Lifter<'_> {
    /// The count in operand `n`, masked to 5 bits (6 for 64-bit operands).
    fn count(&mut self, i: &Instruction, n: u32, ty: Ty) -> Count {
        let mask = if ty == Ty::I64 { 63 } else { 31 };
        match i.op_kind(n) {
            OpKind::Register => Count::Value(self.b.op2(Op::And, Ty::I64, Val::gpr(reg::RCX), mask)),
            _ => Count::Known(i.immediate(n) as i64 & mask),
        }
    }

    fn shift(&mut self, i: &Instruction, op: Op, kind: CcKind) {
        let ty = self.op_ty(i, 0);
        match self.count(i, 1, ty) {
            Count::Known(0) => self.unshifted(i),
            Count::Known(c) => {
                let (a, m) = self.read_write_op(i);
                if let Some(d) = self.wide_dest(i, 0) {
                    let src = if c == 1 { self.b.op1(Op::Mov, ty, a) } else { self.b.op2(op, ty, a, c - 1) };
                    self.b.op2_to(op, ty, d, a, c);
                    return self.b.set_flags(kind, ty, d, src);
                }
                let res = self.b.op2(op, ty, a, c);
                let src = if c == 1 { self.b.op1(Op::Mov, ty, a) } else { self.b.op2(op, ty, a, c - 1) };
                self.write_back(i, m, res);
                self.b.set_flags(kind, ty, res, src);
            }
            Count::Value(c) => {
                let (a, m) = self.read_write_op(i);
                let res = self.b.op2(op, ty, a, c);
                let less = self.b.op2(Op::Sub, Ty::I64, c, 1);
                let src = self.b.op2(op, ty, a, less);
                self.write_back(i, m, res);
                self.b.set_flags_if(kind, ty, res, src, c);
            }
        }
    }

    /// A shift by 0: no flags; memory is still accessed for writing and a 32-bit register still zero-extended.
    fn unshifted(&mut self, i: &Instruction) {
        let (a, m) = self.read_write_op(i);
        self.write_back(i, m, a);
    }

    /// ROL and ROR change CF and OF only. OF is defined for a count of 1; for others silicon leaves it if a register is
    /// rotated by an immediate, and else has it as after the first step.
    fn rotate(&mut self, i: &Instruction, op: Op) {
        let ty = self.op_ty(i, 0);
        let top = ty.bits() as i64 - 1;
        let count = self.count(i, 1, ty);
        if let Count::Known(0) = count {
            return self.unshifted(i);
        }
        let (a, m) = self.read_write_op(i);
        let res = match count {
            Count::Known(c) => self.b.op2(op, ty, a, c),
            Count::Value(c) => self.b.op2(op, ty, a, c),
        };
        let of = match count {
            Count::Known(c) if c != 1 && m.is_none() => None,
            _ => Some(self.first_step_overflow(ty, op, a)),
        };
        self.write_back(i, m, res);
        let cf = match op {
            Op::Rol => self.b.op2(Op::And, Ty::I64, res, 1),
            _ => self.b.op2(Op::Shr, ty, res, top),
        };
        let flags = self.b.get_flags();
        let word = match of {
            Some(of) => self.merge_flags(flags, flag::CF | flag::OF, &[(cf, 0), (of, 11)]),
            None => self.merge_flags(flags, flag::CF, &[(cf, 0)]),
        };
        match count {
            Count::Known(_) => self.b.set_flags_raw(word),
            Count::Value(c) => self.b.set_flags_if(CcKind::Raw, Ty::I64, word, word, c),
        }
    }

    /// OF of a rotation by 1: the sign bit changes.
    fn first_step_overflow(&mut self, ty: Ty, op: Op, a: Val) -> Val {
        let step = self.b.op2(op, ty, a, 1);
        let changed = self.b.op2(Op::Xor, ty, step, a);
        self.b.op2(Op::Shr, ty, changed, ty.bits() as i64 - 1)
    }

    /// RCL and RCR: result and flags come from two pure helpers.
    fn rotate_carry(&mut self, i: &Instruction, left: bool) {
        let ty = self.op_ty(i, 0);
        let how = ty as i64 | (left as i64) << 4;
        let count = match self.count(i, 1, ty) {
            Count::Known(c) => self.b.iconst(c | how << 8),
            Count::Value(c) => self.b.op2(Op::Or, Ty::I64, c, how << 8),
        };
        let (a, m) = self.read_write_op(i);
        let flags = self.b.get_flags();
        let res = self.b.call(helper::RC_RESULT, &[a, count, flags]);
        let word = self.b.call(helper::RC_FLAGS, &[a, count, flags]);
        self.write_back(i, m, res);
        self.b.set_flags_raw(word);
    }

    fn double_shift(&mut self, i: &Instruction, left: bool) {
        let ty = self.op_ty(i, 0);
        let count = self.count(i, 2, ty);
        if let Count::Known(0) = count {
            return self.unshifted(i);
        }
        let (a, m) = self.read_write_op(i);
        let b = self.read_reg(i.op1_register());
        let (res, src, cond) = match (count, ty) {
            (_, Ty::I16) => return self.double_shift_16(i, left, count, (a, m), b),
            (Count::Known(c), _) => {
                let res = self.join(ty, left, a, b, c);
                (res, self.shifted(ty, left, a, c - 1), None)
            }
            (Count::Value(c), _) => {
                let (toward, away) = if left { (Op::Shl, Op::Shr) } else { (Op::Shr, Op::Shl) };
                let kept = self.b.op2(toward, ty, a, c);
                // Two steps, so that a count of 0 shifts the other operand out entirely.
                let step = self.b.op2(away, ty, b, 1);
                let rest = self.b.op2(Op::Xor, Ty::I64, c, ty.bits() as i64 - 1);
                let moved = self.b.op2(away, ty, step, rest);
                let res = self.b.op2(Op::Or, ty, kept, moved);
                let less = self.b.op2(Op::Sub, Ty::I64, c, 1);
                (res, self.b.op2(toward, ty, a, less), Some(c))
            }
        };
        self.write_back(i, m, res);
        let kind = if left { CcKind::Shl } else { CcKind::Shr };
        match cond {
            None => self.b.set_flags(kind, ty, res, src),
            Some(c) => self.b.set_flags_if(kind, ty, res, src, c),
        }
    }

    fn shifted(&mut self, ty: Ty, left: bool, a: Val, c: i64) -> Val {
        self.b.op2(if left { Op::Shl } else { Op::Shr }, ty, a, c)
    }

    /// `a` shifted by `c` (1 to width - 1) with bits of `b` coming in.
    fn join(&mut self, ty: Ty, left: bool, a: Val, b: Val, c: i64) -> Val {
        let kept = self.shifted(ty, left, a, c);
        let moved = self.shifted(ty, !left, b, ty.bits() as i64 - c);
        self.b.op2(Op::Or, ty, kept, moved)
    }

    /// 16-bit SHLD and SHRD. Counts above 16 are undefined (SDM 2, SHLD); silicon goes on with the first operand after the
    /// second, so three pieces lie side by side.
    fn double_shift_16(
        &mut self,
        i: &Instruction,
        left: bool,
        count: Count,
        (a, m): (Val, Option<super::operand::Mem>),
        b: Val,
    ) {
        let a16 = self.b.op1(Op::Mov, Ty::I16, a);
        let b16 = self.b.op1(Op::Mov, Ty::I16, b);
        let middle = self.b.op2(Op::Shl, Ty::I64, b16, 16);
        let high = self.b.op2(Op::Shl, Ty::I64, a16, 32);
        let part = self.b.op2(Op::Or, Ty::I64, middle, high);
        let wide = self.b.op2(Op::Or, Ty::I64, part, a16);
        let count = match count {
            Count::Known(c) => self.b.iconst(c),
            Count::Value(c) => c,
        };
        let less = self.b.op2(Op::Sub, Ty::I64, count, 1);
        let (op, down) = if left { (Op::Shl, 32) } else { (Op::Shr, 0) };
        let place = |l: &mut Self, c: Val| {
            let t = l.b.op2(op, Ty::I64, wide, c);
            let t = if down == 0 { t } else { l.b.op2(Op::Shr, Ty::I64, t, down) };
            l.b.op1(Op::Mov, Ty::I16, t)
        };
        let res = place(self, count);
        let src = place(self, less);
        self.write_back(i, m, res);
        let kind = if left { CcKind::Shl } else { CcKind::Shr };
        self.b.set_flags_if(kind, Ty::I16, res, src, count);
    }

    /// SHLX, SHRX, SARX, RORX: no flags.
    fn plain_shift(&mut self, i: &Instruction, op: Op) {
        let ty = self.op_ty(i, 0);
        let a = self.read_op(i, 1);
        let c = self.src_op(i, 2);
        let d = Val::gpr(i.op0_register().full_register().number());
        self.b.op2_to(op, ty, d, a, c);
    }
}
