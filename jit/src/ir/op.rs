//! The opcodes, declared once: mnemonic, signature, properties. Printer, parser, verifier and passes read this table.

/// What a field of an operation holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// Unused.
    No,
    /// An integer value.
    Int,
    /// An integer value, or `IMM` for the constant.
    IntOrImm,
    /// An integer value or none.
    IntOpt,
    /// A vector value.
    Vec,
    /// A small constant (field `c`).
    Const,
}

/// Properties of an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traits(pub u16);

impl Traits {
    /// None.
    pub const PURE: Self = Self(0);
    /// May raise a guest exception.
    pub const FAULT: Self = Self(1);
    /// Has effects beyond its result.
    pub const EFFECT: Self = Self(2);
    /// Ends the block.
    pub const END: Self = Self(4);
    /// Reads the lazy flags.
    pub const READS_FLAGS: Self = Self(8);
    /// Replaces all six arithmetic flags.
    pub const SETS_FLAGS: Self = Self(16);
    /// May replace the flags.
    pub const MAY_SET_FLAGS: Self = Self(32);
    /// Both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Has all of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Declaration of an opcode.
pub struct OpInfo {
    /// Mnemonic of the text form.
    pub name: &'static str,
    /// Has a type suffix.
    pub typed: bool,
    /// Fields d, a, b, c.
    pub fields: [Field; 4],
    /// Uses `imm` besides `IMM` operands.
    pub imm: bool,
    /// Properties.
    pub traits: Traits,
}

macro_rules! ops {
    ($($(#[$doc:meta])* $id:ident $name:literal $typed:literal ($d:ident $a:ident $b:ident $c:ident) $imm:literal $traits:expr;)*) => {
        /// Operation code.
        #[repr(u16)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Op { $($(#[$doc])* $id,)* }
        /// All opcodes in order.
        #[cfg(any(test, feature = "testing"))]
        pub const ALL: &[Op] = &[$(Op::$id,)*];
        static INFO: &[OpInfo] = &[$(OpInfo {
            name: $name, typed: $typed, fields: [Field::$d, Field::$a, Field::$b, Field::$c], imm: $imm, traits: $traits,
        },)*];
    };
}

const P: Traits = Traits::PURE;
const FAULT: Traits = Traits::FAULT;
const EFFECT: Traits = Traits::EFFECT;
const END: Traits = Traits::END;

ops! {
    // Integer. d = f(a, b); b may be the constant.
    /// d = a, cut to the type (zero-extension from it).
    Mov "mov" true (Int IntOrImm No No) false P;
    /// d = a sign-extended from the type to 64 bits.
    Sext "sext" true (Int Int No No) false P;
    /// d = a with bits 7:0 taken from b.
    Ins8 "ins8" false (Int Int IntOrImm No) false P;
    /// d = a with bits 15:8 taken from bits 7:0 of b.
    Ins8h "ins8h" false (Int Int IntOrImm No) false P;
    /// d = a with bits 15:0 taken from b.
    Ins16 "ins16" false (Int Int IntOrImm No) false P;
    /// d = bits 15:8 of a.
    Ext8h "ext8h" false (Int Int No No) false P;
    /// Sum.
    Add "add" true (Int Int IntOrImm No) false P;
    /// Difference.
    Sub "sub" true (Int Int IntOrImm No) false P;
    /// Bitwise and.
    And "and" true (Int Int IntOrImm No) false P;
    /// Bitwise or.
    Or "or" true (Int Int IntOrImm No) false P;
    /// Bitwise exclusive or.
    Xor "xor" true (Int Int IntOrImm No) false P;
    /// Low half of the product.
    Mul "mul" true (Int Int IntOrImm No) false P;
    /// High half of the unsigned product.
    MulHiU "mulhu" true (Int Int Int No) false P;
    /// High half of the signed product.
    MulHiS "mulhs" true (Int Int Int No) false P;
    /// Left shift by b & 31 (b & 63 for i64), as x86 counts.
    Shl "shl" true (Int Int IntOrImm No) false P;
    /// Logical right shift, count as for `shl`.
    Shr "shr" true (Int Int IntOrImm No) false P;
    /// Arithmetic right shift, count as for `shl`.
    Sar "sar" true (Int Int IntOrImm No) false P;
    /// Rotate left by b modulo the width.
    Rol "rol" true (Int Int IntOrImm No) false P;
    /// Rotate right by b modulo the width.
    Ror "ror" true (Int Int IntOrImm No) false P;
    /// Bitwise complement.
    Not "not" true (Int Int No No) false P;
    /// Two's complement.
    Neg "neg" true (Int Int No No) false P;
    /// Bytes reversed.
    Bswap "bswap" true (Int Int No No) false P;
    /// Leading zeros; the width for 0.
    Clz "clz" true (Int Int No No) false P;
    /// Trailing zeros; the width for 0.
    Ctz "ctz" true (Int Int No No) false P;
    /// Ones.
    Popcnt "popcnt" true (Int Int No No) false P;
    /// d = 1 if a == b else 0.
    CmpEq "cmpeq" true (Int Int IntOrImm No) false P;
    /// d = 1 if a != b else 0.
    CmpNe "cmpne" true (Int Int IntOrImm No) false P;
    /// d = 1 if a < b unsigned else 0.
    CmpUlt "cmpult" true (Int Int IntOrImm No) false P;
    /// d = 1 if a <= b unsigned else 0.
    CmpUle "cmpule" true (Int Int IntOrImm No) false P;
    /// d = 1 if a < b signed else 0.
    CmpSlt "cmpslt" true (Int Int IntOrImm No) false P;
    /// d = (a != 0, all 64 bits) ? b : c, cut to the type.
    Select "select" true (Int Int Int Int) false P;
    /// d = a + (b << c) + imm, cut to the type; a or b may be absent.
    Lea "lea" true (Int IntOpt IntOpt Const) true P;

    // Processor state other than general registers.
    /// d = the field of this width at byte offset imm of `CpuState`.
    GetState "getstate" true (Int No No No) true P;
    /// The field of this width at byte offset imm of `CpuState` = a.
    SetState "setstate" true (No Int No No) true EFFECT;

    // Guest memory. The linear address is a + imm; c holds `ir::mem` flags.
    /// d = memory.
    Load "load" true (Int Int No Const) true FAULT;
    /// Memory = b.
    Store "store" true (No Int Int Const) true FAULT.or(EFFECT);
    /// Atomic read-modify-write at a: d = old value, operand b, imm = `RmwOp` (the address has no displacement).
    Rmw "rmw" true (Int Int Int No) true FAULT.or(EFFECT);
    /// Atomic compare-and-swap at a: d = old value; stores c if the old value equals b.
    Cas "cas" true (Int Int Int Int) false FAULT.or(EFFECT);
    /// d = linear address of offset a in segment imm & 7, checked for an access of imm >> 8 bytes; bits 3
    /// and 4 of imm: `ir::seg_addr`.
    SegAddr "segaddr" false (Int Int No No) true FAULT;

    // Lazy flags.
    /// Flags of result a and source b (meaning by kind); c = `flags::CcKind`.
    SetFlags "setflags" true (No Int IntOrImm Const) false Traits::SETS_FLAGS;
    /// As `setflags` with kind imm, or imm + 1 where c (a carry, 0 or 1) is set: adc, sbb.
    SetFlagsCarry "setflagsc" true (No Int Int Int) true Traits::SETS_FLAGS;
    /// As `setflags` with kind imm if c is not zero; else the flags stay: shifts by a variable count.
    SetFlagsIf "setflagsif" true (No Int Int Int) true Traits::MAY_SET_FLAGS.or(Traits::READS_FLAGS);
    /// d = 1 if condition c (the low four bits of Jcc's opcode) holds else 0.
    GetCond "getcond" false (Int No No Const) false Traits::READS_FLAGS;
    /// d = CF, PF, AF, ZF, SF, OF in their places in RFLAGS, the rest 0.
    GetFlags "getflags" false (Int No No No) false Traits::READS_FLAGS;

    // Vectors of 128 bits. `imm` of vec* is a `vecop` number, c an immediate byte.
    /// d = a.
    VMov "vmov" false (Vec Vec No No) false P;
    /// d = memory at a + imm: 4, 8 or 16 bytes by type (i32, i64, i8 = 16), the rest of the 128 bits zero; or 32 (i16) to
    /// the pair that d is the low half of.
    VLoad "vload" true (Vec Int No Const) true FAULT;
    /// Memory at a + imm = low part of vector b, or the pair that it is the low half of; sizes as `vload`.
    VStore "vstore" true (No Int Vec Const) true FAULT.or(EFFECT);
    /// d = f(a, b), see `vecop::VecOp`.
    Vec "vec" false (Vec Vec Vec Const) true FAULT;
    /// d = f(a, b, c), see `vecop::FmaOp`.
    Fma "fma" false (Vec Vec Vec Vec) true FAULT;
    /// Integer d = f(a, b), see `vecop::VecToInt`.
    VecToInt "vectoint" true (Int Vec Vec Const) true FAULT;
    /// Vector d = f(vector a, integer b), see `vecop::VecFromInt`.
    VecFromInt "vecfromint" true (Vec Vec Int Const) true FAULT;
    /// The high halves of the YMM registers whose bits are set in imm become 0.
    ClearHigh "clearhigh" false (No No No No) true EFFECT;
    /// d = 128 bits (i8), 64 (i64) or 32 (i32) at byte offset imm of `CpuState`, zero-extended.
    VGetState "vgetstate" true (Vec No No No) true P;
    /// The same the other way.
    VSetState "vsetstate" true (No Vec No No) true EFFECT;

    // Counted execution.
    /// imm, and a if there is one, more guest instructions were executed.
    Count "count" false (No IntOpt No No) true EFFECT;

    // Everything else, and the ways out.
    /// RIP = imm and the block is left if a is not zero; with c = 1, if it is zero. In traces ([`super::trace`]) only.
    Exit "exit" false (No Int No Const) true EFFECT;
    /// d = helper imm (a, b, c).
    Call "call" false (IntOpt IntOpt IntOpt IntOpt) true FAULT.or(EFFECT);
    /// Raises vector imm & 0xff; error code imm >> 16 if bit 8 is set.
    Raise "raise" false (No No No No) true FAULT.or(END);
    /// RIP = imm.
    Jmp "jmp" false (No No No No) true END;
    /// RIP = a. If a fetch is to follow, not code known already, `CpuState::branch_rip` = RIP of the instruction (64-bit
    /// mode).
    JmpInd "jmpind" false (No Int No No) false END;
    /// RIP = imm if a is not zero, else the end of the block.
    Br "br" false (No Int No No) true END;
    /// RIP is in the state already (a helper set it), mode and mappings may have changed: back to the dispatcher.
    Dispatch "dispatch" false (No No No No) false END;
}

impl Op {
    /// Works on vectors.
    pub const fn is_vector(self) -> bool {
        matches!(
            self,
            Op::VMov
                | Op::VLoad
                | Op::VStore
                | Op::Vec
                | Op::Fma
                | Op::VecToInt
                | Op::VecFromInt
                | Op::VGetState
                | Op::VSetState
                | Op::ClearHigh
        )
    }

    /// The declaration.
    pub fn info(self) -> &'static OpInfo {
        &INFO[self as usize]
    }
}

/// Operations of [`Op::Rmw`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum RmwOp {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Xchg,
}

impl RmwOp {
    /// What the operation makes of `old`; the caller cuts it to the operand's width.
    pub fn apply(self, old: u64, v: u64) -> u64 {
        match self {
            Self::Add => old.wrapping_add(v),
            Self::Sub => old.wrapping_sub(v),
            Self::And => old & v,
            Self::Or => old | v,
            Self::Xor => old ^ v,
            Self::Xchg => v,
        }
    }

    /// From the constant of the operation.
    pub fn from_imm(imm: i64) -> Self {
        match imm {
            0 => Self::Add,
            1 => Self::Sub,
            2 => Self::And,
            3 => Self::Or,
            4 => Self::Xor,
            _ => Self::Xchg,
        }
    }
}
