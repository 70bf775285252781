//! From decoded x86 instructions to IR: the semantics, written once for both tiers.
//!
//! [`Lifter`] carries the mode and the builder; a file per instruction family holds the semantics. Rules:
//! - read the mode only through [`Lifter::mode`] (it is in the key of translated code);
//! - loads, checks and other things that can fault come before the first change of guest state;
//! - registers narrower than 32 bits are written through [`Lifter::write_reg`];
//! - what the IR has no operation for calls a helper ([`crate::helpers`]).

mod disasm;
pub mod operand;

mod alu;
mod atomic;
mod bits;
mod control;
mod integer;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod string;
mod system;
mod vector;
mod x87;

pub use disasm::{disassemble, disassemble_host, instructions};

use crate::cpuid::CpuModel;
use crate::fault::vector as vec_no;
use crate::ir::op::Traits;
use crate::ir::{Block, Builder, Inst, Op, Ty, Val};
use crate::mmu::ram::PAGE_SIZE;
use crate::state::{CpuState, mode};
use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Instruction};

/// Most guest instructions in a block.
pub const MAX_INSNS: u16 = 64;

/// What follows a lifted instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// The next instruction, in the same block.
    Next,
    /// A terminator was emitted.
    End,
    /// The block ends here and goes on with the next instruction: mode or mappings may have changed.
    EndAfter,
}

/// Lifts the instructions of one block.
pub struct Lifter<'a> {
    /// Where the IR goes.
    pub b: Builder,
    /// The mode word the block is lifted under.
    pub mode: u32,
    /// RIP of the current instruction, as the block counts it.
    pub rip: u64,
    /// RIP of the next instruction, wrapped to the code segment's width.
    pub next: u64,
    /// What RIPs of a relative block count from where it is lifted; else 0.
    page: u64,
    /// The processor model (features).
    pub model: &'a CpuModel,
    /// The instruction before was STI: its shadow ends with this one, within the block.
    pub shadow: bool,
    /// Requests may have come up since they were last looked for: the instruction is neither in the shadow of STI nor
    /// stepped alone.
    pub unwatched: bool,
    /// What segments forbid is raised by the access, not where the address is made.
    pub limits_later: bool,
    /// In counted execution: instructions done that are not counted yet.
    uncounted: u16,
    /// YMM registers whose high half is known to be zero, one bit each.
    pub clear_high: u16,
}

impl<'a> Lifter<'a> {
    fn new(b: Builder, rip: u64, mode: u32, model: &'a CpuModel) -> Self {
        Self {
            b,
            mode,
            rip,
            next: rip,
            page: 0,
            model,
            shadow: false,
            unwatched: false,
            limits_later: false,
            uncounted: 0,
            clear_high: 0,
        }
    }
}

impl Lifter<'_> {
    /// The mode has all of `bits`.
    pub fn has(&self, bits: u32) -> bool {
        self.mode & bits == bits
    }
    /// 64-bit mode.
    pub fn long64(&self) -> bool {
        self.has(mode::CS64)
    }
    /// A RIP of the block as a value.
    pub fn rip_value(&mut self, rip: u64) -> Val {
        if !self.has(mode::RELATIVE) {
            return self.b.iconst(rip as i64);
        }
        let ty = if self.long64() { Ty::I64 } else { Ty::I32 };
        self.relative(ty, rip as i64)
    }
    /// The address at an offset from the page that relative code runs at.
    fn relative(&mut self, ty: Ty, offset: i64) -> Val {
        let base = self.code_base();
        let d = self.b.temp();
        self.b.lea_to(ty, d, Some(base), None, 0, offset);
        d
    }
    /// Linear address of the page that relative code runs at.
    fn code_base(&mut self) -> Val {
        self.b.get_state(Ty::I64, std::mem::offset_of!(CpuState, code_base))
    }
    /// In counted execution, counts the instruction whose operations start at `start`, and those before it: before what
    /// may leave the block or look at the count there is to be none uncounted but the instruction itself, and none at the
    /// end of the block.
    fn charge(&mut self, start: usize, ends: bool) {
        if !self.has(mode::COUNTED) {
            return;
        }
        let (ops, mut before) = (self.b.since(start), self.uncounted);
        let leaves = ops.iter().any(|i| i.op.info().traits.has(Traits::FAULT));
        let counts = ops.iter().any(|i| i.op == Op::Count);
        let raises = ops.last().is_some_and(|i| i.op == Op::Raise);
        self.uncounted = if ends { 0 } else { 1 + if leaves { 0 } else { before } };
        if ends && !leaves {
            before = before.wrapping_add(1);
        } else if ends && !raises && !counts {
            self.b.count_before(self.b.len() - 1, 1);
        }
        if before > 0 && (leaves || ends) {
            self.b.count_before(start, before);
        }
    }
    /// Privilege level.
    pub fn cpl(&self) -> u32 {
        (self.mode & mode::CPL) >> mode::CPL_SHIFT
    }
}

/// Code width of a mode word: 16, 32 or 64.
pub fn bitness(mode_word: u32) -> u32 {
    match mode_word & (mode::CS64 | mode::CS32) {
        0 => 16,
        mode::CS32 => 32,
        _ => 64,
    }
}

/// Why no block could be lifted from the bytes at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LiftError {
    /// The first instruction goes on beyond the bytes given (it crosses the page).
    NeedMoreBytes,
}

/// Lifts a block from `bytes`, which start at `rip` and end at a page's end (or 15 bytes into the next, for an instruction
/// that crosses). `max_insns` is 1 for single steps.
pub fn lift_block(
    bytes: &[u8],
    rip: u64,
    mode_word: u32,
    model: &CpuModel,
    max_insns: u16,
) -> Result<Block, LiftError> {
    lift_into(Vec::new(), bytes, (rip, rip), mode_word, model, max_insns)
}

/// As [`lift_block`], with the operations in `room`, in place of what is there. The block ends before an instruction at
/// `stop`, or behind it, unless it starts there. With [`mode::RELATIVE`] it will run wherever the page of `rip` is mapped;
/// only that addresses which its branches lead to are canonical is taken from where it is now.
pub fn lift_into(
    room: Vec<Inst>,
    bytes: &[u8],
    (rip, stop): (u64, u64),
    mode_word: u32,
    model: &CpuModel,
    max_insns: u16,
) -> Result<Block, LiftError> {
    let page = if mode_word & mode::RELATIVE != 0 { rip & !(PAGE_SIZE - 1) } else { 0 };
    let (rip, stop) = (rip - page, stop.wrapping_sub(page));
    let mut decoder = Decoder::with_ip(bitness(mode_word), bytes, rip, model.decoder_options());
    let mut block = Block { rip, mode: mode_word, len: 0, count: 0, insts: Vec::new() };
    let mut l = Lifter::new(Builder::with_room(room), rip, mode_word, model);
    l.page = page;
    let mut insn = Instruction::default();
    loop {
        let off = decoder.position();
        decoder.decode_out(&mut insn);
        let end = decoder.position();
        let more = decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
        if more && bytes.len() - off < 15 {
            // Not decided by these bytes: the block ends before it, or the caller gives the next page's bytes.
            if off == 0 {
                return Err(LiftError::NeedMoreBytes);
            }
            l.b.start_insn(block.len);
            let start = l.b.len();
            l.b.jmp(block.end_rip());
            // It is no instruction of its own.
            l.uncounted = l.uncounted.wrapping_sub(1);
            l.charge(start, true);
            break;
        }
        l.rip = block.wrap(rip.wrapping_add(off as u64));
        l.next = block.wrap(rip.wrapping_add(end as u64));
        l.b.start_insn(off as u16);
        l.b.insn_len((end - off) as u8);
        l.unwatched = !l.shadow && max_insns > 1;
        let start = l.b.len();
        let flow = if insn.is_invalid() && bytes.len() - off > 15 && end - off >= 15 {
            // SDM 2A 2.3.11: longer than 15 bytes is #GP. The decoder stops at the limit and calls it invalid.
            l.b.raise_code(vec_no::GP, 0);
            Flow::End
        } else {
            l.insn(&insn)
        };
        block.len = end as u16;
        block.count += 1;
        let room = block.count < max_insns && end < bytes.len() && !reaches(rip, l.next, stop);
        match flow {
            Flow::End => {}
            Flow::Next if room => {}
            Flow::Next => l.b.jmp(l.next),
            Flow::EndAfter => {
                let next = l.rip_value(l.next);
                l.b.set_state(Ty::I64, std::mem::offset_of!(CpuState, rip), next);
                l.b.dispatch();
            }
        }
        let ends = flow != Flow::Next || !room;
        l.charge(start, ends);
        if ends {
            break;
        }
    }
    block.insts = l.b.finish();
    Ok(block)
}

/// Some family lifts the instruction under this mode word, be it to #UD.
#[cfg(test)]
pub fn accepts(i: &Instruction, mode_word: u32, model: &CpuModel) -> bool {
    let mut l = Lifter::new(Builder::with_room(Vec::new()), i.ip(), mode_word, model);
    l.next = i.next_ip();
    l.b.start_insn(0);
    l.b.insn_len(i.len() as u8);
    l.exists(i) && l.families(i).is_some()
}

/// Code from `rip` to `next` comes to `stop`, which does not count where the code starts.
fn reaches(rip: u64, next: u64, stop: u64) -> bool {
    let distance = stop.wrapping_sub(rip);
    distance != 0 && distance <= next.wrapping_sub(rip)
}

/// How iced-x86 is set up everywhere in the engine.
pub fn decoder_options() -> u32 {
    DecoderOptions::NONE
}

impl Lifter<'_> {
    /// Lifts one instruction.
    fn insn(&mut self, i: &Instruction) -> Flow {
        if std::mem::take(&mut self.shadow) {
            // Interrupts are looked for between blocks only, so the shadow has done its work already.
            let none = self.b.iconst(0);
            self.b.set_state(Ty::I32, std::mem::offset_of!(CpuState, shadow), none);
        }
        if !self.exists(i) {
            return self.undefined();
        }
        self.families(i).unwrap_or_else(|| {
            tracing::debug!(target: "unimp", "instruction {:?} at {:#x} raises #UD", i.code(), self.page.wrapping_add(self.rip));
            self.undefined()
        })
    }

    /// The processor model has the instruction. Real and virtual-8086 mode have none with a VEX prefix (SDM 2A, 2.3.1).
    fn exists(&self, i: &Instruction) -> bool {
        let protected = self.has(mode::PE) && !self.has(mode::VM86);
        i.code() != Code::INVALID
            && (self.model.supports(i) || mov::is_hint(i))
            && (protected || i.code().encoding() == EncodingKind::Legacy)
    }

    /// Lifts one instruction, if a family has it.
    fn families(&mut self, i: &Instruction) -> Option<Flow> {
        integer::lift(self, i)
            .or_else(|| control::lift(self, i))
            .or_else(|| string::lift(self, i))
            .or_else(|| vector::lift(self, i))
            .or_else(|| x87::lift(self, i))
            .or_else(|| system::lift(self, i))
    }

    /// #UD.
    pub fn undefined(&mut self) -> Flow {
        self.b.raise(vec_no::UD);
        Flow::End
    }

    /// #GP(0).
    pub fn general_protection(&mut self) -> Flow {
        self.b.raise_code(vec_no::GP, 0);
        Flow::End
    }
}
