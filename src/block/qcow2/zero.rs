//! Zero clusters and discard.

use super::Qcow2;
use super::layout::{COPIED, Mapping, ZERO};
use crate::block::{BlockBackend, Result};
use std::io::IoSlice;

/// Zeroes written at once where an image cannot say "zero".
const CHUNK: u64 = 1 << 20;

impl Qcow2 {
    /// Where the backing file ends; 0 without one. Behind it unallocated clusters are zero.
    pub(super) fn below_len(&self) -> u64 {
        self.backing.as_ref().map_or(0, |b| b.backend().len())
    }

    /// The whole clusters in a range; the disk's end also ends one.
    fn whole(&self, offset: u64, end: u64) -> (u64, u64) {
        let first = self.layout.clusters(offset) << self.layout.cluster_bits;
        let last = if end >= self.len() {
            self.layout.clusters(end) << self.layout.cluster_bits
        } else {
            self.layout.floor(end)
        };
        (first, last)
    }

    /// [`BlockBackend::write_zeroes`] with the range checked.
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = offset + len;
        let (first, last) = self.whole(offset, end);
        if first >= last {
            return self.zero_bytes(offset, len);
        }
        self.zero_bytes(offset, first - offset)?;
        self.zero_bytes(last.min(end), end - last.min(end))?;
        if self.layout.version < 3 && first < self.below_len() {
            return self.zero_bytes(first, last.min(end) - first);
        }
        self.zero_clusters(first, last, unmap)
    }

    /// Writes zeroes as data where they are not zero anyway.
    pub(super) fn zero_bytes(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.known_zero(offset, len)? {
            return Ok(());
        }
        let zeroes = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(CHUNK);
            let _quiet = self.quiet.read();
            self.write_quiet(offset + done, &[IoSlice::new(&zeroes[..step as usize])], step)?;
            done += step;
        }
        Ok(())
    }

    fn zero_clusters(&self, first: u64, last: u64, unmap: bool) -> Result<()> {
        let below = self.below_len();
        let _quiet = self.quiet.write();
        let mut meta = self.meta();
        let mut guest = first;
        while guest < last {
            meta.relieve()?;
            let run = meta.run(guest, last - guest)?;
            let entry = match run.mapping {
                Mapping::Unallocated if guest >= below => None,
                Mapping::Zero { host: None, .. } => None,
                Mapping::Zero { .. } if !unmap => None,
                Mapping::Data { host, copied: true } if !unmap && self.layout.version >= 3 => {
                    Some(host | COPIED | ZERO)
                }
                _ if self.layout.version >= 3 => Some(ZERO),
                _ => Some(0),
            };
            match entry {
                None => guest = self.layout.floor(guest) + run.len.next_multiple_of(self.layout.cluster()),
                Some(entry) => {
                    meta.replace_entry(guest, entry)?;
                    guest += self.layout.cluster();
                }
            }
        }
        Ok(())
    }

    /// [`BlockBackend::discard`] with the range checked.
    pub(super) fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        let (first, last) = self.whole(offset, offset + len);
        let below = self.below_len();
        let _quiet = self.quiet.write();
        let mut meta = self.meta();
        let mut guest = first;
        while guest < last {
            meta.relieve()?;
            let run = meta.run(guest, last - guest)?;
            let kept = matches!(run.mapping, Mapping::Unallocated | Mapping::Zero { host: None, .. });
            // Version 2 has no zero clusters: the backing file's old data would come up.
            if kept || (self.layout.version < 3 && guest < below) {
                guest += run.len.next_multiple_of(self.layout.cluster());
                continue;
            }
            meta.replace_entry(guest, if self.layout.version < 3 { 0 } else { ZERO })?;
            guest += self.layout.cluster();
        }
        Ok(())
    }
}
