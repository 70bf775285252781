//! MUL, IMUL, DIV, IDIV, MULX and the decimal adjustments.

use super::operand::Gpr;
use super::{Flow, Lifter};
use crate::helpers::HelperId;
use crate::helpers::integer as helper;
use crate::ir::flags::CcKind;
use crate::ir::op::Op;
use crate::ir::{Ty, Val};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Mul => l.mul(i, false),
        Mnemonic::Imul if i.op_count() == 1 => l.mul(i, true),
        Mnemonic::Imul => l.imul(i),
        Mnemonic::Mulx => l.mulx(i),
        Mnemonic::Div => l.div(i, [helper::DIV8, helper::DIV16, helper::DIV32, helper::DIV64]),
        Mnemonic::Idiv => l.div(i, [helper::IDIV8, helper::IDIV16, helper::IDIV32, helper::IDIV64]),
        Mnemonic::Aaa => l.decimal(helper::AAA, 0),
        Mnemonic::Aas => l.decimal(helper::AAS, 0),
        Mnemonic::Daa => l.decimal(helper::DAA, 0),
        Mnemonic::Das => l.decimal(helper::DAS, 0),
        Mnemonic::Aam => l.decimal(helper::AAM, i.immediate(0) & 0xff),
        Mnemonic::Aad => l.decimal(helper::AAD, i.immediate(0) & 0xff),
        _ => return None,
    }
    Some(Flow::Next)
}

impl Lifter<'_> {
    /// One-operand MUL and IMUL. CF and OF tell whether the high half matters; SF, ZF, AF and PF are undefined (SDM 2,
    /// MUL): silicon sets SF, ZF and PF from the low half and clears AF.
    fn mul(&mut self, i: &Instruction, signed: bool) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 0);
        let rax = Val::gpr(reg::RAX);
        if ty <= Ty::I16 {
            return self.mul_narrow(ty, src, signed);
        }
        let low = self.b.op2(Op::Mul, ty, rax, src);
        let high = self.b.op2(if signed { Op::MulHiS } else { Op::MulHiU }, ty, rax, src);
        let excess = if signed { self.sign_excess(ty, low, high) } else { high };
        self.b.mov_to(ty, rax, low);
        self.b.mov_to(ty, Val::gpr(reg::RDX), high);
        self.b.set_flags(CcKind::Mul, ty, low, excess);
    }

    /// 8 and 16 bits: the whole product fits one value.
    fn mul_narrow(&mut self, ty: Ty, src: Val, signed: bool) {
        let op = if signed { Op::Sext } else { Op::Mov };
        let a = self.b.op1(op, ty, Val::gpr(reg::RAX));
        let b = self.b.op1(op, ty, src);
        let product = self.b.op2(Op::Mul, Ty::I64, a, b);
        let high = self.b.op2(Op::Shr, Ty::I64, product, ty.bits() as i64);
        let excess = if signed { self.sign_excess(ty, product, high) } else { high };
        self.b.set_flags(CcKind::Mul, ty, product, excess);
        self.write_gpr(Gpr { n: reg::RAX, ty: Ty::I16, high: false }, product);
        if ty == Ty::I16 {
            self.write_gpr(Gpr { n: reg::RDX, ty: Ty::I16, high: false }, high);
        }
    }

    /// Not zero if the high half is more than the low half's sign.
    fn sign_excess(&mut self, ty: Ty, low: Val, high: Val) -> Val {
        let sign = self.b.op2(Op::Sar, ty, low, ty.bits() as i64 - 1);
        self.b.op2(Op::Xor, ty, high, sign)
    }

    /// Two- and three-operand IMUL.
    fn imul(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let (first, second) = if i.op_count() == 2 { (0, 1) } else { (1, 2) };
        let a = self.read_op(i, first);
        let b = self.read_op(i, second);
        let low = self.b.op2(Op::Mul, ty, a, b);
        let high = if ty == Ty::I16 {
            let (a, b) = (self.b.op1(Op::Sext, ty, a), self.b.op1(Op::Sext, ty, b));
            let wide = self.b.op2(Op::Mul, Ty::I32, a, b);
            self.b.op2(Op::Shr, Ty::I32, wide, 16)
        } else {
            self.b.op2(Op::MulHiS, ty, a, b)
        };
        let excess = self.sign_excess(ty, low, high);
        self.write_reg(i.op0_register(), low);
        self.b.set_flags(CcKind::Mul, ty, low, excess);
    }

    /// MULX: no flags; where both destinations are one register it gets the high half (SDM 2, MULX).
    fn mulx(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 2);
        let rdx = Val::gpr(reg::RDX);
        let low = self.b.op2(Op::Mul, ty, rdx, src);
        let high = self.b.op2(Op::MulHiU, ty, rdx, src);
        self.write_reg(i.op1_register(), low);
        self.write_reg(i.op0_register(), high);
    }

    fn div(&mut self, i: &Instruction, by_width: [HelperId; 4]) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 0);
        self.b.call(by_width[ty as usize], &[src]);
    }

    fn decimal(&mut self, id: HelperId, operand: u64) {
        let v = self.b.iconst(operand as i64);
        self.b.call(id, &[v]);
    }
}
