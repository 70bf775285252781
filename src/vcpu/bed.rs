//! Where a thread sleeps until somebody wants something of it, without a wake-up lost and without a system call of those
//! who find it awake.
//!
//! What is wanted is written somewhere else, in a word that needs no lock. The sleeper says that it goes to sleep and
//! then looks at that word; who writes the word then looks whether the other sleeps. A full fence between the two steps
//! of each side makes at least one of them see the other. `tools/loom` goes through all orders of the steps.

use super::sync::atomic::{AtomicBool, Ordering, fence};
use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A thread's sleep, and what is kept under its lock.
pub struct Bed<T> {
    /// No other lock is taken, and nothing is called, while this one is held.
    inner: Mutex<T>,
    wake: Condvar,
    /// The thread sleeps, or is about to, for want of anything in the word.
    asleep: AtomicBool,
}

impl<T> Bed<T> {
    /// Nobody sleeps.
    pub fn new(inner: T) -> Self {
        Self { inner: Mutex::new(inner), wake: Condvar::new(), asleep: AtomicBool::new(false) }
    }

    /// What is kept under the lock. A panic under it leaves it consistent.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread sleeps, or is about to. For those who are curious: it may be awake by now.
    pub fn somebody_sleeps(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Sleeps until [`Bed::changed`] is told, or for no reason.
    pub fn wait<'a>(&'a self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// What is under the lock was changed.
    pub fn changed(&self) {
        self.wake.notify_all();
    }

    /// The word was written: wakes the thread if it sleeps for it.
    pub fn written(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            // Who has the lock is about to sleep and has looked at the word already: it must be asleep when it is called.
            drop(self.lock());
            self.wake.notify_all();
        }
    }

    /// Sleeps until `ready`, which looks at the word and at what is under the lock. With `look_again`, which says in what
    /// time, it is asked again though nobody has called.
    pub fn sleep(&self, ready: impl Fn(&T) -> bool, mut look_again: impl FnMut() -> Option<Duration>) {
        let mut guard = self.lock();
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !ready(&guard) {
            guard = match look_again() {
                Some(time) => self.wake.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wait(guard),
            };
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}
