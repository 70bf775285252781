//! How long a halted processor's thread watches for its next request before it sleeps.
//!
//! Waking a thread costs the host microseconds, and both sides pay: a guest whose processors wait for one another for
//! moments only is better served by a thread that looks. One that is idle is not to cost anything. So the time spent
//! looking follows what the last halts would have needed, as the halt polling of hypervisors does.

use std::time::{Duration, Instant};

/// The longest time to watch. A halt that lasts longer would have been worth a sleep. It is more than two wake-ups take
/// on a slow host, or two processors that wait for each other's wake-ups would never find out that they need not.
const LONGEST: Duration = Duration::from_micros(250);
/// What a thread begins with after a short halt, and the last step down.
const SHORTEST: Duration = Duration::from_micros(20);
/// Looks at the request word between two offers of the core to other threads.
const LOOKS: u32 = 64;
/// An offer that nobody takes is over before this.
const OFFER: Duration = Duration::from_micros(20);
/// After one that was taken, halts sleep at once for so long: while others wait for the core, who watches is only in
/// the way, perhaps of the processor that it waits for.
const RESPECT: Duration = Duration::from_millis(50);

/// How long a processor that waits for a store sleeps between two looks at memory: at first, and at most.
const DOZE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// The halts of one processor.
pub struct Nap {
    /// The time to watch in the next halt.
    window: Duration,
    began: Instant,
    /// Others wanted the core, until when it is theirs.
    elsewhere: Option<Instant>,
    /// The next sleep between two looks at memory.
    doze: Duration,
}

impl Default for Nap {
    fn default() -> Self {
        Self { window: Duration::ZERO, began: Instant::now(), elsewhere: None, doze: DOZE.0 }
    }
}

impl Nap {
    /// The processor halts.
    pub fn begin(&mut self) {
        self.began = Instant::now();
        self.doze = DOZE.0;
    }

    /// How long to sleep until memory is looked at (again): longer each time.
    pub fn doze(&mut self) -> Duration {
        let next = (self.doze * 2).min(DOZE.1);
        std::mem::replace(&mut self.doze, next)
    }

    /// Watches until `due` (`true`), or until the time is over or there is no room on the host for it.
    pub fn watch(&mut self, due: impl Fn() -> bool, has_room: impl Fn() -> bool) -> bool {
        let mut looked = self.began;
        if self.elsewhere.is_some_and(|until| looked < until) {
            return due();
        }
        while looked - self.began < self.window && has_room() {
            for _ in 0..LOOKS {
                if due() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let offered = Instant::now();
            std::thread::yield_now();
            looked = Instant::now();
            if looked - offered > OFFER {
                self.elsewhere = Some(looked + RESPECT);
                break;
            }
        }
        due()
    }

    /// The halt is over.
    pub fn end(&mut self) {
        self.lasted(self.began.elapsed());
    }

    /// Learns from a halt. One beyond the longest window shows an idle processor; a shorter one that outlasted its
    /// window shows one that was too small.
    fn lasted(&mut self, time: Duration) {
        if time > LONGEST {
            let half = self.window / 2;
            self.window = if half < SHORTEST { Duration::ZERO } else { half };
        } else if time > self.window {
            self.window = (self.window * 4).clamp(SHORTEST, LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_window_follows_the_halts() {
        let mut nap = Nap::default();
        assert_eq!(nap.window, Duration::ZERO, "nothing is known at first");
        nap.lasted(Duration::from_micros(30));
        assert_eq!(nap.window, SHORTEST);
        nap.lasted(Duration::from_micros(30));
        assert_eq!(nap.window, 4 * SHORTEST);
        nap.lasted(Duration::from_micros(30));
        assert_eq!(nap.window, 4 * SHORTEST, "long enough");
        for _ in 0..2 {
            nap.lasted(LONGEST);
        }
        assert_eq!(nap.window, LONGEST);
        for _ in 0..4 {
            nap.lasted(Duration::from_millis(4));
        }
        assert_eq!(nap.window, Duration::ZERO, "an idle processor sleeps at once");
    }

    #[test]
    fn it_watches_only_while_there_is_room_and_time() {
        let looks = Cell::new(0);
        let never = &|| {
            looks.set(looks.get() + 1);
            false
        };
        let mut nap = Nap::default();
        nap.begin();
        assert!(!nap.watch(never, || true));
        assert_eq!(looks.take(), 1, "no window, one look");
        nap.window = Duration::from_secs(3600);
        assert!(!nap.watch(never, || false));
        assert_eq!(looks.take(), 1, "no room, one look");
        let after = Cell::new(100);
        let soon = || after.replace(after.get() - 1) == 0;
        // Where the host interrupts the thread, it sleeps instead: then it looks again at the next halt.
        while !nap.watch(soon, || true) {
            nap.elsewhere = None;
            nap.begin();
        }
        nap.window = Duration::from_nanos(1);
        assert!(!nap.watch(never, || true), "the window ends");
        nap.window = Duration::from_secs(3600);
        nap.elsewhere = Some(Instant::now() + Duration::from_secs(3600));
        looks.take();
        assert!(!nap.watch(never, || true));
        assert_eq!(looks.take(), 1, "the core is wanted elsewhere, one look");
    }
}
