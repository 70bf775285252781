//! Floating point as the processor's state sees it: sticky flags, masks.

use super::Guest;
use crate::state::reg;
use crate::system::testing::place::*;
use iced_x86::code_asm::*;

/// MXCSR's invalid flag.
const IE: u64 = 1;
/// Its denormal flag.
const DE: u64 = 2;

#[test]
fn comparisons_that_nobody_reads_leave_their_flags() {
    let cases = [
        (0x7ff0_0000_0000_0001, false, IE),
        (0x7ff8_0000_0000_0000, false, 0),
        (0x7ff8_0000_0000_0000, true, IE),
        (1, false, DE),
        (1, true, DE),
    ];
    // What comes after the comparison: the block's end, other flags at once, other flags after something that may fault.
    for (value, signals, want) in cases {
        for after in 0..4 {
            let mut g = Guest::long();
            g.write64(DATA, value);
            g.code(|a| {
                a.movsd_2(xmm0, qword_ptr(DATA))?;
                a.xorpd(xmm1, xmm1)?;
                if signals { a.comisd(xmm0, xmm1)? } else { a.ucomisd(xmm0, xmm1)? }
                match after {
                    0 => {}
                    1 => a.xor(eax, eax)?,
                    2 => {
                        a.mov(rcx, rax)?;
                        a.add(rcx, rax)?;
                        a.mov(rdx, qword_ptr(DATA + 16))?;
                    }
                    _ => {
                        a.mov(rdx, qword_ptr(DATA + 16))?;
                        a.add(rcx, rax)?;
                    }
                }
                a.stmxcsr(dword_ptr(DATA + 8))?;
                a.mov(eax, dword_ptr(DATA + 8))?;
                a.hlt()
            });
            g.run();
            assert_eq!(g.cpu.gpr(reg::RAX) & 0x3f, want, "{value:#x}, {signals}, {after}");
        }
    }
}
