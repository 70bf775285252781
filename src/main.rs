//! Brolga: a full-system x86-64 emulator.
#![forbid(unsafe_code)]

mod cli;
mod clock;
mod io_thread;
mod monitor;
mod vcpu;

fn main() {}
