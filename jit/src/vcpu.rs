//! The engine's face: what the program uses to make and run virtual processors.

use crate::board::Board;
use crate::mmu::ram::Ram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How code is executed (`-accel`).
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `false`: interpreter only (`-accel interp`).
    pub jit: bool,
    /// Compile at once and wait for it: reproducible tests (`-accel jit,sync=on`).
    pub sync: bool,
    /// Upper bound of compiled code in bytes.
    pub code_cache: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { jit: true, sync: false, code_cache: 256 << 20 }
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
    /// [`VcpuHandle::request_exit`] was called.
    Requested,
    /// Triple fault; the text says registers, RIP and the reason. The processor is in shutdown until reset.
    TripleFault(String),
    /// INIT arrived at an application processor: it waits for a start-up message.
    WaitForStartUp,
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

/// What other threads hold of a vCPU. Cheap to clone.
#[derive(Clone)]
pub struct VcpuHandle {
    pub(crate) requests: Arc<AtomicU32>,
}

impl VcpuHandle {
    /// Sets request bits ([`request`]). Waking a thread that sleeps after [`Exit::Halted`] is the caller's part.
    pub fn raise(&self, bits: u32) {
        self.requests.fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes request bits back.
    pub fn clear(&self, bits: u32) {
        self.requests.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The request bits now set.
    pub fn pending(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
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
    _ram: Arc<Ram>,
    _board: Arc<dyn Board>,
}

impl Engine {
    /// An engine over `ram`, with `board` around it.
    pub fn new(_config: EngineConfig, ram: Arc<Ram>, board: Arc<dyn Board>) -> Result<Arc<Self>, EngineError> {
        Ok(Arc::new(Self { _ram: ram, _board: board }))
    }

    /// Tells that something other than a vCPU wrote guest memory (DMA, a loader): translations of it are dropped.
    pub fn memory_written(&self, _gpa: u64, _len: u64) {}
}

/// One virtual processor; lives on its thread.
pub struct Vcpu {
    handle: VcpuHandle,
    registers: Registers,
}

impl Vcpu {
    /// Processor number `index` of `engine`, in its reset state. `model` comes from [`crate::cpuid::parse`].
    pub fn new(_engine: &Arc<Engine>, _index: u32, _model: &crate::cpuid::CpuModel) -> Self {
        Self { handle: VcpuHandle { requests: Arc::default() }, registers: Registers::default() }
    }

    /// What other threads use to get this processor's attention.
    pub fn handle(&self) -> VcpuHandle {
        self.handle.clone()
    }

    /// Runs until there is something for the program to do.
    pub fn run(&mut self) -> Exit {
        Exit::Halted
    }

    /// Power-on or RESET state (SDM 3A 10.1.1): CS:IP = F000:FFF0 with base FFFF0000.
    pub fn reset(&mut self) {}

    /// INIT state for a start-up message: CS = `vector << 8`, IP 0.
    pub fn start_up(&mut self, _vector: u8) {}

    /// All registers.
    pub fn registers(&self) -> Registers {
        self.registers.clone()
    }

    /// Sets all registers and drops what depends on them.
    pub fn set_registers(&mut self, registers: &Registers) {
        self.registers = registers.clone();
    }

    /// Guest-physical address of linear address `linear`, without side effects.
    pub fn translate(&self, _linear: u64) -> Option<u64> {
        None
    }

    /// Readable register dump (the `info registers` of the monitor, and what a triple fault prints).
    pub fn dump(&self) -> String {
        String::new()
    }
}
