//! `tools/examples` does what its Makefile says.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

#[test]
fn programs_without_an_operating_system() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("examples-{}", std::process::id()));
    let made = Command::new("timeout")
        .args(["300", "make", "-C", concat!(env!("CARGO_MANIFEST_DIR"), "/tools/examples"), "hello", "phys-test"])
        .arg(concat!("BROLGA=", env!("CARGO_BIN_EXE_brolga")))
        .arg(format!("OUT={}", out.display()))
        // What runs the tests may itself be started by make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("make: run tools/setup");
    let text = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{text}");
    assert!(text.contains("phys-test: loaded, run, looked at by gdb and pmemsave"), "{text}");
    std::fs::remove_dir_all(&out).expect("our own directory");
}
