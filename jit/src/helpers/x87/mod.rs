//! Helpers of the x87 family: each is one instruction, checks, memory access and exceptions included.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("x87 operations run on the host's x87: hosts other than x86-64 need 80-bit arithmetic in Rust");

mod arith;
mod control;
mod convert;
mod env;
mod host;
mod insn;
mod memory;
pub mod state;

use crate::helpers::effect::FAULTS;
use arith::{arithmetic, compare, unary};
use control::{emms, fclex, finit, fldcw, fstcw, fstsw, mmx_check, wait};
use env::{restore, save};
use memory::{conditional_move, load, stack, store};

pub use arith::{compare_op, unary_op};
pub use insn::{Format, Insn};
pub use memory::{stack_op, store_op};

// Where a is an [`Insn`], b is the linear address of the memory operand and c its offset in the segment.
crate::helper_family! { 4;
    /// FNINIT.
    FINIT = finit, 0;
    /// FNCLEX.
    FCLEX = fclex, 0;
    /// FLDCW of a.
    FLDCW = fldcw, FAULTS;
    /// Result: the control word.
    FSTCW = fstcw, 0;
    /// Result: the status word.
    FSTSW = fstsw, 0;
    /// Raises a pending exception.
    WAIT = wait, FAULTS;
    /// Raises a pending exception, before MMX instructions.
    MMX_CHECK = mmx_check, FAULTS;
    /// EMMS.
    EMMS = emms, 0;
    /// Pushes a memory operand: [`Insn`].
    LOAD = load, FAULTS;
    /// Stores ST(0): [`Insn`] with [`store_op`].
    STORE = store, FAULTS;
    /// Register moves and constants: [`Insn`] with [`stack_op`].
    STACK = stack, FAULTS;
    /// [`Insn`] in a, condition in b.
    FCMOV = conditional_move, FAULTS;
    /// Arithmetic: [`Insn`], operation by the three opcode bits.
    ARITHMETIC = arithmetic, FAULTS;
    /// Comparisons: [`Insn`] with [`compare_op`]; those to EFLAGS give the new flags.
    COMPARE = compare, FAULTS;
    /// Functions of the top of the stack: [`Insn`] with [`unary_op`].
    UNARY = unary, FAULTS;
    /// FNSTENV, FNSAVE to linear address a, b bytes.
    SAVE = save, FAULTS;
    /// FLDENV, FRSTOR from linear address a, b bytes.
    RESTORE = restore, FAULTS;
}

#[cfg(test)]
mod tests;
