//! Brolga: a full-system x86-64 emulator.
#![forbid(unsafe_code)]

mod boot;
mod cli;
mod clock;
mod io_thread;
mod machine;
mod monitor;
mod vcpu;

fn main() {}
