//! Fused multiply-add.

use super::Align;
use super::operands::{Operands, operands};
use crate::helpers::vec::{Checked, Halves, STAGE0, STAGE2, STAGE2_HIGH, stage_offset};
use crate::ir::vecop::{FmaOp, fma_instructions};
use crate::ir::{VVal, Val};
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use crate::state::mode;
use iced_x86::{Instruction, Mnemonic};

macro_rules! same_names {
    (fma { $($id:ident $name:literal,)* } {}) => {
        fn operation(m: Mnemonic) -> Option<FmaOp> {
            match m {
                $(Mnemonic::$id => Some(FmaOp::$id),)*
                _ => None,
            }
        }
    };
}

fma_instructions! { same_names {} }

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let op = operation(i.mnemonic())?;
    if let Some(flow) = l.vec_check(i) {
        return Some(flow);
    }
    let (o, c) = (operands(i), l.vec_read(i, 2, Align::Any));
    let b = vreg(i.op_register(1));
    if l.has(mode::FP_UNMASKED) {
        checked(l, op, o, b, c);
    } else {
        if o.wide {
            l.b.fma(op, o.d.high(), o.d.high(), b.high(), c.high());
        }
        l.b.fma(op, o.d, o.d, b, c);
    }
    if o.wide {
        l.wrote_high(o.d)
    } else {
        l.finish_low(o)
    }
    Some(Flow::Next)
}

/// With exceptions unmasked.
fn checked(l: &mut Lifter, op: FmaOp, o: Operands, b: VVal, c: VVal) {
    l.b.vset_state(16, stage_offset(STAGE2), c);
    if o.wide {
        l.b.vset_state(16, stage_offset(STAGE2_HIGH), c.high());
        l.stage_both((o.d, b), (o.d.high(), b.high()));
        l.checked(Checked::Fma(op, Halves::Both), Val::NONE);
        return l.unstage_both(o.d);
    }
    l.stage(o.d, b);
    l.checked(Checked::Fma(op, Halves::One), Val::NONE);
    l.b.vget_state(o.d, 16, stage_offset(STAGE0));
}
