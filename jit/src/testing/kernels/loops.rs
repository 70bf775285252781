//! The loops: what compilers make of everyday code.

use crate::lower::Level;
use crate::state::reg;
use crate::system::testing::{Guest, place::*};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// A loop that counts RCX down. RSI and RDI point to a page of data each, RBX to a list, RBP to addresses of handlers.
pub struct Kernel {
    /// What the table calls it.
    pub name: &'static str,
    /// What the host must have for it.
    pub level: Level,
    code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
}

/// Two pages of data.
const DATA_1: u64 = DATA;
const DATA_2: u64 = DATA + 0x1000;
/// A ring of elements that are 48 bytes apart: next, value.
const LIST: u64 = DATA + 0x2000;
/// Addresses of four handlers, which lie here, of 32 bytes each.
const TABLE: u64 = DATA + 0x3000;
const HANDLERS: u64 = CODE + 0x200;
/// Where each handler goes on.
const NEXT: u64 = CODE + 0x300;

/// All of them.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "copy-words", level: Level::V2, code: copy_words },
    Kernel { name: "sum-array", level: Level::V2, code: sum_array },
    Kernel { name: "compare", level: Level::V2, code: compare },
    Kernel { name: "list-walk", level: Level::V2, code: list_walk },
    Kernel { name: "call-return", level: Level::V2, code: call_return },
    Kernel { name: "two-pages", level: Level::V2, code: two_pages },
    Kernel { name: "flags", level: Level::V2, code: flags },
    Kernel { name: "bits-bytes", level: Level::V2, code: bits_and_bytes },
    Kernel { name: "mul-div", level: Level::V2, code: mul_div },
    Kernel { name: "byte-codes", level: Level::V2, code: byte_codes },
    Kernel { name: "sse2-dot", level: Level::V2, code: sse2_dot },
    Kernel { name: "scalar-double", level: Level::V2, code: scalar_double },
    Kernel { name: "x87-sum", level: Level::V2, code: x87_sum },
    Kernel { name: "avx2-sum", level: Level::V3, code: avx2_sum },
];

/// Puts a kernel and its data in a guest.
pub fn put(g: &mut Guest, kernel: &Kernel) {
    g.code_at(CODE, CODE, kernel.code);
    for n in 0..512 {
        g.write64(DATA_1 + 8 * n, (1.0 + n as f64).to_bits());
        g.write64(DATA_2 + 8 * n, (1.0 + n as f64).to_bits());
    }
    for n in 0..64 {
        g.write64(LIST + 48 * n, LIST + 48 * ((n + 1) % 64));
        g.write64(LIST + 48 * n + 8, n);
    }
    for n in 0..4 {
        g.write64(TABLE + 8 * n, HANDLERS + 32 * n);
    }
}

/// Sets the registers for a run of so many rounds.
pub fn begin(g: &mut Guest, _kernel: &Kernel, rounds: u64) {
    for (r, v) in [
        (reg::RAX, 0),
        (reg::RDX, 0),
        (reg::RCX, rounds),
        (reg::RSI, DATA_1),
        (reg::RDI, DATA_2),
        (reg::RBX, LIST),
        (reg::RBP, TABLE),
        (8, 0xf000_0000_0000_0001),
        (9, 0xe234_5678_9abc_def1),
    ] {
        g.cpu.set_gpr(r, v);
    }
    g.cpu.state.rip = CODE;
}

/// A loop of `body`, and the end.
fn looping(
    a: &mut CodeAssembler,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    body(a)?;
    a.dec(rcx)?;
    a.jnz(again)?;
    a.hlt()
}

fn copy_words(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.mov(rax, qword_ptr(rsi + rcx * 8))?;
        a.mov(qword_ptr(rdi + rcx * 8), rax)
    })
}

fn sum_array(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| a.add(rax, qword_ptr(rsi + rcx * 8)))
}

fn compare(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut end = a.create_label();
    looping(a, |a| {
        a.movzx(eax, byte_ptr(rsi))?;
        a.cmp(al, byte_ptr(rdi))?;
        a.jne(end)?;
        a.inc(rsi)?;
        a.inc(rdi)
    })?;
    a.set_label(&mut end)?;
    a.hlt()
}

fn list_walk(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.add(rax, qword_ptr(rbx + 8))?;
        a.mov(rbx, qword_ptr(rbx))
    })
}

fn call_return(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut function = a.create_label();
    looping(a, |a| {
        a.push(rcx)?;
        a.call(function)?;
        a.pop(rcx)
    })?;
    a.set_label(&mut function)?;
    a.lea(rax, ptr(rax + rcx))?;
    a.ret()
}

/// A loop over the end of a page.
fn two_pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.nops_with_size(0xff2)?;
    a.set_label(&mut again)?;
    a.add(rax, qword_ptr(rsi))?;
    a.lea(rdx, ptr(rax + 8))?;
    a.xor(rbx, rdx)?;
    a.add(rax, 3)?;
    a.imul_2(rdx, rbx)?;
    a.dec(rcx)?;
    a.jnz(again)?;
    a.hlt()
}

fn flags(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.add(rax, r9)?;
        a.adc(rdx, 0)?;
        a.sub(rax, r8)?;
        a.sbb(rdx, r8)?;
        a.cmp(rax, rdx)?;
        a.setb(r10b)?;
        a.cmovg(r11, rax)?;
        a.test(r10b, r10b)?;
        a.cmovne(r12, rdx)
    })
}

fn bits_and_bytes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.mov(eax, ecx)?;
        a.shr(eax, 3)?;
        a.xor(al, cl)?;
        a.movzx(edx, al)?;
        a.rol(r9, cl)?;
        a.imul_3(r10d, edx, 37)?;
        a.mov(byte_ptr(rsi + rdx), r10b)?;
        a.bswap(r9)
    })
}

fn mul_div(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.mov(rax, r9)?;
        a.mul(rcx)?;
        a.div(r8)?;
        a.add(r10, rax)?;
        a.imul_2(r10, rdx)
    })
}

/// An interpreter's loop: the next code leads to its handler, through a table.
fn byte_codes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.lea(eax, ptr(rcx + rcx * 2))?;
    a.and(eax, 3)?;
    a.jmp(qword_ptr(rbp + rax * 8))?;
    fill(a, HANDLERS - CODE, 12)?;
    for n in 0..4 {
        a.add(rdx, 0x1000 + n)?;
        a.jmp(NEXT)?;
        a.nops_with_size(32 - 12)?;
    }
    a.nops_with_size((NEXT - HANDLERS) as usize - 4 * 32)?;
    a.dec(rcx)?;
    a.jnz(next)?;
    a.hlt()
}

/// NOPs from an offset to another.
fn fill(a: &mut CodeAssembler, to: u64, from: u64) -> Result<(), IcedError> {
    a.nops_with_size((to - from) as usize)
}

fn sse2_dot(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.movupd(xmm1, xmmword_ptr(rsi + rcx * 8))?;
        a.movupd(xmm2, xmmword_ptr(rdi + rcx * 8))?;
        a.mulpd(xmm1, xmm2)?;
        a.addpd(xmm0, xmm1)
    })
}

fn scalar_double(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.movsd_2(xmm1, qword_ptr(rsi + rcx * 8))?;
        a.mulsd(xmm1, qword_ptr(rdi + rcx * 8))?;
        a.addsd(xmm0, xmm1)?;
        a.cvtsi2sd(xmm2, ecx)?;
        a.ucomisd(xmm0, xmm2)?;
        a.cmova(rax, rcx)
    })
}

fn x87_sum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fninit()?;
    a.fldz()?;
    looping(a, |a| {
        a.fld(qword_ptr(rsi + rcx * 8))?;
        a.fmul(qword_ptr(rdi + rcx * 8))?;
        a.faddp(st1, st0)
    })
}

fn avx2_sum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    looping(a, |a| {
        a.vmovdqu(ymm1, ymmword_ptr(rsi + rcx * 8))?;
        a.vpmulld(ymm2, ymm1, ymm1)?;
        a.vpaddd(ymm0, ymm0, ymm2)
    })
}
