//! The way in, and the ways out: to code on the same page, through the jump cache, to the dispatcher.

use super::asm::{Alu, Mem, RAX, RCX, RDX, Shift, cc};
use super::{Cold, Emit, Exit, Link, Target, state};
use crate::counter::Counter;
use crate::ir::{Inst, Ty, Val};
use crate::lower::Thunk;
use crate::mmu::ram::PAGE_SIZE;
use crate::runtime::exec::{LEAVE_ENTRY, LEAVE_FAULT, LEAVE_HOT, LEAVE_LOOKUP};
use crate::state::{CpuState, JUMP_ENTRIES, JumpEntry, jump_slot, mode};
use std::mem::offset_of;

pub(super) use crate::runtime::exec::{LEAVE_FAULT as FAULT, LEAVE_LOOKUP as LOOKUP};

impl Emit<'_> {
    /// Request and heat. Offset of the way in for forward links.
    pub(super) fn entry(&mut self, heat: Option<usize>) -> u32 {
        let rip = self.block.rip;
        self.a.load(Ty::I64, RAX, state(offset_of!(CpuState, requests)));
        self.a.alu_imm(Alu::Cmp, Ty::I32, Mem::at(RAX, 0), 0);
        let from = self.a.jcc(cc::NE);
        self.cold.push(Cold::Leave { from, rip, code: LEAVE_ENTRY });
        let forward_entry = self.a.here() as u32;
        if self.is_counted() {
            self.admit(rip);
        }
        if let Some(heat) = heat {
            self.a.alu_imm(Alu::Sub, Ty::I32, state(offset_of!(CpuState, heat) + 4 * heat), 1);
            let from = self.a.jcc(cc::S);
            self.cold.push(Cold::Leave { from, rip, code: LEAVE_HOT });
        }
        forward_entry
    }

    /// Leaves with `rip`, that of the next instruction, if translated code was dropped meanwhile (it may be this code).
    pub(super) fn leave_if_stale(&mut self, rip: u64) {
        self.flags_clobbered();
        self.a.alu_imm(Alu::Cmp, Ty::I32, state(offset_of!(CpuState, code_stale)), 0);
        let from = self.a.jcc(cc::NE);
        self.cold.push(Cold::Stale { from, rip });
    }

    pub(super) fn is_counted(&self) -> bool {
        self.block.mode & mode::COUNTED != 0
    }

    /// Leaves before the block, which begins at `rip`, unless all of it fits below the limit of counted execution.
    fn admit(&mut self, rip: u64) {
        self.a.load(Ty::I64, RAX, state(offset_of!(CpuState, counter)));
        self.a.load(Ty::I64, RCX, Mem::at(RAX, offset_of!(Counter, count) as i32));
        self.a.alu_imm(Alu::Add, Ty::I64, RCX, self.block.count.into());
        self.a.alu(Alu::Cmp, Ty::I64, RCX, Mem::at(RAX, offset_of!(Counter, limit) as i32));
        let from = self.a.jcc(cc::A);
        self.cold.push(Cold::Leave { from, rip, code: LEAVE_LOOKUP });
    }

    /// Counts `n` instructions and as many as integer `more` says, if there is one; keeps the host's flags.
    pub(super) fn count_done(&mut self, n: i32, more: u16) {
        let sum = match more {
            v if v == Val::NONE.0 => Mem::at(RCX, n),
            v => Mem::indexed(RCX, self.int(v), n),
        };
        let count = Mem::at(RAX, offset_of!(Counter, count) as i32);
        self.a.load(Ty::I64, RAX, state(offset_of!(CpuState, counter)));
        self.a.load(Ty::I64, RCX, count);
        self.a.lea(Ty::I64, RCX, sum);
        self.a.store(Ty::I64, count, RCX);
    }

    /// Leaves; RIP is in the state.
    pub(super) fn leave_with(&mut self, code: u32) {
        self.a.mov_imm(RAX, code as u64);
        self.a.leave();
        self.a.ret();
    }

    /// Goes to a known RIP.
    pub(super) fn jump_to(&mut self, rip: u64) {
        // On the same page the physical target is known: the mapping of the page is the one this code runs under.
        if (self.block.rip ^ rip) & !(PAGE_SIZE - 1) == 0 {
            // Calls look for requests where they lead, so that who samples the guest finds functions. In counted execution what a block raised is noticed at its end, whoever runs it.
            let forward = rip > self.block.rip && !self.block.ends_with_call() && !self.is_counted();
            self.links.push(Link { site: self.a.here() as u32, rip, forward });
            // Set when the code is placed.
            self.a.jmp();
            return;
        }
        self.rip_to_rax(rip);
        if self.block.mode & mode::FLAT == 0 {
            return self.leave_for_rax();
        }
        if self.block.is_relative() {
            return self.jump_to_rax(None);
        }
        let entry = jump_slot(rip) * size_of::<JumpEntry>();
        self.a.load(Ty::I64, RCX, state(offset_of!(CpuState, jump_cache)));
        self.through_cache(|part| Mem::at(RCX, (entry + part) as i32), None);
    }

    pub(super) fn jump_indirect(&mut self, i: &Inst) {
        let target = self.int(i.a);
        // Addresses of 32 bits outside 64-bit mode.
        let ty = if self.block.mode & mode::CS64 != 0 { Ty::I64 } else { Ty::I32 };
        self.a.zext(ty, RAX, target);
        if self.block.mode & mode::FLAT == 0 {
            return self.leave_for_rax();
        }
        let from = (self.block.mode & mode::CS64 != 0).then_some(self.rip);
        self.jump_to_rax(from);
    }

    /// Leaves for the RIP in RAX.
    fn leave_for_rax(&mut self) {
        self.a.store(Ty::I64, state(offset_of!(CpuState, rip)), RAX);
        self.leave_with(LEAVE_LOOKUP);
    }

    /// Goes to the RIP in RAX, that of relative code or from the indirect branch at `from`.
    fn jump_to_rax(&mut self, from: Option<u64>) {
        self.a.mov(RCX, RAX);
        self.a.shift_imm(Shift::Shr, Ty::I64, RCX, 12);
        self.a.alu(Alu::Xor, Ty::I32, RCX, RAX);
        self.a.alu_imm(Alu::And, Ty::I32, RCX, JUMP_ENTRIES as i32 - 1);
        self.a.shift_imm(Shift::Shl, Ty::I32, RCX, size_of::<JumpEntry>().trailing_zeros() as u8);
        self.a.alu(Alu::Add, Ty::I64, RCX, state(offset_of!(CpuState, jump_cache)));
        self.through_cache(|part| Mem::at(RCX, part as i32), from);
    }

    /// Goes to the RIP in RAX through an entry of the jump cache, or has it sought and tells that the branch is `from`.
    fn through_cache(&mut self, entry: impl Fn(usize) -> Mem, from: Option<u64>) {
        self.a.alu(Alu::Cmp, Ty::I64, RAX, entry(offset_of!(JumpEntry, rip)));
        let other = self.a.jcc(cc::NE);
        self.a.load(Ty::I64, RDX, state(offset_of!(CpuState, jump_check)));
        self.a.alu(Alu::Cmp, Ty::I64, RDX, entry(offset_of!(JumpEntry, check)));
        let old = self.a.jcc(cc::NE);
        // What is there may be relative: after relative code, and after a change of privilege, which indirect jumps end with.
        if from.is_some() || self.block.is_relative() {
            self.a.alu_imm(Alu::And, Ty::I64, RAX, -(PAGE_SIZE as i32));
            self.a.store(Ty::I64, state(offset_of!(CpuState, code_base)), RAX);
        }
        self.a.jmp_mem(entry(offset_of!(JumpEntry, code)));
        self.cold.push(Cold::Unknown { from: [other, old], branch: from });
    }

    /// Branches on an integer.
    pub(super) fn branch_if_set(&mut self, i: &Inst) {
        let c = self.int(i.a);
        self.a.test(Ty::I64, c, c);
        self.branch(cc::NE, i);
    }

    /// Ends the block: to `i.imm` if the host's condition holds, else on.
    pub(super) fn branch(&mut self, cond: u8, i: &Inst) {
        let taken = self.a.jcc(cond);
        self.jump_to(self.block.end_rip());
        self.a.land(taken);
        self.jump_to(i.imm as u64);
    }

    /// Leaves the trace on an integer.
    pub(super) fn exit_if_set(&mut self, i: &Inst) {
        let c = self.int(i.a);
        self.a.test(Ty::I64, c, c);
        self.exit_if(cc::NE, i);
    }

    /// Leaves the trace for `i.imm` if the host's condition holds, or if it does not where the exit says so; keeps the host's
    /// flags.
    pub(super) fn exit_if(&mut self, cond: u8, i: &Inst) {
        let from = self.a.jcc(cond ^ (i.c & 1) as u8);
        self.exits.push(Exit { from, rip: i.imm as u64, note: self.note });
    }

    /// The ways out at the exits of a trace. Guest registers are in the state there, and the flags but for what is noted.
    pub(super) fn side_exits(&mut self) {
        let mut exits = std::mem::take(&mut self.exits);
        for exit in exits.drain(..) {
            self.a.land(exit.from);
            self.carry_out(exit.note);
            self.jump_to(exit.rip);
        }
        self.exits = exits;
    }

    /// What stands behind the block.
    pub(super) fn cold(&mut self) {
        // Some of it puts more there.
        while let Some(c) = self.cold.pop() {
            match c {
                Cold::Miss { from, again, kind, rip, vectors } => {
                    let routine = if vectors { Target::MissVectors } else { Target::Miss };
                    self.miss(from, again, kind, rip, routine);
                }
                Cold::Alone { from, access, vectors, back } => self.alone(from, access, vectors, back),
                Cold::Lead(lead) => self.lead(&lead),
                Cold::Fault { from } => {
                    self.a.land(from);
                    self.leave_with(LEAVE_FAULT);
                }
                Cold::Unknown { from, branch } => {
                    from.into_iter().for_each(|from| self.a.land(from));
                    self.a.store(Ty::I64, state(offset_of!(CpuState, rip)), RAX);
                    if let Some(branch) = branch {
                        self.store_rip(offset_of!(CpuState, branch_rip), branch);
                    }
                    let at = self.a.jmp();
                    self.fixup(at, Target::Thunk(Thunk::ExitSeek));
                }
                Cold::Stale { from, rip } => {
                    self.a.land(from);
                    if self.is_counted() {
                        self.count_done(1, Val::NONE.0);
                    }
                    self.set_rip(rip);
                    self.leave_with(LEAVE_LOOKUP);
                }
                Cold::Leave { from, rip, code } => {
                    self.a.land(from);
                    self.set_rip(rip);
                    self.leave_with(code);
                }
                Cold::Helper { from, back, call, rip } => {
                    self.a.land(from);
                    self.slow_helper(&call, rip);
                    let to = self.a.jmp();
                    self.a.aim(to, back);
                }
                Cold::LendX87 { from, back, rip } => {
                    self.a.land(from);
                    self.load_x87(rip);
                    let to = self.a.jmp();
                    self.a.aim(to, back);
                }
            }
        }
    }

    /// Fills the TLB and compares again; if there is nothing to fill, abandons the frame. The routine finds the RIP
    /// behind the jump that follows its call.
    fn miss(&mut self, from: usize, again: usize, kind: u32, rip: u64, routine: Target) {
        self.a.land(from);
        self.a.push_imm(kind as i32);
        let at = self.a.call();
        self.fixup(at, routine);
        let to = self.a.jmp();
        self.a.aim(to, again);
        self.a.code.extend_from_slice(&self.block.written(rip).to_le_bytes());
    }
}
