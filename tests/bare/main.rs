//! Bare-metal programs for what user mode cannot reach: page faults, privilege, interrupts, code that changes itself,
//! debug registers, system calls. Each is assembled, started as a multiboot kernel, and must print the lines that its
//! source marks `expect:`, the same in the interpreter and in compiled code.
//!
//! The expectations are the manuals' and silicon's. QEMU differs where it is more permissive than they are: no segment
//! limits, no SIMD exceptions, unknown MSRs and reserved control bits accepted, P clear in
//! error codes for reserved bits, #GP in place of #SS for non-canonical stack addresses.
#![forbid(unsafe_code)]

mod counted;
mod gdb;
mod logs;
mod profile;
mod saving;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The engine's ways to run code, as `-accel` names them.
const ACCELERATORS: &[&str] = &["interp", "jit", "jit,sync=on", "jit,check=on", "jit,check=regions"];
/// What isa-debug-exit makes of the 0x10 that a finished program writes: `(value << 1) | 1`.
const FINISHED: i32 = 0x21;
/// How long a program may take; they need milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the sources are.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bare/programs").join(name)
}

/// Run a build tool; it must succeed.
fn tool(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: run tools/setup"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The 64-bit ELF file that [`assemble`] makes first, for debuggers.
fn program_with_symbols(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.elf64"))
}

/// Assemble a program to a 32-bit ELF file, as multiboot wants it: once, for tests that run at the same time share the files.
fn assemble(name: &str) -> PathBuf {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let wide = program_with_symbols(name);
    let narrow = wide.with_extension("elf");
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.contains(name) {
        return narrow;
    }
    tool(
        Command::new("gcc")
            .args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-T"])
            .arg(source("link.ld"))
            .arg("-o")
            .arg(&wide)
            .arg(source("start.S"))
            .arg(source(&format!("{name}.S"))),
    );
    tool(Command::new("objcopy").args(["-O", "elf32-i386"]).args([&wide, &narrow]));
    made.insert(name.to_owned());
    narrow
}

/// Run a program to its end.
fn run(image: &Path, accelerator: &str) -> Output {
    run_with(image, accelerator, &[]).1
}

/// `run` with more options; also the process's number.
fn run_with(image: &Path, accelerator: &str, more: &[&str]) -> (u32, Output) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_brolga"))
        .args(["-m", "64", "-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot"])
        .args(["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-cpu", "max", "-accel", accelerator, "-kernel"])
        .arg(image)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the emulator starts");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child to wait for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("our own child");
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    (child.id(), child.wait_with_output().expect("the emulator's output"))
}

/// The lines that a source says it prints.
fn expected(name: &str) -> String {
    let text = fs::read_to_string(source(&format!("{name}.S"))).expect("a readable source");
    let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("expect: ")).collect();
    assert!(!lines.is_empty(), "{name}.S expects nothing");
    lines.join("\n") + "\n"
}

/// Both texts side by side, differing lines marked.
fn compare(expected: &str, printed: &str) -> String {
    let count = expected.lines().count().max(printed.lines().count());
    let line = |text: &str, at| text.lines().nth(at).unwrap_or("(nothing)").to_owned();
    (0..count)
        .map(|at| match (line(expected, at), line(printed, at)) {
            (theirs, ours) if theirs == ours => format!("  {ours}\n"),
            (theirs, ours) => format!("- {theirs}\n+ {ours}\n"),
        })
        .collect()
}

/// The program's output must be what its source says, in every way to run it.
#[track_caller]
fn prints_what_it_should(name: &str) {
    let (image, expected) = (assemble(name), expected(name));
    let mut wrong = String::new();
    for accelerator in ACCELERATORS {
        let output = run(&image, accelerator);
        let printed = String::from_utf8_lossy(&output.stdout);
        if printed != expected || output.status.code() != Some(FINISHED) {
            wrong += &format!(
                "== {name} with -accel {accelerator}: {}\n{}{}\n",
                output.status,
                compare(&expected, &printed),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a20() {
    prints_what_it_should("a20");
}

#[test]
fn paging() {
    prints_what_it_should("paging");
}

#[test]
fn privilege() {
    prints_what_it_should("privilege");
}

#[test]
fn interrupts() {
    prints_what_it_should("interrupts");
}

#[test]
fn selfmodify() {
    prints_what_it_should("selfmodify");
}

#[test]
fn debug() {
    prints_what_it_should("debug");
}

#[test]
fn syscall() {
    prints_what_it_should("syscall");
}

#[test]
fn a_triple_fault_says_where_and_ends_with_no_reboot() {
    let image = assemble("triple");
    for accelerator in ACCELERATORS {
        let output = run(&image, accelerator);
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(output.status.code().is_some(), "-accel {accelerator}: {}: {said}", output.status);
        for word in ["triple fault", "rip", "rax", "cr3", "00000000deadbeef"] {
            assert!(said.contains(word), "-accel {accelerator}: the report has no {word}:\n{said}");
        }
        assert_eq!(String::from_utf8_lossy(&output.stdout), "before\n");
    }
}

#[test]
fn the_perf_map_names_code_of_both_tiers() {
    let (process, output) = run_with(&assemble("selfmodify"), "jit,sync=on", &["-perfmap"]);
    assert_eq!(output.status.code(), Some(FINISHED));
    let path = format!("/tmp/perf-{process}.map");
    let text = fs::read_to_string(&path).expect("a perf map");
    fs::remove_file(&path).expect("our own file");
    let mut names = Vec::new();
    for line in text.lines() {
        let [start, len, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("not a line for perf: {line}") };
        assert!(u64::from_str_radix(start, 16).is_ok_and(|at| at > 0x1000), "{line}");
        assert!(u64::from_str_radix(len, 16).is_ok_and(|len| (1..1 << 20).contains(&len)), "{line}");
        names.push(name);
    }
    for tier in ["-baseline", "-region"] {
        // The program lies at 2 MiB.
        assert!(names.iter().any(|n| n.starts_with("guest-0x20") && n.ends_with(tier)), "nothing for {tier}:\n{text}");
    }
}
