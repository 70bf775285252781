//! `brolga-img`: makes, looks at, copies and mends disk images, with the command line of `qemu-img`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    brolga::img::main(std::env::args_os())
}
