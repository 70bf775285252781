//! The ends of a device's connections: an interrupt output and a timer that may be driven from several threads.
//!
//! A device decides under its own lock what its output should be, drops the lock, and only then calls out. Two
//! threads doing so could deliver in the wrong order and leave the wire at the older level for ever. Both types here
//! therefore split the step: `want` notes the newest wish (call it with the device's lock held), `flush` delivers the
//! newest wish (call it without). `flush` holds a lock of its own while it calls out, which orders deliveries; that
//! lock is never taken by anything downstream, so it cannot deadlock.

use crate::services::{IrqLine, Timer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Takes a lock; a panic elsewhere while it was held does not take the device down with it.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An interrupt output of a device.
pub struct Wire {
    line: IrqLine,
    wanted: AtomicBool,
    delivered: Mutex<bool>,
}

impl Wire {
    /// An output, low, at the near end of `line`.
    pub fn new(line: IrqLine) -> Self {
        Self { line, wanted: AtomicBool::new(false), delivered: Mutex::new(false) }
    }

    /// Notes the level the wire should have. Call it with the device's lock held.
    pub fn want(&self, level: bool) {
        self.wanted.store(level, Ordering::Release);
    }

    /// Delivers the newest wish, if it differs from the level on the wire. Call it without the device's lock.
    pub fn flush(&self) {
        let mut delivered = locked(&self.delivered);
        let wanted = self.wanted.load(Ordering::Acquire);
        if *delivered != wanted {
            *delivered = wanted;
            self.line.set(wanted);
        }
    }

    /// As [`Wire::flush`], but a wire that is high and stays high goes low in between: the receiver sees an edge.
    pub fn flush_with_edge(&self) {
        let mut delivered = locked(&self.delivered);
        let wanted = self.wanted.load(Ordering::Acquire);
        if *delivered {
            self.line.set(false);
        }
        if wanted {
            self.line.set(true);
        }
        *delivered = wanted;
    }

    /// As [`Wire::flush`], but the wire has risen since the last delivery, whatever its level is by now: the receiver
    /// sees a rising edge, then the level.
    pub fn flush_after_rise(&self) {
        let mut delivered = locked(&self.delivered);
        let wanted = self.wanted.load(Ordering::Acquire);
        if *delivered {
            self.line.set(false);
        }
        self.line.set(true);
        if !wanted {
            self.line.set(false);
        }
        *delivered = wanted;
    }

    /// Both steps at once, for outputs that depend on no lock.
    pub fn set(&self, level: bool) {
        self.want(level);
        self.flush();
    }

    /// Takes over a level from a saved state. The receiver restores its own view of the wire, so nothing is delivered
    /// and nothing looks like an edge.
    pub fn adopt(&self, level: bool) {
        let mut delivered = locked(&self.delivered);
        self.wanted.store(level, Ordering::Release);
        *delivered = level;
    }

    /// The level wanted.
    pub fn level(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }
}

/// No deadline.
const NEVER: u64 = u64::MAX;

/// A timer of a device, with the same two steps as [`Wire`].
pub struct TimerSlot {
    timer: Box<dyn Timer>,
    wanted: AtomicU64,
    delivered: Mutex<u64>,
}

impl TimerSlot {
    /// Wraps a timer that is not armed.
    pub fn new(timer: Box<dyn Timer>) -> Self {
        Self { timer, wanted: AtomicU64::new(NEVER), delivered: Mutex::new(NEVER) }
    }

    /// Notes when the timer should fire (guest time in nanoseconds), if at all. Call it with the device's lock held.
    pub fn want(&self, deadline_ns: Option<u64>) {
        self.wanted.store(deadline_ns.unwrap_or(NEVER), Ordering::Release);
    }

    /// Arms or disarms the timer as last wanted. Call it without the device's lock.
    pub fn flush(&self) {
        let mut delivered = locked(&self.delivered);
        let wanted = self.wanted.load(Ordering::Acquire);
        if *delivered != wanted {
            *delivered = wanted;
            match wanted {
                NEVER => self.timer.disarm(),
                deadline => self.timer.arm(deadline),
            }
        }
    }

    /// To be called first in `timer_fired`: the timer is no longer armed, so even an unchanged deadline must be
    /// delivered again.
    pub fn fired(&self) {
        let mut delivered = locked(&self.delivered);
        *delivered = NEVER;
    }

    /// The deadline wanted.
    pub fn deadline(&self) -> Option<u64> {
        match self.wanted.load(Ordering::Acquire) {
            NEVER => None,
            deadline => Some(deadline),
        }
    }
}

/// Somebody outside who wants to know of something that the guest did. Called without the device's locks.
pub struct Hook<T>(OnceLock<Box<dyn Fn(T) + Send + Sync>>);

impl<T> Default for Hook<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T> Hook<T> {
    /// Has `f` called from now on; the first one stays.
    pub fn set(&self, f: impl Fn(T) + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(f));
    }

    /// It happened.
    pub fn call(&self, what: T) {
        if let Some(f) = self.0.get() {
            f(what);
        }
    }
}

/// Counts how often inputs rise, for people. No part of a device's state.
pub struct RaiseCounts<const N: usize> {
    /// Levels, a bit each.
    high: AtomicU64,
    counts: [AtomicU64; N],
}

impl<const N: usize> Default for RaiseCounts<N> {
    fn default() -> Self {
        Self { high: AtomicU64::new(0), counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const N: usize> RaiseCounts<N> {
    /// Input `pin` has this level now.
    pub fn note(&self, pin: u32, level: bool) {
        let Some((count, bit)) = self.counts.get(pin as usize).zip(1u64.checked_shl(pin)) else { return };
        let before = match level {
            true => self.high.fetch_or(bit, Ordering::Relaxed),
            false => self.high.fetch_and(!bit, Ordering::Relaxed),
        };
        if level && before & bit == 0 {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts.
    pub fn counts(&self) -> [u64; N] {
        std::array::from_fn(|pin| self.counts.get(pin).map_or(0, |count| count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakeTime};
    use crate::services::{TimerService, TimerTarget};
    use std::sync::{Arc, Weak};

    #[test]
    fn a_wire_delivers_changes_only() {
        let irq = FakeIrq::new();
        let wire = Wire::new(irq.line(3));
        wire.set(false);
        wire.set(true);
        wire.set(true);
        assert_eq!(irq.history(), [(3, true)]);
        wire.flush_with_edge();
        assert_eq!(irq.history(), [(3, true), (3, false), (3, true)]);
        irq.clear();
        wire.want(false);
        wire.flush_after_rise();
        assert_eq!(irq.history(), [(3, false), (3, true), (3, false)]);
        wire.adopt(true);
        assert_eq!(irq.history().len(), 3);
        assert!(wire.level());
    }

    /// A device whose output is its state, changed by several threads at once.
    #[test]
    fn the_newest_level_wins_over_all_threads() {
        for _ in 0..200 {
            let irq = FakeIrq::new();
            let wire = Wire::new(irq.line(0));
            let state = Mutex::new(0u32);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..7 {
                            let mut state = locked(&state);
                            *state += 1;
                            wire.want(*state % 2 == 1);
                            drop(state);
                            wire.flush();
                        }
                    });
                }
            });
            assert!(irq.level(0), "21 changes end high");
        }
    }

    #[test]
    fn rises_are_counted() {
        let counts = RaiseCounts::<4>::default();
        for (pin, level) in [(1, true), (1, true), (1, false), (1, true), (3, true), (3, false), (9, true)] {
            counts.note(pin, level);
        }
        assert_eq!(counts.counts(), [0, 2, 0, 1]);
    }

    struct Count(Mutex<Vec<(u32, u64)>>);
    impl TimerTarget for Count {
        fn timer_fired(&self, tag: u32, now_ns: u64) {
            locked(&self.0).push((tag, now_ns));
        }
    }

    #[test]
    fn a_timer_slot_arms_again_after_it_fired() {
        let time = FakeTime::new();
        let count = Arc::new(Count(Mutex::new(Vec::new())));
        let weak: Weak<Count> = Arc::downgrade(&count);
        let slot = TimerSlot::new(time.create(weak, 9));
        slot.want(Some(50));
        slot.flush();
        time.advance_to(60);
        assert_eq!(*locked(&count.0), [(9, 50)]);
        slot.fired();
        slot.flush();
        time.advance_to(61);
        assert_eq!(locked(&count.0).len(), 2, "an old deadline fires at once");
        slot.fired();
        slot.want(None);
        slot.flush();
        time.advance_to(1000);
        assert_eq!(locked(&count.0).len(), 2);
        assert_eq!(slot.deadline(), None);
    }
}
