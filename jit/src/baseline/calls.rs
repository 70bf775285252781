//! Helpers, segment checks, divisions, exceptions.

use super::asm::{Alu, Mem, R8, RAX, RBP, RCX, RDI, RDX, RSI, Reg, Unary, cc};
use super::{Cold, Emit, Target, exits, state, val};
use crate::helpers::integer::{DIV32, DIV64, IDIV32, IDIV64};
use crate::helpers::{self, HelperId, effect};
use crate::ir::{Inst, Ty, Val};
use crate::lower::Thunk;
use crate::runtime::exec::LEAVE_FAULT;
use crate::state::{CpuState, VALS, reg};
use std::mem::offset_of;

impl Emit<'_> {
    /// Calls a function: RDI is the CPU, or loaded with another argument last.
    pub(super) fn call(&mut self, target: Target) {
        let at = self.a.call();
        self.fixup(at, target);
        // It is at the frame's end.
        self.a.load(Ty::I64, RDI, Mem::at(RBP, 0));
    }

    /// Integer `d` = RAX.
    pub(super) fn take_result(&mut self, d: u16) {
        if d == Val::NONE.0 {
            return;
        }
        let r = self.scratch();
        self.a.mov(r, RAX);
        self.set(d, r);
    }

    /// Integer `d` = what the helper left in the state.
    fn take_helper_result(&mut self, d: u16) {
        if d == Val::NONE.0 {
            return;
        }
        let r = self.scratch();
        self.a.load(Ty::I64, r, state(offset_of!(CpuState, helper_result)));
        self.set(d, r);
    }

    /// An optional integer as an argument; it is in the state.
    fn argument(&mut self, to: Reg, n: u16) {
        if n == Val::NONE.0 {
            return self.a.mov_imm(to, 0);
        }
        self.a.load(Ty::I64, to, val(n as usize % VALS));
    }

    /// Leaves with the pending fault if EAX is not zero.
    fn leave_on_fault(&mut self) {
        self.a.test(Ty::I32, RAX, RAX);
        let from = self.a.jcc(cc::NE);
        self.cold.push(Cold::Fault { from });
    }

    pub(super) fn seg_addr(&mut self, i: &Inst) {
        self.before_call();
        self.set_rip(self.rip);
        self.a.mov_imm(RSI, i.imm as u64);
        self.argument(RDX, i.a);
        self.call(Target::Thunk(Thunk::SegAddr));
        self.leave_on_fault();
        self.take_helper_result(i.d);
    }

    /// Raises an exception known at translation: the helper's way is as good, and rare.
    pub(super) fn raise(&mut self, i: &Inst) {
        self.before_call();
        self.set_rip(self.rip);
        self.a.mov_imm(RSI, u64::MAX);
        self.a.mov_imm(RDX, i.imm as u64);
        self.call(Target::Thunk(Thunk::Helper));
        self.leave_with(LEAVE_FAULT);
    }

    fn call_helper(&mut self, thunk: Thunk, i: &Inst) {
        self.argument(RDX, i.a);
        self.argument(RCX, i.b);
        self.argument(R8, i.c);
        self.a.mov_imm(RSI, i.imm as u64 & 0xffff);
        self.call(Target::Thunk(thunk));
    }

    pub(super) fn helper(&mut self, i: &Inst) {
        if self.x87(i) {
            return;
        }
        self.before_call();
        if self.division(i) {
            return;
        }
        let h = helpers::helper(HelperId(i.imm as u16));
        if h.effects & effect::PURE != 0 && h.effects & effect::FAULTS == 0 {
            self.call_helper(Thunk::PureHelper, i);
            return self.take_result(i.d);
        }
        self.set_rip(self.rip);
        self.call_helper(Thunk::Helper, i);
        if h.effects & effect::FAULTS != 0 {
            self.leave_on_fault();
        }
        for n in (0..16).filter(|n| h.effects >> n & 1 != 0) {
            self.regs.forget(n);
        }
        if h.effects & effect::X87 != 0 {
            self.x87_lent = false;
        }
        if h.effects & effect::SETS_FLAGS != 0 {
            self.flags = None;
        }
        self.wrote_behind = true;
        self.take_helper_result(i.d);
    }

    /// The call of a division helper, with the host's division for what cannot fault and fits it; `false`: another helper.
    fn division(&mut self, i: &Inst) -> bool {
        let (ty, signed) = match HelperId(i.imm as u16) {
            DIV32 => (Ty::I32, false),
            DIV64 => (Ty::I64, false),
            IDIV32 => (Ty::I32, true),
            IDIV64 => (Ty::I64, true),
            _ => return false,
        };
        let mut slow = Vec::with_capacity(2);
        self.argument(RCX, i.a);
        self.a.load(ty, RAX, val(reg::RAX));
        if signed {
            // The dividend is no wider than the quotient, and the divisor neither 0 nor -1.
            self.a.sign_to_rdx(ty);
            self.a.alu(Alu::Cmp, ty, RDX, val(reg::RDX));
            slow.push(self.a.jcc(cc::NE));
            self.a.lea(ty, RSI, Mem::at(RCX, 1));
            self.a.alu_imm(Alu::Cmp, ty, RSI, 1);
            slow.push(self.a.jcc(cc::BE));
            self.a.unary(Unary::Idiv, ty, RCX);
        } else {
            // The quotient fits if the high half is below the divisor, which is then not 0.
            self.a.load(ty, RDX, val(reg::RDX));
            self.a.alu(Alu::Cmp, ty, RDX, RCX);
            slow.push(self.a.jcc(cc::AE));
            self.a.unary(Unary::Div, ty, RCX);
        }
        for (n, r) in [(reg::RAX, RAX), (reg::RDX, RDX)] {
            self.regs.forget(n);
            self.a.store(Ty::I64, val(n), r);
        }
        let back = self.a.here();
        let rip = self.rip;
        self.cold.extend(slow.into_iter().map(|from| Cold::Helper { from, back, call: *i, rip }));
        true
    }

    /// A helper call beside the block's code: everything is in the state before and after it.
    pub(super) fn slow_helper(&mut self, i: &Inst, rip: u64) {
        self.set_rip(rip);
        self.call_helper(Thunk::Helper, i);
        self.a.test(Ty::I32, RAX, RAX);
        let on = self.a.jcc(cc::E);
        self.leave_with(exits::FAULT);
        self.a.land(on);
    }
}
