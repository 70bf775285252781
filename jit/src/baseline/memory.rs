//! Guest memory: the TLB check and the access behind it.

use super::asm::{Alu, Mem, RAX, RBX, RCX, RDX, Reg, Shift, Unary, cc};
use super::{BIAS, Cold, Emit};
use crate::ir::op::RmwOp;
use crate::ir::{Inst, Op, Ty, mem};
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
    /// The operand in host memory of `bytes` bytes at linear address a + imm. Goes through RCX; RDX and RAX change.
    pub(super) fn host(&mut self, i: &Inst, bytes: i32, need: Need) -> Mem {
        // The constant of atomics is none of the address.
        let imm = if matches!(i.op, Op::Rmw | Op::Cas) { 0 } else { i.imm };
        let mut base = self.int(i.a);
        let mut disp = 0;
        match i32::try_from(imm) {
            Ok(d) if d < i32::MAX - 32 => disp = d,
            _ => {
                self.a.mov_imm(RAX, imm as u64);
                self.a.alu(Alu::Add, Ty::I64, RAX, base);
                base = RAX;
            }
        }
        let last = if need.aligned { 0 } else { bytes - 1 };
        self.copy_address(Ty::I64, RDX, base, disp + last);
        let inside = if need.aligned { bytes - 1 } else { 0 };
        self.a.alu_imm(Alu::And, Ty::I64, RDX, -4096 | inside);
        self.copy_address(Ty::I32, RCX, base, disp);
        self.a.shift_imm(Shift::Shr, Ty::I32, RCX, 12 - size_of::<TlbEntry>().trailing_zeros() as u8);
        self.a.alu_imm(Alu::And, Ty::I32, RCX, ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as i32);
        let table = (offset_of!(CpuState, tlb) + Tlb::table_offset(self.mmu)) as i32 - BIAS;
        let tag = if need.write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
        let again = self.a.here();
        self.a.alu(Alu::Cmp, Ty::I64, RDX, Mem::indexed(RBX, RCX, table + tag as i32));
        let from = self.a.jcc(cc::NE);
        let kind = need.write as u8 | (self.mmu as u8) << 1;
        self.cold.push(Cold::Miss { from, again, kind, rip: self.rip, vectors: self.vectors.any() });
        self.a.load(Ty::I64, RCX, Mem::indexed(RBX, RCX, table + offset_of!(TlbEntry, addend) as i32));
        Mem::indexed(base, RCX, disp)
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
