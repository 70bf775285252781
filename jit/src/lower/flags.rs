//! Lazy flags: stored where somebody may look, fused into comparisons where they are used at once.

use super::{Lower, Thunk};
use crate::ir::flags::{CcKind, pack};
use crate::ir::{Block, Inst, Op, Ty, Val};
use crate::passes::flag_notes::{self, Note};
use crate::state::{CpuState, VALS};
use cranelift_codegen::ir::condcodes::{CondCode, FloatCC, IntCC};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use std::mem::offset_of;

/// The flags as last set in this guest block.
#[derive(Clone, Copy)]
pub(super) struct Live {
    kind: CcKind,
    ty: Ty,
    res: Value,
    src: Value,
    /// `cc_op`, where it is not a constant (carry-dependent kinds).
    op: Option<Value>,
    /// Operands of the subtraction.
    difference: Option<(Value, Value)>,
    /// Operands of the floating-point comparison.
    floats: Option<(Value, Value)>,
    /// They are in the state.
    stored: bool,
}

impl Live {
    /// They are in the state.
    pub(super) fn is_stored(&self) -> bool {
        self.stored
    }

    /// The same where they are in the state if `stored`.
    pub(super) fn stored_if(self, stored: bool) -> Self {
        Self { stored: self.stored || stored, ..self }
    }
}

impl Lower<'_, '_> {
    pub(super) fn flag_op(&mut self, i: &Inst, visible: bool, note: Option<Note>) {
        match i.op {
            Op::SetFlags => self.set_flags(i, visible, note),
            Op::SetFlagsCarry => {
                let (res, src, carry) = (self.int(i.a), self.int(i.b), self.int(i.c));
                let base = self.iconst(pack(CcKind::from_u16(i.imm as u16), i.ty) as i64);
                let two = self.iconst(2);
                let step = self.b.ins().ishl(carry, two);
                let op = self.b.ins().iadd(base, step);
                let kind = CcKind::from_u16(i.imm as u16);
                self.flags = Some(Live {
                    kind,
                    ty: i.ty,
                    res,
                    src,
                    op: Some(op),
                    difference: None,
                    floats: None,
                    stored: false,
                });
                if visible {
                    self.store_flags();
                }
            }
            Op::SetFlagsIf => self.set_flags_if(i),
            Op::GetCond => self.get_cond(i),
            _ => {
                let (op, res, src) = self.flag_words();
                let v = self.call(Thunk::AllFlags, &[op, res, src]).expect("thunk has a result");
                self.set(i.d, v);
            }
        }
    }

    fn set_flags(&mut self, i: &Inst, visible: bool, note: Option<Note>) {
        let (res, src) = (self.int(i.a), self.src(i));
        let kind = CcKind::from_u16(i.c);
        let difference = match self.known[i.a as usize % VALS].difference {
            Some((ty, a, b)) if kind == CcKind::Sub && ty == i.ty => Some((a, b)),
            _ => None,
        };
        let floats = self.known[i.a as usize % VALS].floats.filter(|_| kind == CcKind::Raw);
        self.flags = Some(Live { kind, ty: i.ty, res, src, op: None, difference, floats, stored: false });
        if let Some(note) = note {
            self.leave_to_note(note, res, src);
        } else if visible {
            self.store_flags();
        }
    }

    /// Stores of the flags what the note to the accesses behind cannot tell.
    fn leave_to_note(&mut self, note: Note, res: Value, src: Value) {
        if note.stores_result() {
            self.b.ins().store(self.state_mem, res, self.env, offset_of!(CpuState, cc_res) as i32);
        }
        if note.stores_source() {
            self.b.ins().store(self.state_mem, src, self.env, offset_of!(CpuState, cc_src) as i32);
        }
        self.note = note;
    }

    /// Sets the flags if a count is not zero: the old ones must be in the state, the choice is stored.
    fn set_flags_if(&mut self, i: &Inst) {
        let (old_op, old_res, old_src) = self.flag_words();
        let (res, src) = (self.int(i.a), self.int(i.b));
        let cond = self.truth(i.c);
        let new_op = self.iconst(pack(CcKind::from_u16(i.imm as u16), i.ty) as i64);
        let op = self.b.ins().select(cond, new_op, old_op);
        let res = self.b.ins().select(cond, res, old_res);
        let src = self.b.ins().select(cond, src, old_src);
        self.flags = Some(Live {
            kind: CcKind::Raw,
            ty: i.ty,
            res,
            src,
            op: Some(op),
            difference: None,
            floats: None,
            stored: false,
        });
        self.store_flags();
    }

    /// Starts a block that alone goes on with flags that are not in the state: leaves them to a note, as far as it can tell them.
    pub(super) fn note_flags_at_hand(&mut self, block: &Block) {
        let Some(f) = self.flags.filter(|f| !f.stored) else { return };
        if f.op.is_some() {
            return self.store_flags();
        }
        let holding = |v: Value| {
            let v = self.b.func.dfg.resolve_aliases(v);
            let holds = |r: &u16| {
                let known = self.known[*r as usize].value;
                known.is_some_and(|k| self.b.func.dfg.resolve_aliases(k) == v)
            };
            (0..Val::TEMP0).filter(holds).collect::<Vec<_>>()
        };
        let (res, src) = (holding(f.res), holding(f.src));
        let note = flag_notes::note_at_entry(block, pack(f.kind, f.ty), &res, &src, self.folded(f.src, 0));
        if let Some(note) = note {
            self.leave_to_note(note, f.res, f.src);
        }
    }

    /// Writes the flags in hand to the state.
    pub(super) fn store_flags(&mut self) {
        self.store_flags_aside();
        if let Some(f) = &mut self.flags {
            f.stored = true;
        }
    }

    /// The same on a way out beside the code that goes on: an interrupt there shows flags that nobody else looks at.
    pub(super) fn store_flags_aside(&mut self) {
        let Some(f) = self.flags.filter(|f| !f.stored) else { return };
        let op = match f.op {
            Some(op) => self.b.ins().ireduce(I32, op),
            None => self.b.ins().iconst(I32, pack(f.kind, f.ty) as i64),
        };
        self.b.ins().store(self.state_mem, op, self.env, offset_of!(CpuState, cc_op) as i32);
        self.b.ins().store(self.state_mem, f.res, self.env, offset_of!(CpuState, cc_res) as i32);
        self.b.ins().store(self.state_mem, f.src, self.env, offset_of!(CpuState, cc_src) as i32);
    }

    /// `cc_op`, result and source as 64-bit values, from hand or from the state.
    fn flag_words(&mut self) -> (Value, Value, Value) {
        match self.flags {
            Some(f) => {
                let op = f.op.unwrap_or_else(|| self.b.ins().iconst(I64, pack(f.kind, f.ty) as i64));
                (op, f.res, f.src)
            }
            None => {
                let m = self.state_mem;
                let op = self.b.ins().load(I32, m, self.env, offset_of!(CpuState, cc_op) as i32);
                let op = self.b.ins().uextend(I64, op);
                let res = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, cc_res) as i32);
                let src = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, cc_src) as i32);
                (op, res, src)
            }
        }
    }

    fn get_cond(&mut self, i: &Inst) {
        if let Some(t) = self.flags.filter(|f| f.op.is_none()).and_then(|f| self.fused(i.c, &f)) {
            return self.set_truth(i.d, t);
        }
        let (op, res, src) = self.flag_words();
        let cc = self.iconst(i.c as i64);
        let v = self.call(Thunk::Condition, &[cc, op, res, src]).expect("thunk has a result");
        self.set(i.d, v);
    }

    /// Condition `cc` of known flags as one comparison, where there is one.
    fn fused(&mut self, cc: u16, f: &Live) -> Option<Value> {
        let negate = cc & 1 != 0;
        if let Some((a, b)) = f.floats {
            // CF = less or unordered, ZF = equal or unordered, PF = unordered; the others are clear.
            let holds = match cc >> 1 {
                1 => FloatCC::UnorderedOrLessThan,
                2 => FloatCC::UnorderedOrEqual,
                3 => FloatCC::UnorderedOrLessThanOrEqual,
                5 => FloatCC::Unordered,
                _ => return None,
            };
            return Some(self.b.ins().fcmp(if negate { holds.complement() } else { holds }, a, b));
        }
        let pair = |cc: IntCC| if negate { cc.complement() } else { cc };
        let zero_test = |this: &mut Self, cc: IntCC| {
            let r = this.narrow(f.ty, f.res);
            let z = this.b.ins().iconst(super::alu::clif_ty(f.ty), 0);
            Some(this.b.ins().icmp(pair(cc), r, z))
        };
        match (f.kind, cc >> 1) {
            (CcKind::Raw | CcKind::AddCarry | CcKind::SubBorrow, _) => None,
            // Undefined and clear: nobody asks.
            (CcKind::Mul, 2) => None,
            (_, 2) => zero_test(self, IntCC::Equal),
            (_, 4) => zero_test(self, IntCC::SignedLessThan),
            (CcKind::Sub, 1 | 3 | 6 | 7) => {
                let (a, b) = self.subtraction(f);
                let cc = match cc >> 1 {
                    1 => IntCC::UnsignedLessThan,
                    3 => IntCC::UnsignedLessThanOrEqual,
                    6 => IntCC::SignedLessThan,
                    _ => IntCC::SignedLessThanOrEqual,
                };
                Some(self.b.ins().icmp(pair(cc), a, b))
            }
            // OF and CF are clear.
            (CcKind::Logic, 3) => zero_test(self, IntCC::Equal),
            (CcKind::Logic, 6) => zero_test(self, IntCC::SignedLessThan),
            (CcKind::Logic, 7) => zero_test(self, IntCC::SignedLessThanOrEqual),
            (CcKind::Add, 1) => {
                let (r, s) = (self.narrow(f.ty, f.res), self.narrow(f.ty, f.src));
                Some(self.b.ins().icmp(pair(IntCC::UnsignedLessThan), r, s))
            }
            (CcKind::Mul | CcKind::Bmi, 1) => {
                let s = self.narrow(f.ty, f.src);
                let z = self.b.ins().iconst(super::alu::clif_ty(f.ty), 0);
                Some(self.b.ins().icmp(pair(IntCC::NotEqual), s, z))
            }
            (CcKind::Inc | CcKind::Dec | CcKind::Shr, 1) => {
                let one = self.iconst(1);
                let bit = self.b.ins().band(f.src, one);
                let z = self.iconst(0);
                Some(self.b.ins().icmp(pair(IntCC::NotEqual), bit, z))
            }
            _ => None,
        }
    }

    fn subtraction(&mut self, f: &Live) -> (Value, Value) {
        f.difference.unwrap_or_else(|| {
            let (r, s) = (self.narrow(f.ty, f.res), self.narrow(f.ty, f.src));
            (self.b.ins().iadd(r, s), s)
        })
    }

    /// The flags may be anything now: they are in the state.
    pub(super) fn forget_flags(&mut self) {
        self.flags = None;
    }
}
