//! Permutations of AVX and AVX2. Those with an immediate are shuffles of known halves.

use super::Align;
use super::operands::{Operands, operands};
use super::packed::imm8;
use crate::ir::VVal;
use crate::ir::vecop::VecOp;
use crate::lift::Lifter;
use crate::lift::operand::vreg;
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(super) fn semantics(m: Mnemonic) -> Option<fn(&mut Lifter, &Instruction)> {
    Some(match m {
        Mnemonic::Vpermilps | Mnemonic::Vpermilpd => within_halves,
        Mnemonic::Vpermq | Mnemonic::Vpermpd => quadwords,
        Mnemonic::Vpermd | Mnemonic::Vpermps => doublewords,
        Mnemonic::Vperm2f128 | Mnemonic::Vperm2i128 => halves,
        _ => return None,
    })
}

/// VPERMILPS, VPERMILPD: by an immediate or by the elements of a vector.
fn within_halves(l: &mut Lifter, i: &Instruction) {
    let o = operands(i);
    let single = i.mnemonic() == Mnemonic::Vpermilps;
    if i.op_kind(2) != OpKind::Immediate8 {
        let control = l.vec_read(i, 2, Align::Any);
        return l.vec_form(if single { VecOp::Vpermilps } else { VecOp::Vpermilpd }, o, control, 0);
    }
    let s = l.vec_read(i, 1, Align::Any);
    let op = if single { VecOp::Pshufd } else { VecOp::Shufpd };
    l.vec_form(op, Operands { a: s, ..o }, s, imm8(i));
}

/// Half of a pair.
fn half(v: VVal, high: bool) -> VVal {
    if high { v.high() } else { v }
}

/// VPERMQ, VPERMPD: two bits for each quadword.
fn quadwords(l: &mut Lifter, i: &Instruction) {
    let (d, s, imm) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any), imm8(i));
    let t = l.b.vtemp();
    for (to, fields) in [(t, imm & 15), (t.high(), imm >> 4)] {
        // Of each field the high bit names the half, the low bit the quadword in it.
        let (first, second) = (half(s, fields & 2 != 0), half(s, fields & 8 != 0));
        l.b.vec(VecOp::Shufpd, to, first, second, fields & 1 | fields >> 1 & 2);
    }
    l.b.vmov(d, t);
    l.b.vmov(d.high(), t.high());
    l.wrote_high(d);
}

/// VPERMD, VPERMPS: the low three bits of each element of the first source number an element of the second.
fn doublewords(l: &mut Lifter, i: &Instruction) {
    let (o, s) = (operands(i), l.vec_read(i, 2, Align::Any));
    let (t, low, mask) = (l.b.vtemp(), l.b.vtemp(), l.b.vtemp());
    for (to, index) in [(t, o.a), (t.high(), o.a.high())] {
        l.b.vec(VecOp::Vpermilps, low, s, index, 0);
        l.b.vec(VecOp::Vpermilps, to, s.high(), index, 0);
        // Bit 2 says which half.
        l.b.vec(VecOp::PslldI, mask, index, index, 29);
        l.b.vec(VecOp::PsradI, mask, mask, mask, 31);
        l.vec_choose(to, mask, to, low);
    }
    l.b.vmov(o.d, t);
    l.b.vmov(o.d.high(), t.high());
    l.wrote_high(o.d);
}

/// VPERM2F128, VPERM2I128: each half of the result is one of the four halves, or zero.
fn halves(l: &mut Lifter, i: &Instruction) {
    let (o, s, imm) = (operands(i), l.vec_read(i, 2, Align::Any), imm8(i));
    let t = l.b.vtemp();
    for (to, field) in [(t, imm & 15), (t.high(), imm >> 4)] {
        if field & 8 != 0 {
            l.b.vec(VecOp::Pxor, to, s, s, 0);
        } else {
            l.b.vmov(to, half(if field & 2 == 0 { o.a } else { s }, field & 1 != 0));
        }
    }
    l.b.vmov(o.d, t);
    l.b.vmov(o.d.high(), t.high());
    l.wrote_high(o.d);
}
