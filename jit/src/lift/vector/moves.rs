//! Moves between XMM registers, general registers and memory.

use super::Align;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::ir::{Ty, VVal};
use crate::lift::operand::{gpr, vreg};
use crate::lift::{Flow, Lifter};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Kinds of moves.
enum Kind {
    /// All 16 bytes.
    Full(Align),
    /// The low 4 or 8 bytes: loads clear the rest, register moves keep the destination's.
    Scalar(usize),
    /// MOVD, MOVQ.
    Element,
    /// The high or low 8 bytes to or from memory.
    Half { high: bool },
    /// A register combination.
    Combine(VecOp, u8),
    /// MOVHLPS.
    HighToLow,
    /// Sign bits to a general register.
    Signs(VecToInt),
    /// An element to a general register or memory.
    Extract(VecToInt, Ty),
    /// An element from a general register or memory.
    Insert(VecFromInt, Ty),
}

fn kind(m: Mnemonic) -> Option<Kind> {
    Some(match m {
        Mnemonic::Movaps | Mnemonic::Movapd | Mnemonic::Movdqa => Kind::Full(Align::Checked),
        Mnemonic::Movntdqa | Mnemonic::Movntps | Mnemonic::Movntpd | Mnemonic::Movntdq => Kind::Full(Align::Checked),
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu => Kind::Full(Align::Any),
        Mnemonic::Movss => Kind::Scalar(4),
        Mnemonic::Movsd => Kind::Scalar(8),
        Mnemonic::Movd | Mnemonic::Movq => Kind::Element,
        Mnemonic::Movhps | Mnemonic::Movhpd => Kind::Half { high: true },
        Mnemonic::Movlps | Mnemonic::Movlpd => Kind::Half { high: false },
        Mnemonic::Movlhps => Kind::Combine(VecOp::Punpcklqdq, 0),
        Mnemonic::Movhlps => Kind::HighToLow,
        Mnemonic::Movsldup => Kind::Combine(VecOp::Pshufd, 0xa0),
        Mnemonic::Movshdup => Kind::Combine(VecOp::Pshufd, 0xf5),
        Mnemonic::Movddup => Kind::Combine(VecOp::Pshufd, 0x44),
        Mnemonic::Movmskps => Kind::Signs(VecToInt::Movmskps),
        Mnemonic::Movmskpd => Kind::Signs(VecToInt::Movmskpd),
        Mnemonic::Pmovmskb => Kind::Signs(VecToInt::Pmovmskb),
        Mnemonic::Pextrb => Kind::Extract(VecToInt::Pextrb, Ty::I8),
        Mnemonic::Pextrw => Kind::Extract(VecToInt::Pextrw, Ty::I16),
        Mnemonic::Pextrd | Mnemonic::Extractps => Kind::Extract(VecToInt::Pextrd, Ty::I32),
        Mnemonic::Pextrq => Kind::Extract(VecToInt::Pextrq, Ty::I64),
        Mnemonic::Pinsrb => Kind::Insert(VecFromInt::Pinsrb, Ty::I8),
        Mnemonic::Pinsrw => Kind::Insert(VecFromInt::Pinsrw, Ty::I16),
        Mnemonic::Pinsrd => Kind::Insert(VecFromInt::Pinsrd, Ty::I32),
        Mnemonic::Pinsrq => Kind::Insert(VecFromInt::Pinsrq, Ty::I64),
        _ => return None,
    })
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let kind = kind(i.mnemonic())?;
    if let Some(flow) = l.sse_check() {
        return Some(flow);
    }
    let store = i.op_kind(0) == OpKind::Memory;
    match kind {
        Kind::Full(align) if store => l.vec_store(i, 16, vreg(i.op_register(1)), align),
        Kind::Full(align) => {
            let v = l.vec_read(i, 1, align);
            l.b.vmov(vreg(i.op_register(0)), v);
        }
        Kind::Scalar(bytes) => scalar(l, i, bytes),
        Kind::Element => element(l, i),
        Kind::Half { high } => half(l, i, high),
        Kind::Combine(op, imm8) => {
            let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Checked));
            l.b.vec(op, d, d, s, imm8);
        }
        Kind::HighToLow => {
            let (d, s) = (vreg(i.op_register(0)), vreg(i.op_register(1)));
            l.b.vec(VecOp::Punpckhqdq, d, s, d, 0);
        }
        Kind::Signs(op) => {
            let s = vreg(i.op_register(1));
            let v = l.b.vec_to_int(op, Ty::I32, s, s, 0);
            l.write_reg(i.op_register(0), v);
        }
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

fn scalar(l: &mut Lifter, i: &Instruction, bytes: usize) {
    if i.op_kind(0) == OpKind::Memory {
        return l.vec_store(i, bytes, vreg(i.op_register(1)), Align::Any);
    }
    let d = vreg(i.op_register(0));
    if i.op_kind(1) == OpKind::Memory {
        let v = l.vec_load(i, bytes, Align::Any);
        return l.b.vmov(d, v);
    }
    let op = if bytes == 4 { VecOp::Movss } else { VecOp::Movsd };
    l.b.vec(op, d, d, vreg(i.op_register(1)), 0);
}

/// MOVD and MOVQ of XMM registers: the rest of the destination is cleared.
fn element(l: &mut Lifter, i: &Instruction) {
    let xmm = |n: u32| -> Option<VVal> {
        (i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm()).then(|| vreg(i.op_register(n)))
    };
    match (xmm(0), xmm(1)) {
        (Some(d), Some(s)) => l.b.vec(VecOp::Movq, d, s, s, 0),
        (Some(d), None) if i.op_kind(1) == OpKind::Memory => {
            let v = l.vec_load(i, i.memory_size().size(), Align::Any);
            l.b.vmov(d, v);
        }
        (Some(d), None) => {
            let ty = l.op_ty(i, 1);
            let v = l.read_reg(i.op_register(1));
            l.vec_zext(ty, d, v);
        }
        (None, Some(s)) if i.op_kind(0) == OpKind::Memory => l.vec_store(i, i.memory_size().size(), s, Align::Any),
        (_, s) => {
            let s = s.unwrap_or(VVal(0));
            let (op, ty) = match l.op_ty(i, 0) {
                Ty::I64 => (VecToInt::Pextrq, Ty::I64),
                _ => (VecToInt::Pextrd, Ty::I32),
            };
            let v = l.b.vec_to_int(op, ty, s, s, 0);
            l.write_reg(i.op_register(0), v);
        }
    }
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
    let d = vreg(i.op_register(0));
    let s = l.vec_load(i, 8, Align::Any);
    l.b.vec(if high { VecOp::Punpcklqdq } else { VecOp::Movsd }, d, d, s, 0);
}

fn insert(l: &mut Lifter, i: &Instruction, op: VecFromInt, ty: Ty) {
    let d = vreg(i.op_register(0));
    let v = match i.op_kind(1) {
        OpKind::Register if gpr(i.op_register(1)).is_some() => l.read_reg(i.op_register(1)),
        _ => {
            let m = l.mem(i, ty.bytes() as usize, false);
            l.load(ty, m)
        }
    };
    l.b.vec_from_int(op, Ty::I64, d, d, v, i.immediate8());
}
