//! Passes over the IR: each one function over one block, a line in [`run`].

pub mod dead_flags;
pub mod flag_notes;

use crate::ir::Block;

/// All passes in order.
pub fn run(block: &mut Block) {
    dead_flags::run(block);
}
