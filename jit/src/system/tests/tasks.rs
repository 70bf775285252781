//! Hardware task switches.

use crate::fault::vector;
use crate::state::{cr0, flag, reg};
use super::Guest;
use crate::system::testing::{descriptor, gate, place::*, sel};
use iced_x86::code_asm::*;

/// A second task: CPL 0, its code is the stub of vector 90.
fn second_task() -> Guest {
    let mut g = Guest::protected();
    g.write32(TSS2 + 0x20, (STUBS + 16 * 90) as u32);
    g.write32(TSS2 + 0x24, 2 | flag::CF as u32);
    for n in 0..8 {
        g.write32(TSS2 + 0x28 + 4 * n, 0xa0 + n as u32);
    }
    g.write32(TSS2 + 0x38, STACK1 as u32);
    for n in 0..6 {
        g.write32(TSS2 + 0x48 + 4 * n, if n == 1 { sel::CODE32 as u32 } else { sel::DATA as u32 });
    }
    g
}

fn far(g: &mut Guest, selector: u16, call: bool) {
    g.write32(DATA, 0xdead_beef);
    g.write16(DATA + 4, selector);
    g.code(|a| {
        let m = fword_ptr(DATA as u32);
        if call { a.call(m) } else { a.jmp(m) }
    });
}

fn busy(g: &Guest, selector: u16) -> bool {
    g.read64(GDT + selector as u64) >> 41 & 1 != 0
}

#[test]
fn jumps_save_one_task_and_load_the_other() {
    let mut g = second_task();
    g.cpu.set_gpr(reg::RBX, 0x1234);
    far(&mut g, sel::TSS2, false);
    g.expect(90);
    assert_eq!(g.cpu.gpr(reg::RAX), 0xa0);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK1);
    assert_eq!(g.cpu.rflags(), 2 | flag::CF);
    assert_ne!(g.cpu.state.cr0 & cr0::TS, 0);
    assert_eq!(g.cpu.state.tr.selector, sel::TSS2);
    assert!(busy(&g, sel::TSS2) && !busy(&g, sel::TSS));
    assert_eq!(g.read32(TSS + 0x20), CODE as u32 + 6);
    assert_eq!(g.read32(TSS + 0x34), 0x1234);
    assert_eq!(g.read16(TSS + 0x4c), sel::CODE32);
}

#[test]
fn calls_nest_and_iret_returns() {
    let mut g = second_task();
    g.bytes(STUBS + 16 * 90, &[0xcf]);
    far(&mut g, sel::TSS2, true);
    g.bytes(CODE + 6, &[0xf4]);
    g.run();
    assert_eq!(g.cpu.state.rip, CODE + 7);
    assert_eq!(g.cpu.state.tr.selector, sel::TSS);
    assert!(!busy(&g, sel::TSS2) && busy(&g, sel::TSS));
    assert_eq!(g.read16(TSS2), sel::TSS, "back link");
    assert_eq!(g.read32(TSS2 + 0x20), (STUBS + 16 * 90 + 1) as u32);
    assert_eq!(g.read32(TSS2 + 0x24) as u64 & flag::NT, 0);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK0);
}

#[test]
fn task_gates_in_the_idt_push_the_error_code_there() {
    let mut g = second_task();
    g.write64(IDT + 8 * vector::GP as u64, gate(sel::TSS2, 0, 0x85, 0));
    g.code(|a| {
        a.mov(eax, 0x74u32)?;
        a.mov(ds, eax)
    });
    g.expect(90);
    assert_eq!(g.cpu.gpr(reg::RSP), STACK1 - 4);
    assert_eq!(g.frame(0), 0x74);
    assert_ne!(g.cpu.rflags() & flag::NT, 0);
    assert_eq!(g.read32(TSS + 0x20), CODE as u32 + 5);
    assert_eq!(g.read32(TSS + 0x24) as u64 & flag::RF, flag::RF);
}

#[test]
fn bad_tasks_are_refused() {
    let mut g = second_task();
    far(&mut g, sel::TSS, false);
    g.expect_gp(sel::TSS as u32); // busy
    let mut g = second_task();
    g.gdt(sel::TSS2, descriptor(TSS2 as u32, 0x66, 0x89, 0));
    far(&mut g, sel::TSS2, false);
    g.expect(vector::TS);
    assert_eq!(g.frame(0), sel::TSS2 as u64);
    assert_eq!(g.cpu.state.tr.selector, sel::TSS);
    let mut g = second_task();
    g.gdt(sel::TSS2, descriptor(TSS2 as u32, 0x67, 0x09, 0));
    far(&mut g, sel::TSS2, false);
    g.expect(vector::NP);
    let mut g = second_task().user();
    far(&mut g, sel::TSS2, false);
    g.expect_gp(sel::TSS2 as u32);
    // IRET to a task that is not busy.
    let mut g = second_task();
    g.write16(TSS, sel::TSS2);
    g.cpu.set_rflags(flag::NT);
    g.code(|a| a.iretd());
    g.expect(vector::TS);
    assert_eq!(g.frame(0), sel::TSS2 as u64);
}

#[test]
fn faults_of_the_new_task_are_its_own() {
    let mut g = second_task();
    g.write32(TSS2 + 0x54, sel::USER_CODE32 as u32 | 4); // DS: LDT selector, no LDT
    far(&mut g, sel::TSS2, false);
    g.expect(vector::TS);
    assert_eq!(g.frame(0), sel::USER_CODE32 as u64 & !3 | 4);
    assert_eq!(g.frame(1), STUBS + 16 * 90, "at the new task's first instruction");
    assert_eq!(g.cpu.state.tr.selector, sel::TSS2);
    let mut g = second_task();
    g.write32(TSS2 + 0x50, sel::USER_DATA as u32);
    far(&mut g, sel::TSS2, false);
    // The stack segment is bad: #TS cannot be delivered on it either, nor #DF.
    assert!(matches!(g.cpu.run_loop(), crate::vcpu::Exit::TripleFault(_) | crate::vcpu::Exit::Halted));
}

#[test]
fn the_trap_bit_raises_debug() {
    let mut g = second_task();
    g.write16(TSS2 + 0x64, 1);
    far(&mut g, sel::TSS2, false);
    g.expect(vector::DB);
    assert_ne!(g.cpu.state.dr[6] & 1 << 15, 0);
    assert_eq!(g.frame(0), STUBS + 16 * 90);
}

#[test]
fn sixteen_bit_tasks() {
    let mut g = Guest::protected();
    g.gdt(sel::TSS2, descriptor(TSS2 as u32, 0x2b, 0x81, 0));
    g.write16(TSS2 + 0x0e, (STUBS + 16 * 91) as u16);
    g.write16(TSS2 + 0x10, 2);
    g.write16(TSS2 + 0x12, 0x4242);
    g.write16(TSS2 + 0x1a, 0x7000);
    for (n, s) in [sel::DATA, sel::CODE32, sel::DATA, sel::DATA].iter().enumerate() {
        g.write16(TSS2 + 0x22 + 2 * n as u64, *s);
    }
    far(&mut g, sel::TSS2, false);
    g.expect(91);
    assert_eq!(g.cpu.gpr(reg::RAX) & 0xffff, 0x4242);
    assert_eq!(g.cpu.gpr(reg::RSP) & 0xffff, 0x7000);
    assert!(!g.cpu.state.segs[reg::FS].present());
}
