//! Time for the guest: guest time, which stands still while the machine is paused, and the wall clock of its RTC.

use crate::cli::config::{RtcBase, RtcClock, RtcConfig};
use brolga_devices::services::Clock;
use brolga_jit::Counter;
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

const NS_PER_S: i128 = 1_000_000_000;

/// Nanoseconds of the host's CLOCK_MONOTONIC.
pub fn host_monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC always exists on Linux");
    (now.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec() as u64)
}

/// Nanoseconds of the host's wall clock since the Unix epoch.
fn host_wall_ns() -> i128 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// The machine's clock. Made paused: guest time starts at 0 with the first [`GuestClock::resume`].
///
/// Readers take no lock (the time stamp counter is read through here): a sequence counter, odd while a writer is at
/// work, tells them to look again. `writer` serialises pausing and resuming.
pub struct GuestClock {
    writer: Mutex<()>,
    sequence: AtomicU32,
    /// Guest time at which the clock stands, or [`RUNNING`].
    stopped_at: AtomicU64,
    /// Host monotonic time at guest time 0, while running; before the host's own beginning it wraps around.
    origin: AtomicU64,
    counted: Option<Counted>,
    wall: WallClock,
}

/// Guest time by executed instructions: the count times 2^`shift`, and `bias`. `sequence` guards the two as the rest.
struct Counted {
    counter: Arc<Counter>,
    shift: AtomicU32,
    bias: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

impl GuestClock {
    /// A stopped clock whose wall clock follows `rtc`.
    pub fn new(rtc: RtcConfig) -> Self {
        Self {
            writer: Mutex::new(()),
            sequence: AtomicU32::new(0),
            stopped_at: AtomicU64::new(0),
            origin: AtomicU64::new(0),
            counted: None,
            wall: WallClock::new(rtc),
        }
    }

    /// A clock that goes on by 2^`shift` ns with each instruction that `counter` counts, and when it is put forward.
    pub fn by_instructions(rtc: RtcConfig, counter: Arc<Counter>, shift: u8) -> Self {
        let counted = Counted { counter, shift: AtomicU32::new(shift.into()), bias: AtomicU64::new(0) };
        Self { counted: Some(counted), ..Self::new(rtc) }
    }

    /// What counts the instructions that time follows, if it follows any.
    pub fn counter(&self) -> Option<&Arc<Counter>> {
        self.counted.as_ref().map(|c| &c.counter)
    }

    /// The instruction count at which guest time reaches `guest_ns`; all ones if it does not follow a count.
    pub fn count_at(&self, guest_ns: u64) -> u64 {
        let Some(c) = &self.counted else { return u64::MAX };
        let (shift, bias) = self.consistent(|| (c.shift.load(Ordering::Relaxed), c.bias.load(Ordering::Relaxed)));
        // Time wraps around where a state was loaded whose time is less than what the count alone gives.
        match guest_ns.wrapping_sub(bias) {
            ahead if (ahead as i64) < 0 => 0,
            ahead => ahead.div_ceil(1 << shift),
        }
    }

    /// Puts guest time that follows instructions forward to `guest_ns`, never back.
    pub fn put_forward(&self, guest_ns: u64) {
        let ahead = guest_ns.saturating_sub(self.now_ns());
        self.recount(|shift, bias, _| (shift, bias.wrapping_add(ahead)));
    }

    /// Nanoseconds for an instruction, as a power of two.
    pub fn shift(&self) -> u8 {
        self.counted.as_ref().map_or(0, |c| c.shift.load(Ordering::Relaxed) as u8)
    }

    /// An instruction takes 2^`shift` ns from now on.
    pub fn set_shift(&self, shift: u8) {
        self.recount(|old, bias, count| {
            let (before, after) = (count.wrapping_shl(old), count.wrapping_shl(shift.into()));
            (shift.into(), bias.wrapping_add(before).wrapping_sub(after))
        });
    }

    /// Replaces (`shift`, `bias`) by what `f(shift, bias, count)` says.
    fn recount(&self, f: impl FnOnce(u32, u64, u64) -> (u32, u64)) {
        let Some(c) = &self.counted else { return };
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let before = (c.shift.load(Ordering::Relaxed), c.bias.load(Ordering::Relaxed));
        let (shift, bias) = f(before.0, before.1, c.counter.count());
        c.shift.store(shift, Ordering::Relaxed);
        c.bias.store(bias, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// Guest time stands still from now on.
    pub fn pause(&self) {
        self.change(|host, stopped, origin| match stopped {
            RUNNING => (host.wrapping_sub(origin), 0),
            _ => (stopped, 0),
        });
    }

    /// Guest time goes on from where it stood.
    pub fn resume(&self) {
        self.change(|host, stopped, origin| match stopped {
            RUNNING => (RUNNING, origin),
            _ => (RUNNING, host.wrapping_sub(stopped)),
        });
    }

    /// Guest time is `guest_ns` from now on; the clock stands, or goes on from there.
    pub fn set(&self, guest_ns: u64) {
        // The largest value says that the clock runs.
        let guest_ns = guest_ns.min(RUNNING - 1);
        self.recount(|shift, _, count| (shift, guest_ns.wrapping_sub(count.wrapping_shl(shift))));
        self.change(|host, stopped, _| match stopped {
            RUNNING => (RUNNING, host.wrapping_sub(guest_ns)),
            _ => (guest_ns, 0),
        });
    }

    /// Host monotonic time at which guest time reaches `guest_ns`; `None` while paused, and if it does not follow the host's.
    pub fn host_deadline(&self, guest_ns: u64) -> Option<u64> {
        if self.counted.is_some() {
            return None;
        }
        let (stopped, origin, host) = self.snapshot();
        let left = guest_ns.saturating_sub(host.wrapping_sub(origin));
        (stopped == RUNNING).then(|| host.saturating_add(left))
    }

    /// Replaces (`stopped_at`, `origin`) by what `f(host monotonic time, stopped_at, origin)` says. The time is read once
    /// readers have to wait: none has seen a later one from before the change.
    fn change(&self, f: impl FnOnce(u64, u64, u64) -> (u64, u64)) {
        let _writer = self.writer.lock().unwrap_or_else(|e| e.into_inner());
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let host = host_monotonic_ns();
        let (stopped, origin) = f(host, self.stopped_at.load(Ordering::Relaxed), self.origin.load(Ordering::Relaxed));
        self.stopped_at.store(stopped, Ordering::Relaxed);
        self.origin.store(origin, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// A consistent (`stopped_at`, `origin`, host monotonic time): the time was read while they held.
    fn snapshot(&self) -> (u64, u64, u64) {
        self.consistent(|| {
            let (stopped, origin) = (self.stopped_at.load(Ordering::Relaxed), self.origin.load(Ordering::Relaxed));
            (stopped, origin, host_monotonic_ns())
        })
    }

    /// What `read` reads while no writer is at work.
    fn consistent<T>(&self, read: impl Fn() -> T) -> T {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let found = read();
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                return found;
            }
            std::hint::spin_loop();
        }
    }
}

impl Clock for GuestClock {
    fn now_ns(&self) -> u64 {
        if let Some(c) = &self.counted {
            return self.consistent(|| {
                let (shift, bias) = (c.shift.load(Ordering::Relaxed), c.bias.load(Ordering::Relaxed));
                c.counter.count().wrapping_shl(shift).wrapping_add(bias)
            });
        }
        match self.snapshot() {
            (RUNNING, origin, host) => host.wrapping_sub(origin),
            (stopped, ..) => stopped,
        }
    }

    fn wall_clock(&self) -> (i64, u32) {
        let ns = self.wall.now_ns(self.now_ns());
        (ns.div_euclid(NS_PER_S) as i64, ns.rem_euclid(NS_PER_S) as u32)
    }
}

/// The wall clock of `-rtc`: a source of time and what it showed at the start.
struct WallClock {
    source: RtcClock,
    /// What to add to the source to get what the guest shall see, in nanoseconds.
    offset: i128,
}

impl WallClock {
    fn new(rtc: RtcConfig) -> Self {
        let host = host_wall_ns();
        let shown = match rtc.base {
            RtcBase::Utc => host,
            RtcBase::LocalTime => host + i128::from(chrono::Local::now().offset().local_minus_utc()) * NS_PER_S,
            RtcBase::At(seconds) => i128::from(seconds) * NS_PER_S,
        };
        let source_now = match rtc.clock {
            RtcClock::Host => host,
            RtcClock::Vm => 0,
            RtcClock::Monotonic => i128::from(host_monotonic_ns()),
        };
        Self { source: rtc.clock, offset: shown - source_now }
    }

    fn now_ns(&self, guest_ns: u64) -> i128 {
        self.offset
            + match self.source {
                RtcClock::Host => host_wall_ns(),
                RtcClock::Vm => i128::from(guest_ns),
                RtcClock::Monotonic => i128::from(host_monotonic_ns()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn guest_time_stands_while_paused_and_never_goes_back() {
        let clock = GuestClock::new(RtcConfig::default());
        assert_eq!(clock.now_ns(), 0);
        assert_eq!(clock.host_deadline(5), None);
        sleep(Duration::from_millis(20));
        assert_eq!(clock.now_ns(), 0, "a clock starts paused");
        clock.resume();
        sleep(Duration::from_millis(20));
        clock.resume();
        let ran = clock.now_ns();
        assert!(ran >= 20_000_000, "resuming twice must not restart it: {ran}");
        clock.pause();
        let stood = clock.now_ns();
        sleep(Duration::from_millis(20));
        assert_eq!(clock.now_ns(), stood);
        let before = host_monotonic_ns();
        clock.resume();
        let later = clock.now_ns();
        let passed = host_monotonic_ns() - before;
        assert!(later >= stood && later - stood <= passed, "paused time counted: {} of {passed}", later - stood);
    }

    /// A machine that was saved on a host that had been up for longer.
    #[test]
    fn a_time_that_is_set_goes_on_from_there() {
        let clock = GuestClock::new(RtcConfig::default());
        for time in [5, 1 << 62, 1000] {
            clock.set(time);
            assert_eq!(clock.now_ns(), time);
            clock.resume();
            let later = clock.now_ns();
            assert!((time..time + 60_000_000_000).contains(&later), "{later}");
            let (host, at) = (host_monotonic_ns(), clock.host_deadline(later + 1_000_000_000).unwrap());
            assert!(at <= host + 1_000_000_000 && at + 60_000_000_000 > host, "{at} against {host}");
            clock.set(time);
            assert!((time..time + 60_000_000_000).contains(&clock.now_ns()));
            clock.pause();
        }
    }

    #[test]
    fn time_by_instructions_goes_on_from_where_it_is_put() {
        let counter = Arc::new(Counter::default());
        let clock = GuestClock::by_instructions(RtcConfig::default(), counter.clone(), 3);
        assert_eq!((clock.now_ns(), clock.count_at(0), clock.count_at(8), clock.count_at(9)), (0, 0, 1, 2));
        clock.resume();
        assert_eq!((clock.now_ns(), clock.host_deadline(5)), (0, None), "the host's time does not count");
        clock.put_forward(1001);
        clock.put_forward(7);
        assert_eq!((clock.now_ns(), clock.count_at(1001), clock.count_at(1010)), (1001, 0, 2));
        clock.set_shift(0);
        assert_eq!((clock.now_ns(), clock.count_at(1010), clock.shift()), (1001, 9, 0));
        clock.set(5);
        assert_eq!((clock.now_ns(), clock.count_at(4), clock.count_at(6)), (5, 0, 1), "what is past is due");
    }

    #[test]
    fn host_deadline_is_where_guest_time_will_be() {
        let clock = GuestClock::new(RtcConfig::default());
        clock.resume();
        let guest = clock.now_ns();
        let host = host_monotonic_ns();
        let at = clock.host_deadline(guest + 1_000_000).unwrap();
        assert!(at.abs_diff(host + 1_000_000) < 1_000_000_000, "{at} against {host}");
        assert_eq!(clock.host_deadline(u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn readers_see_monotonic_time_while_it_is_paused_and_resumed() {
        let clock = Arc::new(GuestClock::new(RtcConfig::default()));
        clock.resume();
        let stop = Arc::new(AtomicBool::new(false));
        let reader = {
            let (clock, stop) = (clock.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    let now = clock.now_ns();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            })
        };
        for _ in 0..2000 {
            clock.pause();
            clock.resume();
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    }

    #[test]
    fn wall_clock_follows_its_base_and_source() {
        let at = |base, clock| GuestClock::new(RtcConfig { base, clock });
        let host = (host_wall_ns() / NS_PER_S) as i64;
        assert!((at(RtcBase::Utc, RtcClock::Host).wall_clock().0 - host).abs() <= 1);
        let local = at(RtcBase::LocalTime, RtcClock::Host).wall_clock().0;
        assert!((local - host).abs() <= 15 * 3600, "time zones reach from -12 to +14 hours");
        let vm = at(RtcBase::At(-5), RtcClock::Vm);
        sleep(Duration::from_millis(5));
        assert_eq!(vm.wall_clock(), (-5, 0), "paused, so it stands");
        let monotonic = at(RtcBase::At(1000), RtcClock::Monotonic);
        assert_eq!(monotonic.wall_clock().0, 1000);
        sleep(Duration::from_millis(5));
        assert!(monotonic.wall_clock().1 >= 5_000_000, "goes on although paused");
    }
}
