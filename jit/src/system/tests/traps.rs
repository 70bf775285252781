//! Single step, shadows, debug registers.

use crate::fault::vector;
use crate::state::{cr4, flag, reg, shadow};
use super::Guest;
use crate::system::testing::{place::*, sel};
use crate::vcpu::request;
use iced_x86::code_asm::*;

const BS: u64 = 1 << 14;

#[test]
fn tf_traps_behind_one_instruction() {
    let mut g = Guest::long();
    g.code(|a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), flag::TF as i32)?;
        a.popfq()?;
        a.mov(eax, 1)?;
        a.mov(eax, 2)
    });
    g.expect(vector::DB);
    assert_eq!(g.cpu.gpr(reg::RAX), 1, "the instruction behind POPF ran, no more");
    assert_eq!(g.cpu.state.dr[6] & BS, BS);
    assert_eq!(g.frame(2) & (flag::TF | flag::RF), flag::TF);
    assert_eq!(g.cpu.rflags() & flag::TF, 0);
}

#[test]
fn mov_ss_holds_the_trap_off() {
    let mut g = Guest::long();
    g.cpu.set_rflags(flag::TF);
    g.code(|a| {
        a.mov(ss, eax)?;
        a.mov(ebx, 1)?;
        a.mov(ebx, 2)
    });
    g.cpu.set_gpr(reg::RAX, sel::DATA as u64);
    g.expect(vector::DB);
    assert_eq!(g.cpu.gpr(reg::RBX), 1);
}

#[test]
fn system_calls_and_interrupts_do_not_trap_on_entry() {
    let mut g = Guest::long().user();
    g.cpu.set_rflags(flag::TF);
    g.cpu.state.msr.star = (sel::CODE64 as u64) << 32;
    g.cpu.state.msr.lstar = STUBS + 16 * 99;
    g.cpu.state.msr.sfmask = flag::TF;
    g.code(|a| a.syscall());
    g.expect(99);
    assert_eq!(g.cpu.gpr(11), flag::TF | 2);
    let mut g = Guest::protected();
    g.cpu.set_rflags(flag::TF);
    g.code(|a| a.int(0x44));
    g.expect(0x44);
}

#[test]
fn sti_and_mov_ss_shadows() {
    let mut g = Guest::long();
    g.code(|a| {
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        a.hlt()
    });
    g.cpu.handle().raise(request::EXIT);
    // Exit requests are served between blocks: step by step to see the shadow.
    let steps = |g: &mut Guest| {
        g.cpu.handle().raise(request::EXIT);
        g.cpu.run_loop();
    };
    steps(&mut g);
    assert_eq!(g.cpu.state.rip, CODE);
    g.cpu.sti().unwrap();
    assert_eq!(g.cpu.state.shadow, shadow::STI);
    assert!(!g.cpu.interruptible() && g.cpu.nmi_possible());
    // With interrupts on already there is no shadow.
    g.cpu.state.shadow = 0;
    g.cpu.sti().unwrap();
    assert_eq!(g.cpu.state.shadow, 0);
    assert!(g.cpu.interruptible());
    g.cpu.state.shadow = shadow::MOV_SS;
    assert!(!g.cpu.interruptible() && !g.cpu.nmi_possible());
    g.run();
    assert_eq!(g.cpu.state.rip, CODE + 5);
    assert_eq!(g.cpu.state.shadow, 0);
}

#[test]
fn a_waiting_interrupt_gets_in_before_the_window_closes() {
    for (popf, instructions_between) in [(false, 1), (true, 1), (true, 3), (false, 0), (true, 0)] {
        let mut g = Guest::long();
        g.board.vectors.lock().unwrap().push(0x50);
        g.cpu.handle().raise(request::INTERRUPT);
        g.code(|a| {
            a.pushfq()?;
            a.sti()?;
            for _ in 0..instructions_between {
                a.nop()?;
            }
            if popf { a.popfq()? } else { a.cli()? }
            a.mov(eax, 1)?;
            a.hlt()
        });
        let case = format!("popf {popf}, {instructions_between} between");
        if instructions_between == 0 {
            g.run();
            assert_eq!(g.cpu.gpr(reg::RAX), 1, "in the shadow of STI: {case}");
            assert_eq!(g.cpu.rflags() & flag::IF, 0, "{case}");
            assert_eq!(g.cpu.gpr(reg::RSP), if popf { STACK0 } else { STACK0 - 8 }, "{case}");
            continue;
        }
        g.expect(0x50);
        // SDM 2B, STI: recognised at the end of the instruction after it, or any later one while IF is set.
        let rip = g.frame(0);
        assert!((CODE + 3..=CODE + 2 + instructions_between).contains(&rip), "{case}: {rip:#x}");
        assert_eq!(g.frame(3), STACK0 - 8, "{case}");
        // It goes on there.
        g.code(|a| a.iretq());
        g.run();
        assert_eq!(g.cpu.gpr(reg::RAX), 1, "{case}");
        assert_eq!(g.cpu.rflags() & flag::IF, 0, "{case}");
    }
}

#[test]
fn a_waiting_interrupt_gets_in_before_all_that_closes_the_window() {
    for close in 0..6 {
        let mut g = Guest::long();
        g.board.vectors.lock().unwrap().push(0x50);
        g.cpu.handle().raise(request::INTERRUPT);
        g.cpu.state.msr.sfmask = flag::IF;
        g.cpu.state.msr.lstar = CODE + 0x100;
        g.cpu.state.msr.sysenter_cs = u64::from(sel::CODE64);
        g.code(|a| {
            a.sti()?;
            a.nop()?;
            match close {
                0 => a.iretq(),
                1 => a.int(0x60),
                2 => a.int3(),
                3 => a.int1(),
                4 => a.syscall(),
                _ => a.sysenter(),
            }
        });
        g.expect(0x50);
        assert_eq!(g.frame(0), CODE + 2, "closed by {close}");
    }
    // In the shadow of STI there is no window, and so it closes none.
    let mut g = Guest::long();
    g.board.vectors.lock().unwrap().push(0x50);
    g.cpu.handle().raise(request::INTERRUPT);
    g.code(|a| {
        a.sti()?;
        a.int(0x60)
    });
    g.expect(0x60);
}

#[test]
fn an_interrupt_shows_flags_that_the_code_overwrites_unread() {
    let mut g = Guest::long();
    g.board.vectors.lock().unwrap().push(0x50);
    g.cpu.handle().raise(request::INTERRUPT);
    g.cpu.set_gpr(reg::RCX, 1);
    g.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.or(edx, -1)?;
        a.sti()?;
        a.sub(rcx, 1)?;
        a.jmp(top)
    });
    g.expect(0x50);
    // Right behind SUB or at the jump's target.
    assert!([CODE, CODE + 8].contains(&g.frame(0)), "{:#x}", g.frame(0));
    assert_eq!(g.frame(2) & flag::ARITH, flag::ZF | flag::PF);
}

#[test]
fn execution_breakpoints_fault_once() {
    let mut g = Guest::long();
    g.code(|a| {
        a.mov(eax, 1)?;
        a.mov(eax, 2)?;
        a.hlt()
    });
    g.cpu.write_debug(1, CODE + 5).unwrap();
    g.cpu.write_debug(7, 1 << 2).unwrap();
    g.expect(vector::DB);
    assert_eq!(g.cpu.gpr(reg::RAX), 1);
    assert_eq!(g.cpu.state.dr[6] & 0xf, 2);
    assert_eq!(g.frame(0), CODE + 5);
    // The handler sets RF and returns: the instruction runs.
    g.code(|a| {
        a.or(dword_ptr(rsp + 16), flag::RF as i32)?;
        a.iretq()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 2);
    assert_eq!(g.cpu.state.rip, CODE + 11);
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    // Write watch of four bytes; a read and a neighbour do not hit.
    let control = |kind: u64, len: u64| 1 | kind << 16 | len << 18;
    let mut g = Guest::long();
    g.code(|a| {
        a.mov(eax, dword_ptr(DATA))?;
        a.mov(byte_ptr(DATA + 4), 1)?;
        a.mov(byte_ptr(DATA + 3), 1)?;
        a.mov(ebx, 1)?;
        a.hlt()
    });
    g.cpu.write_debug(0, DATA).unwrap();
    g.cpu.write_debug(7, control(1, 3)).unwrap();
    g.expect(vector::DB);
    assert_eq!(g.cpu.state.dr[6] & 0xf, 1);
    assert_eq!(g.frame(0), CODE + 9 + 8 + 8);
    assert_eq!(g.read64(DATA) >> 24 & 0xff, 1, "the store was done");
    // Reads too; string instructions and vectors touch it as well.
    for program in 0..3 {
        let mut g = Guest::long();
        g.cpu.set_gpr(reg::RSI, DATA - 8);
        g.cpu.set_gpr(reg::RDI, DATA + 0x100);
        g.cpu.set_gpr(reg::RCX, 4);
        g.code(|a| {
            match program {
                0 => a.rep().movsd()?,
                1 => a.movups(xmm0, xmmword_ptr(DATA - 12))?,
                _ => a.lock().add(dword_ptr(DATA - 2), 1)?,
            }
            a.hlt()
        });
        g.cpu.write_debug(0, DATA).unwrap();
        g.cpu.write_debug(7, control(3, 0)).unwrap();
        g.expect(vector::DB);
        assert_eq!(g.cpu.state.dr[6] & 0xf, 1);
        if program == 0 {
            assert_eq!(g.cpu.gpr(reg::RCX), 1, "the trap comes between iterations");
        }
    }
}

#[test]
fn port_breakpoints_need_de() {
    let mut g = Guest::long();
    g.cpu.state.cr4 |= cr4::DE;
    g.code(|a| {
        a.out(0x41, al)?;
        a.out(0x40, al)?;
        a.hlt()
    });
    g.cpu.write_debug(3, 0x40).unwrap();
    g.cpu.write_debug(7, 1 << 6 | 2 << 28).unwrap();
    g.expect(vector::DB);
    assert_eq!(g.cpu.state.dr[6] & 0xf, 8);
    assert_eq!(g.board.writes.lock().unwrap().len(), 2);
}

#[test]
fn debug_registers_are_guarded() {
    let mut g = Guest::long();
    g.code(|a| {
        a.mov(rax, dr4)?;
        a.mov(dr5, rax)?;
        a.mov(rbx, dr7)?;
        a.hlt()
    });
    g.cpu.set_gpr(reg::RAX, 0);
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 0xffff_0ff0, "DR4 is DR6");
    assert_eq!(g.cpu.gpr(reg::RBX), 0xffff_0ff0 & 0xffff_23ff | 0x400, "DR5 is DR7");
    let mut g = Guest::long();
    g.cpu.state.cr4 |= cr4::DE;
    g.code(|a| a.mov(rax, dr4));
    g.expect(vector::UD);
    let mut g = Guest::long();
    g.cpu.state.dr[7] |= 1 << 13;
    g.code(|a| a.mov(rax, dr0));
    g.expect(vector::DB);
    assert_eq!(g.cpu.state.dr[6] >> 13 & 1, 1);
    assert_eq!(g.cpu.state.dr[7] >> 13 & 1, 0, "GD is cleared on entry");
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RAX, 1 << 32);
    g.code(|a| a.mov(dr6, rax));
    g.expect_gp(0);
    let mut g = Guest::long().user();
    g.code(|a| a.mov(rax, dr0));
    g.expect_gp(0);
}
