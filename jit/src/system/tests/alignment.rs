//! Alignment checks (SDM 3A 6.15), as measured on an Intel processor.

use super::Guest;
use crate::fault::vector;
use crate::state::{cr0, cr4, flag, reg};
use crate::system::testing::place::*;

/// Instructions with an operand at RDI (RBX), the boundary off which #AC is raised and the one off which #GP is, which
/// comes second.
const INSTRUCTIONS: &[(&[u8], u64, u64)] = &[
    (&[0xd9, 0x37], 4, 1), // fnstenv
    (&[0x66, 0xd9, 0x37], 2, 1), // fnstenv
    (&[0xd9, 0x27], 4, 1), // fldenv
    (&[0x66, 0xd9, 0x27], 2, 1), // fldenv
    (&[0xdd, 0x37], 4, 1), // fnsave
    (&[0x66, 0xdd, 0x37], 2, 1), // fnsave
    (&[0xdd, 0x27], 4, 1), // frstor
    (&[0x66, 0xdd, 0x27], 2, 1), // frstor
    (&[0xdb, 0x2f], 8, 1), // fldt
    (&[0xdf, 0x27], 8, 1), // fbld
    (&[0xdd, 0x07], 8, 1), // fldl
    (&[0xdf, 0x07], 2, 1), // filds
    (&[0xd9, 0x3f], 2, 1), // fnstcw
    (&[0xd9, 0x2f], 2, 1), // fldcw
    (&[0xdd, 0x3f], 2, 1), // fnstsw
    (&[0x0f, 0xf7, 0xc1], 8, 1), // maskmovq
    (&[0x66, 0x0f, 0xf7, 0xc1], 8, 1), // maskmovdqu
    (&[0xf3, 0x0f, 0x6f, 0x07], 1, 1), // movdqu
    (&[0x0f, 0x11, 0x07], 1, 1), // movups
    (&[0xf2, 0x0f, 0xf0, 0x07], 1, 1), // lddqu
    (&[0x0f, 0x28, 0x07], 1, 16), // movaps
    (&[0x66, 0x0f, 0xfe, 0x07], 1, 16), // paddd
    (&[0xf3, 0x0f, 0x7e, 0x07], 8, 1), // movq
    (&[0x0f, 0x16, 0x07], 8, 1), // movhps
    (&[0x0f, 0x13, 0x07], 8, 1), // movlps
    (&[0xf3, 0x0f, 0x10, 0x07], 4, 1), // movss
    (&[0xf2, 0x0f, 0x10, 0x07], 8, 1), // movsd
    (&[0x66, 0x0f, 0x38, 0x32, 0x07], 2, 1), // pmovzxbq
    (&[0x66, 0x0f, 0x38, 0x30, 0x07], 8, 1), // pmovzxbw
    (&[0x66, 0x0f, 0xc4, 0x07, 0x01], 2, 1), // pinsrw
    (&[0x66, 0x0f, 0x3a, 0x63, 0x07, 0x00], 1, 1), // pcmpistri
    (&[0x0f, 0xfe, 0x07], 8, 1), // paddd
    (&[0x0f, 0x62, 0x07], 4, 1), // punpckldq
    (&[0x0f, 0x2a, 0x07], 8, 1), // cvtpi2ps
    (&[0x0f, 0x2d, 0x07], 8, 1), // cvtps2pi
    (&[0xf3, 0x0f, 0xe6, 0x07], 8, 1), // cvtdq2pd
    (&[0x0f, 0xae, 0x07], 4, 16), // fxsave
    (&[0x48, 0x0f, 0xae, 0x07], 4, 16), // fxsave64
    (&[0x0f, 0xae, 0x27], 4, 64), // xsave
    (&[0x0f, 0xae, 0x1f], 4, 1), // stmxcsr
    (&[0x0f, 0xc7, 0x0f], 8, 1), // cmpxchg8b
    (&[0x48, 0x0f, 0xc7, 0x0f], 1, 16), // cmpxchg16b
    (&[0x0f, 0x38, 0xf0, 0x07], 4, 1), // movbe
    (&[0xf2, 0x0f, 0x38, 0xf1, 0x07], 4, 1), // crc32l
    (&[0x0f, 0xba, 0x27, 0x01], 4, 1), // btl
    (&[0x0f, 0xae, 0x3f], 1, 1), // clflush
    (&[0x0f, 0x18, 0x0f], 1, 1), // prefetcht0
    (&[0x0f, 0xc3, 0x07], 4, 1), // movnti
    (&[0x0f, 0x02, 0x07], 2, 1), // lar
    (&[0x8c, 0x1f], 2, 1), // mov
    (&[0xd7], 1, 1), // xlat
    (&[0x0f, 0xe7, 0x07], 8, 1), // movntq
    (&[0x66, 0x0f, 0xe7, 0x07], 1, 16), // movntdq
    (&[0xf0, 0x0f, 0xb1, 0x0f], 4, 1), // lock cmpxchg
    (&[0xdd, 0x0f], 8, 1), // fisttpll
    (&[0xd9, 0x17], 4, 1), // fsts
];

/// Vector raised by an instruction with its operand at an address; #UD, which follows it, if none.
fn raised(code: &[u8], address: u64) -> u8 {
    let mut g = Guest::long();
    let model = crate::cpuid::parse("max").expect("a processor model");
    g.cpu.model = std::sync::Arc::new(model);
    g.cpu.state.cr0 |= cr0::AM | cr0::MP;
    g.cpu.state.cr4 |= cr4::OSXSAVE;
    let mut g = g.user();
    g.cpu.set_rflags(flag::AC);
    for r in [reg::RDI, reg::RBX] {
        g.cpu.set_gpr(r, address);
    }
    for r in [reg::RAX, reg::RCX, reg::RDX] {
        g.cpu.set_gpr(r, 0);
    }
    g.bytes(USER_CODE, code);
    g.bytes(USER_CODE + code.len() as u64, &[0x0f, 0x0b]);
    g.run_to_handler()
}

#[test]
fn operands_off_their_boundary() {
    for (code, check, required) in INSTRUCTIONS {
        for offset in 0..=16 {
            let want = match () {
                _ if offset % check != 0 => vector::AC,
                _ if offset % required != 0 => vector::GP,
                _ => vector::UD,
            };
            assert_eq!(raised(code, DATA + 64 + offset), want, "{code:02x?} at offset {offset}");
        }
    }
}
