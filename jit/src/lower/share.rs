//! TLB checks that serve several accesses ([`Span`]): the first one's check is widened as others are found that lie close.
//!
//! An access that needs no check of its own cannot fault, so nothing has to be stored to the state before it. A check
//! holds until code runs that may change translations: helpers, and what is not in line with the block.

use super::Lower;
use super::memory::{Host, Need};
use crate::mmu::span::Span;
use cranelift_codegen::ir::{InstructionData, Opcode, Value, ValueDef};

/// Most checks that are remembered.
const CHECKS: usize = 6;
/// How many additions of constants are looked through.
const DEPTH: usize = 64;

/// A check that was made, of offsets from a value.
#[derive(Clone, Copy)]
pub(super) struct Checked {
    pub root: Value,
    /// The host address that belongs to the root.
    pub base: Value,
    pub span: Span,
    /// The constants in the code for the span's ends.
    pub first: Value,
    pub last: Value,
    /// Is not to be widened.
    pub fixed: bool,
}

/// The checks of a region, and which of them hold.
#[derive(Default)]
pub(super) struct Checks {
    made: Vec<Checked>,
    /// The newest last.
    holding: Holding,
}

/// Numbers of checks. Where several blocks go on with one check, each may widen it.
pub(super) type Holding = Vec<usize>;

impl Checks {
    pub(super) fn add(&mut self, checked: Checked) {
        if self.holding.len() == CHECKS {
            self.holding.remove(0);
        }
        self.holding.push(self.made.len());
        self.made.push(checked);
    }

    /// Those that hold.
    pub(super) fn holding(&self) -> Holding {
        self.holding.clone()
    }

    /// From here on these hold.
    pub(super) fn set_holding(&mut self, holding: Holding) {
        self.holding = holding;
    }
}

impl Lower<'_, '_> {
    /// The value that `v` is a constant away from, and the constant.
    pub(super) fn root(&self, v: Value) -> (Value, i64) {
        let dfg = &self.b.func.dfg;
        let (mut v, mut offset) = (dfg.resolve_aliases(v), 0i64);
        for _ in 0..DEPTH {
            let ValueDef::Result(inst, _) = dfg.value_def(v) else { break };
            let InstructionData::Binary { opcode, args: [a, b] } = dfg.insts[inst] else { break };
            let Some(constant) = self.folded(b, 0) else { break };
            offset = match opcode {
                Opcode::Iadd => offset.wrapping_add(constant),
                Opcode::Isub => offset.wrapping_sub(constant),
                _ => break,
            };
            v = dfg.resolve_aliases(a);
        }
        (v, offset)
    }

    /// Where an access goes on the host if a check made before serves it too, which is widened for it.
    pub(super) fn share(&mut self, base: Value, offset: i64, bytes: u64, need: Need) -> Option<Host> {
        let (root, known) = self.root(base);
        let at = known.wrapping_add(offset);
        let access = Span::of(at, bytes as i64, need.write(), need.aligned());
        let Checks { made, holding } = &mut self.checks;
        let (n, span) = holding.iter().rev().find_map(|n| {
            let checked = made.get(*n).filter(|checked| checked.root == root && need != Need::Atomic)?;
            Some((*n, checked.span.with(access, checked.fixed)?))
        })?;
        made[n].span = span;
        let Checked { base, first, last, .. } = made[n];
        self.set_constant(first, span.first);
        self.set_constant(last, span.last);
        Some(Host { base, offset: at as i32 })
    }

    /// Gives a constant that was put into the code before another value.
    fn set_constant(&mut self, v: Value, to: i64) {
        let dfg = &mut self.b.func.dfg;
        if let ValueDef::Result(inst, _) = dfg.value_def(v)
            && let InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } = &mut dfg.insts[inst]
        {
            *imm = to.into();
        }
    }
}
