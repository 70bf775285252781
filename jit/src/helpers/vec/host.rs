//! Vector operations on the host's own vector instructions: the tables behind the IR's `vec`, `vectoint` and
//! `vecfromint`. Floating-point operations run under whatever MXCSR is loaded, see [`super::mxcsr`].

use super::{crypto, lanes, strings};
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt, fma_instructions, host_instructions};
use std::arch::asm;
use std::arch::x86_64::__m128i;

/// `d = f(a, b, imm8)`.
pub type VecFn = fn(u128, u128, u8) -> u128;
/// Integer `d = f(a, b, imm8)`.
pub type VecToIntFn = fn(u128, u128, u8) -> u64;
/// `d = f(a, b, c)`.
pub type FmaFn = fn(u128, u128, u128) -> u128;
/// Vector `d = f(a, integer b, imm8)`.
pub type VecFromIntFn = fn(u128, u64, u8) -> u128;

/// The host has what is used without asking at each operation: SSE4.2 and all before it.
pub fn host_has_required() -> bool {
    is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("ssse3")
}

/// The host has what AVX, AVX2, FMA and F16C of a guest are done with.
pub fn host_has_avx2() -> bool {
    #[cfg(test)]
    if let Some(pinned) = PINNED.get() {
        return pinned;
    }
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(test)]
thread_local! {
    static PINNED: std::cell::Cell<Option<bool>> = const { std::cell::Cell::new(None) };
}

/// While it lives, code made by this thread is for a host with or without AVX2, whatever this one has.
#[cfg(test)]
pub struct Pinned(());

#[cfg(test)]
impl Pinned {
    /// For a host with AVX2 (which this one must have if the code is run) or without.
    pub fn avx2(has: bool) -> Self {
        PINNED.set(Some(has));
        Self(())
    }
}

#[cfg(test)]
impl Drop for Pinned {
    fn drop(&mut self) {
        PINNED.set(None);
    }
}

#[inline(always)]
fn xmm(v: u128) -> __m128i {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute::<u128, __m128i>(v) }
}

#[inline(always)]
fn bits(v: __m128i) -> u128 {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute::<__m128i, u128>(v) }
}

/// An instruction `mnemonic xmm, xmm` that leaves MXCSR alone.
macro_rules! plain {
    ($mn:literal) => {{
        fn f(a: u128, b: u128, _imm8: u8) -> u128 {
            let mut x = xmm(a);
            // SAFETY: registers only; the host has it: SSE4.2 is required ([`host_has_required`]), the rest detected.
            unsafe {
                asm!(concat!($mn, " {0}, {1}"), inout(xmm_reg) x, in(xmm_reg) xmm(b),
                    options(pure, nomem, nostack, preserves_flags));
            }
            bits(x)
        }
        f
    }};
}

/// An instruction `mnemonic xmm, xmm` that works under MXCSR.
macro_rules! float {
    ($mn:literal) => {{
        fn f(a: u128, b: u128, _imm8: u8) -> u128 {
            let mut x = xmm(a);
            // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR.
            unsafe {
                asm!(concat!($mn, " {0}, {1}"), inout(xmm_reg) x, in(xmm_reg) xmm(b), options(nomem, nostack));
            }
            bits(x)
        }
        f
    }};
}

/// An instruction `mnemonic xmm, xmm, imm8`: the immediate, after `$imm` of it was taken, is one of the list.
macro_rules! by_imm {
    ($mn:literal, |$i:ident| $imm:expr, [$($n:literal)*]) => {{
        fn f(a: u128, b: u128, $i: u8) -> u128 {
            let mut x = xmm(a);
            match $imm {
                // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR.
                $($n => unsafe {
                    asm!(concat!($mn, " {0}, {1}, ", $n), inout(xmm_reg) x, in(xmm_reg) xmm(b), options(nomem, nostack));
                },)*
                _ => unreachable!("the immediate was cut to the list"),
            }
            bits(x)
        }
        f
    }};
}

/// An instruction `mnemonic xmm, xmm, xmm` of AVX or later.
macro_rules! vex {
    ($mn:literal) => {{
        fn f(a: u128, b: u128, _imm8: u8) -> u128 {
            let x: __m128i;
            // SAFETY: registers only; who offers AVX to guests has asked for the host's ([`host_has_avx2`]).
            unsafe {
                asm!(concat!($mn, " {0}, {1}, {2}"), lateout(xmm_reg) x, in(xmm_reg) xmm(a), in(xmm_reg) xmm(b),
                    options(pure, nomem, nostack, preserves_flags));
            }
            bits(x)
        }
        f
    }};
}

/// An instruction of AVX or later with the operands `$operands` (0: result, 1: `a`, 2: `b`) and an immediate, which,
/// after `$imm` of it was taken, is one of the list.
macro_rules! vex_by_imm {
    ($mn:literal, $operands:literal, |$i:ident| $imm:expr, [$($n:literal)*]) => {{
        fn f(a: u128, b: u128, $i: u8) -> u128 {
            let x: __m128i;
            match $imm {
                // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR; as in `vex`.
                $($n => unsafe {
                    asm!(concat!($mn, " ", $operands, ", ", $n, " /* {1} {2} */"),
                        lateout(xmm_reg) x, in(xmm_reg) xmm(a), in(xmm_reg) xmm(b), options(nomem, nostack));
                },)*
                _ => unreachable!("the immediate was cut to the list"),
            }
            bits(x)
        }
        f
    }};
}

/// A comparison with one of AVX's 32 predicates.
macro_rules! vex_compare {
    ($mn:literal) => {
        vex_by_imm!($mn, "{0}, {1}, {2}", |i| i & 31,
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31])
    };
}

/// A shift by the low 64 bits of a register, with an immediate count.
macro_rules! shift_imm {
    ($mn:literal) => {{
        fn f(a: u128, _b: u128, imm8: u8) -> u128 {
            plain!($mn)(a, imm8 as u128, 0)
        }
        f
    }};
}

macro_rules! table {
    (plain { $($p:ident $pt:literal,)* } float { $($q:ident $qt:literal,)* }
     { shift { $($s:ident $st:literal,)* } detected { $($feature:tt { $($d:ident $df:expr, $soft:expr;)* })* }
       other { $($o:ident $of:expr,)* } }) => {
        /// The function of an operation: the host's instruction, or plain Rust where the host may lack it.
        pub fn vec_fn(op: VecOp) -> VecFn {
            match op {
                $(VecOp::$p => plain!($pt),)*
                $(VecOp::$q => float!($qt),)*
                $(VecOp::$s => shift_imm!($st),)*
                $($(VecOp::$d => if is_x86_feature_detected!($feature) { $df } else { $soft },)*)*
                $(VecOp::$o => $of,)*
            }
        }
    };
}

host_instructions! {
    table {
        shift {
            PsllwI "psllw", PslldI "pslld", PsllqI "psllq", PsrlwI "psrlw", PsrldI "psrld", PsrlqI "psrlq",
            PsrawI "psraw", PsradI "psrad",
        }
        detected {
            "aes" { Aesenc plain!("aesenc"), crypto::aesenc; Aesenclast plain!("aesenclast"), crypto::aesenclast;
                Aesdec plain!("aesdec"), crypto::aesdec; Aesdeclast plain!("aesdeclast"), crypto::aesdeclast;
                Aesimc plain!("aesimc"), crypto::aesimc; Aeskeygenassist aeskeygenassist, crypto::aeskeygenassist; }
            "pclmulqdq" { Pclmulqdq by_imm!("pclmulqdq", |i| i & 0x11, [0 1 16 17]), crypto::pclmulqdq; }
            "sha" { Sha1msg1 plain!("sha1msg1"), crypto::sha1msg1; Sha1msg2 plain!("sha1msg2"), crypto::sha1msg2;
                Sha1nexte plain!("sha1nexte"), crypto::sha1nexte;
                Sha1rnds4 by_imm!("sha1rnds4", |i| i & 3, [0 1 2 3]), crypto::sha1rnds4;
                Sha256msg1 plain!("sha256msg1"), crypto::sha256msg1; Sha256msg2 plain!("sha256msg2"), crypto::sha256msg2; }
        }
        other {
            PslldqI lanes::pslldq, PsrldqI lanes::psrldq, Pshufd lanes::pshufd, Pshuflw lanes::pshuflw,
            Pshufhw lanes::pshufhw, Shufps lanes::shufps, Shufpd lanes::shufpd, Palignr lanes::palignr,
            Pblendw lanes::pblendw, Blendps lanes::blendps, Blendpd lanes::blendpd, Insertps lanes::insertps,
            Pshufb64 lanes::pshufb64, Palignr64 lanes::palignr64, Movss lanes::movss, Movsd lanes::movsd,
            Movq lanes::movq, Pcmpistrm strings::pcmpistrm, Dpps dpps, Dppd dppd,
            Mpsadbw by_imm!("mpsadbw", |i| i & 7, [0 1 2 3 4 5 6 7]),
            // Predicates beyond 7 exist in the VEX forms only (SDM 2A CMPPS).
            Cmpps by_imm!("cmpps", |i| i & 7, [0 1 2 3 4 5 6 7]),
            Cmppd by_imm!("cmppd", |i| i & 7, [0 1 2 3 4 5 6 7]),
            Cmpss by_imm!("cmpss", |i| i & 7, [0 1 2 3 4 5 6 7]),
            Cmpsd by_imm!("cmpsd", |i| i & 7, [0 1 2 3 4 5 6 7]),
            Roundps by_imm!("roundps", |i| i & 15, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]),
            Roundpd by_imm!("roundpd", |i| i & 15, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]),
            Roundss by_imm!("roundss", |i| i & 15, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]),
            Roundsd by_imm!("roundsd", |i| i & 15, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]),
            Vpermilps vex!("vpermilps"), Vpermilpd vex!("vpermilpd"), Vpsllvd vex!("vpsllvd"), Vpsllvq vex!("vpsllvq"),
            Vpsrlvd vex!("vpsrlvd"), Vpsrlvq vex!("vpsrlvq"), Vpsravd vex!("vpsravd"),
            Vcmpps vex_compare!("vcmpps"), Vcmppd vex_compare!("vcmppd"), Vcmpss vex_compare!("vcmpss"),
            Vcmpsd vex_compare!("vcmpsd"), Vcvtph2ps vcvtph2ps,
            Vcvtps2ph vex_by_imm!("vcvtps2ph", "{0}, {2}", |i| i & 7, [0 1 2 3 4 5 6 7]),
        }
    }
}

macro_rules! fma_table {
    (fma { $($id:ident $mn:literal,)* } {}) => {
        /// The function of a fused multiply-add.
        pub fn fma_fn(op: FmaOp) -> FmaFn {
            match op {
                $(FmaOp::$id => {
                    fn f(a: u128, b: u128, c: u128) -> u128 {
                        let mut x = xmm(a);
                        // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR; who
                        // offers FMA to guests has asked for the host's ([`host_has_avx2`]).
                        unsafe {
                            asm!(concat!($mn, " {0}, {1}, {2}"), inout(xmm_reg) x, in(xmm_reg) xmm(b),
                                in(xmm_reg) xmm(c), options(nomem, nostack));
                        }
                        bits(x)
                    }
                    f
                })*
            }
        }
    };
}

fma_instructions! { fma_table {} }

fn vcvtph2ps(_a: u128, b: u128, _imm8: u8) -> u128 {
    let x: __m128i;
    // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR; as in `fma_fn`.
    unsafe { asm!("vcvtph2ps {0}, {1}", lateout(xmm_reg) x, in(xmm_reg) xmm(b), options(nomem, nostack)) };
    bits(x)
}

/// The round constant is only exclusive-ored into elements 1 and 3 (SDM 2A AESKEYGENASSIST).
fn aeskeygenassist(a: u128, b: u128, imm8: u8) -> u128 {
    let zero = by_imm!("aeskeygenassist", |_i| 0, [0])(a, b, 0);
    zero ^ (imm8 as u128) << 32 ^ (imm8 as u128) << 96
}

/// The sum goes to all elements on the host, then the immediate's low half selects.
fn dpps(a: u128, b: u128, imm8: u8) -> u128 {
    let all = by_imm!("dpps", |i| i | 15,
        [15 31 47 63 79 95 111 127 143 159 175 191 207 223 239 255])(a, b, imm8);
    lanes::blendps(0, all, imm8)
}

fn dppd(a: u128, b: u128, imm8: u8) -> u128 {
    let all = by_imm!("dppd", |i| i & 0x30 | 3, [3 19 35 51])(a, b, imm8);
    lanes::blendpd(0, all, imm8)
}

/// `mnemonic r, xmm`.
macro_rules! to_int {
    ($mn:literal, $reg:literal) => {{
        fn f(a: u128, _b: u128, _imm8: u8) -> u64 {
            let r: u64;
            // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR.
            unsafe {
                asm!(concat!($mn, " {0", $reg, "}, {1}"), lateout(reg) r, in(xmm_reg) xmm(a), options(nomem, nostack));
            }
            r
        }
        f
    }};
}

/// `mnemonic xmm, xmm` with a result in the flags.
macro_rules! to_flags {
    ($mn:literal) => {{
        fn f(a: u128, b: u128, _imm8: u8) -> u64 {
            let r: u64;
            // SAFETY: registers, flags and MXCSR's flags only; the stack is balanced; exceptions are masked.
            unsafe {
                asm!(concat!($mn, " {1}, {2}"), "pushfq", "pop {0}", out(reg) r, in(xmm_reg) xmm(a), in(xmm_reg) xmm(b));
            }
            r & crate::state::flag::ARITH
        }
        f
    }};
}

/// `mnemonic xmm, r`.
macro_rules! from_int {
    ($mn:literal, $reg:literal) => {{
        fn f(a: u128, b: u64, _imm8: u8) -> u128 {
            let mut x = xmm(a);
            // SAFETY: registers and MXCSR's flags only; all exceptions are masked in the host's MXCSR.
            unsafe {
                asm!(concat!($mn, " {0}, {1", $reg, "}"), inout(xmm_reg) x, in(reg) b, options(nomem, nostack));
            }
            bits(x)
        }
        f
    }};
}

/// The function of an operation with an integer result (zero-extended).
pub fn vec_to_int_fn(op: VecToInt) -> VecToIntFn {
    match op {
        VecToInt::Pmovmskb => to_int!("pmovmskb", ":e"),
        VecToInt::Movmskps => to_int!("movmskps", ":e"),
        VecToInt::Movmskpd => to_int!("movmskpd", ":e"),
        VecToInt::Pextrb => lanes::pextrb,
        VecToInt::Pextrw => lanes::pextrw,
        VecToInt::Pextrd => lanes::pextrd,
        VecToInt::Pextrq => lanes::pextrq,
        VecToInt::Ptest => to_flags!("ptest"),
        VecToInt::Pcmpistri => strings::pcmpistri,
        VecToInt::Comiss => to_flags!("comiss"),
        VecToInt::Comisd => to_flags!("comisd"),
        VecToInt::Ucomiss => to_flags!("ucomiss"),
        VecToInt::Ucomisd => to_flags!("ucomisd"),
        VecToInt::Cvtss2si32 => to_int!("cvtss2si", ":e"),
        VecToInt::Cvtss2si64 => to_int!("cvtss2si", ":r"),
        VecToInt::Cvttss2si32 => to_int!("cvttss2si", ":e"),
        VecToInt::Cvttss2si64 => to_int!("cvttss2si", ":r"),
        VecToInt::Cvtsd2si32 => to_int!("cvtsd2si", ":e"),
        VecToInt::Cvtsd2si64 => to_int!("cvtsd2si", ":r"),
        VecToInt::Cvttsd2si32 => to_int!("cvttsd2si", ":e"),
        VecToInt::Cvttsd2si64 => to_int!("cvttsd2si", ":r"),
    }
}

/// The function of an operation from an integer, of which only the bits of the operation's width count.
pub fn vec_from_int_fn(op: VecFromInt) -> VecFromIntFn {
    match op {
        VecFromInt::Zext32 => lanes::zext32,
        VecFromInt::Zext64 => lanes::zext64,
        VecFromInt::Pinsrb => lanes::pinsrb,
        VecFromInt::Pinsrw => lanes::pinsrw,
        VecFromInt::Pinsrd => lanes::pinsrd,
        VecFromInt::Pinsrq => lanes::pinsrq,
        VecFromInt::Cvtsi2ss32 => from_int!("cvtsi2ss", ":e"),
        VecFromInt::Cvtsi2ss64 => from_int!("cvtsi2ss", ":r"),
        VecFromInt::Cvtsi2sd32 => from_int!("cvtsi2sd", ":e"),
        VecFromInt::Cvtsi2sd64 => from_int!("cvtsi2sd", ":r"),
    }
}

/// SHA256RNDS2: two rounds with the message words in the low half of `wk`.
pub fn sha256rnds2(a: u128, b: u128, wk: u128) -> u128 {
    if !is_x86_feature_detected!("sha") {
        return crypto::sha256rnds2(a, b, wk);
    }
    let mut x = xmm(a);
    // SAFETY: registers only; the host has the instruction, as just checked.
    unsafe {
        asm!("sha256rnds2 {0}, {1}, xmm0", inout(xmm_reg) x, in(xmm_reg) xmm(b), in("xmm0") xmm(wk),
            options(pure, nomem, nostack, preserves_flags));
    }
    bits(x)
}
