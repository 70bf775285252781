//! Loads and stores of selected elements: VMASKMOV, VPMASKMOV and the gathers. What is not selected is not touched and
//! raises nothing.

use super::operands::{is_wide, operands};
use crate::helpers::vec::{GATHER, Gather, MASKED_LOAD, MASKED_STORE, Masked, STAGE1, STAGE1_HIGH, stage_offset};
use crate::ir::Val;
use crate::ir::{Ty, VVal};
use crate::lift::Lifter;
use crate::lift::operand::{gpr, segment_number, vreg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub(super) fn semantics(m: Mnemonic) -> Option<fn(&mut Lifter, &Instruction)> {
    use Mnemonic::*;
    Some(match m {
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => masked_move,
        Vpgatherdd | Vpgatherdq | Vpgatherqd | Vpgatherqq => gather,
        Vgatherdps | Vgatherdpd | Vgatherqps | Vgatherqpd => gather,
        _ => return None,
    })
}

fn masked_move(l: &mut Lifter, i: &Instruction) {
    let store = i.op_kind(0) == OpKind::Memory;
    let (data, mask) = if store { (2, 1) } else { (0, 1) };
    let wide = is_wide(i, data);
    let (data, mask) = (vreg(i.op_register(data)), vreg(i.op_register(mask)));
    let double = matches!(i.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
    let what = Masked { segment: segment_number(i.memory_segment()) as u8, double, wide };
    let offset = l.effective_address(i);
    if store {
        let high = if wide { (data.high(), mask.high()) } else { (data, mask) };
        l.stage_both((data, mask), high);
    } else {
        l.b.vset_state(16, stage_offset(STAGE1), mask);
        l.b.vset_state(16, stage_offset(STAGE1_HIGH), if wide { mask.high() } else { mask });
    }
    let what = l.b.iconst(what.pack());
    if store {
        l.b.call(MASKED_STORE, &[what, offset]);
        return;
    }
    l.b.call(MASKED_LOAD, &[what, offset]);
    let o = operands(i);
    if wide {
        l.unstage_both(o.d);
        l.wrote_high(o.d);
    } else {
        l.unstage(o.d);
        l.finish_low(o);
    }
}

/// The helper works on the registers themselves: a fault leaves what was loaded before it.
fn gather(l: &mut Lifter, i: &Instruction) {
    let (d, index, mask) = (i.op_register(0), i.memory_index(), i.op_register(2));
    let m = i.mnemonic();
    let double = matches!(m, Mnemonic::Vpgatherdq | Mnemonic::Vpgatherqq | Mnemonic::Vgatherdpd | Mnemonic::Vgatherqpd);
    let wide_index =
        matches!(m, Mnemonic::Vpgatherqd | Mnemonic::Vpgatherqq | Mnemonic::Vgatherqps | Mnemonic::Vgatherqpd);
    let elements = d.size() / if double { 8 } else { 4 };
    let indexes = index.size() / if wide_index { 8 } else { 4 };
    let base = i.memory_base();
    let what = Gather {
        d: d.number() as u8,
        mask: mask.number() as u8,
        index: index.number() as u8,
        segment: segment_number(i.memory_segment()) as u8,
        scale: i.memory_index_scale().trailing_zeros() as u8,
        double,
        wide_index,
        count: elements.min(indexes) as u8,
        wide: d.is_ymm() || index.is_ymm(),
        address32: !l.long64() || base.size() == 4 || base == Register::None && i.memory_displ_size() == 4,
    };
    let offset = l.b.temp();
    let base = gpr(base).map(|g| Val::gpr(g.n));
    l.b.lea_to(Ty::I64, offset, base, None, 0, i.memory_displacement64() as i64);
    let what = l.b.iconst(what.pack());
    l.b.call(GATHER, &[what, offset]);
    for r in [d, mask] {
        l.wrote_high(VVal(r.number() as u16));
    }
}
