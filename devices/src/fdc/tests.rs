//! A controller as firmware and drivers use it.

use super::*;
use crate::fakes::{FakeDisk, FakeIrq, FakeMemory, FakeTime, Random, fuzz, moves_to};
use crate::isa_dma::IsaDma;
use crate::services::{DiskError, Dma};

struct Bench {
    fdc: Arc<Fdc>,
    dma: Arc<IsaDma>,
    ports: Registers,
    input: Registers,
    memory: Arc<FakeMemory>,
    disk: Arc<FakeDisk>,
    irq: Arc<FakeIrq>,
}

const AT: u64 = 0x1_0000;

impl Bench {
    /// A diskette of `sectors` sectors in the first drive; the second is empty.
    fn with(sectors: usize) -> Self {
        let (memory, irq) = (FakeMemory::new(0x3_0000), FakeIrq::new());
        let disk = FakeDisk::new(sectors, memory.clone());
        let dma = IsaDma::new(memory.clone());
        let medium: Arc<dyn Disk> = disk.clone();
        let drives = [(DriveType::Small1440, Some(medium)), (DriveType::Small2880, None)];
        let drives = drives.map(|(drive, medium)| Some(DriveConfig { drive, medium }));
        let fdc = Fdc::new(drives, dma.channel(2), irq.line(6));
        let (ports, input) = (fdc.ports(), fdc.input_port());
        Self { fdc, dma, ports, input, memory, disk, irq }
    }

    /// After a reset, with the motor on and the interrupts of the reset sensed.
    fn new() -> Self {
        let b = Self::with(2880);
        b.ports.write(2, 1, 0);
        assert_eq!(b.ports.read(4, 1), 0);
        b.ports.write(2, 1, 0x1c);
        assert!(b.irq.level(6));
        for drive in 0..4 {
            assert_eq!(b.command(&[8]), [0xc0 | drive, 0]);
        }
        assert_eq!(b.command(&[8]), [0x80], "there is no more");
        b.input.write(0, 1, 0);
        b.command(&[3, 0xaf, 2]);
        b
    }

    /// Sends a command; its results, unless it goes on.
    fn command(&self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            assert_eq!(self.ports.read(4, 1) & 0xc0, 0x80, "ready for {bytes:x?}");
            self.ports.write(5, 1, (*byte).into());
        }
        self.results()
    }

    fn results(&self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.ports.read(4, 1) & 0xf0 == 0xd0 {
            out.push(self.ports.read(5, 1) as u8);
        }
        out
    }

    /// Sets channel 2 up for `len` bytes; `mode` 0x46 writes memory, 0x4a reads it.
    fn channel(&self, mode: u64, len: usize) {
        let ports = self.dma.first_ports();
        self.dma.second_ports().write(0x14, 1, 0);
        ports.write(0xc, 1, 0);
        for (register, value) in [(4, AT), (5, len as u64 - 1)] {
            ports.write(register, 1, value & 0xff);
            ports.write(register, 1, value >> 8 & 0xff);
        }
        self.dma.page_ports().write(0, 1, AT >> 16);
        ports.write(0xb, 1, mode);
        ports.write(0xa, 1, 2);
    }

    fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(AT, &mut bytes);
        bytes
    }
}

#[test]
fn sectors_are_read_over_both_sides() {
    let b = Bench::new();
    b.channel(0x46, 3 * 512);
    // From the last but one sector of the first side on.
    assert!(b.command(&[0xe6, 0, 0, 0, 17, 2, 18, 0x1b, 0xff]).is_empty());
    assert_eq!(b.ports.read(4, 1) & 0xb0, 0x10, "busy");
    b.disk.run();
    assert!(b.irq.level(6));
    assert_eq!(b.results(), [4, 0, 0, 0, 1, 2, 2]);
    assert!(!b.irq.level(6));
    assert_eq!(b.bytes(3 * 512), [[16; 512], [17; 512], [18; 512]].concat());
    // Without the count's running out the track's end is an error.
    b.channel(0x46, 3 * 512);
    b.command(&[0x46, 0, 0, 0, 18, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!(b.results(), [0x40, 0x80, 0, 1, 0, 1, 2]);
}

#[test]
fn sectors_are_written_and_verified() {
    let b = Bench::new();
    b.channel(0x4a, 700);
    b.memory.write(AT, &[0x5a; 1024]);
    b.command(&[0xc5, 0, 0, 0, 5, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!(b.results(), [0, 0, 0, 0, 0, 7, 2]);
    let disk = locked(&b.disk.bytes)[4 * 512..7 * 512].to_vec();
    assert_eq!(disk, [[0x5a; 700].as_slice(), &[0; 324], &[6; 512]].concat(), "filled up with zeros");
    b.command(&[0xd6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!(b.results(), [0, 0, 0, 1, 0, 1, 2]);
    *locked(&b.disk.failure) = Some(DiskError::Host);
    b.channel(0x46, 512);
    b.command(&[0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!(b.results()[..3], [0x40, 0x20, 0x20]);
}

#[test]
fn a_track_is_formatted() {
    let b = Bench::new();
    b.command(&[0x0f, 0, 3]);
    assert_eq!(b.command(&[8]), [0x20, 3]);
    let list: Vec<u8> = (1..=18).flat_map(|sector| [3, 1, sector, 2]).collect();
    b.memory.write(AT, &list);
    b.channel(0x4a, list.len());
    b.command(&[0x4d, 4, 2, 18, 0x54, 0xf6]);
    b.disk.run();
    assert_eq!(b.results()[..3], [4, 0, 0]);
    let disk = locked(&b.disk.bytes);
    let track = 3 * 36 * 512 + 18 * 512;
    assert_eq!((disk[track - 1], disk[track + 18 * 512]), (125, 144));
    assert!(disk[track..track + 18 * 512].iter().all(|byte| *byte == 0xf6));
}

#[test]
fn without_dma_the_host_moves_bytes() {
    let b = Bench::new();
    b.command(&[3, 0xaf, 3]);
    assert!(b.command(&[0x46, 0, 0, 0, 2, 2, 2, 0x1b, 0xff]).is_empty());
    b.disk.run();
    assert_eq!(b.ports.read(4, 1), 0xf0);
    let bytes: Vec<u64> = (0..512).map(|_| b.ports.read(5, 1)).collect();
    assert_eq!(bytes, [1; 512]);
    assert_eq!(b.results()[..2], [0x40, 0x80]);
    b.command(&[0x45, 0, 0, 0, 2, 2, 2, 0x1b, 0xff]);
    assert_eq!(b.ports.read(4, 1), 0xb0);
    (0..512).for_each(|_| b.ports.write(5, 1, 0x77));
    b.disk.run();
    assert_eq!(b.results()[..2], [0x40, 0x80]);
    assert_eq!(locked(&b.disk.bytes)[512..1024], [0x77; 512]);
}

#[test]
fn what_is_not_there_is_not_found() {
    let b = Bench::new();
    let first = |bytes: &[u8]| b.command(bytes)[..3].to_vec();
    assert_eq!(first(&[0x46, 1, 0, 0, 1, 2, 18, 0x1b, 0xff]), [0x41, 1, 0], "no medium");
    assert_eq!(first(&[0x46, 0, 5, 0, 1, 2, 18, 0x1b, 0xff]), [0x40, 4, 0x10], "another track");
    assert_eq!(first(&[0x46, 0, 0, 0, 19, 2, 18, 0x1b, 0xff]), [0x40, 4, 0], "no such sector");
    b.input.write(0, 1, 2);
    assert_eq!(first(&[0x4a, 0]), [0x40, 1, 0], "another rate");
    b.input.write(0, 1, 0);
    assert_eq!(b.command(&[0x4a, 4]), [4, 0, 0, 0, 1, 1, 2]);
    assert_eq!(b.command(&[0x4a, 4])[5], 2, "the next sector");
    assert_eq!(b.command(&[0x1f]), [0x80]);
    assert!(b.command(&[0x13, 0, 0x57, 0]).is_empty(), "implied seeks");
    b.channel(0x46, 512);
    b.command(&[0x46, 0, 5, 0, 1, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!((b.results()[0], b.bytes(1)[0]), (0, (5 * 36) as u8));
}

#[test]
fn drivers_learn_what_the_controller_is() {
    let b = Bench::new();
    assert_eq!((b.command(&[0x10]), b.command(&[0x18])), (vec![0x90], vec![0x41]));
    b.command(&[0x13, 0, 0x1a, 5]);
    assert_eq!(b.command(&[0x94]), [0x10]);
    b.command(&[0x12, 0x84]);
    b.ports.write(4, 1, 0x80);
    (0..4).for_each(|_| _ = b.command(&[8]));
    assert_eq!(b.command(&[0x0e]), [0, 0, 0, 0, 0xaf, 2, 0, 0x80, 0x1a, 5], "kept over a reset");
    assert_eq!(b.command(&[0x14]), [0]);
    assert_eq!(b.command(&[4, 0]), [0x38]);
    let saved = b.command(&[0x2e]);
    assert_eq!(saved.len(), 16);
    assert!(b.command(&[[0x4e].as_slice(), &saved].concat()).is_empty());
    assert_eq!(b.command(&[0x2e]), saved);
    assert_eq!(b.command(&[0x8e, 0x10, 0xc0]), [0; 5]);
}

#[test]
fn a_changed_medium_is_seen_until_the_head_moves() {
    let b = Bench::new();
    assert_eq!(b.input.read(0, 1), 0x80, "after power-on");
    b.command(&[0x0f, 0, 1]);
    b.command(&[8]);
    b.command(&[7, 0]);
    assert_eq!((b.command(&[8]), b.input.read(0, 1)), (vec![0x20, 0], 0));
    let slot = b.fdc.medium_drive(0);
    b.channel(0x46, 512);
    b.command(&[0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]);
    slot.change(None);
    assert_eq!(b.results()[..2], [0x40, 1], "the read ends");
    b.disk.run();
    assert_eq!(b.ports.read(4, 1), 0x80);
    b.command(&[0x0f, 0, 1]);
    b.command(&[8]);
    assert_eq!(b.input.read(0, 1), 0x80, "nothing is in the drive");
    slot.change(Some(FakeDisk::new(1440, b.memory.clone())));
    assert_eq!(b.input.read(0, 1), 0x80);
    b.command(&[7, 0]);
    assert_eq!(b.input.read(0, 1), 0);
    assert_eq!(b.command(&[0x4a, 0])[1], 1, "720 KB have another rate");
    b.input.write(0, 1, 2);
    b.command(&[8]);
    assert_eq!(b.command(&[0x4a, 0])[1], 0);
}

#[test]
fn a_channel_that_opens_late_is_waited_for() {
    let b = Bench::new();
    b.command(&[0x46, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]);
    b.disk.run();
    assert_eq!(b.ports.read(4, 1) & 0x90, 0x10);
    b.channel(0x46, 512);
    b.disk.run();
    assert_eq!(b.results()[..2], [0, 0]);
}

#[test]
fn state_moves_with_a_read_under_way() {
    let a = Bench::new();
    a.channel(0x46, 1024);
    a.command(&[0x46, 0, 0, 0, 3, 2, 18, 0x1b, 0xff]);
    let b = Bench::with(2880);
    b.dma.restore(&a.dma.save()).unwrap();
    b.fdc.restore(&a.fdc.save()).unwrap();
    b.disk.run();
    assert!(b.irq.level(6));
    assert_eq!(b.results(), [0, 0, 0, 0, 0, 5, 2]);
    assert_eq!(b.bytes(1024), [[2; 512], [3; 512]].concat());
    moves_to(&*b.fdc, &*Bench::with(2880).fdc);
    let token = |fdc: &Fdc| {
        let mut state = fdc.save();
        state["token"] = 0.into();
        state
    };
    b.fdc.reset();
    assert_eq!(token(&b.fdc), token(&Bench::with(2880).fdc));
}

#[test]
fn random_accesses() {
    for seed in 71..74 {
        let b = Bench::new();
        let (ports, input) = (&*b.ports, &*b.input);
        let (first, pages) = (b.dma.first_ports(), b.dma.page_ports());
        fuzz(&*b.fdc, &[(ports, 6), (input, 1), (&*first, 16), (&*pages, 15)], &FakeTime::new(), seed);
        let mut random = Random::new(seed);
        let codes = [0xe6u8, 0xc5, 0x4d, 0x0f, 0x07, 0x08, 0x4a, 0xd6, 0x13, 0x12, 0x62, 0x45, 0x8e, 0x4e];
        for _ in 0..3000 {
            b.ports.write(2, 1, 0x1c);
            b.channel([0x46, 0x4a][random.below(2) as usize], 1 + random.below(4000) as usize);
            b.ports.write(5, 1, codes[random.below(codes.len() as u64) as usize].into());
            for _ in 0..random.below(20) {
                b.ports.write(5, 1, random.below(4) * random.below(6));
            }
            match random.below(6) {
                0 => b.ports.write(2, 1, 0x18),
                1 => (0..600).for_each(|_| b.ports.write(5, 1, 1)),
                2 => b.fdc.medium_drive(0).change((random.below(2) == 0).then(|| b.disk.clone() as Arc<dyn Disk>)),
                _ => b.disk.run(),
            }
            b.results();
        }
        crate::fakes::same_after_restore(&*b.fdc);
    }
}
