//! Loops over several pages: what is compiled of them goes from page to page by itself, as long as those are the same.

use super::relative::{ALIAS, mapped, run_at};
use super::{Guest, TIER};
use crate::fault::vector;
use crate::state::reg;
use crate::system::testing::place::*;
use iced_x86::code_asm::*;

/// Bytes of [`round`] before its UD2.
const ROUND: u64 = 31;
/// Rounds of a run.
const ROUNDS: u64 = 30;
/// A page with the second half of the loop that adds something else.
const OTHER: u64 = DATA;

/// A loop that shows its address, adds up and counts: RCX rounds, RBX is the sum, each round adds `n`.
fn round(a: &mut CodeAssembler, n: i32) -> Result<(), iced_x86::IcedError> {
    let (mut again, mut on) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.lea(rax, ptr(again))?;
    a.add(rdx, rax)?;
    a.test(ecx, 1)?;
    a.jnz(on)?;
    a.inc(rsi)?;
    a.set_label(&mut on)?;
    a.add(rbx, n)?;
    a.sub(rcx, 1)?;
    a.jnz(again)?;
    a.ud2()
}

/// A guest with the loop at user code + `at`, and its second page with `other` in place of 7 to add.
fn guest(at: u64, other: i32) -> Guest {
    let mut g = mapped(Guest::long());
    for (n, to) in [(7, USER_CODE), (other, OTHER)] {
        let mut a = CodeAssembler::new(64).expect("64-bit code");
        round(&mut a, n).expect("it assembles");
        let code = a.assemble(USER_CODE + at).expect("it assembles");
        assert_eq!(code.len() as u64, ROUND + 2);
        let first = (0x1000 - at).min(code.len() as u64) as usize;
        if to == USER_CODE {
            g.bytes(USER_CODE + at, &code);
        } else {
            g.bytes(OTHER, &code[first..]);
        }
    }
    g
}

/// Runs the loop at `base` + `at`: each round adds `n`, or what is there says.
fn run(g: &mut Guest, base: u64, at: u64, n: u64) {
    for r in [reg::RBX, reg::RDX, reg::RSI] {
        g.cpu.set_gpr(r, 0);
    }
    g.cpu.set_gpr(reg::RCX, ROUNDS);
    assert_eq!(run_at(g, base, at), (vector::UD, base + at + ROUND));
    assert_eq!(g.cpu.gpr(reg::RDX), ROUNDS * (base + at), "at {base:#x} + {at:#x}");
    assert_eq!((g.cpu.gpr(reg::RBX), g.cpu.gpr(reg::RSI)), (ROUNDS * n, ROUNDS / 2), "at {base:#x} + {at:#x}");
}

/// Maps the second page of the alias to the page at `gpa`, or to none.
fn map_second(g: &mut Guest, gpa: Option<u64>) {
    g.write64(PAGING + 0x3000 + 8 * ((ALIAS >> 12) + 1), gpa.map_or(0, |gpa| gpa | 7));
    g.cpu.flush_tlb_page(ALIAS + 0x1000);
}

#[test]
fn loops_cross_a_page_wherever_it_begins() {
    for before in 1..ROUND {
        let at = 0x1000 - before;
        let mut g = guest(at, 7);
        for base in [USER_CODE, ALIAS, ALIAS, USER_CODE] {
            run(&mut g, base, at, 7);
        }
        if TIER == 2 {
            assert!(g.cpu.tier.stats.pages > 0, "a region goes on to the second page, {before} bytes before it");
        }
    }
}

#[test]
fn the_second_page_is_another_one_from_time_to_time() {
    // Whole instructions of the loop lie on the second page, the one that adds among them.
    for before in [10, 16, 18, 21] {
        let at = 0x1000 - before;
        let mut g = guest(at, 100);
        for n in 0..60 {
            let other = n / 3 % 2 == 1;
            map_second(&mut g, Some(if other { OTHER } else { USER_CODE + 0x1000 }));
            run(&mut g, ALIAS, at, if other { 100 } else { 7 });
            run(&mut g, USER_CODE, at, 7);
        }
    }
}

#[test]
fn a_second_page_that_goes_is_missed_where_the_loop_comes_to_it() {
    for before in 1..ROUND {
        let at = 0x1000 - before;
        let mut g = guest(at, 7);
        (0..3).for_each(|_| run(&mut g, ALIAS, at, 7));
        map_second(&mut g, None);
        g.cpu.set_gpr(reg::RCX, ROUNDS);
        let (which, rip) = run_at(&mut g, ALIAS, at);
        assert_eq!((which, g.cpu.state.cr2), (vector::PF, ALIAS + 0x1000));
        assert!(rip > ALIAS + 0x1000 - 8 && rip <= ALIAS + 0x1000, "{rip:#x}, {before} bytes before the page");
        map_second(&mut g, Some(USER_CODE + 0x1000));
        run(&mut g, ALIAS, at, 7);
    }
}

#[test]
fn code_of_the_second_page_changes_while_the_loop_runs() {
    let at = 0x1000 - 20;
    let mut g = mapped(Guest::long());
    // From one page to the next and back; the loop changes what the next page adds.
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    let put = |a: &mut CodeAssembler| -> Result<(), iced_x86::IcedError> {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.test(ecx, 7)?;
        a.setz(al)?;
        a.add(byte_ptr(r8), al)?;
        a.nops_with_size(20 - 12)?;
        a.add(rbx, 1)?;
        a.sub(rcx, 1)?;
        a.jnz(again)?;
        a.ud2()
    };
    put(&mut a).expect("it assembles");
    let code = a.assemble(USER_CODE + at).expect("it assembles");
    g.bytes(USER_CODE + at, &code);
    let number = USER_CODE + 0x1000 + 3;
    for round in 0..4 {
        for base in [USER_CODE, ALIAS] {
            g.bytes(number, &[1]);
            g.cpu.invalidate_code(number, 1);
            g.cpu.set_gpr(reg::RBX, 0);
            g.cpu.set_gpr(reg::RCX, 64);
            g.cpu.set_gpr(8, base + 0x1003);
            let (which, _) = run_at(&mut g, base, at);
            // 64 comes first, then each eighth round: eight rounds add 2, eight add 3 and so on.
            assert_eq!((which, g.cpu.gpr(reg::RBX)), (vector::UD, 8 * (2..10).sum::<u64>()), "round {round} at {base:#x}");
        }
    }
}
