//! Whole x87 instructions on the test processor.

use crate::fault::vector;
use crate::testing::{Bits, Machine, Outcome, Page, Registers, Tier};

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x10_1000;
const ONE: u128 = 0x3fff << 64 | 1 << 63;
const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;

fn machine() -> Machine {
    Machine::new("max", Bits::B64, &[CODE, DATA].map(|linear| Page { linear, writable: true }))
}

/// Runs one instruction; RBX points to the data page.
fn run(m: &mut Machine, mut regs: Registers, bytes: &[u8]) -> (Outcome, Registers) {
    regs.rip = CODE;
    regs.gpr[3] = DATA;
    m.set_registers(&regs);
    let outcome = m.execute(bytes, Tier::Lifted);
    (outcome, m.registers())
}

/// ST(0) and ST(1) hold values, the rest is empty.
fn two(a: u128, b: u128) -> Registers {
    let mut regs = Registers { fsw: 6 << 11, tags: 0xc0, ..Registers::default() };
    (regs.st[0], regs.st[1]) = (a, b);
    regs
}

#[test]
fn constants_round_as_the_control_word_says() {
    let mut m = machine();
    // fldpi to nearest (down here) and up.
    let near = run(&mut m, Registers::default(), &[0xd9, 0xeb]).1;
    let up = run(&mut m, Registers { fcw: 0xb7f, ..Registers::default() }, &[0xd9, 0xeb]).1;
    assert_eq!(near.st[0], 0x4000_c90f_daa2_2168_c235);
    assert_eq!(up.st[0], near.st[0], "pi rounds up to nearest");
    let down = run(&mut m, Registers { fcw: 0x77f, ..Registers::default() }, &[0xd9, 0xeb]).1;
    assert_eq!(down.st[0], near.st[0] - 1);
    assert_eq!((near.fsw >> 11 & 7, near.tags), (7, 0x80));
}

#[test]
fn arithmetic_is_80_bits_wide_and_sets_flags() {
    let mut m = machine();
    let three = 0x4000 << 64 | 3 << 62;
    // fdivp st(1), st(0): 1 / 3
    let (done, after) = run(&mut m, two(three, ONE), &[0xde, 0xf9]);
    assert_eq!((done, after.st[0]), (Outcome::Done, 0x3ffd << 64 | 0xaaaa_aaaa_aaaa_aaab));
    assert_eq!((after.tags, after.fsw & 0x7f, after.fsw & 0x200), (0x80, 0x20, 0x200), "inexact, rounded up");
}

#[test]
fn masked_stack_faults_give_the_indefinite() {
    let mut m = machine();
    // fadd st(0), st(2) with ST(2) empty
    let after = run(&mut m, two(ONE, ONE), &[0xd8, 0xc2]).1;
    assert_eq!((after.st[0], after.fsw & 0x2ff), (INDEFINITE, 0x41));
    // fld1 onto a full stack: C1 says overflow.
    let full = Registers { tags: 0xff, ..Registers::default() };
    let after = run(&mut m, full, &[0xd9, 0xe8]).1;
    assert_eq!((after.st[0], after.fsw & 0x2ff), (INDEFINITE, 0x241));
}

#[test]
fn an_unmasked_exception_keeps_operands_and_waits_for_the_next_instruction() {
    let mut m = machine();
    // fdivrp st(1), st(0): 1 / 0 with division by zero unmasked.
    let regs = Registers { fcw: 0x37b, ..two(ONE, 0) };
    let (done, after) = run(&mut m, regs, &[0xde, 0xf1]);
    assert_eq!((done, after.st[0], after.st[1]), (Outcome::Done, ONE, 0));
    assert_eq!((after.fsw & 0x80ff, after.fop, after.fip), (0x8084, 0x6f1, CODE));
    // fld1 waits; fnstsw ax does not.
    let (raised, same) = run(&mut m, after.clone(), &[0xd9, 0xe8]);
    assert_eq!((raised, same.fsw), (Outcome::Fault { vector: vector::MF, error: 0, address: 0 }, after.fsw));
    let (done, got) = run(&mut m, after.clone(), &[0xdf, 0xe0]);
    assert_eq!((done, got.gpr[0] as u16), (Outcome::Done, after.fsw));
    // fnclex takes it back.
    let cleared = run(&mut m, after, &[0xdb, 0xe2]).1;
    assert_eq!(cleared.fsw & 0x80ff, 0);
}

#[test]
fn integer_and_decimal_stores() {
    let mut m = machine();
    let v = 0xc000 << 64 | 5 << 61;
    let stored = |m: &mut Machine, fcw: u16, bytes: &[u8]| {
        let (done, after) = run(m, Registers { fcw, ..two(v, ONE) }, bytes);
        assert_eq!((done, after.tags), (Outcome::Done, 0x80));
        let mut image = [0; 10];
        m.read(DATA, &mut image);
        image
    };
    // -2.5: fistp dword to nearest even, down; fisttp word; fbstp.
    assert_eq!(stored(&mut m, 0x37f, &[0xdb, 0x1b])[..4], (-2i32).to_le_bytes());
    assert_eq!(stored(&mut m, 0x77f, &[0xdb, 0x1b])[..4], (-3i32).to_le_bytes());
    assert_eq!(stored(&mut m, 0x77f, &[0xdf, 0x0b])[..2], (-2i16).to_le_bytes());
    assert_eq!(stored(&mut m, 0x77f, &[0xdf, 0x33]), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]);
}

#[test]
fn environment_and_state_come_back() {
    let mut m = machine();
    let before = Registers { fcw: 0x27f, ..two(ONE, 0x4001 << 64 | 7 << 61) };
    // fnsave [rbx] initialises; frstor [rbx] brings everything back.
    let (done, initial) = run(&mut m, before.clone(), &[0xdd, 0x33]);
    assert_eq!((done, initial.fcw, initial.fsw, initial.tags), (Outcome::Done, 0x37f, 0, 0));
    let (done, after) = run(&mut m, initial, &[0xdd, 0x23]);
    assert_eq!(done, Outcome::Done);
    assert_eq!((after.fcw, after.fsw, after.tags), (before.fcw, before.fsw, before.tags));
    assert_eq!(after.st[..2], before.st[..2]);
    // fnstenv [rbx] masks everything afterwards.
    let masked = run(&mut m, Registers { fcw: 0x340, ..before }, &[0xd9, 0x33]).1;
    assert_eq!(masked.fcw, 0x37f);
}

#[test]
fn comparisons_to_eflags() {
    let mut m = machine();
    let flags = |m: &mut Machine, a: u128, b: u128| {
        // fucomi st(0), st(1)
        let (done, after) = run(m, Registers { rflags: 0x8d7, ..two(a, b) }, &[0xdb, 0xe9]);
        assert_eq!(done, Outcome::Done);
        after.rflags & 0x8d5
    };
    assert_eq!(flags(&mut m, ONE, 0), 0);
    assert_eq!(flags(&mut m, 0, ONE), 1);
    assert_eq!(flags(&mut m, ONE, ONE), 0x40);
    assert_eq!(flags(&mut m, ONE, INDEFINITE), 0x45);
}

/// What runs on the host's x87 in generated code, and what looks at the state, in turn.
#[test]
fn tiers_agree_where_helpers_and_mmx_come_between() {
    let code: &[&[u8]] = &[
        &[0xd9, 0xe8],       // fld1
        &[0xd9, 0xeb],       // fldpi
        &[0xde, 0xf1],       // fdivrp st(1), st(0)
        &[0x0f, 0xae, 0x03], // fxsave [rbx]
        &[0xd9, 0xe8],       // fld1
        &[0xdb, 0xf1],       // fcomi st(0), st(1)
        &[0xdb, 0x7b, 0x40], // fstp tbyte [rbx + 64]
        &[0x0f, 0x6f, 0x03], // movq mm0, [rbx]
        &[0xd9, 0xc0],       // fld st(0): overflow, all registers are in use
        &[0x0f, 0x77],       // emms
        &[0xd9, 0x2b],       // fldcw [rbx]
        &[0xdf, 0x6b, 0x40], // fild qword [rbx + 64]
        &[0xd9, 0xfa],       // fsqrt
        &[0x9b],             // fwait
        &[0xdd, 0x7b, 0x60], // fnstsw [rbx + 96]
        &[0xdb, 0xe2],       // fnclex
        &[0xdb, 0xe3],       // fninit
        &[0xd9, 0xee],       // fldz
        &[0xdf, 0xe0],       // fnstsw ax
    ];
    let code = code.concat();
    let run = |tier: Tier, fcw: u16| {
        let mut m = machine();
        let mut regs = Registers { fcw, rip: CODE, ..Registers::default() };
        regs.gpr[3] = DATA;
        m.set_registers(&regs);
        let outcome = m.execute(&code, tier);
        let mut memory = [0; 512];
        m.read(DATA, &mut memory);
        (outcome, m.registers(), memory)
    };
    // Rounded to nearest; upwards to single precision; with the exceptions unmasked that do not occur.
    for fcw in [0x37f, 0x87f, 0x340] {
        let expected = run(Tier::Lifted, fcw);
        for tier in [Tier::Optimised, Tier::Baseline, Tier::Compiled] {
            assert_eq!(run(tier, fcw), expected, "{tier:?} {fcw:#x}");
        }
        assert_eq!(expected.1.rip == CODE + code.len() as u64, fcw & 0x3f == 0x3f);
    }
}
