//! A program of much code that is run in no order: what comes next depends on numbers that it computes.

use super::{Guest, place};
use crate::state::reg;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where it lies: more than a megabyte up to the end of memory.
const START: u64 = place::DATA;
/// 512 bytes that it changes, thrice: each through a register of its own.
const NUMBERS: [u64; 3] = [0x2_8000, 0x2_9000, 0x2_a000];
/// How far from a unit the near ones of those are that follow it.
const NEAR: usize = 24;

/// Puts a program of so many units in a guest in 64-bit mode; it makes `steps` from unit to unit, then halts. One step of
/// eight leads far away, the others to one of two units nearby.
pub fn put<const TIER: u8>(g: &mut Guest<TIER>, units: usize, steps: u64) {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut number = |below: usize| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 33) as usize % below
    };
    g.code_at(START, START, |a| {
        let mut labels: Vec<_> = (0..=units).map(|_| a.create_label()).collect();
        for n in 0..units {
            a.set_label(&mut labels[n])?;
            let near = [number(NEAR), number(NEAR)].map(|by| labels[(n + by) % units]);
            unit(a, n as i32 & 63, [near[0], near[1], labels[number(units)], labels[units]])?;
        }
        a.set_label(&mut labels[units])?;
        a.hlt()
    });
    begin(g, steps);
}

/// Sets registers and numbers to what they are at the start.
pub fn begin<const TIER: u8>(g: &mut Guest<TIER>, steps: u64) {
    for (r, v) in [
        (reg::RAX, 0),
        (reg::RDX, 1),
        (reg::RCX, steps),
        (reg::RBX, NUMBERS[0]),
        (reg::RSI, NUMBERS[1]),
        (reg::RDI, NUMBERS[2]),
        (8, 0x5851_f42d_4c95_7f2d),
    ] {
        g.cpu.set_gpr(r, v);
    }
    for n in 0..64 {
        NUMBERS.iter().for_each(|at| g.write64(at + 8 * n, n));
    }
    g.cpu.state.rip = START;
}

/// What the program computed.
pub fn result<const TIER: u8>(g: &Guest<TIER>) -> Vec<u64> {
    let registers = [reg::RAX, reg::RDX, reg::RCX].map(|r| g.cpu.gpr(r));
    let numbers = (0..64).flat_map(|n| NUMBERS.map(|at| g.read64(at + 8 * n)));
    registers.into_iter().chain(numbers).collect()
}

/// What a program of so many units and steps computes in the interpreter.
pub fn expected(units: usize, steps: u64) -> Vec<u64> {
    let mut g = Guest::<0>::long();
    put(&mut g, units, steps);
    g.run();
    result(&g)
}

/// Reckons with number `n`, counts, and goes on: near, near, far, or to the end.
fn unit(a: &mut CodeAssembler, n: i32, [one, other, far, end]: [CodeLabel; 4]) -> Result<(), IcedError> {
    a.imul_2(rdx, r8)?;
    a.add(rdx, 2 * n + 1)?;
    a.add(qword_ptr(rbx + 8 * n), rdx)?;
    a.xor(rax, qword_ptr(rsi + 8 * n))?;
    a.adc(qword_ptr(rdi + 8 * n), rax)?;
    a.mov(qword_ptr(rsi + 8 * n), rax)?;
    a.dec(rcx)?;
    a.jz(end)?;
    a.mov(r9, rdx)?;
    a.shr(r9, 60)?;
    a.test(r9d, 7)?;
    a.jz(far)?;
    a.test(r9d, 8)?;
    a.jz(one)?;
    a.jmp(other)
}
