//! Encodings of the vector operations that are one host instruction of SSE4.2 or below, and for hosts with AVX2 of their
//! VEX forms and what came after (SDM 2, opcode tables). The rest is called.

use super::asm::Map::{self, M0f, M3a, M38};
use super::asm::Reg;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};

/// An instruction `op xmm0, xmm1[, imm8]`, or between a vector and a general register.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    /// Mandatory prefix, 0 for none.
    pub prefix: u8,
    /// Opcode map.
    pub map: Map,
    /// Opcode.
    pub opcode: u8,
    /// REX.W.
    pub wide: bool,
    /// Takes the immediate byte.
    pub imm: bool,
}

const fn plain(prefix: u8, map: Map, opcode: u8) -> Option<Encoding> {
    Some(Encoding { prefix, map, opcode, wide: false, imm: false })
}

const fn with_imm(prefix: u8, map: Map, opcode: u8) -> Option<Encoding> {
    Some(Encoding { prefix, map, opcode, wide: false, imm: true })
}

const fn wide(e: Option<Encoding>) -> Option<Encoding> {
    match e {
        Some(e) => Some(Encoding { wide: true, ..e }),
        None => None,
    }
}

/// `xmm0 = op(xmm0, xmm1)`.
pub fn vec(op: VecOp) -> Option<Encoding> {
    use VecOp::*;
    match op {
        Pxor => plain(0x66, M0f, 0xef),
        Paddb => plain(0x66, M0f, 0xfc),
        Paddw => plain(0x66, M0f, 0xfd),
        Paddd => plain(0x66, M0f, 0xfe),
        Paddq => plain(0x66, M0f, 0xd4),
        Psubb => plain(0x66, M0f, 0xf8),
        Psubw => plain(0x66, M0f, 0xf9),
        Psubd => plain(0x66, M0f, 0xfa),
        Psubq => plain(0x66, M0f, 0xfb),
        Paddsb => plain(0x66, M0f, 0xec),
        Paddsw => plain(0x66, M0f, 0xed),
        Paddusb => plain(0x66, M0f, 0xdc),
        Paddusw => plain(0x66, M0f, 0xdd),
        Psubsb => plain(0x66, M0f, 0xe8),
        Psubsw => plain(0x66, M0f, 0xe9),
        Psubusb => plain(0x66, M0f, 0xd8),
        Psubusw => plain(0x66, M0f, 0xd9),
        Pmullw => plain(0x66, M0f, 0xd5),
        Pmulhw => plain(0x66, M0f, 0xe5),
        Pmulhuw => plain(0x66, M0f, 0xe4),
        Pmuludq => plain(0x66, M0f, 0xf4),
        Pmaddwd => plain(0x66, M0f, 0xf5),
        Pavgb => plain(0x66, M0f, 0xe0),
        Pavgw => plain(0x66, M0f, 0xe3),
        Psadbw => plain(0x66, M0f, 0xf6),
        Pminub => plain(0x66, M0f, 0xda),
        Pmaxub => plain(0x66, M0f, 0xde),
        Pminsw => plain(0x66, M0f, 0xea),
        Pmaxsw => plain(0x66, M0f, 0xee),
        Pand => plain(0x66, M0f, 0xdb),
        Pandn => plain(0x66, M0f, 0xdf),
        Por => plain(0x66, M0f, 0xeb),
        Pcmpeqb => plain(0x66, M0f, 0x74),
        Pcmpeqw => plain(0x66, M0f, 0x75),
        Pcmpeqd => plain(0x66, M0f, 0x76),
        Pcmpgtb => plain(0x66, M0f, 0x64),
        Pcmpgtw => plain(0x66, M0f, 0x65),
        Pcmpgtd => plain(0x66, M0f, 0x66),
        Packsswb => plain(0x66, M0f, 0x63),
        Packssdw => plain(0x66, M0f, 0x6b),
        Packuswb => plain(0x66, M0f, 0x67),
        Punpcklbw => plain(0x66, M0f, 0x60),
        Punpcklwd => plain(0x66, M0f, 0x61),
        Punpckldq => plain(0x66, M0f, 0x62),
        Punpcklqdq => plain(0x66, M0f, 0x6c),
        Punpckhbw => plain(0x66, M0f, 0x68),
        Punpckhwd => plain(0x66, M0f, 0x69),
        Punpckhdq => plain(0x66, M0f, 0x6a),
        Punpckhqdq => plain(0x66, M0f, 0x6d),
        Psllw => plain(0x66, M0f, 0xf1),
        Pslld => plain(0x66, M0f, 0xf2),
        Psllq => plain(0x66, M0f, 0xf3),
        Psrlw => plain(0x66, M0f, 0xd1),
        Psrld => plain(0x66, M0f, 0xd2),
        Psrlq => plain(0x66, M0f, 0xd3),
        Psraw => plain(0x66, M0f, 0xe1),
        Psrad => plain(0x66, M0f, 0xe2),
        Addpd => plain(0x66, M0f, 0x58),
        Subpd => plain(0x66, M0f, 0x5c),
        Mulpd => plain(0x66, M0f, 0x59),
        Divpd => plain(0x66, M0f, 0x5e),
        Minpd => plain(0x66, M0f, 0x5d),
        Maxpd => plain(0x66, M0f, 0x5f),
        Sqrtpd => plain(0x66, M0f, 0x51),
        Addsubpd => plain(0x66, M0f, 0xd0),
        Haddpd => plain(0x66, M0f, 0x7c),
        Hsubpd => plain(0x66, M0f, 0x7d),
        Cvtps2dq => plain(0x66, M0f, 0x5b),
        Cvttpd2dq => plain(0x66, M0f, 0xe6),
        Cvtpd2ps => plain(0x66, M0f, 0x5a),
        Pminsb => plain(0x66, M38, 0x38),
        Pmaxsb => plain(0x66, M38, 0x3c),
        Pminuw => plain(0x66, M38, 0x3a),
        Pmaxuw => plain(0x66, M38, 0x3e),
        Pminsd => plain(0x66, M38, 0x39),
        Pmaxsd => plain(0x66, M38, 0x3d),
        Pminud => plain(0x66, M38, 0x3b),
        Pmaxud => plain(0x66, M38, 0x3f),
        Pcmpeqq => plain(0x66, M38, 0x29),
        Pcmpgtq => plain(0x66, M38, 0x37),
        Packusdw => plain(0x66, M38, 0x2b),
        Pabsb => plain(0x66, M38, 0x1c),
        Pabsw => plain(0x66, M38, 0x1d),
        Pabsd => plain(0x66, M38, 0x1e),
        Psignb => plain(0x66, M38, 0x08),
        Psignw => plain(0x66, M38, 0x09),
        Psignd => plain(0x66, M38, 0x0a),
        Phaddw => plain(0x66, M38, 0x01),
        Phaddd => plain(0x66, M38, 0x02),
        Phaddsw => plain(0x66, M38, 0x03),
        Phsubw => plain(0x66, M38, 0x05),
        Phsubd => plain(0x66, M38, 0x06),
        Phsubsw => plain(0x66, M38, 0x07),
        Pmaddubsw => plain(0x66, M38, 0x04),
        Pmulhrsw => plain(0x66, M38, 0x0b),
        Pmuldq => plain(0x66, M38, 0x28),
        Pmulld => plain(0x66, M38, 0x40),
        Phminposuw => plain(0x66, M38, 0x41),
        Pshufb => plain(0x66, M38, 0x00),
        Pmovsxbw => plain(0x66, M38, 0x20),
        Pmovsxbd => plain(0x66, M38, 0x21),
        Pmovsxbq => plain(0x66, M38, 0x22),
        Pmovsxwd => plain(0x66, M38, 0x23),
        Pmovsxwq => plain(0x66, M38, 0x24),
        Pmovsxdq => plain(0x66, M38, 0x25),
        Pmovzxbw => plain(0x66, M38, 0x30),
        Pmovzxbd => plain(0x66, M38, 0x31),
        Pmovzxbq => plain(0x66, M38, 0x32),
        Pmovzxwd => plain(0x66, M38, 0x33),
        Pmovzxwq => plain(0x66, M38, 0x34),
        Pmovzxdq => plain(0x66, M38, 0x35),
        Pshufd => with_imm(0x66, M0f, 0x70),
        Shufpd => with_imm(0x66, M0f, 0xc6),
        Cmppd => with_imm(0x66, M0f, 0xc2),
        Pshuflw => with_imm(0xf2, M0f, 0x70),
        Cmpsd => with_imm(0xf2, M0f, 0xc2),
        Pshufhw => with_imm(0xf3, M0f, 0x70),
        Cmpss => with_imm(0xf3, M0f, 0xc2),
        Shufps => with_imm(0x00, M0f, 0xc6),
        Cmpps => with_imm(0x00, M0f, 0xc2),
        Palignr => with_imm(0x66, M3a, 0x0f),
        Pblendw => with_imm(0x66, M3a, 0x0e),
        Blendps => with_imm(0x66, M3a, 0x0c),
        Blendpd => with_imm(0x66, M3a, 0x0d),
        Insertps => with_imm(0x66, M3a, 0x21),
        Mpsadbw => with_imm(0x66, M3a, 0x42),
        Roundps => with_imm(0x66, M3a, 0x08),
        Roundpd => with_imm(0x66, M3a, 0x09),
        Roundss => with_imm(0x66, M3a, 0x0a),
        Roundsd => with_imm(0x66, M3a, 0x0b),
        Dpps => with_imm(0x66, M3a, 0x40),
        Dppd => with_imm(0x66, M3a, 0x41),
        Movss => plain(0xf3, M0f, 0x10),
        Movq => plain(0xf3, M0f, 0x7e),
        Rcpss => plain(0xf3, M0f, 0x53),
        Rsqrtss => plain(0xf3, M0f, 0x52),
        Addss => plain(0xf3, M0f, 0x58),
        Subss => plain(0xf3, M0f, 0x5c),
        Mulss => plain(0xf3, M0f, 0x59),
        Divss => plain(0xf3, M0f, 0x5e),
        Minss => plain(0xf3, M0f, 0x5d),
        Maxss => plain(0xf3, M0f, 0x5f),
        Sqrtss => plain(0xf3, M0f, 0x51),
        Cvttps2dq => plain(0xf3, M0f, 0x5b),
        Cvtdq2pd => plain(0xf3, M0f, 0xe6),
        Cvtss2sd => plain(0xf3, M0f, 0x5a),
        Movsd => plain(0xf2, M0f, 0x10),
        Addsd => plain(0xf2, M0f, 0x58),
        Subsd => plain(0xf2, M0f, 0x5c),
        Mulsd => plain(0xf2, M0f, 0x59),
        Divsd => plain(0xf2, M0f, 0x5e),
        Minsd => plain(0xf2, M0f, 0x5d),
        Maxsd => plain(0xf2, M0f, 0x5f),
        Sqrtsd => plain(0xf2, M0f, 0x51),
        Addsubps => plain(0xf2, M0f, 0xd0),
        Haddps => plain(0xf2, M0f, 0x7c),
        Hsubps => plain(0xf2, M0f, 0x7d),
        Cvtpd2dq => plain(0xf2, M0f, 0xe6),
        Cvtsd2ss => plain(0xf2, M0f, 0x5a),
        Rcpps => plain(0x00, M0f, 0x53),
        Rsqrtps => plain(0x00, M0f, 0x52),
        Addps => plain(0x00, M0f, 0x58),
        Subps => plain(0x00, M0f, 0x5c),
        Mulps => plain(0x00, M0f, 0x59),
        Divps => plain(0x00, M0f, 0x5e),
        Minps => plain(0x00, M0f, 0x5d),
        Maxps => plain(0x00, M0f, 0x5f),
        Sqrtps => plain(0x00, M0f, 0x51),
        Cvtdq2ps => plain(0x00, M0f, 0x5b),
        Cvtps2pd => plain(0x00, M0f, 0x5a),
        _ => None,
    }
}

/// What stands in the place of an operand that a VEX form does not have: the field must be all ones, which is register 0.
pub const NO_OPERAND: Reg = Reg(0);

/// `d = op(a, b)` with a VEX prefix, on a host with AVX2: prefix, map and opcode are those of the SSE form, if there is one.
pub fn vex(op: VecOp) -> Option<Encoding> {
    use VecOp::*;
    let aes = || is_x86_feature_detected!("aes");
    match op {
        Vpermilps => plain(0x66, M38, 0x0c),
        Vpermilpd => plain(0x66, M38, 0x0d),
        Vpsrlvd => plain(0x66, M38, 0x45),
        Vpsrlvq => wide(plain(0x66, M38, 0x45)),
        Vpsravd => plain(0x66, M38, 0x46),
        Vpsllvd => plain(0x66, M38, 0x47),
        Vpsllvq => wide(plain(0x66, M38, 0x47)),
        Vcmpps => with_imm(0x00, M0f, 0xc2),
        Vcmppd => with_imm(0x66, M0f, 0xc2),
        Vcmpss => with_imm(0xf3, M0f, 0xc2),
        Vcmpsd => with_imm(0xf2, M0f, 0xc2),
        Vcvtph2ps => plain(0x66, M38, 0x13),
        Vcvtps2ph => with_imm(0x66, M3a, 0x1d),
        Aesimc if aes() => plain(0x66, M38, 0xdb),
        Aesenc if aes() => plain(0x66, M38, 0xdc),
        Aesenclast if aes() => plain(0x66, M38, 0xdd),
        Aesdec if aes() => plain(0x66, M38, 0xde),
        Aesdeclast if aes() => plain(0x66, M38, 0xdf),
        Aeskeygenassist if aes() => with_imm(0x66, M3a, 0xdf),
        Pclmulqdq if is_x86_feature_detected!("pclmulqdq") => with_imm(0x66, M3a, 0x44),
        // With a VEX prefix the other bits of the predicate would count.
        Cmpps | Cmppd | Cmpss | Cmpsd => None,
        op => vec(op),
    }
}

/// A fused multiply-add (VEX).
pub fn fma(op: FmaOp) -> Encoding {
    let f = op.parts();
    let kind = [8, 10, 12, 14, 6, 7][f.kind as usize] + f.scalar as u8;
    let opcode = [0x90, 0xa0, 0xb0][f.order as usize] + kind;
    Encoding { prefix: 0x66, map: M38, opcode, wide: f.double, imm: false }
}

/// Shifts of `xmm0` by an immediate: opcode and number in the opcode's group.
pub fn shift(op: VecOp) -> Option<(u8, u8)> {
    Some(match op {
        VecOp::PsrlwI => (0x71, 2),
        VecOp::PsrawI => (0x71, 4),
        VecOp::PsllwI => (0x71, 6),
        VecOp::PsrldI => (0x72, 2),
        VecOp::PsradI => (0x72, 4),
        VecOp::PslldI => (0x72, 6),
        VecOp::PsrlqI => (0x73, 2),
        VecOp::PsrldqI => (0x73, 3),
        VecOp::PsllqI => (0x73, 6),
        VecOp::PslldqI => (0x73, 7),
        _ => return None,
    })
}

/// Where an instruction between a vector and a general register has the latter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// In the field `reg`.
    Reg,
    /// In the field `rm`.
    Rm,
}

/// `integer = op(xmm0)`.
pub fn to_int(op: VecToInt) -> Option<(Encoding, Side)> {
    use VecToInt::*;
    let (e, side) = match op {
        Pmovmskb => (plain(0x66, M0f, 0xd7), Side::Reg),
        Movmskps => (plain(0, M0f, 0x50), Side::Reg),
        Movmskpd => (plain(0x66, M0f, 0x50), Side::Reg),
        Pextrb => (with_imm(0x66, M3a, 0x14), Side::Rm),
        Pextrw => (with_imm(0x66, M3a, 0x15), Side::Rm),
        Pextrd => (with_imm(0x66, M3a, 0x16), Side::Rm),
        Pextrq => (wide(with_imm(0x66, M3a, 0x16)), Side::Rm),
        Cvtss2si32 => (plain(0xf3, M0f, 0x2d), Side::Reg),
        Cvtss2si64 => (wide(plain(0xf3, M0f, 0x2d)), Side::Reg),
        Cvttss2si32 => (plain(0xf3, M0f, 0x2c), Side::Reg),
        Cvttss2si64 => (wide(plain(0xf3, M0f, 0x2c)), Side::Reg),
        Cvtsd2si32 => (plain(0xf2, M0f, 0x2d), Side::Reg),
        Cvtsd2si64 => (wide(plain(0xf2, M0f, 0x2d)), Side::Reg),
        Cvttsd2si32 => (plain(0xf2, M0f, 0x2c), Side::Reg),
        Cvttsd2si64 => (wide(plain(0xf2, M0f, 0x2c)), Side::Reg),
        _ => return None,
    };
    e.map(|e| (e, side))
}

/// Comparisons of `xmm0` with `xmm1` that set the host's flags: PTEST, COMISx, UCOMISx.
pub fn comparison(op: VecToInt) -> Option<Encoding> {
    use VecToInt::*;
    match op {
        Ptest => plain(0x66, M38, 0x17),
        Comiss => plain(0, M0f, 0x2f),
        Comisd => plain(0x66, M0f, 0x2f),
        Ucomiss => plain(0, M0f, 0x2e),
        Ucomisd => plain(0x66, M0f, 0x2e),
        _ => None,
    }
}

/// `xmm0 = op(xmm0, integer)`; the integer is in the field `rm`.
pub fn from_int(op: VecFromInt) -> Option<Encoding> {
    use VecFromInt::*;
    match op {
        Zext32 => plain(0x66, M0f, 0x6e),
        Zext64 => wide(plain(0x66, M0f, 0x6e)),
        Pinsrb => with_imm(0x66, M3a, 0x20),
        Pinsrw => with_imm(0x66, M0f, 0xc4),
        Pinsrd => with_imm(0x66, M3a, 0x22),
        Pinsrq => wide(with_imm(0x66, M3a, 0x22)),
        Cvtsi2ss32 => plain(0xf3, M0f, 0x2a),
        Cvtsi2ss64 => wide(plain(0xf3, M0f, 0x2a)),
        Cvtsi2sd32 => plain(0xf2, M0f, 0x2a),
        Cvtsi2sd64 => wide(plain(0xf2, M0f, 0x2a)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::asm::{Asm, XMM0, XMM1};
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn each_encoding_is_the_instruction_of_its_name() {
        for op in VecOp::ALL {
            let Some(e) = vec(*op) else { continue };
            let mut a = Asm::default();
            a.sse(e.prefix, e.map, e.opcode, e.wide, XMM0, XMM1);
            if e.imm {
                a.byte(1);
            }
            let i = Decoder::with_ip(64, &a.code, 0, DecoderOptions::NONE).decode();
            assert_eq!(format!("{:?}", i.mnemonic()).to_lowercase(), op.name(), "{:02x?}", a.code);
            assert_eq!(i.len(), a.code.len());
        }
    }

    #[test]
    fn each_vex_encoding_is_the_instruction_of_its_name() {
        let mut checked = 0;
        let named = VecOp::ALL.iter().filter_map(|op| Some((op.name(), vex(*op)?, op.one_source())));
        let fused = FmaOp::ALL.iter().map(|op| (op.name(), fma(*op), false));
        for (name, e, one_source) in named.chain(fused) {
            let mut a = Asm::default();
            let first = if one_source { NO_OPERAND } else { Reg(9) };
            a.vex(e.prefix, e.map, e.opcode, e.wide, Reg(10), first, Reg(3));
            if e.imm {
                a.byte(1);
            }
            let i = Decoder::with_ip(64, &a.code, 0, DecoderOptions::NONE).decode();
            let want = if name.starts_with('v') { name.to_owned() } else { format!("v{name}") };
            // Predicates with a name of their own are mnemonics of their own to formatters only.
            assert_eq!(format!("{:?}", i.mnemonic()).to_lowercase(), want, "{:02x?}", a.code);
            assert_eq!(i.len(), a.code.len());
            let registers: Vec<usize> = (0..i.op_count())
                .filter(|n| i.op_kind(*n) == iced_x86::OpKind::Register)
                .map(|n| i.op_register(n).number())
                .collect();
            let expected: &[usize] = match (one_source, name) {
                (_, "vcvtps2ph") => &[3, 10],
                (true, _) => &[10, 3],
                (false, _) => &[10, 9, 3],
            };
            assert_eq!(registers, expected, "{name}");
            checked += 1;
        }
        assert!(checked > 200, "{checked}");
    }
}
