//! `tools/examples` does what its Makefile says.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs make there with a directory for what it makes; all that it says. It must succeed.
fn make(out: &Path, words: &[&str]) -> String {
    let made = Command::new("timeout")
        .args(["300", "make", "-C", concat!(env!("CARGO_MANIFEST_DIR"), "/tools/examples")])
        .args(words)
        .arg(concat!("BROLGA=", env!("CARGO_BIN_EXE_brolga")))
        .arg(concat!("BROLGA_IMG=", env!("CARGO_BIN_EXE_brolga-img")))
        .arg(format!("OUT={}", out.display()))
        // What runs the tests may itself be started by make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .output()
        .expect("make: run tools/setup");
    let text = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{text}");
    text
}

/// A directory that no other test has.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()))
}

#[test]
fn programs_without_an_operating_system() {
    let out = folder("examples");
    let text = make(&out, &["hello", "phys-test"]);
    assert!(text.contains("phys-test: loaded, run, looked at by gdb and pmemsave"), "{text}");
    std::fs::remove_dir_all(&out).expect("our own directory");
}

#[test]
fn what_is_installed_runs() {
    let out = folder("installed");
    make(&out, &["install-programs", "PREFIX=/usr", &format!("DESTDIR={}", out.display())]);
    for program in ["brolga", "brolga-img"] {
        let version = Command::new(out.join("usr/bin").join(program)).arg("--version").output().expect("it is there");
        assert!(
            version.status.success() && String::from_utf8_lossy(&version.stdout).to_lowercase().starts_with("brolga")
        );
    }
    std::fs::remove_dir_all(&out).expect("our own directory");
}
