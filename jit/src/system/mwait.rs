//! MONITOR and MWAIT (SDM 2B, SDM 3A 10.10.4): a processor waits for a store to a line of memory.
//!
//! Stores of other processors and of devices are not watched: that would slow down all stores to the page. What the line
//! held at MONITOR is kept, and whoever runs the halted processor compares it from time to time. A store that leaves the
//! line as it was wakes nobody; a program cannot tell, since it goes back to waiting for what has not changed anyway.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::vcpu::request;

/// Bytes of a monitored line, as CPUID leaf 5 has it.
const LINE: u64 = 64;

/// What MONITOR saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Guest-physical address of its first byte.
    gpa: u64,
    words: [u64; LINE as usize / 8],
}

/// A wait in MWAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mwait {
    line: Line,
    /// A maskable interrupt ends the wait even where it is not taken (ECX bit 0).
    masked_too: bool,
}

impl Cpu {
    /// MONITOR of a linear address; its rights have been checked for reading one byte.
    pub fn arm_monitor(&mut self, linear: u64) -> Result<(), Fault> {
        self.load(Ty::I8, linear)?;
        self.monitor = self.translate_debug(linear);
        self.monitored = self.monitor.and_then(|gpa| self.read_line(gpa & !(LINE - 1)));
        Ok(())
    }

    /// MWAIT: halts unless the monitored line has changed already or none is monitored.
    pub fn wait_for_store(&mut self, masked_too: bool) {
        self.monitor = None;
        self.mwait = self.monitored.take().map(|line| Mwait { line, masked_too });
        if self.wait_is_over() {
            self.mwait = None;
        }
        self.state.halted = self.mwait.is_some();
    }

    /// The processor waits in MWAIT, and there is no more cause to: the line changed, or an interrupt came that ends the
    /// wait without being taken.
    pub fn wait_is_over(&self) -> bool {
        self.mwait.is_some_and(|wait| {
            wait.masked_too && self.requested() & request::INTERRUPT != 0
                || self.read_line(wait.line.gpa) != Some(wait.line)
        })
    }

    /// Contents of the line at `gpa`; `None` outside RAM.
    fn read_line(&self, gpa: u64) -> Option<Line> {
        self.shared.ram.region_of(gpa)?;
        Some(Line { gpa, words: std::array::from_fn(|n| self.shared.ram.load_entry(gpa + 8 * n as u64, 8)) })
    }
}
