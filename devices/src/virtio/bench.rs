//! A virtio device in a PCI slot with a driver at its queues, for tests.

use super::blk::tests::Driver;
use super::pci::VirtioPci;
use super::{Parts, feature};
use crate::bus::{Bus, Device};
use crate::fakes::{FakeIrq, FakeMemory, FakeMsi, FakeTime, FakeWork, Random, same_after_restore};
use crate::pci::PciFunction;
use crate::services::Dma;
use std::sync::Arc;

/// Where the modern registers are.
pub const REGISTERS: u64 = 0xe000_0000;
/// Memory that no queue uses.
pub const DATA: u64 = 0x8_0000;
const MEMORY: usize = 0x10_0000;
/// Distance of the queues in memory.
const STEP: u64 = 0x4000;

/// What a device is made from.
pub struct Surroundings {
    pub memory: Arc<FakeMemory>,
    pub work: FakeWork,
    pub time: Arc<FakeTime>,
}

/// A device, and drivers at as many of its queues as there is memory for.
pub struct Bench {
    pub s: Surroundings,
    pub device: Arc<VirtioPci>,
    pub bus: Arc<Bus>,
    pub irq: Arc<FakeIrq>,
    pub queues: Vec<Driver>,
}

impl Bench {
    /// A device whose registers are mapped, and nothing more.
    pub fn bare(make: impl FnOnce(&Surroundings) -> Parts) -> Self {
        let s = Surroundings { memory: FakeMemory::new(MEMORY), work: FakeWork::default(), time: FakeTime::new() };
        let (bus, irq) = (Arc::new(Bus::new()), FakeIrq::new());
        let parts = make(&s);
        let count = parts.queues.count().min((DATA / STEP) as usize) as u64;
        let device = VirtioPci::new(&bus, parts, irq.line(11), Arc::new(FakeMsi::default())).unwrap();
        device.config_write(0x10, 4, 0xc000);
        device.config_write(0x14, 4, 0xd000_0000);
        device.config_write(0x20, 4, REGISTERS as u32);
        device.config_write(4, 2, 7);
        let queues = (0..count).map(|i| Driver::new(s.memory.clone(), STEP * i, 8)).collect();
        Self { s, device, bus, irq, queues }
    }

    /// A device that a modern driver has set up, which took `features`.
    pub fn new(features: u64, make: impl FnOnce(&Surroundings) -> Parts) -> Self {
        let b = Self::bare(make);
        b.set_up(features);
        b
    }

    /// What a modern driver does first.
    pub fn set_up(&self, features: u64) {
        let set = |at: u64, size, value| self.bus.mmio_write(REGISTERS + at, size, value);
        set(0x14, 1, 0);
        set(0x14, 1, 3);
        let features = features | feature::VERSION_1;
        for select in 0..2 {
            set(0x08, 4, select);
            set(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        set(0x14, 1, 0xb);
        assert_eq!(self.bus.mmio_read(REGISTERS + 0x14, 1), 0xb, "the features were taken");
        for index in 0..self.queues.len() as u64 {
            let base = STEP * index;
            set(0x16, 2, index);
            set(0x18, 2, 8);
            for (at, value) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
                set(at, 4, value);
                set(at + 4, 4, 0);
            }
            set(0x1c, 2, 1);
        }
        set(0x14, 1, 0xf);
        self.s.work.run();
    }

    /// The driver rings the bell of queue `index`, and the device works.
    pub fn kick(&self, index: u64) {
        self.bus.mmio_write(REGISTERS + 0x3000 + 4 * index, 2, index);
        self.s.work.run();
    }

    /// Reads the device configuration.
    pub fn config(&self, at: u64, size: u8) -> u64 {
        self.bus.mmio_read(REGISTERS + 0x2000 + at, size)
    }

    /// Bytes of memory.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.s.memory.read(gpa, &mut bytes);
        bytes
    }
}

/// Random register accesses and random rings, `after` each few of them. Nothing panics, and the state survives.
pub fn fuzz(seed: u64, make: impl Fn(&Surroundings) -> Parts, after: impl Fn(&mut Random)) {
    let mut random = Random::new(seed);
    for round in 0..60 {
        let mut b = Bench::bare(&make);
        if round % 4 != 0 {
            b.set_up(0);
        }
        for _ in 0..120 {
            match random.below(6) {
                0 => {
                    let (at, size) = (random.below(0x4000), 1 << random.below(3));
                    b.bus.mmio_write(REGISTERS + at, size, random.next());
                }
                1 => _ = b.bus.mmio_read(REGISTERS + random.below(0x2100), 1 << random.below(3)),
                2 => {
                    let bytes: Vec<u8> = (0..64).map(|_| random.next() as u8 & random.next() as u8).collect();
                    b.s.memory.write(random.below(0x1_0000), &bytes);
                }
                3 => {
                    // Requests in earnest, whose bytes mean little.
                    let pick = random.below(b.queues.len() as u64) as usize;
                    let bytes: Vec<u8> = (0..96).map(|_| random.next() as u8 & 7).collect();
                    b.s.memory.write(DATA, &bytes);
                    let mut pieces: Vec<(u64, u32, bool)> = Vec::new();
                    for _ in 0..random.below(2) + 1 {
                        pieces.push((DATA + random.below(64), random.below(80) as u32, false));
                    }
                    if random.below(2) == 0 {
                        pieces.clear();
                    }
                    for _ in 0..random.below(3) {
                        let at = if random.below(9) == 0 { random.next() } else { DATA + 0x1000 };
                        pieces.push((at, random.below(9000) as u32, true));
                    }
                    if !pieces.is_empty() {
                        b.queues[pick].add(&pieces);
                    }
                    b.kick(pick as u64);
                }
                4 => b.s.time.advance(random.below(3_000_000_000)),
                _ => after(&mut random),
            }
            b.s.work.run();
        }
        same_after_restore(&*b.device);
        b.device.reset();
    }
}
