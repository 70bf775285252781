//! Delivery of exceptions and interrupts, and IRET.

use crate::fault::{Fault, vector};
use crate::state::{flag, reg};
use super::Guest;
use crate::system::testing::{gate, place::*, sel};
use crate::vcpu::Exit;
use iced_x86::code_asm::*;

#[test]
fn real_mode_interrupts_push_six_bytes_and_return() {
    let mut g = Guest::real();
    g.cpu.set_rflags(flag::IF | flag::CF);
    g.code(|a| {
        a.int(0x21)?;
        a.mov(bx, 0x55u32)?;
        a.hlt()
    });
    g.write8(STUBS + 0x210, 0xcf); // IRET
    g.cpu.load_segment(reg::SS, 0x20).unwrap();
    g.run();
    assert_eq!(g.cpu.gpr(reg::RBX) & 0xffff, 0x55);
    assert_eq!(g.cpu.gpr(reg::RSP), 0x7000);
    assert_eq!(g.cpu.rflags(), flag::IF | flag::CF | 2);
    let frame = 0x200 + 0x7000 - 6;
    assert_eq!([g.read16(frame), g.read16(frame + 2)], [2, (CODE >> 4) as u16]);
    assert_eq!(g.read16(frame + 4) as u64, flag::IF | flag::CF | 2);
}

#[test]
fn real_mode_faults_push_no_error_code() {
    let mut g = Guest::real();
    g.bytes(CODE, &[0x0f, 0x0b]);
    g.expect(vector::UD);
    assert_eq!(g.cpu.gpr(reg::RSP), 0x7000 - 6);
    let mut g = Guest::real();
    // A word at offset FFFF exceeds the limit: #GP, with SS: #SS.
    g.code(|a| {
        a.mov(bx, 0xffffu32)?;
        a.mov(ax, word_ptr(bx))
    });
    g.expect(vector::GP);
    assert_eq!(g.cpu.gpr(reg::RSP), 0x7000 - 6);
    assert_eq!(g.frame(0), 3);
    let mut g = Guest::real();
    g.code(|a| {
        a.mov(bp, 0xffffu32)?;
        a.mov(ax, word_ptr(bp))
    });
    g.expect(vector::SS);
}

#[test]
fn protected_faults_push_code_and_rf() {
    let mut g = Guest::protected();
    g.code(|a| {
        a.mov(eax, 0x77u32)?;
        a.mov(ds, eax)
    });
    // LDT selector without an LDT.
    g.expect_gp(0x74);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0 - 16);
    assert_eq!(g.frame(1), CODE + 5);
    assert_eq!(g.frame(2), sel::CODE32 as u64);
    assert_eq!(g.frame(3), flag::RF | 2);
    assert_eq!(g.cpu.rflags() & flag::RF, 0);
}

#[test]
fn user_code_enters_on_the_stack_of_the_tss_and_returns() {
    for gate16 in [false, true] {
        let mut g = Guest::protected().user();
        let access = if gate16 { 0xe6 } else { 0xee };
        g.write64(IDT + 8 * 0x80, gate(sel::CODE32, (STUBS + 0x800) as u32, access, 0));
        g.code(|a| {
            a.int(0x80)?;
            a.ud2()
        });
        g.expect(0x80);
        assert_eq!(g.cpu.state.cpl(), 0);
        assert_eq!(g.cpu.state.segs[reg::SS].selector, sel::DATA);
        if gate16 {
            let words: Vec<u64> = (0..5).map(|n| g.read16(g.cpu.gpr(reg::RSP) + 2 * n) as u64).collect();
            let want = [USER_CODE + 2, sel::USER_CODE32 as u64, 2, STACK3, sel::USER_DATA as u64].map(|v| v & 0xffff);
            assert_eq!(words, want);
            continue;
        }
        let frame: Vec<u64> = (0..5).map(|n| g.frame(n)).collect();
        assert_eq!(frame, [USER_CODE + 2, sel::USER_CODE32 as u64, 2, STACK3, sel::USER_DATA as u64]);
        g.code(|a| {
            a.iretd()?;
            a.nop()
        });
        g.expect(vector::UD);
        assert_eq!(g.frame(0), USER_CODE + 2);
        assert_eq!(g.frame(1), sel::USER_CODE32 as u64);
    }
}

#[test]
fn software_interrupts_obey_the_gates_privilege() {
    let mut g = Guest::protected().user();
    g.code(|a| a.int(0x30));
    g.expect_gp(0x30 << 3 | 2);
    assert_eq!(g.frame(1), USER_CODE);
    // The same vector from outside does not look at the DPL.
    let mut g = Guest::protected().user();
    g.cpu.deliver_interrupt(0x30).unwrap();
    g.expect(0x30);
    // INT3 and INTO: traps, behind the instruction.
    let mut g = Guest::protected().user();
    g.write8(IDT + 8 * 3 + 5, 0xee);
    g.code(|a| a.int3());
    g.expect(vector::BP);
    assert_eq!(g.frame(0), USER_CODE + 1);
    assert_eq!(g.frame(2) & flag::RF, 0);
    let mut g = Guest::protected();
    g.code(|a| {
        a.into()?;
        a.mov(al, 0x7f)?;
        a.add(al, 1)?;
        a.into()
    });
    g.expect(vector::OF);
    assert_eq!(g.frame(0), CODE + 6);
}

#[test]
fn gates_that_lead_nowhere_tell_their_index() {
    // Absent gate: #NP with IDT bit, and EXT for an external event.
    let mut g = Guest::protected();
    g.write8(IDT + 8 * 0x31 + 5, 0x0e);
    g.code(|a| a.int(0x31));
    g.expect(vector::NP);
    assert_eq!(g.frame(0), 0x31 << 3 | 2);
    let mut g = Guest::protected();
    g.write8(IDT + 8 * 0x31 + 5, 0x0e);
    g.cpu.deliver_interrupt(0x31).unwrap();
    g.expect(vector::NP);
    assert_eq!(g.frame(0), 0x31 << 3 | 3);
    // Beyond the limit.
    let mut g = Guest::protected();
    g.cpu.state.idtr.limit = 0x3f * 8 - 1;
    g.code(|a| a.int(0x3f));
    g.expect_gp(0x3f << 3 | 2);
    // The gate's code segment: null, data, and above the CPL.
    for (selector, code) in [(0, 0), (sel::DATA, sel::DATA as u32), (sel::USER_CODE32, sel::USER_CODE32 as u32 & !3)] {
        let mut g = Guest::protected();
        g.write64(IDT + 8 * 0x32, gate(selector, STUBS as u32, 0x8e, 0));
        g.code(|a| a.int(0x32));
        g.expect_gp(code);
    }
}

#[test]
fn faults_in_delivery_become_double_and_triple_faults() {
    let mut g = Guest::protected();
    g.write8(IDT + 8 * vector::GP as u64 + 5, 0x0e);
    g.code(|a| {
        a.mov(eax, 0x74u32)?;
        a.mov(ds, eax)
    });
    g.expect(vector::DF);
    assert_eq!([g.frame(0), g.frame(1)], [0, CODE + 5]);
    // A benign exception first: the second one is delivered by itself.
    let mut g = Guest::protected();
    g.write8(IDT + 8 * vector::UD as u64 + 5, 0x0e);
    g.code(|a| a.ud2());
    g.expect(vector::NP);
    assert_eq!(g.frame(0), (vector::UD as u64) << 3 | 3);
    // No double-fault gate either.
    let mut g = Guest::protected();
    g.cpu.state.idtr.limit = 0;
    g.code(|a| a.ud2());
    match g.cpu.run_loop() {
        Exit::TripleFault(text) => {
            assert!(text.starts_with("triple fault: exception 0x0d"), "{text}");
            assert!(text.contains("RIP 0x10000") && text.contains("EAX=00000000"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    // A page fault while a page fault is delivered.
    let mut g = Guest::paged();
    g.page(0x6000, 0);
    g.cpu.state.idtr.base = 0x6000 - 8 * 10;
    for v in 0..10 {
        g.write64(0x6000 - 8 * 10 + 8 * v, gate(sel::CODE32, (STUBS + 16 * v) as u32, 0x8e, 0));
    }
    g.code(|a| a.mov(eax, dword_ptr(0x6000)));
    g.expect(vector::DF);
    assert_eq!(g.cpu.state.cr2, 0x6000 - 8 * 10 + 8 * 14);
}

#[test]
fn a_fault_in_delivery_leaves_the_state() {
    let mut g = Guest::paged().user();
    // The frame crosses into a read-only page below the stack's page: WP makes it fault.
    g.write32(TSS + 4, STACK1 as u32 + 8);
    g.page(STACK1 - 0x1000, 5);
    let before = g.cpu.get_registers();
    let err = g.cpu.software_interrupt(3, 0).unwrap_err();
    assert_eq!(err, Fault::with_code(vector::GP, 3 << 3 | 2));
    g.write8(IDT + 8 * 3 + 5, 0xee);
    let err = g.cpu.software_interrupt(3, 0).unwrap_err();
    assert_eq!(err.vector, vector::PF);
    assert_eq!(err.error, Some(3));
    assert_eq!(g.cpu.get_registers(), before);
    assert_eq!(g.read64(STACK1), 0, "nothing was pushed");
}

#[test]
fn long_mode_frames_are_aligned_and_complete() {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RSP, STACK0 - 3);
    g.page(DATA, 0);
    g.code(|a| a.mov(byte_ptr(DATA), 1));
    g.expect(vector::PF);
    assert_eq!(g.cpu.state.cr2, DATA);
    let frame: Vec<u64> = (0..6).map(|n| g.frame(n)).collect();
    assert_eq!(frame, [2, CODE, sel::CODE64 as u64, flag::RF | 2, STACK0 - 3, sel::DATA as u64]);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0 - 16 - 48);
    assert_eq!(g.cpu.state.segs[reg::SS].selector, sel::DATA, "no change of level, SS stays");
}

#[test]
fn long_mode_entries_from_user_code_null_ss_and_use_ist() {
    for ist in [false, true] {
        let mut g = Guest::long().user();
        if ist {
            g.write8(IDT + 16 * 6 + 4, 1);
        }
        g.code(|a| a.ud2());
        g.expect(vector::UD);
        let top = if ist { IST1 } else { STACK0 };
        assert_eq!(g.cpu.gpr(reg::RSP), top - 40);
        assert_eq!(g.cpu.state.segs[reg::SS].selector, 0);
        assert_eq!(g.cpu.state.cpl(), 0);
        let frame: Vec<u64> = (0..5).map(|n| g.frame(n)).collect();
        let want = [USER_CODE, sel::USER_CODE64 as u64, flag::RF | 2, STACK3, sel::USER_DATA as u64];
        assert_eq!(frame, want);
        // Back to where it came from, behind the UD2.
        g.code(|a| {
            a.add(qword_ptr(rsp), 2)?;
            a.iretq()
        });
        g.bytes(USER_CODE + 2, &[0xcd, 0x40]);
        g.expect_gp(0x40 << 3 | 2);
        assert_eq!(g.frame(1), USER_CODE + 2);
        assert_eq!(g.frame(2), sel::USER_CODE64 as u64);
        assert_eq!(g.frame(5), sel::USER_DATA as u64);
    }
}

#[test]
fn iretq_checks_what_it_pops() {
    let push = |g: &mut Guest, words: [u64; 5]| {
        for (n, w) in words.iter().enumerate() {
            g.write64(STACK0 - 40 + 8 * n as u64, *w);
        }
        g.cpu.set_gpr(reg::RSP, STACK0 - 40);
        g.code(|a| a.iretq());
    };
    let good = [USER_CODE, sel::USER_CODE64 as u64, 2, STACK3, sel::USER_DATA as u64];
    let cases = [
        (1, 0, 0),
        (1, sel::DATA as u64, sel::DATA as u32),
        (1, 0x1000 | 3, 0x1000),
        (0, 1 << 47, 0),
        (4, sel::DATA as u64, sel::DATA as u32),
        (4, 0, 0),
    ];
    for (slot, value, code) in cases {
        let mut g = Guest::long();
        let mut words = good;
        words[slot] = value;
        push(&mut g, words);
        g.expect_gp(code);
        assert_eq!(g.frame(1), CODE, "slot {slot}");
    }
    let mut g = Guest::long();
    g.cpu.set_rflags(flag::NT);
    push(&mut g, good);
    g.expect_gp(0);
    // A null SS is fine at CPL 0.
    let mut g = Guest::long();
    push(&mut g, [STUBS + 16 * 200, sel::CODE64 as u64, 2, STACK1, 0]);
    g.expect(200);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK1);
}

#[test]
fn iret_to_user_code_drops_inner_data_segments_and_keeps_if() {
    let mut g = Guest::protected();
    for (n, w) in [USER_CODE as u32, sel::USER_CODE32 as u32, 0x202 | 3 << 12, STACK3 as u32, sel::USER_DATA as u32]
        .iter()
        .enumerate()
    {
        g.write32(STACK0 - 20 + 4 * n as u64, *w);
    }
    g.cpu.set_gpr(reg::RSP, STACK0 - 20);
    g.code(|a| a.iretd());
    g.cpu.state.segs[reg::ES].selector = sel::DATA;
    g.bytes(USER_CODE, &[0xfa, 0x0f, 0x0b]); // CLI is allowed by IOPL 3.
    g.expect(vector::UD);
    assert_eq!(g.frame(2), flag::IOPL | flag::RF | 2);
    for n in [reg::ES, reg::DS, reg::FS, reg::GS] {
        assert_eq!(g.cpu.state.segs[n].selector, 0);
        assert!(!g.cpu.state.segs[n].present());
    }
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut g = Guest::long();
    g.code(|a| {
        a.nop()?;
        a.hlt()
    });
    g.cpu.deliver_nmi().unwrap();
    assert!(!g.cpu.nmi_possible());
    g.write8(STUBS + 0x20, 0x48);
    g.write8(STUBS + 0x21, 0xcf);
    g.run();
    assert!(g.cpu.nmi_possible());
    assert_eq!(g.cpu.state.rip, CODE + 2);
}
