//! x87 instructions, executed by the host's x87 as they are: see [`crate::helpers::x87::native`].

use super::memory::Need;
use super::{Lower, Thunk, inline_name};
use crate::helpers::HelperId;
use crate::helpers::x87::native::{self, ALL_MASKED, Native};
use crate::helpers::x87::{
    ARITHMETIC, COMPARE, FCLEX, FCMOV, FLDCW, FSTCW, FSTSW, Insn, LOAD, STACK, STORE, UNARY, WAIT,
};
use crate::ir::{Block, Inst, Ty, Val};
use crate::state::{CpuState, X87, flag};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value};
use cranelift_codegen::isa::CallConv;
use std::mem::offset_of;

const FCW: i32 = (offset_of!(CpuState, x87) + offset_of!(X87, fcw)) as i32;
const FIP: i32 = (offset_of!(CpuState, x87) + offset_of!(X87, fip)) as i32;

impl Lower<'_, '_> {
    /// Lowers the call of an x87 helper to host code; `false` if it has none.
    pub(super) fn x87(&mut self, block: &Block, i: &Inst) -> bool {
        let rip = self.rip_of(block, i);
        match HelperId(i.imm as u16) {
            // The control word is always in the state.
            FSTCW => {
                let v = self.b.ins().uload16(I64, self.state_mem, self.env, FCW);
                self.set(i.d, v);
            }
            // With all exceptions masked none is pending.
            WAIT => self.lend_x87(rip),
            FSTSW => {
                self.lend_x87(rip);
                let v = self.inline_result(native::FNSTSW_RDI);
                let v = self.zext(Ty::I16, v);
                self.set(i.d, v);
            }
            FCLEX => {
                self.lend_x87(rip);
                self.inline(native::FNCLEX, None);
            }
            FLDCW => {
                self.lend_x87(rip);
                self.load_control(rip, i);
            }
            id @ (LOAD | STORE | STACK | FCMOV | ARITHMETIC | COMPARE | UNARY) => {
                let operand = self.int(i.a);
                let insn = self.folded(operand, 0).map(|c| Insn::unpack(c as u64));
                let Some(n) = insn.and_then(|insn| native::encode(id, insn)) else { return false };
                self.lend_x87(rip);
                self.native(rip, i, n);
            }
            _ => return false,
        }
        true
    }

    fn native(&mut self, rip: u64, i: &Inst, n: Native) {
        let argument = match n.memory {
            Some(m) => {
                let linear = self.int(i.b);
                let host = self.host(linear, 0, m.bytes, if m.write { Need::Write } else { Need::Read });
                Some(self.address(host))
            }
            // The condition of FCMOV.
            None if i.b != Val::NONE.0 => Some(self.int(i.b)),
            None => None,
        };
        let at = self.rip_value(rip);
        self.b.ins().store(self.state_mem, at, self.env, FIP);
        if n.to_flags {
            let flags = self.inline_result(n.code);
            let arithmetic = self.iconst(flag::ARITH as i64);
            let flags = self.b.ins().band(flags, arithmetic);
            self.set(i.d, flags);
        } else {
            self.inline(n.code, argument);
        }
    }

    /// FLDCW; words that unmask exceptions are the interpreter's.
    fn load_control(&mut self, rip: u64, i: &Inst) {
        let v = self.int(i.a);
        let v = self.zext(Ty::I16, v);
        let masks = self.iconst(ALL_MASKED as i64);
        let masked = self.b.ins().band(v, masks);
        let unmasked = self.b.ins().icmp(IntCC::NotEqual, masked, masks);
        self.interpret_if(unmasked, rip);
        let defined = self.iconst(X87::FCW_DEFINED as i64);
        let v = self.b.ins().band(v, defined);
        let fixed = self.iconst(X87::FCW_FIXED as i64);
        let v = self.b.ins().bor(v, fixed);
        self.b.ins().istore16(self.state_mem, v, self.env, FCW);
        let at = self.iconst(FCW as i64);
        let at = self.b.ins().iadd(self.env, at);
        self.inline(native::FLDCW_RDI, Some(at));
    }

    /// From here to the end of the guest block, or a helper that takes them back, the guest's registers are in the
    /// host's x87. If that cannot be, the instruction at `rip` is left to the interpreter.
    fn lend_x87(&mut self, rip: u64) {
        if std::mem::replace(&mut self.x87_lent, true) {
            return;
        }
        let lent = self.b.ins().load(I32, self.state_mem, self.env, offset_of!(CpuState, x87_lent) as i32);
        let zero = self.b.ins().iconst(I32, 0);
        let absent = self.b.ins().icmp(IntCC::Equal, lent, zero);
        self.beside(absent, |this| {
            let loads = this.call(Thunk::LendX87, &[this.env]).expect("thunk has a result");
            let zero = this.iconst(0);
            let refused = this.b.ins().icmp(IntCC::Equal, loads, zero);
            this.interpret_if(refused, rip);
            let image = this.iconst(offset_of!(CpuState, x87_image) as i64);
            let image = this.b.ins().iadd(this.env, image);
            this.inline(native::FRSTOR_RDI, Some(image));
        });
    }

    fn interpret_if(&mut self, cond: Value, rip: u64) {
        self.cold_exit(cond, |this| {
            this.set_rip(rip);
            this.exit(Thunk::ExitInterpret);
        });
    }

    /// Host code with an operand in RDI.
    fn inline(&mut self, code: [u8; 5], operand: Option<Value>) {
        let mut s = Signature::new(CallConv::PreserveAll);
        s.params.extend(operand.map(|_| AbiParam::new(I64)));
        let (namespace, index) = inline_name(code);
        let f = self.import(namespace, index, s);
        let operand: Vec<Value> = operand.into_iter().collect();
        self.b.ins().call(f, &operand);
    }

    /// Host code that leaves its result at RDI.
    fn inline_result(&mut self, code: [u8; 5]) -> Value {
        let offset = offset_of!(CpuState, helper_result) as i32;
        let at = self.iconst(offset as i64);
        let at = self.b.ins().iadd(self.env, at);
        self.inline(code, Some(at));
        self.b.ins().load(I64, self.state_mem, self.env, offset)
    }
}
