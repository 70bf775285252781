//! The emulator's own wake-up code, compiled with loom's threads and atomics in place of the standard library's: each
//! test runs under every order of steps that the memory model allows, and fails if a thread sleeps for ever.

#[allow(dead_code)] // what only the program uses
#[path = "../../../src/vcpu/bed.rs"]
pub mod bed;

/// What the code is compiled with.
mod sync {
    pub use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub use std::sync::PoisonError;
}

#[cfg(test)]
mod tests {
    use super::bed::Bed;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;

    /// A processor's request word and its thread's bed.
    struct Processor {
        requests: AtomicU32,
        bed: Bed<bool>,
    }

    impl Processor {
        fn new() -> Arc<Self> {
            Arc::new(Self { requests: AtomicU32::new(0), bed: Bed::new(false) })
        }

        /// As the program's `raise`.
        fn raise(&self, bits: u32) {
            self.requests.fetch_or(bits, Ordering::Relaxed);
            self.bed.written();
        }

        /// As the program's sleep of a halted processor; the bits that ended it.
        fn halt(&self, mask: u32) -> u32 {
            let pending = || self.requests.load(Ordering::Relaxed) & mask;
            self.bed.sleep(|held| pending() != 0 || *held, || None);
            pending()
        }
    }

    #[test]
    fn a_request_ends_the_halt_it_meets() {
        loom::model(|| {
            let processor = Processor::new();
            let other = processor.clone();
            let sender = thread::spawn(move || other.raise(1));
            assert_eq!(processor.halt(1), 1);
            sender.join().unwrap();
        });
    }

    #[test]
    fn of_two_requests_at_once_the_one_that_counts_ends_the_halt() {
        // All orders of three threads are too many; nearly all mistakes show with few switches.
        let mut few = loom::model::Builder::new();
        few.preemption_bound = Some(2);
        few.check(|| {
            let processor = Processor::new();
            let senders = [1, 2].map(|bit| {
                let other = processor.clone();
                thread::spawn(move || other.raise(bit))
            });
            assert_eq!(processor.halt(2), 2);
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        });
    }

    #[test]
    fn halts_in_a_row_get_a_request_each() {
        loom::model(|| {
            let processor = Processor::new();
            let other = processor.clone();
            let sender = thread::spawn(move || {
                other.raise(1);
                other.raise(2);
            });
            processor.halt(1);
            processor.requests.fetch_and(!1, Ordering::Relaxed);
            processor.halt(2);
            sender.join().unwrap();
        });
    }

    #[test]
    fn what_is_under_the_lock_ends_the_halt_too() {
        loom::model(|| {
            let processor = Processor::new();
            let other = processor.clone();
            let holder = thread::spawn(move || {
                *other.bed.lock() = true;
                other.bed.changed();
            });
            assert_eq!(processor.halt(1), 0);
            holder.join().unwrap();
        });
    }
}
