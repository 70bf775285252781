//! Lazy flags. They go to the state where somebody may look; where the reader follows at once, the host's own flags serve.

use super::asm::{Alu, Mem, RAX, RCX, RDI, RDX, RSI, cc};
use super::{Emit, HostFlags, Target, state, val};
use crate::ir::flags::{CcKind, pack};
use crate::ir::op::Traits;
use crate::ir::vecop::VecToInt;
use crate::ir::{Inst, Op, Ty, Val};
use crate::lower::Thunk;
use crate::passes::flag_notes::{Note, Word};
use crate::state::{CpuState, flag};
use std::mem::offset_of;

/// Whether the code of an operation never changes the host's flags. What of these does so for some operands says so.
pub(super) fn leaves_host_flags(op: Op) -> bool {
    matches!(
        op,
        Op::Mov
            | Op::Sext
            | Op::Ins8
            | Op::Ins16
            | Op::Ins8h
            | Op::Ext8h
            | Op::Lea
            | Op::GetState
            | Op::SetState
            | Op::VMov
            | Op::VGetState
            | Op::VSetState
            | Op::ClearHigh
            | Op::SetFlags
            | Op::GetCond
            | Op::Count
    )
}

/// Whether condition `n` looks at CF.
fn reads_carry(n: u16) -> bool {
    matches!(n >> 1 & 7, 1 | 3)
}

/// What follows an operation that sets the flags.
pub(super) struct Readers {
    /// A condition is asked for while the host's flags still stand.
    soon: bool,
    /// Somebody looks when they stand no more.
    later: bool,
}

fn cc_op() -> Mem {
    state(offset_of!(CpuState, cc_op))
}

fn cc_res() -> Mem {
    state(offset_of!(CpuState, cc_res))
}

fn cc_src() -> Mem {
    state(offset_of!(CpuState, cc_src))
}

impl Emit<'_> {
    /// Who in the block reads the flags that operation `n` sets. `carry`: the host's CF is the guest's too.
    pub(super) fn readers(&self, n: usize, carry: bool) -> Readers {
        let (mut stand, mut out) = (true, Readers { soon: false, later: false });
        let rest = &self.block.insts[n + 1..];
        for (k, i) in rest.iter().enumerate() {
            match i.op {
                Op::GetCond if stand && (carry || !reads_carry(i.c)) => out.soon = true,
                Op::Select | Op::Exit if stand && self.reads_condition(n + 1 + k) => {}
                _ => {
                    let traits = i.op.info().traits;
                    out.later |= traits.has(Traits::READS_FLAGS) || traits.has(Traits::MAY_SET_FLAGS);
                    stand &= leaves_host_flags(i.op);
                }
            }
            if i.op.info().traits.has(Traits::SETS_FLAGS) {
                break;
            }
        }
        out
    }

    /// The operation at `n` is done with the `getcond` before it.
    fn reads_condition(&self, n: usize) -> bool {
        n > 0 && self.joins(n - 1)
    }

    /// The `getcond` at `n` has its only reader right behind it, which takes the host's condition.
    fn joins(&self, n: usize) -> bool {
        let (Some(i), Some(next)) = (self.block.insts.get(n), self.block.insts.get(n + 1)) else { return false };
        i.op == Op::GetCond
            && next.off == i.off
            && next.a == i.d
            && matches!(next.op, Op::Br | Op::Exit | Op::Select)
            && self.fates[n + 1].dies
    }

    pub(super) fn flag_op(&mut self, n: usize, i: &Inst, visible: bool) {
        match i.op {
            Op::SetFlags => self.set_flags(n, i, visible),
            Op::SetFlagsCarry => {
                let (res, src, carry) = (self.int(i.a), self.int(i.b), self.int(i.c));
                let kind = CcKind::from_u16(i.imm as u16);
                let base = pack(kind, i.ty) as i32;
                self.a.lea(Ty::I64, RAX, Mem { base: None, index: Some((carry, 2)), disp: base });
                self.a.store(Ty::I32, cc_op(), RAX);
                self.a.store(Ty::I64, cc_res(), res);
                self.a.store(Ty::I64, cc_src(), src);
                // Of sign and zero the two kinds speak alike.
                self.flags = Some((if kind == CcKind::Add { CcKind::AddCarry } else { CcKind::SubBorrow }, i.ty));
            }
            Op::SetFlagsIf => {
                let (res, src, cond) = (self.int(i.a), self.int(i.b), self.int(i.c));
                self.a.test(Ty::I64, cond, cond);
                let skip = self.a.jcc(cc::E);
                self.a.store_imm(Ty::I32, cc_op(), pack(CcKind::from_u16(i.imm as u16), i.ty) as i32);
                self.a.store(Ty::I64, cc_res(), res);
                self.a.store(Ty::I64, cc_src(), src);
                self.a.land(skip);
                self.flags = None;
            }
            _ => {
                self.before_call();
                self.a.load(Ty::I64, RSI, cc_res());
                self.a.load(Ty::I64, RDX, cc_src());
                self.a.load(Ty::I32, RDI, cc_op());
                self.call(Target::Thunk(Thunk::AllFlags));
                self.take_result(i.d);
            }
        }
    }

    fn set_flags(&mut self, n: usize, i: &Inst, visible: bool) {
        let kind = CcKind::from_u16(i.c);
        let res = self.int(i.a);
        let counts = matches!(kind, CcKind::Inc | CcKind::Dec);
        let mut native = self.host.is_some_and(|h| {
            let same = match kind {
                CcKind::Inc => h.kind == CcKind::Add,
                CcKind::Dec => h.kind == CcKind::Sub,
                _ => h.kind == kind,
            };
            h.value == i.a && h.ty == i.ty && same
        });
        self.fused = false;
        let readers = self.readers(n, !counts);
        if !native && kind == CcKind::Logic && readers.soon {
            self.a.test(i.ty, res, res);
            self.host = Some(HostFlags { value: i.a, ty: i.ty, kind });
            native = true;
        }
        let read = readers.later || readers.soon && !native;
        match self.notes.get(n) {
            Some(note) if !read => self.leave_to_note(i, note),
            _ if visible || read => self.store_flags(i, kind),
            _ => {}
        }
        self.flags = Some((kind, i.ty));
        self.fused = native;
        if !native {
            self.host = None;
        }
    }

    fn store_flags(&mut self, i: &Inst, kind: CcKind) {
        self.a.store_imm(Ty::I32, cc_op(), pack(kind, i.ty) as i32);
        self.store_result(i);
        self.store_source(i);
    }

    /// Stores of the flags what the note to the accesses behind cannot tell.
    fn leave_to_note(&mut self, i: &Inst, note: Note) {
        if note.stores_result() {
            self.store_result(i);
        }
        if note.stores_source() {
            self.store_source(i);
        }
        self.next_note = note;
    }

    /// Stores what `note` tells of the flags; changes RAX at most.
    pub(super) fn carry_out(&mut self, note: Note) {
        let Some((op, res, src)) = note.words() else { return };
        self.a.store_imm(Ty::I32, cc_op(), op as i32);
        for (word, place) in [(res, cc_res()), (src, cc_src())] {
            match word {
                Word::InState => {}
                Word::Constant(v) => self.store_const(place, v as u64),
                Word::Register(n) => {
                    self.a.load(Ty::I64, RAX, val(n));
                    self.a.store(Ty::I64, place, RAX);
                }
            }
        }
    }

    fn store_result(&mut self, i: &Inst) {
        let res = self.int(i.a);
        self.a.store(Ty::I64, cc_res(), res);
    }

    fn store_source(&mut self, i: &Inst) {
        if i.b == Val::IMM.0 {
            return self.store_const(cc_src(), i.imm as u64);
        }
        let src = self.int(i.b);
        self.a.store(Ty::I64, cc_src(), src);
    }

    /// A condition; together with the branch, exit or `select` that it is made for, where there is one.
    pub(super) fn get_cond(&mut self, n: usize, i: &Inst) -> usize {
        let cond = self.condition(i.c);
        if !self.joins(n) {
            self.set_condition(cond, i.d);
            return 1;
        }
        let next = self.block.insts[n + 1];
        self.regs.unlock();
        match next.op {
            Op::Br => self.branch(cond, &next),
            Op::Exit => self.exit_if(cond, &next),
            _ => self.choose(cond, &next),
        }
        2
    }

    /// Makes guest condition `n` a condition of the host's flags: its number.
    fn condition(&mut self, n: u16) -> u8 {
        let counts = matches!(self.flags, Some((CcKind::Inc | CcKind::Dec, _)));
        if self.fused && !(counts && reads_carry(n)) {
            return n as u8;
        }
        self.flags_clobbered();
        let Some((kind, ty)) = self.flags else { return self.condition_by_call(n) };
        match (kind, n >> 1 & 7) {
            (CcKind::Raw, test) => self.raw_condition(n, test),
            (CcKind::Logic, _) | (CcKind::Shl | CcKind::Shr | CcKind::AddCarry | CcKind::SubBorrow, 2 | 4) => {
                self.a.alu_imm(Alu::Cmp, ty, cc_res(), 0);
                n as u8
            }
            (CcKind::Bmi, 2 | 4) => {
                self.a.alu_imm(Alu::Cmp, ty, cc_res(), 0);
                n as u8
            }
            (CcKind::Sub, _) => {
                self.a.load(Ty::I64, RAX, cc_res());
                self.a.alu(Alu::Add, Ty::I64, RAX, cc_src());
                self.a.alu(Alu::Cmp, ty, RAX, cc_src());
                n as u8
            }
            (CcKind::Add, _) => {
                self.a.load(Ty::I64, RAX, cc_res());
                self.a.alu(Alu::Sub, Ty::I64, RAX, cc_src());
                self.a.alu(Alu::Add, ty, RAX, cc_src());
                n as u8
            }
            (CcKind::Inc | CcKind::Dec | CcKind::Shr, 1) => {
                // BT gives CF; AE and B are conditions of CF alone.
                self.a.bt0(cc_src());
                n as u8
            }
            (CcKind::Inc, 0 | 2 | 4..) => {
                self.a.load(Ty::I64, RAX, cc_res());
                self.a.alu_imm(Alu::Sub, Ty::I64, RAX, 1);
                self.a.alu_imm(Alu::Add, ty, RAX, 1);
                n as u8
            }
            (CcKind::Dec, 0 | 2 | 4..) => {
                self.a.load(Ty::I64, RAX, cc_res());
                self.a.alu_imm(Alu::Add, Ty::I64, RAX, 1);
                self.a.alu_imm(Alu::Sub, ty, RAX, 1);
                n as u8
            }
            (CcKind::Mul | CcKind::Bmi, 1) => {
                self.a.alu_imm(Alu::Cmp, ty, cc_src(), 0);
                // CF = source is not 0.
                if n & 1 == 0 { cc::NE } else { cc::E }
            }
            _ => self.condition_by_call(n),
        }
    }

    /// A condition of flags that are kept as they are.
    fn raw_condition(&mut self, n: u16, test: u16) -> u8 {
        let mask = match test {
            0 => flag::OF,
            1 => flag::CF,
            2 => flag::ZF,
            3 => flag::CF | flag::ZF,
            4 => flag::SF,
            5 => flag::PF,
            _ => return self.condition_by_call(n),
        };
        self.a.test_imm(cc_src(), mask as i32);
        if n & 1 == 0 { cc::NE } else { cc::E }
    }

    fn condition_by_call(&mut self, n: u16) -> u8 {
        self.before_call();
        self.a.load(Ty::I32, RSI, cc_op());
        self.a.load(Ty::I64, RDX, cc_res());
        self.a.load(Ty::I64, RCX, cc_src());
        self.a.mov_imm(RDI, n as u64);
        self.call(Target::Thunk(Thunk::Condition));
        self.a.test(Ty::I32, RAX, RAX);
        cc::NE
    }

    /// The comparison of floating-point operands at `n`, whose flags the host's instruction has just made: flags in
    /// RFLAGS layout for the `setflags` behind it. How many operations were done.
    pub(super) fn comparison_flags(&mut self, n: usize, i: &Inst, op: VecToInt) -> usize {
        let next = self.block.insts.get(n + 1).copied();
        let set = next.filter(|s| {
            s.op == Op::SetFlags && s.off == i.off && s.c == CcKind::Raw as u16 && s.b == i.d && op.compares_floats()
        });
        // None of these changes the flags. AH: SF, ZF, 0, AF, 0, PF, 1, CF; SF and AF are clear.
        self.a.lahf();
        self.a.movzx_ah(RDX);
        let r = self.scratch();
        self.a.lea(Ty::I64, r, Mem::at(RDX, -2));
        self.set(i.d, r);
        let Some(set) = set else { return 1 };
        self.store_flags(&set, CcKind::Raw);
        self.flags = Some((CcKind::Raw, set.ty));
        self.fused = true;
        2
    }
}
