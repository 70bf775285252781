//! Tests of the jump cache as generated code looks in it: what it finds without the dispatcher.

use crate::state::reg;
use crate::system::testing::Guest;
use crate::system::testing::place::{CODE, PAGING};
use iced_x86::code_asm::*;

/// Functions, the first of which is here.
const FIRST: u64 = 0x1_8000;
/// It has the same entry of the jump cache as the first.
const RIVAL: u64 = FIRST + 0x4_0040;
const CALLS: u64 = 50;

/// What a compiling guest does.
type Baseline = Guest<1>;

/// Calls the functions at `targets` in turn, [`CALLS`] times each; a function adds its number to RBX.
fn callers(targets: &[u64]) -> Baseline {
    let mut g = Baseline::long();
    g.code(|a| {
        let mut again = a.create_label();
        a.mov(ecx, CALLS as u32)?;
        a.set_label(&mut again)?;
        for target in targets {
            a.mov(rax, *target)?;
            a.call(rax)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    for (n, target) in (1..).zip(targets) {
        g.code_at(*target, *target, |a| {
            a.add(rbx, n)?;
            a.ret()
        });
    }
    g
}

/// Runs it: RBX, and how often code was entered from the dispatcher.
fn run(g: &mut Baseline) -> (u64, u64) {
    let before = g.cpu.tier.stats.entries;
    g.cpu.set_gpr(reg::RBX, 0);
    g.cpu.state.rip = CODE;
    g.run();
    (g.cpu.gpr(reg::RBX), g.cpu.tier.stats.entries - before)
}

/// Until all of it has code.
fn warm(g: &mut Baseline) {
    for _ in 0..4 {
        run(g);
    }
}

#[test]
fn rivals_for_an_entry_both_have_one() {
    let mut g = callers(&[FIRST, RIVAL]);
    assert_eq!(crate::state::jump_slot(FIRST), crate::state::jump_slot(RIVAL));
    warm(&mut g);
    let (sum, entries) = run(&mut g);
    assert_eq!(sum, 3 * CALLS);
    assert!(entries < CALLS / 2, "{entries}");
}

#[test]
fn what_is_mapped_as_before_is_found_after_a_flush() {
    let targets: Vec<u64> = (0..10).map(|n| FIRST + 0x40 * n).collect();
    let mut g = callers(&targets);
    warm(&mut g);
    let (sum, before) = run(&mut g);
    g.cpu.flush_tlb_all();
    let (after_sum, after) = run(&mut g);
    assert_eq!((sum, after_sum), (55 * CALLS, 55 * CALLS));
    // One fetch from each page tells that all of it is where it was.
    assert!(after <= before + 2, "{before}, then {after}");
    g.cpu.code_gone();
    let (_, gone) = run(&mut g);
    assert!(gone >= after + 10, "{after}, then {gone}");
}

#[test]
fn what_is_mapped_elsewhere_is_not_found() {
    let mut g = callers(&[FIRST, FIRST + 0x40]);
    // The same addresses on another page: twice as much is added.
    let other = FIRST + 0x1000;
    for (n, at) in [(2, 0), (4, 0x40)] {
        g.code_at(other + at, FIRST + at, |a| {
            a.add(rbx, n)?;
            a.ret()
        });
    }
    warm(&mut g);
    let entry = PAGING + 0x3000 + 8 * (FIRST >> 12);
    for (page, factor) in [(other, 2), (FIRST, 1), (other, 2), (other, 2)] {
        g.write64(entry, page | 7);
        g.cpu.flush_tlb_page(FIRST);
        assert_eq!(run(&mut g).0, 3 * factor * CALLS);
        g.cpu.write_cr3(PAGING).expect("a good CR3");
        assert_eq!(run(&mut g).0, 3 * factor * CALLS);
    }
}

#[test]
fn places_are_forgotten_by_number() {
    let mut g = callers(&[FIRST]);
    warm(&mut g);
    g.cpu.state.code_epoch = 0xfff << 52 | 0xffe;
    g.cpu.state.forget_places();
    assert_eq!(g.cpu.state.code_epoch, 0xfff << 52 | 0xfff);
    g.cpu.state.forget_places();
    assert_eq!(g.cpu.state.code_epoch, 0, "all entries are gone");
    g.cpu.state.forget_places();
    assert_eq!(g.cpu.state.code_epoch, 1);
    g.cpu.state.code_epoch = 0xfff;
    g.cpu.state.forget_places();
    assert_eq!(g.cpu.state.code_epoch, 1 << 52);
    assert_eq!(run(&mut g).0, CALLS);
}
