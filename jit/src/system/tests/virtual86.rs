//! Virtual-8086 mode.

use crate::fault::vector;
use crate::state::{cr4, flag, reg};
use super::Guest;
use crate::system::testing::{place::*, sel};

#[test]
fn interrupts_leave_with_all_segments_and_iret_comes_back() {
    let mut g = Guest::protected().vm86(3);
    g.write8(IDT + 8 * 0x21 + 5, 0xee);
    g.code(|a| {
        a.int(0x21)?;
        a.hlt()
    });
    g.expect(0x21);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0 - 36);
    let frame: Vec<u64> = (0..9).map(|n| g.frame(n)).collect();
    let flags = flag::VM | flag::IOPL | 2;
    assert_eq!(frame, [2, USER_CODE >> 4, flags, 0xfff0, 0x3000, 0x100, 0x103, 0x104, 0x105]);
    for n in [reg::ES, reg::DS, reg::FS, reg::GS] {
        assert!(!g.cpu.state.segs[n].present());
    }
    g.code(|a| a.iretd());
    g.expect_gp(0); // HLT at CPL 3
    assert_eq!([g.frame(1), g.frame(2)], [2, USER_CODE >> 4]);
    assert_eq!(g.frame(3) & flag::VM, flag::VM);
    assert_eq!(g.frame(7), 0x103);
}

#[test]
fn sensitive_instructions_need_iopl_3() {
    let programs: [(&[u8], bool); 7] = [
        (&[0xfa], false),
        (&[0x9c], false),
        (&[0x9d], false),
        (&[0xcd, 0x21], false),
        (&[0xcf], false),
        (&[0xcc], true),       // INT3 is not
        (&[0xe4, 0x60], true), // nor IN: the bitmap decides
    ];
    for (bytes, fine) in programs {
        let mut g = Guest::protected().vm86(0);
        g.write8(IDT + 8 * 3 + 5, 0xee);
        g.bytes(USER_CODE, bytes);
        g.bytes(USER_CODE + bytes.len() as u64, &[0x0f, 0x0b]);
        let v = g.run_to_handler();
        if fine {
            assert!(v == vector::UD || v == vector::BP, "{bytes:x?} raised {v}");
        } else {
            assert_eq!(v, vector::GP, "{bytes:x?}");
            assert_eq!(g.frame(1), 0);
        }
    }
}

#[test]
fn vme_redirects_interrupts_and_keeps_a_virtual_if() {
    let mut g = Guest::protected().vm86(0);
    g.cpu.state.cr4 |= cr4::VME;
    // All vectors are redirected: the 32 bytes below the I/O map, which begins at 0x88 now.
    g.write16(TSS + 0x66, 0x88);
    for n in 0..32 {
        g.write8(TSS + 0x68 + n, 0);
    }
    g.write32(4 * 0x21, 0x1900 << 16);
    // STI sets VIF; INT 21h; the handler: PUSHF, POP AX, then UD2.
    g.bytes(USER_CODE, &[0xfb, 0xcd, 0x21]);
    g.bytes(0x1_9000, &[0x9c, 0x58, 0x0f, 0x0b]);
    g.expect(vector::UD);
    assert_eq!(g.frame(1), 0x1900);
    assert_eq!(g.frame(2) & (flag::VIF | flag::IF), 0);
    assert_eq!(g.cpu.gpr(reg::RAX) & (flag::IF | flag::IOPL), flag::IOPL, "virtual IF clear, IOPL reads 3");
    let stack = 0x3_0000 + 0xfff0 - 6;
    assert_eq!([g.read16(stack), g.read16(stack + 2)], [3, (USER_CODE >> 4) as u16]);
    assert_eq!(g.read16(stack + 4) as u64 & (flag::IF | flag::IOPL), flag::IF | flag::IOPL);
    // A redirection bit that is set leads to #GP at IOPL 0.
    let mut g = Guest::protected().vm86(0);
    g.cpu.state.cr4 |= cr4::VME;
    g.write16(TSS + 0x66, 0x88);
    g.write8(TSS + 0x68 + 4, 2);
    g.bytes(USER_CODE, &[0xcd, 0x21]);
    g.expect_gp(0);
    // VIP pending: STI faults.
    let mut g = Guest::protected().vm86(0);
    g.cpu.state.cr4 |= cr4::VME;
    g.cpu.set_rflags(g.cpu.rflags() | flag::VIP);
    g.bytes(USER_CODE, &[0xfb]);
    g.expect_gp(0);
}

#[test]
fn handlers_must_run_at_cpl_0() {
    let mut g = Guest::protected().vm86(3);
    let d = g.read64(GDT + sel::USER_CODE32 as u64 - 3);
    g.gdt(sel::FREE, d);
    g.write64(IDT + 8 * 0x22, crate::system::testing::gate(sel::FREE | 3, 0, 0xee, 0));
    g.bytes(USER_CODE, &[0xcd, 0x22]);
    g.expect_gp(sel::FREE as u32);
}
