use super::*;
use crate::fakes::{FakeCpu, FakeTime, Random, Signal, moves_to, same_after_restore};

/// MMIO offsets.
const ID: u64 = 0x20;
const TPR: u64 = 0x80;
const PPR: u64 = 0xA0;
const EOI: u64 = 0xB0;
const LDR: u64 = 0xD0;
const DFR: u64 = 0xE0;
const SVR: u64 = 0xF0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3E0;

const BASE_XAPIC: u64 = 0xFEE0_0800;
const BASE_X2APIC: u64 = 0xFEE0_0C00;
const BSP: u64 = 0x100;

#[derive(Default)]
struct Ends(Mutex<Vec<u8>>);

impl EoiSink for Ends {
    fn end_of_interrupt(&self, vector: u8) {
        locked(&self.0).push(vector);
    }
}

struct Bench {
    time: Arc<FakeTime>,
    cpus: Vec<Arc<FakeCpu>>,
    ends: Arc<Ends>,
    apics: Arc<LocalApics>,
}

impl Bench {
    fn new(count: u32) -> Self {
        let time = FakeTime::new();
        let cpus: Vec<_> = (0..count).map(|_| Arc::new(FakeCpu::default())).collect();
        let made = cpus.iter().zip(0..).map(|(cpu, apic_id)| ApicCpu { apic_id, signals: cpu.clone() });
        let apics = LocalApics::new(ApicFeatures::default(), made.collect(), time.clone(), &*time);
        let ends = Arc::new(Ends::default());
        let weak: Weak<Ends> = Arc::downgrade(&ends);
        apics.connect_eoi(weak);
        Self { time, cpus, ends, apics }
    }

    /// All APICs enabled by software, with flat logical IDs.
    fn enabled(count: u32) -> Self {
        let b = Self::new(count);
        for cpu in 0..count {
            b.write(cpu, SVR, 0x1FF);
            b.write(cpu, LDR, 1 << (24 + cpu));
        }
        b
    }

    fn write(&self, cpu: u32, offset: u64, value: u32) {
        self.apics.mmio_write(cpu, offset, 4, value.into());
    }

    fn read(&self, cpu: u32, offset: u64) -> u32 {
        self.apics.mmio_read(cpu, offset, 4) as u32
    }

    fn fixed(&self, destination: Destination, vector: u8) -> bool {
        self.apics.deliver(Message { destination, mode: DeliveryMode::Fixed, vector, level_triggered: false })
    }

    fn acknowledge(&self, cpu: u32) -> Option<u8> {
        self.apics.acknowledge(cpu, &|| None)
    }

    fn signals(&self, cpu: usize) -> Vec<Signal> {
        std::mem::take(&mut *locked(&self.cpus[cpu].0))
    }
}

#[test]
fn after_power_on() {
    let b = Bench::new(2);
    assert_eq!(b.apics.apic_base(0), BASE_XAPIC | BSP);
    assert_eq!(b.apics.apic_base(1), BASE_XAPIC);
    assert_eq!(b.read(1, ID), 1 << 24);
    assert_eq!(b.read(0, 0x30), 0x0106_0014);
    assert_eq!(b.read(0, SVR), 0xFF);
    assert_eq!((b.read(0, LVT_LINT0), b.read(1, LVT_LINT0)), (0x700, 0x1_0000));
    assert_eq!(b.read(0, DFR), u32::MAX);
    assert_eq!(b.apics.mmio_read(1, ID + 3, 1), 1, "bytes of a register");
    assert_eq!(b.apics.mmio_read(9, ID, 4), 0xFFFF_FFFF, "no such CPU");
}

#[test]
fn priorities_order_delivery() {
    let b = Bench::enabled(1);
    assert!(b.fixed(Destination::Physical(0), 0x41));
    assert!(b.fixed(Destination::Physical(0), 0x62));
    assert!(b.fixed(Destination::Physical(0), 0x6A));
    assert_eq!(b.signals(0), [Signal::Pending(true)]);
    assert_eq!(b.acknowledge(0), Some(0x6A));
    assert_eq!(b.read(0, PPR), 0x60);
    assert_eq!(b.signals(0), [Signal::Pending(false)], "the same class has to wait");
    assert_eq!(b.acknowledge(0), None);
    assert_eq!(b.signals(0), [Signal::Pending(false)], "told anew after each acknowledge");
    b.write(0, EOI, 0);
    assert_eq!(b.signals(0), [Signal::Pending(true)]);
    b.apics.set_cr8(0, 6);
    assert_eq!((b.read(0, TPR), b.apics.cr8(0)), (0x60, 6));
    assert_eq!(b.signals(0), [Signal::Pending(false)]);
    b.apics.set_cr8(0, 5);
    assert_eq!(b.acknowledge(0), Some(0x62));
    b.write(0, EOI, 0);
    b.write(0, TPR, 0);
    assert_eq!(b.acknowledge(0), Some(0x41));
    assert_eq!(b.read(0, 0x100 + 0x20), 1 << 1, "ISR shows vector 0x41");
}

#[test]
fn disabled_by_software_takes_no_vectors() {
    let b = Bench::enabled(1);
    b.write(0, LVT_TIMER, 0x50);
    b.write(0, SVR, 0xFF);
    assert_eq!(b.read(0, LVT_TIMER), 0x1_0050, "disabling masks");
    b.write(0, LVT_TIMER, 0x50);
    assert_eq!(b.read(0, LVT_TIMER), 0x1_0050, "and masks stay");
    assert!(!b.fixed(Destination::All, 0x40));
    let nmi = Message { destination: Destination::All, mode: DeliveryMode::Nmi, vector: 0, level_triggered: false };
    assert!(b.apics.deliver(nmi));
    assert_eq!(b.signals(0), [Signal::Nmi]);
}

#[test]
fn level_interrupts_report_their_end() {
    let b = Bench::enabled(1);
    let level = Message {
        destination: Destination::Physical(0),
        mode: DeliveryMode::Fixed,
        vector: 0x50,
        level_triggered: true,
    };
    b.apics.deliver(level);
    assert_eq!(b.read(0, 0x180 + 0x20), 1 << 16, "TMR");
    b.acknowledge(0);
    b.write(0, EOI, 0);
    assert_eq!(*locked(&b.ends.0), [0x50]);
    b.apics.deliver(Message { level_triggered: false, ..level });
    b.acknowledge(0);
    b.write(0, EOI, 0);
    b.write(0, SVR, 0x11FF);
    b.apics.deliver(level);
    b.acknowledge(0);
    b.write(0, EOI, 0);
    assert_eq!(locked(&b.ends.0).len(), 1, "edges do not, nor level with broadcasts suppressed");
}

#[test]
fn virtual_wire() {
    let b = Bench::new(2);
    let pic = || Some(0x08);
    b.apics.set_irq(PIN_INTR, true);
    assert_eq!(b.signals(0), [Signal::Pending(true)]);
    assert_eq!(b.signals(1), [], "masked on application processors");
    assert_eq!(b.apics.acknowledge(0, &pic), Some(8));
    assert_eq!(b.apics.acknowledge(1, &pic), None);
    b.write(0, SVR, 0x1FF);
    b.fixed(Destination::Physical(0), 0x20);
    assert_eq!(b.apics.acknowledge(0, &pic), Some(0x20), "the APIC's own come first");
    assert_eq!(b.apics.acknowledge(0, &pic), Some(8));
    b.write(0, LVT_LINT0, 0x1_0700);
    assert_eq!(b.apics.acknowledge(0, &pic), None);
    assert!(b.apics.set_apic_base(0, 0xFEE0_0000));
    assert_eq!(b.apics.acknowledge(0, &pic), Some(8), "without the APIC the pin is INTR");
    b.apics.set_irq(PIN_INTR, false);
    assert_eq!(b.apics.acknowledge(0, &pic), None);
    b.apics.set_irq(PIN_NMI, true);
    assert!(b.signals(0).contains(&Signal::Nmi), "and the other one NMI");
}

#[test]
fn local_pins() {
    let b = Bench::enabled(1);
    b.write(0, LVT_LINT1, 0x400);
    b.apics.set_irq(PIN_NMI, true);
    b.apics.set_irq(PIN_NMI, true);
    assert_eq!(b.signals(0), [Signal::Nmi], "once an edge");
    b.write(0, LVT_LINT0, 0x8060);
    b.apics.set_irq(PIN_INTR, true);
    assert_eq!(b.read(0, LVT_LINT0), 0xC060, "remote IRR");
    assert_eq!(b.acknowledge(0), Some(0x60));
    b.write(0, EOI, 0);
    assert_eq!(b.acknowledge(0), Some(0x60), "still asserted");
    b.apics.set_irq(PIN_INTR, false);
    b.write(0, EOI, 0);
    assert_eq!((b.acknowledge(0), b.read(0, LVT_LINT0)), (None, 0x8060));
}

#[test]
fn interprocessor_interrupts() {
    let b = Bench::enabled(4);
    let receivers = |vector| (0..4).filter(|&cpu| b.acknowledge(cpu) == Some(vector)).collect::<Vec<_>>();
    b.write(0, ICR_HIGH, 2 << 24);
    b.write(0, ICR, 0x4031);
    assert_eq!(receivers(0x31), [2], "physical");
    b.write(0, ICR_HIGH, 0x0A << 24);
    b.write(0, ICR, 0x4842);
    assert_eq!(receivers(0x42), [1, 3], "logical flat");
    b.write(0, ICR_HIGH, 0xFF << 24);
    b.write(0, ICR, 0x4053);
    assert_eq!(receivers(0x53), [0, 1, 2, 3], "broadcast");
    b.write(1, ICR, 0xC_4064);
    assert_eq!(receivers(0x64), [0, 2, 3], "all but self");
    b.write(1, ICR, 0x8_4075);
    assert_eq!(receivers(0x75), [0, 1, 2, 3], "all");
    b.write(1, ICR, 0x4_4086);
    assert_eq!(receivers(0x86), [1], "self");
    assert_eq!(b.read(1, ICR), 0x4_4086);
    for cpu in 0..4 {
        b.write(cpu, DFR, 0x0FFF_FFFF);
        b.write(cpu, LDR, ((cpu / 2) << 28) | (1 << (24 + cpu % 2)));
    }
    b.write(0, ICR_HIGH, 0x13 << 24);
    b.write(0, ICR, 0x4897);
    assert_eq!(receivers(0x97), [2, 3], "cluster");
}

#[test]
fn lowest_priority_finds_the_idlest_and_takes_turns() {
    let b = Bench::enabled(3);
    b.write(0, TPR, 0x20);
    b.write(1, TPR, 0x10);
    b.write(2, TPR, 0x10);
    let lowest = |vector: u32| {
        b.apics.send_msi(0xFEE0_7004, 0x100 | vector);
        (0..3).find(|&cpu| b.acknowledge(cpu) == Some(vector as u8)).unwrap()
    };
    assert_eq!(lowest(0x40), 1);
    assert_eq!(lowest(0x51), 2, "CPU 1 is busy");
    b.write(1, EOI, 0);
    b.write(2, EOI, 0);
    assert_eq!([lowest(0x41), lowest(0x52)], [1, 2]);
    b.write(1, TPR, 0xF0);
    b.write(2, TPR, 0xF0);
    assert_eq!(lowest(0x43), 0);
}

#[test]
fn init_and_start_up() {
    let b = Bench::enabled(2);
    b.write(1, TPR, 0x30);
    b.write(0, ICR_HIGH, 1 << 24);
    b.write(0, ICR, 0xC500);
    b.write(0, ICR, 0x8500);
    b.write(0, ICR, 0x4699);
    assert_eq!(b.signals(1), [Signal::Init, Signal::StartUp(0x99)], "level de-assert does nothing");
    assert_eq!((b.read(1, TPR), b.read(1, SVR), b.read(1, ID)), (0, 0xFF, 1 << 24));
    assert_eq!(b.signals(0), []);
}

#[test]
fn errors() {
    let b = Bench::enabled(1);
    b.write(0, LVT_ERROR, 0xFE);
    b.write(0, ICR, 0x4_4005);
    assert_eq!(b.read(0, ESR), 0, "shown after a write only");
    b.write(0, ESR, 0);
    assert_eq!(b.read(0, ESR), 1 << 5);
    assert_eq!(b.acknowledge(0), Some(0xFE));
    b.fixed(Destination::All, 0x0F);
    b.write(0, 0x3F0, 1);
    b.write(0, ESR, 0);
    assert_eq!(b.read(0, ESR), 1 << 6 | 1 << 7);
    b.write(0, LVT_ERROR, 3);
    b.write(0, ICR, 0x4_4005);
    b.write(0, ESR, 0);
    assert_eq!(b.read(0, ESR), 1 << 5 | 1 << 6, "an error interrupt with an illegal vector");
}

#[test]
fn timer_modes() {
    let b = Bench::enabled(1);
    b.write(0, DIVIDE, 0xB);
    b.write(0, LVT_TIMER, 0x40);
    b.write(0, INITIAL, 1_000);
    b.time.advance_to(400);
    assert_eq!(b.read(0, CURRENT), 600);
    b.time.advance_to(1_000);
    assert_eq!((b.acknowledge(0), b.read(0, CURRENT)), (Some(0x40), 0));
    b.write(0, EOI, 0);
    b.write(0, LVT_TIMER, 0x2_0041);
    b.write(0, INITIAL, 20_000);
    for period in 1..=3 {
        b.time.advance_to(1_000 + period * 20_000);
        assert_eq!(b.acknowledge(0), Some(0x41), "period {period}");
        b.write(0, EOI, 0);
    }
    b.write(0, INITIAL, 0);
    assert_eq!(b.time.next_deadline(), None);
    b.write(0, LVT_TIMER, 0x4_0042);
    b.write(0, INITIAL, 100);
    assert_eq!(b.time.next_deadline(), None, "the count does not run in deadline mode");
    b.apics.set_tsc_offset(0, 10_000);
    assert!(b.apics.msr_write(0, 0x6E0, 95_000));
    assert_eq!(b.time.next_deadline(), Some(85_000));
    b.apics.set_tsc_offset(0, 11_000);
    assert_eq!((b.apics.msr_read(0, 0x6E0), b.time.next_deadline()), (Some(95_000), Some(84_000)));
    b.time.advance_to(84_000);
    assert_eq!((b.acknowledge(0), b.apics.msr_read(0, 0x6E0)), (Some(0x42), Some(0)));
    b.write(0, EOI, 0);
    assert!(b.apics.msr_write(0, 0x6E0, 1));
    assert_eq!(b.acknowledge(0), Some(0x42), "a deadline in the past fires at once");
}

#[test]
fn base_msr_transitions() {
    let b = Bench::new(1);
    assert!(!b.apics.set_apic_base(0, 0xFEE0_0400), "x2APIC without enable");
    assert!(!b.apics.set_apic_base(0, BASE_XAPIC | 1), "reserved bit");
    assert!(!b.apics.set_apic_base(0, BASE_XAPIC | 1 << 40), "beyond the physical address width");
    assert!(b.apics.set_apic_base(0, 0x1_0000_0800));
    assert_eq!((b.apics.apic_base(0), b.apics.mmio_base(0)), (0x1_0000_0900, Some(0x1_0000_0000)));
    assert!(b.apics.set_apic_base(0, BASE_X2APIC));
    assert_eq!(b.apics.mmio_base(0), None);
    assert_eq!(b.read(0, ID), u32::MAX, "no page in x2APIC mode");
    assert!(!b.apics.set_apic_base(0, BASE_XAPIC), "not back directly");
    assert!(b.apics.set_apic_base(0, 0xFEE0_0000));
    assert!(!b.apics.set_apic_base(0, BASE_X2APIC), "nor from disabled");
    assert!(b.apics.set_apic_base(0, BASE_XAPIC));
    let old = LocalApics::new(
        ApicFeatures { x2apic: false, physical_bits: 36 },
        vec![ApicCpu { apic_id: 0, signals: b.cpus[0].clone() }],
        b.time.clone(),
        &*b.time,
    );
    assert!(!old.set_apic_base(0, BASE_X2APIC));
}

#[test]
fn x2apic_registers() {
    let b = Bench::new(20);
    assert_eq!(b.apics.msr_read(0, 0x802), None, "not in xAPIC mode");
    assert!(!b.apics.msr_write(0, 0x80B, 0));
    for cpu in 0..20 {
        assert!(b.apics.set_apic_base(cpu, BASE_X2APIC));
        assert!(b.apics.msr_write(cpu, 0x80F, 0x1FF));
    }
    assert_eq!((b.apics.msr_read(19, 0x802), b.apics.msr_read(19, 0x80D)), (Some(19), Some(0x1_0008)));
    for (msr, value) in [(0x802, 0), (0x80A, 0), (0x80D, 0), (0x80B, 1), (0x828, 1), (0x808, 0x100), (0x810, 0)] {
        assert!(!b.apics.msr_write(0, msr, value), "{msr:#x}");
    }
    for (msr, value) in [(0x80F, 1 << 10), (0x832, 1 << 8), (0x83E, 4), (0x830, 1 << 13), (0x80F, 1 << 32)] {
        assert!(!b.apics.msr_write(0, msr, value), "{msr:#x}: reserved bit");
    }
    assert_eq!(b.apics.msr_read(0, 0x80E), None, "no destination format");
    assert_eq!(b.apics.msr_read(0, 0x831), None, "no high half of the ICR");
    assert!(b.apics.msr_write(0, 0x830, 0x0001_0009 << 32 | 0x4831));
    assert_eq!((b.acknowledge(16), b.acknowledge(19), b.acknowledge(3)), (Some(0x31), Some(0x31), None), "logical");
    assert!(b.apics.msr_write(0, 0x830, 17 << 32 | 0x4032));
    assert_eq!(b.acknowledge(17), Some(0x32), "physical");
    assert!(b.apics.msr_write(5, 0x83F, 0x33));
    assert_eq!(b.acknowledge(5), Some(0x33), "self");
    assert!(b.apics.msr_write(0, 0x830, 0xFFFF_FFFF << 32 | 0x4044));
    assert_eq!((0..20).filter(|&cpu| b.acknowledge(cpu) == Some(0x44)).count(), 20, "broadcast");
}

#[test]
fn state_moves_and_resets() {
    let b = Bench::enabled(2);
    let fresh = Bench::new(2).apics.save();
    b.write(0, LVT_TIMER, 0x2_0041);
    b.write(0, INITIAL, 10_000);
    b.fixed(Destination::Physical(1), 0x55);
    let other = Bench::new(2);
    moves_to(&*b.apics, &*other.apics);
    assert_eq!(other.signals(1), [Signal::Pending(true)]);
    assert_eq!(other.acknowledge(1), Some(0x55));
    other.time.advance_to(20_000);
    assert_eq!(other.acknowledge(0), Some(0x41), "the timer runs on");
    assert!(Bench::new(1).apics.restore(&b.apics.save()).is_err(), "other number of CPUs");
    same_after_restore(&*b.apics);
    let mut out = Inspector::new();
    b.apics.inspect(&mut out);
    assert!(out.lines().contains(&"  irr = 0x55".to_string()));
    b.apics.reset();
    assert_eq!(b.apics.save(), fresh);
    assert_eq!(b.time.next_deadline(), None);
    assert_eq!(b.signals(1).last(), Some(&Signal::Pending(false)));
}

#[test]
fn random_accesses_do_no_harm() {
    let b = Bench::enabled(3);
    let mut random = Random::new(0xA91C);
    for _ in 0..50_000 {
        let (cpu, value) = (random.below(4) as u32, random.next() >> random.below(64));
        match random.below(12) {
            0 => drop(b.apics.mmio_read(cpu, value, 1 << random.below(4))),
            1..=3 => b.apics.mmio_write(cpu, (value & 0x3F) << 4, 4, random.next()),
            4 => drop(b.apics.msr_write(cpu, 0x800 + (value & 0x3F) as u32, random.next() >> random.below(64))),
            5 => drop(b.apics.msr_read(cpu, 0x800 + (value & 0xFF) as u32)),
            6 => drop(b.apics.set_apic_base(cpu, value & 0xF00 | random.next() << 12 & 0xFF_F000)),
            7 => b.apics.send_msi(0xFEE0_0000 | value & 0xF_FFFF, random.next() as u32),
            8 => drop(b.acknowledge(cpu)),
            9 => b.apics.set_irq((value & 3) as u32, value & 4 != 0),
            10 => drop(b.apics.msr_write(cpu, 0x6E0, value)),
            _ => b.time.stall_until(b.time.now_ns() + (value & 0xFFFF)),
        }
    }
    same_after_restore(&*b.apics);
    // Whatever happened, what the CPU was told last is what an acknowledge finds.
    for cpu in 0..3 {
        let told = locked(&b.cpus[cpu as usize].0).iter().rev().find_map(|signal| match signal {
            Signal::Pending(pending) => Some(*pending),
            _ => None,
        });
        let found = b.apics.acknowledge(cpu, &|| Some(8)).is_some();
        assert_eq!(told.unwrap_or(false), found, "CPU {cpu}");
    }
}

/// A CPU that keeps only the last word.
#[derive(Default)]
struct LastWord(std::sync::atomic::AtomicBool);

impl CpuSignals for LastWord {
    fn set_interrupt_pending(&self, pending: bool) {
        self.0.store(pending, Ordering::SeqCst);
    }
    fn nmi(&self) {}
    fn smi(&self) {}
    fn init(&self) {}
    fn start_up(&self, _vector: u8) {}
}

/// Threads send while the CPU acknowledges: it may sleep only when there is nothing left, so no wake-up may be lost.
#[test]
fn no_interrupt_is_lost_between_threads() {
    let (time, cpu) = (FakeTime::new(), Arc::new(LastWord::default()));
    let cpus = vec![ApicCpu { apic_id: 0, signals: cpu.clone() }];
    let apics = LocalApics::new(ApicFeatures::default(), cpus, time.clone(), &*time);
    apics.mmio_write(0, SVR, 4, 0x1FF);
    let mut taken = 0;
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let in_time = || assert!(std::time::Instant::now() < limit, "a wake-up was lost");
    const EACH: usize = 2_000;
    std::thread::scope(|scope| {
        for sender in 0..2u32 {
            let (apics, in_time) = (&apics, &in_time);
            scope.spawn(move || {
                for _ in 0..EACH {
                    apics.send_msi(0xFEE0_0000, 0x40 + sender * 0x10);
                    // The next message must not merge with one that still waits in the IRR.
                    while apics.mmio_read(0, 0x220, 4) >> (sender * 16) & 1 != 0 {
                        in_time();
                        std::thread::yield_now();
                    }
                }
            });
        }
        while taken < 2 * EACH {
            if !cpu.0.load(Ordering::SeqCst) {
                in_time();
                std::thread::yield_now();
                continue;
            }
            if apics.acknowledge(0, &|| None).is_some() {
                taken += 1;
                apics.mmio_write(0, EOI, 4, 0);
            }
        }
    });
    assert!(!cpu.0.load(Ordering::SeqCst));
}

/// A CPU that, while it is told of an interrupt, takes it, ends it, finds nothing more, and gets another one: what a
/// processor's thread may do while the thread that tells it is held up.
#[derive(Default)]
struct Quick {
    apics: OnceLock<Weak<LocalApics>>,
    request: std::sync::atomic::AtomicBool,
    told: AtomicUsize,
}

impl CpuSignals for Quick {
    fn set_interrupt_pending(&self, pending: bool) {
        self.request.store(pending, Ordering::SeqCst);
        if !pending || self.told.fetch_add(1, Ordering::SeqCst) != 0 {
            return;
        }
        let apics = self.apics.get().and_then(Weak::upgrade).expect("connected");
        let take = || {
            self.request.store(false, Ordering::SeqCst);
            apics.acknowledge(0, &|| None)
        };
        assert_eq!(take(), Some(0x41));
        apics.mmio_write(0, EOI, 4, 0);
        assert_eq!(take(), None);
        let mode = DeliveryMode::Fixed;
        apics.deliver(Message { destination: Destination::Physical(0), mode, vector: 0x42, level_triggered: false });
    }
    fn nmi(&self) {}
    fn smi(&self) {}
    fn init(&self) {}
    fn start_up(&self, _: u8) {}
}

#[test]
fn an_interrupt_is_told_after_an_acknowledge_that_found_nothing() {
    let (time, cpu) = (FakeTime::new(), Arc::new(Quick::default()));
    let made = vec![ApicCpu { apic_id: 0, signals: cpu.clone() }];
    let apics = LocalApics::new(ApicFeatures::default(), made, time.clone(), &*time);
    assert!(cpu.apics.set(Arc::downgrade(&apics)).is_ok());
    apics.mmio_write(0, SVR, 4, 0x1FF);
    apics.deliver(Message {
        destination: Destination::Physical(0),
        mode: DeliveryMode::Fixed,
        vector: 0x41,
        level_triggered: false,
    });
    assert!(cpu.request.load(Ordering::SeqCst), "the second interrupt waits and nobody was told");
    assert_eq!(apics.acknowledge(0, &|| None), Some(0x42));
}
