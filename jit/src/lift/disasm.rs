//! Disassembly for logs and debuggers.

use super::{bitness, decoder_options};
use crate::ir::Block;
use crate::mmu::ram::Ram;
use iced_x86::{Decoder, Formatter, GasFormatter};
use std::fmt::Write;

/// The guest instructions of a block that runs at `base` ([`Block::base`]), one a line, read again from `gpa`.
pub fn disassemble(block: &Block, base: u64, ram: &Ram, gpa: u64) -> String {
    let mut bytes = vec![0; block.len as usize];
    ram.read(gpa, &mut bytes);
    disassemble_bytes(&bytes, base.wrapping_add(block.rip), block.mode, block.count as usize)
}

/// Up to `count` instructions from `bytes`, one a line.
pub fn disassemble_bytes(bytes: &[u8], rip: u64, mode_word: u32, count: usize) -> String {
    let mut formatter = GasFormatter::new();
    let mut out = String::new();
    for i in Decoder::with_ip(bitness(mode_word), bytes, rip, decoder_options()).iter().take(count) {
        let mut text = String::new();
        formatter.format(&i, &mut text);
        let _ = writeln!(out, "0x{:08x}:  {text}", i.ip());
    }
    out
}

/// Generated code, all of it; addresses count from its start.
pub fn disassemble_host(code: &[u8]) -> String {
    disassemble_bytes(code, 0, crate::state::mode::CS64, code.len())
}
