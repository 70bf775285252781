//! A board that notes whether the processor used it.

use crate::board::Board;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a board was used since somebody last looked.
#[derive(Clone, Default)]
pub struct Used(Arc<AtomicBool>);

impl Used {
    /// Looks, and forgets.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The machine's board, with a note of every use.
pub struct WatchedBoard {
    board: Arc<dyn Board>,
    used: Used,
}

impl WatchedBoard {
    /// Watches `board`.
    pub fn new(board: Arc<dyn Board>, used: Used) -> Self {
        Self { board, used }
    }

    fn note(&self) -> &dyn Board {
        self.used.0.store(true, Ordering::Relaxed);
        &*self.board
    }
}

impl Board for WatchedBoard {
    fn pio_read(&self, cpu: u32, port: u16, size: u8) -> u32 {
        self.note().pio_read(cpu, port, size)
    }
    fn pio_write(&self, cpu: u32, port: u16, size: u8, value: u32) {
        self.note().pio_write(cpu, port, size, value);
    }
    fn mmio_read(&self, cpu: u32, gpa: u64, size: u8) -> u64 {
        self.note().mmio_read(cpu, gpa, size)
    }
    fn mmio_write(&self, cpu: u32, gpa: u64, size: u8, value: u64) {
        self.note().mmio_write(cpu, gpa, size, value);
    }
    fn acknowledge_interrupt(&self, cpu: u32) -> Option<u8> {
        self.note().acknowledge_interrupt(cpu)
    }
    fn cr8(&self, cpu: u32) -> u8 {
        self.note().cr8(cpu)
    }
    fn set_cr8(&self, cpu: u32, value: u8) {
        self.note().set_cr8(cpu, value);
    }
    fn apic_base(&self, cpu: u32) -> u64 {
        self.note().apic_base(cpu)
    }
    fn set_apic_base(&self, cpu: u32, value: u64) -> bool {
        self.note().set_apic_base(cpu, value)
    }
    fn apic_msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.note().apic_msr_read(cpu, msr)
    }
    fn apic_msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        self.note().apic_msr_write(cpu, msr, value)
    }
    fn set_fpu_error(&self, cpu: u32, asserted: bool) {
        self.note().set_fpu_error(cpu, asserted);
    }
    fn fpu_error_ignored(&self, cpu: u32) -> bool {
        self.note().fpu_error_ignored(cpu)
    }
    fn tsc(&self) -> u64 {
        self.note().tsc()
    }
}
