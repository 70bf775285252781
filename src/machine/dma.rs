//! Guest memory as bus-mastering devices reach it.

use brolga_devices::services::{Dma, GuestRange, MemoryReturn};
use brolga_jit::Engine;
use brolga_jit::mmu::ram::{PAGE_SIZE, Ram};
use rustix::fs::{FallocateFlags, fallocate};
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

/// Memory below 1 MiB stays: firmware lives there, and so little is not worth it.
const KEPT: u64 = 1 << 20;

impl GuestMemory {
    /// Gives one range back, the part of it that lies in `gpa`'s region; how many bytes that part has.
    fn give_back_within_region(&self, gpa: u64, len: u64) -> Option<u64> {
        let region = self.ram.region_of(gpa)?;
        let within = gpa - region.gpa;
        let len = len.min(region.size - within);
        if !region.rom {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(self.ram.file(), hole, region.offset + within, len) {
                Ok(()) => self.written(gpa, len),
                Err(error) => tracing::warn!("memory cannot be given back: {error}"),
            }
        }
        Some(len)
    }
}

impl MemoryReturn for GuestMemory {
    fn give_back(&self, ranges: &[GuestRange]) {
        for range in ranges {
            let Some(end) = range.gpa.checked_add(range.len).map(|end| end & !(PAGE_SIZE - 1)) else { continue };
            let Some(gpa) = range.gpa.checked_next_multiple_of(PAGE_SIZE) else { continue };
            let mut gpa = gpa.max(KEPT);
            while gpa < end {
                match self.give_back_within_region(gpa, end - gpa) {
                    Some(len) => gpa += len,
                    // Nothing there: on to the next region, if one follows.
                    None => match self.ram.regions().iter().find(|region| region.gpa > gpa) {
                        Some(next) => gpa = next.gpa,
                        None => break,
                    },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_jit::mmu::ram::RamRegion;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn whole_pages_of_ram_go_back_and_read_as_zeros() {
        const MIB: u64 = 1 << 20;
        let region = |gpa, size, offset, rom| RamRegion { gpa, size, offset, rom };
        let regions = vec![
            region(0, 4 * MIB, 0, false),
            region(6 * MIB, MIB, 4 * MIB, true),
            region(8 * MIB, MIB, 5 * MIB, false),
        ];
        let ram = Arc::new(Ram::new(6 * MIB, regions).unwrap());
        let memory = GuestMemory::new(ram.clone());
        let ones = vec![0xff; (4 * MIB) as usize];
        for (gpa, len) in [(0, 4 * MIB), (6 * MIB, MIB), (8 * MIB, MIB)] {
            ram.write(gpa, &ones[..len as usize], true);
        }
        let blocks = || ram.file().metadata().unwrap().blocks() * 512;
        assert_eq!(blocks(), 6 * MIB);
        let first = |gpa| {
            let mut byte = [7];
            ram.read(gpa, &mut byte);
            byte[0]
        };
        memory.give_back(&[GuestRange { gpa: 2 * MIB - 1, len: PAGE_SIZE + 2 }]);
        assert_eq!((first(2 * MIB - 1), first(2 * MIB), first(2 * MIB + PAGE_SIZE)), (0xff, 0, 0xff));
        // Across regions and holes: what is below 1 MiB, and ROM, stays.
        memory.give_back(&[GuestRange { gpa: 0, len: 1 << 40 }, GuestRange { gpa: u64::MAX, len: 9 }]);
        assert_eq!(blocks(), 2 * MIB);
        assert_eq!((first(0), first(MIB), first(6 * MIB), first(8 * MIB)), (0xff, 0, 0xff, 0));
        assert!(ram.write(MIB, &[5], false));
        assert_eq!((first(MIB), first(MIB + 1)), (5, 0));
    }
}
