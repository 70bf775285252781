//! The intermediate representation of one guest block.
//!
//! An [`Inst`] is a fixed-size record; what its fields mean is declared once per opcode in [`op`]. Integer values are
//! [`Val`]s: 0..=15 are the guest's general registers (they live in `CpuState::vals` and keep their value from block to
//! block), 16.. are temporaries that live within one guest instruction. Every integer is 64 bits wide in its slot: an
//! operation of type iN reads the low N bits of its operands and writes its result zero-extended. So `add.i32 rax = rax,
//! rcx` is exactly x86-64's `add eax, ecx`. Vector values ([`VVal`]) are 128 bits wide: halves of the YMM registers, and
//! temporaries.
//!
//! An instruction that can fault comes before anything that changes guest state of the same guest instruction: at a
//! fault the state is that before the instruction (SDM 3A 6.6), in both tiers.

pub mod build;
pub mod flags;
pub mod op;
#[cfg(any(test, feature = "testing"))]
pub mod parse;
pub mod text;
pub mod trace;
pub mod vecop;
pub mod verify;

use crate::state::{CpuState, HIGH, mode};
pub use build::Builder;
pub use op::Op;
use std::mem::offset_of;

/// An integer value: a general register or a temporary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Val(pub u16);

impl Val {
    /// No operand.
    pub const NONE: Val = Val(0xffff);
    /// The operand is [`Inst::imm`].
    pub const IMM: Val = Val(0xfffe);
    /// First temporary.
    pub const TEMP0: u16 = 16;
    /// General register `n` (0..=15).
    pub const fn gpr(n: usize) -> Val {
        Val(n as u16 & 15)
    }
    /// Is a general register.
    pub const fn is_gpr(self) -> bool {
        self.0 < 16
    }
}

/// A vector value of 128 bits: 0..=15 are XMM0 to XMM15, 16..=31 the high halves of YMM0 to YMM15, from 32 on temporaries.
/// A value of 256 bits is a pair: its low half and, [`HIGH`] further, its high half.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct VVal(pub u16);

impl VVal {
    /// First temporary.
    pub const TEMP0: u16 = 2 * HIGH as u16;
    /// Behind the last temporary that is no high half.
    pub const TEMPS_END: u16 = 3 * HIGH as u16;
    /// Behind the last value.
    pub const END: u16 = 4 * HIGH as u16;
    /// The high half of the value whose low half this is.
    pub const fn high(self) -> VVal {
        VVal(self.0 + HIGH as u16)
    }
}

/// Width of an integer operation.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Ty {
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
}

impl Ty {
    /// Width in bytes.
    pub const fn bytes(self) -> u8 {
        1 << self as u8
    }
    /// Width in bits.
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }
    /// All ones in this width.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
    /// The type of `bytes` bytes (1, 2, 4; else 64 bits).
    pub const fn from_bytes(bytes: usize) -> Ty {
        match bytes {
            1 => Ty::I8,
            2 => Ty::I16,
            4 => Ty::I32,
            _ => Ty::I64,
        }
    }
}

/// Flags in field `c` of memory operations.
pub mod mem {
    /// The access is to the stack segment: a non-canonical address raises #SS rather than #GP.
    pub const STACK: u16 = 1;
    /// A load that will be followed by a store to the same place: it needs write permission and faults as a write.
    pub const WRITE_INTENT: u16 = 2;
    /// A 16- or 32-byte access that raises #GP unless aligned (SSE).
    pub const ALIGNED: u16 = 4;
}

/// Bits in the constant of the operation `segaddr`, beside segment (2:0) and bytes (from bit 8 on).
pub mod seg_addr {
    /// What the segment forbids is raised by the access, if it comes to that.
    pub const LATER: u64 = 8;
    /// The access writes.
    pub const WRITE: u64 = 16;
}

/// One IR operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Width, for typed operations.
    pub ty: Ty,
    /// Result: a [`Val`] or [`VVal`] number as the opcode's signature says.
    pub d: u16,
    /// First operand.
    pub a: u16,
    /// Second operand.
    pub b: u16,
    /// Third operand, or small constant.
    pub c: u16,
    /// Offset of the guest instruction in the block, in bytes.
    pub off: u16,
    /// Length of the guest instruction; 0: not known. The one behind it may have no operations.
    pub len: u8,
    /// Constant.
    pub imm: i64,
}

/// Marks an offset among RIPs, see [`Block::written`].
pub const RELATIVE_RIP: u64 = 1 << RELATIVE_RIP_BIT;
/// Number of that bit.
pub const RELATIVE_RIP_BIT: u32 = 62;

/// A lifted guest block: straight-line code with one way in. A trace of several ([`trace`]) may be left at each `exit`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// RIP of the first instruction. In a relative block ([`mode::RELATIVE`]) this and the targets of its jumps count from
    /// the page that it runs at.
    pub rip: u64,
    /// Mode word it was lifted under.
    pub mode: u32,
    /// Bytes of guest code covered.
    pub len: u16,
    /// Guest instructions.
    pub count: u16,
    /// The operations; the last one is the only terminator.
    pub insts: Vec<Inst>,
}

impl Block {
    /// Its RIPs are offsets.
    pub fn is_relative(&self) -> bool {
        self.mode & mode::RELATIVE != 0
    }
    /// The same relative block, with RIPs that count from the page `by` bytes before its own.
    pub fn counted_from(&self, by: u64) -> Self {
        let mut insts = Vec::with_capacity(self.insts.len() + 2);
        for i in &self.insts {
            let mut i = *i;
            if matches!(i.op, Op::Jmp | Op::Br) {
                i.imm = i.imm.wrapping_add(by as i64);
            }
            insts.push(i);
            if i.op == Op::GetState && i.imm as usize == offset_of!(CpuState, code_base) {
                insts.push(Inst { op: Op::Lea, a: i.d, c: 0, imm: by as i64, ..i });
            }
        }
        Self { rip: self.rip.wrapping_add(by), insts, ..*self }
    }
    /// Ends with a call, which pushes.
    pub fn ends_with_call(&self) -> bool {
        let last = self.insts.last().map(|i| i.off);
        let mut of_last = self.insts.iter().rev().take_while(|i| Some(i.off) == last);
        self.insts.last().is_some_and(|i| i.op == Op::Jmp) && of_last.any(|i| i.op == Op::Store)
    }
    /// What is added to its RIPs when it runs.
    #[inline(always)]
    pub fn base(&self, state: &CpuState) -> u64 {
        if self.is_relative() { state.code_base } else { 0 }
    }
    /// A RIP of the block as it is written down in generated code for [`crate::runtime::exec`]: bit 62 marks an offset, with
    /// its sign in the bit below. No canonical address has it without bit 63.
    pub fn written(&self, rip: u64) -> u64 {
        if self.is_relative() { rip & (RELATIVE_RIP - 1) | RELATIVE_RIP } else { rip }
    }
    /// RIP that follows the block's last instruction.
    pub fn end_rip(&self) -> u64 {
        self.wrap(self.rip.wrapping_add(self.len as u64))
    }
    /// RIP of the guest instruction behind that of operation `n`.
    pub fn rip_after(&self, n: usize) -> u64 {
        let off = match (self.insts.get(n), self.insts.get(n + 1)) {
            (Some(i), _) if i.len != 0 => i.off.wrapping_add(i.len.into()),
            (_, Some(next)) => next.off,
            _ => self.len,
        };
        self.wrap(self.rip.wrapping_add(off.into()))
    }
    /// Wraps an instruction pointer: to EIP outside 64-bit mode. 16-bit code, too, runs on from FFFF to 1_0000, where its
    /// limit mostly ends it (SDM 3A 5.3); branches of 16 bits are cut where they are lifted.
    pub fn wrap(&self, rip: u64) -> u64 {
        if self.mode & mode::CS64 != 0 { rip } else { rip & 0xffff_ffff }
    }
}
