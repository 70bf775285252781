//! The board as the engine sees it: ports, memory-mapped registers, local APICs and the time stamp counter.

use crate::clock::GuestClock;
use brolga_devices::bus::Bus;
use brolga_devices::fpu_error::FpuError;
use brolga_devices::lapic::LocalApics;
use brolga_devices::pic::Pic;
use brolga_devices::services::Clock;
use brolga_jit::board::Board;
use std::sync::Arc;

/// Bits of an address within the APIC page.
const APIC_PAGE_MASK: u64 = 0xFFF;

/// The processor whose FERR# and IGNNE# are connected: the first one.
const FPU_ERROR_CPU: u32 = 0;

/// Everything that a processor of a PC reaches without going through RAM.
pub struct PcBoard {
    /// Ports and memory-mapped registers.
    pub bus: Arc<Bus>,
    /// Each processor sees its own at the same address.
    pub apics: Arc<LocalApics>,
    /// Answers the acknowledge cycle for interrupts that come by the virtual wire.
    pub pic: Arc<Pic>,
    /// Where x87 errors go while CR0.NE is clear.
    pub fpu_error: Arc<FpuError>,
    /// Guest time.
    pub clock: Arc<GuestClock>,
}

impl PcBoard {
    /// The offset in the APIC page, if `gpa` lies in it as processor `cpu` has placed it.
    fn apic_offset(&self, cpu: u32, gpa: u64) -> Option<u64> {
        (self.apics.mmio_base(cpu)? == gpa & !APIC_PAGE_MASK).then_some(gpa & APIC_PAGE_MASK)
    }
}

impl Board for PcBoard {
    fn pio_read(&self, _cpu: u32, port: u16, size: u8) -> u32 {
        self.bus.pio_read(port, size)
    }

    fn pio_write(&self, _cpu: u32, port: u16, size: u8, value: u32) {
        self.bus.pio_write(port, size, value);
    }

    fn mmio_read(&self, cpu: u32, gpa: u64, size: u8) -> u64 {
        match self.apic_offset(cpu, gpa) {
            Some(offset) => self.apics.mmio_read(cpu, offset, size),
            None => self.bus.mmio_read(gpa, size),
        }
    }

    fn mmio_write(&self, cpu: u32, gpa: u64, size: u8, value: u64) {
        match self.apic_offset(cpu, gpa) {
            Some(offset) => self.apics.mmio_write(cpu, offset, size, value),
            None => self.bus.mmio_write(gpa, size, value),
        }
    }

    fn acknowledge_interrupt(&self, cpu: u32) -> Option<u8> {
        self.apics.acknowledge(cpu, &|| self.pic.output().then(|| self.pic.acknowledge()))
    }

    fn cr8(&self, cpu: u32) -> u8 {
        self.apics.cr8(cpu)
    }

    fn set_cr8(&self, cpu: u32, value: u8) {
        self.apics.set_cr8(cpu, value);
    }

    fn apic_base(&self, cpu: u32) -> u64 {
        self.apics.apic_base(cpu)
    }

    fn set_apic_base(&self, cpu: u32, value: u64) -> bool {
        self.apics.set_apic_base(cpu, value)
    }

    fn apic_msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.apics.msr_read(cpu, msr)
    }

    fn apic_msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        self.apics.msr_write(cpu, msr, value)
    }

    fn set_fpu_error(&self, cpu: u32, asserted: bool) {
        if cpu == FPU_ERROR_CPU {
            self.fpu_error.set_error(asserted);
        }
    }

    fn fpu_error_ignored(&self, cpu: u32) -> bool {
        cpu == FPU_ERROR_CPU && self.fpu_error.ignored()
    }

    fn tsc(&self) -> u64 {
        self.clock.now_ns()
    }
}
