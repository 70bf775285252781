//! A flush in steps: the host writes while other requests go on.
//!
//! The tables are copied at one moment, with the counts that they rely on already on their way to
//! the file. Then the host makes counts and data durable, then L2 tables, then the L1 table, each
//! step without the metadata locked. What requests change meanwhile belongs to the next flush.

use super::Qcow2;
use super::cache::Copy;
use super::meta::{FlatCopy, Meta};
use crate::block::Result;
use crate::block::running::Excluded;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

/// What one flush brings to the file.
struct Batch {
    l2: Vec<Copy>,
    l1: Option<FlatCopy>,
    /// Clusters that these tables no longer name.
    waiting: Vec<u64>,
    /// Commits so far: another one since has written newer tables.
    commits: u64,
}

impl Meta {
    fn begin_batch(&mut self) -> Result<Batch> {
        if self.l2.any_dirty() || self.l1.is_dirty() {
            self.counts_may_lag()?;
        }
        self.write_counts()?;
        let waiting = std::mem::take(&mut self.waiting);
        Ok(Batch { l2: self.l2.copies(), l1: self.l1.copy(), waiting, commits: self.commits })
    }

    fn store_l2(&mut self, batch: &Batch) -> Result<()> {
        if self.commits != batch.commits {
            return self.commit();
        }
        for copy in &batch.l2 {
            self.l2_changes += 1;
            self.write_copy(copy)?;
            self.l2.stored(copy);
        }
        Ok(())
    }

    fn store_l1(&mut self, batch: &Batch) -> Result<()> {
        if self.commits != batch.commits {
            return self.commit();
        }
        let (file, offset) = (self.file.clone(), self.header.l1_offset);
        batch.l1.as_ref().map_or(Ok(()), |copy| self.l1.store(copy, &*file, offset))
    }
}

/// Keeps requests and flushes out while the structure of an image changes.
pub(super) struct Alone<'a> {
    _requests: Excluded<'a>,
    _flushes: MutexGuard<'a, u64>,
}

impl Qcow2 {
    /// Waits until no request and no flush runs, and keeps new ones out.
    pub(super) fn alone(&self) -> Alone<'_> {
        let flushes = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        Alone { _requests: self.running.exclude(), _flushes: flushes }
    }

    /// Makes everything durable that was written before, and gives clusters free that nothing
    /// names any more. The calling thread has no request running.
    pub(super) fn flush_in_steps(&self) -> Result<()> {
        let before = self.flushes.load(Ordering::Acquire);
        let mut last = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if *last > before {
            // While this one waited, another began and ended, with all that was written before.
            return Ok(());
        }
        let number = self.flushes.fetch_add(1, Ordering::AcqRel) + 1;
        self.flush_batch()?;
        *last = number;
        Ok(())
    }

    fn flush_batch(&self) -> Result<()> {
        let batch = self.meta().begin_batch()?;
        let result = self.store(&batch);
        if batch.waiting.is_empty() {
            return result;
        }
        if result.is_err() {
            self.meta().waiting.extend(batch.waiting);
            return result;
        }
        // Who found such a cluster in the tables before it left them may still be reading it.
        self.running.outlive();
        let mut meta = self.meta();
        meta.count_down(batch.waiting)?;
        meta.write_counts()
    }

    fn store(&self, batch: &Batch) -> Result<()> {
        self.flush_files()?;
        if !batch.l2.is_empty() {
            self.meta().store_l2(batch)?;
            self.file.flush()?;
        }
        if batch.l1.is_some() {
            self.meta().store_l1(batch)?;
            self.file.flush()?;
        }
        Ok(())
    }

    /// Flushes the files without any lock.
    fn flush_files(&self) -> Result<()> {
        if self.layout.data_file {
            self.data.flush()?;
        }
        self.file.flush()
    }
}
