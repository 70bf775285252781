//! What the helpers are told of an instruction, and what all of them do around it: pending exceptions, pointers, stack
//! faults, exceptions.

use super::control::pending;
use super::state::{INDEFINITE, sw};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;

/// Format of a memory operand.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// None: a register.
    None,
    /// Single precision.
    Single,
    /// Double precision.
    Double,
    /// 80 bits.
    Extended,
    /// 16-bit integer.
    Word,
    /// 32-bit integer.
    Dword,
    /// 64-bit integer.
    Qword,
    /// Packed decimal.
    Decimal,
}

impl Format {
    const ALL: [Format; 8] = [
        Format::None,
        Format::Single,
        Format::Double,
        Format::Extended,
        Format::Word,
        Format::Dword,
        Format::Qword,
        Format::Decimal,
    ];
    /// The type of a load or store; 10-byte formats are handled apart.
    pub fn ty(self) -> Ty {
        match self {
            Format::Word => Ty::I16,
            Format::Single | Format::Dword => Ty::I32,
            _ => Ty::I64,
        }
    }
}

/// An instruction, packed in a helper's first operand. The second one is the linear address of the memory operand, the
/// third one its offset in the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    /// Operation, meaning by helper.
    pub op: u8,
    /// Register operand ST(i).
    pub i: usize,
    /// Registers popped.
    pub pops: u8,
    /// The result goes to ST(i).
    pub to_sti: bool,
    /// Memory operand.
    pub format: Format,
    /// Flags of the memory access ([`crate::ir::mem`]).
    pub access: u16,
}

impl Insn {
    /// The data pointer, if the operand is in memory.
    pub(super) fn data(&self, offset: u64) -> Option<u64> {
        (self.format != Format::None).then_some(offset)
    }
    /// An operation on registers.
    pub fn new(op: u8) -> Self {
        Self { op, i: 0, pops: 0, to_sti: false, format: Format::None, access: 0 }
    }
    /// As an operand.
    pub fn pack(self) -> i64 {
        self.op as i64
            | (self.i as i64 & 7) << 8
            | (self.pops as i64 & 3) << 12
            | (self.to_sti as i64) << 15
            | (self.format as i64) << 16
            | (self.access as i64) << 32
    }
    /// From an operand.
    pub fn unpack(w: u64) -> Self {
        Self {
            op: w as u8,
            i: (w >> 8) as usize & 7,
            pops: (w >> 12) as u8 & 3,
            to_sti: w >> 15 & 1 != 0,
            format: Format::ALL[(w >> 16) as usize & 7],
            access: (w >> 32) as u16,
        }
    }
}

impl Cpu {
    /// Start of every instruction that waits: a pending exception comes first.
    pub(super) fn x87_start(&mut self) -> Result<(), Fault> {
        pending(self)
    }

    /// Records the instruction (FIP; FCS is deprecated and 0).
    pub(super) fn x87_pointer(&mut self) {
        self.state.x87.fip = self.state.rip;
    }

    /// Exceptions of an instruction into the status word, C1 from `found`. `data`: offset of the memory operand if there
    /// is one. The opcode and data pointers follow unmasked exceptions only, as CPUID.7:EBX bit 6 says.
    /// Result: what comes first (IE, DE, ZE) let the instruction complete.
    pub(super) fn x87_exceptions(&mut self, found: u16, data: Option<u64>) -> bool {
        self.x87_pointer();
        let x = &mut self.state.x87;
        x.fsw = x.fsw & !sw::C1 | found & (sw::EXCEPTIONS | sw::SF | sw::C1);
        let unmasked = found & !x.fcw & sw::EXCEPTIONS;
        if unmasked != 0 {
            x.update_summary();
            x.fdp = data.unwrap_or(x.fdp);
            self.state.x87.fop = self.x87_opcode();
        }
        unmasked & (sw::IE | sw::DE | sw::ZE) == 0
    }

    /// An operand register is empty. Result: go on with the masked response.
    pub(super) fn x87_underflow(&mut self, data: Option<u64>) -> bool {
        self.x87_exceptions(sw::IE | sw::SF, data)
    }

    /// The register to be pushed into is not empty.
    pub(super) fn x87_overflow(&mut self, data: Option<u64>) -> bool {
        self.x87_exceptions(sw::IE | sw::SF | sw::C1, data)
    }

    /// Pops `n` registers.
    pub(super) fn x87_pop(&mut self, n: u8) {
        for _ in 0..n {
            self.state.x87.pop();
        }
    }

    /// Pushes the result of a load with its exceptions; a full stack is an overflow. An unmasked denormal exception does
    /// not keep the value from being loaded (measured).
    pub(super) fn x87_load(&mut self, v: u128, found: u16, data: Option<u64>) {
        if !self.state.x87.is_empty(7) {
            if self.x87_overflow(data) {
                self.state.x87.push(INDEFINITE);
            }
        } else if self.x87_exceptions(found, data) || found & sw::IE == 0 {
            self.state.x87.push(v);
        }
    }

    /// The current instruction's opcode as FOP shows it: low three bits of the first byte, then ModRM.
    fn x87_opcode(&mut self) -> u16 {
        let mut bytes = [0; 15];
        let at = self.state.linear_rip();
        let readable = (1..=15).rev().find(|n| self.load_bytes(at, &mut bytes[..*n]).is_ok()).unwrap_or(0);
        let opcode = bytes[..readable].iter().position(|b| b & 0xf8 == 0xd8);
        match opcode.and_then(|p| bytes.get(p..p + 2)) {
            Some([first, modrm]) => (*first as u16 & 7) << 8 | *modrm as u16,
            _ => 0,
        }
    }
}
