//! Additions, subtractions, bitwise operations and comparisons (SDM 2: ADD, ADC, SUB, SBB, CMP, AND, OR, XOR, TEST, INC,
//! DEC, NEG, NOT, ADCX, ADOX).

use super::{Flow, Lifter};
use crate::helpers::integer as helper;
use crate::ir::build::Src;
use crate::ir::flags::CcKind;
use crate::ir::op::{Op, RmwOp};
use crate::ir::{Ty, Val};
use crate::state::flag;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Add => l.binary(i, Op::Add, RmwOp::Add, CcKind::Add),
        Mnemonic::Sub => l.binary(i, Op::Sub, RmwOp::Sub, CcKind::Sub),
        Mnemonic::And => l.binary(i, Op::And, RmwOp::And, CcKind::Logic),
        Mnemonic::Or => l.binary(i, Op::Or, RmwOp::Or, CcKind::Logic),
        Mnemonic::Xor => l.binary(i, Op::Xor, RmwOp::Xor, CcKind::Logic),
        Mnemonic::Adc => l.with_carry(i, Op::Add, RmwOp::Add, CcKind::Add),
        Mnemonic::Sbb => l.with_carry(i, Op::Sub, RmwOp::Sub, CcKind::Sub),
        Mnemonic::Cmp => l.cmp(i),
        Mnemonic::Test => l.test(i),
        Mnemonic::Inc => l.inc_dec(i, Op::Add, RmwOp::Add, CcKind::Inc),
        Mnemonic::Dec => l.inc_dec(i, Op::Sub, RmwOp::Sub, CcKind::Dec),
        Mnemonic::Neg => l.neg(i),
        Mnemonic::Not => l.not(i),
        Mnemonic::Adcx => l.add_chain(i, flag::CF),
        Mnemonic::Adox => l.add_chain(i, flag::OF),
        _ => return None,
    }
    Some(Flow::Next)
}

impl Lifter<'_> {
    /// Two-operand operation whose flags depend on result and source.
    fn binary(&mut self, i: &Instruction, op: Op, rmw: RmwOp, kind: CcKind) {
        let ty = self.op_ty(i, 0);
        if i.has_lock_prefix() {
            let src = self.src_op(i, 1);
            let addr = self.mem_address(i, ty.bytes() as usize);
            let value = self.b.value(src);
            let old = self.b.rmw(rmw, ty, addr, value);
            let res = self.b.op2(op, ty, old, src);
            self.b.set_flags(kind, ty, res, src);
            return;
        }
        if i.op0_kind() == OpKind::Memory {
            let src = self.src_op(i, 1);
            let (old, m) = self.read_write_op(i);
            let res = self.b.op2(op, ty, old, src);
            self.write_back(i, m, res);
            self.b.set_flags(kind, ty, res, src);
            return;
        }
        if i.op1_kind() == OpKind::Register && i.op0_register() == i.op1_register() {
            return self.binary_same(i, op, kind);
        }
        let src = self.src_op(i, 1);
        match self.wide_dest(i, 0) {
            Some(d) => {
                self.b.op2_to(op, ty, d, d, src);
                self.b.set_flags(kind, ty, d, flag_source(kind, src));
            }
            None => {
                let a = self.read_reg(i.op0_register());
                let res = self.b.op2(op, ty, a, src);
                self.b.set_flags(kind, ty, res, flag_source(kind, src));
                self.write_reg(i.op0_register(), res);
            }
        }
    }

    /// Both operands are the same register: clearing, testing and doubling idioms.
    fn binary_same(&mut self, i: &Instruction, op: Op, kind: CcKind) {
        let (ty, r) = (self.op_ty(i, 0), i.op0_register());
        match op {
            // Zero: the flags of 0 - 0 are those of the bitwise zero.
            Op::Xor | Op::Sub if ty >= Ty::I32 => {
                if let Some(d) = self.wide_dest(i, 0) {
                    self.b.mov_to(Ty::I64, d, 0);
                    self.b.set_flags(CcKind::Logic, ty, d, 0);
                }
            }
            Op::Xor | Op::Sub => {
                let zero = self.b.iconst(0);
                self.b.set_flags(CcKind::Logic, ty, zero, 0);
                self.write_reg(r, zero);
            }
            Op::And | Op::Or => {
                let v = self.read_reg(r);
                self.b.set_flags(CcKind::Logic, ty, v, 0);
                if ty == Ty::I32 {
                    self.write_reg(r, v);
                }
            }
            _ => {
                let a = self.read_reg(r);
                let res = self.b.op2(op, ty, a, a);
                self.b.set_flags(kind, ty, res, a);
                self.write_reg(r, res);
            }
        }
    }

    /// ADC and SBB.
    fn with_carry(&mut self, i: &Instruction, op: Op, rmw: RmwOp, kind: CcKind) {
        let ty = self.op_ty(i, 0);
        let src = self.src_op(i, 1);
        let src = self.b.value(src);
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let carry = self.b.get_carry();
            let sum = self.b.op2(Op::Add, ty, src, carry);
            let old = self.b.rmw(rmw, ty, addr, sum);
            let res = self.b.op2(op, ty, old, sum);
            self.b.set_flags_carry(kind, ty, res, src, carry);
            return;
        }
        let (old, m) = self.read_write_op(i);
        let carry = self.b.get_carry();
        let part = self.b.op2(op, ty, old, src);
        let res = self.b.op2(op, ty, part, carry);
        if m.is_some() {
            self.write_back(i, m, res);
            self.b.set_flags_carry(kind, ty, res, src, carry);
        } else {
            self.b.set_flags_carry(kind, ty, res, src, carry);
            self.write_back(i, m, res);
        }
    }

    fn cmp(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let a = self.read_op(i, 0);
        let src = self.src_op(i, 1);
        let res = self.b.op2(Op::Sub, ty, a, src);
        self.b.set_flags(CcKind::Sub, ty, res, src);
    }

    fn test(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let a = self.read_op(i, 0);
        if i.op1_kind() == OpKind::Register && i.op0_kind() == OpKind::Register && i.op0_register() == i.op1_register()
        {
            self.b.set_flags(CcKind::Logic, ty, a, 0);
            return;
        }
        let src = self.src_op(i, 1);
        let res = self.b.op2(Op::And, ty, a, src);
        self.b.set_flags(CcKind::Logic, ty, res, 0);
    }

    /// INC and DEC: CF stays.
    fn inc_dec(&mut self, i: &Instruction, op: Op, rmw: RmwOp, kind: CcKind) {
        let ty = self.op_ty(i, 0);
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let one = self.b.iconst(1);
            let old = self.b.rmw(rmw, ty, addr, one);
            let carry = self.b.get_carry();
            let res = self.b.op2(op, ty, old, 1);
            self.b.set_flags(kind, ty, res, carry);
            return;
        }
        if let Some(d) = self.wide_dest(i, 0) {
            let carry = self.b.get_carry();
            self.b.op2_to(op, ty, d, d, 1);
            self.b.set_flags(kind, ty, d, carry);
            return;
        }
        let (old, m) = self.read_write_op(i);
        let res = self.b.op2(op, ty, old, 1);
        self.write_back(i, m, res);
        let carry = self.b.get_carry();
        self.b.set_flags(kind, ty, res, carry);
    }

    fn neg(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let width = self.b.iconst(ty as i64);
            let old = self.b.call(helper::LOCK_NEG, &[addr, width]);
            let res = self.b.op1(Op::Neg, ty, old);
            self.b.set_flags(CcKind::Sub, ty, res, old);
            return;
        }
        let (old, m) = self.read_write_op(i);
        let res = self.b.op1(Op::Neg, ty, old);
        if m.is_some() {
            self.write_back(i, m, res);
            self.b.set_flags(CcKind::Sub, ty, res, old);
        } else {
            // The old value may be the register itself: it is read before it goes.
            self.b.set_flags(CcKind::Sub, ty, res, old);
            self.write_back(i, m, res);
        }
    }

    fn not(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let ones = self.b.iconst(-1);
            self.b.rmw(RmwOp::Xor, ty, addr, ones);
            return;
        }
        if let Some(d) = self.wide_dest(i, 0) {
            return self.b.op1_to(Op::Not, ty, d, d);
        }
        let (old, m) = self.read_write_op(i);
        let res = self.b.op1(Op::Not, ty, old);
        self.write_back(i, m, res);
    }

    /// ADCX and ADOX: carry in and out of one flag, the others stay.
    fn add_chain(&mut self, i: &Instruction, which: u64) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let a = self.read_op(i, 0);
        let flags = self.b.get_flags();
        let position = which.trailing_zeros() as i64;
        let shifted = self.b.op2(Op::Shr, Ty::I64, flags, position);
        let carry = self.b.op2(Op::And, Ty::I64, shifted, 1);
        let part = self.b.op2(Op::Add, ty, a, src);
        let first = self.b.op2(Op::CmpUlt, ty, part, src);
        let res = self.b.op2(Op::Add, ty, part, carry);
        let second = self.b.op2(Op::CmpUlt, ty, res, carry);
        let out = self.b.op2(Op::Or, Ty::I64, first, second);
        self.replace_flags(flags, which, &[(out, position)]);
        self.write_reg(i.op0_register(), res);
    }

    /// Replaces the flags in `mask` of the word `flags` by bits (0 or 1) at their positions, and sets the result.
    pub fn replace_flags(&mut self, flags: Val, mask: u64, bits: &[(Val, i64)]) {
        let word = self.merge_flags(flags, mask, bits);
        self.b.set_flags_raw(word);
    }

    /// The flag word [`Lifter::replace_flags`] sets.
    pub fn merge_flags(&mut self, flags: Val, mask: u64, bits: &[(Val, i64)]) -> Val {
        let mut word = self.b.op2(Op::And, Ty::I64, flags, (flag::ARITH & !mask) as i64);
        for (bit, position) in bits {
            let placed = if *position == 0 { *bit } else { self.b.op2(Op::Shl, Ty::I64, *bit, *position) };
            word = self.b.op2(Op::Or, Ty::I64, word, placed);
        }
        word
    }
}

/// Bitwise flags have no source: naming none spares the operation an operand.
fn flag_source(kind: CcKind, src: Src) -> Src {
    if kind == CcKind::Logic { Src::Imm(0) } else { src }
}
