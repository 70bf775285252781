//! Semantics of the x87 instructions: every one is a call of its helper.

mod control;

use super::{Flow, Lifter};
use crate::helpers::HelperId;
use crate::helpers::x87::{
    ARITHMETIC, COMPARE, FCMOV, Format, Insn, LOAD, STACK, STORE, UNARY, WAIT, compare_op, stack_op, store_op, unary_op,
};
use crate::ir::{Ty, Val};
use crate::state::mode;
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    if let Some(flow) = control::lift(l, i) {
        return Some(flow);
    }
    let (id, insn) = classify(i)?;
    if let Some(flow) = l.x87_check() {
        return Some(flow);
    }
    let insn = Insn { i: register_operand(i), format: format(i), ..insn };
    if i.op_count() > 0 && (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        memory_form(l, i, id, insn);
    } else {
        register_form(l, i, id, insn);
    }
    Some(Flow::Next)
}

fn memory_form(l: &mut Lifter, i: &Instruction, id: HelperId, insn: Insn) {
    l.wait_before_address();
    // A store that an unmasked exception stops never comes to look at the segment (measured).
    l.limits_later = id == STORE;
    let m = l.mem(i, i.memory_size().size(), id == STORE);
    l.limits_later = false;
    let address = l.linear(m);
    let offset = l.effective_address(i);
    let insn = l.b.iconst(Insn { access: m.flags, ..insn }.pack());
    l.b.call(id, &[insn, address, offset]);
}

impl Lifter<'_> {
    /// A pending exception comes before what the address of a memory operand raises (measured); the helper would look too
    /// late.
    fn wait_before_address(&mut self) {
        if !self.long64() && !self.has(mode::FLAT) || self.has(mode::ALIGN_CHECK) {
            self.b.call(WAIT, &[]);
        }
    }
}

fn register_form(l: &mut Lifter, i: &Instruction, id: HelperId, insn: Insn) {
    let packed = l.b.iconst(insn.pack());
    if id == FCMOV {
        let condition = l.b.get_cond(condition(i.mnemonic()));
        l.b.call(id, &[packed, condition]);
    } else if id == COMPARE && insn.op & compare_op::TO_FLAGS != 0 {
        let flags = l.b.call(id, &[packed]);
        l.b.set_flags_raw(flags);
    } else {
        l.b.call(id, &[packed]);
    }
}

/// Number of the register operand that is not the implied ST(0).
fn register_operand(i: &Instruction) -> usize {
    let st = |n: u32| (i.op_kind(n) == OpKind::Register && i.op_register(n).is_st()).then(|| i.op_register(n));
    let number = |r: Register| r.number() & 7;
    if matches!(i.mnemonic(), Mnemonic::Fcompp | Mnemonic::Fucompp) {
        return 1;
    }
    (0..i.op_count()).filter_map(st).map(number).max().unwrap_or(0)
}

fn format(i: &Instruction) -> Format {
    match i.memory_size() {
        MemorySize::Float32 => Format::Single,
        MemorySize::Float64 => Format::Double,
        MemorySize::Float80 => Format::Extended,
        MemorySize::Int16 => Format::Word,
        MemorySize::Int32 => Format::Dword,
        MemorySize::Int64 => Format::Qword,
        MemorySize::Bcd => Format::Decimal,
        _ => Format::None,
    }
}

/// Condition of FCMOVcc as Jcc counts.
fn condition(m: Mnemonic) -> u16 {
    match m {
        Mnemonic::Fcmovb => 2,
        Mnemonic::Fcmovnb => 3,
        Mnemonic::Fcmove => 4,
        Mnemonic::Fcmovne => 5,
        Mnemonic::Fcmovbe => 6,
        Mnemonic::Fcmovnbe => 7,
        Mnemonic::Fcmovu => 10,
        _ => 11,
    }
}

fn classify(i: &Instruction) -> Option<(HelperId, Insn)> {
    let m = i.mnemonic();
    arithmetic(m)
        .map(|(op, pops)| (ARITHMETIC, Insn { pops, to_sti: to_sti(i), ..Insn::new(op) }))
        .or_else(|| comparison(m).map(|(op, pops)| (COMPARE, Insn { pops, ..Insn::new(op) })))
        .or_else(|| moves(i))
        .or_else(|| unary(m).map(|op| (UNARY, Insn::new(op))))
}

/// The destination is ST(i): the first operand, of two.
fn to_sti(i: &Instruction) -> bool {
    i.op_count() == 2 && i.op_kind(1) == OpKind::Register && i.op_register(1) == Register::ST0 && !is_st0_form(i)
}

/// `op st(0), st(i)` with i = 0 looks like the other direction; either gives the same.
fn is_st0_form(i: &Instruction) -> bool {
    i.op_register(0) == Register::ST0
}

/// Operation by the opcode's three bits, and pops.
fn arithmetic(m: Mnemonic) -> Option<(u8, u8)> {
    Some(match m {
        Mnemonic::Fadd | Mnemonic::Fiadd => (0, 0),
        Mnemonic::Faddp => (0, 1),
        Mnemonic::Fmul | Mnemonic::Fimul => (1, 0),
        Mnemonic::Fmulp => (1, 1),
        Mnemonic::Fsub | Mnemonic::Fisub => (4, 0),
        Mnemonic::Fsubp => (4, 1),
        Mnemonic::Fsubr | Mnemonic::Fisubr => (5, 0),
        Mnemonic::Fsubrp => (5, 1),
        Mnemonic::Fdiv | Mnemonic::Fidiv => (6, 0),
        Mnemonic::Fdivp => (6, 1),
        Mnemonic::Fdivr | Mnemonic::Fidivr => (7, 0),
        Mnemonic::Fdivrp => (7, 1),
        _ => return None,
    })
}

fn comparison(m: Mnemonic) -> Option<(u8, u8)> {
    use compare_op::{ORDERED, TO_FLAGS, UNORDERED};
    Some(match m {
        Mnemonic::Fcom | Mnemonic::Ficom => (ORDERED, 0),
        Mnemonic::Fcomp | Mnemonic::Ficomp => (ORDERED, 1),
        Mnemonic::Fcompp => (ORDERED, 2),
        Mnemonic::Fucom => (UNORDERED, 0),
        Mnemonic::Fucomp => (UNORDERED, 1),
        Mnemonic::Fucompp => (UNORDERED, 2),
        Mnemonic::Fcomi => (ORDERED | TO_FLAGS, 0),
        Mnemonic::Fcomip => (ORDERED | TO_FLAGS, 1),
        Mnemonic::Fucomi => (UNORDERED | TO_FLAGS, 0),
        Mnemonic::Fucomip => (UNORDERED | TO_FLAGS, 1),
        _ => return None,
    })
}

/// Loads, stores, register moves, constants.
fn moves(i: &Instruction) -> Option<(HelperId, Insn)> {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let stack = |op: u8, pops: u8| (STACK, Insn { pops, ..Insn::new(op) });
    let store = |op: u8, pops: u8| (STORE, Insn { pops, ..Insn::new(op) });
    Some(match i.mnemonic() {
        Mnemonic::Fld | Mnemonic::Fild | Mnemonic::Fbld if memory => (LOAD, Insn::new(0)),
        Mnemonic::Fld => stack(stack_op::FLD, 0),
        Mnemonic::Fst | Mnemonic::Fist if memory => store(store_op::FST, 0),
        Mnemonic::Fstp | Mnemonic::Fistp | Mnemonic::Fbstp if memory => store(store_op::FST, 1),
        Mnemonic::Fisttp => store(store_op::FISTTP, 1),
        Mnemonic::Fst => stack(stack_op::FST, 0),
        Mnemonic::Fstp => stack(stack_op::FST, 1),
        Mnemonic::Fstpnce => stack(stack_op::FSTPNCE, 1),
        Mnemonic::Fxch => stack(stack_op::FXCH, 0),
        Mnemonic::Ffree => stack(stack_op::FFREE, 0),
        Mnemonic::Ffreep => stack(stack_op::FFREE, 1),
        Mnemonic::Fincstp => stack(stack_op::FINCSTP, 0),
        Mnemonic::Fdecstp => stack(stack_op::FDECSTP, 0),
        Mnemonic::Fnop => stack(stack_op::FNOP, 0),
        Mnemonic::Fcmovb | Mnemonic::Fcmovnb | Mnemonic::Fcmove | Mnemonic::Fcmovne => (FCMOV, Insn::new(0)),
        Mnemonic::Fcmovbe | Mnemonic::Fcmovnbe | Mnemonic::Fcmovu | Mnemonic::Fcmovnu => (FCMOV, Insn::new(0)),
        m => stack(stack_op::CONSTANT + constant(m)?, 0),
    })
}

fn constant(m: Mnemonic) -> Option<u8> {
    Some(match m {
        Mnemonic::Fld1 => 0,
        Mnemonic::Fldl2t => 1,
        Mnemonic::Fldl2e => 2,
        Mnemonic::Fldpi => 3,
        Mnemonic::Fldlg2 => 4,
        Mnemonic::Fldln2 => 5,
        Mnemonic::Fldz => 6,
        _ => return None,
    })
}

fn unary(m: Mnemonic) -> Option<u8> {
    Some(match m {
        Mnemonic::Fchs => unary_op::FCHS,
        Mnemonic::Fabs => unary_op::FABS,
        Mnemonic::Ftst => unary_op::FTST,
        Mnemonic::Fxam => unary_op::FXAM,
        Mnemonic::Fsqrt => unary_op::FSQRT,
        Mnemonic::Frndint => unary_op::FRNDINT,
        Mnemonic::F2xm1 => unary_op::F2XM1,
        Mnemonic::Fsin => unary_op::FSIN,
        Mnemonic::Fcos => unary_op::FCOS,
        Mnemonic::Fscale => unary_op::FSCALE,
        Mnemonic::Fprem => unary_op::FPREM,
        Mnemonic::Fprem1 => unary_op::FPREM1,
        Mnemonic::Fsincos => unary_op::FSINCOS,
        Mnemonic::Fptan => unary_op::FPTAN,
        Mnemonic::Fxtract => unary_op::FXTRACT,
        Mnemonic::Fpatan => unary_op::FPATAN,
        Mnemonic::Fyl2x => unary_op::FYL2X,
        Mnemonic::Fyl2xp1 => unary_op::FYL2XP1,
        _ => return None,
    })
}

/// Bytes of an environment or state image.
fn image_bytes(l: &mut Lifter, i: &Instruction) -> Val {
    let bytes = l.b.temp();
    l.b.mov_to(Ty::I64, bytes, i.memory_size().size() as i64);
    bytes
}
