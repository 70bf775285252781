//! The engine's face: what the program uses to make and run virtual processors.

use crate::board::Board;
use crate::counter::Counter;
use crate::cpu::Cpu;
use crate::cpuid::{CpuModel, Topology};
use crate::lower::Compiler;
use crate::mmu::ram::Ram;
use crate::runtime::compile::CompileService;
pub use crate::runtime::compiled::StoreStats;
pub use crate::runtime::debugger::{DebugStop, WatchKind, Watchpoint};
pub use crate::runtime::lockstep::CheckStats;
use crate::runtime::lockstep::Lockstep;
pub use crate::runtime::perf_map::PerfMap;
use crate::runtime::place::CodeMemory;
use crate::runtime::sampler::Sampler;
pub use crate::runtime::tier::TierStats;
use crate::saved::{SavedVcpu, Unfit};
use crate::seeded::Seeded;
use crate::shared::Shared;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Which compiled code is held against the interpreter as it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// None.
    #[default]
    Off,
    /// Blocks, each compiled alone.
    Blocks,
    /// Regions as they are compiled without checks, from entry to exit.
    Regions,
}

/// How code is executed (`-accel`).
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `false`: interpreter only (`-accel interp`).
    pub jit: bool,
    /// Compile at once and wait for it: reproducible tests (`-accel jit,sync=on`).
    pub sync: bool,
    /// Compare compiled code with the interpreter as it runs; implies `sync` (`-accel jit,check=on`). For machines with
    /// one vCPU; without `jit` there is nothing to compare.
    pub check: Check,
    /// Upper bound of compiled code of a processor, in bytes.
    pub code_cache: usize,
    /// How the machine's processors are spread.
    pub topology: Topology,
    /// RDRAND and RDSEED give numbers from this seed, not the host's.
    pub seed: Option<u64>,
    /// Counts instructions; processors run one at a time then. Not together with `check`.
    pub counter: Option<Arc<Counter>>,
    /// Where generated code lies is written here.
    pub perf_map: Option<PerfMap>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            jit: true,
            sync: false,
            check: Check::Off,
            code_cache: 256 << 20,
            topology: Topology::default(),
            seed: None,
            counter: None,
            perf_map: None,
        }
    }
}

/// Why the engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host cannot run generated code or lacks memory for it.
    #[error("cannot set up the code engine: {0}")]
    Host(String),
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// HLT or MWAIT with nothing pending: sleep until [`VcpuHandle::pending`] is non-zero, then run again.
    Halted,
    /// [`request::EXIT`] was raised.
    Requested,
    /// Triple fault; the text says registers, RIP and the reason. The processor is in shutdown until reset.
    TripleFault(String),
    /// Compiled code did something else than the interpreter (`check=on`); the text says what. The processor runs no
    /// more until reset.
    Diverged(String),
    /// INIT arrived at an application processor: it waits for a start-up message.
    WaitForStartUp,
    /// Counted execution came to its limit ([`Counter::set_limit`]).
    Counted,
    /// Stopped by a breakpoint, watchpoint or finished single step of the debugger.
    Debug,
}

/// Bits of the request word: what other threads want from a vCPU.
pub mod request {
    /// A maskable interrupt may be deliverable.
    pub const INTERRUPT: u32 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u32 = 2;
    /// Leave `run`.
    pub const EXIT: u32 = 4;
    /// INIT.
    pub const INIT: u32 = 8;
    /// System management interrupt.
    pub const SMI: u32 = 16;
    /// Work of the engine's own: finished code to install, translations to drop, TLB to flush.
    pub const ENGINE: u32 = 32;
}

/// The words by which other threads reach a vCPU.
#[derive(Default)]
pub(crate) struct Requests {
    /// What is wanted ([`request`]).
    pub bits: AtomicU32,
    /// Generated code leaves while this is not zero. Set with every request; the run loop clears it before it looks at
    /// the bits, so that a request that cannot be served yet does not keep code from running.
    pub attention: AtomicU32,
    /// The run loop is at work.
    pub running: AtomicBool,
    /// The sampler wants to know where.
    pub sample: AtomicBool,
    /// Baseline code has told it.
    pub sampled: AtomicBool,
}

/// What other threads hold of a vCPU. Cheap to clone.
#[derive(Clone)]
pub struct VcpuHandle {
    pub(crate) requests: Arc<Requests>,
}

impl VcpuHandle {
    /// Sets request bits ([`request`]). Waking a thread that sleeps after [`Exit::Halted`] is the caller's part.
    pub fn raise(&self, bits: u32) {
        self.requests.bits.fetch_or(bits, Ordering::SeqCst);
        self.requests.attention.store(1, Ordering::SeqCst);
    }

    /// Takes request bits back.
    pub fn clear(&self, bits: u32) {
        self.requests.bits.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Asks a running vCPU to note where it is; `false`: it does not run.
    pub(crate) fn sample(&self) -> bool {
        let runs = self.runs();
        if runs {
            self.requests.sample.store(true, Ordering::SeqCst);
            self.requests.attention.store(1, Ordering::SeqCst);
        }
        runs
    }

    /// Whether the run loop is at work.
    pub(crate) fn runs(&self) -> bool {
        self.requests.running.load(Ordering::SeqCst)
    }

    /// The request bits now set.
    pub fn pending(&self) -> u32 {
        self.requests.bits.load(Ordering::SeqCst)
    }
}

/// Registers as boot loaders set them and monitors show them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS, complete.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SegmentRegister; 6],
    /// LDTR and TR.
    pub ldtr: SegmentRegister,
    /// Task register.
    pub tr: SegmentRegister,
    /// GDTR: base and limit.
    pub gdtr: (u64, u16),
    /// IDTR: base and limit.
    pub idtr: (u64, u16),
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// Registers beside [`Registers`] that debuggers show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoreRegisters {
    /// x87 registers ST0 to ST7, 80 bits each.
    pub st: [[u8; 10]; 8],
    /// x87 control word, status word, full tag word.
    pub x87: [u16; 3],
    /// x87 instruction pointer: selector and offset; operand pointer: selector and offset; opcode.
    pub x87_pointers: [u64; 5],
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The high halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// CR8.
    pub cr8: u8,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentRegister {
    /// Visible selector.
    pub selector: u16,
    /// Linear base.
    pub base: u64,
    /// Limit in bytes (granularity applied).
    pub limit: u32,
    /// Access rights in the layout of descriptor bits 40..=55: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
    pub attributes: u16,
}

/// Code caches, compile threads and memory, shared by all vCPUs of a machine.
pub struct Engine {
    shared: Arc<Shared>,
    board: Arc<dyn Board>,
    compilers: Option<Arc<CompileService>>,
    /// Tells which code is hot; none in `sync` mode, where code counts.
    sampler: Option<Arc<Sampler>>,
    sync: bool,
    check: Check,
    code_cache: usize,
    seed: Option<u64>,
    perf_map: Option<PerfMap>,
}

impl Engine {
    /// Who wants the host's cores.
    #[cfg(test)]
    pub(crate) fn crowd(&self) -> &crate::shared::Crowd {
        &self.shared.crowd
    }

    /// An engine over `ram`, with `board` around it.
    pub fn new(mut config: EngineConfig, ram: Arc<Ram>, board: Arc<dyn Board>) -> Result<Arc<Self>, EngineError> {
        if !crate::helpers::vec::host_has_required() {
            return Err(EngineError::Host("this processor lacks SSE4.2".to_owned()));
        }
        config.sync |= config.check != Check::Off;
        let mut shared = Shared::new(ram, config.topology);
        shared.counter = config.counter.take();
        let shared = Arc::new(shared);
        let compilers = if config.jit { Some(Arc::new(CompileService::start(&config)?)) } else { None };
        let sampler = match config.jit && !config.sync {
            true => Some(Arc::new(Sampler::start().map_err(|e| EngineError::Host(e.to_string()))?)),
            false => None,
        };
        let (sync, code_cache) = (config.sync, config.code_cache);
        let check = if config.jit { config.check } else { Check::Off };
        Ok(Arc::new(Self {
            shared,
            board,
            compilers,
            sampler,
            sync,
            check,
            code_cache,
            seed: config.seed,
            perf_map: config.perf_map,
        }))
    }

    /// Tells that something other than a vCPU wrote guest memory (DMA, a loader): translations of it are dropped.
    pub fn memory_written(&self, gpa: u64, len: u64) {
        std::sync::atomic::fence(Ordering::SeqCst);
        self.shared.code_written(gpa, len, None);
    }

    /// Counters of the compiled regions that processors share; `None`: nothing is compiled.
    pub fn shared_code(&self) -> Option<StoreStats> {
        self.compilers.as_ref().map(|c| c.statistics())
    }

    /// Makes the pages of `range`, within [`SHADOW`](crate::mmu::ram::SHADOW), read-only or writable. A vCPU's stores go
    /// to the board, or to memory, from its next block on.
    pub fn set_read_only(&self, range: Range<u64>, read_only: bool) {
        self.shared.ram.set_read_only(range, read_only);
        self.shared.flush_translations();
    }

    /// Moves the device's memory that [`Ram::with_window`] sets apart to `gpa`, or to nowhere. A vCPU finds it there from
    /// its next block on.
    pub fn place_window(&self, gpa: Option<u64>) {
        if let Some(before) = self.shared.ram.window() {
            // Code there is translated by its address.
            self.memory_written(before.gpa, before.size);
        }
        self.shared.ram.place_window(gpa);
        self.shared.flush_translations();
    }

    /// Opens or closes the A20 gate: while it is closed, address line 20 is zero. Each processor has noticed before it
    /// begins its next block; the one that executes the instruction that moves the gate, before its next instruction.
    pub fn set_a20(&self, open: bool) {
        self.shared.set_a20(open);
    }
}

/// One virtual processor; lives on its thread.
pub struct Vcpu {
    cpu: Box<Cpu>,
}

impl Vcpu {
    /// Processor number `index` of `engine`, in its reset state. `model` comes from [`crate::cpuid::parse`].
    pub fn new(engine: &Arc<Engine>, index: u32, model: &CpuModel) -> Result<Self, EngineError> {
        let (lockstep, board) = match engine.check {
            Check::Off => (None, engine.board.clone()),
            check => {
                let (lockstep, board) = Lockstep::watch(engine.board.clone(), check == Check::Regions);
                (Some(Box::new(lockstep)), board)
            }
        };
        let mut cpu = Cpu::new(index, engine.shared.clone(), board, Arc::new(model.clone()));
        cpu.lockstep = lockstep;
        // The first sequence is for others.
        cpu.random = engine.seed.map(|seed| Seeded::new(seed, u64::from(index) + 2));
        if let Some(service) = &engine.compilers {
            let host = |e: String| EngineError::Host(e);
            let sync = engine.sync.then(Compiler::new).transpose().map_err(|e| host(e.to_string()))?;
            let memory = CodeMemory::new(engine.code_cache).map_err(|e| host(e.to_string()))?;
            cpu.tier.configure(service.clone(), memory, sync);
            cpu.blocks.hold_for(engine.code_cache);
            cpu.use_sampler(engine.sampler.clone());
            cpu.tier.write_map(engine.perf_map.clone());
            if engine.check != Check::Off {
                cpu.tier.wait_until_checked();
            }
        }
        cpu.reset();
        Ok(Self { cpu })
    }

    /// What other threads use to get this processor's attention.
    pub fn handle(&self) -> VcpuHandle {
        self.cpu.handle()
    }

    /// Runs until there is something for the program to do.
    pub fn run(&mut self) -> Exit {
        self.cpu.run_loop()
    }

    /// After [`Exit::Halted`]: a store may end the halt, of which nobody tells ([`Vcpu::store_seen`] does if asked).
    pub fn waits_for_store(&self) -> bool {
        self.cpu.mwait.is_some()
    }

    /// The store that ends the halt was made.
    pub fn store_seen(&self) -> bool {
        self.cpu.wait_is_over()
    }

    /// Request bits that can end the sleep after [`Exit::Halted`]: maskable interrupts only count if enabled.
    pub fn wake_mask(&self) -> u32 {
        let masked = self.cpu.state.rflags & crate::state::flag::IF == 0;
        if masked { !request::INTERRUPT } else { !0 }
    }

    /// Whether, after [`Exit::Halted`], a host core is free for waiting actively for a moment.
    pub fn has_room(&self) -> bool {
        self.cpu.shared.crowd.has_room()
    }

    /// Power-on or RESET state (SDM 3A 10.1.1): CS:IP = F000:FFF0 with base FFFF0000.
    pub fn reset(&mut self) {
        self.cpu.shutdown = None;
        self.cpu.reset();
    }

    /// INIT state for a start-up message: CS = `vector << 8`, IP 0.
    pub fn start_up(&mut self, vector: u8) {
        self.cpu.init_start_up(vector);
    }

    /// All registers.
    pub fn registers(&self) -> Registers {
        self.cpu.get_registers()
    }

    /// Leaves memory types as firmware does for a system: all of memory is write-back by default (IA32_MTRR_DEF_TYPE
    /// with E, FE and type 6; SDM 3A 12.11.2.1). Linux uses the page attribute table only where MTRRs are on.
    pub fn set_up_as_firmware(&mut self) {
        self.cpu.set_up_mtrrs();
    }

    /// Sets all registers and drops what depends on them.
    pub fn set_registers(&mut self, registers: &Registers) {
        self.cpu.set_registers(registers);
    }

    /// All that the guest can notice of the processor, between two instructions.
    pub fn save(&self) -> SavedVcpu {
        SavedVcpu::of(&self.cpu)
    }

    /// Whether a state is one of this processor's model.
    pub fn fits(&self, saved: &SavedVcpu) -> Result<(), Unfit> {
        saved.check(&self.cpu)
    }

    /// Takes over a state; one that does not fit changes nothing.
    pub fn restore(&mut self, saved: &SavedVcpu) -> Result<(), Unfit> {
        saved.check(&self.cpu)?;
        saved.put(&mut self.cpu);
        Ok(())
    }

    /// x87, SSE and what else debuggers show.
    pub fn more_registers(&self) -> MoreRegisters {
        self.cpu.get_more_registers()
    }

    /// Sets what [`Vcpu::more_registers`] gives.
    pub fn set_more_registers(&mut self, registers: &MoreRegisters) {
        self.cpu.set_more_registers(registers);
    }

    /// Sets all breakpoints of the debugger (linear addresses): [`Exit::Debug`] comes before the instruction.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.cpu.set_breakpoints(addresses);
    }

    /// Sets all watchpoints of the debugger: [`Exit::Debug`] comes after the instruction that accesses one.
    pub fn set_watchpoints(&mut self, watchpoints: &[Watchpoint]) {
        self.cpu.set_watchpoints(watchpoints);
    }

    /// With `on`, each [`Vcpu::run`] ends after one instruction with [`Exit::Debug`].
    pub fn set_single_step(&mut self, on: bool) {
        self.cpu.set_single_step(on);
    }

    /// Why the last [`Exit::Debug`] came.
    pub fn take_debug_stop(&mut self) -> Option<DebugStop> {
        self.cpu.take_debug_stop()
    }

    /// Takes the last [`Exit::Debug`] back: it comes again when there is still cause.
    pub fn forget_debug_stop(&mut self) {
        self.cpu.forget_debug_stop();
    }

    /// Guest-physical address of linear address `linear`, without side effects.
    pub fn translate(&self, linear: u64) -> Option<u64> {
        self.cpu.translate_debug(linear)
    }

    /// Counters of the compiling tier, and the number of blocks held.
    pub fn statistics(&self) -> (TierStats, usize) {
        (self.cpu.tier.stats, self.cpu.blocks.len())
    }

    /// What was compared so far, in an engine that checks.
    pub fn check_statistics(&self) -> Option<CheckStats> {
        self.cpu.lockstep.as_ref().map(|l| l.stats())
    }

    /// Readable register dump (the `info registers` of the monitor, and what a triple fault prints).
    pub fn dump(&self) -> String {
        self.cpu.dump()
    }
}
