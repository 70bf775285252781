//! IR file tests (`tests/filetests/*.ir`). A file's first line says what is done with its cases:
//!
//! - `test lift BITS`: a case is `bytes HEX`, at 0x1000; expected is its IR.
//! - `test verifier`: a case is a block of IR; expected is what the verifier says.
//! - `test passes`: a case is a block; expected are its operations after the passes.
//! - `test run`: a case is a block and `; run BEFORE => AFTER` lines, registers and memory as in the one-line cases
//!   ([`super::cases`]), with `count=N` for the instructions that it counts; it is run by the interpreter, as written and after the passes, and as code of both compilers.
//!
//! Lines that start with `;>` after a case are what is expected; `BROLGA_BLESS=1` writes them anew. Other lines that start
//! with `;` are for the reader.

use super::cases::{CODE, DATA, Side, assign, bytes};
use super::*;
use crate::counter::Counter;
use crate::fault::Fault;
use crate::ir::Block;
use crate::ir::op::ALL;
use crate::ir::{Op, parse, text, verify};
use crate::passes;
use crate::runtime::exec::Leave;
use crate::state::mode;
use std::path::PathBuf;

/// A case: what is given, what is expected, `run` lines.
#[derive(Default)]
struct Case {
    given: String,
    expected: Vec<String>,
    runs: Vec<String>,
}

struct File {
    path: PathBuf,
    /// Words of the first line after `test`.
    kind: Vec<String>,
    cases: Vec<Case>,
}

impl File {
    fn read(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests").join(name);
        let content = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut lines = content.lines();
        let kind = lines.next().and_then(|l| l.strip_prefix("test ")).expect("`test KIND` in the first line");
        let mut file = Self { path, kind: kind.split_whitespace().map(str::to_string).collect(), cases: Vec::new() };
        for line in lines {
            let last = file.cases.last_mut();
            if starts_case(line) {
                file.cases.push(Case { given: format!("{line}\n"), ..Case::default() });
            } else if let Some(expected) = line.strip_prefix(";>") {
                last.expect("a case before it").expected.push(expected.trim().to_string());
            } else if let Some(run) = line.strip_prefix("; run ") {
                last.expect("a case before it").runs.push(run.to_string());
            } else if !line.starts_with(';') && !line.trim().is_empty() {
                let case = last.expect("a case before it");
                case.given += line;
                case.given += "\n";
            }
        }
        assert!(!file.cases.is_empty(), "{name} has cases");
        file
    }

    /// Compares what each case gives with what is expected, or writes it down.
    fn check(&self, result: impl Fn(&str) -> String) {
        let found: Vec<Vec<String>> =
            self.cases.iter().map(|c| result(&c.given).lines().map(|l| l.trim().to_string()).collect()).collect();
        if std::env::var_os("BROLGA_BLESS").is_some() {
            return self.bless(&found);
        }
        for (case, found) in self.cases.iter().zip(&found) {
            assert_eq!(&case.expected, found, "\n{}: found\n{}of\n{}", self.path.display(), shown(found), case.given);
        }
    }

    fn bless(&self, found: &[Vec<String>]) {
        let content = std::fs::read_to_string(&self.path).expect("the file read before");
        let (mut out, mut inside, mut results) = (String::new(), false, found.iter());
        let mut finish = |out: &mut String, inside: &mut bool| {
            if std::mem::take(inside) {
                *out += &shown(results.next().expect("a result for each case"));
            }
        };
        for line in content.lines().filter(|l| !l.starts_with(";>")) {
            if line.trim().is_empty() || line.starts_with(';') || starts_case(line) {
                finish(&mut out, &mut inside);
            }
            inside |= starts_case(line);
            out += line;
            out += "\n";
        }
        finish(&mut out, &mut inside);
        std::fs::write(&self.path, out).expect("a file that can be written");
    }
}

fn starts_case(line: &str) -> bool {
    line.starts_with("block ") || line.starts_with("bytes ")
}

fn shown(lines: &[String]) -> String {
    lines.iter().map(|l| format!(";> {l}\n")).collect()
}

/// The operations of a block, without its header.
fn operations(block: &Block) -> String {
    block.insts.iter().map(|i| format!("{}: {}\n", i.off, text::print_inst(i))).collect()
}

fn parsed(given: &str) -> Block {
    parse::parse(given).unwrap_or_else(|why| panic!("{why}\n{given}"))
}

fn machine(bits: Bits) -> Machine {
    Machine::new("max", bits, &[CODE, DATA].map(|linear| Page { linear, writable: true }))
}

fn lifted(bits: Bits, given: &str) -> String {
    let m = machine(bits);
    let code = bytes(&given.trim_start_matches("bytes").split_whitespace().collect::<String>());
    let block =
        lift::lift_block(&code, 0x1000, m.cpu.state.mode, &m.cpu.model, lift::MAX_INSNS).expect("whole instructions");
    verify::check(&block).expect("correct IR");
    operations(&block)
}

fn optimised(given: &str) -> String {
    let mut block = parsed(given);
    verify::check(&block).expect("correct IR");
    passes::run(&mut block);
    verify::check(&block).expect("correct IR after the passes");
    operations(&block)
}

impl Machine {
    /// With something for `count` to count in; translated code has it only where a case does.
    fn with_counter(mut self) -> Self {
        let counter = Arc::new(Counter::default());
        counter.set_limit(u64::MAX);
        self.cpu.state.counter = Arc::as_ptr(&counter);
        Arc::get_mut(&mut self.cpu.shared).expect("nobody else has it").counter = Some(counter);
        self
    }

    fn counter(&self) -> &Counter {
        self.cpu.shared.counter.as_ref().expect("a machine with one")
    }

    /// Runs a block of IR that stands for no guest code.
    fn run_ir(&mut self, block: &Block, tier: Tier) -> Result<(), Fault> {
        if matches!(tier, Tier::Lifted | Tier::Optimised) {
            return self.cpu.run_block(block);
        }
        let entry = self.executor.compiling().entry(block, tier).expect("code for the block");
        self.cpu.state.code_stale = 0;
        self.cpu.state.heat[0] = i32::MAX;
        match self.cpu.enter(entry) {
            Leave::Interpret => {
                let off = self.cpu.state.rip.wrapping_sub(block.rip);
                let at = block.insts.iter().position(|i| i.off as u64 == off).expect("an operation at RIP");
                self.cpu.run_from(block, at)
            }
            Leave::Fault => Err(self.cpu.pending_fault.take().expect("the fault")),
            _ => Ok(()),
        }
    }
}

/// The lines in which the registers differ.
fn differences(found: &Registers, wanted: &Registers) -> String {
    let (found, wanted) = (format!("{found:#x?}"), format!("{wanted:#x?}"));
    let lines = found.lines().zip(wanted.lines()).enumerate().filter(|(_, (f, w))| f != w);
    lines.map(|(n, (f, w))| format!("line {n}: {} {}\n", f.trim(), w.trim())).collect()
}

fn run_case(m: &mut Machine, case: &Case, tier: Tier) {
    let mut block = parsed(&case.given);
    block.mode = m.cpu.state.mode;
    if block.insts.iter().all(|i| i.op != Op::Count) {
        block.mode &= !mode::COUNTED;
    }
    verify::check(&block).expect("correct IR");
    if tier != Tier::Lifted {
        passes::run(&mut block);
    }
    assert!(!case.runs.is_empty(), "no `; run` line:\n{}", case.given);
    for run in &case.runs {
        let (before, after) = run.split_once("=>").expect("an arrow");
        let mut regs = Registers { rip: block.rip, ..Registers::default() };
        let (mut given, mut wanted) = (Side::default(), Side::default());
        before.split_whitespace().for_each(|w| assign(w, &mut regs, &mut given));
        m.write(DATA, &[0; PAGE_SIZE as usize]);
        for (at, b) in &given.memory {
            m.write(*at, b);
        }
        m.set_registers(&regs);
        m.cpu.load_mxcsr();
        let counted = m.counter().count();
        let outcome = match m.run_ir(&block, tier) {
            Ok(()) => Outcome::Done,
            Err(f) => Outcome::Fault { vector: f.vector, error: f.error.unwrap_or(0), address: f.address },
        };
        m.cpu.leave_mxcsr();
        if !after.contains("fault=") {
            regs.rip = block.end_rip();
        }
        let count = after.split_whitespace().find_map(|w| w.strip_prefix("count="));
        let count = count.map_or(0, |n| u64::from_str_radix(n, 16).expect("a count"));
        let registers = after.split_whitespace().filter(|w| !w.starts_with("count="));
        registers.for_each(|w| assign(w, &mut regs, &mut wanted));
        let what = format!("{tier:?}, run {run}\n{}", case.given);
        assert_eq!(outcome, wanted.fault.unwrap_or(Outcome::Done), "{what}");
        assert_eq!(m.counter().count() - counted, count, "instructions counted, {what}");
        let wrong = differences(&m.registers(), &regs);
        assert!(wrong.is_empty(), "{what}found, wanted:\n{wrong}");
        for (at, b) in &wanted.memory {
            let mut found = vec![0; b.len()];
            m.read(*at, &mut found);
            assert_eq!(&found, b, "memory at {at:#x}, {what}");
        }
    }
}

/// Runs a file, and tells which operations it holds.
fn test(name: &str) -> Vec<Op> {
    let file = File::read(name);
    let words: Vec<&str> = file.kind.iter().map(String::as_str).collect();
    match words[..] {
        ["lift", "16"] => file.check(|c| lifted(Bits::B16, c)),
        ["lift", "32"] => file.check(|c| lifted(Bits::B32, c)),
        ["lift", "64"] => file.check(|c| lifted(Bits::B64, c)),
        ["passes"] => file.check(optimised),
        ["verifier"] => file.check(|c| verify::check(&parsed(c)).err().unwrap_or_else(|| "correct".into())),
        ["run" | "traces"] => {
            let mut m = machine(Bits::B64).with_counter();
            let tiers = [Tier::Lifted, Tier::Optimised, Tier::Baseline, Tier::Compiled];
            // Only baseline code is made of traces.
            for tier in tiers.into_iter().filter(|tier| words != ["traces"] || *tier != Tier::Compiled) {
                file.cases.iter().for_each(|c| run_case(&mut m, c, tier));
            }
            assert_eq!(m.refused(), 0);
            return file.cases.iter().flat_map(|c| parsed(&c.given).insts).map(|i| i.op).collect();
        }
        _ => panic!("{}: unknown kind of test: {words:?}", file.path.display()),
    }
    Vec::new()
}

#[test]
fn lifting() {
    for name in ["lift64.ir", "lift32.ir", "lift16.ir"] {
        test(name);
    }
}

#[test]
fn the_verifier() {
    test("verifier.ir");
}

#[test]
fn dead_flags() {
    test("dead-flags.ir");
}

#[test]
fn every_operation_runs_as_it_should() {
    let files = ["integer.ir", "flags.ir", "memory.ir", "state.ir", "vector.ir", "exits.ir", "traces.ir"];
    let seen: Vec<Op> = files.iter().flat_map(|name| test(name)).collect();
    let missing: Vec<&str> = ALL.iter().filter(|op| !seen.contains(op)).map(|op| op.info().name).collect();
    assert!(missing.is_empty(), "operations that no file runs: {missing:?}");
}
