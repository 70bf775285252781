//! Moves between XMM or YMM registers, general registers and memory.

use super::Align;
use super::operands::{is_wide, operands};
use crate::ir::op::Op;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::ir::{Ty, VVal};
use crate::lift::operand::{gpr, vreg};
use crate::lift::{Flow, Lifter};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Kinds of moves.
enum Kind {
    /// All bytes.
    Full(Align),
    /// The low 4 or 8 bytes: loads clear the rest, register moves take it from the first source.
    Scalar(usize),
    /// MOVD, MOVQ.
    Element,
    /// The high or low 8 bytes to or from memory.
    Half { high: bool },
    /// A register combination.
    Combine(VecOp, u8),
    /// MOVHLPS.
    HighToLow,
    /// Sign bits to a general register: how many are those of 128 bits.
    Signs(VecToInt, u8),
    /// An element to a general register or memory.
    Extract(VecToInt, Ty),
    /// An element from a general register or memory.
    Insert(VecFromInt, Ty),
}

fn kind(m: Mnemonic) -> Option<Kind> {
    use Mnemonic::*;
    Some(match m {
        Movaps | Movapd | Movdqa | Vmovaps | Vmovapd | Vmovdqa => Kind::Full(Align::Checked),
        Movntdqa | Movntps | Movntpd | Movntdq => Kind::Full(Align::Checked),
        Vmovntdqa | Vmovntps | Vmovntpd | Vmovntdq => Kind::Full(Align::Checked),
        Movups | Movupd | Movdqu | Lddqu | Vmovups | Vmovupd | Vmovdqu | Vlddqu => Kind::Full(Align::Any),
        Movss | Vmovss => Kind::Scalar(4),
        Movsd | Vmovsd => Kind::Scalar(8),
        Movd | Movq | Vmovd | Vmovq => Kind::Element,
        Movhps | Movhpd | Vmovhps | Vmovhpd => Kind::Half { high: true },
        Movlps | Movlpd | Vmovlps | Vmovlpd => Kind::Half { high: false },
        Movlhps | Vmovlhps => Kind::Combine(VecOp::Punpcklqdq, 0),
        Movhlps | Vmovhlps => Kind::HighToLow,
        Movsldup | Vmovsldup => Kind::Combine(VecOp::Pshufd, 0xa0),
        Movshdup | Vmovshdup => Kind::Combine(VecOp::Pshufd, 0xf5),
        Movddup | Vmovddup => Kind::Combine(VecOp::Pshufd, 0x44),
        Movmskps | Vmovmskps => Kind::Signs(VecToInt::Movmskps, 4),
        Movmskpd | Vmovmskpd => Kind::Signs(VecToInt::Movmskpd, 2),
        Pmovmskb | Vpmovmskb => Kind::Signs(VecToInt::Pmovmskb, 16),
        Pextrb | Vpextrb => Kind::Extract(VecToInt::Pextrb, Ty::I8),
        Pextrw | Vpextrw => Kind::Extract(VecToInt::Pextrw, Ty::I16),
        Pextrd | Extractps | Vpextrd | Vextractps => Kind::Extract(VecToInt::Pextrd, Ty::I32),
        Pextrq | Vpextrq => Kind::Extract(VecToInt::Pextrq, Ty::I64),
        Pinsrb | Vpinsrb => Kind::Insert(VecFromInt::Pinsrb, Ty::I8),
        Pinsrw | Vpinsrw => Kind::Insert(VecFromInt::Pinsrw, Ty::I16),
        Pinsrd | Vpinsrd => Kind::Insert(VecFromInt::Pinsrd, Ty::I32),
        Pinsrq | Vpinsrq => Kind::Insert(VecFromInt::Pinsrq, Ty::I64),
        _ => return None,
    })
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let kind = kind(i.mnemonic())?;
    if let Some(flow) = l.vec_check(i) {
        return Some(flow);
    }
    let store = i.op_kind(0) == OpKind::Memory;
    match kind {
        Kind::Full(align) => full(l, i, align),
        Kind::Scalar(bytes) => scalar(l, i, bytes),
        Kind::Element => element(l, i),
        Kind::Half { high } => half(l, i, high),
        Kind::Combine(op, imm8) => {
            let o = operands(i);
            let s = l.vec_read(i, o.second, o.align());
            l.vec_form(op, o, s, imm8);
        }
        Kind::HighToLow => {
            let o = operands(i);
            let s = vreg(i.op_register(o.second));
            l.b.vec(VecOp::Punpckhqdq, o.d, s, o.a, 0);
            l.finish_low(o);
        }
        Kind::Signs(op, bits) => signs(l, i, op, bits),
        Kind::Extract(op, ty) => {
            let s = vreg(i.op_register(1));
            let v = l.b.vec_to_int(op, ty, s, s, i.immediate8());
            if store {
                let m = l.mem(i, ty.bytes() as usize, true);
                l.store(ty, m, v);
            } else {
                l.write_reg(i.op_register(0), v);
            }
        }
        Kind::Insert(op, ty) => insert(l, i, op, ty),
    }
    Some(Flow::Next)
}

fn full(l: &mut Lifter, i: &Instruction, align: Align) {
    let register = if i.op_kind(0) == OpKind::Memory { i.op_register(1) } else { i.op_register(0) };
    let bytes = register.size();
    if i.op_kind(0) == OpKind::Memory {
        return l.vec_store(i, bytes, vreg(register), align);
    }
    let o = operands(i);
    if i.op_kind(1) == OpKind::Register {
        return l.vec_set(o, vreg(i.op_register(1)));
    }
    let m = l.vec_mem(i, bytes, false, align);
    l.b.vload(o.d, bytes, m.addr, m.disp, m.flags);
    if o.wide { l.wrote_high(o.d) } else { l.finish_low(o) }
}

fn signs(l: &mut Lifter, i: &Instruction, op: VecToInt, bits: u8) {
    let s = vreg(i.op_register(1));
    let mut v = l.b.vec_to_int(op, Ty::I32, s, s, 0);
    if is_wide(i, 1) {
        let high = l.b.vec_to_int(op, Ty::I32, s.high(), s.high(), 0);
        let high = l.b.op2(Op::Shl, Ty::I32, high, i64::from(bits));
        v = l.b.op2(Op::Or, Ty::I32, v, high);
    }
    l.write_reg(i.op_register(0), v);
}

fn scalar(l: &mut Lifter, i: &Instruction, bytes: usize) {
    if i.op_kind(0) == OpKind::Memory {
        return l.vec_store(i, bytes, vreg(i.op_register(1)), Align::Any);
    }
    let o = operands(i);
    if i.op_kind(1) == OpKind::Memory {
        let m = l.mem(i, bytes, false);
        l.b.vload(o.d, bytes, m.addr, m.disp, m.flags);
    } else {
        let op = if bytes == 4 { VecOp::Movss } else { VecOp::Movsd };
        l.b.vec(op, o.d, o.a, vreg(i.op_register(o.second)), 0);
    }
    l.finish_low(o);
}

/// MOVD and MOVQ of XMM registers: the rest of the destination is cleared.
fn element(l: &mut Lifter, i: &Instruction) {
    let xmm = |n: u32| -> Option<VVal> {
        (i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm()).then(|| vreg(i.op_register(n)))
    };
    match (xmm(0), xmm(1)) {
        (Some(d), Some(s)) => l.b.vec(VecOp::Movq, d, s, s, 0),
        (Some(d), None) if i.op_kind(1) == OpKind::Memory => {
            let bytes = i.memory_size().size();
            let m = l.mem(i, bytes, false);
            l.b.vload(d, bytes, m.addr, m.disp, m.flags);
        }
        (Some(d), None) => {
            let ty = l.op_ty(i, 1);
            let v = l.read_reg(i.op_register(1));
            l.vec_zext(ty, d, v);
        }
        (None, Some(s)) if i.op_kind(0) == OpKind::Memory => {
            return l.vec_store(i, i.memory_size().size(), s, Align::Any);
        }
        (_, s) => {
            let s = s.unwrap_or(VVal(0));
            let (op, ty) = match l.op_ty(i, 0) {
                Ty::I64 => (VecToInt::Pextrq, Ty::I64),
                _ => (VecToInt::Pextrd, Ty::I32),
            };
            let v = l.b.vec_to_int(op, ty, s, s, 0);
            return l.write_reg(i.op_register(0), v);
        }
    }
    l.finish_low(operands(i));
}

fn half(l: &mut Lifter, i: &Instruction, high: bool) {
    if i.op_kind(0) == OpKind::Memory {
        let mut s = vreg(i.op_register(1));
        if high {
            let t = l.b.vtemp();
            l.b.vec(VecOp::PsrldqI, t, s, s, 8);
            s = t;
        }
        return l.vec_store(i, 8, s, Align::Any);
    }
    let o = operands(i);
    let s = l.vec_load(i, 8, Align::Any);
    l.vec_form(if high { VecOp::Punpcklqdq } else { VecOp::Movsd }, o, s, 0);
}

fn insert(l: &mut Lifter, i: &Instruction, op: VecFromInt, ty: Ty) {
    let o = operands(i);
    let v = match i.op_kind(o.second) {
        OpKind::Register if gpr(i.op_register(o.second)).is_some() => l.read_reg(i.op_register(o.second)),
        _ => {
            let m = l.mem(i, ty.bytes() as usize, false);
            l.load(ty, m)
        }
    };
    l.b.vec_from_int(op, Ty::I64, o.d, o.a, v, i.immediate8());
    l.finish_low(o);
}
