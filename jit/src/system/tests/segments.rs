//! Segment loads, limits and rights, and the instructions that look at descriptors.

use crate::fault::{Fault, vector};
use crate::state::{flag, reg};
use super::Guest;
use crate::system::testing::{descriptor, gate, place::*, sel};
use iced_x86::code_asm::*;

#[test]
fn data_segment_loads() {
    // (descriptor, selector RPL, CPL 3, vector)
    let cases = [
        (descriptor(0, 0xfffff, 0x93, 0xc), 0, false, None),
        (descriptor(0, 0xfffff, 0x93, 0xc), 3, false, Some(vector::GP)), // RPL above DPL
        (descriptor(0, 0xfffff, 0x93, 0xc), 0, true, Some(vector::GP)),
        (descriptor(0, 0xfffff, 0x99, 0xc), 0, false, Some(vector::GP)), // execute-only
        (descriptor(0, 0xfffff, 0x9e, 0xc), 3, true, None),              // conforming, readable
        (descriptor(0, 0xfffff, 0x13, 0xc), 0, false, Some(vector::NP)),
        (descriptor(0, 0xfffff, 0x82, 0), 0, false, Some(vector::GP)), // system
    ];
    for (n, (d, rpl, user, want)) in cases.into_iter().enumerate() {
        let mut g = if user { Guest::protected().user() } else { Guest::protected() };
        g.gdt(sel::FREE, d);
        g.cpu.set_gpr(reg::RAX, (sel::FREE | rpl) as u64);
        g.code(|a| {
            a.mov(es, eax)?;
            a.ud2()
        });
        let got = g.run_to_handler();
        assert_eq!(got, want.unwrap_or(vector::UD), "case {n}");
        if want.is_some() {
            assert_eq!(g.frame(0), sel::FREE as u64, "case {n}");
        } else {
            assert_eq!(g.read64(GDT + sel::FREE as u64) >> 40 & 1, 1, "accessed");
        }
    }
}

#[test]
fn stack_segment_loads() {
    let cases = [
        (sel::DATA, None),
        (sel::DATA | 3, Some((vector::GP, sel::DATA))),
        (sel::USER_DATA, Some((vector::GP, sel::USER_DATA & !3))),
        (sel::CODE32, Some((vector::GP, sel::CODE32))),
        (0, Some((vector::GP, 0))),
        (sel::FREE, Some((vector::SS, sel::FREE))),
    ];
    for (selector, want) in cases {
        let mut g = Guest::protected();
        g.gdt(sel::FREE, descriptor(0, 0xfffff, 0x13, 0xc));
        let err = g.cpu.load_segment(reg::SS, selector).err();
        assert_eq!(err, want.map(|(v, c)| Fault::with_code(v, c as u32)), "{selector:#x}");
    }
    let mut g = Guest::long();
    g.cpu.load_segment(reg::SS, 0).unwrap();
    assert_eq!(g.cpu.load_segment(reg::SS, 3), Err(Fault::GP0), "RPL must be the CPL");
    assert_eq!(g.cpu.state.cpl(), 0);
}

#[test]
fn limits_up_and_down() {
    // Expand-up, 16 bytes at DATA; expand-down above 0xf, 16 and 32 bits; read-only; code.
    let up = descriptor(DATA as u32, 15, 0x93, 0x4);
    let down16 = descriptor(DATA as u32, 15, 0x97, 0);
    let down32 = descriptor(DATA as u32, 15, 0x97, 0x4);
    let read_only = descriptor(DATA as u32, 15, 0x91, 0x4);
    let code = descriptor(DATA as u32, 15, 0x9b, 0x4);
    let cases: [(u64, u64, u32, bool, bool); 17] = [
        (up, 12, 4, true, true),
        (up, 13, 4, true, false),
        (up, 15, 1, false, true),
        (up, 16, 1, false, false),
        (up, 0xffff_ffff, 1, false, false),
        (down16, 15, 1, true, false),
        (down16, 16, 1, true, true),
        (down16, 0xfffc, 4, true, true),
        (down16, 0xfffd, 4, true, false),
        (down32, 0xffff_fffc, 4, true, true),
        (down32, 0xffff_fffd, 4, true, false),
        (down32, 14, 4, true, false),
        (read_only, 0, 4, false, true),
        (read_only, 0, 4, true, false),
        (code, 0, 4, false, true),
        (code, 0, 4, true, false),
        (up, 8, 16, false, false),
    ];
    for (n, (d, offset, bytes, write, ok)) in cases.into_iter().enumerate() {
        let mut g = Guest::protected();
        g.gdt(sel::FREE, d);
        g.cpu.load_segment(reg::ES, sel::FREE).unwrap();
        let r = g.cpu.seg_check(reg::ES, offset, bytes, write);
        let want = if ok { Ok((DATA + offset) & 0xffff_ffff) } else { Err(Fault::GP0) };
        assert_eq!(r, want, "case {n}");
    }
    let mut g = Guest::protected();
    g.cpu.load_segment(reg::ES, 0).unwrap();
    assert_eq!(g.cpu.seg_check(reg::ES, 0, 1, false), Err(Fault::GP0), "null");
}

#[test]
fn limits_fault_in_running_code() {
    let mut g = Guest::protected();
    g.gdt(sel::FREE, descriptor(DATA as u32, 15, 0x93, 0x4));
    g.cpu.load_segment(reg::FS, sel::FREE).unwrap();
    g.cpu.set_gpr(reg::RAX, 0x55);
    g.code(|a| {
        a.mov(dword_ptr(12).fs(), eax)?;
        a.mov(dword_ptr(13).fs(), eax)
    });
    g.expect_gp(0);
    assert_eq!(g.frame(1), CODE + 6);
    assert_eq!(g.read32(DATA + 12), 0x55);
    // A stack with a small limit: PUSH faults with #SS and moves nothing.
    let mut g = Guest::protected();
    g.gdt(sel::FREE, descriptor(0, STACK1 as u32 - 1, 0x93, 0x4));
    g.write64(IDT + 8 * vector::SS as u64, gate(sel::TSS2, 0, 0x85, 0));
    g.cpu.load_segment(reg::SS, sel::FREE).unwrap();
    g.cpu.set_gpr(reg::RSP, STACK1 + 8);
    let err = {
        let mut s = g.cpu.current_stack();
        g.cpu.push_frame(&mut s, crate::ir::Ty::I32, &[1]).unwrap_err()
    };
    assert_eq!(err, Fault::SS0);
    // In real mode the limit is 64 KiB.
    let g = Guest::real();
    assert_eq!(g.cpu.seg_check(reg::DS, 0xffff, 2, false), Err(Fault::GP0));
    assert_eq!(g.cpu.seg_check(reg::SS, 0x1_0000, 1, false), Err(Fault::SS0));
    assert_eq!(g.cpu.seg_check(reg::DS, 0xffff, 1, true), Ok(0xffff));
}

#[test]
fn far_pointers_load_segment_and_offset() {
    let mut g = Guest::protected();
    g.write32(DATA, 0x1234_5678);
    g.write16(DATA + 4, sel::USER_DATA);
    g.code(|a| {
        a.lgs(ebx, fword_ptr(DATA as u32))?;
        a.mov(ecx, gs)?;
        a.push(gs)?;
        a.pop(fs)?;
        a.mov(word_ptr(DATA as u32 + 8), fs)?;
        a.lss(esp, fword_ptr(DATA as u32))
    });
    g.expect_gp(sel::USER_DATA as u32 & !3);
    assert_eq!([g.cpu.gpr(reg::RBX), g.cpu.gpr(reg::RCX)], [0x1234_5678, sel::USER_DATA as u64]);
    assert_eq!(g.read16(DATA + 8), sel::USER_DATA);
    assert_eq!(g.cpu.state.segs[reg::FS].selector, sel::USER_DATA);
}

#[test]
fn access_rights_limits_and_verification() {
    let mut g = Guest::protected();
    g.gdt(sel::FREE, descriptor(0, 0x12345, 0x9a, 0xc));
    g.gdt(sel::FREE + 8, gate(sel::CODE32, 0, 0x8e, 0)); // interrupt gate: not for LAR
    g.code(|a| {
        a.mov(edx, sel::FREE as u32)?;
        a.lar(eax, edx)?;
        a.lsl(ebx, edx)?;
        a.verr(dx)?;
        a.setz(cl)?;
        a.verw(dx)?;
        a.setz(ch)?;
        a.mov(edx, sel::FREE as u32 + 8)?;
        a.mov(esi, 77)?;
        a.lar(esi, edx)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 0x00c1_9a00);
    assert_eq!(g.cpu.gpr(reg::RBX), 0x1234_5fff);
    assert_eq!(g.cpu.gpr(reg::RCX) & 0xffff, 1);
    assert_eq!(g.cpu.gpr(reg::RSI), 77);
    assert_eq!(g.cpu.rflags() & flag::ZF, 0);
    let mut g = Guest::protected();
    g.code(|a| {
        a.mov(eax, 0x10)?;
        a.mov(ebx, 3)?;
        a.arpl(ax, bx)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 0x13);
    assert_ne!(g.cpu.rflags() & flag::ZF, 0);
    let mut g = Guest::real();
    g.bytes(CODE, &[0x0f, 0x02, 0xc1]); // LAR in real mode
    g.expect(vector::UD);
}

#[test]
fn ldt_and_task_register() {
    let mut g = Guest::protected();
    g.gdt(sel::FREE, descriptor(LDT as u32, 15, 0x82, 0));
    g.write64(LDT + 8, descriptor(DATA as u32, 0xff, 0x93, 0x4));
    g.code(|a| {
        a.mov(eax, sel::FREE as u32)?;
        a.lldt(ax)?;
        a.mov(eax, 0xc)?;
        a.mov(es, eax)?;
        a.sldt(ecx)?;
        a.mov(eax, 0x14)?;
        a.mov(fs, eax)
    });
    g.expect_gp(0x14);
    assert_eq!(g.cpu.state.segs[reg::ES].base, DATA);
    assert_eq!(g.cpu.gpr(reg::RCX), sel::FREE as u64);
    for (selector, v) in [(sel::DATA, vector::GP), (sel::TSS, vector::GP), (0, vector::GP), (0x14, vector::GP)] {
        let mut g = Guest::protected();
        assert_eq!(g.cpu.load_task_register(selector), Err(Fault::with_code(v, selector as u32 & !3)), "{selector:#x}");
    }
    let mut g = Guest::protected();
    g.cpu.load_task_register(sel::TSS2).unwrap();
    assert_eq!(g.read64(GDT + sel::TSS2 as u64) >> 40 & 15, 11);
    let mut g = Guest::protected().user();
    g.code(|a| a.ltr(ax));
    g.expect_gp(0);
}
