//! Integer operations on XMM registers, string comparison, AES, carry-less multiplication, SHA.

use super::Align;
use crate::helpers::vec::{MASKMOV, PCMPESTR, SHA256RNDS2};
use crate::ir::op::Op;
use crate::ir::vecop::{VecOp, VecToInt};
use crate::ir::{Ty, Val};
use crate::lift::operand::{Mem, segment_flags, segment_number, vreg};
use crate::lift::{Flow, Lifter};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Instructions that are one operation `d = op(d, source, imm8)` of the same name.
macro_rules! same_name {
    ($m:expr; $($id:ident)*) => {
        match $m { $(Mnemonic::$id => Some(VecOp::$id),)* _ => None }
    };
}

/// The operation of an instruction `op xmm, xmm/m128[, imm8]` that works element by element or on whole vectors.
pub(super) fn operation(m: Mnemonic) -> Option<VecOp> {
    let other = match m {
        Mnemonic::Andps | Mnemonic::Andpd => VecOp::Pand,
        Mnemonic::Andnps | Mnemonic::Andnpd => VecOp::Pandn,
        Mnemonic::Orps | Mnemonic::Orpd => VecOp::Por,
        Mnemonic::Xorps | Mnemonic::Xorpd => VecOp::Pxor,
        Mnemonic::Unpcklps => VecOp::Punpckldq,
        Mnemonic::Unpckhps => VecOp::Punpckhdq,
        Mnemonic::Unpcklpd => VecOp::Punpcklqdq,
        Mnemonic::Unpckhpd => VecOp::Punpckhqdq,
        _ => return same_operation(m),
    };
    Some(other)
}

fn same_operation(m: Mnemonic) -> Option<VecOp> {
    same_name! { m;
        Pxor Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Paddusb Paddusw
        Psubsb Psubsw Psubusb Psubusw Pmullw Pmulhw Pmulhuw Pmuludq Pmaddwd Pavgb Pavgw Psadbw
        Pminub Pmaxub Pminsw Pmaxsw Pminsb Pmaxsb Pminuw Pmaxuw Pminsd Pmaxsd Pminud Pmaxud
        Pand Pandn Por Pcmpeqb Pcmpeqw Pcmpeqd Pcmpeqq Pcmpgtb Pcmpgtw Pcmpgtd Pcmpgtq
        Packsswb Packssdw Packuswb Packusdw Punpcklbw Punpcklwd Punpckldq Punpcklqdq
        Punpckhbw Punpckhwd Punpckhdq Punpckhqdq Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad
        Pabsb Pabsw Pabsd Psignb Psignw Psignd Phaddw Phaddd Phaddsw Phsubw Phsubd Phsubsw
        Pmaddubsw Pmulhrsw Pmuldq Pmulld Phminposuw Pshufb Pshufd Pshuflw Pshufhw Shufps Shufpd
        Palignr Pblendw Blendps Blendpd Mpsadbw
        Pmovsxbw Pmovsxbd Pmovsxbq Pmovsxwd Pmovsxwq Pmovsxdq
        Pmovzxbw Pmovzxbd Pmovzxbq Pmovzxwd Pmovzxwq Pmovzxdq
        Aesenc Aesenclast Aesdec Aesdeclast Aesimc Aeskeygenassist Pclmulqdq
        Sha1msg1 Sha1msg2 Sha1nexte Sha1rnds4 Sha256msg1 Sha256msg2
        Rcpps Rcpss Rsqrtps Rsqrtss
    }
}

/// The form of a shift with an immediate count.
pub(super) fn immediate_shift(m: Mnemonic) -> Option<VecOp> {
    Some(match m {
        Mnemonic::Psllw => VecOp::PsllwI,
        Mnemonic::Pslld => VecOp::PslldI,
        Mnemonic::Psllq => VecOp::PsllqI,
        Mnemonic::Psrlw => VecOp::PsrlwI,
        Mnemonic::Psrld => VecOp::PsrldI,
        Mnemonic::Psrlq => VecOp::PsrlqI,
        Mnemonic::Psraw => VecOp::PsrawI,
        Mnemonic::Psrad => VecOp::PsradI,
        Mnemonic::Pslldq => VecOp::PslldqI,
        Mnemonic::Psrldq => VecOp::PsrldqI,
        _ => return None,
    })
}

/// The immediate byte, 0 where there is none.
pub(super) fn imm8(i: &Instruction) -> u8 {
    let last = i.op_count().saturating_sub(1);
    if i.op_kind(last) == OpKind::Immediate8 { i.immediate8() } else { 0 }
}

pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let m = i.mnemonic();
    let shift = immediate_shift(m).filter(|_| i.op_kind(1) == OpKind::Immediate8);
    if let Some(op) = shift.or_else(|| operation(m)) {
        if let Some(flow) = l.sse_check() {
            return Some(flow);
        }
        let d = vreg(i.op_register(0));
        let s = if shift.is_some() { d } else { l.vec_read(i, 1, Align::Checked) };
        l.b.vec(op, d, d, s, imm8(i));
        return Some(Flow::Next);
    }
    special(l, i)
}

type Special = fn(&mut Lifter, &Instruction);

fn special(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let f: Special = match i.mnemonic() {
        Mnemonic::Ptest => ptest,
        Mnemonic::Insertps => insertps,
        Mnemonic::Pblendvb | Mnemonic::Blendvps | Mnemonic::Blendvpd => blendv,
        Mnemonic::Sha256rnds2 => sha256rnds2,
        Mnemonic::Pcmpistri | Mnemonic::Pcmpistrm => pcmpistr,
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestrm | Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64 => pcmpestr,
        Mnemonic::Maskmovdqu => maskmovdqu,
        _ => return None,
    };
    if let Some(flow) = l.sse_check() {
        return Some(flow);
    }
    f(l, i);
    Some(Flow::Next)
}

fn ptest(l: &mut Lifter, i: &Instruction) {
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Checked));
    let flags = l.b.vec_to_int(VecToInt::Ptest, Ty::I64, a, b, 0);
    l.b.set_flags_raw(flags);
}

fn insertps(l: &mut Lifter, i: &Instruction) {
    let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    // Memory operands are the one element there is; the source field does not count.
    let imm8 = if i.op_kind(1) == OpKind::Memory { i.immediate8() & 0x3f } else { i.immediate8() };
    l.b.vec(VecOp::Insertps, d, d, s, imm8);
}

/// Elements whose sign is set in XMM0 come from the source.
fn blendv(l: &mut Lifter, i: &Instruction) {
    let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Checked));
    let xmm0 = vreg(Register::XMM0);
    let mask = l.b.vtemp();
    match i.mnemonic() {
        Mnemonic::Blendvps => l.b.vec(VecOp::PsradI, mask, xmm0, xmm0, 31),
        other => {
            let zero = l.b.vtemp();
            l.b.vec(VecOp::Pxor, zero, xmm0, xmm0, 0);
            let op = if other == Mnemonic::Pblendvb { VecOp::Pcmpgtb } else { VecOp::Pcmpgtq };
            l.b.vec(op, mask, zero, xmm0, 0);
        }
    }
    l.vec_choose(d, mask, s, d);
}

fn sha256rnds2(l: &mut Lifter, i: &Instruction) {
    let (d, s) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Checked));
    let words = vreg(Register::XMM0);
    let low = l.b.vec_to_int(VecToInt::Pextrq, Ty::I64, words, words, 0);
    let high = l.b.vec_to_int(VecToInt::Pextrq, Ty::I64, words, words, 1);
    l.stage(d, s);
    l.b.call(SHA256RNDS2, &[Val::NONE, low, high]);
    l.unstage(d);
}

/// Index into ECX if the instruction is the index form; flags from the upper half.
fn string_result(l: &mut Lifter, outcome: Val, index: bool) {
    let flags = l.b.op2(Op::Shr, Ty::I64, outcome, 32);
    if index {
        l.b.mov_to(Ty::I32, Val::gpr(reg::RCX), outcome);
    }
    l.b.set_flags_raw(flags);
}

fn pcmpistr(l: &mut Lifter, i: &Instruction) {
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    let outcome = l.b.vec_to_int(VecToInt::Pcmpistri, Ty::I64, a, b, i.immediate8());
    let index = i.mnemonic() == Mnemonic::Pcmpistri;
    if !index {
        l.b.vec(VecOp::Pcmpistrm, vreg(Register::XMM0), a, b, i.immediate8());
    }
    string_result(l, outcome, index);
}

fn pcmpestr(l: &mut Lifter, i: &Instruction) {
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    let index = matches!(i.mnemonic(), Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64);
    let wide = matches!(i.mnemonic(), Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64);
    l.stage(a, b);
    let imm = l.b.iconst(i.immediate8() as i64 | (wide as i64) << 8);
    let outcome = l.b.call(PCMPESTR, &[imm, Val::gpr(reg::RAX), Val::gpr(reg::RDX)]);
    if !index {
        l.unstage(vreg(Register::XMM0));
    }
    string_result(l, outcome, index);
}

/// Stores selected bytes at DS:rDI.
fn maskmovdqu(l: &mut Lifter, i: &Instruction) {
    let (data, mask) = (vreg(i.op_register(1)), vreg(i.op_register(2)));
    let address = l.mask_address(i, 16);
    l.stage(data, mask);
    let bytes = l.b.iconst(16);
    l.b.call(MASKMOV, &[address, bytes]);
}

impl Lifter<'_> {
    /// Linear address of the implicit operand of MASKMOVQ and MASKMOVDQU.
    pub(super) fn mask_address(&mut self, i: &Instruction, bytes: usize) -> Val {
        let ty = match i.op_kind(0) {
            OpKind::MemorySegRDI => Ty::I64,
            OpKind::MemorySegEDI => Ty::I32,
            _ => Ty::I16,
        };
        let offset = self.b.temp();
        self.b.mov_to(ty, offset, Val::gpr(reg::RDI));
        let segment = segment_number(i.memory_segment());
        let addr = self.segmented(segment, offset, bytes, true);
        // By quadwords, both of them (measured).
        self.check_boundary(Mem { addr, disp: 0, flags: segment_flags(segment) }, 8);
        addr
    }
}
