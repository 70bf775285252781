use super::*;
use crate::ir::{Inst, Op};
use crate::lower::Compiler;
use crate::runtime::compile::CompileService;
use crate::runtime::place::CodeMemory;
use crate::runtime::tier::First;
use crate::state::reg;
use crate::system::testing::{self, place, walk};
use crate::vcpu::{EngineConfig, Exit};
use iced_x86::code_asm::{CodeAssembler, *};

type Guest = testing::Guest<0>;

/// A guest in 64-bit mode that checks blocks.
fn guest() -> Guest {
    guest_checking(false)
}

fn guest_checking(regions: bool) -> Guest {
    let mut g = Guest::long();
    let config = EngineConfig { sync: true, ..EngineConfig::default() };
    let service = CompileService::start(&config).expect("compilers");
    let memory = CodeMemory::new(16 << 20).expect("memory for generated code");
    g.cpu.tier.configure(Arc::new(service), memory, Compiler::new().ok());
    let (lockstep, board) = Lockstep::watch(g.cpu.board.clone(), regions);
    g.cpu.lockstep = Some(Box::new(lockstep));
    g.cpu.board = board;
    g
}

fn stats(g: &Guest) -> CheckStats {
    g.cpu.lockstep.as_ref().expect("a checker").stats()
}

/// Stores, stack, flags that live over the block's end, strings, atomics, vectors.
fn program(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut again, mut sub, mut tight) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rbx, place::DATA)?;
    a.mov(rcx, 20u64)?;
    a.xor(eax, eax)?;
    a.set_label(&mut again)?;
    a.push(rcx)?;
    a.add(rax, rcx)?;
    a.adc(qword_ptr(rbx + rcx * 8), rax)?;
    a.call(sub)?;
    a.lea(rsi, ptr(rbx))?;
    a.lea(rdi, ptr(rbx + 0x1800))?;
    a.mov(ecx, 0x1000)?;
    a.rep().movsb()?;
    a.pop(rcx)?;
    a.mov(qword_ptr(rbx + 0xffd), rcx)?;
    a.dec(rcx)?;
    a.jnz(again)?;
    a.mov(ecx, 100)?;
    a.set_label(&mut tight)?;
    a.add(rax, rcx)?;
    a.dec(ecx)?;
    a.jnz(tight)?;
    a.hlt()?;
    a.set_label(&mut sub)?;
    a.lock().xadd(dword_ptr(rbx + 4), eax)?;
    a.movq(xmm1, rax)?;
    a.paddd(xmm1, xmm0)?;
    a.movdqu(xmmword_ptr(rbx + 0x2ff8), xmm1)?;
    a.movdqa(xmm0, xmm1)?;
    a.ret()
}

#[test]
fn blocks_of_a_program_are_the_same_both_ways() {
    same_both_ways(false);
}

#[test]
fn regions_of_a_program_are_the_same_both_ways() {
    same_both_ways(true);
}

fn same_both_ways(regions: bool) {
    let (mut g, mut plain) = (guest_checking(regions), Guest::long());
    g.code(program);
    plain.code(program);
    g.run();
    plain.run();
    for n in 0..16 {
        assert_eq!(g.cpu.gpr(n), plain.cpu.gpr(n), "register {n}");
    }
    for at in (place::DATA..place::DATA + 0x4000).step_by(8) {
        assert_eq!(g.read64(at), plain.read64(at), "memory at {at:#x}");
    }
    let s = stats(&g);
    assert!(
        s.blocks >= 4 && s.compared > if regions { 15 } else { 60 } && s.differences == 0 && s.repeated == 0,
        "{s:?}"
    );
    assert!(s.finished > 0, "stores across pages are the interpreter's: {s:?}");
}

#[test]
fn code_that_makes_room_and_comes_back_is_the_same_both_ways() {
    for (regions, first, steps) in [(false, First::Interpreter, 20_000), (true, First::Cranelift, 3000)] {
        let mut g = guest_checking(regions);
        let memory = CodeMemory::new(1 << 20).expect("memory for generated code");
        let service =
            CompileService::start(&EngineConfig { sync: true, ..EngineConfig::default() }).expect("compilers");
        g.cpu.tier.configure(Arc::new(service), memory, Compiler::new().ok());
        g.cpu.tier.set_first(first);
        walk::put(&mut g, 3000, steps);
        g.run();
        assert_eq!(walk::result(&g), walk::expected(3000, steps));
        let (s, tier) = (stats(&g), g.cpu.tier.stats);
        assert!(s.compared > steps && s.differences == 0, "{s:?}");
        assert!(tier.evictions >= 3 && (tier.compiled > 0) == regions, "{tier:?}");
    }
}

#[test]
fn devices_and_mappings_are_used_once() {
    let mut g = guest();
    g.code(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 10)?;
        a.set_label(&mut again)?;
        a.mov(eax, ecx)?;
        a.out(0x80, al)?;
        a.rdtsc()?;
        a.invlpg(byte_ptr(place::DATA))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g.run();
    let written: Vec<u32> = g.board.writes.lock().expect("the fake board").iter().map(|w| w.2).collect();
    assert_eq!(written, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert!(stats(&g).once >= 5, "{:?}", stats(&g));
}

#[test]
fn faults_are_compared() {
    let mut g = guest();
    g.code(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 8)?;
        a.set_label(&mut again)?;
        a.xor(edx, edx)?;
        a.mov(eax, 100)?;
        a.div(ebx)?;
        a.mov(dword_ptr(place::DATA + rbx * 4), eax)?;
        a.dec(ebx)?;
        a.jmp(again)
    });
    g.expect(crate::fault::vector::DE);
    // A block that faults each time.
    let mut g = guest();
    g.code(|a| {
        a.push(rax)?;
        a.inc(rax)?;
        a.mov(qword_ptr(rax), rax)?;
        a.hlt()
    });
    for _ in 0..5 {
        g.cpu.state.rip = place::CODE;
        g.cpu.set_gpr(reg::RAX, 0x1234_5678_9abc);
        g.expect(crate::fault::vector::PF);
        assert_eq!((g.cpu.state.cr2, g.cpu.gpr(reg::RAX)), (0x1234_5678_9abd, 0x1234_5678_9abd));
    }
    assert!(stats(&g).faults >= 3 && stats(&g).differences == 0, "{:?}", stats(&g));
}

/// Runs a loop, then again with code from which `spoil` changed an operation: the report.
fn spoiled(spoil: impl Fn(&mut Inst)) -> String {
    let mut g = guest();
    // Dirty already, else stores there are the interpreter's.
    g.page(place::DATA + 0x2000, 0x67);
    g.code(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(rax, rcx)?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g.cpu.set_gpr(reg::RBX, place::DATA);
    g.cpu.set_gpr(reg::RCX, 6);
    g.run();
    assert_eq!(stats(&g).differences, 0);
    g.cpu.state.halted = false;
    g.cpu.state.rip = place::CODE;
    g.cpu.set_gpr(reg::RCX, 6);
    let slot = g.cpu.find_block(false).expect("the loop");
    let mut block = (*g.cpu.ir(slot).expect("its IR")).clone();
    block.insts.iter_mut().for_each(spoil);
    g.cpu.replace_code(slot, block);
    match g.cpu.run_loop() {
        Exit::Diverged(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_registers_are_reported() {
    let report = spoiled(|i| {
        if i.op == Op::Add {
            i.op = Op::Sub;
        }
    });
    for part in ["addq     %rcx, %rax", "rax: 0x1b | 0xf", "memory at 0x100010: 1b | 0f (before: 15)"] {
        assert!(report.contains(part), "{part} is missing:\n{report}");
    }
}

#[test]
fn a_store_to_a_wrong_page_is_seen() {
    let report = spoiled(|i| {
        if i.op == Op::Store {
            i.imm += 0x2000;
        }
    });
    for part in ["memory at 0x100010: 1b | 15 (before: 15)", "memory at 0x102010: 00 | 1b (before: 00)"] {
        assert!(report.contains(part), "{part} is missing:\n{report}");
    }
    assert!(!report.contains("rax: "), "{report}");
}

#[test]
fn wrong_flags_are_seen_though_they_are_kept_lazily() {
    let report = spoiled(|i| {
        if i.op == Op::SetFlags {
            i.ty = crate::ir::Ty::I8;
            i.a = reg::RBX as u16;
        }
    });
    assert!(report.contains("rflags: 0x6 | 0x47"), "{report}");
    assert!(report.contains("rip: "), "{report}");
}

#[test]
fn a_block_that_starts_with_a_nop_is_found_by_where_it_starts() {
    let mut g = guest_checking(true);
    g.code(|a| {
        a.inc(rax)?;
        a.nop()?;
        a.inc(rbx)?;
        a.hlt()
    });
    let mut found = |rip| {
        g.cpu.state.rip = rip;
        let slot = g.cpu.find_block(false).expect("code");
        let block = g.cpu.ir(slot).expect("its IR");
        Part { slot, base: block.base(&g.cpu.state), block }
    };
    // The second begins amid the first, with an instruction of no operations in both.
    let blocks = vec![found(place::CODE), found(place::CODE + 3)];
    let subject = Subject { blocks, stays: Stays::Anywhere, entry: 0, start: Snapshot::take(&mut g.cpu) };
    assert_eq!(subject.instruction(place::CODE + 3), Some((1, 0)));
    assert!(matches!(subject.instruction(place::CODE + 4), Some((0, at)) if at > 0));
    assert_eq!(subject.instruction(place::CODE + 5), None);
}
