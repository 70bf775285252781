//! Semantics of the integer family.

use super::{Flow, Lifter};
use iced_x86::Instruction;

/// Lifts `i` if it belongs to this family.
pub fn lift(_l: &mut Lifter, _i: &Instruction) -> Option<Flow> {
    None
}
