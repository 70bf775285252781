//! Near branches to addresses that are not canonical: the branch faults, not the fetch behind it (SDM 2, JMP, CALL, RET).
//!
//! Indirect branches of 64-bit code do not look at their target. On the way to the dispatcher they leave their own RIP in
//! the state, and only when a fetch finds that RIP is not canonical is the branch taken back. What CALL pushed stays below
//! the stack pointer.

use crate::cpu::Cpu;
use crate::ir::Ty;
use crate::lift::operand::gpr;
use crate::mmu::ram::PAGE_SIZE;
use crate::state::reg;
use iced_x86::{Code, Decoder, Instruction, Mnemonic, OpKind};

/// Longest instruction.
const LONGEST: usize = 15;

impl Cpu {
    /// RIP is not canonical. If an indirect near branch led there, takes it back: RIP is that of the branch, and RSP as
    /// before it.
    #[cold]
    pub fn take_branch_back(&mut self) {
        let from = std::mem::take(&mut self.state.branch_rip);
        if !self.state.long64() || !self.canonical(from) {
            return;
        }
        let Some(i) = self.peek_instruction(from) else { return };
        let rsp = self.gpr(reg::RSP);
        let before = match (i.mnemonic(), i.code()) {
            (Mnemonic::Ret, Code::Retnq | Code::Retnq_imm16) => {
                let extra = if i.op_count() > 0 { i.immediate(0) & 0xffff } else { 0 };
                let rsp = rsp.wrapping_sub(8 + extra);
                Some(rsp).filter(|rsp| self.peek_u64(*rsp) == Some(self.state.rip))
            }
            (Mnemonic::Call, _) if i.is_call_near_indirect() => Some(rsp.wrapping_add(8)),
            (Mnemonic::Jmp, _) if i.is_jmp_near_indirect() => Some(rsp),
            _ => None,
        };
        let Some(before) = before.filter(|rsp| self.may_lead_here(&i, *rsp)) else { return };
        self.set_gpr(reg::RSP, before);
        self.state.rip = from;
    }

    /// A branch by register names one that holds RIP.
    fn may_lead_here(&self, i: &Instruction, rsp: u64) -> bool {
        if i.mnemonic() == Mnemonic::Ret || i.op0_kind() != OpKind::Register {
            return true;
        }
        let value = |n| if n == reg::RSP { rsp } else { self.gpr(n) };
        gpr(i.op0_register()).is_some_and(|g| g.ty == Ty::I64 && value(g.n) == self.state.rip)
    }

    /// The instruction at `rip` of 64-bit code.
    fn peek_instruction(&self, rip: u64) -> Option<Instruction> {
        let mut bytes = [0; LONGEST];
        let there = self.peek(rip, &mut bytes)?;
        let mut decoder = Decoder::with_ip(64, bytes.get(..there)?, rip, self.model.decoder_options());
        Some(decoder.decode()).filter(|i| !i.is_invalid())
    }

    fn peek_u64(&self, linear: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.peek(linear, &mut bytes)? == bytes.len()).then(|| u64::from_le_bytes(bytes))
    }

    /// Reads memory without effect on it; how many bytes there are, up to a page that is not mapped.
    fn peek(&self, linear: u64, out: &mut [u8]) -> Option<usize> {
        let first = out.len().min((PAGE_SIZE - (linear & (PAGE_SIZE - 1))) as usize);
        let (head, tail) = out.split_at_mut(first);
        self.shared.ram.read(self.translate_debug(linear)?, head);
        match self.translate_debug(linear.wrapping_add(first as u64)).filter(|_| !tail.is_empty()) {
            Some(gpa) => {
                self.shared.ram.read(gpa, tail);
                Some(out.len())
            }
            None => Some(first),
        }
    }
}
