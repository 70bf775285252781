//! Which 64-byte granules of guest RAM hold translated code. Shared by all vCPUs and by DMA.

use super::ram::{PAGE_SIZE, Ram};
use std::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit granule map per RAM page.
pub struct CodeMap {
    /// Indexed by page number of the memory file.
    pages: Box<[AtomicU64]>,
}

/// Bits of the granules that `len` bytes at `offset` in a page touch (clipped to the page).
pub fn granules(offset: u64, len: u64) -> u64 {
    let first = (offset & (PAGE_SIZE - 1)) >> 6;
    let last = ((offset & (PAGE_SIZE - 1)) + len.max(1) - 1).min(PAGE_SIZE - 1) >> 6;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl CodeMap {
    /// An empty map for all of `ram`.
    pub fn new(ram: &Ram) -> Self {
        // Zeroed by the host as it is touched: a large guest costs nothing until it runs code all over.
        let pages = Box::<[AtomicU64]>::new_zeroed_slice((ram.size() / PAGE_SIZE) as usize);
        // SAFETY: all zero bits are a valid `AtomicU64`.
        Self { pages: unsafe { pages.assume_init() } }
    }

    fn page(&self, ram: &Ram, gpa: u64) -> Option<&AtomicU64> {
        let r = ram.region_of(gpa)?;
        self.pages.get(((r.offset + (gpa - r.gpa)) / PAGE_SIZE) as usize)
    }

    /// Granules with code on the page of `gpa`; 0 outside RAM.
    pub fn get(&self, ram: &Ram, gpa: u64) -> u64 {
        self.page(ram, gpa).map_or(0, |p| p.load(Ordering::Acquire))
    }

    /// Marks code; returns what was marked on the page before.
    pub fn mark(&self, ram: &Ram, gpa: u64, bits: u64) -> u64 {
        self.page(ram, gpa).map_or(0, |p| p.fetch_or(bits, Ordering::AcqRel))
    }

    /// Replaces the marks of a page.
    pub fn set(&self, ram: &Ram, gpa: u64, bits: u64) {
        if let Some(p) = self.page(ram, gpa) {
            p.store(bits, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::granules;

    #[test]
    fn granules_cover_the_bytes() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(4032, 64), 1 << 63);
        assert_eq!(granules(4000, 4096), 3 << 62);
        assert_eq!(granules(0, 4096), u64::MAX);
    }
}
