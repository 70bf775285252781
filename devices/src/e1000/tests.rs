//! The card as a driver sees it.

use super::registers::reg;
use super::*;
use crate::bus::Space;
use crate::fakes::{FakeIrq, FakeMemory, FakeNet, FakeTime, FakeWork, Random, moves_to, same_after_restore};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const BAR: u64 = 0xfebc_0000;
const MEMORY: usize = 1 << 20;
const RX_RING: u64 = 0x1000;
const TX_RING: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const DESCRIPTORS: u32 = 8;

struct Bench {
    bus: Arc<Bus>,
    card: Arc<E1000>,
    ram: Arc<FakeMemory>,
    host: Arc<FakeNet>,
    bells: FakeWork,
    time: Arc<FakeTime>,
    irq: Arc<FakeIrq>,
}

impl Bench {
    fn new() -> Self {
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
        let card = E1000::new(MAC, surroundings).unwrap();
        Self { bus, card, ram, host, bells, time, irq }
    }

    /// As a driver sets the card up.
    fn started() -> Self {
        let b = Self::new();
        b.card.config_write(0x10, 4, BAR as u32);
        b.card.config_write(0x14, 4, 0xc000);
        b.card.config_write(0x04, 2, 7);
        b.set(reg::CTRL, ctrl::SLU);
        b.read(reg::ICR);
        for (ring, base) in [(reg::RDBAL, RX_RING), (reg::TDBAL, TX_RING)] {
            b.set(ring, base as u32);
            b.set(ring + 8, DESCRIPTORS * 16);
        }
        for i in 0..u64::from(DESCRIPTORS) {
            b.ram.write(RX_RING + i * 16, &(BUFFERS + i * 2048).to_le_bytes());
        }
        b.set(reg::RCTL, rctl::EN | rctl::BAM | rctl::SECRC);
        b.set(reg::RDBAL + 0x18, DESCRIPTORS - 1);
        b.set(reg::TCTL, tctl::EN | PAD_SHORT);
        b.set(reg::IMS, cause::RXT0 | cause::TXDW | cause::LSC);
        b
    }

    fn set(&self, offset: u32, value: u32) {
        self.bus.mmio_write(BAR + u64::from(offset), 4, value.into());
    }

    fn read(&self, offset: u32) -> u32 {
        self.bus.mmio_read(BAR + u64::from(offset), 4) as u32
    }

    fn descriptor(&self, address: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.ram.read(address, &mut bytes);
        bytes
    }

    fn receive(&self, frame: &[u8]) -> bool {
        self.host.deliver(frame)
    }

    /// Puts a legacy descriptor for `len` bytes at `buffer` into the transmit ring.
    fn queue(&self, index: u32, buffer: u64, len: u16, cmd: u8) {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&buffer.to_le_bytes());
        d[8..10].copy_from_slice(&len.to_le_bytes());
        d[11] = cmd;
        self.ram.write(TX_RING + u64::from(index) * 16, &d);
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2; 6], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

const EOP: u8 = 1;
const RS: u8 = 8;

#[test]
fn what_probes_look_at() {
    let b = Bench::started();
    assert_eq!(b.card.config_read(0, 4), 0x100e_8086);
    assert_eq!(b.card.config_read(8, 4), 0x0200_0003);
    assert_eq!(b.read(reg::STATUS) & 0xc3, 0x83, "full duplex, link, 1000 Mb/s");
    assert_eq!(b.read(reg::RA), 0x1200_5452);
    assert_eq!(b.read(reg::RA + 4), 0x8000_5634);
    b.set(reg::MDIC, 1 << 21 | 2 << 26 | 2 << 16);
    assert_eq!(b.read(reg::MDIC) & 0x5000_ffff, 0x1000_0141);
    b.set(reg::MDIC, 5 << 21 | 2 << 26);
    assert_ne!(b.read(reg::MDIC) & 1 << 30, 0, "no transceiver there");
    b.bus.pio_write(0xc000, 4, reg::STATUS);
    assert_eq!(b.bus.pio_read(0xc004, 4), b.read(reg::STATUS), "by I/O space");
    assert_eq!(b.bus.mmio_read(BAR + 0x0a, 1), 0, "bytes of registers");
    assert_eq!(b.read(0x1_fffc), 0);
}

#[test]
fn the_cable_can_be_pulled_out() {
    let b = Bench::started();
    let card = b.card.frontend();
    card.set_link(false);
    assert_eq!(b.read(reg::STATUS) & 2, 0);
    assert_ne!(b.read(reg::ICR) & cause::LSC, 0);
    assert!(b.receive(&frame(MAC, 60)), "lost");
    b.set(reg::CTRL, ctrl::RST);
    assert_eq!(b.read(reg::STATUS) & 2, 0, "a reset plugs nothing in");
    b.set(reg::CTRL, ctrl::SLU);
    b.read(reg::ICR);
    card.set_link(true);
    assert_eq!((b.read(reg::STATUS) & 2, b.read(reg::ICR) & cause::LSC), (2, cause::LSC));
}

#[test]
fn frames_go_out() {
    let b = Bench::started();
    b.ram.write(0x8000, &frame([0xff; 6], 100));
    b.queue(0, 0x8000, 40, 0);
    b.queue(1, 0x8000 + 40, 60, EOP | RS);
    b.queue(2, 0x8000, 20, EOP);
    b.set(reg::TDBAL + 0x18, 3);
    assert!(locked(&b.host.frames).is_empty(), "not on the vCPU's thread");
    b.bells.run();
    let sent = locked(&b.host.frames).clone();
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [100, 60], "the short one is filled up");
    assert_eq!(sent[0], frame([0xff; 6], 100));
    assert_eq!(*locked(&b.host.batches), 1);
    assert_eq!(b.descriptor(TX_RING + 16)[12], 1);
    assert_eq!(b.descriptor(TX_RING + 32)[12], 0, "not asked for");
    assert_eq!(b.read(reg::TDBAL + 0x10), 3);
    assert!(b.irq.level(0));
    assert_eq!(b.card.config_read(6, 2) & 8, 8);
    assert_eq!(b.read(reg::ICR), cause::TXDW | cause::TXQE);
    assert!(!b.irq.level(0), "reading acknowledges");
    assert_eq!((b.read(0x4080), b.read(0x4080)), (2, 0), "GPTC clears when read");
    assert_eq!((b.read(0x4090), b.read(0x40f4)), (168, 2), "octets with checksums; broadcasts");
}

#[test]
fn frames_come_in_until_the_ring_is_full() {
    let b = Bench::started();
    let f = frame(MAC, 200);
    assert!(b.receive(&f) && b.irq.level(0));
    let d = b.descriptor(RX_RING);
    assert_eq!((d[8], d[9], d[12], d[13]), (200, 0, 3, 0));
    let mut stored = vec![0; 200];
    b.ram.read(BUFFERS, &mut stored);
    assert_eq!(stored, f);
    assert!(b.receive(&frame([2, 0, 0, 0, 0, 9], 200)), "another's, and so taken");
    assert_eq!(b.read(reg::RDBAL + 0x10), 1);
    (1..7).for_each(|_| assert!(b.receive(&f)));
    assert!(!b.receive(&f), "seven descriptors were ours");
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), 0);
    b.set(reg::RDBAL + 0x18, 2);
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), 1, "room again");
    assert!(b.receive(&f));
    b.set(reg::RCTL, 0);
    assert!(b.receive(&f), "switched off: frames are lost, not kept");
    assert_eq!(b.read(0x4074), 8, "GPRC");
}

#[test]
fn long_frames_take_several_buffers() {
    let b = Bench::started();
    b.set(reg::RCTL, rctl::EN | rctl::LPE | rctl::SECRC);
    assert!(b.receive(&frame(MAC, 5000)));
    let seen: Vec<_> = (0..3)
        .map(|i| {
            let d = b.descriptor(RX_RING + i * 16);
            (u16::from_le_bytes([d[8], d[9]]), d[12])
        })
        .collect();
    assert_eq!(seen, [(2048, 1), (2048, 1), (904, 3)]);
    assert!(b.receive(&frame(MAC, 15_000)), "eight buffers never are free at once: lost");
    assert_eq!(b.read(0x4010), 1, "MPC");
}

#[test]
fn interrupts_keep_their_distance() {
    let b = Bench::started();
    b.set(reg::ITR, 1000);
    assert!(b.receive(&frame(MAC, 64)) && b.irq.level(0));
    b.read(reg::ICR);
    assert!(b.receive(&frame(MAC, 64)));
    assert!(!b.irq.level(0), "too soon");
    b.time.advance(255_999);
    assert!(!b.irq.level(0));
    b.time.advance(1);
    assert!(b.irq.level(0));
    b.set(reg::IMC, u32::MAX);
    assert!(!b.irq.level(0));
    b.set(reg::ICS, cause::LSC);
    b.set(reg::IMS, cause::LSC);
    b.time.advance(256_000);
    assert!(b.irq.level(0));
    b.card.config_write(4, 2, 0x407);
    assert!(!b.irq.level(0), "INTx is disabled");
}

#[test]
fn reset_gives_up_rings_and_waiting_frames() {
    let b = Bench::started();
    b.queue(0, 0x8000, 40, 0);
    b.set(reg::TDBAL + 0x18, 1);
    b.bells.run();
    b.set(reg::CTRL, ctrl::RST);
    b.bells.run();
    assert_eq!(*locked(&b.host.ready), 1);
    assert_eq!((b.read(reg::TCTL), b.read(reg::TDBAL + 0x18), b.read(reg::IMS)), (0, 0, 0));
    assert_eq!(b.read(reg::RA + 4), 0x8000_5634);
    assert_eq!(b.card.save()["transmitter"]["packet"].as_array().unwrap().len(), 0);
    b.card.reset();
    assert!(b.bus.ranges().iter().all(|r| r.space != Space::Memory));
    assert_eq!(b.card.save(), Bench::new().card.save());
}

#[test]
fn state_moves() {
    let b = Bench::started();
    b.queue(0, 0x8000, 40, 0);
    b.set(reg::TDBAL + 0x18, 1);
    b.bells.run();
    b.receive(&frame(MAC, 64));
    same_after_restore(&*b.card);
    let other = Bench::new();
    moves_to(&*b.card, &*other.card);
    assert_eq!(other.read(reg::RDBAL), RX_RING as u32);
    assert_ne!(other.read(reg::ICR), 0);
    other.bells.run();
    assert_eq!(other.irq.history(), [(0, false)], "the level came with the state");
}

/// Rings of random bytes, registers of random values, doorbells, frames and time in random order.
#[test]
fn hostile_drivers_harm_nobody() {
    for seed in 1..=4 {
        let b = Bench::started();
        let mut random = Random::new(seed);
        let hot =
            [reg::CTRL, reg::RCTL, reg::TCTL, reg::RDBAL, reg::TDBAL, 0x2808, 0x2810, 0x2818, 0x3808, 0x3810, 0x3818];
        for _ in 0..4000 {
            match random.below(10) {
                0 => {
                    let noise: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
                    b.ram.write(random.below(MEMORY as u64), &noise);
                }
                1..=3 => b.set(hot[random.below(hot.len() as u64) as usize], random.next() as u32 >> random.below(32)),
                4 => b.set(random.below(0x8000) as u32 * 4, random.next() as u32),
                5 => drop(b.read(random.below(0x8000) as u32 * 4)),
                6 => drop(b.receive(&frame(MAC, random.below(2000) as usize))),
                7 => {
                    // Mostly in order, so that the rings are reached.
                    b.set(reg::CTRL, ctrl::SLU | random.next() as u32 & ctrl::VME);
                    b.set(reg::TCTL, tctl::EN);
                    b.set(reg::TDBAL, TX_RING as u32);
                    b.set(reg::TDBAL + 8, 128 << random.below(4));
                    b.set(reg::TDBAL + 0x18, random.below(64) as u32);
                }
                8 => b.bells.run(),
                _ => b.time.advance(random.below(1_000_000)),
            }
            let waiting = locked(&b.host.frames).drain(..).map(|f| f.len()).max().unwrap_or(0);
            assert!(waiting <= 0x2_0004, "{waiting}");
        }
        same_after_restore(&*b.card);
        b.card.reset();
        assert_eq!(b.card.save(), Bench::new().card.save());
    }
}
