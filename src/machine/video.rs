//! The frame buffer of a graphics card: memory in the guest's memory file, which processors reach without the card.

use brolga_devices::services::DeviceMemory;
use brolga_jit::Engine;
use brolga_jit::mmu::ram::{PAGE_SIZE, Ram};
use rustix::fs::{FallocateFlags, fallocate};
use std::sync::{Arc, OnceLock};

/// The part of the memory file that [`Ram::with_window`] sets apart.
pub struct VideoMemory {
    ram: Arc<Ram>,
    /// Where it begins in the file.
    offset: u64,
    engine: OnceLock<Arc<Engine>>,
}

impl VideoMemory {
    /// The window of `ram`, which begins at `offset` in the memory file.
    pub fn new(ram: Arc<Ram>, offset: u64) -> Arc<Self> {
        Arc::new(Self { ram, offset, engine: OnceLock::new() })
    }

    /// Connects the engine, which has to know of changes; the first one stays.
    pub fn connect(&self, engine: Arc<Engine>) {
        // A second engine would be a mistake of the machine's, which makes one.
        let _ = self.engine.set(engine);
    }

    /// The card wrote these bytes.
    fn written(&self, offset: u64, len: u64) {
        if let (Some(engine), Some(window)) = (self.engine.get(), self.ram.window()) {
            engine.memory_written(window.gpa.saturating_add(offset), len);
        }
    }
}

impl DeviceMemory for VideoMemory {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        self.ram.read_window(offset, buf);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.ram.write_window(offset, bytes);
        self.written(offset, bytes.len() as u64);
    }

    fn clear(&self, len: u64) {
        let whole = len & !(PAGE_SIZE - 1);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if whole != 0
            && let Err(error) = fallocate(self.ram.file(), hole, self.offset, whole)
        {
            // What the guest would see instead is an old picture.
            tracing::warn!("the frame buffer cannot be cleared: {error}");
        }
        self.ram.write_window(whole, &vec![0; (len - whole) as usize]);
        self.written(0, len);
    }

    fn place(&self, gpa: Option<u64>) {
        if let Some(engine) = self.engine.get() {
            engine.place_window(gpa);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_jit::mmu::ram::RamRegion;

    #[test]
    fn cleared_up_to_the_byte() {
        let region = RamRegion { gpa: 0, size: 4096, offset: 0, rom: false };
        let ram = Arc::new(Ram::new(4 * 4096, vec![region]).unwrap().with_window(4096, 3 * 4096).unwrap());
        ram.write(4095, &[5], false);
        let video = VideoMemory::new(ram.clone(), 4096);
        video.write(0, &[7; 3 * 4096]);
        video.clear(4096 + 10);
        let byte = |offset| {
            let mut byte = [0];
            video.read(offset, &mut byte);
            byte[0]
        };
        assert_eq!([0, 4096 + 9, 4096 + 10, 3 * 4096 - 1, 3 * 4096].map(byte), [0, 0, 7, 7, 0xff]);
        let mut last = [0];
        ram.read(4095, &mut last);
        assert_eq!(last, [5], "RAM before it stays");
    }
}
