//! One-line cases of what user mode cannot reach (`tests/insn/system/*.ins`): system instructions at any privilege level,
//! in any mode, with given control registers, MSRs, descriptor tables, ports and memory. Their expectations are the
//! manual's. Each line is run by the interpreter, on the IR as lifted and after the passes, and as code of both compilers.
//!
//! `BYTES text | SCENE name=value .. => name=value ..`: the scene ([`scene`]) gives mode, tables and defaults, then come
//! registers before, then those that changed; the rest of the machine must be as it was. Numbers are hexadecimal. Besides
//! the names of user-mode cases ([`super::cases`]) there are
//! - `cr0` to `cr4`, `cr8`, `dr0` to `dr7`, `efer`, `xcr0`, `msrNUMBER`, `tsc`, `shadow`, `halted`, `nmi`, `monitor`;
//!   `cr4=+10` sets bits and `cr4=-10` clears them, as for every register;
//! - `gdtr=BASE:LIMIT`, `idtr`; `es=SELECTOR`, which takes the hidden part from the table (or, in real mode, makes it), and
//!   `es=SELECTOR:BASE:LIMIT:ATTRIBUTES`; so for `cs`, `ss`, `ds`, `fs`, `gs`, `ldtr`, `tr`;
//! - `in=VALUE`, what every port gives; `out=PORT:SIZE:VALUE`, a write that must come, in this order;
//! - `mADDRESS=BYTES`, physical memory; `fault=VECTOR`, `fault=VECTOR:ERROR`, `fault=VECTOR:ERROR:ADDRESS`;
//! - `any=NAME`: the register may hold anything.

mod complete;
mod line;
mod scene;

use super::Tier;
use super::executor::Executor;
use line::Line;
use scene::Scenes;
use std::fs;
use std::path::{Path, PathBuf};

/// More rounds than any repeated string instruction of a case takes.
const ROUNDS: usize = 1000;

/// Where the files are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/insn/system")
}

/// The files of system cases and their texts.
fn files() -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder()).expect("the folder of system cases");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "ins"));
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), fs::read_to_string(&p).expect("a readable file"))).collect()
}

/// Lines that are cases.
fn cases(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty())
}

/// Runs one line; what differs from it.
fn run(scenes: &mut Scenes, executor: &mut Executor, line: &Line, tier: Tier) -> Result<(), String> {
    let scene = scenes.get(line.scene);
    let (before, after) = line.states(scene)?;
    scene.restore(&before);
    let cpu = &mut scene.guest.cpu;
    let start = cpu.state.rip;
    cpu.load_mxcsr();
    let mut outcome = Ok(());
    for _ in 0..ROUNDS {
        let done = cpu.state.rip.wrapping_sub(start) as usize;
        let Some(rest) = line.bytes.get(done..).filter(|b| !b.is_empty()) else { break };
        outcome = executor.run(cpu, rest, tier);
        if outcome.is_err() {
            break;
        }
    }
    cpu.leave_mxcsr();
    if outcome.err() != after.fault {
        return Err(format!("found {:x?}, expected {:x?}", outcome.err(), after.fault));
    }
    let found = scene.capture();
    after.state.difference(&found, &after.any)
}

fn run_file(name: &str) {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if std::env::var_os("BROLGA_BLESS").is_some() {
        let blessed: Vec<String> = text.lines().map(line::with_disassembly).collect();
        return fs::write(&path, blessed.join("\n") + "\n").expect("a writable file");
    }
    let (mut scenes, mut executor) = (Scenes::default(), Executor::default());
    let lines: Vec<Line> = cases(&text).map(Line::parse).collect();
    assert!(lines.len() > 10, "the file has its cases");
    let mut wrong = String::new();
    for tier in [Tier::Lifted, Tier::Optimised, Tier::Baseline, Tier::Compiled] {
        for line in &lines {
            assert_eq!(line.text, line::disassembly(line), "the text of {}; BROLGA_BLESS=1 writes it", line.whole);
            if let Err(difference) = run(&mut scenes, &mut executor, line, tier) {
                wrong += &format!("{tier:?}: {}\n    {difference}\n", line.whole);
            }
        }
        // What the first tier does wrong, the others do too.
        assert!(wrong.is_empty(), "\n{wrong}");
    }
    assert_eq!(executor.refused(), 0, "all of them compile");
}

#[test]
fn flags() {
    run_file("flags.ins");
}

#[test]
fn privileged() {
    run_file("privileged.ins");
}

#[test]
fn tables() {
    run_file("tables.ins");
}

#[test]
fn segments() {
    run_file("segments.ins");
}

#[test]
fn transfers() {
    run_file("transfers.ins");
}

#[test]
fn ports() {
    run_file("ports.ins");
}

#[test]
fn avx() {
    if crate::helpers::vec::host_has_avx2() {
        run_file("avx.ins");
    }
}

#[test]
fn saved_state() {
    run_file("state.ins");
}
