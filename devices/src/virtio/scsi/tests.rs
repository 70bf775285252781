//! A SCSI host as drivers use it.

use super::command::response;
use super::control::Event;
use super::*;
use crate::bus::Bus;
use crate::fakes::{FakeDisk, FakeIrq, FakeMemory, FakeMsi, FakeWork, Random, moves_to, same_after_restore};
use crate::pci::PciFunction;
use crate::scsi::{Carrier, Identity, Sense};
use crate::services::DiskError;
use crate::virtio::blk::tests::Driver;
use crate::virtio::feature as common;
use crate::virtio::pci::VirtioPci;

const REGISTERS: u64 = 0xe000_0000;
const CDB_AT: u64 = 0x1_0000;
const ANSWER_AT: u64 = 0x1_1000;
const DATA_AT: u64 = 0x1_2000;
const EVENT_AT: u64 = 0x1_8000;
const DISK: Place = (3, 0);
const CD: Place = (3, 300);

struct Bench {
    device: Arc<VirtioPci>,
    host: Arc<VirtioScsi>,
    bus: Arc<Bus>,
    memory: Arc<FakeMemory>,
    disk: Arc<FakeDisk>,
    work: FakeWork,
    /// Control, event and request queue.
    drivers: [Driver; 3],
}

fn unit(cd: bool, disk: Option<Arc<dyn Disk>>) -> Unit {
    let identity = Identity {
        cd,
        carrier: Carrier::Scsi,
        vendor: "BROLGA".into(),
        product: "X".into(),
        revision: "1".into(),
        serial: "S".into(),
        id: String::new(),
        wwn: None,
    };
    Unit::new(identity, disk)
}

/// What the driver sees of a command's end.
#[derive(Debug, PartialEq)]
struct End {
    response: u8,
    status: u8,
    sense: (u8, u8),
    residual: u32,
}

const GOOD: End = End { response: 0, status: 0, sense: (0, 0), residual: 0 };

fn check(sense: Sense) -> (u8, (u8, u8)) {
    (2, (sense.key, sense.code.0))
}

impl Bench {
    fn new() -> Self {
        let (bus, memory) = (Arc::new(Bus::new()), FakeMemory::new(0x2_0000));
        let (disk, work) = (FakeDisk::new(100, memory.clone()), FakeWork::default());
        let host = VirtioScsi::new(1, memory.clone(), &work);
        assert!(host.plug(DISK, unit(false, Some(disk.clone()))) && host.plug(CD, unit(true, Some(disk.clone()))));
        assert!(!host.plug(CD, unit(true, None)), "the place is taken");
        let irq = FakeIrq::new();
        let device = VirtioPci::new(&bus, host.parts(), irq.line(11), Arc::new(FakeMsi::default())).unwrap();
        device.config_write(0x20, 4, REGISTERS as u32);
        device.config_write(4, 2, 7);
        let drivers = [0, 1, 2].map(|i| Driver::new(memory.clone(), 0x1000 + 0x4000 * i, 8));
        Self { device, host, bus, memory, disk, work, drivers }
    }

    fn set(&self, at: u64, size: u8, value: u64) {
        self.bus.mmio_write(REGISTERS + at, size, value);
    }

    /// As a modern driver sets it up. Units have said that power came.
    fn ready() -> Self {
        let mut b = Self::new();
        b.set(0x14, 1, 3);
        let features = feature::HOTPLUG | feature::CHANGE | common::VERSION_1 | common::INDIRECT;
        for select in 0..2 {
            b.set(0x08, 4, select);
            b.set(0x0c, 4, features >> (32 * select) & 0xffff_ffff);
        }
        b.set(0x14, 1, 0xb);
        for queue in 0..3 {
            b.set(0x16, 2, queue);
            b.set(0x18, 2, 8);
            for (at, value) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
                b.set(at, 8, value + 0x4000 * queue);
            }
            b.set(0x1c, 2, 1);
        }
        b.set(0x14, 1, 0xf);
        b.run();
        for place in [DISK, CD] {
            assert_eq!(b.command(place, &[0; 6], &[], 0).status, 2);
        }
        b
    }

    fn run(&self) {
        self.work.run();
        self.disk.run();
    }

    /// Puts a command in its queue.
    fn queue(&mut self, place: Place, tag: u64, cdb: &[u8], data: &[u8], room: u32) {
        let mut request = super::command::name(place).to_vec();
        request.extend(tag.to_le_bytes());
        request.extend([0; 3]);
        request.extend(cdb);
        request.resize(51, 0);
        self.memory.write(CDB_AT, &request);
        self.memory.write(ANSWER_AT, &[0xee; 108]);
        let mut pieces = vec![(CDB_AT, 51, false)];
        if !data.is_empty() {
            self.memory.write(DATA_AT, data);
            pieces.push((DATA_AT, data.len() as u32, false));
        }
        pieces.push((ANSWER_AT, 108, true));
        if room > 0 {
            pieces.push((DATA_AT, room, true));
        }
        self.drivers[2].add(&pieces);
        self.set(0x3008, 2, 2);
        self.work.run();
    }

    fn end(&self) -> End {
        let mut answer = [0; 32];
        self.memory.read(ANSWER_AT, &mut answer);
        let word = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        let sense = if word(0) == 0 { (0, 0) } else { (answer[14], answer[24]) };
        End { response: answer[11], status: answer[10], sense, residual: word(4) }
    }

    fn command(&mut self, place: Place, cdb: &[u8], data: &[u8], room: u32) -> End {
        self.queue(place, 1, cdb, data, room);
        self.disk.run();
        self.end()
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(DATA_AT, &mut bytes);
        bytes
    }

    /// A management function; `None`: it has not ended.
    fn manage(&mut self, function: u32, place: Place, tag: u64) {
        let mut request = [0u32.to_le_bytes(), function.to_le_bytes()].concat();
        request.extend(super::command::name(place));
        request.extend(tag.to_le_bytes());
        self.memory.write(0x1_4000, &request);
        self.memory.write(0x1_5000, &[0xee]);
        self.drivers[0].add(&[(0x1_4000, 24, false), (0x1_5000, 1, true)]);
        self.set(0x3000, 2, 0);
        self.work.run();
    }

    fn managed(&self) -> u8 {
        let mut byte = [0];
        self.memory.read(0x1_5000, &mut byte);
        byte[0]
    }

    fn event(&self) -> (u32, Vec<u8>, u32) {
        let mut bytes = [0; 16];
        self.memory.read(EVENT_AT, &mut bytes);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (word(0), bytes[4..12].to_vec(), word(12))
    }
}

#[test]
fn the_driver_finds_units_and_reads_and_writes() {
    let mut b = Bench::ready();
    assert_eq!(b.command(DISK, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[], 64), End { residual: 40, ..GOOD });
    assert_eq!(b.data(24), [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 44, 0, 0, 0, 0, 0, 0]);
    assert_eq!(b.command(DISK, &[0x12, 0, 0, 0, 36, 0], &[], 36), GOOD);
    assert_eq!(b.data(1), [0]);
    assert_eq!(b.command((3, 1), &[0x12, 0, 0, 0, 36, 0], &[], 36), GOOD);
    assert_eq!(b.data(1), [0x7f], "no unit here");
    let end = b.command((3, 1), &[0; 6], &[], 0);
    assert_eq!((end.status, end.sense), check(Sense::NO_UNIT));
    assert_eq!(b.command((4, 0), &[0; 6], &[], 0).response, response::BAD_TARGET);
    assert_eq!(b.command(DISK, &[0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], &[], 1024), GOOD);
    assert_eq!(b.data(1024), [[7; 512], [8; 512]].concat());
    assert_eq!(b.command(DISK, &[0x2a, 8, 0, 0, 0, 3, 0, 0, 1, 0], &[0x55; 512], 0), GOOD);
    assert_eq!(locked(&b.disk.bytes)[3 * 512..4 * 512], [0x55; 512]);
    assert!(matches!(locked(&b.disk.log).last(), Some(DiskRequest::Flush)), "it was forced");
    let cd = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];
    assert_eq!(b.command(CD, &cd, &[], 2048), GOOD);
    assert_eq!(b.data(4), [4; 4]);
    assert_eq!(b.command(CD, &cd, &[], 2047).response, response::OVERRUN);
    assert_eq!(b.drivers[2].used().last().unwrap().1, 108);
}

#[test]
fn commands_of_several_steps() {
    let mut b = Bench::ready();
    let same = [0x41, 0, 0, 0, 0, 10, 0, 0, 3, 0];
    assert_eq!(b.command(DISK, &same, &[9; 512], 0), GOOD);
    assert_eq!(locked(&b.disk.bytes)[5119..5122], [9, 9, 9]);
    let verify = [0x2f, 2, 0, 0, 0, 10, 0, 0, 1, 0];
    assert_eq!(b.command(DISK, &verify, &[9; 512], 0), GOOD);
    let end = b.command(DISK, &verify, &[8; 512], 0);
    assert_eq!((end.status, end.sense), check(Sense::DIFFERENT));
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for first in [10u64, 12] {
        list.extend(first.to_be_bytes());
        list.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    }
    assert_eq!(b.command(DISK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list, 0), GOOD);
    assert_eq!(locked(&b.disk.bytes)[10 * 512..13 * 512], [[0; 512], [9; 512], [0; 512]].concat());
    assert_eq!(b.command(DISK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &list[..8], 0).response, response::OVERRUN);
    assert_eq!(b.command(DISK, &[0x2e, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[3; 512], 0), GOOD);
    *locked(&b.disk.failure) = Some(DiskError::Host);
    let end = b.command(DISK, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], &[], 512);
    assert_eq!((end.status, end.sense, end.residual), (2, (3, 0x11), 512));
    *locked(&b.disk.failure) = None;
    assert_eq!(b.command(DISK, &[3, 0, 0, 0, 18, 0], &[], 18), GOOD);
    assert_eq!(b.data(3)[2], 0, "the sense was told with the failure");
}

#[test]
fn tasks_are_aborted_when_the_disk_lets_go_of_them() {
    let mut b = Bench::ready();
    b.queue(DISK, 77, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], &[], 512);
    b.manage(6, DISK, 77);
    assert_eq!(b.managed(), response::FUNCTION_SUCCEEDED, "it is there");
    b.manage(0, DISK, 78);
    assert_eq!(b.managed(), response::OK, "no such task");
    b.manage(0, DISK, 77);
    assert_eq!(b.managed(), 0xee, "the disk still has it");
    b.disk.run();
    assert_eq!((b.managed(), b.end().response), (response::OK, response::ABORTED));
    b.queue(DISK, 5, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[1; 512], 0);
    b.manage(5, DISK, 0);
    b.disk.run();
    assert_eq!((b.managed(), b.end().response), (response::OK, response::RESET));
    let end = b.command(DISK, &[0; 6], &[], 0);
    assert_eq!((end.status, end.sense), check(Sense::POWERED_ON));
    b.manage(5, (3, 7), 0);
    assert_eq!(b.managed(), response::INCORRECT_LUN);
    b.manage(5, (9, 0), 0);
    assert_eq!(b.managed(), response::BAD_TARGET);
    b.manage(2, DISK, 0);
    assert_eq!(b.managed(), response::FUNCTION_REJECTED);
}

#[test]
fn events_come_when_there_is_room() {
    let mut b = Bench::ready();
    b.drivers[1].add(&[(EVENT_AT, 16, true)]);
    assert!(b.host.plug((9, 2), unit(false, Some(b.disk.clone()))));
    assert_eq!(b.event(), (1, vec![1, 9, 0, 2, 0, 0, 0, 0], 1));
    assert_eq!(b.drivers[1].used(), [(0, 16)]);
    b.host.report(Event::Changed(DISK, (0x2a, 9)));
    assert!(b.drivers[1].used().is_empty());
    b.drivers[1].add(&[(EVENT_AT, 16, true)]);
    b.set(0x3004, 2, 1);
    b.work.run();
    assert_eq!(b.event().0, 1 << 31, "one was missed");
    b.drivers[1].add(&[(EVENT_AT, 16, true)]);
    assert!(b.host.unplug((9, 2)) && !b.host.unplug((9, 2)));
    assert_eq!(b.event(), (1, vec![1, 9, 0, 2, 0, 0, 0, 0], 2));
}

#[test]
fn media_come_and_go() {
    let mut b = Bench::ready();
    let drive = b.host.medium_drive(CD);
    assert_eq!(b.command(CD, &[0x1e, 0, 0, 0, 1, 0], &[], 0), GOOD);
    assert!(drive.locked());
    drive.ask();
    let asked = b.command(CD, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], &[], 8);
    assert_eq!((asked, b.data(6)[4], drive.tray_open()), (GOOD, 1, false));
    drive.change(None);
    assert!(drive.tray_open());
    let end = b.command(CD, &[0; 6], &[], 0);
    assert_eq!((end.status, end.sense), check(Sense::TRAY_OPEN));
    let disk: Arc<dyn Disk> = b.disk.clone();
    drive.change(Some(disk));
    let end = b.command(CD, &[0; 6], &[], 0);
    assert_eq!((end.status, end.sense), check(Sense::CHANGED));
    assert_eq!(b.command(CD, &[0; 6], &[], 0), GOOD);
}

#[test]
fn state_moves_with_a_command_under_way() {
    let mut a = Bench::ready();
    a.queue(DISK, 77, &[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], &[], 512);
    a.manage(0, DISK, 77);
    let b = Bench::new();
    let mut all = vec![0; 0x2_0000];
    a.memory.read(0, &mut all);
    b.memory.write(0, &all);
    crate::bus::Device::restore(&*b.device, &crate::bus::Device::save(&*a.device)).unwrap();
    b.disk.run();
    assert_eq!((b.managed(), b.end().response), (response::OK, response::ABORTED));
    moves_to(&*b.device, &*Bench::new().device);
    b.host.unplug(CD);
    let saved = crate::bus::Device::save(&*a.device);
    assert!(crate::bus::Device::restore(&*b.device, &saved).is_err(), "other units");
    let mut config = b.host.config();
    assert_eq!((config.len(), config[20], config[24]), (CONFIG, 96, 32));
    b.host.config_write(20, &[252, 0, 0, 0]);
    b.host.config_write(24, &[16]);
    b.host.config_write(24, &[0, 1]);
    config = b.host.config();
    assert_eq!((config[20], config[24]), (252, 16));
}

#[test]
fn random_requests_and_rings() {
    for seed in 1..5 {
        let mut b = Bench::ready();
        let mut random = Random::new(seed);
        for _ in 0..4000 {
            match random.below(8) {
                0 => b.set(0x3000 + 4 * random.below(3), 2, random.below(3)),
                1 => b.set(0x2000 + random.below(40), 4, random.below(300)),
                2 => {
                    let bytes = [random.next() as u8 & 7, random.next() as u8 & 3];
                    b.memory.write(0x1000 + random.below(0xc000), &bytes);
                }
                3 => {
                    let place = (random.below(5) as u8, [0, 1, 300][random.below(3) as usize]);
                    b.manage(random.below(9) as u32, place, random.below(3));
                }
                4 => b.run(),
                5 if random.below(40) == 0 => b.set(0x14, 1, random.below(16)),
                _ => {
                    let mut cdb = [0u8; 16];
                    cdb.chunks_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_be_bytes()));
                    cdb.iter_mut().skip(1).for_each(|b| *b &= if random.below(3) == 0 { 0x3f } else { 0 });
                    let place = if random.below(2) == 0 { DISK } else { CD };
                    let data = vec![0; random.below(3000) as usize];
                    let room = random.below(3000) as u32;
                    b.queue(place, random.below(3), &cdb, &data, if random.below(2) == 0 { room } else { 0 });
                }
            }
        }
        b.run();
        same_after_restore(&*b.device);
    }
}
