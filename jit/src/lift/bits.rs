//! Bit tests, scans and counts, and BMI1/BMI2 without the shifts; CRC32, RDRAND, RDSEED.

use super::operand::{Mem, segment_flags, segment_number};
use super::{Flow, Lifter};
use crate::helpers::HelperId;
use crate::helpers::integer as helper;
use crate::ir::flags::CcKind;
use crate::ir::op::{Op, RmwOp};
use crate::ir::{Ty, Val};
use crate::state::flag;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    use Mnemonic::*;
    match i.mnemonic() {
        Bt => l.bit_test(i, None),
        Bts => l.bit_test(i, Some(RmwOp::Or)),
        Btr => l.bit_test(i, Some(RmwOp::And)),
        Btc => l.bit_test(i, Some(RmwOp::Xor)),
        Bsf => l.bit_scan(i, Op::Ctz),
        Bsr => l.bit_scan(i, Op::Clz),
        Tzcnt => l.count_zeros(i, Op::Ctz),
        Lzcnt => l.count_zeros(i, Op::Clz),
        Popcnt => l.popcnt(i),
        Andn => l.andn(i),
        Blsi => l.lowest_bit(i, Op::And, true),
        Blsr => l.lowest_bit(i, Op::And, false),
        Blsmsk => l.lowest_bit(i, Op::Xor, false),
        Bextr => l.bextr(i),
        Bzhi => l.bzhi(i),
        Pdep => l.scatter(i, helper::PDEP),
        Pext => l.scatter(i, helper::PEXT),
        Crc32 => l.crc32(i),
        Rdrand | Rdseed => l.random(i),
        _ => return None,
    }
    Some(Flow::Next)
}

impl Lifter<'_> {
    /// BT, BTS, BTR, BTC. Only CF changes; OF, SF, AF, PF are undefined (SDM 2, BT), silicon leaves them.
    fn bit_test(&mut self, i: &Instruction, change: Option<RmwOp>) {
        let ty = self.op_ty(i, 0);
        let width = ty.bits() as i64 - 1;
        let write = change.is_some();
        let index = self.src_op(i, 1);
        let bit = match index {
            crate::ir::build::Src::Imm(c) => self.b.iconst(c & width),
            crate::ir::build::Src::Val(v) => self.b.op2(Op::And, Ty::I64, v, width),
        };
        let place = (i.op0_kind() == OpKind::Memory).then(|| self.bit_string(i, ty, write));
        let mask = change.map(|op| self.bit_mask(ty, bit, op));
        let old = match (place, change) {
            (Some(m), Some(op)) if i.has_lock_prefix() => {
                let addr = self.atomic_address(m);
                let old = self.b.rmw(op, ty, addr, mask.unwrap_or(bit));
                return self.bit_to_carry(ty, old, bit);
            }
            (Some(m), Some(_)) => self.load_for_write(ty, m),
            (Some(m), None) => self.load(ty, m),
            (None, _) => self.read_reg(i.op0_register()),
        };
        let carry = self.b.op2(Op::Shr, ty, old, bit);
        if let (Some(op), Some(mask)) = (change, mask) {
            let op = match op {
                RmwOp::Or => Op::Or,
                RmwOp::And => Op::And,
                _ => Op::Xor,
            };
            let new = self.b.op2(op, ty, old, mask);
            self.write_back(i, place, new);
        }
        self.set_carry_only(carry);
    }

    /// The mask with which an operation sets, clears or flips the bit.
    fn bit_mask(&mut self, ty: Ty, bit: Val, op: RmwOp) -> Val {
        let one = self.b.iconst(1);
        let mask = self.b.op2(Op::Shl, ty, one, bit);
        if op == RmwOp::And { self.b.op1(Op::Not, ty, mask) } else { mask }
    }

    fn bit_to_carry(&mut self, ty: Ty, value: Val, bit: Val) {
        let carry = self.b.op2(Op::Shr, ty, value, bit);
        self.set_carry_only(carry);
    }

    /// CF = bit 0 of `v`, other flags as they are.
    fn set_carry_only(&mut self, v: Val) {
        let carry = self.b.op2(Op::And, Ty::I64, v, 1);
        let flags = self.b.get_flags();
        self.replace_flags(flags, flag::CF, &[(carry, 0)]);
    }

    /// Memory operand of a bit test. A register as index reaches beyond the operand, in units of its width, with the
    /// address size's wrap (SDM 2, 3.1.1.9).
    fn bit_string(&mut self, i: &Instruction, ty: Ty, write: bool) -> Mem {
        let bytes = ty.bytes() as usize;
        if i.op1_kind() != OpKind::Register {
            return self.mem(i, bytes, write);
        }
        let index = self.read_reg(i.op1_register());
        let signed = if ty == Ty::I64 { index } else { self.b.op1(Op::Sext, ty, index) };
        let unit = self.b.op2(Op::Sar, Ty::I64, signed, ty.bits().trailing_zeros() as i64);
        let ea = self.effective_address(i);
        let address_ty = self.address_ty(i);
        let at = self.b.temp();
        self.b.lea_to(address_ty, at, Some(ea), Some(unit), ty as u8, 0);
        let seg = segment_number(i.memory_segment());
        let addr = self.segmented(seg, at, bytes, write);
        let m = Mem { addr, disp: 0, flags: segment_flags(seg) };
        self.check_alignment(m, bytes);
        m
    }

    /// BSF and BSR. A zero source sets ZF and leaves the destination (undefined in SDM 2 for older processors; the SDM
    /// now says unmodified). The other flags are undefined.
    fn bit_scan(&mut self, i: &Instruction, op: Op) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let src = self.b.op1(Op::Mov, ty, src);
        let count = self.b.op1(op, ty, src);
        let found = if op == Op::Clz { self.b.op2(Op::Xor, Ty::I64, count, ty.bits() as i64 - 1) } else { count };
        let old = self.read_reg(i.op0_register());
        // A 32-bit destination that stays keeps its upper half too.
        let whole = if ty == Ty::I32 { Ty::I64 } else { ty };
        match self.wide_dest(i, 0) {
            Some(d) => self.b.select_to(whole, d, src, found, old),
            None => {
                let v = self.b.select(whole, src, found, old);
                self.write_reg(i.op0_register(), v);
            }
        }
        // Undefined flags as silicon leaves them: PF by the result, the others clear. A bit above the result's byte
        // keeps ZF for the zero source.
        let marked = self.b.op2(Op::Or, Ty::I64, found, 0x100);
        let none = self.b.iconst(0);
        let v = self.b.select(Ty::I64, src, marked, none);
        self.b.set_flags(CcKind::Logic, Ty::I64, v, 0);
    }

    /// TZCNT and LZCNT: CF = no bit set, ZF = result is zero. OF, SF, PF, AF are undefined (SDM 2, LZCNT).
    fn count_zeros(&mut self, i: &Instruction, op: Op) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let none = self.b.op2(Op::CmpEq, ty, src, 0);
        let count = self.b.op1(op, ty, src);
        self.write_reg(i.op0_register(), count);
        self.b.set_flags(CcKind::Bmi, ty, count, none);
    }

    /// POPCNT: ZF = source is zero, the other flags are cleared.
    fn popcnt(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let count = self.b.op1(Op::Popcnt, ty, src);
        self.zero_flag_only(ty, count);
        self.write_reg(i.op0_register(), count);
    }

    /// ZF by the value, the other flags cleared.
    fn zero_flag_only(&mut self, ty: Ty, v: Val) {
        let zero = self.b.op2(Op::CmpEq, ty, v, 0);
        let word = self.b.op2(Op::Shl, Ty::I64, zero, flag::ZF.trailing_zeros() as i64);
        self.b.set_flags_raw(word);
    }

    fn andn(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let a = self.read_reg(i.op1_register());
        let b = self.read_op(i, 2);
        let inverse = self.b.op1(Op::Not, ty, a);
        let res = self.b.op2(Op::And, ty, inverse, b);
        self.write_reg(i.op0_register(), res);
        self.b.set_flags(CcKind::Bmi, ty, res, 0);
    }

    /// BLSI (`-x & x`), BLSR (`(x - 1) & x`), BLSMSK (`(x - 1) ^ x`). CF: BLSI x != 0, the others x == 0.
    fn lowest_bit(&mut self, i: &Instruction, op: Op, isolate: bool) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let other = if isolate { self.b.op1(Op::Neg, ty, src) } else { self.b.op2(Op::Sub, ty, src, 1) };
        let res = self.b.op2(op, ty, other, src);
        let carry = self.b.op2(if isolate { Op::CmpNe } else { Op::CmpEq }, ty, src, 0);
        self.write_reg(i.op0_register(), res);
        self.b.set_flags(CcKind::Bmi, ty, res, carry);
    }

    /// BEXTR: bits start..start+len of the source; positions beyond the operand read as 0.
    fn bextr(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let control = self.read_reg(i.op2_register());
        let width = self.b.iconst(ty as i64);
        let res = self.b.call(helper::BEXTR, &[src, control, width]);
        // ZF by the result, CF = OF = 0; AF, SF, PF undefined (SDM 2, BEXTR), silicon clears them.
        self.zero_flag_only(ty, res);
        self.write_reg(i.op0_register(), res);
    }

    /// BZHI: bits from index on are cleared; CF = the index is beyond the operand.
    fn bzhi(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 0);
        let src = self.read_op(i, 1);
        let index = self.read_reg(i.op2_register());
        let index = self.b.op1(Op::Mov, Ty::I8, index);
        let width = self.b.iconst(ty.bits() as i64);
        let beyond = self.b.op2(Op::CmpUle, Ty::I64, width, index);
        let ones = self.b.iconst(-1);
        let high = self.b.op2(Op::Shl, Ty::I64, ones, index);
        let low = self.b.op1(Op::Not, Ty::I64, high);
        let keep = self.b.select(Ty::I64, beyond, ones, low);
        let res = self.b.op2(Op::And, ty, src, keep);
        self.write_reg(i.op0_register(), res);
        self.b.set_flags(CcKind::Bmi, ty, res, beyond);
    }

    fn scatter(&mut self, i: &Instruction, id: HelperId) {
        let ty = self.op_ty(i, 0);
        let a = self.read_reg(i.op1_register());
        let mask = self.read_op(i, 2);
        let mask = self.b.op1(Op::Mov, ty, mask);
        let res = self.b.call(id, &[a, mask]);
        self.write_reg(i.op0_register(), res);
    }

    fn crc32(&mut self, i: &Instruction) {
        let ty = self.op_ty(i, 1);
        let src = self.read_op(i, 1);
        let crc = self.read_reg(i.op0_register());
        let width = self.b.iconst(ty.bytes() as i64);
        let res = self.b.call(helper::CRC32, &[crc, src, width]);
        self.write_reg(i.op0_register(), res);
    }

    /// RDRAND and RDSEED always succeed: CF = 1, the other flags are cleared.
    fn random(&mut self, i: &Instruction) {
        let v = self.b.call(helper::RANDOM, &[]);
        self.write_reg(i.op0_register(), v);
        let word = self.b.iconst(flag::CF as i64);
        self.b.set_flags_raw(word);
    }

    /// Width of effective addresses of the instruction's memory operand.
    pub fn address_ty(&self, i: &Instruction) -> Ty {
        let size = i.memory_base().size().max(i.memory_index().size());
        match size {
            2 => Ty::I16,
            4 => Ty::I32,
            8 => Ty::I64,
            // No register: the displacement's size tells.
            _ if self.long64() => Ty::I64,
            _ if i.memory_displ_size() == 2 => Ty::I16,
            _ => Ty::I32,
        }
    }
}
