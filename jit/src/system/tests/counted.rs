//! Counted execution: the count and the stops are the same whoever runs the code.

use super::Guest;
use crate::state::{flag, reg};
use crate::system::testing::{self, place::*};
use crate::vcpu::{Exit, request};
use iced_x86::code_asm::*;

/// Loops, calls, string instructions, faults, instructions without effect, device memory, and looks at the time between.
/// R12 counts the rounds down; time stamps go to [R13].
fn program<const TIER: u8>(g: &mut testing::Guest<TIER>) {
    g.bytes(STUBS + 16 * 6, &[0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf]); // #UD: add qword [rsp], 2; iretq
    g.write64(PAGING + 0x3000 + 8 * ((DATA + 0x2_0000) >> 12), 0xf000_0007);
    g.code(|a| {
        let (mut round, mut inner, mut skip, mut function) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(r12, 40u64)?;
        a.mov(r13, DATA)?;
        a.mov(r14, DATA + 0x2_0000)?;
        a.jmp(round)?;
        a.set_label(&mut function)?;
        a.nop()?;
        a.push(rcx)?;
        a.nop()?;
        a.rdtsc()?;
        a.mov(dword_ptr(r13), eax)?;
        a.add(r13, 4)?;
        a.pop(rcx)?;
        a.ret()?;
        a.set_label(&mut round)?;
        a.mov(ecx, 5)?;
        a.set_label(&mut inner)?;
        a.call(function)?;
        a.nop()?;
        a.test(ecx, 1)?;
        a.jne(skip)?;
        a.nop()?;
        a.inc(r9)?;
        a.set_label(&mut skip)?;
        a.dec(ecx)?;
        a.jne(inner)?;
        a.mov(rdi, DATA + 0x8000)?;
        a.mov(ecx, 700)?;
        a.rep().stosb()?;
        a.rdtsc()?;
        a.mov(dword_ptr(r13), eax)?;
        a.ud2()?;
        a.sti()?;
        a.nop()?;
        a.cli()?;
        a.movups(xmm0, xmmword_ptr(r13))?;
        a.mov(ebx, dword_ptr(r14))?;
        a.mov(dword_ptr(r14 + 4), ebx)?;
        a.pushfq()?;
        a.popfq()?;
        a.rdtsc()?;
        a.xor(r10, rax)?;
        a.add(r13, 4)?;
        a.dec(r12)?;
        a.jne(round)?;
        a.hlt()
    });
}

/// Every stop of the interpreter is one in each tier: RIP and registers are the same at each count.
#[test]
fn it_stops_at_every_instruction() {
    let mut reference = testing::Guest::<0>::long().counted();
    let mut g = Guest::long().counted();
    program(&mut reference);
    program(&mut g);
    let (theirs, ours) = (reference.counter(), g.counter());
    let mut count = 0u64;
    loop {
        // Strides of all lengths, so that code runs in which the limit is far, and code in which it is near.
        count += 1 + count % 61;
        theirs.set_limit(count);
        ours.set_limit(count);
        // By single instructions in the interpreter.
        while reference.cpu.shared.counter.as_ref().is_some_and(|c| !c.reached()) && !reference.cpu.state.halted {
            theirs.set_limit(theirs.count() + 1);
            let exit = reference.cpu.run_loop();
            assert!(matches!(exit, Exit::Counted | Exit::Halted), "{exit:?}");
            theirs.set_limit(count);
        }
        let exit = g.cpu.run_loop();
        assert_eq!(ours.count(), theirs.count(), "{}", g.cpu.dump());
        assert_eq!(g.cpu.state.rip, reference.cpu.state.rip, "at {count}: {}", g.cpu.dump());
        assert_eq!(g.cpu.state.vals[..16], reference.cpu.state.vals[..16], "at {count}");
        if exit == Exit::Halted {
            break;
        }
        assert_eq!((exit, ours.count()), (Exit::Counted, count));
    }
    for n in 0..240 {
        assert_eq!(g.read32(DATA + 4 * n), reference.read32(DATA + 4 * n), "time stamp {n}");
    }
    assert_eq!(g.cpu.gpr(reg::RBP), reference.cpu.gpr(reg::RBP));
    // mov, mov, mov, jmp; a round: mov, then five times call, 8 in the function, nop, test, jne, dec, jne and twice more 2;
    // 3 with one stosb, 2, a handler's 2 in place of ud2, 13 to the round's end; hlt.
    let round = 1 + 5 * (1 + 8 + 1 + 2 + 2) + 2 * 2 + 3 + 2 + 2 + 13;
    assert_eq!(ours.count(), 4 + 40 * round + 1);
}

/// What an instruction raises comes right behind it, and a limit that it brings nearer holds from there on.
#[test]
fn a_request_raised_amid_a_block_comes_behind_the_instruction() {
    let mut g = Guest::long().counted();
    g.cpu.set_rflags(flag::IF);
    g.write32(DATA, 0);
    g.bytes(STUBS + 16 * 0x40, &[0x0f, 0x31, 0xf4]); // rdtsc; hlt
    g.code(|a| {
        for _ in 0..9 {
            a.nop()?;
        }
        a.pause()?;
        for _ in 0..9 {
            a.inc(rbx)?;
        }
        a.hlt()
    });
    // Another processor, so that PAUSE ends its turn.
    g.cpu.shared.join(g.cpu.handle());
    for _ in 0..4 {
        let counter = g.counter();
        let start = counter.count();
        counter.set_limit(u64::MAX);
        g.cpu.state.rip = CODE;
        g.cpu.state.halted = false;
        g.cpu.set_gpr(reg::RSP, STACK0);
        g.cpu.set_gpr(reg::RBX, 0);
        g.cpu.set_rflags(flag::IF);
        assert_eq!(g.cpu.run_loop(), Exit::Counted);
        assert_eq!((counter.count(), g.cpu.gpr(reg::RBX)), (start + 10, 0));
        // What a timer would do.
        counter.set_limit(u64::MAX);
        g.board.vectors.lock().unwrap().push(0x40);
        g.cpu.handle().raise(request::INTERRUPT);
        assert_eq!(g.cpu.run_loop(), Exit::Halted);
        assert_eq!((g.cpu.gpr(reg::RAX), g.cpu.gpr(reg::RBX)), (start + 10, 0));
    }
}
