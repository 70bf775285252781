//! Which requests run, so that what they found stays theirs until they end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Counts requests. They are of two ages, so that waiting for those that run now does not wait for
/// those that come after.
#[derive(Debug, Default)]
pub(super) struct Running {
    ages: Mutex<Ages>,
    /// Requests have ended, or may begin again.
    left: Condvar,
}

#[derive(Debug, Default)]
struct Ages {
    /// The age of new requests: 0 or 1.
    now: usize,
    running: [u64; 2],
    /// Those who want to be alone, the one that is included: new requests wait.
    alone: usize,
    /// Somebody is alone.
    taken: bool,
}

/// A request that runs. It may end on another thread than it began on.
#[derive(Debug)]
pub(super) struct Pass {
    running: Arc<Running>,
    age: usize,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut ages = self.running.ages();
        ages.running[self.age] -= 1;
        if ages.running[self.age] == 0 && (self.age != ages.now || ages.alone > 0) {
            self.running.left.notify_all();
        }
    }
}

/// Nobody else runs.
pub(super) struct Excluded<'a> {
    running: &'a Running,
}

impl Drop for Excluded<'_> {
    fn drop(&mut self) {
        let mut ages = self.running.ages();
        ages.alone -= 1;
        ages.taken = false;
        drop(ages);
        self.running.left.notify_all();
    }
}

impl Running {
    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, mut ages: MutexGuard<'_, Ages>) -> Pass {
        let age = ages.now;
        ages.running[age] += 1;
        Pass { running: self.clone(), age }
    }

    /// A request begins. One thread waits for one pass at a time.
    pub(super) fn enter(self: &Arc<Self>) -> Pass {
        let ages = self.left.wait_while(self.ages(), |ages| ages.alone > 0).unwrap_or_else(PoisonError::into_inner);
        self.begin(ages)
    }

    /// A request begins unless it had to wait.
    pub(super) fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        let ages = self.ages();
        if ages.alone > 0 { None } else { Some(self.begin(ages)) }
    }

    /// Waits until no request runs, and keeps new ones out.
    pub(super) fn exclude(&self) -> Excluded<'_> {
        let mut ages = self.ages();
        ages.alone += 1;
        let busy = |ages: &mut Ages| ages.taken || ages.running != [0, 0];
        self.left.wait_while(ages, busy).unwrap_or_else(PoisonError::into_inner).taken = true;
        Excluded { running: self }
    }

    /// Waits until all requests have ended that run now. The caller sees to it that it is called
    /// once at a time.
    pub(super) fn outlive(&self) {
        let mut ages = self.ages();
        let old = ages.now;
        ages.now = 1 - old;
        drop(self.left.wait_while(ages, |ages| ages.running[old] > 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn only_those_before_are_waited_for() {
        let running = Arc::new(Running::default());
        let (before, over) = (running.enter(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                running.outlive();
                over.store(true, Ordering::SeqCst);
            });
            while running.ages().now == 0 {
                std::thread::yield_now();
            }
            let after = scope.spawn(|| {
                let pass = running.enter();
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(pass);
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(!over.load(Ordering::SeqCst), "the first request still runs");
            drop(before);
            waiter.join().unwrap();
            after.join().unwrap();
        });
        running.outlive();
        drop(running.exclude());
    }
    #[test]
    fn who_is_alone_is_alone() {
        let running = Arc::new(Running::default());
        let (pass, over) = (running.enter(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (over, running) = (&over, &running);
            let alone = scope.spawn(move || {
                let _alone = running.exclude();
                assert_eq!(running.ages().running, [0, 0]);
                assert!(over.load(Ordering::SeqCst), "the request still runs");
                std::thread::sleep(Duration::from_millis(10));
            });
            while running.ages().alone == 0 {
                std::thread::yield_now();
            }
            assert!(running.try_enter().is_none(), "new ones wait for who waits");
            over.store(true, Ordering::SeqCst);
            // Passes end where they like.
            scope.spawn(move || drop(pass)).join().unwrap();
            let after = running.enter();
            assert!(!running.ages().taken);
            drop(after);
            alone.join().unwrap();
        });
        assert!(running.try_enter().is_some());
    }
}
