//! A processor with a little memory and a recording board, for the tests of this directory.

use crate::board::Board;
use crate::cpu::{Cpu, Shared};
use crate::cpuid::CpuModel;
use crate::mmu::code_map::CodeMap;
use crate::mmu::ram::{Ram, RamRegion};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

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
        None
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
    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::Relaxed)
    }
}

/// A processor after reset, and its board.
pub fn machine_with_board() -> (Box<Cpu>, Arc<FakeBoard>) {
    let region = RamRegion { gpa: 0, size: RAM, offset: 0, rom: false };
    let ram = Arc::new(Ram::new(RAM, vec![region]).expect("a few megabytes"));
    let code_map = CodeMap::new(&ram);
    let board = Arc::new(FakeBoard::default());
    let shared = Arc::new(Shared { ram, code_map });
    let mut cpu = Cpu::new(0, shared, board.clone(), Arc::new(CpuModel::default()));
    cpu.reset();
    (cpu, board)
}

/// A processor after reset.
pub fn machine() -> Box<Cpu> {
    machine_with_board().0
}
