//! Semantics of the x87 instructions.

mod control;

use super::{Flow, Lifter};
use iced_x86::Instruction;

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    control::lift(l, i)
}
