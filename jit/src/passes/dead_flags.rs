//! Removes computations that nobody can see: flags overwritten before a reader, a fault or the block's end, and
//! temporaries that nothing reads (often what only such flags were made from).

use crate::helpers::{self, HelperId, effect};
use crate::ir::build::vec_bytes;
use crate::ir::op::{Field, Traits};
use crate::ir::{Block, Inst, Op, VVal, Val};

/// Runs the pass.
pub fn run(block: &mut Block) {
    let mut live = true;
    let mut stores_in: Option<u16> = None;
    let mut temps = Temps::default();
    // What stays gathers at the end, from here on.
    let mut kept = block.insts.len();
    let mut next_off = None;
    for n in (0..block.insts.len()).rev() {
        let i = &block.insts[n];
        let ends = next_off != Some(i.off);
        next_off = Some(i.off);
        temps.enter(i);
        if temps.unread(i) {
            continue;
        }
        // An instruction that stores may turn out to overwrite this block: execution then stops after it, with the
        // flags it leaves.
        let traits = i.op.info().traits;
        if ends && stores_in != Some(i.off) && stores(&block.insts[..=n]) {
            live = true;
            stores_in = Some(i.off);
        }
        let (reads, sets) = flag_use(i);
        if sets && !live && !traits.has(Traits::FAULT) {
            continue;
        }
        temps.read_by(i);
        if sets {
            live = traits.has(Traits::MAY_SET_FLAGS) && live;
        }
        if reads || i.op == Op::Exit || traits.has(Traits::FAULT) && faults(i) {
            live = true;
        }
        kept -= 1;
        block.insts[kept] = block.insts[n];
    }
    block.insts.drain(..kept);
}

/// Temporaries of the guest instruction at hand that a later operation reads, one bit each.
#[derive(Default)]
struct Temps {
    off: u16,
    ints: u64,
    vecs: u64,
}

impl Temps {
    /// Temporaries live within one guest instruction.
    fn enter(&mut self, i: &Inst) {
        if self.off != i.off {
            *self = Self { off: i.off, ..Self::default() };
        }
    }

    /// The operation only makes a temporary, and nothing reads it.
    fn unread(&self, i: &Inst) -> bool {
        let info = i.op.info();
        let pure = match i.op {
            Op::Call => helpers::helper(HelperId(i.imm as u16)).effects & effect::PURE != 0,
            _ => info.traits == Traits::PURE || info.traits == Traits::READS_FLAGS,
        };
        pure && match info.fields[0] {
            Field::Int | Field::IntOpt => (Val::TEMP0..64).contains(&i.d) && self.ints >> i.d & 1 == 0,
            Field::Vec => (VVal::TEMP0..64).contains(&i.d) && self.vecs >> i.d & 1 == 0,
            _ => false,
        }
    }

    /// Takes the operation's result out and its operands in.
    fn read_by(&mut self, i: &Inst) {
        let fields = i.op.info().fields;
        match fields[0] {
            Field::Int | Field::IntOpt if i.d < 64 => self.ints &= !(1 << i.d),
            Field::Vec if i.d < 64 => self.vecs &= !(1 << i.d),
            _ => {}
        }
        for (field, v) in fields[1..].iter().zip([i.a, i.b, i.c]) {
            match field {
                Field::Int | Field::IntOrImm | Field::IntOpt if v < 64 => self.ints |= 1 << v,
                Field::Vec if v < 64 => self.vecs |= 1 << v,
                _ => {}
            }
        }
        if i.op == Op::VStore && vec_bytes(i.ty) == 32 {
            self.vecs |= 1 << VVal(i.b).high().0.min(63);
        }
    }
}

/// For each operation that sets flags, whether they must be in the state: somebody may look after a fault or an exit.
/// Readers in the block itself do not count, they get the flags as values; `setflagsif`, which keeps old ones, does.
/// `room`: memory for the answer.
pub fn visible(block: &Block, live_out: bool, room: Vec<bool>) -> Vec<bool> {
    visible_to(block, live_out, true, room)
}

/// The same, but for what accesses to memory may show that fault, and exits.
pub fn visible_without_accesses(block: &Block, live_out: bool, room: Vec<bool>) -> Vec<bool> {
    visible_to(block, live_out, false, room)
}

fn visible_to(block: &Block, live_out: bool, accesses: bool, room: Vec<bool>) -> Vec<bool> {
    let mut live = live_out;
    let mut out = room;
    out.clear();
    out.resize(block.insts.len(), false);
    for (n, i) in block.insts.iter().enumerate().rev() {
        let traits = i.op.info().traits;
        let ends = block.insts.get(n + 1).is_none_or(|next| next.off != i.off);
        let counts = accesses || !shows(i.op);
        if ends && counts && stores(&block.insts[..=n]) {
            live = true;
        }
        let (reads, sets) = flag_use(i);
        if sets {
            out[n] = live;
            live = live && traits.has(Traits::MAY_SET_FLAGS);
        }
        if i.op == Op::Call && reads || counts && (i.op == Op::Exit || traits.has(Traits::FAULT) && faults(i)) {
            live = true;
        }
    }
    out
}

/// Whether nobody looks at the flags that the guest instruction of operation `n` sets, given what [`visible`] says.
pub fn in_vain(block: &Block, visible: &[bool], n: usize) -> bool {
    let off = block.insts[n].off;
    let mut set = false;
    for (i, visible) in block.insts.iter().zip(visible).skip(n) {
        if i.off != off && !set {
            return true;
        }
        let (reads, sets) = flag_use(i);
        if set && reads || sets && !set && *visible {
            return false;
        }
        if set && sets {
            return true;
        }
        set |= sets;
    }
    true
}

/// What a block does with the flags that there are at its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtEntry {
    /// Nobody looks at them: the block sets all of them first.
    Dead,
    /// It reads them, goes on with them to other blocks, or accesses show them: who knows their values need not store them.
    AtHand,
    /// They must be in the state.
    InState,
}

impl AtEntry {
    /// What `block` does with them.
    pub fn of(block: &Block) -> Self {
        let mut seen = Self::Dead;
        for i in &block.insts {
            let (reads, sets) = flag_use(i);
            let faults = i.op.info().traits.has(Traits::FAULT) && faults(i);
            if may_set(i) || i.op == Op::Call && reads || faults && !is_access(i.op) {
                return Self::InState;
            }
            if reads || faults {
                seen = Self::AtHand;
            }
            if sets {
                return seen;
            }
            if i.op == Op::Call {
                // Execution may stop behind it.
                return Self::InState;
            }
        }
        match block.insts.last() {
            Some(i) if matches!(i.op, Op::Jmp | Op::Br) => Self::AtHand,
            _ => Self::InState,
        }
    }
}

/// The guest instruction that the operations end with changes memory.
fn stores(insts: &[Inst]) -> bool {
    let off = insts.last().map(|i| i.off);
    insts
        .iter()
        .rev()
        .take_while(|i| Some(i.off) == off)
        .any(|i| matches!(i.op, Op::Store | Op::VStore | Op::Rmw | Op::Cas | Op::Call))
}

fn faults(i: &Inst) -> bool {
    i.op != Op::Call || helpers::helper(HelperId(i.imm as u16)).effects & effect::FAULTS != 0
}

/// The operation's way to fault is a TLB check.
pub fn is_access(op: Op) -> bool {
    matches!(op, Op::Load | Op::Store | Op::Rmw | Op::Cas | Op::VLoad | Op::VStore)
}

/// The operation shows the flags where it leads out of the code only, which has its place beside it.
pub fn shows(op: Op) -> bool {
    is_access(op) || op == Op::Exit
}

/// The operation sets the flags in any case.
pub fn overwrites(i: &Inst) -> bool {
    flag_use(i).1 && !may_set(i)
}

/// The operation sets the flags or keeps those that there are.
pub fn may_set(i: &Inst) -> bool {
    i.op.info().traits.has(Traits::MAY_SET_FLAGS)
}

/// Whether an operation reads and sets the flags.
fn flag_use(i: &Inst) -> (bool, bool) {
    if i.op == Op::Call {
        let e = helpers::helper(HelperId(i.imm as u16)).effects;
        return (e & effect::READS_FLAGS != 0, e & effect::SETS_FLAGS != 0);
    }
    let t = i.op.info().traits;
    let sets = t.has(Traits::SETS_FLAGS) || t.has(Traits::MAY_SET_FLAGS);
    (t.has(Traits::READS_FLAGS), sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::flags::CcKind;
    use crate::ir::{Builder, Ty, Val};

    fn block(build: impl FnOnce(&mut Builder)) -> Block {
        let mut b = Builder::default();
        build(&mut b);
        Block { rip: 0, mode: 0, len: 0, count: 0, insts: b.finish() }
    }

    fn flag_ops(b: &Block) -> usize {
        b.insts.iter().filter(|i| i.op == Op::SetFlags).count()
    }

    #[test]
    fn overwritten_flags_go_and_visible_ones_stay() {
        let rax = Val::gpr(0);
        let mut b = block(|b| {
            b.start_insn(0);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(2);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(4);
            b.jmp(0);
        });
        run(&mut b);
        assert_eq!(flag_ops(&b), 1);
        let mut b = block(|b| {
            b.start_insn(0);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(2);
            b.load(Ty::I32, rax, 0, 0);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(4);
            b.jmp(0);
        });
        run(&mut b);
        assert_eq!(flag_ops(&b), 2, "a load may fault: the flags before it are visible");
    }

    #[test]
    fn what_only_dead_flags_are_made_from_goes_with_them() {
        let rax = Val::gpr(0);
        let mut b = block(|b| {
            b.start_insn(0);
            let flags = b.get_flags();
            let word = b.op2(Op::Or, Ty::I64, flags, 1);
            b.set_flags_raw(word);
            b.start_insn(1);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(3);
            b.jmp(0);
        });
        run(&mut b);
        assert_eq!(b.insts.iter().map(|i| i.op).collect::<Vec<_>>(), [Op::SetFlags, Op::Jmp]);
        let mut b = block(|b| {
            b.start_insn(0);
            let kept = b.op2(Op::Add, Ty::I64, rax, 1);
            b.op2(Op::Add, Ty::I64, kept, 1);
            b.load(Ty::I64, kept, 0, 0);
            b.start_insn(3);
            b.jmp(0);
        });
        run(&mut b);
        assert_eq!(b.insts.iter().map(|i| i.op).collect::<Vec<_>>(), [Op::Add, Op::Load, Op::Jmp]);
    }

    #[test]
    fn a_reader_keeps_them() {
        let rax = Val::gpr(0);
        let mut b = block(|b| {
            b.start_insn(0);
            b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
            b.start_insn(2);
            let c = b.get_cond(4);
            b.set_flags(CcKind::Logic, Ty::I32, c, 0);
            b.start_insn(4);
            b.jmp(0);
        });
        run(&mut b);
        assert_eq!(flag_ops(&b), 2);
    }

    #[test]
    fn a_block_tells_where_it_wants_the_flags_that_it_finds() {
        let (rax, rbx) = (Val::gpr(0), Val::gpr(3));
        let set = |b: &mut Builder| b.set_flags(CcKind::Logic, Ty::I32, rax, 0);
        let jump = |b: &mut Builder| {
            b.start_insn(8);
            b.jmp(0);
        };
        let of = |build: &dyn Fn(&mut Builder)| {
            AtEntry::of(&block(|b| {
                b.start_insn(0);
                build(b);
            }))
        };
        let sets = |b: &mut Builder| {
            set(b);
            jump(b);
        };
        assert_eq!(of(&sets), AtEntry::Dead);
        let loads_and_sets = |b: &mut Builder| {
            let _ = b.load(Ty::I32, rbx, 0, 0);
            sets(b);
        };
        assert_eq!(of(&loads_and_sets), AtEntry::AtHand);
        let reads_and_sets = |b: &mut Builder| {
            let _ = b.get_cond(4);
            sets(b);
        };
        assert_eq!(of(&reads_and_sets), AtEntry::AtHand);
        assert_eq!(of(&jump), AtEntry::AtHand, "the next block may look");
        assert_eq!(of(&|b| b.dispatch()), AtEntry::InState);
    }
}
