//! TLB checks that serve several accesses: what a block reaches from one base is checked once, at the first access, for
//! all bytes together. They lie on one page nearly always; where they do not, the check fails and the instruction is
//! interpreted, as any is that crosses a page.
//!
//! An access that needs no check of its own cannot fault, so nothing has to be stored to the state before it. A check
//! holds until code runs that may change translations: helpers, and what is not in line with the block. Writes are
//! checked apart from reads: a page must not become dirty before it is written.

use super::Lower;
use super::memory::{Host, Need};
use cranelift_codegen::ir::{InstructionData, Opcode, Value, ValueDef};

/// Most bytes that one check covers: the more, the more often they cross a page.
const MOST: i64 = 256;
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
    pub need: Need,
    /// Offset of the first byte.
    pub first: i64,
    /// Offset of the last byte; for aligned accesses of `bytes` bytes, of the last one's first byte.
    pub last: i64,
    pub bytes: u64,
    /// The constants in the code for `first` and `last`.
    pub low: Value,
    pub high: Value,
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

impl Checked {
    /// First and last offset with which this check serves an access too.
    fn widened(&self, first: i64, bytes: u64, need: Need) -> Option<(i64, i64)> {
        if need == Need::Atomic || self.need == Need::Atomic || (need.write() && !self.need.write()) {
            return None;
        }
        let end = first.checked_add(bytes as i64)?;
        let low = self.first.min(first);
        let last = if self.need.aligned() {
            let size = self.bytes as i64;
            if need.aligned() && ((first - self.first) % size != 0 || bytes != self.bytes) {
                return None;
            }
            // Whole steps, so that all are aligned if one is.
            let steps = |distance: i64| (distance + size - 1).div_euclid(size) * size;
            let low = self.first - steps(self.first - low);
            return self.bounded(low, self.last + steps(end - size - self.last).max(0));
        } else if need.aligned() {
            return None;
        } else {
            self.last.max(end - 1)
        };
        self.bounded(low, last)
    }

    fn bounded(&self, first: i64, last: i64) -> Option<(i64, i64)> {
        let as_it_is = (first, last) == (self.first, self.last);
        let fits = (as_it_is || !self.fixed)
            && last - first <= MOST
            && i32::try_from(first).is_ok()
            && i32::try_from(last).is_ok();
        fits.then_some((first, last))
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
        let first = known.wrapping_add(offset);
        i32::try_from(first).ok()?;
        let Checks { made, holding } = &self.checks;
        let (n, (low, last)) = holding.iter().rev().find_map(|n| {
            let checked = made.get(*n).filter(|checked| checked.root == root)?;
            Some((*n, checked.widened(first, bytes, need)?))
        })?;
        let checked = &mut self.checks.made[n];
        (checked.first, checked.last) = (low, last);
        let Checked { base, low: low_value, high: high_value, .. } = *checked;
        self.set_constant(low_value, low);
        self.set_constant(high_value, last);
        Some(Host { base, offset: first as i32 })
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
