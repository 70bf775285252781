//! Integer operations on XMM and YMM registers, string comparison, AES, carry-less multiplication, SHA.

use super::Align;
use super::operands::{is_vex, operands};
use crate::helpers::vec::{MASKMOV, PCMPESTR, SHA256RNDS2};
use crate::ir::op::Op;
use crate::ir::vecop::{VecOp, VecToInt};
use crate::ir::{Ty, VVal, Val};
use crate::lift::operand::{Mem, segment_flags, segment_number, vreg};
use crate::lift::{Flow, Lifter};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Instructions that are one operation `d = op(a, b, imm8)` of the same name, in SSE and in VEX form.
macro_rules! same_name {
    ($m:expr; $($id:ident $vex:ident,)*) => {
        match $m { $(Mnemonic::$id | Mnemonic::$vex => Some(VecOp::$id),)* _ => None }
    };
}

/// The operation of an instruction that works element by element or on whole vectors.
pub(super) fn operation(m: Mnemonic) -> Option<VecOp> {
    let other = match m {
        Mnemonic::Andps | Mnemonic::Andpd | Mnemonic::Vandps | Mnemonic::Vandpd => VecOp::Pand,
        Mnemonic::Andnps | Mnemonic::Andnpd | Mnemonic::Vandnps | Mnemonic::Vandnpd => VecOp::Pandn,
        Mnemonic::Orps | Mnemonic::Orpd | Mnemonic::Vorps | Mnemonic::Vorpd => VecOp::Por,
        Mnemonic::Xorps | Mnemonic::Xorpd | Mnemonic::Vxorps | Mnemonic::Vxorpd => VecOp::Pxor,
        Mnemonic::Unpcklps | Mnemonic::Vunpcklps => VecOp::Punpckldq,
        Mnemonic::Unpckhps | Mnemonic::Vunpckhps => VecOp::Punpckhdq,
        Mnemonic::Unpcklpd | Mnemonic::Vunpcklpd => VecOp::Punpcklqdq,
        Mnemonic::Unpckhpd | Mnemonic::Vunpckhpd => VecOp::Punpckhqdq,
        Mnemonic::Vpblendd => VecOp::Blendps,
        Mnemonic::Vpsllvd => VecOp::Vpsllvd,
        Mnemonic::Vpsllvq => VecOp::Vpsllvq,
        Mnemonic::Vpsrlvd => VecOp::Vpsrlvd,
        Mnemonic::Vpsrlvq => VecOp::Vpsrlvq,
        Mnemonic::Vpsravd => VecOp::Vpsravd,
        Mnemonic::Sha1msg1 => VecOp::Sha1msg1,
        Mnemonic::Sha1msg2 => VecOp::Sha1msg2,
        Mnemonic::Sha1nexte => VecOp::Sha1nexte,
        Mnemonic::Sha1rnds4 => VecOp::Sha1rnds4,
        Mnemonic::Sha256msg1 => VecOp::Sha256msg1,
        Mnemonic::Sha256msg2 => VecOp::Sha256msg2,
        _ => return same_operation(m),
    };
    Some(other)
}

fn same_operation(m: Mnemonic) -> Option<VecOp> {
    same_name! { m;
        Pxor Vpxor, Paddb Vpaddb, Paddw Vpaddw, Paddd Vpaddd, Paddq Vpaddq, Psubb Vpsubb, Psubw Vpsubw, Psubd Vpsubd,
        Psubq Vpsubq, Paddsb Vpaddsb, Paddsw Vpaddsw, Paddusb Vpaddusb, Paddusw Vpaddusw, Psubsb Vpsubsb,
        Psubsw Vpsubsw, Psubusb Vpsubusb, Psubusw Vpsubusw, Pmullw Vpmullw, Pmulhw Vpmulhw, Pmulhuw Vpmulhuw,
        Pmuludq Vpmuludq, Pmaddwd Vpmaddwd, Pavgb Vpavgb, Pavgw Vpavgw, Psadbw Vpsadbw, Pminub Vpminub,
        Pmaxub Vpmaxub, Pminsw Vpminsw, Pmaxsw Vpmaxsw, Pminsb Vpminsb, Pmaxsb Vpmaxsb, Pminuw Vpminuw,
        Pmaxuw Vpmaxuw, Pminsd Vpminsd, Pmaxsd Vpmaxsd, Pminud Vpminud, Pmaxud Vpmaxud, Pand Vpand, Pandn Vpandn,
        Por Vpor, Pcmpeqb Vpcmpeqb, Pcmpeqw Vpcmpeqw, Pcmpeqd Vpcmpeqd, Pcmpeqq Vpcmpeqq, Pcmpgtb Vpcmpgtb,
        Pcmpgtw Vpcmpgtw, Pcmpgtd Vpcmpgtd, Pcmpgtq Vpcmpgtq, Packsswb Vpacksswb, Packssdw Vpackssdw,
        Packuswb Vpackuswb, Packusdw Vpackusdw, Punpcklbw Vpunpcklbw, Punpcklwd Vpunpcklwd, Punpckldq Vpunpckldq,
        Punpcklqdq Vpunpcklqdq, Punpckhbw Vpunpckhbw, Punpckhwd Vpunpckhwd, Punpckhdq Vpunpckhdq,
        Punpckhqdq Vpunpckhqdq, Psllw Vpsllw, Pslld Vpslld, Psllq Vpsllq, Psrlw Vpsrlw, Psrld Vpsrld, Psrlq Vpsrlq,
        Psraw Vpsraw, Psrad Vpsrad, Pabsb Vpabsb, Pabsw Vpabsw, Pabsd Vpabsd, Psignb Vpsignb, Psignw Vpsignw,
        Psignd Vpsignd, Phaddw Vphaddw, Phaddd Vphaddd, Phaddsw Vphaddsw, Phsubw Vphsubw, Phsubd Vphsubd,
        Phsubsw Vphsubsw, Pmaddubsw Vpmaddubsw, Pmulhrsw Vpmulhrsw, Pmuldq Vpmuldq, Pmulld Vpmulld,
        Phminposuw Vphminposuw, Pshufb Vpshufb, Pshufd Vpshufd, Pshuflw Vpshuflw, Pshufhw Vpshufhw, Shufps Vshufps,
        Shufpd Vshufpd, Palignr Vpalignr, Pblendw Vpblendw, Blendps Vblendps, Blendpd Vblendpd, Mpsadbw Vmpsadbw,
        Pmovsxbw Vpmovsxbw, Pmovsxbd Vpmovsxbd, Pmovsxbq Vpmovsxbq, Pmovsxwd Vpmovsxwd, Pmovsxwq Vpmovsxwq,
        Pmovsxdq Vpmovsxdq, Pmovzxbw Vpmovzxbw, Pmovzxbd Vpmovzxbd, Pmovzxbq Vpmovzxbq, Pmovzxwd Vpmovzxwd,
        Pmovzxwq Vpmovzxwq, Pmovzxdq Vpmovzxdq, Aesenc Vaesenc, Aesenclast Vaesenclast, Aesdec Vaesdec,
        Aesdeclast Vaesdeclast, Aesimc Vaesimc, Aeskeygenassist Vaeskeygenassist, Pclmulqdq Vpclmulqdq, Rcpps Vrcpps,
        Rcpss Vrcpss, Rsqrtps Vrsqrtps, Rsqrtss Vrsqrtss,
    }
}

/// The form of a shift with an immediate count.
pub(super) fn immediate_shift(m: Mnemonic) -> Option<VecOp> {
    Some(match m {
        Mnemonic::Psllw | Mnemonic::Vpsllw => VecOp::PsllwI,
        Mnemonic::Pslld | Mnemonic::Vpslld => VecOp::PslldI,
        Mnemonic::Psllq | Mnemonic::Vpsllq => VecOp::PsllqI,
        Mnemonic::Psrlw | Mnemonic::Vpsrlw => VecOp::PsrlwI,
        Mnemonic::Psrld | Mnemonic::Vpsrld => VecOp::PsrldI,
        Mnemonic::Psrlq | Mnemonic::Vpsrlq => VecOp::PsrlqI,
        Mnemonic::Psraw | Mnemonic::Vpsraw => VecOp::PsrawI,
        Mnemonic::Psrad | Mnemonic::Vpsrad => VecOp::PsradI,
        Mnemonic::Pslldq | Mnemonic::Vpslldq => VecOp::PslldqI,
        Mnemonic::Psrldq | Mnemonic::Vpsrldq => VecOp::PsrldqI,
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
    let last = i.op_count().saturating_sub(1);
    let shift = immediate_shift(m).filter(|_| i.op_kind(last) == OpKind::Immediate8);
    if let Some(op) = shift.or_else(|| operation(m)) {
        if let Some(flow) = l.vec_check(i) {
            return Some(flow);
        }
        let o = operands(i);
        let s = if shift.is_some() { o.a } else { l.vec_read(i, o.second, o.align()) };
        l.vec_form(op, o, s, imm8(i));
        return Some(Flow::Next);
    }
    special(l, i)
}

type Special = fn(&mut Lifter, &Instruction);

fn special(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let f: Special = match i.mnemonic() {
        Mnemonic::Ptest | Mnemonic::Vptest => ptest,
        Mnemonic::Insertps | Mnemonic::Vinsertps => insertps,
        Mnemonic::Pblendvb | Mnemonic::Blendvps | Mnemonic::Blendvpd => blendv,
        Mnemonic::Vpblendvb | Mnemonic::Vblendvps | Mnemonic::Vblendvpd => blendv,
        Mnemonic::Sha256rnds2 => sha256rnds2,
        Mnemonic::Pcmpistri | Mnemonic::Pcmpistrm | Mnemonic::Vpcmpistri | Mnemonic::Vpcmpistrm => pcmpistr,
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestrm | Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64 => pcmpestr,
        Mnemonic::Vpcmpestri | Mnemonic::Vpcmpestrm | Mnemonic::Vpcmpestri64 | Mnemonic::Vpcmpestrm64 => pcmpestr,
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => maskmovdqu,
        _ => return None,
    };
    if let Some(flow) = l.vec_check(i) {
        return Some(flow);
    }
    f(l, i);
    Some(Flow::Next)
}

fn ptest(l: &mut Lifter, i: &Instruction) {
    let o = operands(i);
    let b = l.vec_read(i, 1, o.align());
    let mut flags = l.b.vec_to_int(VecToInt::Ptest, Ty::I64, o.d, b, 0);
    if o.wide {
        // ZF and CF are those of both halves together; the other flags are 0.
        let high = l.b.vec_to_int(VecToInt::Ptest, Ty::I64, o.d.high(), b.high(), 0);
        flags = l.b.op2(Op::And, Ty::I64, flags, high);
    }
    l.b.set_flags_raw(flags);
}

fn insertps(l: &mut Lifter, i: &Instruction) {
    let o = operands(i);
    let s = l.vec_read(i, o.second, Align::Any);
    // Memory operands are the one element there is; the source field does not count.
    let memory = i.op_kind(o.second) == OpKind::Memory;
    let imm8 = if memory { i.immediate8() & 0x3f } else { i.immediate8() };
    l.vec_form(VecOp::Insertps, o, s, imm8);
}

/// Elements whose sign is set in XMM0, or a fourth operand, come from the second source.
fn blendv(l: &mut Lifter, i: &Instruction) {
    let o = operands(i);
    let s = l.vec_read(i, o.second, o.align());
    let signs = if o.vex { vreg(i.op_register(3)) } else { vreg(Register::XMM0) };
    let halves: &[fn(VVal) -> VVal] = if o.wide { &[|v| v.high(), |v| v] } else { &[|v| v] };
    for half in halves {
        let mask = l.sign_mask(i.mnemonic(), half(signs));
        l.vec_choose(half(o.d), mask, half(s), half(o.a));
    }
    if o.wide { l.wrote_high(o.d) } else { l.finish_low(o) }
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

/// The mask of a string comparison is in XMM0.
fn string_mask(l: &mut Lifter, i: &Instruction) {
    if is_vex(i) {
        l.clear_high(vreg(Register::XMM0));
    }
}

fn pcmpistr(l: &mut Lifter, i: &Instruction) {
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    let outcome = l.b.vec_to_int(VecToInt::Pcmpistri, Ty::I64, a, b, i.immediate8());
    let index = matches!(i.mnemonic(), Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri);
    if !index {
        l.b.vec(VecOp::Pcmpistrm, vreg(Register::XMM0), a, b, i.immediate8());
        string_mask(l, i);
    }
    string_result(l, outcome, index);
}

fn pcmpestr(l: &mut Lifter, i: &Instruction) {
    use Mnemonic::*;
    let (a, b) = (vreg(i.op_register(0)), l.vec_read(i, 1, Align::Any));
    let index = matches!(i.mnemonic(), Pcmpestri | Pcmpestri64 | Vpcmpestri | Vpcmpestri64);
    let wide = matches!(i.mnemonic(), Pcmpestri64 | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64);
    l.stage(a, b);
    let imm = l.b.iconst(i.immediate8() as i64 | (wide as i64) << 8);
    let outcome = l.b.call(PCMPESTR, &[imm, Val::gpr(reg::RAX), Val::gpr(reg::RDX)]);
    if !index {
        l.unstage(vreg(Register::XMM0));
        string_mask(l, i);
    }
    string_result(l, outcome, index);
}

/// Stores selected bytes at DS:rDI.
fn maskmovdqu(l: &mut Lifter, i: &Instruction) {
    let (data, mask) = (vreg(i.op_register(1)), vreg(i.op_register(2)));
    let (address, offset) = l.mask_address(i, 16);
    // The second quadword has an address of its own, which wraps as the first one's does (measured).
    let second = l.b.temp();
    let ty = mask_address_size(i);
    l.b.op2_to(Op::Add, Ty::I64, second, offset, 8);
    l.b.mov_to(ty, second, second);
    l.b.op2_to(Op::Sub, Ty::I64, second, second, offset);
    l.b.op2_to(Op::Add, Ty::I64, second, second, address);
    l.stage(data, mask);
    let bytes = l.b.iconst(16);
    l.b.call(MASKMOV, &[address, bytes, second]);
}

/// Width of the implicit address of MASKMOVQ and MASKMOVDQU.
fn mask_address_size(i: &Instruction) -> Ty {
    match i.op_kind(0) {
        OpKind::MemorySegRDI => Ty::I64,
        OpKind::MemorySegEDI => Ty::I32,
        _ => Ty::I16,
    }
}

impl Lifter<'_> {
    /// All bits of the elements whose sign is set, for an instruction of the BLENDV kind.
    fn sign_mask(&mut self, m: Mnemonic, signs: VVal) -> VVal {
        let mask = self.b.vtemp();
        if matches!(m, Mnemonic::Blendvps | Mnemonic::Vblendvps) {
            self.b.vec(VecOp::PsradI, mask, signs, signs, 31);
            return mask;
        }
        let zero = self.b.vtemp();
        self.b.vec(VecOp::Pxor, zero, signs, signs, 0);
        let bytes = matches!(m, Mnemonic::Pblendvb | Mnemonic::Vpblendvb);
        let op = if bytes { VecOp::Pcmpgtb } else { VecOp::Pcmpgtq };
        self.b.vec(op, mask, zero, signs, 0);
        mask
    }

    /// Linear address of the implicit operand of MASKMOVQ and MASKMOVDQU, and its offset in the segment.
    pub(super) fn mask_address(&mut self, i: &Instruction, bytes: usize) -> (Val, Val) {
        let offset = self.b.temp();
        self.b.mov_to(mask_address_size(i), offset, Val::gpr(reg::RDI));
        let segment = segment_number(i.memory_segment());
        let addr = self.segmented(segment, offset, bytes, true);
        // By quadwords, both of them (measured).
        self.check_boundary(Mem { addr, disp: 0, flags: segment_flags(segment) }, 8);
        (addr, offset)
    }
}
