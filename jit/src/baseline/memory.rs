//! Guest memory: the TLB check and the access behind it.

use super::asm::{Alu, Mem, RAX, RCX, RDI, RDX, Reg, Shift, Unary, cc};
use super::regs::BASES;
use super::share::Share;
use super::{Cold, Emit};
use crate::ir::op::RmwOp;
use crate::ir::{Inst, Op, Ty, mem};
use crate::mmu::span::Span;
use crate::mmu::tlb::{self, Tlb, TlbEntry};
use crate::passes::flag_notes::Note;
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

/// A checked access.
#[derive(Clone, Copy)]
pub(super) struct Access {
    base: Reg,
    /// What it covers, from the base, within 2 GiB.
    span: Span,
    /// RIP of its instruction.
    rip: u64,
    /// What a miss is told of the flags.
    note: Note,
}

/// The first access of a group, as emitted.
#[derive(Clone, Copy)]
pub(super) struct Lead {
    /// The branch that is taken on a miss.
    from: usize,
    /// Where to compare again.
    again: usize,
    /// What the group covers.
    together: Access,
    /// Where the addend is kept.
    addend: Reg,
    /// What the access itself covers.
    alone: Access,
    /// Vector registers hold something.
    vectors: bool,
    /// Where the code goes on with the addend in RCX.
    back: usize,
}

impl Emit<'_> {
    /// The operand in host memory of `bytes` bytes at linear address a + imm. Goes through RCX; RDX and RAX change.
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
        let alone = Access {
            base,
            span: Span::of(disp.into(), bytes.into(), need.write, need.aligned),
            rip: self.rip,
            note: self.note,
        };
        let vectors = self.vectors.any();
        // RAX does not last until the code beside.
        let share = self.plan.share(self.at).filter(|_| base != RAX);
        let place = share.map_or(0, |s| s.group.place);
        if let Some(s) = share
            && self.shared[place] == Some(s.number)
            && let Some(addend) = self.regs.find(BASES + place)
        {
            self.a.mov(RCX, addend);
            self.a.test(Ty::I64, RCX, RCX);
            let from = self.a.jcc(cc::E);
            self.cold.push(Cold::Alone { from, access: alone, vectors, back: self.a.here() });
        } else if let Some(Share { group, number, distance, .. }) = share.filter(|s| !s.is_last) {
            let shift = i64::from(disp) - distance.wrapping_add(imm);
            let (first, last) = (group.span.first.wrapping_add(shift), group.span.last.wrapping_add(shift));
            let together = Access { span: Span { first, last, ..group.span }, ..alone };
            let addend = self.scratch();
            let (from, again) = self.check(together);
            self.load_addend(RCX);
            self.a.mov(addend, RCX);
            let lead = Lead { from, again, together, addend, alone, vectors, back: self.a.here() };
            self.cold.push(Cold::Lead(lead));
            self.regs.bind(BASES + place, addend, false);
            self.shared[place] = Some(number);
        } else {
            self.check_alone(alone, vectors);
            self.load_addend(RCX);
        }
        Mem::indexed(base, RCX, disp)
    }

    /// The TLB check of an access; the offset of its entry is in RCX then. The branch that is taken on a miss, and where to
    /// compare again.
    fn check(&mut self, Access { base, span, .. }: Access) -> (usize, usize) {
        self.copy_address(Ty::I64, RDX, base, span.last as i32);
        let inside = if span.aligned { span.bytes as i32 - 1 } else { 0 };
        self.a.alu_imm(Alu::And, Ty::I64, RDX, -4096 | inside);
        self.copy_address(Ty::I32, RCX, base, span.first as i32);
        self.a.shift_imm(Shift::Shr, Ty::I32, RCX, 12 - size_of::<TlbEntry>().trailing_zeros() as u8);
        self.a.alu_imm(Alu::And, Ty::I32, RCX, ((tlb::entries(self.mmu) - 1) * size_of::<TlbEntry>()) as i32);
        let tag = if span.write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
        let again = self.a.here();
        let m = self.entry_field(tag);
        self.a.alu(Alu::Cmp, Ty::I64, RDX, m);
        (self.a.jcc(cc::NE), again)
    }

    /// The check of a single access.
    fn check_alone(&mut self, access: Access, vectors: bool) {
        let (from, again) = self.check(access);
        self.cold.push(Cold::Miss { from, again, kind: self.kind(access), rip: access.rip, vectors });
    }

    /// What the routines for misses are told.
    fn kind(&self, access: Access) -> u32 {
        access.note.with_kind(access.span.write as u32 | (self.mmu as u32) << 1)
    }

    /// Beside the code: an access whose group crosses a page.
    pub(super) fn alone(&mut self, from: usize, access: Access, vectors: bool, back: usize) {
        self.a.land(from);
        self.check_alone(access, vectors);
        self.load_addend(RCX);
        let to = self.a.jmp();
        self.a.aim(to, back);
    }

    /// Beside the code: the check of a group failed, whose last page is in RDX. If it crosses a page, each access is checked
    /// alone, which those that follow see by an addend of 0, what no memory has; else it is a miss as any.
    pub(super) fn lead(&mut self, lead: &Lead) {
        let Lead { from, again, together, addend, alone, vectors, back } = *lead;
        self.a.land(from);
        self.copy_address(Ty::I64, RAX, together.base, together.span.first as i32);
        self.a.alu(Alu::Xor, Ty::I64, RAX, RDX);
        self.a.alu_imm(Alu::Cmp, Ty::I64, RAX, 4096);
        let miss = self.a.jcc(cc::B);
        self.cold.push(Cold::Miss { from: miss, again, kind: self.kind(together), rip: together.rip, vectors });
        self.check_alone(alone, vectors);
        self.load_addend(RCX);
        self.a.mov_imm(addend, 0);
        let to = self.a.jmp();
        self.a.aim(to, back);
    }

    /// Loads what is added to get host addresses, after [`Emit::check`].
    fn load_addend(&mut self, to: Reg) {
        let m = self.entry_field(offset_of!(TlbEntry, addend));
        self.a.load(Ty::I64, to, m);
    }

    /// A field of the TLB entry with its offset in RCX.
    fn entry_field(&self, field: usize) -> Mem {
        let table = (offset_of!(CpuState, tlb) + Tlb::table_offset(self.mmu)) as i32;
        Mem::indexed(RDI, RCX, table + field as i32)
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
