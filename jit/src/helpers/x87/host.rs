//! x87 operations on the host's x87: the operands are loaded exactly, the instruction runs under the guest's control
//! word, unmasked exceptions included, and its status word is read back before anything could trap. So results, rounding,
//! C1 and the responses to unmasked exceptions are the silicon's.

use std::arch::asm;

/// Bits of the status word that FNCLEX clears: exceptions, stack fault, summary.
mod sw {
    pub const FLAGS: u16 = 0xff;
}

/// Operands and results, at the offsets that the assembly below names.
#[repr(C, align(16))]
struct Slots {
    /// 0: becomes ST(0).
    a: u128,
    /// 16: becomes ST(1).
    b: u128,
    /// 32: ST(0) afterwards.
    r0: u128,
    /// 48: ST(1) afterwards.
    r1: u128,
    /// 64: memory operand.
    mem: u64,
    /// 72: the guest's control word.
    cw: u16,
    /// 74: the host's.
    host: u16,
}

/// What an operation left: the host's status word, ST(0) and ST(1). After an unmasked invalid, denormal or
/// division exception ST(0) and ST(1) are the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exceptions and conditions.
    pub sw: u16,
    /// ST(0).
    pub st0: u128,
    /// ST(1), or nonsense if there is none.
    pub st1: u128,
    /// Memory operand, for stores.
    pub mem: u64,
}

/// Saves the host's registers as FNSAVE does, which then are as FNINIT leaves them.
pub fn save() -> [u8; super::native::IMAGE] {
    let mut image = [0; super::native::IMAGE];
    // SAFETY: writes the image's 108 bytes; the x87 stack is empty afterwards.
    unsafe {
        asm!("fnsave [{p}]", p = in(reg) &raw mut image,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack));
    }
    image
}

/// The control word's bits that matter to the host, with the rest as FNINIT sets them.
fn control(cw: u16) -> u16 {
    cw & 0x0f3f | 0x40
}

impl Slots {
    fn new(cw: u16, a: u128, b: u128, mem: u64) -> Self {
        Self { a, b, r0: 0, r1: 0, mem, cw: control(cw), host: super::state::FCW_INIT }
    }
    fn outcome(&self, sw: u16) -> Outcome {
        const VALUE: u128 = (1 << 80) - 1;
        Outcome { sw, st0: self.r0 & VALUE, st1: self.r1 & VALUE, mem: self.mem }
    }
}

/// Runs lines of assembly with ST(0) = a and ST(1) = b, between set-up and clean-up.
macro_rules! on_x87 {
    ($slots:ident, $op:expr, [$($after:literal),*]) => {{
        let sw: u16;
        if $slots.cw == $slots.host {
            // The usual control word is the host's own: the three instructions that cost most are left out.
            // SAFETY: works on the slots, ax and the x87 stack only, and leaves that empty; all exceptions are masked.
            unsafe {
                asm!("fld tbyte ptr [{p} + 16]", "fld tbyte ptr [{p}]", $op, "fnstsw ax", $($after,)*
                    p = in(reg) &raw mut $slots, out("ax") sw,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack));
            }
            if sw & sw::FLAGS != 0 {
                // SAFETY: clears the sticky flags of the host's status word and nothing else.
                unsafe { asm!("fnclex", options(nomem, nostack)) };
            }
        } else {
            // SAFETY: works on the slots, ax and the x87 stack only, and leaves that empty with the host's control word
            // and no exception pending. No instruction after the operation waits for exceptions before FNCLEX.
            unsafe {
                asm!("fldcw [{p} + 72]", "fld tbyte ptr [{p} + 16]", "fld tbyte ptr [{p}]", $op, "fnstsw ax", "fnclex",
                    "fldcw [{p} + 74]", $($after,)*
                    p = in(reg) &raw mut $slots, out("ax") sw,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack));
            }
        }
        sw
    }};
}

/// An operation that leaves the depth of the stack: result in ST(0).
macro_rules! keeps {
    ($op:expr) => {{
        fn f(cw: u16, a: u128, b: u128, mem: u64) -> Outcome {
            let mut s = Slots::new(cw, a, b, mem);
            let sw = on_x87!(s, $op, ["fstp tbyte ptr [{p} + 32]", "fstp st(0)"]);
            s.outcome(sw)
        }
        f
    }};
}

/// An operation that pushes or pops, maybe.
macro_rules! moves {
    ($op:expr) => {{
        fn f(cw: u16, a: u128, b: u128, mem: u64) -> Outcome {
            let mut s = Slots::new(cw, a, b, mem);
            let sw = on_x87!(s, $op, ["fstp tbyte ptr [{p} + 32]", "fstp tbyte ptr [{p} + 48]", "fninit"]);
            s.outcome(sw)
        }
        f
    }};
}

/// `f(control word, ST(0), ST(1), memory operand)`.
pub type HostFn = fn(u16, u128, u128, u64) -> Outcome;

/// Where the second operand of an arithmetic instruction or comparison is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// Another register.
    Register,
    /// Single precision.
    Single,
    /// Double precision.
    Double,
    /// 16-bit integer.
    Word,
    /// 32-bit integer.
    Dword,
}

macro_rules! five {
    ($operand:expr, $name:literal) => {
        match $operand {
            Operand::Register => keeps!(concat!("f", $name, " st(0), st(1)")),
            Operand::Single => keeps!(concat!("f", $name, " dword ptr [{p} + 64]")),
            Operand::Double => keeps!(concat!("f", $name, " qword ptr [{p} + 64]")),
            Operand::Word => keeps!(concat!("fi", $name, " word ptr [{p} + 64]")),
            Operand::Dword => keeps!(concat!("fi", $name, " dword ptr [{p} + 64]")),
        }
    };
}

/// Arithmetic by the three opcode bits: 0 add, 1 multiply, 4 subtract, 5 reversed, 6 divide, 7 reversed.
pub fn arithmetic(op: u8, operand: Operand) -> HostFn {
    match op & 7 {
        0 => five!(operand, "add"),
        1 => five!(operand, "mul"),
        4 => five!(operand, "sub"),
        5 => five!(operand, "subr"),
        6 => five!(operand, "div"),
        _ => five!(operand, "divr"),
    }
}

/// Ordered comparison.
pub fn compare(operand: Operand) -> HostFn {
    match operand {
        Operand::Register => keeps!("fcom st(1)"),
        Operand::Single => keeps!("fcom dword ptr [{p} + 64]"),
        Operand::Double => keeps!("fcom qword ptr [{p} + 64]"),
        Operand::Word => keeps!("ficom word ptr [{p} + 64]"),
        Operand::Dword => keeps!("ficom dword ptr [{p} + 64]"),
    }
}

/// Unordered comparison with ST(1).
pub const UCOMPARE: HostFn = keeps!("fucom st(1)");
/// Stores ST(0) in single precision.
pub const STORE_SINGLE: HostFn = keeps!("fst dword ptr [{p} + 64]");
/// Stores ST(0) in double precision.
pub const STORE_DOUBLE: HostFn = keeps!("fst qword ptr [{p} + 64]");

pub const TEST: HostFn = keeps!("ftst");
pub const EXAMINE: HostFn = keeps!("fxam");
pub const SQRT: HostFn = keeps!("fsqrt");
pub const ROUND: HostFn = keeps!("frndint");
pub const EXP2_MINUS_1: HostFn = keeps!("f2xm1");
pub const SIN: HostFn = keeps!("fsin");
pub const COS: HostFn = keeps!("fcos");
pub const SCALE: HostFn = keeps!("fscale");
pub const REMAINDER: HostFn = keeps!("fprem");
pub const REMAINDER_1: HostFn = keeps!("fprem1");
pub const SINCOS: HostFn = moves!("fsincos");
pub const TAN: HostFn = moves!("fptan");
pub const EXTRACT: HostFn = moves!("fxtract");
pub const ATAN: HostFn = moves!("fpatan");
pub const LOG2: HostFn = moves!("fyl2x");
pub const LOG2_PLUS_1: HostFn = moves!("fyl2xp1");

/// The constants, by the low bits of their opcode (D9 E8 to D9 EE); they round as the control word says.
pub fn constant(n: u8, cw: u16) -> u128 {
    let f: HostFn = match n {
        0 => moves!("fld1"),
        1 => moves!("fldl2t"),
        2 => moves!("fldl2e"),
        3 => moves!("fldpi"),
        4 => moves!("fldlg2"),
        5 => moves!("fldln2"),
        _ => moves!("fldz"),
    };
    f(cw, 0, 0, 0).st0
}
