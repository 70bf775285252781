//! One-line cases for `tests/insn`: what silicon did, so that machines without it can check us. The format is described
//! where it is read (jit/src/testing/cases.rs).

use crate::generate::Case;
use crate::select::{self, Family};
use crate::{After, host};
use brolga_jit::testing::{Bits, Outcome, Registers};
use iced_x86::InstructionInfoFactory;
use std::fmt::Write;

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Gives registers that the instruction does not use their defaults, so that lines stay short.
pub fn simplify(case: &mut Case, bits: Bits) {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&case.insns[0]);
    let (mut general, mut vectors, mut stack) = (0u32, 0u32, 0u32);
    let mut mmx = false;
    for r in info.used_registers() {
        let r = r.register();
        if r.is_gpr() {
            general |= 1 << r.full_register().number();
        } else if r.is_vector_register() {
            vectors |= 1 << r.number();
        } else if r.is_st() || r.is_mm() {
            mmx |= r.is_mm();
            stack |= 1 << r.number();
        }
    }
    let unused = |mask: u32, n: usize| mask >> n & 1 == 0;
    let regs = &mut case.regs;
    let count = if bits == Bits::B64 { 16 } else { 8 };
    (0..count).filter(|n| unused(general, *n)).for_each(|n| regs.gpr[n] = default_gpr(n));
    (count..16).for_each(|n| regs.gpr[n] = default_gpr(n));
    (0..16).filter(|n| unused(vectors, *n)).for_each(|n| (regs.xmm[n], regs.ymm_high[n]) = (0, 0));
    (0..8).filter(|n| unused(stack, *n)).for_each(|n| regs.st[n] = 0);
    if vectors != 0 || mmx {
        // The x87 side plays no part but for the registers that MMX shares.
        (regs.fcw, regs.fsw, regs.tags) = (0x37f, 0, if mmx { 0xff } else { 0 });
        (regs.fop, regs.fip, regs.fdp) = (0, 0, 0);
    }
    case.patches
        .retain(|(at, b)| *at >= host::DATA && at.saturating_add(b.len() as u64) <= host::DATA + host::DATA_SIZE);
}

fn default_gpr(n: usize) -> u64 {
    0x0101_0101 * (n as u64 + 1)
}

/// The line of a case.
pub fn line(case: &Case, family: Family, native: &After, before: &[u8], entry: u64) -> String {
    let mut out = String::new();
    hex(&mut out, &case.bytes);
    let defaults = Registers { gpr: std::array::from_fn(default_gpr), rip: entry, ..Registers::default() };
    let _ = write!(out, " {} |", case.insns[0]);
    registers(&mut out, &defaults, &case.regs, family);
    for (at, bytes) in &case.patches {
        memory(&mut out, *at, bytes);
    }
    out.push_str(" =>");
    let mut expected = case.regs.clone();
    if native.outcome == Outcome::Done {
        expected.rip += case.bytes.len() as u64;
    }
    registers(&mut out, &expected, &native.regs, family);
    let undefined = select::undefined_flags(case);
    if undefined != 0 {
        let _ = write!(out, " undefined={undefined:x}");
    }
    if let Outcome::Fault { vector, error, address } = native.outcome {
        let _ = write!(out, " fault={vector:x}:{error:x}:{address:x}");
    }
    let changed = |n: &usize| before[*n] != native.memory[*n];
    let mut at = (0..before.len()).find(changed);
    while let Some(start) = at {
        let end = (start..before.len()).find(|n| !changed(n)).unwrap_or(before.len());
        memory(&mut out, host::DATA + start as u64, &native.memory[start..end]);
        at = (end..before.len()).find(changed);
    }
    out
}

fn memory(out: &mut String, at: u64, bytes: &[u8]) {
    let _ = write!(out, " m{at:x}=");
    hex(out, bytes);
}

fn hex(out: &mut String, bytes: &[u8]) {
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
}

/// Registers of `now` that are not as in `was`.
fn registers(out: &mut String, was: &Registers, now: &Registers, family: Family) {
    for (n, name) in NAMES.iter().enumerate() {
        if was.gpr[n] != now.gpr[n] {
            let _ = write!(out, " {name}={:x}", now.gpr[n]);
        }
    }
    let mut word = |name: &str, was: u64, now: u64| {
        if was != now {
            let _ = write!(out, " {name}={now:x}");
        }
    };
    word("rip", was.rip, now.rip);
    word("rflags", was.rflags, now.rflags);
    if family == Family::Integer {
        return;
    }
    word("mxcsr", was.mxcsr.into(), now.mxcsr.into());
    word("fcw", was.fcw.into(), now.fcw.into());
    word("fsw", was.fsw.into(), now.fsw.into());
    word("tags", was.tags.into(), now.tags.into());
    word("fop", was.fop.into(), now.fop.into());
    word("fip", was.fip, now.fip);
    word("fdp", was.fdp, now.fdp);
    for n in 0..16 {
        if was.xmm[n] != now.xmm[n] {
            let _ = write!(out, " xmm{n}={:x}", now.xmm[n]);
        }
        if was.ymm_high[n] != now.ymm_high[n] {
            let _ = write!(out, " ymm{n}h={:x}", now.ymm_high[n]);
        }
    }
    for n in 0..8 {
        if was.st[n] != now.st[n] {
            let _ = write!(out, " st{n}={:x}", now.st[n]);
        }
    }
}
