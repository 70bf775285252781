//! Brolga: a full-system x86-64 emulator.
#![forbid(unsafe_code)]
fn main() {}
