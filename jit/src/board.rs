//! What the engine needs from the machine around it. The program implements this; the engine's tests use a fake.

/// The board as seen from a processor. All methods return at once: work for the host is posted, never waited for.
/// `cpu` is the index of the calling vCPU.
pub trait Board: Send + Sync {
    /// Reads `size` (1, 2 or 4) bytes from I/O port `port`.
    fn pio_read(&self, cpu: u32, port: u16, size: u8) -> u32;
    /// Writes `size` (1, 2 or 4) bytes to I/O port `port`.
    fn pio_write(&self, cpu: u32, port: u16, size: u8, value: u32);
    /// Reads `size` (1, 2, 4 or 8) bytes of guest-physical space that is not RAM. Never crosses a page.
    fn mmio_read(&self, cpu: u32, gpa: u64, size: u8) -> u64;
    /// Writes `size` (1, 2, 4 or 8) bytes of guest-physical space that is not writable RAM. Never crosses a page.
    fn mmio_write(&self, cpu: u32, gpa: u64, size: u8, value: u64);
    /// Interrupt acknowledge cycle: the vector to deliver now, from the local APIC or (virtual wire) the 8259, or
    /// `None` if the request went away.
    fn acknowledge_interrupt(&self, cpu: u32) -> Option<u8>;
    /// CR8: bits 7:4 of the task priority register.
    fn cr8(&self, cpu: u32) -> u8;
    /// Sets CR8 (0 to 15).
    fn set_cr8(&self, cpu: u32, value: u8);
    /// IA32_APIC_BASE (MSR 0x1B).
    fn apic_base(&self, cpu: u32) -> u64;
    /// Writes IA32_APIC_BASE; `false` raises #GP.
    fn set_apic_base(&self, cpu: u32, value: u64) -> bool;
    /// Reads an x2APIC MSR (0x800..=0x8FF) or IA32_TSC_DEADLINE (0x6E0); `None` raises #GP.
    fn apic_msr_read(&self, cpu: u32, msr: u32) -> Option<u64>;
    /// Writes an x2APIC MSR or IA32_TSC_DEADLINE; `false` raises #GP.
    fn apic_msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool;
    /// FERR#: an unmasked x87 exception is pending while CR0.NE is clear, or is no more.
    fn set_fpu_error(&self, cpu: u32, asserted: bool);
    /// IGNNE#: x87 instructions are to run in spite of a pending exception while CR0.NE is clear. If it is not asserted,
    /// the processor waits for an interrupt.
    fn fpu_error_ignored(&self, cpu: u32) -> bool;
    /// The time stamp counter before the guest's own adjustment. It counts at [`TSC_HZ`] in guest time.
    fn tsc(&self) -> u64;
}

/// Rate of the guest's time stamp counter: one count a nanosecond of guest time.
pub const TSC_HZ: u64 = 1_000_000_000;
