//! Hostile guests: random code in random modes over random tables. The engine must neither panic nor hang nor touch
//! memory that is not the guest's, and both tiers must come to the same state.

mod code;
mod random;
mod scene;

use crate::board::Board;
use crate::cpu::Cpu;
use crate::cpuid::Topology;
use crate::lower::Compiler;
use crate::mmu::ram::{PAGE_SIZE, Ram, RamRegion};
use crate::runtime::compile::CompileService;
use crate::runtime::place::CodeMemory;
pub use crate::runtime::tier::First;
use crate::shared::Shared;
use crate::state::{CpuState, cr0, flag};
use crate::testing::Random;
use crate::vcpu::{EngineConfig, Exit, VcpuHandle, request};
use scene::{Script, TABLES, TABLES_SIZE};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of RAM at address 0.
const RAM: u64 = 0x4_0000;
/// Where two pages of ROM lie.
const ROM: u64 = 0xf_e000;
const ROM_SIZE: u64 = 2 * PAGE_SIZE;
/// The memory file: a guard page, RAM, a guard page, ROM, a guard page.
const RAM_OFFSET: u64 = PAGE_SIZE;
const ROM_OFFSET: u64 = RAM_OFFSET + RAM + PAGE_SIZE;
const FILE: u64 = ROM_OFFSET + ROM_SIZE + PAGE_SIZE;
/// What guard pages hold.
const GUARD: u8 = 0x5a;

/// Ports and devices that answer with hashes of what was asked, and note it all in one number.
#[derive(Default)]
struct HashBoard {
    log: AtomicU64,
    vectors: Mutex<Vec<u8>>,
    ignore_fpu_errors: AtomicBool,
}

impl HashBoard {
    fn note(&self, kind: u64, a: u64, b: u64) -> u64 {
        let mixed = [kind, a, b]
            .iter()
            .fold(self.log.load(Ordering::Relaxed), |h, v| (h ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        self.log.store(mixed, Ordering::Relaxed);
        mixed
    }
}

impl Board for HashBoard {
    fn pio_read(&self, _: u32, port: u16, size: u8) -> u32 {
        self.note(1, port.into(), size.into()) as u32
    }
    fn pio_write(&self, _: u32, port: u16, size: u8, value: u32) {
        self.note(2, u64::from(port) << 8 | u64::from(size), value.into());
    }
    fn mmio_read(&self, _: u32, gpa: u64, size: u8) -> u64 {
        self.note(3, gpa, size.into())
    }
    fn mmio_write(&self, _: u32, gpa: u64, size: u8, value: u64) {
        self.note(4, gpa << 8 | u64::from(size), value);
    }
    fn acknowledge_interrupt(&self, _: u32) -> Option<u8> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
    fn cr8(&self, _: u32) -> u8 {
        self.log.load(Ordering::Relaxed) as u8 & 15
    }
    fn set_cr8(&self, _: u32, value: u8) {
        self.note(5, value.into(), 0);
    }
    fn apic_base(&self, _: u32) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&self, _: u32, value: u64) -> bool {
        self.note(6, value, 0) & 1 != 0
    }
    fn apic_msr_read(&self, _: u32, msr: u32) -> Option<u64> {
        Some(self.note(7, msr.into(), 0))
    }
    fn apic_msr_write(&self, _: u32, msr: u32, value: u64) -> bool {
        self.note(8, msr.into(), value) & 1 != 0
    }
    fn set_fpu_error(&self, _: u32, asserted: bool) {
        self.note(9, asserted.into(), 0);
    }
    fn fpu_error_ignored(&self, _: u32) -> bool {
        // Asked as often as it takes: no part of what is compared.
        self.ignore_fpu_errors.load(Ordering::Relaxed)
    }
    fn tsc(&self) -> u64 {
        0x1234_5678_9abc
    }
}

/// Ends runs that do not end by themselves.
struct Watchdog {
    /// Milliseconds since `start` at which the current run began; `u64::MAX`: none.
    began: Arc<AtomicU64>,
    start: Instant,
}

/// Milliseconds after which a run that loops is ended, if nothing else is asked for.
pub const PATIENCE: u64 = 4;
/// A run that does not heed the request to end within this many milliseconds hangs.
const HANG: u64 = 60_000;

impl Watchdog {
    fn new(handle: VcpuHandle, seed: Arc<AtomicU64>, patience: u64) -> Self {
        let began = Arc::new(AtomicU64::new(u64::MAX));
        let (start, watched) = (Instant::now(), Arc::downgrade(&began));
        std::thread::spawn(move || {
            while let Some(began) = watched.upgrade() {
                let age = (start.elapsed().as_millis() as u64).saturating_sub(began.load(Ordering::Relaxed));
                if age > patience {
                    handle.raise(request::EXIT);
                }
                if age > HANG {
                    eprintln!("seed {}: the processor does not stop when asked to", seed.load(Ordering::Relaxed));
                    std::process::abort();
                }
                drop(began);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { began, start }
    }

    fn begin(&self) {
        self.began.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn end(&self) {
        self.began.store(u64::MAX, Ordering::Relaxed);
    }
}

/// What is left after a case.
pub struct Aftermath {
    /// Why the processor stopped, each time.
    pub exits: Vec<Exit>,
    /// Registers, readable.
    pub registers: String,
    memory: Vec<u8>,
    board: u64,
    /// Paging is on and its structures are not what they were, but for accessed and dirty bits.
    tables_changed: bool,
}

/// A machine for hostile guests, used for one case after the other.
pub struct Lab {
    cpu: Box<Cpu>,
    board: Arc<HashBoard>,
    service: Arc<CompileService>,
    watchdog: Watchdog,
    noise: Vec<u8>,
    seed: Arc<AtomicU64>,
}

/// Both tiers' results of a case.
pub enum Verdict {
    /// The same.
    Same,
    /// A run had to be ended: nothing to compare.
    Endless,
    /// They differ after the guest changed paging structures in use: what a processor had cached of them is its own
    /// affair (SDM 3A 4.10).
    Unspecified,
    /// They differ; the text says where.
    Different(String),
}

impl Lab {
    /// A machine of the model with all features. `seed_now` receives the number of each case before it runs, for the
    /// report of what dies with it; a run is ended after `patience` milliseconds.
    ///
    /// # Panics
    /// If the host lacks memory for the machine.
    pub fn new(seed_now: Arc<AtomicU64>, patience: u64) -> Self {
        let regions = vec![
            RamRegion { gpa: 0, size: RAM, offset: RAM_OFFSET, rom: false },
            RamRegion { gpa: ROM, size: ROM_SIZE, offset: ROM_OFFSET, rom: true },
        ];
        let ram = Arc::new(Ram::new(FILE, regions).expect("memory for the machine"));
        let shared = Arc::new(Shared::new(ram, Topology::default()));
        // Random numbers would differ between the tiers.
        let model = crate::cpuid::parse("max,-rdrand,-rdseed").expect("a processor model");
        let board = Arc::new(HashBoard::default());
        let mut cpu = Cpu::new(0, shared, board.clone(), Arc::new(model));
        cpu.reset();
        let config = EngineConfig { sync: true, ..EngineConfig::default() };
        let service = Arc::new(CompileService::start(&config).expect("compilers"));
        let memory = CodeMemory::new(4 << 20).expect("memory for generated code");
        let compiler = Compiler::new().expect("a host that Cranelift knows");
        cpu.tier.configure(service.clone(), memory, Some(compiler));
        let mut r = Random::new(0x6272_6f6c_6761);
        let noise = (0..RAM / 8).flat_map(|_| r.bits().to_le_bytes()).collect();
        let watchdog = Watchdog::new(cpu.handle(), seed_now.clone(), patience);
        let lab = Self { cpu, board, service, watchdog, noise, seed: seed_now };
        lab.fill_guards();
        lab
    }

    /// Runs a case in one tier.
    ///
    /// # Panics
    /// If the engine wrote outside the guest's memory or to ROM.
    pub fn run(&mut self, seed: u64, first: First) -> Aftermath {
        self.seed.store(seed, Ordering::Relaxed);
        self.cpu.handle().clear(!0);
        self.cpu.pending_fault = None;
        let script = scene::build(self, seed);
        let tables = self.tables();
        // Whatever the last case left of translations is dropped.
        self.cpu.tier.set_enabled((first != First::Interpreter).then(|| self.service.clone()));
        self.cpu.tier.set_first(first);
        for gpa in [0, ROM] {
            self.cpu.invalidate_code(gpa, RAM);
        }
        self.cpu.drop_all_code();
        // Code that is found at any address against code of one address, in each pairing of tiers.
        self.cpu.blocks.relative_everywhere = (seed >> 8 ^ first as u64) & 1 != 0;
        self.board.log.store(seed, Ordering::Relaxed);
        self.board.ignore_fpu_errors.store(seed & 1 != 0, Ordering::Relaxed);
        let exits = self.rounds(&script);
        self.check_guards(seed);
        let mut memory = vec![0; RAM as usize];
        self.cpu.shared.ram.read(0, &mut memory);
        let registers = format!("{}{}", self.cpu.dump(), hidden(&self.cpu.state));
        let tables_changed = self.cpu.state.cr0 & cr0::PG != 0 && self.tables() != tables;
        Aftermath { exits, registers, memory, board: self.board.log.load(Ordering::Relaxed), tables_changed }
    }

    /// The paging structures, doubleword by doubleword, without accessed and dirty bits.
    fn tables(&self) -> Vec<u32> {
        let mut bytes = vec![0; TABLES_SIZE as usize];
        self.cpu.shared.ram.read(TABLES, &mut bytes);
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0] & !0x60, b[1], b[2], b[3]])).collect()
    }

    fn rounds(&mut self, script: &Script) -> Vec<Exit> {
        let mut exits = Vec::new();
        for round in 0..script.rounds {
            self.raise(script, round);
            self.watchdog.begin();
            let exit = self.cpu.run_loop();
            self.watchdog.end();
            let on = exit == Exit::Halted;
            exits.push(exit);
            if !on {
                break;
            }
            // As if an interrupt had come and gone: what follows the HLT is hostile, too.
            self.cpu.state.halted = false;
        }
        exits
    }

    /// Raises the requests of a round. An interrupt comes only if it can be delivered now: which block after an STI a
    /// waiting one would come in is each tier's own affair.
    fn raise(&mut self, script: &Script, round: usize) {
        let open = self.cpu.rflags() & flag::IF != 0 && self.cpu.state.shadow == 0;
        let vector = script.vectors.get(round).filter(|_| open);
        *self.board.vectors.lock().unwrap_or_else(PoisonError::into_inner) = vector.copied().into_iter().collect();
        let closed = if vector.is_none() { request::INTERRUPT } else { 0 };
        self.cpu.handle().clear(request::INTERRUPT);
        self.cpu.handle().raise(script.raise[round & 3] & !closed);
    }

    /// Runs a case in all tiers and compares.
    pub fn compare(&mut self, seed: u64) -> Verdict {
        let interpreted = self.run(seed, First::Interpreter);
        if interpreted.exits.last() == Some(&Exit::Requested) {
            return Verdict::Endless;
        }
        for first in [First::Baseline, First::Cranelift, First::EachInTurn] {
            let compiled = self.run(seed, first);
            if compiled.exits.last() == Some(&Exit::Requested) {
                return Verdict::Endless;
            }
            let Some(text) = difference(&interpreted, &compiled) else { continue };
            if interpreted.tables_changed && compiled.tables_changed {
                return Verdict::Unspecified;
            }
            return Verdict::Different(format!("{first:?}: {text}"));
        }
        Verdict::Same
    }

    /// Noise in all of RAM and ROM.
    fn noise(&mut self) {
        let noise = std::mem::take(&mut self.noise);
        self.put(0, &noise);
        self.put(ROM, &noise[..ROM_SIZE as usize]);
        self.noise = noise;
    }

    /// Bytes at a guest-physical address.
    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        self.cpu.shared.ram.write(gpa, bytes, true);
    }

    /// 64-bit words at a guest-physical address.
    fn put64s(&mut self, gpa: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.put(gpa, &bytes);
    }

    fn guards() -> [u64; 3] {
        [0, RAM_OFFSET + RAM, ROM_OFFSET + ROM_SIZE]
    }

    fn fill_guards(&self) {
        use std::os::unix::fs::FileExt;
        for offset in Self::guards() {
            let page = [GUARD; PAGE_SIZE as usize];
            self.cpu.shared.ram.file().write_all_at(&page, offset).expect("the memory file takes a page");
        }
    }

    fn check_guards(&self, seed: u64) {
        use std::os::unix::fs::FileExt;
        let mut page = [0; PAGE_SIZE as usize];
        for offset in Self::guards() {
            self.cpu.shared.ram.file().read_exact_at(&mut page, offset).expect("the memory file gives a page");
            assert!(page.iter().all(|b| *b == GUARD), "seed {seed}: memory outside the guest's was written");
        }
        let mut rom = [0; ROM_SIZE as usize];
        self.cpu.shared.ram.read(ROM, &mut rom);
        assert!(rom[..] == self.noise[..ROM_SIZE as usize], "seed {seed}: ROM was written");
    }
}

/// State that the dump leaves out.
fn hidden(s: &CpuState) -> String {
    format!(
        "bases {:x?}\nmode {:x} shadow {:x} nmi {} xcr0 {:x}\nx87 {:x?}\nmsr {:x?}\n",
        s.segs, s.mode, s.shadow, s.nmi_blocked, s.xcr0, s.x87, s.msr
    )
}

/// The first few differences of two results.
fn difference(a: &Aftermath, b: &Aftermath) -> Option<String> {
    let mut text = String::new();
    let reasons = |e: &Aftermath| e.exits.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join(", ");
    let (ea, eb) = (reasons(a), reasons(b));
    if ea != eb {
        text += &format!("exits\n- {ea:.200}\n+ {eb:.200}\n");
    }
    for (x, y) in a.registers.lines().zip(b.registers.lines()).filter(|(x, y)| x != y) {
        text += &format!("- {x}\n+ {y}\n");
    }
    let bytes = a.memory.iter().zip(&b.memory).enumerate().filter(|(_, (x, y))| x != y);
    for (at, (x, y)) in bytes.take(16) {
        text += &format!("{at:#x}: {x:02x} {y:02x}\n");
    }
    if a.board != b.board {
        text += "the board saw other accesses\n";
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_code_stays_in_its_machine_and_both_tiers_agree() {
        // The same cases each time, unless asked otherwise; `tools/hostile` looks for new ones.
        let seed = std::env::var("BROLGA_SEED").ok().and_then(|s| s.parse().ok());
        let first: u64 = seed.unwrap_or(20_261_120_u64 << 20);
        let mut lab = Lab::new(Arc::default(), PATIENCE);
        let begin = Instant::now();
        let (mut cases, mut different) = (0, 0);
        while begin.elapsed() < Duration::from_secs(4) {
            if let Verdict::Different(text) = lab.compare(first + cases) {
                eprintln!("seed {}:\n{text}", first + cases);
                different += 1;
            }
            cases += 1;
        }
        assert_eq!(different, 0, "of {cases} cases differ between the tiers, from seed {first}");
    }
}
