//! Floating-point operations on XMM and YMM registers.

use super::Align;
use super::operands::{is_wide, operands};
use super::packed::imm8;
use crate::ir::Ty;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use iced_x86::{Instruction, Mnemonic};

/// Instructions that are the operation of the same name, in SSE and in VEX form.
macro_rules! same_name {
    ($m:expr; $($id:ident $vex:ident,)*) => {
        match $m { $(Mnemonic::$id | Mnemonic::$vex => Some(VecOp::$id),)* _ => None }
    };
}

fn operation(m: Mnemonic) -> Option<VecOp> {
    Some(match m {
        Mnemonic::Cmpps => VecOp::Cmpps,
        Mnemonic::Cmppd => VecOp::Cmppd,
        Mnemonic::Cmpss => VecOp::Cmpss,
        Mnemonic::Cmpsd => VecOp::Cmpsd,
        Mnemonic::Vcmpps => VecOp::Vcmpps,
        Mnemonic::Vcmppd => VecOp::Vcmppd,
        Mnemonic::Vcmpss => VecOp::Vcmpss,
        Mnemonic::Vcmpsd => VecOp::Vcmpsd,
        Mnemonic::Vcvtph2ps => VecOp::Vcvtph2ps,
        _ => return same_operation(m),
    })
}

fn same_operation(m: Mnemonic) -> Option<VecOp> {
    same_name! { m;
        Addps Vaddps, Addpd Vaddpd, Addss Vaddss, Addsd Vaddsd, Subps Vsubps, Subpd Vsubpd, Subss Vsubss,
        Subsd Vsubsd, Mulps Vmulps, Mulpd Vmulpd, Mulss Vmulss, Mulsd Vmulsd, Divps Vdivps, Divpd Vdivpd,
        Divss Vdivss, Divsd Vdivsd, Minps Vminps, Minpd Vminpd, Minss Vminss, Minsd Vminsd, Maxps Vmaxps,
        Maxpd Vmaxpd, Maxss Vmaxss, Maxsd Vmaxsd, Sqrtps Vsqrtps, Sqrtpd Vsqrtpd, Sqrtss Vsqrtss, Sqrtsd Vsqrtsd,
        Addsubps Vaddsubps, Addsubpd Vaddsubpd, Haddps Vhaddps, Haddpd Vhaddpd, Hsubps Vhsubps, Hsubpd Vhsubpd,
        Roundps Vroundps, Roundpd Vroundpd, Roundss Vroundss, Roundsd Vroundsd, Dpps Vdpps, Dppd Vdppd,
        Cvtdq2ps Vcvtdq2ps, Cvtps2dq Vcvtps2dq, Cvttps2dq Vcvttps2dq, Cvtdq2pd Vcvtdq2pd, Cvtpd2dq Vcvtpd2dq,
        Cvttpd2dq Vcvttpd2dq, Cvtps2pd Vcvtps2pd, Cvtpd2ps Vcvtpd2ps, Cvtss2sd Vcvtss2sd, Cvtsd2ss Vcvtsd2ss,
    }
}

fn comparison(m: Mnemonic) -> Option<VecToInt> {
    Some(match m {
        Mnemonic::Comiss | Mnemonic::Vcomiss => VecToInt::Comiss,
        Mnemonic::Comisd | Mnemonic::Vcomisd => VecToInt::Comisd,
        Mnemonic::Ucomiss | Mnemonic::Vucomiss => VecToInt::Ucomiss,
        Mnemonic::Ucomisd | Mnemonic::Vucomisd => VecToInt::Ucomisd,
        _ => return None,
    })
}

/// Conversions to a general register: 32-bit and 64-bit form.
fn to_integer(m: Mnemonic) -> Option<[VecToInt; 2]> {
    Some(match m {
        Mnemonic::Cvtss2si | Mnemonic::Vcvtss2si => [VecToInt::Cvtss2si32, VecToInt::Cvtss2si64],
        Mnemonic::Cvttss2si | Mnemonic::Vcvttss2si => [VecToInt::Cvttss2si32, VecToInt::Cvttss2si64],
        Mnemonic::Cvtsd2si | Mnemonic::Vcvtsd2si => [VecToInt::Cvtsd2si32, VecToInt::Cvtsd2si64],
        Mnemonic::Cvttsd2si | Mnemonic::Vcvttsd2si => [VecToInt::Cvttsd2si32, VecToInt::Cvttsd2si64],
        _ => return None,
    })
}

fn from_integer(m: Mnemonic) -> Option<[VecFromInt; 2]> {
    Some(match m {
        Mnemonic::Cvtsi2ss | Mnemonic::Vcvtsi2ss => [VecFromInt::Cvtsi2ss32, VecFromInt::Cvtsi2ss64],
        Mnemonic::Cvtsi2sd | Mnemonic::Vcvtsi2sd => [VecFromInt::Cvtsi2sd32, VecFromInt::Cvtsi2sd64],
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
    if let Some(flow) = l.vec_check(i) {
        return Some(flow);
    }
    match kind {
        Kind::Vector(op) => {
            let o = operands(i);
            let s = l.vec_read(i, o.second, o.align());
            if !o.wide && is_wide(i, o.second) {
                l.vec_narrow(op, o.d, s, imm8(i));
                l.finish_low(o);
            } else {
                l.vec_form(op, o, s, imm8(i));
            }
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
            let o = operands(i);
            let ty = l.op_ty(i, o.second);
            let v = l.read_op(i, o.second);
            l.vec_from_int(ops[(ty == Ty::I64) as usize], ty, o.d, o.a, v, 0);
            l.finish_low(o);
        }
    }
    Some(Flow::Next)
}
