//! Decimal adjustments (SDM 2: AAA, AAS, DAA, DAS, AAM, AAD). Valid in legacy modes only.

use super::integer::set_reg;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::state::{flag, reg};

/// SF, ZF and PF of a byte.
fn byte_flags(v: u64) -> u64 {
    let v = v & 0xff;
    let parity = ((v as u8).count_ones() & 1 == 0) as u64;
    parity << 2 | ((v == 0) as u64) << 6 | v >> 7 << 7
}

/// AAA and AAS: OF, SF, ZF, PF are undefined; silicon sets SF, ZF and PF by AL and clears OF.
fn ascii_adjust(cpu: &mut Cpu, delta: u64) {
    let ax = cpu.gpr(reg::RAX);
    let adjust = ax & 15 > 9 || cpu.rflags() & flag::AF != 0;
    // The adjustment is made to AX as a whole (SDM 2, AAA: AX + 106H).
    let wide = if adjust { ax.wrapping_add(delta) } else { ax };
    let res = wide & 0xff0f;
    set_reg(cpu, reg::RAX, Ty::I16, res);
    let carries = if adjust { flag::AF | flag::CF } else { 0 };
    cpu.set_arith_flags(carries | byte_flags(res));
}

pub(super) fn aaa(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    ascii_adjust(cpu, 0x106);
    Ok(0)
}

pub(super) fn aas(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    ascii_adjust(cpu, 0x106u64.wrapping_neg());
    Ok(0)
}

/// DAA and DAS (SDM 2, DAA): OF is undefined, silicon clears it.
fn decimal_adjust(cpu: &mut Cpu, add: bool) {
    let (al, flags) = (cpu.gpr(reg::RAX) & 0xff, cpu.rflags());
    let (mut res, mut out) = (al, 0);
    let step = |v: u64, by: u64| if add { v.wrapping_add(by) } else { v.wrapping_sub(by) };
    if al & 15 > 9 || flags & flag::AF != 0 {
        res = step(res, 6);
        out |= flag::AF;
        // For DAS this borrow stays in CF even if the second step is not taken; for DAA the second step covers it.
        if !add && res > 0xff {
            out |= flag::CF;
        }
    }
    if al > 0x99 || flags & flag::CF != 0 {
        res = step(res, 0x60);
        out |= flag::CF;
    }
    set_reg(cpu, reg::RAX, Ty::I8, res);
    cpu.set_arith_flags(out | byte_flags(res));
}

pub(super) fn daa(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    decimal_adjust(cpu, true);
    Ok(0)
}

pub(super) fn das(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    decimal_adjust(cpu, false);
    Ok(0)
}

/// AAM: OF, AF and CF are undefined, silicon clears them.
pub(super) fn aam(cpu: &mut Cpu, base: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let al = cpu.gpr(reg::RAX) & 0xff;
    let high = al.checked_div(base).ok_or(Fault::DE)?;
    let low = al % base;
    set_reg(cpu, reg::RAX, Ty::I16, high << 8 | low);
    cpu.set_arith_flags(byte_flags(low));
    Ok(0)
}

/// AAD: OF, AF and CF are undefined, silicon sets them as the addition does.
pub(super) fn aad(cpu: &mut Cpu, base: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let ax = cpu.gpr(reg::RAX);
    let (al, product) = (ax & 0xff, (ax >> 8 & 0xff).wrapping_mul(base) & 0xff);
    let res = al.wrapping_add(product) & 0xff;
    set_reg(cpu, reg::RAX, Ty::I16, res);
    let cc = crate::ir::flags::pack(crate::ir::flags::CcKind::Add, Ty::I8);
    cpu.set_arith_flags(crate::ir::flags::all(cc, res, product));
    Ok(0)
}
