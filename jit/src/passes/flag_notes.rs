//! Flags that only a fault would show. Most flags are overwritten before anybody reads them, but until then each access to
//! memory may fault and show them to a handler. Code does not store those: each TLB check carries a note ([`Note`]) of how
//! they are made from the guest's registers, which who handles a miss carries out before anything else.

use super::dead_flags;
use crate::ir::flags::{CcKind, pack};
use crate::ir::op::Field;
use crate::ir::{Block, Inst, Op, Val};
use crate::state::CpuState;

/// How the words of lazy flags are made, in the bits that [`Note::KIND_BITS`] of a check's kind leave:
/// `cc_op` (6 bits), where the result and the source are (5 bits each), a constant (12 bits), and a bit that says that there
/// is a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Note(u32);

/// Where a word of lazy flags is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// In its field of the state.
    InState,
    /// It is this.
    Constant(i64),
    /// In a guest register.
    Register(usize),
}

/// Numbers beyond those of the registers: the word is in the state, or the note's constant.
const IN_STATE: u32 = 16;
const CONSTANT: u32 = 17;

const OP: u32 = Note::KIND_BITS;
const RES: u32 = OP + 6;
const SRC: u32 = RES + 5;
const IMM: u32 = SRC + 5;
const PRESENT: u32 = 1 << 31;

const _: () = assert!(pack(CcKind::Bmi, crate::ir::Ty::I64) < 1 << 6 && IMM + 12 == 31);

impl Note {
    /// Low bits of a check's kind, which a note leaves alone.
    pub const KIND_BITS: u32 = 3;
    /// The state has the flags.
    pub const NONE: Self = Self(0);

    fn new(op: u32, res: u32, src: u32, imm: u32) -> Self {
        Self(PRESENT | op << OP | res << RES | src << SRC | imm << IMM)
    }

    /// A check's kind with the note.
    pub fn with_kind(self, kind: u32) -> u32 {
        self.0 | kind
    }

    /// The note in a kind, and the kind alone.
    pub fn split(word: u32) -> (Self, u32) {
        let kind = word & ((1 << Self::KIND_BITS) - 1);
        (Self(word ^ kind), kind)
    }

    /// The result must be stored where the flags are set.
    pub fn stores_result(self) -> bool {
        self.0 >> RES & 31 == IN_STATE
    }

    /// The source must be stored where the flags are set.
    pub fn stores_source(self) -> bool {
        self.0 >> SRC & 31 == IN_STATE
    }

    /// How the words of lazy flags are made: `cc_op`, result, source. `None`: the state has them.
    pub fn words(self) -> Option<(u32, Word, Word)> {
        let word = |shift: u32| match self.0 >> shift & 31 {
            IN_STATE => Word::InState,
            CONSTANT => Word::Constant(i64::from((self.0 << 1) as i32 >> 20)),
            n => Word::Register(n as usize & 15),
        };
        (self.0 & PRESENT != 0).then(|| (self.0 >> OP & 63, word(RES), word(SRC)))
    }

    /// Brings the flags in the state up to date. Its registers must be.
    pub fn carry_out(self, state: &mut CpuState) {
        let Some((op, res, src)) = self.words() else { return };
        let word = |word: Word, old: u64| match word {
            Word::InState => old,
            Word::Constant(v) => v as u64,
            Word::Register(n) => state.vals[n],
        };
        (state.cc_res, state.cc_src) = (word(res, state.cc_res), word(src, state.cc_src));
        state.cc_op = op;
    }
}

/// The notes of a block: for each operation whose flags nobody but handlers of faults in accesses may see, the note for the
/// accesses behind it.
#[derive(Default)]
pub struct Notes {
    of: Vec<Option<Note>>,
    /// Which flags are in the state where no access shows them.
    stored: Vec<bool>,
}

impl Notes {
    /// Makes those of `block`, whose flags are seen as `visible` says.
    pub fn make(&mut self, block: &Block, visible: &[bool], live_out: bool) {
        self.stored = dead_flags::visible_without_accesses(block, live_out, std::mem::take(&mut self.stored));
        let of = |(n, i): (usize, &Inst)| {
            (visible[n] && !self.stored[n] && i.op == Op::SetFlags).then(|| note(block, n, i)).flatten()
        };
        self.of.clear();
        self.of.extend(block.insts.iter().enumerate().map(of));
    }

    /// That of operation `n`.
    pub fn get(&self, n: usize) -> Option<Note> {
        self.of.get(n).copied().flatten()
    }
}

/// `None`: what comes behind may set other flags, or keep these.
fn note(block: &Block, n: usize, i: &Inst) -> Option<Note> {
    let behind = &block.insts[n + 1..];
    let end = behind.iter().position(dead_flags::overwrites).unwrap_or(behind.len());
    if behind[..end].iter().any(dead_flags::may_set) {
        return None;
    }
    let last = behind[..end].iter().rposition(|i| dead_flags::shows(i.op)).unwrap_or(0);
    let keeps = |r: u16| behind[..last].iter().all(|i| !writes(i, r));
    let register = |r: u16| if r < Val::TEMP0 && keeps(r) { u32::from(r) } else { IN_STATE };
    let (src, imm) = match i.b {
        b if b != Val::IMM.0 => (register(b), 0),
        _ if (-2048..2048).contains(&i.imm) => (CONSTANT, i.imm as u32 & 0xfff),
        _ => (IN_STATE, 0),
    };
    let op = pack(CcKind::from_u16(i.c), i.ty);
    Some(Note::new(op, register(i.a), src, imm))
}

/// The note for the accesses of `block` before it sets flags, if there are any, for flags that were made before it: `cc_op`, the
/// guest registers that hold the result and the source there, or the constant that the source is.
pub fn note_at_entry(block: &Block, op: u32, res: &[u16], src: &[u16], constant: Option<i64>) -> Option<Note> {
    let insts = &block.insts;
    let end = insts.iter().position(dead_flags::overwrites).unwrap_or(insts.len());
    let last = insts[..end].iter().rposition(|i| dead_flags::is_access(i.op))?;
    let kept = |r: &&u16| insts[..last].iter().all(|i| !writes(i, **r));
    let word = |registers: &[u16]| registers.iter().find(kept).map_or(IN_STATE, |r| u32::from(*r));
    let (src, imm) = match constant.filter(|c| (-2048..2048).contains(c)) {
        Some(c) => (CONSTANT, c as u32 & 0xfff),
        None => (word(src), 0),
    };
    Some(Note::new(op, word(res), src, imm))
}

/// The operation changes guest register `r`.
fn writes(i: &Inst, r: u16) -> bool {
    // Helpers may change any.
    i.op == Op::Call || i.d == r && matches!(i.op.info().fields[0], Field::Int | Field::IntOpt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, Ty};

    fn block(build: impl FnOnce(&mut Builder)) -> Block {
        let mut b = Builder::default();
        build(&mut b);
        Block { rip: 0, mode: 0, len: 0, count: 0, insts: b.finish() }
    }

    fn notes_of(block: &Block) -> Vec<Note> {
        let visible = dead_flags::visible(block, false, Vec::new());
        let mut notes = Notes::default();
        notes.make(block, &visible, false);
        notes.of.into_iter().flatten().collect()
    }

    #[test]
    fn what_registers_hold_is_not_stored() {
        let b = block(|b| {
            b.start_insn(0);
            b.op2_to(Op::Add, Ty::I64, Val(3), Val(3), Val(5));
            b.set_flags(CcKind::Add, Ty::I64, Val(3), Val(5));
            b.start_insn(3);
            let v = b.load(Ty::I64, Val(3), 0, 0);
            b.mov_to(Ty::I64, Val(3), v);
        });
        let [note] = notes_of(&b)[..] else { panic!("one note") };
        assert!(!note.stores_result() && !note.stores_source());
        let mut state = CpuState::zeroed();
        (state.vals[3], state.vals[5]) = (77, 66);
        Note::split(note.with_kind(5)).0.carry_out(&mut state);
        assert_eq!((state.cc_op, state.cc_res, state.cc_src), (pack(CcKind::Add, Ty::I64), 77, 66));
        assert_eq!(Note::split(note.with_kind(5)).1, 5);
    }

    #[test]
    fn what_is_overwritten_before_the_last_access_is_stored() {
        let b = block(|b| {
            b.start_insn(0);
            b.set_flags(CcKind::Sub, Ty::I32, Val(3), -7);
            b.start_insn(3);
            let v = b.load(Ty::I64, Val(1), 0, 0);
            b.mov_to(Ty::I64, Val(3), v);
            b.start_insn(6);
            b.load(Ty::I64, Val(1), 0, 0);
        });
        let [note] = notes_of(&b)[..] else { panic!("one note") };
        assert!(note.stores_result() && !note.stores_source());
        let mut state = CpuState::zeroed();
        state.cc_res = 9;
        note.carry_out(&mut state);
        assert_eq!((state.cc_op, state.cc_res, state.cc_src), (pack(CcKind::Sub, Ty::I32), 9, -7i64 as u64));
    }

    #[test]
    fn flags_that_somebody_reads_are_no_matter_of_notes() {
        let b = block(|b| {
            b.start_insn(0);
            b.set_flags(CcKind::Sub, Ty::I32, Val(3), 1);
            b.start_insn(3);
            b.load(Ty::I64, Val(1), 0, 0);
        });
        let visible = dead_flags::visible(&b, true, Vec::new());
        let mut notes = Notes::default();
        notes.make(&b, &visible, true);
        assert_eq!(notes.of.into_iter().flatten().count(), 0);
        let mut state = CpuState::zeroed();
        state.cc_op = 5;
        Note::NONE.carry_out(&mut state);
        assert_eq!(state.cc_op, 5);
    }
}
