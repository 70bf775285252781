//! MOVS, STOS, LODS, SCAS, CMPS. Single forms are IR; repeated ones call a helper that works page-wise, returns to let
//! interrupts in, and is then entered again.

use super::operand::{Gpr, Mem, segment_flags, segment_number};
use super::{Flow, Lifter};
use crate::helpers::string as helper;
use crate::ir::flags::CcKind;
use crate::ir::op::Op;
use crate::ir::{Ty, Val};
use crate::state::{CpuState, flag, mode, reg};
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::mem::offset_of;

/// One instruction's parameters.
struct Form {
    /// Element width.
    ty: Ty,
    /// Address width.
    address: Ty,
    /// Segment of the source.
    seg: usize,
}

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    if !i.is_string_instruction() {
        return None;
    }
    use Mnemonic::*;
    let rep = i.has_rep_prefix() || i.has_repne_prefix();
    let f = form(i);
    match i.mnemonic() {
        Movsb | Movsw | Movsd | Movsq if rep => return Some(l.repeated(helper::REP_MOVS, &f, false)),
        Stosb | Stosw | Stosd | Stosq if rep => return Some(l.repeated(helper::REP_STOS, &f, false)),
        Lodsb | Lodsw | Lodsd | Lodsq if rep => return Some(l.repeated(helper::REP_LODS, &f, false)),
        Scasb | Scasw | Scasd | Scasq if rep => {
            return Some(l.repeated(helper::REP_SCAS, &f, i.has_repne_prefix()));
        }
        Cmpsb | Cmpsw | Cmpsd | Cmpsq if rep => {
            return Some(l.repeated(helper::REP_CMPS, &f, i.has_repne_prefix()));
        }
        Movsb | Movsw | Movsd | Movsq => l.movs(&f),
        Stosb | Stosw | Stosd | Stosq => l.stos(&f),
        Lodsb | Lodsw | Lodsd | Lodsq => l.lods(&f),
        Scasb | Scasw | Scasd | Scasq => l.scas(&f),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => l.cmps(&f),
        _ => return None,
    }
    Some(Flow::Next)
}

fn form(i: &Instruction) -> Form {
    let address = (0..i.op_count())
        .find_map(|n| match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Ty::I16),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Ty::I32),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Ty::I64),
            _ => None,
        })
        .unwrap_or(Ty::I64);
    Form { ty: Ty::from_bytes(i.memory_size().size()), address, seg: segment_number(i.memory_segment()) }
}

impl Lifter<'_> {
    /// A repeated form: while the helper says there is more, the block ends at the instruction itself.
    fn repeated(&mut self, id: crate::helpers::HelperId, f: &Form, until_equal: bool) -> Flow {
        let moves = if id == helper::REP_MOVS || id == helper::REP_STOS { helper::MOVES } else { 0 };
        let how = self.b.iconst((helper::pack(f.ty, f.address, f.seg, until_equal) | moves) as i64);
        let again = self.b.call(id, &[how]);
        if self.has(mode::COUNTED) {
            // Where it stops on the way depends on who wants something when: it counts when it is done.
            let done = self.b.op2(Op::Xor, Ty::I64, again, 1);
            self.b.count(Some(done), 0);
        }
        self.b.br(again, self.rip);
        Flow::End
    }

    /// Linear address of `[rSI]` or `[rDI]`.
    fn string_address(&mut self, f: &Form, n: usize, seg: usize, write: bool) -> Val {
        let r = Val::gpr(n);
        let ea = if f.address == Ty::I64 { r } else { self.b.op1(Op::Mov, f.address, r) };
        let bytes = f.ty.bytes() as usize;
        let addr = self.segmented(seg, ea, bytes, write);
        self.check_alignment(Mem { addr, disp: 0, flags: 0 }, bytes);
        addr
    }

    fn load_source(&mut self, f: &Form) -> Val {
        let a = self.string_address(f, reg::RSI, f.seg, false);
        self.b.load(f.ty, a, 0, segment_flags(f.seg))
    }

    /// What to subtract from rSI and rDI: the element size negated, positive where DF is set.
    fn step(&mut self, f: &Form) -> Val {
        let size = f.ty.bytes() as i64;
        let rflags = self.b.get_state(Ty::I64, offset_of!(CpuState, rflags));
        let shift = flag::DF.trailing_zeros() as i64 - 1 - f.ty as i64;
        let moved = self.b.op2(Op::Shr, Ty::I64, rflags, shift);
        let twice = self.b.op2(Op::And, Ty::I64, moved, 2 * size);
        self.b.op2(Op::Sub, Ty::I64, twice, size)
    }

    fn advance(&mut self, f: &Form, n: usize, step: Val) {
        if f.address >= Ty::I32 {
            return self.b.op2_to(Op::Sub, f.address, Val::gpr(n), Val::gpr(n), step);
        }
        let v = self.b.op2(Op::Sub, f.address, Val::gpr(n), step);
        self.write_gpr(Gpr { n, ty: f.address, high: false }, v);
    }

    fn movs(&mut self, f: &Form) {
        let v = self.load_source(f);
        let d = self.string_address(f, reg::RDI, reg::ES, true);
        self.b.store(f.ty, d, 0, v, 0);
        let step = self.step(f);
        self.advance(f, reg::RSI, step);
        self.advance(f, reg::RDI, step);
    }

    fn stos(&mut self, f: &Form) {
        let d = self.string_address(f, reg::RDI, reg::ES, true);
        self.b.store(f.ty, d, 0, Val::gpr(reg::RAX), 0);
        let step = self.step(f);
        self.advance(f, reg::RDI, step);
    }

    fn lods(&mut self, f: &Form) {
        let v = self.load_source(f);
        self.write_gpr(Gpr { n: reg::RAX, ty: f.ty, high: false }, v);
        let step = self.step(f);
        self.advance(f, reg::RSI, step);
    }

    fn scas(&mut self, f: &Form) {
        let d = self.string_address(f, reg::RDI, reg::ES, false);
        let v = self.b.load(f.ty, d, 0, 0);
        let res = self.b.op2(Op::Sub, f.ty, Val::gpr(reg::RAX), v);
        self.b.set_flags(CcKind::Sub, f.ty, res, v);
        let step = self.step(f);
        self.advance(f, reg::RDI, step);
    }

    fn cmps(&mut self, f: &Form) {
        // Silicon reads ES:rDI first: its fault wins where both would fault.
        let d = self.string_address(f, reg::RDI, reg::ES, false);
        let v = self.b.load(f.ty, d, 0, 0);
        let a = self.load_source(f);
        let res = self.b.op2(Op::Sub, f.ty, a, v);
        self.b.set_flags(CcKind::Sub, f.ty, res, v);
        let step = self.step(f);
        self.advance(f, reg::RSI, step);
        self.advance(f, reg::RDI, step);
    }
}
