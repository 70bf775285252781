//! Guest memory: the TLB check and the access behind it.

use super::asm::{Alu, Mem, RAX, RBX, RCX, RDX, Reg, Shift, Unary, cc};
use super::regs::BASES;
use super::share::Share;
use super::{BIAS, Cold, Emit};
use crate::ir::op::RmwOp;
use crate::ir::{Inst, Op, Ty, mem};
use crate::mmu::span::Span;
use crate::mmu::tlb::{TLB_ENTRIES, Tlb, TlbEntry};
use crate::state::CpuState;
use std::mem::offset_of;

/// What an access needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Write permission.
    pub write: bool,
    /// Natural alignment.
    pub aligned: bool,
}

impl Emit<'_> {
    /// The operand in host memory of `bytes` bytes at linear address a + imm. Goes through RCX or a register that is kept for
    /// it; RDX, RCX and RAX change.
    pub(super) fn host(&mut self, i: &Inst, bytes: i32, need: Need) -> Mem {
        // The constant of atomics is none of the address.
        let imm = if matches!(i.op, Op::Rmw | Op::Cas) { 0 } else { i.imm };
        let mut base = self.int(i.a);
        let mut disp = 0;
        match i32::try_from(imm) {
            Ok(d) if d.unsigned_abs() < i32::MAX as u32 - 1024 => disp = d,
            _ => {
                self.a.mov_imm(RAX, imm as u64);
                self.a.alu(Alu::Add, Ty::I64, RAX, base);
                base = RAX;
            }
        }
        let share = self.plan.share(self.at);
        let place = share.map_or(0, |s| s.group.place);
        if let Some(s) = share
            && self.shared[place] == Some(s.number)
            && let Some(addend) = self.regs.find(BASES + place)
        {
            return Mem::indexed(base, addend, disp);
        }
        let Some(Share { group, number, distance, .. }) = share.filter(|s| !s.is_last) else {
            self.check(base, Span::of(disp.into(), bytes.into(), need.write, need.aligned));
            self.load_addend(RCX);
            return Mem::indexed(base, RCX, disp);
        };
        let shift = i64::from(disp) - distance.wrapping_add(imm);
        let (first, last) = (group.span.first.wrapping_add(shift), group.span.last.wrapping_add(shift));
        self.check(base, Span { first, last, ..group.span });
        let addend = self.scratch();
        self.load_addend(addend);
        self.regs.bind(BASES + place, addend, false);
        self.shared[place] = Some(number);
        Mem::indexed(base, addend, disp)
    }

    /// The TLB check of what lies behind `base`, within 2 GiB; the offset of its entry is in RCX then.
    fn check(&mut self, base: Reg, span: Span) {
        self.copy_address(Ty::I64, RDX, base, span.last as i32);
        let inside = if span.aligned { span.bytes as i32 - 1 } else { 0 };
        self.a.alu_imm(Alu::And, Ty::I64, RDX, -4096 | inside);
        self.copy_address(Ty::I32, RCX, base, span.first as i32);
        self.a.shift_imm(Shift::Shr, Ty::I32, RCX, 12 - size_of::<TlbEntry>().trailing_zeros() as u8);
        self.a.alu_imm(Alu::And, Ty::I32, RCX, ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as i32);
        let tag = if span.write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
        let again = self.a.here();
        let m = self.entry_field(tag);
        self.a.alu(Alu::Cmp, Ty::I64, RDX, m);
        let from = self.a.jcc(cc::NE);
        let kind = span.write as u8 | (self.mmu as u8) << 1;
        self.cold.push(Cold::Miss { from, again, kind, rip: self.rip, vectors: self.vectors.any() });
    }

    /// Loads what is added to get host addresses, after [`Emit::check`].
    fn load_addend(&mut self, to: Reg) {
        let m = self.entry_field(offset_of!(TlbEntry, addend));
        self.a.load(Ty::I64, to, m);
    }

    /// A field of the TLB entry with its offset in RCX.
    fn entry_field(&self, field: usize) -> Mem {
        let table = (offset_of!(CpuState, tlb) + Tlb::table_offset(self.mmu)) as i32 - BIAS;
        Mem::indexed(RBX, RCX, table + field as i32)
    }

    /// `to` = base + disp.
    fn copy_address(&mut self, ty: Ty, to: Reg, base: Reg, disp: i32) {
        if disp == 0 {
            self.a.mov_part(ty, to, base);
        } else {
            self.a.lea(ty, to, Mem::at(base, disp));
        }
    }

    pub(super) fn memory_op(&mut self, i: &Inst) {
        let bytes = i.ty.bytes() as i32;
        match i.op {
            Op::Load => {
                let m = self.host(i, bytes, Need { write: i.c & mem::WRITE_INTENT != 0, aligned: false });
                let r = self.scratch();
                self.a.load(i.ty, r, m);
                self.set(i.d, r);
            }
            Op::Store => {
                let v = self.int(i.b);
                let m = self.host(i, bytes, Need { write: true, aligned: false });
                self.a.store(i.ty, m, v);
            }
            Op::Rmw => self.rmw(i, bytes),
            _ => self.cas(i, bytes),
        }
    }

    fn rmw(&mut self, i: &Inst, bytes: i32) {
        let v = self.int(i.b);
        let m = self.host(i, bytes, Need { write: true, aligned: true });
        let r = self.scratch();
        let op = match RmwOp::from_imm(i.imm) {
            RmwOp::Xchg => {
                self.a.mov(r, v);
                self.a.xchg(i.ty, m, r);
                None
            }
            op @ (RmwOp::Add | RmwOp::Sub) => {
                self.a.mov(r, v);
                if op == RmwOp::Sub {
                    self.a.unary(Unary::Neg, Ty::I64, r);
                }
                self.a.lock();
                self.a.xadd(i.ty, m, r);
                None
            }
            RmwOp::And => Some(Alu::And),
            RmwOp::Or => Some(Alu::Or),
            RmwOp::Xor => Some(Alu::Xor),
        };
        if let Some(op) = op {
            self.a.load(i.ty, RAX, m);
            let again = self.a.here();
            self.a.mov(RDX, RAX);
            self.a.alu(op, i.ty, RDX, v);
            self.a.lock();
            self.a.cmpxchg(i.ty, m, RDX);
            let retry = self.a.jcc(cc::NE);
            self.a.aim(retry, again);
            self.a.mov(r, RAX);
        }
        self.a.zext(i.ty, r, r);
        self.set(i.d, r);
    }

    fn cas(&mut self, i: &Inst, bytes: i32) {
        let (expected, new) = (self.int(i.b), self.int(i.c));
        let m = self.host(i, bytes, Need { write: true, aligned: true });
        let r = self.scratch();
        self.a.mov(RAX, expected);
        self.a.lock();
        self.a.cmpxchg(i.ty, m, new);
        self.a.zext(i.ty, r, RAX);
        self.set(i.d, r);
    }
}
