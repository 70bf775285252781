use super::*;
use crate::fakes::{FakeIrq, FakeMsi, FakeTime, fuzz, moves_to};

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;
const LEVEL: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;
const NARROW: u64 = 1 << 8;
const MESSAGE: u64 = 1 << 14;

/// Pins of the fake beyond the routes.
const LEGACY_TIMER: u32 = 100;
const LEGACY_RTC: u32 = 101;
const LEGACY_MODE: u32 = 102;

struct Bench {
    time: Arc<FakeTime>,
    irq: Arc<FakeIrq>,
    msi: Arc<FakeMsi>,
    hpet: Arc<Hpet>,
}

impl Bench {
    fn new() -> Self {
        let (time, irq, msi) = (FakeTime::new(), FakeIrq::new(), Arc::new(FakeMsi::default()));
        let wiring = HpetWiring {
            routes: (0..24).map(|pin| irq.line(pin)).collect(),
            route_mask: 0x00FF_0104,
            legacy_timer: irq.line(LEGACY_TIMER),
            legacy_rtc: irq.line(LEGACY_RTC),
            legacy_mode: irq.line(LEGACY_MODE),
            msi: msi.clone(),
        };
        let hpet = Hpet::new(3, wiring, time.clone(), &*time);
        Self { time, irq, msi, hpet }
    }

    fn timer(&self, index: u64, config: u64, comparator: u64) {
        self.hpet.write(0x100 + index * 0x20, 8, config);
        self.hpet.write(0x108 + index * 0x20, 8, comparator);
    }
}

#[test]
fn identification() {
    let b = Bench::new();
    assert_eq!(b.hpet.read(0, 8), 0x0098_9680_8086_A201);
    assert_eq!(b.hpet.read(4, 4), u64::from(PERIOD_FS));
    assert_eq!(u64::from(b.hpet.block_id()), b.hpet.read(0, 4));
    assert_eq!(b.hpet.read(0x104, 4), 0x00FF_0104, "routes");
    assert_eq!(b.hpet.read(0x100, 4), 0x8030);
    assert_eq!(b.hpet.read(0x108, 8), u64::MAX);
    assert_eq!(b.hpet.read(0x160, 8), 0, "no fourth timer");
}

#[test]
fn counter_runs_while_enabled() {
    let b = Bench::new();
    b.time.advance_to(1_000);
    b.hpet.write(0xF0, 8, 0xFFFF_FFFF);
    assert_eq!(b.hpet.read(0xF0, 8), 0xFFFF_FFFF);
    b.hpet.write(0x10, 8, ENABLE);
    b.time.advance(50);
    assert_eq!(b.hpet.read(0xF0, 8), 0x1_0000_0004);
    assert_eq!(b.hpet.read(0xF4, 4), 1);
    b.hpet.write(0x10, 8, 0);
    b.time.advance(50);
    assert_eq!(b.hpet.read(0xF0, 8), 0x1_0000_0004);
}

#[test]
fn one_shot_edge_on_its_route() {
    let b = Bench::new();
    b.hpet.write(0x10, 8, ENABLE);
    b.timer(2, INTERRUPT | 17 << 9, 100);
    b.time.advance_to(999);
    assert_eq!(b.irq.history(), []);
    b.time.advance_to(1_000);
    assert_eq!(b.irq.history(), [(17, true), (17, false)]);
    assert_eq!(b.hpet.read(0x20, 8), 0, "edges leave no status");
    b.time.advance(1_000_000_000_000);
    assert_eq!(b.irq.rises(17), 1);
}

#[test]
fn comparator_behind_the_counter_waits_for_the_wrap() {
    let b = Bench::new();
    b.hpet.write(0x10, 8, ENABLE);
    b.time.advance_to(10_000);
    b.timer(0, INTERRUPT | NARROW | 2 << 9, 999);
    b.time.advance_to(((1 << 32) + 998) * 10);
    assert_eq!(b.irq.rises(2), 0);
    b.time.advance(10);
    assert_eq!(b.irq.rises(2), 1);
    b.time.advance((1 << 32) * 10);
    assert_eq!(b.irq.rises(2), 2, "32-bit timers match again after each wrap");
}

#[test]
fn legacy_replacement_and_periodic_mode_as_linux_sets_them_up() {
    let b = Bench::new();
    b.hpet.write(0x10, 4, ENABLE | LEGACY);
    assert!(b.irq.level(LEGACY_MODE));
    b.hpet.write(0x100, 4, INTERRUPT | PERIODIC | SET_VALUE | NARROW);
    b.hpet.write(0x108, 4, 10_000); // first match
    b.hpet.write(0x108, 4, 5_000); // period
    b.time.advance_to(100_000);
    assert_eq!(b.irq.rises(LEGACY_TIMER), 1);
    b.time.advance_to(249_999);
    assert_eq!(b.irq.rises(LEGACY_TIMER), 3);
    assert_eq!(b.hpet.read(0x108, 4), 25_000, "the comparator is the accumulator");
    b.time.stall_until(520_000);
    assert_eq!(b.irq.rises(LEGACY_TIMER), 4, "a late host sends one");
    assert_eq!(b.hpet.read(0x108, 4), 55_000, "and keeps the phase");
    b.timer(1, INTERRUPT, 53_000);
    b.time.advance_to(530_000);
    assert_eq!(b.irq.rises(LEGACY_RTC), 1);
    b.hpet.write(0x10, 4, ENABLE);
    assert!(!b.irq.level(LEGACY_MODE));
}

#[test]
fn level_holds_until_its_status_is_cleared() {
    let b = Bench::new();
    b.hpet.write(0x10, 8, ENABLE);
    b.timer(1, INTERRUPT | LEVEL | 16 << 9, 10);
    b.time.advance_to(100);
    assert!(b.irq.level(16));
    assert_eq!(b.hpet.read(0x20, 4), 2);
    b.hpet.write(0x20, 4, 1);
    assert!(b.irq.level(16), "another timer's bit");
    b.hpet.write(0x10, 8, 0);
    assert!(!b.irq.level(16), "no interrupts while disabled");
    b.hpet.write(0x10, 8, ENABLE);
    assert!(b.irq.level(16));
    b.hpet.write(0x20, 4, 2);
    assert!(!b.irq.level(16));
}

#[test]
fn very_short_periods_are_grouped() {
    let b = Bench::new();
    b.hpet.write(0x10, 8, ENABLE);
    b.timer(0, INTERRUPT | PERIODIC | SET_VALUE | 2 << 9, 1);
    b.time.advance_to(1_000_000);
    assert!((50..=100).contains(&b.irq.rises(2)), "{}", b.irq.rises(2));
    assert_eq!(b.hpet.read(0x108, 8), 100_001);
}

#[test]
fn message_signalled() {
    let b = Bench::new();
    b.hpet.write(0x110, 8, 0xFEE0_1000 << 32 | 0x55);
    b.timer(0, INTERRUPT | MESSAGE | 17 << 9, 10);
    b.hpet.write(0x10, 8, ENABLE);
    b.time.advance_to(100);
    assert_eq!(*locked(&b.msi.0), [(0xFEE0_1000, 0x55)]);
    assert_eq!(b.irq.history(), []);
}

#[test]
fn without_interrupts_no_host_timer_runs() {
    let b = Bench::new();
    b.hpet.write(0x10, 8, ENABLE);
    b.timer(0, PERIODIC | SET_VALUE | LEVEL, 10);
    assert_eq!(b.time.next_deadline(), None);
    b.time.advance_to(1_000);
    assert_eq!(b.hpet.read(0x20, 4), 1, "but the status is kept");
    b.hpet.write(0x100, 8, PERIODIC | INTERRUPT | LEVEL | 20 << 9);
    assert!(b.irq.level(20));
}

#[test]
fn state_moves_and_resets() {
    let b = Bench::new();
    let fresh = b.hpet.save();
    b.hpet.write(0x10, 8, ENABLE);
    b.timer(1, INTERRUPT | LEVEL | 16 << 9, 10);
    b.timer(2, INTERRUPT | 17 << 9, 1_000);
    b.time.advance_to(100);
    let other = Bench::new();
    moves_to(&*b.hpet, &*other.hpet);
    assert_eq!(other.irq.history(), [], "restoring makes no edges");
    other.time.advance_to(10_000);
    assert_eq!(other.irq.rises(17), 1, "and the timers run on");
    other.hpet.write(0x20, 4, 2);
    assert_eq!(other.irq.history().last(), Some(&(16, false)));
    b.hpet.reset();
    assert_eq!(b.hpet.save(), fresh);
    assert!(!b.irq.level(16));
    let mut out = Inspector::new();
    b.hpet.inspect(&mut out);
    assert!(out.lines().contains(&"config = 0x0".to_string()));
}

#[test]
fn random_accesses_do_no_harm() {
    let b = Bench::new();
    fuzz(&*b.hpet, &[(&*b.hpet, WINDOW)], &b.time, 0x4E7);
}
