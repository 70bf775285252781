//! Appends operations to a block. The lifter's only way to make IR.

use super::flags::CcKind;
use super::op::{Op, RmwOp};
use super::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use super::{Inst, Ty, VVal, Val, seg_addr};
use crate::helpers::HelperId;
use crate::state::VALS;

/// A right-hand operand: a value or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Src {
    /// A value.
    Val(Val),
    /// A constant.
    Imm(i64),
}

impl From<Val> for Src {
    fn from(v: Val) -> Self {
        Src::Val(v)
    }
}

impl From<i64> for Src {
    fn from(v: i64) -> Self {
        Src::Imm(v)
    }
}

/// Builds the operations of one block, one guest instruction after the other.
#[derive(Default)]
pub struct Builder {
    insts: Vec<Inst>,
    off: u16,
    len: u8,
    next: u16,
    vnext: u16,
    overflow: bool,
}

impl Builder {
    /// A builder that puts the operations into `room`, in place of what is there.
    pub fn with_room(mut room: Vec<Inst>) -> Self {
        room.clear();
        Self { insts: room, ..Self::default() }
    }

    /// Starts the guest instruction at byte `off` of the block: temporaries start anew.
    pub fn start_insn(&mut self, off: u16) {
        self.off = off;
        self.len = 0;
        self.next = Val::TEMP0;
        self.vnext = VVal::TEMP0;
    }

    /// Length of the instruction that was started.
    pub fn insn_len(&mut self, len: u8) {
        self.len = len;
    }

    /// All operations.
    pub fn finish(self) -> Vec<Inst> {
        debug_assert!(!self.overflow, "an instruction used too many temporaries");
        self.insts
    }

    /// A new temporary.
    pub fn temp(&mut self) -> Val {
        let v = self.next;
        self.overflow |= v as usize >= VALS;
        self.next = (v + 1).min(VALS as u16 - 1).max(v.min(VALS as u16 - 1));
        Val(v.min(VALS as u16 - 1))
    }

    /// A new vector temporary, or the low half of a pair.
    pub fn vtemp(&mut self) -> VVal {
        let v = self.vnext.min(VVal::TEMPS_END - 1);
        self.overflow |= self.vnext >= VVal::TEMPS_END;
        self.vnext = v + 1;
        VVal(v)
    }

    fn push(&mut self, op: Op, ty: Ty, fields: [u16; 4], imm: i64) {
        let [d, a, b, c] = fields;
        self.insts.push(Inst { op, ty, d, a, b, c, off: self.off, len: self.len, imm });
    }

    /// `d = op.ty a, b`, into a given destination.
    pub fn op2_to(&mut self, op: Op, ty: Ty, d: Val, a: Val, b: impl Into<Src>) {
        match b.into() {
            Src::Val(b) => self.push(op, ty, [d.0, a.0, b.0, Val::NONE.0], 0),
            Src::Imm(i) => self.push(op, ty, [d.0, a.0, Val::IMM.0, Val::NONE.0], i),
        }
    }

    /// `op.ty a, b` into a new temporary.
    pub fn op2(&mut self, op: Op, ty: Ty, a: Val, b: impl Into<Src>) -> Val {
        let d = self.temp();
        self.op2_to(op, ty, d, a, b);
        d
    }

    /// `d = op.ty a`.
    pub fn op1_to(&mut self, op: Op, ty: Ty, d: Val, a: Val) {
        self.push(op, ty, [d.0, a.0, Val::NONE.0, Val::NONE.0], 0);
    }

    /// `op.ty a` into a new temporary.
    pub fn op1(&mut self, op: Op, ty: Ty, a: Val) -> Val {
        let d = self.temp();
        self.op1_to(op, ty, d, a);
        d
    }

    /// `d = a`, cut to `ty`.
    pub fn mov_to(&mut self, ty: Ty, d: Val, a: impl Into<Src>) {
        match a.into() {
            Src::Val(a) => self.op1_to(Op::Mov, ty, d, a),
            Src::Imm(i) => self.push(Op::Mov, ty, [d.0, Val::IMM.0, Val::NONE.0, Val::NONE.0], i),
        }
    }

    /// A constant in a new temporary.
    pub fn iconst(&mut self, value: i64) -> Val {
        let d = self.temp();
        self.mov_to(Ty::I64, d, value);
        d
    }

    /// A source as a value (constants get a temporary).
    pub fn value(&mut self, s: Src) -> Val {
        match s {
            Src::Val(v) => v,
            Src::Imm(i) => self.iconst(i),
        }
    }

    /// `a != 0 ? b : c` in a new temporary.
    pub fn select(&mut self, ty: Ty, cond: Val, b: Val, c: Val) -> Val {
        let d = self.temp();
        self.select_to(ty, d, cond, b, c);
        d
    }

    /// `d = cond != 0 ? b : c`, cut to `ty`.
    pub fn select_to(&mut self, ty: Ty, d: Val, cond: Val, b: Val, c: Val) {
        self.push(Op::Select, ty, [d.0, cond.0, b.0, c.0], 0);
    }

    /// `a + (b << shift) + disp`, cut to `ty`, in `d`.
    pub fn lea_to(&mut self, ty: Ty, d: Val, a: Option<Val>, b: Option<Val>, shift: u8, disp: i64) {
        let f = |v: Option<Val>| v.unwrap_or(Val::NONE).0;
        self.push(Op::Lea, ty, [d.0, f(a), f(b), shift as u16 & 3], disp);
    }

    /// The field of width `ty` at `offset` of the state.
    pub fn get_state(&mut self, ty: Ty, offset: usize) -> Val {
        let d = self.temp();
        self.push(Op::GetState, ty, [d.0, Val::NONE.0, Val::NONE.0, Val::NONE.0], offset as i64);
        d
    }

    /// Sets the field of width `ty` at `offset` of the state.
    pub fn set_state(&mut self, ty: Ty, offset: usize, a: Val) {
        self.push(Op::SetState, ty, [Val::NONE.0, a.0, Val::NONE.0, Val::NONE.0], offset as i64);
    }

    /// Loads from linear address `a + disp`; `flags` from [`super::mem`].
    pub fn load(&mut self, ty: Ty, a: Val, disp: i64, flags: u16) -> Val {
        let d = self.temp();
        self.push(Op::Load, ty, [d.0, a.0, Val::NONE.0, flags], disp);
        d
    }

    /// As [`Builder::load`], into a given destination.
    pub fn load_to(&mut self, ty: Ty, d: Val, a: Val, disp: i64, flags: u16) {
        self.push(Op::Load, ty, [d.0, a.0, Val::NONE.0, flags], disp);
    }

    /// Stores to linear address `a + disp`.
    pub fn store(&mut self, ty: Ty, a: Val, disp: i64, value: Val, flags: u16) {
        self.push(Op::Store, ty, [Val::NONE.0, a.0, value.0, flags], disp);
    }

    /// Atomic read-modify-write: the old value.
    pub fn rmw(&mut self, op: RmwOp, ty: Ty, addr: Val, value: Val) -> Val {
        let d = self.temp();
        self.push(Op::Rmw, ty, [d.0, addr.0, value.0, Val::NONE.0], op as i64);
        d
    }

    /// Atomic compare-and-swap: the old value.
    pub fn cas(&mut self, ty: Ty, addr: Val, expected: Val, new: Val) -> Val {
        let d = self.temp();
        self.push(Op::Cas, ty, [d.0, addr.0, expected.0, new.0], 0);
        d
    }

    /// Linear address of offset `a` in segment `seg`, checked for an access of `bytes` bytes; `later`: it
    /// is the access that raises what is wrong.
    pub fn seg_addr(&mut self, seg: usize, a: Val, bytes: usize, write: bool, later: bool) -> Val {
        let d = self.temp();
        let how = (write as u64 * seg_addr::WRITE) | (later as u64 * seg_addr::LATER);
        let imm = seg as i64 | how as i64 | (bytes as i64) << 8;
        self.push(Op::SegAddr, Ty::I64, [d.0, a.0, Val::NONE.0, Val::NONE.0], imm);
        d
    }

    /// Flags from result and source.
    pub fn set_flags(&mut self, kind: CcKind, ty: Ty, res: Val, src: impl Into<Src>) {
        let (b, imm) = match src.into() {
            Src::Val(v) => (v.0, 0),
            Src::Imm(i) => (Val::IMM.0, i),
        };
        self.push(Op::SetFlags, ty, [Val::NONE.0, res.0, b, kind as u16], imm);
    }

    /// Flags of an addition or subtraction with carry in: `kind` is `Add` or `Sub`.
    pub fn set_flags_carry(&mut self, kind: CcKind, ty: Ty, res: Val, src: Val, carry: Val) {
        self.push(Op::SetFlagsCarry, ty, [Val::NONE.0, res.0, src.0, carry.0], kind as i64);
    }

    /// Flags as `set_flags` if `cond` is not zero.
    pub fn set_flags_if(&mut self, kind: CcKind, ty: Ty, res: Val, src: Val, cond: Val) {
        self.push(Op::SetFlagsIf, ty, [Val::NONE.0, res.0, src.0, cond.0], kind as i64);
    }

    /// All six arithmetic flags from a word in RFLAGS layout.
    pub fn set_flags_raw(&mut self, word: Val) {
        self.set_flags(CcKind::Raw, Ty::I64, word, word);
    }

    /// Condition `cc` as 0 or 1.
    pub fn get_cond(&mut self, cc: u16) -> Val {
        let d = self.temp();
        self.push(Op::GetCond, Ty::I64, [d.0, Val::NONE.0, Val::NONE.0, cc], 0);
        d
    }

    /// CF as 0 or 1.
    pub fn get_carry(&mut self) -> Val {
        self.get_cond(2)
    }

    /// The arithmetic flags in RFLAGS layout.
    pub fn get_flags(&mut self) -> Val {
        let d = self.temp();
        self.push(Op::GetFlags, Ty::I64, [d.0, Val::NONE.0, Val::NONE.0, Val::NONE.0], 0);
        d
    }

    /// `d = a`.
    pub fn vmov(&mut self, d: VVal, a: VVal) {
        self.push(Op::VMov, Ty::I64, [d.0, a.0, Val::NONE.0, Val::NONE.0], 0);
    }

    /// Loads 4, 8 or 16 bytes, zero-extended to 128 bits, or 32 to a pair.
    pub fn vload(&mut self, d: VVal, bytes: usize, a: Val, disp: i64, flags: u16) {
        self.push(Op::VLoad, vec_ty(bytes), [d.0, a.0, Val::NONE.0, flags], disp);
    }

    /// Stores the low 4, 8 or 16 bytes, or the 32 of a pair.
    pub fn vstore(&mut self, bytes: usize, a: Val, disp: i64, value: VVal, flags: u16) {
        self.push(Op::VStore, vec_ty(bytes), [Val::NONE.0, a.0, value.0, flags], disp);
    }

    /// `d = op(a, b, imm8)`.
    pub fn vec(&mut self, op: VecOp, d: VVal, a: VVal, b: VVal, imm8: u8) {
        self.push(Op::Vec, Ty::I64, [d.0, a.0, b.0, imm8 as u16], op as i64);
    }

    /// The high halves of the YMM registers in the mask become 0.
    pub fn clear_high(&mut self, mask: u16) {
        self.push(Op::ClearHigh, Ty::I64, [Val::NONE.0; 4], mask.into());
    }

    /// `d = op(a, b, c)`.
    pub fn fma(&mut self, op: FmaOp, d: VVal, a: VVal, b: VVal, c: VVal) {
        self.push(Op::Fma, Ty::I64, [d.0, a.0, b.0, c.0], op as i64);
    }

    /// Integer result of a vector operation.
    pub fn vec_to_int(&mut self, op: VecToInt, ty: Ty, a: VVal, b: VVal, imm8: u8) -> Val {
        let d = self.temp();
        self.push(Op::VecToInt, ty, [d.0, a.0, b.0, imm8 as u16], op as i64);
        d
    }

    /// Vector result from a vector and an integer.
    pub fn vec_from_int(&mut self, op: VecFromInt, ty: Ty, d: VVal, a: VVal, b: Val, imm8: u8) {
        self.push(Op::VecFromInt, ty, [d.0, a.0, b.0, imm8 as u16], op as i64);
    }

    /// 4, 8 or 16 bytes of the state as a vector, zero-extended.
    pub fn vget_state(&mut self, d: VVal, bytes: usize, offset: usize) {
        self.push(Op::VGetState, vec_ty(bytes), [d.0, Val::NONE.0, Val::NONE.0, Val::NONE.0], offset as i64);
    }

    /// Low 4, 8 or 16 bytes of a vector to the state.
    pub fn vset_state(&mut self, bytes: usize, offset: usize, a: VVal) {
        self.push(Op::VSetState, vec_ty(bytes), [Val::NONE.0, a.0, Val::NONE.0, Val::NONE.0], offset as i64);
    }

    /// Calls a helper for its effects and result.
    pub fn call(&mut self, id: HelperId, args: &[Val]) -> Val {
        let d = self.temp();
        self.call_to(d, id, args);
        d
    }

    /// Calls a helper, its result into `d`.
    pub fn call_to(&mut self, d: Val, id: HelperId, args: &[Val]) {
        let arg = |n: usize| args.get(n).copied().unwrap_or(Val::NONE).0;
        self.push(Op::Call, Ty::I64, [d.0, arg(0), arg(1), arg(2)], id.0 as i64);
    }

    /// Raises an exception without error code.
    pub fn raise(&mut self, vector: u8) {
        self.terminate(Op::Raise, Val::NONE, vector as i64);
    }

    /// Raises an exception with error code.
    pub fn raise_code(&mut self, vector: u8, code: u16) {
        self.terminate(Op::Raise, Val::NONE, vector as i64 | 0x100 | (code as i64) << 16);
    }

    /// Ends the block at a known target.
    pub fn jmp(&mut self, rip: u64) {
        self.terminate(Op::Jmp, Val::NONE, rip as i64);
    }

    /// Ends the block at a computed target.
    pub fn jmp_ind(&mut self, rip: Val) {
        self.terminate(Op::JmpInd, rip, 0);
    }

    /// Ends the block: to `rip` if `cond` is not zero, else on.
    pub fn br(&mut self, cond: Val, rip: u64) {
        self.terminate(Op::Br, cond, rip as i64);
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.insts.len()
    }

    /// The operations from `start` on.
    pub fn since(&self, start: usize) -> &[Inst] {
        self.insts.get(start..).unwrap_or_default()
    }

    /// Counts `n` instructions, or as many as `more` says beside.
    pub fn count(&mut self, more: Option<Val>, n: u16) {
        self.push(Op::Count, Ty::I64, [Val::NONE.0, more.unwrap_or(Val::NONE).0, Val::NONE.0, Val::NONE.0], n.into());
    }

    /// Counts `n` instructions before operation `at` of the current instruction.
    pub fn count_before(&mut self, at: usize, n: u16) {
        self.count(None, n);
        if let Some(moved) = self.insts.get_mut(at..) {
            moved.rotate_right(1);
        }
    }

    /// Ends the block with RIP already in the state.
    pub fn dispatch(&mut self) {
        self.terminate(Op::Dispatch, Val::NONE, 0);
    }

    fn terminate(&mut self, op: Op, a: Val, imm: i64) {
        self.push(op, Ty::I64, [Val::NONE.0, a.0, Val::NONE.0, Val::NONE.0], imm);
    }
}

/// Types stand for vector access sizes: i32 = 4, i64 = 8, i8 = 16, i16 = 32 bytes.
fn vec_ty(bytes: usize) -> Ty {
    match bytes {
        4 => Ty::I32,
        8 => Ty::I64,
        32 => Ty::I16,
        _ => Ty::I8,
    }
}

/// Bytes of a vector access by its type, see [`Builder::vload`].
pub fn vec_bytes(ty: Ty) -> usize {
    match ty {
        Ty::I32 => 4,
        Ty::I64 => 8,
        Ty::I16 => 32,
        Ty::I8 => 16,
    }
}
