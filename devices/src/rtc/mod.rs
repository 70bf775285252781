//! MC146818 real-time clock with 128 bytes of CMOS RAM (Motorola MC146818A datasheet), ports 0x70 and 0x71.
//!
//! Time of day is the guest's wall clock plus an offset that the guest moves by setting the time. The flags of register
//! C are worked out when somebody looks; host timers run only for interrupts that are enabled. The weekday follows
//! from the date: writing it has no effect.

mod calendar;
mod registers;

use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::{Clock, IrqLine, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, TimerSlot, Wire, locked};
use registers::{Now, Regs};
use std::sync::{Arc, Mutex, Weak};

/// CMOS bytes that firmware and boot loaders read, which the program sets.
pub mod cmos {
    /// Reason of the last shutdown; survives a reset.
    pub const SHUTDOWN_STATUS: u8 = 0x0f;
    /// Floppy drive types.
    pub const FLOPPY_TYPES: u8 = 0x10;
    /// Equipment: bits of floppy drives, display, keyboard.
    pub const EQUIPMENT: u8 = 0x14;
    /// The century of the year, as the clock counts it.
    pub const CENTURY: u8 = 0x32;
    /// First and second boot device, low half first; see [`BOOT_ORDER_THIRD`].
    pub const BOOT_ORDER: u8 = 0x3d;
    /// Third boot device in the high half; bit 0: diskettes without a signature boot too.
    pub const BOOT_ORDER_THIRD: u8 = 0x38;
    /// Processors besides the first, for firmware.
    pub const PROCESSORS: u8 = 0x5f;
}

/// Timer tags.
const PERIODIC: u32 = 0;
const SECONDS: u32 = 1;

/// The clock and its RAM.
///
/// Locks: `regs` is a leaf; line and timers are driven after it is dropped.
pub struct Rtc {
    irq: Wire,
    periodic: TimerSlot,
    seconds: TimerSlot,
    clock: Arc<dyn Clock>,
    /// Who hears how many seconds the guest has put the clock from where it was at start.
    pub set: Hook<i64>,
    regs: Mutex<Regs>,
}

impl Rtc {
    /// A running clock with interrupt `irq` (ISA IRQ 8), BCD and 24 hours.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, timers: &dyn TimerService) -> Arc<Self> {
        let regs = Regs::new(&Now::of(&*clock));
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            irq: Wire::new(irq),
            periodic: TimerSlot::new(timers.create(this.clone(), PERIODIC)),
            seconds: TimerSlot::new(timers.create(this.clone(), SECONDS)),
            clock,
            set: Hook::default(),
            regs: Mutex::new(regs),
        })
    }

    /// Index and data port (two bytes at 0x70).
    pub fn ports(self: &Arc<Self>) -> Registers {
        self.clone()
    }

    /// Sets a byte of CMOS RAM (index 0x0e to 0x7f); others are the clock's and stay.
    pub fn set_cmos(&self, index: u8, value: u8) {
        locked(&self.regs).set_ram(index, value);
    }

    /// Tells firmware the memory size: `below_4g` bytes from address 0, `above_4g` bytes from 4 GiB.
    pub fn set_memory_size(&self, below_4g: u64, above_4g: u64) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let capped = |value: u64, bytes: u32| value.min((1 << (8 * bytes)) - 1).to_le_bytes();
        let base = capped((below_4g / KIB).min(640), 2);
        let extended = capped(below_4g.saturating_sub(MIB) / KIB, 2);
        let above_16m = capped(below_4g.saturating_sub(16 * MIB) / (64 * KIB), 2);
        let high = capped(above_4g / (64 * KIB), 3);
        let mut regs = locked(&self.regs);
        let mut put = |first: u8, bytes: &[u8]| (first..).zip(bytes).for_each(|(i, b)| regs.set_ram(i, *b));
        put(0x15, &base[..2]);
        put(0x17, &extended[..2]);
        put(0x30, &extended[..2]);
        put(0x34, &above_16m[..2]);
        put(0x5b, &high[..3]);
    }

    /// Whether bit 7 of the index port masks the NMI.
    pub fn nmi_masked(&self) -> bool {
        locked(&self.regs).nmi_masked()
    }

    fn with<R>(&self, change: impl FnOnce(&mut Regs, &Now) -> R) -> R {
        let now = Now::of(&*self.clock);
        let mut regs = locked(&self.regs);
        regs.catch_up(&now);
        let result = change(&mut regs, &now);
        self.irq.want(regs.interrupt());
        self.periodic.want(regs.periodic_deadline(&now));
        self.seconds.want(regs.seconds_deadline(&now));
        drop(regs);
        self.irq.flush();
        self.periodic.flush();
        self.seconds.flush();
        result
    }
}

impl RegisterBlock for Rtc {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        // The index port cannot be read on a PC.
        if offset & 1 == 0 { 0xff } else { self.with(Regs::read).into() }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u8;
        if offset & 1 == 0 {
            locked(&self.regs).select(value);
        } else {
            let (before, after) = self.with(|regs, now| {
                let before = regs.offset();
                regs.write(value, now);
                (before, regs.offset())
            });
            if before != after {
                self.set.call(after);
            }
        }
    }
}

impl TimerTarget for Rtc {
    fn timer_fired(&self, tag: u32, _now_ns: u64) {
        match tag {
            PERIODIC => self.periodic.fired(),
            _ => self.seconds.fired(),
        }
        self.with(|_, _| ());
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        "mc146818rtc"
    }

    /// The battery keeps time, formats and RAM; the RESET pin clears interrupts (datasheet, "RESET").
    fn reset(&self) {
        let Self { irq: _, periodic: _, seconds: _, clock: _, set: _, regs: _ } = self;
        self.with(|regs, _| regs.reset_pin());
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { irq, periodic, seconds, clock, set: _, regs } = self;
        let new: Regs = from_state(self.name(), state)?;
        if !new.is_sane() {
            return Err(StateError::Malformed {
                device: self.name(),
                reason: "no such time, or CMOS RAM is not 128 bytes".into(),
            });
        }
        let now = Now::of(&**clock);
        let mut regs = locked(regs);
        *regs = new;
        irq.adopt(regs.interrupt());
        periodic.want(regs.periodic_deadline(&now));
        seconds.want(regs.seconds_deadline(&now));
        drop(regs);
        periodic.flush();
        seconds.flush();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let now = Now::of(&*self.clock);
        locked(&self.regs).inspect(out, &now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakeTime, fuzz, moves_to};

    const SECOND: u64 = 1_000_000_000;
    const IRQ: u32 = 8;

    struct Bench {
        time: Arc<FakeTime>,
        irq: Arc<FakeIrq>,
        rtc: Arc<Rtc>,
    }

    impl Bench {
        fn new() -> Self {
            let (time, irq) = (FakeTime::new(), FakeIrq::new());
            Self { rtc: Rtc::new(irq.line(IRQ), time.clone(), &*time), time, irq }
        }
        fn get(&self, index: u64) -> u64 {
            self.rtc.write(0, 1, index);
            self.rtc.read(1, 1)
        }
        fn put(&self, index: u64, value: u64) {
            self.rtc.write(0, 1, index);
            self.rtc.write(1, 1, value);
        }
        /// Century, year, month, day, weekday, hours, minutes, seconds.
        fn date(&self) -> [u64; 8] {
            [0x32, 9, 8, 7, 6, 4, 2, 0].map(|i| self.get(i))
        }
    }

    #[test]
    fn shows_the_wall_clock_in_bcd() {
        let b = Bench::new();
        assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58]);
        b.time.advance(2 * SECOND);
        assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0], "a leap day");
        assert_eq!(b.get(0x0d), 0x80, "the battery is good");
    }

    #[test]
    fn other_formats() {
        let b = Bench::new();
        b.put(0x0b, 0x04);
        assert_eq!(b.date(), [20, 24, 2, 28, 4, 0x80 | 11, 59, 58]);
        b.put(0x0b, 0x06);
        assert_eq!(b.date(), [20, 24, 2, 28, 4, 23, 59, 58]);
    }

    #[test]
    fn setting_the_time_with_set_held() {
        let b = Bench::new();
        b.put(0x0b, 0x82);
        b.time.advance(10 * SECOND);
        assert_eq!(b.get(0), 0x58, "time stands still while SET is on");
        for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
            b.put(index, value);
        }
        assert_eq!(b.get(9), 0x99);
        b.put(0x0b, 0x02);
        b.time.advance(SECOND);
        assert_eq!(b.date(), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
        b.put(0x32, 0x99);
        assert_eq!(b.date()[..2], [0x99, 0x00], "far away, too");
    }

    #[test]
    fn setting_one_register_while_it_runs() {
        let b = Bench::new();
        b.put(4, 0x05);
        b.time.advance(SECOND);
        assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x28, 4, 0x05, 0x59, 0x59]);
    }

    #[test]
    fn update_in_progress_before_each_second() {
        let b = Bench::new();
        assert_eq!(b.get(0x0a), 0x26);
        b.time.advance(SECOND - 244_000);
        assert_eq!(b.get(0x0a), 0xa6);
        assert_eq!(b.get(0), 0x58);
        b.time.advance(244_000);
        assert_eq!(b.get(0x0a), 0x26);
        assert_eq!(b.get(0), 0x59);
    }

    #[test]
    fn update_ended_interrupt() {
        let b = Bench::new();
        assert_eq!(b.time.next_deadline(), None, "nobody asked, no host timer");
        b.put(0x0b, 0x12);
        b.time.advance(SECOND - 1);
        assert!(!b.irq.level(IRQ));
        b.time.advance(1);
        assert!(b.irq.level(IRQ));
        b.time.advance(3 * SECOND);
        assert_eq!(b.irq.rises(IRQ), 1, "not again before register C was read");
        assert_eq!(b.get(0x0c) & 0x90, 0x90);
        assert!(!b.irq.level(IRQ));
        assert_eq!(b.get(0x0c), 0);
        b.time.advance(SECOND);
        assert_eq!(b.irq.rises(IRQ), 2);
    }

    #[test]
    fn flags_are_set_without_interrupts_too() {
        let b = Bench::new();
        b.time.advance(SECOND);
        assert_eq!(b.get(0x0c), 0x50);
        assert_eq!(b.irq.rises(IRQ), 0);
    }

    #[test]
    fn alarm_at_a_time_of_day() {
        let b = Bench::new();
        for (index, value) in [(5, 0x00), (3, 0x01), (1, 0x30)] {
            b.put(index, value);
        }
        b.put(0x0b, 0x22);
        b.time.advance(91 * SECOND);
        assert!(!b.irq.level(IRQ));
        b.time.advance(SECOND);
        assert!(b.irq.level(IRQ));
        assert_eq!(b.get(0x0c) & 0xa0, 0xa0);
        b.time.advance(86_399 * SECOND);
        assert!(!b.irq.level(IRQ));
        b.time.advance(SECOND);
        assert!(b.irq.level(IRQ), "every day");
    }

    #[test]
    fn alarm_with_wildcards_and_impossible_alarm() {
        let b = Bench::new();
        for (index, value) in [(5, 0xff), (3, 0xc0), (1, 0x05)] {
            b.put(index, value);
        }
        b.put(0x0b, 0x22);
        b.time.advance(7 * SECOND);
        assert_eq!(b.get(0x0c) & 0x20, 0x20);
        b.time.advance(60 * SECOND);
        assert_eq!(b.irq.rises(IRQ), 2, "each minute");
        b.get(0x0c);
        b.put(1, 0x99);
        b.time.advance(200_000 * SECOND);
        assert_eq!(b.get(0x0c) & 0x20, 0);
    }

    #[test]
    fn periodic_interrupts_keep_their_rate() {
        let b = Bench::new();
        b.put(0x0a, 0x26);
        b.put(0x0b, 0x42);
        b.irq.clear();
        for _ in 0..2048 {
            b.time.advance(SECOND / 1024 + 1);
            if b.irq.level(IRQ) {
                assert_eq!(b.get(0x0c) & 0xc0, 0xc0);
            }
        }
        // 2048 steps of a 1024th of a second.
        assert_eq!(b.irq.rises(IRQ), 2048);
        b.time.stall_until(100 * SECOND);
        assert_eq!(b.irq.rises(IRQ), 2049, "a late host gives one");
        b.put(0x0b, 0x02);
        assert_eq!(b.time.next_deadline(), None);
    }

    #[test]
    fn divider_reset_stops_the_clock_half_a_second_before_the_next() {
        let b = Bench::new();
        b.put(0x0a, 0x66);
        b.time.advance(5 * SECOND);
        assert_eq!(b.get(0), 0x58);
        b.put(0x0a, 0x26);
        b.time.advance(SECOND / 2 - 1);
        assert_eq!(b.get(0), 0x58);
        b.time.advance(1);
        assert_eq!(b.get(0), 0x59);
    }

    #[test]
    fn memory_size_and_ram() {
        let b = Bench::new();
        b.rtc.set_memory_size(0x4000_0000, 0x1_0000_0000);
        let word = |at| b.get(at) | b.get(at + 1) << 8;
        assert_eq!(word(0x15), 640);
        assert_eq!((word(0x17), word(0x30)), (0xffff, 0xffff));
        assert_eq!(word(0x34), (0x4000_0000 - 0x100_0000) / 0x1_0000);
        assert_eq!(word(0x5b) | b.get(0x5d) << 16, 0x1_0000);
        b.rtc.set_cmos(cmos::PROCESSORS, 3);
        b.rtc.set_cmos(0x0b, 0xff);
        assert_eq!((b.get(0x5f), b.get(0x0b)), (3, 2));
        b.put(0x0f, 0x0a);
        b.rtc.reset();
        assert_eq!(b.get(0x0f), 0x0a, "the battery keeps it");
    }

    #[test]
    fn index_port_masks_nmi() {
        let b = Bench::new();
        assert!(!b.rtc.nmi_masked());
        b.rtc.write(0, 1, 0x8f);
        assert!(b.rtc.nmi_masked());
        assert_eq!(b.rtc.read(0, 1), 0xff);
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = Bench::new();
        b.put(0x0b, 0x72);
        let other = Bench::new();
        moves_to(&*b.rtc, &*other.rtc);
        other.time.advance(SECOND);
        assert!(other.irq.level(IRQ));
        b.rtc.reset();
        b.put(0, 0);
        b.rtc.reset();
        let fresh = Bench::new();
        fresh.put(0, 0);
        fresh.rtc.reset();
        assert_eq!(b.rtc.save(), fresh.rtc.save());
        assert_eq!(b.time.next_deadline(), None);
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new();
        fuzz(&*b.rtc, &[(&*b.rtc, 2)], &b.time, 7);
        let mut state = b.rtc.save();
        state["ram"] = serde_json::json!([1, 2, 3]);
        b.rtc.restore(&state).expect_err("too little RAM");
        let mut state = b.rtc.save();
        state["offset_s"] = i64::MAX.into();
        b.rtc.restore(&state).expect_err("no such time");
    }
}
