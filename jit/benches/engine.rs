//! What single stages of the engine cost: `cargo bench -p brolga-jit --features testing`.
//!
//! Times are per item where a throughput is given: `elem/s` are guest instructions, IR operations, loads or jumps.

use brolga_jit::mmu::ram::{Ram, RamRegion};
use brolga_jit::testing::{Bits, Machine, Page, Program, QuietBoard, STOP, Tier};
use brolga_jit::{Engine, EngineConfig, Exit, Registers, SegmentRegister, Vcpu, cpuid};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use std::hint::black_box;
use std::sync::Arc;

const CODE: u64 = 0x1000_0000;
const DATA: u64 = 0x2000_0000;
/// As far from `DATA` as entries of the TLB with the same index are (4096 pages).
const DATA_SAME_INDEX: u64 = DATA + 4096 * 4096;

/// A user-mode machine whose RBX points to data and RIP to code.
fn machine() -> Machine {
    let page = |linear| Page { linear, writable: true };
    let mut m = Machine::new("max", Bits::B64, &[page(CODE), page(DATA), page(DATA_SAME_INDEX)]);
    let mut r = brolga_jit::testing::Registers { rip: CODE, ..Default::default() };
    r.gpr[3] = DATA;
    r.gpr[4] = DATA + 0x800;
    m.set_registers(&r);
    m
}

fn assembled(a: &mut CodeAssembler, at: u64) -> Vec<u8> {
    a.assemble(at).expect("instructions that can be encoded")
}

/// A block of what compilers emit: moves, address arithmetic, loads, stores, comparisons, some SSE, a branch.
fn ordinary_code() -> (Vec<u8>, u64) {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    let mut label = a.create_label();
    let mut write = || -> Result<(), IcedError> {
        a.set_label(&mut label)?;
        for n in 0..4 {
            a.mov(rax, qword_ptr(rbx + 8 * n))?;
            a.lea(rdx, qword_ptr(rax + rcx * 4 + 16))?;
            a.add(rcx, 1)?;
            a.mov(dword_ptr(rbx + 64 + 4 * n), edx)?;
            a.movzx(esi, byte_ptr(rbx + 128 + n))?;
            a.shl(rsi, 3)?;
            a.xor(rdi, rsi)?;
            a.movsd_2(xmm0, qword_ptr(rbx + 256))?;
            a.mulsd(xmm0, xmm1)?;
            a.movsd_2(qword_ptr(rbx + 264), xmm0)?;
            a.push(rax)?;
            a.pop(r8)?;
            a.test(edi, edi)?;
            a.cmovne(r9d, edx)?;
        }
        a.cmp(rcx, 100)?;
        a.jne(label)
    };
    write().expect("instructions that can be encoded");
    (assembled(&mut a, CODE), 4 * 14 + 2)
}

/// From guest bytes to IR.
fn lift(c: &mut Criterion) {
    let m = machine();
    let (code, count) = ordinary_code();
    assert_eq!(m.lift(&code).0 as u64, count);
    let mut group = c.benchmark_group("lift");
    group.throughput(Throughput::Elements(count));
    group.bench_function("decode and lift, per instruction", |b| b.iter(|| m.lift(black_box(&code))));
}

/// Generated code from guest bytes: lift, passes, code, placing.
fn compile(c: &mut Criterion) {
    let mut m = machine();
    let (code, count) = ordinary_code();
    let mut group = c.benchmark_group("compile");
    group.throughput(Throughput::Elements(count));
    for (tier, name) in [(Tier::Baseline, "baseline, per instruction"), (Tier::Compiled, "Cranelift, per instruction")]
    {
        assert!(m.compile(&code, tier).is_some());
        group.bench_function(name, |b| b.iter(|| m.compile(black_box(&code), tier)));
    }
}

/// The interpreter, by kind of operation.
fn interpret(c: &mut Criterion) {
    let mut m = machine();
    let mut group = c.benchmark_group("interpret");
    for (name, body) in [
        ("arithmetic", "t16 = add.i64 rax, rcx\n0: rax = xor.i64 t16, imm #5\n0: rdx = shl.i32 rax, imm #3\n0: "),
        ("loads", "t16 = load.i64 rbx, 0 #8\n0: rax = add.i64 rax, t16\n0: "),
        ("stores", "store.i32 rbx, rax, 0 #16\n0: rax = add.i64 rax, imm #1\n0: "),
    ] {
        let text = format!("block 0x10000000 mode 0 len 1 count 1\n0: {}jmp #268435456\n", body.repeat(16));
        let program = Program::parse(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        group.throughput(Throughput::Elements(program.len() as u64));
        assert!(m.interpret(&program), "{name} must not fault");
        group.bench_function(format!("{name}, per operation"), |b| b.iter(|| m.interpret(black_box(&program))));
    }
}

/// Memory through the TLB.
fn tlb(c: &mut Criterion) {
    const LOADS: u64 = 32;
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    for n in 0..LOADS as i32 {
        a.mov(rax, qword_ptr(rbx + 8 * n)).expect("a load");
    }
    let code = assembled(&mut a, CODE);
    let mut m = machine();
    let loads = m.compile(&code, Tier::Compiled).expect("loads can be compiled");
    let mut group = c.benchmark_group("tlb");
    group.throughput(Throughput::Elements(LOADS));
    group.bench_function("hit in compiled code, per load", |b| b.iter(|| m.enter_code(loads)));
    group.throughput(Throughput::Elements(2));
    group.bench_function("hit in a helper, per load", |b| {
        b.iter(|| (m.load(black_box(DATA)), m.load(black_box(DATA + 8))));
    });
    group.bench_function("miss, per load", |b| {
        b.iter(|| (m.load(black_box(DATA)), m.load(black_box(DATA_SAME_INDEX))));
    });
}

/// A port that nothing is behind.
const SINK: u16 = 0x80;

const GUEST_CODE: u64 = 0x1_0000;

/// A processor in 32-bit protected mode at the code, all segments flat.
fn processor(code: &[u8]) -> Vcpu {
    const SIZE: u64 = 4 << 20;
    let region = RamRegion { gpa: 0, size: SIZE, offset: 0, rom: false };
    let ram = Arc::new(Ram::new(SIZE, vec![region]).expect("a few megabytes"));
    assert!(ram.write(GUEST_CODE, code, false));
    let board = Arc::new(QuietBoard::default());
    let config = EngineConfig { sync: true, code_cache: 16 << 20, ..EngineConfig::default() };
    let engine = Engine::new(config, ram, board.clone()).expect("an engine");
    let mut cpu = Vcpu::new(&engine, 0, &cpuid::parse("max").expect("a processor model")).expect("code memory");
    assert!(board.stops.set(cpu.handle()).is_ok());
    let flat = SegmentRegister { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
    let mut r = Registers { rip: GUEST_CODE, rflags: 2, cr0: 0x11, segments: [flat; 6], ..cpu.registers() };
    r.segments[1] = SegmentRegister { selector: 8, attributes: 0xc09b, ..flat };
    r.gpr[4] = 0x8_0000;
    cpu.set_registers(&r);
    // Until all of it is compiled and its links are joined.
    for _ in 0..100 {
        assert_eq!(cpu.run(), Exit::Requested);
    }
    cpu
}

/// An endless loop of `body`, run `times`, and a write to `STOP`.
fn looping(times: u32, body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32-bit code");
    let mut write = || -> Result<(), IcedError> {
        let (mut start, mut again) = (a.create_label(), a.create_label());
        a.set_label(&mut start)?;
        a.mov(ecx, times)?;
        a.set_label(&mut again)?;
        body(&mut a)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.mov(edx, u32::from(STOP))?;
        a.out(dx, al)?;
        a.jmp(start)
    };
    write().expect("instructions that can be encoded");
    assembled(&mut a, GUEST_CODE)
}

/// Ways between pieces of code and out of it.
fn control(c: &mut Criterion) {
    const TIMES: u32 = 1000;
    let mut group = c.benchmark_group("control");
    let mut measure = |name: &str, count: u64, code: &[u8]| {
        let mut cpu = processor(code);
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |b| b.iter(|| cpu.run()));
        assert!(cpu.statistics().0.compiled > 0, "{name} was never compiled");
    };
    measure("run and come back", 1, &looping(1, |_| Ok(())));
    measure("loop in a region, per round", TIMES.into(), &looping(TIMES, |_| Ok(())));
    // Each jump leads to the next page, and regions hold one page.
    const JUMPS: u32 = 8;
    let jumps = looping(TIMES, |a| {
        for _ in 0..JUMPS {
            let mut next = a.create_label();
            a.jmp(next)?;
            a.db(&[0xcc; 4096])?;
            a.set_label(&mut next)?;
        }
        Ok(())
    });
    measure("joined jump to another page, per jump", u64::from(TIMES * JUMPS), &jumps);
    let calls = looping(TIMES, |a| {
        let (mut function, mut over) = (a.create_label(), a.create_label());
        a.call(function)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.ret()?;
        a.set_label(&mut over)
    });
    measure("call and return", TIMES.into(), &calls);
    let writes = looping(TIMES, |a| {
        a.mov(edx, u32::from(SINK))?;
        a.out(dx, al)
    });
    measure("write to a device, per write", TIMES.into(), &writes);
}

criterion_group!(benches, lift, compile, interpret, tlb, control);
criterion_main!(benches);
