//! What a debugger stops at, in code that is compiled otherwise.

use super::Guest;
use crate::fault::vector;
use crate::state::{flag, reg};
use crate::system::testing::place::*;
use crate::vcpu::{DebugStop, Exit, WatchKind, Watchpoint, request};
use iced_x86::code_asm::*;

/// Runs on to the next stop; why.
fn stop(g: &mut Guest) -> DebugStop {
    assert_eq!(g.cpu.run_loop(), Exit::Debug, "{}", g.cpu.dump());
    g.cpu.take_debug_stop().expect("a reason")
}

/// Counts RCX down to 0 from `n`, with DATA counted up in each round: 3 instructions, then HLT.
fn counting(n: u64) -> Guest {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RCX, n);
    g.code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(dword_ptr(DATA))?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.hlt()
    });
    g
}

/// Addresses of DEC and HLT in it.
const DEC: u64 = CODE + 7;
const HALT: u64 = CODE + 12;

#[test]
fn a_breakpoint_within_a_hot_loop() {
    let mut g = counting(1000);
    g.cpu.set_breakpoints(&[HALT]);
    assert_eq!(stop(&mut g), DebugStop::Breakpoint(HALT));
    assert_eq!((g.cpu.state.rip, g.read32(DATA)), (HALT, 1000));
    // By now the loop is compiled. A breakpoint inside stops each round, before its instruction.
    g.cpu.state.rip = CODE;
    g.cpu.set_gpr(reg::RCX, 50);
    g.cpu.state.halted = false;
    g.cpu.set_breakpoints(&[DEC]);
    for round in 1..=50 {
        assert_eq!(stop(&mut g), DebugStop::Breakpoint(DEC));
        assert_eq!((g.read32(DATA), g.cpu.gpr(reg::RCX)), (1000 + round, u64::from(51 - round)));
    }
    g.cpu.set_breakpoints(&[]);
    g.run();
    assert_eq!((g.cpu.state.rip, g.cpu.gpr(reg::RCX)), (HALT + 1, 0));
}

#[test]
fn a_breakpoint_where_it_starts() {
    let mut g = counting(3);
    g.cpu.set_breakpoints(&[CODE]);
    for _ in 0..3 {
        assert_eq!(stop(&mut g), DebugStop::Breakpoint(CODE));
    }
    g.run();
    // Code that is rewritten keeps its breakpoint.
    g.bytes(CODE, &[0x90, 0xf4]);
    g.cpu.invalidate_code(CODE, 2);
    g.cpu.state.rip = CODE;
    g.cpu.state.halted = false;
    assert_eq!(stop(&mut g), DebugStop::Breakpoint(CODE));
    g.run();
    assert_eq!(g.cpu.state.rip, CODE + 2);
}

#[test]
fn steps_go_through_every_instruction() {
    let mut g = counting(2);
    g.cpu.set_single_step(true);
    let mut path = Vec::new();
    for _ in 0..7 {
        assert_eq!(stop(&mut g), DebugStop::Step);
        path.push(g.cpu.state.rip - CODE);
    }
    assert_eq!(path, [7, 10, 0, 7, 10, 12, 13]);
    g.cpu.set_single_step(false);
    assert_eq!(g.cpu.rflags() & flag::TF, 0);
}

#[test]
fn a_step_lands_where_silicon_lands() {
    // An interrupt that waits does not get in; a fault does; REP goes round by round.
    let mut g = Guest::long();
    g.board.vectors.lock().unwrap().push(0x50);
    g.cpu.handle().raise(request::INTERRUPT);
    g.cpu.set_rflags(flag::IF | 2);
    g.cpu.set_gpr(reg::RCX, 2);
    g.cpu.set_gpr(reg::RDI, DATA);
    g.code(|a| {
        a.rep().stosb()?;
        a.nop()?;
        a.ud2()
    });
    g.cpu.set_single_step(true);
    let mut step = || {
        assert_eq!(stop(&mut g), DebugStop::Step);
        (g.cpu.state.rip, g.cpu.gpr(reg::RCX))
    };
    assert_eq!([step(), step(), step()], [(CODE, 1), (CODE + 2, 0), (CODE + 3, 0)]);
    let handler = STUBS + 16 * u64::from(vector::UD);
    assert_eq!(step(), (handler, 0));
    g.cpu.set_single_step(false);
    g.run();
    assert_eq!(g.cpu.state.rip, handler + 1);
}

#[test]
fn watchpoints_stop_behind_the_access() {
    let watch = |kind| [Watchpoint { address: DATA + 2, len: 1, kind }];
    for kind in [WatchKind::Write, WatchKind::Access, WatchKind::Read] {
        let mut g = counting(3);
        g.cpu.set_watchpoints(&watch(kind));
        assert_eq!(stop(&mut g), DebugStop::Watchpoint(watch(kind)[0]));
        assert_eq!((g.cpu.state.rip, g.read32(DATA)), (DEC, 1));
        g.cpu.set_watchpoints(&[]);
        g.run();
        assert_eq!(g.read32(DATA), 3);
    }
    // Next to it there is nothing to see, and a load is no store.
    let mut g = Guest::long();
    g.cpu.set_watchpoints(&watch(WatchKind::Write));
    g.code(|a| {
        a.mov(eax, dword_ptr(DATA))?;
        a.mov(word_ptr(DATA), ax)?;
        a.mov(byte_ptr(DATA + 3), al)?;
        a.mov(dword_ptr(DATA + 1), eax)?;
        a.hlt()
    });
    assert!(matches!(stop(&mut g), DebugStop::Watchpoint(_)));
    assert_eq!(g.read16(g.cpu.state.rip) as u8, 0xf4, "only the last of them touches the byte");
}

#[test]
fn a_breakpoint_where_the_code_segment_has_a_base() {
    // 16-bit code: inc dword [0x500]; nop; jmp to its beginning.
    let mut g = Guest::real();
    g.bytes(CODE, &[0x66, 0xff, 0x06, 0x00, 0x05, 0x90, 0xeb, 0xf8]);
    let nop = CODE + 5;
    for round in 1..=3 {
        g.cpu.set_breakpoints(&[nop]);
        for _ in 0..20 {
            assert_eq!(stop(&mut g), DebugStop::Breakpoint(nop));
            assert_eq!((g.cpu.state.rip, g.cpu.state.linear_rip()), (5, nop));
        }
        assert_eq!(g.read32(0x500), 20 * round);
        // By now the loop may be compiled; without a breakpoint it goes round until a request comes.
        g.cpu.set_breakpoints(&[]);
        g.cpu.handle().raise(request::EXIT);
        assert_eq!(g.cpu.run_loop(), Exit::Requested);
        g.write32(0x500, 20 * round);
        g.cpu.state.rip = 0;
    }
}

#[test]
fn what_is_not_watched_stays_compiled() {
    // The loop counts in DATA; what is watched lies on another page.
    const OTHER: u64 = DATA + 0x3000;
    let mut g = counting(20_000);
    g.cpu.set_watchpoints(&[Watchpoint { address: OTHER, len: 8, kind: WatchKind::Access }]);
    g.run();
    assert_eq!((g.read32(DATA), g.cpu.state.rip), (20_000, HALT + 1));
    let stats = g.cpu.tier.stats;
    let compiles = stats.baseline + stats.compiled != 0;
    assert!(!compiles || stats.blocks < 10_000, "{stats:?}");
    // The page of the counter is watched, next to it: each round leaves generated code and goes on.
    let mut g = counting(3000);
    g.cpu.set_watchpoints(&[Watchpoint { address: DATA + 8, len: 8, kind: WatchKind::Access }]);
    g.run();
    assert_eq!((g.read32(DATA), g.cpu.state.rip), (3000, HALT + 1));
    assert!(!compiles || g.cpu.tier.stats.interpreted + g.cpu.tier.stats.blocks >= 3000);
    // Watched itself, once the loop is compiled: each store stops behind it.
    let watch = Watchpoint { address: DATA, len: 4, kind: WatchKind::Write };
    g.cpu.state.rip = CODE;
    g.cpu.state.halted = false;
    g.cpu.set_gpr(reg::RCX, 20);
    g.cpu.set_watchpoints(&[watch]);
    for round in 1..=20 {
        assert_eq!(stop(&mut g), DebugStop::Watchpoint(watch));
        assert_eq!((g.cpu.state.rip, g.read32(DATA)), (DEC, 3000 + round));
    }
    g.cpu.set_watchpoints(&[]);
    g.run();
    assert_eq!(g.cpu.gpr(reg::RCX), 0);
}

#[test]
fn string_instructions_stop_behind_the_element() {
    let watch = |address, kind| Watchpoint { address, len: 2, kind };
    // 64 words from DATA to DATA + 0x1000; the 40th of them is watched at either end.
    let (from, to) = (DATA + 80, DATA + 0x1000 + 80);
    for (watched, kind) in [(from, WatchKind::Read), (to, WatchKind::Write), (to, WatchKind::Access)] {
        let mut g = Guest::long();
        for (register, value) in [(reg::RSI, DATA), (reg::RDI, DATA + 0x1000), (reg::RCX, 64)] {
            g.cpu.set_gpr(register, value);
        }
        g.code(|a| {
            a.rep().movsw()?;
            a.hlt()
        });
        g.cpu.set_watchpoints(&[watch(watched, kind)]);
        assert_eq!(stop(&mut g), DebugStop::Watchpoint(watch(watched, kind)));
        assert_eq!((g.cpu.state.rip, g.cpu.gpr(reg::RCX), g.cpu.gpr(reg::RDI)), (CODE, 23, to + 2));
        g.run();
        assert_eq!((g.cpu.gpr(reg::RCX), g.cpu.state.halted), (0, true));
    }
    // Stores to pages that are not watched, and those of other kinds, do not stop.
    let mut g = Guest::long();
    for (register, value) in [(reg::RDI, DATA), (reg::RCX, 0x2000)] {
        g.cpu.set_gpr(register, value);
    }
    g.code(|a| {
        a.rep().stosb()?;
        a.scasb()?;
        a.hlt()
    });
    g.cpu.set_watchpoints(&[watch(DATA + 0x1800, WatchKind::Read)]);
    g.run();
    assert_eq!((g.cpu.gpr(reg::RCX), g.cpu.gpr(reg::RDI)), (0, DATA + 0x2001));
}

#[test]
fn registers_for_debuggers_go_both_ways() {
    let mut g = Guest::long();
    g.code(|a| {
        a.fninit()?;
        a.fld1()?;
        a.fldz()?;
        a.mov(eax, 7)?;
        a.movd(xmm3, eax)?;
        a.hlt()
    });
    g.run();
    let mut r = g.cpu.get_more_registers();
    assert_eq!((r.xmm[3], r.st[0], r.st[1][7..10].to_vec()), (7, [0; 10], vec![0x80, 0xff, 0x3f]));
    assert_eq!((r.x87[1] >> 11 & 7, r.x87[2]), (6, 0x1fff));
    r.xmm[3] = 9;
    r.st.swap(0, 1);
    g.cpu.set_more_registers(&r);
    r.x87[2] = g.cpu.get_more_registers().x87[2];
    assert_eq!(g.cpu.get_more_registers(), r);
}
