//! How SSE and VEX forms differ: operands, checks, and what becomes of the upper half of the destination.

use super::Align;
use crate::ir::VVal;
use crate::lift::operand::vreg;
use crate::lift::{Flow, Lifter};
use crate::state::mode;
use iced_x86::{EncodingKind, Instruction, OpKind};

/// Vector operands of an instruction. SSE forms write over their first source and leave the upper half of the register. VEX
/// forms may name one source more, may be 256 bits wide, and clear what lies above their result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    /// Destination.
    pub d: VVal,
    /// First source; where there is but one it stands for nothing.
    pub a: VVal,
    /// Number of the operand that is the second source, or the only one.
    pub second: u32,
    /// VEX form.
    pub vex: bool,
    /// The result has 256 bits.
    pub wide: bool,
}

impl Operands {
    /// What is asked of memory operands where the instruction says nothing: VEX forms take any address (SDM 1, 14.9).
    pub fn align(&self) -> Align {
        if self.vex { Align::Any } else { Align::Checked }
    }
}

/// The instruction has a VEX prefix.
pub(super) fn is_vex(i: &Instruction) -> bool {
    i.code().encoding() == EncodingKind::VEX
}

/// Operand `n` is a YMM register or 32 bytes of memory.
pub(super) fn is_wide(i: &Instruction, n: u32) -> bool {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_ymm(),
        OpKind::Memory => i.memory_size().size() == 32,
        _ => false,
    }
}

fn is_vector(i: &Instruction, n: u32) -> bool {
    i.op_kind(n) == OpKind::Register && (i.op_register(n).is_xmm() || i.op_register(n).is_ymm())
}

/// The vector operands of an instruction whose destination is its first one.
pub(super) fn operands(i: &Instruction) -> Operands {
    let d = vreg(i.op_register(0));
    if !is_vex(i) {
        return Operands { d, a: d, second: 1, vex: false, wide: false };
    }
    let sources = (1..i.op_count()).filter(|n| i.op_kind(*n) != OpKind::Immediate8).count();
    let a = if is_vector(i, 1) { vreg(i.op_register(1)) } else { d };
    Operands { d, a, second: if sources > 1 { 2 } else { 1 }, vex: true, wide: is_wide(i, 0) }
}

impl Lifter<'_> {
    /// What a vector instruction of either form checks first: #UD or #NM.
    pub(super) fn vec_check(&mut self, i: &Instruction) -> Option<Flow> {
        if !is_vex(i) {
            return self.sse_check();
        }
        // CR0.EM and CR4.OSFXSR do not count (SDM 2A, table 2-18 and on).
        if !self.has(mode::OSXSAVE | mode::AVX) {
            return Some(self.undefined());
        }
        self.task_switched()
    }

    /// The low half of the destination was written: VEX forms of 128 bits clear the high half.
    pub(super) fn finish_low(&mut self, o: Operands) {
        if o.vex {
            self.clear_high(o.d);
        }
    }

    /// Clears the high half of a register, unless the block did so already.
    pub(super) fn clear_high(&mut self, d: VVal) {
        self.clear_high_of(1 << (d.0 & 15));
    }

    /// The same for a set of registers, one bit each.
    pub(super) fn clear_high_of(&mut self, registers: u16) {
        let dirty = registers & !self.clear_high;
        if dirty != 0 {
            self.b.clear_high(dirty);
            self.clear_high |= dirty;
        }
    }

    /// The high half of a register was or is about to be written.
    pub(super) fn wrote_high(&mut self, d: VVal) {
        self.clear_high &= !(1 << (d.0 & 15));
    }

    /// `d = a` of the operands' width, with all that goes with writing a register.
    pub(super) fn vec_set(&mut self, o: Operands, a: VVal) {
        self.b.vmov(o.d, a);
        if o.wide {
            self.b.vmov(o.d.high(), a.high());
            self.wrote_high(o.d);
        } else {
            self.finish_low(o);
        }
    }
}
