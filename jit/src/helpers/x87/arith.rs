//! Arithmetic, comparisons, functions.

use super::convert::Parts;
use super::host::{self, HostFn, Operand, Outcome};
use super::insn::{Format, Insn};
use super::state::{INDEFINITE, sw};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::flag;

/// Operations of [`unary`]: the opcode's second byte, after D9.
pub mod unary_op {
    #![allow(missing_docs)]
    pub const FCHS: u8 = 0xe0;
    pub const FABS: u8 = 0xe1;
    pub const FTST: u8 = 0xe4;
    pub const FXAM: u8 = 0xe5;
    pub const F2XM1: u8 = 0xf0;
    pub const FYL2X: u8 = 0xf1;
    pub const FPTAN: u8 = 0xf2;
    pub const FPATAN: u8 = 0xf3;
    pub const FXTRACT: u8 = 0xf4;
    pub const FPREM1: u8 = 0xf5;
    pub const FPREM: u8 = 0xf8;
    pub const FYL2XP1: u8 = 0xf9;
    pub const FSQRT: u8 = 0xfa;
    pub const FSINCOS: u8 = 0xfb;
    pub const FRNDINT: u8 = 0xfc;
    pub const FSCALE: u8 = 0xfd;
    pub const FSIN: u8 = 0xfe;
    pub const FCOS: u8 = 0xff;
}

/// Operations of [`compare`].
pub mod compare_op {
    #![allow(missing_docs)]
    pub const ORDERED: u8 = 0;
    pub const UNORDERED: u8 = 1;
    /// Added: the result goes to EFLAGS.
    pub const TO_FLAGS: u8 = 2;
}

fn operand(format: Format) -> Operand {
    match format {
        Format::Single => Operand::Single,
        Format::Double => Operand::Double,
        Format::Word => Operand::Word,
        Format::Dword => Operand::Dword,
        _ => Operand::Register,
    }
}

/// FADD to FDIVR in all forms.
pub(super) fn arithmetic(cpu: &mut Cpu, insn: u64, address: u64, offset: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    let register = insn.format == Format::None;
    let mem = if register { 0 } else { cpu.load_flags(insn.format.ty(), address, insn.access)? };
    let x = &cpu.state.x87;
    let (to, from) = if insn.to_sti { (insn.i, 0) } else { (0, insn.i) };
    if x.is_empty(to) || register && x.is_empty(from) {
        if cpu.x87_underflow(insn.data(offset)) {
            cpu.state.x87.set_st(to, INDEFINITE);
            cpu.x87_pop(insn.pops);
        }
        return Ok(0);
    }
    let other = if register { x.st(from) } else { 0 };
    let r = host::arithmetic(insn.op, operand(insn.format))(x.fcw, x.st(to), other, mem);
    if cpu.x87_exceptions(r.sw & (sw::EXCEPTIONS | sw::C1), insn.data(offset)) {
        cpu.state.x87.set_st(to, r.st0);
        cpu.x87_pop(insn.pops);
    }
    Ok(0)
}

/// The arithmetic flags of a comparison's C3, C2, C0.
fn compare_flags(conditions: u16) -> u64 {
    let bit = |c: u16, f: u64| if conditions & c != 0 { f } else { 0 };
    bit(sw::C0, flag::CF) | bit(sw::C2, flag::PF) | bit(sw::C3, flag::ZF)
}

/// FCOM, FUCOM, FCOMI and their like. For the forms that set EFLAGS the result is what the arithmetic flags become.
pub(super) fn compare(cpu: &mut Cpu, insn: u64, address: u64, offset: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    let register = insn.format == Format::None;
    let mem = if register { 0 } else { cpu.load_flags(insn.format.ty(), address, insn.access)? };
    let to_flags = insn.op & compare_op::TO_FLAGS != 0;
    let x = &cpu.state.x87;
    let (found, conditions) = if x.is_empty(0) || register && x.is_empty(insn.i) {
        (sw::IE | sw::SF, sw::C0 | sw::C2 | sw::C3)
    } else {
        let unordered = insn.op & compare_op::UNORDERED != 0;
        let f: HostFn = if unordered { host::UCOMPARE } else { host::compare(operand(insn.format)) };
        let r = f(x.fcw, x.st(0), if register { x.st(insn.i) } else { 0 }, mem);
        (r.sw & sw::EXCEPTIONS, r.sw & (sw::C0 | sw::C2 | sw::C3))
    };
    // The forms that set EFLAGS leave the condition codes alone, C1 but for stack faults included (measured).
    let kept = if to_flags && found & sw::SF == 0 { cpu.state.x87.fsw & sw::C1 } else { 0 };
    let done = cpu.x87_exceptions(found | kept, insn.data(offset));
    // Unmasked exceptions keep the operands on the stack, but the outcome shows (measured).
    if !to_flags {
        let x = &mut cpu.state.x87;
        x.fsw = x.fsw & !(sw::C0 | sw::C2 | sw::C3) | conditions;
    }
    if done {
        cpu.x87_pop(insn.pops);
    }
    Ok(compare_flags(conditions))
}

/// How a function uses the stack.
enum Shape {
    /// ST(0) = f(ST(0)).
    One(HostFn),
    /// ST(0) = f(ST(0), ST(1)).
    Two(HostFn),
    /// ST(1) = f(ST(0), ST(1)), pop.
    TwoPop(HostFn),
    /// ST(0), ST(-1) = f(ST(0)).
    Push(HostFn),
    /// The same, if the operand is in range: C2 is clear.
    PushInRange(HostFn),
    /// Conditions only.
    Conditions(HostFn),
}

impl Shape {
    fn function(&self) -> HostFn {
        match self {
            Shape::One(f) | Shape::Two(f) | Shape::TwoPop(f) => *f,
            Shape::Push(f) | Shape::PushInRange(f) | Shape::Conditions(f) => *f,
        }
    }
}

fn shape(op: u8) -> Shape {
    match op {
        unary_op::FSQRT => Shape::One(host::SQRT),
        unary_op::FRNDINT => Shape::One(host::ROUND),
        unary_op::F2XM1 => Shape::One(host::EXP2_MINUS_1),
        unary_op::FSIN => Shape::One(host::SIN),
        unary_op::FCOS => Shape::One(host::COS),
        unary_op::FSCALE => Shape::Two(host::SCALE),
        unary_op::FPREM => Shape::Two(host::REMAINDER),
        unary_op::FPREM1 => Shape::Two(host::REMAINDER_1),
        unary_op::FSINCOS => Shape::PushInRange(host::SINCOS),
        unary_op::FPTAN => Shape::PushInRange(host::TAN),
        unary_op::FXTRACT => Shape::Push(host::EXTRACT),
        unary_op::FPATAN => Shape::TwoPop(host::ATAN),
        unary_op::FYL2X => Shape::TwoPop(host::LOG2),
        unary_op::FYL2XP1 => Shape::TwoPop(host::LOG2_PLUS_1),
        unary_op::FTST => Shape::Conditions(host::TEST),
        _ => Shape::Conditions(host::EXAMINE),
    }
}

/// Condition codes other than C1 that an operation defines.
fn conditions(op: u8) -> u16 {
    match op {
        unary_op::FSIN | unary_op::FCOS | unary_op::FSINCOS | unary_op::FPTAN => sw::C2,
        unary_op::FPREM | unary_op::FPREM1 | unary_op::FTST | unary_op::FXAM => sw::C0 | sw::C2 | sw::C3,
        _ => 0,
    }
}

/// Functions of the top of the stack.
pub(super) fn unary(cpu: &mut Cpu, insn: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let op = Insn::unpack(insn).op;
    cpu.x87_start()?;
    match op {
        unary_op::FCHS | unary_op::FABS => sign(cpu, op),
        unary_op::FXAM => examine(cpu),
        _ => function(cpu, op),
    }
    Ok(0)
}

fn sign(cpu: &mut Cpu, op: u8) {
    const SIGN: u128 = 1 << 79;
    let v = if cpu.state.x87.is_empty(0) {
        if !cpu.x87_underflow(None) {
            return;
        }
        INDEFINITE
    } else {
        cpu.x87_exceptions(0, None);
        let v = cpu.state.x87.st(0);
        if op == unary_op::FCHS { v ^ SIGN } else { v & !SIGN }
    };
    cpu.state.x87.set_st(0, v);
}

/// FXAM classifies empty registers too (SDM 2A FXAM).
fn examine(cpu: &mut Cpu) {
    let x = &cpu.state.x87;
    let empty = x.is_empty(0);
    let r = host::EXAMINE(x.fcw, x.st(0), 0, 0);
    let codes = if empty { r.sw & sw::C1 | sw::C3 | sw::C0 } else { r.sw & sw::CONDITIONS };
    cpu.x87_pointer();
    cpu.state.x87.fsw = cpu.state.x87.fsw & !sw::CONDITIONS | codes;
}

fn function(cpu: &mut Cpu, op: u8) {
    let shape = shape(op);
    let x = &cpu.state.x87;
    let two = matches!(shape, Shape::Two(_) | Shape::TwoPop(_));
    if x.is_empty(0) || two && x.is_empty(1) {
        let masked = cpu.x87_underflow(None);
        return stack_fault(cpu, op, &shape, masked);
    }
    if matches!(shape, Shape::Push(_) | Shape::PushInRange(_)) && !x.is_empty(7) {
        let masked = cpu.x87_overflow(None);
        return stack_fault(cpu, op, &shape, masked);
    }
    let f = shape.function();
    let r = f(x.fcw, x.st(0), if two { x.st(1) } else { 0 }, 0);
    let done = cpu.x87_exceptions(r.sw & (sw::EXCEPTIONS | sw::C1), None);
    // A remainder that is a NaN, or was not taken, has no quotient bits to show: C0 and C3 stay (measured).
    let no_quotient = matches!(shape, Shape::Two(_)) && (!done || r.sw & sw::IE != 0 || is_nan(r.st0));
    let defined = conditions(op) & if no_quotient { sw::C2 } else { sw::CONDITIONS };
    let x = &mut cpu.state.x87;
    x.fsw = x.fsw & !defined | r.sw & defined;
    if done {
        write_results(cpu, &shape, r);
    }
}

fn is_nan(v: u128) -> bool {
    let p = Parts::new(v);
    p.exponent == 0x7fff && p.mantissa << 1 != 0
}

fn write_results(cpu: &mut Cpu, shape: &Shape, r: Outcome) {
    let x = &mut cpu.state.x87;
    match shape {
        Shape::Conditions(_) => {}
        Shape::One(_) | Shape::Two(_) => x.set_st(0, r.st0),
        Shape::TwoPop(_) => {
            x.set_st(1, r.st0);
            x.pop();
        }
        // Out of range: nothing was done.
        Shape::PushInRange(_) if r.sw & sw::C2 != 0 => {}
        Shape::Push(_) | Shape::PushInRange(_) => {
            x.set_st(0, r.st1);
            x.push(r.st0);
        }
    }
}

/// Conditions after a stack fault, and, masked, its response: results are the indefinite.
fn stack_fault(cpu: &mut Cpu, op: u8, shape: &Shape, masked: bool) {
    let x = &mut cpu.state.x87;
    match shape {
        Shape::Conditions(_) => x.fsw |= sw::C0 | sw::C2 | sw::C3,
        _ => x.fsw &= !(conditions(op) & sw::C2),
    }
    if masked {
        let both = Outcome { sw: 0, st0: INDEFINITE, st1: INDEFINITE, mem: 0 };
        write_results(cpu, shape, both);
    }
}
