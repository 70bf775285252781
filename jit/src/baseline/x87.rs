//! x87 instructions, executed by the host's x87 as they are: see [`crate::helpers::x87::native`].

use super::asm::{Alu, RAX, RCX, cc};
use super::memory::Need;
use super::{Cold, Emit, Target, state};
use crate::helpers::HelperId;
use crate::helpers::x87::native::{self, ALL_MASKED, Native};
use crate::helpers::x87::{
    ARITHMETIC, COMPARE, FCLEX, FCMOV, FLDCW, FSTCW, FSTSW, Insn, LOAD, STACK, STORE, UNARY, WAIT,
};
use crate::ir::{Inst, Op, Ty, Val};
use crate::lower::Thunk;
use crate::runtime::exec::LEAVE_INTERPRET;
use crate::state::{CpuState, X87, flag};
use std::mem::offset_of;

const FCW: usize = offset_of!(CpuState, x87) + offset_of!(X87, fcw);
const FIP: usize = offset_of!(CpuState, x87) + offset_of!(X87, fip);

impl Emit<'_> {
    /// Emits the call of an x87 helper as host code; `false` if it has none.
    pub(super) fn x87(&mut self, i: &Inst) -> bool {
        match HelperId(i.imm as u16) {
            // The control word is always in the state.
            FSTCW => {
                let r = self.scratch();
                self.a.load(Ty::I16, r, state(FCW));
                self.set(i.d, r);
            }
            // With all exceptions masked none is pending.
            WAIT => self.lend_x87(),
            FSTSW => {
                self.lend_x87();
                let r = self.scratch();
                self.a.bytes(&[0xdf, 0xe0]);
                self.a.zext(Ty::I16, r, RAX);
                self.set(i.d, r);
            }
            FCLEX => {
                self.lend_x87();
                self.a.bytes(&native::FNCLEX[..2]);
            }
            FLDCW => {
                self.lend_x87();
                self.load_control(i);
            }
            id @ (LOAD | STORE | STACK | FCMOV | ARITHMETIC | COMPARE | UNARY) => {
                let Some(n) = self.x87_constant(i).and_then(|c| native::encode(id, Insn::unpack(c as u64))) else {
                    return false;
                };
                self.lend_x87();
                self.native(i, n);
            }
            _ => return false,
        }
        true
    }

    /// The constant that the instruction's first operand was set to.
    fn x87_constant(&self, i: &Inst) -> Option<i64> {
        let sets = |s: &&Inst| s.off == i.off && s.d == i.a && s.op == Op::Mov && s.a == Val::IMM.0;
        self.block.insts.iter().find(sets).map(|s| s.imm)
    }

    fn native(&mut self, i: &Inst, n: Native) {
        let code = [n.code[0], n.code[1]];
        let memory = n.memory.map(|m| {
            let access = Inst { a: i.b, imm: 0, ..*i };
            self.host(&access, m.bytes as i32, Need { write: m.write, aligned: false })
        });
        self.store_rip(FIP, self.rip);
        if let Some(m) = memory {
            self.a.lea(Ty::I64, RAX, m);
            // By RAX rather than RDI.
            return self.a.bytes(&[code[0], code[1] & !7]);
        }
        if i.b != Val::NONE.0 {
            // FCMOV, after a look at its condition.
            let condition = self.int(i.b);
            self.a.test(Ty::I32, condition, condition);
            return self.a.bytes(&n.code[2..4]);
        }
        self.a.bytes(&code);
        if n.to_flags {
            let r = self.scratch();
            // pushfq; pop rax
            self.a.bytes(&[0x9c, 0x58]);
            self.a.alu_imm(Alu::And, Ty::I32, RAX, flag::ARITH as i32);
            self.a.mov(r, RAX);
            self.set(i.d, r);
        }
    }

    /// FLDCW; words that unmask exceptions are the interpreter's.
    fn load_control(&mut self, i: &Inst) {
        let v = self.int(i.a);
        self.a.zext(Ty::I16, RAX, v);
        self.a.mov(RCX, RAX);
        self.a.alu_imm(Alu::And, Ty::I32, RCX, ALL_MASKED.into());
        self.a.alu_imm(Alu::Cmp, Ty::I32, RCX, ALL_MASKED.into());
        let from = self.a.jcc(cc::NE);
        self.cold.push(Cold::Leave { from, rip: self.rip, code: LEAVE_INTERPRET });
        self.a.alu_imm(Alu::And, Ty::I32, RAX, X87::FCW_DEFINED.into());
        self.a.alu_imm(Alu::Or, Ty::I32, RAX, X87::FCW_FIXED.into());
        self.a.store(Ty::I16, state(FCW), RAX);
        self.a.lea(Ty::I64, RAX, state(FCW));
        // fldcw [rax]
        self.a.bytes(&[0xd9, 0x28]);
    }

    /// From here to the end of the block, or a helper that takes them back, the guest's registers are in the host's x87.
    fn lend_x87(&mut self) {
        if std::mem::replace(&mut self.x87_lent, true) {
            return;
        }
        self.before_call();
        self.a.alu_imm(Alu::Cmp, Ty::I32, state(offset_of!(CpuState, x87_lent)), 0);
        let from = self.a.jcc(cc::E);
        let back = self.a.here();
        self.cold.push(Cold::LendX87 { from, back, rip: self.rip });
    }

    /// Loads the host's x87, or leaves the instruction to the interpreter.
    pub(super) fn load_x87(&mut self, rip: u64) {
        self.call(Target::Thunk(Thunk::LendX87));
        self.a.test(Ty::I32, RAX, RAX);
        let on = self.a.jcc(cc::NE);
        self.set_rip(rip);
        self.leave_with(LEAVE_INTERPRET);
        self.a.land(on);
        self.a.lea(Ty::I64, RAX, state(offset_of!(CpuState, x87_image)));
        // By RAX rather than RDI.
        self.a.bytes(&[native::FRSTOR_RDI[0], native::FRSTOR_RDI[1] & !7]);
    }
}
