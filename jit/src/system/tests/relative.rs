//! Relative code: what is translated once runs at each linear address of its page.

use super::{Guest, TIER};
use crate::fault::vector;
use crate::state::reg;
use crate::system::testing::place::*;
use crate::vcpu::{DebugStop, Exit};
use iced_x86::code_asm::*;

/// Where the pages of user code are mapped besides.
pub(super) const ALIAS: u64 = 0x20_8000;
/// Runs at each address: enough for code of each tier.
const RUNS: usize = 12;

/// Two pages of user code at two places each.
pub(super) fn mapped(mut g: Guest) -> Guest {
    for n in 0..2 {
        let (at, gpa) = ((ALIAS >> 12) + n, USER_CODE + (n << 12));
        match g.cpu.long_active() {
            true => g.write64(PAGING + 0x3000 + 8 * at, gpa | 7),
            false => g.write32(PAGING + 0x1000 + 4 * at, gpa as u32 | 7),
        }
    }
    g.cpu.flush_tlb_all();
    g.user()
}

/// Runs from `base` + `offset` until an exception, which is given back with the RIP it happened at.
pub(super) fn run_at(g: &mut Guest, base: u64, offset: u64) -> (u8, u64) {
    let (segments, stack, flags) = (g.cpu.state.segs, g.cpu.gpr(reg::RSP), g.cpu.rflags());
    g.cpu.state.rip = base + offset;
    let which = g.run_to_handler();
    let at = g.frame(u64::from(matches!(which, vector::GP | vector::PF)));
    g.cpu.state.segs = segments;
    g.cpu.set_gpr(reg::RSP, stack);
    g.cpu.set_rflags(flags);
    g.cpu.update_mode();
    (which, at)
}

/// What code shows of its own address: by LEA, by a call to the next page, in a loop, and in a fault.
fn shows_its_address(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut here, mut back, mut far, mut data) = (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut here)?;
    a.lea(rax, ptr(here))?;
    a.mov(ecx, 20)?;
    a.set_label(&mut back)?;
    a.call(far)?;
    a.dec(ecx)?;
    a.jnz(back)?;
    a.mov(rdx, qword_ptr(data))?;
    a.ud2()?;
    a.set_label(&mut data)?;
    a.dq(&[0x1122_3344_5566_7788])?;
    a.nops_with_size(0x1000 - 16)?;
    a.set_label(&mut far)?;
    a.mov(rbx, qword_ptr(rsp))?;
    a.lea(rsi, ptr(far))?;
    a.mov(rdi, qword_ptr(data))?;
    a.ret()
}

/// The registers that the code above sets, those with addresses from `base`.
fn seen(g: &Guest, base: u64) -> [u64; 5] {
    let r = |n| g.cpu.gpr(n);
    [r(reg::RAX) - base, r(reg::RBX) - base, r(reg::RSI) - base, r(reg::RDX), r(reg::RDI)]
}

#[test]
fn code_is_translated_once_for_all_its_addresses() {
    let mut g = mapped(Guest::long());
    g.code(shows_its_address);
    let (_, fault) = run_at(&mut g, USER_CODE, 0);
    let (offsets, fault) = (seen(&g, USER_CODE), fault - USER_CODE);
    assert_eq!((offsets[0], offsets[3], offsets[4]), (0, 0x1122_3344_5566_7788, 0x1122_3344_5566_7788));
    assert_eq!(offsets[2] >> 12, 1, "the function lies on the second page");
    let blocks = g.cpu.blocks.len();
    for n in 0..RUNS {
        let base = if n % 3 == 0 { USER_CODE } else { ALIAS };
        assert_eq!(run_at(&mut g, base, 0), (vector::UD, base + fault), "run {n}");
        assert_eq!(seen(&g, base), offsets, "run {n}");
    }
    assert_eq!(g.cpu.blocks.len(), blocks, "nothing was translated again");
    assert_eq!(TIER != 0, g.cpu.tier.stats.baseline + g.cpu.tier.stats.compiled > 0);
}

#[test]
fn code_that_changes_changes_at_all_its_addresses() {
    let mut g = mapped(Guest::long());
    // MOV AL, n; UD2
    for n in 1..8u8 {
        g.bytes(USER_CODE, &[0xb0, n, 0x0f, 0x0b]);
        g.cpu.invalidate_code(USER_CODE + 1, 1);
        for base in [USER_CODE, ALIAS].repeat(6) {
            g.cpu.set_gpr(reg::RAX, 0);
            assert_eq!(run_at(&mut g, base, 0), (vector::UD, base + 2));
            assert_eq!(g.cpu.gpr(reg::RAX), u64::from(n), "at {base:#x}");
        }
    }
}

#[test]
fn a_program_changes_its_code_through_another_address() {
    let mut g = mapped(Guest::long());
    g.code(|a| {
        let mut patched = a.create_label();
        // The next round of this very code, at its other address, moves another number.
        a.add(byte_ptr(r8 + 0x41), 1)?;
        a.nops_with_size(0x40 - 5)?;
        a.set_label(&mut patched)?;
        a.mov(eax, 0)?;
        a.ud2()
    });
    for n in 1..40u64 {
        let (base, other) = if n % 2 == 0 { (USER_CODE, ALIAS) } else { (ALIAS, USER_CODE) };
        g.cpu.set_gpr(8, other);
        assert_eq!(run_at(&mut g, base, 0), (vector::UD, base + 0x45));
        assert_eq!(g.cpu.gpr(reg::RAX), n);
    }
}

#[test]
fn branches_of_16_bits_lead_to_the_low_64_kib() {
    let mut g = mapped(Guest::paged());
    // JMP rel16; XOR EAX, EAX; JZ rel16; the same with JNZ; all to a HLT among the stubs, which is not for users.
    g.bytes(USER_CODE + 0x10, &[0x66, 0xe9, 0x2c, 0x00]);
    g.bytes(USER_CODE + 0x40, &[0x31, 0xc0, 0x66, 0x0f, 0x84, 0x29, 0x00]);
    g.bytes(USER_CODE + 0x80, &[0x31, 0xc0, 0x66, 0x0f, 0x85, 0x29, 0x00, 0x0f, 0x0b]);
    for base in [USER_CODE, ALIAS].repeat(RUNS) {
        assert_eq!(run_at(&mut g, base, 0x10), (vector::GP, STUBS + 0x40), "at {base:#x}");
        assert_eq!(run_at(&mut g, base, 0x40), (vector::GP, STUBS + 0x70), "at {base:#x}");
        assert_eq!(run_at(&mut g, base, 0x80), (vector::UD, base + 0x87));
    }
}

#[test]
fn breakpoints_have_an_address() {
    let mut g = mapped(Guest::long());
    g.bytes(USER_CODE, &[0xb0, 1, 0x90, 0x0f, 0x0b]);
    for base in [USER_CODE, ALIAS].repeat(RUNS) {
        assert_eq!(run_at(&mut g, base, 0), (vector::UD, base + 3));
    }
    g.cpu.set_breakpoints(&[ALIAS + 2]);
    assert_eq!(run_at(&mut g, USER_CODE, 0), (vector::UD, USER_CODE + 3));
    g.cpu.state.rip = ALIAS;
    g.cpu.state.halted = false;
    assert_eq!(g.cpu.run_loop(), Exit::Debug);
    assert_eq!(g.cpu.take_debug_stop(), Some(DebugStop::Breakpoint(ALIAS + 2)));
    g.cpu.set_breakpoints(&[]);
    assert_eq!(run_at(&mut g, ALIAS, 0), (vector::UD, ALIAS + 3));
}
