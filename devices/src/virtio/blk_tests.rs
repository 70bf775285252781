//! A virtio disk as drivers use it, over PCI.

use super::super::feature as common;
use super::super::pci::VirtioPci;
use super::*;
use crate::bus::{Bus, Device};
use crate::fakes::{FakeDisk, FakeIrq, FakeMemory, FakeMsi, FakeWork, Random, moves_to, same_after_restore};
use crate::pci::PciFunction;
use crate::services::DiskError;

/// A driver's side of a queue: descriptors at `base`, rings in the pages behind.
pub(crate) struct Driver {
    memory: Arc<FakeMemory>,
    base: u64,
    size: u16,
    next: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    pub fn new(memory: Arc<FakeMemory>, base: u64, size: u16) -> Self {
        Self { memory, base, size, next: 0, available: 0, seen: 0 }
    }

    fn word(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(gpa, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let bytes = [&gpa.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.memory.write(self.base + 16 * u64::from(index % self.size), &bytes);
    }

    /// Adds a chain of (address, length, device writes).
    pub fn add(&mut self, pieces: &[(u64, u32, bool)]) -> u16 {
        let head = self.next % self.size;
        for (i, (gpa, len, write)) in pieces.iter().enumerate() {
            let more = u16::from(i + 1 < pieces.len());
            let index = self.next % self.size;
            self.next += 1;
            self.descriptor(index, *gpa, *len, more | u16::from(*write) << 1, self.next % self.size);
        }
        self.available(head);
        head
    }

    /// Adds one descriptor that points to a table.
    pub fn add_indirect(&mut self, gpa: u64, len: u32) {
        let head = self.next % self.size;
        self.next += 1;
        self.descriptor(head, gpa, len, 4, 0);
        self.available(head);
    }

    /// Writes descriptors from 0 on as they are, and makes the first available.
    pub fn add_raw(&mut self, descriptors: &[(u64, u32, u16, u16)]) {
        for (i, (gpa, len, flags, next)) in (0..).zip(descriptors) {
            self.descriptor(i, *gpa, *len, *flags, *next);
        }
        self.available(0);
    }

    /// Makes the chain that begins at `head` available.
    pub fn available(&mut self, head: u16) {
        let ring = self.base + 0x1000;
        self.memory.write(ring + 4 + 2 * u64::from(self.available % self.size), &head.to_le_bytes());
        self.available += 1;
        self.memory.write(ring + 2, &self.available.to_le_bytes());
    }

    /// What was used since the last call: head and length.
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let ring = self.base + 0x2000;
        let mut out = Vec::new();
        while self.seen != self.word(ring + 2) {
            let at = ring + 4 + 8 * u64::from(self.seen % self.size);
            let mut bytes = [0; 8];
            self.memory.read(at, &mut bytes);
            let [a, b, c, d, e, f, g, h] = bytes;
            out.push((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])));
            self.seen += 1;
        }
        out
    }
}

struct Bench {
    device: Arc<VirtioPci>,
    bus: Arc<Bus>,
    memory: Arc<FakeMemory>,
    disk: Arc<FakeDisk>,
    work: FakeWork,
    irq: Arc<FakeIrq>,
    msi: Arc<FakeMsi>,
    driver: Driver,
}

const MEMORY: u64 = 0xe000_0000;
const STATUS: u64 = MEMORY + 0x14;
const HEADER_AT: u64 = 0x8000;
const DATA_AT: u64 = 0x9000;
const STATUS_AT: u64 = 0xa000;

impl Bench {
    /// A device with registers mapped, not yet set up by a driver.
    fn new() -> Self {
        let (bus, memory) = (Arc::new(Bus::new()), FakeMemory::new(0x2_0000));
        let (disk, work) = (FakeDisk::new(100, memory.clone()), FakeWork::default());
        let (irq, msi) = (FakeIrq::new(), Arc::new(FakeMsi::default()));
        let parts = VirtioBlk::parts(disk.clone(), "SERIAL-1", 1, memory.clone(), &work);
        let device = VirtioPci::new(&bus, parts, irq.line(11), msi.clone()).unwrap();
        device.config_write(0x10, 4, 0xc000);
        device.config_write(0x14, 4, 0xd000_0000);
        device.config_write(0x20, 4, MEMORY as u32);
        device.config_write(4, 2, 7);
        let driver = Driver::new(memory.clone(), 0x1000, 8);
        Self { device, bus, memory, disk, work, irq, msi, driver }
    }

    /// As a modern driver sets it up.
    fn modern(features: u64) -> Self {
        let b = Self::new();
        let set = |at: u64, size, value| b.bus.mmio_write(MEMORY + at, size, value);
        set(0x14, 1, 3);
        let features = features | common::VERSION_1;
        for select in 0..2 {
            set(0x08, 4, select);
            set(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        set(0x14, 1, 0xb);
        assert_eq!(b.bus.mmio_read(STATUS, 1), 0xb, "the features were taken");
        set(0x16, 2, 0);
        set(0x18, 2, 8);
        for (at, value) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            set(at, 8, value);
        }
        set(0x1c, 2, 1);
        set(0x14, 1, 0xf);
        b.run();
        b
    }

    fn run(&self) {
        self.work.run();
        self.disk.run();
    }

    /// Makes a request with `data` (or room) of `len` bytes; its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> u8 {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write(HEADER_AT, &header);
        self.memory.write(STATUS_AT, &[0xee]);
        let mut pieces = vec![(HEADER_AT, 16, false)];
        if !data.is_empty() {
            self.memory.write(DATA_AT, data);
            pieces.push((DATA_AT, data.len() as u32, false));
        }
        if room > 0 {
            pieces.push((DATA_AT, room, true));
        }
        pieces.push((STATUS_AT, 1, true));
        self.driver.add(&pieces);
        self.bus.mmio_write(MEMORY + 0x3000, 2, 0);
        self.run();
        let mut status = [0];
        self.memory.read(STATUS_AT, &mut status);
        status[0]
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(DATA_AT, &mut bytes);
        bytes
    }
}

#[test]
fn a_modern_driver_reads_and_writes() {
    let mut b = Bench::modern(feature::FLUSH);
    assert_eq!(b.request(kind::IN, 7, &[], 1024), OK);
    assert_eq!(b.data(1024), [[7; 512], [8; 512]].concat());
    assert_eq!(b.driver.used(), [(0, 1025)]);
    assert!(b.irq.level(11));
    assert_eq!(b.bus.mmio_read(MEMORY + 0x1000, 1), 1);
    assert!(!b.irq.level(11), "reading the interrupt status clears it");
    assert_eq!(b.request(kind::OUT, 3, &[0x55; 512], 0), OK);
    assert_eq!(locked(&b.disk.bytes)[3 * 512..4 * 512], [0x55; 512]);
    assert_eq!(b.request(kind::FLUSH, 0, &[], 0), OK);
    assert_eq!(b.request(kind::GET_ID, 0, &[], 20), OK);
    assert_eq!(&b.data(9), b"SERIAL-1\0");
    let log = locked(&b.disk.log);
    assert!(matches!(log[1..], [DiskRequest::Write { .. }, DiskRequest::Flush]), "no flush of its own: {log:?}");
}

#[test]
fn without_a_cache_writes_are_flushed() {
    let mut b = Bench::modern(0);
    assert_eq!(b.request(kind::OUT, 3, &[0x55; 512], 0), OK);
    assert!(matches!(locked(&b.disk.log)[..], [DiskRequest::Write { .. }, DiskRequest::Flush]));
    let mut b = Bench::modern(feature::FLUSH | feature::CONFIG_WCE);
    b.bus.mmio_write(MEMORY + 0x2000 + 32, 1, 0);
    assert_eq!(b.bus.mmio_read(MEMORY + 0x2000 + 32, 1), 0);
    assert_eq!(b.request(kind::OUT, 3, &[0x55; 512], 0), OK);
    assert_eq!(locked(&b.disk.log).len(), 2);
}

#[test]
fn wrong_requests_get_errors() {
    let mut b = Bench::modern(feature::FLUSH);
    assert_eq!(b.request(kind::IN, 99, &[], 1024), IO_ERROR, "beyond the end");
    assert_eq!(b.request(kind::IN, u64::MAX, &[], 512), IO_ERROR);
    assert_eq!(b.request(kind::IN, 0, &[], 100), IO_ERROR, "no whole sector");
    assert_eq!(b.request(kind::IN, 0, &[], 0), IO_ERROR, "nothing");
    assert_eq!(b.request(77, 0, &[], 0), UNSUPPORTED);
    *locked(&b.disk.failure) = Some(DiskError::Host);
    assert_eq!(b.request(kind::IN, 0, &[], 512), IO_ERROR);
    // A header that is too short, and no room for the status: the device stops.
    for pieces in [&[(HEADER_AT, 15, false), (STATUS_AT, 1, true)][..], &[(HEADER_AT, 16, false)]] {
        let mut b = Bench::modern(feature::FLUSH);
        b.driver.add(pieces);
        b.bus.mmio_write(MEMORY + 0x3000, 2, 0);
        b.run();
        assert_eq!(b.bus.mmio_read(STATUS, 1), 0x4f);
        assert!(b.irq.level(11), "the driver hears of it");
        b.bus.mmio_write(STATUS, 1, 0);
        assert_eq!(b.bus.mmio_read(STATUS, 1), 0);
    }
}

#[test]
fn discards_and_zeroes() {
    let mut b = Bench::modern(feature::FLUSH);
    let entry = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    assert_eq!(b.request(kind::DISCARD, 0, &[entry(1, 1, 0), entry(4, 2, 0)].concat(), 0), OK);
    assert_eq!(b.request(kind::WRITE_ZEROES, 0, &entry(8, 1, 1), 0), OK);
    let log = locked(&b.disk.log).clone();
    assert_eq!(log[0], DiskRequest::Discard { offset: 512, len: 512 });
    assert_eq!(log[1], DiskRequest::Discard { offset: 2048, len: 1024 });
    assert_eq!(log[2], DiskRequest::WriteZeroes { offset: 4096, len: 512, unmap: true });
    assert_eq!(b.request(kind::DISCARD, 0, &entry(1, 1, 1), 0), UNSUPPORTED);
    assert_eq!(b.request(kind::DISCARD, 0, &entry(99, 2, 0), 0), IO_ERROR);
    assert_eq!(b.request(kind::DISCARD, 0, &[0; 15], 0), IO_ERROR);
    assert_eq!(locked(&b.disk.log).len(), 3);
}

#[test]
fn messages_in_the_place_of_intx() {
    let mut b = Bench::modern(feature::FLUSH);
    b.device.config_write(0x9a, 2, 0x8000);
    b.bus.mmio_write(0xd000_0010, 8, 0xfee0_2000);
    b.bus.mmio_write(0xd000_0018, 8, 0x45);
    b.bus.mmio_write(MEMORY + 0x1a, 2, 1);
    assert_eq!(b.bus.mmio_read(MEMORY + 0x1a, 2), 1);
    b.bus.mmio_write(MEMORY + 0x10, 2, 7);
    assert_eq!(b.bus.mmio_read(MEMORY + 0x10, 2), 0xffff, "there is no vector 7");
    b.request(kind::IN, 0, &[], 512);
    assert_eq!((locked(&b.msi.0).clone(), b.irq.level(11)), (vec![(0xfee0_2000, 0x45)], false));
}

#[test]
fn a_legacy_driver_uses_ports() {
    let b = Bench::new();
    let (get, set) =
        (|at: u16, size| b.bus.pio_read(0xc000 + at, size), |at: u16, size, v| b.bus.pio_write(0xc000 + at, size, v));
    set(18, 1, 3);
    assert_ne!(get(0, 4) as u64 & feature::FLUSH, 0);
    set(4, 4, feature::FLUSH as u32);
    assert_eq!((get(12, 2), get(20, 4)), (256, 100), "queue size and capacity");
    set(8, 4, 4);
    set(18, 1, 7);
    let memory = &b.memory;
    // A flush: descriptors at 0x4000, available at 0x5000, used at 0x6000.
    memory.write(0x4000, &[&HEADER_AT.to_le_bytes()[..], &[16, 0, 0, 0, 1, 0, 1, 0]].concat());
    memory.write(0x4010, &[&STATUS_AT.to_le_bytes()[..], &[1, 0, 0, 0, 2, 0, 0, 0]].concat());
    memory.write(HEADER_AT, &[4, 0, 0, 0]);
    memory.write(0x5000, &[0, 0, 1, 0, 0, 0]);
    set(16, 2, 0);
    b.run();
    assert_eq!((get(19, 1), get(19, 1)), (1, 0));
    let mut used = [0; 4];
    memory.read(0x6000, &mut used);
    assert_eq!(used[2..], [1, 0]);
    set(18, 1, 0);
    assert_eq!((get(18, 1), get(8, 4)), (0, 0));
}

#[test]
fn a_reset_waits_for_the_disk() {
    let mut b = Bench::modern(feature::FLUSH);
    b.memory.write(HEADER_AT, &[0; 16]);
    b.driver.add(&[(HEADER_AT, 16, false), (DATA_AT, 512, true), (STATUS_AT, 1, true)]);
    b.bus.mmio_write(MEMORY + 0x3000, 2, 0);
    b.work.run();
    b.bus.mmio_write(STATUS, 1, 0);
    assert_eq!(b.bus.mmio_read(STATUS, 1), 0xf, "not over yet");
    b.disk.run();
    assert_eq!(b.bus.mmio_read(STATUS, 1), 0);
    assert!(b.driver.used().is_empty());
}

#[test]
fn the_window_in_configuration_space() {
    let b = Bench::new();
    b.device.config_write(0x88, 1, 4);
    b.device.config_write(0x8c, 4, 0x14);
    b.device.config_write(0x90, 4, 1);
    b.device.config_write(0x94, 1, 1);
    assert_eq!((b.device.config_read(0x94, 1), b.bus.mmio_read(STATUS, 1)), (1, 1));
    b.device.config_write(0x8c, 4, u32::MAX);
    b.device.config_write(0x90, 4, 3);
    b.device.config_read(0x94, 4);
}

#[test]
fn state_moves_with_a_request_under_way() {
    let mut a = Bench::modern(feature::FLUSH);
    assert_eq!(a.request(kind::IN, 5, &[], 512), OK);
    a.driver.add(&[(HEADER_AT, 16, false), (DATA_AT, 512, true), (STATUS_AT, 1, true)]);
    a.bus.mmio_write(MEMORY + 0x3000, 2, 0);
    a.work.run();
    let b = Bench::new();
    let mut all = vec![0; 0x2_0000];
    a.memory.read(0, &mut all);
    b.memory.write(0, &all);
    b.memory.write(DATA_AT, &[0; 512]);
    b.device.restore(&a.device.save()).unwrap();
    b.disk.run();
    assert_eq!(b.data(512), [5; 512]);
    let mut used = Driver { seen: 1, ..Driver::new(b.memory.clone(), 0x1000, 8) };
    assert_eq!(used.used(), [(3, 513)]);
    let c = Bench::new();
    moves_to(&*b.device, &*c.device);
    c.device.reset();
    let (mut reset, mut new) = (c.device.save(), VirtioPci::save(&fresh()));
    (reset["device"]["next"], new["device"]["next"]) = (0.into(), 0.into());
    assert_eq!(reset, new);
}

fn fresh() -> Arc<VirtioPci> {
    let memory = FakeMemory::new(16);
    let disk = FakeDisk::new(100, memory.clone());
    let parts = VirtioBlk::parts(disk, "SERIAL-1", 1, memory, &FakeWork::default());
    VirtioPci::new(&Arc::new(Bus::new()), parts, FakeIrq::new().line(1), Arc::new(FakeMsi::default())).unwrap()
}

#[test]
fn random_accesses_and_rings() {
    for seed in 1..6 {
        let b = if seed % 2 == 0 {
            Bench::new()
        } else {
            Bench::modern(feature::FLUSH | feature::CONFIG_WCE | common::INDIRECT | common::EVENT_IDX)
        };
        let mut random = Random::new(seed);
        for _ in 0..6000 {
            let size = 1u8 << random.below(3);
            match random.below(8) {
                0 => b.bus.mmio_write(MEMORY + random.below(0x40), size, random.next()),
                1 => b.bus.mmio_write(MEMORY + 0x2000 + random.below(64), size, random.next()),
                2 => b.bus.mmio_write(MEMORY + 0x3000, 2, random.below(3)),
                3 => b.bus.pio_write(0xc000 + random.below(128) as u16, size, random.next() as u32),
                4 => _ = b.bus.mmio_read(MEMORY + random.below(0x4000), size),
                5 => b.bus.mmio_write(0xd000_0000 + random.below(64), size, random.next()),
                6 => {
                    let bytes = [random.next() as u8 & 7, random.next() as u8 & 3];
                    b.memory.write(0x1000 + random.below(0x2100), &bytes);
                }
                _ => b.run(),
            }
        }
        same_after_restore(&*b.device);
    }
}
