//! Logs about what the guest does, in the two classes that `-d` knows: `unimp` (our gap) and `guest_errors` (the guest's
//! fault). A guest that repeats itself must not fill the disk, so both are limited in rate.

use crate::wire::locked;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Messages let through in one [`WINDOW`].
const BURST: u32 = 20;
/// The period that [`BURST`] counts for.
const WINDOW: Duration = Duration::from_secs(1);

/// Lets a burst of messages through each second of host time and counts those it held back.
pub struct RateLimit {
    window: Mutex<Option<(Instant, u32)>>,
    suppressed: AtomicU64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl RateLimit {
    /// A limiter that has let nothing through yet.
    pub const fn new() -> Self {
        Self { window: Mutex::new(None), suppressed: AtomicU64::new(0) }
    }

    /// Whether a message may go out now: `Some` with the number held back since the last one, or `None`.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = locked(&self.window);
        let (start, used) = match *window {
            Some((start, used)) if now.saturating_duration_since(start) < WINDOW => (start, used),
            _ => (now, 0),
        };
        if used >= BURST {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *window = Some((start, used + 1));
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

/// Logs something the guest asked for that the model lacks (`-d unimp`), limited in rate at this place.
#[macro_export]
macro_rules! unimp {
    ($($arg:tt)*) => {
        $crate::limited_log!("unimp", $($arg)*)
    };
}

/// Logs something the guest did wrong (`-d guest_errors`), limited in rate at this place.
#[macro_export]
macro_rules! guest_error {
    ($($arg:tt)*) => {
        $crate::limited_log!("guest_errors", $($arg)*)
    };
}

/// The common part of [`unimp!`] and [`guest_error!`]: costs one load when nobody listens.
#[macro_export]
macro_rules! limited_log {
    ($target:literal, $($arg:tt)*) => {
        if tracing::enabled!(target: $target, tracing::Level::WARN) {
            static LIMIT: $crate::diag::RateLimit = $crate::diag::RateLimit::new();
            match LIMIT.admit() {
                Some(0) => tracing::warn!(target: $target, $($arg)*),
                Some(held) => tracing::warn!(target: $target, held_back = held, $($arg)*),
                None => {}
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rest_is_counted() {
        let limit = RateLimit::new();
        let start = Instant::now();
        let passed = (0..BURST + 7).filter(|_| limit.admit_at(start).is_some()).count();
        assert_eq!(passed as u32, BURST);
        assert_eq!(limit.admit_at(start + WINDOW), Some(7));
        assert_eq!(limit.admit_at(start + WINDOW), Some(0));
    }
}
