//! Far transfers.

use crate::fault::vector;
use crate::state::reg;
use super::Guest;
use crate::system::testing::{descriptor, gate, place::*, sel};
use iced_x86::code_asm::*;

/// JMP or CALL through a far pointer in memory at DATA.
fn through_pointer(g: &mut Guest, selector: u16, offset: u32, call: bool) {
    g.write32(DATA, offset);
    g.write16(DATA + 4, selector);
    g.code(|a| {
        let m = fword_ptr(DATA as u32);
        if call { a.call(m) } else { a.jmp(m) }
    });
}

#[test]
fn real_mode_far_call_and_return() {
    let mut g = Guest::real();
    // CALL 0000:0600; MOV BX, 7; HLT.
    g.bytes(CODE, &[0x9a, 0, 0x06, 0, 0, 0xbb, 7, 0, 0xf4]);
    g.bytes(0x600, &[0xca, 4, 0]); // RETF 4
    g.run();
    assert_eq!(g.cpu.gpr(reg::RBX), 7);
    assert_eq!(g.cpu.gpr(reg::RSP), 0x7004);
    assert_eq!(g.cpu.state.segs[reg::CS].base, CODE);
}

#[test]
fn direct_jumps_check_privilege_type_and_limit() {
    let handler = |v: u64| (STUBS + 16 * v) as u32;
    let cases = [
        (0, 0, 0),
        (sel::DATA, 0, sel::DATA),
        (sel::USER_CODE32, 0, sel::USER_CODE32 & !3),
        (sel::CODE32 | 3, 0, sel::CODE32),
        (0x1000, 0, 0x1000),
    ];
    for (selector, offset, code) in cases {
        let mut g = Guest::protected();
        through_pointer(&mut g, selector, offset, false);
        g.expect_gp(code as u32);
        assert_eq!(g.frame(1), CODE);
    }
    let mut g = Guest::protected();
    through_pointer(&mut g, sel::CODE16, 0x1_0000, false);
    g.expect_gp(0);
    // Absent.
    let mut g = Guest::protected();
    g.gdt(sel::FREE, descriptor(0, 0xfffff, 0x1b, 0xc));
    through_pointer(&mut g, sel::FREE, 0, false);
    g.expect(vector::NP);
    assert_eq!(g.frame(0), sel::FREE as u64);
    // Conforming code keeps the CPL of user code.
    let mut g = Guest::protected().user();
    g.gdt(sel::FREE, descriptor(0, 0xfffff, 0x9f, 0xc));
    through_pointer(&mut g, sel::FREE, handler(70), true);
    g.write8(STUBS + 16 * 70, 0xf4);
    g.expect_gp(0);
    assert_eq!(g.frame(2), sel::FREE as u64 | 3, "HLT at CPL 3 in the conforming segment");
    assert_eq!(g.read32(STACK3 - 8), CODE as u32 - 0x1_0000 + USER_CODE as u32 + 6);
    assert_eq!(g.read16(STACK3 - 4), sel::USER_CODE32);
    // And the accessed bit is set.
    assert_eq!(g.read64(GDT + sel::FREE as u64) >> 40 & 1, 1);
}

#[test]
fn call_gates_switch_stacks_and_copy_parameters() {
    let mut g = Guest::protected().user();
    g.gdt(sel::FREE, gate(sel::CODE32, (STUBS + 16 * 80) as u32, 0xec, 2));
    g.cpu.set_gpr(reg::RSP, STACK3 - 8);
    g.write32(STACK3 - 8, 0x1111);
    g.write32(STACK3 - 4, 0x2222);
    through_pointer(&mut g, sel::FREE | 3, 0, true);
    g.expect(80);
    let frame: Vec<u64> = (0..6).map(|n| g.frame(n)).collect();
    let next = USER_CODE + 6;
    assert_eq!(frame, [next, sel::USER_CODE32 as u64, 0x1111, 0x2222, STACK3 - 8, sel::USER_DATA as u64]);
    // RETF 8 drops the parameters on both stacks.
    g.code(|a| a.retf_1(8));
    g.bytes(next, &[0x0f, 0x0b]);
    g.expect(vector::UD);
    assert_eq!(g.frame(3), STACK3);
    assert_eq!(g.frame(0), next);
}

#[test]
fn call_gates_check_privilege_and_target() {
    let cases: [(u64, u32); 4] = [
        (gate(sel::CODE32, 0, 0x8c, 0), sel::FREE as u32), // DPL 0 gate from CPL 3
        (gate(sel::DATA, 0, 0xec, 0), sel::DATA as u32),
        (gate(0, 0, 0xec, 0), 0),
        (gate(sel::CODE32, 0, 0xe8, 0), sel::FREE as u32), // reserved type
    ];
    for (g64, code) in cases {
        let mut g = Guest::protected().user();
        g.gdt(sel::FREE, g64);
        through_pointer(&mut g, sel::FREE | 3, 0, true);
        g.expect_gp(code);
    }
    // JMP cannot go to an inner level.
    let mut g = Guest::protected().user();
    g.gdt(sel::FREE, gate(sel::CODE32, 0, 0xec, 0));
    through_pointer(&mut g, sel::FREE | 3, 0, false);
    g.expect_gp(sel::CODE32 as u32);
    // A bad inner stack is #TS.
    let mut g = Guest::protected().user();
    g.gdt(sel::FREE, descriptor(0, 0xfffff, 0xb2, 0xc));
    g.gdt(sel::FREE + 8, descriptor(0, 0xfffff, 0xbb, 0xc));
    g.gdt(sel::FREE + 16, gate(sel::FREE + 8, 0, 0xec, 0));
    g.write16(TSS + 16, sel::DATA); // SS1 with DPL 0
    through_pointer(&mut g, (sel::FREE + 16) | 3, 0, true);
    g.expect(vector::TS);
    assert_eq!(g.frame(0), sel::DATA as u64);
}

#[test]
fn long_mode_call_gates_have_sixteen_bytes() {
    let mut g = Guest::long().user();
    g.gdt(sel::FREE, gate(sel::CODE64, (STUBS + 16 * 81) as u32, 0xec, 0));
    g.gdt(sel::FREE + 8, 0);
    g.write32(DATA, 0);
    g.write16(DATA + 4, sel::FREE | 3);
    g.code(|a| a.call(fword_ptr(DATA)));
    g.expect(81);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0 - 32);
    assert_eq!(g.cpu.state.segs[reg::SS].selector, 0);
    let frame: Vec<u64> = (0..4).map(|n| g.frame(n)).collect();
    assert_eq!(frame, [USER_CODE + 7, sel::USER_CODE64 as u64, STACK3, sel::USER_DATA as u64]);
    g.code(|a| a.db(&[0x48, 0xcb])); // RETFQ
    g.bytes(USER_CODE + 7, &[0x0f, 0x0b]);
    g.expect(vector::UD);
    assert_eq!([g.frame(0), g.frame(3)], [USER_CODE + 7, STACK3]);
    // The upper half's type must be 0; a 32-bit code segment is no target.
    for (high, target, code) in [(1u64 << 40, sel::CODE64, sel::FREE), (0, sel::CODE32, sel::CODE32)] {
        let mut g = Guest::long().user();
        g.gdt(sel::FREE, gate(target, 0, 0xec, 0));
        g.gdt(sel::FREE + 8, high);
        g.write16(DATA + 4, sel::FREE | 3);
        g.code(|a| a.call(fword_ptr(DATA)));
        g.expect_gp(code as u32);
    }
}

#[test]
fn far_return_moves_between_compatibility_and_64_bit_code() {
    let mut g = Guest::long();
    g.write64(STACK0 - 16, USER_CODE);
    g.write64(STACK0 - 8, sel::CODE32 as u64);
    g.cpu.set_gpr(reg::RSP, STACK0 - 16);
    g.code(|a| a.db(&[0x48, 0xcb]));
    // In compatibility mode: DEC EAX is one byte; then JMP FAR back to 64-bit code.
    g.bytes(USER_CODE, &[0x48, 0xea, 0, 0, 0, 0, sel::CODE64 as u8, 0]);
    g.write32(USER_CODE + 2, (STUBS + 16 * 82) as u32);
    g.expect(82);
    assert_eq!(g.cpu.gpr(reg::RAX), 0xffff_ffff);
    assert!(g.cpu.state.long64());
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0);
}
