//! A short run of the differential test in every mode and tier, with a seed that `BROLGA_SEED` replaces (printed on
//! failure): what CI runs is the same each time, new seeds are for whoever looks for new faults.

#![forbid(unsafe_code)]

use std::process::Command;

fn run(options: &str) {
    let seed = std::env::var("BROLGA_SEED").unwrap_or_else(|_| "20261120".into());
    let out = Command::new(env!("CARGO_BIN_EXE_difftest"))
        .args(options.split_whitespace())
        .args(["--seed", &seed])
        .output()
        .expect("difftest runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "difftest {options} --seed {seed}:\n{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.contains(" 0 mismatches"), "{text}");
}

#[test]
fn integer_64() {
    run("--bits 64 --cases 60000");
}

#[test]
fn integer_32() {
    run("--bits 32 --cases 30000");
}

#[test]
fn integer_16() {
    run("--bits 16 --cases 30000");
}

#[test]
fn sequences() {
    run("--length 6 --cases 30000");
}

#[test]
fn sequences_in_generated_code() {
    run("--length 6 --tier jit --cases 4000");
}

#[test]
fn generated_code() {
    run("--tier jit --cases 8000");
}

#[test]
fn vectors() {
    run("--family vec --cases 30000");
}

#[test]
fn vectors_in_generated_code() {
    run("--family vec --tier jit --cases 4000");
}

#[test]
fn avx() {
    run("--family avx --cases 30000");
}

#[test]
fn avx_32() {
    run("--family avx --bits 32 --cases 8000");
}

#[test]
fn avx_sequences_in_baseline_code() {
    run("--family avx --length 6 --tier baseline --cases 30000");
}

#[test]
fn avx_in_generated_code() {
    run("--family avx --length 3 --tier jit --cases 6000");
}

#[test]
fn x87() {
    run("--family x87 --cases 30000");
}
