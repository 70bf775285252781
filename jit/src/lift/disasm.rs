//! Disassembly for logs and debuggers, in the layout that readers of QEMU's logs know.

use super::{bitness, decoder_options};
use crate::ir::Block;
use iced_x86::{Decoder, Formatter, GasFormatter, Instruction};
use std::fmt::Write;

/// Bytes on one line.
const BYTES: usize = 8;
/// Columns of their bytes, up to the mnemonic.
const BYTES_WIDTH: usize = 3 * BYTES + 1;
/// Column of the first operand, behind the mnemonic.
const OPERANDS: u32 = 9;

/// The guest instructions of a block whose first lies at `address` in memory that starts with `bytes`, one a line.
pub fn disassemble(block: &Block, bytes: &[u8], address: u64) -> String {
    let bytes = bytes.get(..block.len as usize).unwrap_or(bytes);
    instructions(bytes, address, bitness(block.mode), block.count as usize).concat()
}

/// Up to `count` instructions from `bytes`, of code of so many `bits`: address, bytes, text; a long instruction's other bytes on
/// a line of their own.
pub fn instructions(bytes: &[u8], address: u64, bits: u32, count: usize) -> Vec<String> {
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    options.set_space_after_operand_separator(true);
    options.set_gas_show_mnemonic_size_suffix(true);
    options.set_gas_space_after_memory_operand_comma(true);
    options.set_first_operand_char_index(OPERANDS);
    let show = |i: Instruction| {
        let (mut out, mut text) = (String::new(), String::new());
        formatter.format(&i, &mut text);
        let start = i.ip().wrapping_sub(address) as usize;
        let code = bytes.get(start..start + i.len()).unwrap_or_default();
        for (n, piece) in code.chunks(BYTES).enumerate() {
            let hex = piece.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
            let at = i.ip().wrapping_add((n * BYTES) as u64);
            let _ = match n {
                0 => writeln!(out, "0x{at:08x}:  {hex:BYTES_WIDTH$}{text}"),
                _ => writeln!(out, "0x{at:08x}:  {hex}"),
            };
        }
        out
    };
    Decoder::with_ip(bits, bytes, address, decoder_options()).iter().take(count).map(show).collect()
}

/// Generated code that lies at host address `at`, all of it.
pub fn disassemble_host(code: &[u8], at: u64) -> String {
    instructions(code, at, 64, code.len()).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_addresses_bytes_and_text() {
        let code = [0xea, 0x5b, 0xe0, 0x00, 0xf0];
        assert_eq!(
            instructions(&code, 0xffff_fff0, 16, 1).concat(),
            "0xfffffff0:  ea 5b e0 00 f0           ljmpw    $0xf000, $0xe05b\n"
        );
        let code = [0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 1, 0x90];
        assert_eq!(
            instructions(&code, 0x1000, 64, 9).concat(),
            "0x00001000:  48 b8 08 07 06 05 04 03  movabsq  $0x102030405060708, %rax\n0x00001008:  02 01\n\
             0x0000100a:  90                       nop\n"
        );
        assert_eq!(instructions(&code[..3], 0x1000, 64, 9).len(), 1, "what is cut off");
    }
}
