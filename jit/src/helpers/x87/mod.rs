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
pub mod native;
pub mod state;

use crate::helpers::effect::{FAULTS, X87};
use arith::{arithmetic, compare, unary};
use control::{emms, fclex, finit, fldcw, fstcw, fstsw, mmx_check, wait};
pub use env::segmented_place;
use env::{restore, save};
use memory::{conditional_move, load, stack, store};

pub use arith::{compare_op, unary_op};
pub use insn::{Format, Insn};
pub use memory::{stack_op, store_op};

// Where a is an [`Insn`], b is the linear address of the memory operand and c its offset in the segment.
crate::helper_family! { 4;
    /// FNINIT.
    FINIT = finit, X87;
    /// FNCLEX.
    FCLEX = fclex, X87;
    /// FLDCW of a.
    FLDCW = fldcw, FAULTS | X87;
    /// Result: the control word.
    FSTCW = fstcw, 0;
    /// Result: the status word.
    FSTSW = fstsw, X87;
    /// Raises a pending exception.
    WAIT = wait, FAULTS | X87;
    /// Raises a pending exception, before MMX instructions.
    MMX_CHECK = mmx_check, FAULTS | X87;
    /// EMMS.
    EMMS = emms, X87;
    /// Pushes a memory operand: [`Insn`].
    LOAD = load, FAULTS | X87;
    /// Stores ST(0): [`Insn`] with [`store_op`].
    STORE = store, FAULTS | X87;
    /// Register moves and constants: [`Insn`] with [`stack_op`].
    STACK = stack, FAULTS | X87;
    /// [`Insn`] in a, condition in b.
    FCMOV = conditional_move, FAULTS | X87;
    /// Arithmetic: [`Insn`], operation by the three opcode bits.
    ARITHMETIC = arithmetic, FAULTS | X87;
    /// Comparisons: [`Insn`] with [`compare_op`]; those to EFLAGS give the new flags.
    COMPARE = compare, FAULTS | X87;
    /// Functions of the top of the stack: [`Insn`] with [`unary_op`].
    UNARY = unary, FAULTS | X87;
    /// FNSTENV, FNSAVE to linear address a, b bytes; c: [`segmented_place`] with the offset, where limits matter.
    SAVE = save, FAULTS | X87;
    /// FLDENV, FRSTOR from linear address a, b bytes; c as for FNSTENV.
    RESTORE = restore, FAULTS | X87;
}

#[cfg(test)]
mod tests;
