//! Wires that end at processors and at the machine itself.

use super::Request;
use crate::vcpu::VcpuThread;
use brolga_devices::services::{CpuSignals, IrqSink, PowerEvent, PowerSink};
use brolga_jit::request;
use crossbeam_channel::Sender;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A local APIC's way to its processor, whose thread is made later.
#[derive(Default)]
pub struct CpuLink {
    thread: OnceLock<Arc<VcpuThread>>,
    /// What the APIC last said, for a processor that is connected later.
    pending: AtomicBool,
}

impl CpuLink {
    /// Connects the processor; the first one stays.
    pub fn connect(&self, thread: Arc<VcpuThread>) {
        if self.thread.set(thread).is_ok() {
            self.set_interrupt_pending(self.pending.load(Ordering::SeqCst));
        }
    }

    fn with(&self, f: impl FnOnce(&VcpuThread)) {
        if let Some(thread) = self.thread.get() {
            f(thread);
        }
    }
}

impl CpuSignals for CpuLink {
    fn set_interrupt_pending(&self, pending: bool) {
        self.pending.store(pending, Ordering::SeqCst);
        self.with(|thread| match pending {
            true => thread.raise(request::INTERRUPT),
            false => thread.clear(request::INTERRUPT),
        });
    }

    fn nmi(&self) {
        self.with(|thread| thread.raise(request::NMI));
    }

    fn smi(&self) {
        self.with(|thread| thread.raise(request::SMI));
    }

    fn init(&self) {
        self.with(VcpuThread::init);
    }

    fn start_up(&self, vector: u8) {
        self.with(|thread| thread.start_up(vector));
    }
}

/// The chipset's system management interrupt: it reaches all processors.
pub struct SmiLine(pub Vec<Arc<CpuLink>>);

impl IrqSink for SmiLine {
    fn set_irq(&self, _pin: u32, level: bool) {
        if level {
            self.0.iter().for_each(|link| link.smi());
        }
    }
}

/// Where devices ask for resets and power-off. The guest runs no further than the block that asked.
pub struct PowerControl {
    requests: Sender<Request>,
    links: Vec<Arc<CpuLink>>,
}

impl PowerControl {
    /// Sends to `requests`; `links` lead to all processors.
    pub fn new(requests: Sender<Request>, links: Vec<Arc<CpuLink>>) -> Self {
        Self { requests, links }
    }
}

impl PowerSink for PowerControl {
    fn request(&self, event: PowerEvent) {
        for link in &self.links {
            link.with(VcpuThread::hold);
        }
        // Fails only when the machine is ending.
        let _ = self.requests.send(Request::Power(event));
    }
}
