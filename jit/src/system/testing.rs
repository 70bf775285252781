//! A processor with a little memory and a recording board, for the tests of this directory.

pub mod walk;

use crate::board::Board;
use crate::counter::Counter;
use crate::cpu::Cpu;
use crate::cpuid::CpuModel;
use crate::cpuid::Topology;
use crate::lower::Compiler;
use crate::mmu::ram::{Ram, RamRegion};
use crate::runtime::compile::CompileService;
use crate::runtime::place::CodeMemory;
use crate::runtime::tier::First;
use crate::shared::Shared;
use crate::vcpu::EngineConfig;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of RAM at address 0.
pub const RAM: u64 = 4 << 20;

/// Ports give what was written last; time stands still unless told.
#[derive(Default)]
pub struct FakeBoard {
    /// Port writes: port, size, value.
    pub writes: Mutex<Vec<(u16, u8, u32)>>,
    /// Value every port reads as.
    pub port: AtomicU64,
    /// Time stamp counter.
    pub tsc: AtomicU64,
    /// CR8.
    pub cr8: AtomicU64,
    /// IA32_TSC_DEADLINE.
    pub deadline: AtomicU64,
    /// Vectors that the interrupt controller gives, the last first.
    pub vectors: Mutex<Vec<u8>>,
    /// What became of FERR#.
    pub fpu_errors: Mutex<Vec<bool>>,
    /// IGNNE#.
    pub ignore_fpu_errors: AtomicBool,
    /// Instructions are the time, in counted execution.
    pub counter: OnceLock<Arc<Counter>>,
}

impl Board for FakeBoard {
    fn pio_read(&self, _: u32, _: u16, _: u8) -> u32 {
        self.port.load(Ordering::Relaxed) as u32
    }
    fn pio_write(&self, _: u32, port: u16, size: u8, value: u32) {
        self.writes.lock().unwrap().push((port, size, value));
    }
    fn mmio_read(&self, _: u32, _: u64, size: u8) -> u64 {
        u64::MAX >> (64 - 8 * size as u32)
    }
    fn mmio_write(&self, _: u32, _: u64, _: u8, _: u64) {}
    fn acknowledge_interrupt(&self, _: u32) -> Option<u8> {
        self.vectors.lock().unwrap().pop()
    }
    fn cr8(&self, _: u32) -> u8 {
        self.cr8.load(Ordering::Relaxed) as u8
    }
    fn set_cr8(&self, _: u32, value: u8) {
        self.cr8.store(value as u64, Ordering::Relaxed);
    }
    fn apic_base(&self, _: u32) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&self, _: u32, value: u64) -> bool {
        value >> 40 == 0
    }
    fn apic_msr_read(&self, _: u32, msr: u32) -> Option<u64> {
        (msr == 0x6e0).then(|| self.deadline.load(Ordering::Relaxed))
    }
    fn apic_msr_write(&self, _: u32, msr: u32, value: u64) -> bool {
        self.deadline.store(value, Ordering::Relaxed);
        msr == 0x6e0
    }
    fn set_fpu_error(&self, _: u32, asserted: bool) {
        self.fpu_errors.lock().unwrap().push(asserted);
    }
    fn fpu_error_ignored(&self, _: u32) -> bool {
        self.ignore_fpu_errors.load(Ordering::Relaxed)
    }
    fn tsc(&self) -> u64 {
        self.counter.get().map_or_else(|| self.tsc.load(Ordering::Relaxed), |counter| counter.count())
    }
}

/// A processor after reset, and its board.
pub fn machine_with_board() -> (Box<Cpu>, Arc<FakeBoard>) {
    let region = RamRegion { gpa: 0, size: RAM, offset: 0, rom: false };
    let ram = Arc::new(Ram::new(RAM, vec![region]).expect("a few megabytes"));
    let board = Arc::new(FakeBoard::default());
    let shared = Arc::new(Shared::new(ram, Topology::default()));
    let mut cpu = Cpu::new(0, shared, board.clone(), Arc::new(CpuModel::default()));
    cpu.reset();
    (cpu, board)
}

impl Cpu {
    /// Lets blocks be compiled, in an arena of their own.
    pub fn compile(&mut self, first: First) {
        let config = EngineConfig { sync: true, ..EngineConfig::default() };
        let service = CompileService::start(&config).expect("compilers");
        let memory = CodeMemory::new(1 << 20).expect("memory for generated code");
        self.tier.configure(Arc::new(service), memory, Compiler::new().ok());
        self.tier.set_first(first);
    }
}

/// A processor after reset.
pub fn machine() -> Box<Cpu> {
    machine_with_board().0
}

use crate::fault::vector;
use crate::state::{Segment, TableRegister, attr, cr0, cr4, efer, flag, reg};
use crate::vcpu::Exit;
use iced_x86::code_asm::CodeAssembler;

/// Where things are in a [`Guest`].
pub mod place {
    #![allow(missing_docs)]
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    /// A second TSS, for task switches.
    pub const TSS2: u64 = 0x5800;
    pub const LDT: u64 = 0x5c00;
    /// Handler of vector n: a HLT at `STUBS + 16 * n`.
    pub const STUBS: u64 = 0x8000;
    pub const CODE: u64 = 0x1_0000;
    pub const USER_CODE: u64 = 0x1_8000;
    pub const STACK0: u64 = 0x2_0000;
    pub const STACK1: u64 = 0x2_4000;
    pub const IST1: u64 = 0x2_8000;
    pub const STACK3: u64 = 0x3_0000;
    /// PML4, PDPT, PD, two page tables (long mode); or page directory and table (32-bit).
    pub const PAGING: u64 = 0x4_0000;
    /// Free for tests.
    pub const DATA: u64 = 0x10_0000;
}
use place::*;

/// Selectors of a [`Guest`]'s GDT.
pub mod sel {
    #![allow(missing_docs)]
    pub const CODE32: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE32: u16 = 0x18 | 3;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const CODE16: u16 = 0x28;
    pub const CODE64: u16 = 0x38;
    pub const USER_CODE64: u16 = 0x40 | 3;
    /// 16 bytes in long mode.
    pub const TSS: u16 = 0x48;
    pub const TSS2: u16 = 0x58;
    /// First of several free slots.
    pub const FREE: u16 = 0x80;
}

/// A segment descriptor: `flags` are the second doubleword's bits 23:20 (G, D/B, L, AVL), `access` its bits 15:8.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (b, l) = (base as u64, limit as u64);
    l & 0xffff
        | (b & 0xff_ffff) << 16
        | (access as u64) << 40
        | (l >> 16 & 15) << 48
        | (flags as u64) << 52
        | (b >> 24) << 56
}

/// A gate: `kind` with P and DPL in the access byte's places.
pub fn gate(selector: u16, offset: u32, access: u8, count: u8) -> u64 {
    let o = offset as u64;
    o & 0xffff | (selector as u64) << 16 | (count as u64) << 32 | (access as u64) << 40 | (o >> 16) << 48
}

/// A processor set up in some mode, with code, tables and handlers in memory. `TIER`: who
/// runs it, the interpreter (0), baseline code (1) or Cranelift's (2).
pub struct Guest<const TIER: u8 = 0> {
    /// The processor.
    pub cpu: Box<Cpu>,
    /// Its board.
    pub board: Arc<FakeBoard>,
}

impl<const TIER: u8> Guest<TIER> {
    /// Real mode at 0:CODE, stack below 0x7000, vector table at 0 with the stubs.
    pub fn real() -> Self {
        let (mut cpu, board) = machine_with_board();
        match TIER {
            0 => cpu.blocks.relative_everywhere = true,
            1 => cpu.compile(First::Baseline),
            _ => cpu.compile(First::Cranelift),
        }
        let mut g = Self { cpu, board };
        for v in 0..256 {
            g.write32(4 * v, (STUBS + 16 * v) as u32);
            g.write8(STUBS + 16 * v, 0xf4);
        }
        g.cpu.load_paragraph(reg::CS, (CODE >> 4) as u16);
        g.cpu.state.rip = 0;
        g.cpu.set_gpr(reg::RSP, 0x7000);
        g.cpu.update_mode();
        g
    }

    /// Counts instructions, which are what the time stamp counter shows.
    pub fn counted(mut self) -> Self {
        let counter = Arc::new(Counter::default());
        counter.set_limit(u64::MAX);
        self.cpu.state.counter = Arc::as_ptr(&counter);
        Arc::get_mut(&mut self.cpu.shared).expect("nobody else has it").counter = Some(counter.clone());
        self.board.counter.set(counter).expect("counted once");
        self.cpu.update_mode();
        self
    }

    /// What counts.
    pub fn counter(&self) -> Arc<Counter> {
        self.board.counter.get().expect("a guest that is counted").clone()
    }

    fn with_tables() -> Self {
        let mut g = Self::real();
        let entries = [
            0,
            descriptor(0, 0xfffff, 0x9b, 0xc),
            descriptor(0, 0xfffff, 0x93, 0xc),
            descriptor(0, 0xfffff, 0xfb, 0xc),
            descriptor(0, 0xfffff, 0xf3, 0xc),
            descriptor(0, 0xffff, 0x9b, 0),
            descriptor(0, 0xffff, 0x93, 0),
            descriptor(0, 0xfffff, 0x9b, 0xa),
            descriptor(0, 0xfffff, 0xfb, 0xa),
            descriptor(TSS as u32, 0x2068, 0x89, 0),
            0,
            descriptor(TSS2 as u32, 0x67, 0x89, 0),
        ];
        for (n, e) in entries.iter().enumerate() {
            g.write64(GDT + 8 * n as u64, *e);
        }
        g.cpu.state.gdtr = TableRegister { base: GDT, limit: 0xfff };
        g.cpu.state.idtr = TableRegister { base: IDT, limit: 0xfff };
        // Ports 0 to 0xff are open, the rest is closed (map at 0x68).
        g.write16(TSS + 0x66, 0x68);
        for n in 0x20..0x2000 {
            g.write8(TSS + 0x68 + n, if n < 0x1f98 { 0xff } else { 0 });
        }
        g.cpu.state.tr = Segment { base: TSS, limit: 0x2068, attributes: attr::P | 11, selector: sel::TSS };
        g.write8(GDT + sel::TSS as u64 + 5, 0x8b);
        g
    }

    /// 32-bit protected mode at CPL 0, flat segments, no paging; 32-bit interrupt gates of DPL 0.
    pub fn protected() -> Self {
        let mut g = Self::with_tables();
        for v in 0..256 {
            g.write64(IDT + 8 * v, gate(sel::CODE32, (STUBS + 16 * v) as u32, 0x8e, 0));
        }
        g.write32(TSS + 4, STACK0 as u32);
        g.write16(TSS + 8, sel::DATA);
        g.write32(TSS + 12, STACK1 as u32);
        g.cpu.state.cr0 |= cr0::PE | cr0::NE | cr0::WP;
        g.flat(sel::CODE32, sel::DATA);
        g.cpu.set_gpr(reg::RSP, STACK0);
        g.cpu.state.rip = CODE;
        g
    }

    /// The same with 32-bit paging: 4 MiB identity mapped by 4 KiB pages for users and supervisors.
    pub fn paged() -> Self {
        let mut g = Self::protected();
        g.write32(PAGING, (PAGING as u32 + 0x1000) | 7);
        for n in 0..1024 {
            g.write32(PAGING + 0x1000 + 4 * n, (n << 12) as u32 | 7);
        }
        g.cpu.state.cr3 = PAGING;
        g.cpu.state.cr0 |= cr0::PG;
        g.cpu.update_mode();
        g
    }

    /// 64-bit mode at CPL 0, 4 MiB identity mapped for users and supervisors, interrupt gates of DPL 0.
    pub fn long() -> Self {
        let mut g = Self::with_tables();
        for v in 0..256 {
            g.write64(IDT + 16 * v, gate(sel::CODE64, (STUBS + 16 * v) as u32, 0x8e, 0));
            g.write64(IDT + 16 * v + 8, 0);
        }
        g.write64(TSS + 4, STACK0);
        g.write64(TSS + 0x24, IST1);
        for level in 0..3 {
            g.write64(PAGING + level * 0x1000, (PAGING + (level + 1) * 0x1000) | 7);
        }
        g.write64(PAGING + 0x2008, (PAGING + 0x4000) | 7);
        for n in 0..1024 {
            g.write64(PAGING + 0x3000 + 8 * n, n << 12 | 7);
        }
        g.cpu.state.cr3 = PAGING;
        g.cpu.state.cr4 = cr4::PAE | cr4::FSGSBASE | cr4::OSFXSR;
        g.cpu.state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        g.cpu.state.cr0 |= cr0::PE | cr0::PG | cr0::NE | cr0::WP;
        g.flat(sel::CODE64, sel::DATA);
        g.cpu.set_gpr(reg::RSP, STACK0);
        g.cpu.state.rip = CODE;
        g
    }

    fn load(&mut self, seg: usize, selector: u16) {
        let raw = self.read64(self.cpu.state.gdtr.base + (selector & !7) as u64);
        let d = super::descriptor::Descriptor { raw, address: 0, selector };
        self.cpu.state.segs[seg] = d.segment(selector);
    }

    /// Loads CS and all data segments behind the processor's back.
    pub fn flat(&mut self, code: u16, data: u16) {
        for n in [reg::ES, reg::SS, reg::DS, reg::FS, reg::GS] {
            self.load(n, data);
        }
        self.load(reg::CS, code);
        self.cpu.update_mode();
    }

    /// Goes to CPL 3 at [`place::USER_CODE`] on the user stack.
    pub fn user(mut self) -> Self {
        let code = if self.cpu.state.long64() { sel::USER_CODE64 } else { sel::USER_CODE32 };
        self.flat(code, sel::USER_DATA);
        self.cpu.set_gpr(reg::RSP, STACK3);
        self.cpu.state.rip = USER_CODE;
        self
    }

    /// Goes to virtual-8086 mode at [`place::USER_CODE`], stack 3000:0 up to FFF0.
    pub fn vm86(mut self, iopl: u64) -> Self {
        self.cpu.set_rflags(flag::VM | iopl << 12);
        for n in 0..6 {
            self.cpu.state.segs[n] = Cpu::vm86_segment(n as u16 + 0x100);
        }
        self.cpu.state.segs[reg::CS] = Cpu::vm86_segment((USER_CODE >> 4) as u16);
        self.cpu.state.segs[reg::SS] = Cpu::vm86_segment(0x3000);
        self.cpu.set_gpr(reg::RSP, 0xfff0);
        self.cpu.state.rip = 0;
        self.cpu.update_mode();
        self
    }

    /// Puts code where the processor goes on; addresses inside count from RIP.
    pub fn code(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        let at = self.cpu.state.linear_rip();
        let rip = self.cpu.state.rip;
        self.code_at(at, rip, f);
    }

    /// Puts code at linear address `at`, assembled for `rip`, in the current code width.
    pub fn code_at(
        &mut self,
        at: u64,
        rip: u64,
        f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let bits = crate::lift::bitness(self.cpu.state.mode);
        let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
        f(&mut a).expect("code that assembles");
        let bytes = a.assemble(rip).expect("code that encodes");
        self.bytes(at, &bytes);
    }

    /// Raw bytes at a guest-physical address.
    pub fn bytes(&mut self, at: u64, bytes: &[u8]) {
        assert!(self.cpu.shared.ram.write(at, bytes, true));
    }
    /// Writes one byte.
    pub fn write8(&mut self, at: u64, v: u8) {
        self.bytes(at, &[v]);
    }
    /// Writes two bytes.
    pub fn write16(&mut self, at: u64, v: u16) {
        self.bytes(at, &v.to_le_bytes());
    }
    /// Writes four bytes.
    pub fn write32(&mut self, at: u64, v: u32) {
        self.bytes(at, &v.to_le_bytes());
    }
    /// Writes eight bytes.
    pub fn write64(&mut self, at: u64, v: u64) {
        self.bytes(at, &v.to_le_bytes());
    }
    /// Reads two bytes.
    pub fn read16(&self, at: u64) -> u16 {
        self.read64(at) as u16
    }
    /// Reads four bytes.
    pub fn read32(&self, at: u64) -> u32 {
        self.read64(at) as u32
    }
    /// Reads eight bytes.
    pub fn read64(&self, at: u64) -> u64 {
        let mut b = [0; 8];
        self.cpu.shared.ram.read(at, &mut b);
        u64::from_le_bytes(b)
    }

    /// Sets a GDT entry.
    pub fn gdt(&mut self, selector: u16, d: u64) {
        self.write64(GDT + (selector & !7) as u64, d);
    }

    /// Replaces the flags of the page table entry of `linear` (4 KiB page).
    pub fn page(&mut self, linear: u64, flags: u64) {
        let n = linear >> 12;
        if self.cpu.long_active() {
            self.write64(PAGING + 0x3000 + 8 * n, linear & !0xfff | flags);
        } else {
            self.write32(PAGING + 0x1000 + 4 * n, (linear & !0xfff | flags) as u32);
        }
        self.cpu.flush_tlb_all();
    }

    /// Runs to a HLT.
    pub fn run(&mut self) {
        self.cpu.state.halted = false;
        let exit = self.cpu.run_loop();
        assert_eq!(exit, Exit::Halted, "{}", self.cpu.dump());
    }

    /// Runs to a HLT in the handler of a vector, which is given back.
    pub fn run_to_handler(&mut self) -> u8 {
        self.run();
        let at = self.cpu.state.linear_rip().wrapping_sub(STUBS);
        assert!(at < 0x1000 && at & 15 == 1, "halted outside the handlers\n{}", self.cpu.dump());
        (at >> 4) as u8
    }

    /// Runs to the handler of `vector`, which must be the one.
    #[track_caller]
    pub fn expect(&mut self, want: u8) {
        let got = self.run_to_handler();
        assert_eq!(got, want, "vector\n{}", self.cpu.dump());
    }

    /// Runs to #GP with this error code (protected and long mode).
    #[track_caller]
    pub fn expect_gp(&mut self, code: u32) {
        self.expect(vector::GP);
        assert_eq!(self.frame(0) as u32, code, "error code of #GP");
    }

    /// Word `n` of the current stack: 2, 4 or 8 bytes each as the code width says.
    pub fn frame(&self, n: u64) -> u64 {
        let bytes = crate::lift::bitness(self.cpu.state.mode) as u64 / 8;
        let base = if bytes == 8 { 0 } else { self.cpu.state.segs[reg::SS].base };
        let v = self.read64(base + self.cpu.gpr(reg::RSP) + n * bytes);
        v & (u64::MAX >> (64 - 8 * bytes))
    }
}
