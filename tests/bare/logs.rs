//! `-d` items in the forms that tools look for: what QEMU 10 writes.

use super::{FINISHED, assemble, run_with};
use std::path::Path;
use std::process::Command;

/// Runs a program that logs to a file; what it wrote there. `name` tells tests apart.
fn logged(program: &str, name: &str, accelerator: &str, more: &[&str]) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-{name}-%d"));
    let mut args = vec!["-D", path.to_str().expect("UTF-8")];
    args.extend(more);
    let (process, output) = run_with(&assemble(program), accelerator, &args);
    assert_eq!(output.status.code(), Some(FINISHED), "{}", String::from_utf8_lossy(&output.stderr));
    let path = path.to_str().expect("UTF-8").replace("%d", &process.to_string());
    let log = std::fs::read_to_string(&path).expect("the log, named after the process");
    std::fs::remove_file(&path).expect("our own file");
    log
}

/// A number of exactly `digits` hexadecimal digits begins `text`: it, and what follows.
#[track_caller]
fn hex(text: &str, digits: usize) -> (u64, &str) {
    let (number, rest) = text.split_at(digits);
    assert!(!rest.starts_with(|c: char| c.is_ascii_hexdigit()), "more than {digits} digits: {text}");
    (u64::from_str_radix(number, 16).unwrap_or_else(|_| panic!("no {digits} digits: {text}")), rest)
}

#[track_caller]
fn behind<'a>(text: &'a str, begin: &str) -> &'a str {
    text.strip_prefix(begin).unwrap_or_else(|| panic!("'{begin}' does not begin: {text}"))
}

#[test]
fn interrupts_resets_and_registers() {
    let log = logged("interrupts", "int", "jit", &["-d", "int,cpu_reset,cpu,nochain,page"]);
    assert!(log.contains("CPU Reset (CPU 0)\nEAX="), "no reset");
    assert!(log.contains("\nFCW=037f") || log.contains("\nFCW=0040"), "a reset shows all registers");
    assert!(log.contains("Servicing hardware INT=0x20\n"), "no interrupt");
    let events: Vec<&str> = log.lines().filter(|line| line.contains(": v=20 e=0000 i=0 cpl=0 IP=0018:")).collect();
    assert!(events.len() >= 3, "{} timer interrupts", events.len());
    for line in events {
        let (number, rest) = line.split_once(": v=").expect("a number");
        assert!(number.trim_start().parse::<u64>().is_ok() && number.len() >= 6, "{line}");
        assert!(rest.contains(" pc=") && rest.contains(" SP=0010:") && rest.contains(" env->regs[R_EAX]="), "{line}");
    }
    // Registers before each block, as wide as the code is.
    assert!(log.matches("RIP=").count() > 50, "few registers");
    assert!(log.contains("CS =0018 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\n"));
    assert!(log.contains("CS =f000 ffff0000 0000ffff 00009b00\n"), "real mode has no descriptors");
    assert!(log.lines().any(|line| line.starts_with("CCS=") && line.ends_with(" CCO=EFLAGS")));
}

/// What QEMU 10 says of the same program's exceptions, line by line.
#[test]
fn exceptions_as_they_come_up_and_are_delivered() {
    for accelerator in ["interp", "jit"] {
        let log = logged("logged", "exceptions", accelerator, &["-d", "int,mmu,invalid_mem"]);
        let event = |vector: &str| {
            let found = log.lines().find(|line| line.contains(&format!(": v={vector} ")) && line.contains("IP=0018:"));
            found.unwrap_or_else(|| panic!("no {vector} in {log}")).split_once("v=").expect("found by it").1
        };
        assert!(log.contains("check_exception old: 0xffffffff new 0x6\n"));
        assert!(log.contains("check_exception old: 0xffffffff new 0xe\n"));
        let (at, rest) = hex(behind(event("06"), "06 e=0000 i=0 cpl=0 IP=0018:"), 16);
        assert_eq!(hex(behind(rest, " pc="), 16).0, at);
        assert!(event("31").starts_with("31 e=0000 i=1 cpl=0 "), "{}", event("31"));
        assert!(event("0e").starts_with("0e e=0000 i=0 cpl=0 ") && event("0e").ends_with(" CR2=0000008000000000"));
        // Each with registers behind it, without those of the FPU.
        assert!(!log.contains("\nFCW=") && log.matches("\nRIP=").count() >= 3);
        for line in [
            "CR0 update: CR0=0x80010033",
            "CR3 update: CR3=0000000000203000",
            "CR4 update: CR4=00000620",
            "Invalid read at addr 0xC8000000, size 4, region '(null)', reason: rejected",
        ] {
            assert!(log.lines().any(|l| l == line), "no {line}");
        }
    }
}

#[test]
fn registers_of_the_fpu_come_when_asked_for() {
    let log = logged("logged", "fpu", "jit", &["-d", "int,fpu"]);
    assert!(log.contains("\nFCW=") && log.contains("\nXMM14="));
}

/// Where a symbol of the program's lies.
fn address(program: &str, symbol: &str) -> u64 {
    let nm = Command::new("nm").arg(super::program_with_symbols(program)).output().expect("nm: run tools/setup");
    let text = String::from_utf8_lossy(&nm.stdout).into_owned();
    let line = text.lines().find(|line| line.ends_with(&format!(" {symbol}"))).expect("the symbol");
    u64::from_str_radix(&line[..16], 16).expect("its address")
}

#[test]
fn guest_code_and_the_blocks_that_are_entered() {
    for accelerator in ["interp", "jit"] {
        let log = logged("logged", "code", accelerator, &["-d", "in_asm,exec,nochain"]);
        let first = "----------------\nIN: _start\n0x00200010:  fa                       cli\n\n";
        assert!(log.starts_with(first), "{}", &log[..log.len().min(300)]);
        let looped = address("logged", "looped");
        assert!(log.contains(&format!("\nIN: looped\n{looped:#010x}:  ff c9                    decl     %ecx\n")));
        let long = log.find("48 b8 f0 de bc 9a 78 56  movabsq  $0x123456789abcdef0, %rax\n").expect("a long one");
        let rest = log[long..].lines().nth(1).expect("its other bytes");
        assert!(rest.ends_with(":  34 12"), "{rest}");
        let mut rounds = 0;
        for line in log.lines().filter(|line| line.starts_with("Trace ")) {
            let (host, rest) = behind(line, "Trace 0: 0x").split_once(" [").expect("an address");
            assert_ne!(u64::from_str_radix(host, 16).expect("an address"), 0, "{line}");
            let (base, rest) = hex(rest, 8);
            let (pc, rest) = hex(behind(rest, "/"), 16);
            let (flags, rest) = hex(behind(rest, "/"), 8);
            let (_, rest) = hex(behind(rest, "/"), 8);
            let symbol = behind(rest, "] ");
            if pc == looped {
                assert_eq!((symbol, base, flags), ("looped", 0, 0x0040_c2b0), "{line}");
                rounds += 1;
            }
        }
        // The first came with the block before; one that was left before it began comes again.
        assert!((299..330).contains(&rounds), "{rounds} of 299 rounds show");
    }
}

#[test]
fn host_code_and_its_ir() {
    let log = logged("logged", "host", "jit,sync=on", &["-d", "op,op_opt,out_asm"]);
    let at = log.find("OUT: [size=").expect("host code");
    let mut lines = log[at..].lines().skip(1);
    hex(behind(lines.next().expect("a line"), "  -- guest addr 0x"), 16);
    let code = lines.next().expect("a line");
    let (host, rest) = behind(code, "0x").split_once(":  ").expect("an address");
    assert!(u64::from_str_radix(host, 16).is_ok_and(|at| at > 0x1000), "{code}");
    assert!(rest.len() > 25 && u8::from_str_radix(&rest[..2], 16).is_ok(), "{code}");
    assert!(log.contains("OP:\nblock 0x") && log.contains("OP after optimization:\nblock 0x"));
}

#[test]
fn a_filter_keeps_what_lies_elsewhere_out() {
    let (from, to) = (address_of_built("looped"), address_of_built("wrong"));
    let filter = format!("{from:#x}..{to:#x}");
    let log = logged("logged", "filter", "jit", &["-d", "in_asm,exec,int,nochain", "-dfilter", &filter]);
    assert!(log.contains("\nIN: looped\n") || log.starts_with("----------------\nIN: looped\n"));
    assert!(!log.contains("0xfffffff0:"), "the firmware's code is elsewhere");
    for line in log.lines().filter(|line| line.starts_with("Trace ")) {
        assert!(line.ends_with(" looped") || line.ends_with(" wrong"), "{line}");
    }
    assert!(log.contains(": v=31 "), "interrupts have no filter");
}

/// [`address`], of what may have to be built first.
fn address_of_built(symbol: &str) -> u64 {
    assemble("logged");
    address("logged", symbol)
}

#[test]
fn other_items_are_refused_with_a_reason() {
    let refused = Command::new(env!("CARGO_BIN_EXE_brolga")).args(["-d", "int,strace"]).output().expect("a program");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("'strace' is not logged: system calls") && text.lines().count() == 1, "{text}");
}
