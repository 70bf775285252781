//! Which requests run, so that what they found in the tables stays theirs until they end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Counts requests. They are of two ages, so that waiting for those that run now does not wait for
/// those that come after.
#[derive(Default)]
pub(super) struct Running {
    /// Requests hold it for reading; what changes the structure of the image for writing.
    exclusive: RwLock<()>,
    ages: Mutex<Ages>,
    left: Condvar,
}

#[derive(Default)]
struct Ages {
    /// The age of new requests: 0 or 1.
    now: usize,
    running: [u64; 2],
}

/// A request that runs.
pub(super) struct Pass<'a> {
    running: &'a Running,
    age: usize,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut ages = self.running.ages();
        ages.running[self.age] -= 1;
        if ages.running[self.age] == 0 && self.age != ages.now {
            self.running.left.notify_all();
        }
    }
}

impl Running {
    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins. One thread has one pass at a time.
    pub(super) fn enter(&self) -> Pass<'_> {
        // A poisoned lock says nothing: it guards no data.
        let shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let mut ages = self.ages();
        let age = ages.now;
        ages.running[age] += 1;
        Pass { running: self, age, _shared: shared }
    }

    /// Waits until no request runs, and keeps new ones out.
    pub(super) fn exclude(&self) -> RwLockWriteGuard<'_, ()> {
        self.exclusive.write().unwrap_or_else(PoisonError::into_inner)
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
        let running = Running::default();
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
}
