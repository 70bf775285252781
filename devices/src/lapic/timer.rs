//! The local APIC timer (SDM 3A 11.5.4). Its input clock is 1 GHz: one count a nanosecond of guest time before the
//! divider, the same rate as the time stamp counter.

use serde::{Deserialize, Serialize};

/// Periods below this do not each get a call of the timer service.
const SHORTEST_WAKE_NS: u64 = 10_000;

/// Timer mode, bits 18:17 of the LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// The reserved value 3 behaves as one-shot that never runs on silicon; here as one-shot.
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// The timer's registers and where its count stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApicTimer {
    /// Initial count register.
    pub(super) initial: u32,
    /// Divide configuration register, bits 3, 1 and 0.
    pub(super) divide: u32,
    /// The count at `base_ns`, from which the current count follows.
    base_count: u32,
    base_ns: u64,
    /// Guest time of the next expiry, if it runs.
    expiry_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    tsc_deadline: u64,
}

impl ApicTimer {
    /// Nanoseconds a count (SDM 3A figure 11-10: 111 divides by one).
    fn divisor(&self) -> u64 {
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        1 << ((code + 1) & 7)
    }

    /// Guest time at which [`ApicTimer::expire`] wants to be called. Periods too short to be kept up with are
    /// looked at in groups, so that a guest cannot keep the timer thread busy.
    pub(super) fn wake_ns(&self, mode: TimerMode) -> Option<u64> {
        let hasty = mode == TimerMode::Periodic && u64::from(self.initial) * self.divisor() < SHORTEST_WAKE_NS;
        Some(self.expiry_ns?.saturating_add(if hasty { SHORTEST_WAKE_NS } else { 0 }))
    }

    /// Current count register.
    pub(super) fn current(&self, mode: TimerMode, now_ns: u64) -> u32 {
        if mode == TimerMode::TscDeadline || self.expiry_ns.is_none() {
            return 0;
        }
        let elapsed = now_ns.saturating_sub(self.base_ns) / self.divisor();
        let base = u64::from(self.base_count);
        if elapsed < base {
            return (base - elapsed) as u32;
        }
        match (mode, self.initial) {
            (TimerMode::Periodic, initial @ 1..) => initial - ((elapsed - base) % u64::from(initial)) as u32,
            _ => 0,
        }
    }

    /// Counts down from `count` beginning now; 0 stops.
    fn run_from(&mut self, count: u32, now_ns: u64) {
        self.base_count = count;
        self.base_ns = now_ns;
        self.expiry_ns = (count != 0).then(|| now_ns.saturating_add(u64::from(count) * self.divisor()));
    }

    /// Writes the initial count register, which starts the timer. Ignored in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, mode: TimerMode, count: u32, now_ns: u64) {
        if mode != TimerMode::TscDeadline {
            self.initial = count;
            self.run_from(count, now_ns);
        }
    }

    /// Writes the divide configuration register; a running count goes on from where it is at the new rate.
    pub(super) fn set_divide(&mut self, mode: TimerMode, divide: u32, now_ns: u64) {
        let count = self.current(mode, now_ns);
        self.divide = divide & 0xB;
        if count != 0 {
            self.run_from(count, now_ns);
        }
    }

    /// The mode field of the LVT entry changed. To or from TSC-deadline mode disarms the timer (SDM 3A 11.5.4.1);
    /// between the others the count goes on.
    pub(super) fn mode_changed(&mut self, from: TimerMode, to: TimerMode, now_ns: u64) {
        if from == to {
            return;
        }
        if from == TimerMode::TscDeadline || to == TimerMode::TscDeadline {
            self.stop();
        } else {
            let count = self.current(from, now_ns);
            self.run_from(count, now_ns);
        }
    }

    fn stop(&mut self) {
        self.base_count = 0;
        self.expiry_ns = None;
        self.tsc_deadline = 0;
    }

    /// IA32_TSC_DEADLINE: reads zero unless armed in TSC-deadline mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE (zero disarms); ignored in other modes. The guest's counter is guest time plus `offset`.
    pub(super) fn set_tsc_deadline(&mut self, mode: TimerMode, deadline: u64, offset: u64, now_ns: u64) {
        if mode == TimerMode::TscDeadline {
            self.tsc_deadline = deadline;
            let guest_tsc = now_ns.wrapping_add(offset);
            self.expiry_ns = (deadline != 0).then(|| now_ns.saturating_add(deadline.saturating_sub(guest_tsc)));
        }
    }

    /// If the expiry has passed, moves on to the next one and says so. Missed periods count as one.
    pub(super) fn expire(&mut self, mode: TimerMode, now_ns: u64) -> bool {
        match self.expiry_ns {
            Some(expiry) if expiry <= now_ns => {
                self.advance(mode, expiry, now_ns);
                true
            }
            _ => false,
        }
    }

    fn advance(&mut self, mode: TimerMode, expiry: u64, now_ns: u64) {
        let period = u64::from(self.initial) * self.divisor();
        if mode == TimerMode::Periodic && period != 0 {
            let late = (now_ns - expiry) % period;
            self.run_from(self.initial, now_ns - late);
        } else {
            self.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors() {
        for (register, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)] {
            assert_eq!(ApicTimer { divide: register, ..Default::default() }.divisor(), divisor);
        }
    }

    #[test]
    fn one_shot_counts_down_and_stops() {
        let mut t = ApicTimer::default();
        t.set_divide(TimerMode::OneShot, 3, 0);
        t.set_initial(TimerMode::OneShot, 100, 1000);
        assert_eq!(t.current(TimerMode::OneShot, 1000 + 16 * 40), 60);
        assert_eq!(t.expiry_ns, Some(2600));
        assert!(!t.expire(TimerMode::OneShot, 2599));
        assert!(t.expire(TimerMode::OneShot, 2600));
        assert_eq!((t.expiry_ns, t.current(TimerMode::OneShot, 2700)), (None, 0));
    }

    #[test]
    fn periodic_keeps_its_phase_when_late() {
        let mut t = ApicTimer::default();
        t.set_divide(TimerMode::Periodic, 0xB, 0);
        t.set_initial(TimerMode::Periodic, 1000, 0);
        assert!(t.expire(TimerMode::Periodic, 3500));
        assert_eq!(t.expiry_ns, Some(4000));
        assert_eq!(t.current(TimerMode::Periodic, 3600), 400);
        assert_eq!(t.current(TimerMode::Periodic, 4600), 400, "wraps before the expiry is handled");
    }

    #[test]
    fn very_short_periods_are_grouped() {
        let mut t = ApicTimer::default();
        t.set_initial(TimerMode::Periodic, 1, 0);
        assert_eq!(t.wake_ns(TimerMode::Periodic), Some(10_002));
        assert!(t.expire(TimerMode::Periodic, 10_002));
        assert_eq!(t.wake_ns(TimerMode::Periodic), Some(20_004));
        assert_eq!(t.wake_ns(TimerMode::OneShot), Some(10_004));
    }

    #[test]
    fn divider_change_keeps_the_count() {
        let mut t = ApicTimer::default();
        t.set_divide(TimerMode::OneShot, 0xB, 0);
        t.set_initial(TimerMode::OneShot, 1000, 0);
        t.set_divide(TimerMode::OneShot, 0, 400);
        assert_eq!(t.current(TimerMode::OneShot, 400), 600);
        assert_eq!(t.expiry_ns, Some(400 + 1200));
    }

    #[test]
    fn tsc_deadline_uses_the_guest_counter() {
        let mut t = ApicTimer::default();
        let mode = TimerMode::TscDeadline;
        t.set_tsc_deadline(mode, 5_500, 500, 1_000);
        assert_eq!((t.expiry_ns, t.tsc_deadline()), (Some(5_000), 5_500));
        t.set_tsc_deadline(mode, 100, 500, 1_000);
        assert_eq!(t.expiry_ns, Some(1_000), "in the past: at once");
        assert!(t.expire(mode, 1_000));
        assert_eq!(t.tsc_deadline(), 0);
        t.set_tsc_deadline(TimerMode::OneShot, 9, 0, 0);
        assert_eq!(t.tsc_deadline(), 0);
    }
}
