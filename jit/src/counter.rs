//! Counted execution: guest time as a function of executed instructions.
//!
//! Translated code adds to the count what was executed, before everything that may look at it or may end the block:
//! whoever asks amid an instruction finds the instructions completed before it. A block begins only if all of it fits below
//! the limit; the instructions up to there are run alone, so that execution stops at the very instruction. A repeated
//! string instruction counts once. One that faults, and the delivery of an exception or interrupt, count nothing.
//!
//! The processors of an engine have one counter: they run one at a time, in the order that the program gives.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Instructions executed, and where to stop. Generated code reads and writes it by offset.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Counter {
    pub(crate) count: AtomicU64,
    pub(crate) limit: AtomicU64,
    /// The limit was lowered while a processor may run: it looks again behind the instruction at hand.
    cut: AtomicBool,
}

impl Counter {
    /// Instructions completed so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A processor runs until the count is `limit`; then comes [`Exit::Counted`](crate::Exit::Counted).
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The same if it comes earlier than the limit that holds. One that lies behind stops after the instruction at hand.
    pub fn lower_limit(&self, limit: u64) {
        if self.limit.fetch_min(limit, Ordering::SeqCst) > limit {
            self.cut.store(true, Ordering::SeqCst);
        }
    }

    /// The count is where to stop.
    pub fn reached(&self) -> bool {
        self.count() >= self.limit.load(Ordering::Relaxed)
    }

    /// `instructions` more fit below the limit.
    pub(crate) fn admits(&self, instructions: u64) -> bool {
        self.count().saturating_add(instructions) <= self.limit.load(Ordering::Relaxed)
    }

    /// Counts `instructions`. Only the processor that runs does so.
    #[inline(always)]
    pub(crate) fn add(&self, instructions: u64) {
        self.count.store(self.count().wrapping_add(instructions), Ordering::Relaxed);
    }

    /// The limit was lowered since [`Counter::looked`].
    #[inline(always)]
    pub(crate) fn was_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// The run loop looks at the limit now.
    pub(crate) fn looked(&self) {
        if self.was_cut() {
            self.cut.store(false, Ordering::SeqCst);
        }
    }
}
