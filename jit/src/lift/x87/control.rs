//! Control instructions.

use super::image_bytes;
use crate::fault::vector as vec_no;
use crate::helpers::HelperId;
use crate::helpers::x87::{FCLEX, FINIT, FLDCW, FSTCW, FSTSW, RESTORE, SAVE, WAIT, segmented_place};
use crate::ir::Ty;
use crate::ir::op::Op;
use crate::lift::operand::segment_number;
use crate::lift::{Flow, Lifter};
use crate::state::{mode, reg};
use iced_x86::{Instruction, Mnemonic, OpKind};

impl Lifter<'_> {
    /// #NM where x87 instructions are to be emulated or the task was switched (SDM 3A 2.5, table 2-2).
    pub(super) fn x87_check(&mut self) -> Option<Flow> {
        if self.mode & (mode::EM | mode::TS) == 0 {
            return None;
        }
        self.b.raise(vec_no::NM);
        Some(Flow::End)
    }
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let m = i.mnemonic();
    if m == Mnemonic::Wait {
        if l.has(mode::MP | mode::TS) {
            l.b.raise(vec_no::NM);
            return Some(Flow::End);
        }
        l.b.call(WAIT, &[]);
        return Some(Flow::Next);
    }
    let f: fn(&mut Lifter, &Instruction) = match m {
        Mnemonic::Fninit => |l, _| {
            l.b.call(FINIT, &[]);
        },
        Mnemonic::Fnclex => |l, _| {
            l.b.call(FCLEX, &[]);
        },
        Mnemonic::Fnstcw => |l, i| {
            let v = l.b.call(FSTCW, &[]);
            store_word(l, i, v);
        },
        Mnemonic::Fnstsw => |l, i| {
            let v = l.b.call(FSTSW, &[]);
            store_word(l, i, v);
        },
        Mnemonic::Fldcw => |l, i| {
            l.b.call(WAIT, &[]);
            let m = l.mem(i, 2, false);
            let v = l.load(Ty::I16, m);
            l.b.call(FLDCW, &[v]);
        },
        Mnemonic::Fnstenv | Mnemonic::Fnsave => |l, i| image(l, i, SAVE),
        Mnemonic::Fldenv | Mnemonic::Frstor => |l, i| image(l, i, RESTORE),
        // Instructions of the 8087 and 80287 that do nothing since.
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => |_, _| {},
        _ => return None,
    };
    if let Some(flow) = l.x87_check() {
        return Some(flow);
    }
    f(l, i);
    Some(Flow::Next)
}

fn store_word(l: &mut Lifter, i: &Instruction, v: crate::ir::Val) {
    match i.op_kind(0) {
        OpKind::Memory => {
            let m = l.mem(i, 2, true);
            l.store(Ty::I16, m, v);
        }
        _ => l.write_reg(i.op_register(0), v),
    }
}

fn image(l: &mut Lifter, i: &Instruction, id: HelperId) {
    if id == RESTORE {
        l.wait_before_address();
    }
    // The fields of the environment have the operand size: so it is aligned (SDM 3A 6.15, table 6-7), and so limits are
    // checked, of the first one here.
    let field = if matches!(i.memory_size().size(), 14 | 94) { 2 } else { 4 };
    let m = l.mem(i, field, id == SAVE);
    let address = l.linear(m);
    let bytes = image_bytes(l, i);
    let seg = segment_number(i.memory_segment());
    if l.long64() || l.has(mode::FLAT) && matches!(seg, reg::ES | reg::SS | reg::DS) {
        l.b.call(id, &[address, bytes]);
        return;
    }
    let offset = l.effective_address(i);
    let place = l.b.op2(Op::Or, Ty::I64, offset, segmented_place(seg));
    l.b.call(id, &[address, bytes, place]);
}
