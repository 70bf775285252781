//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM 2B 4.1) in plain Rust.

use crate::state::flag;

/// Operands as elements, sign-extended where the format is signed.
struct Text {
    element: [i32; 16],
    valid: usize,
}

/// Elements an operand has in the format of the immediate.
fn count(imm8: u8) -> usize {
    if imm8 & 1 != 0 { 8 } else { 16 }
}

fn element(v: u128, n: usize, imm8: u8) -> i32 {
    match imm8 & 3 {
        0 => (v >> (8 * n)) as u8 as i32,
        1 => (v >> (16 * n)) as u16 as i32,
        2 => (v >> (8 * n)) as i8 as i32,
        _ => (v >> (16 * n)) as i16 as i32,
    }
}

impl Text {
    fn new(v: u128, valid: usize, imm8: u8) -> Self {
        let total = count(imm8);
        let mut e = [0; 16];
        for (n, slot) in e.iter_mut().enumerate().take(total) {
            *slot = element(v, n, imm8);
        }
        Self { element: e, valid }
    }
    /// Ends at the first zero element.
    fn implicit(v: u128, imm8: u8) -> Self {
        let total = count(imm8);
        let mut t = Self::new(v, total, imm8);
        t.valid = t.element[..total].iter().position(|e| *e == 0).unwrap_or(total);
        t
    }
    /// Its length is the magnitude of a register, saturated.
    fn explicit(v: u128, length: i64, imm8: u8) -> Self {
        Self::new(v, (length.unsigned_abs().min(count(imm8) as u64)) as usize, imm8)
    }
}

/// What a comparison leaves.
pub struct Outcome {
    /// IntRes2: a bit per element.
    pub bits: u16,
    /// Elements of the format.
    count: usize,
    /// CF, ZF, SF, OF in RFLAGS layout; AF and PF are 0.
    pub flags: u64,
}

/// IntRes1: the aggregation, with the overrides for invalid elements of SDM 2B table 4-7. `a` is the first operand (the
/// set, the ranges, the needle), `b` the second.
fn aggregate(a: &Text, b: &Text, imm8: u8) -> u16 {
    let total = count(imm8);
    let one = |j: usize| -> bool {
        match imm8 >> 2 & 3 {
            0 => j < b.valid && a.element[..a.valid].contains(&b.element[j]),
            1 => {
                let inside = |r: &[i32]| r[0] <= b.element[j] && b.element[j] <= r[1];
                j < b.valid && a.element[..a.valid / 2 * 2].chunks_exact(2).any(inside)
            }
            2 => match (j < a.valid, j < b.valid) {
                (true, true) => a.element[j] == b.element[j],
                (x, y) => x == y,
            },
            _ => (0..total - j).all(|i| i >= a.valid || i + j < b.valid && a.element[i] == b.element[i + j]),
        }
    };
    (0..total).filter(|j| one(*j)).fold(0, |r, j| r | 1 << j)
}

fn compare(a: &Text, b: &Text, imm8: u8) -> Outcome {
    let total = count(imm8);
    let all = (u16::MAX as u32 >> (16 - total)) as u16;
    let r1 = aggregate(a, b, imm8);
    let bits = match imm8 >> 4 & 3 {
        1 => !r1 & all,
        // Negative only where the second operand's elements are valid.
        3 => r1 ^ ((1u32 << b.valid) - 1) as u16,
        _ => r1,
    };
    let set = |cond: bool, f: u64| if cond { f } else { 0 };
    let flags = set(bits != 0, flag::CF)
        | set(b.valid < total, flag::ZF)
        | set(a.valid < total, flag::SF)
        | set(bits & 1 != 0, flag::OF);
    Outcome { bits, count: total, flags }
}

impl Outcome {
    /// Strings that end at a zero element.
    pub fn implicit(a: u128, b: u128, imm8: u8) -> Self {
        compare(&Text::implicit(a, imm8), &Text::implicit(b, imm8), imm8)
    }
    /// Strings with lengths.
    pub fn explicit(a: u128, b: u128, lengths: (i64, i64), imm8: u8) -> Self {
        compare(&Text::explicit(a, lengths.0, imm8), &Text::explicit(b, lengths.1, imm8), imm8)
    }
    /// The index form: index in bits 31:0, flags above.
    pub fn index(&self, imm8: u8) -> u64 {
        let index = match (self.bits, imm8 & 0x40 != 0) {
            (0, _) => self.count as u64,
            (b, false) => b.trailing_zeros() as u64,
            (b, true) => 15 - b.leading_zeros() as u64,
        };
        index | self.flags << 32
    }
    /// The mask form.
    pub fn mask(&self, imm8: u8) -> u128 {
        if imm8 & 0x40 == 0 {
            return self.bits as u128;
        }
        let width = 128 / self.count as u32;
        let one = (1u128 << width) - 1;
        (0..self.count as u32).filter(|n| self.bits >> n & 1 != 0).fold(0, |m, n| m | one << (width * n))
    }
}

/// The mask of PCMPISTRM.
pub fn pcmpistrm(a: u128, b: u128, imm8: u8) -> u128 {
    Outcome::implicit(a, b, imm8).mask(imm8)
}

/// Index and flags of PCMPISTRI.
pub fn pcmpistri(a: u128, b: u128, imm8: u8) -> u64 {
    Outcome::implicit(a, b, imm8).index(imm8)
}
