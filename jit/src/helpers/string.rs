//! Repeated string instructions. Each helper works until the count is used up (or the comparison ends it) and returns 0,
//! or stops between elements with 1: it wants to be called again. Registers are exact at every stop and every fault
//! (SDM 2, REP/REPE/REPZ/REPNE/REPNZ).

use super::effect::{FAULTS, READS_FLAGS, SETS_FLAGS};
use super::integer::{check_alignment, set_reg, ty_of};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::flags::{self, CcKind};
use crate::ir::{Ty, mem};
use crate::mmu::ram::PAGE_SIZE;
use crate::state::{flag, mode, reg};

const RAX: u32 = 1 << reg::RAX;
const RCX: u32 = 1 << reg::RCX;
const RSI: u32 = 1 << reg::RSI;
const RDI: u32 = 1 << reg::RDI;
const COMPARE: u32 = READS_FLAGS | SETS_FLAGS;

crate::helper_family! { 1;
    /// REP MOVS; the operand is made by [`pack`].
    REP_MOVS = rep_movs, FAULTS | RCX | RSI | RDI;
    /// REP STOS.
    REP_STOS = rep_stos, FAULTS | RCX | RDI;
    /// REP LODS.
    REP_LODS = rep_lods, FAULTS | RAX | RCX | RSI;
    /// REPE or REPNE SCAS.
    REP_SCAS = rep_scas, FAULTS | COMPARE | RCX | RDI;
    /// REPE or REPNE CMPS.
    REP_CMPS = rep_cmps, FAULTS | COMPARE | RCX | RSI | RDI;
}

/// Elements between looks at the request word where work goes element by element.
const BATCH: u64 = 256;

/// The helpers' operand: element width, address width, segment of the source, REPNE of a comparison.
pub fn pack(ty: Ty, address: Ty, seg: usize, until_equal: bool) -> u64 {
    ty as u64 | (address as u64) << 2 | (seg as u64) << 4 | (until_equal as u64) << 8
}

/// Mark in the operand of the helpers that only move data.
pub const MOVES: u64 = 1 << 9;

/// A repeated instruction under way.
struct Rep {
    ty: Ty,
    address: Ty,
    seg: usize,
    until_equal: bool,
    /// MOVS or STOS.
    moves: bool,
    /// Element size, negative with DF.
    step: u64,
    count: u64,
    si: u64,
    di: u64,
    /// Elements until the next look at the request word; single-stepping stops after each.
    budget: u64,
    /// Translated code was dropped.
    dropped: bool,
}

impl Rep {
    fn new(cpu: &Cpu, how: u64) -> Self {
        let (ty, address) = (ty_of(how), ty_of(how >> 2));
        let m = address.mask();
        let size = ty.bytes() as u64;
        let down = cpu.state.rflags & flag::DF != 0;
        Self {
            ty,
            address,
            seg: (how >> 4 & 7) as usize,
            until_equal: how >> 8 & 1 != 0,
            moves: how >> 9 & 1 != 0,
            step: if down { size.wrapping_neg() } else { size },
            count: cpu.gpr(reg::RCX) & m,
            si: cpu.gpr(reg::RSI) & m,
            di: cpu.gpr(reg::RDI) & m,
            budget: if cpu.runs_alone() { 1 } else { BATCH },
            dropped: false,
        }
    }

    fn forward(&self) -> bool {
        self.step == self.ty.bytes() as u64
    }

    /// Bytes that may be done in one run from offset `at`: the count, the budget of a single step, the address wrap.
    fn run_length(&self, at: u64) -> u64 {
        let size = self.ty.bytes() as u64;
        let most = if self.budget == 1 { 1 } else { self.count.min(1 << 20) };
        let room = (self.address.mask() - at).saturating_add(1);
        (most * size).min(room / size * size)
    }

    /// Moves on by `n` elements.
    fn advance(&mut self, n: u64, source: bool, destination: bool) {
        let (by, m) = (self.step.wrapping_mul(n), self.address.mask());
        self.count -= n;
        if source {
            self.si = self.si.wrapping_add(by) & m;
        }
        if destination {
            self.di = self.di.wrapping_add(by) & m;
        }
        self.budget = self.budget.saturating_sub(n);
    }

    /// Stores an element. If it drops translated code, that may be the instruction itself: it is fetched anew, so that the
    /// element which changes it is the last that it does as it was.
    fn store(&mut self, cpu: &mut Cpu, linear: u64, value: u64) -> Result<(), Fault> {
        let before = cpu.blocks.invalidations();
        cpu.store(self.ty, linear, value)?;
        self.dropped = cpu.blocks.invalidations() != before;
        Ok(())
    }

    /// Stop here and let the vCPU look around.
    fn pause(&mut self, cpu: &Cpu) -> bool {
        if self.dropped {
            return true;
        }
        if self.budget > 0 {
            return false;
        }
        self.budget = BATCH;
        cpu.runs_alone() || cpu.requested() != 0
    }

    /// Silicon cuts RCX to 32-bit addresses before all else, and the addresses too where it only moves data: seen with a
    /// count of 0 and where the first element faults.
    fn begin(&self, cpu: &mut Cpu, source: bool, destination: bool) {
        set_reg(cpu, reg::RCX, self.address, self.count);
        if self.moves {
            self.commit(cpu, source, destination);
        }
    }

    /// Writes the registers back.
    fn commit(&self, cpu: &mut Cpu, source: bool, destination: bool) {
        set_reg(cpu, reg::RCX, self.address, self.count);
        if source {
            set_reg(cpu, reg::RSI, self.address, self.si);
        }
        if destination {
            set_reg(cpu, reg::RDI, self.address, self.di);
        }
    }
}

/// Linear address of `bytes` bytes at offset `ea` in segment `seg`, which hold elements of type `ty`.
fn linear(cpu: &Cpu, ty: Ty, seg: usize, ea: u64, bytes: u64, write: bool) -> Result<u64, Fault> {
    let m = cpu.state.mode;
    let linear = if m & mode::CS64 != 0 {
        let base = if seg < reg::FS { 0 } else { cpu.state.segs.get(seg).map_or(0, |s| s.base) };
        base.wrapping_add(ea)
    } else if m & mode::FLAT != 0 && seg != reg::CS && seg < reg::FS {
        ea
    } else {
        cpu.seg_check(seg, ea, bytes as u32, write)?
    };
    check_alignment(cpu, linear, ty.bytes() as u64)
}

/// [`mem`] flags of the source.
fn source_flags(seg: usize) -> u16 {
    if seg == reg::SS { mem::STACK } else { 0 }
}

/// Runs `element` until the count is used up, it says stop, or it is time to look around.
fn repeat(
    cpu: &mut Cpu,
    how: u64,
    (source, destination): (bool, bool),
    mut element: impl FnMut(&mut Cpu, &mut Rep) -> Result<bool, Fault>,
) -> Result<u64, Fault> {
    let mut r = Rep::new(cpu, how);
    r.begin(cpu, source, destination);
    if r.count == 0 {
        return Ok(0);
    }
    let count = r.count;
    let again = loop {
        match element(cpu, &mut r) {
            Ok(true) if r.count > 0 => {}
            Ok(_) => break false,
            Err(fault) => {
                if r.count != count {
                    r.commit(cpu, source, destination);
                }
                return Err(fault);
            }
        }
        if r.pause(cpu) {
            break true;
        }
    };
    r.commit(cpu, source, destination);
    Ok(again as u64)
}

fn rep_movs(cpu: &mut Cpu, how: u64, _: u64, _: u64) -> Result<u64, Fault> {
    repeat(cpu, how, (true, true), |cpu, r| {
        let size = r.ty.bytes() as u64;
        if r.forward() {
            let len = r.run_length(r.si).min(r.run_length(r.di));
            if let (true, Ok(s), Ok(d)) =
                (len > 0, linear(cpu, r.ty, r.seg, r.si, len, false), linear(cpu, r.ty, reg::ES, r.di, len, true))
            {
                let done = cpu.copy_run(d, s, len, size)?;
                if done > 0 {
                    r.advance(done / size, true, true);
                    return Ok(true);
                }
            }
        }
        let s = linear(cpu, r.ty, r.seg, r.si, size, false)?;
        let v = cpu.load_flags(r.ty, s, source_flags(r.seg))?;
        let d = linear(cpu, r.ty, reg::ES, r.di, size, true)?;
        r.store(cpu, d, v)?;
        r.advance(1, true, true);
        Ok(true)
    })
}

fn rep_stos(cpu: &mut Cpu, how: u64, _: u64, _: u64) -> Result<u64, Fault> {
    repeat(cpu, how, (false, true), |cpu, r| {
        let size = r.ty.bytes() as u64;
        let value = cpu.gpr(reg::RAX);
        if r.forward() {
            let len = r.run_length(r.di);
            if let (true, Ok(d)) = (len > 0, linear(cpu, r.ty, reg::ES, r.di, len, true)) {
                let done = cpu.fill_run(d, len, value, size)?;
                if done > 0 {
                    r.advance(done / size, false, true);
                    return Ok(true);
                }
            }
        }
        let d = linear(cpu, r.ty, reg::ES, r.di, size, true)?;
        r.store(cpu, d, value)?;
        r.advance(1, false, true);
        Ok(true)
    })
}

fn rep_lods(cpu: &mut Cpu, how: u64, _: u64, _: u64) -> Result<u64, Fault> {
    repeat(cpu, how, (true, false), |cpu, r| {
        let s = linear(cpu, r.ty, r.seg, r.si, r.ty.bytes() as u64, false)?;
        let v = cpu.load_flags(r.ty, s, source_flags(r.seg))?;
        set_reg(cpu, reg::RAX, r.ty, v);
        r.advance(1, true, false);
        Ok(true)
    })
}

/// Flags of `a - b`; whether the repetition goes on. Flags are set at a stop only: a fault in the middle leaves those
/// from before the instruction (SDM 2, REP).
fn compare(cpu: &mut Cpu, r: &Rep, a: u64, b: u64) -> bool {
    let res = a.wrapping_sub(b) & r.ty.mask();
    let go = (res == 0) != r.until_equal;
    if !go || r.count == 0 || r.budget == 0 {
        cpu.state.cc_op = flags::pack(CcKind::Sub, r.ty);
        cpu.state.cc_res = res;
        cpu.state.cc_src = b;
    }
    go
}

/// Bytes from offset `at` in one page of segment `seg` that may be looked at ahead of the last element, whose comparison
/// gives the flags; with their linear address.
fn ahead(cpu: &Cpu, r: &Rep, seg: usize, at: u64) -> Option<(u64, u64)> {
    let size = r.ty.bytes() as u64;
    if !r.forward() || r.budget <= 1 || r.count <= 1 {
        return None;
    }
    let len = r.run_length(at).min((r.count - 1).saturating_mul(size));
    let start = linear(cpu, r.ty, seg, at, len.max(1), false).ok()?;
    let room = (PAGE_SIZE - (start & (PAGE_SIZE - 1))) / size * size;
    (!cpu.debugger.watches_page(start, room)).then_some((start, len.min(room)))
}

fn rep_scas(cpu: &mut Cpu, how: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let saved = (cpu.state.cc_op, cpu.state.cc_res, cpu.state.cc_src);
    repeat(cpu, how, (false, true), |cpu, r| {
        if let Some((start, len)) = ahead(cpu, r, reg::ES, r.di) {
            let sought = cpu.gpr(reg::RAX) & r.ty.mask();
            let (index, unit, until_equal) = (cpu.state.mmu_index(), r.ty.bytes() as usize, r.until_equal);
            let n = cpu.state.tlb.scan(index, start, len as usize, unit, |v| (v == sought) != until_equal);
            r.advance(n as u64, false, true);
        }
        let d = linear(cpu, r.ty, reg::ES, r.di, r.ty.bytes() as u64, false)?;
        let v = cpu.load(r.ty, d)?;
        r.advance(1, false, true);
        let a = cpu.gpr(reg::RAX);
        Ok(compare(cpu, r, a, v))
    })
    .inspect_err(|_| (cpu.state.cc_op, cpu.state.cc_res, cpu.state.cc_src) = saved)
}

fn rep_cmps(cpu: &mut Cpu, how: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let saved = (cpu.state.cc_op, cpu.state.cc_res, cpu.state.cc_src);
    repeat(cpu, how, (true, true), |cpu, r| {
        let size = r.ty.bytes() as u64;
        if let (Some((d, most)), Some((s, len))) = (ahead(cpu, r, reg::ES, r.di), ahead(cpu, r, r.seg, r.si)) {
            let index = cpu.state.mmu_index();
            let n = cpu.state.tlb.scan_pairs(index, (s, d), most.min(len) as usize, size as usize, !r.until_equal);
            r.advance(n as u64, true, true);
        }
        // Silicon reads ES:rDI first: its fault wins where both would fault.
        let d = linear(cpu, r.ty, reg::ES, r.di, size, false)?;
        let b = cpu.load(r.ty, d)?;
        let s = linear(cpu, r.ty, r.seg, r.si, size, false)?;
        let a = cpu.load_flags(r.ty, s, source_flags(r.seg))?;
        r.advance(1, true, true);
        Ok(compare(cpu, r, a, b))
    })
    .inspect_err(|_| (cpu.state.cc_op, cpu.state.cc_res, cpu.state.cc_src) = saved)
}
