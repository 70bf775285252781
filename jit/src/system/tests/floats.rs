//! Floating point as the processor's state sees it: sticky flags, masks.

use super::Guest;
use crate::fault::vector;
use crate::state::{cr0, flag, reg};
use crate::system::testing::place::*;
use crate::vcpu::request;
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;

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

/// An x87 instruction behind one that divides by zero, with #MF off, and its address.
fn frozen(g: &mut Guest) -> u64 {
    g.cpu.state.cr0 &= !cr0::NE;
    g.cpu.set_rflags(flag::IF);
    g.cpu.update_mode();
    g.write16(DATA, 0x37b);
    g.code(|a| {
        a.fninit()?;
        a.fldcw(word_ptr(DATA))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstsw(ax)?;
        a.wait()?;
        a.mov(ebx, 1)?;
        a.hlt()
    });
    g.run();
    let len = 2 + 7 + 2 + 2 + 2 + 2;
    CODE + len
}

#[test]
fn x87_errors_without_mf_wait_for_the_interrupt_that_they_raise() {
    for clear in 0..3 {
        let mut g = Guest::long();
        let wait = frozen(&mut g);
        assert_eq!(g.cpu.state.rip, wait, "waits before the instruction");
        assert_eq!(g.cpu.gpr(reg::RAX) & 0x84, 0x84, "the one that does not wait went through");
        assert_eq!(*g.board.fpu_errors.lock().unwrap(), [true]);
        // Another interrupt changes nothing.
        g.board.vectors.lock().unwrap().push(0x20);
        g.cpu.handle().raise(request::INTERRUPT);
        g.expect(0x20);
        assert_eq!(g.frame(0), wait);
        g.code(|a| a.iretq());
        g.run();
        assert_eq!((g.cpu.state.rip, g.cpu.gpr(reg::RBX)), (wait, 0));
        // The right one ends the error.
        g.board.vectors.lock().unwrap().push(0x75);
        g.cpu.handle().raise(request::INTERRUPT);
        g.expect(0x75);
        g.code(|a| {
            match clear {
                0 => a.fnclex()?,
                1 => a.fninit()?,
                _ => a.fnsave(ptr(DATA + 0x100))?,
            }
            a.iretq()
        });
        g.run();
        assert_eq!(g.cpu.gpr(reg::RBX), 1);
        assert_eq!(*g.board.fpu_errors.lock().unwrap(), [true, false], "{clear}");
    }
}

#[test]
fn x87_errors_are_ignored_where_the_board_says_so() {
    let mut g = Guest::long();
    g.board.ignore_fpu_errors.store(true, Ordering::Relaxed);
    frozen(&mut g);
    assert_eq!(g.cpu.gpr(reg::RBX), 1);
    assert_eq!(*g.board.fpu_errors.lock().unwrap(), [true]);
}

#[test]
fn a_store_that_an_exception_stops_does_not_look_at_its_segment() {
    for (control, segment, want) in [
        (0x37e, reg::DS, vector::MF),
        (0x37f, reg::DS, vector::GP),
        (0x37f, reg::SS, vector::SS),
        (0x37e, reg::SS, vector::MF),
    ] {
        for wide in [false, true] {
            let mut g = Guest::protected();
            g.cpu.state.segs[reg::DS].limit = 0xfff;
            g.cpu.state.segs[reg::SS].limit = STACK0 as u32;
            g.cpu.update_mode();
            g.cpu.state.x87.fcw = control;
            let base = if segment == reg::SS { ebp } else { ebx };
            g.cpu.set_gpr(reg::RBX, 0x1000);
            g.cpu.set_gpr(reg::RBP, STACK0 + 0x100);
            // The stack is empty: the store is invalid.
            g.cpu.state.x87.tags = 0;
            g.code(|a| {
                if wide { a.fstp(tword_ptr(base))? } else { a.fistp(dword_ptr(base))? }
                a.fld1()?;
                a.hlt()
            });
            g.expect(want);
        }
    }
}
