//! Several processors on one memory: code that another one writes, atomic operations on pages with code.

use super::TIER;
use crate::mmu::ram::{Ram, RamRegion};
use crate::state::{attr, reg};
use crate::system::testing::{FakeBoard, RAM};
use crate::vcpu::{Engine, EngineConfig, Exit, SegmentRegister, Vcpu, request};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Segments of the two programs, of the code that one writes and the other runs, and of data.
const FIRST: u16 = 0x1000;
const SECOND: u16 = 0x2000;
const PATCHED: u16 = 0x3000;
const DATA: u16 = 0x4000;

/// Two processors in real mode.
struct Pair {
    ram: Arc<Ram>,
    engine: Arc<Engine>,
    vcpus: [Vcpu; 2],
}

impl Pair {
    fn new() -> Self {
        Self::with(EngineConfig { jit: TIER != 0, sync: TIER == 2, code_cache: 1 << 20, ..EngineConfig::default() })
    }

    fn with(config: EngineConfig) -> Self {
        let regions = vec![RamRegion { gpa: 0, size: RAM, offset: 0, rom: false }];
        let ram = Arc::new(Ram::new(RAM, regions).unwrap());
        let engine = Engine::new(config, ram.clone(), Arc::new(FakeBoard::default())).unwrap();
        let model = crate::cpuid::parse("max,+monitor").unwrap();
        let vcpus = [0, 1].map(|n| Vcpu::new(&engine, n, &model).unwrap());
        Self { ram, engine, vcpus }
    }

    /// Puts a program at `segment`:0.
    fn program(&self, segment: u16, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut a = CodeAssembler::new(16).unwrap();
        f(&mut a).unwrap();
        let (at, code) = (u64::from(segment) << 4, a.assemble(0).unwrap());
        self.ram.write(at, &code, false);
        self.engine.memory_written(at, code.len() as u64);
    }

    fn byte(&self, segment: u16, offset: u16) -> u8 {
        let mut b = [0];
        self.ram.read((u64::from(segment) << 4) + u64::from(offset), &mut b);
        b[0]
    }

    /// Runs both programs at a time, each to its HLT.
    fn run_both(&mut self) {
        let [one, two] = &mut self.vcpus;
        thread::scope(|s| {
            s.spawn(|| run(two, SECOND));
            run(one, FIRST);
        });
    }
}

/// Runs from `segment`:0 to a HLT, with DS the data and ES the patched code; EAX.
fn run(vcpu: &mut Vcpu, segment: u16) -> u32 {
    let mut r = vcpu.registers();
    let load = |selector: u16, code: u16| SegmentRegister {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attributes: attr::P | attr::S | attr::RW | attr::ACCESSED | code,
    };
    r.segments[reg::CS] = load(segment, attr::CODE);
    r.segments[reg::DS] = load(DATA, 0);
    r.segments[reg::ES] = load(PATCHED, 0);
    r.segments[reg::SS] = load(segment, 0);
    r.gpr[reg::RSP] = 0xfff0;
    r.rip = 0;
    vcpu.set_registers(&r);
    assert_eq!(vcpu.run(), Exit::Halted, "{}", vcpu.dump());
    vcpu.registers().gpr[reg::RAX] as u32
}

#[test]
fn one_writes_what_the_other_has_translated() {
    let mut pair = Pair::new();
    // MOV AX, 1; HLT
    pair.ram.write(u64::from(PATCHED) << 4, &[0xb8, 1, 0, 0xf4], false);
    // Before there is code on the page, the writer gets to store there without a look.
    pair.program(SECOND, |a| {
        a.inc(byte_ptr(0x100).es())?;
        a.hlt()
    });
    run(&mut pair.vcpus[1], SECOND);
    for _ in 0..10 {
        assert_eq!(run(&mut pair.vcpus[0], PATCHED), 1);
    }
    pair.program(SECOND, |a| {
        a.inc(byte_ptr(1).es())?;
        a.hlt()
    });
    for n in 2..30 {
        run(&mut pair.vcpus[1], SECOND);
        assert_eq!(run(&mut pair.vcpus[0], PATCHED) as u16, n);
        assert_eq!(run(&mut pair.vcpus[0], PATCHED) as u16, n);
    }
    assert_eq!(pair.byte(PATCHED, 0x100), 1);
}

#[test]
fn code_is_changed_under_a_running_processor() {
    const ROUNDS: i32 = 500;
    let mut pair = Pair::new();
    // MOV AX, imm16; RETF
    pair.ram.write(u64::from(PATCHED) << 4, &[0xb8, 0, 0, 0xcb], false);
    // DS:0 the round that the writer has prepared, DS:2 the round that the runner is done with.
    pair.program(FIRST, |a| {
        let (mut round, mut wait) = (a.create_label(), a.create_label());
        a.xor(edi, edi)?;
        a.xor(cx, cx)?;
        a.set_label(&mut round)?;
        a.inc(cx)?;
        a.set_label(&mut wait)?;
        a.cmp(word_ptr(0), cx)?;
        a.jne(wait)?;
        // SDM 3A 9.1.3: a serializing instruction, then the new code.
        a.push(cx)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.pop(cx)?;
        // CALL PATCHED:0
        a.db(&[0x9a, 0, 0, 0, 0x30])?;
        a.sub(ax, cx)?;
        a.movzx(eax, ax)?;
        a.add(edi, eax)?;
        a.mov(word_ptr(2), cx)?;
        a.cmp(cx, ROUNDS)?;
        a.jne(round)?;
        a.mov(eax, edi)?;
        a.hlt()
    });
    pair.program(SECOND, |a| {
        let mut wait = a.create_label();
        a.xor(cx, cx)?;
        a.set_label(&mut wait)?;
        a.cmp(word_ptr(2), cx)?;
        a.jne(wait)?;
        a.inc(cx)?;
        a.mov(word_ptr(1).es(), cx)?;
        a.mov(word_ptr(0), cx)?;
        a.cmp(cx, ROUNDS)?;
        a.jne(wait)?;
        a.hlt()
    });
    let [one, two] = &mut pair.vcpus;
    let wrong = thread::scope(|s| {
        s.spawn(|| run(two, SECOND));
        run(one, FIRST)
    });
    assert_eq!(wrong, 0, "stale code ran");
}

#[test]
fn locked_operations_are_atomic_also_beside_code() {
    const EACH: u32 = 10_000;
    let mut pair = Pair::new();
    for segment in [FIRST, SECOND] {
        pair.program(segment, |a| {
            let mut again = a.create_label();
            a.mov(ecx, EACH)?;
            a.set_label(&mut again)?;
            // In the first program's own page, and in one without code.
            a.mov(ax, i32::from(FIRST))?;
            a.mov(fs, ax)?;
            a.lock().inc(dword_ptr(0x800).fs())?;
            a.lock().inc(dword_ptr(0x800))?;
            a.mov(ax, 1)?;
            a.lock().xadd(word_ptr(0x810).fs(), ax)?;
            // Misaligned, across a cache line, across a page.
            a.lock().inc(dword_ptr(0x821))?;
            a.lock().add(dword_ptr(0x83e), 1)?;
            a.lock().inc(dword_ptr(0xffe))?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.hlt()
        });
    }
    pair.run_both();
    let word = |segment: u16, offset: u64| {
        let mut b = [0; 4];
        pair.ram.read((u64::from(segment) << 4) + offset, &mut b);
        u32::from_le_bytes(b)
    };
    assert_eq!([word(FIRST, 0x800), word(DATA, 0x800)], [2 * EACH; 2]);
    assert_eq!([word(DATA, 0x821), word(DATA, 0x83e), word(DATA, 0xffe)], [2 * EACH; 3]);
    assert_eq!(word(FIRST, 0x810) as u16, (2 * EACH) as u16);
}

#[test]
fn mwait_waits_for_a_store_to_its_line() {
    let mut pair = Pair::new();
    let program = |pair: &Pair, between: bool, masked_too: i32| {
        pair.program(FIRST, |a| {
            a.xor(eax, eax)?;
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.monitor()?;
            if between {
                a.inc(byte_ptr(0x20))?;
            }
            a.mov(ecx, masked_too)?;
            a.mwait()?;
            a.mov(al, byte_ptr(0x3f))?;
            a.hlt()
        });
    };
    let stored = |pair: &Pair, offset: u64, value: u8| pair.ram.write((u64::from(DATA) << 4) + offset, &[value], false);
    for value in 1..20 {
        program(&pair, false, 0);
        run(&mut pair.vcpus[0], FIRST);
        assert!(pair.vcpus[0].waits_for_store());
        stored(&pair, 0x40, value);
        assert!(!pair.vcpus[0].store_seen(), "another line");
        pair.vcpus[0].handle().raise(request::INTERRUPT);
        assert_eq!(pair.vcpus[0].run(), Exit::Halted);
        assert!(pair.vcpus[0].waits_for_store(), "interrupts are masked, and not asked for");
        stored(&pair, 0x3f, value);
        assert!(pair.vcpus[0].store_seen());
        assert_eq!(pair.vcpus[0].run(), Exit::Halted);
        assert!(!pair.vcpus[0].waits_for_store(), "that is the HLT behind it");
        assert_eq!(pair.vcpus[0].registers().gpr[reg::RAX], u64::from(value));
        pair.vcpus[0].handle().clear(request::INTERRUPT);
    }
    program(&pair, true, 0);
    run(&mut pair.vcpus[0], FIRST);
    assert!(!pair.vcpus[0].waits_for_store(), "the line had changed before");
    program(&pair, false, 1);
    run(&mut pair.vcpus[0], FIRST);
    assert!(pair.vcpus[0].waits_for_store());
    pair.vcpus[0].handle().raise(request::INTERRUPT);
    assert_eq!(pair.vcpus[0].run(), Exit::Halted);
    assert!(!pair.vcpus[0].waits_for_store(), "a masked interrupt ends the wait if ECX says so");
}

/// A loop that adds `step` to EAX, as often as memory says, and halts.
fn counting_loop(step: i32) -> impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError> {
    move |a| {
        let mut again = a.create_label();
        a.mov(ecx, dword_ptr(0))?;
        a.xor(eax, eax)?;
        a.jmp(again)?;
        a.set_label(&mut again)?;
        a.add(eax, step)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    }
}

/// The second processor has run the first one's loop a few times only, and is busy elsewhere.
#[test]
fn what_one_has_compiled_comes_to_the_other_by_itself() {
    if TIER != 2 {
        return;
    }
    let mut pair = Pair::with(EngineConfig { code_cache: 1 << 20, ..EngineConfig::default() });
    let elsewhere = FIRST + 0x100;
    // As if there were many more.
    (0..1 << 20).for_each(|_| pair.engine.crowd().enter());
    pair.program(FIRST, counting_loop(3));
    pair.program(elsewhere, counting_loop(5));
    let start = Instant::now();
    let rounds = |pair: &mut Pair, n: usize, at: u16, rounds: u32| {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pair.vcpus[n].statistics().0);
        pair.ram.write(u64::from(DATA) << 4, &rounds.to_le_bytes(), false);
        run(&mut pair.vcpus[n], at)
    };
    assert_eq!(rounds(&mut pair, 1, FIRST, 10), 30);
    rounds(&mut pair, 0, FIRST, 10);
    while pair.vcpus[0].statistics().0.compiled == 0 {
        rounds(&mut pair, 0, FIRST, 1_000_000);
    }
    rounds(&mut pair, 1, elsewhere, 10);
    while pair.vcpus[1].statistics().0.reused == 0 {
        rounds(&mut pair, 1, elsewhere, 1_000_000);
    }
    assert_eq!(rounds(&mut pair, 1, FIRST, 1000), 3000);
}

#[test]
fn what_one_has_compiled_serves_the_other() {
    if TIER != 2 {
        return;
    }
    let mut pair = Pair::with(EngineConfig { code_cache: 1 << 20, ..EngineConfig::default() });
    // Each runs the same loop; how often is in memory, so that all of it has been run before it is hot.
    pair.program(FIRST, counting_loop(3));
    for n in [0, 1] {
        let start = Instant::now();
        let mut rounds = 10_u32;
        loop {
            let stats = pair.vcpus[n].statistics().0;
            match n {
                0 if stats.compiled != 0 => break assert_eq!(stats.reused, 0),
                1 if stats.reused != 0 => break,
                _ => assert!(start.elapsed() < Duration::from_secs(120), "{stats:?} {:?}", pair.engine.shared_code()),
            }
            pair.ram.write(u64::from(DATA) << 4, &rounds.to_le_bytes(), false);
            assert_eq!(run(&mut pair.vcpus[n], FIRST), rounds * 3);
            rounds = 1_000_000;
        }
    }
    let store = pair.engine.shared_code().expect("compilers");
    assert!(store.reused != 0 && store.held == store.compiled, "{store:?}");
}
