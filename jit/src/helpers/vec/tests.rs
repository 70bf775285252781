//! Whole instructions on the test processor, and the plain Rust operations against the host's instructions.

use super::strings::{pcmpistri, pcmpistrm};
use super::{STAGE0, STAGE2_HIGH, fma_fn, host_has_avx2, host_has_required, vec_fn, vec_to_int_fn};
use crate::fault::vector;
use crate::ir::VVal;
use crate::ir::vecop::{FmaOp, VecOp, VecToInt};
use crate::state::VECS;
use crate::testing::{Bits, Machine, Outcome, Page, Registers, Tier};
use std::arch::x86_64::*;

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x10_1000;

fn machine() -> Machine {
    let pages = [CODE, DATA].map(|linear| Page { linear, writable: true });
    Machine::new("max", Bits::B64, &pages)
}

/// Runs one instruction from the given registers; RBX points to the data page.
fn run(m: &mut Machine, mut regs: Registers, bytes: &[u8]) -> (Outcome, Registers) {
    regs.rip = CODE;
    regs.gpr[3] = DATA;
    m.set_registers(&regs);
    let outcome = m.execute(bytes, Tier::Lifted);
    (outcome, m.registers())
}

fn fault(vector: u8) -> Outcome {
    Outcome::Fault { vector, error: 0, address: 0 }
}

/// Vectors with equal and zero elements among them.
fn samples() -> Vec<u128> {
    let mut seed = 0x1234_5678_9abc_def0_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    (0..40)
        .map(|n| {
            let v = next() as u128 | (next() as u128) << 64;
            // Few different bytes: matches are frequent.
            if n % 2 == 0 { v } else { u128::from_le_bytes(v.to_le_bytes().map(|b| b & 0x83)) }
        })
        .collect()
}

fn host(v: u128) -> __m128i {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute::<u128, __m128i>(v) }
}

fn ours(v: __m128i) -> u128 {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute::<__m128i, u128>(v) }
}

#[target_feature(enable = "sse4.2")]
fn check_strings<const IMM: i32>(a: u128, b: u128) {
    let (x, y, imm8) = (host(a), host(b), IMM as u8);
    let flags = _mm_cmpistrc::<IMM>(x, y) as u64
        | (_mm_cmpistrz::<IMM>(x, y) as u64) << 6
        | (_mm_cmpistrs::<IMM>(x, y) as u64) << 7
        | (_mm_cmpistro::<IMM>(x, y) as u64) << 11;
    let expected = _mm_cmpistri::<IMM>(x, y) as u64 | flags << 32;
    assert_eq!(pcmpistri(a, b, imm8), expected, "index of {a:x} {b:x} by {imm8:#x}");
    assert_eq!(pcmpistrm(a, b, imm8), ours(_mm_cmpistrm::<IMM>(x, y)), "mask of {a:x} {b:x} by {imm8:#x}");
}

macro_rules! all_formats {
    ($a:expr, $b:expr; $($mode:literal)*) => {
        $(
            check_strings::<{ $mode }>($a, $b);
            check_strings::<{ $mode | 1 }>($a, $b);
            check_strings::<{ $mode | 2 }>($a, $b);
            check_strings::<{ $mode | 3 }>($a, $b);
        )*
    };
}

#[test]
fn string_comparison_matches_the_host() {
    if !is_x86_feature_detected!("sse4.2") {
        return;
    }
    for a in samples() {
        for b in samples() {
            // SAFETY: the host has SSE4.2, as just checked.
            unsafe {
                all_formats!(a, b; 0x00 0x04 0x08 0x0c 0x10 0x14 0x18 0x1c 0x30 0x34 0x38 0x3c
                    0x40 0x44 0x48 0x4c 0x50 0x54 0x58 0x5c 0x70 0x74 0x78 0x7c);
            }
        }
    }
}

#[target_feature(enable = "sse4.1,ssse3")]
fn check_shuffles<const IMM: i32>(a: u128, b: u128) {
    let (x, y, imm8) = (host(a), host(b), IMM as u8);
    let f = |op: VecOp| vec_fn(op)(a, b, imm8);
    let (xs, ys) = (_mm_castsi128_ps(x), _mm_castsi128_ps(y));
    let (xd, yd) = (_mm_castsi128_pd(x), _mm_castsi128_pd(y));
    assert_eq!(f(VecOp::Pshufd), ours(_mm_shuffle_epi32::<IMM>(y)));
    assert_eq!(f(VecOp::Pshuflw), ours(_mm_shufflelo_epi16::<IMM>(y)));
    assert_eq!(f(VecOp::Pshufhw), ours(_mm_shufflehi_epi16::<IMM>(y)));
    assert_eq!(f(VecOp::Palignr), ours(_mm_alignr_epi8::<IMM>(x, y)));
    assert_eq!(f(VecOp::PslldqI), ours(_mm_slli_si128::<IMM>(x)));
    assert_eq!(f(VecOp::PsrldqI), ours(_mm_srli_si128::<IMM>(x)));
    assert_eq!(f(VecOp::Pblendw), ours(_mm_blend_epi16::<IMM>(x, y)));
    assert_eq!(f(VecOp::Shufps), ours(_mm_castps_si128(_mm_shuffle_ps::<IMM>(xs, ys))));
    assert_eq!(f(VecOp::Insertps), ours(_mm_castps_si128(_mm_insert_ps::<IMM>(xs, ys))));
    assert_eq!(vec_fn(VecOp::Movsd)(a, b, 0), ours(_mm_castpd_si128(_mm_move_sd(xd, yd))));
}

#[test]
fn shuffles_match_the_host() {
    if !is_x86_feature_detected!("sse4.1") {
        return;
    }
    for pair in samples().windows(2) {
        let (a, b) = (pair[0], pair[1]);
        // SAFETY: the host has SSE4.1 and with it SSSE3, as just checked.
        unsafe {
            check_shuffles::<0>(a, b);
            check_shuffles::<3>(a, b);
            check_shuffles::<0x1b>(a, b);
            check_shuffles::<0x0f>(a, b);
            check_shuffles::<0x4e>(a, b);
            check_shuffles::<0x10>(a, b);
            check_shuffles::<0xd9>(a, b);
            check_shuffles::<0xff>(a, b);
        }
    }
}

#[test]
fn cryptography_matches_the_host() {
    use super::crypto as soft;
    type Pair = (VecOp, fn(u128, u128, u8) -> u128);
    let sets: [(bool, &[Pair]); 3] = [
        (
            is_x86_feature_detected!("aes"),
            &[
                (VecOp::Aesenc, soft::aesenc),
                (VecOp::Aesenclast, soft::aesenclast),
                (VecOp::Aesdec, soft::aesdec),
                (VecOp::Aesdeclast, soft::aesdeclast),
                (VecOp::Aesimc, soft::aesimc),
                (VecOp::Aeskeygenassist, soft::aeskeygenassist),
            ],
        ),
        (is_x86_feature_detected!("pclmulqdq"), &[(VecOp::Pclmulqdq, soft::pclmulqdq)]),
        (
            is_x86_feature_detected!("sha"),
            &[
                (VecOp::Sha1msg1, soft::sha1msg1),
                (VecOp::Sha1msg2, soft::sha1msg2),
                (VecOp::Sha1nexte, soft::sha1nexte),
                (VecOp::Sha1rnds4, soft::sha1rnds4),
                (VecOp::Sha256msg1, soft::sha256msg1),
                (VecOp::Sha256msg2, soft::sha256msg2),
            ],
        ),
    ];
    let samples = samples();
    for (op, f) in sets.iter().filter(|s| s.0).flat_map(|s| s.1) {
        for pair in samples.windows(2) {
            for imm8 in [0, 1, 2, 3, 0x10, 0x11, 0x36, 0xff] {
                assert_eq!(f(pair[0], pair[1], imm8), vec_fn(*op)(pair[0], pair[1], imm8), "{op:?} {imm8:#x}");
            }
        }
    }
    for v in samples.windows(3) {
        assert_eq!(soft::sha256rnds2(v[0], v[1], v[2]), super::host::sha256rnds2(v[0], v[1], v[2]));
    }
    // FIPS 197, appendix B: the first round of its example.
    let state = u128::from_be_bytes(0x193d_e3be_a0f4_e22b_9ac6_8d2a_e9f8_4808_u128.to_le_bytes());
    let key = u128::from_be_bytes(0xa0fa_fe17_8854_2cb1_23a3_3939_2a6c_7605_u128.to_le_bytes());
    let next = u128::from_be_bytes(0xa49c_7ff2_689f_352b_6b5b_ea43_026a_5049_u128.to_le_bytes());
    assert_eq!(soft::aesenc(state, key, 0), next);
}

#[test]
fn every_operation_has_a_function_and_takes_any_immediate() {
    assert!(host_has_required());
    for op in VecOp::ALL {
        for imm8 in (0..=255).filter(|_| !op.name().starts_with('v') || host_has_avx2()) {
            vec_fn(*op)(0, 0, imm8);
        }
        assert_eq!(VecOp::ALL.iter().filter(|o| o.name() == op.name()).count(), 1, "{}", op.name());
    }
    assert!(VecOp::Addps.is_fp() && !VecOp::Pxor.is_fp() && VecToInt::Comiss.is_fp() && !VecToInt::Ptest.is_fp());
    assert_eq!(vec_to_int_fn(VecToInt::Pmovmskb)(0x80 << 120 | 0x80, 0, 0), 0x8001);
    assert!(STAGE0 >= usize::from(VVal::END) && STAGE2_HIGH < VECS, "no value of the IR lies there");
    if host_has_avx2() {
        let one = u128::from(1f32.to_bits());
        let results = FmaOp::ALL.iter().map(|op| fma_fn(*op)(one, one, one) as u32);
        // Of the low lane; that of double precision is denormal.
        assert!(results.clone().all(|r| [2f32, 0.0, -2.0, 1.0].map(f32::to_bits).contains(&r)));
        assert_eq!(results.count(), 60);
    }
}

#[test]
fn sse_writes_keep_the_upper_half_and_memory_must_be_aligned() {
    let mut m = machine();
    let mut regs = Registers::default();
    regs.xmm[1] = 5;
    regs.xmm[2] = 7 << 64 | 9;
    // paddq xmm1, xmm2
    let (done, after) = run(&mut m, regs.clone(), &[0x66, 0x0f, 0xd4, 0xca]);
    assert_eq!((done, after.xmm[1]), (Outcome::Done, 7 << 64 | 14));
    // paddq xmm1, [rbx+8]: misaligned; movups xmm1, [rbx+8] is not.
    assert_eq!(run(&mut m, regs.clone(), &[0x66, 0x0f, 0xd4, 0x4b, 8]).0, fault(vector::GP));
    m.write(DATA + 8, &[1, 2, 3]);
    let (done, after) = run(&mut m, regs, &[0x0f, 0x10, 0x4b, 8]);
    assert_eq!((done, after.xmm[1]), (Outcome::Done, 0x03_0201));
}

#[test]
fn unmasked_division_by_zero_raises_without_a_result() {
    let mut m = machine();
    let mut regs = Registers::default();
    regs.xmm[0] = 1f32.to_bits() as u128;
    // divss xmm0, xmm1
    let divss = [0xf3, 0x0f, 0x5e, 0xc1];
    let (done, after) = run(&mut m, regs.clone(), &divss);
    assert_eq!((done, after.xmm[0], after.mxcsr), (Outcome::Done, f32::INFINITY.to_bits() as u128, 0x1f84));
    regs.mxcsr = 0x1f80 & !(1 << 9);
    let (raised, after) = run(&mut m, regs.clone(), &divss);
    assert_eq!((raised, after.xmm[0], after.mxcsr), (fault(vector::XM), regs.xmm[0], regs.mxcsr | 4));
}

#[test]
fn rounding_mode_and_flags_are_the_guests() {
    let mut m = machine();
    let mut regs = Registers::default();
    regs.xmm[0] = 1f64.to_bits() as u128;
    regs.xmm[1] = 3f64.to_bits() as u128;
    // divsd xmm0, xmm1 rounding down and up: neighbours.
    let divsd = [0xf2, 0x0f, 0x5e, 0xc1];
    regs.mxcsr = 0x1f80 | 1 << 13;
    let down = run(&mut m, regs.clone(), &divsd).1;
    regs.mxcsr = 0x1f80 | 2 << 13;
    let up = run(&mut m, regs, &divsd).1;
    assert_eq!(up.xmm[0], down.xmm[0] + 1);
    assert_eq!((down.mxcsr & 0x3f, up.mxcsr & 0x3f), (0x20, 0x20));
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    let mut m = machine();
    m.write(DATA, &0x1_1f80u32.to_le_bytes());
    // ldmxcsr [rbx]
    let ldmxcsr = [0x0f, 0xae, 0x13];
    assert_eq!(run(&mut m, Registers::default(), &ldmxcsr).0, fault(vector::GP));
    m.write(DATA, &0x9fc0u32.to_le_bytes());
    let (done, after) = run(&mut m, Registers::default(), &ldmxcsr);
    assert_eq!((done, after.mxcsr), (Outcome::Done, 0x9fc0));
}

#[test]
fn mmx_writes_take_the_x87_stack_over() {
    let mut m = machine();
    let regs = Registers { fsw: 3 << 11, ..Registers::default() };
    m.write(DATA, &0x1122_3344_5566_7788u64.to_le_bytes());
    // movq mm2, [rbx]
    let (done, after) = run(&mut m, regs, &[0x0f, 0x6f, 0x13]);
    assert_eq!((done, after.tags, after.fsw), (Outcome::Done, 0xff, 0));
    assert_eq!(after.st[2], 0xffff << 64 | 0x1122_3344_5566_7788);
    // emms
    let (_, after) = run(&mut m, after, &[0x0f, 0x77]);
    assert_eq!(after.tags, 0);
}

#[test]
fn fxsave_and_fxrstor_are_inverse() {
    let mut m = machine();
    let mut regs = Registers { fcw: 0x27f, fsw: 5 << 11 | 0x4100, tags: 0x0f, mxcsr: 0x7fa1, ..Registers::default() };
    for n in 0..16 {
        regs.xmm[n] = (n as u128 + 1) << 100 | 77;
    }
    for n in 0..8 {
        regs.st[n] = 0x3fff << 64 | 1 << 63 | n as u128;
    }
    // fxsave64 [rbx], then fxrstor64 [rbx]
    assert_eq!(run(&mut m, regs.clone(), &[0x48, 0x0f, 0xae, 0x03]).0, Outcome::Done);
    let mut image = [0; 8];
    m.read(DATA + 24, &mut image);
    assert_eq!(u64::from_le_bytes(image), 0xffff_0000_7fa1);
    let (done, after) = run(&mut m, Registers::default(), &[0x48, 0x0f, 0xae, 0x0b]);
    assert_eq!(done, Outcome::Done);
    assert_eq!((after.xmm, after.st), (regs.xmm, regs.st));
    assert_eq!((after.fcw, after.fsw, after.tags, after.mxcsr), (0x27f, 5 << 11 | 0x4100, 0x0f, 0x7fa1));
}

#[test]
fn xrstor_initialises_what_the_header_leaves_out_and_checks_it() {
    let mut m = machine();
    let mut regs = Registers { tags: 0xff, ..Registers::default() };
    regs.gpr[0] = 3;
    regs.xmm[3] = 42;
    // xsave [rbx]; then with XSTATE_BV = 0, xrstor [rbx] gives the initial state.
    let (xsave, xrstor) = ([0x0f, 0xae, 0x23], [0x0f, 0xae, 0x2b]);
    assert_eq!(run(&mut m, regs.clone(), &xsave).0, Outcome::Done);
    let mut bv = [0; 8];
    m.read(DATA + 512, &mut bv);
    assert_eq!(u64::from_le_bytes(bv), 3);
    m.write(DATA + 512, &[0; 8]);
    let (done, after) = run(&mut m, regs.clone(), &xrstor);
    assert_eq!((done, after.xmm[3], after.tags, after.fcw), (Outcome::Done, 0, 0, 0x37f));
    // A feature that XCR0 does not enable.
    m.write(DATA + 512, &(1u64 << 62).to_le_bytes());
    assert_eq!(run(&mut m, regs.clone(), &xrstor).0, fault(vector::GP));
    // xsavec [rbx]: compacted, only what is in use.
    regs.tags = 0;
    regs.fcw = 0x37f;
    assert_eq!(run(&mut m, regs, &[0x0f, 0xc7, 0x23]).0, Outcome::Done);
    let mut header = [0; 16];
    m.read(DATA + 512, &mut header);
    assert_eq!(u128::from_le_bytes(header), (1 << 63 | 3) << 64 | 2);
}
