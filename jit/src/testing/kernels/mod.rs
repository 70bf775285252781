//! How many host instructions a guest instruction takes, for small loops: the numbers are in `counts.txt`, so that a change
//! of any shows in review. They are counted as the loops run, in steady state, in generated code alone (not in helpers).
//!
//! When numbers change for a reason, `BROLGA_BLESS=1 cargo test --release -p brolga-jit --lib kernels` writes the file anew.
//!
//! Code is made for a host of a given level (x86-64-v2 or v3), whatever this one has; numbers of v3 need a host of v3.

mod loops;

use crate::helpers::vec::{Pinned, host_has_avx2};
use crate::lower::{Compiler, Level};
use crate::runtime::compile::CompileService;
use crate::runtime::exec::steps;
use crate::runtime::place::CodeMemory;
use crate::runtime::tier::First;
use crate::state::{cr4, reg};
use crate::system::testing::Guest;
use crate::vcpu::{EngineConfig, Exit};
use loops::{KERNELS, Kernel};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Rounds of a loop in a short run and in a long one; what lies between is counted.
const ROUNDS: [u64; 2] = [8, 24];
/// Runs after which all is compiled and joined.
const RUNS: usize = 12;
/// By so much a number may differ from the pinned one, in hundredths of it.
const TOLERANCE: f64 = 1.0;

/// The columns of the table.
const COLUMNS: [(&str, First, Level); 4] = [
    ("baseline-v2", First::Baseline, Level::V2),
    ("cranelift-v2", First::EachInTurn, Level::V2),
    ("baseline-v3", First::Baseline, Level::V3),
    ("cranelift-v3", First::EachInTurn, Level::V3),
];

/// The host can run code of the level.
fn can_run(level: Level) -> bool {
    level == Level::V2
        || host_has_avx2()
            && ["bmi1", "bmi2", "lzcnt"].iter().all(|name| match *name {
                "bmi1" => is_x86_feature_detected!("bmi1"),
                "bmi2" => is_x86_feature_detected!("bmi2"),
                _ => is_x86_feature_detected!("lzcnt"),
            })
}

/// A guest with a kernel at its RIP.
fn guest(kernel: &Kernel) -> Guest {
    let mut g = Guest::long();
    g.cpu.model = Arc::new(crate::cpuid::parse("max").expect("a processor model"));
    g.cpu.state.cr4 |= cr4::OSXSAVE;
    g.cpu.state.xcr0 = 7;
    g.cpu.update_mode();
    // As programs are translated.
    g.cpu.blocks.relative_everywhere = true;
    loops::put(&mut g, kernel);
    g
}

fn run(g: &mut Guest, kernel: &Kernel, rounds: u64) {
    loops::begin(g, kernel, rounds);
    g.run();
}

/// Guest instructions of a run.
fn instructions(kernel: &Kernel, rounds: u64) -> u64 {
    let mut g = guest(kernel);
    loops::begin(&mut g, kernel, rounds);
    g.cpu.state.halted = false;
    g.cpu.set_single_step(true);
    let mut count = 1;
    while g.cpu.run_loop() == Exit::Debug {
        count += 1;
    }
    assert!(g.cpu.state.halted, "{}: {}", kernel.name, g.cpu.dump());
    count
}

/// Host instructions of a run for each of its guest instructions, and the compiled regions.
fn ratio(kernel: &Kernel, first: First, level: Level) -> f64 {
    let _pinned = Pinned::avx2(level == Level::V3);
    let mut g = guest(kernel);
    let config = EngineConfig { sync: true, ..EngineConfig::default() };
    let service = CompileService::start(&config).expect("compilers");
    let memory = CodeMemory::new(1 << 20).expect("memory for generated code");
    let range = memory.lock().addresses();
    let compiler = Compiler::pinned(level).expect("a compiler for the level");
    g.cpu.tier.configure(Arc::new(service), memory, Some(compiler));
    g.cpu.tier.set_first(first);
    if first == First::Baseline {
        g.cpu.tier.count_no_runs();
    }
    for _ in 0..RUNS {
        run(&mut g, kernel, ROUNDS[1]);
    }
    let compiled = g.cpu.tier.stats.compiled;
    assert_eq!(compiled > 0, first != First::Baseline, "{}: {:?}", kernel.name, g.cpu.tier.stats);
    let host = ROUNDS.map(|rounds| steps::count(range.clone(), || run(&mut g, kernel, rounds)));
    assert_eq!(g.cpu.tier.stats.compiled, compiled, "{} was not compiled completely before", kernel.name);
    let guest = ROUNDS.map(|rounds| instructions(kernel, rounds));
    (host[1] - host[0]) as f64 / (guest[1] - guest[0]) as f64
}

/// The table as it is here; what this host cannot run is taken from `pinned`.
fn table(pinned: &Table) -> Table {
    let mut rows = Vec::new();
    for kernel in KERNELS {
        let cells = COLUMNS.iter().enumerate().map(|(n, (_, first, level))| {
            if kernel.level == Level::V3 && *level == Level::V2 {
                return None;
            }
            if !can_run(*level) {
                return pinned.cell(kernel.name, n);
            }
            Some(ratio(kernel, *first, *level))
        });
        rows.push((kernel.name.to_owned(), cells.collect()));
    }
    Table { rows }
}

/// Host instructions per guest instruction, by kernel and column.
struct Table {
    rows: Vec<(String, Vec<Option<f64>>)>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default().to_owned();
            (name, words.map(|w| w.parse().ok()).collect())
        };
        Self { rows: lines.map(row).collect() }
    }

    fn print(&self) -> String {
        let mut out = String::from(
            "# Host instructions per guest instruction, counted by kernels/mod.rs, which tells how to write this anew.\n",
        );
        let columns: String = COLUMNS.iter().map(|(name, ..)| format!("{name:>14}")).collect();
        let _ = writeln!(out, "{:<14}{columns}", "# loop");
        for (name, cells) in &self.rows {
            let cells = cells.iter().map(|c| c.map_or("-".to_owned(), |c| format!("{c:.2}")));
            let cells: String = cells.map(|c| format!("{c:>14}")).collect();
            let _ = writeln!(out, "{name:<14}{cells}");
        }
        out
    }

    fn cell(&self, name: &str, column: usize) -> Option<f64> {
        *self.rows.iter().find(|(n, _)| n == name)?.1.get(column)?
    }

    /// What differs in `self`, measured, from the pinned numbers.
    fn differences(&self, pinned: &Table) -> String {
        let mut out = String::new();
        for (name, cells) in &self.rows {
            for ((n, found), (column, ..)) in cells.iter().enumerate().zip(COLUMNS) {
                let was = pinned.cell(name, n);
                let near = match (found, was) {
                    (Some(found), Some(was)) => (found - was).abs() <= 0.005 + was * TOLERANCE / 100.0,
                    (found, was) => found.is_none() && was.is_none(),
                };
                if !near {
                    let _ = writeln!(out, "{name}, {column}: {found:.2?} instructions, pinned {was:.2?}");
                }
            }
        }
        for (name, _) in pinned.rows.iter().filter(|(name, _)| !self.rows.iter().any(|(n, _)| n == name)) {
            let _ = writeln!(out, "{name} is pinned, but there is no such loop");
        }
        out
    }
}

#[test]
fn host_instructions_per_guest_instruction_are_as_pinned() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/testing/kernels/counts.txt");
    let pinned = Table::parse(&std::fs::read_to_string(&path).unwrap_or_default());
    let found = table(&pinned);
    if std::env::var_os("BROLGA_BLESS").is_some() {
        return std::fs::write(&path, found.print()).expect("a writable file");
    }
    let differences = found.differences(&pinned);
    assert!(
        differences.is_empty(),
        "\n{differences}If that is meant, BROLGA_BLESS=1 and this test write counts.txt anew. Measured:\n{}",
        found.print()
    );
}

#[test]
fn what_rises_falls_appears_or_goes_is_told() {
    let table = |text| Table::parse(text);
    let pinned = table("# a comment\nsum 2.00 3.00 - -\ncopy 4.00 5.00 4.00 5.00\n");
    assert_eq!(table("sum 2.02 2.99 - -\ncopy 4.00 5.00 4.04 5.00\n").differences(&pinned), "");
    for (text, told) in [
        ("sum 2.10 3.00 - -\ncopy 4 5 4 5\n", "sum, baseline-v2: Some(2.10) instructions, pinned Some(2.00)\n"),
        ("sum 2.00 2.90 - -\ncopy 4 5 4 5\n", "sum, cranelift-v2: Some(2.90) instructions, pinned Some(3.00)\n"),
        ("sum 2.00 3.00 1 -\ncopy 4 5 4 5\n", "sum, baseline-v3: Some(1.00) instructions, pinned None\n"),
        ("sum 2.00 3.00 - -\n", "copy is pinned, but there is no such loop\n"),
    ] {
        assert_eq!(table(text).differences(&pinned), told);
    }
    assert_eq!(Table::parse(&pinned.print()).differences(&pinned), "", "the text form holds all of it");
}

#[test]
fn guest_instructions_are_those_of_the_loops() {
    for kernel in KERNELS.iter().filter(|k| k.level == Level::V2 || can_run(Level::V3)) {
        let [short, long] = ROUNDS.map(|rounds| instructions(kernel, rounds));
        let each = (long - short) as f64 / (ROUNDS[1] - ROUNDS[0]) as f64;
        assert!((3.0..=16.0).contains(&each), "{}: {each} instructions a round", kernel.name);
        let mut g = guest(kernel);
        run(&mut g, kernel, ROUNDS[0]);
        assert_eq!(g.cpu.gpr(reg::RCX), 0, "{} runs to its end", kernel.name);
    }
}
