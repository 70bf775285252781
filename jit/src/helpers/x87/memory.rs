//! Loads, stores, register moves.

use super::convert::{self, Converted, Rounding};
use super::host;
use super::insn::{Format, Insn};
use super::state::{INDEFINITE, sw};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::mmu::ram::PAGE_SIZE;

/// Operations of [`stack`].
pub mod stack_op {
    #![allow(missing_docs)]
    pub const FLD: u8 = 0;
    pub const FST: u8 = 1;
    pub const FXCH: u8 = 2;
    pub const FFREE: u8 = 3;
    pub const FINCSTP: u8 = 4;
    pub const FDECSTP: u8 = 5;
    pub const FNOP: u8 = 6;
    /// FSTP without stack check.
    pub const FSTPNCE: u8 = 7;
    /// First of the seven constants, in the order of their opcodes.
    pub const CONSTANT: u8 = 8;
}

/// Operations of [`store`].
pub mod store_op {
    #![allow(missing_docs)]
    pub const FST: u8 = 0;
    pub const FISTTP: u8 = 1;
}

impl Cpu {
    /// Loads 10 bytes.
    fn load80(&mut self, address: u64, access: u16) -> Result<[u8; 10], Fault> {
        let low = self.load_flags(Ty::I64, address, access)?;
        let high = self.load_flags(Ty::I16, address.wrapping_add(8), access)?;
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&(high as u16).to_le_bytes());
        Ok(bytes)
    }
}

impl Cpu {
    /// Stores 10 bytes: all of them, or a fault and none.
    fn store80(&mut self, address: u64, bytes: [u8; 10], access: u16) -> Result<(), Fault> {
        if address & (PAGE_SIZE - 1) > PAGE_SIZE - 10 {
            return self.store_bytes(address, &bytes);
        }
        // Within a page the second part cannot fault if the first one did not.
        let (low, high) = (extended(bytes) as u64, (extended(bytes) >> 64) as u64);
        self.store_flags(Ty::I64, address, low, access)?;
        self.store_flags(Ty::I16, address.wrapping_add(8), high, access)
    }
}

fn extended(bytes: [u8; 10]) -> u128 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | *b as u128)
}

/// FLD, FILD, FBLD from memory.
pub(super) fn load(cpu: &mut Cpu, insn: u64, address: u64, offset: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    let (v, found) = match insn.format {
        Format::Extended => (extended(cpu.load80(address, insn.access)?), 0),
        Format::Decimal => (convert::from_decimal(cpu.load80(address, insn.access)?), 0),
        format => {
            let v = cpu.load_flags(format.ty(), address, insn.access)?;
            match format {
                Format::Single => convert::from_single(v as u32),
                Format::Double => convert::from_double(v),
                Format::Word => (convert::from_integer(v as i16 as i64), 0),
                Format::Dword => (convert::from_integer(v as i32 as i64), 0),
                _ => (convert::from_integer(v as i64), 0),
            }
        }
    };
    cpu.x87_load(v, found, insn.data(offset));
    Ok(0)
}

/// The bytes a store writes, with exceptions and C1.
fn stored(v: u128, insn: Insn, fcw: u16) -> Converted<[u8; 10]> {
    let rounding = if insn.op == store_op::FISTTP { Rounding::Zero } else { Rounding::of(fcw) };
    let wide = |c: Converted<u64>| {
        let mut value = [0; 10];
        value[..8].copy_from_slice(&c.value.to_le_bytes());
        Converted { value, sw: c.sw }
    };
    let by_host = |f: host::HostFn| {
        let r = f(fcw, v, 0, 0);
        wide(Converted { value: r.mem, sw: r.sw & (sw::EXCEPTIONS | sw::C1) })
    };
    match insn.format {
        Format::Single => by_host(host::STORE_SINGLE),
        Format::Double => by_host(host::STORE_DOUBLE),
        Format::Word => wide(convert::to_integer(v, 16, rounding)),
        Format::Dword => wide(convert::to_integer(v, 32, rounding)),
        Format::Qword => wide(convert::to_integer(v, 64, rounding)),
        Format::Decimal => convert::to_decimal(v, rounding),
        Format::Extended | Format::None => {
            let mut value = [0; 10];
            value.copy_from_slice(&v.to_le_bytes()[..10]);
            Converted { value, sw: 0 }
        }
    }
}

/// What a store from an empty register writes.
fn indefinite(format: Format) -> [u8; 10] {
    let v = match format {
        Format::Single => convert::SINGLE_INDEFINITE as u128,
        Format::Double => convert::DOUBLE_INDEFINITE as u128,
        Format::Word => 1 << 15,
        Format::Dword => 1 << 31,
        Format::Qword => 1 << 63,
        Format::Decimal => return convert::DECIMAL_INDEFINITE,
        Format::Extended | Format::None => INDEFINITE,
    };
    let mut bytes = [0; 10];
    bytes.copy_from_slice(&v.to_le_bytes()[..10]);
    bytes
}

/// FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory.
pub(super) fn store(cpu: &mut Cpu, insn: u64, address: u64, offset: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    let fcw = cpu.state.x87.fcw;
    let c = if cpu.state.x87.is_empty(0) {
        Converted { value: indefinite(insn.format), sw: sw::IE | sw::SF }
    } else {
        stored(cpu.state.x87.st(0), insn, fcw)
    };
    // Unmasked, these keep the operand on the stack and memory as it was (SDM 1, 8.5).
    let refused = c.sw & !fcw & (sw::IE | sw::OE | sw::UE) != 0;
    if !refused {
        match insn.format {
            Format::Extended | Format::Decimal => cpu.store80(address, c.value, insn.access)?,
            format => {
                let v = u64::from_le_bytes(std::array::from_fn(|n| c.value[n]));
                cpu.store_flags(format.ty(), address, v & format.ty().mask(), insn.access)?;
            }
        }
    }
    cpu.x87_exceptions(c.sw, insn.data(offset));
    if !refused {
        cpu.x87_pop(insn.pops);
    }
    Ok(0)
}

/// Register moves and constants.
pub(super) fn stack(cpu: &mut Cpu, insn: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    match insn.op {
        stack_op::FLD if cpu.state.x87.is_empty(insn.i) => {
            // An empty source and a full stack at once show as underflow.
            if cpu.x87_underflow(None) {
                cpu.state.x87.push(INDEFINITE);
            }
        }
        stack_op::FLD => {
            let v = cpu.state.x87.st(insn.i);
            cpu.x87_load(v, 0, None);
        }
        stack_op::FST => store_register(cpu, insn),
        stack_op::FSTPNCE if cpu.state.x87.is_empty(0) => {
            cpu.x87_exceptions(0, None);
            cpu.x87_pop(1);
        }
        stack_op::FSTPNCE => store_register(cpu, insn),
        stack_op::FXCH => exchange(cpu, insn.i),
        stack_op::FFREE => {
            cpu.x87_exceptions(0, None);
            cpu.state.x87.free(insn.i);
            cpu.x87_pop(insn.pops);
        }
        stack_op::FINCSTP | stack_op::FDECSTP => {
            cpu.x87_exceptions(0, None);
            let x = &mut cpu.state.x87;
            x.set_top(x.top() + if insn.op == stack_op::FINCSTP { 1 } else { 7 });
        }
        stack_op::FNOP => cpu.x87_pointer(),
        n => {
            let v = host::constant(n - stack_op::CONSTANT, cpu.state.x87.fcw);
            cpu.x87_load(v, 0, None);
        }
    }
    Ok(0)
}

fn store_register(cpu: &mut Cpu, insn: Insn) {
    let v = if cpu.state.x87.is_empty(0) {
        if !cpu.x87_underflow(None) {
            return;
        }
        INDEFINITE
    } else {
        cpu.x87_exceptions(0, None);
        cpu.state.x87.st(0)
    };
    cpu.state.x87.set_st(insn.i, v);
    cpu.x87_pop(insn.pops);
}

fn exchange(cpu: &mut Cpu, i: usize) {
    let x = &cpu.state.x87;
    let value = |n: usize| if x.is_empty(n) { INDEFINITE } else { x.st(n) };
    let (a, b) = (value(0), value(i));
    let fits = if x.is_empty(0) || x.is_empty(i) { cpu.x87_underflow(None) } else { cpu.x87_exceptions(0, None) };
    if fits {
        cpu.state.x87.set_st(0, b);
        cpu.state.x87.set_st(i, a);
    }
}

/// FCMOVcc: the second operand is the condition.
pub(super) fn conditional_move(cpu: &mut Cpu, insn: u64, condition: u64, _: u64) -> Result<u64, Fault> {
    let insn = Insn::unpack(insn);
    cpu.x87_start()?;
    let x = &cpu.state.x87;
    if x.is_empty(0) || x.is_empty(insn.i) {
        if cpu.x87_underflow(None) {
            cpu.state.x87.set_st(0, INDEFINITE);
        }
        return Ok(0);
    }
    cpu.x87_pointer();
    if condition != 0 {
        let v = cpu.state.x87.st(insn.i);
        cpu.state.x87.set_st(0, v);
    }
    Ok(0)
}
