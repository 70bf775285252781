//! Vector operations: the sub-operations of `vec`, `vectoint` and `vecfromint`, declared once.
//!
//! Each is named after the SSE instruction whose 128-bit result it is. The operations under `float` work under MXCSR:
//! they may set its sticky flags, and where an exception is unmasked the lifter sends them through
//! [`crate::helpers::vec::CHECKED`] instead.

macro_rules! sub_ops {
    ($(#[$doc:meta])* $name:ident; integer { $($id:ident $text:literal,)* } float { $($fid:ident $ftext:literal,)* }) => {
        $(#[$doc])*
        #[repr(u16)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[allow(missing_docs)]
        pub enum $name { $($id,)* $($fid,)* }

        impl $name {
            /// All of them in order.
            pub const ALL: &[$name] = &[$($name::$id,)* $($name::$fid,)*];
            /// Name in the text form.
            pub fn name(self) -> &'static str {
                match self { $($name::$id => $text,)* $($name::$fid => $ftext,)* }
            }
            /// Depends on MXCSR and may set its flags.
            #[allow(dead_code)]
            pub fn is_fp(self) -> bool {
                #[allow(unreachable_patterns)]
                match self { $($name::$fid => true,)* _ => false }
            }
            /// From the constant of the operation.
            pub fn from_imm(imm: i64) -> Option<$name> {
                Self::ALL.get(usize::try_from(imm).ok()?).copied()
            }
        }
    };
}

/// Hands the operations that are one host instruction `mnemonic xmm, xmm` under that name to the macro `$then`, before
/// what it is given itself: `plain` ones, and those of MXCSR.
macro_rules! host_instructions {
    ($then:ident $given:tt) => {
        $then! {
            plain {
                Pxor "pxor", Paddb "paddb", Paddw "paddw", Paddd "paddd", Paddq "paddq",
                Psubb "psubb", Psubw "psubw", Psubd "psubd", Psubq "psubq",
                Paddsb "paddsb", Paddsw "paddsw", Paddusb "paddusb", Paddusw "paddusw",
                Psubsb "psubsb", Psubsw "psubsw", Psubusb "psubusb", Psubusw "psubusw",
                Pmullw "pmullw", Pmulhw "pmulhw", Pmulhuw "pmulhuw", Pmuludq "pmuludq", Pmaddwd "pmaddwd",
                Pavgb "pavgb", Pavgw "pavgw", Psadbw "psadbw",
                Pminub "pminub", Pmaxub "pmaxub", Pminsw "pminsw", Pmaxsw "pmaxsw",
                Pminsb "pminsb", Pmaxsb "pmaxsb", Pminuw "pminuw", Pmaxuw "pmaxuw",
                Pminsd "pminsd", Pmaxsd "pmaxsd", Pminud "pminud", Pmaxud "pmaxud",
                Pand "pand", Pandn "pandn", Por "por",
                Pcmpeqb "pcmpeqb", Pcmpeqw "pcmpeqw", Pcmpeqd "pcmpeqd", Pcmpeqq "pcmpeqq",
                Pcmpgtb "pcmpgtb", Pcmpgtw "pcmpgtw", Pcmpgtd "pcmpgtd", Pcmpgtq "pcmpgtq",
                Packsswb "packsswb", Packssdw "packssdw", Packuswb "packuswb", Packusdw "packusdw",
                Punpcklbw "punpcklbw", Punpcklwd "punpcklwd", Punpckldq "punpckldq", Punpcklqdq "punpcklqdq",
                Punpckhbw "punpckhbw", Punpckhwd "punpckhwd", Punpckhdq "punpckhdq", Punpckhqdq "punpckhqdq",
                // Shifts by the low 64 bits of b.
                Psllw "psllw", Pslld "pslld", Psllq "psllq", Psrlw "psrlw", Psrld "psrld", Psrlq "psrlq",
                Psraw "psraw", Psrad "psrad",
                Pabsb "pabsb", Pabsw "pabsw", Pabsd "pabsd", Psignb "psignb", Psignw "psignw", Psignd "psignd",
                Phaddw "phaddw", Phaddd "phaddd", Phaddsw "phaddsw", Phsubw "phsubw", Phsubd "phsubd", Phsubsw "phsubsw",
                Pmaddubsw "pmaddubsw", Pmulhrsw "pmulhrsw", Pmuldq "pmuldq", Pmulld "pmulld", Phminposuw "phminposuw",
                Pshufb "pshufb",
                Pmovsxbw "pmovsxbw", Pmovsxbd "pmovsxbd", Pmovsxbq "pmovsxbq", Pmovsxwd "pmovsxwd", Pmovsxwq "pmovsxwq",
                Pmovsxdq "pmovsxdq", Pmovzxbw "pmovzxbw", Pmovzxbd "pmovzxbd", Pmovzxbq "pmovzxbq", Pmovzxwd "pmovzxwd",
                Pmovzxwq "pmovzxwq", Pmovzxdq "pmovzxdq",
                // No rounding, no flags: approximations.
                Rcpps "rcpps", Rcpss "rcpss", Rsqrtps "rsqrtps", Rsqrtss "rsqrtss",
            }
            float {
                Addps "addps", Addpd "addpd", Addss "addss", Addsd "addsd",
                Subps "subps", Subpd "subpd", Subss "subss", Subsd "subsd",
                Mulps "mulps", Mulpd "mulpd", Mulss "mulss", Mulsd "mulsd",
                Divps "divps", Divpd "divpd", Divss "divss", Divsd "divsd",
                Minps "minps", Minpd "minpd", Minss "minss", Minsd "minsd",
                Maxps "maxps", Maxpd "maxpd", Maxss "maxss", Maxsd "maxsd",
                Sqrtps "sqrtps", Sqrtpd "sqrtpd", Sqrtss "sqrtss", Sqrtsd "sqrtsd",
                Addsubps "addsubps", Addsubpd "addsubpd", Haddps "haddps", Haddpd "haddpd", Hsubps "hsubps", Hsubpd "hsubpd",
                Cvtdq2ps "cvtdq2ps", Cvtps2dq "cvtps2dq", Cvttps2dq "cvttps2dq", Cvtdq2pd "cvtdq2pd", Cvtpd2dq "cvtpd2dq",
                Cvttpd2dq "cvttpd2dq", Cvtps2pd "cvtps2pd", Cvtpd2ps "cvtpd2ps", Cvtss2sd "cvtss2sd", Cvtsd2ss "cvtsd2ss",
            }
            $given
        }
    };
}
pub(crate) use host_instructions;

/// Hands the fused multiply-add operations to the macro `$then`, before what it is given itself. Each is the host's
/// instruction `mnemonic xmm, xmm, xmm`: which of several NaNs is the result depends on the order of the operands.
macro_rules! fma_instructions {
    ($then:ident $given:tt) => {
        $then! {
            fma {
                Vfmadd132ps "vfmadd132ps", Vfmadd132pd "vfmadd132pd", Vfmadd132ss "vfmadd132ss",
                Vfmadd132sd "vfmadd132sd", Vfmsub132ps "vfmsub132ps", Vfmsub132pd "vfmsub132pd",
                Vfmsub132ss "vfmsub132ss", Vfmsub132sd "vfmsub132sd", Vfnmadd132ps "vfnmadd132ps",
                Vfnmadd132pd "vfnmadd132pd", Vfnmadd132ss "vfnmadd132ss", Vfnmadd132sd "vfnmadd132sd",
                Vfnmsub132ps "vfnmsub132ps", Vfnmsub132pd "vfnmsub132pd", Vfnmsub132ss "vfnmsub132ss",
                Vfnmsub132sd "vfnmsub132sd", Vfmaddsub132ps "vfmaddsub132ps", Vfmaddsub132pd "vfmaddsub132pd",
                Vfmsubadd132ps "vfmsubadd132ps", Vfmsubadd132pd "vfmsubadd132pd", Vfmadd213ps "vfmadd213ps",
                Vfmadd213pd "vfmadd213pd", Vfmadd213ss "vfmadd213ss", Vfmadd213sd "vfmadd213sd",
                Vfmsub213ps "vfmsub213ps", Vfmsub213pd "vfmsub213pd", Vfmsub213ss "vfmsub213ss",
                Vfmsub213sd "vfmsub213sd", Vfnmadd213ps "vfnmadd213ps", Vfnmadd213pd "vfnmadd213pd",
                Vfnmadd213ss "vfnmadd213ss", Vfnmadd213sd "vfnmadd213sd", Vfnmsub213ps "vfnmsub213ps",
                Vfnmsub213pd "vfnmsub213pd", Vfnmsub213ss "vfnmsub213ss", Vfnmsub213sd "vfnmsub213sd",
                Vfmaddsub213ps "vfmaddsub213ps", Vfmaddsub213pd "vfmaddsub213pd", Vfmsubadd213ps "vfmsubadd213ps",
                Vfmsubadd213pd "vfmsubadd213pd", Vfmadd231ps "vfmadd231ps", Vfmadd231pd "vfmadd231pd",
                Vfmadd231ss "vfmadd231ss", Vfmadd231sd "vfmadd231sd", Vfmsub231ps "vfmsub231ps",
                Vfmsub231pd "vfmsub231pd", Vfmsub231ss "vfmsub231ss", Vfmsub231sd "vfmsub231sd",
                Vfnmadd231ps "vfnmadd231ps", Vfnmadd231pd "vfnmadd231pd", Vfnmadd231ss "vfnmadd231ss",
                Vfnmadd231sd "vfnmadd231sd", Vfnmsub231ps "vfnmsub231ps", Vfnmsub231pd "vfnmsub231pd",
                Vfnmsub231ss "vfnmsub231ss", Vfnmsub231sd "vfnmsub231sd", Vfmaddsub231ps "vfmaddsub231ps",
                Vfmaddsub231pd "vfmaddsub231pd", Vfmsubadd231ps "vfmsubadd231ps", Vfmsubadd231pd "vfmsubadd231pd",
            }
            $given
        }
    };
}
pub(crate) use fma_instructions;

macro_rules! fma_ops {
    (fma { $($fma:tt)* } {}) => {
        sub_ops! {
            /// `d = f(a, b, c)` on 128-bit vectors; named after the FMA instruction whose result it is, with `a` its first
            /// operand.
            FmaOp;
            integer {}
            float { $($fma)* }
        }
    };
}
fma_instructions! { fma_ops {} }

/// What a fused multiply-add is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FmaParts {
    /// Which operands are multiplied: 0 = 132 (a by c), 1 = 213 (b by a), 2 = 231 (b by c). The other one is added.
    pub order: u8,
    /// 0 = add, 1 = subtract, 2 and 3 = the same with the product negated, 4 and 5 = alternately.
    pub kind: u8,
    /// Double precision.
    pub double: bool,
    /// The lowest element only.
    pub scalar: bool,
}

impl FmaOp {
    /// What it is, from its place in the list.
    pub fn parts(self) -> FmaParts {
        let (order, n) = (self as u8 / 20, self as u8 % 20);
        let kind = if n < 16 { n / 4 } else { 4 + (n - 16) / 2 };
        FmaParts { order, kind, double: n & 1 != 0, scalar: n < 16 && n & 2 != 0 }
    }
}

macro_rules! vec_ops {
    (plain { $($plain:tt)* } float { $($float:tt)* } { integer { $($integer:tt)* } float { $($other:tt)* } }) => {
        sub_ops! {
            /// `d = f(a, b, imm8)` on 128-bit vectors; named after the SSE instruction whose result it is. Instructions
            /// with one source take it as `b`; what they keep of their destination comes from `a`.
            VecOp;
            integer { $($plain)* $($integer)* }
            float { $($float)* $($other)* }
        }
    };
}

host_instructions! {
    vec_ops {
        integer {
            // Shifts of a by imm8: bits, then whole bytes.
            PsllwI "psllwi", PslldI "pslldi", PsllqI "psllqi", PsrlwI "psrlwi", PsrldI "psrldi", PsrlqI "psrlqi",
            PsrawI "psrawi", PsradI "psradi", PslldqI "pslldqi", PsrldqI "psrldqi",
            Pshufd "pshufd", Pshuflw "pshuflw", Pshufhw "pshufhw", Shufps "shufps", Shufpd "shufpd",
            Palignr "palignr", Pblendw "pblendw", Blendps "blendps", Blendpd "blendpd", Insertps "insertps",
            Mpsadbw "mpsadbw",
            // 64-bit forms (MMX) that are not the low half of the 128-bit ones.
            Pshufb64 "pshufb64", Palignr64 "palignr64",
            // a with its low 32 or 64 bits from b; the low 64 bits of b alone.
            Movss "movss", Movsd "movsd", Movq "movq",
            Aesenc "aesenc", Aesenclast "aesenclast", Aesdec "aesdec", Aesdeclast "aesdeclast", Aesimc "aesimc",
            Aeskeygenassist "aeskeygenassist", Pclmulqdq "pclmulqdq",
            Sha1msg1 "sha1msg1", Sha1msg2 "sha1msg2", Sha1nexte "sha1nexte", Sha1rnds4 "sha1rnds4",
            Sha256msg1 "sha256msg1", Sha256msg2 "sha256msg2",
            Pcmpistrm "pcmpistrm",
            // Of AVX: elements of a chosen by the low bits of b's; elements of a shifted by those of b.
            Vpermilps "vpermilps", Vpermilpd "vpermilpd",
            Vpsllvd "vpsllvd", Vpsllvq "vpsllvq", Vpsrlvd "vpsrlvd", Vpsrlvq "vpsrlvq", Vpsravd "vpsravd",
        }
        float {
            // With the predicates of AVX, five bits.
            Vcmpps "vcmpps", Vcmppd "vcmppd", Vcmpss "vcmpss", Vcmpsd "vcmpsd",
            Vcvtph2ps "vcvtph2ps", Vcvtps2ph "vcvtps2ph",
            Cmpps "cmpps", Cmppd "cmppd", Cmpss "cmpss", Cmpsd "cmpsd",
            Roundps "roundps", Roundpd "roundpd", Roundss "roundss", Roundsd "roundsd", Dpps "dpps", Dppd "dppd",
        }
    }
}

sub_ops! {
    /// Integer results of vectors a and b.
    VecToInt;
    integer {
        // Of a.
        Pmovmskb "pmovmskb", Movmskps "movmskps", Movmskpd "movmskpd",
        // Element imm8 (modulo their number) of a, zero-extended.
        Pextrb "pextrb", Pextrw "pextrw", Pextrd "pextrd", Pextrq "pextrq",
        // The arithmetic flags in RFLAGS layout.
        Ptest "ptest",
        // Index in bits 31:0, the arithmetic flags in RFLAGS layout above.
        Pcmpistri "pcmpistri",
    }
    float {
        // The arithmetic flags in RFLAGS layout.
        Comiss "comiss", Comisd "comisd", Ucomiss "ucomiss", Ucomisd "ucomisd",
        // Of a.
        Cvtss2si32 "cvtss2si32", Cvtss2si64 "cvtss2si64", Cvttss2si32 "cvttss2si32", Cvttss2si64 "cvttss2si64",
        Cvtsd2si32 "cvtsd2si32", Cvtsd2si64 "cvtsd2si64", Cvttsd2si32 "cvttsd2si32", Cvttsd2si64 "cvttsd2si64",
    }
}

sub_ops! {
    /// Vector results of a vector a and an integer b.
    VecFromInt;
    integer {
        // The low 32 or 64 bits of b, the rest zero.
        Zext32 "zext32", Zext64 "zext64",
        // a with element imm8 (modulo their number) replaced.
        Pinsrb "pinsrb", Pinsrw "pinsrw", Pinsrd "pinsrd", Pinsrq "pinsrq",
    }
    float {
        // a with its low element replaced.
        Cvtsi2ss32 "cvtsi2ss32", Cvtsi2ss64 "cvtsi2ss64", Cvtsi2sd32 "cvtsi2sd32", Cvtsi2sd64 "cvtsi2sd64",
    }
}

impl VecOp {
    /// The operation takes its second operand only.
    pub fn one_source(self) -> bool {
        use VecOp::*;
        matches!(
            self,
            Sqrtps
                | Sqrtpd
                | Rcpps
                | Rsqrtps
                | Roundps
                | Roundpd
                | Movq
                | Pshufd
                | Pshuflw
                | Pshufhw
                | Phminposuw
                | Pabsb
                | Pabsw
                | Pabsd
                | Pmovsxbw
                | Pmovsxbd
                | Pmovsxbq
                | Pmovsxwd
                | Pmovsxwq
                | Pmovsxdq
                | Pmovzxbw
                | Pmovzxbd
                | Pmovzxbq
                | Pmovzxwd
                | Pmovzxwq
                | Pmovzxdq
                | Cvtdq2ps
                | Cvtps2dq
                | Cvttps2dq
                | Cvtdq2pd
                | Cvtpd2dq
                | Cvttpd2dq
                | Cvtps2pd
                | Cvtpd2ps
                | Vcvtph2ps
                | Vcvtps2ph
                | Aesimc
                | Aeskeygenassist
        )
    }
}

impl VecToInt {
    /// COMISS, COMISD, UCOMISS, UCOMISD.
    pub fn compares_floats(self) -> bool {
        matches!(self, Self::Comiss | Self::Comisd | Self::Ucomiss | Self::Ucomisd)
    }
}
