//! Near control transfers: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ.

use super::operand::Gpr;
use super::stack::stack_operand;
use super::{Flow, Lifter};
use crate::helpers::system as helper;
use crate::ir::op::Op;
use crate::ir::{Ty, Val, mem};
use crate::state::{mode, reg};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    if i.is_jcc_short_or_near() {
        let cond = l.condition(i);
        l.branch(cond, i);
        return Some(Flow::End);
    }
    match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_short_or_near() => {
            l.check_target(i, None);
            l.jump(i);
        }
        Mnemonic::Jmp if i.is_jmp_near_indirect() => {
            let target = l.indirect_target(i);
            l.b.jmp_ind(target);
        }
        Mnemonic::Call if i.is_call_near() => {
            l.check_target(i, None);
            l.push_return(i);
            l.jump(i);
        }
        Mnemonic::Call if i.is_call_near_indirect() => {
            let target = l.indirect_target(i);
            // The target may be rSP itself or memory based on it: taken before the push.
            let target = if target.is_gpr() { l.b.op1(Op::Mov, Ty::I64, target) } else { target };
            l.push_return(i);
            l.b.jmp_ind(target);
        }
        Mnemonic::Ret => l.ret(i),
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => l.loop_insn(i),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
            let ty = counter_ty(i);
            let zero = l.b.op2(Op::CmpEq, ty, Val::gpr(reg::RCX), 0);
            l.branch(zero, i);
        }
        _ => return None,
    }
    Some(Flow::End)
}

/// Width of the count register of LOOPcc and JrCXZ: the address size.
fn counter_ty(i: &Instruction) -> Ty {
    match i.op_code().address_size() {
        16 => Ty::I16,
        32 => Ty::I32,
        _ => Ty::I64,
    }
}

impl Lifter<'_> {
    /// Branches if `taken`.
    fn branch(&mut self, taken: Val, i: &Instruction) {
        self.check_target(i, Some(taken));
        self.branch_if(taken, i);
    }

    /// The end of a direct jump or call.
    fn jump(&mut self, i: &Instruction) {
        match self.cut_target(i) {
            Some(target) => self.b.jmp_ind(target),
            None => self.b.jmp(i.near_branch_target()),
        }
    }

    /// The end of a direct conditional branch.
    fn branch_if(&mut self, taken: Val, i: &Instruction) {
        match self.cut_target(i) {
            Some(target) => {
                let next = self.rip_value(self.next);
                let target = self.b.select(Ty::I64, taken, target, next);
                self.b.jmp_ind(target);
            }
            None => self.b.br(taken, i.near_branch_target()),
        }
    }

    /// The target of a direct branch of 16 bits in relative code: the cut to IP is made where it runs.
    fn cut_target(&mut self, i: &Instruction) -> Option<Val> {
        if i.op0_kind() != OpKind::NearBranch16 || !self.has(mode::RELATIVE) {
            return None;
        }
        let target = self.rip_value(i.near_branch_target());
        Some(self.b.op1(Op::Mov, Ty::I16, target))
    }

    /// #GP(0) if a direct branch that is taken leads to an address that is not canonical, before it has any effect. With
    /// 57-bit addresses, which the mode word does not tell, it may be canonical all the same.
    fn check_target(&mut self, i: &Instruction, taken: Option<Val>) {
        let target = self.page.wrapping_add(i.near_branch_target()) as i64;
        if !self.long64() || target << 16 >> 16 == target {
            return;
        }
        let taken = taken.unwrap_or_else(|| self.b.iconst(1));
        let target = self.b.iconst(target);
        self.b.call(helper::CHECK_BRANCH, &[taken, target]);
    }

    /// Target of an indirect near branch, cut to the operand size. Whether it is canonical shows at the fetch.
    fn indirect_target(&mut self, i: &Instruction) -> Val {
        let ty = self.op_ty(i, 0);
        let v = self.read_op(i, 0);
        if ty < Ty::I64 && i.op0_kind() == OpKind::Register { self.b.op1(Op::Mov, ty, v) } else { v }
    }

    fn push_return(&mut self, i: &Instruction) {
        let ret = self.rip_value(self.next);
        self.push(stack_operand(i), ret);
    }

    /// RET: the operand size comes from the code, the stack grows back by it and the immediate.
    fn ret(&mut self, i: &Instruction) {
        use iced_x86::Code;
        let ty = match i.code() {
            Code::Retnw | Code::Retnw_imm16 => Ty::I16,
            Code::Retnd | Code::Retnd_imm16 => Ty::I32,
            _ => Ty::I64,
        };
        let extra = if i.op_count() > 0 { i.immediate(0) as i64 & 0xffff } else { 0 };
        let m = self.stack_at(0, ty.bytes() as usize, false);
        let target = self.b.load(ty, m.addr, m.disp, m.flags | mem::STACK);
        self.move_sp(ty.bytes() as i64 + extra);
        self.b.jmp_ind(target);
    }

    fn loop_insn(&mut self, i: &Instruction) {
        let ty = counter_ty(i);
        let rcx = Val::gpr(reg::RCX);
        let left = self.b.op2(Op::Sub, ty, rcx, 1);
        let mut go = self.b.op2(Op::CmpNe, ty, left, 0);
        if i.mnemonic() != Mnemonic::Loop {
            let cc = if i.mnemonic() == Mnemonic::Loope { 4 } else { 5 };
            let cond = self.b.get_cond(cc);
            go = self.b.op2(Op::And, Ty::I64, go, cond);
        }
        self.check_target(i, Some(go));
        self.write_gpr(Gpr { n: reg::RCX, ty, high: false }, left);
        self.branch_if(go, i);
    }
}
