//! Port instructions and the I/O permission bitmap.

use crate::fault::vector;
use crate::state::{flag, reg};
use super::Guest;
use crate::system::testing::{place::*, sel};
use crate::vcpu::request;
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;

#[test]
fn sizes_and_registers() {
    let mut g = Guest::long();
    g.board.port.store(0x1122_33ff, Ordering::Relaxed);
    g.cpu.set_gpr(reg::RAX, u64::MAX);
    g.cpu.set_gpr(reg::RDX, 0x1_03f8);
    g.code(|a| {
        a.in_(al, 0x60)?;
        a.mov(rbx, rax)?;
        a.in_(ax, dx)?;
        a.mov(rcx, rax)?;
        a.in_(eax, dx)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(0x80, eax)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RBX), u64::MAX);
    assert_eq!(g.cpu.gpr(reg::RCX), 0xffff_ffff_ffff_33ff);
    assert_eq!(g.cpu.gpr(reg::RAX), 0x1122_33ff);
    assert_eq!(*g.board.writes.lock().unwrap(), [(0x3f8, 1, 0xff), (0x3f8, 2, 0x33ff), (0x80, 4, 0x1122_33ff)]);
}

#[test]
fn user_code_asks_the_bitmap() {
    // Ports 0 to 0xff are open in the guest's TSS.
    let cases =
        [(0x60u32, 1, true), (0xff, 1, true), (0xff, 2, false), (0x100, 1, false), (0xfc, 4, true), (0xffff, 1, true)];
    for (port, size, ok) in cases {
        for long in [false, true] {
            let mut g = if long { Guest::long().user() } else { Guest::protected().user() };
            g.cpu.set_gpr(reg::RDX, port as u64);
            g.code(|a| {
                match size {
                    1 => a.in_(al, dx)?,
                    2 => a.in_(ax, dx)?,
                    _ => a.in_(eax, dx)?,
                }
                a.ud2()
            });
            let got = g.run_to_handler();
            assert_eq!(got, if ok { vector::UD } else { vector::GP }, "port {port:#x} size {size}");
        }
    }
    // Beyond the TSS's limit nothing is allowed; IOPL 3 needs no map.
    let mut g = Guest::long().user();
    g.cpu.state.tr.limit = 0x67;
    g.code(|a| a.out(0x10, al));
    g.expect_gp(0);
    let mut g = Guest::long().user();
    g.cpu.state.tr.limit = 0x67;
    g.cpu.set_rflags(flag::IOPL);
    g.code(|a| {
        a.out(0x10, al)?;
        a.ud2()
    });
    g.expect(vector::UD);
}

#[test]
fn string_input_and_output() {
    let mut g = Guest::long();
    g.board.port.store(0xbeef, Ordering::Relaxed);
    g.cpu.set_gpr(reg::RDX, 0x1f0);
    g.cpu.set_gpr(reg::RDI, DATA);
    g.cpu.set_gpr(reg::RSI, DATA + 2);
    g.cpu.set_gpr(reg::RCX, 3);
    g.code(|a| {
        a.rep().insw()?;
        a.outsb()?;
        a.std()?;
        a.mov(ecx, 2)?;
        a.rep().outsw()?;
        a.rep().outsd()?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.read64(DATA), 0xbeef_beef_beef);
    assert_eq!([g.cpu.gpr(reg::RDI), g.cpu.gpr(reg::RSI), g.cpu.gpr(reg::RCX)], [DATA + 6, DATA - 1, 0]);
    assert_eq!(
        g.board.writes.lock().unwrap().iter().map(|w| (w.1, w.2)).collect::<Vec<_>>(),
        [(1, 0xef), (2, 0xefbe), (2, 0xefbe)]
    );
}

#[test]
fn string_input_stops_at_the_element_that_faults() {
    let mut g = Guest::long();
    g.page(DATA + 0x1000, 0);
    g.board.port.store(0x5a, Ordering::Relaxed);
    g.cpu.set_gpr(reg::RDX, 0x1f0);
    g.cpu.set_gpr(reg::RDI, DATA + 0xffe);
    g.cpu.set_gpr(reg::RCX, 5);
    g.code(|a| a.rep().insb());
    g.expect(vector::PF);
    assert_eq!(g.cpu.state.cr2, DATA + 0x1000);
    assert_eq!([g.cpu.gpr(reg::RDI), g.cpu.gpr(reg::RCX)], [DATA + 0x1000, 3]);
    assert_eq!(g.read16(DATA + 0xffe), 0x5a5a);
    assert_eq!(g.frame(1), CODE);
}

#[test]
fn string_output_can_be_interrupted() {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RDX, 0x80);
    g.cpu.set_gpr(reg::RSI, DATA);
    g.cpu.set_gpr(reg::RCX, 10);
    g.code(|a| {
        a.rep().outsb()?;
        a.hlt()
    });
    g.cpu.handle().raise(request::SMI);
    let io =
        crate::system::io::StringIo { ty: crate::ir::Ty::I8, address: crate::ir::Ty::I64, segment: reg::DS, rep: true };
    g.cpu.string_io(io, false, CODE + 2).unwrap();
    assert_eq!(g.cpu.gpr(reg::RCX), 9, "one element a time while something waits");
    assert_eq!(g.cpu.state.rip, CODE);
    g.cpu.handle().clear(request::SMI);
    g.run();
    assert_eq!(g.board.writes.lock().unwrap().len(), 10);
    assert_eq!(g.cpu.state.rip, CODE + 3);
}

#[test]
fn segment_rights_count_for_string_forms() {
    let mut g = Guest::protected();
    g.cpu.load_segment(reg::ES, sel::CODE32).unwrap();
    g.cpu.set_gpr(reg::RDI, DATA);
    g.code(|a| a.insb());
    g.expect_gp(0);
    assert!(g.board.writes.lock().unwrap().is_empty());
}
