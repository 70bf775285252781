//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE.

use super::operand::{Gpr, Mem, gpr};
use super::{Flow, Lifter};
use crate::helpers::integer as helper;
use crate::ir::op::Op;
use crate::ir::{Ty, Val, mem};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    match i.mnemonic() {
        Mnemonic::Push => return l.push_insn(i),
        Mnemonic::Pop => return l.pop_insn(i),
        Mnemonic::Pusha => l.pusha(Ty::I16),
        Mnemonic::Pushad => l.pusha(Ty::I32),
        Mnemonic::Popa => l.popa(Ty::I16),
        Mnemonic::Popad => l.popa(Ty::I32),
        Mnemonic::Enter => l.enter(i),
        Mnemonic::Leave => l.leave(i),
        _ => return None,
    }
    Some(Flow::Next)
}

/// Width of what an instruction pushes or pops, from the stack pointer's change.
pub fn stack_operand(i: &Instruction) -> Ty {
    Ty::from_bytes(i.stack_pointer_increment().unsigned_abs() as usize)
}

impl Lifter<'_> {
    /// PUSH of registers, memory and immediates; segment registers belong to the system family.
    fn push_insn(&mut self, i: &Instruction) -> Option<Flow> {
        if i.op0_kind() == OpKind::Register {
            gpr(i.op0_register())?;
        }
        let ty = stack_operand(i);
        let v = self.read_op(i, 0);
        self.push(ty, v);
        Some(Flow::Next)
    }

    fn pop_insn(&mut self, i: &Instruction) -> Option<Flow> {
        let ty = stack_operand(i);
        if i.op0_kind() == OpKind::Memory {
            return Some(self.pop_memory(i, ty));
        }
        let g = gpr(i.op0_register())?;
        if g.ty >= Ty::I32 && g.n != reg::RSP {
            let m = self.stack_at(0, ty.bytes() as usize, false);
            self.b.load_to(ty, Val::gpr(g.n), m.addr, m.disp, m.flags);
            self.move_sp(ty.bytes() as i64);
        } else {
            // POP rSP: the increment comes first, the loaded value stays (SDM 2, POP).
            let v = self.pop(ty);
            self.write_gpr(g, v);
        }
        Some(Flow::Next)
    }

    /// POP to memory: an address based on rSP uses its value after the increment (SDM 2, POP).
    fn pop_memory(&mut self, i: &Instruction, ty: Ty) -> Flow {
        let bytes = ty.bytes() as usize;
        let v = self.peek(ty, 0);
        let mut moved = *i;
        if matches!(i.memory_base(), Register::RSP | Register::ESP) {
            moved.set_memory_displacement64(i.memory_displacement64().wrapping_add(bytes as u64));
        }
        let m = self.mem(&moved, bytes, true);
        self.store(ty, m, v);
        self.move_sp(bytes as i64);
        Flow::Next
    }

    fn pusha(&mut self, ty: Ty) {
        let bytes = ty.bytes() as i64;
        for n in 0..8 {
            let m = self.stack_at(-bytes * (n + 1), bytes as usize, true);
            self.store(ty, m, Val::gpr(n as usize));
        }
        self.move_sp(-8 * bytes);
    }

    /// Silicon loads register by register: what comes before a fault stays loaded (measured). rSP moves last.
    fn popa(&mut self, ty: Ty) {
        let bytes = ty.bytes() as i64;
        for n in (0..8).filter(|n| *n != 3) {
            let v = self.peek(ty, bytes * n);
            self.write_gpr(Gpr { n: 7 - n as usize, ty, high: false }, v);
        }
        self.move_sp(8 * bytes);
    }

    fn enter(&mut self, i: &Instruction) {
        let ty = stack_operand_of_enter(i);
        let size = i.immediate(0) as i64 & 0xffff;
        let level = i.immediate(1) as i64 & 31;
        let bytes = ty.bytes() as i64;
        if level > 0 || self.stack_ty() != Ty::I64 {
            let width = self.b.iconst(ty as i64 | (self.stack_ty() as i64) << 4);
            let frame = self.b.iconst(size);
            let level = self.b.iconst(level);
            self.b.call(helper::ENTER, &[width, frame, level]);
            return;
        }
        let m = self.stack_at(-bytes, bytes as usize, true);
        self.store(ty, m, Val::gpr(reg::RBP));
        // The frame's last bytes must be writable (SDM 2, ENTER); nothing is written there.
        let end = self.stack_at(-bytes - size, bytes as usize, true);
        self.b.load(ty, end.addr, end.disp, end.flags | mem::WRITE_INTENT);
        self.move_sp(-bytes);
        self.write_gpr(Gpr { n: reg::RBP, ty, high: false }, Val::gpr(reg::RSP));
        self.move_sp(-size);
    }

    /// LEAVE: rSP = rBP, then rBP is popped; the stack's width counts for rSP, the operand size for rBP.
    fn leave(&mut self, i: &Instruction) {
        let ty = stack_operand_of_leave(i);
        let (stack, bytes) = (self.stack_ty(), ty.bytes() as i64);
        let rbp = Val::gpr(reg::RBP);
        let addr = if stack == Ty::I64 {
            rbp
        } else {
            let ea = self.b.op1(Op::Mov, stack, rbp);
            self.segmented(reg::SS, ea, bytes as usize, false)
        };
        let m = Mem { addr, disp: 0, flags: mem::STACK };
        self.check_alignment(m, bytes as usize);
        let v = self.load(ty, m);
        let sp = self.b.op2(Op::Add, stack, rbp, bytes);
        self.write_gpr(Gpr { n: reg::RSP, ty: stack, high: false }, sp);
        self.write_gpr(Gpr { n: reg::RBP, ty, high: false }, v);
    }
}

fn stack_operand_of_enter(i: &Instruction) -> Ty {
    use iced_x86::Code;
    match i.code() {
        Code::Enterw_imm16_imm8 => Ty::I16,
        Code::Enterd_imm16_imm8 => Ty::I32,
        _ => Ty::I64,
    }
}

fn stack_operand_of_leave(i: &Instruction) -> Ty {
    use iced_x86::Code;
    match i.code() {
        Code::Leavew => Ty::I16,
        Code::Leaved => Ty::I32,
        _ => Ty::I64,
    }
}
