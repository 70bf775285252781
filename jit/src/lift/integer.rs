//! Semantics of the integer family: one file per kind of instruction.

use super::{Flow, Lifter, alu, atomic, bits, mov, muldiv, shift, stack};
use iced_x86::Instruction;

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    alu::lift(l, i)
        .or_else(|| mov::lift(l, i))
        .or_else(|| stack::lift(l, i))
        .or_else(|| shift::lift(l, i))
        .or_else(|| bits::lift(l, i))
        .or_else(|| muldiv::lift(l, i))
        .or_else(|| atomic::lift(l, i))
}
