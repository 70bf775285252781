//! Litmus tests of the memory order (SDM 3A 9.2.3): what two processors may see of each other's loads and stores.
//!
//! Each thread goes through many instances of its accesses. Before each it waits a while for the other thread to come as
//! far, so that many are done at the same time.

use super::TIER;
use crate::mmu::ram::{Ram, RamRegion};
use crate::state::{attr, cr0, reg};
use crate::system::testing::{FakeBoard, RAM};
use crate::vcpu::{Engine, EngineConfig, Exit, SegmentRegister, Vcpu};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::{Arc, Barrier};
use std::thread;

/// Instances in a round.
const INSTANCES: u32 = 4000;
/// Rounds, unless the environment says another number: 250 make a million instances.
const ROUNDS: usize = 1;
const ROUNDS_VARIABLE: &str = "LITMUS_ROUNDS";
/// Where the programs lie, the two shared variables of each instance, and what the threads' loads saw.
const PROGRAMS: [u64; 2] = [0x1_0000, 0x1_8000];
const X: u64 = 0x10_0000;
const Y: u64 = 0x18_0000;
const SEEN: [u64; 2] = [0x20_0000, 0x28_0000];
/// How far each thread is.
const AT: [u64; 2] = [0x30_0000, 0x30_0040];
/// How often a thread looks whether the other is as far; it may have to wait for its host processor.
const PATIENCE: i32 = 500;
/// Bytes from one instance to the next.
const STRIDE: u64 = 64;

/// One of the accesses of a thread.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    /// Stores 1 to the variable at this address.
    Store(u64),
    /// Stores 2.
    StoreTwo(u64),
    /// Loads the variable: the result is what the thread saw, in the order of its loads.
    Load(u64),
    /// MFENCE.
    Fence,
    /// XCHG of 1 with the variable.
    Exchange(u64),
}
use Access::*;

/// Runs both threads' accesses many times; for each instance what was seen, (thread 0, thread 1), each the sum of 16 to the
/// power of the load's place times its value, with what the variables held at the end.
fn run(threads: [&[Access]; 2]) -> Vec<([u32; 2], [u32; 2])> {
    let regions = vec![RamRegion { gpa: 0, size: RAM, offset: 0, rom: false }];
    let ram = Arc::new(Ram::new(RAM, regions).unwrap());
    let config = EngineConfig { jit: TIER != 0, sync: TIER == 2, code_cache: 1 << 20, ..EngineConfig::default() };
    let engine = Engine::new(config, ram.clone(), Arc::new(FakeBoard::default())).unwrap();
    for n in 0..2 {
        let mut a = CodeAssembler::new(32).unwrap();
        program(&mut a, threads[n], n).unwrap();
        ram.write(PROGRAMS[n], &a.assemble(PROGRAMS[n]).unwrap(), false);
    }
    let mut outcomes = Vec::new();
    let barrier = Barrier::new(2);
    let mut vcpus = [0, 1].map(|n| Vcpu::new(&engine, n, &crate::cpuid::CpuModel::default()).unwrap());
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    for _ in 0..rounds {
        for start in [X, Y, SEEN[0], SEEN[1], AT[0]] {
            ram.write(start, &vec![0; (u64::from(INSTANCES) * STRIDE) as usize], false);
        }
        let [one, two] = &mut vcpus;
        thread::scope(|s| {
            s.spawn(|| execute(two, PROGRAMS[1], &barrier));
            execute(one, PROGRAMS[0], &barrier);
        });
        let word = |at: u64| {
            let mut b = [0; 4];
            ram.read(at, &mut b);
            u32::from_le_bytes(b)
        };
        outcomes.extend((0..u64::from(INSTANCES)).map(|i| {
            let at = i * STRIDE;
            (SEEN.map(|s| word(s + at)), [word(X + at), word(Y + at)])
        }));
    }
    outcomes
}

/// The program of thread `n`.
fn program(a: &mut CodeAssembler, accesses: &[Access], n: usize) -> Result<(), IcedError> {
    let (mut again, mut wait, mut go) = (a.create_label(), a.create_label(), a.create_label());
    a.xor(ebx, ebx)?;
    a.mov(esi, 1)?;
    a.mov(edi, 2)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(AT[n]), ebx)?;
    a.mov(ecx, PATIENCE)?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(AT[1 - n]), ebx)?;
    a.jae(go)?;
    a.dec(ecx)?;
    a.jne(wait)?;
    a.set_label(&mut go)?;
    a.xor(eax, eax)?;
    let mut shift = 0;
    for access in accesses {
        match *access {
            Store(at) => a.mov(dword_ptr(ebx + at as i32), esi)?,
            StoreTwo(at) => a.mov(dword_ptr(ebx + at as i32), edi)?,
            Load(at) => {
                a.mov(ecx, dword_ptr(ebx + at as i32))?;
                a.shl(ecx, shift)?;
                a.add(eax, ecx)?;
                shift += 4;
            }
            Fence => a.mfence()?,
            Exchange(at) => {
                a.mov(edx, esi)?;
                a.xchg(dword_ptr(ebx + at as i32), edx)?;
            }
        }
    }
    a.mov(dword_ptr(ebx + SEEN[n] as i32), eax)?;
    a.add(ebx, STRIDE as i32)?;
    a.cmp(ebx, (u64::from(INSTANCES) * STRIDE) as i32)?;
    a.jne(again)?;
    a.hlt()
}

/// Runs from `rip` to a HLT, in flat 32-bit mode.
fn execute(vcpu: &mut Vcpu, rip: u64, barrier: &Barrier) {
    let mut r = vcpu.registers();
    let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
    for (n, segment) in r.segments.iter_mut().enumerate() {
        let code = if n == reg::CS { attr::CODE } else { 0 };
        *segment = SegmentRegister { selector: 8, base: 0, limit: u32::MAX, attributes: attributes | code };
    }
    r.cr0 |= cr0::PE;
    r.rip = rip;
    vcpu.set_registers(&r);
    barrier.wait();
    assert_eq!(vcpu.run(), Exit::Halted, "{}", vcpu.dump());
}

/// No instance came out as `forbidden` says.
#[track_caller]
fn never(threads: [&[Access]; 2], forbidden: impl Fn([u32; 2], [u32; 2]) -> bool) {
    let outcomes = run(threads);
    let seen = outcomes.iter().filter(|(seen, end)| forbidden(*seen, *end)).count();
    assert_eq!(seen, 0, "of {} instances", outcomes.len());
}

#[test]
fn stores_are_seen_in_their_order() {
    // 9.2.3.2: a later store is not seen before an earlier one.
    never([&[Store(X), Store(Y)], &[Load(Y), Load(X)]], |[_, r], _| r == 1);
}

#[test]
fn loads_are_not_passed_by_later_stores() {
    // 9.2.3.3.
    never([&[Load(X), Store(Y)], &[Load(Y), Store(X)]], |seen, _| seen == [1, 1]);
}

#[test]
fn writes_are_in_one_order() {
    // 2+2W: both variables cannot end with the first stores of both threads.
    never([&[Store(X), StoreTwo(Y)], &[Store(Y), StoreTwo(X)]], |_, end| end == [1, 1]);
    // S.
    never([&[StoreTwo(X), Store(Y)], &[Load(Y), Store(X)]], |[_, r], end| r == 1 && end[0] == 2);
}

#[test]
fn a_fence_or_a_locked_operation_keeps_loads_behind_stores() {
    // 9.2.3.4 allows both to see zero; with MFENCE or XCHG (9.2.3.8) none may.
    never([&[Store(X), Fence, Load(Y)], &[Store(Y), Fence, Load(X)]], |seen, _| seen == [0, 0]);
    never([&[Exchange(X), Load(Y)], &[Exchange(Y), Load(X)]], |seen, _| seen == [0, 0]);
    // R.
    never([&[Store(X), Store(Y)], &[StoreTwo(Y), Fence, Load(X)]], |[_, r], end| r == 0 && end[1] == 2);
}

#[test]
fn a_processor_sees_its_own_stores_first() {
    // 9.2.3.5: forwarding within a processor, and never a value from before.
    never([&[Store(X), Load(X), Load(Y)], &[Store(Y), Load(Y), Load(X)]], |seen, _| seen.iter().any(|r| r & 1 == 0));
    // Reads of one place do not go back.
    never([&[Store(X)], &[Load(X), Load(X)]], |[_, r], _| r == 1);
}
