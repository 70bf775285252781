//! A channel as drivers use it.

use super::*;
use crate::bus::{Device, Registers};
use crate::fakes::{FakeDisk, FakeIrq, FakeMemory, FakeTime, Random, fuzz, moves_to};
use crate::services::{DiskError, Dma};
use crate::wire::locked;
use std::sync::Arc;

struct Bench {
    channel: Arc<Channel>,
    command: Registers,
    control: Registers,
    master: Registers,
    memory: Arc<FakeMemory>,
    disk: Arc<FakeDisk>,
    cd: Arc<FakeDisk>,
    irq: Arc<FakeIrq>,
}

impl Bench {
    /// A disk of 1000 sectors and a CD of 64 blocks.
    fn new() -> Self {
        let (memory, irq) = (FakeMemory::new(0x2_0000), FakeIrq::new());
        let (disk, cd) = (FakeDisk::new(1000, memory.clone()), FakeDisk::new(256, memory.clone()));
        let config = |disk: &Arc<FakeDisk>, cd| DriveConfig {
            disk: Some(disk.clone()),
            cd,
            serial: "BG1".into(),
            model: "TEST DISK".into(),
            version: "1".into(),
        };
        let drives = [Some(config(&disk, false)), Some(config(&cd, true))];
        let channel = Channel::new("ide0", drives, memory.clone(), irq.line(14));
        let (command, control, master) = (channel.command_ports(), channel.control_port(), channel.master_ports());
        Self { channel, command, control, master, memory, disk, cd, irq }
    }

    fn set(&self, registers: &[(u64, u8)]) {
        registers.iter().for_each(|(at, value)| self.command.write(*at, 1, (*value).into()));
    }

    fn get(&self, at: u64) -> u8 {
        self.command.read(at, 1) as u8
    }

    fn words(&self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| (self.command.read(0, 2) as u16).to_le_bytes()).collect()
    }

    fn run(&self) {
        self.disk.run();
        self.cd.run();
    }

    /// Selects sectors of the disk by their 28-bit number.
    fn sectors(&self, first: u32, count: u8) {
        let [low, mid, high, top] = first.to_le_bytes();
        self.set(&[(2, count), (3, low), (4, mid), (5, high), (6, 0xe0 | top)]);
    }

    /// Sends a packet to the CD.
    fn packet(&self, feature: u8, limit: u16, packet: &[u8]) {
        self.set(&[(6, 0xb0), (1, feature), (4, limit as u8), (5, (limit >> 8) as u8), (7, 0xa0)]);
        assert_eq!((self.get(7), self.get(2) & 3), (0x58, 1));
        let mut bytes = [0; 12];
        bytes[..packet.len()].copy_from_slice(packet);
        bytes.chunks(2).for_each(|pair| self.command.write(0, 2, u16::from_le_bytes([pair[0], pair[1]]).into()));
    }

    /// Gets rid of what the CD reports after power-on.
    fn wake_cd(&self) {
        self.packet(0, 0, &[0]);
        assert_eq!((self.get(7), self.get(1)), (0x51, 0x64));
    }
}

#[test]
fn signatures_tell_the_kinds_apart() {
    let b = Bench::new();
    let signature = || [b.get(2), b.get(3), b.get(4), b.get(5), b.get(7)];
    assert_eq!(signature(), [1, 1, 0, 0, 0x50]);
    b.set(&[(6, 0x10)]);
    assert_eq!(signature(), [1, 1, 0x14, 0xeb, 0]);
    b.set(&[(2, 0x55), (3, 0xaa)]);
    b.control.write(0, 1, 4);
    assert_eq!(b.control.read(0, 1), 0x80);
    b.control.write(0, 1, 0);
    assert_eq!(signature(), [1, 1, 0, 0, 0x50], "the reset selected the first drive");
}

#[test]
fn identify_names_the_disk() {
    let b = Bench::new();
    b.set(&[(6, 0xa0), (7, 0xec)]);
    assert!(b.irq.level(14));
    assert_eq!(b.get(7), 0x58);
    assert!(!b.irq.level(14), "reading the status takes the interrupt back");
    let words = b.words(256);
    let word = |n: usize| u16::from_le_bytes([words[2 * n], words[2 * n + 1]]);
    assert_eq!((word(60), word(100), word(49) >> 8), (1000, 1000, 0x0b));
    assert_eq!(&words[54..64], b"ETTSD SI K");
    assert_eq!(b.get(7), 0x50);
    b.set(&[(6, 0xb0), (7, 0xec)]);
    assert_eq!((b.get(7), b.get(1), b.get(4), b.get(5)), (0x51, 4, 0x14, 0xeb));
    b.set(&[(7, 0xa1)]);
    assert_eq!(b.words(256)[..2], [0xc0, 0x85]);
}

#[test]
fn sectors_are_read_through_the_data_register() {
    let b = Bench::new();
    b.sectors(7, 2);
    b.set(&[(7, 0x20)]);
    assert_eq!(b.get(7) & 0x88, 0x80, "busy until the disk has answered");
    assert_eq!(b.command.read(0, 2), 0xffff_ffff, "no data yet");
    b.run();
    for sector in [7, 8] {
        assert!(b.irq.level(14));
        assert_eq!(b.get(7), 0x58);
        assert_eq!(b.words(256), [sector; 512]);
    }
    assert_eq!((b.get(7), b.irq.level(14)), (0x50, false), "no interrupt at the end");
    b.sectors(0, 0);
    b.set(&[(7, 0x20)]);
    b.run();
    assert_eq!(b.command.read(0, 4), 0);
    assert_eq!(b.disk.log.lock().unwrap().len(), 2);
}

#[test]
fn long_addresses_and_multiple_sectors() {
    let b = Bench::new();
    b.set(&[(2, 4), (7, 0xc6)]);
    assert_eq!(b.get(7), 0x50);
    // High bytes first, then low ones: 5 sectors from 356 on.
    b.set(&[(6, 0x40), (2, 0), (3, 0), (4, 0), (5, 0), (2, 5), (3, 100), (4, 1), (5, 0), (7, 0x29)]);
    b.run();
    assert_eq!(b.words(1024), (356..360).flat_map(|n: u64| [n as u8; 512]).collect::<Vec<u8>>());
    assert!(b.irq.level(14) && b.get(7) == 0x58);
    assert_eq!(b.words(256), [360u64 as u8; 512]);
    assert_eq!(b.get(7), 0x50);
    b.set(&[(2, 3), (2, 0), (7, 0x24)]);
    assert_eq!((b.get(7), b.get(1)), (0x51, 0x10), "768 sectors from 356 on");
}

#[test]
fn what_does_not_exist_is_refused() {
    let b = Bench::new();
    for (first, count) in [(1000, 1), (999, 2), (0x0fff_ffff, 0)] {
        b.sectors(first, count);
        b.set(&[(7, 0x20)]);
        assert_eq!((b.get(7), b.get(1)), (0x51, 0x10), "{first}");
    }
    b.sectors(0, 1);
    b.set(&[(7, 0xc4)]);
    assert_eq!(b.get(1), 4, "multiple mode is not set");
    b.set(&[(6, 0x00), (2, 1), (3, 0), (7, 0x20)]);
    assert_eq!(b.get(1), 0x10, "sectors count from 1");
    b.set(&[(7, 0xd7)]);
    assert_eq!((b.get(7), b.get(1)), (0x51, 4));
    *locked(&b.disk.failure) = Some(DiskError::Host);
    b.sectors(3, 1);
    b.set(&[(7, 0x20)]);
    b.run();
    assert_eq!((b.get(7), b.get(1), b.get(3)), (0x51, 0x40, 3));
    b.set(&[(7, 0xe7)]);
    b.run();
    assert_eq!((b.get(7), b.get(1)), (0x71, 4));
}

#[test]
fn sectors_are_written_and_flushed() {
    let b = Bench::new();
    b.sectors(20, 2);
    b.set(&[(7, 0x30)]);
    assert_eq!((b.get(7), b.irq.level(14)), (0x58, false), "the first block comes without an interrupt");
    (0..256).for_each(|_| b.command.write(0, 2, 0x1111));
    assert!(b.irq.level(14));
    assert_eq!(b.get(7), 0x58);
    (0..128).for_each(|_| b.command.write(0, 4, 0x2222_2222));
    assert_eq!(b.get(7) & 0x80, 0x80);
    b.run();
    assert_eq!((b.get(7), locked(&b.disk.bytes)[20 * 512 - 1..20 * 512 + 1].to_vec()), (0x50, vec![19, 0x11]));
    assert_eq!(locked(&b.disk.bytes)[21 * 512..22 * 512], [0x22; 512]);
    b.set(&[(7, 0xea)]);
    b.run();
    assert!(b.irq.level(14) && b.get(7) == 0x50);
}

#[test]
fn the_bus_master_moves_sectors_both_ways() {
    let b = Bench::new();
    b.memory.write(0x1000, &[0, 0x20, 0, 0, 0, 2, 0, 0, 0, 0x40, 0, 0, 0, 2, 0, 0x80]);
    b.master.write(5, 1, 0x10);
    b.sectors(5, 2);
    b.set(&[(7, 0xc8)]);
    b.master.write(0, 1, 8);
    assert_eq!(b.master.read(2, 1), 0);
    b.master.write(0, 1, 9);
    b.run();
    assert!(b.irq.level(14));
    assert_eq!((b.master.read(2, 1), b.get(7)), (4, 0x50));
    let mut seen = [0; 512];
    b.memory.read(0x2000, &mut seen);
    assert_eq!(seen, [5; 512]);
    b.memory.read(0x4000, &mut seen);
    assert_eq!(seen, [6; 512]);
    // Started before the command, and to the disk.
    b.master.write(0, 1, 0);
    b.master.write(2, 1, 4);
    b.memory.write(0x2000, &[0x77; 512]);
    b.master.write(0, 1, 1);
    b.sectors(30, 2);
    b.set(&[(7, 0xca)]);
    b.run();
    assert_eq!((b.master.read(2, 1), b.get(7)), (4, 0x50));
    assert_eq!(locked(&b.disk.bytes)[30 * 512..32 * 512], [[0x77; 512], [6; 512]].concat());
}

#[test]
fn bad_lists_harm_nobody() {
    let b = Bench::new();
    b.memory.write(0x1000, &[0, 0x20, 0, 0, 0, 2, 0, 0x80]);
    b.master.write(5, 1, 0x10);
    b.sectors(5, 2);
    b.set(&[(7, 0xc8)]);
    b.master.write(0, 1, 9);
    b.run();
    assert_eq!((b.master.read(2, 1), b.get(7) & 8), (0, 8), "too short: the drive waits");
    b.control.write(0, 1, 4);
    b.control.write(0, 1, 0);
    b.sectors(5, 1);
    b.set(&[(7, 0xca)]);
    b.master.write(0, 1, 0);
    b.master.write(0, 1, 9);
    assert_eq!(b.master.read(2, 1), 2, "the wrong direction");
}

#[test]
fn a_reset_forgets_what_the_disk_still_does() {
    let b = Bench::new();
    b.sectors(5, 1);
    b.set(&[(7, 0x20)]);
    b.control.write(0, 1, 4);
    b.control.write(0, 1, 0);
    b.run();
    assert_eq!((b.get(7), b.irq.level(14)), (0x50, false));
    assert_eq!(b.command.read(0, 2), 0xffff_ffff);
}

#[test]
fn packets_answer_in_blocks_of_the_hosts_size() {
    let b = Bench::new();
    b.wake_cd();
    b.packet(0, 3000, &[0x28, 0, 0, 0, 0, 2, 0, 0, 2]);
    b.run();
    let mut all = Vec::new();
    for len in [3000u16, 1096] {
        assert!(b.irq.level(14));
        assert_eq!((b.get(7), b.get(2)), (0x58, 2));
        assert_eq!(u16::from_le_bytes([b.get(4), b.get(5)]), len);
        all.extend(b.words(len as usize / 2));
    }
    assert_eq!((b.irq.level(14), b.get(7), b.get(2)), (true, 0x50, 3));
    assert_eq!(all, (8..16).flat_map(|n| [n; 512]).collect::<Vec<u8>>());
    b.packet(0, 0xffff, &[0x12, 0, 0, 0, 36]);
    assert_eq!(u16::from_le_bytes([b.get(4), b.get(5)]), 36);
    assert_eq!(&b.words(18)[8..16], b"BROLGA  ");
}

#[test]
fn packets_by_dma_and_their_errors() {
    let b = Bench::new();
    b.wake_cd();
    b.memory.write(0x1000, &[0, 0x20, 0, 0, 0, 0x10, 0, 0x80]);
    b.master.write(5, 1, 0x10);
    b.packet(1, 0, &[0x28, 0, 0, 0, 0, 1, 0, 0, 2]);
    b.master.write(0, 1, 9);
    b.run();
    assert_eq!((b.master.read(2, 1), b.get(7), b.get(2)), (4, 0x50, 3));
    let mut seen = [0; 513];
    b.memory.read(0x2000, &mut seen);
    assert_eq!(seen[511..], [4, 5]);
    b.master.write(0, 1, 0);
    b.packet(1, 0, &[0x12, 0, 0, 0, 36]);
    b.master.write(0, 1, 9);
    b.memory.read(0x2000, &mut seen);
    assert_eq!(&seen[8..16], b"BROLGA  ");
    b.packet(0, 0, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!((b.get(7), b.get(1), b.get(2)), (0x51, 0x54, 3));
    *locked(&b.cd.failure) = Some(DiskError::Host);
    b.packet(0, 0x800, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1]);
    b.run();
    assert_eq!((b.get(7), b.get(1)), (0x51, 0x34));
}

#[test]
fn media_change() {
    let b = Bench::new();
    b.wake_cd();
    let drive = b.channel.medium_drive(true).unwrap();
    drive.change(None);
    b.packet(0, 0, &[0]);
    assert_eq!((b.get(1), drive.tray_open()), (0x24, true));
    drive.change(Some(b.disk.clone()));
    b.packet(0, 0, &[0x1e, 0, 0, 0, 1]);
    assert_eq!(b.get(1), 0x64, "told of the change");
    b.packet(0, 0, &[0x1e, 0, 0, 0, 1]);
    assert!(drive.locked() && !drive.tray_open());
    drive.ask();
    assert!(!drive.tray_open(), "the guest decides");
    b.packet(0, 0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(b.get(7) & 0x80, 0x80);
    drive.change(None);
    assert_eq!((b.get(7), b.get(1)), (0x51, 0x24), "the read ends");
    b.run();
    assert_eq!(b.get(7), 0x51);
    assert!(b.channel.medium_drive(false).is_none(), "a disk has no medium to change");
}

#[test]
fn sectors_needed_no_longer_are_trimmed() {
    let b = Bench::new();
    let entry = |first: u64, count: u64| (first | count << 48).to_le_bytes();
    let list = [entry(3, 2), entry(0, 0), entry(999, 2), entry(999, 1)].concat();
    b.memory.write(0x4000, &list);
    b.memory.write(0x1000, &[0, 0x40, 0, 0, 0, 2, 0, 0x80]);
    (0..4).for_each(|i| b.master.write(4 + i, 1, [0, 0x10, 0, 0][i as usize]));
    b.set(&[(6, 0x40), (1, 1), (2, 0), (2, 1), (7, 0x06)]);
    b.master.write(0, 1, 1);
    b.run();
    assert_eq!((b.get(7), b.get(1)), (0x50, 0));
    let sector = |n: usize| locked(&b.disk.bytes)[n * 512];
    assert_eq!([2, 3, 4, 5, 998, 999].map(sector), [2, 0, 0, 5, 230, 0]);
    b.set(&[(1, 0), (2, 0), (2, 1), (7, 0x06)]);
    assert_eq!((b.get(7), b.get(1)), (0x51, 4), "there is nothing but TRIM");
}

#[test]
fn a_lone_drive_and_no_drive() {
    let irq = FakeIrq::new();
    let empty = Channel::new("ide1", [None, None], FakeMemory::new(16), irq.line(15));
    let command = empty.command_ports();
    command.write(2, 1, 0x55);
    assert_eq!((command.read(2, 1), command.read(7, 1)), (0, 0));
    command.write(7, 1, 0xec);
    assert_eq!((command.read(0, 2), irq.level(15)), (0, false));
    moves_to(&*empty, &*empty);
}

#[test]
fn state_moves_with_a_request_under_way_and_in_the_middle_of_a_block() {
    let a = Bench::new();
    a.sectors(9, 3);
    a.set(&[(7, 0x20)]);
    let other = Bench::new();
    moves_to(&*a.channel, &*other.channel);
    other.run();
    assert_eq!(other.words(100), [9; 200]);
    let third = Bench::new();
    moves_to(&*other.channel, &*third.channel);
    assert_eq!(third.words(156), [9; 312]);
    assert_eq!(third.words(256), [10; 512]);
    third.channel.reset();
    let (reset, new) = (third.channel.save(), Bench::new().channel.save());
    let without_tokens = |mut state: crate::state::StateValue| {
        (0..2).for_each(|i| state["drives"][i]["token"] = 0.into());
        state
    };
    assert_eq!(without_tokens(reset), without_tokens(new));
}

#[test]
fn random_accesses() {
    for seed in 1..5 {
        let b = Bench::new();
        let mut random = Random::new(seed);
        for _ in 0..40 {
            let blocks = [(&*b.command, 8), (&*b.control, 1), (&*b.master, 8)];
            let count = random.below(600);
            for _ in 0..count {
                let (block, len) = blocks[random.below(3) as usize];
                match random.below(3) {
                    0 => _ = block.read(random.below(len), 1),
                    1 => block.write(random.below(len), 1, random.next() & 0xff),
                    // A command that exists.
                    _ => b.command.write(
                        7,
                        1,
                        [0x20, 0x30, 0xc8, 0xca, 0xa0, 0xec, 0xa1, 0x08][random.below(8) as usize],
                    ),
                }
            }
            (0..random.below(4000)).for_each(|_| _ = b.command.read(0, 4));
            (0..random.below(100)).for_each(|_| b.command.write(0, 2, random.next() & 0xffff));
            b.run();
            moves_to(&*b.channel, &*b.channel);
            b.run();
        }
        b.control.write(0, 1, 4);
        b.control.write(0, 1, 0);
        b.sectors(1, 1);
        b.set(&[(7, 0x20)]);
        b.run();
        assert_eq!(b.words(1).len(), 2);
    }
    let b = Bench::new();
    fuzz(&*b.channel, &[(&*b.command, 8), (&*b.control, 1), (&*b.master, 8)], &FakeTime::new(), 5);
}
