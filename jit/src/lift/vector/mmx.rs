//! MMX: 64-bit vectors in the mantissas of the x87 registers.

use super::Align;
use super::packed::{imm8, immediate_shift, operation};
use crate::helpers::vec::MASKMOV;
use crate::helpers::x87::{EMMS, MMX_CHECK};
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::ir::{Ty, VVal};
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use crate::state::{CpuState, X87, mode};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

/// Offset of MMn: the low 8 bytes of physical register n.
fn offset(r: Register) -> usize {
    offset_of!(CpuState, x87) + offset_of!(X87, regs) + 16 * (r.number() & 7)
}

impl Lifter<'_> {
    /// Operand `n`: an MMX register or memory, zero-extended.
    fn mmx_read(&mut self, i: &Instruction, n: u32) -> VVal {
        if i.op_kind(n) == OpKind::Memory {
            return self.vec_load(i, i.memory_size().size(), Align::Checked);
        }
        let r = i.op_register(n);
        if r.is_xmm() {
            return vreg(r);
        }
        let t = self.b.vtemp();
        self.b.vget_state(t, 8, offset(r));
        t
    }

    /// Writes an MMX register: exponent and sign all ones (SDM 1, 9.2.1).
    fn mmx_write(&mut self, r: Register, v: VVal) {
        self.b.vset_state(8, offset(r), v);
        let ones = self.b.iconst(0xffff);
        self.b.set_state(Ty::I16, offset(r) + 8, ones);
    }

    /// TOP = 0 and all tags valid, as every MMX instruction but EMMS leaves them (SDM 1, 9.5.1).
    fn mmx_mode(&mut self) {
        self.mmx_top();
        let tags = self.b.iconst(0xff);
        self.b.set_state(Ty::I8, offset_of!(CpuState, x87) + offset_of!(X87, tags), tags);
    }

    /// TOP = 0.
    fn mmx_top(&mut self) {
        let at = offset_of!(CpuState, x87) + offset_of!(X87, fsw);
        let fsw = self.b.get_state(Ty::I16, at);
        let fsw = self.b.op2(crate::ir::Op::And, Ty::I16, fsw, !0x3800);
        self.b.set_state(Ty::I16, at, fsw);
    }
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let f = semantics(i)?;
    if l.has(mode::EM) {
        return Some(l.undefined());
    }
    let xmm = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm();
    if (0..i.op_count()).any(xmm) && !l.has(mode::OSFXSR) {
        return Some(l.undefined());
    }
    if let Some(flow) = l.task_switched() {
        return Some(flow);
    }
    l.b.call(MMX_CHECK, &[]);
    // Silicon resets TOP even if a store or conversion faults after that (measured); a load that faults changes nothing.
    if i.op_kind(0) == OpKind::Memory {
        l.mmx_top();
    } else if i.mnemonic() == Mnemonic::Maskmovq {
        l.mmx_mode();
    }
    f(l, i);
    let done = converts(i.mnemonic()) || matches!(i.mnemonic(), Mnemonic::Emms | Mnemonic::Maskmovq);
    if !done {
        l.mmx_mode();
    }
    Some(Flow::Next)
}

/// Conversions between floating point and MMX.
fn converts(m: Mnemonic) -> bool {
    matches!(
        m,
        Mnemonic::Cvtpi2ps
            | Mnemonic::Cvtpi2pd
            | Mnemonic::Cvtps2pi
            | Mnemonic::Cvttps2pi
            | Mnemonic::Cvtpd2pi
            | Mnemonic::Cvttpd2pi
    )
}

type Semantics = fn(&mut Lifter, &Instruction);

fn semantics(i: &Instruction) -> Option<Semantics> {
    Some(match i.mnemonic() {
        Mnemonic::Emms => |l, _| {
            l.b.call(EMMS, &[]);
        },
        Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movntq => transfer,
        Mnemonic::Movq2dq => |l, i| {
            let v = l.mmx_read(i, 1);
            l.b.vmov(vreg(i.op_register(0)), v);
        },
        Mnemonic::Movdq2q => |l, i| l.mmx_write(i.op_register(0), vreg(i.op_register(1))),
        Mnemonic::Maskmovq => maskmovq,
        Mnemonic::Pmovmskb | Mnemonic::Pextrw => to_register,
        Mnemonic::Pinsrw => pinsrw,
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd => |l, i| {
            l.mmx_mode();
            from_mmx(l, i);
        },
        Mnemonic::Cvtps2pi | Mnemonic::Cvttps2pi | Mnemonic::Cvtpd2pi | Mnemonic::Cvttpd2pi => to_mmx,
        Mnemonic::Pshufw => |l, i| {
            let (t, s) = (l.b.vtemp(), l.mmx_read(i, 1));
            l.b.vec(VecOp::Pshuflw, t, s, s, imm8(i));
            l.mmx_write(i.op_register(0), t);
        },
        m if operation(m).is_some() => arithmetic,
        _ => return None,
    })
}

/// MOVD, MOVQ, MOVNTQ.
fn transfer(l: &mut Lifter, i: &Instruction) {
    let is_mm = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm();
    if !is_mm(0) {
        let s = l.mmx_read(i, 1);
        if i.op_kind(0) == OpKind::Memory {
            return l.vec_store(i, i.memory_size().size(), s, Align::Any);
        }
        let ty = l.op_ty(i, 0);
        let op = if ty == Ty::I64 { VecToInt::Pextrq } else { VecToInt::Pextrd };
        let v = l.b.vec_to_int(op, ty, s, s, 0);
        return l.write_reg(i.op_register(0), v);
    }
    let v = if i.op_kind(1) == OpKind::Memory || is_mm(1) {
        l.mmx_read(i, 1)
    } else {
        let (t, ty) = (l.b.vtemp(), l.op_ty(i, 1));
        let v = l.read_reg(i.op_register(1));
        l.vec_zext(ty, t, v);
        t
    };
    l.mmx_write(i.op_register(0), v);
}

fn maskmovq(l: &mut Lifter, i: &Instruction) {
    let (data, mask) = (l.mmx_read(i, 1), l.mmx_read(i, 2));
    let (address, _) = l.mask_address(i, 8);
    l.stage(data, mask);
    let bytes = l.b.iconst(8);
    l.b.call(MASKMOV, &[address, bytes]);
}

fn to_register(l: &mut Lifter, i: &Instruction) {
    let s = l.mmx_read(i, 1);
    let v = if i.mnemonic() == Mnemonic::Pextrw {
        l.b.vec_to_int(VecToInt::Pextrw, Ty::I32, s, s, imm8(i) & 3)
    } else {
        l.b.vec_to_int(VecToInt::Pmovmskb, Ty::I32, s, s, 0)
    };
    l.write_reg(i.op_register(0), v);
}

fn pinsrw(l: &mut Lifter, i: &Instruction) {
    let v = match i.op_kind(1) {
        OpKind::Register => l.read_reg(i.op_register(1)),
        _ => {
            let m = l.mem(i, 2, false);
            l.load(Ty::I16, m)
        }
    };
    let (d, t) = (l.mmx_read(i, 0), l.b.vtemp());
    l.b.vec_from_int(VecFromInt::Pinsrw, Ty::I64, t, d, v, imm8(i) & 3);
    l.mmx_write(i.op_register(0), t);
}

/// CVTPI2PS, CVTPI2PD. The unused elements are zero and convert without flags.
pub(super) fn from_mmx(l: &mut Lifter, i: &Instruction) {
    let (d, s, t) = (vreg(i.op_register(0)), l.mmx_read(i, 1), l.b.vtemp());
    if i.mnemonic() == Mnemonic::Cvtpi2pd {
        return l.vec_op(VecOp::Cvtdq2pd, d, s, s, 0);
    }
    l.vec_op(VecOp::Cvtdq2ps, t, s, s, 0);
    l.b.vec(VecOp::Movsd, d, d, t, 0);
}

fn to_mmx(l: &mut Lifter, i: &Instruction) {
    let (s, t) = (l.mmx_read(i, 1), l.b.vtemp());
    l.mmx_mode();
    let (op, low) = match i.mnemonic() {
        Mnemonic::Cvtps2pi => (VecOp::Cvtps2dq, true),
        Mnemonic::Cvttps2pi => (VecOp::Cvttps2dq, true),
        Mnemonic::Cvtpd2pi => (VecOp::Cvtpd2dq, false),
        _ => (VecOp::Cvttpd2dq, false),
    };
    // The high elements must not raise anything.
    let s = if low {
        l.b.vec(VecOp::Movq, t, s, s, 0);
        t
    } else {
        s
    };
    l.vec_op(op, t, s, s, 0);
    l.mmx_write(i.op_register(0), t);
}

/// What is one operation on XMM registers: on MMX registers it is the low half of that, or of that on the operands
/// joined.
fn arithmetic(l: &mut Lifter, i: &Instruction) {
    let m = i.mnemonic();
    let (a, t) = (l.mmx_read(i, 0), l.b.vtemp());
    if let (Some(op), OpKind::Immediate8) = (immediate_shift(m), i.op_kind(1)) {
        l.b.vec(op, t, a, a, imm8(i));
        return l.mmx_write(i.op_register(0), t);
    }
    let b = l.mmx_read(i, 1);
    let Some(op) = operation(m) else { return };
    match op {
        VecOp::Packsswb | VecOp::Packssdw | VecOp::Packuswb => joined(l, op, t, a, b),
        VecOp::Phaddw | VecOp::Phaddd | VecOp::Phaddsw | VecOp::Phsubw | VecOp::Phsubd | VecOp::Phsubsw => {
            joined(l, op, t, a, b)
        }
        VecOp::Punpckhbw => high_half(l, VecOp::Punpcklbw, t, a, b),
        VecOp::Punpckhwd => high_half(l, VecOp::Punpcklwd, t, a, b),
        VecOp::Punpckhdq => high_half(l, VecOp::Punpckldq, t, a, b),
        VecOp::Pshufb => l.b.vec(VecOp::Pshufb64, t, a, b, 0),
        VecOp::Palignr => l.b.vec(VecOp::Palignr64, t, a, b, imm8(i)),
        op => l.b.vec(op, t, a, b, 0),
    }
    l.mmx_write(i.op_register(0), t);
}

fn joined(l: &mut Lifter, op: VecOp, d: VVal, a: VVal, b: VVal) {
    let t = l.b.vtemp();
    l.b.vec(VecOp::Punpcklqdq, t, a, b, 0);
    l.b.vec(op, d, t, t, 0);
}

fn high_half(l: &mut Lifter, op: VecOp, d: VVal, a: VVal, b: VVal) {
    let t = l.b.vtemp();
    l.b.vec(op, t, a, b, 0);
    l.b.vec(VecOp::PsrldqI, d, t, t, 8);
}
