//! Floating-point and vector register contents.

use crate::select::Family;
use brolga_jit::testing::{Random, Registers};
use iced_x86::Instruction;

/// Single-precision edge values: zeros, infinities, NaNs (quiet and signalling), denormals, extremes.
const F32: [u32; 16] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0xffbf_ffff,
    1,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0x4effffff,
];

/// The same in double precision.
const F64: [u64; 16] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    0xfff7_ffff_ffff_ffff,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000,
    0x43e0_0000_0000_0000,
];

fn single(r: &mut Random) -> u32 {
    match r.below(4) {
        0 => r.pick(&F32),
        // Numbers of ordinary size, whole ones among them.
        1 => (r.below(2000) as f32 - 1000.0).to_bits(),
        2 => r.bits() as u32 & 0x807f_ffff | (110 + r.below(36) as u32) << 23,
        _ => r.bits() as u32,
    }
}

fn double(r: &mut Random) -> u64 {
    match r.below(4) {
        0 => r.pick(&F64),
        1 => (r.below(2000) as f64 - 1000.0).to_bits(),
        2 => r.bits() & 0x800f_ffff_ffff_ffff | (1000 + r.below(46)) << 52,
        _ => r.bits(),
    }
}

/// 128 bits as integers, floats or doubles.
pub fn vector(r: &mut Random) -> u128 {
    match r.below(3) {
        0 => r.value() as u128 | (r.value() as u128) << 64,
        1 => (0..4).fold(0, |v, n| v | (single(r) as u128) << (32 * n)),
        _ => double(r) as u128 | (double(r) as u128) << 64,
    }
}

/// An 80-bit number: ordinary, special, denormal, pseudo-denormal, unnormal.
pub fn extended(r: &mut Random) -> u128 {
    let sign = (r.below(2) as u128) << 79;
    let fraction = r.value() as u128;
    let integer_bit = 1u128 << 63;
    let (exponent, fraction) = match r.below(10) {
        0 => (0, 0),
        1 => (0, fraction),
        2 => (0x7fff, integer_bit),
        3 => (0x7fff, fraction | integer_bit),
        4 => (0x3fff + r.below(70) as u128, (r.below(1 << 16) as u128) << 48 | integer_bit),
        5 => (r.below(0x8000) as u128, fraction),
        6 => (0x3fff - 70 + r.below(140) as u128, r.bits() as u128 | integer_bit),
        _ => (0x3fff - 20 + r.below(40) as u128, r.bits() as u128 | integer_bit),
    };
    sign | exponent << 64 | fraction
}

/// Gives vector and x87 registers contents where the family looks at them.
pub fn fill(r: &mut Random, family: Family, regs: &mut Registers) {
    if family == Family::Integer {
        return;
    }
    if family.has_vectors() {
        regs.xmm.iter_mut().chain(&mut regs.ymm_high).for_each(|x| *x = vector(r));
        // Masked exceptions mostly; any rounding, DAZ and FTZ.
        let modes = (r.below(4) as u32) << 13 | (r.chance(20) as u32) << 15 | (r.chance(20) as u32) << 6;
        let sticky = if r.chance(30) { r.below(64) as u32 } else { 0 };
        let unmasked = if r.chance(10) { (1 << r.below(6)) << 7 } else { 0 };
        regs.mxcsr = 0x1f80 & !unmasked | modes | sticky;
    }
    regs.tags = match r.below(4) {
        0 => 0xff,
        1 => 0,
        2 => 0x0f,
        _ => r.bits() as u8,
    };
    let precision = r.pick(&[0u16, 2, 3, 3, 3]);
    let mask = if r.chance(10) { 0x3f & !(1 << r.below(6)) } else { 0x3f };
    regs.fcw = 0x40 | mask | precision << 8 | (r.below(4) as u16) << 10;
    // TOP and condition codes; sticky flags, some of them of pending exceptions.
    regs.fsw = (r.bits() as u16) & 0x7f00;
    if r.chance(10) {
        regs.fsw |= r.bits() as u16 & 0x7f;
        if regs.fsw & !regs.fcw & 0x3f != 0 {
            regs.fsw |= 0x8080;
        }
    }
    regs.fop = r.bits() as u16 & 0x7ff;
    regs.fip = r.below(1 << 47);
    regs.fdp = r.bits();
    for v in &mut regs.st {
        *v = extended(r);
    }
}

/// Memory contents that suit the instruction's operand.
pub fn contents(r: &mut Random, insn: &Instruction, bytes: &mut [u8]) {
    use iced_x86::MemorySize::*;
    match insn.memory_size() {
        Float32 => bytes[..4].copy_from_slice(&single(r).to_le_bytes()),
        Float64 => bytes[..8].copy_from_slice(&double(r).to_le_bytes()),
        Float80 => bytes[..10].copy_from_slice(&extended(r).to_le_bytes()[..10]),
        Packed128_Float32 | Packed128_Float64 | Packed256_Float32 | Packed256_Float64 => {
            for half in bytes.as_chunks_mut::<16>().0 {
                *half = vector(r).to_le_bytes();
            }
        }
        _ => {}
    }
}

/// An XSAVE area that mostly restores: MXCSR without reserved bits, a plain or compacted header of x87, SSE and AVX. (Silicon
/// restores XMM registers of a compacted area before it objects to its MXCSR; the engine restores nothing.)
pub fn save_area(r: &mut Random, bytes: &mut [u8]) {
    let mut put = |at: usize, v: u64, len: usize| bytes[at..at + len].copy_from_slice(&v.to_le_bytes()[..len]);
    let compact = r.chance(50);
    if compact || r.chance(90) {
        put(24, r.bits() & 0xffff, 4);
    }
    for n in 0..8 {
        put(512 + 8 * n, 0, 8);
    }
    let present = r.below(8);
    put(512, present, 8);
    if compact {
        let format = if r.chance(80) { 7 } else { r.below(8) };
        put(520, 1 << 63 | format, 8);
    }
    if r.chance(10) {
        put(512 + 8 * r.below(8) as usize, 1 << (32 + r.below(32)), 8);
    }
}
