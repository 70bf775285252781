//! The card as a driver sees it.

use super::registers::plus;
use super::*;
use crate::fakes::{FakeIrq, FakeMemory, FakeNet, FakeTime, FakeWork, Random, moves_to, same_after_restore};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const PORTS: u16 = 0xc000;
const MEMORY: usize = 1 << 20;
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const DESCRIPTORS: u64 = 8;

struct Bench {
    bus: Arc<Bus>,
    card: Arc<Rtl8139>,
    ram: Arc<FakeMemory>,
    host: Arc<FakeNet>,
    bells: FakeWork,
    time: Arc<FakeTime>,
    irq: Arc<FakeIrq>,
}

impl Bench {
    fn new(plus: bool) -> Self {
        let (bus, time, irq) = (Arc::new(Bus::new()), FakeTime::new(), FakeIrq::new());
        let ram = FakeMemory::new(MEMORY);
        let (host, bells) = (Arc::new(FakeNet::default()), FakeWork::default());
        let surroundings = Surroundings {
            bus: &bus,
            irq: irq.line(0),
            dma: ram.clone(),
            backend: Some(host.clone()),
            clock: time.clone(),
            timers: &*time,
            work: &bells,
            rom: None,
        };
        let card = Rtl8139::new(MAC, plus, surroundings).unwrap();
        Self { bus, card, ram, host, bells, time, irq }
    }

    fn found(plus: bool) -> Self {
        let b = Self::new(plus);
        b.card.config_write(0x10, 4, PORTS.into());
        b.card.config_write(0x14, 4, 0xfebc_0000);
        b.card.config_write(0x04, 2, 7);
        b.set(0x37, 1, 0x10);
        assert_eq!(b.get(0x37, 1) & 0x10, 0, "reset is over");
        b
    }

    /// As a driver of C mode sets the card up: 8 KiB to receive in.
    fn c_mode() -> Self {
        let b = Self::found(false);
        b.set(0x30, 4, BUFFERS as u32);
        b.set(0x37, 1, 0x0c);
        b.set(0x44, 4, rcr::OURS | rcr::BROADCASTS | rcr::NO_WRAP);
        b.set(0x3c, 2, 0xe07f);
        b
    }

    /// As a driver of C+ mode does.
    fn plus_mode() -> Self {
        let b = Self::found(true);
        b.set(0xe0, 2, (plus::TRANSMIT | plus::RECEIVE | plus::CHECK_SUMS).into());
        for (at, ring) in [(0xe4, RX_RING), (0x20, TX_RING)] {
            b.set(at, 4, ring as u32);
            b.set(at + 4, 4, 0);
        }
        (0..DESCRIPTORS).for_each(|i| b.free(i));
        b.set(0x37, 1, 0x0c);
        b.set(0x44, 4, rcr::OURS | rcr::BROADCASTS);
        b.set(0x3c, 2, 0xe07f | u32::from(cause::TDU));
        b
    }

    /// Gives the card a receive descriptor of 1536 bytes.
    fn free(&self, index: u64) {
        let end = if index + 1 == DESCRIPTORS { status::END } else { 0 };
        self.ram.write(RX_RING + 16 * index + 8, &(BUFFERS + index * 2048).to_le_bytes());
        self.ram.write(RX_RING + 16 * index, &(status::OWN | end | 1536).to_le_bytes());
    }

    fn set(&self, offset: u16, size: u8, value: u32) {
        self.bus.pio_write(PORTS + offset, size, value);
    }

    fn get(&self, offset: u16, size: u8) -> u32 {
        self.bus.pio_read(PORTS + offset, size)
    }

    fn word(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ram.read(address, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(address, &mut bytes);
        bytes
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *locked(&self.host.frames))
    }

    /// Puts a descriptor for `len` bytes at `buffer` into the transmit ring.
    fn queue(&self, index: u64, buffer: u64, len: u32, flags: u32) {
        self.ram.write(TX_RING + index * 16 + 4, &[0; 4]);
        self.ram.write(TX_RING + index * 16 + 8, &buffer.to_le_bytes());
        self.ram.write(TX_RING + index * 16, &(transmit::command::OWN | flags | len).to_le_bytes());
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2; 6], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

#[test]
fn what_probes_look_at() {
    let b = Bench::found(true);
    assert_eq!(b.card.config_read(0, 4), 0x8139_10ec);
    assert_eq!(b.card.config_read(8, 4), 0x0200_0020);
    assert_eq!((b.get(0, 4), b.get(4, 2)), (0x1200_5452, 0x5634));
    assert_eq!(b.get(0x40, 4) & 0x7cc0_0000, 0x7480_0000);
    assert_eq!((b.get(0x62, 2), b.get(0x64, 2) & 0x24), (0x3100, 0x24));
    assert_eq!(b.bus.mmio_read(0xfebc_0005, 1), 0x56, "bytes, in memory space");
    b.set(0xe0, 2, 0xffff);
    assert_eq!(b.get(0xe0, 2), 0x7b);
    assert_eq!(b.get(0x5a, 1), 0);
    b.set(0x5a, 1, 0xff);
    assert_eq!(b.get(0x5a, 1), 0, "configuration is locked");
    b.set(0x50, 1, 0xc0);
    b.set(0x5a, 1, 0xff);
    assert_eq!(b.get(0x5a, 1), 0xf5);
    let old = Bench::found(false);
    assert_eq!((old.card.config_read(8, 1), old.get(0x40, 4) & 0x7cc0_0000), (0x10, 0x7400_0000));
    old.set(0xe0, 2, 0x7b);
    assert_eq!(old.get(0xe0, 2), 0, "it has no C+ mode");
}

#[test]
fn the_eeprom_has_the_address() {
    let b = Bench::found(true);
    let read = |address: u32| {
        b.set(0x50, 1, 0x88);
        for i in (0..9).rev() {
            let data = if (6 << 6 | address) >> i & 1 != 0 { 2 } else { 0 };
            b.set(0x50, 1, 0x88 | data);
            b.set(0x50, 1, 0x88 | data | 4);
        }
        b.set(0x50, 1, 0x88);
        let word = (0..16).fold(0, |word, _| {
            b.set(0x50, 1, 0x8c);
            let bit = b.get(0x50, 1) & 1;
            b.set(0x50, 1, 0x88);
            word << 1 | bit
        });
        b.set(0x50, 1, 0);
        word
    };
    assert_eq!([0, 7, 8, 9].map(read), [0x8129, 0x5452, 0x1200, 0x5634]);
    b.set(0, 4, 0);
    b.set(0x50, 1, 0x40);
    assert_eq!((b.get(0, 4), b.get(0x50, 1)), (0x1200_5452, 0), "loaded from there");
}

#[test]
fn c_mode_sends_four_at_a_time() {
    let b = Bench::c_mode();
    b.ram.write(0x8000, &frame([0xff; 6], 100));
    for slot in 0..4 {
        b.set(0x20 + 4 * slot, 4, 0x8000);
        b.set(0x10 + 4 * slot, 4, if slot == 1 { 30 } else { 100 });
    }
    assert!(b.sent().is_empty(), "not on the vCPU's thread");
    b.bells.run();
    assert_eq!(b.sent().iter().map(Vec::len).collect::<Vec<_>>(), [100, 60, 100, 100]);
    assert_eq!(*locked(&b.host.batches), 1);
    assert_eq!(b.get(0x10, 4), 0xa064);
    assert_eq!(b.get(0x60, 2), 0xf00f);
    assert!(b.irq.level(0) && b.card.config_read(6, 2) & 8 != 0);
    assert_eq!(b.get(0x3e, 2), u32::from(cause::TOK));
    b.set(0x3e, 2, cause::TOK.into());
    assert!(!b.irq.level(0), "acknowledged");
    b.set(0x10, 4, 100);
    b.bells.run();
    assert_eq!(b.sent().len(), 1, "the first again");
    b.set(0x40, 4, 3 << 17);
    b.ram.write(0x8000, &MAC);
    b.set(0x14, 4, 100);
    b.bells.run();
    assert!(b.sent().is_empty() && b.get(0x3e, 2) & 1 != 0, "looped back");
}

#[test]
fn c_mode_receives_in_a_buffer() {
    let b = Bench::c_mode();
    assert_eq!((b.get(0x37, 1), b.get(0x38, 2), b.get(0x3a, 2)), (0x0d, 0xfff0, 0));
    let f = frame(MAC, 201);
    assert!(b.host.deliver(&f) && b.irq.level(0));
    assert_eq!(b.word(BUFFERS), 205 << 16 | 0x4001);
    assert!(b.bytes(BUFFERS + 4, 201) == f);
    assert_eq!((b.get(0x37, 1), b.get(0x3a, 2)), (0x0c, 212));
    assert!(b.host.deliver(&frame([2, 0, 0, 0, 0, 9], 201)), "another's, and so taken");
    assert_eq!(b.get(0x3a, 2), 212);
    let taken = (1..).take_while(|_| b.host.deliver(&f)).count();
    assert_eq!(taken, 8192 / 212 - 1, "and never quite full");
    b.bells.run();
    let ready = *locked(&b.host.ready);
    b.set(0x38, 2, 424 - 16);
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), ready + 1, "room again");
    assert!(b.host.deliver(&f));
    // It began before the end and goes on behind it.
    assert_eq!(b.get(0x3a, 2), 39 * 212 - 8192);
    assert!(b.bytes(BUFFERS + 38 * 212 + 4, 201) == f);
    b.set(0x37, 1, 0x04);
    b.set(0x37, 1, 0x0c);
    assert_eq!((b.get(0x37, 1), b.get(0x38, 2)), (0x0d, 0xfff0), "the receiver begins anew");
}

#[test]
fn c_mode_wraps_where_it_is_told() {
    let b = Bench::c_mode();
    b.set(0x44, 4, rcr::OURS);
    let f = frame(MAC, 1010);
    for i in 1..=8 {
        assert!(b.host.deliver(&f));
        b.set(0x38, 2, (i * 1020 - 16) & 0x1fff);
    }
    assert!(b.host.deliver(&f));
    let all = [b.bytes(BUFFERS + 8160, 32), b.bytes(BUFFERS, 982)].concat();
    assert!(all[4..] == f && b.get(0x3a, 2) == 9 * 1020 - 8192);
}

#[test]
fn c_plus_mode_sends_from_a_ring() {
    let b = Bench::plus_mode();
    use transmit::command::{END, FIRST, LAST};
    b.ram.write(0x8000, &frame([0xff; 6], 100));
    b.queue(0, 0x8000, 40, FIRST);
    b.queue(1, 0x8000 + 40, 60, LAST);
    b.queue(2, 0x8000, 20, FIRST | LAST | END);
    b.set(0xd9, 1, 0x40);
    b.bells.run();
    let sent = b.sent();
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [100, 60], "the short one is filled up");
    assert!(sent[0] == frame([0xff; 6], 100));
    assert_eq!([0, 16, 32].map(|at| b.word(TX_RING + at) >> 28), [2, 1, 7], "given back");
    assert_eq!(b.get(0x3e, 2), u32::from(cause::TOK | cause::TDU));
    assert!(b.irq.level(0));
    // The ring goes on at its start.
    b.queue(0, 0x8000, 100, FIRST | LAST);
    b.bells.run();
    assert!(b.sent().is_empty(), "nobody has told");
    b.set(0xd9, 1, 0x40);
    b.bells.run();
    assert_eq!(b.sent().len(), 1);
    b.set(0xd9, 1, 0x01);
    assert_ne!(b.get(0x3e, 2) & u32::from(cause::SOFTWARE), 0);
    b.set(0x14, 4, 0);
    b.set(0x10, 4, 0x9000 | 8);
    assert_eq!((b.get(0x10, 4), b.word(0x9000)), (0x9000, 3), "the tally");
}

#[test]
fn c_plus_mode_receives_in_a_ring() {
    let b = Bench::plus_mode();
    let f = frame(MAC, 200);
    assert!(b.host.deliver(&f) && b.irq.level(0));
    assert_eq!(b.word(RX_RING), status::FIRST | status::LAST | status::OURS | 204);
    assert!(b.bytes(BUFFERS, 200) == f);
    (1..DESCRIPTORS).for_each(|_| assert!(b.host.deliver(&f)));
    assert_eq!(b.word(RX_RING + 16 * 7) & status::END, status::END);
    assert!(!b.host.deliver(&f), "no descriptor is free");
    assert_ne!(b.get(0x3e, 2) & u32::from(cause::RDU), 0);
    b.bells.run();
    let ready = *locked(&b.host.ready);
    b.set(0x3e, 2, 0xffff);
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), ready + 1, "there might be room");
    b.free(0);
    assert!(b.host.deliver(&f), "the ring goes on at its start");
    // Too long for one, and so in two.
    (0..DESCRIPTORS).for_each(|i| b.free(i));
    let long = frame(MAC, 2000);
    assert!(b.host.deliver(&long));
    let [one, two] = [16, 32].map(|at| b.word(RX_RING + at));
    assert_eq!((one >> 28, two >> 28, one & 0x1fff, two & 0x1fff), (2, 1, 1536, 2004));
    let stored = [b.bytes(BUFFERS + 2048, 1536), b.bytes(BUFFERS + 4096, 464)].concat();
    assert!(stored == long);
    assert!(b.host.deliver(&frame(MAC, 5000)), "longer than any may be");
    b.set(0x37, 1, 0);
    assert!(b.host.deliver(&f), "switched off: frames are lost, not kept");
    b.set(0x10, 4, 0x9000 | 8);
    assert_eq!([8, 24, 40].map(|at| b.word(0x9000 + at)), [10, 1, 10], "received, too long, for us");
}

#[test]
fn the_timer_interrupts() {
    let b = Bench::found(true);
    b.set(0x3c, 2, cause::TIMEOUT.into());
    b.set(0x48, 4, 0);
    b.time.advance(1000);
    assert_eq!(b.get(0x48, 4), 33);
    b.set(0x54, 4, 66);
    b.time.advance(999);
    assert!(!b.irq.level(0));
    b.time.advance(1);
    assert!(b.irq.level(0));
    b.set(0x3e, 2, 0xffff);
    assert!(!b.irq.level(0));
    // Next when the 32 bits have come round.
    b.time.advance((1 << 32) * 1000 / 33 - 1);
    assert!(!b.irq.level(0));
    b.time.advance(2);
    assert!(b.irq.level(0));
    b.set(0x54, 4, 0);
    b.set(0x3e, 2, 0xffff);
    b.time.advance(1 << 40);
    assert!(!b.irq.level(0), "0 is never");
}

#[test]
fn the_cable_can_be_pulled_out() {
    let b = Bench::plus_mode();
    b.card.frontend().set_link(false);
    assert_eq!((b.get(0x64, 2) & 4, b.get(0x58, 1) & 4), (0, 4));
    assert_ne!(b.get(0x3e, 2) & u32::from(cause::LINK), 0);
    assert!(b.host.deliver(&frame(MAC, 60)), "lost");
    assert_eq!((b.get(0x74, 2) & 0xc00, b.get(0x74, 2) & 0xc00), (0x800, 0));
    b.set(0x37, 1, 0x10);
    assert_eq!(b.get(0x58, 1) & 4, 4, "a reset plugs nothing in");
    b.card.frontend().set_link(true);
    assert_eq!(b.get(0x64, 2) & 0x24, 0x24);
}

#[test]
fn reset_gives_up_rings_and_waiting_frames() {
    let b = Bench::plus_mode();
    b.queue(0, 0x8000, 40, transmit::command::FIRST);
    b.set(0xd9, 1, 0x40);
    b.bells.run();
    let before = *locked(&b.host.ready);
    b.set(0, 4, 0x0100_0000);
    b.set(0x37, 1, 0x10);
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), before + 1);
    assert_eq!([(0x37, 1), (0x20, 4), (0x3c, 4), (0xe0, 2)].map(|(at, size)| b.get(at, size)), [1, 0, 0, 0]);
    assert_eq!(b.get(0, 4), 0x0100_0000, "addresses stay");
    assert_eq!(b.card.save()["transmitters"][0]["packet"].as_array().unwrap().len(), 0);
    b.card.reset();
    assert!(b.bus.ranges().is_empty());
    assert_eq!(b.card.save(), Bench::new(true).card.save());
}

#[test]
fn state_moves() {
    let b = Bench::plus_mode();
    b.queue(0, 0x8000, 40, transmit::command::FIRST);
    b.set(0xd9, 1, 0x40);
    b.bells.run();
    b.host.deliver(&frame(MAC, 64));
    b.set(0x54, 4, 1000);
    same_after_restore(&*b.card);
    let other = Bench::new(true);
    moves_to(&*b.card, &*other.card);
    assert_eq!(other.get(0xe4, 4), RX_RING as u32);
    assert_ne!(other.get(0x3e, 2), 0);
    other.bells.run();
    assert!(other.irq.history().is_empty(), "the level came with the state");
    let elder = Bench::new(false);
    elder.card.restore(&b.card.save()).unwrap();
    assert_eq!(elder.card.config_read(8, 1), 0x20, "the configuration space is the state's");
}

/// Rings of random bytes, registers of random values, doorbells, frames and time in random order.
#[test]
fn hostile_drivers_harm_nobody() {
    for seed in 1..=4 {
        let b = if seed % 2 == 0 { Bench::plus_mode() } else { Bench::c_mode() };
        let mut random = Random::new(seed);
        for _ in 0..6000 {
            match random.below(10) {
                0 => {
                    let noise: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
                    b.ram.write(random.below(MEMORY as u64), &noise);
                }
                1..=3 => {
                    let size = 1 << random.below(3);
                    let value = random.next() as u32 >> random.below(32);
                    b.set(random.below(256) as u16 & !(size - 1), size as u8, value & !0x10);
                }
                4 => drop(b.get(random.below(256) as u16, 1 << random.below(3))),
                5 | 6 => drop(b.host.deliver(&frame(MAC, random.below(5000) as usize))),
                7 => {
                    // Mostly in order, so that rings and buffers are reached.
                    b.set(0x37, 1, 0x0c);
                    b.set(0x44, 4, random.next() as u32 | 0xf);
                    b.set(0x20, 4, TX_RING as u32 + 16 * random.below(8) as u32);
                    b.set(0xe4, 4, random.below(0x100_0000) as u32);
                    b.set(0xd9, 1, 0xc0);
                    b.set(0x10, 4, random.below(0x2000) as u32);
                }
                8 => b.bells.run(),
                _ => b.time.advance(random.below(1_000_000)),
            }
            let longest = b.sent().iter().map(Vec::len).max().unwrap_or(0);
            assert!(longest <= 0x2_0004, "{longest}");
        }
        same_after_restore(&*b.card);
        b.card.reset();
        assert_eq!(b.card.save(), Bench::new(seed % 2 == 0).card.save());
    }
}
