//! Guest memory as bus-mastering devices reach it.

use brolga_devices::services::Dma;
use brolga_jit::Engine;
use brolga_jit::mmu::ram::Ram;
use std::sync::{Arc, OnceLock};

/// RAM for devices. Stores to it drop translated code, once there is an engine.
pub struct GuestMemory {
    ram: Arc<Ram>,
    engine: OnceLock<Arc<Engine>>,
}

impl GuestMemory {
    /// Access to `ram`.
    pub fn new(ram: Arc<Ram>) -> Arc<Self> {
        Arc::new(Self { ram, engine: OnceLock::new() })
    }

    /// The RAM itself, for requests of the host's that need no copy.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The host wrote these bytes.
    pub fn written(&self, gpa: u64, len: u64) {
        if let Some(engine) = self.engine.get() {
            engine.memory_written(gpa, len);
        }
    }

    /// Connects the engine, which has to know of stores; the first one stays.
    pub fn connect(&self, engine: Arc<Engine>) {
        // A second engine would be a mistake of the machine's, which makes one.
        let _ = self.engine.set(engine);
    }
}

impl Dma for GuestMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) {
        self.ram.read(gpa, buf);
    }

    fn write(&self, gpa: u64, buf: &[u8]) {
        self.ram.write(gpa, buf, false);
        self.written(gpa, buf.len() as u64);
    }
}
