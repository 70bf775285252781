//! Random differential test: single instructions on the engine and on the host processor.
//!
//! `difftest [--family int|vec|avx|x87] [--bits 64|32|16] [--tier lifted|optimised|baseline|jit] [--cases N] [--seed N]
//! [--only NAME] [--length N] [--stop N] [--show]`
//!
//! `difftest --undefined` lists the flags that are not compared on any host, with the manual's words; `vendor` is about hosts
//! that are not Intel's.
//! `difftest --write FILE [--family ..] [--bits ..]` writes the cases of tests/insn; they are Intel's.
//!
//! Each instruction has its own seed, printed with a mismatch; `--only CODE --seed SEED --cases 1 --exact` replays it with
//! all its inputs. Without `--tier` the interpreter runs half of them as lifted and half after the passes.

mod floats;
mod generate;
mod golden;
mod host;
mod options;
mod select;
mod vendor;

use anyhow::{Context, Result, bail};
use brolga_jit::testing::{Bits, Machine, Outcome, Page, Random, Registers, Tier};
use generate::{Case, ENTRY, Generator};
use host::{CODE, CODE_SIZE, DATA, DATA_SIZE, Host, READ_ONLY};
use iced_x86::Code;
use options::Options;
use select::Family;
use std::collections::BTreeMap;
use std::path::Path;

/// Inputs tried with each instruction.
const VARIANTS: u64 = 8;
const AREA: usize = (DATA_SIZE + READ_ONLY) as usize;

/// Both processors with the same memory.
struct Bench {
    host: Host,
    machine: Machine,
    contents: Vec<u8>,
    bits: Bits,
}

/// One side's state after a case.
#[derive(PartialEq)]
struct After {
    outcome: Outcome,
    regs: Registers,
    memory: Vec<u8>,
    /// The test overwrote its own code: what that does mid-instruction is silicon's own business.
    stray: bool,
}

impl Bench {
    fn new(bits: Bits, contents: Vec<u8>) -> Result<Self> {
        let mut pages: Vec<Page> =
            (0..CODE_SIZE / 4096).map(|n| Page { linear: CODE + n * 4096, writable: true }).collect();
        pages.extend((0..DATA_SIZE / 4096).map(|n| Page { linear: DATA + n * 4096, writable: true }));
        pages.push(Page { linear: DATA + DATA_SIZE, writable: false });
        let mut bench = Self {
            host: Host::new(bits).context("setting the host side up")?,
            machine: Machine::new("max", bits, &pages),
            contents,
            bits,
        };
        bench.host.write(CODE, &[0xcc; CODE_SIZE as usize]);
        bench.machine.write(CODE, &[0xcc; CODE_SIZE as usize]);
        bench.restore();
        let (_, read_only) = bench.contents.split_at(DATA_SIZE as usize);
        bench.host.write(DATA + DATA_SIZE, read_only);
        bench.host.protect(true)?;
        Ok(bench)
    }

    fn restore(&mut self) {
        self.host.write(DATA, &self.contents[..DATA_SIZE as usize]);
        self.machine.write(DATA, &self.contents);
    }

    /// Puts a case's memory in place; what would lie outside the writable data is cut off.
    fn patch(&mut self, case: &Case) {
        for (at, bytes) in &case.patches {
            let inside = *at >= DATA && at.saturating_add(bytes.len() as u64) <= DATA + DATA_SIZE;
            if inside {
                self.host.write(*at, bytes);
                self.machine.write(*at, bytes);
            }
        }
    }

    /// Writable memory as a case finds it.
    fn patched(&mut self, case: &Case) -> Vec<u8> {
        self.patch(case);
        self.host.slice(DATA, DATA_SIZE as usize).map(|m| m.to_vec()).unwrap_or_default()
    }

    fn run(&mut self, case: &Case, tier: Tier) -> (After, After) {
        self.patch(case);
        self.host.write(ENTRY, &case.bytes);
        let mut regs = case.regs.clone();
        let outcome = self.host.execute(&mut regs, self.bits);
        let memory = self.host.slice(DATA, DATA_SIZE as usize).map(|m| m.to_vec()).unwrap_or_default();
        self.host.write(ENTRY, &vec![0xcc; case.bytes.len()]);
        // A stray store to the code page: branches must find breakpoints there.
        let stray = self.host.slice(CODE, CODE_SIZE as usize).is_some_and(|c| c.iter().any(|b| *b != 0xcc));
        if stray {
            self.host.write(CODE, &[0xcc; CODE_SIZE as usize]);
        }
        let native = After { outcome, regs, memory, stray };
        self.machine.set_registers(&case.regs);
        let outcome = self.machine.execute(&case.bytes, tier);
        self.machine.write(ENTRY, &vec![0xcc; case.bytes.len()]);
        if stray {
            self.machine.write(CODE, &[0xcc; CODE_SIZE as usize]);
        }
        let mut memory = vec![0; DATA_SIZE as usize];
        self.machine.read(DATA, &mut memory);
        let ours = After { outcome, regs: self.machine.registers(), memory, stray };
        let clean = &self.contents[..DATA_SIZE as usize];
        if native.memory != clean || ours.memory != clean {
            self.restore();
        }
        (native, ours)
    }
}

/// Faults of accesses made in several pieces compare by page: the order of the pieces shows in the address and in what
/// a store wrote before the fault.
fn same_outcome(a: Outcome, b: Outcome, pieces: bool) -> bool {
    match (a, b) {
        (Outcome::Fault { address: x, .. }, Outcome::Fault { address: y, .. }) if pieces => x >> 12 == y >> 12,
        _ => a == b,
    }
}

/// What differs, one line each; empty if nothing does.
fn differences(case: &Case, family: Family, native: &After, ours: &After) -> Vec<String> {
    let mut out = Vec::new();
    let pieces = case.insns.iter().any(|i| select::in_pieces(i.mnemonic()) || i.memory_size().size() > 16);
    if !same_outcome(native.outcome, ours.outcome, pieces) {
        out.push(format!("outcome: host {:x?}, ours {:x?}", native.outcome, ours.outcome));
    }
    let (h, o) = (&native.regs, &ours.regs);
    for n in 0..16 {
        if h.gpr[n] != o.gpr[n] {
            out.push(format!("gpr {n}: before {:x}, host {:x}, ours {:x}", case.regs.gpr[n], h.gpr[n], o.gpr[n]));
        }
        if family.has_vectors() && h.ymm_high[n] != o.ymm_high[n] {
            let before = case.regs.ymm_high[n];
            out.push(format!("ymm{n} high: before {before:x}, host {:x}, ours {:x}", h.ymm_high[n], o.ymm_high[n]));
        }
        if family.has_vectors() && h.xmm[n] != o.xmm[n] {
            out.push(format!("xmm{n}: before {:x}, host {:x}, ours {:x}", case.regs.xmm[n], h.xmm[n], o.xmm[n]));
        }
    }
    if h.rip != o.rip {
        out.push(format!("rip: host {:x}, ours {:x}", h.rip, o.rip));
    }
    let mask = !select::undefined_flags(case);
    if (h.rflags ^ o.rflags) & mask != 0 {
        let (before, diff) = (case.regs.rflags, (h.rflags ^ o.rflags) & mask);
        out.push(format!("rflags: before {before:x}, host {:x}, ours {:x}, differ in {diff:x}", h.rflags, o.rflags));
    }
    if family != Family::Integer {
        float_differences(case, h, o, inexact_open(native), &mut out);
    }
    if pieces && matches!(native.outcome, Outcome::Fault { .. }) {
        return out;
    }
    if let Some(at) = (0..native.memory.len()).find(|n| native.memory[*n] != ours.memory[*n]) {
        let range = at..(at + 16).min(native.memory.len());
        out.push(format!(
            "memory at {:x}: host {:02x?}, ours {:02x?}",
            DATA + at as u64,
            &native.memory[range.clone()],
            &ours.memory[range]
        ));
    }
    out
}

/// An unmasked overflow or underflow of SSE: whether the result was inexact is then said of a result with unbounded
/// exponent (SDM 1, 11.5.2.4 and 11.5.2.5), which the engine does not work out.
fn inexact_open(native: &After) -> u32 {
    const OVERFLOW_UNDERFLOW: u32 = 0x18;
    const PRECISION: u32 = 0x20;
    let raised = matches!(native.outcome, Outcome::Fault { vector: 19, .. });
    let unmasked = native.regs.mxcsr & !(native.regs.mxcsr >> 7);
    if raised && unmasked & OVERFLOW_UNDERFLOW != 0 { PRECISION } else { 0 }
}

fn float_differences(case: &Case, h: &Registers, o: &Registers, open: u32, out: &mut Vec<String>) {
    let b = &case.regs;
    let words = [
        ("mxcsr", b.mxcsr, h.mxcsr & !open, o.mxcsr & !open),
        ("fcw", b.fcw as u32, h.fcw as u32, o.fcw as u32),
        ("fsw", b.fsw as u32, h.fsw as u32, o.fsw as u32),
        ("tags", b.tags as u32, h.tags as u32, o.tags as u32),
    ];
    for (name, before, host, ours) in words {
        if host != ours {
            out.push(format!("{name}: before {before:x}, host {host:x}, ours {ours:x}"));
        }
    }
    for (name, before, host, ours) in
        [("fop", b.fop as u64, h.fop as u64, o.fop as u64), ("fip", b.fip, h.fip, o.fip), ("fdp", b.fdp, h.fdp, o.fdp)]
    {
        if host != ours {
            out.push(format!("{name}: before {before:x}, host {host:x}, ours {ours:x}"));
        }
    }
    for n in 0..8 {
        if h.st[n] != o.st[n] {
            out.push(format!("st{n}: before {:x}, host {:x}, ours {:x}", b.st[n], h.st[n], o.st[n]));
        }
    }
}

/// One case with what the host made of it, for finding out silicon's rules.
fn show(case: &Case, native: &After) {
    println!(
        "CASE `{}` {:x?} flags {:x} -> {:x?} {:x?} flags {:x}",
        text(case),
        case.regs.gpr,
        case.regs.rflags,
        native.outcome,
        native.regs.gpr,
        native.regs.rflags
    );
}

fn report(bench: &Bench, case: &Case, seed: u64, differences: &[String]) {
    println!("MISMATCH `{}` bytes {:02x?} seed {seed}", text(case), case.bytes);
    println!("  gpr {:x?} rflags {:x}", case.regs.gpr, case.regs.rflags);
    for (at, bytes) in &case.patches {
        println!("  memory {at:x}: {bytes:02x?}");
    }
    for d in differences {
        println!("  {d}");
    }
    for line in bench.machine.explain(&case.bytes).lines() {
        println!("    {line}");
    }
}

/// What a run found.
#[derive(Default)]
struct Tally {
    run: u64,
    bad: u64,
    reported: usize,
    refused: u64,
    /// Mismatches and first seed by opcode.
    failures: BTreeMap<String, (u64, u64)>,
}

/// One instruction, or a sequence, with all its inputs.
fn test(bench: &mut Bench, o: &Options, codes: &[Code], code: Code, seed: u64, tally: &mut Tally) {
    let mut generator = Generator::new(o.bits, seed);
    let made = match o.length {
        1 => generator.instruction(code).map(|(insn, bytes)| (vec![insn], bytes)),
        n => generator.sequence(codes, n),
    };
    let Some((insns, bytes)) = made else { return };
    let tier = o.tier.unwrap_or(if seed & 1 == 0 { Tier::Lifted } else { Tier::Optimised });
    for variant in 1..=VARIANTS {
        let inputs = seed.wrapping_add(variant.wrapping_mul(0x9e6c_63d0_676a_9a99));
        let Some(case) = Generator::new(o.bits, inputs).case(&insns, &bytes, o.family) else { continue };
        tally.run += 1;
        let (native, mut ours) = bench.run(&case, tier);
        if o.show {
            show(&case, &native);
        }
        if bench.machine.refused() > tally.refused {
            tally.refused += 1;
            println!("NOT COMPILED `{}` seed {seed}", text(&case));
        }
        vendor::take_over(&case, o.bits, &native, &mut ours);
        let wrong = differences(&case, o.family, &native, &ours);
        if wrong.is_empty() || native.stray || vendor::beyond(&case, &native, &ours) {
            continue;
        }
        tally.bad += 1;
        let name = if o.length == 1 { format!("{code:?}") } else { "sequence".to_owned() };
        let entry = tally.failures.entry(name).or_insert((0, seed));
        entry.0 += 1;
        if (entry.0 == 1 || o.only.is_some() || o.length > 1) && tally.reported < o.stop {
            tally.reported += 1;
            report(bench, &case, seed, &wrong);
        }
    }
}

/// The instructions of a case.
fn text(case: &Case) -> String {
    let texts: Vec<String> = case.insns.iter().map(|i| i.to_string()).collect();
    texts.join("; ")
}

/// Writes one-line cases for every opcode: from flags all clear and all set, and one that faults if there is one. In 32-bit
/// mode only for opcodes that 64-bit mode does not have.
fn write(o: &Options, codes: &[Code], path: &Path) -> Result<()> {
    let mut bench = Bench::new(o.bits, vec![0; AREA])?;
    let entry = Generator::new(o.bits, 0).entry();
    // Lines of 256 bits are long, and the opcodes many.
    let enough = if o.family == Family::Avx { 1 } else { 2 };
    let mut out =
        String::from("# Written by tools/difftest --write: what silicon did. See jit/src/testing/cases.rs.\n");
    for code in codes.iter().filter(|c| o.bits != Bits::B32 || !c.op_code().mode64()) {
        let (mut done, mut faults) = (0, 0);
        for seed in 0..200 {
            let Some((insn, bytes)) = Generator::new(o.bits, seed).instruction(*code) else { continue };
            let Some(mut case) = Generator::new(o.bits, !seed).case(&[insn], &bytes, o.family) else { continue };
            golden::simplify(&mut case, o.bits);
            case.regs.rflags = if done == 0 { 2 } else { 0x8d7 };
            let before = bench.patched(&case);
            let (native, _) = bench.run(&case, Tier::Lifted);
            let count = if native.outcome == Outcome::Done { &mut done } else { &mut faults };
            *count += 1;
            if *count <= if native.outcome == Outcome::Done { enough } else { 1 } {
                out.push_str(&golden::line(&case, o.family, &native, &before, entry));
                out.push('\n');
            }
            if done >= enough && (faults >= 1 || seed > 20) {
                break;
            }
        }
    }
    std::fs::write(path, out).with_context(|| format!("writing {}", path.display()))
}

fn main() -> Result<()> {
    let o = options::parse()?;
    if o.undefined {
        for u in select::UNDEFINED {
            println!("{:?}: flags {:#x}: {}", u.mnemonics, u.flags, u.sdm);
        }
        return Ok(());
    }
    let bitness = [16, 32, 64][o.bits as usize];
    let mut codes = select::opcodes(o.family, bitness);
    if let Some(only) = &o.only {
        let is = |name: String| name.to_lowercase() == *only;
        codes.retain(|c| is(format!("{:?}", c.mnemonic())) || is(format!("{c:?}")));
    }
    if codes.is_empty() {
        bail!("no opcode is left to test");
    }
    if let Some(path) = &o.write {
        if !vendor::intel_host() {
            bail!("--write: the lines are what Intel's silicon does; run it on an Intel host");
        }
        return write(&o, &codes, path);
    }
    let mut r = Random::new(7);
    let contents = (0..AREA / 8).flat_map(|_| r.value().to_le_bytes()).collect();
    let mut bench = Bench::new(o.bits, contents)?;
    let mut tally = Tally::default();
    for n in 0..o.cases.div_ceil(VARIANTS) {
        let seed = if o.exact { o.seed } else { o.seed.wrapping_mul(0x1_0000_0000).wrapping_add(n) };
        let few = codes.len() <= 64;
        let code = if few { codes[n as usize % codes.len()] } else { Random::new(!seed).pick(&codes) };
        test(&mut bench, &o, &codes, code, seed, &mut tally);
    }
    for (code, (count, seed)) in &tally.failures {
        println!("{code}: {count} mismatches, first with seed {seed}");
    }
    println!("{} opcodes, {} cases from seed {}, {} mismatches", codes.len(), tally.run, o.seed, tally.bad);
    if tally.bad > 0 {
        bail!("the engine and the host processor disagree");
    }
    Ok(())
}
