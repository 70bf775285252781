//! DIV and IDIV of 32 and 64 bits: the cases that cannot fault and fit the host's division, with the helper beside them.

use super::{Known, Lower, Thunk};
use crate::helpers::HelperId;
use crate::helpers::integer::{DIV32, DIV64, IDIV32, IDIV64};
use crate::ir::{Block, Inst, Ty};
use crate::state::reg;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};

impl Lower<'_, '_> {
    /// Lowers the call of a division helper; `false` if it is another helper.
    pub(super) fn division(&mut self, block: &Block, i: &Inst) -> bool {
        let id = HelperId(i.imm as u16);
        let (ty, signed) = match id {
            DIV32 => (Ty::I32, false),
            DIV64 => (Ty::I64, false),
            IDIV32 => (Ty::I32, true),
            IDIV64 => (Ty::I64, true),
            _ => return false,
        };
        let operand = self.int(i.a);
        let d = if signed { self.sext(ty, operand) } else { self.zext(ty, operand) };
        let (n, fits) = self.dividend(ty, signed, d);
        self.settle();
        let (fast, slow, on) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(slow);
        self.b.ins().brif(fits, fast, &[], slow, &[]);

        self.b.switch_to_block(slow);
        let rip = self.rip_of(block, i);
        self.set_rip(rip);
        let (number, zero) = (self.iconst(i.imm & 0xffff), self.iconst(0));
        let failed = self.call(Thunk::Helper, &[self.env, number, operand, zero, zero]).expect("thunk has a result");
        self.exit_fault_if(failed);
        self.b.ins().jump(on, &[]);

        self.b.switch_to_block(fast);
        let q = if signed { self.b.ins().sdiv(n, d) } else { self.b.ins().udiv(n, d) };
        // One division: a second instruction for the remainder would divide again.
        let back = self.b.ins().imul(q, d);
        let r = self.b.ins().isub(n, back);
        let (q, r) = (self.zext(ty, q), self.zext(ty, r));
        self.set(reg::RAX as u16, q);
        self.set(reg::RDX as u16, r);
        self.settle();
        self.b.ins().jump(on, &[]);

        self.b.switch_to_block(on);
        self.known[reg::RAX] = Known::default();
        self.known[reg::RDX] = Known::default();
        true
    }

    /// The dividend as 64 bits, and whether it is that small, the divisor no cause of #DE, and the quotient sure to fit.
    fn dividend(&mut self, ty: Ty, signed: bool, d: Value) -> (Value, Value) {
        let (low, high) = (self.int(reg::RAX as u16), self.int(reg::RDX as u16));
        let (n, small) = match (ty, signed) {
            (Ty::I32, false) => {
                let (low, high) = (self.zext(ty, low), self.zext(ty, high));
                let width = self.iconst(32);
                let top = self.b.ins().ishl(high, width);
                // The quotient fits if the high half is below the divisor, which is then not 0.
                return (self.b.ins().bor(top, low), self.b.ins().icmp(IntCC::UnsignedLessThan, high, d));
            }
            (_, false) => {
                let zero = self.iconst(0);
                (low, self.b.ins().icmp(IntCC::Equal, high, zero))
            }
            (_, true) => {
                let n = self.sext(ty, low);
                let places = self.iconst(63);
                let sign = self.b.ins().sshr(n, places);
                let high = self.sext(ty, high);
                (n, self.b.ins().icmp(IntCC::Equal, high, sign))
            }
        };
        // Not 0; signed: not -1 either, whose quotient may overflow.
        let one = self.iconst(1);
        let sound = if signed {
            let up = self.b.ins().iadd(d, one);
            self.b.ins().icmp(IntCC::UnsignedGreaterThan, up, one)
        } else {
            self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, d, one)
        };
        (n, self.b.ins().band(small, sound))
    }
}
