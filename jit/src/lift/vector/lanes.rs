//! Operations of 256 bits as pairs of 128-bit ones.

use super::operands::Operands;
use crate::helpers::vec::{Checked, Halves, STAGE0, STAGE0_HIGH, STAGE1, STAGE1_HIGH, stage_offset};
use crate::ir::vecop::VecOp;
use crate::ir::{VVal, Val};
use crate::lift::Lifter;
use crate::state::mode;

/// What the high half of a 256-bit result is made from.
enum High {
    /// The high halves of the operands.
    Lanes,
    /// The high half of the first operand, and the second as it is: the count of a shift.
    Count,
    /// The one operand from this byte on.
    Widened(u8),
}

fn high(op: VecOp) -> High {
    use VecOp::*;
    match op {
        Psllw | Pslld | Psllq | Psrlw | Psrld | Psrlq | Psraw | Psrad => High::Count,
        Pmovsxbw | Pmovsxwd | Pmovsxdq | Pmovzxbw | Pmovzxwd | Pmovzxdq | Cvtdq2pd | Cvtps2pd | Vcvtph2ps => {
            High::Widened(8)
        }
        Pmovsxbd | Pmovsxwq | Pmovzxbd | Pmovzxwq => High::Widened(4),
        Pmovsxbq | Pmovzxbq => High::Widened(2),
        _ => High::Lanes,
    }
}

/// The immediate of the high half, where the two halves have bits of their own.
fn high_imm(op: VecOp, imm8: u8) -> u8 {
    match op {
        VecOp::Blendps => imm8 >> 4,
        VecOp::Blendpd | VecOp::Shufpd => imm8 >> 2,
        VecOp::Mpsadbw => imm8 >> 3,
        _ => imm8,
    }
}

impl Lifter<'_> {
    /// `d = op(a, b, imm8)` of an instruction's operands, in either form and width.
    pub(super) fn vec_form(&mut self, op: VecOp, o: Operands, b: VVal, imm8: u8) {
        if !o.wide {
            self.vec_op(op, o.d, o.a, b, imm8);
            return self.finish_low(o);
        }
        // The high half comes first: the low half of the destination may be a source of it, but not the other way round.
        let (ah, bh) = match high(op) {
            High::Lanes => (o.a.high(), b.high()),
            High::Count => (o.a.high(), b),
            High::Widened(bytes) => {
                let t = self.b.vtemp();
                self.b.vec(VecOp::PsrldqI, t, b, b, bytes);
                (t, t)
            }
        };
        if op.is_fp() && self.has(mode::FP_UNMASKED) {
            self.stage_both((o.a, b), (ah, bh));
            self.checked(Checked::Vec(op, imm8, Halves::Both), Val::NONE);
            self.unstage_both(o.d);
        } else {
            self.b.vec(op, o.d.high(), ah, bh, high_imm(op, imm8));
            self.b.vec(op, o.d, o.a, b, imm8);
        }
        self.wrote_high(o.d);
    }

    /// A conversion of 256 bits, the pair `b`, to 128.
    pub(super) fn vec_narrow(&mut self, op: VecOp, d: VVal, b: VVal, imm8: u8) {
        let t = self.b.vtemp();
        if self.has(mode::FP_UNMASKED) {
            self.stage_both((b, b), (b.high(), b.high()));
            self.checked(Checked::Vec(op, imm8, Halves::Both), Val::NONE);
            self.unstage_both(t);
        } else {
            self.b.vec(op, t.high(), b.high(), b.high(), imm8);
            self.b.vec(op, t, b, b, imm8);
        }
        self.b.vec(VecOp::Punpcklqdq, d, t, t.high(), 0);
    }

    /// Puts both halves of two operands where helpers find them.
    pub(super) fn stage_both(&mut self, low: (VVal, VVal), high: (VVal, VVal)) {
        for (slot, v) in [(STAGE0, low.0), (STAGE1, low.1), (STAGE0_HIGH, high.0), (STAGE1_HIGH, high.1)] {
            self.b.vset_state(16, stage_offset(slot), v);
        }
    }

    /// Gets a helper's result of 256 bits.
    pub(super) fn unstage_both(&mut self, d: VVal) {
        self.b.vget_state(d, 16, stage_offset(STAGE0));
        self.b.vget_state(d.high(), 16, stage_offset(STAGE0_HIGH));
    }
}
