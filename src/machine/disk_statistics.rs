//! What was done with a drive, counted.

use crate::monitor::{Counter, DriveStatistics};
use brolga::block::BlockError;
use brolga_devices::services::DiskRequest;
use std::time::{Duration, Instant};

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write, of zeroes too.
    Write,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
}

impl Kind {
    /// The kind of `request`, and its bytes.
    pub fn of(request: &DiskRequest) -> (Self, u64) {
        match request {
            DiskRequest::Read { buffer, .. } => (Self::Read, buffer.len()),
            DiskRequest::Write { buffer, .. } => (Self::Write, buffer.len()),
            DiskRequest::WriteZeroes { len, .. } => (Self::Write, *len),
            DiskRequest::Discard { len, .. } => (Self::Discard, *len),
            DiskRequest::Flush => (Self::Flush, 0),
        }
    }
}

/// The counters of a drive.
#[derive(Default)]
pub struct Ledger {
    counted: DriveStatistics,
    last: Option<Instant>,
}

impl Ledger {
    /// A request ended after `time`; `end` is where its bytes end on the disk.
    pub fn note(&mut self, kind: Kind, bytes: u64, end: u64, time: Duration, error: Option<&BlockError>) {
        self.last = Some(Instant::now());
        let counter = match kind {
            Kind::Read => &mut self.counted.reads,
            Kind::Write => &mut self.counted.writes,
            Kind::Discard => &mut self.counted.discards,
            Kind::Flush => &mut self.counted.flushes,
        };
        let Counter { operations, bytes: total, time_ns, failed, invalid } = counter;
        *time_ns = time_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        match error {
            Some(BlockError::OutOfRange { .. } | BlockError::ReadOnly { .. }) => *invalid += 1,
            Some(_) => *failed += 1,
            None => {
                *operations += 1;
                *total = total.saturating_add(bytes);
                if kind == Kind::Write {
                    self.counted.highest_written = self.counted.highest_written.max(end);
                }
            }
        }
    }

    /// The counters as they are now.
    pub fn statistics(&self) -> DriveStatistics {
        let idle_ns = self.last.map(|last| u64::try_from(last.elapsed().as_nanos()).unwrap_or(u64::MAX));
        DriveStatistics { idle_ns, ..self.counted.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.statistics().idle_ns, None);
        ledger.note(Kind::Read, 512, 512, Duration::from_nanos(5), None);
        ledger.note(Kind::Write, 1024, 4096, Duration::from_nanos(7), None);
        let error = BlockError::OutOfRange { offset: 1, len: 2, size: 1 };
        ledger.note(Kind::Write, 1024, 1 << 40, Duration::from_nanos(1), Some(&error));
        ledger.note(Kind::Flush, 0, 0, Duration::ZERO, None);
        let s = ledger.statistics();
        assert_eq!((s.reads.operations, s.reads.bytes, s.reads.time_ns), (1, 512, 5));
        assert_eq!((s.writes.operations, s.writes.invalid, s.writes.time_ns), (1, 1, 8));
        assert_eq!((s.flushes.operations, s.highest_written), (1, 4096));
        assert!(s.idle_ns.is_some());
    }
}
