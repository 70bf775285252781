//! What AVX, AVX2 and F16C have that is no SSE instruction in another form.

use super::Align;
use super::masked;
use super::operands::{is_wide, operands};
use super::packed::imm8;
use super::permute;
use crate::ir::op::Op;
use crate::ir::vecop::{VecOp, VecToInt};
use crate::ir::{Ty, VVal, Val};
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use crate::state::flag;
use iced_x86::{Instruction, Mnemonic, OpKind};

type Semantics = fn(&mut Lifter, &Instruction);

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    use Mnemonic::*;
    let f: Semantics = match i.mnemonic() {
        Vzeroupper => zero_upper,
        Vzeroall => zero_all,
        Vbroadcastss | Vbroadcastsd | Vpbroadcastb | Vpbroadcastw | Vpbroadcastd | Vpbroadcastq => broadcast,
        Vbroadcastf128 | Vbroadcasti128 => broadcast_half,
        Vinsertf128 | Vinserti128 => insert_half,
        Vextractf128 | Vextracti128 => extract_half,
        Vtestps | Vtestpd => test_signs,
        Vcvtps2ph => to_half_precision,
        m => permute::semantics(m).or_else(|| masked::semantics(m))?,
    };
    if let Some(flow) = l.vec_check(i) {
        return Some(flow);
    }
    f(l, i);
    Some(Flow::Next)
}

/// The YMM registers that the mode reaches, one bit each.
fn registers(l: &Lifter) -> u16 {
    if l.long64() { 0xffff } else { 0xff }
}

fn zero_upper(l: &mut Lifter, _: &Instruction) {
    l.clear_high_of(registers(l));
}

fn zero_all(l: &mut Lifter, _: &Instruction) {
    let all = registers(l);
    for r in (0..16).filter(|n| all >> n & 1 != 0).map(VVal) {
        l.b.vec(VecOp::Pxor, r, r, r, 0);
    }
    l.clear_high_of(all);
}

/// The low element of the source everywhere.
fn broadcast(l: &mut Lifter, i: &Instruction) {
    let (o, s) = (operands(i), l.vec_read(i, 1, Align::Any));
    match i.mnemonic() {
        Mnemonic::Vpbroadcastb => {
            let zero = l.b.vtemp();
            l.b.vec(VecOp::Pxor, zero, s, s, 0);
            l.b.vec(VecOp::Pshufb, o.d, s, zero, 0);
        }
        Mnemonic::Vpbroadcastw => {
            let t = l.b.vtemp();
            l.b.vec(VecOp::Pshuflw, t, s, s, 0);
            l.b.vec(VecOp::Pshufd, o.d, t, t, 0);
        }
        Mnemonic::Vbroadcastsd | Mnemonic::Vpbroadcastq => l.b.vec(VecOp::Pshufd, o.d, s, s, 0x44),
        _ => l.b.vec(VecOp::Pshufd, o.d, s, s, 0),
    }
    if o.wide {
        l.b.vmov(o.d.high(), o.d);
        l.wrote_high(o.d);
    } else {
        l.finish_low(o);
    }
}

fn broadcast_half(l: &mut Lifter, i: &Instruction) {
    let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    l.b.vmov(d, s);
    l.b.vmov(d.high(), s);
    l.wrote_high(d);
}

fn insert_half(l: &mut Lifter, i: &Instruction) {
    let (o, s) = (operands(i), l.vec_read(i, 2, Align::Any));
    let (low, high) = if imm8(i) & 1 == 0 { (s, o.a.high()) } else { (o.a, s) };
    // The one that may be overwritten before it is read is the low half of the second source.
    l.b.vmov(o.d.high(), high);
    l.b.vmov(o.d, low);
    l.wrote_high(o.d);
}

fn extract_half(l: &mut Lifter, i: &Instruction) {
    let s = vreg(i.op_register(1));
    let half = if imm8(i) & 1 == 0 { s } else { s.high() };
    if i.op_kind(0) == OpKind::Memory {
        return l.vec_store(i, 16, half, Align::Any);
    }
    l.vec_set(operands(i), half);
}

/// ZF: no element has its sign set in both operands. CF: none in the second alone.
fn test_signs(l: &mut Lifter, i: &Instruction) {
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    let op = if i.mnemonic() == Mnemonic::Vtestps { VecToInt::Movmskps } else { VecToInt::Movmskpd };
    let none = |l: &mut Lifter, combine: VecOp, bit: u64| {
        let mut signs = sign_bits(l, op, combine, a, b);
        if is_wide(i, 0) {
            let high = sign_bits(l, op, combine, a.high(), b.high());
            signs = l.b.op2(Op::Or, Ty::I32, signs, high);
        }
        let none = l.b.op2(Op::CmpEq, Ty::I32, signs, 0);
        l.b.op2(Op::Shl, Ty::I64, none, i64::from(bit.trailing_zeros()))
    };
    let (zf, cf) = (none(l, VecOp::Pand, flag::ZF), none(l, VecOp::Pandn, flag::CF));
    let flags = l.b.op2(Op::Or, Ty::I64, zf, cf);
    l.b.set_flags_raw(flags);
}

fn sign_bits(l: &mut Lifter, op: VecToInt, combine: VecOp, a: VVal, b: VVal) -> Val {
    let t = l.b.vtemp();
    l.b.vec(combine, t, a, b, 0);
    l.b.vec_to_int(op, Ty::I32, t, t, 0)
}

/// VCVTPS2PH, to a register or memory.
fn to_half_precision(l: &mut Lifter, i: &Instruction) {
    let s = vreg(i.op_register(1));
    let wide = is_wide(i, 1);
    let (bytes, t) = (if wide { 16 } else { 8 }, l.b.vtemp());
    if wide {
        l.vec_narrow(VecOp::Vcvtps2ph, t, s, imm8(i));
    } else {
        l.vec_op(VecOp::Vcvtps2ph, t, s, s, imm8(i));
    }
    if i.op_kind(0) == OpKind::Memory {
        return l.vec_store(i, bytes, t, Align::Any);
    }
    let d = vreg(i.op_register(0));
    l.b.vmov(d, t);
    l.clear_high(d);
}
