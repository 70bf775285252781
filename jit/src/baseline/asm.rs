//! Encodes the few host instructions that the baseline emitter uses (SDM 2, chapter 2).

use crate::ir::Ty;

/// A host register, by its number in encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg(pub u8);

pub const RAX: Reg = Reg(0);
pub const RCX: Reg = Reg(1);
pub const RDX: Reg = Reg(2);
pub const RBP: Reg = Reg(5);
pub const RSI: Reg = Reg(6);
pub const RDI: Reg = Reg(7);
pub const R8: Reg = Reg(8);

#[cfg(test)]
pub const XMM0: Reg = Reg(0);
#[cfg(test)]
pub const XMM1: Reg = Reg(1);

/// A memory operand: base + (index << scale) + displacement.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    pub base: Option<Reg>,
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
}

impl Mem {
    /// `[base + disp]`.
    pub fn at(base: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp }
    }

    /// The operand `bytes` bytes further on.
    pub fn after(self, bytes: i32) -> Self {
        Self { disp: self.disp + bytes, ..self }
    }

    /// `[base + index + disp]`.
    pub fn indexed(base: Reg, index: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: Some((index, 0)), disp }
    }
}

/// Register or memory operand.
#[derive(Clone, Copy, Debug)]
pub enum Rm {
    R(Reg),
    M(Mem),
}

impl From<Reg> for Rm {
    fn from(r: Reg) -> Self {
        Rm::R(r)
    }
}

impl From<Mem> for Rm {
    fn from(m: Mem) -> Self {
        Rm::M(m)
    }
}

/// The two-operand operations of one encoding family, by their number in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotations, by their number in their encoding family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shift {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// One-operand operations of the family F6/F7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    Not = 2,
    Neg = 3,
    Mul = 4,
    Imul = 5,
    Div = 6,
    Idiv = 7,
}

/// Condition numbers that are named here; others come from guest code.
pub mod cc {
    pub const AE: u8 = 3;
    pub const B: u8 = 2;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const L: u8 = 12;
}

/// Opcode maps behind the escape bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Map {
    /// 0F.
    M0f,
    /// 0F 38.
    M38,
    /// 0F 3A.
    M3a,
}

/// The code so far.
#[derive(Default)]
pub struct Asm {
    pub code: Vec<u8>,
    /// Where code begins that will be placed apart from what is before it.
    pub cold: Option<usize>,
    /// Branches between the two: offsets of the displacement and of the target.
    pub across: Vec<(u32, u32)>,
}

impl Asm {
    /// Offset of the next instruction.
    pub fn here(&self) -> usize {
        self.code.len()
    }

    pub fn byte(&mut self, b: u8) {
        self.code.push(b);
    }

    pub fn bytes(&mut self, b: &[u8]) {
        self.code.extend_from_slice(b);
    }

    pub fn imm32(&mut self, v: i32) {
        self.code.extend_from_slice(&v.to_le_bytes());
    }

    fn imm64(&mut self, v: u64) {
        self.code.extend_from_slice(&v.to_le_bytes());
    }

    /// REX prefix where it is needed. `byte`: the operands are byte registers, of which 4 to 7 need one.
    fn rex(&mut self, wide: bool, byte: bool, reg: u8, rm: &Rm) {
        let (x, b, low) = match rm {
            Rm::R(r) => (0, r.0 >> 3, byte && r.0 >= 4),
            Rm::M(m) => (m.index.map_or(0, |(r, _)| r.0 >> 3), m.base.map_or(0, |r| r.0 >> 3), false),
        };
        let rex = (wide as u8) << 3 | (reg >> 3) << 2 | x << 1 | b;
        if rex != 0 || low || byte && reg >= 4 {
            self.code.push(0x40 | rex);
        }
    }

    /// ModRM and what follows it.
    fn modrm(&mut self, reg: u8, rm: &Rm) {
        let reg = (reg & 7) << 3;
        let m = match rm {
            Rm::R(r) => return self.code.push(0xc0 | reg | r.0 & 7),
            Rm::M(m) => m,
        };
        let Some(base) = m.base else {
            // No base: SIB with base 5 in mode 0, and 32 bits of displacement.
            let (index, scale) = m.index.map_or((4, 0), |(r, s)| (r.0 & 7, s));
            self.code.extend_from_slice(&[reg | 4, scale << 6 | index << 3 | 5]);
            return self.imm32(m.disp);
        };
        let mode = match m.disp {
            0 if base.0 & 7 != 5 => 0,
            -128..=127 => 0x40,
            _ => 0x80,
        };
        match m.index {
            Some((index, scale)) => {
                self.code.extend_from_slice(&[mode | reg | 4, scale << 6 | (index.0 & 7) << 3 | base.0 & 7]);
            }
            None if base.0 & 7 == 4 => self.code.extend_from_slice(&[mode | reg | 4, 0x24]),
            None => self.code.push(mode | reg | base.0 & 7),
        }
        match mode {
            0 => {}
            0x40 => self.code.push(m.disp as u8),
            _ => self.imm32(m.disp),
        }
    }

    /// An instruction of the width, whose byte form has the opcode below.
    fn typed(&mut self, ty: Ty, opcode: u8, reg: u8, rm: Rm) {
        if ty == Ty::I16 {
            self.code.push(0x66);
        }
        self.rex(ty == Ty::I64, ty == Ty::I8, reg, &rm);
        self.code.push(if ty == Ty::I8 { opcode - 1 } else { opcode });
        self.modrm(reg, &rm);
    }

    fn typed_0f(&mut self, ty: Ty, opcode: u8, reg: u8, rm: Rm) {
        if ty == Ty::I16 {
            self.code.push(0x66);
        }
        self.rex(ty == Ty::I64, ty == Ty::I8, reg, &rm);
        self.code.extend_from_slice(&[0x0f, if ty == Ty::I8 { opcode - 1 } else { opcode }]);
        self.modrm(reg, &rm);
    }

    /// `op reg, rm`.
    pub fn alu(&mut self, op: Alu, ty: Ty, reg: Reg, rm: impl Into<Rm>) {
        self.typed(ty, (op as u8) << 3 | 3, reg.0, rm.into());
    }

    /// `op rm, imm`; the constant is cut to the width and must fit 32 bits signed.
    pub fn alu_imm(&mut self, op: Alu, ty: Ty, rm: impl Into<Rm>, imm: i32) {
        let rm = rm.into();
        let v = match ty {
            Ty::I8 => imm as i8 as i32,
            Ty::I16 => imm as i16 as i32,
            _ => imm,
        };
        if ty == Ty::I8 || i8::try_from(v).is_ok() {
            self.typed(ty, if ty == Ty::I8 { 0x81 } else { 0x83 }, op as u8, rm);
            self.code.push(v as u8);
            return;
        }
        self.typed(ty, 0x81, op as u8, rm);
        match ty {
            Ty::I16 => self.code.extend_from_slice(&(v as i16).to_le_bytes()),
            _ => self.imm32(v),
        }
    }

    /// `test rm, reg`.
    pub fn test(&mut self, ty: Ty, a: Reg, b: Reg) {
        self.typed(ty, 0x85, b.0, a.into());
    }

    /// `test dword rm, imm`.
    pub fn test_imm(&mut self, rm: impl Into<Rm>, imm: i32) {
        self.typed(Ty::I32, 0xf7, 0, rm.into());
        self.imm32(imm);
    }

    /// `mov to, from`, 64 bits.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.typed(Ty::I64, 0x8b, to.0, from.into());
    }

    /// `mov to, from` of the width: bytes and words leave the rest of the register.
    pub fn mov_part(&mut self, ty: Ty, to: Reg, from: Reg) {
        self.typed(ty, 0x8b, to.0, from.into());
    }

    /// A constant; leaves the flags alone.
    pub fn mov_imm(&mut self, to: Reg, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            self.rex(false, false, 0, &to.into());
            self.code.push(0xb8 | to.0 & 7);
            self.imm32(v as i32);
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.typed(Ty::I64, 0xc7, 0, to.into());
            self.imm32(v);
        } else {
            self.rex(true, false, 0, &to.into());
            self.code.push(0xb8 | to.0 & 7);
            self.imm64(v);
        }
    }

    /// Load of the width, zero-extended.
    pub fn load(&mut self, ty: Ty, to: Reg, m: Mem) {
        match ty {
            Ty::I8 | Ty::I16 => self.zext(ty, to, m),
            _ => self.typed(ty, 0x8b, to.0, m.into()),
        }
    }

    /// `to` = operand of the width, zero-extended to 64 bits.
    pub fn zext(&mut self, ty: Ty, to: Reg, from: impl Into<Rm>) {
        let from = from.into();
        match ty {
            Ty::I8 | Ty::I16 => {
                self.rex(false, ty == Ty::I8, if ty == Ty::I8 { to.0 & 8 } else { to.0 }, &from);
                self.code.extend_from_slice(&[0x0f, if ty == Ty::I8 { 0xb6 } else { 0xb7 }]);
                self.modrm(to.0, &from);
            }
            _ => self.typed(ty, 0x8b, to.0, from),
        }
    }

    /// `to` = operand of the width, sign-extended to 64 bits.
    pub fn sext(&mut self, ty: Ty, to: Reg, from: Reg) {
        let from = from.into();
        self.rex(true, ty == Ty::I8, to.0, &from);
        match ty {
            Ty::I8 => self.code.extend_from_slice(&[0x0f, 0xbe]),
            Ty::I16 => self.code.extend_from_slice(&[0x0f, 0xbf]),
            Ty::I32 => self.code.push(0x63),
            Ty::I64 => self.code.push(0x8b),
        }
        self.modrm(to.0, &from);
    }

    /// `movzx to, ah`, where `to` is one of the first four registers.
    pub fn movzx_ah(&mut self, to: Reg) {
        self.code.extend_from_slice(&[0x0f, 0xb6, 0xc0 | to.0 << 3 | 4]);
    }

    /// `mov ah, from`, where `from` is one of the first four registers.
    pub fn mov_to_ah(&mut self, from: Reg) {
        self.code.extend_from_slice(&[0x8a, 0xe0 | from.0]);
    }

    /// Store of the width.
    pub fn store(&mut self, ty: Ty, m: Mem, from: Reg) {
        self.typed(ty, 0x89, from.0, m.into());
    }

    /// Store of a constant, sign-extended from 32 bits.
    pub fn store_imm(&mut self, ty: Ty, m: Mem, v: i32) {
        self.typed(ty, 0xc7, 0, m.into());
        match ty {
            Ty::I8 => self.code.push(v as u8),
            Ty::I16 => self.code.extend_from_slice(&(v as i16).to_le_bytes()),
            _ => self.imm32(v),
        }
    }

    /// `lea to, m`; of 32 bits: the result is cut.
    pub fn lea(&mut self, ty: Ty, to: Reg, m: Mem) {
        self.typed(if ty == Ty::I64 { Ty::I64 } else { Ty::I32 }, 0x8d, to.0, m.into());
    }

    pub fn shift_imm(&mut self, op: Shift, ty: Ty, r: Reg, n: u8) {
        self.typed(ty, 0xc1, op as u8, r.into());
        self.code.push(n);
    }

    /// Shift by CL.
    pub fn shift_cl(&mut self, op: Shift, ty: Ty, r: Reg) {
        self.typed(ty, 0xd3, op as u8, r.into());
    }

    pub fn unary(&mut self, op: Unary, ty: Ty, rm: impl Into<Rm>) {
        self.typed(ty, 0xf7, op as u8, rm.into());
    }

    /// `imul to, rm`, 32 or 64 bits.
    pub fn imul(&mut self, ty: Ty, to: Reg, rm: impl Into<Rm>) {
        self.typed_0f(ty, 0xaf, to.0, rm.into());
    }

    pub fn bswap(&mut self, ty: Ty, r: Reg) {
        self.rex(ty == Ty::I64, false, 0, &r.into());
        self.code.extend_from_slice(&[0x0f, 0xc8 | r.0 & 7]);
    }

    /// BSR or BSF.
    pub fn bit_scan(&mut self, reverse: bool, ty: Ty, to: Reg, from: Reg) {
        self.typed_0f(ty, if reverse { 0xbd } else { 0xbc }, to.0, from.into());
    }

    pub fn popcnt(&mut self, ty: Ty, to: Reg, from: Reg) {
        self.code.push(0xf3);
        self.typed_0f(ty, 0xb8, to.0, from.into());
    }

    pub fn cmov(&mut self, cc: u8, ty: Ty, to: Reg, from: Reg) {
        self.typed_0f(if ty == Ty::I64 { Ty::I64 } else { Ty::I32 }, 0x40 | cc, to.0, from.into());
    }

    /// `setcc`, the rest of the register stays.
    pub fn setcc(&mut self, cc: u8, r: Reg) {
        self.rex(false, true, 0, &r.into());
        self.code.extend_from_slice(&[0x0f, 0x90 | cc]);
        self.modrm(0, &r.into());
    }

    /// `bt dword m, 0`.
    pub fn bt0(&mut self, m: Mem) {
        self.typed_0f(Ty::I32, 0xba, 4, m.into());
        self.code.push(0);
    }

    /// CDQ or CQO.
    pub fn sign_to_rdx(&mut self, ty: Ty) {
        self.rex(ty == Ty::I64, false, 0, &RAX.into());
        self.code.push(0x99);
    }

    pub fn lock(&mut self) {
        self.code.push(0xf0);
    }

    pub fn xadd(&mut self, ty: Ty, m: Mem, r: Reg) {
        self.typed_0f(ty, 0xc1, r.0, m.into());
    }

    pub fn xchg(&mut self, ty: Ty, m: Mem, r: Reg) {
        self.typed(ty, 0x87, r.0, m.into());
    }

    pub fn cmpxchg(&mut self, ty: Ty, m: Mem, r: Reg) {
        self.typed_0f(ty, 0xb1, r.0, m.into());
    }

    pub fn lahf(&mut self) {
        self.code.push(0x9f);
    }

    /// `push imm`.
    pub fn push_imm(&mut self, v: i32) {
        match i8::try_from(v) {
            Ok(v) => self.code.extend_from_slice(&[0x6a, v as u8]),
            Err(_) => {
                self.byte(0x68);
                self.code.extend_from_slice(&v.to_le_bytes());
            }
        }
    }

    /// Takes the frame down.
    pub fn leave(&mut self) {
        self.code.push(0xc9);
    }

    pub fn ret(&mut self) {
        self.code.push(0xc3);
    }

    /// `jcc` to be set by [`Asm::land`]: the offset of its displacement.
    pub fn jcc(&mut self, cc: u8) -> usize {
        self.code.extend_from_slice(&[0x0f, 0x80 | cc]);
        self.imm32(0);
        self.here() - 4
    }

    /// `jmp` to be set by [`Asm::land`] or a fix-up.
    pub fn jmp(&mut self) -> usize {
        self.code.push(0xe9);
        self.imm32(0);
        self.here() - 4
    }

    /// `call` to be set by a fix-up.
    pub fn call(&mut self) -> usize {
        self.code.push(0xe8);
        self.imm32(0);
        self.here() - 4
    }

    pub fn jmp_mem(&mut self, m: Mem) {
        self.rex(false, false, 0, &m.into());
        self.code.push(0xff);
        self.modrm(4, &m.into());
    }

    /// Points the displacement at `at` to `target`.
    pub fn aim(&mut self, at: usize, target: usize) {
        if self.cold.is_some_and(|cold| (at < cold) != (target < cold)) {
            self.across.push((at as u32, target as u32));
        }
        let rel = (target as i64 - (at as i64 + 4)) as i32;
        self.code[at..at + 4].copy_from_slice(&rel.to_le_bytes());
    }

    /// Points the displacement at `at` to the next instruction.
    pub fn land(&mut self, at: usize) {
        self.aim(at, self.here());
    }

    /// A vector instruction: mandatory prefix (0: none), map, opcode. `wide` sets REX.W.
    pub fn sse(&mut self, prefix: u8, map: Map, opcode: u8, wide: bool, reg: Reg, rm: impl Into<Rm>) {
        let rm = rm.into();
        if prefix != 0 {
            self.code.push(prefix);
        }
        self.rex(wide, false, reg.0, &rm);
        self.code.extend_from_slice(match map {
            Map::M0f => &[0x0f],
            Map::M38 => &[0x0f, 0x38],
            Map::M3a => &[0x0f, 0x3a],
        });
        self.code.push(opcode);
        self.modrm(reg.0, &rm);
    }

    /// A vector instruction of 128 bits with a VEX prefix and three operands: `reg`, `first`, `rm` (SDM 2A, 2.3). `prefix`,
    /// `map` and `wide` are those of the SSE form.
    #[allow(clippy::too_many_arguments)]
    pub fn vex(&mut self, prefix: u8, map: Map, opcode: u8, wide: bool, reg: Reg, first: Reg, rm: Reg) {
        let pp = match prefix {
            0x66 => 1,
            0xf3 => 2,
            0xf2 => 3,
            _ => 0,
        };
        let (r, b, vvvv) = (!reg.0 >> 3 & 1, !rm.0 >> 3 & 1, !first.0 & 15);
        if b == 1 && map == Map::M0f && !wide {
            self.code.extend_from_slice(&[0xc5, r << 7 | vvvv << 3 | pp]);
        } else {
            let second = r << 7 | 1 << 6 | b << 5 | (map as u8 + 1);
            self.code.extend_from_slice(&[0xc4, second, (wide as u8) << 7 | vvvv << 3 | pp]);
        }
        self.code.push(opcode);
        self.modrm(reg.0, &rm.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn text(f: impl FnOnce(&mut Asm)) -> String {
        let mut a = Asm::default();
        f(&mut a);
        let mut d = Decoder::with_ip(64, &a.code, 0, DecoderOptions::NONE);
        let (mut out, mut formatter) = (String::new(), IntelFormatter::new());
        formatter.format(&d.decode(), &mut out);
        assert_eq!(d.position(), a.code.len(), "one instruction: {out}");
        out
    }

    #[test]
    fn registers_of_all_widths() {
        let want =
            [(Ty::I8, "add sil,r13b"), (Ty::I16, "add si,r13w"), (Ty::I32, "add esi,r13d"), (Ty::I64, "add rsi,r13")];
        for (ty, s) in want {
            assert_eq!(text(|a| a.alu(Alu::Add, ty, RSI, Reg(13))), s);
        }
        assert_eq!(text(|a| a.alu_imm(Alu::And, Ty::I8, Reg(9), 0x80)), "and r9b,80h");
        assert_eq!(text(|a| a.alu_imm(Alu::Sub, Ty::I16, RDI, 0x1234)), "sub di,1234h");
        assert_eq!(text(|a| a.alu_imm(Alu::Cmp, Ty::I64, RDX, -4096)), "cmp rdx,0FFFFFFFFFFFFF000h");
        assert_eq!(text(|a| a.zext(Ty::I8, Reg(12), RSI)), "movzx r12d,sil");
        assert_eq!(text(|a| a.zext(Ty::I8, RSI, RAX)), "movzx esi,al");
        assert_eq!(text(|a| a.sext(Ty::I32, R8, RDI)), "movsxd r8,edi");
        assert_eq!(text(|a| a.setcc(cc::E, RSI)), "sete sil");
        assert_eq!(text(|a| a.movzx_ah(RDX)), "movzx edx,ah");
        assert_eq!(text(|a| a.mov_to_ah(RCX)), "mov ah,cl");
        assert_eq!(text(|a| a.shift_imm(Shift::Sar, Ty::I8, RDI, 3)), "sar dil,3");
        assert_eq!(text(|a| a.popcnt(Ty::I64, Reg(9), RSI)), "popcnt r9,rsi");
    }

    #[test]
    fn memory_operands() {
        for base in (0..16).map(Reg) {
            for disp in [0, 8, -128, 128, i32::MIN] {
                let m = Mem::at(base, disp);
                let mut a = Asm::default();
                a.load(Ty::I64, RAX, m);
                let i = Decoder::with_ip(64, &a.code, 0, DecoderOptions::NONE).decode();
                assert_eq!(
                    (i.memory_base().number(), i.memory_displacement64()),
                    (base.0 as usize, disp as i64 as u64)
                );
            }
        }
        assert_eq!(text(|a| a.load(Ty::I8, RSI, Mem::indexed(Reg(13), RCX, 0))), "movzx esi,byte ptr [r13+rcx]");
        let m = Mem { base: None, index: Some((Reg(12), 3)), disp: 16 };
        assert_eq!(text(|a| a.lea(Ty::I64, RDI, m)), "lea rdi,[r12*8+10h]");
        assert_eq!(text(|a| a.store(Ty::I8, Mem::at(Reg(3), 4), RDI)), "mov [rbx+4],dil");
        assert_eq!(text(|a| a.store_imm(Ty::I64, Mem::at(Reg(3), 4), -1)), "mov qword ptr [rbx+4],0FFFFFFFFFFFFFFFFh");
        assert_eq!(text(|a| a.sse(0xf2, Map::M0f, 0x58, false, XMM0, XMM1)), "addsd xmm0,xmm1");
    }

    #[test]
    fn constants() {
        assert_eq!(text(|a| a.mov_imm(Reg(9), 5)), "mov r9d,5");
        assert_eq!(text(|a| a.mov_imm(RSI, u64::MAX)), "mov rsi,0FFFFFFFFFFFFFFFFh");
        assert_eq!(text(|a| a.mov_imm(RSI, 1 << 40)), "mov rsi,10000000000h");
    }
}
