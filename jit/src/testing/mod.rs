//! One instruction at a time, for differential tests: a processor in user mode over a few mapped pages, registers set
//! and read back whole. Behind the feature `testing`.

mod executor;
pub mod hostile;
mod measure;
mod random;

use crate::board::Board;
use crate::cpu::Cpu;
use crate::cpuid::Topology;
use crate::lift;
use crate::mmu::ram::{PAGE_SIZE, Ram, RamRegion};
use crate::shared::Shared;
use crate::state::{HIGH, Segment, attr, cr0, cr4, efer, reg};
use crate::vcpu::{VcpuHandle, request};
use executor::Executor;
pub use measure::{Code, Program};
pub use random::Random;
use std::sync::{Arc, OnceLock};

/// How the instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The interpreter on the IR as lifted.
    Lifted,
    /// The interpreter on the IR after the passes.
    Optimised,
    /// Baseline code.
    Baseline,
    /// Cranelift's code.
    Compiled,
}

/// Registers that user code sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// The high halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// Abridged tags: bit n set = physical register n in use.
    pub tags: u8,
    /// x87 opcode of the last unmasked exception.
    pub fop: u16,
    /// x87 instruction pointer.
    pub fip: u64,
    /// x87 data pointer.
    pub fdp: u64,
    /// ST(0) to ST(7), 80 bits each (the stack view of FXSAVE).
    pub st: [u128; 8],
}

impl Registers {
    /// All zero but for what is set after FNINIT and in a new MXCSR.
    pub const CLEAR: Self = Self {
        gpr: [0; 16],
        rip: 0,
        rflags: 2,
        xmm: [0; 16],
        ymm_high: [0; 16],
        mxcsr: 0x1f80,
        fcw: 0x37f,
        fsw: 0,
        tags: 0,
        fop: 0,
        fip: 0,
        fdp: 0,
        st: [0; 8],
    };
}

impl Default for Registers {
    fn default() -> Self {
        Self::CLEAR
    }
}

/// What became of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Executed; RIP is that of the next instruction.
    Done,
    /// Raised an exception; the registers are those it would be delivered with.
    Fault {
        /// Vector.
        vector: u8,
        /// Error code, 0 if there is none.
        error: u32,
        /// Faulting address of a page fault, else 0.
        address: u64,
    },
}

/// Width of the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Compatibility mode, 16-bit code, data and stack: segments with base and limit ([`SEGMENTS_16`]).
    B16,
    /// Compatibility mode, 32-bit code, flat segments.
    B32,
    /// 64-bit mode.
    B64,
}

/// Segments of [`Bits::B16`]: ES (expand-down), CS, SS, DS, FS, GS.
pub const SEGMENTS_16: [TestSegment; 6] = [
    TestSegment { base: 0x1000_4000, limit: 0xbfff, expand_down: true },
    TestSegment { base: 0x1000_0000, limit: 0x0fff, expand_down: false },
    TestSegment { base: 0x1001_0000, limit: 0x3fff, expand_down: false },
    TestSegment { base: 0x1001_0000, limit: 0x4fff, expand_down: false },
    TestSegment { base: 0x1001_0000, limit: 0x4fff, expand_down: false },
    TestSegment { base: 0x1001_0000, limit: 0x4fff, expand_down: false },
];

/// A segment of a test.
#[derive(Clone, Copy, Debug)]
pub struct TestSegment {
    /// Linear base.
    pub base: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Valid offsets are those above the limit, up to 0xFFFF.
    pub expand_down: bool,
}

/// A page of the test's address space.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Linear address.
    pub linear: u64,
    /// Stores are allowed.
    pub writable: bool,
}

/// A user-mode processor over some pages below 1 GiB.
pub struct Machine {
    cpu: Box<Cpu>,
    pages: Vec<Page>,
    executor: Executor,
}

const TABLES: u64 = 0x1000;
const DATA: u64 = 0x10_0000;

/// A board with nothing behind any port or address, but that a write to the port [`STOP`] ends a processor's run.
#[derive(Default)]
pub struct QuietBoard {
    /// The processor that is stopped.
    pub stops: OnceLock<VcpuHandle>,
}

/// Port of [`QuietBoard`] whose writes end a run.
pub const STOP: u16 = 0xf4;

impl Board for QuietBoard {
    fn pio_read(&self, _: u32, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn pio_write(&self, _: u32, port: u16, _: u8, _: u32) {
        if let Some(cpu) = self.stops.get().filter(|_| port == STOP) {
            cpu.raise(request::EXIT);
        }
    }
    fn mmio_read(&self, _: u32, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: u32, _: u64, _: u8, _: u64) {}
    fn acknowledge_interrupt(&self, _: u32) -> Option<u8> {
        None
    }
    fn cr8(&self, _: u32) -> u8 {
        0
    }
    fn set_cr8(&self, _: u32, _: u8) {}
    fn apic_base(&self, _: u32) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&self, _: u32, _: u64) -> bool {
        false
    }
    fn apic_msr_read(&self, _: u32, _: u32) -> Option<u64> {
        None
    }
    fn apic_msr_write(&self, _: u32, _: u32, _: u64) -> bool {
        false
    }
    fn set_fpu_error(&self, _: u32, _: bool) {}
    fn fpu_error_ignored(&self, _: u32) -> bool {
        true
    }
    fn tsc(&self) -> u64 {
        0
    }
}

impl Machine {
    /// A processor of the given model with `pages` mapped. Pages lie below 1 GiB, in at most 200 ranges of 2 MiB.
    ///
    /// # Panics
    /// If there is no memory for the machine or the model does not exist.
    pub fn new(model: &str, bits: Bits, pages: &[Page]) -> Self {
        let size = DATA + pages.len() as u64 * PAGE_SIZE + PAGE_SIZE;
        let region = RamRegion { gpa: 0, size, offset: 0, rom: false };
        let ram = Arc::new(Ram::new(size, vec![region]).expect("memory for the test machine"));
        let shared = Arc::new(Shared::new(ram, Topology::default()));
        let model = Arc::new(crate::cpuid::parse(model).expect("a processor model"));
        let mut machine = Self {
            cpu: Cpu::new(0, shared, Arc::new(QuietBoard::default()), model),
            pages: pages.to_vec(),
            executor: Executor::default(),
        };
        machine.map_pages();
        machine.set_mode(bits);
        machine
    }

    /// Page tables: PML4, PDPT and PD at fixed places, a page table per 2 MiB in use.
    fn map_pages(&mut self) {
        const USER: u64 = 7;
        let (pml4, pdpt, pd) = (TABLES, TABLES + PAGE_SIZE, TABLES + 2 * PAGE_SIZE);
        let mut next_table = TABLES + 3 * PAGE_SIZE;
        self.put_entry(pml4, pdpt | USER);
        self.put_entry(pdpt, pd | USER);
        for (n, page) in self.pages.clone().iter().enumerate() {
            let slot = pd + (page.linear >> 21 & 511) * 8;
            let mut entry = [0; 8];
            self.cpu.shared.ram.read(slot, &mut entry);
            let mut table = u64::from_le_bytes(entry) & !(PAGE_SIZE - 1);
            if table == 0 {
                table = next_table;
                next_table += PAGE_SIZE;
                self.put_entry(slot, table | USER);
            }
            let rights = if page.writable { 7 } else { 5 };
            self.put_entry(table + (page.linear >> 12 & 511) * 8, (DATA + n as u64 * PAGE_SIZE) | rights);
        }
    }

    fn put_entry(&self, gpa: u64, entry: u64) {
        self.cpu.shared.ram.write(gpa, &entry.to_le_bytes(), false);
    }

    /// User mode of a long-mode system such as Linux.
    pub fn set_mode(&mut self, bits: Bits) {
        let s = &mut self.cpu.state;
        s.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP | cr0::AM;
        s.cr3 = TABLES;
        s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE | cr4::UMIP | cr4::OSXSAVE;
        s.xcr0 = self.cpu.model.xcr0_mask();
        s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        let user = attr::P | attr::S | attr::RW | attr::ACCESSED | 3 << attr::DPL_SHIFT;
        let wide = user | attr::G | attr::DB;
        s.segs = [Segment { base: 0, limit: u32::MAX, attributes: wide, selector: 0x2b }; 6];
        s.segs[reg::CS].attributes |= attr::CODE;
        match bits {
            Bits::B64 => s.segs[reg::CS].attributes = user | attr::G | attr::CODE | attr::L,
            Bits::B32 => {}
            Bits::B16 => {
                for (to, from) in s.segs.iter_mut().zip(SEGMENTS_16) {
                    let down = if from.expand_down { attr::EC } else { 0 };
                    *to = Segment { base: from.base.into(), limit: from.limit, attributes: user | down, selector: 0xf };
                }
                s.segs[reg::CS].attributes |= attr::CODE;
            }
        }
        s.segs[reg::CS].selector = [0x07, 0x23, 0x33][bits as usize];
        self.cpu.update_mode();
        self.cpu.flush_tlb_all();
    }

    /// Where linear address `linear` lies in guest-physical memory, if it is mapped.
    fn physical(&self, linear: u64) -> Option<u64> {
        let n = self.pages.iter().position(|p| p.linear == linear & !(PAGE_SIZE - 1))?;
        Some(DATA + n as u64 * PAGE_SIZE + (linear & (PAGE_SIZE - 1)))
    }

    /// Writes mapped memory whatever its rights; the range must not leave its page unless the pages follow one another.
    pub fn write(&mut self, linear: u64, bytes: &[u8]) {
        for (at, chunk) in pieces(linear, bytes.len()) {
            if let Some(gpa) = self.physical(linear + at as u64) {
                self.cpu.shared.ram.write(gpa, &bytes[at..at + chunk], false);
            }
        }
    }

    /// Reads mapped memory.
    pub fn read(&self, linear: u64, bytes: &mut [u8]) {
        for (at, chunk) in pieces(linear, bytes.len()) {
            if let Some(gpa) = self.physical(linear + at as u64) {
                self.cpu.shared.ram.read(gpa, &mut bytes[at..at + chunk]);
            }
        }
    }

    /// Sets all registers.
    pub fn set_registers(&mut self, r: &Registers) {
        let s = &mut self.cpu.state;
        s.vals[..16].copy_from_slice(&r.gpr);
        s.rip = r.rip;
        s.mxcsr = r.mxcsr;
        s.vecs[..HIGH].copy_from_slice(&r.xmm);
        s.vecs[HIGH..2 * HIGH].copy_from_slice(&r.ymm_high);
        s.x87.fcw = r.fcw;
        s.x87.fsw = r.fsw;
        s.x87.tags = r.tags;
        (s.x87.fop, s.x87.fip, s.x87.fdp) = (r.fop, r.fip, r.fdp);
        let top = (r.fsw >> 11 & 7) as usize;
        for (n, v) in r.st.iter().enumerate() {
            s.x87.regs[(top + n) & 7] = *v;
        }
        self.cpu.set_rflags(r.rflags);
    }

    /// All registers.
    pub fn registers(&self) -> Registers {
        let s = &self.cpu.state;
        let top = (s.x87.fsw >> 11 & 7) as usize;
        Registers {
            gpr: std::array::from_fn(|n| s.vals[n]),
            rip: s.rip,
            rflags: self.cpu.rflags(),
            xmm: std::array::from_fn(|n| s.vecs[n]),
            ymm_high: std::array::from_fn(|n| s.vecs[HIGH + n]),
            mxcsr: s.mxcsr,
            fcw: s.x87.fcw,
            fsw: s.x87.fsw,
            tags: s.x87.tags,
            fop: s.x87.fop,
            fip: s.x87.fip,
            fdp: s.x87.fdp,
            st: std::array::from_fn(|n| s.x87.regs[(top + n) & 7]),
        }
    }

    /// Executes the instructions in `bytes` from RIP on, until control leaves them or one raises an exception.
    ///
    /// # Panics
    /// If the bytes end within an instruction.
    pub fn execute(&mut self, bytes: &[u8], tier: Tier) -> Outcome {
        let start = self.cpu.state.rip;
        // x87 helpers look at the opcode of what raises.
        self.write(self.cpu.state.linear_rip(), bytes);
        self.cpu.load_mxcsr();
        let mut outcome = Outcome::Done;
        while let Some(rest) = self.rest(start, bytes) {
            if let Err(f) = self.executor.run(&mut self.cpu, rest, tier) {
                outcome = Outcome::Fault { vector: f.vector, error: f.error.unwrap_or(0), address: f.address };
                break;
            }
        }
        self.cpu.leave_mxcsr();
        outcome
    }

    /// What of `bytes` is still to be executed.
    fn rest<'a>(&self, start: u64, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let done = usize::try_from(self.cpu.state.rip.checked_sub(start)?).ok()?;
        bytes.get(done..).filter(|b| !b.is_empty())
    }

    /// Blocks that the compiling tier refused so far.
    pub fn refused(&self) -> u64 {
        self.executor.refused()
    }

    /// The IR of the instructions as lifted, for reports.
    pub fn explain(&self, bytes: &[u8]) -> String {
        let (rip, mode) = (self.cpu.state.rip, self.cpu.state.mode);
        match lift::lift_block(bytes, rip, mode, &self.cpu.model, lift::MAX_INSNS) {
            Ok(block) => crate::ir::text::print(&block),
            Err(e) => format!("{e:?}"),
        }
    }
}

/// Ranges of `len` bytes from `linear`, split at pages: offset and length.
fn pieces(linear: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let here = linear + at as u64;
        let n = ((PAGE_SIZE - (here & (PAGE_SIZE - 1))) as usize).min(len - at);
        at += n;
        Some((at - n, n))
    })
}

#[cfg(test)]
mod any_bytes;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod filetests;
#[cfg(test)]
mod kernels;
#[cfg(test)]
mod supervisor;
