//! The interpreter: runs IR. Cold code, single steps, and the reference for generated code.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::helpers::{self, HelperId};
use crate::ir::build::vec_bytes;
use crate::ir::flags::{self, CcKind};
use crate::ir::op::RmwOp;
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use crate::ir::{Block, Inst, Op, Ty};
use crate::state::{HIGH, VALS, VECS, mode};

/// What one operation leads to.
enum Step {
    /// The next operation.
    Next,
    /// The block is left; RIP is set.
    End,
    /// The block's own code was overwritten: it is left after the current guest instruction.
    Stale,
}

impl Cpu {
    /// Runs a block from its start. `Ok`: RIP is that of the next instruction. `Err`: RIP is that of the faulting
    /// instruction, whose state is untouched.
    pub fn run_block(&mut self, block: &Block) -> Result<(), Fault> {
        self.run_from(block, 0)
    }

    /// The same from operation `at`, the first of a guest instruction.
    pub fn run_from(&mut self, block: &Block, mut at: usize) -> Result<(), Fault> {
        while let Some(inst) = block.insts.get(at) {
            match self.step(block, inst) {
                Ok(Step::Next) => at += 1,
                Ok(Step::End) => return Ok(()),
                Ok(Step::Stale) => return self.finish_stale(block, at),
                Err(fault) => {
                    self.set_rip(block, block.rip.wrapping_add(inst.off as u64));
                    return Err(fault);
                }
            }
        }
        self.set_rip(block, block.end_rip());
        Ok(())
    }

    /// Ends the guest instruction of operation `at`, which was done, and stops there: what follows in the block is stale.
    #[cold]
    fn finish_stale(&mut self, block: &Block, mut at: usize) -> Result<(), Fault> {
        let off = block.insts[at].off;
        at += 1;
        while let Some(inst) = block.insts.get(at) {
            if inst.off != off {
                self.set_rip(block, block.rip_after(at - 1));
                self.count_done(1);
                return Ok(());
            }
            match self.step(block, inst) {
                Ok(Step::End) => return Ok(()),
                Ok(_) => at += 1,
                Err(fault) => {
                    self.set_rip(block, block.rip.wrapping_add(off as u64));
                    return Err(fault);
                }
            }
        }
        self.set_rip(block, block.end_rip());
        Ok(())
    }

    /// RIP is `rip`, as the block counts.
    #[inline(always)]
    fn set_rip(&mut self, block: &Block, rip: u64) {
        self.state.rip = block.wrap(block.base(&self.state).wrapping_add(rip));
    }

    #[inline(always)]
    fn val(&self, n: u16) -> u64 {
        self.state.vals[n as usize & (VALS - 1)]
    }

    #[inline(always)]
    fn src(&self, i: &Inst) -> u64 {
        if i.b == crate::ir::Val::IMM.0 { i.imm as u64 } else { self.val(i.b) }
    }

    #[inline(always)]
    fn put(&mut self, i: &Inst, v: u64) {
        self.state.vals[i.d as usize & (VALS - 1)] = v & i.ty.mask();
    }

    #[inline(always)]
    fn vec(&self, n: u16) -> u128 {
        self.state.vecs[n as usize % VECS]
    }

    #[inline(always)]
    fn put_vec(&mut self, n: u16, v: u128) {
        self.state.vecs[n as usize % VECS] = v;
    }

    /// Two's complement value of the low bits of `v`.
    #[inline(always)]
    fn signed(v: u64, ty: Ty) -> i64 {
        let shift = 64 - ty.bits();
        ((v << shift) as i64) >> shift
    }

    /// Operand or zero, for optional ones.
    #[inline(always)]
    fn opt(&self, n: u16) -> u64 {
        if n == crate::ir::Val::NONE.0 { 0 } else { self.val(n) }
    }

    #[inline(always)]
    fn stale_after_store(&self) -> Step {
        if self.blocks.running_is_stale() || self.is_cut() { Step::Stale } else { Step::Next }
    }

    #[inline(always)]
    fn step(&mut self, block: &Block, i: &Inst) -> Result<Step, Fault> {
        match i.op {
            Op::Mov => {
                let v = if i.a == crate::ir::Val::IMM.0 { i.imm as u64 } else { self.val(i.a) };
                self.put(i, v);
            }
            Op::Add => self.put(i, self.val(i.a).wrapping_add(self.src(i))),
            Op::Sub => self.put(i, self.val(i.a).wrapping_sub(self.src(i))),
            Op::And => self.put(i, self.val(i.a) & self.src(i)),
            Op::Or => self.put(i, self.val(i.a) | self.src(i)),
            Op::Xor => self.put(i, self.val(i.a) ^ self.src(i)),
            Op::Lea => {
                let v = self.opt(i.a).wrapping_add(self.opt(i.b) << (i.c & 3)).wrapping_add(i.imm as u64);
                self.put(i, v);
            }
            Op::Load => {
                let linear = self.val(i.a).wrapping_add(i.imm as u64);
                let v = self.load_flags(i.ty, linear, i.c)?;
                self.put(i, v);
                if self.is_cut() {
                    return Ok(Step::Stale);
                }
            }
            Op::Store => {
                let linear = self.val(i.a).wrapping_add(i.imm as u64);
                self.store_flags(i.ty, linear, self.val(i.b), i.c)?;
                return Ok(self.stale_after_store());
            }
            Op::SetFlags => self.set_lazy(CcKind::from_u16(i.c) as u32, i.ty, self.val(i.a), self.src(i)),
            Op::GetCond => {
                let s = &self.state;
                let v = flags::condition(i.c, s.cc_op, s.cc_res, s.cc_src);
                self.put(i, v as u64);
            }
            Op::Jmp => {
                self.set_rip(block, i.imm as u64);
                return Ok(Step::End);
            }
            Op::Br => {
                self.set_rip(block, if self.val(i.a) != 0 { i.imm as u64 } else { block.end_rip() });
                return Ok(Step::End);
            }
            Op::Exit => {
                if (self.val(i.a) != 0) == (i.c == 0) {
                    self.set_rip(block, i.imm as u64);
                    return Ok(Step::End);
                }
            }
            Op::JmpInd => {
                if block.mode & mode::CS64 != 0 {
                    self.state.branch_rip = block.base(&self.state).wrapping_add(block.rip).wrapping_add(i.off as u64);
                }
                self.state.rip = block.wrap(self.val(i.a));
                return Ok(Step::End);
            }
            Op::Dispatch => return Ok(Step::End),
            Op::Count => self.count_done(self.opt(i.a).wrapping_add(i.imm as u64)),
            Op::Call => {
                self.set_rip(block, block.rip.wrapping_add(i.off as u64));
                let (a, b, c) = (self.opt(i.a), self.opt(i.b), self.opt(i.c));
                let v = (helpers::helper(HelperId(i.imm as u16)).call)(self, a, b, c)?;
                if i.d != crate::ir::Val::NONE.0 {
                    self.state.vals[i.d as usize & (VALS - 1)] = v;
                }
                return Ok(self.stale_after_store());
            }
            Op::Raise => {
                let error = (i.imm & 0x100 != 0).then_some((i.imm >> 16) as u32);
                return Err(Fault { vector: i.imm as u8, error, address: 0 });
            }
            _ => return self.step_rare(i),
        }
        Ok(Step::Next)
    }

    /// The operations that are not in the first tier of frequency.
    fn step_rare(&mut self, i: &Inst) -> Result<Step, Fault> {
        match i.op {
            Op::Rmw => {
                let old = self.rmw(i.ty, self.val(i.a), RmwOp::from_imm(i.imm), self.val(i.b))?;
                self.put(i, old);
                Ok(self.stale_after_store())
            }
            Op::Cas => {
                let old = self.cas(i.ty, self.val(i.a), self.val(i.b), self.val(i.c))?;
                self.put(i, old);
                Ok(self.stale_after_store())
            }
            Op::SegAddr => {
                let linear = self.seg_addr(i.imm as u64, self.val(i.a))?;
                self.state.vals[i.d as usize & (VALS - 1)] = linear;
                Ok(Step::Next)
            }
            op if op.is_vector() => self.step_vector(i),
            _ => {
                self.step_integer(i);
                Ok(Step::Next)
            }
        }
    }

    /// Pure integer operations, state and flags.
    fn step_integer(&mut self, i: &Inst) {
        let (a, ty) = (self.opt_pure(i.a), i.ty);
        let bits = ty.bits();
        let m = ty.mask();
        let count_mask = if ty == Ty::I64 { 63 } else { 31 };
        let v = match i.op {
            Op::Sext => {
                self.state.vals[i.d as usize & (VALS - 1)] = Self::signed(a, ty) as u64;
                return;
            }
            Op::Ins8 => a & !0xff | self.src(i) & 0xff,
            Op::Ins8h => a & !0xff00 | (self.src(i) & 0xff) << 8,
            Op::Ins16 => a & !0xffff | self.src(i) & 0xffff,
            Op::Ext8h => a >> 8 & 0xff,
            Op::Mul => a.wrapping_mul(self.src(i)),
            Op::MulHiU => (((a & m) as u128 * (self.src(i) & m) as u128) >> bits) as u64,
            Op::MulHiS => ((Self::signed(a, ty) as i128 * Self::signed(self.src(i), ty) as i128) >> bits) as u64,
            Op::Shl => (a & m) << (self.src(i) & count_mask),
            Op::Shr => (a & m) >> (self.src(i) & count_mask),
            Op::Sar => (Self::signed(a, ty) >> (self.src(i) & count_mask)) as u64,
            Op::Rol => rotate_left(a & m, self.src(i) as u32 % bits, bits),
            Op::Ror => rotate_left(a & m, (bits - self.src(i) as u32 % bits) % bits, bits),
            Op::Not => !a,
            Op::Neg => a.wrapping_neg(),
            Op::Bswap => (a & m).swap_bytes() >> (64 - bits),
            Op::Clz => ((a & m).leading_zeros() - (64 - bits)) as u64,
            Op::Ctz => (a & m).trailing_zeros().min(bits) as u64,
            Op::Popcnt => (a & m).count_ones() as u64,
            Op::CmpEq => (a & m == self.src(i) & m) as u64,
            Op::CmpNe => (a & m != self.src(i) & m) as u64,
            Op::CmpUlt => ((a & m) < (self.src(i) & m)) as u64,
            Op::CmpUle => ((a & m) <= (self.src(i) & m)) as u64,
            Op::CmpSlt => (Self::signed(a, ty) < Self::signed(self.src(i), ty)) as u64,
            Op::Select => {
                if a != 0 {
                    self.val(i.b)
                } else {
                    self.val(i.c)
                }
            }
            Op::GetState => self.state.read_field(i.imm as usize, ty.bytes() as usize) as u64,
            Op::SetState => {
                self.state.write_field(i.imm as usize, ty.bytes() as usize, (a & m) as u128);
                return;
            }
            Op::SetFlagsCarry => {
                let kind = i.imm as u32 + (self.val(i.c) & 1) as u32;
                return self.set_lazy(kind, ty, a, self.val(i.b));
            }
            Op::SetFlagsIf => {
                if self.val(i.c) != 0 {
                    self.set_lazy(i.imm as u32, ty, a, self.val(i.b));
                }
                return;
            }
            Op::GetFlags => flags::all(self.state.cc_op, self.state.cc_res, self.state.cc_src),
            _ => return,
        };
        self.put(i, v);
    }

    /// First operand of operations where it may be absent or a constant.
    #[inline(always)]
    fn opt_pure(&self, n: u16) -> u64 {
        self.val(n)
    }

    #[inline(always)]
    fn set_lazy(&mut self, kind: u32, ty: Ty, res: u64, src: u64) {
        self.state.cc_op = kind << 2 | ty as u32;
        self.state.cc_res = res;
        self.state.cc_src = src;
    }

    fn step_vector(&mut self, i: &Inst) -> Result<Step, Fault> {
        match i.op {
            Op::VMov => self.put_vec(i.d, self.vec(i.a)),
            Op::VLoad => {
                let linear = self.val(i.a).wrapping_add(i.imm as u64);
                let v = match vec_bytes(i.ty) {
                    32 => {
                        let [low, high] = self.load256(linear, i.c)?;
                        self.put_vec(i.d + HIGH as u16, high);
                        low
                    }
                    16 => self.load128(linear, i.c)?,
                    _ => self.load_flags(i.ty, linear, i.c)? as u128,
                };
                self.put_vec(i.d, v);
            }
            Op::VStore => {
                let linear = self.val(i.a).wrapping_add(i.imm as u64);
                let v = self.vec(i.b);
                match vec_bytes(i.ty) {
                    32 => self.store256(linear, [v, self.vec(i.b + HIGH as u16)], i.c)?,
                    16 => self.store128(linear, v, i.c)?,
                    _ => self.store_flags(i.ty, linear, v as u64, i.c)?,
                }
                return Ok(self.stale_after_store());
            }
            Op::Vec => {
                let op = VecOp::from_imm(i.imm).expect("verified IR");
                let v = helpers::vec::vec_fn(op)(self.vec(i.a), self.vec(i.b), i.c as u8);
                self.put_vec(i.d, v);
            }
            Op::ClearHigh => {
                (0..HIGH).filter(|n| i.imm >> n & 1 != 0).for_each(|n| self.state.vecs[HIGH + n] = 0);
            }
            Op::Fma => {
                let op = FmaOp::from_imm(i.imm).expect("verified IR");
                let v = helpers::vec::fma_fn(op)(self.vec(i.a), self.vec(i.b), self.vec(i.c));
                self.put_vec(i.d, v);
            }
            Op::VecToInt => {
                let op = VecToInt::from_imm(i.imm).expect("verified IR");
                let v = helpers::vec::vec_to_int_fn(op)(self.vec(i.a), self.vec(i.b), i.c as u8);
                self.put(i, v);
            }
            Op::VecFromInt => {
                let op = VecFromInt::from_imm(i.imm).expect("verified IR");
                let v = helpers::vec::vec_from_int_fn(op)(self.vec(i.a), self.val(i.b), i.c as u8);
                self.put_vec(i.d, v);
            }
            Op::VGetState => {
                let v = self.state.read_field(i.imm as usize, vec_bytes(i.ty));
                self.put_vec(i.d, v);
            }
            Op::VSetState => {
                let v = self.vec(i.a);
                self.state.write_field(i.imm as usize, vec_bytes(i.ty), v);
            }
            _ => {}
        }
        Ok(Step::Next)
    }
}

/// Rotates the low `bits` bits of `v` left by `n < bits`.
fn rotate_left(v: u64, n: u32, bits: u32) -> u64 {
    if n == 0 { v } else { v << n | v >> (bits - n) }
}
