//! Code that is overwritten: by itself, through other addresses, from outside.

use super::{Guest, TIER};
use crate::mmu::ram::{Ram, RamRegion};
use crate::state::{attr, reg};
use crate::system::testing::{FakeBoard, RAM, place::*};
use crate::vcpu::{Engine, EngineConfig, Exit, SegmentRegister, Vcpu};
use iced_x86::code_asm::*;
use std::sync::Arc;

/// MOV AL, `n`; HLT.
fn answer(n: u8) -> [u8; 3] {
    [0xb0, n, 0xf4]
}

fn al(g: &Guest) -> u8 {
    g.cpu.gpr(reg::RAX) as u8
}

#[test]
fn the_next_instruction() {
    let mut g = Guest::long();
    // MOV BYTE [RIP + 1], 55h; MOV AL, 11h
    g.bytes(CODE, &[0xc6, 0x05, 1, 0, 0, 0, 0x55]);
    g.bytes(CODE + 7, &answer(0x11));
    g.run();
    assert_eq!(al(&g), 0x55);
}

#[test]
fn the_next_instruction_even_if_there_was_nothing_to_do_for_it() {
    // NOP; and TEST ESP, EBP, whose flags the instruction behind it overwrites unread.
    for next in [&[0x66, 0x90][..], &[0x85, 0xe5]] {
        // MOV and FNSTCW, which takes a helper's call: [RIP + 0]; MOV AL, 55h; HLT.
        for store in [&[0x66, 0xc7, 0x05, 0, 0, 0, 0, 0xb0, 0x55][..], &[0xd9, 0x3d, 0, 0, 0, 0]] {
            let mut g = Guest::long();
            g.cpu.state.x87.fcw = 0x55b0;
            g.bytes(CODE, store);
            let at = CODE + store.len() as u64;
            g.bytes(at, next);
            // SUB RBX, 1; HLT.
            g.bytes(at + 2, &[0x48, 0x83, 0xeb, 0x01, 0xf4]);
            g.run();
            assert_eq!(al(&g), 0x55, "{next:x?} behind {store:x?}");
        }
    }
}

#[test]
fn an_instruction_of_the_same_block_each_time_round() {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RCX, 10);
    g.cpu.set_gpr(reg::RAX, 0);
    g.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        // ADD EAX, imm32. The constant counts up: 1 + 2 + ... + 10.
        a.add(eax, 1i32)?;
        a.inc(byte_ptr(CODE + 1))?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 55);
}

#[test]
fn another_block_of_the_same_region() {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RCX, 20);
    g.cpu.set_gpr(reg::RAX, 0);
    g.cpu.set_gpr(reg::RBX, 0x400);
    // The other block adds 1 for ten rounds, 3 from then on.
    g.code(|a| {
        let (mut top, mut patch, mut on) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.cmp(ecx, 10i32)?;
        a.je(patch)?;
        a.set_label(&mut on)?;
        a.jmp(CODE + 0x80)?;
        a.set_label(&mut patch)?;
        a.mov(byte_ptr(CODE + 0x81), 3i32)?;
        a.jmp(on)
    });
    g.code_at(CODE + 0x80, CODE + 0x80, |a| {
        a.add(eax, 1i32)?;
        a.dec(ecx)?;
        a.jne(CODE)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 10 + 3 * 10);
}

#[test]
fn by_string_instructions() {
    for stos in [false, true] {
        let mut g = Guest::long();
        g.bytes(DATA, &answer(7));
        g.cpu.set_gpr(reg::RSI, DATA);
        g.cpu.set_gpr(reg::RCX, 3);
        g.cpu.set_gpr(reg::RAX, 0xf4);
        g.code(|a| {
            a.lea(rdi, qword_ptr(CODE + 0x40))?;
            if stos { a.rep().stosb() } else { a.rep().movsb() }
        });
        let end = CODE + 10;
        for at in end..CODE + 0x40 {
            g.write8(at, 0x90);
        }
        g.bytes(CODE + 0x40, &[0xb0, 1, 0x90, 0xf4]);
        // First as it was, so that a translation stands; then after the move.
        let start = g.cpu.state.rip;
        g.cpu.state.rip = CODE + 0x30;
        g.run();
        assert_eq!(al(&g), 1);
        g.cpu.set_gpr(reg::RAX, 0xf4);
        g.cpu.state.rip = start;
        g.run();
        assert_eq!(al(&g), if stos { 0xf4 } else { 7 });
        assert_eq!(g.cpu.state.rip, CODE + if stos { 0x41 } else { 0x43 });
    }
}

#[test]
fn through_another_linear_address() {
    let mut g = Guest::long();
    let alias = DATA + 0x3000;
    g.write64(PAGING + 0x3000 + 8 * (alias >> 12), CODE | 7);
    g.cpu.flush_tlb_all();
    // The alias is in the TLB as writable before there is code.
    g.cpu.store(crate::ir::Ty::I8, alias + 0x800, 1).unwrap();
    g.cpu.set_gpr(reg::RDI, alias + 8);
    g.bytes(CODE, &[0xc6, 0x07, 0x55, 0x90, 0x90, 0x90, 0x90]);
    g.bytes(CODE + 7, &answer(0x11));
    g.run();
    assert_eq!(al(&g), 0x55);
}

#[test]
fn an_instruction_that_goes_into_the_next_page() {
    let mut g = Guest::long();
    let at = CODE + 0xffe;
    // MOV EAX, imm32; HLT: two bytes on the first page.
    g.bytes(at, &[0xb8, 1, 0, 0, 0, 0xf4]);
    for round in 0..4u8 {
        g.cpu.state.rip = at;
        g.run();
        assert_eq!(g.cpu.gpr(reg::RAX), if round == 0 { 1 } else { 1 | u64::from(round) << 24 });
        // MOV BYTE [DI], round + 1 in other code.
        g.bytes(CODE, &[0xc6, 0x07, round + 1, 0xf4]);
        g.cpu.invalidate_code(CODE, 4);
        g.cpu.set_gpr(reg::RDI, CODE + 0x1002);
        g.cpu.state.rip = CODE;
        g.run();
    }
}

#[test]
fn the_second_page_is_mapped_elsewhere() {
    let mut g = Guest::long();
    let at = CODE + 0xffe;
    g.bytes(at, &[0xb8, 1, 0, 0, 0, 0xf4]);
    g.bytes(DATA, &[2, 0, 0, 0xf4]);
    g.cpu.state.rip = at;
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 1);
    g.write64(PAGING + 0x3000 + 8 * ((CODE >> 12) + 1), DATA | 7);
    g.cpu.flush_tlb_page(CODE + 0x1000);
    g.cpu.state.rip = at;
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 0x201);
}

#[test]
fn a_jump_into_a_page_that_is_mapped_elsewhere_behind_a_segment_that_starts_within_one() {
    let mut g = Guest::paged();
    // Offsets 0 and 900h are on one page by themselves, but with this base on two.
    let base = CODE + 0x800;
    g.cpu.state.segs[reg::CS].base = base;
    g.cpu.update_mode();
    // JMP 900h, where EAX is set and the program ends.
    g.bytes(base, &[0xe9, 0xfb, 0x08, 0, 0]);
    g.bytes(base + 0x900, &[0xb8, 1, 0, 0, 0, 0xf4]);
    g.bytes(DATA + 0x100, &[0xb8, 2, 0, 0, 0, 0xf4]);
    for _ in 0..4 {
        g.cpu.state.rip = 0;
        g.run();
        assert_eq!(g.cpu.gpr(reg::RAX), 1);
    }
    g.write32(PAGING + 0x1000 + 4 * ((CODE >> 12) + 1), DATA as u32 | 7);
    g.cpu.flush_tlb_page(CODE + 0x1000);
    g.cpu.state.rip = 0;
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 2);
}

#[test]
fn more_blocks_than_are_held() {
    let mut g = Guest::long();
    g.cpu.blocks.hold(48);
    g.cpu.set_gpr(reg::RAX, 0);
    g.cpu.set_gpr(reg::RCX, 6);
    // A hundred blocks in a ring, six times round.
    g.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for _ in 0..100 {
            let mut next = a.create_label();
            a.inc(rax)?;
            a.jmp(next)?;
            a.int3()?;
            a.set_label(&mut next)?;
        }
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RAX), 600);
    assert!(g.cpu.blocks.len() <= 48, "{} blocks", g.cpu.blocks.len());
    // What was thrown away is no longer watched, and what is there is.
    g.bytes(CODE, &answer(9));
    g.cpu.invalidate_code(CODE, 3);
    g.cpu.state.rip = CODE;
    g.run();
    assert_eq!(al(&g), 9);
}

/// A processor in real mode over RAM and a page of ROM at E000:0.
fn vcpu() -> (Arc<Engine>, Arc<Ram>, Vcpu) {
    let regions = vec![
        RamRegion { gpa: 0, size: 0x2_0000, offset: 0, rom: false },
        RamRegion { gpa: 0xe_0000, size: 0x1000, offset: 0x2_0000, rom: true },
    ];
    let ram = Arc::new(Ram::new(RAM, regions).unwrap());
    let config = EngineConfig { jit: TIER != 0, sync: true, code_cache: 1 << 20, ..EngineConfig::default() };
    let engine = Engine::new(config, ram.clone(), Arc::new(FakeBoard::default())).unwrap();
    let vcpu = Vcpu::new(&engine, 0, &crate::cpuid::CpuModel::default()).unwrap();
    (engine, ram, vcpu)
}

/// Runs from `segment`:0 to a HLT; AL.
fn run(vcpu: &mut Vcpu, segment: u16) -> u8 {
    let mut r = vcpu.registers();
    let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::CODE;
    let code = SegmentRegister { selector: segment, base: u64::from(segment) << 4, limit: 0xffff, attributes };
    r.segments[reg::CS] = code;
    r.rip = 0;
    vcpu.set_registers(&r);
    assert_eq!(vcpu.run(), Exit::Halted);
    vcpu.registers().gpr[reg::RAX] as u8
}

#[test]
fn by_devices() {
    let (engine, ram, mut vcpu) = vcpu();
    for n in 1..8 {
        ram.write(0x1_0000, &answer(n), false);
        engine.memory_written(0x1_0000, 3);
        for _ in 0..4 {
            assert_eq!(run(&mut vcpu, 0x1000), n);
        }
    }
    // Untold of, a change need not be seen; a write next to the code drops nothing.
    engine.memory_written(0x1_0100, 16);
    assert_eq!(run(&mut vcpu, 0x1000), 7);
    assert_eq!(vcpu.statistics().0.baseline > 0, TIER != 0);
}

#[test]
fn hot_code_is_compiled_twice_and_goes_with_its_bytes() {
    let (engine, ram, mut vcpu) = vcpu();
    for n in 1..6 {
        // MOV CX, 200; MOV AL, 0; again: ADD AL, n; LOOP again; HLT. The loop is a region of its own.
        ram.write(0x1_0000, &[0xb9, 200, 0, 0xb0, 0, 0x04, n, 0xe2, 0xfc, 0xf4], false);
        engine.memory_written(0x1_0000, 10);
        for _ in 0..3 {
            assert_eq!(run(&mut vcpu, 0x1000), 200u8.wrapping_mul(n));
        }
        // Only the block of HLT goes: what the loop leads to is found anew.
        engine.memory_written(0x1_0009, 1);
        assert_eq!(run(&mut vcpu, 0x1000), 200u8.wrapping_mul(n));
    }
    let stats = vcpu.statistics().0;
    assert_eq!((stats.baseline >= 10, stats.compiled >= 5, stats.dropped >= 10), (TIER != 0, TIER != 0, TIER != 0));
}

#[test]
fn rom_stays() {
    let (_engine, ram, mut vcpu) = vcpu();
    // MOV BYTE CS:[7], 55h; NOP; MOV AL, 11h; HLT
    ram.write(0xe_0000, &[0x2e, 0xc6, 0x06, 7, 0, 0x55, 0xb0, 0x11, 0xf4], true);
    for _ in 0..4 {
        assert_eq!(run(&mut vcpu, 0xe000), 0x11);
    }
    let mut byte = [0];
    ram.read(0xe_0007, &mut byte);
    assert_eq!(byte, [0x11]);
}

#[test]
fn a_repeated_instruction_that_overwrites_itself_goes_on_as_what_it_is_then() {
    // The first element makes REP a NOP; the second is stored by the instruction without REP, over itself.
    for (opcode, alias) in [(0xaa, false), (0xa4, false), (0x6c, false), (0xaa, true)] {
        let mut g = Guest::long();
        g.board.port.store(0x90, std::sync::atomic::Ordering::Relaxed);
        g.bytes(DATA, &[0x90; 1000]);
        // DATA + 4000h is the page of the code under another address.
        g.write64(PAGING + 0x3000 + 8 * ((DATA + 0x4000) >> 12), CODE | 7);
        let target = if alias { DATA + 0x4000 + 1 } else { CODE + 1 };
        for (r, v) in [(reg::RCX, 1000), (reg::RAX, 0x90), (reg::RSI, DATA), (reg::RDI, target), (reg::RDX, 0x40)] {
            g.cpu.set_gpr(r, v);
        }
        g.bytes(CODE, &[0x90, 0xf3, opcode, 0xf4]);
        g.run();
        assert_eq!([g.cpu.gpr(reg::RCX), g.cpu.gpr(reg::RDI)], [999, target + 2], "{opcode:#x}, {alias}");
        assert_eq!(g.read32(CODE), 0xf490_9090, "{opcode:#x}, {alias}");
        // It comes to itself after other instructions of its block.
        g.cpu.state.rip = CODE;
        g.cpu.set_gpr(reg::RDI, target - 1);
        g.cpu.set_gpr(reg::RCX, 1000);
        g.bytes(CODE, &[0xfc, 0xf3, opcode, 0xf4]);
        g.run();
        assert_eq!([g.cpu.gpr(reg::RCX), g.cpu.gpr(reg::RDI)], [998, target + 2], "{opcode:#x}, {alias}");
    }
}
