//! Vector operations that CLIF has, integer and moves. What is not here goes by call.

use super::super::Lower;
use crate::ir::Inst;
use crate::ir::vecop::VecOp;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16X8, I32X4, I64X2, Type};
use cranelift_codegen::ir::{ConstantData, InstBuilder, Value};

/// A two-operand CLIF instruction.
type Binary = fn(&mut Lower, Value, Value) -> Value;

macro_rules! binary {
    ($name:ident) => {
        |l: &mut Lower, a: Value, b: Value| l.b.ins().$name(a, b)
    };
}

macro_rules! compare {
    ($cc:ident) => {
        |l: &mut Lower, a: Value, b: Value| l.b.ins().icmp(IntCC::$cc, a, b)
    };
}

/// Lane-wise operations: lane type and CLIF instruction.
fn lanewise(op: VecOp) -> Option<(Type, Binary)> {
    use VecOp::*;
    Some(match op {
        Pxor => (I8X16, binary!(bxor)),
        Por => (I8X16, binary!(bor)),
        Pand => (I8X16, binary!(band)),
        Pandn => (I8X16, |l, a, b| l.b.ins().band_not(b, a)),
        Paddb => (I8X16, binary!(iadd)),
        Paddw => (I16X8, binary!(iadd)),
        Paddd => (I32X4, binary!(iadd)),
        Paddq => (I64X2, binary!(iadd)),
        Psubb => (I8X16, binary!(isub)),
        Psubw => (I16X8, binary!(isub)),
        Psubd => (I32X4, binary!(isub)),
        Psubq => (I64X2, binary!(isub)),
        Paddsb => (I8X16, binary!(sadd_sat)),
        Paddsw => (I16X8, binary!(sadd_sat)),
        Paddusb => (I8X16, binary!(uadd_sat)),
        Paddusw => (I16X8, binary!(uadd_sat)),
        Psubsb => (I8X16, binary!(ssub_sat)),
        Psubsw => (I16X8, binary!(ssub_sat)),
        Psubusb => (I8X16, binary!(usub_sat)),
        Psubusw => (I16X8, binary!(usub_sat)),
        Pmullw => (I16X8, binary!(imul)),
        Pmulld => (I32X4, binary!(imul)),
        Pavgb => (I8X16, binary!(avg_round)),
        Pavgw => (I16X8, binary!(avg_round)),
        Pminub => (I8X16, binary!(umin)),
        Pmaxub => (I8X16, binary!(umax)),
        Pminsw => (I16X8, binary!(smin)),
        Pmaxsw => (I16X8, binary!(smax)),
        Pminsb => (I8X16, binary!(smin)),
        Pmaxsb => (I8X16, binary!(smax)),
        Pminuw => (I16X8, binary!(umin)),
        Pmaxuw => (I16X8, binary!(umax)),
        Pminsd => (I32X4, binary!(smin)),
        Pmaxsd => (I32X4, binary!(smax)),
        Pminud => (I32X4, binary!(umin)),
        Pmaxud => (I32X4, binary!(umax)),
        Pcmpeqb => (I8X16, compare!(Equal)),
        Pcmpeqw => (I16X8, compare!(Equal)),
        Pcmpeqd => (I32X4, compare!(Equal)),
        Pcmpeqq => (I64X2, compare!(Equal)),
        Pcmpgtb => (I8X16, compare!(SignedGreaterThan)),
        Pcmpgtw => (I16X8, compare!(SignedGreaterThan)),
        Pcmpgtd => (I32X4, compare!(SignedGreaterThan)),
        Pcmpgtq => (I64X2, compare!(SignedGreaterThan)),
        Packsswb => (I16X8, binary!(snarrow)),
        Packssdw => (I32X4, binary!(snarrow)),
        Packuswb => (I16X8, binary!(unarrow)),
        Packusdw => (I32X4, binary!(unarrow)),
        Pmulhrsw => (I16X8, binary!(x86_pmulhrsw)),
        Pshufb => (I8X16, binary!(x86_pshufb)),
        _ => return None,
    })
}

/// Byte shuffle masks: bytes 0..=15 of a, 16..=31 of b.
fn shuffle(op: VecOp, imm8: u8) -> Option<[u8; 16]> {
    use VecOp::*;
    let lanes = |width: usize, pick: &dyn Fn(usize) -> usize| -> [u8; 16] {
        std::array::from_fn(|n| (pick(n / width) * width + n % width) as u8)
    };
    let imm = imm8 as usize;
    let field = |n: usize| imm >> (2 * n) & 3;
    let interleave = |width: usize, high: usize| {
        let per = 16 / width;
        lanes(width, &move |n| high * per / 2 + n / 2 + (n & 1) * per)
    };
    Some(match op {
        Punpcklbw => interleave(1, 0),
        Punpcklwd => interleave(2, 0),
        Punpckldq => interleave(4, 0),
        Punpcklqdq => interleave(8, 0),
        Punpckhbw => interleave(1, 1),
        Punpckhwd => interleave(2, 1),
        Punpckhdq => interleave(4, 1),
        Punpckhqdq => interleave(8, 1),
        Pshufd => lanes(4, &|n| 4 + field(n)),
        Pshuflw => lanes(2, &|n| 8 + if n < 4 { field(n) } else { n }),
        Pshufhw => lanes(2, &|n| 8 + if n < 4 { n } else { 4 + field(n - 4) }),
        Shufps => lanes(4, &|n| if n < 2 { field(n) } else { 4 + field(n) }),
        Shufpd => lanes(8, &|n| (imm >> n & 1) + 2 * n),
        Pblendw => lanes(2, &|n| n + 8 * (imm >> n & 1)),
        Blendps => lanes(4, &|n| n + 4 * (imm >> n & 1)),
        Blendpd => lanes(8, &|n| n + 2 * (imm >> n & 1)),
        Movss => lanes(4, &|n| if n == 0 { 4 } else { n }),
        Movsd => lanes(8, &|n| if n == 0 { 2 } else { n }),
        // The low operand of PALIGNR is b.
        Palignr if imm <= 16 => std::array::from_fn(|n| ((n + imm + 16) % 32) as u8),
        _ => return None,
    })
}

impl Lower<'_, '_> {
    /// A vector integer operation as a value (I8X16), if CLIF has it.
    pub(super) fn packed(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        if let Some((ty, f)) = lanewise(op) {
            if matches!(op, VecOp::Pxor) && i.a == i.b {
                return Some(self.zero());
            }
            let (a, b) = self.pair(i, ty);
            let v = f(self, a, b);
            return Some(self.recast(I8X16, v));
        }
        if let Some(mask) = shuffle(op, i.c as u8) {
            let (a, b) = self.pair(i, I8X16);
            return Some(self.shuffled(a, b, mask));
        }
        self.shifted(op, i).or_else(|| self.widened(op, i))
    }

    fn pair(&mut self, i: &Inst, ty: Type) -> (Value, Value) {
        let (a, b) = (self.vec(i.a), self.vec(i.b));
        (self.recast(ty, a), self.recast(ty, b))
    }

    pub(super) fn zero(&mut self) -> Value {
        let c = self.b.func.dfg.constants.insert(ConstantData::from(&[0u8; 16][..]));
        self.b.ins().vconst(I8X16, c)
    }

    fn shuffled(&mut self, a: Value, b: Value, mask: [u8; 16]) -> Value {
        let m = self.b.func.dfg.immediates.push(ConstantData::from(&mask[..]));
        self.b.ins().shuffle(a, b, m)
    }

    /// Shifts by a constant, of lanes and of the whole register.
    fn shifted(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        use VecOp::*;
        let imm = i.c as u8;
        let (ty, width) = match op {
            PsllwI | PsrlwI | PsrawI => (I16X8, 16),
            PslldI | PsrldI | PsradI => (I32X4, 32),
            PsllqI | PsrlqI => (I64X2, 64),
            PslldqI | PsrldqI => return Some(self.bytes_shifted(op == PslldqI, i)),
            Movq => {
                let (zero, b) = (self.zero(), self.vec(i.b));
                return Some(self.shuffled(b, zero, std::array::from_fn(|n| if n < 8 { n as u8 } else { 16 })));
            }
            _ => return None,
        };
        let arithmetic = matches!(op, PsrawI | PsradI);
        if imm >= width && !arithmetic {
            return Some(self.zero());
        }
        let a = self.vec(i.a);
        let a = self.recast(ty, a);
        let n = self.iconst(imm.min(width - 1) as i64);
        let v = match op {
            PsllwI | PslldI | PsllqI => self.b.ins().ishl(a, n),
            PsrawI | PsradI => self.b.ins().sshr(a, n),
            _ => self.b.ins().ushr(a, n),
        };
        Some(self.recast(I8X16, v))
    }

    fn bytes_shifted(&mut self, left: bool, i: &Inst) -> Value {
        let n = (i.c as usize & 0xff).min(16);
        let (a, zero) = (self.vec(i.a), self.zero());
        let pick = |k: usize| match (left, k) {
            (true, k) if k >= n => (k - n) as u8,
            (false, k) if k + n < 16 => (k + n) as u8,
            _ => 16,
        };
        self.shuffled(a, zero, std::array::from_fn(pick))
    }

    /// The low lanes of `v`, of type `ty`, extended to lanes two, four or eight times as wide.
    fn extended(&mut self, v: Value, ty: Type, doublings: u32, signed: bool) -> Value {
        let v = self.recast(ty, v);
        let widen = |this: &mut Self, v| if signed { this.b.ins().swiden_low(v) } else { this.b.ins().uwiden_low(v) };
        (0..doublings).fold(v, |v, _| widen(self, v))
    }

    /// Widening, absolute values, multiply-add.
    fn widened(&mut self, op: VecOp, i: &Inst) -> Option<Value> {
        use VecOp::*;
        let b = self.vec(i.b);
        let v = match op {
            Pabsb => self.b.ins().iabs(b),
            Pabsw | Pabsd => {
                let b = self.recast(if op == Pabsw { I16X8 } else { I32X4 }, b);
                self.b.ins().iabs(b)
            }
            Pmovsxbw => self.extended(b, I8X16, 1, true),
            Pmovsxbd => self.extended(b, I8X16, 2, true),
            Pmovsxbq => self.extended(b, I8X16, 3, true),
            Pmovsxwd => self.extended(b, I16X8, 1, true),
            Pmovsxwq => self.extended(b, I16X8, 2, true),
            Pmovsxdq => self.extended(b, I32X4, 1, true),
            Pmovzxbw => self.extended(b, I8X16, 1, false),
            Pmovzxbd => self.extended(b, I8X16, 2, false),
            Pmovzxbq => self.extended(b, I8X16, 3, false),
            Pmovzxwd => self.extended(b, I16X8, 1, false),
            Pmovzxwq => self.extended(b, I16X8, 2, false),
            Pmovzxdq => self.extended(b, I32X4, 1, false),
            Pmuludq => {
                let (a, b) = self.pair(i, I8X16);
                // The even 32-bit lanes to the low half.
                let even = [0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11];
                let (a, b) = (self.shuffled(a, a, even), self.shuffled(b, b, even));
                let (a, b) = (self.recast(I32X4, a), self.recast(I32X4, b));
                let (a, b) = (self.b.ins().uwiden_low(a), self.b.ins().uwiden_low(b));
                self.b.ins().imul(a, b)
            }
            Pmaddwd => {
                let (a, b) = self.pair(i, I16X8);
                let (al, bl) = (self.b.ins().swiden_low(a), self.b.ins().swiden_low(b));
                let (ah, bh) = (self.b.ins().swiden_high(a), self.b.ins().swiden_high(b));
                let (low, high) = (self.b.ins().imul(al, bl), self.b.ins().imul(ah, bh));
                self.b.ins().iadd_pairwise(low, high)
            }
            _ => return None,
        };
        Some(self.recast(I8X16, v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shuffle masks against the interpreter's functions, for all immediates.
    #[test]
    fn masks_are_those_of_the_instructions() {
        let a = u128::from_le_bytes(std::array::from_fn(|n| n as u8));
        let b = u128::from_le_bytes(std::array::from_fn(|n| 16 + n as u8));
        let mut seen = 0;
        for op in VecOp::ALL {
            for imm in 0..=255u8 {
                let Some(mask) = shuffle(*op, imm) else { continue };
                seen += 1;
                let want = crate::helpers::vec::vec_fn(*op)(a, b, imm).to_le_bytes();
                assert_eq!(mask, want, "{op:?} {imm}");
            }
        }
        assert!(seen > 256 * 10);
    }
}
