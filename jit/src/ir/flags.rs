//! Lazy flags: an operation leaves its kind, width, result and one source; flags are worked out when somebody looks.

use super::Ty;
use crate::state::flag;

/// What left the flags. The width is kept beside it ([`pack`]).
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CcKind {
    /// The source holds CF, PF, AF, ZF, SF, OF in their RFLAGS places.
    Raw,
    /// Result of a + source.
    Add,
    /// Result of a + source + 1.
    AddCarry,
    /// Result of a - source.
    Sub,
    /// Result of a - source - 1.
    SubBorrow,
    /// Bitwise operation: CF = OF = AF = 0.
    Logic,
    /// Increment: source = the CF to keep.
    Inc,
    /// Decrement: source = the CF to keep.
    Dec,
    /// Left shift: source = the operand shifted by one less than the count.
    Shl,
    /// Right shifts: source = the operand shifted by one less than the count.
    Shr,
    /// Multiplication: CF = OF = (source is not 0). ZF is undefined (SDM 2, MUL); silicon clears it.
    Mul,
    /// ANDN, BLSI, BLSR, BLSMSK, BZHI, LZCNT, TZCNT: CF = (source is not 0), OF = 0. PF is undefined (SDM 2, ANDN);
    /// silicon clears it.
    Bmi,
}

const KINDS: [CcKind; 12] = [
    CcKind::Raw,
    CcKind::Add,
    CcKind::AddCarry,
    CcKind::Sub,
    CcKind::SubBorrow,
    CcKind::Logic,
    CcKind::Inc,
    CcKind::Dec,
    CcKind::Shl,
    CcKind::Shr,
    CcKind::Mul,
    CcKind::Bmi,
];

impl CcKind {
    /// The kind with this number; unknown numbers are `Raw`.
    pub fn from_u16(n: u16) -> Self {
        KINDS.get(n as usize).copied().unwrap_or(CcKind::Raw)
    }
}

/// `CpuState::cc_op` of a kind and width.
pub const fn pack(kind: CcKind, ty: Ty) -> u32 {
    (kind as u32) << 2 | ty as u32
}

/// Kind and width of a `cc_op`.
pub fn unpack(cc_op: u32) -> (CcKind, Ty) {
    let ty = match cc_op & 3 {
        0 => Ty::I8,
        1 => Ty::I16,
        2 => Ty::I32,
        _ => Ty::I64,
    };
    (CcKind::from_u16((cc_op >> 2) as u16), ty)
}

/// CF as 0 or 1.
pub fn carry(cc_op: u32, res: u64, src: u64) -> u64 {
    let (kind, ty) = unpack(cc_op);
    let m = ty.mask();
    let (res, src) = (res & m, src & m);
    let sign = ty.bits() - 1;
    match kind {
        CcKind::Raw => src & 1,
        CcKind::Add => (res < src) as u64,
        CcKind::AddCarry => (res <= src) as u64,
        CcKind::Sub => ((res.wrapping_add(src) & m) < src) as u64,
        CcKind::SubBorrow => ((res.wrapping_add(src).wrapping_add(1) & m) <= src) as u64,
        CcKind::Logic => 0,
        CcKind::Inc | CcKind::Dec => src & 1,
        CcKind::Shl => src >> sign & 1,
        CcKind::Shr => src & 1,
        CcKind::Mul | CcKind::Bmi => (src != 0) as u64,
    }
}

/// The six arithmetic flags in their RFLAGS places.
pub fn all(cc_op: u32, res: u64, src: u64) -> u64 {
    let (kind, ty) = unpack(cc_op);
    if kind == CcKind::Raw {
        return src & flag::ARITH;
    }
    let m = ty.mask();
    let cf = carry(cc_op, res, src);
    let (res, src) = (res & m, src & m);
    let sign = ty.bits() - 1;
    let s = res >> sign & 1;
    let (af, of) = match kind {
        CcKind::Add | CcKind::AddCarry => {
            let a = res.wrapping_sub(src).wrapping_sub((kind == CcKind::AddCarry) as u64);
            ((a ^ src ^ res) >> 4 & 1, ((a ^ res) & (src ^ res)) >> sign & 1)
        }
        CcKind::Sub | CcKind::SubBorrow => {
            let a = res.wrapping_add(src).wrapping_add((kind == CcKind::SubBorrow) as u64);
            ((a ^ src ^ res) >> 4 & 1, ((a ^ src) & (a ^ res)) >> sign & 1)
        }
        CcKind::Inc => ((res & 15 == 0) as u64, (res == 1 << sign) as u64),
        CcKind::Dec => ((res & 15 == 15) as u64, (res == (1 << sign) - 1) as u64),
        // AF undefined after shifts: silicon here leaves 0 (measured). OF is defined for a count of 1 only; the rule of
        // count 1 is applied to all counts, as silicon does.
        CcKind::Shl => (0, cf ^ s),
        CcKind::Shr => (0, (src >> sign ^ res >> sign) & 1),
        CcKind::Mul => (0, cf),
        CcKind::Logic | CcKind::Bmi | CcKind::Raw => (0, 0),
    };
    let pf = (kind != CcKind::Bmi && (res as u8).count_ones() & 1 == 0) as u64;
    let zf = (kind != CcKind::Mul && res == 0) as u64;
    cf | pf << 2 | af << 4 | zf << 6 | s << 7 | of << 11
}

/// Condition `cc` (the low four bits of Jcc's opcode).
pub fn condition(cc: u16, cc_op: u32, res: u64, src: u64) -> bool {
    let (kind, ty) = unpack(cc_op);
    let negate = cc & 1 != 0;
    let m = ty.mask();
    let v = match (cc >> 1 & 7, kind) {
        (1, _) => carry(cc_op, res, src) != 0,
        (2, CcKind::Raw) => src & flag::ZF != 0,
        (2, CcKind::Mul) => false,
        (2, _) => res & m == 0,
        (4, CcKind::Raw) => src & flag::SF != 0,
        (4, _) => res >> (ty.bits() - 1) & 1 != 0,
        (3, CcKind::Sub) => {
            let b = src & m;
            res.wrapping_add(b) & m <= b
        }
        (6 | 7, CcKind::Sub) => {
            let shift = 64 - ty.bits();
            let a = (res.wrapping_add(src) << shift) as i64;
            let b = (src << shift) as i64;
            if cc >> 1 & 7 == 6 { a < b } else { a <= b }
        }
        (n, _) => {
            let f = all(cc_op, res, src);
            let less = (f >> 7 ^ f >> 11) & 1 != 0;
            match n {
                0 => f & flag::OF != 0,
                3 => f & (flag::CF | flag::ZF) != 0,
                5 => f & flag::PF != 0,
                6 => less,
                _ => less || f & flag::ZF != 0,
            }
        }
    };
    v != negate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_agree_with_the_flag_word() {
        let values =
            [0u64, 1, 2, 0x7f, 0x80, 0x81, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63];
        for kind in KINDS {
            for ty in [Ty::I8, Ty::I16, Ty::I32, Ty::I64] {
                for res in values {
                    for src in values {
                        let op = pack(kind, ty);
                        let f = all(op, res, src);
                        assert_eq!(f & 1, carry(op, res, src));
                        for cc in 0..16 {
                            assert_eq!(
                                condition(cc, op, res, src),
                                condition(cc, pack(CcKind::Raw, Ty::I64), 0, f),
                                "{kind:?} {ty:?} {res:x} {src:x} cc {cc}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn add_and_sub_match_wide_arithmetic() {
        for a in 0..=255u64 {
            for b in 0..=255u64 {
                let f = all(pack(CcKind::Add, Ty::I8), a.wrapping_add(b) & 0xff, b);
                assert_eq!(f & 1 != 0, a + b > 255);
                assert_eq!(f & flag::AF != 0, (a & 15) + (b & 15) > 15);
                let signed = (a as i8 as i32) + (b as i8 as i32);
                assert_eq!(f & flag::OF != 0, signed != signed as i8 as i32);
                let f = all(pack(CcKind::SubBorrow, Ty::I8), a.wrapping_sub(b + 1) & 0xff, b);
                assert_eq!(f & 1 != 0, a < b + 1);
            }
        }
    }
}
