//! Values that registers have at the start of a guest block, so that loops do not go through the state.
//!
//! A block that is reached from one block alone goes on with that one's values. Where several ways meet, the registers
//! that are read from there on, or further round a loop that it is in, come as parameters of the CLIF block; who jumps there
//! loads what it does not know.

use super::{Known, Lower};
use crate::helpers::{self, HelperId};
use crate::ir::build::vec_bytes;
use crate::ir::op::Field;
use crate::ir::{Block, Inst, Op, VVal, Val};
use crate::state::{HIGH, VALS, VECS};
use cranelift_codegen::ir::types::{I8X16, I64};
use cranelift_codegen::ir::{BlockArg, Value};

/// Most vector registers that a block takes: the host has as many for all that the block does.
const MOST_VECS: usize = 10;

/// A set of registers, one bit each.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Registers {
    ints: u64,
    vecs: u128,
}

impl Registers {
    fn add(&mut self, field: Field, n: u16) {
        match field {
            Field::Int | Field::IntOrImm | Field::IntOpt if n < Val::TEMP0 => self.ints |= 1 << n,
            Field::Vec if n < VVal::TEMP0 => self.vecs |= 1 << n,
            _ => {}
        }
    }

    fn without(self, other: Self) -> Self {
        Self { ints: self.ints & !other.ints, vecs: self.vecs & !other.vecs }
    }

    fn or(self, other: Self) -> Self {
        Self { ints: self.ints | other.ints, vecs: self.vecs | other.vecs }
    }

    /// With at most [`MOST_VECS`] vectors.
    fn bounded(mut self) -> Self {
        while self.vecs.count_ones() as usize > MOST_VECS {
            self.vecs &= !(1 << (127 - self.vecs.leading_zeros()));
        }
        self
    }

    fn ints(self) -> impl Iterator<Item = u16> {
        (0..Val::TEMP0).filter(move |n| self.ints >> n & 1 != 0)
    }

    fn vecs(self) -> impl Iterator<Item = u16> {
        (0..VVal::TEMP0).filter(move |n| self.vecs >> n & 1 != 0)
    }
}

/// Registers that a block reads before it sets them, and those it sets.
fn use_of(block: &Block) -> (Registers, Registers) {
    let (mut reads, mut sets) = (Registers::default(), Registers::default());
    for i in &block.insts {
        let mut here = Registers::default();
        let fields = i.op.info().fields;
        // Loads and stores of 256 bits name the low half of a pair.
        let high = (matches!(i.op, Op::VLoad | Op::VStore) && vec_bytes(i.ty) == 32).then_some(HIGH as u16);
        for (field, n) in fields[1..].iter().zip([i.a, i.b, i.c]) {
            here.add(*field, n);
            high.inspect(|high| here.add(*field, n.saturating_add(*high)));
        }
        reads = reads.or(here.without(sets));
        sets.add(fields[0], i.d);
        high.inspect(|high| sets.add(fields[0], i.d.saturating_add(*high)));
        sets.ints |= set_by_helper(i);
        if i.op == Op::ClearHigh {
            sets.vecs |= u128::from(i.imm as u16) << HIGH;
        }
    }
    (reads, sets)
}

/// Registers that a helper sets: its result is in the state.
fn set_by_helper(i: &Inst) -> u64 {
    match i.op {
        Op::Call => u64::from(helpers::helper(HelperId(i.imm as u16)).effects) & 0xffff,
        _ => 0,
    }
}

/// What each block takes, given the block that alone leads to it, where there is one, and the blocks that each goes on to.
pub(super) fn taken(
    blocks: &[std::sync::Arc<Block>],
    sole: &[Option<usize>],
    next: &[[Option<usize>; 2]],
) -> Vec<Registers> {
    let uses: Vec<_> = blocks.iter().map(|block| use_of(block)).collect();
    let mut wanted: Vec<Registers> = uses.iter().map(|(reads, _)| *reads).collect();
    let reached = reached(next);
    // Values go on to a block that is reached from one alone, and round a loop: what only others read is in the state.
    let goes_on = |n: usize, to: usize| sole[to] == Some(n) || reached[to] >> n & 1 != 0;
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for n in (0..blocks.len()).rev() {
            let mut now = wanted[n];
            for to in next[n].into_iter().flatten().filter(|to| goes_on(n, *to)) {
                now = now.or(wanted[to].without(uses[n].1));
            }
            changed |= now != wanted[n];
            wanted[n] = now;
        }
    }
    let take = |(wanted, sole): (Registers, &Option<usize>)| match sole {
        Some(_) => Registers::default(),
        None => wanted.bounded(),
    };
    wanted.into_iter().zip(sole).map(take).collect()
}

/// For each block, those that it leads to in one or more steps, one bit each.
fn reached(next: &[[Option<usize>; 2]]) -> Vec<u64> {
    let mut reached = vec![0u64; next.len()];
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for n in (0..next.len()).rev() {
            let now = next[n].into_iter().flatten().fold(reached[n], |all, to| all | 1 << to | reached[to]);
            changed |= now != reached[n];
            reached[n] = now;
        }
    }
    reached
}

/// What is known of registers at the end of a block.
#[derive(Clone)]
pub(super) struct Values {
    known: [Known; VALS],
    vecs: [Option<Value>; VECS],
}

impl Lower<'_, '_> {
    /// What is known now.
    pub(super) fn values(&self) -> Values {
        Values { known: self.known, vecs: self.vecs }
    }

    /// Goes on with what was known elsewhere, where this code is reached from.
    pub(super) fn resume(&mut self, values: &Values) {
        (self.known, self.vecs) = (values.known, values.vecs);
    }

    /// Gives the CLIF blocks their parameters.
    pub(super) fn declare_parameters(&mut self) {
        for (n, taken) in self.taken.iter().enumerate() {
            for ty in taken.ints().map(|_| I64).chain(taken.vecs().map(|_| I8X16)) {
                self.b.append_block_param(self.blocks[n], ty);
            }
        }
    }

    /// Starts block `n`, that several ways lead to, with its parameters.
    pub(super) fn take_parameters(&mut self, n: usize) {
        (self.known, self.vecs) = ([Known::default(); VALS], [None; VECS]);
        let taken = self.taken[n];
        let mut parameters = self.b.block_params(self.blocks[n]).to_vec().into_iter();
        for r in taken.ints() {
            self.known[r as usize].value = parameters.next();
        }
        for r in taken.vecs() {
            self.vecs[r as usize] = parameters.next();
        }
    }

    /// What a jump to block `n` passes.
    pub(super) fn arguments(&mut self, n: usize) -> Vec<BlockArg> {
        let taken = self.taken[n];
        let ints = taken.ints().map(|r| self.int(r)).collect::<Vec<_>>();
        let vecs = taken.vecs().map(|r| self.vec(r)).collect::<Vec<_>>();
        ints.into_iter().chain(vecs).map(BlockArg::Value).collect()
    }
}
