//! Floating-point operations on XMM registers.

use super::Align;
use super::packed::imm8;
use crate::ir::Ty;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use iced_x86::{Instruction, Mnemonic, OpKind};

macro_rules! same_name {
    ($m:expr; $($id:ident)*) => {
        match $m { $(Mnemonic::$id => Some(VecOp::$id),)* _ => None }
    };
}

fn operation(m: Mnemonic) -> Option<VecOp> {
    same_name! { m;
        Addps Addpd Addss Addsd Subps Subpd Subss Subsd Mulps Mulpd Mulss Mulsd Divps Divpd Divss Divsd
        Minps Minpd Minss Minsd Maxps Maxpd Maxss Maxsd Sqrtps Sqrtpd Sqrtss Sqrtsd
        Addsubps Addsubpd Haddps Haddpd Hsubps Hsubpd Cmpps Cmppd Cmpss Cmpsd
        Roundps Roundpd Roundss Roundsd Dpps Dppd
        Cvtdq2ps Cvtps2dq Cvttps2dq Cvtdq2pd Cvtpd2dq Cvttpd2dq Cvtps2pd Cvtpd2ps Cvtss2sd Cvtsd2ss
    }
}

fn comparison(m: Mnemonic) -> Option<VecToInt> {
    Some(match m {
        Mnemonic::Comiss => VecToInt::Comiss,
        Mnemonic::Comisd => VecToInt::Comisd,
        Mnemonic::Ucomiss => VecToInt::Ucomiss,
        Mnemonic::Ucomisd => VecToInt::Ucomisd,
        _ => return None,
    })
}

/// Conversions to a general register: 32-bit and 64-bit form.
fn to_integer(m: Mnemonic) -> Option<[VecToInt; 2]> {
    Some(match m {
        Mnemonic::Cvtss2si => [VecToInt::Cvtss2si32, VecToInt::Cvtss2si64],
        Mnemonic::Cvttss2si => [VecToInt::Cvttss2si32, VecToInt::Cvttss2si64],
        Mnemonic::Cvtsd2si => [VecToInt::Cvtsd2si32, VecToInt::Cvtsd2si64],
        Mnemonic::Cvttsd2si => [VecToInt::Cvttsd2si32, VecToInt::Cvttsd2si64],
        _ => return None,
    })
}

fn from_integer(m: Mnemonic) -> Option<[VecFromInt; 2]> {
    Some(match m {
        Mnemonic::Cvtsi2ss => [VecFromInt::Cvtsi2ss32, VecFromInt::Cvtsi2ss64],
        Mnemonic::Cvtsi2sd => [VecFromInt::Cvtsi2sd32, VecFromInt::Cvtsi2sd64],
        _ => return None,
    })
}

enum Kind {
    Vector(VecOp),
    Compare(VecToInt),
    ToInteger([VecToInt; 2]),
    FromInteger([VecFromInt; 2]),
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let m = i.mnemonic();
    let kind = operation(m)
        .map(Kind::Vector)
        .or_else(|| comparison(m).map(Kind::Compare))
        .or_else(|| to_integer(m).map(Kind::ToInteger))
        .or_else(|| from_integer(m).map(Kind::FromInteger))?;
    if let Some(flow) = l.sse_check() {
        return Some(flow);
    }
    match kind {
        Kind::Vector(op) => {
            let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Checked));
            l.vec_op(op, d, d, s, imm8(i));
        }
        Kind::Compare(op) => {
            let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
            let flags = l.vec_to_int(op, Ty::I64, a, b, 0);
            l.b.set_flags_raw(flags);
        }
        Kind::ToInteger(ops) => {
            let s = l.vec_read(i, 1, Align::Any);
            let ty = l.op_ty(i, 0);
            let v = l.vec_to_int(ops[(ty == Ty::I64) as usize], ty, s, s, 0);
            l.write_reg(i.op_register(0), v);
        }
        Kind::FromInteger(ops) => {
            let d = vreg(i.op_register(0));
            let ty =
                if i.op_kind(1) == OpKind::Memory { Ty::from_bytes(i.memory_size().size()) } else { l.op_ty(i, 1) };
            let v = l.read_op(i, 1);
            l.vec_from_int(ops[(ty == Ty::I64) as usize], ty, d, d, v, 0);
        }
    }
    Some(Flow::Next)
}
