//! Copy-on-read: what a backing file shows is kept in the image.

use super::Qcow2;
use super::write::Plan;
use crate::block::{BlockBackend, Result, check_range};

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

impl Qcow2 {
    /// Copies the clusters of a range on the disk that come from the backing file. Requests
    /// of the guest may run meanwhile: they wait for the copy of their clusters or it for them.
    pub fn populate(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.len())?;
        if self.read_only {
            return Ok(());
        }
        let mut at = offset - offset % self.layout.grain();
        let end = (offset + len).min(self.below_len());
        while at < end {
            let _pass = self.running.enter();
            at += match self.plan_copy(at, (end - at).min(CHUNK))? {
                Plan::Fill(place) => {
                    let step = (place.flight.end - at).min(end - at).min(CHUNK);
                    self.fill_and_link(&place, at, &[], step)?;
                    step
                }
                Plan::InPlace(_, there) => there,
            };
        }
        Ok(())
    }
}
