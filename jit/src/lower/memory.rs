//! Guest memory: the TLB check and the access behind it.

use super::alu::clif_ty;
use super::share::Checked;
use super::{Lower, Thunk};
use crate::ir::op::RmwOp;
use crate::ir::{Block, Inst, Op, Ty, mem};
use crate::mmu::span::Span;
use crate::mmu::tlb::{self, Tlb, TlbEntry};
use crate::state::CpuState;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AtomicRmwOp, InstBuilder, InstructionData, Opcode, TrapCode, Value, ValueDef};
use std::mem::offset_of;

/// What an access needs of the TLB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    Write,
    /// Write permission, naturally aligned (atomics).
    Atomic,
    /// Read, 16-byte aligned.
    ReadAligned,
    /// Write, 16-byte aligned.
    WriteAligned,
}

impl Need {
    pub(super) fn write(self) -> bool {
        matches!(self, Self::Write | Self::Atomic | Self::WriteAligned)
    }

    pub(super) fn aligned(self) -> bool {
        matches!(self, Self::Atomic | Self::ReadAligned | Self::WriteAligned)
    }
}

/// Where guest memory is on the host.
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub base: Value,
    pub offset: i32,
}

impl Lower<'_, '_> {
    /// `a` plus a constant.
    fn plus(&mut self, a: Value, n: i64) -> Value {
        if n == 0 {
            return a;
        }
        let n = self.iconst(n);
        self.b.ins().iadd(a, n)
    }

    /// Host address of `bytes` bytes at `base` plus `offset`. On a TLB miss, or for an access that crosses the page, is not
    /// aligned as needed or goes to a device, a branch is taken which leads to a miss stub.
    pub(super) fn host(&mut self, base: Value, offset: i64, bytes: u64, need: Need) -> Host {
        if let Some(host) = self.share(base, offset, bytes, need) {
            self.b.ins().sequence_point();
            return host;
        }
        self.settle();
        self.b.ins().sequence_point();
        let (root, known) = self.root(base);
        let span = Span::of(known.wrapping_add(offset), bytes as i64, need.write(), need.aligned());
        if self.folded(base, 8).is_some() || i32::try_from(span.first).is_err() {
            let linear = self.plus(base, offset);
            let last = self.plus(linear, span.last - span.first);
            let addend = self.check(linear, last, bytes, need);
            return Host { base: self.b.ins().iadd(linear, addend), offset: 0 };
        }
        // Constants of their own: the check may be widened.
        let (first, last) = (self.iconst(span.first), self.iconst(span.last));
        let (linear, end) = (self.b.ins().iadd(root, first), self.b.ins().iadd(root, last));
        let addend = self.check(linear, end, bytes, need);
        let base = self.b.ins().iadd(root, addend);
        if need != Need::Atomic {
            let fixed = self.region.narrow >> self.current & 1 != 0;
            self.checks.add(Checked { root, base, span, first, last, fixed });
        }
        Host { base, offset: span.first as i32 }
    }

    /// The TLB check of what lies from `linear` to `last`; what to add to get host addresses.
    fn check(&mut self, linear: Value, last: Value, bytes: u64, need: Need) -> Value {
        let mask = if need.aligned() { !0xfffu64 | (bytes - 1) } else { !0xfff };
        let m = self.iconst(mask as i64);
        let mut page = self.b.ins().band(last, m);
        if self.wide_constant(linear) {
            // Else the page would be a constant in memory, compared with a tag in a register: not a check that a miss
            // stub can repeat.
            let zero = self.b.ins().load(I64, self.state_mem, self.env, offset_of!(CpuState, zero) as i32);
            page = self.b.ins().bor(page, zero);
        }
        let shift = self.iconst(12 - size_of::<TlbEntry>().trailing_zeros() as i64);
        let index = self.b.ins().ushr(linear, shift);
        let slots = self.iconst(((tlb::entries(self.mmu) - 1) * size_of::<TlbEntry>()) as i64);
        let index = self.b.ins().band(index, slots);
        let entry = self.b.ins().iadd(self.env, index);
        let table = (offset_of!(CpuState, tlb) + Tlb::table_offset(self.mmu)) as i32;
        let write = need.write();
        let tag_offset = if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
        let tag = self.b.ins().load(I64, self.tlb_mem, entry, table + tag_offset as i32);
        let miss = self.b.ins().icmp(IntCC::NotEqual, page, tag);
        let code = 1 + (write as u8 | (self.mmu as u8) << 1);
        self.b.ins().trapnz(miss, TrapCode::unwrap_user(code));
        let addend_offset = table + offset_of!(TlbEntry, addend) as i32;
        self.b.ins().load(I64, self.tlb_mem, entry, addend_offset)
    }

    /// Something that the optimiser will fold to a constant which is no sign-extended 32-bit immediate.
    fn wide_constant(&self, v: Value) -> bool {
        self.folded(v, 8).is_some_and(|c| i32::try_from(c).is_err())
    }

    /// The constant that a value of 64 bits will be folded to, looking at most `depth` operations back.
    pub(super) fn folded(&self, v: Value, depth: u32) -> Option<i64> {
        let dfg = &self.b.func.dfg;
        let ValueDef::Result(inst, _) = dfg.value_def(v) else { return None };
        match dfg.insts[inst] {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
            InstructionData::Binary { opcode, args: [a, b] } if depth > 0 => {
                let (a, b) = (self.folded(a, depth - 1)?, self.folded(b, depth - 1)?);
                // What matters is that it is a constant; an operation not named here only makes the value a guess.
                Some(match opcode {
                    Opcode::Isub => a.wrapping_sub(b),
                    Opcode::Band => a & b,
                    Opcode::Bor => a | b,
                    _ => a.wrapping_add(b),
                })
            }
            _ => None,
        }
    }

    pub(super) fn memory_op(&mut self, i: &Inst) {
        let bytes = i.ty.bytes() as u64;
        // The atomics' constant is no displacement.
        let offset = if matches!(i.op, Op::Rmw | Op::Cas) { 0 } else { i.imm };
        let base = self.int(i.a);
        match i.op {
            Op::Load => {
                let need = if i.c & mem::WRITE_INTENT != 0 { Need::Write } else { Need::Read };
                let host = self.host(base, offset, bytes, need);
                let v = self.load_int(i.ty, host);
                self.set(i.d, v);
            }
            Op::Store => {
                let host = self.host(base, offset, bytes, Need::Write);
                let v = self.int(i.b);
                let v = self.narrow(i.ty, v);
                self.b.ins().store(self.guest_mem, v, host.base, host.offset);
            }
            Op::Rmw => {
                let host = self.host(base, offset, bytes, Need::Atomic);
                let v = self.int(i.b);
                let v = self.narrow(i.ty, v);
                let op = match RmwOp::from_imm(i.imm) {
                    RmwOp::Add => AtomicRmwOp::Add,
                    RmwOp::Sub => AtomicRmwOp::Sub,
                    RmwOp::And => AtomicRmwOp::And,
                    RmwOp::Or => AtomicRmwOp::Or,
                    RmwOp::Xor => AtomicRmwOp::Xor,
                    RmwOp::Xchg => AtomicRmwOp::Xchg,
                };
                let host = self.address(host);
                let old = self.b.ins().atomic_rmw(clif_ty(i.ty), self.guest_mem, op, host, v);
                let old = self.widen(i.ty, old);
                self.set(i.d, old);
            }
            _ => {
                let host = self.host(base, offset, bytes, Need::Atomic);
                let (expected, new) = (self.int(i.b), self.int(i.c));
                let (expected, new) = (self.narrow(i.ty, expected), self.narrow(i.ty, new));
                let host = self.address(host);
                let old = self.b.ins().atomic_cas(self.guest_mem, host, expected, new);
                let old = self.widen(i.ty, old);
                self.set(i.d, old);
            }
        }
    }

    /// A host address in one value.
    pub(super) fn address(&mut self, host: Host) -> Value {
        self.plus(host.base, host.offset.into())
    }

    pub(super) fn load_int(&mut self, ty: Ty, Host { base, offset }: Host) -> Value {
        let m = self.guest_mem;
        match ty {
            Ty::I8 => self.b.ins().uload8(I64, m, base, offset),
            Ty::I16 => self.b.ins().uload16(I64, m, base, offset),
            Ty::I32 => self.b.ins().uload32(m, base, offset),
            Ty::I64 => self.b.ins().load(I64, m, base, offset),
        }
    }

    pub(super) fn seg_addr(&mut self, block: &Block, i: &Inst) {
        let rip = self.rip_of(block, i);
        self.set_rip(rip);
        let (imm, offset) = (self.iconst(i.imm), self.int(i.a));
        let failed = self.call(Thunk::SegAddr, &[self.env, imm, offset]).expect("thunk has a result");
        self.exit_fault_if(failed);
        let m = self.state_mem;
        let v = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, helper_result) as i32);
        self.set(i.d, v);
    }
}
