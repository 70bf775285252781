//! Operands: registers, immediates, memory with segmentation, the stack.

use super::Lifter;
use crate::helpers::integer as helper;
use crate::ir::build::Src;
use crate::ir::op::Op;
use crate::ir::{Ty, VVal, Val, mem};
use crate::state::{CpuState, Segment, mode, reg};
use iced_x86::{Instruction, OpKind, Register};
use std::mem::offset_of;

/// A memory operand, ready for loads and stores: linear address `addr + disp`.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    /// Address value.
    pub addr: Val,
    /// Constant part.
    pub disp: i64,
    /// Flags of the access ([`mem`]).
    pub flags: u16,
}

/// Number of a general register (0..=15) and its width; AH..BH give 0..=3 with `high` set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpr {
    /// Register number.
    pub n: usize,
    /// Width.
    pub ty: Ty,
    /// Bits 15:8 (AH, CH, DH, BH).
    pub high: bool,
}

/// The general register behind iced's name; `None` for other registers.
pub fn gpr(r: Register) -> Option<Gpr> {
    if !r.is_gpr() {
        return None;
    }
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    let n = r.full_register().number();
    Some(Gpr { n, ty: Ty::from_bytes(r.size()), high })
}

/// Number of a segment register in `CpuState::segs`.
pub fn segment_number(r: Register) -> usize {
    match r {
        Register::ES => reg::ES,
        Register::CS => reg::CS,
        Register::SS => reg::SS,
        Register::FS => reg::FS,
        Register::GS => reg::GS,
        _ => reg::DS,
    }
}

/// [`mem`] flags of accesses through a segment.
pub fn segment_flags(seg: usize) -> u16 {
    if seg == reg::SS { mem::STACK } else { 0 }
}

/// Offset of a segment's base in the state.
pub fn seg_base_offset(seg: usize) -> usize {
    offset_of!(CpuState, segs) + seg * size_of::<Segment>() + offset_of!(Segment, base)
}

/// Offset of a segment's selector in the state.
pub fn seg_selector_offset(seg: usize) -> usize {
    offset_of!(CpuState, segs) + seg * size_of::<Segment>() + offset_of!(Segment, selector)
}

/// Vector register number of XMMn, YMMn, ZMMn.
pub fn vreg(r: Register) -> VVal {
    VVal(r.number() as u16 & 31)
}

impl Lifter<'_> {
    /// Width of operand `n` (register or memory).
    pub fn op_ty(&self, i: &Instruction, n: u32) -> Ty {
        match i.op_kind(n) {
            OpKind::Register => Ty::from_bytes(i.op_register(n).size()),
            OpKind::Memory => Ty::from_bytes(i.memory_size().size()),
            OpKind::Immediate8 | OpKind::Immediate8_2nd => Ty::I8,
            OpKind::Immediate8to16 | OpKind::Immediate16 => Ty::I16,
            OpKind::Immediate8to32 | OpKind::Immediate32 => Ty::I32,
            _ => Ty::I64,
        }
    }

    /// Value of a general register; only its low bits count (AH..BH are shifted down into a temporary).
    pub fn read_reg(&mut self, r: Register) -> Val {
        match gpr(r) {
            Some(g) if g.high => self.b.op1(Op::Ext8h, Ty::I8, Val::gpr(g.n)),
            Some(g) => Val::gpr(g.n),
            None => self.b.iconst(0),
        }
    }

    /// Writes a general register as x86 does: 32-bit writes clear the upper half, narrower ones keep the rest.
    pub fn write_reg(&mut self, r: Register, v: Val) {
        if let Some(g) = gpr(r) {
            self.write_gpr(g, v);
        }
    }

    /// As [`Lifter::write_reg`].
    pub fn write_gpr(&mut self, g: Gpr, v: Val) {
        let d = Val::gpr(g.n);
        match g.ty {
            Ty::I8 if g.high => self.b.op2_to(Op::Ins8h, Ty::I64, d, d, v),
            Ty::I8 => self.b.op2_to(Op::Ins8, Ty::I64, d, d, v),
            Ty::I16 => self.b.op2_to(Op::Ins16, Ty::I64, d, d, v),
            ty if d != v || ty == Ty::I32 => self.b.mov_to(ty, d, v),
            _ => {}
        }
    }

    /// Value of operand `n`: register, immediate (sign-extended as encoded) or memory of the operand's size.
    pub fn read_op(&mut self, i: &Instruction, n: u32) -> Val {
        match i.op_kind(n) {
            OpKind::Register => self.read_reg(i.op_register(n)),
            OpKind::Memory => {
                let ty = self.op_ty(i, n);
                let m = self.mem(i, ty.bytes() as usize, false);
                self.load(ty, m)
            }
            _ => self.b.iconst(i.immediate(n) as i64),
        }
    }

    /// Operand `n` as a right-hand side: immediates stay constants.
    pub fn src_op(&mut self, i: &Instruction, n: u32) -> Src {
        match i.op_kind(n) {
            OpKind::Register | OpKind::Memory => Src::Val(self.read_op(i, n)),
            _ => Src::Imm(i.immediate(n) as i64),
        }
    }

    /// The register of operand `n` if writes to it replace all of its 64 bits (32- and 64-bit operands).
    pub fn wide_dest(&self, i: &Instruction, n: u32) -> Option<Val> {
        match i.op_kind(n) {
            OpKind::Register => gpr(i.op_register(n)).filter(|g| g.ty >= Ty::I32).map(|g| Val::gpr(g.n)),
            _ => None,
        }
    }

    /// Writes a result of operand 0's width to it: a register, or memory `m` loaded before with write intent.
    pub fn write_back(&mut self, i: &Instruction, m: Option<Mem>, v: Val) {
        match m {
            Some(m) => self.store(self.op_ty(i, 0), m, v),
            None => self.write_reg(i.op0_register(), v),
        }
    }

    /// Operand 0 for reading and writing back: its value, and its place if it is memory.
    pub fn read_write_op(&mut self, i: &Instruction) -> (Val, Option<Mem>) {
        if i.op0_kind() == OpKind::Memory {
            let ty = self.op_ty(i, 0);
            let m = self.mem(i, ty.bytes() as usize, true);
            return (self.load_for_write(ty, m), Some(m));
        }
        (self.read_reg(i.op0_register()), None)
    }

    /// Linear address of the memory operand in one value, for atomic operations.
    pub fn mem_address(&mut self, i: &Instruction, bytes: usize) -> Val {
        let m = self.mem(i, bytes, true);
        self.atomic_address(m)
    }

    /// A memory operand's address for atomic operations. They raise #GP where an address is not canonical: an operand on
    /// the stack is touched before, so that it raises #SS.
    pub fn atomic_address(&mut self, m: Mem) -> Val {
        if self.long64() && m.flags & mem::STACK != 0 {
            self.load_for_write(Ty::I8, m);
        }
        self.flat_address(m)
    }

    /// A memory operand's address and displacement in one value.
    pub fn flat_address(&mut self, m: Mem) -> Val {
        if m.disp == 0 { m.addr } else { self.b.op2(Op::Add, Ty::I64, m.addr, m.disp) }
    }

    /// Loads from a memory operand.
    pub fn load(&mut self, ty: Ty, m: Mem) -> Val {
        self.b.load(ty, m.addr, m.disp, m.flags)
    }

    /// Loads for a later store to the same place: needs write permission.
    pub fn load_for_write(&mut self, ty: Ty, m: Mem) -> Val {
        self.b.load(ty, m.addr, m.disp, m.flags | mem::WRITE_INTENT)
    }

    /// Stores to a memory operand.
    pub fn store(&mut self, ty: Ty, m: Mem, v: Val) {
        self.b.store(ty, m.addr, m.disp, v, m.flags);
    }

    /// Linear address of the instruction's memory operand for an access of `bytes` bytes, segment checks done.
    pub fn mem(&mut self, i: &Instruction, bytes: usize, write: bool) -> Mem {
        let m = self.unchecked_mem(i, bytes, write);
        self.check_alignment(m, bytes);
        m
    }

    fn unchecked_mem(&mut self, i: &Instruction, bytes: usize, write: bool) -> Mem {
        let seg = segment_number(i.memory_segment());
        let flags = segment_flags(seg);
        if self.long64() {
            let (addr, disp) = self.effective_address_64(i);
            if seg < reg::FS {
                return Mem { addr, disp, flags };
            }
            let base = self.b.get_state(Ty::I64, seg_base_offset(seg));
            let d = self.b.temp();
            self.b.lea_to(Ty::I64, d, Some(base), Some(addr), 0, disp);
            return Mem { addr: d, disp: 0, flags };
        }
        let ea = self.effective_address_legacy(i);
        let addr = self.segmented(seg, ea, bytes, write);
        Mem { addr, disp: 0, flags }
    }

    /// With alignment checks on, raises #AC for operands off their natural boundary (SDM 3A 6.15, table 6-7).
    pub fn check_alignment(&mut self, m: Mem, bytes: usize) {
        match bytes {
            2 | 4 | 8 => self.check_boundary(m, bytes),
            10 => self.check_boundary(m, 8),
            _ => {}
        }
    }

    /// With alignment checks on, raises #AC for an operand that does not start at a multiple of `boundary` bytes.
    pub fn check_boundary(&mut self, m: Mem, boundary: usize) {
        if self.has(mode::ALIGN_CHECK) {
            let addr = self.flat_address(m);
            let mask = self.b.iconst(boundary as i64 - 1);
            self.b.call(helper::ALIGN, &[addr, mask]);
        }
    }

    /// Effective address without segment: what LEA computes, in full width.
    pub fn effective_address(&mut self, i: &Instruction) -> Val {
        if !self.long64() {
            return self.effective_address_legacy(i);
        }
        let (a, disp) = self.effective_address_64(i);
        if disp == 0 {
            return a;
        }
        self.b.op2(Op::Add, Ty::I64, a, disp)
    }

    /// Effective address in 64-bit mode as value and constant.
    pub fn effective_address_64(&mut self, i: &Instruction) -> (Val, i64) {
        let (base, index) = (i.memory_base(), i.memory_index());
        let disp = i.memory_displacement64() as i64;
        // iced gives the target itself for RIP-relative operands.
        match base {
            Register::RIP if self.has(mode::RELATIVE) => return (self.code_base(), disp),
            Register::EIP if self.has(mode::RELATIVE) => return (self.relative(Ty::I32, disp), 0),
            Register::RIP | Register::EIP => return (self.b.iconst(disp), 0),
            Register::None if index == Register::None => return (self.b.iconst(disp), 0),
            _ => {}
        }
        let narrow = base.size() == 4 || index.size() == 4;
        let (b, x) = (gpr(base).map(|g| Val::gpr(g.n)), gpr(index).map(|g| Val::gpr(g.n)));
        if let (Some(b), None, false) = (b, x, narrow) {
            return (b, disp);
        }
        let d = self.b.temp();
        let shift = i.memory_index_scale().trailing_zeros() as u8;
        let ty = if narrow { Ty::I32 } else { Ty::I64 };
        self.b.lea_to(ty, d, b, x, shift, disp);
        (d, 0)
    }

    fn effective_address_legacy(&mut self, i: &Instruction) -> Val {
        let (base, index) = (i.memory_base(), i.memory_index());
        let narrow = base.size() == 2 || index.size() == 2 || (i.memory_displ_size() == 2 && base == Register::None);
        let ty = if narrow { Ty::I16 } else { Ty::I32 };
        let (b, x) = (gpr(base).map(|g| Val::gpr(g.n)), gpr(index).map(|g| Val::gpr(g.n)));
        let d = self.b.temp();
        let shift = i.memory_index_scale().trailing_zeros() as u8;
        self.b.lea_to(ty, d, b, x, shift, i.memory_displacement64() as i64);
        d
    }

    /// Linear address of offset `ea` (already cut to the address size) in segment `seg`.
    pub fn segmented(&mut self, seg: usize, ea: Val, bytes: usize, write: bool) -> Val {
        if self.long64() {
            if seg < reg::FS {
                return ea;
            }
            let base = self.b.get_state(Ty::I64, seg_base_offset(seg));
            return self.b.op2(Op::Add, Ty::I64, base, ea);
        }
        let flat = self.has(mode::FLAT) && (seg == reg::ES || seg == reg::SS || seg == reg::DS);
        if flat {
            return ea;
        }
        if self.has(mode::FSGS_FLAT) && seg >= reg::FS {
            let base = self.b.get_state(Ty::I64, seg_base_offset(seg));
            return self.b.op2(Op::Add, Ty::I32, base, ea);
        }
        self.b.seg_addr(seg, ea, bytes, write, self.limits_later)
    }

    /// Width of the stack pointer.
    pub fn stack_ty(&self) -> Ty {
        if self.long64() {
            Ty::I64
        } else if self.has(mode::SS32) {
            Ty::I32
        } else {
            Ty::I16
        }
    }

    /// Linear address of the stack at offset `disp` from the stack pointer.
    pub fn stack_at(&mut self, disp: i64, bytes: usize, write: bool) -> Mem {
        let rsp = Val::gpr(reg::RSP);
        let ty = self.stack_ty();
        let mut m = Mem { addr: rsp, disp, flags: mem::STACK };
        if ty != Ty::I64 {
            let d = self.b.temp();
            self.b.lea_to(ty, d, Some(rsp), None, 0, disp);
            m = Mem { addr: self.segmented(reg::SS, d, bytes, write), disp: 0, flags: mem::STACK };
        }
        self.check_alignment(m, bytes);
        m
    }

    /// Moves the stack pointer by `delta` bytes (after everything that can fault).
    pub fn move_sp(&mut self, delta: impl Into<Src>) {
        let ty = self.stack_ty();
        let rsp = Val::gpr(reg::RSP);
        if ty == Ty::I16 {
            let t = self.b.op2(Op::Add, Ty::I16, rsp, delta);
            self.b.op2_to(Op::Ins16, Ty::I64, rsp, rsp, t);
        } else {
            self.b.op2_to(Op::Add, ty, rsp, rsp, delta);
        }
    }

    /// Pushes a value of width `ty`.
    pub fn push(&mut self, ty: Ty, v: Val) {
        let bytes = ty.bytes() as usize;
        let m = self.stack_at(-(bytes as i64), bytes, true);
        self.store(ty, m, v);
        self.move_sp(-(bytes as i64));
    }

    /// Reads what a pop would give, without moving the stack pointer.
    pub fn peek(&mut self, ty: Ty, disp: i64) -> Val {
        let m = self.stack_at(disp, ty.bytes() as usize, false);
        self.load(ty, m)
    }

    /// Pops a value of width `ty`; nothing that can fault may follow.
    pub fn pop(&mut self, ty: Ty) -> Val {
        let v = self.peek(ty, 0);
        self.move_sp(ty.bytes() as i64);
        v
    }
}
