//! `-d` items in the forms that tools look for.

use super::{FINISHED, assemble, run_with};
use std::path::Path;

#[test]
fn interrupts_resets_and_registers() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-{}", std::process::id()));
    let file = path.to_str().expect("UTF-8");
    let (_, output) = run_with(&assemble("interrupts"), "jit", &["-d", "int,cpu_reset,cpu,nochain,page", "-D", file]);
    assert_eq!(output.status.code(), Some(FINISHED));
    let log = std::fs::read_to_string(&path).expect("the log");
    std::fs::remove_file(&path).expect("our own file");
    assert!(log.contains("CPU Reset (CPU 0)\n"), "no reset");
    assert!(log.contains("Servicing hardware INT=0x20\n"), "no interrupt");
    let events: Vec<&str> = log.lines().filter(|line| line.contains(": v=20 e=0000 i=0 cpl=0 IP=0018:")).collect();
    assert!(events.len() >= 3, "{} timer interrupts", events.len());
    for line in events {
        let (number, rest) = line.split_once(": v=").expect("a number");
        assert!(number.trim_start().parse::<u64>().is_ok() && number.len() >= 6, "{line}");
        assert!(rest.contains(" pc=") && rest.contains(" SP=0010:") && rest.contains(" env->regs[R_EAX]="), "{line}");
    }
    // Registers before each block.
    assert!(log.matches("RIP=").count() > 50, "few registers");
}
