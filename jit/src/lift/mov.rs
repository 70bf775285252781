//! Data movement: MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, BSWAP, MOVBE, conversions, XLAT, flag bits and no-ops.

use super::operand::{Gpr, gpr, segment_number};
use super::{Flow, Lifter};
use crate::helpers::{integer as helper, system};
use crate::ir::op::{Op, RmwOp};
use crate::ir::{Ty, Val};
use crate::state::{CpuState, flag, mode, reg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    use Mnemonic::*;
    match i.mnemonic() {
        Mov => return l.mov(i),
        Movzx => l.movzx(i),
        Movsx | Movsxd => l.movsx(i),
        Movnti | Movdiri => l.mov_store(i),
        Lea => l.lea(i),
        Xchg => l.xchg(i),
        Bswap => l.bswap(i),
        Movbe => l.movbe(i),
        Cbw => l.extend_accumulator(Ty::I8, Ty::I16),
        Cwde => l.extend_accumulator(Ty::I16, Ty::I32),
        Cdqe => l.extend_accumulator(Ty::I32, Ty::I64),
        Cwd => l.sign_to_dx(Ty::I16),
        Cdq => l.sign_to_dx(Ty::I32),
        Cqo => l.sign_to_dx(Ty::I64),
        Xlatb => l.xlat(i),
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns | Cmovp | Cmovnp | Cmovl
        | Cmovge | Cmovle | Cmovg => l.cmov(i),
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp | Setl | Setge
        | Setle | Setg => l.setcc(i),
        Clc | Stc | Cmc => l.carry_bit(i),
        Sahf | Lahf | Salc => l.flag_byte(i),
        Cld | Std => l.direction(i.mnemonic() == Std),
        // LFENCE and SFENCE order what is in order here anyway.
        Lfence | Sfence => {}
        // Of processors that share a core, one that waits is to let the other go on.
        Pause => {
            l.b.call(system::PAUSE, &[]);
        }
        _ if is_hint(i) => {}
        Mfence => {
            l.b.call(helper::FENCE, &[]);
        }
        Clflush | Clflushopt | Clwb => l.cache_line(i),
        _ => return None,
    }
    Some(Flow::Next)
}

/// Hints and prefetches: they have no effect, never fault, and are no-ops on processors without the feature too (RDSSP: while
/// shadow stacks are off).
pub fn is_hint(i: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        i.mnemonic(),
        Nop | Reservednop
            | Pause
            | Endbr32
            | Endbr64
            | Rdsspd
            | Rdsspq
            | Prefetch
            | Prefetchw
            | Prefetchwt1
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchit0
            | Prefetchit1
            | Cldemote
    )
}

impl Lifter<'_> {
    /// MOV between general registers, memory and immediates; other registers belong to the system family.
    fn mov(&mut self, i: &Instruction) -> Option<Flow> {
        match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Register) => {
                gpr(i.op0_register())?;
                gpr(i.op1_register())?;
                let v = self.read_reg(i.op1_register());
                self.write_reg(i.op0_register(), v);
            }
            (OpKind::Register, OpKind::Memory) => {
                let g = gpr(i.op0_register())?;
                let m = self.mem(i, g.ty.bytes() as usize, false);
                self.load_gpr(g, g.ty, m);
            }
            (OpKind::Register, _) => {
                let g = gpr(i.op0_register())?;
                self.move_constant(g, i.immediate(1) as i64);
            }
            (_, OpKind::Register) if gpr(i.op1_register()).is_none() => return None,
            _ => self.mov_store(i),
        }
        Some(Flow::Next)
    }

    /// Stores operand 1 (register or immediate) to memory operand 0.
    fn mov_store(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let m = self.mem(i, ty.bytes() as usize, true);
        let v = self.read_op(i, 1);
        self.store(ty, m, v);
    }

    fn move_constant(&mut self, g: Gpr, value: i64) {
        let d = Val::gpr(g.n);
        match g.ty {
            Ty::I8 if g.high => self.b.op2_to(Op::Ins8h, Ty::I64, d, d, value),
            Ty::I8 => self.b.op2_to(Op::Ins8, Ty::I64, d, d, value),
            Ty::I16 => self.b.op2_to(Op::Ins16, Ty::I64, d, d, value),
            ty => self.b.mov_to(ty, d, value),
        }
    }

    /// Loads `ty` zero-extended into a register of at least that width.
    fn load_gpr(&mut self, g: Gpr, ty: Ty, m: super::operand::Mem) {
        if g.ty >= Ty::I32 {
            return self.b.load_to(ty, Val::gpr(g.n), m.addr, m.disp, m.flags);
        }
        let v = self.load(ty, m);
        self.write_gpr(g, v);
    }

    fn movzx(&mut self, i: &Instruction) {
        let (Some(g), from) = (gpr(i.op0_register()), self.op_ty(i, 1)) else { return };
        if i.op1_kind() == OpKind::Memory {
            let m = self.mem(i, from.bytes() as usize, false);
            return self.load_gpr(g, from, m);
        }
        let v = self.read_reg(i.op1_register());
        match self.wide_dest(i, 0) {
            Some(d) => self.b.mov_to(from, d, v),
            None => {
                let t = self.b.op1(Op::Mov, from, v);
                self.write_gpr(g, t);
            }
        }
    }

    /// MOVSX and MOVSXD.
    fn movsx(&mut self, i: &Instruction) {
        let from = self.op_ty(i, 1);
        let Some(g) = gpr(i.op0_register()) else { return };
        let v = self.read_op(i, 1);
        if g.ty == Ty::I64 {
            return self.b.op1_to(Op::Sext, from, Val::gpr(g.n), v);
        }
        let t = self.b.op1(Op::Sext, from, v);
        self.write_gpr(g, t);
    }

    fn lea(&mut self, i: &Instruction) {
        let Some(g) = gpr(i.op0_register()) else { return };
        if self.long64() && g.ty >= Ty::I32 && i.memory_base().size() != 4 && i.memory_index().size() != 4 {
            let d = Val::gpr(g.n);
            let (base, index) = (gpr(i.memory_base()), gpr(i.memory_index()));
            let disp = i.memory_displacement64() as i64;
            if i.is_ip_rel_memory_operand() && self.has(mode::RELATIVE) {
                let page = self.code_base();
                return self.b.lea_to(g.ty, d, Some(page), None, 0, disp);
            }
            if base.is_none() && index.is_none() {
                return self.b.mov_to(g.ty, d, disp);
            }
            let shift = i.memory_index_scale().trailing_zeros() as u8;
            let val = |r: Option<Gpr>| r.map(|r| Val::gpr(r.n));
            return self.b.lea_to(g.ty, d, val(base), val(index), shift, disp);
        }
        let ea = self.effective_address(i);
        self.write_gpr(g, ea);
    }

    fn xchg(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        if i.op0_kind() == OpKind::Memory {
            // Locked with or without the prefix (SDM 2, XCHG).
            let addr = self.mem_address(i, ty.bytes() as usize);
            let v = self.read_reg(i.op1_register());
            let old = self.b.rmw(RmwOp::Xchg, ty, addr, v);
            return self.write_reg(i.op1_register(), old);
        }
        let (a, b) = (i.op0_register(), i.op1_register());
        let v = self.read_reg(a);
        let first = self.b.op1(Op::Mov, ty, v);
        let second = self.read_reg(b);
        self.write_reg(a, second);
        self.write_reg(b, first);
    }

    fn bswap(&mut self, i: &Instruction) {
        let Some(g) = gpr(i.op0_register()) else { return };
        let d = Val::gpr(g.n);
        if g.ty == Ty::I16 {
            // Undefined (SDM 2, BSWAP); silicon clears the 16 bits.
            return self.b.op2_to(Op::Ins16, Ty::I64, d, d, 0);
        }
        self.b.op1_to(Op::Bswap, g.ty, d, d);
    }

    fn movbe(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        if i.op0_kind() == OpKind::Memory {
            let m = self.mem(i, ty.bytes() as usize, true);
            let v = self.read_reg(i.op1_register());
            let t = self.b.op1(Op::Bswap, ty, v);
            return self.store(ty, m, t);
        }
        let v = self.read_op(i, 1);
        let t = self.b.op1(Op::Bswap, ty, v);
        self.write_reg(i.op0_register(), t);
    }

    /// CBW, CWDE, CDQE.
    fn extend_accumulator(&mut self, from: Ty, to: Ty) {
        let rax = Val::gpr(reg::RAX);
        if to == Ty::I64 {
            return self.b.op1_to(Op::Sext, from, rax, rax);
        }
        let t = self.b.op1(Op::Sext, from, rax);
        self.write_gpr(Gpr { n: reg::RAX, ty: to, high: false }, t);
    }

    /// CWD, CDQ, CQO.
    fn sign_to_dx(&mut self, ty: Ty) {
        let sign = self.b.op2(Op::Sar, ty, Val::gpr(reg::RAX), ty.bits() as i64 - 1);
        self.write_gpr(Gpr { n: reg::RDX, ty, high: false }, sign);
    }

    /// XLAT: AL = \[rBX + AL\] (address size decides the width of rBX).
    fn xlat(&mut self, i: &Instruction) {
        let ty = Ty::from_bytes(i.memory_base().size());
        let al = self.b.op1(Op::Mov, Ty::I8, Val::gpr(reg::RAX));
        let ea = self.b.op2(Op::Add, ty, Val::gpr(reg::RBX), al);
        let seg = segment_number(i.memory_segment());
        let addr = self.segmented(seg, ea, 1, false);
        let v = self.b.load(Ty::I8, addr, 0, super::operand::segment_flags(seg));
        self.write_reg(Register::AL, v);
    }

    /// CMOVcc: memory is read and 32-bit registers are zero-extended whatever the condition (SDM 2, CMOVcc).
    fn cmov(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let cond = self.condition(i);
        let old = self.read_reg(i.op0_register());
        match self.wide_dest(i, 0) {
            Some(d) => self.b.select_to(ty, d, cond, src, old),
            None => {
                let v = self.b.select(ty, cond, src, old);
                self.write_reg(i.op0_register(), v);
            }
        }
    }

    fn setcc(&mut self, i: &Instruction) {
        let m = (i.op0_kind() == OpKind::Memory).then(|| self.mem(i, 1, true));
        let v = self.condition(i);
        self.write_back(i, m, v);
    }

    /// The condition of a Jcc, SETcc, CMOVcc or LOOPcc as 0 or 1.
    pub fn condition(&mut self, i: &Instruction) -> Val {
        // iced counts conditions from 1 in the order of the opcodes.
        let cc = (i.condition_code() as u16).wrapping_sub(1) & 15;
        self.b.get_cond(cc)
    }

    /// CLC, STC, CMC.
    fn carry_bit(&mut self, i: &Instruction) {
        let flags = self.b.get_flags();
        let (op, operand) = match i.mnemonic() {
            Mnemonic::Clc => (Op::And, !(flag::CF as i64)),
            Mnemonic::Stc => (Op::Or, flag::CF as i64),
            _ => (Op::Xor, flag::CF as i64),
        };
        let word = self.b.op2(op, Ty::I64, flags, operand);
        self.b.set_flags_raw(word);
    }

    /// SAHF, LAHF, SALC.
    fn flag_byte(&mut self, i: &Instruction) {
        match i.mnemonic() {
            Mnemonic::Sahf => {
                let ah = self.read_reg(Register::AH);
                let flags = self.b.get_flags();
                let of = self.b.op2(Op::And, Ty::I64, flags, flag::OF as i64);
                let low = self.b.op2(Op::And, Ty::I64, ah, (flag::ARITH & 0xff) as i64);
                let word = self.b.op2(Op::Or, Ty::I64, of, low);
                self.b.set_flags_raw(word);
            }
            Mnemonic::Lahf => {
                let flags = self.b.get_flags();
                // Bit 1 of RFLAGS is always set.
                let v = self.b.op2(Op::Or, Ty::I64, flags, 2);
                self.write_reg(Register::AH, v);
            }
            _ => {
                let carry = self.b.get_carry();
                let v = self.b.op1(Op::Neg, Ty::I8, carry);
                self.write_reg(Register::AL, v);
            }
        }
    }

    /// CLD and STD.
    fn direction(&mut self, set: bool) {
        let offset = offset_of!(CpuState, rflags);
        let old = self.b.get_state(Ty::I64, offset);
        let new = if set {
            self.b.op2(Op::Or, Ty::I64, old, flag::DF as i64)
        } else {
            self.b.op2(Op::And, Ty::I64, old, !(flag::DF as i64))
        };
        self.b.set_state(Ty::I64, offset, new);
    }

    /// CLFLUSH, CLFLUSHOPT, CLWB: faults are those of a one-byte load (SDM 2, CLFLUSH).
    fn cache_line(&mut self, i: &Instruction) {
        let m = self.mem(i, 1, false);
        self.load(Ty::I8, m);
    }
}
