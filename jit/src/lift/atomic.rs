//! XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B, and BOUND.

use super::{Flow, Lifter};
use crate::helpers::integer as helper;
use crate::ir::flags::CcKind;
use crate::ir::op::{Op, RmwOp};
use crate::ir::{Ty, Val, mem};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Xadd => l.xadd(i),
        Mnemonic::Cmpxchg => l.cmpxchg(i),
        Mnemonic::Cmpxchg8b => {
            let addr = l.mem_address(i, 8);
            l.b.call(helper::CMPXCHG8B, &[addr]);
        }
        Mnemonic::Cmpxchg16b => {
            // Alignment is checked before anything else touches the operand.
            let m = l.mem(i, 16, true);
            let addr = l.flat_address(m);
            let stack = l.b.iconst((m.flags & mem::STACK) as i64);
            l.b.call(helper::CMPXCHG16B, &[addr, stack]);
        }
        Mnemonic::Bound => l.bound(i),
        _ => return None,
    }
    Some(Flow::Next)
}

impl Lifter<'_> {
    fn xadd(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src_reg = i.op1_register();
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let src = self.read_reg(src_reg);
            let old = self.b.rmw(RmwOp::Add, ty, addr, src);
            let res = self.b.op2(Op::Add, ty, old, src);
            self.b.set_flags(CcKind::Add, ty, res, src);
            return self.write_reg(src_reg, old);
        }
        let (old, m) = self.read_write_op(i);
        let old = self.b.op1(Op::Mov, ty, old);
        let src = self.read_reg(src_reg);
        let res = self.b.op2(Op::Add, ty, old, src);
        if m.is_some() {
            self.write_back(i, m, res);
        }
        self.b.set_flags(CcKind::Add, ty, res, src);
        // The exchange comes first: with one register for both, the sum stays (SDM 2, XADD).
        self.write_reg(src_reg, old);
        if m.is_none() {
            self.write_back(i, m, res);
        }
    }

    /// CMPXCHG. Memory is written in either case (SDM 2, CMPXCHG).
    fn cmpxchg(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let rax = Val::gpr(reg::RAX);
        let new = self.read_reg(i.op1_register());
        if i.has_lock_prefix() {
            let addr = self.mem_address(i, ty.bytes() as usize);
            let old = self.b.cas(ty, addr, rax, new);
            let equal = self.b.op2(Op::CmpEq, ty, old, rax);
            return self.cmpxchg_end(ty, old, equal);
        }
        let (old, m) = self.read_write_op(i);
        let old = self.b.op1(Op::Mov, ty, old);
        let equal = self.b.op2(Op::CmpEq, ty, old, rax);
        if m.is_some() {
            let value = self.b.select(ty, equal, new, old);
            self.write_back(i, m, value);
            return self.cmpxchg_end(ty, old, equal);
        }
        // A register destination stays whole where the comparison failed. It may be the accumulator: then the two are
        // equal, and the new value must stay.
        let new = self.b.op1(Op::Mov, ty, new);
        self.cmpxchg_end(ty, old, equal);
        let place = self.wide_dest(i, 0);
        match place {
            Some(d) => self.b.select_to(Ty::I64, d, equal, new, d),
            None => {
                let value = self.b.select(ty, equal, new, old);
                self.write_back(i, m, value);
            }
        }
    }

    /// Flags, and the accumulator where the comparison failed.
    fn cmpxchg_end(&mut self, ty: Ty, old: Val, equal: Val) {
        let rax = Val::gpr(reg::RAX);
        let res = self.b.op2(Op::Sub, ty, rax, old);
        self.b.set_flags(CcKind::Sub, ty, res, old);
        match ty {
            Ty::I8 => {
                let v = self.b.op2(Op::Ins8, Ty::I64, rax, old);
                self.b.select_to(Ty::I64, rax, equal, rax, v);
            }
            Ty::I16 => {
                let v = self.b.op2(Op::Ins16, Ty::I64, rax, old);
                self.b.select_to(Ty::I64, rax, equal, rax, v);
            }
            _ => self.b.select_to(Ty::I64, rax, equal, rax, old),
        }
    }

    /// BOUND (legacy modes only): #BR if the signed index lies outside the two bounds.
    fn bound(&mut self, i: &Instruction) {
        let ty = if i.op0_kind() == OpKind::Register { self.op_ty(i, 0) } else { Ty::I32 };
        let bytes = ty.bytes() as usize;
        let index = self.read_reg(i.op0_register());
        // Silicon checks, reads and compares one bound after the other.
        let m = self.mem(i, bytes, false);
        let low = self.load(ty, m);
        let below = self.b.op2(Op::CmpSlt, ty, index, low);
        self.b.call(helper::BOUND, &[below]);
        let mut upper = *i;
        upper.set_memory_displacement64(i.memory_displacement64().wrapping_add(bytes as u64));
        let m = self.mem(&upper, bytes, false);
        let high = self.load(ty, m);
        let above = self.b.op2(Op::CmpSlt, ty, high, index);
        self.b.call(helper::BOUND, &[above]);
    }
}
